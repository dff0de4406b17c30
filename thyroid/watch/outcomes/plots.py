"""Draws what outcomes say of a model since its release. Each plot comes with a sentence that states what it shows."""

from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from numpy.typing import NDArray

from thyroid import metrics
from thyroid.imaging import images
from thyroid.plot_style import COLOURS, save
from thyroid.records.watch import Sequential
from thyroid.validate.plots import Picture
from thyroid.watch.outcomes.outcomes import Outcomes, right
from thyroid.watch.outcomes.sequential import confidence_sequence

_SIZE = (8.6, 3.4)
_COLOUR = {"sensitivity": COLOURS["M"], "specificity": COLOURS["B"]}
_KIND = {"sensitivity": "malignant", "specificity": "benign"}
_WHO = {"sensitivity": "patients with cancer", "specificity": "patients without cancer"}
_TITLE = {
    "sensitivity": "Patients with cancer who were called malignant\n(sensitivity)",
    "specificity": "Patients without cancer who were called benign\n(specificity)",
}
_GREY = "#555555"
_POINTS = 200  # a confidence sequence is computed at no more outcomes than these


def draw(outcomes: Outcomes, folder: Path) -> dict[str, Picture]:
    """Draw every plot for which there are outcomes.

    Args:
        outcomes: What was measured.
        folder: Folder for the PNG files.

    Returns:
        The plots by name: shares (sensitivity and specificity so far), alarms (the CUSUM of each), and calibration, for
        which there must be `metrics.FEW` patients of each class.
    """
    drawn: dict[str, Picture] = {}

    def keep(name: str, plot: Callable[[Outcomes, Path], str]) -> None:
        path = folder / f"outcomes-{name}.png"
        alt = plot(outcomes, path)
        drawn[name] = Picture(images.data_uri(path.read_bytes()), alt)

    if _known(outcomes):
        keep("shares", _shares)
        keep("alarms", _alarms)
    malignant = outcomes.record.malignant
    if min(malignant, outcomes.record.patients - malignant) >= metrics.FEW:
        keep("calibration", _calibration)
    return drawn


def _panels(outcomes: Outcomes, draw_one: Callable[[Axes, Sequential, pd.DataFrame], None], path: Path) -> None:
    """Draw sensitivity and specificity side by side over the dates of the outcomes."""
    with plt.rc_context({"date.converter": "concise"}):
        figure, axes = plt.subplots(1, len(outcomes.record.tests), figsize=_SIZE, squeeze=False)
        _fill(outcomes, draw_one, axes[0])
        save(figure, path)


def _fill(
    outcomes: Outcomes, draw_one: Callable[[Axes, Sequential, pd.DataFrame], None], axes: NDArray[np.object_]
) -> None:
    """Draw a share in each of the axes."""
    for axis, test in zip(axes, outcomes.record.tests, strict=True):
        axis.set_title(_TITLE[test.name], fontsize=9.5)
        cases = right(outcomes.table, test.name)
        if cases.empty:
            axis.text(0.5, 0.5, f"no {_KIND[test.name]} outcome yet", ha="center", transform=axis.transAxes)
            axis.set_axis_off()
            continue
        draw_one(axis, test, cases)
        if test.alarm_at is not None:
            when = np.datetime64(test.alarm_at)
            axis.axvline(when, color="black", lw=1.4, label=f"alarm on {test.alarm_at}")
        axis.set_xlabel("date of the pathology", fontsize=8.5)
        axis.tick_params(labelsize=8)
        axis.legend(fontsize=7.5, loc="lower left" if draw_one is _share else "upper left")


def _shares(outcomes: Outcomes, path: Path) -> str:
    """Draw the shares of right decisions so far, with the bounds that hold at all times."""
    _panels(outcomes, _share, path)
    told = [f"{test.name} {test.value} of {test.n}, expected {test.expected:.2f}" for test in _known(outcomes)]
    return f"Share of right decisions since the release: {'; '.join(told)}"


def _share(axis: Axes, test: Sequential, cases: pd.DataFrame) -> None:
    days, ends = _days(cases)
    if len(ends) > _POINTS:
        chosen = np.unique(np.linspace(0, len(ends) - 1, _POINTS).round().astype(int))
        days, ends = days[chosen], ends[chosen]
    hits, seen = np.cumsum(cases["right"].to_numpy(int))[ends], ends + 1
    low, high = np.array([confidence_sequence(*one) for one in zip(hits.tolist(), seen.tolist(), strict=True)]).T
    colour = _COLOUR[test.name]
    axis.fill_between(
        days, low, high, color=colour, alpha=0.15, lw=0, step="post", label="the true share is in here (95 %)"
    )
    axis.plot(days, hits / seen, color=colour, lw=2, drawstyle="steps-post", label="so far")
    axis.axhline(test.expected, color=_GREY, lw=1.2, ls="--", label=f"expected: {test.expected:.2f}")
    axis.set_ylim(-0.02, 1.02)
    axis.set_ylabel(f"share of {test.n} {_WHO[test.name]}", fontsize=8.5)


def _alarms(outcomes: Outcomes, path: Path) -> str:
    """Draw the CUSUM of each share with its threshold."""
    charts = outcomes.charts

    def one(axis: Axes, test: Sequential, cases: pd.DataFrame) -> None:
        days, ends = _days(cases)
        chart = charts[test.name]
        level = 100 * chart.path(cases["right"])[ends] / chart.threshold
        axis.plot(days, level, color=_COLOUR[test.name], lw=1.6, drawstyle="steps-post", label="evidence of a fall")
        axis.axhline(100, color=_GREY, lw=1.2, ls="--", label="from here on: alarm")
        axis.set_ylim(-3, max(130.0, 1.25 * float(level.max())))
        axis.set_ylabel("evidence, % of what raises an alarm", fontsize=8.5)
        axis.set_title(f"Has the {test.name} fallen\nfrom {test.expected:.2f} to {test.fallen:.2f}?", fontsize=9.5)

    _panels(outcomes, one, path)
    told = [
        f"{test.name} at {test.statistic / test.threshold:.0%} of the alarm"
        + (f", which it raised on {test.alarm_at}" if test.alarm else "")
        for test in _known(outcomes)
    ]
    return f"Evidence that decisions have become worse: {'; '.join(told)}"


def _known(outcomes: Outcomes) -> list[Sequential]:
    """Return the shares of which there is an outcome."""
    return [test for test in outcomes.record.tests if test.n]


def _days(cases: pd.DataFrame) -> tuple[NDArray[np.datetime64], NDArray[np.intp]]:
    """Return the days with outcomes, and the place of each day's last case."""
    days = cases["date"].to_numpy("datetime64[D]")
    ends = np.append(np.flatnonzero(days[1:] != days[:-1]), len(days) - 1)
    return days[ends], ends


def _calibration(outcomes: Outcomes, path: Path) -> str:
    """Draw how often patients of a probability turned out to have cancer."""
    table = outcomes.table
    bins = metrics.reliability(table["malignant"], table["probability"], np.arange(len(table)))
    predicted = [100 * one.predicted for one in bins]
    value, low, high = 100 * np.array([(one.value, one.low, one.high) for one in (b.observed for b in bins)], float).T
    figure, axis = plt.subplots(figsize=(4.4, 4.1))
    axis.plot((0, 100), (0, 100), color=_GREY, lw=0.9, ls=":", label="as it should be")
    label = "since the release, with 95 % intervals"
    axis.errorbar(
        predicted, value, (value - low, high - value), fmt="o-", color="#1f5f8b", lw=1.2, capsize=2, label=label
    )
    malignant = outcomes.record.malignant
    axis.set_title(f"{len(table) - malignant} benign and {malignant} malignant outcomes", fontsize=9.5)
    axis.set(xlabel="probability of malignant that the model gave (%)", xlim=(-1, 101))
    axis.set(ylabel="of 100 such patients, had cancer", ylim=(-2, 102))
    axis.legend(fontsize=7.5, loc="upper left")
    save(figure, path)
    ratio = outcomes.record.observed_to_expected
    return (
        f"Calibration of {len(table)} patients since the release: observed to expected {metrics.format_interval(ratio)}"
    )
