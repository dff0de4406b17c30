"""How many flipped labels are found among the suspects, against looking at scans in random order.

The labels of 5 % of the development patients are flipped. Heads on frozen features of VGG16 are trained on these labels
and predict every frame out of fold, cross-validated by patient as in `margins.py`. Suspects are found from these
predictions by confident learning (`thyroid/label/suspects.py`). This is repeated with other patients flipped; the
intervals hold over these draws. The test set is not read. The ratios are of the precision to that of a random order,
which is the share of flipped frames.

    python bench/suspects.py --scans DIR --rois rois.csv --weights DIR

DDTI's labels are a radiologist's suspicion. A flagged label that was not flipped counts as wrongly flagged, although
it may be worth a second look.
"""

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from margins import FOLDS, PARTITIONS, Crops, Frames, extractor, score, tables
from numpy.typing import NDArray
from training import DDTI, WEIGHTS, data_version

from thyroid import metrics
from thyroid.data import surroundings
from thyroid.data.version import DataVersion
from thyroid.label import suspects
from thyroid.records.settings import MARGIN

FLIPPED = 0.05
"""Share of the patients whose labels are flipped, and of the frames in the head of the ranking."""
DRAWS = 40
BLOCK = "block4"


def flip(frames: Frames, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Return which frames get the wrong label: all frames of some patients [n]."""
    patients = np.unique(frames.patient)
    chosen = rng.choice(patients, round(FLIPPED * len(patients)), replace=False)
    return np.isin(frames.patient, chosen)


def measure(crops: Crops, frames: Frames, rng: np.random.Generator) -> dict[str, float]:
    """Return the figures of one draw of flipped patients."""
    flipped = flip(frames, rng)
    wrong = replace(frames, malignant=frames.malignant ^ flipped)
    (logit,) = score([crops], [crops], BLOCK, wrong)
    malignant = 1 / (1 + np.exp(-logit))
    found = suspects.find(wrong.malignant.astype(int), np.stack([1 - malignant, malignant], axis=1))
    ranked, count = flipped[found.index], int(found["flagged"].sum())
    top = round(FLIPPED * len(ranked))
    return {
        "auroc": metrics.auroc(frames.malignant, logit, frames.patient, draws=2).value,
        "random": float(flipped.mean()),
        "flagged": count,
        "precision": float(ranked[:count].mean()) if count else 0.0,
        "recall": float(ranked[:count].sum() / flipped.sum()),
        "top_precision": float(ranked[:top].mean()),
        "top_recall": float(ranked[:top].sum() / flipped.sum()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    here = DDTI.is_dir()
    parser.add_argument("--scans", type=Path, default=DDTI / "normal" if here else None, help="default: phantoms")
    parser.add_argument("--rois", type=Path, default=DDTI / "rois.csv" if here else None)
    parser.add_argument("--weights", default=str(WEIGHTS) if WEIGHTS.is_dir() else "none")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--draws", type=int, default=DRAWS)
    arguments = parser.parse_args()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary:
        data = DataVersion.read(data_version(arguments.scans, arguments.rois, Path(temporary)))
        kinds, frames = tables(data, None)
        given = kinds["given"]
        pixels = surroundings.recropped(data, given, arguments.size, MARGIN)
        crops = Crops(extractor(arguments.weights, arguments.size)(pixels), given["number"].to_numpy())
    rng = np.random.default_rng(0)
    rows = [measure(crops, frames, rng) for _ in range(arguments.draws)]
    print(
        f"{len(frames.malignant)} frames ({(~frames.malignant).sum()} benign) of {len(set(frames.patient))} patients, "
        f"{arguments.size} px, {PARTITIONS} partitions into {FOLDS} folds, {arguments.draws} draws of flipped patients"
    )
    drawn = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    for name, values in drawn.items():
        low, high = np.quantile(values, [0.025, 0.975])
        print(f"{name:<15}{values.mean():>8.3f}   95 % of the draws {low:.3f} to {high:.3f}")
    print(f"{time.perf_counter() - began:.0f} s. Research use only.")
    chance = drawn["random"].mean()
    ratios = {
        "precision_vs_random": round(float(drawn["precision"].mean() / chance), 3),
        "top_precision_vs_random": round(float(drawn["top_precision"].mean() / chance), 3),
    }
    print(json.dumps({"bench": "suspects", "ratios": ratios}))


if __name__ == "__main__":
    main()
