"""What the endpoint hands to a candidate behind the champion, and what it counts and logs of the answers.

The event loop only appends to a queue. A thread hands the images on while the server has little to do. No answer of the
champion waits for any of this.
"""

import asyncio
import json
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from thyroid import errors, logs
from thyroid.errors import InputError
from thyroid.records.watch import Decision
from thyroid.serve import limits, prometheus
from thyroid.serve.admission import Admission
from thyroid.serve.answers import Scored
from thyroid.serve.decisions.log import DecisionLog
from thyroid.serve.payload import Instance
from thyroid.serve.shadow.process import EndedError, Process

log = logging.getLogger("thyroid.serve")

SAME, CHANGED, DROPPED, FAILED = "same", "changed", "dropped", "failed"
PAUSE, MOST_PAUSE = 1.0, 60.0
"""Seconds after a failure until the process is started again; they double with each further one."""
CLOSE_SECONDS = 5.0
"""Seconds that the end of the server waits for the end of the candidate's process."""
_REST = 0.005  # seconds after the last request was answered until its answer has left the server
_BUSY_PAUSE = 0.02  # seconds until it is looked again whether the processor is spare
_MEMORY_SECONDS = 5.0  # seconds between two measurements of the memory
_OVERHEAD = 500  # bytes of memory that an image takes beside its own and its header's


class _Picture(NamedTuple):
    """An image that waits for the candidate."""

    header: bytes
    """The fields of the image as a line of JSON, without its patient."""
    image: bytes | memoryview
    decided: str
    """The champion's decision."""
    decision: Decision | None
    """The champion's decision as it was logged; None if it was not."""
    offered: float
    """When it was offered, by `time.monotonic`."""

    @property
    def size(self) -> int:
        """Bytes that it takes in memory."""
        return len(self.header) + len(self.image) + _OVERHEAD


class Shadow:
    """The candidate behind the champion.

    Args:
        admission: The requests inside the server, which say whether the processor is spare.
        decisions: Log of the decisions; None if there is none.
        form: Form of the candidate; None for the fastest one.
    """

    def __init__(self, admission: Admission, decisions: DecisionLog | None, form: str | None = None) -> None:
        """Start the thread, without a candidate; `follow` names one."""
        self._admission, self._decisions, self._form = admission, decisions, form
        self._waiting: deque[_Picture] = deque()
        self._size = 0
        self._changed = threading.Condition()  # its lock is held for moments only
        self._wanted: Path | None = None
        self._folder: Path | None = None
        self._process: Process | None = None
        self._failures, self._start_at, self._left_off = 0, 0.0, False
        self._measured_at = 0.0
        self._closed = False
        for result in (SAME, CHANGED, DROPPED, FAILED):
            prometheus.SHADOW.labels(result)  # so that a rate has a first value
        prometheus.SHADOW_LEFT_OFF.set(0)
        admission.on_change = self._follow_load
        self._thread = threading.Thread(target=self._run, name="shadow", daemon=True)
        self._thread.start()

    def follow(self, folder: Path | None) -> None:
        """Have the artefact of a folder answer behind the champion, instead of the present one; None for none."""
        with self._changed:
            self._wanted = folder
            self._changed.notify()

    def offer(self, scored: Sequence[Scored], decisions: Sequence[Decision]) -> None:
        """Queue the images of a request whose answer is built. This takes microseconds an image and never raises.

        Args:
            scored: The images with the champion's answers.
            decisions: The champion's decisions as they were logged; none without a log.
        """
        if self._wanted is None:
            return
        try:
            logged: Sequence[Decision | None] = decisions or [None] * len(scored)
            pictures = [_picture(image, decision) for image, decision in zip(scored, logged, strict=True)]
        except Exception as error:  # of values that JSON cannot hold
            prometheus.SHADOW.labels(FAILED).inc(len(scored))
            log.error("not handed to the candidate", extra={"fields": {"where": logs.place(error)}})
            return
        size, dropped = sum(picture.size for picture in pictures), 0
        with self._changed:
            full = len(self._waiting) + len(pictures) > limits.SHADOW_IMAGES or self._size + size > limits.SHADOW_BYTES
            if full or self._process is None or not self._process.ready:
                dropped = len(pictures)
            else:
                self._waiting += pictures
                self._size += size
                self._changed.notify()
        prometheus.SHADOW.labels(DROPPED).inc(dropped)

    def close(self) -> None:
        """End the thread and the candidate's process within `CLOSE_SECONDS`; what waits is lost."""
        with self._changed:
            self._closed = True
            if self._process is not None:
                self._process.kill()
            self._changed.notify()
        self._thread.join(CLOSE_SECONDS)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(self._has_work, PAUSE)
                if self._closed:
                    break
                wanted = self._wanted
            if wanted != self._folder:
                self._end()
                self._folder, self._failures, self._start_at, self._left_off = wanted, 0, 0.0, False
                prometheus.SHADOW_LEFT_OFF.set(0)
            if self._folder is not None and self._process is None:
                if time.monotonic() >= self._start_at:
                    self._start(self._folder)
            elif self._process is not None:
                self._measure(self._process)
                self._work(self._process)
        self._end()

    def _follow_load(self) -> None:
        """Halt the process while a request is inside, and let it go on soon after the last one was answered."""
        if self._admission.requests:
            self._halt_while_busy()
        else:
            asyncio.get_running_loop().call_later(_REST, self._halt_while_busy)

    def _halt_while_busy(self) -> None:
        if (process := self._process) is not None:
            process.halt(lambda: self._admission.requests > 0)

    def _has_work(self) -> bool:
        return self._closed or self._wanted != self._folder or bool(self._waiting)

    def _start(self, folder: Path) -> None:
        try:
            process = Process(folder, self._form)
        except OSError:
            self._fail()
            return
        with self._changed:
            self._process = process
            if self._closed:
                return
        self._halt_while_busy()
        try:
            process.start()
        except InputError as error:
            self._leave_off(errors.one_line(error), math.inf)
        except EndedError:
            self._fail()
        else:
            self._left_off = False
            prometheus.SHADOW_LEFT_OFF.set(0)
            prometheus.SHADOW_MODEL.labels(process.ready["version"], process.ready["form"]).set(1)
            log.info("the candidate answers behind the champion", extra={"fields": process.ready})

    def _work(self, process: Process) -> None:
        """Hand over the oldest image that waits, unless the server is busy."""
        if not self._waiting:
            return
        picture = self._waiting[0]  # it stays in the queue, whose limits then hold for it as well
        if time.monotonic() > picture.offered + limits.SHADOW_WAIT:
            self._take()
            prometheus.SHADOW.labels(DROPPED).inc()
            return
        if self._admission.requests:
            time.sleep(_BUSY_PAUSE)
            return
        try:
            answer = process.answer(picture.header, picture.image)
        except EndedError:
            self._take()
            prometheus.SHADOW.labels(FAILED).inc()
            self._fail()
            return
        self._take()
        self._failures = 0
        self._record(picture, answer)

    def _take(self) -> None:
        with self._changed:
            self._size -= self._waiting.popleft().size

    def _record(self, picture: _Picture, answer: Mapping[str, Any]) -> None:
        if "failed" in answer:
            prometheus.SHADOW.labels(FAILED).inc()
            return
        same = answer["decision"] == picture.decided
        prometheus.SHADOW.labels(SAME if same else CHANGED).inc()
        if not same:
            prometheus.SHADOW_CHANGED.labels(picture.decided, answer["decision"]).inc()
        if self._decisions is not None and picture.decision is not None:
            self._decisions.record_shadow(picture.decision, answer)

    def _measure(self, process: Process) -> None:
        now = time.monotonic()
        if now >= self._measured_at + _MEMORY_SECONDS:
            self._measured_at = now
            prometheus.SHADOW_MEMORY.set(process.memory())

    def _fail(self) -> None:
        """Have the process started again after a pause; after too many failures in a row, leave the candidate off."""
        self._failures += 1
        if self._failures >= limits.SHADOW_ATTEMPTS:
            self._leave_off(f"its process ended {self._failures} times in a row", limits.SHADOW_AGAIN)
            return
        self._end()
        self._start_at = time.monotonic() + min(PAUSE * 2 ** (self._failures - 1), MOST_PAUSE)

    def _leave_off(self, reason: str, seconds: float) -> None:
        """Leave the candidate off for some seconds, and say so once."""
        self._end()
        self._start_at = time.monotonic() + seconds
        if not self._closed and not self._left_off:
            self._left_off = True
            prometheus.SHADOW_LEFT_OFF.set(1)
            log.error(
                "candidate left off: it does not answer behind the champion", extra={"fields": {"reason": reason}}
            )

    def _end(self) -> None:
        """End the process, and drop what waits for it."""
        with self._changed:
            process, self._process = self._process, None
            dropped = len(self._waiting)
            self._waiting.clear()
            self._size = 0
        prometheus.SHADOW.labels(DROPPED).inc(dropped)
        prometheus.SHADOW_MEMORY.set(0)
        self._measured_at = 0.0
        if process is not None:
            process.close()
            if "version" in process.ready:
                prometheus.SHADOW_MODEL.labels(process.ready["version"], process.ready["form"]).set(0)


def _picture(scored: Scored, decision: Decision | None) -> _Picture:
    """Return what the candidate needs of an image: neither its patient nor the request."""
    instance: Instance = scored.instance
    shape = None if isinstance(instance.image, bytes) else instance.image.shape
    image = instance.image if isinstance(instance.image, bytes) else np.ascontiguousarray(instance.image).data.cast("B")
    fields = {
        "bytes": len(image),
        "shape": shape,
        "roi": instance.roi,
        "frame": instance.frame,
        "clinical": instance.clinical,
        "domain": instance.domain,
    }
    header = json.dumps(fields).encode() + b"\n"
    return _Picture(header, image, scored.decision["decision"], decision, time.monotonic())
