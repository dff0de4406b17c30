"""The artefact of a model, and the directory registry that keeps its versions.

    <root>/thyroid/<version>/     model.keras, reference.jpg, model.json, report.html
    <root>/thyroid/aliases.json   {"candidate": newest, "champion": served, "previous": served before}

A version is written under a hidden name, flushed, and renamed: it is there whole or not at all.
"""

import fcntl
import hashlib
import json
import os
import shutil
import uuid
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any

from thyroid import errors, tables
from thyroid.errors import InputError

NAME = "thyroid"
MODEL = "model.keras"


@dataclass(frozen=True)
class Registered:
    """A published version: `uri` is its folder, `sha256` that of model.keras."""

    name: str
    version: int
    uri: str
    sha256: str


def sha256(file: Path) -> str:
    """Hexadecimal SHA-256 of a file, read in blocks."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def describe(artefact: Path, facts: dict[str, Any]) -> None:
    """Write model.json: `facts`, the code version, and the hash of every other file of the artefact."""
    files = sorted(path for path in artefact.rglob("*") if path.is_file() and path.name != "model.json")
    tables.write_json(
        artefact / "model.json",
        facts
        | {
            "code_version": package_version("thyroid"),
            "files": {path.relative_to(artefact).as_posix(): sha256(path) for path in files},
        },
    )


def verify(artefact: Path) -> dict[str, Any]:
    """model.json of an artefact whose files all have the hashes it names.

    Raises:
        InputError: a file is missing or was changed; nothing of it has been loaded then.
    """
    try:
        facts = json.loads((artefact / "model.json").read_text())
    except FileNotFoundError:
        raise InputError(f"{artefact}: not a registered model (model.json is missing)") from None
    except ValueError as error:
        raise InputError(f"{artefact / 'model.json'}: not JSON: {error}") from None
    for name, expected in facts["files"].items():
        file = artefact / name
        if not file.resolve().is_relative_to(artefact.resolve()):
            raise InputError(f"{artefact}: model.json names a file outside the model: {name}")
        if not file.is_file():
            raise InputError(f"{file}: missing from the model")
        if sha256(file) != expected:
            raise InputError(f"{file}: changed since it was registered (sha256 differs); register the model again")
    return facts


def load_keras(file: Path) -> Any:
    """A `.keras` file in safe mode (no Lambda, no code), without its compile state.

    Raises:
        InputError: the file is missing, damaged, or holds what safe mode refuses.
    """
    from thyroid.backend import XLA, keras

    try:
        model = keras.saving.load_model(file, compile=False, safe_mode=True)
    except (ValueError, OSError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{file}: not a model that can be loaded ({errors.one_line(error)[:200]}); train it again"
        ) from None
    model.jit_compile = XLA
    return model


def publish(artefact: Path, root: Path) -> Registered:
    """Copy `artefact` into the registry as the next version and point `candidate` and `champion` at it.

    Args:
        artefact: folder with model.json and the files it names.
        root: of the registry.

    Raises:
        InputError: the artefact is not whole.
    """
    verify(artefact)
    home = root / NAME
    home.mkdir(parents=True, exist_ok=True)
    incoming = home / f".incoming-{uuid.uuid4().hex}"
    try:
        shutil.copytree(artefact, incoming)
        with _lock(home):
            version = max(versions(root), default=0) + 1
            facts = json.loads((incoming / "model.json").read_text())
            tables.write_json(incoming / "model.json", facts | {"version": version})
            for file in incoming.rglob("*"):
                _flush(file)
            incoming.rename(home / str(version))
            _flush(home)
            aliases = read_aliases(root)
            new = aliases | {"candidate": version, "champion": version}
            if "champion" in aliases:
                new["previous"] = aliases["champion"]
            tables.write_json(home / "aliases.json", new)
    finally:
        shutil.rmtree(incoming, ignore_errors=True)
    folder = home / str(version)
    return Registered(NAME, version, str(folder.resolve()), sha256(folder / MODEL))


def versions(root: Path) -> list[int]:
    """Published versions, oldest first."""
    home = root / NAME
    return sorted(int(path.name) for path in home.iterdir() if path.name.isdigit()) if home.is_dir() else []


def read_aliases(root: Path) -> dict[str, int]:
    """Alias to version; empty for a new registry."""
    try:
        return json.loads((root / NAME / "aliases.json").read_text())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise InputError(f"{root / NAME / 'aliases.json'}: not JSON: {error}") from None


def find(root: Path, which: str | None = None) -> Path:
    """Folder of a version or alias; None for the champion, or the candidate where there is none.

    Raises:
        InputError: there is no such version.
    """
    aliases = read_aliases(root)
    number = aliases.get("champion", aliases.get("candidate")) if which is None else aliases.get(which, which)
    folder = root / NAME / str(number)
    if number is None or not str(number).isdigit() or not folder.is_dir():
        raise InputError(
            f"{root}: no registered model{'' if which is None else ' ' + repr(which)}; `make run` registers one"
        )
    return folder


@contextmanager
def _lock(home: Path) -> Iterator[None]:
    with (home / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
