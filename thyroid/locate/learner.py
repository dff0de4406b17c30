"""Cross-fits a locator on the development frames, and trains the final one on the training part."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from thyroid.data import splits
from thyroid.locate import frames as framing
from thyroid.locate import head
from thyroid.locate.frames import Frames
from thyroid.locate.maps import Extractor
from thyroid.locate.proposals import Proposals

_CHUNK = 256  # images whose maps are in memory together

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Plan:
    """How much is computed. It does not follow the run's preset where weights are given.

    Attributes:
        size: Side of the input in pixels.
        views: Views per frame, the plain one included.
        epochs: Epochs of the head.
        folds: Folds of the cross-fitting.
    """

    size: int
    views: int
    epochs: int
    folds: int


FULL = Plan(size=224, views=7, epochs=60, folds=5)
TOY = Plan(size=128, views=3, epochs=12, folds=2)
"""For a body without weights, which shows how the pipeline works."""


def deal(frames: Frames, folds: int, seed: int) -> NDArray[np.int_]:
    """Return the fold of each frame, 0 to `folds` - 1, by patient and with equal shares of the classes.

    Args:
        frames: The frames.
        folds: Number of folds.
        seed: Seed of the deal.

    Raises:
        ValueError: Every class has fewer frames than there are folds.
    """
    rows = frames.table.sort_values("sha256")
    fold = splits.fold_of_rows(rows["class"], rows["group"].to_numpy(), folds, seed)
    result: NDArray[np.int_] = pd.Series(fold, rows.index).reindex(frames.table.index).to_numpy(int)
    return result


@dataclass(frozen=True)
class Learner:
    """Trains heads on the feature maps of marked frames.

    Attributes:
        frames: Marked frames.
        maps: Their feature maps, float16 [views, n, g, g, channels].
        plan: How much is computed.
        work: Folder that outlives the process.
        seed: Seed of initialisation, order and augmentation.
    """

    frames: Frames
    maps: NDArray[np.float16]
    plan: Plan
    work: Path
    seed: int

    def answers(self) -> Floats:
        """Return what a head should answer for every view of every frame, float32 [views, n, g, g, 6]."""
        views, count, cells = self.maps.shape[:3]
        out = np.zeros((views, count, cells, cells, 6), np.float32)
        names = self.frames.table["sha256"].tolist()
        for place, (boxes, name) in enumerate(zip(self.frames.targets(), names, strict=True)):
            out[0, place] = head.targets(boxes, cells)
            for number in range(1, views):
                rng = np.random.default_rng(framing.seed_of(name, number, self.seed))
                move = framing.augmentation(rng, self.frames.size)
                out[number, place] = head.targets(framing.moved_boxes(boxes, move, self.frames.size), cells)
        return out

    def cross_fit(self, fold: NDArray[np.int_]) -> list[Any]:
        """Return one head per fold, trained on the frames of the other folds.

        Args:
            fold: Fold of each frame [n].
        """
        answers = self.answers()
        return [
            self._fit(answers, np.flatnonzero(fold != number), f"fold-{number + 1}")
            for number in range(self.plan.folds)
        ]

    def fit(self, rows: NDArray[np.intp], start: Sequence[NDArray[Any]] | None = None) -> Any:
        """Return the head that is trained on the frames at `rows`.

        Args:
            rows: Indices of the frames.
            start: Weights to start from; None for random ones.
        """
        return self._fit(self.answers(), rows, "final", start)

    def _fit(
        self, answers: Floats, rows: NDArray[np.intp], name: str, start: Sequence[NDArray[Any]] | None = None
    ) -> Any:
        return head.fit(
            self.maps,
            answers,
            rows,
            self.work / name,
            epochs=self.plan.epochs,
            seed=self.seed,
            label=f"locator {name}",
            start=start,
        )

    def held_out(self, heads: Sequence[Any], fold: NDArray[np.int_]) -> Proposals:
        """Return the proposals for every frame by the head that did not learn from its patient.

        Args:
            heads: Result of `cross_fit`.
            fold: Fold of each frame [n].
        """
        heat, distances = _by_fold(heads, fold, self.maps[0])
        return Proposals.read(self.frames, heat, distances)


def answers(network: Any, pixels: NDArray[np.uint8]) -> tuple[Floats, Floats]:
    """Return what a locator's network answers to images, uint8 [n, size, size, 3], a part of them at a time."""
    starts = range(0, max(1, len(pixels)), _CHUNK)
    parts = [network.predict(pixels[start : start + _CHUNK], batch_size=16, verbose=0) for start in starts]
    heat, distances = (np.concatenate(one) for one in zip(*parts, strict=True))
    return heat, distances


def propose_on(
    pixels: NDArray[np.uint8], extractor: Extractor, heads: Sequence[Any], fold: NDArray[np.int_], frames: Frames
) -> Proposals:
    """Return the proposals for images by the head of each image's fold.

    Args:
        pixels: uint8 [n, size, size, 3].
        extractor: Computes their maps.
        heads: A head per fold.
        fold: Fold of each image [n].
        frames: The images with their scan areas.
    """
    parts = [
        _by_fold(heads, fold[start : start + _CHUNK], extractor.plain(pixels[start : start + _CHUNK]))
        for start in range(0, len(pixels), _CHUNK)
    ]
    return Proposals.read(frames, *(np.concatenate(one) for one in zip(*parts, strict=True)))


def _by_fold(heads: Sequence[Any], fold: NDArray[np.int_], maps: NDArray[Any]) -> tuple[Floats, Floats]:
    heat = np.zeros(maps.shape[:3], np.float32)
    distances = np.zeros((*maps.shape[:3], 4), np.float32)
    for number, one in enumerate(heads):
        if (held := fold == number).any():
            heat[held], distances[held] = head.answer(one, maps[held])
    return heat, distances
