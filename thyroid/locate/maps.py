"""The feature maps of every frame in several views, computed once and kept.

The body is frozen, so a frame's maps never change. Those of an earlier run are found again by the checksum of the
frame's image, so that a run computes only those of new frames. Of a folder in a bucket, the files are fetched and sent
by way of the node's cache.
"""

import contextlib
import hashlib
import io
import json
import logging
import os
import time
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thyroid import locks, progress, storage
from thyroid.atomic import replacing
from thyroid.data.version import MEMORY_BUDGET, DataVersion, allocate
from thyroid.errors import InputError
from thyroid.imaging import images
from thyroid.locate import frames
from thyroid.locate.frames import Frames
from thyroid.model import locator_network
from thyroid.model.artefact import sha256
from thyroid.model.locator_network import Body, Projection
from thyroid.storage import backup, mirror

log = logging.getLogger(__name__)

CODE = 1
"""Version of the views (`frames.augment`) and of the maps. Raise it when they change."""
_SAMPLED_FRAMES, _SAMPLED_CELLS = 60, 120
_BATCH = 16
_PROJECTION = "projection.npz"
_FETCHED = 1024  # frames whose maps are fetched from a bucket at a time
KEPT_DAYS = 30
"""Days that the maps of a frame are kept after their last use, and in a bucket at least after they were computed."""
USED = "used"
"""Name of an empty object that every run writes anew in a bucket: its date is that of the last use."""


@dataclass(frozen=True)
class Extractor:
    """Computes feature maps.

    Attributes:
        network: Keras model from uint8 [n, size, size, 3] to maps [n, g, g, channels].
        place: Folder, or address in a bucket, in which the maps of every frame are kept.
        mark: Digest of the projection, which is part of the files' names.
        views: Number of views per frame; the first one is the frame as it is.
        seed: Seed of the views.
    """

    network: Any
    place: storage.Location
    mark: str
    views: int
    seed: int

    @property
    def folder(self) -> Path:
        """The folder of the maps, for a bucket the one in the node's cache."""
        return mirror.mirror(self.place)

    @property
    def cells(self) -> int:
        """Side of the maps."""
        return int(self.network.output_shape[1])

    @property
    def channels(self) -> int:
        """Channels of the maps."""
        return int(self.network.output_shape[-1])

    def __call__(self, data: DataVersion, wanted: Frames) -> tuple[NDArray[np.float16], int]:
        """Return the maps of frames, and the number of frames whose maps were there already.

        Args:
            data: Data version of the frames.
            wanted: The frames.

        Returns:
            float16 [views, n, g, g, channels], and the number of frames.

        Raises:
            InputError: An image is missing or changed, the maps are not finite, or a bucket cannot be read.
        """
        out = allocate((self.views, len(wanted), self.cells, self.cells, self.channels), np.float16, MEMORY_BUDGET // 4)
        names = wanted.table["sha256"].tolist()
        kept = self._listed()
        new = []
        for start in range(0, len(names), _FETCHED):
            some = names[start : start + _FETCHED]
            self._fetch(some, kept)
            new += [place for place, name in enumerate(some, start) if not self._load(name, out[:, place])]
        self._forget(set(names), kept)
        step = max(1, _BATCH // self.views)
        with (
            backup.sending(self.folder, kept),
            progress.bar(None, len(new), f"{self.network.name} maps", "frame") as bar,
        ):
            for start in range(0, len(new), step):
                batch = new[start : start + step]
                pixels = images.rgb(data.pixels(wanted.table.iloc[batch], wanted.size))
                for place, image in zip(batch, pixels, strict=True):
                    out[:, place] = self._compute(image, names[place])
                    self._save(names[place], out[:, place])
                bar.update(len(batch))
        return out, len(wanted) - len(new)

    def plain(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the maps of images as they are, uint8 [n, size, size, 3] to float32 [n, g, g, channels]."""
        result: NDArray[np.float32] = self.network.predict(pixels, batch_size=_BATCH, verbose=0)
        return result

    def _compute(self, image: NDArray[np.uint8], name: str) -> NDArray[np.float16]:
        shown = [image]
        for number in range(1, self.views):
            rng = np.random.default_rng(frames.seed_of(name, number, self.seed))
            shown.append(frames.augment(image, frames.augmentation(rng, image.shape[0]), rng))
        maps = self.network.predict_on_batch(np.stack(shown))
        if not np.isfinite(maps).all():
            raise InputError(f"{self.network.name}: its feature maps are not finite numbers; check the weights")
        half = np.finfo(np.float16).max
        result: NDArray[np.float16] = np.clip(maps, -half, half).astype(np.float16)
        return result

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}-{self.mark}.npy"

    def _load(self, name: str, out: NDArray[np.float16]) -> bool:
        """Read a frame's maps into `out`, and return whether they were there and whole."""
        try:
            found = np.load(self._file(name))
        except (OSError, ValueError, EOFError):
            return False
        if found.shape != out.shape or found.dtype != out.dtype:
            return False
        out[:] = found
        return True

    def _save(self, name: str, maps: NDArray[np.float16]) -> None:
        with replacing(self._file(name), durable=False) as temporary, temporary.open("wb") as file:
            np.save(file, maps)

    def _listed(self) -> dict[str, storage.Entry]:
        """Return what a bucket has by name, and nothing for a folder."""
        bucket = storage.at(self.place)
        return {entry.name: entry for entry in bucket.entries()} if isinstance(bucket, storage.Bucket) else {}

    def _fetch(self, names: list[str], kept: Mapping[str, storage.Entry]) -> None:
        """Download the maps of frames that the bucket has and the cache has not."""
        files = [file for name in names if (file := self._file(name)).name in kept and not file.exists()]
        bucket = storage.at(self.place)
        if files and isinstance(bucket, storage.Bucket):
            for _ in bucket.download([(kept[file.name], file) for file in files], f"{self.network.name} maps"):
                pass  # maps that another run has removed in the meantime are computed again

    def _forget(self, names: set[str], kept: Mapping[str, storage.Entry]) -> None:
        """Remove the maps that no run has used for `KEPT_DAYS`: another cohort may share the folder."""
        os.utime(self.folder)  # retention asks when the folder was last used
        oldest = time.time() - KEPT_DAYS * 86_400
        used = {self._file(name) for name in names}
        bucket = storage.at(self.place)
        if isinstance(bucket, storage.Bucket):
            bucket.write(USED, b"")
            unused = kept.keys() - {file.name for file in used}
            bucket.delete([name for name in unused if name.endswith(".npy") and kept[name].modified < oldest])
        for file in self.folder.glob("*.npy"):
            with contextlib.suppress(FileNotFoundError):  # another run may have removed it
                if file in used:
                    os.utime(file)
                elif file.stat().st_mtime < oldest:
                    file.unlink()


def prepare(
    body: Body,
    start: str | Path | None,
    work: storage.Location,
    data: DataVersion,
    training: Frames,
    *,
    views: int,
    seed: int,
) -> Extractor:
    """Build the frozen part of a locator, with the projection of an earlier run or a new one.

    The projection knows no label. It is fitted on some frames of the training part and kept with the maps, so that the
    maps of earlier runs stay valid.

    Args:
        body: The body.
        start: Its weights.
        work: Folder, or address in a bucket, that outlives the process.
        data: Data version of the frames.
        training: Frames of the training part.
        views: Number of views per frame.
        seed: Seed of the toy's weights, of the sample and of the views.

    Raises:
        InputError: The weights do not fit or cannot be fetched, or an image is missing or changed.
    """
    weights = sha256(start) if isinstance(start, Path) else start
    content = [CODE, body.name, weights, training.size, views, seed, locator_network.STRIDE]
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
    place = storage.below(work, f"locate-maps-{digest}")
    home = storage.at(place)
    taps = locator_network.build_taps(body, training.size, start, seed)
    with locks.held(mirror.mirror(place) / "projection.lock"):
        found, generation = home.read(_PROJECTION)
        projection = _parse(found, len(taps.outputs))
        if projection is None:
            projection = _fit_projection(taps, data, training, seed)
            try:
                home.write(_PROJECTION, _packed(projection), generation)
            except storage.ChangedError:  # a run on another node was faster, and maps of two projections do not fit
                projection = _parse(home.read(_PROJECTION)[0], len(taps.outputs)) or projection
    mark = hashlib.sha256(b"".join(array.tobytes() for pair in projection for array in pair)).hexdigest()[:8]
    return Extractor(locator_network.with_projection(taps, projection), place, mark, views, seed)


def _packed(projection: Projection) -> bytes:
    file = io.BytesIO()
    arrays = {f"{kind}{n}": pair[i] for n, pair in enumerate(projection) for i, kind in enumerate(("kernel", "bias"))}
    np.savez(file, **arrays)  # type: ignore[arg-type]
    return file.getvalue()


def _parse(content: bytes, taps: int) -> Projection | None:
    """Return the projection of a file's content; None if there is none or it is damaged."""
    try:
        with np.load(io.BytesIO(content)) as arrays:
            return [(arrays[f"kernel{number}"], arrays[f"bias{number}"]) for number in range(taps)]
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile):
        return None


def _fit_projection(taps: Any, data: DataVersion, training: Frames, seed: int) -> Projection:
    """Fit the projection on random cells of random frames of the training part."""
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.permutation(len(training))[:_SAMPLED_FRAMES])
    pixels = images.rgb(data.pixels(training.table.iloc[chosen], training.size))
    maps = taps.predict(pixels, batch_size=_BATCH, verbose=0)
    samples = []
    for one in maps:
        cells = one.reshape(-1, one.shape[-1])
        count = min(len(cells), max(_SAMPLED_CELLS * len(chosen), 2 * one.shape[-1]))
        samples.append(cells[rng.choice(len(cells), count, replace=False)])
    return locator_network.fit_projection(samples)
