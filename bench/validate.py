"""What an external validation costs beside its networks, and how long the pooling of 1,000 sites takes.

    python bench/validate.py [--weights DIR] [--patients 250]

`engine_share`: seconds of the networks alone over those of the whole validation of two phantoms a patient from another
scanner, with given and with automatic boxes (VGG16 at 224 pixels). Both run in this process. The networks alone get as
many pictures as the validation gave them.
`pool_1000_sites_seconds_vs_budget`: ten seconds over those in which the signed files of 1,000 simulated sites are
checked and pooled.
"""

import argparse
import json
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import expit
from training import WEIGHTS

from thyroid import crop
from thyroid.crop import CropOptions
from thyroid.data.classes import BINARY
from thyroid.evaluate import evaluate
from thyroid.evaluate.options import EvaluateOptions
from thyroid.evaluate.performance import SUBGROUP
from thyroid.evaluate.predictions import at_point
from thyroid.imaging import phantom
from thyroid.ingest import ingest
from thyroid.ingest.options import IngestOptions
from thyroid.locate.locate import locate
from thyroid.locate.options import LocateOptions
from thyroid.model import engine
from thyroid.model.engine import OpenVINOEngine
from thyroid.model.operating_point import OperatingPoint
from thyroid.records.validation import ValidationRecord
from thyroid.registry import register
from thyroid.registry.registry import Registry
from thyroid.train import train
from thyroid.train.options import TrainOptions
from thyroid.validate.endpoint import Endpoint
from thyroid.validate.options import ValidateOptions
from thyroid.validate.share import pool, share, signature
from thyroid.validate.validate import validate

SIZE = 224
TRAINING_PATIENTS = 40
"""Patients of the model, which is to be quickly made and not to be good. The locator needs 20 for its training."""
SITES, FEWEST, SPREAD = 1000, 150, 200
"""Number of simulated sites, patients of the smallest one, and how many more the largest has, less one.

Small sites of equal size can have equal counts by chance, which the pooling takes for a copy and refuses.
"""
POOL_SECONDS = 10
_BATCH = 32


def registry(weights: str, folder: Path) -> Path:
    """Write a registry with a VGG16 of full size and a locator."""
    phantom.generate(folder / "phantoms", patients=TRAINING_PATIENTS, images_per_patient=1)
    scans, rois = folder / "phantoms" / "scans", folder / "phantoms" / "rois.csv"
    ingested, data, located = (folder / name for name in ("ingested", "data", "located"))
    ingest.ingest(IngestOptions(scans, rois=rois), ingested)
    crop.crop(ingested, data, CropOptions(["cropped"]))
    locate(data, ingested, located, LocateOptions(weights=weights, work=folder / "work"))
    options = TrainOptions(weights=weights, image_size=SIZE, recipe="frozen")
    train.train(data, folder / "VGG16", "VGG16", "cropped", options)
    evaluate.evaluate(data, [folder / "VGG16"], folder / "evaluation", EvaluateOptions(locate=located))
    register.register(folder / "evaluation", folder / "registry", folder / "summary.json")
    return folder / "registry"


@contextmanager
def counted() -> Iterator[Counter[str]]:
    """Count the pictures that the classifier and the locator get within the block.

    Both may take pictures of one size, but the locator answers with a map where the classifier has a vector.
    """
    seen: Counter[str] = Counter()
    answer, predict = OpenVINOEngine.answer, OpenVINOEngine.predict

    def count(first: Any, pictures: int) -> None:
        seen["classifier" if first.ndim == 1 else "locator"] += pictures

    async def counting_answer(self: OpenVINOEngine, pixels: Any) -> engine.Answer:
        found = await answer(self, pixels)
        count(found[0], 1)
        return found

    def counting_predict(self: OpenVINOEngine, pixels: Any) -> engine.Answer:
        found = predict(self, pixels)
        count(found[0][0], len(pixels))
        return found

    OpenVINOEngine.answer, OpenVINOEngine.predict = counting_answer, counting_predict  # type: ignore[method-assign]
    try:
        yield seen
    finally:
        OpenVINOEngine.answer, OpenVINOEngine.predict = answer, predict  # type: ignore[method-assign]


def alone(one: Endpoint, seen: Counter[str]) -> dict[str, float]:
    """Return the seconds that each network needs for as many pictures as `counted` saw."""
    engines = {"classifier": (one._model.engine_, one.artefact.record.image_size)}
    if one._model.locator is not None:
        engines["locator"] = (one._model.locator._engine, one._model.locator.locator.record.image_size)
    seconds = {}
    for name, (network, side) in engines.items():
        batch = np.random.default_rng(0).integers(0, 255, (_BATCH, side, side, 3), dtype=np.uint8)
        network.predict(batch[:1])  # the first picture of a job compiles kernels
        began = time.perf_counter()
        for at in range(0, seen[name], _BATCH):
            network.predict(batch[: seen[name] - at])
        seconds[name] = time.perf_counter() - began
    return seconds


def spent() -> float:
    """Return the processor seconds of this process and of those that it has started and that have ended."""
    return sum(os.times()[:4])


def engine_share(weights: str, patients: int, folder: Path) -> tuple[float, ValidationRecord]:
    """Return the share of a validation's seconds that its networks alone need, and the validation."""
    options = ValidateOptions(
        registry=registry(weights, folder),
        scans=folder / "site" / "scans",
        rois=folder / "site" / "rois.csv",
        site="another hospital",
        by="bench",
    )
    phantom.generate(folder / "site", patients=patients, images_per_patient=2, seed=1, scanner="convex")
    began, before = time.perf_counter(), spent()
    with counted() as seen:
        done = validate(options, folder / "output")
    whole, all_spent = time.perf_counter() - began, spent() - before
    artefact = Registry(options.registry).find(str(done.record.model.version))
    with Endpoint(artefact, done.record.model.released, done.record.model.form) as one:
        before = spent()
        networks = alone(one, seen)
        networks_spent = spent() - before
    images = ", ".join(f"{len(table)} {kind}" for kind, table in done.tables.items())
    stages = ", ".join(f"{name} {seconds:.1f}" for name, seconds in done.record.seconds.items())
    parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in networks.items())
    print(f"{done.record.scans.scans} scans ({images}; pictures {dict(seen)}), {done.record.model.form}")
    print(f"validation {whole:.1f} s ({stages}); networks alone {parts} s")
    print(f"processor seconds: validation {all_spent:.1f}, networks alone {networks_spent:.1f}", flush=True)
    return sum(networks.values()) / whole, done.record


def simulated(patients: int, point: OperatingPoint, seed: int) -> pd.DataFrame:
    """Return predictions of one image a patient, with a malignant share of .4 and an AUROC of about .85."""
    rng = np.random.default_rng(seed)
    malignant = rng.random(patients) < 0.4
    probability = expit(rng.normal(1.5 * malignant - 0.75))
    label = np.array(BINARY.names, object)[malignant.astype(int)]
    table = pd.DataFrame({"path": [str(one) for one in range(patients)], "class": label, "label": label})
    table = table.assign(patient=range(patients), group=range(patients))
    table[BINARY.columns] = np.stack([1 - probability, probability], axis=1)
    return at_point(table, point, BINARY)


def site_files(count: int, record: ValidationRecord, folder: Path) -> tuple[list[Path], Path]:
    """Write the signed files of simulated sites, and the folder of their public keys.

    Args:
        count: Number of sites.
        record: A validation of a model with two classes, of which all but the predictions are taken.
        folder: Folder to write to.
    """
    keys = folder / "keys"
    keys.mkdir(parents=True)
    point = OperatingPoint(1.0, (0.0, 0.0), record.model.threshold, (0.5, 0.5))
    files = []
    for number in range(count):
        name, key = f"site {number}", folder / f"{number}.pem"
        table = simulated(FEWEST + number % SPREAD, point, seed=number)
        scanner = np.where(table["patient"] % 2, "640 x 480", "1024 x 768")
        groups = pd.DataFrame({f"{SUBGROUP}scanner": scanner}, table["path"])
        files.append(folder / f"{number}.json")
        share.write(files[-1], key, record.model_copy(update={"site": name}), table, groups=groups, point=point)
        shutil.move(f"{key}{signature.PUBLIC}", keys / signature.file_name(name))
    return files, keys


def pool_seconds(count: int, record: ValidationRecord, folder: Path) -> float:
    """Return the seconds in which the files of so many sites are checked and pooled."""
    files, keys = site_files(count, record, folder)
    began = time.perf_counter()
    pool.pool(files, keys, folder / "pooled")
    return time.perf_counter() - began


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default=str(WEIGHTS) if WEIGHTS.is_dir() else "none")
    parser.add_argument("--patients", type=int, default=250)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        measured, record = engine_share(given.weights, given.patients, Path(name) / "validation")
        seconds = pool_seconds(SITES, record, Path(name) / "pool")
    print(f"{SITES} sites are pooled in {seconds:.1f} s. Research use only.")
    ratios = {
        "engine_share": round(measured, 3),
        "pool_1000_sites_seconds_vs_budget": round(POOL_SECONDS / seconds, 2),
    }
    print(json.dumps({"bench": "validate", "ratios": ratios}))


if __name__ == "__main__":
    main()
