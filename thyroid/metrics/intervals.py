"""Bootstrap draws of whole patients, and the intervals that they give.

Patients, not images, are the independent units.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.stats import binomtest, norm

from thyroid.interval import LEVEL, Interval

DRAWS = 2000
FEW = 10
"""Patients of a class below which the bootstrap is too narrow: it can redraw patients but not imagine others."""

Array = NDArray[np.float64]


class Draws:
    """Bootstrap draws of whole patients with replacement (Field & Welsh 2007, "Bootstrapping clustered data").

    Several images of one patient are not independent evidence, so they are drawn or left out together. A draw is stored
    as the number of times that each patient is in it. The first row is the sample itself.

    Args:
        patient: Patient number of every image [n], in any order; a number repeats for each of the patient's images.
        draws: Number of draws.
        seed: Seed of the draws.

    Attributes:
        patients: Distinct patient numbers, sorted [patients].
        counts: Number of times that each patient is in each draw, float [1 + draws, patients].
    """

    def __init__(self, patient: ArrayLike, draws: int = DRAWS, seed: int = 0) -> None:
        """Draw the patients; the class documents the arguments."""
        self.patients = np.unique(np.asarray(patient))
        count = len(self.patients)
        drawn = (
            np.random.default_rng(seed).integers(0, count, (draws, count)) + count * np.arange(1, draws + 1)[:, None]
        )
        counts = np.bincount(np.append(np.arange(count), drawn), minlength=(draws + 1) * count)
        self.counts: Array = counts.reshape(draws + 1, count).astype(float)

    def places(self, patient: ArrayLike) -> NDArray[np.intp]:
        """Return the column in `counts` of each image's patient [n]."""
        return np.searchsorted(self.patients, np.asarray(patient))

    def totals(self, values: ArrayLike, patient: ArrayLike) -> Array:
        """Return the sum of `values` over the images of every draw.

        Args:
            values: Values of the images [n] or [n, k].
            patient: Patient number [n].

        Returns:
            Sums [1 + draws] or [1 + draws, k].
        """
        column = np.asarray(values, float)
        sums = np.zeros((len(self.patients), *column.shape[1:]))
        np.add.at(sums, self.places(patient), column)
        return self.counts @ sums


def interval(drawn: Array, exact: tuple[float, float] | None = None) -> Interval:
    """Return the percentile interval of a metric from its value on the sample and on every draw.

    Draws without a value (NaN) do not count.

    Args:
        drawn: Values [1 + draws]; the first is that of the sample.
        exact: Bounds to use if all draws are equal, since a bootstrap cannot see beyond a perfect sample.
    """
    value, rest = float(drawn[0]), drawn[1:][np.isfinite(drawn[1:])]
    if not len(rest):
        return Interval(value, None, None)
    low, high = (float(bound) for bound in np.quantile(rest, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]))
    if low == high and exact is not None:
        low, high = exact
    return Interval(value, low, high)


def patient_mean(
    values: ArrayLike, patient: ArrayLike, bounds: tuple[float, float] = (0.0, 1.0), seed: int = 0
) -> Interval:
    """Return the mean over images with an interval from `DRAWS` draws of whole patients.

    Patients with equally many images and the same sum are interchangeable, so a draw is multinomial over such kinds.
    The draws are those of `Draws`, but their memory does not grow with the number of patients. Where no draw differs,
    the interval is as wide as that of Clopper and Pearson for no hit among the patients.

    Args:
        values: Values of the images [n], few of which are different: hits, or differences of hits.
        patient: Patient of every image [n].
        bounds: Smallest and largest possible value.
        seed: Seed of the draws.
    """
    _, place = np.unique(np.asarray(patient), return_inverse=True)
    images, sums = np.bincount(place), np.bincount(place, np.asarray(values, float))
    kinds, number = np.unique(np.stack([images, sums], axis=1), axis=0, return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(len(images), number / len(images), DRAWS)
    totals = np.vstack([number, drawn]) @ kinds
    mean = totals[:, 1] / totals[:, 0]
    half = clopper_pearson(0, len(images))[1]
    return interval(mean, (max(bounds[0], float(mean[0]) - half), min(bounds[1], float(mean[0]) + half)))


def at_least(found: Interval, bounds: tuple[float, float]) -> Interval:
    """Return `found`, widened to reach at least as far as `bounds`."""
    lows = [low for low in (found.low, bounds[0]) if low is not None]
    highs = [high for high in (found.high, bounds[1]) if high is not None]
    return Interval(found.value, min(lows), max(highs))


def clopper_pearson(hits: int, trials: int) -> tuple[float, float]:
    """Return the exact binomial interval (Clopper & Pearson 1934).

    72 of 72 is the smallest sample without a miss whose lower bound is above .95.
    """
    bounds = binomtest(hits, trials).proportion_ci(LEVEL, method="exact")
    return float(bounds.low), float(bounds.high)


def newcombe(area: float, positives: int, negatives: int) -> tuple[float, float]:
    """Return the interval of an AUROC from its value and the numbers of independent units.

    This is method 5 of Newcombe 2006 (10.1002/sim.2324). Unlike the bootstrap, it has a width even where the classes
    are perfectly separated.

    Args:
        area: AUROC, 0 to 1.
        positives: Number of independent malignant units.
        negatives: Number of independent benign units.
    """
    half = (positives + negatives) / 2 - 1
    z = float(norm.ppf((1 + LEVEL) / 2))

    def distance(theta: float) -> float:
        factor = 1 + half * (1 - theta) / (2 - theta) + half * theta / (1 + theta)
        return (area - theta) ** 2 - z * z * theta * (1 - theta) * factor / (positives * negatives)

    edge = 1e-12
    low = brentq(distance, edge, area - edge) if area > 2 * edge else 0.0
    high = brentq(distance, area + edge, 1 - edge) if area < 1 - 2 * edge else 1.0
    return float(low), float(high)


def count_patients(chosen: NDArray[np.bool_], patient: ArrayLike) -> int:
    """Return the number of patients among the chosen images."""
    return len(np.unique(np.asarray(patient)[chosen]))
