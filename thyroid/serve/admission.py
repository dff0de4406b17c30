"""Limits on the images and on the bytes of request bodies that a server holds at once.

`opening` and `reserve` wait for a moment before they reject a request. `admit` and `take` reject it at once.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from thyroid.serve import limits, prometheus


class Admission:
    """Counts the images that are inside the server, over all models.

    Args:
        limit: Images that may be inside at once.

    Attributes:
        inside: Images that are inside now.
        requests: Requests that are being parsed or answered now.
        on_change: Called on the event loop when `requests` has become 1 or 0 again.
    """

    def __init__(self, limit: int = limits.QUEUE) -> None:
        """Start with no image inside."""
        self.limit = limit
        self.inside = self.requests = 0
        self.on_change: Callable[[], object] = lambda: None
        self._waiting: deque[asyncio.Future[bool]] = deque()

    async def opening(self) -> None:
        """Wait for a free place, first come, first served.

        The place is not reserved, so a client that sends its body slowly keeps nobody out.

        Raises:
            RequestError: No place became free within `limits.PATIENCE` seconds.
        """
        if self.inside < self.limit and not self._waiting:
            return
        loop = asyncio.get_running_loop()
        free: asyncio.Future[bool] = loop.create_future()
        self._waiting.append(free)
        timer = loop.call_later(limits.PATIENCE, _resolve, free, False)
        try:
            if not await free:
                raise limits.overloaded()
        finally:
            timer.cancel()

    @contextmanager
    def request(self) -> Iterator[None]:
        """Count a request within the context, from when its body has arrived."""
        self.requests += 1
        if self.requests == 1:
            self.on_change()
        try:
            yield
        finally:
            self.requests -= 1
            if not self.requests:
                self.on_change()

    @contextmanager
    def admit(self, count: int) -> Iterator[None]:
        """Hold `count` places within the context.

        A request is always admitted when nothing else is inside, since a large request must be possible at all.

        Raises:
            RequestError: Too few places are free.
        """
        if self.inside and self.inside + count > self.limit:
            raise limits.overloaded()
        self.inside += count
        prometheus.QUEUE.set(self.inside)
        try:
            yield
        finally:
            self.inside -= count
            prometheus.QUEUE.set(self.inside)
            free = self.limit - self.inside
            while self._waiting and free > 0:
                free -= _resolve(self._waiting.popleft(), True)


class Files:
    """Counts the DICOM files of a model, which are read one after another."""

    def __init__(self) -> None:
        """Start with no file."""
        self._inside = 0

    @contextmanager
    def admit(self, count: int) -> Iterator[None]:
        """Hold `count` places within the context.

        They are always admitted when no other file is waiting.

        Raises:
            RequestError: Too few places are free.
        """
        if count and self._inside and self._inside + count > limits.QUEUE_DICOM:
            raise limits.overloaded()
        self._inside += count
        try:
            yield
        finally:
            self._inside -= count


class Memory:
    """Counts the bytes of request bodies that are held, over all connections of HTTP and gRPC.

    A request must give back the bytes that it takes, however it ends.

    Args:
        limit: Bytes that may be held at once.
        spare: Bytes beyond `limit` that only `take` may use.

    Attributes:
        held: Bytes that are held now.
        returned: Bytes that were given back since a caller last set this to 0.
    """

    def __init__(self, limit: int = limits.MEMORY, spare: int = limits.SPARE) -> None:
        """Start with no bytes held."""
        self.limit, self.spare = limit, spare
        self.held = self.returned = 0
        self._waiting: deque[tuple[int, asyncio.Future[bool]]] = deque()

    def take(self, size: int) -> None:
        """Hold `size` more bytes of a body as it arrives, from the spare bytes if necessary.

        Raises:
            RequestError: Too few bytes are free.
        """
        if self.held + size > self.limit + self.spare:
            raise limits.overloaded()
        self.held += size

    async def reserve(self, size: int) -> None:
        """Wait for `size` bytes, first come, first served, and hold them before a large body is read.

        Raises:
            RequestError: The bytes did not become free within `limits.PATIENCE` seconds.
        """
        if self.held + size <= self.limit and not self._waiting:
            self.held += size
            return
        loop = asyncio.get_running_loop()
        free: asyncio.Future[bool] = loop.create_future()
        self._waiting.append((size, free))
        timer = loop.call_later(limits.PATIENCE, _resolve, free, False)
        try:
            if not await free:
                raise limits.overloaded()
        except asyncio.CancelledError:
            if free.done() and not free.cancelled() and free.result():
                self.give(size)
            raise
        finally:
            timer.cancel()

    def give(self, size: int) -> None:
        """Give `size` bytes back, and let the next waiting requests have them."""
        self.held -= size
        self.returned += size
        while self._waiting and (self._waiting[0][1].done() or self.held + self._waiting[0][0] <= self.limit):
            wanted, free = self._waiting.popleft()
            if _resolve(free, True):
                self.held += wanted


def _resolve(waiting: "asyncio.Future[bool]", answer: bool) -> bool:
    """Resolve the future of a waiting request, and return whether it was still waiting."""
    if waiting.done():
        return False
    waiting.set_result(answer)
    return True
