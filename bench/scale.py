"""Ingest and crop of many scans: does memory stay flat, are the cores busy, how long does it take?

The baselines, in the same run, are a tenth of the scans (memory) and the same work on one core (speed).

    python bench/scale.py [--scans 20000]
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
from dataclasses import dataclass
from pathlib import Path

import psutil

IMAGES_PER_PATIENT = 4


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--scans", type=int, default=20_000)
    number = parser.parse_args().scans
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

    ratios = {
        "ingest_memory_all_vs_tenth": ratio("all", "tenth", "megabytes", 0),
        "crop_memory_all_vs_tenth": ratio("all", "tenth", "megabytes", 1),
        "ingest_one_core_vs_all_cores": ratio("tenth on one core", "tenth", "seconds", 0),
        "crop_one_core_vs_all_cores": ratio("tenth on one core", "tenth", "seconds", 1),
    }
    print(json.dumps({"bench": "scale", "ratios": ratios}))


if __name__ == "__main__":
    main()
