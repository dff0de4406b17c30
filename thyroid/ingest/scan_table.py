"""The table of a run's scans, which the rules of the step narrow down to those in use."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from thyroid.data import tables
from thyroid.data.classes import Classes
from thyroid.errors import InputError
from thyroid.ingest import dicom_csv
from thyroid.ingest.examine import Examined
from thyroid.ingest.labels import Label
from thyroid.ingest.listing import ListedFile

_DECIDING = ["domain", "class", "patient", "split", "synthetic"]


class ScanTable:
    """The state of a run: every file, the scans in use, and why the others are quarantined.

    Attributes:
        files: Those of the listed files that later rules need: of DICOM scans, and of scans that could not be read.
        examined: One row per file as it was read, which the store keeps.
        looked_at: Number of files that had to be read; the others were known.
        table: One row per file with its class and side, and a quarantine reason where it cannot be used.
        used: The rows of `table` that are not quarantined, with the same index and the small columns that decide about
            groups and splits, which are decided here; see `number_pictures` and `in_use`.
        links: Pairs of perceptual hashes that are near-duplicates, among these scans and those of earlier runs.
        duplicate_groups: Number of groups of several scans that are near-duplicates of each other.
        notes: Sentences for people on what the run decided.
    """

    def __init__(self, files: Sequence[ListedFile], examined: Examined, classes: Classes, *, has_labels: bool) -> None:
        """Give every scan its class, and quarantine scans without one.

        Args:
            files: The files as they were listed.
            examined: The files as they were read.
            classes: The classes.
            has_labels: Whether there is a labels.csv. If so, it alone gives the classes.
        """
        self.examined = examined.rows
        # A million files take 0.4 GB.
        unread = set(self.examined.loc[self.examined["local_path"].isna(), "path"])
        self.files = [file for file in files if file.row is not None or file.path in unread]
        self.looked_at = examined.looked_at
        self.table = _classified(self.examined, files if has_labels else None, classes)
        self.used = tables.used(self.table, _DECIDING).copy()
        self.links: list[tuple[str, str]] = []
        self.duplicate_groups = 0
        self.notes: list[str] = []
        self._lines = {file.path: file.row.line for file in self.files if file.row is not None and file.row.line}

    def number_pictures(self, memory: pd.DataFrame) -> pd.DataFrame:
        """Give scans with equal perceptual hashes one number, the column picture of `used`.

        Rules compare these numbers, since every search among a million hashes would need half a gigabyte.

        Args:
            memory: Scans that the store remembers, with phash.

        Returns:
            `memory` with the same numbers in the column picture.
        """
        tables.release()
        hashes = pa.array(pd.concat([self.table["phash"], memory["phash"]]))
        ends = pc.fill_null(pc.utf8_slice_codeunits(hashes, -1), "")
        numbers = np.empty(len(hashes), np.int32)
        for end in ends.unique():  # a search among hashes copies them, so it is for some of them at a time
            rows = np.flatnonzero(pc.equal(ends, end).to_numpy(zero_copy_only=False))
            some = hashes.filter(pc.equal(ends, end))
            numbers[rows] = rows[pc.index_in(some, value_set=some).to_numpy()]
        self.used["picture"] = numbers[self.used.index]
        return memory.assign(picture=numbers[len(self.table) :])

    def linked_pictures(self) -> NDArray[np.int32]:
        """Return the `links` among scans in use as numbers of pictures, [k, 2]."""
        sides = pa.array([side for pair in self.links for side in pair], pa.large_string())
        linked = sides.unique()
        places = pc.index_in(pa.array(self.table["phash"]), value_set=linked).fill_null(-1).to_numpy()
        places = places[self.used.index]
        pictures = np.full(len(linked), -1, np.int32)
        pictures[places[places >= 0]] = self.used["picture"].to_numpy()[places >= 0]
        pairs: NDArray[np.int32] = pictures[pc.index_in(sides, value_set=linked).to_numpy()].reshape(-1, 2)
        return pairs[(pairs >= 0).all(axis=1)]

    def quarantine(self, reasons: pd.Series) -> None:
        """Quarantine scans in use.

        Args:
            reasons: Reason (text) by the index of the scan.
        """
        if reasons.empty:
            return
        self.table.loc[reasons.index, "quarantine_reason"] = reasons.astype("string")
        self.used = self.used[~self.used.index.isin(reasons.index)].copy()

    def in_use(self, *columns: str) -> pd.DataFrame:
        """Return `used` with more columns of `table`. Their texts are copies: a million hashes take 264 MB."""
        tables.release()
        return pd.concat([self.used, tables.used(self.table, columns)], axis=1)

    def quarantined(self) -> pd.DataFrame:
        """Return file and reason of every quarantined file, with its line in dicom.csv if it has one."""
        bad = self.table.loc[self.table["quarantine_reason"].notna(), ["path", "quarantine_reason"]]
        bad.columns = pd.Index(["file", "reason"])
        if self._lines:
            lined = list(map(self._with_line, bad["file"], bad["reason"]))
            bad["reason"] = pd.array(lined, "string")
        return bad

    def require_any(self, source: str) -> None:
        """Check that there is a usable scan.

        Args:
            source: Address of the scans, for error messages.

        Raises:
            InputError: There is none.
        """
        if self.used.empty:
            path, reason = self.table["path"].iloc[0], self.table["quarantine_reason"].iloc[0]
            raise InputError(
                f"{source}: none of the {len(self.table)} files is usable; the first is {Path(path).name}: "
                f"{self._with_line(path, reason)}"
            )

    def require_every_class(self, source: str, classes: Classes) -> None:
        """Check that there is a usable scan of every class.

        Args:
            source: Address of the scans, for error messages.
            classes: The classes.

        Raises:
            InputError: A class has no usable scan.
        """
        for name in classes.names:
            if not (self.used["class"] == name).any():
                raise InputError(
                    f"{source}: no usable scan of class {name} among {len(self.used)}; every class needs scans. "
                    "Give the class as the first letter of the file names (B for benign, M for malignant), as the "
                    f"label in {dicom_csv.NAME}, or in the table of labels"
                )

    def _with_line(self, path: str, reason: str) -> str:
        """Prefix `reason` with the scan's line in dicom.csv. Lines move, so they are not stored in the tables."""
        line = self._lines.get(path)
        return reason if line is None else f"line {line} of {dicom_csv.NAME}: {reason}"


def _classified(examined: pd.DataFrame, labelled: Sequence[ListedFile] | None, classes: Classes) -> pd.DataFrame:
    """Return `examined` with class and side, and with a quarantine reason for scans that have no class.

    Args:
        examined: Rows whose label is the class given by the file's name or by dicom.csv.
        labelled: The files with what labels.csv says about them; None if there is no such table.
        classes: The classes.
    """
    table = examined.copy()
    usable = table["quarantine_reason"].isna()
    if labelled is None:
        name = table["label"].map({own: classes.read(own) for own in table["label"].dropna().unique()})
        lacking = usable & name.isna()
        names = ", ".join(classes.names)
        reason = table.loc[lacking, "label"] + f" is none of the classes {names}; give their table with --labels"
    else:
        unknown = Label(None, reason="it has no row in the table of labels")
        given = {file.path: file.label or unknown for file in labelled}
        dicoms = {file.path for file in labelled if file.row is not None}
        label = table["path"].map(given)
        # Which frame the middle one is, is known only now.
        known = zip(label, table["path"], table["version"].fillna(""), strict=True)
        label = pd.Series([row.of_frame(frame) if path in dicoms else row for row, path, frame in known], table.index)
        name = label.map(lambda row: row.name)
        lacking = usable & name.isna()
        reason = label[lacking].map(lambda row: row.reason)
    table["class"] = name.where(usable).astype("string")
    table.loc[lacking, "quarantine_reason"] = reason.astype("string")
    table["label"] = table["class"].map(classes.side, na_action="ignore").astype("string")
    return table
