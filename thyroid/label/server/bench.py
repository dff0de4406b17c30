"""The bench behind the routes: which frame a reader gets, what is shown with it, and what becomes of a reading.

A reader never gets what others say about a frame. Only an adjudicator does, without their names, and only once they
contradict each other.
"""

import bisect
import contextlib
import hashlib
import logging
import secrets
import threading
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from thyroid import errors, logs, storage
from thyroid.data import classes
from thyroid.data.classes import Classes
from thyroid.errors import InputError
from thyroid.label import agreement
from thyroid.label.agreement import Agreement
from thyroid.label.consensus import Consensus, Rules, State
from thyroid.label.frames import Catalogue, Frame, GoneError
from thyroid.label.journal import Journal, UnwritableError
from thyroid.label.order import Queue, Ranking, Reservations, Standing, queue_for
from thyroid.label.proposals import Proposer
from thyroid.label.readings import Effort, Entry, Reading, Role
from thyroid.label.retention.erasure import CACHE
from thyroid.label.server.knowledge import Knowledge, Suspects
from thyroid.label.server.readers import Reader
from thyroid.label.tables import Tables

log = logging.getLogger("thyroid.label")

PROPOSALS = 5
"""Proposed boxes that are shown, the best ones."""
PAUSE = 0.5
"""Seconds between two writings of the tables, so that those of many readings are one."""
LOOK = 20.0
"""Seconds between two looks at what other servers and people have changed."""
SCANS = 60.0
"""Seconds between two looks at which scans there are."""
REST = 20
"""How many times as long as such a look the pause after it is at least."""
NOTES = 5
"""Notes about the tables that are shown, the latest ones."""


@dataclass(frozen=True)
class LabelOptions:
    """The options of the bench.

    Attributes:
        scans: Folder, gs:// or s3:// prefix with the scans.
        labelled: Folder, gs:// or s3:// prefix for the journal, rois.csv, labels.csv and clinical.csv; it may exist.
        labels: CSV with filename and label, and optionally patient, for scans whose names do not tell them.
        classes: Classes of the scans, such as B|M or 2<3|4a<4b<4c<5.
        suspects: CSV of labels to look at again, as python -m thyroid.suspects writes it.
        second: Share of the patients whose frames a second reader reads, 0 to 1.
        seed: Seed of the order of the frames and of the draw of second readings.
    """

    scans: storage.Location
    labelled: storage.Location
    labels: storage.Location | None = None
    classes: str = classes.DEFAULT
    suspects: storage.Location | None = None
    second: float = 0.0
    seed: int = 2026


class AdjudicationError(Exception):
    """Only an adjudicator may do this, and only with a frame whose readers contradict each other."""


class Bench:
    """All that the routes share. Its methods may be called from several threads.

    Args:
        options: The options.
        endpoint: Address of the endpoint that proposes boxes; "" for none.
        token: Bearer token of the endpoint; None if it needs none.
        is_starting: Whether the endpoint was started with the bench, and is not away before it has had its time.
    """

    def __init__(
        self, options: LabelOptions, endpoint: str = "", token: str | None = None, *, is_starting: bool = False
    ) -> None:
        """Read the scans, the journal and the suspects. Nothing is written before `start`.

        Raises:
            InputError: One of them cannot be read, or an option is not valid.
        """
        self._options = options
        self.rules = Rules(second=options.second, seed=options.seed)
        self.classes: Classes = classes.parse(options.classes)
        own = (options.labelled, *((options.suspects,) if options.suspects else ()))
        self.catalogue = Catalogue.read(options.scans, self.classes, options.labels, own)
        self.journal = Journal(options.labelled)
        self._tables = Tables(options.labelled, self.catalogue, self.journal, self.rules)
        self._suspects = Suspects(options.suspects, self.catalogue)
        self._knowledge = Knowledge(self.catalogue, self.journal, self._tables.consensus)
        cache = storage.below(str(options.labelled), CACHE)
        self._proposer = Proposer(
            endpoint, token, cache, self.catalogue.bytes, is_starting=is_starting, is_gone=self._is_gone
        )
        self._ranking = Ranking(options.seed)
        self._reservations, self._giving = Reservations(), threading.Lock()
        self._seed, self._salt = options.seed, secrets.token_bytes(16)
        self._shown_as: dict[tuple[str, str], Frame] = {}
        """What was shown to a reader and is not read yet, by name and path."""
        self._next_look = time.monotonic() + SCANS
        self._changed, self._stopped = threading.Event(), threading.Event()
        self._measuring = threading.Lock()
        self._measured: tuple[int, Sequence[Frame], Agreement] | None = None
        self._notes: list[str] = []
        self._problem = self._scans_problem = ""
        self._writer = threading.Thread(target=self._keep_tables, name="tables", daemon=True)

    def start(self) -> None:
        """Take over what was edited by hand, write the tables, and begin to ask for proposals.

        Raises:
            UnwritableError: The folder of results cannot be written.
        """
        self._suspects.open(self._options.labelled, len(self.journal.entries))
        self._write()
        self._want()
        self._proposer.start()
        self._writer.start()

    def close(self) -> None:
        """Write what is not written yet, and end the threads."""
        self._stopped.set()
        self._changed.set()
        if self._writer.is_alive():
            self._writer.join()
            with contextlib.suppress(InputError):  # the readings are in the journal
                self._write()
        self._proposer.stop()
        self.catalogue.keep_sizes()

    def next(self, reader: Reader, queue: Queue, frame: Frame | None, skip: Collection[str]) -> dict[str, Any]:
        """Return what the page shows next, as JSON fields.

        Args:
            reader: Who reads.
            queue: What the reader works on.
            frame: A certain frame; None for the next one of the queue.
            skip: Paths of frames that the reader does not want now.

        Raises:
            AdjudicationError: The reader may not adjudicate, or not this frame.
            GoneError: The certain frame was removed, or is damaged.
        """
        if queue is Queue.ADJUDICATE:
            self._check_adjudicator(reader, frame)
        if frame is None:
            frame = self._given(reader, queue, skip)
        elif self.catalogue.by_path(frame.path) is None:
            raise GoneError(f"{frame.path}: is not among the scans any more")
        elif queue is Queue.ORDER:
            self._reservations.keep(reader.name, frame)
        shared = {"queue": queue, "progress": self.progress(reader), "notes": self.notes}
        return shared | ({"frame": None} if frame is None else self._shown(reader, queue, frame))

    def _given(self, reader: Reader, queue: Queue, skip: Collection[str]) -> Frame | None:
        """Return the next frame of a queue, which is then kept for the reader; None if there is none."""
        with self._giving:  # a frame that is saved after the look at the queue must not be free before this is over
            while True:
                waiting = queue_for(reader.name, queue, self._standing())
                if queue is Queue.REVIEW:  # these are read; others must be able to read them, too
                    found = next((one for one in waiting if one.path not in skip), None)
                else:
                    found = self._reservations.take(reader.name, waiting, skip)
                self.catalogue.measure([] if found is None else [found.path])
                if found is None or self.catalogue.by_path(found.path) is found:
                    return found  # else it cannot be shown, and is not in the queue any more

    def _shown(self, reader: Reader, queue: Queue, frame: Frame) -> dict[str, Any]:
        """Return the fields of one frame. Of the readings, only the reader's own is among them."""
        current = self.journal.current(frame.path, reader.name)
        own = self.own(frame, reader)
        mine = own.reading if own is not None else None
        adjudicates = queue is Queue.ADJUDICATE
        if adjudicates and own is not None and own.role is not Role.ADJUDICATOR:
            mine = None  # it is one of the candidates, and must not be told from the others
        proposed = self._proposer.of(frame.path)
        found = self._suspects.of(frame.path) if queue is Queue.SUSPECTS else None
        told = None if found is None else {name: getattr(found, name) for name in ("label", "suggested", "margin")}
        place = {"id": frame.id, "width": frame.width, "height": frame.height}
        frames = self.catalogue.frames
        self._shown_as[reader.name, frame.path] = frame
        boxes = proposed.boxes[:PROPOSALS] if proposed is not None else ()
        # Two readers who follow the model would agree with it: the kappa between them would measure the model.
        blind = queue not in (Queue.ORDER, Queue.REVIEW) or self.journal.readings(frame.path).keys() - {reader.name}
        return {
            "frame": place | {"number": bisect.bisect(frames, frame.path, key=lambda one: one.path), "of": len(frames)},
            "base": 0 if current is None else current.number,
            "reading": None if mine is None else mine.model_dump(mode="json"),
            "proposals": [{"box": list(box), "probability": probability} for box, probability in boxes],
            "unsure": None if proposed is None else proposed.unsure,
            "suggested": {} if proposed is None or blind else proposed.features,
            "suspect": told,
            "candidates": self._candidates(frame) if adjudicates else None,
            "classes": [{"name": name, "side": self.classes.side(name)} for name in self.classes.names],
            "asks_side": not frame.label or queue is Queue.SUSPECTS or bool(mine is not None and mine.side),
        }

    def _candidates(self, frame: Frame) -> list[dict[str, Any]]:
        """Return the readings that contradict each other, in an order that tells nothing about who made them."""
        entries = [e for e in self.journal.readings(frame.path).values() if e.role is not Role.ADJUDICATOR]
        mixed = sorted(
            entries, key=lambda e: hashlib.sha256(self._salt + f"{frame.path}\0{e.reader}".encode()).digest()
        )
        return [
            {"name": chr(ord("A") + place), "reading": entry.reading.model_dump(mode="json")}
            for place, entry in enumerate(mixed)
            if entry.reading is not None
        ]

    def save(self, reader: Reader, queue: Queue, frame: Frame, *, base: int, reading: Reading, effort: Effort) -> Entry:
        """Keep a reading, and return its entry of the journal.

        Args:
            reader: Who reads.
            queue: What the reader works on.
            frame: The frame.
            base: Number of the reader's entry that the page showed; 0 for none.
            reading: What the reader says.
            effort: What it cost.

        Raises:
            StaleError: The reader has another entry by now.
            AdjudicationError: The reader may not adjudicate, or not this frame.
            GoneError: The picture vanished.
            UnwritableError: The disk is full, or the folder of results cannot be written.
        """
        if queue is Queue.ADJUDICATE:
            self._check_adjudicator(reader, frame)
        shown = self._shown_as.get((reader.name, frame.path), frame)
        if shown is not frame and (shown.width, shown.height) != (frame.width, frame.height):
            raise GoneError(f"{frame.path}: was replaced by a picture of another size since it was shown")
        self.catalogue.bytes(frame)
        own = self.own(frame, reader)
        again = own is not None and own.role is Role.ADJUDICATOR and reader.role is Role.ADJUDICATOR
        role = Role.ADJUDICATOR if queue is Queue.ADJUDICATE or again else Role.READER
        entry = self.journal.add(
            reader=reader.name, role=role, frame=frame.path, reading=reading, base=base, effort=effort
        )
        with self._giving:
            self._reservations.release(reader.name, frame.path)
        self._shown_as.pop((reader.name, frame.path), None)
        self._changed.set()
        return entry

    def undo(self, reader: Reader) -> tuple[str, Queue]:
        """Take back the reader's latest reading, and return the frame's id and the queue in which it was read.

        Raises:
            NothingToUndoError: There is none.
            GoneError: It is undone, but the frame is not among the scans any more.
            UnwritableError: The folder of results cannot be written.
        """
        entry = self.journal.undo(reader.name)
        self._changed.set()
        frame = self.catalogue.by_path(entry.frame)
        if frame is None:
            raise GoneError(f"{entry.frame}: is not among the scans any more")
        if reader.role is Role.ADJUDICATOR and self.consensus(frame).state is State.CONTESTED:
            return frame.id, Queue.ADJUDICATE
        if entry.reading is not None:
            return frame.id, Queue.REVIEW
        self._reservations.keep(reader.name, frame)
        others = self.journal.readings(frame.path).keys() - {reader.name}
        return frame.id, Queue.SECOND if others else Queue.ORDER

    def own(self, frame: Frame, reader: Reader) -> Entry | None:
        """Return the reader's reading of a frame that holds; None if there is none."""
        return self.journal.readings(frame.path).get(reader.name)

    def progress(self, reader: Reader) -> dict[str, Any]:
        """Return how far the labelling is, and how fast this reader is, as JSON fields."""
        known = self._knowledge.now()
        states = list(known.states.values())
        read = sum(state is not State.OPEN for state in states)
        left = len(self.catalogue.frames) - read
        waiting = (path for path, state in known.states.items() if state is State.SECOND)
        pace = self._knowledge.pace(reader.name)
        return {
            "done": read,
            "of": len(self.catalogue.frames),
            "left": left,
            "contested": sum(state is State.CONTESTED for state in states),
            "suspects": len(self._suspects.left(known)),
            "second": sum(reader.name not in known.readers.get(path, ()) for path in waiting),
            "per_hour": pace,
            "minutes_left": None if pace is None else left / pace * 60,
        }

    @property
    def notes(self) -> list[str]:
        """What people should know about the tables, such as that one cannot be read; nobody's reading is in it."""
        return [*(text for text in (self._problem, self._scans_problem) if text), *self._notes]

    @property
    def is_endpoint_away(self) -> bool:
        """Whether there is an endpoint that does not answer."""
        return self._proposer.away

    def consensus(self, frame: Frame) -> Consensus:
        """Return what the readers of a frame say together."""
        return self._tables.consensus(frame)

    def agreement(self) -> Agreement:
        """Return how well the readers agree, and how fast they are. It takes seconds, once after each change."""
        with self._measuring:
            count, frames = len(self.journal.entries), self.catalogue.frames
            if self._measured is None or self._measured[0] != count or self._measured[1] is not frames:
                found = agreement.agreement(self.catalogue, self.journal, self.rules, self.classes)
                self._measured = count, frames, found
            return self._measured[2]

    def _check_adjudicator(self, reader: Reader, frame: Frame | None) -> None:
        if reader.role is not Role.ADJUDICATOR:
            raise AdjudicationError
        if frame is None:
            return
        own = self.own(frame, reader)
        if self.consensus(frame).state is not State.CONTESTED and (own is None or own.role is not Role.ADJUDICATOR):
            raise AdjudicationError

    def _standing(self) -> Standing:
        known = self._knowledge.now()
        done = [path for path, state in known.states.items() if state is not State.OPEN]
        own = {name: sorted(paths, key=lambda path: -paths[path]) for name, paths in known.own.items()}
        return Standing(
            ranked=self._ranking.of(self.catalogue.frames, done, self._proposer.proposed, self._proposer.descriptors),
            frames=self.catalogue.paths,
            states=known.states,
            readers=known.readers,
            suspects=self._suspects.left(known),
            own=own,
            seed=self._seed,
        )

    def _want(self) -> None:
        """Ask for proposals in the order in which readers need them."""
        standing = self._standing()
        needed = dict.fromkeys(frame.path for frame in standing.ranked)
        needed |= dict.fromkeys(standing.suspects)
        needed |= dict.fromkeys(
            path for path, state in standing.states.items() if state in (State.SECOND, State.CONTESTED)
        )
        self._proposer.want([standing.frames[path] for path in needed if path in standing.frames])

    def _is_gone(self, frame: Frame) -> bool:
        return self.catalogue.by_path(frame.path) is None

    def _keep_tables(self) -> None:
        """Write the tables after readings, and look now and then at what others have changed."""
        while not self._stopped.is_set():
            self._changed.wait(LOOK)
            self._stopped.wait(PAUSE)
            self._changed.clear()
            try:
                self._look()
                self._write()
                self._want()
            except Exception as error:  # the readings are in the journal; the next attempt writes them
                fields = {"kind": type(error).__name__, "where": logs.place(error)}
                log.error("the tables were not written", extra={"fields": fields})
                self._problem = errors.one_line(error) if isinstance(error, InputError) else type(error).__name__

    def _look(self) -> None:
        """Look now and then which scans came, changed or went."""
        started = time.monotonic()
        if started < self._next_look:
            return
        try:
            self._proposer.forget(self.catalogue.refresh())
            self._scans_problem = ""
        except (InputError, OSError) as error:  # such as a folder that is not mounted now; its frames stay
            self._scans_problem = errors.one_line(error)
        now = time.monotonic()
        self._next_look = now + max(SCANS, REST * (now - started))

    def _write(self) -> None:
        """Write the tables. One that was edited by hand and cannot be read is left alone, and becomes a note."""
        try:
            told = self._tables.write()
        except UnwritableError:
            raise
        except InputError as error:
            self._problem = errors.one_line(error)
            return
        self._problem = ""
        self._notes = [*(note for note in self._notes if note not in told), *told][-NOTES:]
