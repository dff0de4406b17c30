"""What a candidate would have changed: joined with the champion's decisions, counted, and kept beside the candidate."""

import csv
import json
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.support import toy_artefact, toy_locator, watched
from tests.support.decisions import decision, shadowed, write, write_shadowed
from tests.validate.test_recalibrated import publish
from thyroid import RESEARCH_USE_ONLY
from thyroid.data import pseudonyms
from thyroid.errors import InputError
from thyroid.model.artefact import Artefact
from thyroid.records.gate import ShadowRecord
from thyroid.records.watch import WatchRecord
from thyroid.registry import registry as registry_module
from thyroid.registry.beside import shadows
from thyroid.registry.registry import Registry
from thyroid.watch import log, prometheus
from thyroid.watch.options import WatchOptions
from thyroid.watch.shadow import compare, plot
from thyroid.watch.shadow.compare import Compared
from thyroid.watch.watch import PLOTS, watch

NIGHT = date(2025, 7, 14)
CHAMPION, CANDIDATE = 3, 4


@pytest.fixture(scope="module")
def candidate(tmp_path_factory) -> Artefact:
    folder = toy_locator.build(tmp_path_factory.mktemp("candidate"))
    card = Artefact.read(folder).record
    card.model_copy(update={"version": CANDIDATE}).write(folder / "model.json")
    return Artefact.read(folder)


def decided(number: int, **changes: Any) -> dict[str, Any]:
    """The champion's decision on a picture of a patient of its own."""
    own = {"image": f"0123abcd:{number:032d}", "patient": f"0123abcd:{'a' * 20}{number:012d}"}
    return decision(**own | {"version": CHAMPION, "time": f"2025-07-14T09:{number % 60:02d}:00.000Z"} | changes)


def compared(folder: Path, candidate: Artefact, night: date = NIGHT) -> Compared | None:
    found = log.read(folder, version=CHAMPION).decisions
    return compare.compare(folder, found, CHAMPION, candidate, night=night, seed=0)


def test_the_decisions_are_paired_by_picture(tmp_path, candidate):
    rows = [decided(number, source="given" if number % 2 else "auto") for number in range(40)]
    rows[0] |= {"distance": 1.5, "decision": "abstain", "reasons": ["unlike_training"]}
    write(tmp_path, rows)
    lines = [shadowed(row) for row in rows[:36]]
    for number in (1, 3, 4):
        lines[number] |= {"decision": "malignant", "probability": 0.75}
    lines[0] |= {"decision": "benign", "reasons": []}
    lines[5] |= {"decision": "abstain", "reasons": ["abstention_band"]}
    write_shadowed(tmp_path, [*lines, shadowed(rows[39], version=9, decision="malignant"), {"none": 1}])
    found = compared(tmp_path, candidate)
    record = found.record
    assert (record.champion, record.candidate, record.notice) == (CHAMPION, CANDIDATE, RESEARCH_USE_ONLY)
    assert (record.pictures, record.patients, record.changed) == (36, 36, 5)
    assert record.pairs == {"benign to malignant": 3, "abstain to benign": 1, "benign to abstain": 1}
    assert record.summary == (
        "On 36 live pictures of 36 patients version 4 would have changed 5 decisions of version 3."
    )
    assert (record.first, record.last, record.set_aside, record.unanswered) == ("2025-07-14", "2025-07-14", 1, 0)
    groups = {(group.kind, group.value): group for group in record.groups}
    counts = {name: (group.pictures, group.changed, group.flipped_patients) for name, group in groups.items()}
    assert counts == {
        ("all", "all"): (36, 5, 3),
        ("source", "auto"): (18, 2, 1),
        ("source", "given"): (18, 3, 2),
        ("novelty", "like"): (35, 4, 3),
        ("novelty", "unlike"): (1, 1, 0),
        ("decision", "abstain"): (1, 1, 0),
        ("decision", "benign"): (35, 4, 3),
    }
    share = groups["all", "all"].share
    assert share.value == pytest.approx(5 / 36)
    assert 0 <= share.low < 5 / 36 < share.high < 0.4
    assert groups["all", "all"].abstained.value == 0
    changes = {change.id: change for change in found.changes}
    assert list(changes) == [rows[number]["id"] for number in (5, 4, 3, 1, 0)]
    one = changes[rows[1]["id"]]
    assert (one.champion, one.candidate) == ("benign", "malignant")
    assert (one.champion_probability, one.candidate_probability) == (0.25, 0.75)


def test_a_picture_that_was_sent_repeatedly_counts_once(tmp_path, candidate):
    rows = [decided(1, time=f"2025-07-14T09:{minute:02d}:00.000Z") for minute in range(30)]
    rows += [decided(2, time="2025-07-14T08:00:00.000Z")]
    write(tmp_path, rows)
    write_shadowed(tmp_path, [shadowed(row, decision="malignant") for row in rows[:30]] + [shadowed(rows[30])])
    found = compared(tmp_path, candidate).record
    assert (found.pictures, found.changed, found.unanswered) == (2, 1, 0)


def test_requests_are_not_called_patients(tmp_path, candidate):
    rows = [decided(number, patient=None) for number in range(3)] + [decided(number) for number in range(3, 5)]
    write(tmp_path, rows)
    write_shadowed(tmp_path, [shadowed(row) for row in rows])
    record = compared(tmp_path, candidate).record
    assert record.patients == 5
    assert "On 5 live pictures of 2 patients and 3 requests that name no patient version 4" in record.summary
    write(tmp_path / "none", rows[:1])
    write_shadowed(tmp_path / "none", [shadowed(rows[0])])
    record = compared(tmp_path / "none", candidate).record
    assert "On 1 live picture of 1 request that names no patient version 4" in record.summary


def test_intervals_resample_patients(tmp_path, candidate):
    """Ten pictures of a patient that all change are one piece of evidence."""
    rows = [decided(number, patient=f"0123abcd:{number // 10:032d}") for number in range(200)]
    write(tmp_path, rows)
    lines = [shadowed(row, decision="malignant" if number < 20 else "benign") for number, row in enumerate(rows)]
    write_shadowed(tmp_path, lines)
    share = compared(tmp_path, candidate).record.groups[0].share
    assert share.value == 0.1
    assert share.high - share.low > 0.2, "two of twenty patients"


def test_pictures_that_the_candidate_did_not_judge_are_counted(tmp_path, candidate):
    rows = [decided(number) for number in range(10)]
    write(tmp_path, rows)
    write_shadowed(tmp_path, [shadowed(row) for row in rows[2::3]])
    found = compared(tmp_path, candidate).record
    assert (found.pictures, found.unanswered) == (3, 4), "what came before the first is not counted"


@pytest.mark.parametrize("lines", [[], [{"none": 1}]])
def test_nothing_to_compare(tmp_path, candidate, lines):
    write(tmp_path, [decided(1)])
    if lines:
        write_shadowed(tmp_path, lines)
    assert compared(tmp_path, candidate) is None


def test_the_newest_lines_are_compared(tmp_path, candidate, monkeypatch):
    monkeypatch.setattr(compare, "MOST", 1)
    old, new = decided(1, time="2025-07-13T09:00:00.000Z"), decided(2)
    write(tmp_path, [old, new])
    write_shadowed(tmp_path, [shadowed(old)], "decisions-2025-07-13-host-0b.jsonl")
    write_shadowed(tmp_path, [shadowed(new)])
    assert compared(tmp_path, candidate).record.first == "2025-07-14"


def test_the_table_and_the_plot(tmp_path, candidate):
    rows = [decided(number) for number in range(12)]
    write(tmp_path, rows)
    write_shadowed(tmp_path, [shadowed(row, decision="malignant" if row is rows[3] else "benign") for row in rows])
    found = compared(tmp_path, candidate)
    compare.write(found.changes, tmp_path)
    text = (tmp_path / compare.CHANGED).read_text()
    (row,) = csv.DictReader(text.splitlines())
    assert (row["id"], row["champion"], row["candidate"]) == (rows[3]["id"], "benign", "malignant")
    assert "0123abcd:" not in text, "no erasure of a patient would find the keyed hashes here"
    alt = plot.draw(found.record, tmp_path / "shadow.png")
    assert "version 4 would have changed" in alt
    assert (tmp_path / "shadow.png").read_bytes()[:4] == b"\x89PNG"


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """A registry with a champion and a candidate, which are older than the log."""
    monkeypatch.setattr(registry_module, "now", lambda: datetime(2025, 6, 20, 9, tzinfo=UTC))
    root = publish(tmp_path / "registry", tmp_path / "artefact", novelty=True)
    (tmp_path / "artefact" / "model.keras").write_bytes(b"another one")
    folder = toy_locator.build(tmp_path / "artefact", locator=toy_locator.record(), novelty=True, backbone="ResNet50")
    Registry(root).publish(folder, toy_artefact.gate("refused", 1))
    return root


def test_a_watch_reports_what_the_candidate_would_have_changed(root, tmp_path):
    folder, output = tmp_path / "log", tmp_path / "out"
    folder.mkdir()
    rows = watched.decisions(pseudonyms.key(root), date.fromisoformat(watched.NIGHT), range(60))
    watched.write_log(folder, rows)
    content = [json.loads(row.model_dump_json(exclude_none=True)) for row in rows]
    benign = [number for number, row in enumerate(content) if row["decision"] == "benign"]
    lines = [shadowed(row, version=2) for row in content]
    lines[benign[0]] |= {"decision": "malignant", "probability": 0.9}
    write_shadowed(folder, lines)
    done = watch(WatchOptions(root, folder, night=watched.NIGHT), output)
    summary = "On 60 live pictures of 60 patients version 2 would have changed 1 decision of version 1."
    assert done.record.shadow.summary == summary
    assert summary in done.told
    assert WatchRecord.read(output / "watch.json").shadow == done.record.shadow
    html = (output / "report.html").read_text()
    assert summary in html
    assert rows[benign[0]].id in html
    assert pseudonyms.key_name(pseudonyms.key(root)) not in html
    assert (output / PLOTS / "shadow.png").exists()
    assert "thyroid_watch_shadow_changed" in (output / prometheus.FILE).read_text()
    assert shadows.last(Registry(root), 2) == done.record.shadow
    assert shadows.last(Registry(root), 1) is None
    Registry(root).promote("2", "a test", "somebody")
    again = watch(WatchOptions(root, folder, model="1", night=watched.NIGHT), output)
    assert again.record.shadow is not None, "of a version that was the champion before"
    Registry(root).roll_back("a test", "somebody")


def record_of(root: Path, **changes: Any) -> ShadowRecord:
    artefact = Artefact.read(Registry(root).find("2"))
    content = {
        "notice": RESEARCH_USE_ONLY,
        "created": "2025-07-14T12:00:00+00:00",
        "code_version": "0.1.0",
        "night": "2025-07-14",
        "champion": 1,
        "candidate": 2,
        "model": compare.sha256(artefact.folder / "model.json"),
        "first": "2025-07-14",
        "last": "2025-07-14",
        "pictures": 1,
        "patients": 1,
        "changed": 0,
        "pairs": {},
        "groups": [],
        "unanswered": 0,
        "set_aside": 0,
        "summary": "",
    }
    return ShadowRecord.parse(content | changes, "shadow")


def test_the_newest_comparison_is_kept(root):
    registry = Registry(root)
    assert shadows.record(registry, record_of(root))
    assert not shadows.record(registry, record_of(root, created="2025-07-13T12:00:00+00:00"))
    later = record_of(root, created="2025-07-15T12:00:00+00:00")
    assert shadows.record(registry, later)
    assert shadows.last(registry, 2) == later
    assert registry.find("2"), "the version is as it was published"
    with pytest.raises(InputError, match="not the model that was compared"):
        shadows.record(registry, record_of(root, model="0" * 64))


def test_a_damaged_comparison_is_named_and_replaced(root):
    (root / "thyroid" / "2" / "shadow.json").write_text("{")
    with pytest.raises(InputError, match=r"shadow\.json: damaged"):
        shadows.last(Registry(root), 2)
    assert shadows.record(Registry(root), record_of(root))
