"""Which labels the benchmark of suspects flips; its figures are not tested."""

import importlib

import numpy as np
import pytest

from tests.support import ROOT


@pytest.fixture(scope="module")
def bench():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "bench")
        yield importlib.import_module("suspects"), importlib.import_module("margins")


def test_labels_are_flipped_by_patient(bench):
    suspects, margins = bench
    patient = np.repeat(np.arange(100), 3)
    frames = margins.Frames(np.arange(300) % 2 == 0, patient, patient)
    flipped = suspects.flip(frames, np.random.default_rng(0))
    assert flipped.sum() == 15
    assert len(set(patient[flipped])) == 5
    assert (flipped != suspects.flip(frames, np.random.default_rng(1))).any()


def test_labels_that_features_contradict_are_found(bench):
    """Features that tell the true class leave nothing but the flipped labels to suspect."""
    suspects, margins = bench
    rng, patient = np.random.default_rng(0), np.arange(100)
    malignant = patient % 2 == 0
    features = malignant[:, None] * 4 + rng.normal(size=(100, 8))
    crops = margins.Crops({suspects.BLOCK: features}, patient)
    found = suspects.measure(crops, margins.Frames(malignant, patient, patient), rng)
    assert found["random"] == 0.05
    assert found["top_precision"] == found["top_recall"] == 1
    assert found["recall"] >= 0.8
    assert found["auroc"] > 0.95
