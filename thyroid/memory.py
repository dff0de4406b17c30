"""Return free memory to the operating system."""

import contextlib
import ctypes
import gc

WORTH_IT = 20_000_000
"""Least number of released bytes for which `give_back` is worth the milliseconds that it takes."""
_MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD of malloc.h


def return_large(size: int) -> None:
    """Make blocks of at least `size` bytes go back to the system as soon as they are freed.

    By default the GNU C library raises this threshold to 32 MB and keeps up to 64 MB for every thread, which
    `give_back` cannot free. With other C libraries nothing happens.
    """
    with contextlib.suppress(AttributeError):  # not glibc
        ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, size)


def give_back() -> None:
    """Collect garbage, and return the memory that the C library keeps to the system.

    Python by itself collects garbage late where there are few, large objects.
    """
    gc.collect()
    with contextlib.suppress(AttributeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)
