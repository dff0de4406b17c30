"""How many images, and how many bytes of bodies, a server takes on at once, and what becomes of those beyond."""

import asyncio
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from thyroid.serve import limits, prometheus


class Admission:
    """How many images are inside, over all models; beyond the limit requests wait for a moment, and are then turned away."""

    def __init__(self, limit: int = limits.QUEUE) -> None:
        self.limit = limit
        self.inside = 0
        self._waiting: deque[asyncio.Future[bool]] = deque()

    async def opening(self) -> None:
        """Wait for a free place, first come, first served. It is not held: a client that sends its body slowly keeps nobody out.

        Raises:
            RequestError: there was none within `limits.PATIENCE` seconds.
        """
        if self.inside < self.limit and not self._waiting:
            return
        loop = asyncio.get_running_loop()
        free: asyncio.Future[bool] = loop.create_future()
        self._waiting.append(free)
        timer = loop.call_later(limits.PATIENCE, _tell, free, False)
        try:
            if not await free:
                raise limits.overloaded()
        finally:
            timer.cancel()

    @contextmanager
    def admit(self, count: int) -> Iterator[None]:
        """Hold `count` places.

        Raises:
            RequestError: there are not so many, unless nothing else is inside (a large request must be possible at all).
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
                free -= _tell(self._waiting.popleft(), True)


class Memory:
    """Bytes of bodies that are held, over all connections of HTTP and gRPC. Whoever takes some gives them back, however it ends.

    Attributes:
        held: now.
        returned: since somebody last set it to 0.
    """

    def __init__(self, limit: int = limits.MEMORY, spare: int = limits.SPARE) -> None:
        self.limit, self.spare = limit, spare
        self.held = self.returned = 0
        self._waiting: deque[tuple[int, asyncio.Future[bool]]] = deque()

    def take(self, size: int) -> None:
        """Hold `size` bytes more of a body that arrives, of the spare ones if need be.

        Raises:
            RequestError: there are not so many.
        """
        if self.held + size > self.limit + self.spare:
            raise limits.overloaded()
        self.held += size

    async def reserve(self, size: int) -> None:
        """Hold `size` bytes before a large body is read; wait for them, first come, first served.

        Raises:
            RequestError: they were not free within `limits.PATIENCE` seconds.
        """
        if self.held + size <= self.limit and not self._waiting:
            self.held += size
            return
        loop = asyncio.get_running_loop()
        free: asyncio.Future[bool] = loop.create_future()
        self._waiting.append((size, free))
        timer = loop.call_later(limits.PATIENCE, _tell, free, False)
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
        """Give `size` bytes back."""
        self.held -= size
        self.returned += size
        while self._waiting and (self._waiting[0][1].done() or self.held + self._waiting[0][0] <= self.limit):
            wanted, free = self._waiting.popleft()
            if _tell(free, True):
                self.held += wanted


def _tell(waiting: "asyncio.Future[bool]", answer: bool) -> bool:
    """Whether it still wanted to know."""
    if waiting.done():
        return False
    waiting.set_result(answer)
    return True
