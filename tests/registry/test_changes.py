"""What is new since the last registered model, and whether it is worth a training."""

import json
import re
from pathlib import Path

import pandas as pd
import pytest

from tests.support import toy_artefact
from tests.support.records import data_record
from thyroid import storage
from thyroid.data import tables
from thyroid.data.version import DataVersion
from thyroid.errors import InputError
from thyroid.model.artefact import CARD, SCANS, Artefact, sha256
from thyroid.records.watch import WatchEntry
from thyroid.registry import changes
from thyroid.registry.beside import watches
from thyroid.registry.registry import Registry

Scans = dict[str, tuple[str, list[tuple[int, int, int, int]]]]
"""SHA-256 to label and regions."""
FIRST: Scans = {
    "a": ("B", []),
    "b": ("B", [(1, 2, 3, 4), (5, 6, 7, 8)]),
    "c": ("M", []),
    "d": ("M", [(1, 1, 1, 1)]),
}


def version(folder: Path, scans: Scans, quarantined: tuple[str, ...] = (), split: str = "train") -> Path:
    """A data version with these scans."""
    rows = [
        {
            "path": f"/scans/{sha256}",
            "class": label,
            "label": label,
            "split": split,
            "sha256": sha256,
            "quarantine_reason": "damaged" if sha256 in quarantined else None,
        }
        for sha256, (label, _) in scans.items()
    ]
    regions = [
        {"path": f"/scans/{sha256}", "index": index, "x": x, "y": y, "width": width, "height": height}
        for sha256, (_, boxes) in scans.items()
        for index, (x, y, width, height) in enumerate(boxes)
    ]
    tables.write(folder, tables.frame(rows, tables.SCANS), tables.frame(regions, tables.REGIONS), data_record())
    return folder


def register(root: storage.Location, folder: Path, scans: Scans, decision: str = "promoted", **described: str) -> int:
    """A model that was made of these scans."""
    table = tables.contents(*tables.read(version(folder / "data", scans))[:2])
    artefact = folder / "artefact"
    artefact.mkdir()
    table.to_csv(artefact / SCANS, index=False)
    (artefact / "model.keras").write_text(str(folder))
    (artefact / "reference.jpg").write_bytes(b"picture")
    Artefact.describe(artefact, toy_artefact.description().model_copy(update=described))
    champion = Registry(root).champion()
    return Registry(root).publish(artefact, toy_artefact.gate(decision, champion, [])).version


def test_without_a_model_everything_is_new(tmp_path, place):
    found = changes.since_last(DataVersion.read(version(tmp_path / "now", FIRST, quarantined=("d",))), place)
    assert found == changes.Changes(None, {"a": "B", "b": "B", "c": "M"}, {}, {}, 0)
    assert re.findall(r"\d+", found.describe()) == ["3"]
    for minimum in (0, 1, 1000):
        assert changes.verdict(found, minimum) == changes.TRAIN


def test_new_changed_and_removed(tmp_path, place):
    assert register(place, tmp_path / "1", FIRST) == 1
    now = {
        "a": ("M", []),  # another label
        "b": ("B", [(5, 6, 7, 8), (1, 2, 3, 4)]),  # regions in another order
        "d": ("M", [(1, 1, 1, 2)]),
        "e": ("M", []),
        "f": ("B", [(1, 1, 1, 1)]),
        "g": ("M", []),
    }
    found = changes.since_last(DataVersion.read(version(tmp_path / "now", now, quarantined=("g",))), place)
    assert found == changes.Changes(1, {"e": "M", "f": "B"}, {"a": "M", "d": "M"}, {"c": "M"}, 1)
    assert found.count == 5
    assert re.findall(r"\d+", found.describe()) == ["1", "2", "2", "1", "1"]
    assert json.loads(json.dumps(found.to_dict())) == {
        "since": 1,
        "kept": 1,
        "new": {"B": 1, "M": 1},
        "changed": {"M": 2},
        "removed": {"M": 1},
    }
    assert changes.verdict(found, 5) == changes.verdict(found, 0) == changes.TRAIN
    assert re.findall(r"\d+", changes.verdict(found, 6)) == ["5", "6", "1"]


def test_other_splits_are_no_change(tmp_path):
    register(tmp_path / "registry", tmp_path / "1", FIRST)
    found = changes.since_last(DataVersion.read(version(tmp_path / "now", FIRST, split="test")), tmp_path / "registry")
    assert (found.count, found.kept) == (0, 4)
    assert re.findall(r"\d+", changes.verdict(found, 1)) == ["1"]
    assert changes.verdict(found, 0) == changes.TRAIN


def test_a_scan_that_is_quarantined_now_was_removed(tmp_path):
    register(tmp_path / "registry", tmp_path / "1", FIRST)
    found = changes.since_last(
        DataVersion.read(version(tmp_path / "now", FIRST, quarantined=("c",))), tmp_path / "registry"
    )
    assert (found.new, found.changed, found.removed, found.kept) == ({}, {}, {"c": "M"}, 3)


def test_a_refused_model_counts_as_the_last_one(tmp_path, place):
    """Otherwise the same data would be trained on every night."""
    register(place, tmp_path / "1", FIRST)
    more = FIRST | {"e": ("M", [])}
    assert register(place, tmp_path / "2", more, "refused") == 2
    assert Registry(place).read_aliases() == {"candidate": 2, "champion": 1, "anchor": 1}
    found = changes.since_last(DataVersion.read(version(tmp_path / "now", more)), place)
    assert (found.since, found.count, found.kept) == (2, 0, 5)


def test_a_recalibration_for_another_site_changes_nothing_here(tmp_path, place):
    """It is the newest version, and lists another site's scans."""
    register(place, tmp_path / "1", FIRST)
    more = FIRST | {"z": ("M", [])}
    assert register(place, tmp_path / "2", more, "refused", recalibrated_for="Elsewhere") == 2
    found = changes.since_last(DataVersion.read(version(tmp_path / "now", FIRST)), place)
    assert (found.since, found.count, found.kept) == (1, 0, 4)


@pytest.mark.parametrize("minimum", [-1, -1000])
def test_a_negative_minimum_is_refused(minimum):
    for since in (None, 1):
        with pytest.raises(InputError, match=rf"minimum\b.*{minimum}"):
            changes.verdict(changes.Changes(since, {}, {}, {}, 0), minimum)


def watched(root: storage.Location, version: int, verdict: str) -> WatchEntry:
    """The champion's newest verdict, made up."""
    registry = Registry(root)
    content = {
        "created": "2025-07-14T23:30:00+00:00",
        "night": "2025-07-14",
        "model": sha256(registry.find(str(version), CARD) / CARD[0]),
        "verdict": verdict,
        "summary": "Made up.",
        "since": None,
        "code_version": "0.1.0",
    }
    watches.record(registry, version, entry := WatchEntry.parse(content, "entry"))
    return entry


def test_the_newest_verdict_on_the_champion_counts(tmp_path, place):
    assert changes.alarm(place, "drift") is None, "no registry"
    register(place, tmp_path / "1", FIRST)
    assert changes.alarm(place, "drift") is None, "never watched"
    for verdict, calls in (("steady", False), ("drift", True), ("unknown", False), ("worse", True)):
        entry = watched(place, 1, verdict)
        assert changes.alarm(place, "drift") == (entry if calls else None)
        assert changes.alarm(place, "new") is None
    register(place, tmp_path / "2", FIRST | {"e": ("M", [])}, "refused")
    assert changes.alarm(place, "drift") == entry, "a refused model is not the champion"
    register(place, tmp_path / "3", FIRST | {"f": ("M", [])})
    assert Registry(place).champion() == 3
    assert changes.alarm(place, "drift") is None, "the verdict was on the champion before"


@pytest.mark.parametrize("train_on", ["", "drifts", "DRIFT", "new,drift"])
def test_an_unknown_reason_to_train_is_refused(tmp_path, train_on):
    with pytest.raises(InputError, match=rf"train_on '{train_on}': choose from new, drift"):
        changes.alarm(tmp_path, train_on)


def test_an_alarm_makes_one_scan_enough(tmp_path):
    register(tmp_path / "registry", tmp_path / "1", FIRST)
    alarmed = watched(tmp_path / "registry", 1, "drift")

    def decided(scans: Scans, minimum: int, alarmed: WatchEntry | None) -> str:
        data = DataVersion.read(version(tmp_path / "now", scans))
        return changes.verdict(changes.since_last(data, tmp_path / "registry"), minimum, alarmed)

    more, fewer = FIRST | {"e": ("M", [])}, {name: scan for name, scan in FIRST.items() if name != "a"}
    for scans in (more, fewer, FIRST | {"a": ("M", [])}):
        assert decided(scans, 20, None).startswith("waiting: 1 of 20")
        assert decided(scans, 20, alarmed) == changes.TRAIN
    same = decided(FIRST, 20, alarmed)
    assert same.startswith("nothing new since model version 1; the watch says drift")
    assert "the same model" in same
    assert decided(FIRST, 20, None) == "nothing new since model version 1"
    assert decided(FIRST, 0, alarmed) == decided(FIRST, 0, None) == changes.TRAIN


def test_numbers_that_look_like_numbers_stay_text(tmp_path):
    """A SHA-256 may be all digits, or have one e among them."""
    scans: Scans = {"0" * 62 + "12": ("B", []), "1" * 61 + "e10": ("M", []), "7" * 64: ("M", [])}
    register(tmp_path / "registry", tmp_path / "1", scans)
    found = changes.since_last(DataVersion.read(version(tmp_path / "now", scans)), tmp_path / "registry")
    assert (found.count, found.kept) == (0, 3)


@pytest.mark.parametrize("content", [None, "", "sha256,label\na,B\n", "\0\1\2"])
def test_a_model_that_does_not_tell_what_it_was_made_of(tmp_path, content):
    register(tmp_path / "registry", tmp_path / "1", FIRST)
    there = storage.at(storage.below(tmp_path / "registry", "thyroid/1"))
    if content is None:
        there.remove(SCANS)
    else:
        there.write(SCANS, content.encode())
    with pytest.raises(InputError, match=r"scans\.csv"):
        changes.since_last(DataVersion.read(version(tmp_path / "now", FIRST)), tmp_path / "registry")


def test_only_what_is_needed_is_downloaded(tmp_path, gcs):
    register(gcs.address("registry"), tmp_path / "1", FIRST)
    gcs.proxy.requests.clear()
    changes.since_last(DataVersion.read(version(tmp_path / "now", FIRST)), gcs.address("registry"))
    got = [path for _, path in gcs.proxy.requests if "alt=media" in path]
    assert sum(SCANS in path for path in got) == 1
    assert not any("model.keras" in path for path in got)


def test_a_registry_that_cannot_be_read(tmp_path, gcs):
    data = DataVersion.read(version(tmp_path / "now", FIRST))
    with pytest.raises(InputError, match="no-such-bucket"):
        changes.since_last(data, "gs://no-such-bucket/registry")
    gcs.proxy.rule = lambda method, path: "403"
    with pytest.raises(InputError, match=r"storage\.objectViewer"):
        changes.since_last(data, gcs.address("registry"))


def test_the_table_of_a_model_is_that_of_its_data(tmp_path):
    register(str(tmp_path / "registry"), tmp_path / "1", FIRST)
    told = changes.scans_of(Registry(tmp_path / "registry").find("1"))
    expected = tables.contents(*tables.read(tmp_path / "1" / "data")[:2])
    assert told.pop("patient").isna().all()
    pd.testing.assert_frame_equal(told, expected.reset_index(drop=True), check_dtype=False)
