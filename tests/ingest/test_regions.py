"""Frames and regions that do not go together one to one, from rois.csv to the crops."""

import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tests.conftest import write_rois
from thyroid import crop
from thyroid.crop import CropOptions
from thyroid.data import tables
from thyroid.data.version import DataVersion
from thyroid.errors import InputError
from thyroid.imaging import images, phantom
from thyroid.ingest import ingest
from thyroid.ingest.__main__ import main
from thyroid.ingest.options import IngestOptions

pytestmark = pytest.mark.usefixtures("undrawn")
WIDTH, HEIGHT = phantom.FRAME


@pytest.fixture(scope="session")
def varied(shared) -> Path:
    """Folder with scans/ and rois.csv: 16 patients with two frames each, with 0, 1 or 2 nodules."""
    return shared.make(
        "varied", lambda folder: phantom.generate(folder, patients=16, images_per_patient=2, seed=2, varied=True)
    )


@pytest.fixture
def changed(varied, tmp_path) -> Path:
    """A copy of `varied` that a test may change."""
    return Path(shutil.copytree(varied, tmp_path / "varied"))


def rows_of(folder: Path) -> list[tuple]:
    return list(pd.read_csv(folder / "rois.csv").itertuples(index=False, name=None))


def counts(folder: Path) -> Counter[int]:
    """How many frames have 0, 1 and 2 rows in rois.csv."""
    rows = Counter(row[0] for row in rows_of(folder))
    return Counter(rows[file.name] for file in (folder / "scans").iterdir())


def version_of(folder: Path, *domains: str, rois: bool = True) -> DataVersion:
    """The data version of a folder of phantoms, cropped."""
    options = IngestOptions(folder / "scans", rois=folder / "rois.csv" if rois else None)
    ingest.ingest(options, folder / "in")
    crop.crop(folder / "in", folder / "out", CropOptions(list(domains)))
    return DataVersion.read(folder / "out")


def quarantine(folder: Path) -> dict[str, list[str]]:
    table = pd.read_csv(folder / "out" / "quarantine.csv")
    names = table["file"].str.rsplit("/", n=1).str[-1]
    return table.groupby(names)["reason"].apply(list).to_dict()


def test_frames_with_no_nodule_one_or_two(changed):
    number = counts(changed)
    assert set(number) == {0, 1, 2}
    version = version_of(changed, "normal", "cropped")
    facts = version.facts
    assert (facts.scans, facts.synthetic, facts.quarantined) == (32, 32, 0)
    assert (facts.regions, facts.without_region) == (number[1] + 2 * number[2], number[0])
    assert len(version.examples("normal")) == 32
    assert len(version.examples("cropped")) == facts.regions
    assert facts.scan_area_not_found == 0
    assert version.regions.groupby("path")["index"].apply(list).map(tuple).value_counts().to_dict() == {
        (0,): number[1],
        (0, 1): number[2],
    }


def test_regions_for_some_frames_only_leave_the_others_in_normal(changed):
    kept = [row for row in rows_of(changed) if "-0001-" in row[0]]
    write_rois(changed / "rois.csv", kept)
    version = version_of(changed)
    assert version.facts.domains == ["cropped"]
    assert version.facts.without_region == 32 - len({row[0] for row in kept})
    assert len(version.examples("normal")) == 32
    assert len(version.examples("cropped")) == len(kept)


def test_no_region_at_all_trains_on_frames_or_is_refused(changed, capsys):
    write_rois(changed / "rois.csv", [])
    arguments = ["--scans", str(changed / "scans"), "--output", str(changed / "in")]
    assert main([*arguments, "--rois", str(changed / "rois.csv")]) == 2
    assert str(changed / "rois.csv") in capsys.readouterr().err
    version = version_of(changed, rois=False)
    assert (version.facts.domains, version.facts.regions, version.facts.without_region) == (["normal"], 0, 32)
    capsys.readouterr()
    arguments = ["--data", str(changed / "in"), "--output", str(changed / "cropped"), "--domains", "cropped"]
    assert crop.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "--rois" in error
    assert not (changed / "cropped" / "data.json").exists()


@pytest.mark.parametrize("box", [(0, 0, WIDTH + 1, HEIGHT), (0, 0, WIDTH, HEIGHT + 0.5), (-20, -20, 700, 520)])
def test_a_region_larger_than_its_frame_is_quarantined_with_its_line(changed, box):
    rows = rows_of(changed)
    name = rows[4][0]
    write_rois(changed / "rois.csv", [row if row[0] != name else (name, *box) for row in rows])
    line = 2 + [row[0] for row in rows].index(name)
    version = version_of(changed)
    reasons = quarantine(changed)
    assert set(reasons) == {name}
    assert re.search(rf"line {line} of rois\.csv.*{WIDTH}x{HEIGHT}", reasons[name][0])
    assert version.facts.scans == 32
    assert not version.regions["path"].str.endswith(name).any()
    assert version.scans["path"].str.endswith(name).any()


def test_regions_that_are_all_larger_than_their_frames_end_the_run(changed):
    rows = rows_of(changed)
    write_rois(changed / "rois.csv", [(row[0], 0, 0, 2 * WIDTH, 2 * HEIGHT) for row in rows])
    with pytest.raises(InputError) as error:
        version_of(changed)
    assert str(error.value).startswith(f"{changed / 'rois.csv'}: ")
    assert rows[0][0] in str(error.value)
    assert "line 2 " in str(error.value)


def test_a_region_as_large_as_its_frame_is_cut_whole(changed):
    rows = rows_of(changed)
    name = rows[0][0]
    write_rois(changed / "rois.csv", [*(row for row in rows if row[0] != name), (name, 0, 0, WIDTH, HEIGHT)])
    version = version_of(changed)
    row = version.regions[version.regions["path"].str.endswith(name)].iloc[0]
    with Image.open(changed / "out" / row["crop_path"]) as image:
        assert image.size == (WIDTH, WIDTH)


def test_a_black_frame_is_quarantined_with_its_region(changed):
    name = rows_of(changed)[0][0]
    (changed / "scans" / name).write_bytes(images.encode(np.zeros((HEIGHT, WIDTH, 3), np.uint8)))
    version = version_of(changed)
    given = sum(row[0] == name for row in rows_of(changed))
    reasons = quarantine(changed)
    assert set(reasons) == {name}
    assert len(reasons[name]) == 1 + given
    assert "picture without content" in " ".join(reasons[name])
    assert "line 2 of rois.csv: file is quarantined" in " ".join(reasons[name])
    assert (version.facts.scans, version.facts.quarantined) == (31, 1 + given)
    assert not version.regions["path"].str.endswith(name).any()


def test_a_frame_of_text_without_tissue_is_taken_whole_and_counted(changed):
    name = rows_of(changed)[0][0]
    label, patient = name[0], int(name[2:5])
    canvas = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    canvas[:50] = phantom.draw(label, patient, 1).image[:50]
    (changed / "scans" / name).write_bytes(images.encode(canvas))
    version = version_of(changed, "normal", "cropped")
    assert version.facts.scan_area_not_found == 1
    assert version.facts.scans == 32
    row = tables.used(version.scans).set_index("path").filter(like=name, axis=0).iloc[0]
    with Image.open(changed / "out" / row["normal_path"]) as image:
        assert image.size == (WIDTH, HEIGHT)
