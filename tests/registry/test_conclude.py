import re

import pytest

from tests.deploy.test_deploy import gate, register
from tests.support import toy_artefact, toy_locator
from thyroid.registry import conclude
from thyroid.registry.registry import Registry


def test_success_and_the_registry(tmp_path, capsys, place):
    champion, candidate = conclude.conclude(place, "SUCCEEDED", "")[1:]
    assert "champion" in champion
    assert "candidate" in candidate
    register(place, tmp_path / "artefact")
    register(place, tmp_path / "artefact", "refused")
    assert conclude.main(["--registry", place]) == 0
    ended, champion, candidate, reason = capsys.readouterr().out.splitlines()
    assert "SUCCEEDED" in ended
    for line, number in ((champion, 1), (candidate, 2)):
        assert re.search(rf"\b{number}\b.*\bVGG16\b", line)
    assert reason.endswith(gate("refused", 1).reasons[0])


def test_a_version_that_waits_is_not_called_refused(tmp_path, place):
    register(place, tmp_path / "artefact")
    (tmp_path / "waits").mkdir()
    (tmp_path / "waits" / "model.keras").write_bytes(b"waits")
    Registry(place).publish(
        toy_locator.build(tmp_path / "waits"), toy_artefact.gate("waiting", 1, ["live ones decide"])
    )
    assert conclude.conclude(place, "SUCCEEDED", "")[-1] == "Waits: live ones decide"


def test_failures_say_what_to_do(tmp_path):
    lines = conclude.conclude(tmp_path, "FAILED", "train-VGG16: OOMKilled")
    assert "train-VGG16: OOMKilled" in lines
    assert any("batch_size" in line for line in lines)
    (hint,) = [line for line in conclude.conclude(tmp_path, "FAILED", "train: Evicted") if "retries" in line]
    assert {"store"} == set(re.findall(r"\b(?:store|work)\b", hint)), "the pipeline's parameter"
    hints = set(conclude.conclude(tmp_path, "FAILED", "")[1:]) - set(conclude.conclude(tmp_path, "COMPLETE", ""))
    assert len(hints) == 1, "where to look for the reason"


def test_a_bucket_that_cannot_be_read_does_not_hide_how_the_run_ended(gcs):
    gcs.proxy.rule = lambda method, path: "403"
    lines = conclude.conclude(gcs.address("registry"), "FAILED", "")
    assert "FAILED" in lines[0]
    assert "storage.objectViewer" in lines[-1]


def test_a_damaged_registry_does_not_hide_how_the_run_ended(tmp_path):
    (tmp_path / "thyroid").mkdir()
    (tmp_path / "thyroid" / "aliases.json").write_text("{")
    lines = conclude.conclude(tmp_path, "FAILED", "")
    assert "FAILED" in lines[0]
    assert "aliases.json" in lines[-1]


PATIENT = "B_4711-0002-1.0.jpg"


@pytest.mark.parametrize(
    ("state", "message", "event", "sentence"),
    [
        ("SUCCEEDED", "", "run.succeeded", "The run succeeded. The champion is version 1."),
        ("CACHED", "", "run.succeeded", "The run succeeded. The champion is version 1."),
        ("CANCELLED", PATIENT, "run.cancelled", "The run was cancelled. The champion is version 1."),
        ("FAILED", "", "run.failed", "The run failed. The champion is version 1."),
        ("FAILED", f"train-VGG16: {PATIENT}: no", "run.failed", "The run failed at train-VGG16. The champion is v"),
        ("FAILED", f"{PATIENT}: no", "run.failed", "The run failed. The champion is version 1."),
        ("FAILED", f"train-{PATIENT}: no", "run.failed", "The run failed. The champion is version 1."),
        ("FAILED", "crop: Out of memory: OOMKilled", "run.failed", "The run failed at crop. A step ran out of memory"),
    ],
)
def test_the_end_of_a_run_is_told_once_and_without_what_may_name_a_patient(
    place, tmp_path, receiver, state, message, event, sentence
):
    register(place, tmp_path / "artefact")
    for _ in range(2):
        conclude.announce(place, "run-7", state, message)
    (told,) = receiver.messages
    assert (told.event, told.run) == (event, "run-7")
    assert told.sentence.startswith(sentence)
    assert "4711" not in told.model_dump_json()
    assert (told.link is None) == (event != "run.succeeded")


def test_the_page_of_the_run_is_linked_if_it_is_known(tmp_path, receiver, monkeypatch):
    monkeypatch.setenv("THYROID_NOTIFY_PAGES", "https://kubeflow.example/pipeline/")
    conclude.announce(tmp_path, "run-7", "FAILED", "")
    (told,) = receiver.messages
    assert told.link == "https://kubeflow.example/pipeline/#/runs/details/run-7"


def test_a_damaged_registry_does_not_keep_the_end_from_being_told(tmp_path, receiver):
    (tmp_path / "thyroid").mkdir()
    (tmp_path / "thyroid" / "aliases.json").write_text("{")
    conclude.announce(tmp_path, "run-7", "FAILED", "")
    assert receiver.events == ["run.failed"]


def test_the_command_tells_only_of_a_run_that_is_named(tmp_path, receiver, capsys):
    arguments = ["--registry", str(tmp_path), "--state", "FAILED", "--message", "crop: failed"]
    assert conclude.main(arguments) == 0
    printed = capsys.readouterr().out
    assert not receiver.got
    receiver.answers = [404]
    assert conclude.main([*arguments, "--run-id", "7"]) == 0
    assert capsys.readouterr().out == f"{printed}notification of run.failed: plain status 404\n"
    assert receiver.events == ["run.failed"]
