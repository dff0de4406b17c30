"""A folder on this machine or on a volume."""

import hashlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from thyroid import locks
from thyroid.atomic import flush, replacing
from thyroid.storage.location import ABSENT, ChangedError


class Folder:
    """A folder on this machine or on a volume.

    Args:
        path: Path of the folder, which need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        """Keep the path and its absolute form, `address`."""
        self.path = path
        self.address = str(path.resolve())

    def read(self, name: str) -> tuple[bytes, str]:
        """Return content and generation of a file, or b"" and `ABSENT` if there is no such file.

        The generation of a file in a folder is the SHA-256 of its content.
        """
        try:
            data = (self.path / name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return b"", ABSENT
        return data, hashlib.sha256(data).hexdigest()

    def write(self, name: str, data: bytes, generation: str | None = None) -> None:
        """Write a file atomically.

        Args:
            name: Name of the file below the folder.
            data: Content of the file.
            generation: Generation that the file must still have; `ABSENT` if it must not exist; None to write in any
                case.

        Raises:
            ChangedError: The file has another generation.
        """
        target = self.path / name
        with lock(self.path):
            target.parent.mkdir(parents=True, exist_ok=True)
            if generation is not None and self.read(name)[1] != generation:
                raise ChangedError(name)
            with replacing(target) as temporary:
                temporary.write_bytes(data)
            flush(target.parent)

    def put(self, source: Path, name: str, only: Sequence[str] = ()) -> None:
        """Copy the files of the folder `source` to the folder `name`, so that they survive a power cut.

        Args:
            source: Local folder.
            name: Name of the target below this folder.
            only: Names of the files to copy; all if empty.
        """
        target = self.path / name
        for file in only or file_names(source):
            (target / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source / file, target / file)
        for path in (self.path, target, *target.rglob("*")):
            flush(path)

    def get(self, name: str, only: Sequence[str] = ()) -> Path:
        """Return a local folder for reading that has the files of the folder `name`.

        Args:
            name: Name of the folder.
            only: Names of the files that are needed. It changes nothing here, since all files are already local.
        """
        return self.path / name

    def children(self) -> list[str]:
        """Return the sorted names of what is directly in the folder, without hidden names."""
        return sorted(p.name for p in self.path.iterdir() if not p.name.startswith(".")) if self.path.is_dir() else []

    def remove(self, name: str) -> None:
        """Remove a file or a whole folder; do nothing if it does not exist.

        Names that start with a dot are removed last.
        """
        target = self.path / name
        if not target.exists():
            return
        with lock(self.path):
            for path in (*sorted(target.rglob("*"), reverse=True), target):
                if path.is_dir() and not path.is_symlink():
                    path.rmdir()
                else:
                    path.unlink(missing_ok=True)


@contextmanager
def lock(folder: Path, wait: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold a folder's lock during the block; a killed process releases it.

    Args:
        folder: Folder to lock, which is made if it does not exist.
        wait: Called once if another process holds the lock.
    """
    with locks.held(folder / ".lock", wait):
        yield


def file_names(folder: Path) -> list[str]:
    """Return the names of all files below a folder, relative to it."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
