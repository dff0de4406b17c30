"""Reads the files that a training has left in its folder, for the steps that follow."""

import json
from pathlib import Path
from typing import Any

import pandas as pd

from thyroid.errors import InputError

DIAGNOSIS = "diagnosis.json"
STARTED = "champion "
"""Prefix of the name of the weights if a training started from a champion. The champion's version follows."""


def read(folder: Path) -> dict[str, Any]:
    """Read the facts (train.json) of a training.

    Raises:
        InputError: The folder is not the output of a finished training.
    """
    return _json(folder, "train.json")


def diagnosis(folder: Path) -> dict[str, Any]:
    """Read the diagnosis of a training's model, as `diagnose.Diagnosis.facts` returns it.

    Raises:
        InputError: The folder is not the output of a finished training.
    """
    return _json(folder, DIAGNOSIS)


def _json(folder: Path, name: str) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads((folder / name).read_text())
        return content
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{folder}: not a finished training ({name} is missing)") from None
    except ValueError as error:
        raise InputError(f"{folder / name}: not JSON: {error}") from None


def out_of_fold(folder: Path, domain: str) -> pd.DataFrame:
    """Read the out-of-fold predictions of a cross-validated training.

    Args:
        folder: Folder of the training.
        domain: Domain of the images.

    Returns:
        Predictions sorted by file, each by a model that did not see the patient.

    Raises:
        InputError: There is no prediction in the domain.
    """
    table = pd.read_parquet(folder / "folds.parquet")
    table = table[table["domain"] == domain]
    if table.empty:
        raise InputError(f"{folder / 'folds.parquet'}: no prediction in the {domain} domain")
    return table.sort_values("file").reset_index(drop=True)


def parts(folder: Path) -> pd.Series:
    """Read what a training used each image for.

    Returns:
        "train" or "validation" by file.

    Raises:
        InputError: The folder is not the output of a finished training.
    """
    try:
        return pd.read_csv(folder / "parts.csv").set_index("file")["part"]
    except FileNotFoundError:
        raise InputError(f"{folder}: not a finished training (parts.csv is missing)") from None
