import asyncio
import re

import numpy as np
import openvino
import pytest
from openvino import opset13 as ops

from tests.support import toy_artefact, toy_locator
from thyroid.errors import InputError
from thyroid.model import engine, locator, locator_engine
from thyroid.model.artefact import Artefact
from thyroid.model.locator_engine import LocatorEngine

SCORE = {"decisions_changed": 0, "iou50": {"value": 0.5, "low": 0.4, "high": 0.6}}


def record(**differences: float):
    forms = {name.replace("_", "-"): SCORE | {"largest_difference": value} for name, value in differences.items()}
    return toy_locator.record(forms=forms)


@pytest.fixture
def folder(tmp_path):
    return toy_locator.build(tmp_path, locator=toy_locator.record())


def described(folder) -> Artefact:
    """The artefact after a change of its files, with their new hashes."""
    return Artefact.describe(folder, toy_artefact.description(locator=toy_locator.record().to_dict()))


@pytest.mark.parametrize(
    ("scored", "bf16", "classifier", "form"),
    [
        ({"openvino_f32": 0.0, "openvino_bf16": 0.1}, True, engine.BF16, engine.BF16),
        ({"openvino_f32": 0.0, "openvino_bf16": 0.1}, True, engine.F32, engine.F32),
        ({"openvino_f32": 0.0}, True, engine.BF16, engine.F32),
        ({"openvino_bf16": 0.1}, True, engine.F32, engine.BF16),
        ({"openvino_bf16": 0.1}, False, engine.F32, engine.KERAS),
        ({}, True, engine.F32, engine.KERAS),
        ({"openvino_f32": 0.0, "openvino_bf16": 0.6}, True, engine.BF16, engine.F32),
        ({"openvino_f32": 0.0}, True, engine.KERAS, engine.KERAS),
    ],
)
def test_the_form_is_the_classifiers_or_the_closest_scored_one(monkeypatch, scored, bf16, classifier, form):
    monkeypatch.setattr(engine, "has_bf16", lambda: bf16)
    assert locator_engine.choose(record(**scored), classifier) == form


def test_it_answers_as_its_network_does(folder):
    running = LocatorEngine(Artefact.verify(folder), toy_locator.record(), engine.F32)
    assert running.form == engine.F32
    seen = [running.locator.view(toy_locator.frame((box,))) for box in ((40, 60, 60, 60), (200, 120, 60, 60))]

    async def ask():
        return await asyncio.gather(*(running.answer(one) for one in seen * 4))

    plain = engine.OpenVINOEngine(folder / locator.OPENVINO, toy_locator.LOOK, engine.F32)
    expected = plain.predict(np.stack([one.pixels for one in seen * 4]))
    for (heat, distances), wanted, far in zip(asyncio.run(ask()), *expected, strict=True):
        np.testing.assert_allclose(heat, wanted, atol=1e-5)
        np.testing.assert_allclose(distances, far, atol=1e-5)
    assert asyncio.run(running.self_test())
    running.close()


def test_one_mode_alone_is_compiled(folder, monkeypatch):
    monkeypatch.setattr(engine.cores, "available", lambda: 2)
    compiled = []
    plain = engine.OpenVINOEngine._compiled

    def counted(self, jobs, **options):
        compiled.append(options)
        return plain(self, jobs, **options)

    monkeypatch.setattr(engine.OpenVINOEngine, "_compiled", counted)
    LocatorEngine(Artefact.verify(folder), toy_locator.record(), engine.F32).close()
    assert [one["PERFORMANCE_HINT"] for one in compiled] == ["LATENCY"]


def test_keras_runs_it_where_it_runs_the_classifier(folder, monkeypatch):
    from thyroid.model.backend import keras

    image = keras.Input((toy_locator.LOOK, toy_locator.LOOK, 3), dtype="uint8")
    grey = keras.layers.Rescaling(1 / 255)(image)
    pooled = keras.layers.AveragePooling2D(toy_locator.STRIDE)(grey)
    heat = keras.layers.Reshape((8, 8))(keras.layers.Conv2D(1, 1, activation="sigmoid")(pooled))
    keras.Model(image, [heat, keras.layers.Conv2D(4, 1)(pooled)]).save(folder / locator.KERAS)
    running = LocatorEngine(described(folder), toy_locator.record(), engine.KERAS)
    assert running.form == engine.KERAS
    heat, distances = asyncio.run(running.answer(running.locator.view(toy_locator.frame())))
    assert (heat.shape, distances.shape) == ((8, 8), (8, 8, 4))
    assert asyncio.run(running.self_test())
    running.close()


@pytest.mark.parametrize("name", ["model.xml", "model.bin"])
def test_a_file_that_is_missing_or_unreadable_is_named(folder, name):
    file = folder / "locator" / name
    file.write_bytes(b"?" * 10 if name == "model.xml" else b"")
    with pytest.raises(InputError, match=re.escape(str(folder / "locator"))):
        LocatorEngine(described(folder), toy_locator.record(), engine.F32)
    (folder / "locator" / "model.xml").unlink()
    with pytest.raises(InputError, match=re.escape(str(folder / "locator" / "model.xml"))):
        LocatorEngine(described(folder), toy_locator.record(), engine.F32)


@pytest.mark.parametrize("fault", ["not finite", "one output", "other cells"])
def test_a_network_that_is_no_locator_is_refused(folder, fault):
    image = ops.parameter([1, toy_locator.LOOK, toy_locator.LOOK, 3], np.uint8, name="image")
    zero = ops.multiply(ops.reduce_mean(ops.convert(image, "f32"), np.array([1, 2, 3])), np.float32(0))
    cells = 4 if fault == "other cells" else 8
    value = np.nan if fault == "not finite" else 0.5
    heat = ops.add(ops.reshape(zero, np.array([1, 1, 1]), False), np.full((1, cells, cells), value, np.float32))
    far = ops.add(ops.reshape(zero, np.array([1, 1, 1, 1]), False), np.zeros((1, cells, cells, 4), np.float32))
    outputs = [heat] if fault == "one output" else [heat, far]
    file = folder / locator.OPENVINO
    openvino.save_model(openvino.Model(outputs, [image], "locator"), file, compress_to_fp16=False)
    with pytest.raises(InputError, match=re.escape(str(file))):
        LocatorEngine(described(folder), toy_locator.record(), engine.F32)
