"""Which images are made of a scan, and what their files are called.

A name holds the digest of everything that an image depends on.
"""

import hashlib
from collections.abc import Collection
from dataclasses import dataclass

import pandas as pd

from thyroid.data import tables
from thyroid.imaging.geometry import MARGIN, Box, disturbed

CODE = 1
"""Version of the code that makes the images (`crop`, `imaging.images`, `imaging.geometry`).

Raise it when their pixels change.
"""

_MOST_STEM = 100
"""Bytes of a scan's name that its images' names begin with.

Together with the key, a name fits into the 255 bytes of a file name, however long the scan's name is.
"""


@dataclass(frozen=True)
class Cut:
    """How regions are cut out.

    Attributes:
        margin: Share of a region's sides to widen it by.
        jitter: Multiple of a locator's errors by which a second crop of every training region is disturbed; 0 for
            no second crop.
    """

    margin: float = MARGIN
    jitter: float = 1.0


@dataclass(frozen=True)
class Planned:
    """The images to make of one scan.

    Attributes:
        path: Path of the scan.
        local_path: Where its bytes can be read here, relative to the data version or absolute.
        sha256: SHA-256 of its bytes.
        domain: Domain of the scan: "normal" for a frame, "cropped" for a file that came in cropped.
        boxes: Boxes of its regions in pixels.
        cut: How its regions are cut out.
        jittered: Box of a training region to the disturbed box of its second crop.
        keys: Box (None for the whole frame) to the key of its image. A key depends on everything that the image depends
            on: the version of this code, the scan's bytes, the box and its margin.
    """

    path: str
    local_path: str
    sha256: str
    domain: str
    boxes: tuple[Box, ...]
    cut: Cut
    jittered: dict[Box, Box]
    keys: dict[Box | None, str]

    @property
    def main(self) -> str:
        """Key of the image that carries the scan area."""
        return next(iter(self.keys.values()))


def plan(used: pd.DataFrame, regions: pd.DataFrame, cut: Cut) -> list[Planned]:
    """Return the images to make of every scan.

    Args:
        used: Scans in use: path, local_path, sha256, domain, split, width and height.
        regions: Their regions: path, x, y, width and height.
        cut: How regions are cut out.
    """
    boxes: dict[str, list[Box]] = {}
    for path, box in zip(regions["path"].tolist(), boxes_of(regions), strict=True):
        boxes.setdefault(path, []).append(box)
    plans = []
    columns = ("path", "local_path", "sha256", "domain", "split", "width", "height")
    for path, local, sha256, domain, split, width, height in zip(
        *(used[column].tolist() for column in columns), strict=True
    ):
        region_boxes = tuple(boxes.get(path, ()))
        # a file that came in cropped is its own region and gets neither margin nor jitter
        jitter = cut.jitter if domain == "normal" and split == "train" else 0
        jittered = {box: disturbed(box, width, height, jitter, f"{sha256} {box}") for box in region_boxes if jitter}
        wanted: list[Box | None] = [*region_boxes, *jittered.values()]
        if domain != "cropped":
            wanted = [None, *wanted]
        keys = {
            box: f"{stem(path)}-"
            f"{hashlib.sha256(f'{CODE} {sha256} {domain} {box} {cut.margin if box else 0}'.encode()).hexdigest()[:16]}"
            for box in wanted
        }
        plans.append(Planned(path, local, sha256, domain, region_boxes, cut, jittered, keys))
    return plans


def cuts_in(made: pd.DataFrame) -> set[Cut]:
    """Return how regions were cut out, from a store's table of images (see `Store.all_cropped`).

    Images of a release that had no jitter count as made without.

    Args:
        made: One row per image, with the columns margin and, except in tables of older releases, jitter.
    """
    jitter = made["jitter"].fillna(0.0) if "jitter" in made else pd.Series(0.0, made.index)
    return {Cut(*pair) for pair in zip(made["margin"].tolist(), jitter.tolist(), strict=True)}


def files(scans: pd.DataFrame, regions: pd.DataFrame, cuts: Collection[Cut]) -> set[str]:
    """Return the names, within a store's crops, of all images that this code makes of the scans in use.

    Args:
        scans: Table of scans.
        regions: Table of regions.
        cuts: How the regions are cut out; several ways may be in use at once.
    """
    return {
        f"{'normal' if box is None else 'cropped'}/{key}.jpg"
        for cut in cuts
        for planned in plan(tables.used(scans), regions, cut)
        for box, key in planned.keys.items()
    }


def stem(path: str) -> str:
    """Return the text that the names of a scan's images begin with."""
    return path.rsplit("/", 1)[-1].rsplit(".", 1)[0].encode()[:_MOST_STEM].decode(errors="ignore")


def boxes_of(regions: pd.DataFrame) -> list[Box]:
    """Return the box (x, y, width, height in pixels) of every row of `regions`."""
    return [tuple(box) for box in regions[["x", "y", "width", "height"]].astype(int).to_numpy().tolist()]
