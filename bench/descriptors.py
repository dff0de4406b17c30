"""Descriptors: which sonographic features a model tells, on phantoms whose features are known, and on real scans.

    python bench/descriptors.py --phantoms 600 [--features] [--weights DIR]
    python bench/descriptors.py --scans DIR --rois rois.csv --descriptors labels.csv [--weights DIR]

VGG16 is trained on nodule crops and evaluated with labels of descriptors, as `make run` does it. The table is Markdown,
as docs/results.md has it. Of phantoms, the command fails if the lower bound of an AUROC on test patients is not above
`GOAL`: with fewer than 600 patients, rare features have too few test patients for that.

With --last, the findings are fitted on the last features of the network instead of the frozen ones. The figures of
development patients are then too good: these features have memorised the classes of the training patients.

`lowest`: the smallest lower bound of the AUROC on test patients, of all findings that were fitted.
"""

import argparse
import contextlib
import json
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

import numpy as np
from numpy.typing import NDArray
from training import WEIGHTS

from thyroid import crop
from thyroid.crop import CropOptions
from thyroid.evaluate import evaluate
from thyroid.evaluate.descriptors import words
from thyroid.evaluate.options import EvaluateOptions
from thyroid.imaging import phantom
from thyroid.ingest import ingest
from thyroid.ingest.options import IngestOptions
from thyroid.model.network import Network
from thyroid.model.novelty.novelty import PICTURE
from thyroid.records.evaluation import EvaluationRecord
from thyroid.records.model import DescriptorsRecord
from thyroid.train import train
from thyroid.train.options import TrainOptions

GOAL = 0.8
FEW = 20
"""Patients with a value among the test patients below which no interval can be narrow."""


def evaluated(scans: Path, rois: Path, labels: str, folder: Path, given: argparse.Namespace) -> EvaluationRecord:
    """Train a model on crops of the scans, and evaluate it with labels of descriptors."""
    started = time.monotonic()
    ingest.ingest(IngestOptions(scans, rois=rois), folder / "ingested")
    crop.crop(folder / "ingested", folder / "data", CropOptions(["cropped"]))
    options = TrainOptions(weights=given.weights, image_size=given.size, epochs=given.epochs)
    train.train(folder / "data", folder / "VGG16", "VGG16", "cropped", options)
    trained = time.monotonic()
    last = mock.patch.object(Network, "features", _last) if given.last else contextlib.nullcontext()
    with last:
        wanted = EvaluateOptions(descriptors=labels)
        found = evaluate.evaluate(folder / "data", [folder / "VGG16"], folder / "evaluated", wanted).record
    print(f"trained in {trained - started:.0f} s, evaluated in {time.monotonic() - trained:.0f} s", flush=True)
    return found


def _last(network: Network, pixels: NDArray[np.uint8], doing: str = "images") -> NDArray[np.float64]:
    return network.pooled(pixels, doing)[:, len(PICTURE) :].astype(np.float64)


def table(found: DescriptorsRecord) -> str:
    """Return what was measured as Markdown."""
    rows = [words.COLUMNS, ["---"] * len(words.COLUMNS), *words.rows(found)]
    lines = [f"| {' | '.join(cells)} |" for cells in rows]
    remarks = [*words.lead(found), *words.kappas(found), *words.not_audited(found), *words.withheld(found)]
    return "\n".join([*lines, "", *(f"- {text}" for text in [*remarks, *found.notes])])


def lowest(found: DescriptorsRecord) -> float:
    """Return the smallest lower bound of the AUROC on test patients; 0 if a finding has none."""
    fitted = [one for one in found.findings if one.threshold is not None]
    bounds = [0.0 if one.test is None or one.test.auroc is None else one.test.auroc.low or 0.0 for one in fitted]
    for one, bound in zip(fitted, bounds, strict=True):
        if bound <= GOAL and one.test is not None and one.test.positive_patients < FEW:
            print(f"{words.name(one.descriptor, one.value)}: only {one.test.positive_patients} test patients with it")
    return min(bounds, default=0.0)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--phantoms", type=int, default=600, help="number of patients, unless --scans is given")
    parser.add_argument("--features", action="store_true", help="draw rarer features, too")
    parser.add_argument("--scans", type=Path, help="folder of real scans")
    parser.add_argument("--rois", type=Path)
    parser.add_argument("--descriptors", help="CSV of the labels, as DESCRIPTORS of make run")
    parser.add_argument("--weights", default=str(WEIGHTS) if WEIGHTS.is_dir() else "none")
    parser.add_argument("--size", type=int, default=128, help="side of the images in pixels")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--last", action="store_true", help="fit the last features of the network")
    given = parser.parse_args()
    if given.scans is not None and (given.rois is None or given.descriptors is None):
        parser.error("--scans needs --rois and --descriptors")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        scans, rois, labels = given.scans, given.rois, given.descriptors
        if scans is None:
            rois = phantom.generate(folder / "drawn", given.phantoms, features=given.features)
            scans, labels = folder / "drawn" / "scans", str(folder / "drawn" / "descriptors.csv")
        result = evaluated(scans, rois, labels, folder, given)
    found = result.descriptors
    if found is None:
        raise SystemExit(f"no descriptors: {result.descriptors_skipped}")
    print(table(found))
    least = lowest(found)
    print(json.dumps({"bench": "descriptors", "lowest": round(least, 3)}))
    sys.exit(given.scans is None and least <= GOAL)


if __name__ == "__main__":
    main()
