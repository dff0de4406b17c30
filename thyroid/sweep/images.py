"""Evaluates a trial of the second stage: the two-phase recipe, with the trial's own crops, image size and depth."""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from optuna import TrialPruned

from thyroid import crop, locks, progress
from thyroid.crop import CropOptions
from thyroid.data import tables
from thyroid.data.version import DataVersion
from thyroid.errors import InputError
from thyroid.model import backbones
from thyroid.records.settings import Settings
from thyroid.sweep.plans import Plan
from thyroid.train.options import TrainOptions

if TYPE_CHECKING:
    from thyroid.train.twophase import Job

DEVELOPMENT = ("train", "validation")


@dataclass(frozen=True)
class Sources:
    """What the trainings of a study are made from.

    Attributes:
        data: Data version of `crop` from which the study was prepared.
        ingested: Data version of `ingest` from which `data` was made, to crop with other margins. None requires that
            the margin does not change.
        weights: Initial weights that the study was prepared with.
    """

    data: Path
    ingested: Path | None
    weights: str

    def images(self, plan: Plan, margin: float) -> pd.DataFrame:
        """Return the study's images with a margin. They are cropped into the study's folder unless they are there.

        Args:
            plan: Plan of the study.
            margin: Share of a region's sides by which it is widened on each side.

        Raises:
            InputError: The images are not those of the study, or another margin needs `ingested`.
        """
        data = DataVersion.read(self.data)
        if plan.facts["margins"] and margin != data.margin:
            if self.ingested is None:
                raise InputError(f"margin {margin}: give the data version of thyroid.ingest with --ingested")
            folder = plan.folder / "margins" / f"{margin:.2f}"
            with locks.held(folder.with_suffix(".lock")):
                if not (folder / tables.FACTS).is_file():
                    domains = [plan.facts["domain"]]
                    options = CropOptions(domains, margin=margin, jitter=data.jitter, splits=DEVELOPMENT)
                    crop.crop(self.ingested, folder, options)
            data = DataVersion.read(folder)
        table = development(data, plan.facts["domain"])
        if any(table[column].tolist() != plan.table[column].tolist() for column in ("class", "patient")):
            raise InputError(
                f"{data.folder}: these are not the images that the search was prepared with; start a new search"
            )
        return table


def development(data: DataVersion, domain: str) -> pd.DataFrame:
    """Return the images of the development part, in an order that does not depend on how they were cropped.

    Args:
        data: Data version of `crop`.
        domain: Domain of the images.

    Returns:
        Rows of `DataVersion.examples`, `with_jitter`.
    """
    table = data.with_jitter(data.examples(domain))
    regions = data.regions.set_index("crop_path")["index"]
    table = table[table["split"].isin(DEVELOPMENT)].assign(region=table["name"].map(regions))
    return table.sort_values(["path", "region"], ignore_index=True).drop(columns="region")


def evaluate_images(
    plan: Plan,
    sources: Sources,
    start: str | Path | None,
    settings: Settings,
    report: Callable[[int, float], None],
) -> NDArray[np.float64]:
    """Return the out-of-fold probabilities of the two-phase recipe, from the images on.

    Args:
        plan: Plan of the study.
        sources: What the trainings are made from.
        start: Result of `backbones.find_weights` for the weights of `sources`.
        settings: Settings of the trial.
        report: Receives the number of every epoch, counted over all folds, and the AUROC so far.

    Returns:
        Probabilities [n, classes].

    Raises:
        FloatingPointError: The training diverged.
        InputError: The images are not those of the study, or another margin needs those of `ingest`.
    """
    from thyroid.model.backend import keras
    from thyroid.train import checkpoints, twophase

    table = sources.images(plan, settings.margin)
    probability = np.full(plan.labels.shape, np.nan)
    name = hashlib.sha256(json.dumps(settings.to_dict()).encode()).hexdigest()[:16]
    work, steps = plan.folder / "work" / name, plan.facts["epochs"] + 1
    # A retried trial resumes where its worker died. Another worker with the same settings waits.
    with (
        progress.silent(),
        locks.held(work.with_suffix(".lock")),
        job_of(plan, start, settings, table, work) as job,
    ):
        frozen, pristine = twophase.freeze(job), job.model.get_weights()
        for number, train, validation, held_out in plan.folds():
            before = float(plan.auroc(probability)[0]) if number > 1 else 0.0

            def report_epoch(epoch: int, logs: Any, number: int = number, before: float = before) -> None:
                report((number - 1) * steps + epoch, ((number - 1) * before + logs["val_auroc"]) / number)

            job.model.set_weights(pristine)
            job.callbacks = (keras.callbacks.LambdaCallback(on_epoch_end=report_epoch),)
            try:
                twophase.fit(job, train, validation, f"fold-{number}", frozen)
            except checkpoints.TrainingDivergedError as error:
                raise FloatingPointError(str(error)) from None
            probability[held_out] = twophase.predict(job, frozen, held_out)
            report(number * steps - 1, float(plan.auroc(probability)[0]))
    return probability


@contextmanager
def job_of(
    plan: Plan, start: str | Path | None, settings: Settings, table: pd.DataFrame, work: Path
) -> "Iterator[Job]":
    """Yield a job of `twophase` as a training makes it.

    Its work folder is removed after the block, also if the trial was pruned. It is kept after any other error.

    Args:
        plan: Plan of the study.
        start: Initial weights from `backbones.find_weights`.
        settings: Settings of the trial.
        table: Rows of `development`, in the order of the plan's table.
        work: Folder for the training's state.
    """
    from thyroid.model.backend import keras
    from thyroid.train import twophase

    options = TrainOptions(
        image_size=settings.image_size,
        epochs=plan.facts["epochs"] if settings.unfrozen else 0,
        batch_size=plan.facts["batch_size"],
        seed=plan.facts["seed"],
    )
    work.mkdir(parents=True, exist_ok=True)
    try:
        with twophase.prepared(
            backbones.get(plan.facts["backbone"]),
            start,
            table,
            plan.labels,
            work=work,
            options=options,
            settings=settings,
            started=time.monotonic(),
        ) as job:
            yield job
        shutil.rmtree(work, ignore_errors=True)
    except TrialPruned:
        shutil.rmtree(work, ignore_errors=True)
        raise
    finally:
        keras.backend.clear_session()
