"""What is called how in a store, and which names its cohorts may have."""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from thyroid.errors import InputError
from thyroid.storage.bucket import PAGE
from thyroid.storage.client import WORKERS

VERSIONS, SCANS, CROPS, PIECES = "versions", "scans", "crops", "pieces"
GOING = ".going-"
"""Prefix of the name of a folder that is being removed."""
EXAMINED, LINKS, MEMORY, CROPPED = "examined.parquet", "links.parquet", "memory.parquet", "crops.parquet"
EXAMINED_PIECES, CROPPED_PIECES = "examined", "cropped"
"""Kinds of pieces: rows of `EXAMINED` and of `CROPPED`."""
SUMS, SEALED = "crops.sha256", "sealed"
REMEMBERED = {"cohort": "string", "patient": "Int64", "phash": "string", "split": "string"}
"""Columns of the table `MEMORY` with their dtypes."""
UNNAMED = "unnamed-"
"""Prefix of the name of a cohort that nobody has named."""
_SITE = re.compile(r"[^\W_][\w .-]{0,63}")


def copy_of(folder: Path, address: str, generation: str, suffix: str = ".jpg") -> Path:
    """Return the path below `folder` for the copy of a scan, which is safe whatever the scan's name contains.

    Args:
        folder: Folder of the store.
        address: Address of the scan.
        generation: Generation of the scan.
        suffix: End of the file name.
    """
    name = hashlib.sha256(f"{address}#{generation}".encode()).hexdigest()
    return folder / SCANS / name[:2] / f"{name[2:]}{suffix}"


def site(name: str) -> str:
    """Check and strip the name of a cohort that a user gives; an empty name means none.

    Raises:
        InputError: The name cannot be used.
    """
    name = name.strip()
    if name and (not _SITE.fullmatch(name) or name.startswith(UNNAMED)):
        raise InputError(
            f"--site {name!r}: give a name of at most 64 letters, digits, spaces and . _ -, that starts with a letter "
            f"or a digit and not with {UNNAMED}"
        )
    return name


def unnamed(source: str) -> str:
    """Return the name of the cohort of a source that nobody has named."""
    return UNNAMED + hashlib.sha256(source.encode("utf-8", "surrogateescape")).hexdigest()[:12]


def starts_of(names: Sequence[str]) -> list[str]:
    """Return the shortest starts by which a listing of these names falls into parts, one for each worker at least.

    Args:
        names: At least one name. A listing of few of them stays whole.
    """
    if len(names) <= PAGE:
        return [""]
    for length in range(1, max(map(len, names)) + 1):
        starts = {name[:length] for name in names}
        if len(starts) >= WORKERS:
            break
    return sorted(starts)
