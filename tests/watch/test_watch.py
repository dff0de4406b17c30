"""A whole watch: from a log, as a server wrote it or made up, to a verdict, a report and an entry in the registry."""

import asyncio
import base64
import csv
import shutil
import threading
from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support import toy_locator, watched
from tests.support.attackers import until
from tests.support.serving import PREDICT, Server, errors_in
from tests.validate.test_recalibrated import publish, scan
from thyroid import RESEARCH_USE_ONLY, locks
from thyroid.data import pseudonyms
from thyroid.errors import InputError
from thyroid.imaging import images
from thyroid.model import engine
from thyroid.records.watch import WatchRecord
from thyroid.registry import registry as registry_module
from thyroid.registry.beside import watches
from thyroid.registry.registry import Registry
from thyroid.serve.answers import Scored
from thyroid.serve.model import ThyroidModel
from thyroid.watch import archive as archives
from thyroid.watch import log as decision_log
from thyroid.watch import prometheus, scans
from thyroid.watch.__main__ import main
from thyroid.watch.archive import days
from thyroid.watch.options import WatchOptions
from thyroid.watch.watch import PLOTS, SET_ASIDE, watch

RELEASED = datetime(2025, 6, 20, 9, tzinfo=UTC)
LAST = date.fromisoformat(watched.NIGHT)
DAYS = [LAST - timedelta(days=number) for number in reversed(range(20))]
EACH = 10
"""Patients a night."""
POINT = {"threshold": watched.THRESHOLD, "band": None}


def published(folder: Path, monkeypatch, **changes) -> Path:
    with monkeypatch.context() as patched:
        patched.setattr(registry_module, "now", lambda: RELEASED)
        given = {"novelty": True, "usual_answers": watched.usual()} | POINT
        return publish(folder / "registry", folder / "artefact", **given | changes)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    with pytest.MonkeyPatch.context() as patched:
        return published(tmp_path_factory.mktemp("published"), patched)


@pytest.fixture
def root(model, tmp_path) -> Path:
    return Path(shutil.copytree(model, tmp_path / "registry"))


def nights(days: Iterable[date]) -> dict[date, range]:
    """The patients of each night."""
    return {day: range(EACH * DAYS.index(day), EACH * (DAYS.index(day) + 1)) for day in days}


def logged(root: Path, folder: Path, days: Iterable[date] = DAYS, **more) -> Path:
    folder.mkdir(exist_ok=True)
    for day, patients in nights(days).items():
        watched.write_log(folder, watched.decisions(pseudonyms.key(root), day, patients, **more))
    return folder


def outcomes(file: Path, wrong: bool = False) -> Path:
    """What the patients of the first nights had, two days later."""
    with file.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["patient", "pathology", "date"])
        for day, patients in nights(DAYS[:-2]).items():
            for patient in patients:
                cancer = watched.has_cancer(patient) != wrong
                writer.writerow([patient, "malignant" if cancer else "benign", day + timedelta(days=2)])
        writer.writerow([999_999, "benign", DAYS[3]])
    return file


def options(root: Path, log: Path | str = "", **more) -> WatchOptions:
    return WatchOptions(root, log, **{"night": watched.NIGHT} | more)


def test_the_same_scanner_is_steady_and_its_outcomes_are_counted(root, tmp_path, capsys):
    log, output = logged(root, tmp_path / "log"), tmp_path / "out"
    given = ["--registry", str(root), "--log", str(log), "--outcomes", str(outcomes(tmp_path / "outcomes.csv"))]
    held = ["--sensitivity", "0.85", "--specificity", "0.5", "--night", watched.NIGHT]
    assert main([*given, *held, "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("steady: No change is seen since its release")
    assert "1 row set aside (the log has no decision on this patient or file): 182" in printed
    assert RESEARCH_USE_ONLY in printed
    record = WatchRecord.read(output / "watch.json")
    assert (record.verdict, record.notice, record.model.released) == ("steady", RESEARCH_USE_ONLY, True)
    assert (record.log.decisions, record.log.first, record.log.last) == (200, str(DAYS[0]), watched.NIGHT)
    assert record.outcomes.patients == 180
    names = {path.name for path in output.iterdir()} - {".lock"}
    assert names == {"report.html", "watch.json", prometheus.FILE, PLOTS}
    assert {path.name for path in (output / PLOTS).iterdir()} >= {"drift.png", "outcomes-shares.png"}
    kept = watches.last(Registry(root), 1)
    assert (kept.verdict, kept.night, kept.model) == ("steady", watched.NIGHT, record.model.sha256)
    assert Registry(root).find("1"), "the version is as it was published"


def test_nothing_that_is_written_names_a_patient(root, tmp_path):
    log, output = logged(root, tmp_path / "log"), tmp_path / "out"
    watch(options(root, log, outcomes=outcomes(tmp_path / "outcomes.csv")), output)
    key = pseudonyms.key_name(pseudonyms.key(root))
    kept = root / "thyroid" / "1" / "watch.json"
    for file in (output / "report.html", output / "watch.json", output / prometheus.FILE, kept):
        text = file.read_text()
        assert key not in text
        assert "request-2025" not in text


def test_another_scanner_is_drift_and_the_schedule_goes_on(root, tmp_path, capsys):
    log = logged(root, tmp_path / "log", DAYS[:-4])
    logged(root, log, DAYS[-4:], scanner=2)
    given = ["--registry", str(root), "--log", str(log), "--night", watched.NIGHT, "--output", str(tmp_path / "out")]
    assert main(given) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"drift: What arrives has changed: since the night of {DAYS[-4]}")
    assert "more unlike the training pictures" in printed
    kept = watches.last(Registry(root), 1)
    assert (kept.verdict, kept.since) == ("drift", str(DAYS[-4]))
    before = watch(options(root, log, night=str(DAYS[-5])), tmp_path / "before")
    assert before.record.verdict == "steady", "the nights after it do not count"
    assert before.record.log.last == str(DAYS[-5])
    assert watches.last(Registry(root), 1).verdict == "drift", "an older night does not replace a newer one"


def test_a_verdict_is_told_when_it_changes(root, tmp_path, receiver):
    log = logged(root, tmp_path / "log", DAYS[:-4])
    logged(root, log, DAYS[-4:], scanner=2)
    for night in (DAYS[-5], *DAYS[-2:], DAYS[-1], DAYS[-5]):
        watch(options(root, log, night=str(night)), tmp_path / "out")
    (told,) = receiver.messages
    assert told.event == "watch.drift"
    assert told.sentence.startswith(f"Watch of version 1: What arrives has changed: since the night of {DAYS[-4]}")
    assert (told.version, told.link) == (1, str(root / "thyroid" / "1"))
    logged(root, log, [], scanner=2)
    wrong = {"outcomes": outcomes(tmp_path / "outcomes.csv", wrong=True), "sensitivity": 0.9, "specificity": 0.7}
    watch(options(root, log, **wrong), tmp_path / "out")
    assert receiver.events == ["watch.drift", "watch.worse"]


def test_a_watch_that_fails_in_part_is_told_until_it_is_complete(root, tmp_path, receiver):
    patients = tmp_path / "B_4711-0002-1.0.csv"
    log = logged(root, tmp_path / "log")
    for _ in range(2):
        with pytest.raises(InputError, match="4711"):
            watch(options(root, log, outcomes=patients), tmp_path / "out")
    outcomes(patients)
    for _ in range(2):
        watch(options(root, log, outcomes=patients), tmp_path / "out")
    assert receiver.events == ["watch.failed", "watch.complete"]
    assert "4711" not in "".join(told.model_dump_json() for told in receiver.messages)


def test_wrong_decisions_are_worse_from_the_outcome_at_which_it_shows(root, tmp_path):
    log = logged(root, tmp_path / "log")
    given = {"outcomes": outcomes(tmp_path / "outcomes.csv", wrong=True), "sensitivity": 0.9, "specificity": 0.7}
    record = watch(options(root, log, **given), tmp_path / "out").record
    assert record.verdict == "worse"
    assert watches.last(Registry(root), 1).since == min(test.alarm_at for test in record.outcomes.tests)


def test_a_model_of_an_older_release_is_compared_with_nothing_and_its_outcomes_count(tmp_path, monkeypatch):
    root = published(tmp_path, monkeypatch, novelty=False, usual_answers=None)
    log = logged(root, tmp_path / "log")
    record = watch(options(root, log), tmp_path / "out").record
    assert (record.verdict, record.model.novelty) == ("unknown", False)
    assert record.drift.skipped in (tmp_path / "out" / "report.html").read_text()
    given = {"outcomes": outcomes(tmp_path / "outcomes.csv"), "sensitivity": 0.85, "specificity": 0.5}
    record = watch(options(root, log, **given), tmp_path / "out").record
    assert record.verdict == "steady"
    assert "Whether what arrives has changed" in record.summary


@pytest.mark.parametrize("kind", ["empty", "other versions", "one decision", "damaged"])
def test_a_log_with_nothing_to_compare_leaves_it_unknown(root, tmp_path, kind):
    log = tmp_path / "log"
    log.mkdir()
    if kind == "other versions":
        logged(root, log, version=2)
    elif kind == "one decision":
        watched.write_log(log, watched.decisions(pseudonyms.key(root), LAST, [1]))
    elif kind == "damaged":
        (log / "decisions-2025-07-14-host-0.jsonl").write_text("{}\nno JSON\n")
    record = watch(options(root, log, outcomes=outcomes(tmp_path / "outcomes.csv")), tmp_path / "out").record
    assert record.verdict == "unknown"
    assert record.log.decisions == (kind == "one decision")
    assert record.log.other_versions == (200 if kind == "other versions" else 0)
    assert record.log.set_aside["damaged"] == (2 if kind == "damaged" else 0)


def test_what_was_archived_is_read_again_without_the_log(root, tmp_path):
    log, archive = logged(root, tmp_path / "log"), tmp_path / "archive"
    first = watch(options(root, log, archive=archive), tmp_path / "out").record
    assert (first.log.archived, first.log.decisions) == (200, 200)
    again = watch(options(root, log, archive=archive), tmp_path / "out").record
    assert (again.log.archived, again.log.decisions) == (0, 200)
    alone = watch(options(root, archive=archive), tmp_path / "out").record
    assert alone.log.decisions == 200
    assert alone.drift == first.drift


def test_new_scans_count_beside_the_log_and_with_an_archive_only_once(root, tmp_path, capsys):
    log, folder, archive = logged(root, tmp_path / "log"), tmp_path / "scans", tmp_path / "archive"
    folder.mkdir()
    for patient in range(1, 5):
        scan(folder, patient)
    (folder / "B_900-0001-1.0.jpg").write_bytes(b"no picture")
    given = {"scans": folder, "archive": archive}
    done = watch(options(root, log, **given), tmp_path / "out")
    assert (done.record.scans, done.record.log.decisions) == (4, 200)
    assert "B_900-0001-1.0.jpg" in (tmp_path / "out" / SET_ASIDE).read_text()
    assert any("1 scan not judged" in line for line in done.told)
    assert "4 new scans judged for this report" in (tmp_path / "out" / "report.html").read_text()
    again = watch(options(root, log, **given), tmp_path / "out").record
    assert (again.scans, again.log.decisions) == (0, 204), "they are in the archive by now"
    watch(options(root, log, archive=archive), tmp_path / "out")
    held = [one for _, found in days(archive) for one in found["id"].to_pylist()]
    later = watch(options(root, log, night=str(LAST + timedelta(days=1)), **given), tmp_path / "out").record
    assert (later.scans, later.log.decisions) == (0, 204)
    assert [one for _, found in days(archive) for one in found["id"].to_pylist()] == held, "nothing is added again"


def test_scans_that_are_judged_on_the_day_of_the_release_are_read_again(root, tmp_path):
    (tmp_path / "scans").mkdir()
    scan(tmp_path / "scans", 1)
    given = {"scans": tmp_path / "scans", "archive": tmp_path / "archive", "night": str(RELEASED.date())}
    assert watch(options(root, **given), tmp_path / "out").record.scans == 1
    again = watch(options(root, **given), tmp_path / "out").record
    assert (again.scans, again.log.decisions, again.log.set_aside["too_early"]) == (0, 1, 0)


def test_a_night_without_a_new_scan_is_no_failure(root, tmp_path):
    (tmp_path / "scans").mkdir()
    done = watch(options(root, logged(root, tmp_path / "log"), scans=tmp_path / "scans"), tmp_path / "out")
    assert (done.record.scans, done.record.verdict) == (0, "steady")
    assert any("no scan found" in line for line in done.told)


def test_an_erasure_waits_until_scans_that_were_read_before_it_are_archived(root, tmp_path, monkeypatch):
    log, order = logged(root, tmp_path / "log", DAYS[:2]), []
    (tmp_path / "scans").mkdir()
    scan(tmp_path / "scans", 1)
    judge, ship = scans.judge, archives.ship

    def erase() -> None:
        with decision_log.lock(log):
            order.append("erased")

    def judged(*args):
        waiting = threading.Thread(target=erase)
        waiting.start()
        waiting.join(0.2)
        return judge(*args)

    monkeypatch.setattr(scans, "judge", judged)
    monkeypatch.setattr(archives, "ship", lambda *args: order.append("shipped") or ship(*args))
    watch(options(root, log, scans=tmp_path / "scans", archive=tmp_path / "archive"), tmp_path / "out")
    until(lambda: "erased" in order, 10)
    assert order == ["shipped", "shipped", "erased"]


def test_what_a_killed_watch_left_behind_is_removed(root, tmp_path):
    output = tmp_path / "out"
    (output / ".scans-abc").mkdir(parents=True)
    (output / ".scans-abc" / "B_001-0001-1.0.jpg").write_bytes(b"a patient")
    (output / f"{prometheus.FILE}.7.8").write_text("half")
    watch(options(root, logged(root, tmp_path / "log", DAYS[:2])), output)
    assert not [path for path in output.iterdir() if path.name.startswith((".scans-", f"{prometheus.FILE}."))]


def test_a_damaged_day_of_the_archive_does_not_lose_the_report(root, tmp_path):
    log, archive = logged(root, tmp_path / "log"), tmp_path / "archive"
    (archive / "decisions").mkdir(parents=True)
    (archive / "decisions" / "2025-06-21.parquet").write_bytes(b"no table")
    with pytest.raises(InputError, match=r"2025-06-21\.parquet: damaged.*the report is written"):
        watch(options(root, log, archive=archive), tmp_path / "out")
    assert WatchRecord.read(tmp_path / "out" / "watch.json").log.decisions == 200, "the log alone is read"


def test_what_fails_does_not_lose_the_report(root, tmp_path, capsys):
    """An archive that is no folder, a table that is missing, and an entry that cannot be written."""
    (tmp_path / "archive").write_text("a file")
    (root / "thyroid" / "1" / "watch.json").mkdir()
    log, output = logged(root, tmp_path / "log"), tmp_path / "out"
    given = ["--registry", str(root), "--log", str(log), "--archive", str(tmp_path / "archive")]
    missing = ["--outcomes", str(tmp_path / "missing.csv"), "--night", watched.NIGHT, "--output", str(output)]
    assert main([*given, *missing]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    text = (output / "report.html").read_text()
    for failed in ("archive", "missing.csv", "watch.json"):
        assert failed in line
        assert failed in text.partition('id="failed"')[2].partition("</div>")[0]
    assert str(output / "report.html") in line
    assert WatchRecord.read(output / "watch.json").verdict == "steady"


def test_the_results_cannot_be_mixed_up(root, tmp_path):
    log, output = logged(root, tmp_path / "log", DAYS[:2]), tmp_path / "out"
    with pytest.raises(InputError, match="the output is in the folder of --log"):
        watch(options(root, log), log / "out")
    watch(options(root, log, outcomes=outcomes(tmp_path / "outcomes.csv")), output)
    watch(options(root, log), output)
    assert not list((output / PLOTS).glob("outcomes-*")), "those of the watch before are gone"
    with locks.held(output / ".lock"), pytest.raises(InputError, match="another watch writes here"):
        watch(options(root, log), output)
    with pytest.raises(InputError, match="no such folder"):
        watch(options(root, tmp_path / "nowhere"), output)


class Kept:
    """A log that keeps what it is given."""

    features = False

    def __init__(self) -> None:
        self.scored: list[Scored] = []

    def record(self, version: int, form: str, scored: list[Scored]) -> None:
        self.scored += scored


def sent(patient: int, scanner: int = 1) -> dict[str, Any]:
    """The picture of a patient with a nodule as a request sends it. The second scanner has another gain and more
    pixels."""
    rng = np.random.default_rng(patient)
    side, left, top = (int(rng.integers(*bounds)) for bounds in ((60, 100), (20, 180), (30, 90)))
    frame = toy_locator.frame(((left, top, side, side),), seed=patient)
    if scanner == 2:
        frame = np.clip(frame.repeat(2, 0).repeat(2, 1) * 0.35 + 140, 0, 255).astype(np.uint8)
    return {"image": {"b64": base64.b64encode(images.encode(frame)).decode()}, "patient": str(patient)}


def usual(folder: Path, patients: range) -> dict[str, Any]:
    """What the model answers to held-out patients, a picture each, as model.json has it."""
    root = publish(folder / "registry", folder / "artefact", novelty=True, **POINT)
    log = Kept()
    served = ThyroidModel("thyroid", Registry(root).find(), form=engine.F32, log=log)
    served.load()
    for patient in patients:
        asyncio.run(served({"instances": [{"image": sent(patient)["image"]}]}))
    decided = [str(one.decision["decision"]) for one in log.scored]
    values = {
        "probability": [float(one.probability[1]) for one in log.scored],
        "distance": [one.distance for one in log.scored],
        "width": [one.prepared.size[0] for one in log.scored],
        "height": [one.prepared.size[1] for one in log.scored],
    }
    counts = {name: decided.count(name) for name in ("benign", "malignant", "abstain")}
    content = {
        "patients": len(patients),
        "images": len(patients),
        "values": {name: sorted(map(float, of_all)) for name, of_all in values.items()},
        "decisions": counts,
        "shares": {name: counts[name] / len(patients) for name in ("abstain", "malignant")},
    }
    return {"auto": content}


def test_a_real_server_whose_pictures_come_from_another_scanner_in_the_end(tmp_path):
    """Requests, the log, outcomes, and the verdict before and after the scanner was replaced."""
    answers = usual(tmp_path / "reference", range(1000, 1060))
    root = publish(tmp_path / "registry", tmp_path / "artefact", novelty=True, usual_answers=answers, **POINT)
    log = tmp_path / "log"
    log.mkdir()
    server = Server(tmp_path / "server.txt", "--registry", str(root), "--log", str(log)).wait()
    rows = []

    def send(patients: range, scanner: int) -> None:
        for patient in patients:
            status, answer = server.ask(PREDICT, {"instances": [sent(patient, scanner)]})
            assert status == 200, answer
            rows.append((patient, answer["predictions"][0]["decision"]))
        until(lambda: lines(log) == len(rows))

    def told() -> WatchRecord:
        with (tmp_path / "outcomes.csv").open("w", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(["patient", "pathology", "date"])
            today = datetime.now(UTC).date()
            writer.writerows((patient, name, today) for patient, name in rows if name != "abstain")
        given = {"night": "", "outcomes": tmp_path / "outcomes.csv", "sensitivity": 0.9, "specificity": 0.9}
        return watch(options(root, log, **given), tmp_path / "out").record

    try:
        send(range(40), scanner=1)
        before = told()
        send(range(40, 80), scanner=2)
        after = told()
    finally:
        output = server.stop()
    assert not errors_in(output)
    assert (before.verdict, after.verdict) == ("steady", "drift"), (before.summary, after.summary)
    assert (before.log.decisions, after.log.decisions) == (40, 80)
    assert before.log.unlike <= 4
    assert after.log.unlike - before.log.unlike >= 36
    assert {row.property for row in after.drift.rows if row.alarm} >= {"distance", "abstain", "width"}
    assert before.outcomes.patients >= 36
    assert all(test.right == test.n for test in before.outcomes.tests), "the outcomes are as the model said"


def lines(log: Path) -> int:
    """The number of decisions that a server has written so far."""
    return sum(len(file.read_text().splitlines()) for file in log.glob("*.jsonl"))
