"""The small files of a store in a bucket: its data versions, the table of its crops, and the list of who was erased.

They are objects below files/ that are named after the SHA-256 of their content and never change. index.json says which
of them is which file. It is replaced by compare-and-swap, and this is the only commit: a run that is killed before it
leaves objects that nothing names. Whoever works on a store works on copies in the mirror, from `pull` to `commit`.
"""

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from thyroid import atomic, storage
from thyroid.data.store.files import DamagedError
from thyroid.data.store.names import VERSIONS
from thyroid.errors import InputError
from thyroid.records.data import IndexRecord, StoredFile
from thyroid.storage import ABSENT, Bucket, ChangedError, lease, mirror
from thyroid.storage.client import WORKERS
from thyroid.storage.lease import Lease

log = logging.getLogger(__name__)

INDEX, FILES, LEASE = "index.json", "files", "lease"
_TABLES = (".parquet", ".png", ".csv")
"""Ends of the names of files that a reader may do without, or read by itself."""
_NAME = re.compile(rf"(?!{INDEX}$|{LEASE}$)({VERSIONS}/\w[^/\0]*/)?\w[^/\0]*")
"""Name of a file that the index may name. Other stores and a registry may lie in folders beside the versions."""
_ATTEMPTS = 5  # of reading a file that is being replaced


class BucketFiles:
    """The small files of a store in a bucket.

    Args:
        place: The bucket.
        folder: Folder of the store in the mirror.
    """

    def __init__(self, place: Bucket, folder: Path) -> None:
        """Nothing is read yet."""
        self._place, self._folder = place, folder
        self._index, self._generation = IndexRecord(commit="", files={}), ABSENT
        self._lease: Lease | None = None
        self._seen: dict[str, tuple[int, int, int]] = {}
        """Size, time and inode of every copy that is known to be what the index says."""
        self._bad: set[str] = set()
        """Names of objects below files/ that are missing or damaged, and must be uploaded again to be used."""

    @contextmanager
    def locked(self, busy: Callable[[], None], *, whole: bool) -> Iterator[None]:
        """Hold the store's lock; bring the copies before the block, and commit after it.

        A block that raises changes nothing in the bucket but objects of their own names.

        Args:
            busy: Called if another process holds the lock.
            whole: As for `pull`.
        """
        # The mirror is locked last: whoever waits for another machine must not keep readers of this one waiting.
        with lease.held(self._place, LEASE, busy) as held, storage.lock(self._folder):
            self._lease = held
            try:
                self._pull(whole=whole)
                yield
                self.commit()
            finally:
                self._lease = None

    @contextmanager
    def reading(self, *, whole: bool) -> Iterator[None]:
        """Make the copies what index.json says, and keep them so during the block, without the store's lock.

        Another run may commit meanwhile. Files that `blob` brings late may then be gone.

        Args:
            whole: Whether tables and pictures are brought, too. Without them, `blob` brings what is needed.

        Raises:
            InputError: The bucket cannot be read, or index.json is damaged or missing.
        """
        with storage.lock(self._folder):
            self._pull(whole=whole)
            yield

    def objects(self) -> set[str]:
        """Return the names of the objects below `FILES` that the index named when it was read or written last."""
        return {f"{FILES}/{entry.sha256}" for entry in self._index.files.values()}

    def read(self, name: str) -> bytes:
        """Return the content of a file; b"" if there is none.

        Within the lock this is the file as the block has left it, else the one that index.json names at present.

        Raises:
            DamagedError: The object is missing or damaged.
            InputError: The bucket cannot be read.
        """
        if self._lease is not None and (self._folder / name).exists():
            return (self._folder / name).read_bytes()
        for _ in range(_ATTEMPTS):
            if self._lease is None:
                self._read_index()
            if (entry := self._index.files.get(name)) is None:
                return b""
            path = self.blob(entry.sha256)
            if path is not None:
                data = path.read_bytes()
                if hashlib.sha256(data).hexdigest() != entry.sha256:
                    raise DamagedError(f"{self.address_of(entry.sha256)} ({name}): damaged")
                return data
            if self._lease is not None:
                break
        raise DamagedError(f"{self._place.address}/{INDEX}: names {name}, whose object is missing")

    def blob(self, sha256: str) -> Path | None:
        """Return a local copy of an object below files/, which has been compared; None if there is no such object.

        Args:
            sha256: SHA-256 of the content. A damaged object is returned as it is.
        """
        path = self._folder / FILES / sha256
        with contextlib.suppress(FileNotFoundError):  # at any moment, since the mirror is kept within its limit
            os.utime(path)
            if _sha256(path) == sha256:
                return path
        data, generation = self._place.read(f"{FILES}/{sha256}")
        if hashlib.sha256(data).hexdigest() != sha256:
            self._bad.add(sha256)
        if generation == ABSENT:
            return None
        mirror.keep(path, data)
        return path

    def commit(self) -> None:
        """Upload what the block has changed, and swap the index; the store's lock must be held and stays held.

        Raises:
            InputError: The lock or the mirror was lost, or the bucket cannot be written. The store is as it was then.
        """
        assert self._lease is not None
        self._lease.require_held()
        local = {path.relative_to(self._folder).as_posix(): path for path in self._local()}
        old = self._index.files
        files = {name: entry for name, entry in old.items() if name not in local and self._stays(name)}
        for name, path in local.items():
            known = name in old and self._seen.get(name) == _state(path)
            files[name] = old[name] if known else StoredFile(sha256=_sha256(path), size=path.stat().st_size)
        there = {entry.sha256 for entry in old.values()}
        whole = there - self._bad
        changed = {entry.sha256: name for name, entry in files.items() if name in local and entry.sha256 not in whole}
        new = {sha256: name for sha256, name in changed.items() if _sha256(local[name]) == sha256}
        if files == old and not new:
            return
        if not (self._folder / ".lock").exists():  # or all that was there would count as removed by the block
            raise InputError(
                f"{self._folder}: was removed from the cache during the run; nothing was changed in "
                f"{self._place.address}; run again"
            )
        self._place.upload([(local[name], f"{FILES}/{sha256}") for sha256, name in new.items()])
        self._bad -= set(new)
        self._lease.require_held()
        self._swap(files)
        self._seen = {name: _state(path) for name, path in local.items()}
        (self._folder / FILES).mkdir(exist_ok=True)
        for sha256, name in new.items():
            with contextlib.suppress(OSError):  # else it is downloaded when it is needed
                os.link(local[name], self._folder / FILES / sha256)
        self._forget(there - {entry.sha256 for entry in files.values()})

    def _swap(self, files: dict[str, StoredFile]) -> None:
        """Write a new index unless somebody else has changed it since it was read."""
        index = IndexRecord(commit=uuid.uuid4().hex, files=dict(sorted(files.items())))
        data = atomic.to_json(index.to_dict()).encode()
        try:
            self._place.write(INDEX, data, self._generation)
        except ChangedError:
            raise InputError(
                f"{self._place.address}: another run has changed the store in the meantime; nothing was changed by "
                "this one; run again"
            ) from None
        self._index = index
        present, generation = self._place.read(INDEX)
        # If somebody else has written it since, the block's next commit must fail.
        self._generation = generation if present == data else ABSENT

    def _forget(self, gone: set[str]) -> None:
        """Delete objects that no index names any more. What cannot be deleted is left to retention."""
        if not gone:
            return
        try:
            self._place.delete([f"{FILES}/{sha256}" for sha256 in sorted(gone)])
        except InputError as error:
            log.info(f"{len(gone)} objects that are no longer used remain ({error})")
        for sha256 in gone:
            (self._folder / FILES / sha256).unlink(missing_ok=True)

    def _stays(self, name: str) -> bool:
        """Return whether a file that has no copy was never brought, and not removed by the block."""
        if name in self._seen:
            return False
        folder = (self._folder / name).parent
        if folder == self._folder:
            return True
        facts = folder / "data.json"
        known = self._seen.get(facts.relative_to(self._folder).as_posix())
        return folder.is_dir() and (known is None or (facts.exists() and known == _state(facts)))

    def _pull(self, *, whole: bool) -> None:
        for _ in range(_ATTEMPTS):
            self._read_index()
            for path in self._local():
                if path.relative_to(self._folder).as_posix() not in self._index.files:
                    path.unlink()
            self._drop_folders()
            names = [name for name in self._index.files if whole or not name.endswith(_TABLES)]
            for name in self._index.files.keys() - set(names):  # a copy may be of an earlier commit
                (self._folder / name).unlink(missing_ok=True)
            self._seen = {}
            with ThreadPoolExecutor(WORKERS) as pool:
                missing = [name for name, found in zip(names, pool.map(self._bring, names), strict=True) if not found]
            if not missing:
                return
        # versions without some of their files are skipped by name; nothing else may be missing
        lost = [name for name in missing if not name.startswith(f"{VERSIONS}/")]
        if lost:
            raise InputError(
                f"{self.address_of(self._index.files[lost[0]].sha256)} ({lost[0]}): the object is missing; restore it"
            )
        log.info(f"{self._place.address}: {len(missing)} files of data versions are missing, such as {missing[0]}")

    def _drop_folders(self) -> None:
        """Remove what a killed run has left in the mirror, and folders of versions that are gone."""
        home = self._folder / VERSIONS
        named = {name.split("/")[1] for name in self._index.files if name.startswith(f"{VERSIONS}/")}
        for folder in home.iterdir() if home.is_dir() else ():
            if folder.is_dir() and folder.name not in named:
                shutil.rmtree(folder)
        for version in named:
            (home / version).mkdir(parents=True, exist_ok=True)

    def _bring(self, name: str) -> bool:
        """Make the copy of a file what the index says, and return whether its object exists."""
        entry, path = self._index.files[name], Path(mirror.local(f"{self._place.address}/{name}"))
        if not path.is_file() or _sha256(path) != entry.sha256:
            found = self.blob(entry.sha256)
            if found is None:
                path.unlink(missing_ok=True)
                return False
            with mirror.space(), atomic.replacing(path, durable=False) as temporary:
                shutil.copyfile(found, temporary)
        self._seen[name] = _state(path)
        return True

    def _read_index(self) -> None:
        data, generation = self._place.read(INDEX)
        if generation == ABSENT:
            if self._place.entries(f"{FILES}/"):
                raise InputError(
                    f"{self._place.address}/{INDEX}: missing, but there are objects below {FILES}/; restore it from an "
                    "older version of the object or a backup, or give another prefix, below which an empty store begins"
                )
            if self._lease is not None:  # now, so that no object below files/ is ever without an index
                self._generation = ABSENT
                self._swap({})
                return
            self._index, self._generation = IndexRecord(commit="", files={}), ABSENT
            return
        try:
            self._index = IndexRecord.parse(json.loads(data), INDEX, "ignore")
            if strange := [name for name in self._index.files if not _NAME.fullmatch(name)]:
                raise InputError(f"{strange[0]!r} is no file of a store")
        except (ValueError, InputError) as error:
            raise InputError(
                f"{self._place.address}/{INDEX}: damaged ({str(error)[:200]}); restore it from an older version of the "
                "object or a backup"
            ) from None
        self._generation = generation

    def _local(self) -> Iterator[Path]:
        """Yield the copies in the mirror of files that the index names or will name."""
        versions = self._folder / VERSIONS
        for folder in (self._folder, *(versions.iterdir() if versions.is_dir() else ())):
            for path in folder.iterdir() if folder.is_dir() else ():
                name = path.relative_to(self._folder).as_posix()
                if path.is_file() and _NAME.fullmatch(name) and not name.endswith(".tmp"):
                    yield path

    def address_of(self, sha256: str) -> str:
        """Return the address of an object below files/."""
        return f"{self._place.address}/{FILES}/{sha256}"


def _sha256(path: Path) -> str:
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _state(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns, found.st_ino
