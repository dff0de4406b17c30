"""The endpoint's answers, in every protocol, from real server processes."""

import asyncio
import base64
import io
import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import jsonschema
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from pydicom.data import get_testdata_file

from tests.conftest import variant
from tests.support import ROOT, dicoms, toy_artefact, validated
from tests.support.serving import EXPLAIN, INFER, PREDICT, Server, check_schema, encoded
from thyroid import RESEARCH_USE_ONLY, serve
from thyroid.data import tables
from thyroid.data.version import DataVersion
from thyroid.errors import InputError
from thyroid.imaging import dicom, geometry, images
from thyroid.model import engine, explain, inputs
from thyroid.model.artefact import MODEL, SUM, Artefact, load_keras
from thyroid.model.network import Network
from thyroid.model.operating_point import OperatingPoint
from thyroid.records.model import ArtefactRecord
from thyroid.registry import validations
from thyroid.registry.registry import Registry
from thyroid.serve import __main__ as command
from thyroid.serve import schemas


@pytest.fixture(scope="module")
def facts(model) -> ArtefactRecord:
    return Artefact.verify(Registry(model).find()).record


@pytest.fixture(scope="module")
def server(model, phantoms, tmp_path_factory):
    running = Server(tmp_path_factory.mktemp("log") / "log", "--registry", str(model), "--form", engine.F32).wait()
    yield running
    log = running.stop()
    assert running.process.returncode in (0, -signal.SIGTERM)
    assert RESEARCH_USE_ONLY in log
    scans = list((phantoms / "scans").iterdir())
    for secret in ("Maria", "KIM", encoded(scans[0])["b64"][:40], *(scan.name for scan in scans)):
        assert secret not in log


@pytest.fixture(scope="module")
def network(model):
    """The champion as Keras runs it."""
    return load_keras(Registry(model).find() / MODEL)


@pytest.fixture(scope="module")
def tested(evaluated, cropped, facts) -> pd.DataFrame:
    """The evaluation's answers to test crops, with the frames and boxes that they come from."""
    table = pd.read_parquet(evaluated / "predictions.parquet")
    mine = table[(table["backbone"] == facts.backbone) & (table["split"] == "test")]
    regions = tables.read(cropped)[1].rename(columns={"crop_path": "file"})
    return mine.merge(regions[["file", "path", "x", "y", "width", "height"]], on="file")


def box(row) -> list[int]:
    return [int(row[column]) for column in ("x", "y", "width", "height")]


def test_health_and_readiness(server):
    assert server.ask("/v2/health/live") == (200, {"live": True})
    assert server.ask("/v1/models/thyroid") == (200, {"name": "thyroid", "ready": True})
    assert server.ask("/v1/models") == (200, {"models": ["thyroid"]})


def test_frame_with_roi_gets_exactly_the_evaluated_probability(server, tested, facts):
    """From the raw frame over HTTP to the digits of predictions.parquet."""
    instances = [{"image": encoded(row["path"]), "roi": box(row)} for _, row in tested.iterrows()]
    status, answer = server.ask(PREDICT, {"instances": instances})
    assert status == 200
    for prediction, (_, row) in zip(answer["predictions"], tested.iterrows(), strict=True):
        assert prediction["probability"]["M"] == pytest.approx(row["probability_M"], abs=1e-4)
        assert prediction["malignant"] == prediction["probability"]["M"]
        thresholds = zip(prediction["probability"].items(), facts.thresholds, strict=True)
        assert prediction["above_threshold"] == [name for (name, value), least in thresholds if value >= least]
        assert prediction["decision"] == row["decision"]
        assert prediction["threshold"] == facts.threshold
        assert prediction["class"] == ("M" if row["decision"] == "malignant" else "B")
        assert ("not_released" in prediction) == (facts.gate.decision == "refused")
        left, top, side = prediction["crop"].pop("square")
        crop = {"domain": "cropped", "source": "given", "box": box(row), "margin": geometry.MARGIN}
        assert prediction["crop"] == crop
        assert left < row["x"]
        assert top < row["y"]
        assert side > max(row["width"], row["height"])
        assert prediction["form"] == engine.F32
        assert prediction["model_version"] == 1
        assert prediction["data_digest"] == facts.data_digest
        assert prediction["notice"] == RESEARCH_USE_ONLY
        assert set(prediction["milliseconds"]) == {"prepare", "engine", "total"}


def test_a_crop_is_taken_as_it_is_and_said_so(server, cropped, tested):
    for content_type in ("image/jpeg", "application/octet-stream"):
        body = (cropped / tested["file"].iloc[0]).read_bytes()
        status, answer = server.ask(PREDICT, body, Content_Type=content_type)
        assert status == 200
        crop = answer["predictions"][0]["crop"]
        assert "roi" in crop["note"]
        assert crop["source"] == "whole"
        assert crop["box"] == [0, 0, *Image.open(io.BytesIO(body)).size]
    sent = server.ask(PREDICT, {"instances": [{"image": encoded(cropped / tested["file"].iloc[0])}]})[1]
    assert sent["predictions"][0]["probability"] == answer["predictions"][0]["probability"]


def test_png_is_answered_like_the_jpeg_it_shows(server, tested):
    row = tested.iloc[0]
    buffer = io.BytesIO()
    Image.open(row["path"]).save(buffer, "PNG")
    b64 = base64.b64encode(buffer.getvalue()).decode()
    prediction = server.ask(PREDICT, {"instances": [{"image": {"b64": b64}, "roi": box(row)}]})[1]["predictions"][0]
    assert prediction["probability"]["M"] == pytest.approx(row["probability_M"], abs=1e-4)


def test_a_dicom_file_is_answered_like_the_picture_it_shows(server, tested):
    """As a body of its own, as base64 and as BYTES; the frame is the middle one, or the one that is asked for."""
    clip = dicoms.write(dicoms.cine(5), dicoms.JPEG_2000, name="KIM^YOUNG HEE", patient="KIM-7")
    roi = [40, 40, 60, 50]

    def shown(frame: int | None) -> float:
        picture = Image.fromarray(dicom.read(clip, frame).pixels)
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        instance = {"image": {"b64": base64.b64encode(buffer.getvalue()).decode()}, "roi": roi}
        return server.ask(PREDICT, {"instances": [instance]})[1]["predictions"][0]["probability"]["M"]

    b64 = {"b64": base64.b64encode(clip).decode()}
    for frame, number in ((None, 3), (1, 1), (5, 5)):
        asked = {"image": b64, "roi": roi} | ({} if frame is None else {"frame": frame})
        status, answer = server.ask(PREDICT, {"instances": [asked]})
        assert status == 200
        prediction = answer["predictions"][0]
        assert prediction["probability"]["M"] == pytest.approx(shown(frame), abs=1e-6)
        assert (prediction["crop"]["frame"], prediction["crop"]["frames"]) == (number, 5)
        assert "KIM" not in json.dumps(answer)
    status, answer = server.ask(PREDICT, clip, Content_Type="application/dicom")
    assert status == 200
    assert answer["predictions"][0]["crop"]["frame"] == 3
    tensors = [
        {"name": "image", "shape": [1], "datatype": "BYTES", "data": [b64["b64"]]},
        {"name": "roi", "shape": [1, 4], "datatype": "INT32", "data": roi},
        {"name": "frame", "shape": [1], "datatype": "INT32", "data": [5]},
    ]
    outputs = {one["name"]: one["data"] for one in server.ask(INFER, {"inputs": tensors})[1]["outputs"]}
    assert outputs["probability"][1] == pytest.approx(shown(5), abs=1e-6)
    assert "KIM" not in server.log.read_text()


@pytest.mark.parametrize(
    ("instance", "told"),
    [
        ({"frame": 6}, ["instances[0].frame:", "6"]),
        ({"frame": 0}, ["instances[0].frame:"]),
        ({"frame": "1"}, ["instances[0].frame:"]),
        ({"image": encoded(get_testdata_file("CT_small.dcm", download=False))}, ["instances[0].image.b64:", "CT"]),
        ({"image": encoded(get_testdata_file("rtplan.dcm", download=False))}, ["instances[0].image.b64:", "RTPLAN"]),
        ({"roi": [100, 100, 100, 100]}, ["instances[0].roi:", "[100, 100, 100, 100]"]),
    ],
)
def test_dicom_that_cannot_be_answered(server, instance, told):
    clip = {"b64": base64.b64encode(dicoms.write(dicoms.cine(5))).decode()}
    status, answer = server.ask(PREDICT, {"instances": [{"image": clip} | instance]})
    assert status == 400
    assert all(name in answer["error"] for name in told)


def test_a_frame_of_a_jpeg_is_refused(server, tested):
    status, answer = server.ask(PREDICT, {"instances": [{"image": encoded(tested["path"].iloc[0]), "frame": 1}]})
    assert (status, answer["error"]) == (400, "instances[0].frame: only a DICOM file has frames")


def test_who_answers_and_its_report(server, model, facts):
    status, told = server.ask("/v1/models/thyroid/facts")
    assert status == 200
    assert told["version"] == facts.version
    assert told["forms"] == facts.to_dict()["forms"]
    assert told["form"] == engine.F32
    assert told["images_per_second"] == {}, "a form that was asked for is not measured"
    assert told["not_released"]
    assert "files" not in told
    assert server.ask("/v1/models/thyroid/report") == (200, (Registry(model).find() / "report.html").read_text())
    for path in ("facts", "report"):
        assert server.ask(f"/v1/models/other/{path}")[0] == 404


def test_who_answers_says_where_it_was_validated(server, model, tmp_path):
    """At once, from a registry's folder and from the folder of a version that KServe mounts."""
    copy = shutil.copytree(model, tmp_path / "registry")
    mounted = shutil.copytree(Registry(copy).find(), tmp_path / "mounted")
    one = Server(tmp_path / "one", "--registry", str(copy), "--form", engine.F32)
    two = Server(tmp_path / "two", "--model-dir", str(mounted), "--form", engine.F32)

    def told(running: Server) -> list[dict] | None:
        return running.ask("/v1/models/thyroid/facts")[1]["validations"]

    try:
        assert [told(one.wait()), told(two.wait())] == [[], []]
        for site in ("A", "B"):
            validations.record(Registry(copy), 1, validated.of(copy, site=site))
            assert told(one) == [entry.to_dict() for entry in validations.read(Registry(copy), 1)]
        shutil.copy(Registry(copy).find() / "validations.json", mounted)
        assert told(two) == told(one)
        (mounted / "validations.json").write_text("{")
        assert told(two) is told(two) is None
        assert two.ask(PREDICT, (mounted / "reference.jpg").read_bytes(), Content_Type="image/jpeg")[0] == 200
    finally:
        logs = one.stop(), two.stop()
    assert [log.count("validations not read") for log in logs] == [0, 1]
    assert "Traceback" not in "".join(logs)


def test_views_of_a_patient_are_aggregated(server, tested, facts):
    rows = [row for _, row in tested.iterrows()][:4]
    names = ["p", "q", "p", None]
    instances = [
        {"image": encoded(row["path"]), "roi": box(row)} | ({} if name is None else {"patient": name})
        for row, name in zip(rows, names, strict=True)
    ]
    patients = server.ask(PREDICT, {"instances": instances})[1]["patients"]
    assert server.ask(EXPLAIN, {"instances": instances})[1]["patients"] == patients
    assert [(one["patient"], one["images"]) for one in patients] == [("p", 2), ("q", 1)]
    mean = (rows[0]["probability_M"] + rows[2]["probability_M"]) / 2
    assert patients[0]["probability"]["M"] == pytest.approx(mean, abs=1e-4)
    assert patients[0]["decision"] == ("malignant" if mean >= facts.threshold else "benign")


def test_explanation_is_the_evaluations_grad_cam(server, tested, facts, network, cropped):
    row = tested.iloc[0]
    status, answer = server.ask(EXPLAIN, {"instances": [{"image": encoded(row["path"]), "roi": box(row)}]})
    assert status == 200
    told = answer["explanations"][0]
    assert told["probability"]["M"] == pytest.approx(row["probability_M"], abs=1e-4)
    size = facts.image_size
    pixels = inputs.decode(pd.DataFrame([{"file": str(cropped / row["file"]), "sha256": row["sha256"]}]), size)
    expected = Network.trace(network).heat_maps(pixels)[0]
    heat = told["heat_map"]
    np.testing.assert_allclose(explain.heat(np.array(heat["map"], np.float32), size), expected, atol=1e-3)
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(heat["overlay_png"]["b64"]))))
    assert np.abs(shown.astype(int) - explain.overlay(images.rgb(pixels[0]), expected)).max() <= 2
    x, y, width, height = heat["roi"]
    assert 0 <= x < x + width <= size
    share = 1 / (1 + 2 * geometry.MARGIN)
    assert max(width, height) / size == pytest.approx(share, abs=0.06), "the box less its margin"
    if heat["share_inside_roi"] is not None:
        assert heat["share_inside_roi"] == pytest.approx(
            explain.share_inside(expected, (x, y, width, height)), abs=0.01
        )


def v2_request(kserve, tested, count: int = 3):
    rows = [row for _, row in tested.iterrows()][:count]
    image = kserve.InferInput("image", [count], "BYTES")
    files = [Path(row["path"]).read_bytes() for row in rows]
    image.set_data_from_numpy(np.array(files, dtype=np.object_), binary_data=True)
    roi = kserve.InferInput("roi", [count, 4], "INT32")
    roi.set_data_from_numpy(np.array([box(row) for row in rows], np.int32), binary_data=True)
    return kserve.InferRequest("thyroid", [image, roi], request_id="r1"), [row["probability_M"] for row in rows]


def check_v2(response, expected, facts):
    outputs = {one.name: one for one in response.outputs}
    np.testing.assert_allclose(outputs["probability"].as_numpy()[:, 1], expected, atol=1e-4)
    decisions = [one.decode() if isinstance(one, bytes) else one for one in outputs["decision"].as_numpy().tolist()]
    assert decisions == ["malignant" if one >= facts.threshold else "benign" for one in expected]
    assert response.model_version in ("1", None)  # KServe's REST client drops it


def test_kserves_own_rest_client(server, tested, facts):
    import kserve

    request, expected = v2_request(kserve, tested)

    async def ask():
        client = kserve.InferenceRESTClient(kserve.RESTConfig(protocol="v2", timeout=60))
        base = f"http://127.0.0.1:{server.port}"
        assert await client.is_server_ready(base)
        assert await client.is_model_ready(base, "thyroid")
        response = await client.infer(base, request, model_name="thyroid", timeout=60)
        await client.close()
        return response

    check_v2(asyncio.run(ask()), expected, facts)


def test_kserves_own_grpc_client(server, tested, facts):
    import kserve

    request, expected = v2_request(kserve, tested)

    async def ask():
        client = kserve.InferenceGRPCClient(f"127.0.0.1:{server.grpc_port}", timeout=60)
        assert await client.is_server_ready()
        assert await client.is_model_ready("thyroid")
        response = await client.infer(request)
        await client.close()
        return response

    check_v2(asyncio.run(ask()), expected, facts)


def test_triton_clients(server, tested):
    """In a process of its own: tritonclient and KServe register the same messages, which one process cannot hold."""
    row = tested.iloc[0]
    arguments = [str(server.port), str(server.grpc_port), str(row["path"]), *map(str, box(row))]
    code = ROOT / "tests" / "support" / "triton_client.py"
    done = subprocess.run([sys.executable, str(code), *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    answers = json.loads(done.stdout)
    assert len(answers) == 2 * 2 * 4, "protocols, types of tensor, and ways to ask"
    assert answers == pytest.approx([row["probability_M"]] * 16, abs=1e-4)


def test_v2_json_carries_base64(server, tested):
    row = tested.iloc[0]
    body = {
        "id": "42",
        "inputs": [
            {"name": "image", "shape": [1], "datatype": "BYTES", "data": [encoded(row["path"])["b64"]]},
            {"name": "roi", "shape": [1, 4], "datatype": "INT32", "data": [box(row)]},
        ],
    }
    for path in (INFER, "/v2/models/thyroid/versions/1/infer"):
        status, answer = server.ask(path, body)
        assert status == 200
        assert answer["id"] == "42"
        outputs = {one["name"]: one for one in answer["outputs"]}
        assert outputs["probability"]["data"][1] == pytest.approx(row["probability_M"], abs=1e-4)
        assert answer["parameters"]["notice"] == RESEARCH_USE_ONLY


def test_metadata(server, facts):
    assert server.ask("/v2")[1]["name"] == "thyroid"
    described = server.ask("/v2/models/thyroid")[1]
    assert described["inputs"] == [{"name": "image", "datatype": "BYTES", "shape": [-1]}]
    assert {one["name"] for one in described["outputs"]} == {"probability", "decision"}
    assert server.ask("/v2/models/thyroid/ready")[0] == 200
    assert server.ask("/v2/models/thyroid/versions/1/ready")[0] == 200


def test_openapi_describes_the_routes(server):
    document = server.ask("/openapi.json")[1]
    assert "/v1/models/{model}:predict" in document["paths"]
    assert RESEARCH_USE_ONLY in document["info"]["description"]
    found = document["components"]["schemas"]
    assert {"PredictRequest", "PredictAnswer", "ExplainAnswer", "InferRequest", "InferAnswer", "Error"} <= set(found)
    for name, schema in found.items():
        jsonschema.Draft202012Validator.check_schema(schema)
        assert schema["description"], name
        for field, described in schema["properties"].items():
            assert "description" in described or "$ref" in described, f"{name}.{field}"
    references = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(document)))
    assert references <= set(found)


def test_answers_are_as_their_schemas_describe_them(server, tested):
    row = tested.iloc[0]
    clip = base64.b64encode(dicoms.write(dicoms.cine(5))).decode()
    requests = [
        {"instances": [{"image": encoded(row["path"]), "roi": box(row), "patient": "p"}]},
        {"instances": [{"image": encoded(row["path"])}]},
        {"instances": [{"image": {"b64": clip}, "roi": [40, 40, 60, 50], "frame": 1}]},
    ]
    for body in requests:
        schemas.PredictRequest.model_validate(body, strict=True)
        check_schema(schemas.PredictAnswer, server.ask(PREDICT, body)[1])
        check_schema(schemas.ExplainAnswer, server.ask(EXPLAIN, body)[1])
    tensor = {"name": "image", "shape": [1], "datatype": "BYTES", "data": [encoded(row["path"])["b64"]]}
    for body in ({"inputs": [tensor]}, {"id": "42", "inputs": [tensor]}):
        schemas.InferRequest.model_validate(body, strict=True)
        check_schema(schemas.InferAnswer, server.ask(INFER, body)[1])
    for path, body in ((PREDICT, {}), (INFER, {"inputs": []}), ("/v1/models/other:predict", requests[1])):
        status, answer = server.ask(path, body)
        assert status in (400, 404)
        check_schema(schemas.Error, answer)


def test_metrics_say_what_happens_and_name_nobody(server, tested):
    row = tested.iloc[0]
    server.ask(PREDICT, {"instances": [{"image": encoded(row["path"]), "roi": box(row), "patient": "Maria"}]})
    server.ask(PREDICT, {"instances": []})
    text = server.ask("/metrics")[1]
    for name in (
        "stage_seconds",
        "request_seconds",
        "queue_images",
        "probability",
        "decisions",
        "novelty_distance",
        "unlike",
        "rejected",
        "model_info",
    ):
        assert f"thyroid_{name}" in text, name
    assert re.search(r'thyroid_rejected_total\{code="invalid_input"\} [1-9]', text)
    assert "Maria" not in text
    assert Path(row["path"]).name not in text
    dashboard = json.loads((ROOT / "manifests" / "base" / "dashboard.json").read_text())
    asked = " ".join(target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", []))
    for metric in set(re.findall(r"\b(?:thyroid_(?!watch_)|request_)[a-z_]+", asked)):  # not those of the watch
        assert metric.removesuffix("_bucket") in text, f"{metric} of the dashboard is not there"


@pytest.mark.slow
def test_normal_domain_finds_the_scan_area_itself(model, network, cropped, tmp_path):
    """A model of whole frames, run by Keras."""
    folder = shutil.copytree(Registry(model).find(), tmp_path / "model")
    facts = json.loads((folder / "model.json").read_text()) | {"serving_domain": "normal"}
    point = OperatingPoint.from_record(Artefact.read(folder).record)

    def answer(pixels: np.ndarray) -> list[float]:
        return point.scale(network.predict(images.rgb(pixels)[None], verbose=0))[0].tolist()

    reference = images.encode(geometry.normal(images.decode((folder / "reference.jpg").read_bytes())))
    known = answer(images.square(reference, facts["image_size"]))
    facts["reference"] = dict(zip(facts["classes"], known, strict=True))
    (folder / "model.json").write_text(json.dumps(facts))
    (folder / SUM).unlink()
    row = DataVersion.read(cropped).examples("normal", "test").iloc[0]
    expected = answer(inputs.decode(pd.DataFrame([row]), facts["image_size"])[0])

    running = Server(tmp_path / "log", "--model-dir", str(folder), "--form", engine.KERAS).wait()
    told = running.ask(EXPLAIN, {"instances": [{"image": encoded(row["path"]), "roi": [200, 200, 60, 40]}]})
    told = told[1]["explanations"][0]
    assert list(told["probability"].values()) == pytest.approx(expected, abs=1e-5)
    assert told["form"] == engine.KERAS
    assert told["crop"]["domain"] == "normal"
    assert told["crop"]["scan_area_found"]
    assert told["heat_map"]["roi"] is not None
    running.kill()


def test_champion_and_previous_side_by_side(evaluated, tmp_path, tested):
    root = tmp_path / "registry"
    for version in (1, 2):
        gate = toy_artefact.gate("promoted", version - 1 or None)
        Registry(root).publish(variant(evaluated / "artefact", tmp_path), gate)
    running = Server(tmp_path / "log", "--registry", str(root)).wait()
    running.wait_for('"thyroid-previous"')
    body = {"instances": [{"image": encoded(tested["path"].iloc[0])}]}
    for name, version in (("thyroid", 2), ("thyroid-previous", 1)):
        prediction = running.ask(f"/v1/models/{name}:predict", body)[1]["predictions"][0]
        assert prediction["model_version"] == version
        assert "not_released" not in prediction
    v2 = {
        "inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", "data": [body["instances"][0]["image"]["b64"]]}]
    }
    for version in (1, 2):
        assert running.ask(f"/v2/models/thyroid/versions/{version}/infer", v2)[1]["model_version"] == str(version)
    assert running.ask("/v2/models/thyroid/versions/3/infer", v2)[0] == 404
    running.kill()


def test_a_changed_model_is_not_served(model, tmp_path):
    copy = shutil.copytree(Registry(model).find(), tmp_path / "model")
    with (copy / "openvino" / "model.bin").open("r+b") as file:
        file.seek(1000)
        file.write(b"changed")
    running = Server(tmp_path / "log", "--model-dir", str(copy))
    assert running.process.wait(timeout=60) == 2
    assert "model.bin" in running.log.read_text()


def test_a_model_that_answers_differently_is_not_served(model, tmp_path):
    from thyroid.serve.model import ThyroidModel

    copy = shutil.copytree(Registry(model).find(), tmp_path / "model")
    facts = json.loads((copy / "model.json").read_text())
    facts["reference"] = {"B": facts["reference"]["M"] + 0.1, "M": facts["reference"]["B"] - 0.1}
    (copy / "model.json").write_text(json.dumps(facts))
    (copy / SUM).unlink()
    with pytest.raises(InputError, match=re.escape(str(copy))):
        ThyroidModel("thyroid", copy).load()


def test_drift_of_the_self_test_makes_it_unready(model):
    from thyroid.serve.model import ThyroidModel

    one = ThyroidModel("thyroid", Registry(model).find())
    assert one.load()

    async def drifted():
        assert await one.self_test()
        reference = one.artefact.record.reference
        reference |= {"B": 0.0, "M": 1.0} if reference["M"] < 0.5 else {"B": 1.0, "M": 0.0}
        return await one.self_test(), await one.healthy()

    assert asyncio.run(drifted()) == (False, False)


def test_no_model_says_how_to_get_one(tmp_path):
    running = Server(tmp_path / "log", "--registry", str(tmp_path))
    assert running.process.wait(timeout=60) == 2
    assert "`make run`" in running.log.read_text()


def test_help_and_token_file(tmp_path, capsys):
    (tmp_path / "token").write_text("\n")
    assert command.main(["--registry", str(tmp_path), "--token-file", str(tmp_path / "token")]) == 2
    assert "--token-file" in capsys.readouterr().err
    assert serve.__doc__


def test_a_request_is_logged_by_its_id(server, phantoms):
    """Of what it held, `server` looks for traces in the end."""
    body = {"instances": [{"image": encoded(next((phantoms / "scans").iterdir())), "patient": "Maria"}]}
    with httpx.Client() as client:
        answer = client.post(f"http://127.0.0.1:{server.port}{PREDICT}", json=body, headers={"x-request-id": "abc-1"})
        assert answer.headers["x-request-id"] == "abc-1"
    server.wait_for('"abc-1"')
    lines = [json.loads(line) for line in server.log.read_text().splitlines() if line.startswith("{")]
    assert any(line.get("request_id") == "abc-1" and line["route"] == "v1:predict" for line in lines)
