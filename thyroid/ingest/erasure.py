"""Set the files of erased patients aside while they still lie in the source. No output names them."""

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from thyroid.data import filenames, store
from thyroid.data.store import erased
from thyroid.data.store.erased import Erased
from thyroid.ingest.history import Cohort, History
from thyroid.ingest.listing import ListedFile
from thyroid.ingest.scan_table import ScanTable
from thyroid.storage import mirror


@dataclass(frozen=True)
class Erasure:
    """The erased patients of a cohort.

    Attributes:
        erased: The erased patients of the store.
        cohort: Name of the cohort.
        files: Names of the files in the source that are theirs.
    """

    erased: Erased
    cohort: str
    files: Collection[str] = field(repr=False)

    def concerns(self, name: str) -> bool:
        """Return whether a file of this name belongs to an erased patient."""
        if name in self.files:
            return True
        try:
            return (self.cohort, filenames.parse(name).patient) in self.erased
        except ValueError:
            return False


def set_aside(scans: ScanTable, listed: Erased, history: History, cohort: Cohort, *, home: Path | None) -> Erasure:
    """Quarantine the files of erased patients under pseudonyms, and remove everything else that is known of them.

    Args:
        scans: The scans; rows of erased patients are removed from those in use and from what the store keeps.
        listed: The erased patients of the store.
        history: What the store knew, with the old name of a cohort that gets another one in this run.
        cohort: The cohort of the scans.
        home: Folder of the store, or its copy in the mirror. Copies of the patients' files are removed from the store,
            whose lock the caller must hold. None if there is no store.

    Returns:
        The erased patients of the cohort.
    """
    if home is not None and listed.patients:
        listed = _renamed(listed, home, history, cohort)
    table = scans.table
    theirs = _rows_of_erased(listed, cohort.name, scans)
    names = {path.rsplit("/", 1)[-1] for path in table.loc[theirs, "path"]}
    if home is not None and theirs.any():
        kept_hashes = {*table.loc[~theirs, "phash"].dropna(), *cohort.memory["phash"]}
        lost_hashes = set(table.loc[theirs, "phash"].dropna()) - kept_hashes
        scans.links = [(a, b) for a, b in scans.links if a not in lost_hashes and b not in lost_hashes]
        scans.used, scans.examined = scans.used[~theirs[scans.used.index]].copy(), scans.examined[~theirs]
        _remove_copies(home, scans, table[theirs])
        table.loc[theirs, "path"] = [
            f"{history.source}/erased-{listed.keyed(path)[:16]}" for path in table.loc[theirs, "path"]
        ]
        others = [column for column in table.columns if column not in ("path", "domain", "quarantine_reason")]
        table.loc[theirs, others] = pd.NA
        table.loc[theirs, "quarantine_reason"] = "of a patient who was erased; remove the file from where the scans are"
        scans.notes.append(
            f"{theirs.sum()} files of erased patients still lie in the source, and are set aside; remove them there, "
            "too"
        )
    return Erasure(listed, cohort.name, names)


def _renamed(listed: Erased, home: Path, history: History, cohort: Cohort) -> Erased:
    """Return the erased patients, listed also under the name that their cohort has got in this run."""
    for before in sorted(set(history.memory("cohort")["cohort"].unique()) - set(cohort.memory["cohort"].unique())):
        listed = erased.rename(home, before, cohort.name)
    return listed


def _rows_of_erased(listed: Erased, cohort: str, scans: ScanTable) -> pd.Series:
    """Return which rows belong to erased patients, or are their pictures under other numbers."""
    table = scans.table
    if not listed.patients:
        return pd.Series(False, table.index)
    named = {file.path: _patient(file) for file in scans.files}
    patients = table["patient"].fillna(table["path"].map(named).astype("Int64"))
    # Older releases rounded pseudonyms of more than 15 digits where a file of the same run was quarantined.
    known = {
        patient: (cohort, int(patient)) in listed or (cohort, int(float(patient))) in listed
        for patient in patients.dropna().unique()
    }
    pictures = table["sha256"].map(listed.keyed, na_action="ignore").isin(listed.scans())
    return patients.map(known).eq(True) | pictures


def _patient(file: ListedFile) -> int | None:
    try:
        return file.name().patient
    except ValueError:
        return None


def _remove_copies(home: Path, scans: ScanTable, rows: pd.DataFrame) -> None:
    """Remove the copies of erased patients' files that this run has made or found, unless other scans use them."""
    copies = {mirror.local(copy) for copy in rows["local_path"].dropna()}
    copies = {copy for copy in copies if Path(copy).is_relative_to(home / store.SCANS)}
    paths = set(rows["path"])
    for file in scans.files:
        if file.path in paths and file.entry is not None:
            address = f"{file.root}/{file.entry.name}"
            copies.add(str(store.copy_of(home, address, file.entry.generation)))
    mirror.remove(copies - set(map(mirror.local, scans.examined["local_path"].dropna())))
