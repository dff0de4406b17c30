"""What a request may cost, and the errors that say so. One place, so that the documents and the tests can read it."""

from http import HTTPStatus

from thyroid.imaging import images

MAX_BODY = 50_000_000
"""Bytes of a request's body, base64 and all."""
MAX_LITTLE = 65_536
"""Bytes of the body of a request that is no prediction, and of the head of any."""
SMALL_BODY = 1_000_000
"""Bytes up to which a body counts as it arrives, and may use `SPARE`; a larger one reserves its length before it is read."""
MAX_VALUES, MAX_NUMBERS = 1_000_000, 10_000_000
"""Objects, lists and texts of a JSON body, and values in all, each of which takes up to 64 bytes where it took three: with every
pixel as a number, four frames of 1024 x 768."""
MEMORY = 3 * MAX_BODY
"""Bytes of bodies that are held at once, over all connections: with what is made of them, some 300 MB more."""
SPARE = 50_000_000
"""Bytes beyond `MEMORY` for small bodies alone, so that large ones, or slow ones, keep no small one out."""
CONNECTIONS = 1000
"""Open connections from which on a new one closes the oldest of those that wait without a request."""
HEADERS = 10.0
"""Seconds within which the head of a request must have arrived."""
CALLS = 200
"""gRPC calls at once."""
MAX_INSTANCES = 64
MAX_REQUEST_PIXELS = 100_000_000
"""Of all JPEG and PNG pictures of a request: 64 of 1440 x 1080, the largest that scanners write."""
MAX_IMAGE_BYTES = images.MAX_BYTES
QUEUE = 64
"""Images that may wait for the engine; further requests are turned away with 503."""
QUEUE_DICOM = 16
"""DICOM files among these, which one process reads one after another: more could not be answered in time."""
PATIENCE = 1.0
"""Seconds that a request waits for a place among these, unread, before it is turned away: who is turned away at once comes
again at once, and with hundreds of clients that takes the processor from those who have a place."""
DEADLINE = 30.0
"""Seconds within which a request is answered, or given up with 504."""
SLOW_CLIENT = 20.0
"""Seconds within which a body must have arrived, and within which a client must take some of its answer."""
DRAIN = 3.0
"""Seconds after SIGTERM in which new requests are still answered, until load balancers have noticed."""
RETRY_AFTER = 1


class RequestError(Exception):
    """A request that cannot be answered; the message names the field and says what to do.

    Attributes:
        status: HTTP status.
        code: reason code, one word, for machines.
    """

    def __init__(self, message: str, status: HTTPStatus = HTTPStatus.BAD_REQUEST, code: str = "invalid_input") -> None:
        super().__init__(message)
        self.status = status
        self.code = code


def overloaded() -> RequestError:
    """Too much is waiting already."""
    return RequestError("too many images are waiting; try again", HTTPStatus.SERVICE_UNAVAILABLE, "overloaded")


def stopping() -> RequestError:
    """The drain is over."""
    return RequestError("the server is stopping; try again", HTTPStatus.SERVICE_UNAVAILABLE, "stopping")


def too_late() -> RequestError:
    """The deadline has passed."""
    return RequestError(f"not answered within {DEADLINE:g} seconds; try again", HTTPStatus.GATEWAY_TIMEOUT, "deadline")


def too_large(limit: int = MAX_BODY) -> RequestError:
    """A body beyond the limit."""
    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    return RequestError(f"body: larger than the limit of {limit:,} bytes", status, "too_large")
