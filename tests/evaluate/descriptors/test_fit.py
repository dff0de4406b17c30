"""A finding is fitted on frozen features, and judged by what it says of patients that it did not see."""

import numpy as np
import pandas as pd
import pytest

from thyroid import metrics
from thyroid.evaluate.descriptors import audit, fit, lock, measure
from thyroid.evaluate.descriptors.audit import Known, Leaks
from thyroid.evaluate.descriptors.fit import Features

PATIENTS, D = 120, 8


@pytest.fixture
def random():
    return np.random.default_rng(0)


def known(exact, blanked=None, numbers=None, disturbed=None, place=()) -> Known:
    """Two images of each patient, whose folds go by patient."""
    patient = np.repeat(np.arange(len(exact) // 2), 2)
    disturbed = np.zeros((0, exact.shape[1])) if disturbed is None else disturbed
    made = Features(
        exact.astype(np.float32),
        disturbed.astype(np.float32),
        np.array(place, np.intp),
        patient % 5 + 1,
        None if blanked is None else blanked.astype(np.float32),
    )
    return Known(made, patient, numbers or {}, seed=0)


def drawn(random, strength: float):
    """Features of two images of each patient, of which one carries a value, and the value."""
    truth = np.repeat(random.integers(0, 2, PATIENTS), 2).astype(float)
    exact = random.normal(0, 1, (2 * PATIENTS, D))
    exact[:, 3] += strength * truth
    return exact, truth


def judged(truth, images, leaks=None):
    return lock._finding(("margin", "lobulated"), truth, images, leaks or Leaks())


def test_signal_is_given_out(random):
    exact, truth = drawn(random, 3)
    record, fitted = judged(truth, known(exact))
    assert (record.given, record.why, record.detail) == (True, None, "")
    assert record.development.low > 0.9
    assert (record.patients_with, record.patients_without) == (truth.sum() / 2, PATIENTS - truth.sum() / 2)
    assert 0 <= record.exclude <= record.threshold <= record.sure <= 1
    whole = 1 / (1 + np.exp(-(exact @ fitted.weight + fitted.bias)))
    assert whole[truth == 1].mean() > 0.7
    assert whole[truth == 0].mean() < 0.3


def test_noise_is_withheld(random):
    exact, truth = drawn(random, 0)
    record, _ = judged(truth, known(exact))
    assert (record.given, record.why) == (False, "auroc")
    assert record.development.low < 0.6
    assert str(record.development) in record.detail


def test_the_lower_bound_over_patients_decides(random):
    exact, truth = drawn(random, 0.3)
    images = known(exact)
    record, fitted = judged(truth, images)
    patient, fold = images.patient, images.features.fold
    assert record.development == metrics.auroc(truth == 1, fitted.probability, patient, seed=0, fold=fold)
    assert record.development.value > lock.LOWEST_AUROC > record.development.low
    assert record.why == "auroc"


def test_signal_in_the_surroundings_is_withheld(random):
    exact, truth = drawn(random, 3)
    record, _ = judged(truth, known(exact, blanked=exact))
    assert (record.given, record.why) == (False, "surroundings")
    assert record.kept == pytest.approx(1)
    assert record.blanked == record.development
    elsewhere, _ = judged(truth, known(exact, blanked=random.normal(0, 1, exact.shape)))
    assert elsewhere.given
    assert elsewhere.kept < 0.5


def test_images_without_a_region_are_left_out_of_the_blanked_ones(random):
    exact, truth = drawn(random, 3)
    blanked = exact.copy()
    blanked[: PATIENTS // 2] = np.nan
    record, _ = judged(truth, known(exact, blanked=blanked))
    assert record.why == "surroundings"
    unknown, _ = judged(truth, known(exact, blanked=np.full_like(exact, np.nan)))
    assert (unknown.blanked, unknown.kept, unknown.given) == (None, None, True)


def test_a_column_that_gives_the_class_away_is_withheld_and_measured(random):
    exact, truth = drawn(random, 3)
    record, fitted = judged(truth, known(exact), Leaks({"margin": "column margins gives the class away"}))
    assert (record.given, record.why) == (False, "gives_class_away")
    assert record.detail == "column margins gives the class away"
    assert record.development.low > 0.9
    assert fitted is not None
    unknown, _ = judged(truth, known(exact), Leaks(unknown={"margin": "too few patients"}))
    assert unknown.why == "too_few"
    assert "too few patients" in unknown.detail


def test_masked_images_are_neither_learnt_from_nor_measured(random):
    """Half of the patients have no word; what their features say would spoil the finding."""
    exact, truth = drawn(random, 3)
    half = np.arange(2 * PATIENTS) < PATIENTS
    masked = np.where(half, np.nan, truth)
    spoilt = exact.copy()
    spoilt[half, 3] = random.normal(0, 100, half.sum())
    record, fitted = judged(masked, known(spoilt))
    assert record.given
    assert record.patients_with == len(np.unique(np.repeat(np.arange(PATIENTS), 2)[masked == 1]))
    same = fit.finding(known(exact[~half]).features, truth[~half])
    np.testing.assert_allclose(fitted.weight, same.weight, rtol=0.3, atol=0.05)
    assert np.isfinite(fitted.probability).all(), "unlabelled images are told, too"


@pytest.mark.parametrize(("with_it", "without"), [(9, 100), (100, 9), (0, 100), (100, 0)])
def test_few_patients_are_not_fitted(random, with_it, without):
    exact = random.normal(0, 1, (2 * (with_it + without), D))
    truth = np.repeat([1.0, 0.0], [2 * with_it, 2 * without])
    record, fitted = judged(truth, known(exact))
    assert fitted is None
    assert (record.given, record.why, record.threshold, record.development) == (False, "too_few", None, None)
    assert str(with_it) in record.detail
    assert str(without) in record.detail


def test_without_folds_nothing_is_fitted(random):
    exact, truth = drawn(random, 3)
    images = known(exact)
    images.features.fold[:] = 0
    record, fitted = judged(truth, images)
    assert fitted is None
    assert record.why == "too_few"


def test_a_fold_without_a_value_in_the_others_is_left_out(random):
    """All patients with the value are in fold 1: its images cannot be scored, and the others have one value only."""
    exact, _ = drawn(random, 3)
    images = known(exact)
    truth = (images.features.fold == 1).astype(float)
    record, fitted = judged(truth, images)
    assert fitted is None
    assert record.why == "too_few"


def test_the_twin_of_a_held_out_image_is_not_learnt_from(random):
    """Each patient's two images have the same features and the same random value: by patient nothing can be told."""
    exact = np.repeat(random.normal(0, 1, (PATIENTS, 200)), 2, axis=0)
    truth = np.repeat(random.integers(0, 2, PATIENTS), 2).astype(float)
    record, _ = judged(truth, known(exact))
    assert record.development.low < 0.6


def test_disturbed_crops_are_learnt_from_in_the_fold_of_their_image(random):
    """What disturbed crops alone show is learnt; copies of held-out images are not."""
    truth = np.repeat(random.integers(0, 2, PATIENTS), 2).astype(float)
    exact = random.normal(0, 1, (2 * PATIENTS, D))
    exact[:, 5] += 2 * truth
    place = np.arange(2 * PATIENTS)
    clear = exact.copy()
    clear[:, 3] += 3 * truth
    with_them = fit.finding(known(exact, disturbed=clear, place=place).features, truth).weight
    without = fit.finding(known(exact).features, truth).weight
    assert with_them[3] / with_them[5] > 2 * abs(without[3] / without[5])
    own = np.repeat(random.normal(0, 1, (PATIENTS, 200)), 2, axis=0)
    copies, _ = judged(truth, known(own, disturbed=own, place=place))
    assert copies.development.low < 0.6, "each copy is in the fold of its image"


def test_probabilities_are_calibrated_out_of_fold(random):
    exact, truth = drawn(random, 1.5)
    probability = fit.finding(known(exact).features, truth).probability
    for low, high in ((0, 0.4), (0.4, 0.6), (0.6, 1)):
        inside = (probability >= low) & (probability < high)
        assert probability[inside].mean() == pytest.approx(truth[inside].mean(), abs=0.15)


def test_shortcuts_are_told_by_numbers(random):
    exact, truth = drawn(random, 3)
    numbers = {
        "box_size": np.column_stack([truth + random.normal(0, 0.1, len(truth)), random.normal(0, 1, len(truth))]),
        "patient_number": random.normal(0, 1, (len(truth), 1)),
        "grey_levels": np.full((len(truth), 2), np.nan),
    }
    record, _ = judged(truth, known(exact, numbers=numbers))
    assert set(record.shortcuts) == {"box_size", "patient_number"}
    assert record.shortcuts["box_size"].low > 0.9
    assert record.shortcuts["patient_number"].low < 0.6
    assert record.given, "the sides of a box may be the shape"
    assert set(audit.SHORTCUTS) >= set(record.shortcuts)


def test_limits_keep_their_shares():
    positive = np.repeat([True, False], 100)
    probability = np.concatenate([np.linspace(0.2, 1, 100), np.linspace(0, 0.8, 100)])
    exclude, threshold, sure = lock.limits(positive, probability)
    assert (probability[positive] >= exclude).mean() >= 0.95
    assert (probability[~positive] < sure).mean() >= 0.95
    assert exclude < threshold < sure
    rare = np.array([False] * 6 + [True, False, True, True])
    assert lock.limits(rare, np.linspace(0.05, 0.5, 10))[1] == pytest.approx(0.325), "the largest sum of shares"
    perfect = np.where(positive, 0.9, 0.1)
    assert lock.limits(positive, perfect) == pytest.approx((0.5, 0.5, 0.5))


def test_figures_on_test_patients_resample_patients():
    """Four equal views of each patient say no more than one."""
    patient = np.arange(30)
    one = pd.DataFrame({"patient": patient, "positive": patient % 3 == 0, "probability": (patient * 7 % 30) / 30})
    four = pd.concat([one] * 4, ignore_index=True)
    single, several = measure.figures(one, 0.5, seed=0), measure.figures(four, 0.5, seed=0)
    assert (single.images, several.images) == (30, 120)
    assert several.patients == single.patients == 30
    assert several.positive_patients == single.positive_patients == 10
    for name in ("auroc", "kappa", "sensitivity", "specificity"):
        narrow, wide = getattr(several, name), getattr(single, name)
        assert narrow.value == pytest.approx(wide.value)
        assert narrow.high - narrow.low == pytest.approx(wide.high - wide.low, abs=0.05), name
