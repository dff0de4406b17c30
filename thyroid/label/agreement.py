"""How well readers agree, how fast they are, and what is left to read.

Only readings that were made without knowing the other's are compared: those of readers and of imports, not
adjudications and edits by hand. Every figure has an interval that resamples patients.
"""

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import linear_sum_assignment

from thyroid import metrics
from thyroid.data.classes import BINARY, Classes
from thyroid.interval import Interval
from thyroid.label import consensus
from thyroid.label.consensus import Consensus, Rules, State
from thyroid.label.frames import Catalogue
from thyroid.label.journal import Journal
from thyroid.label.readings import FEATURES, Entry, MarkedRegion, Origin, Reading, Role, Verdict, level
from thyroid.metrics import detection
from thyroid.metrics.intervals import at_least

LEVELS = ("TR1", "TR2", "TR3", "TR4", "TR5")
FEWEST = 2
"""Patients below which no figure is given, since it could have no interval."""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Figure:
    """A figure of readers.

    Attributes:
        value: The figure with its interval; None if there are fewer than `FEWEST` patients, or, for kappa, if both
            readers always gave the same single answer.
        count: Number of frames, or of nodules, that it is measured on.
        patients: Number of their patients.
    """

    value: Interval | None
    count: int
    patients: int

    @property
    def too_few(self) -> bool:
        """Whether there are too few patients for a figure."""
        return self.patients < FEWEST


@dataclass(frozen=True)
class Pair:
    """The agreement of two readers on the frames that both have read.

    Attributes:
        readers: Their names, sorted.
        frames: Number of frames that both have read.
        contradictions: Number of these on which they contradict each other, as `consensus.agree` says.
        agreed: Share of frames on which they do not.
        kappa: Cohen's kappa of "verdict", of "side", and on matched nodules of each feature and of "level", the level
            of ACR TI-RADS. Grades and levels have quadratic weights.
        matched: Share of the boxes of both that were matched one to one.
        iou: Mean intersection over union of matched boxes.
    """

    readers: tuple[str, str]
    frames: int
    contradictions: int
    agreed: Figure
    kappa: dict[str, Figure]
    matched: Figure
    iou: Figure


@dataclass(frozen=True)
class Work:
    """What boxes of one origin cost a reader, on frames whose boxes all have it.

    Attributes:
        boxes: Number of boxes.
        pointer: Pointer events per box.
        keys: Key events per box.
    """

    boxes: int
    pointer: Figure
    keys: Figure


@dataclass(frozen=True)
class Pace:
    """How fast a reader is.

    Attributes:
        reader: Name of the reader.
        frames: Number of frames read.
        per_hour: Frames per hour of reading.
        seconds: Median seconds per frame.
        work: What boxes cost, by origin.
    """

    reader: str
    frames: int
    per_hour: Figure
    seconds: Figure
    work: dict[Origin, Work]


@dataclass(frozen=True)
class Agreement:
    """Everything that the page of the agreement shows.

    Attributes:
        pairs: Every pair of readers with a frame that both have read, by their names.
        paces: Every reader with a timed reading, by name.
        states: Number of frames in each state; `State.OPEN` and `State.SECOND` are left to read, and
            `State.CONTESTED` to adjudicate.
    """

    pairs: tuple[Pair, ...] = ()
    paces: tuple[Pace, ...] = ()
    states: dict[State, int] = field(default_factory=dict)


def agreement(catalogue: Catalogue, journal: Journal, rules: Rules, classes: Classes = BINARY) -> Agreement:
    """Measure the agreement and the pace of the readers, as far as the journal is known.

    Args:
        catalogue: The frames.
        journal: The journal.
        rules: When a frame is done, and from which overlap two boxes mark the same nodule.
        classes: The classes, from which it is known whether sides are grades.
    """
    states, both = Counter[State](), dict[tuple[str, str], list[_Both]]()
    for frame in catalogue.frames:
        readings = journal.readings(frame.path)
        states[Consensus.of(frame, readings, rules).state] += 1
        blind = {
            name: entry.reading
            for name, entry in sorted(readings.items())
            if entry.role in (Role.READER, Role.IMPORT) and entry.reading is not None
        }
        for (name, one), (other_name, other) in itertools.combinations(blind.items(), 2):
            both.setdefault((name, other_name), []).append(_Both(frame.group, one, other, rules.iou))
    pairs = tuple(_pair(names, frames, classes) for names, frames in sorted(both.items()))
    return Agreement(pairs, _paces(catalogue, journal.entries), {state: states[state] for state in State})


@dataclass(frozen=True)
class _Both:
    """A frame that two readers have read."""

    group: str
    one: Reading
    other: Reading
    iou: float

    @property
    def agree(self) -> bool:
        return consensus.agree(self.one, self.other, self.iou)

    def matches(self) -> list[tuple[MarkedRegion, MarkedRegion, float]]:
        """Return the nodules that both have marked, with the overlap of their boxes."""
        if not self.one.regions or not self.other.regions:
            return []
        overlap = detection.iou(
            [region.box for region in self.one.regions], [region.box for region in self.other.regions]
        )
        # many matches come first, then close ones: the sum of all overlaps is less than one match more
        gain = np.where(overlap >= self.iou, 1 + overlap / (1 + min(overlap.shape)), 0)
        rows, columns = linear_sum_assignment(gain, maximize=True)
        return [
            (self.one.regions[row], self.other.regions[column], float(overlap[row, column]))
            for row, column in zip(rows, columns, strict=True)
            if overlap[row, column] >= self.iou
        ]


def _pair(readers: tuple[str, str], frames: Sequence[_Both], classes: Classes) -> Pair:
    groups = [frame.group for frame in frames]
    agreed = [frame.agree for frame in frames]
    matches = [(frame.group, match) for frame in frames for match in frame.matches()]
    marked = [(f.group, len(f.one.regions) + len(f.other.regions), 2 * len(f.matches())) for f in frames]
    marked = [row for row in marked if row[1]]
    kappa = {
        "verdict": _kappa([(f.group, f.one.verdict, f.other.verdict) for f in frames], list(Verdict), False),
        "side": _kappa([(f.group, f.one.side, f.other.side) for f in frames], classes.names, classes.ordered),
    }
    for name in FEATURES:
        rows = [(group, one.features.get(name, ""), other.features.get(name, "")) for group, (one, other, _) in matches]
        # Several kinds of foci are an answer of their own. For the others, answers that nobody gave change nothing.
        kappa[name] = _kappa(rows, sorted({text for _, *both in rows for text in both if text}), False)
    kappa["level"] = _kappa([(group, level([one]), level([other])) for group, (one, other, _) in matches], LEVELS, True)
    return Pair(
        readers=readers,
        frames=len(frames),
        contradictions=len(frames) - sum(agreed),
        agreed=_share(agreed, np.ones(len(frames)), groups, len(frames)),
        kappa=kappa,
        matched=_share(
            [row[2] for row in marked],
            [row[1] for row in marked],
            [row[0] for row in marked],
            sum(r[1] for r in marked),
        ),
        iou=_ratio([match[2] for _, match in matches], np.ones(len(matches)), [group for group, _ in matches]),
    )


def _kappa(answers: Sequence[tuple[str, str, str]], names: Sequence[str], ordered: bool) -> Figure:
    """Return Cohen's kappa of what two readers answered.

    A bootstrap of few patients, or of answers that are all equal, is too narrow. The interval then reaches at least to
    the exact bounds of the agreement (Clopper and Pearson, with as many trials as patients), put through the agreement
    that chance gives.

    Args:
        answers: Group, and the answers of both, for each frame or nodule; those without an answer of both do not count.
        names: What can be answered.
        ordered: Whether the order of these is one of grades.
    """
    place = {name: number for number, name in enumerate(names)}
    rows = [(group, place[one], place[other]) for group, one, other in answers if one in place and other in place]
    groups = [group for group, _, _ in rows]
    patients = len(set(groups))
    if patients < FEWEST:
        return Figure(None, len(rows), patients)
    one, other = (np.array([row[number] for row in rows]) for number in (1, 2))
    drawn = metrics.kappa_draws(metrics.Draws(groups), one, other, groups, classes=len(names), ordered=ordered)
    if not np.isfinite(drawn[0]):
        return Figure(None, len(rows), patients)
    places = np.arange(len(names))
    distance = np.abs(places[:, None] - places)
    weight = distance**2 if ordered else (distance > 0).astype(float)
    shares = [np.bincount(codes, minlength=len(names)) / len(codes) for codes in (one, other)]
    by_chance, largest = (
        shares[0] @ weight @ shares[1],
        weight[np.ix_(np.union1d(one, other), np.union1d(one, other))].max(),
    )
    hits = round((1 - weight[one, other].mean() / largest) * patients)
    bounds = [max(-1.0, 1 - (1 - bound) * largest / by_chance) for bound in metrics.clopper_pearson(hits, patients)]
    found = metrics.interval(drawn, (bounds[0], bounds[1]))
    return Figure(found if patients >= metrics.FEW else at_least(found, (bounds[0], bounds[1])), len(rows), patients)


def _share(hits: ArrayLike, trials: ArrayLike, groups: Sequence[str], count: int) -> Figure:
    """Return a share with its interval, which is never narrower than few patients allow."""
    found = _ratio(hits, trials, groups)
    if found.value is None:
        return Figure(None, count, found.patients)
    exact = metrics.clopper_pearson(round(found.value.value * found.patients), found.patients)
    is_narrow = found.patients < metrics.FEW or found.value.low == found.value.high
    return Figure(at_least(found.value, exact) if is_narrow else found.value, count, found.patients)


def _ratio(above: ArrayLike, below: ArrayLike, groups: Sequence[str]) -> Figure:
    """Return the ratio of two sums over frames with its interval."""
    total, patients = np.asarray(below, float), len(set(groups))
    if patients < FEWEST or not total.sum():
        return Figure(None, len(groups), patients)
    sums, counts = metrics.Draws(groups).totals(np.stack([np.asarray(above, float), total], axis=1), groups).T
    with np.errstate(invalid="ignore", divide="ignore"):
        return Figure(metrics.interval(sums / counts), len(groups), patients)


def _median(values: Sequence[float], groups: Sequence[str]) -> Figure:
    """Return the lower median with its interval."""
    patients = len(set(groups))
    if patients < FEWEST:
        return Figure(None, len(groups), patients)
    order, draws = np.argsort(values), metrics.Draws(groups)
    weight: Array = np.cumsum(draws.counts[:, draws.places(groups)[order]], axis=1)
    middle = (weight >= weight[:, -1:] / 2).argmax(axis=1)
    return Figure(metrics.interval(np.asarray(values, float)[order][middle]), len(groups), patients)


def _paces(catalogue: Catalogue, entries: Sequence[Entry]) -> tuple[Pace, ...]:
    """Return the pace of every reader whose readings were timed."""
    timed: dict[str, list[Entry]] = {}
    for entry in entries:
        if entry.role is Role.READER and entry.undoes is None and entry.reading is not None and entry.effort.seconds:
            timed.setdefault(entry.reader, []).append(entry)
    groups = {frame.path: frame.group for frame in catalogue.frames}
    return tuple(_pace(name, timed[name], groups) for name in sorted(timed))


def _pace(reader: str, entries: Sequence[Entry], group_of: Mapping[str, str]) -> Pace:
    seconds: dict[str, float] = {}
    for entry in entries:  # a frame that was read twice took the time of both
        seconds[entry.frame] = seconds.get(entry.frame, 0) + entry.effort.seconds
    groups = [group_of.get(path, path) for path in seconds]
    hours = np.array(list(seconds.values())) / 3600
    work = {}
    for origin in Origin:
        rows = [e for e in entries if e.reading and {region.origin for region in e.reading.regions} == {origin}]
        boxes = [len(entry.reading.regions) for entry in rows if entry.reading]
        if rows:
            of = [group_of.get(entry.frame, entry.frame) for entry in rows]
            pointer = _ratio([entry.effort.pointer for entry in rows], boxes, of)
            work[origin] = Work(sum(boxes), pointer, _ratio([entry.effort.keys for entry in rows], boxes, of))
    return Pace(
        reader=reader,
        frames=len(seconds),
        per_hour=_ratio(np.ones(len(hours)), hours, groups),
        seconds=_median(list(seconds.values()), groups),
        work=work,
    )


def draw(measured: Agreement, path: Path) -> None:
    """Draw kappa, agreement and overlap of every pair of readers with their intervals, as PNG.

    Args:
        measured: The agreement.
        path: File to write.
    """
    import matplotlib.pyplot as plt  # here, since the bench starts without it

    from thyroid import plot_style

    count = max(1, len(measured.pairs))
    figure, axes = plt.subplots(1, count, figsize=(1 + 4.2 * count, 4), squeeze=False, sharey=True)
    for axis, pair in zip(axes[0], measured.pairs, strict=False):
        figures = {f"kappa of {name}": found for name, found in pair.kappa.items()}
        figures |= {"same reading": pair.agreed, "boxes matched": pair.matched, "mean IoU": pair.iou}
        for row, found in enumerate(figures.values()):
            if found.value is None or found.value.low is None or found.value.high is None:
                axis.text(0.5, row, "too few" if found.too_few else "one answer only", fontsize=7, va="center")
                continue
            axis.plot([found.value.low, found.value.high], [row, row], color=plot_style.COLOURS["B"])
            axis.plot([found.value.value], [row], "o", color=plot_style.COLOURS["B"], markersize=4)
        axis.set_yticks(range(len(figures)), list(figures))
        axis.axvline(0, color="#bbbbbb", linewidth=0.8)
        axis.set(xlim=(-1.02, 1.02), title=f"{' and '.join(pair.readers)}, {pair.frames} frames")
    if measured.pairs:
        axes[0][0].invert_yaxis()
    else:
        axes[0][0].text(0.5, 0.5, "no frame was read by two readers yet", ha="center")
        axes[0][0].set_axis_off()
    plot_style.save(figure, path)
