"""Read labels.csv: the class of every scan, and optionally its patient, for scans whose file names do not give them."""

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass

from thyroid import storage
from thyroid.data import tables
from thyroid.data.classes import Classes
from thyroid.errors import InputError

_FILE = ("filename", "file")
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


def read(location: storage.Location, classes: Classes) -> dict[str, Label]:
    """Return the label of every file of a table, by the file's name there.

    Args:
        location: CSV with the columns filename (or file) and label, and optionally patient. Other columns are ignored.
            A suffix #column names another column with the class.
        classes: The classes. Each label must be one of them; case does not matter.

    Raises:
        InputError: There is no such file, a column is missing, or no label is one of the classes.
    """
    place, column = storage.parted(location)
    column = column or "label"
    name = place.rsplit("/", 1)[-1]
    table = tables.read_csv(storage.file(place), place, "labels")
    file_column = next((known for known in _FILE if known in table), None)
    if file_column is None or column not in table:
        missing = "filename" if file_column is None else column
        raise InputError(
            f"{place}: column {missing} is missing; it has {', '.join(table.columns)}"
            + ("" if file_column is None else f"; name the one with the class as {name}#column")
        )
    result: dict[str, Label] = {}
    lines: dict[str, int] = {}
    patients = table["patient"] if "patient" in table else [""] * len(table)
    for line, (file, text, patient) in enumerate(zip(table[file_column], table[column], patients, strict=True), 2):
        key, label = _key(file), _label(text, patient, classes, name)
        if key in result and (result[key].name, result[key].patient) != (label.name, label.patient):
            label = Label(None, reason=f"lines {lines[key]} and {line} of {name} contradict each other")
        result[key], lines[key] = label, line
    if not any(label.name for label in result.values()):
        found = ", ".join(sorted({text.strip() for text in table[column]} - {""})[:10]) or "nothing"
        raise InputError(
            f"{place}: column {column} has none of the classes {', '.join(classes.names)}; it contains {found}"
        )
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
