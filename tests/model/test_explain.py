import cv2
import numpy as np
import pytest

from thyroid.data import classes
from thyroid.imaging import images
from thyroid.model import backbones, explain
from thyroid.model.backend import keras, tf
from thyroid.model.network import Network


def grad_cam(network, pixels, positive=(False, True)):
    """Compute Grad-CAM as published.

    Channels are weighted by the pooled gradient of the logit difference, and negative evidence is cut off.
    """
    malignant = np.array(positive)
    prepared = network.get_layer(backbones.PREPROCESSED).output
    maps = keras.Model(network.input, network.get_layer(backbones.BODY)(prepared, training=False))(images.rgb(pixels))
    dense = network.get_layer(backbones.PROBABILITY)
    with tf.GradientTape() as tape:
        tape.watch(maps)
        logit = tf.reduce_mean(maps, axis=(1, 2)) @ dense.kernel + dense.bias
        sides = [tf.reduce_mean(tf.boolean_mask(logit, side, axis=1), axis=1) for side in (malignant, ~malignant)]
        difference = sides[0] - sides[1]
    weight = tf.reduce_mean(tape.gradient(difference, maps), axis=(1, 2), keepdims=True)
    coarse = tf.nn.relu(tf.reduce_sum(weight * maps, axis=-1)).numpy()
    size = pixels.shape[1]
    return [cv2.resize(one / max(one.max(), 1e-12), (size, size), interpolation=cv2.INTER_LINEAR) for one in coarse]


DEEP = [pytest.param(name, marks=pytest.mark.slow) for name in ("EfficientNetB7", "VGG19", "ResNet50", "ResNet101")]


@pytest.mark.parametrize("name", ["Toy", "VGG16", *DEEP])
@pytest.mark.usefixtures("toy")
def test_heat_map_is_grad_cam_for_every_backbone(name):
    keras.utils.set_random_seed(0)
    network = backbones.build(backbones.get(name), 64, None)
    pixels = np.random.default_rng(0).integers(0, 255, (2, 64, 64, 1), dtype=np.uint8)
    heat = Network.trace(network).heat_maps(pixels)
    assert heat.shape == (2, 64, 64)
    assert heat.min() >= 0
    assert heat.max() <= 1.0001
    np.testing.assert_allclose(heat, grad_cam(network, pixels), atol=1e-4)


def test_heat_map_of_several_classes_is_of_the_malignant_against_the_benign_ones():
    keras.utils.set_random_seed(0)
    kinds = classes.parse("2<3|4a<4b<5")
    network = backbones.build(backbones.get("VGG16"), 64, None, classes=len(kinds))
    pixels = np.random.default_rng(0).integers(0, 255, (2, 64, 64, 1), dtype=np.uint8)
    heat = Network.trace(network, kinds).heat_maps(pixels)
    np.testing.assert_allclose(heat, grad_cam(network, pixels, kinds.positive), atol=1e-4)


def test_overlay_leaves_cold_places_alone():
    image = np.full((8, 8, 1), 100, np.uint8)
    heat = np.zeros((8, 8), np.float32)
    heat[0, 0] = 1
    out = explain.overlay(image, heat)
    assert out.shape == (8, 8, 3)
    assert (out[1:] == 100).all()
    assert (out[0, 0] != 100).any()


@pytest.mark.parametrize("name", ["Toy", "VGG16", pytest.param("ResNet50", marks=pytest.mark.slow)])
@pytest.mark.usefixtures("toy")
def test_a_model_that_was_loaded_has_a_map(name, tmp_path):
    """As in a new process, where Keras' count of names begins at the ones that the file holds."""
    backbones.build(backbones.get(name), 32, None).save(tmp_path / "model.keras")
    keras.backend.clear_session()
    network = Network.trace(keras.models.load_model(tmp_path / "model.keras"))
    heat = network.heat_maps(np.zeros((1, 32, 32, 1), np.uint8))
    assert heat.shape == (1, 32, 32)


def test_layer_shows_hot_places_alone():
    heat = np.zeros((8, 8), np.float32)
    heat[0, 0] = 1
    layer = explain.layer(heat)
    assert layer.shape == (8, 8, 4)
    assert layer[0, 0, 3] == 255
    assert (layer[1:, :, 3] == 0).all()
