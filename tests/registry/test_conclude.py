import re

from tests.deploy.test_deploy import register
from thyroid.registry import conclude


def test_success_and_the_registry(tmp_path, capsys, place):
    assert conclude.conclude(place, "SUCCEEDED", "")[1:] == ["There is no champion yet.", "There is no candidate yet."]
    register(place, tmp_path / "artefact")
    register(place, tmp_path / "artefact", "refused")
    assert conclude.main(["--registry", place]) == 0
    printed = capsys.readouterr().out
    assert "The run ended: SUCCEEDED." in printed
    assert "Champion: version 1, VGG16" in printed
    assert "Candidate: version 2, VGG16" in printed
    assert "Not released: AUROC is not shown to be as good" in printed


def test_failures_say_what_to_do(tmp_path):
    lines = conclude.conclude(tmp_path, "FAILED", "train-VGG16: OOMKilled")
    assert "train-VGG16: OOMKilled" in lines
    assert any("lower batch_size" in line for line in lines)
    (hint,) = [line for line in conclude.conclude(tmp_path, "FAILED", "train: Evicted") if "retries" in line]
    assert {"store"} == set(re.findall(r"\b(?:store|work)\b", hint)), "the pipeline's parameter"
    hints = set(conclude.conclude(tmp_path, "FAILED", "")[1:]) - set(conclude.conclude(tmp_path, "COMPLETE", ""))
    assert len(hints) == 1, "where to look for the reason"


def test_a_bucket_that_cannot_be_read_does_not_hide_how_the_run_ended(gcs):
    gcs.proxy.rule = lambda method, path: "403"
    lines = conclude.conclude(gcs.address("registry"), "FAILED", "")
    assert lines[0] == "The run ended: FAILED."
    assert "no permission" in lines[-1]


def test_a_damaged_registry_does_not_hide_how_the_run_ended(tmp_path):
    (tmp_path / "thyroid").mkdir()
    (tmp_path / "thyroid" / "aliases.json").write_text("{")
    lines = conclude.conclude(tmp_path, "FAILED", "")
    assert lines[0] == "The run ended: FAILED."
    assert "aliases.json: not JSON" in lines[-1]
