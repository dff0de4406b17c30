"""The plan of a search: its stages, and what each of them varies, on which images and folds."""

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from thyroid import metrics, storage
from thyroid.atomic import replacing
from thyroid.data.classes import Classes
from thyroid.errors import InputError
from thyroid.records.settings import CLASS_WEIGHTS, Settings
from thyroid.storage import mirror
from thyroid.sweep import studies

HEADS, IMAGES = "heads", "images"
"""The two stages, in this order."""
PLAN, TABLE, RANKED, FEATURES = "plan.json", "images.parquet", "heads.json", "features"
"""Names in the folder of a study: its facts, its images, the best heads, and the folder of the taps' features."""
TOPS = 3
"""Number of best heads from which the second stage starts, in addition to the default one."""

DEPTH = 2
"""Largest number of last blocks of the body that are unfrozen."""


@dataclass(frozen=True)
class Plan:
    """A study: what it searches, and on which data. The folder's name has a digest of this, so it holds no other study.

    Attributes:
        folder: Folder of the study. For a study in a bucket, its folder in the node's cache, where this node keeps what
            no other one needs.
        facts: Content of plan.json.
        table: The development images in order, with the columns path, class, label, patient, group, fold (the number of
            the fold that holds the image out), and for every fold a column with the image's part: train, validation or
            held-out.
    """

    folder: Path
    facts: dict[str, Any]
    table: pd.DataFrame

    @property
    def address(self) -> str:
        """Folder of the study, or its address in a bucket, by which another pod finds it."""
        return mirror.address(self.folder)

    @property
    def place(self) -> storage.Folder | storage.Bucket:
        """What all workers of the study see."""
        return storage.at(self.address)

    @property
    def classes(self) -> Classes:
        """The classes of the data version."""
        return Classes.from_dict(self.facts)

    @property
    def labels(self) -> NDArray[np.float32]:
        """One-hot classes of the images, float32 [n, classes]."""
        return self.classes.one_hot(self.table["class"])

    @property
    def default(self) -> Settings:
        """Settings that a training on the study's images uses if it is given none, at its image size and backbone."""
        known = {name: self.facts[name] for name in ("image_size", "margin", "backbone") if name in self.facts}
        return Settings(**known)

    def folds(self) -> Iterator[tuple[int, NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]]:
        """Yield the number of each fold and the indices of its training, validation and held-out images."""
        for number in range(1, self.facts["folds"] + 1):
            part = self.table[f"fold-{number}"]
            train, validation, held = (np.flatnonzero(part == name) for name in ("train", "validation", "held-out"))
            yield number, train, validation, held

    def auroc(self, probability: NDArray[np.float64], draws: metrics.Draws | None = None) -> NDArray[np.float64]:
        """Return the AUROC of out-of-fold probabilities on the images (first) and on every draw.

        Only pairs within a fold are compared. With more than two classes, it is the mean of the AUROC of each class
        against the rest.

        Args:
            probability: Out-of-fold probabilities [n, classes]. Images without one (NaN) do not count.
            draws: Bootstrap draws of patients; None for the images alone.

        Returns:
            The AUROC on the images, then on each draw.
        """
        known = np.isfinite(probability[:, 0])
        rows, truth = self.table[known], self.labels[known] == 1
        draws = draws or metrics.Draws(rows["patient"], draws=0)
        columns = [1] if truth.shape[1] == 2 else [c for c in range(truth.shape[1]) if truth[:, c].any()]
        areas = [
            metrics.auroc_draws(draws, truth[:, c], probability[known, c], rows["patient"], rows["fold"])
            for c in columns
        ]
        mean: NDArray[np.float64] = np.mean(areas, axis=0)
        return mean

    def space(self, stage: str) -> dict[str, BaseDistribution]:
        """Return the parameters of a stage and their distributions."""
        if stage == HEADS:
            return {
                "head_rate": FloatDistribution(1e-4, 0.2, log=True),
                "head_penalty": FloatDistribution(1e-4, 1.0, log=True),
                "class_weight": CategoricalDistribution(CLASS_WEIGHTS),
                "label_smoothing": FloatDistribution(0.0, 0.2, step=0.05),
                "tap": CategoricalDistribution(self.facts["taps"]),
            }
        margin = {"margin": FloatDistribution(0.0, 1.0, step=0.05)} if self.facts["margins"] else {}
        return margin | {
            "head": CategoricalDistribution(range(TOPS + 1)),
            "image_size": CategoricalDistribution(self.facts["image_sizes"]),
            "augmentation": FloatDistribution(0.0, 1.5, step=0.25),
            "unfrozen": IntDistribution(0, DEPTH),
        }

    def shared(self, stage: str) -> studies.Shared:
        """Return the study of a stage. Its trials may be pruned from the second fold on."""
        warmup = 2 if stage == HEADS else self.facts["epochs"] + 1
        return studies.Shared(self.folder, stage, self.space(stage), seed=self.facts["seed"], warmup=warmup)

    def settings(self, stage: str, parameters: Mapping[str, Any]) -> Settings:
        """Return the settings that a trial's parameters stand for."""
        if stage == HEADS:
            return self.default.replace(unfrozen=0, **parameters)
        others = dict(parameters)
        heads = self.heads()
        head: int = others.pop("head")
        return heads[min(head, len(heads) - 1)].replace(**others)

    def heads(self) -> list[Settings]:
        """Return the default head and then the best heads of the first stage, as `rank` found them."""
        content, generation = self.place.read(RANKED)
        if generation == storage.ABSENT:
            raise InputError(f"{self.address}: the heads are not ranked yet")
        return [self.default, *(Settings(**settings) for settings in json.loads(content))]

    def scores(self, stage: str, number: int) -> NDArray[np.float64]:
        """Read a trial's out-of-fold probabilities [n, classes].

        Raises:
            InputError: They are missing or damaged.
        """
        name = f"trials/{stage}-{number}.npy"
        try:
            result: NDArray[np.float64] = np.load(io.BytesIO(self.place.read(name)[0]))
        except (ValueError, EOFError) as error:
            raise InputError(
                f"{self.address}/{name}: missing or damaged ({error}); remove {self.address} and start a new search"
            ) from None
        return result

    def write_scores(self, stage: str, number: int, probability: NDArray[np.float64]) -> None:
        """Write a trial's out-of-fold probabilities [n, classes]."""
        content = io.BytesIO()
        np.save(content, probability)
        self.place.write(f"trials/{stage}-{number}.npy", content.getvalue())

    def features(self, tap: str) -> list[NDArray[np.float32]]:
        """Read the features [n, width] of a tap, one array per view."""
        names = storage.at(storage.below(self.address, FEATURES)).children()
        paths = [self.folder / FEATURES / name for name in names if name.rpartition("-")[0] == (tap or "last")]
        mirror.fetch(paths, "features")
        return [np.load(path) for path in paths]

    def write_features(self, tap: str, views: Sequence[NDArray[np.float32]]) -> None:
        """Write the features [n, width] of a tap, one array per view."""
        paths = [self.folder / FEATURES / f"{tap or 'last'}-{number}.npy" for number in range(len(views))]
        for path, view in zip(paths, views, strict=True):
            _write_array(path, view)
        mirror.send(paths)


def read(study: storage.Location) -> Plan:
    """Read the plan of a study.

    Args:
        study: Folder of the study, or its address in a bucket.

    Raises:
        InputError: The folder has no plan, or it is damaged.
    """
    folder = mirror.mirror(study)
    address = mirror.address(folder)
    place = storage.at(address)
    content, generation = place.read(PLAN)
    if generation == storage.ABSENT:
        raise InputError(f"{address}: not a prepared search ({PLAN} is missing)")
    try:
        return Plan(folder, json.loads(content), pd.read_parquet(io.BytesIO(place.read(TABLE)[0])))
    except ValueError as error:
        raise InputError(f"{address}: damaged ({error}); remove it and start a new search") from None


def _write_array(path: Path, values: NDArray[Any]) -> None:
    """Write an array completely or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, durable=False) as temporary, temporary.open("wb") as handle:
        np.save(handle, values)
