"""The step `locate`, end to end at toy size: what it writes, what it refuses, what it reuses."""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.conftest import write_rois
from thyroid import storage
from thyroid.crop import CropOptions, crop
from thyroid.data.version import DataVersion
from thyroid.errors import InputError
from thyroid.imaging import geometry, images, phantom
from thyroid.ingest.ingest import ingest
from thyroid.ingest.options import IngestOptions
from thyroid.locate import crop_rule, learner
from thyroid.locate.frames import Frames
from thyroid.locate.locate import locate
from thyroid.locate.options import LocateOptions
from thyroid.locate.proposals import Proposals
from thyroid.metrics import detection
from thyroid.model import artefact, engine, locator_network
from thyroid.model.locator import Locator
from thyroid.records.locate import RECORD, LocateRecord

TOY = LocateOptions(weights="none")


def read(folder: Path) -> tuple[LocateRecord, pd.DataFrame]:
    return LocateRecord.read(folder / RECORD), pd.read_parquet(folder / "boxes.parquet")


def prepared(folder: Path, **given) -> tuple[Path, Path]:
    """Ingest and crop phantoms in `folder`; returns the data versions of crop and ingest."""
    ingest(IngestOptions(folder / "scans", **given), folder / "ingested")
    crop(folder / "ingested", folder / "cropped", CropOptions(["normal"]))
    return folder / "cropped", folder / "ingested"


def test_every_frame_is_boxed_by_a_locator_that_did_not_learn_from_it(cropped, located):
    _, boxes = read(located)
    data = DataVersion.read(cropped)
    best = boxes[boxes["rank"] == 0].set_index("path")
    assert sorted(best.index) == sorted(data.used.query("domain == 'normal'")["path"])
    assert set(best.loc[best["split"] == "test", "source"]) == {"final"}
    assert set(best.loc[best["split"] != "test", "source"]) == {"cross-fitted"}
    assert boxes.groupby("path").size().max() <= 3
    sides = ["area_x", "area_y", "area_width", "area_height"]
    inside = data.used.set_index("path").loc[best.index, sides].astype(int).reset_index(drop=True)
    best = best.reset_index(drop=True)
    assert (best["x"] >= inside["area_x"]).all()
    assert (best["x"] + best["width"] <= inside["area_x"] + inside["area_width"]).all()
    assert (best["y"] + best["height"] <= inside["area_y"] + inside["area_height"]).all()


def test_the_record_measures_what_the_table_holds(cropped, located):
    record, boxes = read(located)
    assert record.data_digest == DataVersion.read(cropped).digest
    best = boxes[boxes["rank"] == 0]
    assert record.locator.test.iou50.value == pytest.approx((best.loc[best["split"] == "test", "iou"] >= 0.5).mean())
    development = best[best["split"] != "test"]
    assert record.locator.cross_fitted.iou50.value == pytest.approx((development["iou"] >= 0.5).mean())
    assert record.locator.cross_fitted.mean_iou.value == pytest.approx(development["iou"].mean())
    assert record.locator.frames == (best["split"] == "train").sum()
    assert (best["unsure"] == (best["probability"] < record.locator.limit)).all()
    sizes = [row.frames for row in record.locator.cross_fitted.by_size]
    assert sum(sizes) == len(development)
    assert {name: artefact.sha256(located / name) for name in record.files} == record.files


def test_the_limit_leaves_the_share_of_validation_frames_unsure(located):
    record, boxes = read(located)
    best = boxes[(boxes["rank"] == 0) & (boxes["split"] == "validation")]
    assert record.locator.limit == pytest.approx(np.quantile(best["probability"], record.locator.unsure))


def test_the_automatic_crop_is_the_one_that_crop_would_make_of_that_box(cropped, located):
    record, boxes = read(located)
    data = DataVersion.read(cropped)
    row = boxes[boxes["rank"] == 0].iloc[3]
    frame = images.decode(Path(row["path"]).read_bytes())
    box = tuple(int(row[side]) for side in ("x", "y", "width", "height"))
    expected = images.encode(geometry.region(frame, box, margin=data.margin))
    written = (located / row["crop_path"]).read_bytes()
    assert written == expected
    assert row["crop_sha256"] == hashlib.sha256(written).hexdigest()
    assert record.margin == data.margin
    assert boxes.loc[boxes["rank"] > 0, "crop_path"].isna().all()


def test_the_stored_network_answers_as_the_step_did_in_every_form(located):
    record, boxes = read(located)
    reader = Locator(record.locator)
    row = boxes[(boxes["rank"] == 0) & (boxes["source"] == "final")].iloc[0]
    frame = images.decode(Path(row["path"]).read_bytes())
    seen = reader.view(frame)
    network = artefact.load_keras(located / "locator/model.keras")
    heat, distances = network.predict(seen.pixels[None], verbose=0)
    found = reader.read(heat[0], distances[0], seen, frame.shape)
    assert found.best.box == tuple(row[["x", "y", "width", "height"]])
    assert found.best.probability == pytest.approx(row["probability"], abs=1e-4)
    assert found.unsure == row["unsure"]
    assert not found.is_crop
    for form in record.locator.forms:
        served = engine.OpenVINOEngine(located / "locator/model.xml", record.locator.image_size, form)
        answer = served.predict(seen.pixels[None])
        again = reader.read(answer[0][0], answer[1][0], seen, frame.shape)
        allowed = record.locator.forms[form].largest_difference + 1e-6
        assert 1 - detection.iou([again.best.box], [found.best.box])[0, 0] <= allowed


def test_a_repeated_run_is_equal_to_the_bit(cropped, located, tmp_path):
    again = locate(cropped, cropped.parent / "ingested", tmp_path, TOY).record
    record, boxes = read(located)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "boxes.parquet"), boxes)
    assert again.locator == record.locator
    assert not (tmp_path / ".work").exists()


def files_of(place: str) -> list[str]:
    found = storage.at(place)
    return (
        [entry.name for entry in found.entries()]
        if isinstance(found, storage.Bucket)
        else storage.file_names(found.path)
    )


def test_a_store_keeps_the_maps_and_the_result(place, cropped, tmp_path, monkeypatch):
    """Of a store in a bucket, on nodes with caches of their own."""
    options = LocateOptions(weights="none", work=place)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache-one"))
    first = locate(cropped, cropped.parent / "ingested", tmp_path / "one", options).record
    kept = [name for name in files_of(place) if "locate-maps-" in name and name.endswith(".npy")]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache-two"))
    assert len(kept) == first.locator.cross_fitted.frames
    assert first.reused == 0
    # the same run again trains nothing
    with monkeypatch.context() as patch:
        patch.setattr(learner.Learner, "cross_fit", lambda *given: pytest.fail("trained again"))
        assert locate(cropped, cropped.parent / "ingested", tmp_path / "two", options).record == first
    # another share of unsure frames is another result, of the same maps
    other = LocateOptions(weights="none", work=place, unsure=0.5)
    second = locate(cropped, cropped.parent / "ingested", tmp_path / "three", other).record
    assert second.reused == len(kept)
    assert second.locator.unsure == 0.5
    assert second.locator.limit >= first.locator.limit
    assert second.locator.cross_fitted == first.locator.cross_fitted


def test_damaged_maps_are_computed_again(cropped, tmp_path):
    options = LocateOptions(weights="none", work=tmp_path / "work")
    first = locate(cropped, cropped.parent / "ingested", tmp_path / "one", options).record
    damaged = sorted((tmp_path / "work").glob("locate-maps-*/*.npy"))[0]
    damaged.write_bytes(damaged.read_bytes()[:100])
    (tmp_path / "work" / "locate-maps-of-another").mkdir()
    shutil.rmtree(next((tmp_path / "work").glob("locate-[0-9a-f]*")))
    second = locate(cropped, cropped.parent / "ingested", tmp_path / "two", options).record
    assert second.reused == first.locator.cross_fitted.frames - 1
    assert second.locator == first.locator


def test_without_a_region_the_step_is_skipped_with_a_word(scans, tmp_path):
    cropped, ingested = prepared(tmp_path)
    found = locate(cropped, ingested, tmp_path / "located", TOY).record
    assert "--rois" in found.skipped
    assert found.locator is None
    assert json.loads((tmp_path / "located" / RECORD).read_text())["skipped"] == found.skipped
    assert not (tmp_path / "located" / "locator").exists()


def test_with_too_few_regions_the_step_is_skipped_with_a_word(scans, tmp_path):
    rois = write_rois(tmp_path / "rois.csv", [(path.name, 10, 10, 30, 30) for path in sorted(scans.iterdir())[:5]])
    cropped, ingested = prepared(tmp_path, rois=rois)
    found = locate(cropped, ingested, tmp_path / "located", TOY).record
    assert "patients with a region" in found.skipped


def test_frames_of_one_patient_are_too_few(cropped, tmp_path):
    data = DataVersion.read(cropped)
    frames = Frames.read(data, 128)
    frames.table["group"] = frames.table["split"].map({"train": 1, "validation": 2, "test": 3})
    from thyroid.locate import locate as step

    assert "1 patients" in step._why_not(frames, learner.TOY)


def test_a_damaged_result_in_the_store_is_made_again(cropped, tmp_path):
    options = LocateOptions(weights="none", work=tmp_path / "work")
    first = locate(cropped, cropped.parent / "ingested", tmp_path / "one", options).record
    (done,) = (tmp_path / "work").glob("locate-*/done")
    crop_file = next((done / "crops").iterdir())
    crop_file.write_bytes(crop_file.read_bytes()[:-10])
    again = locate(cropped, cropped.parent / "ingested", tmp_path / "two", options).record
    assert again.locator == first.locator
    assert len(crop_file.read_bytes()) == len((tmp_path / "two" / "crops" / crop_file.name).read_bytes())


def test_other_scans_beside_the_frames_are_another_result(cropped, tmp_path):
    """The evaluation compares the digest of the whole data version."""
    options = LocateOptions(weights="none", work=tmp_path / "work")
    data = DataVersion.read(cropped)
    frames = Frames.read(data, learner.TOY.size)
    from thyroid.locate import locate as step

    def key(version: DataVersion) -> str:
        return step._Session(version, frames, learner.TOY, options, locator_network.choose("none")[0], None, None).key

    other = replace(data, facts=data.facts.model_copy(update={"digest": "0" * 64}))
    assert key(data) != key(other)


@pytest.fixture(scope="module")
def partly(tmp_path_factory) -> Path:
    """Phantoms with none, one and two nodules, some off centre; some frames with a nodule have no region either."""
    folder = tmp_path_factory.mktemp("partly")
    rows = []
    for patient in range(1, 51):
        label = "BM"[patient % 2]
        for image, nodules in ((1, 1), (2, (0, 2, 1)[patient % 3])):
            drawn = phantom.draw(label, patient, image, nodules=nodules, off_centre=patient % 4 == 0)
            name = f"{label}_{patient:03d}-{image:04d}-1.0.jpg"
            (folder / "scans").mkdir(exist_ok=True)
            (folder / "scans" / name).write_bytes(images.encode(drawn.image))
            if (patient + image) % 5:
                rows += [(name, *box) for box in drawn.rois]
    write_rois(folder / "rois.csv", rows)
    return folder


def test_frames_without_a_region_are_boxed_but_not_measured(partly, tmp_path):
    ingest(IngestOptions(partly / "scans", rois=partly / "rois.csv"), tmp_path / "ingested")
    crop(tmp_path / "ingested", tmp_path / "cropped", CropOptions(["normal"]))
    found = locate(tmp_path / "cropped", tmp_path / "ingested", tmp_path / "located", TOY).record
    _, boxes = read(tmp_path / "located")
    best = boxes[boxes["rank"] == 0]
    data = DataVersion.read(tmp_path / "cropped")
    marked = best["path"].isin(data.regions["path"])
    assert len(best) == len(data.used) == 100
    assert found.unmarked == (~marked).sum() > 5
    assert best.loc[~marked, "iou"].isna().all()
    assert not best.loc[marked, "iou"].isna().any()
    assert found.locator.cross_fitted.frames == (marked & (best["split"] != "test")).sum()
    assert set(best.loc[~marked & (best["split"] != "test"), "source"]) == {"cross-fitted"}


def test_a_frame_that_vanished_has_a_box_but_no_crop(cropped, tmp_path):
    copy = shutil.copytree(cropped.parent, tmp_path / "copy")
    scans = pd.read_parquet(copy / "ingested" / "scans.parquet")
    lost = tmp_path / "lost"
    lost.mkdir()
    data = DataVersion.read(copy / "cropped")
    frames = Frames.read(data, 128)
    from thyroid.locate import table

    boxes = pd.DataFrame({"path": frames.table["path"], "rank": 0, "x": 200, "y": 200, "width": 90, "height": 80})
    wanted = data.used.copy()
    wanted.loc[wanted.index[0], "local_path"] = str(lost / "gone.jpg")
    data.__dict__["used"] = wanted
    done = table.crop(boxes, data, copy / "ingested", tmp_path)
    gone = done.set_index("path")["crop_path"].isna()
    assert gone.sum() == 1
    assert gone[wanted.iloc[0]["path"]]
    assert len(scans) == len(done)


def test_weights_decide_the_body(tmp_path):
    assert locator_network.choose("imagenet")[0].name == "EfficientNetB0"
    assert locator_network.choose("none")[0].name == locator_network.TOY
    for name in ("resnet50_notop", "vgg19_notop", "vgg16_notop", "efficientnetb7_notop"):
        (tmp_path / f"{name}.weights.h5").touch()
    assert locator_network.choose(str(tmp_path))[0].name == "VGG16"
    (tmp_path / "efficientnetb0_notop.weights.h5").touch()
    assert locator_network.choose(str(tmp_path))[0].name == "EfficientNetB0"


def test_weights_of_another_network_are_refused(cropped, tmp_path, monkeypatch):
    monkeypatch.setattr("thyroid.locate.locate.LEAST", 1)  # so few phantoms would not be trained on
    (tmp_path / "vgg16_notop.weights.h5").write_bytes(b"no weights")
    with pytest.raises(InputError, match="vgg16_notop"):
        locate(cropped, cropped.parent / "ingested", tmp_path / "out", LocateOptions(weights=str(tmp_path)))


@pytest.mark.parametrize("body", locator_network.BODIES, ids=lambda body: body.name)
def test_every_body_ends_at_a_stride_of_16(body):
    taps = locator_network.build_taps(body, 64, None, 0)
    assert {tap.shape[1:3] for tap in taps.outputs} == {(4, 4)}


@pytest.mark.parametrize("given", [{"unsure": 1.0}, {"unsure": -0.1}, {"recipe": "cold"}, {"seed": -1}])
def test_options_out_of_range_are_refused(given):
    with pytest.raises(InputError):
        LocateOptions(**given)


def test_the_rule_tells_crops_from_frames(located):
    rule = read(located)[0].locator.crop_rule
    assert rule.frames_right.value > 0.8
    assert rule.crops_right.value > 0.8
    assert rule.frames == rule.crops == read(located)[0].locator.test.frames


def test_the_median_box_is_that_of_other_frames(cropped):
    frames = Frames.read(DataVersion.read(cropped), 128)
    one = frames.where(np.arange(len(frames)) == 0)
    from thyroid.locate import proposals

    ((box,),) = proposals.median_box(one, one)
    assert detection.iou([box], one.boxes[0]).max() > 0.95


def test_folds_keep_patients_together(cropped):
    frames = Frames.read(DataVersion.read(cropped), 128)
    fold = pd.Series(learner.deal(frames, 3, seed=0))
    assert fold.groupby(frames.table["group"]).nunique().max() == 1
    assert sorted(fold.unique()) == [0, 1, 2]


def test_calibration_of_boxes_that_all_fit_is_no_certainty(cropped):
    from thyroid.locate import proposals

    frames = Frames.read(DataVersion.read(cropped), 128)
    found = Proposals(frames.boxes, tuple((0.5,) * len(boxes) for boxes in frames.boxes))
    calibration = proposals.fit_calibration(found, frames)
    assert 0.5 < found.best(calibration)[0] < 1


def test_crops_are_cut_from_the_frame(cropped):
    frames = Frames.read(DataVersion.read(cropped), 128)
    crops = crop_rule.Crops.cut(frames, seed=0)
    assert len(crops.pixels) == len(frames)
    for (high, wide), boxes in zip(crops.shapes, frames.boxes, strict=True):
        assert max(high, wide) < 3 * max(boxes[0][2:])
