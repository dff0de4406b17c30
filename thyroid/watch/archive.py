"""The archive of the decision log: one Parquet file a day (UTC), `<archive>/decisions/YYYY-MM-DD.parquet`."""

import io
import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import date

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from thyroid import storage
from thyroid.errors import InputError
from thyroid.storage import ABSENT, ChangedError, Location

FOLDER = "decisions"
SUFFIX = ".parquet"
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("request", pa.string()),
        ("number", pa.int64()),
        ("time", pa.timestamp("ms", "UTC")),
        ("image", pa.string()),
        ("patient", pa.string()),
        ("version", pa.int64()),
        ("form", pa.string()),
        ("source", pa.string()),
        ("probability", pa.float64()),
        ("decision", pa.string()),
        ("reasons", pa.list_(pa.string())),
        ("novelty", pa.float64()),
        ("distance", pa.float64()),
        ("box_probability", pa.float64()),
        ("width", pa.int64()),
        ("height", pa.int64()),
        ("box", pa.list_(pa.int64())),
        ("features", pa.list_(pa.float32())),
    ]
)
"""Columns and types of a table of decisions, in the order of the fields of `Decision`."""

_AT_ONCE = 8  # days that are read at the same time; a small object spends most of its time waiting
_PAUSE = 0.2  # maximum seconds before a day is written again because another process was faster


def ship(decisions: pd.DataFrame, archive: Location) -> int:
    """Add decisions to the archive. Those that it has, by their id, are not added again.

    Several processes may do so at once, and a process that is killed has added whole days.

    Args:
        decisions: Table of decisions as `log.read` returns it.
        archive: Folder, gs:// or s3:// prefix.

    Returns:
        The number of decisions that were added.

    Raises:
        InputError: A file of the archive is damaged, or the archive cannot be read or written.
    """
    return sum(
        _add(pa.Table.from_pandas(of_day[SCHEMA.names], SCHEMA, preserve_index=False), archive, _name(day.date()))
        for day, of_day in decisions.groupby(decisions["time"].dt.floor("D"))
    )


def _add(decisions: pa.Table, archive: Location, name: str) -> int:
    """Add decisions of one day, and return how many were added."""

    def merged(present: pa.Table) -> pa.Table:
        new = decisions.filter(pc.invert(pc.is_in(decisions["id"], present["id"].combine_chunks())))
        # a newer release may have added columns, which stay
        return pa.concat_tables([present, new], promote_options="default")

    return change(archive, name, merged)


def change(archive: Location, name: str, changed: Callable[[pa.Table], pa.Table]) -> int:
    """Replace the decisions of a day, unless their number stays the same.

    Args:
        archive: Folder, gs:// or s3:// prefix.
        name: Name of the day's file.
        changed: Function from the day's present decisions to those that it shall have. It is called again if another
            process changes the day meanwhile.

    Returns:
        By how many decisions the day has grown; below 0 if it has shrunk.

    Raises:
        InputError: The file is damaged, or the archive cannot be read or written.
    """
    home = storage.at(archive)
    while True:
        data, generation = home.read(f"{FOLDER}/{name}")
        present = SCHEMA.empty_table() if generation == ABSENT else _parse(data, _address(archive, name))
        wanted = changed(present)
        grown: int = wanted.num_rows - present.num_rows
        if grown:
            try:
                home.write(f"{FOLDER}/{name}", _bytes(wanted), generation)
            except ChangedError:
                time.sleep(random.uniform(0, _PAUSE))
                continue
        return grown


def names(archive: Location) -> list[str]:
    """Return the names of the days' files, oldest first. There are none if there is no such folder."""
    return [name for name in storage.at(storage.below(archive, FOLDER)).children() if day(name) is not None]


def day(name: str) -> date | None:
    """Return the day of a file of the archive; None for any other file."""
    try:
        return date.fromisoformat(name.removesuffix(SUFFIX)) if name.endswith(SUFFIX) else None
    except ValueError:
        return None


def days(archive: Location) -> Iterator[tuple[str, pa.Table]]:
    """Yield the name and the decisions of every day of the archive, oldest first. Nothing is kept on this machine.

    Args:
        archive: Folder, gs:// or s3:// prefix.

    Returns:
        Names of files, each with a table that has the columns of `SCHEMA`.

    Raises:
        InputError: A file is damaged, or the archive cannot be read.
    """
    home = storage.at(archive)

    def load(name: str) -> tuple[str, pa.Table]:
        data, generation = home.read(f"{FOLDER}/{name}")
        if generation == ABSENT:  # a retention has removed it since it was listed
            return name, SCHEMA.empty_table()
        return name, _parse(data, _address(archive, name)).select(SCHEMA.names)

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        yield from pool.map(load, names(archive))


def _name(day: date) -> str:
    return f"{day.isoformat()}{SUFFIX}"


def _address(archive: Location, name: str) -> str:
    return storage.below(storage.at(archive).address, FOLDER, name)


def _parse(data: bytes, address: str) -> pa.Table:
    """Return the table of a day, whose known columns come first and have the types of `SCHEMA`.

    Raises:
        InputError: It is damaged.
    """
    try:
        table = pq.read_table(io.BytesIO(data))
        known = [
            table[field.name].cast(field.type) if field.name in table.column_names else pa.nulls(len(table), field.type)
            for field in SCHEMA
        ]
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"{address}: damaged ({reason}); restore it from a backup, or remove it") from None
    others = [name for name in table.column_names if name not in SCHEMA.names]
    return pa.table([*known, *(table[name] for name in others)], names=[*SCHEMA.names, *others])


def _bytes(table: pa.Table) -> bytes:
    written = io.BytesIO()
    pq.write_table(table, written)
    return written.getvalue()
