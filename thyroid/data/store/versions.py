"""A data version in a store."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from thyroid import atomic, errors
from thyroid.data import tables
from thyroid.data.store.in_bucket import BucketFiles
from thyroid.data.store.names import EXAMINED, LINKS, MEMORY
from thyroid.errors import InputError


class Version:
    """A whole data version in a store, with the tables that only the next ingest reads.

    Args:
        folder: Folder of the version.
        bucket: The store's files if it is in a bucket; the version's other files are then read when they are needed.

    Raises:
        InputError: The folder is no whole data version, or its data.json is damaged.
    """

    def __init__(self, folder: Path, bucket: BucketFiles | None = None) -> None:
        """Read data.json; the attribute `facts` lists only the files that are handed on to later steps."""
        self.folder, self._bucket = folder, bucket
        facts = tables.read_facts(folder)
        self._files = facts.files
        handed_on = {name: sum_ for name, sum_ in self._files.items() if name not in (EXAMINED, LINKS, MEMORY)}
        self.facts = facts.model_copy(update={"files": handed_on})

    def table(self, name: str, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """Return one of the tables `EXAMINED`, `LINKS` and `MEMORY`, or some of its columns.

        Raises:
            InputError: The table is damaged.
        """
        try:
            path, sha256 = self._file(name)
            return tables.read_table(path.parent, path.name, {path.name: sha256}, columns)
        except (ValueError, OSError) as error:
            raise InputError(
                f"{self.folder / name}: damaged ({errors.one_line(error)[:200]}); remove {self._mark()} and "
                "run again, which continues from the previous version"
            ) from None

    def take(self, output: Path) -> None:
        """Copy the data version to `output`.

        Raises:
            InputError: The data version is damaged.
        """
        try:
            places = {name: self._file(name) for name in self.facts.files}
            content = {
                name: tables.checked(path.parent, path.name, {path.name: sha256})
                for name, (path, sha256) in places.items()
            }
        except ValueError as error:
            raise InputError(
                f"{self.folder}: damaged data version ({error}); remove {self._mark()} and run again, which "
                "continues from the previous version"
            ) from None
        output.mkdir(parents=True, exist_ok=True)
        for name, data in content.items():
            atomic.write_bytes(output / name, data)
        tables.write_facts(output, self.facts)  # written last, since it marks the version as whole

    def _file(self, name: str) -> tuple[Path, str]:
        """Return the place of a file, and the SHA-256 that it must have.

        Raises:
            ValueError: The file is missing in a bucket.
        """
        sha256 = self._files.get(name, "")
        if self._bucket is None or (self.folder / name).exists():
            return self.folder / name, sha256
        if not sha256 or (path := self._bucket.blob(sha256)) is None:
            raise ValueError(f"{name} is missing")
        return path, sha256

    def _mark(self) -> str:
        """Return what makes the version whole: without it, the version counts as gone."""
        if self._bucket is None:
            return str(self.folder)
        content = (self.folder / tables.FACTS).read_bytes()
        return self._bucket.address_of(hashlib.sha256(content).hexdigest())
