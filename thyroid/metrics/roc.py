"""Areas under the ROC and the precision-recall curve, for two classes and for more."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from thyroid.interval import LEVEL, Interval
from thyroid.metrics.intervals import DRAWS, FEW, Array, Draws, at_least, count_patients, interval, newcombe

_BLOCK_CELLS = 200_000  # draws x images processed at once, so that they stay in a core's cache


def auroc(
    positive: ArrayLike,
    score: ArrayLike,
    patient: ArrayLike,
    *,
    draws: int = DRAWS,
    seed: int = 0,
    fold: ArrayLike | None = None,
) -> Interval:
    """Return the area under the ROC curve with its interval; arguments and errors are those of `auroc_draws`."""
    return auroc_interval(Draws(patient, draws, seed), positive, score, patient, fold)


def auroc_interval(
    draws: Draws, positive: ArrayLike, score: ArrayLike, patient: ArrayLike, fold: ArrayLike | None = None
) -> Interval:
    """Return the `auroc` from draws that are shared with other metrics.

    Where all draws are equal, the bounds are those of `newcombe`. Where a class has fewer than `FEW` patients, the
    interval is at least as wide as that.
    """
    truth = np.asarray(positive, bool)
    drawn = auroc_draws(draws, truth, score, patient, fold)
    if len(np.unique(np.asarray(patient))) < 2:
        return Interval(float(drawn[0]), None, None)
    units = count_patients(truth, patient), count_patients(~truth, patient)
    exact = newcombe(float(drawn[0]), *units)
    found = interval(drawn, exact)
    return found if min(units) >= FEW else at_least(found, exact)


def auroc_draws(
    draws: Draws, positive: ArrayLike, score: ArrayLike, patient: ArrayLike, fold: ArrayLike | None = None
) -> Array:
    """Return the area under the ROC curve of the sample and of every draw [1 + draws].

    The area is the share of (malignant, benign) pairs in the right order, where ties count half (Bamber 1975). It is
    NaN where a draw has only one class.

    Args:
        draws: Draws that cover at least the patients of these images.
        positive: bool or 0/1 [n], True for malignant.
        score: Probability of malignant [n].
        patient: Patient number [n].
        fold: Cross-validation fold of each image [n]. Scores of different folds' models are not on one scale, so only
            pairs within a fold count (the pooled form of LeDell et al. 2015, 10.1214/15-EJS1035).

    Raises:
        ValueError: There is only one class, or a score is not finite.
    """
    truth, scores, patients = checked(positive, score, patient)
    folds = np.zeros(len(truth), int) if fold is None else np.asarray(fold)
    ordered, pairs = np.zeros(len(draws.counts)), np.zeros(len(draws.counts))
    for number in np.unique(folds):
        in_fold = folds == number
        malignant, benign = in_fold & truth, in_fold & ~truth
        hits, alarms = draws.places(patients[malignant]), draws.places(patients[benign])
        # benign images are sorted by score, too, so that gathered values are contiguous
        order, falling = np.argsort(scores[malignant]), np.argsort(scores[benign])
        hits, alarms = hits[order], alarms[falling]
        below = [np.searchsorted(scores[malignant][order], scores[benign][falling], side) for side in ("left", "right")]
        tied = (below[0] != below[1]).any()
        for rows in _blocks(len(draws.counts), int(in_fold.sum())):
            above = np.zeros((len(draws.counts[rows]), len(hits) + 1))
            weight = draws.counts[rows][:, hits]
            np.cumsum(weight[:, ::-1], axis=1, out=above[:, 1:])
            above = above[:, ::-1]  # weight of malignant images from the i-th score on
            other = draws.counts[rows][:, alarms]
            ordered[rows] += np.einsum("ij,ij->i", other, above[:, below[1]])
            if tied:
                ordered[rows] += np.einsum("ij,ij->i", other, above[:, below[0]] - above[:, below[1]]) / 2
            pairs[rows] += above[:, 0] * other.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return ordered / pairs


def macro_auroc(
    draws: Draws, truth: ArrayLike, probability: ArrayLike, patient: ArrayLike, fold: ArrayLike | None = None
) -> Interval:
    """Return the mean AUROC of `macro_auroc_draws` with its interval; arguments and errors are the same.

    Where the bootstrap could not be wide enough, the interval is at least as wide as the mean of the classes'
    `newcombe`.
    """
    areas = _class_areas(draws, truth, probability, patient, fold)
    drawn, true = _mean_area(areas), np.asarray(truth)
    if len(np.unique(np.asarray(patient))) < 2:
        return Interval(float(drawn[0]), None, None)
    exact, fewest = [], math.inf
    for place, area in areas.items():
        units = count_patients(true == place, patient), count_patients(true != place, patient)
        exact.append(newcombe(float(area[0]), *units))
        fewest = min(fewest, *units)
    bounds = tuple(float(bound) for bound in np.mean(exact, axis=0))
    found = interval(drawn, (bounds[0], bounds[1]))
    return found if fewest >= FEW else at_least(found, (bounds[0], bounds[1]))


def macro_auroc_draws(
    draws: Draws, truth: ArrayLike, probability: ArrayLike, patient: ArrayLike, fold: ArrayLike | None = None
) -> Array:
    """Return the mean over the classes of the AUROC of each class against all others [1 + draws].

    The values are those of the sample and of every draw. This is the plain mean of Provost & Domingos 2000, whereas
    Hand & Till 2001 weigh pairs. A class that is missing from the sample or from a draw does not count. With two
    classes, both areas are the same: the AUROC.

    Args:
        draws: Draws that cover at least the patients of these images.
        truth: Index of the true class [n].
        probability: Probabilities [n, classes].
        patient: Patient number [n].
        fold: Cross-validation fold of each image [n], as in `auroc_draws`.

    Raises:
        ValueError: There is only one class, or a probability is not finite.
    """
    return _mean_area(_class_areas(draws, truth, probability, patient, fold))


def _class_areas(
    draws: Draws, truth: ArrayLike, probability: ArrayLike, patient: ArrayLike, fold: ArrayLike | None
) -> dict[int, Array]:
    """Return the AUROC of each present class against all others, by index of the class, each [1 + draws].

    With two classes, only the area of the second one is returned.
    """
    true, chance = np.asarray(truth), np.asarray(probability)
    present = np.unique(true).tolist()
    if len(present) < 2:
        raise ValueError("AUROC needs both classes")
    opposed = [1] if chance.shape[1] == 2 else present
    return {place: auroc_draws(draws, true == place, chance[:, place], patient, fold) for place in opposed}


def _mean_area(areas: dict[int, Array]) -> Array:
    every = list(areas.values())
    counted = np.isfinite(every)
    with np.errstate(invalid="ignore"):
        mean: Array = np.where(counted, every, 0).sum(axis=0) / counted.sum(axis=0)
        return mean


def auprc_draws(draws: Draws, positive: ArrayLike, score: ArrayLike, patient: ArrayLike) -> Array:
    """Return the average precision of the sample and of every draw [1 + draws].

    This is the area under the precision-recall curve as scikit-learn defines it. Arguments and errors are those of
    `auroc_draws`.
    """
    truth, scores, patients = checked(positive, score, patient)
    area = np.empty(len(draws.counts))
    with np.errstate(invalid="ignore", divide="ignore"):
        for rows, tp, fp in _steps(draws, truth, scores, patients):
            precision = np.nan_to_num(tp / (tp + fp))
            area[rows] = (np.diff(tp, axis=1, prepend=0) * precision).sum(axis=1) / tp[:, -1]
    return area


def roc_band(
    draws: Draws, positive: ArrayLike, score: ArrayLike, patient: ArrayLike, grid: Array
) -> tuple[Array, Array]:
    """Return the pointwise interval of the true positive rate at the false positive rates of `grid`.

    Args:
        draws: Draws that cover at least the patients of these images.
        positive: bool or 0/1 [n], True for malignant.
        score: Probability of malignant [n].
        patient: Patient number [n].
        grid: False positive rates [k].

    Returns:
        Low and high bounds, each [k].

    Raises:
        ValueError: There is only one class, or a score is not finite.
    """
    truth, scores, patients = checked(positive, score, patient)
    curves = []
    for _, tp, fp in _steps(draws, truth, scores, patients):
        for hits, alarms in zip(tp, fp, strict=True):
            if hits[-1] and alarms[-1]:
                x, y = np.append(0, alarms / alarms[-1]), np.append(0, hits / hits[-1])
                curves.append(np.interp(grid, x, y))
    low, high = np.quantile(np.array(curves), [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return low, high


def checked(positive: ArrayLike, score: ArrayLike, patient: ArrayLike) -> tuple[NDArray[np.bool_], Array, NDArray[Any]]:
    """Return the truth as bool [n], the scores as float64 [n] and the patients [n].

    Raises:
        ValueError: There is only one class, or a score is not finite.
    """
    truth, scores = np.asarray(positive, bool), np.asarray(score, float)
    if truth.all() or not truth.any():
        raise ValueError("AUROC needs both classes")
    if not np.isfinite(scores).all():
        raise ValueError("a score is not a finite number")
    return truth, scores, np.asarray(patient)


def _blocks(draws: int, images: int) -> Iterator[slice]:
    """Return slices of the draws that are small enough to process at once."""
    size = max(1, _BLOCK_CELLS // max(images, 1))
    return (slice(start, start + size) for start in range(0, draws, size))


def _steps(
    draws: Draws, truth: NDArray[np.bool_], score: Array, patient: NDArray[Any]
) -> Iterator[tuple[slice, Array, Array]]:
    """Yield, for blocks of draws, the malignant and benign images at or above every distinct score, highest first.

    The counts are arrays [draws of the block, distinct scores].
    """
    order = np.argsort(-score, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(score[order])), len(order) - 1)
    place, malignant = draws.places(patient)[order], truth[order].astype(float)
    for rows in _blocks(len(draws.counts), len(order)):
        weight = draws.counts[rows][:, place]
        every = np.cumsum(weight, axis=1)
        weight *= malignant
        tp = np.cumsum(weight, axis=1, out=weight)
        if len(ends) < len(order):
            every, tp = every[:, ends], tp[:, ends]
        every -= tp
        yield rows, tp, every
