import re

import numpy as np
import pytest

from thyroid.errors import InputError
from thyroid.model import backbones
from thyroid.model.artefact import load_keras
from thyroid.model.backend import keras

SMALL = backbones.Backbone("EfficientNetB0", "efficientnet", "1G", "1G")
"""Of EfficientNetB7's kind, with a quarter of its layers."""

ROWS = [
    SMALL,
    *(pytest.param(row, marks=() if row.name == "VGG16" else pytest.mark.slow) for row in backbones.BACKBONES.values()),
]
CHANNELS = {
    "EfficientNetB0": 1280,
    "EfficientNetB7": 2560,
    "VGG16": 512,
    "VGG19": 512,
    "ResNet50": 2048,
    "ResNet101": 2048,
}
IMAGES = np.random.default_rng(0).integers(0, 255, (32, 32, 32, 3), dtype=np.uint8)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_row_builds_the_same_shape_of_model(row, tmp_path):
    model = backbones.build(row, 32, None)
    assert model.input.dtype == "uint8"
    assert model.get_layer(backbones.FEATURES).output.shape == (None, CHANNELS[row.name])
    probability = np.asarray(model(IMAGES))
    np.testing.assert_allclose(probability.sum(axis=1), 1, rtol=1e-5)

    # preprocessing is inside: the plain body on keras' own preprocess_input gives the same features
    preprocess = getattr(keras.applications, row.module).preprocess_input
    maps = model.get_layer(backbones.BODY)(preprocess(IMAGES.astype("float32")), training=False)
    features = keras.Model(model.input, model.get_layer(backbones.FEATURES).output)(IMAGES)
    np.testing.assert_allclose(
        np.asarray(features), np.asarray(maps).mean(axis=(1, 2)), rtol=1e-3, atol=1e-4 * np.abs(np.asarray(maps)).max()
    )

    # the two halves are the body, and no BatchNorm is trained
    trunk, last_block = backbones.split(model)
    prepared = preprocess(IMAGES[:2].astype("float32"))
    np.testing.assert_allclose(last_block(trunk(prepared)), np.asarray(maps)[:2], rtol=1e-4, atol=1e-5)
    trainable = [layer for layer in model.get_layer(backbones.BODY).layers if layer.trainable]
    assert re.match(r"block(5|7)|conv5", trainable[0].name)
    assert 0 < len(trainable) < len(model.get_layer(backbones.BODY).layers) / 2
    assert not any(isinstance(layer, keras.layers.BatchNormalization) for layer in trainable)

    model.save(tmp_path / "model.keras")
    again = load_keras(tmp_path / "model.keras")
    np.testing.assert_allclose(np.asarray(again(IMAGES)), probability, atol=1e-6)


def test_keras_preprocessing_is_what_the_table_says():
    """EfficientNet rescales inside its body, so nothing may be done outside; VGG and ResNet want BGR minus the mean."""
    image = np.full((1, 4, 4, 3), 255.0, "float32")
    np.testing.assert_array_equal(keras.applications.efficientnet.preprocess_input(image.copy()), image)
    for module in ("vgg16", "vgg19", "resnet"):
        out = getattr(keras.applications, module).preprocess_input(image.copy())
        np.testing.assert_allclose(out[0, 0, 0], [255 - 103.939, 255 - 116.779, 255 - 123.68], rtol=1e-5)


def test_names_are_found_whatever_their_case():
    assert backbones.get("vgg16 ").name == "VGG16"


def test_unknown_backbone_lists_the_known():
    with pytest.raises(InputError, match=r"'AlexNet'.*EfficientNetB7"):
        backbones.get("AlexNet")


def test_too_small_an_image():
    with pytest.raises(InputError, match=r"\b16\b.*\b32\b"):
        backbones.build(backbones.get("VGG16"), 16, None)


def test_weights_of_a_folder_belong_by_name(tmp_path):
    (tmp_path / "my_VGG16_body.weights.h5").touch()
    (tmp_path / "resnet50.h5").touch()
    assert backbones.find_weights(backbones.get("VGG16"), str(tmp_path)).name == "my_VGG16_body.weights.h5"
    assert backbones.find_weights(backbones.get("ResNet50"), str(tmp_path)) is None
    file = str(tmp_path / "my_VGG16_body.weights.h5")
    assert str(backbones.find_weights(backbones.get("VGG16"), file)) == file
    assert backbones.find_weights(backbones.get("VGG19"), file) is None


def test_words_for_weights():
    assert backbones.find_weights(backbones.get("VGG16"), "imagenet") == "imagenet"
    assert backbones.find_weights(backbones.get("VGG16"), "None") is None
    with pytest.raises(InputError, match="/nowhere/else"):
        backbones.find_weights(backbones.get("VGG16"), "/nowhere/else")


def test_weights_of_another_backbone_are_refused_by_file(tmp_path):
    other = backbones.build(SMALL, 32, None).get_layer(backbones.BODY)
    other.save_weights(tmp_path / "vgg16.weights.h5")
    with pytest.raises(InputError, match=r"vgg16\.weights\.h5.*VGG16"):
        backbones.build(backbones.get("VGG16"), 32, tmp_path / "vgg16.weights.h5")


def test_damaged_weights_are_refused_by_file(tmp_path):
    (tmp_path / "vgg16.weights.h5").write_bytes(b"not hdf5")
    with pytest.raises(InputError, match=r"vgg16\.weights\.h5"):
        backbones.build(backbones.get("VGG16"), 32, tmp_path / "vgg16.weights.h5")


def test_real_weights_load(vgg16_weights):
    model = backbones.build(backbones.get("VGG16"), 32, vgg16_weights)
    random = backbones.build(backbones.get("VGG16"), 32, None)
    kernel, other = (m.get_layer(backbones.BODY).get_layer("block1_conv1").get_weights()[0] for m in (model, random))
    assert np.abs(kernel - other).max() > 0.1


def test_imagenet_goes_through_keras_own_download(monkeypatch, vgg16_weights):
    from keras.src.applications import vgg16

    asked = []
    monkeypatch.setattr(vgg16.file_utils, "get_file", lambda name, *a, **k: asked.append(name) or str(vgg16_weights))
    backbones.build(backbones.get("VGG16"), 32, "imagenet")
    assert asked == ["vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5"]


@pytest.mark.parametrize(
    ("name", "module", "file"),
    [
        pytest.param("EfficientNetB7", "efficientnet", "efficientnetb7_notop.h5", marks=pytest.mark.slow),
        ("VGG19", "vgg19", "vgg19_weights_tf_dim_ordering_tf_kernels_notop.h5"),
        ("ResNet50", "resnet", "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5"),
        pytest.param(
            "ResNet101", "resnet", "resnet101_weights_tf_dim_ordering_tf_kernels_notop.h5", marks=pytest.mark.slow
        ),
    ],
)
def test_every_backbone_asks_for_its_own_file(monkeypatch, name, module, file):
    asked = []

    def get_file(name, *arguments, **options):
        asked.append(name)
        raise Exception("no route")

    monkeypatch.setattr(f"keras.src.applications.{module}.file_utils.get_file", get_file)
    with pytest.raises(InputError, match=name):
        backbones.build(backbones.get(name), 32, "imagenet")
    assert asked == [file]


def stem_of(model: keras.Model) -> np.ndarray:
    body = model.get_layer(backbones.BODY)
    names = [layer.name for layer in body.layers]
    stem = keras.Model(body.input, body.layers[names.index("stem_conv_pad") - 1].output)
    return np.asarray(stem(IMAGES.astype("float32")))


@pytest.mark.parametrize(
    "row", [SMALL, pytest.param(backbones.get("EfficientNetB7"), marks=pytest.mark.slow)], ids=lambda row: row.name
)
def test_efficientnet_sees_images_as_imagenet_training_did_whatever_its_weights_come_from(row, tmp_path):
    """Keras' file holds deviations for variances; only weights="imagenet" makes up for it by one more Rescaling."""
    plain = getattr(keras.applications, row.name)(include_top=False, weights=None, input_shape=(32, 32, 3))
    normalization = next(layer for layer in plain.layers if isinstance(layer, keras.layers.Normalization))
    normalization.set_weights([np.array([0.485, 0.456, 0.406]), np.array(backbones.IMAGENET_DEVIATION), np.array(0)])
    plain.save_weights(tmp_path / "body.weights.h5")
    model = backbones.build(row, 32, tmp_path / "body.weights.h5")
    expected = (IMAGES / 255 - [0.485, 0.456, 0.406]) / backbones.IMAGENET_DEVIATION
    np.testing.assert_allclose(stem_of(model), expected, atol=1e-4)

    copied = backbones.build(row, 32, None)
    backbones.copy_weights(model, copied)
    np.testing.assert_allclose(stem_of(copied), expected, atol=1e-4)
    model.save(tmp_path / "model.keras")
    np.testing.assert_allclose(stem_of(load_keras(tmp_path / "model.keras")), expected, atol=1e-4)


def test_failed_download_says_what_to_do(monkeypatch):
    from keras.src.applications import vgg16

    def fail(*arguments, **options):
        raise Exception("URL fetch failure on somewhere: None -- no route")

    monkeypatch.setattr(vgg16.file_utils, "get_file", fail)
    with pytest.raises(InputError, match=r"VGG16.*--weights"):
        backbones.build(backbones.get("VGG16"), 32, "imagenet")
