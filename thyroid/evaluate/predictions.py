"""Every trained model's answers to validation and test images, as one table.

One row a model and image: backbone, train_domain, domain (of the image), file (within `tables.images`), sha256, scan
(file name), class, label (its side), patient, group, split, probability_CLASS of every class at the model's temperature,
probability_M, that of the malignant side, raw_CLASS and raw_M before the temperature, decision, called (the class that it is called), new (where there is a registry: whether its newest model did not have the scan), and one column "group: NAME" a
usable column of clinical.csv.
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
    """A model to score: its training's folder and facts."""

    folder: Path
    facts: dict[str, Any]

    @property
    def key(self) -> tuple[str, str]:
        return self.facts["backbone"], self.facts["train_domain"]

    @property
    def parts(self) -> pd.Series:
        """What the training used each image for ("train" or "validation"), by file."""
        return record.parts(self.folder)

    def load(self) -> Network:
        return Network.load(self.folder, self.facts)


def trained_models(data: Path, models: Sequence[Path], facts: dict[str, Any]) -> list[Trained]:
    """The trainings in the folders `models`.

    Raises:
        InputError: there is none, one is of another data version, or one backbone comes twice on a domain.
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
    """As `tables.examples`, of a split on which figures mean something.

    Raises:
        InputError: it lacks a class.
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
    """The network's own probabilities of a split's images, not yet scaled."""
    parts, classes = [], kinds.of(model)
    for domain in domains:
        table = examples(data, domain, split)
        table[classes.columns] = network.probabilities(decode(table, model["image_size"]), f"{split} images")
        table["file"] = table.pop("name")
        names = {"backbone": model["backbone"], "train_domain": model["train_domain"], "domain": domain}
        parts.append(pd.concat([pd.DataFrame(names, table.index), table], axis=1))
    return pd.concat(parts, ignore_index=True)


def at_point(table: pd.DataFrame, point: operating_point.OperatingPoint, classes: Classes) -> pd.DataFrame:
    """Predictions at the operating point: probabilities scaled, the network's own kept, decision and called class."""
    raw = table[classes.columns].to_numpy()
    table[_raw(classes)] = raw
    table[performance.RAW] = classes.malignant(raw)
    table[classes.columns] = scaled = point.scale(raw)
    table[SCORE] = classes.malignant(scaled)
    table["decision"] = point.decide(table[SCORE])
    table["called"] = np.array(classes.names, object)[point.call(scaled, classes)]
    return table


def raw(table: pd.DataFrame, classes: Classes) -> pd.DataFrame:
    """Predictions of `at_point` as they were before it."""
    return table.assign(**{one: table[own] for one, own in zip(classes.columns, _raw(classes), strict=True)})


def _raw(classes: Classes) -> list[str]:
    return [f"raw_{name}" for name in classes.names]


def of_model(predictions: pd.DataFrame, row: dict[str, Any], domain: str, split: str) -> pd.DataFrame:
    """The predictions of one model in one domain and split."""
    return predictions[
        (predictions["backbone"] == row["backbone"])
        & (predictions["train_domain"] == row["train_domain"])
        & (predictions["domain"] == domain)
        & (predictions["split"] == split)
    ].reset_index(drop=True)


def roc_points(table: pd.DataFrame) -> tuple[list[float], list[float], list[float]]:
    """False positive rate, true positive rate and threshold; the first threshold is 1, not infinity."""
    fpr, tpr, threshold = roc_curve(table["label"] == CLASSES[POSITIVE], table[SCORE])
    return fpr.tolist(), tpr.tolist(), np.minimum(threshold, 1.0).tolist()
