"""The files of a store that a retention keeps or removes: crops, copies, trainings and leftovers of killed runs."""

import os
import re
import time
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from thyroid import storage
from thyroid.data.store import CROPPED, CROPS, GOING, SCANS, VERSIONS, Store

WORK = "work"
"""Folder of the store with trainings and locators, stopped or finished, and with feature maps of frames."""

_DAY = 86400
_LEFT = (
    f".{CROPPED}.*",
    f"{VERSIONS}/.incoming-*",
    f"{CROPS}/*/.*.jpg.*",
    f"{SCANS}/*/.*.jpg.*",
    f"{SCANS}/*/.*.png.*",
)
# If somebody's own folder was given as the store, files with other names are theirs and must stay.
_IMAGE = re.compile(r"(normal|cropped)/[^.].*-[0-9a-f]{16}\.jpg")
_COPY = re.compile(r"[0-9a-f]{2}/[0-9a-f]{62}\.(jpg|png)")
_TRAINING = re.compile(r".+-[0-9a-f]{16}")


@dataclass(frozen=True)
class Row:
    """Something that stays or goes.

    Attributes:
        kind: "model", "data", "crops", "copies", "work", "log", "archive" or "leftovers".
        name: Name of the version or folder, or how many files.
        bytes: Size in bytes.
        stays: Whether it stays.
        reason: Why it stays or goes.
    """

    kind: str
    name: str
    bytes: int
    stays: bool
    reason: str


@dataclass(frozen=True)
class FileGroup:
    """Files of one kind, two levels below a folder of the store.

    Attributes:
        kind: Kind of the rows.
        noun: Word for the files, such as "images".
        home: Folder of folders.
        pattern: Pattern of the files' names with their folder. Other files are left alone.
    """

    kind: str
    noun: str
    home: Path
    pattern: re.Pattern[str]

    @classmethod
    def crops(cls, store: Store) -> "FileGroup":
        """Return the store's images that `crop` made."""
        return cls("crops", "images", store.crops, _IMAGE)

    @classmethod
    def copies(cls, store: Store) -> "FileGroup":
        """Return the store's copies of a bucket's objects and its pictures of DICOM files."""
        return cls("copies", "files", store.folder / SCANS, _COPY)

    def divide(self, wanted: Collection[str], unsure: str) -> tuple[list[Row], list[Path]]:
        """Count the files that stay and those that go.

        Args:
            wanted: Names that stay.
            unsure: Why it is unknown which files are needed, so that all stay; "" if it is known.

        Returns:
            One row for the files that stay and one for those that go, without empty ones, and the files that go.
        """
        count, size, going = Counter[bool](), Counter[bool](), []
        for folder in sorted(self.home.iterdir()) if self.home.is_dir() else ():
            if not folder.is_dir() or folder.is_symlink():
                continue
            with os.scandir(folder) as entries:
                for entry in entries:
                    name = f"{folder.name}/{entry.name}"
                    if not self.pattern.fullmatch(name):
                        continue
                    stays = bool(unsure) or name in wanted
                    count[stays] += 1
                    size[stays] += entry.stat(follow_symlinks=False).st_size
                    if not stays:
                        going.append(self.home / name)
        reasons = {
            True: unsure or "of data versions that stay",
            False: "of no data version that stays" + (", or made by other code" if self.kind == "crops" else ""),
        }
        sides = [side for side in (True, False) if count[side]]
        return [Row(self.kind, f"{count[s]} {self.noun}", size[s], s, reasons[s]) for s in sides], going


def trainings(place: Store, days: int) -> list[Row]:
    """Return what trainings have left in the store, which goes if nothing has touched it for `days` days.

    Reading feature maps leaves no trace, so a run that uses them touches their folder.
    """
    rows = []
    for folder in sorted((place.folder / WORK).glob("*")):
        if _TRAINING.fullmatch(folder.name) and not folder.name.startswith(".") and folder.is_dir():
            age, size = age_and_size(folder)
            reason = f"touched {age / _DAY:.1f} days ago"
            rows.append(Row("work", folder.name, size, age < days * _DAY, reason))
    return rows


def leftovers(place: Store) -> list[Row]:
    """Return what killed runs have left half-written, which goes after a day, or half-removed, which goes at once."""
    rows = []
    for pattern in _LEFT:
        for path in sorted(place.folder.glob(pattern)):
            age, size = age_and_size(path)
            reason = "half-written a day ago or earlier" if age >= _DAY else "may be being written"
            rows.append(Row("leftovers", path.relative_to(place.folder).as_posix(), size, age < _DAY, reason))
    for home in (VERSIONS, WORK):
        for path in sorted((place.folder / home).glob(f"{GOING}*")):
            name = path.relative_to(place.folder).as_posix()
            rows.append(Row("leftovers", name, age_and_size(path)[1], False, "half-removed"))
    return rows


def size_of(place: storage.Folder | storage.Bucket) -> int:
    """Return the bytes of all files of a folder or bucket."""
    if isinstance(place, storage.Bucket):
        return sum(entry.size for entry in place.entries())
    return age_and_size(place.path)[1]


def age_and_size(path: Path) -> tuple[float, int]:
    """Return the seconds since the last write in a file or folder, and its bytes. Files that vanish do not count."""
    latest, size = 0.0, 0
    for entry in (path, *path.rglob("*")):
        try:
            found = entry.lstat()
        except FileNotFoundError:
            continue
        latest = max(latest, found.st_mtime)
        size += 0 if entry.is_dir() else found.st_size
    return time.time() - latest, size
