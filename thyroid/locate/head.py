"""Trains the head of a locator on feature maps: a heat map of nodules' centres, and distances to the sides of the box.

The heat map is learnt with the penalty-reduced focal loss of "Objects as Points" (arXiv 1904.07850) on a wide Gaussian.
The box is learnt with the generalised IoU (arXiv 1902.09630) in all cells of that Gaussian (TTFNet, arXiv 1909.00700).
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thyroid.model import inputs, locator, locator_network
from thyroid.model.backend import XLA, keras, tf
from thyroid.train import checkpoints

RATE, DECAY = 2e-3, 1e-3
WARMUP = 0.1
BATCH = 16
BOX_WEIGHT = 5.0
SIGMA = 1 / 6
"""Standard deviation of the Gaussian around a centre, as a share of the nodule's sides."""
LEAST_SIGMA = 0.2
"""Smallest standard deviation in cells."""
REACH = 0.15
"""Value of the Gaussian from which a cell learns the box."""
DROPPED = 0.15
"""Share of the maps' channels that are set to zero in training, for the whole map at once."""

CONSTANTS = (RATE, DECAY, WARMUP, BATCH, BOX_WEIGHT, SIGMA, LEAST_SIGMA, REACH, DROPPED, locator_network.HEAD)
"""A resumed or reused training must use the same constants."""

Floats = NDArray[np.float32]


def targets(boxes: Floats, cells: int) -> Floats:
    """Return what the head should answer for one view.

    Args:
        boxes: Corners of the nodules in pixels of the input, float32 [k, 4].
        cells: Side of the maps.

    Returns:
        float32 [cells, cells, 6]: the heat; the corners of the nodule that the cell belongs to; and the cell's weight
        in the box loss, which adds up to 1 per nodule where no smaller one takes cells of a larger one.
    """
    stride = locator_network.STRIDE
    centres = (np.arange(cells, dtype=np.float32) + 0.5) * stride
    out = np.zeros((cells, cells, 6), np.float32)
    sides = boxes[:, 2:] - boxes[:, :2]
    for box, (wide, high) in sorted(zip(boxes, sides, strict=True), key=lambda one: -float(one[1].prod())):
        sigma_x, sigma_y = (max(SIGMA * side, LEAST_SIGMA * stride) for side in (wide, high))
        column, row = (
            int(min(cells - 1, max(0, (box[i] + box[i + 2]) / 2 // stride))) for i in (0, 1)
        )  # the cell of the centre is the peak, wherever in the cell the centre is
        bump = np.exp(
            -((centres[None] - centres[column]) ** 2) / (2 * sigma_x**2)
            - (centres[:, None] - centres[row]) ** 2 / (2 * sigma_y**2)
        )
        bump[row, column] = 1
        out[..., 0] = np.maximum(out[..., 0], bump)
        near = bump > REACH
        out[near, 1:5] = box
        out[..., 5] = np.where(near, bump / bump[near].sum(), out[..., 5])
    return out


class Views(inputs.Epochs):
    """Makes the training batches: every frame once an epoch, in one of its views, with some channels dropped.

    Args:
        maps: float16 [views, n, g, g, channels].
        answers: Targets of every view, float32 [views, n, g, g, 6].
        rows: Indices of the training frames.
        seed: Seed of order, views and dropped channels.
    """

    def __init__(self, maps: NDArray[np.float16], answers: Floats, rows: NDArray[np.intp], seed: int) -> None:
        """Start at the first frame of epoch 0."""
        super().__init__(list(maps), answers[0], rows, BATCH, seed)
        self.answers = answers

    def __iter__(self) -> Iterator[tuple[NDArray[Any], Floats]]:
        """Yield the batches of the present epoch."""
        rng = np.random.default_rng((self.seed, self.epoch))
        order, view = rng.permutation(self.rows), rng.integers(0, len(self.views), len(self.labels))
        channels = self.views[0].shape[-1]
        for start in range(0, len(order), self.batch_size):
            dropped = rng.random((self.batch_size, 1, 1, channels)) < DROPPED
            rows = order[start : start + (self.batch_size if start >= self.seen else 1)]
            maps = np.stack([self.views[view[row]][row] for row in rows]).astype(np.float32)
            maps *= ~dropped[: len(rows)] / np.float32(1 - DROPPED)
            yield maps, np.stack([self.answers[view[row], row] for row in rows])

    def dataset(self) -> tf.data.Dataset:
        """Return the batches as tf.data. Every iteration starts with the values that `epoch` and `seen` have then."""
        shape = self.views[0].shape[1:]
        specs = (tf.TensorSpec((None, *shape), tf.float32), tf.TensorSpec((None, *shape[:2], 6), tf.float32))
        batches = tf.data.Dataset.from_generator(self.__iter__, output_signature=specs)
        return batches.apply(tf.data.experimental.assert_cardinality(self.steps)).prefetch(tf.data.AUTOTUNE)


def loss(truth: Any, answer: Any) -> Any:
    """Return the loss of a batch.

    Args:
        truth: `targets`, float32 [n, g, g, 6].
        answer: Logit of the heat and distances, float32 [n, g, g, 5].
    """
    logit, heat = answer[..., 0], truth[..., 0]
    p = tf.sigmoid(logit)
    peak = heat >= 1
    nodules = tf.maximum(1.0, tf.reduce_sum(tf.cast(peak, tf.float32)))
    at_peak = -((1 - p) ** 2) * tf.math.log_sigmoid(logit)
    elsewhere = -((1 - heat) ** 4) * p**2 * tf.math.log_sigmoid(-logit)
    focal = tf.reduce_sum(tf.where(peak, at_peak, elsewhere))
    box = tf.reduce_sum(truth[..., 5] * (1 - _giou(_corners(answer[..., 1:]), truth[..., 1:5])))
    return (focal + BOX_WEIGHT * box) / nodules


def _corners(distances: Any) -> Any:
    """Return the box of every cell as `locator.decode` does, in TensorFlow."""
    stride = locator_network.STRIDE
    centres = (tf.range(distances.shape[1], dtype=tf.float32) + 0.5) * stride
    reach = tf.exp(tf.clip_by_value(distances, locator.NEAREST, locator.FARTHEST)) * stride
    x, y = centres[None, None, :], centres[None, :, None]
    return tf.stack([x - reach[..., 0], y - reach[..., 1], x + reach[..., 2], y + reach[..., 3]], -1)


def _giou(one: Any, other: Any) -> Any:
    """Return the generalised IoU of boxes [..., 4], given by their corners."""
    low, high = tf.maximum(one[..., :2], other[..., :2]), tf.minimum(one[..., 2:], other[..., 2:])
    shared = tf.reduce_prod(tf.maximum(high - low, 0.0), -1)
    total = tf.reduce_prod(one[..., 2:] - one[..., :2], -1) + tf.reduce_prod(other[..., 2:] - other[..., :2], -1)
    union = total - shared
    around = tf.maximum(one[..., 2:], other[..., 2:]) - tf.minimum(one[..., :2], other[..., :2])
    hull = tf.reduce_prod(around, -1)
    return shared / (union + 1e-6) - (hull - union) / (hull + 1e-6)


def fit(
    maps: NDArray[np.float16],
    answers: Floats,
    rows: NDArray[np.intp],
    folder: Path,
    *,
    epochs: int,
    seed: int,
    label: str,
    start: Sequence[NDArray[Any]] | None = None,
) -> keras.Model:
    """Train a head, or resume from the state in `folder`.

    Args:
        maps: float16 [views, n, g, g, channels].
        answers: Targets of every view, float32 [views, n, g, g, 6].
        rows: Indices of the training frames.
        folder: Folder for the state.
        epochs: Number of epochs.
        seed: Seed of initialisation, order, views and dropped channels.
        label: Prefix of the progress messages.
        start: Weights to start from; None for random ones.

    Returns:
        The head.

    Raises:
        TrainingDivergedError: The loss is not a finite number.
    """
    folder.mkdir(parents=True, exist_ok=True)
    keras.utils.set_random_seed(seed)
    head = locator_network.build_head(maps.shape[2], maps.shape[-1])
    if (done := checkpoints.load(folder / "head.npz")) is not None:
        head.set_weights([done[f"weight{number}"] for number in range(len(done))])
        return head
    if start is not None:
        head.set_weights(start)
    _train(head, Views(maps, answers, rows, seed), folder, epochs, label)
    weights = {f"weight{number}": value for number, value in enumerate(head.get_weights())}
    checkpoints.save(folder / "head.npz", **weights)
    _forget(folder)
    return head


def _train(head: keras.Model, views: Views, folder: Path, epochs: int, label: str) -> None:
    """Train a head in place, or resume from the state in `folder`."""
    model = keras.Model(head.input, keras.layers.Concatenate()(head.outputs), name="locator-head")
    steps = views.steps * epochs
    warmup = max(1, round(WARMUP * steps))
    rate = keras.optimizers.schedules.CosineDecay(0.0, max(1, steps - warmup), warmup_target=RATE, warmup_steps=warmup)
    model.compile(keras.optimizers.AdamW(rate, weight_decay=DECAY), loss, jit_compile=XLA)
    model.optimizer.build(model.trainable_variables)
    stopper = keras.callbacks.EarlyStopping("loss", patience=epochs + 1)  # never stops: Resume keeps its state
    resume = checkpoints.Resume(folder, views, stopper, label)
    if resume.epoch >= epochs:  # stopped in its last moment: Resume would restore the state only before another batch
        _forget(folder)
        resume = checkpoints.Resume(folder, views, stopper, label)
    try:
        model.fit(
            views.dataset(),
            initial_epoch=resume.epoch,
            epochs=epochs,
            shuffle=False,  # the batches are already shuffled
            verbose=0,
            callbacks=[checkpoints.ProgressBar(label), stopper, resume],
        )
    finally:
        resume.close()


def _forget(folder: Path) -> None:
    """Remove the state of a fit."""
    for name in ("state.npz", "state-before.npz"):
        (folder / name).unlink(missing_ok=True)


def answer(head: keras.Model, maps: NDArray[Any]) -> tuple[Floats, Floats]:
    """Return heat [n, g, g] and distances [n, g, g, 4] for maps [n, g, g, channels]."""
    logit, distances = head.predict(maps.astype(np.float32), batch_size=32, verbose=0)
    heat: Floats = 1 / (1 + np.exp(-logit[..., 0]))
    return heat, distances
