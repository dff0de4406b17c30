"""Free memory goes back to the system."""

import contextlib
import ctypes
import gc

WORTH_IT = 20_000_000
"""Bytes that were let go of from which on it is worth the milliseconds."""


def give_back() -> None:
    """Collect garbage, which by itself is sought late where there are few and large objects, and free what the C library keeps."""
    gc.collect()
    with contextlib.suppress(AttributeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)
