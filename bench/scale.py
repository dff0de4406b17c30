"""Ingest and crop of many scans: does memory stay flat, are the cores busy, what do a million scans cost?

The baselines, in the same run, are a tenth of the scans (memory), the same work on one core (speed), the comparison of
all pairs of perceptual hashes with NumPy (near-duplicates; extrapolated from a part), a store in a folder (for one in a
bucket that answers after a delay), and one pod (for eight shards, one after the other).

    python bench/scale.py [--scans 20000] [--rows 1000000] [--night 50000] [--sharded 40000] [--delay 0.02]
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import psutil
from incremental import IMAGES_PER_PATIENT, NEW, a_run, generate
from scale_duplicates import near_duplicates
from scale_rows import rows
from scale_shards import shards

from thyroid.ingest.listing import SETTLED_SECONDS

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.support import gcs, s3
from tests.support.clouds import ACCOUNT

BUCKET = "thyroid-bench"


@dataclass(frozen=True)
class Measured:
    """Wall-clock seconds of a step, its mean number of busy cores, and its peak memory with its workers in MB."""

    seconds: float
    cores: float
    megabytes: float


def measure(*command: str, one_core: bool = False) -> Measured:
    """Run `python -m command`, and measure it together with its workers."""
    pin = (lambda: os.sched_setaffinity(0, {0})) if one_core else None
    started = time.monotonic()
    before = os.times()
    process = psutil.Popen([sys.executable, "-m", *command], stdout=subprocess.DEVNULL, preexec_fn=pin)
    peak = 0.0
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.5):
            try:
                family = [process, *process.children(recursive=True)]
                peak = max(peak, sum(member.memory_full_info().pss for member in family) / 1e6)
            except psutil.Error:
                continue

    watcher = threading.Thread(target=watch)
    watcher.start()
    code = process.wait()
    done.set()
    watcher.join()
    if code:
        raise SystemExit(f"error: {' '.join(command)} ended with {code}")
    seconds = time.monotonic() - started
    after = os.times()
    busy = after.children_user + after.children_system - before.children_user - before.children_system
    return Measured(seconds, busy / seconds, peak)


def ingest_and_crop(scans: Path, rois: Path, work: Path, one_core: bool = False) -> tuple[Measured, Measured]:
    shutil.rmtree(work, ignore_errors=True)
    steps = (
        ("thyroid.ingest", "--scans", str(scans), "--rois", str(rois), "--output", str(work / "data")),
        ("thyroid.crop", "--data", str(work / "data"), "--output", str(work / "set")),
    )
    ingest, crop = (measure(*step, one_core=one_core) for step in steps)
    return ingest, crop


def night(number: int, delay: float) -> dict[str, float]:
    """Return folder's seconds / bucket's seconds of a night without news and of one with 100 new scans.

    Args:
        number: Scans that both stores know.
        delay: Seconds until an answer of the bucket arrives.
    """
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as temporary, s3.server() as direct, gcs.delayed(direct, delay) as far:
        root = Path(temporary)
        os.environ |= s3.variables(direct) | {"XDG_CACHE_HOME": str(root / "cache")}
        urllib.request.urlopen(
            urllib.request.Request(f"{direct}/{BUCKET}", headers={"Authorization": ACCOUNT}, method="PUT")
        )
        generate(root, range(number))
        stores = {"folder": str(root / "store"), "bucket": f"s3://{BUCKET}/store"}
        for moment in ("first", "unchanged", "100_new"):
            if moment == "100_new":
                generate(root, range(number, number + NEW))
            time.sleep(2 * SETTLED_SECONDS)
            os.environ["AWS_ENDPOINT_URL"] = direct if moment == "first" else far
            for place, store in stores.items():
                print(f"{moment}, {place}, {number:,} scans", flush=True)
                seconds[f"{place} {moment}"] = a_run(root, store)
    return {moment: seconds[f"folder {moment}"] / seconds[f"bucket {moment}"] for moment in ("unchanged", "100_new")}


def ingest_and_crop_of(number: int) -> dict[str, float]:
    """Return ratios of memory (all scans over a tenth of them) and of speed (one core over all of them)."""
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        sets = {"all": number, "tenth": number // 10}
        for name, size in sets.items():
            subprocess.run(
                [
                    *(sys.executable, "-m", "thyroid.phantom", "--output", str(root / name)),
                    *("--patients", str(size // IMAGES_PER_PATIENT), "--images-per-patient", str(IMAGES_PER_PATIENT)),
                ],
                check=True,
            )
        measured = {
            name: ingest_and_crop(root / name / "scans", root / name / "rois.csv", root / "work") for name in sets
        }
        measured["tenth on one core"] = ingest_and_crop(
            root / "tenth" / "scans", root / "tenth" / "rois.csv", root / "work", one_core=True
        )
    for name, steps in measured.items():
        for step, m in zip(("ingest", "crop"), steps, strict=True):
            print(f"{step:<7}{name:<18}{m.seconds:>8.1f} s {m.cores:>5.2f} cores busy {m.megabytes:>7.0f} MB at most")

    def ratio(above: str, below: str, what: str, step: int) -> float:
        times: float = round(getattr(measured[above][step], what) / getattr(measured[below][step], what), 2)
        return times

    return {
        "ingest_memory_all_vs_tenth": ratio("all", "tenth", "megabytes", 0),
        "crop_memory_all_vs_tenth": ratio("all", "tenth", "megabytes", 1),
        "ingest_one_core_vs_all_cores": ratio("tenth on one core", "tenth", "seconds", 0),
        "crop_one_core_vs_all_cores": ratio("tenth on one core", "tenth", "seconds", 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--scans", type=int, default=20_000, help="ingested and cropped")
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows and perceptual hashes without files")
    parser.add_argument("--night", type=int, default=50_000, help="scans that the stores of a night know")
    parser.add_argument("--sharded", type=int, default=40_000, help="scans of eight shards")
    parser.add_argument("--delay", type=float, default=0.02, help="seconds until a bucket's answer arrives")
    chosen = parser.parse_args()
    ratios = ingest_and_crop_of(chosen.scans)
    measured = {"rows": rows(chosen.rows), "near-duplicates": near_duplicates(chosen.rows)}
    measured |= {"night": night(chosen.night, chosen.delay), "shards": shards(chosen.sharded)}
    for name, figures in measured.items():
        print(f"{name}: {json.dumps(figures, indent=2)}", flush=True)
    ratios |= {
        "duplicates_million_vs_all_pairs": measured["near-duplicates"]["duplicates_million_vs_all_pairs"],
        "night_in_bucket_vs_folder": min(measured["night"].values()),
        "shards_8_vs_1": measured["shards"]["shards_8_vs_1"],
        "rows_memory_mb": max(run["memory_mb"] for run in measured["rows"].values()),
    }
    print(json.dumps({"bench": "scale", "ratios": {name: round(ratio, 2) for name, ratio in ratios.items()}}))


if __name__ == "__main__":
    main()
