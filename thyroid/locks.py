"""Locks between processes, and between pods on a shared volume; they end with the process that holds them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout


def of(path: Path) -> FileLock:
    """Return the lock of a file, which is made and stays; nobody holds it yet.

    A file system without locks raises an error when the lock is taken: the substitute that filelock has for it would outlive
    a killed process.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path, fallback_to_soft=False, thread_local=False)


@contextmanager
def held(path: Path, busy: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold a file's lock within the block.

    Args:
        path: File of the lock.
        busy: Called once, before waiting, if somebody else holds it. What it raises ends the attempt.
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
