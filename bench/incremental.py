"""Cost of a run without new scans, and of one with 100, against the first run over all scans; parallel downloads.

The baselines, in the same run, are the first ingest and crop of all scans (in a store of its own), and a download of
one object after the other with google-cloud-storage. The emulator answers after a delay, as a bucket does over a
network.

    python bench/incremental.py [--scans 50000] [--objects 600] [--delay 0.02]
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import cv2
import numpy as np

from thyroid import storage
from thyroid.imaging import images
from thyroid.ingest.listing import SETTLED_SECONDS

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.support import gcs

IMAGES_PER_PATIENT = 4
SMALL = (160, 120)
"""Width and height of a scan in pixels."""
NEW = 100


def write(task: tuple[Path, int, tuple[int, int]]) -> tuple[str, int, int, int, int]:
    """Write one scan and return its row of rois.csv.

    The scan is smooth speckle with a darker nodule, and it differs for every number.
    """
    folder, number, (width, height) = task
    dice = np.random.default_rng(number)
    frame = cv2.resize(dice.integers(60, 230, (30, 40), dtype=np.uint8), (width, height), interpolation=cv2.INTER_CUBIC)
    x, y = (int(place) for place in dice.integers(10, (width - 60, height - 60)))
    frame[y : y + 40, x : x + 40] //= 2
    patient = number // IMAGES_PER_PATIENT
    name = f"{'BM'[patient % 3 == 0]}_{patient:05d}-{number % IMAGES_PER_PATIENT:04d}-1.0.jpg"
    (folder / name).write_bytes(images.encode(np.repeat(frame[..., None], 3, axis=2)))
    return name, x, y, 40, 40


def generate(root: Path, numbers: range, size: tuple[int, int] = SMALL) -> None:
    (root / "scans").mkdir(exist_ok=True)
    with ProcessPoolExecutor() as pool:
        rows = list(pool.map(write, [(root / "scans", number, size) for number in numbers], chunksize=256))
    new = not (root / "rois.csv").exists()
    with (root / "rois.csv").open("a", newline="") as file:
        csv.writer(file).writerows([*([("filename", "x", "y", "width", "height")] if new else []), *rows])


def a_run(root: Path, store: str = "") -> float:
    """Return the seconds of ingest and crop, start-up included; the run ends after ingest if nothing has changed."""
    started = time.monotonic()
    for step in (
        ("ingest", "--scans", root / "scans", "--rois", root / "rois.csv", "--output", root / "data"),
        ("crop", "--data", root / "data", "--output", root / "set"),
    ):
        name, *options = map(str, step)
        command = [sys.executable, "-m", f"thyroid.{name}", *options, "--store", store or str(root / "store")]
        lap = time.monotonic()
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        said = [line for line in done.stdout.splitlines() if " now, " in line or "data version" in line]
        print(f"  {name}: {time.monotonic() - lap:.1f} s; {said[-1] if said else ''}", flush=True)
        if "nothing has changed" in done.stdout:
            break
    return time.monotonic() - started


def runs(number: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        generate(root, range(number))
        seconds = {}
        for name in ("first", "unchanged", "100_new"):
            if name == "100_new":
                generate(root, range(number, number + NEW))
            time.sleep(2 * SETTLED_SECONDS)
            print(f"{name}, {number:,} scans", flush=True)
            seconds[name] = a_run(root)
    return seconds


def downloads(number: int, delay: float) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as temporary, gcs.emulator() as direct, gcs.delayed(direct, delay) as address:
        os.environ["STORAGE_EMULATOR_HOST"] = address
        from google.cloud import storage as google

        root = Path(temporary)
        generate(root, range(number))
        google.Client(project="bench").create_bucket("thyroid-bench")
        bucket = storage.bucket_at("gs://thyroid-bench/scans")
        bucket.put(root / "scans", "night")
        entries = bucket.entries()
        (root / "one-by-one").mkdir()
        started = time.monotonic()
        for blob in google.Client(project="bench").list_blobs("thyroid-bench"):
            blob.download_to_filename(root / "one-by-one" / blob.name.rsplit("/", 1)[-1])
        seconds = {"one by one": time.monotonic() - started}
        started = time.monotonic()
        wanted = [(entry, root / "side-by-side" / entry.name.rsplit("/", 1)[-1]) for entry in bucket.entries()]
        assert all(file is not None for _, file in bucket.download(wanted))
        seconds["side by side"] = time.monotonic() - started
        for _, file in wanted:
            assert file.read_bytes() == (root / "one-by-one" / file.name).read_bytes()
        assert len(entries) == number
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--scans", type=int, default=50_000)
    parser.add_argument("--objects", type=int, default=600)
    parser.add_argument("--delay", type=float, default=0.02, help="seconds until the emulator's answer arrives")
    chosen = parser.parse_args()
    fetched = downloads(chosen.objects, chosen.delay)
    seconds = runs(chosen.scans)
    for name, took in {**fetched, **seconds}.items():
        print(f"{name:<14}{took:>8.1f} s")
    ratios = {
        "first_vs_unchanged": round(seconds["first"] / seconds["unchanged"], 2),
        "first_vs_100_new": round(seconds["first"] / seconds["100_new"], 2),
        "parallel_vs_serial": round(fetched["one by one"] / fetched["side by side"], 2),
    }
    print(json.dumps({"bench": "incremental", "ratios": ratios}))


if __name__ == "__main__":
    main()
