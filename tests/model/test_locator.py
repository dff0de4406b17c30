"""The locator's answers become boxes on the frame: NumPy alone, as the endpoint does it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from thyroid.imaging import geometry, images, phantom
from thyroid.model import locator
from thyroid.model.locator import Place
from thyroid.records.locate import BoxCalibration

STRIDE, CELLS = 16, 8
SIZE = STRIDE * CELLS


def answer(row: int, column: int, reach: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
    """A heat map with one peak, and boxes that reach as many cells from their centre to each side."""
    heat = np.full((CELLS, CELLS), 0.01, np.float32)
    heat[row, column] = 0.9
    return heat, np.full((CELLS, CELLS, 4), np.log(reach), np.float32)


def test_a_place_is_that_of_the_letterboxed_image():
    frame = np.zeros((120, 300, 3), np.uint8)
    frame[40:80, 60:150] = 255
    place = Place.of((0, 0, 300, 120), SIZE)
    ys, xs = np.nonzero(images.letterbox(frame, SIZE)[..., 0] > 128)
    assert xs.min() == pytest.approx(place.left + 60 * place.scale, abs=1)
    assert xs.max() + 1 == pytest.approx(place.left + 150 * place.scale, abs=1)
    assert ys.min() == pytest.approx(place.top + 40 * place.scale, abs=1)
    assert ys.max() + 1 == pytest.approx(place.top + 80 * place.scale, abs=1)


def test_a_peak_becomes_a_box_in_pixels_of_the_frame():
    heat, distances = answer(4, 4)
    # the scan area is 256 x 256 at (100, 50) of the frame: two pixels of it are one of the input
    (box, value), *_ = locator.propose(heat, distances, STRIDE, Place.of((100, 50, 256, 256), SIZE))
    centre = 4.5 * STRIDE * 2
    half = 2 * STRIDE * 2
    # the eight cells around the peak are centred around it and hardly warm
    assert value == pytest.approx(0.9)
    assert box == pytest.approx((100 + centre - half, 50 + centre - half, 2 * half, 2 * half), abs=1)


def test_proposals_do_not_overlap_and_the_best_one_is_first():
    heat, distances = answer(1, 1, reach=1.0)
    heat[6, 6], heat[1, 3], heat[6, 1] = 0.7, 0.8, 0.6
    found = locator.propose(heat, distances, STRIDE, Place.of((0, 0, SIZE, SIZE), SIZE))
    assert [value for _, value in found] == pytest.approx([0.9, 0.8, 0.7])
    boxes = [box for box, _ in found]
    assert max(locator.iou(one, other) for one in boxes for other in boxes if one is not other) <= locator.OVERLAP


@given(st.integers(1, 400), st.integers(1, 400), st.integers(0, 300), st.integers(0, 300), st.integers(0, 2**32 - 1))
def test_every_box_lies_in_the_scan_area_and_has_a_size(width, height, x, y, seed):
    rng = np.random.default_rng(seed)
    heat = rng.random((CELLS, CELLS), np.float32)
    distances = rng.normal(0, 3, (CELLS, CELLS, 4)).astype(np.float32)
    found = locator.propose(heat, distances, STRIDE, Place.of((x, y, width, height), SIZE))
    assert 1 <= len(found) <= locator.MOST
    for (left, top, wide, high), _ in found:
        assert x <= left
        assert y <= top
        assert wide >= min(8, width)
        assert high >= min(8, height)
        assert left + wide <= x + width
        assert top + high <= y + height


def test_a_flat_heat_map_still_gives_a_box():
    heat = np.zeros((CELLS, CELLS), np.float32)
    assert locator.propose(heat, np.zeros((CELLS, CELLS, 4), np.float32), STRIDE, Place.of((0, 0, 90, 60), SIZE))


def test_the_input_is_what_the_evaluation_reads_from_disk():
    frame = phantom.draw("M", patient=3, image=1).image
    area = geometry.scan_area(frame)
    seen = locator.view(frame, SIZE)
    stored = images.square(images.encode(geometry.normal(frame, area)), SIZE)
    assert (seen.pixels == stored).all()
    assert seen.pixels.shape == (SIZE, SIZE, 3)
    assert seen.place.area == area.box


def test_probability_grows_with_heat_and_with_the_lead():
    calibration = BoxCalibration(intercept=0.0, heat=1.0, lead=0.5)
    alone, contested = locator.probabilities([0.6], calibration), locator.probabilities([0.6, 0.59], calibration)
    assert alone[0] > contested[0] > contested[1]
    assert locator.probabilities([0.8, 0.59], calibration)[0] > contested[0]


def test_extreme_heats_keep_probabilities_between_0_and_1():
    calibration = BoxCalibration(intercept=0.0, heat=100.0, lead=100.0)
    assert locator.probabilities([1.0, 0.0], calibration) == pytest.approx([1.0, 0.0])


def test_iou_of_the_same_and_of_distant_boxes():
    assert locator.iou((0, 0, 4, 4), (0, 0, 4, 4)) == 1
    assert locator.iou((0, 0, 4, 4), (2, 0, 4, 4)) == pytest.approx(1 / 3)
    assert locator.iou((0, 0, 4, 4), (9, 9, 4, 4)) == 0


def test_proposals_that_are_not_the_best_have_a_constant_of_their_own():
    calibration = BoxCalibration(intercept=0.0, heat=0.0, lead=0.0, runner_up=-1.0)
    assert locator.probabilities([0.9, 0.8, 0.1], calibration) == pytest.approx([0.5, 0.2689, 0.2689], abs=1e-4)


def test_a_network_that_has_gone_wrong_leaves_no_frame_without_a_box():
    heat = np.full((CELLS, CELLS), np.nan, np.float32)
    distances = np.full((CELLS, CELLS, 4), np.nan, np.float32)
    assert locator.propose(heat, distances, STRIDE, Place.of((0, 0, 90, 60), SIZE))
