"""The two domains: `normal` (scan area, scanner frame blanked) and `cropped` (one square image a region).

python -m thyroid.crop --data DIR --output DIR
"""

import argparse
import hashlib
import shutil
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from thyroid import errors, images, progress, tables
from thyroid.errors import InputError
from thyroid.names import CLASSES

MARGIN = 0.15
"""A region is widened by this share of its own width (height) on each side and clipped to the frame."""

Box = tuple[int, int, int, int]
"""x, y, width, height in pixels."""

_CHUNK = 32


@dataclass(frozen=True)
class ScanArea:
    """The part of a frame that shows tissue.

    `mask` is uint8 [height, width], 0 or 1; `box` its bounding box in frame pixels; `found` is False when no area stands out
    and the whole frame is taken.
    """

    mask: NDArray[np.uint8]
    box: Box
    found: bool


@dataclass(frozen=True)
class Cropped:
    """Where the data version with its images is and what it holds (the content of data.json)."""

    folder: Path
    facts: dict[str, Any]


def scan_area(frame: images.Pixels) -> ScanArea:
    """Find the ultrasound image within the scanner's frame.

    Speckle fills an area; text, ruler ticks and logos are thin. So pixels brighter than the background are closed over
    a few pixels, everything thinner than a twelfth of the frame is opened away, and what remains, as far as it is at
    least a quarter of the largest piece (split screens), is taken with its convex hull. Deterministic.

    Args:
        frame: uint8 [height, width, 3].
    """
    red, green, blue = cv2.split(frame)
    grey = cv2.max(cv2.max(red, green), blue)
    height, width = grey.shape
    background = int(np.bincount(grey.ravel(), minlength=256)[:64].argmax())
    tissue = (grey > background + 4).astype(np.uint8)
    unit = max(3, min(height, width) // 60) | 1
    tissue = cv2.morphologyEx(tissue, cv2.MORPH_CLOSE, np.ones((unit, unit), np.uint8))
    thick = max(5, min(height, width) // 12) | 1
    tissue = cv2.morphologyEx(tissue, cv2.MORPH_OPEN, np.ones((thick, thick), np.uint8))
    count, parts, statistics, _ = cv2.connectedComponentsWithStats(tissue)
    whole = ScanArea(np.ones((height, width), np.uint8), (0, 0, width, height), False)
    if count < 2:
        return whole
    sizes = statistics[1:, cv2.CC_STAT_AREA]
    kept = 1 + np.flatnonzero(sizes >= sizes.max() / 4)
    if statistics[kept, cv2.CC_STAT_AREA].sum() < 0.1 * height * width:
        return whole
    keep = np.isin(np.arange(count), kept).astype(np.uint8)[parts]
    contours, _ = cv2.findContours(keep, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    points = np.concatenate(contours)
    mask = np.zeros((height, width), np.uint8)
    cv2.fillConvexPoly(mask, cv2.convexHull(points), 1)
    x, y, w, h = cv2.boundingRect(points)
    return ScanArea(mask, (x, y, w, h), True)


def normal(frame: images.Pixels, area: ScanArea | None = None) -> images.Pixels:
    """The frame's scan area: everything outside it blanked, then cut to its bounding box.

    Burned-in text may name the patient and a scanner's layout tells the hospital: both go before anything else looks.

    Args:
        frame: uint8 [height, width, 3].
        area: of this frame, if it is known.

    Returns:
        uint8 [area height, area width, 3].
    """
    area = area or scan_area(frame)
    x, y, width, height = area.box
    return cv2.copyTo(frame, area.mask)[y : y + height, x : x + width]


def region(frame: images.Pixels, box: Box, area: ScanArea | None = None) -> images.Pixels:
    """One region with its margin as a square: blanked outside the scan area, padded with black, never stretched.

    Args:
        frame: uint8 [height, width, 3].
        box: x, y, width, height in pixels of the frame, inside it.
        area: of this frame, if it is known. Pixels of `box` itself count as tissue.

    Returns:
        uint8 [side, side, 3] with side the longer side of the widened box.

    Raises:
        ValueError: the box has no size or is outside the frame.
    """
    x, y, width, height = box
    if width < 1 or height < 1 or x < 0 or y < 0 or x + width > frame.shape[1] or y + height > frame.shape[0]:
        raise ValueError(f"region {box} is outside the {frame.shape[1]}x{frame.shape[0]} image")
    area = area or scan_area(frame)
    mask = area.mask.copy()
    mask[y : y + height, x : x + width] = 1
    left, top, wide, high = widened(box, frame.shape[1], frame.shape[0])
    rows, columns = slice(top, top + high), slice(left, left + wide)
    cut = cv2.copyTo(frame[rows, columns], mask[rows, columns])
    return images.letterbox(cut, max(cut.shape[:2]))


def widened(box: Box, frame_width: int, frame_height: int) -> Box:
    """`box` with its margin, clipped to the frame."""
    x, y, width, height = box
    dx, dy = round(MARGIN * width), round(MARGIN * height)
    left, top = max(0, x - dx), max(0, y - dy)
    return left, top, min(frame_width, x + width + dx) - left, min(frame_height, y + height + dy) - top


def crop(data: Path, output: Path, domains: Sequence[str] = ()) -> Cropped:
    """Write every image of both domains, re-encoded without metadata, with the tables that name them.

    Args:
        data: data version of `ingest`.
        output: folder of the new data version with `normal/` and `cropped/` in it.
        domains: the domains that will be trained; empty for cropped where there are regions, else normal.

    Raises:
        InputError: the cropped domain is asked for and there is no region, or nothing is left to train on.
    """
    started = time.monotonic()
    scans, regions, facts = tables.read(data)
    domains = resolve_domains(domains, has_regions=len(regions) > 0)
    for domain in tables.DOMAINS:
        (output / domain).mkdir(parents=True, exist_ok=True)
    boxes: dict[str, list[tuple[int, Box]]] = {}
    for row in regions.itertuples():
        boxes.setdefault(row.path, []).append((row.Index, (int(row.x), int(row.y), int(row.width), int(row.height))))
    good = tables.used(scans)
    tasks = [
        (row.Index, row.path, row.sha256, row.domain, boxes.get(row.path, []), str(output)) for row in good.itertuples()
    ]
    with ProcessPoolExecutor() as pool:
        done = list(progress.bar(pool.map(_crop_file, tasks, chunksize=_CHUNK), len(tasks), "crop", "scan"))

    for column in ("normal_path", "normal_sha256"):
        scans[column] = pd.Series(pd.NA, scans.index, "string")
    for column in ("area_x", "area_y", "area_width", "area_height"):
        scans[column] = pd.Series(pd.NA, scans.index, "Int64")
    lost = []
    for result in done:
        if result.reason:
            scans.loc[result.row, "quarantine_reason"] = result.reason
            lost.append((scans.loc[result.row, "path"], result.reason))
            continue
        if result.normal:
            scans.loc[result.row, ["normal_path", "normal_sha256"]] = result.normal
        scans.loc[result.row, ["area_x", "area_y", "area_width", "area_height"]] = result.area
        for index, written in result.crops:
            regions.loc[index, ["crop_path", "crop_sha256"]] = written
    regions = regions[regions["path"].isin(tables.used(scans)["path"])].reset_index(drop=True)
    _append_quarantine(data / "quarantine.csv", output / "quarantine.csv", lost)

    good = tables.used(scans)
    frames = good[good["domain"] == "normal"]
    facts |= {
        "digest": tables.digest(scans, regions),
        "scans": len(good),
        "patients": int(good["patient"].nunique()),
        "splits": tables.count_splits(good),
        "quarantined": facts["quarantined"] + len(lost),
        "regions": len(regions),
        "domains": list(domains),
        "without_region": int((~frames["path"].isin(regions["path"])).sum()),
        "scan_area_not_found": sum(1 for r in done if not r.reason and not r.found),
        "seconds": facts["seconds"] | {"crop": round(time.monotonic() - started, 1)},
    }
    for domain in domains:
        _require_examples(scans, regions, domain)
    shutil.copy(data / "statistics.png", output / "statistics.png")
    from thyroid import plots  # serving crops, too, and draws nothing

    plots.crop_sheet(scans, regions, output)
    tables.write(output, scans, regions, facts)
    print(
        f"normal: {len(frames)} frames; cropped: {len(regions)} regions; {facts['without_region']} frames without a "
        f"region stay in normal only; scan area not found in {facts['scan_area_not_found']}"
    )
    if lost:
        print(f"quarantined since ingest: {len(lost)}, see {output / 'quarantine.csv'}")
    return Cropped(output, facts)


def resolve_domains(domains: Sequence[str], has_regions: bool) -> tuple[str, ...]:
    """The domains to train: as asked, else cropped where there are regions, else normal.

    Raises:
        InputError: an unknown domain, or cropped without any region.
    """
    unknown = [d for d in domains if d not in tables.DOMAINS]
    if unknown:
        raise InputError(f"domain {unknown[0]!r} is unknown; choose from {', '.join(tables.DOMAINS)}")
    if "cropped" in domains and not has_regions:
        raise InputError(
            "the cropped domain needs regions and there is none: give them with --rois rois.csv, bring crops with "
            "--crops DIR, or train on whole frames with --domains normal"
        )
    return tuple(dict.fromkeys(domains)) or (("cropped",) if has_regions else ("normal",))


def examples(folder: Path, domain: str, split: str | None = None) -> pd.DataFrame:
    """The images of one domain (and split) of a cropped data version.

    Returns:
        One row an image, in a fixed order: file (full path), sha256 of it, path of its scan, label, patient, group, split.
    """
    if domain not in tables.DOMAINS:
        raise InputError(f"domain {domain!r} is unknown; choose from {', '.join(tables.DOMAINS)}")
    scans, regions, _ = tables.read(folder)
    table = _examples(scans, regions, domain)
    if split is not None:
        table = table[table["split"] == split]
    table = table.sort_values("file").reset_index(drop=True)
    table["file"] = [str(folder / file) for file in table["file"]]
    return table


def _examples(scans: pd.DataFrame, regions: pd.DataFrame, domain: str) -> pd.DataFrame:
    good = tables.used(scans)
    if domain == "normal":
        table = good[good["domain"] == "normal"].assign(file=good["normal_path"], sha256=good["normal_sha256"])
    else:
        table = regions.merge(good.drop(columns="sha256"), on="path")
        table = table.rename(columns={"crop_path": "file", "crop_sha256": "sha256"})
    return table[["file", "sha256", "path", "label", "patient", "group", "split"]]


def _require_examples(scans: pd.DataFrame, regions: pd.DataFrame, domain: str) -> None:
    have = _examples(scans, regions, domain).groupby(["split", "label"]).size()
    for split in tables.SPLITS:
        for label in CLASSES:
            if (split, label) not in have.index:
                raise InputError(
                    f"the {domain} domain has no image of class {label} in the {split} split: add regions or scans"
                )


@dataclass(frozen=True)
class _Result:
    row: int
    reason: str | None = None
    normal: tuple[str, str] | None = None  # file, sha256
    area: Box = (0, 0, 0, 0)
    found: bool = True
    crops: tuple[tuple[int, tuple[str, str]], ...] = ()


def _crop_file(task: tuple[int, str, str, str, list[tuple[int, Box]], str]) -> _Result:
    row, path, sha256, domain, boxes, output = task
    try:
        data = images.read(path)
        if hashlib.sha256(data).hexdigest() != sha256:
            raise ValueError("file changed since ingest")
        frame = images.decode(data)
    except FileNotFoundError:
        return _Result(row, "file vanished since ingest")
    except (ValueError, OSError) as error:
        return _Result(row, errors.one_line(error))
    name = f"{Path(path).stem}-{sha256[:8]}"
    if domain == "cropped":  # a file that came in cropped is its own region, without margin
        written = _write(output, f"cropped/{name}.jpg", images.letterbox(frame, max(frame.shape[:2])))
        return _Result(row, crops=tuple((index, written) for index, _ in boxes))
    area = scan_area(frame)
    crops = tuple(
        (index, _write(output, f"cropped/{name}-{number}.jpg", region(frame, box, area)))
        for number, (index, box) in enumerate(boxes)
    )
    return _Result(row, None, _write(output, f"normal/{name}.jpg", normal(frame, area)), area.box, area.found, crops)


def _write(output: str, file: str, image: images.Pixels) -> tuple[str, str]:
    data = images.encode(image)
    Path(output, file).write_bytes(data)
    return file, hashlib.sha256(data).hexdigest()


def _append_quarantine(source: Path, target: Path, rows: list[tuple[str, str]]) -> None:
    table = pd.concat([pd.read_csv(source), pd.DataFrame(rows, columns=["file", "reason"])])
    table.to_csv(target, index=False)


@errors.command
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m thyroid.crop", description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="data version of thyroid.ingest")
    parser.add_argument("--output", type=Path, required=True, help="folder of the new data version")
    parser.add_argument("--domains", type=lambda s: [d for d in s.split(",") if d], default=(), help="normal,cropped")
    crop(**vars(parser.parse_args(argv)))


if __name__ == "__main__":
    raise SystemExit(main())
