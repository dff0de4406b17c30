"""Records with little in them."""

from typing import Any

from thyroid.records.data import DataRecord


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
