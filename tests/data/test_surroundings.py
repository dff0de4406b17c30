"""What is known around a nodule, and crops of another margin without the original frame."""

import shutil

import numpy as np
import pytest

from thyroid import crop
from thyroid.crop import CropOptions
from thyroid.data import surroundings, tables
from thyroid.data.version import DataVersion
from thyroid.errors import InputError
from thyroid.imaging import images


def test_context_knows_boxes_and_frames(cropped):
    scans, regions, _ = tables.read(cropped)
    for domain in tables.DOMAINS:
        table = surroundings.context(DataVersion.read(cropped), domain)
        assert len(table) == len(DataVersion.read(cropped).examples(domain)) == 30
        assert table["boxes"].map(len).eq(1).all()
        first = table.iloc[0]
        region = regions[regions["path"] == first["path"]].iloc[0]
        scan = scans[scans["path"] == first["path"]].iloc[0]
        assert first["boxes"][0] == (
            region["x"] - scan["area_x"],
            region["y"] - scan["area_y"],
            region["width"],
            region["height"],
        )
        assert (first["box_width"], first["box_height"]) == (region["width"], region["height"])
        assert first["views"] == 2


@pytest.mark.parametrize("margin", [None, 0.15, 1.0])
def test_crops_of_another_margin_are_what_crop_would_make(cropped, tmp_path, margin):
    data = DataVersion.read(cropped)
    if margin is None:
        expected, margin = data, data.margin
    else:
        ingested = cropped.parent / "ingested"
        crop.crop(ingested, tmp_path / "data", CropOptions(["cropped"], margin=margin))
        expected = DataVersion.read(tmp_path / "data")
    table = surroundings.context(data, "cropped")
    made = surroundings.recropped(data, table, 64, margin)
    boxes = ["path", "box_width", "box_height"]
    other = surroundings.context(expected, "cropped").set_index(boxes).loc[list(table[boxes].itertuples(index=False))]
    real = images.rgb(expected.pixels(other, 64))
    assert made.shape == real.shape == (len(table), 64, 64, 3)
    assert np.abs(made.astype(int) - real).mean() < 4, "the image of the scan area was compressed once more"
    assert np.abs(made.astype(int) - np.roll(real, 1, axis=0)).mean() > 12


@pytest.mark.parametrize("trouble", ["missing", "changed"])
def test_a_scan_area_is_what_the_data_version_describes(cropped, tmp_path, trouble):
    data = DataVersion.read(shutil.copytree(cropped, tmp_path / "data"))
    table = surroundings.context(data, "cropped").head(2)
    file = data.images / table["frame"].iloc[0]
    if trouble == "missing":
        file.unlink()
    else:
        file.write_bytes((data.images / table["frame"].iloc[1]).read_bytes() + b"x")
    with pytest.raises(InputError, match=file.name):
        surroundings.recropped(data, table, 32, 0.15)
