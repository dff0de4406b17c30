"""Two models on the same patients: differences of AUROC and specificity, and DeLong's test."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import norm, rankdata

from thyroid.interval import LEVEL, Interval
from thyroid.metrics.intervals import DRAWS, Array, Draws, count_patients, interval, newcombe
from thyroid.metrics.roc import auroc_draws, checked


def auroc_difference(
    positive: ArrayLike,
    score: ArrayLike,
    other: ArrayLike,
    patient: ArrayLike,
    *,
    draws: int = DRAWS,
    seed: int = 0,
    fold: ArrayLike | None = None,
) -> Interval:
    """Return the AUROC of `score` minus that of `other` on the same images and the same draws, with its interval.

    Where all draws are equal although the scores differ (if both are perfect, for example), the bounds are those of
    `newcombe` for `score` alone, minus the area of `other`.

    Args:
        positive: bool or 0/1 [n], True for malignant.
        score: Probability of malignant [n].
        other: Probability of malignant of the other model [n].
        patient: Patient number [n].
        draws: Number of bootstrap draws.
        seed: Seed of the draws.
        fold: Cross-validation fold of each image [n], as in `auroc_draws`.

    Raises:
        ValueError: There is only one class, or a score is not finite.
    """
    truth = np.asarray(positive, bool)
    resampled = Draws(patient, draws, seed)
    own, others = (auroc_draws(resampled, truth, column, patient, fold) for column in (score, other))
    if np.array_equal(rankdata(score), rankdata(other)):
        return Interval(0.0, 0.0, 0.0)
    if len(resampled.patients) < 2:
        return Interval(float(own[0] - others[0]), None, None)
    low, high = newcombe(float(own[0]), count_patients(truth, patient), count_patients(~truth, patient))
    return interval(own - others, (low - float(others[0]), high - float(others[0])))


def specificity_difference(
    positive: ArrayLike, called: ArrayLike, other: ArrayLike, patient: ArrayLike, *, draws: int = DRAWS, seed: int = 0
) -> Interval:
    """Return the specificity of `called` minus that of `other` on the same rows, with its interval.

    Both are measured in the same draws of whole patients.

    Args:
        positive: bool or 0/1 [n], True for malignant. At least one row must be benign.
        called: bool [n], True where the model calls malignant.
        other: bool [n], the same for the other model.
        patient: Patient number [n].
        draws: Number of bootstrap draws.
        seed: Seed of the draws.
    """
    benign, resampled = ~np.asarray(positive, bool), Draws(patient, draws, seed)
    spared = [benign & ~np.asarray(calls, bool) for calls in (called, other)]
    count, own, others = resampled.totals(np.stack([benign, *spared], axis=1), patient).T
    with np.errstate(invalid="ignore", divide="ignore"):
        return interval((own - others) / count)


@dataclass(frozen=True)
class Comparison:
    """Comparison of two AUROCs on the same images: difference with its interval at `LEVEL`, z and two-sided p value."""

    difference: Interval
    z: float
    p: float


def delong(positive: ArrayLike, score: ArrayLike, other: ArrayLike, patient: ArrayLike) -> Comparison:
    """Return the AUROC of `score` minus that of `other` by DeLong's test, with the covariance summed over patients.

    DeLong, DeLong & Clarke-Pearson 1988 (10.2307/2531595), computed by midranks (Sun & Xu 2014,
    10.1109/LSP.2014.2337313). Several images per patient are handled as in Obuchowski 1997 (10.2307/2533958), which
    gives the same result where every patient has one image.

    Args:
        positive: bool or 0/1 [n], True for malignant.
        score: Probability of malignant [n].
        other: Probability of malignant of the other model [n].
        patient: Patient number [n].

    Raises:
        ValueError: There is only one class, a score is not finite, a class has a single patient, or the scores differ
            but not in how they vary (if both are perfect, for example), which leaves nothing to test.
    """
    areas, covariance = auroc_covariance(positive, [score, other], patient)
    difference = float(areas[0] - areas[1])
    error = math.sqrt(max(0.0, float(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])))
    if np.array_equal(rankdata(score), rankdata(other)):
        return Comparison(Interval(0.0, 0.0, 0.0), 0.0, 1.0)
    if error < 1e-9:
        raise ValueError("DeLong's test needs scores whose areas vary between patients")
    reach = float(norm.ppf((1 + LEVEL) / 2)) * error
    z = difference / error
    return Comparison(Interval(difference, difference - reach, difference + reach), z, float(2 * norm.sf(abs(z))))


def auroc_covariance(positive: ArrayLike, scores: list[ArrayLike], patient: ArrayLike) -> tuple[Array, Array]:
    """Return the AUROCs [k] of k scores of the same images and their covariance [k, k].

    The sources are those of `delong`.

    Args:
        positive: bool or 0/1 [n], True for malignant.
        scores: k arrays of scores, each [n].
        patient: Patient number [n].

    Raises:
        ValueError: There is only one class, a score is not finite, or a class has a single patient.
    """
    columns = [checked(positive, score, patient) for score in scores]
    truth, _, patients = columns[0]
    code = np.unique(patients, return_inverse=True)[1]
    m, n = int(truth.sum()), int((~truth).sum())
    ranks = np.array([rankdata(score) for _, score, _ in columns])
    # placement of every malignant image among the benign ones, and the other way round
    above = (ranks[:, truth] - np.array([rankdata(score[truth]) for _, score, _ in columns])) / n
    below = 1 - (ranks[:, ~truth] - np.array([rankdata(score[~truth]) for _, score, _ in columns])) / m
    areas = above.mean(axis=1)
    units = len(np.unique(code[truth])), len(np.unique(code[~truth]))
    if min(units) < 2:
        raise ValueError("DeLong's test needs two patients of each class")
    size = code.max() + 1
    malignant = np.array([np.bincount(code[truth], row, size) for row in above - areas[:, None]])
    benign = np.array([np.bincount(code[~truth], row, size) for row in below - areas[:, None]])
    s10, s01 = (part @ part.T * count / (count - 1) for part, count in ((malignant, units[0]), (benign, units[1])))
    cross = malignant @ benign.T
    return areas, s10 / m**2 + s01 / n**2 + (cross + cross.T) / (m * n)
