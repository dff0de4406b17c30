"""A logistic regression on features that never saw a label, scored out of fold: the yardstick of several audits."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import SplineTransformer, StandardScaler

from thyroid.data.filenames import CLASSES, POSITIVE

STRENGTH = 0.01  # inverse L2 penalty of the head: there are many features and only a few hundred images


def out_of_fold(
    features: NDArray[np.floating], label: NDArray[Any], fold: NDArray[np.int64], *, splines: bool
) -> NDArray[np.float64] | None:
    """Score every image with a logistic regression that was fitted without its fold.

    Args:
        features: Features [n, k].
        label: Side of every image, "B" or "M" [n].
        fold: Fold of every image [n].
        splines: Whether the regression sees cubic splines of the features.

    Returns:
        Scores float64 [n]; None if a fold, or all other folds together, lack a class.
    """
    score = np.empty(len(label))
    for number in np.unique(fold):
        held_out = fold == number
        if len(set(label[held_out])) < 2 or len(set(label[~held_out])) < 2:
            return None
        bend = [SplineTransformer(n_knots=4, degree=3, knots="quantile", extrapolation="constant")] if splines else []
        head = make_pipeline(
            StandardScaler(),
            *bend,
            LogisticRegression(C=1.0 if splines else STRENGTH, class_weight="balanced", max_iter=1000),
        )
        head.fit(features[~held_out], label[~held_out] == CLASSES[POSITIVE])
        score[held_out] = head.decision_function(features[held_out])
    return score


def folds_by_image(label: NDArray[Any], count: int, seed: int) -> NDArray[np.int64]:
    """Deal images into folds without regard to their patients, as a careless split does: int64 [n]."""
    dealer = StratifiedKFold(count, shuffle=True, random_state=seed)
    fold = np.empty(len(label), np.int64)
    for number, (_, held_out) in enumerate(dealer.split(label, label)):
        fold[held_out] = number
    return fold
