"""The endpoint finds the nodule by itself: boxes, crops, decisions, patients, and what cannot be answered."""

import asyncio
import base64
import io
import json
import re
import threading
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.support import dicoms, toy_locator
from tests.support.serving import EXPLAIN, INFER, LOCATE, PREDICT, Server, check_schema, errors_in
from thyroid import RESEARCH_USE_ONLY
from thyroid.deploy import proof
from thyroid.errors import InputError
from thyroid.imaging import dicom_guard, images
from thyroid.model import engine, locator
from thyroid.serve import limits, openapi, preprocessing, schemas
from thyroid.serve.decisions.log import DecisionLog
from thyroid.serve.limits import RequestError
from thyroid.serve.model import ThyroidModel

LARGE, SMALL = (180, 60, 90, 70), (40, 140, 50, 44)
FRAME = toy_locator.frame((LARGE,))


def png(pixels: np.ndarray) -> dict[str, str]:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return {"b64": base64.b64encode(buffer.getvalue()).decode()}


def instance(pixels: np.ndarray, **more: Any) -> dict[str, Any]:
    return {"image": png(pixels)} | more


def load(folder: Path, **changes: Any) -> ThyroidModel:
    model = ThyroidModel("thyroid", toy_locator.build(folder, **changes), form=engine.F32)
    model.load()
    return model


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> ThyroidModel:
    return load(tmp_path_factory.mktemp("artefact"), locator=toy_locator.record())


@pytest.fixture(scope="module")
def before(tmp_path_factory) -> ThyroidModel:
    """A model whose artefact has no locator."""
    return load(tmp_path_factory.mktemp("artefact"))


def ask(model: ThyroidModel, *instances: dict[str, Any]) -> dict[str, Any]:
    answer, _ = asyncio.run(model({"instances": list(instances)}))
    check_schema(schemas.PredictAnswer, answer)
    return answer


def one(model: ThyroidModel, pixels: np.ndarray, **more: Any) -> dict[str, Any]:
    return ask(model, instance(pixels, **more))["predictions"][0]


def locate(model: ThyroidModel, *instances: dict[str, Any]) -> list[dict[str, Any]]:
    answer, _ = asyncio.run(model.locate({"instances": list(instances)}))
    check_schema(schemas.LocateAnswer, answer)
    return answer["boxes"]


def test_a_box_is_not_logged_and_its_image_not_hashed(tmp_path, monkeypatch):
    folder = toy_locator.build(tmp_path, locator=toy_locator.record())
    model = ThyroidModel("thyroid", folder, form=engine.F32, log=DecisionLog([], b"a secret for the tests"))
    model.load()
    hashed: list[int] = []
    monkeypatch.setattr(preprocessing, "_sha256", lambda image: hashed.append(len(image)) or "ab" * 32)
    locate(model, instance(FRAME), instance(FRAME, domain="crop"))
    assert not hashed
    ask(model, instance(FRAME))
    assert len(hashed) == 1


@pytest.mark.parametrize("nodule", [LARGE, (30, 90, 80, 80), (200, 120, 90, 80)])
def test_the_box_follows_the_nodule(served, nodule):
    crop = one(served, toy_locator.frame((nodule,)))["crop"]
    assert crop["source"] == "auto"
    assert locator.iou(tuple(crop["box"]), nodule) > 0.3
    x, y, width, height = crop["box"]
    assert nodule[0] < x + width / 2 < nodule[0] + nodule[2]
    assert nodule[1] < y + height / 2 < nodule[1] + nodule[3]
    assert crop["probability"] > toy_locator.LIMIT
    assert crop["unsure"] is False
    assert crop["margin"] == 0.5
    assert "note" not in crop


def test_the_crop_is_that_of_the_same_box_as_roi(served):
    """Down to the last bit: the same scan area, margin, and JPEG round trip."""
    for seed in range(3):
        pixels = toy_locator.frame((LARGE,), seed=seed)
        auto = one(served, pixels)
        given = one(served, pixels, roi=auto["crop"]["box"])
        assert auto["probability"] == given["probability"]
        assert auto["crop"]["square"] == given["crop"]["square"]
        assert given["crop"] == {
            "domain": "cropped",
            "source": "given",
            "box": auto["crop"]["box"],
            "margin": 0.5,
            "square": auto["crop"]["square"],
        }
        other = one(served, pixels, roi=[10, 40, 60, 60])
        assert other["probability"] != given["probability"]


def test_several_nodules_are_listed_and_the_judged_one_is_named(served):
    crop = one(served, toy_locator.frame((LARGE, SMALL)))["crop"]
    boxes = [tuple(proposal["box"]) for proposal in crop["proposals"]]
    assert 2 <= len(boxes) <= locator.MOST
    assert crop["box"] == list(boxes[0])
    assert crop["probability"] == crop["proposals"][0]["probability"]
    for nodule in (LARGE, SMALL):
        assert max(locator.iou(box, nodule) for box in boxes) > 0.2
    falling = [proposal["probability"] for proposal in crop["proposals"]]
    assert falling == sorted(falling, reverse=True)


def test_an_unsure_box_abstains_and_is_answered_for(served):
    told = one(served, toy_locator.frame())
    assert told["decision"] == "abstain"
    assert told["reason"] == "box_unsure"
    assert told["reasons"] == ["box_unsure"]
    assert told["crop"]["unsure"] is True
    assert len(told["crop"]["box"]) == 4
    assert sum(told["probability"].values()) == pytest.approx(1)
    assert one(served, FRAME)["decision"] in ("benign", "malignant")


def test_reasons_have_an_order(tmp_path):
    changes = {"automatic_boxes": toy_locator.automatic_boxes(released=False).to_dict(), "band": [0.0, 1.0]}
    model = load(tmp_path, locator=toy_locator.record(), **changes)
    assert one(model, toy_locator.frame())["reasons"] == ["box_unsure", "box_not_confirmed", "abstention_band"]
    assert one(model, FRAME)["reasons"] == ["box_not_confirmed", "abstention_band"]
    given = one(model, FRAME, roi=list(LARGE))
    assert (given["reason"], given["reasons"]) == ("abstention_band", ["abstention_band"])


def test_a_model_that_is_not_released_for_boxes_decides_on_given_ones_only(tmp_path):
    changes = {"automatic_boxes": toy_locator.automatic_boxes(released=False).to_dict()}
    model = load(tmp_path, locator=toy_locator.record(), **changes)
    told = one(model, FRAME)
    assert (told["decision"], told["reasons"]) == ("abstain", ["box_not_confirmed"])
    assert one(model, FRAME, roi=told["crop"]["box"])["decision"] in ("benign", "malignant")
    assert one(model, FRAME, domain="crop")["decision"] in ("benign", "malignant")


def test_boxes_that_nobody_measured_are_not_decided_on(tmp_path):
    model = load(tmp_path, locator=toy_locator.record(), automatic_boxes=None)
    assert one(model, FRAME)["reasons"] == ["box_not_confirmed"]


def test_a_crop_is_told_from_a_frame(served):
    """By the rule of the locator's record, and by `domain`, which wins."""
    crop = toy_locator.frame(((10, 10, 60, 60),), (90, 90))
    told = one(served, crop)["crop"]
    assert (told["source"], told["box"]) == ("whole", [0, 0, 90, 90])
    assert told["note"]
    assert not {"probability", "unsure", "proposals"} & set(told)
    assert one(served, crop, domain="frame")["crop"]["source"] == "auto"
    whole = one(served, FRAME, domain="crop")
    assert (whole["crop"]["source"], whole["crop"]["box"]) == ("whole", [0, 0, 320, 240])
    assert "locate" not in whole["milliseconds"]
    assert one(served, FRAME, domain="frame")["crop"]["source"] == "auto"
    assert one(served, FRAME, domain="crop", roi=list(LARGE))["crop"]["source"] == "given"


def test_an_artefact_of_before_answers_as_it_did(before):
    told = one(before, FRAME)
    assert (told["crop"]["source"], told["crop"]["box"]) == ("whole", [0, 0, 320, 240])
    assert "no locator" in told["crop"]["note"]
    assert told["decision"] in ("benign", "malignant")
    assert one(before, FRAME, domain="frame")["crop"]["source"] == "whole"
    assert [one["name"] for one in before.get_input_types()] == ["image"]
    assert [one["name"] for one in before.get_output_types()] == ["probability", "decision"]
    with pytest.raises(RequestError, match="roi") as caught:
        asyncio.run(before.locate({"instances": [instance(FRAME)]}))
    assert (caught.value.status, caught.value.code) == (404, "not_found")


def test_a_locator_of_a_model_of_full_frames_is_not_run(tmp_path):
    model = load(tmp_path, locator=toy_locator.record(), serving_domain="normal")
    crop = one(model, FRAME)["crop"]
    assert "source" not in crop
    assert crop["scan_area_found"] is True


def test_boxes_alone(served):
    boxes = locate(served, instance(FRAME), instance(FRAME, roi=list(LARGE)), instance(FRAME, domain="crop"))
    assert [box["source"] for box in boxes] == ["auto", "given", "whole"]
    assert boxes[0]["box"] == one(served, FRAME)["crop"]["box"]
    assert boxes[0]["proposals"][0] == {"box": boxes[0]["box"], "probability": boxes[0]["probability"]}
    assert boxes[1]["box"] == list(LARGE)
    assert boxes[2]["box"] == [0, 0, 320, 240]
    assert all(box["notice"] == RESEARCH_USE_ONLY for box in boxes)


def test_views_with_an_unsure_box_do_not_count(served):
    sure, unsure = instance(FRAME, patient="p"), instance(toy_locator.frame(), patient="p")
    answer = ask(served, unsure, sure, instance(FRAME, patient="q"))
    first, second = answer["patients"]
    assert first["left_out"] == [{"image": 0, "reason": "box_unsure"}]
    assert first["images"] == 2
    assert first["probability"] == pytest.approx(answer["predictions"][1]["probability"])
    assert first["decision"] == answer["predictions"][1]["decision"]
    assert "left_out" not in second


def test_a_patient_without_a_view_that_counts_abstains(served):
    answer = ask(served, *[instance(toy_locator.frame(seed=seed), patient="p") for seed in (1, 2)])
    patient = answer["patients"][0]
    assert (patient["decision"], patient["reason"]) == ("abstain", "box_unsure")
    assert [one["image"] for one in patient["left_out"]] == [0, 1]
    mean = np.mean([one["malignant"] for one in answer["predictions"]])
    assert patient["malignant"] == pytest.approx(mean), "for information"


def test_given_boxes_alone_count_where_automatic_ones_are_not_released(tmp_path):
    changes = {"automatic_boxes": toy_locator.automatic_boxes(released=False).to_dict()}
    model = load(tmp_path, locator=toy_locator.record(), **changes)
    views = [instance(FRAME, patient="p"), instance(FRAME, patient="p", roi=list(LARGE)), instance(FRAME, patient="q")]
    answer = ask(model, *views)
    first, second = answer["patients"]
    assert first["left_out"] == [{"image": 0, "reason": "box_not_confirmed"}]
    assert first["probability"] == pytest.approx(answer["predictions"][1]["probability"])
    assert (second["decision"], second["reasons"]) == ("abstain", ["box_not_confirmed"])
    assert second["left_out"] == [{"image": 2, "reason": "box_not_confirmed"}]


@pytest.mark.parametrize(
    ("first", "second", "disagree"),
    [
        (0.5 - 1.1 * toy_locator.ECE, 0.5 + 1.1 * toy_locator.ECE, True),
        (0.5 - 0.9 * toy_locator.ECE, 0.5 + 0.9 * toy_locator.ECE, False),
        (0.6, 0.99, False),
    ],
    ids=["apart", "intervals overlap", "same side"],
)
def test_views_that_disagree_by_more_than_their_intervals(served, first, second, disagree):
    rows = np.array([[1 - first, first], [1 - second, second]])
    assert served.answers.disagree(rows) is disagree


def test_a_patient_whose_views_disagree_abstains(served, monkeypatch):
    values = (0.05, 0.97)
    monkeypatch.setattr(served, "_fused", lambda own, columns: np.array([1 - columns["p"], columns["p"]]))
    monkeypatch.setattr(served, "_columns", lambda instances: [({"p": value}, []) for value in values])
    answer = ask(served, *[instance(FRAME, roi=list(LARGE), patient="p")] * 2)
    assert [one["decision"] for one in answer["predictions"]] == ["benign", "malignant"]
    patient = answer["patients"][0]
    assert (patient["decision"], patient["reasons"]) == ("abstain", ["views_disagree"])
    assert patient["malignant"] == pytest.approx(0.51)


def test_the_heat_map_is_of_the_automatic_box(served):
    from kserve.model import InferenceVerb

    answer, _ = asyncio.run(served({"instances": [instance(FRAME)]}, None, InferenceVerb.EXPLAIN))
    check_schema(schemas.ExplainAnswer, answer)
    told = answer["explanations"][0]
    given, _ = asyncio.run(
        served({"instances": [instance(FRAME, roi=told["crop"]["box"])]}, None, InferenceVerb.EXPLAIN)
    )
    assert told["heat_map"] == given["explanations"][0]["heat_map"]
    assert told["heat_map"]["roi"] is not None


SLIVER = toy_locator.frame((), (400, 16))


@pytest.mark.parametrize(
    "pixels",
    [
        pytest.param(toy_locator.frame(((8, 8, 12, 12),), (24, 20)), id="smaller than the input"),
        pytest.param(np.zeros((120, 160, 3), np.uint8), id="no tissue"),
        pytest.param(np.full((120, 160, 3), 255, np.uint8), id="white"),
        pytest.param(SLIVER, id="sliver"),
        pytest.param(np.ascontiguousarray(SLIVER.transpose(1, 0, 2)), id="upright sliver"),
        pytest.param(np.pad(toy_locator.frame((), (60, 50)), ((0, 500), (0, 500), (0, 0))), id="tissue in a corner"),
    ],
)
def test_odd_frames_get_a_box_inside_of_them(served, pixels):
    for domain in ({"domain": "frame"}, {}):
        told = one(served, pixels, **domain)
        for x, y, width, height in [told["crop"]["box"], *(p["box"] for p in told["crop"].get("proposals", ()))]:
            assert 0 <= x < x + width <= pixels.shape[1]
            assert 0 <= y < y + height <= pixels.shape[0]
        assert np.isfinite(list(told["probability"].values())).all()


def test_a_frame_without_tissue_is_unsure(served):
    told = one(served, np.zeros((120, 160, 3), np.uint8))
    assert told["crop"]["scan_area_found"] is False
    assert told["reasons"] == ["box_unsure"]


@pytest.mark.parametrize("domain", ["normal", 1, ["frame"], {}, ""])
def test_a_bad_domain_names_the_field(served, domain):
    with pytest.raises(RequestError, match=re.escape("instances[0].domain")):
        one(served, FRAME, domain=domain)


def test_errors_of_an_image_are_those_of_before(served):
    with pytest.raises(RequestError, match=re.escape("instances[0].image.b64")):
        ask(served, {"image": {"b64": base64.b64encode(b"no image").decode()}})
    with pytest.raises(RequestError, match=re.escape("instances[0].frame")):
        one(served, FRAME, frame=2)


def test_the_deadline_holds_for_the_locator(served, monkeypatch):
    async def stuck(_):
        await asyncio.sleep(10)

    monkeypatch.setattr(limits, "DEADLINE", 0.3)
    monkeypatch.setattr(served.locator, "answer", stuck)
    for asked in (served, served.locate):
        with pytest.raises(RequestError) as caught:
            asyncio.run(asked({"instances": [instance(FRAME)]}))
        assert (caught.value.status, caught.value.code) == (504, "deadline")
        assert served.admission.inside == served.in_flight == 0
        assert served._locating._value == max(2, engine.cores.available())


def test_few_frames_are_decoded_at_once(tmp_path, monkeypatch):
    """Sixty-four decoded frames that wait for the locator would take gigabytes."""
    model = load(tmp_path, locator=toy_locator.record())
    held, counts = 0, []
    steps, lock = type(model.preprocessing), threading.Lock()
    look, finish, answer = steps.look, steps.finish, model.locator.answer

    def looked(*given):
        nonlocal held
        with lock:
            held += 1
            counts.append(held)
        return look(*given)

    def finished(*given):
        nonlocal held
        try:
            return finish(*given)
        finally:
            with lock:
                held -= 1

    async def slow(seen):
        await asyncio.sleep(0.01)
        return await answer(seen)

    monkeypatch.setattr(steps, "look", looked)
    monkeypatch.setattr(steps, "finish", finished)
    monkeypatch.setattr(model.locator, "answer", slow)
    ask(model, *[instance(FRAME)] * 12)
    assert 2 <= max(counts) <= max(2, engine.cores.available())


def test_a_dicom_file_that_takes_long_blocks_no_other_frame(served, monkeypatch):
    going = threading.Event()

    def stuck(data, frame, end):
        going.wait(20)
        raise TimeoutError

    monkeypatch.setattr(dicom_guard, "read", stuck)
    dicom = {"image": {"b64": base64.b64encode(b"\0" * 128 + b"DICM" + b"\0" * 64).decode()}}

    async def both():
        waiting = [asyncio.ensure_future(served({"instances": [dicom]})) for _ in range(4)]
        await asyncio.sleep(0.1)
        try:
            answer, _ = await asyncio.wait_for(served({"instances": [instance(FRAME)]}), 10)
        finally:
            going.set()
        await asyncio.gather(*waiting, return_exceptions=True)
        return answer["predictions"][0]

    assert asyncio.run(both())["crop"]["source"] == "auto"


def test_a_guessed_crop_is_as_little_confirmed_as_a_box(tmp_path):
    changes = {"automatic_boxes": toy_locator.automatic_boxes(released=False).to_dict()}
    model = load(tmp_path, locator=toy_locator.record(), **changes)
    picture = toy_locator.frame(((10, 10, 30, 30),), (70, 70))
    guessed, told = one(model, picture), one(model, picture, domain="crop")
    assert guessed["crop"]["source"] == told["crop"]["source"] == "whole"
    assert "box_not_confirmed" in guessed["reasons"]
    assert "box_not_confirmed" not in told.get("reasons", [])


def test_one_image_is_decoded_and_its_scan_area_found_once(served, monkeypatch):
    from thyroid.imaging import geometry

    calls = []
    for module, name in ((images, "decode"), (geometry, "scan_area")):
        plain = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, _p=plain, _n=name, **k: calls.append(_n) or _p(*a, **k))
    assert one(served, FRAME)["crop"]["source"] == "auto"
    assert sorted(calls) == ["decode", "scan_area"]


def test_a_given_region_asks_no_locator(served, monkeypatch):
    monkeypatch.setattr(served.locator, "answer", None)
    assert one(served, FRAME, roi=list(LARGE))["crop"]["source"] == "given"
    assert one(served, FRAME, domain="crop")["crop"]["source"] == "whole"


def test_a_deployment_is_proven_by_the_classifiers_answer_alone(tmp_path, monkeypatch):
    """The reference image is a crop, also to a locator that takes every image for a frame."""
    rule = toy_locator.record().crop_rule.to_dict() | {"intercept": -1.0, "side": 0.0}
    model = load(tmp_path, locator=toy_locator.record(crop_rule=rule))
    sent = []

    def endpoint(request: urllib.request.Request, timeout: float) -> io.BytesIO:
        sent.extend(json.loads(request.data)["instances"])
        return io.BytesIO(json.dumps(ask(model, *sent)).encode())

    monkeypatch.setattr(urllib.request, "urlopen", endpoint)
    assert proof.ask("http://endpoint", model.artefact) is None
    bare = ask(model, {"image": sent[0]["image"]})["predictions"][0]
    assert bare["probability"]["M"] != pytest.approx(model.artefact.record.reference["M"], abs=1e-3)


def test_a_damaged_file_of_the_locator_is_named(tmp_path):
    toy_locator.build(tmp_path, locator=toy_locator.record())
    file = tmp_path / "locator" / "model.xml"
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(InputError, match=re.escape(str(file))):
        ThyroidModel("thyroid", tmp_path).load()


def test_the_self_test_covers_the_locator(tmp_path, monkeypatch):
    model = load(tmp_path, locator=toy_locator.record())
    assert asyncio.run(model.self_test())

    async def drifted(pixels):
        heat, distances = model.locator._engine.predict(pixels[None])
        return heat[0] + 0.1, distances[0]

    monkeypatch.setattr(model.locator._engine, "answer", drifted)
    assert asyncio.run(model.self_test()) is False
    assert model.ready is False
    model.retire()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = toy_locator.build(tmp_path_factory.mktemp("artefact"), locator=toy_locator.record())
    log = tmp_path_factory.mktemp("log") / "log"
    running = Server(log, "--model-dir", str(folder)).wait()
    yield running
    assert errors_in(running.stop()) == []
    assert "Maria" not in log.read_text()


def test_a_frame_as_the_body(server):
    status, answer = server.ask(PREDICT, images.encode(FRAME), Content_Type="image/jpeg")
    assert status == 200
    assert answer["predictions"][0]["crop"]["source"] == "auto"


def test_a_dicom_frame_is_located(server):
    clip = {"image": {"b64": base64.b64encode(dicoms.write(dicoms.cine(5))).decode()}, "domain": "frame", "frame": 2}
    status, answer = server.ask(PREDICT, {"instances": [clip]})
    crop = answer["predictions"][0]["crop"]
    assert (status, crop["source"], crop["frame"], crop["frames"]) == (200, "auto", 2, 5)
    box = server.ask(LOCATE, {"instances": [clip]})[1]["boxes"][0]
    assert (box["box"], box["frame"]) == (crop["box"], 2)


def test_the_route_of_boxes(server):
    status, answer = server.ask(LOCATE, {"instances": [instance(FRAME)]})
    assert status == 200
    check_schema(schemas.LocateAnswer, answer)
    assert server.ask(LOCATE, images.encode(FRAME), Content_Type="image/jpeg")[1]["boxes"][0]["source"] == "auto"
    assert server.ask(LOCATE, {"instances": []})[0] == 400
    assert server.ask(LOCATE, b"{")[0] == 400
    assert server.ask(LOCATE, b"x", Content_Type="text/html")[0] == 415
    assert server.ask("/v1/models/other:locate", {"instances": [instance(FRAME)]})[0] == 404
    assert server.ask(LOCATE)[0] in (404, 405)


def v2(**inputs: tuple[str, list[int], list[Any]]) -> dict[str, Any]:
    named = inputs.items()
    return {
        "inputs": [
            {"name": name, "datatype": kind, "shape": shape, "data": data} for name, (kind, shape, data) in named
        ]
    }


def test_v2_says_where_the_crop_comes_from(server):
    frames = [png(FRAME)["b64"], png(toy_locator.frame((SMALL,)))["b64"], png(FRAME)["b64"]]
    body = v2(image=("BYTES", [3], frames), domain=("BYTES", [3], ["", "frame", "crop"]))
    status, answer = server.ask(INFER, body)
    assert status == 200
    check_schema(schemas.InferAnswer, answer)
    assert [one["name"] for one in answer["outputs"]] == [
        "probability",
        "decision",
        "box",
        "box_probability",
        "source",
        "proposals",
        "reasons",
    ]
    outputs = {one["name"]: one for one in answer["outputs"]}
    assert outputs["source"]["data"] == ["auto", "auto", "whole"]
    assert (outputs["box"]["datatype"], outputs["box"]["shape"]) == ("INT32", [3, 4])
    assert outputs["box"]["data"][8:] == [0, 0, 320, 240]
    assert outputs["box_probability"]["data"][2] == -1
    assert outputs["box_probability"]["data"][0] > toy_locator.LIMIT
    crop = server.ask(PREDICT, {"instances": [instance(FRAME)]})[1]["predictions"][0]["crop"]
    assert outputs["box"]["data"][:4] == crop["box"]
    named = body | {"outputs": [{"name": "box"}, {"name": "decision"}]}
    assert [one["name"] for one in server.ask(INFER, named)[1]["outputs"]] == ["box", "decision"]
    status, answer = server.ask(INFER, body | {"outputs": [{"name": "boxes"}]})
    assert (status, answer["code"]) == (400, "invalid_input")
    assert "boxes" in answer["error"]


@pytest.mark.parametrize("domain", [("BYTES", [2], ["frame", "crop"]), ("INT32", [1], [1]), ("BYTES", [1], ["normal"])])
def test_a_bad_domain_in_v2_names_the_input(server, domain):
    status, answer = server.ask(INFER, v2(image=("BYTES", [1], [png(FRAME)["b64"]]), domain=domain))
    assert status == 400
    assert "inputs.domain" in answer["error"]


def test_grpc_has_the_same_outputs(server):
    import kserve

    image = kserve.InferInput("image", [1, *FRAME.shape], "UINT8")
    image.set_data_from_numpy(FRAME[None], binary_data=True)
    domain = kserve.InferInput("domain", [1], "BYTES")
    domain.set_data_from_numpy(np.array([b"frame"], np.object_), binary_data=True)

    async def grpc() -> Any:
        client = kserve.InferenceGRPCClient(f"127.0.0.1:{server.grpc_port}", timeout=60)
        response = await client.infer(kserve.InferRequest("thyroid", [image, domain]))
        await client.close()
        return response

    outputs = {one.name: one for one in asyncio.run(grpc()).outputs}
    crop = server.ask(PREDICT, {"instances": [instance(FRAME)]})[1]["predictions"][0]["crop"]
    assert outputs["box"].as_numpy().tolist() == [crop["box"]]
    assert outputs["box_probability"].as_numpy()[0] == pytest.approx(crop["probability"], abs=1e-6)
    assert outputs["source"].as_numpy().tolist() in (["auto"], [b"auto"])


def test_metadata_and_openapi_name_what_is_new(server):
    described = server.ask("/v2/models/thyroid")[1]
    assert described["inputs"][-1] == {"name": "domain", "datatype": "BYTES", "shape": [-1]}
    assert [one["name"] for one in described["outputs"]][2:] == [
        "box",
        "box_probability",
        "source",
        "proposals",
        "reasons",
    ]
    document = server.ask("/openapi.json")[1]
    assert document == json.loads(json.dumps(openapi.document()))
    assert "/v1/models/{model}:locate" in document["paths"]
    assert server.ask("/v1/models/thyroid/facts")[1]["locator_form"] == engine.F32


def test_metrics_count_sources_and_unsure_boxes(server):
    def value(name: str) -> float:
        found = re.search(rf"^{re.escape(name)} (\S+)$", server.ask("/metrics")[1], re.MULTILINE)
        return float(found[1]) if found else 0.0

    auto, given = (f'thyroid_crops_total{{source="{source}",version="1"}}' for source in ("auto", "given"))
    names = (auto, given, 'thyroid_unsure_boxes_total{version="1"}')
    before = [value(name) for name in names]
    sent = [instance(FRAME, patient="Maria"), instance(FRAME, roi=list(LARGE)), instance(toy_locator.frame())]
    assert server.ask(EXPLAIN, {"instances": sent})[0] == 200
    assert [value(name) - old for name, old in zip(names, before, strict=True)] == [2, 1, 1]
    server.ask(LOCATE, {"instances": sent})
    assert value(auto) == before[0] + 2, "boxes alone are not judged"
    assert value('thyroid_stage_seconds_count{stage="locate"}') > 0
    assert value('thyroid_request_seconds_count{route="v1:locate",status="200"}') > 0


def test_the_token_is_asked_for_boxes_too(tmp_path):
    folder = toy_locator.build(tmp_path / "artefact", locator=toy_locator.record())
    (tmp_path / "token").write_text("secret")
    running = Server(tmp_path / "log", "--model-dir", str(folder), "--token-file", str(tmp_path / "token")).wait()
    body = {"instances": [instance(FRAME)]}
    assert running.ask(LOCATE, body)[0] == 401
    assert running.ask(LOCATE, body, Authorization="Bearer secret")[0] == 200
    running.kill()


def test_the_locators_file_is_where_others_look_for_it():
    assert locator.OPENVINO == "locator/model.xml"
    assert locator.KERAS == "locator/model.keras"
