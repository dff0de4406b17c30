"""External validations as the registry keeps them, for tests that need no validation."""

from pathlib import Path
from typing import Any

from thyroid.model.artefact import CARD, sha256
from thyroid.records.validation import ValidationEntry
from thyroid.registry.registry import Registry
from thyroid.storage import Location

NONE = {"internal": None, "external": None, "difference": None}


def interval(value: float, low: float | None, high: float | None) -> dict[str, float | None]:
    """Return an interval as JSON."""
    return {"value": value, "low": low, "high": high}


def beside(internal: float, external: float, half: float = 0.05) -> dict[str, Any]:
    """A metric with intervals of this half width, and its difference with one that is 1.4 times as wide."""
    inside, outside = (interval(value, value - half, min(1.0, value + half)) for value in (internal, external))
    fall = external - internal
    return {"internal": inside, "external": outside, "difference": interval(fall, fall - 1.4 * half, fall + 1.4 * half)}


def entry(model: str = "0" * 64, site: str = "Seoul East", **changes: Any) -> ValidationEntry:
    """A validation of the model with this SHA-256, where AUROC and sensitivity fell."""
    figures = {
        "auroc": beside(0.92, 0.78),
        "sensitivity": beside(0.95, 0.84),
        "specificity": beside(0.7, 0.72),
        "ppv_at_prevalence": beside(0.26, 0.25),
        "npv_at_prevalence": NONE,
        "patient_auroc": beside(0.93, 0.8),
    }
    content = {
        "site": site,
        "created": "2025-03-01T09:00:00+00:00",
        "by": "Kim",
        "code_version": "0.1.0+abc",
        "data_digest": "d" * 64,
        "model": model,
        "boxes": "given",
        "images": 240,
        "patients": 120,
        "malignant_patients": 40,
        "taken_out": 3,
        "synthetic": 0,
        "figures": figures,
        "in_the_large": interval(0.4, 0.1, 0.7),
        "slope": interval(0.8, 0.6, 1.1),
        "observed_to_expected": None,
    }
    return ValidationEntry.parse(content | changes, "entry")


def of(root: Location, version: int = 1, site: str = "Seoul East", **changes: Any) -> ValidationEntry:
    """A validation of a version in a registry."""
    folder: Path = Registry(root).find(str(version), CARD)
    return entry(sha256(folder / CARD[0]), site, **changes)
