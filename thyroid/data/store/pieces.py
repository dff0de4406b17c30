"""Rows that shards leave in a store, each lot in an object of its own, so that they need no lock.

A piece is named after its kind and its content: pieces/examined-<sha256>.parquet.
"""

import hashlib
import io
import logging
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd

from thyroid import storage
from thyroid.atomic import replacing
from thyroid.data.store.names import PIECES
from thyroid.errors import InputError
from thyroid.storage.client import WORKERS

log = logging.getLogger(__name__)

_END = ".parquet"


def add(address: str, kind: str, rows: pd.DataFrame) -> None:
    """Write rows as a piece of the store at `address`."""
    data = rows.to_parquet(index=False)
    name = f"{kind}-{hashlib.sha256(data).hexdigest()}{_END}"
    if storage.is_bucket(address):
        storage.at(f"{address}/{PIECES}").write(name, data)
        return
    home = Path(address) / PIECES  # without the lock of the folder, which a long run may hold
    home.mkdir(parents=True, exist_ok=True)
    with replacing(home / name) as temporary:
        temporary.write_bytes(data)


def read(address: str, kind: str) -> pd.DataFrame:
    """Return the rows of all pieces of a kind, with the column piece. Damaged pieces are skipped."""
    place = storage.at(f"{address}/{PIECES}")
    if isinstance(place, storage.Folder):
        names = place.children()
    else:
        names = [entry.name for entry in place.entries(f"{kind}-")]
    names = [name for name in names if name.startswith(f"{kind}-") and name.endswith(_END)]
    found = []
    with ThreadPoolExecutor(WORKERS) as pool:
        for name, (data, _) in zip(names, pool.map(place.read, names), strict=True):
            if hashlib.sha256(data).hexdigest() == name.removeprefix(f"{kind}-").removesuffix(_END):
                found.append(pd.read_parquet(io.BytesIO(data)).assign(piece=name))
            elif data:  # an empty one was dropped by another run since it was listed
                log.info(f"{place.address}/{name}: damaged; skipped")
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame({"piece": pd.Series([], dtype="string")})


def drop(address: str, names: Collection[str]) -> None:
    """Remove pieces by name; those that do not exist are left out. What cannot be removed is left to retention."""
    place = storage.at(f"{address}/{PIECES}")
    if isinstance(place, storage.Folder):
        for name in names:
            (place.path / name).unlink(missing_ok=True)
    elif names:
        try:
            place.delete([*names])
        except InputError as error:  # the run has kept its results already
            log.info(f"{len(names)} pieces that were taken up remain ({error})")
