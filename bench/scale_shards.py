"""Ingest and crop in eight shards, one after the other on one core each, against one pod on one core.

python bench/scale_shards.py [--scans 40000]
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from incremental import generate

SHARDS = 8
FRAME = (800, 600)
"""Width and height of a scan in pixels."""

SHARD = """
import sys
from pathlib import Path
from thyroid import crop
from thyroid.ingest.options import IngestOptions
from thyroid.ingest.shards.shard import examine_shard
from thyroid.shards import Shard

step, scans, rois, store, data, number, of = sys.argv[1:]
shard = Shard(int(number), int(of))
if step == "ingest":
    examine_shard(IngestOptions(scans, rois, store=store), shard)
else:
    crop.crop_shard(Path(data), crop.CropOptions(store=store), shard)
"""


def core_seconds(*arguments: str) -> float:
    """Run Python on one core, and return the processor time that it and its workers took.

    Processor time is what a core costs, and other programs on this machine do not change it.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    pin = lambda: os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # noqa: E731
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL, preexec_fn=pin)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def shards(scans: int) -> dict[str, float]:
    """Return scans a second and core of one pod and of eight shards, gathering included, and their ratio.

    Args:
        scans: Number of scans.
    """
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        generate(root, range(scans), FRAME)
        source, rois, store, data = (str(root / name) for name in ("scans", "rois.csv", "store", "data"))
        steps = (
            ("-m", "thyroid.ingest", "--scans", source, "--rois", rois, "--store", store, "--output", data),
            ("-m", "thyroid.crop", "--data", data, "--store", store, "--output", str(root / "set")),
        )
        alone = [core_seconds(*step) for step in steps]
        digest = json.loads((root / "set" / "data.json").read_text())["digest"]
        for folder in ("store", "data", "set"):
            shutil.rmtree(root / folder)
        parts, gathered = [], []
        for name, step in zip(("ingest", "crop"), steps, strict=True):
            given = (name, source, rois, store, data)
            parts += [core_seconds("-c", SHARD, *given, str(number), str(SHARDS)) for number in range(1, SHARDS + 1)]
            gathered.append(core_seconds(*step))
        if json.loads((root / "set" / "data.json").read_text())["digest"] != digest:
            raise SystemExit("error: the data versions of one pod and of eight shards differ")
    return {
        "one_pod_scans_per_second": round(scans / sum(alone), 1),
        "shards_scans_per_second": round(scans / (sum(parts) + sum(gathered)), 1),
        "gathering_seconds": round(sum(gathered), 1),
        "shards_8_vs_1": round(sum(alone) / (sum(parts) + sum(gathered)), 2),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--scans", type=int, default=40_000)
    print(json.dumps(shards(parser.parse_args().scans)))
