"""What this machine offers to the steps of a run: memory and cores."""

import contextlib
from dataclasses import dataclass
from pathlib import Path

import psutil

from thyroid import cores


@dataclass(frozen=True)
class Machine:
    """What the steps of a run may use together.

    Attributes:
        cores: Number of steps that can run at the same time.
        memory: Memory in bytes.
    """

    cores: int
    memory: float


def here() -> Machine:
    """Return what this machine offers now."""
    return Machine(at_a_time(), free_memory())


def free_memory() -> float:
    """Return the bytes of memory that processes can still use on this machine.

    In a container, the limit of the control group applies, too.
    """
    free = float(psutil.virtual_memory().available)
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        with contextlib.suppress(OSError, ValueError):  # no such group, or "max"
            free = min(free, int(Path(limit).read_text()) - int(Path(used).read_text()))
    return free


def at_a_time() -> int:
    """Return how many steps can run on this machine at the same time: one per core, or one if there are GPUs.

    A training takes all GPUs of a machine.
    """
    if any(Path("/dev").glob("nvidia[0-9]*")):
        return 1
    return cores.available()
