import itertools
import tempfile

import numpy as np
import pandas as pd
import pytest

from tests.conftest import write_scan
from thyroid.errors import InputError
from thyroid.imaging import images
from thyroid.model import inputs
from thyroid.model.artefact import sha256
from thyroid.model.backend import keras, tf


def table_of(files) -> pd.DataFrame:
    return pd.DataFrame({"file": [str(f) for f in files], "sha256": [sha256(f) for f in files]})


def colour_scan(path):
    rng = np.random.default_rng(3)
    path.write_bytes(images.encode(rng.integers(0, 255, (60, 90, 3), dtype=np.uint8)))
    return path


def test_pixels_are_what_serving_computes_in_order(tmp_path):
    files = [write_scan(tmp_path / f"{i}.jpg", seed=i) for i in range(5)]
    pixels = inputs.decode(table_of(files), 48)
    assert pixels.shape == (5, 48, 48, 1)
    for image, file in zip(pixels, files, strict=True):
        np.testing.assert_array_equal(image, images.square(file.read_bytes(), 48))


def test_one_colour_image_makes_three_channels_of_all(tmp_path):
    files = [write_scan(tmp_path / f"{i}.jpg", seed=i) for i in range(20)] + [colour_scan(tmp_path / "c.jpg")]
    pixels = inputs.decode(table_of(files), 32)
    assert pixels.shape == (21, 32, 32, 3)
    for image, file in zip(pixels, files, strict=True):
        np.testing.assert_array_equal(image, images.rgb(images.square(file.read_bytes(), 32)))


def test_disturbed_crops_take_the_place_of_their_images(tmp_path):
    files = [write_scan(tmp_path / f"{i}.jpg", seed=i) for i in range(6)]
    images_, others = table_of(files[:4]), table_of(files[4:])
    table = images_.assign(jitter_file=pd.Series(others["file"].tolist(), [1, 3]))
    table["jitter_sha256"] = pd.Series(others["sha256"].tolist(), [1, 3])
    table.index += 100
    pixels = inputs.decode(images_, 32)
    found = inputs.disturbed(pixels, table)
    np.testing.assert_array_equal(found[[0, 2]], pixels[[0, 2]])
    np.testing.assert_array_equal(found[[1, 3]], inputs.decode(others, 32))
    np.testing.assert_array_equal(pixels, inputs.decode(images_, 32))
    assert inputs.disturbed(pixels, images_) is pixels


@pytest.mark.parametrize("coloured", [True, False])
def test_a_disturbed_crop_has_the_channels_of_the_images(tmp_path, coloured):
    plain, colour = write_scan(tmp_path / "0.jpg", seed=0), colour_scan(tmp_path / "c.jpg")
    image, crop = (colour, plain) if coloured else (plain, colour)
    table = table_of([image]).assign(jitter_file=str(crop), jitter_sha256=sha256(crop))
    found = inputs.disturbed(inputs.decode(table, 32), table)
    expected = images.square(crop.read_bytes(), 32)
    assert found.shape == (1, 32, 32, 3 if coloured else 1)
    assert np.abs(found[0].mean(axis=-1) - expected.mean(axis=-1)).mean() < 25
    assert (found != inputs.decode(table, 32)).any()


def test_a_set_larger_than_the_budget_is_paged_from_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    files = [write_scan(tmp_path / f"{i}.jpg", seed=i) for i in range(4)]
    small = inputs.decode(table_of(files), 32)
    large = inputs.decode(table_of(files), 32, budget=4 * 32 * 32 - 1)
    assert isinstance(large, np.memmap)
    np.testing.assert_array_equal(small, large)
    assert not list(tmp_path.glob("thyroid-*")), "nothing is left behind, even if the process is killed"


def test_missing_and_changed_files_are_named(tmp_path):
    files = [write_scan(tmp_path / f"{i}.jpg", seed=i) for i in range(4)]
    table = table_of(files)
    files[1].write_bytes(files[2].read_bytes())
    with pytest.raises(InputError, match=r"\b1\b.*/1\.jpg.*changed"):
        inputs.decode(table, 32)
    files[0].unlink()
    with pytest.raises(InputError, match=r"\b2\b.*/0\.jpg.*missing"):
        inputs.decode(table, 32)


def test_transforms_keep_the_decks_ranges():
    moves = inputs.transforms(4000, 100, (0,)).astype(float)
    (a, b, c), (d, e, f) = moves[:, :3].T, moves[:, 3:6].T
    assert (moves[:, 6:] == 0).all()
    zoom = np.hypot(a, d), np.hypot(b, e)
    for one in zoom:
        assert 0.8 <= one.min() < 0.81
        assert 1.19 < one.max() <= 1.2
    angle = np.degrees(np.arctan(d / a))
    assert 19 < np.abs(angle).max() <= 20
    centre = 49.5
    shift_x, shift_y = a * centre + b * centre + c - centre, d * centre + e * centre + f - centre
    for shift in (shift_x, shift_y):
        assert 19 < np.abs(shift).max() <= 20
        assert abs(shift.mean()) < 0.5
    flips = np.sign(a * np.cos(np.arctan(d / a))), np.sign(e)
    for flip in flips:
        assert 0.45 < (flip < 0).mean() < 0.55
    assert abs(np.corrcoef(flips)[0, 1]) < 0.06


@pytest.mark.parametrize("channels", [1, 3])
def test_processor_accelerator_and_tensorflows_kernel_agree(channels):
    """OpenCV's warp, the gathers compiled by XLA, and TensorFlow's own projective transform: the same image."""
    pixels = np.random.default_rng(0).integers(0, 255, (6, 40, 40, channels), dtype=np.uint8)
    moves = inputs.transforms(6, 40, (1,))
    reference = keras.ops.image.affine_transform(
        pixels.astype("float32"), moves, interpolation="bilinear", fill_mode="nearest", data_format="channels_last"
    ).numpy()
    gathered = tf.function(inputs.gather_bilinear, jit_compile=True)(tf.constant(pixels, tf.float32), moves).numpy()
    np.testing.assert_allclose(gathered, reference, atol=0.01)
    assert np.abs(inputs.warp(pixels, moves) - reference).max() <= 1


@pytest.mark.parametrize("accelerator", [False, True])
def test_the_layer_gives_the_model_the_same_image_on_either_device(monkeypatch, accelerator):
    pixels = np.random.default_rng(0).integers(0, 255, (5, 24, 24, 1), dtype=np.uint8)
    moves = inputs.transforms(5, 24, (2,))
    expected = np.repeat(inputs.warp(pixels, moves), 3, axis=-1).astype(int)
    monkeypatch.setattr(inputs, "XLA", accelerator)
    ((image, transform),) = next(iter(inputs.batches(pixels, 5, moves)))
    seen = inputs.Augment()(image, transform).numpy()
    assert seen.dtype == np.uint8
    assert np.abs(seen.astype(int) - expected).max() <= 1
    ((image, transform),) = next(iter(inputs.batches(pixels, 5)))
    np.testing.assert_array_equal(inputs.Augment()(image, transform).numpy(), np.repeat(pixels, 3, axis=-1))


def epochs(views: int = 1) -> inputs.Epochs:
    """Twenty training examples (10 to 29) of forty; an example's values say which it is and which view."""
    arrays = [np.arange(40, dtype=np.float16)[:, None, None] + view / 2 for view in range(views)]
    return inputs.Epochs(arrays, np.eye(40, dtype=np.float32), np.arange(10, 30), 6, seed=1)


def seen(batches: inputs.Epochs) -> list[list[int]]:
    return [label.argmax(axis=1).tolist() for _, label in batches]


def test_every_epoch_shows_every_example_once_in_another_order():
    batches = epochs()
    first = seen(batches)
    assert sorted(itertools.chain(*first)) == list(range(10, 30))
    assert [len(batch) for batch in first] == [6, 6, 6, 2]
    assert first == seen(batches), "an epoch is the same whenever it is asked for"
    batches.epoch = 1
    second = seen(batches)
    assert sorted(itertools.chain(*second)) == list(range(10, 30))
    assert first != second


def test_examples_come_with_their_labels_in_any_of_their_views():
    batches = epochs(views=2)
    taken = []
    for batches.epoch in range(20):
        for x, label in batches:
            np.testing.assert_array_equal(np.floor(x[:, 0, 0]), label.argmax(axis=1))
            taken += (x[:, 0, 0] % 1).tolist()
    assert set(taken) == {0, 0.5}
    assert 0.4 < np.mean(taken) * 2 < 0.6


def test_a_resumed_epoch_goes_on_with_the_examples_not_seen():
    batches = epochs(views=2)
    whole = seen(batches)
    batches.seen = 12
    rest = seen(batches)
    assert [len(batch) for batch in rest] == [1, 1, 6, 2]
    assert rest[2:] == whole[2:]
    assert len(list(batches.dataset())) == int(batches.dataset().cardinality()) == 4
