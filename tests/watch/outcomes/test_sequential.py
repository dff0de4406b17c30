"""What may be looked at every night: shares with bounds that hold at all times, and an alarm that is seldom false."""

import functools
import math
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from thyroid.metrics import clopper_pearson
from thyroid.watch.outcomes.sequential import FALSE_ALARM, Chart, confidence_sequence


def test_bounds_are_where_the_mixture_of_likelihoods_is_twenty_times_that_of_the_bound():
    right, wrong = 37, 5
    shares = np.linspace(0, 1, 20001)
    middles = (shares[1:] + shares[:-1]) / 2
    prior = np.diff(2 / math.pi * np.arcsin(np.sqrt(shares)))  # of Beta(1/2, 1/2)
    mixture = (prior * middles**right * (1 - middles) ** wrong).sum()
    for bound in confidence_sequence(right, right + wrong):
        assert mixture / (bound**right * (1 - bound) ** wrong) == pytest.approx(20, rel=1e-3)


@pytest.mark.parametrize(("right", "trials"), [(0, 30), (30, 30), (15, 30), (29, 30), (1990, 2000)])
def test_bounds_for_all_times_are_wider_than_those_for_one(right, trials):
    low, high = confidence_sequence(right, trials)
    once = clopper_pearson(right, trials)
    assert low <= once[0]
    assert once[1] <= high
    assert low <= right / trials <= high


def test_without_a_decision_every_share_is_possible():
    assert confidence_sequence(0, 0) == (0, 1)


def test_bounds_hold_at_all_times_together():
    rng = np.random.default_rng(0)
    missed, at = 0, functools.cache(confidence_sequence)
    for _ in range(200):
        hits = np.cumsum(rng.random(150) < 0.9)
        bounds = [at(int(hit), place) for place, hit in enumerate(hits, 1)]
        missed += any(not low <= 0.9 <= high for low, high in bounds)
    assert missed <= 10


def test_sum_falls_with_right_decisions_but_not_below_nothing():
    chart = Chart(expected=0.9, fallen=0.8, right=2, wrong=5, unit=0.1, threshold=9)
    assert chart.path([True, False, True, False, False, True]).tolist() == [0, 5, 3, 8, 13, 11]
    assert chart.path([]).tolist() == []


def test_probability_of_an_alarm_is_that_of_all_sequences_of_decisions():
    chart = Chart(expected=0.9, fallen=0.7, right=1, wrong=4, unit=0.3, threshold=9)
    expected = np.zeros(11)
    for decisions in product((True, False), repeat=10):
        weight = 0.9 ** sum(decisions) * 0.1 ** (10 - sum(decisions))
        expected[1:] += weight * np.maximum.accumulate(chart.path(decisions) >= chart.threshold)
    np.testing.assert_allclose(chart.alarmed(0.9, 10), expected, atol=1e-12)


@pytest.mark.parametrize(
    ("expected", "fallen", "outcomes"),
    [(0.95, 0.85, 200), (0.99, 0.89, 50), (0.6, 0.5, 900), (0.05, 0.01, 100), (0.95, 0.9, 200)],
)
def test_threshold_is_the_lowest_that_keeps_false_alarms_rare(expected, fallen, outcomes):
    chart = Chart.tuned(expected, fallen, outcomes)
    assert chart.alarmed(expected, outcomes)[-1] <= FALSE_ALARM / 2  # the first year
    assert after_silence(chart, outcomes) <= FALSE_ALARM / 2
    assert after_silence(replace(chart, threshold=chart.threshold - 1), outcomes) > FALSE_ALARM / 2


def after_silence(chart, outcomes):
    """The probability of a false alarm in a year after twenty silent ones."""
    silent = 1 - chart.alarmed(chart.expected, 21 * outcomes)
    return 1 - silent[-1] / silent[20 * outcomes]


def test_false_alarms_and_detection_of_simulated_years_are_as_computed():
    chart, rng = Chart.tuned(0.95, 0.85, 200), np.random.default_rng(1)
    alarms = [(chart.path(rng.random(200) < 0.95) >= chart.threshold).any() for _ in range(1000)]
    assert np.mean(alarms) == pytest.approx(chart.alarmed(0.95, 200)[-1], abs=0.015)
    within = chart.detection(0.8)
    found = [(chart.path(rng.random(within) < 0.85) >= chart.threshold).any() for _ in range(1000)]
    assert np.mean(found) == pytest.approx(0.8, abs=0.05)
    assert chart.alarmed(0.85, within)[-1] >= 0.8 > chart.alarmed(0.85, within - 1)[-1]


def test_what_is_not_detected_within_the_most_outcomes_is_said():
    assert Chart.tuned(0.95, 0.85, 200).detection(0.8, most=20) is None
