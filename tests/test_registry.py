import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from thyroid import register, registry
from thyroid.errors import InputError


@pytest.fixture
def artefact(tmp_path: Path) -> Path:
    folder = tmp_path / "artefact"
    folder.mkdir()
    (folder / "model.keras").write_bytes(os.urandom(200_000))
    (folder / "reference.jpg").write_bytes(b"picture")
    registry.describe(folder, {"name": "thyroid", "backbone": "VGG16"})
    return folder


def test_versions_count_up_and_aliases_follow(artefact, tmp_path):
    root = tmp_path / "registry"
    first, second = registry.publish(artefact, root), registry.publish(artefact, root)
    assert (first.version, second.version) == (1, 2)
    assert registry.read_aliases(root) == {"candidate": 2, "champion": 2, "previous": 1}
    assert registry.find(root) == root / "thyroid" / "2"
    assert registry.find(root, "previous") == registry.find(root, "1") == root / "thyroid" / "1"
    facts = registry.verify(registry.find(root))
    assert facts["version"] == 2
    assert facts["files"]["model.keras"] == first.sha256


@pytest.mark.parametrize("name", ["model.keras", "reference.jpg"])
def test_a_changed_file_is_refused_by_name(artefact, tmp_path, name):
    with (artefact / name).open("ab") as file:
        file.write(b"x")
    with pytest.raises(InputError, match=f"{name}: changed since it was registered"):
        registry.publish(artefact, tmp_path / "registry")
    assert registry.versions(tmp_path / "registry") == []


def test_a_missing_file_is_refused_by_name(artefact):
    (artefact / "model.keras").unlink()
    with pytest.raises(InputError, match=r"model\.keras: missing"):
        registry.verify(artefact)


def test_a_name_outside_the_model_is_refused(artefact):
    facts = json.loads((artefact / "model.json").read_text())
    facts["files"]["../../etc/passwd"] = "0"
    (artefact / "model.json").write_text(json.dumps(facts))
    with pytest.raises(InputError, match="outside the model"):
        registry.verify(artefact)


def test_not_a_model(tmp_path):
    with pytest.raises(InputError, match=r"model\.json is missing"):
        registry.verify(tmp_path)


@pytest.mark.parametrize("which", [None, "champion", "7", "../x"])
def test_what_is_not_there_is_said(tmp_path, which):
    with pytest.raises(InputError, match="no registered model"):
        registry.find(tmp_path, which)


def test_two_at_once_lose_nothing(artefact, tmp_path):
    root = tmp_path / "registry"
    context = multiprocessing.get_context("spawn")
    with context.Pool(4) as pool:
        done = pool.starmap(registry.publish, [(artefact, root)] * 12)
    assert sorted(d.version for d in done) == registry.versions(root) == list(range(1, 13))
    assert registry.read_aliases(root)["candidate"] == 12
    for version in registry.versions(root):
        registry.verify(root / "thyroid" / str(version))


def test_killed_at_any_moment_no_half_version_is_visible(artefact, tmp_path):
    root = tmp_path / "registry"
    code = "import sys; from pathlib import Path; from thyroid import registry\nwhile True: registry.publish(*map(Path, sys.argv[1:]))"
    for round_ in range(4):
        process = subprocess.Popen([sys.executable, "-c", code, str(artefact), str(root)])
        deadline = time.monotonic() + 30
        while len(registry.versions(root)) < 3 * (round_ + 1) and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        for version in registry.versions(root):
            assert registry.verify(root / "thyroid" / str(version))["version"] == version
        assert registry.find(root).is_dir()
    last = registry.versions(root)[-1]
    assert registry.publish(artefact, root).version == last + 1


def test_register_publishes_the_report_and_writes_the_summary(evaluated, tmp_path):
    done = register.register(evaluated, tmp_path / "registry", tmp_path / "summary.json")
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["model"] == {"name": "thyroid", "version": 1, "uri": done.uri, "sha256": done.sha256}
    assert set(summary) >= {"data", "models", "winner", "model", "seconds"}
    assert {"ingest", "crop", "train-VGG16-cropped", "evaluate", "register"} <= set(summary["seconds"])
    assert set(summary["data"]) == {"digest", "scans", "quarantined", "patients", "duplicate_groups", "splits"}
    assert set(summary["data"]["splits"]["test"]) == {"B", "M", "patients"}
    assert "report.html" in registry.verify(Path(done.uri))["files"]


def test_register_needs_a_finished_evaluation(tmp_path, capsys):
    arguments = [
        "--evaluation",
        str(tmp_path),
        "--registry",
        str(tmp_path / "r"),
        "--summary",
        str(tmp_path / "s.json"),
    ]
    assert register.main(arguments) == 2
    assert "evaluation.json is missing" in capsys.readouterr().err


def test_a_damaged_winner_is_not_registered(evaluated, tmp_path):
    copy = shutil.copytree(evaluated, tmp_path / "evaluation")
    (copy / "artefact" / "model.keras").write_bytes(b"")
    with pytest.raises(InputError, match="changed since"):
        register.register(copy, tmp_path / "registry", tmp_path / "summary.json")
    assert registry.versions(tmp_path / "registry") == []
