import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tests.conftest import write_rois, write_scan
from thyroid import crop
from thyroid.crop import CropOptions
from thyroid.data import crops, tables
from thyroid.data.version import DataVersion
from thyroid.errors import InputError
from thyroid.imaging import geometry, images, phantom
from thyroid.ingest import ingest
from thyroid.ingest.options import IngestOptions

pytestmark = pytest.mark.usefixtures("undrawn")


def test_blanks_text_and_ticks_and_keeps_the_tissue():
    for patient in range(8):
        drawn = phantom.draw("BM"[patient % 2], patient, 1)
        area = geometry.scan_area(drawn.image)
        assert area.found
        assert not area.mask[:45].any(), "banner"
        x, y, width, height = drawn.roi
        assert area.mask[y : y + height, x : x + width].mean() > 0.98


def test_scan_area_of_real_frames_holds_every_region(ddti):
    rois = pd.read_csv(ddti / "rois.csv").groupby("filename")
    for name, boxes in rois:
        area = geometry.scan_area(images.decode((ddti / "normal" / name).read_bytes()))
        assert area.found
        assert 0.3 < area.mask.mean() < 0.99
        for row in boxes.itertuples():
            assert area.mask[row.y : row.y + row.height, row.x : row.x + row.width].mean() > 0.98


def test_no_area_means_the_whole_frame():
    black = np.zeros((100, 120, 3), np.uint8)
    area = geometry.scan_area(black)
    assert not area.found
    assert area.box == (0, 0, 120, 100)
    np.testing.assert_array_equal(geometry.normal(black), black)


def test_region_margin_is_clipped_and_padded_not_stretched():
    frame = np.full((100, 200, 3), 90, np.uint8)
    cut = geometry.region(frame, (0, 10, 100, 20), margin=0.15)
    assert cut.shape == (115, 115, 3)  # 100 + 15 on the right alone
    assert (cut[..., 0] == 90).sum() == 115 * 26  # 20 + 3 above and below


def test_region_itself_is_never_blanked():
    frame = np.zeros((200, 300, 3), np.uint8)
    frame[60:190, 20:280] = 120
    frame[5:25, 5:25] = 200
    assert (geometry.region(frame, (5, 5, 20, 20)) == 200).sum() == 20 * 20 * 3


@pytest.mark.parametrize("box", [(0, 0, 0, 5), (-1, 0, 5, 5), (195, 0, 10, 5), (0, 99, 5, 5)])
def test_region_outside_is_refused(box):
    with pytest.raises(ValueError, match="200x100"):
        geometry.region(np.zeros((100, 200, 3), np.uint8), box)


def test_crops_match_the_sets_own(ddti):
    """DDTI's own crops were cut with a margin of 0.15; ours differ by re-encoding and padding alone."""
    row = pd.read_csv(ddti / "rois.csv").iloc[5]
    frame = images.decode((ddti / "normal" / row["filename"]).read_bytes())
    theirs = images.decode((ddti / "cropped" / row["crop_filename"]).read_bytes())
    ours = geometry.region(frame, (row["x"], row["y"], row["width"], row["height"]), margin=0.15)
    theirs = images.letterbox(theirs, ours.shape[0])
    assert np.abs(ours.astype(int) - theirs).mean() < 4


def test_both_domains_with_tables(cropped):
    scans, regions, facts = tables.read(cropped)
    assert facts.domains == ["cropped", "normal"]
    assert facts.without_region == 0
    assert regions["crop_path"].notna().all()
    for domain in tables.DOMAINS:
        table = DataVersion.read(cropped).examples(domain)
        assert len(table) == len(scans) == 30
        for file in table["file"]:
            with Image.open(file) as image:
                assert image.format == "JPEG"
                assert not image.getexif()
                assert "comment" not in image.info
                assert domain == "normal" or image.width == image.height


def test_examples_are_split_by_patient(cropped):
    patients = {split: set(DataVersion.read(cropped).examples("cropped", split)["patient"]) for split in tables.SPLITS}
    assert not patients["train"] & patients["test"]
    assert not patients["train"] & patients["validation"]
    assert sum(map(len, patients.values())) == 15


def test_is_deterministic(phantoms, tmp_path):
    for name in ("one", "two"):
        ingest.ingest(IngestOptions(phantoms / "scans", rois=phantoms / "rois.csv"), tmp_path / f"{name}-in")
        crop.crop(tmp_path / f"{name}-in", tmp_path / name)
    for file in (tmp_path / "one").rglob("*.jpg"):
        assert file.read_bytes() == (tmp_path / "two" / file.relative_to(tmp_path / "one")).read_bytes()


def test_training_regions_have_a_second_crop(cropped):
    data = DataVersion.read(cropped)
    regions = data.regions.merge(data.scans[["path", "split"]], on="path")
    training = regions["split"] == "train"
    assert data.jitter == CropOptions.jitter == tables.read_facts(cropped).jitter
    for column in ("jitter_path", "jitter_sha256"):
        assert (regions[column].notna() == training).all()
    assert (regions["jitter_path"] != regions["crop_path"])[training].mean() > 0.9
    for row in regions[training].itertuples():
        content = (cropped / row.jitter_path).read_bytes()
        assert hashlib.sha256(content).hexdigest() == row.jitter_sha256
    table = data.with_jitter(data.examples("cropped"))
    assert (table["jitter_file"].notna() == (table["split"] == "train")).all()
    assert all(Path(file).is_file() for file in table["jitter_file"].dropna())
    assert data.with_jitter(data.examples("normal"))["jitter_file"].isna().all()


def test_a_second_crop_shows_its_disturbed_box(cropped):
    data = DataVersion.read(cropped)
    row = data.regions[data.regions["jitter_path"].notna()].merge(data.scans, on="path").iloc[0]
    x, y, width, height = (int(row[name]) for name in ("x", "y", "width_x", "height_x"))
    frame = images.decode(Path(cropped.parent / "ingested" / row["local_path"]).read_bytes())
    seed = f"{row['sha256']} {(x, y, width, height)}"
    box = geometry.disturbed((x, y, width, height), frame.shape[1], frame.shape[0], data.jitter, seed)
    expected = images.encode(geometry.region(frame, box))
    assert (cropped / row["jitter_path"]).read_bytes() == expected


def test_a_store_makes_second_crops_once_and_only_what_another_jitter_needs(phantoms, tmp_path):
    ingest.ingest(IngestOptions(phantoms / "scans", rois=phantoms / "rois.csv"), tmp_path / "in")
    made = {}
    for name, jitter in (("first", 1.0), ("again", 1.0), ("none", 0.0), ("half", 0.5)):
        options = CropOptions(store=tmp_path / "store", jitter=jitter)
        made[name] = crop.crop(tmp_path / "in", tmp_path / name, options).facts
    training = int((tables.read(tmp_path / "in")[0]["split"] == "train").sum())
    assert [facts.cropped for facts in made.values()] == [30, 0, 0, training]
    assert len({facts.digest for facts in made.values()}) == 1
    assert [facts.jitter for facts in made.values()] == [1.0, 1.0, 0.0, 0.5]
    assert DataVersion.read(tmp_path / "none").regions["jitter_path"].isna().all()
    first, again, none = (DataVersion.read(tmp_path / name) for name in ("first", "again", "none"))
    assert first.regions.equals(again.regions)
    assert first.fingerprint != none.fingerprint, "later steps of a pipeline must not take a result of the other"
    table = pd.read_parquet(tmp_path / "store" / "crops.parquet")
    known = crops.files(first.scans, first.regions, crops.cuts_in(table))
    assert known >= set(table["file"]) == {f"{file.parent.name}/{file.name}" for file in first.images.glob("*/*.jpg")}


@pytest.mark.parametrize("name", ["margin", "jitter"])
@pytest.mark.parametrize("value", [-0.1, 2.5, float("nan")])
def test_a_margin_or_jitter_out_of_range(name, value):
    with pytest.raises(InputError, match=f"^{name} "):
        CropOptions(**{name: value})


def test_scans_without_a_region_stay_in_normal(scans, tmp_path):
    rois = write_rois(
        tmp_path / "rois.csv", [(f.name, 10, 10, 40, 30) for f in sorted(scans.iterdir()) if "-0001-" in f.name]
    )
    ingest.ingest(IngestOptions(scans, rois=rois), tmp_path / "in")
    facts = crop.crop(tmp_path / "in", tmp_path / "out").facts
    assert facts.without_region == 12
    assert facts.domains == ["cropped"]
    assert len(DataVersion.read(tmp_path / "out").examples("normal")) == 24
    assert len(DataVersion.read(tmp_path / "out").examples("cropped")) == 12


def test_given_crops_come_in_whole(scans, tmp_path):
    for patient in range(1, 13):
        label = "B" if patient % 2 else "M"
        write_scan(tmp_path / "crops" / f"{label}_{patient:03d}-0001-1.0.jpg", seed=900 + patient, size=(40, 30))
    ingest.ingest(IngestOptions(scans, crops=tmp_path / "crops"), tmp_path / "in")
    crop.crop(tmp_path / "in", tmp_path / "out")
    table = DataVersion.read(tmp_path / "out").examples("cropped")
    assert len(table) == 12
    with Image.open(table["file"][0]) as image:
        assert image.size == (40, 40)
    assert DataVersion.read(tmp_path / "out").regions["jitter_path"].isna().all()
    assert len(DataVersion.read(tmp_path / "out").examples("normal")) == 24


def test_without_regions_the_default_is_normal(scans, tmp_path):
    ingest.ingest(IngestOptions(scans), tmp_path / "in")
    assert crop.crop(tmp_path / "in", tmp_path / "out").facts.domains == ["normal"]


def test_cropped_run_without_any_region_fails_by_name(scans, tmp_path, capsys):
    ingest.ingest(IngestOptions(scans), tmp_path / "in")
    arguments = ["--data", str(tmp_path / "in"), "--output", str(tmp_path / "out"), "--domains", "cropped"]
    assert crop.main(arguments) == 2
    assert "--rois" in capsys.readouterr().err


def test_unknown_domain():
    with pytest.raises(InputError, match=r"'frames'.*normal.*cropped"):
        crop.resolve_domains(["frames"], has_regions=True)


def test_what_changed_or_vanished_since_ingest_is_quarantined(scans, tmp_path):
    ingest.ingest(IngestOptions(scans), tmp_path / "in")
    (scans / "B_001-0001-1.0.jpg").unlink()
    shutil.copy(scans / "B_003-0001-1.0.jpg", scans / "B_001-0002-1.0.jpg")
    before = tables.read_facts(tmp_path / "in")
    facts = crop.crop(tmp_path / "in", tmp_path / "out").facts
    rows = pd.read_csv(tmp_path / "out" / "quarantine.csv")
    assert sorted(rows["reason"]) == ["file changed since ingest", "file vanished since ingest"]
    assert facts.scans == before.scans - 2
    assert facts.digest != before.digest
    assert tables.read_facts(tmp_path / "out") == facts


def test_a_class_without_regions_fails_before_training(scans, tmp_path):
    rois = write_rois(tmp_path / "rois.csv", [(f.name, 10, 10, 40, 30) for f in sorted(scans.glob("B_*"))])
    ingest.ingest(IngestOptions(scans, rois=rois), tmp_path / "in")
    with pytest.raises(InputError, match=r"class M\b"):
        crop.crop(tmp_path / "in", tmp_path / "out")


def test_full_disk_is_one_line(scans, tmp_path):
    """A file-size limit of 2 kB stands in for a full disk: every write beyond it fails."""
    ingest.ingest(IngestOptions(scans), tmp_path / "in")
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000));"
        "from thyroid import crop; sys.exit(crop.main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "--data", str(tmp_path / "in"), "--output", str(tmp_path / "out")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out" / "data.json").exists()


def test_a_name_as_long_as_a_file_may_have_it(scans, tmp_path):
    """Of letters with several bytes each: 233 and 255 of them in all."""
    names = ["갑" * 76 + "x.jpg", "갑" * 83 + "xy.jpg", "갑" * 83 + "xz.jpg"]
    assert [len(name.encode()) for name in names] == [233, 255, 255]
    for number, name in enumerate(names):
        write_scan(scans / name, seed=700 + number)
    rows = [f"{file.name},{file.name[0] if file.name[0] in 'BM' else 'B'}," for file in scans.iterdir()]
    rows = [f"{row}{500 + number if '갑' in row else ''}" for number, row in enumerate(rows)]
    (tmp_path / "labels.csv").write_text("\n".join(["filename,label,patient", *rows]))
    ingest.ingest(IngestOptions(scans, store=tmp_path / "store", labels=tmp_path / "labels.csv"), tmp_path / "in")
    crop.crop(tmp_path / "in", tmp_path / "out", CropOptions(store=tmp_path / "store"))
    table = DataVersion.read(tmp_path / "out").examples("normal")
    assert len(table) == table["name"].nunique() == 27
    assert all(Path(file).is_file() for file in table["file"])


def test_a_region_of_a_few_pixels_can_be_loaded_again(scans, tmp_path):
    rois = write_rois(tmp_path / "rois.csv", [(file.name, 10, 10, 5, 3) for file in sorted(scans.iterdir())])
    ingest.ingest(IngestOptions(scans, rois=rois), tmp_path / "in")
    crop.crop(tmp_path / "in", tmp_path / "out")
    file = DataVersion.read(tmp_path / "out").examples("cropped")["file"][0]
    assert images.square(Path(file).read_bytes(), 32).shape[:2] == (32, 32)


def test_examples_of_an_unknown_domain_are_refused(cropped):
    with pytest.raises(InputError, match="'Normal'"):
        DataVersion.read(cropped).examples("Normal")


def test_counts_follow_what_is_lost(scans, tmp_path):
    ingest.ingest(IngestOptions(scans), tmp_path / "in")
    for file in scans.glob("B_001*"):
        file.unlink()
    facts = crop.crop(tmp_path / "in", tmp_path / "out").facts
    assert facts.patients == 11
    assert sum(split[label] for split in facts.splits.values() for label in "BM") == facts.scans == 22
