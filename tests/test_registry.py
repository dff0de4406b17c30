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


def gate(decision: str = "promoted", champion: int | None = None) -> dict:
    return {"decision": decision, "reasons": [f"{decision} in a test"], "champion": champion}


def test_versions_count_up_and_aliases_follow(artefact, tmp_path):
    root = tmp_path / "registry"
    first, second = registry.publish(artefact, root, gate()), registry.publish(artefact, root, gate(champion=1))
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
        registry.publish(artefact, tmp_path / "registry", gate())
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
        done = pool.starmap(registry.publish, [(artefact, root, gate("refused"))] * 12)
    assert sorted(d.version for d in done) == registry.versions(root) == list(range(1, 13))
    assert registry.read_aliases(root) == {"candidate": 12}
    assert [line["version"] for line in registry.history(root)] == list(range(1, 13))
    for version in registry.versions(root):
        registry.verify(root / "thyroid" / str(version))


def test_killed_at_any_moment_no_half_version_is_visible(artefact, tmp_path):
    root = tmp_path / "registry"
    code = """
import sys
from pathlib import Path
from thyroid import registry
artefact, root = map(Path, sys.argv[1:])
while True:
    champion = registry.read_aliases(root).get("champion")
    registry.publish(artefact, root, {"decision": "promoted", "reasons": ["r"], "champion": champion})
"""
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
    assert registry.publish(artefact, root, gate("refused")).version == last + 1
    history = registry.history(root)
    assert [line["version"] for line in history] == registry.versions(root)
    # What the killed processes had published is also the champion that it was meant to be. The first one of the next process
    # may be refused: it had read the aliases before the killed process's change was carried out.
    facts = [json.loads((root / "thyroid" / str(v) / "model.json").read_text()) for v in registry.versions(root)]
    promoted = [one["version"] for one in facts if one["gate"]["decision"] == "promoted"]
    assert len(promoted) >= last - 3
    assert registry.read_aliases(root) == {
        "candidate": last + 1,
        "champion": promoted[-1],
        "previous": promoted[-2],
    }
    assert not (root / "thyroid" / "pending.json").exists()


def test_killed_between_rename_and_alias_the_next_one_carries_it_out(artefact, tmp_path):
    root = tmp_path / "registry"
    registry.publish(artefact, root, gate())
    home = root / "thyroid"
    registry._plan(home, {"candidate": 2, "champion": 2, "previous": 1}, "publish", 2, "r")
    shutil.copytree(home / "1", home / "2")
    assert registry.read_aliases(root)["champion"] == 1
    registry.collect_garbage(root, keep=5)
    assert registry.read_aliases(root) == {"candidate": 2, "champion": 2, "previous": 1}
    assert [line["version"] for line in registry.history(root)] == [1, 2]


def test_killed_before_the_rename_nothing_has_happened(artefact, tmp_path):
    root = tmp_path / "registry"
    registry.publish(artefact, root, gate())
    registry._plan(root / "thyroid", {"candidate": 2, "champion": 2, "previous": 1}, "publish", 2, "r")
    assert registry.publish(artefact, root, gate("refused")).version == 2
    assert registry.read_aliases(root) == {"candidate": 2, "champion": 1}


def test_a_refused_version_stays_a_candidate(artefact, tmp_path):
    root = tmp_path / "registry"
    registry.publish(artefact, root, gate("refused"))
    assert registry.read_aliases(root) == {"candidate": 1}
    assert registry.find(root).name == "1", "served as a candidate where there is no champion"
    registry.publish(artefact, root, gate())
    registry.publish(artefact, root, gate("refused", champion=2))
    assert registry.find(root).name == "2"
    assert registry.verify(root / "thyroid" / "3")["parent"] == 2


def test_every_model_that_reads_a_test_set_is_counted_once(tmp_path):
    """Also where it is never registered: a test set that was read often says less."""
    root = tmp_path / "registry"
    assert [registry.read_test_set(root, "t", model) for model in ("a", "b", "b", "c", "a")] == [0, 1, 1, 2, 2]
    assert registry.read_test_set(root, "other", "a") == 0
    assert registry.read_test_set(None, "t", "z") == 0


def test_a_half_written_line_of_history_is_replaced(artefact, tmp_path):
    registry.publish(artefact, tmp_path, gate())
    file = tmp_path / "thyroid" / "history.jsonl"
    with file.open("a") as stream:
        stream.write('{"when": "2026')  # the power went
    assert len(registry.history(tmp_path)) == 1
    registry.publish(artefact, tmp_path, gate("refused"))
    assert [line["version"] for line in registry.history(tmp_path)] == [1, 2]


def test_an_unreadable_plan_is_said(artefact, tmp_path):
    registry.publish(artefact, tmp_path, gate())
    (tmp_path / "thyroid" / "pending.json").write_text("")
    with pytest.raises(InputError, match=r"pending\.json: not JSON"):
        registry.publish(artefact, tmp_path, gate("refused"))


def test_a_user_without_a_name_is_asked_for_one(artefact, tmp_path, capsys, monkeypatch):
    for _ in range(2):
        registry.publish(artefact, tmp_path, gate("refused"))

    def nobody():
        raise KeyError("uid not found: 1234")

    monkeypatch.setattr(registry.getpass, "getuser", nobody)
    where = ["--registry", str(tmp_path)]
    assert registry.main(["gc", *where]) == 0
    assert registry.main(["promote", *where, "1", "--reason", "r"]) == 2
    assert "say who answers for it with --by" in capsys.readouterr().err
    assert registry.main(["promote", *where, "1", "--reason", "r", "--by", "Kim"]) == 0


def test_an_artefact_that_was_not_judged_is_not_registered(evaluated, tmp_path):
    """A killed evaluation must not lend its decision to another model."""
    copy = shutil.copytree(evaluated, tmp_path / "evaluation")
    facts = json.loads((copy / "artefact" / "model.json").read_text())
    (copy / "artefact" / "model.json").write_text(json.dumps(facts | {"threshold": 0.9}))
    with pytest.raises(InputError, match=r"not the one that evaluation\.json judged"):
        register.register(copy, tmp_path / "registry", tmp_path / "summary.json")


def test_a_champion_that_changed_meanwhile_is_not_overrun(artefact, tmp_path):
    root = tmp_path / "registry"
    registry.publish(artefact, root, gate())
    done = registry.publish(artefact, root, gate(champion=None))  # decided before there was a champion
    assert done.gate["decision"] == "refused"
    assert "the champion changed from None to 1" in done.gate["reasons"][-1]
    assert registry.read_aliases(root) == {"candidate": 2, "champion": 1}


def test_promote_and_roll_back_keep_who_and_why(artefact, tmp_path):
    root = tmp_path / "registry"
    for decision in ("promoted", "refused"):
        registry.publish(artefact, root, gate(decision))
    assert registry.promote(root, "candidate", "the ward asked for it", "Kim") == 2
    assert registry.read_aliases(root) == {"candidate": 2, "champion": 2, "previous": 1}
    assert registry.roll_back(root, "it was worse", "Lee") == 1
    assert registry.read_aliases(root) == {"candidate": 2, "champion": 1, "previous": 2}
    assert [(line["action"], line["by"]) for line in registry.history(root)[2:]] == [
        ("promote", "Kim"),
        ("rollback", "Lee"),
    ]
    with pytest.raises(InputError, match="needs --reason"):
        registry.promote(root, "2", " ", "Kim")
    with pytest.raises(InputError, match="no registered model '9'"):
        registry.promote(root, "9", "because", "Kim")


def test_nothing_to_roll_back_to(artefact, tmp_path):
    with pytest.raises(InputError, match="no registry here"):
        registry.roll_back(tmp_path, "r", "b")
    registry.publish(artefact, tmp_path, gate())
    with pytest.raises(InputError, match="no previous champion"):
        registry.roll_back(tmp_path, "r", "b")


def test_a_damaged_version_is_not_promoted(artefact, tmp_path):
    for _ in range(2):
        registry.publish(artefact, tmp_path, gate("refused"))
    (tmp_path / "thyroid" / "1" / "model.keras").write_bytes(b"")
    with pytest.raises(InputError, match="changed since"):
        registry.promote(tmp_path, "1", "r", "b")
    assert registry.read_aliases(tmp_path) == {"candidate": 2}


def test_garbage_is_what_nothing_needs(artefact, tmp_path):
    registry.publish(artefact, tmp_path, gate())
    for _ in range(5):
        registry.publish(artefact, tmp_path, gate("refused"))
    home = tmp_path / "thyroid"
    (home / ".incoming-killed").mkdir()
    (home / ".incoming-running").mkdir()
    os.utime(home / ".incoming-killed", (0, 0))
    assert registry.collect_garbage(tmp_path, keep=2) == [2, 3, 4]
    assert registry.versions(tmp_path) == [1, 2, 3, 4, 5, 6], "nothing goes without --delete"
    assert registry.collect_garbage(tmp_path, keep=2, delete=True) == [2, 3, 4]
    assert registry.versions(tmp_path) == [1, 5, 6]
    assert sorted(path.name for path in home.glob(".*-*")) == [".incoming-running"]
    assert registry.publish(artefact, tmp_path, gate("refused")).version == 7
    with pytest.raises(InputError, match="at least the newest"):
        registry.collect_garbage(tmp_path, keep=0)
    assert registry.collect_garbage(tmp_path / "none", keep=1) == []


def test_commands(evaluated, tmp_path, capsys):
    root = tmp_path / "registry"
    registry.publish(
        evaluated / "artefact",
        root,
        gate() | {"criteria": [{"name": "AUROC", "asked": "a", "found": "f", "passed": True, "waived": False}]},
    )
    registry.publish(evaluated / "artefact", root, gate("refused", champion=1))
    where = ["--registry", str(root)]
    assert registry.main(["list", *where]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert "promoted" in lines[1]
    assert "champion" in lines[1]
    assert "candidate" in lines[2]
    assert registry.main(["show", *where, "champion"]) == 0
    shown = capsys.readouterr().out
    assert "holds  AUROC: f (asked: a)" in shown
    assert "test AUROC" in shown
    assert registry.main(["promote", *where, "2", "--reason", "asked for", "--by", "Kim"]) == 0
    assert registry.main(["rollback", *where, "--reason", "worse"]) == 0
    assert registry.main(["gc", *where, "--keep", "1"]) == 0
    assert "would be removed (with --delete): nothing" in capsys.readouterr().out
    (root / "thyroid" / "1" / "model.keras").write_bytes(b"")
    assert registry.main(["list", *where]) == 0
    assert "damaged" in capsys.readouterr().out
    assert registry.main(["show", *where, "7"]) == 2
    assert "no registered model '7'" in capsys.readouterr().err
    assert registry.main(["promote", "--registry", str(tmp_path / "no"), "1", "--reason", "r"]) == 2


def test_register_publishes_the_report_and_writes_the_summary(evaluated, tmp_path):
    done = register.register(evaluated, tmp_path / "registry", tmp_path / "summary.json")
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["model"] == {"name": "thyroid", "version": 1, "uri": done.uri, "sha256": done.sha256}
    assert set(summary) >= {"data", "models", "winner", "model", "seconds", "audits", "gate"}
    assert {"ingest", "crop", "train-VGG16-cropped", "evaluate", "register"} <= set(summary["seconds"])
    assert set(summary["data"]) == {"digest", "scans", "quarantined", "patients", "duplicate_groups", "splits"}
    assert set(summary["data"]["splits"]["test"]) == {"B", "M", "patients"}
    facts = registry.verify(Path(done.uri))
    assert {"report.html", "card.md", "model.keras", "development.txt"} <= set(facts["files"])
    assert summary["gate"] == facts["gate"]
    assert facts["parent"] is None
    assert facts["code_version"]
    assert len((Path(done.uri) / registry.DEVELOPMENT).read_text().split()) == sum(
        summary["data"]["splits"][split][label] for split in ("train", "validation") for label in "BM"
    )


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
