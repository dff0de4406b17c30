import numpy as np
import pytest

from tests.conftest import write_scan
from thyroid import images, inputs
from thyroid.backend import keras


def test_pixels_are_what_load_gives_in_order(tmp_path):
    files = [str(write_scan(tmp_path / f"{i}.jpg", seed=i)) for i in range(5)]
    batch = next(iter(inputs.pixels(files, 48, tmp_path / "cache").batch(5))).numpy()
    assert batch.dtype == np.uint8
    for image, file in zip(batch, files, strict=True):
        np.testing.assert_array_equal(image, images.load(file, 48))


@pytest.mark.parametrize("limit", [0, 10**9])
def test_files_are_decoded_once(tmp_path, monkeypatch, limit):
    monkeypatch.setattr(inputs, "CACHE_BYTES", limit)
    calls = []
    load = images.load
    monkeypatch.setattr(images, "load", lambda *a: calls.append(a) or load(*a))
    files = [str(write_scan(tmp_path / f"{i}.jpg", seed=i)) for i in range(4)]
    dataset = inputs.pixels(files, 32, tmp_path / "cache")
    first, second = (np.stack(list(dataset.as_numpy_iterator())) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert len(calls) == 4
    assert bool(list(tmp_path.glob("cache*"))) == (limit == 0)


def blob(size: int = 64) -> np.ndarray:
    y, x = np.mgrid[0:size, 0:size]
    return np.repeat((np.hypot(x - 31.5, y - 31.5) < 10)[..., None] * np.uint8(200), 3, axis=2).astype(np.uint8)


def test_augmentation_keeps_dtype_and_moves_by_at_most_a_fifth():
    keras.utils.set_random_seed(0)
    out = inputs.augment(np.stack([blob()] * 400)).numpy()
    assert out.dtype == np.uint8
    assert out.shape == (400, 64, 64, 3)
    y, x = np.mgrid[0:64, 0:64]
    mass = (out[..., 0] > 100).sum(axis=(1, 2))
    centre_x = ((out[..., 0] > 100) * x).sum(axis=(1, 2)) / mass - 31.5
    centre_y = ((out[..., 0] > 100) * y).sum(axis=(1, 2)) / mass - 31.5
    # shifts of .2 x 64 pixels seen through a zoom of at most 1 / .8 and a rotation
    assert 8 < np.abs(centre_x).max() < 0.2 * 64 * 1.25 * 1.35 + 1
    assert abs(centre_x.mean()) < 1.5
    assert abs(centre_y.mean()) < 1.5
    area = mass / (blob()[..., 0] > 100).sum()
    assert 0.6 < area.min() < 0.8
    assert 1.25 < area.max() < 1.7


def test_augmentation_rotates_and_flips():
    keras.utils.set_random_seed(0)
    image = np.zeros((64, 64, 3), np.uint8)
    image[30:34, 32:] = 200  # a hand that points to the right
    out = inputs.augment(np.stack([image] * 300)).numpy()[..., 0] > 100
    y, x = np.mgrid[0:64, 0:64]
    to_right = np.array([(x[m].mean() > 31.5) if m.any() else False for m in out])
    assert 0.3 < to_right.mean() < 0.7
    slopes = [np.polyfit(x[m], y[m], 1)[0] for m in out if m.sum() > 60]
    degrees = np.degrees(np.arctan(slopes))
    assert 12 < np.abs(degrees).max() < 28


def test_augmentation_leaves_validation_alone(tmp_path):
    """`pixels` itself never augments: the same image twice is the same."""
    file = str(write_scan(tmp_path / "a.jpg"))
    one, two = list(inputs.pixels([file, file], 32, tmp_path / "c").as_numpy_iterator())
    np.testing.assert_array_equal(one, two)
