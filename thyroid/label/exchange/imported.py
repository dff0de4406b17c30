"""What an import found: readings by frame, and what of the file cannot be used."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from thyroid.errors import InputError
from thyroid.imaging.geometry import Box
from thyroid.label.frames import Frame
from thyroid.label.readings import MarkedRegion, Origin, Reading, Verdict

SLACK = 1.0
"""A box may reach this far beyond the frame, in pixels, since other programs round differently. It is then cut."""


@dataclass
class Imported:
    """What a file or a folder of files says.

    Attributes:
        readings: Reading by path of the frame, in the order of the file.
        problems: What cannot be used: one sentence each, which names the place and says why.
        notes: What was understood although it is unusual, in words.
    """

    readings: dict[str, Reading] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, frame: Frame, place: str, marks: Iterable[tuple[Box, Mapping[str, str]]], side: str) -> None:
        """Add the nodules of a frame. A box that is there twice counts once.

        Args:
            frame: The frame.
            place: Where the file names it, for problems.
            marks: Box and features of each nodule.
            side: Class of the frame; "" for none.
        """
        features: dict[Box, dict[str, str]] = {}
        for box, given in marks:
            features[box] = features.get(box, {}) | dict(given)
        try:
            regions = tuple(
                MarkedRegion(x=x, y=y, width=width, height=height, origin=Origin.IMPORTED, features=given)
                for (x, y, width, height), given in features.items()
            )
            reading = Reading(verdict=Verdict.NODULES, regions=regions, side=side)
        except ValidationError as error:
            self.problems.append(f"{place}: {reason(error)}")
            return
        self.readings[frame.path] = reading

    def require_all(self, name: Path | str) -> None:
        """Check that everything can be used.

        Raises:
            InputError: There is a problem. The message gives the first one and the number of the others.
        """
        if self.problems:
            others = f" (and {len(self.problems) - 1} more problems)" if len(self.problems) > 1 else ""
            raise InputError(
                f"{name}: {self.problems[0]}{others}; nothing was imported: mend it, or leave such out with --skip"
            )


def read_limited(path: Path, most: int) -> bytes:
    """Return the content of a file.

    Raises:
        InputError: There is no such file, or it has more than `most` bytes.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; check the path")
    with path.open("rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise InputError(f"{path}: larger than {most:,} bytes; split it into several files")
    return data


def whole_box(corners: Sequence[float], frame: Frame) -> Box:
    """Return the box of whole pixels around left, top, right and bottom in pixels of the frame.

    Raises:
        ValueError: A number is not finite, the box has no area, or it is outside the frame by more than `SLACK`.
    """
    if not all(map(math.isfinite, corners)):
        raise ValueError("box: its sides must be finite numbers")
    left, top, right, bottom = corners
    if min(left, top) < -SLACK or right > frame.width + SLACK or bottom > frame.height + SLACK:
        raise ValueError(
            f"box x {left:g}..{right:g}, y {top:g}..{bottom:g} is outside the {frame.width}x{frame.height} frame"
        )
    x, y = (max(0, math.floor(low)) for low in (left, top))
    width, height = min(frame.width, math.ceil(right)) - x, min(frame.height, math.ceil(bottom)) - y
    if right <= left or bottom <= top or width < 1 or height < 1:
        raise ValueError(f"box has no area (width {right - left:g}, height {bottom - top:g})")
    return x, y, width, height


def reason(error: ValidationError) -> str:
    """Return the first finding of a validation as one line that names its field."""
    first = error.errors(include_url=False, include_input=False)[0]
    name = ".".join(map(str, first["loc"]))
    text = " ".join(first["msg"].removeprefix("Value error, ").split())
    return f"{name}: {text}" if name else text
