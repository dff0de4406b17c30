"""Figures with their uncertainty. Patients, not images, are the independent units: intervals resample patients."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import accuracy_score

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


def auroc(
    positive: ArrayLike,
    score: ArrayLike,
    patient: ArrayLike,
    draws: int = DRAWS,
    seed: int = 0,
    fold: ArrayLike | None = None,
) -> Interval:
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
        fold: of each image in a cross-validation [n]. Scores of different folds' models are not on one scale, so only
            pairs within a fold count (the pooled form of LeDell et al. 2015, 10.1214/15-EJS1035).

    Raises:
        ValueError: only one class, or a score that is not finite.
    """
    return _interval([score], positive, patient, draws, seed, fold)


def auroc_difference(
    positive: ArrayLike,
    score: ArrayLike,
    other: ArrayLike,
    patient: ArrayLike,
    draws: int = DRAWS,
    seed: int = 0,
    fold: ArrayLike | None = None,
) -> Interval:
    """AUROC of `score` less that of `other` on the same images, both in the same draws; else as `auroc`."""
    return _interval([score, other], positive, patient, draws, seed, fold)


def _interval(
    scores: list[ArrayLike],
    positive: ArrayLike,
    patient: ArrayLike,
    draws: int,
    seed: int,
    fold: ArrayLike | None,
) -> Interval:
    """AUROC of the first of `scores`, less that of the second if there is one."""
    truth, patients = np.asarray(positive, bool), np.asarray(patient)
    columns = [np.asarray(score, float) for score in scores]
    folds = np.zeros(len(truth), int) if fold is None else np.asarray(fold)
    if truth.all() or not truth.any():
        raise ValueError("AUROC needs both classes")
    if not all(np.isfinite(column).all() for column in columns):
        raise ValueError("a score is not a finite number")

    def areas(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        first, *second = (_weighted_auroc(truth, column, weights, folds) for column in columns)
        return first - second[0] if second else first

    rng = np.random.default_rng(seed)
    block = max(1, _BLOCK_CELLS // len(truth))
    value = float(areas(np.ones((1, len(truth))))[0])
    drawn = np.concatenate(
        [areas(patient_draws(patients, min(block, draws - start), rng)) for start in range(0, draws, block)]
    )
    drawn = drawn[np.isfinite(drawn)]
    if not len(drawn):
        return Interval(value, None, None)
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(value, float(low), float(high))


def patient_draws(patient: NDArray[np.generic], draws: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """How often each image is in each bootstrap draw of patients: float64 [draws, n]."""
    _, code = np.unique(patient, return_inverse=True)
    count = int(code.max()) + 1
    return rng.multinomial(count, np.full(count, 1 / count), size=draws)[:, code].astype(float)


def _weighted_auroc(
    truth: NDArray[np.bool_], score: NDArray[np.float64], weights: NDArray[np.float64], fold: NDArray[np.int64]
) -> NDArray[np.float64]:
    """AUROC per row of `weights` over the pairs within a fold; NaN where a draw has no such pair."""
    ordered, pairs = np.zeros(len(weights)), np.zeros(len(weights))
    for one in np.unique(fold):
        mine = fold == one
        _, rank = np.unique(score[mine], return_inverse=True)
        starts = np.flatnonzero(np.diff(np.sort(rank), prepend=-1))
        order = np.argsort(rank, kind="stable")
        here, malignant = weights[:, mine], truth[mine]
        positive = np.add.reduceat(np.where(malignant, here, 0)[:, order], starts, axis=1)
        negative = np.add.reduceat(np.where(malignant, 0, here)[:, order], starts, axis=1)
        below = np.cumsum(negative, axis=1) - negative / 2
        ordered += (positive * below).sum(axis=1)
        pairs += positive.sum(axis=1) * negative.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return ordered / pairs


def accuracy(positive: ArrayLike, score: ArrayLike) -> float:
    """Share of images whose more probable class is the true one. Never show it without `majority`."""
    return float(accuracy_score(np.asarray(positive, bool), np.asarray(score, float) > 0.5))


def majority(positive: ArrayLike) -> float:
    """Accuracy of always answering the more frequent class: what accuracy has to beat to mean anything."""
    share = float(np.mean(np.asarray(positive, bool)))
    return max(share, 1 - share)
