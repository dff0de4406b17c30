"""The store: what a run leaves on a volume so that the next one costs only what is new.

    <store>/versions/000001/   a data version of ingest, with what the next ingest needs to know:
        examined.parquet       every file as it was found: its generation, hashes and given split, or why it cannot be used
        links.parquet          pairs of perceptual hashes that are near-duplicates
        memory.parquet         the split of every patient and hash that there ever was
    <store>/scans/             copies of the objects of a bucket, and pictures of DICOM files, never these themselves
    <store>/crops/             images of both domains, named after all that their content depends on
    <store>/crops.parquet      what there is of them

A version is there when its data.json is, and is never changed. One run at a time writes here; a killed one leaves nothing
that the next one takes for whole.
"""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

from thyroid import errors, storage, tables
from thyroid.errors import InputError

VERSIONS, SCANS, CROPS = "versions", "scans", "crops"
EXAMINED, LINKS, MEMORY, CROPPED = "examined.parquet", "links.parquet", "memory.parquet", "crops.parquet"


class Store:
    """A store in a folder, which is made if it is not there.

    Raises:
        InputError: the path is a bucket or a file.
    """

    def __init__(self, folder: storage.Location) -> None:
        if storage.is_bucket(folder):
            raise InputError(f"store {folder}: give a folder on a volume, where many small files can be read at once")
        self.folder = Path(storage.at(folder).address)
        if self.folder.exists() and not self.folder.is_dir():
            raise InputError(f"store {folder}: not a folder")
        self.crops = self.folder / CROPS

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Held while something is written; another run waits, and says so."""
        with storage.lock(
            self.folder, lambda: print(f"{self.folder}: another run is at work here; waiting", flush=True)
        ):
            yield

    def versions(self) -> list[Path]:
        """Whole data versions, oldest first."""
        found = (self.folder / VERSIONS).glob("*/data.json")
        return sorted(file.parent for file in found if file.parent.name.isdigit())

    def last(self, source: str) -> "Version | None":
        """The newest version of a source; what cannot be read is passed over, with a word."""
        for folder in reversed(self.versions()):
            try:
                if json.loads((folder / "data.json").read_text())["source"] == source:
                    return Version(folder)
            except (ValueError, OSError, KeyError) as error:
                print(f"{folder}: damaged ({errors.one_line(error)[:200]}); the version before is taken up", flush=True)
        return None

    def add(self, data: Path, examined: pd.DataFrame, links: Sequence[tuple[str, str]], memory: pd.DataFrame) -> Path:
        """Keep the data version in the folder `data` as the next one; the caller holds the lock."""
        home = self.folder / VERSIONS
        home.mkdir(exist_ok=True)
        for left in home.glob(".incoming-*"):  # of a killed run: the lock is ours
            shutil.rmtree(left)
        incoming = home / f".incoming-{uuid.uuid4().hex}"
        incoming.mkdir()
        for file in data.iterdir():
            if file.is_file():  # the store itself may be among the folders
                shutil.copy(file, incoming)
        examined.to_parquet(incoming / EXAMINED, index=False)
        pd.DataFrame(links, columns=["a", "b"], dtype="string").to_parquet(incoming / LINKS, index=False)
        memory.to_parquet(incoming / MEMORY, index=False)
        taken = [int(folder.name) for folder in home.iterdir() if folder.name.isdigit()]
        folder = home / f"{max(taken, default=0) + 1:06d}"
        incoming.rename(folder)
        return folder

    def cropped(self) -> pd.DataFrame:
        """Images that `crop` has made, with their keys; without those whose file is gone."""
        try:
            table = pd.read_parquet(self.folder / CROPPED)
        except FileNotFoundError:
            return pd.DataFrame()
        except (ValueError, OSError) as error:
            print(f"{self.folder / CROPPED}: damaged ({errors.one_line(error)[:200]}); everything is cropped again")
            return pd.DataFrame()
        there = {
            f"{domain}/{name}"
            for domain in tables.DOMAINS
            if (self.crops / domain).is_dir()
            for name in os.listdir(self.crops / domain)  # noqa: PTH208 - of 50,000 files
        }
        return table[table["file"].isin(there)]

    def add_cropped(self, made: pd.DataFrame) -> None:
        """Note images that were made."""
        with self.lock():
            write(self.folder / CROPPED, pd.concat([self.cropped(), made]).drop_duplicates("key", keep="last"))


class Version:
    """A whole data version in a store, with what only the next ingest reads."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.facts: dict[str, Any] = json.loads((folder / "data.json").read_text())

    def table(self, name: str, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """One of `EXAMINED`, `LINKS` and `MEMORY`, or some columns of it.

        Raises:
            InputError: it is damaged.
        """
        try:
            return pd.read_parquet(self.folder / name, columns=None if columns is None else list(columns))
        except (ValueError, OSError) as error:
            raise InputError(
                f"{self.folder / name}: damaged ({errors.one_line(error)[:200]}); remove {self.folder} and start again: the "
                "version before is taken up"
            ) from None

    def take(self, output: Path) -> None:
        """Copy the data version to `output`.

        Raises:
            InputError: it is damaged.
        """
        tables.read(self.folder)
        hidden = shutil.ignore_patterns(EXAMINED, LINKS, MEMORY, "data.json")
        shutil.copytree(self.folder, output, ignore=hidden, dirs_exist_ok=True)
        shutil.copy(self.folder / "data.json", output / "data.json")  # last: marks it whole


def copy_of(folder: Path, address: str, generation: str, suffix: str = ".jpg") -> Path:
    """Where below `folder` the copy of a scan belongs, whatever its name holds."""
    name = hashlib.sha256(f"{address}#{generation}".encode()).hexdigest()
    return folder / SCANS / name[:2] / f"{name[2:]}{suffix}"


def source_of(*modules: str) -> str:
    """Names the code of modules of this package: what other code has found out is not taken for theirs."""
    digest = hashlib.sha256()
    for module in modules:
        digest.update((Path(__file__).parent / f"{module}.py").read_bytes())
    return digest.hexdigest()[:16]


def write(path: Path, table: pd.DataFrame) -> None:
    """Write a table so that a reader never sees half of it."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    table.to_parquet(temporary, index=False)
    temporary.replace(path)
