"""Proposes boxes around nodules on a full frame. NumPy and OpenCV alone, so that the endpoint can do it.

The network (`locator_network`) sees the scan area, letterboxed. It answers with a heat map, in which a nodule's centre
is a peak ("Objects as Points", arXiv 1904.07850), and with four distances per cell, from the cell's centre to the sides
of the box (FCOS, arXiv 1904.01355). This module prepares the input and turns the answer into proposals in pixels of the
frame. The best proposal carries a calibrated probability. It can say that a box is unsure. It cannot say that there is
no nodule, because the frames that it learnt from all have one.
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from thyroid.imaging import geometry, images
from thyroid.imaging.geometry import Box, ScanArea
from thyroid.records.locate import BoxCalibration, CropRule, LocatorRecord

KERAS, OPENVINO, OPENVINO_WEIGHTS = FILES = ("locator/model.keras", "locator/model.xml", "locator/model.bin")
"""Files of an artefact, and of the step `locate`, with the locator's network in both forms."""
MOST = 3
"""Largest number of proposals for a frame."""
OVERLAP = 0.3
"""IoU above which the weaker of two proposals is dropped."""
_PEAKS = 10
FARTHEST, NEAREST = 4.0, -3.0
"""Largest and smallest logarithm of a distance in cells."""
_LEAST_SIDE = 8
"""Shortest side of a proposal in pixels of the frame, as long as the scan area has room for it."""
_LEAST_HEAT = 1e-4
"""Heat that is assumed for the rival of a proposal that has none."""

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Place:
    """Where the scan area of a frame lies in the locator's input.

    Attributes:
        area: Bounding box of the scan area in pixels of the frame.
        scale: Pixels of the input per pixel of the frame.
        left: Column of the input at which the scan area begins.
        top: Row of the input at which the scan area begins.
    """

    area: Box
    scale: float
    left: int
    top: int

    @classmethod
    def of(cls, area: Box, size: int) -> "Place":
        """Return the place of a scan area after `images.letterbox` to a square of `size` pixels."""
        width, height = area[2:]
        scale = size / max(width, height)
        left, top = (size - max(1, round(width * scale))) // 2, (size - max(1, round(height * scale))) // 2
        return cls(area, scale, left, top)


@dataclass(frozen=True)
class View:
    """The locator's input for one frame.

    Attributes:
        pixels: The scan area, letterboxed: uint8 [size, size, 3].
        area: The scan area of the frame.
        place: Where the scan area lies in the input.
    """

    pixels: NDArray[np.uint8]
    area: ScanArea
    place: Place


@dataclass(frozen=True)
class Proposal:
    """A box that may hold a nodule.

    Attributes:
        box: x, y, width, height in pixels of the frame, inside the scan area.
        heat: Value of its peak, 0 to 1.
        probability: Calibrated probability that it fits a nodule with an IoU of at least .5.
    """

    box: Box
    heat: float
    probability: float


@dataclass(frozen=True)
class Reading:
    """What a locator says about one frame.

    Attributes:
        proposals: One to `MOST` proposals, the best one first.
        unsure: Whether the best one's probability is below the locked limit.
        is_crop: Whether the image looks like a crop of a nodule and not like a full frame.
    """

    proposals: tuple[Proposal, ...]
    unsure: bool
    is_crop: bool

    @property
    def best(self) -> Proposal:
        """The best proposal."""
        return self.proposals[0]


@dataclass(frozen=True)
class Locator:
    """Prepares frames for a locator's network and reads its answers.

    Attributes:
        record: What is known of the locator (model.json, locate.json).
    """

    record: LocatorRecord

    def view(self, frame: images.Pixels, area: ScanArea | None = None) -> View:
        """Return the network's input for a frame.

        Args:
            frame: uint8 [height, width, 3].
            area: Scan area of this frame, if it is known.
        """
        return view(frame, self.record.image_size, area)

    def read(self, heat: Floats, distances: Floats, seen: View, shape: tuple[int, ...]) -> Reading:
        """Return the proposals for a frame.

        Args:
            heat: The network's heat map [g, g].
            distances: The network's distances [g, g, 4].
            seen: The input that this is the answer to.
            shape: Shape of the frame, height first.
        """
        found = propose(heat, distances, self.record.stride, seen.place)
        heats = [value for _, value in found]
        sure = probabilities(heats, self.record.calibration)
        proposals = tuple(Proposal(box, value, p) for (box, value), p in zip(found, sure, strict=True))
        best = proposals[0]
        return Reading(
            proposals,
            best.probability < self.record.limit,
            is_crop(self.record.crop_rule, shape, seen.place.area, best.box),
        )


def view(frame: images.Pixels, size: int, area: ScanArea | None = None) -> View:
    """Return a locator's input for a frame: its scan area as `crop` stores it, letterboxed.

    Args:
        frame: uint8 [height, width, 3].
        size: Side of the input in pixels.
        area: Scan area of this frame, if it is known.
    """
    area = area or geometry.scan_area(frame)
    pixels = images.rgb(images.stored(geometry.normal(frame, area), size))
    return View(np.ascontiguousarray(pixels), area, Place.of(area.box, size))


def decode(distances: Floats, stride: int) -> Floats:
    """Return the box of every cell in pixels of the input: x and y of both corners.

    Args:
        distances: Logarithms of the distances to the left, upper, right and lower side in cells [..., g, g, 4].
        stride: Pixels of the input per cell.

    Returns:
        float32 [..., g, g, 4].
    """
    centres = (np.arange(distances.shape[-2], dtype=np.float32) + 0.5) * stride
    reach = np.exp(np.clip(distances, NEAREST, FARTHEST)) * stride
    x, y = centres[None, :], centres[:, None]
    sides = (x - reach[..., 0], y - reach[..., 1], x + reach[..., 2], y + reach[..., 3])
    boxes: Floats = np.stack(sides, -1)
    return boxes


def propose(heat: Floats, distances: Floats, stride: int, place: Place) -> list[tuple[Box, float]]:
    """Return at most `MOST` boxes in pixels of the frame with their heat, the best one first; at least one.

    Every peak of the heat map is a candidate. Its box is the mean of the boxes of its cell and the eight cells around
    it, weighted by their heat, clipped to the scan area. Of candidates that overlap by more than `OVERLAP` the weaker
    ones are dropped.

    Args:
        heat: Heat map [g, g], 0 to 1.
        distances: Distances [g, g, 4].
        stride: Pixels of the input per cell.
        place: Where the frame's scan area lies in the input.
    """
    heat = np.nan_to_num(heat)  # a network that has gone wrong must not leave a frame without a box
    boxes = decode(np.nan_to_num(distances), stride)
    rows, columns = np.nonzero(heat == cv2.dilate(heat, np.ones((3, 3), np.uint8)))
    order = np.argsort(-heat[rows, columns], kind="stable")[:_PEAKS]
    kept: list[tuple[Box, float]] = []
    for row, column in zip(rows[order].tolist(), columns[order].tolist(), strict=True):
        near = slice(max(0, row - 1), row + 2), slice(max(0, column - 1), column + 2)
        weight = heat[near].ravel() + 1e-9
        mean = (boxes[near].reshape(-1, 4) * weight[:, None]).sum(0) / weight.sum()
        box = _on_frame(mean, place)
        if all(iou(box, other) <= OVERLAP for other, _ in kept):
            kept.append((box, float(heat[row, column])))
        if len(kept) == MOST:
            break
    return kept


def _on_frame(corners: Floats, place: Place) -> Box:
    """Return a box in whole pixels of the frame, clipped to the scan area."""
    x, y, width, height = place.area
    sides = []
    for low, high, offset, start, length in (
        (corners[0], corners[2], place.left, x, width),
        (corners[1], corners[3], place.top, y, height),
    ):
        first = start + (float(low) - offset) / place.scale
        last = start + (float(high) - offset) / place.scale
        least = min(_LEAST_SIDE, length)
        first = min(max(round(first), start), start + length - least)
        last = max(min(round(last), start + length), first + least)
        sides.append((first, last - first))
    (left, wide), (top, high_) = sides
    return left, top, wide, high_


def iou(one: Box, other: Box) -> float:
    """Return the intersection over union of two boxes (x, y, width, height)."""
    wide = min(one[0] + one[2], other[0] + other[2]) - max(one[0], other[0])
    high = min(one[1] + one[3], other[1] + other[3]) - max(one[1], other[1])
    shared = max(0, wide) * max(0, high)
    return shared / (one[2] * one[3] + other[2] * other[3] - shared)


def leads(heats: list[float]) -> list[float]:
    """Return for each proposal the logarithm of its heat over that of its strongest rival in the frame."""
    result = []
    for place, heat in enumerate(heats):
        rival = max([other for number, other in enumerate(heats) if number != place], default=_LEAST_HEAT)
        result.append(math.log(max(heat, _LEAST_HEAT) / max(rival, _LEAST_HEAT)))
    return result


def logit(heat: float) -> float:
    """Return the logit of a heat, which is kept away from 0 and 1."""
    inside = min(max(heat, _LEAST_HEAT), 1 - _LEAST_HEAT)
    return math.log(inside / (1 - inside))


def probabilities(heats: list[float], calibration: BoxCalibration) -> list[float]:
    """Return the calibrated probability of each proposal of a frame.

    Args:
        heats: Heats of all proposals of the frame, the best one first.
        calibration: The calibration.
    """
    return [
        _sigmoid(
            calibration.intercept
            + calibration.heat * logit(heat)
            + calibration.lead * lead
            + (calibration.runner_up if rank else 0.0)
        )
        for rank, (heat, lead) in enumerate(zip(heats, leads(heats), strict=True))
    ]


def crop_features(shape: tuple[int, ...], area: Box, box: Box) -> tuple[float, float, float]:
    """Return what tells a crop from a frame, in the order of `CropRule`'s side, area and box.

    Args:
        shape: Shape of the image, height first.
        area: Bounding box of its scan area.
        box: Its best proposal.
    """
    height, width = shape[:2]
    of_area = area[2] * area[3]
    return math.log(max(height, width)), of_area / (height * width), math.sqrt(box[2] * box[3] / of_area)


def is_crop(rule: CropRule, shape: tuple[int, ...], area: Box, box: Box) -> bool:
    """Return whether an image is a crop by the rule; the arguments are as for `crop_features`."""
    side, share, box_share = crop_features(shape, area, box)
    return rule.intercept + rule.side * side + rule.area * share + rule.box * box_share > 0


def _sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-max(-60.0, min(60.0, value))))
