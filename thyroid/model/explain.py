"""Where a network sees evidence of malignancy: Grad-CAM, which with a pooled last layer is the class activation map.

With global average pooling and one dense layer the gradient of a class's logit with respect to the last feature map is the
class's dense weight, so Grad-CAM (Selvaraju et al. 2017) is the class activation map (Zhou et al. 2016): the map's channels
weighted by it, negative evidence cut off. The weight here is that of malignant less the mean of the others, since only
differences of logits mean anything. So the map is a second output of the same network, without gradients.
"""

from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray

from thyroid.data.classes import BINARY, Classes
from thyroid.model import backbones

if TYPE_CHECKING:
    import keras


def with_map(network: "keras.Model", classes: Classes = BINARY, unfrozen: int | None = None) -> "keras.Model":
    """The network with a second output: evidence of malignancy by place, float32 [n, h, w], not yet cut off or scaled.

    Args:
        network: of `backbones.build`; its layers are shared, not copied.
        classes: that it tells apart; evidence is of the malignant ones, on average, against the others.
        unfrozen: for a third output, what enters this many last blocks of the body, pooled: float32 [n, channels].
    """
    from thyroid.model.backend import keras

    prepared, body = network.get_layer(backbones.PREPROCESSED).output, network.get_layer(backbones.BODY)
    cut = [] if unfrozen is None else [backbones.split(network, unfrozen)[0].output]
    maps, *cut = keras.Model(body.input, [body.output, *cut])(prepared, training=False)
    dense = network.get_layer(backbones.PROBABILITY)
    kernel = np.asarray(dense.kernel)
    malignant = np.array(classes.positive)
    weight = (kernel[:, malignant].mean(axis=1) - kernel[:, ~malignant].mean(axis=1)).astype(np.float32)
    probability = dense(network.get_layer(backbones.FEATURES)(maps))
    # layers with names of their own: Keras counts the names that it gives from anew beside a model that was loaded
    weigh = keras.layers.Dense(1, use_bias=False, dtype="float32", name="evidence")
    evidence = keras.layers.Reshape(maps.shape[1:3], dtype="float32", name="evidence_map")(weigh(maps))
    weigh.set_weights([weight[:, None]])
    pooled = [keras.layers.GlobalAveragePooling2D(name="frozen_features")(one) for one in cut]
    return keras.Model(network.input, [probability, evidence, *pooled])


def heat(evidence: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    """Negative evidence cut off, enlarged to the image, divided by its own maximum.

    Args:
        evidence: one map of `with_map`, [h, w].
        size: side of the image in pixels.

    Returns:
        float32 [size, size], 0 to 1; all 0 where nothing speaks for malignancy.
    """
    positive = np.maximum(evidence, 0)
    scaled = positive / max(float(positive.max()), 1e-12)
    return np.clip(cv2.resize(scaled.astype(np.float32), (size, size), interpolation=cv2.INTER_LINEAR), 0, 1)


def share_inside(hot: NDArray[np.float32], box: tuple[int, int, int, int]) -> float | None:
    """Share of a heat map's mass inside a box of it (x, y, width, height in pixels); None for an empty map."""
    x, y, width, height = box
    mass = float(hot.sum())
    return float(hot[max(0, y) : y + height, max(0, x) : x + width].sum()) / mass if mass > 0 else None


def overlay(image: NDArray[np.uint8], hot: NDArray[np.float32], strength: float = 0.45) -> NDArray[np.uint8]:
    """The heat map over its image, the more opaque the hotter.

    Args:
        image: uint8 [size, size, 1 or 3].
        hot: float32 [size, size], 0 to 1.
        strength: opacity of the hottest place, 0 to 1.

    Returns:
        uint8 [size, size, 3], RGB.
    """
    colour = layer(hot)[..., :3]
    share = strength * hot[..., None]
    base = np.broadcast_to(image, (*image.shape[:2], 3))
    return np.round(base * (1 - share) + colour * share).astype(np.uint8)


def layer(hot: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The heat map alone, to be laid over its image at any opacity: the hotter, the less transparent.

    Args:
        hot: float32 [size, size], 0 to 1.

    Returns:
        uint8 [size, size, 4], RGBA.
    """
    heat = (hot * 255).astype(np.uint8)
    colour = cv2.applyColorMap(heat, cv2.COLORMAP_INFERNO)[..., ::-1]
    return np.dstack([colour, heat])
