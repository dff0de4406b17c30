"""The leader of the listeners: it seals the batch that is ready, checks what is left of it, and starts its run."""

import datetime
import errno
import logging
import random
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pipelines.events import batch, metrics
from pipelines.events.batch import Batch, Patience, Run
from pipelines.events.start import Pipeline
from pipelines.events.state import Store
from thyroid import logs, notify, storage
from thyroid.errors import InputError, one_line
from thyroid.notify import words
from thyroid.storage import client

log = logging.getLogger("thyroid.listen")

POLL = 5.0
"""Seconds between two looks at the state."""
RUN_POLL = 60.0
"""Seconds between two looks at an unfinished run."""
SETTLE = 120.0
"""Seconds until a host that did not answer an attempt to create a run has either created it or never will."""
FIRST_PAUSE, LONGEST_PAUSE = 5.0, 600.0
"""Seconds until the first and the later attempts after a failure. Each is drawn at random from the upper half."""


_NO_FILE = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP)


class Leader:
    """Starts the runs, in a thread of its own, while no other listener on the same state does.

    Args:
        store: The state.
        pipeline: What is started.
        patience: When a batch is ready.
        clock: Returns the present time in seconds since 1970.
        ticks: Returns seconds of a clock that nobody sets.
    """

    def __init__(
        self,
        store: Store,
        pipeline: Pipeline,
        patience: Patience,
        clock: Callable[[], float] = time.time,
        ticks: Callable[[], float] = time.monotonic,
    ) -> None:
        """Do nothing yet; `start` does."""
        self._store, self._pipeline, self._patience = store, pipeline, patience
        self._clock, self._ticks = clock, ticks
        self._attempt, self._learnt = ("", 0.0), 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="leader", daemon=True)
        self._failures = 0

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, seconds: float = 5.0) -> None:
        """Ask the thread to stop and wait for it for a while. What it does not finish, the next leader does."""
        self._over.set()
        self._thread.join(seconds)

    def _run(self) -> None:
        while not self._over.is_set():
            try:
                with self._store.leading() as require_held:
                    while not self._over.is_set():
                        require_held()
                        self._over.wait(self._step_safely(require_held))
            except Exception as error:  # the thread must go on, whatever happens
                self._over.wait(self._pause_after("lock", error))

    def _step_safely(self, require_held: Callable[[], None]) -> float:
        """Take the next step; return the seconds until the one after it."""
        try:
            pause = self.step(require_held)
        except Exception as error:  # kfp raises many kinds for answers that it cannot read
            state = self._store.state
            return self._pause_after("bucket" if state.sealed else "host" if state.run else "state", error)
        self._failures = 0
        return pause

    def _pause_after(self, what: str, error: Exception) -> float:
        self._failures += 1
        metrics.FAILURES.labels(what).inc()
        pause: float = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(self._failures - 1, 20)) * random.uniform(0.5, 1)
        reason = one_line(error)[:300]
        if what != "host":  # what is left out may hold the name of an object
            known = reason.partition(" (")[0].partition(": field ")[0]
            reason = known if isinstance(error, InputError) else type(error).__name__
        fields = {"what": what, "reason": reason, "where": logs.place(error), "again_in_seconds": round(pause, 1)}
        log.warning("failed; trying again", extra={"fields": fields})
        return pause

    def step(self, require_held: Callable[[], None]) -> float:
        """Take the next step towards the next run.

        Args:
            require_held: Raises `InputError` if another process may be the leader by now.

        Returns:
            Seconds until the next step.

        Raises:
            InputError: The state, the bucket or the host cannot be reached. Nothing is lost.
            BusyError: Too many changes of the state are waiting.
        """
        now = self._clock()
        state = self._store.update(lambda state: batch.seal(state, self._patience, now))
        metrics.WAITING.set(len(state.batch.scans) + state.batch.more)
        metrics.UNFINISHED.set(state.run is not None)
        if state.sealed is not None:
            self._check(state.sealed)
            return 0.0
        if state.run is None:
            return POLL
        if not state.run.id:
            return self._start(state.run, require_held)
        return self._follow(state.run)

    def _check(self, sealed: Batch) -> None:
        """Turn a sealed batch into a run, or drop it if no object of it is new to the runs."""
        present = current(sealed.objects)
        state = self._store.state
        if not sealed.more and all(batch.is_covered(state, *one) for one in present.items()):
            self._store.update(lambda state: batch.drop(state, sealed))
            metrics.BATCHES.labels("dropped").inc()
            log.info("nothing is left of a batch", extra={"fields": {"objects": len(sealed.objects)}})
            return
        found = {address: present[address] for address in sealed.scans if address in present}
        scans = sum(not batch.is_covered(state, *one) for one in found.items()) + sealed.more
        date = datetime.datetime.fromtimestamp(self._clock(), datetime.UTC)
        run = Run(name=f"thyroid events {date:%Y-%m-%d %H:%M} {uuid.uuid4().hex[:12]}", scans=scans)
        self._store.update(lambda state: batch.intend(state, sealed, run, present))

    def _start(self, run: Run, require_held: Callable[[], None]) -> float:
        """Create a run unless it exists.

        An attempt is noted before it is made. The host is given time to carry out an attempt that it did not answer,
        before it is asked whether the run exists. The time counts from when this process learns of the attempt: the
        attempt may have been made long after its note, and clocks of machines differ or are set.
        """
        if run.attempted and (run.name, run.attempted) != self._attempt:
            self._attempt, self._learnt = (run.name, run.attempted), self._ticks()
        since = self._ticks() - self._learnt
        if run.attempted and since < SETTLE:
            return SETTLE - since
        id = self._pipeline.find(run.name) if run.attempted else ""
        if not id:
            id = self._pipeline.create(run.name, lambda: self._note(run, require_held))
        page = self._pipeline.connection.page(f"runs/details/{id}")
        # before the confirmation, after which nobody would tell it
        notify.tell(words.run_started(id, run.scans, page), self._store.address)
        self._store.update(lambda state: batch.confirm(state, run.name, id))
        metrics.BATCHES.labels("started").inc()
        log.info("started a run", extra={"fields": {"run": run.name, "scans": run.scans, "page": page}})
        return POLL

    def _note(self, run: Run, require_held: Callable[[], None]) -> None:
        """Note an attempt to create a run, unless another process may be the leader by now."""
        now = self._clock()
        self._store.update(lambda state: batch.attempt(state, run.name, now))
        require_held()

    def _follow(self, run: Run) -> float:
        """Ask whether a run has ended."""
        state = self._pipeline.state(run.id)
        if not self._pipeline.has_ended(state):
            return RUN_POLL
        self._store.update(lambda state: batch.end(state, run.name))
        log.info("a run has ended", extra={"fields": {"run": run.name, "state": state.lower()}})
        return 0.0


def current(objects: Mapping[str, str]) -> dict[str, str]:
    """Return the present generation of every object that exists, by address.

    Args:
        objects: Addresses and any text.

    Raises:
        InputError: A bucket cannot be read.
    """
    with ThreadPoolExecutor(client.WORKERS) as pool:
        found = pool.map(_generation, objects)
        return {address: generation for address, generation in zip(objects, found, strict=True) if generation}


def _generation(address: str) -> str:
    """Return the generation of an object, or size and time of a file; "" if it does not exist."""
    if not storage.is_bucket(address):
        try:
            file = Path(address).stat()
        except OSError as error:
            if error.errno in _NO_FILE:
                return ""
            raise
        return f"{file.st_size}-{file.st_mtime_ns}"
    scheme, _, rest = address.partition("://")
    name, _, key = rest.partition("/")
    found = next((one for one in storage.bucket_at(f"{scheme}://{name}").entries(key) if one.name == key), None)
    if found is None:
        return ""
    # the ETag of S3 is that of the content, which may have been gone in between
    return found.generation if scheme == "gs" else f"{found.generation} {found.modified}"
