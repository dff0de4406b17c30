"""Draw the plots of an external validation. Each comes with a sentence that states what it shows.

What was measured at the site is dark and filled. What is from the internal test is grey, hollow and of another shape,
so that the plots can be read in grey.
"""

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from numpy.typing import NDArray
from sklearn.metrics import roc_curve

from thyroid import metrics
from thyroid.data.classes import Classes
from thyroid.data.filenames import CLASSES, SCORE
from thyroid.evaluate import performance
from thyroid.imaging import images
from thyroid.interval import Interval
from thyroid.plot_style import CLASS_NAMES, COLOURS, save
from thyroid.records.validation import Calibration, FormResult, NetBenefit, Unlikeness, ValidationRecord
from thyroid.validate import unlike

Case = tuple[str, float, NDArray[np.uint8], NDArray[np.uint8]]
"""File name, probability of malignant, image and heat map (uint8 [size, size, 3]) of a mistake."""

_HERE, _THERE = "#1f5f8b", "#777777"
_SIZE = (4.4, 4.1)
_GRID = np.linspace(0, 1, 101)
_UNITS = {"patient_": "patients", "": "images"}
_COMPARED = {
    "auroc": "AUROC",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "ppv_at_prevalence": "PPV",
    "npv_at_prevalence": "NPV",
}
MISTAKES = {
    "false-negatives": "Malignant nodules called benign, the surest first",
    "false-positives": "Benign nodules called malignant, the surest first",
}
"""Titles of the pictures of mistakes."""


@dataclass(frozen=True)
class Picture:
    """A plot.

    Attributes:
        uri: The PNG as a data URI.
        alt: What it shows, in one sentence that states the finding.
    """

    uri: str
    alt: str


def draw(
    record: ValidationRecord,
    tables: Mapping[str, pd.DataFrame],
    cases: Mapping[str, Sequence[Case]],
    audited: Sequence[tuple[str, Interval, bool]],
    folder: Path,
) -> dict[str, Picture]:
    """Draw every plot for which there is something to show.

    Args:
        record: The validation.
        tables: Predictions by kind of boxes, a row per image.
        cases: The surest mistakes of the leading kind of boxes, by "false-negatives" and "false-positives".
        audited: Name and AUROC of every row of the shortcut audit, and whether it is a reference.
        folder: Folder for the PNG files.

    Returns:
        The plots by name. Plots of a kind of boxes are called PLOT-KIND: roc-patients, roc-images, distribution,
        reliability, decision-curve, beside and subgroups. The others are audit, unlike, false-negatives and
        false-positives.
    """
    drawn: dict[str, Picture] = {}

    def keep(name: str, plot: Callable[[Path], str]) -> None:
        path = folder / f"{name}.png"
        alt = plot(path)
        drawn[name] = Picture(images.data_uri(path.read_bytes()), alt)

    for kind, form in record.forms.items():
        _draw_form(record, form, tables[kind], kind, keep)
    if audited:
        keep("audit", lambda path: _audit(audited, path))
    if record.unlike is not None and record.unlike.properties:
        found = record.unlike
        keep("unlike", lambda path: _unlike(found, path))
    for name, rows in cases.items():
        if rows:
            keep(name, lambda path, name=name, rows=rows: _worst(rows, MISTAKES[name], path))  # type: ignore[misc]
    return drawn


def _draw_form(
    record: ValidationRecord,
    form: FormResult,
    table: pd.DataFrame,
    kind: str,
    keep: Callable[[str, Callable[[Path], str]], None],
) -> None:
    """Draw the plots of one kind of boxes."""
    seed, by_patient = record.settings.seed, performance.by_patient(table, Classes.from_record(record))
    if by_patient["label"].nunique() == len(CLASSES):
        keep(f"roc-patients-{kind}", lambda path: _roc(by_patient, form, "patient_", seed, path))
    if table["label"].nunique() == len(CLASSES):  # also of one patient with nodules of both classes
        keep(f"roc-images-{kind}", lambda path: _roc(table, form, "", seed, path))
    keep(f"distribution-{kind}", lambda path: _distribution(table, record.model.threshold, path))
    if form.calibration is not None:
        found = form.calibration
        keep(f"reliability-{kind}", lambda path: _reliability(found, table, path))
    if form.net_benefit:
        points, count, prevalence = form.net_benefit, form.performance.n, record.settings.prevalence
        keep(f"decision-curve-{kind}", lambda path: _decision_curve(points, count, prevalence, path))
    keep(f"beside-{kind}", lambda path: _beside(form, path))
    if form.subgroups:
        keep(f"subgroups-{kind}", lambda path: _subgroups(form, path))


def _counts(table: pd.DataFrame, unit: str) -> str:
    malignant = int(performance.is_malignant(table).sum())
    return f"{malignant} malignant and {len(table) - malignant} benign {unit}"


def _roc(table: pd.DataFrame, form: FormResult, prefix: str, seed: int, path: Path) -> str:
    """Draw the ROC curve at the site with its band, its operating point, and that of the internal test."""
    figure, axis = plt.subplots(figsize=_SIZE)
    truth, patient, unit = performance.is_malignant(table), table["patient"].to_numpy(int), _UNITS[prefix]
    fpr, tpr, _ = roc_curve(truth, table[SCORE])
    low, high = metrics.roc_band(metrics.Draws(patient, seed=seed), truth, table[SCORE], patient, _GRID)
    axis.fill_between(_GRID, low, high, color=_HERE, alpha=0.15, lw=0, label="95 % band over patients")
    here = form.beside[f"{prefix}auroc"]
    axis.plot(fpr, tpr, color=_HERE, lw=2, label=f"here: AUROC {_short(here.external)}")
    axis.plot((0, 1), (0, 1), color=_THERE, lw=0.9, ls=":", label="guessing")
    told = []
    for name, which, marker, colour, edge in (
        ("here", "external", "o", _HERE, "white"),
        ("internal test", "internal", "D", "white", "black"),
    ):
        found, left = (getattr(form.beside[prefix + one], which) for one in ("sensitivity", "specificity"))
        if found is None or left is None:
            continue
        label = f"locked threshold, {name}"
        at = (1 - left.value, found.value)
        axis.plot(*at, marker, ms=9, color=colour, mec=edge, mew=1.3, zorder=5, clip_on=False, label=label)
        told.append(f"{name} sensitivity {found.value:.2f} and specificity {left.value:.2f}")
    axis.set_title(f"ROC curve, {_counts(table, unit)}", fontsize=9.5)
    axis.set(xlabel=f"benign {unit} called malignant (1 - specificity)", xlim=(-0.01, 1.01))
    axis.set(ylabel=f"malignant {unit} found (sensitivity)", ylim=(-0.01, 1.01))
    axis.legend(loc="lower right", fontsize=7.5)
    save(figure, path)
    internal = "" if here.internal is None else f" (internal test {here.internal.value:.3f})"
    points = f"; at the locked threshold {'; '.join(told)}" if told else ""
    return f"ROC curve of {_counts(table, unit)}: AUROC {_short(here.external)}{internal}{points}"


def _distribution(table: pd.DataFrame, threshold: float, path: Path) -> str:
    """Draw the probabilities of benign and of malignant images, and the locked threshold."""
    figure, axis = plt.subplots(figsize=_SIZE)
    _histogram(axis, table)
    axis.axvline(threshold, color="black", lw=1.2, ls="--", label=f"locked threshold {threshold:.2f}")
    axis.set_title(f"Probabilities of {_counts(table, 'images')}", fontsize=9.5)
    axis.set(xlabel="probability of malignant", ylabel="images", xlim=(0, 1))
    axis.set_ylim(top=1.25 * axis.get_ylim()[1])  # room for the legend
    axis.legend(fontsize=7.5, loc="upper center", ncols=2)
    save(figure, path)
    called = int((table[SCORE] >= threshold).sum())
    return (
        f"Of {_counts(table, 'images')}, {called} have a probability of at least the locked threshold, {threshold:.2f}"
    )


def _histogram(axis: Axes, table: pd.DataFrame) -> None:
    malignant = performance.is_malignant(table)
    axis.hist(
        [table[SCORE][~malignant], table[SCORE][malignant]],
        bins=20,
        range=(0, 1),
        stacked=True,
        color=[COLOURS[label] for label in CLASSES],
        label=[CLASS_NAMES[label] for label in CLASSES],
    )
    for patch in axis.patches[len(axis.patches) // 2 :]:  # hatched, so that they differ in grey
        patch.set_hatch("///")
        patch.set_edgecolor("white")


def _reliability(found: Calibration, table: pd.DataFrame, path: Path) -> str:
    """Draw how often images of a probability are malignant, and how many images have which probability."""
    figure, (axis, below) = plt.subplots(2, 1, figsize=_SIZE, sharex=True, gridspec_kw={"height_ratios": [3, 1]})
    axis.plot((0, 1), (0, 1), color=_THERE, lw=0.9, ls=":", label="as it should be")
    label = "here, with 95 % intervals"
    predicted = [one.predicted for one in found.bins]
    value, low, high = np.array([(one.value, one.low, one.high) for one in (b.observed for b in found.bins)], float).T
    axis.errorbar(predicted, value, (value - low, high - value), fmt="o-", color=_HERE, lw=1.2, capsize=2, label=label)
    axis.set_title(f"Calibration, {_counts(table, 'images')}", fontsize=9.5)
    axis.set(ylabel="share that is malignant", xlim=(-0.01, 1.01), ylim=(-0.02, 1.02))
    axis.legend(fontsize=7.5, loc="upper left")
    _histogram(below, table)
    below.set(xlabel="probability of malignant that the model gives", ylabel="images")
    below.set_ylim(top=1.5 * below.get_ylim()[1])  # room for the legend
    below.legend(fontsize=6.5, loc="upper center", ncols=2, frameon=False)
    save(figure, path)
    ratio = found.observed_to_expected
    what = {"below": "are too high", "above": "are too low", None: "are not shown to be shifted"}[away(ratio, 1)]
    return f"Reliability plot of {len(table)} images: the probabilities {what} (observed to expected {_short(ratio)})"


def _decision_curve(points: Sequence[NetBenefit], images_seen: int, prevalence: float, path: Path) -> str:
    """Draw the net benefit of sampling by the model, of sampling every nodule, and of sampling none."""
    figure, axis = plt.subplots(figsize=_SIZE)
    threshold = [one.threshold for one in points]
    axis.plot(threshold, [one.model for one in points], color=_HERE, lw=2.2, label="sample what the model says")
    axis.plot(threshold, [one.everybody for one in points], color=_THERE, lw=1.4, ls="--", label="sample every nodule")
    axis.axhline(0, color="black", lw=1, ls=":", label="sample none")
    axis.set_title(
        f"Decision curve of {images_seen} images\nwhere {100 * prevalence:.3g}% of the nodules are malignant",
        fontsize=9.5,
    )
    axis.set(xlabel="risk of malignancy from which one would sample", ylabel="net benefit (true positives per nodule)")
    axis.set(xlim=(threshold[0], threshold[-1]), ylim=(-prevalence / 3, prevalence * 1.15))
    axis.legend(fontsize=7.5, loc="upper right")
    save(figure, path)
    better = [one.threshold for one in points if one.model > max(0.0, one.everybody)]
    if not better:
        return "Decision curve: the model's net benefit is nowhere above both sampling every nodule and sampling none"
    where = f"at {len(better)} of {len(points)} risks, all between {min(better):.2f} and {max(better):.2f}"
    return f"Decision curve: the model's net benefit is above sampling every nodule and none {where}"


def _beside(form: FormResult, path: Path) -> str:
    """Draw each figure at the site beside that of the internal test, by patient and by image."""
    rows = [
        (f"{title}, by {'patient' if prefix else 'image'}", form.beside[prefix + name])
        for prefix in _UNITS
        for name, title in _COMPARED.items()
    ]
    rows = [(title, pair) for title, pair in rows if pair.external is not None]
    figure, axis = plt.subplots(figsize=(8.5, 1.5 + 0.42 * len(rows)))
    for place, (_, pair) in enumerate(reversed(rows)):
        _dot(axis, place + 0.13, pair.external, "here")
        _dot(axis, place - 0.13, pair.internal, "internal test", internal=True)
        axis.text(1.03, place, _signed(pair.difference), va="center", fontsize=8, transform=axis.get_yaxis_transform())
    axis.text(1.03, len(rows) - 0.35, "difference", fontsize=8, weight="bold", transform=axis.get_yaxis_transform())
    counts = f"{form.performance.patients} patients, {form.performance.n} images"
    _rows(axis, [title for title, _ in rows], f"value with its 95 % interval; here: {counts}")
    _legend(axis)
    save(figure, path)
    fallen = [title for title, pair in rows if away(pair.difference, 0) == "below"]
    if fallen:
        return f"Here beside the internal test: lower here, with the whole interval below 0, are {'; '.join(fallen)}"
    return "Here beside the internal test: no figure is shown to be lower here"


def away(found: Interval | None, value: float) -> Literal["below", "above"] | None:
    """Return on which side of a value a whole interval is; None if it holds the value, or is not known."""
    if found is not None and found.high is not None and found.high < value:
        return "below"
    return "above" if found is not None and found.low is not None and found.low > value else None


def _subgroups(form: FormResult, path: Path) -> str:
    """Draw AUROC, sensitivity and specificity of each subgroup, by image; small groups are hollow."""
    rows = form.subgroups
    figure, axes = plt.subplots(1, 3, figsize=(10, 1.5 + 0.42 * len(rows)), sharey=True)
    for axis, name in zip(axes, ("auroc", "sensitivity", "specificity"), strict=True):
        overall = getattr(form.performance, name)
        if overall is not None:
            axis.axvline(overall.value, color="black", lw=0.9, ls="--")
        for place, row in enumerate(reversed(rows)):
            _dot(axis, place, getattr(row, name), "", internal=row.small)
        axis.set_title("AUROC" if name == "auroc" else name, fontsize=9.5)
        texts = [f"{row.column}: {row.group}\n{row.malignant} malignant, {row.benign} benign" for row in rows]
        _rows(axis, texts, "by image, 95 % interval")
    figure.suptitle("Dashed: all images. Hollow: too few patients to rely on.", fontsize=8.5)
    save(figure, path)
    worst = min(rows, key=lambda row: row.auroc.value if row.auroc else math.inf)
    if worst.auroc is None:
        return f"Sensitivity and specificity of {len(rows)} subgroups"
    return f"Of {len(rows)} subgroups the AUROC is lowest for {worst.column} {worst.group}: {_short(worst.auroc)}"


def _audit(rows: Sequence[tuple[str, Interval, bool]], path: Path) -> str:
    """Draw the AUROCs of the shortcut audit; references are filled."""
    figure, axis = plt.subplots(figsize=(8.5, 1.4 + 0.36 * len(rows)))
    axis.axvline(0.5, color="black", lw=0.8, ls=":")
    for place, (_, auroc, reference) in enumerate(reversed(rows)):
        _dot(axis, place, auroc, "as it is" if reference else "without a look at the nodule", internal=not reference)
        axis.text(1.03, place, _short(auroc), va="center", fontsize=8, transform=axis.get_yaxis_transform())
    _rows(axis, [name for name, _, _ in rows], "AUROC with its 95 % interval over patients; dotted: guessing")
    _legend(axis)
    save(figure, path)
    return f"Shortcut audit: {'; '.join(f'{name}: AUROC {_short(auroc)}' for name, auroc, _ in rows)}"


def _unlike(found: Unlikeness, path: Path) -> str:
    """Draw the quantiles of each property over the training scans and over the site's scans."""
    columns = min(3, len(found.properties))
    lines = math.ceil(len(found.properties) / columns)
    figure, axes = plt.subplots(lines, columns, figsize=(3.4 * columns, 1.8 * lines + 0.5), squeeze=False)
    for axis in axes.ravel()[len(found.properties) :]:
        axis.axis("off")
    for axis, one in zip(axes.ravel(), found.properties, strict=False):
        for place, quantiles, colour, filled in ((1, one.training, _THERE, False), (0, one.site, _HERE, True)):
            low, first, middle, third, high = quantiles
            axis.plot((low, high), (place, place), color=colour, lw=1.2, zorder=1)
            axis.barh(place, third - first, 0.5, first, color=colour if filled else "white", edgecolor=colour, zorder=2)
            axis.plot((middle, middle), (place - 0.3, place + 0.3), color="black", lw=2, zorder=3)
        axis.set(yticks=(0, 1), yticklabels=("here", "training"), ylim=(-0.6, 1.6))
        told = f"{one.outside:.0%} outside, AUROC {one.auroc.value:.2f}"
        axis.set_title(f"{textwrap.fill(unlike.describe(one.name), 38)}\n{told}", fontsize=8)
        axis.set_xlabel(_unit(one.name), fontsize=7.5)
        axis.tick_params(labelsize=7.5)
        ends = (*one.training, *one.site)
        room = 0.08 * (max(ends) - min(ends)) or 1.0
        axis.set_xlim(min(ends) - room, max(ends) + room)
        axis.locator_params(axis="x", nbins=4)
    save(figure, path)
    most = found.properties[0]
    return (
        f"Quantiles of {len(found.properties)} properties of the training scans and of these; the most unlike is "
        f"{unlike.describe(most.name)}, where {most.outside:.0%} of these scans are outside the training range"
    )


def _unit(name: str) -> str:
    """Return the unit of a property of `thyroid.model.scan_statistics`."""
    if name.endswith(("width", "height")):
        return "pixels"
    if name.endswith(("grey", "spread", "contrast")):
        return "grey levels, 0 to 255"
    return "ratio" if name.endswith("aspect") else "share"


def _worst(cases: Sequence[Case], title: str, path: Path) -> str:
    """Draw mistakes, each above its heat map."""
    figure, axes = plt.subplots(2, len(cases), figsize=(max(3.9, 1.7 * len(cases)), 3.9), squeeze=False)
    for axis in axes.ravel():
        axis.axis("off")
    for column, (name, score, image, overlay) in enumerate(cases):
        axes[0, column].imshow(image, vmin=0, vmax=255)
        axes[1, column].imshow(overlay)
        axes[0, column].set_title(f"{textwrap.fill(name, 26)}\nprobability {score:.2f}", fontsize=7)
    save(figure, path)
    return f"{title}: {len(cases)} images with the probabilities {', '.join(f'{case[1]:.2f}' for case in cases)}"


def _dot(axis: Axes, y: float, found: Interval | None, label: str, *, internal: bool = False) -> None:
    """Draw a value with its interval: a filled circle, or a hollow diamond for `internal`."""
    if found is None:
        return
    colour, marker = (_THERE, "D") if internal else (_HERE, "o")
    if found.low is not None and found.high is not None:
        axis.plot((found.low, found.high), (y, y), color=colour, lw=2 if not internal else 1.4, zorder=2)
    face = "white" if internal else colour
    style: dict[str, Any] = {"mfc": face, "ms": 6, "ls": "none", "zorder": 3, "clip_on": False}
    axis.plot(found.value, y, marker, color=colour, label=label or None, **style)


def _rows(axis: Axes, names: Sequence[str], label: str) -> None:
    """Name the rows of a dot plot of shares, the first one on top."""
    axis.set(xlim=(-0.01, 1.01), ylim=(-0.6, len(names) - 0.4), yticks=range(len(names)))
    axis.set_yticklabels(list(reversed(names)), fontsize=8)
    axis.set_xlabel(label, fontsize=8.5)
    axis.tick_params(axis="x", labelsize=8)


def _legend(axis: Axes) -> None:
    """Put a legend with one entry for each label above the axis."""
    handles, labels = axis.get_legend_handles_labels()
    once = dict(zip(labels, handles, strict=True))
    drawn = axis.legend(once.values(), once.keys(), fontsize=8, loc="lower center", ncols=2, frameon=False)
    drawn.set_bbox_to_anchor((0.5, 1), transform=axis.transAxes)


def _short(found: Interval | None) -> str:
    """Return a value with its bounds to three decimals."""
    if found is None:
        return "not known"
    bounds = "" if found.low is None or found.high is None else f" [{found.low:.3f} to {found.high:.3f}]"
    return f"{found.value:.3f}{bounds}"


def _signed(found: Interval | None) -> str:
    """Return a difference with its sign and its bounds to three decimals; nothing where it is not known."""
    if found is None:
        return ""
    bounds = "" if found.low is None or found.high is None else f" [{found.low:+.3f} to {found.high:+.3f}]"
    return f"{found.value:+.3f}{bounds}"
