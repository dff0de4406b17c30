"""How the model does for whom: figures by the columns of the user's clinical.csv (sex, age, scanner, TI-RADS, size, ...)."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from thyroid import errors, metrics, operating
from thyroid.errors import InputError
from thyroid.names import CLASSES, POSITIVE, SCORE

SMALL = 20
"""A group with fewer patients of a class than this is marked: its figures say little."""
BANDS = 3
"""Numbers with more than `MAX_GROUPS` values are cut into so many bands with about as many patients."""
MAX_GROUPS = 12
"""A text column with more values than this (names, remarks) is left out."""

PREFIX = "group: "
"""Of the columns that hold groups in a table of predictions."""

_KEYS = ("filename", "patient")


def read(file: Path) -> pd.DataFrame:
    """clinical.csv: one row a scan (column filename) or a patient (column patient), and any other columns.

    Raises:
        InputError: no such file, not a CSV, no key column, a key that is missing or comes twice, or nothing but keys.
    """
    try:
        table = pd.read_csv(file, encoding="utf-8-sig", skipinitialspace=True)
    except FileNotFoundError:
        raise InputError(f"{file}: no such file") from None
    except (ValueError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: not a CSV file in UTF-8: {errors.one_line(error)[:200]}") from None
    table.columns = [str(column).strip() for column in table.columns]
    key = next((name for name in _KEYS if name in table), None)
    if key is None:
        raise InputError(f"{file}: needs a column filename (one row a scan) or patient (one row a patient's number)")
    if len(table.columns) < 2:
        raise InputError(f"{file}: has no column beside {key}")
    if table[key].isna().any():
        raise InputError(f"{file}: {int(table[key].isna().sum())} rows have no {key}")
    if key == "patient":
        number = pd.to_numeric(table[key], errors="coerce")
        if number.isna().any():
            wrong = table.loc[number.isna(), key].iloc[0]
            raise InputError(f"{file}: patient {wrong!r} is not a number; use the number of the file names")
        table[key] = number.astype(int)
    if table[key].duplicated().any():
        twice = table.loc[table[key].duplicated(), key].iloc[0]
        raise InputError(f"{file}: {key} {twice} comes twice; keep one row")
    return table


def join(scans: pd.DataFrame, clinical: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Groups of every scan, and what could not be used of clinical.csv, in words.

    Args:
        scans: rows with path and patient, all scans in use.
        clinical: of `read`.

    Returns:
        One row a scan (index of `scans`), one column of group names (null where unknown) a usable column; and notes.
    """
    key = "filename" if "filename" in clinical else "patient"
    mine = scans["path"].map(lambda path: Path(path).name) if key == "filename" else scans["patient"].astype(int)
    known = clinical[key].isin(set(mine))
    notes = []
    if (~known).any():
        plural = "patients" if key == "patient" else "files"
        notes.append(f"{int((~known).sum())} rows of clinical.csv are of unknown {plural} and were not used")
    without = int((~mine.isin(set(clinical[key]))).sum())
    if without:
        notes.append(f"{without} scans have no row in clinical.csv")
    rows = clinical[known].set_index(key)
    groups = pd.DataFrame(index=scans.index)
    for column in rows.columns.drop([name for name in _KEYS if name in rows.columns]):
        values = rows[column]
        distinct = values.nunique()
        if distinct < 2:
            notes.append(f"clinical.csv: column {column} is constant or empty")
            continue
        if pd.api.types.is_numeric_dtype(values) and distinct > MAX_GROUPS:
            values = _bands(values)
        elif distinct > MAX_GROUPS:
            notes.append(f"clinical.csv: column {column} has {distinct} different texts, too many for groups")
            continue
        groups[column] = mine.map(values.map(_text, na_action="ignore"))
    return groups, notes


def _bands(values: pd.Series) -> pd.Series:
    cut = pd.qcut(values, BANDS, duplicates="drop")
    return cut.map(lambda band: f"{band.left:.4g} to {band.right:.4g}", na_action="ignore")


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def figures(
    table: pd.DataFrame, point: operating.OperatingPoint, prevalence: float, seed: int = 0
) -> list[dict[str, Any]]:
    """AUROC, sensitivity and specificity of every group, with its counts.

    Args:
        table: test predictions with label, patient, probability of malignant and the columns of `join`, `PREFIX` in front.
        point: the operating point.
        prevalence: see `metrics.at_threshold`.
        seed: of the bootstrap.

    Returns:
        Rows with column, group, images, patients, malignant (patients), benign (patients), small, and the figures that
        the group's classes allow.
    """
    rows = []
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
            rows.append(row)
    return rows
