"""What scans are like, without a look at their labels: grey levels, and the geometry of frames, scan areas and regions.

The same measurements are made of the training scans, whose quantiles stay with the model, and of the scans of another
hospital, so that it can be told how unlike they are.
"""

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from thyroid import cores, progress
from thyroid.data import surroundings
from thyroid.data.version import DataVersion
from thyroid.imaging import geometry
from thyroid.records.model import FrameSize, TrainingScans

SCANS = 2000
"""Largest number of scans whose properties are measured. A seeded draw takes them."""
QUANTILES = 101
SIZES = 20
"""Largest number of frame sizes that are listed."""

GREY = ("mean_grey", "grey_spread", "black_share", "fine_contrast")
"""Properties of the grey levels within the scan area, all measured on the frame's own pixels: mean and standard
deviation (0 to 255), share of pixels below `_BLACK`, and standard deviation of what a Gaussian blur takes away, which
is mostly speckle and the sharpening of the scanner."""
FRAME = (
    *("frame_width", "frame_height", "frame_aspect"),
    *("area_share", "area_left", "area_top", "area_aspect"),
    *("region_share", "region_aspect"),
)
"""Properties of the geometry: sides of the frame in pixels and width over height; share of the frame that the bounding
box of the scan area takes, its left and upper edge as shares of the frame's sides, its width over height; share of that
box that the largest region takes, and the region's height over width."""
CROP = tuple(f"crop_{name}" for name in (*GREY, "width", "height"))
"""Properties of files that came in cropped. They have names of their own, since a crop is no frame."""

_BLACK = 8
_DECIMALS = 6  # of values as of quantiles, so that a value that all scans share is equal to its quantiles
_FINE = 1.5  # standard deviation in pixels of the Gaussian blur; an axial speckle is about as large
_EDGE = np.ones((5, 5), np.uint8)  # pixels this near to the edge of the scan area are blurred with what is outside


def measure(data: DataVersion, split: str | None = None) -> pd.DataFrame:
    """Measure the properties of scans in use.

    Args:
        data: Data version of `crop`.
        split: One of `tables.SPLITS`; None for all.

    Returns:
        One row per scan, of at most `SCANS`: patient, and the properties `FRAME`, `GREY` and `CROP` as float64. `FRAME`
        and `GREY` are NaN for files that came in cropped, `CROP` is NaN for frames, and the properties of the region
        are NaN where none is known. The index is the path of the scan.

    Raises:
        InputError: An image is missing, or differs from the one that the data version describes.
    """
    scans = _of_split(data, split).set_index("path")
    scans = scans.sample(min(SCANS, len(scans)), random_state=0).sort_index()
    crops = data.regions.drop_duplicates("path").set_index("path").reindex(scans.index)
    is_frame = scans["domain"] == "normal"
    scans["frame"] = scans["normal_path"].where(is_frame, crops["crop_path"])
    scans["frame_sha256"] = scans["normal_sha256"].where(is_frame, crops["crop_sha256"])
    surroundings.fetch(data, scans)
    grey = pd.DataFrame(_each(scans, lambda row: _grey(data, row)), scans.index, GREY)
    sides = scans[["width", "height"]].astype(float)
    of_crop = pd.concat([grey, sides], axis=1).set_axis(CROP, axis=1)
    of_frame = pd.concat([_geometry(scans, data.regions), grey], axis=1)
    properties = pd.concat([of_frame[is_frame], of_crop[~is_frame]], axis=1).round(_DECIMALS)
    return properties.loc[scans.index].assign(patient=scans["patient"].astype(int))


def describe(data: DataVersion, split: str) -> TrainingScans:
    """Describe the scans of a split by the quantiles of their properties and the sizes of their frames.

    Args:
        data: Data version of `crop`.
        split: One of `tables.SPLITS`.

    Raises:
        InputError: As for `measure`.
    """
    scans, properties = _of_split(data, split), measure(data, split).drop(columns="patient")
    levels = np.linspace(0, 1, QUANTILES)
    known = properties.dropna(axis=1, how="all").apply(lambda column: column.quantile(levels)).round(_DECIMALS)
    counts = Counter(sizes(data, split))
    listed = counts.most_common(SIZES)
    return TrainingScans(
        scans=len(scans),
        patients=int(scans["patient"].nunique()),
        quantiles={str(name): column.tolist() for name, column in known.items()},
        sizes=[FrameSize(width=width, height=height, frames=frames) for (width, height), frames in listed],
        other_sizes=counts.total() - sum(frames for _, frames in listed),
    )


def sizes(data: DataVersion, split: str | None = None) -> list[tuple[int, int]]:
    """Return width and height in pixels of every frame of a split, or of all; a file that came in cropped is none."""
    scans = _of_split(data, split)
    frames = scans[scans["domain"] == "normal"]
    return list(zip(frames["width"].tolist(), frames["height"].tolist(), strict=True))


def _of_split(data: DataVersion, split: str | None) -> pd.DataFrame:
    return data.used if split is None else data.used[data.used["split"] == split]


def _geometry(scans: pd.DataFrame, regions: pd.DataFrame) -> pd.DataFrame:
    """Return the properties `FRAME` of every scan, as if it were a frame."""
    width, height, left, top, wide, high = (
        scans[column].astype(float) for column in ("width", "height", "area_x", "area_y", "area_width", "area_height")
    )
    sides = regions[["path", "width", "height"]].astype({"width": float, "height": float})
    sides = sides.assign(area=sides["width"] * sides["height"]).sort_values("area").drop_duplicates("path", keep="last")
    largest = sides.set_index("path").reindex(scans.index)
    columns = (
        *(width, height, width / height),
        *(wide * high / (width * height), left / width, top / height, wide / high),
        *(largest["area"] / (wide * high), largest["height"] / largest["width"]),
    )
    return pd.DataFrame(dict(zip(FRAME, columns, strict=True)))


def _grey(data: DataVersion, row: Any) -> NDArray[np.float64]:
    """Return the properties `GREY` of a scan.

    The image of a scan area is black outside the area, which is therefore found again. A file that came in cropped was
    padded to a square, whose padding is cut off.
    """
    picture = surroundings.scan_area(data, row)
    if row.domain == "normal":
        mask = geometry.scan_area(picture).mask
    else:
        side, width, height = picture.shape[0], int(row.width), int(row.height)
        left, top = (side - width) // 2, (side - height) // 2
        picture = picture[top : top + height, left : left + width]
        mask = np.ones(picture.shape[:2], np.uint8)
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    seen = grey[mask > 0]
    fine = grey.astype(np.float32)
    fine -= cv2.GaussianBlur(fine, (0, 0), _FINE)
    inner = cv2.erode(mask, _EDGE, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    _, contrast = cv2.meanStdDev(fine, mask=inner)
    return np.array([seen.mean(), seen.std(), (seen < _BLACK).mean(), contrast.item()])


def _each(scans: pd.DataFrame, measured: Callable[[Any], NDArray[np.float64]]) -> NDArray[np.float64]:
    """Return what a function measures of every scan [n, k], in parallel."""
    with ThreadPoolExecutor(cores.available()) as pool:
        rows = list(scans.itertuples())
        found = progress.bar(pool.map(measured, rows), len(rows), "grey levels", "scan")
        return np.array(list(found)).reshape(len(rows), len(GREY))
