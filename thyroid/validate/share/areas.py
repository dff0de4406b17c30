"""Bounds of the AUROC of patients of whom only a histogram is known."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from thyroid.records.share import Steps


def bounds(malignant: Sequence[Steps], benign: Sequence[Steps]) -> tuple[float, float]:
    """Return the least and the greatest AUROC of patients of several sites together.

    A pair of a malignant and a benign patient counts for certain if their bins do not overlap, and not at all for the
    least, or fully for the greatest value if they do. Bins of different sites may have different edges.

    Args:
        malignant: Histograms of the malignant patients of the sites; at least one.
        benign: Histograms of the benign patients of the sites; at least one.
    """
    (lows, highs, patients), (starts, ends, others) = _bins(malignant), _bins(benign)
    below, reached = _cumulated(ends, others), _cumulated(starts, others)
    pairs = float(patients.sum() * others.sum())
    certain = patients @ below[1][np.searchsorted(below[0], lows, side="right")]
    possible = patients @ reached[1][np.searchsorted(reached[0], highs, side="left")]
    return float(certain) / pairs, float(possible) / pairs


def _bins(steps: Sequence[Steps]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Return lower edges, upper edges and patients of the bins of all histograms."""
    lows = np.concatenate([one.edges[:-1] for one in steps])
    highs = np.concatenate([one.edges[1:] for one in steps])
    return lows, highs, np.concatenate([one.patients for one in steps])


def _cumulated(
    edges: NDArray[np.float64], patients: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return sorted edges, and the number of patients of the bins before each of them [bins + 1]."""
    order = np.argsort(edges, kind="stable")
    return edges[order], np.append(0, np.cumsum(patients[order]))
