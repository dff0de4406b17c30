"""Patient-clustered bootstrap of the AUROC against a plain loop over scikit-learn's roc_auc_score, and a whole evaluation.

python bench/evaluation.py
"""

import contextlib
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from sklearn.metrics import roc_auc_score

from thyroid import backbones, crop, evaluate, explain, ingest, inputs, metrics, phantom, registry, train

IMAGES, MALIGNANT, PATIENTS = 2237, 406, 900  # the deck's cropped test set; its number of patients is not known
DEVELOPMENT = 700
LOOP_DRAWS = 200
ROUNDS = 5


def loop(truth: np.ndarray, score: np.ndarray, patient: np.ndarray, draws: int) -> None:
    """As most evaluations write it: draw patients, gather their images, score them."""
    rng = np.random.default_rng(0)
    images = [np.flatnonzero(patient == one) for one in range(PATIENTS)]
    for _ in range(draws):
        drawn = np.concatenate([images[one] for one in rng.integers(0, PATIENTS, PATIENTS)])
        roc_auc_score(truth[drawn], score[drawn])


def seconds(work: Callable, *arguments: Any) -> float:
    started = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - started


def whole_evaluation(folder: Path) -> tuple[float, float]:
    """Seconds of an evaluation of five models on `IMAGES` test images, and those within them spent in the networks."""
    patients = (IMAGES + DEVELOPMENT + 1) // 2
    phantom.generate(folder, patients=patients)
    files = sorted((folder / "scans").iterdir(), key=lambda file: file.name.split("_")[1])
    for number, file in enumerate(files):
        target = folder / "scans" / ("test" if number < IMAGES else "train") / file.name
        target.parent.mkdir(exist_ok=True)
        file.rename(target)
    ingest.ingest(folder / "scans", folder / "ingested", rois=folder / "rois.csv")
    crop.crop(folder / "ingested", folder / "data")
    models = []
    for name in backbones.BACKBONES:
        options: dict[str, Any] = {"weights": "none", "image_size": 32, "recipe": "frozen"}
        models.append(train.train(folder / "data", folder / name, name, **options).folder)
    spent = []

    def timed(function: Callable) -> Callable:
        def run(*arguments: Any, **keywords: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*arguments, **keywords)
            finally:
                spent.append(time.perf_counter() - started)

        return run

    networks = [(inputs, "predict"), (inputs, "decode"), (registry, "load_keras"), (explain, "heat_maps")]
    with contextlib.ExitStack() as stack:
        for module, name in networks:
            stack.enter_context(mock.patch.object(module, name, timed(getattr(module, name))))
        whole = seconds(evaluate.evaluate, folder / "data", models, folder / "evaluation")
    return whole, sum(spent)


def main() -> None:
    rng = np.random.default_rng(0)
    patient = np.concatenate([np.arange(PATIENTS), rng.integers(0, PATIENTS, IMAGES - PATIENTS)])
    truth = np.arange(IMAGES) < MALIGNANT
    rng.shuffle(truth)
    score = rng.normal(truth, 1)
    ratios, ours, theirs = [], [], []
    for _ in range(ROUNDS):
        theirs.append(LOOP_DRAWS / seconds(loop, truth, score, patient, LOOP_DRAWS))
        ours.append(metrics.DRAWS / seconds(metrics.auroc, truth, score, patient))
        ratios.append(ours[-1] / theirs[-1])
    with tempfile.TemporaryDirectory() as folder:
        whole, forward = whole_evaluation(Path(folder))
    print(f"{IMAGES} images of {PATIENTS} patients, medians of {ROUNDS} rounds side by side")
    print(f"scikit-learn loop  {statistics.median(theirs):>10,.0f} draws a second")
    print(f"thyroid.metrics    {statistics.median(ours):>10,.0f} draws a second")
    print(
        f"evaluation of five models on {IMAGES} images: {whole:.0f} s, {whole - forward:.0f} s of them not in the networks"
    )
    ratio = round(statistics.median(ratios), 1)
    print(json.dumps({"bench": "evaluation", "ratios": {"bootstrap_vs_sklearn_loop": ratio}}))


if __name__ == "__main__":
    main()
