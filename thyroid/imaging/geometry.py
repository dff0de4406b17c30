"""Where the tissue is on a frame, and the square image of a region.

Training, evaluation and the endpoint use the same functions.
"""

import hashlib
import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from thyroid.imaging import images
from thyroid.records.settings import MARGIN as MARGIN

Box = tuple[int, int, int, int]
"""The x, y, width and height of a rectangle in pixels."""

PLACE_ERROR, SIZE_ERROR = 0.17, 0.33
"""A locator's errors as standard deviations: of a box's centre as a share of its sides, and of log sides.

They were measured on DDTI's frames, cross-fitted by patient.
"""
LEAST_SIDE = 12
"""Smallest side in pixels of a box that was disturbed."""


@dataclass(frozen=True)
class ScanArea:
    """The part of a frame that shows tissue.

    Attributes:
        mask: uint8 [height, width], 0 or 1.
        box: Bounding box of the mask in pixels of the frame.
        found: False if no area stands out and the whole frame is taken.
    """

    mask: NDArray[np.uint8]
    box: Box
    found: bool


def scan_area(frame: images.Pixels) -> ScanArea:
    """Find the ultrasound image within the scanner's frame.

    Speckle fills an area, whereas text, ruler ticks and logos are thin. So pixels brighter than the background are
    closed over a few pixels, and everything thinner than a twelfth of the frame is opened away. The remaining pieces
    that are at least a quarter of the largest one (split screens) are taken with their convex hull. The method is
    deterministic.

    Args:
        frame: uint8 [height, width, 3].
    """
    red, green, blue = cv2.split(frame)
    grey = cv2.max(cv2.max(red, green), blue)
    height, width = grey.shape
    background = int(cv2.calcHist([grey], [0], None, [256], [0, 256])[:64].argmax())
    _, tissue = cv2.threshold(grey, background + 4, 1, cv2.THRESH_BINARY)
    unit = max(3, min(height, width) // 60) | 1
    tissue = cv2.morphologyEx(tissue, cv2.MORPH_CLOSE, np.ones((unit, unit), np.uint8))
    thick = max(5, min(height, width) // 12) | 1
    tissue = cv2.morphologyEx(tissue, cv2.MORPH_OPEN, np.ones((thick, thick), np.uint8))
    pieces = _pieces(tissue)
    if sum(area for area, _ in pieces) < 0.1 * height * width:
        return ScanArea(np.ones((height, width), np.uint8), (0, 0, width, height), False)
    points = np.concatenate([outline for _, outline in pieces])
    mask = np.zeros((height, width), np.uint8)
    cv2.fillConvexPoly(mask, cv2.convexHull(points), 1)
    x, y, w, h = cv2.boundingRect(points)
    return ScanArea(mask, (x, y, w, h), True)


def _pieces(tissue: NDArray[np.uint8]) -> list[tuple[int, NDArray[np.int32]]]:
    """Return area in pixels and outline [points, 1, 2] of the pieces that are at least a quarter of the largest one."""
    contours, hierarchy = cv2.findContours(tissue, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    outlines = (
        [one for one, (_, _, _, parent) in zip(contours, hierarchy[0], strict=True) if parent < 0] if contours else []
    )
    if len(outlines) == 1:  # the usual case; labelling every pixel takes longer than all the rest
        return [(cv2.countNonZero(tissue), outlines[0])]
    _, parts, statistics, _ = cv2.connectedComponentsWithStats(tissue)
    areas = [int(statistics[parts[y, x], cv2.CC_STAT_AREA]) for x, y in (one[0, 0] for one in outlines)]
    return [(area, one) for area, one in zip(areas, outlines, strict=True) if area >= max(areas) / 4]


def normal(frame: images.Pixels, area: ScanArea | None = None) -> images.Pixels:
    """Return the frame's scan area: everything outside is blanked, then it is cut to its bounding box.

    Burned-in text may name the patient, and a scanner's layout reveals the hospital. Both are removed before anything
    else sees the image.

    Args:
        frame: uint8 [height, width, 3].
        area: Scan area of this frame, if it is known.

    Returns:
        uint8 [area height, area width, 3].
    """
    area = area or scan_area(frame)
    x, y, width, height = area.box
    blanked: images.Pixels = cv2.copyTo(frame, area.mask)
    return blanked[y : y + height, x : x + width]


def region(frame: images.Pixels, box: Box, area: ScanArea | None = None, margin: float = MARGIN) -> images.Pixels:
    """Return one region with its margin as a square: blank outside the scan area, padded with black, never stretched.

    Args:
        frame: uint8 [height, width, 3].
        box: x, y, width, height in pixels of the frame, inside it.
        area: Scan area of this frame, if it is known. Pixels of `box` itself count as tissue.
        margin: Share of the box's sides to widen it by, see `widened`.

    Returns:
        uint8 [side, side, 3], where side is the longer side of the widened box.

    Raises:
        ValueError: The box has no size or is outside the frame.
    """
    x, y, width, height = box
    if width < 1 or height < 1 or x < 0 or y < 0 or x + width > frame.shape[1] or y + height > frame.shape[0]:
        raise ValueError(f"region {box} is outside the {frame.shape[1]}x{frame.shape[0]} image")
    area = area or scan_area(frame)
    mask = area.mask.copy()
    mask[y : y + height, x : x + width] = 1
    left, top, wide, high = widened(box, frame.shape[1], frame.shape[0], margin)
    rows, columns = slice(top, top + high), slice(left, left + wide)
    cut = cv2.copyTo(frame[rows, columns], mask[rows, columns])
    return images.letterbox(cut, max(cut.shape[:2]))


def widened(box: Box, frame_width: int, frame_height: int, margin: float = MARGIN) -> Box:
    """Return `box` with its margin, a share of its own width (height) on each side, clipped to the frame."""
    x, y, width, height = box
    dx, dy = round(margin * width), round(margin * height)
    left, top = max(0, x - dx), max(0, y - dy)
    return left, top, min(frame_width, x + width + dx) - left, min(frame_height, y + height + dy) - top


def disturbed(box: Box, frame_width: int, frame_height: int, jitter: float, seed: str) -> Box:
    """Return a box as a locator might have proposed it: moved, wider or narrower, and clipped to the frame.

    The centre moves by normal deviates of `PLACE_ERROR` times the box's sides, and the logarithms of width and height
    change by normal deviates of `SIZE_ERROR`.

    Args:
        box: x, y, width, height in pixels of the frame, inside it.
        frame_width: Width of the frame in pixels.
        frame_height: Height of the frame in pixels.
        jitter: Multiple of both errors, from 0.
        seed: Text that decides the draw. The same text gives the same box, and another `jitter` scales the same errors.

    Returns:
        The disturbed box, or `box` itself if a side of the disturbed one is below `LEAST_SIDE` inside the frame.
    """
    x, y, width, height = box
    rng = np.random.default_rng(int(hashlib.sha256(seed.encode()).hexdigest(), 16))
    right_by, down_by, wider_by, higher_by = (jitter * rng.standard_normal(4)).tolist()
    wide, high = width * math.exp(SIZE_ERROR * wider_by), height * math.exp(SIZE_ERROR * higher_by)
    left = x + width * (0.5 + PLACE_ERROR * right_by) - wide / 2
    top = y + height * (0.5 + PLACE_ERROR * down_by) - high / 2
    right, bottom = min(frame_width, round(left + wide)), min(frame_height, round(top + high))
    left, top = max(0, round(left)), max(0, round(top))
    return (left, top, right - left, bottom - top) if min(right - left, bottom - top) >= LEAST_SIDE else box
