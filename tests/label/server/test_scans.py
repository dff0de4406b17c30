"""Scans that come, change and go while the bench runs, in a folder and in a bucket."""

import csv
import io
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import write_scan
from tests.support.label_server import READERS, TOKENS, Visitor, nodule
from thyroid import storage
from thyroid.data import pseudonyms
from thyroid.ingest import listing
from thyroid.label.server import app, bench
from thyroid.label.server.bench import Bench, LabelOptions
from thyroid.label.server.readers import Readers

KIM, LEE, _ = TOKENS
NONE = {"verdict": "none", "regions": [], "side": ""}
FIRST, SECOND, THIRD, FOURTH = (f"{label}_{number:03d}-0001-1.0.jpg" for number, label in enumerate("BMBM", 1))


@dataclass
class Site:
    """A running bench and its scans, whose files the test writes as somebody else does."""

    scans: storage.Folder | storage.Bucket
    labelled: Path
    bench: Bench
    application: Any
    pictures: Path

    def put(self, name: str, seed: int, size: tuple[int, int] = (96, 80)) -> None:
        self.scans.write(name, write_scan(self.pictures / "scan.jpg", seed, size).read_bytes())

    def visitor(self, name: str) -> Visitor:
        return Visitor(self.application.test_client(), name)

    def rows(self, name: str) -> list[dict[str, str]]:
        return list(csv.DictReader(io.StringIO((self.labelled / name).read_text())))

    def path(self, shown: dict[str, Any]) -> str:
        frame = self.bench.catalogue.of(shown["frame"]["id"])
        assert frame is not None
        return frame.path


@pytest.fixture
def site(place, tmp_path, monkeypatch) -> Iterator[Site]:
    """A bench of three patients that looks at the scans several times a second."""
    for name, value in {"LOOK": 0.05, "PAUSE": 0.0, "SCANS": 0.1, "REST": 0}.items():
        monkeypatch.setattr(bench, name, value)
    monkeypatch.setattr(listing, "SETTLED_SECONDS", -1.0)
    scans, labelled = storage.at(place), tmp_path / "labelled"
    (tmp_path / "readers.csv").write_text(READERS)
    for seed, name in enumerate((FIRST, SECOND, THIRD)):
        scans.write(name, write_scan(tmp_path / "scan.jpg", seed).read_bytes())
    running = Bench(LabelOptions(place, labelled))
    running.start()
    application = app.create(app.Options(running, Readers.read(tmp_path / "readers.csv"), "secret"))
    yield Site(scans, labelled, running, application, tmp_path)
    running.close()


def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.15)  # a reader may ask ten times a second


def test_new_scans_come_and_nothing_that_was_given_changes(site):
    kim, lee = site.visitor(KIM), site.visitor(LEE)
    shown, other = kim.next().json, lee.next().json
    assert shown["progress"]["of"] == 3
    site.put(FOURTH, 4)
    site.put(FIRST.replace("0001", "0002", 1), 5)
    until(lambda: kim.next().json["progress"]["of"] == 5)
    assert kim.next().json["frame"]["id"] == shown["frame"]["id"]
    assert lee.next().json["frame"]["id"] == other["frame"]["id"]
    assert kim.save(shown, nodule(10, 20, 30, 40)).status_code == 200
    read = [site.path(shown)]
    while (following := kim.next(skip=other["frame"]["id"]).json)["frame"] is not None:
        assert kim.save(following, NONE).status_code == 200
        read.append(site.path(following))
    assert len(set(read)) == len(read) == 4
    assert site.path(other) not in read
    following = [read.index(path) for path in read if path.startswith("B_001")]
    assert len(following) < 2 or abs(following[0] - following[1]) == 1  # the frames of a patient stay together
    progress = kim.next("review").json["progress"]
    assert (progress["done"], progress["of"], progress["left"]) == (4, 5, 1)
    until(lambda: [row["verdict"] for row in site.rows("labels.csv")].count("none") == 3)
    assert len(site.rows("labels.csv")) == 5


def test_removed_scans_are_gone_and_come_back_with_their_readings(site):
    kim = site.visitor(KIM)
    shown = kim.next().json
    assert kim.save(shown, nodule(10, 20, 30, 40)).status_code == 200
    after = kim.next().json
    read, open_ = site.path(shown), site.path(after)
    until(lambda: len(site.rows("rois.csv")) == 1)
    kept = {name: site.scans.read(name)[0] for name in (read, open_)}
    for name in kept:
        site.scans.remove(name)
    until(lambda: kim.next().json["progress"]["of"] == 1)
    assert kim.next().json["progress"]["done"] == 0
    assert site.path(kim.next().json) not in kept
    for one in (shown, after):
        assert kim.next(id=one["frame"]["id"]).status_code == 410
        assert kim.client.get(f"/frame/{one['frame']['id']}").status_code == 410
    assert kim.save(after, NONE).status_code == 410
    assert kim.undo().status_code == 410
    until(lambda: len(site.rows("labels.csv")) == 1)
    for name, data in kept.items():
        site.scans.write(name, data)
    until(lambda: kim.next().json["progress"]["of"] == 3)
    assert kim.save(after, NONE).status_code == 200
    assert kim.next().json["progress"]["done"] == 1


def test_a_picture_of_another_size_is_shown_before_it_is_read(site):
    kim = site.visitor(KIM)
    shown = kim.next().json
    site.put(site.path(shown), 9, (64, 48))
    until(lambda: site.bench.catalogue.of(shown["frame"]["id"]).width == 64)
    assert kim.save(shown, nodule(10, 10, 30, 30)).status_code == 410  # it was drawn on the earlier picture
    again = kim.next(id=shown["frame"]["id"]).json
    assert (again["frame"]["width"], again["frame"]["height"]) == (64, 48)
    assert kim.save(again, nodule(10, 10, 60, 30)).status_code == 400
    assert kim.save(again, nodule(10, 10, 30, 30)).status_code == 200


def test_scans_that_cannot_be_listed_stay_and_readers_are_told(site, monkeypatch):
    monkeypatch.setenv(pseudonyms.KEY_VARIABLE, "a secret for tests only")
    kim = site.visitor(KIM)
    site.scans.write("dicom.csv", b"nothing of use\n")
    until(lambda: any("dicom.csv" in note for note in kim.next().json["notes"]))
    shown = kim.next().json
    assert shown["progress"]["of"] == 3
    assert kim.save(shown, NONE).status_code == 200
    site.scans.remove("dicom.csv")
    until(lambda: kim.next().json["notes"] == [])


def test_looks_are_rare_where_they_take_long(site, monkeypatch):
    monkeypatch.setattr(bench, "REST", 20)
    taken = []
    plain = listing.list_scans

    def slow(*arguments, **named):
        taken.append(time.monotonic())
        time.sleep(0.1)
        return plain(*arguments, **named)

    monkeypatch.setattr(listing, "list_scans", slow)
    until(lambda: len(taken) > 1)
    time.sleep(1.0)
    assert len(taken) == 2 or taken[2] - taken[1] > 1.5
