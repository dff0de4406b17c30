"""Locks between processes, and between pods on a shared volume; they end with the process that holds them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

POLL = 0.002
"""Seconds between the attempts of a waiting process. A search's workers lock after each trial of 30 ms."""


def of(path: Path) -> FileLock:
    """Return the lock of a file. The file is created and stays; the lock is not held yet.

    Taking it raises an error on a file system that has no locks: filelock's substitute would outlive a killed process.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path, fallback_to_soft=False, thread_local=False, poll_interval=POLL)


@contextmanager
def held(path: Path, busy: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold a file's lock within the block.

    Args:
        path: File of the lock.
        busy: Called once, before waiting, if another process holds the lock. Its exceptions end the attempt.
    """
    lock = of(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        if busy is not None:
            busy()
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
