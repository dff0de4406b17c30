"""Images as parts of their frames: what surrounds a nodule, and crops of another margin than that of the data version.

A data version has no frames, but the image of every frame's scan area, and the place of that area in the frame.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from thyroid import cores, progress
from thyroid.data import tables
from thyroid.data.version import DataVersion
from thyroid.errors import InputError
from thyroid.imaging import geometry, images
from thyroid.storage import mirror


def context(data: DataVersion, domain: str) -> pd.DataFrame:
    """Collect what is known of the images of a domain without looking at them.

    Args:
        data: Data version of `crop`.
        domain: "normal" or "cropped".

    Returns:
        One row per image with the columns of `DataVersion.examples`, and: frame (file of the scan area, null where none
        is known), frame_sha256 (of that file), boxes (nodules of this image as x, y, width, height in pixels of
        `frame`), box_width and box_height (of the largest box), image, version, views (number of images of the
        patient), frame_width, frame_height, area_x, area_y, area_width, area_height. Images that were already cropped
        in the input have no frame and no boxes: they show nothing outside the nodule.
    """
    table = data.examples(domain)
    known = ["image", "version", *tables.AREA]
    scans = data.used.set_index("path")
    about = scans[known].assign(frame=scans["normal_path"], frame_sha256=scans["normal_sha256"])
    about = about.assign(frame_width=scans["width"], frame_height=scans["height"])
    table = table.join(about, on="path")
    framed = data.regions[data.regions["path"].map(scans["domain"]) == "normal"]
    key = "path" if domain == "normal" else "crop_path"
    boxes: dict[str, list[geometry.Box]] = {}
    row: Any  # pandas-stubs: a field of a row may be any scalar
    for row in framed.itertuples():
        area = scans.loc[row.path]
        box = (int(row.x - area["area_x"]), int(row.y - area["area_y"]), int(row.width), int(row.height))
        boxes.setdefault(getattr(row, key), []).append(box)
    # pandas-stubs: cells are no lists
    table["boxes"] = [  # type: ignore[assignment]
        boxes.get(name, []) for name in table["path" if domain == "normal" else "name"]
    ]
    largest = [max(some, key=lambda box: box[2] * box[3], default=(0, 0, None, None)) for some in table["boxes"]]
    table["box_width"], table["box_height"] = [box[2] for box in largest], [box[3] for box in largest]
    table["views"] = table.groupby("patient")["file"].transform("size")
    return table


def recropped(data: DataVersion, table: pd.DataFrame, size: int, margin: float) -> NDArray[np.uint8]:
    """Return the crops of another margin, as a network takes them.

    They are cut from the images of the scan areas, which are put back to their places in frames of the original size,
    so that a crop is clipped where `crop` would clip it. The image of the scan area was compressed once more than the
    frame, and the part of a box that lies outside the scan area is black.

    Args:
        data: Data version of `crop`.
        table: Rows of `context` with boxes.
        size: Side of the images in pixels.
        margin: Share of a box's own width and height by which its crop is wider on each side.

    Returns:
        Images, uint8 [n, size, size, 3].

    Raises:
        InputError: As for `scan_area`.
    """

    def cut(row: Any) -> NDArray[np.uint8]:
        seen = scan_area(data, row)
        top, left = int(row.area_y), int(row.area_x)
        frame = np.zeros((int(row.frame_height), int(row.frame_width), 3), np.uint8)
        frame[top : top + seen.shape[0], left : left + seen.shape[1]] = seen
        x, y, width, height = row.boxes[0]
        # everything outside the scan area is already black
        area = geometry.ScanArea(np.ones(frame.shape[:2], np.uint8), (left, top, seen.shape[1], seen.shape[0]), True)
        crop = geometry.region(frame, (x + left, y + top, width, height), area, margin)
        return images.rgb(images.stored(crop, size))

    fetch(data, table)
    return each(table, cut, f"crop with margin {margin:g}")


def each(table: pd.DataFrame, make: Callable[[Any], NDArray[np.uint8]], doing: str) -> NDArray[np.uint8]:
    """Return the images that a function makes of the rows of a table, in parallel.

    Args:
        table: Any table.
        make: Function from a row, as `DataFrame.itertuples` gives it, to uint8 [size, size, 3].
        doing: What is done, for the progress bar.

    Returns:
        Images, uint8 [n, size, size, 3].
    """
    with ThreadPoolExecutor(cores.available()) as pool:
        rows = list(table.itertuples())
        return np.stack(list(progress.bar(pool.map(make, rows), len(rows), doing, "image")))


def fetch(data: DataVersion, table: pd.DataFrame) -> None:
    """Bring the images of the scan areas of many rows into the mirror at once, if they are in a bucket.

    Args:
        data: Data version of `crop`.
        table: Rows of `context` with a frame.

    Raises:
        InputError: The bucket cannot be read.
    """
    mirror.fetch((data.images / frame for frame in table["frame"].dropna()), "fetch scan areas", missing_ok=True)


def scan_area(data: DataVersion, row: Any) -> images.Pixels:
    """Return the image of a frame's scan area.

    Args:
        data: Data version of `crop`.
        row: Row of `context` with a frame.

    Returns:
        uint8 [area height, area width, 3].

    Raises:
        InputError: The file is missing, or differs from the one that the data version describes.
    """
    path = data.images / row.frame
    mirror.fetch([path], missing_ok=True)
    try:
        content = mirror.read(path, row.frame_sha256)
    except FileNotFoundError:
        raise InputError(f"{path}: an image of the data version is missing; crop again") from None
    except ValueError:
        raise InputError(f"{mirror.address(path)}: an image of the data version was changed; crop again") from None
    return images.decode(content, min_side=1)
