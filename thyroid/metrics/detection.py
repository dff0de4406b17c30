"""How well proposed boxes fit marked ones. Boxes are x, y, width, height in pixels."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from thyroid.interval import Interval
from thyroid.metrics.intervals import DRAWS, Draws, clopper_pearson, interval

FITS = 0.5
"""IoU from which a box fits (PASCAL VOC)."""
_RANKED = 3  # proposals per frame, as model.locator.MOST
_BLOCK = 100
"""Draws that are computed together, to bound the memory."""

Array = NDArray[np.float64]


def iou(boxes: ArrayLike, others: ArrayLike) -> Array:
    """Return the intersection over union of every pair of boxes.

    Args:
        boxes: Boxes [n, 4].
        others: Boxes [m, 4].

    Returns:
        float64 [n, m].
    """
    one = np.asarray(boxes, float).reshape(-1, 1, 4)
    other = np.asarray(others, float).reshape(1, -1, 4)
    low = np.maximum(one[..., :2], other[..., :2])
    high = np.minimum(one[..., :2] + one[..., 2:], other[..., :2] + other[..., 2:])
    shared = np.prod(np.maximum(high - low, 0), axis=-1)
    total = np.prod(one[..., 2:], axis=-1) + np.prod(other[..., 2:], axis=-1) - shared
    result: Array = shared / np.maximum(total, 1e-9)
    return result


@dataclass(frozen=True)
class Fits:
    """How well the proposals of each frame fit its marked boxes.

    Attributes:
        centre: Whether the centre of the best proposal lies in a marked box [n].
        iou: IoU of the best proposal with the marked box that it fits best [n].
        recall: Share of the marked boxes that one of the first three proposals fits [n].
    """

    centre: NDArray[np.bool_]
    iou: Array
    recall: Array

    @property
    def hit(self) -> NDArray[np.bool_]:
        """Whether the best proposal fits a marked box [n]."""
        return self.iou >= FITS


def compare(proposals: Sequence[ArrayLike], marked: Sequence[ArrayLike]) -> Fits:
    """Compare the proposals of each frame with its marked boxes.

    Args:
        proposals: Boxes [k, 4] per frame, the best one first, at least one.
        marked: Boxes [m, 4] per frame, at least one.
    """
    centres, overlaps, recalls = [], [], []
    for found, true in zip(proposals, marked, strict=True):
        boxes, truth = np.asarray(found, float).reshape(-1, 4), np.asarray(true, float).reshape(-1, 4)
        middle = boxes[0, :2] + boxes[0, 2:] / 2
        centres.append(bool(((middle >= truth[:, :2]) & (middle <= truth[:, :2] + truth[:, 2:])).all(1).any()))
        matrix = iou(boxes, truth)
        overlaps.append(float(matrix[0].max()))
        recalls.append(float((matrix[:_RANKED].max(0) >= FITS).mean()))
    return Fits(np.array(centres, bool), np.array(overlaps), np.array(recalls))


def average_precision_draws(
    proposals: Sequence[ArrayLike],
    scores: Sequence[ArrayLike],
    marked: Sequence[ArrayLike],
    patient: ArrayLike,
    draws: Draws,
) -> Array:
    """Return the average precision at an IoU of `FITS` on the sample and on every draw.

    A marked box counts once, for the proposal of the highest score that fits it. The area is under the precision that
    no higher recall exceeds, with every point of the curve (PASCAL VOC 2010).

    Args:
        proposals: Boxes [k, 4] per frame.
        scores: Score [k] of each proposal.
        marked: Boxes [m, 4] per frame.
        patient: Patient number of each frame.
        draws: Draws of these patients.
    """
    place = draws.places(patient)
    score, correct, owner, count = [], [], [], np.zeros(len(draws.patients))
    for found, heat, true, column in zip(proposals, scores, marked, place.tolist(), strict=True):
        boxes, truth = np.asarray(found, float).reshape(-1, 4), np.asarray(true, float).reshape(-1, 4)
        count[column] += len(truth)
        matrix, taken = iou(boxes, truth), np.zeros(len(truth), bool)
        values = np.asarray(heat, float)
        for row in np.argsort(-values, kind="stable"):
            best = int(np.where(taken, -1, matrix[row]).argmax())
            fits = bool(matrix[row, best] >= FITS and not taken[best])
            taken[best] |= fits
            score.append(float(values[row]))
            correct.append(fits)
            owner.append(column)
    order = np.argsort(-np.array(score), kind="stable")
    last = np.append(np.diff(np.array(score)[order]) != 0, True)  # proposals of equal scores count together
    hit, column = np.array(correct, float)[order], np.array(owner)[order]
    parts = np.array_split(draws.counts, -(-len(draws.counts) // _BLOCK))
    return np.concatenate([_average_precision(part, part @ count, hit, column, last) for part in parts])


def _average_precision(
    counts: Array, marked: Array, hit: Array, column: NDArray[np.intp], last: NDArray[np.bool_]
) -> Array:
    """Return the average precision of some draws.

    Args:
        counts: Number of times that each patient is in each draw [draws, patients].
        marked: Number of marked boxes in each draw [draws].
        hit: 1 for each proposal that counts as a hit [k], the highest score first, else 0.
        column: Patient of each proposal [k].
        last: Whether each proposal is the last one of its score [k].
    """
    weight = counts[:, column]
    hits = np.cumsum(weight * hit, axis=1)[:, last]
    precision = hits / np.maximum(np.cumsum(weight, axis=1)[:, last], 1e-9)
    precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    recall = hits / np.maximum(marked, 1e-9)[:, None]
    result: Array = (np.diff(recall, axis=1, prepend=0) * precision).sum(1)
    return result


def mean_interval(values: ArrayLike, patient: ArrayLike, seed: int = 0, draws: int = DRAWS) -> Interval:
    """Return the mean over frames with an interval that resamples patients.

    Where all frames have the same 0 or 1, the interval is the exact binomial one of as many patients.

    Args:
        values: Value of each frame [n], 0 to 1.
        patient: Patient number of each frame [n].
        seed: Seed of the draws.
        draws: Number of draws.
    """
    drawn, given = Draws(patient, draws, seed), np.asarray(values, float)
    exact = None
    if len(given) and (given == given[0]).all() and given[0] in (0, 1):
        patients = len(drawn.patients)
        exact = clopper_pearson(patients * int(given[0]), patients)
    return interval(drawn.totals(given, patient) / drawn.totals(np.ones(len(given)), patient), exact)
