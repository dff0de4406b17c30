"""Fits of the reference, its cross-fitted distances and its limit."""

import numpy as np
import pytest

from thyroid.model.novelty import fit
from thyroid.model.novelty.novelty import PICTURE

OWN = len(PICTURE)


def drawn(count: int, width: int = 60, seed: int = 0) -> np.ndarray:
    """Statistics of pictures, and features with two strong common factors."""
    rng = np.random.default_rng(seed)
    factors = np.random.default_rng(99).normal(0, 1, (2, width))
    features = rng.normal(0, 2, (count, 2)) @ factors + rng.normal(0, 1, (count, width))
    return np.hstack([pictures(count, seed), features]).astype(np.float32)


def pictures(count: int, seed: int) -> np.ndarray:
    """Statistics of grey pictures that differ in brightness, two of which depend on each other."""
    rng = np.random.default_rng(seed + 500)
    mean = rng.normal(90, 12, (count, 1))
    deviation, across, down = mean / 2 + rng.normal(0, 2, (count, 1)), *rng.normal(9, 1, (2, count, 1))
    return np.hstack([mean, deviation, across, down, np.zeros((count, 1)), rng.beta(2, 20, (count, 2))])


@pytest.mark.parametrize("count", [40, 200])
def test_the_directions_are_the_principal_components(count):
    """With fewer images than features, and with more."""
    given = drawn(count)
    reference = fit.fit(given)
    given = given[:, OWN:]
    scaled = (given - given.mean(axis=0)) / given.std(axis=0)
    k = len(reference.variances)
    _, singular, directions = np.linalg.svd(scaled, full_matrices=False)
    variances = singular**2 / (count - 1)
    assert k == count // 8
    np.testing.assert_allclose(np.sort(reference.variances)[::-1], variances[:k], rtol=1e-4)
    same = np.abs((reference.directions[:, ::-1] * directions[:k].T).sum(axis=0))
    np.testing.assert_allclose(same, 1, atol=1e-3)
    assert reference.residual == pytest.approx(variances[k:].sum() / (60 - k), rel=1e-4)
    np.testing.assert_allclose(reference.directions.T @ reference.directions, np.eye(k), atol=1e-4)


def test_training_images_are_at_a_distance_of_about_one():
    distance = fit.fit(drawn(300)).distance(drawn(300))
    assert np.sqrt((distance**2).mean()) == pytest.approx(1, abs=0.1)  # less by the ridge and the floors


@pytest.mark.parametrize("given", [np.zeros((20, 15)), np.ones((2, 11)), np.eye(10), drawn(9)[:, : OWN + 2]])
def test_degenerate_features_give_finite_distances(given):
    reference = fit.fit(given.astype(np.float32))
    assert np.isfinite(reference.distance(given + 1)).all()
    assert min(reference.scale.min(), reference.variances.min(), reference.residual) > 0


def test_a_channel_that_is_almost_never_active_does_not_drown_the_others():
    given = drawn(100)
    given[:, OWN + 5] = 0
    given[0, OWN + 5] = 1e-3
    reference = fit.fit(given)
    other = drawn(1, seed=1)
    quiet, active = other.copy(), other.copy()
    quiet[0, OWN + 5], active[0, OWN + 5] = 0, 0.01
    assert reference.distance(active)[0] < 1.1 * reference.distance(quiet)[0]


def test_a_tint_that_nobody_sees_is_not_far_and_colour_is():
    """The training images are grey, so that their own deviation of colour is zero."""
    reference, grey = fit.fit(drawn(100)), drawn(1, seed=1)
    tinted, coloured = grey.copy(), grey.copy()
    tinted[0, PICTURE.index("colour")], coloured[0, PICTURE.index("colour")] = 0.25, 12
    near, tint, far = (reference.distance(one)[0] for one in (grey, tinted, coloured))
    assert tint < 1.2 * near
    assert far > 3 * near


def test_cross_fitted_distances_are_those_of_unseen_patients():
    """With fewer images than features a reference fits its own closely. All images of a patient stay together."""
    given = np.repeat(drawn(40), 2, axis=0)
    patients = np.repeat(np.arange(40) * 3, 2)
    fitted, crossed = fit.fit(given).distance(given), fit.cross_fitted(given, patients, seed=0)
    unseen = fit.fit(given).distance(drawn(200, seed=1))
    assert np.median(crossed) == pytest.approx(np.median(unseen), rel=0.1)
    assert np.median(fitted) < 0.95 * np.median(unseen)
    np.testing.assert_allclose(crossed[::2], crossed[1::2], rtol=1e-5)
    np.testing.assert_array_equal(fit.cross_fitted(given, patients, seed=0), crossed)


@pytest.mark.parametrize("patients", [5, 20, 100])
def test_the_limit_passes_patients_of_the_same_kind(patients):
    """About the nominal share of log-normal distances, however few patients it was locked on.

    Training patients are nearer, but differ from each other as much.
    """
    rng, passed = np.random.default_rng(0), []
    for _ in range(300):
        distances, fitted = np.exp(rng.normal(0.2, 0.1, patients)), np.exp(rng.normal(0, 0.1, 50))
        found = fit.limit(distances, np.arange(patients), fitted, np.arange(50))
        passed.append(np.mean(np.exp(rng.normal(0.2, 0.1, 500)) <= found))
    assert np.mean(passed) == pytest.approx(0.995, abs=0.004)


def test_the_limit_is_of_each_patients_largest_distance():
    largest = np.array([1.0, 1.2, 1.1, 1.3])
    distances = np.concatenate([largest, largest * 0.5, largest * 0.9])
    patients = np.tile(["a", "b", "c", "d"], 3)
    fitted = np.exp(np.random.default_rng(0).normal(0, 0.2, 20))
    one_each = fit.limit(largest, np.arange(4), fitted, np.arange(20))
    assert fit.limit(distances, patients, fitted, np.arange(20)) == pytest.approx(one_each)
    assert fit.limit(np.full(4, 1.5), np.arange(4), np.ones(2), np.arange(2)) == pytest.approx(1.5)


def test_a_few_patients_that_are_alike_by_chance_do_not_make_the_limit_tight():
    """Three validation patients have hardly a deviation of their own; the training patients' counts."""
    alike, fitted = np.array([1.0, 1.001, 0.999]), np.exp(np.random.default_rng(0).normal(0, 0.2, 60))
    assert fit.limit(alike, np.arange(3), fitted, np.arange(60)) > np.exp(2 * 0.2)


def test_whole_patients_are_drawn():
    patients = np.random.default_rng(0).integers(0, 30, 200)
    rows = fit.draw(patients, seed=1, most=50)
    assert 40 <= len(rows) <= 50
    assert not set(patients[rows]) & set(np.delete(patients, rows))
    np.testing.assert_array_equal(rows, fit.draw(patients, seed=1, most=50))
    assert set(rows) != set(fit.draw(patients, seed=2, most=50))
    np.testing.assert_array_equal(fit.draw(patients[:50], seed=1, most=50), np.arange(50))
    np.testing.assert_array_equal(fit.draw(np.zeros(50), seed=1, most=49), np.arange(50))
    assert len(fit.draw(np.zeros(0), seed=1)) == 0
