"""Heads that tell descriptors, for tests that need no evaluation."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from tests.support.toy_artefact import CHANCE
from thyroid import tirads
from thyroid.model.descriptors.head import Head
from thyroid.records.model import DescriptorsRecord

TIRADS = {
    "cut": 4,
    "doubts": False,
    "why_not": "too few patients",
    "covered": CHANCE,
    "mean_width": 3.0,
    "compared": 4,
    "disagree": 1,
    "wrong_if_disagree": CHANCE,
    "wrong_if_agree": CHANCE,
}
"""What compared TI-RADS with the decisions of a toy model."""


def finding(descriptor: str, value: str, **changes: Any) -> dict[str, Any]:
    """A finding that is given out, whose fields but `changes` are the usual ones."""
    test = {"images": 4, "patients": 4, "positive_patients": 2}
    content = {
        "descriptor": descriptor,
        "value": value,
        "patients_with": 20,
        "patients_without": 20,
        "given": True,
        "why": None,
        "detail": "",
        "exclude": 0.3,
        "threshold": 0.5,
        "sure": 0.7,
        "development": {"value": 0.8, "low": 0.7, "high": 0.9},
        "blanked": CHANCE,
        "kept": 0.0,
        "shortcuts": {"grey_levels": CHANCE},
        "test": test
        | dict.fromkeys(("auroc", "kappa", "sensitivity", "specificity"), CHANCE)
        | dict.fromkeys(("ece", "ece_if_calibrated"), 0.1),
        "largest_difference": {},
    }
    return content | changes


def record(features: int, findings: Sequence[dict[str, Any]], **changes: Any) -> DescriptorsRecord:
    """The field `descriptors` of model.json for these results of `finding`, whose other fields are `changes`.

    Every value of the descriptors that are named has a label.
    """
    named = dict.fromkeys(one["descriptor"] for one in findings)
    content = {
        "columns": {name: name for name in named},
        "notes": [],
        "images": 40,
        "patients": 40,
        "features": features,
        "unfrozen": 1,
        "seen": {name: list(tirads.kinds(name)) for name in named},
        "findings": list(findings),
        "word_kappa": {},
        "tirads": TIRADS,
    }
    return DescriptorsRecord.parse(content | changes, "descriptors")


def head(features: int, findings: Sequence[tuple[str, str]], **changes: Any) -> Head:
    """A head that gives out these findings, with random weights.

    Args:
        features: Number of the network's features.
        findings: Descriptor and value of each.
        changes: Fields of its record.
    """
    random = np.random.default_rng(0)
    weight = random.normal(0, features**-0.5, (features, len(findings))).astype(np.float32)
    bias = random.normal(0, 0.1, len(findings)).astype(np.float32)
    return Head(record(features, [finding(*one) for one in findings], **changes), weight, bias)
