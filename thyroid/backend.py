"""Keras and TensorFlow, imported without the notices that TensorFlow's C++ part writes on every start.

They go to file descriptor 2 before any log level is read, so the descriptor itself is set aside during the import. A
failing import still raises its Python error.
"""

import ctypes
import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
# Off by default on processors without AVX-512, where a convolution's gradient takes up to thirty times as long without it.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
# glibc returns a thread's empty heaps (64 MiB) to the kernel after every step, and page faults take as long as computing.
if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
    libc.mallopt(-2, 64 << 20)  # M_TOP_PAD of malloc.h

sys.stderr.flush()
_stderr = os.dup(2)
_nowhere = os.open(os.devnull, os.O_WRONLY)
os.dup2(_nowhere, 2)
try:
    import keras
    import tensorflow as tf

    tf.transpose(tf.constant([[0]]))  # the rest of the notices comes with the first kernel, oneDNN's with integers
    tf.get_logger().setLevel("ERROR")
finally:
    os.dup2(_stderr, 2)
    os.close(_stderr)
    os.close(_nowhere)

XLA = bool(tf.config.list_physical_devices("GPU"))
"""Compile with XLA? On CPUs it takes minutes to compile a deep backbone and runs slower than a plain graph."""


def policy() -> str:
    """Keras' dtype policy for this machine: mixed precision where the first GPU, or else the processor, computes it faster.

    On processors with bfloat16 instructions a convolution takes about half the time.
    """
    if gpus := tf.config.list_physical_devices("GPU"):
        capability = tf.config.experimental.get_device_details(gpus[0]).get("compute_capability", (0, 0))
        return "mixed_bfloat16" if capability >= (8, 0) else "mixed_float16" if capability >= (7, 0) else "float32"
    return "mixed_bfloat16" if {"avx512_bf16", "amx_bf16"} & _processor_flags() else "float32"


def _processor_flags() -> set[str]:
    information = Path("/proc/cpuinfo")
    return set(information.read_text().split()) if information.exists() else set()


def strategy() -> tf.distribute.Strategy:
    """All GPUs of this machine side by side where there are several (MirroredStrategy), else the default."""
    many = len(tf.config.list_logical_devices("GPU")) > 1
    return tf.distribute.MirroredStrategy() if many else tf.distribute.get_strategy()


def where() -> str:
    """What computes here, in words."""
    gpus = len(tf.config.list_logical_devices("GPU"))
    return f"{gpus or 'no'} GPU{'' if gpus == 1 else 's'}, {policy()}"


__all__ = ["XLA", "keras", "policy", "strategy", "tf", "where"]
