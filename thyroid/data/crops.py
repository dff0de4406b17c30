"""Which images are made of a scan, and what their files are called: a name holds the digest of all that an image depends on."""

import hashlib
from collections.abc import Collection
from dataclasses import dataclass

import pandas as pd

from thyroid.data import tables
from thyroid.imaging.geometry import Box

CODE = 1
"""Version of what makes the images (`crop`, `imaging.images`, `imaging.geometry`): a change of their pixels raises it."""

_MOST_STEM = 100
"""Bytes of a scan's name that its images' names begin with: with their key, in a file's 255 bytes, however long it is."""


@dataclass(frozen=True)
class Planned:
    """What is to be made of a scan: box (None for the whole frame) to the key of the image.

    A key names all that the image depends on: this code, the scan's bytes, the box and its margin.
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
        """Key of the image that knows the scan area."""
        return next(iter(self.keys.values()))


def plan(good: pd.DataFrame, regions: pd.DataFrame, margin: float) -> list[Planned]:
    boxes: dict[str, list[Box]] = {}
    for path, box in zip(regions["path"].tolist(), boxes_of(regions), strict=True):
        boxes.setdefault(path, []).append(box)
    plans = []
    for path, local, sha256, domain in zip(
        *(good[column].tolist() for column in ("path", "local_path", "sha256", "domain")), strict=True
    ):
        mine = tuple(boxes.get(path, ()))
        # a file that came in cropped is its own region, without margin
        wanted: list[Box | None] = [*mine] if domain == "cropped" else [None, *mine]
        keys = {
            box: f"{stem(path)}-{hashlib.sha256(f'{CODE} {sha256} {domain} {box} {margin if box else 0}'.encode()).hexdigest()[:16]}"
            for box in wanted
        }
        plans.append(Planned(path, local, sha256, domain, mine, margin, keys))
    return plans


def files(scans: pd.DataFrame, regions: pd.DataFrame, margins: Collection[float]) -> set[str]:
    """Names, within a store's crops, of all images that this code makes of the scans in use with these margins."""
    return {
        f"{'normal' if box is None else 'cropped'}/{key}.jpg"
        for margin in margins
        for one in plan(tables.used(scans), regions, margin)
        for box, key in one.keys.items()
    }


def stem(path: str) -> str:
    """What the names of a scan's images begin with."""
    return path.rsplit("/", 1)[-1].rsplit(".", 1)[0].encode()[:_MOST_STEM].decode(errors="ignore")


def boxes_of(regions: pd.DataFrame) -> list[Box]:
    return [tuple(box) for box in regions[["x", "y", "width", "height"]].astype(int).to_numpy().tolist()]
