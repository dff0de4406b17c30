"""Files of a store: how the table of images is written, and how folders are removed."""

import hashlib
import shutil
import uuid
from pathlib import Path

import pandas as pd

from thyroid import atomic
from thyroid.data import tables
from thyroid.data.store.names import GOING, SUMS
from thyroid.errors import InputError


class DamagedError(InputError):
    """A file of a store is not what was written. Where that is possible, it is made again."""


def write(path: Path, table: pd.DataFrame) -> None:
    """Write the table of images so that a reader never sees half of it; the caller must hold the lock."""
    data = table.to_parquet(index=False)
    before = hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else ""
    known = before if before in known_sums(path.parent) else ""
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


def known_sums(folder: Path) -> set[str]:
    """Return the SHA-256 values that the table of images of a store may have."""
    try:
        return set((folder / SUMS).read_bytes().decode("ascii", "replace").split())
    except FileNotFoundError:
        return set()


def sums(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file of a data version in a store, by name."""
    return {
        file.name: tables.sha256(file)
        for file in sorted(folder.iterdir())
        if file.is_file() and file.name != tables.FACTS and not file.name.endswith(".tmp")
    }
