"""Metrics of boxes, against values computed by hand."""

import numpy as np
import pytest

from thyroid import metrics
from thyroid.metrics import detection

MARKED = [[(0, 0, 10, 10)], [(20, 20, 10, 10), (50, 50, 10, 10)]]


def test_iou_of_every_pair():
    found = detection.iou([(0, 0, 4, 4), (0, 0, 2, 4)], [(2, 0, 4, 4), (0, 0, 4, 4), (9, 9, 1, 1)])
    assert found == pytest.approx(np.array([[1 / 3, 1, 0], [0, 0.5, 0]]))


def test_the_best_box_is_compared_with_the_nodule_that_it_fits_best():
    proposals = [[(0, 0, 10, 8), (0, 0, 1, 1)], [(0, 0, 5, 5), (50, 50, 10, 10)]]
    fits = detection.compare(proposals, MARKED)
    assert fits.iou == pytest.approx([0.8, 0])
    assert fits.hit.tolist() == [True, False]
    assert fits.centre.tolist() == [True, False]
    assert fits.recall == pytest.approx([1, 0.5])


def test_only_three_proposals_count_for_the_recall():
    far = [(90 + n, 90, 3, 3) for n in range(3)]
    assert detection.compare([[*far, (0, 0, 10, 10)]], MARKED[:1]).recall == pytest.approx([0])


def precision(proposals, scores) -> float:
    patient = [1, 2]
    draws = metrics.Draws(patient, 0)
    return float(detection.average_precision_draws(proposals, scores, MARKED, patient, draws)[0])


def test_average_precision():
    # hit (.9), miss (.8), hit (.7); one of three nodules is never found:
    # precision 1 up to a recall of 1/3, then 2/3 up to 2/3
    proposals = [[(0, 0, 10, 10), (30, 0, 5, 5)], [(50, 50, 10, 10)]]
    assert precision(proposals, [[0.9, 0.8], [0.7]]) == pytest.approx(1 / 3 + 2 / 3 * 1 / 3)


def test_a_nodule_counts_once():
    # the second box fits the same nodule and is a false positive
    proposals = [[(0, 0, 10, 10), (0, 0, 10, 9)], [(20, 20, 10, 10)]]
    assert precision(proposals, [[0.9, 0.8], [0.7]]) == pytest.approx(1 / 3 + 2 / 3 * 1 / 3)


def test_equal_scores_count_together_whatever_the_order():
    hit, miss = [(0, 0, 10, 10)], [(30, 0, 5, 5)]
    for marked, proposals in ((MARKED, [hit, miss]), (MARKED[::-1], [miss, hit])):
        draws = metrics.Draws([1, 2], 0)
        found = detection.average_precision_draws(proposals, [[1.0], [1.0]], marked, [1, 2], draws)
        assert found[0] == pytest.approx(1 / 3 * 1 / 2)


def test_average_precision_on_draws_counts_patients_that_often():
    proposals, scores = [[(0, 0, 10, 10)], [(0, 0, 1, 1)]], [[0.9], [0.8]]
    draws = metrics.Draws([1, 2], 200, seed=0)
    found = detection.average_precision_draws(proposals, scores, MARKED, [1, 2], draws)
    only_first = (draws.counts == [2, 0]).all(1)
    only_second = (draws.counts == [0, 2]).all(1)
    assert found[only_first] == pytest.approx(np.ones(only_first.sum()))
    assert found[only_second] == pytest.approx(np.zeros(only_second.sum()))


def test_mean_interval_resamples_patients():
    patient = np.repeat(np.arange(10), 10)
    grouped = detection.mean_interval(patient < 5, patient)  # all frames of a patient agree
    mixed = detection.mean_interval(np.arange(100) % 2 == 0, patient)
    assert grouped.value == mixed.value == 0.5
    assert grouped.high - grouped.low > 4 * (mixed.high - mixed.low)


def test_a_perfect_sample_has_an_exact_interval():
    found = detection.mean_interval(np.ones(20), np.arange(20))
    assert (found.value, found.high) == (1, 1)
    assert found.low == pytest.approx(metrics.clopper_pearson(20, 20)[0])
