"""Predictions of every trained model on validation and test images, as one table.

The table (predictions.parquet) has one row per model and image, with the columns:

- backbone, train_domain: the model.
- domain, file (within `tables.images`), sha256, scan (file name), class, label (the side of the class), patient, group,
  split: the image.
- probability_CLASS of every class, and probability_M of the malignant side: scaled at the model's operating point.
- raw_CLASS of every class, and raw_M of the malignant side: before scaling.
- decision, and called: the class that the image is called.
- new, only with a registry: whether the registry's newest model did not have the scan.
- "group: NAME" for every usable column of clinical.csv: the subgroup of the scan.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import roc_curve

from thyroid.data import classes as kinds
from thyroid.data import tables
from thyroid.data.classes import Classes
from thyroid.data.filenames import CLASSES, POSITIVE, SCORE
from thyroid.errors import InputError
from thyroid.evaluate import performance
from thyroid.model import inputs, operating_point
from thyroid.model.network import Network
from thyroid.train import record


@dataclass(frozen=True)
class Trained:
    """A trained model to score.

    Attributes:
        folder: Output folder of the training.
        facts: Facts of the training (train.json).
    """

    folder: Path
    facts: dict[str, Any]

    @property
    def key(self) -> tuple[str, str]:
        """The backbone and the domain trained on, which identify a model within an evaluation."""
        return self.facts["backbone"], self.facts["train_domain"]

    @property
    def parts(self) -> pd.Series:
        """What the training used each image for ("train" or "validation"), by file.

        Raises:
            InputError: The folder is not the output of a finished training.
        """
        return record.parts(self.folder)

    def load(self) -> Network:
        """Load the network of the training.

        Raises:
            InputError: Its checkpoint or its graph is missing, or is not the one that the training wrote.
        """
        return Network.load(self.folder, self.facts)


def trained_models(data: Path, models: Sequence[Path], facts: dict[str, Any]) -> list[Trained]:
    """Read the trainings in the folders `models`.

    Args:
        data: Data version, for error messages.
        models: Output folders of `train`.
        facts: Facts of the data version (data.json).

    Raises:
        InputError: There is no training, a folder is not a finished training, a training is of another data version, or
            one backbone is given twice on a domain.
    """
    trained = [Trained(folder, record.read(folder)) for folder in models]
    if not trained:
        raise InputError("there is no model to evaluate")
    for one in trained:
        if one.facts["data_digest"] != facts["digest"]:
            raise InputError(f"{one.folder}: trained on another data version than {data}")
    keys = [one.key for one in trained]
    if twice := [key for key in keys if keys.count(key) > 1]:
        raise InputError(f"{twice[0][0]} trained on {twice[0][1]} is given twice; compare one recipe at a time")
    return trained


def examples(data: Path, domain: str, split: str) -> pd.DataFrame:
    """Return `tables.examples` of a split, and check that metrics can be computed on it.

    Raises:
        InputError: The domain is unknown, or the split lacks benign or malignant images.
    """
    table = tables.examples(data, domain, split)
    if table["label"].nunique() < len(CLASSES):
        raise InputError(
            f"{data}: the {split} split of the {domain} domain has images of {table['label'].nunique()} class(es), and "
            "figures need both; add scans or deal the splits anew with --given-splits ignore"
        )
    return table


def predict(
    data: Path,
    network: Network,
    model: dict[str, Any],
    domains: Sequence[str],
    split: str,
    decode: inputs.Decode = inputs.decode,
) -> pd.DataFrame:
    """Predict the images of a split in several domains.

    Args:
        data: Data version of `crop`.
        network: Network to score the images with.
        model: Facts of its training (train.json).
        domains: Domains of the images.
        split: Split of the images.
        decode: Function that reads the images.

    Returns:
        One row per image with backbone, train_domain, domain, the columns of `tables.examples` (file is the name within
        `tables.images`) and the network's own probabilities, not yet scaled.

    Raises:
        InputError: The split lacks benign or malignant images in a domain, or the probabilities are not finite.
    """
    parts, classes = [], kinds.of(model)
    for domain in domains:
        table = examples(data, domain, split)
        table[classes.columns] = network.probabilities(decode(table, model["image_size"]), f"{split} images")
        table["file"] = table.pop("name")
        names = {"backbone": model["backbone"], "train_domain": model["train_domain"], "domain": domain}
        parts.append(pd.concat([pd.DataFrame(names, table.index), table], axis=1))
    return pd.concat(parts, ignore_index=True)


def at_point(table: pd.DataFrame, point: operating_point.OperatingPoint, classes: Classes) -> pd.DataFrame:
    """Apply the operating point to unscaled predictions.

    The probabilities are scaled, the network's own are kept (raw_CLASS, raw_M), and decision and called class are
    added. `table` is changed in place and returned.
    """
    raw = table[classes.columns].to_numpy()
    table[_raw(classes)] = raw
    table[performance.RAW] = classes.malignant(raw)
    table[classes.columns] = scaled = point.scale(raw)
    table[SCORE] = classes.malignant(scaled)
    table["decision"] = point.decide(table[SCORE])
    table["called"] = np.array(classes.names, object)[point.call(scaled, classes)]
    return table


def raw(table: pd.DataFrame, classes: Classes) -> pd.DataFrame:
    """Return predictions of `at_point` with the unscaled probabilities that it was given."""
    return table.assign(**{one: table[own] for one, own in zip(classes.columns, _raw(classes), strict=True)})


def _raw(classes: Classes) -> list[str]:
    return [f"raw_{name}" for name in classes.names]


def of_model(predictions: pd.DataFrame, row: dict[str, Any], domain: str, split: str) -> pd.DataFrame:
    """Select the predictions of one model (backbone and train_domain of `row`) in one domain and split."""
    wanted: pd.Series[bool] = (
        (predictions["backbone"] == row["backbone"])
        & (predictions["train_domain"] == row["train_domain"])
        & (predictions["domain"] == domain)
        & (predictions["split"] == split)
    )
    return predictions[wanted].reset_index(drop=True)


def roc_points(table: pd.DataFrame) -> tuple[list[float], list[float], list[float]]:
    """Return false positive rates, true positive rates and thresholds. The first threshold is 1 instead of infinity."""
    fpr, tpr, threshold = roc_curve(table["label"] == CLASSES[POSITIVE], table[SCORE])
    return fpr.tolist(), tpr.tolist(), np.minimum(threshold, 1.0).tolist()
