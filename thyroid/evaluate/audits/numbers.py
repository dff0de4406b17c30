"""Numbers that need no look at the nodule, by which shortcuts are measured."""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from thyroid.data import tables

_BLOCK = 256  # images whose grey levels are in memory at once, eight bytes a pixel


def of_images(table: pd.DataFrame, pixels: NDArray[np.uint8]) -> dict[str, NDArray[np.float64]]:
    """Return what the file name, the layout of the frame, the box and the grey levels say of each image.

    Args:
        table: Rows of `surroundings.context` [n].
        pixels: Their images, uint8 [n, size, size, 1 or 3].

    Returns:
        By name of the shortcut (`names.SHORTCUTS`) float64 [n, k], NaN where an image's numbers are not known. Without
        the frame of every image there is no scan_area_geometry, and without the boxes of most there is no box_size.
    """
    version = pd.to_numeric(table["version"].str.split(".").str[0])
    found = {
        "patient_number": table[["patient"]].to_numpy(float),
        "acquisition_order": table.assign(version=version)[["image", "version", "views"]].to_numpy(float),
    }
    if table["frame"].notna().all():
        found["scan_area_geometry"] = table[["frame_width", "frame_height", *tables.AREA]].to_numpy(float)
    if marked(table) is not None:
        found["box_size"] = sizes(table[["box_width", "box_height"]])
    return found | {"grey_levels": _grey_levels(pixels)}


def marked(table: pd.DataFrame) -> NDArray[np.bool_] | None:
    """Return which images have a box of a nodule; None unless more than half of them have one.

    Args:
        table: Rows of `surroundings.context`.
    """
    boxed = table["boxes"].map(len).to_numpy() > 0
    return boxed if boxed.mean() > 0.5 else None


def sizes(box: pd.DataFrame) -> NDArray[np.float64]:
    """Return width, height, area and height over width of boxes (columns: width, height), NaN for unknown: [n, 4]."""
    sides = box.astype(float).to_numpy()
    return np.column_stack([sides, sides.prod(axis=1), sides[:, 1] / sides[:, 0]])


def _grey_levels(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Compute mean, standard deviation, share of black (below 8) and five percentiles of every image: [n, 8]."""
    return np.concatenate([_of_block(pixels[start : start + _BLOCK]) for start in range(0, len(pixels), _BLOCK)])


def _of_block(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    flat = pixels.mean(axis=-1).reshape(len(pixels), -1)
    percentiles = np.percentile(flat, [5, 25, 50, 75, 95], axis=1).T
    return np.column_stack([flat.mean(axis=1), flat.std(axis=1), (flat < 8).mean(axis=1), percentiles])
