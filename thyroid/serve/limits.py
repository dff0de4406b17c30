"""The limits of a request, and the errors that report them.

They are in one place so that the documentation and the tests can read them.
"""

from http import HTTPStatus

from thyroid.imaging import images

MAX_BODY = 50_000_000
"""Bytes of the body of a request, including the overhead of base64."""
MAX_LITTLE = 65_536
"""Bytes of the body of a request that is not a prediction, and of the head of any request."""
SMALL_BODY = 1_000_000
"""Bytes up to which a body counts as it arrives and may use `SPARE`.

A larger body reserves its length before it is read.
"""
MAX_VALUES, MAX_NUMBERS = 1_000_000, 10_000_000
"""Objects, lists and quotation marks of a JSON body (each), and all values.

A value takes up to 64 bytes of memory where it took three bytes of the body. With every pixel as a number, the limit is
four frames of 1024 x 768.
"""
MEMORY = 3 * MAX_BODY
"""Bytes of bodies that are held at once, over all connections. What is made of them takes some 300 MB more."""
SPARE = 50_000_000
"""Bytes beyond `MEMORY` that only small bodies may use, so that large or slow bodies do not keep small ones out."""
CONNECTIONS = 1000
"""Open connections. Beyond this number, a new connection closes the oldest one that waits without a request."""
HEADERS = 10.0
"""Seconds within which the head of a request must arrive."""
CALLS = 200
"""gRPC calls that may run at once."""
MAX_INSTANCES = 64
"""Images of one request."""
MAX_REQUEST_PIXELS = 100_000_000
"""Pixels of all pictures of a request together, DICOM files not counted.

This is enough for 64 pictures of 1440 x 1080, the largest that scanners write.
"""
MAX_IMAGE_BYTES = images.MAX_BYTES
QUEUE = 64
"""Images that may wait for the engine. Further requests are rejected with 503."""
QUEUE_DICOM = 16
"""DICOM files among these images. One process reads them one after another, so more could not be answered in time."""
PATIENCE = 1.0
"""Seconds that a request waits, unread, for a place among these images before it is rejected.

A client that is rejected at once retries at once. With hundreds of clients, that takes the processor from the requests
that have a place.
"""
DEADLINE = 30.0
"""Seconds within which a request is answered, or abandoned with 504."""
SLOW_CLIENT = 20.0
"""Seconds within which a body must arrive, and within which a client must accept some of its answer."""
DRAIN = 3.0
"""Seconds after SIGTERM during which new requests are still answered, until load balancers have noticed."""
RETRY_AFTER = 1
"""Seconds in the Retry-After header of a rejected request."""
SHADOW_IMAGES = 64
"""Images that wait for the candidate behind the champion. What finds no room is dropped and counted."""
SHADOW_BYTES = MAX_BODY
"""Bytes that they take. The requests' own budget (`MEMORY`) does not hold them."""
SHADOW_WAIT = 600.0
"""Seconds that an image waits for the candidate. It must not be kept, and logged, long after it was sent."""
SHADOW_START = 300.0
"""Seconds within which the candidate's process must have loaded it, on what the champion leaves of the processor."""
SHADOW_DEADLINE = 60.0
"""Seconds within which the candidate must answer to an image; then its process is killed."""
SHADOW_ATTEMPTS = 5
"""Failures in a row, to start or to stay alive, after which a candidate is left off."""
SHADOW_AGAIN = 3600.0
"""Seconds until a candidate that was left off for such failures gets another chance: the machine may have been busy."""
SHADOW_MEMORY = 1_500_000_000
"""Bytes of data that the candidate's process may allocate, beside the code and files that it maps."""


class RequestError(Exception):
    """A request that cannot be answered. The message names the field and says what to do.

    Attributes:
        status: HTTP status of the answer.
        code: Reason code for machines, one word.
    """

    def __init__(self, message: str, status: HTTPStatus = HTTPStatus.BAD_REQUEST, code: str = "invalid_input") -> None:
        """Set the message, the HTTP status and the reason code."""
        super().__init__(message)
        self.status = status
        self.code = code


def overloaded() -> RequestError:
    """Return the error for a request that finds too much waiting already (503)."""
    return RequestError("too many images are waiting; try again", HTTPStatus.SERVICE_UNAVAILABLE, "overloaded")


def stopping() -> RequestError:
    """Return the error for a request that comes after the drain (503)."""
    return RequestError("the server is stopping; try again", HTTPStatus.SERVICE_UNAVAILABLE, "stopping")


def too_late() -> RequestError:
    """Return the error for a request whose deadline has passed (504)."""
    return RequestError(f"not answered within {DEADLINE:g} seconds; try again", HTTPStatus.GATEWAY_TIMEOUT, "deadline")


def too_large(limit: int = MAX_BODY) -> RequestError:
    """Return the error for a body of more than `limit` bytes (413)."""
    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    return RequestError(f"body: larger than the limit of {limit:,} bytes", status, "too_large")
