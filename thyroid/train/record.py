"""What a training leaves in its folder, as whoever comes after it reads it."""

import json
from pathlib import Path
from typing import Any

import pandas as pd

from thyroid.errors import InputError

DIAGNOSIS = "diagnosis.json"
STARTED = "champion "
"""How the weights of a training are named that started from a champion; the champion's version follows."""


def read(folder: Path) -> dict[str, Any]:
    """The facts (train.json) of a training.

    Raises:
        InputError: the folder is not the output of a finished training.
    """
    return _json(folder, "train.json")


def diagnosis(folder: Path) -> dict[str, Any]:
    """What a training found when it looked into its model, as `diagnose.Diagnosis.facts`.

    Raises:
        InputError: the folder is not the output of a finished training.
    """
    return _json(folder, DIAGNOSIS)


def _json(folder: Path, name: str) -> dict[str, Any]:
    try:
        return json.loads((folder / name).read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{folder}: not a finished training ({name} is missing)") from None
    except ValueError as error:
        raise InputError(f"{folder / name}: not JSON: {error}") from None


def out_of_fold(folder: Path, domain: str) -> pd.DataFrame:
    """Predictions of a cross-validated training in a domain, each by a model that did not see the patient, by file.

    Raises:
        InputError: there is none.
    """
    table = pd.read_parquet(folder / "folds.parquet")
    table = table[table["domain"] == domain]
    if table.empty:
        raise InputError(f"{folder / 'folds.parquet'}: no prediction in the {domain} domain")
    return table.sort_values("file").reset_index(drop=True)


def parts(folder: Path) -> pd.Series:
    """What a training used each image for ("train" or "validation"), by file.

    Raises:
        InputError: the folder is not the output of a finished training.
    """
    try:
        return pd.read_csv(folder / "parts.csv").set_index("file")["part"]
    except FileNotFoundError:
        raise InputError(f"{folder}: not a finished training (parts.csv is missing)") from None
