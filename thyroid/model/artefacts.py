"""The artefact of a model: a folder with model.json, which describes it and has the hash of every other file of it."""

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
"""What a version was made of: see `tables.contents`."""

SUM = "model.json.sha256"
"""SHA-256 of a published model.json as `sha256sum -c` reads it, for who sees the version's folder alone, as KServe mounts it."""

CARD = ("model.json",)
"""What `find` is to fetch for those who only look at facts."""


def sha256(file: Path) -> str:
    """Hexadecimal SHA-256 of a file, read in blocks."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def code_version() -> str:
    """The package's version and the first digits of a SHA-256 over its source, which names the very code."""
    digest = hashlib.sha256()
    package = Path(__file__).parents[1]
    for file in sorted(path for path in package.rglob("*") if path.suffix in (".py", ".html", ".md")):
        digest.update(file.relative_to(package).as_posix().encode() + b"\0" + file.read_bytes())
    return f"{package_version('thyroid')}+{digest.hexdigest()[:12]}"


def describe(artefact: Path, facts: dict[str, Any]) -> None:
    """Write model.json: `facts`, the code version, and the hash of every other file of the artefact.

    A published version that is described anew is none any more: its sum goes.
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
    """model.json of an artefact.

    Raises:
        InputError: there is none, it was changed since it was published, or it lacks one of the fields in `needs`.
    """
    card = artefact / "model.json"
    if (artefact / SUM).is_file() and card.is_file() and (artefact / SUM).read_bytes() != sum_of(sha256(card)):
        raise InputError(f"{card}: changed since it was registered (differs from {SUM}); put back a copy of both files")
    try:
        found = json.loads(card.read_text())
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
    """model.json of an artefact whose files all have the hashes it names.

    Raises:
        InputError: a file is missing or was changed, or model.json lacks one of the fields in `needs`; nothing of it has been
            loaded then.
    """
    found = facts(artefact, needs)
    verify_files(artefact, found["files"])
    return found


def sum_of(digest: str) -> bytes:
    return f"{digest}  model.json\n".encode()


def verify_files(artefact: Path, files: dict[str, str]) -> None:
    """Raises InputError unless each of these files has its hash."""
    for name, expected in files.items():
        file = artefact / name
        if not file.resolve().is_relative_to(artefact.resolve()):
            raise InputError(f"{artefact}: model.json names a file outside the model: {name}")
        if not file.is_file():
            raise InputError(f"{file}: missing from the model")
        if sha256(file) != expected:
            raise InputError(f"{file}: changed since it was registered (sha256 differs); register the model again")


def load_keras(file: Path) -> Any:
    """A `.keras` file in safe mode (no Lambda, no code), without its compile state.

    Raises:
        InputError: the file is missing, damaged, or holds what safe mode refuses.
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
