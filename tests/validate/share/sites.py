"""Simulated sites, and the files that they share."""

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tests.support.validations import validation
from thyroid.data.classes import BINARY
from thyroid.evaluate import predictions
from thyroid.evaluate.performance import SUBGROUP
from thyroid.model.operating_point import OperatingPoint
from thyroid.records.share import SiteRecord
from thyroid.records.validation import ValidationRecord
from thyroid.validate.share import share, signature

POINT = OperatingPoint(1.0, (0.0, 0.0), 0.4, (0.5, 0.5))


def predicted(malignant: Sequence[float], benign: Sequence[float]) -> pd.DataFrame:
    """Predictions of one image per patient, from the patients' probabilities of malignant."""
    score = np.array([*malignant, *benign])
    name = np.array(["M"] * len(malignant) + ["B"] * len(benign), object)
    patient = np.arange(len(score)) + 7_000_001
    table = pd.DataFrame(
        {
            "path": [f"site/{side}_{number}-0001-1.0.jpg" for side, number in zip(name, patient, strict=True)],
            "class": name,
            "label": name,
            "patient": patient,
            "probability_B": 1 - score,
            "probability_M": score,
        }
    )
    return predictions.at_point(table, POINT, BINARY)


def simulated(malignant: int = 60, benign: int = 90, skill: float = 0.9, seed: int = 0) -> pd.DataFrame:
    """Predictions with some overlap of the classes, so that both kinds of mistakes are made."""
    generator = np.random.default_rng(seed)
    sides = [generator.normal(middle, 1, count) for middle, count in ((skill, malignant), (-skill, benign))]
    return predicted(*(1 / (1 + np.exp(-side)) for side in sides))


def grouped(table: pd.DataFrame, **columns: Any) -> pd.DataFrame:
    """Subgroups by the path of the scan."""
    return pd.DataFrame({SUBGROUP + name: groups for name, groups in columns.items()}, index=table["path"])


@functools.cache
def _record() -> ValidationRecord:
    return validation(patients=30, kinds=("given",)).record


def record(site: str = "Saint Elsewhere", **changes: Any) -> ValidationRecord:
    return _record().model_copy(update={"site": site, **changes})


def shared(folder: Path, site: str, table: pd.DataFrame, groups: pd.DataFrame | None = None, **changes: Any) -> Path:
    """Share a table of predictions as a site does, and put its public key among the known ones."""
    (folder / "keys").mkdir(exist_ok=True)
    path, key = folder / f"{site}.json", folder / f"{site}.pem"
    share.write(
        path, key, record(site, **changes), table, groups=grouped(table) if groups is None else groups, point=POINT
    )
    public = folder / f"{site}.pem.pub"
    (folder / "keys" / signature.file_name(site)).write_bytes(public.read_bytes())
    return path


def content(path: Path) -> SiteRecord:
    return SiteRecord.read(path)


def resigned(path: Path, **changes: Any) -> Path:
    """Write the file with other fields and a valid signature of its site, as a foreign tool might."""
    fields = json.loads(path.read_bytes()) | changes
    fields.pop("signature")
    key, _ = signature.private_key(path.with_suffix(".pem"))
    path.write_bytes(signature.sign(fields, key))
    return path
