"""The store: what a run leaves on a volume so that the next run pays only for what is new.

    <store>/versions/000001/   a data version of ingest, with what the next ingest needs to know:
        examined.parquet       every file as it was found: its generation, hashes and given split, or why it is unusable
        links.parquet          pairs of perceptual hashes that are near-duplicates
        memory.parquet         the split of every patient of every cohort, and of every hash, that the store ever had
    <store>/scans/             copies of the objects of a bucket, and pictures of DICOM files, but never the DICOM files
    <store>/crops/             images of both domains, named after everything that their content depends on
    <store>/crops.parquet      table of these images; crops.sha256: SHA-256 of this table and of the one before it
    <store>/erased.json        who was erased (see `erased`); patient.key: the key of its hashes
    <store>/sealed             marks that every version records its cohort and its checksums (see `Store.lock`)

A version exists when its data.json does, and it never changes unless a patient is erased. Only one run at a time writes
here. A killed run leaves nothing that the next one takes for complete. Damaged files are made again where possible, and
otherwise named in an error.

A cohort is the scope in which equal patient numbers mean the same patient, such as a hospital, whatever the address
of its scans.
"""

import hashlib
import io
import json
import logging
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pandas as pd

from thyroid import atomic, errors, storage
from thyroid.data import tables
from thyroid.errors import InputError
from thyroid.records.data import DataRecord

log = logging.getLogger(__name__)

VERSIONS, SCANS, CROPS = "versions", "scans", "crops"
GOING = ".going-"
"""Prefix of the name of a folder that is being removed."""
_INCOMING, _REWRITTEN = ".incoming-", ".rewritten-"
EXAMINED, LINKS, MEMORY, CROPPED = "examined.parquet", "links.parquet", "memory.parquet", "crops.parquet"
SUMS, SEALED = "crops.sha256", "sealed"
REMEMBERED = {"cohort": "string", "patient": "Int64", "phash": "string", "split": "string"}
"""Columns of the table `MEMORY` with their dtypes."""
UNNAMED = "unnamed-"
"""Prefix of the name of a cohort that nobody has named."""
_SITE = re.compile(r"[^\W_][\w .-]{0,63}")


class Store:
    """A store in a folder, which is made if it does not exist.

    Args:
        folder: Folder of the store on a volume.

    Raises:
        InputError: The location is a bucket or a file.
    """

    def __init__(self, folder: storage.Location) -> None:
        """Check the location; the folder is made by the first lock."""
        if storage.is_bucket(folder):
            raise InputError(f"store {folder}: give a folder on a volume, where many small files can be read at once")
        self.folder = Path(storage.at(folder).address)
        if self.folder.exists() and not self.folder.is_dir():
            raise InputError(f"store {folder}: not a folder")
        self.crops = self.folder / CROPS

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the store's lock while something is written; another run prints that it is waiting.

        The lock also finishes interrupted rewrites and upgrades a store of older code.
        """
        with storage.lock(self.folder, lambda: log.info(f"{self.folder}: another run is at work here; waiting")):
            self._take_rewritten()
            if not (self.folder / SEALED).exists():
                self._upgrade()
            yield

    def _upgrade(self) -> None:
        """Add what versions of older code lack: the cohort of their source, one memory for all sources, and checksums.

        If it is killed at any moment, the next upgrade finishes it. A version with a damaged table stays as it is and
        is skipped from then on.
        """
        memory = tables.frame([], REMEMBERED)
        for folder in self.versions():
            try:
                content = json.loads((folder / tables.FACTS).read_text())
                scans, regions, *_, own = (
                    pd.read_parquet(folder / name) for name in (*tables.TABLES, EXAMINED, LINKS, MEMORY)
                )
                if tables.digest(scans, regions) != content["digest"]:
                    raise ValueError("its tables are not those of its digest")
                cohort = content.get("cohort") or unnamed(content["source"])
                whole = {**content, "cohort": cohort, "files": {}}
                facts = None if tables.sealed(folder) else DataRecord.parse(whole, tables.FACTS, "ignore")
                if "cohort" in own:  # an earlier upgrade was killed before it wrote data.json
                    own = own[own["cohort"] == cohort]
            except Exception as error:  # damaged files raise many kinds of errors in pyarrow
                log.info(f"{folder}: damaged ({errors.one_line(error)[:200]}); skipped")
                continue
            own = own.assign(cohort=cohort)[list(REMEMBERED)].astype(REMEMBERED)
            memory = pd.concat([memory[memory["cohort"] != cohort], own], ignore_index=True)
            if facts is None:
                continue
            atomic.write_bytes(folder / MEMORY, memory.to_parquet(index=False))
            tables.write_facts(folder, facts.model_copy(update={"files": _sums(folder)}))
        # crops of older code are not used, and its table does not record the margins
        (self.folder / CROPPED).unlink(missing_ok=True)
        (self.folder / SEALED).touch()
        atomic.flush(self.folder)

    def versions(self) -> list[Path]:
        """Return the folders of whole data versions, oldest first."""
        found = (self.folder / VERSIONS).glob("*/data.json")
        return sorted(file.parent for file in found if file.parent.name.isdigit())

    def numbered(self) -> list[Path]:
        """Return the folders of all data versions, damaged ones included, newest first."""
        found = (folder for folder in (self.folder / VERSIONS).glob("*") if folder.name.isdigit())
        return sorted(found, key=lambda folder: int(folder.name), reverse=True)

    def readable(self) -> list["Version"]:
        """Return the versions that can be read, newest first; each unreadable one is skipped with a printed line."""
        result = []
        for folder in reversed(self.versions()):
            try:
                result.append(Version(folder))
            except (InputError, OSError):
                log.info(f"{folder}: damaged ({tables.FACTS}); using the previous version")
        return result

    def add(self, data: Path, examined: pd.DataFrame, links: Sequence[tuple[str, str]], memory: pd.DataFrame) -> Path:
        """Keep the data version in the folder `data` as the next version; the caller must hold the lock.

        Args:
            data: Folder of the data version.
            examined: Content of `EXAMINED`.
            links: Pairs of near-duplicate hashes, the content of `LINKS`.
            memory: Content of `MEMORY`.

        Returns:
            Folder of the new version.

        Raises:
            InputError: `data` is no whole data version.
        """
        facts = tables.read_facts(data)
        content = {name: (data / name).read_bytes() for name in facts.files}
        more = {EXAMINED: examined, LINKS: pd.DataFrame(links, columns=["a", "b"], dtype="string"), MEMORY: memory}
        incoming = self._incoming(
            content | {name: table.to_parquet(index=False) for name, table in more.items()}, facts
        )
        home = incoming.parent
        taken = [int(folder.name) for folder in home.iterdir() if folder.name.isdigit()]
        folder = home / f"{max(taken, default=0) + 1:06d}"
        incoming.rename(folder)
        atomic.flush(home)
        return folder

    def rewrite(self, folder: Path, content: Mapping[str, bytes], facts: DataRecord) -> None:
        """Replace files and facts of a data version; the caller must hold the lock.

        If it is killed at any moment, the old files are there or, from the next lock on, the new ones.

        Args:
            folder: Folder of the data version.
            content: Content of every file by name.
            facts: Content of data.json; its checksums are computed.
        """
        incoming = self._incoming(content, facts)
        incoming.rename(incoming.with_name(_REWRITTEN + folder.name))
        atomic.flush(incoming.parent)
        self._take_rewritten()

    def _incoming(self, content: Mapping[str, bytes], facts: DataRecord) -> Path:
        """Write a whole data version that has no number yet, and return its folder."""
        home = self.folder / VERSIONS
        home.mkdir(exist_ok=True)
        for left in home.glob(f"{_INCOMING}*"):  # left by a killed run, since we hold the lock
            shutil.rmtree(left)
        incoming = home / f"{_INCOMING}{uuid.uuid4().hex}"
        incoming.mkdir()
        for name, data in content.items():
            atomic.write_bytes(incoming / name, data)
        tables.write_facts(incoming, facts.model_copy(update={"files": _sums(incoming)}))
        atomic.flush(incoming)
        return incoming

    def _take_rewritten(self) -> None:
        home = self.folder / VERSIONS
        for folder in sorted(home.glob(f"{_REWRITTEN}*")):
            target = home / folder.name.removeprefix(_REWRITTEN)
            hidden = home / f"{GOING}{uuid.uuid4().hex}"
            if target.exists():
                target.rename(hidden)
            folder.rename(target)
            atomic.flush(home)
            if hidden.exists():
                shutil.rmtree(hidden)

    def cropped(self) -> pd.DataFrame:
        """Return the images that `crop` has made, with their keys and margins, except those whose file is missing.

        A damaged table counts as empty, so everything is cropped again.
        """
        try:
            table = self.all_cropped()
        except InputError as error:
            log.info(f"{error}; cropping everything again")
            table = pd.DataFrame()
        if table.empty:
            return table
        there = {
            f"{domain}/{name}"
            for domain in tables.DOMAINS
            if (self.crops / domain).is_dir()
            for name in os.listdir(self.crops / domain)  # noqa: PTH208 - there may be 50,000 files
        }
        return table[table["file"].isin(there)]

    def all_cropped(self) -> pd.DataFrame:
        """Return the images of `cropped`, including those whose file is missing.

        Raises:
            InputError: The table is damaged.
        """
        try:
            data = (self.folder / CROPPED).read_bytes()
        except FileNotFoundError:
            return pd.DataFrame()
        if hashlib.sha256(data).hexdigest() not in _known_sums(self.folder):
            raise InputError(f"{self.folder / CROPPED}: damaged")
        return pd.read_parquet(io.BytesIO(data))

    def add_cropped(self, made: pd.DataFrame) -> None:
        """Add images that were made to the store's table.

        Args:
            made: One row per image, with its key and margin.
        """
        with self.lock():
            write(self.folder / CROPPED, pd.concat([self.cropped(), made]).drop_duplicates("key", keep="last"))


class Version:
    """A whole data version in a store, with the tables that only the next ingest reads.

    Args:
        folder: Folder of the version.

    Raises:
        InputError: The folder is no whole data version, or its data.json is damaged.
    """

    def __init__(self, folder: Path) -> None:
        """Read data.json; the attribute `facts` lists only the files that are handed on to later steps."""
        self.folder = folder
        facts = tables.read_facts(folder)
        self._files = facts.files
        handed_on = {name: sum_ for name, sum_ in self._files.items() if name not in (EXAMINED, LINKS, MEMORY)}
        self.facts = facts.model_copy(update={"files": handed_on})

    def table(self, name: str, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """Return one of the tables `EXAMINED`, `LINKS` and `MEMORY`, or some of its columns.

        Raises:
            InputError: The table is damaged.
        """
        try:
            data = tables.checked(self.folder, name, self._files)
            return pd.read_parquet(io.BytesIO(data), columns=None if columns is None else list(columns))
        except (ValueError, OSError) as error:
            raise InputError(
                f"{self.folder / name}: damaged ({errors.one_line(error)[:200]}); remove {self.folder} and "
                "run again, which continues from the previous version"
            ) from None

    def take(self, output: Path) -> None:
        """Copy the data version to `output`.

        Raises:
            InputError: The data version is damaged.
        """
        try:
            content = {name: tables.checked(self.folder, name, self._files) for name in self.facts.files}
        except ValueError as error:
            raise InputError(
                f"{self.folder}: damaged data version ({error}); remove {self.folder} and run again, which "
                "continues from the previous version"
            ) from None
        output.mkdir(parents=True, exist_ok=True)
        for name, data in content.items():
            atomic.write_bytes(output / name, data)
        tables.write_facts(output, self.facts)  # written last, since it marks the version as whole


def copy_of(folder: Path, address: str, generation: str, suffix: str = ".jpg") -> Path:
    """Return the path below `folder` for the copy of a scan, which is safe whatever the scan's name contains.

    Args:
        folder: Folder of the store.
        address: Address of the scan.
        generation: Generation of the scan.
        suffix: End of the file name.
    """
    name = hashlib.sha256(f"{address}#{generation}".encode()).hexdigest()
    return folder / SCANS / name[:2] / f"{name[2:]}{suffix}"


def site(name: str) -> str:
    """Check and strip the name of a cohort that a user gives; an empty name means none.

    Raises:
        InputError: The name cannot be used.
    """
    name = name.strip()
    if name and (not _SITE.fullmatch(name) or name.startswith(UNNAMED)):
        raise InputError(
            f"--site {name!r}: give a name of at most 64 letters, digits, spaces and . _ -, that starts with a letter "
            f"or a digit and not with {UNNAMED}"
        )
    return name


def unnamed(source: str) -> str:
    """Return the name of the cohort of a source that nobody has named."""
    return UNNAMED + hashlib.sha256(source.encode("utf-8", "surrogateescape")).hexdigest()[:12]


def write(path: Path, table: pd.DataFrame) -> None:
    """Write the table of images so that a reader never sees half of it; the caller must hold the lock."""
    data = table.to_parquet(index=False)
    before = hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else ""
    known = before if before in _known_sums(path.parent) else ""
    # the new sum is added before the table is written: if killed in between, the old table stays valid
    atomic.write_bytes(path.with_name(SUMS), f"{hashlib.sha256(data).hexdigest()}\n{known}\n".encode())
    atomic.write_bytes(path, data)


def remove(path: Path) -> None:
    """Remove a file or folder.

    A folder is renamed first, so that half of it is never taken for whole.
    """
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
    """Return the SHA-256 of every file of a data version in a store, by name."""
    return {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.iterdir())
        if file.is_file() and file.name != tables.FACTS and not file.name.endswith(".tmp")
    }
