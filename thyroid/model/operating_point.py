"""The operating point: temperature and bias, threshold and abstention band, locked on validation before the test set is read."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, logit, softmax

from thyroid.data.classes import Classes
from thyroid.data.filenames import CLASSES, POSITIVE
from thyroid.errors import InputError

SENSITIVITY = 0.95
"""Share of malignant images that the threshold must catch on validation: a missed cancer costs more than a biopsy."""
PREVALENCE = 0.10
"""Share of malignant nodules where the model would be used: 7 to 15 % of nodules (Haugen et al. 2016, 10.1089/thy.2015.0020)."""

_TINY = 1e-7  # float32 probabilities may be 0 or 1
_TEMPERATURES = (0.05, 20.0)
_BIAS = 10.0


def check(sensitivity: float, abstain: float, prevalence: float) -> None:
    """Check what a user asks for.

    Args:
        sensitivity: that the threshold must reach on validation, above 0, at most 1.
        abstain: share of images to leave undecided, 0 to below 1.
        prevalence: share of malignant nodules in use, between 0 and 1.

    Raises:
        InputError: one of them is out of range.
    """
    if not 0 < sensitivity <= 1:
        raise InputError(f"sensitivity {sensitivity}: must be above 0 and at most 1")
    if not 0 <= abstain < 1:
        raise InputError(f"abstain {abstain}: must be at least 0 and below 1")
    if not 0 < prevalence < 1:
        raise InputError(f"prevalence {prevalence}: must lie between 0 and 1")


@dataclass(frozen=True)
class OperatingPoint:
    """What turns a network's output into a decision; stands in model.json.

    Attributes:
        temperature: above 1 makes probabilities less sure. All probabilities outside of training are scaled by it.
        bias: added to the logarithm of each class's probability, in the order of the classes; see `scale`.
        threshold: probability of malignant from which on an image, or a patient's mean, is called malignant.
        thresholds: of each class, probability from which on an image counts as of that class against all others.
        band: probabilities between these two (the upper one not included) get no decision; None for none.
    """

    temperature: float
    bias: tuple[float, ...]
    threshold: float
    thresholds: tuple[float, ...]
    band: tuple[float, float] | None = None

    def scale(self, probability: ArrayLike) -> NDArray[np.float64]:
        """A network's own probabilities [n, classes] at this temperature and bias."""
        return scale(probability, self.temperature, self.bias)

    def decide(self, probability: ArrayLike) -> NDArray[np.str_]:
        """ "benign", "malignant" or "abstain" for probabilities of malignant [n]."""
        values = np.asarray(probability, float)
        decision = np.where(values >= self.threshold, "malignant", "benign").astype("<U9")
        if self.band is not None:
            decision[(values >= self.band[0]) & (values < self.band[1])] = "abstain"
        return decision

    def call(self, probability: ArrayLike, classes: Classes) -> NDArray[np.intp]:
        """Places of the classes that scaled probabilities [n, classes] are called: the most probable one of the side that the
        threshold decides, so that class and decision agree."""
        values = np.asarray(probability, float)
        malignant = classes.malignant(values) >= self.threshold
        return np.where(np.asarray(classes.positive) == malignant[:, None], values, -1).argmax(axis=1)

    def facts(self) -> dict[str, Any]:
        """As JSON; band only where there is one."""
        known = {key: value for key, value in asdict(self).items() if value is not None}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in known.items()}


def of(facts: dict[str, Any]) -> OperatingPoint:
    """The operating point of a model.json."""
    band = facts.get("band")
    return OperatingPoint(
        facts["temperature"],
        tuple(facts["bias"]),
        facts["threshold"],
        tuple(facts["thresholds"]),
        tuple(band) if band else None,
    )


def scale(probability: ArrayLike, temperature: float, bias: Sequence[float]) -> NDArray[np.float64]:
    """Probabilities [n, classes] at another temperature, and with a bias a class on their logarithms.

    Temperature scaling (Guo et al. 2017, arXiv 1706.04599) with the bias correction of Alexandari et al. 2020 (arXiv
    1901.06852): class weights and a short training shift all probabilities to one side, which no temperature mends. With two
    classes the order of images stays.
    """
    log = np.log(np.clip(np.asarray(probability, float), _TINY, 1))
    return softmax(log / temperature + np.asarray(bias), axis=1)


def fit_scaling(probability: ArrayLike, truth: ArrayLike) -> tuple[float, tuple[float, ...]]:
    """The temperature, and the bias a class (0 for the first), with the least cross-entropy to Platt's targets.

    A few images that happen to be told apart without a mistake would ask for a temperature of 0 and probabilities of 0 and
    1. So a class seen n times counts as seen n + 1 times in n + 2 (Platt 1999, "Probabilistic outputs for support vector
    machines").

    Args:
        probability: [n, classes], not yet scaled.
        truth: place of the true class [n].
    """
    from scipy.optimize import minimize  # a server does without, and starts the sooner

    column, count = np.asarray(truth), np.shape(probability)[1]
    seen = np.bincount(column, minlength=count)
    sure = ((seen + 1) / (seen + 2))[column, None]
    target = np.where(np.arange(count) == column[:, None], sure, (1 - sure) / (count - 1))

    def loss(parameters: NDArray[np.float64]) -> float:
        scaled = scale(probability, math.exp(parameters[0]), [0.0, *parameters[1:]])
        return float(-(target * np.log(np.clip(scaled, _TINY, 1))).sum(axis=1).mean())

    low, high = (math.log(bound) for bound in _TEMPERATURES)
    bounds = [(low, high)] + [(-_BIAS, _BIAS)] * (count - 1)
    found = minimize(loss, np.zeros(len(bounds)), method="L-BFGS-B", bounds=bounds).x
    return float(math.exp(found[0])), (0.0, *(float(one) for one in found[1:]))


def lock_threshold(positive: ArrayLike, score: ArrayLike, sensitivity: float = SENSITIVITY) -> float:
    """The highest threshold that still catches the share `sensitivity` of malignant images.

    It lies halfway between the last image that must be caught and the next lower one, so that rounding of another engine
    does not move that image across.

    Args:
        positive: bool [n].
        score: probability of malignant [n].
        sensitivity: above 0, at most 1.
    """
    truth, scores = np.asarray(positive, bool), np.asarray(score, float)
    caught = np.sort(scores[truth])[::-1]
    last = caught[math.ceil(sensitivity * len(caught) - 1e-9) - 1]
    lower = scores[scores < last]
    return float((last + lower.max()) / 2) if len(lower) else float(last)


def lock_band(score: ArrayLike, threshold: float, abstain: float) -> tuple[float, float] | None:
    """The band around the threshold, as wide on both sides in log-odds, that holds the share `abstain` of the images."""
    if not abstain:
        return None
    distance = doubt(score, threshold)
    reach = float(np.quantile(distance, abstain))
    centre = float(logit(np.clip(threshold, _TINY, 1 - _TINY)))
    return float(expit(centre - reach)), float(expit(centre + reach))


def doubt(score: ArrayLike, threshold: float) -> NDArray[np.float64]:
    """Distance of probabilities from the threshold in log-odds: the smaller, the less sure the decision."""
    odds = logit(np.clip(np.asarray(score, float), _TINY, 1 - _TINY))
    return np.abs(odds - logit(np.clip(threshold, _TINY, 1 - _TINY)))


def lock(validation: pd.DataFrame, classes: Classes, sensitivity: float, abstain: float) -> OperatingPoint:
    """Temperature and bias, then thresholds and band, from one model's unscaled validation predictions.

    Args:
        validation: rows with class, label and the unscaled probabilities of `classes`.
        classes: that there are.
        sensitivity: that the threshold must reach, above 0, at most 1.
        abstain: share of images to leave undecided, 0 to below 1.
    """
    probability, truth = validation[classes.columns].to_numpy(), classes.index(validation["class"])
    temperature, bias = fit_scaling(probability, truth)
    scaled = scale(probability, temperature, bias)
    score = classes.malignant(scaled)
    threshold = lock_threshold(validation["label"] == CLASSES[POSITIVE], score, sensitivity)
    thresholds = tuple(lock_threshold(truth == place, column, sensitivity) for place, column in enumerate(scaled.T))
    return OperatingPoint(temperature, bias, threshold, thresholds, lock_band(score, threshold, abstain))


def risk_coverage(positive: ArrayLike, score: ArrayLike, threshold: float) -> tuple[NDArray, NDArray]:
    """Share of images decided, and share of wrong decisions among them, as ever more doubtful ones are left undecided.

    The selective-risk curve of El-Yaniv & Wiener 2010: surest first.

    Returns:
        coverage and risk, float64 [n] each.
    """
    truth, scores = np.asarray(positive, bool), np.asarray(score, float)
    order = np.argsort(-doubt(scores, threshold), kind="stable")
    wrong = ((scores >= threshold) != truth)[order]
    count = np.arange(1, len(order) + 1)
    return count / len(order), np.cumsum(wrong) / count
