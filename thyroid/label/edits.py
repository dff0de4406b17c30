"""What somebody has changed in a table by hand, and what this says about the frames."""

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pandas as pd
from pydantic import ValidationError

from thyroid.data import csv_tables
from thyroid.errors import InputError
from thyroid.imaging.geometry import Box
from thyroid.ingest.regions import ROI_COLUMNS, box_of
from thyroid.label.frames import Catalogue, Frame, GoneError
from thyroid.label.readings import FEATURES, MarkedRegion, Origin, Reading, Verdict, features_of
from thyroid.metrics import detection

ROIS, LABELS, CLINICAL = "rois.csv", "labels.csv", "clinical.csv"
REQUIRED = {ROIS: ROI_COLUMNS, LABELS: ("filename", "label"), CLINICAL: ("filename",)}
OPTIONAL = {ROIS: ("frame",), LABELS: ("frame", "patient", "tirads", "verdict", "n_rois"), CLINICAL: tuple(FEATURES)}
_SAYS = {ROIS: ROI_COLUMNS[1:], LABELS: ("label", "patient", "verdict"), CLINICAL: tuple(FEATURES)}
"""Columns that an edit can change. The others follow from them."""

_Row = Mapping[str, str]


@dataclass(frozen=True)
class Edit:
    """What was changed about one frame. A field is None if it was not changed.

    Attributes:
        place: File and line, for errors.
        boxes: All boxes of the frame: x, y, width and height in pixels.
        verdict: What the frame shows.
        unread: Whether the row in labels.csv, or the verdict in it, was removed.
        side: Class of the frame.
        features: Features of the largest nodule.
    """

    place: str
    boxes: tuple[Box, ...] | None = None
    verdict: Verdict | None = None
    unread: bool = False
    side: str | None = None
    features: Mapping[str, str] | None = None

    def joined(self, other: "Edit") -> "Edit":
        """Return this edit with what another table says about the same frame."""
        return replace(
            self,
            boxes=self.boxes if other.boxes is None else other.boxes,
            verdict=other.verdict or self.verdict,
            unread=self.unread or other.unread,
            side=self.side if other.side is None else other.side,
            features=self.features if other.features is None else other.features,
        )

    def reading(self, held: Reading | None) -> Reading | None:
        """Return what the frame's reading becomes; None if the frame is open again.

        Args:
            held: What the bench would write into the tables now.

        Raises:
            InputError: The tables contradict each other about this frame, or too much is missing.
        """
        try:
            return self._reading(held)
        except ValidationError as error:
            raise InputError(f"{self.place}: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from None
        except ValueError as error:
            raise InputError(f"{self.place}: {error}") from None

    def _reading(self, held: Reading | None) -> Reading | None:
        regions = () if held is None else held.regions
        verdict = None if held is None else held.verdict
        if self.boxes is not None:
            regions = _moved(regions, self.boxes)
            verdict = Verdict.NODULES if regions else None if verdict is Verdict.NODULES else verdict
        if self.verdict is not None:
            if self.boxes and self.verdict is not Verdict.NODULES:
                raise ValueError(f"verdict is {self.verdict}, but {ROIS} has a box of this frame; remove one of them")
            verdict, regions = self.verdict, regions if self.verdict is Verdict.NODULES else ()
            if verdict is Verdict.NODULES and not regions:
                raise ValueError(f"verdict is {verdict}, but {ROIS} has no box of this frame; add one")
        elif self.unread and not self.boxes:
            return None
        if self.features and not regions:
            raise ValueError("features of a frame without a nodule; remove the row")
        if verdict is None:
            if self.side:
                raise ValueError(
                    "label of a frame that has no reading; give its verdict as well, or give this table as --labels"
                )
            return None
        side = "" if held is None else held.side
        if self.features is not None and regions:
            regions = _with_features(regions, self.features)
        return Reading(verdict=verdict, regions=regions, side=side if self.side is None else self.side)


def _moved(regions: Sequence[MarkedRegion], boxes: Sequence[Box]) -> tuple[MarkedRegion, ...]:
    """Return the regions with these boxes. An unchanged box stays what it is; a moved one keeps its features."""
    left = {region.box: region for region in regions}
    kept = {box: left.pop(box) for box in boxes if box in left}
    result = []
    for box in boxes:
        if box in kept:
            result.append(kept[box])
            continue
        near = max(left, key=lambda old: float(detection.iou([old], [box])[0, 0]), default=None)
        features = {}
        if near is not None and detection.iou([near], [box])[0, 0] > 0:
            features = left.pop(near).features
        x, y, width, height = box
        result.append(
            MarkedRegion(x=x, y=y, width=width, height=height, origin=Origin.IMPORTED, features=dict(features))
        )
    return tuple(result)


def _with_features(regions: Sequence[MarkedRegion], features: Mapping[str, str]) -> tuple[MarkedRegion, ...]:
    largest = Reading(verdict=Verdict.NODULES, regions=tuple(regions)).largest
    return tuple(r.model_copy(update={"features": dict(features)}) if r is largest else r for r in regions)


class Names:
    """The frames by the names that tables may give them, with the rules of `ingest`.

    A name is the path of the file, or as much of its end as is needed. A DICOM file is named by its own name or by its
    pseudonym.

    Args:
        catalogue: The frames.
    """

    def __init__(self, catalogue: Catalogue) -> None:
        """Sort the frames."""
        self._by_last: dict[str, dict[str, list[Frame]]] = {}
        for frame in catalogue.frames:
            for name in {frame.file, frame.pseudonym} - {""}:
                key = _key(name)
                self._by_last.setdefault(key.rsplit("/", 1)[-1], {}).setdefault(key, []).append(frame)

    def of(self, row: _Row) -> list[Frame]:
        """Return the frames that a row means: all of a DICOM file, unless it has a frame's number.

        Raises:
            ValueError: There is no such frame, or several files have this name.
        """
        name = _key(row["filename"])
        found = self._by_last.get(name.rsplit("/", 1)[-1], {})
        matches = [path for path in found if path == name] or [path for path in found if path.endswith(f"/{name}")]
        if not matches:
            raise ValueError("no frame has this filename; correct it or remove the row")
        if len(matches) > 1:
            raise ValueError("several frames have this filename; give the path within the folder of scans")
        frames, number = found[matches[0]], row.get("frame", "")
        if not number or frames[0].number is None:
            return frames
        chosen = [frame for frame in frames if str(frame.number) == number]
        if not chosen:
            raise ValueError("the file has no such frame, or dicom.csv does not name it; correct the number")
        return chosen


@dataclass(frozen=True)
class Table:
    """A table as it was read.

    Attributes:
        name: One of rois.csv, labels.csv and clinical.csv.
        address: Address of the file, for errors.
        columns: Its columns.
        rows: Line and cells of every row, by the path of its frame.
        unknown: Line, name and reason of every row without a frame.
    """

    name: str
    address: str
    columns: tuple[str, ...]
    rows: Mapping[str, Sequence[tuple[int, _Row]]]
    unknown: Sequence[tuple[int, str, str]]

    @classmethod
    def parse(cls, name: str, data: bytes, address: str, names: Names) -> "Table":
        """Parse the content of a table.

        Raises:
            InputError: It is not a CSV table, or lacks a column or has another one than the bench writes.
        """
        table: pd.DataFrame = csv_tables.parse(data, address)
        columns = tuple(column for column in table.columns if column)
        if missing := [column for column in REQUIRED[name] if column not in columns]:
            raise InputError(f"{address}: line 1: column {', '.join(missing)} is missing; add it")
        if extra := [column for column in columns if column not in REQUIRED[name] + OPTIONAL[name]]:
            raise InputError(f"{address}: line 1: the bench does not keep column {extra[0]}; move it to another file")
        rows: dict[str, list[tuple[int, _Row]]] = {}
        unknown = []
        for line, cells in enumerate(table[list(columns)].to_dict("records"), 2):
            row = {str(column): _plain(str(column), str(text)) for column, text in cells.items()}
            if not any(row.values()):
                continue
            try:
                frames = names.of(row)
            except ValueError as error:
                unknown.append((line, _key(row["filename"]), str(error)))
                continue
            for frame in frames:
                rows.setdefault(frame.path, []).append((line, row))
        return cls(name, address, columns, rows, unknown)

    @classmethod
    def absent(cls, name: str, address: str) -> "Table":
        """Return a table that does not exist: it has no rows."""
        return cls(name, address, (*REQUIRED[name], *OPTIONAL[name]), {}, ())

    def says(self, path: str, columns: Sequence[str]) -> frozenset[tuple[str, ...]]:
        """Return the cells of the rows of a frame in these columns."""
        return frozenset(tuple(row.get(column, "") for column in columns) for _, row in self.rows.get(path, ()))


def changed(old: Table, new: Table) -> list[str]:
    """Return the paths of the frames whose rows differ between two states of a table.

    A column that the new state lacks is not changed.
    """
    columns = [column for column in _SAYS[new.name] if column in new.columns]
    paths = dict.fromkeys([*old.rows, *new.rows])
    return [path for path in paths if old.says(path, columns) != new.says(path, columns)]


def find(old: Table, new: Table, catalogue: Catalogue) -> dict[str, Edit]:
    """Return what was changed from one state of a table to the next, by the path of the frame.

    Raises:
        InputError: A changed row names an unknown frame, a box outside its frame, an unknown value, or contradicts
            another row. The message names file and line, never the frame.
    """
    known = {name for _, name, _ in old.unknown}  # such as the rows of a frame that vanished later
    for line, name, reason in new.unknown:
        if name not in known:
            raise InputError(f"{new.address}: line {line}: {reason}")
    result = {}
    for path in changed(old, new):
        frame = catalogue.by_path(path)
        assert frame is not None
        rows = new.rows.get(path, ())
        line = rows[0][0] if rows else 0
        place = f"{new.address}: line {line}" if rows else f"{new.address}: a row that was removed"
        try:
            if new.name == ROIS:
                result[path] = _boxes(new.address, rows, frame, place)
                continue
            if len({tuple(row.values()) for _, row in rows}) > 1:
                raise ValueError(f"contradicts line {rows[1][0]}; remove one of them")
            row = rows[0][1] if rows else None
            if new.name == CLINICAL:
                result[path] = Edit(place, features=_features(row or {}))
            else:
                before = next((row for _, row in old.rows.get(path, ())), None)
                result[path] = _labels(place, row, before, frame, catalogue)
        except ValueError as error:
            raise InputError(f"{place}: {error}") from None
    return result


def _boxes(address: str, rows: Sequence[tuple[int, _Row]], frame: Frame, place: str) -> Edit:
    boxes = []
    for line, row in rows:
        try:
            boxes.append(box_of(SimpleNamespace(**row), frame))
        except ValueError as error:
            raise InputError(f"{address}: line {line}: {error}; correct or remove the row") from None
        except GoneError:
            raise InputError(f"{address}: line {line}: the picture vanished or is damaged; remove the row") from None
    return Edit(place, boxes=tuple(dict.fromkeys(boxes)))


def _labels(place: str, row: _Row | None, before: _Row | None, frame: Frame, catalogue: Catalogue) -> Edit:
    """Return what was changed in the row of a frame in labels.csv.

    Raises:
        ValueError: A cell has an unknown value, or one that cannot be changed here.
    """
    if row is None:
        return Edit(place, unread=True)
    if before is None:
        before = {"label": frame.label, "patient": "" if frame.patient is None else str(frame.patient)}
    if row.get("patient", before.get("patient", "")) != before.get("patient", ""):
        raise ValueError("the patient cannot be changed here; give it in a table of labels to --labels")
    verdict, side, unread = None, None, False
    now, was = row.get("verdict", before.get("verdict", "")), before.get("verdict", "")
    if now != was:
        unread = not now
        if now and now not in list(Verdict):
            raise ValueError(f"verdict {now!r} is unknown; choose from {', '.join(Verdict)}")
        verdict = Verdict(now) if now else None
    if row["label"] != before["label"]:
        side = catalogue.classes.read(row["label"]) if row["label"] else None
        if side is None and (row["label"] or now not in ("", Verdict.UNUSABLE)):
            raise ValueError(
                f"label {row['label']!r} is none of the classes {', '.join(catalogue.classes.names)}; correct it, or "
                f"write the verdict {Verdict.UNUSABLE} to leave the frame out"
            )
    return Edit(place, verdict=verdict, unread=unread, side=side)


def _features(row: _Row) -> dict[str, str]:
    """Return the features in a row of clinical.csv.

    Raises:
        ValueError: A value is unknown.
    """
    return features_of({feature: row[feature] for feature in FEATURES if row.get(feature)})


def _plain(column: str, text: str) -> str:
    """Return a cell as the bench writes it; spreadsheets turn 2 into 2.0."""
    return text.strip() if column == "filename" else text.strip().removesuffix(".0")


def _key(name: str) -> str:
    return unicodedata.normalize("NFC", name.strip().removeprefix("./"))
