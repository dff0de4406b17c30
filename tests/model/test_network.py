import collections
import shutil

import numpy as np
import pytest

from tests.support import older
from thyroid.data import version
from thyroid.data.version import DataVersion
from thyroid.errors import InputError
from thyroid.evaluate import evaluate
from thyroid.imaging import images
from thyroid.model import backbones, explain, inputs, network
from thyroid.model.artefact import load_keras
from thyroid.model.backend import keras
from thyroid.model.network import Network
from thyroid.model.novelty.novelty import PICTURE
from thyroid.train import record


def pixels(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (count, 32, 32, 1), dtype=np.uint8)


@pytest.fixture(scope="module")
def model(toy):
    keras.utils.set_random_seed(0)
    return backbones.build(backbones.get(toy), 32, None)


def test_it_answers_as_keras_does(model):
    """Probabilities, evidence and frozen features of more than a batch, grey or not."""
    given = pixels(Network.batch_size + 3)
    asked = Network.trace(model, unfrozen=1)
    np.testing.assert_allclose(asked.probabilities(given), inputs.predict(model, given), atol=1e-6)
    plain = explain.with_map(model).predict(images.rgb(given), verbose=0)
    np.testing.assert_allclose(asked.evidence(images.rgb(given)), plain[1], rtol=1e-5, atol=1e-6)
    trunk, _ = backbones.split(model, 1)
    prepared = keras.Model(model.input, model.get_layer(backbones.PREPROCESSED).output)
    expected = trunk.predict(prepared.predict(images.rgb(given), verbose=0), verbose=0).mean(axis=(1, 2))
    np.testing.assert_allclose(asked.features(given), expected, rtol=1e-4, atol=1e-5)


def test_an_image_is_run_once(model, monkeypatch):
    asked, run = Network.trace(model), []

    def watched(self, some, doing, plain=Network._run):
        run.append(len(some))
        return plain(self, some, doing)

    monkeypatch.setattr(Network, "_run", watched)
    given = pixels(6)
    twice = np.concatenate([given, given[::-1], pixels(1, seed=1)])
    answers = asked.probabilities(twice)
    np.testing.assert_array_equal(answers[6:12], answers[5::-1])
    np.testing.assert_array_equal(asked.probabilities(images.rgb(given)), answers[:6])
    asked.evidence(given)
    asked.pooled(given)
    assert run == [7]


def test_the_graph_has_no_variables_and_features_only_where_they_are_asked_for(model):
    graph = Network.trace(model, unfrozen=1).graph
    assert {node.op for node in graph.node}.isdisjoint({"ReadVariableOp", "VarHandleOp"})
    assert {node.name for node in graph.node} >= {"batch", *network.OUTPUTS}
    assert "features" not in {node.name for node in Network.trace(model).graph.node}


def test_pooled_are_statistics_of_the_pixels_and_what_the_probability_is_made_of(model):
    asked, given = Network.trace(model, unfrozen=1), pixels(Network.batch_size + 1)
    features = keras.Model(model.input, model.get_layer(backbones.FEATURES).output)
    assert asked.has_pooled
    found = asked.pooled(given)
    assert found.dtype == np.float32
    expected = features.predict(images.rgb(given), verbose=0)
    np.testing.assert_allclose(found[:, len(PICTURE) :], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found[:, 0], images.rgb(given).mean(axis=(1, 2, 3)), rtol=1e-4)


def test_a_model_with_a_list_of_inputs_is_traced(model):
    """As Keras makes it of the slide deck's."""
    listed, given = keras.Model(model.inputs, model.outputs, name=model.name), pixels(2)
    assert isinstance(listed.input, list)
    np.testing.assert_allclose(Network.trace(listed).pooled(given), Network.trace(model).pooled(given), rtol=1e-5)


def test_a_training_of_an_older_release_has_none_and_answers_as_ever(trained, tmp_path):
    whole = trained["VGG16", "cropped"]
    folder = older.training(whole, tmp_path / "model")
    asked, now, given = Network.load(folder, record.read(folder)), Network.load(whole, record.read(whole)), pixels(3)
    assert now.has_pooled
    assert not asked.has_pooled
    np.testing.assert_allclose(asked.probabilities(given), now.probabilities(given), atol=1e-6)
    np.testing.assert_allclose(asked.evidence(given), now.evidence(given), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(asked.features(given), now.features(given), rtol=1e-4, atol=1e-5)


def test_what_a_training_wrote_answers_as_its_checkpoint(trained):
    folder = trained["VGG16", "cropped"]
    facts = record.read(folder)
    asked, kept = Network.load(folder, facts), load_keras(folder / facts.checkpoint)
    given = pixels(3)
    np.testing.assert_allclose(asked.probabilities(given), inputs.predict(kept, given), atol=1e-6)
    traced = Network.trace(kept, unfrozen=1)
    np.testing.assert_allclose(asked.evidence(given), traced.evidence(given), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(asked.features(given), traced.features(given), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("which", ["checkpoint", "graph"])
def test_a_file_that_the_training_did_not_write_is_refused(trained, tmp_path, which):
    copy = shutil.copytree(trained["VGG16", "cropped"], tmp_path / "model")
    facts = record.read(copy)
    file = copy / (facts.checkpoint if which == "checkpoint" else network.GRAPH)
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(InputError, match=file.name):
        Network.load(copy, facts)
    file.unlink()
    with pytest.raises(InputError, match=file.name):
        Network.load(copy, facts)


def test_answers_that_are_no_numbers_are_refused(model):
    broken = keras.models.clone_model(model)
    broken.get_layer(backbones.PROBABILITY).set_weights([np.full((40, 2), np.nan), np.zeros(2)])
    with pytest.raises(InputError, match=r"Toy.*finite"):
        Network.trace(broken).probabilities(pixels(1))


def test_an_evaluation_builds_no_network_and_decodes_every_image_once(cropped, trained, tmp_path, monkeypatch):
    """Counted where everything must pass: the layers of Keras, and the reader of files."""
    called, decoded = [], collections.Counter()

    def fill(out, rows, plain=version._fill):
        decoded.update((sha256, out.shape[1]) for _, sha256 in rows)
        return plain(out, rows)

    monkeypatch.setattr(keras.layers.Layer, "__call__", lambda layer, *given, **named: called.append(layer.name))
    monkeypatch.setattr(version, "_fill", fill)
    models = [trained["VGG16", "cropped"], trained["VGG16", "normal"]]  # of one backbone, so that both are audited
    result = evaluate.evaluate(cropped, models, tmp_path).record
    assert result.audits.shortcut.keys() >= {"model_on_blanked_nodule", "whole_image", "blanked_nodule"}
    assert called == []
    assert set(decoded.values()) == {1}
    everything = {
        *DataVersion.read(cropped).examples("cropped")["sha256"],
        *DataVersion.read(cropped).examples("normal")["sha256"],
    }
    assert {sha256 for sha256, _ in decoded} == everything
