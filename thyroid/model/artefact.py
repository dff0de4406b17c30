"""Describes and verifies the artefact of a model.

An artefact is a folder with a file model.json, which describes the model and holds the hash of every other file.
"""

import hashlib
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any

from thyroid import errors
from thyroid.errors import InputError
from thyroid.records.model import ArtefactRecord, KerasForm, ModelDescription, OtherForm, Publication
from thyroid.records.performance import Performance

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


@dataclass(frozen=True)
class Artefact:
    """A folder with a model. This class is the only reader and writer of model.json.

    Attributes:
        folder: Folder of the artefact.
        record: Content of its model.json.
    """

    folder: Path
    record: ArtefactRecord

    @classmethod
    def describe(cls, folder: Path, description: ModelDescription) -> "Artefact":
        """Write model.json: the description, the code version, and the hash of every other file of the artefact.

        A version that is described again no longer counts as published, so its `SUM` file is deleted.

        Args:
            folder: Folder of the artefact.
            description: What the evaluation says about the model.
        """
        (folder / SUM).unlink(missing_ok=True)
        files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "model.json")
        added = {
            "code_version": code_version(),
            "files": {path.relative_to(folder).as_posix(): sha256(path) for path in files},
        }
        record = ArtefactRecord.parse(description.to_dict() | added, folder / "model.json")
        record.write(folder / "model.json")
        return cls(folder, record)

    @classmethod
    def read(cls, folder: Path) -> "Artefact":
        """Read model.json of an artefact.

        Raises:
            InputError: There is no model.json, it was changed since it was published, or it is not a complete one.
        """
        card = folder / "model.json"
        if (folder / SUM).is_file() and card.is_file() and (folder / SUM).read_bytes() != sum_of(sha256(card)):
            raise InputError(
                f"{card}: changed since it was registered (differs from {SUM}); restore both files from a backup"
            )
        try:
            return cls(folder, ArtefactRecord.read(card))
        except FileNotFoundError:
            raise InputError(f"{folder}: not a registered model (model.json is missing)") from None

    @classmethod
    def verify(cls, folder: Path) -> "Artefact":
        """Read model.json of an artefact and check the hash of every file that it names.

        Raises:
            InputError: A file is missing or was changed, or model.json is not a complete one. Nothing of the model has
                been loaded at that point.
        """
        artefact = cls.read(folder)
        artefact.verify_files(artefact.record.files)
        return artefact

    def verify_files(self, names: Iterable[str]) -> None:
        """Check that each of these files has the hash that model.json gives it. Other names are ignored.

        Args:
            names: Paths within the folder.

        Raises:
            InputError: A file is missing, has another hash, or lies outside the folder.
        """
        for name in names:
            if name not in self.record.files:
                continue
            file = self.folder / name
            if not file.resolve().is_relative_to(self.folder.resolve()):
                raise InputError(f"{self.folder}: model.json names a file outside the model: {name}")
            if not file.is_file():
                raise InputError(f"{file}: missing from the model")
            if sha256(file) != self.record.files[name]:
                raise InputError(f"{file}: changed since it was registered (sha256 differs); register the model again")

    @property
    def publication(self) -> Publication:
        """What the registry added.

        Raises:
            InputError: The artefact was not published.
        """
        added = {name: value for name, value in self.record.to_dict().items() if name in Publication.model_fields}
        return Publication.parse(added, self.folder / "model.json")

    @property
    def model_sha256(self) -> str | None:
        """SHA-256 of the Keras model; None if the artefact has none."""
        return self.record.files.get(MODEL)

    @property
    def performance(self) -> Performance:
        """The metrics of the Keras form on the test set in the serving domain.

        Raises:
            InputError: The evaluation did not score them.
        """
        form, domain = self.record.forms.get("keras"), self.record.serving_domain
        if not isinstance(form, KerasForm) or domain not in form.test:
            raise InputError(f"{self.folder / 'model.json'}: field forms.keras.test.{domain} is missing")
        return form.test[domain]

    @property
    def differences(self) -> dict[str, float]:
        """The largest difference of each form's probabilities from those of Keras; 0 for Keras."""
        forms = self.record.forms.items()
        return {name: form.largest_difference if isinstance(form, OtherForm) else 0.0 for name, form in forms}


def sum_of(digest: str) -> bytes:
    """Return the content of the `SUM` file for a model.json with this hexadecimal SHA-256."""
    return f"{digest}  model.json\n".encode()


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
