"""Draws the scores of the test frames with automatic boxes against those with given boxes."""

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from thyroid.model.operating_point import OperatingPoint
from thyroid.plot_style import CLASS_NAMES, COLOURS, save


def scores(frames: pd.DataFrame, point: OperatingPoint, path: Path) -> None:
    """Draw a point per frame: its probability of malignant with the given box and with the automatic one.

    Frames whose box is unsure are hollow, and frames whose decision changes have a ring.

    Args:
        frames: Rows of `cost.pair` with the column flipped.
        point: Operating point of the model, whose threshold and band are drawn.
        path: File to write to.
    """
    figure, axis = plt.subplots(figsize=(5, 6))
    if point.band is not None:
        axis.axvspan(*point.band, color="#eeeeee", lw=0)
        axis.axhspan(*point.band, color="#eeeeee", lw=0)
    axis.plot((0, 1), (0, 1), color="#cccccc", lw=0.8)
    for draw_line in (axis.axvline, axis.axhline):
        draw_line(point.threshold, color="#888888", lw=0.8, ls="--")
    for side, part in frames.groupby("label"):
        for unsure, some in part.groupby("unsure"):
            name = f"{CLASS_NAMES[str(side)]}{', box unsure' if unsure else ''}: {len(some)}"
            face = "none" if unsure else COLOURS[str(side)]
            axis.scatter(
                some["given"], some["automatic"], 18, facecolors=face, edgecolors=COLOURS[str(side)], label=name
            )
    changed = frames[frames["flipped"]]
    name = f"decision changes: {len(changed)}"
    axis.scatter(
        changed["given"], changed["automatic"], 90, facecolors="none", edgecolors="#1c2733", lw=0.9, label=name
    )
    axis.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    axis.set(xlabel="probability of malignant with the given box", ylabel="with the automatic box")
    axis.set_title("Dashed: threshold of the operating point", fontsize=9)
    axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2, frameon=False)
    save(figure, path)
