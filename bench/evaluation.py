"""Patient-clustered bootstrap of the AUROC against a plain loop over scikit-learn's roc_auc_score.

python bench/evaluation.py
"""

import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score

from thyroid import metrics

IMAGES, MALIGNANT, PATIENTS = 2237, 406, 900  # the deck's cropped test set; its number of patients is not known
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
    print(f"{IMAGES} images of {PATIENTS} patients, medians of {ROUNDS} rounds side by side")
    print(f"scikit-learn loop  {statistics.median(theirs):>10,.0f} draws a second")
    print(f"thyroid.metrics    {statistics.median(ours):>10,.0f} draws a second")
    ratio = round(statistics.median(ratios), 1)
    print(json.dumps({"bench": "evaluation", "ratios": {"bootstrap_vs_sklearn_loop": ratio}}))


if __name__ == "__main__":
    main()
