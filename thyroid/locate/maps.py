"""The feature maps of every frame in several views, computed once and kept.

The body is frozen, so a frame's maps never change. Those of an earlier run are found again by the checksum of the
frame's image, so that a run computes only those of new frames.
"""

import contextlib
import hashlib
import json
import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thyroid import locks, progress
from thyroid.atomic import replacing
from thyroid.data.version import MEMORY_BUDGET, DataVersion, allocate
from thyroid.errors import InputError
from thyroid.imaging import images
from thyroid.locate import frames
from thyroid.locate.frames import Frames
from thyroid.model import locator_network
from thyroid.model.artefact import sha256
from thyroid.model.locator_network import Body, Projection
from thyroid.train import checkpoints

log = logging.getLogger(__name__)

CODE = 1
"""Version of the views (`frames.augment`) and of the maps. Raise it when they change."""
_SAMPLED_FRAMES, _SAMPLED_CELLS = 60, 120
_BATCH = 16
_PROJECTION = "projection.npz"
KEPT_DAYS = 30
"""Days that the maps of a frame are kept after their last use."""


@dataclass(frozen=True)
class Extractor:
    """Computes feature maps.

    Attributes:
        network: Keras model from uint8 [n, size, size, 3] to maps [n, g, g, channels].
        folder: Folder in which the maps of every frame are kept.
        mark: Digest of the projection, which is part of the files' names.
        views: Number of views per frame; the first one is the frame as it is.
        seed: Seed of the views.
    """

    network: Any
    folder: Path
    mark: str
    views: int
    seed: int

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
            InputError: An image is missing or changed, or the maps are not finite.
        """
        out = allocate((self.views, len(wanted), self.cells, self.cells, self.channels), np.float16, MEMORY_BUDGET // 4)
        names = wanted.table["sha256"].tolist()
        new = [place for place, name in enumerate(names) if not self._load(name, out[:, place])]
        self._forget(set(names))
        step = max(1, _BATCH // self.views)
        with progress.bar(None, len(new), f"{self.network.name} maps", "frame") as bar:
            for start in range(0, len(new), step):
                some = new[start : start + step]
                pixels = images.rgb(data.pixels(wanted.table.iloc[some], wanted.size))
                for place, image in zip(some, pixels, strict=True):
                    out[:, place] = self._compute(image, names[place])
                    self._save(names[place], out[:, place])
                bar.update(len(some))
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

    def _forget(self, names: set[str]) -> None:
        """Remove the maps that no run has used for `KEPT_DAYS`: another cohort may share the folder."""
        os.utime(self.folder)  # retention asks when the folder was last used
        oldest = time.time() - KEPT_DAYS * 86_400
        used = {self._file(name) for name in names}
        for file in self.folder.glob("*.npy"):
            with contextlib.suppress(FileNotFoundError):  # another run may have removed it
                if file in used:
                    os.utime(file)
                elif file.stat().st_mtime < oldest:
                    file.unlink()


def prepare(
    body: Body, start: str | Path | None, work: Path, data: DataVersion, training: Frames, *, views: int, seed: int
) -> Extractor:
    """Build the frozen part of a locator, with the projection of an earlier run or a new one.

    The projection knows no label. It is fitted on some frames of the training part and kept with the maps, so that the
    maps of earlier runs stay valid.

    Args:
        body: The body.
        start: Its weights.
        work: Folder that outlives the process.
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
    folder = work / f"locate-maps-{digest}"
    folder.mkdir(parents=True, exist_ok=True)
    taps = locator_network.build_taps(body, training.size, start, seed)
    with locks.held(folder / "projection.lock"):  # two runs must not fit two
        projection = _read_projection(folder / _PROJECTION, len(taps.outputs))
        if projection is None:
            projection = _fit_projection(taps, data, training, seed)
            pairs = enumerate(projection)
            arrays = {f"{kind}{n}": one[i] for n, one in pairs for i, kind in enumerate(("kernel", "bias"))}
            checkpoints.save(folder / _PROJECTION, **arrays)
    mark = hashlib.sha256(b"".join(array.tobytes() for pair in projection for array in pair)).hexdigest()[:8]
    return Extractor(locator_network.with_projection(taps, projection), folder, mark, views, seed)


def _read_projection(path: Path, taps: int) -> Projection | None:
    arrays = checkpoints.load(path)
    if arrays is None or len(arrays) != 2 * taps:
        return None
    return [(arrays[f"kernel{number}"], arrays[f"bias{number}"]) for number in range(taps)]


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
