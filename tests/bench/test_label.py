"""How the benchmark of the labelling bench counts; its figures are not tested."""

import importlib

import numpy as np
import pytest

from tests.support import ROOT
from thyroid.label.frames import Frame
from thyroid.label.proposals import Proposed
from thyroid.model.locator import iou

WIDTH = 400


@pytest.fixture(scope="module")
def label():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "bench")
        yield importlib.import_module("label")


TRUTH = (100, 80, 60, 50)
NEAR = (102, 81, 58, 50)
MENDABLE = (112, 80, 60, 42)
FAR = (300, 10, 40, 40)


def test_a_box_that_fits_is_accepted_and_saved_with_one_key(label):
    acts, how, fits = label.read_with([NEAR, FAR], [TRUTH], WIDTH)
    assert (acts, dict(how), fits) == (label.AT_ONCE, {"accepted": 1}, [iou(NEAR, TRUTH)])
    assert acts.seconds == pytest.approx(label.LOOK + label.KEY)
    assert acts.events == 1


def test_another_proposal_than_the_best_takes_a_key_more(label):
    acts, how, _ = label.read_with([FAR, NEAR], [TRUTH], WIDTH)
    assert (acts, how["accepted"]) == (label.Acts(keys=2), 1)


def test_what_no_proposal_fits_is_drawn_at_the_price_of_drawing(label):
    acts, how, fits = label.read_with([FAR], [TRUTH], WIDTH)
    assert (acts, dict(how), fits) == (label.draw_all([TRUTH]), {"drawn": 1}, [1.0])
    assert acts.seconds == pytest.approx(label.LOOK + label.DRAWN + label.KEY)


def test_a_box_that_a_few_keys_mend_is_corrected(label):
    assert iou(MENDABLE, TRUTH) < label.ACCEPTED
    acts, how, _ = label.read_with([MENDABLE], [TRUTH], WIDTH)
    assert dict(how) == {"corrected": 1}
    assert acts.points == 0
    assert 3 <= acts.keys < 2 + label.DRAWN / label.KEY
    assert label.nudges(TRUTH, TRUTH, WIDTH) == 0
    assert label.nudges(FAR, TRUTH, WIDTH) is None


def test_a_proposal_belongs_to_one_nodule(label):
    other = (105, 82, 60, 50)
    assert label.pairs([NEAR], [TRUTH, other]) == {0: 0}
    _, how, _ = label.read_with([NEAR], [TRUTH, (112, 95, 60, 50)], WIDTH)
    assert dict(how) == {"accepted": 1, "drawn": 1}


def test_a_ratio_of_sums_has_an_interval_over_patients(label):
    patient = np.repeat(np.arange(30), 2)
    found = label.ratio(np.full(60, 3.0), np.full(60, 2.0), patient)
    assert (found.value, found.low, found.high) == pytest.approx((1.5, 1.5, 1.5))
    uneven = label.ratio(np.arange(60.0), np.full(60, 20.0), patient)
    assert uneven.low < uneven.value < uneven.high


class Untrained:
    """A study without pictures, whose locator is unsure of the patients with the highest numbers."""

    def __init__(self) -> None:
        self.listed = tuple(
            Frame(f"{patient:03d}-{number}.jpg", "", 9, 9, patient, "B", f"patient-{patient:03d}")
            for patient in range(100)
            for number in (1, 2)
        )
        rng = np.random.default_rng(0)
        self.descriptors = {frame.path: rng.normal(size=8).astype(np.float32) for frame in self.listed}
        self.trainings: list[int] = []

    def rows(self, groups):
        return np.flatnonzero([frame.group in set(groups) for frame in self.listed])

    def trained(self, name, rows, seed):
        self.trainings.append(len(rows))

    def proposed(self, network, rows):
        frames = [self.listed[row] for row in rows]
        told = {"malignant": 0.5, "decision": "abstain", "model": "bench"}
        return {
            one.path: Proposed(boxes=(((0, 0, 5, 5), 1 - one.patient / 100),), unsure=one.patient >= 80, **told)
            for one in frames
        }


def test_the_order_chooses_whole_patients_round_by_round_from_the_pool_alone(label):
    study = Untrained()
    pool = sorted({frame.group for frame in study.listed if frame.patient % 10})
    start = pool[: label.START]
    chosen = label.chosen_by_order(study, pool, start, "curve", 0)
    assert chosen[: label.START] == start
    assert len(set(chosen)) == len(chosen) == label.TOTAL
    assert set(chosen) <= set(pool)
    assert study.trainings == [2 * label.START, 2 * (label.START + label.ROUND)]
    unsure = {frame.group for frame in study.listed if frame.patient > 80} & set(pool)
    assert len(unsure & set(chosen[label.START :])) >= 0.8 * len(unsure)
