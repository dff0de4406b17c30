"""The maps of descriptors are exact: the mean of a finding's map and its bias make its logit."""

import numpy as np
import pytest

from tests.support import older, toy_descriptors
from thyroid.model import backbones, engine, explain
from thyroid.model.backend import keras
from thyroid.model.network import GRAPH, MAPS, OUTPUTS, Network
from thyroid.train import record

FINDINGS = [("composition", "solid"), ("foci", "punctate"), ("shape", "taller")]


def pixels(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (count, 32, 32, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def network(toy):
    keras.utils.set_random_seed(0)
    return backbones.build(backbones.get(toy), 32, None)


@pytest.fixture(scope="module")
def traced(network):
    return Network.trace(network, unfrozen=1)


@pytest.fixture(scope="module")
def head(traced):
    return toy_descriptors.head(traced.features(pixels(1)).shape[1], FINDINGS)


def converted(traced: Network, folder, head=None) -> engine.OpenVINOEngine:
    (folder / GRAPH).write_bytes(traced.graph.SerializeToString())
    file = None
    if head is not None:
        head.write(folder)
        file = folder / "descriptors.npz"
    engine.convert(folder / GRAPH, folder / "model.xml", descriptors=file)
    return engine.OpenVINOEngine(folder / "model.xml", 32, engine.F32)


def logit(p: np.ndarray) -> np.ndarray:
    return np.log(p) - np.log1p(-p)


def check(answers, traced, head, given) -> None:
    """Five outputs: the three of every model, and features and maps as the head needs them."""
    probability, evidence, pooled, features, maps = answers
    np.testing.assert_allclose(probability, traced.probabilities(given), atol=1e-4)
    assert evidence.shape[1:] == maps.shape[1:3] or evidence.shape[1] < maps.shape[1]
    np.testing.assert_allclose(pooled, traced.pooled(given), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(features, traced.features(given), rtol=1e-3, atol=1e-4)
    assert maps.shape[0] == len(given)
    assert maps.shape[3] == len(FINDINGS)
    told = logit(head.probabilities(traced.features(given)))
    np.testing.assert_allclose(maps.mean(axis=(1, 2)) + head.bias, told, atol=1e-4)


def test_openvino(traced, head, tmp_path):
    given = pixels(3)
    running = converted(traced, tmp_path, head)
    check(running.predict(given), traced, head, given)
    running.close()


def test_keras(network, traced, head):
    given = pixels(3)
    with_maps = explain.with_map(network, unfrozen=1, descriptors=head.weight)
    check([np.asarray(one) for one in with_maps.predict(given, verbose=0)], traced, head, given)


def test_without_descriptors_nothing_changes(traced, network, tmp_path):
    """The graph holds the map, and a model that tells nothing neither runs nor answers it."""
    (tmp_path / "old").mkdir()
    (tmp_path / "new").mkdir()
    plain = Network.trace(network)
    assert not plain.has_maps
    assert traced.has_maps
    assert MAPS not in OUTPUTS
    old, new = converted(plain, tmp_path / "old"), converted(traced, tmp_path / "new")
    answers = [one.predict(pixels(2)) for one in (old, new)]
    assert [len(one) for one in answers] == [3, 3]
    for one, other in zip(*answers, strict=True):
        np.testing.assert_array_equal(one, other)
    for one in (old, new):
        one.close()


def test_a_training_of_an_older_release_has_no_map(trained, tmp_path):
    whole = trained["VGG16", "cropped"]
    folder = older.training(whole, tmp_path / "model")
    assert Network.load(whole, record.read(whole)).has_maps
    assert not Network.load(folder, record.read(folder)).has_maps
