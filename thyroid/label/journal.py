"""The journal of a labelling: every reading ever made, by whom and when. The tables are written from it.

Each entry is an object of its own, journal/00000001.json and so on. It is created only if its number is still free, so
any number of readers, processes and machines may write to the same folder or bucket at once, and nothing is lost.

A patient is erased by an entry, too. Since it takes its number as every other one does, each writer knows of it before
a later entry, and what was said before it can be emptied.
"""

import errno
import hashlib
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from pydantic import ValidationError

from thyroid import errors, storage
from thyroid.errors import InputError
from thyroid.label.readings import Effort, Entry, Erasure, Reading, Role
from thyroid.storage import ABSENT, ChangedError, cache

FOLDER = "journal"
_NAME = re.compile(rf"{FOLDER}/([0-9]{{8}})\.json")
OUTSIDE = "outside"
"""Reader of the entries of a table that was edited by hand; nobody else may have this name."""


class StaleError(Exception):
    """The reader's entry of this frame is not the one that a change builds on, such as after a save in another tab.

    Attributes:
        current: Entry that holds now; None if there is none.
    """

    def __init__(self, current: Entry | None) -> None:
        """Keep the entry."""
        super().__init__("the reading was changed in the meantime")
        self.current = current


class NothingToUndoError(Exception):
    """The reader has no reading left to undo."""


class ErasedError(InputError):
    """The frame is of a patient who was erased, so that nothing is kept about it. The message does not name it."""

    def __init__(self) -> None:
        """Say what to do."""
        super().__init__("the frame was erased with its patient; remove it from the scans and go on with the next one")


class UnwritableError(InputError):
    """The folder of results cannot be written or read, because the disk is full, for example.

    Its cause is the `OSError`.
    """

    @property
    def full(self) -> bool:
        """Whether the disk, or the user's share of it, is full."""
        return getattr(self.__cause__, "errno", None) in (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def usable(address: str) -> Iterator[None]:
    """Turn operating system errors within the block into an `UnwritableError` that names the folder of results."""
    try:
        yield
    except OSError as error:
        raise UnwritableError(
            f"{address}: cannot be read or written ({error.strerror or errors.one_line(error)}); free space or change "
            "the permissions and save again"
        ) from error


class Journal:
    """The entries of a folder of results. All methods may be called from several threads.

    Every method but `current`, `readings` and `last_of` raises `UnwritableError` if the folder cannot be used, and
    `InputError` if the bucket cannot be used or an entry is damaged or missing.

    Args:
        location: Folder, gs:// or s3:// prefix of the results.
    """

    def __init__(self, location: storage.Location) -> None:
        """Read all entries."""
        self._place = storage.at(location)
        self._guard = threading.RLock()
        self._entries: list[Entry] = []
        self._shown: tuple[Entry, ...] = ()
        self._current: dict[str, dict[str, Entry]] = {}  # by frame and reader, undone ones included
        self._holding: dict[str, dict[str, list[Entry]]] = {}  # by frame and reader: readings not undone, latest last
        self._undoable: dict[str, list[Entry]] = {}  # by reader, latest last
        self._erasures: tuple[Erasure, ...] = ()
        self._legible: list[int] = []
        self._load()

    @property
    def entries(self) -> tuple[Entry, ...]:
        """All entries that are known so far, in the order of their numbers."""
        with self._guard:
            if len(self._shown) != len(self._entries):
                self._shown = tuple(self._entries)
            return self._shown

    @property
    def erasures(self) -> tuple[Erasure, ...]:
        """Who was erased, as far as the entries are known."""
        return self._erasures

    @property
    def legible(self) -> tuple[int, ...]:
        """Numbers of the entries that are erased, but were still complete in the folder when they were read."""
        with self._guard:
            return tuple(self._legible)

    def is_erased(self, path: str, patient: int | None = None) -> bool:
        """Return whether a frame or file, or its patient, was erased."""
        return any(one.holds(path) or (patient is not None and one.is_of(patient)) for one in self._erasures)

    def refresh(self) -> list[Entry]:
        """Read the entries that others have added, and return them."""
        with self._guard, usable(self._place.address):
            new: list[Entry] = []
            while True:
                name = _name(len(self._entries) + 1)
                data, generation = self._place.read(name)
                if generation == ABSENT:
                    return new
                new.append(self._take(name, data))

    def current(self, frame: str, reader: str) -> Entry | None:
        """Return a reader's latest entry of a frame, whose reading is None after an undo; None if there is none.

        Args:
            frame: Path of the frame.
            reader: Name of the reader.
        """
        with self._guard:
            return self._current.get(frame, {}).get(reader)

    def readings(self, frame: str) -> dict[str, Entry]:
        """Return the entry that holds for each reader of a frame.

        An entry holds until the reader's next one, or until it is undone; the one before then holds again. An entry
        from outside, which is a table that was edited by hand, ends all that were made before it. If it has no reading,
        it only does that.

        Args:
            frame: Path of the frame.
        """
        with self._guard:
            latest = [stack[-1] for stack in self._holding.get(frame, {}).values() if stack]
        since = max((entry.number for entry in latest if entry.role is Role.OUTSIDE), default=0)
        return {entry.reader: entry for entry in latest if entry.number >= since and entry.reading is not None}

    def add(
        self,
        *,
        reader: str,
        role: Role,
        frame: str,
        reading: Reading | None,
        base: int,
        undoes: int | None = None,
        effort: Effort | None = None,
    ) -> Entry:
        """Add a reading and return its entry.

        Args:
            reader: Name of the reader.
            role: Role of the reader.
            frame: Path of the frame.
            reading: What holds from now on; None for nothing.
            base: Number of the reader's current entry of this frame, which the reading replaces; 0 for none.
            undoes: Number of the entry that this one undoes.
            effort: What it cost.

        Raises:
            StaleError: The reader's current entry has another number.
            ErasedError: The frame was erased.
        """
        with self._guard:
            while True:
                self.refresh()
                if self.is_erased(frame):
                    raise ErasedError
                current = self.current(frame, reader)
                if base != (0 if current is None else current.number):
                    raise StaleError(current)
                entry = Entry(
                    number=len(self._entries) + 1,
                    at=datetime.now(UTC),
                    reader=reader,
                    role=role,
                    frame=frame,
                    reading=reading,
                    before=None if current is None else current.reading,
                    undoes=undoes,
                    effort=effort or Effort(),
                )
                if self._create(entry):
                    return entry

    def erase(self, erasure: Erasure) -> None:
        """Add the entry that erases a patient. What was said before it is not known any more, here and to others.

        The files of the earlier entries are complete until `empty`.
        """
        with self._guard:
            while True:
                self.refresh()
                number, now = len(self._entries) + 1, datetime.now(UTC)
                entry = Entry(
                    number=number, at=now, reader=OUTSIDE, role=Role.OUTSIDE, frame="", reading=None, erases=erasure
                )
                if self._create(entry):
                    return

    def empty(self) -> None:
        """Take frame and readings out of the files of erased entries."""
        with self._guard, usable(self._place.address):
            while self._legible:
                entry = self._entries[self._legible[-1] - 1]
                self._place.write(_name(entry.number), _content(entry))
                self._legible.pop()

    def last_of(self, reader: str) -> Entry | None:
        """Return the entry that the reader's next undo would undo; None if there is none."""
        with self._guard:
            return next(iter(self._undoable.get(reader, [])[-1:]), None)

    def undo(self, reader: str) -> Entry:
        """Take back a reader's latest reading that is not undone yet, and return the entry that does so.

        Its reading is what the reader had said about that frame before.

        Raises:
            NothingToUndoError: There is none.
        """
        with self._guard:
            while True:
                self.refresh()
                last = self.last_of(reader)
                if last is None:
                    raise NothingToUndoError
                current = self.current(last.frame, reader)
                assert current is not None
                try:
                    return self.add(
                        reader=reader,
                        role=last.role,
                        frame=last.frame,
                        reading=last.before,
                        base=current.number,
                        undoes=last.number,
                    )
                except (StaleError, ErasedError):
                    continue  # the same reader was faster in another tab, or the frame has just been erased

    def _create(self, entry: Entry) -> bool:
        """Write an entry, and return whether nobody else took its number meanwhile."""
        name, data = _name(entry.number), _content(entry)
        try:
            with usable(self._place.address):
                self._place.write(name, data, ABSENT)
        except ChangedError:
            return False
        self._take(name, data)
        return True

    def _take(self, name: str, data: bytes) -> Entry:
        """Add an entry that was read or written to what is known."""
        address = storage.below(self._place.address, name)
        try:
            entry = Entry.model_validate_json(data, extra="ignore")  # a newer release may have added fields
        except ValidationError:
            raise InputError(f"{address}: damaged entry of the journal; restore the file from a copy") from None
        if _name(entry.number) != name or entry.number != len(self._entries) + 1:
            raise InputError(f"{address}: entry {entry.number} of the journal has this name; restore the file")
        if entry.erases is not None:
            self._forget(entry.erases)
        elif not entry.erased and self.is_erased(entry.frame):  # such as one that older code has added
            self._legible.append(entry.number)
            entry = entry.emptied()
        self._entries.append(entry)
        if not entry.frame:
            return entry
        self._current.setdefault(entry.frame, {})[entry.reader] = entry
        stack = self._holding.setdefault(entry.frame, {}).setdefault(entry.reader, [])
        undoable = self._undoable.setdefault(entry.reader, [])
        if entry.undoes is None:
            stack.append(entry)
            undoable.append(entry)
        else:
            stack[:] = [other for other in stack if other.number != entry.undoes]
            undoable[:] = [other for other in undoable if other.number != entry.undoes]
        return entry

    def _forget(self, erasure: Erasure) -> None:
        """Take what an erasure is about out of what is known."""
        self._erasures += (erasure,)
        gone = {frame for frame in self._current if erasure.holds(frame)}
        for place, entry in enumerate(self._entries):
            if entry.frame in gone:
                self._entries[place] = entry.emptied()
                self._legible.append(entry.number)
        for frame in gone:
            del self._current[frame], self._holding[frame]
        for reader, stack in self._undoable.items():
            self._undoable[reader] = [entry for entry in stack if entry.frame not in gone]
        self._shown = ()

    def _load(self) -> None:
        """Read all entries, those of a bucket in parallel."""
        with self._guard, usable(self._place.address):
            if isinstance(self._place, storage.Bucket):
                self._load_bucket(self._place)
                names = [entry.name for entry in self._place.entries(f"{FOLDER}/")]
            else:
                folder = self._place.path / FOLDER
                names = [f"{FOLDER}/{path.name}" for path in folder.iterdir()] if folder.is_dir() else []
            self.refresh()  # after the listing, so that nothing that was listed is unknown
        last = max((int(found[1]) for name in names if (found := _NAME.fullmatch(name))), default=0)
        if last > len(self._entries):
            name = storage.below(self._place.address, _name(len(self._entries) + 1))
            raise InputError(f"{name}: missing, and entry {last} of the journal exists; restore the file from a copy")

    def _load_bucket(self, bucket: storage.Bucket) -> None:
        """Read the entries that a bucket has now, by way of the user's cache: one after the other takes minutes."""
        listed = [entry for entry in bucket.entries(f"{FOLDER}/") if _NAME.fullmatch(entry.name)]
        key = hashlib.sha256(f"{bucket.address}/{FOLDER}".encode()).hexdigest()[:32]
        with cache.folder_for(key) as folder:
            wanted = [(entry, cache.path_within(folder, entry.name)) for entry in listed]
            copies = {entry.name: copy for entry, copy in bucket.download(wanted, "journal")}
            for entry in listed:
                copy = copies.get(entry.name)
                if copy is None or entry.name != _name(len(self._entries) + 1):
                    return
                self._take(entry.name, copy.read_bytes())


def _content(entry: Entry) -> bytes:
    return entry.model_dump_json().encode() + b"\n"


def _name(number: int) -> str:
    return f"{FOLDER}/{number:08d}.json"
