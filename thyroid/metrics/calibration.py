"""Calibration: how far probabilities are from the observed shares of malignant images."""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.optimize import minimize
from scipy.special import expit, logit
from scipy.stats import rankdata
from scipy.stats import t as student

from thyroid.interval import LEVEL, Interval
from thyroid.metrics.intervals import FEW, Array, Draws, at_least, clopper_pearson, count_patients, interval

BINS = 10
"""Number of equally wide bins of probability in the reliability diagram and the expected calibration error, and the
largest number of equally full ones in `reliability`."""

_TINY = 1e-7  # float32 probabilities may be 0 or 1
_NOWHERE = 100.0  # in log-odds: probabilities that are all 0 or 1 fix neither intercept nor slope


def brier_draws(draws: Draws, positive: ArrayLike, probability: ArrayLike, patient: ArrayLike) -> Array:
    """Return the Brier score of the sample and of every draw [1 + draws] (Brier 1950).

    It is the mean squared difference of probability and truth. 0 is perfect; prevalence x (1 - prevalence) is
    ignorance.

    Args:
        draws: Draws that cover at least the patients of these images.
        positive: bool or 0/1 [n], True for malignant.
        probability: Probability of malignant [n].
        patient: Patient number [n].
    """
    truth, score = np.asarray(positive, float), np.asarray(probability, float)
    error, count = draws.totals(np.stack([(score - truth) ** 2, np.ones(len(truth))], axis=1), patient).T
    brier: Array = error / count
    return brier


def ece_draws(draws: Draws, positive: ArrayLike, probability: ArrayLike, patient: ArrayLike) -> Array:
    """Return the expected calibration error on the sample and on every draw [1 + draws].

    It is how far the probability of malignant is from the observed share of malignant, averaged over images in `BINS`
    bins of equal width (Naeini et al. 2015). Small sets overstate it: even perfect probabilities do not score 0.

    Args:
        draws: Draws that cover at least the patients of these images.
        positive: bool or 0/1 [n], True for malignant.
        probability: Probability of malignant [n].
        patient: Patient number [n].
    """
    truth, score = np.asarray(positive, float), np.asarray(probability, float)
    place = np.minimum((score * BINS).astype(int), BINS - 1)
    gap = np.zeros((len(score), BINS))
    gap[np.arange(len(score)), place] = score - truth
    ece: Array = np.abs(draws.totals(gap, patient)).sum(axis=1) / draws.totals(np.ones(len(score)), patient)
    return ece


def ece_if_calibrated(probability: ArrayLike, patient: ArrayLike, draws: int = 1000, seed: int = 0) -> float:
    """Return the mean expected calibration error of as many images whose probabilities are perfectly calibrated.

    Consistency resampling (Broecker & Smith 2007, 10.1175/WAF993.1): truths are drawn from the probabilities, with one
    random number per patient, since a patient's images are of the same kind.

    Args:
        probability: Probability of malignant [n].
        patient: Patient number [n].
        draws: Number of resamplings.
        seed: Seed of the resamplings.
    """
    score = np.asarray(probability, float)
    code = np.unique(np.asarray(patient), return_inverse=True)[1]
    place = np.minimum((score * BINS).astype(int), BINS - 1)
    drawn = np.random.default_rng(seed).random((draws, code.max() + 1))[:, code] < score
    gap = (score - drawn) @ np.eye(BINS)[place]
    return float(np.abs(gap).sum(axis=1).mean() / len(score))


def observed_to_expected(draws: Draws, positive: ArrayLike, probability: ArrayLike, patient: ArrayLike) -> Interval:
    """Return the share of malignant images divided by their mean probability, with its interval.

    1 is perfect, and above 1 the probabilities are too low. Where a class has fewer than `FEW` patients, the interval
    is at least as wide as that of Clopper and Pearson for the observed share, with as many trials as patients.

    Args:
        draws: Draws that cover at least the patients of these images.
        positive: bool or 0/1 [n], True for malignant.
        probability: Probability of malignant [n].
        patient: Patient number [n].
    """
    truth, score = np.asarray(positive, bool), np.asarray(probability, float)
    observed, expected = draws.totals(np.stack([truth, score], axis=1), patient).T
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio: Array = observed / expected
    patients = len(np.unique(np.asarray(patient)))
    if patients < 2:
        return Interval(float(ratio[0]), None, None)
    bounds = clopper_pearson(round(float(truth.mean()) * patients), patients)
    low, high = (bound / float(score.mean()) for bound in bounds)
    found = interval(ratio, (low, high))
    few = min(count_patients(truth, patient), count_patients(~truth, patient)) < FEW
    return at_least(found, (low, high)) if few else found


def calibration_in_the_large(positive: ArrayLike, probability: ArrayLike, patient: ArrayLike) -> Interval:
    """Return the intercept of a logistic regression of the truth with the logit of the probability as offset.

    0 is perfect, and above 0 the probabilities are too low (Cox 1958, 10.1093/biomet/45.3-4.562; Van Calster et al.
    2019, 10.1186/s12916-019-1466-7). The interval is Wald's with t quantiles; `_regression` says of which variance.

    Args:
        positive: bool or 0/1 [n], True for malignant.
        probability: Probability of malignant [n].
        patient: Patient number [n].

    Raises:
        ValueError: There is only one class.
    """
    truth, odds = _checked(positive, probability)
    return _regression(truth, np.ones((len(truth), 1)), odds, patient)


def calibration_slope(positive: ArrayLike, probability: ArrayLike, patient: ArrayLike) -> Interval:
    """Return the slope of a logistic regression of the truth on the logit of the probability.

    1 is perfect, and below 1 the probabilities are too extreme. Sources and interval are those of
    `calibration_in_the_large`. Where one probability separates the classes without an error, the likelihood has no
    maximum: the slope is then that of Platt's targets, n + 1 of n + 2 (Platt 1999), without bounds. Where all
    probabilities are the same, nothing can be said of a slope: it is 0, without bounds.

    Args:
        positive: bool or 0/1 [n], True for malignant.
        probability: Probability of malignant [n].
        patient: Patient number [n].

    Raises:
        ValueError: There is only one class.
    """
    truth, odds = _checked(positive, probability)
    if np.ptp(odds) < 1e-9:
        return Interval(0.0, None, None)
    design = np.stack([odds, np.ones(len(odds))], axis=1)
    malignant, benign = odds[truth == 1], odds[truth == 0]
    if malignant.min() >= benign.max() or benign.min() >= malignant.max():
        smoothed = np.where(truth == 1, (len(malignant) + 1) / (len(malignant) + 2), 1 / (len(benign) + 2))
        return Interval(float(_fitted(smoothed, design, np.zeros(len(odds)))[0]), None, None)
    return _regression(truth, design, np.zeros(len(odds)), patient)


def _checked(positive: ArrayLike, probability: ArrayLike) -> tuple[Array, Array]:
    """Return the truth as 0 or 1 [n], and the logits of the probabilities [n]."""
    truth = np.asarray(positive, bool)
    if truth.all() or not truth.any():
        raise ValueError("calibration needs both classes")
    odds: Array = logit(np.clip(np.asarray(probability, float), _TINY, 1 - _TINY))
    return truth.astype(float), odds


def _regression(truth: Array, design: Array, offset: Array, patient: ArrayLike) -> Interval:
    """Return the first coefficient of a logistic regression, with its interval.

    The variance is summed over patients (Liang & Zeger 1986, 10.1093/biomet/73.1.13), since a bootstrap of few patients
    draws samples that a logistic curve cannot be fitted to. With few patients that variance is too small (Cameron &
    Miller 2015, 10.3368/jhr.50.2.317): the variance of independent images is its least, and the quantiles are those of
    t with one degree of freedom less than patients. Bounds farther away than `_NOWHERE` are none.
    """
    coefficients = _fitted(truth, design, offset)
    value, code = float(coefficients[0]), np.unique(np.asarray(patient), return_inverse=True)[1]
    images, patients = len(truth), int(code.max()) + 1
    if patients < 2:
        return Interval(value, None, None)
    chance = expit(design @ coefficients + offset)
    independent = np.linalg.pinv((design * (chance * (1 - chance))[:, None]).T @ design)
    scores = np.zeros((patients, design.shape[1]))
    np.add.at(scores, code, design * (truth - chance)[:, None])
    small = patients / (patients - 1) * (images - 1) / (images - design.shape[1])
    clustered = small * independent @ scores.T @ scores @ independent
    error = math.sqrt(max(independent[0, 0], clustered[0, 0]))
    reach = float(student.ppf((1 + LEVEL) / 2, patients - 1)) * error
    return Interval(value, value - reach, value + reach) if reach < _NOWHERE else Interval(value, None, None)


def _fitted(truth: Array, design: Array, offset: Array) -> Array:
    """Return the coefficients of a logistic regression [k].

    Iterated weighted least squares overflow where probabilities are 0 or 1.
    """

    def loss(coefficients: Array) -> tuple[float, Array]:
        odds = design @ coefficients + offset
        gradient: Array = design.T @ (expit(odds) - truth)
        return float((np.logaddexp(0, odds) - truth * odds).mean()), gradient / len(truth)

    found: Array = minimize(loss, np.zeros(design.shape[1]), jac=True, method="BFGS", options={"gtol": 1e-9}).x
    return found


@dataclass(frozen=True)
class ReliabilityBin:
    """Images with similar probabilities.

    Attributes:
        predicted: Mean probability of malignant.
        observed: Share of malignant images, with its exact interval, which has as many trials as patients.
        images: Number of images.
        patients: Number of patients.
    """

    predicted: float
    observed: Interval
    images: int
    patients: int


def reliability(positive: ArrayLike, probability: ArrayLike, patient: ArrayLike) -> list[ReliabilityBin]:
    """Return the points of a reliability diagram in bins with about as many images each, lowest probability first.

    There are at most `BINS` of them and so many that `FEW` patients come to a bin on average, but two at least. Equal
    probabilities are in one bin. The intervals are those of Clopper & Pearson 1934.

    Args:
        positive: bool or 0/1 [n], True for malignant.
        probability: Probability of malignant [n].
        patient: Patient number [n].
    """
    table = pd.DataFrame({"truth": np.asarray(positive, bool), "score": probability, "patient": np.asarray(patient)})
    count = int(np.clip(table["patient"].nunique() // FEW, 2, BINS))
    place = ((rankdata(table["score"]) - 0.5) / len(table) * count).astype(int)
    bins = []
    for _, part in table.groupby(place):
        share, patients = float(part["truth"].mean()), int(part["patient"].nunique())
        observed = Interval(share, *clopper_pearson(round(share * patients), patients))
        bins.append(ReliabilityBin(float(part["score"].mean()), observed, len(part), patients))
    return bins
