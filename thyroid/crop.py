"""Make the images of both domains: `normal` (scan area, scanner frame blanked) and `cropped` (one square per region).

With a store, images are kept there from run to run, and only missing ones are made.

python -m thyroid.crop --data DIR --output DIR
"""

import hashlib
import logging
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import pandas as pd

from thyroid import command, cores, errors, progress, storage, workers
from thyroid.atomic import replacing
from thyroid.command import COMMAS, FLAT, NOT_AN_OPTION
from thyroid.data import crops, tables
from thyroid.data.crops import Cut, Planned
from thyroid.data.store import Store
from thyroid.data.version import DataVersion
from thyroid.errors import InputError
from thyroid.imaging import images
from thyroid.imaging.geometry import ScanArea, normal, region, scan_area
from thyroid.records.data import DataRecord

log = logging.getLogger("thyroid.crop")

_CHUNK = 32


@dataclass(frozen=True)
class Cropped:
    """A data version with its images: its folder and its facts (the content of data.json)."""

    folder: Path
    facts: DataRecord


@dataclass(frozen=True)
class CropOptions:
    """Which images are made, and how.

    Attributes:
        domains: Domains that will be trained, such as normal,cropped. If empty, cropped is used where there are
            regions, else normal.
        store: Folder that outlives the run and keeps the images: those in it are not made again. If empty, the images
            are written to normal/ and cropped/ in the output.
        margin: Share of a region's sides to widen it by, 0 to 2.
        jitter: Multiple of a locator's errors, 0 to 2, by which a second crop of every training region is
            disturbed. Half of what a model learns from are such crops, so that it can be used with automatic boxes. 0
            makes none.
        splits: Splits whose scans are wanted. The files of other splits are not even opened.

    Raises:
        InputError: Margin or jitter is out of range.
    """

    domains: Annotated[Sequence[str], COMMAS] = ()
    store: storage.Location = ""
    margin: float = Cut.margin
    jitter: float = Cut.jitter
    splits: Annotated[Sequence[str], NOT_AN_OPTION] = tables.SPLITS

    def __post_init__(self) -> None:
        """Check the numbers."""
        for name, value in (("margin", self.margin), ("jitter", self.jitter)):
            if not 0 <= value <= 2:
                raise InputError(f"{name} {value:g}: must be between 0 and 2")


def crop(data: Path, output: Path, options: CropOptions = CropOptions()) -> Cropped:
    """Make every image of both domains, re-encoded without metadata, and the tables that name them.

    Args:
        data: Folder of a data version written by `ingest`.
        output: Folder of the new data version.
        options: Which images are made, and how.

    Returns:
        Folder and facts of the new data version.

    Raises:
        InputError: The data version is damaged, a domain is unknown, the cropped domain is requested without any
            region, or a split has no image of a class left.
    """
    started = time.monotonic()
    version = _read(data, options.splits)
    scans, regions, facts = version.scans, version.regions, version.facts
    domains = resolve_domains(options.domains, has_regions=len(regions) > 0)
    store = Store(options.store) if options.store else None
    images_folder = output if store is None else store.crops
    for domain in tables.DOMAINS:
        (images_folder / domain).mkdir(parents=True, exist_ok=True)
    output.mkdir(parents=True, exist_ok=True)

    planned = crops.plan(version.used, regions, Cut(options.margin, options.jitter))
    made = _make(data, planned, images_folder, store)
    scans, regions = _filled(scans, regions, planned, made)
    quarantine = pd.DataFrame(list(made.lost.items()), columns=["file", "reason"])
    tables.write_quarantine(output / tables.QUARANTINE, pd.concat([tables.read_quarantine(data, facts), quarantine]))
    changed = {
        "splits": tables.count_splits(tables.used(scans), facts.classes),
        "quarantined": facts.quarantined + len(made.lost),
        "domains": list(domains),
        "margin": options.margin,
        "jitter": options.jitter,
        **_count(scans, regions, planned, made),
        "seconds": facts.seconds | {"crop": round(time.monotonic() - started, 1)},
    }
    if store is not None:
        changed["images"] = str(images_folder)
    for domain in domains:
        _require_examples(scans, regions, domain, options.splits)
    shutil.copy(data / "statistics.png", output)
    from thyroid.data import plots  # only this line needs Matplotlib

    plots.crop_sheet(scans, regions, images_folder, output / "crops.png")
    facts = tables.write(output, scans, regions, facts.model_copy(update=changed))
    _report(scans, facts, made, len(planned), output)
    return Cropped(output, facts)


def resolve_domains(domains: Sequence[str], has_regions: bool) -> tuple[str, ...]:
    """Return the domains to train: those requested, else cropped if there are regions, else normal.

    Raises:
        InputError: A domain is unknown, or cropped is requested without any region.
    """
    unknown = [d for d in domains if d not in tables.DOMAINS]
    if unknown:
        raise InputError(f"domain {unknown[0]!r} is unknown; choose from {', '.join(tables.DOMAINS)}")
    if "cropped" in domains and not has_regions:
        raise InputError(
            "the cropped domain needs regions, but there are none: give them with --rois rois.csv, provide crops with "
            "--crops DIR, or train on whole frames with --domains normal"
        )
    return tuple(dict.fromkeys(domains)) or (("cropped",) if has_regions else ("normal",))


def _require_examples(scans: pd.DataFrame, regions: pd.DataFrame, domain: str, splits: Sequence[str]) -> None:
    """Raise InputError if a split has no image of a class in this domain."""
    have = tables.examples_of(scans, regions, domain).groupby(["split", "class"]).size()
    for split in splits:
        for name in sorted(tables.used(scans)["class"].unique()):
            if (split, name) not in have.index:
                raise InputError(
                    f"the {domain} domain has no image of class {name} in the {split} split: add regions or scans"
                )


def _read(data: Path, splits: Sequence[str]) -> DataVersion:
    """Read a data version, and keep only the scans of some splits."""
    version = DataVersion.read(data)
    if set(splits) == set(tables.SPLITS):
        return version
    scans = version.scans[version.scans["split"].isin(splits)].reset_index(drop=True)
    regions = version.regions[version.regions["path"].isin(scans["path"])].reset_index(drop=True)
    return replace(version, scans=scans, regions=regions)


def _count(scans: pd.DataFrame, regions: pd.DataFrame, planned: Sequence[Planned], made: "_Made") -> dict[str, Any]:
    """Return the facts that follow from the tables and the images."""
    used = tables.used(scans)
    frames = used[used["domain"] == "normal"]
    kept = [plan for plan in planned if plan.path not in made.lost]
    return {
        "digest": tables.digest(scans, regions),
        "scans": len(used),
        "patients": int(used["patient"].nunique()),
        "regions": len(regions),
        "without_region": int((~frames["path"].isin(regions["path"])).sum()),
        "scan_area_not_found": sum(1 for plan in kept if not made.images[plan.main].found),
        "cropped": made.scans,
    }


def _report(scans: pd.DataFrame, facts: DataRecord, made: "_Made", planned: int, output: Path) -> None:
    """Log what was made of `planned` scans."""
    used = tables.used(scans)
    log.info(
        f"normal: {(used['domain'] == 'normal').sum()} frames; cropped: {facts.regions} regions; "
        f"{facts.without_region} frames without a region stay in normal only; scan area not found in "
        f"{facts.scan_area_not_found}"
    )
    if made.scans < planned:
        log.info(f"{made.scans} of {planned} scans were cropped; the images of the others already exist")
    if made.lost:
        log.info(f"quarantined since ingest: {len(made.lost)}, see {output / tables.QUARANTINE}")


@dataclass(frozen=True)
class _Task:
    """A scan of which images are made.

    Attributes:
        scan_path: Where its bytes are.
        plan: The images to make.
        output: Folder of the images.
    """

    scan_path: str
    plan: Planned
    output: str


class _Image(NamedTuple):
    """An image that was made, with the scan area that was found on the way."""

    file: str
    sha256: str
    area_x: int
    area_y: int
    area_width: int
    area_height: int
    found: bool


@dataclass(frozen=True)
class _Made:
    """The images of a data version.

    Attributes:
        images: Every image by its key, those that existed before included.
        lost: Why a scan can no longer be used, by its path.
        scans: Number of scans that had to be cropped.
    """

    images: Mapping[str, _Image]
    lost: Mapping[str, str]
    scans: int


def _make(data: Path, planned: Sequence[Planned], folder: Path, store: Store | None) -> _Made:
    """Make all images that are planned, except those that the store has.

    Args:
        data: Folder of the data version that the scans' paths are relative to.
        planned: The images to make.
        folder: Folder of the images.
        store: Store whose images are used, and that keeps the new ones; None for none.
    """
    existing = {} if store is None else _whole(folder, _images(store.cropped()), planned)
    todo = [plan for plan in planned if not all(key in existing for key in plan.keys.values())]
    tasks = [_Task(str(data / plan.local_path), plan, str(folder)) for plan in todo]
    made: dict[str, _Image] = {}
    lost: dict[str, str] = {}
    for task, done in zip(tasks, progress.bar(_each(tasks), len(tasks), "crop", "scan"), strict=True):
        if isinstance(done, str):
            lost[task.plan.path] = done
        else:
            made |= done
    if store is not None and made:
        rows = pd.DataFrame(made.values(), columns=_Image._fields)
        store.add_cropped(rows.assign(key=list(made), margin=todo[0].cut.margin, jitter=todo[0].cut.jitter))
    return _Made(existing | made, lost, len(todo))


def _images(table: pd.DataFrame) -> dict[str, _Image]:
    """Return the rows of the store's table of images by key."""
    if table.empty:
        return {}
    columns = (table[column].tolist() for column in _Image._fields)
    return dict(zip(table["key"].tolist(), map(_Image, *columns), strict=True))


def _whole(folder: Path, known: Mapping[str, _Image], planned: Sequence[Planned]) -> dict[str, _Image]:
    """Return the images of `planned` that are on disk exactly as they were written.

    Damaged images are left out, so that they are made again.
    """

    def is_whole(image: _Image) -> bool:
        try:
            return hashlib.sha256((folder / image.file).read_bytes()).hexdigest() == image.sha256
        except OSError:
            return False

    images_by_key = {key: known[key] for plan in planned for key in plan.keys.values() if key in known}
    with ThreadPoolExecutor(cores.available()) as pool:
        whole = dict(zip(images_by_key, pool.map(is_whole, images_by_key.values()), strict=True))
    if damaged := [image.file for key, image in images_by_key.items() if not whole[key]]:
        log.info(f"{len(damaged)} images in {folder} are damaged and will be recreated; the first is {damaged[0]}")
    return {key: image for key, image in images_by_key.items() if whole[key]}


def _each(tasks: Sequence[_Task]) -> Iterator[dict[str, _Image] | str]:
    if len(tasks) <= _CHUNK:
        yield from map(_crop_file, tasks)
        return
    with workers.pool() as pool:
        yield from pool.map(_crop_file, tasks, chunksize=_CHUNK)


def _crop_file(task: _Task) -> dict[str, _Image] | str:
    """Make the images of one scan and return them by key, or the reason why the scan can no longer be used."""
    plan = task.plan
    try:
        data = images.read(task.scan_path)
        if hashlib.sha256(data).hexdigest() != plan.sha256:
            if plan.path == plan.local_path:
                raise ValueError("file changed since ingest")
            Path(task.scan_path).unlink()  # our own copy
            raise ValueError("its copy was damaged; the next run copies it from the source again")
        frame = images.decode(data, formats=images.SERVED)
        pictures = _pictures(plan, frame)
    except FileNotFoundError:
        return "file vanished since ingest"
    except Exception as error:  # one bad file must not end a run
        return errors.one_line(error)
    return {key: _write(task.output, *picture) for key, picture in pictures.items()}


def _pictures(plan: Planned, frame: images.Pixels) -> dict[str, tuple[str, images.Pixels, ScanArea]]:
    """Return file name, pixels and scan area of each image to be made of a frame, by key."""
    if plan.domain == "cropped":
        whole = ScanArea(np.ones(frame.shape[:2], np.uint8), (0, 0, 0, 0), True)
        letterboxed = images.letterbox(frame, max(frame.shape[:2]))
        return {key: (f"cropped/{key}.jpg", letterboxed, whole) for key in plan.keys.values()}
    area = scan_area(frame)
    return {
        key: (f"normal/{key}.jpg", normal(frame, area), area)
        if box is None
        else (f"cropped/{key}.jpg", region(frame, box, area, plan.cut.margin), area)
        for box, key in plan.keys.items()
    }


def _write(output: str, file: str, image: images.Pixels, area: ScanArea) -> _Image:
    """Write an image atomically and return its description."""
    data = images.encode(image)
    target = Path(output, file)
    with replacing(target, durable=False) as temporary:
        temporary.write_bytes(data)
    return _Image(file, hashlib.sha256(data).hexdigest(), *area.box, area.found)


def _filled(
    scans: pd.DataFrame, regions: pd.DataFrame, planned: Sequence[Planned], made: _Made
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return both tables with their images filled in.

    Lost scans are quarantined, and their regions are left out.
    """
    images, lost = made.images, made.lost
    kept = [plan for plan in planned if plan.path not in lost]
    paths = [plan.path for plan in kept]
    mains = pd.DataFrame([images[plan.main] for plan in kept], paths, columns=_Image._fields)
    frames = mains[[plan.domain == "normal" for plan in kept]]
    for column, values in (("normal_path", frames["file"]), ("normal_sha256", frames["sha256"])):
        scans[column] = scans["path"].map(values).astype("string")
    for column in tables.AREA:
        scans[column] = scans["path"].map(mains[column]).astype("Int64")
    scans["quarantine_reason"] = scans["quarantine_reason"].fillna(scans["path"].map(dict(lost)).astype("string"))
    regions = regions[~regions["path"].isin(lost)].reset_index(drop=True)
    by_path = {plan.path: plan for plan in kept}
    plans, boxes = [by_path[path] for path in regions["path"].tolist()], crops.boxes_of(regions)
    places = list(zip(plans, boxes, strict=True))
    for name, made_of in (
        ("crop", [images[plan.keys[box]] for plan, box in places]),
        ("jitter", [images[plan.keys[plan.jittered[box]]] if plan.jittered else None for plan, box in places]),
    ):
        files = [None if image is None else image.file for image in made_of]
        sums = [None if image is None else image.sha256 for image in made_of]
        regions[f"{name}_path"] = pd.Series(files, regions.index, "string")
        regions[f"{name}_sha256"] = pd.Series(sums, regions.index, "string")
    return scans, regions


def run(*, data: Path, output: Path, options: Annotated[CropOptions, FLAT] = CropOptions()) -> None:
    """Make the images of both domains: normal (scan area, scanner frame blanked) and cropped (a square per region).

    Args:
        data: Data version of thyroid.ingest.
        output: Folder of the new data version.
        options: Which images are made, and how.
    """
    crop(data, output, options)


main = command.main("python -m thyroid.crop", run)

if __name__ == "__main__":
    raise SystemExit(main())
