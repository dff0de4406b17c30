"""Plots the history and the diagnosis of a training."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from thyroid.plot_style import save
from thyroid.records.train import DiagnosisRecord


def history(table: pd.DataFrame, title: str, path: Path) -> None:
    """Plot loss and AUROC per epoch of every phase, training against validation.

    Args:
        table: History of a training, one row per epoch.
        title: Title of the figure.
        path: File to write.
    """
    phases = list(table["phase"].unique())
    figure, axes = plt.subplots(len(phases), 2, figsize=(10, 3.2 * len(phases)), squeeze=False)
    figure.suptitle(title)
    columns = (("categorical_crossentropy", "cross-entropy", "upper right"), ("auroc", "AUROC", "lower right"))
    for row, phase in zip(axes, phases, strict=True):
        these = table[table["phase"] == phase]
        for axis, (column, label, place) in zip(row, columns, strict=True):
            axis.plot(these["epoch"], these[column], marker=".", label="training")
            axis.plot(these["epoch"], these[f"val_{column}"], marker=".", label="validation")
            axis.set(xlabel="epoch", ylabel=label, title=phase)
            axis.xaxis.get_major_locator().set_params(integer=True)
            axis.legend(fontsize=8, loc=place)
    save(figure, path)


def diagnosis(rows: Sequence[DiagnosisRecord], path: Path) -> None:
    """Plot why a model collapsed: the spread of its input at the stem, and the spread of its answers.

    Args:
        rows: One diagnosis per model.
        path: File to write.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 1.6 + 0.5 * len(rows)), sharey=True)
    for place, row in enumerate(reversed(rows)):
        scale, predictor = row.figures["scale"], row.figures["predictor"]
        bad = {"double rescaling", "input scale"} & set(row.findings)
        left.plot(
            scale["stem_spread"], place, "o", color="#c0392b" if bad else "#1f5f8b", label=None if place else "measured"
        )
        left.plot(
            scale["expected_stem_spread"], place, "|", ms=18, color="#777777", label=None if place else "expected"
        )
        colour = "#c0392b" if "constant predictor" in row.findings else "#1f5f8b"
        ends = (predictor["probability_low"], predictor["probability_high"])
        right.plot(ends, (place, place), color=colour, lw=6, solid_capstyle="butt")
        right.plot(ends, (place, place), "|", color=colour, ms=14)
    spreads = [row.figures["scale"][name] for row in rows for name in ("stem_spread", "expected_stem_spread")]
    left.set_xlim(max(min(spreads), 1e-6) / 5, max(spreads) * 5)
    left.set(xscale="log", xlabel="standard deviation at the first convolution", yticks=range(len(rows)))
    left.set_yticklabels([f"{row.backbone} ({row.train_domain}, {row.recipe})" for row in reversed(rows)])
    left.set_ylim(-0.7, len(rows) - 0.3)
    left.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, frameon=False)
    right.set(xlim=(0, 1), xlabel="probability of malignant: 90 % of the validation images")
    save(figure, path)
