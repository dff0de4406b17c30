"""Pictures of a locator: frames with marked and proposed boxes, what abstaining buys, and its calibration."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from PIL import Image

from thyroid.locate.frames import Frames
from thyroid.locate.proposals import Proposals
from thyroid.plot_style import save

_SHOWN = 24
_COLUMNS = 6
_MARKED, _BEST, _OTHER = "#2ecc71", "#f1c40f", "#f39c12"
_BINS = 5


def sheet(frames: Frames, proposals: Proposals, probability: NDArray[np.float64], limit: float, path: Path) -> None:
    """Plot test frames with their marked and proposed boxes, evenly chosen from the surest to the least sure.

    Args:
        frames: Marked frames.
        proposals: Their proposals.
        probability: Calibrated probability of the best proposal [n].
        limit: Probability below which a box is unsure.
        path: PNG file to write.
    """
    order = np.argsort(-probability, kind="stable")
    chosen = order[np.unique(np.linspace(0, len(order) - 1, min(_SHOWN, len(order))).round().astype(int))]
    rows = -(-len(chosen) // _COLUMNS)
    figure, axes = plt.subplots(rows, _COLUMNS, figsize=(15, 2.4 * rows), squeeze=False)
    for axis in axes.ravel():
        axis.axis("off")
    areas, files = frames.areas(), frames.table["file"].tolist()
    for axis, place in zip(axes.ravel(), chosen.tolist(), strict=False):
        axis.imshow(np.asarray(Image.open(files[place]).convert("L")), cmap="gray", vmin=0, vmax=255)
        corner = areas[place][:2]
        for box in frames.boxes[place]:
            _draw(axis, box, corner, _MARKED, "-")
        for rank, box in enumerate(proposals.boxes[place]):
            _draw(axis, box, corner, _OTHER if rank else _BEST, ":" if rank else "-")
        unsure = ", unsure" if probability[place] < limit else ""
        axis.set_title(f"p {probability[place]:.2f}{unsure}", fontsize=8)
    figure.suptitle(
        "Test frames, the surest first. Green: marked by a person. Yellow: best proposal. Dotted: others", fontsize=11
    )
    save(figure, path)


def _draw(axis: Axes, box: tuple[int, ...], corner: tuple[int, ...], colour: str, style: str) -> None:
    x, y, width, height = box
    place = (x - corner[0], y - corner[1])
    axis.add_patch(Rectangle(place, width, height, fill=False, edgecolor=colour, linewidth=1.4, linestyle=style))


def risk_coverage(parts: dict[str, tuple[NDArray[np.float64], NDArray[np.bool_]]], limit: float, path: Path) -> None:
    """Plot the share of boxes that fit among the surest ones, by the share of frames that get a box.

    Args:
        parts: Probability of the best box and whether it fits, of the frames of each part by its name.
        limit: Probability below which a box is unsure.
        path: PNG file to write.
    """
    figure, axis = plt.subplots(figsize=(6.5, 4.5))
    for (name, (probability, hit)), colour in zip(parts.items(), ("#2b7bba", "#c0392b"), strict=False):
        order = np.argsort(-probability, kind="stable")
        count = np.arange(1, len(order) + 1)
        axis.plot(count / len(order), np.cumsum(hit[order]) / count, color=colour, label=f"{name}, {len(order)} frames")
        kept = probability >= limit
        if kept.any():
            axis.plot(kept.mean(), hit[kept].mean(), "o", color=colour)
    axis.set(
        xlabel="share of the frames whose box is used, the surest first",
        ylabel="share of these boxes that fit (IoU ≥ .5)",
        title="What leaving unsure boxes out buys (dot: the locked limit)",
        xlim=(0, 1),
        ylim=(0, 1.02),
    )
    axis.legend(loc="lower left", fontsize=8)
    axis.grid(alpha=0.3)
    save(figure, path)


def calibration(parts: dict[str, tuple[NDArray[np.float64], NDArray[np.bool_]]], path: Path) -> None:
    """Plot how often boxes of a probability fit, in bins of equal numbers of frames.

    Args:
        parts: As for `risk_coverage`.
        path: PNG file to write.
    """
    figure, axis = plt.subplots(figsize=(5, 4.5))
    axis.plot([0, 1], [0, 1], color="#999999", linewidth=1)
    for (name, (probability, hit)), colour in zip(parts.items(), ("#2b7bba", "#c0392b"), strict=False):
        table = pd.DataFrame({"probability": probability, "hit": hit.astype(float)})
        bins = np.array_split(np.argsort(probability, kind="stable"), min(_BINS, len(probability)))
        means = [table.iloc[rows].mean() for rows in bins]
        axis.plot([m["probability"] for m in means], [m["hit"] for m in means], "o-", color=colour, label=name)
    axis.set(
        xlabel="probability that the box fits",
        ylabel="share of boxes that fit (IoU ≥ .5)",
        title="Calibration of the box's probability",
        xlim=(0, 1),
        ylim=(0, 1),
    )
    axis.legend(loc="upper left", fontsize=8)
    save(figure, path)
