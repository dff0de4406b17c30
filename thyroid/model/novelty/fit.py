"""Fits the reference of an artefact on its training images (see `thyroid.model.novelty.novelty`)."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, stats

from thyroid.model.novelty.novelty import PICTURE, Reference

MOST = 2000
"""Most training images that a reference is fitted on."""

_COMPONENTS = 32
"""Principal components whose variance is kept apart, where there are enough images."""
_IMAGES_PER_COMPONENT = 8
_FLOOR = 0.1
"""Smallest scale of a feature, as a multiple of the median scale. A channel that is almost never active has a deviation
near zero, which any other image would exceed a thousandfold."""
_GREY_FLOOR, _SHARE_FLOOR = 0.5, 0.005
"""Smallest scale of the statistics of a picture: half a grey level, and half a percent of its pixels. Grey training
images have no colour at all, and another export may tint them by less than anybody sees."""
_RIDGE = 0.05
"""Added to the variances of the scaled statistics, which depend on each other."""
_FOLDS = 5
_MISSED = 0.005
"""Nominal probability that one more patient of the same hospital is beyond the limit."""


def draw(patients: NDArray[Any], seed: int, most: int = MOST) -> NDArray[np.intp]:
    """Return the places, in ascending order, of at most `most` images: those of whole patients, in a seeded draw.

    If the first patient alone has more, they are all images of this one.

    Args:
        patients: Patient of each image [n].
        seed: Seed of the draw.
        most: Largest number of images.
    """
    _, owner, counts = np.unique(patients, return_inverse=True, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(counts))
    drawn = order[np.cumsum(counts[order]) <= max(most, counts[order[:1]].sum())]
    return np.flatnonzero(np.isin(owner, drawn))


def fit(features: NDArray[np.floating[Any]]) -> Reference:
    """Fit a reference to the features of training images.

    Args:
        features: Third output of `explain.with_map` [n, 7 + d] of at least two images. At most `MOST`, because the
            time grows with n cubed.
    """
    own = len(PICTURE)
    mean = features.mean(axis=0, dtype=np.float64)
    deviation = features.std(axis=0, dtype=np.float64)
    least = np.full(len(mean), max(_FLOOR * float(np.median(deviation[own:])), 1e-6))
    least[:own] = [_SHARE_FLOOR if name in ("black", "white") else _GREY_FLOOR for name in PICTURE]
    scale = np.maximum(deviation, least)
    picture, scaled = np.split((features - mean) / scale, [own], axis=1)
    covariance = np.cov(picture, rowvar=False) + _RIDGE * np.eye(own)
    np.fill_diagonal(covariance, 1 + _RIDGE)  # that of a statistic at its floor would be less
    precision = linalg.inv(covariance)
    n, d = scaled.shape
    k = max(1, min(_COMPONENTS, n // _IMAGES_PER_COMPONENT, d // 2))
    # the products of images have the same variances as those of features, and are fewer where it takes long
    variances, vectors = linalg.eigh(scaled @ scaled.T / (n - 1), subset_by_index=(n - k, n - 1))
    variances = np.maximum(variances, 1e-6)
    directions = scaled.T @ vectors / np.sqrt(variances * (n - 1))
    residual = max((float(np.square(scaled).sum()) / (n - 1) - float(variances.sum())) / (d - k), 1e-6)
    mean, scale, directions = (one.astype(np.float32) for one in (mean, scale, directions))
    return Reference(mean, scale, precision, directions, variances, residual)


def cross_fitted(features: NDArray[np.floating[Any]], patients: NDArray[Any], seed: int) -> NDArray[np.float64]:
    """Return the distance of each training image from a reference that was fitted without its patient.

    A reference is nearer to the images that it was fitted on than to others, by far where there are more features than
    images.

    Args:
        features: Third output of `explain.with_map` [n, 7 + d].
        patients: Patient of each image [n], at least two.
        seed: Seed of the folds.

    Returns:
        float64 [n].
    """
    names, owner = np.unique(patients, return_inverse=True)
    fold = np.random.default_rng(seed).permutation(len(names)) % _FOLDS
    distances = np.empty(len(features))
    for held in np.unique(fold):
        inside = fold[owner] == held
        distances[inside] = fit(features[~inside]).distance(features[inside])
    return distances


def limit(
    distances: NDArray[np.float64],
    patients: NDArray[Any],
    fitted: NDArray[np.float64],
    fitted_patients: NDArray[Any],
) -> float:
    """Return the distance beyond which an image is unlike the training images.

    With few patients an empirical quantile says nothing about its tail. The limit is therefore a one-sided normal
    prediction bound for the logarithm of a further patient's largest distance (Hahn and Meeker 1991, Statistical
    Intervals, chapter 4). Its mean is that of validation patients, whom the network did not learn from. Its deviation
    is that of validation and training patients together, since that of a handful says little. The logarithms are
    skewed, so that more patients are beyond the limit than the nominal half percent; docs/results.md has the measured
    share.

    Args:
        distances: Distances of the validation images [n], above 0.
        patients: Patient of each of these images [n].
        fitted: Result of `cross_fitted` for the training images [m].
        fitted_patients: Patient of each of these images [m], at least two different ones.
    """
    largest, usual = _largest(distances, patients), _largest(fitted, fitted_patients)
    n, freedom = len(largest), len(largest) + len(usual) - 2
    squares = sum(float(np.square(one - one.mean()).sum()) for one in (largest, usual))
    reach = stats.t.ppf(1 - _MISSED, freedom) * np.sqrt(squares / freedom * (1 + 1 / n))
    return float(np.exp(largest.mean() + reach))


def _largest(distances: NDArray[np.float64], patients: NDArray[Any]) -> NDArray[np.float64]:
    """Return the logarithm of the largest distance of every patient."""
    _, owner = np.unique(patients, return_inverse=True)
    largest = np.full(owner.max() + 1, -np.inf)
    np.maximum.at(largest, owner, np.log(np.maximum(distances, 1e-9)))
    return largest
