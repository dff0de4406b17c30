"""A data version in memory: its tables, read once, and its images, decoded once per size.

An image is verified against its checksum, decoded and letterboxed into one uint8 array. Arrays that exceed the memory
budget are in a temporary file that the system pages in.
"""

import hashlib
import math
import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from thyroid import cores, progress
from thyroid.data import tables
from thyroid.data.classes import Classes
from thyroid.errors import InputError
from thyroid.records.data import DataRecord
from thyroid.storage import mirror

MEMORY_BUDGET = 4_000_000_000
"""Arrays of up to this many bytes are held in memory, larger ones in a temporary file that the system pages in."""

_CHUNK = 16  # images per task of a thread
_HASHED_ROWS = 50_000
"""Rows whose texts are in memory as Python's at the same time. A row's hash does not depend on the others."""

Decode = Callable[[pd.DataFrame, int], NDArray[np.uint8]]
"""Type of `decode`, of `PixelCache` and of `DataVersion.pixels`: returns the images of a table at a size."""


class PixelCache:
    """Caches decoded images. An image is read only once at each size.

    Args:
        budget: Bytes that all cached images together may hold in memory. Images beyond it are in temporary files.
    """

    def __init__(self, budget: int = MEMORY_BUDGET) -> None:
        """Start with an empty cache."""
        self._budget = budget
        self._known: dict[tuple[int, str], NDArray[np.uint8]] = {}

    def __call__(self, table: pd.DataFrame, size: int) -> NDArray[np.uint8]:
        """Return the images of `table` as `decode` does, from the cache where they are known."""
        fresh = table[[(size, sha256) not in self._known for sha256 in table["sha256"]]].drop_duplicates("sha256")
        if len(fresh):
            read = decode(fresh, size, self._budget)
            self._budget = max(0, self._budget - read.nbytes)
            self._known |= {(size, sha256): image for sha256, image in zip(fresh["sha256"], read, strict=True)}
        rows = [self._known[size, sha256] for sha256 in table["sha256"]]
        out = allocate((len(rows), size, size, max(row.shape[-1] for row in rows)), np.uint8)
        for number, row in enumerate(rows):
            out[number] = row
        return out


@dataclass(frozen=True, eq=False)
class DataVersion:
    """One state of the scans' tables and images.

    Attributes:
        folder: Folder of the data version.
        scans: Table of scans, quarantined ones included; see `tables`.
        regions: Table of regions; see `tables`.
        facts: Content of data.json.
    """

    folder: Path
    scans: pd.DataFrame
    regions: pd.DataFrame
    facts: DataRecord
    _pixels: PixelCache = field(default_factory=PixelCache, repr=False)

    @classmethod
    def read(cls, folder: Path) -> "DataVersion":
        """Read the tables and the facts of the data version in `folder`.

        Raises:
            InputError: The folder is no whole data version.
        """
        return cls(folder, *tables.read(folder))

    @cached_property
    def used(self) -> pd.DataFrame:
        """Scans that are not quarantined."""
        return tables.used(self.scans)

    @cached_property
    def test_scans(self) -> pd.DataFrame:
        """Scans of the test split, with the column cohort, as `overlap.find` compares them with a model's scans."""
        return self.used[self.used["split"] == "test"].assign(cohort=self.facts.cohort)

    @cached_property
    def contents(self) -> pd.DataFrame:
        """What a model of this data version is made of; see `tables.contents`."""
        return tables.contents(self.scans, self.regions)

    @property
    def classes(self) -> Classes:
        """Classes of the scans."""
        return Classes.from_record(self.facts)

    @property
    def digest(self) -> str:
        """SHA-256 of the contents; see `tables.digest`."""
        return self.facts.digest

    @property
    def domains(self) -> list[str]:
        """Domains that the images were made for; the first one is the default.

        Raises:
            InputError: `crop` has not made the images yet.
        """
        if self.facts.domains is None:
            raise self._not_cropped()
        return self.facts.domains

    @property
    def margin(self) -> float:
        """Share of a region's own width and height by which its crop is wider on each side.

        Raises:
            InputError: `crop` has not made the images yet.
        """
        if self.facts.margin is None:
            raise self._not_cropped()
        return self.facts.margin

    @property
    def jitter(self) -> float:
        """Multiple of a locator's errors by which training crops are disturbed; 0 in data of older releases."""
        return self.facts.jitter or 0.0

    def _not_cropped(self) -> InputError:
        return InputError(f"{self.folder}: its images are not cropped yet; run `python -m thyroid.crop` first")

    @property
    def images(self) -> Path:
        """Folder that crop_path and normal_path are relative to: a store's, or the data version's own.

        Of a store in a bucket it is the copy in the mirror, which has the images that were fetched.
        """
        return mirror.mirror(self.facts.images or self.folder)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of everything that a later step reads from the tables.

        It covers splits, patients and paths as well as the content of the digest. Kubeflow's cache compares only
        parameters and names. Passed on as a parameter, the fingerprint keeps the cache from returning the result of
        other data.
        """
        digest = hashlib.sha256(self.digest.encode())
        for table in (self.scans.drop(columns="local_path"), self.regions):
            for start in range(0, len(table), _HASHED_ROWS):
                rows = table.iloc[start : start + _HASHED_ROWS]
                digest.update(pd.util.hash_pandas_object(rows, index=False).to_numpy().tobytes())
        return digest.hexdigest()

    def require_fingerprint(self, expected: str) -> None:
        """Check that the data version is the one that the step before announced.

        Raises:
            InputError: The fingerprint is different.
        """
        if self.fingerprint != expected:
            raise InputError(
                f"{self.folder}: not the data version that the previous step recorded; run the pipeline again"
            )

    def examples(self, domain: str, split: str | None = None) -> pd.DataFrame:
        """Return the images of one domain (and split) of a cropped data version.

        Args:
            domain: One of `tables.DOMAINS`.
            split: One of `tables.SPLITS`; None for all.

        Returns:
            The rows of `tables.examples_of`, sorted by name, with the column file (full path).

        Raises:
            InputError: The domain is unknown.
        """
        table = tables.examples_of(self.scans, self.regions, domain)
        if split is not None:
            table = table[table["split"] == split]
        table = table.sort_values("name").reset_index(drop=True)
        return table.assign(file=[str(self.images / name) for name in table["name"]])

    def with_jitter(self, examples: pd.DataFrame) -> pd.DataFrame:
        """Return a table of `examples` with each image's disturbed crop.

        The columns jitter_file (full path) and jitter_sha256 are added. They are null where there is no such crop.
        """
        regions = self.regions.drop_duplicates("crop_path").set_index("crop_path")
        regions = regions.reindex(columns=["jitter_path", "jitter_sha256"])  # null in data of older releases
        path, sha256 = (examples["name"].map(regions[column]).astype("string") for column in regions)
        return examples.assign(jitter_file=f"{self.images}{os.sep}" + path, jitter_sha256=sha256)

    def pixels(self, examples: pd.DataFrame, size: int) -> NDArray[np.uint8]:
        """Return images in the order of a table, as `decode` does. Every image is decoded once at each size.

        Args:
            examples: Table with the columns file (full path) and sha256.
            size: Side of the square in pixels.

        Returns:
            uint8 [n, size, size, 1] if every image is grey, else [n, size, size, 3].

        Raises:
            InputError: Files are missing, or differ from the ones that the data version describes.
        """
        return self._pixels(examples, size)


def decode(table: pd.DataFrame, size: int, budget: int = MEMORY_BUDGET) -> NDArray[np.uint8]:
    """Decode the images of a table in order. Those in the mirror are fetched first.

    Args:
        table: Table with the columns file (full path) and sha256, as `DataVersion.examples` returns it.
        size: Side of the square in pixels.
        budget: Bytes that may be held in memory.

    Returns:
        uint8 [n, size, size, 1] if every image is grey, else [n, size, size, 3].

    Raises:
        InputError: Files are missing, or differ from the ones that the data version describes.
    """
    rows = list(zip(table["file"], table["sha256"], strict=True))
    mirror.fetch((file for file, _ in rows), "fetch images", missing_ok=True)
    for channels in (1, 3):
        out = allocate((len(rows), size, size, channels), np.uint8, budget)
        if _fill(out, rows):
            break
    return out


def allocate(shape: tuple[int, ...], dtype: type, budget: int = MEMORY_BUDGET) -> NDArray[Any]:
    """Allocate an array in memory, or in a temporary file if it has more than `budget` bytes."""
    if math.prod(shape) * np.dtype(dtype).itemsize <= budget:
        return np.empty(shape, dtype)
    descriptor, name = tempfile.mkstemp(prefix="thyroid-")
    os.close(descriptor)
    out = np.memmap(name, dtype, "w+", shape=shape)
    Path(name).unlink()  # the mapping keeps the file until the process ends, even if it is killed
    return out


def _fill(out: NDArray[np.uint8], rows: list[tuple[str, str]]) -> bool:
    """Decode `rows` into `out`. Return False as soon as an image has more channels than `out`."""
    from thyroid.imaging import images  # imports OpenCV, which the registry's commands do without

    wrong: list[tuple[str, str]] = []

    def decode_chunk(start: int) -> bool:
        for number, (image_path, sha256) in enumerate(rows[start : start + _CHUNK], start):
            try:
                data = mirror.read(image_path, sha256)
            except OSError:
                wrong.append(("missing", image_path))
                continue
            except ValueError:
                wrong.append(("changed", image_path))
                continue
            image = images.square(data, out.shape[1])
            if image.shape[-1] > out.shape[-1]:
                return False
            out[number] = image
        return True

    starts = range(0, len(rows), _CHUNK)
    with ThreadPoolExecutor(cores.available()) as pool, progress.bar(None, len(rows), "decode", "image") as bar:
        for start, fits in zip(starts, pool.map(decode_chunk, starts), strict=True):
            if not fits:
                pool.shutdown(cancel_futures=True)
                return False
            bar.update(min(_CHUNK, len(rows) - start))
    if wrong:
        what, image_path = min(wrong, key=lambda pair: pair[1])
        raise InputError(
            f"{len(wrong)} images of the data version are missing or changed, the first is "
            f"{mirror.address(image_path)} ({what}); crop again"
        )
    return True
