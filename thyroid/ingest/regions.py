"""Find the scan of every region in rois.csv, and refuse regions that are outside their scan."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from thyroid import storage
from thyroid.data import csv_tables, tables
from thyroid.errors import InputError
from thyroid.imaging.geometry import Box
from thyroid.ingest.erasure import Erasure
from thyroid.ingest.listing import is_scan_name
from thyroid.ingest.scan_table import ScanTable

ROI_COLUMNS = ("filename", "x", "y", "width", "height")
_SIDES = ["x", "y", "width", "height"]
_ROWS = 50_000
"""Rows of rois.csv that are in memory as Python's objects at the same time."""


@dataclass(frozen=True)
class RoiTable:
    """The content of rois.csv.

    Attributes:
        location: Where it is.
        rows: Its rows as text; filename, x, y, width, height and perhaps frame are used.
    """

    location: storage.Location
    rows: pd.DataFrame

    @classmethod
    def read(cls, location: storage.Location) -> "RoiTable":
        """Read the table.

        Raises:
            InputError: There is no such file, it is not a CSV table, or a column is missing.
        """
        rows = csv_tables.read(storage.file(location), str(location), "regions")
        missing = [column for column in ROI_COLUMNS if column not in rows.columns]
        if missing:
            raise InputError(f"{location}: column {', '.join(missing)} is missing; expected {', '.join(ROI_COLUMNS)}")
        return cls(location, rows)

    @property
    def name(self) -> str:
        """Name of the file."""
        return str(self.location).rsplit("/", 1)[-1]


@dataclass
class Regions:
    """The regions of a data version.

    Attributes:
        table: The regions table of the data version.
        refused: File and reason of every row of rois.csv that cannot be used.
    """

    table: pd.DataFrame
    refused: list[tuple[str, str]]

    def forget(self, erasure: Erasure) -> None:
        """Remove the refused rows that name a file of an erased patient."""
        self.refused = [row for row in self.refused if not erasure.concerns(row[0].rsplit("/", 1)[-1])]


def find(scans: ScanTable, source: str, rois: RoiTable | None) -> Regions:
    """Return the regions of the scans in use. Scans of the cropped domain are their own region.

    Args:
        scans: The scans.
        source: Address of the folder of scans.
        rois: Content of rois.csv; None if there is none.

    Raises:
        InputError: There is a rois.csv and none of its regions can be used.
    """
    is_cropped = scans.table["quarantine_reason"].isna() & (scans.table["domain"] == "cropped")
    cropped = scans.table.loc[is_cropped, ["path", "width", "height"]]
    parts = [_given(cropped.assign(index=0, x=0, y=0))]
    refused: list[tuple[str, str]] = []
    if rois is not None:
        frames = _ScansByName(scans, source)
        lines, refused = _usable(frames, rois)
        if lines.empty:
            why = f"; the first error is in {refused[0][0]}: {refused[0][1]}" if refused else " (the table has no rows)"
            raise InputError(f"{rois.location}: no region is usable{why}")
        repeated = lines.duplicated(["place", *_SIDES])
        if repeated.any():
            scans.notes.append(_describe_repeated(lines, repeated, rois))
            lines = lines[~repeated]
        paths = frames.paths.iloc[lines["place"]].array
        del frames  # of a million scans they take 0.1 GB
        tables.release()
        parts.append(_given(lines[_SIDES].assign(path=paths, index=lines.groupby("place").cumcount())))
    return Regions(pd.concat(parts, ignore_index=True), refused)


def _given(rows: pd.DataFrame) -> pd.DataFrame:
    """Return rows of the regions table, given path, index and sides."""
    return rows.assign(source="given").reindex(columns=list(tables.REGIONS)).astype(tables.REGIONS)


def _usable(frames: "_ScansByName", rois: RoiTable) -> tuple[pd.DataFrame, list[tuple[str, str]]]:
    """Return the regions of rois.csv, and file and reason of every row that is refused.

    A region has its line, the place of its scan among the frames, and x, y, width and height.
    """
    found, refused = [], []
    for start in range(0, len(rois.rows), _ROWS):
        rows = rois.rows.iloc[start : start + _ROWS]
        regions: list[tuple[int, ...]] = []
        for line, (row, named) in enumerate(zip(rows.itertuples(), frames.named(rows["filename"]), strict=True), start):
            try:
                regions += [(line + 2, scan.place, *box_of(row, scan)) for scan in frames.of(row, named)]
            except ValueError as error:
                name = str(row.filename)
                # The name of a DICOM file may contain the patient's name.
                file = name if is_scan_name(name) else rois.name
                refused.append((file, f"region in line {line + 2} of {rois.name}: {error}"))
        found.append(np.array(regions, np.int64).reshape(-1, 2 + len(_SIDES)))
    rows_found = np.concatenate(found or [np.empty((0, 2 + len(_SIDES)), np.int64)])
    return pd.DataFrame(rows_found, columns=["line", "place", *_SIDES]), refused


def _describe_repeated(lines: pd.DataFrame, repeated: pd.Series, rois: RoiTable) -> str:
    """Return a note on the lines of rois.csv that repeat another one."""
    equal = lines[lines.duplicated(["place", *_SIDES], keep=False)]
    first = equal.groupby(["place", *_SIDES])["line"].transform("min")
    told = [f"{line} (as {first[index]})" for index, line in lines.loc[repeated, "line"].head(20).items()]
    return f"{repeated.sum()} regions are repeated in {rois.name} and count once: line {', '.join(told)}"


class _Scan(NamedTuple):
    """A frame: its place among the frames in use, and its size in pixels."""

    place: int
    width: int
    height: int


class _ScansByName:
    """The frames in use by the names that rois.csv may give them.

    For a DICOM file, the name is the file's own, and several scans may be frames of it.

    Attributes:
        paths: Path of every frame.
    """

    def __init__(self, scans: ScanTable, source: str) -> None:
        """Sort the frames.

        Args:
            scans: The scans.
            source: Address of the folder of scans.
        """
        is_frame = scans.table["quarantine_reason"].isna() & (scans.table["domain"] == "normal")
        frames = scans.table.loc[is_frame, ["path", "width", "height", "version"]]
        self._own = {file.path: f"{file.root}/{file.relative}" for file in scans.files if file.row is not None}
        self._source, self._table = source, scans.table
        self._dicoms = set(self._own.values())
        self.paths, self._versions = frames["path"], frames["version"]
        self._sizes = frames[["width", "height"]].to_numpy(np.int64)
        self._addresses = self._named_by_people(frames["path"])
        self._names = _last(self._addresses)
        several = self._names.duplicated(keep=False).to_numpy()
        self._namesakes: dict[str, dict[str, list[int]]] = {}
        for place in np.flatnonzero(several).tolist():
            found = self._namesakes.setdefault(self._names.iloc[place], {})
            found.setdefault(self._addresses.iloc[place], []).append(place)

    def named(self, names: pd.Series) -> Iterator[Mapping[str, Sequence[int]]]:
        """Yield the frames that have the last part of each name: their places, by address."""
        last = _last(names)
        places = pc.index_in(pa.array(last), pa.array(self._names))
        addresses = pa.array(self._addresses).take(places)
        for name, place, address in zip(last.tolist(), places.to_pylist(), addresses.to_pylist(), strict=True):
            yield self._namesakes.get(name) or ({} if place is None else {address: [place]})

    def of(self, row: Any, named: Mapping[str, Sequence[int]]) -> list[_Scan]:
        """Return the scans that a row of rois.csv names.

        Args:
            row: The row.
            named: The frames that have the last part of its name.

        Raises:
            ValueError: There is no such scan, it is quarantined, or several scans have this name.
        """
        name = str(row.filename)
        matches = [address for address in named if address.endswith("/" + name.lstrip("./"))]
        matches = [address for address in matches if address == f"{self._source}/{name}"] or matches
        if not matches:
            is_quarantined = name.rsplit("/", 1)[-1] in self._quarantined
            raise ValueError("file is quarantined" if is_quarantined else "no such scan")
        if len(matches) > 1:
            raise ValueError("several scans have this name; give the path within the folder of scans")
        places = named[matches[0]]
        if matches[0] in self._dicoms:
            places = self._of_frame(places, getattr(row, "frame", None))
        return [_Scan(place, *self._sizes[place].tolist()) for place in places]

    def _of_frame(self, places: Sequence[int], frame: Any) -> Sequence[int]:
        """Return the scans of a file that a region applies to: those of its frame, or all if it names none."""
        if frame is None or not str(frame).strip():
            return places
        wanted = str(frame).strip().removesuffix(".0")
        chosen = [place for place in places if self._versions.iloc[place] == wanted]
        if not chosen:
            raise ValueError("no scan of this frame")
        return chosen

    def _named_by_people(self, paths: pd.Series) -> pd.Series:
        """Return addresses, those of DICOM files with the file's own name."""
        return paths.map(self._own).astype("string").fillna(paths) if self._own else paths

    @cached_property
    def _quarantined(self) -> set[str]:
        paths = self._table.loc[self._table["quarantine_reason"].notna(), "path"]
        return set(_last(self._named_by_people(paths)))


def _last(names: pd.Series) -> pd.Series:
    """Return the part of every name after the last slash."""
    return names.str.replace("(?s)^.*/", "", regex=True)


def box_of(row: Any, scan: Any) -> Box:
    """Return x, y, width and height of a region in whole pixels, checked against its scan.

    Args:
        row: Row of rois.csv, with the attributes x, y, width and height as text.
        scan: What it is a region of, with the attributes width and height in pixels.

    Raises:
        ValueError: A cell is not a number, or the region has no size or is outside its scan.
    """
    try:
        x, y, width, height = (float(getattr(row, column)) for column in ROI_COLUMNS[1:])
    except (TypeError, ValueError):
        raise ValueError("x, y, width and height must be numbers") from None
    if not all(math.isfinite(v) for v in (x, y, width, height, x + width, y + height)):
        raise ValueError("x, y, width and height must be numbers")
    if width < 1 or height < 1:
        raise ValueError(f"region has no size (width {width:g}, height {height:g})")
    left, top, right, bottom = math.floor(x), math.floor(y), math.ceil(x + width), math.ceil(y + height)
    if left < 0 or top < 0 or right > scan.width or bottom > scan.height:
        raise ValueError(
            f"region x {x:g}..{x + width:g}, y {y:g}..{y + height:g} is outside the {scan.width}x{scan.height} image"
        )
    return left, top, right - left, bottom - top
