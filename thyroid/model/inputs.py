"""Input: every file verified, decoded and letterboxed once into one uint8 array, then tf.data batches of it.

What is random depends on the seed and the epoch alone, so a training that was stopped in the middle of an epoch goes on with
the very batches that an uninterrupted one would have seen. The augmentation runs where it is fastest:
on a GPU as a layer of the model (`Augment`), on a CPU by OpenCV while the batch is made (twice TensorFlow's kernel).
"""

import hashlib
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from thyroid import cores, progress
from thyroid.errors import InputError
from thyroid.imaging import images
from thyroid.model.backend import XLA, keras, tf

MEMORY_BUDGET = 4_000_000_000
"""Arrays up to this many bytes are held in memory, larger ones in a temporary file that the system pages in."""

# The deck's ImageDataGenerator ranges. Keras takes shear_range in degrees, so its .2 hardly shears at all.
ROTATION_DEGREES = 20.0
SHIFT = 0.2
SHEAR_DEGREES = 0.2
ZOOM = 0.2

_CHUNK = 16  # images a task of a thread

IDENTITY = np.array([1, 0, 0, 0, 1, 0, 0, 0], np.float32)


Decode = Callable[[pd.DataFrame, int], NDArray[np.uint8]]
"""`decode`, or a `Decoded`: images of a table at a size."""


def decode(table: pd.DataFrame, size: int, budget: int = MEMORY_BUDGET) -> NDArray[np.uint8]:
    """The images of `table` in order.

    Args:
        table: with columns file (full path) and sha256, as `tables.examples` gives.
        size: side of the square in pixels.
        budget: bytes that may be held in memory.

    Returns:
        uint8 [n, size, size, 1] when every image is grey, else [n, size, size, 3].

    Raises:
        InputError: files are missing, or are not the ones that the data version describes.
    """
    rows = list(zip(table["file"], table["sha256"], strict=True))
    for channels in (1, 3):
        out = allocate((len(rows), size, size, channels), np.uint8, budget)
        if _fill(out, rows):
            break
    return out


class Decoded:
    """`decode` that remembers: an image is read once at a size, however many models and audits look at it.

    Args:
        budget: bytes that may be held in memory, of all that is remembered together.
    """

    def __init__(self, budget: int = MEMORY_BUDGET) -> None:
        self._budget = budget
        self._known: dict[tuple[int, str], NDArray[np.uint8]] = {}

    def __call__(self, table: pd.DataFrame, size: int) -> NDArray[np.uint8]:
        """As `decode`."""
        fresh = table[[(size, sha256) not in self._known for sha256 in table["sha256"]]].drop_duplicates("sha256")
        if len(fresh):
            read = decode(fresh, size, self._budget)
            self._budget = max(0, self._budget - read.nbytes)
            self._known |= {(size, sha256): image for sha256, image in zip(fresh["sha256"], read, strict=True)}
        rows = [self._known[size, sha256] for sha256 in table["sha256"]]
        out = allocate((len(rows), size, size, max(row.shape[-1] for row in rows)), np.uint8)
        for number, row in enumerate(rows):
            out[number] = row
        return out


def allocate(shape: tuple[int, ...], dtype: type, budget: int = MEMORY_BUDGET) -> NDArray:
    """An array in memory, or in a temporary file if it has more than `budget` bytes."""
    if math.prod(shape) * np.dtype(dtype).itemsize <= budget:
        return np.empty(shape, dtype)
    descriptor, name = tempfile.mkstemp(prefix="thyroid-")
    os.close(descriptor)
    out = np.memmap(name, dtype, "w+", shape=shape)
    Path(name).unlink()  # the mapping keeps it until the process ends, however that happens
    return out


def _fill(out: NDArray[np.uint8], rows: list[tuple[str, str]]) -> bool:
    """Decode `rows` into `out`; False as soon as an image has more channels than `out`."""
    wrong: list[tuple[str, str]] = []

    def some(start: int) -> bool:
        for number, (file, sha256) in enumerate(rows[start : start + _CHUNK], start):
            try:
                data = Path(file).read_bytes()
            except OSError:
                wrong.append(("missing", file))
                continue
            if hashlib.sha256(data).hexdigest() != sha256:
                wrong.append(("changed", file))
                continue
            image = images.square(data, out.shape[1])
            if image.shape[-1] > out.shape[-1]:
                return False
            out[number] = image
        return True

    starts = range(0, len(rows), _CHUNK)
    with ThreadPoolExecutor(cores.available()) as pool, progress.bar(None, len(rows), "decode", "image") as bar:
        for start, fits in zip(starts, pool.map(some, starts), strict=True):
            if not fits:
                pool.shutdown(cancel_futures=True)
                return False
            bar.update(min(_CHUNK, len(rows) - start))
    if wrong:
        what, file = min(wrong, key=lambda pair: pair[1])
        raise InputError(
            f"{len(wrong)} images of the data version are missing or changed, the first is {file} ({what}); crop again"
        )
    return True


def transforms(count: int, size: int, seed: tuple[int, ...], strength: float = 1.0) -> NDArray[np.float32]:
    """Random affine transforms: rotation, shifts, shear, zoom and both flips, one matrix an image.

    Args:
        count: of images.
        size: of their side in pixels.
        seed: of the draw.
        strength: multiple of the deck's ranges; flips are as likely at any but 0, which moves nothing.

    Returns:
        float32 [count, 8]: output pixel (x, y) comes from input (a x + b y + c, d x + e y + f); the last two are 0.
    """
    rng = np.random.default_rng(seed)

    def uniform(limit: float) -> NDArray[np.float64]:
        return strength * rng.uniform(-limit, limit, count)

    def sign() -> NDArray[np.float64]:
        return rng.choice([-1.0, 1.0], count) if strength else np.ones(count)

    angle = uniform(math.radians(ROTATION_DEGREES))
    shear = uniform(math.radians(SHEAR_DEGREES))
    zoom_x, zoom_y = (1 + uniform(ZOOM)) * sign(), (1 + uniform(ZOOM)) * sign()
    # About the centre: rotate, shear, then scale (a flip is a negative scale) and shift.
    a, b = np.cos(angle) * zoom_x, -np.sin(angle + shear) * zoom_y
    d, e = np.sin(angle) * zoom_x, np.cos(angle + shear) * zoom_y
    centre = (size - 1) / 2
    c = centre - a * centre - b * centre + uniform(SHIFT) * size
    f = centre - d * centre - e * centre + uniform(SHIFT) * size
    zero = np.zeros(count)
    return np.stack([a, b, c, d, e, f, zero, zero], axis=1).astype(np.float32)


def warp(pixels: NDArray[np.uint8], moves: NDArray[np.float32]) -> NDArray[np.uint8]:
    """`transforms` applied to uint8 [n, s, s, channels], bilinear, by OpenCV.

    What comes from outside the image repeats its edge, as in ImageDataGenerator.
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
    """Front of a model in training: uint8 [n, s, s, 1 or 3] and float32 [n, 8] to uint8 [n, s, s, 3].

    On a GPU it applies the transforms as `warp` does, by four gathers, since XLA has no kernel for TensorFlow's own
    projective transform. On a CPU the images arrive warped.
    """

    def compute_output_spec(self, image: Any, transform: Any) -> Any:
        return keras.KerasTensor((*image.shape[:-1], 3), "uint8")

    def call(self, image: tf.Tensor, transform: tf.Tensor) -> tf.Tensor:
        if not XLA:
            return rgb(image)
        moved = gather_bilinear(tf.cast(image, tf.float32), tf.cast(transform, tf.float32))
        return rgb(tf.cast(tf.round(moved), tf.uint8))


def gather_bilinear(pixels: tf.Tensor, transform: tf.Tensor) -> tf.Tensor:
    """float32 [n, s, s, channels] seen through float32 [n, 8], edges repeated."""
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
    """Three channels, whatever there were."""
    return batch if batch.shape[-1] == 3 else tf.repeat(batch, 3, axis=-1)


def batches(pixels: NDArray[np.uint8], batch_size: int, moves: NDArray[np.float32] | None = None) -> tf.data.Dataset:
    """The images in order as ((image, transform),) for a model with `Augment` in front; without `moves` as they are.

    The last batch is filled up with its last image: TensorFlow traces a graph, and XLA compiles one, for every new size.
    """

    def generate() -> Iterator[tuple]:
        for start in range(0, len(pixels), batch_size):
            rows = np.minimum(np.arange(start, start + batch_size), len(pixels) - 1)
            yield (_moved(pixels[rows], None if moves is None else moves[rows]),)

    return _dataset(generate, (_specs(pixels, IDENTITY[None]),), -(-len(pixels) // batch_size))


class Epochs:
    """The training batches of any epoch: (x, float32 one-hot label), every example in one of its views.

    Order and views depend on the seed and `epoch` alone. Batches before example `seen` hold a single one only: Keras wants
    every epoch to have the same number of steps, and `checkpoints.Resume` undoes what they do.

    Args:
        views: arrays [n, ...] of the same examples.
        labels: float32 one-hot [n, classes].
        rows: places of the training examples in them.
        batch_size: examples a step.
        seed: of order and views.
    """

    def __init__(
        self,
        views: Sequence[NDArray],
        labels: NDArray[np.float32],
        rows: NDArray[np.intp],
        batch_size: int,
        seed: int,
    ) -> None:
        self.views, self.labels, self.rows, self.batch_size, self.seed = views, labels, rows, batch_size, seed
        self.epoch = 0
        self.seen = 0

    @property
    def steps(self) -> int:
        """Of an epoch."""
        return -(-len(self.rows) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[NDArray, NDArray[np.float32]]]:
        rng = np.random.default_rng((self.seed, self.epoch))
        order, view = rng.permutation(self.rows), rng.integers(0, len(self.views), len(self.labels))
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + (self.batch_size if start >= self.seen else 1)]
            yield np.stack([self.views[view[row]][row] for row in rows]), self.labels[rows]

    def dataset(self) -> tf.data.Dataset:
        """As tf.data; starts anew, with `epoch` and `seen` as they are then, on each iteration."""
        return _dataset(self.__iter__, _specs(self.views[0], self.labels), self.steps)


def rows_of(values: NDArray, labels: NDArray[np.float32], rows: NDArray[np.intp], batch_size: int) -> tf.data.Dataset:
    """(x, label) of the examples at `rows`, in that order, a batch at a time."""

    def generate() -> Iterator[tuple[NDArray, NDArray[np.float32]]]:
        for start in range(0, len(rows), batch_size):
            some = rows[start : start + batch_size]
            yield values[some], labels[some]

    return _dataset(generate, _specs(values, labels), -(-len(rows) // batch_size))


def _moved(image: NDArray[np.uint8], moves: NDArray[np.float32] | None) -> tuple[NDArray, NDArray]:
    if moves is None:
        return image, np.tile(IDENTITY, (len(image), 1))
    return image if XLA else warp(image, moves), moves


def _specs(*arrays: NDArray) -> tuple[tf.TensorSpec, ...]:
    """Of a batch of each array's examples."""
    return tuple(tf.TensorSpec((None, *array.shape[1:]), array.dtype) for array in arrays)


def _dataset(generate: Any, signature: Any, steps: int) -> tf.data.Dataset:
    dataset = tf.data.Dataset.from_generator(generate, output_signature=signature)
    return dataset.apply(tf.data.experimental.assert_cardinality(steps)).prefetch(tf.data.AUTOTUNE)


def predict(model: keras.Model, pixels: NDArray[np.uint8], batch_size: int = 32) -> NDArray[np.float64]:
    """Probabilities [n, classes] of a model that takes uint8 [n, size, size, 3].

    Raises:
        InputError: the model answers with numbers that are not finite.
    """
    plain = batches(pixels, batch_size).map(lambda x: rgb(x[0]))
    return finite(model.name, model.predict(plain, verbose=0)[: len(pixels)].astype(np.float64))


def finite(name: str, probability: NDArray[np.float64]) -> NDArray[np.float64]:
    """The probabilities, if they are finite numbers.

    Raises:
        InputError: the model `name` answers with others.
    """
    if not np.isfinite(probability).all():
        raise InputError(f"{name} answers with numbers that are not finite; train it again")
    return probability
