"""Reads the descriptors of nodules from a CSV, one row per scan or per patient, and joins them to the scans.

Research use only. The words are those of `thyroid.tirads`. A cell that is empty or whose word is unknown counts as
missing. Messages hold names of columns, counts, and words that at least two patients share.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from thyroid import storage, tirads
from thyroid.clinical import clinical_csv
from thyroid.clinical.clinical_csv import Clinical
from thyroid.clinical.clinical_table import ALL, parse_location
from thyroid.command import nearest
from thyroid.data import duplicates
from thyroid.errors import InputError

MOST_WORDS = 5
"""Unknown words of a column that a note names."""
LONGEST = 40
"""Characters of an unknown word that a note shows."""


@dataclass(frozen=True, eq=False)
class DescriptorTable:
    """The descriptors of the scans in use.

    Attributes:
        rows: By the path of the scan, a column for each descriptor of `columns`: the values that the cell names
            (frozenset of str, as `tirads.parse` returns it), or None where they are missing.
        columns: Name of the CSV's column by descriptor, in the order of `tirads.DESCRIPTORS`.
        notes: What was left out or contradicts itself, in words.
    """

    rows: pd.DataFrame
    columns: dict[str, str]
    notes: list[str]

    @classmethod
    def read(cls, location: storage.Location, scans: pd.DataFrame) -> Self:
        """Read the descriptors and join them to the scans in use.

        Scans of a patient may have different words, since a patient may have several nodules. Near-duplicates may not:
        where their words differ, they count as missing.

        Args:
            location: The file. A suffix such as #shape,margin=margins names the columns: a name that is a descriptor's,
                or DESCRIPTOR=COLUMN. Without it, every column is read whose name is known.
            scans: Scans in use, with path, patient, image, group and phash.

        Raises:
            InputError: The file cannot be read, no row is of a scan in use, or the columns cannot be used: there is
                none, one does not exist or is named twice, or holds no known word.
        """
        name, table, columns = _read(location)
        used = Clinical(table.key, table.rows[[table.key, *columns.values()]], [])
        try:
            joined, notes = clinical_csv.join(scans, used, keep=list(columns.values()))
        except InputError as error:
            raise InputError(_renamed(str(error), name)) from None
        notes = [_renamed(note, name) for note in notes]
        rows = pd.DataFrame(index=scans.index)
        unknown = {}
        for descriptor, column in columns.items():
            rows[descriptor], unknown[descriptor] = _words(joined[column], descriptor)
        copies = _copies(rows, scans)
        for descriptor, column in columns.items():
            told = _describe_unknown(joined[column][unknown[descriptor]], scans["patient"])
            found = [told, *_settle(rows, descriptor, scans["patient"], copies)]
            notes += [f"{name}: column {column}: {note}" for note in found if note]
        return cls(rows.set_axis(scans["path"].to_numpy()), columns, notes)

    def labels(self, paths: Sequence[str], descriptor: str, value: str) -> NDArray[np.float64]:
        """Return whether scans show a value: 1 or 0, NaN where it is not known, [n].

        Args:
            paths: Paths of the scans [n].
            descriptor: One of `tirads.DESCRIPTORS`.
            value: One of its values.
        """
        if descriptor not in self.rows:
            return np.full(len(paths), np.nan)
        cells = self.rows[descriptor].loc[list(paths)]
        return np.array([np.nan if cell is None else float(value in cell) for cell in cells], np.float64)


def check(location: storage.Location) -> None:
    """Check a table of descriptors before there are scans to join it to.

    Args:
        location: As `DescriptorTable.read` takes it.

    Raises:
        InputError: The file or its columns cannot be used.
    """
    _read(location)


def _read(location: storage.Location) -> tuple[str, Clinical, dict[str, str]]:
    """Return the file's name, its content, and the column of each descriptor, which holds a known word.

    Raises:
        InputError: It cannot be used.
    """
    place, wanted = parse_location(location)
    try:
        table = clinical_csv.read(Path(storage.file(place)))
    except InputError as error:
        if "filename occurs twice" in str(error):
            raise InputError(
                f"{error}; instead of a table with a row per frame, such as the bench's labels.csv, give its "
                "clinical.csv"
            ) from None
        raise
    columns = _columns(place, wanted, table)
    for descriptor, column in columns.items():
        if column not in table.rows or not _words(table.rows[column], descriptor)[0].map(bool).any():
            values = ", ".join(tirads.DESCRIPTORS[descriptor])
            raise InputError(f"{place}: column {column} holds no word for {descriptor}; expected {values}")
    return place.rsplit("/", 1)[-1], table, columns


def _columns(place: str, wanted: Sequence[str], table: Clinical) -> dict[str, str]:
    """Find the column of each descriptor, in the order of `tirads.DESCRIPTORS`.

    Args:
        place: The file, for messages.
        wanted: What the location names: a column, or DESCRIPTOR=COLUMN; empty or `ALL` for all that are known.
        table: The file's content. Columns that were left out, since they hold dates or mixtures with numbers, do not
            exist.

    Returns:
        The columns. Without names, empty ones are left out, such as those of the bench that no reader has used.

    Raises:
        InputError: There is none, one does not exist, or one is named twice.
    """
    given = [str(column) for column in table.rows if column != table.key]
    if not wanted or ALL in wanted:
        filled = [column for column in given if table.rows[column].notna().any()]
        pairs = [(found, column) for column in filled if (found := tirads.column(column))]
        if not pairs:
            raise InputError(
                f"{place}: no column with words is named like a descriptor ({', '.join(tirads.DESCRIPTORS)}); name the "
                f"columns, such as {place}#margin=COLUMN"
            )
    else:
        pairs = [_pair(place, text, given) for text in wanted]
    for side, what in ((0, "descriptor"), (1, "column")):
        name, count = Counter(pair[side] for pair in pairs).most_common(1)[0]
        if count > 1:
            others = " and ".join(pair[1 - side] for pair in pairs if pair[side] == name)
            raise InputError(f"{place}: {what} {name} is named twice ({others}); choose one with #DESCRIPTOR=COLUMN")
    order = list(tirads.DESCRIPTORS)
    return dict(sorted(pairs, key=lambda pair: order.index(pair[0])))


def _pair(place: str, text: str, given: Sequence[str]) -> tuple[str, str]:
    """Return the descriptor and the column that a part of a location names.

    Raises:
        InputError: One of the two does not exist.
    """
    left, equals, right = (part.strip() for part in text.partition("="))
    descriptor, column = tirads.column(left), right if equals else left
    if descriptor is None:
        hint = nearest(left, tirads.DESCRIPTORS)
        known = ", ".join(tirads.DESCRIPTORS)
        raise InputError(f"{place}: {left} is no descriptor{hint} (the descriptors are {known})")
    if column not in given:
        raise InputError(f"{place}: column {column} does not exist, or holds dates or numbers{nearest(column, given)}")
    return descriptor, column


def _words(cells: pd.Series, descriptor: str) -> tuple[pd.Series, pd.Series]:
    """Return the values that cells name, None where there are none, and which cells have an unknown word."""
    codes, different = pd.factorize(cells)
    texts = [clinical_csv.clean(value) for value in different]
    known = np.empty(len(texts) + 1, object)  # the last one is for missing cells, whose code is -1
    known[:-1] = [None if text is None else tirads.parse(descriptor, text) for text in texts]
    # pandas-stubs lacks objects among the values
    words: Any = pd.Series(known[codes], cells.index, dtype=object)
    return words, pd.Series((codes >= 0) & words.isna().to_numpy(), cells.index)


def _describe_unknown(cells: pd.Series, patient: pd.Series) -> str:
    """Return a note on cells with unknown words, "" without any.

    It names words that at least two patients share: another text may be about one patient.
    """
    if cells.empty:
        return ""
    texts = cells.map(lambda value: (clinical_csv.clean(value) or "")[:LONGEST])
    patients = patient[cells.index].groupby(texts).nunique().sort_values(ascending=False, kind="stable")
    shared = list(patients.index[patients > 1])
    named = ", ".join(f'"{word}"' for word in shared[:MOST_WORDS])
    more = ", ..." if named and len(patients) > len(shared[:MOST_WORDS]) else ""
    listed = f" ({named}{more})" if named else ""
    return f"{_count(len(cells), 'scan has', 'scans have')} a word that is not known{listed}, which counts as missing"


def _copies(rows: pd.DataFrame, scans: pd.DataFrame) -> pd.Series:
    """Return a number that near-duplicates share, of the scans of groups with different words.

    Args:
        rows: Values by descriptor (index of `scans`).
        scans: Scans in use, with group and phash.
    """
    differing = np.zeros(len(scans), bool)
    for descriptor in rows:
        differing |= (_texts(rows, str(descriptor)).groupby(scans["group"]).transform("nunique") > 1).to_numpy()
    hashes = scans["phash"][differing]
    pairs = duplicates.near_duplicates(hashes) if len(hashes) else []
    return pd.Series(duplicates.groups(range(len(hashes)), pairs), hashes.index)


def _texts(rows: pd.DataFrame, descriptor: str) -> pd.Series:
    return rows[descriptor].map(lambda values: tirads.cell(descriptor, values), na_action="ignore")


def _settle(rows: pd.DataFrame, descriptor: str, patient: pd.Series, copies: pd.Series) -> list[str]:
    """Empty the cells of near-duplicates whose words differ, and return notes on these and on contradicting views.

    Args:
        rows: Values by descriptor, of which the column `descriptor` is changed.
        descriptor: One of `tirads.DESCRIPTORS`.
        patient: Patient of each scan.
        copies: Result of `_copies`.
    """
    known = pd.DataFrame({"patient": patient, "text": _texts(rows, descriptor)}).dropna()
    several = known["text"].groupby(copies.reindex(known.index)).transform("nunique") > 1
    disputed = known.index[several]
    rows.loc[disputed, descriptor] = None
    left = known.drop(disputed)
    patients = int((left.groupby("patient")["text"].nunique() > 1).sum())
    notes = []
    if len(disputed):
        notes.append(f"{len(disputed)} near-duplicate scans have different words, which count as missing")
    if patients:
        notes.append(f"{_count(patients, 'patient has', 'patients have')} scans with different words, which all count")
    return notes


def _count(number: int, one: str, several: str) -> str:
    return f"{number} {one if number == 1 else several}"


def _renamed(message: str, name: str) -> str:
    """Return a message of `clinical_csv` with the name of the file that was read."""
    return message.replace("clinical.csv", name)
