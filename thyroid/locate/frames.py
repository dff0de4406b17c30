"""The frames that a locator learns from and is measured on, with their marked nodules, in its own input's pixels."""

from dataclasses import dataclass, replace

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from thyroid.data import crops, tables
from thyroid.data.version import DataVersion
from thyroid.imaging.geometry import Box
from thyroid.model import locator

STRETCH, ASPECT, SHIFT = 0.25, 0.1, 0.12
"""Ranges of the augmentation: logarithms of scale and of the ratio of the sides, and a share of the input's side."""

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Frames:
    """Full frames in a fixed order.

    Attributes:
        table: One row per frame: the columns of `DataVersion.examples`, width, height and the scan area.
        boxes: Marked nodules of each frame, x, y, width, height in pixels of the frame; empty where there is none.
        size: Side of the locator's input in pixels.
    """

    table: pd.DataFrame
    boxes: tuple[tuple[Box, ...], ...]
    size: int

    @classmethod
    def read(cls, data: DataVersion, size: int) -> "Frames":
        """Return the frames in use of a cropped data version.

        Args:
            data: The data version.
            size: Side of the locator's input in pixels.
        """
        scans = data.used[data.used["domain"] == "normal"]
        table = data.examples("normal").merge(scans[["path", "width", "height", *tables.AREA]], on="path")
        marked: dict[str, list[Box]] = {}
        for path, box in zip(data.regions["path"].tolist(), crops.boxes_of(data.regions), strict=True):
            marked.setdefault(path, []).append(box)
        boxes = tuple(tuple(marked.get(path, ())) for path in table["path"].tolist())
        return cls(table, boxes, size)

    def __len__(self) -> int:
        """Return the number of frames."""
        return len(self.table)

    @property
    def marked(self) -> NDArray[np.bool_]:
        """Whether each frame has a marked nodule [n]."""
        return np.array([len(boxes) > 0 for boxes in self.boxes], bool)

    def where(self, chosen: NDArray[np.bool_]) -> "Frames":
        """Return some of the frames.

        Args:
            chosen: Whether each frame is chosen [n].
        """
        boxes = tuple(one for one, keep in zip(self.boxes, chosen.tolist(), strict=True) if keep)
        return replace(self, table=self.table[chosen].reset_index(drop=True), boxes=boxes)

    def areas(self) -> list[Box]:
        """Return the bounding box of each frame's scan area in pixels of the frame."""
        return [tuple(area) for area in self.table[list(tables.AREA)].astype(int).to_numpy().tolist()]

    def targets(self) -> list[Floats]:
        """Return the marked nodules of each frame in pixels of the input: x and y of both corners, float32 [k, 4]."""
        result = []
        for boxes, area in zip(self.boxes, self.areas(), strict=True):
            place = locator.Place.of(area, self.size)
            xywh = np.array(boxes, np.float32).reshape(-1, 4)
            corners = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
            offset = np.array([area[0], area[1], area[0], area[1]], np.float32)
            result.append((corners - offset) * place.scale + np.array([place.left, place.top] * 2, np.float32))
        return result


def seed_of(sha256: str, number: int, seed: int) -> list[int]:
    """Return the seed of one view of an image, which depends on nothing but the image, the view and the run's seed."""
    return [int(sha256[:15], 16), number, seed]


def augmentation(rng: np.random.Generator, size: int) -> Floats:
    """Draw an affine transform: a flip, a scale, a ratio of the sides and a shift.

    Args:
        rng: Source of randomness.
        size: Side of the input in pixels.

    Returns:
        float32 [2, 3], from pixels of the input to pixels of the view.
    """
    wide = np.exp(rng.uniform(-STRETCH, STRETCH))
    high = wide * np.exp(rng.uniform(-ASPECT, ASPECT))
    wide *= rng.choice([-1.0, 1.0])
    x, y = rng.uniform(-SHIFT, SHIFT, 2) * size
    centre = (size - 1) / 2
    return np.array([[wide, 0, centre - wide * centre + x], [0, high, centre - high * centre + y]], np.float32)


def augment(image: NDArray[np.uint8], move: Floats, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return a view of an image: moved, with another gamma, contrast and brightness, and now and then blurred.

    Args:
        image: uint8 [size, size, 3].
        move: Result of `augmentation`.
        rng: Source of randomness.
    """
    moved = cv2.warpAffine(image, move, image.shape[:2], flags=cv2.INTER_LINEAR).astype(np.float32) / 255
    grey = moved ** np.exp(rng.uniform(-0.35, 0.35)) * rng.uniform(0.8, 1.2)
    grey += rng.uniform(-0.04, 0.04) * (moved > 0.01)
    if rng.random() < 0.5:
        grey = cv2.GaussianBlur(grey, (0, 0), rng.uniform(0.3, 1.0))
    shown: NDArray[np.uint8] = np.clip(grey * 255, 0, 255).astype(np.uint8)
    return shown


def moved_boxes(boxes: Floats, move: Floats, size: int) -> Floats:
    """Return boxes after a move. Those of which less than half is left inside are dropped.

    Args:
        boxes: Corners in pixels of the input, float32 [k, 4].
        move: Result of `augmentation`.
        size: Side of the input in pixels.

    Returns:
        float32 [j, 4].
    """
    x = np.sort(boxes[:, [0, 2]] * move[0, 0] + move[0, 2], axis=1)
    y = np.sort(boxes[:, [1, 3]] * move[1, 1] + move[1, 2], axis=1)
    whole = np.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], axis=1)
    inside = np.clip(whole, 0, size - 1)
    kept: Floats = inside[_area(inside) > 0.5 * _area(whole)].astype(np.float32)
    return kept


def _area(corners: Floats) -> Floats:
    size: Floats = (corners[:, 2] - corners[:, 0]) * (corners[:, 3] - corners[:, 1])
    return size
