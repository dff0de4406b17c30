"""Find the scan of every region in rois.csv, and refuse regions that are outside their scan."""

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from thyroid import storage
from thyroid.data import tables
from thyroid.errors import InputError
from thyroid.imaging.geometry import Box
from thyroid.ingest.erasure import Erasure
from thyroid.ingest.listing import is_scan_name
from thyroid.ingest.scan_table import ScanTable

ROI_COLUMNS = ("filename", "x", "y", "width", "height")


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
        rows = tables.read_csv(storage.file(location), str(location), "regions")
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
        rows: Rows of the regions table.
        refused: File and reason of every row of rois.csv that cannot be used.
        repeated: Lines of rois.csv that repeat another line, each with that line.
        lines: The line that a region of a scan was first in, by path and box.
        counts: Number of regions that rois.csv gives a scan, by path.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)
    lines: dict[tuple[str, Box], int] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)

    @property
    def table(self) -> pd.DataFrame:
        """The regions table of the data version."""
        return tables.frame(self.rows, tables.REGIONS)

    def add(self, path: str, box: Box, index: int = 0) -> None:
        """Add a region.

        Args:
            path: Path of its scan.
            box: x, y, width and height in pixels of the scan.
            index: Number within the scan, counted from 0.
        """
        x, y, width, height = box
        self.rows.append(
            {"path": path, "index": index, "x": x, "y": y, "width": width, "height": height, "source": "given"}
        )

    def add_line(self, line: int, path: str, box: Box) -> None:
        """Add the region that a line of rois.csv gives a scan, unless another line gives the same."""
        first = self.lines.setdefault((path, box), line)
        if first != line:
            self.repeated.append(f"{line} (as {first})")
            return
        self.add(path, box, self.counts[path])
        self.counts[path] += 1

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
    regions = Regions()
    used = tables.used(scans.table)
    cropped = used[used["domain"] == "cropped"]
    sides = (cropped[column].tolist() for column in ("path", "width", "height"))
    for path, width, height in zip(*sides, strict=True):
        regions.add(path, (0, 0, width, height))
    if rois is not None:
        _add_rois(regions, _ScansByName(scans, source), rois)
        if regions.repeated:
            scans.notes.append(
                f"{len(regions.repeated)} regions are repeated in {rois.name} and count once: "
                f"line {', '.join(regions.repeated[:20])}"
            )
    return regions


def _add_rois(regions: Regions, scans: "_ScansByName", rois: RoiTable) -> None:
    """Add the regions of rois.csv, or the reason why one is refused."""
    for line, row in enumerate(rois.rows.itertuples(), start=2):
        try:
            boxes = [(str(scan.path), box_of(row, scan)) for scan in scans.of(row)]
        except ValueError as error:
            name = str(row.filename)
            # The name of a DICOM file may contain the patient's name.
            file = name if is_scan_name(name) else rois.name
            regions.refused.append((file, f"region in line {line} of {rois.name}: {error}"))
            continue
        for path, box in boxes:
            regions.add_line(line, path, box)
    if not regions.lines:
        refused = regions.refused
        why = f"; the first error is in {refused[0][0]}: {refused[0][1]}" if refused else " (the table has no rows)"
        raise InputError(f"{rois.location}: no region is usable{why}")


class _ScansByName:
    """The frames in use by the names that rois.csv may give them.

    For a DICOM file, the name is the file's own, and several scans may be frames of it.
    """

    def __init__(self, scans: ScanTable, source: str) -> None:
        """Sort the frames.

        Args:
            scans: The scans.
            source: Address of the folder of scans.
        """
        used = tables.used(scans.table)
        addresses = {file.path: f"{file.root}/{file.relative}" for file in scans.files if file.row is not None}
        self._source = source
        self._dicoms = set(addresses.values())
        self._by_name: dict[str, dict[str, list[Any]]] = {}
        for scan in used[used["domain"] == "normal"].itertuples():
            address = addresses.get(str(scan.path), str(scan.path))
            self._by_name.setdefault(address.rsplit("/", 1)[-1], {}).setdefault(address, []).append(scan)
        self._quarantined = {
            addresses.get(path, path).rsplit("/", 1)[-1]
            for path in scans.table.loc[scans.table["quarantine_reason"].notna(), "path"]
        }

    def of(self, row: Any) -> list[Any]:
        """Return the scans that a row of rois.csv names.

        Raises:
            ValueError: There is no such scan, it is quarantined, or several scans have this name.
        """
        name = str(row.filename)
        last = name.rsplit("/", 1)[-1]
        found = self._by_name.get(last, {})
        matches = [address for address in found if address.endswith("/" + name.lstrip("./"))]
        matches = [address for address in matches if address == f"{self._source}/{name}"] or matches
        if not matches:
            raise ValueError("file is quarantined" if last in self._quarantined else "no such scan")
        if len(matches) > 1:
            raise ValueError("several scans have this name; give the path within the folder of scans")
        scans = found[matches[0]]
        return _of_frame(scans, getattr(row, "frame", None)) if matches[0] in self._dicoms else scans


def _of_frame(scans: list[Any], frame: Any) -> list[Any]:
    """Return the scans of a file that a region applies to: those of its frame, or all if it names none."""
    if frame is None or not str(frame).strip():
        return scans
    chosen = [scan for scan in scans if scan.version == str(frame).strip().removesuffix(".0")]
    if not chosen:
        raise ValueError("no scan of this frame")
    return chosen


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
