"""Calibration: how far probabilities are from the observed shares of malignant images."""

import numpy as np
from numpy.typing import ArrayLike

from thyroid.metrics.intervals import Array, Draws

BINS = 10
"""Number of equally wide bins of probability in the reliability diagram and the expected calibration error."""


def brier_draws(draws: Draws, positive: ArrayLike, probability: ArrayLike, patient: ArrayLike) -> Array:
    """Return the Brier score of the sample and of every draw [1 + draws] (Brier 1950).

    It is the mean squared difference of probability and truth. 0 is perfect; prevalence x (1 - prevalence) is
    ignorance.

    Args:
        draws: Draws that cover at least the patients of these images.
        positive: bool or 0/1 [n], True for malignant.
        probability: Probability of malignant [n].
        patient: Patient number [n].
    """
    truth, score = np.asarray(positive, float), np.asarray(probability, float)
    error, count = draws.totals(np.stack([(score - truth) ** 2, np.ones(len(truth))], axis=1), patient).T
    brier: Array = error / count
    return brier


def ece_draws(draws: Draws, positive: ArrayLike, probability: ArrayLike, patient: ArrayLike) -> Array:
    """Return the expected calibration error on the sample and on every draw [1 + draws].

    It is how far the probability of malignant is from the observed share of malignant, averaged over images in `BINS`
    bins of equal width (Naeini et al. 2015). Small sets overstate it: even perfect probabilities do not score 0.

    Args:
        draws: Draws that cover at least the patients of these images.
        positive: bool or 0/1 [n], True for malignant.
        probability: Probability of malignant [n].
        patient: Patient number [n].
    """
    truth, score = np.asarray(positive, float), np.asarray(probability, float)
    place = np.minimum((score * BINS).astype(int), BINS - 1)
    gap = np.zeros((len(score), BINS))
    gap[np.arange(len(score)), place] = score - truth
    ece: Array = np.abs(draws.totals(gap, patient)).sum(axis=1) / draws.totals(np.ones(len(score)), patient)
    return ece


def ece_if_calibrated(probability: ArrayLike, patient: ArrayLike, draws: int = 1000, seed: int = 0) -> float:
    """Return the mean expected calibration error of as many images whose probabilities are perfectly calibrated.

    Consistency resampling (Broecker & Smith 2007, 10.1175/WAF993.1): truths are drawn from the probabilities, with one
    random number per patient, since a patient's images are of the same kind.

    Args:
        probability: Probability of malignant [n].
        patient: Patient number [n].
        draws: Number of resamplings.
        seed: Seed of the resamplings.
    """
    score = np.asarray(probability, float)
    code = np.unique(np.asarray(patient), return_inverse=True)[1]
    place = np.minimum((score * BINS).astype(int), BINS - 1)
    drawn = np.random.default_rng(seed).random((draws, code.max() + 1))[:, code] < score
    gap = (score - drawn) @ np.eye(BINS)[place]
    return float(np.abs(gap).sum(axis=1).mean() / len(score))
