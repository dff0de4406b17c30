"""Make the images that are planned (see `crops`): both domains, re-encoded without metadata."""

import contextlib
import functools
import hashlib
import itertools
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from thyroid import cores, errors, progress, storage, workers
from thyroid.atomic import replacing
from thyroid.data.crops import Cut, Planned
from thyroid.data.store import CROPPED_PIECES, Store
from thyroid.imaging import images
from thyroid.imaging.geometry import ScanArea, normal, region, scan_area
from thyroid.storage import mirror

log = logging.getLogger("thyroid.crop")

BATCH = 2000
"""Largest number of scans whose images are made before they are handed on."""
_CHUNK = 32
_DAMAGED = "its copy was damaged; the next run copies it from the source again"


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


class Image(NamedTuple):
    """An image that was made, with the scan area that was found on the way."""

    file: str
    sha256: str
    area_x: int
    area_y: int
    area_width: int
    area_height: int
    found: bool


@dataclass(frozen=True)
class Made:
    """The images of a data version.

    Attributes:
        images: Every image by its key, those that existed before included.
        lost: Why a scan can no longer be used, by its path.
        scans: Number of scans that had to be cropped.
    """

    images: Mapping[str, Image]
    lost: Mapping[str, str]
    scans: int


def make(data: Path, planned: Sequence[Planned], folder: Path, store: Store | None) -> Made:
    """Make all images that are planned, except those that the store has.

    Args:
        data: Folder of the data version that the scans' paths are relative to.
        planned: The images to make.
        folder: Folder of the images.
        store: Store whose images are used, and that keeps the new ones; None for none.
    """
    existing = {} if store is None else known(store, planned)
    todo = missing(planned, existing)
    made: dict[str, Image] = {}
    lost: dict[str, str] = {}
    for batch in batches(data, todo, folder):
        made |= batch.images
        lost |= batch.lost
    if store is not None and (made or len(store.pieces(CROPPED_PIECES)) or store.is_doubted()):
        store.add_cropped(rows(made, planned[0].cut))
    return Made(existing | made, lost, len(todo))


def known(store: Store, planned: Sequence[Planned]) -> dict[str, Image]:
    """Return the images of a plan that the store has, by key.

    In a folder they are compared with their checksums. In a bucket whoever reads an image compares it (see
    `mirror.read`).
    """
    table = _images(store.cropped())
    if storage.is_bucket(store.address):
        return {key: table[key] for plan in planned for key in plan.keys.values() if key in table}
    return _whole(store.crops, table, planned)


def missing(planned: Sequence[Planned], existing: Collection[str]) -> list[Planned]:
    """Return the scans some of whose images do not exist, given the keys of those that do."""
    return [plan for plan in planned if not all(key in existing for key in plan.keys.values())]


def rows(made: Mapping[str, Image], cut: Cut) -> pd.DataFrame:
    """Return the rows that a store's table of images has for new images, which are given by key."""
    table = pd.DataFrame(made.values(), columns=Image._fields)
    return table.assign(key=list(made), margin=cut.margin, jitter=cut.jitter)


def batches(data: Path, planned: Sequence[Planned], folder: Path) -> Iterator[Made]:
    """Make images, and yield them at most `BATCH` scans at a time.

    Scans in a bucket are fetched a batch at a time, and images whose folder is in the mirror are sent to the bucket.

    Args:
        data: Folder of the data version that the scans' paths are relative to.
        planned: The images to make.
        folder: Folder of the images.
    """
    tasks = [_Task(str(data / mirror.local(plan.local_path)), plan, str(folder)) for plan in planned]
    done = zip(tasks, progress.bar(_each(tasks), len(tasks), "crop", "scan"), strict=True)
    while batch := list(itertools.islice(done, BATCH)):
        lost = {task.plan.path: result for task, result in batch if isinstance(result, str)}
        mirror.remove(task.scan_path for task, result in batch if result == _DAMAGED)
        made = {key: image for _, result in batch if not isinstance(result, str) for key, image in result.items()}
        mirror.send(folder / image.file for image in made.values())
        yield Made(made, lost, len(batch))


def _images(table: pd.DataFrame) -> dict[str, Image]:
    """Return the rows of the store's table of images by key."""
    if table.empty:
        return {}
    columns = (table[column].tolist() for column in Image._fields)
    return dict(zip(table["key"].tolist(), map(Image, *columns), strict=True))


def _whole(folder: Path, known: Mapping[str, Image], planned: Sequence[Planned]) -> dict[str, Image]:
    """Return the images of `planned` that are on disk exactly as they were written.

    Damaged images are left out, so that they are made again.
    """

    def is_whole(image: Image) -> bool:
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


def _each(tasks: Sequence[_Task]) -> Iterator[dict[str, Image] | str]:
    with contextlib.ExitStack() as stack:
        run: Callable[..., Iterator[dict[str, Image] | str]] = map
        if len(tasks) > _CHUNK:
            run = functools.partial(stack.enter_context(workers.pool()).map, chunksize=_CHUNK)
        if not any(storage.is_bucket(task.plan.local_path) for task in tasks):
            yield from run(_crop_file, tasks)
            return
        for start in range(0, len(tasks), BATCH):
            batch = tasks[start : start + BATCH]
            brought = mirror.fetch((task.scan_path for task in batch), "fetch frames", missing_ok=True)
            yield from run(_crop_file, batch)
            for path in brought:  # so that a large set needs no large disk
                path.unlink(missing_ok=True)


def _crop_file(task: _Task) -> dict[str, Image] | str:
    """Make the images of one scan and return them by key, or the reason why the scan can no longer be used."""
    plan = task.plan
    try:
        data = images.read(task.scan_path)
        if hashlib.sha256(data).hexdigest() != plan.sha256:
            if plan.path == plan.local_path:
                raise ValueError("file changed since ingest")
            return _DAMAGED
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


def _write(output: str, file: str, image: images.Pixels, area: ScanArea) -> Image:
    """Write an image atomically and return its description."""
    data = images.encode(image)
    target = Path(output, file)
    with replacing(target, durable=False) as temporary:
        temporary.write_bytes(data)
    return Image(file, hashlib.sha256(data).hexdigest(), *area.box, area.found)
