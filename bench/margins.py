"""AUROC by the margin of the crops, with given and with automatic boxes; what the default margin rests on.

A logistic head on frozen, pooled features is trained on crops of given boxes, with and without copies of boxes that are
disturbed by a locator's errors. It is tested, cross-validated by patient on development frames, on crops of given and
of automatic boxes of the same margin, and, trained and tested anew, on crops whose nodule is blanked. The test set is
not read. The ratios are of the AUROC with automatic boxes to that with given ones, as the mean of both blocks, trained
with disturbed copies.

    python bench/margins.py --scans DIR --rois rois.csv --weights DIR [--boxes boxes.parquet]

Boxes are those of the step `locate`, or a CSV file with filename, rank, x, y, width and height in pixels of the frame.
Without them automatic boxes are drawn: given boxes, disturbed by the errors that a locator has on DDTI.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import spearmanr
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from training import DDTI, WEIGHTS, data_version

from thyroid import metrics
from thyroid.data import splits, surroundings
from thyroid.data.filenames import CLASSES, POSITIVE
from thyroid.data.version import DataVersion
from thyroid.evaluate.audits import head, subject
from thyroid.imaging.geometry import Box
from thyroid.model import backbones, locator
from thyroid.model.backend import keras, policy

MARGINS = (0.15, 0.3, 0.5, 0.75)
COMPARED = (0.5, 0.15)
"""Margins whose ratios are printed."""
FOLDS, PARTITIONS = 5, 3
PLACE, SIZE = 0.17, 0.33
"""Standard deviations of a locator's errors: of the centre in sides of the nodule, and of the logarithm of a side."""
MISSED = 0.09
"""Share of frames on which the centre of a locator's box lies in no nodule."""
SHORTEST = 16
DRAWS = 500


@dataclass(frozen=True)
class Crops:
    """Frozen features of crops, and the frame of each.

    Attributes:
        features: By block, float [n, channels].
        frame: Number of the frame [n].
    """

    features: dict[str, np.ndarray]
    frame: np.ndarray


@dataclass(frozen=True)
class Frames:
    """What is known of each frame: whether it is malignant, its patient, and its group of patients, bool or int [n]."""

    malignant: np.ndarray
    patient: np.ndarray
    group: np.ndarray


def on_frame(box: tuple[float, ...], row: Any) -> Box:
    """Return a box x, y, width, height in pixels of the scan area as whole pixels that lie on the frame."""
    sides = []
    for start, length, offset, limit in (
        (box[0], box[2], row.area_x, row.frame_width),
        (box[1], box[3], row.area_y, row.frame_height),
    ):
        low = min(max(round(start), -offset), limit - offset - SHORTEST)
        sides.append((int(low), int(max(SHORTEST, min(round(start + length), limit - offset) - low))))
    (x, width), (y, height) = sides
    return x, y, width, height


def disturbed(box: Box, row: Any, rng: np.random.Generator) -> Box:
    """Return a box with errors of the size of a locator's."""
    x, y, width, height = box
    wide, high = (side * np.exp(rng.normal(0, SIZE)) for side in (width, height))
    centre = x + width / 2 + rng.normal(0, PLACE) * width, y + height / 2 + rng.normal(0, PLACE) * height
    return on_frame((centre[0] - wide / 2, centre[1] - high / 2, wide, high), row)


def drawn_boxes(table: pd.DataFrame, rng: np.random.Generator) -> list[Box]:
    """Return a box for every frame as a locator might: its largest box disturbed, or another frame's if it misses."""
    largest = [max(boxes, key=lambda box: box[2] * box[3]) for boxes in table["boxes"]]
    other = rng.permutation(len(table))
    missed = rng.random(len(table)) < MISSED
    return [
        on_frame(largest[other[number]], row) if missed[number] else disturbed(largest[number], row, rng)
        for number, row in enumerate(table.itertuples())
    ]


def read_boxes(file: Path, table: pd.DataFrame) -> list[Box | None]:
    """Return the best automatic box of every frame, x, y, width, height in pixels of the scan area; None for none."""
    boxes = pd.read_csv(file) if file.suffix == ".csv" else pd.read_parquet(file)
    name = "path" if "path" in boxes else "filename"
    best = boxes[boxes["rank"] == 0]
    known = {str(row[name]): row for row in best.to_dict("records")}
    found: list[Box | None] = []
    for row in table.itertuples():
        path = str(row.path)
        box = known.get(path) or known.get(Path(path).name)
        placed = box and (box["x"] - row.area_x, box["y"] - row.area_y, box["width"], box["height"])
        found.append(on_frame(placed, row) if placed else None)
    return found


def extractor(weights: str, size: int) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """Return a function from images uint8 [n, size, size, 3] to VGG16's pooled features by block.

    They are computed in the precision of the two-phase recipe, and pooled in single precision.
    """
    keras.config.set_dtype_policy(policy())
    row = backbones.get("VGG16")
    model = backbones.build(row, size, backbones.find_weights(row, weights))
    body = model.get_layer(backbones.BODY)
    ends = {"block4": body.get_layer("block4_pool").output, "block5": body.output}
    pooled = [keras.layers.GlobalAveragePooling2D(dtype="float32")(end) for end in ends.values()]
    network = keras.Model(model.input, keras.Model(body.input, pooled)(model.get_layer(backbones.PREPROCESSED).output))

    def extract(pixels: np.ndarray) -> dict[str, np.ndarray]:
        return dict(zip(ends, network.predict(pixels, batch_size=32, verbose=0), strict=True))

    return extract


def score(train: list[Crops], tests: list[Crops], block: str, frames: Frames) -> list[np.ndarray]:
    """Return the cross-validated score of every frame for each of `tests`: the mean over its crops.

    It is the mean over several partitions. A frame weighs the same however many crops it has.
    """
    learnt = np.concatenate([some.features[block] for some in train])
    frame = np.concatenate([some.frame for some in train])
    weight = 1 / np.bincount(frame)[frame]
    total = [np.zeros(len(frames.malignant)) for _ in tests]
    for seed in range(PARTITIONS):
        fold = splits.fold_of_rows(frames.malignant, frames.group, FOLDS, seed)
        for number in range(FOLDS):
            kept = fold[frame] != number
            fitted = make_pipeline(
                StandardScaler(), LogisticRegression(C=head.STRENGTH, class_weight="balanced", max_iter=1000)
            )
            fitted.fit(learnt[kept], frames.malignant[frame[kept]], logisticregression__sample_weight=weight[kept])
            for test, sums in zip(tests, total, strict=True):
                held = fold[test.frame] == number
                answer = fitted.decision_function(test.features[block][held])
                np.add.at(sums, test.frame[held], answer / np.bincount(test.frame)[test.frame[held]] / PARTITIONS)
    return total


def spearman(one: np.ndarray, other: np.ndarray, patient: np.ndarray) -> metrics.Interval:
    """Return the rank correlation of two scores with its interval, which resamples patients."""
    draws = metrics.Draws(patient, DRAWS)
    found = []
    for counts in draws.counts:
        rows = np.repeat(np.arange(len(one)), counts[draws.places(patient)].astype(int))
        found.append(spearmanr(one[rows], other[rows]).statistic)
    return metrics.interval(np.array(found))


def measure(margin: float, crops: dict[str, Crops], frames: Frames) -> float:
    """Print the rows of a margin, and return the ratio of the AUROC with automatic boxes to that with given ones."""
    ratios = []
    patient = frames.patient
    draws = metrics.Draws(patient)

    def auroc(scores: np.ndarray) -> metrics.Interval:
        return metrics.auroc_interval(draws, frames.malignant, scores, patient)

    for block in crops["given"].features:
        (blanked,) = score([crops["blanked"]], [crops["blanked"]], block, frames)
        for name, train in (("given", ["given"]), ("given and disturbed", ["given", "disturbed"])):
            given, automatic = score([crops[one] for one in train], [crops["given"], crops["automatic"]], block, frames)
            with_given, without = auroc(given), auroc(blanked)
            pair = [metrics.auroc_draws(draws, frames.malignant, one, patient) for one in (automatic, given)]
            kept = (without.value - 0.5) / (with_given.value - 0.5)
            print(
                f"{margin:<7g}{block:<8}{name:<21}{with_given!s:<22}{auroc(automatic)!s:<22}"
                f"{metrics.interval(pair[0] - pair[1])!s:<24}{spearman(given, automatic, patient)!s:<22}"
                f"{without!s:<22}{kept:>5.0%}",
                flush=True,
            )
        ratios.append(pair[0][0] / pair[1][0])
    return float(np.mean(ratios))


def describe(table: pd.DataFrame, boxes: list[Box]) -> str:
    """Return in words how well automatic boxes fit the given ones."""
    best = [max(locator.iou(box, one) for one in given) for box, given in zip(boxes, table["boxes"], strict=True)]
    return f"mean IoU {np.mean(best):.3f}, IoU of at least .5 in {np.mean(np.array(best) >= 0.5):.3f} of frames"


def tables(data: DataVersion, boxes: Path | None) -> tuple[dict[str, pd.DataFrame], Frames]:
    """Return the development crops to be made by kind, with the number of their frame, and what is known of frames."""
    rng = np.random.default_rng(0)
    given = surroundings.context(data, "cropped")
    given = given[(given["split"] != "test") & (given["boxes"].map(len) > 0)]
    frame = surroundings.context(data, "normal").set_index("path").loc[given["path"].unique()].reset_index()
    if boxes is None:
        automatic = drawn_boxes(frame, rng)
        print(f"automatic boxes are drawn, not located: {describe(frame, automatic)}")
    else:
        located = read_boxes(boxes, frame)
        frame = frame[[box is not None for box in located]].reset_index(drop=True)
        if frame.empty:
            raise SystemExit(f"{boxes}: no box of a development frame; its paths are not those of the scans")
        automatic = [box for box in located if box is not None]
        print(f"automatic boxes of {boxes}: {describe(frame, automatic)}")
    number = {path: place for place, path in enumerate(frame["path"])}
    given = given[given["path"].isin(number)].reset_index(drop=True)
    rows: list[Any] = list(given.itertuples())
    near = [[disturbed(row.boxes[0], row, rng)] for row in rows]
    kinds = {
        "given": given,
        "blanked": given,
        "disturbed": given.assign(boxes=pd.Series(near, given.index, object)),
        "automatic": frame.assign(boxes=pd.Series([[box] for box in automatic], frame.index, object)),
    }
    kinds = {kind: table.assign(number=table["path"].map(number)) for kind, table in kinds.items()}
    malignant = (frame["label"] == CLASSES[POSITIVE]).to_numpy()
    return kinds, Frames(malignant, frame["patient"].astype(int).to_numpy(), frame["group"].to_numpy())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    here = DDTI.is_dir()
    parser.add_argument("--scans", type=Path, default=DDTI / "normal" if here else None, help="default: phantoms")
    parser.add_argument("--rois", type=Path, default=DDTI / "rois.csv" if here else None)
    parser.add_argument("--weights", default=str(WEIGHTS) if WEIGHTS.is_dir() else "none")
    parser.add_argument("--boxes", type=Path, help="boxes.parquet of `locate`, or a CSV file; default: drawn")
    parser.add_argument("--size", type=int, default=128)
    arguments = parser.parse_args()
    began, ratios, size = time.perf_counter(), {}, arguments.size
    with tempfile.TemporaryDirectory() as temporary:
        data = DataVersion.read(data_version(arguments.scans, arguments.rois, Path(temporary)))
        kinds, frames = tables(data, arguments.boxes)
        extract = extractor(arguments.weights, size)
        print(
            f"{len(frames.malignant)} frames ({(~frames.malignant).sum()} benign) of {len(set(frames.patient))} "
            f"patients, {len(kinds['given'])} nodules, {size} px, {PARTITIONS} partitions into {FOLDS} folds\n"
            f"{'margin':<7}{'block':<8}{'trained on':<21}{'AUROC, given boxes':<22}{'automatic boxes':<22}"
            f"{'difference':<24}{'Spearman':<22}{'nodule blanked':<22}{'kept':>5}"
        )
        for margin in MARGINS:
            crops = {}
            for kind, table in kinds.items():
                pixels = (
                    subject.blanked(data, table, "cropped", size, margin)
                    if kind == "blanked"
                    else surroundings.recropped(data, table, size, margin)
                )
                crops[kind] = Crops(extract(pixels), table["number"].to_numpy())
            ratios[margin] = measure(margin, crops, frames)
    print(f"{time.perf_counter() - began:.0f} s. Research use only.")
    printed = {f"auto_vs_given_{margin:g}": round(ratios[margin], 3) for margin in COMPARED}
    print(json.dumps({"bench": "margins", "ratios": printed}))


if __name__ == "__main__":
    main()
