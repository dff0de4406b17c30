"""The last steps of a run, as their containers run them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from components import conclude
from tests.support import ROOT
from tests.support.kubeflow import Kubeflow

STATUS = {"state": "SUCCEEDED", "pipelineJobResourceName": "run", "pipelineTaskName": "exit-handler-1", "error": {}}


def step(name: str, folder: Path, run: str = "run-7", **values) -> str:
    """Run a step of a run and return what it prints."""
    page = {"artifacts": [{"name": "page", "uri": "", "type": {"schemaTitle": "system.HTML"}, "metadata": {}}]}
    page["artifacts"][0]["uri"] = str(folder / f"{name}.html")
    given = {"registry": str(folder / "registry")} | values
    executor = {
        "inputs": {"parameterValues": given},
        "outputs": {"artifacts": {"page": page}, "outputFile": str(folder / f"{name}.json")},
    }
    command = [sys.executable, "-m", "components", name, "--executor-input", json.dumps(executor)]
    environment = os.environ | {"THYROID_RUN_ID": run}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_run_without_a_training_is_told_once(tmp_path, receiver):
    assert "nothing new" in step("rest", tmp_path, verdict="nothing new since model version 3")
    step("conclude", tmp_path, status=STATUS)
    step("conclude", tmp_path, status=STATUS)
    (told,) = receiver.messages
    assert (told.event, told.run) == ("run.unchanged", "run-7")


def test_runs_that_are_not_known_are_told_each(tmp_path, receiver):
    for _ in range(2):
        step("conclude", tmp_path, run="", status=STATUS)
    assert receiver.events == ["run.succeeded"] * 2


@pytest.mark.parametrize("answer", [404, "hang"])
def test_a_receiver_that_fails_changes_no_step(tmp_path, receiver, answer):
    error = {"message": "crop: /data/scans/B_4711-0002-1.0.jpg: cannot be read"}
    given = {"status": STATUS | {"state": "FAILED", "error": error}}
    quiet = step("conclude", tmp_path, run="another", **given)
    page = (tmp_path / "conclude.html").read_text()
    receiver.answers = [answer]
    loud = step("conclude", tmp_path, **given).splitlines()
    assert [line for line in loud if not line.startswith("notification")] == quiet.splitlines()[:-1]
    assert (tmp_path / "conclude.html").read_text() == page
    assert "4711" in quiet, "in the cluster's own log"
    assert "4711" not in "".join(told.model_dump_json() for told in receiver.messages)


@pytest.fixture
def kubeflow(monkeypatch):
    server = Kubeflow()
    monkeypatch.setenv("ML_PIPELINE_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("ML_PIPELINE_SERVICE_PORT_HTTP", str(server.server_port))
    yield server
    server.shutdown()
    server.server_close()


def test_on_a_cluster_kubeflow_is_asked_which_step_failed(tmp_path, receiver, kubeflow):
    tasks = [
        {"display_name": "exit-handler-1", "state": "FAILED"},
        {"display_name": "ingest", "state": "SUCCEEDED"},
        {"display_name": "train-2", "state": "FAILED"},
    ]
    kubeflow.states = [{"run_details": {"task_details": tasks}}]
    printed = step("conclude", tmp_path, run="r7", status=STATUS | {"state": "FAILED"})
    assert "train: failed" in printed
    (told,) = receiver.messages
    assert told.sentence == "The run failed at train."


@pytest.mark.parametrize(
    "answer",
    [
        (401, {"error": "no token"}),
        (200, []),
        (200, {"run_details": {"task_details": None}}),
        (200, {"run_details": {"task_details": [{"display_name": "B_4711", "state": "FAILED"}]}}),
        (0, None),
    ],
)
def test_if_kubeflow_does_not_say_the_step_is_left_out(kubeflow, answer):
    kubeflow.refuse_all = answer
    assert conclude._failed_step("r7") == ""
