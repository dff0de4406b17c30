"""Complete contents of model.json for tests, and benchmarks, that need no evaluation."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from thyroid.data.classes import BINARY
from thyroid.imaging.geometry import MARGIN
from thyroid.model.novelty import fit
from thyroid.model.novelty.novelty import QUANTILES, Novelty
from thyroid.records.gate import GateRecord
from thyroid.records.model import ModelDescription, NoveltyRecord

CHANCE = {"value": 0.5, "low": 0.4, "high": 0.6}
LEVEL: dict[str, Any] = dict.fromkeys(("brier", "ece", "ece_unscaled"), CHANCE) | {
    "ece_if_calibrated": 0.1,
    "accuracy": 0.5,
    "majority": 0.5,
    "confusion": [[1, 1], [1, 1]],
    "class_confusion": [[1, 1], [1, 1]],
}
TEST = {"n": 4, "patients": 4, "auroc": CHANCE, "patient_level": LEVEL, "classes": {}} | LEVEL
METRICS = dict.fromkeys(("auroc", "macro_auroc", "sensitivity", "specificity", "ece", "ece_unscaled"), CHANCE)
KERAS = {
    "validation": {"n": 4, "patients": 4, "malignant_patients": 2} | METRICS,
    "test": {"cropped": TEST},
}


def other_form(difference: float) -> dict[str, Any]:
    """Another form than Keras whose probabilities differ by as much."""
    test = {"n": 4, "auroc": CHANCE, "ece": CHANCE, "confusion": [[1, 1], [1, 1]]}
    return {"largest_difference": difference, "decisions_changed": 0, "test": test}


def description(differences: Mapping[str, float] | None = None, **changes: Any) -> ModelDescription:
    """A model with the forms Keras and those in `differences`, whose other fields are `changes`."""
    content = {
        "name": "thyroid",
        "backbone": "VGG16",
        "weights": "none",
        **BINARY.to_dict(),
        "image_size": 32,
        "domain": "cropped",
        "margin": MARGIN,
        "serving_domain": "cropped",
        "parameters": 1,
        "data_digest": "0" * 64,
        "scans": 4,
        "synthetic": 4,
        "temperature": 1.0,
        "bias": [0.0, 0.0],
        "threshold": 0.5,
        "thresholds": [0.5, 0.5],
        "settings": {"sensitivity": 0.95, "abstain": 0.0, "prevalence": 0.1},
        "reference": {"B": 0.5, "M": 0.5},
        "forms": {"keras": KERAS} | {form: other_form(value) for form, value in (differences or {}).items()},
        "audits": {"domain": "cropped", "shortcut": {}, "kept": {}, "findings": {}},
    }
    return ModelDescription.parse(content | changes, "model.json")


def novelty(features: np.ndarray, patients: np.ndarray, factor: float = 1.0) -> tuple[Novelty, NoveltyRecord]:
    """A reference of these features [n, d] of training images, whose limit is locked on the same patients.

    Args:
        features: Pooled features of images, at least eight.
        patients: Patient of each image [n], at least two different ones.
        factor: What the limit is multiplied by.
    """
    distances = fit.cross_fitted(features, patients, seed=0)
    quantiles = np.quantile(distances, np.linspace(0, 1, QUANTILES))
    limit = fit.limit(distances, patients, distances, patients)
    made = Novelty(**vars(fit.fit(features)), quantiles=quantiles, limit=limit * factor)
    content = {
        "images": len(features),
        "patients": len(np.unique(patients)),
        "features": len(made.mean),
        "components": len(made.variances),
        "quantiles": quantiles.tolist(),
        "limit": made.limit,
        "validation_patients": len(np.unique(patients)),
        "passed": CHANCE,
        "largest_difference": {},
        "foreign": [{"kind": "blank", "images": 4, "auroc": CHANCE, "caught": 1.0}],
    }
    return made, NoveltyRecord.parse(content, "novelty")


def gate(
    decision: str = "promoted", champion: int | None = None, reasons: Sequence[str] = ("r",), **changes: Any
) -> GateRecord:
    """A decision that was made against this champion."""
    content = {
        "decision": decision,
        "reasons": list(reasons),
        "criteria": [],
        "champion": champion,
        "comparison": None,
        "anchor": None,
        "anchor_comparison": None,
        "ahead_of": None,
        "waived": [],
        "test_digest": "0" * 64,
    }
    return GateRecord.parse(content | changes, "gate")
