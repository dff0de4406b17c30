"""Boxes as a locator might have proposed them."""

import numpy as np
import pytest

from thyroid.imaging import geometry

BOX = (4000, 4000, 200, 120)
SIDE = 10_000
"""Of a frame at whose edges no box of these tests is clipped."""


def drawn(jitter: float, count: int = 500) -> np.ndarray:
    """Errors of boxes: of the centre as shares of the sides, and of the logarithms of the sides."""
    x, y, width, height = BOX
    boxes = np.array([geometry.disturbed(BOX, SIDE, SIDE, jitter, str(seed)) for seed in range(count)], float)
    centre = boxes[:, :2] + boxes[:, 2:] / 2 - [x + width / 2, y + height / 2]
    return np.concatenate([centre / [width, height], np.log(boxes[:, 2:] / [width, height])], axis=1)


@pytest.mark.parametrize("jitter", [0.5, 1.0, 2.0])
def test_errors_are_those_of_a_locator(jitter):
    errors = drawn(jitter)
    expected = jitter * np.array([0.17, 0.17, 0.33, 0.33])
    assert errors.std(axis=0) == pytest.approx(expected, rel=0.1)
    assert np.abs(errors.mean(axis=0)) == pytest.approx(0, abs=4 * expected.max() / 500**0.5)
    assert np.abs(np.corrcoef(errors.T) - np.eye(4)).max() < 0.2


def test_the_seed_decides_and_jitter_only_scales():
    assert geometry.disturbed(BOX, SIDE, SIDE, 1.0, "a") == geometry.disturbed(BOX, SIDE, SIDE, 1.0, "a")
    assert geometry.disturbed(BOX, SIDE, SIDE, 1.0, "a") != geometry.disturbed(BOX, SIDE, SIDE, 1.0, "b")
    assert drawn(2.0, 50) == pytest.approx(2 * drawn(1.0, 50), abs=0.05)


def test_a_draw_is_the_same_on_every_machine_and_in_every_release():
    """The names of the store's crops depend on it: after a change every store would make them again."""
    assert geometry.disturbed((100, 80, 60, 40), 400, 300, 1.0, "scan (100, 80, 60, 40)") == (70, 68, 73, 52)


def test_no_jitter_is_the_box_itself():
    for box in ((3, 5, 7, 9), (0, 0, 100, 81), (11, 0, 45, 30)):
        assert geometry.disturbed(box, 100, 81, 0.0, "any") == box


def test_it_stays_inside_the_frame_and_large_enough_or_is_the_true_box():
    kept = 0
    for seed in range(300):
        box = geometry.disturbed((80, 2, 18, 14), 100, 81, 2.0, str(seed))
        x, y, width, height = box
        assert x >= 0 <= y
        assert x + width <= 100
        assert y + height <= 81
        assert min(width, height) >= geometry.LEAST_SIDE
        assert {type(value) for value in box} == {int}
        kept += box == (80, 2, 18, 14)
    assert 0 < kept < 300
    assert geometry.disturbed((5, 5, 4, 3), 100, 81, 0.1, "small") == (5, 5, 4, 3)
