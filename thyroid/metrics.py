"""Metrics with confidence intervals that resample patients: patients, not images, are the independent units.

`Draws` holds the bootstrap draws of one set of patients. Every metric function takes it and returns the metric on the
sample itself and on every draw, so that metrics on the same draws can be subtracted. `interval` turns such an array
into an `Interval`.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.stats import binomtest, norm, rankdata
from sklearn.metrics import accuracy_score

DRAWS = 2000
LEVEL = 0.95
FEW = 10
"""Patients of a class below which the bootstrap is too narrow: it can redraw patients but not imagine others."""
BINS = 10
"""Number of equally wide bins of probability in the reliability diagram and the expected calibration error."""
_BLOCK_CELLS = 200_000  # draws x images processed at once, so that they stay in a core's cache

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A metric with its confidence interval at `LEVEL`.

    `low` and `high` are None where the data cannot give an interval, as with a single patient.
    """

    value: float
    low: float | None
    high: float | None

    @classmethod
    def of(cls, figure: Mapping[str, Any]) -> "Interval":
        """Return the interval of a metric as summary.json holds it: value (auroc for validation), low and high."""
        value = figure["value"] if "value" in figure else figure["auroc"]
        return cls(value, figure["low"], figure["high"])

    def __str__(self) -> str:
        """Return the value with its bounds to three decimals, such as "0.912 [0.874, 0.945]"."""
        if self.low is None or self.high is None:
            return f"{self.value:.3f} [n/a]"
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def format_interval(figure: Mapping[str, Any] | None) -> str:
    """Return a metric of summary.json with its interval as text, or "n/a" if there is none."""
    return str(Interval.of(figure)) if figure else "n/a"


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


def auroc_draws(
    draws: Draws, positive: ArrayLike, score: ArrayLike, patient: ArrayLike, fold: ArrayLike | None = None
) -> Array:
    """Return the area under the ROC curve of the sample and of every draw [1 + draws].

    The area is the share of (malignant, benign) pairs in the right order, where ties count half (Bamber 1975). It is
    NaN where a draw has only one class.

    Args:
        draws: Draws that cover at least the patients of these images.
        positive: bool or 0/1 [n], True for malignant.
        score: Probability of malignant [n].
        patient: Patient number [n].
        fold: Cross-validation fold of each image [n]. Scores of different folds' models are not on one scale, so only
            pairs within a fold count (the pooled form of LeDell et al. 2015, 10.1214/15-EJS1035).

    Raises:
        ValueError: There is only one class, or a score is not finite.
    """
    truth, scores, patients = _checked(positive, score, patient)
    folds = np.zeros(len(truth), int) if fold is None else np.asarray(fold)
    ordered, pairs = np.zeros(len(draws.counts)), np.zeros(len(draws.counts))
    for one in np.unique(folds):
        mine = folds == one
        malignant, benign = mine & truth, mine & ~truth
        hits, alarms = draws.places(patients[malignant]), draws.places(patients[benign])
        # benign images are sorted by score, too, so that gathered values are contiguous
        order, falling = np.argsort(scores[malignant]), np.argsort(scores[benign])
        hits, alarms = hits[order], alarms[falling]
        below = [np.searchsorted(scores[malignant][order], scores[benign][falling], side) for side in ("left", "right")]
        tied = (below[0] != below[1]).any()
        for rows in _blocks(len(draws.counts), int(mine.sum())):
            above = np.zeros((len(draws.counts[rows]), len(hits) + 1))
            weight = draws.counts[rows][:, hits]
            np.cumsum(weight[:, ::-1], axis=1, out=above[:, 1:])
            above = above[:, ::-1]  # weight of malignant images from the i-th score on
            other = draws.counts[rows][:, alarms]
            ordered[rows] += np.einsum("ij,ij->i", other, above[:, below[1]])
            if tied:
                ordered[rows] += np.einsum("ij,ij->i", other, above[:, below[0]] - above[:, below[1]]) / 2
            pairs[rows] += above[:, 0] * other.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return ordered / pairs


def auprc_draws(draws: Draws, positive: ArrayLike, score: ArrayLike, patient: ArrayLike) -> Array:
    """Return the average precision of the sample and of every draw [1 + draws].

    This is the area under the precision-recall curve as scikit-learn defines it. Arguments and errors are those of
    `auroc_draws`.
    """
    truth, scores, patients = _checked(positive, score, patient)
    area = np.empty(len(draws.counts))
    with np.errstate(invalid="ignore", divide="ignore"):
        for rows, tp, fp in _steps(draws, truth, scores, patients):
            precision = np.nan_to_num(tp / (tp + fp))
            area[rows] = (np.diff(tp, axis=1, prepend=0) * precision).sum(axis=1) / tp[:, -1]
    return area


def roc_band(
    draws: Draws, positive: ArrayLike, score: ArrayLike, patient: ArrayLike, grid: Array
) -> tuple[Array, Array]:
    """Return the pointwise interval of the true positive rate at the false positive rates of `grid`.

    Args:
        draws: Draws that cover at least the patients of these images.
        positive: bool or 0/1 [n], True for malignant.
        score: Probability of malignant [n].
        patient: Patient number [n].
        grid: False positive rates [k].

    Returns:
        Low and high bounds, each [k].

    Raises:
        ValueError: There is only one class, or a score is not finite.
    """
    truth, scores, patients = _checked(positive, score, patient)
    curves = []
    for _, tp, fp in _steps(draws, truth, scores, patients):
        for hits, alarms in zip(tp, fp, strict=True):
            if hits[-1] and alarms[-1]:
                x, y = np.append(0, alarms / alarms[-1]), np.append(0, hits / hits[-1])
                curves.append(np.interp(grid, x, y))
    low, high = np.quantile(np.array(curves), [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return low, high


def _checked(
    positive: ArrayLike, score: ArrayLike, patient: ArrayLike
) -> tuple[NDArray[np.bool_], Array, NDArray[Any]]:
    truth, scores = np.asarray(positive, bool), np.asarray(score, float)
    if truth.all() or not truth.any():
        raise ValueError("AUROC needs both classes")
    if not np.isfinite(scores).all():
        raise ValueError("a score is not a finite number")
    return truth, scores, np.asarray(patient)


def _blocks(draws: int, images: int) -> Iterator[slice]:
    """Return slices of the draws that are small enough to process at once."""
    size = max(1, _BLOCK_CELLS // max(images, 1))
    return (slice(start, start + size) for start in range(0, draws, size))


def _steps(
    draws: Draws, truth: NDArray[np.bool_], score: Array, patient: NDArray[Any]
) -> Iterator[tuple[slice, Array, Array]]:
    """Yield, for blocks of draws, the malignant and benign images at or above every distinct score, highest first.

    The counts are arrays [draws of the block, distinct scores].
    """
    order = np.argsort(-score, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(score[order])), len(order) - 1)
    place, malignant = draws.places(patient)[order], truth[order].astype(float)
    for rows in _blocks(len(draws.counts), len(order)):
        weight = draws.counts[rows][:, place]
        every = np.cumsum(weight, axis=1)
        weight *= malignant
        tp = np.cumsum(weight, axis=1, out=weight)
        if len(ends) < len(order):
            every, tp = every[:, ends], tp[:, ends]
        every -= tp
        yield rows, tp, every


def auroc(
    positive: ArrayLike,
    score: ArrayLike,
    patient: ArrayLike,
    draws: int = DRAWS,
    seed: int = 0,
    fold: ArrayLike | None = None,
) -> Interval:
    """Return the area under the ROC curve with its interval; arguments and errors are those of `auroc_draws`."""
    return auroc_interval(Draws(patient, draws, seed), positive, score, patient, fold)


def auroc_interval(
    draws: Draws, positive: ArrayLike, score: ArrayLike, patient: ArrayLike, fold: ArrayLike | None = None
) -> Interval:
    """Return the `auroc` from draws that are shared with other metrics.

    Where all draws are equal, the bounds are those of `newcombe`. Where a class has fewer than `FEW` patients, the
    interval is at least as wide as that.
    """
    truth = np.asarray(positive, bool)
    drawn = auroc_draws(draws, truth, score, patient, fold)
    if len(np.unique(np.asarray(patient))) < 2:
        return Interval(float(drawn[0]), None, None)
    units = _units(truth, patient), _units(~truth, patient)
    exact = newcombe(float(drawn[0]), *units)
    found = interval(drawn, exact)
    return found if min(units) >= FEW else _wider(found, exact)


def macro_auroc_draws(
    draws: Draws, truth: ArrayLike, probability: ArrayLike, patient: ArrayLike, fold: ArrayLike | None = None
) -> Array:
    """Return the mean over the classes of the AUROC of each class against all others [1 + draws].

    The values are those of the sample and of every draw. This is the plain mean of Provost & Domingos 2000, whereas
    Hand & Till 2001 weigh pairs. A class that is missing from the sample or from a draw does not count. With two
    classes, both areas are the same: the AUROC.

    Args:
        draws: Draws that cover at least the patients of these images.
        truth: Index of the true class [n].
        probability: Probabilities [n, classes].
        patient: Patient number [n].
        fold: Cross-validation fold of each image [n], as in `auroc_draws`.

    Raises:
        ValueError: There is only one class, or a probability is not finite.
    """
    return _mean_area(_class_areas(draws, truth, probability, patient, fold))


def macro_auroc(
    draws: Draws, truth: ArrayLike, probability: ArrayLike, patient: ArrayLike, fold: ArrayLike | None = None
) -> Interval:
    """Return the mean AUROC of `macro_auroc_draws` with its interval; arguments and errors are the same.

    Where the bootstrap could not be wide enough, the interval is at least as wide as the mean of the classes'
    `newcombe`.
    """
    areas = _class_areas(draws, truth, probability, patient, fold)
    drawn, true = _mean_area(areas), np.asarray(truth)
    if len(np.unique(np.asarray(patient))) < 2:
        return Interval(float(drawn[0]), None, None)
    exact, fewest = [], math.inf
    for place, area in areas.items():
        units = _units(true == place, patient), _units(true != place, patient)
        exact.append(newcombe(float(area[0]), *units))
        fewest = min(fewest, *units)
    bounds = tuple(float(bound) for bound in np.mean(exact, axis=0))
    found = interval(drawn, (bounds[0], bounds[1]))
    return found if fewest >= FEW else _wider(found, (bounds[0], bounds[1]))


def _class_areas(
    draws: Draws, truth: ArrayLike, probability: ArrayLike, patient: ArrayLike, fold: ArrayLike | None
) -> dict[int, Array]:
    """Return the AUROC of each present class against all others, by index of the class, each [1 + draws].

    With two classes, only the area of the second one is returned.
    """
    true, chance = np.asarray(truth), np.asarray(probability)
    present = np.unique(true).tolist()
    if len(present) < 2:
        raise ValueError("AUROC needs both classes")
    opposed = [1] if chance.shape[1] == 2 else present
    return {place: auroc_draws(draws, true == place, chance[:, place], patient, fold) for place in opposed}


def _mean_area(areas: dict[int, Array]) -> Array:
    every = list(areas.values())
    counted = np.isfinite(every)
    with np.errstate(invalid="ignore"):
        mean: Array = np.where(counted, every, 0).sum(axis=0) / counted.sum(axis=0)
        return mean


def kappa_draws(
    draws: Draws, truth: ArrayLike, called: ArrayLike, patient: ArrayLike, classes: int, ordered: bool
) -> Array:
    """Return Cohen's kappa of called and true class (Cohen 1960) on the sample and every draw [1 + draws].

    Grades have quadratic weights (Cohen 1968). 0 is the agreement of chance, 1 is perfect agreement. With two classes
    the weights make no difference.

    Args:
        draws: Draws that cover at least the patients of these images.
        truth: Index of the true class [n].
        called: Index of the called class [n].
        patient: Patient number [n].
        classes: Number of classes.
        ordered: Whether the classes are grades.
    """
    true, answer = np.asarray(truth), np.asarray(called)
    cells = np.eye(classes * classes)[true * classes + answer]
    table = draws.totals(cells, patient).reshape(-1, classes, classes)
    table = table / table.sum(axis=(1, 2), keepdims=True)
    places = np.arange(classes)
    distance = np.abs(places[:, None] - places)
    weight = distance**2 if ordered else (distance > 0).astype(float)
    by_chance = table.sum(axis=2)[:, :, None] * table.sum(axis=1)[:, None, :]
    with np.errstate(invalid="ignore", divide="ignore"):
        kappa: Array = 1 - (table * weight).sum(axis=(1, 2)) / (by_chance * weight).sum(axis=(1, 2))
        return kappa


def _wider(found: Interval, bounds: tuple[float, float]) -> Interval:
    """Return `found`, widened to reach at least as far as `bounds`."""
    lows = [low for low in (found.low, bounds[0]) if low is not None]
    highs = [high for high in (found.high, bounds[1]) if high is not None]
    return Interval(found.value, min(lows), max(highs))


def auroc_difference(
    positive: ArrayLike,
    score: ArrayLike,
    other: ArrayLike,
    patient: ArrayLike,
    draws: int = DRAWS,
    seed: int = 0,
    fold: ArrayLike | None = None,
) -> Interval:
    """Return the AUROC of `score` minus that of `other` on the same images and the same draws, with its interval.

    Where all draws are equal although the scores differ (if both are perfect, for example), the bounds are those of
    `newcombe` for `score` alone, minus the area of `other`.

    Args:
        positive: bool or 0/1 [n], True for malignant.
        score: Probability of malignant [n].
        other: Probability of malignant of the other model [n].
        patient: Patient number [n].
        draws: Number of bootstrap draws.
        seed: Seed of the draws.
        fold: Cross-validation fold of each image [n], as in `auroc_draws`.

    Raises:
        ValueError: There is only one class, or a score is not finite.
    """
    truth = np.asarray(positive, bool)
    resampled = Draws(patient, draws, seed)
    one, two = (auroc_draws(resampled, truth, column, patient, fold) for column in (score, other))
    if np.array_equal(rankdata(score), rankdata(other)):
        return Interval(0.0, 0.0, 0.0)
    if len(resampled.patients) < 2:
        return Interval(float(one[0] - two[0]), None, None)
    low, high = newcombe(float(one[0]), _units(truth, patient), _units(~truth, patient))
    return interval(one - two, (low - float(two[0]), high - float(two[0])))


def specificity_difference(
    positive: ArrayLike, called: ArrayLike, other: ArrayLike, patient: ArrayLike, draws: int = DRAWS, seed: int = 0
) -> Interval:
    """Return the specificity of `called` minus that of `other` on the same rows, with its interval.

    Both are measured in the same draws of whole patients.

    Args:
        positive: bool or 0/1 [n], True for malignant. At least one row must be benign.
        called: bool [n], True where the model calls malignant.
        other: bool [n], the same for the other model.
        patient: Patient number [n].
        draws: Number of bootstrap draws.
        seed: Seed of the draws.
    """
    benign, resampled = ~np.asarray(positive, bool), Draws(patient, draws, seed)
    spared = [benign & ~np.asarray(one, bool) for one in (called, other)]
    count, own, others = resampled.totals(np.stack([benign, *spared], axis=1), patient).T
    with np.errstate(invalid="ignore", divide="ignore"):
        return interval((own - others) / count)


def _units(chosen: NDArray[np.bool_], patient: ArrayLike) -> int:
    """Return the number of patients among the chosen images."""
    return len(np.unique(np.asarray(patient)[chosen]))


@dataclass(frozen=True)
class Comparison:
    """Comparison of two AUROCs on the same images: difference with its interval at `LEVEL`, z and two-sided p value."""

    difference: Interval
    z: float
    p: float


def delong(positive: ArrayLike, score: ArrayLike, other: ArrayLike, patient: ArrayLike) -> Comparison:
    """Return the AUROC of `score` minus that of `other` by DeLong's test, with the covariance summed over patients.

    DeLong, DeLong & Clarke-Pearson 1988 (10.2307/2531595), computed by midranks (Sun & Xu 2014,
    10.1109/LSP.2014.2337313). Several images per patient are handled as in Obuchowski 1997 (10.2307/2533958), which
    gives the same result where every patient has one image.

    Args:
        positive: bool or 0/1 [n], True for malignant.
        score: Probability of malignant [n].
        other: Probability of malignant of the other model [n].
        patient: Patient number [n].

    Raises:
        ValueError: There is only one class, a score is not finite, a class has a single patient, or the scores differ
            but not in how they vary (if both are perfect, for example), which leaves nothing to test.
    """
    areas, covariance = auroc_covariance(positive, [score, other], patient)
    difference = float(areas[0] - areas[1])
    error = math.sqrt(max(0.0, float(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])))
    if np.array_equal(rankdata(score), rankdata(other)):
        return Comparison(Interval(0.0, 0.0, 0.0), 0.0, 1.0)
    if error < 1e-9:
        raise ValueError("DeLong's test needs scores whose areas vary between patients")
    reach = float(norm.ppf((1 + LEVEL) / 2)) * error
    z = difference / error
    return Comparison(Interval(difference, difference - reach, difference + reach), z, float(2 * norm.sf(abs(z))))


def auroc_covariance(positive: ArrayLike, scores: list[ArrayLike], patient: ArrayLike) -> tuple[Array, Array]:
    """Return the AUROCs [k] of k scores of the same images and their covariance [k, k].

    The sources are those of `delong`.

    Args:
        positive: bool or 0/1 [n], True for malignant.
        scores: k arrays of scores, each [n].
        patient: Patient number [n].

    Raises:
        ValueError: There is only one class, a score is not finite, or a class has a single patient.
    """
    columns = [_checked(positive, score, patient) for score in scores]
    truth, _, patients = columns[0]
    code = np.unique(patients, return_inverse=True)[1]
    m, n = int(truth.sum()), int((~truth).sum())
    ranks = np.array([rankdata(score) for _, score, _ in columns])
    # placement of every malignant image among the benign ones, and the other way round
    above = (ranks[:, truth] - np.array([rankdata(score[truth]) for _, score, _ in columns])) / n
    below = 1 - (ranks[:, ~truth] - np.array([rankdata(score[~truth]) for _, score, _ in columns])) / m
    areas = above.mean(axis=1)
    units = len(np.unique(code[truth])), len(np.unique(code[~truth]))
    if min(units) < 2:
        raise ValueError("DeLong's test needs two patients of each class")
    size = code.max() + 1
    malignant = np.array([np.bincount(code[truth], row, size) for row in above - areas[:, None]])
    benign = np.array([np.bincount(code[~truth], row, size) for row in below - areas[:, None]])
    s10, s01 = (part @ part.T * count / (count - 1) for part, count in ((malignant, units[0]), (benign, units[1])))
    cross = malignant @ benign.T
    return areas, s10 / m**2 + s01 / n**2 + (cross + cross.T) / (m * n)


def at_threshold(
    draws: Draws, positive: ArrayLike, called: ArrayLike, patient: ArrayLike, prevalence: float
) -> dict[str, Interval]:
    """Return sensitivity, specificity, PPV and NPV of calling images malignant, and PPV and NPV at a stated prevalence.

    Where no draw differs, the bounds are those of Clopper and Pearson with as many trials as patients.

    Args:
        draws: Draws that cover at least the patients of these images.
        positive: bool or 0/1 [n], True for malignant.
        called: bool [n], True where the model calls malignant.
        patient: Patient number [n].
        prevalence: Share of malignant cases in the population that the model will meet, 0 to 1. A test set often has a
            larger share than a clinic. By Bayes' rule, PPV = se pi / (se pi + (1 - sp)(1 - pi)).

    Returns:
        Intervals by name: sensitivity, specificity, ppv, npv, ppv_at_prevalence and npv_at_prevalence. A metric without
        a denominator is left out (nobody was called malignant: no PPV).
    """
    truth, call = np.asarray(positive, bool), np.asarray(called, bool)
    cells = {"tp": truth & call, "fn": truth & ~call, "tn": ~truth & ~call, "fp": ~truth & call}
    tp, fn, tn, fp = draws.totals(np.stack(list(cells.values()), axis=1), patient).T
    with np.errstate(invalid="ignore", divide="ignore"):
        sensitivity, specificity = tp / (tp + fn), tn / (tn + fp)
        shares = {
            "sensitivity": (sensitivity, truth),
            "specificity": (specificity, ~truth),
            "ppv": (tp / (tp + fp), call),
            "npv": (tn / (tn + fn), ~call),
        }
        hit, alarm = sensitivity * prevalence, (1 - specificity) * (1 - prevalence)
        spared, missed = specificity * (1 - prevalence), (1 - sensitivity) * prevalence
        weighted = {"ppv_at_prevalence": hit / (hit + alarm), "npv_at_prevalence": spared / (spared + missed)}
    figures = {
        name: interval(drawn, _exact(float(drawn[0]), _units(among, patient)))
        for name, (drawn, among) in shares.items()
        if np.isfinite(drawn[0])
    }
    figures |= {name: interval(drawn) for name, drawn in weighted.items() if np.isfinite(drawn[0])}
    # without variation between draws, Bayes' rule gives no variation either: put the exact bounds through it
    for name in weighted:
        if name in figures and any(np.ptp(part[np.isfinite(part)]) == 0 for part in (sensitivity, specificity)):
            bounds = (_bayes(name, figures, bound, prevalence) for bound in ("low", "high"))
            figures[name] = _wider(figures[name], (next(bounds), next(bounds)))
    return figures


def _bayes(name: str, figures: Mapping[str, Interval], bound: str, prevalence: float) -> float:
    """Return PPV or NPV at a prevalence from the same bound of sensitivity and of specificity."""
    hit, spared = (float(getattr(figures[one], bound)) for one in ("sensitivity", "specificity"))
    right, wrong = hit * prevalence, (1 - spared) * (1 - prevalence)
    if name.startswith("npv"):
        right, wrong = spared * (1 - prevalence), (1 - hit) * prevalence
    return right / (right + wrong) if right + wrong else 0.0


def _exact(share: float, patients: int) -> tuple[float, float]:
    return clopper_pearson(round(share * patients), patients)


def brier_draws(draws: Draws, positive: ArrayLike, probability: ArrayLike, patient: ArrayLike) -> Array:
    """Return the Brier score of the sample and of every draw [1 + draws] (Brier 1950).

    It is the mean squared difference of probability and truth. 0 is perfect; prevalence x (1 - prevalence) is
    ignorance.

    Args:
        draws: Draws that cover at least the patients of these images.
        positive: bool or 0/1 [n], True for malignant.
        probability: Probability of malignant [n].
        patient: Patient number [n].
    """
    truth, score = np.asarray(positive, float), np.asarray(probability, float)
    error, count = draws.totals(np.stack([(score - truth) ** 2, np.ones(len(truth))], axis=1), patient).T
    brier: Array = error / count
    return brier


def ece_draws(draws: Draws, positive: ArrayLike, probability: ArrayLike, patient: ArrayLike) -> Array:
    """Return the expected calibration error on the sample and on every draw [1 + draws].

    It is how far the probability of malignant is from the observed share of malignant, averaged over images in `BINS`
    bins of equal width (Naeini et al. 2015). Small sets overstate it: even perfect probabilities do not score 0.

    Args:
        draws: Draws that cover at least the patients of these images.
        positive: bool or 0/1 [n], True for malignant.
        probability: Probability of malignant [n].
        patient: Patient number [n].
    """
    truth, score = np.asarray(positive, float), np.asarray(probability, float)
    place = np.minimum((score * BINS).astype(int), BINS - 1)
    gap = np.zeros((len(score), BINS))
    gap[np.arange(len(score)), place] = score - truth
    ece: Array = np.abs(draws.totals(gap, patient)).sum(axis=1) / draws.totals(np.ones(len(score)), patient)
    return ece


def ece_if_calibrated(probability: ArrayLike, patient: ArrayLike, draws: int = 1000, seed: int = 0) -> float:
    """Return the mean expected calibration error of as many images whose probabilities are perfectly calibrated.

    Consistency resampling (Broecker & Smith 2007, 10.1175/WAF993.1): truths are drawn from the probabilities, with one
    random number per patient, since a patient's images are of the same kind.

    Args:
        probability: Probability of malignant [n].
        patient: Patient number [n].
        draws: Number of resamplings.
        seed: Seed of the resamplings.
    """
    score = np.asarray(probability, float)
    code = np.unique(np.asarray(patient), return_inverse=True)[1]
    place = np.minimum((score * BINS).astype(int), BINS - 1)
    drawn = np.random.default_rng(seed).random((draws, code.max() + 1))[:, code] < score
    gap = (score - drawn) @ np.eye(BINS)[place]
    return float(np.abs(gap).sum(axis=1).mean() / len(score))


def net_benefit(positive: ArrayLike, score: ArrayLike, thresholds: Array, prevalence: float) -> Array:
    """Return the net benefit of acting where the probability reaches a threshold [k].

    The net benefit is TP - FP x t/(1 - t), as shares (Vickers & Elkin 2006). It is weighted to a prevalence (Vickers
    2006, 10.1177/0272989X06295361): sensitivity x pi - (1 - specificity)(1 - pi) x odds.

    Args:
        positive: bool or 0/1 [n], True for malignant.
        score: Probability of malignant [n].
        thresholds: Probabilities at which one would act [k], below 1.
        prevalence: Share of malignant cases in the population that the model will meet, 0 to 1.
    """
    truth = np.asarray(positive, bool)
    called = np.asarray(score, float)[None] >= thresholds[:, None]
    hits, alarms = called[:, truth].mean(axis=1), called[:, ~truth].mean(axis=1)
    benefit: Array = hits * prevalence - alarms * (1 - prevalence) * thresholds / (1 - thresholds)
    return benefit


def accuracy(truth: ArrayLike, probability: ArrayLike) -> float:
    """Return the share of images whose most probable class is the true one. Never show it without `majority`.

    Args:
        truth: Index of the true class [n].
        probability: Probabilities [n, classes].
    """
    return float(accuracy_score(np.asarray(truth), np.asarray(probability).argmax(axis=1)))


def majority(truth: ArrayLike) -> float:
    """Return the accuracy of always answering the most frequent class, which any useful accuracy must beat."""
    return float(np.unique(np.asarray(truth), return_counts=True)[1].max() / np.size(truth))
