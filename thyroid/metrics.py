"""Figures with their uncertainty. Patients, not images, are the independent units: intervals resample patients."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import accuracy_score, roc_auc_score

DRAWS = 2000
LEVEL = 0.95
_BLOCK_CELLS = 4_000_000  # draws x images held at once, so that memory does not grow with the test set


@dataclass(frozen=True)
class Interval:
    """A figure and its percentile bootstrap interval at `LEVEL`; low and high are None where no draw had both classes."""

    value: float
    low: float | None
    high: float | None

    @classmethod
    def of(cls, figure: Mapping[str, Any]) -> "Interval":
        """The interval of a figure as summary.json holds it: value (validation: auroc), low and high."""
        value = figure["value"] if "value" in figure else figure["auroc"]
        return cls(value, figure["low"], figure["high"])

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.value:.3f} [n/a]"
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def auroc(positive: ArrayLike, score: ArrayLike, patient: ArrayLike, draws: int = DRAWS, seed: int = 0) -> Interval:
    """Area under the ROC curve with a patient-clustered bootstrap interval.

    Whole patients are drawn with replacement (Field & Welsh 2007, "Bootstrapping clustered data"), so several images of
    one patient do not count as independent evidence. All draws are computed at once from counts: with the images sorted
    by score, a draw is a weight vector, and the area is the weighted share of (malignant, benign) pairs in order, ties
    counting half (Bamber 1975).

    Args:
        positive: bool or 0/1 [n], True for malignant.
        score: probability of malignant [n].
        patient: patient number [n].
        draws: number of bootstrap draws.
        seed: of the draws.

    Raises:
        ValueError: only one class, or a score that is not finite.
    """
    truth, scores, patients = np.asarray(positive, bool), np.asarray(score, float), np.asarray(patient)
    if truth.all() or not truth.any():
        raise ValueError("AUROC needs both classes")
    if not np.isfinite(scores).all():
        raise ValueError("a score is not a finite number")
    value = float(roc_auc_score(truth, scores))
    rng = np.random.default_rng(seed)
    block = max(1, _BLOCK_CELLS // len(truth))
    areas = np.concatenate(
        [
            _weighted_auroc(truth, scores, patient_draws(patients, min(block, draws - start), rng))
            for start in range(0, draws, block)
        ]
    )
    areas = areas[np.isfinite(areas)]
    if not len(areas):
        return Interval(value, None, None)
    low, high = np.quantile(areas, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(value, float(low), float(high))


def patient_draws(patient: NDArray[np.generic], draws: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """How often each image is in each bootstrap draw of patients: float64 [draws, n]."""
    _, code = np.unique(patient, return_inverse=True)
    count = int(code.max()) + 1
    return rng.multinomial(count, np.full(count, 1 / count), size=draws)[:, code].astype(float)


def _weighted_auroc(
    truth: NDArray[np.bool_], score: NDArray[np.float64], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """AUROC per row of `weights`; NaN where a draw has one class only."""
    _, rank = np.unique(score, return_inverse=True)
    starts = np.flatnonzero(np.diff(np.sort(rank), prepend=-1))
    order = np.argsort(rank, kind="stable")
    positive = np.add.reduceat(np.where(truth, weights, 0)[:, order], starts, axis=1)
    negative = np.add.reduceat(np.where(truth, 0, weights)[:, order], starts, axis=1)
    below = np.cumsum(negative, axis=1) - negative / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        return (positive * below).sum(axis=1) / (positive.sum(axis=1) * negative.sum(axis=1))


def accuracy(positive: ArrayLike, score: ArrayLike) -> float:
    """Share of images whose more probable class is the true one. Never show it without `majority`."""
    return float(accuracy_score(np.asarray(positive, bool), np.asarray(score, float) > 0.5))


def majority(positive: ArrayLike) -> float:
    """Accuracy of always answering the more frequent class: what accuracy has to beat to mean anything."""
    share = float(np.mean(np.asarray(positive, bool)))
    return max(share, 1 - share)
