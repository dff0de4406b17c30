"""Plots of what a data version holds."""

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from matplotlib.axes import Axes
from PIL import Image

from thyroid.data import tables
from thyroid.data.classes import BINARY, Classes
from thyroid.data.filenames import CLASSES
from thyroid.plot_style import CLASS_NAMES, COLOURS, save
from thyroid.storage import mirror

_THUMBNAILS = 8


def class_colours(classes: Classes) -> dict[str, Any]:
    """Return a colour for every class: blue for benign classes, red for malignant ones, darker for later ones."""
    sides = {
        side: [n for n, p in zip(classes.names, classes.positive, strict=True) if p is side] for side in (False, True)
    }
    colours: dict[str, Any] = {}
    for side, map_name in ((False, "Blues"), (True, "Reds")):
        shades = plt.get_cmap(map_name)(np.linspace(0.45, 0.9, len(sides[side])))
        colours |= dict(zip(sides[side], shades, strict=True))
    return COLOURS if classes == BINARY else colours


def class_names(classes: Classes) -> dict[str, str]:
    """Return the names by which people call the classes."""
    return CLASS_NAMES if classes == BINARY else {name: name for name in classes.names}


def data_statistics(scans: pd.DataFrame, regions: pd.DataFrame, path: Path, classes: Classes = BINARY) -> None:
    """Plot a data version: images and patients per split and class, images per patient, frame and region sizes.

    Args:
        scans: Scans in use.
        regions: Their regions.
        path: PNG file to write.
        classes: Classes of the data version.
    """
    figure, axes = plt.subplots(2, 2, figsize=(11, 7))
    figure.suptitle(f"{len(scans)} scans in use, {scans['patient'].nunique()} patients", fontsize=13)
    for axis, what in zip(axes[0], ("images", "patients"), strict=True):
        _split_bars(axis, scans, what, classes)
    axis = axes[1, 0]
    counts = scans.groupby("patient").size()
    values, numbers = np.unique(counts, return_counts=True)
    axis.bar(values, numbers, color="#667788")
    axis.set(xlabel="images a patient", ylabel="patients", title="Images a patient")
    axis.set_xticks(values)
    axis.set_xlim(0, values.max() + 1)
    axis = axes[1, 1]
    frames = scans.loc[scans["domain"] == "normal", ["width", "height"]].drop_duplicates()
    axis.scatter(frames["width"].astype(float), frames["height"].astype(float), s=14, color="#667788", label="frame")
    # without a merge, which makes Python's texts of the paths
    places = pc.fill_null(pc.index_in(pa.array(regions["path"]), pa.array(scans["path"])), -1).to_numpy()
    sized = regions[["width", "height"]].assign(**{"class": scans["class"].array.take(places, allow_fill=True)})
    sized = sized.drop_duplicates()  # of a million regions there are fewer sizes
    for name in classes.names:
        rows = sized[sized["class"] == name]
        axis.scatter(
            rows["width"].astype(float),
            rows["height"].astype(float),
            s=8,
            alpha=0.5,
            color=class_colours(classes)[name],
            label=f"region, {class_names(classes)[name]}",
        )
    axis.set(
        xlabel="width (pixels)",
        ylabel="height (pixels)",
        title="Sizes of frames and regions",
        xlim=(0, None),
        ylim=(0, None),
    )
    axis.legend(fontsize=8, loc="upper left")  # frames are wider than high
    save(figure, path)


def _split_bars(axis: Axes, scans: pd.DataFrame, what: str, classes: Classes) -> None:
    bottom = np.zeros(len(tables.SPLITS))
    for name in classes.names:
        by_split = scans[scans["class"] == name].groupby("split")
        counted = by_split.size() if what == "images" else by_split["patient"].nunique()
        heights = np.array([int(counted.get(split, 0)) for split in tables.SPLITS], float)
        colour, label = class_colours(classes)[name], class_names(classes)[name]
        bars = axis.bar(tables.SPLITS, heights, bottom=bottom, color=colour, label=label)
        axis.bar_label(bars, [str(int(h)) for h in heights], label_type="center", color="white", fontsize=9)
        bottom += heights
    share = scans["class"].value_counts(normalize=True).max()
    axis.set(ylabel=what, title=f"{what.capitalize()} by split (majority class {share:.1%} of images)")
    axis.legend(fontsize=8, loc="upper right")


def crop_sheet(scans: pd.DataFrame, regions: pd.DataFrame, folder: Path, path: Path) -> None:
    """Plot the first scans of each class in both domains, to see at a glance whether cropping went well.

    Args:
        scans: Table of scans with the paths of their images.
        regions: Table of regions with the paths of their crops.
        folder: Folder that these paths are relative to.
        path: PNG file to write.
    """
    used = tables.used(scans)
    normal = used[used["domain"] == "normal"].merge(
        regions.groupby("path", as_index=False)["crop_path"].first(), on="path", how="left"
    )
    rows = normal if len(normal) else used.merge(regions[["path", "crop_path"]], on="path")
    picked = pd.concat(
        [rows[rows["label"] == label].drop_duplicates("patient").head(_THUMBNAILS // 2) for label in CLASSES]
    )
    mirror.fetch(folder / file for column in ("normal_path", "crop_path") for file in picked[column].dropna())
    figure, axes = plt.subplots(2, max(2, len(picked)), figsize=(13, 4), squeeze=False)
    for axis in axes.ravel():
        axis.axis("off")
    for column, row in enumerate(picked.itertuples()):
        for axis, file in zip(axes[:, column], (row.normal_path, row.crop_path), strict=True):
            if isinstance(file, str):
                axis.imshow(np.asarray(Image.open(folder / file).convert("L")), cmap="gray", vmin=0, vmax=255)
        label = str(row.label)
        axes[0, column].set_title(CLASS_NAMES[label], fontsize=9, color=COLOURS[label])
    figure.suptitle("Scan area (above) and first region with its margin (below)", fontsize=11)
    save(figure, path)
