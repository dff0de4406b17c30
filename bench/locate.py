"""The locator on real frames: its boxes against the median box, its cost per request, and its training time.

    python bench/locate.py [--scans DIR] [--rois rois.csv] [--weights DIR]

`hit_vs_median_box`: frames whose best box has an IoU of at least .5 with a marked nodule, over those of the box of
median place and size, both cross-fitted by patient over all frames, with the one pass that the endpoint makes.
`request_vs_given_box`: time of a request with a box over that of the same frame without one (VGG16 at 224 pixels).
`minutes_vs_budget`: 15 processor minutes over what the step took, cross-fitting included.
"""

import argparse
import base64
import json
import statistics
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

from endpoint import Endpoint
from training import DDTI, WEIGHTS, data_version

from thyroid.data import crops
from thyroid.data.version import DataVersion
from thyroid.evaluate import evaluate
from thyroid.evaluate.options import EvaluateOptions
from thyroid.locate import learner, maps
from thyroid.locate import proposals as proposing
from thyroid.locate.frames import Frames
from thyroid.locate.locate import locate
from thyroid.locate.options import LocateOptions
from thyroid.model import locator_network
from thyroid.records.locate import BoxPerformance
from thyroid.registry import register
from thyroid.train import train
from thyroid.train.options import TrainOptions

BUDGET_MINUTES = 15
ROUNDS, WARM = 40, 5


def show(name: str, found: BoxPerformance) -> None:
    """Print the metrics of boxes in one line."""
    line = f"{name}: {found.frames} frames, centre {found.centre}, IoU >= .5 {found.iou50}, mean IoU {found.mean_iou}"
    print(f"{line}, recall at 3 {found.recall_at_3}, AP50 {found.ap50}", flush=True)
    if found.ece is not None and found.surest_half is not None:
        sizes = ", ".join(f"{row.size} {row.iou50}" for row in found.by_size)
        print(f"    ECE {found.ece:.3f}, surest half {found.surest_half}, AUROC {found.auroc}; {sizes}", flush=True)


def over_all_frames(data: DataVersion, weights: str, work: Path) -> tuple[BoxPerformance, BoxPerformance]:
    """Cross-fit on all marked frames, and measure the boxes and the median box."""
    body, start = locator_network.choose(weights)
    plan = learner.TOY if body.row is None else learner.FULL
    frames = Frames.read(data, plan.size)
    frames = frames.where(frames.marked)
    training = frames.where((frames.table["split"] == "train").to_numpy())
    extractor = maps.prepare(body, start, work, data, training, views=plan.views, seed=0)
    own, _ = extractor(data, frames)
    fold = learner.deal(frames, plan.folds, seed=0)
    learning = learner.Learner(frames, own, plan, work / "all", 0)
    found = learning.held_out(learning.cross_fit(fold), fold)
    probability = proposing.cross_calibrated(found, frames, fold)
    return proposing.measure(found, frames, probability), proposing.measure(
        proposing.cross_median(frames, fold), frames
    )


def ask(url: str, instance: dict[str, Any]) -> tuple[float, dict[str, Any]]:
    """Return the seconds of a request, and its prediction."""
    body = json.dumps({"instances": [instance]}).encode()
    request = urllib.request.Request(f"{url}/v1/models/thyroid:predict", body, {"Content-Type": "application/json"})
    started = time.perf_counter()
    with urllib.request.urlopen(request, timeout=60) as answer:
        content = answer.read()
    return time.perf_counter() - started, json.loads(content)["predictions"][0]


def requests(registry: Path, data: DataVersion) -> tuple[float, float]:
    """Return the median seconds of a request with a given box and of one without, in turns, on test frames."""
    rows = data.used[(data.used["split"] == "test") & (data.used["domain"] == "normal")]
    boxes = data.regions.drop_duplicates("path").set_index("path")
    given, automatic = [], []
    with Endpoint("--registry", str(registry)) as server:
        for number in range(ROUNDS + WARM):
            path = rows["path"].iloc[number % len(rows)]
            image = {"image": {"b64": base64.b64encode(Path(path).read_bytes()).decode()}}
            roi = list(crops.boxes_of(boxes.loc[[path]])[0])
            with_box, one = ask(server.url, image | {"roi": roi})
            without, other = ask(server.url, image | {"domain": "frame"})
            assert (one["crop"]["source"], other["crop"]["source"]) == ("given", "auto")
            if number >= WARM:
                given.append(with_box)
                automatic.append(without)
    return statistics.median(given), statistics.median(automatic)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    real = DDTI.is_dir()  # without real scans, phantoms and a toy body show that the benchmark runs
    parser.add_argument("--scans", type=Path, default=DDTI / "normal" if real else None)
    parser.add_argument("--rois", type=Path, default=DDTI / "rois.csv" if real else None)
    parser.add_argument("--weights", default=str(WEIGHTS) if WEIGHTS.is_dir() else "none")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images = data_version(given.scans, given.rois, folder)
        data = DataVersion.read(images)
        options = LocateOptions(weights=given.weights, work=folder / "work")
        record = locate(images, folder / "ingested", folder / "located", options).record
        if record.locator is None or record.processor_seconds is None:
            raise SystemExit(f"no locator: {record.skipped}")
        minutes = record.processor_seconds / 60
        print(f"the step took {minutes:.1f} processor minutes ({record.seconds / 60:.1f} minutes)", flush=True)
        show("step, development frames, cross-fitted", record.locator.cross_fitted)
        show("median box of the same frames", record.locator.cross_fitted_median_box)
        show("step, test frames", record.locator.test)
        show("median box of the test frames", record.locator.test_median_box)
        found, median = over_all_frames(data, given.weights, folder / "work")
        show("all frames, cross-fitted", found)
        show("median box of all frames", median)

        train.train(
            images,
            folder / "VGG16",
            "VGG16",
            "cropped",
            TrainOptions(weights=given.weights, image_size=224, recipe="frozen"),
        )
        evaluate.evaluate(images, [folder / "VGG16"], folder / "evaluation", EvaluateOptions(locate=folder / "located"))
        register.register(folder / "evaluation", folder / "registry", folder / "summary.json")
        with_box, without = requests(folder / "registry", data)
        print(f"a request takes {with_box * 1000:.0f} ms with a box and {without * 1000:.0f} ms without one")
    ratios = {
        "hit_vs_median_box": round(found.iou50.value / median.iou50.value, 3),
        "request_vs_given_box": round(with_box / without, 3),
        "minutes_vs_budget": round(BUDGET_MINUTES / minutes, 3),
    }
    print(json.dumps({"bench": "locate", "ratios": ratios}))


if __name__ == "__main__":
    main()
