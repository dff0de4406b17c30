"""The plot of what arrives night by night beside what is usual for the model, for people without statistics."""

import datetime
from collections.abc import Mapping
from pathlib import Path

import matplotlib.dates as mdates
import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from thyroid import plot_style
from thyroid.records.model import UsualAnswers
from thyroid.records.watch import DriftRecord
from thyroid.watch import drift

_PANELS = {
    "probability": "Probability of malignant",
    "distance": "Unlike the training pictures (above 1: unlike)",
    "abstain": "Share of patients left undecided",
    "malignant": "Share of patients called malignant",
    "box_probability": "How sure the model is of its own box",
    "box_share": "Share of the picture that the box takes",
    "width": "Width of the picture in pixels",
}
"""Titles of the panels in the order of their importance, of which the first that can be drawn are."""
_MOST = 6
_USUAL, _NOW, _ALARM = "#9bb7d4", "#1c2733", "#c0392b"
_BAND = (0.05, 0.95)
_SMOOTH = 7
"""Nights over which the line averages, since a single night has few patients."""


def trends(decisions: pd.DataFrame, usual: Mapping[str, UsualAnswers], record: DriftRecord, path: Path) -> str:
    """Draw what arrived every night beside the usual answers, for the source with most decisions.

    A panel shows the median of each night's patients (the share, for decisions) as a dot, the same of the last seven
    nights as a line, and the middle 90 % of the held-out patients as a band. Nights with an alarm of any property are
    shaded; the title of a panel whose property raises an alarm on the last night is red.

    Args:
        decisions: As for `drift.compare`.
        usual: As for `drift.compare`.
        record: Its result, which must not be skipped.
        path: PNG to write.

    Returns:
        What the plot shows, in one sentence.
    """
    table = drift.properties(decisions)
    last = datetime.date.fromisoformat(record.night)
    table = table[table["source"].isin({row.source for row in record.rows}) & (table["night"] <= last.toordinal())]
    source = str(table["source"].mode()[0])
    rows, reference = table[table["source"] == source], usual[source]
    names = [name for name in _PANELS if name in drift.SHARES or reference.values.get(name)]
    names = [name for name in names if rows[name].notna().any()][:_MOST]
    changed = {row.property for row in record.rows if row.alarm and row.source == source}
    lines = -(-len(names) // 2)
    figure, axes = plt.subplots(lines, 2, figsize=(9.5, 2.3 * lines + 0.7), squeeze=False, sharex=True)
    for name, axis in zip(names, axes.flat, strict=False):
        _panel(axis, name, rows, reference)
        title = f"{_PANELS[name]}: changed" if name in changed else _PANELS[name]
        axis.set_title(title, fontsize=10, color=_ALARM if name in changed else "black", loc="left")
        for night in record.alarms:
            start = _day(datetime.date.fromisoformat(night).toordinal())
            axis.axvspan(start - 0.5, start + 0.5, color=_ALARM, alpha=0.13, lw=0, zorder=0)
    for axis in axes.flat[len(names) :]:
        axis.set_visible(False)
    axes.flat[0].xaxis.set_major_locator(mdates.AutoDateLocator(minticks=3, maxticks=5))  # type: ignore[no-untyped-call]
    handles = [
        Line2D([], [], marker="o", ls="", ms=3.5, color=_NOW, alpha=0.45, label="one night"),
        Line2D([], [], color=_NOW, label=f"last {_SMOOTH} nights"),
        Rectangle((0, 0), 1, 1, color=_USUAL, alpha=0.55, label="usual for this model"),
        Rectangle((0, 0), 1, 1, color=_ALARM, alpha=0.13, label="night with an alarm"),
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=4, frameon=False, fontsize=9)
    plot_style.save(figure, path)
    count = len(record.alarms)
    nights = f"{count} nights" if count > 1 else "one night" if count else "no night"
    return f"What arrived from night to night beside what is usual for the model; {nights} raised an alarm."


def _panel(axis: Axes, name: str, rows: pd.DataFrame, reference: UsualAnswers) -> None:
    """Draw one property over the nights."""
    share = name in drift.SHARES
    if share:
        middle = reference.shares[name]
        axis.axhline(middle, color=_USUAL, lw=5, alpha=0.7, zorder=1)
    else:
        values = reference.values[name]
        low, middle, high = (float(one) for one in np.quantile(values, [_BAND[0], 0.5, _BAND[1]]))
        axis.axhspan(low, high, color=_USUAL, alpha=0.35, lw=0, zorder=1)
        axis.axhline(middle, color=_USUAL, lw=2, zorder=1)
    first, last = int(rows["night"].min()), int(rows["night"].max())
    ordered = rows["night"].to_numpy()  # ascending, so that a window is a slice
    dots, line = (
        [
            _middle(rows.iloc[slice(*np.searchsorted(ordered, [night - nights + 1, night + 1]))], name, share)
            for night in range(first, last + 1)
        ]
        for nights in (1, _SMOOTH)
    )
    axis.xaxis_date()
    days = [_day(night) for night in range(first, last + 1)]
    axis.plot(days, dots, "o", ms=2.5, color=_NOW, alpha=0.4, mew=0, zorder=2)
    axis.plot(days, line, color=_NOW, lw=1.5, zorder=3)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8.5)
    if name in ("probability", "abstain", "malignant", "box_probability"):
        axis.set_ylim(-0.03, 1.03)


def _day(night: int) -> int:
    """Return the day of an ordinal as Matplotlib counts them."""
    return night - datetime.date(1970, 1, 1).toordinal()


def _middle(rows: pd.DataFrame, name: str, share: bool) -> float:
    """Return the median over patients, or for a decision the mean; NaN without patients."""
    means = rows.groupby("unit")[name].mean()
    return float(means.mean() if share else means.median())
