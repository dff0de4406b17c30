"""The user's cache of objects that were downloaded from buckets."""

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from thyroid.errors import InputError

CACHE_LIMIT = 4_000_000_000
"""Bytes of the user's cache above which the least recently used entries are removed.

It holds about ten models of the largest backbone.
"""
MIRROR = "mirror"
"""Folder of the cache that has bounds of its own; see `mirror`."""
_IN_USE = 3600.0  # seconds since its last use during which an entry stays, because it may be being read


def home() -> Path:
    """Return the folder of the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "thyroid"


@contextmanager
def folder_for(key: str) -> Iterator[Path]:
    """Yield a folder of the user's cache to fill; after a new one, remove the oldest folders above the limit."""
    folder = home() / key
    new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    os.utime(folder)
    try:
        yield folder
    finally:
        if new:
            _trim()


def _trim() -> None:
    """Remove the least recently used entries above `CACHE_LIMIT`, except those in use."""
    used = sorted(
        ((path.stat().st_mtime, path) for path in home().iterdir() if path.is_dir() and path.name != MIRROR),
        reverse=True,
    )
    total = 0
    for when, folder in used:
        total += sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        if total > CACHE_LIMIT and time.time() - when > _IN_USE:
            shutil.rmtree(folder, ignore_errors=True)


def path_within(folder: Path, name: str) -> Path:
    """Return the path of `name` below `folder`; the name of an object may contain anything.

    Raises:
        InputError: The path would be outside the folder.
    """
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"{name}: the name of this object points outside the folder it is copied to")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
