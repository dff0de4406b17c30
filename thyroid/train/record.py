"""Writes the files of a training into its folder, and reads them for the steps that follow."""

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

import pandas as pd

from thyroid.data.version import DataVersion
from thyroid.errors import InputError
from thyroid.records.record import Record
from thyroid.records.train import DiagnosisRecord, TrainRecord
from thyroid.storage import backup
from thyroid.train import plots

TRAINING, DIAGNOSIS = "train.json", "diagnosis.json"
STARTED = "champion "
"""Prefix of the name of the weights if a training started from a champion. The champion's version follows."""

R = TypeVar("R", bound=Record)


def read(folder: Path) -> TrainRecord:
    """Read the record (train.json) of a training.

    Raises:
        InputError: The folder is not the output of a finished training, or the record is damaged.
    """
    return _read(TrainRecord, folder, TRAINING)


def diagnosis(folder: Path) -> DiagnosisRecord:
    """Read the diagnosis (diagnosis.json) of a training's model.

    Raises:
        InputError: As for `read`.
    """
    return _read(DiagnosisRecord, folder, DIAGNOSIS)


def _read(kind: type[R], folder: Path, name: str) -> R:
    try:
        return kind.read(folder / name)
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{folder}: not a finished training ({name} is missing)") from None


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


def require_data(folder: Path, training: TrainRecord, data: DataVersion) -> None:
    """Check that a training was made from the scans and the images of a data version.

    Two data versions of the same scans have the same digest, but with another margin their crops are other images,
    whose files have other names.

    Args:
        folder: Folder of the training.
        training: Its record.
        data: Data version of `crop`.

    Raises:
        InputError: The training is of other scans or images, or it is not finished.
    """
    if training.data_digest != data.digest:
        raise InputError(f"{folder}: trained on another data version than {data.folder}")
    if not parts(folder).index.isin(data.examples(training.train_domain)["name"]).all():
        own = "" if training.settings is None else f" (there the margin is {training.settings.margin:g})"
        raise InputError(
            f"{folder}: trained on other images{own} than those of {data.folder} (here it is {data.margin:g}); give "
            "the data version that it was trained on, or train again"
        )


def write_history(folder: Path, history: pd.DataFrame, title: str) -> None:
    """Write history.csv and its plot.

    Args:
        folder: Folder of the training.
        history: One row per epoch.
        title: Title of the plot.
    """
    history.to_csv(folder / "history.csv", index=False)
    plots.history(history, title, folder / "history.png")


def write_images(folder: Path, names: pd.Series, part: pd.Series, held_out: pd.DataFrame | None) -> None:
    """Write what the training used each image for (parts.csv), and its out-of-fold predictions (folds.parquet).

    Args:
        folder: Folder of the training. Predictions of an earlier training are removed.
        names: File names of the images.
        part: "train" or "validation" per image.
        held_out: Out-of-fold predictions, or None without folds.
    """
    pd.DataFrame({"file": names, "part": part}).to_csv(folder / "parts.csv", index=False)
    (folder / "folds.parquet").unlink(missing_ok=True)
    if held_out is not None:
        held_out.to_parquet(folder / "folds.parquet", index=False)


def copy_logs(work: Path, folder: Path) -> None:
    """Copy TensorBoard's logs from the work folder of a fit, if there are any."""
    if (logs := work / "tensorboard").is_dir():
        shutil.rmtree(folder / "tensorboard", ignore_errors=True)
        shutil.copytree(logs, folder / "tensorboard")


def tidy(work: Path, folder: Path, models: Iterable[str]) -> None:
    """Remove everything from the work folder that a repeated run does not need.

    A work folder within the training's folder is deleted. Any other one keeps the finished training: a repeated run
    returns it, while other trainings may still be running.

    Args:
        work: Work folder of the training.
        folder: Folder of the training.
        models: Names of the model's files in `folder`.
    """
    if work.parent == folder / ".work":
        shutil.rmtree(work.parent)
        return
    ready = work / "ready"
    shutil.rmtree(ready, ignore_errors=True)
    ready.mkdir()
    for name in (*models, "history.csv", "history.png", "parts.csv", "folds.parquet", DIAGNOSIS, TRAINING):
        if (folder / name).exists():
            shutil.copy(folder / name, ready / name)
    if (folder / "tensorboard").is_dir():
        shutil.copytree(folder / "tensorboard", ready / "tensorboard")
    ready.replace(work / backup.DONE)
    for path in work.iterdir():
        if path.name not in (backup.DONE, ".lock"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
