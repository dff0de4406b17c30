"""Read labels.csv: the class of every scan, and optionally its patient, for scans whose file names do not give them."""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from thyroid import storage
from thyroid.data import csv_tables
from thyroid.data.classes import Classes
from thyroid.errors import InputError

_FILE = ("filename", "file")
_Rows = list[tuple[int, str, "Label"]]
"""Line, frame and label of each row of a file."""
_PATIENT = re.compile(r"([0-9]{1,18})(\.0*)?")


@dataclass(frozen=True)
class Label:
    """What labels.csv says about a scan.

    Attributes:
        name: Class of the scan; None if the row cannot be used.
        patient: Patient number; None means the number in the file name.
        reason: Why the row cannot be used; None if it can.
    """

    name: str | None
    patient: int | None = None
    reason: str | None = None

    def of_frame(self, frame: str) -> "Label":
        """Return what the table says about a frame of a DICOM file, which is the same for all its frames here.

        Args:
            frame: Number of the frame, from 1.
        """
        return self


@dataclass(frozen=True)
class FrameLabels(Label):
    """What labels.csv says about a file some of whose rows name a frame.

    The fields of `Label` are those of all rows together: a file that is not DICOM has no frames.

    Attributes:
        frames: Number of the frame and label of each of them; the number is "" for rows that name none.
    """

    frames: tuple[tuple[str, Label], ...] = ()

    def of_frame(self, frame: str) -> Label:
        """Return the label of a frame: that of its own row, or else of a row that names no frame."""
        found = dict(self.frames)
        return found.get(frame) or found.get("") or Label(None, reason=f"frame {frame} has no row in the labels")


def read(location: storage.Location, classes: Classes) -> dict[str, Label]:
    """Return the label of every file of a table, by the file's name there.

    Args:
        location: CSV with the columns filename (or file) and label, and optionally patient and, for DICOM files with
            several scans, frame. Other columns are ignored. A suffix #column names another column with the class.
        classes: The classes. Each label must be one of them; case does not matter.

    Raises:
        InputError: There is no such file, a column is missing, or no label is one of the classes.
    """
    place, column = storage.parted(location)
    column = column or "label"
    name = place.rsplit("/", 1)[-1]
    table = csv_tables.read(storage.file(place), place, "labels")
    file_column = next((known for known in _FILE if known in table), None)
    if file_column is None or column not in table:
        missing = "filename" if file_column is None else column
        raise InputError(
            f"{place}: column {missing} is missing; it has {', '.join(table.columns)}"
            + ("" if file_column is None else f"; name the one with the class as {name}#column")
        )
    files: dict[str, _Rows] = {}
    patients, frames = (table[known] if known in table else [""] * len(table) for known in ("patient", "frame"))
    rows = zip(table[file_column], table[column], patients, frames, strict=True)
    for line, (file, text, patient, frame) in enumerate(rows, 2):
        number = frame.strip().removesuffix(".0")  # as a spreadsheet writes a number
        files.setdefault(_key(file), []).append((line, number, _label(text, patient, classes, name)))
    result = {key: _of_rows(found, name) for key, found in files.items()}
    if not any(label.name for found in files.values() for _, _, label in found):
        found = ", ".join(sorted({text.strip() for text in table[column]} - {""})[:10]) or "nothing"
        raise InputError(
            f"{place}: column {column} has none of the classes {', '.join(classes.names)}; it contains {found}"
        )
    return result


def _of_rows(rows: _Rows, table: str) -> Label:
    """Return the label of a file by all its rows. `table` is the name of labels.csv."""
    whole = _agreed([(line, label) for line, _, label in rows], table)
    if not any(number for _, number, _ in rows):
        return whole
    by_frame: dict[str, list[tuple[int, Label]]] = {}
    for line, number, label in rows:
        by_frame.setdefault(number, []).append((line, label))
    frames = tuple((number, _agreed(some, table)) for number, some in by_frame.items())
    return FrameLabels(whole.name, whole.patient, whole.reason, frames)


def _agreed(rows: Sequence[tuple[int, Label]], table: str) -> Label:
    """Return the last of some labels, or why they contradict each other."""
    (last, result), *others = reversed(rows)
    for line, label in others:
        if (label.name, label.patient) != (result.name, result.patient):
            return Label(None, reason=f"lines {line} and {last} of {table} contradict each other")
    return result


def _key(name: str) -> str:
    """Normalise a file name (NFC), since spreadsheets and file systems encode letters such as ü differently."""
    return unicodedata.normalize("NFC", name.strip().removeprefix("./"))


def _label(text: str, patient: str, classes: Classes, table: str) -> Label:
    """Return the label of a row. `table` is the name of labels.csv, for the reason why a row cannot be used."""
    name = classes.read(text)
    if name is None:
        what = f"{text.strip()!r} is none of the classes {', '.join(classes.names)}" if text.strip() else "is empty"
        return Label(None, reason=f"its label in {table} {what}")
    if not patient.strip():
        return Label(name)
    if (number := _PATIENT.fullmatch(patient.strip())) is None:
        return Label(None, reason=f"its patient in {table} is not a whole number")
    return Label(name, int(number[1]))


def of(labels: Mapping[str, Label], relative: str) -> Label | None:
    """Return the label of a file within the folder of scans, by its path there or else by its last part alone."""
    key = _key(relative)
    return labels.get(key) or labels.get(key.rsplit("/", 1)[-1])
