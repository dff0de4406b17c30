"""How the model does for whom: figures by the columns of the user's clinical.csv (sex, age, scanner, TI-RADS, size, ...)."""

import re
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
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

MOSTLY = 0.9
"""A column of which this share are numbers is one of numbers; the other values are left out."""

PREFIX = "group: "
"""Of the columns that hold groups in a table of predictions."""

_KEYS = ("filename", "patient")


def read(file: Path) -> pd.DataFrame:
    """clinical.csv: one row a scan (column filename) or a patient (column patient), and any other columns.

    Raises:
        InputError: no such file, not a CSV with commas, no key column, a column or a key that comes twice, a key that is
            missing or no whole number, or nothing but keys.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # rows longer than the header would lose fields
            table = pd.read_csv(file, encoding="utf-8-sig", skipinitialspace=True, index_col=False)
    except FileNotFoundError:
        raise InputError(f"{file}: no such file") from None
    except pd.errors.ParserWarning:
        raise InputError(f"{file}: rows have more fields than the header; remove commas at their ends") from None
    except (ValueError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: not a CSV file in UTF-8: {errors.one_line(error)[:200]}") from None
    table.columns = [str(column).strip() for column in table.columns]
    key = next((name for name in _KEYS if name in table), None)
    if key is None:
        hint = "; is it separated by semicolons?" if any(";" in column for column in table) else ""
        raise InputError(
            f"{file}: needs a column filename (one row a scan) or patient (one row a patient's number){hint}"
        )
    # pandas calls the second of two equal names "name.1"
    twice = [
        name
        for name in table
        if list(table).count(name) > 1 or ((m := re.fullmatch(r"(.+)\.\d+", name)) and m[1] in table)
    ]
    if twice:
        raise InputError(f"{file}: column {twice[0]} comes twice")
    if len(table.columns) < 2:
        raise InputError(f"{file}: has no column beside {key}")
    if table[key].isna().any():
        raise InputError(f"{file}: {int(table[key].isna().sum())} rows have no {key}")
    if key == "patient":
        table[key] = [_number(file, value) for value in table[key]]
    if table[key].duplicated().any():
        raise InputError(f"{file}: {key} {table.loc[table[key].duplicated(), key].iloc[0]} comes twice; keep one row")
    return table.replace([np.inf, -np.inf], np.nan)


def _number(file: Path, value: Any) -> int:
    """A patient's number as the file names hold it."""
    text = str(value).strip().removesuffix(".0")
    if isinstance(value, bool) or not re.fullmatch(r"[0-9]{1,18}", text):
        raise InputError(f"{file}: patient {str(value)!r} is not a whole number; use the number of the file names")
    return int(text)


def join(scans: pd.DataFrame, clinical: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Groups of every scan, and what could not be used of clinical.csv, in words.

    Args:
        scans: rows with path and patient, all scans in use.
        clinical: of `read`.

    Returns:
        One row a scan (index of `scans`), one column of group names (null where unknown) a usable column; and notes.

    Raises:
        InputError: not one row is of a scan in use.
    """
    key = "filename" if "filename" in clinical else "patient"
    if key == "filename":
        clinical = clinical.assign(filename=clinical["filename"].map(lambda name: Path(str(name)).name))
    mine = scans["path"].map(lambda path: Path(path).name) if key == "filename" else scans["patient"].astype(int)
    known = clinical[key].isin(set(mine)) & ~clinical[key].duplicated()
    if not known.any():
        example = mine.iloc[0]
        raise InputError(f"clinical.csv: no row is of a scan in use; {key} should be like {example}")
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
        values, note = _groups(rows[column])
        if note:
            notes.append(f"clinical.csv: column {column} {note}")
        if values is not None:
            groups[column] = mine.map(values)
    return groups, notes


def _groups(values: pd.Series) -> tuple[pd.Series | None, str | None]:
    """Names of the groups of a column, or None, and a note on what was left out."""
    if not pd.api.types.is_numeric_dtype(values):
        values = values.map(lambda text: str(text).strip() or None, na_action="ignore")
    elif pd.api.types.is_bool_dtype(values):
        values = values.map(str, na_action="ignore")
    if values.nunique() < 2:
        return None, "is constant or empty"
    numbers = pd.to_numeric(values, errors="coerce")
    if values.nunique() > MAX_GROUPS and numbers.notna().sum() >= MOSTLY * values.notna().sum():
        lost = int(values.notna().sum() - numbers.notna().sum())
        return _bands(numbers), f"has {lost} values that are no numbers" if lost else None
    if values.nunique() > MAX_GROUPS:
        return None, f"has {values.nunique()} different texts, too many for groups"
    return values.map(_text, na_action="ignore"), None


def _bands(values: pd.Series) -> pd.Series:
    """About as many patients in each; as many digits as it takes to tell the bands apart."""
    cut = pd.qcut(values, BANDS, duplicates="drop")
    bands = list(cut.cat.categories)
    digits = next((d for d in range(3, 17) if len({f"{band.right:.{d}g}" for band in bands}) == len(bands)), 17)
    names = {band: f"{band.left:.{digits}g} to {band.right:.{digits}g}" for band in bands}
    return cut.map(names, na_action="ignore").astype(object)


def _text(value: Any) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


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
