"""tf.data input: every file decoded and letterboxed once, cached as uint8, augmented in batches."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from thyroid import images
from thyroid.backend import keras, tf

CACHE_BYTES = 2_000_000_000
"""Decoded sets up to this size are cached in memory, larger ones in a file."""

# The deck's ImageDataGenerator ranges. Keras takes shear_range in degrees, so its .2 hardly shears at all.
ROTATION_DEGREES = 20.0
SHIFT = 0.2
SHEAR_DEGREES = 0.2
ZOOM = 0.2


def pixels(files: Sequence[str], size: int, cache: Path) -> tf.data.Dataset:
    """The images of `files` in order, unbatched: uint8 [size, size, 3].

    Args:
        files: full paths.
        size: side of the square image.
        cache: file name prefix for a cache that does not fit `CACHE_BYTES`.
    """

    def decode(path: tf.Tensor) -> tf.Tensor:
        image = tf.numpy_function(lambda name: images.load(name.decode(), size), [path], tf.uint8, stateful=False)
        return tf.ensure_shape(image, (size, size, 3))

    dataset = tf.data.Dataset.from_tensor_slices(np.asarray(files, dtype=np.str_))
    dataset = dataset.map(decode, num_parallel_calls=tf.data.AUTOTUNE)
    return dataset.cache("" if len(files) * size * size * 3 <= CACHE_BYTES else str(cache))


def augment(batch: tf.Tensor) -> tf.Tensor:
    """The deck's augmentation as one projective transform a image: rotation, shifts, shear, zoom and both flips.

    Args:
        batch: uint8 [n, size, size, 3].

    Returns:
        uint8 of the same shape; what comes from outside the image repeats its edge, as in ImageDataGenerator.
    """
    n, size = tf.shape(batch)[0], tf.cast(tf.shape(batch)[1], tf.float32)

    def uniform(limit: float) -> tf.Tensor:
        return tf.random.uniform([n], -limit, limit)

    def sign() -> tf.Tensor:
        return tf.where(tf.random.uniform([n]) < 0.5, -1.0, 1.0)

    angle = uniform(math.radians(ROTATION_DEGREES))
    shear = uniform(math.radians(SHEAR_DEGREES))
    zoom_x, zoom_y = (1 + uniform(ZOOM)) * sign(), (1 + uniform(ZOOM)) * sign()
    # Output pixel to input pixel, about the centre: rotate, shear, then scale (a flip is a negative scale) and shift.
    a, b = tf.cos(angle) * zoom_x, -tf.sin(angle + shear) * zoom_y
    c, d = tf.sin(angle) * zoom_x, tf.cos(angle + shear) * zoom_y
    centre = (size - 1) / 2
    shift_x = centre - a * centre - b * centre + uniform(SHIFT) * size
    shift_y = centre - c * centre - d * centre + uniform(SHIFT) * size
    zero = tf.zeros([n])
    transform = tf.stack([a, b, shift_x, c, d, shift_y, zero, zero], axis=1)
    moved = keras.ops.image.affine_transform(
        tf.cast(batch, tf.float32),
        transform,
        interpolation="bilinear",
        fill_mode="nearest",
        data_format="channels_last",
    )
    return tf.cast(tf.round(moved), tf.uint8)
