"""Checks the files that a browser sent before the endpoint is asked. A refusal is a code and values for `words`."""

import math
import re
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from thyroid.imaging import dicom, dicom_guard, dicom_picture, images
from thyroid.imaging.geometry import Box

MAX_VIEWS = 12
"""Pictures of one reading."""
MAX_FILE = 30_000_000
"""Bytes of one file."""
MAX_TOTAL = 36_000_000
"""Bytes of all files of a reading. In base64, they stay within the endpoint's own limit."""
DECODING = 30.0
"""Seconds for all DICOM files of a reading."""
_READERS = threading.BoundedSemaphore(4)
"""Readings that wait for the process that reads DICOM files.

They are fewer than the server's threads, so that the page always answers.
"""
_WHOLE = re.compile(r"[0-9]{1,6}")
MIN_BOX = 8
"""Least side of a box in pixels. A smaller box is a slip of the hand, not a nodule."""


SIZES = {"min": images.MIN_SIDE, "side": images.MAX_SIDE, "max": images.MAX_PIXELS // 1_000_000}
"""Limits of pictures that can be read: least and most pixels of a side, and most millions of pixels."""


class PageError(Exception):
    """The reason why something cannot be read.

    Attributes:
        code: Key of the text in `words`.
        values: Values for the fields of the text.
        status: HTTP status of the answer.
    """

    def __init__(self, code: str, values: dict[str, Any] | None = None, status: int = 400) -> None:
        """Set the key, the values and the status."""
        super().__init__(code)
        self.code, self.values, self.status = code, values or {}, status


class ReadingError(Exception):
    """Everything that is wrong with a reading, each problem as a `PageError`."""

    def __init__(self, problems: Sequence[PageError]) -> None:
        """Keep the problems in their order."""
        super().__init__(f"{len(problems)} problems")
        self.problems = list(problems)


@dataclass(frozen=True)
class Mark:
    """What the form says about one picture, unchecked.

    Attributes:
        roi: The box as "x,y,width,height", or "".
        origin: "accepted" if the box is a proposal that the person accepted; anything else if the person drew it.
        domain: "frame" if the person says that the picture is a full frame.
    """

    roi: str = ""
    origin: str = ""
    domain: str = ""


@dataclass(frozen=True)
class View:
    """One picture as the endpoint gets it.

    Attributes:
        name: Name of the file, which is used only in messages to the person who sent it.
        data: Bytes of a JPEG or PNG.
        width: Width in pixels.
        height: Height in pixels.
        roi: The box around the nodule as x, y, width, height in pixels; None if there is none.
        clip: For a DICOM file, its frame, its number of frames, and whether it names its ultrasound regions. None for
            other files.
        accepted: Whether the box is a proposal of the model that the person accepted.
        full_frame: Whether the person says that the picture is a full frame.
    """

    name: str
    data: bytes
    width: int
    height: int
    roi: Box | None = None
    clip: tuple[int, int, bool] | None = None
    accepted: bool = False
    full_frame: bool = False

    @property
    def uri(self) -> str:
        """The picture as a data URI for an <img>."""
        return images.data_uri(self.data)


def views(files: Sequence[tuple[str, bytes]], marks: Sequence[Mark]) -> list[View]:
    """Check the pictures of one reading.

    Args:
        files: Name and content of each file.
        marks: What the form says about each file; nothing about files beyond its length.

    Raises:
        ReadingError: There are no files, too many files or too many bytes; or some files cannot be read, with one
            problem for each of them.
    """
    if not files:
        raise ReadingError([PageError("error_none")])
    if len(files) > MAX_VIEWS:
        raise ReadingError([PageError("error_many", {"count": len(files), "views": MAX_VIEWS})])
    if sum(len(data) for _, data in files) > MAX_TOTAL:
        raise ReadingError([PageError("error_total", {"limit": MAX_TOTAL // 1_000_000}, 413)])
    found, problems = [], []
    end = time.monotonic() + DECODING
    for number, (name, data) in enumerate(files):
        try:
            found.append(view(name, data, marks[number] if number < len(marks) else Mark(), end=end))
        except PageError as problem:
            problems.append(problem)
    if problems:
        raise ReadingError(problems)
    return found


def view(name: str, data: bytes, mark: Mark = Mark(), frame: str = "", end: float | None = None) -> View:
    """Check one file. A DICOM file becomes a PNG of one frame without a patient before anything else touches it.

    Args:
        name: Name of the file.
        data: Content of the file.
        mark: What the form says about it.
        frame: Number of the frame of a DICOM file, or "" for the middle one.
        end: Time by `time.monotonic` until which DICOM may be read; None for `DECODING` seconds from now.

    Raises:
        PageError: The file or its box cannot be read.
    """
    name = name.replace("\\", "/").rsplit("/", 1)[-1][:120] or "?"
    if not data:
        raise PageError("error_empty", {"name": name})
    if len(data) > MAX_FILE:
        megabytes = {"megabytes": round(len(data) / 1e6), "limit": MAX_FILE // 1_000_000}
        raise PageError("error_large", {"name": name, **megabytes}, 413)
    kind = images.kind(data)
    if kind is None:
        raise PageError("error_kind", {"name": name})
    clip = None
    if kind == "DICOM":
        data, clip = _frame(name, data, frame, time.monotonic() + DECODING if end is None else end)
    width, height = _size(name, data)
    roi = _box(name, mark.roi, width, height)
    accepted = roi is not None and mark.origin == "accepted"
    return View(name, data, width, height, roi, clip, accepted, full_frame=mark.domain == "frame")


def _frame(name: str, data: bytes, frame: str, end: float) -> tuple[bytes, tuple[int, int, bool]]:
    if not _READERS.acquire(blocking=False):
        raise PageError("error_busy", status=503)
    try:
        picture = dicom_guard.read(data, _number(frame), end)
    except dicom_picture.DicomError as error:
        raise PageError(f"error_dicom_{error.code}", {"name": name}) from None
    except TimeoutError:
        raise PageError("error_late", status=504) from None
    finally:
        _READERS.release()
    return dicom.png(picture.pixels), (picture.frame, picture.frames, picture.regions)


def _number(frame: str) -> int | None:
    if not frame:
        return None
    if not _WHOLE.fullmatch(frame):
        raise dicom_picture.DicomError("frame", "not the number of a frame")
    return int(frame)


def _size(name: str, data: bytes) -> tuple[int, int]:
    try:
        return images.size(data, formats=images.SERVED)
    except images.SizeError as error:
        values = {"name": name, "width": error.width, "height": error.height}
        raise PageError("error_size", values | SIZES) from None
    except ValueError:
        raise PageError("error_damaged", {"name": name}) from None


def _box(name: str, roi: str, width: int, height: int) -> Box | None:
    if not roi.strip():
        return None
    parts = [part.strip() for part in roi.split(",")]
    if len(parts) != 4 or not all(_WHOLE.fullmatch(part) for part in parts):
        raise PageError("error_box_form", {"name": name})
    x, y, wide, high = map(int, parts)
    if min(wide, high) < MIN_BOX:
        raise PageError("error_box", {"name": name, "width": wide, "height": high, "min": MIN_BOX})
    if x + wide > width or y + high > height:
        raise PageError("error_box_outside", {"name": name})
    return x, y, wide, high


def columns(form: Mapping[str, str], fields: Sequence[Mapping[str, Any]]) -> dict[str, float | str]:
    """Return the clinical values of a form by column, without those that were left empty.

    Args:
        form: The fields of the form. Those of columns start with "clinical.".
        fields: The columns of the model: name, and categories (None for a number).

    Raises:
        PageError: The value of a number cannot be read, or is not finite.
    """
    categories = {field["name"]: field["categories"] for field in fields}
    given = {
        name.removeprefix("clinical."): text.strip() for name, text in form.items() if name.startswith("clinical.")
    }
    values: dict[str, float | str] = {}
    for name, text in given.items():
        if not text:
            continue
        if categories.get(name, ()) is not None:
            values[name] = text
            continue
        try:
            number = float(text.replace(",", "."))
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise PageError("error_number", {"name": name})
        values[name] = number
    return values
