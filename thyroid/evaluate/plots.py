"""Draw the plots of the evaluation: the performance of a model on the test set, with intervals, and comparisons."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scikitplot.api.metrics import plot_roc
from sklearn.calibration import calibration_curve
from sklearn.metrics import precision_recall_curve, roc_curve

from thyroid import metrics
from thyroid.data.classes import BINARY, Classes
from thyroid.data.filenames import CLASSES, POSITIVE, SCORE
from thyroid.evaluate.boxes.located import DOMAIN_NAMES
from thyroid.evaluate.performance import RAW, is_malignant
from thyroid.metrics import Interval, format_interval
from thyroid.model import operating_point
from thyroid.plot_style import CLASS_NAMES, COLOURS, save
from thyroid.records.performance import Performance

_INK, _SOFT, _ALERT = "#1f5f8b", "#888888", "#c0392b"
_SIZE = (4.5, 4.3)
_GRID = np.linspace(0, 1, 101)

NAMES = {
    "roc": "ROC curve with its 95 % band over patients, and the operating point",
    "precision-recall": "Precision against recall",
    "reliability": "Reliability: how often images of a probability are malignant",
    "decision-curve": "Net benefit of acting on the model, on everybody and on nobody",
    "distribution": "Probability of malignant of benign and of malignant images",
    "confusion": "Confusion matrix at the operating point",
    "risk-coverage": "Wrong decisions as the most doubtful images are left undecided",
    "class-roc": "ROC curve and operating point of each class against all others",
    "class-confusion": "Confusion matrix of the classes",
}
"""Every plot of a model, and what it shows.

The last two are drawn only where the classes are not just benign and malignant.
"""


@dataclass(frozen=True, eq=False)
class PlottedModel:
    """What the plots of one model show.

    Attributes:
        table: Test predictions of the model in one domain.
        classes: Classes of the data version.
        performance: Metrics of `performance.of`.
        point: Operating point of the model.
        prevalence: Share of malignant nodules where the model would be used, for the decision curve.
        title: Model and domain in words.
        seed: Seed of the bootstrap.
    """

    table: pd.DataFrame
    classes: Classes
    performance: Performance
    point: operating_point.OperatingPoint
    prevalence: float
    title: str
    seed: int = 0


def draw(tested: PlottedModel, name: str, folder: Path) -> None:
    """Draw the plots of `NAMES` as `folder`/<plot>-<name>.png.

    Args:
        tested: Performance of the model.
        name: Name of the model in the file names.
        folder: Folder to write to.
    """

    def path(plot: str) -> Path:
        return folder / f"{plot}-{name}.png"

    _roc(tested, path("roc"))
    _precision_recall(tested, path("precision-recall"))
    _reliability(tested, path("reliability"))
    _decision_curve(tested, path("decision-curve"))
    _distribution(tested, path("distribution"))
    sides = [CLASS_NAMES[label] for label in CLASSES]
    _confusion(np.array(tested.performance.confusion), sides, tested.title, path("confusion"))
    if tested.classes != BINARY:
        of_classes = np.array(tested.performance.class_confusion)
        _confusion(of_classes, tested.classes.names, tested.title, path("class-confusion"))
        _classes_roc(tested, path("class-roc"))
    _risk_coverage(tested, path("risk-coverage"))


def _roc(tested: PlottedModel, path: Path) -> None:
    table, performance = tested.table, tested.performance
    figure, axis = plt.subplots(figsize=_SIZE)
    plot_roc(
        is_malignant(table).astype(int),
        np.stack([1 - table[SCORE], table[SCORE]], axis=1),
        to_plot_class_index=[POSITIVE],
        plot_micro=False,
        cmap="Blues_r",
        ax=axis,
    )
    curve = axis.get_lines()[0]
    curve.set(color=_INK, linewidth=2)
    patient = table["patient"].to_numpy(int)
    low, high = metrics.roc_band(
        metrics.Draws(patient, seed=tested.seed), is_malignant(table), table[SCORE], patient, _GRID
    )
    band = axis.fill_between(_GRID, low, high, color=_INK, alpha=0.15, lw=0)
    handles, labels = (
        [curve, band],
        [f"AUROC {format_interval(performance.auroc)}", "95 % band over patients"],
    )
    if performance.sensitivity is not None and performance.specificity is not None:
        at = (1 - performance.specificity.value, performance.sensitivity.value)
        handles += axis.plot(*at, "o", ms=9, color=_ALERT, mec="white", zorder=5)
        labels.append(f"operating point: sensitivity {at[1]:.2f}, specificity {1 - at[0]:.2f}")
    axis.set_title(tested.title, fontsize=10)
    axis.set(xlabel="1 - specificity", ylabel="sensitivity", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    axis.legend(handles, labels, loc="lower right", fontsize=8)
    save(figure, path)


def _precision_recall(tested: PlottedModel, path: Path) -> None:
    table, performance = tested.table, tested.performance
    figure, axis = plt.subplots(figsize=_SIZE)
    precision, recall, _ = precision_recall_curve(is_malignant(table), table[SCORE])
    axis.step(
        recall,
        precision,
        where="post",
        color=_INK,
        lw=2,
        label=f"average precision {format_interval(performance.auprc)}",
    )
    share = is_malignant(table).mean()
    axis.axhline(share, color=_SOFT, lw=0.9, ls="--", label=f"chance: {share:.2f} of the images are malignant")
    if performance.sensitivity is not None and performance.ppv is not None:
        at = (performance.sensitivity.value, performance.ppv.value)
        axis.plot(*at, "o", ms=9, color=_ALERT, mec="white", zorder=5, label="operating point")
    axis.set_title(tested.title, fontsize=10)
    axis.set(xlabel="recall (sensitivity)", ylabel="precision (PPV)", xlim=(0, 1.01), ylim=(0, 1.02))
    axis.legend(fontsize=8, loc="lower left")
    save(figure, path)


def _reliability(tested: PlottedModel, path: Path) -> None:
    table = tested.table
    figure, (axis, below) = plt.subplots(
        2, 1, figsize=_SIZE, sharex=True, gridspec_kw={"height_ratios": [3, 1]}, layout="constrained"
    )
    axis.plot((0, 1), (0, 1), color=_SOFT, lw=0.9, ls="--", label="perfect")
    for column, colour, label, error in (
        (RAW, _SOFT, "before scaling", tested.performance.ece_unscaled),
        (SCORE, _INK, "after scaling", tested.performance.ece),
    ):
        share, mean = calibration_curve(is_malignant(table), table[column].clip(0, 1), n_bins=metrics.BINS)
        axis.plot(
            mean,
            share,
            "o-",
            color=colour,
            lw=1.5,
            label=f"{label}: error {error}",
        )
    below.hist(table[SCORE], bins=metrics.BINS, range=(0, 1), color=_INK, alpha=0.7)
    below.set(xlabel="probability of malignant", ylabel="images")
    axis.set_title(tested.title, fontsize=10)
    axis.set(ylabel="share that is malignant", xlim=(0, 1), ylim=(-0.02, 1.02))
    axis.legend(fontsize=8, loc="upper left")
    save(figure, path)


def _decision_curve(tested: PlottedModel, path: Path) -> None:
    table, prevalence = tested.table, tested.prevalence
    figure, axis = plt.subplots(figsize=_SIZE)
    thresholds = np.linspace(0.005, min(0.6, 4 * prevalence), 100)
    everybody = metrics.net_benefit(is_malignant(table), np.ones(len(table)), thresholds, prevalence)
    shifted = metrics.at_prevalence(table[SCORE].to_numpy(), float(is_malignant(table).mean()), prevalence)
    model = metrics.net_benefit(is_malignant(table), shifted, thresholds, prevalence)
    locked = metrics.at_prevalence(np.array([tested.point.threshold]), float(is_malignant(table).mean()), prevalence)[0]
    axis.plot(thresholds, model, color=_INK, lw=2, label="act on the model")
    axis.plot(thresholds, everybody, color=_SOFT, lw=1.2, label="act on everybody")
    axis.axhline(0, color="black", lw=1, label="act on nobody")
    if locked <= thresholds[-1]:
        axis.axvline(locked, color=_ALERT, lw=0.9, ls="--", label="operating point")
    axis.set_title(f"{tested.title}\nwhere {prevalence:.0%} are malignant", fontsize=10)
    axis.set(xlabel="risk at which one would act", ylabel="net benefit", xlim=(0, thresholds[-1]))
    axis.set_ylim(-prevalence / 3, prevalence * 1.1)
    axis.legend(fontsize=8, loc="upper right")
    save(figure, path)


def _distribution(tested: PlottedModel, path: Path) -> None:
    table, point = tested.table, tested.point
    figure, axis = plt.subplots(figsize=_SIZE)
    for label in CLASSES:
        scores = table.loc[table["label"] == label, SCORE]
        name = f"{CLASS_NAMES[label]} (n = {len(scores)})"
        axis.hist(scores, bins=20, range=(0, 1), color=COLOURS[label], alpha=0.55, label=name, density=True)
    axis.axvline(point.threshold, color="black", lw=1, ls="--", label=f"threshold {point.threshold:.2f}")
    if point.band is not None:
        axis.axvspan(*point.band, color="#e7c565", alpha=0.35, lw=0, label="no decision")
    axis.set_title(tested.title, fontsize=10)
    axis.set(xlabel="probability of malignant", ylabel="density", xlim=(0, 1))
    axis.set_ylim(top=1.2 * axis.get_ylim()[1])  # room for the legend
    axis.legend(fontsize=8, loc="upper center", ncols=2)
    save(figure, path)


def _classes_roc(tested: PlottedModel, path: Path) -> None:
    """Draw the ROC curve of each class against all others, with its operating point."""
    table, classes, performance = tested.table, tested.classes, tested.performance
    figure, axis = plt.subplots(figsize=_SIZE)
    colours = plt.get_cmap("viridis")(np.linspace(0, 0.9, len(classes)))
    for name, column, colour in zip(classes.names, classes.columns, colours, strict=True):
        found = performance.classes[name]
        if found.auroc is not None:
            fpr, tpr, _ = roc_curve(table["class"] == name, table[column])
            axis.plot(fpr, tpr, color=colour, lw=1.6, label=f"{name}: {found.auroc}")
        if found.sensitivity is not None and found.specificity is not None:
            at = 1 - found.specificity.value, found.sensitivity.value
            axis.plot(*at, "o", ms=6, color=colour, mec="white", zorder=5)
    axis.plot((0, 1), (0, 1), color=_SOFT, lw=0.9, ls="--")
    axis.set_title(f"{tested.title}\nmacro AUROC {format_interval(performance.macro_auroc)}", fontsize=10)
    axis.set(xlabel="1 - specificity", ylabel="sensitivity", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    axis.legend(loc="lower right", fontsize=7, title="class against all others", title_fontsize=7)
    save(figure, path)


def _confusion(matrix: NDArray[np.int64], ticks: Sequence[str], title: str, path: Path) -> None:
    figure, axis = plt.subplots(figsize=_SIZE)
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (i, j), count in np.ndenumerate(matrix):
        text = f"{count}\n({shares[i, j]:.0%})"
        colour = "white" if shares[i, j] > 0.5 else "black"
        axis.text(j, i, text, ha="center", va="center", fontsize=max(6, 18 - 2 * len(ticks)), color=colour)
    axis.set(xticks=range(len(ticks)), yticks=range(len(ticks)), xlabel="called", ylabel="true")
    axis.set_xticklabels(ticks)
    axis.set_yticklabels(ticks, rotation=90, va="center")
    axis.set_title(f"{title}\nimages at the operating point", fontsize=10)
    save(figure, path)


def _risk_coverage(tested: PlottedModel, path: Path) -> None:
    table, point = tested.table, tested.point
    figure, axis = plt.subplots(figsize=_SIZE)
    coverage, risk = operating_point.risk_coverage(is_malignant(table), table[SCORE], point.threshold)
    axis.plot(coverage, risk, color=_INK, lw=2, label="wrong decisions among those made")
    if point.band is not None:
        decided = float((point.decide(table[SCORE]) != "abstain").mean())
        axis.axvline(decided, color=_ALERT, lw=0.9, ls="--", label=f"abstention band: {decided:.0%} decided")
    axis.set_title(tested.title, fontsize=10)
    axis.set(xlabel="share of images with a decision (surest first)", ylabel="share of wrong decisions", xlim=(0, 1.01))
    axis.set_ylim(0, max(0.1, float(risk.max()) * 1.25))  # room for the legend
    axis.legend(fontsize=8, loc="upper left")
    save(figure, path)


def worst_cases(
    cases: Sequence[tuple[str, float, NDArray[np.uint8], NDArray[np.uint8]]], title: str, path: Path
) -> None:
    """Draw images that were called wrongly, each above its heat map.

    Args:
        cases: File name, probability of malignant, image and overlay (uint8 [size, size, 3]) of each mistake, the
            most confident mistakes first.
        title: Title of the plot.
        path: File to write to.
    """
    columns = max(2, len(cases))
    figure, axes = plt.subplots(2, columns, figsize=(2.6 * columns, 5.6), squeeze=False)
    for axis in axes.ravel():
        axis.axis("off")
    for column, (name, score, image, overlay) in enumerate(cases):
        axes[0, column].imshow(image, vmin=0, vmax=255)
        axes[1, column].imshow(overlay)
        axes[0, column].set_title(f"{name}\nprobability {score:.2f}", fontsize=8)
    figure.suptitle(title, fontsize=11)
    save(figure, path)


def audit(rows: Sequence[tuple[str, Interval, bool]], path: Path) -> None:
    """Draw the AUROCs of an audit, next to the references that they are compared with.

    Args:
        rows: Name, AUROC, and whether it is a reference (the whole image, the model).
        path: File to write to.
    """
    figure, axis = plt.subplots(figsize=(8.5, 1.2 + 0.33 * len(rows)))
    for place, (_, auroc, reference) in enumerate(reversed(rows)):
        colour = _INK if reference else _ALERT
        if auroc.low is not None and auroc.high is not None:
            axis.plot((auroc.low, auroc.high), (place, place), color=colour, lw=2)
        axis.plot(auroc.value, place, "o", color=colour)
        axis.text(1.03, place, str(auroc), va="center", fontsize=8, transform=axis.get_yaxis_transform())
    axis.axvline(0.5, color="black", lw=0.8, ls="--")
    axis.set(xlim=(0, 1), xlabel="AUROC with 95 % interval over patients; dashed: chance", yticks=range(len(rows)))
    axis.set_yticklabels([name for name, _, _ in reversed(rows)])
    axis.get_yaxis().set_tick_params(labelsize=9)
    save(figure, path)


def ranking(rows: Sequence[tuple[str, Interval, Interval | None]], chosen_by: str, path: Path) -> None:
    """Draw the AUROC that chooses the winner and the AUROC on the test set of every model, with intervals.

    Args:
        rows: Name of the model, AUROC that chooses, and AUROC on the test set, best model first.
        chosen_by: Name of the AUROC that chooses.
        path: File to write to.
    """
    figure, axis = plt.subplots(figsize=(8, 1.2 + 0.55 * len(rows)))
    for place, (_, validation, test) in enumerate(rows):
        for which, colour, shift, auroc in (
            (chosen_by, "#888888", 0.12, validation),
            ("test", "#1f5f8b", -0.12, test),
        ):
            y = len(rows) - place + shift
            if auroc is None:
                continue
            if auroc.low is not None and auroc.high is not None:
                axis.plot((auroc.low, auroc.high), (y, y), color=colour, lw=2)
            axis.plot(auroc.value, y, "o", color=colour, label=which if place == 0 else None)
    axis.axvline(0.5, color="#bb0000", lw=0.8, ls="--", label="chance")
    axis.set(xlim=(0, 1.02), xlabel="AUROC with 95 % interval over patients", yticks=range(1, len(rows) + 1))
    axis.set_yticklabels([row[0] for row in reversed(rows)])
    axis.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, frameon=False)
    save(figure, path)


def domain_matrix(cells: Mapping[str, Mapping[str, Interval]], domains: Sequence[str], title: str, path: Path) -> None:
    """Draw the test AUROCs of one backbone as a heat map: rows are the domains trained on, columns those tested on."""
    figure, axis = plt.subplots(figsize=(1.6 + 1.5 * len(domains), 4))
    values = np.array([[cells[train][test].value for test in domains] for train in cells])
    axis.imshow(values, cmap="RdYlGn", vmin=0.3, vmax=1)
    for i, train in enumerate(cells):
        for j, test in enumerate(domains):
            cell = cells[train][test]
            limits = "" if cell.low is None else f"\n[{cell.low:.2f}, {cell.high:.2f}]"
            axis.text(j, i, f"{cell.value:.3f}{limits}", ha="center", va="center", fontsize=10)
    axis.set(xticks=range(len(domains)), yticks=range(len(cells)), xlabel="tested on", ylabel="trained on")
    axis.set_xticklabels([DOMAIN_NAMES[domain] for domain in domains])
    axis.set_yticklabels([DOMAIN_NAMES[domain] for domain in cells], rotation=90, va="center")
    axis.set_title(title, fontsize=10)
    save(figure, path)


def forest(rows: Sequence[tuple[str, Interval]], path: Path) -> None:
    """Draw the AUROC of each row with its interval."""
    figure, axis = plt.subplots(figsize=(8, 1.2 + 0.42 * len(rows)))
    for place, (_, auroc) in enumerate(reversed(rows)):
        if auroc.low is not None and auroc.high is not None:
            axis.plot((auroc.low, auroc.high), (place, place), color="#1f5f8b", lw=2)
        axis.plot(auroc.value, place, "o", color="#1f5f8b")
    axis.axvline(0.5, color="#bb0000", lw=0.8, ls="--")
    axis.set(xlim=(0, 1.02), xlabel="AUROC with 95 % interval over patients; dashed: chance", yticks=range(len(rows)))
    axis.set_yticklabels([name for name, _ in reversed(rows)])
    save(figure, path)
