"""Which counts a site may share, so that no patient can be told from them.

A *cell* is a number of patients of one side, benign or malignant, in a bin of probability or on one side of the
threshold, in all or in a subgroup. No published cell holds 1 to 9 patients, and none of 1 to 9 patients can be
computed from published ones. Empty cells are published. The rules are those of the US Centers for Medicare & Medicaid
Services ("CMS Cell Size Suppression Policy": no cell of 1 to 10, nor one that lets it be derived; ten is allowed here,
as with NHS Digital's and the OSR's limits for small numbers), with complementary suppression as in chapter 4 of
Hundepool et al., "Statistical Disclosure Control" (Wiley 2012, 10.1002/9781118348239):

1. A side with fewer than ten patients is left out with all that rests on it.
2. Bins of probability are merged until each holds at least ten patients of the side. The edges of the calibration's
   bins are edges of both sides' bins, so that a difference of the two is a sum of whole bins.
3. If 1 to 9 patients of a side are on one side of the threshold, their number is withheld: a range is published, the
   threshold is no edge of a bin, and the exact sensitivity or specificity is not in the file.
4. The groups of a column hold every patient once. Groups with fewer than ten patients of a side are merged into
   "other"; if that is still too small, the smallest other group goes with it. Withheld numbers of groups must keep at
   least five possible values given all others of the column, and their sum must not be a cell of 1 to 9.
5. Two columns, or a column and the bins, must not hold sets of which one lies within the other and is smaller by 1 to 9
   patients. A column that does is published without its decisions, or not at all.
6. A second file must not differ from an earlier one, whatever its model, by 1 to 9 patients of a side; then nothing is
   shared, nor of another model that orders the patients as an earlier one did. About the same model, no cell may differ
   by 1 to 9 patients; bins are merged until this holds.
7. A withheld number keeps at least five possible values beside the AUROC, the sums of probabilities and the calibration
   in the large (`withheld`). If it does not, as few of them as may be are left out.

What these rules do not cover: relations between three or more columns that are not relations between two of them;
what the variance of the AUROC, its interval and the calibration slope say together about a withheld number; a second
private key, which has no history; and somebody who already knows all patients of a cell but one.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from thyroid.records.share import SMALLEST

PROTECTED = 5
"""Fewest values that a withheld number may have, given everything else in the file."""
GROUPS = 7
"""Most groups of a column, "other" included, so that all their unions can be checked."""
STEPS = 50
"""Number of equally wide bins of probability before they are merged."""

Integers = NDArray[np.int64]


def grid(threshold: float) -> NDArray[np.float64]:
    """Return the edges of the bins before merging, from 0 to 1; the threshold is always one of them."""
    return np.unique([*(np.arange(STEPS + 1) / STEPS), threshold])


def safe(counts: ArrayLike) -> bool:
    """Return whether every count is 0 or at least `SMALLEST`."""
    values = np.asarray(counts)
    return bool(((values == 0) | (values >= SMALLEST)).all())


@dataclass(frozen=True, eq=False)
class Cells:
    """The patients of one side by bin of the grid.

    Attributes:
        patients: Number of patients in each bin [bins].
        changes: Numbers of patients that came into each bin since each earlier file, and that left it [bins, changes].
        threshold: Number of the first bin at or above the threshold.
    """

    patients: Integers
    changes: Integers
    threshold: int

    @property
    def total(self) -> int:
        """Number of patients."""
        return int(self.patients.sum())

    @property
    def exact(self) -> bool:
        """Whether the number on each side of the threshold may be published."""
        return all(
            safe(part.sum(axis=0))
            for values in (self.patients, self.changes)
            for part in (values[: self.threshold], values[self.threshold :])
        )

    @property
    def called(self) -> tuple[int, int]:
        """Fewest and most patients at or above the threshold, as they may be published."""
        above = int(self.patients[self.threshold :].sum())
        if not self.exact and safe([above, self.total - above]):
            return 0, self.total  # an earlier file would tell
        return published(above, self.total)

    def edges(self, allowed: Sequence[int] | None = None) -> list[int]:
        """Return the edges of merged bins, as numbers of edges of the grid, the first and the last included.

        Args:
            allowed: Edges to choose from; None for all. Where the numbers on each side of the threshold are published,
                the threshold is an edge in any case.
        """
        last = len(self.patients)
        ends = [0, self.threshold, last] if self.exact and 0 < self.threshold < last else [0, last]
        found = [0]
        for start, stop in itertools.pairwise(ends):
            found += self._merged(start, stop, range(last) if allowed is None else allowed)[1:]
        return found

    def refined(self, edges: Sequence[int]) -> list[int]:
        """Return `edges` with as many more between them as may be."""
        found = [0]
        for start, stop in itertools.pairwise(edges):
            found += self._merged(start, stop, range(start, stop))[1:]
        return found

    def _merged(self, start: int, stop: int, allowed: Sequence[int]) -> list[int]:
        """Merge the bins of a stretch from the left; what is left over at its end joins the last one."""
        found = [start]
        for edge in (*(edge for edge in allowed if start < edge < stop), stop):
            if self._fine(found[-1], edge):
                found.append(edge)
        if found[-1] == stop:
            return found
        while len(found) > 1:
            found.pop()
            if self._fine(found[-1], stop):
                break
        return [*found, stop]

    def _fine(self, start: int, stop: int) -> bool:
        return bool(self.patients[start:stop].sum() >= SMALLEST) and safe(self.changes[start:stop].sum(axis=0))


def published(called: int, patients: int) -> tuple[int, int]:
    """Return what may be published of the number of patients that are called malignant: its fewest and its most.

    Of 10 to 19 patients not even the side of the threshold with fewer than ten is told, since 9 of 18 would be exact.

    Args:
        called: Number of patients at or above the threshold.
        patients: Number of patients, at least `SMALLEST`.
    """
    if safe([called, patients - called]):
        return called, called
    if patients < 2 * SMALLEST:
        return 1, patients - 1
    return (1, SMALLEST - 1) if called < SMALLEST else (patients - SMALLEST + 1, patients - 1)


def may_be_published(called: Sequence[int], patients: int) -> bool:
    """Return whether a range of patients that are called malignant is one that `published` or a withheld number has."""
    low, high = called
    if low == high:
        return safe([low, patients - low])
    middle = min(SMALLEST - 1, patients - 1)
    return (low, high) in {(0, patients), published(1, patients), published(patients - middle, patients)}


def protected(
    total: tuple[int, int], patients: int, groups: Sequence[tuple[int, tuple[int, int]]], least: int = PROTECTED
) -> bool:
    """Return whether withheld numbers stay withheld, given all others of a column.

    Args:
        total: Fewest and most patients of a side that are called malignant, in all.
        patients: Number of the side's patients.
        groups: For each group, the number of the side's patients, and the fewest and most that are called malignant.
            The groups hold every patient once.
        least: Fewest values that a withheld number must still be able to have.
    """
    hidden = [(count, called) for count, called in groups if called[0] < called[1]]
    low, high = (sum(called[bound] for _, called in groups) for bound in (0, 1))
    if total[0] < total[1]:
        if min(total[1], high) - max(total[0], low) + 1 < least:
            return False
    elif hidden:
        rest = total[0] - sum(called[0] for _, called in groups if called[0] == called[1])
        if not safe([rest, sum(count for count, _ in hidden) - rest]):
            return False
    for _, (fewest, most) in hidden:
        down = max(fewest, total[0] - (high - most))
        up = min(most, total[1] - (low - fewest))
        if up - down + 1 < least:
            return False
    return True


def separate(first: ArrayLike, second: ArrayLike) -> bool:
    """Return whether no union of the one's sets lies within a union of the other's and is smaller by 1 to 9 patients.

    Args:
        first: Number of the set that each patient is in [n].
        second: The same for another division of the same patients [n].
    """
    labels = [np.unique(np.asarray(division), return_inverse=True)[1] for division in (first, second)]
    labels.sort(key=lambda division: int(division.max(initial=0)))
    rows, columns = (int(division.max(initial=0)) + 1 for division in labels)
    if rows > 2 * GROUPS:
        raise ValueError(f"two divisions of more than {2 * GROUPS} sets")
    crossed = np.zeros((rows, columns), int)
    np.add.at(crossed, (labels[0], labels[1]), 1)
    chosen = (np.arange(2**rows)[:, None] >> np.arange(rows)) & 1
    around = (chosen @ (crossed > 0) > 0) @ crossed.sum(axis=0)
    return safe(around - chosen @ crossed.sum(axis=1))
