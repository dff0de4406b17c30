"""Turn a frame or crop into the pixels that the evaluation would have seen, and record what was done."""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thyroid.imaging import dicom_guard, dicom_picture, geometry, images
from thyroid.imaging.geometry import Box, ScanArea
from thyroid.model.engine import Answer
from thyroid.model.locator import Locator, View
from thyroid.records.watch import AUTO, GIVEN, WHOLE
from thyroid.serve import limits
from thyroid.serve.limits import RequestError
from thyroid.serve.payload import CROP, FRAME, Instance

_SMALL_BYTES, _SMALL_PIXELS = 65_536, 65_536


@dataclass(frozen=True)
class Prepared:
    """The input of a network.

    Attributes:
        pixels: The image, uint8 [size, size, 3].
        done: What was done to the image, for the answer.
        roi: The nodule as x, y, width, height in pixels of `pixels`; None if it is not known.
        size: Width and height of the image as it was sent, in pixels; of a DICOM file, those of the frame.
        sha256: As for `Sent`.
    """

    pixels: NDArray[np.uint8]
    done: dict[str, Any]
    roi: Box | None
    size: tuple[int, int]
    sha256: str


@dataclass(frozen=True)
class Sent:
    """A decoded image.

    Attributes:
        frame: The image, uint8 [height, width, 3].
        counted: Which of the frames of a DICOM file this is, for the answer.
        sha256: Hexadecimal SHA-256 of the bytes that were sent, or of shape and pixels of an image that was sent
            decoded; "" if nobody asks for it.
    """

    frame: NDArray[np.uint8]
    counted: dict[str, Any]
    sha256: str


@dataclass(frozen=True)
class Looked:
    """An image in which the locator has to find the nodule.

    Attributes:
        sent: The image.
        seen: The locator's input, with the image's scan area.
    """

    sent: Sent
    seen: View


@dataclass(frozen=True)
class Preprocessing:
    """The preprocessing of one model.

    Attributes:
        domain: The serving domain.
        size: Side of the network's input in pixels.
        margin: Margin with which a region is cropped.
        locator: The model's locator; None if it has none.
        hashes: Whether the SHA-256 of the images is asked for.
    """

    domain: str
    size: int
    margin: float = geometry.MARGIN
    locator: Locator | None = None
    hashes: bool = False

    def locates(self, instance: Instance) -> bool:
        """Return whether an image takes `look` and `finish` with the locator in between, and not `prepare`."""
        return self.locator is not None and instance.roi is None and instance.domain != CROP

    def look(self, instance: Instance, end: float | None = None) -> Looked:
        """Decode an image, find its scan area, and make the locator's input of it.

        Args:
            instance: An instance that the model `locates`.
            end: As for `prepare`.

        Raises:
            RequestError: As for `prepare`.
        """
        assert self.locator is not None
        sent = self._sent(instance, *_frame(instance, end))
        return Looked(sent, self.locator.view(sent.frame))

    def finish(self, instance: Instance, looked: Looked, answer: Answer) -> Prepared:
        """Prepare an image by what the locator answered: crop its best box, or take a crop as it is.

        The crop is exactly that of a request with the best box as its region.

        Args:
            instance: The instance.
            looked: Result of `look` for it.
            answer: The locator's heat [g, g] and distances [g, g, 4].
        """
        assert self.locator is not None
        sent, seen = looked.sent, looked.seen
        heat, distances = answer
        located = self.locator.read(heat, distances, seen, sent.frame.shape)
        if located.is_crop and instance.domain != FRAME:
            note = "no roi given: the image looks like a crop of a nodule and is treated as one"
            return self._whole(sent, note)
        done = {
            "source": AUTO,
            "probability": located.best.probability,
            "unsure": located.unsure,
            "proposals": [{"box": list(one.box), "probability": one.probability} for one in located.proposals],
            "scan_area_found": seen.area.found,
        }
        return self._region(sent, located.best.box, done, seen.area)

    def prepare(self, instance: Instance, end: float | None = None) -> Prepared:
        """Prepare an image exactly as `crop` and the evaluation did.

        It goes through the same functions and the same JPEG round trip.

        Args:
            instance: An instance from `payload.parse`.
            end: Time by `time.monotonic` until which a DICOM file may be read; None for `limits.DEADLINE` seconds from
                now.

        Raises:
            RequestError: The image cannot be decoded in time, has no such frame, or the region lies outside it.
        """
        return self._prepare(instance, self._sent(instance, *_frame(instance, end)))

    def prepare_small(self, instance: Instance) -> Prepared | None:
        """Prepare an image as `prepare` does if that takes about a millisecond, else return None.

        Only a small JPEG of one scan is that fast, since every scan goes over all pixels.

        Raises:
            RequestError: The region lies outside the image.
        """
        data = instance.image
        if not isinstance(data, bytes) or len(data) > _SMALL_BYTES or instance.frame is not None:
            return None
        try:
            frame = images.decode(data, max_pixels=_SMALL_PIXELS, max_scans=1)
        except ValueError:  # `prepare` reports it
            return None
        return self._prepare(instance, self._sent(instance, frame, {}))

    def _sent(self, instance: Instance, frame: NDArray[np.uint8], counted: dict[str, Any]) -> Sent:
        return Sent(frame, counted, _sha256(instance.image) if self.hashes else "")

    def _prepare(self, instance: Instance, sent: Sent) -> Prepared:
        """Make the network's input of an image that needs no locator."""
        height, width = sent.frame.shape[:2]
        box = instance.roi
        if box is not None and (box[0] + box[2] > width or box[1] + box[3] > height):
            raise RequestError(
                f"{_field(instance, 'roi')}: {list(box)} reaches outside the image of {width}x{height} pixels"
            )
        if self.domain == "normal":
            return self._scan_area(sent, box)
        if box is not None:
            return self._region(sent, box, {"source": GIVEN})
        if instance.domain == CROP:
            note = "no roi given: the image is treated as a crop of the nodule, as the request says"
        else:
            note = "no roi given, and this model has no locator: the image is treated as a crop of the nodule"
        return self._whole(sent, note)

    def _scan_area(self, sent: Sent, box: Box | None) -> Prepared:
        """Prepare a full frame for a model of full frames; `box` is the nodule if it is known."""
        area = geometry.scan_area(sent.frame)
        x, y = area.box[:2]
        image = geometry.normal(sent.frame, area)
        done = {"domain": self.domain, "box": list(area.box), "scan_area_found": area.found}
        inner = None if box is None else (box[0] - x, box[1] - y, box[2], box[3])
        return self._input(sent, image, done, area.box, inner)

    def _region(self, sent: Sent, box: Box, done: dict[str, Any], area: ScanArea | None = None) -> Prepared:
        """Prepare the crop of a region; `area` is the scan area of the frame, if it is known."""
        height, width = sent.frame.shape[:2]
        image = geometry.region(sent.frame, box, area, margin=self.margin)
        done = done | {"domain": self.domain, "box": list(box), "margin": self.margin}
        seen = geometry.widened(box, width, height, self.margin)
        return self._input(sent, image, done, seen, _inside_crop(box, width, height, self.margin))

    def _whole(self, sent: Sent, note: str) -> Prepared:
        """Prepare an image that is taken for a crop of a nodule."""
        height, width = sent.frame.shape[:2]
        box = (0, 0, width, height)
        done = {"domain": self.domain, "source": WHOLE, "box": list(box), "note": note}
        return self._input(sent, images.letterbox(sent.frame, max(height, width)), done, box, None)

    def _input(
        self, sent: Sent, image: NDArray[np.uint8], done: dict[str, Any], seen: Box, inner: Box | None
    ) -> Prepared:
        """Make the network's input of an image.

        Args:
            sent: The image as it was sent.
            image: What the network is to see, uint8 [height, width, 3].
            done: What was done so far.
            seen: Where that is in pixels of the frame.
            inner: Where the nodule is in pixels of `image`; None if it is not known.
        """
        pixels = images.rgb(images.stored(image, self.size))
        roi = None if inner is None else _scaled(inner, image.shape[1], image.shape[0], self.size)
        height, width = sent.frame.shape[:2]
        told = sent.counted | done | {"square": _square(seen)}
        return Prepared(pixels, told, roi, (width, height), sent.sha256)


def _frame(instance: Instance, end: float | None) -> tuple[NDArray[np.uint8], dict[str, Any]]:
    """Return the picture, uint8 [height, width, 3], and for a DICOM file which of its frames this is."""
    if not isinstance(instance.image, bytes) or images.kind(instance.image) != "DICOM":
        if instance.frame is not None:
            raise RequestError(f"{_field(instance, 'frame')}: only a DICOM file has frames")
        if not isinstance(instance.image, bytes):
            return instance.image, {}
        try:
            return images.decode(instance.image, formats=images.SERVED), {}
        except ValueError as error:
            what = "not a JPEG, PNG or DICOM file" if images.kind(instance.image) is None else error
            raise RequestError(f"{instance.field}: {what}") from None
    try:
        end = time.monotonic() + limits.DEADLINE if end is None else end
        picture = dicom_guard.read(instance.image, instance.frame, end)
    except TimeoutError:
        raise limits.too_late() from None
    except dicom_picture.DicomError as error:
        field = _field(instance, "frame") if error.code == "frame" else instance.field
        raise RequestError(f"{field}: {error}") from None
    return picture.pixels, {"frame": picture.frame, "frames": picture.frames}


def _sha256(image: bytes | NDArray[np.uint8]) -> str:
    """Return the hexadecimal SHA-256 of a file's bytes, or of shape and pixels of a decoded image."""
    if isinstance(image, bytes):
        return hashlib.sha256(image).hexdigest()
    digest = hashlib.sha256(str(image.shape).encode())
    digest.update(np.ascontiguousarray(image).data)
    return digest.hexdigest()


def _field(instance: Instance, name: str) -> str:
    """Return the name of another field of the same instance, for errors."""
    field = instance.field.removesuffix(".image.b64").replace("inputs.image", f"inputs.{name}")
    return field if field.startswith("inputs") else f"{field}.{name}"


def _square(box: Sequence[int]) -> list[int]:
    """Return x, y and side of the square around a box, in pixels of the image.

    The square may reach outside the image, where the network saw black.
    """
    x, y, width, height = box
    side = max(width, height)
    return [x - (side - width) // 2, y - (side - height) // 2, side]


def _inside_crop(box: Box, width: int, height: int, margin: float) -> Box:
    """Return where the nodule lies in the square that `geometry.region` makes of it."""
    left, top, wide, high = geometry.widened(box, width, height, margin)
    side = max(wide, high)
    return box[0] - left + (side - wide) // 2, box[1] - top + (side - high) // 2, box[2], box[3]


def _scaled(box: Box, width: int, height: int, size: int) -> Box:
    """Return the box after an image of width x height was letterboxed into a square of `size`."""
    scale = size / max(width, height)
    left, top = (size - round(width * scale)) // 2, (size - round(height * scale)) // 2
    return (
        left + round(box[0] * scale),
        top + round(box[1] * scale),
        max(1, round(box[2] * scale)),
        max(1, round(box[3] * scale)),
    )
