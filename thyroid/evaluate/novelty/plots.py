"""Draws how far test patients and foreign images are from the training images."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import LogFormatter

from thyroid.evaluate.novelty.measure import Detected
from thyroid.plot_style import save

_PASSED, _CAUGHT = "#2b7bba", "#c0392b"
NAME = "novelty"
"""Name of the picture in the report."""


def distances(found: Detected, folder: Path) -> None:
    """Draw a row for the test patients and for each kind of foreign images, with a point per patient or image.

    Args:
        found: What was measured.
        folder: Folder of the plots.
    """
    rows = {f"test patients ({len(found.tested)})": found.tested.to_numpy()}
    rows |= {f"{kind} ({len(values)})": values for kind, values in found.foreign.items()}
    figure, axis = plt.subplots(figsize=(8, 0.9 + 0.36 * len(rows)))
    spread = np.random.default_rng(0)
    for place, values in enumerate(rows.values()):
        colours = np.where(values > 1, _CAUGHT, _PASSED)
        axis.scatter(values, place + spread.uniform(-0.28, 0.28, len(values)), 9, colours, alpha=0.6, lw=0)
    axis.axvline(1, color="#1c2733", lw=1, ls="--")
    axis.axhline(0.5, color="#cccccc", lw=0.8)
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter(LogFormatter())  # which writes no powers of ten
    axis.set_yticks(range(len(rows)), list(rows))
    axis.invert_yaxis()
    axis.set_xlabel("distance from the training images as a multiple of the limit (dashed)")
    axis.set_title("Red: beyond the limit, the model makes no decision", fontsize=9)
    save(figure, folder / f"{NAME}.png")
