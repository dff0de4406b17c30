"""Which frame a reader gets next: an order that pays, the queues, and reservations so that no two read the same frame.

A new patient is chosen for one of three reasons, in the turns of `CYCLE`: the model is unsure (uncertainty sampling,
Lewis & Gale, SIGIR 1994), the patient is most unlike those that are labelled (farthest-first traversal, Gonzalez 1985,
as the core-set of Sener & Savarese, ICLR 2018), or chance. Chance has its turn so that readers do not only see the
hardest frames and the labelled set stays a sample of the practice. bench/label.py measures what it is worth.
"""

import hashlib
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from thyroid.label.consensus import State
from thyroid.label.frames import Frame
from thyroid.label.proposals import Descriptor, Proposed


class Reason(StrEnum):
    """Why a patient comes next."""

    UNSURE = "unsure"
    UNLIKE = "unlike"
    RANDOM = "random"


CYCLE = (Reason.UNSURE, Reason.UNLIKE, Reason.UNSURE, Reason.UNLIKE, Reason.RANDOM)
"""Turns of the reasons: of five patients two are unsure, two unlike the others and one is random.

A turn for which there is nobody passes to the next reason of `Reason`.
"""
HORIZON = 200
"""Patients that are ranked by reasons. Those behind follow at random; the order is made again long before them."""
RERANK = 5
"""Frames that are read, and share in percent of frames that are answered or described, before the order is new."""
RESERVED = 600.0
"""Seconds for which a frame that was given out is kept for its reader."""


class Queue(StrEnum):
    """What a reader works on."""

    ORDER = "order"
    SECOND = "second"
    ADJUDICATE = "adjudicate"
    SUSPECTS = "suspects"
    REVIEW = "review"


def rank(
    frames: Sequence[Frame],
    done: Collection[str],
    proposed: Mapping[str, Proposed],
    descriptors: Mapping[str, Descriptor],
    seed: int,
) -> list[Frame]:
    """Return the frames that are not done, in the order in which they should be read.

    The frames of a patient stay together, in the order of their paths. Patients who are begun come first. The others
    follow as `CYCLE` says.

    Args:
        frames: All frames.
        done: Paths of the frames that are read.
        proposed: What the model says, by path; a frame without an answer cannot be unsure.
        descriptors: Thumbnail of each frame (`proposals.describe`), by path; a frame without one cannot be unlike.
        seed: Seed of the random turns.
    """
    groups: dict[str, list[Frame]] = {}
    for frame in sorted(frames, key=lambda one: one.path):
        groups.setdefault(frame.group, []).append(frame)
    left = {name: [one for one in some if one.path not in done] for name, some in groups.items()}
    begun = [name for name, some in left.items() if 0 < len(some) < len(groups[name])]
    fresh = [name for name, some in left.items() if len(some) == len(groups[name])]
    labelled = [name for name, some in left.items() if len(some) < len(groups[name])]
    chance = sorted(fresh, key=lambda name: _drawn(seed, name))
    patients = _Patients(
        unsure=_unsure(chance, groups, proposed),
        unlike=_Farthest(chance, labelled, {name: _mean(groups[name], descriptors) for name in groups}),
        chance=deque(chance),
    )
    return [frame for name in (*begun, *patients.order()) for frame in left[name]]


def _drawn(seed: int, text: str) -> str:
    """Return a random key that stays the same while other frames come and go."""
    return hashlib.sha256(f"{seed}:{text}".encode()).hexdigest()


def _unsure(
    names: Iterable[str], groups: Mapping[str, Sequence[Frame]], proposed: Mapping[str, Proposed]
) -> deque[str]:
    """Return the patients with an unsure frame, the lowest probability of a best box first."""
    least: dict[str, float] = {}
    for name in names:
        answers = [proposed[frame.path] for frame in groups[name] if frame.path in proposed]
        unsure = [answer.probability or 0.0 for answer in answers if answer.unsure or answer.in_band]
        if unsure:
            least[name] = min(unsure)
    return deque(sorted(least, key=lambda name: least[name]))


def _mean(frames: Sequence[Frame], descriptors: Mapping[str, Descriptor]) -> Descriptor | None:
    known = [descriptors[frame.path] for frame in frames if frame.path in descriptors]
    return np.mean(known, axis=0, dtype=np.float32) if known else None


class _Farthest:
    """Finds the patient that is farthest from its nearest labelled or chosen one.

    Args:
        names: Patients to choose from.
        labelled: Patients who are labelled.
        means: Mean descriptor of each patient, None for those without one.
    """

    def __init__(self, names: Sequence[str], labelled: Sequence[str], means: Mapping[str, Descriptor | None]) -> None:
        known = [(name, mean) for name in names if (mean := means[name]) is not None]
        self._names = [name for name, _ in known]
        self._place = {name: place for place, name in enumerate(self._names)}
        self._means = np.array([mean for _, mean in known], np.float32)
        self._nearest = np.full(len(known), np.inf)
        for name in labelled:
            if (mean := means[name]) is not None:
                self._add(mean)

    def _add(self, centre: NDArray[np.float32]) -> None:
        if len(self._means):
            np.minimum(self._nearest, ((self._means - centre) ** 2).sum(1), out=self._nearest)

    def take(self, name: str) -> None:
        """Note that a patient is chosen."""
        if (place := self._place.get(name)) is not None:
            self._add(self._means[place])
            self._nearest[place] = -1

    def first(self) -> str | None:
        """Return the farthest patient; of equals the first one; None if all are chosen."""
        if not len(self._nearest) or self._nearest.max() < 0:
            return None
        return self._names[int(self._nearest.argmax())]


@dataclass(frozen=True)
class _Patients:
    """Patients to choose from: those that are unsure, how unlike they are, and all in random order."""

    unsure: deque[str]
    unlike: _Farthest
    chance: deque[str]

    def order(self) -> list[str]:
        """Return every patient once."""
        chosen: dict[str, None] = {}
        while len(chosen) < HORIZON and (name := self._next(CYCLE[len(chosen) % len(CYCLE)], chosen)) is not None:
            chosen[name] = None
            self.unlike.take(name)
        return [*chosen, *(name for name in self.chance if name not in chosen)]

    def _next(self, turn: Reason, chosen: Collection[str]) -> str | None:
        if turn is Reason.UNSURE and (name := _popped(self.unsure, chosen)) is not None:
            return name
        if turn is not Reason.RANDOM and (name := self.unlike.first()) is not None:
            return name
        return next((name for name in self.chance if name not in chosen), None)


def _popped(names: deque[str], chosen: Collection[str]) -> str | None:
    while names:
        if (name := names.popleft()) not in chosen:
            return name
    return None


class Ranking:
    """The order of all frames, which is made again only after enough has changed. It may be asked by several threads.

    Args:
        seed: Seed of the random turns.
    """

    def __init__(self, seed: int) -> None:
        """Order nothing yet; the class documents the argument."""
        self._seed, self._lock = seed, threading.Lock()
        self._frames: Sequence[Frame] = ()
        self._order: list[Frame] = []
        self._done: frozenset[str] = frozenset()
        self._known: tuple[int, int] | None = None

    def of(
        self,
        frames: Sequence[Frame],
        done: Collection[str],
        proposed: Mapping[str, Proposed],
        descriptors: Mapping[str, Descriptor],
    ) -> list[Frame]:
        """Return the frames that are not done; the arguments are as for `rank`.

        Other frames than before, which are another object then, are ordered at once.
        """
        with self._lock:
            read, known = frozenset(done), (len(proposed), len(descriptors))
            step = max(1, len(frames) * RERANK // 100)
            if (
                self._known is None
                or frames is not self._frames
                or not self._done <= read  # a reading was undone: its frame is not in the order
                or len(read) - len(self._done) >= RERANK
                or max(abs(now - before) for now, before in zip(known, self._known, strict=True)) >= step
            ):
                self._order = rank(frames, read, proposed, descriptors, self._seed)
                self._frames, self._done, self._known = frames, read, known
            return [frame for frame in self._order if frame.path not in read]


@dataclass(frozen=True)
class Standing:
    """What the queues follow from.

    Attributes:
        ranked: Frames that are not read, in their order (`Ranking`).
        frames: All frames, by path.
        states: State of each frame, by path; a frame that is absent is open.
        readers: Who has a reading of a frame that holds, by path.
        suspects: Paths of suspect labels that still have to be looked at, the most suspicious first.
        own: Paths that a reader has read, the latest first, by reader.
        seed: Seed of the order of second readings.
    """

    ranked: Sequence[Frame]
    frames: Mapping[str, Frame]
    states: Mapping[str, State]
    readers: Mapping[str, Collection[str]]
    suspects: Sequence[str] = ()
    own: Mapping[str, Sequence[str]] | None = None
    seed: int = 0


def queue_for(reader: str, queue: Queue, standing: Standing) -> list[Frame]:
    """Return the frames that wait for a reader in a queue, the first one first.

    Second readings come patient by patient in an order that does not depend on the first ones. An adjudicator gets the
    frames that others read before those that are partly his or her own. Whether the reader may adjudicate at all is
    for the caller to check.

    Args:
        reader: Name of the reader.
        queue: The queue.
        standing: What is read so far.
    """

    def is_own(path: str) -> bool:
        return reader in standing.readers.get(path, ())

    def found(paths: Iterable[str]) -> list[Frame]:
        return [standing.frames[path] for path in paths if path in standing.frames]

    def in_state(state: State) -> list[str]:
        return [path for path, one in standing.states.items() if one is state]

    if queue is Queue.ORDER:
        return [one for one in standing.ranked if standing.states.get(one.path, State.OPEN) is State.OPEN]
    if queue is Queue.SECOND:
        waiting = found(path for path in in_state(State.SECOND) if not is_own(path))
        return sorted(waiting, key=lambda one: (_drawn(standing.seed, one.group), one.path))
    if queue is Queue.ADJUDICATE:
        return found(sorted(in_state(State.CONTESTED), key=lambda path: (is_own(path), path)))
    if queue is Queue.SUSPECTS:
        return found(standing.suspects)
    return found((standing.own or {}).get(reader, ()))


class Reservations:
    """Gives frames out so that readers who work at the same time get different ones, if possible of different patients.

    They are in memory: after a restart, or with two servers on one folder, two readers may get the same frame, and the
    journal keeps both readings.

    Args:
        clock: Seconds that pass.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Start without any; the class documents the argument."""
        self._clock, self._lock = clock, threading.Lock()
        self._held: dict[str, dict[str, tuple[Frame, float]]] = {}
        """For each reader and path, the frame and the time until which it is kept."""

    def take(self, reader: str, waiting: Sequence[Frame], skip: Collection[str] = ()) -> Frame | None:
        """Return the next frame for a reader, and reserve it for `RESERVED` seconds.

        A reader who has several frames keeps them all: the page fetches the next one while one is read. A frame that
        the reader has and does not skip is returned again. Otherwise the reader stays with the patient.

        Args:
            reader: Name of the reader.
            waiting: The reader's queue.
            skip: Paths of the frames that the reader does not want now.

        Returns:
            The frame; None if none is free.
        """
        with self._lock:
            now = self._clock()
            own = {path: held for path, held in self._held.get(reader, {}).items() if held[1] > now}
            others = [
                frame
                for name, held in self._held.items()
                for frame, until in held.values()
                if name != reader and until > now
            ]
            taken, groups = {one.path for one in others}, {one.group for one in others}
            patients = {frame.group for frame, _ in own.values()}

            def cost(frame: Frame) -> tuple[bool, bool, bool]:
                return frame.path not in own, frame.group in groups, frame.group not in patients

            free = (one for one in waiting if one.path not in taken and one.path not in skip)
            chosen = min(free, key=cost, default=None)
            self._held[reader] = own
            if chosen is not None:
                own[chosen.path] = chosen, now + RESERVED
            return chosen

    def keep(self, reader: str, frame: Frame) -> None:
        """Reserve a certain frame for a reader, unless another one has it."""
        self.take(reader, [frame])

    def release(self, reader: str, path: str) -> None:
        """Give a frame back, which is read or gone."""
        with self._lock:
            self._held.get(reader, {}).pop(path, None)
