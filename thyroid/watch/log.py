"""Reading the decision log: the JSON Lines of a folder, together with the archive, as one table.

An endpoint may be writing to the folder. The last line of a file that does not end yet is left for the next time. Lines
that cannot be used are set aside and counted, and so are rows of the archive.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, BinaryIO, get_args

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import ValidationError

from thyroid import progress, storage
from thyroid.errors import InputError
from thyroid.records.watch import SHADOW_FOLDER, Decision, Shadowed
from thyroid.storage import Location
from thyroid.watch import archive as archived
from thyroid.watch.archive import SCHEMA

log = logging.getLogger(__name__)

PATTERN = "*.jsonl"
LONGEST = 65536
"""Bytes of the longest line that may be a decision."""
MOST = 2_000_000
"""Largest number of decisions that are read, which take about 3 GB: those of five years at 1,000 a day."""
LATEST = timedelta(days=1)
"""How far in the future a decision may lie, since the clocks of two machines differ."""

REASONS = ("damaged", "doubled", "too_early", "in_future")
"""Why a line is set aside."""

_SOURCES = pa.array(get_args(Decision.model_fields["source"].annotation))
_CHUNK = 20_000  # lines that are held as objects before they become rows
_TOLD = 3  # damaged lines that are logged


@dataclass(frozen=True)
class Log:
    """The decisions that a log holds.

    Attributes:
        decisions: One row per decision, sorted by time, with the columns of `Decision` and `unit`. `time` is a
            timestamp in UTC. What a decision does not have is None or NaN. `unit` is the hash of the patient or, where
            none was named, the id of the request.
        other_versions: Number of decisions of other versions, which are not in the table.
        set_aside: Number of lines that were not used, by reason: damaged, doubled, too_early or in_future.
    """

    decisions: pd.DataFrame
    other_versions: int
    set_aside: dict[str, int]


def read(
    folder: Location = "",
    archive: Location = "",
    version: int | None = None,
    since: datetime | None = None,
    now: datetime | None = None,
) -> Log:
    """Read a log and its archive. A decision that is in both is read once.

    Args:
        folder: Folder of the log; empty for none.
        archive: Folder, gs:// or s3:// prefix of the archive; empty for none.
        version: Version of the model whose decisions are wanted; None for all.
        since: When this version was published. Its decisions before that are set aside, since its clock was wrong.
        now: Present time; None to take it from the clock. Decisions that are later by more than `LATEST` are set aside.

    Raises:
        InputError: There is no such folder, it is in a bucket, a file cannot be read, a file of the archive is damaged,
            or there are more decisions than `MOST`.
    """
    aside = Counter[str]()
    table = _joined(_tables(_folder(folder), aside), folder) if folder else SCHEMA.empty_table()
    aside["doubled"] += len(table) - len(table["id"].unique())
    if archive:
        table = _joined([table, *_archived(archive, aside)], archive)
    facts = table.select(["id", "time", "version"]).to_pandas()
    wanted = ~facts["id"].duplicated()
    late = wanted & (facts["time"] > pd.Timestamp((now or datetime.now(UTC)) + LATEST))
    wanted &= ~late
    others = wanted & (version is not None) & facts["version"].ne(version)
    wanted &= ~others
    early = wanted & (facts["time"] < pd.Timestamp(since)) if since is not None else wanted & False
    aside["in_future"], aside["too_early"] = int(late.sum()), int(early.sum())
    frame = table.filter(pa.array(wanted & ~early)).to_pandas()
    frame = frame.sort_values(["time", "id"], ignore_index=True)
    frame = frame.assign(unit=frame["patient"].where(frame["patient"].notna(), frame["request"]))
    return Log(frame, int(others.sum()), {reason: aside[reason] for reason in REASONS})


def ship(folder: Location, archive: Location) -> int:
    """Add the decisions of all versions in a folder to the archive, while no erasure can run.

    Args:
        folder: Folder of the log.
        archive: Folder, gs:// or s3:// prefix.

    Returns:
        The number of decisions that were added.

    Raises:
        InputError: `read` or `archive.ship` raises it.
    """
    with lock(folder):
        return archived.ship(read(folder).decisions, archive)


def lock(folder: Location) -> AbstractContextManager[None]:
    """Return the lock that shipping and erasing hold, or a decision that was erased could come back.

    Endpoints do not wait for it.

    Raises:
        InputError: There is no such folder, or it is in a bucket.
    """
    return storage.lock(_folder(folder))


def files(folder: Location) -> list[Path]:
    """Return the files of the log, sorted by name, which starts with their day.

    Raises:
        InputError: There is no such folder, or it is in a bucket.
    """
    return _files(_folder(folder))


def shadow_files(folder: Location) -> list[Path]:
    """Return the files with the answers of a candidate behind the champion, sorted by name.

    Raises:
        InputError: There is no such folder, or it is in a bucket.
    """
    return _files(_folder(folder) / SHADOW_FOLDER)


def parse(line: bytes, record: type[Decision | Shadowed] = Decision) -> dict[str, Any]:
    """Return the fields of a line. Those that only newer releases know are left out.

    Args:
        line: The line, of at most `LONGEST` bytes.
        record: What the line should be.

    Returns:
        The fields of the record; `time` is a datetime in UTC.

    Raises:
        ValueError: The line is none. Its message quotes nothing of the line.
    """
    try:
        fields = record.model_validate_json(line, extra="ignore").__dict__
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise ValueError(f"field {place}: {first['msg']}" if place else "not a JSON object") from None
    try:
        moment = datetime.fromisoformat(fields["time"])
        if moment.tzinfo is None:
            raise ValueError
        return fields | {"time": moment.astimezone(UTC)}
    except (ValueError, OverflowError):
        raise ValueError("field time: not a time with its zone") from None


def rows(path: Path, aside: Counter[str], record: type[Decision | Shadowed] = Decision) -> Iterator[dict[str, Any]]:
    """Yield the fields of every line of a file, as `parse` returns them.

    Args:
        path: The file. There are no lines if a retention has removed it.
        aside: Its count of "damaged" grows with every line that cannot be read.
        record: What the lines should be.
    """
    try:
        with path.open("rb") as opened:
            for number, line in enumerate(_lines(opened), 1):
                try:
                    if line is None:
                        raise ValueError(f"longer than {LONGEST} bytes")
                    if line.strip():
                        yield parse(line, record)
                except ValueError as error:
                    aside["damaged"] += 1
                    if aside["damaged"] <= _TOLD:
                        log.warning("%s, line %d: set aside: %s", path, number, error)
    except FileNotFoundError:  # a retention has removed it since it was listed
        return


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob(PATTERN) if path.is_file() and not path.name.startswith("."))


def _folder(folder: Location) -> Path:
    if storage.is_bucket(folder):
        raise InputError(f"--log {folder}: give the folder that the endpoint writes to; the archive may be in a bucket")
    path = Path(folder)
    if not path.is_dir():
        raise InputError(f"--log {folder}: no such folder; give the one that thyroid.serve --log writes to")
    return path


def _joined(tables: Iterable[pa.Table], place: Location) -> pa.Table:
    """Return tables of decisions as one.

    Raises:
        InputError: They have more rows than `MOST`.
    """
    parts, number = [SCHEMA.empty_table()], 0
    for table in tables:
        parts.append(table)
        number += len(table)
        if number > MOST:
            raise InputError(
                f"{place}: more than {MOST:,} decisions; remove the oldest with python -m thyroid.retention --log-days"
            )
    return pa.concat_tables(parts)


def _tables(folder: Path, aside: Counter[str]) -> Iterator[pa.Table]:
    """Yield the decisions of a folder in parts, and count the damaged lines."""
    held: list[dict[str, Any]] = []
    found = files(folder)
    for path in progress.bar(found, len(found), "decision log", "file"):
        for row in rows(path, aside):
            held.append(row)
            if len(held) == _CHUNK:
                yield pa.Table.from_pylist(held, SCHEMA)
                held.clear()
    yield pa.Table.from_pylist(held, SCHEMA)


def _archived(archive: Location, aside: Counter[str]) -> Iterator[pa.Table]:
    """Yield the decisions of an archive by day, and count the rows that are none: somebody else has written them."""
    for _, table in archived.days(archive):
        usable = pc.is_in(table["source"], _SOURCES)
        for column in ("id", "request", "image", "time", "version", "decision", "reasons"):
            usable = pc.and_(usable, pc.is_valid(table[column]))
        for column in ("width", "height"):
            usable = pc.and_(usable, pc.greater(table[column], 0))
        usable = pc.and_(usable, pc.is_finite(table["probability"]))
        usable = pc.and_(usable, pc.equal(pc.list_value_length(table["box"]), 4))
        found = table.filter(usable)
        aside["damaged"] += len(table) - len(found)
        yield found


def _lines(opened: BinaryIO) -> Iterator[bytes | None]:
    """Yield the complete lines of a file, and None for one that is too long."""
    while line := opened.readline(LONGEST + 1):
        if line.endswith(b"\n"):
            yield line
        elif len(line) <= LONGEST:
            return  # the end of the file; the rest is being written
        else:
            while line and not line.endswith(b"\n"):
                line = opened.readline(LONGEST + 1)
            yield None
