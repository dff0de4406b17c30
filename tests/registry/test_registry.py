import datetime
import errno
import json
import os
import random
import re
import shutil
import time
import uuid
from pathlib import Path

import pandas as pd
import pytest

from tests.conftest import variant
from tests.support import processes, toy_artefact
from thyroid import storage
from thyroid.errors import InputError
from thyroid.model.artefact import CARD, SCANS, SUM, Artefact
from thyroid.records.evaluation import SummaryRecord
from thyroid.records.gate import GateRecord
from thyroid.registry import __main__ as commands
from thyroid.registry import claims, register
from thyroid.registry.registry import Registered, Registry


def make(folder: Path, size: int = 200_000) -> Path:
    """Another artefact."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.keras").write_bytes(os.urandom(size))
    (folder / "reference.jpg").write_bytes(b"picture")
    Artefact.describe(folder, toy_artefact.description())
    return folder


@pytest.fixture
def artefact(tmp_path: Path) -> Path:
    return make(tmp_path / "artefact")


def gate(decision: str = "promoted", champion: int | None = None, ahead_of: int | None = None) -> GateRecord:
    return toy_artefact.gate(decision, champion, [f"{decision} in a test"], ahead_of=ahead_of)


def add(root: storage.Location, folder: Path, decision: str = "promoted", ahead_of: int | None = None) -> Registered:
    """Publish a new artefact that was compared with the present champion."""
    champion = Registry(root).champion()
    return Registry(root).publish(make(folder / uuid.uuid4().hex, 1000), gate(decision, champion, ahead_of))


def publish_in(artefact: Path, root: storage.Location, decision: GateRecord) -> Registered:
    """For a pool of processes."""
    return Registry(root).publish(artefact, decision)


def publish_for_ever(root: storage.Location, folder: Path) -> None:
    """For a process that is killed."""
    while True:
        add(root, folder)


def home(root: storage.Location) -> storage.Folder | storage.Bucket:
    return storage.at(storage.below(root, "thyroid"))


def claim(age: datetime.timedelta) -> bytes:
    return f"{(datetime.datetime.now(datetime.UTC) - age).isoformat()} {uuid.uuid4().hex}".encode()


def test_versions_count_up_and_aliases_follow(artefact, tmp_path, place):
    first, second = Registry(place).publish(artefact, gate()), add(place, tmp_path)
    assert (first.version, second.version) == (1, 2)
    assert Registry(place).read_aliases() == {"candidate": 2, "champion": 2, "previous": 1, "anchor": 1}
    assert Registry(place).find("previous") == Registry(place).find("1")
    facts = Artefact.verify(Registry(place).find("1")).record
    assert facts.version == 1
    assert facts.files["model.keras"] == first.sha256
    assert Artefact.verify(Registry(place).find()).record.parent == 1
    assert first.uri == Registry(place).address(1)
    assert [line["aliases"]["champion"] for line in Registry(place).history()] == [1, 2]
    if storage.is_bucket(place):
        assert first.uri == f"{place}/thyroid/1"
    else:
        assert Registry(Path(place)).find() == Path(place) / "thyroid" / "2"


def test_the_same_artefact_is_registered_once(artefact, tmp_path, place):
    first = Registry(place).publish(artefact, gate())
    add(place, tmp_path, "refused")
    assert Registry(place).publish(artefact, gate("refused", champion=7)) == first
    assert Registry(place).versions() == [1, 2]
    assert len(Registry(place).history()) == 2
    Registry(place).promote("2", "r", "b")
    for _ in range(2):
        add(place, tmp_path)
    assert Registry(place).collect_garbage(1, delete=True) == [1]
    assert Registry(place).publish(artefact, gate("refused")).version == 5, "it is not there any more"


def test_a_version_that_lost_a_file_is_mended(artefact, place):
    Registry(place).publish(artefact, gate())
    home(place).remove("1/model.keras")
    with pytest.raises(InputError, match=r"model\.keras"):
        Artefact.verify(Registry(place).find())
    assert Registry(place).publish(artefact, gate()).version == 1
    Artefact.verify(Registry(place).find())


def test_a_bucket_hands_on_only_what_is_asked_for(artefact, gcs):
    root = gcs.address("registry")
    Registry(root).publish(artefact, gate())
    folder = Registry(root).find(only=CARD)
    assert [path.name for path in folder.iterdir()] == ["model.json"]
    assert Artefact.read(folder).record.version == 1
    gcs.proxy.requests.clear()
    assert Registry(root).find() == Registry(root).find()
    assert sum("alt=media" in path and "model.keras" in path for _, path in gcs.proxy.requests) == 1, "it is kept"


@pytest.mark.parametrize("name", ["model.keras", "reference.jpg"])
def test_a_changed_file_is_refused_by_name(artefact, tmp_path, name):
    with (artefact / name).open("ab") as file:
        file.write(b"x")
    with pytest.raises(InputError, match=re.escape(name)):
        Registry(tmp_path / "registry").publish(artefact, gate())
    assert Registry(tmp_path / "registry").versions() == []


def test_a_missing_file_is_refused_by_name(artefact):
    (artefact / "model.keras").unlink()
    with pytest.raises(InputError, match=r"model\.keras"):
        Artefact.verify(artefact)


def test_a_name_outside_the_model_is_refused(artefact):
    facts = json.loads((artefact / "model.json").read_text())
    facts["files"]["../../etc/passwd"] = "0"
    (artefact / "model.json").write_text(json.dumps(facts))
    with pytest.raises(InputError, match="passwd"):
        Artefact.verify(artefact)


def test_not_a_model(tmp_path):
    with pytest.raises(InputError, match=r"model\.json"):
        Artefact.verify(tmp_path)


@pytest.mark.parametrize("which", [None, "champion", "7", "../x"])
def test_what_is_not_there_is_said(place, which):
    with pytest.raises(InputError, match=re.escape(f"{which!r}" if which else place)):
        Registry(place).find(which)
    assert Registry(place).versions() == Registry(place).history() == []


@pytest.mark.parametrize("root", ["", "az://bucket/x", Path("gs://bucket/x")])
def test_what_is_no_registry_is_said(root):
    with pytest.raises(InputError, match="gs://bucket/prefix"):
        Registry(root).versions()


@pytest.mark.parametrize("content", ["{", "[]", "3", '{"candidate": 1}', ""])
def test_a_damaged_state_is_said(place, content):
    home(place).write("aliases.json", content.encode())
    with pytest.raises(InputError, match=r"aliases\.json"):
        Registry(place).read_aliases()


@pytest.mark.parametrize("number", [2, 4])
def test_several_at_once_lose_nothing(tmp_path, place, number):
    made = [make(tmp_path / str(number), 20_000) for number in range(12)]
    with processes.pool(number) as several:
        done = several.starmap(publish_in, [(one, place, gate("refused")) for one in made])
    assert sorted(d.version for d in done) == Registry(place).versions() == list(range(1, 13))
    assert Registry(place).read_aliases() == {"candidate": 12}
    assert sorted(line["version"] for line in Registry(place).history()) == list(range(1, 13))
    for one in done:
        assert Artefact.verify(Registry(place).find(str(one.version))).record.files["model.keras"] == one.sha256


def test_the_same_artefact_at_once_is_registered_once(artefact, place):
    with processes.pool(4) as several:
        done = several.starmap(publish_in, [(artefact, place, gate())] * 8)
    assert Registry(place).versions() == [done[0].version]
    assert {one.version for one in done} == {done[0].version}
    assert home(place).children() == [str(done[0].version), "aliases.json"]
    assert Registry(place).read_aliases() == dict.fromkeys(("candidate", "champion", "anchor"), done[0].version)


def test_killed_at_any_moment_no_half_version_is_visible(tmp_path, place):
    dice, before = random.Random(0), 0
    for _ in range(6):
        process = processes.process(publish_for_ever, place, tmp_path)
        process.start()
        deadline = time.monotonic() + 60
        while len(Registry(place).versions()) < before + 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(dice.random() * 0.2)
        process.kill()
        process.join()
        before = len(Registry(place).versions())
    last = Registry(place).versions()[-1]
    assert before >= 12
    assert add(place, tmp_path, "refused").version > last
    numbers = Registry(place).versions()
    assert [line["version"] for line in Registry(place).history()] == numbers
    facts = [Artefact.verify(Registry(place).find(str(number))).publication for number in numbers]
    assert [one.version for one in facts] == numbers
    assert [one.gate.decision for one in facts] == ["promoted"] * before + ["refused"]
    assert [one.parent for one in facts] == [None, *numbers[:-2], numbers[-2]]
    assert Registry(place).read_aliases() == {
        "candidate": numbers[-1],
        "champion": numbers[-2],
        "previous": numbers[-3],
        "anchor": numbers[0],
    }


class Killed(BaseException):
    pass


STEPS = ("claim", "put", "model.json", "its sum", "before the commit", "after the commit", "claim removed")


@pytest.mark.parametrize("step", STEPS)
def test_killed_after_each_step(artefact, tmp_path, place, monkeypatch, step):
    """What was killed before its commit is not there and keeps its number; what was killed after it is."""
    add(place, tmp_path)
    kind = type(home(place))
    write, put, remove = kind.write, kind.put, kind.remove

    def written(self, name, data, generation=None):
        if step == "before the commit" and name == "aliases.json":
            raise Killed
        write(self, name, data, generation)
        steps = {"2/.claim": "claim", "2/model.json": "model.json", f"2/{SUM}": "its sum"}
        if step == (steps | {"aliases.json": "after the commit"})[name]:
            raise Killed

    def been_put(self, *arguments):
        put(self, *arguments)
        if step == "put":
            raise Killed

    def removed(self, name):
        remove(self, name)
        if step == "claim removed":
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(kind, "write", written)
        patch.setattr(kind, "put", been_put)
        patch.setattr(kind, "remove", removed)
        with pytest.raises(Killed):
            Registry(place).publish(artefact, gate(champion=1))
    there = step in ("after the commit", "claim removed")
    assert Registry(place).versions() == ([1, 2] if there else [1])
    done = Registry(place).publish(artefact, gate(champion=1))
    assert done.version == (2 if there else 3)
    assert done.gate.decision == "promoted"
    aliases = {"candidate": done.version, "champion": done.version, "previous": 1, "anchor": 1}
    assert Registry(place).read_aliases() == aliases
    assert [line["version"] for line in Registry(place).history()] == [1, done.version]


@pytest.mark.parametrize("own", ["publish", "promote", "roll back", "gc", "test set"])
def test_a_change_whose_answer_is_lost_is_made_once(artefact, tmp_path, gcs, own):
    """Somebody else writes before it is asked for again, so that the object is not as this one left it."""
    root = gcs.address("registry")
    for ahead_of in (None, None, 1):
        add(root, tmp_path, ahead_of=ahead_of)
    done = []

    def rule(method: str, path: str) -> str | None:
        if method == "POST" and not done and commits.pop(0):
            done.append(path)
            return "lost"
        if done == [path]:
            done.append("meanwhile")
            Registry(root).read_test_set("another", "another")
        return None

    uploads = {"publish": 4, "gc": 1}.get(own, 0)  # before the commit: claim, two files, model.json; claim of what goes
    commits = [False] * uploads + [True]
    gcs.proxy.rule = rule
    before = Registry(root).history()
    if own == "publish":
        assert Registry(root).publish(artefact, gate(champion=3)).version == 4
        expected = {"candidate": 4, "champion": 4, "previous": 3, "anchor": 3}
    elif own == "promote":
        assert Registry(root).promote("1", "r", "b") == 1
        expected = {"candidate": 3, "champion": 1, "previous": 3, "anchor": 1}
    elif own == "roll back":
        assert Registry(root).roll_back("r", "b") == 2
        expected = {"candidate": 3, "champion": 2, "previous": 1, "anchor": 2}
    elif own == "gc":
        assert Registry(root).collect_garbage(1, delete=True) == [1]
        assert Registry(root).versions() == [2, 3]
        assert gcs.client.bucket(gcs.bucket).get_blob("registry/thyroid/1/model.keras") is None
        expected = {"candidate": 3, "champion": 3, "previous": 2, "anchor": 3}
    else:
        assert Registry(root).read_test_set("t", "m") == 0
        expected = {"candidate": 3, "champion": 3, "previous": 2, "anchor": 3}
    assert len(done) == 2, "the answer was lost, and somebody else wrote"
    assert Registry(root).read_aliases() == expected
    assert len(Registry(root).history()) == len(before) + (own != "test set")
    assert Registry(root).read_test_set("another", "m") == 1


@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")  # Google's client lets go of a broken connection
def test_an_unreliable_bucket(tmp_path, gcs):
    root = gcs.address("registry")
    gcs.proxy.randomly(60, 0.3, seed=1)
    done = [add(root, tmp_path) for _ in range(6)]
    assert gcs.proxy.faults > 30
    assert [one.version for one in done] == Registry(root).versions() == [1, 2, 3, 4, 5, 6]
    assert [line["version"] for line in Registry(root).history()] == [1, 2, 3, 4, 5, 6]
    assert Registry(root).collect_garbage(1, delete=True) == [2, 3, 4]
    for version in (1, 5, 6):
        Artefact.verify(Registry(root).find(str(version)))


def test_a_full_disk_leaves_nothing(artefact, tmp_path, monkeypatch):
    def full(self, source, name, only=()):
        (self.path / name / "model.keras").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(storage.Folder, "put", full)
    with pytest.raises(OSError) as caught:  # noqa: PT011 - the number says which
        Registry(tmp_path / "registry").publish(artefact, gate())
    assert caught.value.errno == errno.ENOSPC
    assert home(tmp_path / "registry").children() == []


def test_a_refused_version_stays_a_candidate(tmp_path, place):
    add(place, tmp_path, "refused")
    assert Registry(place).read_aliases() == {"candidate": 1}
    served = Artefact.verify(Registry(place).find()).record
    assert served.version == 1, "served as a candidate where there is no champion"
    add(place, tmp_path)
    add(place, tmp_path, "refused")
    assert Artefact.verify(Registry(place).find()).record.version == 2
    assert Artefact.verify(Registry(place).find("3")).record.parent == 2


def test_every_model_that_reads_a_test_set_is_counted_once(place):
    """Also where it is never registered: a test set that was read often says less."""
    assert [Registry(place).read_test_set("t", model) for model in ("a", "b", "b", "c", "a")] == [0, 1, 1, 2, 2]
    assert Registry(place).read_test_set("other", "a") == 0


def test_a_user_without_a_name_is_asked_for_one(tmp_path, capsys, monkeypatch):
    for _ in range(2):
        add(tmp_path, tmp_path, "refused")

    def nobody():
        raise KeyError("uid not found: 1234")

    monkeypatch.setattr("getpass.getuser", nobody)
    where = ["--registry", str(tmp_path)]
    assert commands.main(["gc", *where]) == 0
    assert commands.main(["promote", *where, "1", "--reason", "r"]) == 2
    assert "--by" in capsys.readouterr().err
    assert commands.main(["promote", *where, "1", "--reason", "r", "--by", "Kim"]) == 0


def test_an_artefact_that_was_not_judged_is_not_registered(evaluated, tmp_path):
    """A killed evaluation must not lend its decision to another model."""
    copy = shutil.copytree(evaluated, tmp_path / "evaluation")
    facts = json.loads((copy / "artefact" / "model.json").read_text())
    (copy / "artefact" / "model.json").write_text(json.dumps(facts | {"threshold": 0.9}))
    with pytest.raises(InputError, match=r"evaluation\.json"):
        register.register(copy, tmp_path / "registry", tmp_path / "summary.json")


def test_a_champion_that_changed_meanwhile_is_not_overrun(artefact, tmp_path, place):
    add(place, tmp_path)
    done = Registry(place).publish(artefact, gate(champion=None))  # decided before there was a champion
    assert done.gate.decision == "refused"
    assert re.search(r"champion.*\b1\b", done.gate.reasons[-1])
    assert Registry(place).read_aliases() == {"candidate": 2, "champion": 1, "anchor": 1}


def test_a_champion_that_changes_while_files_are_copied_is_not_overrun(artefact, tmp_path, place, monkeypatch):
    """A change between the decision and the commit leads to a new decision, which model.json records."""
    kind = type(home(place))
    write = kind.write

    def late(self, name, data, generation=None):
        if name == "aliases.json":
            monkeypatch.setattr(kind, "write", write)
            assert add(place, tmp_path).version == 2
        write(self, name, data, generation)

    monkeypatch.setattr(kind, "write", late)
    done = Registry(place).publish(artefact, gate())
    assert (done.version, done.gate.decision) == (1, "refused")
    facts = Artefact.verify(Registry(place).find("1")).record
    assert (facts.parent, facts.gate) == (2, done.gate)
    assert Registry(place).read_aliases() == {"candidate": 2, "champion": 2, "anchor": 2}


def test_a_publication_that_was_taken_for_dead_starts_anew(artefact, tmp_path, place, monkeypatch):
    """Its process was stopped for days, and the leftovers were cleared away."""
    kind = type(home(place))
    put = kind.put

    def slow(self, source, name, only=()):
        monkeypatch.setattr(kind, "put", put)
        self.write(f"{name}/.claim", claim(datetime.timedelta(days=2)))
        assert Registry(place).collect_garbage(1, delete=True) == []
        assert add(place, tmp_path, "refused").version == 2
        put(self, source, name, only)

    monkeypatch.setattr(kind, "put", slow)
    assert Registry(place).publish(artefact, gate()).version == 3
    assert home(place).children() == ["2", "3", "aliases.json"]


def test_a_number_that_another_one_published_meanwhile_is_left_alone(artefact, tmp_path, place, monkeypatch):
    """Claimed, published and the claim gone again between looking for a number and claiming it."""
    kind, others = type(home(place)), []
    children = kind.children

    def late(self):
        names = children(self)
        monkeypatch.setattr(kind, "children", children)
        others.append(add(place, tmp_path, "refused"))
        return names

    monkeypatch.setattr(kind, "children", late)
    done = Registry(place).publish(artefact, gate())
    assert ([one.version for one in others], done.version) == ([1], 2)
    for one in (*others, done):
        assert Artefact.verify(Registry(place).find(str(one.version))).record.files["model.keras"] == one.sha256
    assert home(place).read("1/.claim") == home(place).read("2/.claim") == (b"", storage.ABSENT)


def test_promote_and_roll_back_keep_who_and_why(tmp_path, place):
    for decision in ("promoted", "refused"):
        add(place, tmp_path, decision)
    assert Registry(place).promote("candidate", "the ward asked for it", "Kim") == 2
    assert Registry(place).read_aliases() == {"candidate": 2, "champion": 2, "previous": 1, "anchor": 2}
    assert Registry(place).roll_back("it was worse", "Lee", champion=1) == 2, "another champion by now"
    assert Registry(place).roll_back("it was worse", "Lee") == 1
    assert Registry(place).read_aliases() == {"candidate": 2, "champion": 1, "anchor": 1}
    assert [(line["action"], line["by"]) for line in Registry(place).history()[2:]] == [
        ("promote", "Kim"),
        ("rollback", "Lee"),
    ]
    with pytest.raises(InputError, match="--reason"):
        Registry(place).promote("2", " ", "Kim")
    with pytest.raises(InputError, match="'9'"):
        Registry(place).promote("9", "because", "Kim")


def test_a_roll_back_never_returns_to_a_version_that_was_rolled_back(tmp_path, place):
    for _ in range(3):
        add(place, tmp_path)
    assert Registry(place).roll_back("answers wrongly", "deploy", champion=3) == 2
    assert Registry(place).refuted() == {3: "answers wrongly"}
    assert Registry(place).read_aliases() == {"candidate": 3, "champion": 2, "previous": 1, "anchor": 1}
    assert Registry(place).roll_back("its pod was away", "deploy", champion=2) == 1
    assert Registry(place).read_aliases() == {"candidate": 3, "champion": 1, "anchor": 1}
    with pytest.raises(InputError, match="previous"):
        Registry(place).roll_back("once more", "Lee")
    assert Registry(place).promote("2", "the pod was to blame", "Kim") == 2
    assert Registry(place).refuted() == {3: "answers wrongly"}
    assert Registry(place).earlier() == [1]
    Registry(place).promote("3", "looked at", "Kim")
    assert Registry(place).earlier() == [2, 1]
    assert Registry(place).read_aliases()["anchor"] == 3
    assert Registry(place).roll_back("no, after all", "Kim") == 2
    assert Registry(place).read_aliases()["anchor"] == 2, "a refuted version is nothing to compare with"
    Registry(place).promote("3", "looked at again", "Kim")
    assert Registry(place).collect_garbage(1, delete=True) == [1]
    assert Registry(place).earlier() == [2], "what is gone is no target"


def test_a_version_is_unproven_from_when_it_is_sent_until_it_answers(tmp_path, place):
    add(place, tmp_path)
    assert not Registry(place).is_unproven(1)
    for action, unproven in (("sent", True), ("sent", True), ("proven", False), ("proven", False), ("sent", False)):
        Registry(place).note_deployment(action, 1, "in namespace lab")
        assert Registry(place).is_unproven(1) == unproven
    assert [(line["action"], line["by"]) for line in Registry(place).history()[1:]] == [
        ("sent", "deploy"),
        ("proven", "deploy"),
    ]


def test_nothing_to_roll_back_to(tmp_path, place):
    with pytest.raises(InputError, match=re.escape(place)):
        Registry(place).roll_back("r", "b")
    add(place, tmp_path)
    with pytest.raises(InputError, match="previous"):
        Registry(place).roll_back("r", "b")


def test_a_damaged_version_is_not_promoted(tmp_path, place):
    for _ in range(2):
        add(place, tmp_path, "refused")
    home(place).write("1/model.keras", b"")
    with pytest.raises(InputError, match=r"model\.keras"):
        Registry(place).promote("1", "r", "b")
    assert Registry(place).read_aliases() == {"candidate": 2}


def test_garbage_is_what_nothing_needs(tmp_path, place):
    add(place, tmp_path)
    for _ in range(5):
        add(place, tmp_path, "refused")
    there, day = home(place), datetime.timedelta(days=1)
    ages = {7: 2 * day, 8: 0.5 * day, 9: -3 * day}
    for number, age in ages.items():
        there.write(f"{number}/model.keras", b"half")
        there.write(f"{number}/.claim", claim(age))
    there.write("10/model.keras", b"whose is it?")
    there.write("6/.claim", claim(3 * day))  # killed between its commit and the end
    assert Registry(place).collect_garbage(keep=2) == [2, 3, 4]
    assert Registry(place).versions() == [1, 2, 3, 4, 5, 6], "nothing goes without --delete"
    assert Registry(place).collect_garbage(keep=2, delete=True) == [2, 3, 4]
    assert Registry(place).versions() == [1, 5, 6]
    assert there.children() == ["1", "10", "5", "6", "8", "9", "aliases.json"]
    assert there.read("6/.claim") == (b"", storage.ABSENT)
    assert Registry(place).history()[-1]["reason"] == "removed 2, 3, 4, 7 (half-written)"
    assert add(place, tmp_path, "refused").version == 11
    with pytest.raises(InputError, match="--keep"):
        Registry(place).collect_garbage(keep=0)
    assert Registry(storage.below(place, "none")).collect_garbage(keep=1, delete=True) == []


def test_a_number_is_not_used_again(tmp_path, place):
    home(place).write("7/.claim", claim(datetime.timedelta(days=2)))
    assert Registry(place).collect_garbage(1, delete=True) == []
    assert "7" not in home(place).children()
    assert add(place, tmp_path).version == 8


def test_a_killed_collection_is_finished_by_the_next(tmp_path, place, monkeypatch):
    for _ in range(3):
        add(place, tmp_path, "refused")
    kind, now = type(home(place)), claims.now

    def killed(self, name):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(kind, "remove", killed)
        with pytest.raises(Killed):
            Registry(place).collect_garbage(1, delete=True)
    assert Registry(place).versions() == [3]
    monkeypatch.setattr(claims, "now", lambda: now() + datetime.timedelta(days=2))
    assert Registry(place).collect_garbage(1, delete=True) == []
    assert home(place).children() == ["3", "aliases.json"]


def test_what_is_promoted_during_a_collection_stays(tmp_path, place, monkeypatch):
    for _ in range(3):
        add(place, tmp_path, "refused")
    kind = type(home(place))
    write = kind.write

    def late(self, name, data, generation=None):
        if name == "aliases.json":
            monkeypatch.setattr(kind, "write", write)
            Registry(place).promote("1", "r", "b")
        write(self, name, data, generation)

    monkeypatch.setattr(kind, "write", late)
    assert Registry(place).collect_garbage(1, delete=True) == [2]
    assert Registry(place).versions() == [1, 3]
    Artefact.verify(Registry(place).find("champion"))


def test_commands(evaluated, tmp_path, capsys, place):
    criterion = {"name": "AUROC", "asked": "a", "found": "f", "passed": True, "waived": False}
    Registry(place).publish(evaluated / "artefact", toy_artefact.gate(criteria=[criterion]))
    Registry(place).publish(variant(evaluated / "artefact", tmp_path), gate("refused", champion=1))
    where = ["--registry", place]
    assert commands.main(["list", *where]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert "promoted" in lines[1]
    assert "champion" in lines[1]
    assert "candidate" in lines[2]
    assert commands.main(["show", *where, "champion"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"\bAUROC: f\b.*\ba\)", shown)
    assert str(Artefact.read(evaluated / "artefact").performance.auroc) in shown
    assert commands.main(["promote", *where, "2", "--reason", "asked for", "--by", "Kim"]) == 0
    assert commands.main(["rollback", *where, "--reason", "worse"]) == 0
    assert commands.main(["gc", *where, "--keep", "1"]) == 0
    assert "--delete" in capsys.readouterr().out
    assert Registry(place).versions() == [1, 2]
    home(place).write("1/model.json" if storage.is_bucket(place) else "1/model.keras", b"")
    assert commands.main(["list", *where]) == 0
    assert "damaged" in capsys.readouterr().out
    assert commands.main(["show", *where, "7"]) == 2
    assert "'7'" in capsys.readouterr().err
    assert commands.main(["promote", "--registry", str(tmp_path / "no"), "1", "--reason", "r"]) == 2


def test_register_publishes_the_report_and_writes_the_summary(evaluated, tmp_path):
    done = register.register(evaluated, tmp_path / "registry", tmp_path / "summary.json")
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["model"] == {"name": "thyroid", "version": 1, "uri": done.uri, "sha256": done.sha256}
    assert set(summary) >= {"data", "models", "winner", "model", "seconds", "audits", "gate"}
    assert {"ingest", "crop", "train-VGG16-cropped", "evaluate", "register"} <= set(summary["seconds"])
    assert set(summary["data"]) == {"digest", "scans", "quarantined", "patients", "duplicate_groups", "splits"}
    assert set(summary["data"]["splits"]["test"]) == {"B", "M", "patients"}
    facts = Artefact.verify(Path(done.uri)).record
    assert {"report.html", "card.md", "model.keras", SCANS} <= set(facts.files)
    assert summary["gate"] == facts.gate.to_dict()
    assert facts.parent is None
    assert facts.code_version
    learnt = pd.read_csv(Path(done.uri) / SCANS)["split"].value_counts()
    for split, counts in summary["data"]["splits"].items():
        assert learnt[split] == counts["B"] + counts["M"]
    assert register.register(evaluated, tmp_path / "registry", tmp_path / "again.json") == done, (
        "a retry doubles nothing"
    )
    assert json.loads((tmp_path / "again.json").read_text())["model"] == summary["model"]


def test_the_gates_decision_is_told_once(evaluated, tmp_path, receiver, monkeypatch):
    monkeypatch.setenv("THYROID_RUN_ID", "run-7")
    for _ in range(2):
        done = register.register(evaluated, tmp_path / "registry", tmp_path / "summary.json")
    (told,) = receiver.messages
    assert told.event == {"promoted": "gate.released", "refused": "gate.refused"}[done.gate.decision]
    backbone = SummaryRecord.read(tmp_path / "summary.json").winner.backbone
    assert told.sentence.startswith(f"Version 1 ({backbone}) was ")
    assert (told.version, told.run, told.link) == (1, "run-7", f"{done.uri}/report.html")
    assert Path(told.link).is_file()


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
    assert "evaluation.json" in capsys.readouterr().err


def test_a_damaged_winner_is_not_registered(evaluated, tmp_path):
    copy = shutil.copytree(evaluated, tmp_path / "evaluation")
    (copy / "artefact" / "model.keras").write_bytes(b"")
    with pytest.raises(InputError, match=r"model\.keras"):
        register.register(copy, tmp_path / "registry", tmp_path / "summary.json")
    assert Registry(tmp_path / "registry").versions() == []


def test_the_anchor_moves_only_to_what_is_ahead_of_it(tmp_path, place):
    """The anchor is there for comparison, however many champions there have been since."""
    for _ in range(4):
        add(place, tmp_path)
    assert Registry(place).read_aliases() == {"candidate": 4, "champion": 4, "previous": 3, "anchor": 1}
    assert Registry(place).collect_garbage(1, delete=True) == [2]
    Artefact.verify(Registry(place).find("anchor"))
    add(place, tmp_path, "refused", ahead_of=1)
    assert Registry(place).read_aliases()["anchor"] == 1, "what is not the champion is not the anchor"
    add(place, tmp_path, ahead_of=4)
    assert Registry(place).read_aliases()["anchor"] == 1, "it was ahead of another one"
    add(place, tmp_path, ahead_of=1)
    assert Registry(place).read_aliases()["anchor"] == 7
    assert [line["aliases"]["anchor"] for line in Registry(place).history()][-3:] == [1, 1, 7]


def aged(root: storage.Location) -> bytes:
    """Make the registry one from before there were hashes and an anchor; returns its aliases.json."""
    state = json.loads(home(root).read("aliases.json")[0])
    del state["sha256"], state["anchor"]
    for version in state["versions"].values():
        del version["published"]
    data = (json.dumps(state, indent=2) + "\n").encode()
    home(root).write("aliases.json", data)
    return data


def test_an_old_registry_is_filled_by_the_first_write(tmp_path, place):
    for _ in range(3):
        add(place, tmp_path)
    before = json.loads(home(place).read("aliases.json")[0])
    old = aged(place)
    assert Registry(place).read_aliases() == {"candidate": 3, "champion": 3, "previous": 2, "anchor": 3}
    assert Artefact.verify(Registry(place).find()).record.version == 3
    assert home(place).read("aliases.json")[0] == old, "reading writes nothing"
    Registry(place).read_test_set("t", "m")
    after = json.loads(home(place).read("aliases.json")[0])
    assert after["versions"] == before["versions"]
    assert (after["anchor"], set(after)) == (3, set(before))
    assert Artefact.verify(Registry(place).find()).record.version == 3


def test_an_old_registry_does_not_take_a_changed_model_for_whole(tmp_path, place):
    for _ in range(2):
        add(place, tmp_path)
    aged(place)
    card = home(place).read("1/model.json")[0]
    home(place).write("1/model.json", card.replace(b"VGG16", b"VGG19"))
    for _ in range(2):
        with pytest.raises(InputError, match=r"model\.json"):
            Registry(place).find("1")
        Registry(place).find("2")
        Registry(place).read_test_set("t", "m")


@pytest.mark.parametrize(
    "change", [(b'"history"', b'"histori"'), (b'\n  "champion"', b'\n  "champiom"'), (b'"source"', b'"sourcf"')]
)
def test_a_damaged_old_state_is_said(tmp_path, place, change):
    add(place, tmp_path)
    old = aged(place)
    assert old.count(change[0]) >= 1
    home(place).write("aliases.json", old.replace(*change, 1))
    with pytest.raises(InputError, match=r"aliases\.json"):
        Registry(place).read_aliases()


def looked_at(root: storage.Location) -> tuple:
    """All that can be read of a registry."""
    versions = Registry(root).versions()
    every = [Artefact.verify(Registry(root).find(str(version))).record for version in versions]
    return versions, every, Registry(root).read_aliases(), Registry(root).history()


def flip(data: bytes, place: int, bits: int) -> bytes:
    return data[:place] + bytes([data[place] ^ bits]) + data[place + 1 :]


@pytest.mark.parametrize("every", [9, pytest.param(1, marks=pytest.mark.slow)])
def test_no_flipped_byte_is_silent(tmp_path, every):
    """Every byte of every file, one after the other; without the slow tests each ninth."""
    root, dice = tmp_path / "registry", random.Random(0)
    for decision in ("promoted", "refused"):
        Registry(root).publish(make(tmp_path / uuid.uuid4().hex, 800), gate(decision, Registry(root).champion()))
    before, flips = looked_at(root), 0
    for file in sorted(path for path in (root / "thyroid").rglob("*") if path.is_file() and path.stat().st_size):
        data = file.read_bytes()
        for spot in range(0, len(data), every):
            file.write_bytes(flip(data, spot, dice.randrange(1, 256)))
            with pytest.raises(InputError, match=file.name):
                looked_at(root)
            flips += 1
        file.write_bytes(data)
    assert flips > 3500 / every
    assert looked_at(root) == before


def test_no_flipped_byte_of_a_bucket_is_silent(tmp_path, gcs):
    root, dice = gcs.address("registry"), random.Random(0)
    add(root, tmp_path)
    before = looked_at(root)
    names = [name for name in gcs.names() if not name.endswith("/")]
    whole = {"aliases.json", "model.json", SUM, "model.keras", "reference.jpg"}
    assert {Path(name).name for name in names} == whole
    for name in names:
        data = gcs.client.bucket(gcs.bucket).blob(name).download_as_bytes()
        for _ in range(3):
            gcs.put({name: flip(data, dice.randrange(len(data)), dice.randrange(1, 256))})
            with pytest.raises(InputError, match=Path(name).name):
                looked_at(root)
        gcs.put({name: data})
    assert looked_at(root) == before


def test_no_flipped_byte_is_silent_where_a_folder_is_all_there_is(tmp_path):
    """As KServe mounts it: without the registry's state."""
    root, dice = tmp_path / "registry", random.Random(0)
    published = Registry(root).publish(make(tmp_path / "artefact", 800), gate())
    folder = Path(published.uri)
    before = Artefact.verify(folder).record
    for file in (path for path in folder.rglob("*") if path.is_file() and path.stat().st_size):
        data = file.read_bytes()
        for spot in range(0, len(data), 5):
            file.write_bytes(flip(data, spot, dice.randrange(1, 256)))
            with pytest.raises(InputError, match=file.name):
                Artefact.verify(folder)
        file.write_bytes(data)
    assert Artefact.verify(folder).record == before


def test_commands_name_what_was_changed(evaluated, tmp_path, capsys):
    root = tmp_path / "registry"
    Registry(root).publish(evaluated / "artefact", gate())
    where, dice = ["--registry", str(root)], random.Random(1)
    for name in ("1/model.json", "aliases.json"):
        file = root / "thyroid" / name
        data = file.read_bytes()
        for _ in range(20):
            file.write_bytes(flip(data, dice.randrange(len(data)), 1 << dice.randrange(8)))
            assert commands.main(["show", *where, "1"]) == 2
            assert file.name in capsys.readouterr().err
            assert commands.main(["promote", *where, "1", "--reason", "r", "--by", "b"]) == 2
            assert commands.main(["list", *where]) == (0 if name == "1/model.json" else 2)
            told = capsys.readouterr()
            assert file.name in told.out + told.err
        file.write_bytes(data)


def test_a_changed_threshold_is_neither_served_nor_deployed(evaluated, tmp_path):
    """One byte of model.json, which every other check lets pass."""
    import asyncio

    from thyroid.deploy import deploy
    from thyroid.serve.options import ServeOptions
    from thyroid.serve.state import Loader, State

    root = tmp_path / "registry"
    Registry(root).publish(evaluated / "artefact", gate())
    file = root / "thyroid" / "1" / "model.json"
    data = file.read_bytes()
    spot = data.index(b'"threshold": 0.') + len(b'"threshold": 0.')
    one = Loader(State(ServeOptions(registry=root)))
    for content, whole in ((flip(data, spot, 4), False), (data, True)):
        file.write_bytes(content)
        assert json.loads(content)["threshold"] != json.loads(data)["threshold"] or whole
        (name, target), *_ = one.wanted().items()
        if whole:
            asyncio.run(one._load(name, target))
            assert deploy.deploy(root, None, tmp_path / "manifest.yaml").status == "manifest written"
            continue
        with pytest.raises(InputError, match=r"model\.json"):
            asyncio.run(one._load(name, target))
        with pytest.raises(InputError, match=r"model\.json"):
            deploy.deploy(root, None, tmp_path / "manifest.yaml")
        assert not (tmp_path / "manifest.yaml").exists()


@pytest.mark.parametrize("content", [b"yesterday", b" ", b"\xff\xfe", b"9999-99-99T00:00:00+00:00 x"])
def test_a_damaged_claim_is_said(tmp_path, place, content):
    add(place, tmp_path)
    home(place).write("2/.claim", content)
    with pytest.raises(InputError, match=r"2/\.claim"):
        Registry(place).collect_garbage(1, delete=True)
