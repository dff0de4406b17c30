"""Differences and predictive values from two intervals, against published figures and simulated truth."""

import numpy as np
import pytest
from scipy.stats import binomtest

from thyroid import metrics
from thyroid.metrics import Draws, Interval


def wilson(hits: int, trials: int) -> Interval:
    bounds = binomtest(hits, trials).proportion_ci(0.95, method="wilson")
    return Interval(hits / trials, float(bounds.low), float(bounds.high))


@pytest.mark.parametrize(
    ("one", "other", "low", "high"),
    [
        ((56, 70), (48, 80), 0.0524, 0.3339),
        ((9, 10), (3, 10), 0.1705, 0.8090),
        ((6, 7), (2, 7), 0.0582, 0.8062),
        ((10, 10), (0, 20), 0.6791, 1.0),
    ],
)
def test_differences_are_those_of_newcombe_1998(one, other, low, high):
    """Method 10 of table II, without continuity correction."""
    found = metrics.independent_difference(wilson(*one), wilson(*other))
    assert found.value == pytest.approx(one[0] / one[1] - other[0] / other[1])
    assert (found.low, found.high) == (pytest.approx(low, abs=6e-5), pytest.approx(high, abs=6e-5))


def test_a_difference_needs_both_intervals():
    known, unknown = Interval(0.8, 0.7, 0.9), Interval(0.5, None, None)
    assert metrics.independent_difference(known, unknown) is None
    assert metrics.independent_difference(unknown, known) is None


def test_an_estimate_outside_its_own_interval_adds_nothing_on_that_side():
    biased = Interval(0.02, 0.03, 0.08)
    found = metrics.independent_difference(biased, Interval(0.10, 0.10, 0.10))
    assert (found.value, found.low, found.high) == pytest.approx((-0.08, -0.08, -0.02))


def test_differences_hold_the_truth_as_often_as_they_say():
    """Of two sensitivities of few patients near 1, where Wald's interval fails."""
    rng, held, runs = np.random.default_rng(0), 0, 800
    for few, many in zip(rng.binomial(25, 0.85, runs), rng.binomial(60, 0.95, runs), strict=True):
        found = metrics.independent_difference(wilson(int(few), 25), wilson(int(many), 60))
        held += found.low <= 0.85 - 0.95 <= found.high
    assert 0.93 <= held / runs <= 0.98, held / runs


def test_predictive_values_hold_the_truth_as_often_as_they_say():
    rng, runs = np.random.default_rng(1), 800
    held = {"ppv_at_prevalence": 0, "npv_at_prevalence": 0}
    hit, alarm = 0.9 * 0.05, 0.3 * 0.95
    truth = {"ppv_at_prevalence": hit / (hit + alarm), "npv_at_prevalence": 0.7 * 0.95 / (0.7 * 0.95 + 0.1 * 0.05)}
    for hits, spared in zip(rng.binomial(40, 0.9, runs), rng.binomial(50, 0.7, runs), strict=True):
        found = metrics.predictive_values(wilson(int(hits), 40), wilson(int(spared), 50), 0.05)
        for name, share in found.items():
            held[name] += share.low <= truth[name] <= share.high
    assert all(0.93 <= count / runs <= 0.985 for count in held.values()), held


def test_predictive_values_are_near_those_of_the_bootstrap():
    rng = np.random.default_rng(2)
    truth = np.arange(300) < 120
    called = rng.random(300) < np.where(truth, 0.9, 0.3)
    measured = metrics.at_threshold(Draws(np.arange(300)), truth, called, np.arange(300), 0.05)
    found = metrics.predictive_values(measured["sensitivity"], measured["specificity"], 0.05)
    assert set(found) == {"ppv_at_prevalence", "npv_at_prevalence"}
    for name, share in found.items():
        assert share.value == pytest.approx(measured[name].value)
        assert share.low == pytest.approx(measured[name].low, abs=0.01)
        assert share.high == pytest.approx(measured[name].high, abs=0.01)


def test_predictive_values_at_the_ends():
    perfect, low = Interval(1.0, 0.8, 1.0), Interval(0.6, 0.5, 0.7)
    found = metrics.predictive_values(perfect, low, 0.1)
    npv = found["npv_at_prevalence"]
    assert (npv.value, npv.high) == (1, 1)
    assert npv.low == pytest.approx(0.5 * 0.9 / (0.5 * 0.9 + 0.2 * 0.1))
    never = metrics.predictive_values(Interval(0.0, 0.0, 0.2), Interval(1.0, 0.8, 1.0), 0.1)
    assert "ppv_at_prevalence" not in never, "nobody is called malignant"
    assert never["npv_at_prevalence"].value == pytest.approx(0.9)
    touching = metrics.predictive_values(Interval(0.9, 0.7, 1.0), low, 0.1)["npv_at_prevalence"]
    assert touching.low < touching.value < touching.high == 1
    assert metrics.predictive_values(Interval(0.9, None, None), low, 0.1) == {}
