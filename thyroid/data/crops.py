"""Which images are made of a scan, and what their files are called.

A name holds the digest of everything that an image depends on.
"""

import hashlib
from collections.abc import Collection
from dataclasses import dataclass

import pandas as pd

from thyroid.data import tables
from thyroid.imaging.geometry import Box

CODE = 1
"""Version of the code that makes the images (`crop`, `imaging.images`, `imaging.geometry`).

Raise it when their pixels change.
"""

_MOST_STEM = 100
"""Bytes of a scan's name that its images' names begin with.

Together with the key, a name fits into the 255 bytes of a file name, however long the scan's name is.
"""


@dataclass(frozen=True)
class Planned:
    """The images to make of one scan.

    Attributes:
        path: Path of the scan.
        local_path: Where its bytes can be read here, relative to the data version or absolute.
        sha256: SHA-256 of its bytes.
        domain: Domain of the scan: "normal" for a frame, "cropped" for a file that came in cropped.
        boxes: Boxes of its regions in pixels.
        margin: Share of a region's sides to widen it by.
        keys: Box (None for the whole frame) to the key of its image. A key depends on everything that the image depends
            on: the version of this code, the scan's bytes, the box and its margin.
    """

    path: str
    local_path: str
    sha256: str
    domain: str
    boxes: tuple[Box, ...]
    margin: float
    keys: dict[Box | None, str]

    @property
    def main(self) -> str:
        """Key of the image that carries the scan area."""
        return next(iter(self.keys.values()))


def plan(used: pd.DataFrame, regions: pd.DataFrame, margin: float) -> list[Planned]:
    """Return the images to make of every scan.

    Args:
        used: Scans in use: path, local_path, sha256 and domain.
        regions: Their regions: path, x, y, width and height.
        margin: Share of a region's sides to widen it by.
    """
    boxes: dict[str, list[Box]] = {}
    for path, box in zip(regions["path"].tolist(), boxes_of(regions), strict=True):
        boxes.setdefault(path, []).append(box)
    plans = []
    for path, local, sha256, domain in zip(
        *(used[column].tolist() for column in ("path", "local_path", "sha256", "domain")), strict=True
    ):
        region_boxes = tuple(boxes.get(path, ()))
        # a file that came in cropped is its own region and gets no margin
        wanted: list[Box | None] = [*region_boxes] if domain == "cropped" else [None, *region_boxes]
        keys = {
            box: f"{stem(path)}-"
            f"{hashlib.sha256(f'{CODE} {sha256} {domain} {box} {margin if box else 0}'.encode()).hexdigest()[:16]}"
            for box in wanted
        }
        plans.append(Planned(path, local, sha256, domain, region_boxes, margin, keys))
    return plans


def files(scans: pd.DataFrame, regions: pd.DataFrame, margins: Collection[float]) -> set[str]:
    """Return the names, within a store's crops, of all images that this code makes of the scans in use.

    Args:
        scans: Table of scans.
        regions: Table of regions.
        margins: Margins to make the images with.
    """
    return {
        f"{'normal' if box is None else 'cropped'}/{key}.jpg"
        for margin in margins
        for planned in plan(tables.used(scans), regions, margin)
        for box, key in planned.keys.items()
    }


def stem(path: str) -> str:
    """Return the text that the names of a scan's images begin with."""
    return path.rsplit("/", 1)[-1].rsplit(".", 1)[0].encode()[:_MOST_STEM].decode(errors="ignore")


def boxes_of(regions: pd.DataFrame) -> list[Box]:
    """Return the box (x, y, width, height in pixels) of every row of `regions`."""
    return [tuple(box) for box in regions[["x", "y", "width", "height"]].astype(int).to_numpy().tolist()]
