"""Classes from a table: what it may say, and what becomes of scans that it does not name."""

import csv
import re
import shutil
import unicodedata
from pathlib import Path

import pandas as pd
import pytest

from tests.conftest import write_scan
from tests.support import dicoms
from thyroid.data import classes, tables
from thyroid.errors import InputError
from thyroid.ingest import ingest, labels, listing
from thyroid.ingest.labels import Label
from thyroid.ingest.options import IngestOptions

pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")  # see test_storage.py

GRADES = "2|4<5"
KINDS = classes.parse(GRADES)


def write(file: Path, rows: list[tuple], header: tuple = ("filename", "label"), encoding: str = "utf-8") -> Path:
    with file.open("w", newline="", encoding=encoding) as stream:
        csv.writer(stream).writerows([header, *rows])
    return file


def reasons(folder: Path) -> dict[str, str]:
    table = pd.read_csv(folder / "quarantine.csv")
    return {file.rsplit("/", 1)[-1]: reason for file, reason in zip(table["file"], table["reason"], strict=True)}


def used(folder: Path) -> pd.DataFrame:
    table = tables.used(tables.read(folder)[0])
    return table.set_index(table["path"].str.rsplit("/", n=1).str[-1])


def told(folder: Path) -> list[tuple[str, str]]:
    """A grade a patient of the twelve, by number."""
    return [(file.name, "245"[int(file.name[2:5]) % 3]) for file in sorted(folder.glob("*.jpg"))]


@pytest.fixture
def table(scans, tmp_path) -> Path:
    return write(tmp_path / "labels.csv", told(scans))


# The table.


def test_columns_cases_and_numbers_of_spreadsheets(tmp_path):
    rows = [("a.jpg", "2.0", "7.0", "x"), ("./f/b.jpg", " 4 ", "", "y"), ("c.jpg", "5", "12", "z")]
    file = write(tmp_path / "l.csv", rows, (" filename ", "label", "patient", "remark"), "utf-8-sig")
    found = labels.read(file, KINDS)
    assert found == {"a.jpg": Label("2", 7), "f/b.jpg": Label("4"), "c.jpg": Label("5", 12)}
    assert labels.of(found, "deep/er/a.jpg") == Label("2", 7)
    assert labels.of(found, "f/b.jpg") == Label("4")
    assert labels.of(found, "g/b.jpg") is None


def test_another_column_and_the_other_name_of_the_file(tmp_path):
    file = write(tmp_path / "l.csv", [("a.jpg", "9", "5")], ("file", "label", "TI-RADS"))
    assert labels.read(f"{file}#TI-RADS", KINDS) == {"a.jpg": Label("5")}
    with pytest.raises(InputError, match=r"label .*2, 4, 5.*9$"):
        labels.read(file, KINDS)


def test_names_in_other_forms_of_unicode(tmp_path):
    composed = "갑상선 für 1.jpg"
    file = write(tmp_path / "l.csv", [(unicodedata.normalize("NFD", composed), "4")])
    assert labels.of(labels.read(file, KINDS), composed) == Label("4")
    file = write(tmp_path / "l.csv", [(composed, "4")])
    assert labels.of(labels.read(file, KINDS), unicodedata.normalize("NFD", f"갑/{composed}")) == Label("4")


def test_lines_that_agree_and_lines_that_do_not(tmp_path):
    rows = [("a.jpg", "2"), ("a.jpg", "2.0"), ("b.jpg", "2"), ("b.jpg", "4"), ("c.jpg", "4"), ("c.jpg", "9")]
    found = labels.read(write(tmp_path / "l.csv", rows), KINDS)
    assert found["a.jpg"] == Label("2")
    assert found["b.jpg"] == Label(None, reason="lines 4 and 5 of l.csv contradict each other")
    assert found["c.jpg"].reason == "lines 6 and 7 of l.csv contradict each other"
    rows = [("a.jpg", "2", "1"), ("a.jpg", "2", "2")]
    found = labels.read(
        write(tmp_path / "l.csv", [*rows, ("b.jpg", "4", "1")], ("filename", "label", "patient")), KINDS
    )
    assert found["a.jpg"].name is None


def test_rows_of_frames(tmp_path):
    rows = [("a.dcm", "2", "1.0"), ("a.dcm", "4", "2"), ("a.dcm", "5", "2"), ("a.dcm", "", "3"), ("b.dcm", "5", "")]
    rows += [("c.dcm", "2", ""), ("c.dcm", "4", "7"), ("d.jpg", "2", "1"), ("d.jpg", "2", "2")]
    found = labels.read(write(tmp_path / "l.csv", rows, ("filename", "label", "frame")), KINDS)
    assert found["a.dcm"].name is None  # for a file without frames
    assert found["a.dcm"].of_frame("1") == Label("2")
    assert found["a.dcm"].of_frame("2").reason == "lines 3 and 4 of l.csv contradict each other"
    assert found["a.dcm"].of_frame("3").reason == "its label in l.csv is empty"
    assert found["a.dcm"].of_frame("4") == Label(None, reason="frame 4 has no row in the labels")
    assert found["b.dcm"].of_frame("9") == found["b.dcm"] == Label("5")
    assert [found["c.dcm"].of_frame(frame).name for frame in ("7", "8")] == ["4", "2"]
    assert found["d.jpg"].name == "2"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b"", "header"),
        (b"filename;label\na.jpg;2\n", "column filename .*filename;label"),
        (b"name,label\na.jpg,2\n", "column filename .*name, label"),
        (b"filename,grade\na.jpg,2\n", "column label .*filename, grade.*l.csv#column"),
        (b"filename,label\na.jpg,7\nb.jpg,\n", "label .*2, 4, 5.*7$"),
        (b"filename,label\n", "2, 4, 5"),
        (b"filename,label\na.jpg,2,or 4\n", "line 2 "),
        (b"filename,label\n\xb0\xa9.jpg,2\n", "CSV"),
        (b"\xff\xfe\x00binary\x00", "CSV"),
    ],
)
def test_no_table_of_labels(tmp_path, text, told):
    (tmp_path / "l.csv").write_bytes(text)
    with pytest.raises(InputError, match=told) as caught:
        labels.read(tmp_path / "l.csv", KINDS)
    assert "\n" not in str(caught.value)


def test_no_such_file(tmp_path):
    with pytest.raises(InputError, match=r"l\.csv"):
        labels.read(tmp_path / "l.csv#grade", KINDS)


# The data version.


def test_every_scan_gets_its_class_and_side(scans, table, tmp_path, capsys, drawn):
    facts = ingest.ingest(IngestOptions(scans, labels=table, classes=GRADES), tmp_path / "out").facts
    found = used(tmp_path / "out")
    expected = dict(told(scans))
    assert found["class"].to_dict() == expected
    assert found["label"].to_dict() == {name: "B" if grade == "2" else "M" for name, grade in expected.items()}
    assert (facts.classes, facts.positive, facts.ordered) == (["2", "4", "5"], [False, True, True], True)
    for split, counts in facts.splits.items():
        mine = found[found["split"] == split]
        assert counts == mine["class"].value_counts().to_dict() | {"patients": mine["patient"].nunique()}
        assert min(counts.values()) > 0
    assert re.search(r" 3 classes.*\(2 ", capsys.readouterr().out)
    assert (tmp_path / "out" / "statistics.png").stat().st_size > 10_000


def test_scans_that_cannot_be_labelled_are_set_aside_with_the_reason(scans, table, tmp_path):
    rows = told(scans)
    rows[0] = (rows[0][0], "4b")
    rows[1] = (rows[1][0], "")
    missing = rows.pop()[0]
    rows.append((rows[3][0], "none"))
    done = ingest.ingest(IngestOptions(scans, labels=write(table, rows), classes=GRADES), tmp_path / "out")
    assert reasons(tmp_path / "out") == {
        rows[0][0]: "its label in labels.csv '4b' is none of the classes 2, 4, 5",
        rows[1][0]: "its label in labels.csv is empty",
        rows[3][0]: f"lines 5 and {len(rows) + 1} of labels.csv contradict each other",
        missing: "it has no row in the table of labels",
    }
    assert done.facts.scans == 20
    assert not set(reasons(tmp_path / "out")) & set(used(tmp_path / "out").index)


def test_files_of_any_name_with_their_patients(scans, tmp_path):
    folder = tmp_path / "any"
    rows = []
    for number, (name, grade) in enumerate(told(scans)):
        file = folder / f"갑상선 {number}.JPG"
        file.parent.mkdir(exist_ok=True)
        shutil.copy(scans / name, file)
        rows.append((unicodedata.normalize("NFD", file.name), grade, int(name[2:5]) + 100))
    write_scan(folder / "nobody.jpg", 900)
    write_scan(folder / "text.txt", 901)
    rows += [("nobody.jpg", "2", ""), ("text.txt", "2", "5")]
    table = write(tmp_path / "labels.csv", rows, ("filename", "label", "patient"))
    done = ingest.ingest(IngestOptions(folder, labels=table, classes=GRADES), tmp_path / "out")
    assert (done.facts.scans, done.facts.patients) == (24, 12)
    assert "nobody.jpg" in reasons(tmp_path / "out")
    assert reasons(tmp_path / "out")["text.txt"] == "not a .jpg file"
    assert set(used(tmp_path / "out")["patient"]) == {int(name[2:5]) + 100 for name, _ in told(scans)}


def test_a_patient_of_the_table_wins_over_the_name(scans, table, tmp_path):
    rows = [(name, grade, "1" if "_002-" in name else "") for name, grade in told(scans)]
    write(table, rows, ("filename", "label", "patient"))
    ingest.ingest(IngestOptions(scans, labels=table, classes=GRADES), tmp_path / "out")
    found = used(tmp_path / "out")
    assert found.loc["M_002-0001-1.0.jpg", "patient"] == 1
    assert found.loc[["M_002-0001-1.0.jpg", "B_001-0001-1.0.jpg"], "group"].nunique() == 1


def test_a_patient_that_is_no_number(scans, table, tmp_path):
    rows = [(name, grade, "K7" if "_002-" in name else "") for name, grade in told(scans)]
    rows += [("B_060-0001-1.0.jpg", "2", "")]
    write_scan(scans / "B_060-0001-1.0.jpg", 77)
    ingest.ingest(
        IngestOptions(scans, labels=write(table, rows, ("filename", "label", "patient")), classes=GRADES),
        tmp_path / "out",
    )
    found = reasons(tmp_path / "out")
    assert found == {name: "its patient in labels.csv is not a whole number" for name, *_ in rows if "_002-" in name}


def test_the_table_among_the_scans_is_no_scan(scans, tmp_path):
    write(scans / "labels.csv", told(scans), ("filename", "grade"))
    facts = ingest.ingest(
        IngestOptions(scans, labels=f"{scans}/labels.csv#grade", classes=GRADES), tmp_path / "out"
    ).facts
    assert (facts.scans, facts.quarantined) == (24, 0)


def test_a_table_may_say_benign_and_malignant(scans, table, tmp_path):
    """Labels by a pathologist, say, that the file names do not know."""
    write(table, [(name, "M" if name[0] == "B" else "b") for name, _ in told(scans)])
    ingest.ingest(IngestOptions(scans, labels=table), tmp_path / "out")
    assert all(row["label"] == row["class"] != name[0] for name, row in used(tmp_path / "out").iterrows())


def test_a_class_without_scans(scans, table, tmp_path):
    with pytest.raises(InputError, match=r"class 3\b.*\b24\b"):
        ingest.ingest(IngestOptions(scans, labels=table, classes="2<3|4<5"), tmp_path / "out")


def test_other_classes_without_a_table(scans, tmp_path):
    with pytest.raises(InputError, match=r"2, 4, 5\b.*--labels"):
        ingest.ingest(IngestOptions(scans, classes=GRADES), tmp_path / "out")


def test_a_patient_with_scans_of_several_classes_is_one_group(scans, table, tmp_path, capsys):
    rows = [(name, "5" if name == "B_003-0002-1.0.jpg" else grade) for name, grade in told(scans)]
    facts = ingest.ingest(IngestOptions(scans, labels=write(table, rows), classes=GRADES), tmp_path / "out").facts
    mine = used(tmp_path / "out").query("patient == 3")
    assert set(mine["class"]) == {"2", "5"}
    assert mine["split"].nunique() == 1
    (note,) = facts.notes
    assert note.endswith(": 003")
    assert note in capsys.readouterr().out


def test_same_bytes_under_two_grades_are_set_aside(scans, table, tmp_path):
    shutil.copy(scans / "B_001-0001-1.0.jpg", scans / "B_001-0009-1.0.jpg")
    rows = [(name, "5" if "-0009-" in name else grade) for name, grade in told(scans)]
    ingest.ingest(IngestOptions(scans, labels=write(table, rows), classes=GRADES), tmp_path / "out")
    assert set(reasons(tmp_path / "out")) == {"B_001-0001-1.0.jpg", "B_001-0009-1.0.jpg"}


def test_a_store_notices_another_table(scans, table, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(listing, "SETTLED_SECONDS", -1.0)
    options = {"labels": table, "classes": GRADES, "store": tmp_path / "store"}

    def run(number: int) -> dict:
        return ingest.ingest(IngestOptions(scans, **options), tmp_path / f"out-{number}").facts

    first = run(1)
    assert first.looked_at == 24
    assert run(2).digest == first.digest
    assert re.search(r"\b000001: 24\b", capsys.readouterr().out)
    rows = told(scans)
    write(table, [("B_001-0001-1.0.jpg", "5"), *rows[1:]])
    third = run(3)
    assert third.looked_at == 0, "only the table is another one"
    assert third.digest != first.digest
    assert used(tmp_path / "out-3").loc["B_001-0001-1.0.jpg", "class"] == "5"
    assert used(tmp_path / "out-3")["split"].to_dict() == used(tmp_path / "out-1")["split"].to_dict()
    write(table, rows[1:])
    assert run(4).scans == 23
    write(table, rows)
    assert run(5).digest == first.digest
    write(table, [(*rows[0], 50), *((*row, "") for row in rows[1:])], ("filename", "label", "patient"))
    sixth = run(6)
    assert (sixth.patients, sixth.looked_at) == (13, 1)
    assert used(tmp_path / "out-6").loc["B_001-0001-1.0.jpg", "patient"] == 50
    assert set(used(tmp_path / "out-6").query("label == 'B'")["class"]) == {"2"}
    options["classes"] = "2<4|5"
    assert run(7).looked_at == 0
    assert set(used(tmp_path / "out-7").query("label == 'B'")["class"]) == {"2", "4"}


def test_table_and_scans_in_a_bucket(gcs, scans, tmp_path):
    table = write(tmp_path / "labels.csv", told(scans), ("filename", "grade"))
    gcs.put({f"in/{file.name}": file.read_bytes() for file in [*scans.iterdir(), table]})
    address = gcs.address("in")
    options = {"labels": f"{address}/labels.csv#grade", "classes": GRADES, "store": tmp_path / "store"}
    facts = ingest.ingest(IngestOptions(address, **options), tmp_path / "out").facts
    assert (facts.scans, facts.quarantined, facts.looked_at) == (24, 0, 24)
    assert used(tmp_path / "out")["class"].to_dict() == dict(told(scans))
    gcs.put({"in/labels.csv": table.read_bytes().replace(b"B_001-0001-1.0.jpg,4", b"B_001-0001-1.0.jpg,5")})
    assert ingest.ingest(IngestOptions(address, **options), tmp_path / "again").facts.looked_at == 0
    assert used(tmp_path / "again").loc["B_001-0001-1.0.jpg", "class"] == "5"
    with pytest.raises(InputError, match=r"none\.csv"):
        ingest.ingest(IngestOptions(address, labels=f"{address}/none.csv", classes=GRADES), tmp_path / "third")


def test_dicom_files_of_several_classes(tmp_path, monkeypatch):
    monkeypatch.setenv("THYROID_PATIENT_KEY", "a secret for tests only")
    folder = tmp_path / "scans"
    folder.mkdir()
    rows = [(f"{number}.dcm", ["2.0", "4", " 5"][number % 3]) for number in range(12)]
    for number, (name, _) in enumerate(rows):
        (folder / name).write_bytes(dicoms.write(dicoms.frame(number), patient=f"ID-{number}"))
    write(folder / "dicom.csv", rows)
    facts = ingest.ingest(IngestOptions(folder, classes=GRADES), tmp_path / "out").facts
    assert (facts.scans, facts.quarantined) == (12, 0)
    assert used(tmp_path / "out")["class"].value_counts().to_dict() == {"2": 4, "4": 4, "5": 4}
    assert all(count[name] for count in facts.splits.values() for name in KINDS.names)
    write(folder / "dicom.csv", [*rows[:-1], (rows[-1][0], "B")])
    ingest.ingest(IngestOptions(folder, classes=GRADES), tmp_path / "two")
    assert list(reasons(tmp_path / "two").values()) == ["line 13 of dicom.csv: label must be one of 2, 4, 5"]
