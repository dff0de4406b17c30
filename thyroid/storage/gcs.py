"""The objects of a bucket on Google Cloud Storage."""

import base64
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from thyroid.atomic import flush
from thyroid.errors import InputError
from thyroid.storage import bucket, client
from thyroid.storage.bucket import Bucket, Entry
from thyroid.storage.location import ABSENT, ChangedError


class GoogleBucket(Bucket):
    """The objects of a bucket on Google Cloud Storage below a prefix.

    Args:
        address: Address of the form gs://bucket/prefix.

    Raises:
        InputError: The address has no bucket, or Google's client is not installed.
    """

    scheme = "gs://"

    def __init__(self, address: str) -> None:
        """Split the address into bucket and prefix; nothing is sent yet."""
        try:
            import google.cloud.storage  # noqa: F401
        except ImportError:
            raise InputError(
                f"{address}: google-cloud-storage is not installed; run pip install google-cloud-storage"
            ) from None
        super().__init__(address)

    def read(self, name: str) -> tuple[bytes, str]:
        """Return content and generation of an object, or b"" and `ABSENT` if there is none, as `Folder.read` does."""
        from google.api_core.exceptions import NotFound, RequestRangeNotSatisfiable

        with client.input_errors(self.address, self.bucket):
            blob = self._blob(name)
            try:
                # Retry around it, too: the client does not retry a 404 whose own text is cut off, and after a wrong
                # checksum it goes on behind the end of the object.
                data = client.retry(RequestRangeNotSatisfiable)(
                    lambda: blob.download_as_bytes(**client.transfer_options())
                )()
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
                now = self._present(name)
                if now is None or now.metadata != mark:
                    raise ChangedError(name) from None

    def upload(self, pairs: Sequence[tuple[Path, str]]) -> None:
        """Upload files in parallel, each to the object of the name beside it; the service compares checksums."""
        from google.cloud.storage import transfer_manager

        with client.input_errors(self.address, self.bucket):
            transfer_manager.upload_many(
                [(str(file), self._blob(name)) for file, name in pairs],
                worker_type=transfer_manager.THREAD,
                max_workers=client.WORKERS,
                upload_kwargs=client.transfer_options(),
                raise_exception=True,
            )

    def entries(self, start: str = "") -> list[Entry]:
        """Return all objects below the prefix whose names start with `start`, sorted by name.

        Placeholder objects that mark folders are left out.
        """
        fields = "items(name,size,generation,crc32c,updated),nextPageToken"
        with client.input_errors(self.address, self.bucket):
            listed = self._listed(prefix=self.prefix + start, fields=fields)
            return [self._entry(blob) for blob in listed if not blob.name.endswith("/")]

    def require_preconditions(self) -> None:
        """Do nothing: Google Cloud Storage keeps this promise in every bucket."""

    def keeps_removed(self) -> bool | None:
        """Return whether removed objects can be restored, as older versions or by soft delete; None if unknown."""
        from google.api_core.exceptions import Forbidden

        with client.input_errors(self.address, self.bucket):
            try:
                found = client.connect().get_bucket(self.bucket, retry=client.retry(), timeout=client.TIMEOUTS)
            except Forbidden:  # a right of its own, storage.buckets.get
                return None
            return bool(found.versioning_enabled or found.soft_delete_policy.retention_duration_seconds)

    def _first_level(self) -> list[str]:
        fields = "items(name),prefixes,nextPageToken"
        with client.input_errors(self.address, self.bucket):
            listed = self._listed(prefix=self.prefix, delimiter="/", fields=fields)
            names = [blob.name for blob in listed]
            return [*names, *listed.prefixes]

    def _is_copy(self, path: Path, entry: Entry) -> bool:
        import google_crc32c

        checksum = google_crc32c.Checksum()
        with path.open("rb") as opened:
            for _ in checksum.consume(opened, 1 << 20):
                pass
        return not entry.checksum or base64.b64encode(checksum.digest()).decode() == entry.checksum

    def _transfer(self, wanted: Sequence[tuple[Entry, Path]], *, can_retry: bool) -> list[bool]:
        from google.api_core.exceptions import NotFound, RequestRangeNotSatisfiable
        from google.cloud.storage import transfer_manager

        is_passing = client.retry(RequestRangeNotSatisfiable)._predicate
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
        with client.input_errors(self.address, self.bucket):
            blob = self._present(name)
            if blob is None:
                self._need_bucket()
                return None
            return self._entry(blob)

    def _delete(self, name: str) -> None:
        from google.api_core.exceptions import NotFound

        with client.input_errors(self.address, self.bucket):
            try:
                self._blob(name).delete(retry=client.retry(), timeout=client.TIMEOUTS)
            except NotFound:
                self._need_bucket()

    def _blob(self, name: str, generation: str = "") -> Any:
        there = client.connect().bucket(self.bucket)
        return there.blob(self.prefix + name, generation=int(generation) if generation else None)

    def _listed(self, **query: Any) -> Any:
        return client.connect().list_blobs(
            self.bucket, page_size=bucket.PAGE, retry=client.retry(), timeout=client.TIMEOUTS, **query
        )

    def _present(self, name: str) -> Any:
        """Return an object with its metadata, or None if it does not exist."""
        there = client.connect().bucket(self.bucket)
        return there.get_blob(self.prefix + name, retry=client.retry(), timeout=client.TIMEOUTS)

    def _entry(self, blob: Any) -> Entry:
        name, modified = blob.name.removeprefix(self.prefix), blob.updated.timestamp()
        return Entry(name, blob.size, str(blob.generation), blob.crc32c or "", modified)

    def _need_bucket(self) -> None:
        """Raise NotFound if the bucket itself is missing, not only an object."""
        next(iter(self._listed(max_results=1)), None)
