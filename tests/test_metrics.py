import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from thyroid import metrics


@given(st.integers(0, 10_000), st.integers(2, 30), st.integers(2, 12))
@settings(deadline=None, max_examples=60)
def test_weighted_area_is_scikit_learns(seed, patients, levels):
    rng = np.random.default_rng(seed)
    patient = rng.integers(0, patients, 60)
    truth = np.arange(60) % 3 == 0
    score = rng.integers(0, levels, 60) / levels  # many ties
    weights = metrics.patient_draws(patient, 20, rng)
    ours = metrics._weighted_auroc(truth, score, weights, np.zeros(60, int))
    for row, area in zip(weights, ours, strict=True):
        kept = row > 0
        if len(set(truth[kept])) == 2:
            assert area == pytest.approx(roc_auc_score(truth[kept], score[kept], sample_weight=row[kept]))
        else:
            assert np.isnan(area)


def test_draws_are_of_whole_patients():
    patient = np.array([1, 1, 2, 3, 3, 3])
    draws = metrics.patient_draws(patient, 500, np.random.default_rng(0))
    assert (draws[:, 0] == draws[:, 1]).all()
    assert (draws[:, 3] == draws[:, 5]).all()
    assert (draws[:, [0, 2, 3]].sum(axis=1) == 3).all()
    assert draws.mean() == pytest.approx(1, abs=0.05)


def test_interval_is_wider_when_images_share_patients():
    rng = np.random.default_rng(0)
    truth = np.repeat(rng.random(60) < 0.5, 5)
    score = np.repeat(rng.random(60), 5) + 0.5 * truth
    clustered = metrics.auroc(truth, score, np.repeat(np.arange(60), 5))
    independent = metrics.auroc(truth, score, np.arange(300))
    assert clustered.value == independent.value
    assert clustered.high - clustered.low > 1.5 * (independent.high - independent.low)


def test_interval_covers_as_often_as_it_says():
    """Normal scores one deviation apart: the true area is Phi(1 / sqrt 2) = .7602."""
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(200):
        truth = np.arange(80) % 2 == 0
        interval = metrics.auroc(truth, rng.normal(truth, 1), np.arange(80), draws=400)
        hits += interval.low <= 0.7602 <= interval.high
    assert 0.90 <= hits / 200 <= 0.985


def test_blocks_do_not_change_the_interval(monkeypatch):
    rng = np.random.default_rng(0)
    truth, score = rng.random(50) < 0.4, rng.random(50)
    whole = metrics.auroc(truth, score, np.arange(50))
    monkeypatch.setattr(metrics, "_BLOCK_CELLS", 1)
    assert metrics.auroc(truth, score, np.arange(50)) == whole


def test_pairs_count_within_a_fold_only():
    """One fold's model answers on another scale: pooled it looks like chance, within folds it is perfect."""
    truth = np.array([0, 1, 0, 1, 0, 1])
    score = np.array([0.1, 0.2, 0.5, 0.6, 0.8, 0.9])
    fold = np.array([1, 1, 2, 2, 3, 3])
    assert metrics.auroc(truth, score, np.arange(6), fold=fold).value == 1
    assert metrics.auroc(truth, score, np.arange(6)).value == pytest.approx(roc_auc_score(truth, score))
    rng = np.random.default_rng(0)
    truth, score, fold = rng.random(90) < 0.4, rng.random(90), rng.integers(0, 3, 90)
    areas = [roc_auc_score(truth[fold == f], score[fold == f]) for f in range(3)]
    pairs = [truth[fold == f].sum() * (~truth[fold == f]).sum() for f in range(3)]
    assert metrics.auroc(truth, score, np.arange(90), fold=fold).value == pytest.approx(
        np.average(areas, weights=pairs)
    )


def test_a_paired_difference_is_surer_than_two_intervals():
    rng = np.random.default_rng(0)
    truth = rng.random(200) < 0.4
    score = rng.normal(truth, 1)
    other = score + rng.normal(0, 0.1, 200)
    patient = np.arange(200)
    difference = metrics.auroc_difference(truth, score, other, patient)
    one, two = metrics.auroc(truth, score, patient), metrics.auroc(truth, other, patient)
    assert difference.value == pytest.approx(one.value - two.value)
    assert difference.high - difference.low < 0.3 * (one.high - one.low)
    assert metrics.auroc_difference(truth, score, score, patient) == metrics.Interval(0, 0, 0)


def test_one_class_and_nan_are_refused():
    with pytest.raises(ValueError, match="both classes"):
        metrics.auroc([1, 1], [0.1, 0.2], [1, 2])
    with pytest.raises(ValueError, match="finite"):
        metrics.auroc([0, 1], [0.1, np.nan], [1, 2])


def test_one_patient_has_a_value_and_a_degenerate_interval():
    interval = metrics.auroc([0, 1, 1], [0.1, 0.2, 0.05], [7, 7, 7])
    assert interval.value == interval.low == interval.high == 0.5


def test_accuracy_and_majority():
    assert metrics.accuracy([0, 0, 1, 1], [0.2, 0.7, 0.8, 0.4]) == 0.5
    assert metrics.majority([0, 0, 0, 1]) == 0.75


def test_reads_as_text():
    assert str(metrics.Interval(0.8125, 0.75, 0.9)) == "0.812 [0.750, 0.900]"
    assert str(metrics.Interval(0.5, None, None)) == "0.500 [n/a]"
