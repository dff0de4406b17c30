"""Intervals of what is computed from two independent estimates, each with an interval of its own.

MOVER, the method of variance estimates recovery, takes the distance of each bound from its estimate for what the
estimate varies in that direction, and adds the squares (Newcombe 1998, 10.1002/(SICI)1097-0258(19980430)17:8<873;
Zou & Donner 2008, 10.1002/sim.3095). It needs no other knowledge of the samples, which is why a metric that model.json
holds can be compared with one of other patients.
"""

import math

import numpy as np
from scipy.special import expit

from thyroid.interval import Interval


def independent_difference(one: Interval, other: Interval) -> Interval | None:
    """Return `one` less `other`, which were measured on different patients, with its interval by MOVER.

    A percentile interval of a biased metric, such as the expected calibration error, need not hold its own estimate.
    The distance to the bound on its wrong side then counts as 0.

    Args:
        one: Metric on one sample.
        other: The same metric on an independent sample.

    Returns:
        The difference; None where one of them has no interval.
    """
    if one.low is None or one.high is None or other.low is None or other.high is None:
        return None
    value = one.value - other.value
    below = math.hypot(max(0.0, one.value - one.low), max(0.0, other.high - other.value))
    above = math.hypot(max(0.0, one.high - one.value), max(0.0, other.value - other.low))
    return Interval(value, value - below, value + above)


def predictive_values(sensitivity: Interval, specificity: Interval, prevalence: float) -> dict[str, Interval]:
    """Return PPV and NPV at a prevalence from a sensitivity and a specificity that are known with their intervals.

    By Bayes' rule the odds of PPV are se pi / ((1 - sp)(1 - pi)), and those of NPV sp (1 - pi) / ((1 - se) pi). The
    interval is that of MOVER for the logarithm of the odds (on which scale Mercaldo et al. 2007, 10.1002/sim.2677, put
    Wald's). Where an estimate of 0 or 1 leaves no such logarithm, both bounds are put through Bayes' rule.

    Args:
        sensitivity: Sensitivity.
        specificity: Specificity, of other patients.
        prevalence: Share of malignant cases, above 0 and below 1.

    Returns:
        ppv_at_prevalence and npv_at_prevalence. One without a denominator is left out (nobody is called malignant: no
        PPV), as are both where a bound is missing.
    """
    if None in (sensitivity.low, sensitivity.high, specificity.low, specificity.high):
        return {}
    prior = prevalence / (1 - prevalence)
    found = {
        "ppv_at_prevalence": _share(sensitivity, _complement(specificity), prior),
        "npv_at_prevalence": _share(specificity, _complement(sensitivity), 1 / prior),
    }
    return {name: share for name, share in found.items() if share is not None}


def _complement(share: Interval) -> Interval:
    return Interval(1 - share.value, 1 - float(share.high or 0), 1 - float(share.low or 0))


def _share(right: Interval, wrong: Interval, prior: float) -> Interval | None:
    """Return right x prior / (right x prior + wrong) of two shares with their bounds, or None if both shares are 0."""
    if not right.value and not wrong.value:
        return None
    if not right.value or not wrong.value:
        ends = ((right.value, wrong.value), (right.low, wrong.high), (right.high, wrong.low))
        return Interval(*(_weighted(float(r or 0), float(w or 0), prior) for r, w in ends))
    ratio = independent_difference(_logarithm(right), _logarithm(wrong))
    if ratio is None:
        return None
    odds = np.array([ratio.value, ratio.low, ratio.high], float) + math.log(prior)
    return Interval(*expit(odds).tolist())


def _weighted(right: float, wrong: float, prior: float) -> float:
    return right * prior / (right * prior + wrong) if right or wrong else 0.0


def _logarithm(share: Interval) -> Interval:
    with np.errstate(divide="ignore"):
        value, low, high = np.log(np.array([share.value, share.low, share.high], float))
    return Interval(float(value), float(low), float(high))
