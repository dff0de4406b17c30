"""Records with little in them."""

from typing import Any

from thyroid.data.classes import BINARY
from thyroid.records.data import DataRecord
from thyroid.records.train import TrainRecord


def data_record(**fields: Any) -> DataRecord:
    """Return the content of a data.json without scans and with the given fields."""
    numbers = ("scans", "quarantined", "patients", "duplicate_groups", "regions", "synthetic", "looked_at")
    empty: dict[str, Any] = {
        **dict.fromkeys(numbers, 0),
        **{"source": "/scans", "cohort": "here", "digest": "x", "splits": {}, "notes": [], "inputs": None},
        **{"examined_by": 1, "seconds": {}, "files": {}},
        **{"classes": ["B", "M"], "positive": [False, True], "ordered": True},
    }
    return DataRecord(**empty | fields)


def train_record(**changes: Any) -> TrainRecord:
    """A training of two classes, with these fields instead of the usual ones."""
    content = {
        **BINARY.to_dict(),
        "backbone": "VGG16",
        "train_domain": "cropped",
        "weights": "imagenet",
        "image_size": 32,
        "epochs": 1,
        "batch_size": 8,
        "seed": 0,
        "recipe": "two-phase",
        "champion": None,
        "tap": "",
        "folds": 0,
        "only_fold": 0,
        "deterministic": False,
        "precision": "float32",
        "parameters": 1,
        "checkpoint": "VGG16-000-0.5000-0.5000.keras",
        "files": {},
        "epoch": 0,
        "validation": {"auroc": 0.5, "loss": 0.7, "accuracy": 0.5},
        "data_digest": "0" * 64,
        "seconds": 1.0,
    }
    return TrainRecord.parse(content | changes, "train.json")
