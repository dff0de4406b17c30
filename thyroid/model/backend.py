"""Keras and TensorFlow on this machine's devices: what computes, and in which precision."""

from pathlib import Path

from thyroid.model.framework import keras, silent, tf

with silent():
    tf.transpose(tf.constant([[0]]))  # the rest of the notices comes with the first kernel, oneDNN's with integers
    tf.get_logger().setLevel("ERROR")

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
