"""The objects of a bucket: what both kinds of bucket share."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from thyroid import progress
from thyroid.errors import InputError
from thyroid.storage import cache, client
from thyroid.storage.folder import file_names
from thyroid.storage.location import below

PAGE = 1000
"""Objects per page of a listing, the most that either service returns."""
RETRIES = 3
"""How often an object is read once more that is overwritten meanwhile, and sent once more where that failed halfway."""
_BATCH = 512  # objects per batch; an interruption loses no completed batch


@dataclass(frozen=True, slots=True)
class Entry:
    """One object of a bucket.

    Attributes:
        name: Name below the prefix.
        size: Size in bytes; -1 for an object that is to be downloaded whatever its size is.
        generation: Text that changes whenever the object's content changes: Google's number, or the ETag of S3. "" for
            an object that is to be downloaded in its current state.
        checksum: CRC32C in base64 as Google gives it; "" where the service gives none. S3 has the ETag for it.
        modified: When the object was written, in seconds since 1970 in UTC.
    """

    name: str
    size: int
    generation: str
    checksum: str = ""
    modified: float = 0.0


class Bucket(ABC):
    """The objects of a bucket below a prefix. `storage.at` makes it from an address.

    Every call raises `InputError` if the bucket does not exist, the account has no permission, or the service is not
    available for longer than `client.PATIENCE`.

    Args:
        address: Address of the form gs://bucket/prefix or s3://bucket/prefix.

    Raises:
        InputError: The address has no bucket.
    """

    scheme: ClassVar[str]
    """How an address of this kind starts."""

    def __init__(self, address: str) -> None:
        """Split the address into bucket and prefix; nothing is sent yet."""
        self.bucket, _, prefix = address.removeprefix(self.scheme).rstrip("/").partition("/")
        self.address = below(self.scheme + self.bucket, prefix) if prefix else self.scheme + self.bucket
        self.prefix = f"{prefix}/" if prefix else ""
        if not self.bucket:
            raise InputError(f"{address}: give {self.scheme}bucket/prefix")

    @abstractmethod
    def read(self, name: str) -> tuple[bytes, str]:
        """Return content and generation of an object, or b"" and `ABSENT` if there is none, as `Folder.read` does."""

    @abstractmethod
    def write(self, name: str, data: bytes, generation: str | None = None) -> None:
        """Write an object atomically, with the arguments and errors of `Folder.write`."""

    @abstractmethod
    def upload(self, pairs: Sequence[tuple[Path, str]]) -> None:
        """Upload files in parallel, each to the object of the name beside it; the service compares checksums."""

    @abstractmethod
    def entries(self, start: str = "") -> list[Entry]:
        """Return all objects below the prefix whose names start with `start`, sorted by name.

        Placeholder objects that mark folders are left out.
        """

    @abstractmethod
    def require_preconditions(self) -> None:
        """Make sure that the service refuses a write whose `generation` is not the present one.

        Raises:
            InputError: It does not, so nothing that several processes write can be kept there.
        """

    @abstractmethod
    def keeps_removed(self) -> bool | None:
        """Return whether removed objects can be restored, as older versions or by soft delete; None if unknown."""

    def put(self, source: Path, name: str, only: Sequence[str] = ()) -> None:
        """Upload the files of a folder as `Folder.put` does, and compare checksums."""
        self.upload([(source / file, f"{name}/{file}") for file in only or file_names(source)])

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
        found = [(entry, entry.name.removeprefix(start)) for entry in self.entries(start)]
        found = [(entry, file) for entry, file in found if (file in only if only else not file.startswith("."))]
        key = hashlib.sha256(
            "\n".join([self.address, *(f"{entry.name}#{entry.generation}" for entry, _ in found)]).encode()
        )
        with cache.folder_for(key.hexdigest()[:32]) as folder:
            for entry, copy in self.download([(entry, cache.path_within(folder, file)) for entry, file in found]):
                if copy is None:
                    raise InputError(f"{self.address}/{entry.name}: changed or was deleted while being read; try again")
        return folder

    def children(self) -> list[str]:
        """Return the sorted names directly below the prefix, without hidden names, as `Folder.children` does."""
        names = {key.removeprefix(self.prefix).rstrip("/") for key in self._first_level()}
        return sorted(name for name in names if name and not name.startswith("."))

    def remove(self, name: str) -> None:
        """Remove an object or all objects of a folder, as `Folder.remove` does."""
        for own in (*(entry.name for entry in reversed(self.entries(f"{name}/"))), name):
            self._delete(own)

    def delete(self, names: Sequence[str]) -> None:
        """Delete objects in parallel and in no order; those that do not exist are left out."""
        with ThreadPoolExecutor(client.WORKERS) as pool:
            list(pool.map(self._delete, names))

    def download(
        self, wanted: Sequence[tuple[Entry, Path]], description: str = ""
    ) -> Iterator[tuple[Entry, Path | None]]:
        """Download objects in parallel, compare checksums, and yield each object when its file is complete.

        A file is written under another name first. A file that already exists is used if its checksum is that of the
        object, so a repeated download resumes where the last one stopped. An object that was overwritten since it
        was listed is downloaded in its current state.

        Args:
            wanted: Objects, each with the path of the file to write.
            description: Text of the progress bar.

        Returns:
            Pairs of the object as it was read and its file; the file is None if the object vanished in the meantime.
        """
        with progress.bar(None, len(wanted), description, "object") as shown:
            for start in range(0, len(wanted), _BATCH):
                for entry, path in self._download_batch(wanted[start : start + _BATCH]):
                    shown.update()
                    yield entry, path

    def _download_batch(self, wanted: Sequence[tuple[Entry, Path]]) -> Iterator[tuple[Entry, Path | None]]:
        """Yield a batch as `download` does: first the files that are already there, then those that are transferred."""
        pending = []
        for entry, path in wanted:
            if path.is_file() and path.stat().st_size == entry.size and self._is_copy(path, entry):
                yield entry, path
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                pending.append((entry, path))
        for attempt in range(1 + RETRIES):
            if not pending:
                return
            complete = self._transfer(pending, can_retry=attempt < RETRIES)
            yield from (pair for pair, done in zip(pending, complete, strict=True) if done)
            missing = [pair for pair, done in zip(pending, complete, strict=True) if not done]
            pending = []
            for entry, path in missing:
                current = self._current(entry.name) if attempt < RETRIES else None
                if current is None:
                    yield entry, None
                else:
                    pending.append((current, path))

    @abstractmethod
    def _first_level(self) -> list[str]:
        """Return what is directly below the prefix, objects and folders, without listing what the folders hold."""

    @abstractmethod
    def _is_copy(self, path: Path, entry: Entry) -> bool:
        """Return whether a file of an object's size has its content."""

    @abstractmethod
    def _transfer(self, wanted: Sequence[tuple[Entry, Path]], *, can_retry: bool) -> list[bool]:
        """Download objects at once, and return for each of them whether its file is complete.

        Args:
            wanted: Objects, each with the path of the file to write.
            can_retry: Whether an object that failed for a passing reason may count as incomplete. If not, its error is
                raised.
        """

    @abstractmethod
    def _current(self, name: str) -> Entry | None:
        """Return an object in its current state, or None if it no longer exists."""

    @abstractmethod
    def _delete(self, name: str) -> None:
        """Delete an object, or do nothing if it does not exist."""
