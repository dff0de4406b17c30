"""The step locate as Kubeflow runs it, around a library that answers at once."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from PIL import Image

from tests.support import ROOT
from thyroid.data.version import DataVersion
from thyroid.errors import InputError
from thyroid.locate.options import LocateOptions
from thyroid.records.locate import LocateRecord

PICTURES = ("sheet.png", "risk_coverage.png", "calibration.png")


def interval(value: float, bounds: bool = True) -> dict:
    return {"value": value, "low": value - 0.1 if bounds else None, "high": value + 0.1 if bounds else None}


def performance(iou50: float, bounds: bool = True, **more) -> dict:
    same = {name: interval(0.5) for name in ("centre", "mean_iou", "recall_at_3", "ap50")}
    return {"frames": 9, "patients": 9, "iou50": interval(iou50, bounds)} | same | more


LOCATOR = {
    "body": "VGG16",
    "weights": "imagenet",
    "image_size": 256,
    "stride": 16,
    "parameters": 1,
    "frames": 9,
    "patients": 9,
    "calibration": {"intercept": 0.0, "heat": 1.0, "lead": 1.0},
    "unsure": 0.2,
    "limit": 0.4,
    "crop_rule": {
        **dict.fromkeys(("intercept", "side", "area", "box"), 0.0),
        **{"frames": 9, "frames_right": interval(0.9), "crops": 9, "crops_right": interval(0.9)},
    },
    "folds": 5,
    "cross_fitted": performance(0.63, ece=0.03),
    "cross_fitted_median_box": performance(0.17),
    "test": performance(0.58, bounds=False, ece=0.05),
    "test_median_box": performance(0.16),
    "forms": {},
    "data_digest": "0" * 64,
}


@pytest.fixture
def step(tmp_path, monkeypatch):
    """Return what runs the step on a record, with these parameters instead of the usual ones."""
    monkeypatch.setenv("_KFP_RUNTIME", "true")
    specification = importlib.util.spec_from_file_location("locate_in_an_image", ROOT / "components" / "locate.py")
    assert specification
    assert specification.loader
    component = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(component)
    version = SimpleNamespace(require_fingerprint=lambda expected: checked.append(expected))
    monkeypatch.setattr(DataVersion, "read", lambda folder: version)
    checked: list[str] = []

    def run(record: dict, **parameters) -> SimpleNamespace:
        called: list[tuple] = []

        def locate(data: Path, scans: Path, output: Path, options: LocateOptions) -> SimpleNamespace:
            called.append((data, scans, output, options))
            output.mkdir()
            for name in PICTURES if "locator" in record else ():
                Image.new("RGB", (4, 4)).save(output / name)
            return SimpleNamespace(folder=output, record=LocateRecord.parse(record, "locate.json"))

        library = ModuleType("thyroid.locate.locate")
        library.locate = locate  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "thyroid.locate.locate", library)
        logged: dict[str, float] = {}
        boxes = SimpleNamespace(path=str(tmp_path / "boxes"), metadata={})
        given = {
            "fingerprint": "f", "weights": "none", "unsure": 0.1, "recipe": "two-phase", "store": "",
            "registry": "models", "champion": 0, "seed": 3,
        } | parameters  # fmt: skip
        component.locate(
            data=SimpleNamespace(path="ingested"),
            images=SimpleNamespace(path="cropped"),
            boxes=boxes,
            metrics=SimpleNamespace(log_metric=logged.__setitem__),
            sheet=SimpleNamespace(path=str(tmp_path / "sheet.html")),
            **given,
        )
        page = (tmp_path / "sheet.html").read_text()
        return SimpleNamespace(call=called[0], checked=checked, metrics=logged, page=page, metadata=boxes.metadata)

    return run


def test_metrics_are_numbers_with_their_bounds_and_the_page_shows_three_pictures(step):
    done = step({"data_digest": "d", "locator": LOCATOR, "margin": 0.5, "seconds": 12.0})
    assert {type(value) for value in done.metrics.values()} == {float}
    assert done.metrics["cross_fitted_iou50_value"] == 0.63
    assert done.metrics["cross_fitted_iou50_low"] == pytest.approx(0.53)
    assert done.metrics["test_iou50_value"] == 0.58
    assert "test_iou50_low" not in done.metrics, "no bounds, and so no number"
    assert done.metrics["test_median_box_iou50"] == 0.16
    assert (done.metrics["cross_fitted_ece"], done.metrics["test_ece"]) == (0.03, 0.05)
    assert done.metrics["seconds"] == 12
    assert done.page.count("data:image/png") == len(PICTURES)
    assert "Research use only" in done.page
    assert done.metadata == {"body": "VGG16"}


def test_the_library_gets_crops_frames_and_options(step, tmp_path):
    record = {"data_digest": "d", "locator": LOCATOR, "seconds": 1.0}
    done = step(record, store=str(tmp_path / "store"), champion=4, recipe="warm")
    expected = LocateOptions("none", 0.1, "warm", "models", 4, str(tmp_path / "store" / "work"), 3)
    assert done.call == (Path("cropped"), Path("ingested"), tmp_path / "boxes", expected)
    assert done.checked == ["f"]


def test_without_a_champion_or_a_store_there_is_nothing_to_start_from(step):
    options = step({"data_digest": "d", "skipped": "no region", "seconds": 1.0}).call[3]
    assert (options.registry, options.champion, options.work) == ("", 0, "")


def test_a_step_that_was_skipped_says_why_and_has_no_metrics(step):
    done = step({"data_digest": "d", "skipped": "no region at all", "seconds": 1.0})
    assert done.metrics == {}
    assert done.page.count("<p>") == 2, "the notice, and one paragraph"
    assert "no region at all" in done.page
    assert "Research use only" in done.page
    assert done.metadata == {"body": "none"}


def test_a_share_out_of_range_ends_the_step_before_any_work(step):
    with pytest.raises(InputError, match="unsure"):
        step({"data_digest": "d", "skipped": "", "seconds": 1.0}, unsure=1.0)
