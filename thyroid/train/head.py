"""Fits the dense head on frozen features: a softmax layer, in milliseconds and without TensorFlow.

The fit does what Keras would do: Adam, L2 penalty, label smoothing, class weights, batches of 128, and early stopping
on the validation loss with the best state restored. A test compares the two. Training and sweep share this function,
so that settings found by the sweep have the same effect in training.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from thyroid.records.settings import Settings

EPOCHS = 100
BATCH = 128
PATIENCE = 10

LOSS = "categorical_crossentropy"
"""Name of the loss without smoothing and penalty, by which models can be compared."""

_MOMENTS = (0.9, 0.999)
_TINY = 1e-7

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Head:
    """Computes probabilities from features.

    Attributes:
        kernel: [width, classes], for features that are not standardised.
        bias: [classes].
        epoch: Epoch that was kept, from 1.
    """

    kernel: Floats
    bias: Floats
    epoch: int

    def __call__(self, features: Floats) -> NDArray[np.float64]:
        """Return probabilities [n, classes] of features [n, width]."""
        return softmax(features @ self.kernel + self.bias).astype(np.float64)


def class_weights(labels: Floats, how: str) -> NDArray[np.float64]:
    """Return the weight of every class in the loss.

    Args:
        labels: One-hot [n, classes]. Every class must occur.
        how: `Settings.class_weight`.

    Returns:
        float64 [classes].
    """
    counts = labels.sum(axis=0, dtype=float)
    balanced = len(labels) / (len(counts) * counts)
    weights: NDArray[np.float64] = {"balanced": balanced, "sqrt": np.sqrt(balanced), "none": np.ones(len(counts))}[how]
    return weights


def fit(
    views: Sequence[Floats],
    labels: Floats,
    train: NDArray[np.intp],
    validation: NDArray[np.intp],
    settings: Settings,
    *,
    seed: int,
    watch: Callable[[int, Head], None] = lambda epoch, head: None,
) -> Head:
    """Fit the head on standardised features and fold the standardisation into its weights.

    Args:
        views: Features [n, width] of the same images, one array per view. The first view is not augmented. The head
            learns from all views.
        labels: One-hot [n, classes].
        train: Indices of the training images.
        validation: Indices of the images for early stopping, which uses their first view.
        settings: Settings, of which head_rate, head_penalty, class_weight and label_smoothing are used.
        seed: Seed of initialisation and order.
        watch: Function that is called after every epoch with its number and the current head.
    """
    x = np.concatenate([view[train] for view in views])
    y = np.concatenate([labels[train]] * len(views))
    mean, deviation = x.mean(axis=0), x.std(axis=0)
    scale = deviation + 1e-3 * deviation.mean() + 1e-12  # a feature that is constant in training must not explode later
    x, held, truth = (x - mean) / scale, (views[0][validation] - mean) / scale, labels[validation]
    classes = y.shape[1]
    weight = class_weights(labels[train], settings.class_weight)[y.argmax(axis=1)].astype(np.float32)
    target = y * np.float32(1 - settings.label_smoothing) + np.float32(settings.label_smoothing / classes)
    rng = np.random.default_rng(seed)
    adam = _Adam(x.shape[1], classes, settings, rng)

    def folded() -> Head:
        kernel = adam.weights[:-1] / scale[:, None]
        return Head(kernel, adam.weights[-1] - mean @ kernel, epoch)

    best, lowest, wait = None, np.inf, 0
    for epoch in range(1, EPOCHS + 1):
        order = rng.permutation(len(x))
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            adam.step(x[rows], target[rows], weight[rows])
        watch(epoch, folded())
        loss = cross_entropy(softmax(held @ adam.weights[:-1] + adam.weights[-1]), truth)
        wait += 1
        if loss < lowest:
            best, lowest, wait = folded(), loss, 0
        if wait >= PATIENCE:
            break
    return best or folded()


class _Adam:
    """Holds the head's weights while Adam updates them.

    Attributes:
        weights: float32 [width + 1, classes]. The bias is the last row, so that Adam updates a single array.
    """

    def __init__(self, width: int, classes: int, settings: Settings, rng: np.random.Generator) -> None:
        """Draw the initial kernel (Glorot's uniform distribution)."""
        self.rate = settings.head_rate
        limit = np.sqrt(6 / (width + classes))
        self.weights = np.zeros((width + 1, classes), np.float32)
        self.weights[:-1] = rng.uniform(-limit, limit, (width, classes))
        self.penalty = np.full((width + 1, 1), 2 * settings.head_penalty, np.float32)
        self.penalty[-1] = 0
        self.first, self.second = np.zeros_like(self.weights), np.zeros_like(self.weights)
        self.steps = 0

    def step(self, x: Floats, target: Floats, weight: Floats) -> None:
        """Update the weights by one batch of standardised features, smoothed labels and class weights per row."""
        error = softmax(x @ self.weights[:-1] + self.weights[-1]) - target
        error *= (weight / len(x))[:, None]
        gradient = self.penalty * self.weights
        gradient[:-1] += x.T @ error
        gradient[-1] += error.sum(axis=0)
        self.steps += 1
        self.first += (1 - _MOMENTS[0]) * (gradient - self.first)
        self.second += (1 - _MOMENTS[1]) * (np.square(gradient) - self.second)
        rate = self.rate * np.sqrt(1 - _MOMENTS[1] ** self.steps) / (1 - _MOMENTS[0] ** self.steps)
        self.weights -= np.float32(rate) * self.first / (np.sqrt(self.second) + np.float32(_TINY))


def softmax(logits: Floats) -> Floats:
    """Return the softmax of every row."""
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares: Floats = raised / raised.sum(axis=1, keepdims=True)
    return shares


def cross_entropy(probability: NDArray[np.floating], truth: NDArray[np.floating]) -> float:
    """Return the mean cross-entropy over the rows.

    It contains no smoothing, weights or penalty, so that heads of different settings can be compared by it.

    Args:
        probability: [n, classes].
        truth: One-hot or smoothed labels [n, classes].
    """
    return float(-np.log(np.maximum((probability * truth).sum(axis=1), _TINY)).mean())


def metrics(probability: NDArray[np.float64], truth: NDArray[np.float32], smoothing: float) -> dict[str, float]:
    """Return loss, `LOSS`, accuracy and AUROC by Keras' names.

    The loss is without class weights and penalty. The AUROC is the mean over the classes that occur.

    Args:
        probability: [n, classes].
        truth: One-hot [n, classes].
        smoothing: Label smoothing of `loss`.
    """
    both = truth.any(axis=0) & ~truth.all(axis=0)
    return {
        "loss": cross_entropy(probability, truth * (1 - smoothing) + smoothing / truth.shape[1]),
        LOSS: cross_entropy(probability, truth),
        "accuracy": float((probability.argmax(axis=1) == truth.argmax(axis=1)).mean()),
        "auroc": float(roc_auc_score(truth[:, both], probability[:, both])),
    }
