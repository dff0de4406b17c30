"""What a reader says about a frame, and the journal's entries that keep it.

The features and their values are those of ACR TI-RADS, whose points and levels `thyroid.tirads` knows.
"""

import hashlib
import hmac
import secrets
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from thyroid import tirads
from thyroid.imaging.geometry import Box

FEATURES = tirads.DESCRIPTORS
"""Values of every feature with their points in ACR TI-RADS."""
MOST_REGIONS = 20
"""Nodules in one frame. More are a mistake of the hand or of a script."""


class Verdict(StrEnum):
    """What a frame shows."""

    NODULES = "nodules"
    NONE = "none"
    UNUSABLE = "unusable"


class Origin(StrEnum):
    """How a region was made: drawn by hand, accepted from a proposal, a proposal corrected by hand, or imported."""

    DRAWN = "drawn"
    ACCEPTED = "accepted"
    CORRECTED = "corrected"
    IMPORTED = "imported"


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class MarkedRegion(_Strict):
    """A nodule that a reader marked.

    Attributes:
        x: Left side in pixels of the frame.
        y: Upper side in pixels of the frame.
        width: Width in pixels.
        height: Height in pixels.
        origin: How it was made.
        features: Value of each feature of `FEATURES` that the reader chose; several kinds of foci are joined by a plus
            sign in the order of `FEATURES`, such as macro+punctate.
    """

    x: int = Field(ge=0)
    y: int = Field(ge=0)
    width: int = Field(ge=1)
    height: int = Field(ge=1)
    origin: Origin = Origin.DRAWN
    features: dict[str, str] = {}

    @model_validator(mode="after")
    def _check(self) -> Self:
        try:
            known = features_of(self.features)
        except ValueError as error:
            raise ValueError(f"features.{error}") from None
        for name, value in self.features.items():
            if value != known[name]:
                raise ValueError(f"features.{name}: {value!r} must be written {known[name]!r}")
        return self

    @property
    def box(self) -> Box:
        """x, y, width and height in pixels of the frame."""
        return self.x, self.y, self.width, self.height


class Reading(_Strict):
    """What a reader says about one frame.

    Attributes:
        verdict: What it shows.
        regions: Its nodules; empty unless the verdict is `Verdict.NODULES`.
        side: Class that the reader gives the frame, a name of the bench's classes; "" keeps the one of the file name
            or the table of labels.
    """

    verdict: Verdict
    regions: tuple[MarkedRegion, ...] = Field(default=(), max_length=MOST_REGIONS)
    side: str = Field(default="", max_length=64)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.verdict is Verdict.NODULES) != bool(self.regions):
            raise ValueError("regions: mark at least one nodule, or choose another verdict than nodules")
        if len({region.box for region in self.regions}) != len(self.regions):
            raise ValueError("regions: two have the same box")
        return self

    @property
    def largest(self) -> MarkedRegion | None:
        """The nodule of the largest area, which gives the frame's features; None without a nodule."""
        return max(self.regions, key=lambda region: region.width * region.height, default=None)


class Role(StrEnum):
    """Whose reading it is: a reader's, an adjudicator's, an import's, or that of a table edited outside the bench."""

    READER = "reader"
    ADJUDICATOR = "adjudicator"
    IMPORT = "import"
    OUTSIDE = "outside"


class Effort(_Strict):
    """What a reading cost.

    Attributes:
        seconds: Seconds from the frame's display to its saving, pauses left out.
        pointer: Number of presses of the mouse or of a finger.
        keys: Number of keys.
    """

    seconds: float = Field(default=0, ge=0, le=86400)
    pointer: int = Field(default=0, ge=0, le=100_000)
    keys: int = Field(default=0, ge=0, le=100_000)


class Erasure(_Strict):
    """Which patient and which frames were erased, as keyed hashes: they are recognised, and not named.

    Attributes:
        key: Random key of the hashes, in hexadecimal digits. Whoever has the journal can test whether a number or a
            path is in it.
        patient: Hash of the patient's number.
        paths: Hashes of the paths of the patient's frames and files.
        names: Hashes of the last parts of these, by which clinical.csv names a scan.
    """

    key: str
    patient: str
    paths: frozenset[str]
    names: frozenset[str]

    @classmethod
    def of(cls, patient: int, paths: Iterable[str]) -> Self:
        """Return the erasure of a patient.

        Args:
            patient: Number of the patient.
            paths: Paths of the patient's frames and files, and pseudonyms of those of DICOM files.
        """
        new, known = cls(key=secrets.token_hex(32), patient="", paths=frozenset(), names=frozenset()), list(paths)
        hashes = {
            "patient": new._hash("patient", str(patient)),
            "paths": frozenset(new._hash("path", path) for path in known),
            "names": frozenset(new._hash("name", path.rsplit("/", 1)[-1]) for path in known),
        }
        return new.model_copy(update=hashes)

    def holds(self, path: str) -> bool:
        """Return whether a frame or file with this path was erased; with a DICOM file, every frame of it is."""
        return any(self._hash("path", one) in self.paths for one in (path, path.rpartition("#")[0]))

    def names_scan(self, name: str) -> bool:
        """Return whether a scan with this last part of its name was erased."""
        return self._hash("name", name) in self.names

    def is_of(self, patient: int) -> bool:
        """Return whether this is the erasure of the patient with this number."""
        return self._hash("patient", str(patient)) == self.patient

    def _hash(self, kind: str, name: str) -> str:
        message = f"{kind}\0{name}".encode("utf-8", "surrogatepass")
        return hmac.digest(bytes.fromhex(self.key), message, hashlib.sha256).hex()[:32]


class Entry(_Strict):
    """One change, as the journal keeps it. Nothing in the journal is ever changed or removed, but for an erasure.

    Attributes:
        number: Number in the journal, from 1.
        at: When, in UTC.
        reader: Name of who made it.
        role: Role of who made it.
        frame: Path of the frame below the folder of scans; "" if it was erased, or if the entry is of no frame.
        reading: What holds from now on; None for nothing, after an undo.
        before: What this reader had said before; None for nothing.
        undoes: Number of the entry that this one undoes; None for none.
        effort: What it cost.
        erased: Whether frame and readings were erased. The rest stays, so that the readers' counts can be explained.
        erases: Whom this entry erases from all entries before it, and keeps out of those after it; None for nobody.
    """

    number: int = Field(ge=1)
    at: datetime
    reader: str
    role: Role
    frame: str
    reading: Reading | None
    before: Reading | None = None
    undoes: int | None = None
    effort: Effort = Effort()
    erased: bool = False
    erases: Erasure | None = None

    def emptied(self) -> "Entry":
        """Return the entry without its frame and what was said about it."""
        return self.model_copy(update={"frame": "", "reading": None, "before": None, "erased": True})


def features_of(cells: Mapping[str, Any]) -> dict[str, str]:
    """Return the features that a row of a table names, in the words of `FEATURES`.

    Args:
        cells: Text by feature.

    Raises:
        ValueError: A feature is unknown, or a word is unknown or empty.
    """
    found = {}
    for name, text in cells.items():
        values = tirads.parse(name, str(text)) if name in FEATURES else None
        if values is None:
            several = f", joined by {tirads.JOINT}" if name == tirads.FOCI else ""
            raise ValueError(f"{name} {text!r} is unknown; choose from {', '.join(FEATURES.get(name, ()))}{several}")
        found[name] = tirads.cell(name, values)
    return found


def points(features: Mapping[str, str]) -> int | None:
    """Return the points of ACR TI-RADS for a nodule; None unless every feature is given."""
    if set(features) != set(FEATURES):
        return None
    given = {name: tirads.parse(name, value) or frozenset() for name, value in features.items()}
    return tirads.points(given, given[tirads.FOCI]).low


def level(regions: Sequence[MarkedRegion]) -> str:
    """Return the highest level of ACR TI-RADS among nodules, TR1 to TR5; "" unless one has every feature."""
    known = [total for region in regions if (total := points(region.features)) is not None]
    if not known:
        return ""
    return tirads.level(max(known))
