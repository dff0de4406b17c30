"""Spearman's rank correlation of two scores of the same images."""

import numpy as np
from numpy.typing import ArrayLike

from thyroid.interval import Interval
from thyroid.metrics.intervals import DRAWS, Array, Draws, interval


def rank_correlation(
    score: ArrayLike, other: ArrayLike, patient: ArrayLike, *, draws: int = DRAWS, seed: int = 0
) -> Interval:
    """Return Spearman's rank correlation of two scores of the same images, with its interval.

    A score that is the same for all images says nothing of their order. The correlation is 0 then, without bounds.

    Args:
        score: Score of each image [n].
        other: The other score of each image [n].
        patient: Patient number [n]. Whole patients are drawn.
        draws: Number of bootstrap draws.
        seed: Seed of the draws.
    """
    resampled = Draws(patient, draws, seed)
    drawn = rank_correlation_draws(resampled, score, other, patient)
    if not np.isfinite(drawn[0]):
        return Interval(0.0, None, None)
    found = interval(drawn)
    return found if len(resampled.patients) > 1 else Interval(found.value, None, None)


def rank_correlation_draws(draws: Draws, score: ArrayLike, other: ArrayLike, patient: ArrayLike) -> Array:
    """Return Spearman's rank correlation of the sample and of every draw [1 + draws].

    It is Pearson's correlation of the midranks (Spearman 1904, 10.2307/1412159). An image that is drawn several times
    is tied with itself. It is NaN where a draw has only one value of a score.

    Args:
        draws: Draws that cover at least the patients of these images.
        score: Score of each image [n].
        other: The other score of each image [n].
        patient: Patient number [n].
    """
    weight = draws.counts[:, draws.places(patient)]
    centred = [_centred(_midranks(np.asarray(column, float), weight), weight) for column in (score, other)]
    with np.errstate(invalid="ignore", divide="ignore"):
        squares = [(weight * column**2).sum(axis=1) for column in centred]
        correlation: Array = (weight * centred[0] * centred[1]).sum(axis=1) / np.sqrt(squares[0] * squares[1])
    correlation[(squares[0] < 1e-9) | (squares[1] < 1e-9)] = np.nan
    return np.clip(correlation, -1, 1)


def _midranks(score: Array, weight: Array) -> Array:
    """Return the midrank of every image in every draw [draws, n], where image i is there weight[draw, i] times."""
    distinct, place = np.unique(score, return_inverse=True)
    tied = np.zeros((len(weight), len(distinct)))
    np.add.at(tied.T, place, weight.T)
    upto = np.cumsum(tied, axis=1)
    ranks: Array = (upto - tied / 2 + 0.5)[:, place]
    return ranks


def _centred(ranks: Array, weight: Array) -> Array:
    """Return the ranks less their mean in the draw."""
    mean: Array = (weight * ranks).sum(axis=1, keepdims=True) / weight.sum(axis=1, keepdims=True)
    return ranks - mean
