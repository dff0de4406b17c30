"""The XML files of the public DDTI: one per case, with its TI-RADS grade, its descriptors and the contours of nodules.

Pedraza et al., "An open access thyroid ultrasound image database" (Proc. SPIE 2015;9287). A case's image is the frame
`NUMBER_IMAGE.jpg`, or the one that the file names of this project call `{B|M}_NUMBER-IMAGE-VERSION.jpg`. The grade is a
radiologist's suspicion, not the result of a biopsy. The descriptors are those of the case, so that only the largest
nodule of each frame gets them.

The files are read without document types, entities and references to other files.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree
from xml.parsers import expat

from pydantic import BaseModel, Field, ValidationError

from thyroid import tirads
from thyroid.data import filenames
from thyroid.data.classes import BINARY, Classes
from thyroid.data.filenames import CLASSES
from thyroid.errors import InputError
from thyroid.imaging.geometry import Box
from thyroid.label.exchange.imported import Imported, read_limited, reason, whole_box
from thyroid.label.frames import Frame

MOST_BYTES = 5_000_000
MOST_FILES = 20_000
MOST_POINTS = 20_000
_DEEPEST = 20
_NAME = re.compile(r"([0-9]{1,9})_([0-9]{1,9})\.jpe?g", re.IGNORECASE)
_NUMBER = re.compile(r"[0-9]{1,9}")
_GRADE = re.compile(r"[1-5][a-c]?")
_FIELDS = {
    "composition": "composition",
    "echogenicity": "echogenicity",
    "margins": "margin",
    "calcifications": "foci",
}
"""Elements of the XML and the features that they are."""


class _Point(BaseModel):
    x: float = Field(allow_inf_nan=False)
    y: float = Field(allow_inf_nan=False)


class _Contour(BaseModel):
    points: list[_Point] = Field(default=[], max_length=MOST_POINTS)


class _Contours(BaseModel):
    contours: list[_Contour] = Field(max_length=1000)


@dataclass(frozen=True)
class Case:
    """One case of DDTI.

    Attributes:
        number: Its number.
        grade: Its TI-RADS grade, such as "4a"; "" if it has none.
        features: Its descriptors as `tirads.cell` writes them.
        corners: Left, top, right and bottom of every contour, in pixels, by the number of the image.
        unknown: Descriptors whose words are unknown.
    """

    number: int
    grade: str
    features: dict[str, str]
    corners: dict[int, list[tuple[float, float, float, float]]]
    unknown: tuple[str, ...] = ()


def read(folder: Path, frames: Iterable[Frame], classes: Classes) -> Imported:
    """Read the nodules of the XML files in a folder, or of a single file.

    With the classes B and M, the grades 1 to 3 are B, and 4a to 5 are M. With other classes, the grade is the class
    where one has this name.

    Args:
        folder: Folder with the XML files, or one of them.
        frames: Frames that they may be about.
        classes: The classes.

    Raises:
        InputError: There is no such folder, no XML file in it, or there are too many.
    """
    files = sorted(folder.glob("*.[xX][mM][lL]")) if folder.is_dir() else [folder]
    if not files or len(files) > MOST_FILES:
        raise InputError(
            f"{folder}: has {len(files) or 'no'} XML files; give a folder with 1 to {MOST_FILES:,} of them"
        )
    imported, known = Imported(), _by_number(frames)
    seen: dict[int, str] = {}
    unknown: set[str] = set()
    empty = 0
    for file in files:
        try:
            case = parse(read_limited(file, MOST_BYTES), file.name)
            if case.number in seen:
                raise InputError(f"{file.name}: case {case.number} is in {seen[case.number]}, too; keep one of them")
            seen[case.number] = file.name
            side = _side(case.grade, classes)
        except InputError as error:
            imported.problems.append(str(error))
            continue
        unknown |= set(case.unknown)
        for image, corners in case.corners.items():
            place = f"{file.name}: image {image}"
            try:
                if corners:
                    frame = _only(known.get((case.number, image), []), f"{case.number}_{image}.jpg")
                    imported.add(frame, place, _marks(corners, frame, case.features), side)
                empty += not corners
            except ValueError as error:
                imported.problems.append(f"{place}: {error}")
    if empty:
        imported.notes.append(f"{empty} images without a contour stay unread")
    if unknown:
        imported.notes.append(f"descriptors with no value in ACR TI-RADS were left out: {', '.join(sorted(unknown))}")
    return imported


def _only(frames: list[Frame], name: str) -> Frame:
    """Return the only frame of an image.

    Raises:
        ValueError: There is none, or there are several.
    """
    if len(frames) != 1:
        what = "several frames are" if frames else "no frame is"
        raise ValueError(f"{what} named {name}, or by these numbers in the form B_001-0002-1.0.jpg")
    return frames[0]


def _marks(
    corners: list[tuple[float, float, float, float]], frame: Frame, features: dict[str, str]
) -> list[tuple[Box, dict[str, str]]]:
    """Return the boxes of an image, the largest one with the features of the case.

    Raises:
        ValueError: A contour is outside the frame or has no area.
    """
    boxes = [whole_box(one, frame) for one in corners]
    largest = max(boxes, key=_area)
    return [(box, features if box == largest else {}) for box in boxes]


def _area(box: Box) -> int:
    return box[2] * box[3]


def _by_number(frames: Iterable[Frame]) -> dict[tuple[int, int], list[Frame]]:
    """Return the frames by the numbers of case and image that their names give."""
    found: dict[tuple[int, int], list[Frame]] = {}
    for frame in frames:
        name = frame.path.rsplit("/", 1)[-1]
        if match := _NAME.fullmatch(name):
            found.setdefault((int(match[1]), int(match[2])), []).append(frame)
            continue
        try:
            parsed = filenames.parse(name)
        except ValueError:
            continue
        found.setdefault((parsed.patient, parsed.image), []).append(frame)
    return found


def _side(grade: str, classes: Classes) -> str:
    """Return the class of a TI-RADS grade; "" if the classes have none for it."""
    if classes == BINARY and grade:
        return CLASSES[grade[0] in "45"]
    return classes.read(grade) or "" if grade else ""


def parse(data: bytes, name: str) -> Case:
    """Return the case of an XML file.

    Args:
        data: Content of the file.
        name: Name of the file, for errors.

    Raises:
        InputError: It is no XML or has a document type, is no case of DDTI, or a contour cannot be read.
    """
    root = _tree(data, name)
    if root.tag != "case":
        raise InputError(f"{name}: its outermost element is not <case>; give the XML files of DDTI")
    number, grade = _text(root, "number"), _text(root, "tirads")
    if not _NUMBER.fullmatch(number):
        raise InputError(f"{name}: <number> must be a whole number")
    if grade and not _GRADE.fullmatch(grade):
        raise InputError(f"{name}: <tirads> {grade!r} is no grade; expected 1, 2, 3, 4a, 4b, 4c or 5")
    features, unknown = {}, []
    for field, feature in _FIELDS.items():
        word = _text(root, field)
        if word.startswith("spongiform"):  # DDTI writes "spongiform appearance", in two spellings
            word = "spongiform"
        values = tirads.parse(feature, word)
        if values is not None:
            features[feature] = tirads.cell(feature, values)
        elif word:
            unknown.append(f"{field} {word[:40]!r}")
    corners: dict[int, list[tuple[float, float, float, float]]] = {}
    for mark in root.iter("mark"):
        image = _text(mark, "image")
        if not _NUMBER.fullmatch(image):
            raise InputError(f"{name}: <image> of a <mark> must be a whole number")
        corners.setdefault(int(image), []).extend(
            _contours(mark.findtext("svg") or "", f"{name}: <svg> of image {image}")
        )
    return Case(int(number), grade, features, corners, tuple(unknown))


def _text(element: ElementTree.Element, name: str) -> str:
    return (element.findtext(name) or "").strip().lower()


def _contours(text: str, place: str) -> list[tuple[float, float, float, float]]:
    """Return left, top, right and bottom of each contour of a mark, whose text is JSON.

    Raises:
        InputError: It is not.
    """
    try:
        found = _Contours.model_validate({"contours": json.loads(text) if text.strip() else []})
    except ValidationError as error:
        raise InputError(f"{place}: {reason(error)}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{place} is not JSON: {' '.join(str(error).split())}") from None
    corners = []
    for contour in found.contours:
        if contour.points:
            x, y = [point.x for point in contour.points], [point.y for point in contour.points]
            corners.append((min(x), min(y), max(x), max(y)))
    return corners


def _tree(data: bytes, name: str) -> ElementTree.Element:
    """Return the outermost element of an XML document.

    A document type is refused before anything in it is read: entities that expand to gigabytes, and those that name
    other files, are declared there.

    Raises:
        InputError: The data are not XML, have a document type, or are nested too deeply.
    """
    builder, parser = ElementTree.TreeBuilder(), expat.ParserCreate()
    depth = 0

    def refuse(*_: object) -> None:
        raise InputError(f"{name}: has a document type (<!DOCTYPE>), which is not read; remove it")

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > _DEEPEST:
            raise InputError(f"{name}: elements are nested deeper than {_DEEPEST}; give the XML files of DDTI")
        builder.start(tag, attributes)

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(tag)

    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = start, end, builder.data
    try:
        parser.Parse(data, True)
    except (expat.ExpatError, ValueError, LookupError) as error:
        raise InputError(f"{name}: not XML: {' '.join(str(error).split())}") from None
    return builder.close()
