"""Starting a run, against a host that records what it is sent."""

import re
import socket
import subprocess
import sys

import pytest
import yaml

from pipelines import __main__ as cli
from pipelines.kubeflow import submit
from tests.support.kubeflow import Kubeflow

pytestmark = pytest.mark.usefixtures("once_compiled")


@pytest.fixture
def host(monkeypatch):
    monkeypatch.setattr(submit, "POLL_SECONDS", 0.01)
    running = Kubeflow()
    yield running
    running.shutdown()
    running.server_close()


PAGE = """
from http.server import BaseHTTPRequestHandler, HTTPServer
class Page(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(b"<html>log in</html>")
    def log_message(self, *a): pass
server = HTTPServer(("127.0.0.1", 0), Page)
print(server.server_port, flush=True)
server.handle_request()
"""

NEEDED = ["--set", "scans=/data/scans", "--set", "registry=/data/registry"]


def start(host, *arguments: str) -> int:
    return cli.main(["submit", "--host", host.url, "--backbones", "VGG16", *NEEDED, *arguments])


def tasks(**states: str) -> dict:
    details = [
        {
            "task_id": name,
            "display_name": name,
            "state": state,
            "error": {"code": 13, "message": f"{name} is out of memory"},
        }
        if state == "FAILED"
        else {"task_id": name, "display_name": name, "state": state}
        for name, state in states.items()
    ]
    return {"run_details": {"task_details": details}}


def test_a_run_is_started_and_watched_to_its_end(host, capsys):
    host.states = [
        {"state": "PENDING"},
        {"state": "RUNNING"} | tasks(ingest="RUNNING"),
        {"state": "RUNNING"} | tasks(ingest="SUCCEEDED", crop="RUNNING"),
        {"state": "SUCCEEDED"} | tasks(ingest="SUCCEEDED", crop="SUCCEEDED"),
    ]
    assert start(host, "--set", "epochs=3", "--set", "serving_gpu=true", "--set", "sensitivity=0.9") == 0
    captured = capsys.readouterr()
    assert f"{host.url}/#/runs/details/r1" in captured.out
    assert f"succeeded: {host.url}/#/runs/details/r1" in captured.err
    run = host.sent("/apis/v2beta1/runs")
    parameters = run["runtime_config"]["parameters"]
    described = yaml.safe_load(parameters.pop("run"))
    assert (described["epochs"], described["folds"], described["backbones"]) == (3, 0, "VGG16")
    assert parameters == {
        "scans": "/data/scans",
        "registry": "/data/registry",
        "epochs": 3,
        "serving_gpu": True,
        "sensitivity": 0.9,
    }
    assert run["experiment_id"] == "e1"
    specification = run["pipeline_spec"]
    assert specification["pipeline_spec"]["pipelineInfo"]["name"] == "thyroid-training"
    assert "platforms" in specification["platform_spec"], "GPUs, volumes and time-outs go along"
    assert host.sent("/apis/v2beta1/experiments")["display_name"] == "thyroid"


def test_namespace_account_and_token_are_sent(host, tmp_path):
    (tmp_path / "token").write_text("s3cret\n")
    host.multi_user = True
    options = ["--namespace", "lab", "--service-account", "thyroid-pipeline", "--token-file", str(tmp_path / "token")]
    assert start(host, *options, "--no-wait") == 0
    assert host.sent("/apis/v2beta1/experiments")["namespace"] == "lab"
    assert host.sent("/apis/v2beta1/runs")["service_account"] == "thyroid-pipeline"
    assert {headers.get("authorization") for headers in host.headers} == {"Bearer s3cret"}
    assert not [call for call in host.calls if call[1].endswith("/runs/r1")], "it does not wait"


def test_a_host_that_drops_out_is_waited_for(host, monkeypatch, capsys):
    host.states = [{"state": "RUNNING"}, {"drop": 503}, {"drop": 503}, {"state": "SUCCEEDED"}]
    assert start(host) == 0
    host.states = [{"drop": 503}]
    monkeypatch.setattr(submit, "PATIENCE_SECONDS", 0.05)
    assert start(host) == 2
    assert f"{host.url}/#/runs/details/r1" in capsys.readouterr().err


@pytest.mark.parametrize("state", ["FAILED", "CANCELED"])
def test_a_run_that_fails_is_told_with_the_steps_own_message(host, capsys, state):
    host.states = [
        {"state": state} | tasks(ingest="SUCCEEDED", train="FAILED", root="FAILED", **{"train-driver": "SUCCEEDED"})
    ]
    assert start(host) == 2
    error = capsys.readouterr().err
    assert re.search(rf"\b{state.lower()}\b.*train-VGG16.*\btrain is out of memory", error)
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--set", "epoch=3"], "epochs?"),
        (["--set", "epochs=many"], "epochs=many"),
        (["--set", "serving_gpu=maybe"], "serving_gpu=maybe"),
        (["--set", "epochs"], "NAME=VALUE"),
        (["--set", "recipe=warmer"], "--set recipe=warmer: choose from two-phase, frozen, deck, warm"),
        (["--set", "train_on="], "--set train_on=: choose from new, drift"),
        (["--set", "scans="], "scans="),
        (["--set", "scans=minio://lab/scans"], "--set scans=minio://lab/scans: give gs://bucket/prefix or s3://"),
        (["--shards", "3"], "--shards 3: give --set store=PLACE, where shards leave what they have done"),
        (["--claim", ""], "--set scans=/data/scans: the steps mount no volume (--claim ''); give a bucket"),
    ],
)
def test_wrong_parameters_are_said_before_anything_is_sent(host, capsys, given, said):
    assert start(host, *given) == 2
    assert said in capsys.readouterr().err
    assert host.calls == []


@pytest.mark.parametrize("status", [409, 422])
def test_what_the_host_refuses_is_said(host, capsys, status):
    host.refuse = (status, {"message": "image is not allowed"})
    assert start(host) == 2
    error = capsys.readouterr().err
    assert f"{status} image is not allowed" in error
    assert "Traceback" not in error


def test_a_host_that_wants_a_token(host, capsys):
    host.refuse_all = (401, {"error": "who are you"})
    assert start(host) == 2
    error = capsys.readouterr().err
    assert "401" in error
    assert "--token-file" in error


def test_a_host_that_is_no_kubeflow(capsys):
    with subprocess.Popen([sys.executable, "-c", PAGE], stdout=subprocess.PIPE, text=True) as page:
        assert page.stdout is not None
        port = page.stdout.readline().strip()
        assert cli.main(["submit", "--host", f"http://127.0.0.1:{port}", *NEEDED]) == 2
    assert "--token-file" in capsys.readouterr().err


def test_a_host_that_is_not_there(capsys):
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    assert cli.main(["submit", "--host", f"http://127.0.0.1:{port}", *NEEDED]) == 2
    assert f":{port}" in capsys.readouterr().err
