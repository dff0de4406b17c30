"""A folder, or gs://bucket/prefix on Google Cloud Storage, behind the same few calls.

Both have atomic writes that fail if another writer was faster (`write` with a generation), so code that builds on them
is the same for either. Credentials are Google's application default credentials; STORAGE_EMULATOR_HOST names an
emulator.
"""

import base64
import functools
import hashlib
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thyroid import errors, locks, progress
from thyroid.atomic import flush, replacing
from thyroid.errors import InputError

SCHEME = "gs://"
ABSENT = "0"
"""Generation of a file that does not exist."""
WORKERS = 16
"""Number of transfers at once; a small object spends most of its time waiting."""
PAGE = 1000
"""Objects per page of a listing, the most that the service returns."""
TIMEOUTS = (10.0, 60.0)  # seconds to connect, seconds to answer
PATIENCE = 300.0
"""Seconds of 429, 5xx and broken connections, retried with doubling pauses, before a transfer is given up."""
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0
CACHE_LIMIT = 4_000_000_000
"""Bytes of the user's cache above which the least recently used entries are removed.

It holds about ten models of the largest backbone.
"""
_IN_USE = 3600.0  # seconds since its last use during which an entry stays, since somebody may be reading it
_BATCH = 512  # objects per batch; an interruption loses no completed batch
_LOOKS = 3  # retries of an object that is overwritten while it is read

Location = str | Path


class ChangedError(Exception):
    """Somebody else wrote the file in the meantime: read it again and decide again."""


@dataclass(frozen=True)
class Entry:
    """One object of a bucket.

    Attributes:
        name: Name below the prefix.
        size: Size in bytes.
        generation: Number that changes whenever the object is written.
        crc32c: Checksum in base64 as the service gives it; "" where it gives none.
    """

    name: str
    size: int
    generation: str
    crc32c: str = ""


def is_bucket(location: Location) -> bool:
    """Return whether a location is on Google Cloud Storage."""
    return str(location).startswith(SCHEME)


def below(location: Location, *parts: str) -> str:
    """Return the text of a location within another one.

    `Path` cannot be used because it would turn gs:// into gs:/.
    """
    return "/".join((str(location).rstrip("/"), *parts))


def at(location: Location) -> "Folder | Bucket":
    """Return the place that a path or a gs:// address names.

    Raises:
        InputError: The address has another scheme or no bucket, or Google's client is not installed.
    """
    text = str(location)
    if is_bucket(location):
        return Bucket(text)
    if "://" in text or text.startswith("gs:/"):
        raise InputError(f"{text}: give a folder, or gs://bucket/prefix")
    return Folder(Path(text))


def parted(location: Location) -> tuple[str, str]:
    """Split a location such as labels.csv#column into the place and the text after the #.

    The text is empty if there is no #.
    """
    place, _, columns = str(location).partition("#")
    return place, columns


def file(location: Location) -> Path:
    """Return a local file with the content of a file that may be an object in a bucket.

    An object is downloaded into the user's cache, once for each generation.

    Raises:
        InputError: There is no such object, or its bucket cannot be read.
    """
    if not is_bucket(location):
        return Path(location)
    parent, _, name = str(location).rpartition("/")
    bucket = Bucket(parent)
    found = [entry for entry in bucket.entries(name) if entry.name == name]
    if not found:
        raise InputError(f"{location}: no such object")
    key = hashlib.sha256(f"{location}#{found[0].generation}".encode()).hexdigest()[:32]
    with _cached(key) as folder:
        for _, local in bucket.download([(found[0], _within(folder, name))]):
            if local is not None:
                return local
    raise InputError(f"{location}: vanished while it was read; try again")


class Folder:
    """A folder on this machine or on a volume.

    Args:
        path: Path of the folder, which need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        """Keep the path and its absolute form, `address`."""
        self.path = path
        self.address = str(path.resolve())

    def read(self, name: str) -> tuple[bytes, str]:
        """Return content and generation of a file, or b"" and `ABSENT` if there is no such file.

        The generation of a file in a folder is the SHA-256 of its content.
        """
        try:
            data = (self.path / name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return b"", ABSENT
        return data, hashlib.sha256(data).hexdigest()

    def write(self, name: str, data: bytes, generation: str | None = None) -> None:
        """Write a file atomically.

        Args:
            name: Name of the file below the folder.
            data: Content of the file.
            generation: Generation that the file must still have; `ABSENT` if it must not exist; None to write in any
                case.

        Raises:
            ChangedError: The file has another generation.
        """
        target = self.path / name
        with lock(self.path):
            target.parent.mkdir(parents=True, exist_ok=True)
            if generation is not None and self.read(name)[1] != generation:
                raise ChangedError(name)
            with replacing(target) as temporary:
                temporary.write_bytes(data)
            flush(target.parent)

    def put(self, source: Path, name: str, only: Sequence[str] = ()) -> None:
        """Copy the files of the folder `source` to the folder `name`, so that they survive a power cut.

        Args:
            source: Local folder.
            name: Name of the target below this folder.
            only: Names of the files to copy; all if empty.
        """
        target = self.path / name
        for file in only or _files(source):
            (target / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source / file, target / file)
        for path in (self.path, target, *target.rglob("*")):
            flush(path)

    def get(self, name: str, only: Sequence[str] = ()) -> Path:
        """Return a local folder for reading that has the files of the folder `name`.

        Args:
            name: Name of the folder.
            only: Names of the files that are needed. They are all there in any case.
        """
        return self.path / name

    def children(self) -> list[str]:
        """Return the sorted names of what is directly in the folder, without hidden names."""
        return sorted(p.name for p in self.path.iterdir() if not p.name.startswith(".")) if self.path.is_dir() else []

    def remove(self, name: str) -> None:
        """Remove a file or a whole folder; do nothing if it does not exist.

        Names that start with a dot are removed last.
        """
        target = self.path / name
        if not target.exists():
            return
        with lock(self.path):
            for path in (*sorted(target.rglob("*"), reverse=True), target):
                if path.is_dir() and not path.is_symlink():
                    path.rmdir()
                else:
                    path.unlink(missing_ok=True)


class Bucket:
    """The objects of a bucket below a prefix.

    Every call raises `InputError` if the bucket does not exist, the account has no right to it, or the service is not
    available for longer than `PATIENCE`.

    Args:
        address: Address of the form gs://bucket/prefix.

    Raises:
        InputError: The address has no bucket, or Google's client is not installed.
    """

    def __init__(self, address: str) -> None:
        """Split the address into bucket and prefix; nothing is sent yet."""
        try:
            import google.cloud.storage  # noqa: F401
        except ImportError:
            raise InputError(
                f"{address}: google-cloud-storage is not installed here; pip install google-cloud-storage"
            ) from None
        self.bucket, _, prefix = address.removeprefix(SCHEME).rstrip("/").partition("/")
        self.address = below(SCHEME + self.bucket, prefix) if prefix else SCHEME + self.bucket
        self.prefix = f"{prefix}/" if prefix else ""
        if not self.bucket:
            raise InputError(f"{address}: give gs://bucket/prefix")

    def read(self, name: str) -> tuple[bytes, str]:
        """Return content and generation of an object, or b"" and `ABSENT` if there is none, as `Folder.read` does."""
        from google.api_core.exceptions import NotFound

        with self._told():
            blob = self._blob(name)
            try:
                # retry around it, too: the client does not retry a 404 whose own text is cut off
                data = _retry()(lambda: blob.download_as_bytes(**_transfer()))()
            except NotFound:
                self._need_bucket()
                return b"", ABSENT
            return data, str(blob.generation)

    def write(self, name: str, data: bytes, generation: str | None = None) -> None:
        """Write an object atomically, with the arguments and errors of `Folder.write`."""
        from google.api_core.exceptions import PreconditionFailed

        expected, mark = None if generation is None else int(generation), {"write": uuid.uuid4().hex}
        with self._told():
            blob = self._blob(name)
            blob.metadata = mark
            try:
                blob.upload_from_string(data, if_generation_match=expected, **_transfer())
            except PreconditionFailed:
                # an upload whose answer was lost is retried, and then finds its own object
                now = _client().bucket(self.bucket).get_blob(blob.name, retry=_retry(), timeout=TIMEOUTS)
                if now is None or now.metadata != mark:
                    raise ChangedError(name) from None

    def put(self, source: Path, name: str, only: Sequence[str] = ()) -> None:
        """Upload the files of a folder as `Folder.put` does, and compare checksums."""
        from google.cloud.storage import transfer_manager

        with self._told():
            transfer_manager.upload_many(
                [(str(source / file), self._blob(f"{name}/{file}")) for file in only or _files(source)],
                worker_type=transfer_manager.THREAD,
                max_workers=WORKERS,
                upload_kwargs=_transfer(),
                raise_exception=True,
            )

    def get(self, name: str, only: Sequence[str] = ()) -> Path:
        """Return a local folder with the files of the folder `name`, without hidden ones.

        The files are downloaded into the user's cache, once for as long as no object changes.

        Args:
            name: Name of the folder.
            only: Names of the files to download, hidden ones included; all that are not hidden if empty.

        Raises:
            InputError: An object vanished during the download.
        """
        start = f"{name}/"
        found = [(one, one.name.removeprefix(start)) for one in self.entries(start)]
        found = [(one, file) for one, file in found if (file in only if only else not file.startswith("."))]
        key = hashlib.sha256("\n".join([self.address, *(f"{one.name}#{one.generation}" for one, _ in found)]).encode())
        with _cached(key.hexdigest()[:32]) as folder:
            for one, copy in self.download([(one, _within(folder, file)) for one, file in found]):
                if copy is None:
                    raise InputError(f"{self.address}/{one.name}: vanished while it was read; try again")
        return folder

    def children(self) -> list[str]:
        """Return the sorted names directly below the prefix, without hidden names, as `Folder.children` does."""
        names = {one.name.split("/")[0] for one in self.entries()}
        return sorted(name for name in names if not name.startswith("."))

    def remove(self, name: str) -> None:
        """Remove an object or all objects of a folder, as `Folder.remove` does."""
        from google.api_core.exceptions import NotFound

        with self._told():
            for one in (*(entry.name for entry in reversed(self.entries(f"{name}/"))), name):
                try:
                    self._blob(one).delete(retry=_retry(), timeout=TIMEOUTS)
                except NotFound:
                    self._need_bucket()

    def entries(self, start: str = "") -> list[Entry]:
        """Return all objects below the prefix whose names start with `start`, sorted by name.

        Placeholder objects that mark folders are left out.
        """
        with self._told():
            listed = _client().list_blobs(
                self.bucket,
                prefix=self.prefix + start,
                page_size=PAGE,
                fields="items(name,size,generation,crc32c),nextPageToken",
                retry=_retry(),
                timeout=TIMEOUTS,
            )
            return [
                Entry(blob.name.removeprefix(self.prefix), blob.size, str(blob.generation), blob.crc32c or "")
                for blob in listed
                if not blob.name.endswith("/")
            ]

    def download(
        self, wanted: Sequence[tuple[Entry, Path]], description: str = ""
    ) -> Iterator[tuple[Entry, Path | None]]:
        """Download objects in parallel, compare checksums, and yield each object when its file is complete.

        A file is written under another name first. A file that already exists is used if its checksum is that of the
        object, so a download that is started again resumes where it stopped. An object that was overwritten since it
        was listed is downloaded in its current state.

        Args:
            wanted: Objects, each with the path of the file to write.
            description: Text of the progress bar.

        Returns:
            Pairs of the object as it was read and its file; the file is None if the object vanished in the meantime.
        """
        from google.api_core.exceptions import NotFound
        from google.cloud.storage import transfer_manager

        passing = _retry()._predicate
        with progress.bar(None, len(wanted), description, "object") as shown:
            for start in range(0, len(wanted), _BATCH):
                batch = []
                for entry, file in wanted[start : start + _BATCH]:
                    if file.is_file() and _is_copy(file, entry):
                        shown.update()
                        yield entry, file
                    else:
                        file.parent.mkdir(parents=True, exist_ok=True)
                        batch.append((entry, file))
                for look in range(1 + _LOOKS):
                    parts = [file.with_name(f".{file.name}.{uuid.uuid4().hex}") for _, file in batch]
                    again: list[tuple[Entry, Path]] = []
                    try:
                        with self._told():
                            results = transfer_manager.download_many(
                                [
                                    (self._blob(entry.name, entry.generation), str(part))
                                    for (entry, _), part in zip(batch, parts, strict=True)
                                ],
                                download_kwargs=_transfer(),
                                worker_type=transfer_manager.THREAD,
                                max_workers=WORKERS,
                            )
                            for (entry, file), part, failure in zip(batch, parts, results, strict=True):
                                if isinstance(failure, NotFound) or (look < _LOOKS and passing(failure)):
                                    again.append((entry, file))
                                elif failure is not None:
                                    raise failure
                                else:
                                    flush(part)
                                    part.replace(file)
                    finally:
                        for part in parts:
                            part.unlink(missing_ok=True)
                    gone = {id(entry) for entry, _ in again}
                    for entry, file in batch:
                        if id(entry) not in gone:
                            shown.update()
                            yield entry, file
                    batch = []
                    for entry, file in again:
                        now = None if look == _LOOKS else self._now(entry.name)
                        if now is None:
                            shown.update()
                            yield entry, None
                        else:
                            batch.append((now, file))
                    if not batch:
                        break

    def _now(self, name: str) -> Entry | None:
        """Return an object in its current state, or None if it no longer exists."""
        with self._told():
            blob = _client().bucket(self.bucket).get_blob(self.prefix + name, retry=_retry(), timeout=TIMEOUTS)
            if blob is None:
                self._need_bucket()
                return None
            return Entry(name, blob.size, str(blob.generation), blob.crc32c or "")

    def _blob(self, name: str, generation: str | None = None) -> Any:
        bucket = _client().bucket(self.bucket)
        return bucket.blob(self.prefix + name, generation=None if generation is None else int(generation))

    def _need_bucket(self) -> None:
        """Raise NotFound if the bucket itself is missing, not only an object."""
        next(iter(_client().list_blobs(self.bucket, max_results=1, retry=_retry(), timeout=TIMEOUTS)), None)

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Turn Google's errors into InputErrors whose messages say what to do."""
        import requests
        from google.api_core import exceptions
        from google.auth.exceptions import GoogleAuthError
        from google.cloud.storage.exceptions import DataCorruption

        try:
            yield
        except exceptions.NotFound:
            raise InputError(f"{self.address}: there is no bucket {self.bucket}; check the address") from None
        except (exceptions.Forbidden, exceptions.Unauthorized) as error:
            raise InputError(
                f"{self.address}: no right to it ({errors.one_line(error)[:200]}); give the account "
                "roles/storage.objectViewer to read, roles/storage.objectUser to write, and see that it is the "
                "account you think"
            ) from None
        except GoogleAuthError as error:
            raise InputError(
                f"{self.address}: no credentials ({errors.one_line(error)[:200]}); run gcloud auth "
                "application-default login, set GOOGLE_APPLICATION_CREDENTIALS, or give the pod workload identity"
            ) from None
        except (exceptions.GoogleAPIError, requests.RequestException, ConnectionError, DataCorruption) as error:
            raise InputError(
                f"{self.address}: Google Cloud Storage does not do its part ({errors.one_line(error)[:200]}); what was "
                "transferred is kept, start the same again later"
            ) from None


@contextmanager
def lock(folder: Path, wait: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold a folder's lock during the block; a killed process releases it.

    Args:
        folder: Folder to lock, which is made if it does not exist.
        wait: Called once if another process holds the lock.
    """
    with locks.held(folder / ".lock", wait):
        yield


def _client() -> Any:
    return _client_of(os.environ.get("STORAGE_EMULATOR_HOST"))


@functools.cache
def _client_of(emulator: str | None) -> Any:
    from google.cloud import storage
    from requests.adapters import HTTPAdapter

    client = storage.Client(project=os.environ.get("GOOGLE_CLOUD_PROJECT", "none"))  # only new buckets need it
    client._bucket_metadata_cache = None  # it requests the bucket in the background, which needs a further right
    for scheme in ("http://", "https://"):
        client._http.mount(scheme, HTTPAdapter(pool_connections=WORKERS, pool_maxsize=WORKERS))  # the default is ten
    return client


def _retry() -> Any:
    from google.cloud.storage.exceptions import DataCorruption
    from google.cloud.storage.retry import DEFAULT_RETRY

    passing = DEFAULT_RETRY._predicate
    return (
        DEFAULT_RETRY.with_predicate(lambda error: passing(error) or isinstance(error, DataCorruption))
        .with_delay(FIRST_PAUSE, LONGEST_PAUSE, 2.0)
        .with_timeout(PATIENCE)
    )


def _is_copy(file: Path, entry: Entry) -> bool:
    """Return whether a file has the content of an object."""
    import google_crc32c

    if file.stat().st_size != entry.size:
        return False
    checksum = google_crc32c.Checksum()
    with file.open("rb") as opened:
        for _ in checksum.consume(opened, 1 << 20):
            pass
    return not entry.crc32c or base64.b64encode(checksum.digest()).decode() == entry.crc32c


def _transfer() -> dict[str, Any]:
    return {"retry": _retry(), "timeout": TIMEOUTS, "checksum": "crc32c"}


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "thyroid"


@contextmanager
def _cached(key: str) -> Iterator[Path]:
    """Yield a folder of the user's cache to fill; after a new one, remove the oldest folders above the limit."""
    folder = _cache() / key
    new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    os.utime(folder)
    try:
        yield folder
    finally:
        if new:
            _trim()


def _trim() -> None:
    used = sorted(((one.stat().st_mtime, one) for one in _cache().iterdir() if one.is_dir()), reverse=True)
    total = 0
    for when, folder in used:
        total += sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        if total > CACHE_LIMIT and time.time() - when > _IN_USE:
            shutil.rmtree(folder, ignore_errors=True)


def _within(folder: Path, name: str) -> Path:
    """Return the path of `name` below `folder`; the name of an object may contain anything.

    Raises:
        InputError: The path would be outside the folder.
    """
    file = folder / name
    if not file.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"{name}: this object's name leaves its folder")
    file.parent.mkdir(parents=True, exist_ok=True)
    return file


def _files(folder: Path) -> list[str]:
    """Return the names of all files below a folder, relative to it."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
