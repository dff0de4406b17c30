"""What a request may cost, and the errors that say so. One place, so that the documents and the tests can read it."""

from http import HTTPStatus

from thyroid import images

MAX_BODY = 50_000_000
"""Bytes of a request's body, base64 and all."""
MAX_INSTANCES = 64
MAX_IMAGE_BYTES = images.MAX_BYTES
QUEUE = 64
"""Images that may wait for the engine; further requests are turned away with 503."""
PATIENCE = 1.0
"""Seconds that a request waits for a place among these, unread, before it is turned away: who is turned away at once comes
again at once, and with hundreds of clients that takes the processor from those who have a place."""
DEADLINE = 30.0
"""Seconds within which a request is answered, or given up with 504."""
SLOW_CLIENT = 20.0
"""Seconds within which a body must have arrived."""
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


def too_late() -> RequestError:
    """The deadline has passed."""
    return RequestError(f"not answered within {DEADLINE:g} seconds; try again", HTTPStatus.GATEWAY_TIMEOUT, "deadline")


def too_large(limit: int = MAX_BODY) -> RequestError:
    """A body beyond the limit."""
    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    return RequestError(f"body: larger than the limit of {limit:,} bytes", status, "too_large")
