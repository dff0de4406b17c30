"""A layer that describes a picture itself, whatever a network makes of it."""

from typing import Any

from thyroid.model.backend import keras
from thyroid.model.novelty.novelty import PICTURE

_BLACK, _WHITE = 8.0, 247.0


class PictureStatistics(keras.layers.Layer):
    """Computes `PICTURE` of images, float32 [n, 7], from their pixels [n, size, size, 3] of 0 to 255."""

    def __init__(self) -> None:
        """Create the layer; it computes in single precision whatever the network does."""
        super().__init__(dtype="float32", name="picture")

    def call(self, pixels: Any) -> Any:
        """Return the statistics of a batch."""
        ops = keras.ops
        image = ops.cast(pixels, "float32")
        grey = ops.mean(image, axis=-1)
        found = {
            "mean": ops.mean(grey, axis=(1, 2)),
            "deviation": ops.std(grey, axis=(1, 2)),
            "across": ops.mean(ops.abs(grey[:, :, 1:] - grey[:, :, :-1]), axis=(1, 2)),
            "down": ops.mean(ops.abs(grey[:, 1:] - grey[:, :-1]), axis=(1, 2)),
            "colour": ops.mean(ops.max(image, axis=-1) - ops.min(image, axis=-1), axis=(1, 2)),
            "black": ops.mean(ops.cast(grey < _BLACK, "float32"), axis=(1, 2)),
            "white": ops.mean(ops.cast(grey > _WHITE, "float32"), axis=(1, 2)),
        }
        return ops.stack([found[name] for name in PICTURE], axis=-1)

    def compute_output_shape(self, input_shape: Any) -> tuple[Any, int]:
        """Return the shape of the statistics."""
        return (input_shape[0], len(PICTURE))
