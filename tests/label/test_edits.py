"""Tables that somebody edits by hand while the bench runs: what is taken over, and what is refused by its line."""

import re

import pytest

from tests.support.labelling import NOTHING, UNUSABLE, Labelling, nodules, write_scans
from thyroid import storage
from thyroid.errors import InputError
from thyroid.label.consensus import State
from thyroid.label.journal import OUTSIDE
from thyroid.label.readings import Origin, Role, Verdict

FIRST, SECOND, THIRD = range(3)
TABLES = ("rois.csv", "labels.csv", "clinical.csv")
ONE = (10, 10, 30, 30)
OTHER = (50, 10, 20, 20)


@pytest.fixture
def bench(tmp_path) -> Labelling:
    """Two nodules in the first frame, none in the second, an unusable third one."""
    bench = Labelling.of(write_scans(tmp_path / "scans"), tmp_path / "labelled")
    bench.say(bench.paths[FIRST], nodules(ONE, OTHER, foci="rim"))
    bench.say(bench.paths[SECOND], NOTHING)
    bench.say(bench.paths[THIRD], UNUSABLE)
    assert bench.tables.write() == []
    return bench


def taken_over(bench: Labelling, *paths: str) -> None:
    """Check that the tables are written, that only these frames are new from outside, and that this is the end."""
    before = len(bench.journal.entries)
    notes = bench.tables.write()
    new = bench.journal.entries[before:]
    assert len(notes) == bool(paths)
    assert [(e.frame, e.reader, e.role) for e in new] == [(path, OUTSIDE, Role.OUTSIDE) for path in paths]
    content = [bench.content(name) for name in TABLES]
    again = Labelling.of(bench.catalogue.scans, bench.place)
    assert again.tables.write() == []
    assert len(again.journal.entries) == before + len(new)
    assert [again.content(name) for name in TABLES] == content


def boxes(bench: Labelling, path: str) -> list[tuple[int, int, int, int]]:
    reading = bench.state(path)[1]
    return [] if reading is None else [region.box for region in reading.regions]


def test_a_box_that_was_moved(bench):
    path = bench.paths[FIRST]
    bench.set("rois.csv", path, x="12", width="30.0")
    taken_over(bench, path)
    state, reading = bench.state(path)
    assert state is State.FINAL
    moved, kept = reading.regions
    assert (moved.box, moved.origin, moved.features) == ((12, 10, 30, 30), Origin.IMPORTED, {"foci": "rim"})
    assert (kept.box, kept.origin) == (OTHER, Origin.DRAWN)
    assert [row["x"] for row in bench.rows("rois.csv")] == ["12", "50"]
    bench.say(path, nodules((1, 1, 9, 9)), "Bob")  # until somebody reads the frame again
    assert bench.tables.write() == []
    assert bench.state(path) == (State.SINGLE, nodules((1, 1, 9, 9)))


def test_fractions_become_the_pixels_that_ingest_takes(bench):
    bench.set("rois.csv", bench.paths[FIRST], x="9.5", y="10.2", width="30", height="29")
    taken_over(bench, bench.paths[FIRST])
    assert boxes(bench, bench.paths[FIRST])[0] == (9, 10, 31, 30)


def test_one_of_two_rows_that_was_removed(bench):
    path = bench.paths[FIRST]
    bench.edit("rois.csv", lambda rows: rows[1:])
    taken_over(bench, path)
    assert boxes(bench, path) == [OTHER]
    assert next(row for row in bench.rows("labels.csv") if row["filename"] == path)["n_rois"] == "1"


def test_a_frame_that_lost_all_its_boxes_is_open_again(bench):
    path = bench.paths[FIRST]
    bench.drop("rois.csv", path)
    taken_over(bench, path)
    assert bench.state(path) == (State.OPEN, None)
    assert bench.rows("rois.csv") == []
    assert bench.content("clinical.csv") == b""
    bench.say(path, NOTHING)
    assert bench.state(path) == (State.SINGLE, NOTHING)


def test_a_frame_that_lost_its_row_of_labels_is_open_again(bench):
    path = bench.paths[SECOND]
    bench.drop("labels.csv", path)
    taken_over(bench, path)
    assert bench.state(path) == (State.OPEN, None)
    assert [row["filename"] for row in bench.rows("labels.csv")] == bench.paths


def test_a_verdict_that_was_emptied(bench):
    bench.set("labels.csv", bench.paths[SECOND], verdict="")
    taken_over(bench, bench.paths[SECOND])
    assert bench.state(bench.paths[SECOND])[0] is State.OPEN


def test_boxes_of_a_frame_that_nobody_has_read(bench):
    path = bench.paths[4]
    row = {"filename": path, "x": "1", "y": "2", "width": "30", "height": "40"}
    bench.edit("rois.csv", lambda rows: [*rows, row, row])
    taken_over(bench, path)
    assert bench.state(path)[0] is State.FINAL
    assert boxes(bench, path) == [(1, 2, 30, 40)]


def test_a_box_in_a_frame_without_a_nodule(bench):
    path = bench.paths[SECOND]
    bench.edit("rois.csv", lambda rows: [*rows, {"filename": path, "x": "1", "y": "2", "width": "30", "height": "40"}])
    taken_over(bench, path)
    assert bench.state(path)[1].verdict is Verdict.NODULES


def test_names_may_be_shorter(bench):
    bench.edit(
        "rois.csv", lambda rows: [*rows, {"filename": "unnamed.jpg", "x": "1", "y": "2", "width": "30", "height": "40"}]
    )
    taken_over(bench, "more/unnamed.jpg")
    assert bench.rows("rois.csv")[-1]["filename"] == "more/unnamed.jpg"


def test_a_label_that_was_changed(bench):
    path = bench.paths[FIRST]
    bench.set("labels.csv", path, label="m")
    taken_over(bench, path)
    reading = bench.state(path)[1]
    assert reading.side == "M"
    assert [region.box for region in reading.regions] == [ONE, OTHER]
    assert next(row for row in bench.rows("labels.csv") if row["filename"] == path)["label"] == "M"


def test_a_verdict_that_was_changed(bench):
    path = bench.paths[FIRST]
    bench.set("labels.csv", path, verdict="unusable", label="")
    taken_over(bench, path)
    assert bench.state(path) == (State.FINAL, UNUSABLE)
    assert bench.rows("rois.csv") == []
    bench.set("labels.csv", path, verdict="none", label="M")
    taken_over(bench, path)
    assert bench.state(path)[1] == NOTHING.model_copy(update={"side": "M"})


def test_features_that_were_changed(bench):
    path = bench.paths[FIRST]
    bench.set("clinical.csv", path, foci="none", shape="taller")
    taken_over(bench, path)
    first, second = bench.state(path)[1].regions
    assert (first.features, second.features) == ({"foci": "none", "shape": "taller"}, {"foci": "rim"})
    bench.drop("clinical.csv", path)
    taken_over(bench, path)
    assert bench.state(path)[1].regions[0].features == {}


def test_several_kinds_of_foci_and_other_words_survive_tables_edits_and_journal(bench):
    path = bench.paths[FIRST]
    bench.set("clinical.csv", path, foci="Punctate; macrocalcification", margin="well-defined")
    taken_over(bench, path)
    features = {"margin": "smooth", "foci": "macro+punctate"}
    assert bench.state(path)[1].regions[0].features == features
    (row,) = bench.rows("clinical.csv")
    assert {name: row[name] for name in features} == features
    entries = len(bench.journal.entries)
    bench.tables.write()
    assert len(bench.journal.entries) == entries, "what the bench writes is no edit"
    again = Labelling.of(bench.catalogue.scans, bench.place)
    assert again.state(path)[1].regions[0].features == features


def test_several_tables_and_frames_at_once(bench):
    first, third = bench.paths[FIRST], bench.paths[THIRD]
    bench.set("rois.csv", first, x="11")
    bench.set("labels.csv", first, label="M")
    bench.set("labels.csv", third, verdict="none", label="B")
    bench.set("clinical.csv", first, foci="macro")
    taken_over(bench, first, third)
    reading = bench.state(first)[1]
    assert (reading.side, reading.regions[0].box) == ("M", (11, 10, 30, 30))
    assert reading.regions[0].features == {"foci": "macro"}


def test_a_contested_frame_is_decided_by_an_edit(bench):
    path = bench.paths[FIRST]
    bench.say(path, NOTHING, "Bob")
    bench.tables.write()
    assert bench.state(path)[0] is State.CONTESTED
    bench.edit("rois.csv", lambda rows: [{"filename": path, "x": "1", "y": "2", "width": "30", "height": "40"}])
    taken_over(bench, path)
    assert (bench.state(path)[0], boxes(bench, path)) == (State.FINAL, [(1, 2, 30, 40)])


def test_an_edit_while_a_reading_waits_to_be_written(bench):
    """The frame that was read keeps its reading, and the edited one its edit."""
    bench.say(bench.paths[4], nodules(ONE))
    bench.set("rois.csv", bench.paths[FIRST], x="11")
    taken_over(bench, bench.paths[FIRST])
    assert boxes(bench, bench.paths[FIRST])[0] == (11, 10, 30, 30)
    assert boxes(bench, bench.paths[4]) == [ONE]


@pytest.mark.parametrize(
    "change",
    [
        lambda text: b"\xef\xbb\xbf" + text.replace(b"\n", b"\r\n"),
        lambda text: text + b"\n\n",
        lambda text: text.replace(b"10,10", b"10.0, 10"),
        lambda text: b"\n".join([text.split(b"\n")[0], *reversed(text.strip().split(b"\n")[1:])]),
    ],
    ids=["spreadsheet", "blank lines", "numbers", "order"],
)
def test_what_means_the_same_is_no_edit(bench, change):
    for name in TABLES:
        before = bench.content(name)
        bench.put(name, change(before))
        taken_over(bench)
        assert bench.content(name) == before


def test_columns_that_only_follow_are_written_again(bench):
    before = bench.content("labels.csv")
    bench.set("labels.csv", bench.paths[FIRST], n_rois="7", tirads="TR1")
    taken_over(bench)
    assert bench.content("labels.csv") == before


def test_a_table_without_its_optional_columns(bench):
    path = bench.paths[FIRST]
    lines = [",".join(row[column] for column in ("filename", "label")) for row in bench.rows("labels.csv")]
    bench.put("labels.csv", "\n".join(["filename,label", *lines]).replace(f"{path},B", f"{path},M"))
    taken_over(bench, path)
    assert (bench.state(path)[1].verdict, bench.state(path)[1].side) == (Verdict.NODULES, "M")


def test_absorb_writes_no_table(bench):
    bench.set("rois.csv", bench.paths[FIRST], x="12")
    edited = bench.content("rois.csv")
    assert len(bench.tables.absorb()) == 1
    assert bench.content("rois.csv") == edited
    assert bench.tables.absorb() == bench.tables.write() == []
    assert len(bench.journal.entries) == 4


def test_tables_that_were_there_before_the_bench(tmp_path):
    scans, place = write_scans(tmp_path / "scans"), tmp_path / "labelled"
    storage.at(place).write("rois.csv", b"filename,x,y,width,height\nB_001-0001-1.0.jpg,1,2,30,40\n")
    bench = Labelling.of(scans, place)
    taken_over(bench, "B_001-0001-1.0.jpg")
    assert boxes(bench, "B_001-0001-1.0.jpg") == [(1, 2, 30, 40)]


def test_an_edit_at_the_moment_of_writing_is_not_lost(bench, monkeypatch):
    path = bench.paths[FIRST]
    bench.say(path, nodules((1, 1, 9, 9)))
    plain, edited = storage.Folder.write, []

    def write(self, name, data, generation=None):
        if name == "rois.csv" and generation is not None and not edited:
            edited.append(1)
            with monkeypatch.context() as patch:
                patch.setattr(storage.Folder, "write", plain)
                bench.edit("rois.csv", lambda rows: [row | {"x": "20"} for row in rows])
        return plain(self, name, data, generation)

    monkeypatch.setattr(storage.Folder, "write", write)
    assert len(bench.tables.write()) == 1
    assert edited
    assert [row["x"] for row in bench.rows("rois.csv")] == ["20", "20"]
    assert bench.state(path)[0] is State.FINAL


def test_two_servers_find_the_same_edit(bench):
    other = Labelling.of(bench.catalogue.scans, bench.place)
    bench.set("rois.csv", bench.paths[FIRST], x="12")
    assert len(bench.tables.absorb()) == 1
    assert other.tables.write() == []
    assert [entry.role for entry in other.journal.entries].count(Role.OUTSIDE) == 1


def test_a_server_that_ends_while_it_takes_over_an_edit(bench, monkeypatch):
    bench.set("rois.csv", bench.paths[FIRST], x="12")
    monkeypatch.setattr(type(bench.tables), "_write_state", lambda self, state, generation: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        bench.tables.write()
    monkeypatch.undo()
    again = Labelling.of(bench.catalogue.scans, bench.place)
    assert again.tables.write() == []
    assert [entry.role for entry in again.journal.entries].count(Role.OUTSIDE) == 1
    assert again.rows("rois.csv")[0]["x"] == "12"


def append(row: str):
    return lambda text: text + row.encode()


def swap(old: str, new: str):
    return lambda text: text.replace(old.encode(), new.encode(), 1)


WRONG = {
    "a box outside its frame": ("rois.csv", swap("10,10,30,30", "80,10,30,30"), 2),
    "a box above its frame": ("rois.csv", swap("50,10,20,20", "50,-1,20,20"), 3),
    "a box without a size": ("rois.csv", swap("10,10,30,30", "10,10,0,30"), 2),
    "no number": ("rois.csv", swap("10,10,30,30", "ten,10,30,30"), 2),
    "an unknown frame": ("rois.csv", append("B_777-0001-1.0.jpg,1,1,9,9\n"), 4),
    "no name": ("rois.csv", append(",1,1,9,9\n"), 4),
    "too many cells": ("rois.csv", append("B_001-0001-1.0.jpg,1,5,1,9,9\n"), 4),
    "too many boxes": (
        "rois.csv",
        append("".join(f"M_002-0001-1.0.jpg,{n},1,9,9\n" for n in range(21))),
        4,
    ),
    "a missing column": ("rois.csv", swap(",height", ""), None),
    "another column": ("rois.csv", swap("height", "height,remark"), 1),
    "no table": ("rois.csv", lambda text: b"", None),
    "no text": ("rois.csv", lambda text: b"\xff\xfe\x00" + text, None),
    "a label that is no class": ("labels.csv", swap("B_001-0001-1.0.jpg,B", "B_001-0001-1.0.jpg,X"), 2),
    "no label": ("labels.csv", swap("B_001-0001-1.0.jpg,B", "B_001-0001-1.0.jpg,"), 2),
    "a label without a reading": ("labels.csv", swap("M_002-0002-1.0.jpg,M", "M_002-0002-1.0.jpg,B"), 7),
    "an unknown verdict": ("labels.csv", swap(",none,", ",nothing,"), 3),
    "another patient": ("labels.csv", swap("B_001-0001-1.0.jpg,B,1", "B_001-0001-1.0.jpg,B,2"), 2),
    "a contradiction": ("labels.csv", append("B_001-0001-1.0.jpg,M,1,,nodules,2\n"), 2),
    "a frame of labels that is unknown": ("labels.csv", append("B_777-0001-1.0.jpg,M,1,,nodules,2\n"), 9),
    "nodules without a box": ("labels.csv", swap(",none,", ",nodules,"), 3),
    "an unknown value": ("clinical.csv", swap("rim", "ring"), 2),
    "features without a nodule": ("clinical.csv", append("B_001-0002-1.0.jpg,,,,,rim\n"), 3),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_taken_over_is_named_and_kept(bench, case):
    name, change, line = WRONG[case]
    good = bench.content(name)
    broken = change(good)
    assert broken != good
    bench.put(name, broken)
    bench.say(bench.paths[4], NOTHING)
    again = Labelling.of(bench.catalogue.scans, bench.place)
    for call in (bench.tables.write, bench.tables.absorb, again.tables.write):
        with pytest.raises(InputError, match=re.escape(name)) as caught:
            call()
        assert line is None or f"line {line}:" in str(caught.value) or f"line {line} " in str(caught.value)
        assert "B_" not in str(caught.value).replace(str(bench.place), "")  # no patient's number
        assert "\n" not in str(caught.value)
    assert bench.content(name) == broken
    assert len(bench.journal.refresh() or bench.journal.entries) == 4
    bench.put(name, good)  # mended
    assert bench.tables.write() == []
    assert next(row for row in bench.rows("labels.csv") if row["filename"] == bench.paths[4])["verdict"] == "none"


def test_one_wrong_row_holds_back_all_edits(bench):
    bench.set("rois.csv", bench.paths[FIRST], x="11")
    bench.set("labels.csv", bench.paths[SECOND], verdict="nothing")
    with pytest.raises(InputError):
        bench.tables.write()
    assert len(bench.journal.entries) == 3
    bench.set("labels.csv", bench.paths[SECOND], verdict="none")
    taken_over(bench, bench.paths[FIRST])


def test_a_name_of_several_files(tmp_path):
    scans = write_scans(tmp_path / "scans")
    (scans / "again").mkdir()
    (scans / "again" / "unnamed.jpg").write_bytes((scans / "more" / "unnamed.jpg").read_bytes())
    bench = Labelling.of(scans, tmp_path / "labelled")
    bench.tables.write()
    bench.put("rois.csv", "filename,x,y,width,height\nunnamed.jpg,1,2,30,40\n")
    with pytest.raises(InputError, match="line 2: several"):
        bench.tables.write()
    bench.put("rois.csv", "filename,x,y,width,height\nagain/unnamed.jpg,1,2,30,40\n")
    taken_over(bench, "again/unnamed.jpg")


def test_contradicting_tables(bench):
    path = bench.paths[SECOND]
    bench.set("labels.csv", path, verdict="unusable")
    bench.edit("rois.csv", lambda rows: [*rows, {"filename": path, "x": "1", "y": "2", "width": "9", "height": "9"}])
    with pytest.raises(InputError, match=r"rois\.csv"):
        bench.tables.write()
