"""The five backbones from one table; every one becomes a model of the same shape.

uint8 image in, preprocessing inside, `include_top=False` body, global average pooling, dense softmax out.
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
    """A row of the table.

    Attributes:
        name: class in `keras.applications`.
        module: its module there, whose `preprocess_input` the pre-trained weights expect. EfficientNet rescales inside
            the body and its `preprocess_input` does nothing; VGG and ResNet want BGR with the ImageNet mean removed.
        width: channels of the last feature map.
        memory_request: of a training pod at 224 pixels and batches of 32, as measured in docs/results.md: the two-phase
            recipe with its memory budget.
        memory_limit: likewise, the deck's recipe, which trains the whole body.
    """

    name: str
    module: str
    width: int
    memory_request: str
    memory_limit: str


BACKBONES = {
    row.name: row
    for row in (
        Backbone("EfficientNetB7", "efficientnet", 2560, "7G", "23G"),
        Backbone("VGG16", "vgg16", 512, "7G", "7G"),
        Backbone("VGG19", "vgg19", 512, "7G", "7G"),
        Backbone("ResNet50", "resnet", 2048, "7G", "7G"),
        Backbone("ResNet101", "resnet", 2048, "7G", "8G"),
    )
}

RECIPES = ("two-phase", "frozen", "deck", "warm")
"""Ways to train one: see `train`."""

MIN_SIZE = 32
"""Smallest image side that `keras.applications` accepts without its top."""

IMAGENET_DEVIATION = (0.229, 0.224, 0.225)

PREPROCESSED = "preprocessed"
BODY = "body"
FEATURES = "features"
PROBABILITY = "probability"


def get(name: str) -> Backbone:
    """The table's row, whatever the case of `name`.

    Raises:
        InputError: there is no such backbone.
    """
    for row in BACKBONES.values():
        if row.name.lower() == name.strip().lower():
            return row
    raise InputError(f"backbone {name!r} is unknown; choose from {', '.join(BACKBONES)}")


def find_weights(backbone: Backbone, weights: str) -> str | Path | None:
    """What to start from: "imagenet" (Keras' own download), None (random), or a local file.

    Args:
        weights: "imagenet", "none", a file `*.weights.h5`, or a folder of such files, also on gs://, of which the one file
            is downloaded; a file belongs to the backbone whose name its name contains, whatever the case. Without one the
            answer is None.

    Raises:
        InputError: `weights` is neither a word nor an existing file or folder.
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


def _find_in_bucket(backbone: Backbone, weights: str) -> Path | None:
    ending = ".weights.h5"
    if weights.endswith(ending):
        files = [weights]
    else:
        names = [entry.name for entry in storage.Bucket(weights).entries() if entry.name.endswith(ending)]
        if not names:
            raise InputError(f"weights {weights!r}: there is no *{ending} file below it")
        files = [storage.below(weights, name) for name in names if "/" not in name]
    mine = (file for file in files if backbone.name.lower() in file.rsplit("/", 1)[-1].lower())
    return next(map(storage.file, mine), None)


def build(
    backbone: Backbone, size: int, weights: str | Path | None, tap: str = "", deck: bool = False, classes: int = 2
) -> "keras.Model":
    """A model of named layers: `preprocessed`, `body`, `features` (pooled) and `probability` (softmax).

    Args:
        size: side of the square image in pixels, at least `MIN_SIZE`.
        weights: as `find_weights` answers.
        tap: layer of the body to end at, for instance "block4_pool"; empty for its last.
        deck: as the deck did it: images scaled to 0..1, whatever the weights expect, and BatchNorm in training mode.
        classes: number of them.

    Returns:
        keras.Model: uint8 [n, size, size, 3] to float32 [n, classes], probabilities in the order of the classes.

    Raises:
        InputError: the size is too small, the tap unknown, or the weights do not fit or cannot be fetched.
    """
    from thyroid.model.backend import keras

    if size < MIN_SIZE:
        raise InputError(f"image size {size} is below the {MIN_SIZE} pixels that {backbone.name} needs")
    body = _body(backbone, size, weights)
    end = body.output
    if tap:
        if tap not in {layer.name for layer in body.layers}:
            near = ", ".join(layer.name for layer in body.layers if layer.name.endswith(("_pool", "_out", "_add")))
            raise InputError(f"{backbone.name} has no layer {tap!r} to tap; for instance {near}")
        end = body.get_layer(tap).output
    body = keras.Model(body.input, end, name=BODY)
    if not _blocks(body):
        raise InputError(f"{backbone.name} has no block before {tap!r}, and nothing to fine-tune; tap it later")
    image = keras.Input((size, size, 3), dtype="uint8", name="image")
    x = keras.layers.Rescaling(1 / 255)(image) if deck else preprocess(backbone, image)
    x = keras.layers.Identity(name=PREPROCESSED)(x)
    # training=False: BatchNorm stays in inference mode, also while its block is fine-tuned
    maps = body(x) if deck else body(x, training=False)
    features = keras.layers.GlobalAveragePooling2D(name=FEATURES)(maps)
    probability = keras.layers.Dense(classes, activation="softmax", dtype="float32", name=PROBABILITY)(features)
    return keras.Model(image, probability, name=backbone.name)


def preprocess(backbone: Backbone, image: Any) -> Any:
    """What the backbone's pre-trained weights expect, of a uint8 image tensor."""
    from thyroid.model.backend import keras

    module = getattr(keras.applications, backbone.module)
    return module.preprocess_input(keras.ops.cast(image, "float32"))


def _body(backbone: Backbone, size: int, weights: str | Path | None) -> "keras.Model":
    from thyroid.model.backend import keras

    constructor = getattr(keras.applications, backbone.name)
    try:
        # no name of our own: EfficientNet makes the name of the file to fetch from it
        body = constructor(
            include_top=False,
            weights=None if weights is None else str(weights),
            input_shape=(size, size, 3),
        )
    except Exception as error:  # keras raises a bare Exception for a failed download, h5py many kinds for a wrong file
        if weights is None:
            raise
        reason = " ".join(str(error).split())[:200]
        if weights == "imagenet":
            raise InputError(
                f"ImageNet weights of {backbone.name} cannot be fetched ({reason}); give local files with --weights DIR, "
                "or --weights none"
            ) from None
        raise InputError(f"{weights}: not weights of {backbone.name} without its top: {reason}") from None
    if isinstance(weights, Path):
        _mend_normalization(body)
    return body


def _mend_normalization(body: "keras.Model") -> None:
    """Give EfficientNet the spread that its ImageNet weights expect, when they come from a file.

    Keras stores ImageNet's standard deviations where its Normalization wants variances, and makes up for it by one more
    Rescaling, but only when told weights="imagenet" (keras-team/keras, efficientnet.py).
    """
    from thyroid.model.backend import keras

    for layer in body.layers:
        if isinstance(layer, keras.layers.Normalization):
            mean, variance, count = layer.get_weights()
            if np.allclose(variance, IMAGENET_DEVIATION, atol=1e-4):
                layer.set_weights([mean, np.square(variance), count])
            layer.finalize_state()


def copy_weights(source: "keras.Model", target: "keras.Model") -> None:
    """All weights, those included that a layer reads only when it is told to."""
    from thyroid.model.backend import keras

    target.set_weights(source.get_weights())
    for layer in target.get_layer(BODY).layers:
        if isinstance(layer, keras.layers.Normalization):
            layer.finalize_state()


def _blocks(body: "keras.Model") -> list[str]:
    """Name of the block of every layer that is in one, in order."""
    return [block for block, _ in _layers(body)]


def _layers(body: "keras.Model") -> list[tuple[str, str]]:
    """Block and name of every layer that is in a block, in order."""
    named = [(re.match(r"(block|conv)\d", layer.name), layer.name) for layer in body.layers]
    return [(found[0], name) for found, name in named if found]


def taps(backbone: Backbone, count: int) -> list[str]:
    """Where to tap the body: the last layer of each of its last `count` blocks; "" for that of the last."""
    body = _body(backbone, MIN_SIZE, None)
    ends = dict(_layers(body))
    return [*list(ends.values())[-count:-1], ""]


def split(model: "keras.Model", blocks: int = 1) -> "tuple[keras.Model, keras.Model]":
    """The body in two that share its layers: what fine-tuning leaves alone, and the last blocks, which become trainable.

    BatchNorm stays frozen: its statistics are those of the pre-training, and small batches would spoil them.

    Returns:
        Preprocessed images to the map before the last blocks, and that map to the body's output.

    Raises:
        InputError: the body has no block more than these.
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
