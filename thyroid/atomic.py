"""Atomic file writes: a file is written completely or not at all."""

import json
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def replacing(path: Path, durable: bool = True, shared: bool = True) -> Iterator[Path]:
    """Yield the path of a temporary file that replaces `path` when the block ends.

    A reader finds either the old file or the new one, never half of one. If the block raises, `path` stays as it was.

    Args:
        path: Path of the file. Its folder must exist.
        durable: Whether the content must be on the disk before the file gets its name. A power cut then loses neither.
        shared: Whether several processes may write the file at the same time. If not, the temporary file has a fixed
            name, so that a file left behind by a killed process is overwritten by the next write.
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
    """Write a file atomically; its content is on the disk before it gets its name.

    Only one process may write the file at a time.
    """
    with replacing(path, shared=False) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON with the guarantees of `write_bytes` and the format of `to_json`.

    Raises:
        ValueError: A number is not finite.
    """
    write_bytes(path, to_json(content).encode())


def to_json(content: Mapping[str, Any]) -> str:
    """Return indented JSON that ends with a line break.

    Raises:
        ValueError: A number is not finite.
    """
    return json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def flush(path: Path) -> None:
    """Wait until a file's content, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
