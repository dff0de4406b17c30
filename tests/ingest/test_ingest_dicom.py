"""DICOM files among the scans: dicom.csv, pseudonyms, pictures without patient data, and no patient's name anywhere."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from tests.conftest import write_rois, write_scan
from tests.support import dicoms
from thyroid import crop, storage
from thyroid.crop import CropOptions
from thyroid.data import pseudonyms, store, tables
from thyroid.data.store import erased
from thyroid.data.store.erased import Erased
from thyroid.errors import InputError
from thyroid.imaging import dicom, images
from thyroid.ingest import dicom_names, examine, ingest, listing
from thyroid.ingest.options import IngestOptions
from thyroid.registry import retention

MARK = "ZEBRAFINK"
"""Stands in names of files and folders, of patients, and in their ids."""
KEY = "a secret for tests only"


@pytest.fixture(autouse=True)
def key(monkeypatch, undrawn):
    monkeypatch.setenv("THYROID_PATIENT_KEY", KEY)
    monkeypatch.setattr(listing, "SETTLED_SECONDS", -1.0)


def file(number: int) -> str:
    return f"{MARK}^{number}/{MARK} {number}.dcm"


def patient(number: int) -> str:
    return f"{MARK}-{number}"


def of_patient(number: int, **tags) -> bytes:
    return dicoms.write(dicoms.frame(1000 + number), name=f"{MARK}^{number}", patient=patient(number), **tags)


def write_mapping(folder: Path, rows: list[tuple], header: str = "filename,label,patient,frame") -> None:
    lines = [header, *(",".join(map(str, row)) for row in rows)]
    (folder / "dicom.csv").write_text("\n".join(lines) + "\n")


ROWS = [(file(number), "BM"[number % 2], "", "") for number in range(1, 9)]


@pytest.fixture
def mixed(scans) -> Path:
    """The JPEG scans of twelve patients, DICOM files of eight others, and dicom.csv."""
    for number in range(1, 9):
        (scans / file(number)).parent.mkdir()
        (scans / file(number)).write_bytes(of_patient(number))
    write_mapping(scans, ROWS)
    return scans


def pseudonym(name: str, frame: str = "") -> str:
    return pseudonyms.file_pseudonym(KEY.encode(), name, frame)


def of_dicoms(folder: Path) -> pd.DataFrame:
    table = tables.read(folder)[0]
    return table[table["path"].str.contains("/dicom/")]


def reason(folder: Path, name: str, frame: str = "") -> str:
    table = pd.read_csv(folder / "quarantine.csv")
    mine = table[table["file"].str.endswith("/" + pseudonym(name, frame))]
    assert len(mine) == 1
    return mine["reason"].iloc[0]


def check_nobody_is_named(*folders: Path, told: str = "") -> None:
    """Check that no file below the folders holds `MARK` in its bytes, tables or name, and that no output holds it."""
    assert MARK not in told
    for folder in folders:
        for path in (folder, *folder.rglob("*")):
            assert MARK not in path.name
            if path.suffix == ".parquet":
                assert MARK not in pd.read_parquet(path).to_csv()
            if path.is_file():
                data = path.read_bytes()
                assert MARK.encode() not in data, path
                assert data[128:132] != b"DICM", path


def failing(folder: Path | str, output: Path, **options) -> str:
    with pytest.raises(InputError) as caught:
        ingest.ingest(IngestOptions(folder, **options), output)
    assert MARK not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(("number", "image"), [("1" * 30, 0), (str(2**31), 0), (str(2**31 - 1), 2**31 - 1), ("-5", -5)])
def test_a_number_that_no_table_holds_is_none(scans, tmp_path, number, image):
    (scans / "one.dcm").write_bytes(of_patient(1, InstanceNumber=number))
    write_mapping(scans, [("one.dcm", "B", "", "")])
    assert ingest.ingest(IngestOptions(scans), tmp_path / "out").facts.scans == 25
    assert of_dicoms(tmp_path / "out")["image"].tolist() == [image]


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
@pytest.mark.parametrize("kept", [True, False])
def test_dicom_and_jpeg_together_to_crops_and_splits(mixed, tmp_path, kept, capsys, monkeypatch):
    if kept:
        monkeypatch.setattr(examine, "_CHUNK", 4)  # several processes
    home = tmp_path / "store" if kept else None
    more = [(f"{MARK}/second.dcm", "M", patient(1), ""), (f"{MARK}/third", "B", "", 2)]
    (mixed / MARK).mkdir()
    (mixed / more[0][0]).write_bytes(dicoms.write(dicoms.frame(77), name=MARK, patient="", InstanceNumber=12))
    (mixed / more[1][0]).write_bytes(
        dicoms.write(dicoms.cine(3, 5, colour=True), dicoms.JPEG_BASELINE, patient=patient(2))
    )
    write_mapping(mixed, ROWS + more)
    rois = write_rois(tmp_path / "rois.csv", [(file(1), 30, 40, 50, 40), ("B_001-0001-1.0.jpg", 1, 2, 30, 40)])
    facts = ingest.ingest(IngestOptions(mixed, rois=rois, store=home), tmp_path / "in").facts
    assert (facts.scans, facts.patients, facts.quarantined, facts.regions) == (34, 20, 0, 2)
    table = of_dicoms(tmp_path / "in").set_index("path")
    assert len(table) == 10
    second = table.loc[f"{mixed}/{pseudonym(more[0][0])}"]
    third = table.loc[f"{mixed}/{pseudonym(more[1][0], '2')}"]
    first = table.loc[f"{mixed}/{pseudonym(file(1))}"]
    assert (second["label"], second["image"], second["version"]) == ("M", 12, "1")
    assert (third["label"], third["width"], third["height"], third["version"]) == ("B", 160, 128, "2")
    assert first["patient"] == second["patient"] == pseudonyms.patient_number(KEY.encode(), patient(1))
    assert first["group"] == second["group"]
    assert first["split"] == second["split"]
    assert third["split"] == table.loc[f"{mixed}/{pseudonym(file(2))}", "split"]
    for row in table.itertuples():
        data = Path(row.local_path).read_bytes()
        pixels = images.decode(data, formats=("PNG",))
        assert Path(row.local_path).is_relative_to(home or tmp_path / "in")
        assert hashlib.sha256(data).hexdigest() == row.sha256
        assert not pixels[: dicoms.REGION[1]].any()
    expected = dicom.read((mixed / more[1][0]).read_bytes(), 2).pixels
    assert (images.decode(Path(third["local_path"]).read_bytes(), formats=("PNG",)) == expected).all()

    done = crop.crop(tmp_path / "in", tmp_path / "out", CropOptions(["normal"], home))
    assert (done.facts.scans, done.facts.quarantined, done.facts.regions) == (34, 0, 2)
    told = capsys.readouterr()
    check_nobody_is_named(tmp_path / "in", tmp_path / "out", tmp_path / "store", told=told.out + told.err)
    assert len(list((home or tmp_path / "in").rglob("scans/*/*.png"))) == 10


def test_names_do_not_matter_but_the_key_does(mixed, tmp_path, monkeypatch):
    one = ingest.ingest(IngestOptions(mixed), tmp_path / "one").facts
    monkeypatch.setenv("THYROID_PATIENT_KEY", "another secret for tests")
    two = ingest.ingest(IngestOptions(mixed), tmp_path / "two").facts
    assert one.digest == two.digest
    assert not set(of_dicoms(tmp_path / "one")["path"]) & set(of_dicoms(tmp_path / "two")["path"])
    assert not set(of_dicoms(tmp_path / "one")["patient"]) & set(of_dicoms(tmp_path / "two")["patient"])
    assert KEY not in "".join(path.read_text("latin-1") for path in (tmp_path / "one").iterdir() if path.is_file())


def again(folder, tmp_path, number: int) -> int:
    """Ingest once more and return how many files were examined; -1 if no file had to be listed again."""
    output = tmp_path / f"in{number}"
    facts = ingest.ingest(IngestOptions(folder, store=tmp_path / "store"), output).facts
    versions = [path.name for path in store.Store(tmp_path / "store").versions()]
    return facts.looked_at if len(versions) == number else -1


def test_only_what_is_new_is_read(mixed, tmp_path, monkeypatch):
    assert again(mixed, tmp_path, 1) == 32
    with monkeypatch.context() as patch:
        patch.setattr(dicom, "read", lambda *_: pytest.fail("read again"))
        assert again(mixed, tmp_path, 2) == -1
        write_scan(mixed / "B_099-0001-1.0.jpg", seed=99)
        assert again(mixed, tmp_path, 2) == 1
    rows = [(name, "M" if name == file(2) else label, *more) for name, label, *more in ROWS]
    write_mapping(mixed, rows)
    assert again(mixed, tmp_path, 3) == 1
    table = of_dicoms(tmp_path / "in3").set_index("path")
    assert table.loc[f"{mixed}/{pseudonym(file(2))}", "label"] == "M"

    write_mapping(mixed, [*rows[:2], (file(3), "M", "somebody", ""), *rows[3:]])
    assert again(mixed, tmp_path, 4) == 1
    (mixed / file(4)).write_bytes(of_patient(44))
    assert again(mixed, tmp_path, 5) == 1
    table = of_dicoms(tmp_path / "in5").set_index("path")
    assert table.loc[f"{mixed}/{pseudonym(file(3))}", "patient"] == pseudonyms.patient_number(KEY.encode(), "somebody")
    assert table.loc[f"{mixed}/{pseudonym(file(4))}", "patient"] == pseudonyms.patient_number(KEY.encode(), patient(44))

    Path(table["local_path"].iloc[0]).unlink()
    assert again(mixed, tmp_path, 6) == 1
    assert all(Path(path).is_file() for path in of_dicoms(tmp_path / "in6")["local_path"])
    monkeypatch.setenv("THYROID_PATIENT_KEY", "another secret for tests")
    assert again(mixed, tmp_path, 7) == 8
    # lines move, and no file is read for that
    write_mapping(mixed, [("", "", "", ""), *rows])
    (mixed / "dicom.csv").write_text("\n" + (mixed / "dicom.csv").read_text())
    check_nobody_is_named(tmp_path / "store", tmp_path / "in6")


def test_lines_that_move_are_told_anew_and_nothing_is_read_for_it(mixed, tmp_path):
    (mixed / file(1)).write_bytes(of_patient(1, Modality="CT"))
    again(mixed, tmp_path, 1)
    assert re.match(r"line 2 .*\bCT\b", reason(tmp_path / "in1", file(1)))
    write_mapping(mixed, ROWS[::-1])
    assert again(mixed, tmp_path, 2) == 0
    assert re.match(r"line 9 .*\bCT\b", reason(tmp_path / "in2", file(1)))


def test_copies_of_what_is_gone_go(mixed, tmp_path):
    for number in range(1, 8):
        write_scan(mixed / f"B_{number + 50:03d}-0001-1.0.jpg", seed=number + 5000)
        if number == 1:
            write_mapping(mixed, ROWS[1:])
            (mixed / file(1)).unlink()
        ingest.ingest(IngestOptions(mixed, store=tmp_path / "store"), tmp_path / "in")
    home = tmp_path / "store" / "scans"
    old = store.copy_of(tmp_path / "store", "x", "y", ".png")
    old.parent.mkdir(exist_ok=True)
    shutil.copy(next(home.rglob("*.png")), old)
    before = len(list(home.rglob("*.png")))
    (tmp_path / "registry").mkdir()
    rows = retention.retain(tmp_path / "store", tmp_path / "registry", delete=True)
    assert [(row.name, row.stays) for row in rows if row.kind == "copies"] == [("7 files", True), ("1 files", False)]
    assert len(list(home.rglob("*.png"))) == before - 1 == 7


BAD = [
    ((file(1), "X", "", ""), file(1), "", "label must be one of B, M"),
    ((file(1), "", "", ""), file(1), "", "label must be one of B, M"),
    ((file(99), "B", "", ""), file(99), "", "there is no such file in the folder"),
    ((file(1), "B", "", "0"), file(1), "0", "frame must be a whole number from 1"),
    ((file(1), "B", "", "-1"), file(1), "-1", "frame must be a whole number from 1"),
    ((file(1), "B", "", "first"), file(1), "first", "frame must be a whole number from 1"),
    ((file(1), "B", "", "7"), file(1), "7", "there is no frame 7; the file has 1"),
    ((f"../{MARK}.dcm", "B", "", ""), f"../{MARK}.dcm", "", "there is no such file in the folder"),
    (("B_001-0001-1.0.jpg", "B", "", ""), "B_001-0001-1.0.jpg", "", "damaged DICOM"),
    (("dicom.csv", "B", "", ""), "dicom.csv", "", "there is no such file in the folder"),
]


@pytest.mark.parametrize(("row", "name", "frame", "told"), BAD)
def test_a_row_that_cannot_be_used_is_told_by_its_line(mixed, tmp_path, capsys, row, name, frame, told):
    write_mapping(mixed, [*ROWS[1:], row])
    facts = ingest.ingest(IngestOptions(mixed), tmp_path / "in").facts
    assert reason(tmp_path / "in", name, frame).startswith(f"line 9 of dicom.csv: {told}")
    assert facts.quarantined == (1 if name == file(1) else 2)
    shown = capsys.readouterr()
    check_nobody_is_named(tmp_path / "in", told=shown.out + shown.err)


def test_an_erased_patient_of_dicom_files_leaves_no_picture(mixed, tmp_path):
    home = tmp_path / "store"
    ingest.ingest(IngestOptions(mixed, store=home), tmp_path / "out")
    scan = of_dicoms(tmp_path / "out").iloc[0]
    picture = Path(scan["local_path"])
    assert picture.is_file()
    before = {file.name for file in (home / "scans").glob("*/*")}
    (tmp_path / "registry").mkdir()
    for delete in (False, True):
        held = retention.forget(home, tmp_path / "registry", int(scan["patient"]), delete=delete)
        assert {one.kind: one.name for one in held if one.kind != "patients"} == {"copies": "1 files", "data": "000001"}
    for number in range(2):
        ingest.ingest(IngestOptions(mixed, store=home), tmp_path / f"again{number}")
        assert {file.name for file in (home / "scans").glob("*/*")} == before - {picture.name}
        table = tables.read(tmp_path / f"again{number}")[0]
        assert len(tables.used(table)) == 31
        assert scan["sha256"] not in set(table["sha256"])
        assert scan["path"] not in set(table["path"])
        assert scan["phash"] not in set(pd.read_parquet(home / "versions" / "000002" / store.MEMORY)["phash"])


def test_a_patient_who_was_erased_under_a_rounded_number_stays_erased(mixed, tmp_path):
    """Older releases rounded long numbers where a file was quarantined in the same run."""
    home = tmp_path / "store"
    cohort = ingest.ingest(IngestOptions(mixed, store=home), tmp_path / "one").facts.cohort
    number = int(of_dicoms(tmp_path / "one")["patient"].iloc[0])
    rounded = int(float(number))
    assert rounded != number
    secret = pseudonyms.key(home)
    erased.save(home, Erased(secret, {(cohort, cohort, pseudonyms.of_patient(secret, cohort, rounded)): frozenset()}))
    ingest.ingest(IngestOptions(mixed, store=home), tmp_path / "two")
    assert number not in set(tables.read(tmp_path / "two")[0]["patient"].dropna())


def test_a_patients_number_does_not_depend_on_damaged_files_beside(mixed, tmp_path):
    ingest.ingest(IngestOptions(mixed), tmp_path / "one")
    (mixed / "B_999-0001-1.0.jpg").write_bytes(b"none")
    ingest.ingest(IngestOptions(mixed), tmp_path / "two")
    one, two = (sorted(of_dicoms(tmp_path / name)["patient"]) for name in ("one", "two"))
    assert one == two


def test_rows_that_say_the_same_twice_or_nothing(mixed, tmp_path):
    write_mapping(mixed, [*ROWS, (file(1), "M", "", ""), ("", "B", "", ""), (file(2), "M", "", "1")])
    ingest.ingest(IngestOptions(mixed), tmp_path / "in")
    assert reason(tmp_path / "in", file(1)) == "line 2 of dicom.csv: line 10 names the same file and frame"
    assert reason(tmp_path / "in", "", "11") == "line 11 of dicom.csv: no filename"
    # the middle one of one frame is the first
    same = f"same bytes under different labels: {', '.join(sorted(pseudonym(file(2), f)[6:] for f in ('', '1')))}"
    assert reason(tmp_path / "in", file(2)) == f"line 3 of dicom.csv: {same}"
    assert reason(tmp_path / "in", file(2), "1") == f"line 12 of dicom.csv: {same}"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "column filename, label"),
        (b"filename;label\na;B\n", "column filename, label"),
        (f"filename,diagnosis\n{MARK},B\n".encode(), "column label"),
        (f"filename,label\n{MARK},B,extra\n".encode(), "line 2"),
        (f'filename,label\n"{MARK},B\n'.encode(), "line 2: "),
        (f"filename,label\n{MARK}\xe9,B\n".encode("latin-1"), "UTF-8"),
        (f"filename,label\n{MARK},B\n{MARK * 20000},B\n".encode(), "line 3: "),
        (b"\x89PNG\r\n\x1a\n\0\0", "UTF-8"),
    ],
)
def test_a_mapping_that_is_no_table(mixed, tmp_path, content, told):
    (mixed / "dicom.csv").write_bytes(content)
    assert told in (message := failing(mixed, tmp_path / "in"))
    assert message.startswith(f"{mixed}/dicom.csv: ")


def test_a_mapping_as_excel_writes_it(mixed, tmp_path):
    text = "\r\n".join(
        ["\ufeffFilename, Label", *(f"./{name}, {label.lower()}" for name, label, _, _ in ROWS), ",", ""]
    )
    (mixed / "dicom.csv").write_bytes(text.encode())
    assert ingest.ingest(IngestOptions(mixed), tmp_path / "in").facts.scans == 32


@pytest.mark.parametrize("given", [None, "", "too short"])
def test_without_a_key(mixed, tmp_path, monkeypatch, given):
    monkeypatch.delenv("THYROID_PATIENT_KEY")
    if given is not None:
        monkeypatch.setenv("THYROID_PATIENT_KEY", given)
    assert "THYROID_PATIENT_KEY" in failing(mixed, tmp_path / "in")
    (mixed / "dicom.csv").unlink()
    assert "THYROID_PATIENT_KEY" in failing(mixed, tmp_path / "in")
    for number in range(1, 9):
        shutil.rmtree((mixed / file(number)).parent)
    assert ingest.ingest(IngestOptions(mixed), tmp_path / "in").facts.scans == 24


def test_without_a_mapping_all_are_set_aside(mixed, tmp_path, capsys):
    (mixed / "dicom.csv").unlink()
    for name in (f"{MARK} without suffix", "DICOMDIR", f"{MARK}.DCM"):
        (mixed / name).write_bytes(of_patient(9))
    (mixed / "notes.txt").write_text("no scan")
    facts = ingest.ingest(IngestOptions(mixed), tmp_path / "in").facts
    assert (facts.scans, facts.quarantined) == (24, 12)
    for name in (file(1), f"{MARK} without suffix", "DICOMDIR", f"{MARK}.DCM"):
        told = reason(tmp_path / "in", name)
        assert all(word in told for word in ("dicom.csv", "filename, label", "thyroid.dicom"))
    shown = capsys.readouterr()
    check_nobody_is_named(tmp_path / "in", told=shown.out + shown.err)


def test_what_the_mapping_leaves_out_is_under_a_pseudonym(mixed, tmp_path, capsys):
    write_mapping(mixed, ROWS[2:])
    odd = os.fsdecode(b"bad\xff " + MARK.encode())
    (mixed / f"{MARK}.txt").write_text("not even DICOM")
    (mixed / odd).write_bytes(of_patient(9))
    (mixed / f"{MARK} gone.dcm").symlink_to(mixed / "nowhere")
    facts = ingest.ingest(IngestOptions(mixed, store=tmp_path / "store"), tmp_path / "in").facts
    assert (facts.scans, facts.quarantined) == (30, 5)
    for name in (file(1), file(2), f"{MARK}.txt", odd, f"{MARK} gone.dcm"):
        told = reason(tmp_path / "in", name)
        assert all(word in told for word in ("dicom.csv", "thyroid.dicom"))
    shown = capsys.readouterr()
    check_nobody_is_named(tmp_path / "in", tmp_path / "store", told=shown.out + shown.err)


def test_the_command_finds_the_file_of_a_pseudonym(mixed, tmp_path, capsys):
    write_mapping(mixed, [*ROWS[1:], (file(2), "B", "", "3")])
    assert dicom_names.main([str(mixed)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"{pseudonym(file(1))}  {file(1)}, not in dicom.csv" in lines
    assert f"{pseudonym(file(2))}  {file(2)}, line 2 of dicom.csv" in lines
    assert f"{pseudonym(file(2), '3')}  {file(2)}, frame 3, line 9 of dicom.csv" in lines
    assert len(lines) == 9
    (tmp_path / "empty").mkdir()
    write_scan(tmp_path / "empty" / "B_001-0001-1.0.jpg")
    assert dicom_names.main([str(tmp_path / "empty")]) == dicom_names.main([str(tmp_path / "nowhere")]) == 2


def test_files_that_cannot_be_read_are_not_named(mixed, tmp_path, capsys):
    outside = tmp_path / "elsewhere.dcm"
    outside.write_bytes(of_patient(9))
    cases = {
        "empty": "empty file",
        "link": "leaves the folder",
        "loop": "cannot be read",
        "gone": "No such file",
        "fifo": "not a regular file",
        "text": "damaged DICOM",
        "half": "damaged DICOM",
        "nobody": "says which patient",
    }
    names = {case: f"{MARK} {case}" for case in cases}
    (mixed / names["empty"]).touch()
    (mixed / names["link"]).symlink_to(outside)
    (mixed / names["loop"]).symlink_to(mixed / names["loop"])
    (mixed / names["gone"]).symlink_to(mixed / "nowhere")
    os.mkfifo(mixed / names["fifo"])
    (mixed / names["text"]).write_text(MARK)
    (mixed / names["half"]).write_bytes(of_patient(9)[:5000])
    (mixed / names["nobody"]).write_bytes(dicoms.write(dicoms.frame(9), name=MARK, patient=""))
    write_mapping(mixed, [*ROWS, *((name, "B", "", "") for name in names.values())])
    ingest.ingest(IngestOptions(mixed), tmp_path / "in")
    for case, told in cases.items():
        assert told in reason(tmp_path / "in", names[case]), case
    shown = capsys.readouterr()
    check_nobody_is_named(tmp_path / "in", told=shown.out + shown.err)


def test_a_file_that_is_too_large(mixed, tmp_path, monkeypatch):
    monkeypatch.setattr(dicom, "MAX_BYTES", 10_000)
    ingest.ingest(IngestOptions(mixed), tmp_path / "in")
    assert "10,000" in reason(tmp_path / "in", file(1))


def test_when_nothing_can_be_used_the_line_is_told(tmp_path):
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / f"{MARK}.dcm").write_bytes(of_patient(1, Modality="CT"))
    write_mapping(tmp_path / "scans", [(f"{MARK}.dcm", "B", "", "")])
    assert re.search(r"line 2 of dicom\.csv: .*\bCT\b", failing(tmp_path / "scans", tmp_path / "in"))


def test_only_dicom_in_given_folders(tmp_path):
    for part, numbers in {"train": range(1, 15), "test": range(15, 21)}.items():
        for number in numbers:
            path = tmp_path / "scans" / part / f"{number}.dcm"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(of_patient(number))
    write_mapping(
        tmp_path / "scans", [(f"{'train' if n < 15 else 'test'}/{n}.dcm", "BM"[n % 2], "", "") for n in range(1, 21)]
    )
    ingest.ingest(IngestOptions(tmp_path / "scans"), tmp_path / "in")
    table = of_dicoms(tmp_path / "in")
    tested = {f"{tmp_path}/scans/{pseudonym(f'test/{number}.dcm')}" for number in range(15, 21)}
    assert set(table.loc[table["split"] == "test", "path"]) == tested


def test_regions_of_frames(mixed, tmp_path, capsys):
    name = f"{MARK}/cine.dcm"
    (mixed / MARK).mkdir()
    (mixed / name).write_bytes(dicoms.write(dicoms.cine(9), patient=patient(30)))
    write_mapping(mixed, [*ROWS, (name, "B", "", "1"), (name, "B", "", ""), (name, "B", "", "9")])
    rows = [
        (name, 20, 30, 40, 40, ""),  # 2
        (name, 30, 30, 40, 40, 5),
        (name, 30, 30, 40, 40, 2),  # 4: no scan of this frame
        (file(1), 140, 30, 40, 40, ""),  # 5: outside
        (f"{MARK}.dcm", 1, 1, 20, 20, ""),  # 6: not there
        ("B_001-0001-1.0.jpg", 1, 1, 20, 20, 7),
    ]
    rois = tmp_path / "rois.csv"
    rois.write_text("filename,x,y,width,height,frame\n" + "".join(",".join(map(str, row)) + "\n" for row in rows))
    ingest.ingest(IngestOptions(mixed, rois=rois), tmp_path / "in")
    regions = tables.read(tmp_path / "in")[1].groupby("path")["x"].apply(list).to_dict()
    assert regions == {
        f"{mixed}/{pseudonym(name, '1')}": [20],
        f"{mixed}/{pseudonym(name)}": [20, 30],
        f"{mixed}/{pseudonym(name, '9')}": [20],
        f"{mixed}/B_001-0001-1.0.jpg": [1],
    }
    table = pd.read_csv(tmp_path / "in" / "quarantine.csv")
    assert set(table["file"]) == {"rois.csv"}
    told = table["reason"].tolist()
    assert [re.search(r"line (\d+) of rois\.csv", reason)[1] for reason in told] == ["4", "5", "6"]
    assert "140..180" in told[1]
    crop.crop(tmp_path / "in", tmp_path / "out", CropOptions(["normal"]))
    shown = capsys.readouterr()
    check_nobody_is_named(tmp_path / "in", tmp_path / "out", told=shown.out + shown.err)
    rois.write_text(f"filename,x,y,width,height\n{MARK}.dcm,1,1,20,20\n")
    assert re.match(r".*rois\.csv: .*line 2\b", failing(mixed, tmp_path / "in2", rois=rois))


def upload(gcs, folder: Path) -> None:
    gcs.put({f"scans/{path.relative_to(folder)}": path.read_bytes() for path in folder.rglob("*") if path.is_file()})


def downloads(gcs) -> int:
    return sum("alt=media" in path for _, path in gcs.proxy.requests)


@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")  # see test_storage.py
def test_a_bucket_gives_what_the_folder_gives(mixed, tmp_path, gcs, capsys, monkeypatch):
    passing = tmp_path / "passing"
    passing.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(passing))
    monkeypatch.setattr(examine, "_OBJECTS_ON_DISK", 3)
    name = f"{MARK}/cine.dcm"
    (mixed / MARK).mkdir()
    (mixed / name).write_bytes(dicoms.write(dicoms.cine(9), patient=patient(30)))
    (mixed / f"{MARK} left out").write_bytes(of_patient(31))
    write_mapping(mixed, [*ROWS, (name, "B", "", "1"), (name, "B", "", "9"), (file(99), "B", "", "")])
    upload(gcs, mixed)
    here = ingest.ingest(IngestOptions(mixed), tmp_path / "here").facts
    there = ingest.ingest(IngestOptions(gcs.address("scans"), store=tmp_path / "store"), tmp_path / "there").facts
    for fact in ("digest", "scans", "quarantined", "patients", "duplicate_groups", "splits"):
        assert getattr(there, fact) == getattr(here, fact), fact
    assert there.scans == 34
    told = [pd.read_csv(tmp_path / side / "quarantine.csv")["reason"].tolist() for side in ("here", "there")]
    assert sorted(told[0]) == sorted(told[1])
    assert len(told[0]) == 2
    # JPEGs, DICOM files (a cine twice, where a batch ends between its frames), dicom.csv
    assert downloads(gcs) in (24 + 9 + 1, 24 + 10 + 1)
    assert sorted(Path(path).suffix for path in of_dicoms(tmp_path / "there")["local_path"].dropna()) == [".png"] * 10
    assert (
        crop.crop(tmp_path / "there", tmp_path / "out", CropOptions(["normal"], tmp_path / "store")).facts.scans == 34
    )

    gcs.proxy.requests.clear()
    ingest.ingest(IngestOptions(gcs.address("scans"), store=tmp_path / "store"), tmp_path / "two")
    assert downloads(gcs) == 1
    next((tmp_path / "store").rglob("scans/*/*.png")).unlink()
    gcs.put({f"scans/{file(1)}": of_patient(99)})
    facts = ingest.ingest(IngestOptions(gcs.address("scans"), store=tmp_path / "store"), tmp_path / "three").facts
    assert facts.looked_at in (1, 2)
    assert all(Path(path).is_file() for path in of_dicoms(tmp_path / "three")["local_path"].dropna())
    shown = capsys.readouterr()
    check_nobody_is_named(*(tmp_path / part for part in ("there", "out", "store", "three")), told=shown.out + shown.err)
    assert not list(passing.iterdir())


@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
def test_what_the_service_says_of_an_object_is_not_repeated(mixed, tmp_path, gcs, monkeypatch):
    upload(gcs, mixed)

    def refuse(self, wanted, description=""):
        if any(MARK in entry.name for entry, _ in wanted):
            raise InputError(
                f"{self.address}: no permission (403 GET /o/{wanted[0][0].name}: (no)); give the account one"
            )
        return download(self, wanted, description)

    download = storage.Bucket.download
    monkeypatch.setattr(storage.Bucket, "download", refuse)
    told = failing(gcs.address("scans"), tmp_path / "in", store=tmp_path / "store")
    assert told.endswith("/scans: no permission; give the account one")


def test_jpeg_scans_need_no_library_of_dicom(scans, tmp_path):
    code = (
        "import sys; sys.modules['pydicom'] = None\n"
        "from pathlib import Path; from thyroid.ingest import ingest, options\n"
        f"ingest.ingest(options.IngestOptions({str(scans)!r}), Path({str(tmp_path / 'in')!r}))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert json.loads((tmp_path / "in" / "data.json").read_text())["scans"] == 24
