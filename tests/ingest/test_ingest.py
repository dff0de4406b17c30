import os
import re
import shutil
import struct

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tests.conftest import write_rois, write_scan
from thyroid import crop
from thyroid.crop import CropOptions
from thyroid.data import tables
from thyroid.errors import InputError
from thyroid.imaging import images
from thyroid.ingest import ingest, listing, regions
from thyroid.ingest.__main__ import main
from thyroid.ingest.options import IngestOptions

pytestmark = pytest.mark.usefixtures("undrawn")


def reasons(folder) -> dict[str, str]:
    table = pd.read_csv(folder / "quarantine.csv")
    return {file.rsplit("/", 1)[-1]: reason for file, reason in zip(table["file"], table["reason"], strict=True)}


def split_of(folder) -> dict[str, str]:
    table = tables.used(tables.read(folder)[0])
    return {path.rsplit("/", 1)[-1]: split for path, split in zip(table["path"], table["split"], strict=True)}


def test_writes_tables_statistics_and_the_decks_line(scans, tmp_path, capsys, monkeypatch, drawn):
    monkeypatch.undo()  # with its picture
    done = ingest.ingest(IngestOptions(scans), tmp_path / "out")
    table, _, facts = tables.read(tmp_path / "out")
    assert facts == done.facts
    assert (facts.scans, facts.patients, facts.quarantined, facts.synthetic) == (24, 12, 0, 0)
    assert (table.groupby("patient")["split"].nunique() == 1).all()
    assert (tmp_path / "out" / "statistics.png").stat().st_size > 10_000
    printed = capsys.readouterr().out
    total = sum(facts.splits["train"][label] for label in "BM")
    assert f"train: Found {total} images belonging to 2 classes." in printed


def test_is_reproducible_and_does_not_depend_on_where_the_scans_are(scans, tmp_path):
    one = ingest.ingest(IngestOptions(scans), tmp_path / "one").facts
    shutil.copytree(scans, tmp_path / "갑상선 copies" / "deep er")
    two = ingest.ingest(IngestOptions(tmp_path / "갑상선 copies"), tmp_path / "two").facts
    assert one.digest == two.digest
    assert one.splits == two.splits
    assert split_of(tmp_path / "one") == split_of(tmp_path / "two")


def test_everything_unusable_is_quarantined_by_name(scans, tmp_path):
    good = (scans / "B_001-0001-1.0.jpg").read_bytes()
    bomb = bytearray(good)
    marker = bomb.index(b"\xff\xc0")
    bomb[marker + 5 : marker + 9] = struct.pack(">HH", 30000, 30000)
    outside = write_scan(tmp_path / "elsewhere" / "B_050-0001-1.0.jpg", seed=99)
    Image.new("RGB", (50, 50)).save(scans / "B_051-0001-1.0.jpg", "PNG")
    (scans / "B_052-0001-1.0.jpg").write_text("not an image")
    (scans / "B_053-0001-1.0.jpg").write_bytes(good[: len(good) // 2])
    (scans / "B_054-0001-1.0.jpg").write_bytes(bomb)
    (scans / "B_055-0001-1.0.jpg").touch()
    (scans / "B_056-0001-1.0.jpg").symlink_to(outside)
    (scans / "갑상선 scan.jpg").write_bytes(good)
    (scans / "notes.txt").write_text("hello")
    (scans / "B_057-0001-1.0.jpg").symlink_to(scans / "nowhere.jpg")
    os.mkfifo(scans / "B_058-0001-1.0.jpg")
    (scans / "B_059-0001-1.0.jpg").symlink_to(scans / "B_059-0001-1.0.jpg")
    (scans / ".trash").mkdir()
    (scans / ".trash" / "B_060-0001-1.0.jpg").write_bytes(good)
    (scans / "linked").symlink_to(tmp_path / "elsewhere")
    (scans / os.fsdecode(b"bad\xff.jpg")).write_bytes(good)
    done = ingest.ingest(IngestOptions(scans), tmp_path / "out")
    found = reasons(tmp_path / "out")
    expected = {
        "B_051-0001-1.0.jpg": "not a JPEG",
        "B_052-0001-1.0.jpg": "not a JPEG",
        "B_053-0001-1.0.jpg": "damaged JPEG",
        "B_054-0001-1.0.jpg": "larger than the limit",
        "B_055-0001-1.0.jpg": "empty file",
        "B_056-0001-1.0.jpg": "leaves the folder",
        "B_057-0001-1.0.jpg": "No such file",
        "B_058-0001-1.0.jpg": "not a regular file",
        "갑상선 scan.jpg": "does not parse",
        "notes.txt": "does not parse",
        "linked": "leaves the folder",
        "B_059-0001-1.0.jpg": "Symlink loop",
        "bad\\xff.jpg": "not UTF-8",
    }
    assert set(found) == set(expected)
    for name, reason in expected.items():
        assert reason in found[name], name
    assert (done.facts.scans, done.facts.quarantined) == (24, len(expected))


def test_a_patient_in_both_classes_is_kept_in_one_group_and_said(scans, tmp_path, capsys):
    write_scan(scans / "M_001-0003-1.0.jpg", seed=500)
    facts = ingest.ingest(IngestOptions(scans), tmp_path / "out").facts
    table = tables.used(tables.read(tmp_path / "out")[0])
    mine = table[table["patient"] == 1]
    assert set(mine["label"]) == {"B", "M"}
    assert mine["group"].nunique() == mine["split"].nunique() == 1
    (note,) = facts.notes
    assert note.endswith(": 001")
    assert note in capsys.readouterr().out


def test_a_copy_under_another_number_joins_its_original(scans, tmp_path, capsys):
    original = images.decode((scans / "M_002-0001-1.0.jpg").read_bytes())
    Image.fromarray(original).resize((192, 160)).save(scans / "M_077-0001-1.0.jpg", quality=60)
    facts = ingest.ingest(IngestOptions(scans), tmp_path / "out").facts
    table = tables.used(tables.read(tmp_path / "out")[0])
    assert table[table["patient"].isin([2, 77])]["group"].nunique() == 1
    assert facts.duplicate_groups == 1
    (note,) = facts.notes
    assert {"002", "077"} <= set(note.split())
    assert note in capsys.readouterr().out


def test_same_bytes_count_once(scans, tmp_path):
    shutil.copy(scans / "B_001-0001-1.0.jpg", scans / "B_001-0009-1.0.jpg")
    ingest.ingest(IngestOptions(scans), tmp_path / "out")
    assert reasons(tmp_path / "out") == {"B_001-0009-1.0.jpg": "same bytes as B_001-0001-1.0.jpg"}


def test_same_bytes_under_both_labels_are_all_set_aside(scans, tmp_path):
    shutil.copy(scans / "B_001-0001-1.0.jpg", scans / "M_001-0009-1.0.jpg")
    ingest.ingest(IngestOptions(scans), tmp_path / "out")
    found = reasons(tmp_path / "out")
    assert set(found) == {"B_001-0001-1.0.jpg", "M_001-0009-1.0.jpg"}
    assert all(name in reason for reason in found.values() for name in found)


def re_encoded(source, target, quality=60):
    """A copy of a scan, in other bytes and another size."""
    Image.fromarray(images.decode(source.read_bytes())).resize((192, 160)).save(target, quality=quality)


def test_one_frame_under_two_labels_is_set_aside_however_it_is_encoded(scans, tmp_path):
    re_encoded(scans / "B_001-0001-1.0.jpg", scans / "M_077-0001-1.0.jpg")
    re_encoded(scans / "M_002-0001-1.0.jpg", scans / "M_078-0001-1.0.jpg")
    ingest.ingest(IngestOptions(scans), tmp_path / "out")
    both = "same picture under different labels: B_001-0001-1.0.jpg, M_077-0001-1.0.jpg"
    assert reasons(tmp_path / "out") == {"B_001-0001-1.0.jpg": both, "M_077-0001-1.0.jpg": both}


@pytest.mark.parametrize("grey", [0, 1, 128, 255])
@pytest.mark.parametrize("everybody", [False, True])
def test_pictures_without_content_tie_nobody_together(scans, tmp_path, grey, everybody):
    ingest.ingest(IngestOptions(scans, store=tmp_path / "store"), tmp_path / "one")
    before = split_of(tmp_path / "one")
    noise = np.random.default_rng(0).integers(0, 3, (90, 120, 3), dtype=np.uint8)
    for patient in range(1, 13 if everybody else 8):
        size = (120 + patient, 90)
        blank = Image.fromarray(np.clip(noise.astype(int) + grey, 0, 255).astype(np.uint8)).resize(size)
        blank.save(scans / f"{'MB'[patient % 2]}_{patient:03d}-0009-1.0.jpg", quality=90 - patient)
    ingest.ingest(IngestOptions(scans, store=tmp_path / "store"), tmp_path / "two")
    assert split_of(tmp_path / "two") == before
    found = reasons(tmp_path / "two")
    assert len(found) == (12 if everybody else 7)
    assert set(found.values()) == {"picture without content: it is all of one colour"}


def test_a_picture_that_many_patients_have_is_no_scan_of_one(scans, tmp_path):
    """A hospital's logo, say, or an empty layout."""
    ingest.ingest(IngestOptions(scans, store=tmp_path / "store"), tmp_path / "one")
    before = split_of(tmp_path / "one")
    logo = write_scan(tmp_path / "logo.jpg", seed=4000)
    for count in (3, 8):
        for patient in range(1, count + 1):
            name = f"{'MB'[patient % 2]}_{patient:03d}-0009-1.0.jpg"
            re_encoded(logo, scans / name, quality=90 - 3 * patient)
    facts = ingest.ingest(IngestOptions(scans, store=tmp_path / "store"), tmp_path / "two").facts
    assert split_of(tmp_path / "two") == before
    found = reasons(tmp_path / "two")
    assert len(found) == 8
    assert set(found.values()) == {
        "picture that more than 5 patients have: a logo or an empty layout, no scan of one of them"
    }
    assert facts.notes == []


def test_who_moves_into_test_is_told(scans, tmp_path, capsys):
    ingest.ingest(IngestOptions(scans, store=tmp_path / "store"), tmp_path / "one")
    first = {}
    for name, split in split_of(tmp_path / "one").items():
        first.setdefault(split, name)
    moves = first["train"][2:5]
    re_encoded(scans / first["test"], scans / f"{first['test'][0]}_{moves}-0009-1.0.jpg")
    capsys.readouterr()
    facts = ingest.ingest(IngestOptions(scans, store=tmp_path / "store"), tmp_path / "two").facts
    after = split_of(tmp_path / "two")
    assert after[first["train"]] == "test"
    note = next(note for note in facts.notes if f"test: {moves}." in note)
    assert f"note: {note}" in capsys.readouterr().out
    write_scan(scans / "B_090-0001-1.0.jpg", seed=9090)
    ingest.ingest(IngestOptions(scans, store=tmp_path / "store"), tmp_path / "three")
    assert f"test: {moves}." not in capsys.readouterr().out, "it is told once"


def deck_folders(scans, tmp_path):
    """The deck's layout: the last patients in test/, the rest in train/."""
    root = tmp_path / "deck"
    for file in sorted(scans.iterdir()):
        part = "test" if int(file.name[2:5]) > 8 else "train"
        (root / part).mkdir(parents=True, exist_ok=True)
        shutil.copy(file, root / part / file.name)
    return root


def test_given_train_and_test_folders_win(scans, tmp_path):
    root = deck_folders(scans, tmp_path)
    facts = ingest.ingest(IngestOptions(root), tmp_path / "out").facts
    for name, split in split_of(tmp_path / "out").items():
        assert (split == "test") == (int(name[2:5]) > 8)
    assert facts.splits["validation"]["patients"] == 2
    assert facts.notes == []


def test_a_patient_in_both_folders_is_named_and_moved_to_train(scans, tmp_path, capsys):
    root = deck_folders(scans, tmp_path)
    write_scan(root / "test" / "B_001-0009-1.0.jpg", seed=700)
    ingest.ingest(IngestOptions(root), tmp_path / "out")
    assert split_of(tmp_path / "out")["B_001-0009-1.0.jpg"] != "test"
    assert "B_001-0009-1.0.jpg" in capsys.readouterr().out


def test_a_near_duplicate_across_the_folders_is_named_and_moved(scans, tmp_path, capsys):
    root = deck_folders(scans, tmp_path)
    image = images.decode((root / "train" / "M_002-0001-1.0.jpg").read_bytes())
    Image.fromarray(image).save(root / "test" / "M_099-0001-1.0.jpg", quality=50)
    ingest.ingest(IngestOptions(root), tmp_path / "out")
    splits = split_of(tmp_path / "out")
    assert splits["M_099-0001-1.0.jpg"] == splits["M_002-0001-1.0.jpg"] != "test"
    assert "M_099-0001-1.0.jpg" in capsys.readouterr().out


def test_told_to_keep_the_overlap_it_keeps_and_says_leak(scans, tmp_path, capsys):
    root = deck_folders(scans, tmp_path)
    write_scan(root / "test" / "B_001-0009-1.0.jpg", seed=700)
    ingest.ingest(IngestOptions(root, given_splits="keep"), tmp_path / "out")
    splits = split_of(tmp_path / "out")
    assert splits["B_001-0009-1.0.jpg"] == "test"
    assert splits["B_001-0001-1.0.jpg"] == "train"
    assert "LEAK" in capsys.readouterr().out


def test_told_to_ignore_the_folders_it_deals_anew(scans, tmp_path):
    root = deck_folders(scans, tmp_path)
    ingest.ingest(IngestOptions(root, given_splits="ignore"), tmp_path / "out")
    assert {n for n, s in split_of(tmp_path / "out").items() if s == "test"} != {
        f.name for f in (root / "test").iterdir()
    }


def test_splits_are_kept_when_scans_are_added(scans, tmp_path):
    ingest.ingest(IngestOptions(scans, store=tmp_path / "store"), tmp_path / "one")
    before = split_of(tmp_path / "one")
    for patient in range(20, 40):
        write_scan(scans / f"{'BM'[patient % 2]}_{patient:03d}-0001-1.0.jpg", seed=patient * 31)
    tested = next(name for name, split in before.items() if split == "test")
    copy = images.decode((scans / tested).read_bytes())
    Image.fromarray(copy).resize((150, 125)).save(scans / f"{tested[0]}_099-0001-1.0.jpg")
    ingest.ingest(IngestOptions(scans, store=tmp_path / "store", seed=5), tmp_path / "two")
    after = split_of(tmp_path / "two")
    assert {name: after[name] for name in before} == before
    assert after[f"{tested[0]}_099-0001-1.0.jpg"] == "test"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (("B_001-0001-1.0.jpg", 90, 0, 20, 20), "outside the 96x80 image"),
        (("B_001-0001-1.0.jpg", -1, 0, 20, 20), "outside the 96x80 image"),
        (("B_001-0001-1.0.jpg", 5, 5, 0, 20), "no size"),
        (("B_001-0001-1.0.jpg", 5, 5, 10, -3), "no size"),
        (("B_001-0001-1.0.jpg", "five", 5, 10, 10), "must be numbers"),
        (("B_001-0001-1.0.jpg", "", 5, 10, 10), "must be numbers"),
        (("B_999-0001-1.0.jpg", 5, 5, 10, 10), "no such scan"),
    ],
)
def test_an_unusable_region_is_a_quarantine_row(scans, tmp_path, row, reason):
    rois = write_rois(tmp_path / "rois.csv", [("M_002-0001-1.0.jpg", 1, 2, 30, 40), row])
    done = ingest.ingest(IngestOptions(scans, rois=rois), tmp_path / "out")
    found = reasons(tmp_path / "out")
    assert reason in found[row[0]]
    assert re.search(r"line 3 .*rois\.csv", found[row[0]])
    assert (done.facts.regions, done.facts.scans) == (1, 24)


def test_no_cell_of_the_quarantine_is_a_formula(scans, tmp_path):
    names = [f"{start}1/B_999-0001-1.0.jpg" for start in ("=HYPERLINK(A1)+", "+", "-", "@SUM", "\t=")]
    rois = write_rois(
        tmp_path / "rois.csv", [("M_002-0001-1.0.jpg", 1, 2, 30, 40), *((name, 1, 2, 3, 4) for name in names)]
    )
    ingest.ingest(IngestOptions(scans, rois=rois), tmp_path / "in")
    marked = [f"'{name}" for name in names]
    assert pd.read_csv(tmp_path / "in" / "quarantine.csv")["file"].tolist() == marked
    (scans / "M_004-0001-1.0.jpg").unlink()
    crop.crop(tmp_path / "in", tmp_path / "out", CropOptions(domains=["normal"]))
    assert pd.read_csv(tmp_path / "out" / "quarantine.csv")["file"].tolist()[:-1] == marked, "not marked twice"


def test_several_regions_of_a_scan_and_fractions_of_pixels(scans, tmp_path):
    rois = write_rois(
        tmp_path / "rois.csv", [("M_002-0001-1.0.jpg", 1.4, 2, 30.2, 40), ("M_002-0001-1.0.jpg", 50, 2, 20, 20)]
    )
    ingest.ingest(IngestOptions(scans, rois=rois), tmp_path / "out")
    regions = tables.read(tmp_path / "out")[1]
    assert regions[["index", "x", "y", "width", "height"]].to_numpy().tolist() == [
        [0, 1, 2, 31, 40],
        [1, 50, 2, 20, 20],
    ]
    assert set(regions["source"]) == {"given"}


def test_regions_do_not_depend_on_how_many_rows_are_in_memory(scans, tmp_path, monkeypatch):
    (scans / "more").mkdir()
    shutil.copy(scans / "B_001-0001-1.0.jpg", scans / "more" / "B_001-0001-1.0.jpg")
    write_scan(scans / "more" / "B_001-0001-1.0.jpg", seed=700)
    (scans / "M_099-0001-1.0.jpg").write_bytes(b"none")
    rows = [(name, 1 + number % 5, 2, 20, 20) for number, name in enumerate(sorted(p.name for p in scans.glob("M_*")))]
    rows += [
        ("more/B_001-0001-1.0.jpg", 4, 4, 9, 9),
        ("B_001-0001-1.0.jpg", 3, 3, 9, 9),
        rows[0],
        ("x.jpg", 1, 1, 2, 2),
    ]
    options = IngestOptions(scans, write_rois(tmp_path / "rois.csv", rows + rows[:3]))
    ingest.ingest(options, tmp_path / "one")
    monkeypatch.setattr(regions, "_ROWS", 4)
    ingest.ingest(options, tmp_path / "two")
    assert tables.read(tmp_path / "one")[1].equals(tables.read(tmp_path / "two")[1])
    assert reasons(tmp_path / "one") == reasons(tmp_path / "two")
    assert reasons(tmp_path / "two")["M_099-0001-1.0.jpg"].startswith("region in line 14 of rois.csv: file is quaran")
    assert tables.read_facts(tmp_path / "two").notes == [
        "4 regions are repeated in rois.csv and count once: line 17 (as 2), 19 (as 2), 20 (as 3), 21 (as 4)"
    ]


def test_thousands_of_objects_that_are_no_scans(scans, tmp_path, monkeypatch):
    monkeypatch.setattr(listing, "SETTLED_SECONDS", -1.0)
    names = [f"export {number % 7}/report {number}.pdf" for number in range(3000)]
    names += ["..hidden", "a" * 250 + ".txt", "line\nbreak.jpg", "=cmd.jpg"]
    for name in names:
        (scans / name).parent.mkdir(exist_ok=True)
        (scans / name).touch()
    done = ingest.ingest(IngestOptions(scans, store=tmp_path / "store"), tmp_path / "out")
    assert (done.facts.scans, done.facts.quarantined) == (24, len(names) - 1)  # a name with a dot in front is hidden
    table = tables.read_quarantine(tmp_path / "out", done.facts)
    assert len(table) == len(names) - 1
    assert set(table["reason"].str[:19]) == {"name does not parse"}
    again = ingest.ingest(IngestOptions(scans, store=tmp_path / "store", seed=1), tmp_path / "again")
    assert again.facts.looked_at == 0


def test_given_crops_make_up_the_cropped_domain(scans, tmp_path):
    for patient in range(1, 13):
        label = "B" if patient % 2 else "M"
        write_scan(tmp_path / "crops" / f"{label}_{patient:03d}-0001-1.0.jpg", seed=900 + patient, size=(40, 30))
    facts = ingest.ingest(IngestOptions(scans, crops=tmp_path / "crops"), tmp_path / "out").facts
    table, regions, _ = tables.read(tmp_path / "out")
    assert (facts.scans, facts.regions, facts.patients) == (36, 12, 12)
    assert (table.groupby("patient")["split"].nunique() == 1).all()
    assert set(regions["width"]) == {40}


def failing(folder, output, **options) -> str:
    with pytest.raises(InputError) as caught:
        ingest.ingest(IngestOptions(folder, **options), output)
    return str(caught.value)


def test_empty_folder(tmp_path):
    (tmp_path / "empty").mkdir()
    assert failing(tmp_path / "empty", tmp_path / "out").startswith(f"{tmp_path}/empty: no scan")


def test_missing_folder(tmp_path):
    assert failing(tmp_path / "nowhere", tmp_path / "out").startswith(f"{tmp_path}/nowhere: ")


def test_one_class_only(scans, tmp_path):
    for file in scans.glob("M_*"):
        file.unlink()
    assert re.search(r"class M\b.* 12\b", failing(scans, tmp_path / "out"))


def test_nothing_usable_names_the_first_file(tmp_path):
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "a.jpg").write_text("x")
    assert "a.jpg: " in failing(tmp_path / "scans", tmp_path / "out")


def test_too_few_patients(scans, tmp_path):
    for file in scans.glob("M_*"):
        if file.name[2:5] not in ("002", "004"):
            file.unlink()
    assert re.search(r"class M\b.* 1 more", failing(scans, tmp_path / "out"))


def test_rois_without_columns(scans, tmp_path):
    (tmp_path / "rois.csv").write_text("filename,left,y\nx,1,2\n")
    assert "x, width, height" in failing(scans, tmp_path / "out", rois=tmp_path / "rois.csv")


def test_rois_that_are_no_csv(scans, tmp_path):
    (tmp_path / "rois.csv").write_bytes(b"\xff\xfe\x00binary\x00")
    assert "rois.csv: " in failing(scans, tmp_path / "out", rois=tmp_path / "rois.csv")
    (tmp_path / "rois.csv").touch()
    assert "rois.csv: " in failing(scans, tmp_path / "out", rois=tmp_path / "rois.csv")


@pytest.mark.parametrize(
    "lines",
    [
        "filename,x,y,width,height\nB_001-0001-1.0.jpg,10,5,20,5,30,5,40,5\n",
        "filename,x,y,width,height\nB_001-0001-1.0.jpg,10,20,30,40\nM_002-0001-1.0.jpg,10,5,20,30,40\n",
        "filename,x,y,width,height,note\nB_001-0001-1.0.jpg,10,5,20,30,40,\n",
        "filename,x,y,width,height\nB_001-0001-1.0.jpg,10,20,30,40,left, upper\n",
    ],
)
def test_decimal_commas_without_quotes_are_refused_and_not_taken_for_other_boxes(scans, tmp_path, lines):
    (tmp_path / "rois.csv").write_text(lines)
    told = failing(scans, tmp_path / "out", rois=tmp_path / "rois.csv")
    assert f"rois.csv: line {lines.count(chr(10))} " in told


def test_equal_rows_of_regions_count_once_and_are_told(scans, tmp_path, capsys):
    row, other = ("B_001-0001-1.0.jpg", 5, 5, 20, 20), ("M_002-0001-1.0.jpg", 5, 5, 20, 20)
    again = ("./B_001-0001-1.0.jpg", 5.2, 5.0, 19.5, 20)  # the same whole pixels
    rois = write_rois(tmp_path / "rois.csv", [row, other, row, again, ("B_001-0001-1.0.jpg", 6, 5, 20, 20)])
    done = ingest.ingest(IngestOptions(scans, rois=rois), tmp_path / "out")
    regions = tables.read(tmp_path / "out")[1]
    assert regions[["index", "x"]].to_numpy().tolist() == [[0, 5], [0, 5], [1, 6]]
    (note,) = done.facts.notes
    assert note.startswith("2 ")
    assert note.endswith("line 4 (as 2), 5 (as 2)")
    assert f"note: {note}" in capsys.readouterr().out


def test_command_line_prints_one_line_and_fails(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert main(["--scans", str(tmp_path / "empty"), "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere; see the test with a file in the way")
def test_output_not_writable(scans, tmp_path, capsys):
    (tmp_path / "locked").mkdir(mode=0o500)
    assert main(["--scans", str(scans), "--output", str(tmp_path / "locked" / "out")]) == 2
    assert str(tmp_path / "locked") in capsys.readouterr().err


def test_output_is_a_file(scans, tmp_path, capsys):
    (tmp_path / "out").write_text("in the way")
    assert main(["--scans", str(scans), "--output", str(tmp_path / "out")]) == 2
    assert str(tmp_path / "out") in capsys.readouterr().err


def test_given_folders_win_over_an_earlier_data_version(scans, tmp_path):
    ingest.ingest(IngestOptions(scans, store=tmp_path / "store"), tmp_path / "one")
    root = deck_folders(scans, tmp_path)
    ingest.ingest(IngestOptions(root, store=tmp_path / "store"), tmp_path / "two")
    after = split_of(tmp_path / "two")
    assert all((split == "test") == (int(name[2:5]) > 8) for name, split in after.items())
    ingest.ingest(IngestOptions(root, store=tmp_path / "store", seed=9), tmp_path / "three")
    assert split_of(tmp_path / "three") == after


def test_ignoring_given_splits_forgets_the_earlier_ones_too(scans, tmp_path):
    ingest.ingest(IngestOptions(scans, store=tmp_path / "store"), tmp_path / "one")
    ingest.ingest(IngestOptions(scans, store=tmp_path / "store", given_splits="ignore", seed=3), tmp_path / "two")
    assert split_of(tmp_path / "one") != split_of(tmp_path / "two")


def test_crops_within_the_scans_are_not_taken_for_frames(scans, tmp_path):
    for patient in range(1, 13):
        label = "B" if patient % 2 else "M"
        write_scan(scans / "crops" / f"{label}_{patient:03d}-0001-1.0.jpg", seed=900 + patient, size=(40, 30))
    facts = ingest.ingest(IngestOptions(scans, crops=scans / "crops"), tmp_path / "out").facts
    assert (facts.scans, facts.regions) == (36, 12)
    assert failing(scans, tmp_path / "out", crops=scans).startswith(f"{scans}: ")


def test_output_within_the_scans_is_not_ingested(scans):
    first = ingest.ingest(IngestOptions(scans), scans / "out").facts
    assert ingest.ingest(IngestOptions(scans), scans / "out").facts.quarantined == first.quarantined == 0


@pytest.mark.parametrize("row", [None, ("B_999-0001-1.0.jpg", 5, 5, 10, 10)])
def test_regions_that_are_all_unusable_end_the_run(scans, tmp_path, row):
    rois = write_rois(tmp_path / "rois.csv", [row] if row else [])
    told = failing(scans, tmp_path / "out", rois=rois)
    assert told.startswith(f"{rois}: ")
    assert ("B_999" in told) == (row is not None)


def test_a_path_in_rois_finds_its_scan_among_namesakes(scans, tmp_path):
    name = "M_002-0001-1.0.jpg"
    write_scan(scans / "more" / name, seed=333)
    rois = write_rois(tmp_path / "rois.csv", [(name, 1, 1, 20, 20), (f"more/{name}", 2, 2, 30, 30)])
    ingest.ingest(IngestOptions(scans, rois=rois), tmp_path / "out")
    regions = tables.read(tmp_path / "out")[1]
    assert sorted(zip(regions["path"], regions["x"], strict=True)) == [
        (str(scans / name), 1),
        (str(scans / "more" / name), 2),
    ]


def test_a_damaged_data_version_is_named(scans, tmp_path):
    ingest.ingest(IngestOptions(scans, store=tmp_path / "store"), tmp_path / "one")
    (tmp_path / "store" / "versions" / "000001" / "memory.parquet").write_bytes(b"PAR1")
    write_scan(scans / "B_077-0001-1.0.jpg", seed=77)
    assert "memory.parquet:" in failing(scans, tmp_path / "two", store=tmp_path / "store")
