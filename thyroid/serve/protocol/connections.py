"""The connections of HTTP: Uvicorn's, with limits against clients that only hold them."""

from typing import Any, ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from thyroid.serve import limits

UNWANTED_SECONDS = 0.001
"""Seconds between two reads of a body that was answered before it had arrived, times the number of such connections.

Read as fast as they arrive, thirty such bodies leave no time for others.
"""


class Connection(HttpToolsProtocol):
    """A connection with limits against clients that only hold it: on the bytes of a head, and on their number."""

    _fresh: ClassVar[dict["Connection", None]] = {}
    """Connections that may not have sent a whole head yet, the oldest first."""
    _unwanted: ClassVar[set["Connection"]] = set()
    """Connections that were answered before their bodies had arrived."""
    _head = 0

    def connection_made(self, transport: Any) -> None:
        """Open the connection, and close another one if there are too many."""
        super().connection_made(transport)
        self._fresh[self] = None
        if len(self.connections) > limits.CONNECTIONS:
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._fresh.pop(self, None)
        self._unwanted.discard(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse `data`, and close the connection if a head is too large."""
        super().data_received(data)
        if self.scope is not None and "path" not in self.scope:  # the head is not whole yet
            self._head += len(data)
            if self._head > limits.MAX_LITTLE:
                self.transport.abort()
        elif self._head:
            self._head = 0

    def on_body(self, body: bytes) -> None:
        """Pass a part of a body on. One that was answered already is read slowly."""
        super().on_body(body)
        if self.cycle.response_complete and not (self.flow.read_paused or self.transport.is_closing()):
            self._unwanted.add(self)
            self.flow.pause_reading()
            self.loop.call_later(UNWANTED_SECONDS * len(self._unwanted), self._resume)

    def on_message_complete(self) -> None:
        """Note that the whole body has arrived."""
        self._unwanted.discard(self)
        super().on_message_complete()

    def _resume(self) -> None:
        if not self.transport.is_closing():
            self.flow.resume_reading()

    def waits(self) -> tuple[str, int] | None:
        """Return what the connection waits for, and a number that changes when it makes progress.

        None if it is the server's turn, or if the connection is idle between requests.
        """
        if left := self.transport.get_write_buffer_size():
            return "answer", left
        if self.cycle is None or (self.cycle.response_complete and self.timeout_keep_alive_task is None):
            return "head", id(self.cycle)
        return None

    def _make_room(self) -> None:
        """Close the oldest connection without a request, or else an idle one. The new connection may be a probe."""
        for oldest in list(self._fresh):
            if oldest is self:
                break
            del self._fresh[oldest]
            if oldest.cycle is None:
                oldest.transport.abort()
                return
        other: Any
        for other in self.connections:
            if other is not self and other.timeout_keep_alive_task is not None:
                other.transport.abort()
                return
