"""Connections of the page, with a budget of bytes and time for requests that the application has not seen yet."""

import threading
import time
from typing import Any

from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser
from waitress.utilities import Error, RequestEntityTooLarge

from thyroid import memory

MEMORY = 100_000_000
"""Bytes of bodies that are held at once, over all connections.

With their copies on the way to the endpoint, they take seven times as much.
"""
SPARE = 20_000_000
"""Bytes beyond `MEMORY` that only small bodies may use, so that large bodies do not keep small ones out."""
SMALL = 1_000_000
"""Bytes up to which a body is small."""
LITTLE = 65_536
"""Bytes of a body that is not an upload, and of the head of a request."""
UPLOADS = ("/read", "/picture", "/locate")
PROBE = "/health"
HEADERS = 10.0
"""Seconds within which the head of a request must arrive."""
BODY = 60.0
"""Seconds within which its body must arrive: enough for the largest body at 5 Mbit/s."""
CONNECTIONS = 500
"""Open connections. Beyond this number, a new connection closes the oldest one that waits without a request.

Most connections are idle, because browsers keep several open.
"""
AT_ONCE = 100
"""New connections that are accepted before the others have their turn."""


class _Memory:
    """Counts the bytes that are held. The loop's thread takes them; any thread gives them back."""

    def __init__(self) -> None:
        self.held = self.returned = 0
        self._lock = threading.Lock()

    def take(self, size: int, limit: int) -> bool:
        """Hold `size` more bytes unless that exceeds `limit`, and return whether they are held."""
        with self._lock:
            if self.held + size > limit:
                return False
            self.held += size
            return True

    def give(self, size: int) -> None:
        """Give `size` bytes back."""
        with self._lock:
            self.held -= size
            self.returned += size


_HELD = _Memory()


class _BusyError(Error):  # like Waitress's own errors, an answer and not an exception
    code = 503
    reason = "Service Unavailable"


class Parser(HTTPRequestParser):
    """Takes the bytes of a body from the budget as they arrive, and gives them back when it is closed."""

    error: Any

    def __init__(self, adj: Any) -> None:
        """Start the clock of a request; `adj` holds the adjustments of Waitress."""
        super().__init__(adj)
        self.begun = time.monotonic()
        self._held = 0

    def received(self, data: bytes) -> int:
        """Parse `data` as Waitress does, and return how many bytes were consumed.

        A request that finds no room is answered with 503, and one with a body that is too large with 413.
        """
        if self.error:  # already refused: its body is not read
            self.completed = True
            return len(data)
        consumed: int = super().received(data)
        if self.headers_finished and not self.error and self.body_rcv is not None:
            size = max(self.content_length, self.body_bytes_received)
            limit = MEMORY + (SPARE if size <= SMALL and not self.chunked else 0)
            new = self.body_bytes_received - self._held
            if size > LITTLE and self.path not in UPLOADS:
                self.error = RequestEntityTooLarge(f"exceeds {LITTLE} bytes")
            elif new and not _HELD.take(new, limit):
                self.error = _BusyError("too much is being sent at once; try again")
            else:
                self._held += new
            if self.error:
                self.completed = True
        return consumed

    def close(self) -> None:
        """Release the body and its bytes of the budget."""
        super().close()
        self.body_rcv = None
        _HELD.give(self._held)
        self._held = 0


class Channel(HTTPChannel):
    """Closes a connection whose request does not arrive, and answers probes even where no thread is free."""

    parser_class = Parser
    request: Any
    will_close: bool

    def __init__(self, server: Any, *arguments: Any, **keywords: Any) -> None:
        """Open a connection, and close the oldest one that waits if there are too many."""
        super().__init__(server, *arguments, **keywords)
        self.requests_lock = threading.RLock()  # a probe is answered while it is held
        self._opened: float | None = time.monotonic()
        if len(server.active_channels) > CONNECTIONS:
            for channel in server.active_channels.values():
                if channel is not self and channel.idle():
                    channel.will_close = True
                    break

    def idle(self) -> bool:
        """Return whether the connection waits for a request."""
        return not (self.requests or self.total_outbufs_len or self.will_close) and (
            self.request is None or not self.request.headers_finished
        )

    def readable(self) -> bool:
        """Return what Waitress does, after a check of the time limits. The loop asks at least once a second."""
        now = time.monotonic()
        if self.request is not None:
            self._opened = None
            limit = BODY if self.request.headers_finished else HEADERS
            self.will_close = self.will_close or now - self.request.begun > limit
        elif self._opened is not None and not self.requests:
            self.will_close = self.will_close or now - self._opened > HEADERS
        return bool(super().readable())

    def received(self, data: bytes) -> bool:
        """Receive `data` as Waitress does, and note that the client has sent something."""
        self._opened = None
        return bool(super().received(data))

    def handle_close(self) -> None:
        """Close the connection, and drop an unfinished request with it."""
        super().handle_close()
        request, self.request = self.request, None
        if request is not None:
            request.close()


def guard(channels: dict[Any, Any]) -> None:
    """Make a server of Waitress use the connections of this module.

    Args:
        channels: The server's map, which holds every address that it listens on.
    """
    for server in list(channels.values()):
        if hasattr(server, "channel_class"):
            server.channel_class = Channel
            server.add_task = _answering_probes(server.add_task)
            server.maintenance = _returning_memory(server.maintenance)
            server.handle_accept = _accepting_many(server, server.handle_accept)


def _answering_probes(add_task: Any) -> Any:
    """Return an `add_task` that answers probes at once, where no thread may be free."""

    def add(channel: Any) -> None:
        channel.service() if getattr(channel.requests[0], "path", "") == PROBE else add_task(channel)

    return add


def _accepting_many(server: Any, accept: Any) -> Any:
    """Return an `accept` that accepts up to `AT_ONCE` connections.

    Waitress accepts one between two looks at all connections, so a client behind a thousand others would wait for
    seconds.
    """

    def accept_many() -> None:
        for _ in range(AT_ONCE):
            before = len(server.active_channels)
            accept()
            if len(server.active_channels) == before or len(server._map) >= server.adj.connection_limit:
                break

    return accept_many


def _returning_memory(maintenance: Any) -> Any:
    """Return a `maintenance` that also gives free memory back to the system."""

    def maintain(now: float) -> None:
        maintenance(now)
        if _HELD.returned > memory.WORTH_IT > _HELD.held:
            _HELD.returned = 0
            memory.give_back()

    return maintain
