"""The number of processor cores that this process may use: the limit of its pod, not the cores of the node."""

import math
import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")

_limits: list[int] = []


def limit(count: int) -> None:
    """Have `available` return at most `count` cores from now on, for a process that shall not use the others."""
    _limits.append(count)


def available(cgroup: Path = CGROUP) -> int:
    """Return the number of cores that the affinity mask and the CPU limit allow, at least one.

    A fraction of a core counts as a whole core.

    Args:
        cgroup: Folder where control groups are mounted. Inside a container its root is the container's own group.
            Version 2 has `cpu.max` there; version 1 has `cpu/cpu.cfs_quota_us` and `cpu/cpu.cfs_period_us`.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = _limit(cgroup)
    return min([cores if limit is None else max(1, min(cores, math.ceil(limit))), *_limits])


def _limit(cgroup: Path) -> float | None:
    """Return the CPU limit in cores, or None if there is no limit."""
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
    except FileNotFoundError:
        try:
            quota, period = ((cgroup / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        except FileNotFoundError:  # not Linux, or no CPU controller
            return None
    # without a limit, version 2 says "max" and version 1 says -1
    return None if quota == "max" or int(quota) < 0 else int(quota) / int(period)
