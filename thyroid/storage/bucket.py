"""The objects of a bucket on Google Cloud Storage."""

import base64
import hashlib
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thyroid import progress
from thyroid.atomic import flush
from thyroid.errors import InputError
from thyroid.storage import cache, client
from thyroid.storage.folder import file_names
from thyroid.storage.location import ABSENT, SCHEME, ChangedError, below

PAGE = 1000
"""Objects per page of a listing, the most that the service returns."""
_BATCH = 512  # objects per batch; an interruption loses no completed batch
_RETRIES = 3  # of an object that is overwritten while it is read


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


class Bucket:
    """The objects of a bucket below a prefix.

    Every call raises `InputError` if the bucket does not exist, the account has no permission, or the service is not
    available for longer than `client.PATIENCE`.

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
                f"{address}: google-cloud-storage is not installed; run pip install google-cloud-storage"
            ) from None
        self.bucket, _, prefix = address.removeprefix(SCHEME).rstrip("/").partition("/")
        self.address = below(SCHEME + self.bucket, prefix) if prefix else SCHEME + self.bucket
        self.prefix = f"{prefix}/" if prefix else ""
        if not self.bucket:
            raise InputError(f"{address}: give gs://bucket/prefix")

    def read(self, name: str) -> tuple[bytes, str]:
        """Return content and generation of an object, or b"" and `ABSENT` if there is none, as `Folder.read` does."""
        from google.api_core.exceptions import NotFound

        with client.input_errors(self.address, self.bucket):
            blob = self._blob(name)
            try:
                # retry around it, too: the client does not retry a 404 whose own text is cut off
                data = client.retry()(lambda: blob.download_as_bytes(**client.transfer_options()))()
            except NotFound:
                self._need_bucket()
                return b"", ABSENT
            return data, str(blob.generation)

    def write(self, name: str, data: bytes, generation: str | None = None) -> None:
        """Write an object atomically, with the arguments and errors of `Folder.write`."""
        from google.api_core.exceptions import PreconditionFailed

        expected, mark = None if generation is None else int(generation), {"write": uuid.uuid4().hex}
        with client.input_errors(self.address, self.bucket):
            blob = self._blob(name)
            blob.metadata = mark
            try:
                blob.upload_from_string(data, if_generation_match=expected, **client.transfer_options())
            except PreconditionFailed:
                # an upload whose answer was lost is retried, and then finds its own object
                now = (
                    client.connect()
                    .bucket(self.bucket)
                    .get_blob(blob.name, retry=client.retry(), timeout=client.TIMEOUTS)
                )
                if now is None or now.metadata != mark:
                    raise ChangedError(name) from None

    def put(self, source: Path, name: str, only: Sequence[str] = ()) -> None:
        """Upload the files of a folder as `Folder.put` does, and compare checksums."""
        from google.cloud.storage import transfer_manager

        with client.input_errors(self.address, self.bucket):
            transfer_manager.upload_many(
                [(str(source / file), self._blob(f"{name}/{file}")) for file in only or file_names(source)],
                worker_type=transfer_manager.THREAD,
                max_workers=client.WORKERS,
                upload_kwargs=client.transfer_options(),
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
        names = {entry.name.split("/")[0] for entry in self.entries()}
        return sorted(name for name in names if not name.startswith("."))

    def remove(self, name: str) -> None:
        """Remove an object or all objects of a folder, as `Folder.remove` does."""
        from google.api_core.exceptions import NotFound

        with client.input_errors(self.address, self.bucket):
            for own in (*(entry.name for entry in reversed(self.entries(f"{name}/"))), name):
                try:
                    self._blob(own).delete(retry=client.retry(), timeout=client.TIMEOUTS)
                except NotFound:
                    self._need_bucket()

    def entries(self, start: str = "") -> list[Entry]:
        """Return all objects below the prefix whose names start with `start`, sorted by name.

        Placeholder objects that mark folders are left out.
        """
        with client.input_errors(self.address, self.bucket):
            listed = client.connect().list_blobs(
                self.bucket,
                prefix=self.prefix + start,
                page_size=PAGE,
                fields="items(name,size,generation,crc32c),nextPageToken",
                retry=client.retry(),
                timeout=client.TIMEOUTS,
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
            if path.is_file() and _is_copy(path, entry):
                yield entry, path
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                pending.append((entry, path))
        for attempt in range(1 + _RETRIES):
            if not pending:
                return
            complete = self._transfer(pending, can_retry=attempt < _RETRIES)
            yield from (pair for pair, done in zip(pending, complete, strict=True) if done)
            missing = [pair for pair, done in zip(pending, complete, strict=True) if not done]
            pending = []
            for entry, path in missing:
                current = self._current(entry.name) if attempt < _RETRIES else None
                if current is None:
                    yield entry, None
                else:
                    pending.append((current, path))

    def _transfer(self, wanted: Sequence[tuple[Entry, Path]], *, can_retry: bool) -> list[bool]:
        """Download objects at once, and return for each of them whether its file is complete.

        Args:
            wanted: Objects, each with the path of the file to write.
            can_retry: Whether an object that failed for a passing reason may count as incomplete. If not, its error is
                raised.
        """
        from google.api_core.exceptions import NotFound
        from google.cloud.storage import transfer_manager

        is_passing = client.retry()._predicate
        parts = [path.with_name(f".{path.name}.{uuid.uuid4().hex}") for _, path in wanted]
        complete = []
        try:
            with client.input_errors(self.address, self.bucket):
                failures = transfer_manager.download_many(
                    [
                        (self._blob(entry.name, entry.generation), str(part))
                        for (entry, _), part in zip(wanted, parts, strict=True)
                    ],
                    download_kwargs=client.transfer_options(),
                    worker_type=transfer_manager.THREAD,
                    max_workers=client.WORKERS,
                )
                for (_, path), part, failure in zip(wanted, parts, failures, strict=True):
                    gone = isinstance(failure, NotFound) or (can_retry and is_passing(failure))
                    if failure is not None and not gone:
                        raise failure
                    if not gone:
                        flush(part)
                        part.replace(path)
                    complete.append(not gone)
        finally:
            for part in parts:
                part.unlink(missing_ok=True)
        return complete

    def _current(self, name: str) -> Entry | None:
        """Return an object in its current state, or None if it no longer exists."""
        with client.input_errors(self.address, self.bucket):
            blob = (
                client.connect()
                .bucket(self.bucket)
                .get_blob(self.prefix + name, retry=client.retry(), timeout=client.TIMEOUTS)
            )
            if blob is None:
                self._need_bucket()
                return None
            return Entry(name, blob.size, str(blob.generation), blob.crc32c or "")

    def _blob(self, name: str, generation: str | None = None) -> Any:
        bucket = client.connect().bucket(self.bucket)
        return bucket.blob(self.prefix + name, generation=None if generation is None else int(generation))

    def _need_bucket(self) -> None:
        """Raise NotFound if the bucket itself is missing, not only an object."""
        next(
            iter(
                client.connect().list_blobs(self.bucket, max_results=1, retry=client.retry(), timeout=client.TIMEOUTS)
            ),
            None,
        )


def _is_copy(path: Path, entry: Entry) -> bool:
    """Return whether a file has the content of an object."""
    import google_crc32c

    if path.stat().st_size != entry.size:
        return False
    checksum = google_crc32c.Checksum()
    with path.open("rb") as opened:
        for _ in checksum.consume(opened, 1 << 20):
            pass
    return not entry.crc32c or base64.b64encode(checksum.digest()).decode() == entry.crc32c
