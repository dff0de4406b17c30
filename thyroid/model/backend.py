"""Sets Keras and TensorFlow up for this machine: which devices compute, and in which precision."""

from pathlib import Path
from typing import Any

from thyroid.model.framework import keras, silent, tf

with silent():
    tf.transpose(tf.constant([[0]]))  # the other notices come with the first kernel, oneDNN's with integers
    tf.get_logger().setLevel("ERROR")

XLA = bool(tf.config.list_physical_devices("GPU"))
"""Whether to compile with XLA.

On CPUs XLA takes minutes to compile a deep backbone, and the result is slower than a plain graph.
"""


def policy() -> str:
    """Return Keras' dtype policy for this machine.

    The policy is a mixed one if the first GPU, or the processor where there is no GPU, computes faster with it. On
    processors with bfloat16 instructions a convolution takes about half the time.

    Returns:
        "mixed_bfloat16", "mixed_float16" or "float32".
    """
    if gpus := tf.config.list_physical_devices("GPU"):
        capability = tf.config.experimental.get_device_details(gpus[0]).get("compute_capability", (0, 0))
        return "mixed_bfloat16" if capability >= (8, 0) else "mixed_float16" if capability >= (7, 0) else "float32"
    return "mixed_bfloat16" if {"avx512_bf16", "amx_bf16"} & _processor_flags() else "float32"


def _processor_flags() -> set[str]:
    information = Path("/proc/cpuinfo")
    return set(information.read_text().split()) if information.exists() else set()


def auroc(classes: int) -> Any:
    """Return a Keras metric for the mean over the classes of the AUROC of each class against the rest.

    With two classes both AUROCs are the same.
    """
    return keras.metrics.AUC(num_thresholds=1000, multi_label=True, num_labels=classes, name="auroc")


def strategy() -> tf.distribute.Strategy:
    """Return a MirroredStrategy over all GPUs if this machine has several, else the default strategy."""
    many = len(tf.config.list_logical_devices("GPU")) > 1
    return tf.distribute.MirroredStrategy() if many else tf.distribute.get_strategy()


def where() -> str:
    """Describe what computes here in words: the number of GPUs and the dtype policy."""
    gpus = len(tf.config.list_logical_devices("GPU"))
    return f"{gpus or 'no'} GPU{'' if gpus == 1 else 's'}, {policy()}"


__all__ = ["XLA", "auroc", "keras", "policy", "strategy", "tf", "where"]
