"""The tables: their content, what ingest makes of them, several servers, ends at any moment, and full disks."""

import errno
import multiprocessing
import os
import random
import re
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conftest import state_of, write_scan
from tests.support import dicoms
from tests.support.labelling import NOTHING, UNUSABLE, Labelling, at_once, nodules, write_scans
from thyroid import crop, storage
from thyroid.clinical import clinical_csv
from thyroid.crop import CropOptions
from thyroid.data import classes as class_names
from thyroid.data import csv_tables, pseudonyms, tables
from thyroid.data.version import DataVersion
from thyroid.errors import InputError
from thyroid.ingest import ingest, listing
from thyroid.ingest.options import IngestOptions
from thyroid.label.consensus import Rules, State
from thyroid.label.frames import Catalogue
from thyroid.label.journal import UnwritableError
from thyroid.label.readings import Reading, Role, Verdict

FEATURES = {
    "composition": "solid",
    "echogenicity": "hypoechoic",
    "shape": "taller",
    "margin": "smooth",
    "foci": "none",
}
FIRST, SECOND, THIRD, FOURTH, FIFTH, SIXTH, UNNAMED = range(7)


@pytest.fixture
def scans(tmp_path) -> Path:
    return write_scans(tmp_path / "scans")


@pytest.fixture
def bench(scans, place) -> Labelling:
    return Labelling.of(scans, place)


def test_without_a_reading(bench):
    assert bench.tables.write() == []
    assert bench.content("rois.csv") == b"filename,x,y,width,height\n"
    assert bench.content("clinical.csv") == b""
    assert [(row["filename"], row["label"], row["patient"], row["verdict"]) for row in bench.rows("labels.csv")] == [
        ("B_001-0001-1.0.jpg", "B", "1", ""),
        ("B_001-0002-1.0.jpg", "B", "1", ""),
        ("B_003-0001-1.0.jpg", "B", "3", ""),
        ("B_003-0002-1.0.jpg", "B", "3", ""),
        ("M_002-0001-1.0.jpg", "M", "2", ""),
        ("M_002-0002-1.0.jpg", "M", "2", ""),
        ("more/unnamed.jpg", "", "", ""),
    ]


def test_what_readings_become(bench):
    paths = bench.paths
    bench.say(paths[FIRST], nodules((1, 2, 30, 40), (40, 2, 9, 9), **FEATURES))
    bench.say(paths[SECOND], NOTHING)
    bench.say(paths[THIRD], UNUSABLE)
    bench.say(paths[FOURTH], nodules((5, 5, 10, 10), side="M"))
    bench.say(paths[FIFTH], nodules((5, 5, 10, 10)))
    bench.say(paths[FIFTH], NOTHING, "Bob")
    bench.say(paths[UNNAMED], nodules((0, 0, 96, 80), side="M", foci="rim"))
    assert bench.tables.write() == []
    assert bench.content("rois.csv").decode().splitlines() == [
        "filename,x,y,width,height",
        "B_001-0001-1.0.jpg,1,2,30,40",
        "B_001-0001-1.0.jpg,40,2,9,9",
        "B_003-0002-1.0.jpg,5,5,10,10",
        "more/unnamed.jpg,0,0,96,80",
    ]
    assert bench.content("labels.csv").decode().splitlines() == [
        "filename,label,patient,tirads,verdict,n_rois",
        "B_001-0001-1.0.jpg,B,1,TR5,nodules,2",
        "B_001-0002-1.0.jpg,B,1,,none,0",
        "B_003-0001-1.0.jpg,,3,,unusable,0",
        "B_003-0002-1.0.jpg,M,3,,nodules,1",
        "M_002-0001-1.0.jpg,M,2,,,",
        "M_002-0002-1.0.jpg,M,2,,,",
        "more/unnamed.jpg,M,,,nodules,1",
    ]
    assert bench.content("clinical.csv").decode().splitlines() == [
        "filename,composition,echogenicity,shape,margin,foci",
        "B_001-0001-1.0.jpg,solid,hypoechoic,taller,smooth,none",
        "unnamed.jpg,,,,,rim",
    ]


def test_contradiction_and_adjudication(bench):
    path = bench.paths[FIRST]
    bench.say(path, nodules((1, 2, 30, 40)))
    bench.tables.write()
    assert len(bench.rows("rois.csv")) == 1
    bench.say(path, nodules((60, 2, 30, 40)), "Bob")
    bench.tables.write()
    assert bench.state(path) == (State.CONTESTED, None)
    assert bench.rows("rois.csv") == []
    bench.say(path, nodules((2, 2, 30, 40)), "Eve", Role.ADJUDICATOR)
    bench.tables.write()
    assert [row["x"] for row in bench.rows("rois.csv")] == ["2"]
    bench.journal.undo("Eve")
    bench.journal.undo("Bob")
    bench.tables.write()
    assert [row["x"] for row in bench.rows("rois.csv")] == ["1"]


def test_clinical_csv_goes_with_its_last_row(bench):
    bench.say(bench.paths[FIRST], nodules((1, 2, 30, 40), foci="none"))
    bench.tables.write()
    assert len(bench.rows("clinical.csv")) == 1
    bench.journal.undo("Ann")
    bench.tables.write()
    assert "clinical.csv" not in storage.at(bench.place).children()
    assert bench.tables.write() == []


def test_clinical_csv_names_a_file_once(tmp_path):
    for folder in "ab":
        write_scan(tmp_path / "scans" / folder / "B_001-0001-1.0.jpg", ord(folder))
    bench = Labelling.of(tmp_path / "scans", tmp_path / "labelled")
    for path in bench.paths:
        bench.say(path, nodules((1, 1, 9, 9), foci="none"))
    assert len(bench.tables.write()) == 1
    assert bench.content("clinical.csv") == b""
    assert [row["filename"] for row in bench.rows("rois.csv")] == bench.paths


def test_nothing_is_written_if_nothing_has_changed(scans, tmp_path):
    bench = Labelling.of(scans, tmp_path / "labelled")
    bench.say(bench.paths[FIRST], nodules((1, 2, 30, 40)))
    bench.tables.write()
    before = state_of(tmp_path / "labelled")
    assert bench.tables.write() == bench.tables.absorb() == []
    assert Labelling.of(scans, tmp_path / "labelled").tables.write() == []
    assert state_of(tmp_path / "labelled") == before


def test_a_restart_between_journal_and_table(bench, scans):
    bench.tables.write()
    bench.say(bench.paths[FIRST], nodules((1, 2, 30, 40)))  # and the server ends
    again = Labelling.of(scans, bench.place)
    assert again.tables.write() == []
    assert [row["filename"] for row in again.rows("rois.csv")] == [bench.paths[FIRST]]
    assert len(again.journal.entries) == 1


class _EndedError(Exception):
    """The server was killed."""


@pytest.mark.parametrize("writes", range(7))
def test_a_server_that_ends_after_any_write(scans, tmp_path, monkeypatch, writes):
    place = tmp_path / "labelled"
    bench = Labelling.of(scans, place)
    bench.say(bench.paths[FIRST], nodules((1, 2, 30, 40), foci="none"))
    bench.tables.write()
    bench.say(bench.paths[FIRST], nodules((3, 2, 30, 40), foci="rim"))
    bench.say(bench.paths[SECOND], nodules((3, 2, 30, 40), side="M"))
    plain, count = storage.Folder.write, 0

    def write(self, name, data, generation=None):
        nonlocal count
        if count == writes:
            raise _EndedError
        count += 1
        plain(self, name, data, generation)

    with monkeypatch.context() as patch:
        patch.setattr(storage.Folder, "write", write)
        if writes < 5:  # tables.json, three tables, tables.json
            with pytest.raises(_EndedError):
                bench.tables.write()
        else:
            bench.tables.write()
    again = Labelling.of(scans, place)
    assert again.tables.write() == []
    assert not [entry for entry in again.journal.entries if entry.role is Role.OUTSIDE]
    assert [row["x"] for row in again.rows("rois.csv")] == ["3", "3"]
    assert [row["foci"] for row in again.rows("clinical.csv")] == ["rim"]
    assert [row["label"] for row in again.rows("labels.csv")][:2] == ["B", "M"]


def test_a_missing_table_is_written_again(bench):
    bench.say(bench.paths[FIRST], nodules((1, 2, 30, 40), foci="none"))
    bench.tables.write()
    for name in ("rois.csv", "labels.csv", "clinical.csv"):
        content = bench.content(name)
        storage.at(bench.place).remove(name)
        assert len(bench.tables.write()) == 1
        assert bench.content(name) == content
    assert len(bench.journal.entries) == 1


def test_a_damaged_or_missing_state(bench):
    bench.say(bench.paths[FIRST], nodules((1, 2, 30, 40)))
    bench.tables.write()
    bench.put("tables.json", "{")
    with pytest.raises(InputError, match=r"tables\.json"):
        bench.tables.write()
    storage.at(bench.place).remove("tables.json")
    assert bench.tables.write() == []
    assert len(bench.journal.entries) == 1


def test_frames_that_vanished_come_back(scans, tmp_path):
    place = tmp_path / "labelled"
    bench = Labelling.of(scans, place)
    for path in bench.paths[:2]:
        bench.say(path, nodules((1, 2, 30, 40)))
    bench.tables.write()
    before = bench.content("rois.csv")
    shutil.move(scans / bench.paths[FIRST], tmp_path / "away.jpg")
    without = Labelling.of(scans, place)
    assert len(without.tables.write()) == 1
    assert [row["filename"] for row in without.rows("rois.csv")] == [bench.paths[SECOND]]
    shutil.move(tmp_path / "away.jpg", scans / bench.paths[FIRST])
    assert Labelling.of(scans, place).tables.write() == []
    assert bench.content("rois.csv") == before


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EROFS])
@pytest.mark.parametrize("name", ["tables.json", "rois.csv", "labels.csv", "clinical.csv"])
def test_a_disk_that_cannot_be_written(scans, tmp_path, monkeypatch, name, error):
    bench = Labelling.of(scans, tmp_path / "labelled")
    bench.say(bench.paths[FIRST], nodules((1, 2, 30, 40), foci="none"))
    bench.tables.write()
    before = {table: bench.content(table) for table in ("rois.csv", "labels.csv", "clinical.csv")}
    bench.say(bench.paths[FIRST], nodules((3, 2, 30, 40), side="M", foci="rim"))
    plain = Path.write_bytes

    def write_bytes(path, data):
        if f".{name}." in path.name:
            plain(path, data[:5])
            raise OSError(error, os.strerror(error), str(path))
        return plain(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", write_bytes)
        with pytest.raises(UnwritableError, match=str(tmp_path / "labelled")) as caught:
            bench.tables.write()
    assert caught.value.__cause__.errno == error
    if name in before:
        assert bench.content(name) == before[name]
    assert not list((tmp_path / "labelled").glob("*.tmp")) + list((tmp_path / "labelled").glob(".*.tmp"))
    assert bench.tables.write() == []
    assert [row["x"] for row in bench.rows("rois.csv")] == ["3"]
    assert [entry.role for entry in bench.journal.entries] == [Role.READER] * 2


def serve(scans: str, place: str, reader: str, rounds: int) -> list[str]:
    """Read frames and write the tables as a server does; return the notes."""
    bench, notes = Labelling.of(scans, place), []
    for n in range(rounds):
        for number, path in enumerate(bench.paths[:-1]):
            bench.say(path, nodules((n + 1, number, 20, 20), foci="none"), reader)
            notes += bench.tables.write()
    return notes


def check_servers(scans: Path, place: str, notes: list[list[str]], entries: int) -> None:
    assert notes == [[]] * len(notes)
    bench = Labelling.of(scans, place)
    assert [entry.role for entry in bench.journal.entries] == [Role.READER] * entries
    assert bench.tables.write() == []
    for name, count in (("rois.csv", 6), ("labels.csv", 7), ("clinical.csv", 6)):
        assert len(bench.rows(name)) == count


@pytest.mark.slow
def test_several_servers_write_the_same_tables(scans, tmp_path):
    place = str(tmp_path / "labelled")
    notes = at_once(serve, [(str(scans), place, f"reader{n}", 5) for n in range(3)])
    check_servers(scans, place, notes, 3 * 5 * 6)


def test_two_servers_write_the_same_tables(scans, tmp_path):
    place = str(tmp_path / "labelled")
    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(serve, str(scans), place, f"reader{n}", 3) for n in range(2)]
        check_servers(scans, place, [future.result() for future in futures], 2 * 3 * 6)


def test_a_server_that_begins_while_another_writes_the_first_tables(scans, tmp_path, monkeypatch):
    first, second = (Labelling.of(scans, tmp_path / "labelled") for _ in range(2))
    first.say(first.paths[FIRST], nodules((1, 2, 30, 40)))
    plain, notes = storage.Folder.write, []

    def write(self, name, data, generation=None):
        if name == "rois.csv" and not notes:  # it is announced and not there yet
            notes.append("")
            notes.extend(second.tables.write())
        plain(self, name, data, generation)

    monkeypatch.setattr(storage.Folder, "write", write)
    assert first.tables.write() == []
    assert notes == [""]
    assert [entry.role for entry in second.journal.entries] == [Role.READER]
    storage.at(first.place).remove("rois.csv")
    assert len(second.tables.write()) == 1


def test_a_table_that_another_server_replaced_meanwhile_is_no_edit(scans, place, monkeypatch):
    """The table is newer than the state that was read before it, and older than the last reading of its frame."""
    slow, quick = Labelling.of(scans, place), Labelling.of(scans, place)
    path = slow.paths[FIRST]
    slow.say(path, nodules((1, 2, 30, 40)))
    slow.tables.write()
    plain, written = slow.tables._files.read, []

    def read(name):
        if name == "rois.csv" and not written:  # the state is read, the table is not
            written.append(name)
            quick.journal.refresh()
            quick.say(path, nodules((2, 2, 30, 40)))
            quick.tables.write()
            quick.say(path, nodules((3, 2, 30, 40)))
        return plain(name)

    monkeypatch.setattr(slow.tables._files, "read", read)
    assert slow.tables.write() == []
    assert written
    assert [entry.role for entry in slow.journal.entries] == [Role.READER] * 3
    assert slow.rows("rois.csv")[0]["x"] == "3"


def test_several_servers_and_a_bucket(scans, gcs):
    place = gcs.address("labelled")
    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(serve, str(scans), place, f"reader{n}", 1) for n in range(2)]
        check_servers(scans, place, [future.result() for future in futures], 2 * 6)


def test_ingest_and_crop_take_the_tables_of_phantoms(phantoms, tmp_path, undrawn):
    """What was said is exactly what is trained on, and what was not usable is quarantined with a reason."""
    scans, place = phantoms / "scans", tmp_path / "labelled"
    bench = Labelling.of(scans, place)
    given = csv_tables.read(phantoms / "rois.csv", "rois.csv", "regions")
    expected: dict[str, list[tuple[int, ...]]] = {}
    for row in given.itertuples():
        expected.setdefault(row.filename, []).append(tuple(int(v) for v in (row.x, row.y, row.width, row.height)))
    bad, empty, unread, contested, other = (
        bench.paths[3],
        bench.paths[6],
        bench.paths[9],
        bench.paths[12],
        bench.paths[1],
    )
    other_side = "M" if bench.catalogue.by_path(other).label == "B" else "B"
    for path in bench.paths:
        reading = nodules(*expected[path], side=other_side if path == other else "", foci="none")
        if path in (bad, empty):
            reading = UNUSABLE if path == bad else NOTHING
        if path != unread:
            bench.say(path, reading)
        if path == contested:
            bench.say(path, NOTHING, "Bob")
    two = [*expected[bench.paths[0]], (1, 1, 20, 20)]
    bench.say(bench.paths[0], nodules(*two, foci="macro"))
    bench.tables.write()
    expected[bench.paths[0]] = two

    options = IngestOptions(scans, rois=place / "rois.csv", labels=place / "labels.csv")
    facts = ingest.ingest(options, tmp_path / "ingested").facts
    version = DataVersion.read(tmp_path / "ingested")
    used = {path.removeprefix(f"{scans.resolve()}/"): row for path, row in version.used.set_index("path").iterrows()}
    assert set(used) == set(bench.paths) - {bad}
    for frame in bench.catalogue.frames:
        if frame.path != bad:
            label = other_side if frame.path == other else frame.label
            assert (used[frame.path]["label"], used[frame.path]["patient"]) == (label, frame.patient)
    found: dict[str, list[tuple[int, ...]]] = {}
    for row in version.regions.sort_values(["path", "index"]).itertuples():
        path = str(row.path).removeprefix(f"{scans.resolve()}/")
        found.setdefault(path, []).append((row.x, row.y, row.width, row.height))
    assert found == {p: b for p, b in expected.items() if p not in (bad, empty, unread, contested)}
    quarantined = tables.read_quarantine(tmp_path / "ingested", facts)
    assert [Path(file).name for file in quarantined["file"]] == [bad]
    assert "labels.csv" in quarantined["reason"][0]

    cropped = crop.crop(tmp_path / "ingested", tmp_path / "cropped", CropOptions(["cropped", "normal"]))
    assert cropped.facts.regions == sum(map(len, found.values()))

    clinical = clinical_csv.read(place / "clinical.csv")
    joined, _ = clinical_csv.join(version.used, clinical)
    by_path = dict(zip(version.used["path"], joined["foci"], strict=True))
    assert by_path[f"{scans.resolve()}/{bench.paths[0]}"] == "macro"
    assert by_path[f"{scans.resolve()}/{unread}"] is None


def test_several_classes(tmp_path):
    scans = write_scans(tmp_path / "scans")
    (tmp_path / "known.csv").write_text("filename,label\nB_001-0001-1.0.jpg,2\nM_002-0001-1.0.jpg,5\n")
    classes = class_names.parse("2<3|4<5")
    bench = Labelling.of(scans, tmp_path / "labelled", classes=classes)
    bench.say(bench.paths[FIRST], nodules((1, 2, 30, 40), side="4"))
    bench.tables.write()
    assert [row["label"] for row in bench.rows("labels.csv")] == ["4", *[""] * 6]
    bench.set("labels.csv", bench.paths[FIRST], label="3.0")
    bench.tables.write()
    assert bench.rows("labels.csv")[0]["label"] == "3"


def test_dicom_frames(tmp_path, monkeypatch, undrawn):
    monkeypatch.setenv(pseudonyms.KEY_VARIABLE, "a secret for tests only")
    monkeypatch.setattr(listing, "SETTLED_SECONDS", -1.0)
    folder = tmp_path / "scans"
    lines = ["filename,label,frame"]
    for patient in range(1, 13):
        label = "B" if patient % 2 else "M"
        if patient > 1:
            write_scan(folder / f"{label}_{patient:03d}-0001-1.0.jpg", patient)
    (folder / "Roe Jane.dcm").write_bytes(dicoms.write(dicoms.cine(5), name="Roe^Jane", patient="ID 7"))
    (folder / "dicom.csv").write_text("\n".join([*lines, "Roe Jane.dcm,B,2", "Roe Jane.dcm,B,4"]) + "\n")
    bench = Labelling.of(folder, tmp_path / "labelled")
    assert bench.paths[-2:] == ["Roe Jane.dcm#2", "Roe Jane.dcm#4"]
    bench.say("Roe Jane.dcm#2", nodules((20, 30, 40, 40), foci="rim"))
    bench.say("Roe Jane.dcm#4", nodules((25, 30, 40, 40), foci="macro"))
    bench.say(bench.paths[0], nodules((5, 5, 30, 30), foci="none"))
    assert bench.tables.write() == []
    assert [tuple(row.values()) for row in bench.rows("rois.csv")] == [
        (bench.paths[0], "5", "5", "30", "30", ""),
        ("Roe Jane.dcm", "20", "30", "40", "40", "2"),
        ("Roe Jane.dcm", "25", "30", "40", "40", "4"),
    ]
    assert "Roe" not in bench.content("clinical.csv").decode()
    place = tmp_path / "labelled"
    ingest.ingest(IngestOptions(folder, rois=place / "rois.csv", labels=place / "labels.csv"), tmp_path / "ingested")
    version = DataVersion.read(tmp_path / "ingested")
    assert sorted(version.regions["x"]) == [5, 20, 25]
    joined, _ = clinical_csv.join(version.used, clinical_csv.read(place / "clinical.csv"))
    frames = version.used["path"].str.endswith(".dcm")
    assert sorted(zip(version.used["version"][frames], joined["foci"][frames], strict=True)) == [
        ("2", "rim"),
        ("4", "macro"),
    ]

    def move(rows):
        rows[1]["x"] = "22"
        return rows

    bench.edit("rois.csv", move)
    assert len(bench.tables.write()) == 1
    assert bench.journal.entries[-1].frame == "Roe Jane.dcm#2"
    assert bench.journal.entries[-1].reading.regions[0].features == {"foci": "rim"}
    assert bench.state("Roe Jane.dcm#4")[1] == nodules((25, 30, 40, 40), foci="macro")


@pytest.fixture
def cines(tmp_path, monkeypatch) -> Path:
    """Scans of twelve patients, four of whom have one DICOM file of five different frames."""
    monkeypatch.setenv(pseudonyms.KEY_VARIABLE, "a secret for tests only")
    monkeypatch.setattr(listing, "SETTLED_SECONDS", -1.0)
    folder, lines = tmp_path / "scans", ["filename,label,frame"]
    for patient in range(1, 9):
        write_scan(folder / f"{'BM'[patient % 2]}_{patient:03d}-0001-1.0.jpg", patient)
    for n in range(4):
        file = dicoms.write(dicoms.cine(5, n + 1), dicoms.JPEG_LOSSLESS, name=f"Roe^{n}", patient=f"ID {n}")
        (folder / f"Roe {n}.dcm").write_bytes(file)
        lines += [f"Roe {n}.dcm,{'BM'[n % 2]},{frame}" for frame in (1, 5, "")]
    (folder / "dicom.csv").write_text("\n".join(lines) + "\n")
    return folder


def test_frames_of_one_file_go_their_own_ways(cines, tmp_path, undrawn):
    """What is said about a frame of a DICOM file is what a run uses of it: class, boxes, and whether it is usable."""
    place = tmp_path / "labelled"
    bench = Labelling.of(cines, place)
    assert [path for path in bench.paths if "Roe 0" in path] == [f"Roe 0.dcm#{n}" for n in (1, 3, 5)]  # 3: the middle
    expected = {}
    for number, path in enumerate(path for path in bench.paths if "#" in path):
        reading = nodules((20 + number, 30, 40, 41), side="MB"[number % 2])
        if path in ("Roe 0.dcm#3", "Roe 1.dcm#1"):
            reading = UNUSABLE
        elif path == "Roe 2.dcm#5":
            reading = NOTHING
        bench.say(path, reading)
        frame = bench.catalogue.by_path(path)
        if reading is not UNUSABLE:
            boxes = [region.box for region in reading.regions]
            expected[frame.pseudonym] = (reading.side or frame.label, str(frame.number), boxes)
    assert bench.tables.write() == []

    options = IngestOptions(cines, rois=place / "rois.csv", labels=place / "labels.csv")
    facts = ingest.ingest(options, tmp_path / "ingested").facts
    version = DataVersion.read(tmp_path / "ingested")
    assert facts.scans == len(version.used) == len(bench.paths) - 2
    found = {}
    for row in version.used[version.used["path"].str.endswith(".dcm")].itertuples():
        own = version.regions[version.regions["path"] == row.path]
        boxes = [(box.x, box.y, box.width, box.height) for box in own.itertuples()]
        found[row.path.removeprefix(f"{cines.resolve()}/")] = (row.label, row.version, boxes)
    assert found == expected
    quarantined = tables.read_quarantine(tmp_path / "ingested", facts)
    assert [reason.partition(": ")[2] for reason in quarantined["reason"]] == ["its label in labels.csv is empty"] * 2
    assert not quarantined["file"].str.contains("Roe").any()
    cropped = crop.crop(tmp_path / "ingested", tmp_path / "cropped", CropOptions(["cropped", "normal"]))
    assert cropped.facts.regions == sum(len(boxes) for _, _, boxes in expected.values())

    again = Catalogue.read(cines, class_names.BINARY, place / "labels.csv")  # the bench takes its own table, too
    labels = {frame.pseudonym: frame.label for frame in again.frames if frame.pseudonym in expected}
    assert labels == {name: label for name, (label, _, _) in expected.items()}


def test_a_store_notices_a_frame_of_another_class(cines, tmp_path, undrawn):
    place = tmp_path / "labelled"
    bench = Labelling.of(cines, place)
    for path in bench.paths:
        bench.say(path, NOTHING)
    options = IngestOptions(cines, labels=place / "labels.csv", store=tmp_path / "store")
    bench.tables.write()
    ingest.ingest(options, tmp_path / "first")
    bench.say("Roe 0.dcm#3", Reading(verdict=Verdict.NONE, side="M"))
    bench.tables.write()
    facts = ingest.ingest(options, tmp_path / "second").facts
    assert facts.looked_at == 0
    used = DataVersion.read(tmp_path / "second").used
    pseudonym = bench.catalogue.by_path("Roe 0.dcm#3").pseudonym
    assert used[used["path"].str.endswith(pseudonym)]["label"].tolist() == ["M"]


def counted(bench: Labelling, monkeypatch) -> list[str]:
    """Return a list that gets the name of every file of the results that is read from now on, but for the journal."""
    kind, names = type(storage.at(bench.place)), []
    plain = kind.read

    def read(self, name):
        if not name.startswith("journal/"):
            names.append(name)
        return plain(self, name)

    monkeypatch.setattr(kind, "read", read)
    return names


def test_tables_are_read_again_only_if_somebody_wrote_them(bench, monkeypatch):
    monkeypatch.setattr(listing, "SETTLED_SECONDS", -1.0)
    bench.say(bench.paths[FIRST], nodules((1, 2, 30, 40), foci="none"))
    bench.tables.write()
    bench.tables.write()  # reads what it has written
    names = counted(bench, monkeypatch)
    for _ in range(3):
        assert bench.tables.write() == bench.tables.absorb() == []
    assert names == []
    bench.set("rois.csv", bench.paths[FIRST], x="5")
    names.clear()
    assert len(bench.tables.write()) == 1
    assert bench.state(bench.paths[FIRST])[1].regions[0].box == (5, 2, 30, 40)
    assert set(names) == {"rois.csv", "tables.json"}
    bench.tables.write()
    names.clear()
    bench.say(bench.paths[SECOND], NOTHING)
    bench.tables.write()
    assert bench.rows("labels.csv")[1]["verdict"] == "none"
    assert set(names) <= {"labels.csv", "tables.json"}


def test_an_edit_of_the_same_size_and_second_is_noticed(scans, tmp_path):
    bench = Labelling.of(scans, tmp_path / "labelled")
    bench.say(bench.paths[FIRST], nodules((1, 2, 30, 40)))
    bench.tables.write()
    path = tmp_path / "labelled" / "rois.csv"
    for x in "5678":
        was = path.stat()
        path.write_bytes(re.sub(rb"jpg,\d", b"jpg," + x.encode(), path.read_bytes()))
        os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))
        assert len(bench.tables.write()) == 1
        assert bench.state(bench.paths[FIRST])[1].regions[0].x == int(x)


def _serve_until_killed(scans: str, place: str) -> None:
    bench = Labelling.of(scans, place)
    for n in range(10_000):
        bench.say(bench.paths[n % 7], nodules((n % 60 + 1, 1, 20, 20), side="BM"[n % 2], foci="none"))
        bench.tables.write()


@pytest.mark.slow
def test_a_server_that_is_killed_again_and_again(scans, tmp_path):
    place, context = str(tmp_path / "labelled"), multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.label.test_tables"])
    dice, before = random.Random(0), 0
    for _ in range(15):
        process = context.Process(target=_serve_until_killed, args=(str(scans), place))
        process.start()
        while len(list((tmp_path / "labelled" / "journal").glob("*.json"))) < before + 3:
            assert process.is_alive()
            time.sleep(0.01)
        time.sleep(dice.uniform(0, 0.05))
        process.kill()
        process.join()
        bench = Labelling.of(scans, place)
        assert bench.tables.write() == []
        assert all(entry.role is Role.READER for entry in bench.journal.entries)
        held = [bench.state(path)[1] for path in bench.paths]
        assert [row["x"] for row in bench.rows("rois.csv")] == [str(r.regions[0].x) for r in held if r is not None]
        before = len(bench.journal.entries)


def test_a_second_reader_is_due(scans, tmp_path):
    bench = Labelling.of(scans, tmp_path / "labelled", Rules(second=1))
    bench.say(bench.paths[FIRST], nodules((1, 2, 30, 40)))
    bench.tables.write()
    assert bench.state(bench.paths[FIRST])[0] is State.SECOND
    assert len(bench.rows("rois.csv")) == 1
