"""External validations beside a version: nothing is lost, and the version stays as it is."""

import json
import re
import shutil
from pathlib import Path

import pytest

from tests.registry.test_registry import add, gate, home, make
from tests.support import processes, validated
from thyroid import RESEARCH_USE_ONLY, storage
from thyroid.errors import InputError
from thyroid.model.artefact import Artefact
from thyroid.registry import __main__ as commands
from thyroid.registry import validations
from thyroid.registry.registry import BESIDE, Registry

pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")


@pytest.fixture
def root(place, tmp_path) -> str:
    """A registry with one version."""
    Registry(place).publish(make(tmp_path / "artefact", 1000), gate())
    return place


def record(root: str, site: str = "Seoul East", **changes) -> None:
    """Also for a pool of processes."""
    validations.record(Registry(root), 1, validated.of(root, site=site, **changes))


def text(root: str, name: str) -> str:
    return home(root).read(f"1/{name}")[0].decode()


def listed(root: str, capsys) -> list[list[str]]:
    assert commands.main(["list", "--registry", root]) == 0
    return [line.split() for line in capsys.readouterr().out.splitlines()]


def shown(root: str, capsys) -> str:
    assert commands.main(["show", "1", "--registry", root]) == 0
    return capsys.readouterr().out


def test_a_validation_is_kept_and_read_again(root):
    assert validations.read(Registry(root), 1) == []
    first, second = validated.of(root), validated.of(root, site="Busan", synthetic=240)
    validations.record(Registry(root), 1, first)
    validations.record(Registry(root), 1, second)
    assert validations.read(Registry(root), 1) == [first, second]


def test_the_version_stays_what_it_was(root, tmp_path):
    before = {path.name: path.read_bytes() for path in Registry(root).find("1").iterdir() if path.is_file()}
    uri = Registry(root).find("1")
    record(root)
    Artefact.verify(Registry(root).find("1"))
    after = {path.name: path.read_bytes() for path in Registry(root).find("1").iterdir() if path.is_file()}
    assert {name: data for name, data in after.items() if name not in BESIDE} == before
    assert Registry(root).find("1") == uri, "another place would be another model to the endpoint"
    assert Registry(root).publish(tmp_path / "artefact", gate()).version == 1
    if storage.is_bucket(root):
        assert not set(after) & set(BESIDE), "they would make another copy of the model each time"


def test_a_version_that_is_mended_keeps_its_validations(root, tmp_path):
    record(root)
    home(root).remove("1/model.keras")
    assert Registry(root).publish(tmp_path / "artefact", gate()).version == 1
    Artefact.verify(Registry(root).find("1"))
    assert len(validations.read(Registry(root), 1)) == 1


def test_a_version_that_is_removed_takes_its_validations_along(root, tmp_path):
    record(root)
    for _ in range(3):
        add(root, tmp_path)
    Registry(root).promote("4", "r", "b")
    assert 1 in Registry(root).collect_garbage(1, delete=True)
    assert "1" not in home(root).children()


def test_the_same_validation_is_added_once_and_a_recalibration_noted(root):
    for created in ("2025-03-01", "2025-03-02"):
        record(root, created=created)
    assert [entry.created for entry in validations.read(Registry(root), 1)] == ["2025-03-01"]
    record(root, recalibrated=7)
    record(root)
    assert [entry.recalibrated for entry in validations.read(Registry(root), 1)] == [7]
    for change in ({"site": "B"}, {"data_digest": "e" * 64}, {"boxes": "automatic"}, {"figures": {}}):
        record(root, **change)
    assert len(validations.read(Registry(root), 1)) == 5


def test_fields_of_a_newer_release_are_kept(root):
    record(root)
    content = json.loads(text(root, "validations.json"))
    content["validations"][0]["new"] = content["new"] = 5
    home(root).write("1/validations.json", json.dumps(content).encode())
    record(root, "Busan")
    content = json.loads(text(root, "validations.json"))
    assert content["new"] == content["validations"][0]["new"] == 5
    assert validations.sites(validations.read(Registry(root), 1)) == 2


def test_several_at_once_lose_nothing(root):
    names = [f"site {number}" for number in range(12)]
    with processes.pool(4) as several:
        several.starmap(record, [(root, name) for name in names])
    assert {entry.site for entry in validations.read(Registry(root), 1)} == set(names)
    assert set(re.findall(r"^## (site \d+),", text(root, "validations.md"), re.MULTILINE)) == set(names)
    assert Artefact.verify(Registry(root).find("1")).publication.version == 1


def test_what_was_measured_of_another_model_is_refused(root):
    with pytest.raises(InputError, match=r"version 1 .* not the model that was validated"):
        validations.record(Registry(root), 1, validated.entry())
    with pytest.raises(InputError, match="'2'"):
        validations.record(Registry(root), 2, validated.entry())
    assert validations.read(Registry(root), 1) == []


def test_a_version_that_is_removed_meanwhile_leaves_nothing_behind(root, tmp_path, monkeypatch):
    """The removal comes between the check of the version and the first file."""
    entry = validated.of(root)
    find = Registry.find

    def then_remove(self: Registry, *arguments) -> Path:
        found = find(self, *arguments)
        kept = shutil.copytree(found, tmp_path / "kept")
        monkeypatch.setattr(Registry, "find", find)
        for _ in range(3):
            add(root, tmp_path)
        Registry(root).promote("4", "r", "b")
        Registry(root).collect_garbage(1, delete=True)
        return kept

    monkeypatch.setattr(Registry, "find", then_remove)
    with pytest.raises(InputError, match="version 1 was removed"):
        validations.record(Registry(root), 1, entry)
    assert "1" not in home(root).children()


DAMAGED = [
    b"{",
    b"[]",
    b"7",
    b"{}",
    b'{"validations": [{}]}',
    b"\xff",
    b"[" * 100_000,
    b'{"validations": [], "x": NaN}',
    b'{"validations": [], "x": 1e999}',
    b"",
]


@pytest.mark.parametrize("content", DAMAGED, ids=lambda content: content[:20])
def test_a_damaged_file_is_named_and_stays_as_it_is(root, capsys, tmp_path, content):
    entry = validated.of(root)
    home(root).write("1/validations.json", content)
    for call in (lambda: validations.read(Registry(root), 1), lambda: validations.record(Registry(root), 1, entry)):
        with pytest.raises(InputError, match=r"thyroid/1/validations\.json"):
            call()
    assert home(root).read("1/validations.json")[0] == content
    assert "damaged" in listed(root, capsys)[1], "the list goes on"
    out = shown(root, capsys)
    assert "gate: promoted" in out
    assert "validations.json" in out
    Artefact.verify(Registry(root).find("1"))
    (tmp_path / "validations.json").write_bytes(content)
    assert validations.facts(tmp_path) is None, "unknown, which is not the same as never"


def test_the_list_counts_sites_and_show_tells_of_each(root, capsys):
    assert listed(root, capsys)[1][-6:] == ["promoted", "0", "-", "candidate,", "champion,", "anchor"]
    record(root)
    record(root, " seoul EAST ", boxes="automatic")
    record(root, "Busan", synthetic=5, figures={"auroc": validated.beside(0.9, 0.88)})
    assert listed(root, capsys)[0][-3:] == ["sites", "watch", "aliases"]
    assert listed(root, capsys)[1][-6:-4] == ["promoted", "2"]
    lines = shown(root, capsys).split("sites that it was validated at: 2\n")[1].splitlines()
    assert lines[0].startswith("2025-03-01T09:00:00+00:00 Seoul East by Kim: 240 images of 120 patients, 40 malignant")
    assert "AUROC 0.780 [0.730, 0.830] (internal 0.920, difference -0.140 [-0.210, -0.070])" in lines[1]
    assert "WARNING" in lines[2]
    assert "automatic boxes" in lines[3]
    assert "5 scans synthetic" in lines[6]
    assert len(lines) == 8, "an interval that includes 0 is no warning"


def test_people_read_the_same(root):
    record(root)
    record(root, "B | <b>x</b>\n# y", synthetic=9, recalibrated=3, created="2025-04-02T01:00:00+00:00", by="Lee")
    words = text(root, "validations.md")
    assert RESEARCH_USE_ONLY in words
    assert "Validations: 2. Sites: 2." in words
    newest, oldest = words.split("\n## ")[1:]
    assert newest.startswith(r"B \| \<b\>x\</b\> \# y, 2025-04-02")
    assert oldest.startswith("Seoul East, 2025-03-01")
    for part in ("By Kim", "240 images of 120 patients, 40 of them", "3 scans that the model knew were taken out"):
        assert part in oldest
    row = "| AUROC by image | 0.920 [0.870, 0.970] | 0.780 [0.730, 0.830] | -0.140 [-0.210, -0.070] |"
    assert row in oldest
    assert "| NPV at the stated prevalence by image | n/a | n/a | n/a |" in oldest
    assert "| AUROC by patient | 0.930 " in oldest
    assert re.search(r"\| slope .* \| 0\.800 \[0\.600, 1\.100\] \|", oldest)
    assert "Warning" in oldest
    assert "synthetic" not in oldest
    assert "9 scans are synthetic phantoms" in newest
    assert "registered as version 3" in newest


def test_a_table_that_a_kill_left_behind_is_written_by_the_next_validation(root):
    record(root)
    home(root).remove("1/validations.md")
    record(root)
    assert "Seoul East" in text(root, "validations.md")


def test_a_fall_is_a_difference_wholly_below_zero():
    def falls(high: float | None) -> bool:
        beside = validated.NONE | {"difference": validated.interval(-0.1, -0.2, high)}
        return validations.falls(validated.entry(figures={"auroc": beside}))

    assert [falls(high) for high in (-0.01, 0.0, 0.01, None)] == [True, False, False, False]
    assert not validations.falls(validated.entry(figures={}))
    assert not validations.falls(validated.entry(figures={"auroc": validated.NONE}))


def test_facts_follow_the_file_and_read_it_once(tmp_path, monkeypatch):
    read = []
    own = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: [read.append(path), own(path)][1])
    assert validations.facts(tmp_path) == []
    for sites in (["A"], ["A", "B"]):
        content = {"validations": [validated.entry(site=site).to_dict() for site in sites]}
        (tmp_path / "validations.json").write_text(json.dumps(content))
        for _ in range(3):
            told = validations.facts(tmp_path)
            assert told == content["validations"]
    assert len(read) == 2


def test_a_copy_of_a_bucket_gets_the_file_when_it_is_asked_for(tmp_path, gcs):
    root = gcs.address("registry")
    Registry(root).publish(make(tmp_path / "artefact", 1000), gate())
    folder = Registry(root).find()
    validations.fetch(Registry(root), 1, folder)
    assert validations.facts(folder) == []
    for site in ("A", "B"):
        record(root, site)
        validations.fetch(Registry(root), 1, folder)
        assert [entry["site"] for entry in validations.facts(folder)][-1] == site
    home(root).remove("1/validations.json")
    validations.fetch(Registry(root), 1, folder)
    assert validations.facts(folder) == []
    Artefact.verify(folder)
