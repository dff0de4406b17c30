"""The folder of `locate` as the evaluation reads it: what is wrong is said, with the file's name."""

import shutil
from pathlib import Path

import pandas as pd
import pytest

from tests.support import located as support
from thyroid.data.version import DataVersion
from thyroid.errors import InputError
from thyroid.evaluate.boxes.located import AutomaticBoxes
from thyroid.model import locator
from thyroid.model.artefact import sha256


@pytest.fixture(scope="module")
def data(cropped) -> DataVersion:
    return DataVersion.read(cropped)


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory) -> Path:
    return support.write(tmp_path_factory.mktemp("located") / "boxes", data)


@pytest.fixture
def folder(whole, tmp_path) -> Path:
    """A copy to damage."""
    return shutil.copytree(whole, tmp_path / "boxes")


def change(folder: Path, **columns) -> None:
    """Write the table of boxes again with other columns, and seal it."""
    table = pd.read_parquet(folder / "boxes.parquet")
    table.assign(**columns).to_parquet(folder / "boxes.parquet")
    support.seal(folder)


def test_each_test_frame_with_a_nodule_is_there_once(whole, data):
    found = AutomaticBoxes.read(whole, data)
    assert found.problem is None
    frames = data.examples("normal", "test")
    for domain in ("cropped", "normal"):
        table = found.examples(domain)
        assert table["path"].tolist() == frames["path"].tolist()
        assert set(table) == set(frames)
        assert table["label"].nunique() == 2
        assert all(sha256(Path(file)) == digest for file, digest in zip(table["file"], table["sha256"], strict=True))
    assert found.examples("normal")["sha256"].tolist() == frames["sha256"].tolist()
    assert all(str(whole) in file for file in found.examples("cropped")["file"])
    assert data.pixels(found.examples("cropped"), 32).shape[:3] == (len(frames), 32, 32)


def test_a_frame_without_a_marked_nodule_is_left_out(whole, data):
    frames = data.examples("normal", "test")
    fewer = DataVersion(data.folder, data.scans, data.regions[data.regions["path"] != frames["path"][0]], data.facts)
    assert AutomaticBoxes.read(whole, fewer).examples("cropped")["path"].tolist() == frames["path"].tolist()[1:]


def test_one_class_alone_cannot_be_measured(whole, data):
    benign = set(data.scans.loc[data.scans["label"] == "B", "path"])
    some = DataVersion(data.folder, data.scans, data.regions[data.regions["path"].isin(benign)], data.facts)
    none = DataVersion(data.folder, data.scans, data.regions.head(0), data.facts)
    assert "one class" in AutomaticBoxes.read(whole, some).problem
    assert "marked nodule" in AutomaticBoxes.read(whole, none).problem


def test_a_skipped_step_is_none_and_says_why(data, tmp_path):
    found = AutomaticBoxes.read(support.skipped(tmp_path / "skipped", data, "there is nothing to learn from"), data)
    assert found.problem == "there is nothing to learn from"
    assert found.proposals is None
    with pytest.raises(RuntimeError, match="locator"):
        found.boxes  # noqa: B018


def test_no_folder_and_no_record(data, tmp_path):
    for folder in (tmp_path, tmp_path / "not-there"):
        with pytest.raises(InputError, match=r"locate\.json"):
            AutomaticBoxes.read(folder, data)


@pytest.mark.parametrize("changes", [{"data_digest": "1" * 64}, {"margin": 0.99}])
def test_another_data_version_or_margin(folder, data, changes):
    support.seal(folder, **changes)
    with pytest.raises(InputError, match=r"boxes/locate\.json.* again"):
        AutomaticBoxes.read(folder, data)


@pytest.mark.parametrize("name", ["boxes.parquet", *locator.FILES])
def test_a_file_that_is_damaged_missing_or_not_listed(folder, data, name):
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(InputError, match=rf"{name}.*sha256"):
        AutomaticBoxes.read(folder, data)
    (folder / name).unlink()
    with pytest.raises(InputError, match=rf"{name}.*missing"):
        AutomaticBoxes.read(folder, data)
    (folder / name).write_bytes(content)
    record = support.LocateRecord.read(folder / "locate.json")
    files = {other: digest for other, digest in record.files.items() if other != name}
    record.model_copy(update={"files": files}).write(folder / "locate.json")
    with pytest.raises(InputError, match=name):
        AutomaticBoxes.read(folder, data)


def test_a_listed_file_outside_the_folder(folder, data):
    record = support.LocateRecord.read(folder / "locate.json")
    (folder.parent / "other").write_bytes(b"x")
    files = record.files | {"../other": sha256(folder.parent / "other")}
    record.model_copy(update={"files": files}).write(folder / "locate.json")
    with pytest.raises(InputError, match=r"other.*outside"):
        AutomaticBoxes.read(folder, data)


def test_boxes_of_a_locator_that_learnt_from_a_test_frame(folder, data):
    change(folder, source="cross-fitted")
    with pytest.raises(InputError, match=r"boxes\.parquet.*splits"):
        AutomaticBoxes.read(folder, data)


def test_a_missing_column_is_named(folder, data):
    pd.read_parquet(folder / "boxes.parquet").drop(columns="unsure").to_parquet(folder / "boxes.parquet")
    support.seal(folder)
    with pytest.raises(InputError, match="column unsure"):
        AutomaticBoxes.read(folder, data)


def test_two_best_boxes_of_a_frame(folder, data):
    change(folder, rank=0)
    with pytest.raises(InputError, match="two best boxes"):
        AutomaticBoxes.read(folder, data)


def test_a_frame_without_a_crop(folder, data):
    change(folder, crop_path=None)
    with pytest.raises(InputError, match=r"boxes\.parquet.*no crop"):
        AutomaticBoxes.read(folder, data).examples("cropped")


def test_a_crop_that_was_changed_or_lost(folder, data):
    found = AutomaticBoxes.read(folder, data)
    crop = folder / found.boxes["crop_path"][0]
    crop.write_bytes(crop.read_bytes() + b"x")
    with pytest.raises(InputError, match=rf"{crop.name}.*sha256"):
        found.examples("cropped")
    crop.unlink()
    with pytest.raises(InputError, match=rf"{crop.name}.*missing"):
        found.examples("cropped")
