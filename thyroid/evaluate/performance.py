"""How good, and how sure: the figures of predictions by image and by patient, and across domains, with intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix

from thyroid import metrics
from thyroid.data.classes import Classes
from thyroid.data.filenames import CLASSES, POSITIVE, SCORE
from thyroid.model import operating_point

RAW = "raw_M"
"""Column of the probability of malignant before temperature scaling."""

AGGREGATION = (
    "a patient's probability is the mean over the patient's images; the patient counts as malignant if any image is (of several "
    "classes as the last of its images' in their order), and is called at the same threshold as an image"
)
"""How images become patients."""


def auroc(table: pd.DataFrame, seed: int = 0) -> metrics.Interval:
    """AUROC of predictions; out-of-fold ones, which have a column fold, are compared within their fold."""
    fold = table.get("fold")
    return metrics.auroc(is_malignant(table), table[SCORE], _patient(table), seed=seed, fold=fold)


def by_patient(table: pd.DataFrame, classes: Classes) -> pd.DataFrame:
    """One row a patient: patient, class, label, probabilities scaled, that of malignant also raw; the rule is `AGGREGATION`."""
    rows = table.assign(place=classes.index(table["class"])).groupby("patient", as_index=False)
    merged = rows.agg(dict.fromkeys({*classes.columns, SCORE, RAW}, "mean") | {"place": "max"})
    merged["class"] = [classes.names[place] for place in merged.pop("place")]
    merged["label"] = merged["class"].map(classes.side)
    return merged


def of(
    table: pd.DataFrame, classes: Classes, point: operating_point.OperatingPoint, prevalence: float, seed: int = 0
) -> dict[str, Any]:
    """Every figure of one model's predictions in one domain and split.

    Args:
        table: rows with class, label, patient, the probabilities of `classes` and `filenames.SCORE` at the operating point's
            temperature, and `RAW`.
        classes: that there are.
        point: locked on other patients.
        prevalence: see `metrics.at_threshold`.
        seed: of the bootstrap, whose draws are of whole patients in both levels.

    Returns:
        As it stands in summary.json: n, patients, accuracy (at the most probable class) with majority, confusion (counts
        [true, called] of the sides at the operating point, in the order of `filenames.CLASSES`), class_confusion (likewise of the
        classes, as `OperatingPoint.call` calls them), kappa of these and macro_auroc, ece_if_calibrated, and value, low and high of auroc, auprc,
        brier, ece, ece_unscaled (before temperature scaling), sensitivity, specificity, ppv, npv, ppv_at_prevalence and
        npv_at_prevalence; patient_level holds the same by patient, and classes, by name, AUROC and operating point of every
        class against all others. What the classes do not allow is absent. With an
        abstention band, abstention holds the share that is left undecided, and the figures of the rest.
    """
    draws = metrics.Draws(table["patient"].astype(int), seed=seed)
    result = {"n": len(table), "patients": int(table["patient"].nunique())} | _level(
        table, classes, draws, point, prevalence
    )
    result["patient_level"] = _level(by_patient(table, classes), classes, draws, point, prevalence)
    result["classes"] = _against_all_others(table, classes, draws, point, prevalence)
    if point.band is not None:
        result["abstention"] = _abstention(table, draws, point, prevalence)
    return result


def _level(
    table: pd.DataFrame,
    classes: Classes,
    draws: metrics.Draws,
    point: operating_point.OperatingPoint,
    prevalence: float,
) -> dict[str, Any]:
    positive, patient, score = is_malignant(table), _patient(table), table[SCORE].to_numpy()
    truth, probability = classes.index(table["class"]), table[classes.columns].to_numpy()
    called = point.call(probability, classes)
    figures: dict[str, metrics.Interval] = {}
    if positive.any() and not positive.all():
        figures["auroc"] = metrics.auroc_interval(draws, positive, score, patient)
        figures["auprc"] = metrics.interval(metrics.auprc_draws(draws, positive, score, patient))
        figures["macro_auroc"] = metrics.macro_auroc(draws, truth, probability, patient)
    kappa = metrics.interval(metrics.kappa_draws(draws, truth, called, patient, len(classes), classes.ordered))
    if np.isfinite(kappa.value):
        figures["kappa"] = kappa
    figures["brier"] = metrics.interval(metrics.brier_draws(draws, positive, score, patient))
    figures["ece"] = metrics.interval(metrics.ece_draws(draws, positive, score, patient))
    figures["ece_unscaled"] = metrics.interval(metrics.ece_draws(draws, positive, table[RAW], patient))
    expected = metrics.ece_if_calibrated(score, patient)
    figures |= metrics.at_threshold(draws, positive, score >= point.threshold, patient, prevalence)
    return {
        **{name: asdict(figure) for name, figure in figures.items()},
        "ece_if_calibrated": expected,
        "accuracy": metrics.accuracy(truth, probability),
        "majority": metrics.majority(truth),
        "confusion": confusion(table, point).tolist(),
        "class_confusion": confusion_matrix(truth, called, labels=range(len(classes))).tolist(),
    }


def _against_all_others(
    table: pd.DataFrame,
    classes: Classes,
    draws: metrics.Draws,
    point: operating_point.OperatingPoint,
    prevalence: float,
) -> dict[str, dict[str, Any]]:
    """Class name to n, patients, threshold, and value, low and high of what telling it from all others reaches."""
    truth, patient = classes.index(table["class"]), _patient(table)
    result = {}
    for place, name in enumerate(classes.names):
        mine, score, threshold = truth == place, table[classes.columns[place]].to_numpy(), point.thresholds[place]
        at = metrics.at_threshold(draws, mine, score >= threshold, patient, prevalence)
        found: dict[str, metrics.Interval] = {
            key: at[key] for key in ("sensitivity", "specificity", "ppv", "npv") if key in at
        }
        if mine.any() and not mine.all():
            found = {"auroc": metrics.auroc_interval(draws, mine, score, patient), **found}
        counts = {"n": int(mine.sum()), "patients": len(np.unique(patient[mine])), "threshold": threshold}
        result[name] = counts | {key: asdict(figure) for key, figure in found.items()}
    return result


def _abstention(
    table: pd.DataFrame, draws: metrics.Draws, point: operating_point.OperatingPoint, prevalence: float
) -> dict[str, Any]:
    decided = table[point.decide(table[SCORE]) != "abstain"]
    undecided = point.decide(table[SCORE]) == "abstain"
    share = draws.totals(undecided, _patient(table)) / draws.totals(np.ones(len(table)), _patient(table))
    called = decided[SCORE] >= point.threshold
    at = (
        metrics.at_threshold(draws, is_malignant(decided), called, _patient(decided), prevalence)
        if len(decided)
        else {}
    )
    kept = {name: asdict(at[name]) for name in ("sensitivity", "specificity") if name in at}
    return {"share": asdict(metrics.interval(share))} | kept


def confusion(table: pd.DataFrame, point: operating_point.OperatingPoint) -> NDArray[np.int64]:
    """Counts [true, called] at the operating point, in the order of `filenames.CLASSES`."""
    called = np.where(table[SCORE] >= point.threshold, CLASSES[POSITIVE], CLASSES[1 - POSITIVE])
    return confusion_matrix(table["label"], called, labels=list(CLASSES))


def domain_matrix(
    tables: Mapping[tuple[str, str], pd.DataFrame], domains: Sequence[str], seed: int = 0
) -> dict[str, Any]:
    """Trained on one kind of image, tested on the other: all four AUROCs of a backbone, and what changing the domain costs.

    Args:
        tables: (trained on, tested on) to test predictions.
        domains: the two domains.
        seed: of the bootstrap; all cells share its draws of patients.

    Returns:
        cells: trained on, then tested on, to the AUROC. drop: of each training, its AUROC in its own domain less that in
        the other (other images of the same patients). shortfall: of each tested domain, AUROC of the model trained there
        less that of the model trained on the other (the same images).
    """
    draws = metrics.Draws(pd.concat(list(tables.values()))["patient"].astype(int), seed=seed)
    drawn = {
        cell: metrics.auroc_draws(draws, is_malignant(table), table[SCORE], _patient(table))
        for cell, table in tables.items()
    }
    cells: dict[str, dict[str, Any]] = {one: {} for one in domains}
    for (train, test), table in tables.items():
        area = metrics.auroc_interval(draws, is_malignant(table), table[SCORE], _patient(table))
        cells[train][test] = asdict(area)
    first, second = domains
    pairs = ((first, second), (second, first))
    return {
        "cells": cells,
        "drop": {own: asdict(metrics.interval(drawn[own, own] - drawn[own, other])) for own, other in pairs},
        "shortfall": {own: asdict(metrics.interval(drawn[own, own] - drawn[other, own])) for own, other in pairs},
    }


def is_malignant(table: pd.DataFrame) -> NDArray[np.bool_]:
    """Truth of every row, bool [n]."""
    return (table["label"] == CLASSES[POSITIVE]).to_numpy()


def _patient(table: pd.DataFrame) -> NDArray[np.int64]:
    return table["patient"].to_numpy(int)
