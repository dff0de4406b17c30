"""The reference of an artefact: what it measures, and what is read of a file."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest

from tests.support import toy_artefact
from thyroid.errors import InputError
from thyroid.model.artefact import Artefact
from thyroid.model.novelty.novelty import FILE, PICTURE, Novelty

PATIENTS = np.repeat(np.arange(20), 2)


def features(count: int = 40, seed: int = 0) -> np.ndarray:
    """Features that differ mostly in a common factor, and in one channel that is almost always off."""
    rng = np.random.default_rng(seed)
    common = rng.normal(0, 3, (count, 1)) * np.linspace(0.5, 1, 12)
    pictures = np.hstack([90 + 9 * common[:, :4], np.zeros((count, 1)), rng.beta(2, 9, (count, 2))])
    return np.hstack([pictures, 5 + common + rng.normal(0, 1, (count, 12)), np.zeros((count, 1))]).astype(np.float32)


@pytest.fixture
def made():
    return toy_artefact.novelty(features(), PATIENTS)


@pytest.fixture
def folder(made, tmp_path):
    novelty, record = made
    novelty.write(tmp_path)
    Artefact.describe(tmp_path, toy_artefact.description(novelty=record.to_dict()))
    return tmp_path


def test_it_is_read_as_it_was_written(made, folder):
    found = Novelty.read(Artefact.verify(folder))
    for field in dataclasses.fields(Novelty):
        np.testing.assert_array_equal(getattr(found, field.name), getattr(made[0], field.name))
    given = features(7, seed=1)
    np.testing.assert_array_equal(found.distance(given), made[0].distance(given))
    before = (folder / FILE).read_bytes()
    found.write(folder)
    assert (folder / FILE).read_bytes() == before


def test_an_artefact_of_an_older_release_has_none(tmp_path):
    Artefact.describe(tmp_path, toy_artefact.description())
    assert Novelty.read(Artefact.verify(tmp_path)) is None


def test_the_distance_is_that_of_probabilistic_principal_components(made):
    """Against both covariances, written out: half of the picture's, a quarter each of what is inside and outside."""
    novelty, given = made[0], features(9, seed=2)
    d, k = novelty.directions.shape
    scaled = ((given - novelty.mean) / novelty.scale).astype(float)
    picture, scaled = scaled[:, : len(PICTURE)], scaled[:, len(PICTURE) :]
    looks = np.array([one @ novelty.precision @ one for one in picture]) / len(PICTURE)
    inside = novelty.directions.astype(float)
    outside = np.linalg.svd(inside)[0][:, k:]
    along = ((scaled @ inside) ** 2 / novelty.variances).mean(axis=1)
    rest = ((scaled @ outside) ** 2 / novelty.residual).mean(axis=1)
    np.testing.assert_allclose(novelty.distance(given), np.sqrt(looks / 2 + (along + rest) / 4), rtol=1e-4)
    np.testing.assert_allclose(novelty.project(given), scaled @ inside, rtol=1e-4, atol=1e-4)
    assert novelty.project(given).dtype == np.float32
    assert (d, k) == (13, 5)


def test_images_have_the_same_distance_alone_and_together(made):
    given = features(9, seed=2)
    alone = [made[0].distance(one[None])[0] for one in given]
    np.testing.assert_allclose(alone, made[0].distance(given), rtol=1e-5)


def test_what_differs_in_one_channel_is_far_and_what_differs_in_the_usual_way_is_not(made):
    novelty = made[0]
    usual, foreign = features(1, seed=3), features(1, seed=3)
    foreign[0, len(PICTURE) + 3] += 20
    assert novelty.distance(usual)[0] < novelty.limit < novelty.distance(foreign)[0]


def test_percentiles_are_among_the_training_images(made):
    novelty = made[0]
    assert novelty.percentile(0.0) == 0
    assert novelty.percentile(novelty.quantiles[50]) == pytest.approx(50)
    assert novelty.percentile(novelty.quantiles[-1] * 2) == 100
    steps = [novelty.percentile(distance) for distance in np.linspace(0, novelty.quantiles[-1], 50)]
    assert steps == sorted(steps)


def damaged(name: str, content: bytes) -> bytes | None:
    return {
        "missing": None,
        "empty": b"",
        "half": content[: len(content) // 2],
        "no archive": b"novelty" * 100,
    }[name]


@pytest.mark.parametrize("name", ["missing", "empty", "half", "no archive"])
def test_a_damaged_file_is_named(folder, name):
    content = damaged(name, (folder / FILE).read_bytes())
    (folder / FILE).unlink()
    if content is not None:
        (folder / FILE).write_bytes(content)
    with pytest.raises(InputError, match=rf"{FILE}: \w+.*; register the model again"):
        Novelty.read(Artefact.read(folder))
    with pytest.raises(InputError, match=FILE):
        Artefact.verify(folder)


def test_a_flipped_byte_does_no_other_harm(folder):
    """Whatever the byte belongs to; some are of no consequence, such as those of dates."""
    content, artefact, refused = (folder / FILE).read_bytes(), Artefact.read(folder), 0
    for place in range(0, len(content), 7):
        (folder / FILE).write_bytes(content[:place] + bytes([content[place] ^ 0x2D]) + content[place + 1 :])
        try:
            Novelty.read(artefact)
        except InputError:
            refused += 1
    assert refused > len(content) / 7 / 2


@pytest.mark.parametrize(
    "change",
    [
        {"mean": np.zeros(3, np.float32)},
        {"scale": np.zeros(13, np.float32)},
        {"directions": np.full((13, 5), np.nan, np.float32)},
        {"variances": np.array([1.0, 1.0, 1.0, 1.0, -1.0])},
        {"residual": 0.0},
        {"quantiles": np.linspace(1, 0, 101)},
        {"limit": 1e3},
        {"limit": np.zeros(2)},
        {"mean": np.array(["a"] * 13)},
        {"mean": np.array([{}] * 13)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_file_that_does_not_fit_the_model_is_named(made, folder, change):
    arrays = {field.name: getattr(made[0], field.name) for field in dataclasses.fields(Novelty)}
    np.savez(folder / FILE, **(arrays | change))
    with pytest.raises(InputError, match=f"{FILE}: (damaged|does not fit model.json); register the model again"):
        Novelty.read(Artefact.read(folder))


def test_reading_it_needs_neither_tensorflow_nor_scikit_learn():
    code = (
        "import sys; import thyroid.model.novelty.novelty;"
        "print([one for one in ('tensorflow', 'sklearn', 'scipy', 'pandas', 'keras') if one in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
