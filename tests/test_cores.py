import os

import pytest

from thyroid import cores

ALL = len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "max 100000\n"}, ALL),
        ({"cpu.max": "100000 100000\n"}, 1),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "120000 100000\n"}, min(2, ALL)),
        ({"cpu.max": "6400000 100000\n"}, ALL),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, ALL),
        ({"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "50000\n"}, 1),
        ({}, ALL),
    ],
    ids=["v2 none", "v2 one", "v2 half", "v2 part", "v2 more than there are", "v1 none", "v1 one", "no cgroup"],
)
def test_cores_follow_the_limit_of_the_pod(tmp_path, files, expected):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cores.available(tmp_path) == expected


def test_cores_follow_the_affinity_mask(tmp_path):
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert cores.available(tmp_path) == 1
    finally:
        os.sched_setaffinity(0, allowed)
