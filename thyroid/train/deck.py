"""Trains by the slide deck's recipe, mistakes included, so that its results can be reproduced and explained.

The recipe is never a default. It does the following:

- It scales images by 1/255, whatever the backbone expects.
- It asks for featurewise centre and deviation without calling `fit`, which has no effect.
- It uses one ImageDataGenerator for both subsets, so validation images are augmented, too.
- Its `validation_split` goes by position among file names, so a patient's images fall on both sides.
- It trains all layers, BatchNorm included.
- It keeps the epoch with the best accuracy.

The deck does not name an optimizer, so Adam at Keras' default rate is used.
"""

import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from thyroid.data.classes import Classes
from thyroid.errors import InputError
from thyroid.model import backbones
from thyroid.model.backend import keras
from thyroid.train import checkpoints
from thyroid.train.twophase import Fitted, Job, compile_model

VALIDATION_SHARE = 0.1
RATE = 1e-3  # Adam's default in Keras


def generator() -> Any:
    """Return the deck's ImageDataGenerator, which Keras keeps as a legacy class."""
    from keras.src.legacy.preprocessing.image import ImageDataGenerator

    return ImageDataGenerator(
        rescale=1 / 255,
        rotation_range=20,
        width_shift_range=0.2,
        height_shift_range=0.2,
        shear_range=0.2,
        zoom_range=0.2,
        horizontal_flip=True,
        vertical_flip=True,
        featurewise_center=True,
        featurewise_std_normalization=True,
        validation_split=VALIDATION_SHARE,
    )


def flows(job: Job, table: pd.DataFrame, classes: Classes, folder: Path) -> tuple[Any, Any]:
    """Return the deck's training and validation subsets of one folder.

    Args:
        job: The training.
        table: Images with class and file (full path).
        classes: Classes of the images.
        folder: Empty folder in which links to the images are made.

    Raises:
        InputError: No class has enough images to set one aside.
    """
    if (most := table.groupby("class").size().max()) < 1 / VALIDATION_SHARE:
        raise InputError(
            f"recipe deck holds out one image in {1 / VALIDATION_SHARE:g} of each class, but no class has more than "
            f"{most} images"
        )
    folders = [str(number) for number in range(len(classes))]
    for name in folders:
        (folder / name).mkdir()
    for image_path, place in zip(map(Path, table["file"]), classes.index(table["class"]), strict=True):
        (folder / folders[place] / image_path.name).symlink_to(image_path.resolve())
    source, side = generator(), job.model.input_shape[1]
    training, validation = (
        source.flow_from_directory(
            str(folder),
            target_size=(side, side),
            classes=folders,
            batch_size=job.batch_size,
            seed=job.seed,
            subset=subset,
        )
        for subset in ("training", "validation")
    )
    return training, validation


def fit(job: Job, table: pd.DataFrame, classes: Classes, name: str) -> tuple[Fitted, pd.Series]:
    """Train job.model on the images of a table, with a tenth of them set aside as in the deck.

    As in the deck, a training that was stopped cannot resume and starts from the beginning.

    Args:
        job: The training. Its model comes from `backbones.build(deck=True)`.
        table: Images with class and file (full path).
        classes: Classes of the images.
        name: Name of this fit's folder in job.work.

    Returns:
        The epoch with the best validation accuracy on the deck's own split, and "train" or "validation" per row of
        `table`.

    Raises:
        TrainingDivergedError: The loss is not a finite number.
        InputError: No class has enough images to set one aside.
    """
    model, work, size = job.model, job.work / name, job.model.input_shape[1]
    work.mkdir(parents=True, exist_ok=True)
    image = keras.Input((size, size, 3))
    maps = model.get_layer(backbones.BODY)(image)
    features = model.get_layer(backbones.FEATURES)(maps)
    network = keras.Model(image, model.get_layer(backbones.PROBABILITY)(features), name=model.name)
    compile_model(network, RATE, smoothing=0.0)
    kept = work / "best.weights.h5"
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This ImageDataGenerator specifies", UserWarning)  # the deck's mistake
        training, validation = flows(job, table, classes, Path(folder))
        log = network.fit(
            training,
            validation_data=validation,
            epochs=job.epochs,
            verbose=0,
            callbacks=[
                checkpoints.Watch(training.n, job.started),
                keras.callbacks.TerminateOnNaN(),
                keras.callbacks.ModelCheckpoint(kept, "val_accuracy", save_best_only=True, save_weights_only=True),
                keras.callbacks.TensorBoard(work / "tensorboard", write_graph=False),
                checkpoints.ProgressBar(f"{model.name}, deck's recipe"),
            ],
        )
    history = pd.DataFrame(log.history)
    if not np.isfinite(history[["loss", "val_loss"]]).all(axis=None):
        last = f"; the best weights before that are in {kept}" if kept.exists() else ""
        raise checkpoints.TrainingDivergedError(f"{model.name}: the loss is not finite in epoch {len(history)}{last}")
    network.load_weights(kept)
    kept.unlink()
    history.insert(0, "epoch", range(1, len(history) + 1))
    history.insert(0, "phase", "deck")
    row = history.loc[history["val_accuracy"].idxmax()]
    best = {key: float(row[f"val_{key}"]) for key in ("auroc", "loss", "accuracy")} | {"epoch": int(row["epoch"])}
    held = {Path(name).name for name in validation.filenames}
    part = pd.Series(["validation" if Path(file).name in held else "train" for file in table["file"]], table.index)
    return Fitted(history, best), part
