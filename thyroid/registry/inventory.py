"""The files of a store that a retention keeps or removes: crops, copies, trainings and leftovers of killed runs."""

import contextlib
import os
import re
import time
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from thyroid import storage
from thyroid.data import store
from thyroid.data.store import CROPPED, CROPS, GOING, PIECES, SCANS, VERSIONS, Store
from thyroid.data.store.in_bucket import FILES

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
_PIECE = re.compile(rf"{PIECES}/\.?(examined|cropped)-[0-9a-f]{{64}}\.parquet.*")


@dataclass(frozen=True)
class Row:
    """Something that stays or goes.

    Attributes:
        kind: "model", "data", "crops", "copies", "pieces", "work", "log", "archive" or "leftovers".
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


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file of a store, or a folder with all its files.

    Attributes:
        name: Path below the store.
        size: Size in bytes.
        modified: When it was last written, in seconds since the epoch.
    """

    name: str
    size: int
    modified: float

    @property
    def age(self) -> float:
        """Seconds since the last write."""
        return time.time() - self.modified


class BulkFiles:
    """The files of a store beside its tables: in its folder, or in its bucket and in this machine's mirror of that.

    Args:
        place: The store.
    """

    def __init__(self, place: Store) -> None:
        """Nothing is listed yet."""
        there = storage.at(place.address)
        self._place, self._folder = place, place.folder
        self._bucket = there if isinstance(there, storage.Bucket) else None

    def files(self, part: str) -> list[StoredFile]:
        """Return all files below a folder of the store.

        Args:
            part: Name of the folder.
        """
        found = {file.name: file for file in _on_disk(self._folder, part)}
        found |= {file.name: file for file in self._in_bucket(part)}
        return list(found.values())

    def folders(self, part: str) -> list[StoredFile]:
        """Return what is directly below a folder of the store and is a folder itself, sorted by name.

        A folder counts as written when either the bucket's or the mirror's files were.

        Args:
            part: Name of the folder.
        """
        found: dict[str, StoredFile] = {}
        for path in (self._folder / part).glob("*"):
            if path.is_dir():
                age, size = age_and_size(path)
                found[f"{part}/{path.name}"] = StoredFile(f"{part}/{path.name}", size, time.time() - age)
        own: dict[str, StoredFile] = {}
        for file in self._in_bucket(part):
            if file.name.count("/") > 1:
                name = "/".join(file.name.split("/", 2)[:2])
                before = own.get(name, StoredFile(name, 0, 0.0))
                own[name] = StoredFile(name, before.size + file.size, max(before.modified, file.modified))
        for name, file in own.items():
            here = found.get(name, file)
            found[name] = StoredFile(name, max(file.size, here.size), max(file.modified, here.modified))
        return [found[name] for name in sorted(found)]

    def pieces(self) -> list[StoredFile]:
        """Return what shards have left, half-written pieces included."""
        return [file for file in self.files(PIECES) if _PIECE.fullmatch(file.name)]

    def orphans(self) -> list[StoredFile]:
        """Return the contents of a bucket's small files that the store's index does not name."""
        if self._bucket is None:
            return []
        named = self._place.objects()
        return [file for file in self.files(FILES) if file.name not in named]

    def remove(self, names: Collection[str]) -> None:
        """Remove files by their paths below the store."""
        if self._bucket is not None:
            self._bucket.delete(list(names))
        for name in names:
            (self._folder / name).unlink(missing_ok=True)

    def remove_folder(self, name: str) -> None:
        """Remove a folder by its path below the store."""
        if self._bucket is not None:
            self._bucket.delete([file.name for file in self._in_bucket(name)])
        if (self._folder / name).exists():
            store.remove(self._folder / name)

    def _in_bucket(self, part: str) -> Iterator[StoredFile]:
        if self._bucket is not None:
            for entry in self._bucket.entries(f"{part}/"):
                yield StoredFile(entry.name, entry.size, entry.modified)


def _on_disk(folder: Path, part: str) -> Iterator[StoredFile]:
    """Yield the files below a folder of a store, without following links."""
    for root, _, names in os.walk(folder / part):
        start = Path(root).relative_to(folder).as_posix()
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                found = os.lstat(f"{root}/{name}")
                yield StoredFile(f"{start}/{name}", found.st_size, found.st_mtime)


@dataclass(frozen=True)
class FileGroup:
    """Files of one kind below a folder of the store.

    Attributes:
        kind: Kind of the rows.
        noun: Word for the files, such as "images".
        part: Name of the folder.
        pattern: Pattern of the files' names below the folder. Other files are left alone.
    """

    kind: str
    noun: str
    part: str
    pattern: re.Pattern[str]

    def divide(self, found: BulkFiles, wanted: Collection[str], unsure: str) -> tuple[list[Row], list[str]]:
        """Count the files that stay and those that go.

        Args:
            found: The store's files.
            wanted: Names below the folder that stay.
            unsure: Why it is unknown which files are needed, so that all stay; "" if it is known.

        Returns:
            One row for the files that stay and one for those that go, without empty ones, and the files that go, as
            paths below the store.
        """
        count, size, going = Counter[bool](), Counter[bool](), []
        for file in found.files(self.part):
            name = file.name.removeprefix(f"{self.part}/")
            if not self.pattern.fullmatch(name):
                continue
            stays = bool(unsure) or name in wanted
            count[stays] += 1
            size[stays] += file.size
            if not stays:
                going.append(file.name)
        reasons = {
            True: unsure or "of data versions that stay",
            False: "of no data version that stays" + (", or made by other code" if self.kind == "crops" else ""),
        }
        sides = [side for side in (True, False) if count[side]]
        return [Row(self.kind, f"{count[s]} {self.noun}", size[s], s, reasons[s]) for s in sides], going


CROP_FILES = FileGroup("crops", "images", CROPS, _IMAGE)
"""The store's images that `crop` made."""
COPY_FILES = FileGroup("copies", "files", SCANS, _COPY)
"""The store's copies of a bucket's objects and its pictures of DICOM files."""


def trainings(found: BulkFiles, days: int) -> list[Row]:
    """Return what trainings have left in the store, which goes if nothing has touched it for `days` days.

    Reading feature maps leaves no trace, so a run that uses them touches their folder.
    """
    rows = []
    for folder in found.folders(WORK):
        name = folder.name.removeprefix(f"{WORK}/")
        if _TRAINING.fullmatch(name) and not name.startswith("."):
            reason = f"touched {folder.age / _DAY:.1f} days ago"
            rows.append(Row("work", name, folder.size, folder.age < days * _DAY, reason))
    return rows


def pieces(found: BulkFiles, days: int) -> tuple[list[Row], list[str]]:
    """Return rows for what shards have left, which goes if no run has taken it up for `days` days.

    Returns:
        One row for the pieces that stay and one for those that go, without empty ones, and the pieces that go, as paths
        below the store.
    """
    old = f"of shards, and no run has taken them up for {days} days"
    return _by_age("pieces", "files", found.pieces(), days=days, young="of shards, for the next run", old=old)


def orphans(found: BulkFiles) -> tuple[list[Row], list[str]]:
    """Return rows for what killed runs have left in a bucket, which goes after a day, in the form of `pieces`."""
    old = "of killed runs, a day ago or earlier"
    return _by_age("leftovers", "objects", found.orphans(), days=1, young="may be being written", old=old)


def _by_age(
    kind: str, noun: str, files: Collection[StoredFile], *, days: int, young: str, old: str
) -> tuple[list[Row], list[str]]:
    """Return rows for files of a kind, and the names of those that go.

    Args:
        kind: Kind of the rows.
        noun: Word for the files.
        files: The files.
        days: Days after which a file goes.
        young: Why younger ones stay.
        old: Why older ones go.
    """
    sides: dict[bool, list[StoredFile]] = {True: [], False: []}
    for file in files:
        sides[file.age < days * _DAY].append(file)
    rows = [
        Row(kind, f"{len(found)} {noun}", sum(file.size for file in found), stays, young if stays else old)
        for stays, found in sides.items()
        if found
    ]
    return rows, [file.name for file in sides[False]]


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
