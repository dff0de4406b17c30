"""The AUROC that the probabilities promise: right while they are calibrated, wrong when they are not."""

import numpy as np
import pandas as pd
import pytest

from tests.support import toy_artefact
from thyroid import metrics
from thyroid.records.model import ArtefactRecord
from thyroid.watch import estimate


def record(**forms) -> ArtefactRecord:
    described = toy_artefact.description(**forms).to_dict()
    return ArtefactRecord.parse(described | {"code_version": "0", "files": {}}, "model.json")


def decisions(probability, **columns) -> pd.DataFrame:
    n = len(probability)
    content = {
        "probability": probability,
        "unit": [f"{one}" for one in range(n)],
        "source": "given",
        "reasons": [[] for _ in range(n)],
    }
    return pd.DataFrame(content | columns)


def truth(probability: np.ndarray, malignant: np.ndarray) -> float:
    return float(metrics.auroc(malignant, probability, np.arange(len(probability))).value)


def population() -> float:
    """AUROC of calibrated probabilities from a beta distribution of 1 and 2, from a large sample."""
    rng = np.random.default_rng(99)
    score = rng.beta(1, 2, 200_000)
    malignant = rng.random(len(score)) < score
    ranks = pd.Series(score).rank().to_numpy()
    count = int(malignant.sum())
    return float((ranks[malignant].sum() - count * (count + 1) / 2) / (count * (len(score) - count)))


def test_the_interval_of_calibrated_probabilities_covers_the_true_auroc():
    rng, true = np.random.default_rng(0), population()
    hits = {"these patients": 0, "all patients": 0}
    for seed in range(300):
        score = rng.beta(1, 2, 80)
        malignant = rng.random(80) < score
        found = estimate.auroc(score, seed, draws=400)
        assert found is not None
        hits["these patients"] += found.low <= truth(score, malignant) <= found.high
        hits["all patients"] += found.low <= true <= found.high
    assert {name: count / 300 >= 0.93 for name, count in hits.items()} == dict.fromkeys(hits, True)


def test_the_estimate_is_the_mean_over_all_outcomes_weighted_by_their_pairs():
    score = np.array([0.1, 0.4, 0.4, 0.8])
    ordered = pairs = 0.0
    for i, p in enumerate(score):
        for j, q in enumerate(score):
            if i != j:
                pairs += p * (1 - q)
                ordered += p * (1 - q) * ((p > q) + (p == q) / 2)
    found = estimate.auroc(score, 0)
    assert found is not None
    assert found.value == pytest.approx(ordered / pairs)


def test_overconfident_probabilities_promise_too_much():
    """This is the limit of the method: no outcome is looked at, and so nothing contradicts the probabilities."""
    rng = np.random.default_rng(0)
    logit = rng.normal(-1, 1, 2000)
    malignant = rng.random(2000) < 1 / (1 + np.exp(-logit))
    found = estimate.auroc(1 / (1 + np.exp(-3 * logit)), 0)
    assert found is not None
    assert found.low is not None
    assert truth(logit, malignant) < found.low - 0.05


def test_each_source_is_estimated_by_patient_beside_its_internal_test():
    rows = decisions([0.1, 0.3, 0.9, 0.8, 0.2], unit=["a", "a", "b", "c", "d"], source=["given"] * 3 + ["auto"] * 2)
    given, auto = sorted(estimate.estimate(rows, record(), 0), key=lambda one: one.source, reverse=True)
    assert (given.source, given.patients, auto.source, auto.patients) == ("given", 2, "auto", 2)
    assert given.auroc.value == pytest.approx(estimate.auroc(np.array([0.2, 0.9]), 0).value)
    assert auto.internal is None
    level = toy_artefact.LEVEL | {"auroc": {"value": 0.9, "low": 0.8, "high": 0.95}}
    tested = toy_artefact.KERAS | {"test": {"cropped": toy_artefact.TEST | {"patient_level": level}}}
    known = record(forms={"keras": tested})
    (first,) = (one for one in estimate.estimate(rows, known, 0) if one.source == "given")
    assert first.internal is not None
    assert first.internal.value == 0.9


def test_images_unlike_the_training_images_do_not_count():
    rows = decisions([0.1, 0.5, 0.9], reasons=[[], ["unlike_training", "box_unsure"], ["box_unsure"]])
    (found,) = estimate.estimate(rows, record(), 0)
    assert found.patients == 2


@pytest.mark.parametrize("score", [[], [0.4], [0.0, 0.0], [1.0, 1.0, 1.0]])
def test_without_a_possible_pair_there_is_no_estimate(score):
    assert estimate.estimate(decisions(score), record(), 0) == []


def test_many_patients_give_a_narrow_interval_around_the_same_value():
    score = np.random.default_rng(0).beta(1, 2, 20_000)
    few, many = estimate.auroc(score[:200], 0), estimate.auroc(score, 0)
    assert many.value == pytest.approx(population(), abs=0.01)
    assert many.high - many.low < (few.high - few.low) / 5
