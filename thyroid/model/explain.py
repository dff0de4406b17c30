"""Shows where a network sees evidence of malignancy, by Grad-CAM.

With global average pooling and one dense layer the gradient of a class's logit with respect to the last feature map is
the class's dense weight. Grad-CAM (Selvaraju et al. 2017) is then the class activation map (Zhou et al. 2016): the
map's channels weighted by the dense weight, with negative evidence cut off. Only differences of logits mean anything,
so the weight used here is that of malignant minus the mean of the others. The map is therefore a second output of the
same network and needs no gradients.

A third output describes the image: statistics of its pixels, and the features that the probability is made of.
`thyroid.model.novelty` tells by them whether an image is unlike the training images.

Two more show what the part of the network that training left frozen sees. `thyroid.model.descriptors` tells sonographic
descriptors by it, and the class activation map of each is as exact as that of malignancy.
"""

from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray

from thyroid.data.classes import BINARY, Classes
from thyroid.model import backbones
from thyroid.model.artefact import MODEL, Artefact, load_keras
from thyroid.model.descriptors.head import Head

if TYPE_CHECKING:
    import keras


def with_map(
    network: "keras.Model",
    classes: Classes = BINARY,
    unfrozen: int | None = None,
    descriptors: NDArray[np.float32] | None = None,
) -> "keras.Model":
    """Add outputs to a network: a map of evidence of malignancy, and features that describe the image.

    Args:
        network: Result of `backbones.build`. Its layers are shared, not copied.
        classes: Classes of the network. Evidence is the mean of the malignant ones minus the mean of the others.
        unfrozen: Number of last blocks of the body whose input becomes the fourth and the fifth output. None for none.
        descriptors: Weights of the channels of that input for each finding (`descriptors.head.Head`), float32
            [channels, k]. None for the input itself.

    Returns:
        A model whose outputs are the probabilities, the evidence as float32 [n, h, w], not yet cut off or scaled, the
        statistics of the pixels (`novelty.PICTURE`) with the network's features as float32 [n, 7 + channels] and, if
        it is asked for, the input of the unfrozen blocks: pooled as float32 [n, channels], and as a map [n, h, w,
        channels] or, weighted, [n, h, w, k].
    """
    from thyroid.model.backend import keras
    from thyroid.model.novelty.picture import PictureStatistics

    prepared, body = network.get_layer(backbones.PREPROCESSED).output, network.get_layer(backbones.BODY)
    cut = [] if unfrozen is None else [backbones.split(network, unfrozen)[0].output]
    maps, *cut = keras.Model(body.input, [body.output, *cut])(prepared, training=False)
    dense = network.get_layer(backbones.PROBABILITY)
    kernel = np.asarray(dense.kernel)
    malignant = np.array(classes.positive)
    weight = (kernel[:, malignant].mean(axis=1) - kernel[:, ~malignant].mean(axis=1)).astype(np.float32)
    features = network.get_layer(backbones.FEATURES)(maps)
    probability = dense(features)
    # The layers have explicit names: Keras counts its default names from the start again, which would clash with those
    # of a loaded model.
    weigh = keras.layers.Dense(1, use_bias=False, dtype="float32", name="evidence")
    evidence = keras.layers.Reshape(maps.shape[1:3], dtype="float32", name="evidence_map")(weigh(maps))
    weigh.set_weights([weight[:, None]])
    described = [PictureStatistics()(network.inputs[0]), features]
    pooled = keras.layers.Concatenate(dtype="float32", name="pooled")(described)
    frozen = [keras.layers.GlobalAveragePooling2D(name="frozen_features")(one) for one in cut]
    if cut and descriptors is not None:
        tell = keras.layers.Dense(descriptors.shape[1], use_bias=False, dtype="float32", name="descriptor_maps")
        cut = [tell(one) for one in cut]
        tell.set_weights([descriptors])
    return keras.Model(network.input, [probability, evidence, pooled, *frozen, *cut])


def load(artefact: Artefact) -> "keras.Model":
    """Load the Keras model of an artefact with the outputs that are served (`engine.Answer`).

    Raises:
        InputError: A file is damaged or does not fit model.json.
    """
    network, classes = load_keras(artefact.folder / MODEL), Classes.from_record(artefact.record)
    head = Head.read(artefact)
    if head is None:
        return with_map(network, classes)
    return with_map(network, classes, head.record.unfrozen, head.weight)


def heat(evidence: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    """Turn a map of evidence into a heat map of the image's size.

    Negative evidence is cut off. The rest is divided by its maximum and enlarged.

    Args:
        evidence: One map of `with_map`, [h, w], of malignancy or of a finding.
        size: Side of the image in pixels.

    Returns:
        float32 [size, size], 0 to 1. All 0 if there is no positive evidence.
    """
    positive = np.maximum(evidence, 0)
    scaled = positive / max(float(positive.max()), 1e-12)
    wide: NDArray[np.float32] = cv2.resize(scaled.astype(np.float32), (size, size), interpolation=cv2.INTER_LINEAR)
    return np.clip(wide, 0, 1)


def share_inside(hot: NDArray[np.float32], box: tuple[int, int, int, int]) -> float | None:
    """Return the share of a heat map's mass that lies inside a box.

    Args:
        hot: Heat map [size, size].
        box: x, y, width and height in pixels of the heat map.

    Returns:
        0 to 1, or None for an empty map.
    """
    x, y, width, height = box
    mass = float(hot.sum())
    return float(hot[max(0, y) : y + height, max(0, x) : x + width].sum()) / mass if mass > 0 else None


def overlay(image: NDArray[np.uint8], hot: NDArray[np.float32], strength: float = 0.45) -> NDArray[np.uint8]:
    """Draw a heat map over its image; hotter places are more opaque.

    Args:
        image: uint8 [size, size, 1 or 3].
        hot: float32 [size, size], 0 to 1.
        strength: Opacity of the hottest place, 0 to 1.

    Returns:
        uint8 [size, size, 3], RGB.
    """
    colour = layer(hot)[..., :3]
    share = strength * hot[..., None]
    base = np.broadcast_to(image, (*image.shape[:2], 3))
    return np.round(base * (1 - share) + colour * share).astype(np.uint8)


def layer(hot: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Render a heat map as a layer that can be laid over its image; hotter places are less transparent.

    Args:
        hot: float32 [size, size], 0 to 1.

    Returns:
        uint8 [size, size, 4], RGBA.
    """
    heat = (hot * 255).astype(np.uint8)
    colour = cv2.applyColorMap(heat, cv2.COLORMAP_INFERNO)[..., ::-1]
    return np.dstack([colour, heat])
