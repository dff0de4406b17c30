"""Clinical data beside the images: clinical.csv read and checked, and its columns as numbers that a model can take.

Research use only. Nothing here prints or logs a value of a patient: messages hold names of columns, rows' numbers, counts
and categories.
"""

import csv
import math
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from thyroid.errors import InputError

KEYS = ("filename", "patient")
"""Key columns of clinical.csv, the first that is there: one row a scan, or one row a patient."""
MOSTLY = 0.9
"""A column of which this share are numbers (dates) is one of numbers (dates); its other values count as missing."""
FEW_VALUES = 12
"""Numbers and texts mixed (2, 3, 4a, 5) are categories where there are no more different values than this."""
MAX_CATEGORIES = 30
"""A text column with more different values than this reads like names or remarks, and is not used."""
DISTINCT = 0.9
"""A text column with so many different values a patient is an identifier, and is not used."""
ENOUGH = 10
"""Of so many patients it takes to call a number that rises with the patients' numbers an identifier."""
LARGEST = 1e15
"""A number beyond this in size is no measurement and counts as infinite."""
MINIMUM = 5
"""Categories of fewer training patients than this are one: `OTHER`."""
OTHER = "other"
CLIP = 5.0
"""Numbers count as no further than this from the training mean, in standard deviations: a slip of the decimal point or a
value that the training never saw must not decide alone."""

_MISSING = {"", "na", "n/a", "nan", "null", "#n/a", "<na>", "-", "?", "."}  # "none" is a finding: no calcification
_DATE = re.compile(
    r"(\d{4}[-/.] ?\d{1,2}[-/.] ?\d{1,2}|\d{1,2}[-/.] ?\d{1,2}[-/.] ?(\d{4}|\d{2})|\d{1,2}[-/. ][A-Za-z]{3,9}[-/. ]\d{2,4})\.?([T ].*)?"
)
_DATE_NAME = re.compile(r"date(?!d)|datum|birth|(^|_)dob($|_)|일자|날짜|생년월일", re.IGNORECASE)
_ID_NAME = re.compile(r"(^|[_ -])(id|uid|uuid|mrn|pid)$", re.IGNORECASE)
_DUPLICATE, _NO_KEY, _NOT_WHOLE, _TEXT, _INFINITE = (
    "field_uniqueness",
    "not_nullable",
    "whole",
    "text",
    "infinite",
)  # pandera's names of its checks, and ours


@dataclass(frozen=True)
class Clinical:
    """clinical.csv as `read` understood it.

    Attributes:
        key: "filename" (text, without folders) or "patient" (int).
        rows: the key, then the columns: float64 for numbers (missing: NaN), object for categories (str; missing: None).
        notes: what was left out, in words.
    """

    key: str
    rows: pd.DataFrame
    notes: list[str]


def clean(value: Any) -> str | None:
    """A category as text: NFC, single blanks, none at the ends, 4.0 as 4; None where it is missing."""
    if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = " ".join(unicodedata.normalize("NFC", str(value)).split())
    return None if text.casefold() in _MISSING else text


def read(file: Path) -> Clinical:
    """clinical.csv: one row a scan (column filename) or a patient (column patient), and any other columns.

    Dates are left out, and so are numbers' values that are none, texts in a column of numbers say; spellings that differ in
    case, blanks or Unicode form only are one category. The rules are a pandera schema, all of whose failures are reported.

    Args:
        file: CSV in UTF-8 with commas.

    Raises:
        InputError: no such file, not a CSV with commas, no key column, a column or a key that comes twice, a key that is
            missing or no whole number, or nothing but keys. The message names rows as a spreadsheet does: the header is row 1.
    """
    table = _table(file)
    key = next((name for name in KEYS if name in table), None)
    if key is None:
        hint = "; is it separated by semicolons?" if any(";" in column for column in table) else ""
        raise InputError(
            f"{file}: needs a column filename (one row a scan) or patient (one row a patient's number){hint}"
        )
    if not set(table.columns) - set(KEYS):
        raise InputError(f"{file}: has no column beside {key}")
    if key == "patient":
        table[key] = table[key].str.replace(r"^0*(\d+?)(\.0*)?$", r"\1", regex=True)
    else:
        table[key] = table[key].map(lambda name: Path(name).name, na_action="ignore")
    kinds = {column: _kind(table[column]) for column in table.columns if column not in KEYS}
    numbers = [column for column, kind in kinds.items() if kind == "number"]
    wrong, notes = _failures(table, key, numbers)
    if wrong:
        raise InputError(f"{file}: {'; '.join(wrong)}")
    rows = pd.DataFrame({key: table[key].astype("int64" if key == "patient" else object)})
    for column, kind in kinds.items():
        values = table[column]
        if kind == "number":
            parsed = pd.to_numeric(values, errors="coerce").astype("float64")
            rows[column] = parsed.where(parsed.abs() <= LARGEST)
        elif kind == "category":
            rows[column], folded = _one_spelling(values)
            if folded:
                notes.append(f"column {column} has {folded} categories in several spellings, taken as one each")
        else:
            notes.append(f"column {column} {kind} and was not used")
    return Clinical(key, rows.reset_index(drop=True), [f"clinical.csv: {note}" for note in notes])


def _table(file: Path) -> pd.DataFrame:
    """All as text, None where missing; the index is the row's number in the file."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            lines = dict(enumerate(csv.reader(stream, skipinitialspace=True, strict=True), 1))
    except FileNotFoundError:
        raise InputError(f"{file}: no such file") from None
    except (UnicodeDecodeError, csv.Error):
        raise InputError(f"{file}: not a CSV file in UTF-8: save it as such, with commas") from None
    cells = {number: [clean(field) for field in line] for number, line in lines.items()}
    cells = {number: line for number, line in cells.items() if any(line)}
    if len(cells) < 2:
        raise InputError(f"{file}: not a CSV file with a header and rows below it")
    header = cells.pop(next(iter(cells)))
    longer = [number for number, line in cells.items() if any(line[len(header) :])]
    if longer:
        raise InputError(f"{file}: {_rows(longer)}: more fields than the header; quote texts that hold commas")
    table = pd.DataFrame(
        [line[: len(header)] + [None] * (len(header) - len(line)) for line in cells.values()], list(cells), dtype=object
    )
    nameless = [place for place, name in enumerate(header) if name is None]
    if any(table[place].notna().any() for place in nameless):
        raise InputError(f"{file}: a column has values and no name in the header")
    table = table.drop(columns=nameless).set_axis([name for name in header if name], axis=1)
    folded = pd.Series(table.columns.map(str.casefold))
    if folded.duplicated().any():
        raise InputError(f"{file}: column {table.columns[folded.duplicated()][0]} comes twice")
    return table


def _kind(values: pd.Series) -> str:
    """ "number", "category", or why a column of texts is not used."""
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
    """What is wrong with the keys, and what counts as missing in columns of numbers; each in words with its rows."""
    import pandera.pandas as pa  # three quarters of a second that only reading needs

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
            wrong.append(f"{key} comes twice: {same} have the same one each; keep one row")
        elif check == _NO_KEY:
            wrong.append(f"{_rows(found)}: no {key}")
        elif check == _NOT_WHOLE:
            wrong.append(f"{_rows(found)}: {key} is not a whole number; use the number of the file names")
        else:
            values = table.loc[found, column]
            dates = int(values.str.fullmatch(_DATE).sum())
            what = "that are infinite or too large" if check == _INFINITE else "that are no numbers"
            extra = f", {dates} of them dates" if dates else ""
            notes.append(f"column {column} has {len(found)} values {what}{extra}, taken as missing ({_rows(found)})")
    return wrong, notes


def _rows(numbers: Iterable[Any]) -> str:
    found = [str(number) for number in numbers]
    more = f" and {len(found) - 5} more" if len(found) > 5 else ""
    return f"row{'s' if len(found) > 1 else ''} {', '.join(found[:5])}{more}"


def _one_spelling(values: pd.Series) -> tuple[pd.Series, int]:
    """Categories in their most frequent spelling, and how many had several."""
    folded = values.map(str.casefold, na_action="ignore")
    spelling = values.groupby(folded).agg(lambda same: same.value_counts(sort=True).index[0])
    several = values.groupby(folded).nunique() > 1
    return folded.map(spelling).astype(object).where(values.notna(), None), int(several.sum())


def join(scans: pd.DataFrame, clinical: Clinical) -> tuple[pd.DataFrame, list[str]]:
    """The usable columns of clinical.csv for every scan, and what could not be used, in words.

    Not used: constant or empty columns, identifiers and free texts, since nothing can be learnt from them but who is who.

    Args:
        scans: rows with path and patient (int), all scans in use; image (int) where known.
        clinical: of `read`.

    Returns:
        One row a scan (index of `scans`), float64 for numbers (NaN) and object for categories (str; None); and notes.

    Raises:
        InputError: not one row is of a scan in use.
    """
    key, notes = clinical.key, list(clinical.notes)
    by_file = key == "filename"
    mine = scans["path"].map(_file) if by_file else scans["patient"].astype("int64")
    known = clinical.rows[key].isin(set(mine))
    if not known.any():
        like = "B_001-0002-1.0.jpg" if by_file else "the number in the files' names, as 1 in B_001-0002-1.0.jpg"
        raise InputError(f"clinical.csv: no row is of a scan in use; {key} should be like {like}")
    if (~known).any():
        plural = "files" if by_file else "patients"
        notes.append(f"{int((~known).sum())} rows of clinical.csv are of unknown {plural} and were not used")
    without = int((~mine.isin(set(clinical.rows[key]))).sum())
    if without:
        notes.append(f"{without} scans have no row in clinical.csv")
    place = pd.Series(np.arange(len(clinical.rows)), clinical.rows[key]).reindex(mine).to_numpy()
    rows = clinical.rows.drop(columns=key).reindex(place).set_axis(scans.index)
    for column in list(rows):
        why = _unusable(rows[column], scans)
        if why:
            notes.append(f"clinical.csv: column {column} {why} and was not used")
            del rows[column]
        elif rows[column].dtype == object:
            rows[column] = rows[column].where(rows[column].notna(), None)
    return rows, notes


def _file(path: Any) -> str:
    return unicodedata.normalize("NFC", Path(str(path)).name)


def _unusable(values: pd.Series, scans: pd.DataFrame) -> str | None:
    """Why a column tells nothing, if so."""
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


@dataclass(frozen=True)
class Column:
    """How one column becomes numbers.

    Attributes:
        name: of the column.
        kind: "number" or "category".
        missing: whether training rows lacked it; then a feature says so.
        low, median, high, mean, scale: of the training rows' numbers; None without any, and for categories.
        categories: one feature each, as written; `OTHER` stands for `rare`.
        rare: categories of too few patients, case folded.
    """

    name: str
    kind: str
    missing: bool
    low: float | None = None
    median: float | None = None
    high: float | None = None
    mean: float = 0.0
    scale: float = 1.0
    categories: tuple[str, ...] = ()
    rare: tuple[str, ...] = ()

    @classmethod
    def fit(cls, values: pd.Series, patient: NDArray, minimum: int) -> "Column":
        """Learn from training rows; arguments as `Encoder.fit`."""
        name = str(values.name)
        if pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values):
            numbers = _finite(values)
            known = numbers[~np.isnan(numbers)]
            missing = len(known) < len(numbers)
            if not len(known):
                return cls(name, "number", missing)
            low, median, high, mean, scale = (float(f(known)) for f in (np.min, np.median, np.max, np.mean, np.std))
            return cls(name, "number", missing, low, median, high, mean, scale if scale > 1e-9 * abs(mean) else 1.0)
        texts = values.map(clean).reset_index(drop=True)
        folded = texts.map(str.casefold, na_action="ignore")
        patients = pd.Series(patient).groupby(folded).nunique()
        spelling = texts.groupby(folded).first()
        rare = tuple(sorted(patients.index[patients < minimum]))
        shown = [spelling[one] for one in sorted(patients.index[patients >= minimum])]
        if rare and OTHER not in {one.casefold() for one in shown}:
            shown.append(OTHER)
        return cls(name, "category", bool(texts.isna().any()), categories=tuple(shown), rare=rare)

    @property
    def features(self) -> list[str]:
        """Names of the columns of `encode`."""
        names = [self.name] if self.kind == "number" else [f"{self.name} = {one}" for one in self.categories]
        return [*names, f"{self.name} is missing"] if self.missing else names

    def encode(self, values: pd.Series) -> tuple[NDArray[np.float64], str | None]:
        """Features [n, len(features)], and a note on values that count as missing."""
        if self.kind == "number":
            numbers = _finite(values)
            gone = np.isnan(numbers)
            lost = int((gone & values.notna().to_numpy()).sum())
            filled = np.where(gone, self.mean if self.median is None else self.median, numbers)
            block = np.clip((filled - self.mean) / self.scale, -CLIP, CLIP)[:, None]
            note = f"column {self.name}: {lost} values are no finite numbers and count as missing" if lost else None
        else:
            folded = values.map(clean).map(str.casefold, na_action="ignore")
            place = {one.casefold(): number for number, one in enumerate(self.categories)}
            if self.rare:
                place = dict.fromkeys(self.rare, place[OTHER]) | place
            places = np.array([place.get(one, -1) for one in folded], dtype=int)
            gone = places < 0
            lost = int((gone & folded.notna().to_numpy()).sum())
            block = (places[:, None] == np.arange(len(self.categories))).astype(float)
            what = (
                "a category that the training never saw and counts"
                if lost == 1
                else "categories that the training never saw and count"
            )
            note = f"column {self.name}: {lost} rows have {what} as missing" if lost else None
        return np.column_stack([block, gone]) if self.missing else block, note


def _finite(values: pd.Series) -> NDArray[np.float64]:
    numbers = pd.to_numeric(values, errors="coerce").to_numpy(float, na_value=np.nan)
    return np.where(np.abs(numbers) <= LARGEST, numbers, np.nan)


@dataclass(frozen=True)
class Encoder:
    """Clinical rows as numbers, by what the training rows held; numpy and pandas alone, so that an endpoint can have it."""

    columns: tuple[Column, ...]

    @classmethod
    def fit(cls, rows: pd.DataFrame, patient: ArrayLike, minimum: int = MINIMUM) -> "Encoder":
        """Learn from training rows alone.

        Args:
            rows: of `join`; columns of numbers are numbers, all others categories.
            patient: patient number of every row [n].
            minimum: see `MINIMUM`.
        """
        patients = np.asarray(patient)
        return cls(tuple(Column.fit(rows[name], patients, minimum) for name in rows))

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> "Encoder":
        """The encoder of `facts`."""
        lists = ("categories", "rare")
        columns = [one | {name: tuple(one[name]) for name in lists} for one in facts["columns"]]
        return cls(tuple(Column(**one) for one in columns))

    def facts(self) -> dict[str, Any]:
        """As JSON. They hold categories and the least and largest number of the training rows, no other value."""
        return asdict(self)

    @property
    def features(self) -> list[str]:
        """Names of the d features."""
        return [name for column in self.columns for name in column.features]

    def encode(self, rows: pd.DataFrame | Sequence[Mapping[str, Any]]) -> tuple[NDArray[np.float32], list[str]]:
        """Numbers standardised, missing ones as the median; categories one-hot, missing and unseen ones all zero.

        Args:
            rows: n rows; columns that are not there are missing, others are not looked at.

        Returns:
            float32 [n, d], and notes on what counts as missing.
        """
        table = rows if isinstance(rows, pd.DataFrame) else pd.DataFrame(list(rows), index=range(len(rows)))
        absent = pd.Series([None] * len(table), index=table.index, dtype=object)
        done = [column.encode(table.get(column.name, absent)) for column in self.columns]
        matrix = np.column_stack([np.zeros((len(table), 0)), *(block for block, _ in done)])
        return matrix.astype(np.float32), [note for _, note in done if note]

    def check(self, values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """Values that were sent for one patient, by column; all are optional, None is missing.

        Returns:
            The values (numbers as float, categories as str), and notes on what is far outside the training rows or unknown.

        Raises:
            InputError: a column that the model does not have, or a value that is not of its kind. It names the column and not
                the value.
        """
        known = {column.name: column for column in self.columns}
        done: dict[str, Any] = {}
        notes = []
        for name, value in values.items():
            column = known.get(name)
            if column is None:
                has = ", ".join(known) or "none"
                raise InputError(f"clinical: unknown column {str(name)[:40]!r}; the model has {has}")
            if value is None:
                continue
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number and not (column.kind == "category" and isinstance(value, str)):
                wanted = "number" if column.kind == "number" else "text"
                raise InputError(f"clinical: {name} has to be a {wanted} or null")
            if number and not abs(value) <= LARGEST:
                raise InputError(f"clinical: {name} has to be a finite number; leave it out if it is not known")
            if column.kind == "number":
                done[name] = float(value)
                if column.low is not None and column.high is not None:
                    reach = column.high - column.low
                    if not column.low - reach <= value <= column.high + reach:
                        notes.append(f"column {name}: the value is far outside those of the training")
            elif text := clean(value):
                done[name] = text
                note = column.encode(pd.Series([text], dtype=object))[1]
                notes += [note] if note else []
        return done, notes

    def fields(self) -> list[dict[str, Any]]:
        """For a form: name and kind of every column, and minimum, median and maximum, or categories. Units are not known."""
        fields: list[dict[str, Any]] = []
        for one in self.columns:
            about: dict[str, Any] = {"categories": list(one.categories)}
            if one.kind == "number":
                about = {"minimum": one.low, "median": one.median, "maximum": one.high}
            fields.append({"name": one.name, "kind": one.kind, **about})
        return fields
