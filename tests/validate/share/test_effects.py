"""Random effects over sites, against published results."""

import math

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.stats import norm, t
from statsmodels.stats.meta_analysis import combine_effects

from thyroid.validate.share import effects
from thyroid.validate.share.effects import Effects

BCG = np.array(
    [
        *((4, 119, 11, 128), (6, 300, 29, 274), (3, 228, 11, 209), (62, 13536, 248, 12619), (33, 5036, 47, 5761)),
        *((180, 1361, 372, 1079), (8, 2537, 10, 619), (505, 87886, 499, 87892), (29, 7470, 45, 7232)),
        *((17, 1699, 65, 1600), (186, 50448, 141, 27197), (5, 2493, 3, 2338), (27, 16886, 29, 17825)),
    ],
    float,
)
"""Trials of the BCG vaccine: cases and others, vaccinated and not (Colditz et al. 1994; dat.bcg of metafor)."""


@pytest.fixture(scope="module")
def bcg():
    cases, others, control, rest = BCG.T
    value = np.log(cases / (cases + others) / (control / (control + rest)))
    return Effects(value, 1 / cases - 1 / (cases + others) + 1 / control - 1 / (control + rest), "log")


def test_the_variance_between_trials_is_the_published_one(bcg):
    found = bcg.pooled()
    assert found.tau2 == pytest.approx(0.3181, abs=5e-5)  # metafor: rma(yi, vi, data=dat.bcg, method="PM")
    assert found.i2.value == pytest.approx(0.9212, abs=5e-5)  # of the DerSimonian-Laird analysis: Q = 152.2330
    assert combine_effects(bcg.value, bcg.variance, method_re="dl").tau2 == pytest.approx(0.3088, abs=5e-5)


def test_the_pooled_figure_follows_from_the_formulas(bcg):
    def excess(tau2):
        weight = 1 / (bcg.variance + tau2)
        return (weight * (bcg.value - np.average(bcg.value, weights=weight)) ** 2).sum() - 12

    tau2 = brentq(excess, 0, 10, xtol=1e-12)
    weight = 1 / (bcg.variance + tau2)
    mean, error = np.average(bcg.value, weights=weight), math.sqrt(1 / weight.sum())
    found = bcg.pooled()
    assert found.sites == 13
    assert [found.pooled.value, found.pooled.low, found.pooled.high] == pytest.approx(
        np.exp([mean, mean - t.ppf(0.975, 12) * error, mean + t.ppf(0.975, 12) * error]), abs=1e-5
    )
    reach = t.ppf(0.975, 11) * math.sqrt(tau2 + error**2)
    assert found.prediction == pytest.approx(np.exp([mean - reach, mean + reach]), abs=1e-5)


def test_the_interval_of_i2_follows_from_the_formulas():
    middle = math.log(math.sqrt(152.233 / 12))
    error = 0.5 * (math.log(152.233) - math.log(12)) / (math.sqrt(2 * 152.233) - math.sqrt(2 * 13 - 3))
    ends = [1 - math.exp(-2 * (middle + sign * norm.ppf(0.975) * error)) for sign in (-1, 1)]
    found = effects.heterogeneity(152.233, 13)
    assert [found.low, found.high] == pytest.approx(ends)
    assert [round(found.low, 3), round(found.high, 3)] == [0.883, 0.947]
    calm = effects.heterogeneity(3.0, 6)
    assert (calm.value, calm.low) == (0, 0)
    assert 0.5 < calm.high < 0.9
    assert effects.heterogeneity(4.0, 2).low is None


def test_the_interval_is_never_narrower_than_without_the_correction():
    alike = Effects(np.array([1.0, 1.001, 0.999]), np.full(3, 0.04), "identity").pooled()
    assert alike.tau2 == 0
    assert alike.pooled.high - alike.pooled.value == pytest.approx(t.ppf(0.975, 2) * math.sqrt(0.04 / 3))


@pytest.mark.parametrize("seed", range(6))
def test_leaving_one_out_at_once_is_what_statsmodels_gives_one_by_one(bcg, seed):
    generator = np.random.default_rng(seed)
    count = int(generator.integers(3, 40))
    value = generator.normal(0, generator.choice([0.05, 1]), count)
    some = bcg if seed == 0 else Effects(value, generator.uniform(0.01, 0.5, count), "logit")
    names = [str(number) for number in range(len(some.value))]
    for number, row in enumerate(some.leave_one_out(names)):
        rest = np.arange(len(names)) != number
        alone = Effects(some.value[rest], some.variance[rest], some.scale).pooled()
        assert row.site == names[number]
        expected = [alone.pooled.value, alone.pooled.low, alone.pooled.high, alone.i2.value]
        assert [row.pooled.value, row.pooled.low, row.pooled.high, row.i2] == pytest.approx(expected, rel=1e-9)


def test_sites_that_are_all_alike_do_not_differ():
    alike = Effects(np.full(4, 1.5), np.full(4, 0.1), "identity")
    assert (alike.pooled().tau2, alike.pooled().i2.value) == (0, 0)
    assert [row.i2 for row in alike.leave_one_out(list("abcd"))] == [0] * 4


def test_one_and_two_sites_say_what_they_can():
    one = Effects(np.array([2.0]), np.array([0.25]), "identity")
    assert (one.pooled().tau2, one.pooled().i2, one.pooled().prediction) == (None, None, None)
    assert one.pooled().pooled.high == pytest.approx(2 + 1.96 * 0.5, abs=1e-4)
    two = Effects(np.array([2.0, 3.0]), np.array([0.25, 0.25]), "identity")
    assert two.pooled().prediction is None
    assert two.pooled().i2.low is None
    assert two.leave_one_out(["a", "b"]) == []
