"""Metrics of decisions: which class a model calls, at a threshold or by the largest probability."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

from thyroid.interval import Interval
from thyroid.metrics.intervals import Array, Draws, at_least, clopper_pearson, count_patients, interval


def at_threshold(
    draws: Draws, positive: ArrayLike, called: ArrayLike, patient: ArrayLike, prevalence: float
) -> dict[str, Interval]:
    """Return sensitivity, specificity, PPV and NPV of calling images malignant, and PPV and NPV at a stated prevalence.

    Where no draw differs, the bounds are those of Clopper and Pearson with as many trials as patients.

    Args:
        draws: Draws that cover at least the patients of these images.
        positive: bool or 0/1 [n], True for malignant.
        called: bool [n], True where the model calls malignant.
        patient: Patient number [n].
        prevalence: Share of malignant cases in the population that the model will meet, 0 to 1. A test set often has a
            larger share than a clinic. By Bayes' rule, PPV = se pi / (se pi + (1 - sp)(1 - pi)).

    Returns:
        Intervals by name: sensitivity, specificity, ppv, npv, ppv_at_prevalence and npv_at_prevalence. A metric without
        a denominator is left out (nobody was called malignant: no PPV), as are PPV and NPV where there is one class
        only, which makes them 0 or 1 by itself.
    """
    truth, call = np.asarray(positive, bool), np.asarray(called, bool)
    cells = {"tp": truth & call, "fn": truth & ~call, "tn": ~truth & ~call, "fp": ~truth & call}
    tp, fn, tn, fp = draws.totals(np.stack(list(cells.values()), axis=1), patient).T
    with np.errstate(invalid="ignore", divide="ignore"):
        sensitivity, specificity = tp / (tp + fn), tn / (tn + fp)
        shares = {
            "sensitivity": (sensitivity, truth),
            "specificity": (specificity, ~truth),
            "ppv": (tp / (tp + fp), call),
            "npv": (tn / (tn + fn), ~call),
        }
        hit, alarm = sensitivity * prevalence, (1 - specificity) * (1 - prevalence)
        spared, missed = specificity * (1 - prevalence), (1 - sensitivity) * prevalence
        weighted = {"ppv_at_prevalence": hit / (hit + alarm), "npv_at_prevalence": spared / (spared + missed)}
    if truth.all() or not truth.any():
        del shares["ppv"], shares["npv"]
    found = {
        name: interval(drawn, _exact(float(drawn[0]), count_patients(among, patient)))
        for name, (drawn, among) in shares.items()
        if np.isfinite(drawn[0])
    }
    found |= {name: interval(drawn) for name, drawn in weighted.items() if np.isfinite(drawn[0])}
    # without variation between draws, Bayes' rule gives no variation either: put the exact bounds through it
    for name in weighted:
        if name in found and any(np.ptp(part[np.isfinite(part)]) == 0 for part in (sensitivity, specificity)):
            bounds = (_bayes(name, found, bound, prevalence) for bound in ("low", "high"))
            found[name] = at_least(found[name], (next(bounds), next(bounds)))
    return found


def _bayes(name: str, found: Mapping[str, Interval], bound: str, prevalence: float) -> float:
    """Return PPV or NPV at a prevalence from the same bound of sensitivity and of specificity."""
    hit, spared = (float(getattr(found[share], bound)) for share in ("sensitivity", "specificity"))
    right, wrong = hit * prevalence, (1 - spared) * (1 - prevalence)
    if name.startswith("npv"):
        right, wrong = spared * (1 - prevalence), (1 - hit) * prevalence
    return right / (right + wrong) if right + wrong else 0.0


def _exact(share: float, patients: int) -> tuple[float, float]:
    return clopper_pearson(round(share * patients), patients)


def kappa_draws(
    draws: Draws, truth: ArrayLike, called: ArrayLike, patient: ArrayLike, *, classes: int, ordered: bool
) -> Array:
    """Return Cohen's kappa of called and true class (Cohen 1960) on the sample and every draw [1 + draws].

    Grades have quadratic weights (Cohen 1968). 0 is the agreement of chance, 1 is perfect agreement. With two classes
    the weights make no difference.

    Args:
        draws: Draws that cover at least the patients of these images.
        truth: Index of the true class [n].
        called: Index of the called class [n].
        patient: Patient number [n].
        classes: Number of classes.
        ordered: Whether the classes are grades.
    """
    true, answer = np.asarray(truth), np.asarray(called)
    cells = np.eye(classes * classes)[true * classes + answer]
    table = draws.totals(cells, patient).reshape(-1, classes, classes)
    table = table / table.sum(axis=(1, 2), keepdims=True)
    places = np.arange(classes)
    distance = np.abs(places[:, None] - places)
    weight = distance**2 if ordered else (distance > 0).astype(float)
    by_chance = table.sum(axis=2)[:, :, None] * table.sum(axis=1)[:, None, :]
    with np.errstate(invalid="ignore", divide="ignore"):
        kappa: Array = 1 - (table * weight).sum(axis=(1, 2)) / (by_chance * weight).sum(axis=(1, 2))
        return kappa


def at_prevalence(score: Array, seen: float, prevalence: float) -> Array:
    """Adjust probabilities of malignant to a prevalence other than that of the images they were calibrated on.

    By Bayes' rule the odds change by the ratio of the prior odds (Saerens et al. 2002, 10.1162/089976602753284446).

    Args:
        score: Probabilities of malignant [n].
        seen: Share of malignant images where the probabilities are calibrated, 0 to 1.
        prevalence: Share of malignant nodules where the model would be used, between 0 and 1.

    Returns:
        Adjusted probabilities, float64 [n].
    """
    seen = min(max(seen, 1e-6), 1 - 1e-6)
    ratio = prevalence / (1 - prevalence) * (1 - seen) / seen
    adjusted: Array = score * ratio / (score * ratio + 1 - score)
    return adjusted


def net_benefit(positive: ArrayLike, score: ArrayLike, thresholds: Array, prevalence: float) -> Array:
    """Return the net benefit of acting where the probability reaches a threshold [k].

    The net benefit is TP - FP x t/(1 - t), as shares (Vickers & Elkin 2006). It is weighted to a prevalence (Vickers
    2006, 10.1177/0272989X06295361): sensitivity x pi - (1 - specificity)(1 - pi) x odds.

    Args:
        positive: bool or 0/1 [n], True for malignant.
        score: Probability of malignant [n].
        thresholds: Probabilities at which one would act [k], below 1.
        prevalence: Share of malignant cases in the population that the model will meet, 0 to 1.
    """
    truth = np.asarray(positive, bool)
    called = np.asarray(score, float)[None] >= thresholds[:, None]
    hits, alarms = called[:, truth].mean(axis=1), called[:, ~truth].mean(axis=1)
    benefit: Array = hits * prevalence - alarms * (1 - prevalence) * thresholds / (1 - thresholds)
    return benefit


def accuracy(truth: ArrayLike, probability: ArrayLike) -> float:
    """Return the share of images whose most probable class is the true one. Never show it without `majority`.

    Args:
        truth: Index of the true class [n].
        probability: Probabilities [n, classes].
    """
    from sklearn.metrics import accuracy_score  # not imported by a server, which has no scikit-learn

    return float(accuracy_score(np.asarray(truth), np.asarray(probability).argmax(axis=1)))


def majority(truth: ArrayLike) -> float:
    """Return the accuracy of always answering the most frequent class, which any useful accuracy must beat."""
    return float(np.unique(np.asarray(truth), return_counts=True)[1].max() / np.size(truth))
