"""What a search is: its stages, what each of them tries, on which images and folds."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from thyroid import metrics
from thyroid.data import classes
from thyroid.data.classes import Classes
from thyroid.errors import InputError
from thyroid.sweep import studies
from thyroid.train.settings import CLASS_WEIGHTS, Settings

HEADS, IMAGES = "heads", "images"
"""The stages."""
TOPS = 3
"""Best heads that the second stage starts from, beside the default one."""

DEPTH = 2
"""Last blocks of the body that are unfrozen at most."""


@dataclass(frozen=True)
class Plan:
    """A study: what it searches, and on what. Its folder's name is a digest of this, so that no other study is in it.

    Attributes:
        folder: of the study.
        facts: the content of plan.json.
        table: the development images in order: path, class, label, patient, group, fold (of each as held out), and per fold
            the part of each: train, validation or held-out.
    """

    folder: Path
    facts: dict[str, Any]
    table: pd.DataFrame

    @property
    def classes(self) -> Classes:
        return classes.of(self.facts)

    @property
    def labels(self) -> NDArray[np.float32]:
        """One-hot [n, classes]."""
        return self.classes.one_hot(self.table["class"])

    @property
    def default(self) -> Settings:
        """What the training does when it is told nothing."""
        return Settings(image_size=self.facts["image_size"], backbone=self.facts["backbone"])

    def folds(self) -> Iterator[tuple[int, NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]]:
        """Number of each fold and places of its training, validation and held-out images."""
        for number in range(1, self.facts["folds"] + 1):
            part = self.table[f"fold-{number}"]
            train, validation, held = (np.flatnonzero(part == name) for name in ("train", "validation", "held-out"))
            yield number, train, validation, held

    def auroc(self, probability: NDArray[np.float64], draws: metrics.Draws | None = None) -> NDArray[np.float64]:
        """Of out-of-fold probabilities, on the images (first) and on every draw; those without (NaN) do not count.

        Only pairs within a fold are compared. Of more than two classes each against the rest, and the mean of these.
        """
        known = np.isfinite(probability[:, 0])
        rows, truth = self.table[known], self.labels[known] == 1
        draws = draws or metrics.Draws(rows["patient"], draws=0)
        columns = [1] if truth.shape[1] == 2 else [c for c in range(truth.shape[1]) if truth[:, c].any()]
        return np.mean(
            [
                metrics.auroc_draws(draws, truth[:, c], probability[known, c], rows["patient"], rows["fold"])
                for c in columns
            ],
            axis=0,
        )

    def space(self, stage: str) -> dict[str, BaseDistribution]:
        """Parameters of a stage."""
        if stage == HEADS:
            return {
                "head_rate": FloatDistribution(1e-4, 0.2, log=True),
                "head_penalty": FloatDistribution(1e-4, 1.0, log=True),
                "class_weight": CategoricalDistribution(CLASS_WEIGHTS),
                "label_smoothing": FloatDistribution(0.0, 0.2, step=0.05),
                "tap": CategoricalDistribution(self.facts["taps"]),
            }
        margin = {"margin": FloatDistribution(0.0, 0.5, step=0.05)} if self.facts["margins"] else {}
        return margin | {
            "head": CategoricalDistribution(range(TOPS + 1)),
            "image_size": CategoricalDistribution(self.facts["image_sizes"]),
            "augmentation": FloatDistribution(0.0, 1.5, step=0.25),
            "unfrozen": IntDistribution(0, DEPTH),
        }

    def shared(self, stage: str) -> studies.Shared:
        """The stage's study; trials are pruned from the second fold on."""
        warmup = 2 if stage == HEADS else self.facts["epochs"] + 1
        return studies.Shared(self.folder, stage, self.space(stage), self.facts["seed"], warmup)

    def settings(self, stage: str, parameters: Mapping[str, Any]) -> Settings:
        """What a trial's parameters mean."""
        if stage == HEADS:
            return replace(self.default, unfrozen=0, **parameters)
        rest = dict(parameters)
        heads = self.heads()
        return replace(heads[min(rest.pop("head"), len(heads) - 1)], **rest)

    def heads(self) -> list[Settings]:
        """The default head, then the best ones of the first stage as `rank` has found them."""
        return [self.default, *(Settings(**one) for one in json.loads((self.folder / "heads.json").read_text()))]

    def scores(self, stage: str, number: int) -> Path:
        """File of a trial's out-of-fold probabilities."""
        return self.folder / "trials" / f"{stage}-{number}.npy"


def read(folder: Path) -> Plan:
    """The plan of a study.

    Raises:
        InputError: there is none.
    """
    try:
        facts = json.loads((folder / "plan.json").read_text())
        return Plan(folder, facts, pd.read_parquet(folder / "images.parquet"))
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{folder}: not a prepared search (plan.json is missing)") from None
    except ValueError as error:
        raise InputError(f"{folder}: damaged ({error}); remove it and search anew") from None
