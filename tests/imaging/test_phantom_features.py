"""Features of phantoms beside the signs: what they look like, and that neither label nor background depends on them."""

import itertools

import numpy as np
import pytest
from scipy.ndimage import label as connected

from thyroid import tirads
from thyroid.imaging import phantom, phantom_features
from thyroid.imaging.phantom_features import Features
from thyroid.imaging.phantom_nodule import FLUID, Nodule, Shape

PLAIN = Nodule(radius=0.15, aspect=0.8, echo=0, roughness=0.02, cyst=0, halo=0, calcifications=0)
SIZE, CENTRE = (300, 400), (200.0, 150.0)


def painted(seed: int, kind: str = "", *foci: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Echo of a nodule with these features on tissue of 0 dB, without them, and the nodule's mask."""
    rng = np.random.default_rng(seed)
    features = Features(kind, foci, echo=0.0)
    shape = Shape.of(features.look(PLAIN), rng)
    echo = np.zeros(SIZE, np.float32)
    mask = shape.paint(echo, CENTRE, rng)
    plain = echo.copy()
    features.paint(echo, shape, CENTRE, np.random.default_rng(seed + 1))
    return echo, plain, mask


@pytest.mark.parametrize(
    ("kind", "foci"), [("spongiform", ()), ("", ("rim",)), ("", ("macro",)), ("", ("comet_tail",))]
)
def test_a_feature_lies_within_the_nodule(kind, foci):
    for seed in range(6):
        echo, plain, mask = painted(seed, kind, *foci)
        changed = echo != plain
        assert changed.any()
        assert not changed[~mask].any()


def test_more_than_half_of_a_spongiform_nodule_is_fluid_in_many_parts():
    for seed in range(6):
        echo, _, mask = painted(seed, "spongiform")
        fluid = echo == FLUID
        assert 0.5 < fluid[mask].mean() < 0.7
        _, parts = connected(~fluid & mask)
        assert connected(fluid)[1] + parts > 8


def test_a_rim_goes_most_of_the_way_around_and_leaves_the_middle():
    for seed in range(6):
        echo, _, _ = painted(seed, "", "rim")
        y, x = np.nonzero(echo > 10)
        angles = np.histogram(np.arctan2(y - CENTRE[1], x - CENTRE[0]), 36, (-np.pi, np.pi))[0]
        assert (angles > 0).mean() > 0.65
        assert (echo[140:160, 190:210] < 10).all()


def test_a_coarse_calcification_is_large_and_has_a_shadow():
    for seed in range(6):
        echo, _, _ = painted(seed, "", "macro")
        bright = echo > 10
        assert bright.sum() > 60
        below, shadow = (np.nonzero(rows.any(axis=1))[0] for rows in (bright, echo < -8))
        assert shadow.max() > below.max()


def test_a_comet_tail_fades_downwards():
    for seed in range(6):
        echo, _, _ = painted(seed, "", "comet_tail")
        parts, count = connected(echo > 3)
        assert 1 <= count <= 5
        (ys, xs) = max(
            (np.nonzero(parts == number) for number in range(1, count + 1)), key=lambda part: np.ptp(part[0])
        )
        assert np.ptp(ys) > np.ptp(xs)
        assert echo[ys.min(), xs].max() > echo[ys.max(), xs].max() + 6


def test_foci_of_several_kinds_and_those_of_a_sign_are_all_told():
    speckled = Nodule(**vars(PLAIN) | {"calcifications": 9})
    assert Features("", ("macro", "rim"), 0).words(speckled)["foci"] == "macro+rim+punctate"
    assert Features("", ("macro",), 0).words(PLAIN)["foci"] == "macro"
    assert Features("", (), 0).words(PLAIN)["foci"] == "none"
    assert Features("", (), 0).words(speckled)["foci"] == "punctate"


@pytest.mark.parametrize(
    ("kind", "composition", "echogenicity"),
    [
        ("cystic", "cystic", {"anechoic"}),
        ("spongiform", "spongiform", {"isoechoic"}),
        ("very_hypoechoic", "solid", {"very_hypoechoic"}),
        ("", "mixed", {"hypoechoic"}),
    ],
)
def test_words_of_a_kind(kind, composition, echogenicity):
    nodule = Nodule(**vars(PLAIN) | {"echo": -10, "cyst": 0.5})
    drawn = (Features.draw(np.random.default_rng(seed)) for seed in itertools.count())
    some = list(itertools.islice((one for one in drawn if one.kind == kind), 8))
    for one in some:
        words = one.words(nodule)
        assert words["composition"] == composition
        assert {words["echogenicity"]} == echogenicity
        assert all(tirads.parse(descriptor, word) for descriptor, word in words.items())


def test_odds_do_not_depend_on_the_label():
    odds = phantom_features.KINDS | phantom_features.FOCI
    share = {}
    for side in range(2):
        drawn = [Features.draw(np.random.default_rng([0, patient, side, 0, 4])) for patient in range(1500)]
        share[side] = [np.mean([name in (one.kind, *one.foci) for one in drawn]) for name in odds]
    np.testing.assert_allclose(share[0], list(odds.values()), atol=0.04)
    np.testing.assert_allclose(share[1], list(odds.values()), atol=0.04)


def test_only_the_nodule_changes():
    changed = 0
    for patient in range(1, 9):
        label = "BM"[patient % 2]
        plain, drawn = phantom.draw(label, patient, 1), phantom.draw(label, patient, 1, features=True)
        assert plain.rois == drawn.rois
        x, y, width, height = plain.roi
        differs = (plain.image != drawn.image).any(axis=2)
        changed += differs.any()
        differs[y - 4 : y + height + 4, x - 4 : x + width + 4] = False
        assert not differs.any()
        assert drawn.image.tobytes() == phantom.draw(label, patient, 1, features=True).image.tobytes()
    assert changed >= 4
