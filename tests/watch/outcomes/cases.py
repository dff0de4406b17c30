"""Decisions as the log has them, outcomes.csv, and the model that decided."""

import datetime
from pathlib import Path
from typing import Any

import pandas as pd

from tests.support import toy_artefact
from thyroid.data import pseudonyms
from thyroid.records.model import ArtefactRecord
from thyroid.records.watch import Decision
from thyroid.watch.options import WatchOptions

SECRET = b"a secret of the tests"
SITE = "here"
NIGHT = "2026-06-30"


def record(**changes: Any) -> ArtefactRecord:
    """The model.json of a model that calls malignant from .5 on."""
    content = toy_artefact.description(**changes).to_dict()
    return ArtefactRecord.parse(content | {"code_version": "0", "files": {}, "version": 1}, "model.json")


def decision(probability: float, patient: str | None = None, image: str = "i", **fields: Any) -> dict[str, Any]:
    """A row of the table of decisions, on the image whose bytes have the SHA-256 `image`."""
    hashed = pseudonyms.of_file(SECRET, image)
    named = None if patient is None else pseudonyms.of_text(SECRET, SITE, patient)
    row = {
        **dict.fromkeys(Decision.model_fields),
        **{"id": f"{image}-{fields.get('time', '')}", "request": "r", "number": 0, "image": hashed, "patient": named},
        **{"time": pd.Timestamp("2026-01-01T10:00:00Z"), "version": 1, "form": "openvino-f32", "source": "given"},
        **{"probability": probability, "decision": "malignant" if probability >= 0.5 else "benign", "reasons": []},
        **{"width": 8, "height": 8, "box": [0, 0, 8, 8], "unit": named or "r"},
    }
    return row | fields


def table(*rows: dict[str, Any]) -> pd.DataFrame:
    """Return the decisions as a table, also where there are none."""
    return pd.DataFrame(rows, columns=[*Decision.model_fields, "unit"])


def options(folder: Path, *lines: str, header: str = "file,patient,pathology,date", **changes: Any) -> WatchOptions:
    """Write outcomes.csv with these lines and return the options that name it."""
    path = folder / "outcomes.csv"
    path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    given = {"sensitivity": 0.95, "specificity": 0.8, "site": SITE, "night": NIGHT}
    return WatchOptions(str(folder), log=str(folder), outcomes=str(path), **given | changes)


def day(number: int) -> str:
    """The day so many days after the first of January."""
    return (datetime.date(2026, 1, 1) + datetime.timedelta(days=number)).isoformat()
