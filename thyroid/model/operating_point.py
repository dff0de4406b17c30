"""Fits the operating point: temperature and bias, threshold and abstention band.

It is locked on the validation set before the test set is read.
"""

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
from thyroid.interval import LEVEL
from thyroid.records.performance import OperatingPointFields

_TINY = 1e-7  # float32 probabilities may be 0 or 1
_TEMPERATURES = (0.05, 20.0)
_BIAS = 10.0


@dataclass(frozen=True)
class OperatingPoint:
    """Turns a network's output into a decision. Its values are part of model.json.

    Attributes:
        temperature: Temperature that scales all probabilities outside of training. Above 1 it makes them less certain.
        bias: Bias of each class, in the order of the classes, added to the logarithm of its probability; see `scale`.
        threshold: An image, or a patient's mean, is called malignant if its probability of malignant is at least this.
        thresholds: Probability of each class from which an image counts as that class against all others.
        band: Probabilities from the first value up to, but not including, the second get no decision. None for no band.
    """

    temperature: float
    bias: tuple[float, ...]
    threshold: float
    thresholds: tuple[float, ...]
    band: tuple[float, float] | None = None

    def scale(self, probability: ArrayLike) -> NDArray[np.float64]:
        """Scale a network's own probabilities [n, classes] by this temperature and bias."""
        return scale(probability, self.temperature, self.bias)

    def decide(self, probability: ArrayLike) -> NDArray[np.str_]:
        """Return "benign", "malignant" or "abstain" for each of the scaled probabilities of malignant [n]."""
        return decide(probability, self.threshold, self.band)

    def call(self, probability: ArrayLike, classes: Classes) -> NDArray[np.intp]:
        """Return the class that each image is called.

        It is the most probable class of the side, benign or malignant, that the threshold decides, so that class and
        decision agree.

        Args:
            probability: Scaled probabilities [n, classes].
            classes: Classes of the model.

        Returns:
            Index of the class [n].
        """
        values = np.asarray(probability, float)
        malignant = classes.malignant(values) >= self.threshold
        on_side = np.where(np.asarray(classes.positive) == malignant[:, None], values, -1)
        called: NDArray[np.intp] = on_side.argmax(axis=1)
        return called

    @classmethod
    def from_record(cls, record: OperatingPointFields) -> "OperatingPoint":
        """Return the operating point of a model.json."""
        band = (record.band[0], record.band[1]) if record.band else None
        return cls(record.temperature, tuple(record.bias), record.threshold, tuple(record.thresholds), band)

    def to_dict(self) -> dict[str, Any]:
        """Return the values as JSON. `band` is left out if there is none."""
        known = {key: value for key, value in asdict(self).items() if value is not None}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in known.items()}


def decide(probability: ArrayLike, threshold: float, band: tuple[float, float] | None) -> NDArray[np.str_]:
    """Return the decisions as `OperatingPoint.decide`, for a threshold and a band."""
    values = np.asarray(probability, float)
    decision = np.where(values >= threshold, "malignant", "benign").astype("<U9")
    if band is not None:
        decision[(values >= band[0]) & (values < band[1])] = "abstain"
    return decision


def scale(probability: ArrayLike, temperature: float, bias: Sequence[float]) -> NDArray[np.float64]:
    """Scale probabilities by a temperature and add a bias for each class to their logarithms.

    This is temperature scaling (Guo et al. 2017, arXiv 1706.04599) with the bias correction of Alexandari et al. 2020
    (arXiv 1901.06852). Class weights and a short training shift all probabilities to one side, which a temperature
    alone cannot correct. With two classes the order of the images does not change.

    Args:
        probability: [n, classes].
        temperature: Above 0; above 1 makes probabilities less certain.
        bias: [classes].

    Returns:
        Probabilities [n, classes].
    """
    log = np.log(np.clip(np.asarray(probability, float), _TINY, 1))
    scaled: NDArray[np.float64] = softmax(log / temperature + np.asarray(bias), axis=1)
    return scaled


def fit_scaling(probability: ArrayLike, truth: ArrayLike) -> tuple[float, tuple[float, ...]]:
    """Fit the temperature and the biases that minimise the cross-entropy to Platt's targets.

    If the model happens to classify a few images without a mistake, the fit would tend to a temperature of 0 and to
    probabilities of 0 and 1. A class seen n times therefore counts as seen n + 1 times in n + 2 (Platt 1999,
    "Probabilistic outputs for support vector machines").

    Args:
        probability: Unscaled probabilities [n, classes].
        truth: Index of the true class [n].

    Returns:
        The temperature and the bias of each class, which is 0 for the first.
    """
    from scipy.optimize import minimize  # not imported by a server, which starts faster without it

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


def lock_threshold(positive: ArrayLike, score: ArrayLike, sensitivity: float) -> float:
    """Return the highest threshold that still catches the share `sensitivity` of malignant images.

    The threshold lies halfway between the last image that must be caught and the next lower one. Rounding differences
    of another engine then do not move that image across it.

    Args:
        positive: bool [n], True for malignant.
        score: Probability of malignant [n].
        sensitivity: Above 0 and at most 1.
    """
    truth, scores = np.asarray(positive, bool), np.asarray(score, float)
    caught = np.sort(scores[truth])[::-1]
    last = caught[math.ceil(sensitivity * len(caught) - 1e-9) - 1]
    lower = scores[scores < last]
    return float((last + lower.max()) / 2) if len(lower) else float(last)


def lock_band(score: ArrayLike, threshold: float, abstain: float) -> tuple[float, float] | None:
    """Return the band around the threshold that holds the share `abstain` of the images.

    Its two sides are equally wide in log-odds.

    Args:
        score: Probability of malignant [n].
        threshold: Centre of the band.
        abstain: Share of images to leave undecided, at least 0 and below 1.

    Returns:
        The lower and the upper probability, or None if `abstain` is 0.
    """
    if not abstain:
        return None
    distance = doubt(score, threshold)
    reach = float(np.quantile(distance, abstain))
    centre = float(logit(np.clip(threshold, _TINY, 1 - _TINY)))
    return float(expit(centre - reach)), float(expit(centre + reach))


def doubt(score: ArrayLike, threshold: float) -> NDArray[np.float64]:
    """Return the distance of probabilities from the threshold in log-odds. A small one means an uncertain decision."""
    odds = logit(np.clip(np.asarray(score, float), _TINY, 1 - _TINY))
    distance: NDArray[np.float64] = np.abs(odds - logit(np.clip(threshold, _TINY, 1 - _TINY)))
    return distance


def lock(validation: pd.DataFrame, classes: Classes, sensitivity: float, abstain: float) -> OperatingPoint:
    """Fit temperature and bias, then thresholds and band, to one model's validation predictions.

    Args:
        validation: Rows with class, label and the unscaled probabilities of `classes`.
        classes: Classes of the model.
        sensitivity: Sensitivity that the threshold must reach, above 0 and at most 1.
        abstain: Share of images to leave undecided, at least 0 and below 1.
    """
    probability, truth = validation[classes.columns].to_numpy(), classes.index(validation["class"])
    temperature, bias = fit_scaling(probability, truth)
    scaled = scale(probability, temperature, bias)
    score = classes.malignant(scaled)
    threshold = lock_threshold(validation["label"] == CLASSES[POSITIVE], score, sensitivity)
    thresholds = tuple(lock_threshold(truth == place, column, sensitivity) for place, column in enumerate(scaled.T))
    return OperatingPoint(temperature, bias, threshold, thresholds, lock_band(score, threshold, abstain))


def risk_coverage(
    positive: ArrayLike, score: ArrayLike, threshold: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the selective-risk curve of El-Yaniv & Wiener 2010.

    Images are decided in order, those with the most certain decision first.

    Args:
        positive: bool [n], True for malignant.
        score: Probability of malignant [n].
        threshold: Probability from which an image is called malignant.

    Returns:
        Coverage (share of images that are decided) and risk (share of wrong decisions among them), float64 [n] each.
    """
    truth, scores = np.asarray(positive, bool), np.asarray(score, float)
    order = np.argsort(-doubt(scores, threshold), kind="stable")
    wrong = ((scores >= threshold) != truth)[order]
    count = np.arange(1, len(order) + 1)
    return count / len(order), np.cumsum(wrong) / count


def patients_needed(sensitivity: float) -> int | None:
    """Return how many malignant patients must all be caught for the exact lower bound to reach `sensitivity`.

    Returns None for a sensitivity of 1, which no number of patients can show.
    """
    # Clopper and Pearson's lower bound for n of n is alpha / 2 to the power 1 / n
    return None if sensitivity >= 1 else max(1, math.ceil(math.log((1 - LEVEL) / 2) / math.log(sensitivity)))


def describe_patients_needed(sensitivity: float) -> str:
    """Describe the result of `patients_needed` in words."""
    needed = patients_needed(sensitivity)
    if needed is None:
        return f"no number of patients shows a sensitivity of {sensitivity:.0%}"
    return f"a lower bound of {sensitivity:.2f} requires {needed} patients without a miss"
