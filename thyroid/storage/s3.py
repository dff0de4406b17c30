"""The objects of a bucket on a service that speaks S3."""

import hashlib
import logging
import re
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from thyroid.atomic import flush
from thyroid.errors import InputError
from thyroid.storage import bucket, client, s3_client
from thyroid.storage.bucket import Bucket, Entry
from thyroid.storage.location import ABSENT, ChangedError

_MD5 = re.compile("[0-9a-f]{32}")
_WRITERS = 8  # at once, by which a service shows whether it compares and writes in one step
_proven: set[tuple[object, ...]] = (
    set()
)  # buckets whose service has kept its promises, with the settings of their client

log = logging.getLogger(__name__)


class S3Bucket(Bucket):
    """The objects of a bucket below a prefix, on Amazon S3 or another service that speaks its protocol.

    An object's generation is its ETag, which depends on the content only, so that a file that is written once more with
    the same content counts as unchanged. The service checks what it is sent by the signature's SHA-256. What it sends
    is checked by its size, and by the ETag where that is an MD5: not for files that were sent in parts, nor in a bucket
    that is encrypted by KMS.

    Args:
        address: Address of the form s3://bucket/prefix.

    Raises:
        InputError: The address has no bucket, or the client is not installed.
    """

    scheme = "s3://"

    def __init__(self, address: str) -> None:
        """Split the address into bucket and prefix; nothing is sent yet."""
        try:
            import obstore  # noqa: F401
        except ImportError:
            raise InputError(f"{address}: obstore is not installed; run pip install obstore") from None
        super().__init__(address)
        self._etags_are_md5 = True

    def read(self, name: str) -> tuple[bytes, str]:
        """Return content and generation of an object, or b"" and `ABSENT` if there is none, as `Folder.read` does."""
        import obstore

        with s3_client.input_errors(self.address, self.bucket):
            try:
                found = obstore.get(*self._place(name))
                data = bytes(found.bytes())
            except FileNotFoundError:
                self._need_bucket()
                return b"", ABSENT
            return data, _generation(found.meta)

    def write(self, name: str, data: bytes, generation: str | None = None) -> None:
        """Write an object atomically, with the arguments and errors of `Folder.write`.

        The first write with a generation makes sure that the service compares generations at all.
        """
        if generation is not None:
            self.require_preconditions()
        self._write(name, data, generation)

    def upload(self, pairs: Sequence[tuple[Path, str]]) -> None:
        """Upload files in parallel, each to the object of the name beside it; the service compares checksums."""
        small: list[tuple[Path, str]] = []
        large: list[tuple[Path, str]] = []
        for file, name in pairs:
            (large if file.stat().st_size > s3_client.PART else small).append((file, name))
        with ThreadPoolExecutor(client.WORKERS) as pool:
            list(pool.map(lambda pair: self._send(*pair), small))
        for file, name in large:  # whose parts go side by side
            self._send(file, name)

    def entries(self, start: str = "") -> list[Entry]:
        """Return all objects below the prefix whose names start with `start`, sorted by name.

        Placeholder objects that mark folders are left out, and so are those that cannot be read, because their names
        have the part . or .. between slashes.
        """
        found, unreachable = [], 0
        for page in self._pages(self.prefix + start):
            for item in page.iterfind("{*}Contents"):
                key = s3_client.key_of(page, item)
                if not s3_client.is_reachable(key):
                    unreachable += 1
                elif not key.endswith("/"):
                    size, etag = int(s3_client.text(item, "Size")), s3_client.text(item, "ETag").strip('"')
                    modified = datetime.fromisoformat(s3_client.text(item, "LastModified")).timestamp()
                    found.append(Entry(key.removeprefix(self.prefix), size, etag, modified=modified))
        if unreachable:
            log.warning(
                f"{self.address}: {unreachable:,} objects are left out, because their names have . or .. between "
                "slashes; rename them"
            )
        return sorted(found, key=lambda entry: entry.name)

    def require_preconditions(self) -> None:
        """Make sure, once in a process, that the service refuses a write whose `generation` is not the present one.

        Raises:
            InputError: It does not, so nothing that several processes write can be kept there.
        """
        settings = (self.bucket, *s3_client.environment())
        if settings not in _proven:
            _prove(self)
            _proven.add(settings)

    def keeps_removed(self) -> bool | None:
        """Return whether removed objects can be restored, as older versions; None if the account may not know."""
        try:
            return s3_client.has_versions(self.address, self.bucket)
        except InputError:
            return None

    def _write(self, name: str, data: bytes, generation: str | None) -> str:
        """Write an object as `write` does, whatever the service promises, and return its generation."""
        import obstore
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        mark = {"write": uuid.uuid4().hex}
        mode: Any = "overwrite" if generation is None else "create"
        if generation not in (None, ABSENT):
            mode = {"e_tag": f'"{generation}"'}
        with s3_client.input_errors(self.address, self.bucket):
            store, path = self._place(name)
            try:
                return _generation(obstore.put(store, path, data, mode=mode, attributes=mark, use_multipart=False))
            except (AlreadyExistsError, PreconditionError):
                # an upload whose answer was lost is retried, and then finds its own object
                try:
                    now = obstore.get(store, path)
                except FileNotFoundError:
                    self._need_bucket()
                    raise ChangedError(name) from None
                if now.attributes.get("write") != mark["write"]:
                    raise ChangedError(name) from None
                return _generation(now.meta)

    def _send(self, file: Path, name: str) -> None:
        import obstore

        with s3_client.input_errors(self.address, self.bucket):
            for _ in range(bucket.RETRIES):
                try:
                    obstore.put(*self._place(name), file, chunk_size=s3_client.PART, max_concurrency=s3_client.PARTS)
                    return
                except FileNotFoundError as error:
                    # parts whose last answer was lost are put together already, and are not found once more
                    if "NoSuchUpload" not in str(error):
                        raise
            raise InputError(f"{self.address}: a large file could not be sent; run the same command again later")

    def _first_level(self) -> list[str]:
        found = []
        for page in self._pages(self.prefix, delimiter="/"):
            found += [s3_client.key_of(page, item) for item in page.iterfind("{*}Contents")]
            found += [s3_client.key_of(page, item, "Prefix") for item in page.iterfind("{*}CommonPrefixes")]
        return found

    def _is_copy(self, path: Path, entry: Entry) -> bool:
        if not self._has_md5(entry.generation):
            return True
        with path.open("rb") as opened:
            return hashlib.file_digest(opened, _md5).hexdigest() == entry.generation

    def _transfer(self, wanted: Sequence[tuple[Entry, Path]], *, can_retry: bool) -> list[bool]:
        with ThreadPoolExecutor(client.WORKERS) as pool:
            return list(pool.map(lambda pair: self._fetch(*pair), wanted))

    def _fetch(self, wanted: Entry, path: Path) -> bool:
        """Download an object, and return False if it is not the listed one any more."""
        part = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        try:
            entry, digest = self._fetched(wanted, part)
            if entry is not None and self._has_md5(entry.generation) and digest != entry.generation:
                if self._fetched(entry, part) != (entry, digest):
                    return False
                self._etags_are_md5 = False  # the same content twice: the bucket is encrypted by KMS
            if entry is None or part.stat().st_size != entry.size:
                return False
            flush(part)
            part.replace(path)
            return True
        finally:
            part.unlink(missing_ok=True)

    def _fetched(self, wanted: Entry, part: Path) -> tuple[Entry | None, str]:
        """Write an object to a file, and return the object and the MD5 of what came.

        The object is None if it is not the wanted one any more.
        """
        import obstore
        from obstore.exceptions import PreconditionError

        options: Any = {"if_match": f'"{wanted.generation}"'} if wanted.generation else None
        with s3_client.input_errors(self.address, self.bucket):
            try:
                found, digest = obstore.get(*self._place(wanted.name), options=options), _md5()
                with part.open("wb") as opened:
                    for chunk in found.stream(1 << 20):
                        digest.update(chunk)
                        opened.write(chunk)
                return self._entry(wanted.name, found.meta), digest.hexdigest()
            except PreconditionError:
                return None, ""
            except FileNotFoundError as error:
                if error.errno is not None:
                    raise
                self._need_bucket()
                return None, ""

    def _has_md5(self, generation: str) -> bool:
        return self._etags_are_md5 and _MD5.fullmatch(generation) is not None

    def _current(self, name: str) -> Entry | None:
        import obstore

        with s3_client.input_errors(self.address, self.bucket):
            try:
                meta = obstore.head(*self._place(name))
            except FileNotFoundError:
                self._need_bucket()
                return None
            return self._entry(name, meta)

    def _delete(self, name: str) -> None:
        import obstore

        with s3_client.input_errors(self.address, self.bucket):
            try:
                obstore.delete(*self._place(name))
            except FileNotFoundError:
                self._need_bucket()

    def _entry(self, name: str, meta: Any) -> Entry:
        return Entry(name, meta["size"], _generation(meta), modified=meta["last_modified"].timestamp())

    def _place(self, name: str) -> tuple[Any, str]:
        """Return a client and the path by which it knows an object.

        Raises:
            InputError: No address leads to the object.
        """
        key = self.prefix + name
        if not s3_client.is_reachable(key):
            raise InputError(f"{self.address}/{name}: has . or .. between slashes; rename the object")
        if s3_client.is_path(key):
            return s3_client.store_of(self.bucket), key
        return s3_client.store_at(self.bucket, key), ""

    def _pages(self, prefix: str, **query: str) -> Iterator[ElementTree.Element]:
        query |= {"prefix": prefix, "max-keys": str(bucket.PAGE)}
        return s3_client.pages(self.address, self.bucket, query)

    def _need_bucket(self) -> None:
        """Raise InputError if the bucket itself is missing, not only an object."""
        next(s3_client.pages(self.address, self.bucket, {"max-keys": "1"}))


def _md5() -> Any:
    return hashlib.md5(usedforsecurity=False)


def _generation(meta: Any) -> str:
    return (meta["e_tag"] or "").strip('"')


def _prove(there: S3Bucket) -> None:
    """Write an object against each promise that `S3Bucket.write` builds on."""
    name = f".preconditions-{uuid.uuid4().hex}"

    def written(generation: str) -> str:
        """Return the generation of a write, "" if it was refused."""
        try:
            return there._write(name, uuid.uuid4().hex.encode(), generation)
        except ChangedError:
            return ""

    def need(promise: str, is_kept: bool) -> None:
        if not is_kept:
            raise InputError(
                f"{there.address}: its service does not keep a promise that is needed here: {promise}; use a service "
                "that does, such as Amazon S3 or a present MinIO, or a folder"
            )

    def only(generation: str) -> str:
        """Return the generation of the one writer of several at once that is not refused, "" if it is not just one."""
        with ThreadPoolExecutor(_WRITERS) as pool:
            made = [one for one in pool.map(written, [generation] * _WRITERS) if one]
        return made[0] if len(made) == 1 else ""

    try:
        first = only(ABSENT)
        need("of writers with If-None-Match: * at once, exactly one succeeds", first != "")
        second = only(first)
        need("of writers with If-Match and the present ETag at once, exactly one succeeds", second != "")
        need("a write with If-None-Match: * fails if the object exists", not written(ABSENT))
        need("a write with If-Match fails if the object has another ETag", not written(first))
        there._delete(name)
        need("a write with If-Match fails if the object does not exist", not written(second))
    finally:
        there._delete(name)
