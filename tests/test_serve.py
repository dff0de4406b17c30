import base64
import json
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pandas as pd
import pytest

from thyroid import RESEARCH_USE_ONLY, crop, register, registry, serve, tables


class Server:
    """A real server process on a free port."""

    def __init__(self, *arguments: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "thyroid.serve", *arguments, "--port", str(self.port)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def ask(self, path: str, body: object = None) -> tuple[int, dict]:
        data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", data, {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    def wait(self) -> None:
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                if self.ask("/v2/health/ready")[0] == 200:
                    return
            except OSError:
                time.sleep(0.3)
        raise AssertionError(self.process.communicate()[0])

    def stop(self) -> str:
        self.process.send_signal(signal.SIGTERM)
        return self.process.communicate(timeout=30)[0]


@pytest.fixture(scope="module")
def model(evaluated, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("registry")
    register.register(evaluated, root, root / "summary.json")
    return root


@pytest.fixture(scope="module")
def server(model):
    running = Server("--registry", str(model))
    running.wait()
    yield running
    running.stop()


def encoded(path: str | Path) -> dict:
    return {"b64": base64.b64encode(Path(path).read_bytes()).decode()}


PREDICT = "/v1/models/thyroid:predict"


def test_health_and_readiness(server):
    assert server.ask("/v2/health/live")[0] == 200
    assert server.ask("/v1/models/thyroid") == (200, {"name": "thyroid", "ready": True})


def test_frame_with_roi_gets_exactly_the_evaluated_probability(server, evaluated, cropped, model):
    """From the raw frame over HTTP to the last digit of predictions.parquet."""
    facts = registry.verify(registry.find(model))
    predictions = pd.read_parquet(evaluated / "predictions.parquet")
    mine = predictions[(predictions["backbone"] == facts["backbone"]) & (predictions["split"] == "test")]
    regions = tables.read(cropped)[1].set_index("crop_path")
    instances = []
    for file in mine["file"]:
        row = regions.loc[file]
        box = [int(row[column]) for column in ("x", "y", "width", "height")]
        instances.append({"image": encoded(row["path"]), "roi": box})
    status, answer = server.ask(PREDICT, {"instances": instances})
    assert status == 200
    for prediction, expected, instance in zip(answer["predictions"], mine["probability_M"], instances, strict=True):
        assert prediction["probability"]["M"] == pytest.approx(expected, abs=1e-5)
        assert prediction["threshold"] == facts["threshold"]
        assert prediction["class"] == ("M" if expected >= facts["threshold"] else "B")
        assert prediction["decision"] == ("malignant" if expected >= facts["threshold"] else "benign")
        assert ("not_released" in prediction) == (facts["gate"]["decision"] == "refused")
        assert prediction["crop"] == {"domain": "cropped", "box": instance["roi"], "margin": crop.MARGIN}


def test_a_crop_is_taken_as_it_is_and_said_so(server, evaluated, cropped):
    predictions = pd.read_parquet(evaluated / "predictions.parquet")
    status, answer = server.ask(PREDICT, {"instances": [{"image": encoded(cropped / predictions["file"].iloc[0])}]})
    assert status == 200
    assert "taken as a crop" in answer["predictions"][0]["crop"]["note"]


def test_answer_says_who_answered(server, model, phantoms):
    scan = next((phantoms / "scans").iterdir())
    prediction = server.ask(PREDICT, {"instances": [{"image": encoded(scan)}]})[1]["predictions"][0]
    facts = registry.verify(registry.find(model))
    assert prediction["model_version"] == 1
    assert prediction["data_digest"] == facts["data_digest"]
    assert prediction["notice"] == RESEARCH_USE_ONLY
    assert sum(prediction["probability"].values()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "at least one instance"),
        ({"instances": []}, "at least one instance"),
        ({"instances": [{}]}, "instances[0].image.b64: missing"),
        ({"instances": ["x"]}, "instances[0].image.b64: missing"),
        ({"instances": [{"image": {"b64": "%%%"}}]}, "instances[0].image.b64: not base64"),
        ({"instances": [{"image": {"b64": "aGVsbG8="}}]}, "instances[0].image.b64: not a JPEG"),
        ({"instances": [{}] * 65}, "65 are more than the limit of 64"),
    ],
)
def test_bad_requests_name_the_field(server, body, message):
    status, answer = server.ask(PREDICT, body)
    assert status == 400
    assert message in answer["error"]


@pytest.mark.parametrize(
    ("roi", "message"),
    [
        ([0, 0, 9999, 5], "outside the 640x480 image"),
        ([0, 0, 0, 5], "outside the 640x480 image"),
        ([1, 2, 3], "four whole numbers"),
        ("1,2,3,4", "four whole numbers"),
        ([1.5, 2, 3, 4], "four whole numbers"),
        ([True, 2, 3, 4], "four whole numbers"),
    ],
)
def test_bad_rois_name_the_field(server, phantoms, roi, message):
    scan = next((phantoms / "scans").iterdir())
    status, answer = server.ask(PREDICT, {"instances": [{"image": encoded(scan), "roi": roi}]})
    assert status == 400
    assert "instances[0].roi" in answer["error"]
    assert message in answer["error"]


def test_a_tiny_roi_is_answered(server, phantoms):
    scan = next((phantoms / "scans").iterdir())
    assert server.ask(PREDICT, {"instances": [{"image": encoded(scan), "roi": [5, 5, 2, 2]}]})[0] == 200


def test_body_that_is_not_json(server):
    assert server.ask(PREDICT, b"{not json")[0] == 400


def test_unknown_model(server):
    assert server.ask("/v1/models/other:predict", {"instances": [{}]})[0] == 404


def test_normal_domain_finds_the_scan_area_itself(cropped, trained, tmp_path, phantoms):
    from thyroid import evaluate

    evaluate.evaluate(cropped, [trained["VGG16", "normal"]], tmp_path / "evaluation")
    served = serve.ThyroidModel(tmp_path / "evaluation" / "artefact")
    registered = register.register(tmp_path / "evaluation", tmp_path / "registry", tmp_path / "summary.json")
    served = serve.ThyroidModel(Path(registered.uri))
    assert served.load()
    table = pd.read_parquet(tmp_path / "evaluation" / "predictions.parquet")
    row = table[table["split"] == "test"].iloc[0]
    scans = tables.read(cropped)[0].set_index("normal_path")
    answer = served._predict([{"image": encoded(scans.loc[row["file"]]["path"])}])[0]
    assert answer["probability"]["M"] == pytest.approx(row["probability_M"], abs=1e-5)
    assert answer["crop"]["scan_area_found"]


def test_a_changed_model_is_not_served(model, tmp_path, capsys):
    copy = shutil.copytree(registry.find(model), tmp_path / "model")
    with (copy / "model.keras").open("r+b") as file:
        file.seek(1000)
        file.write(b"changed")
    assert serve.main(["--model-dir", str(copy)]) == 2
    assert "model.keras: changed since it was registered" in capsys.readouterr().err


def test_a_model_that_answers_differently_is_not_served(model, tmp_path, capsys):
    copy = shutil.copytree(registry.find(model), tmp_path / "model")
    facts = json.loads((copy / "model.json").read_text())
    facts["reference"] = {"B": facts["reference"]["M"] + 0.1, "M": facts["reference"]["B"] - 0.1}
    (copy / "model.json").write_text(json.dumps(facts))
    assert serve.main(["--model-dir", str(copy)]) == 2
    assert "answers its reference image" in capsys.readouterr().err


def test_no_model_says_how_to_get_one(tmp_path, capsys):
    assert serve.main(["--registry", str(tmp_path)]) == 2
    assert "`make run` registers one" in capsys.readouterr().err


def test_stops_on_sigterm_and_logs_no_image(model, phantoms):
    running = Server("--model-dir", str(registry.find(model)))
    running.wait()
    scan = next((phantoms / "scans").iterdir())
    body = {"instances": [{"image": encoded(scan)}]}
    assert running.ask(PREDICT, body)[0] == 200
    log = running.stop()
    assert running.process.returncode in (0, -signal.SIGTERM)
    assert RESEARCH_USE_ONLY in log
    assert body["instances"][0]["image"]["b64"][:40] not in log
    assert scan.name not in log
