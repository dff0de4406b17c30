"""A patient is erased from a labelled folder: nothing is left, and other patients' readings are as they were."""

import hashlib
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conftest import write_scan
from tests.registry.test_retention import House, Killed, killed_after
from tests.support import dicoms, label_server
from tests.support.labelling import NOTHING, Labelling, nodules, write_scans
from thyroid import retention as command
from thyroid import storage
from thyroid.data import pseudonyms
from thyroid.data.classes import BINARY
from thyroid.errors import InputError
from thyroid.label import suspects
from thyroid.label.consensus import Rules, State
from thyroid.label.frames import Catalogue, Frame
from thyroid.label.journal import ErasedError, Journal
from thyroid.label.proposals import Proposer
from thyroid.label.retention import erasure
from thyroid.label.server import app
from thyroid.label.server import bench as server
from thyroid.label.server.readers import Readers
from thyroid.label.tables import Tables
from thyroid.registry import retention
from thyroid.storage import Folder

KEY = "a secret for tests only"
OWN, OWN_TOO, THIRD, _, SECOND, SECOND_TOO, _ = range(7)
"""Frames of the patients 1, 3 and 2."""


@pytest.fixture
def scans(tmp_path) -> Path:
    return write_scans(tmp_path / "scans")


def contents(place: str) -> dict[str, bytes]:
    """Every file of a folder or bucket but the locks."""
    at = storage.at(place)
    if isinstance(at, Folder):
        names = [path.relative_to(at.path).as_posix() for path in at.path.rglob("*") if path.is_file()]
    else:
        names = [entry.name for entry in at.entries()]
    return {name: at.read(name)[0] for name in names if not name.endswith(".lock")}


def holding(place: str, needle: str = "_001-") -> list[str]:
    return [name for name, data in contents(place).items() if needle in name or needle.encode() in data]


def labelled(scans: Path, place: str) -> Labelling:
    """A bench with readings of every patient by two readers, a list of suspects, and a proposal."""
    bench = Labelling.of(scans, place)
    own, paths = bench.paths[OWN], bench.paths
    bench.say(own, nodules((5, 6, 20, 30), shape="taller"))
    bench.say(paths[SECOND], nodules((7, 8, 20, 30), shape="wider"))
    bench.say(own, nodules((5, 6, 20, 30), shape="taller"), "Bob")
    bench.say(paths[THIRD], NOTHING)
    bench.say(own, nodules((6, 6, 20, 30), shape="taller"))
    bench.tables.write()
    lines = [",".join(suspects.COLUMNS), *(f"{paths[one]},B,M,0.1,0.8" for one in (OWN, SECOND))]
    bench.put("suspects.csv", "\n".join(lines) + "\n")
    digest = hashlib.sha256(bench.content("suspects.csv")).hexdigest()
    bench.put("suspects.json", json.dumps({"digest": digest, "since": 2}))
    bench.put(".proposals/1-abc/0123.json", "{}")
    return bench


def told(place: str, delete: bool = False, patient: int = 1) -> dict[str, str]:
    return {one.name: one.reason for one in erasure.forget(place, patient, (), delete)}


def others(bench: Labelling) -> list[tuple[State, object]]:
    return [bench.state(path) for path in bench.paths if "_001-" not in path]


def test_nothing_is_left(scans, place):
    bench = labelled(scans, place)
    bench.set("rois.csv", bench.paths[SECOND], x="9")  # by hand, and no bench has seen it yet
    before, said = contents(place), bench.journal.entries
    listed = told(place)
    assert listed.keys() == {
        "3 entries",
        *("rois.csv", "labels.csv", "clinical.csv", "suspects.csv", "tables.json", ".proposals"),
    }
    assert contents(place) == before, "nothing goes before it is said"
    assert told(place, delete=True) == listed
    assert holding(place) == []
    assert not [name for name in contents(place) if name.startswith(".proposals")]
    for name in ("labels.csv", "suspects.csv"):
        kept = [line for line in before[name].decode().splitlines() if "_001-" not in line]
        assert contents(place)[name].decode().splitlines() == kept
    since = json.loads(contents(place)["suspects.json"])
    assert since == {"digest": hashlib.sha256(contents(place)["suspects.csv"]).hexdigest(), "since": 2}
    again = Labelling.of(scans, place)
    entries = again.journal.entries
    assert len(entries) == len(said) + 1
    assert [(e.reader, e.at, e.effort, e.erased) for e in entries[:-1]] == [
        (e.reader, e.at, e.effort, "_001-" in e.frame) for e in said
    ]
    assert again.paths == [path for path in bench.paths if "_001-" not in path], "although the scans are still there"
    assert again.tables.write() == ["rois.csv: edited outside the bench; 1 frame was taken over"]
    assert again.rows("rois.csv")[0]["x"] == "9"
    assert again.journal.undo("Ann").undoes == 4, "and not the one after it, which was erased"
    assert holding(place) == []
    assert told(place) == told(place, delete=True) == {}
    assert len(Journal(place).entries) == len(again.journal.entries), "nobody is erased twice"


def test_a_bench_that_runs_notices(scans, place):
    bench = labelled(scans, place)
    own, kept = bench.paths[OWN_TOO], others(bench)
    stale = {name: bench.content(name) for name in ("rois.csv", "labels.csv", "clinical.csv")}
    told(place, delete=True)
    with pytest.raises(ErasedError, match="erased") as caught:
        bench.say(own, NOTHING)
    assert own not in str(caught.value)
    # written by a bench that knew nothing yet, after the erasure had gone through the tables
    state = json.loads(bench.content("tables.json"))
    for name, data in stale.items():
        bench.put(name, data)
    state["known"]["labels.csv"].append(stale["labels.csv"].decode())
    bench.put("tables.json", json.dumps(state))
    bench.put(".proposals/1-abc/0123.json", "{}")
    count = len(bench.journal.entries)
    assert bench.tables.write() == []
    assert holding(place) == []
    assert not [name for name in contents(place) if name.startswith(".proposals")]
    assert len(bench.journal.entries) == count, "what others wrote is no edit by hand"
    assert not [path for path in bench.paths if "_001-" in path]
    assert others(Labelling.of(scans, place)) == kept


def test_who_reads_at_the_same_time_loses_nothing(scans, place):
    labelled(scans, place)
    begun = threading.Barrier(4)

    def read(reader: str) -> int:
        bench, refused = Labelling.of(scans, place), 0
        paths = bench.paths
        begun.wait(60)
        for number in range(4):
            for path in (paths[OWN_TOO], paths[SECOND_TOO]):
                try:
                    bench.say(path, nodules((number, 1, 20, 30)), reader)
                except ErasedError:
                    refused += path == paths[OWN_TOO]
            bench.tables.write()
        return refused

    with ThreadPoolExecutor(3) as pool:
        reading = [pool.submit(read, reader) for reader in ("Kim", "Lee", "Park")]
        begun.wait(60)
        told(place, delete=True)
        refused = [one.result() for one in reading]
    Labelling.of(scans, place).tables.write()
    assert holding(place) == []
    entries = Journal(place).entries
    assert sum(e.frame.startswith("M_002-0002") for e in entries) == 12
    assert sum(e.erased for e in entries) == 3 + 12 - sum(refused)
    assert len([e for e in entries if e.erases]) >= 1


def test_a_kill_at_any_moment_is_made_up_for(scans, tmp_path, monkeypatch):
    steps, killed = 0, True
    calls = {(owner, name): getattr(owner, name) for owner, name in ((Folder, "write"), (Folder, "remove"))}
    while killed:
        place = str(tmp_path / f"labelled-{steps}")
        bench = labelled(scans, place)
        kept = others(bench)
        killed = killed_after(steps, calls, monkeypatch, lambda place=place: told(place, delete=True))
        if steps % 2:  # a bench that runs, or is started, in between
            bench.journal.refresh()
            count = len(bench.journal.entries)
            assert bench.tables.write() == []
            assert len(bench.journal.entries) == count
        told(place, delete=True)
        assert holding(place) == []
        assert others(Labelling.of(scans, place)) == kept
        assert told(place) == {}
        steps += 1
    assert steps > 10, "the journal's entries, the tables, what is known of them, and the proposals"


def test_what_tells_whose_a_file_is(scans, tmp_path):
    """The number in labels.csv comes before the one in the name, and the store knows files of the same bytes."""
    table = tmp_path / "labels.csv"
    table.write_text("filename,label,patient\nmore/unnamed.jpg,B,1\nB_001-0002-1.0.jpg,B,5\n")
    place = str(tmp_path / "labelled")
    catalogue, journal = Catalogue.read(scans, BINARY, table), Journal(place)
    bench = Labelling(place, catalogue, journal, Tables(place, catalogue, journal, Rules()))
    for path in bench.paths:
        bench.say(path, nodules((5, 6, 20, 30), shape="taller"))
    bench.tables.write()
    erasure.forget(place, 1, {"M_002-0002-1.0.jpg"}, delete=True)
    assert {row["filename"] for row in bench.rows("labels.csv")} == {
        *("B_001-0002-1.0.jpg", "B_003-0001-1.0.jpg", "B_003-0002-1.0.jpg", "M_002-0001-1.0.jpg")
    }
    assert not [row for row in bench.rows("clinical.csv") if row["filename"] == "unnamed.jpg"]
    assert len(bench.rows("clinical.csv")) == len(bench.rows("rois.csv")) == 4
    assert sum(entry.erased for entry in Journal(place).entries) == 3


def test_dicom_frames(tmp_path, monkeypatch):
    monkeypatch.setenv(pseudonyms.KEY_VARIABLE, KEY)
    folder, place = tmp_path / "scans", str(tmp_path / "labelled")
    folder.mkdir()
    (folder / "Roe Jane.dcm").write_bytes(dicoms.write(dicoms.cine(5), name="Roe^Jane", patient="ID 7"))
    (folder / "other.dcm").write_bytes(dicoms.write(dicoms.frame(3), patient="ID 8"))
    (folder / "dicom.csv").write_text("filename,label,frame\nRoe Jane.dcm,M,2\nRoe Jane.dcm,M,4\nother.dcm,B,\n")
    bench = Labelling.of(folder, place)
    for path in (bench.paths[0], bench.paths[2]):
        bench.say(path, nodules((5, 6, 20, 30), shape="taller"))
    bench.tables.write()
    own, number = bench.catalogue.frames[0], pseudonyms.patient_number(KEY.encode(), "ID 7")
    assert own.short in {row["filename"] for row in bench.rows("clinical.csv")}
    monkeypatch.delenv(pseudonyms.KEY_VARIABLE)
    with pytest.raises(InputError, match=pseudonyms.KEY_VARIABLE):
        told(place, True, number)
    monkeypatch.setenv(pseudonyms.KEY_VARIABLE, KEY)
    told(place, True, number)
    assert holding(place, "Roe Jane") == holding(place, own.short) == holding(place, str(number)) == []
    assert [row["filename"] for row in bench.rows("clinical.csv")] == [bench.catalogue.frames[2].short]
    with pytest.raises(ErasedError):  # a frame of the file that nobody had read
        bench.say(bench.paths[1], NOTHING)


def test_what_cannot_be_read_is_named_before_anything_goes(scans, tmp_path):
    place = tmp_path / "labelled"
    bench = labelled(scans, str(place))
    for name, damage in (("old.csv", "filename,x\na,1,2,3\n"), ("tables.json", "[]"), ("journal/00000002.json", "{")):
        kept = bench.content(name)
        bench.put(name, damage)
        before = contents(str(place))
        with pytest.raises(InputError, match=name):
            told(str(place), delete=True)
        assert contents(str(place)) == before
        bench.put(name, kept) if kept else (place / name).unlink()
    with pytest.raises(InputError, match=r"--labelled .*nothing-here"):
        told(str(tmp_path / "nothing-here"))


def test_half_written_entries_go_and_other_files_stay(scans, tmp_path):
    place = tmp_path / "labelled"
    bench = labelled(scans, str(place))
    (place / "journal" / ".00000009.json.abc.tmp").write_text(bench.paths[OWN])
    bench.put("notes.csv", "who,when\nAnn,today\n")
    assert told(str(place), delete=True)["1 files"]
    assert holding(str(place)) == []
    assert bench.content("notes.csv") == b"who,when\nAnn,today\n"


def test_an_answer_that_comes_after_the_erasure_is_not_kept(scans, tmp_path, monkeypatch):
    frames = Catalogue.read(scans, BINARY).frames
    gone: set[Frame] = set()
    asked = Proposer(
        "http://127.0.0.1:9", None, tmp_path, lambda frame: (scans / frame.path).read_bytes(), is_gone=gone.__contains__
    )
    kept = []
    monkeypatch.setattr(asked, "_keep", lambda name, answer: kept.append(name))
    for frame in frames[:2]:

        def ask(frame: Frame, data: bytes) -> object:
            gone.add(frames[0])  # while the endpoint thinks
            return type("Answer", (), {"model": "1-abc"})()

        monkeypatch.setattr(asked, "_ask", ask)
        asked._handle(frame, "1-abc")
    assert len(kept) == 1


@pytest.mark.usefixtures("undrawn")
def test_the_command(tmp_path, scans, monkeypatch, capsys):
    monkeypatch.delenv(pseudonyms.KEY_VARIABLE, raising=False)
    place = str(tmp_path / "labelled")
    bench = labelled(scans, place)
    for patient in range(5, 15):
        write_scan(scans / f"{'BM'[patient % 2]}_{patient:03d}-0001-1.0.jpg", 200 + patient)
    (scans / "B_004-0001-1.0.jpg").write_bytes((scans / "B_001-0002-1.0.jpg").read_bytes())
    bench.say("B_004-0001-1.0.jpg", NOTHING)
    house = House(tmp_path, scans)
    house.night()
    where = ["--store", str(house.store), "--registry", house.registry, "--labelled", place]
    assert command.main(where) == 2
    assert "--forget" in capsys.readouterr().err
    assert command.main([*where, "--forget", "1"]) == 0
    listed = capsys.readouterr().out
    assert "4 entries" in listed
    assert "data " in listed
    assert "B_00" not in listed
    # killed after the labelled folder: the store still knows which files were the patient's
    with monkeypatch.context() as patch:
        patch.setattr(retention, "forget", _killed)
        with pytest.raises(Killed):
            command.main([*where, "--forget", "1", "--delete"])
    capsys.readouterr()
    assert holding(place) == holding(place, "B_004") == []
    assert command.main([*where, "--forget", "1", "--delete"]) == 0
    assert "labelled folder no longer contain" in capsys.readouterr().out
    assert command.main([*where, "--forget", "1"]) == 0
    assert "journal" not in capsys.readouterr().out


def _killed(*_: object) -> None:
    raise Killed


def test_a_reader_whose_frame_is_erased_goes_on_with_another(scans, tmp_path, monkeypatch):
    monkeypatch.setattr(server, "LOOK", 0.1)
    monkeypatch.setattr(server, "PAUSE", 0.05)
    place, readers = str(tmp_path / "labelled"), tmp_path / "readers.csv"
    readers.write_text(label_server.READERS)
    bench = server.Bench(server.LabelOptions(scans, place))
    bench.start()
    try:
        client = app.create(app.Options(bench, Readers.read(readers), "secret")).test_client()
        visitor = label_server.Visitor(client, "Dr. Kim")
        own = [one for one in bench.catalogue.frames if one.patient == 1]
        shown = label_server.fields(visitor.next(id=own[0].id))
        told(place, delete=True)
        none = {"verdict": "none", "regions": [], "side": ""}
        assert visitor.save(shown, none).status_code == 410
        deadline = time.monotonic() + 60
        while own[0] in bench.catalogue.frames and time.monotonic() < deadline:
            time.sleep(0.05)
        assert client.get(f"/frame/{own[0].id}").status_code == 410
        after = label_server.fields(visitor.next())
        assert after["frame"]["of"] == shown["frame"]["of"] - len(own)
        assert visitor.save(after, none).status_code == 200
    finally:
        bench.close()
    assert holding(place, own[0].path) == []
