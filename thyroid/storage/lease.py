"""A lock in a bucket, for writers on different machines.

The lock is an object. Its holder writes it again every `RENEWAL` seconds; each write requires that nobody else has
written it since. A waiter takes the lock over when the object has not changed for `EXPIRY` seconds by the waiter's own
clock, so that clocks need not agree (C. Gray and D. Cheriton, Leases: an efficient fault-tolerant mechanism for
distributed file cache consistency, SOSP 1989). The object stays when the lock is released, empty.

A lock that expires cannot keep its old holder from writing. What is written under it must therefore be committed by a
write with a generation, too.
"""

import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from thyroid.errors import InputError
from thyroid.storage.bucket import Bucket
from thyroid.storage.location import ABSENT, ChangedError

log = logging.getLogger(__name__)

EXPIRY = 120.0
"""Seconds without a sign of life after which a lock is taken over."""
RENEWAL = 20.0
"""Seconds between two signs of life."""
POLL = 2.0
"""Seconds between two looks of a waiter."""


class Lease:
    """A lock that is held.

    Args:
        place: The bucket.
        name: Name of the object.
        generation: Generation of the object that the holder has written last.
        since: Monotonic time at which that write began.
    """

    def __init__(self, place: Bucket, name: str, generation: str, since: float) -> None:
        """Start the thread that gives signs of life."""
        self._place, self._name, self._generation, self._since = place, name, generation, since
        self._lost = False
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._thread.start()

    def require_held(self) -> None:
        """Check that nobody can have taken the lock over.

        Raises:
            InputError: The holder could not give a sign of life in time.
        """
        if self._lost or time.monotonic() - self._since > EXPIRY - RENEWAL:
            raise InputError(
                f"{self._place.address}: this run lost the lock of the store, since the bucket could not be written "
                f"for {EXPIRY:.0f} seconds; nothing was changed in it; run again"
            )

    def release(self) -> None:
        """Stop the thread and let others take the lock at once."""
        self._over.set()
        self._thread.join()
        if not self._lost:
            try:
                self._place.write(self._name, b"", self._generation)
            except (ChangedError, InputError) as error:  # it expires by itself
                log.info(f"{self._place.address}/{self._name}: not released ({type(error).__name__}); it expires soon")

    def _renew(self) -> None:
        while not self._over.wait(RENEWAL):
            began = time.monotonic()
            try:
                self._generation = _write(self._place, self._name, self._generation)
                self._since = began
            except ChangedError:
                self._lost = True
                return
            except InputError as error:
                log.info(f"{self._place.address}/{self._name}: could not be renewed ({error}); trying again")


@contextmanager
def held(place: Bucket, name: str, busy: Callable[[], None] | None = None) -> Iterator[Lease]:
    """Hold a lock in a bucket during the block.

    Args:
        place: The bucket.
        name: Name of the lock's object.
        busy: Called once if another process holds the lock.

    Raises:
        InputError: The bucket cannot be read or written, or does not keep the preconditions that a lock needs.
    """
    lease = _acquire(place, name, busy)
    try:
        yield lease
    finally:
        lease.release()


def _acquire(place: Bucket, name: str, busy: Callable[[], None] | None) -> Lease:
    seen, since, told = "", 0.0, False
    while True:
        data, generation = place.read(name)
        if generation == ABSENT:
            place.require_preconditions()
        if generation != seen:
            seen, since = generation, time.monotonic()
        if not data or time.monotonic() - since > EXPIRY:
            began = time.monotonic()
            try:
                return Lease(place, name, _write(place, name, generation), began)
            except ChangedError:
                pass  # another waiter was faster
        if not told and busy is not None:
            busy()
        told = True
        time.sleep(POLL)


def _write(place: Bucket, name: str, generation: str) -> str:
    """Write the object, and return its new generation.

    Raises:
        ChangedError: Somebody else has written it since `generation`.
    """
    mine = uuid.uuid4().hex.encode()
    place.write(name, mine, generation)
    data, now = place.read(name)
    if data != mine:
        raise ChangedError(name)
    return now
