"""Explains why a model has collapsed, by measurements and named findings.

    python -m thyroid.diagnose --data DIR --models DIR [DIR ...]

Each check looks for one of the ways in which the slide deck's trainings went wrong. A sound training has no finding.
The checks do not read the images of the test set, only which patients they belong to.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.metrics import balanced_accuracy_score

from thyroid import RESEARCH_USE_ONLY, atomic, command, metrics
from thyroid.command import AT_LEAST_ONE
from thyroid.data import tables
from thyroid.data.classes import Classes
from thyroid.data.filenames import CLASSES, POSITIVE
from thyroid.data.version import DataVersion
from thyroid.imaging import images
from thyroid.model import backbones, inputs
from thyroid.model.artefact import load_keras
from thyroid.model.backend import keras, tf
from thyroid.model.network import Network
from thyroid.records.train import DiagnosisRecord, TrainRecord
from thyroid.train import plots, record

SAMPLE = 48
"""Number of images that a check looks at if it does not need all of them."""

SCALE_TOLERANCE = 5.0
"""The spread at the stem may differ from the one that the weights expect by this factor."""
CONSTANT_SPREAD = 0.1
"""A model that always predicts one class is called constant if 90 % of its probabilities lie within this range."""
BATCH_NORM_SHIFT = 0.1
"""Tolerated mean difference in probability between BatchNorm's moving statistics and those of the batch itself."""
SERVING_TOLERANCE = 0.01
"""Tolerated difference in probability between an image as it is read in training and as it is served."""


@dataclass(frozen=True)
class Finding:
    """Describes what is wrong with a model.

    Attributes:
        name: Name of the mistake in the field.
        text: Description with values.
    """

    name: str
    text: str


def diagnose(data: Path, folder: Path) -> DiagnosisRecord:
    """Diagnose the model of a finished training.

    Args:
        data: Data version of `crop` that the model was trained on.
        folder: Output folder of `train`.

    Raises:
        InputError: The training is not finished, or belongs to another data version.
    """
    model = record.read(folder)
    version = DataVersion.read(data)
    record.require_data(folder, model, version)
    parts, network = record.parts(folder), Network.load(folder, model)
    return examine(version, model, parts, load_keras(folder / model.checkpoint), network)


def examine(
    data: DataVersion,
    model: TrainRecord,
    parts: pd.Series,
    trained: keras.Model,
    network: Network,
    *,
    decode: inputs.Decode = inputs.decode,
) -> DiagnosisRecord:
    """Diagnose a trained model.

    Args:
        data: Data version of `crop` that the model was trained on.
        model: Record of the training (train.json).
        parts: What the training used each image for ("train" or "validation"), by file.
        trained: The model.
        network: Graph of the model.
        decode: Function that reads the images.
    """
    table = data.examples(model.train_domain)
    table["part"] = [parts.get(name, "test") for name in table["name"]]
    validation = table[table["split"] == "validation"].reset_index(drop=True)
    pixels = decode(validation, model.image_size)
    classes = Classes.from_record(model)
    probability = network.probabilities(pixels, "validation images")
    few = np.linspace(0, len(pixels) - 1, min(SAMPLE, len(pixels))).astype(int)
    measured: dict[str, Any] = {}
    findings: list[Finding] = []
    check: Callable[[], Checked]
    for check in (
        lambda: _scale(model.backbone, trained, pixels[few]),
        lambda: _predictor(validation, probability, classes),
        lambda: _label_order(model, network, table, classes, data.classes, decode=decode),
        lambda: _leakage(table),
        lambda: _classes(table, classes),
        lambda: _batch_norm(model.batch_size, trained, pixels[few]),
        lambda: _serving(model.recipe, network, validation.iloc[few].reset_index(drop=True), pixels[few]),
    ):
        values, found = check()
        measured |= values
        findings += found
    return DiagnosisRecord(
        backbone=model.backbone,
        train_domain=model.train_domain,
        recipe=model.recipe,
        figures=measured,
        findings={finding.name: finding.text for finding in findings},
    )


Checked = tuple[dict[str, Any], list[Finding]]


def scale(backbone: str, network: Any, pixels: NDArray[np.uint8]) -> dict[str, float]:
    """Measure the scale of a network's input.

    Args:
        backbone: Name of the backbone.
        network: Model of `backbones.build`.
        pixels: uint8 [n, size, size, 1 or 3].

    Returns:
        input_low and input_high, the range of what enters the body; stem_spread, the standard deviation in front of the
        first convolution; and expected_stem_spread, the one that the pre-trained weights expect.
    """
    body = network.get_layer(backbones.BODY)
    stem = keras.Model(body.input, _before_convolution(body)[-1].output)
    image = inputs.rgb(tf.constant(pixels))
    given = keras.Model(network.input, network.get_layer(backbones.PREPROCESSED).output)(image)
    return {
        "input_low": float(np.min(given)),
        "input_high": float(np.max(given)),
        "stem_spread": float(np.std(stem(given))),
        "expected_stem_spread": float(np.std(stem(backbones.preprocess(backbones.get(backbone), image)))),
    }


def _before_convolution(body: Any) -> list[Any]:
    """Return the layers in front of the first convolution, where EfficientNet rescales and normalises.

    Padding layers are left out, because they dilute the spread.
    """
    first = next(i for i, layer in enumerate(body.layers) if isinstance(layer, keras.layers.Conv2D))
    return [layer for layer in body.layers[:first] if "pad" not in layer.name]


def _scale(backbone: str, network: Any, pixels: NDArray[np.uint8]) -> Checked:
    """Check for double rescaling, or another scale than the one that the weights were trained on."""
    row = backbones.get(backbone)
    measured = scale(row.name, network, pixels)
    spread, expected = measured["stem_spread"], measured["expected_stem_spread"]
    ratio = spread / max(expected, 1e-12)
    if 1 / SCALE_TOLERANCE <= ratio <= SCALE_TOLERANCE:
        return {"scale": measured}, []
    inner = _before_convolution(network.get_layer(backbones.BODY))
    rescales = any(isinstance(layer, keras.layers.Rescaling) for layer in inner)
    text = (
        f"images enter the body between {measured['input_low']:.3g} and {measured['input_high']:.3g}; at its first "
        f"convolution their standard deviation is {spread:.3g}, where the pre-trained weights expect {expected:.3g}. "
    )
    if rescales and ratio < 1:
        name = "double rescaling"
        text += f"{row.name} rescales its input itself, so do not also scale it by 1/255: pass values from 0 to 255"
    else:
        name = "input scale"
        text += f"Use keras.applications.{row.module}.preprocess_input instead of the scaling outside"
    return {"scale": measured}, [Finding(name, text)]


def _predictor(validation: pd.DataFrame, probability: NDArray[np.float64], classes: Classes) -> Checked:
    """Check for a model that always predicts one class.

    Such a model has the accuracy of the majority and, with two classes, a balanced accuracy of one half.
    """
    truth, called = classes.index(validation["class"]), probability.argmax(axis=1)
    low, high = np.quantile(classes.malignant(probability), [0.05, 0.95])
    measured = {
        "probability_low": float(low),
        "probability_high": float(high),
        "accuracy": metrics.accuracy(truth, probability),
        "balanced_accuracy": float(balanced_accuracy_score(truth, called)),
        "majority": metrics.majority(truth),
    }
    one_class = len(set(called.tolist())) == 1
    if not (one_class and high - low < CONSTANT_SPREAD):
        return {"predictor": measured}, []
    return {"predictor": measured}, [
        Finding(
            "constant predictor",
            f"every validation image is called {classes.names[called[0]]}, 90 % of the probabilities of malignant lie "
            f"between {low:.3f} and {high:.3f}: balanced accuracy {measured['balanced_accuracy']:.3f}, so its accuracy "
            f"of {measured['accuracy']:.3f} is the share of a class, not skill",
        )
    ]


def _label_order(
    model: TrainRecord,
    network: Network,
    table: pd.DataFrame,
    classes: Classes,
    given: Classes,
    *,
    decode: inputs.Decode = inputs.decode,
) -> Checked:
    """Check that the malignant column is higher for malignant images among those that the model was trained on."""
    measured: dict[str, Any] = {"classes": model.classes}
    if classes != given:
        text = f"the model's classes are in the order {model.classes}, everything else uses {list(given.names)}"
        return {"label_order": measured}, [Finding("label order", text)]
    trained = table[table["part"] == "train"]
    sample = pd.concat([trained[trained["label"] == label].head(SAMPLE) for label in CLASSES]).reset_index(drop=True)
    score = classes.malignant(network.probabilities(decode(sample, model.image_size), "training images"))
    auroc = metrics.auroc(sample["label"] == CLASSES[POSITIVE], score, sample["patient"].astype(int))
    measured["training_auroc"] = {"value": auroc.value, "low": auroc.low, "high": auroc.high}
    if auroc.high is None or auroc.high >= 0.5:
        return {"label_order": measured}, []
    return {"label_order": measured}, [
        Finding("label order", f"AUROC on training images is {auroc}: below one half, as if the labels were swapped")
    ]


def _leakage(table: pd.DataFrame) -> Checked:
    """Check for patients and groups of near-duplicates in more than one of train, validation and test."""
    measured, findings = {}, []
    for what, column in (("patient", "patient"), ("duplicate", "group")):
        # pandas-stubs: an aggregate is a scalar
        sides = table.groupby(column)["part"].agg(lambda part: tuple(sorted(set(part))))  # type: ignore[type-var]
        crossing = sides[sides.map(len) > 1]
        if what == "duplicate":  # a patient in two parts also splits its group, and was already counted
            whole = table.groupby("group")["patient"].nunique()
            crossing = crossing[whole[crossing.index] > 1]
        measured[f"{what}s_across_parts"] = len(crossing)
        if len(crossing):
            between = ", ".join(sorted({" and ".join(side) for side in crossing}))
            thing = "patients have images" if what == "patient" else "groups of near-duplicates have images"
            findings.append(
                Finding(
                    f"{what} leakage",
                    f"{len(crossing)} {thing} in {between}: the validation metrics are too optimistic, because "
                    "the model has seen these patients",
                )
            )
    return {"leakage": measured}, findings


def _classes(table: pd.DataFrame, classes: Classes) -> Checked:
    """Check that each part has images of each class."""
    measured = {
        part: {name: int(((table["part"] == part) & (table["class"] == name)).sum()) for name in classes.names}
        for part in tables.SPLITS
    }
    empty = [
        f"the {part} part has no image of class {name}: no metric on it is meaningful"
        for part, count in measured.items()
        for name in classes.names
        if not count[name]
    ]
    return {"classes": measured}, [Finding("part without a class", "; ".join(empty))] if empty else []


def _batch_norm(batch_size: int, network: Any, pixels: NDArray[np.uint8]) -> Checked:
    """Check the moving statistics of trained BatchNorm layers.

    If they do not describe the images, inference differs from training.
    """
    body = network.get_layer(backbones.BODY)
    layers = [layer for layer in body.layers if isinstance(layer, keras.layers.BatchNormalization)]
    trained = [layer for layer in layers if layer.trainable]
    measured: dict[str, Any] = {"layers": len(layers), "trained": len(trained), "batch_size": batch_size}
    if not trained:
        return {"batch_norm": measured}, []
    given = keras.Model(network.input, network.get_layer(backbones.PREPROCESSED).output)
    head = (network.get_layer(backbones.FEATURES), network.get_layer(backbones.PROBABILITY))
    kept = network.get_weights()

    @tf.function
    def answer(image: tf.Tensor, training: bool) -> tf.Tensor:
        return head[1](head[0](body(given(image), training=training)))

    batch = inputs.rgb(tf.constant(pixels[:batch_size]))
    shift = float(np.mean(np.abs(answer(batch, False) - answer(batch, True))))
    network.set_weights(kept)  # the call in training mode has moved the statistics
    measured["shift"] = shift
    if shift <= BATCH_NORM_SHIFT:
        return {"batch_norm": measured}, []
    return {"batch_norm": measured}, [
        Finding(
            "BatchNorm statistics",
            f"probabilities move by {shift:.2f} on average between moving statistics (inference) and those of a batch "
            f"of {len(batch)} (training): the {len(trained)} BatchNorm layers were trained with batches of "
            f"{batch_size} for too few steps; keep them in inference mode",
        )
    ]


def _serving(recipe: str, network: Network, table: pd.DataFrame, pixels: NDArray[np.uint8]) -> Checked:
    """Compare the answers to the same images, read as the training read them and as the endpoint reads them."""
    files = [Path(image_path).read_bytes() for image_path in table["file"]]
    served = np.stack([images.rgb(images.square(data, pixels.shape[1])) for data in files])
    if recipe == "deck":
        size = (pixels.shape[1], pixels.shape[1])
        read = keras.utils.load_img
        trained = np.stack([np.asarray(read(path, target_size=size), np.uint8) for path in table["file"]])
    else:
        trained = pixels
    difference = float(np.abs(network.probabilities(trained) - network.probabilities(served)).max())
    measured = {
        "pixel_difference": float(np.abs(trained.astype(np.int16) - served).mean()),
        "probability_difference": difference,
    }
    if difference <= SERVING_TOLERANCE:
        return {"serving": measured}, []
    return {"serving": measured}, [
        Finding(
            "training and serving differ",
            f"the same image, read as in training and as the endpoint reads it, moves the probability by up to "
            f"{difference:.3f} (pixels by {measured['pixel_difference']:.1f} grey levels on average): "
            "read images in one way only",
        )
    ]


def describe(diagnosis: DiagnosisRecord) -> str:
    """Describe a diagnosis in words, for a terminal."""
    lines = [f"{diagnosis.backbone} trained on {diagnosis.train_domain}, recipe {diagnosis.recipe}"]
    for check, measured in diagnosis.figures.items():
        lines.append(f"  {check + ':':<13}" + ", ".join(f"{name} {_short(value)}" for name, value in measured.items()))
    lines += [f"  FOUND {name}: {text}" for name, text in diagnosis.findings.items()] or ["  nothing found"]
    return "\n".join(lines)


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, dict):
        return "/".join(_short(item) for item in value.values())
    return "".join(value) if isinstance(value, list) else str(value)


def run(*, data: Path, models: Annotated[list[Path], AT_LEAST_ONE], output: Path | None = None) -> None:
    """Explain why a model has collapsed, by measurements and named findings.

    Args:
        data: Data version of thyroid.crop.
        models: Folders of thyroid.train.
        output: Folder for diagnosis.json and diagnosis.png.
    """
    done = [diagnose(data, folder) for folder in models]
    for diagnosis in done:
        print(describe(diagnosis))
    if output:
        output.mkdir(parents=True, exist_ok=True)
        rows = [diagnosis.to_dict() for diagnosis in done]
        atomic.write_json(output / record.DIAGNOSIS, {"models": rows})
        plots.diagnosis(done, output / "diagnosis.png")
    print(RESEARCH_USE_ONLY)


main = command.main("python -m thyroid.diagnose", run)
