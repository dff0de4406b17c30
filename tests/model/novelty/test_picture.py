"""Statistics of a picture, which the network's graph computes."""

import numpy as np

from thyroid.model.novelty.novelty import PICTURE
from thyroid.model.novelty.picture import PictureStatistics


def test_statistics_are_those_of_the_pixels():
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8)
    pixels[1] = pixels[1, :, :, :1]  # grey
    pixels[2] = 3
    image = pixels.astype(float)
    grey = image.mean(axis=3)
    expected = {
        "mean": grey.mean(axis=(1, 2)),
        "deviation": grey.std(axis=(1, 2)),
        "across": np.abs(np.diff(grey, axis=2)).mean(axis=(1, 2)),
        "down": np.abs(np.diff(grey, axis=1)).mean(axis=(1, 2)),
        "colour": (image.max(axis=3) - image.min(axis=3)).mean(axis=(1, 2)),
        "black": (grey < 8).mean(axis=(1, 2)),
        "white": (grey > 247).mean(axis=(1, 2)),
    }
    found = np.asarray(PictureStatistics()(pixels))
    assert found.dtype == np.float32
    for place, name in enumerate(PICTURE):
        np.testing.assert_allclose(found[:, place], expected[name], rtol=1e-4, atol=1e-4, err_msg=name)
    assert found[1, PICTURE.index("colour")] == 0
    assert found[2, PICTURE.index("black")] == 1
