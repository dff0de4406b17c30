"""The network of the locator: a frozen body, fixed projections of its maps, and a small head that learns.

The body is that of a backbone, cut where its maps have a stride of 16 pixels or less. Its maps are pooled to that
stride and projected to a few channels, so that they can be kept for every frame and view, and training the head takes
minutes. The head has a tower of its own for the box.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thyroid.model import backbones
from thyroid.model.backbones import BACKBONES, Backbone
from thyroid.model.backend import XLA, keras
from thyroid.model.network import frozen_graph

STRIDE = 16
"""Pixels of the input per cell of the heat map."""
WIDTHS = (64, 96, 96)
"""Largest number of channels that the projection of each tap keeps."""
HEAD = 64
"""Channels inside the head."""
OUTPUTS = ("heat", "distances")
"""Names of the graph's outputs: [n, g, g], 0 to 1, and [n, g, g, 4]; see `locator`."""
TOY = "toy"
"""Name of the small random body that is used where there are no weights."""


@dataclass(frozen=True)
class Body:
    """A body that a locator can look through.

    Attributes:
        row: The class in `keras.applications` and its module. None for the toy.
        taps: Layers whose outputs the head sees, fine ones first.
    """

    row: Backbone | None
    taps: tuple[str, ...]

    @property
    def name(self) -> str:
        """Name of the body."""
        return TOY if self.row is None else self.row.name


BODIES = (
    Body(Backbone("EfficientNetB0", "efficientnet", "", ""), ("block3b_add", "block4c_add", "block5c_add")),
    Body(BACKBONES["VGG16"], ("block3_pool", "block4_conv3", "block5_conv3")),
    Body(BACKBONES["ResNet50"], ("conv3_block4_out", "conv4_block6_out")),
    Body(BACKBONES["VGG19"], ("block3_pool", "block4_conv4", "block5_conv4")),
    Body(BACKBONES["ResNet101"], ("conv3_block4_out", "conv4_block23_out")),
    Body(BACKBONES["EfficientNetB7"], ("block3g_add", "block4j_add", "block5j_add")),
)
"""Bodies in the order of preference. EfficientNetB0 is only used here: it takes a tenth of VGG16's time."""


def choose(weights: str) -> tuple[Body, str | Path | None]:
    """Return the first body that there are weights for, and its weights as `backbones.find_weights` gives them.

    Without any weights the body is the toy.

    Args:
        weights: As for `backbones.find_weights`.

    Raises:
        InputError: As for `backbones.find_weights`.
    """
    for body in BODIES:
        assert body.row is not None
        if (found := backbones.find_weights(body.row, weights)) is not None:
            return body, found
    return Body(None, ("fine", "coarse")), None


@keras.saving.register_keras_serializable("thyroid")
class Coordinates(keras.layers.Layer):
    """Appends four channels to a map: x, y, and their squares, from -1 to 1 ("CoordConv", arXiv 1807.03247)."""

    def compute_output_shape(self, input_shape: Sequence[Any]) -> tuple[Any, ...]:
        """Return the shape of the output."""
        return (*input_shape[:-1], input_shape[-1] + 4)

    def call(self, maps: Any) -> Any:
        """Append the channels to maps [n, g, g, channels]."""
        place = np.linspace(-1, 1, maps.shape[1], dtype=np.float32)
        x, y = np.meshgrid(place, place)
        plane = keras.ops.cast(np.stack([x, y, x * x, y * y], -1)[None], maps.dtype)
        many = keras.ops.tile(plane, (keras.ops.shape(maps)[0], 1, 1, 1))
        return keras.ops.concatenate([maps, many], axis=-1)


def build_taps(body: Body, size: int, weights: str | Path | None, seed: int) -> keras.Model:
    """Build the frozen part: uint8 [n, size, size, 3] to the maps of every tap, pooled to `STRIDE`.

    Args:
        body: The body.
        size: Side of the input in pixels, a multiple of `STRIDE`.
        weights: Its weights, as `choose` gives them.
        seed: Seed of the toy's weights.

    Raises:
        InputError: The weights do not fit or cannot be fetched.
    """
    image = keras.Input((size, size, 3), dtype="uint8", name="image")
    if body.row is None:
        taps = _toy(image, seed)
    else:
        base = backbones.load_body(body.row, size, weights)
        cut = keras.Model(base.input, [base.get_layer(name).output for name in body.taps], name=backbones.BODY)
        taps = cut(backbones.preprocess(body.row, image), training=False)
    cells = size // STRIDE
    pooled = [
        keras.layers.AveragePooling2D(tap.shape[1] // cells, name=f"pooled{number}")(tap)
        for number, tap in enumerate(taps)
    ]
    model = keras.Model(image, pooled, name=body.name)
    model.trainable = False
    model.jit_compile = XLA
    return model


def _toy(image: Any, seed: int) -> list[Any]:
    """Return two maps of random filters. Random features carry a good part of what a trained body would give."""
    x = keras.layers.Rescaling(1 / 64, -2)(image)
    taps = []
    for number, channels in enumerate((16, 32, 64, 96)):
        start = keras.initializers.HeNormal(seed=seed + number)
        x = keras.layers.Conv2D(channels, 3, 2, "same", activation="relu", kernel_initializer=start)(x)
        taps.append(x)
    return taps[2:]


Projection = list[tuple[NDArray[np.float32], NDArray[np.float32]]]
"""Kernel [channels, kept] and bias [kept] of the projection of each tap."""


def fit_projection(samples: Sequence[NDArray[np.float32]]) -> Projection:
    """Return the principal components of samples of each tap's cells, scaled to a mean deviation of 1.

    Args:
        samples: float32 [cells, channels] per tap.
    """
    result = []
    for sample, width in zip(samples, WIDTHS, strict=False):
        values = sample.astype(np.float64)
        mean = values.mean(0)
        _, deviations, components = np.linalg.svd(values - mean, full_matrices=False)
        kept = min(width, components.shape[0])
        kernel = components[:kept].T / max(deviations[:kept].mean() / len(values) ** 0.5, 1e-6)
        result.append((kernel.astype(np.float32), (-mean @ kernel).astype(np.float32)))
    return result


def with_projection(taps: keras.Model, projection: Projection) -> keras.Model:
    """Return the frozen part with its projections: uint8 [n, size, size, 3] to maps [n, g, g, channels]."""
    projected = []
    for number, (tap, weights) in enumerate(zip(taps.outputs, projection, strict=True)):
        layer = keras.layers.Conv2D(weights[0].shape[1], 1, name=f"projection{number}")
        projected.append(layer(tap))
        layer.set_weights([weights[0][None, None], weights[1]])
    model = keras.Model(taps.input, keras.layers.Concatenate(name="maps")(projected), name=taps.name)
    model.trainable = False
    model.jit_compile = XLA
    return model


def build_head(cells: int, channels: int) -> keras.Model:
    """Build the head: maps [n, g, g, channels] to the logit of the heat [n, g, g, 1] and to distances [n, g, g, 4].

    Args:
        cells: Side of the maps.
        channels: Their channels.
    """
    maps = keras.Input((cells, cells, channels), name="maps")
    placed = Coordinates(name="placed")(maps)
    x = _convolved(placed, 1, 1)
    for dilation in (1, 2):
        x = keras.layers.Add()([x, _convolved(x, 3, dilation)])
    tower = _convolved(keras.layers.Concatenate()([x, placed]), 3, 2)
    rare = keras.initializers.Constant(-3.0)  # most cells are no nodule's centre
    heat = keras.layers.Conv2D(1, 1, bias_initializer=rare, name="logit")(x)
    usual = keras.initializers.Constant(float(np.log(cells / 8)))  # a nodule's half side is an eighth of the frame
    distances = keras.layers.Conv2D(4, 1, bias_initializer=usual, name="distances")(tower)
    return keras.Model(maps, [heat, distances], name="head")


def _convolved(x: Any, side: int, dilation: int) -> Any:
    x = keras.layers.Conv2D(HEAD, side, padding="same", dilation_rate=dilation)(x)
    return keras.layers.Activation("relu")(keras.layers.GroupNormalization(8)(x))


def assemble(frozen: keras.Model, head: keras.Model) -> keras.Model:
    """Return the whole locator: uint8 [n, size, size, 3] to heat [n, g, g] and distances [n, g, g, 4]."""
    logit, distances = head(frozen.output)
    heat = keras.layers.Activation("sigmoid")(logit)
    cells = heat.shape[1]
    heat = keras.layers.Reshape((cells, cells), name=OUTPUTS[0])(heat)
    distances = keras.layers.Identity(name=OUTPUTS[1])(distances)
    return keras.Model(frozen.input, [heat, distances], name="locator")


def write_graph(locator: keras.Model, path: Path) -> None:
    """Write the network of a locator as a graph that `engine.convert` reads."""
    path.write_bytes(frozen_graph(locator, OUTPUTS).SerializeToString())
