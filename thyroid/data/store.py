"""The store: what a run leaves on a volume so that the next one costs only what is new.

    <store>/versions/000001/   a data version of ingest, with what the next ingest needs to know:
        examined.parquet       every file as it was found: its generation, hashes and given split, or why it cannot be used
        links.parquet          pairs of perceptual hashes that are near-duplicates
        memory.parquet         the split of every patient of every cohort, and of every hash, that there ever was in the store
    <store>/scans/             copies of the objects of a bucket, and pictures of DICOM files, never these themselves
    <store>/crops/             images of both domains, named after all that their content depends on
    <store>/crops.parquet      what there is of them; crops.sha256: SHA-256 of this table and of the one before it
    <store>/erased.json        who was erased (see `erased`); patient.key: the key of its hashes
    <store>/sealed             says that every version tells its cohort and its checksums (see `Store.lock`)

A version is there when its data.json is, and is never changed but where a patient is erased. One run at a time writes here; a killed one leaves nothing
that the next one takes for whole. What is damaged is made again where it can be, and named where it cannot.

A cohort is where patient numbers mean the same patients: a hospital, whatever the address of its scans.
"""

import hashlib
import io
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

from thyroid import atomic, errors, storage
from thyroid.data import tables
from thyroid.errors import InputError

VERSIONS, SCANS, CROPS = "versions", "scans", "crops"
GOING = ".going-"
"""How the name of a folder begins that is being removed."""
_INCOMING, _REWRITTEN = ".incoming-", ".rewritten-"
EXAMINED, LINKS, MEMORY, CROPPED = "examined.parquet", "links.parquet", "memory.parquet", "crops.parquet"
SUMS, SEALED = "crops.sha256", "sealed"
REMEMBERED = {"cohort": "string", "patient": "Int64", "phash": "string", "split": "string"}
"""Columns of `MEMORY`."""
UNNAMED = "unnamed-"
"""How the name of a cohort begins that nobody has named."""
_SITE = re.compile(r"[^\W_][\w .-]{0,63}")


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
            self._take_rewritten()
            if not (self.folder / SEALED).exists():
                self._upgrade()
            yield

    def _upgrade(self) -> None:
        """Fill what versions of older code lack: the cohort of their source, one memory for all sources, and checksums.

        Killed at any moment, it is finished by the next one. A version with a damaged table stays as it is, and is passed over
        from then on.
        """
        memory = tables.frame([], REMEMBERED)
        for folder in self.versions():
            try:
                facts = json.loads((folder / tables.FACTS).read_text())
                scans, regions, *_, own = (
                    pd.read_parquet(folder / name) for name in (*tables.TABLES, EXAMINED, LINKS, MEMORY)
                )
                if tables.digest(scans, regions) != facts["digest"]:
                    raise ValueError("its tables are not those of its digest")
                cohort = facts.get("cohort") or unnamed(facts["source"])
                if "cohort" in own:  # killed before data.json was written
                    own = own[own["cohort"] == cohort]
            except Exception as error:  # damaged files raise many kinds in pyarrow
                print(f"{folder}: damaged ({errors.one_line(error)[:200]}); it is not used", flush=True)
                continue
            own = own.assign(cohort=cohort)[list(REMEMBERED)].astype(REMEMBERED)
            memory = pd.concat([memory[memory["cohort"] != cohort], own], ignore_index=True)
            if tables.sealed(folder):
                continue
            atomic.write_bytes(folder / MEMORY, memory.to_parquet(index=False))
            facts |= {"cohort": cohort, "files": _sums(folder)}
            tables.write_facts(folder, facts)
        # what older code has cropped is none of this one's, and its table does not tell the margins
        (self.folder / CROPPED).unlink(missing_ok=True)
        (self.folder / SEALED).touch()
        storage.flush(self.folder)

    def versions(self) -> list[Path]:
        """Whole data versions, oldest first."""
        found = (self.folder / VERSIONS).glob("*/data.json")
        return sorted(file.parent for file in found if file.parent.name.isdigit())

    def numbered(self) -> list[Path]:
        """Folders of data versions, newest first, damaged ones too."""
        found = (folder for folder in (self.folder / VERSIONS).glob("*") if folder.name.isdigit())
        return sorted(found, key=lambda folder: int(folder.name), reverse=True)

    def readable(self) -> list["Version"]:
        """Versions, newest first; what cannot be read is passed over, with a word."""
        result = []
        for folder in reversed(self.versions()):
            try:
                result.append(Version(folder))
            except (InputError, OSError):
                print(f"{folder}: damaged ({tables.FACTS}); the version before is taken up", flush=True)
        return result

    def add(self, data: Path, examined: pd.DataFrame, links: Sequence[tuple[str, str]], memory: pd.DataFrame) -> Path:
        """Keep the data version in the folder `data` as the next one; the caller holds the lock."""
        facts = tables.read_facts(data)
        content = {name: (data / name).read_bytes() for name in facts["files"]}
        more = {EXAMINED: examined, LINKS: pd.DataFrame(links, columns=["a", "b"], dtype="string"), MEMORY: memory}
        incoming = self._incoming(
            content | {name: table.to_parquet(index=False) for name, table in more.items()}, facts
        )
        home = incoming.parent
        taken = [int(folder.name) for folder in home.iterdir() if folder.name.isdigit()]
        folder = home / f"{max(taken, default=0) + 1:06d}"
        incoming.rename(folder)
        storage.flush(home)
        return folder

    def rewrite(self, folder: Path, content: Mapping[str, bytes], facts: Mapping[str, Any]) -> None:
        """Put other files and facts in the place of those of a data version; the caller holds the lock.

        Killed at any moment, the old ones are there or, from the next lock on, the new ones.
        """
        incoming = self._incoming(content, facts)
        incoming.rename(incoming.with_name(_REWRITTEN + folder.name))
        storage.flush(incoming.parent)
        self._take_rewritten()

    def _incoming(self, content: Mapping[str, bytes], facts: Mapping[str, Any]) -> Path:
        """A whole data version that has no number yet."""
        home = self.folder / VERSIONS
        home.mkdir(exist_ok=True)
        for left in home.glob(f"{_INCOMING}*"):  # of a killed run: the lock is ours
            shutil.rmtree(left)
        incoming = home / f"{_INCOMING}{uuid.uuid4().hex}"
        incoming.mkdir()
        for name, data in content.items():
            atomic.write_bytes(incoming / name, data)
        tables.write_facts(incoming, {**facts, "files": _sums(incoming)})
        storage.flush(incoming)
        return incoming

    def _take_rewritten(self) -> None:
        home = self.folder / VERSIONS
        for folder in sorted(home.glob(f"{_REWRITTEN}*")):
            target = home / folder.name.removeprefix(_REWRITTEN)
            hidden = home / f"{GOING}{uuid.uuid4().hex}"
            if target.exists():
                target.rename(hidden)
            folder.rename(target)
            storage.flush(home)
            if hidden.exists():
                shutil.rmtree(hidden)

    def cropped(self) -> pd.DataFrame:
        """Images that `crop` has made, with their keys and margins; without those whose file is gone."""
        try:
            table = self.all_cropped()
        except InputError as error:
            print(f"{error}; everything is cropped again", flush=True)
            table = pd.DataFrame()
        if table.empty:
            return table
        there = {
            f"{domain}/{name}"
            for domain in tables.DOMAINS
            if (self.crops / domain).is_dir()
            for name in os.listdir(self.crops / domain)  # noqa: PTH208 - of 50,000 files
        }
        return table[table["file"].isin(there)]

    def all_cropped(self) -> pd.DataFrame:
        """As `cropped`, and those whose file is gone, too.

        Raises:
            InputError: the table is damaged.
        """
        try:
            data = (self.folder / CROPPED).read_bytes()
        except FileNotFoundError:
            return pd.DataFrame()
        if hashlib.sha256(data).hexdigest() not in _known_sums(self.folder):
            raise InputError(f"{self.folder / CROPPED}: damaged")
        return pd.read_parquet(io.BytesIO(data))

    def add_cropped(self, made: pd.DataFrame) -> None:
        """Note images that were made."""
        with self.lock():
            write(self.folder / CROPPED, pd.concat([self.cropped(), made]).drop_duplicates("key", keep="last"))


class Version:
    """A whole data version in a store, with what only the next ingest reads."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        facts = tables.read_facts(folder)
        self._files: dict[str, str] = facts["files"]
        handed_on = {name: sum_ for name, sum_ in self._files.items() if name not in (EXAMINED, LINKS, MEMORY)}
        self.facts: dict[str, Any] = facts | {"files": handed_on}

    def table(self, name: str, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """One of `EXAMINED`, `LINKS` and `MEMORY`, or some columns of it.

        Raises:
            InputError: it is damaged.
        """
        try:
            data = tables.checked(self.folder, name, self._files)
            return pd.read_parquet(io.BytesIO(data), columns=None if columns is None else list(columns))
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
        try:
            content = {name: tables.checked(self.folder, name, self._files) for name in self.facts["files"]}
        except ValueError as error:
            raise InputError(
                f"{self.folder}: damaged data version ({error}); remove {self.folder} and start again: the version before is "
                "taken up"
            ) from None
        output.mkdir(parents=True, exist_ok=True)
        for name, data in content.items():
            atomic.write_bytes(output / name, data)
        tables.write_facts(output, self.facts)  # last: marks it whole


def copy_of(folder: Path, address: str, generation: str, suffix: str = ".jpg") -> Path:
    """Where below `folder` the copy of a scan belongs, whatever its name holds."""
    name = hashlib.sha256(f"{address}#{generation}".encode()).hexdigest()
    return folder / SCANS / name[:2] / f"{name[2:]}{suffix}"


def site(name: str) -> str:
    """The name of a cohort that somebody gives; empty for none.

    Raises:
        InputError: it cannot be one.
    """
    name = name.strip()
    if name and (not _SITE.fullmatch(name) or name.startswith(UNNAMED)):
        raise InputError(
            f"--site {name!r}: give a name of at most 64 letters, digits, spaces and . _ -, that starts with a letter or a "
            f"digit and not with {UNNAMED}"
        )
    return name


def unnamed(source: str) -> str:
    """Name of the cohort of a source that nobody has named."""
    return UNNAMED + hashlib.sha256(source.encode("utf-8", "surrogateescape")).hexdigest()[:12]


def write(path: Path, table: pd.DataFrame) -> None:
    """Write the table of images so that a reader never sees half of it; the caller holds the lock."""
    data = table.to_parquet(index=False)
    before = hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else ""
    known = before if before in _known_sums(path.parent) else ""
    # first the new sum beside the old one: killed in between, either table is whole
    atomic.write_bytes(path.with_name(SUMS), f"{hashlib.sha256(data).hexdigest()}\n{known}\n".encode())
    atomic.write_bytes(path, data)


def remove(path: Path) -> None:
    """Remove a file or folder; a folder is out of sight first, so that no half of it is ever taken for whole."""
    if not path.is_dir() or path.is_symlink():
        path.unlink(missing_ok=True)
        return
    hidden = path.with_name(f"{GOING}{uuid.uuid4().hex}")
    path.rename(hidden)
    shutil.rmtree(hidden)


def _known_sums(folder: Path) -> set[str]:
    try:
        return set((folder / SUMS).read_bytes().decode("ascii", "replace").split())
    except FileNotFoundError:
        return set()


def _sums(folder: Path) -> dict[str, str]:
    """SHA-256 of the files of a data version in a store."""
    return {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.iterdir())
        if file.is_file() and file.name != tables.FACTS and not file.name.endswith(".tmp")
    }
