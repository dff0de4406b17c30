"""Reads and checks clinical.csv, and encodes its columns as numbers that a model can take.

Research use only. Nothing in this module prints or logs a value of a patient: messages hold names of columns, numbers
of rows, counts and categories.
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
OTHER = "other"
CLIP = 5.0
"""Numbers are clipped at this many standard deviations from the training mean.

A misplaced decimal point, or a value far from those of the training, must not decide alone.
"""

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


def read(file: Path) -> Clinical:
    """Read clinical.csv, which has one row per scan (column filename) or per patient (column patient).

    All other columns are clinical ones. Columns of dates are left out, and values that are not numbers, such as texts
    in a numeric column, count as missing. Spellings that differ only in case, blanks or Unicode form are one category.
    The rules are a pandera schema, and all of its failures are reported.

    Args:
        file: CSV file in UTF-8 with commas.

    Raises:
        InputError: The file does not exist or is not a CSV with commas, the key column is missing, a column or a key
            occurs twice, a key is missing or not a whole number, or there are no columns besides the keys. The message
            counts rows like a spreadsheet: the header is row 1.
    """
    table = _table(file)
    key = next((name for name in KEYS if name in table), None)
    if key is None:
        hint = "; is it separated by semicolons?" if any(";" in column for column in table.columns) else ""
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
    """Read all cells as text, None where missing. The index is the row's number in the file."""
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
    """Return the categories in their most frequent spelling, and how many of them had several spellings."""
    folded = values.map(str.casefold, na_action="ignore")
    spelling = values.groupby(folded).agg(lambda same: same.value_counts(sort=True).index[0])
    several = values.groupby(folded).nunique() > 1
    shown = folded.map(spelling).astype(object)
    # pandas-stubs lacks None among the values
    return shown.where(values.notna(), None), int(several.sum())  # type: ignore[call-overload]


def join(scans: pd.DataFrame, clinical: Clinical) -> tuple[pd.DataFrame, list[str]]:
    """Join the usable columns of clinical.csv to the scans.

    Constant or empty columns, identifiers and free texts are not used, because a model could only learn from them who
    is who.

    Args:
        scans: All scans in use, as rows with path and patient (int), and image (int) where it is known.
        clinical: Result of `read`.

    Returns:
        A table with one row per scan (index of `scans`), float64 for numbers (missing: NaN) and object for categories
        (str; missing: None), and notes on what could not be used.

    Raises:
        InputError: No row belongs to a scan in use.
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


@dataclass(frozen=True)
class Column:
    """Encodes one column as numbers.

    Attributes:
        name: Name of the column.
        kind: "number" or "category".
        missing: Whether a training row lacked the value. If so, an additional feature marks missing values.
        low: Smallest number of the training rows. None if there is none, and for categories.
        median: Median of the training rows' numbers. None if there is none, and for categories.
        high: Largest number of the training rows. None if there is none, and for categories.
        mean: Mean of the training rows' numbers; 0 without numbers.
        scale: Standard deviation of the training rows' numbers; 1 without numbers, or if they are all alike.
        categories: Categories as written, with one feature each. `OTHER` stands for `rare`.
        rare: Categories of too few patients, case folded.
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
    def fit(cls, values: pd.Series, patient: NDArray[Any], minimum: int) -> "Column":
        """Fit the column to training rows.

        Args:
            values: The column's values [n].
            patient: Patient number of every row [n].
            minimum: Number of patients as for `MINIMUM`.
        """
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
        """Return the names of the features of `encode`."""
        names = [self.name] if self.kind == "number" else [f"{self.name} = {one}" for one in self.categories]
        return [*names, f"{self.name} is missing"] if self.missing else names

    def encode(self, values: pd.Series) -> tuple[NDArray[np.float64], str | None]:
        """Return the features [n, len(features)] of values, and a note on those that count as missing, or None."""
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
    """Encodes clinical rows as numbers, by what the training rows held.

    The class needs only numpy and pandas, so that an endpoint can use it.

    Attributes:
        columns: The columns, in the order of the features.
    """

    columns: tuple[Column, ...]

    @classmethod
    def fit(cls, rows: pd.DataFrame, patient: ArrayLike, minimum: int = MINIMUM) -> "Encoder":
        """Fit the encoder to training rows alone.

        Args:
            rows: Rows of `join` [n]. Columns of a numeric dtype are numbers, all others are categories.
            patient: Patient number of every row [n].
            minimum: Number of patients as for `MINIMUM`.
        """
        patients = np.asarray(patient)
        return cls(tuple(Column.fit(rows[name], patients, minimum) for name in rows))

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> "Encoder":
        """Return the encoder from its JSON, as `facts` returns it."""
        lists = ("categories", "rare")
        columns = [one | {name: tuple(one[name]) for name in lists} for one in facts["columns"]]
        return cls(tuple(Column(**one) for one in columns))

    def facts(self) -> dict[str, Any]:
        """Return the encoder as JSON.

        Of the training rows it holds the categories, and the minimum, median, maximum, mean and standard deviation of
        the numbers.
        """
        return asdict(self)

    @property
    def features(self) -> list[str]:
        """Return the names of the d features."""
        return [name for column in self.columns for name in column.features]

    def encode(self, rows: pd.DataFrame | Sequence[Mapping[str, Any]]) -> tuple[NDArray[np.float32], list[str]]:
        """Encode rows.

        Numbers are standardised, and missing ones take the median. Categories are one-hot; missing and unseen ones are
        all zero.

        Args:
            rows: n rows. Columns that do not exist count as missing, and unknown columns are ignored.

        Returns:
            float32 [n, d], and notes on what counts as missing.
        """
        table = rows if isinstance(rows, pd.DataFrame) else pd.DataFrame(list(rows), index=range(len(rows)))
        absent = pd.Series([None] * len(table), index=table.index, dtype=object)
        done = [column.encode(table.get(column.name, absent)) for column in self.columns]
        matrix = np.column_stack([np.zeros((len(table), 0)), *(block for block, _ in done)])
        return matrix.astype(np.float32), [note for _, note in done if note]

    def check(self, values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """Check the values that were sent for one patient.

        Args:
            values: Values by column. All are optional, and None is missing.

        Returns:
            The values (numbers as float, categories as str), and notes on those that are far outside the training rows
            or unknown.

        Raises:
            InputError: The model does not have a column, or a value is not of the column's kind. The message names the
                column and not the value.
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
        """Describe every column for a form: name, kind, and minimum, median and maximum, or categories.

        Units are not known.
        """
        fields: list[dict[str, Any]] = []
        for one in self.columns:
            about: dict[str, Any] = {"categories": list(one.categories)}
            if one.kind == "number":
                about = {"minimum": one.low, "median": one.median, "maximum": one.high}
            fields.append({"name": one.name, "kind": one.kind, **about})
        return fields
