"""Where a network sees evidence of malignancy: Grad-CAM, which with a pooled last layer is the class activation map."""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from thyroid import backbones, inputs
from thyroid.backend import keras
from thyroid.names import CLASSES, POSITIVE


def heat_maps(network: Any, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Evidence of malignancy against the other classes, by place.

    With global average pooling and one dense layer the gradient of a class's logit with respect to the last feature map is
    the class's dense weight, so Grad-CAM (Selvaraju et al. 2017) is the class activation map (Zhou et al. 2016): the map's
    channels weighted by it, negative evidence cut off. The weight here is that of malignant less the mean of the others,
    since only differences of logits mean anything.

    Args:
        network: of `backbones.build`.
        pixels: uint8 [n, size, size, 1 or 3].

    Returns:
        float32 [n, size, size], 0 to 1: each image's map is divided by its own maximum.
    """
    prepared = network.get_layer(backbones.PREPROCESSED).output
    maps = keras.Model(network.input, network.get_layer(backbones.BODY)(prepared, training=False))
    kernel = np.asarray(network.get_layer(backbones.PROBABILITY).kernel)
    others = [column for column in range(len(CLASSES)) if column != POSITIVE]
    evidence = kernel[:, POSITIVE] - kernel[:, others].mean(axis=1)
    size = pixels.shape[1]
    heat = np.empty((len(pixels), size, size), np.float32)
    coarse = np.maximum(maps.predict(inputs.rgb(pixels), verbose=0).astype(np.float32) @ evidence, 0)
    for out, one in zip(heat, coarse, strict=True):
        out[:] = cv2.resize(one / max(float(one.max()), 1e-12), (size, size), interpolation=cv2.INTER_LINEAR)
    return heat


def overlay(image: NDArray[np.uint8], heat: NDArray[np.float32], strength: float = 0.45) -> NDArray[np.uint8]:
    """The heat map over its image, the more opaque the hotter.

    Args:
        image: uint8 [size, size, 1 or 3].
        heat: float32 [size, size], 0 to 1.
        strength: opacity of the hottest place, 0 to 1.

    Returns:
        uint8 [size, size, 3], RGB.
    """
    colour = cv2.applyColorMap((heat * 255).astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1]
    share = strength * heat[..., None]
    base = np.broadcast_to(image, (*image.shape[:2], 3))
    return np.round(base * (1 - share) + colour * share).astype(np.uint8)
