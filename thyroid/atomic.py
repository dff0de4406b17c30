"""Files that are written whole or not at all."""

import json
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def replacing(path: Path, durable: bool = True, shared: bool = True) -> Iterator[Path]:
    """Yield the path of a temporary file, which takes the place of `path` at the end of the block.

    A reader finds the old file or the new one, never half of one.

    Args:
        path: of the file; its folder exists.
        durable: whether the content has to be on the disk before it has its name, so that a power cut loses neither.
        shared: whether several processes may write the file at the same time. Otherwise the temporary file has a fixed name,
            so that one left behind by a killed process is overwritten by the next.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp" if shared else f"{path.name}.tmp")
    try:
        yield temporary
        if durable:
            flush(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file that is on the disk before it has its name; only one process writes it at a time."""
    with replacing(path, shared=False) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON as `write_bytes` does."""
    write_bytes(path, to_json(content).encode())


def to_json(content: Mapping[str, Any]) -> str:
    """Return indented JSON that ends with a line break.

    Raises:
        ValueError: a number is not finite.
    """
    return json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
