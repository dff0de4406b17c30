"""How unlike the training scans others are: the same scanner is told from another one."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tests.support import toy_artefact
from thyroid import crop
from thyroid.crop import CropOptions
from thyroid.data.version import DataVersion
from thyroid.imaging import phantom
from thyroid.ingest import ingest
from thyroid.ingest.options import IngestOptions
from thyroid.model import scan_statistics
from thyroid.records.model import ArtefactRecord, FrameSize, TrainingScans
from thyroid.records.validation import Unlikeness
from thyroid.validate import unlike

PATIENTS = 24


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory) -> dict[str, DataVersion]:
    """The training scans, others of the same scanner, and those of another one."""
    made = {}
    for name, seed, scanner in (("training", 1, "linear"), ("same", 2, "linear"), ("convex", 3, "convex")):
        folder = tmp_path_factory.mktemp(name)
        phantom.generate(folder, PATIENTS, seed=seed, scanner=scanner)
        request = IngestOptions(folder / "scans", rois=folder / "rois.csv", all_test=True)
        ingest.ingest(request, folder / "ingested")
        cut = CropOptions(["normal"], splits=("test",))
        made[name] = DataVersion.read(crop.crop(folder / "ingested", folder / "data", cut).folder)
    return made


@pytest.fixture(scope="module")
def training(hospitals) -> TrainingScans:
    return scan_statistics.describe(hospitals["training"], "test")


def record(training: TrainingScans | None) -> ArtefactRecord:
    content: dict[str, Any] = {} if training is None else {"training_scans": training.to_dict()}
    described = toy_artefact.description(**content).to_dict()
    return ArtefactRecord.parse(described | {"code_version": "1", "files": {}}, "model.json")


def compare(training: TrainingScans, data: DataVersion) -> Unlikeness:
    found = unlike.measure(record(training), data)
    assert found is not None
    return found


def with_scans(data: DataVersion, **columns: Any) -> DataVersion:
    return replace(data, scans=data.scans.assign(**columns))


def test_other_scans_of_the_same_scanner_are_alike(training, hospitals):
    found = compare(training, hospitals["same"])
    assert found.new_frames == 0
    assert {one.name for one in found.properties} == {*scan_statistics.FRAME, *scan_statistics.GREY}
    for one in found.properties:
        assert one.auroc.low <= 0.5 <= one.auroc.high, one.name
    assert "are like the training scans" in found.summary
    assert "other differences may exist" in found.summary


def test_another_scanner_is_told(training, hospitals):
    found = compare(training, hospitals["convex"])
    assert found.new_frames == 1
    by_name = {one.name: one for one in found.properties}
    width = by_name["frame_width"]
    assert width.training == [640.0] * 5
    assert width.outside == 1
    assert width.auroc.value in (0, 1)
    assert width.auroc.low < width.auroc.high, "an interval even where both are perfectly told apart"
    far = [max(2 * abs(one.auroc.value - 0.5), one.outside) for one in found.properties]
    assert far == sorted(far, reverse=True)
    assert found.summary.startswith("These scans are unlike the training scans: ")
    assert "of a size that no training frame has (100% of them)" in found.summary
    assert "may not hold" in found.summary
    assert not any(word in found.summary for word in ("wider", "taller")), "the size says that already"


def test_the_direction_is_that_of_the_site(training, hospitals):
    """Against training scans that are 40 grey levels brighter, the same scanner's scans are darker."""
    brighter = [value + 40 for value in training.quantiles["mean_grey"]]
    shifted = training.model_copy(update={"quantiles": training.quantiles | {"mean_grey": brighter}})
    found = compare(shifted, hospitals["same"])
    assert found.properties[0].name == "mean_grey"
    assert found.properties[0].auroc.high < 0.5
    assert "they are darker" in found.summary
    dimmer = [value - 40 for value in training.quantiles["mean_grey"]]
    shifted = training.model_copy(update={"quantiles": training.quantiles | {"mean_grey": dimmer}})
    assert "they are brighter" in compare(shifted, hospitals["same"]).summary


def test_what_only_varies_more_is_told_by_the_range(training, hospitals):
    middle = training.quantiles["mean_grey"][50]
    narrow = [middle + (value - middle) / 20 for value in training.quantiles["mean_grey"]]
    shifted = training.model_copy(update={"quantiles": training.quantiles | {"mean_grey": narrow}})
    found = compare(shifted, hospitals["training"])
    assert found.properties[0].name == "mean_grey"
    assert found.properties[0].outside > 0.8
    assert found.properties[0].auroc.value == pytest.approx(0.5, abs=0.1)
    assert "often outside the usual range in mean grey level" in found.summary


def test_the_rank_is_the_mann_whitney_statistic_with_ties():
    known = TrainingScans(scans=9, patients=9, quantiles={"area_top": [0.1] * 50 + [0.2] * 51}, sizes=[], other_sizes=0)
    site = pd.DataFrame({"patient": [1, 2], "area_top": [0.2, 0.15]})
    one = unlike._compare("area_top", site, known)
    assert one.auroc.value == pytest.approx(((50 + 101) / 2 + 50) / 2 / 101)
    assert one.outside == 0


def test_copies_of_a_patient_are_no_further_evidence():
    known = TrainingScans(
        scans=40, patients=40, quantiles={"area_top": [n / 100 for n in range(101)]}, sizes=[], other_sizes=0
    )
    values = [0.6, 0.7, 0.55, 0.9, 0.65, 0.8, 0.4, 0.75, 0.85, 0.5, 0.95, 0.6]
    site = pd.DataFrame({"patient": range(12), "area_top": values})
    once, often = (unlike._compare("area_top", pd.concat([site] * times), known).auroc for times in (1, 10))
    assert (often.value, often.low, often.high) == pytest.approx((once.value, once.low, once.high))


def test_new_sizes_count_only_where_the_training_sizes_are_known(training, hospitals):
    same = hospitals["same"]
    half = with_scans(same, width=[641, 640] * (PATIENTS // 2))
    found = compare(training, half)
    assert found.new_frames == 0.5
    assert "of a size that no training frame has (50% of them)" in found.summary
    many = training.model_copy(
        update={"sizes": [FrameSize(width=640, height=480, frames=6)], "other_sizes": PATIENTS - 6}
    )
    found = compare(many, half)
    assert found.new_frames == 0.5
    assert "size" not in found.summary, "three in four training frames have sizes that are not listed either"
    found = compare(many.model_copy(update={"other_sizes": 1}), half)
    assert "of a size that few or no training frames have (50% of them)" in found.summary


def test_few_patients_are_said(training, hospitals):
    same = hospitals["same"]
    few = same.scans.sort_values("patient").head(4)
    found = compare(training, replace(same, scans=few))
    assert "as far as 4 patients can tell" in found.summary


def test_no_region_is_no_difference(training, hospitals):
    same = hospitals["same"]
    found = compare(training, replace(same, regions=same.regions.iloc[:0]))
    assert not {one.name for one in found.properties} & {"region_share", "region_aspect"}


def test_frames_are_not_compared_with_crops(training, hospitals):
    of_crops = {f"crop_{name}": values for name, values in training.quantiles.items() if name in scan_statistics.GREY}
    crops = training.model_copy(update={"quantiles": of_crops, "sizes": []})
    found = compare(crops, hospitals["same"])
    assert found.properties == []
    assert "100% are full frames, while the training scans came in cropped" in found.summary


def test_a_version_of_before_says_nothing(hospitals):
    assert unlike.measure(record(None), hospitals["same"]) is None


def test_every_property_has_words():
    for name in (*scan_statistics.FRAME, *scan_statistics.GREY, *scan_statistics.CROP):
        assert unlike.describe(name)
    assert unlike.describe("mean_grey") == "mean grey level"
    assert unlike.describe("crop_mean_grey") == "mean grey level, scans that came in cropped"


def test_at_most_a_few_differences_are_named(training, hospitals):
    shifted = {name: [value * 5 + 1000 for value in values] for name, values in training.quantiles.items()}
    found = compare(training.model_copy(update={"quantiles": shifted}), hospitals["same"])
    more = len(found.properties) - unlike.MOST
    assert f"and unlike in {more} more respects" in found.summary


def test_training_scans_stay_with_the_model(evaluated: Path, cropped: Path):
    kept = ArtefactRecord.read(evaluated / "artefact" / "model.json").training_scans
    assert kept == scan_statistics.describe(DataVersion.read(cropped), "train")
