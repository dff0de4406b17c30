"""The node-local copy of what a store or registry has in a bucket.

An object and its copy belong together by name alone: s3://bucket/name is <cache>/mirror/s3/bucket/name. Tables hold
the addresses, so that a pod with another cache can read them. Folders have no mirror: their paths are left alone.
"""

import contextlib
import errno
import hashlib
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from thyroid.atomic import replacing
from thyroid.errors import InputError
from thyroid.storage import cache
from thyroid.storage.bucket import Bucket, Entry
from thyroid.storage.location import ABSENT, ChangedError, Location, is_bucket
from thyroid.storage.resolve import at

LIMIT = 80_000_000_000
"""Bytes of the mirror above which the least recently used copies of scans and images are removed."""
LIMIT_VARIABLE = "THYROID_CACHE_BYTES"
"""Environment variable with another limit. The pods of a pipeline have it, since a cache of theirs may be smaller."""
_BULK = re.compile(r"/(scans/[0-9a-f]{2}/[0-9a-f]{62}\.\w+|crops/\w+/[^/]+\.jpg|files/[0-9a-f]{64})$")
"""Ends of the paths of a store's files that are in the bucket once they are in the mirror, and may be removed here.

All other files may be all that there is of some work, wherever in a bucket their store is.
"""
_IMAGE = re.compile(r"(.*)/crops/\w+/[^/]+\.jpg$")
"""Path of an image of a store, and the store's folder."""
DOUBTED = "doubted"
"""Object of a store that says that one of its images was missing or damaged, so its table must not be believed."""
_IN_USE = 3600.0  # seconds since its last use during which a copy stays, because it may be being read
_TOUCH = 600.0  # seconds between two records of a file's use
_written = 0  # bytes fetched since the mirror was last measured
_guard = threading.Lock()
_FULL = (errno.ENOSPC, errno.EDQUOT)
_Written = TypeVar("_Written")


def root() -> Path:
    """Return the folder of the mirror in the user's cache."""
    return cache.home() / cache.MIRROR


def mirror(location: Location) -> Path:
    """Return a folder itself, and for a bucket prefix its folder in the mirror, which need not exist.

    Raises:
        InputError: The address has an empty part, "." or "..".
    """
    return Path(local(str(location)))


def local(text: str) -> str:
    """Return the path in the mirror of an address; any other text is returned unchanged.

    Raises:
        InputError: The address has an empty part, "." or "..".
    """
    if not is_bucket(text):
        return text
    scheme, _, rest = text.partition("://")
    parts = rest.rstrip("/").split("/")
    if any(part in ("", ".", "..") for part in parts):
        raise InputError(f"{text}: has a part that is empty, . or ..; give another prefix")
    return str(root().joinpath(scheme, *parts))


def address(path: Location) -> str:
    """Return the address of a path in the mirror; any other text or path is returned unchanged, as text."""
    text, start = str(path), f"{root()}{os.sep}"
    if not text.startswith(start):
        return text
    scheme, _, rest = text.removeprefix(start).partition(os.sep)
    return f"{scheme}://{rest}"


def fetch(paths: Iterable[Location], description: str = "", *, missing_ok: bool = False) -> list[Path]:
    """Download the files of the mirror among `paths` that do not exist, in parallel.

    Args:
        paths: Any paths; those outside the mirror are left alone.
        description: Text of the progress bar.
        missing_ok: Whether objects that do not exist are left out.

    Returns:
        The files that were downloaded.

    Raises:
        InputError: An object is missing, unless `missing_ok`, its bucket cannot be read, or the disk is full.
    """
    start = f"{root()}{os.sep}"
    wanted = [Path(text) for text in dict.fromkeys(map(str, paths)) if text.startswith(start)]
    wanted = [path for path in wanted if not _used(path)]
    if not wanted:
        return []
    found = _with_room(lambda: _download([path for path in wanted if not path.exists()], description))
    missing = [path for path in wanted if not path.exists()]
    _doubt(missing)
    if missing and not missing_ok:
        raise InputError(
            f"{address(min(missing))}: missing, as are {len(missing) - 1} of the other objects; run the step that made "
            "it again"
        )
    return found


def send(paths: Iterable[Location]) -> None:
    """Upload files of the mirror to their addresses; other paths are left alone.

    Raises:
        InputError: A bucket cannot be written.
    """
    for bucket, pairs in _by_bucket(path for path in map(Path, paths) if _is_mirrored(path)):
        _bucket(bucket).upload(pairs)


def read(path: Location, sha256: str) -> bytes:
    """Return the content of a file, which may be in the mirror, after comparing its checksum.

    A copy in the mirror that is damaged, or was removed since, is downloaded again. A damaged object is removed from
    its bucket, so that the step that made it makes it once more (see `DOUBTED`).

    Args:
        path: Path of the file, which `fetch` has brought.
        sha256: SHA-256 of its content.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It has another content.
        InputError: A bucket cannot be read or written.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        if not fetch([path], missing_ok=True):
            raise
        data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() == sha256:
        return data
    if _is_mirrored(path):
        path.unlink(missing_ok=True)
        fetch([path])
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() == sha256:
            return data
        remove([path])
        _doubt([path])
    raise ValueError("its content is not the one that was written")


def remove(paths: Iterable[Location]) -> None:
    """Remove files, and the objects of those in the mirror; what does not exist is left out.

    Raises:
        InputError: A bucket cannot be written.
    """
    given = list(map(Path, paths))
    for bucket, pairs in _by_bucket(path for path in given if _is_mirrored(path)):
        _bucket(bucket).delete([name for _, name in pairs])
    for path in given:
        path.unlink(missing_ok=True)


@contextmanager
def space() -> Iterator[None]:
    """Turn a full disk of the cache into an InputError that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise InputError(
            f"{root()}: no space left on the disk for copies of a bucket; free some space, or name a cache folder on a "
            "larger disk in XDG_CACHE_HOME"
        ) from None


def _doubt(paths: Iterable[Path]) -> None:
    """Leave `DOUBTED` in the stores that have images among `paths`, which are missing or damaged."""
    for folder in {found[1] for path in paths if (found := _IMAGE.match(str(path)))}:
        with contextlib.suppress(ChangedError, InputError):  # it is there, or this reader may not write
            at(address(folder)).write(DOUBTED, b"1", ABSENT)


def _is_mirrored(path: Path) -> bool:
    return str(path).startswith(f"{root()}{os.sep}")


def _used(path: Path) -> bool:
    """Return whether a copy exists, and record its use."""
    try:
        if path.stat().st_mtime < time.time() - _TOUCH:
            os.utime(path)
    except FileNotFoundError:
        return False
    return True


def _bucket(address: str) -> Bucket:
    place = at(address)
    assert isinstance(place, Bucket)
    return place


def _by_bucket(paths: Iterable[Path]) -> Iterator[tuple[str, list[tuple[Path, str]]]]:
    """Yield the address of each bucket with its files and their names."""
    found: dict[str, list[tuple[Path, str]]] = {}
    for path in paths:
        scheme, bucket, *parts = path.relative_to(root()).parts
        found.setdefault(f"{scheme}://{bucket}", []).append((path, "/".join(parts)))
    yield from found.items()


def _download(paths: Sequence[Path], description: str) -> list[Path]:
    """Write the copies of objects, and return those whose objects exist."""
    found = []
    for bucket, pairs in _by_bucket(paths):
        wanted = [(Entry(name, -1, ""), path) for path, name in pairs]
        for _, path in _bucket(bucket).download(wanted, description):
            if path is not None:
                found.append(path)
                _make_room(path.stat().st_size)
    return found


def keep(path: Path, data: bytes) -> None:
    """Write a file of the mirror. Where the disk is full, copies that are not in use are removed first.

    Raises:
        InputError: There is no space left nevertheless.
    """
    _make_room(len(data))
    _with_room(lambda: _write(path, data))


def _with_room(write: Callable[[], _Written]) -> _Written:
    """Call a function that writes; where the disk is full, once more without the copies that are not in use."""
    try:
        return write()
    except OSError as error:
        if error.errno not in _FULL:
            raise
    with _guard:
        trim(0)
    with space():
        return write()


def _make_room(written: int) -> None:
    """Keep the mirror within its limit, given how many bytes were written; it is measured now and then."""
    global _written
    with _guard:
        _written += written
        limit = int(os.environ.get(LIMIT_VARIABLE) or LIMIT)
        if _written > limit // 100:
            _written = 0
            trim(limit)


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, durable=False) as temporary:
        temporary.write_bytes(data)


def trim(limit: int) -> None:
    """Remove the least recently used copies of scans and images until the mirror has at most `limit` bytes.

    Copies that were used within the last hour stay.
    """
    files = sorted(_files(root()))
    total = sum(size for _, size, _ in files)
    now = time.time()
    for used, size, file in files:
        if total <= limit or now - used <= _IN_USE:
            break
        if _BULK.search(file):
            Path(file).unlink(missing_ok=True)
            total -= size


def _files(folder: Path) -> Iterator[tuple[float, int, str]]:
    """Yield when each file below a folder was last used, its size, and its path."""
    for directory, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # another process has removed it in the meantime
                found = os.lstat(file := f"{directory}/{name}")
                yield found.st_mtime, found.st_size, file
