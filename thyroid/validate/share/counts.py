"""The counts that a site shares, from the predictions of its patients, by the rules of `disclosure`."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import t as student

from thyroid import metrics
from thyroid.data.filenames import CLASSES, POSITIVE, SCORE
from thyroid.evaluate.performance import is_malignant
from thyroid.interval import LEVEL, Interval
from thyroid.records.share import (
    SMALLEST,
    CalibrationCounts,
    Coefficient,
    SharedArea,
    SharedColumn,
    SharedGroup,
    SideCounts,
    Steps,
)
from thyroid.validate.share import disclosure
from thyroid.validate.share.disclosure import Cells

OTHER = "other"
"""Name of the group of all patients that are in no other group of a column."""
SIDES = {CLASSES[POSITIVE]: "malignant", CLASSES[1 - POSITIVE]: "benign"}
"""Names of the sides in words, the malignant one first."""


@dataclass(frozen=True, eq=False)
class Patients:
    """The patients of a site, and the bins that they may be counted in.

    Attributes:
        table: Rows with patient, label and probability of malignant, one per patient.
        edges: Edges of the bins before merging; the threshold is one of them.
        threshold: Locked threshold.
        cells: Cells of each side that has at least ten patients, by its label.
    """

    table: pd.DataFrame
    edges: NDArray[np.float64]
    threshold: float
    cells: dict[str, Cells]

    @classmethod
    def count(cls, table: pd.DataFrame, threshold: float, changes: Sequence[pd.DataFrame] = ()) -> "Patients":
        """Count the patients.

        Args:
            table: Rows with patient, label and probability of malignant, one per patient.
            threshold: Locked threshold.
            changes: For each division of patients whose numbers must not be told either, rows with label and bin.
        """
        edges = disclosure.grid(threshold)
        bins = len(edges) - 1
        table = table.assign(bin=place(table[SCORE], edges))
        cells = {}
        for label in SIDES:
            own = np.bincount(table.loc[table["label"] == label, "bin"], minlength=bins)
            if own.sum() >= SMALLEST:
                others = [
                    np.bincount(change.loc[change["label"] == label, "bin"], minlength=bins) for change in changes
                ]
                changed = np.array(others, int).reshape(len(changes), bins).T
                cells[label] = Cells(own, changed, int(np.searchsorted(edges, threshold)))
        return cls(table, edges, threshold, cells)

    @property
    def both(self) -> bool:
        """Whether there are enough patients of both sides."""
        return len(self.cells) == len(SIDES)

    def merged(self) -> dict[str, list[int]]:
        """Return the edges of each side's bins, as numbers of edges of the grid, with as many in common as possible."""
        found: dict[str, list[int]] = {}
        for label, cells in self.cells.items():  # the malignant side first: it is usually the smaller one
            first = next(iter(found.values()), None)
            found[label] = cells.edges() if first is None else cells.refined(cells.edges(first))
        return found

    def side(self, label: str) -> SideCounts | None:
        """Return the counts of a side, or None if it has fewer than ten patients."""
        cells = self.cells.get(label)
        return None if cells is None else SideCounts(patients=cells.total, called=list(cells.called))

    def steps(self, label: str) -> Steps | None:
        """Return the histogram of a side, or None if it has fewer than ten patients."""
        if label not in self.cells:
            return None
        ends = self.merged()[label]
        counts = np.add.reduceat(self.cells[label].patients, ends[:-1])
        return Steps(edges=self.edges[ends].tolist(), patients=counts.tolist())

    def calibration(self) -> list[CalibrationCounts]:
        """Return the bins of the reliability plot: the edges that both sides' bins have."""
        if not self.both:
            return []
        ends = sorted(set.intersection(*map(set, self.merged().values())))
        sums = np.bincount(self.table["bin"], self.table[SCORE], len(self.edges) - 1)
        found = []
        for start, stop in itertools.pairwise(ends):
            counts = {label: int(cells.patients[start:stop].sum()) for label, cells in self.cells.items()}
            found.append(
                CalibrationCounts(
                    low=float(self.edges[start]),
                    high=float(self.edges[stop]),
                    patients=sum(counts.values()),
                    malignant=counts[CLASSES[POSITIVE]],
                    probability=round(float(sums[start:stop].sum()), 2),
                )
            )
        return found

    def auroc(self, seed: int) -> SharedArea | None:
        """Return the AUROC by patient, or None without enough patients of both sides."""
        if not self.both:
            return None
        positive, score, patient = is_malignant(self.table), self.table[SCORE], self.table["patient"]
        found = metrics.auroc(positive, score, patient, seed=seed)
        _, covariance = metrics.auroc_covariance(positive, [score], patient)
        bounds = [value if bound is None else bound for bound, value in ((found.low, 0.0), (found.high, 1.0))]
        rounded = [round(float(number), 3) for number in (found.value, *bounds)]
        variance = float(f"{max(0.0, float(covariance[0, 0])):.3g}")
        return SharedArea(value=rounded[0], low=rounded[1], high=rounded[2], variance=variance)

    def coefficients(self) -> tuple[Coefficient | None, Coefficient | None]:
        """Return calibration in the large and calibration slope; None where they cannot be fitted."""
        if not self.both:
            return None, None
        positive = is_malignant(self.table).astype(float)
        patient = np.arange(len(self.table))
        both = (metrics.calibration_in_the_large, metrics.calibration_slope)
        found = [_coefficient(measure(positive, self.table[SCORE], patient), len(patient)) for measure in both]
        return found[0], found[1]

    def columns(self, groups: pd.DataFrame) -> tuple[list[SharedColumn], list[str]]:
        """Return the subgroups that may be shared, and what is withheld of them, in words.

        Args:
            groups: The group of each patient as text, in the order of `table`, by column; missing where it is unknown.
        """
        if not self.both:
            return [], []
        accepted: dict[str, list[NDArray[np.int64]]] = {}
        for label, ends in self.merged().items():
            own = self.table.loc[self.table["label"] == label, "bin"]
            accepted[label] = [np.searchsorted(ends, own, side="right")]
        found, withheld = [], []
        for column in groups.columns:
            if (names := self._named(groups[column])) is None:
                withheld.append(f"{column}: not two groups with {SMALLEST} patients of each side")
                continue
            shared = self._column(str(column), names, accepted)
            if shared is None:
                withheld.append(f"{column}: another column or the bins would tell fewer than {SMALLEST} patients")
                continue
            found.append(shared)
        return found, withheld

    def _named(self, groups: pd.Series) -> NDArray[np.object_] | None:
        """Return the name of each patient's group after small ones were merged; None where fewer than two are left."""
        malignant = is_malignant(self.table)
        names = np.array([OTHER if pd.isna(name) else str(name) for name in groups], object)
        kept = {
            str(name): min(int(malignant[names == name].sum()), int((~malignant)[names == name].sum()))
            for name in np.unique(names)
            if name != OTHER
        }
        order = sorted((name for name, count in kept.items() if count >= SMALLEST), key=lambda name: kept[name])
        order = order[max(0, len(order) - disclosure.GROUPS + 1) :]
        while order:
            rest = ~np.isin(names, order)
            if disclosure.safe([int((rest & side).sum()) for side in (malignant, ~malignant)]):
                break
            order.pop(0)  # complementary suppression
        named = np.where(np.isin(names, order), names, OTHER)
        return named if len(np.unique(named)) > 1 else None

    def _column(
        self, column: str, names: NDArray[np.object_], accepted: dict[str, list[NDArray[np.int64]]]
    ) -> SharedColumn | None:
        """Return the groups of a column, and add it to what was accepted; None if it must not be published."""
        order = sorted(set(names) - {OTHER}) + ([OTHER] if OTHER in names else [])
        label = self.table["label"].to_numpy()
        above = self.table[SCORE].to_numpy() >= self.threshold
        counts: dict[str, list[SideCounts]] = {}
        divisions = {}
        for side, cells in self.cells.items():
            group = np.array([order.index(name) for name in names[label == side]])
            for decisions in (True, False):
                ranges = self._ranges(cells, group, above[label == side], decisions, len(order))
                exact = np.array([low == high for _, (low, high) in ranges])
                division = 2 * group + (exact[group] & above[label == side])
                fine = disclosure.protected(cells.called, cells.total, ranges) if decisions else True
                if fine and all(disclosure.separate(division, other) for other in accepted[side]):
                    break
            else:
                return None
            counts[side] = [SideCounts(patients=patients, called=list(called)) for patients, called in ranges]
            divisions[side] = division
        for side, division in divisions.items():
            accepted[side].append(division)
        rows = zip(order, *(counts[side] for side in SIDES), strict=True)
        groups = [SharedGroup(group=name, malignant=malignant, benign=benign) for name, malignant, benign in rows]
        return SharedColumn(column=column, groups=groups)

    @staticmethod
    def _ranges(
        cells: Cells, group: NDArray[np.int64], above: NDArray[np.bool_], decisions: bool, groups: int
    ) -> list[tuple[int, tuple[int, int]]]:
        """Return the patients of each group, and the fewest and most that are called, as they may be published."""
        found = []
        for number in range(groups):
            patients = int((group == number).sum())
            called = int(above[group == number].sum())
            hidden = not decisions or cells.called == (0, cells.total)
            found.append((patients, (0, patients) if hidden else _published(called, patients)))
        return found


def _published(called: int, patients: int) -> tuple[int, int]:
    return (0, 0) if patients == 0 else disclosure.published(called, patients)


def place(score: pd.Series, edges: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the number of the bin of each probability [n]."""
    found = np.searchsorted(edges, score.to_numpy(float), side="right") - 1
    return np.clip(found, 0, len(edges) - 2)


def _coefficient(found: Interval, patients: int) -> Coefficient | None:
    """Return a coefficient with its standard error; None where the data do not determine it."""
    if found.low is None or found.high is None:
        return None
    error = (found.high - found.low) / 2 / float(student.ppf((1 + LEVEL) / 2, patients - 1))
    return Coefficient(value=round(found.value, 3), error=max(round(error, 3), 0.001))
