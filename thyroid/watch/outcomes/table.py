"""Reads outcomes.csv: what pathology found, by patient or by file, as the keyed hashes that the decision log has.

A row that cannot be used is set aside with its reason, and the others are used. Messages hold row numbers and reasons
and never a value, since a patient could be told from it.
"""

import csv
import datetime
import hashlib
import re
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pandas as pd

from thyroid import progress, storage
from thyroid.data import pseudonyms
from thyroid.errors import InputError
from thyroid.imaging import images
from thyroid.storage import ABSENT, Bucket, Folder, Location

MAX_ROWS = 50_000
"""Rows of outcomes.csv."""
MAX_BYTES = 20_000_000
"""Size of outcomes.csv."""
REASONS = {
    "no_key": "give either a file or a patient, and not both",
    "unknown_pathology": "the pathology must be malignant or benign (or M or B)",
    "unreadable_date": "the date must look like 2026-01-31",
    "in_future": "the date is after the last night that this report looks at",
    "file_missing": "the file is missing, unreadable, or larger than an image may be",
    "repeated": "another row says the same of the same patient or file",
    "contradiction": "another row says the opposite of the same patient or file",
    "never_seen": "the log has no decision on this patient or file",
    "decided_after": "every decision on this patient or file came after the outcome",
}
"""The reasons for which a row is set aside, in words."""

_PATHOLOGY = {"malignant": True, "m": True, "benign": False, "b": False}
_PATIENT_LENGTH = 128  # the endpoint takes no longer one
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)
_FIELDS = ("file", "patient", "pathology", "date")


@dataclass(frozen=True)
class Outcomes:
    """The content of outcomes.csv.

    Attributes:
        rows: Rows that can be joined, by their numbers in the file: `key` is "image" or "patient", the column of the
            decisions that `hash` (str) stands in; `malignant` is bool and `date` a datetime.date.
        aside: The numbers of the other rows, by their reason in `REASONS`. The header is row 1.
        count: Number of rows with anything in them.
    """

    rows: pd.DataFrame
    aside: dict[str, list[int]]
    count: int


def read(location: Location, scans: Location, site: str, secret: bytes, night: datetime.date) -> Outcomes:
    """Read outcomes.csv and hash what its rows are about.

    Args:
        location: CSV in UTF-8 with commas and the columns pathology, date, and file or patient or both. A file is named
            relative to the folder of the CSV, or to `scans`.
        scans: Folder, gs:// or s3:// prefix; empty for none.
        site: Cohort within which the patients' numbers are known.
        secret: Key of the hashes.
        night: Last day that an outcome may be of.

    Raises:
        InputError: The file is missing, too large, or no such table.
    """
    places = [storage.at(place) for place in (_folder(location), scans) if place]
    lines = _lines(location)
    found, aside = [], dict[str, list[int]]()
    for number, line in progress.bar(lines.items(), len(lines), "Reading outcomes", "row"):
        reason, key, hashed = "", "", ""
        malignant, date = _PATHOLOGY.get(line["pathology"].casefold()), _date(line["date"])
        if bool(line["file"]) == bool(line["patient"]):
            reason = "no_key"
        elif malignant is None:
            reason = "unknown_pathology"
        elif date is None:
            reason = "unreadable_date"
        elif date > night:
            reason = "in_future"
        elif len(line["patient"]) > _PATIENT_LENGTH:
            reason = "never_seen"
        elif line["patient"]:
            key, hashed = "patient", pseudonyms.of_text(secret, site, line["patient"])
        elif (sha256 := _sha256(places, line["file"])) is None:
            reason = "file_missing"
        else:
            key, hashed = "image", pseudonyms.of_file(secret, sha256)
        if reason:
            aside.setdefault(reason, []).append(number)
        else:
            found.append((number, key, hashed, malignant, date))
    rows = pd.DataFrame(found, columns=["number", "key", "hash", "malignant", "date"]).set_index("number")
    return Outcomes(_once(rows, aside), aside, len(lines))


def set_aside(aside: dict[str, list[int]], reason: str, numbers: Iterable[int]) -> None:
    """Add the numbers of rows to those that were set aside for a reason."""
    if added := [int(number) for number in numbers]:
        aside[reason] = sorted([*aside.get(reason, []), *added])


def _once(rows: pd.DataFrame, aside: dict[str, list[int]]) -> pd.DataFrame:
    """Set aside rows that contradict each other, and all but the earliest of those that say the same."""
    contradict = rows.groupby(["key", "hash"])["malignant"].transform("nunique") > 1
    set_aside(aside, "contradiction", rows.index[contradict])
    rows = rows[~contradict].sort_values("date", kind="stable")
    again = rows.duplicated(["key", "hash"])
    set_aside(aside, "repeated", rows.index[again])
    return rows[~again].sort_index()


def _folder(location: Location) -> str:
    """Return the folder or prefix that a file is in."""
    if storage.is_bucket(location):
        return str(location).rpartition("/")[0]
    return str(Path(location).parent)


def _lines(location: Location) -> dict[int, dict[str, str]]:
    """Return the fields of every row that has any, by the row's number."""
    path = storage.file(location)
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would never end
            raise IsADirectoryError
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{location}: larger than {MAX_BYTES:,} bytes; leave out outcomes of earlier versions")
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream, skipinitialspace=True, strict=True)
            cells = {number: [cell.strip() for cell in line] for number, line in enumerate(reader, 1)}
    except (FileNotFoundError, IsADirectoryError):
        raise InputError(f"{location}: no such file; give a CSV with file or patient, pathology and date") from None
    except (UnicodeDecodeError, csv.Error):
        raise InputError(f"{location}: not a CSV file in UTF-8; save it as UTF-8 with commas") from None
    cells = {number: line for number, line in cells.items() if any(line)}
    header = [name.casefold() for name in cells.pop(min(cells), [])] if cells else []
    if not {"pathology", "date"} <= set(header) or not {"file", "patient"} & set(header):
        raise InputError(f"{location}: needs the columns pathology, date, and file or patient, separated by commas")
    if doubled := [name for name in _FIELDS if header.count(name) > 1]:
        raise InputError(f"{location}: column {doubled[0]} occurs twice; leave one of them")
    if len(cells) > MAX_ROWS:
        raise InputError(f"{location}: more than {MAX_ROWS:,} rows; leave out outcomes of earlier versions")
    return {
        number: dict.fromkeys(_FIELDS, "") | dict(zip(header, line, strict=False)) for number, line in cells.items()
    }


def _date(text: str) -> datetime.date | None:
    try:
        return datetime.date.fromisoformat(text) if _DATE.fullmatch(text) else None
    except ValueError:  # no such day
        return None


def _sha256(places: Sequence[Folder | Bucket], name: str) -> str | None:
    """Return the SHA-256 of the first of these files that there is."""
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or "\0" in name:
        return None
    for place in places:
        try:
            if _size(place, str(path)) > images.MAX_BYTES:
                return None
            data, generation = place.read(str(path))
        except OSError:  # a folder, or not readable
            continue
        if generation != ABSENT:
            return hashlib.sha256(data).hexdigest()
    return None


def _size(place: Folder | Bucket, name: str) -> int:
    if isinstance(place, Folder):
        found = (place.path / name).stat()
        if not stat.S_ISREG(found.st_mode):  # a pipe would never end
            raise IsADirectoryError
        return found.st_size
    return max((entry.size for entry in place.entries(name) if entry.name == name), default=0)
