"""How many images a server takes on at once, and what becomes of those beyond."""

import asyncio
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from thyroid.serve import limits, metrics


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
        metrics.QUEUE.set(self.inside)
        try:
            yield
        finally:
            self.inside -= count
            metrics.QUEUE.set(self.inside)
            free = self.limit - self.inside
            while self._waiting and free > 0:
                free -= _tell(self._waiting.popleft(), True)


def _tell(waiting: "asyncio.Future[bool]", answer: bool) -> bool:
    """Whether it still wanted to know."""
    if waiting.done():
        return False
    waiting.set_result(answer)
    return True
