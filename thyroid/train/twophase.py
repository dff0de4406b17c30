"""Trains by the default recipe: a head on frozen features, then the last block fine-tuned by Keras' own fit.

All of the body except the last block stays frozen. The output of this part, the maps, is computed once for every image
and for `VIEWS` - 1 augmented copies of it, which are made of the image's disturbed crop if it has one. Both phases
learn from these maps. The first one fits the dense head on pooled features (`head`). The second one trains the last
block and the head at a low rate with warm-up, cosine decay and BatchNorm in inference mode, at a small part of the cost
of training the whole body. The state with the highest validation AUROC is kept; it may be the state after the first
phase.
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from thyroid import progress
from thyroid.errors import InputError
from thyroid.model import backbones, inputs
from thyroid.model.backend import XLA, auroc, keras, policy, strategy, tf
from thyroid.records.settings import Settings
from thyroid.train import checkpoints
from thyroid.train import head as dense
from thyroid.train.head import LOSS
from thyroid.train.options import TrainOptions

log = logging.getLogger(__name__)

VIEWS = 2
WARMUP = 0.1
"""Share of the steps over which the rate rises, before it falls as a cosine.

The schedule follows Goyal et al. 2017 and Loshchilov & Hutter 2017.
"""
PATIENCE = 5
CHUNK = 256
"""Images whose maps are saved together. A resumed training computes only unfinished chunks again."""
HALF = float(np.finfo(np.float16).max)

CONSTANTS = (dense.EPOCHS, dense.BATCH, dense.PATIENCE, VIEWS, WARMUP, PATIENCE)
"""A resumed training must use the same constants."""

T = TypeVar("T")

_DEFAULTS = Settings()


@dataclass
class Job:
    """Holds a training of one backbone on the images of one domain.

    Attributes:
        model: Result of `backbones.build`. A fit leaves its weights in it.
        backbone: Row of `backbones.BACKBONES`.
        pixels: uint8 [n, size, size, 1 or 3].
        labels: float32 one-hot [n, classes].
        work: Folder that outlives the process. A training resumes from its content.
        epochs: Epochs of fine-tuning. 0 to train the head alone.
        batch_size: Images per step. It is halved for the rest of the training if the memory does not suffice.
        seed: Seed of initialisation, order and augmentation.
        started: time.monotonic() at the start of the training.
        memory_budget: Largest size in bytes of an array that is held in memory.
        settings: Settings of both phases.
        callbacks: Keras callbacks for fine-tuning.
        jittered: Table of the images with the disturbed crops for the augmented views, see `inputs.disturbed`; or None.
    """

    model: Any
    backbone: backbones.Backbone
    pixels: NDArray[np.uint8]
    labels: NDArray[np.float32]
    work: Path
    epochs: int
    batch_size: int
    seed: int
    started: float
    memory_budget: int = inputs.MEMORY_BUDGET
    settings: Settings = field(default_factory=Settings)
    callbacks: tuple[Any, ...] = ()
    jittered: pd.DataFrame | None = None

    def networks(self) -> tuple[Any, Any, Any]:
        """Return three models over the layers of `model`.

        Returns:
            Models from images to maps, from maps to pooled features, and from maps to probabilities.
        """
        trunk, last_block = backbones.split(self.model, max(1, self.settings.unfrozen))
        image = [keras.Input(self.pixels.shape[1:], dtype="uint8"), keras.Input((len(inputs.IDENTITY),))]
        preprocessed = backbones.preprocess(self.backbone, inputs.Augment()(*image))
        extractor = keras.Model(image, trunk(preprocessed, training=False), name=f"{self.backbone.name}-maps")
        maps = keras.Input(last_block.input_shape[1:])
        features = self.model.get_layer(backbones.FEATURES)(last_block(maps, training=False))
        probability = self.model.get_layer(backbones.PROBABILITY)(features)
        pooled = keras.Model(maps, features)
        extractor.jit_compile = pooled.jit_compile = XLA
        return extractor, pooled, keras.Model(maps, probability, name=self.backbone.name)

    def within_memory(self, work: Callable[[], T]) -> T:
        """Call `work`, and call it again with half the batch size whenever the device runs out of memory.

        Raises:
            InputError: The memory does not suffice for a single image.
        """
        while True:
            try:
                return work()
            except tf.errors.ResourceExhaustedError:
                if self.batch_size == 1:
                    raise InputError(
                        f"{self.backbone.name}: out of memory with a batch of one image; choose a smaller image size"
                    ) from None
            self.batch_size //= 2
            log.info(f"{self.backbone.name}: out of memory; continues with batches of {self.batch_size}")


@contextmanager
def prepared(
    backbone: backbones.Backbone,
    start: str | Path | None,
    table: pd.DataFrame,
    labels: NDArray[np.float32],
    *,
    work: Path,
    options: TrainOptions,
    settings: Settings,
    started: float,
) -> Iterator[Job]:
    """Prepare a training that can be fitted within the block.

    Its images are decoded, its network is built, and precision and devices are set.

    Args:
        backbone: Row of `backbones.BACKBONES`.
        start: Result of `backbones.find_weights`.
        table: Rows of `DataVersion.examples`, `with_jitter` to learn from these crops, too. The deck's recipe does not.
        labels: float32 one-hot [n, classes].
        work: Folder that outlives the process, as for `Job`.
        options: Options of the training. The deck's recipe uses single precision.
        settings: Settings of the training, with the side of the input in pixels. They replace those of `options`.
        started: time.monotonic() at the start of the training.

    Yields:
        The training.
    """
    size, deck = settings.image_size, options.recipe == "deck"
    # The budget is divided among the images and the maps of every view.
    budget = (options.memory_budget or inputs.MEMORY_BUDGET) // (1 + VIEWS)
    pixels = inputs.decode(table, size, budget)
    keras.config.set_dtype_policy("float32" if deck else policy())
    try:
        with strategy().scope():
            keras.utils.set_random_seed(options.seed)
            model = backbones.build(backbone, size, start, settings.tap, deck=deck, classes=labels.shape[1])
            epochs, batch_size, seed = options.epochs, options.batch_size, options.seed
            job = Job(model, backbone, pixels, labels, work, epochs, batch_size, seed, started, budget, settings)
            job.jittered = None if deck else table
            yield job
    finally:
        keras.config.set_dtype_policy("float32")


@dataclass(frozen=True)
class Fitted:
    """Holds the result of a fit.

    Attributes:
        history: History, one row per epoch.
        best: epoch, auroc, loss and accuracy of the epoch that was kept, on the validation images.
    """

    history: pd.DataFrame
    best: dict[str, Any]


@dataclass(frozen=True)
class Frozen:
    """Holds what both phases learn from.

    Attributes:
        maps: Output of the frozen part for every view, float16 [n, h, w, channels] each.
        views: Pooled features of every view, float32 [n, width] each.
        tuner: Model from maps to probabilities.
    """

    maps: list[NDArray[np.float16]]
    views: list[NDArray[np.float32]]
    tuner: Any


def freeze(job: Job) -> Frozen:
    """Run the images through the frozen part of job.model, and reuse what an earlier run has computed.

    Raises:
        TrainingDivergedError: A feature is not a finite number.
        InputError: The memory does not suffice for a single image.
    """
    extractor, pooled, tuner = job.networks()
    maps = [job.within_memory(partial(_maps, job, extractor, view)) for view in range(VIEWS)]
    return Frozen(maps, [job.within_memory(partial(_features, job, pooled, view)) for view in maps], tuner)


def fit(
    job: Job, train: NDArray[np.intp], validation: NDArray[np.intp], name: str, frozen: Frozen | None = None
) -> Fitted:
    """Fit both phases.

    Args:
        job: The training. Its model starts from its current weights.
        train: Indices of the training images in job.pixels.
        validation: Indices of the images for early stopping in job.pixels.
        name: Name of this fit's folder in job.work.
        frozen: Result of `freeze` for this job if it is known. The model must have the same weights as then.

    Returns:
        History and best epoch. The model has the weights of the best epoch.

    Raises:
        TrainingDivergedError: The loss or a feature is not a finite number.
        InputError: The memory does not suffice for a single image.
    """
    keras.utils.set_random_seed(job.seed)
    frozen = frozen or freeze(job)
    head = _fit_head(job, frozen.views, train, validation)
    best = _best(head, f"val_{LOSS}") | {"epoch": 0}
    if job.epochs == 0:
        return Fitted(head, best)
    start, folder = job.model.get_weights(), job.work / name
    folder.mkdir(parents=True, exist_ok=True)

    def second_phase() -> pd.DataFrame:
        job.model.set_weights(start)
        return finetune(job, frozen, train, validation, folder)

    tuned = job.within_memory(second_phase)
    history = pd.concat([head, tuned], ignore_index=True)
    if (last := _best(tuned, "val_auroc"))["auroc"] > best["auroc"]:
        best = last
    else:
        job.model.set_weights(start)
    return Fitted(history, best)


def _maps(job: Job, extractor: Any, view: int) -> NDArray[np.float16]:
    """Return the output of the frozen part for all images, augmented and from disturbed crops if view > 0.

    Chunks that an earlier run has computed are read from disk.
    """
    count, size = job.pixels.shape[:2]
    moves = inputs.transforms(count, size, (job.seed, view), job.settings.augmentation) if view else None
    folder = job.work / "maps"
    folder.mkdir(parents=True, exist_ok=True)
    out = inputs.allocate((count, *extractor.output_shape[1:]), np.float16, job.memory_budget)
    name = f"{job.backbone.name} frozen part, {'augmented' if view else 'plain'}"
    with progress.bar(None, count, name, "image") as bar:
        for start in range(0, count, CHUNK):
            chunk, rows = folder / f"{view}-{start}.npz", slice(start, start + CHUNK)
            found = checkpoints.load(chunk)
            if found is None:
                pixels = job.pixels[rows]
                if view and job.jittered is not None:  # decoded here: one chunk of them is in memory at a time
                    pixels = inputs.disturbed(pixels, job.jittered.iloc[rows])
                batches = inputs.batches(pixels, job.batch_size, None if moves is None else moves[rows])
                values = extractor.predict(batches, verbose=0)[: len(out[rows])].astype(np.float32)
                if not np.isfinite(values).all():
                    raise checkpoints.TrainingDivergedError(
                        f"{job.backbone.name}: its features are not finite numbers; check the weights"
                    )
                found = {"maps": np.clip(values, -HALF, HALF).astype(np.float16)}
                checkpoints.save(chunk, **found)
            out[rows] = found["maps"]
            bar.update(len(out[rows]))
    return out


def _features(job: Job, pooled: Any, maps: NDArray[np.float16]) -> NDArray[np.float32]:
    """Return the pooled features [n, width], computed in parts because `maps` may be paged from disk."""
    starts = range(0, len(maps), CHUNK)
    return np.concatenate(
        [pooled.predict(maps[i : i + CHUNK], job.batch_size, verbose=0).astype(np.float32) for i in starts]
    )


def predict(job: Job, frozen: Frozen, rows: NDArray[np.intp]) -> NDArray[np.float64]:
    """Return the probabilities [n, classes] of the images at `rows`, from the maps of their plain view."""
    maps = frozen.maps[0]
    parts = [rows[i : i + CHUNK] for i in range(0, len(rows), CHUNK)]
    return np.concatenate([frozen.tuner.predict(maps[part], job.batch_size, verbose=0) for part in parts]).astype(float)


def _fit_head(
    job: Job, views: list[NDArray[np.float32]], train: NDArray[np.intp], validation: NDArray[np.intp]
) -> pd.DataFrame:
    """Fit the dense head, set its weights in the model, and return the history."""
    history: list[dict[str, Any]] = []
    last = time.monotonic()
    with progress.bar(None, dense.EPOCHS, f"{job.backbone.name} head, which may stop early", "epoch") as bar:

        def watch(epoch: int, fitted: dense.Head) -> None:
            nonlocal last
            measured, held = (
                dense.metrics(fitted(views[0][rows]), job.labels[rows], job.settings.label_smoothing)
                for rows in (train, validation)
            )
            history.append(
                {"phase": "head", "epoch": epoch}
                | measured
                | {f"val_{name}": value for name, value in held.items()}
                | checkpoints.pace(len(train) * len(views), last, job.started)
            )
            last = time.monotonic()
            bar.update()

        fitted = dense.fit(views, job.labels, train, validation, job.settings, seed=job.seed, watch=watch)
    job.model.get_layer(backbones.PROBABILITY).set_weights([fitted.kernel, fitted.bias])
    return pd.DataFrame(history)


def finetune(
    job: Job, frozen: Frozen, train: NDArray[np.intp], validation: NDArray[np.intp], folder: Path
) -> pd.DataFrame:
    """Fine-tune the last block and the head from job.model's weights, or resume from the state in `folder`.

    Args:
        job: The training.
        frozen: Maps of every view, and the model from maps to probabilities.
        train: Indices of the training images.
        validation: Indices of the validation images.
        folder: Folder for the state and for TensorBoard's logs.

    Returns:
        History, one row per epoch.
    """
    tuner, maps = frozen.tuner, frozen.maps
    epochs = inputs.Epochs(maps, job.labels, train, job.batch_size, job.seed)
    steps = epochs.steps * job.epochs
    warmup = max(1, round(WARMUP * steps))
    rate = keras.optimizers.schedules.CosineDecay(
        0.0, max(1, steps - warmup), warmup_target=job.settings.rate, warmup_steps=warmup
    )
    compile_model(tuner, rate, job.settings.label_smoothing)
    stopper = keras.callbacks.EarlyStopping("val_auroc", mode="max", patience=PATIENCE, restore_best_weights=True)
    resume = checkpoints.Resume(folder, epochs, stopper, job.backbone.name)
    try:
        tuner.fit(
            epochs.dataset(),
            validation_data=inputs.rows_of(maps[0], job.labels, validation, job.batch_size),
            initial_epoch=resume.epoch,
            epochs=resume.epoch if resume.finished else job.epochs,
            class_weight=dict(enumerate(dense.class_weights(job.labels[train], job.settings.class_weight))),
            shuffle=False,  # the batches are already shuffled
            verbose=0,
            callbacks=[
                checkpoints.ProgressBar(f"{job.backbone.name} fine-tuning"),
                checkpoints.Watch(len(train), job.started),
                stopper,
                resume,
                *job.callbacks,
                keras.callbacks.TensorBoard(folder / "tensorboard", write_graph=False),
            ],
        )
    finally:
        resume.close()
    history = resume.history
    history.insert(0, "phase", "finetune")
    return history


def compile_model(model: Any, rate: Any, smoothing: float = _DEFAULTS.label_smoothing) -> None:
    """Compile a model with the loss, metrics and optimizer of fine-tuning, by a learning rate or its schedule."""
    model.compile(
        keras.optimizers.Adam(rate),
        keras.losses.CategoricalCrossentropy(label_smoothing=smoothing),
        metrics=["accuracy", LOSS, auroc(model.output_shape[-1])],
        jit_compile=XLA,
    )
    # Variables that are created inside the first step make TensorFlow trace it twice, half a minute for EfficientNetB7.
    model.optimizer.build(model.trainable_variables)
    blank = keras.ops.eye(model.output_shape[-1])
    model.compute_metrics(None, blank, blank)
    model.reset_metrics()


def _best(history: pd.DataFrame, monitor: str) -> dict[str, Any]:
    """Return the validation metrics of the epoch that EarlyStopping restored, the first of the best ones."""
    if not np.isfinite(history[f"val_{LOSS}"]).any():
        raise checkpoints.TrainingDivergedError("the validation loss is not a finite number; check the weights")
    place = history[monitor].idxmax() if monitor == "val_auroc" else history[monitor].idxmin()
    epoch = history.loc[place]
    return {"epoch": int(epoch["epoch"]), "loss": float(epoch[f"val_{LOSS}"])} | {
        key: float(epoch[f"val_{key}"]) for key in ("auroc", "accuracy")
    }
