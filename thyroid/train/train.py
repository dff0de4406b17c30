"""Train one backbone on one domain. A training can be stopped at any time and resumes where it stopped.

    python -m thyroid.train --data DIR --backbone VGG16 --output DIR

The recipes are:

- two-phase: the default, see `twophase`.
- frozen: the first phase of two-phase alone.
- warm: two-phase from the champion's body, if that does at least as well as the given weights.
- deck: the slide deck's recipe, see `deck`.

With --settings, the recipe and its settings come from a settings.json of `thyroid.sweep`. With --folds, the recipe is
also cross-validated by patient on the development part (train and validation). The test set is not read.
"""

import hashlib
import json
import logging
import shutil
import time
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from thyroid import metrics, storage
from thyroid.errors import InputError
from thyroid.model import backbones
from thyroid.model.artefact import sha256
from thyroid.model.backend import keras, policy, tf, where
from thyroid.model.network import GRAPH, Network
from thyroid.records.settings import Settings
from thyroid.records.train import DiagnosisRecord, Starts, TrainRecord, ValidationOfTraining
from thyroid.storage import backup, mirror
from thyroid.train import checkpoints, cross_validation, deck, diagnose, record, twophase, warm_start
from thyroid.train.cross_validation import MAIN, Development
from thyroid.train.options import TrainOptions
from thyroid.train.settings import named_margin, resolve

log = logging.getLogger(__name__)

_DEFAULTS = TrainOptions()


@dataclass(frozen=True)
class Trained:
    """Holds the result of a training.

    Attributes:
        folder: Folder with the checkpoint, history.csv, history.png, parts.csv and train.json.
        record: Content of train.json.
    """

    folder: Path
    record: TrainRecord


def train(
    data: Path,
    output: Path,
    backbone: str,
    domain: str = "",
    options: TrainOptions = _DEFAULTS,
    *,
    tuned: Settings | None = None,
) -> Trained:
    """Train `backbone` on the training part of one domain of `data`.

    Args:
        data: Data version of `crop`.
        output: Folder to write to.
        backbone: A name in `backbones.BACKBONES`.
        domain: "normal" or "cropped". Empty for the first one that the data version was made for.
        options: How to train.
        tuned: Settings that replace those of `options.settings`. The deck's recipe has no settings.

    Raises:
        InputError: The weights are unusable, an image is missing or changed, a part lacks a class, or the settings do
            not fit the data version.
        TrainingDivergedError: The loss is no longer a finite number.
    """
    started = time.monotonic()
    inside = options.work and not storage.is_bucket(options.work)
    if inside and Path(options.work).resolve().is_relative_to(output.resolve()):
        raise InputError(f"work folder {options.work} is inside the output {output}: choose another one")
    training = _specify(data, backbone, domain, options, tuned)
    output.mkdir(parents=True, exist_ok=True)
    with backup.kept(options.work or output / ".work", training.key) as work:
        if (work / backup.DONE / record.TRAINING).is_file():
            shutil.copytree(work / backup.DONE, output, dirs_exist_ok=True)
            log.info(f"{training.name}: already trained; the result is read from {mirror.address(work)}")
            return Trained(output, record.read(output))
        training.log_start()
        run = training.run(work, started)
        record.write_history(output, run.fitted.history, f"{training.name}, {training.options.recipe}")
        record.copy_logs(run.job.work / MAIN, output)
        record.write_images(output, training.images.table["name"], run.part, run.held_out)
        model = run.write_model(output)
        trained = run.record(model)
        run.diagnose(model, trained).write(output / record.DIAGNOSIS)
        done = trained.model_copy(update={"seconds": round(time.monotonic() - started, 1)})
        done.write(output / record.TRAINING)
        record.tidy(work, output, model.files)
    log.info(f"{training.name}: validation AUROC {done.validation.auroc:.3f}, {model.checkpoint}, {done.seconds:.0f} s")
    return Trained(output, done)


@dataclass(frozen=True)
class Training:
    """A training whose data, options and settings are checked and complete, before anything is computed.

    Attributes:
        backbone: Row of `backbones.BACKBONES`.
        start: Result of `backbones.find_weights`.
        images: The development part.
        folds: Part of each image by name of the fold, see `Development.parts`. Empty without cross-validation.
        options: Options, with the recipe, image size, tap and epochs that apply.
        settings: Settings, with margin, image size, tap and backbone.
        champion: The champion that it may start from.
    """

    backbone: backbones.Backbone
    start: str | Path | None
    images: Development
    folds: dict[str, pd.Series]
    options: TrainOptions
    settings: Settings
    champion: warm_start.Champion | None

    @property
    def name(self) -> str:
        """What is trained, for messages."""
        return f"{self.backbone.name} on {self.images.domain}"

    @property
    def is_deck(self) -> bool:
        """Whether the slide deck's recipe is used."""
        return self.options.recipe == "deck"

    @property
    def jitter(self) -> float:
        """Multiple of a locator's errors by which half of what is learnt from is disturbed; 0 for none."""
        learnt = not self.is_deck and self.images.table["jitter_sha256"].notna().any()
        return self.images.data.jitter if learnt else 0.0

    @property
    def facts(self) -> dict[str, Any]:
        """The part of train.json that is known before the training."""
        options = self.options
        return {
            "backbone": self.backbone.name,
            "train_domain": self.images.domain,
            "weights": backbones.weights_name(self.start),
            "image_size": options.image_size,
            "epochs": options.epochs,
            "batch_size": options.batch_size,
            "seed": options.seed,
            "recipe": options.recipe,
            "jitter": self.jitter,
            "champion": None if self.champion is None else self.champion.sha256,
            "tap": options.tap,
            "folds": options.folds,
            "only_fold": options.only_fold,
            "deterministic": options.deterministic,
            "precision": "float32" if self.is_deck else policy(),
            **({} if self.is_deck else {"settings": self.settings.to_dict()}),
        }

    @property
    def key(self) -> str:
        """Name of the training's work folder. Everything that would change the result changes the name."""
        content = self.facts | {
            "weights": sha256(self.start) if isinstance(self.start, Path) else self.facts["weights"],
            "images": self.images.table[["sha256", "class", "split"]].to_numpy().tolist(),
            "jittered": [] if self.is_deck else self.images.table["jitter_sha256"].fillna("").tolist(),
            "groups": self.images.table["group"].tolist() if self.options.folds else [],  # they decide the folds
            "versions": [version("thyroid"), keras.__version__, tf.__version__, *twophase.CONSTANTS],
        }
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
        return f"{self.backbone.name}-{self.images.domain}-{digest}"

    def log_start(self) -> None:
        """Log what the training starts from, and on how many images."""
        name, options = self.backbone.name, self.options
        count, total = int((self.images.table["split"] == "train").sum()), len(self.images.table)
        if options.batch_size > count:
            log.info(f"batch size {options.batch_size} exceeds the training part: one step of {count} images per epoch")
        if self.start is None:
            reason = "" if options.weights.lower() == "none" else f"no file for it in {options.weights}; "
            log.info(f"{name}: {reason}starts from random weights (none), so its results will be poor")
        else:
            log.info(f"{name}: starts from {self.start}")
        log.info(f"{self.name}, {options.recipe}: {count} images to train, {total - count} to validate; {where()}")

    def run(self, work: Path, started: float) -> "_Run":
        """Fit the model, and before that the folds.

        Args:
            work: Folder that outlives the process, and from which the training resumes.
            started: time.monotonic() at the start of the training.
        """
        images, options = self.images, self.options
        if options.deterministic:
            tf.config.experimental.enable_op_determinism()
        with twophase.prepared(
            self.backbone,
            self.start,
            images.table,
            images.labels,
            work=work,
            options=options,
            settings=self.settings,
            started=started,
        ) as job:
            held_out = cross_validation.predict_held_out(
                job, images, self.folds, partial(self.fit, job), options.only_fold
            )
            starts = None
            if self.champion is not None:
                job, starts = warm_start.choose(job, images, self.champion)
            fitted, part = self.fit(job, images.table["split"], MAIN)
        return _Run(self, job, fitted, part, held_out, starts)

    def fit(self, job: twophase.Job, part: pd.Series, name: str) -> tuple[twophase.Fitted, pd.Series]:
        """Fit job.model by the recipe.

        Args:
            job: The training.
            part: Part of each image.
            name: Name of the fit.

        Returns:
            The fit, and the part of each image that the recipe used. The deck's recipe sets its own images aside.
        """
        if self.is_deck:
            table = self.images.table
            given = table[part == "train"] if name == MAIN else table[part != "held-out"]
            fitted, own = job.within_memory(lambda: deck.fit(job, given, self.images.classes, name))
            return fitted, part.mask(part.index.isin(own.index), own.reindex(part.index))
        train, validation = (np.flatnonzero(part == which) for which in ("train", "validation"))
        return twophase.fit(job, train, validation, name), part


def _specify(data: Path, backbone: str, domain: str, options: TrainOptions, tuned: Settings | None) -> Training:
    """Check the arguments of `train`, read the development part, and resolve the settings."""
    row = backbones.get(backbone)
    recipe, found = resolve(options.recipe, options.settings)
    tuned = (tuned or found).of(row.name)
    resolved = replace(
        options,
        recipe=recipe,
        image_size=tuned.image_size or options.image_size,
        tap=tuned.tap or options.tap,
        epochs=0 if recipe == "frozen" or tuned.unfrozen == 0 else options.epochs,
    )
    start = backbones.find_weights(row, options.weights)
    images = Development.read(data, domain)
    if (named := named_margin(options.settings)) is not None:
        images.require_margin(named, options.settings)
    tuned = tuned.replace(
        margin=images.data.margin, image_size=resolved.image_size, tap=resolved.tap, backbone=row.name
    )
    champion = None
    if recipe == "warm":
        champion = warm_start.find(
            options.registry, options.champion, row, images.judging(), classes=images.classes, domain=images.domain
        )
    images.require_classes(images.table["split"])
    return Training(row, start, images, images.parts(options.folds, options.seed), resolved, tuned, champion)


@dataclass(frozen=True)
class _Run:
    """What the fits of a training have left in memory.

    Attributes:
        training: The training.
        job: The model, its images, and the batch size that fitted into memory.
        fitted: The main fit.
        part: Part of each image that it used.
        held_out: Out-of-fold predictions, or None without folds.
        starts: Validation AUROC of a head on each start of the warm recipe, or None without a choice.
    """

    training: Training
    job: twophase.Job
    fitted: twophase.Fitted
    part: pd.Series
    held_out: pd.DataFrame | None
    starts: Starts | None

    def write_model(self, output: Path) -> "_Model":
        """Write the Keras file and the traced graph."""
        training, job, best = self.training, self.job, self.fitted.best
        tap, is_deck = training.settings.tap, training.is_deck
        stored = backbones.in_single_precision(job.model, job.backbone, training.start, tap, deck=is_deck)
        blocks = None if is_deck else max(1, training.settings.unfrozen)
        network = Network.trace(stored, training.images.classes, blocks)
        best = best if is_deck else best | self._validate(network)
        checkpoint = f"{job.backbone.name}-{best['epoch']:03d}-{best['loss']:.4f}-{best['accuracy']:.4f}.keras"
        stored.save(output / checkpoint)
        (output / GRAPH).write_bytes(network.graph.SerializeToString())
        files = {name: sha256(output / name) for name in (checkpoint, GRAPH)}
        return _Model(stored, network, best, checkpoint, files)

    def _validate(self, network: Network) -> dict[str, float]:
        """Return the metrics of the model in its stored form. During the fit they may be in mixed precision."""
        job, rows = self.job, np.flatnonzero(self.training.images.table["split"] == "validation")
        pixels, truth = job.pixels[rows], job.labels[rows]

        def predict() -> NDArray[np.float64]:
            network.batch_size = job.batch_size
            return network.probabilities(pixels, "validation images")

        probability = job.within_memory(predict)
        return {
            "auroc": float(roc_auc_score(truth, probability)),  # macro, each class against the rest
            "loss": float(-np.log(np.maximum((probability * truth).sum(axis=1), keras.config.epsilon())).mean()),
            "accuracy": metrics.accuracy(truth.argmax(axis=1), probability),
        }

    def record(self, model: "_Model") -> TrainRecord:
        """Return the content of train.json, with the seconds until now."""
        training, job = self.training, self.job
        known = training.facts | training.images.classes.to_dict() | checkpoints.memory()
        if self.starts is not None:
            known["starts"] = self.starts
            if training.champion is not None and self.starts.champion_leads:
                known["weights"] = training.champion.name
        known["batch_size"] = job.batch_size
        return TrainRecord(
            **known,
            parameters=job.model.count_params(),
            checkpoint=model.checkpoint,
            files=model.files,
            epoch=model.best["epoch"],
            validation=ValidationOfTraining(**{key: model.best[key] for key in ("auroc", "loss", "accuracy")}),
            data_digest=training.images.data.digest,
            seconds=round(time.monotonic() - job.started, 1),
        )

    def diagnose(self, model: "_Model", trained: TrainRecord) -> DiagnosisRecord:
        """Diagnose the model on the images that are decoded already, and log what is wrong."""
        table = self.training.images.table
        places = pd.Series(range(len(table)), table["file"])
        diagnosis = diagnose.examine(
            self.training.images.data,
            trained,
            pd.Series(self.part.to_numpy(), table["name"]),
            model.stored,
            model.network,
            decode=lambda wanted, size: self.job.pixels[places[wanted["file"]]],
        )
        if diagnosis.findings:
            log.info(diagnose.describe(diagnosis))
        return diagnosis


@dataclass(frozen=True)
class _Model:
    """A trained model as it is stored.

    Attributes:
        stored: The Keras model.
        network: Its traced graph.
        best: epoch, auroc, loss and accuracy of the kept state on the validation images.
        checkpoint: Name of its Keras file.
        files: SHA-256 of its files by name.
    """

    stored: Any
    network: Network
    best: dict[str, Any]
    checkpoint: str
    files: dict[str, str]
