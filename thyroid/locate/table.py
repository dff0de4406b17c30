"""The table of boxes (boxes.parquet), and the automatic crops of the best ones."""

import hashlib
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd

from thyroid import cores, errors, progress
from thyroid.atomic import replacing
from thyroid.data import crops
from thyroid.data.version import DataVersion
from thyroid.imaging import geometry, images
from thyroid.imaging.geometry import Box
from thyroid.locate.frames import Frames
from thyroid.locate.proposals import Proposals
from thyroid.metrics import detection
from thyroid.records.locate import LocatorRecord
from thyroid.storage import mirror

log = logging.getLogger(__name__)

CROPS = "crops"
_BATCH = 1024  # frames that are fetched from a bucket at once


def build(parts: Sequence[tuple[Frames, Proposals, str]], record: LocatorRecord) -> pd.DataFrame:
    """Return one row per proposal of every frame.

    The columns are path, split, group, patient, label and class of the scan; rank (0 is the best); x, y, width and
    height in pixels of the frame; heat; probability; unsure (of the frame); source ("cross-fitted" or "final"); and
    iou, with the marked nodule that it fits best (null where the frame has none).

    Args:
        parts: Frames, their proposals and the source of these.
        record: The locator's record, with its calibration and limit.
    """
    rows = []
    for frames, proposals, source in parts:
        known = frames.table[["path", "split", "group", "patient", "label", "class"]].to_dict("records")
        probabilities = proposals.probabilities(record.calibration)
        for place, facts in enumerate(known):
            marked, sure = frames.boxes[place], probabilities[place]
            for rank, (box, heat) in enumerate(zip(proposals.boxes[place], proposals.heats[place], strict=True)):
                rows.append(
                    facts
                    | {"rank": rank, **dict(zip(("x", "y", "width", "height"), box, strict=True))}
                    | {"heat": heat, "probability": sure[rank], "unsure": sure[0] < record.limit, "source": source}
                    | {"iou": float(detection.iou([box], marked).max()) if marked else None}
                )
    return pd.DataFrame(rows).astype({"iou": "Float64"})


def crop(boxes: pd.DataFrame, data: DataVersion, scans: Path, output: Path) -> pd.DataFrame:
    """Make the automatic crop of every frame, exactly as `crop` makes the crop of a marked region.

    A frame that cannot be read any more gets none. It is counted in the log.

    Args:
        boxes: Result of `build`.
        data: Data version of `crop`, with the margin.
        scans: Folder that the scans' paths are relative to.
        output: Folder of the step.

    Returns:
        The table with crop_path (relative to `output`) and crop_sha256, null for all but the best proposals.
    """
    (output / CROPS).mkdir(exist_ok=True)
    best = boxes[boxes["rank"] == 0]
    wanted = best[["path", "x", "y", "width", "height"]].merge(data.used[["path", "local_path", "sha256"]], on="path")
    texts = (wanted[column].tolist() for column in ("local_path", "sha256", "path"))
    tasks = [
        (scans / mirror.local(local), sha256, box, path)
        for local, sha256, path, box in zip(*texts, crops.boxes_of(wanted), strict=True)
    ]

    def one(task: tuple[Path, str, Box, str]) -> tuple[str, str, str] | None:
        return _crop(task, data.margin, output)

    made: list[tuple[str, str, str] | None] = []
    with (
        ThreadPoolExecutor(cores.available()) as pool,
        progress.bar(None, len(tasks), "automatic crops", "frame") as bar,
    ):
        for start in range(0, len(tasks), _BATCH):
            batch = tasks[start : start + _BATCH]
            mirror.fetch([file for file, *_ in batch], "fetch frames", missing_ok=True)
            made += pool.map(one, batch)
            bar.update(len(batch))
    found = pd.DataFrame([row for row in made if row], columns=["path", "crop_path", "crop_sha256"])
    if lost := len(tasks) - len(found):
        log.info(f"{lost} frames could not be read again; they have a box but no automatic crop")
    joined = boxes.merge(found.assign(rank=0), on=["path", "rank"], how="left")
    return joined.astype({"crop_path": "string", "crop_sha256": "string"})


def _crop(task: tuple[Path, str, Box, str], margin: float, output: Path) -> tuple[str, str, str] | None:
    file, sha256, box, path = task
    try:
        data = images.read(file)
        if hashlib.sha256(data).hexdigest() != sha256:
            raise ValueError("changed since ingest")
        frame = images.decode(data, formats=images.SERVED)
        encoded = images.encode(geometry.region(frame, box, margin=margin))
    except Exception as error:  # one bad file must not end a run
        log.info(f"automatic crop: {errors.one_line(error)}")
        return None
    digest = hashlib.sha256(encoded).hexdigest()
    name = f"{CROPS}/{crops.stem(path)}-{digest[:16]}.jpg"
    with replacing(output / name, durable=False) as temporary:
        temporary.write_bytes(encoded)
    return path, name, digest
