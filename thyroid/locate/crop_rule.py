"""The rule that tells an image that is already a crop from a full frame, fitted and measured on both."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from thyroid.data import tables
from thyroid.imaging import geometry, images
from thyroid.imaging.geometry import Box
from thyroid.locate.frames import Frames
from thyroid.locate.proposals import Proposals
from thyroid.metrics import detection
from thyroid.model import locator
from thyroid.records.locate import CropRule
from thyroid.storage import mirror

MARGINS = (0.0, 0.15, 0.5)
"""Margins of the crops that people send: tight, as in DDTI, and wide."""


@dataclass(frozen=True)
class Crops:
    """Crops as people would send them, one for each of some marked frames.

    Attributes:
        shapes: Height and width of each crop in pixels.
        pixels: Each crop as the locator sees it, uint8 [n, size, size, 3].
        frames: The crops as frames, with the scan areas that are found on them.
    """

    shapes: tuple[tuple[int, int], ...]
    pixels: NDArray[np.uint8]
    frames: Frames

    @classmethod
    def cut(cls, frames: Frames, seed: int) -> "Crops":
        """Cut the largest nodule out of each frame, with one of `MARGINS` and half of them padded to a square.

        Args:
            frames: Marked frames.
            seed: Seed of the margins.
        """
        rng = np.random.default_rng(seed)
        shapes, pixels, rows = [], [], []
        mirror.fetch(frames.table["file"], "fetch frames")
        for row, boxes, area in zip(frames.table.to_dict("records"), frames.boxes, frames.areas(), strict=True):
            frame = images.decode(Path(row["file"]).read_bytes())
            crop = _cut(frame, boxes, area, float(rng.choice(MARGINS)), square=bool(rng.random() < 0.5))
            seen = locator.view(crop, frames.size)
            shapes.append(crop.shape[:2])
            pixels.append(seen.pixels)
            sides = dict(zip(tables.AREA, seen.area.box, strict=True))
            rows.append(row | sides)
        table = pd.DataFrame(rows)
        blank = np.zeros((0, frames.size, frames.size, 3), np.uint8)
        return cls(tuple(shapes), np.stack(pixels) if pixels else blank, Frames(table, frames.boxes, frames.size))


def _cut(frame: images.Pixels, boxes: tuple[Box, ...], area: Box, margin: float, *, square: bool) -> images.Pixels:
    """Return a crop of a frame's largest nodule. The frame is the image of its scan area."""
    x, y, width, height = max(boxes, key=lambda box: box[2] * box[3])
    high, wide = frame.shape[:2]
    left, top = min(max(x - area[0], 0), wide - 1), min(max(y - area[1], 0), high - 1)
    inside = (left, top, max(1, min(width, wide - left)), max(1, min(height, high - top)))
    x, y, width, height = geometry.widened(inside, wide, high, margin)
    crop = frame[y : y + height, x : x + width]
    return images.letterbox(crop, max(width, height)) if square else np.ascontiguousarray(crop)


def features(frames: Frames, shapes: Sequence[tuple[int, int]], proposals: Proposals) -> NDArray[np.float64]:
    """Return `locator.crop_features` of images.

    Args:
        frames: The images with their scan areas.
        shapes: Height and width of each image in pixels.
        proposals: Their proposals.

    Returns:
        float64 [n, 3].
    """
    rows = [
        locator.crop_features(shape, area, boxes[0])
        for shape, area, boxes in zip(shapes, frames.areas(), proposals.boxes, strict=True)
    ]
    return np.array(rows).reshape(-1, 3)


def shapes_of(frames: Frames) -> list[tuple[int, int]]:
    """Return height and width of frames in pixels."""
    return [tuple(pair) for pair in frames.table[["height", "width"]].astype(int).to_numpy().tolist()]


@dataclass(frozen=True)
class Measured:
    """What the rule looks at, for some frames and for crops of them.

    Attributes:
        frames: Features of the frames [n, 3].
        crops: Features of the crops [n, 3].
        patient: Patient number of each frame [n].
    """

    frames: NDArray[np.float64]
    crops: NDArray[np.float64]
    patient: NDArray[np.int_]

    @classmethod
    def of(cls, frames: Frames, proposals: Proposals, crops: Crops, on_crops: Proposals) -> "Measured":
        """Measure marked frames with their proposals, and crops of them with theirs."""
        whole = features(frames, shapes_of(frames), proposals)
        return cls(whole, features(crops.frames, crops.shapes, on_crops), frames.table["patient"].to_numpy(int))


def fit(development: Measured, test: Measured, seed: int) -> CropRule:
    """Fit the rule on development frames and measure it on test frames.

    Args:
        development: Of the development frames.
        test: Of the test frames.
        seed: Seed of the bootstrap.
    """
    values = np.concatenate([development.frames, development.crops])
    is_crop = np.repeat([False, True], [len(development.frames), len(development.crops)])
    scaler, fitted = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced")).fit(values, is_crop)
    weights = fitted.coef_[0] / scaler.scale_
    intercept = float(fitted.intercept_[0] - weights @ scaler.mean_)
    frames_right = test.frames @ weights + intercept <= 0
    crops_right = test.crops @ weights + intercept > 0
    side, area, box = weights.tolist()
    return CropRule(
        intercept=intercept,
        side=side,
        area=area,
        box=box,
        frames=len(frames_right),
        frames_right=detection.mean_interval(frames_right, test.patient, seed),
        crops=len(crops_right),
        crops_right=detection.mean_interval(crops_right, test.patient, seed),
    )
