"""Reads and checks clinical.csv, and joins its usable columns to the scans.

Research use only. Nothing in this module prints or logs a value of a patient: messages hold names of columns, numbers
of rows, counts and categories.
"""

import csv
import math
import re
import unicodedata
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from thyroid.errors import InputError

KEYS = ("filename", "patient")
"""Key columns of clinical.csv, of which the first that exists is used: one row per scan, or one row per patient."""
MOSTLY = 0.9
"""A column is numeric if at least this share of its values are numbers. Its other values count as missing.

A column with this share of dates is a column of dates.
"""
FEW_VALUES = 12
"""A mixture of numbers and texts (2, 3, 4a, 5) is categorical if it has at most this many different values."""
MAX_CATEGORIES = 30
"""A text column with more different values than this probably holds names or remarks, and is not used."""
DISTINCT = 0.9
"""A text column with this many different values per patient is an identifier, and is not used."""
ENOUGH = 10
"""Patients that are needed to call a number that rises with the patients' numbers an identifier."""
LARGEST = 1e15
"""A number of a larger absolute value is not a measurement and counts as infinite."""
MINIMUM = 5
"""Categories of fewer training patients than this are combined into `OTHER`."""

_MISSING = {"", "na", "n/a", "nan", "null", "#n/a", "<na>", "-", "?", "."}  # "none" is a finding: no calcification
_DATE = re.compile(
    r"(\d{4}[-/.] ?\d{1,2}[-/.] ?\d{1,2}|\d{1,2}[-/.] ?\d{1,2}[-/.] ?(\d{4}|\d{2})"
    r"|\d{1,2}[-/. ][A-Za-z]{3,9}[-/. ]\d{2,4})\.?([T ].*)?"
)
_DATE_NAME = re.compile(r"date(?!d)|datum|birth|(^|_)dob($|_)|일자|날짜|생년월일", re.IGNORECASE)
_ID_NAME = re.compile(r"(^|[_ -])(id|uid|uuid|mrn|pid)$", re.IGNORECASE)
_DUPLICATE, _NO_KEY, _NOT_WHOLE, _TEXT, _INFINITE = (
    "field_uniqueness",
    "not_nullable",
    "whole",
    "text",
    "infinite",
)  # the first two are pandera's names for its checks, the others are our own


@dataclass(frozen=True)
class Clinical:
    """Holds the content of clinical.csv as `read` understood it.

    Attributes:
        key: "filename" (text, without folders) or "patient" (int).
        rows: The key, then the columns: float64 for numbers (missing: NaN), object for categories (str; missing: None).
        notes: Descriptions of what was left out.
    """

    key: str
    rows: pd.DataFrame
    notes: list[str]


def clean(value: Any) -> str | None:
    """Normalise a category to text.

    The text is in NFC, with single blanks and none at the ends. 4.0 becomes 4.

    Returns:
        The text, or None if the value is missing.
    """
    if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = " ".join(unicodedata.normalize("NFC", str(value)).split())
    return None if text.casefold() in _MISSING else text


def read(path: Path) -> Clinical:
    """Read clinical.csv, which has one row per scan (column filename) or per patient (column patient).

    All other columns are clinical ones. Columns of dates are left out, and values that are not numbers, such as texts
    in a numeric column, count as missing. Spellings that differ only in case, blanks or Unicode form are one category.
    The rules are a pandera schema, and all of its failures are reported.

    Args:
        path: CSV file in UTF-8 with commas.

    Raises:
        InputError: The file does not exist or is not a CSV with commas, the key column is missing, a column or a key
            occurs twice, a key is missing or not a whole number, or there are no columns besides the keys. The message
            counts rows like a spreadsheet: the header is row 1.
    """
    table = _table(path)
    key = next((name for name in KEYS if name in table), None)
    if key is None:
        hint = "; is it separated by semicolons?" if any(";" in column for column in table.columns) else ""
        raise InputError(
            f"{path}: needs a column filename (one row per scan) or patient (one row per patient number){hint}"
        )
    if not set(table.columns) - set(KEYS):
        raise InputError(f"{path}: has no column besides {key}")
    if key == "patient":
        table[key] = table[key].str.replace(r"^0*(\d+?)(\.0*)?$", r"\1", regex=True)
    else:
        table[key] = table[key].map(lambda name: Path(name).name, na_action="ignore")
    kinds = {column: _kind(table[column]) for column in table.columns if column not in KEYS}
    numbers = [column for column, kind in kinds.items() if kind == "number"]
    wrong, notes = _failures(table, key, numbers)
    if wrong:
        raise InputError(f"{path}: {'; '.join(wrong)}")
    rows = pd.DataFrame({key: table[key].astype("int64" if key == "patient" else object)})
    for column, kind in kinds.items():
        values = table[column]
        if kind == "number":
            parsed = pd.to_numeric(values, errors="coerce").astype("float64")
            rows[column] = parsed.where(parsed.abs() <= LARGEST)
        elif kind == "category":
            rows[column], folded = _one_spelling(values)
            if folded:
                notes.append(
                    f"column {column} has {folded} categories with several spellings each, which count as one category"
                )
        else:
            notes.append(f"column {column} {kind} and was not used")
    return Clinical(key, rows.reset_index(drop=True), [f"clinical.csv: {note}" for note in notes])


def _table(path: Path) -> pd.DataFrame:
    """Read all cells as text, None where missing. The index is the row's number in the file."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            lines = dict(enumerate(csv.reader(stream, skipinitialspace=True, strict=True), 1))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (UnicodeDecodeError, csv.Error):
        raise InputError(f"{path}: not a CSV file in UTF-8; save it as UTF-8 with commas") from None
    cells = {number: [clean(field) for field in line] for number, line in lines.items()}
    cells = {number: line for number, line in cells.items() if any(line)}
    if len(cells) < 2:
        raise InputError(f"{path}: not a CSV file with a header and rows below it")
    header = cells.pop(next(iter(cells)))
    longer = [number for number, line in cells.items() if any(line[len(header) :])]
    if longer:
        raise InputError(f"{path}: {_rows(longer)}: more fields than the header; quote texts that hold commas")
    table = pd.DataFrame(
        [line[: len(header)] + [None] * (len(header) - len(line)) for line in cells.values()], list(cells), dtype=object
    )
    nameless = [place for place, name in enumerate(header) if name is None]
    if any(table[place].notna().any() for place in nameless):
        raise InputError(f"{path}: a column has values but no name in the header")
    table = table.drop(columns=nameless).set_axis([name for name in header if name], axis=1)
    folded = pd.Series(table.columns.map(str.casefold))
    if folded.duplicated().any():
        raise InputError(f"{path}: column {table.columns[folded.duplicated()][0]} occurs twice")
    return table


def _kind(values: pd.Series) -> str:
    """Return the kind of a column: "number", "category", or the reason why it is not used."""
    known = values.dropna()
    if not len(known):
        return "category"
    numbers = pd.to_numeric(known, errors="coerce")
    numeric = float(numbers.notna().mean())
    whole = numbers[numbers.notna() & np.isfinite(numbers) & (numbers % 1 == 0)]
    compact = whole[whole.between(19000101, 21001231)]
    compact = pd.to_datetime(compact.astype("int64").astype(str), format="%Y%m%d", errors="coerce").notna().sum()
    serial = whole.between(10_000, LARGEST).sum() if _DATE_NAME.search(str(values.name)) else 0
    if max(known.str.fullmatch(_DATE).sum(), compact, serial) >= MOSTLY * len(known):
        return "holds dates"
    if numeric == 1 or (numeric >= MOSTLY and known.nunique() > FEW_VALUES):
        return "number"
    if numeric > 1 - MOSTLY and known.nunique() > MAX_CATEGORIES:
        return "mixes numbers and texts (make it one of them: a point for decimals, no units)"
    return "category"


def _failures(table: pd.DataFrame, key: str, numbers: Sequence[str]) -> tuple[list[str], list[str]]:
    """Describe what is wrong with the keys, and what counts as missing in numeric columns, with the rows' numbers."""
    import pandera.pandas as pa  # takes three quarters of a second, which only reading needs to spend

    def number(values: pd.Series) -> pd.Series:
        return pd.to_numeric(values, errors="coerce")

    whole = pa.Check(lambda values: values.str.fullmatch(r"[0-9]{1,18}"), error=_NOT_WHOLE)
    usable = [
        pa.Check(lambda values: number(values).notna(), error=_TEXT),
        pa.Check(lambda values: ~(number(values).abs() > LARGEST), error=_INFINITE),
    ]
    schema = pa.DataFrameSchema(
        {
            key: pa.Column(checks=whole if key == "patient" else None, unique=True, report_duplicates="all"),
            **{column: pa.Column(checks=usable, nullable=True) for column in numbers},
        }
    )
    try:
        schema.validate(table, lazy=True)
    except pa.errors.SchemaErrors as error:
        cases = error.failure_cases
    else:
        return [], []
    wrong, notes = [], []
    for (column, check), rows in cases.groupby(["column", "check"], sort=False)["index"]:
        found = [int(row) for row in rows]
        if check == _DUPLICATE:
            groups = table.loc[found, key].groupby(table.loc[found, key], sort=False)
            same = "; ".join(_rows(group.index) for _, group in list(groups)[:5])
            wrong.append(f"{key} occurs twice: {same} have the same value; keep one row")
        elif check == _NO_KEY:
            wrong.append(f"{_rows(found)}: no {key}")
        elif check == _NOT_WHOLE:
            wrong.append(f"{_rows(found)}: {key} is not a whole number; use the number of the file names")
        else:
            values = table.loc[found, column]
            dates = int(values.str.fullmatch(_DATE).sum())
            what = "that are infinite or too large" if check == _INFINITE else "that are not numbers"
            extra = f", {dates} of them dates" if dates else ""
            notes.append(
                f"column {column} has {len(found)} values {what}{extra}, which count as missing ({_rows(found)})"
            )
    return wrong, notes


def _rows(numbers: Iterable[Any]) -> str:
    found = [str(number) for number in numbers]
    more = f" and {len(found) - 5} more" if len(found) > 5 else ""
    return f"row{'s' if len(found) > 1 else ''} {', '.join(found[:5])}{more}"


def _one_spelling(values: pd.Series) -> tuple[pd.Series, int]:
    """Return the categories in their most frequent spelling, and how many of them had several spellings."""
    folded = values.map(str.casefold, na_action="ignore")
    spelling = values.groupby(folded).agg(lambda same: same.value_counts(sort=True).index[0])
    several = values.groupby(folded).nunique() > 1
    shown = folded.map(spelling).astype(object)
    # pandas-stubs lacks None among the values
    return shown.where(values.notna(), None), int(several.sum())  # type: ignore[call-overload]


def join(scans: pd.DataFrame, clinical: Clinical, keep: Collection[str] = ()) -> tuple[pd.DataFrame, list[str]]:
    """Join the usable columns of clinical.csv to the scans.

    Constant or empty columns, identifiers and free texts are not used, because a model could only learn from them who
    a patient is.

    Args:
        scans: All scans in use, as rows with path and patient (int), and image (int) where it is known.
        clinical: Result of `read`.
        keep: Columns that are joined in any case, since a model that learnt from them elsewhere takes them here.

    Returns:
        A table with one row per scan (index of `scans`), float64 for numbers (missing: NaN) and object for categories
        (str; missing: None), and notes on what could not be used.

    Raises:
        InputError: No row belongs to a scan in use.
    """
    key, notes = clinical.key, list(clinical.notes)
    by_file = key == "filename"
    scan_keys = scans["path"].map(_file) if by_file else scans["patient"].astype("int64")
    known = clinical.rows[key].isin(set(scan_keys))
    if not known.any():
        like = "B_001-0002-1.0.jpg" if by_file else "the number in the file names, such as 1 in B_001-0002-1.0.jpg"
        raise InputError(f"clinical.csv: no row matches a scan in use; {key} should look like {like}")
    if (~known).any():
        plural = "files" if by_file else "patients"
        notes.append(f"{int((~known).sum())} rows of clinical.csv belong to unknown {plural} and were not used")
    without = int((~scan_keys.isin(set(clinical.rows[key]))).sum())
    if without:
        notes.append(f"{without} scans have no row in clinical.csv")
    place = pd.Series(np.arange(len(clinical.rows)), clinical.rows[key]).reindex(scan_keys).to_numpy()
    rows = clinical.rows.drop(columns=key).reindex(place).set_axis(scans.index)
    for column in list(rows):
        why = None if column in keep else _unusable(rows[column], scans)
        if why:
            notes.append(f"clinical.csv: column {column} {why} and was not used")
            del rows[column]
        elif rows[column].dtype == object:
            # pandas-stubs lacks None among the values
            rows[column] = rows[column].where(rows[column].notna(), None)  # type: ignore[call-overload]
    return rows, notes


def _file(path: Any) -> str:
    return unicodedata.normalize("NFC", Path(str(path)).name)


def _unusable(values: pd.Series, scans: pd.DataFrame) -> str | None:
    """Return the reason why a column cannot be used, or None if it can."""
    known = values.notna()
    values, patient = values[known], scans["patient"][known].astype("int64")
    different = values.nunique()
    if different < 2:
        return "is constant or empty"
    patients = patient.nunique()
    number = values.dtype == float
    if number and ((values % 1) == 0).all():
        image = scans["image"][known] if "image" in scans else None
        if (values == patient).all() or (image is not None and (values == image.astype(float)).all()):
            return "repeats a number of the file names"
        each = values.groupby(patient).agg(["min", "max"])
        rising = (each["min"] == each["max"]).all() and each["min"].is_monotonic_increasing and each["min"].is_unique
        if rising and patients >= ENOUGH:
            return "rises with the patients' numbers like an identifier"
    if _ID_NAME.search(str(values.name)) and different >= DISTINCT * patients and different > 2:
        return "is an identifier"
    if not number and different > max(MINIMUM, DISTINCT * patients - 1):
        return f"is an identifier: it has {different} different texts for {patients} patients"
    if not number and different > MAX_CATEGORIES:
        return f"has {different} different texts, too many for categories"
    return None
