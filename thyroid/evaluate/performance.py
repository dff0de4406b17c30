"""Compute the metrics of predictions with their intervals: by image, patient, class, subgroup and domain."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix

from thyroid import metrics
from thyroid.data.classes import Classes
from thyroid.data.filenames import CLASSES, POSITIVE, SCORE
from thyroid.model import operating_point
from thyroid.records.evaluation import DomainMatrix, SubgroupRow
from thyroid.records.performance import Abstention, ClassPerformance, Level, Performance

if TYPE_CHECKING:
    from thyroid.evaluate.champion import Champion

RAW = "raw_M"
"""Column of the probability of malignant before temperature scaling."""

SMALL = 20
"""A subgroup with fewer patients of a class than this is marked as small, because its metrics are uncertain."""
SUBGROUP = "group: "
"""Prefix of the columns that hold subgroups in a table of predictions."""

AGGREGATION = (
    "a patient's probability is the mean over the patient's images; the patient counts as malignant if any image is "
    "(of several classes as the last of its images' in their order), and is called at the same threshold as an image"
)
"""How the images of a patient are aggregated, in words."""


def auroc(table: pd.DataFrame, seed: int = 0) -> metrics.Interval:
    """Compute the AUROC of predictions with its interval.

    Out-of-fold predictions, which have a column fold, are compared within their fold only.

    Args:
        table: Rows with label, patient, the probability of malignant (`filenames.SCORE`) and, optionally, fold.
        seed: Seed of the bootstrap.
    """
    fold = table.get("fold")
    return metrics.auroc(is_malignant(table), table[SCORE], _patient(table), seed=seed, fold=fold)


def by_patient(table: pd.DataFrame, classes: Classes) -> pd.DataFrame:
    """Aggregate predictions by patient, by the rule of `AGGREGATION`.

    Args:
        table: Rows with class, patient, the probabilities of `classes`, `filenames.SCORE` and `RAW`.
        classes: Classes of the data version.

    Returns:
        One row per patient: patient, class, label, the scaled probabilities, and the probability of malignant also raw.
    """
    rows = table.assign(place=classes.index(table["class"])).groupby("patient", as_index=False)
    merged = rows.agg(dict.fromkeys({*classes.columns, SCORE, RAW}, "mean") | {"place": "max"})
    merged["class"] = [classes.names[place] for place in merged.pop("place")]
    merged["label"] = merged["class"].map(classes.side)
    return merged


def of(
    table: pd.DataFrame, classes: Classes, point: operating_point.OperatingPoint, prevalence: float, seed: int = 0
) -> Performance:
    """Compute every metric of one model's predictions in one domain and split.

    Args:
        table: Rows with class, label, patient, the probabilities of `classes` and `filenames.SCORE` at the operating
            point's temperature, and `RAW`.
        classes: Classes of the data version.
        point: Operating point, locked on other patients.
        prevalence: Share of malignant nodules in use; see `metrics.at_threshold`.
        seed: Seed of the bootstrap, which draws whole patients on both levels.

    Returns:
        The metrics. Those that the classes in `table` do not allow are not set.
    """
    draws = metrics.Draws(table["patient"].astype(int), seed=seed)
    by_image = _level(table, classes, draws, point, prevalence)
    band: dict[str, Any] = {} if point.band is None else {"abstention": _abstention(table, draws, point, prevalence)}
    return Performance(
        n=len(table),
        patients=int(table["patient"].nunique()),
        patient_level=Level(**_level(by_patient(table, classes), classes, draws, point, prevalence)),
        classes=_against_all_others(table, classes, draws, point, prevalence),
        **by_image,
        **band,
    )


def _level(
    table: pd.DataFrame,
    classes: Classes,
    draws: metrics.Draws,
    point: operating_point.OperatingPoint,
    prevalence: float,
) -> dict[str, Any]:
    """Compute the fields of a `Level` that the classes in `table` allow."""
    positive, patient, score = is_malignant(table), _patient(table), table[SCORE].to_numpy()
    truth, probability = classes.index(table["class"]), table[classes.columns].to_numpy()
    called = point.call(probability, classes)
    found: dict[str, metrics.Interval] = {}
    if positive.any() and not positive.all():
        found["auroc"] = metrics.auroc_interval(draws, positive, score, patient)
        found["auprc"] = metrics.interval(metrics.auprc_draws(draws, positive, score, patient))
        found["macro_auroc"] = metrics.macro_auroc(draws, truth, probability, patient)
    kappa = metrics.interval(
        metrics.kappa_draws(draws, truth, called, patient, classes=len(classes), ordered=classes.ordered)
    )
    if np.isfinite(kappa.value) and np.ptp(truth):
        found["kappa"] = kappa
    found["brier"] = metrics.interval(metrics.brier_draws(draws, positive, score, patient))
    found["ece"] = metrics.interval(metrics.ece_draws(draws, positive, score, patient))
    found["ece_unscaled"] = metrics.interval(metrics.ece_draws(draws, positive, table[RAW], patient))
    expected = metrics.ece_if_calibrated(score, patient)
    found |= metrics.at_threshold(draws, positive, score >= point.threshold, patient, prevalence)
    return {
        **found,
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
) -> dict[str, ClassPerformance]:
    """Compute the metrics of each class against all others, by name of the class."""
    truth, patient = classes.index(table["class"]), _patient(table)
    result = {}
    for place, name in enumerate(classes.names):
        of_class, score, threshold = truth == place, table[classes.columns[place]].to_numpy(), point.thresholds[place]
        at = metrics.at_threshold(draws, of_class, score >= threshold, patient, prevalence)
        found: dict[str, metrics.Interval] = {
            key: at[key] for key in ("sensitivity", "specificity", "ppv", "npv") if key in at
        }
        if of_class.any() and not of_class.all():
            found = {"auroc": metrics.auroc_interval(draws, of_class, score, patient), **found}
        patients = len(np.unique(patient[of_class]))
        result[name] = ClassPerformance(n=int(of_class.sum()), patients=patients, threshold=threshold, **found)
    return result


def _abstention(
    table: pd.DataFrame, draws: metrics.Draws, point: operating_point.OperatingPoint, prevalence: float
) -> Abstention:
    """Compute the share of undecided images, and sensitivity and specificity of the decided ones."""
    decided = table[point.decide(table[SCORE]) != "abstain"]
    undecided = point.decide(table[SCORE]) == "abstain"
    share = draws.totals(undecided, _patient(table)) / draws.totals(np.ones(len(table)), _patient(table))
    called = decided[SCORE] >= point.threshold
    at = (
        metrics.at_threshold(draws, is_malignant(decided), called, _patient(decided), prevalence)
        if len(decided)
        else {}
    )
    return Abstention(
        share=metrics.interval(share), **{name: at[name] for name in ("sensitivity", "specificity") if name in at}
    )


def confusion(table: pd.DataFrame, point: operating_point.OperatingPoint) -> NDArray[np.int64]:
    """Count images by [true, called] side at the operating point, in the order of `filenames.CLASSES`: int64 [2, 2]."""
    called = np.where(table[SCORE] >= point.threshold, CLASSES[POSITIVE], CLASSES[1 - POSITIVE])
    counts: NDArray[np.int64] = confusion_matrix(table["label"], called, labels=list(CLASSES))
    return counts


def by_subgroup(
    table: pd.DataFrame, threshold: float, prevalence: float, seed: int = 0, champion: "Champion | None" = None
) -> list[SubgroupRow]:
    """Compute AUROC, sensitivity and specificity of every subgroup, with its counts.

    Args:
        table: Test predictions with label, patient, the probability of malignant, and columns of subgroups, whose names
            start with `SUBGROUP`.
        threshold: Threshold of the model.
        prevalence: Share of malignant nodules in use; see `metrics.at_threshold`.
        seed: Seed of the bootstrap.
        champion: The champion on the same images; None for no champion.

    Returns:
        One row per group, with the metrics that its classes allow. Where the champion could be scored, groups that are
        not small are compared with it.
    """
    rows = []
    others = None if champion is None or champion.scores is None else pd.Series(champion.scores, table.index)
    for name in [column for column in table.columns if column.startswith(SUBGROUP)]:
        for group, part in table.groupby(name):
            positive = part["label"] == CLASSES[POSITIVE]
            called = part[SCORE] >= threshold
            counts, found = _counts(part), dict[str, Any]()
            if positive.nunique() == 2:
                found["auroc"] = metrics.auroc(positive, part[SCORE], part["patient"], seed=seed)
            draws = metrics.Draws(part["patient"], seed=seed)
            at = metrics.at_threshold(draws, positive, called, part["patient"], prevalence)
            found |= {key: at[key] for key in ("sensitivity", "specificity") if key in at}
            if champion is not None and others is not None and not counts["small"]:
                found["less_champion"] = _less_champion(part, called, champion, others[part.index], seed)
            rows.append(SubgroupRow(column=name.removeprefix(SUBGROUP), group=str(group), **counts, **found))
    return rows


def _counts(part: pd.DataFrame) -> dict[str, Any]:
    """Count the images and patients of a subgroup."""
    patients = part.groupby("patient")["label"].agg(lambda labels: CLASSES[POSITIVE] in set(labels))
    malignant, benign = int(patients.sum()), int((~patients).sum())
    return {
        "images": len(part),
        "patients": len(patients),
        "malignant": malignant,
        "benign": benign,
        "small": min(malignant, benign) < SMALL,
    }


def _less_champion(
    part: pd.DataFrame, called: "pd.Series[bool]", champion: "Champion", scores: pd.Series, seed: int
) -> dict[str, metrics.Interval]:
    """Compare a subgroup's AUROC and specificity with those of the champion, whose `scores` are of the same images."""
    positive, patient = part["label"] == CLASSES[POSITIVE], part["patient"]
    by_champion = champion.calls(scores)
    return {
        "auroc": metrics.auroc_difference(positive, part[SCORE], scores, patient, seed=seed),
        "specificity": metrics.specificity_difference(positive, called, by_champion, patient, seed=seed),
    }


def domain_matrix(
    tables: Mapping[tuple[str, str], pd.DataFrame], domains: Sequence[str], seed: int = 0
) -> DomainMatrix:
    """Compute the AUROCs of a backbone by domain trained on and tested on, and the cost of changing the domain.

    Args:
        tables: Test predictions by (domain trained on, domain tested on).
        domains: The two domains trained on, on which both models are tested. They may be tested on others, too.
        seed: Seed of the bootstrap. All cells share its draws of patients.

    Returns:
        The AUROCs and their differences. A drop compares different images of the same patients; a shortfall compares
        two models on the same images.
    """
    draws = metrics.Draws(pd.concat(list(tables.values()))["patient"].astype(int), seed=seed)
    drawn = {
        cell: metrics.auroc_draws(draws, is_malignant(table), table[SCORE], _patient(table))
        for cell, table in tables.items()
    }
    cells: dict[str, dict[str, metrics.Interval]] = {domain: {} for domain in domains}
    for (train, test), table in tables.items():
        cells[train][test] = metrics.auroc_interval(draws, is_malignant(table), table[SCORE], _patient(table))
    first, second = domains
    pairs = ((first, second), (second, first))
    return DomainMatrix(
        cells=cells,
        drop={own: metrics.interval(drawn[own, own] - drawn[own, other]) for own, other in pairs},
        shortfall={own: metrics.interval(drawn[own, own] - drawn[other, own]) for own, other in pairs},
    )


def is_malignant(table: pd.DataFrame) -> NDArray[np.bool_]:
    """Return whether each row is truly malignant, bool [n]."""
    return (table["label"] == CLASSES[POSITIVE]).to_numpy()


def _patient(table: pd.DataFrame) -> NDArray[np.int64]:
    return table["patient"].to_numpy(int)
