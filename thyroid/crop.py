"""The two domains: `normal` (scan area, scanner frame blanked) and `cropped` (one square image a region).

With a store the images are kept there from run to run, and only those that are not there yet are made.

python -m thyroid.crop --data DIR --output DIR
"""

import argparse
import hashlib
import os
import shutil
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from thyroid import cores, errors, images, progress, storage, tables, workers
from thyroid.errors import InputError
from thyroid.settings import MARGIN
from thyroid.store import Store, source_of

Box = tuple[int, int, int, int]
"""x, y, width, height in pixels."""

_AREA = ("area_x", "area_y", "area_width", "area_height")
_CHUNK = 32
_MOST_STEM = 100
"""Bytes of a scan's name that its images' names begin with: with their key, in a file's 255 bytes, however long it is."""


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
    background = int(cv2.calcHist([grey], [0], None, [256], [0, 256])[:64].argmax())
    _, tissue = cv2.threshold(grey, background + 4, 1, cv2.THRESH_BINARY)
    unit = max(3, min(height, width) // 60) | 1
    tissue = cv2.morphologyEx(tissue, cv2.MORPH_CLOSE, np.ones((unit, unit), np.uint8))
    thick = max(5, min(height, width) // 12) | 1
    tissue = cv2.morphologyEx(tissue, cv2.MORPH_OPEN, np.ones((thick, thick), np.uint8))
    pieces = _pieces(tissue)
    if sum(area for area, _ in pieces) < 0.1 * height * width:
        return ScanArea(np.ones((height, width), np.uint8), (0, 0, width, height), False)
    points = np.concatenate([outline for _, outline in pieces])
    mask = np.zeros((height, width), np.uint8)
    cv2.fillConvexPoly(mask, cv2.convexHull(points), 1)
    x, y, w, h = cv2.boundingRect(points)
    return ScanArea(mask, (x, y, w, h), True)


def _pieces(tissue: NDArray[np.uint8]) -> list[tuple[int, NDArray[np.int32]]]:
    """Area in pixels and outline [points, 1, 2] of the pieces that are at least a quarter of the largest one."""
    contours, hierarchy = cv2.findContours(tissue, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    outlines = (
        [one for one, (_, _, _, parent) in zip(contours, hierarchy[0], strict=True) if parent < 0] if contours else []
    )
    if len(outlines) == 1:  # as a rule, and labelling every pixel takes longer than all the rest
        return [(cv2.countNonZero(tissue), outlines[0])]
    _, parts, statistics, _ = cv2.connectedComponentsWithStats(tissue)
    areas = [int(statistics[parts[y, x], cv2.CC_STAT_AREA]) for x, y in (one[0, 0] for one in outlines)]
    return [(area, one) for area, one in zip(areas, outlines, strict=True) if area >= max(areas) / 4]


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


def region(frame: images.Pixels, box: Box, area: ScanArea | None = None, margin: float = MARGIN) -> images.Pixels:
    """One region with its margin as a square: blanked outside the scan area, padded with black, never stretched.

    Args:
        frame: uint8 [height, width, 3].
        box: x, y, width, height in pixels of the frame, inside it.
        area: of this frame, if it is known. Pixels of `box` itself count as tissue.
        margin: see `widened`.

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
    left, top, wide, high = widened(box, frame.shape[1], frame.shape[0], margin)
    rows, columns = slice(top, top + high), slice(left, left + wide)
    cut = cv2.copyTo(frame[rows, columns], mask[rows, columns])
    return images.letterbox(cut, max(cut.shape[:2]))


def widened(box: Box, frame_width: int, frame_height: int, margin: float = MARGIN) -> Box:
    """`box` with its margin, a share of its own width (height) on each side, clipped to the frame."""
    x, y, width, height = box
    dx, dy = round(margin * width), round(margin * height)
    left, top = max(0, x - dx), max(0, y - dy)
    return left, top, min(frame_width, x + width + dx) - left, min(frame_height, y + height + dy) - top


def crop(
    data: Path,
    output: Path,
    domains: Sequence[str] = (),
    store: storage.Location | None = None,
    margin: float = MARGIN,
    splits: Sequence[str] = tables.SPLITS,
) -> Cropped:
    """Make every image of both domains, re-encoded without metadata, and the tables that name them.

    Args:
        data: data version of `ingest`.
        output: folder of the new data version.
        domains: the domains that will be trained; empty for cropped where there are regions, else normal.
        store: folder that outlives the run (`thyroid.store`), which keeps the images; None to write them to `normal/` and
            `cropped/` in `output`.
        margin: see `widened`.
        splits: whose scans are wanted; the files of the others are not even opened.

    Raises:
        InputError: the cropped domain is asked for and there is no region, or nothing is left to train on.
    """
    started = time.monotonic()
    scans, regions, facts = tables.read(data)
    if set(splits) != set(tables.SPLITS):
        scans = scans[scans["split"].isin(splits)].reset_index(drop=True)
        regions = regions[regions["path"].isin(scans["path"])].reset_index(drop=True)
    domains = resolve_domains(domains, has_regions=len(regions) > 0)
    place = None if store is None else Store(store)
    images_folder = output if place is None else place.crops
    for domain in tables.DOMAINS:
        (images_folder / domain).mkdir(parents=True, exist_ok=True)
    output.mkdir(parents=True, exist_ok=True)

    planned = _plan(tables.used(scans), regions, margin)
    have = {} if place is None else _whole(images_folder, _images(place.cropped()), planned)
    todo = [one for one in planned if not all(key in have for key in one.keys.values())]
    tasks = [_Task(str(data / one.local_path), one, str(images_folder)) for one in todo]
    made: dict[str, _Image] = {}
    lost: dict[str, str] = {}
    for task, done in zip(tasks, progress.bar(_each(tasks), len(tasks), "crop", "scan"), strict=True):
        if isinstance(done, str):
            lost[task.plan.path] = done
        else:
            made |= done
    if place is not None and made:
        place.add_cropped(pd.DataFrame(made.values(), columns=_Image._fields).assign(key=list(made), margin=margin))
    have |= made

    scans, regions = _filled(scans, regions, planned, have, lost)
    quarantine = pd.DataFrame(list(lost.items()), columns=["file", "reason"])
    tables.write_quarantine(output / tables.QUARANTINE, pd.concat([tables.read_quarantine(data, facts), quarantine]))
    good = tables.used(scans)
    frames = good[good["domain"] == "normal"]
    facts |= {
        "digest": tables.digest(scans, regions),
        "scans": len(good),
        "patients": int(good["patient"].nunique()),
        "splits": tables.count_splits(good, facts["classes"]),
        "quarantined": facts["quarantined"] + len(lost),
        "regions": len(regions),
        "domains": list(domains),
        "margin": margin,
        "without_region": int((~frames["path"].isin(regions["path"])).sum()),
        "scan_area_not_found": sum(1 for one in planned if one.path not in lost and not have[one.main].found),
        "cropped": len(todo),
        "seconds": facts["seconds"] | {"crop": round(time.monotonic() - started, 1)},
    }
    if place is not None:
        facts["images"] = str(images_folder)
    for domain in domains:
        _require_examples(scans, regions, domain, splits)
    shutil.copy(data / "statistics.png", output)
    from thyroid import plots  # serving crops, too, and draws nothing

    plots.crop_sheet(scans, regions, images_folder, output / "crops.png")
    tables.write(output, scans, regions, facts)
    print(
        f"normal: {len(frames)} frames; cropped: {len(regions)} regions; {facts['without_region']} frames without a "
        f"region stay in normal only; scan area not found in {facts['scan_area_not_found']}"
    )
    if len(todo) < len(planned):
        print(f"{len(todo)} of {len(planned)} scans were cropped now, the images of the others were there")
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
        One row an image, in a fixed order: file (full path), name (within `tables.images`), sha256 of it, path of its scan,
        class, label (its side), patient, group, split.
    """
    if domain not in tables.DOMAINS:
        raise InputError(f"domain {domain!r} is unknown; choose from {', '.join(tables.DOMAINS)}")
    scans, regions, _ = tables.read(folder)
    table = _examples(scans, regions, domain)
    if split is not None:
        table = table[table["split"] == split]
    table = table.sort_values("name").reset_index(drop=True)
    root = tables.images(folder)
    table["file"] = [str(root / name) for name in table["name"]]
    return table


def files(scans: pd.DataFrame, regions: pd.DataFrame, margins: Collection[float]) -> set[str]:
    """Names, within a store's crops, of all images that this code makes of the scans in use with these margins."""
    return {
        f"{'normal' if box is None else 'cropped'}/{key}.jpg"
        for margin in margins
        for one in _plan(tables.used(scans), regions, margin)
        for box, key in one.keys.items()
    }


def stem(path: str) -> str:
    """What the names of a scan's images begin with."""
    return path.rsplit("/", 1)[-1].rsplit(".", 1)[0].encode()[:_MOST_STEM].decode(errors="ignore")


def _examples(scans: pd.DataFrame, regions: pd.DataFrame, domain: str) -> pd.DataFrame:
    good = tables.used(scans)
    if domain == "normal":
        table = good[good["domain"] == "normal"].assign(name=good["normal_path"], sha256=good["normal_sha256"])
    else:
        table = regions.merge(good.drop(columns="sha256"), on="path")
        table = table.rename(columns={"crop_path": "name", "crop_sha256": "sha256"})
    return table[["name", "sha256", "path", "class", "label", "patient", "group", "split"]]


def _require_examples(scans: pd.DataFrame, regions: pd.DataFrame, domain: str, splits: Sequence[str]) -> None:
    have = _examples(scans, regions, domain).groupby(["split", "class"]).size()
    for split in splits:
        for name in sorted(tables.used(scans)["class"].unique()):
            if (split, name) not in have.index:
                raise InputError(
                    f"the {domain} domain has no image of class {name} in the {split} split: add regions or scans"
                )


@dataclass(frozen=True)
class _Plan:
    """What is to be made of a scan: box (None for the whole frame) to the key of the image.

    A key names all that the image depends on: this code, the scan's bytes, the box and its margin.
    """

    path: str
    local_path: str
    sha256: str
    domain: str
    boxes: tuple[Box, ...]
    margin: float
    keys: dict[Box | None, str]

    @property
    def main(self) -> str:
        """Key of the image that knows the scan area."""
        return next(iter(self.keys.values()))


@dataclass(frozen=True)
class _Task:
    file: str
    plan: _Plan
    output: str


def _plan(good: pd.DataFrame, regions: pd.DataFrame, margin: float) -> list[_Plan]:
    code = source_of("crop", "images")
    boxes: dict[str, list[Box]] = {}
    for path, box in zip(regions["path"].tolist(), _boxes(regions), strict=True):
        boxes.setdefault(path, []).append(box)
    plans = []
    for path, local, sha256, domain in zip(
        *(good[column].tolist() for column in ("path", "local_path", "sha256", "domain")), strict=True
    ):
        mine = tuple(boxes.get(path, ()))
        # a file that came in cropped is its own region, without margin
        wanted: list[Box | None] = [*mine] if domain == "cropped" else [None, *mine]
        keys = {
            box: f"{stem(path)}-{hashlib.sha256(f'{code} {sha256} {domain} {box} {margin if box else 0}'.encode()).hexdigest()[:16]}"
            for box in wanted
        }
        plans.append(_Plan(path, local, sha256, domain, mine, margin, keys))
    return plans


def _boxes(regions: pd.DataFrame) -> list[Box]:
    return [tuple(box) for box in regions[["x", "y", "width", "height"]].astype(int).to_numpy().tolist()]


class _Image(NamedTuple):
    """An image that was made, and the scan area that was found on the way."""

    file: str
    sha256: str
    area_x: int
    area_y: int
    area_width: int
    area_height: int
    found: bool


def _images(table: pd.DataFrame) -> dict[str, _Image]:
    """The store's table of images by key."""
    if table.empty:
        return {}
    columns = (table[column].tolist() for column in _Image._fields)
    return dict(zip(table["key"].tolist(), map(_Image, *columns), strict=True))


def _whole(folder: Path, have: Mapping[str, _Image], planned: Sequence[_Plan]) -> dict[str, _Image]:
    """The images of `planned` that are there as they were written; damaged ones are forgotten, and so made again."""

    def is_whole(image: _Image) -> bool:
        try:
            return hashlib.sha256((folder / image.file).read_bytes()).hexdigest() == image.sha256
        except OSError:
            return False

    mine = {key: have[key] for one in planned for key in one.keys.values() if key in have}
    with ThreadPoolExecutor(cores.available()) as pool:
        whole = dict(zip(mine, pool.map(is_whole, mine.values()), strict=True))
    if damaged := [mine[key].file for key in mine if not whole[key]]:
        print(f"{len(damaged)} images in {folder} are damaged and made again, the first is {damaged[0]}", flush=True)
    return {key: image for key, image in mine.items() if whole[key]}


def _each(tasks: Sequence[_Task]) -> Iterator[dict[str, _Image] | str]:
    if len(tasks) <= _CHUNK:
        yield from map(_crop_file, tasks)
        return
    with workers.pool() as pool:
        yield from pool.map(_crop_file, tasks, chunksize=_CHUNK)


def _crop_file(task: _Task) -> dict[str, _Image] | str:
    """The images that were made of a scan, by key; the reason if it cannot be used any more."""
    plan = task.plan
    try:
        data = images.read(task.file)
        if hashlib.sha256(data).hexdigest() != plan.sha256:
            if plan.path == plan.local_path:
                raise ValueError("file changed since ingest")
            Path(task.file).unlink()  # a copy of ours
            raise ValueError("its copy was damaged; the next run takes another one from where the scans are")
        frame = images.decode(data, formats=images.SERVED)
        pictures = _pictures(plan, frame)
    except FileNotFoundError:
        return "file vanished since ingest"
    except Exception as error:  # one file never ends a run
        return errors.one_line(error)
    return {key: _write(task.output, *picture) for key, picture in pictures.items()}


def _pictures(plan: _Plan, frame: images.Pixels) -> dict[str, tuple[str, images.Pixels, ScanArea]]:
    """Name, pixels and scan area of the images that are made of a frame, by key."""
    if plan.domain == "cropped":
        whole = ScanArea(np.ones(frame.shape[:2], np.uint8), (0, 0, 0, 0), True)
        letterboxed = images.letterbox(frame, max(frame.shape[:2]))
        return {key: (f"cropped/{key}.jpg", letterboxed, whole) for key in plan.keys.values()}
    area = scan_area(frame)
    return {
        key: (f"normal/{key}.jpg", normal(frame, area), area)
        if box is None
        else (f"cropped/{key}.jpg", region(frame, box, area, plan.margin), area)
        for box, key in plan.keys.items()
    }


def _write(output: str, file: str, image: images.Pixels, area: ScanArea) -> _Image:
    """Write an image whole or not at all."""
    data = images.encode(image)
    target = Path(output, file)
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    temporary.write_bytes(data)
    temporary.replace(target)
    return _Image(file, hashlib.sha256(data).hexdigest(), *area.box, area.found)


def _filled(
    scans: pd.DataFrame,
    regions: pd.DataFrame,
    planned: Sequence[_Plan],
    have: dict[str, _Image],
    lost: dict[str, str],
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The tables with the images in them; lost scans are quarantined and their regions left out."""
    there = [one for one in planned if one.path not in lost]
    paths = [one.path for one in there]
    mains = pd.DataFrame([have[one.main] for one in there], paths, columns=_Image._fields)
    whole = mains[[one.domain == "normal" for one in there]]
    for column, values, kind in (
        ("normal_path", whole["file"], "string"),
        ("normal_sha256", whole["sha256"], "string"),
        *((column, mains[column], "Int64") for column in _AREA),
    ):
        scans[column] = scans["path"].map(values).astype(kind)
    scans["quarantine_reason"] = scans["quarantine_reason"].fillna(scans["path"].map(lost).astype("string"))
    regions = regions[~regions["path"].isin(lost)].reset_index(drop=True)
    by_path = {one.path: one for one in there}
    crops = [have[by_path[path].keys[box]] for path, box in zip(regions["path"].tolist(), _boxes(regions), strict=True)]
    regions["crop_path"] = pd.Series([one.file for one in crops], regions.index, "string")
    regions["crop_sha256"] = pd.Series([one.sha256 for one in crops], regions.index, "string")
    return scans, regions


@errors.command
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m thyroid.crop", description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="data version of thyroid.ingest")
    parser.add_argument("--output", type=Path, required=True, help="folder of the new data version")
    parser.add_argument("--domains", type=lambda s: [d for d in s.split(",") if d], default=(), help="normal,cropped")
    parser.add_argument("--margin", type=float, default=MARGIN, help="share of a region's sides to widen it by")
    parser.add_argument("--store", help="folder that outlives the run: images that are there are not made again")
    crop(**vars(parser.parse_args(argv)))


if __name__ == "__main__":
    raise SystemExit(main())
