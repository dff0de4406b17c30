"""Clinical columns, thirds by the size of the nodule, and scanners told by their frames."""

import csv
from pathlib import Path

import pandas as pd
import pytest

from tests.conftest import write_rois
from thyroid import crop
from thyroid.clinical.clinical_table import ClinicalTable
from thyroid.crop import CropOptions
from thyroid.data.tables import AREA
from thyroid.data.version import DataVersion
from thyroid.evaluate.performance import SUBGROUP
from thyroid.imaging import images, phantom
from thyroid.ingest import ingest
from thyroid.ingest.options import IngestOptions
from thyroid.validate import subgroups

SCANNERS = {"linear": 14, "convex": 11, "portable": 3}
"""Scans by scanner; those of the last one are too few for a geometry of their own."""
GEOMETRY, SIZE = SUBGROUP + subgroups.GEOMETRY, SUBGROUP + subgroups.SIZE


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> DataVersion:
    """A patient per scan; the second has no region, and the third a second one."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "scans").mkdir()
    rows: list[tuple] = []
    for patient, scanner in enumerate([name for name, count in SCANNERS.items() for _ in range(count)], 1):
        drawn = phantom.draw("BM"[patient % 2], patient, 1, scanner=scanner)
        name = f"{'BM'[patient % 2]}_{patient:03d}-0001-1.0.jpg"
        (folder / "scans" / name).write_bytes(images.encode(drawn.image, phantom.MARK))
        rows += [(name, *drawn.roi)] if patient != 2 else []
        rows += [(name, 200, 200, 20, 20)] if patient == 3 else []
    options = IngestOptions(folder / "scans", write_rois(folder / "rois.csv", rows), all_test=True)
    ingest.ingest(options, folder / "ingested")
    crop.crop(folder / "ingested", folder / "data", CropOptions(["cropped", "normal"], splits=("test",)))
    return DataVersion.read(folder / "data")


def clinical(folder: Path, data: DataVersion, columns: dict[str, list[object]]) -> ClinicalTable:
    file = folder / "clinical.csv"
    with file.open("w", newline="") as stream:
        rows = zip(range(1, sum(SCANNERS.values()) + 1), *columns.values(), strict=True)
        csv.writer(stream).writerows([["patient", *columns], *rows])
    return ClinicalTable.read(str(file), data.used)


def patients(data: DataVersion, table: pd.DataFrame, column: str) -> pd.Series:
    """The groups of a column by patient."""
    return table[column].set_axis(data.used.set_index("path").loc[table.index, "patient"]).sort_index()


def test_scanners_are_told_by_their_frames(data):
    table = subgroups.columns(data, None)
    assert set(table.index) == set(data.used["path"])
    assert list(table.columns) == [SIZE, GEOMETRY]
    groups = patients(data, table, GEOMETRY)
    sizes = data.used.set_index("patient")[["width", "height"]].sort_index()
    for first, name in ((1, "scanner 1"), (15, "scanner 2")):
        assert groups[first] == f"{name} ({sizes.loc[first, 'width']} x {sizes.loc[first, 'height']})"
    assert groups.value_counts().tolist() == [14, 11, 3]
    assert groups.value_counts().index[2] == subgroups.OTHER
    pd.testing.assert_frame_equal(table, subgroups.columns(data, None))


def test_the_order_of_the_scans_does_not_matter(data):
    shuffled = DataVersion(data.folder, data.scans.sample(frac=1, random_state=1), data.regions, data.facts)
    table = subgroups.columns(shuffled, None)
    pd.testing.assert_frame_equal(table.sort_index(), subgroups.columns(data, None).sort_index())


def test_views_of_another_shape_in_frames_of_one_size_are_other_scanners(data):
    """As on DDTI, where some frames are all scan area and others have a margin."""
    scans = data.scans.assign(width=640, height=480, area_x=60, area_y=40, area_width=400, area_height=400)
    scans["area_width"] = scans["area_width"] - scans["patient"] % 5 * 8
    full = scans["patient"] > 14
    scans.loc[full, ["area_x", "area_y", "area_width", "area_height"]] = [0, 0, 640, 480]
    groups = subgroups.columns(DataVersion(data.folder, scans, data.regions, data.facts), None)[GEOMETRY]
    assert groups.value_counts().to_dict() == {
        "scanner 1 (640 x 480, view 384 x 400)": 14,
        "scanner 2 (640 x 480, view 640 x 480)": 14,
    }


def test_no_more_than_six_scanners_have_names(data):
    """The sizes of the frames tell them apart; where the scan area is not known, the whole frame is one."""
    scans = data.scans.drop(columns=list(AREA)).loc[data.scans.index.repeat(4)].reset_index(drop=True)
    scans["path"] = [f"scan {number}" for number in range(len(scans))]
    scans["width"], scans["height"] = 600 + scans.index % 9, 480
    groups = subgroups.columns(DataVersion(data.folder, scans, data.regions, data.facts), None)[GEOMETRY]
    names = [f"scanner {number} ({599 + number} x 480)" for number in range(1, 7)]
    assert set(groups) == {*names, subgroups.OTHER}
    assert groups.value_counts()[names].tolist() == [13, 13, 13, 13, 12, 12]


def test_one_scanner_is_no_subgroup(data):
    scans = data.scans[data.scans["patient"] <= 14]
    assert GEOMETRY not in subgroups.columns(DataVersion(data.folder, scans, data.regions, data.facts), None)


def test_thirds_by_the_largest_given_region(data):
    table = subgroups.columns(data, None)
    sizes = patients(data, table, SIZE)
    assert pd.isna(sizes[2]), "no region was given"
    assert sizes.notna().sum() == 27
    assert sizes.value_counts().tolist() == [9, 9, 9]
    scans, regions = data.used.set_index("path"), data.regions[data.regions["source"] == "given"]
    area = (scans["area_width"] * scans["area_height"]).astype(float)
    share = (regions["width"] * regions["height"]).astype(float).groupby(regions["path"]).max() / area * 100
    by_size = share.groupby(table[SIZE]).agg(["min", "max"]).sort_values("min")
    assert [name.split()[0] for name in by_size.index] == ["small", "middle", "large"]
    assert (by_size["max"].to_numpy()[:-1] < by_size["min"].to_numpy()[1:]).all()
    assert f"above {share.quantile(2 / 3):.1f} %" in by_size.index[2]


def test_no_region_no_size(data):
    nowhere = DataVersion(data.folder, data.scans, data.regions[data.regions["source"] != "given"], data.facts)
    assert list(subgroups.columns(nowhere, None).columns) == [GEOMETRY]


def test_clinical_columns_are_subgroups(data, tmp_path):
    count = sum(SCANNERS.values())
    sexes = ["f" if number % 3 else "m" for number in range(count)]
    table = subgroups.columns(data, clinical(tmp_path, data, {"sex": sexes}))
    assert list(table.columns) == [SUBGROUP + "sex", SIZE, GEOMETRY]
    assert patients(data, table, SUBGROUP + "sex").tolist() == sexes


@pytest.mark.parametrize("name", ["scanner", "Scanner"])
def test_a_named_scanner_is_not_guessed(data, tmp_path, name):
    named = [scanner for scanner, count in SCANNERS.items() for _ in range(count)]
    table = subgroups.columns(data, clinical(tmp_path, data, {name: named}))
    assert list(table.columns) == [SUBGROUP + name, SIZE]
    assert patients(data, table, SUBGROUP + name).tolist() == named


def test_scans_that_are_not_in_use_have_no_group(data):
    scans = data.scans.copy()
    scans.loc[scans["patient"] == 5, "quarantine_reason"] = "the model was trained on this very file"
    table = subgroups.columns(DataVersion(data.folder, scans, data.regions, data.facts), None)
    assert len(table) == len(data.used) - 1
