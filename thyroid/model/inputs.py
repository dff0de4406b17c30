"""Feeds a network: makes batches of decoded images (see `data.version`), augmented ones for training.

All randomness depends on the seed and the epoch alone. A training that was stopped in the middle of an epoch therefore
resumes with the same batches that an uninterrupted one would have seen. The augmentation runs where it is fastest: on a
GPU as a layer of the model (`Augment`), on a CPU by OpenCV while the batch is made (twice as fast as TensorFlow's
kernel).
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from thyroid.data.version import MEMORY_BUDGET as MEMORY_BUDGET
from thyroid.data.version import Decode as Decode
from thyroid.data.version import allocate as allocate
from thyroid.data.version import decode as decode
from thyroid.errors import InputError
from thyroid.model.backend import XLA, keras, tf

# The ranges of the deck's ImageDataGenerator. Keras takes shear_range in degrees, so .2 hardly shears at all.
ROTATION_DEGREES = 20.0
SHIFT = 0.2
SHEAR_DEGREES = 0.2
ZOOM = 0.2

IDENTITY = np.array([1, 0, 0, 0, 1, 0, 0, 0], np.float32)


def transforms(count: int, size: int, seed: tuple[int, ...], strength: float = 1.0) -> NDArray[np.float32]:
    """Draw random affine transforms of rotation, shifts, shear, zoom and both flips, one matrix per image.

    Args:
        count: Number of images.
        size: Side of the images in pixels.
        seed: Seed of the draw.
        strength: Multiple of the deck's ranges. Flips are equally likely at every strength except 0, which changes
            nothing.

    Returns:
        float32 [count, 8], the values a to f and two zeros. Output pixel (x, y) comes from input
        (a x + b y + c, d x + e y + f).
    """
    rng = np.random.default_rng(seed)

    def uniform(limit: float) -> NDArray[np.float64]:
        return strength * rng.uniform(-limit, limit, count)

    def sign() -> NDArray[np.float64]:
        return rng.choice([-1.0, 1.0], count) if strength else np.ones(count)

    angle = uniform(math.radians(ROTATION_DEGREES))
    shear = uniform(math.radians(SHEAR_DEGREES))
    zoom_x, zoom_y = (1 + uniform(ZOOM)) * sign(), (1 + uniform(ZOOM)) * sign()
    # Rotate, shear and scale about the centre (a flip is a negative scale), then shift.
    a, b = np.cos(angle) * zoom_x, -np.sin(angle + shear) * zoom_y
    d, e = np.sin(angle) * zoom_x, np.cos(angle + shear) * zoom_y
    centre = (size - 1) / 2
    c = centre - a * centre - b * centre + uniform(SHIFT) * size
    f = centre - d * centre - e * centre + uniform(SHIFT) * size
    zero = np.zeros(count)
    return np.stack([a, b, c, d, e, f, zero, zero], axis=1).astype(np.float32)


def warp(pixels: NDArray[np.uint8], moves: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Apply `transforms` to uint8 [n, s, s, channels] with OpenCV's bilinear interpolation.

    Pixels from outside the image repeat its edge, as in ImageDataGenerator.

    Args:
        pixels: uint8 [n, s, s, channels].
        moves: float32 [n, 8] of `transforms`.

    Returns:
        uint8 [n, s, s, channels].
    """
    side = pixels.shape[1:3]
    return np.stack(
        [
            cv2.warpAffine(
                image,
                move[:6].reshape(2, 3),
                side,
                flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
                borderMode=cv2.BORDER_REPLICATE,
            )
            for image, move in zip(pixels, moves, strict=True)
        ]
    ).reshape(pixels.shape)


class Augment(keras.layers.Layer):
    """Augments images in front of a model: uint8 [n, s, s, 1 or 3] and float32 [n, 8] to uint8 [n, s, s, 3].

    On a GPU the layer applies the transforms as `warp` does, with four gathers, because XLA has no kernel for
    TensorFlow's own projective transform. On a CPU the images arrive warped.
    """

    def compute_output_spec(self, image: Any, transform: Any) -> Any:
        """Return the spec of the output, uint8 [n, s, s, 3]."""
        return keras.KerasTensor((*image.shape[:-1], 3), "uint8")

    def call(self, image: tf.Tensor, transform: tf.Tensor) -> tf.Tensor:
        """Apply the transforms on a GPU, and give the images three channels."""
        if not XLA:
            return rgb(image)
        moved = gather_bilinear(tf.cast(image, tf.float32), tf.cast(transform, tf.float32))
        return rgb(tf.cast(tf.round(moved), tf.uint8))


def gather_bilinear(pixels: tf.Tensor, transform: tf.Tensor) -> tf.Tensor:
    """Apply `transforms` to float32 [n, s, s, channels] with bilinear interpolation and repeated edges.

    Args:
        pixels: float32 [n, s, s, channels].
        transform: float32 [n, 8] of `transforms`.

    Returns:
        float32 [n, s, s, channels].
    """
    size = pixels.shape[1]
    y, x = np.mgrid[0:size, 0:size].astype(np.float32)
    a, b, c, d, e, f = (transform[:, i, None, None] for i in range(6))

    def corner(row: tf.Tensor, column: tf.Tensor) -> tf.Tensor:
        last = float(size - 1)
        index = tf.clip_by_value(row, 0.0, last) * size + tf.clip_by_value(column, 0.0, last)
        flat = tf.reshape(pixels, (-1, size * size, pixels.shape[-1]))
        return tf.gather(flat, tf.cast(index, tf.int32), batch_dims=1)

    column, row = a * x + b * y + c, d * x + e * y + f
    left, top = tf.floor(column), tf.floor(row)
    right_share, bottom_share = (column - left)[..., None], (row - top)[..., None]
    upper = corner(top, left) * (1 - right_share) + corner(top, left + 1) * right_share
    lower = corner(top + 1, left) * (1 - right_share) + corner(top + 1, left + 1) * right_share
    return upper * (1 - bottom_share) + lower * bottom_share


def rgb(batch: tf.Tensor) -> tf.Tensor:
    """Return a batch of images [n, s, s, 1 or 3] with three channels."""
    return batch if batch.shape[-1] == 3 else tf.repeat(batch, 3, axis=-1)


def batches(pixels: NDArray[np.uint8], batch_size: int, moves: NDArray[np.float32] | None = None) -> tf.data.Dataset:
    """Make batches ((image, transform),) of the images in order, for a model with `Augment` in front.

    The last batch is padded with its last image, because TensorFlow traces and XLA compiles a graph for every new size.

    Args:
        pixels: uint8 [n, s, s, 1 or 3].
        batch_size: Images per batch.
        moves: float32 [n, 8] of `transforms`; None to leave the images as they are.
    """

    def generate() -> Iterator[tuple[tuple[NDArray[np.uint8], NDArray[np.float32]]]]:
        for start in range(0, len(pixels), batch_size):
            rows = np.minimum(np.arange(start, start + batch_size), len(pixels) - 1)
            yield (_moved(pixels[rows], None if moves is None else moves[rows]),)

    return _dataset(generate, (_specs(pixels, IDENTITY[None]),), -(-len(pixels) // batch_size))


class Epochs:
    """Makes the training batches (x, float32 one-hot label) of any epoch, with every example in one of its views.

    Order and views depend on the seed and on `epoch` alone. Batches before example `seen` hold only one example each:
    Keras expects the same number of steps in every epoch, and `checkpoints.Resume` undoes the effect of these steps.

    Args:
        views: Arrays [n, ...] of the same examples.
        labels: float32 one-hot [n, classes].
        rows: Indices of the training examples.
        batch_size: Examples per step.
        seed: Seed of order and views.
    """

    def __init__(
        self,
        views: Sequence[NDArray[Any]],
        labels: NDArray[np.float32],
        rows: NDArray[np.intp],
        batch_size: int,
        seed: int,
    ) -> None:
        """Start at the first example of epoch 0."""
        self.views, self.labels, self.rows, self.batch_size, self.seed = views, labels, rows, batch_size, seed
        self.epoch = 0
        self.seen = 0

    @property
    def steps(self) -> int:
        """Return the number of steps of an epoch."""
        return -(-len(self.rows) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[NDArray[Any], NDArray[np.float32]]]:
        """Yield the batches of the present epoch."""
        rng = np.random.default_rng((self.seed, self.epoch))
        order, view = rng.permutation(self.rows), rng.integers(0, len(self.views), len(self.labels))
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + (self.batch_size if start >= self.seen else 1)]
            yield np.stack([self.views[view[row]][row] for row in rows]), self.labels[rows]

    def dataset(self) -> tf.data.Dataset:
        """Return the batches as tf.data. Every iteration starts with the values that `epoch` and `seen` have then."""
        return _dataset(self.__iter__, _specs(self.views[0], self.labels), self.steps)


def rows_of(
    values: NDArray[Any], labels: NDArray[np.float32], rows: NDArray[np.intp], batch_size: int
) -> tf.data.Dataset:
    """Make batches (x, label) of the examples at `rows`, in that order.

    Args:
        values: [n, ...].
        labels: float32 one-hot [n, classes].
        rows: Indices of the examples.
        batch_size: Examples per batch.
    """

    def generate() -> Iterator[tuple[NDArray[Any], NDArray[np.float32]]]:
        for start in range(0, len(rows), batch_size):
            some = rows[start : start + batch_size]
            yield values[some], labels[some]

    return _dataset(generate, _specs(values, labels), -(-len(rows) // batch_size))


def disturbed(pixels: NDArray[np.uint8], table: pd.DataFrame) -> NDArray[np.uint8]:
    """Return images, each one replaced by its disturbed crop where there is one.

    Args:
        pixels: uint8 [n, s, s, 1 or 3].
        table: A row per image, with the columns jitter_file and jitter_sha256 of `DataVersion.with_jitter`. Without
            these columns no image is replaced.

    Returns:
        uint8 as `pixels`, which are not changed. If those are grey, a disturbed crop with colours becomes grey.

    Raises:
        InputError: Files are missing or changed.
    """
    columns = {"jitter_file": "file", "jitter_sha256": "sha256"}
    crops = table.reset_index(drop=True).reindex(columns=list(columns)).dropna().rename(columns=columns)
    if crops.empty:
        return pixels
    others = decode(crops, pixels.shape[1])
    if others.shape[-1] > pixels.shape[-1]:
        others = np.stack([cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in others])[..., None]
    result = pixels.copy()
    result[crops.index.to_numpy()] = others
    return result


def _moved(
    image: NDArray[np.uint8], moves: NDArray[np.float32] | None
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    if moves is None:
        return image, np.tile(IDENTITY, (len(image), 1))
    return image if XLA else warp(image, moves), moves


def _specs(*arrays: NDArray[Any]) -> tuple[tf.TensorSpec, ...]:
    """Return the specs of a batch of each array's examples."""
    return tuple(tf.TensorSpec((None, *array.shape[1:]), array.dtype) for array in arrays)


def _dataset(generate: Any, signature: Any, steps: int) -> tf.data.Dataset:
    dataset = tf.data.Dataset.from_generator(generate, output_signature=signature)
    return dataset.apply(tf.data.experimental.assert_cardinality(steps)).prefetch(tf.data.AUTOTUNE)


def predict(model: keras.Model, pixels: NDArray[np.uint8], batch_size: int = 32) -> NDArray[np.float64]:
    """Predict with a model that takes uint8 [n, size, size, 3].

    Args:
        model: The model.
        pixels: uint8 [n, size, size, 1 or 3].
        batch_size: Images per batch.

    Returns:
        Probabilities float64 [n, classes].

    Raises:
        InputError: The model returns numbers that are not finite.
    """
    plain = batches(pixels, batch_size).map(lambda x: rgb(x[0]))
    return finite(model.name, model.predict(plain, verbose=0)[: len(pixels)].astype(np.float64))


def finite(name: str, probability: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the probabilities after checking that they are finite.

    Args:
        name: Name of the model, for the message.
        probability: Probabilities of any shape.

    Raises:
        InputError: The model has returned a number that is not finite.
    """
    if not np.isfinite(probability).all():
        raise InputError(f"{name}: the probabilities are not finite numbers; train it again")
    return probability
