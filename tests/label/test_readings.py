"""What a reader may say about a frame, and the points of ACR TI-RADS."""

import pytest
from pydantic import ValidationError

from thyroid.label.readings import FEATURES, MarkedRegion, Reading, Verdict, features_of, level, points

BENIGN = {"composition": "spongiform", "echogenicity": "anechoic", "shape": "wider", "margin": "smooth", "foci": "none"}
WORST = {
    "composition": "solid",
    "echogenicity": "very_hypoechoic",
    "shape": "taller",
    "margin": "extrathyroidal",
    "foci": "punctate",
}


def box(x: int = 0, y: int = 0, width: int = 10, height: int = 10, **features: str) -> MarkedRegion:
    return MarkedRegion(x=x, y=y, width=width, height=height, features=features)


@pytest.mark.parametrize(
    ("wrong", "field"),
    [({"x": -1}, "x"), ({"y": -1}, "y"), ({"width": 0}, "width"), ({"height": 0}, "height"), ({"z": 1}, "z")],
)
def test_a_box_has_a_place_and_a_size(wrong, field):
    with pytest.raises(ValidationError) as caught:
        MarkedRegion(**{"x": 1, "y": 1, "width": 5, "height": 5} | wrong)
    assert caught.value.errors()[0]["loc"] == (field,)


@pytest.mark.parametrize(
    "features",
    [
        {"composition": "liquid"},
        {"colour": "solid"},
        {"margin": ""},
        {"margin": "Smooth"},
        {"composition": "solid+mixed"},
        {"foci": "punctate+macro"},
        {"foci": "none+macro"},
        {"foci": "macro+"},
    ],
)
def test_only_known_features_are_kept(features):
    with pytest.raises(ValidationError, match=next(iter(features))):
        box(**features)


def test_several_kinds_of_foci_are_kept_and_their_points_add_up():
    assert box(foci="macro+punctate").features == {"foci": "macro+punctate"}
    assert points(WORST | {"foci": "macro+punctate"}) == points(WORST) + 1
    assert points(WORST | {"foci": "comet_tail"}) == points(WORST | {"foci": "none"})


def test_the_words_of_a_table_become_those_of_the_bench():
    cells = {"composition": "Predominantly-solid", "foci": "microcalcification; macro", "margin": "불분명"}
    assert features_of(cells) == {"composition": "mixed", "foci": "macro+punctate", "margin": "ill_defined"}
    with pytest.raises(ValueError, match=r"foci 'blurry' is unknown; choose from none, .*joined by \+"):
        features_of({"foci": "blurry"})


@pytest.mark.parametrize(
    ("verdict", "regions"),
    [
        (Verdict.NODULES, ()),
        (Verdict.NONE, (box(),)),
        (Verdict.UNUSABLE, (box(),)),
        (Verdict.NODULES, (box(), box())),
        (Verdict.NODULES, tuple(box(x) for x in range(21))),
    ],
)
def test_a_verdict_and_its_boxes_belong_together(verdict, regions):
    with pytest.raises(ValidationError):
        Reading(verdict=verdict, regions=regions)


def test_the_largest_nodule_is_that_of_the_largest_area():
    long, square = box(width=30, height=2), box(width=9, height=9)
    assert Reading(verdict=Verdict.NODULES, regions=(long, square)).largest == square
    assert Reading(verdict=Verdict.NONE).largest is None


def test_points_need_every_feature():
    assert points(BENIGN) == points(WORST | {"composition": "spongiform"}) == 0
    assert points(WORST) == 14
    assert points({name: value for name, value in WORST.items() if name != "foci"}) is None
    assert level([box(composition="solid")]) == ""
    assert level([]) == ""


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "TR1"),  # 0
        ({"composition": "mixed"}, "TR1"),  # 1
        ({"composition": "solid"}, "TR2"),  # 2
        ({"composition": "solid", "echogenicity": "isoechoic"}, "TR3"),  # 3
        ({"composition": "solid", "echogenicity": "hypoechoic"}, "TR4"),  # 4
        ({"composition": "solid", "echogenicity": "hypoechoic", "foci": "rim"}, "TR4"),  # 6
        ({"composition": "solid", "echogenicity": "hypoechoic", "shape": "taller"}, "TR5"),  # 7
    ],
)
def test_levels_follow_the_white_paper(changes, expected):
    assert level([box(**BENIGN | changes)]) == expected


def test_the_level_of_a_frame_is_that_of_its_worst_nodule():
    assert level([box(**BENIGN), box(20, **WORST), box(40, composition="solid")]) == "TR5"


def test_every_feature_has_a_value_without_points():
    assert all(min(values.values()) == 0 for values in FEATURES.values())
