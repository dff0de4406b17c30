"""The endpoint tells whether an image is unlike the training images, and hands its decisions to the log."""

import asyncio
import hashlib
import json
import re
from typing import Any

import numpy as np
import pytest
from kserve import InferInput, InferRequest
from kserve.model import InferenceVerb
from prometheus_client import REGISTRY

from tests.serve.test_locate import FRAME, LARGE, ask, instance, load, locate, one
from tests.support import dicoms, toy_locator
from tests.support.serving import check_schema
from thyroid.errors import InputError
from thyroid.model import engine
from thyroid.model.novelty.novelty import FILE
from thyroid.records.watch import Decision
from thyroid.serve import preprocessing, schemas
from thyroid.serve.answers import Scored
from thyroid.serve.decisions.folder import Folder
from thyroid.serve.decisions.log import DecisionLog
from thyroid.serve.limits import RequestError
from thyroid.serve.model import ThyroidModel
from thyroid.serve.payload import Instance

RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (240, 320, 3), np.uint8)
RED = np.full((240, 320, 3), (255, 0, 0), np.uint8)


class Kept:
    """A log that keeps what it is given."""

    def __init__(self, features: bool = False) -> None:
        self.features = features
        self.lines: list[tuple[int, str, Scored]] = []

    def record(self, version: int, form: str, scored: list[Scored]) -> None:
        self.lines += [(version, form, image) for image in scored]


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> ThyroidModel:
    return load(tmp_path_factory.mktemp("artefact"), locator=toy_locator.record(), novelty=True)


def logged(folder: Any, features: bool = False) -> tuple[ThyroidModel, Kept]:
    log = Kept(features)
    folder = toy_locator.build(folder, locator=toy_locator.record(), novelty=True)
    model = ThyroidModel("thyroid", folder, form=engine.F32, log=log)
    model.load()
    return model, log


def test_an_image_like_the_training_images_is_decided(served):
    told = one(served, FRAME, roi=list(LARGE))
    assert 0 < told["novelty_distance"] <= 1
    assert 0 <= told["novelty"] <= 100
    assert told["decision"] in ("benign", "malignant")
    assert "reasons" not in told


@pytest.mark.parametrize("pixels", [NOISE, RED, np.zeros_like(RED)], ids=["noise", "colour", "blank"])
def test_an_unlike_image_is_not_decided_on_even_with_a_given_box(served, pixels):
    told = one(served, pixels, roi=list(LARGE))
    assert told["novelty_distance"] > 1
    assert told["novelty"] == 100
    assert (told["decision"], told["reason"]) == ("abstain", "unlike_training")
    assert sum(told["probability"].values()) == pytest.approx(1), "for information"


def test_the_distance_is_that_of_the_reference_as_a_multiple_of_its_limit(served):
    prepared = served.preprocessing.prepare(Instance("image", FRAME, LARGE))
    pooled = served.engine_.predict(prepared.pixels[None])[2]
    distance = served.novelty.distance(pooled)[0]
    told = one(served, FRAME, roi=list(LARGE))
    assert told["novelty_distance"] == pytest.approx(distance / served.novelty.limit, rel=1e-5)
    assert told["novelty"] == pytest.approx(served.novelty.percentile(distance), abs=1e-2)


def test_unlike_is_the_first_of_the_reasons(tmp_path):
    changes = {"automatic_boxes": toy_locator.automatic_boxes(released=False).to_dict(), "band": [0.0, 1.0]}
    model = load(tmp_path, locator=toy_locator.record(), novelty=True, **changes)
    told = one(model, NOISE, domain="frame")
    assert told["reasons"] == ["unlike_training", "box_unsure", "box_not_confirmed", "abstention_band"]


def test_an_unlike_view_does_not_count(served):
    views = [instance(pixels, patient="p", roi=list(LARGE)) for pixels in (NOISE, FRAME)]
    answer = ask(served, *views, instance(RED, patient="q", roi=list(LARGE)))
    first, second = answer["patients"]
    assert first["left_out"] == [{"image": 0, "reason": "unlike_training"}]
    assert first["probability"] == pytest.approx(answer["predictions"][1]["probability"])
    assert first["decision"] == answer["predictions"][1]["decision"]
    assert (second["decision"], second["reasons"]) == ("abstain", ["unlike_training"])
    assert second["malignant"] == pytest.approx(answer["predictions"][2]["malignant"]), "for information"


def test_explanations_have_it_too(served):
    body = {"instances": [instance(NOISE, roi=list(LARGE))]}
    answer, _ = asyncio.run(served(body, None, InferenceVerb.EXPLAIN))
    check_schema(schemas.ExplainAnswer, answer)
    told = answer["explanations"][0]
    assert told["reason"] == "unlike_training"
    assert told["novelty"] == 100


def test_v2_has_novelty_and_reasons(served):
    outputs, types = infer(served, np.stack([FRAME, NOISE]), [LARGE] * 2), served.get_output_types()
    assert list(outputs) == [one["name"] for one in types]
    assert [one["datatype"] for one in types][-2:] == ["BYTES", "FP32"]
    assert list(outputs)[-2:] == ["reasons", "novelty"]
    assert outputs["reasons"].tolist() == ["", "unlike_training"]
    assert outputs["decision"].tolist()[1] == "abstain"
    assert outputs["novelty"].dtype == np.float32
    assert outputs["novelty"][0] < outputs["novelty"][1] == 100


def test_v2_of_a_model_of_full_frames_has_them_without_a_locator(tmp_path):
    model = load(tmp_path, novelty=True, serving_domain="normal")
    assert list(infer(model, NOISE[None])) == ["probability", "decision", "reasons", "novelty"]


def infer(model: ThyroidModel, pixels: np.ndarray, boxes: Any = ()) -> dict[str, np.ndarray]:
    """Ask by V2 and return the outputs by name."""
    image = InferInput("image", list(pixels.shape), "UINT8")
    image.set_data_from_numpy(pixels, binary_data=True)
    inputs = [image]
    if boxes:
        inputs.append(InferInput("roi", [len(boxes), 4], "INT32"))
        inputs[-1].set_data_from_numpy(np.array(boxes, np.int32), binary_data=True)
    answer, _ = asyncio.run(model(InferRequest("thyroid", inputs)))
    return {output.name: output.as_numpy() for output in answer.outputs}


def test_a_model_of_before_answers_as_it_did_and_says_so(tmp_path):
    model = load(tmp_path, locator=toy_locator.record())
    told = one(model, NOISE, roi=list(LARGE))
    assert not {"novelty", "novelty_distance", "reasons"} & set(told)
    assert told["decision"] in ("benign", "malignant")
    assert list(infer(model, NOISE[None]))[-1] == "reasons"
    assert model.describe()["novelty"] is None


def test_the_facts_hold_the_reference_and_not_the_usual_answers(tmp_path):
    usual = {"patients": 1, "images": 1, "values": {}, "decisions": {"benign": 1}, "shares": {"abstain": 0.0}}
    facts = load(tmp_path, novelty=True, usual_answers={"given": usual}).describe()
    assert facts["novelty"]["limit"] > 0
    assert len(facts["novelty"]["quantiles"]) == 101
    assert not {"usual_answers", "files"} & set(facts)


def test_features_that_are_not_finite_are_unlike_and_can_be_written_as_json(served, monkeypatch):
    plain = served.engine_.answer

    async def broken(pixels):
        probability, evidence, pooled = await plain(pixels)
        return probability, evidence, np.full_like(pooled, np.nan)

    monkeypatch.setattr(served.engine_, "answer", broken)
    told = one(served, FRAME, roi=list(LARGE))
    assert told["reasons"] == ["unlike_training"]
    assert told["novelty"] == 100
    json.dumps(told, allow_nan=False)


def test_a_damaged_reference_is_named_when_the_model_is_loaded(tmp_path):
    toy_locator.build(tmp_path, novelty=True)
    (tmp_path / FILE).write_bytes(b"not arrays")
    with pytest.raises(InputError, match=re.escape(FILE)):
        ThyroidModel("thyroid", tmp_path, form=engine.F32).load()


def test_a_network_without_the_features_of_its_reference_is_not_served(tmp_path, monkeypatch):
    toy_locator.build(tmp_path, novelty=True)
    plain = engine.OpenVINOEngine.predict
    monkeypatch.setattr(engine.OpenVINOEngine, "predict", lambda self, pixels: plain(self, pixels)[:2])
    with pytest.raises(InputError, match="features"):
        ThyroidModel("thyroid", tmp_path, form=engine.F32).load()


def sample(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, {"version": "1"} | labels) or 0.0


def test_metrics_count_distances_and_unlike_images(served):
    names = ("thyroid_novelty_distance_count", "thyroid_unlike_total")
    before = [sample(name) for name in names]
    inside = sample("thyroid_novelty_distance_bucket", le="1.0")
    ask(served, *[instance(pixels, roi=list(LARGE), patient="Maria") for pixels in (FRAME, NOISE, RED)])
    assert [sample(name) - was for name, was in zip(names, before, strict=True)] == [3, 2]
    assert sample("thyroid_novelty_distance_bucket", le="1.0") - inside == 1
    labels = {name for metric in REGISTRY.collect() if "thyroid_n" in metric.name for name in metric.samples[0].labels}
    assert labels <= {"version", "le"}


def test_every_decision_of_predict_and_explain_is_logged_once(tmp_path):
    model, log = logged(tmp_path)
    asyncio.run(model({"instances": [instance(FRAME), instance(NOISE, roi=list(LARGE))]}))
    asyncio.run(model({"instances": [instance(FRAME)]}, None, InferenceVerb.EXPLAIN))
    infer(model, FRAME[None])
    assert len(log.lines) == 4
    assert {(version, form) for version, form, _ in log.lines} == {(1, engine.F32)}
    unlike = log.lines[1][2]
    assert unlike.decision["reasons"] == ["unlike_training"]
    assert unlike.distance > 1
    assert unlike.features is None, "nobody asked for them"
    assert all(image.prepared.size == (320, 240) for _, _, image in log.lines)
    encoded = log.lines[0][2].instance.image
    assert log.lines[0][2].prepared.sha256 == hashlib.sha256(encoded).hexdigest()
    assert log.lines[0][2].prepared.sha256 == log.lines[2][2].prepared.sha256
    whole = hashlib.sha256(str(FRAME.shape).encode() + FRAME.tobytes()).hexdigest()
    assert log.lines[3][2].prepared.sha256 == whole


def test_the_line_of_the_log_is_what_was_answered(tmp_path):
    folder = toy_locator.build(tmp_path / "artefact", locator=toy_locator.record(), novelty=True)
    log = DecisionLog([Folder(tmp_path / "log")], b"a secret of 16 or more", "here")
    model = ThyroidModel("thyroid", folder, form=engine.F32, log=log)
    model.load()
    told = ask(model, instance(FRAME, patient="7"), instance(NOISE, roi=list(LARGE)))["predictions"]
    log.close()
    (file,) = (tmp_path / "log").iterdir()
    lines = [Decision.parse(json.loads(line), file) for line in file.read_text().splitlines()]
    for line, answer in zip(lines, told, strict=True):
        assert line.decision == answer["decision"]
        assert line.reasons == answer.get("reasons", [])
        assert line.novelty == answer["novelty"]
        assert line.distance == answer["novelty_distance"]
        assert line.box == answer["crop"]["box"]
        assert line.source == answer["crop"]["source"]
        assert (line.width, line.height) == (320, 240)


def test_boxes_alone_the_self_test_and_refused_requests_are_not_logged(tmp_path):
    model, log = logged(tmp_path)
    locate(model, instance(FRAME))
    assert asyncio.run(model.self_test())
    asyncio.run(model.score(Instance("image", FRAME)))
    with pytest.raises(RequestError):
        ask(model, instance(FRAME), instance(FRAME, roi=[0, 0, 9999, 9999]))
    assert log.lines == []


def test_the_log_gets_projected_features_if_it_asks_for_them(tmp_path):
    model, log = logged(tmp_path, features=True)
    one(model, FRAME)
    features = log.lines[0][2].features
    assert features.dtype == np.float32
    assert features.shape == (model.artefact.record.novelty.components,)
    assert np.isfinite(features).all()


def test_a_small_image_and_a_dicom_file_have_their_size_and_hash(tmp_path):
    model, log = logged(tmp_path)
    frames = dicoms.cine(2)
    small, file = (tmp_path / "reference.jpg").read_bytes(), dicoms.write(frames)
    for data in (small, file):
        asyncio.run(model(data))
    assert [image.prepared.size for _, _, image in log.lines] == [(80, 80), frames.shape[2:0:-1]]
    hashes = [image.prepared.sha256 for _, _, image in log.lines]
    assert hashes == [hashlib.sha256(data).hexdigest() for data in (small, file)]


def test_without_a_log_nothing_is_hashed(served, monkeypatch):
    monkeypatch.setattr(preprocessing, "hashlib", None)
    one(served, FRAME)
    one(served, FRAME, roi=list(LARGE))
