"""Builds the five backbones from one table, each as a model of the same structure.

A model takes a uint8 image and preprocesses it inside. An `include_top=False` body, global average pooling and a dense
softmax layer follow.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from thyroid import storage
from thyroid.errors import InputError

if TYPE_CHECKING:
    import keras


@dataclass(frozen=True)
class Backbone:
    """Describes one backbone, as a row of `BACKBONES`.

    Both memory figures are for a training pod at 224 pixels and batches of 32, as measured in docs/results.md.

    Attributes:
        name: Class in `keras.applications`.
        module: Module of that class in `keras.applications`. The pre-trained weights expect the `preprocess_input` of
            this module. EfficientNet rescales inside the body, and its `preprocess_input` does nothing. VGG and ResNet
            expect BGR with the ImageNet mean removed.
        memory_request: Memory of the two-phase recipe with its memory budget.
        memory_limit: Memory of the deck's recipe, which trains the whole body.
    """

    name: str
    module: str
    memory_request: str
    memory_limit: str


BACKBONES = {
    row.name: row
    for row in (
        Backbone("EfficientNetB7", "efficientnet", "7G", "23G"),
        Backbone("VGG16", "vgg16", "7G", "7G"),
        Backbone("VGG19", "vgg19", "7G", "7G"),
        Backbone("ResNet50", "resnet", "7G", "7G"),
        Backbone("ResNet101", "resnet", "7G", "8G"),
    )
}

RECIPES = ("two-phase", "frozen", "deck", "warm")
"""Names of the training recipes, which `thyroid.train` describes."""

MIN_SIZE = 32
"""Smallest image side that `keras.applications` accepts without its top."""

IMAGENET_DEVIATION = (0.229, 0.224, 0.225)

PREPROCESSED = "preprocessed"
BODY = "body"
FEATURES = "features"
PROBABILITY = "probability"


def get(name: str) -> Backbone:
    """Return the row of `BACKBONES` with this name, ignoring case.

    Raises:
        InputError: There is no such backbone.
    """
    for row in BACKBONES.values():
        if row.name.lower() == name.strip().lower():
            return row
    raise InputError(f"backbone {name!r} is unknown; choose from {', '.join(BACKBONES)}")


def find_weights(backbone: Backbone, weights: str) -> str | Path | None:
    """Resolve the `weights` argument of a training to the weights that a backbone starts from.

    Args:
        backbone: Row of `BACKBONES`.
        weights: "imagenet", "none", a file `*.weights.h5`, or a folder of such files. Both may lie in a bucket, from
            where only the file that is needed is downloaded. A file belongs to the backbone whose name is part of the
            file's name, ignoring case.

    Returns:
        "imagenet" for Keras' own download, the path of a local file, or None for random weights. The result is None,
        too, if no file belongs to the backbone.

    Raises:
        InputError: `weights` is neither one of the two words nor an existing file or folder.
    """
    if weights.lower() in ("imagenet", "none"):
        return None if weights.lower() == "none" else "imagenet"
    if storage.is_bucket(weights):
        return _find_in_bucket(backbone, weights)
    path = Path(weights)
    if path.is_dir():
        files = sorted(path.glob("*.weights.h5"))
    elif path.is_file() and path.name.endswith(".weights.h5"):
        files = [path]
    else:
        raise InputError(f"weights {weights!r}: expected imagenet, none, a *.weights.h5 file or a folder of them")
    return next((file for file in files if backbone.name.lower() in file.name.lower()), None)


def weights_name(weights: str | Path | None) -> str:
    """Return the name of initial weights, without the folder of their file.

    Args:
        weights: Result of `find_weights`.
    """
    return "none" if weights is None else weights if weights == "imagenet" else Path(weights).name


def _find_in_bucket(backbone: Backbone, weights: str) -> Path | None:
    ending = ".weights.h5"
    if weights.endswith(ending):
        files = [weights]
    else:
        names = [entry.name for entry in storage.bucket_at(weights).entries() if entry.name.endswith(ending)]
        if not names:
            raise InputError(f"weights {weights!r}: there is no *{ending} file below it")
        files = [storage.below(weights, name) for name in names if "/" not in name]
    matching = (file for file in files if backbone.name.lower() in file.rsplit("/", 1)[-1].lower())
    return next(map(storage.file, matching), None)


def build(
    backbone: Backbone, size: int, weights: str | Path | None, tap: str = "", *, deck: bool = False, classes: int = 2
) -> "keras.Model":
    """Build a model with the named layers `preprocessed`, `body`, `features` (pooled) and `probability` (softmax).

    Args:
        backbone: Row of `BACKBONES`.
        size: Side of the square image in pixels, at least `MIN_SIZE`.
        weights: Result of `find_weights`.
        tap: Layer at which the body ends, for instance "block4_pool". Empty for the body's last layer.
        deck: Whether to build the model of the slide deck. It scales images to 0..1, whatever the weights expect, and
            its BatchNorm layers run in training mode.
        classes: Number of classes.

    Returns:
        A model from uint8 [n, size, size, 3] to float32 [n, classes], probabilities in the order of the classes.

    Raises:
        InputError: The size is too small, the tap is unknown, or the weights do not fit or cannot be fetched.
    """
    from thyroid.model.backend import keras

    if size < MIN_SIZE:
        raise InputError(f"image size {size} is below the {MIN_SIZE} pixels that {backbone.name} needs")
    body = load_body(backbone, size, weights)
    end = body.output
    if tap:
        if tap not in {layer.name for layer in body.layers}:
            near = ", ".join(layer.name for layer in body.layers if layer.name.endswith(("_pool", "_out", "_add")))
            raise InputError(f"{backbone.name} has no layer {tap!r} to tap; choose another, such as {near}")
        end = body.get_layer(tap).output
    body = keras.Model(body.input, end, name=BODY)
    if not _blocks(body):
        raise InputError(f"{backbone.name} has no block before {tap!r}, so nothing to fine-tune; tap a later layer")
    image = keras.Input((size, size, 3), dtype="uint8", name="image")
    x = keras.layers.Rescaling(1 / 255)(image) if deck else preprocess(backbone, image)
    x = keras.layers.Identity(name=PREPROCESSED)(x)
    # training=False keeps BatchNorm in inference mode, also while its block is fine-tuned
    maps = body(x) if deck else body(x, training=False)
    features = keras.layers.GlobalAveragePooling2D(name=FEATURES)(maps)
    probability = keras.layers.Dense(classes, activation="softmax", dtype="float32", name=PROBABILITY)(features)
    return keras.Model(image, probability, name=backbone.name)


def preprocess(backbone: Backbone, image: Any) -> Any:
    """Preprocess a uint8 image tensor as the backbone's pre-trained weights expect it."""
    from thyroid.model.backend import keras

    module = getattr(keras.applications, backbone.module)
    return module.preprocess_input(keras.ops.cast(image, "float32"))


def load_body(backbone: Backbone, size: int, weights: str | Path | None) -> "keras.Model":
    """Return a body of `keras.applications` without its top.

    Args:
        backbone: Row of `BACKBONES`, or of another class of `keras.applications`.
        size: Side of the square image in pixels.
        weights: Result of `find_weights`.

    Raises:
        InputError: The weights do not fit or cannot be fetched.
    """
    from thyroid.model.backend import keras

    constructor = getattr(keras.applications, backbone.name)
    try:
        # no name argument: EfficientNet derives the name of the file to download from it
        body = constructor(
            include_top=False,
            weights=None if weights is None else str(weights),
            input_shape=(size, size, 3),
        )
    except Exception as error:  # Keras raises a bare Exception for a failed download, h5py many types for a bad file
        if weights is None:
            raise
        reason = " ".join(str(error).split())[:200]
        if weights == "imagenet":
            raise InputError(
                f"ImageNet weights of {backbone.name} cannot be fetched ({reason}); give local files with "
                "--weights DIR, or --weights none"
            ) from None
        raise InputError(f"{weights}: not weights of {backbone.name} without its top: {reason}") from None
    if isinstance(weights, Path):
        _mend_normalization(body)
    return body


def _mend_normalization(body: "keras.Model") -> None:
    """Correct the input spread of an EfficientNet whose ImageNet weights come from a file.

    Keras stores ImageNet's standard deviations where its Normalization layer expects variances. It compensates with
    one more Rescaling layer, but only for weights="imagenet" (keras-team/keras, efficientnet.py).
    """
    from thyroid.model.backend import keras

    for layer in body.layers:
        if isinstance(layer, keras.layers.Normalization):
            mean, variance, count = layer.get_weights()
            if np.allclose(variance, IMAGENET_DEVIATION, atol=1e-4):
                layer.set_weights([mean, np.square(variance), count])
            layer.finalize_state()


def copy_weights(source: "keras.Model", target: "keras.Model") -> None:
    """Copy all weights from one model to another of the same layers.

    Normalization layers read their weights only in `finalize_state`, which is called here.
    """
    from thyroid.model.backend import keras

    target.set_weights(source.get_weights())
    for layer in target.get_layer(BODY).layers:
        if isinstance(layer, keras.layers.Normalization):
            layer.finalize_state()


def in_single_precision(
    model: "keras.Model", backbone: Backbone, weights: str | Path | None, tap: str = "", *, deck: bool = False
) -> "keras.Model":
    """Return a model of `build` without its compile state, so that it loads in safe mode, and in single precision.

    Args:
        model: The model. It is not changed.
        backbone: Row of `BACKBONES`, as for `build`.
        weights: Initial weights, as for `build`. They decide some layers of EfficientNet.
        tap: Layer at which the body ends, as for `build`.
        deck: Whether it is the model of the slide deck, as for `build`.
    """
    from thyroid.model.backend import keras

    if model.get_layer(BODY).layers[-1].dtype_policy.name == "float32":
        return keras.Model(model.inputs, model.outputs, name=model.name)
    plain = build(backbone, model.input_shape[1], weights, tap, deck=deck, classes=model.output_shape[-1])
    copy_weights(model, plain)
    for layer, source in zip(plain.get_layer(BODY).layers, model.get_layer(BODY).layers, strict=True):
        layer.trainable = source.trainable  # so that the stored file also shows which layers were frozen
    return plain


def _blocks(body: "keras.Model") -> list[str]:
    """Return the block of every layer that belongs to one, in order."""
    return [block for block, _ in _layers(body)]


def _layers(body: "keras.Model") -> list[tuple[str, str]]:
    """Return block and name of every layer that belongs to a block, in order."""
    named = [(re.match(r"(block|conv)\d", layer.name), layer.name) for layer in body.layers]
    return [(found[0], name) for found, name in named if found]


def taps(backbone: Backbone, count: int) -> list[str]:
    """Return the layers at which the body can be tapped.

    Args:
        backbone: Row of `BACKBONES`.
        count: Number of blocks, counted from the end of the body.

    Returns:
        The last layer of each of these blocks; "" for the last block.
    """
    body = load_body(backbone, MIN_SIZE, None)
    ends = dict(_layers(body))
    return [*list(ends.values())[-count:-1], ""]


def split(model: "keras.Model", blocks: int = 1) -> "tuple[keras.Model, keras.Model]":
    """Split the body into the frozen part and the last blocks, which become trainable.

    Both parts share the layers of the body. BatchNorm stays frozen: its statistics come from pre-training, and small
    batches would spoil them.

    Args:
        model: Result of `build`.
        blocks: Number of last blocks that become trainable, at least 1.

    Returns:
        A model from preprocessed images to the feature map before the last blocks, and one from that map to the body's
        output.

    Raises:
        InputError: `blocks` is below 1 or would leave no block frozen. A body of a single block may be unfrozen whole.
    """
    from thyroid.model.backend import keras

    body = model.get_layer(BODY)
    names = list(dict.fromkeys(_blocks(body)))
    if not 0 < blocks < max(2, len(names)):
        raise InputError(f"{model.name} has {len(names)} blocks: {blocks} cannot be unfrozen, at most {len(names) - 1}")
    first = next(i for i, layer in enumerate(body.layers) if layer.name.startswith(names[-blocks]))
    for i, layer in enumerate(body.layers):
        layer.trainable = i >= first and not isinstance(layer, keras.layers.BatchNormalization)
    cut = body.layers[first].input
    return keras.Model(body.input, cut, name="trunk"), keras.Model(cut, body.output, name="last_block")
