"""What belongs to a patient in the data versions of a store: rows, files, and scans that look like the patient's."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from thyroid.data import filenames, tables
from thyroid.data.store import EXAMINED, LINKS, MEMORY, Version
from thyroid.data.store.erased import Erased
from thyroid.data.version import DataVersion
from thyroid.errors import InputError


@dataclass(frozen=True)
class VersionTables:
    """The tables of a data version."""

    stored: Version
    scans: pd.DataFrame
    regions: pd.DataFrame
    quarantine: pd.DataFrame
    examined: pd.DataFrame
    links: pd.DataFrame
    memory: pd.DataFrame


@dataclass(frozen=True)
class PatientData:
    """Everything in a store that belongs to a patient.

    Attributes:
        patient: Patient number.
        cohorts: Names that the patient's cohort has had.
        scans: SHA-256 of the patient's files.
        paths: Paths of these files in data versions of the cohort.
        hashes: Perceptual hashes that only the patient's scans have.
        others: Numbers of other patients whose scans look like the patient's.
    """

    patient: int
    cohorts: frozenset[str]
    scans: frozenset[str]
    paths: frozenset[str]
    hashes: frozenset[str]
    others: list[int]

    @property
    def numbers(self) -> set[int]:
        """The patient's number, and the one that older releases may have made of a number of more than 15 digits."""
        return {self.patient, int(float(self.patient))}

    def in_cohort(self, version: VersionTables) -> bool:
        """Return whether a data version belongs to the patient's cohort."""
        return version.stored.facts.cohort in self.cohorts

    def rows(self, version: VersionTables, table: pd.DataFrame) -> pd.Series:
        """Select the rows of a version's scans or examined files that are the patient's or have the same bytes."""
        own = table["path"].isin(self.paths) if self.in_cohort(version) else False
        return table["sha256"].isin(self.scans) | own

    def remembered(self, version: VersionTables) -> pd.Series:
        """Select the patient's rows in a version's memory."""
        return version.memory["cohort"].isin(self.cohorts) & version.memory["patient"].isin(self.numbers)


def read_tables(folder: Path) -> VersionTables:
    """Read the tables of a data version.

    Raises:
        InputError: One of them is damaged.
    """
    try:
        version, data = Version(folder), DataVersion.read(folder)
        quarantine = tables.read_quarantine(folder, data.facts)
        others = (version.table(name) for name in (EXAMINED, LINKS, MEMORY))
        return VersionTables(version, data.scans, data.regions, quarantine, *others)
    except (InputError, OSError):
        raise InputError(
            f"{folder}: damaged, so it is unknown whether it contains the patient; remove this folder, "
            "then run the command again"
        ) from None


def choose_cohort(versions: list[VersionTables], gone: Erased, given: str) -> str:
    """Return the cohort that was given, or the store's only one.

    Raises:
        InputError: There is no such cohort, or none was given and the store knows several.
    """
    newest = versions[-1]
    known = {*newest.memory["cohort"], newest.stored.facts.cohort, *(names[0] for names in gone.patients)}
    if given and given not in known:
        raise InputError(f"--site {given}: no such cohort in this store; choose one of {', '.join(sorted(known))}")
    current = set(newest.memory["cohort"]) or known
    if not given and len(current) > 1:
        raise InputError(
            f"--forget: the store contains several cohorts, and a number means a different patient in each; "
            f"choose one with --site: {', '.join(sorted(current))}"
        )
    return given or next(iter(current))


def names_of(versions: list[VersionTables], cohort: str) -> frozenset[str]:
    """Return `cohort` and the names that it had in older data versions."""
    newest = versions[-1].memory
    result = {cohort}
    for version in versions:
        for name, old in version.memory.groupby("cohort"):
            if name in result or name in set(newest["cohort"]):
                continue
            both = newest.merge(old[["patient", "phash"]], on=["patient", "phash"])["cohort"].value_counts()
            if len(both) and both.index[0] == cohort:
                result.add(str(name))
    return frozenset(result)


def find_patient(versions: list[VersionTables], patient: int, cohorts: frozenset[str], gone: Erased) -> PatientData:
    """Find what belongs to a patient in the data versions of a store.

    Args:
        versions: Tables of all data versions, oldest first.
        patient: Patient number.
        cohorts: Names that the patient's cohort has had.
        gone: Patients who were erased before, also by a run that was killed.
    """
    own = PatientData(patient, cohorts, frozenset(), frozenset(), frozenset(), [])
    scans, paths, hashes = set[str](), set[str](), set[str]()
    erased_before = gone.scans()  # by a run that was killed
    for version in versions:
        if erased_before:
            every = set(version.scans["sha256"].dropna()) | set(version.examined["sha256"].dropna())
            scans |= {scan for scan in every if gone.keyed(scan) in erased_before}
        hashes |= set(version.memory.loc[own.remembered(version), "phash"])
        if not own.in_cohort(version):
            continue
        for table in (version.scans, version.examined):
            rows = table["patient"].fillna(table["path"].map(number_in).astype("Int64")).isin(own.numbers)
            scans |= set(table.loc[rows, "sha256"].dropna())
            paths |= set(table.loc[rows, "path"])
    own = PatientData(patient, cohorts, frozenset(scans), frozenset(paths), frozenset(), [])
    seen = pd.concat(
        [
            table.assign(gone=own.rows(version, table))
            for version in versions
            for table in (version.scans, version.examined)
        ]
    )
    hashes |= set(seen.loc[seen["gone"], "phash"].dropna())
    of_others = set(seen.loc[~seen["gone"], "phash"].dropna())
    pairs = {pair for version in versions for pair in zip(version.links["a"], version.links["b"], strict=True)}
    near = hashes | {b if a in hashes else a for a, b in pairs if (a in hashes) != (b in hashes)}
    others = set(seen.loc[seen["phash"].isin(near) & ~seen["patient"].isin(own.numbers), "patient"].dropna())
    return PatientData(patient, cohorts, own.scans, own.paths, frozenset(hashes - of_others), sorted(map(int, others)))


def number_in(path: str) -> int | None:
    """Return the patient number in a file's name; None if the name has none."""
    try:
        return filenames.parse(path.rsplit("/", 1)[-1]).patient
    except ValueError:
        return None
