"""Draws clinical columns: their distributions, their missing values, and their association with the class."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib import font_manager
from matplotlib.axes import Axes

from thyroid import metrics
from thyroid.plot_style import save
from thyroid.records.clinical import Association, ColumnAssociation, Missing

TITLES = {
    "clinical-distributions": "Clinical columns by class",
    "clinical-missing": "Share of patients whose value is missing, by class",
    "clinical-association": "Association of the columns with the class",
}
"""Title of every picture of `draw`, by name."""
SHOWN = 24
"""Largest number of columns on a picture. It shows the ones that are most strongly associated with the class."""
_COLUMNS = 4  # small multiples in a row
_SOFT, _ALERT = "#888888", "#c0392b"


def draw(found: Association, folder: Path) -> list[str]:
    """Draw the pictures of `TITLES` as `folder`/<name>.png.

    A picture shows up to `SHOWN` columns, those most strongly associated with the class. A picture with nothing to show
    is not drawn.

    Args:
        found: Result of `association.describe`.
        folder: Folder for the pictures.

    Returns:
        Names of the pictures that were drawn.
    """
    columns = sorted(found.columns, key=lambda row: (_rank(row), -(row.effect.value if row.effect else 0)))[:SHOWN]
    gaps = sorted(found.columns, key=lambda row: (_rank(row.missing), -row.missing.share))[:SHOWN]
    gaps = [row for row in gaps if row.missing.share > 0]
    tested = [row for row in columns if row.effect]
    drawn = []
    installed = set(font_manager.get_font_names())
    fonts = ["DejaVu Sans", *(f for f in ("Noto Sans CJK KR", "Noto Sans KR", "NanumGothic") if f in installed)]
    with plt.rc_context({"font.family": fonts}):
        for name, some, picture in (
            ("clinical-distributions", columns, _distributions),
            ("clinical-missing", gaps, _missing),
            ("clinical-association", tested, _association),
        ):
            if some:
                picture(some, found, folder / f"{name}.png")
                drawn.append(name)
    return drawn


def _rank(row: ColumnAssociation | Missing) -> float:
    """Return the p value of a row by which rows are sorted; rows without one come last."""
    return 2.0 if row.p is None else row.p


def _plain(text: str) -> str:
    """Shorten a text, escape its dollar signs, and replace characters that no font here has by question marks."""
    fonts = [font_manager.get_font(font_manager.findfont(family)) for family in plt.rcParams["font.family"]]
    shown = "".join(c if any(font.get_char_index(ord(c)) for font in fonts) else "?" for c in text)
    return (shown if len(shown) <= 24 else f"{shown[:23]}…").replace("$", r"\$")


def _colours(count: int) -> list[Any]:
    return list(matplotlib.colormaps["coolwarm"](np.linspace(0.05, 0.95, count)))


def _distributions(columns: Sequence[ColumnAssociation], found: Association, path: Path) -> None:
    class_names = found.classes
    wide = min(_COLUMNS, len(columns))
    high = -(-len(columns) // wide)
    size = (3.1 * wide + 0.6, (1.6 + 0.25 * len(class_names)) * high + 0.5)
    figure, axes = plt.subplots(high, wide, figsize=size, squeeze=False)
    for axis in axes.ravel()[len(columns) :]:
        axis.axis("off")
    for axis, row in zip(axes.ravel(), columns, strict=False):
        (_boxes if row.kind == "number" else _bars)(axis, row, class_names)
        axis.set_title(f"{_plain(row.column)} (n = {row.known})", fontsize=9)
        axis.set_yticks(range(len(class_names)), [_plain(name) for name in class_names])
        axis.tick_params(labelsize=8)
        axis.invert_yaxis()
    more = len(found.columns) - len(columns)
    also = f"; {more} more columns are not shown" if more else ""
    figure.suptitle(f"{TITLES['clinical-distributions']}, {found.patients} patients{also}", fontsize=11)
    save(figure, path)


def _boxes(axis: Axes, row: ColumnAssociation, class_names: Sequence[str]) -> None:
    for place, (name, colour) in enumerate(zip(class_names, _colours(len(class_names)), strict=True)):
        five = row.distribution[name]
        if five is None:
            continue
        stats = dict(zip(("whislo", "q1", "med", "q3", "whishi"), five, strict=True))
        axis.bxp(
            [stats],
            positions=[place],
            widths=0.6,
            orientation="horizontal",
            showfliers=False,
            patch_artist=True,
            boxprops={"facecolor": colour},
            medianprops={"color": "black"},
        )
    axis.set_xlabel("box: quartiles; line: 5 to 95 %", fontsize=7)


def _bars(axis: Axes, row: ColumnAssociation, class_names: Sequence[str]) -> None:
    counts = pd.DataFrame(row.distribution).reindex(columns=list(class_names)).fillna(0)
    counts = counts.loc[counts.sum(axis=1).sort_values(ascending=False).index]
    if len(counts) > 8:
        counts = pd.concat([counts.iloc[:7], counts.iloc[7:].sum().to_frame("all others").T])
    shares = counts / counts.sum().clip(lower=1)
    start = np.zeros(len(class_names))
    palette = matplotlib.colormaps["tab10"]
    for place, (name, share) in enumerate(shares.iterrows()):
        axis.barh(range(len(class_names)), share, left=start, color=palette(place), label=_plain(str(name)))
        start += share.to_numpy()
    axis.set_xlim(0, 1)
    axis.legend(fontsize=6, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.12), frameon=False)


def _missing(columns: Sequence[ColumnAssociation], found: Association, path: Path) -> None:
    class_names = found.classes
    figure, axis = plt.subplots(figsize=(7.5, 1.4 + (0.16 + 0.12 * len(class_names)) * len(columns)))
    thick = 0.8 / len(class_names)
    for c, (name, colour) in enumerate(zip(class_names, _colours(len(class_names)), strict=True)):
        shares = [row.missing.by_class[name] or 0 for row in columns]
        places = np.arange(len(columns)) + (c - (len(class_names) - 1) / 2) * thick
        axis.barh(places, shares, thick, color=colour, label=f"{_plain(name)} (n = {found.by_class[name]})")
    axis.set_yticks(range(len(columns)), [_plain(row.column) for row in columns], fontsize=8)
    for place, row in enumerate(columns):
        axis.text(1.01, place, _format_p(row.missing), fontsize=7, va="center", transform=axis.get_yaxis_transform())
    axis.invert_yaxis()
    axis.set(xlim=(0, 1), xlabel="share of patients; p: Holm's, of missing against class")
    axis.set_title(TITLES["clinical-missing"], fontsize=10)
    axis.legend(fontsize=7, loc="lower right")
    save(figure, path)


def _format_p(row: ColumnAssociation | Missing) -> str:
    """Format the corrected p value of a row."""
    p = row.p_corrected
    return "not tested" if p is None else "p < .001" if p < 0.001 else f"p = {p:.3f}"


def _association(columns: Sequence[ColumnAssociation], found: Association, path: Path) -> None:
    figure, axis = plt.subplots(figsize=(7.5, 1.4 + 0.3 * len(columns)))
    for place, row in enumerate(columns):
        effect = row.effect
        assert effect is not None
        colour = _ALERT if row.p_corrected is not None and row.p_corrected < 1 - metrics.LEVEL else _SOFT
        if effect.low is not None and effect.high is not None:
            axis.plot((effect.low, effect.high), (place, place), color=colour, lw=2)
        axis.plot(effect.value, place, "s" if row.kind == "number" else "o", color=colour)
        axis.text(1.01, place, _format_p(row), fontsize=8, va="center", transform=axis.get_yaxis_transform())
    names = {"number": "ε²", "category": "V"}
    ticks = [f"{_plain(row.column)} ({names[row.kind]})" for row in columns]
    axis.set_yticks(range(len(columns)), ticks, fontsize=8)
    axis.invert_yaxis()
    axis.set(xlim=(0, 1), xlabel="effect with 95 % interval over patients (ε²: numbers, V: categories; p: Holm's)")
    axis.set_title(f"{TITLES['clinical-association']}, {found.patients} patients", fontsize=10)
    save(figure, path)
