"""Encodes clinical columns as numbers that a model can take, by what the training rows held.

Research use only. The encoder needs only numpy and pandas, so that an endpoint can use it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from thyroid.clinical.clinical_csv import LARGEST, MINIMUM, clean
from thyroid.errors import InputError
from thyroid.records.clinical import EncoderRecord

OTHER = "other"
CLIP = 5.0
"""Numbers are clipped at this many standard deviations from the training mean.

A misplaced decimal point, or a value far from those of the training, must not decide alone.
"""


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
        shown = [spelling[category] for category in sorted(patients.index[patients >= minimum])]
        if rare and OTHER not in {category.casefold() for category in shown}:
            shown.append(OTHER)
        return cls(name, "category", bool(texts.isna().any()), categories=tuple(shown), rare=rare)

    @property
    def features(self) -> list[str]:
        """Return the names of the features of `encode`."""
        names = [self.name] if self.kind == "number" else [f"{self.name} = {category}" for category in self.categories]
        return [*names, f"{self.name} is missing"] if self.missing else names

    def encode(self, values: pd.Series) -> tuple[NDArray[np.float64], str | None]:
        """Return the features [n, len(features)] of values, and a note on those that count as missing, or None."""
        if self.kind == "number":
            numbers = _finite(values)
            gone = np.isnan(numbers)
            lost = int((gone & values.notna().to_numpy()).sum())
            filled = np.where(gone, self.mean if self.median is None else self.median, numbers)
            block = np.clip((filled - self.mean) / self.scale, -CLIP, CLIP)[:, None]
            note = f"column {self.name}: {lost} values are not finite numbers and count as missing" if lost else None
        else:
            folded = values.map(clean).map(str.casefold, na_action="ignore")
            place = {category.casefold(): number for number, category in enumerate(self.categories)}
            if self.rare:
                place = dict.fromkeys(self.rare, place[OTHER]) | place
            places = np.array([place.get(category, -1) for category in folded], dtype=int)
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
    def from_record(cls, record: EncoderRecord) -> "Encoder":
        """Return the encoder of a model.json."""
        columns = [column.to_dict() for column in record.columns]
        lists = ("categories", "rare")
        return cls(tuple(Column(**column | {name: tuple(column[name]) for name in lists}) for column in columns))

    def to_dict(self) -> dict[str, Any]:
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
                raise InputError(f"clinical: {name} must be a {wanted} or null")
            if number and not abs(value) <= LARGEST:
                raise InputError(f"clinical: {name} must be a finite number; leave it out if it is not known")
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
        for column in self.columns:
            about: dict[str, Any] = {"categories": list(column.categories)}
            if column.kind == "number":
                about = {"minimum": column.low, "median": column.median, "maximum": column.high}
            fields.append({"name": column.name, "kind": column.kind, **about})
        return fields
