"""What automatic boxes cost, on numbers that were worked out by hand."""

import pandas as pd
import pytest

from thyroid.data.filenames import SCORE
from thyroid.evaluate import gate
from thyroid.evaluate.boxes import cost
from thyroid.metrics import Interval
from thyroid.model.operating_point import OperatingPoint

POINT = OperatingPoint(1.0, (0, 0), 0.5, (0.5, 0.5))
BAND = OperatingPoint(1.0, (0, 0), 0.5, (0.5, 0.5), (0.4, 0.6))


def frames_of(given: list[float], automatic: list[float], labels: str, unsure: tuple[int, ...] = ()) -> pd.DataFrame:
    """Frames of as many patients."""
    number = range(len(given))
    content = {"path": [f"{n}.jpg" for n in number], "label": list(labels), "patient": number}
    return pd.DataFrame(content | {"given": given, "automatic": automatic, "unsure": [n in unsure for n in number]})


def test_a_frame_counts_once_with_the_mean_over_its_nodules():
    given = pd.DataFrame({"path": ["a", "b", "a", "came-cropped"], SCORE: [0.2, 0.9, 0.6, 0.1]})
    automatic = pd.DataFrame({"path": ["b", "a"], "label": ["M", "B"], "patient": [7, 3], SCORE: [0.8, 0.3]})
    boxes = pd.DataFrame({"path": ["a", "b", "c"], "unsure": [True, False, True]})
    paired = cost.pair(given, automatic, boxes)
    assert paired["path"].tolist() == ["b", "a"]
    assert paired["given"].tolist() == [0.9, pytest.approx(0.4)]
    assert paired["automatic"].tolist() == [0.8, 0.3]
    assert paired["unsure"].tolist() == [False, True]
    assert paired["patient"].tolist() == [7, 3]
    assert paired["label"].tolist() == ["M", "B"]


def test_flips_count_abstentions():
    frames = frames_of([0.3, 0.55, 0.7, 0.7], [0.3, 0.7, 0.45, 0.2], "BBMM")
    assert cost.flips(frames, POINT).tolist() == [False, False, True, True]
    assert cost.flips(frames, BAND).tolist() == [False, True, True, True]


def test_every_figure_of_six_frames():
    """Given boxes order all 9 pairs rightly. With automatic ones, the malignant .4 is below the benign .45."""
    given = [0.1, 0.2, 0.3, 0.6, 0.7, 0.8]
    automatic = [0.1, 0.45, 0.2, 0.4, 0.7, 0.9]
    found = cost.measure(frames_of(given, automatic, "BBBMMM", unsure=(1, 3)), POINT)
    assert (found.frames, found.patients) == (6, 6)
    assert found.given.value == 1
    assert found.automatic.value == pytest.approx(8 / 9)
    assert found.difference.value == pytest.approx(-1 / 9)
    # ranks of the automatic scores: 1 4 2 3 5 6, so the squared differences are 0 4 1 1 0 0
    assert found.rank_correlation.value == pytest.approx(1 - 6 * 6 / (6 * 35))
    assert found.flips == 1
    assert (found.sure_frames, found.sure_flips) == (4, 0)
    assert (found.sure_given.value, found.sure_automatic.value) == (1, 1)
    assert found.allowed == gate.BOXES_MARGIN == 0.15


def test_patients_are_drawn_whole():
    """Copies of each patient's frame are no further evidence, so no interval gets narrower."""
    given = [0.1, 0.5, 0.3, 0.6, 0.4, 0.8, 0.2, 0.9] * 2
    automatic = [0.1, 0.6, 0.2, 0.4, 0.5, 0.9, 0.3, 0.2] * 2
    one = frames_of(given, automatic, "BBBBMMMM" * 2)
    twice = pd.concat([one, one], ignore_index=True)
    alone, doubled = cost.measure(one, POINT), cost.measure(twice, POINT)
    assert doubled.frames == 2 * alone.frames
    assert doubled.patients == alone.patients
    for name in ("difference", "rank_correlation", "automatic"):
        assert getattr(doubled, name).low == pytest.approx(getattr(alone, name).low)


def test_sure_frames_of_one_class_have_no_auroc():
    found = cost.measure(frames_of([0.1, 0.2, 0.8], [0.1, 0.3, 0.8], "BBM", unsure=(2,)), POINT)
    assert (found.sure_frames, found.sure_given, found.sure_automatic) == (2, None, None)
    assert "sure_given" not in found.to_dict()


def test_boxes_that_change_nothing_are_released():
    scores = [0.1, 0.2, 0.3, 0.6, 0.7, 0.8]
    found = cost.measure(frames_of(scores, scores, "BBBMMM"), POINT)
    assert found.difference == Interval(0, 0, 0)
    assert found.rank_correlation.value == 1
    assert (found.released, found.reason, found.flips) == (True, None, 0)


def test_boxes_that_turn_the_order_round_are_not():
    scores = [0.1, 0.2, 0.3, 0.6, 0.7, 0.8]
    found = cost.measure(frames_of(scores, scores[::-1], "BBBMMM"), POINT)
    assert found.difference.value == -1
    assert found.rank_correlation.value == -1
    assert (found.released, found.flips) == (False, 6)
    assert str(found.difference) in found.reason


@pytest.mark.parametrize(
    ("low", "released"), [(-0.15, True), (-0.149, True), (0.1, True), (-0.151, False), (None, False)]
)
def test_the_lower_bound_decides(low, released):
    assert (gate.reason_against_boxes(Interval(0.2, low, 0.3)) is None) is released
