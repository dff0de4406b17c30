"""The content of clinical.csv for the scans in use: usable columns, and the subgroups that they make."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from thyroid import storage
from thyroid.clinical import clinical_csv
from thyroid.errors import InputError

ALL = "*"
BANDS = 3
"""Columns of numbers with more than `MAX_GROUPS` values are cut into this many bands with about as many scans each."""
MAX_GROUPS = 12
"""A text column with more values than this is not used for subgroups."""


@dataclass(frozen=True, eq=False)
class ClinicalTable:
    """The content of clinical.csv for the scans in use.

    Attributes:
        rows: Usable columns, by the path of the scan.
        groups: Subgroup of every scan in each column, by the path of the scan.
        notes: Notes on what could not be used, in words.
        wanted: Columns that the model may use.
    """

    rows: pd.DataFrame
    groups: pd.DataFrame
    notes: list[str]
    wanted: list[str]

    @classmethod
    def read(cls, location: storage.Location, scans: pd.DataFrame, keep: Collection[str] = ()) -> "ClinicalTable":
        """Read clinical.csv and join it to the scans in use.

        Args:
            location: The file. A suffix such as #age,sex names the columns that the model may use; #* means all.
            scans: Scans in use, with path, patient and image.
            keep: As for `clinical_csv.join`.

        Returns:
            The usable columns and the subgroups of every scan.

        Raises:
            InputError: A requested column cannot be used, or the file cannot be read or joined (see `clinical_csv.read`
                and `clinical_csv.join`).
        """
        file, wanted = parse_location(location)
        table = clinical_csv.read(Path(storage.file(file)))
        rows, notes = clinical_csv.join(scans, table, keep)
        groups, group_notes = subgroups(scans, table)
        if ALL in wanted:
            wanted = list(rows.columns)
        for name in wanted:
            if name not in rows:
                why = [note for note in notes if f"column {name} " in note]
                raise InputError(f"{file}: column {name} cannot be used: {why[0] if why else 'it does not exist'}")
        paths = scans["path"].to_numpy()
        notes = list(dict.fromkeys([*notes, *group_notes]))
        return cls(rows.set_axis(paths), groups.set_axis(paths), notes, wanted)


def parse_location(location: storage.Location) -> tuple[str, list[str]]:
    """Split a location such as clinical.csv#age,sex into the file and the columns that the model may use."""
    file, columns = storage.parted(location)
    return file, [name.strip() for name in columns.split(",") if name.strip()]


def subgroups(scans: pd.DataFrame, table: clinical_csv.Clinical) -> tuple[pd.DataFrame, list[str]]:
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
