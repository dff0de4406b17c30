"""The default recipe: a head on frozen features, then the last block fine-tuned by Keras' own fit.

All but the last block of the body stays frozen, so its output, the maps, is computed once for every image and `VIEWS` - 1
augmented copies of it. Both phases learn from these maps: first the dense head, on pooled features (`head`); then the
last block with the head, at a low rate with warm-up and cosine decay and BatchNorm in inference mode, at a small part of
the whole body's cost. The state with the highest validation AUROC is kept, the head's included.
"""

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
from sklearn.metrics import roc_auc_score

from thyroid import progress
from thyroid.errors import InputError
from thyroid.model import backbones, inputs
from thyroid.model.backend import XLA, keras, policy, strategy, tf
from thyroid.train import checkpoints, epoch_bar
from thyroid.train import head as dense
from thyroid.train.settings import Settings

VIEWS = 2
WARMUP = 0.1
"""Share of the steps over which the rate rises, before it falls as a cosine (Goyal et al. 2017; Loshchilov & Hutter 2017)."""
PATIENCE = 5
CHUNK = 256
"""Images after whose maps an interruption costs nothing."""
HALF = float(np.finfo(np.float16).max)

LOSS = "categorical_crossentropy"
"""The loss without smoothing and penalty, by which one model can be compared with another."""

CONSTANTS = (dense.EPOCHS, dense.BATCH, dense.PATIENCE, VIEWS, WARMUP, PATIENCE)
"""A resumed training must use the same constants."""

T = TypeVar("T")


def auroc(classes: int) -> Any:
    """Keras' metric: AUROC of each class against the rest, and the mean of them (of two classes both are the same)."""
    return keras.metrics.AUC(num_thresholds=1000, multi_label=True, num_labels=classes, name="auroc")


@dataclass
class Job:
    """One backbone on the images of one domain.

    Attributes:
        model: as `backbones.build` makes it; a fit leaves its weights in it.
        backbone: row of the table.
        pixels: uint8 [n, size, size, 1 or 3].
        labels: float32 one-hot [n, classes].
        work: folder that outlives the process; what is in it is taken up again.
        epochs: of fine-tuning; 0 for the head alone.
        batch_size: images a step; halved for good where the memory does not suffice.
        seed: of initialisation, order and augmentation.
        started: time.monotonic() when the training began.
        memory_budget: bytes up to which an array is held in memory.
        settings: of both phases.
        callbacks: Keras', of fine-tuning.
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

    def networks(self) -> tuple[Any, Any, Any]:
        """Three models over the layers of `model`: images to maps, maps to pooled features, maps to probabilities."""
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


@contextmanager
def prepared(
    backbone: backbones.Backbone,
    start: str | Path | None,
    table: pd.DataFrame,
    labels: NDArray[np.float32],
    work: Path,
    settings: Settings,
    *,
    epochs: int,
    batch_size: int,
    seed: int,
    started: float,
    memory_budget: int = inputs.MEMORY_BUDGET,
    deck: bool = False,
) -> Iterator[Job]:
    """Yield a training that is ready to be fitted within the block: images decoded, network built, precision and devices set.

    Args:
        backbone: row of the table.
        start: of `backbones.find_weights`.
        table: rows of `tables.examples`.
        labels: float32 one-hot [n, classes].
        work: as of `Job`, like epochs, batch_size, seed and started.
        settings: with the side of the input in pixels.
        memory_budget: bytes for the images and the maps of every view together.
        deck: whether the slide deck's recipe is wanted, in single precision.
    """
    budget = memory_budget // (1 + VIEWS)
    pixels = inputs.decode(table, settings.image_size, budget)
    keras.config.set_dtype_policy("float32" if deck else policy())
    try:
        with strategy().scope():
            keras.utils.set_random_seed(seed)
            size, classes = settings.image_size, labels.shape[1]
            model = backbones.build(backbone, size, start, settings.tap, deck=deck, classes=classes)
            yield Job(model, backbone, pixels, labels, work, epochs, batch_size, seed, started, budget, settings)
    finally:
        keras.config.set_dtype_policy("float32")


@dataclass(frozen=True)
class Fitted:
    """History of all epochs, and epoch, auroc, loss and accuracy of the one that was kept, on validation."""

    history: pd.DataFrame
    best: dict[str, Any]


@dataclass(frozen=True)
class Frozen:
    """What both phases learn from: maps of every view, pooled features of each, and the network over maps."""

    maps: list[NDArray[np.float16]]
    views: list[NDArray[np.float32]]
    tuner: Any


def freeze(job: Job) -> Frozen:
    """Compute what the frozen part of job.model makes of the images; what an earlier run computed is taken up.

    Raises:
        TrainingDivergedError: a feature is not a finite number.
        InputError: the memory does not suffice for a single image.
    """
    extractor, pooled, tuner = job.networks()
    maps = [within_memory(job, partial(_maps, job, extractor, view)) for view in range(VIEWS)]
    return Frozen(maps, [within_memory(job, partial(_features, job, pooled, view)) for view in maps], tuner)


def fit(
    job: Job, train: NDArray[np.intp], validation: NDArray[np.intp], name: str, frozen: Frozen | None = None
) -> Fitted:
    """Both phases.

    Args:
        job: what is trained; its model starts from the weights it has.
        train: places of the training images in job.pixels.
        validation: likewise, for early stopping.
        name: of this fit's folder in job.work.
        frozen: of this job, where it is known; its model must have the weights that it had then.

    Raises:
        TrainingDivergedError: the loss or a feature is not a finite number.
        InputError: the memory does not suffice for a single image.
    """
    keras.utils.set_random_seed(job.seed)
    frozen = frozen or freeze(job)
    head = _fit_head(job, frozen.views, train, validation)
    best = _best(head, f"val_{LOSS}") | {"epoch": 0}
    if job.epochs == 0:
        return Fitted(head, best)
    start, folder = job.model.get_weights(), job.work / name
    balance = dict(enumerate(dense.class_weights(job.labels[train], job.settings.class_weight)))
    folder.mkdir(parents=True, exist_ok=True)
    tuned = within_memory(
        job, partial(finetune, job, frozen.tuner, frozen.maps, train, validation, balance, folder, start)
    )
    history = pd.concat([head, tuned], ignore_index=True)
    if (last := _best(tuned, "val_auroc"))["auroc"] > best["auroc"]:
        best = last
    else:
        job.model.set_weights(start)
    return Fitted(history, best)


def within_memory(job: Job, work: Callable[[], T]) -> T:
    """Do `work`; when the device runs out of memory, halve the batch and do it again."""
    while True:
        try:
            return work()
        except tf.errors.ResourceExhaustedError:
            if job.batch_size == 1:
                raise InputError(
                    f"{job.backbone.name}: the memory does not suffice for one image; choose a smaller image size"
                ) from None
        job.batch_size //= 2
        print(f"{job.backbone.name}: out of memory, goes on with batches of {job.batch_size}", flush=True)


def _maps(job: Job, extractor: Any, view: int) -> NDArray[np.float16]:
    """Output of the frozen part for all images, augmented if view > 0; what an earlier run computed is taken up."""
    count, size = job.pixels.shape[:2]
    moves = inputs.transforms(count, size, (job.seed, view), job.settings.augmentation) if view else None
    folder = job.work / "maps"
    folder.mkdir(parents=True, exist_ok=True)
    out = inputs.allocate((count, *extractor.output_shape[1:]), np.float16, job.memory_budget)
    name = f"{job.backbone.name} frozen part, {'augmented' if view else 'plain'}"
    with progress.bar(None, count, name, "image") as bar:
        for start in range(0, count, CHUNK):
            file, rows = folder / f"{view}-{start}.npz", slice(start, start + CHUNK)
            found = checkpoints.load(file)
            if found is None:
                batches = inputs.batches(job.pixels[rows], job.batch_size, None if moves is None else moves[rows])
                values = extractor.predict(batches, verbose=0)[: len(out[rows])].astype(np.float32)
                if not np.isfinite(values).all():
                    raise checkpoints.TrainingDivergedError(
                        f"{job.backbone.name}: its features are not finite numbers; check the weights"
                    )
                found = {"maps": np.clip(values, -HALF, HALF).astype(np.float16)}
                checkpoints.save(file, **found)
            out[rows] = found["maps"]
            bar.update(len(out[rows]))
    return out


def _features(job: Job, pooled: Any, maps: NDArray[np.float16]) -> NDArray[np.float32]:
    """Pooled features [n, width] of `maps`, in parts so that maps paged from disk do not enter the memory at once."""
    starts = range(0, len(maps), CHUNK)
    return np.concatenate(
        [pooled.predict(maps[i : i + CHUNK], job.batch_size, verbose=0).astype(np.float32) for i in starts]
    )


def predict(job: Job, frozen: Frozen, rows: NDArray[np.intp]) -> NDArray[np.float64]:
    """Probabilities [n, classes] of the plain images at `rows`, from their maps."""
    maps = frozen.maps[0]
    parts = [rows[i : i + CHUNK] for i in range(0, len(rows), CHUNK)]
    return np.concatenate([frozen.tuner.predict(maps[part], job.batch_size, verbose=0) for part in parts]).astype(float)


def _fit_head(
    job: Job, views: list[NDArray[np.float32]], train: NDArray[np.intp], validation: NDArray[np.intp]
) -> pd.DataFrame:
    """Fit the dense head and give it to the model."""
    rows: list[dict[str, Any]] = []
    last = time.monotonic()
    with progress.bar(None, dense.EPOCHS, f"{job.backbone.name} head, which may stop early", "epoch") as bar:

        def watch(epoch: int, fitted: dense.Head) -> None:
            nonlocal last
            now = time.monotonic()
            rows.append(
                {"phase": "head", "epoch": epoch}
                | _figures(fitted(views[0][train]), job.labels[train], job.settings.label_smoothing)
                | {
                    f"val_{name}": value
                    for name, value in _figures(
                        fitted(views[0][validation]), job.labels[validation], job.settings.label_smoothing
                    ).items()
                }
                | {
                    "seconds": round(now - last, 3),
                    "elapsed": round(now - job.started, 3),
                    "images_per_second": round(len(train) * len(views) / (now - last), 1),
                }
                | checkpoints.memory()
            )
            last = now
            bar.update()

        fitted = dense.fit(views, job.labels, train, validation, job.settings, job.seed, watch)
    job.model.get_layer(backbones.PROBABILITY).set_weights([fitted.kernel, fitted.bias])
    return pd.DataFrame(rows)


def _figures(probability: NDArray[np.float64], truth: NDArray[np.float32], smoothing: float) -> dict[str, float]:
    """As Keras names them; the loss is without class weights and penalty, the AUROC over the classes that are there."""
    both = truth.any(axis=0) & ~truth.all(axis=0)
    return {
        "loss": dense.cross_entropy(probability, truth * (1 - smoothing) + smoothing / truth.shape[1]),
        LOSS: dense.cross_entropy(probability, truth),
        "accuracy": float((probability.argmax(axis=1) == truth.argmax(axis=1)).mean()),
        "auroc": float(roc_auc_score(truth[:, both], probability[:, both])),
    }


def finetune(
    job: Job,
    tuner: Any,
    maps: list[NDArray[np.float16]],
    train: NDArray[np.intp],
    validation: NDArray[np.intp],
    balance: dict[int, float],
    folder: Path,
    start: list[NDArray[Any]],
) -> pd.DataFrame:
    """Fit the last block and the head from the weights `start`, or from where `folder` says that it was stopped."""
    job.model.set_weights(start)
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
            class_weight=balance,
            shuffle=False,  # the batches shuffle themselves
            verbose=0,
            callbacks=[
                epoch_bar.epochs(f"{job.backbone.name} fine-tuning"),
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


def compile_model(model: Any, rate: Any, smoothing: float = Settings.label_smoothing) -> None:
    """The loss, metrics and optimizer of fine-tuning."""
    model.compile(
        keras.optimizers.Adam(rate),
        keras.losses.CategoricalCrossentropy(label_smoothing=smoothing),
        metrics=["accuracy", LOSS, auroc(model.output_shape[-1])],
        jit_compile=XLA,
    )
    # Variables that come into being inside the first step make TensorFlow trace it twice: half a minute for B7.
    model.optimizer.build(model.trainable_variables)
    blank = keras.ops.eye(model.output_shape[-1])
    model.compute_metrics(None, blank, blank)
    model.reset_metrics()


def _best(history: pd.DataFrame, monitor: str) -> dict[str, Any]:
    """Validation figures of the epoch that EarlyStopping restored (the first best one)."""
    if not np.isfinite(history[f"val_{LOSS}"]).any():
        raise checkpoints.TrainingDivergedError("the validation loss is not a finite number; check the weights")
    place = history[monitor].idxmax() if monitor == "val_auroc" else history[monitor].idxmin()
    epoch = history.loc[place]
    return {"epoch": int(epoch["epoch"]), "loss": float(epoch[f"val_{LOSS}"])} | {
        key: float(epoch[f"val_{key}"]) for key in ("auroc", "accuracy")
    }
