"""The locator as a pipeline step, beside the trainings.

It needs what a training needs, TensorFlow to train and OpenVINO for the form that is served, and nothing else. The
image `train` therefore serves it; an image of its own would hold the same packages.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from kfp.dsl import HTML, Dataset, Input, Metrics, Output

from components.step import step

if TYPE_CHECKING:
    from thyroid.records.locate import BoxPerformance, LocatorRecord


@step(image="train")
def locate(
    data: Input[Dataset],
    images: Input[Dataset],
    fingerprint: str,
    weights: str,
    unsure: float,
    recipe: str,
    store: str,
    registry: str,
    champion: int,
    seed: int,
    boxes: Output[Dataset],
    metrics: Output[Metrics],
    sheet: Output[HTML],
):
    """Train a locator on marked nodules, and propose boxes for every frame."""
    from pathlib import Path

    from components.pages import picture_page, text_page
    from thyroid import storage
    from thyroid.data.version import DataVersion
    from thyroid.locate.locate import locate as run
    from thyroid.locate.options import LocateOptions

    DataVersion.read(Path(images.path)).require_fingerprint(fingerprint)
    options = LocateOptions(
        weights=weights,
        unsure=unsure,
        recipe=recipe,
        work=storage.below(store, "work") if store else "",
        registry=registry if champion else "",
        champion=champion,  # 0 where there is no registry to start from, so that it means none here
        seed=seed,
    )
    done = run(Path(images.path), Path(data.path), Path(boxes.path), options)
    locator = done.record.locator
    if locator is None:
        boxes.metadata["body"] = "none"
        text_page(sheet.path, "Boxes", [f"No locator: {done.record.skipped}"])
        return
    boxes.metadata["body"] = locator.body
    for name, value in _numbers(locator):
        metrics.log_metric(name, value)
    metrics.log_metric("seconds", done.record.seconds)
    pictures = [done.folder / name for name in ("sheet.png", "risk_coverage.png", "calibration.png")]
    picture_page(sheet.path, "Boxes", *pictures)


def _numbers(locator: "LocatorRecord") -> Iterator[tuple[str, float]]:
    """Yield the names and values of the locator's metrics, with the bounds of their intervals."""
    yield from _fit("cross_fitted", locator.cross_fitted)
    yield from _fit("test", locator.test)
    yield "cross_fitted_median_box_iou50", locator.cross_fitted_median_box.iou50.value
    yield "test_median_box_iou50", locator.test_median_box.iou50.value


def _fit(part: str, found: "BoxPerformance") -> Iterator[tuple[str, float]]:
    for metric in ("centre", "iou50", "mean_iou", "recall_at_3", "ap50"):
        interval = getattr(found, metric)
        for name in ("value", "low", "high"):
            # A reader of metrics takes what is not a number for 0.
            if (number := getattr(interval, name)) is not None:
                yield f"{part}_{metric}_{name}", number
    if found.ece is not None:
        yield f"{part}_ece", found.ece
