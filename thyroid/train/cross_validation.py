"""Divides the development part of a data version into folds by patient, and predicts every image in its held-out fold.

The development part consists of the train and validation splits. The test split is never trained on.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from thyroid import atomic, errors
from thyroid.data import splits, tables
from thyroid.data.classes import Classes
from thyroid.data.filenames import CLASSES, SCORE
from thyroid.data.version import DataVersion
from thyroid.errors import InputError
from thyroid.model import inputs
from thyroid.storage import Location
from thyroid.train.twophase import Job

log = logging.getLogger(__name__)

MAIN = "main"
"""Name of the fit on the train split. The others are named after their folds."""

INNER_FOLDS = 8
"""In cross-validation, one in this many patients of the other folds is set aside for early stopping.

With fewer folds than this, the number of folds is used instead.
"""


@dataclass(frozen=True)
class Development:
    """The development part of a data version in one domain.

    Attributes:
        data: The data version.
        domain: Domain of the images.
        table: Images of the train and validation splits, as rows of `DataVersion.examples` `with_jitter`.
    """

    data: DataVersion
    domain: str
    table: pd.DataFrame

    @classmethod
    def read(cls, folder: Path, domain: str = "") -> "Development":
        """Read the development part of a data version of `crop`.

        Args:
            folder: Folder of the data version.
            domain: Domain of the images. Empty for the first one that the data version was made for.

        Raises:
            InputError: The folder is no data version, or its images are not cropped.
        """
        data = DataVersion.read(folder)
        default = data.domains[0]
        domain = domain or default
        return cls(data, domain, data.with_jitter(development_images(data, domain)))

    @property
    def classes(self) -> Classes:
        """The classes of the data version."""
        return self.data.classes

    @property
    def labels(self) -> NDArray[np.float32]:
        """One-hot classes of the images, float32 [n, classes]."""
        return self.classes.one_hot(self.table["class"])

    def require_margin(self, margin: float, settings: Location) -> None:
        """Check that regions were cropped with the margin that the settings in a file need.

        Raises:
            InputError: They were cropped with another one.
        """
        if self.domain == "cropped" and self.data.margin != margin:
            raise InputError(
                f"{self.data.folder}: cropped with margin {self.data.margin}, but {settings} needs {margin}: "
                "crop with that --margin"
            )

    def judging(self) -> pd.DataFrame:
        """Return the scans that judge models of this data version, as for `overlap.find`."""
        return self.data.used.query("split != 'train'").assign(cohort=self.data.facts.cohort)

    def parts(self, folds: int, seed: int) -> dict[str, pd.Series]:
        """Assign every image to a part in each fold of a cross-validation.

        Args:
            folds: Number of folds; 0 for none.
            seed: Seed of the folds.

        Returns:
            "train", "validation" or "held-out" per row of `table`, by name of the fold ("fold-1" and so on). Empty
            without folds.

        Raises:
            InputError: A part of a fold lacks a class, or as for `splits.folds`.
        """
        if not folds:
            return {}
        scans = self.data.used.query("split != 'test'")
        fold = splits.folds(scans, folds, seed)
        parts = {}
        for number in range(1, folds + 1):
            others = scans[scans["group"].map(fold) != number]
            inner = splits.folds(others, min(INNER_FOLDS, folds), seed)
            part = self.table["group"].map(inner).map(lambda n: "validation" if n == 1 else "train")
            parts[f"fold-{number}"] = part.mask(self.table["group"].map(fold) == number, "held-out")
        for name, part in parts.items():
            self.require_classes(part, name)
        return parts

    def require_classes(self, part: pd.Series, name: str = MAIN) -> None:
        """Check that the parts hold all classes.

        Every class must be in the training part, and in the validation part of the main training. In a fold both
        sides, benign and malignant, must be in the validation and held-out parts.

        Args:
            part: Part of each image, per row of `table`.
            name: `MAIN`, or the name of a fold.

        Raises:
            InputError: A part lacks a class.
        """
        where, advice = ("", "") if name == MAIN else (f" of {name}", "; use fewer folds")
        for split in ("train", "validation", *(() if name == MAIN else ("held-out",))):
            by_class = name == MAIN or split == "train"
            column, wanted = ("class", self.classes.names) if by_class else ("label", CLASSES)
            for label in wanted:
                if not ((part == split) & (self.table[column] == label)).any():
                    raise InputError(
                        f"{self.data.folder}: the {self.domain} domain has no image of class {label} in the {split} "
                        f"split{where}{advice}"
                    )


def development_images(data: DataVersion, domain: str) -> pd.DataFrame:
    """Return the images of the train and validation splits of a data version, as `DataVersion.examples` does."""
    table = data.examples(domain)
    return table[table["split"] != "test"].reset_index(drop=True)


def predict_held_out(
    job: Job,
    images: Development,
    parts: Mapping[str, pd.Series],
    fit: Callable[[pd.Series, str], object],
    only_fold: int = 0,
) -> pd.DataFrame | None:
    """Fit every fold from the current weights of job.model, and predict its held-out patients.

    A fold that an earlier run has finished is read from job.work. The weights of job.model are restored.

    Args:
        job: The training.
        images: The development part.
        parts: Part of each image by name of the fold, from `Development.parts`.
        fit: Function that fits job.model on an assignment of the images to parts, given the fold's name, too.
        only_fold: The only fold to train, or 0 for all.

    Returns:
        Out-of-fold predictions in every domain of the data version: the rows of `development_images` with fold and
        domain. None without folds.
    """
    if not parts:
        return None
    start = job.model.get_weights()
    tables_of_folds = []
    for name in [f"fold-{only_fold}"] if only_fold else list(parts):
        path = job.work / f"{name}.parquet"
        predicted = _read_fold(path)
        if predicted is None:
            log.info(f"{job.backbone.name}: {name} of {len(parts)}")
            job.model.set_weights(start)
            fit(parts[name], name)
            held_out = set(images.table[parts[name] == "held-out"]["group"])
            predicted = _predict(job, images, held_out).assign(fold=int(name.split("-")[1]))
            with atomic.replacing(path, durable=False, shared=False) as temporary:
                predicted.to_parquet(temporary, index=False)
        tables_of_folds.append(predicted)
    job.model.set_weights(start)
    return pd.concat(tables_of_folds, ignore_index=True)


def _predict(job: Job, images: Development, groups: set[Any]) -> pd.DataFrame:
    """Return the predictions of job.model for the development images of some groups, in every domain."""
    predicted = []
    for domain in tables.DOMAINS:
        rows = development_images(images.data, domain)
        rows = rows[rows["group"].isin(groups)].reset_index(drop=True)
        if len(rows):
            rows[images.classes.columns] = probability = _probabilities(job, rows)
            rows[SCORE] = images.classes.malignant(probability)
            predicted.append(rows.assign(domain=domain))
    table = pd.concat(predicted, ignore_index=True).drop(columns=["path", "split", "sha256"])
    table["file"] = table.pop("name")
    return table


def _probabilities(job: Job, table: pd.DataFrame) -> NDArray[np.float64]:
    pixels = inputs.decode(table, job.pixels.shape[1], job.memory_budget)
    return job.within_memory(lambda: inputs.predict(job.model, pixels, job.batch_size))


def _read_fold(path: Path) -> pd.DataFrame | None:
    """Return a finished fold's predictions, or None if there are none or the file is damaged, which is logged."""
    try:
        return pd.read_parquet(path) if path.exists() else None
    except (ValueError, OSError) as error:
        log.info(f"{path}: damaged ({errors.one_line(error)}); the fold is trained again")
        return None
