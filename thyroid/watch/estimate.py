"""The AUROC that the calibrated probabilities promise, without a single outcome.

Of two patients with probabilities p and q, one is malignant and the other benign with the probability p (1 - q), if the
probabilities are calibrated and the patients independent. The expected AUROC is the share of such pairs in the right
order. This is confidence-based performance estimation, as the documentation of NannyML describes it
(https://nannyml.readthedocs.io/en/stable/how_it_works/performance_estimation.html); the idea to read the performance on
unlabelled data from the confidence is that of Guillory et al. 2021 (10.1109/ICCV48922.2021.00117) and Garg et al. 2022
(arXiv:2201.04234).

It is right only as long as the probabilities are calibrated. It answers how well the model separates the patients that
now come if it still knows them as well as before. It cannot notice that the same picture now means another disease:
then the probabilities, and with them the estimate, stay as they are. It also holds for the patients in the log only,
and the mean over a patient's images is a little less calibrated than the images.
"""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from thyroid import metrics
from thyroid.interval import Interval
from thyroid.records.model import ArtefactRecord, KerasForm
from thyroid.records.watch import EstimatedPerformance
from thyroid.serve.answers import UNLIKE

_DIGITS = 4
"""Decimals of the probabilities, so that a log of any length has at most 10,001 different ones."""
_BLOCK = 50
"""Draws at once: 50 of 10,001 probabilities are 4 MB."""
_DOMAINS = {"given": "cropped", "whole": "cropped", "auto": "automatic", "frame": "normal"}
"""Domain of the internal test by source."""

Array = NDArray[np.float64]


def estimate(decisions: pd.DataFrame, record: ArtefactRecord, seed: int) -> list[EstimatedPerformance]:
    """Estimate the AUROC by patient of every source since the release.

    Images unlike the training images do not count, since calibration was never tested on such images. A source with
    fewer than two patients is left out.

    Args:
        decisions: Decisions of the version as `thyroid.watch.log.read` returns them.
        record: Content of the version's model.json.
        seed: Seed of the bootstrap.
    """
    tested = decisions[np.array([UNLIKE not in reasons for reasons in decisions["reasons"]], bool)]
    found = []
    for source, rows in tested.groupby("source"):
        probability = rows.groupby("unit")["probability"].mean().to_numpy(float)
        area = auroc(probability, seed)
        if area is not None:
            found.append(
                EstimatedPerformance(
                    source=str(source),
                    patients=len(probability),
                    auroc=area,
                    internal=_internal(record, str(source)),
                )
            )
    return found


def auroc(probability: Array, seed: int, draws: int = metrics.DRAWS) -> Interval | None:
    """Return the expected AUROC of independent patients with its 95 % interval.

    Every draw of the bootstrap draws patients with replacement and then the outcome of each by its probability. The
    interval therefore covers both the AUROC of these very patients, once their outcomes are known, and that of all
    patients whom they stand for.

    Args:
        probability: Calibrated probability of malignant of each patient [n].
        seed: Seed of the draws.
        draws: Number of draws.

    Returns:
        The interval; None for fewer than two patients, or if all probabilities are 0 or all are 1.
    """
    values, counts = np.unique(np.round(probability, _DIGITS), return_counts=True)
    expected = counts * values
    # Two patients of equal probability are in no order, and nobody forms a pair with himself.
    own = float((counts * values * (1 - values)).sum())
    ordered, pairs = _ordered(expected[None], (counts - expected)[None])
    if len(probability) < 2 or (weight := float(pairs[0]) - own) <= 0:
        return None
    value = (float(ordered[0]) - own / 2) / weight
    generator = np.random.default_rng(seed)
    areas = [np.array([value])]
    for start in range(0, draws, _BLOCK):
        shape = min(_BLOCK, draws - start)
        drawn = generator.multinomial(len(probability), counts / len(probability), size=shape)
        malignant = generator.binomial(drawn, values)
        ordered, pairs = _ordered(malignant.astype(float), (drawn - malignant).astype(float))
        with np.errstate(invalid="ignore"):
            areas.append(ordered / pairs)  # NaN where a draw has one class
    return metrics.interval(np.concatenate(areas))


def _ordered(malignant: Array, benign: Array) -> tuple[Array, Array]:
    """Return the weights of the pairs in the right order, ties counting half, and of all pairs, each [draws].

    Args:
        malignant: Weight of malignant patients by probability, ascending [draws, values].
        benign: That of benign ones.
    """
    below = np.cumsum(benign, axis=1)
    ordered: Array = (malignant * (below - benign / 2)).sum(axis=1)
    return ordered, malignant.sum(axis=1) * below[:, -1]


def _internal(record: ArtefactRecord, source: str) -> Interval | None:
    """Return the AUROC by patient of the internal test of a source; None where it was not measured."""
    keras = record.forms.get("keras")
    tested = keras.test.get(_DOMAINS[source]) if isinstance(keras, KerasForm) else None
    return None if tested is None else tested.patient_level.auroc
