"""COCO's detection format, which most programs for drawing boxes read and write.

Lin et al., "Microsoft COCO: common objects in context" (ECCV 2014). An image has `verdict` and `side` beside COCO's own
fields, and an annotation has the features of the nodule and the side in `attributes`, where CVAT keeps such things.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError

from thyroid import RESEARCH_USE_ONLY
from thyroid.data.classes import Classes
from thyroid.errors import InputError
from thyroid.imaging.geometry import Box
from thyroid.label.exchange.imported import Imported, read_limited, reason, whole_box
from thyroid.label.frames import Frame
from thyroid.label.readings import FEATURES, Reading, Verdict, features_of

CATEGORY = "nodule"
"""Name of the only category that is written."""
MOST_BYTES = 100_000_000
_Number = Annotated[float, Field(allow_inf_nan=False)]
_Id = Annotated[int, Field(ge=-(2**63), lt=2**63)]


class _Category(BaseModel):
    id: _Id
    name: str


class _Image(BaseModel):
    id: _Id
    file_name: str
    width: int | None = None
    height: int | None = None
    verdict: str = ""
    side: str = ""


class _Annotation(BaseModel):
    id: _Id
    image_id: _Id
    category_id: _Id
    bbox: tuple[_Number, _Number, _Number, _Number]
    attributes: dict[str, Any] = {}


class _File(BaseModel):
    images: list[_Image]
    annotations: list[_Annotation]
    categories: list[_Category]


def read(path: Path, frames: Iterable[Frame], classes: Classes, categories: Sequence[str] = (CATEGORY,)) -> Imported:
    """Read the nodules of a COCO file.

    An image without an annotation is left unread, unless its verdict is "none" or "unusable": other programs do not say
    whether somebody has looked at it.

    Args:
        path: JSON file.
        frames: Frames that it may name by `file_name`: their path below the folder of scans, or its last part.
        classes: The classes, one of which `side` may name.
        categories: Names of the categories that are nodules; case does not matter.

    Raises:
        InputError: There is no such file, it is too large or no COCO file, or an id or an image is there twice.
    """
    file = _parse(path)
    for kind, ids in (
        ("images", [image.id for image in file.images]),
        ("annotations", [annotation.id for annotation in file.annotations]),
        ("categories", [category.id for category in file.categories]),
        ("images: file_name", [image.file_name for image in file.images]),
    ):
        if twice := [one for one, count in Counter(ids).items() if count > 1]:
            what = kind if "file_name" in kind else f"{kind}: id"
            raise InputError(f"{path}: {what} {twice[0]} occurs {Counter(ids)[twice[0]]} times; each must be unique")
    imported = Imported()
    nodules = _nodules(file, categories, imported)
    by_image: dict[int, list[_Annotation]] = {image.id: [] for image in file.images}
    for annotation in file.annotations:
        if annotation.image_id not in by_image:
            imported.problems.append(f"annotation {annotation.id}: image_id {annotation.image_id} is not in images")
        elif annotation.category_id in nodules:
            by_image[annotation.image_id].append(annotation)
    known, empty = _Names(frames), 0
    for image in file.images:
        try:
            empty += not _add(imported, image, by_image[image.id], known.of(image), classes)
        except ValueError as error:
            imported.problems.append(f"image {image.id} ({image.file_name}): {error}")
    if empty:
        imported.notes.append(f"{empty} images without an annotation or a verdict stay unread")
    return imported


def _parse(path: Path) -> _File:
    data = read_limited(path, MOST_BYTES)
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON: {' '.join(str(error).split())}") from None
    try:
        return _File.model_validate(content)
    except ValidationError as error:
        raise InputError(f"{path}: not a COCO file of boxes: {reason(error)}") from None


def _nodules(file: _File, categories: Sequence[str], imported: Imported) -> set[int]:
    """Return the ids of the categories that are nodules; annotations of others are problems."""
    wanted = {name.strip().casefold() for name in categories}
    names = {category.id: category.name for category in file.categories}
    used = Counter(annotation.category_id for annotation in file.annotations)
    for number, count in used.items():
        if number not in names:
            imported.problems.append(f"category_id {number} of {count} annotations is not in categories")
        elif names[number].strip().casefold() not in wanted:
            imported.problems.append(
                f"category {names[number]!r} of {count} annotations is unknown; if it means nodules, give it with "
                "--category"
            )
    return {number for number, name in names.items() if name.strip().casefold() in wanted}


class _Names:
    """The frames by the names that a file may give them: their path, or its last part where only one has it."""

    def __init__(self, frames: Iterable[Frame]) -> None:
        self._by_path = {frame.path: frame for frame in frames}
        self._by_last: dict[str, list[Frame]] = {}
        for frame in self._by_path.values():
            self._by_last.setdefault(frame.path.rsplit("/", 1)[-1], []).append(frame)

    def of(self, image: _Image) -> Frame:
        """Return the frame of an image.

        Raises:
            ValueError: There is none, several have the name, or its size is not that of the image.
        """
        name = image.file_name.replace("\\", "/").removeprefix("./")
        found = self._by_path.get(name)
        if found is None:
            same = self._by_last.get(name.rsplit("/", 1)[-1], [])
            if len(same) != 1:
                raise ValueError("several frames have this name; give their paths" if same else "no such frame")
            found = same[0]
        for side in ("width", "height"):
            given, own = getattr(image, side), getattr(found, side)
            if given is not None and given != own:
                raise ValueError(f"{side} {given} is not that of the frame, {own}, so that its boxes would not fit")
        return found


def _add(imported: Imported, image: _Image, annotations: list[_Annotation], frame: Frame, classes: Classes) -> bool:
    """Add what a file says about a frame. Return False if it says nothing.

    Raises:
        ValueError: Something cannot be used.
    """
    if frame.path in imported.readings:
        raise ValueError("another image is the same frame")
    if image.verdict and image.verdict not in set(Verdict):
        raise ValueError(f"verdict {image.verdict!r} is unknown; choose from {', '.join(Verdict)}")
    side = _side([image.side, *(annotation.attributes.get("side") or "" for annotation in annotations)], classes)
    if annotations:
        if image.verdict not in ("", Verdict.NODULES):
            raise ValueError(f"verdict {image.verdict} contradicts its {len(annotations)} annotations")
        place = f"image {image.id} ({image.file_name})"
        imported.add(frame, place, [_mark(annotation, frame) for annotation in annotations], side)
        return True
    if image.verdict == Verdict.NODULES:
        raise ValueError("verdict nodules, but it has no annotation")
    if image.verdict:
        imported.readings[frame.path] = Reading(verdict=Verdict(image.verdict), side=side)
    return bool(image.verdict)


def _side(given: Sequence[Any], classes: Classes) -> str:
    """Return the class that all texts name which are not empty.

    Raises:
        ValueError: One is none of the classes, or they contradict each other.
    """
    found = set()
    for text in filter(None, given):
        name = classes.read(str(text))
        if name is None:
            raise ValueError(f"side {text!r} is none of the classes {', '.join(classes.names)}")
        found.add(name)
    if len(found) > 1:
        raise ValueError(f"side: its annotations name {' and '.join(sorted(found))}; a frame has one class")
    return found.pop() if found else ""


def _mark(annotation: _Annotation, frame: Frame) -> tuple[Box, dict[str, str]]:
    """Return box and features of a nodule. Attributes that are no features are ignored.

    Raises:
        ValueError: The box is outside the frame or has no area, or a feature has an unknown value.
    """
    x, y, width, height = annotation.bbox
    given = {name: annotation.attributes[name] for name in FEATURES if annotation.attributes.get(name)}
    try:
        return whole_box((x, y, x + width, y + height), frame), features_of(given)
    except ValueError as error:
        raise ValueError(f"annotation {annotation.id}: {error}") from None


def content(readings: Mapping[str, Reading], frames: Iterable[Frame]) -> dict[str, Any]:
    """Return the content of a COCO file with the frames that were read.

    Args:
        readings: Reading by path of the frame.
        frames: The frames.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for frame in frames:
        if (reading := readings.get(frame.path)) is None:
            continue
        images.append(
            {
                "id": len(images) + 1,
                "file_name": frame.path,
                "width": frame.width,
                "height": frame.height,
                "verdict": reading.verdict.value,
                "side": reading.side,
            }
        )
        annotations += [
            {
                "id": len(annotations) + number,
                "image_id": len(images),
                "category_id": 1,
                "bbox": list(region.box),
                "area": region.width * region.height,
                "iscrowd": 0,
                "segmentation": [],
                "attributes": dict(region.features) | ({"side": reading.side} if reading.side else {}),
            }
            for number, region in enumerate(reading.regions, 1)
        ]
    return {
        "info": {"description": f"Thyroid nodules. {RESEARCH_USE_ONLY}"},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": CATEGORY, "supercategory": "thyroid"}],
    }
