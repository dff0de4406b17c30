"""The decision log is read with its archive: what cannot be used is counted, and nothing else is lost."""

import datetime
import json
import logging
import threading

import pandas as pd
import pytest

from tests.support.decisions import decision, write
from thyroid.errors import InputError
from thyroid.records.watch import Decision
from thyroid.watch import archive, log

NOW = datetime.datetime(2025, 7, 15, 12, tzinfo=datetime.UTC)
PATIENT = "0123abcd:" + "a" * 32
NONE = {"damaged": 0, "doubled": 0, "too_early": 0, "in_future": 0}


def ids(found: log.Log) -> list[str]:
    return found.decisions["id"].tolist()


def test_a_decision_is_read_as_it_was_written(tmp_path):
    given = decision(patient=PATIENT, reasons=["unlike_training"], features=[0.5, -1.25], decision="abstain")
    bare = {name: value for name, value in decision().items() if name not in ("novelty", "distance", "box_probability")}
    write(tmp_path, [given, bare | {"time": "2025-07-14T10:00:00+00:00"}])
    found = log.read(tmp_path, now=NOW)
    assert list(found.decisions) == [*Decision.model_fields, "unit"]
    first, second = (row for _, row in found.decisions.iterrows())
    for name in given.keys() - {"time", "reasons", "box", "features"}:
        assert first[name] == given[name], name
    assert first["time"] == pd.Timestamp("2025-07-14 09:30:00.125", tz="UTC")
    assert [list(first[name]) for name in ("reasons", "box", "features")] == [
        ["unlike_training"],
        [10, 20, 30, 40],
        [0.5, -1.25],
    ]
    assert (first["unit"], second["unit"]) == (PATIENT, bare["request"])
    assert second[["patient", "novelty", "distance", "box_probability", "features"]].isna().all()
    assert (found.other_versions, found.set_aside) == (0, NONE)


def test_an_empty_log(tmp_path):
    found = log.read(tmp_path)
    assert len(found.decisions) == 0
    assert str(found.decisions["time"].dtype).endswith("UTC]")
    assert found.set_aside == NONE
    assert len(log.read().decisions) == 0


@pytest.mark.parametrize(
    "damaged",
    [
        b"{",
        b"\0" * 300,
        b"\xff\xfe{}",
        b"[" * 5000,
        b"[]",
        b"{}",
        json.dumps(decision() | {"probability": 1.5}).encode(),
        json.dumps(decision() | {"probability": float("nan")}).encode(),
        json.dumps(decision() | {"time": "yesterday"}).encode(),
        json.dumps(decision() | {"time": "2025-07-14T09:30:00"}).encode(),
        json.dumps(decision() | {"time": "0001-01-01T00:00:00+14:00"}).encode(),
        json.dumps(decision() | {"source": "elsewhere"}).encode(),
        json.dumps(decision() | {"box": [1, 2, 3]}).encode(),
        json.dumps(decision() | {"box": [1, 2, 3, 2**70]}).encode(),
        json.dumps(decision() | {"version": 2**70}).encode(),
        json.dumps(decision() | {"number": -(2**70)}).encode(),
        json.dumps(decision(form="x" * log.LONGEST)).encode(),
        b"x" * (3 * log.LONGEST + 1),
    ],
)
def test_a_damaged_line_is_set_aside(tmp_path, damaged, caplog):
    rows = [decision(patient=PATIENT), decision(patient=PATIENT)]
    path = write(tmp_path, rows[:1])
    with path.open("ab") as opened:
        opened.write(damaged + b"\n\n")
    write(tmp_path, rows[1:])
    with caplog.at_level(logging.WARNING, "thyroid"):
        found = log.read(tmp_path, now=NOW)
    assert sorted(ids(found)) == sorted(row["id"] for row in rows)
    assert found.set_aside == NONE | {"damaged": 1}
    assert f"{path}, line 2" in caplog.text
    assert PATIENT not in caplog.text


def test_only_a_few_damaged_lines_are_told(tmp_path, caplog):
    (tmp_path / "a.jsonl").write_text("no\n" * 50)
    with caplog.at_level(logging.WARNING, "thyroid"):
        assert log.read(tmp_path).set_aside["damaged"] == 50
    assert 0 < len(caplog.records) <= 3


def test_a_line_that_is_being_written_is_left_for_the_next_time(tmp_path):
    row = json.dumps(decision()).encode()
    path = tmp_path / "a.jsonl"
    for cut in (1, 100, len(row)):
        path.write_bytes(row[:cut])
        found = log.read(tmp_path, now=NOW)
        assert (len(found.decisions), found.set_aside) == (0, NONE)
    path.write_bytes(row + b"\n")
    assert len(log.read(tmp_path, now=NOW).decisions) == 1


def test_fields_of_a_newer_release_are_ignored(tmp_path):
    write(tmp_path, [decision() | {"mood": ["calm"]}])
    found = log.read(tmp_path, now=NOW)
    assert len(found.decisions) == 1
    assert "mood" not in found.decisions


def test_doubled_ids_count_once(tmp_path):
    row = decision()
    write(tmp_path, [row, row])
    write(tmp_path, [row, decision()], "decisions-2025-07-14-other-1b.jsonl")
    found = log.read(tmp_path, now=NOW)
    assert len(found.decisions) == 2
    assert found.set_aside == NONE | {"doubled": 2}


def test_a_clock_that_goes_back(tmp_path):
    times = ["2025-07-14T12:00:00.000Z", "2025-07-14T08:00:00.000Z", "2025-07-13T23:59:59.999Z"]
    rows = [decision(time=time) for time in times]
    write(tmp_path, rows)
    found = log.read(tmp_path, now=NOW)
    assert ids(found) == [row["id"] for row in reversed(rows)]
    assert found.decisions["time"].is_monotonic_increasing


def test_wrong_clocks_and_other_versions_are_set_aside(tmp_path):
    published = datetime.datetime(2025, 7, 1, tzinfo=datetime.UTC)
    kept = [decision(time="2025-07-01T00:00:00Z"), decision(time="2025-07-16T11:59:59Z")]
    wrong = [
        decision(time="1970-01-01T00:00:05Z"),
        decision(time="2025-07-16T12:00:01Z"),
        decision(time="9999-12-31T23:59:59Z"),
    ]
    other = [decision(version=2, time="2025-06-01T00:00:00Z"), decision(version=4)]
    write(tmp_path, [*wrong, *kept, *other])
    found = log.read(tmp_path, version=3, since=published, now=NOW)
    assert ids(found) == [row["id"] for row in kept]
    assert found.other_versions == 2
    assert found.set_aside == NONE | {"too_early": 1, "in_future": 2}
    assert len(log.read(tmp_path, now=NOW).decisions) == 5


def test_the_archive_is_read_with_the_log(tmp_path, place):
    rows = [decision(patient=PATIENT), decision(time="2025-07-13T09:00:00Z", features=[1.5])]
    path = write(tmp_path / "log", rows)
    before = log.read(tmp_path / "log", now=NOW).decisions
    assert log.ship(tmp_path / "log", place) == 2
    both = log.read(tmp_path / "log", place, now=NOW)
    pd.testing.assert_frame_equal(both.decisions, before)
    assert both.set_aside == NONE, "a decision in both is not doubled"
    path.unlink()
    write(tmp_path / "log", [decision(time="2025-07-15T09:00:00Z")])
    assert ids(log.read(tmp_path / "log", place, now=NOW))[:2] == before["id"].tolist()
    pd.testing.assert_frame_equal(log.read(archive=place, now=NOW).decisions, before)


@pytest.mark.parametrize(
    "changed",
    [{"source": "elsewhere"}, {"box": [None]}, {"probability": [float("nan")]}, {"image": [None]}, {"width": [0]}],
)
def test_a_row_of_the_archive_that_is_no_decision_is_set_aside(tmp_path, changed):
    write(tmp_path / "log", [decision()])
    log.ship(tmp_path / "log", tmp_path / "archive")
    (day,) = (tmp_path / "archive" / archive.FOLDER).iterdir()
    pd.read_parquet(day).assign(id="another", **changed).to_parquet(day.with_name("2025-07-13.parquet"))
    found = log.read(tmp_path / "log", tmp_path / "archive", now=NOW)
    assert len(found.decisions) == 1
    assert found.set_aside == NONE | {"damaged": 1}


def test_too_many_decisions(tmp_path, monkeypatch):
    monkeypatch.setattr(log, "MOST", 5)
    monkeypatch.setattr(log, "_CHUNK", 2)
    write(tmp_path / "log", [decision() for _ in range(4)])
    log.ship(tmp_path / "log", tmp_path / "archive")
    assert len(log.read(tmp_path / "log", now=NOW).decisions) == 4
    with pytest.raises(InputError, match=r"archive: more than 5 decisions.*--log-days"):
        log.read(tmp_path / "log", tmp_path / "archive", now=NOW)
    write(tmp_path / "log", [decision() for _ in range(2)])
    with pytest.raises(InputError, match=r"log: more than 5 decisions"):
        log.read(tmp_path / "log", now=NOW)


@pytest.mark.parametrize(
    ("folder", "words"), [("no/such", "no such folder"), ("gs://bucket/log", "endpoint writes to")]
)
def test_a_folder_that_is_none(tmp_path, monkeypatch, folder, words):
    monkeypatch.chdir(tmp_path)
    for ask in (log.read, log.files, lambda given: log.ship(given, tmp_path)):
        with pytest.raises(InputError, match=f"--log {folder}.*{words}"):
            ask(folder)


def test_a_file_that_vanishes_while_it_is_read(tmp_path, monkeypatch):
    gone = write(tmp_path, [decision()], "decisions-2025-01-01-host-0a.jsonl")
    write(tmp_path, [decision()])
    files = log.files(tmp_path)
    gone.unlink()
    monkeypatch.setattr(log, "files", lambda folder: files)
    assert len(log.read(tmp_path, now=NOW).decisions) == 1


def test_shipping_waits_for_an_erasure(tmp_path, monkeypatch):
    write(tmp_path / "log", [decision()])
    order = []
    monkeypatch.setattr(archive, "ship", lambda decisions, place: order.append("shipped") or 0)
    with log.lock(tmp_path / "log"):
        shipping = threading.Thread(target=log.ship, args=(tmp_path / "log", tmp_path / "archive"))
        shipping.start()
        shipping.join(0.2)
        order.append("erased")
    shipping.join()
    assert order == ["erased", "shipped"]
