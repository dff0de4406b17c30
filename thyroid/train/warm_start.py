"""Starts a training from the champion, if it fits and if its features are at least as good as the given weights."""

import logging
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from thyroid import storage
from thyroid.data import overlap
from thyroid.data.classes import Classes
from thyroid.model import backbones
from thyroid.model.artefact import MODEL, Artefact, load_keras
from thyroid.records.train import Starts
from thyroid.registry import changes
from thyroid.registry.registry import Registry
from thyroid.train import record, twophase
from thyroid.train.cross_validation import Development

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Champion:
    """A champion to start from.

    Attributes:
        name: Its version in words.
        sha256: SHA-256 of its Keras file.
        network: Its Keras model.
    """

    name: str
    sha256: str
    network: Any


def find(
    root: storage.Location,
    version: int,
    row: backbones.Backbone,
    judging: pd.DataFrame,
    *,
    classes: Classes,
    domain: str,
) -> Champion | None:
    """Return the champion if a training may start from it. Otherwise log the reason and return None.

    Args:
        root: Root of the registry; empty for none.
        version: Version of the champion; 0 for the current one.
        row: Backbone of the training.
        judging: Scans that will judge the model, as for `overlap.find`.
        classes: Classes of the training.
        domain: Domain of the training.
    """
    version = version or (Registry(root).read_aliases().get("champion", 0) if root else 0)
    if not root or not version:
        log.info(f"{row.name}: there is no champion to start from")
        return None
    folder = Registry(root).find(str(version))
    own = Artefact.verify(folder).record
    seen = overlap.find(root, changes.scans_of(folder).query("split == 'train'"), judging)
    for reason, holds in (
        (f"its classes are {', '.join(own.classes)}", own.classes != list(classes.names)),
        (f"it is {own.backbone}", own.backbone != row.name),
        (f"it was trained on {own.domain} images", own.domain != domain),
        (
            f"it was trained on {seen.scans} scans that now judge models, or on their patients ({seen.describe()})",
            seen.scans,
        ),
        (seen.problem, seen.problem),
    ):
        if holds:
            log.info(f"{row.name}: does not start from champion {version}: {reason}")
            return None
    if seen.note:
        log.info(f"{row.name}: champion {version}: {seen.note}")
    network = load_keras(folder / MODEL)
    return Champion(f"{record.STARTED}{version}", own.files[MODEL], network)


def choose(job: twophase.Job, images: Development, champion: Champion) -> tuple[twophase.Job, Starts | None]:
    """Return the job from the better start, whose frozen features separate the classes better on validation.

    The champion was not trained on any of these images, but most of them were used for its early stopping, which
    favours it a little. The gate judges on test patients. The job gets a folder of its own for each start, because the
    maps of the other start must not be reused.

    Args:
        job: The training, whose model has the given weights.
        images: The development part.
        champion: The champion.

    Returns:
        The job, and the validation AUROC of a head on the features of each start. None instead of the latter if the
        champion has other layers.
    """
    train, validation = (np.flatnonzero(images.table["split"] == split) for split in ("train", "validation"))
    given = job.model.get_weights()
    if [weight.shape for weight in given] != [weight.shape for weight in champion.network.get_weights()]:
        log.info(f"{job.backbone.name}: does not start from {champion.name}: its layers differ (tap)")
        return job, None
    auroc = {}
    for name in ("weights", "champion"):
        trial = replace(job, work=job.work / name, epochs=0)
        job.model.set_weights(given)
        if name == "champion":
            backbones.copy_weights(champion.network, job.model)
        auroc[name] = twophase.fit(trial, train, validation, "start").best["auroc"]
        job.batch_size = trial.batch_size
    starts = Starts(**auroc)
    chosen = "champion" if starts.champion_leads else "weights"
    job.model.set_weights(given)
    if chosen == "champion":
        backbones.copy_weights(champion.network, job.model)
    log.info(
        f"{job.backbone.name}: validation AUROC of a head on frozen features: {starts.champion:.3f} from "
        f"{champion.name}, {starts.weights:.3f} from the given weights; starts from "
        f"{champion.name if chosen == 'champion' else 'the given weights'}"
    )
    return replace(job, work=job.work / chosen), starts
