"""Describes and verifies the artefact of a model.

An artefact is a folder with a file model.json, which describes the model and holds the hash of every other file.
"""

import hashlib
import json
import zipfile
from collections.abc import Sequence
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any

from thyroid import atomic, errors
from thyroid.errors import InputError

MODEL = "model.keras"

SCANS = "scans.csv"
"""File that lists the scans that a version was made of, as `tables.contents` gives them."""

SUM = "model.json.sha256"
"""File with the SHA-256 of a published model.json, in the format of `sha256sum -c`.

It is for readers who see only the version's folder, which is what KServe mounts.
"""

CARD = ("model.json",)
"""Files that `Registry.find` fetches for callers who only need the facts."""


def sha256(file: Path) -> str:
    """Return the hexadecimal SHA-256 of a file, which is read in blocks."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def code_version() -> str:
    """Return the package's version with the first 12 digits of a SHA-256 over its source.

    The digits identify the exact code: they cover every .py, .html and .md file of the package.
    """
    digest = hashlib.sha256()
    package = Path(__file__).parents[1]
    for file in sorted(path for path in package.rglob("*") if path.suffix in (".py", ".html", ".md")):
        digest.update(file.relative_to(package).as_posix().encode() + b"\0" + file.read_bytes())
    return f"{package_version('thyroid')}+{digest.hexdigest()[:12]}"


def describe(artefact: Path, facts: dict[str, Any]) -> None:
    """Write model.json: `facts`, the code version, and the hash of every other file of the artefact.

    A version that is described again no longer counts as published, so its `SUM` file is deleted.

    Args:
        artefact: Folder of the artefact.
        facts: Fields of model.json.
    """
    (artefact / SUM).unlink(missing_ok=True)
    files = sorted(path for path in artefact.rglob("*") if path.is_file() and path.name != "model.json")
    atomic.write_json(
        artefact / "model.json",
        facts
        | {
            "code_version": code_version(),
            "files": {path.relative_to(artefact).as_posix(): sha256(path) for path in files},
        },
    )


def facts(artefact: Path, needs: Sequence[str] = ()) -> dict[str, Any]:
    """Read model.json of an artefact.

    Args:
        artefact: Folder of the artefact.
        needs: Fields that must be there, besides `files`.

    Returns:
        The fields of model.json.

    Raises:
        InputError: There is no model.json, it is not JSON, it was changed since it was published, or it lacks a
            required field.
    """
    card = artefact / "model.json"
    if (artefact / SUM).is_file() and card.is_file() and (artefact / SUM).read_bytes() != sum_of(sha256(card)):
        raise InputError(f"{card}: changed since it was registered (differs from {SUM}); put back a copy of both files")
    try:
        found: dict[str, Any] = json.loads(card.read_text())
    except FileNotFoundError:
        raise InputError(f"{artefact}: not a registered model (model.json is missing)") from None
    except ValueError as error:
        raise InputError(f"{artefact / 'model.json'}: not JSON: {error}") from None
    if missing := [field for field in ("files", *needs) if field not in found]:
        raise InputError(
            f"{artefact / 'model.json'}: field {missing[0]} is missing; evaluate and register the model again"
        )
    return found


def verify(artefact: Path, needs: Sequence[str] = ()) -> dict[str, Any]:
    """Read model.json of an artefact and check the hash of every file that it names.

    Args:
        artefact: Folder of the artefact.
        needs: Fields that must be there, besides `files`.

    Returns:
        The fields of model.json.

    Raises:
        InputError: A file is missing or was changed, or model.json lacks a required field. Nothing of the model has
            been loaded at that point.
    """
    found = facts(artefact, needs)
    verify_files(artefact, found["files"])
    return found


def sum_of(digest: str) -> bytes:
    """Return the content of the `SUM` file for a model.json with this hexadecimal SHA-256."""
    return f"{digest}  model.json\n".encode()


def verify_files(artefact: Path, files: dict[str, str]) -> None:
    """Check that each of these files has its hash.

    Args:
        artefact: Folder of the artefact.
        files: Expected hexadecimal SHA-256 by path within the folder.

    Raises:
        InputError: A file is missing, has another hash, or lies outside the folder.
    """
    for name, expected in files.items():
        file = artefact / name
        if not file.resolve().is_relative_to(artefact.resolve()):
            raise InputError(f"{artefact}: model.json names a file outside the model: {name}")
        if not file.is_file():
            raise InputError(f"{file}: missing from the model")
        if sha256(file) != expected:
            raise InputError(f"{file}: changed since it was registered (sha256 differs); register the model again")


def load_keras(file: Path) -> Any:
    """Load a `.keras` file in safe mode (no Lambda layers, no code) and without its compile state.

    Raises:
        InputError: The file is missing, is damaged, or holds something that safe mode refuses.
    """
    from thyroid.model.backend import XLA, keras

    try:
        model = keras.saving.load_model(file, compile=False, safe_mode=True)
    except (ValueError, OSError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{file}: not a model that can be loaded ({errors.one_line(error)[:200]}); train it again"
        ) from None
    model.jit_compile = XLA
    return model
