"""Intervals that resample patients."""

import numpy as np
import pytest

from thyroid import metrics


def test_patient_mean_is_the_bootstrap_of_whole_patients():
    rng = np.random.default_rng(0)
    patient = rng.integers(0, 40, 200)
    hit = rng.random(200) < 0.2
    draws = metrics.Draws(patient, draws=4000, seed=1)
    shares = draws.totals(hit, patient) / draws.totals(np.ones(200), patient)
    expected, found = metrics.interval(shares), metrics.patient_mean(hit, patient)
    assert found.value == expected.value
    assert found.low == pytest.approx(expected.low, abs=0.01)
    assert found.high == pytest.approx(expected.high, abs=0.01)
    none = metrics.patient_mean(np.zeros(200), patient)
    assert (none.value, none.low) == (0, 0)
    assert none.high == pytest.approx(metrics.clopper_pearson(0, len(np.unique(patient)))[1])
