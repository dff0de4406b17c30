import re

from tests.deploy.test_deploy import gate, register
from thyroid.registry import conclude


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
