import asyncio

import numpy as np
import pytest

from tests.support import older, toy_artefact
from thyroid.errors import InputError
from thyroid.imaging import images
from thyroid.model import backbones, engine, explain
from thyroid.model.artefact import MODEL, Artefact, load_keras
from thyroid.model.backend import keras
from thyroid.model.network import GRAPH, Network
from thyroid.records.model import OtherForm
from thyroid.train import record


@pytest.fixture(scope="module")
def artefact(evaluated):
    return Artefact.verify(evaluated / "artefact")


def pixels(count: int, size: int = 32) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (count, size, size, 3), dtype=np.uint8)


def test_every_form_was_scored(artefact):
    facts = artefact.record
    assert {engine.KERAS, engine.F32} <= set(facts.forms)
    assert facts.forms[engine.F32].largest_difference < 1e-4
    assert facts.forms[engine.F32].decisions_changed == 0
    assert (engine.BF16 in facts.forms) == engine.has_bf16()
    assert set(facts.forms[engine.F32].test.to_dict()) >= {"n", "auroc", "sensitivity", "confusion"}
    assert {"openvino/model.xml", "openvino/model.bin"} <= set(facts.files)


def test_forms_agree(artefact):
    given = pixels(5)
    reference = engine.load(artefact, engine.KERAS).predict(given)
    network = load_keras(artefact.folder / MODEL)
    np.testing.assert_allclose(reference[0], network.predict(given, verbose=0), atol=1e-6)
    for form in (one for one in artefact.record.forms if one != engine.KERAS):
        probability, evidence, pooled = engine.load(artefact, form).predict(given)
        near = 1e-4 if form == engine.F32 else 0.2  # eight bits of a mantissa, on noise
        np.testing.assert_allclose(probability, reference[0], atol=near)
        scale = np.abs(reference[1]).max()
        np.testing.assert_allclose(evidence / scale, reference[1] / scale, atol=near)
        np.testing.assert_allclose(pooled, reference[2], atol=near * np.abs(reference[2]).max())


DEEP = [pytest.param(name, marks=pytest.mark.slow) for name in ("VGG16", "ResNet50", "EfficientNetB7")]


@pytest.mark.parametrize("name", ["Toy", *DEEP])
@pytest.mark.usefixtures("toy")
def test_every_family_converts_with_its_map(name, tmp_path):
    keras.utils.set_random_seed(1)
    network = backbones.build(backbones.get(name), 32, None)
    traced = Network.trace(network)
    (tmp_path / "network.pb").write_bytes(traced.graph.SerializeToString())
    engine.convert(tmp_path / "network.pb", tmp_path / "openvino" / "model.xml")
    given = pixels(2)
    probability, evidence, pooled = engine.OpenVINOEngine(tmp_path / "openvino" / "model.xml", 32, engine.F32).predict(
        given
    )
    np.testing.assert_allclose(probability, network.predict(given, verbose=0), atol=1e-4)
    expected = traced.heat_maps(given)
    for one, heat in zip(evidence, expected, strict=True):
        np.testing.assert_allclose(explain.heat(one, 32), heat, atol=1e-3)
    expected = traced.pooled(given)
    np.testing.assert_allclose(pooled, expected, atol=1e-4 * np.abs(expected).max())


def test_a_network_of_an_older_release_is_converted_without_pooled_features(trained, tmp_path):
    folder = older.training(trained["VGG16", "cropped"], tmp_path / "model")
    engine.convert(folder / GRAPH, tmp_path / engine.OPENVINO)
    running, given = engine.OpenVINOEngine(tmp_path / engine.OPENVINO, 32, engine.F32), pixels(2)
    probability, evidence = running.predict(given)
    asked = Network.load(folder, record.read(folder))
    np.testing.assert_allclose(probability, asked.probabilities(given), atol=1e-4)
    np.testing.assert_allclose(evidence, asked.evidence(given), rtol=1e-3, atol=1e-4)
    assert len(asyncio.run(running.answer(given[0]))) == 2
    running.close()


@pytest.mark.parametrize("form", [engine.F32, engine.KERAS])
def test_answers_find_their_way_back(artefact, form):
    """Forty at once: each gets the answer to its own image."""
    given = pixels(40)
    running = engine.load(artefact, form)
    expected = running.predict(given)[0]

    async def all_at_once():
        return await asyncio.gather(*(running.answer(image) for image in given))

    answers = asyncio.run(all_at_once())
    np.testing.assert_allclose([one[0] for one in answers], expected, atol=1e-5)
    assert {len(one) for one in answers} == {3}, "with the pooled features"
    running.close()


def test_a_lone_image_gets_all_cores_and_many_get_one_each(artefact, monkeypatch):
    """Up to as many as there are cores are answered one after the other; more side by side, until none is left."""
    monkeypatch.setattr(engine.cores, "available", lambda: 2)
    running = engine.load(artefact, engine.F32)
    lone, many = running._alone, running._many
    assert lone is not many
    given, modes = pixels(8), []

    class Told(type(many)):
        """Notes which of the two was asked."""

        def start_async(self, inputs, tell):
            modes.append("lone" if len(self) == 1 else "many")
            super().start_async(inputs, tell)

    lone.__class__ = many.__class__ = Told

    async def ask(count):
        modes.clear()
        await asyncio.gather(*(running.answer(image) for image in given[:count]))
        return list(modes)

    assert asyncio.run(ask(1)) == ["lone"]
    assert asyncio.run(ask(2)) == ["lone"] * 2
    assert asyncio.run(ask(8)) == ["lone"] + ["many"] * 7
    assert asyncio.run(ask(1)) == ["lone"], "back again"
    running.close()


def test_one_core_needs_no_second_model(artefact, monkeypatch):
    monkeypatch.setattr(engine.cores, "available", lambda: 1)
    running = engine.load(artefact, engine.F32)
    assert running._alone is running._many
    assert len(running._many) == 2
    # no reference is kept: OpenVINO hangs where this one would outlive the queue
    assert running._many[0].get_compiled_model().get_property("INFERENCE_NUM_THREADS") == 1
    assert running._many[0].get_compiled_model().get_property("NUM_STREAMS") == 1
    running.close()


def test_a_caller_that_goes_away_leaves_its_place_to_others(artefact):
    running = engine.load(artefact, engine.F32)

    async def impatient():
        for _ in range(20):
            tasks = [asyncio.create_task(running.answer(image)) for image in pixels(6)]
            await asyncio.sleep(0)
            for task in tasks[::2]:
                task.cancel()
            done = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(not isinstance(one, Exception) for one in done[1::2])
        return await asyncio.wait_for(running.answer(pixels(1)[0]), 10)

    assert asyncio.run(impatient())[0].sum() == pytest.approx(1, abs=1e-4)


def test_only_scored_and_near_forms_are_candidates(monkeypatch):
    scored = {engine.KERAS: 0.0, engine.F32: 1e-6, engine.BF16: 0.001}
    monkeypatch.setattr(engine, "has_bf16", lambda: True)
    assert set(engine.candidates(scored)) == {engine.BF16, engine.F32}
    assert engine.candidates(scored | {engine.BF16: 0.06}) == [engine.F32], "too far from Keras"
    assert engine.candidates(scored, engine.KERAS) == [engine.KERAS]
    assert engine.candidates({engine.KERAS: 0.0}) == [engine.KERAS]
    monkeypatch.setattr(engine, "has_bf16", lambda: False)
    assert engine.candidates(scored) == [engine.F32]
    with pytest.raises(InputError, match="bfloat16"):
        engine.candidates(scored, engine.BF16)
    with pytest.raises(InputError, match=engine.F32):
        engine.candidates({engine.KERAS: 0.0}, engine.F32)
    with pytest.raises(InputError, match=engine.BF16):
        engine.candidates({engine.BF16: 0.001})


def scored(artefact: Artefact) -> Artefact:
    """An artefact of which the evaluation scored both OpenVINO forms, as equal to Keras."""
    forms = {form: OtherForm.parse(toy_artefact.other_form(0.0), form) for form in (engine.F32, engine.BF16)}
    return Artefact(artefact.folder, artefact.record.model_copy(update={"forms": forms}))


def test_the_form_is_chosen_by_measurement_and_a_given_one_is_not_measured(artefact, monkeypatch):
    """bfloat16 runs on every processor, by emulation where it has no instructions for it."""
    monkeypatch.setattr(engine, "has_bf16", lambda: True)
    chosen = engine.load(scored(artefact))
    assert set(chosen.measured) == {engine.F32, engine.BF16}
    assert min(chosen.measured.values()) > 0
    assert chosen.measured[chosen.form] == max(chosen.measured.values())
    assert engine.load(artefact, engine.F32).measured == {}


def test_the_slower_form_is_left(artefact, monkeypatch):
    """An engine that takes longer for each image loses, whatever its place in the list."""
    monkeypatch.setattr(engine, "has_bf16", lambda: True)
    run_for = engine.OpenVINOEngine.run_for
    for slow, fast in ((engine.BF16, engine.F32), (engine.F32, engine.BF16)):

        def slowed(self, seconds, slow=slow):
            count = run_for(self, seconds)
            return count if self.form != slow else count // 100

        monkeypatch.setattr(engine.OpenVINOEngine, "run_for", slowed)
        assert engine.load(scored(artefact)).form == fast


def test_share_of_the_mass_inside():
    heat = np.zeros((10, 10), np.float32)
    heat[2:4, 2:4] = 1
    heat[8, 8] = 4
    assert explain.share_inside(heat, (2, 2, 2, 2)) == pytest.approx(0.5)
    assert explain.share_inside(np.zeros((4, 4), np.float32), (0, 0, 2, 2)) is None


def test_serving_needs_no_tensorflow():
    import subprocess
    import sys

    code = (
        "import sys, thyroid.serve.server; "
        "bad = {'tensorflow', 'keras', 'sklearn', 'matplotlib', 'kfp'} & set(sys.modules); "
        "sys.exit(str(bad) if bad else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_images_tell_their_kind(tmp_path):
    import io

    from PIL import Image

    frame = pixels(1, 40)[0]
    for name in images.SERVED:
        buffer = io.BytesIO()
        Image.fromarray(frame).save(buffer, name)
        assert images.kind(buffer.getvalue()) == name
        assert images.decode(buffer.getvalue(), formats=images.SERVED).shape == (40, 40, 3)
    assert images.kind(b"GIF89a") is None
    with pytest.raises(ValueError, match="JPEG"):
        images.decode(buffer.getvalue())
    animated = io.BytesIO()
    frames = [Image.fromarray(frame), Image.fromarray(255 - frame)]
    frames[0].save(animated, "PNG", save_all=True, append_images=frames[1:])
    with pytest.raises(ValueError, match="animation"):
        images.decode(animated.getvalue(), formats=images.SERVED)
