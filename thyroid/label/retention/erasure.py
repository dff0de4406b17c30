"""What a labelled folder holds of a patient: listed, and removed.

An entry of the journal says whom it erases (`Erasure`). From then on no bench adds a reading of these frames, shows
them or writes them into the tables. Then the files of the earlier entries are emptied, and the rows of every CSV file
and of tables.json are removed.
"""

import contextlib
import csv
import hashlib
import io
import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from thyroid import storage
from thyroid.data import csv_tables, pseudonyms
from thyroid.errors import InputError
from thyroid.label.journal import FOLDER, Journal, usable
from thyroid.label.readings import Erasure
from thyroid.registry.erasure import Held
from thyroid.registry.patient_data import number_in
from thyroid.storage import ABSENT, ChangedError

LABELS, CLINICAL = "labels.csv", "clinical.csv"
STATE, SUSPECTS = "tables.json", "suspects.json"
CACHE = ".proposals"
"""Folder of the proposals in the folder of results."""
_COLUMNS = ("filename", "path")
"""Columns that name a scan: of the bench's tables, and of lists of suspects."""
_DICOM = re.compile(r"(.+)#([0-9]+)", re.DOTALL)
_ATTEMPTS = 100

_Place = storage.Folder | storage.Bucket
_Row = Mapping[str, str]


@dataclass(frozen=True)
class _Patient:
    """How the patient's files are recognised.

    Attributes:
        number: Number of the patient.
        own: Paths of the patient's files, and pseudonyms of those that are DICOM files.
        others: Paths of files that are another patient's, whatever their names say.
        journal: The journal, which knows what was erased before.
    """

    number: int
    own: frozenset[str]
    others: frozenset[str]
    journal: Journal

    def has(self, name: str) -> bool:
        """Return whether a file with this path, or this end of a path, is the patient's."""
        if name in self.own or self.journal.is_erased(name):
            return True
        if name in self.others:
            return False
        return number_in(name) == self.number or any(path.endswith(f"/{name}") for path in self.own)

    def has_row(self, row: _Row) -> bool:
        """Return whether a row of a table is the patient's."""
        return _number(row) == self.number or self.has(_named(row))

    def frames(self) -> set[str]:
        """Return the paths of the frames in the journal that are the patient's and not erased yet."""
        return {entry.frame for entry in self.journal.entries if entry.frame and self.has(_file(entry.frame)[0])}


def forget(labelled: storage.Location, patient: int, names: Collection[str], delete: bool = False) -> list[Held]:
    """List what a labelled folder holds of a patient and, with `delete`, remove it.

    Benches may run meanwhile. If the process is killed, the next call finishes the erasure.

    Args:
        labelled: Folder, gs:// or s3:// prefix that a bench has written.
        patient: Number of the patient.
        names: Paths of the patient's files below the folder of scans, and pseudonyms of DICOM files, as far as a store
            knows them. A file is also known by its number in labels.csv or, if it has none there, in its name.
        delete: Remove what was found.

    Returns:
        What holds data of the patient.

    Raises:
        InputError: Nothing was labelled there, a table or the journal is damaged, so that it is unknown whether it
            holds the patient, or there are DICOM files and no key in the environment.
    """
    place = storage.at(labelled)
    with usable(place.address):
        journal = Journal(labelled)
        if not journal.entries and place.read(LABELS)[1] == ABSENT:
            raise InputError(
                f"--labelled {labelled}: holds neither a journal nor {LABELS}; give the folder of the bench"
            )
        who = _recognised(place, journal, patient, names)
        found = list(_held(place, who))
        if not delete or not found:
            return found
        paths = {*who.own, *who.frames()}
        while any(not journal.is_erased(path) for path in paths):
            journal.erase(Erasure.of(patient, paths))
            paths = who.frames()  # somebody has read another frame since
        journal.empty()
        remove_proposals(labelled)
        _repeated(place, lambda: _clean(place, who))
        for path in _half_written(place):
            path.unlink(missing_ok=True)
        Journal(labelled)  # replaces the copies of a bucket's entries on this machine
        return found


def cleaned(name: str, data: bytes, address: str, erasures: Sequence[Erasure]) -> bytes:
    """Return the content of a table of the bench without the rows of erased frames.

    Args:
        name: Name of the table.
        data: Its content.
        address: Its address, for errors.
        erasures: Who was erased.

    Raises:
        InputError: It is not a CSV table.
    """

    def is_gone(row: _Row) -> bool:
        scan = _named(row)
        return any(one.names_scan(scan) if name == CLINICAL else one.holds(scan) for one in erasures)

    return _without(data, address, is_gone)[0] if erasures else data


def _recognised(place: _Place, journal: Journal, patient: int, names: Collection[str]) -> _Patient:
    """Return how the patient's files are recognised in a labelled folder."""
    address = storage.below(place.address, LABELS)
    texts = [place.read(LABELS)[0], *(text.encode() for text in _known(place)[0].get(LABELS, ()))]
    rows = [row for data in texts for row in _rows(data, address)[1]]
    numbers = {_named(row): number for row in rows if (number := _number(row)) is not None}
    own = {*names, *(path for path, number in numbers.items() if number == patient)}
    read = [_file(entry.frame) for entry in journal.entries if entry.frame]
    dicom = {(file, frame) for file, frame in [*read, *((_named(row), row.get("frame", "")) for row in rows)] if frame}
    secret = pseudonyms.required_key() if dicom else b""
    for file, frame in dicom:
        aliases = {pseudonyms.file_pseudonym(secret, file, given) for given in ("", frame.removesuffix(".0"))}
        if file in own or aliases & own:
            own |= {file, *aliases}
    return _Patient(patient, frozenset(own), frozenset(numbers.keys() - own), journal)


def _held(place: _Place, who: _Patient) -> Iterator[Held]:
    """Yield what holds data of the patient."""
    journal, frames, found = who.journal, who.frames(), False
    if entries := sum(entry.frame in frames for entry in journal.entries) + len(journal.legible):
        found = True
        yield Held("journal", f"{entries} entries", "emptied; who has read, when and how long stays")
    for name in _csv_names(place):
        if gone := _without(place.read(name)[0], storage.below(place.address, name), who.has_row)[1]:
            found = True
            yield Held("tables", name, f"rows of the patient: {gone}")
    if gone := sum(
        _without(text.encode(), STATE, who.has_row)[1] for texts in _known(place)[0].values() for text in texts
    ):
        found = True
        yield Held("tables", STATE, f"rows of the patient: {gone}")
    if found and storage.at(storage.below(place.address, CACHE)).children():
        yield Held("proposals", CACHE, "all of them, since their names do not tell whose they are")
    if left := _half_written(place):
        yield Held("leftovers", f"{len(left)} files", "half-written")


def _clean(place: _Place, who: _Patient) -> None:
    """Remove the patient's rows from the tables and from tables.json.

    tables.json gets both contents of each table first, as when a bench writes: a table that is in neither counts as
    edited by hand.

    Raises:
        ChangedError: A bench has written one of them meanwhile.
    """
    known, generation = _known(place)
    clean = {
        name: list(dict.fromkeys(_without(text.encode(), STATE, who.has_row)[0].decode() for text in texts))
        for name, texts in known.items()
    }
    if clean != known:
        both = {name: list(dict.fromkeys([*texts, *clean[name]])) for name, texts in known.items()}
        place.write(STATE, _state(both), generation)
    for name in _csv_names(place):
        data, table_generation = place.read(name)
        content, gone = _without(data, storage.below(place.address, name), who.has_row)
        if gone:
            _keep_suspects(place, data, content)
            place.write(name, content, table_generation)
    if clean != known:
        now, generation = _known(place)
        if now != both:
            raise ChangedError(STATE)
        place.write(STATE, _state(clean), generation)


def _keep_suspects(place: _Place, before: bytes, after: bytes) -> None:
    """Let a list of suspects that loses rows still be the one of which suspects.json says how far it was looked at."""
    data, generation = place.read(SUSPECTS)
    old, new = (hashlib.sha256(content).hexdigest().encode() for content in (before, after))
    if generation != ABSENT and old in data:
        place.write(SUSPECTS, data.replace(old, new), generation)


def remove_proposals(labelled: storage.Location) -> None:
    """Remove the proposals of every frame, since their names do not tell whose they are.

    Args:
        labelled: Folder, gs:// or s3:// prefix of the results.
    """
    cache = storage.at(storage.below(labelled, CACHE))
    for model in cache.children():
        cache.remove(model)


def _repeated(place: _Place, step: Callable[[], None]) -> None:
    """Carry out a step, again as long as benches change the tables meanwhile."""
    for _ in range(_ATTEMPTS):
        with contextlib.suppress(ChangedError):
            return step()
    raise InputError(f"{place.address}: the tables are changed by others all the time; stop the bench and try again")


def _known(place: _Place) -> tuple[dict[str, list[str]], str]:
    """Return the contents of each table in tables.json, and its generation.

    Raises:
        InputError: It is damaged.
    """
    data, generation = place.read(STATE)
    try:
        known = json.loads(data)["known"] if generation != ABSENT else {}
        return {str(name): [str(text) for text in texts] for name, texts in known.items()}, generation
    except (ValueError, KeyError, TypeError, AttributeError):
        address = storage.below(place.address, STATE)
        raise InputError(f"{address}: damaged; remove it, and the tables are compared with the journal") from None


def _state(known: Mapping[str, Sequence[str]]) -> bytes:
    return json.dumps({"known": known}, ensure_ascii=False).encode() + b"\n"


def _csv_names(place: _Place) -> list[str]:
    """Return the names of the CSV files, labels.csv last: it tells whose the other rows are."""
    return sorted((name for name in place.children() if name.endswith(".csv")), key=lambda name: (name == LABELS, name))


def _half_written(place: _Place) -> list[Path]:
    """Return what killed writers have left in a folder; a bucket has no such files."""
    if not isinstance(place, storage.Folder) or not place.path.is_dir():
        return []
    with storage.lock(place.path):  # whoever writes holds it
        return [path for folder in (place.path, place.path / FOLDER) for path in folder.glob(".*.tmp")]


def _rows(data: bytes, address: str) -> tuple[list[str], list[dict[str, str]]]:
    """Return columns and rows of a table that names scans; none for a file that does not exist or names no scan."""
    if not data.strip():
        return [], []
    table = csv_tables.parse(data, address)
    if not any(column in table for column in _COLUMNS):
        return [], []
    columns = [str(column) for column in table.columns]
    return columns, [dict(zip(columns, cells, strict=True)) for cells in table.astype(str).to_numpy().tolist()]


def _without(data: bytes, address: str, is_gone: Callable[[_Row], bool]) -> tuple[bytes, int]:
    """Return a table without some of its rows, and how many these are. Without such a row it stays as it is."""
    columns, rows = _rows(data, address)
    kept = [row for row in rows if not is_gone(row)]
    if len(kept) == len(rows):
        return data, 0
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([columns, *(list(row.values()) for row in kept)])
    return buffer.getvalue().encode(), len(rows) - len(kept)


def _named(row: _Row) -> str:
    """Return the name that a row gives its scan."""
    return next(row[column] for column in _COLUMNS if column in row).strip().removeprefix("./")


def _number(row: _Row) -> int | None:
    """Return the patient's number in a row; None if there is none. Spreadsheets turn 2 into 2.0."""
    text = row.get("patient", "").strip().removesuffix(".0")
    return int(text) if text.isdecimal() else None


def _file(frame: str) -> tuple[str, str]:
    """Return the path of a frame's file, and the frame's number in a DICOM file or ""."""
    match = _DICOM.fullmatch(frame)
    return (match[1], match[2]) if match else (frame, "")
