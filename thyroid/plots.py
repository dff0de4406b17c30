"""Every picture. All carry "research use only"; matplotlib without a display."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from thyroid import RESEARCH_USE_ONLY, tables
from thyroid.classes import BINARY, Classes
from thyroid.names import CLASSES

if TYPE_CHECKING:
    from thyroid.metrics import Interval

COLOURS = {"B": "#2b7bba", "M": "#c0392b"}
CLASS_NAMES = {"B": "benign", "M": "malignant"}
_DPI = 110
_THUMBNAILS = 8


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG with the line that stands under every picture, and close it.

    Legends have a given place: Matplotlib's search for the best one takes long with many points, and warns on a busy machine.
    """
    figure.set_layout_engine("constrained", rect=(0, 0.04, 1, 0.96))  # room for the line below
    figure.text(0.995, 0.004, RESEARCH_USE_ONLY, ha="right", va="bottom", fontsize=6.5, color="#777777")
    figure.savefig(path, dpi=_DPI)
    plt.close(figure)


def class_colours(classes: Classes) -> dict[str, Any]:
    """Blue for benign classes and red for malignant ones, the darker the later in their order."""
    sides = {
        side: [n for n, p in zip(classes.names, classes.positive, strict=True) if p is side] for side in (False, True)
    }
    colours: dict[str, Any] = {}
    for side, map_name in ((False, "Blues"), (True, "Reds")):
        shades = plt.get_cmap(map_name)(np.linspace(0.45, 0.9, len(sides[side])))
        colours |= dict(zip(sides[side], shades, strict=True))
    return COLOURS if classes == BINARY else colours


def class_names(classes: Classes) -> dict[str, str]:
    """What people call the classes."""
    return CLASS_NAMES if classes == BINARY else {name: name for name in classes.names}


def data_statistics(scans: pd.DataFrame, regions: pd.DataFrame, path: Path, classes: Classes = BINARY) -> None:
    """What the data version holds: images and patients per split and class, images a patient, frame and region sizes."""
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
    frames = scans[scans["domain"] == "normal"]
    axis.scatter(frames["width"].astype(float), frames["height"].astype(float), s=14, color="#667788", label="frame")
    sized = regions.merge(scans[["path", "class"]], on="path")
    for name in classes.names:
        these = sized[sized["class"] == name]
        axis.scatter(
            these["width"].astype(float),
            these["height"].astype(float),
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
        these = scans[scans["class"] == name]
        counted = these.groupby("split").size() if what == "images" else these.groupby("split")["patient"].nunique()
        heights = np.array([int(counted.get(split, 0)) for split in tables.SPLITS], float)
        colour, told = class_colours(classes)[name], class_names(classes)[name]
        bars = axis.bar(tables.SPLITS, heights, bottom=bottom, color=colour, label=told)
        axis.bar_label(bars, [str(int(h)) for h in heights], label_type="center", color="white", fontsize=9)
        bottom += heights
    share = scans["class"].value_counts(normalize=True).max()
    axis.set(ylabel=what, title=f"{what.capitalize()} by split (majority class {share:.1%} of images)")
    axis.legend(fontsize=8, loc="upper right")


def crop_sheet(scans: pd.DataFrame, regions: pd.DataFrame, folder: Path, path: Path) -> None:
    """The first scans of each class in both domains, to see at a glance whether cropping went well."""
    good = tables.used(scans)
    normal = good[good["domain"] == "normal"].merge(
        regions.groupby("path", as_index=False)["crop_path"].first(), on="path", how="left"
    )
    rows = normal if len(normal) else good.merge(regions[["path", "crop_path"]], on="path")
    picked = pd.concat(
        [rows[rows["label"] == label].drop_duplicates("patient").head(_THUMBNAILS // 2) for label in CLASSES]
    )
    figure, axes = plt.subplots(2, max(2, len(picked)), figsize=(13, 4), squeeze=False)
    for axis in axes.ravel():
        axis.axis("off")
    for column, row in enumerate(picked.itertuples()):
        for axis, file in zip(axes[:, column], (row.normal_path, row.crop_path), strict=True):
            if isinstance(file, str):
                axis.imshow(np.asarray(Image.open(folder / file).convert("L")), cmap="gray", vmin=0, vmax=255)
        axes[0, column].set_title(CLASS_NAMES[row.label], fontsize=9, color=COLOURS[row.label])
    figure.suptitle("Scan area (above) and first region with its margin (below)", fontsize=11)
    save(figure, path)


def history(table: pd.DataFrame, title: str, path: Path) -> None:
    """Loss and AUROC per epoch of both phases, training against validation."""
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


def ranking(rows: Sequence[tuple[str, "Interval", "Interval"]], chosen_by: str, path: Path) -> None:
    """The AUROC that chooses and that on the test set, with their intervals, best first.

    Args:
        rows: (model, chooses, test).
        chosen_by: name of what chooses.
    """
    figure, axis = plt.subplots(figsize=(8, 1.2 + 0.55 * len(rows)))
    for place, (_, validation, test) in enumerate(rows):
        for which, colour, shift, auroc in (
            (chosen_by, "#888888", 0.12, validation),
            ("test", "#1f5f8b", -0.12, test),
        ):
            y = len(rows) - place + shift
            if auroc.low is not None and auroc.high is not None:
                axis.plot((auroc.low, auroc.high), (y, y), color=colour, lw=2)
            axis.plot(auroc.value, y, "o", color=colour, label=which if place == 0 else None)
    axis.axvline(0.5, color="#bb0000", lw=0.8, ls="--", label="chance")
    axis.set(xlim=(0, 1.02), xlabel="AUROC with 95 % interval over patients", yticks=range(1, len(rows) + 1))
    axis.set_yticklabels([row[0] for row in reversed(rows)])
    axis.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, frameon=False)
    save(figure, path)


def domain_matrix(
    cells: Mapping[str, Mapping[str, Mapping[str, Any]]], domains: Sequence[str], title: str, path: Path
) -> None:
    """Test AUROC of one backbone, trained on rows and tested on columns, as a heat map."""
    figure, axis = plt.subplots(figsize=(4.6, 4))
    values = np.array([[cells[train][test]["value"] for test in domains] for train in domains])
    axis.imshow(values, cmap="RdYlGn", vmin=0.3, vmax=1)
    for i, train in enumerate(domains):
        for j, test in enumerate(domains):
            cell = cells[train][test]
            limits = "" if cell["low"] is None else f"\n[{cell['low']:.2f}, {cell['high']:.2f}]"
            axis.text(j, i, f"{cell['value']:.3f}{limits}", ha="center", va="center", fontsize=10)
    axis.set(xticks=range(len(domains)), yticks=range(len(domains)), xlabel="tested on", ylabel="trained on")
    axis.set_xticklabels([tables.DOMAIN_NAMES[one] for one in domains])
    axis.set_yticklabels([tables.DOMAIN_NAMES[one] for one in domains], rotation=90, va="center")
    axis.set_title(title, fontsize=10)
    save(figure, path)


def diagnosis(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Why a model collapsed, at a glance: the spread of its input at the stem, and the spread of its answers.

    Args:
        rows: facts of `diagnose.Diagnosis`, one a model.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 1.6 + 0.5 * len(rows)), sharey=True)
    for place, row in enumerate(reversed(rows)):
        scale, predictor = row["figures"]["scale"], row["figures"]["predictor"]
        bad = {"double rescaling", "input scale"} & set(row["findings"])
        left.plot(
            scale["stem_spread"], place, "o", color="#c0392b" if bad else "#1f5f8b", label=None if place else "measured"
        )
        left.plot(
            scale["expected_stem_spread"], place, "|", ms=18, color="#777777", label=None if place else "expected"
        )
        colour = "#c0392b" if "constant predictor" in row["findings"] else "#1f5f8b"
        ends = (predictor["probability_low"], predictor["probability_high"])
        right.plot(ends, (place, place), color=colour, lw=6, solid_capstyle="butt")
        right.plot(ends, (place, place), "|", color=colour, ms=14)
    spreads = [row["figures"]["scale"][name] for row in rows for name in ("stem_spread", "expected_stem_spread")]
    left.set_xlim(max(min(spreads), 1e-6) / 5, max(spreads) * 5)
    left.set(xscale="log", xlabel="standard deviation at the first convolution", yticks=range(len(rows)))
    left.set_yticklabels([f"{row['backbone']} ({row['train_domain']}, {row['recipe']})" for row in reversed(rows)])
    left.set_ylim(-0.7, len(rows) - 0.3)
    left.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, frameon=False)
    right.set(xlim=(0, 1), xlabel="probability of malignant: 90 % of the validation images")
    save(figure, path)


def forest(rows: Sequence[tuple[str, "Interval"]], path: Path) -> None:
    """AUROC of each row with its interval."""
    figure, axis = plt.subplots(figsize=(8, 1.2 + 0.42 * len(rows)))
    for place, (_, auroc) in enumerate(reversed(rows)):
        if auroc.low is not None and auroc.high is not None:
            axis.plot((auroc.low, auroc.high), (place, place), color="#1f5f8b", lw=2)
        axis.plot(auroc.value, place, "o", color="#1f5f8b")
    axis.axvline(0.5, color="#bb0000", lw=0.8, ls="--")
    axis.set(xlim=(0, 1.02), xlabel="AUROC with 95 % interval over patients; dashed: chance", yticks=range(len(rows)))
    axis.set_yticklabels([name for name, _ in reversed(rows)])
    save(figure, path)
