"""The five backbones from one table; every one becomes a model of the same shape.

uint8 image in, preprocessing inside, `include_top=False` body, global average pooling, dense softmax out.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from thyroid.errors import InputError
from thyroid.names import CLASSES

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
        last_block: prefix of the layers that fine-tuning unfreezes, with everything after them.
    """

    name: str
    module: str
    width: int
    last_block: str


BACKBONES = {
    row.name: row
    for row in (
        Backbone("EfficientNetB7", "efficientnet", 2560, "block7"),
        Backbone("VGG16", "vgg16", 512, "block5"),
        Backbone("VGG19", "vgg19", 512, "block5"),
        Backbone("ResNet50", "resnet", 2048, "conv5"),
        Backbone("ResNet101", "resnet", 2048, "conv5"),
    )
}

MIN_SIZE = 32
"""Smallest image side that `keras.applications` accepts without its top."""

FEATURES = "features"
PROBABILITY = "probability"
BODY = "body"


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
        weights: "imagenet", "none", a file `*.weights.h5`, or a folder of such files; a file belongs to the backbone
            whose name its name contains, whatever the case. Without one the answer is None.

    Raises:
        InputError: `weights` is neither a word nor an existing file or folder.
    """
    if weights.lower() in ("imagenet", "none"):
        return None if weights.lower() == "none" else "imagenet"
    path = Path(weights)
    if path.is_dir():
        files = sorted(path.glob("*.weights.h5"))
    elif path.is_file() and path.name.endswith(".weights.h5"):
        files = [path]
    else:
        raise InputError(f"weights {weights!r}: expected imagenet, none, a *.weights.h5 file or a folder of them")
    return next((file for file in files if backbone.name.lower() in file.name.lower()), None)


def build(backbone: Backbone, size: int, weights: str | Path | None) -> "keras.Model":
    """A model with two named layers at its end: `features` (pooled) and `probability` (softmax).

    Args:
        size: side of the square image in pixels, at least `MIN_SIZE`.
        weights: as `find_weights` answers.

    Returns:
        keras.Model: uint8 [n, size, size, 3] to float32 [n, classes], probabilities in the order of `names.CLASSES`.

    Raises:
        InputError: the size is too small, or the weights do not fit or cannot be fetched.
    """
    from thyroid.backend import keras

    if size < MIN_SIZE:
        raise InputError(f"image size {size} is below the {MIN_SIZE} pixels that {backbone.name} needs")
    constructor = getattr(keras.applications, backbone.name)
    try:
        body = constructor(
            include_top=False,
            weights=None if weights is None else str(weights),
            input_shape=(size, size, 3),
            name=BODY,
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
    image = keras.Input((size, size, 3), dtype="uint8", name="image")
    preprocess = getattr(keras.applications, backbone.module).preprocess_input
    # training=False: BatchNorm stays in inference mode, also while its block is fine-tuned
    maps = body(preprocess(keras.ops.cast(image, "float32")), training=False)
    features = keras.layers.GlobalAveragePooling2D(name=FEATURES)(maps)
    probability = keras.layers.Dense(len(CLASSES), activation="softmax", dtype="float32", name=PROBABILITY)(features)
    return keras.Model(image, probability, name=backbone.name)


def unfreeze_last_block(model: "keras.Model", backbone: Backbone) -> None:
    """Make the last block and all after it trainable, but for BatchNorm, and nothing before it."""
    from thyroid.backend import keras

    reached = False
    for layer in model.get_layer(BODY).layers:
        reached = reached or layer.name.startswith(backbone.last_block)
        layer.trainable = reached and not isinstance(layer, keras.layers.BatchNormalization)
