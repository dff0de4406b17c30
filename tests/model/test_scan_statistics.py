"""What scans are like: grey levels and geometry, of frames and of files that came in cropped."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import write_rois
from thyroid import crop
from thyroid.crop import CropOptions
from thyroid.data.version import DataVersion
from thyroid.errors import InputError
from thyroid.imaging import images
from thyroid.ingest import ingest
from thyroid.ingest.options import IngestOptions
from thyroid.model import scan_statistics

SCAN_AREA = (40, 30, 200, 150)
ROIS = [("M_002-0001-1.0.jpg", 100, 60, 30, 60), ("M_002-0001-1.0.jpg", 60, 60, 20, 20)]


def frame(grey: int, noise: float, size: tuple[int, int] = (320, 240), *, black: bool = False) -> np.ndarray:
    """A frame whose scan area has a mean grey level and noise of a standard deviation, and a black tenth if asked."""
    left, top, width, height = SCAN_AREA
    seen = np.clip(np.random.default_rng(grey).normal(grey, noise, (height, width)), 20, 255)
    if black:
        seen[60:75] = 0
    canvas = np.zeros((size[1], size[0], 3), np.uint8)
    canvas[top : top + height, left : left + width] = seen[..., None]
    return canvas


def version(folder: Path, pictures: dict[str, np.ndarray], rois: list, crops: dict[str, np.ndarray]) -> DataVersion:
    """A cropped data version of the pictures, all of them in the test split."""
    for name, part in (("scans", pictures), ("crops", crops)):
        (folder / name).mkdir(parents=True)
        for file, pixels in part.items():
            (folder / name / file).write_bytes(images.encode(pixels))
    given = {"rois": write_rois(folder / "rois.csv", rois)} if rois else {}
    given |= {"crops": folder / "crops"} if crops else {}
    ingest.ingest(IngestOptions(folder / "scans", all_test=True, **given), folder / "ingested")
    return DataVersion.read(
        crop.crop(folder / "ingested", folder / "data", CropOptions(["normal"], splits=("test",))).folder
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> DataVersion:
    pictures = {
        "B_001-0001-1.0.jpg": frame(90, 10),
        "M_002-0001-1.0.jpg": frame(150, 10),
        "B_003-0001-1.0.jpg": frame(120, 25),
        "M_004-0001-1.0.jpg": frame(140, 10, (400, 240), black=True),
    }
    crops = {"M_005-0001-1.0.jpg": frame(100, 10)[30:180, 40:120]}
    return version(tmp_path_factory.mktemp("scans"), pictures, ROIS, crops)


def measured(data: DataVersion):
    table = scan_statistics.measure(data)
    return table.set_axis([int(patient) for patient in table["patient"]])


def test_grey_levels_are_those_of_the_scan_area(data):
    table = measured(data)
    for patient, grey in ((1, 90), (2, 150), (3, 120)):
        assert table.loc[patient, "mean_grey"] == pytest.approx(grey, abs=3), "black around the area does not count"
    assert table.loc[3, "grey_spread"] > 2 * table.loc[1, "grey_spread"]
    assert table.loc[3, "fine_contrast"] > 2 * table.loc[1, "fine_contrast"]
    assert table.loc[4, "black_share"] == pytest.approx(0.1, abs=0.03)
    assert table.loc[[1, 2, 3], "black_share"].max() < 0.02


def test_the_geometry_is_that_of_frame_scan_area_and_largest_region(data):
    row = measured(data).loc[2]
    left, top, width, height = SCAN_AREA
    assert (row["frame_width"], row["frame_height"]) == (320, 240)
    assert row["frame_aspect"] == pytest.approx(320 / 240)
    assert row["area_share"] == pytest.approx(width * height / (320 * 240), rel=0.05)
    assert row["area_left"] == pytest.approx(left / 320, abs=0.02)
    assert row["area_top"] == pytest.approx(top / 240, abs=0.02)
    assert row["area_aspect"] == pytest.approx(width / height, rel=0.05)
    assert row["region_share"] == pytest.approx(30 * 60 / (width * height), rel=0.05)
    assert row["region_aspect"] == 2
    others = measured(data).loc[[1, 3, 4]]
    assert others[["region_share", "region_aspect"]].isna().all(axis=None)


def test_a_crop_is_no_frame_and_its_padding_does_not_count(data):
    table = measured(data)
    crop_row = table.loc[5]
    assert crop_row[[*scan_statistics.FRAME, *scan_statistics.GREY]].isna().all()
    assert table.loc[[1, 2, 3, 4], list(scan_statistics.CROP)].isna().all(axis=None)
    assert (crop_row["crop_width"], crop_row["crop_height"]) == (80, 150)
    assert crop_row["crop_mean_grey"] == pytest.approx(100, abs=3)
    assert crop_row["crop_black_share"] < 0.02
    assert sorted(scan_statistics.sizes(data)) == [(320, 240)] * 3 + [(400, 240)]


def test_a_split_is_described_by_quantiles_and_counts_alone(data, cropped):
    found = scan_statistics.describe(data, "test")
    assert (found.scans, found.patients, found.other_sizes) == (5, 5, 0)
    assert [(one.width, one.height, one.frames) for one in found.sizes] == [(320, 240, 3), (400, 240, 1)]
    assert set(found.quantiles) == {*scan_statistics.FRAME, *scan_statistics.GREY, *scan_statistics.CROP}
    greys = measured(data)["mean_grey"].dropna()
    quantiles = found.quantiles["mean_grey"]
    assert len(quantiles) == scan_statistics.QUANTILES == 101
    assert (quantiles[0], quantiles[-1]) == pytest.approx((greys.min(), greys.max()))
    assert quantiles[50] == pytest.approx(greys.median())
    trained = scan_statistics.describe(DataVersion.read(cropped), "train")
    assert not set(trained.quantiles) & set(scan_statistics.CROP), "no training scan came in cropped"
    text = json.dumps(trained.to_dict(), allow_nan=False)
    for name in DataVersion.read(cropped).used["path"].map(lambda path: Path(path).stem):
        assert name not in text


def test_only_the_most_frequent_sizes_are_listed(cropped):
    data = DataVersion.read(cropped)
    scans = data.scans.assign(width=[600 + min(number, 24) for number in range(len(data.scans))], split="train")
    found = scan_statistics.describe(DataVersion(data.folder, scans, data.regions, data.facts), "train")
    assert len(found.sizes) == scan_statistics.SIZES == 20
    assert (found.sizes[0].width, found.sizes[0].frames) == (624, 6)
    assert sum(size.frames for size in found.sizes) + found.other_sizes == len(scans) == 30


def test_a_draw_of_many_scans_is_measured(cropped, monkeypatch):
    monkeypatch.setattr(scan_statistics, "SCANS", 7)
    data = DataVersion.read(cropped)
    first, second = scan_statistics.measure(data), scan_statistics.measure(data)
    assert len(first) == 7
    assert first.equals(second)
    assert scan_statistics.describe(data, "train").scans > 7


def test_a_changed_image_is_told(cropped, tmp_path):
    data = DataVersion.read(shutil.copytree(cropped, tmp_path / "data"))
    file = data.images / data.used["normal_path"].iloc[0]
    file.write_bytes(b"x")
    with pytest.raises(InputError, match=file.name):
        scan_statistics.measure(data)
