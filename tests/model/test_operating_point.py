import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from thyroid.data import classes
from thyroid.data.classes import BINARY
from thyroid.model import operating_point
from thyroid.model.operating_point import OperatingPoint
from thyroid.records.performance import OperatingPointFields


@given(st.integers(0, 10_000), st.integers(1, 60), st.floats(0.05, 1))
def test_threshold_reaches_the_sensitivity_and_no_higher_one_does(seed, malignant, asked):
    rng = np.random.default_rng(seed)
    truth = np.arange(malignant + 20) < malignant
    score = rng.integers(0, 30, len(truth)) / 30
    threshold = operating_point.lock_threshold(truth, score, asked)
    assert (score[truth] >= threshold).mean() >= asked - 1e-9
    higher = score[score > threshold]
    if len(higher) and (score == higher.min()).any():
        above = np.nextafter(higher.min(), 2)
        assert (score[truth] >= above).mean() < asked


def test_threshold_keeps_its_distance_from_the_last_image():
    """Half way to the next lower one, so that another engine's rounding does not lose the image."""
    assert operating_point.lock_threshold([1, 1, 0, 0], [0.9, 0.6, 0.4, 0.1], 1.0) == pytest.approx(0.5)


def test_scaling_keeps_the_order_and_sums_to_one():
    rng = np.random.default_rng(0)
    probability = rng.dirichlet((1, 1), 200)
    for temperature in (0.3, 1.0, 4.0):
        scaled = operating_point.scale(probability, temperature, (0, 0.7))
        np.testing.assert_allclose(scaled.sum(axis=1), 1)
        assert (np.argsort(scaled[:, 1]) == np.argsort(probability[:, 1])).all()
    np.testing.assert_allclose(operating_point.scale(probability, 1, (0, 0)), probability, atol=1e-6)
    assert np.isfinite(operating_point.scale([[0.0, 1.0]], 0.1, (0, 0))).all()


def test_scaling_undoes_overconfidence_and_bias():
    """Outcomes follow p; the network says p three times too sure and shifted; fitting finds the way back."""
    rng = np.random.default_rng(0)
    malignant = rng.uniform(0.05, 0.95, 5000)
    outcome = (rng.random(5000) < malignant).astype(int)
    honest = np.stack([1 - malignant, malignant], axis=1)
    temperature, bias = operating_point.fit_scaling(operating_point.scale(honest, 1 / 3, (0, 1.5)), outcome)
    assert temperature == pytest.approx(3, rel=0.1)
    assert bias == (0, pytest.approx(-0.5, abs=0.1))


def test_a_few_images_told_apart_do_not_make_it_sure():
    probability = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.2, 0.8]])
    scaling = operating_point.fit_scaling(probability, [0, 0, 1, 1])
    assert operating_point.scale(probability, *scaling)[0, 0] < 0.95


def test_band_holds_the_share_and_the_threshold():
    score = np.random.default_rng(0).random(1000)
    band = operating_point.lock_band(score, 0.3, 0.2)
    point = OperatingPoint(1.0, (0, 0), 0.3, (0.7, 0.3), band)
    assert band[0] < 0.3 < band[1]
    assert (point.decide(score) == "abstain").mean() == pytest.approx(0.2, abs=0.005)
    assert operating_point.lock_band(score, 0.3, 0.0) is None
    assert point.decide([0.01, 0.3, 0.99]).tolist() == ["benign", "abstain", "malignant"]


def test_doubtful_images_go_first():
    """Wrong near the threshold, right far from it: the risk falls as more is left undecided."""
    truth = np.array([0, 0, 1, 0, 1, 1])
    score = np.array([0.05, 0.2, 0.48, 0.52, 0.8, 0.95])
    coverage, risk = operating_point.risk_coverage(truth, score, 0.5)
    assert coverage[-1] == 1
    assert risk[-1] == pytest.approx(2 / 6)
    assert (risk[:4] == 0).all()


def test_lock_and_back_from_json():
    rng = np.random.default_rng(0)
    label = np.where(np.arange(60) < 30, "M", "B")
    malignant = np.clip(rng.normal(np.where(label == "M", 0.7, 0.3), 0.2), 0.01, 0.99)
    table = pd.DataFrame({"class": label, "label": label, "probability_B": 1 - malignant, "probability_M": malignant})
    for abstain in (0.0, 0.1):
        point = operating_point.lock(table, BINARY, 0.95, abstain)
        assert OperatingPoint.from_record(OperatingPointFields.parse(point.to_dict(), "model.json")) == point
        score = point.scale(table[BINARY.columns])[:, 1]
        assert (score[label == "M"] >= point.threshold).mean() >= 0.95
    assert "band" not in operating_point.lock(table, BINARY, 0.95, 0.0).to_dict()


KINDS = classes.parse("2<3|4a<4b<5")


def graded(count: int = 300, seed: int = 0) -> pd.DataFrame:
    """Answers of a network to five grades, too sure of them."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, len(KINDS), count)
    near = -np.abs(np.arange(len(KINDS)) - truth[:, None] + rng.normal(0, 0.8, (count, 1))) * 3
    probability = np.exp(near) / np.exp(near).sum(axis=1, keepdims=True)
    names = np.array(KINDS.names)[truth]
    table = pd.DataFrame({"class": names, "label": [KINDS.side(name) for name in names]})
    table[KINDS.columns] = probability
    return table


def test_lock_of_grades_has_a_threshold_for_each():
    table = graded()
    point = operating_point.lock(table, KINDS, 0.9, 0.1)
    assert OperatingPoint.from_record(OperatingPointFields.parse(point.to_dict(), "model.json")) == point
    assert (len(point.bias), point.bias[0], len(point.thresholds)) == (5, 0, 5)
    scaled = point.scale(table[KINDS.columns])
    malignant = (table["label"] == "M").to_numpy()
    for mine, score, threshold in (
        (malignant, KINDS.malignant(scaled), point.threshold),
        *zip((table["class"] == name for name in KINDS.names), scaled.T, point.thresholds, strict=True),
    ):
        assert operating_point.lock_threshold(mine, score, 0.9) == threshold
        assert (score[mine] >= threshold).mean() >= 0.9
    assert point.temperature > 1.2, "the network was too sure"
    assert (point.decide(KINDS.malignant(scaled)) == "abstain").mean() == pytest.approx(0.1, abs=0.02)


def test_thresholds_of_two_classes_are_those_of_both_sides():
    rng = np.random.default_rng(0)
    outcome = np.arange(200) % 2
    malignant = np.clip(rng.normal(0.3 + 0.4 * outcome, 0.2), 0.01, 0.99)
    label = np.array(list("BM"))[outcome]
    table = pd.DataFrame({"class": label, "label": label, "probability_B": 1 - malignant, "probability_M": malignant})
    point = operating_point.lock(table, BINARY, 0.95, 0.0)
    assert point.thresholds[1] == point.threshold
    benign = point.scale(table[BINARY.columns])[:, 0]
    assert point.thresholds[0] == operating_point.lock_threshold(outcome == 0, benign, 0.95)


@given(st.integers(0, 10_000), st.floats(0.02, 0.98))
def test_the_called_class_is_the_most_probable_one_of_the_decided_side(seed, threshold):
    probability = np.random.default_rng(seed).dirichlet(np.full(5, 0.5), 50)
    point = OperatingPoint(1.0, (0,) * 5, threshold, (0.5,) * 5)
    called, decided = point.call(probability, KINDS), point.decide(KINDS.malignant(probability))
    for row, place, decision in zip(probability, called, decided, strict=True):
        mine = [n for n, positive in enumerate(KINDS.positive) if positive == (decision == "malignant")]
        assert place in mine
        assert row[place] == row[mine].max()


def test_a_called_class_of_no_probability_is_on_the_decided_side():
    point = OperatingPoint(1.0, (0,) * 5, 0.9, (0.5,) * 5)
    assert point.call([[0, 0, 0.1, 0.3, 0.4999], [0, 0, 0, 0, 1.0]], KINDS).tolist() == [0, 4]


def test_scaling_of_grades_is_found_again():
    rng = np.random.default_rng(0)
    honest = rng.dirichlet(np.ones(4), 6000)
    truth = (rng.random((6000, 1)) > honest.cumsum(axis=1)).sum(axis=1)
    temperature, bias = operating_point.fit_scaling(operating_point.scale(honest, 0.5, (0, 1, -1, 0.6)), truth)
    assert temperature == pytest.approx(2, rel=0.1)
    assert bias == (0, *(pytest.approx(one, abs=0.1) for one in (-0.5, 0.5, -0.3)))
