"""Intercept, slope, ratio and reliability plot, against other implementations and against simulated truth."""

import numpy as np
import pytest
import statsmodels.api as sm
from scipy.optimize import brentq
from scipy.special import expit, logit
from scipy.stats import t as student
from sklearn.linear_model import LogisticRegression

from thyroid import metrics
from thyroid.metrics import Draws, Interval

PERFECT = {"calibration_in_the_large": 0, "calibration_slope": 1, "observed_to_expected": 1}


def simulated(patients: int, views: int, seed: int, prevalence: float = 0.4) -> tuple[np.ndarray, ...]:
    """Truth, perfectly calibrated probability and patient of images; a patient's images share most of their score."""
    rng = np.random.default_rng(seed)
    truth = np.repeat(rng.permutation(patients) < prevalence * patients, views)
    shared = np.repeat(rng.normal(0, np.sqrt(0.6), patients), views)
    x = np.where(truth, 0.75, -0.75) + shared + rng.normal(0, np.sqrt(0.4), len(truth))
    return truth, expit(1.5 * x + logit(prevalence)), np.repeat(np.arange(patients), views)


def measure(name: str, truth: np.ndarray, probability: np.ndarray, patient: np.ndarray, draws: int = 400) -> Interval:
    if name == "observed_to_expected":
        return metrics.observed_to_expected(Draws(patient, draws), truth, probability, patient)
    found: Interval = getattr(metrics, name)(truth, probability, patient)
    return found


def test_intercept_solves_its_equation():
    truth, probability, patient = simulated(60, 2, 1)
    probability = expit(logit(probability) - 0.8)
    found = metrics.calibration_in_the_large(truth, probability, patient)
    odds = logit(probability)
    assert found.value == pytest.approx(brentq(lambda a: truth.sum() - expit(odds + a).sum(), -5, 5), abs=1e-6)
    assert found.low > 0, "the probabilities are too low"


def test_slope_is_that_of_scikit_learn():
    truth, probability, patient = simulated(60, 2, 1)
    probability = expit(2.5 * logit(probability))
    found = metrics.calibration_slope(truth, probability, patient)
    other = LogisticRegression(C=np.inf, tol=1e-10).fit(logit(probability)[:, None], truth)
    assert found.value == pytest.approx(other.coef_[0, 0], rel=1e-4)
    assert found.high < 1, "the probabilities are too extreme"


@pytest.mark.parametrize(("views", "seed"), [(3, 2), (1, 8)])
def test_intercept_and_slope_are_those_of_a_glm_with_variances_of_clusters(views, seed):
    truth, probability, patient = simulated(80, views, seed)
    odds, family = logit(probability), sm.families.Binomial()
    slope = sm.GLM(truth.astype(float), np.stack([odds, np.ones(len(odds))], axis=1), family=family)
    intercept = sm.GLM(truth.astype(float), np.ones(len(odds)), family=family, offset=odds)
    for name, model in (("calibration_slope", slope), ("calibration_in_the_large", intercept)):
        clustered = model.fit(cov_type="cluster", cov_kwds={"groups": patient})
        error = max(clustered.bse[0], model.fit().bse[0])
        found = measure(name, truth, probability, patient)
        assert found.value == pytest.approx(clustered.params[0], abs=1e-6)
        assert (found.high - found.low) / 2 == pytest.approx(student.ppf(0.975, 79) * error, rel=1e-5)
        assert (found.high + found.low) / 2 == pytest.approx(found.value)


@pytest.mark.parametrize("patients", [12, 40])
def test_intervals_hold_the_truth_as_often_as_they_say(patients):
    """Of probabilities that are perfect but for the sample, with several images a patient."""
    runs, held = 120, dict.fromkeys(PERFECT, 0)
    for seed in range(runs):
        sample = simulated(patients, 3, seed)
        for name, truth in PERFECT.items():
            found = measure(name, *sample)
            held[name] += found.low is None or found.low <= truth <= found.high
    assert all(count / runs >= 0.91 for count in held.values()), held


def test_a_perfect_separation_has_a_slope_but_no_bounds():
    truth = np.repeat([False, True], 10)
    probability = np.linspace(0.05, 0.95, 20)
    found = metrics.calibration_slope(truth, probability, np.arange(20))
    assert (found.low, found.high) == (None, None)
    assert 1 < found.value < 20
    assert metrics.calibration_slope(~truth, probability, np.arange(20)).value == pytest.approx(-found.value)
    assert metrics.calibration_in_the_large(truth, probability, np.arange(20)).low is not None


def test_the_same_probability_for_all_says_nothing_of_a_slope():
    truth = np.arange(20) < 8
    assert metrics.calibration_slope(truth, np.full(20, 0.3), np.arange(20)) == Interval(0, None, None)
    large = metrics.calibration_in_the_large(truth, np.full(20, 0.3), np.arange(20))
    assert large.value == pytest.approx(logit(0.4) - logit(0.3))


@pytest.mark.parametrize("wrong", [0, 1, 20])
@pytest.mark.filterwarnings("error")
def test_probabilities_of_0_and_1_have_a_calibration(wrong):
    """Where iterated weighted least squares overflow."""
    truth = np.arange(40) < 20
    certain = np.where(np.arange(40) < wrong, ~truth, truth).astype(float)
    large = metrics.calibration_in_the_large(truth, certain, np.arange(40))
    odds = logit(np.clip(certain, 1e-7, 1 - 1e-7))
    assert (truth - expit(odds + large.value)).sum() == pytest.approx(0, abs=1e-5)
    assert abs(large.value) < 20
    assert (large.low is None) is (wrong == 0)
    assert np.isfinite(metrics.calibration_slope(truth, certain, np.arange(40)).value)


@pytest.mark.parametrize("name", ["calibration_in_the_large", "calibration_slope"])
def test_one_class_has_no_calibration(name):
    with pytest.raises(ValueError, match="both classes"):
        getattr(metrics, name)(np.ones(5, bool), np.linspace(0.1, 0.9, 5), np.arange(5))


@pytest.mark.parametrize("name", list(PERFECT))
def test_one_patient_has_no_bounds(name):
    found = measure(name, np.array([True, False, True]), np.array([0.7, 0.6, 0.2]), np.zeros(3, int))
    assert np.isfinite(found.value)
    assert (found.low, found.high) == (None, None)


def test_observed_to_expected_is_a_ratio():
    truth, probability, patient = simulated(60, 2, 4)
    found = measure("observed_to_expected", truth, probability / 2, patient, 2000)
    assert found.value == pytest.approx(truth.mean() / (probability / 2).mean())
    assert found.low > 1, "the probabilities are too low"
    few = np.arange(12) < 2
    wide = measure("observed_to_expected", few, np.full(12, 1 / 6), np.arange(12), 2000)
    low, high = metrics.clopper_pearson(2, 12)
    assert wide.low <= 6 * low
    assert wide.high >= 6 * high


def test_reliability_bins_hold_as_many_images_each():
    truth, probability, patient = simulated(100, 2, 5)
    bins = metrics.reliability(truth, probability, patient)
    assert [one.images for one in bins] == [20] * 10
    assert np.all(np.diff([one.predicted for one in bins]) > 0)
    assert sum(one.predicted * one.images for one in bins) == pytest.approx(probability.sum())
    assert sum(one.observed.value * one.images for one in bins) == pytest.approx(truth.sum())
    assert all(one.observed.low <= one.observed.value <= one.observed.high for one in bins)
    lowest = np.argsort(probability)[:20]
    assert bins[0].patients == len(set(patient[lowest]))


def test_few_patients_and_equal_probabilities_make_few_bins():
    truth, probability, patient = simulated(12, 2, 6)
    assert [one.images for one in metrics.reliability(truth, probability, patient)] == [12, 12]
    (alone,) = metrics.reliability(truth, np.full(24, 0.3), patient)
    assert (alone.predicted, alone.images, alone.patients) == (pytest.approx(0.3), 24, 12)
    for many, (low, high) in ((20, (20, 4)), (4, (4, 20))):
        tied = metrics.reliability(truth, np.where(np.arange(24) < many, 0.2, 0.7), patient)
        assert [(one.predicted, one.images) for one in tied] == [(pytest.approx(0.2), low), (pytest.approx(0.7), high)]
