"""What the decision log and its archive hold of a patient, or for longer than wanted: listed, and removed.

Endpoints go on writing meanwhile: a file is replaced while its lock (flock) is held, and an endpoint looks, once it has
the lock, whether its file is still the one of that name. A killed erasure leaves every file either as it was or
without the patient; the next call finishes it. What endpoints have sent to a URL is out of reach.
"""

import fcntl
import mmap
import os
import re
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from thyroid import atomic, storage
from thyroid.errors import InputError
from thyroid.records.watch import SHADOW_FOLDER, Decision, Shadowed
from thyroid.registry.erasure import Held
from thyroid.registry.inventory import Row
from thyroid.storage import Location
from thyroid.watch import archive as archived
from thyroid.watch import log

_DAY = re.compile(r"decisions-(\d{4}-\d{2}-\d{2})-.*")


@dataclass(frozen=True)
class _Wanted:
    """Whose decisions go: hashes of patients and of images."""

    patients: frozenset[str]
    images: frozenset[str]

    def rows(self, table: pa.Table) -> pa.Array:
        """Return for each decision of a table whether it goes."""
        patient, image = (
            pc.is_in(table[column].combine_chunks(), pa.array(sorted(hashes), pa.string()))
            for column, hashes in (("patient", self.patients), ("image", self.images))
        )
        return pc.or_(patient, image)

    def has(self, fields: dict[str, object]) -> bool:
        """Return whether a decision goes."""
        return fields["patient"] in self.patients or fields["image"] in self.images

    def named_in(self, text: mmap.mmap, start: int, end: int) -> bool:
        """Return whether a part of a file that is not a decision has one of the hashes as text."""
        return any(text.find(one.encode(), start, end) >= 0 for one in self.patients | self.images)


def forget(
    folder: Location, archive: Location, patients: Collection[str], images: Collection[str], delete: bool = False
) -> list[Held]:
    """List the decisions on a patient in a log and its archive and, with `delete`, remove them.

    Args:
        folder: Folder of the log; empty for none.
        archive: Folder, gs:// or s3:// prefix of the archive; empty for none.
        patients: Hashes of the patient (`pseudonyms.of_patient`).
        images: Hashes of the patient's files (`pseudonyms.of_file`).
        delete: Remove what was found.

    Returns:
        What holds decisions on the patient; and files with lines that cannot be read and do not have any of the hashes
        as text, which stay.

    Raises:
        InputError: There is no such folder, or a file of the archive is damaged, so that it is unknown whether it holds
            the patient.
    """
    wanted = _Wanted(frozenset(patients), frozenset(images))
    # whoever ships decisions to the archive waits, or those that it has just read would come back
    with log.lock(folder) if folder else nullcontext():
        held = [item for path in _files(folder) for item in _file(path, Path(folder), wanted, delete)]
        for name, table in archived.days(archive) if archive else ():
            if not (gone := pc.sum(wanted.rows(table)).as_py()):
                continue
            held.append(Held("archive", name, f"decisions on the patient: {gone}"))
            if delete:
                archived.change(archive, name, lambda present: present.filter(pc.invert(wanted.rows(present))))
        return [*held, *_leftovers(folder, archive, delete)]


def expire(folder: Location, archive: Location, days: int, delete: bool = False) -> list[Row]:
    """List the files of a log and of its archive by age and, with `delete`, remove the old ones.

    Args:
        folder: Folder of the log; empty for none.
        archive: Folder, gs:// or s3:// prefix of the archive; empty for none.
        days: Days (UTC) before today for which decisions are kept; 0 keeps them for ever.
        delete: Remove what is older.

    Returns:
        For the log and the archive one row of what stays and one of what goes, without empty ones.

    Raises:
        InputError: `days` is negative, or there is no such folder.
    """
    if days < 0:
        raise InputError(f"--log-days {days}: give a number of days, or 0 to keep the log for ever")
    first = datetime.now(UTC).date() - timedelta(days) if days else date.min
    rows: list[Row] = []
    if folder:
        with log.lock(folder):
            files = [(_name(path, folder), _day(path), path.stat().st_size) for path in _files(folder)]
            rows += _rows("log", files, first, days)
            for name, day, _ in files:
                if delete and day < first:
                    (Path(folder) / name).unlink(missing_ok=True)
    if archive:
        home = storage.at(storage.below(archive, archived.FOLDER))
        if isinstance(home, storage.Bucket):
            sizes = {entry.name: entry.size for entry in home.entries()}
        else:
            sizes = {name: (home.path / name).stat().st_size for name in home.children()}
        files = [(name, of, size) for name, size in sizes.items() if (of := archived.day(name)) is not None]
        rows += _rows("archive", files, first, days)
        for name, day, _ in files:
            if delete and day < first:
                home.remove(name)
    return rows


def _files(folder: Location) -> list[Path]:
    """Return the files of a log, with those of a candidate behind the champion; none for no log."""
    return [*log.files(folder), *log.shadow_files(folder)] if folder else []


def _name(path: Path, folder: Location) -> str:
    """Return the name of a file of a log below its folder."""
    return path.relative_to(folder).as_posix()


def _rows(kind: str, files: Collection[tuple[str, date, int]], first: date, days: int) -> Iterator[Row]:
    """Yield a row for the files that stay and one for those that go; each file has a name, a day and its bytes."""
    count, size = Counter[bool](), Counter[bool]()
    for _, day, found in files:
        count[day >= first] += 1
        size[day >= first] += found
    kept = f"of the last {days} days" if days else "kept for ever; --log-days removes old ones"
    for stays, reason in ((True, kept), (False, f"older than {days} days")):
        if count[stays]:
            yield Row(kind, f"{count[stays]} files", size[stays], stays, reason)


def _day(path: Path) -> date:
    """Return the day of a log's file: that of its name or, if somebody has renamed it, of its last write."""
    try:
        found = _DAY.fullmatch(path.name)
        return date.fromisoformat(found[1] if found else "")
    except ValueError:
        return datetime.fromtimestamp(path.stat().st_mtime, UTC).date()


def _file(path: Path, folder: Path, wanted: _Wanted, delete: bool) -> Iterator[Held]:
    """Yield what a file of the log holds of the patient, and how much of it cannot be read; remove the former."""
    record = Decision if path.parent == folder else Shadowed
    with _locked(path, exclusive=delete) as descriptor:
        if descriptor is None or not os.fstat(descriptor).st_size:
            return
        count = Counter[str]()
        kept: list[tuple[int, int]] = []
        with mmap.mmap(descriptor, 0, prot=mmap.PROT_READ) as text:
            for start, end in _lines(text):
                kind = _kind(text, start, end, wanted, record)
                count[kind] += 1
                if kind not in ("patient", "named"):
                    kept.append((start, end))
            if delete and len(kept) < count.total():
                _replace(path, descriptor, text, kept)
    if gone := count["patient"] + count["named"]:
        yield Held("log", _name(path, folder), f"decisions on the patient: {gone}")
    if count["damaged"]:
        yield Held(
            "unreadable",
            _name(path, folder),
            f"lines that are no decisions and do not name the patient: {count['damaged']}",
        )


def _kind(text: mmap.mmap, start: int, end: int, wanted: _Wanted, record: type[Decision | Shadowed]) -> str:
    """Return what a line is: "patient", "named" (damaged, with a hash as text), "damaged" or "other"."""
    try:
        if end - start > log.LONGEST:
            raise ValueError
        line = text[start:end]
        return "other" if not line.strip() else "patient" if wanted.has(log.parse(line, record)) else "other"
    except ValueError:
        return "named" if wanted.named_in(text, start, end) else "damaged"


def _lines(text: mmap.mmap) -> Iterator[tuple[int, int]]:
    start = 0
    while start < len(text):
        end = text.find(b"\n", start) + 1 or len(text)
        yield start, end
        start = end


def _replace(path: Path, descriptor: int, text: mmap.mmap, kept: Collection[tuple[int, int]]) -> None:
    """Replace a file by the parts of it that are kept. The caller holds its lock."""
    before = os.fstat(descriptor)
    with atomic.replacing(path) as temporary:
        temporary.touch(mode=0o600)
        with temporary.open("r+b") as written:
            for start, end in kept:
                written.write(text[start:end])
        if os.geteuid() == 0:
            os.chown(temporary, before.st_uid, before.st_gid)  # or an endpoint could not write to it any more
        temporary.chmod(before.st_mode & 0o7777)
    atomic.flush(path.parent)


@contextmanager
def _locked(path: Path, exclusive: bool) -> Iterator[int | None]:
    """Yield a descriptor of a file whose lock is held; None if the file was removed meanwhile."""
    try:
        opened = path.open("r+b" if exclusive else "rb")
    except FileNotFoundError:
        yield None
        return
    with opened:
        fcntl.flock(opened, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
        yield opened.fileno()


def _leftovers(folder: Location, archive: Location, delete: bool) -> Iterator[Held]:
    """Yield what killed writers have left half-written, and remove it with `delete`; the log's lock is held."""
    found = [*Path(folder).glob(".*.tmp"), *(Path(folder) / SHADOW_FOLDER).glob(".*.tmp")] if folder else []
    if archive and not storage.is_bucket(archive) and Path(archive).is_dir():
        with storage.lock(Path(archive)):  # whoever writes holds it
            found += (Path(archive) / archived.FOLDER).glob(".*.tmp")
    if found:
        yield Held("leftovers", f"{len(found)} files", "half-written")
    for path in found if delete else ():
        path.unlink(missing_ok=True)
