"""Evaluates a trial of the first stage: dense heads on cached features, in seconds and without TensorFlow."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from thyroid.records.settings import Settings
from thyroid.sweep.plans import Plan
from thyroid.train import head


def evaluate_heads(
    plan: Plan, cache: dict[str, list[NDArray[np.float32]]], settings: Settings, report: Callable[[int, float], None]
) -> NDArray[np.float64]:
    """Return the out-of-fold probabilities of dense heads on the study's features.

    Args:
        plan: Plan of the study.
        cache: Features of each tap, one array per view; filled as needed.
        settings: Settings of the trial.
        report: Receives the number of every finished fold and the AUROC so far.

    Returns:
        Probabilities [n, classes].
    """
    labels, probability = plan.labels, np.full(plan.labels.shape, np.nan)
    if settings.tap not in cache:
        cache[settings.tap] = plan.features(settings.tap)
    views = cache[settings.tap]
    for number, train, validation, held_out in plan.folds():
        fitted = head.fit(views, labels, train, validation, settings, seed=plan.facts["seed"])
        probability[held_out] = fitted(views[0][held_out])
        report(number, float(plan.auroc(probability)[0]))
    return probability
