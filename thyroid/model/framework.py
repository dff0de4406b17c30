"""Imports Keras and TensorFlow without the notices that TensorFlow's C++ code writes on every start.

The notices go to file descriptor 2 before any log level is read, so the descriptor itself is redirected during the
import. A failed import still raises its Python error. The import does not look for devices yet, so a process may be
forked after it.
"""

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
# oneDNN is off by default on processors without AVX-512. Without it a convolution's gradient takes up to thirty times
# as long there.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
# glibc returns a thread's empty heaps (64 MiB) to the kernel after every step. The page faults that follow take as long
# as the computation.
if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
    libc.mallopt(-2, 64 << 20)  # M_TOP_PAD of malloc.h


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Discard everything that is written to file descriptor 2 within the block."""
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


with silent():
    import keras
    import tensorflow as tf

__all__ = ["keras", "silent", "tf"]
