"""What several readers together say about a frame: whether they agree, and what goes into the tables."""

import hashlib
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from scipy.optimize import linear_sum_assignment

from thyroid.errors import InputError
from thyroid.label.frames import Frame, GoneError
from thyroid.label.readings import Entry, Reading, Role
from thyroid.metrics import detection


class State(StrEnum):
    """How far a frame is."""

    OPEN = "open"
    SINGLE = "single"
    SECOND = "second"
    AGREED = "agreed"
    CONTESTED = "contested"
    FINAL = "final"


@dataclass(frozen=True)
class Rules:
    """When a frame is done.

    Attributes:
        second: Share of the patients whose frames a second reader reads, 0 to 1.
        iou: Intersection over union from which two boxes mark the same nodule, above 0 and at most 1.
        seed: Seed of the draw of these patients.

    Raises:
        InputError: A value is out of its range.
    """

    second: float = 0.0
    iou: float = detection.FITS
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 0 <= self.second <= 1:
            raise InputError(f"second {self.second}: give a share of the patients from 0 to 1")
        if not 0 < self.iou <= 1:
            raise InputError(f"iou {self.iou}: give an overlap above 0 and at most 1")

    def twice(self, group: str) -> bool:
        """Return whether a second reader reads the frames of a group; a larger share keeps the groups of a smaller."""
        digest = hashlib.sha256(f"{self.seed}\0{group}".encode("utf-8", "surrogatepass")).digest()
        return int.from_bytes(digest[:8]) < self.second * 2**64


@dataclass(frozen=True)
class Consensus:
    """What the readers of a frame say.

    Attributes:
        state: `State.OPEN` without a reading; `State.SINGLE` where one reader suffices; `State.SECOND` where another
            reader must read the frame; `State.AGREED` or `State.CONTESTED` after several readers; `State.FINAL` after
            an adjudication or an edit of the tables by hand.
        reading: What goes into the tables; None while the frame is open or contested. Where readers agree, it is what
            the first of them said, with the class of the first who gave one.
        readers: Names of the readers whose readings count, in the order in which they read.
    """

    state: State
    reading: Reading | None
    readers: tuple[str, ...]

    @classmethod
    def of(cls, frame: Frame, readings: Mapping[str, Entry], rules: Rules) -> "Consensus":
        """Return the consensus on a frame.

        The latest adjudication decides. An edit by hand decides until somebody reads the frame again. An import counts
        only while nobody has read the frame. A reading with a box outside the frame does not count: it was of another
        picture, which had this name before. Nor does one with a box of a frame that vanished or is damaged.

        Args:
            frame: The frame.
            readings: Entry that holds for each reader, as `Journal.readings` returns them.
            rules: When a frame is done.
        """
        entries = sorted(readings.values(), key=lambda entry: entry.number)
        entries = [entry for entry in entries if entry.reading is not None and _within(entry.reading, frame)]
        if not entries:
            return cls(State.OPEN, None, ())
        final = next((e for e in reversed(entries) if e.role in (Role.ADJUDICATOR, Role.OUTSIDE)), None)
        if final is not None and (final.role is Role.ADJUDICATOR or final is entries[-1]):
            return cls(State.FINAL, final.reading, tuple(entry.reader for entry in entries))
        if final is not None:  # an edit by hand before later readings
            entries = entries[entries.index(final) + 1 :]
        people = [entry for entry in entries if entry.role is Role.READER] or entries[-1:]
        readers = tuple(entry.reader for entry in people)
        said = [entry.reading for entry in people if entry.reading is not None]
        if len(said) == 1:
            return cls(State.SECOND if rules.twice(frame.group) else State.SINGLE, said[0], readers)
        if not all(agree(one, other, rules.iou) for one, other in itertools.combinations(said, 2)):
            return cls(State.CONTESTED, None, readers)
        side = next((reading.side for reading in said if reading.side), "")
        return cls(State.AGREED, said[0].model_copy(update={"side": side}), readers)


def _within(reading: Reading, frame: Frame) -> bool:
    try:
        return all(
            region.x + region.width <= frame.width and region.y + region.height <= frame.height
            for region in reading.regions
        )
    except GoneError:
        return False


def agree(one: Reading, other: Reading, iou: float = detection.FITS) -> bool:
    """Return whether two readings say the same.

    They do if the verdicts are equal, the classes are equal where both give one, and the nodules can be paired so that
    the boxes of every pair overlap enough.

    Args:
        one: A reading.
        other: Another one.
        iou: Least intersection over union of a pair.
    """
    if one.verdict is not other.verdict or len(one.regions) != len(other.regions):
        return False
    if one.side and other.side and one.side != other.side:
        return False
    if not one.regions:
        return True
    fits = detection.iou([region.box for region in one.regions], [region.box for region in other.regions]) >= iou
    rows, columns = linear_sum_assignment(fits, maximize=True)
    return bool(np.all(fits[rows, columns]))
