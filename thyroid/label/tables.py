"""rois.csv, labels.csv and clinical.csv, written from the journal in the form that `ingest` reads.

The journal is the truth and the tables follow from it. A table that is not as the bench last wrote it was edited by
hand; what was changed there goes into the journal before the table is written again. tables.json keeps what the bench
has written, so that this also works across restarts and with several servers.
"""

import contextlib
import csv
import io
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from pydantic import BaseModel, ValidationError

from thyroid import storage
from thyroid.errors import InputError
from thyroid.ingest import listing
from thyroid.label import edits
from thyroid.label.consensus import Consensus, Rules
from thyroid.label.edits import CLINICAL, LABELS, ROIS, Edit, Table
from thyroid.label.frames import Catalogue, Frame
from thyroid.label.journal import OUTSIDE, ErasedError, Journal, StaleError, usable
from thyroid.label.readings import FEATURES, Reading, Role, Verdict, level
from thyroid.label.retention import erasure
from thyroid.label.retention.erasure import STATE
from thyroid.storage import ABSENT, ChangedError

NAMES = (ROIS, LABELS, CLINICAL)
_ATTEMPTS = 100
_PAUSE = 0.05
"""Longest pause in seconds before the next attempt, after another server was faster."""


class _State(BaseModel):
    """Content of tables.json.

    Attributes:
        known: Content of each table that the bench has written, or was about to write when it ended, the latest last.
            Usually it is one. A table with another content was edited by hand.
    """

    known: dict[str, list[str]] = {}

    def adding(self, contents: Mapping[str, str]) -> "_State":
        """Return the state with a further content of these tables."""
        more = {name: [*(t for t in self.known.get(name, []) if t != text), text] for name, text in contents.items()}
        return _State(known=self.known | more)


class _Files:
    """Files of the folder of results, each of which is read again only if it has changed.

    Args:
        place: The folder or bucket.
    """

    def __init__(self, place: storage.Folder | storage.Bucket) -> None:
        """Read nothing yet."""
        self._place = place
        self._read: dict[str, tuple[str, bytes, str]] = {}
        """Mark, content and generation by name."""

    def read(self, name: str) -> tuple[bytes, str]:
        """Return content and generation of a file, as a folder or bucket does."""
        mark, known = self.mark(name), self._read.get(name)
        if known is None or mark is None or known[0] != mark:
            data, generation = self._place.read(name)
            # A mark from before the reading is the safe one: what is written after it is read next time.
            known = self._read[name] = mark or "", data, generation
        return known[1], known[2]

    def mark(self, name: str) -> str | None:
        """Return a text that changes whenever the file does; None if a change could go unnoticed."""
        if isinstance(self._place, storage.Bucket):
            found = (entry.generation for entry in self._place.entries(name) if entry.name == name)
            return next(found, ABSENT)
        try:
            stat = (self._place.path / name).stat()
        except (FileNotFoundError, NotADirectoryError):
            return ABSENT
        if max(stat.st_mtime, stat.st_ctime) > time.time() - listing.SETTLED_SECONDS:
            return None
        return f"{stat.st_ino}-{stat.st_size}-{stat.st_mtime_ns}-{stat.st_ctime_ns}"

    def forget(self) -> None:
        """Read everything again the next time."""
        self._read.clear()


class Tables:
    """The tables of a folder of results. All methods may be called from several threads.

    Args:
        location: Folder, gs:// or s3:// prefix of the results.
        catalogue: The frames.
        journal: The journal in the same folder.
        rules: When a frame is done.
    """

    def __init__(self, location: storage.Location, catalogue: Catalogue, journal: Journal, rules: Rules) -> None:
        """Read nothing yet."""
        self._place = storage.at(location)
        self._catalogue = catalogue
        self._journal = journal
        self._rules = rules
        self._files = _Files(self._place)
        self._state: tuple[tuple[str, int], _State] = (ABSENT, 0), _State()
        self._erasures = len(journal.erasures)
        catalogue.leave_out(journal.is_erased)
        self._settled: tuple[Sequence[Frame], tuple[list[str], int], list[str]] | None = None
        """Frames, generations and number of entries for which everything is written, and the notes about them."""
        self._guard = threading.Lock()

    def consensus(self, frame: Frame) -> Consensus:
        """Return what the readers of a frame say, as far as the journal is known."""
        return Consensus.of(frame, self._journal.readings(frame.path), self._rules)

    def absorb(self) -> list[str]:
        """Take over into the journal what was edited in the tables by hand, and return notes for people about it.

        Every frame whose rows were changed gets an entry of `OUTSIDE`. It is final until somebody reads the frame
        again. A frame that lost all its boxes, its verdict or its row in labels.csv is open again. A table that does
        not exist is no edit.

        Raises:
            InputError: A table is not a CSV table, has a column that the bench would drop, or a changed row names an
                unknown frame, a box outside its frame or an unknown value. The message names file and line. Nothing
                is taken over and nothing is written until this is mended.
        """
        return self._repeated(lambda: self._take_over()[2])

    def write(self) -> list[str]:
        """Write the tables that are not as the journal says, and return notes for people.

        Edits by hand are taken over first, with the errors of `absorb`. Nothing is written if nothing has changed.

        Raises:
            UnwritableError: The folder cannot be written. Each table is then as it was or complete.
            InputError: As `absorb`, or the bucket cannot be used.
        """
        return self._repeated(self._write_once)

    def _repeated(self, step: Callable[[], list[str]]) -> list[str]:
        """Carry out a step, again as long as others change the tables meanwhile."""
        with self._guard, usable(self._place.address):
            for _ in range(_ATTEMPTS):
                with contextlib.suppress(ChangedError):
                    return step()
                self._files.forget()
                time.sleep(random.uniform(0, _PAUSE))
        raise InputError(f"{self._place.address}: the tables are changed by others all the time; try again later")

    def _write_once(self) -> list[str]:
        """Write the tables.

        What is written goes into tables.json first: a server that ends between the two must not take its own table
        for an edit.

        Raises:
            ChangedError: Somebody else wrote one of them meanwhile.
        """
        state, found, notes = self._take_over()
        entries, frames = len(self._journal.entries), self._catalogue.frames
        now = [*(generation for _, generation in found.values()), self._read_state()[1]], entries
        if self._settled is not None and self._settled[0] is frames and self._settled[1] == now:
            return [*notes, *self._settled[2]]
        self._catalogue.measure({entry.frame for entry in self._journal.entries})
        texts, further = render(self._catalogue, self.consensus)
        due = {name: text for name, text in texts.items() if found[name][0] != text.encode()}
        gone = [name for name in due if found[name][1] == ABSENT and len(state.known.get(name, [])) == 1]
        notes += [f"{name} was missing and was written again" for name in gone if state.known[name][0]]
        # Another server must not miss a table that is only announced: until it is written, none counts as written too.
        first = {name: [""] for name, (_, generation) in found.items() if generation == ABSENT}
        announced = _State(known=first | state.known).adding(texts)
        if announced != state:
            self._write_state(announced, self._read_state(state)[1])
        for name, text in due.items():
            generation = found[name][1]
            if text:
                self._place.write(name, text.encode(), generation)
            else:
                self._place.remove(name)
        if due:
            # Only what was replaced here is forgotten: another server may be about to write what it has announced.
            trimmed = _State(known=announced.known | {name: [texts[name]] for name in due})
            with contextlib.suppress(ChangedError):
                self._write_state(trimmed, self._read_state(announced)[1])
        read = {entry.frame for entry in self._journal.entries if self._catalogue.by_path(entry.frame) is None}
        if lost := sum(bool(self._journal.readings(path)) for path in read):
            further.append(f"{lost} frames that were read are not among the scans; the tables leave them out")
        if not due and announced == state:
            self._settled = frames, now, further
        return [*notes, *further]

    def _take_over(self) -> tuple[_State, dict[str, tuple[bytes, str]], list[str]]:
        """Take over the edits by hand, and return the state, content and generation of each table, and notes.

        Raises:
            ChangedError: Another server does the same.
            InputError: As `absorb`.
        """
        state, generation = self._read_state()
        found = {name: self._files.read(name) for name in NAMES}
        self._journal.refresh()  # after the tables, whose content must not be newer than what replaces it
        if len(self._journal.erasures) > self._erasures:
            self._erasures = len(self._journal.erasures)
            self._catalogue.leave_out(self._journal.is_erased)
            erasure.remove_proposals(self._place.address)  # those that came while the erasure was not known here
            raise ChangedError(STATE)  # since the state may hold what was erased
        edited = {name: self._kept(name, data) for name, (data, current) in found.items() if current != ABSENT}
        edited = {name: data for name, data in edited.items() if not self._wrote(state, name, data)}
        if not edited:
            return state, found, []
        if self._read_state(state)[1] != generation:
            raise ChangedError(STATE)  # another server wrote the tables between the two readings; that is no edit
        count = self._add(self._edits(state, edited))
        state = state.adding({name: data.decode() for name, data in edited.items()})
        self._write_state(state, generation)
        one = "1 frame was" if count == 1 else f"{count} frames were"
        return state, found, [f"{' and '.join(edited)}: edited outside the bench; {one} taken over"] if count else []

    def _kept(self, name: str, data: bytes) -> bytes:
        """Return a table without what was erased, which a bench that did not know of it may have written since."""
        return erasure.cleaned(name, data, storage.below(self._place.address, name), self._journal.erasures)

    def _wrote(self, state: _State, name: str, data: bytes) -> bool:
        known = state.known.get(name)
        return any(data == text.encode() for text in known) if known else data == self._rendered(name).encode()

    def _rendered(self, name: str) -> str:
        return render(self._catalogue, self.consensus)[0][name]

    def _edits(self, state: _State, edited: Mapping[str, bytes]) -> dict[str, Edit]:
        """Return what was edited, by the path of the frame.

        The edit was made in whichever content that the bench has written is closest to it.
        """
        result: dict[str, Edit] = {}
        names = edits.Names(self._catalogue)
        for name, data in edited.items():
            address = storage.below(self._place.address, name)
            new = Table.parse(name, data, address, names)
            known = state.known.get(name) or [self._rendered(name)]
            bases = [
                Table.parse(name, text.encode(), address, names) if text else Table.absent(name, address)
                for text in reversed(known)
            ]
            base = min(bases, key=lambda old: len(edits.changed(old, new)))
            for path, edit in edits.find(base, new, self._catalogue).items():
                result[path] = result[path].joined(edit) if path in result else edit
        return result

    def _add(self, found: Mapping[str, Edit]) -> int:
        """Add the edits to the journal, all or none of them, and return for how many frames something is new."""
        new: dict[str, Reading | None] = {}
        for path, edit in found.items():
            frame = self._catalogue.by_path(path)
            assert frame is not None
            held = self.consensus(frame).reading
            reading = edit.reading(held)
            if reading != held:
                new[path] = reading
        for path, reading in new.items():
            current = self._journal.current(path, OUTSIDE)
            try:
                self._journal.add(
                    reader=OUTSIDE,
                    role=Role.OUTSIDE,
                    frame=path,
                    reading=reading,
                    base=0 if current is None else current.number,
                )
            except (StaleError, ErasedError):
                raise ChangedError(path) from None
        return len(new)

    def _read_state(self, expected: _State | None = None) -> tuple[_State, str]:
        """Return the content of tables.json and its generation.

        Raises:
            ChangedError: It is not what is expected.
            InputError: It is damaged.
        """
        data, generation = self._files.read(STATE)
        try:
            if (generation, self._erasures) != self._state[0]:
                state = _State.model_validate_json(data) if generation != ABSENT else _State()
                known = {
                    name: [self._kept(name, text.encode()).decode() for text in texts]
                    for name, texts in state.known.items()
                }
                self._state = (generation, self._erasures), _State(known=known)
        except ValidationError:
            address = storage.below(self._place.address, STATE)
            raise InputError(f"{address}: damaged; remove it, and the tables are compared with the journal") from None
        state = self._state[1]
        if expected is not None and state != expected:
            raise ChangedError(STATE)
        return state, generation

    def _write_state(self, state: _State, generation: str) -> None:
        self._place.write(STATE, state.model_dump_json().encode() + b"\n", generation)


def render(catalogue: Catalogue, consensus: Callable[[Frame], Consensus]) -> tuple[dict[str, str], list[str]]:
    """Return the content of the tables by their names, and notes for people.

    rois.csv has a row for each nodule and labels.csv one for each frame: the class that its reading gives, or else the
    one that was known; none if the frame is unusable. clinical.csv has the features of the largest nodule of each frame
    that has any. Without such a frame its content is "", which means no file.

    Args:
        catalogue: The frames.
        consensus: What the readers say about a frame.
    """
    dicom = any(frame.number is not None for frame in catalogue.frames)
    shorts = Counter(frame.short for frame in catalogue.frames)
    rois, labels, clinical, ambiguous = [], [], [], 0
    for frame in catalogue.frames:
        reading = consensus(frame).reading
        number = [frame.number or ""] if dicom else []
        regions = () if reading is None else reading.regions
        rois += [(frame.file, *region.box, *number) for region in regions]
        labels.append((frame.file, *_label(frame, reading), *number))
        features = {} if reading is None or reading.largest is None else reading.largest.features
        if features and shorts[frame.short] == 1:
            clinical.append((frame.short, *(features.get(feature, "") for feature in FEATURES)))
        ambiguous += bool(features) and shorts[frame.short] > 1
    last = ("frame",) if dicom else ()
    texts = {
        ROIS: _csv((*edits.REQUIRED[ROIS], *last), rois),
        LABELS: _csv(("filename", "label", "patient", "tirads", "verdict", "n_rois", *last), labels),
        CLINICAL: _csv(("filename", *FEATURES), clinical) if clinical else "",
    }
    why = f"{CLINICAL} lacks {ambiguous} frames whose file name is in several folders; rename these files"
    return texts, [why] if ambiguous else []


def _label(frame: Frame, reading: Reading | None) -> tuple[object, ...]:
    """Return the cells of a row of labels.csv between filename and frame."""
    patient = "" if frame.patient is None else frame.patient
    if reading is None:
        return frame.label, patient, "", "", ""
    label = "" if reading.verdict is Verdict.UNUSABLE else reading.side or frame.label
    return label, patient, level(reading.regions), str(reading.verdict), len(reading.regions)


def _csv(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([header, *rows])
    return buffer.getvalue()
