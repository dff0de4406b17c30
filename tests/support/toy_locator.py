"""An artefact with small networks that OpenVINO runs, for tests of an endpoint that finds the nodule by itself.

The locator is hot where the frame is bright. The classifier's answer depends on every pixel of its crop.
"""

from pathlib import Path
from typing import Any

import numpy as np
import openvino
from openvino import opset13 as ops

from tests.support import toy_artefact
from thyroid.imaging import images
from thyroid.model import engine
from thyroid.model.artefact import Artefact
from thyroid.model.descriptors.head import Head
from thyroid.model.locator import OPENVINO
from thyroid.model.operating_point import OperatingPoint
from thyroid.records.locate import AutomaticBoxes, LocatorRecord
from thyroid.records.model import NoveltyRecord
from thyroid.serve.payload import Instance
from thyroid.serve.preprocessing import Preprocessing

SIZE, LOOK, STRIDE = 32, 64, 8
"""Side of the classifier's input and of the locator's, and pixels of the latter per cell."""
CROP_SIDE = 100
"""Longest side of an image that the locator's rule takes for a crop."""
LIMIT = 0.5
"""Probability below which a box is unsure. A proposal's probability is its heat."""
BRIGHT, TISSUE = 235, 80
"""Grey levels of a nodule and of the rest. The heat of the latter is far below `LIMIT`."""
FEATURES = 3
"""Number of the features that descriptors are told by: the mean of each colour, 0 to 1."""
ECE = 0.1
"""Upper bound of the expected calibration error on validation."""


def frame(boxes: tuple[tuple[int, int, int, int], ...] = (), size: tuple[int, int] = (320, 240), seed: int = 0) -> Any:
    """A frame of speckle with a black border and a bright ellipse in every box (x, y, width, height)."""
    width, height = size
    rng = np.random.default_rng(seed)
    grey = np.clip(rng.normal(TISSUE, 12, (height, width)), 40, 255)
    y, x = np.mgrid[:height, :width]
    for left, top, wide, high in boxes:
        inside = ((x - left - wide / 2) / (wide / 2)) ** 2 + ((y - top - high / 2) / (high / 2)) ** 2 <= 1
        grey[inside] = np.clip(rng.normal(BRIGHT, 6, int(inside.sum())), 0, 255)
    grey[: height // 12] = grey[-(height // 12) :] = 0
    return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)


def record(**changes: Any) -> LocatorRecord:
    """What is known of the locator."""
    performance = {"frames": 4, "patients": 4} | dict.fromkeys(
        ("centre", "iou50", "mean_iou", "recall_at_3", "ap50"), toy_artefact.CHANCE
    )
    content = {
        "body": "toy",
        "weights": "none",
        "image_size": LOOK,
        "stride": STRIDE,
        "parameters": 1,
        "frames": 4,
        "patients": 4,
        "calibration": {"intercept": 0.0, "heat": 1.0, "lead": 0.0},
        "unsure": 0.1,
        "limit": LIMIT,
        "crop_rule": {
            "intercept": float(np.log(CROP_SIDE)),
            "side": -1.0,
            "area": 0.0,
            "box": 0.0,
            "frames": 4,
            "frames_right": toy_artefact.CHANCE,
            "crops": 4,
            "crops_right": toy_artefact.CHANCE,
        },
        "folds": 2,
        **dict.fromkeys(("cross_fitted", "cross_fitted_median_box", "test", "test_median_box"), performance),
        "forms": {
            engine.F32: {"largest_difference": 0.0, "decisions_changed": 0, "iou50": toy_artefact.CHANCE},
        },
        "data_digest": "0" * 64,
    }
    return LocatorRecord.parse(content | changes, "locator")


def automatic_boxes(released: bool = True) -> AutomaticBoxes:
    """What the boxes cost."""
    measured = dict.fromkeys(("given", "automatic", "difference", "rank_correlation"), toy_artefact.CHANCE)
    counts = dict.fromkeys(("frames", "patients", "flips", "sure_frames", "sure_flips"), 4)
    reason = {} if released else {"reason": "the lower bound of the difference is below -0.15"}
    return AutomaticBoxes.parse(measured | counts | {"allowed": 0.15, "released": released} | reason, "automatic_boxes")


def write_locator(file: Path) -> None:
    """Write the locator's network: heat of bright cells, and boxes of two cells' side around them."""
    file.parent.mkdir(parents=True, exist_ok=True)
    image = ops.parameter([1, LOOK, LOOK, 3], np.uint8, name="image")
    grey = ops.reduce_mean(ops.convert(image, "f32"), np.array([3]))
    pooled = ops.avg_pool(ops.unsqueeze(grey, np.array([1])), [STRIDE, STRIDE], [0, 0], [0, 0], [STRIDE, STRIDE], False)
    cells = ops.squeeze(pooled, np.array([1]))
    heat = ops.sigmoid(ops.multiply(ops.subtract(cells, np.float32(150)), np.float32(0.1)))
    nothing = ops.multiply(ops.unsqueeze(heat, np.array([3])), np.zeros((1, 1, 1, 4), np.float32))
    openvino.save_model(openvino.Model([heat, nothing], [image], "locator"), file, compress_to_fp16=False)


def write_classifier(file: Path, head: Head | None = None) -> None:
    """Write the classifier's network: random weights on every pixel, a map of 4 x 4, and the colours of its cells.

    The head, if there is one, tells descriptors by the mean of each colour.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    image = ops.parameter([1, SIZE, SIZE, 3], np.uint8, name="image")
    pixels = ops.divide(ops.convert(image, "f32"), np.float32(255))
    weights = np.random.default_rng(1).normal(0, 0.03, (SIZE * SIZE * 3, 2)).astype(np.float32)
    logits = ops.matmul(ops.reshape(pixels, np.array([1, -1]), False), weights, False, False)
    grey = ops.unsqueeze(ops.reduce_mean(pixels, np.array([3])), np.array([1]))
    maps = ops.squeeze(ops.avg_pool(grey, [8, 8], [0, 0], [0, 0], [8, 8], False), np.array([1]))
    cells = ops.avg_pool(ops.transpose(pixels, np.array([0, 3, 1, 2])), [8, 8], [0, 0], [0, 0], [8, 8], False)
    pooled = ops.reshape(cells, np.array([1, -1]), False)
    outputs = [ops.softmax(logits, 1), maps, pooled]
    if head is not None:
        colours = ops.transpose(cells, np.array([0, 2, 3, 1]))
        outputs += [ops.reduce_mean(colours, np.array([1, 2])), ops.matmul(colours, head.weight, False, False)]
    openvino.save_model(openvino.Model(outputs, [image], "classifier"), file, compress_to_fp16=False)


def build(
    folder: Path, locator: LocatorRecord | None = None, novelty: bool = False, head: Head | None = None, **changes: Any
) -> Path:
    """Write a published artefact.

    Args:
        folder: Its folder.
        locator: Its locator; None for an artefact of before.
        novelty: Whether it has a reference of `frame`s of one bright ellipse, cut out around it; False for an artefact
            of before.
        head: Head that tells descriptors by `FEATURES`; None for an artefact of before.
        changes: Other fields of model.json.
    """
    write_classifier(folder / engine.OPENVINO, head)
    (folder / "reference.jpg").write_bytes(images.encode(frame(((20, 20, 30, 30),), (80, 80))))
    if locator is not None:
        write_locator(folder / OPENVINO)
        changes = {"locator": locator.to_dict(), "automatic_boxes": automatic_boxes().to_dict()} | changes
    if novelty:
        changes = {"novelty": write_novelty(folder).to_dict()} | changes
    if head is not None:
        head.write(folder)
        changes = {"descriptors": head.record.to_dict()} | changes
    reference = Instance("reference.jpg", (folder / "reference.jpg").read_bytes())
    pixels = Preprocessing(changes.get("serving_domain", "cropped"), SIZE).prepare(reference).pixels
    own = engine.OpenVINOEngine(folder / engine.OPENVINO, SIZE, engine.F32).predict(pixels[None])[0]
    description = toy_artefact.description(**(_calibrated() | {"margin": 0.5} | changes))
    answer = OperatingPoint.from_record(description).scale(own)[0].tolist()
    described = description.to_dict() | {"reference": dict(zip(description.classes, answer, strict=True))}
    Artefact.describe(folder, type(description).parse(described, "model.json"))
    publish(folder)
    return folder


def write_novelty(folder: Path) -> NoveltyRecord:
    """Write the reference of an artefact with a classifier: 40 patients with a frame each, boxes placed by a seed."""
    rng, pixels = np.random.default_rng(0), []
    for patient in range(40):
        side, left, top = rng.integers(40, 120), rng.integers(10, 180), rng.integers(30, 90)
        box = (int(left), int(top), int(side), int(side))
        image = images.encode(frame((box,), seed=patient))
        pixels.append(Preprocessing("cropped", SIZE, 0.5).prepare(Instance("frame", image, roi=box)).pixels)
    features = engine.OpenVINOEngine(folder / engine.OPENVINO, SIZE, engine.F32).predict(np.stack(pixels))[2]
    made, described = toy_artefact.novelty(features, np.arange(40), factor=1.5)  # boxes that are found lie elsewhere
    made.write(folder)
    return described


def publish(folder: Path) -> None:
    """Add to model.json what the registry would."""
    card = Artefact.read(folder).record
    added = {"version": 1, "created": "2026-01-01T00:00:00Z", "parent": None, "gate": toy_artefact.gate()}
    card.model_copy(update=added).write(folder / "model.json")


def _calibrated() -> dict[str, Any]:
    """The forms of a model whose calibration error on validation is known."""
    validation = toy_artefact.KERAS["validation"] | {"ece": {"value": 0.05, "low": 0.0, "high": ECE}}
    form = toy_artefact.other_form(0.0)
    return {"forms": {"keras": toy_artefact.KERAS | {"validation": validation}, engine.F32: form}}
