"""What follows from the journal, kept up to date: the state of frames, who has read what, which suspects are left."""

import contextlib
import hashlib
import statistics
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from pydantic import BaseModel, ValidationError

from thyroid import storage
from thyroid.label import suspects
from thyroid.label.consensus import Consensus, State
from thyroid.label.frames import Catalogue, Frame
from thyroid.label.journal import Journal, usable
from thyroid.label.readings import Role
from thyroid.label.suspects import Suspect

LATEST = 50
"""Readings from which a reader's pace follows."""
FEWEST = 5
"""Readings before a pace is shown."""
SUSPECTS = "suspects.json"
_PEOPLE = (Role.READER, Role.ADJUDICATOR)


@dataclass
class Known:
    """What follows from the journal at one moment.

    Attributes:
        states: State of each frame that somebody has read, by path.
        readers: Names of those whose readings of a frame hold, by path.
        own: Number of each reader's entry of a frame that holds, by reader and path.
        looked: Number of the latest reading of a person that holds, by path; 0 for none.
    """

    states: dict[str, State] = field(default_factory=dict)
    readers: dict[str, frozenset[str]] = field(default_factory=dict)
    own: dict[str, dict[str, int]] = field(default_factory=dict)
    looked: dict[str, int] = field(default_factory=dict)

    def copy(self) -> "Known":
        """Return a copy that does not change any more."""
        own = {name: dict(numbers) for name, numbers in self.own.items()}
        return Known(dict(self.states), dict(self.readers), own, dict(self.looked))


class Knowledge:
    """Follows a journal. Its methods may be called from several threads.

    Args:
        catalogue: The frames.
        journal: The journal.
        consensus: Returns what the readers of a frame say together.
    """

    def __init__(self, catalogue: Catalogue, journal: Journal, consensus: Callable[[Frame], Consensus]) -> None:
        """Know nothing yet; the class documents the arguments."""
        self._catalogue, self._journal, self._consensus = catalogue, journal, consensus
        self._lock, self._seen, self._known = threading.Lock(), 0, Known()
        self._frames: Sequence[Frame] = ()

    def now(self) -> Known:
        """Return what follows from the entries that this process knows."""
        with self._lock:
            entries, frames = self._journal.entries, self._catalogue.frames
            if frames is not self._frames:  # some came or went, or are other pictures now
                self._frames, self._seen, self._known = frames, 0, Known()
            paths = dict.fromkeys(entry.frame for entry in entries[self._seen :])
            self._catalogue.measure(paths)
            for path in paths:
                frame = self._catalogue.by_path(path)
                if frame is not None:  # else a scan that was removed since
                    self._update(frame)
            self._seen = len(entries)
            return self._known.copy()

    def _update(self, frame: Frame) -> None:
        known, path = self._known, frame.path
        readings = self._journal.readings(path)
        known.states[path] = self._consensus(frame).state
        for name in known.readers.get(path, frozenset()) - readings.keys():
            known.own[name].pop(path, None)
        for name, entry in readings.items():
            known.own.setdefault(name, {})[path] = entry.number
        known.readers[path] = frozenset(readings)
        known.looked[path] = max((e.number for e in readings.values() if e.role in _PEOPLE), default=0)

    def pace(self, reader: str) -> float | None:
        """Return the frames per hour of a reader's latest readings; None before there are `FEWEST`."""
        own = [entry for entry in self._journal.entries if entry.reader == reader and entry.undoes is None]
        seconds = [entry.effort.seconds for entry in own[-LATEST:] if entry.effort.seconds > 0]
        return 3600 / statistics.mean(seconds) if len(seconds) >= FEWEST else None


class _Since(BaseModel):
    """Content of suspects.json.

    Attributes:
        digest: SHA-256 of the table of suspects.
        since: Number of entries in the journal when the bench first saw this table. Who reads a suspect later has
            looked at it again.
    """

    digest: str
    since: int


class Suspects:
    """Labels to look at again.

    Args:
        table: Location of suspects.csv; None for none.
        catalogue: The frames. Suspects that are not among them now are left out.
    """

    def __init__(self, table: storage.Location | None, catalogue: Catalogue) -> None:
        """Read the table.

        Raises:
            InputError: It cannot be read.
        """
        self._table: Mapping[str, Suspect] = {} if table is None else suspects.read(table)
        self._digest = "" if table is None else hashlib.sha256(storage.file(table).read_bytes()).hexdigest()
        self._catalogue, self._since = catalogue, 0
        self._matched: tuple[Sequence[Frame], Mapping[str, Suspect]] = (), {}

    @property
    def _found(self) -> Mapping[str, Suspect]:
        frames = self._catalogue.frames
        if self._matched[0] is not frames:
            self._matched = frames, suspects.match(self._table, frames)
        return self._matched[1]

    def of(self, path: str) -> Suspect | None:
        """Return the suspicion about a frame's label; None if there is none."""
        return self._found.get(path)

    def left(self, known: Known) -> list[str]:
        """Return the paths of those that nobody has looked at again, the most suspicious first."""
        return [path for path in self._found if known.looked.get(path, 0) <= self._since]

    def open(self, labelled: storage.Location, entries: int) -> None:
        """Find out in suspects.json, or note there, since when the table is known.

        Args:
            labelled: Location of the results.
            entries: Number of entries in the journal.

        Raises:
            UnwritableError: The folder of results cannot be read or written.
        """
        if not self._table:
            return
        place, self._since = storage.at(labelled), entries
        with usable(place.address):
            data, generation = place.read(SUSPECTS)
            with contextlib.suppress(ValidationError):
                known = _Since.model_validate_json(data)
                if known.digest == self._digest:
                    self._since = known.since
                    return
            new = _Since(digest=self._digest, since=entries).model_dump_json().encode() + b"\n"
            with contextlib.suppress(storage.ChangedError):  # another server has seen it at the same time
                place.write(SUSPECTS, new, generation)
