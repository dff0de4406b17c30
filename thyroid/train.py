"""Train one backbone on one domain by two-phase transfer learning, with Keras' own fit in both phases.

    python -m thyroid.train --data DIR --backbone VGG16 --output DIR

Phase "head": the body is frozen, so its pooled features are computed once, for the plain images and one augmented view,
and the dense head is fitted on that table. Phase "finetune": the last block and the head are trained on augmented
images, with BatchNorm in inference mode. The model with the highest validation AUROC is kept, the head's included.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.utils.class_weight import compute_class_weight

from thyroid import backbones, crop, errors, inputs, plots, progress, tables
from thyroid.backend import XLA, keras, tf
from thyroid.errors import InputError
from thyroid.names import CLASSES, POSITIVE

HEAD_EPOCHS = 100
HEAD_BATCH = 128
HEAD_RATE = 1e-3
HEAD_PENALTY = 1e-2
HEAD_PATIENCE = 10
VIEWS = 2
FINETUNE_RATE = 2e-5
PATIENCE = 5

LOSS = "categorical_crossentropy"
"""The loss without the head's penalty, which is what one model can be compared with another by."""


@dataclass(frozen=True)
class Trained:
    """Folder with the checkpoint, history.csv, history.png and train.json, whose content is `facts`."""

    folder: Path
    facts: dict[str, Any]


@keras.saving.register_keras_serializable("thyroid")
class Auroc(keras.metrics.AUC):
    """AUROC of the malignant column of a softmax (keras' AUC would pool both columns)."""

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        super().update_state(y_true[:, POSITIVE], y_pred[:, POSITIVE], sample_weight)


def train(
    data: Path,
    output: Path,
    backbone: str,
    domain: str | None = None,
    weights: str = "imagenet",
    image_size: int = 224,
    epochs: int = 15,
    batch_size: int = 32,
    seed: int = 0,
) -> Trained:
    """Train `backbone` on the training part of one domain of `data`.

    Args:
        data: data version of `crop`.
        output: folder to write to.
        backbone: a name of `backbones.BACKBONES`.
        domain: "normal" or "cropped"; None for the first that the data version was made for.
        weights: see `backbones.find_weights`.
        image_size: side of the model's square input in pixels.
        epochs: of fine-tuning; 0 trains the head only.
        batch_size: images a step while fine-tuning.
        seed: of initialisation, shuffling and augmentation.

    Raises:
        InputError: unknown backbone, unusable weights, a missing file, or a part without both classes.
    """
    started = time.monotonic()
    keras.utils.set_random_seed(seed)
    row = backbones.get(backbone)
    facts = tables.read(data)[2]
    domain = domain or facts["domains"][0]
    part = {split: _part(data, domain, split) for split in ("train", "validation")}
    start = backbones.find_weights(row, weights)
    if start is None:
        why = "" if weights.lower() == "none" else f"no file for it in {weights}; "
        print(f"{row.name}: {why}starts from random weights (none): expect little of it")
    else:
        print(f"{row.name}: starts from {start}")
    model = backbones.build(row, image_size, start)
    output.mkdir(parents=True, exist_ok=True)
    for stale in output.glob(".cache-*"):  # of a run that was killed
        stale.unlink()

    # Files are listed by class; the fixed shuffle makes every batch a mix, the shuffle buffer only varies it.
    part["train"] = part["train"].sample(frac=1, random_state=seed)
    pixels = {
        split: inputs.pixels(table["file"].tolist(), image_size, output / f".cache-{split}")
        for split, table in part.items()
    }
    truth = {split: _one_hot(table) for split, table in part.items()}
    labels = truth["train"].argmax(axis=1)
    balance = dict(enumerate(compute_class_weight("balanced", classes=np.arange(len(CLASSES)), y=labels)))
    print(f"{row.name} on {domain}: {len(part['train'])} images to train, {len(part['validation'])} to validate")

    history = [_fit_head(model, pixels, truth, balance, batch_size)]
    best = _best(history[0], f"val_{LOSS}") | {"epoch": 0}
    if epochs > 0:
        backbones.unfreeze_last_block(model, row)
        head_weights = model.get_weights()
        history.append(_finetune(model, pixels, truth, balance, epochs, batch_size))
        tuned = _best(history[1], "val_auroc")
        if tuned["auroc"] > best["auroc"]:
            best = tuned
        else:
            model.set_weights(head_weights)

    checkpoint = f"{row.name}-{best['epoch']:03d}-{best['loss']:.4f}-{best['accuracy']:.4f}.keras"
    # A fresh Model object carries no compile state, so that the file loads in safe mode without our metric.
    keras.Model(model.inputs, model.outputs, name=row.name).save(output / checkpoint)
    table = pd.concat(history, ignore_index=True)
    table.to_csv(output / "history.csv", index=False)
    plots.history(table, f"{row.name} on {domain}", output / "history.png")
    for cache in output.glob(".cache-*"):
        cache.unlink()
    result = {
        "backbone": row.name,
        "train_domain": domain,
        "weights": "none" if start is None else start if start == "imagenet" else Path(start).name,
        "image_size": image_size,
        "parameters": model.count_params(),
        "checkpoint": checkpoint,
        "epoch": best["epoch"],
        "validation": {key: best[key] for key in ("auroc", "loss", "accuracy")},
        "data_digest": facts["digest"],
        "seconds": round(time.monotonic() - started, 1),
    }
    tables.write_json(output / "train.json", result)
    print(f"{row.name} on {domain}: validation AUROC {best['auroc']:.3f}, {checkpoint}, {result['seconds']:.0f} s")
    return Trained(output, result)


def read(folder: Path) -> dict[str, Any]:
    """The facts (train.json) of a training.

    Raises:
        InputError: the folder is not the output of a finished training.
    """
    try:
        return json.loads((folder / "train.json").read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{folder}: not a finished training (train.json is missing)") from None
    except ValueError as error:
        raise InputError(f"{folder / 'train.json'}: not JSON: {error}") from None


def _part(data: Path, domain: str, split: str) -> pd.DataFrame:
    table = crop.examples(data, domain, split)
    for label in CLASSES:
        if label not in set(table["label"]):
            raise InputError(f"{data}: the {domain} domain has no image of class {label} in the {split} split")
    gone = [file for file in table["file"] if not Path(file).is_file()]
    if gone:
        raise InputError(f"{len(gone)} images of the data version are missing, the first is {gone[0]}; crop again")
    return table


def _one_hot(table: pd.DataFrame) -> NDArray[np.float32]:
    return np.eye(len(CLASSES), dtype=np.float32)[[CLASSES.index(label) for label in table["label"]]]


def _compile(model: keras.Model, rate: float) -> None:
    model.compile(
        keras.optimizers.Adam(rate),
        "categorical_crossentropy",
        metrics=["accuracy", "categorical_crossentropy", Auroc(num_thresholds=1000, name="auroc")],
        jit_compile=XLA,
    )
    # Variables that come into being inside the first step make TensorFlow trace it twice: half a minute for B7.
    model.optimizer.build(model.trainable_variables)
    blank = keras.ops.one_hot(keras.ops.arange(len(CLASSES)), len(CLASSES))
    model.compute_metrics(None, blank, blank)
    model.reset_metrics()


def _fit_head(
    model: keras.Model,
    pixels: dict[str, tf.data.Dataset],
    truth: dict[str, NDArray[np.float32]],
    balance: dict[int, float],
    batch_size: int,
) -> pd.DataFrame:
    """Fit the dense head on standardised features, then fold the standardisation into its weights."""
    extractor = keras.Model(model.input, model.get_layer(backbones.FEATURES).output)
    extractor.jit_compile = XLA

    def features(split: str, view: int) -> NDArray[np.float32]:
        batches = pixels[split].batch(batch_size)
        batches = batches.map(inputs.augment) if view else batches
        print(f"{model.name}: features of the {split} part{', augmented' if view else ''}")
        return extractor.predict(batches.prefetch(tf.data.AUTOTUNE), verbose=progress.keras_verbose())

    x = np.concatenate([features("train", view) for view in range(VIEWS)])
    y = np.concatenate([truth["train"]] * VIEWS)
    mean, deviation = x.mean(axis=0), x.std(axis=0)
    scale = deviation + 1e-3 * deviation.mean() + 1e-12  # a feature that is dead in training must not explode later
    validation = ((features("validation", 0) - mean) / scale, truth["validation"])
    head = keras.Sequential(
        [
            keras.Input((x.shape[1],)),
            keras.layers.Dense(
                len(CLASSES), activation="softmax", kernel_regularizer=keras.regularizers.L2(HEAD_PENALTY)
            ),
        ]
    )
    _compile(head, HEAD_RATE)
    log = head.fit(
        (x - mean) / scale,
        y,
        batch_size=HEAD_BATCH,
        epochs=HEAD_EPOCHS,
        validation_data=validation,
        class_weight=balance,
        verbose=0,
        callbacks=[
            keras.callbacks.EarlyStopping(f"val_{LOSS}", mode="min", patience=HEAD_PATIENCE, restore_best_weights=True),
            progress.epochs(f"{model.name} head"),
        ],
    )
    kernel, bias = head.layers[-1].get_weights()
    folded = kernel / scale[:, None]
    model.get_layer(backbones.PROBABILITY).set_weights([folded, bias - mean @ folded])
    return _history(log, "head")


def _finetune(
    model: keras.Model,
    pixels: dict[str, tf.data.Dataset],
    truth: dict[str, NDArray[np.float32]],
    balance: dict[int, float],
    epochs: int,
    batch_size: int,
) -> pd.DataFrame:
    def labelled(split: str) -> tf.data.Dataset:
        return tf.data.Dataset.zip(pixels[split], tf.data.Dataset.from_tensor_slices(truth[split]))

    training = labelled("train").shuffle(1024).batch(batch_size)
    training = training.map(lambda image, label: (inputs.augment(image), label), num_parallel_calls=tf.data.AUTOTUNE)
    _compile(model, FINETUNE_RATE)
    log = model.fit(
        training.prefetch(tf.data.AUTOTUNE),
        validation_data=labelled("validation").batch(batch_size),
        epochs=epochs,
        class_weight=balance,
        shuffle=False,  # the data set shuffles itself
        verbose=progress.keras_verbose(),
        callbacks=[
            keras.callbacks.EarlyStopping("val_auroc", mode="max", patience=PATIENCE, restore_best_weights=True)
        ],
    )
    return _history(log, "finetune")


def _history(log: keras.callbacks.History, phase: str) -> pd.DataFrame:
    table = pd.DataFrame(log.history)
    table.insert(0, "epoch", range(1, len(table) + 1))
    table.insert(0, "phase", phase)
    return table


def _best(history: pd.DataFrame, monitor: str) -> dict[str, Any]:
    """Validation figures of the epoch that EarlyStopping restored (the first best one)."""
    if not np.isfinite(history[f"val_{LOSS}"]).any():
        raise InputError("the validation loss is not a finite number; check the weights")
    place = history[monitor].idxmax() if monitor == "val_auroc" else history[monitor].idxmin()
    epoch = history.loc[place]
    return {"epoch": int(epoch["epoch"]), "loss": float(epoch[f"val_{LOSS}"])} | {
        key: float(epoch[f"val_{key}"]) for key in ("auroc", "accuracy")
    }


@errors.command
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m thyroid.train", description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="data version of thyroid.crop")
    parser.add_argument("--output", type=Path, required=True, help="folder for the checkpoint and its history")
    parser.add_argument("--backbone", required=True, help=", ".join(backbones.BACKBONES))
    parser.add_argument("--domain", choices=tables.DOMAINS, help="default: the data version's first")
    parser.add_argument("--weights", default="imagenet", help="imagenet, none, a *.weights.h5 file or a folder of them")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--epochs", type=int, default=15, help="of fine-tuning")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    train(**vars(parser.parse_args(argv)))


if __name__ == "__main__":
    raise SystemExit(main())
