"""A bounded queue of decisions and the thread that writes them to one sink, so that no answer waits for a disk."""

import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from prometheus_client import Counter

from thyroid import logs

log = logging.getLogger("thyroid.serve")

COUNT = Counter(
    "thyroid_decision_log", "Decisions of the log by sink and result: written, dropped or failed", ["sink", "result"]
)
WRITTEN, DROPPED, FAILED = "written", "dropped", "failed"
MOST_LINES = 10_000
"""Decisions that wait for one sink. Beyond them new ones are dropped."""
MOST_BYTES = 8_000_000
"""Bytes that they take, with `OVERHEAD` for each."""
OVERHEAD = 200
"""Bytes of memory that a line takes beside its text."""
PAUSE = 1.0
"""Seconds between two batches."""
MOST_PAUSE = 30.0
"""Seconds to which the pause grows while a sink fails."""
CLOSE_SECONDS = 5.0
"""Seconds that the end of the server waits for a sink."""
_LAST_PAUSE = 0.2


class Line(NamedTuple):
    """A decision that waits to be written."""

    day: str
    """ISO date (UTC) of the decision."""
    text: bytes
    """The decision as JSON, without a line break."""

    @property
    def size(self) -> int:
        """Bytes that the line takes in memory."""
        return len(self.text) + OVERHEAD


class RefusedError(Exception):
    """A sink will not take these decisions, however often they are sent."""


class Sink(Protocol):
    """Where decisions go.

    Attributes:
        name: Label of the metrics.
        most: Largest number of decisions of one write.
        attempts: Number of times that a write is tried; 0 for no limit.
    """

    name: str
    most: int
    attempts: int

    def write(self, lines: Sequence[Line]) -> None:
        """Write decisions of one day, all or none.

        Raises:
            RefusedError: They cannot be written, now or later.
            Exception: They were not written; they may be later.
        """


class Writer:
    """The queue and the thread of one sink.

    Args:
        sink: Where the decisions go.
    """

    def __init__(self, sink: Sink) -> None:
        """Start the thread."""
        self._sink = sink
        self._count = {result: COUNT.labels(sink.name, result) for result in (WRITTEN, DROPPED, FAILED)}
        self._waiting: deque[Line] = deque()
        self._size = 0
        self._lock = threading.Lock()  # held for moments only, never while something is written
        self._closing = threading.Event()
        self._end = float("inf")
        self._tried = 0
        self._failing = self._full = False
        self._thread = threading.Thread(target=self._run, name=f"decisions-{sink.name}", daemon=True)
        self._thread.start()

    def put(self, lines: Sequence[Line]) -> None:
        """Queue decisions; what finds no room is dropped and counted. This does not wait for the sink."""
        dropped = 0
        with self._lock:
            for line in lines:
                if len(self._waiting) >= MOST_LINES or self._size + line.size > MOST_BYTES:
                    dropped += 1
                else:
                    self._waiting.append(line)
                    self._size += line.size
        if dropped:
            self._count[DROPPED].inc(dropped)
            if not self._full:
                self._full = True
                log.error("decision log full: decisions are dropped", extra={"fields": {"sink": self._sink.name}})

    def fail(self, count: int) -> None:
        """Count decisions that could not be made a line of."""
        self._count[FAILED].inc(count)

    def finish(self) -> None:
        """Have the thread write what waits and end, within `CLOSE_SECONDS`."""
        self._end = time.monotonic() + CLOSE_SECONDS
        self._closing.set()

    def close(self) -> None:
        """Wait for the thread after `finish`; what it has not written by then is lost, and counted as failed."""
        self._thread.join(max(0.0, self._end - time.monotonic()))
        with self._lock:
            lost = len(self._waiting)
            self._waiting.clear()
            self._size = 0
        if lost:
            self.fail(lost)
            log.error("decisions lost at the end", extra={"fields": {"sink": self._sink.name, "decisions": lost}})

    def _run(self) -> None:
        pause = PAUSE
        while not self._closing.wait(pause):
            pause = PAUSE if self._flush() else min(2 * pause, MOST_PAUSE)
        while not self._flush() and time.monotonic() + _LAST_PAUSE < self._end:
            time.sleep(_LAST_PAUSE)

    def _flush(self) -> bool:
        """Write all that waits, and return whether the sink took it."""
        while batch := self._batch():
            if not self._write(batch):
                return False
        self._full = False
        return True

    def _batch(self) -> list[Line]:
        """Return the decisions of the next write. They stay in the queue until they are written."""
        with self._lock:
            first = list(itertools.islice(self._waiting, self._sink.most))
        return list(itertools.takewhile(lambda line: line.day == first[0].day, first))

    def _write(self, batch: Sequence[Line]) -> bool:
        self._tried += 1
        try:
            self._sink.write(batch)
        except Exception as error:
            self._report(error)
            if not isinstance(error, RefusedError) and self._tried != self._sink.attempts:
                return False
            self._remove(batch, FAILED)
            return isinstance(error, RefusedError)
        if self._failing:
            self._failing = False
            log.info("decision log written again", extra={"fields": {"sink": self._sink.name}})
        self._remove(batch, WRITTEN)
        return True

    def _remove(self, batch: Sequence[Line], result: str) -> None:
        """Take decisions off the queue, where `close` may have been before."""
        self._tried = 0
        with self._lock:
            removed = [self._waiting.popleft() for _ in batch if self._waiting]
            self._size -= sum(line.size for line in removed)
        self._count[result].inc(len(removed))

    def _report(self, error: Exception) -> None:
        """Log the first failure of a row of them. Its text is left out: it may quote the sink's address."""
        if self._failing:
            return
        self._failing = True
        reason = error.strerror if isinstance(error, OSError) and error.strerror else type(error).__name__
        if isinstance(error, RefusedError):
            reason = str(error)
        fields = {"sink": self._sink.name, "reason": reason, "where": logs.place(error)}
        log.error("decision log not written", extra={"fields": fields})
