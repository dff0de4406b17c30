"""Read CSV tables that people have written: labels, regions, suspects."""

import csv
import io
import itertools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from thyroid.errors import InputError

_ROWS = 50_000
"""Rows that are in memory as Python's texts at the same time."""


def read(path: Path, given: str, kind: str) -> pd.DataFrame:
    """Read a table that a person has written, with every cell as text; empty cells are "".

    Args:
        path: Path of the file.
        given: Name of the file as the user gave it, for errors.
        kind: Content of the file, for errors.

    Raises:
        InputError: There is no such file, it is not a CSV table, a column is there twice, or a row has more cells than
            the header. Decimal commas and texts with commas cause such rows, and every cell after them would be taken
            for another column.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{given}: the file of {kind} does not exist") from None
    return parse(data, given)


def parse(data: bytes, given: str) -> pd.DataFrame:
    """Parse the content of such a table, as `read` does.

    Args:
        data: Content of the file.
        given: Name of the file as the user gave it, for errors.

    Raises:
        InputError: It is not a CSV table, a column is there twice, or a row has more cells than the header.
    """
    try:
        text = io.TextIOWrapper(io.BytesIO(data), "utf-8-sig", newline="")
        reader = csv.reader(text, skipinitialspace=True)
        header = [cell.strip() for cell in next(reader, [])]
        rows = _rows(reader, len(header), given)
        blocks = iter(lambda: list(itertools.islice(rows, _ROWS)), [])
        parts = [pd.DataFrame(block, columns=header, dtype="string") for block in blocks]
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{given}: not a CSV table: {error}") from None
    if not header:
        raise InputError(f"{given}: not a CSV table: it has no header")
    if twice := [name for name, count in Counter(header).items() if name and count > 1]:
        raise InputError(f"{given}: column {twice[0]} occurs twice")
    return pd.concat([pd.DataFrame([], columns=header, dtype="string"), *parts], ignore_index=True)


def _rows(reader: Any, count: int, given: str) -> Iterator[list[str]]:
    """Yield the rows of a CSV table that are not empty, each with `count` cells."""
    for cells in reader:
        if len(cells) > count:
            raise InputError(
                f"{given}: line {reader.line_num} has more cells than the header; quote texts that hold commas, "
                "and write numbers with a point"
            )
        if cells:
            yield [*cells, *[""] * (count - len(cells))]
