"""How many processor cores this process may use: a pod's limit, not the cores of the node that it runs on."""

import math
import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def available(cgroup: Path = CGROUP) -> int:
    """Cores that the affinity mask and the CPU limit allow, at least one; part of a core counts as a whole one.

    Args:
        cgroup: where control groups are mounted; inside a container its root is the container's own group. Version 2 has
            `cpu.max` there, version 1 `cpu/cpu.cfs_quota_us` and `cpu/cpu.cfs_period_us`.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = _limit(cgroup)
    return cores if limit is None else max(1, min(cores, math.ceil(limit)))


def _limit(cgroup: Path) -> float | None:
    """The CPU limit in cores; None where there is none."""
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
    except FileNotFoundError:
        try:
            quota, period = ((cgroup / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        except FileNotFoundError:  # no Linux, or no CPU controller
            return None
    # version 2 says "max" where there is no limit, version 1 says -1
    return None if quota == "max" or int(quota) < 0 else int(quota) / int(period)
