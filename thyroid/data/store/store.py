"""The class `Store`; the package says what a store holds."""

import functools
import hashlib
import io
import logging
import os
import shutil
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pandas as pd

from thyroid import atomic, storage
from thyroid.data import tables
from thyroid.data.store import pieces
from thyroid.data.store.files import DamagedError, known_sums, sums, write
from thyroid.data.store.in_bucket import BucketFiles
from thyroid.data.store.names import (
    CROPPED,
    CROPPED_PIECES,
    CROPS,
    EXAMINED,
    GOING,
    LINKS,
    MEMORY,
    SCANS,
    SEALED,
    VERSIONS,
    starts_of,
)
from thyroid.data.store.upgrade import upgrade
from thyroid.data.store.versions import Version
from thyroid.errors import InputError
from thyroid.records.data import DataRecord
from thyroid.storage import mirror
from thyroid.storage.client import WORKERS
from thyroid.storage.mirror import DOUBTED

log = logging.getLogger(__name__)

_INCOMING, _REWRITTEN = ".incoming-", ".rewritten-"


class Store:
    """A store in a folder, which is made if it does not exist, or in a bucket.

    Attributes:
        address: Absolute path of the folder, or address of the bucket prefix.
        folder: The folder, or its copy in the mirror. In a bucket it is what the bucket has after `lock` or `pull`.
        crops: Folder of the images below it. In a bucket it has those that were fetched.

    Args:
        location: Folder, or bucket prefix (gs:// or s3://).

    Raises:
        InputError: The location is a file, or no bucket.
    """

    def __init__(self, location: storage.Location) -> None:
        """Check the location; the folder is made by the first lock."""
        place = storage.at(location)
        self.address = place.address
        self.folder = mirror.mirror(place.address)
        self._bucket = None if isinstance(place, storage.Folder) else BucketFiles(place, self.folder)
        if self._bucket is None and self.folder.exists() and not self.folder.is_dir():
            raise InputError(f"store {location}: not a folder")
        self.crops = self.folder / CROPS

    @contextmanager
    def lock(self, *, whole: bool = True) -> Iterator[None]:
        """Hold the store's lock while something is written; another run prints that it is waiting.

        The lock also finishes interrupted rewrites and upgrades a store of older code. In a bucket, the files of the
        block are copies in the mirror, and what the block changes is committed at its end, or not at all if it raises.

        Args:
            whole: For a bucket, whether tables and pictures of all data versions are brought into the mirror. A
                `Version` of `readable` reads them by itself.

        Raises:
            InputError: The bucket cannot be read or written, or the lock was lost.
        """

        def wait() -> None:
            log.info(f"{self.address}: another run is at work here; waiting")

        held = storage.lock(self.folder, wait) if self._bucket is None else self._bucket.locked(wait, whole=whole)
        with held:
            self._take_rewritten()
            if not (self.folder / SEALED).exists():
                upgrade(self.folder, self.versions())
            yield

    def commit(self) -> None:
        """Commit what was changed so far; the caller must hold the lock, and holds it still. Folders need no commit.

        Raises:
            InputError: As for `lock`.
        """
        if self._bucket is not None:
            self._bucket.commit()

    def objects(self) -> set[str]:
        """Return the objects below `FILES` that a bucket's index named at the last lock, pull or commit."""
        return set() if self._bucket is None else self._bucket.objects()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Keep the data versions as they are during the block, which only reads; a bucket's lock is not needed for it.

        In a bucket, another run may meanwhile remove tables and pictures, which are brought when they are needed.

        Raises:
            InputError: The bucket cannot be read.
        """
        with self.lock() if self._bucket is None else self._bucket.reading(whole=False):
            yield

    def pull(self, *, whole: bool = True) -> None:
        """Bring the small files of a bucket into the mirror for reading, or upgrade a folder of older code.

        The argument and errors are those of `lock`.
        """
        if self._bucket is not None:
            with self._bucket.reading(whole=whole):
                pass
        elif (self.folder / VERSIONS).exists() and not (self.folder / SEALED).exists():
            with self.lock():
                pass

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
                result.append(Version(folder, self._bucket))
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
        content: dict[str, bytes | Path | pd.DataFrame] = {name: data / name for name in facts.files}
        content |= {EXAMINED: examined, LINKS: pd.DataFrame(links, columns=["a", "b"], dtype="string"), MEMORY: memory}
        incoming = self._incoming(content, facts)
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

    def _incoming(self, content: Mapping[str, bytes | Path | pd.DataFrame], facts: DataRecord) -> Path:
        """Write a whole data version that has no number yet, and return its folder.

        Args:
            content: Content of every file by name: bytes, another file, or the table of a parquet file. They are not
                in memory together.
            facts: Content of data.json; its checksums are computed.
        """
        home = self.folder / VERSIONS
        home.mkdir(exist_ok=True)
        for left in home.glob(f"{_INCOMING}*"):  # left by a killed run, since we hold the lock
            shutil.rmtree(left)
        incoming = home / f"{_INCOMING}{uuid.uuid4().hex}"
        incoming.mkdir()
        for name, part in content.items():
            with atomic.replacing(incoming / name, shared=False) as temporary:
                if isinstance(part, pd.DataFrame):
                    part.to_parquet(temporary, index=False)
                elif isinstance(part, Path):
                    shutil.copyfile(part, temporary)
                else:
                    temporary.write_bytes(part)
        tables.write_facts(incoming, facts.model_copy(update={"files": sums(incoming)}))
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

        Those of pieces are included. A damaged table counts as empty, so everything is cropped again. In a bucket the
        table is believed, since a listing of all images takes long, until a reader misses one of them.
        """
        return self._present(self._known_crops(self.pieces(CROPPED_PIECES)))

    def is_doubted(self) -> bool:
        """Return whether a reader has missed an image that the table of a bucket has (see `mirror.DOUBTED`)."""
        return self._bucket is not None and storage.at(self.address).read(DOUBTED)[1] != storage.ABSENT

    def _present(self, table: pd.DataFrame) -> pd.DataFrame:
        """Return the rows of images whose file exists; in a bucket all rows, unless they are doubted."""
        if table.empty or (self._bucket is not None and not self.is_doubted()):
            return table
        return table[table["file"].isin(self.names(CROPS, starts_of(table["file"].tolist())))]

    def _known_crops(self, left: pd.DataFrame) -> pd.DataFrame:
        """Return the images of the table and of the pieces `left`, whether their files exist or not."""
        try:
            table = self.all_cropped()
        except DamagedError as error:
            log.info(f"{error}; cropping everything again")
            table = pd.DataFrame()
        table = pd.concat([table, left.drop(columns="piece")]) if len(left) else table
        return table if table.empty else table.drop_duplicates("key", keep="last")

    def all_cropped(self) -> pd.DataFrame:
        """Return the images of `cropped`, including those whose file is missing.

        Raises:
            InputError: The table is damaged.
        """
        if self._bucket is not None:
            data = self._bucket.read(CROPPED)
            return pd.read_parquet(io.BytesIO(data)) if data else pd.DataFrame()
        try:
            data = (self.folder / CROPPED).read_bytes()
        except FileNotFoundError:
            return pd.DataFrame()
        if hashlib.sha256(data).hexdigest() not in known_sums(self.folder):
            raise DamagedError(f"{self.folder / CROPPED}: damaged")
        return pd.read_parquet(io.BytesIO(data))

    def add_cropped(self, made: pd.DataFrame) -> None:
        """Add images that were made to the store's table, and those of pieces.

        Args:
            made: One row per image, with its key and margin.
        """
        with self.lock(whole=False):
            left = self.pieces(CROPPED_PIECES)
            known = self._present(self._known_crops(left))
            write(self.folder / CROPPED, pd.concat([known, made]).drop_duplicates("key", keep="last"))
        self.drop_pieces(set(left["piece"]))
        if self.is_doubted():
            storage.bucket_at(self.address).delete([DOUBTED])

    def names(self, part: str, starts: Sequence[str] = ("",)) -> set[str]:
        """Return the names of files below one of the folders `SCANS` and `CROPS`.

        Args:
            part: Name of the folder.
            starts: Starts of the names that are needed. A bucket is listed by them at once, since only each page of a
                listing says where the next one begins. In a folder, all files are found.
        """
        if self._bucket is not None:
            place = storage.bucket_at(f"{self.address}/{part}")
            with ThreadPoolExecutor(WORKERS) as pool:
                return {entry.name for entries in pool.map(place.entries, starts) for entry in entries}
        home = self.folder / part
        return {
            f"{folder.name}/{name}"
            for folder in (home.iterdir() if home.is_dir() else ())
            if folder.is_dir()
            for name in os.listdir(folder)  # noqa: PTH208 - there may be 50,000 files
        }

    def copies(self) -> Callable[[str], bool]:
        """Return a function of a local_path, which says whether that copy of a scan exists.

        Its first call lists the copies in a bucket.
        """
        if self._bucket is None:
            return lambda path: Path(path).exists()
        names = functools.cache(lambda: self.names(SCANS, "0123456789abcdef"))
        start = f"{self.address}/{SCANS}/"
        return lambda path: path.removeprefix(start) in names()

    def send_copies(self, examined: pd.DataFrame) -> pd.DataFrame:
        """Upload the copies that an examination has left in the mirror. Folders need no upload.

        Args:
            examined: Rows of `ingest.examine`.

        Returns:
            The rows with the addresses of the copies as local_path.
        """
        if self._bucket is None:
            return examined
        paths = examined["local_path"]
        mirror.send(path for path in paths.dropna().tolist() if not storage.is_bucket(path))
        return examined.assign(local_path=paths.map(mirror.address, na_action="ignore").astype(paths.dtype))

    def delete(self, part: str, names: Collection[str]) -> None:
        """Remove files by name, from a bucket and from the mirror.

        Args:
            part: Folder that the names are relative to, such as `CROPS`.
            names: Names of the files. Those that do not exist are left out.
        """
        mirror.remove(self.folder / part / name for name in names)

    def add_piece(self, kind: str, rows: pd.DataFrame) -> None:
        """Keep rows that a shard has made until a run takes them up. No lock is needed.

        Args:
            kind: `EXAMINED_PIECES` or `CROPPED_PIECES`.
            rows: The rows.
        """
        pieces.add(self.address, kind, rows)

    def pieces(self, kind: str) -> pd.DataFrame:
        """Return the rows of all pieces of a kind, with the name of their piece in the column piece.

        A damaged piece is skipped with a printed line: its rows are made again.
        """
        return pieces.read(self.address, kind)

    def drop_pieces(self, names: Collection[str]) -> None:
        """Remove pieces that a run has taken up.

        Args:
            names: Values of the column piece.
        """
        pieces.drop(self.address, names)
