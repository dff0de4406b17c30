"""A folder of the step `locate`, made by hand: real crops of shifted boxes, and figures that nobody measured."""

import hashlib
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from thyroid.data.version import DataVersion
from thyroid.imaging import geometry, images
from thyroid.model.artefact import sha256
from thyroid.model.locator import iou
from thyroid.records.locate import LocateRecord, LocatorRecord

LOCATOR_FILES = ("model.keras", "model.xml", "model.bin")


def share(value: float) -> dict[str, float]:
    """An interval of .1 on either side."""
    return {"value": value, "low": value - 0.1, "high": value + 0.1}


def fit(iou50: float, frames: int = 6, **more: Any) -> dict[str, Any]:
    """How well boxes fit, with this share of hits."""
    names = ("centre", "mean_iou", "recall_at_3", "ap50")
    sizes = [{"size": size, "frames": 2, "iou50": share(iou50)} for size in ("small", "middle", "large")]
    return (
        {"frames": frames, "patients": 3, "iou50": share(iou50), "by_size": sizes}
        | {name: share(0.5) for name in names}
        | more
    )


def locator_record(**changes: Any) -> LocatorRecord:
    """A locator of toy size that hits in .6 of the frames, the median box in .2."""
    probability = {"ece": 0.03, "auroc": share(0.65), "surest_half": share(0.75)}
    content = {
        "body": "toy",
        "weights": "none",
        "image_size": 64,
        "stride": 16,
        "parameters": 1234,
        "frames": 20,
        "patients": 10,
        "calibration": {"intercept": 0.0, "heat": 1.0, "lead": 0.5},
        "unsure": 0.2,
        "limit": 0.4,
        "crop_rule": {
            **{"intercept": 0.0, "side": 0.0, "area": 0.0, "box": 0.0, "frames": 6, "crops": 6},
            **{"frames_right": share(0.9), "crops_right": share(0.9)},
        },
        "folds": 5,
        "cross_fitted": fit(0.6, 24, **probability),
        "cross_fitted_median_box": fit(0.2, 24),
        "test": fit(0.55, **probability),
        "test_median_box": fit(0.15),
        "forms": {},
        "data_digest": "0" * 64,
    }
    return LocatorRecord.parse(content | changes, "locate.json")


def write(folder: Path, data: DataVersion, shift: float = 0.2, **changes: Any) -> Path:
    """Write the folder for a data version.

    Args:
        folder: Folder to write to.
        data: The data version.
        shift: Share of a nodule's sides that its box is shifted by; 0 for the marked box of the first nodule.
        changes: Fields of the locator's record.
    """
    for name in ("crops", "locator"):
        (folder / name).mkdir(parents=True)
    frames = data.used[data.used["domain"] == "normal"]
    rows = [row for frame in frames.to_dict("records") for row in _rows(folder, data, frame, shift)]
    pd.DataFrame(rows).astype({"crop_path": "string", "crop_sha256": "string"}).to_parquet(folder / "boxes.parquet")
    for name in LOCATOR_FILES:
        (folder / "locator" / name).write_bytes(f"not a real {name}".encode())
    for name in ("sheet", "calibration", "risk_coverage"):
        Image.new("RGB", (200, 160), "#dddddd").save(folder / f"{name}.png")
    files = ("boxes.parquet", *(f"locator/{name}" for name in LOCATOR_FILES))
    LocateRecord(
        data_digest=data.digest,
        locator=locator_record(data_digest=data.digest, **changes),
        margin=data.margin,
        files={name: sha256(folder / name) for name in files},
        seconds=1.0,
    ).write(folder / "locate.json")
    return folder


def seal(folder: Path, **changes: Any) -> None:
    """Write the record again: with the hashes of the files as they are, and with these fields."""
    record = LocateRecord.read(folder / "locate.json")
    files = {name: sha256(folder / name) for name in record.files}
    record.model_copy(update={"files": files, **changes}).write(folder / "locate.json")


def skipped(folder: Path, data: DataVersion, why: str = "there are no regions") -> Path:
    """Write the folder of a step that was skipped."""
    folder.mkdir(parents=True)
    LocateRecord(data_digest=data.digest, skipped=why, seconds=0.1).write(folder / "locate.json")
    return folder


def _rows(folder: Path, data: DataVersion, frame: dict[str, Any], shift: float) -> list[dict[str, Any]]:
    """Write the crop of a frame's best box, and return its rows: a shifted box, and a second one for every frame."""
    pixels = images.decode((data.folder / frame["local_path"]).read_bytes(), formats=images.SERVED)
    height, width = pixels.shape[:2]
    regions = data.regions[data.regions["path"] == frame["path"]]
    marked = [tuple(row) for row in regions[["x", "y", "width", "height"]].astype(int).to_numpy().tolist()]
    x, y, wide, high = marked[0] if marked else (width // 4, height // 4, width // 4, height // 4)
    box = min(width - wide, x + round(shift * wide)), min(height - high, y + round(shift * high)), wide, high
    crop = images.encode(geometry.region(pixels, box, margin=data.margin))
    name = f"crops/{hashlib.sha256(frame['path'].encode()).hexdigest()[:12]}.jpg"
    (folder / name).write_bytes(crop)
    test = frame["split"] == "test"
    unsure = int(frame["image"]) % 2 == 0
    shared = {key: frame[key] for key in ("path", "split", "group", "patient", "label", "class")}
    shared |= {"unsure": unsure, "source": "final" if test else "cross-fitted", "heat": 0.5}
    boxes = [(0, box, 0.3 if unsure else 0.7), (1, (0, 0, wide, high), 0.1)]
    return [
        {
            **shared,
            "rank": rank,
            **dict(zip(("x", "y", "width", "height"), one, strict=True)),
            "probability": probability,
            "iou": max((iou(one, other) for other in marked), default=None),
            "crop_path": name if rank == 0 else None,
            "crop_sha256": hashlib.sha256(crop).hexdigest() if rank == 0 else None,
        }
        for rank, one, probability in boxes
    ]
