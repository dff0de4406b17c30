"""The look of every plot: its colours and its "research use only" line, drawn by Matplotlib without a display."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from thyroid import RESEARCH_USE_ONLY

COLOURS = {"B": "#2b7bba", "M": "#c0392b"}
CLASS_NAMES = {"B": "benign", "M": "malignant"}
_DPI = 110


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG with the line that stands below every plot, and close the figure.

    Give legends a fixed place: Matplotlib's search for the best one takes long with many points, and warns on a busy
    machine.
    """
    figure.set_layout_engine("constrained", rect=(0, 0.04, 1, 0.96))  # room for the line below
    figure.text(0.995, 0.004, RESEARCH_USE_ONLY, ha="right", va="bottom", fontsize=6.5, color="#777777")
    figure.savefig(path, dpi=_DPI)
    plt.close(figure)
