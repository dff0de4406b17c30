"""Draw the forest plot: every site with its interval, the mean over sites, and what a further site may see."""

import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from thyroid.plot_style import save
from thyroid.records.share import PooledFigure, PooledSite, RandomEffects

MOST_NAMED = 60
"""Number of sites up to which each has its name."""
PANELS = {"sensitivity": "sensitivity", "specificity": "specificity", "auroc": "AUROC"}
"""Figures that are drawn, and their titles."""

_INK, _MEAN, _NEXT = "#1f5f8b", "#c0392b", "#e0a39c"
_CASES = {"exact": (0.0, ""), "best": (0.0, "at best"), "worst": (-0.75, "at worst")}
_MARKER = (3.0, 8.0)  # sizes of the smallest and of the largest site, in points
_LOWEST = 0.9  # an axis shows at least this and all above it


def forest(sites: list[PooledSite], figures: dict[str, PooledFigure], path: Path) -> None:
    """Draw sensitivity, specificity and AUROC by site and over the sites, as far as there are any.

    Args:
        sites: The sites, from the top down.
        figures: Figures by name.
        path: PNG to write.
    """
    shown = [name for name in PANELS if name in figures]
    named = len(sites) <= MOST_NAMED
    height = 2.2 + (0.36 * len(sites) if named else 6.5)
    figure, axes = plt.subplots(1, len(shown), figsize=(3.6 * len(shown) + 1.8, height), sharey=named, squeeze=False)
    for axis, name in zip(axes[0], shown, strict=True):
        _panel(axis, sites, figures[name], named)
        axis.set_title(PANELS[name], fontsize=10)
        axis.set_xlabel("95 % interval, by patient", fontsize=8)
        axis.tick_params(labelsize=8)
    if named:
        texts = [
            f"{_short(site.site)}\n{_counted(site.malignant)} malignant, {_counted(site.benign)} benign"
            for site in sites
        ]
        axes[0][0].set_yticks([*range(len(sites), 0, -1), 0], [*texts, "all sites"], fontsize=7.5, parse_math=False)
    hollow = any(figures[name].withheld for name in shown)
    words = "Red: mean over the sites, and below it in light red what a further site may see."
    words += " Hollow: a count is withheld, the bar holds all that it may be." if hollow else ""
    figure.suptitle(words if named else f"{words} Each panel in its own order.", fontsize=8.5)
    with warnings.catch_warnings():  # of scripts that the font does not have; the tables have every name
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        save(figure, path)


def _panel(axis: Axes, sites: list[PooledSite], figure: PooledFigure, named: bool) -> None:
    """Draw one figure: a row per site that gives it, and the mean at the bottom."""
    rows = [(len(sites) - place, site) for place, site in enumerate(sites) if site.site in figure.sites]
    if not named:
        ordered = sorted((site for _, site in rows), key=lambda site: figure.sites[site.site].value)
        rows = list(enumerate(ordered, 1))
    place = np.array([number for number, _ in rows], float)
    metrics = [figure.sites[site.site] for _, site in rows]
    value = np.array([metric.value for metric in metrics])
    low, high = (np.array([getattr(metric, bound) for metric in metrics], float) for bound in ("low", "high"))
    size = np.sqrt([(site.malignant or 0) + (site.benign or 0) for _, site in rows])
    size = _MARKER[0] + (_MARKER[1] - _MARKER[0]) * size / size.max()
    colour = ["white" if site.site in figure.withheld else _INK for _, site in rows]
    axis.hlines(place, low, high, color=_INK, lw=1.3 if named else 0.5, alpha=1 if named else 0.4, zorder=2)
    axis.scatter(
        value, place, s=size**2 if named else 3, c=colour, edgecolors=_INK, linewidths=1 if named else 0.2, zorder=3
    )
    unit = 1.0 if named else len(sites) / 25
    bottom = 0.0 if named else -unit / 2
    for case, effects in figure.cases.items():
        offset, text = _CASES[case]
        _mean(axis, effects, bottom + offset * unit, unit)
        axis.text(0.02, bottom + (offset + 0.1) * unit, text, fontsize=7, transform=axis.get_yaxis_transform())
    edge = min([_LOWEST, *low, *(effects.pooled.low or 1 for effects in figure.cases.values())])
    axis.set_xlim(max(-0.02, edge - 0.05), 1.02)
    axis.set_ylim(bottom - 1.3 * unit, len(sites) + 0.6)
    axis.grid(axis="x", color="#e6ebf0", lw=0.8)
    axis.set_axisbelow(True)
    if not named:
        axis.set_yticks([])


def _mean(axis: Axes, effects: RandomEffects, place: float, unit: float) -> None:
    """Draw a mean as a diamond, the prediction interval below it, and a line through all sites."""
    mean = effects.pooled
    axis.axvline(mean.value, color=_MEAN, lw=0.8, ls="--", zorder=1)
    if effects.prediction is not None:
        low, high = effects.prediction
        axis.hlines(place - 0.22 * unit, low, high, color=_NEXT, lw=4, zorder=2)
    if mean.low is not None and mean.high is not None:
        half = 0.14 * unit
        corners = ([mean.low, mean.value, mean.high, mean.value], [place, place + half, place, place - half])
        axis.fill(*corners, color=_MEAN, zorder=4)


def _short(name: str) -> str:
    return name if len(name) <= 32 else f"{name[:31]}…"


def _counted(patients: int | None) -> str:
    return "under 10" if patients is None else str(patients)
