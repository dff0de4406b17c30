"""Compute metrics by subgroup, from the columns of the user's clinical.csv (sex, age, scanner, TI-RADS, size, ...)."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import pandas as pd

from thyroid import metrics
from thyroid.clinical import clinical_csv
from thyroid.data.filenames import CLASSES, POSITIVE, SCORE
from thyroid.model import operating_point

if TYPE_CHECKING:
    from thyroid.evaluate.gate import Champion

SMALL = 20
"""A group with fewer patients of a class than this is marked as small, because its metrics are uncertain."""
BANDS = 3
"""Columns of numbers with more than `MAX_GROUPS` values are cut into this many bands with about as many scans each."""
MAX_GROUPS = 12
"""A text column with more values than this is not used."""

PREFIX = "group: "
"""Prefix of the columns that hold groups in a table of predictions."""


def join(scans: pd.DataFrame, table: clinical_csv.Clinical) -> tuple[pd.DataFrame, list[str]]:
    """Assign every scan to a group in each usable column of clinical.csv.

    Args:
        scans: Scans as `clinical_csv.join` takes them.
        table: Result of `clinical_csv.read`.

    Returns:
        The groups, and notes in words on what could not be used. The groups have one row per scan (index of `scans`)
        and one column of group names (null where unknown) per usable column.

    Raises:
        InputError: No row of clinical.csv is of a scan in use.
    """
    rows, notes = clinical_csv.join(scans, table)
    groups = pd.DataFrame(index=scans.index)
    for column in rows:
        values, different = rows[column], rows[column].nunique()
        if different <= MAX_GROUPS:
            groups[column] = values.map(lambda value: clinical_csv.clean(value), na_action="ignore")
        elif pd.api.types.is_numeric_dtype(values):
            groups[column] = _bands(values)
        else:
            notes.append(f"clinical.csv: column {column} has {different} different texts, too many for groups")
    return groups, notes


def _bands(values: pd.Series) -> pd.Series:
    """Cut numbers into bands with about as many scans each, named with enough digits to distinguish them."""
    cut = pd.qcut(values, BANDS, duplicates="drop")
    bands = list(cut.cat.categories)
    digits = next((d for d in range(3, 17) if len({f"{band.right:.{d}g}" for band in bands}) == len(bands)), 17)
    names = {band: f"{band.left:.{digits}g} to {band.right:.{digits}g}" for band in bands}
    return cut.map(names, na_action="ignore").astype(object)


def figures(
    table: pd.DataFrame,
    point: operating_point.OperatingPoint,
    prevalence: float,
    seed: int = 0,
    current: "Champion | None" = None,
) -> list[dict[str, Any]]:
    """Compute AUROC, sensitivity and specificity of every group, with its counts.

    Args:
        table: Test predictions with label, patient, the probability of malignant, and the columns of `join` with
            `PREFIX` in front of their names.
        point: Operating point of the model.
        prevalence: Share of malignant nodules in use; see `metrics.at_threshold`.
        seed: Seed of the bootstrap.
        current: The champion on the same images; None for no champion.

    Returns:
        Rows with column, group, images, patients, malignant (patients), benign (patients), small, and the metrics that
        the group's classes allow. Where the champion could be scored, groups that are not small also have
        less_champion: AUROC and specificity minus those of the champion on the same images.
    """
    rows = []
    others = None if current is None or current.scores is None else pd.Series(current.scores, table.index)
    for name in [column for column in table.columns if column.startswith(PREFIX)]:
        for group, part in table.groupby(name):
            positive = part["label"] == CLASSES[POSITIVE]
            patients = part.groupby("patient")["label"].agg(lambda labels: CLASSES[POSITIVE] in set(labels))
            row: dict[str, Any] = {
                "column": name.removeprefix(PREFIX),
                "group": str(group),
                "images": len(part),
                "patients": len(patients),
                "malignant": int(patients.sum()),
                "benign": int((~patients).sum()),
            }
            row["small"] = min(row["malignant"], row["benign"]) < SMALL
            if positive.nunique() == 2:
                row["auroc"] = asdict(metrics.auroc(positive, part[SCORE], part["patient"], seed=seed))
            draws = metrics.Draws(part["patient"], seed=seed)
            called = part[SCORE] >= point.threshold
            at = metrics.at_threshold(draws, positive, called, part["patient"], prevalence)
            row |= {key: asdict(at[key]) for key in ("sensitivity", "specificity") if key in at}
            if current is not None and others is not None and not row["small"]:
                other, patient = others[part.index], part["patient"]
                less = {
                    "auroc": metrics.auroc_difference(positive, part[SCORE], other, patient, seed=seed),
                    "specificity": metrics.specificity_difference(
                        positive, called, current.calls(other), patient, seed=seed
                    ),
                }
                row["less_champion"] = {key: asdict(figure) for key, figure in less.items()}
            rows.append(row)
    return rows
