"""The slide deck's recipe, mistakes included, so that its results can be reproduced and explained. Never a default.

Images scaled by 1/255 whatever the backbone expects; featurewise centre and deviation asked for without `fit`, which does
nothing; one ImageDataGenerator for both subsets, so validation images are augmented, too; `validation_split` by position
among file names, so a patient's images fall on both sides; all layers trained, BatchNorm included; the epoch with the best
accuracy kept. The deck names no optimizer: Adam at Keras' default rate.
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
from thyroid.train import checkpoints, epoch_bar
from thyroid.train.twophase import Fitted, Job, compile_model

VALIDATION_SHARE = 0.1
RATE = 1e-3  # Adam's in Keras


def generator() -> Any:
    """The deck's ImageDataGenerator, which Keras keeps as a legacy class."""
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


def flows(
    table: pd.DataFrame, classes: Classes, size: int, batch_size: int, seed: int, folder: Path
) -> tuple[Any, Any]:
    """The deck's two subsets of one folder, as links below `folder`: (training, validation)."""
    if (most := table.groupby("class").size().max()) < 1 / VALIDATION_SHARE:
        raise InputError(
            f"the deck's recipe sets every tenth image of a class aside, and no class has more than {most}"
        )
    folders = [str(number) for number in range(len(classes))]
    for name in folders:
        (folder / name).mkdir()
    for file, place in zip(table["file"], classes.index(table["class"]), strict=True):
        (folder / folders[place] / Path(file).name).symlink_to(Path(file).resolve())
    source = generator()
    training, validation = (
        source.flow_from_directory(
            str(folder),
            target_size=(size, size),
            classes=folders,
            batch_size=batch_size,
            seed=seed,
            subset=subset,
        )
        for subset in ("training", "validation")
    )
    return training, validation


def fit(job: Job, table: pd.DataFrame, classes: Classes, name: str) -> tuple[Fitted, pd.Series]:
    """Train job.model (of `backbones.build(deck=True)`) on the images of `table`, a tenth set aside as in the deck.

    As the deck had it, a training that is stopped starts anew.

    Returns:
        What was kept, by the deck's own validation accuracy; and train or validation per row of `table`.
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
        training, validation = flows(table, classes, size, job.batch_size, job.seed, Path(folder))
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
                epoch_bar.epochs(f"{model.name}, deck's recipe"),
            ],
        )
    history = pd.DataFrame(log.history)
    if not np.isfinite(history[["loss", "val_loss"]]).all(axis=None):
        last = f"; its best weights before that are {kept}" if kept.exists() else ""
        raise checkpoints.TrainingDivergedError(
            f"{model.name}: not a finite number (loss) in epoch {len(history)}{last}"
        )
    network.load_weights(kept)
    kept.unlink()
    history.insert(0, "epoch", range(1, len(history) + 1))
    history.insert(0, "phase", "deck")
    row = history.loc[history["val_accuracy"].idxmax()]
    best = {key: float(row[f"val_{key}"]) for key in ("auroc", "loss", "accuracy")} | {"epoch": int(row["epoch"])}
    held = {Path(name).name for name in validation.filenames}
    part = pd.Series(["validation" if Path(file).name in held else "train" for file in table["file"]], table.index)
    return Fitted(history, best), part
