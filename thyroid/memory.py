"""Free memory goes back to the system."""

import contextlib
import ctypes
import gc

WORTH_IT = 20_000_000
"""Bytes that were let go of from which on it is worth the milliseconds."""
_MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD of malloc.h


def return_large(size: int) -> None:
    """Blocks of so many bytes and more go back to the system as soon as they are free.

    By itself the GNU C library raises this size to 32 MB, and keeps up to 64 MB of every thread, which `give_back` cannot free.
    """
    with contextlib.suppress(AttributeError):  # not glibc
        ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, size)


def give_back() -> None:
    """Collect garbage, which by itself is sought late where there are few and large objects, and free what the C library keeps."""
    gc.collect()
    with contextlib.suppress(AttributeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)
