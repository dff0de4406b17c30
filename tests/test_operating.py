import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thyroid import operating
from thyroid.errors import InputError
from thyroid.names import PROBABILITIES
from thyroid.operating import OperatingPoint


@given(st.integers(0, 10_000), st.integers(1, 60), st.floats(0.05, 1))
@settings(deadline=None, max_examples=80)
def test_threshold_reaches_the_sensitivity_and_no_higher_one_does(seed, malignant, asked):
    rng = np.random.default_rng(seed)
    truth = np.arange(malignant + 20) < malignant
    score = rng.integers(0, 30, len(truth)) / 30
    threshold = operating.lock_threshold(truth, score, asked)
    assert (score[truth] >= threshold).mean() >= asked - 1e-9
    higher = score[score > threshold]
    if len(higher) and (score == higher.min()).any():
        above = np.nextafter(higher.min(), 2)
        assert (score[truth] >= above).mean() < asked


def test_threshold_keeps_its_distance_from_the_last_image():
    """Half way to the next lower one, so that another engine's rounding does not lose the image."""
    assert operating.lock_threshold([1, 1, 0, 0], [0.9, 0.6, 0.4, 0.1], 1.0) == pytest.approx(0.5)


def test_scaling_keeps_the_order_and_sums_to_one():
    rng = np.random.default_rng(0)
    probability = rng.dirichlet((1, 1), 200)
    for temperature in (0.3, 1.0, 4.0):
        scaled = operating.scale(probability, temperature, (0, 0.7))
        np.testing.assert_allclose(scaled.sum(axis=1), 1)
        assert (np.argsort(scaled[:, 1]) == np.argsort(probability[:, 1])).all()
    np.testing.assert_allclose(operating.scale(probability, 1, (0, 0)), probability, atol=1e-6)
    assert np.isfinite(operating.scale([[0.0, 1.0]], 0.1, (0, 0))).all()


def test_scaling_undoes_overconfidence_and_bias():
    """Outcomes follow p; the network says p three times too sure and shifted; fitting finds the way back."""
    rng = np.random.default_rng(0)
    malignant = rng.uniform(0.05, 0.95, 5000)
    label = np.where(rng.random(5000) < malignant, "M", "B")
    honest = np.stack([1 - malignant, malignant], axis=1)
    temperature, bias = operating.fit_scaling(operating.scale(honest, 1 / 3, (0, 1.5)), label)
    assert temperature == pytest.approx(3, rel=0.1)
    assert bias == (0, pytest.approx(-0.5, abs=0.1))


def test_a_few_images_told_apart_do_not_make_it_sure():
    probability = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.2, 0.8]])
    scaling = operating.fit_scaling(probability, ["B", "B", "M", "M"])
    assert operating.scale(probability, *scaling)[0, 0] < 0.95


def test_band_holds_the_share_and_the_threshold():
    score = np.random.default_rng(0).random(1000)
    band = operating.lock_band(score, 0.3, 0.2)
    point = OperatingPoint(1.0, (0, 0), 0.3, band)
    assert band[0] < 0.3 < band[1]
    assert (point.decide(score) == "abstain").mean() == pytest.approx(0.2, abs=0.005)
    assert operating.lock_band(score, 0.3, 0.0) is None
    assert point.decide([0.01, 0.3, 0.99]).tolist() == ["benign", "abstain", "malignant"]


def test_doubtful_images_go_first():
    """Wrong near the threshold, right far from it: the risk falls as more is left undecided."""
    truth = np.array([0, 0, 1, 0, 1, 1])
    score = np.array([0.05, 0.2, 0.48, 0.52, 0.8, 0.95])
    coverage, risk = operating.risk_coverage(truth, score, 0.5)
    assert coverage[-1] == 1
    assert risk[-1] == pytest.approx(2 / 6)
    assert (risk[:4] == 0).all()


def test_lock_and_back_from_json():
    rng = np.random.default_rng(0)
    label = np.where(np.arange(60) < 30, "M", "B")
    malignant = np.clip(rng.normal(np.where(label == "M", 0.7, 0.3), 0.2), 0.01, 0.99)
    table = pd.DataFrame({"label": label, PROBABILITIES[0]: 1 - malignant, PROBABILITIES[1]: malignant})
    for abstain in (0.0, 0.1):
        point = operating.lock(table, PROBABILITIES, 0.95, abstain)
        assert operating.of(point.facts()) == point
        score = point.scale(table[PROBABILITIES])[:, 1]
        assert (score[label == "M"] >= point.threshold).mean() >= 0.95
    assert "band" not in operating.lock(table, PROBABILITIES, 0.95, 0.0).facts()


@pytest.mark.parametrize(
    "wrong", [(0, 0, 0.1), (1.1, 0, 0.1), (0.9, 1, 0.1), (0.9, -0.1, 0.1), (0.9, 0, 0), (0.9, 0, 1)]
)
def test_what_is_out_of_range_is_said(wrong):
    with pytest.raises(InputError, match=r"sensitivity|abstain|prevalence"):
        operating.check(*wrong)
