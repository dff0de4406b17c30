"""What is told of test images, beside their words."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from tests.support import toy_descriptors
from thyroid.clinical.descriptors_csv import DescriptorTable
from thyroid.data.filenames import SCORE
from thyroid.evaluate.descriptors import measure
from thyroid.evaluate.descriptors.lock import Locked
from thyroid.model.operating_point import OperatingPoint

SOLID, CYSTIC, NEITHER = (0.1, 0.9), (0.9, 0.1), (0.4, 0.35)
HEAD = toy_descriptors.head(4, [("composition", "cystic"), ("composition", "solid")])


def images(*words) -> tuple[pd.DataFrame, Locked]:
    """An image of each of as many patients with these compositions, and the labels."""
    paths = [f"/s/{number}.jpg" for number in range(len(words))]
    cells = pd.Series([None if word is None else frozenset({word}) for word in words], paths, dtype=object)
    table = DescriptorTable(pd.DataFrame({"composition": cells}), {"composition": "composition"}, [])
    shown = pd.DataFrame({"path": paths, "name": paths, "patient": range(len(words)), "labelled": True, "label": "B"})
    return shown, Locked(HEAD.record, table, HEAD.weight, HEAD.bias)


def test_the_told_word_is_the_present_one_and_none_is_a_word_of_its_own():
    shown, locked = images(*["solid", "cystic"] * 20)
    told = np.array([SOLID, CYSTIC] * 20)
    assert measure._word_kappa(HEAD, shown, locked, told, 0)["composition"].value == 1
    told[::2] = NEITHER  # cystic is the likelier word of the two, but not present
    kappa = measure._word_kappa(HEAD, shown, locked, told, 0)["composition"].value
    assert 0 < kappa < 0.5
    told[::2] = CYSTIC
    assert measure._word_kappa(HEAD, shown, locked, told, 0)["composition"].value == pytest.approx(0)


def test_crops_that_the_word_is_not_for_are_not_compared():
    shown, locked = images(*["solid", "cystic"] * 20)
    wrong = pd.concat([shown, shown.assign(labelled=False)], ignore_index=True)
    told = np.array([SOLID, CYSTIC] * 20 + [CYSTIC, SOLID] * 20)
    assert measure._word_kappa(HEAD, wrong, locked, told, 0)["composition"].value == 1
    found = measure._findings(wrong, locked, told)["composition", "solid"]
    assert found["probability"].tolist() == [SOLID[1], CYSTIC[1]] * 20
    assert found["positive"].tolist() == [True, False] * 20
    points = measure._points(HEAD, wrong, locked, told)
    assert points["labelled_low"].notna().tolist() == [True] * 40 + [False] * 40


def test_the_points_of_the_labels_lie_within_the_interval_or_not():
    """The composition gives no more than 2 points; what else a nodule may have is unknown on both sides."""
    shown, locked = images(*["solid"] * 6, *["cystic"] * 2, None)
    points = measure._points(HEAD, shown, locked, np.array([SOLID] * 5 + [CYSTIC] + [SOLID, CYSTIC] + [SOLID]))
    assert (points["low"].iloc[0], points["low"].iloc[5]) == (2, 0)
    assert points["labelled_low"].iloc[:7].tolist() == [2] * 6 + [0]
    point = OperatingPoint(1.0, (0.0, 0.0), 0.5, (0.5, 0.5), None)
    winner = SimpleNamespace(
        point=point,
        evaluation=SimpleNamespace(serving_domain="cropped"),
        tested=lambda domain: pd.DataFrame({"file": shown["name"], SCORE: 0.1}),
    )
    found = measure._with_tirads(winner, HEAD, HEAD.record, points, 0).tirads
    assert found.covered.value == pytest.approx(6 / 8), "5 of solid and 1 of cystic; one image has no word"
    assert found.compared == 9
    assert found.mean_width == (points["high"] - points["low"]).mean()
