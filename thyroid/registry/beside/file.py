"""A JSON file beside a version, which many processes may write: the newest content stays."""

import json
import random
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from thyroid import errors, storage
from thyroid.errors import InputError
from thyroid.model.artefact import CARD, sha256
from thyroid.records.record import Record
from thyroid.registry.aliases import dump
from thyroid.registry.registry import MODEL_NAME, Registry
from thyroid.storage import ABSENT, ChangedError

_PAUSE = 0.2  # maximum seconds before a file is written again because another process was faster

R = TypeVar("R", bound=Record)


class FileBeside(Generic[R]):
    """A JSON file that a version's folder may have.

    Args:
        name: Name of the file.
        kind: Class of its record.
        was: What had been done to the model when the record was made, for an error.
        stays: Whether the present record (first argument) stays although another one (second argument) was found.
    """

    def __init__(self, name: str, kind: type[R], was: str, stays: Callable[[R, R], bool]) -> None:
        """Describe the file."""
        self.name, self._kind, self._was, self._stays = name, kind, was, stays

    def record(self, registry: Registry, version: int, model: str, found: R) -> bool:
        """Keep a record beside its version, unless the present one stays. A damaged file is replaced.

        Args:
            registry: Registry of the version.
            version: Number of the version.
            model: SHA-256 of the model.json that the record is about.
            found: Record.

        Returns:
            Whether it was kept.

        Raises:
            InputError: There is no such version, the record is about another model, or the registry cannot be written.
        """
        require_model(registry, version, model, self._was, "watch it again")
        home, path = at(registry), f"{version}/{self.name}"
        while True:
            data, generation = home.read(path)
            try:
                present = self._parse(data, self.name) if generation != ABSENT else None
            except InputError:
                present = None
            if present is not None and self._stays(present, found):
                return False
            try:
                home.write(path, dump(found.to_dict()), generation)
                break
            except ChangedError:
                time.sleep(random.uniform(0, _PAUSE))
        require_version(registry, version)
        return True

    def last(self, registry: Registry, version: int) -> R | None:
        """Return the record of a version; None if there is none.

        Raises:
            InputError: The file is damaged.
        """
        data, generation = at(registry).read(f"{version}/{self.name}")
        return None if generation == ABSENT else self._parse(data, storage.below(registry.address(version), self.name))

    def _parse(self, data: bytes, place: str) -> R:
        try:
            return self._kind.parse(json.loads(data), place, "ignore")
        except (ValueError, RecursionError, InputError) as error:
            reason = errors.one_line(error).removeprefix(f"{place}: ")[:200]
            again = "run python -m thyroid.watch again, which replaces it"
            raise InputError(f"{place}: damaged: {reason}; {again}") from None


def at(registry: Registry) -> storage.Folder | storage.Bucket:
    """Return the folder of the model in a registry, in which each version has one of its own."""
    return storage.at(storage.below(registry.root, MODEL_NAME))


def require_model(registry: Registry, version: int, model: str, was: str, again: str) -> None:
    """Check that a version is the model that something is to be kept of.

    Args:
        registry: Registry of the version.
        version: Number of the version.
        model: SHA-256 of the model.json that it is about.
        was: What was done to the model.
        again: What to do if the version is another model.

    Raises:
        InputError: There is no such version, or it is another model.
    """
    if sha256(registry.find(str(version), CARD) / CARD[0]) != model:
        raise InputError(f"version {version} of {registry.root} is not the model that was {was}; {again}")


def require_version(registry: Registry, version: int) -> None:
    """Check that a version was not removed before something was written beside it, which is then removed again.

    Args:
        registry: Registry of the version.
        version: Number of the version.

    Raises:
        InputError: It was removed.
    """
    if version not in registry.versions():
        at(registry).remove(str(version))
        raise InputError(f"{registry.root}: version {version} was removed in the meantime; nothing is kept of it")
