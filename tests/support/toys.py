"""A backbone of five small blocks with BatchNorm, for tests that do not depend on the backbone.

It goes through `backbones`, `train` and `evaluate` like the others, and TensorFlow traces it in a tenth of ResNet50's
time.
"""

from typing import Any

from thyroid.model import backbones
from thyroid.model.backend import keras

WIDTH = 40
"""Channels of its last feature map."""
ROW = backbones.Backbone("Toy", "resnet", "1G", "1G")
TAP = "conv4_out"
"""A layer to end at before its last block."""


def body(include_top: bool, weights: str | None, input_shape: tuple[int, int, int]) -> Any:
    """Build the body like the functions of `keras.applications`. There are no pretrained weights."""
    assert not include_top
    assert weights is None
    image = x = keras.Input(input_shape)
    for number in range(1, 6):
        x = keras.layers.Conv2D(8 * number, 3, 1 if number == 1 else 2, "same", name=f"conv{number}_conv")(x)
        x = keras.layers.BatchNormalization(name=f"conv{number}_bn")(x)
        x = keras.layers.ReLU(name=f"conv{number}_out")(x)
    return keras.Model(image, x)


def install() -> None:
    """Add the backbone to the table of this process."""
    backbones.BACKBONES[ROW.name] = ROW
    keras.applications.Toy = body


def remove() -> None:
    del backbones.BACKBONES[ROW.name], keras.applications.Toy
