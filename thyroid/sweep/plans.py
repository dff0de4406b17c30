"""The plan of a search: its stages, and what each of them varies, on which images and folds."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from thyroid import atomic, metrics
from thyroid.data.classes import Classes
from thyroid.errors import InputError
from thyroid.records.settings import CLASS_WEIGHTS, Settings
from thyroid.sweep import studies

HEADS, IMAGES = "heads", "images"
"""The two stages, in this order."""
TOPS = 3
"""Number of best heads from which the second stage starts, in addition to the default one."""

DEPTH = 2
"""Largest number of last blocks of the body that are unfrozen."""


@dataclass(frozen=True)
class Plan:
    """A study: what it searches, and on which data. The folder's name has a digest of this, so it holds no other study.

    Attributes:
        folder: Folder of the study.
        facts: Content of plan.json.
        table: The development images in order, with the columns path, class, label, patient, group, fold (the number of
            the fold that holds the image out), and for every fold a column with the image's part: train, validation or
            held-out.
    """

    folder: Path
    facts: dict[str, Any]
    table: pd.DataFrame

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
        best = json.loads((self.folder / "heads.json").read_text())
        return [self.default, *(Settings(**settings) for settings in best)]

    def scores(self, stage: str, number: int) -> Path:
        """Return the file with a trial's out-of-fold probabilities."""
        return self.folder / "trials" / f"{stage}-{number}.npy"

    def write_scores(self, stage: str, number: int, probability: NDArray[np.float64]) -> None:
        """Write a trial's out-of-fold probabilities [n, classes]."""
        _write_array(self.scores(stage, number), probability)

    def features(self, tap: str) -> list[NDArray[np.float32]]:
        """Read the features [n, width] of a tap, one array per view."""
        return [np.load(path) for path in sorted((self.folder / "features").glob(f"{tap or 'last'}-*.npy"))]

    def write_features(self, tap: str, views: Sequence[NDArray[np.float32]]) -> None:
        """Write the features [n, width] of a tap, one array per view."""
        for number, view in enumerate(views):
            _write_array(self.folder / "features" / f"{tap or 'last'}-{number}.npy", view)


def read(folder: Path) -> Plan:
    """Read the plan of a study.

    Args:
        folder: Folder of the study.

    Raises:
        InputError: The folder has no plan, or it is damaged.
    """
    try:
        facts = json.loads((folder / "plan.json").read_text())
        return Plan(folder, facts, pd.read_parquet(folder / "images.parquet"))
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{folder}: not a prepared search (plan.json is missing)") from None
    except ValueError as error:
        raise InputError(f"{folder}: damaged ({error}); remove it and start a new search") from None


def _write_array(path: Path, values: NDArray[Any]) -> None:
    """Write an array completely or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic.replacing(path, durable=False) as temporary, temporary.open("wb") as handle:
        np.save(handle, values)
