"""Fits the findings on the network's frozen features, cross-fitted by patient."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from thyroid.evaluate.audits.head import STRENGTH
from thyroid.model import operating_point

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Features:
    """Frozen features of the labelled development images.

    Attributes:
        exact: Those of the images as they are, float32 [n, d].
        disturbed: Those of disturbed crops, float32 [m, d]. They are learnt from and never measured.
        place: Place of the image of each disturbed crop in `exact` [m].
        fold: Fold of each image [n].
        blanked: Those of the surroundings alone, float32 [n, d], NaN for images without a known nodule. None where most
            have none.
    """

    exact: NDArray[np.float32]
    disturbed: NDArray[np.float32]
    place: NDArray[np.intp]
    fold: NDArray[np.int64]
    blanked: NDArray[np.float32] | None


@dataclass(frozen=True, eq=False)
class Fitted:
    """A finding as a calibrated logistic regression.

    Attributes:
        weight: Weights of the features [d].
        bias: Its bias.
        probability: Probability of each development image by a regression without its fold [n]; NaN where the other
            folds lack a value.
        blanked: The same of its surroundings alone [n], NaN where they are not known.
    """

    weight: Array
    bias: float
    probability: Array
    blanked: Array


def finding(features: Features, truth: Array) -> Fitted | None:
    """Fit a finding with an L2 penalty, cross-fit it by fold, and calibrate it.

    The calibration is Platt's: slope and offset of the logit that fit the out-of-fold answers best (Platt 1999,
    "Probabilistic outputs for support vector machines").

    Args:
        features: Features of the images.
        truth: Whether each image has the value: 1 or 0, NaN if it is not known [n].

    Returns:
        The finding; None if no fold could be scored with both values.
    """
    logit, blanked = np.full(len(truth), np.nan), np.full(len(truth), np.nan)
    for number in np.unique(features.fold):
        held = features.fold == number
        fitted = _regression(features, truth, ~held)
        if fitted is None:
            continue
        weight, bias = fitted
        logit[held] = features.exact[held] @ weight + bias
        if features.blanked is not None:
            blanked[held] = features.blanked[held] @ weight + bias
    known = np.isfinite(truth) & np.isfinite(logit)
    whole = _regression(features, truth, np.ones(len(truth), bool))
    if whole is None or len(np.unique(truth[known])) < 2:
        return None
    raw = expit(logit[known])
    temperature, offsets = operating_point.fit_scaling(np.stack([1 - raw, raw], axis=1), truth[known].astype(int))
    slope, offset = 1 / temperature, offsets[1]
    weight, bias = whole
    return Fitted(slope * weight, slope * bias + offset, expit(slope * logit + offset), expit(slope * blanked + offset))


def _regression(features: Features, truth: Array, chosen: NDArray[np.bool_]) -> tuple[Array, float] | None:
    """Fit a regression to the chosen images and their disturbed crops.

    Returns:
        Weights and bias for features that are not scaled; None if a value is missing.
    """
    known = chosen & np.isfinite(truth)
    more = known[features.place]
    answers = np.concatenate([truth[known], truth[features.place][more]]) == 1
    if answers.all() or not answers.any():
        return None
    rows = np.concatenate([features.exact[known], features.disturbed[more]])
    mean = rows.mean(axis=0, dtype=np.float64)
    scale = np.maximum(rows.std(axis=0, dtype=np.float64), 1e-6)
    regression = LogisticRegression(C=STRENGTH, class_weight="balanced", max_iter=1000)
    regression.fit((rows - mean) / scale, answers)
    weight: Array = regression.coef_[0] / scale
    return weight, float(regression.intercept_[0] - weight @ mean)
