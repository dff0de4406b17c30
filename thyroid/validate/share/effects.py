"""Random effects over sites: a figure of every site and its variance in, the mean over sites and their spread out.

The mean and the variance between sites are those of `statsmodels.stats.meta_analysis.combine_effects` with the
estimator of Paule & Mandel 1982, which Veroniki et al. 2016 (10.1002/jrsm.1164) recommend. The interval is that of
Hartung & Knapp with the quantile of the t distribution, never narrower than without their correction (Röver, Knapp &
Friede 2015, 10.1186/s12874-015-0091-1).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit
from scipy.stats import norm, t
from statsmodels.stats.meta_analysis import combine_effects

from thyroid.interval import LEVEL, Interval
from thyroid.records.share import LeftOut, RandomEffects

Array = NDArray[np.float64]

BACK: dict[str, Callable[[Array], Array]] = {"logit": expit, "log": np.exp, "identity": lambda value: value}
"""From the scale of the pooling back to that of the figure."""

_TAIL = (1 + LEVEL) / 2
_ITERATIONS, _TOLERANCE = 50, 1e-5  # those of statsmodels


@dataclass(frozen=True, eq=False)
class Effects:
    """A figure of several sites on the scale of the pooling.

    Attributes:
        value: The figure of each site [sites].
        variance: Its variance within each site, above 0 [sites].
        scale: One of `BACK`.
    """

    value: Array
    variance: Array
    scale: str

    def back(self, *values: float) -> list[float]:
        """Return values on the scale of the figure."""
        return [float(number) for number in BACK[self.scale](np.array(values, float))]

    def interval(self, value: float, reach: float) -> Interval:
        """Return an interval that is symmetric on the scale of the pooling, on that of the figure."""
        return Interval(*self.back(value, value - reach, value + reach))

    def pooled(self) -> RandomEffects:
        """Return the figure over the sites; for one site it is its own, with its own interval."""
        count = len(self.value)
        if count == 1:
            own = self.interval(float(self.value[0]), float(norm.ppf(_TAIL)) * math.sqrt(self.variance[0]))
            return RandomEffects(sites=1, pooled=own, tau2=None, i2=None, prediction=None)
        with np.errstate(divide="ignore", invalid="ignore"):  # its own I2 of sites that are all alike
            found = combine_effects(self.value, self.variance, method_re="pm", use_t=True)
        mean, tau2 = float(found.mean_effect_re), float(found.tau2)
        error = max(float(found.sd_eff_w_re), float(found.sd_eff_w_re_hksj))
        prediction = None
        if count > 2:
            reach = float(t.ppf(_TAIL, count - 2)) * math.sqrt(tau2 + error**2)
            prediction = self.back(mean - reach, mean + reach)
        return RandomEffects(
            sites=count,
            pooled=self.interval(mean, float(t.ppf(_TAIL, count - 1)) * error),
            tau2=tau2,
            i2=heterogeneity(float(found.q), count),
            prediction=prediction,
        )

    def leave_one_out(self, sites: list[str]) -> list[LeftOut]:
        """Return the figure over all sites but each of them; none for fewer than three sites.

        Args:
            sites: Names of the sites.
        """
        count = len(self.value)
        if count < 3:
            return []
        mean, error, q = without_each(self.value, self.variance)
        reach = float(t.ppf(_TAIL, count - 2)) * error
        low, middle, high = (BACK[self.scale](values) for values in (mean - reach, mean, mean + reach))
        i2 = np.maximum(0, 1 - (count - 2) / np.maximum(q, 1e-300))
        return [
            LeftOut(site=site, pooled=Interval(float(m), float(a), float(b)), i2=float(share))
            for site, m, a, b, share in zip(sites, middle, low, high, i2, strict=True)
        ]


def heterogeneity(q: float, sites: int) -> Interval:
    """Return I2 with its test-based interval (Higgins & Thompson 2002, 10.1002/sim.1186, equation 15 and following).

    Args:
        q: Cochran's Q.
        sites: Number of sites, at least 2; the interval needs 3.
    """
    df = sites - 1
    value = max(0.0, 1 - df / q) if q > 0 else 0.0
    if sites < 3:
        return Interval(value, None, None)
    if q > sites:
        error = 0.5 * (math.log(q) - math.log(df)) / (math.sqrt(2 * q) - math.sqrt(2 * sites - 3))
    else:
        error = math.sqrt(1 / (2 * (sites - 2)) * (1 - 1 / (3 * (sites - 2) ** 2)))
    middle, reach = max(0.0, 0.5 * math.log(max(q, 1e-300) / df)), float(norm.ppf(_TAIL)) * error
    low, high = (max(0.0, 1 - math.exp(-2 * bound)) for bound in (middle - reach, middle + reach))
    return Interval(value, low, high)


def without_each(value: Array, variance: Array) -> tuple[Array, Array, Array]:
    """Return the mean without each site, its standard error, and Cochran's Q: what `combine_effects` gives, at once.

    Args:
        value: The figure of each site on the scale of the pooling [sites], three or more.
        variance: Its variance [sites].

    Returns:
        Mean, standard error and Q without each site, each [sites].
    """
    count = len(value)
    others = 1.0 - np.eye(count)
    tau2, active = np.zeros(count), np.ones(count, bool)
    fixed = others / variance
    q = _deviation(fixed, value)[1]
    for _ in range(_ITERATIONS):
        rows = np.flatnonzero(active)
        if not len(rows):
            break
        weight = others[rows] / (variance + tau2[rows, None])
        _, spread, slope = _deviation(weight, value)
        excess = spread - (count - 2)
        tau2[rows[excess < 0]] = 0
        active[rows[excess < _TOLERANCE]] = False
        going = excess >= _TOLERANCE
        tau2[rows[going]] += excess[going] / slope[going]
    weight = others / (variance + tau2[:, None])
    mean, spread, _ = _deviation(weight, value)
    scale = np.maximum(1, spread / (count - 2))
    return mean, np.sqrt(scale / weight.sum(axis=1)), q


def _deviation(weight: Array, value: Array) -> tuple[Array, Array, Array]:
    """Return the weighted mean, the weighted sum of squared deviations, and its negative slope, by row of weights."""
    mean = weight @ value / weight.sum(axis=1)
    squared = (value - mean[:, None]) ** 2
    return mean, (weight * squared).sum(axis=1), (weight**2 * squared).sum(axis=1)
