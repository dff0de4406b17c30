"""Draws how well descriptors are told, and the points of TI-RADS beside the class."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from thyroid import metrics
from thyroid.data.filenames import CLASSES
from thyroid.evaluate import plots
from thyroid.evaluate.descriptors import words
from thyroid.evaluate.descriptors.measure import Tested
from thyroid.plot_style import CLASS_NAMES, COLOURS, save

AUROC, CALIBRATION, TIRADS = "descriptors-auroc", "descriptors-calibration", "tirads"
"""Names of the pictures in the report."""

_MOST = 100
_WIDE = 4


def draw(found: Tested, folder: Path) -> None:
    """Draw what was measured; nothing for findings that could not be.

    Args:
        found: What was measured on test images.
        folder: Folder of the plots.
    """
    measured = [
        (words.name(one.descriptor, one.value), one.development, None if one.test is None else one.test.auroc)
        for one in found.record.findings
        if one.development is not None
    ]
    if measured:
        plots.ranking(measured, "development, out of fold", folder / f"{AUROC}.png")
    _calibration(found, folder / f"{CALIBRATION}.png")
    if len(found.points):
        _points(found.points, folder / f"{TIRADS}.png")


def _calibration(found: Tested, path: Path) -> None:
    """Draw how often each finding that is given out is there, by its probability: a small picture each."""
    shown = [
        ((one.descriptor, one.value), found.findings[one.descriptor, one.value])
        for one in found.record.given
        if one.test is not None and one.test.ece is not None
    ]
    if not shown:
        return
    rows = -(-len(shown) // _WIDE)
    columns = min(len(shown), _WIDE)
    figure, axes = plt.subplots(rows, columns, figsize=(2.3 * columns + 0.6, 2.5 * rows + 0.4), squeeze=False)
    for axis in axes.flat[len(shown) :]:
        axis.set_visible(False)
    for axis, (finding, table) in zip(axes.flat, shown, strict=False):
        bins = metrics.reliability(table["positive"], table["probability"], table["patient"])
        observed = np.array([one.observed.value for one in bins])
        bounds = np.array([[one.observed.low, one.observed.high] for one in bins], float).T
        axis.plot((0, 1), (0, 1), color="#888888", lw=0.8, ls="--")
        axis.errorbar([one.predicted for one in bins], observed, np.abs(bounds - observed), fmt="o", ms=3, lw=1)
        axis.set_title(words.name(*finding), fontsize=7)
        axis.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))
        axis.tick_params(labelsize=7)
    figure.supxlabel("probability on test images", fontsize=8)
    figure.supylabel("share with the value", fontsize=8)
    save(figure, path)


def _points(table: pd.DataFrame, path: Path) -> None:
    """Draw the points that are possible for test images, and those of their labels, by class.

    At most `_MOST` images are drawn, which are a seeded draw.
    """
    shown = table.sample(min(len(table), _MOST), random_state=0)
    shown = shown.assign(middle=shown["low"] + shown["high"]).sort_values(["label", "middle", "low"])
    figure, axis = plt.subplots(figsize=(6, 1.4 + 0.06 * len(shown)))
    for label in CLASSES:
        rows = np.flatnonzero(shown["label"] == label)
        part = shown.iloc[rows]
        axis.hlines(rows, part["low"] - 0.2, part["high"] + 0.2, color=COLOURS[label], lw=2, label=CLASS_NAMES[label])
    own = np.flatnonzero(shown["labelled_low"].notna())
    middle = (shown["labelled_low"] + shown["labelled_high"]).iloc[own] / 2
    axis.plot(middle, own, "|", color="#1c2733", ms=5, label="points of the labels")
    axis.set(
        xlabel="points of TI-RADS",
        xticks=range(0, int(shown["high"].max()) + 1),
        yticks=(),
        ylabel=f"{len(shown)} of {len(table)} test images",
    )
    axis.set_title("Points that cannot be excluded", fontsize=9)
    axis.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.05), ncols=3, frameon=False)
    save(figure, path)
