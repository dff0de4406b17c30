"""Foreign images: there are enough kinds, the same ones every time, and each is what its name says."""

from types import SimpleNamespace

import numpy as np
import pytest

from thyroid.data.version import DataVersion
from thyroid.evaluate.novelty import foreign
from thyroid.imaging import geometry, images, phantom
from thyroid.imaging.phantom_scanner import SCANNERS

SIZE = 32


@pytest.fixture(scope="module")
def tested():
    frames = [phantom.draw("BM"[patient % 2], patient, 1) for patient in range(3)]
    return np.stack([images.rgb(images.stored(geometry.region(one.image, one.roi), SIZE)) for one in frames])


@pytest.fixture(scope="module")
def data(cropped):
    return DataVersion.read(cropped)


@pytest.fixture(scope="module")
def made(tested, data):
    return {one.kind: one for one in foreign.make(tested, data, "cropped", 0)}


def test_there_are_at_least_eight_kinds_at_the_networks_input(made, tested):
    assert len(made) >= 8
    for one in made.values():
        assert one.pixels.dtype == np.uint8
        drawn = foreign.PHANTOMS if one.kind.startswith("phantom") else foreign.COUNT
        assert one.pixels.shape == (len(tested) if one.varied else drawn, SIZE, SIZE, 3)


def test_the_same_seed_gives_the_same_images(made, tested, data):
    again = foreign.make(tested, data, "cropped", 0)
    assert all(np.array_equal(one.pixels, made[one.kind].pixels) for one in again)
    other = {one.kind: one.pixels for one in foreign.make(tested, data, "cropped", 1)}
    for kind in (foreign.NOISE, foreign.PHOTOGRAPH, foreign.DOPPLER):
        assert not np.array_equal(other[kind], made[kind].pixels)


def test_blank_images_are_even_and_dark(made):
    pixels = made[foreign.BLANK].pixels.astype(int)
    assert pixels.max() <= 42  # the codec may add a level or two
    assert np.ptp(pixels, axis=(1, 2, 3)).max() <= 2
    assert len(np.unique(pixels[:, 0, 0, 0])) > 20


def test_saturated_images_have_lost_their_grey_levels(made, tested):
    assert (made[foreign.SATURATED].pixels > 250).mean() > 0.5 > (tested > 250).mean()


def test_noise_and_photographs_are_grey_and_coloured_in_turns(made):
    for kind in (foreign.NOISE, foreign.PHOTOGRAPH):
        colour = np.ptp(made[kind].pixels.astype(int), axis=3).max(axis=(1, 2))
        assert (colour[::2] == 0).all()
        assert (colour[1::2] > 10).all()


def test_doppler_colours_a_part_of_the_test_image(made, tested):
    for shown, image in zip(made[foreign.DOPPLER].pixels, tested, strict=True):
        coloured = np.ptp(shown.astype(int), axis=2) > 40
        assert 0 < coloured.mean() < 0.6
        assert not coloured[[0, -1]].any()
        assert abs(shown[0].astype(int) - image[0]).mean() < 10


def test_turned_and_inverted_images_are_the_test_images(made, tested):
    for kind, back in (
        (foreign.HALF, lambda image: image[::-1, ::-1]),
        (foreign.QUARTER, lambda image: np.rot90(image, -1)),
        (foreign.INVERTED, lambda image: 255 - image),
    ):
        for shown, image in zip(made[kind].pixels, tested, strict=True):
            assert abs(back(shown).astype(int) - image).mean() < 6  # a second pass through the codec


def test_phantoms_are_those_of_other_scanners_than_the_data(made, data):
    assert {kind for kind in made if kind.startswith("phantom")} == {
        "phantom of the scanner convex",
        "phantom of the scanner portable",
    }
    shown = phantom.draw("M", 9001, 1, scanner="convex")
    first = images.rgb(images.stored(geometry.region(shown.image, shown.roi, margin=data.margin), SIZE))
    assert np.array_equal(made["phantom of the scanner convex"].pixels[0], first)


def test_real_scans_are_of_none_of_the_scanners(data):
    real = SimpleNamespace(used=data.used, facts=data.facts.model_copy(update={"synthetic": 0}))
    assert foreign.other_scanners(real) == list(SCANNERS)


def test_a_model_of_full_frames_sees_the_scan_area(tested, data):
    made = {one.kind: one.pixels for one in foreign.make(tested, data, "normal", 0)}
    shown = geometry.normal(phantom.draw("M", 9001, 1, scanner="portable").image)
    first = images.rgb(images.stored(shown, SIZE))
    assert np.array_equal(made["phantom of the scanner portable"][0], first)
