"""The commands of the exchange: into a journal or a rois.csv, and out again."""

import csv
import json

import pytest

from thyroid.data.classes import BINARY
from thyroid.label.exchange.command import main
from thyroid.label.frames import Catalogue
from thyroid.label.journal import Journal
from thyroid.label.readings import MarkedRegion, Reading, Role, Verdict

FIRST, SECOND = "B_001-0001-1.0.jpg", "B_001-0002-1.0.jpg"


def write_coco(path, *boxes):
    """Write a COCO file with a box each for the first frames."""
    content = {
        "images": [{"id": number, "file_name": name} for number, name in enumerate((FIRST, SECOND), 1)],
        "annotations": [
            {"id": number, "image_id": number, "category_id": 1, "bbox": box} for number, box in enumerate(boxes, 1)
        ],
        "categories": [{"id": 1, "name": "nodule"}],
    }
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def run(scans, tmp_path, capsys):
    def run(name, *arguments, **options):
        options = {"scans": scans} | options
        given = [text for key, value in options.items() for text in (f"--{key}", str(value))]
        status = main([name, *map(str, arguments), *given])
        said = capsys.readouterr()
        if status:
            assert len(said.err.splitlines()) == 1
            assert "Traceback" not in said.err
        return status, said.err or said.out

    return run


def test_into_the_journal_once(run, tmp_path):
    labelled, file = tmp_path / "labelled", write_coco(tmp_path / "coco.json", [1, 2, 30, 40], [5, 6, 7, 8])
    assert run("coco-import", file, labelled=labelled)[0] == 0
    assert run("coco-import", file, labelled=labelled)[0] == 0
    first, second = Journal(labelled).entries
    assert (first.frame, first.role, first.reader) == (FIRST, Role.IMPORT, "import")
    assert second.reading.regions[0].box == (5, 6, 7, 8)
    assert (labelled / "rois.csv").read_text().splitlines()[2] == f"{SECOND},5,6,7,8"
    write_coco(file, [1, 2, 30, 41], [5, 6, 7, 8])
    assert run("coco-import", file, labelled=labelled, reader="cvat")[0] == 0
    assert run("coco-import", file, labelled=labelled)[0] == 0
    journal = Journal(labelled)
    assert [(entry.reader, entry.frame) for entry in journal.entries[2:]] == [
        ("cvat", FIRST),
        ("cvat", SECOND),
        ("import", FIRST),
    ]
    assert journal.current(FIRST, "import").reading.regions[0].box == (1, 2, 30, 41)


def test_into_a_new_table(run, tmp_path):
    rois, file = tmp_path / "new" / "rois.csv", write_coco(tmp_path / "coco.json", [1, 2, 30, 40], [5, 6, 7, 8])
    assert run("coco-import", file, rois=rois)[0] == 0
    written = rois.read_text()
    assert list(csv.reader(written.splitlines())) == [
        ["filename", "x", "y", "width", "height"],
        [FIRST, "1", "2", "30", "40"],
        [SECOND, "5", "6", "7", "8"],
    ]
    status, said = run("coco-import", file, rois=rois)
    assert status == 2
    assert "rois.csv" in said
    assert rois.read_text() == written


def test_a_bad_box_refuses_all_unless_it_is_to_be_skipped(run, tmp_path):
    labelled, file = tmp_path / "labelled", write_coco(tmp_path / "coco.json", [1, 2, 300, 40], [5, 6, 7, 8])
    status, said = run("coco-import", file, labelled=labelled)
    assert status == 2
    assert "annotation 1" in said
    assert "--skip" in said
    assert Journal(labelled).entries == ()
    assert (
        main(["coco-import", str(file), "--scans", str(tmp_path / "scans"), "--labelled", str(labelled), "--skip"]) == 0
    )
    assert [entry.frame for entry in Journal(labelled).entries] == [SECOND]


def test_xml_of_ddti(run, tmp_path):
    points = json.dumps([{"points": [{"x": 3, "y": 4}, {"x": 50, "y": 60}]}])
    (tmp_path / "xml").mkdir()
    (tmp_path / "xml" / "1.xml").write_text(
        f"<case><number>1</number><tirads>5</tirads><mark><image>2</image><svg>{points}</svg></mark></case>"
    )
    assert run("ddti-import", tmp_path / "xml", labelled=tmp_path / "labelled")[0] == 0
    (entry,) = Journal(tmp_path / "labelled").entries
    assert (entry.frame, entry.reading.side, entry.reading.regions[0].box) == (SECOND, "M", (3, 4, 47, 56))


def test_what_readers_say_goes_out_and_comes_in_again(run, scans, tmp_path):
    labelled, file = tmp_path / "labelled", tmp_path / "out" / "coco.json"
    journal = Journal(labelled)
    nodule = Reading(verdict=Verdict.NODULES, regions=(MarkedRegion(x=1, y=2, width=30, height=40),), side="B")
    for reader, frame, reading in (
        ("jo", FIRST, nodule),
        ("jo", SECOND, Reading(verdict=Verdict.NONE)),
        ("jo", "M_002-0001-1.0.jpg", nodule),
        ("al", "M_002-0001-1.0.jpg", Reading(verdict=Verdict.NONE)),
    ):
        journal.add(reader=reader, role=Role.READER, frame=frame, reading=reading, base=0)
    assert run("coco-export", file, labelled=labelled, classes="B|M")[0] == 0
    assert [image["file_name"] for image in json.loads(file.read_text())["images"]] == [FIRST, SECOND]
    assert run("coco-import", file, labelled=tmp_path / "other")[0] == 0
    assert [(entry.frame, entry.reading.verdict) for entry in Journal(tmp_path / "other").entries] == [
        (FIRST, Verdict.NODULES),
        (SECOND, Verdict.NONE),
    ]
    status, said = run("coco-import", file, labelled=labelled, reader="jo")
    assert (status, len(Journal(labelled).entries)) == (2, 4)
    assert "--reader" in said


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({}, "--labelled"),
        ({"labelled": "a", "rois": "b"}, "--labelled"),
        ({"labelled": "a", "reader": "outside"}, "outside"),
        ({"labelled": "a", "classes": "B"}, "B"),
        ({"labelled": "a", "scans": "/no/such/folder"}, "/no/such/folder"),
    ],
)
def test_options_that_do_not_fit(run, tmp_path, options, named):
    status, said = run("coco-import", write_coco(tmp_path / "coco.json", [1, 2, 3, 4]), **options)
    assert status == 2
    assert named in said


def test_scans_and_results_in_a_bucket(run, scans, gcs, tmp_path):
    gcs.put({f"scans/{name}": (scans / name).read_bytes() for name in (FIRST, SECOND)})
    file = write_coco(tmp_path / "coco.json", [1, 2, 30, 40], [5, 6, 7, 8])
    for options in ({"labelled": gcs.address("labelled")}, {"rois": gcs.address("rois.csv")}):
        assert run("coco-import", file, scans=gcs.address("scans"), **options)[0] == 0
    assert {"rois.csv", "labelled/rois.csv", "labelled/journal/00000002.json"} <= set(gcs.names())
    assert (
        run("coco-export", tmp_path / "out.json", scans=gcs.address("scans"), labelled=gcs.address("labelled"))[0] == 0
    )
    assert len(json.loads((tmp_path / "out.json").read_text())["annotations"]) == 2


def test_a_file_about_other_frames(run, tmp_path):
    file = tmp_path / "coco.json"
    file.write_text('{"images": [], "annotations": [], "categories": []}')
    status, said = run("coco-import", file, labelled=tmp_path / "labelled")
    assert status == 2
    assert "coco.json" in said


def test_the_frames_are_those_of_the_bench(scans):
    assert Catalogue.read(scans, BINARY).by_path(FIRST) is not None
