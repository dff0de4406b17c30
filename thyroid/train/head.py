"""The dense head on frozen features: a softmax layer, fitted in milliseconds without TensorFlow.

As Keras would do it (Adam, L2 penalty, label smoothing, class weights, batches of 128, early stopping on the validation
loss with the best state restored); a test holds the two against each other. Training and the sweep fit it by this very
function, so that settings that were found are the settings that are used.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from thyroid.train.settings import Settings

EPOCHS = 100
BATCH = 128
PATIENCE = 10

_MOMENTS = (0.9, 0.999)
_TINY = 1e-7

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Head:
    """Kernel [width, classes] and bias [classes] for features as they are, and the epoch that was kept (from 1)."""

    kernel: Floats
    bias: Floats
    epoch: int

    def __call__(self, features: Floats) -> NDArray[np.float64]:
        """Probabilities [n, classes]."""
        return softmax(features @ self.kernel + self.bias).astype(np.float64)


def class_weights(labels: Floats, how: str) -> NDArray[np.float64]:
    """Weight of every class in the loss, from one-hot labels [n, classes] that hold every class; see `Settings`."""
    counts = labels.sum(axis=0, dtype=float)
    balanced = len(labels) / (len(counts) * counts)
    return {"balanced": balanced, "sqrt": np.sqrt(balanced), "none": np.ones(len(counts))}[how]


def fit(
    views: Sequence[Floats],
    labels: Floats,
    train: NDArray[np.intp],
    validation: NDArray[np.intp],
    settings: Settings,
    seed: int,
    watch: Callable[[int, Head], None] = lambda epoch, head: None,
) -> Head:
    """Fit the head on standardised features and fold the standardisation into its weights.

    Args:
        views: features [n, width] of the same images, the first of them plain; all are learnt from.
        labels: one-hot [n, classes].
        train: places of the training images.
        validation: likewise, for early stopping on their plain view.
        settings: head_rate, head_penalty, class_weight and label_smoothing.
        seed: of initialisation and order.
        watch: called after every epoch with its number and the head as it is then.
    """
    x = np.concatenate([view[train] for view in views])
    y = np.concatenate([labels[train]] * len(views))
    mean, deviation = x.mean(axis=0), x.std(axis=0)
    scale = deviation + 1e-3 * deviation.mean() + 1e-12  # a feature that is dead in training must not explode later
    x, held, truth = (x - mean) / scale, (views[0][validation] - mean) / scale, labels[validation]
    classes = y.shape[1]
    weight = class_weights(labels[train], settings.class_weight)[y.argmax(axis=1)].astype(np.float32)
    target = y * np.float32(1 - settings.label_smoothing) + np.float32(settings.label_smoothing / classes)
    rng = np.random.default_rng(seed)
    limit = np.sqrt(6 / (x.shape[1] + classes))
    # the bias is the last row, so that Adam moves one array
    weights = np.zeros((x.shape[1] + 1, classes), np.float32)
    weights[:-1] = rng.uniform(-limit, limit, (x.shape[1], classes))
    penalty = np.full((len(weights), 1), 2 * settings.head_penalty, np.float32)
    penalty[-1] = 0
    first, second = np.zeros_like(weights), np.zeros_like(weights)

    def folded() -> Head:
        kernel = weights[:-1] / scale[:, None]
        return Head(kernel, weights[-1] - mean @ kernel, epoch)

    best, lowest, wait, step = None, np.inf, 0, 0
    for epoch in range(1, EPOCHS + 1):
        order = rng.permutation(len(x))
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            error = softmax(x[rows] @ weights[:-1] + weights[-1]) - target[rows]
            error *= (weight[rows] / len(rows))[:, None]
            gradient = penalty * weights
            gradient[:-1] += x[rows].T @ error
            gradient[-1] += error.sum(axis=0)
            step += 1
            first += (1 - _MOMENTS[0]) * (gradient - first)
            second += (1 - _MOMENTS[1]) * (np.square(gradient) - second)
            rate = settings.head_rate * np.sqrt(1 - _MOMENTS[1] ** step) / (1 - _MOMENTS[0] ** step)
            weights -= np.float32(rate) * first / (np.sqrt(second) + np.float32(_TINY))
        watch(epoch, folded())
        loss = cross_entropy(softmax(held @ weights[:-1] + weights[-1]), truth)
        wait += 1
        if loss < lowest:
            best, lowest, wait = folded(), loss, 0
        if wait >= PATIENCE:
            break
    return best or folded()


def softmax(logits: Floats) -> Floats:
    """Of every row."""
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    return raised / raised.sum(axis=1, keepdims=True)


def cross_entropy(probability: NDArray, truth: NDArray) -> float:
    """Mean over the rows, without smoothing, weights and penalty: by it one head can be compared with another."""
    return float(-np.log(np.maximum((probability * truth).sum(axis=1), _TINY)).mean())
