"""How the model does for whom: figures by the columns of the user's clinical.csv (sex, age, scanner, TI-RADS, size, ...)."""

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
"""A group with fewer patients of a class than this is marked: its figures say little."""
BANDS = 3
"""Numbers with more than `MAX_GROUPS` values are cut into so many bands with about as many patients."""
MAX_GROUPS = 12
"""A text column with more values than this is left out."""

PREFIX = "group: "
"""Of the columns that hold groups in a table of predictions."""


def join(scans: pd.DataFrame, table: clinical_csv.Clinical) -> tuple[pd.DataFrame, list[str]]:
    """Groups of every scan, and what could not be used of clinical.csv, in words.

    Args:
        scans: as `clinical_csv.join` takes them.
        table: of `clinical_csv.read`.

    Returns:
        One row a scan (index of `scans`), one column of group names (null where unknown) a usable column; and notes.

    Raises:
        InputError: not one row is of a scan in use.
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
    """About as many patients in each; as many digits as it takes to tell the bands apart."""
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
    """AUROC, sensitivity and specificity of every group, with its counts.

    Args:
        table: test predictions with label, patient, probability of malignant and the columns of `join`, `PREFIX` in front.
        point: the operating point.
        prevalence: see `metrics.at_threshold`.
        seed: of the bootstrap.
        current: the champion on the same images; None for none.

    Returns:
        Rows with column, group, images, patients, malignant (patients), benign (patients), small, and the figures that
        the group's classes allow. In groups that are not small less_champion holds what AUROC and specificity are above the
        champion's on the same images, where it could be scored.
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
