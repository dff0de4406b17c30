"""The endpoint tells descriptors and TI-RADS points, each with a heat map, and says where they contradict it."""

import asyncio
import base64
import io
import json
import re
from typing import Any

import numpy as np
import pytest
from kserve import InferInput, InferRequest
from kserve.model import InferenceVerb
from PIL import Image
from prometheus_client import REGISTRY

from tests.serve.test_locate import FRAME, LARGE, ask, instance, load, one
from tests.support import toy_descriptors, toy_locator
from tests.support.serving import INFER, PREDICT, Server, check_schema, encoded
from thyroid import tirads
from thyroid.errors import InputError
from thyroid.model import engine, explain
from thyroid.model.descriptors.head import FILE, Head
from thyroid.serve import limits, schemas
from thyroid.serve.descriptors import maps
from thyroid.serve.model import ThyroidModel
from thyroid.serve.payload import Instance

LIGHT = toy_locator.frame((LARGE,))
DARK = np.full_like(FRAME, 60)
FINDINGS = (("composition", "solid"), ("margin", "lobulated"), ("foci", "rim"), ("foci", "punctate"))
SEEN = {
    "composition": ["cystic", "solid"],
    "margin": ["smooth", "lobulated"],
    "foci": ["rim", "punctate"],
}


def head(weights: Any = (40.0, -40.0, 40.0, -40.0), middle: float = 0.3, **tirads: Any) -> Head:
    """A head whose findings depend on the brightness of the crop: quite certain off the middle."""
    changes = {"seen": SEEN, "tirads": toy_descriptors.TIRADS | tirads}
    made = toy_descriptors.head(toy_locator.FEATURES, FINDINGS, **changes)
    weight = np.array(weights, np.float32)
    columns = np.repeat(weight[None] / toy_locator.FEATURES, toy_locator.FEATURES, axis=0)
    return Head(made.record, columns, -middle * weight)


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> ThyroidModel:
    folder = tmp_path_factory.mktemp("artefact")
    return load(folder, locator=toy_locator.record(), novelty=True, head=head())


def brightness(model: ThyroidModel, pixels: np.ndarray) -> np.ndarray:
    """The features of a picture that is cut at LARGE."""
    prepared = model.preprocessing.prepare(Instance("image", pixels, LARGE))
    return model.engine_.predict(prepared.pixels[None])[3]


def test_an_answer_has_every_finding_with_its_probability_and_threshold(served):
    told = one(served, LIGHT, roi=list(LARGE))["descriptors"]
    probability = served.descriptors.probabilities(brightness(served, LIGHT))[0]
    assert [(finding["descriptor"], finding["value"]) for finding in told["findings"]] == list(FINDINGS)
    assert [finding["probability"] for finding in told["findings"]] == pytest.approx(probability.tolist(), abs=1e-5)
    for finding in told["findings"]:
        assert finding["threshold"] == 0.5
        assert finding["present"] == (finding["probability"] >= 0.5)
        assert finding["uncertain"] == (0.3 <= finding["probability"] < 0.7)
        assert "heat_map" not in finding


def test_what_is_possible_is_told_and_what_was_never_seen_is_listed(served):
    light = one(served, LIGHT, roi=list(LARGE))
    assert light["descriptors"]["told"] == {"composition": ["solid"], "margin": ["smooth"], "foci": ["rim"]}
    assert light["descriptors"]["assumed_absent"] == {
        "composition": ["spongiform", "mixed"],
        "margin": ["ill_defined", "extrathyroidal"],
        "foci": ["comet_tail", "macro"],
    }
    assert light["tirads"]["points"] == [2 + 0 + 0 + 0 + 2, 2 + 3 + 3 + 0 + 2], "echogenicity and shape are unknown"
    assert light["tirads"]["levels"] == ["TR4", "TR5"]


def test_what_cannot_be_told_is_absent(tmp_path):
    """Kinds of foci are told from their threshold on."""
    unsure = load(tmp_path, head=head(weights=(0, 0, 0, 1e-3)))
    told = one(unsure, DARK)
    assert told["descriptors"]["told"] == {"foci": ["rim"]}
    assert all(finding["uncertain"] for finding in told["descriptors"]["findings"])


def test_no_kind_of_foci_is_none(tmp_path):
    none = load(tmp_path, head=head(weights=(40, 40, -40, -40), middle=0.2))
    assert one(none, LIGHT, roi=list(LARGE))["descriptors"]["told"]["foci"] == ["none"]


def test_a_model_that_saw_no_kind_of_foci_does_not_tell_that_there_are_none(tmp_path):
    made = toy_descriptors.head(toy_locator.FEATURES, FINDINGS[:2], seen=SEEN | {"foci": []})
    told = one(load(tmp_path, head=made), LIGHT)["descriptors"]
    assert "foci" not in told["told"]
    assert told["assumed_absent"]["foci"] == list(tirads.kinds("foci"))


@pytest.mark.parametrize("doubts", [False, True])
@pytest.mark.parametrize(("point", "decision"), [(1e-6, "malignant"), (1 - 1e-6, "benign")])
def test_a_contradiction_decides_only_where_it_was_proven_to(tmp_path, doubts, point, decision):
    """The picture is worth 4 to 10 points, and the cut lies on the other side of the decision."""
    cut = 99 if decision == "malignant" else 2
    model = load(tmp_path, head=head(cut=cut, doubts=doubts), threshold=point)
    told = one(model, LIGHT, roi=list(LARGE))
    assert told["tirads"]["agrees"] is False
    if doubts:
        assert (told["decision"], told["reasons"]) == ("abstain", ["descriptors_disagree"])
        assert told["reason"] == "descriptors_disagree"
    else:
        assert told["decision"] == decision
        assert "reasons" not in told


@pytest.mark.parametrize(("point", "cut"), [(1e-6, 2), (1 - 1e-6, 11), (1e-6, 10), (1 - 1e-6, 5)])
def test_points_on_both_sides_of_the_cut_agree_with_everything(tmp_path, point, cut):
    model = load(tmp_path, head=head(cut=cut, doubts=True), threshold=point)
    told = one(model, LIGHT, roi=list(LARGE))
    assert told["tirads"]["agrees"] is True
    assert told["decision"] != "abstain"


def test_the_band_is_not_compared(tmp_path):
    model = load(tmp_path, head=head(cut=99, doubts=True), band=[0.0, 1.0])
    told = one(model, LIGHT, roi=list(LARGE))
    assert told["reasons"] == ["abstention_band"]
    assert told["tirads"]["agrees"] is None


def test_the_reason_stands_after_those_of_image_and_box(tmp_path):
    cost = toy_locator.automatic_boxes(released=False).to_dict()
    changes = {"automatic_boxes": cost, "threshold": 1e-6, "novelty": True, "locator": toy_locator.record()}
    model = load(tmp_path, head=head(cut=99, doubts=True), **changes)
    noise = np.random.default_rng(0).integers(0, 256, FRAME.shape, np.uint8)
    reasons = one(model, noise, domain="frame")["reasons"]
    assert reasons == ["unlike_training", "box_unsure", "box_not_confirmed", "descriptors_disagree"]


def test_a_patient_has_the_points_of_all_views_that_count(served):
    views = [instance(pixels, patient="p", roi=list(LARGE)) for pixels in (LIGHT, DARK)]
    answer = ask(served, *views)
    light, dark = (view["tirads"]["points"] for view in answer["predictions"])
    (patient,) = answer["patients"]
    counted = [number for number in (0, 1) if number not in [one["image"] for one in patient.get("left_out", [])]]
    wanted = [(light, dark)[number] for number in counted]
    assert patient["tirads"]["points"] == [min(low for low, _ in wanted), max(high for _, high in wanted)]


def test_views_with_different_words_are_named(tmp_path):
    model = load(tmp_path, head=head())
    views = [instance(pixels, patient="p", roi=list(LARGE)) for pixels in (LIGHT, DARK)]
    answer = ask(model, *views, instance(LIGHT, patient="q", roi=list(LARGE)))
    both, alone = answer["patients"]
    told = [view["descriptors"]["told"] for view in answer["predictions"]]
    assert (told[0]["margin"], told[1]["margin"]) == (["smooth"], ["lobulated"])
    assert both["views_differ"] == ["composition", "margin"], "kinds of foci may differ"
    assert both["tirads"]["points"] == [min(4, 0 + 2 + 3), max(10, 0 + 3 + 3 + 2 + 3)]
    assert "views_differ" not in alone
    assert alone["tirads"] == answer["predictions"][2]["tirads"]


def test_a_contradiction_of_a_patient_is_one_of_the_mean(tmp_path):
    model = load(tmp_path, head=head(cut=99, doubts=True), threshold=1e-6)
    answer = ask(model, *[instance(pixels, patient="p", roi=list(LARGE)) for pixels in (LIGHT, DARK)])
    (patient,) = answer["patients"]
    assert "left_out" not in patient, "it is no doubt of a view"
    assert (patient["decision"], patient["reasons"]) == ("abstain", ["descriptors_disagree"])


def test_every_finding_is_explained_by_a_heat_map_of_its_own(served):
    body = {"instances": [instance(LIGHT, roi=list(LARGE))]}
    answer, _ = asyncio.run(served(body, None, InferenceVerb.EXPLAIN))
    check_schema(schemas.ExplainAnswer, answer)
    explanation = answer["explanations"][0]
    prepared = served.preprocessing.prepare(Instance("image", LIGHT, LARGE))
    *_, found = (output[0] for output in served.engine_.predict(prepared.pixels[None]))
    for place, finding in enumerate(explanation["descriptors"]["findings"]):
        heat, evidence = finding["heat_map"], found[..., place]
        logit = np.log(finding["probability"] / (1 - finding["probability"]))
        assert evidence.mean() + served.descriptors.bias[place] == pytest.approx(logit, abs=1e-4)
        shown, positive = np.array(heat["map"]), np.maximum(evidence, 0)
        np.testing.assert_allclose(shown, positive / max(positive.max(), 1e-12), atol=1e-4)
        layer = Image.open(io.BytesIO(base64.b64decode(heat["layer_png"]["b64"])))
        assert (layer.size, layer.mode) == ((explanation["heat_map"]["size"],) * 2, "RGBA")
        assert (heat["share_inside_roi"] is None) == (positive.max() == 0)
    first, second, *_ = (finding["heat_map"]["map"] for finding in explanation["descriptors"]["findings"])
    assert np.max(first) == 1
    assert np.max(second) == 0, "nothing speaks for it"


def test_heat_maps_of_findings_are_small_whatever_the_network_sees():
    evidence = np.random.default_rng(0).normal(0, 1, (38, 38)).astype(np.float32)
    drawn = maps.finding(evidence, 600, (150, 150, 300, 300))
    assert Image.open(io.BytesIO(base64.b64decode(drawn["layer_png"]["b64"]))).size == (maps.LAYER, maps.LAYER)
    assert drawn["share_inside_roi"] == explain.share_inside(explain.heat(evidence, 600), (150, 150, 300, 300))
    most = limits.MAX_INSTANCES * sum(len(tirads.kinds(name)) for name in tirads.DESCRIPTORS)
    assert len(json.dumps(drawn)) * most < 100e6, "bytes of an answer"


def infer(model: ThyroidModel, pixels: np.ndarray) -> Any:
    image = InferInput("image", list(pixels.shape), "UINT8")
    image.set_data_from_numpy(pixels, binary_data=True)
    answer, _ = asyncio.run(model(InferRequest("thyroid", [image])))
    return answer


def test_v2_has_probabilities_and_points(served):
    types = {output["name"]: output for output in served.get_output_types()}
    assert list(types)[-2:] == ["descriptors", "tirads_points"]
    assert types["descriptors"] == {"name": "descriptors", "datatype": "FP32", "shape": [-1, len(FINDINGS)]}
    answer = infer(served, np.stack([LIGHT, DARK]))
    outputs = {output.name: output for output in answer.outputs}
    assert list(outputs) == list(types)
    assert outputs["descriptors"].parameters["findings"] == ",".join(map(".".join, FINDINGS))
    plain = ask(served, instance(LIGHT), instance(DARK))["predictions"]
    told = [[finding["probability"] for finding in one["descriptors"]["findings"]] for one in plain]
    np.testing.assert_allclose(outputs["descriptors"].as_numpy(), told, atol=1e-6)
    assert outputs["tirads_points"].as_numpy().tolist() == [one["tirads"]["points"] for one in plain]


def test_v2_of_a_model_without_locator_and_novelty_has_reasons_too(tmp_path):
    model = load(tmp_path, head=head(cut=99, doubts=True), threshold=1e-6)
    outputs = {output.name: output.as_numpy() for output in infer(model, LIGHT[None]).outputs}
    assert list(outputs) == ["probability", "decision", "reasons", "descriptors", "tirads_points"]
    assert outputs["reasons"].tolist() == ["descriptors_disagree"]


def test_features_that_are_not_finite_tell_nothing(served, monkeypatch):
    plain = served.engine_.answer

    async def broken(pixels):
        probability, evidence, pooled, features, shown = await plain(pixels)
        features[0] = np.nan
        return probability, evidence, pooled, features, np.full_like(shown, np.nan)

    monkeypatch.setattr(served.engine_, "answer", broken)
    body = {"instances": [instance(LIGHT, roi=list(LARGE), patient="p")]}
    answer, _ = asyncio.run(served(body, None, InferenceVerb.EXPLAIN))
    check_schema(schemas.ExplainAnswer, answer)
    assert not {"descriptors", "tirads", "views_differ"} & (set(answer["explanations"][0]) | set(answer["patients"][0]))
    json.dumps(answer, allow_nan=False)
    outputs = {output.name: output.as_numpy() for output in infer(served, LIGHT[None]).outputs}
    assert outputs["descriptors"].tolist() == [[-1.0] * len(FINDINGS)]
    assert outputs["tirads_points"].tolist() == [[-1, -1]]


def withheld() -> dict[str, Any]:
    finding = toy_descriptors.finding("margin", "lobulated", given=False, why="auroc", detail="too low")
    return toy_descriptors.record(toy_locator.FEATURES, [finding], tirads=None).to_dict()


@pytest.mark.parametrize("known", [{}, {"descriptors": withheld()}], ids=["older", "all withheld"])
def test_a_model_that_tells_none_answers_as_it_did(tmp_path, known):
    model = load(tmp_path, **known)
    answer = ask(model, instance(LIGHT, patient="p"))
    assert not {"descriptors", "tirads", "reasons"} & set(answer["predictions"][0])
    assert not {"tirads", "views_differ"} & set(answer["patients"][0])
    assert [output["name"] for output in model.get_output_types()] == ["probability", "decision"]
    assert model.describe().get("descriptors") == known.get("descriptors"), "its facts say why"


def test_a_head_without_a_comparison_has_points_that_agree_with_nothing(tmp_path):
    made = toy_descriptors.head(toy_locator.FEATURES, FINDINGS, tirads=None)
    told = one(load(tmp_path, head=made), LIGHT)
    assert told["tirads"]["agrees"] is None


@pytest.mark.parametrize("kept", [3, 4])
def test_a_network_without_what_its_descriptors_need_is_not_served(tmp_path, monkeypatch, kept):
    toy_locator.build(tmp_path, head=head())
    plain = engine.OpenVINOEngine.predict
    monkeypatch.setattr(engine.OpenVINOEngine, "predict", lambda self, pixels: plain(self, pixels)[:kept])
    with pytest.raises(InputError, match="descriptors"):
        ThyroidModel("thyroid", tmp_path, form=engine.F32).load()


def test_a_head_of_other_findings_than_the_network_is_not_served(tmp_path):
    toy_locator.build(tmp_path, head=head())
    few = toy_descriptors.head(toy_locator.FEATURES, FINDINGS[:2])
    toy_locator.write_classifier(tmp_path / engine.OPENVINO, few)
    toy_locator.publish(tmp_path)
    with pytest.raises(InputError):
        ThyroidModel("thyroid", tmp_path, form=engine.F32).load()


def test_a_damaged_head_is_named_when_the_model_is_loaded(tmp_path):
    toy_locator.build(tmp_path, head=head())
    (tmp_path / FILE).write_bytes(b"not arrays")
    with pytest.raises(InputError, match=re.escape(FILE)):
        ThyroidModel("thyroid", tmp_path, form=engine.F32).load()


def test_contradictions_are_counted(tmp_path):
    def counted() -> float:
        return REGISTRY.get_sample_value("thyroid_descriptors_disagree_total", {"version": "1"}) or 0.0

    model = load(tmp_path, head=head(cut=99), threshold=1e-6)
    before = counted()
    ask(model, instance(LIGHT), instance(DARK))
    assert counted() - before == 2


def test_a_server_tells_them_by_both_protocols(tmp_path):
    folder = toy_locator.build(tmp_path / "artefact", head=head())
    server = Server(tmp_path / "log", "--model-dir", str(folder)).wait()
    try:
        image = encoded(folder / "reference.jpg")
        status, answer = server.ask(PREDICT, {"instances": [{"image": image}]})
        assert status == 200
        check_schema(schemas.PredictAnswer, answer)
        tensor = {"name": "image", "shape": [1], "datatype": "BYTES", "data": [image["b64"]]}
        status, found = server.ask(INFER, {"inputs": [tensor]})
        assert status == 200
        outputs = {output["name"]: output for output in found["outputs"]}
        told = [finding["probability"] for finding in answer["predictions"][0]["descriptors"]["findings"]]
        assert outputs["descriptors"]["data"] == pytest.approx(told, abs=1e-6)
        assert outputs["descriptors"]["parameters"] == {"findings": ",".join(map(".".join, FINDINGS))}
        status, described = server.ask("/v2/models/thyroid")
        assert [output["name"] for output in described["outputs"]][-2:] == ["descriptors", "tirads_points"]
        facts: dict[str, Any] = server.ask("/v1/models/thyroid/facts")[1]
        assert [one["value"] for one in facts["descriptors"]["findings"]] == [value for _, value in FINDINGS]
    finally:
        server.stop()
