"""The decision log as JSON Lines in a folder: one file per day and server process."""

import errno
import fcntl
import os
import re
import secrets
import socket
import stat
from collections.abc import Sequence
from pathlib import Path

from thyroid.errors import InputError, one_line
from thyroid.serve.decisions.writer import Line

_MODE = 0o600
_HOST_LENGTH = 40


class Folder:
    """Appends decisions to files named decisions-YYYY-MM-DD-HOST-RANDOM.jsonl.

    An erasure replaces a file while it holds the file's lock (flock), so a write takes the lock as well, and then looks
    whether the file is still the one of that name.

    Args:
        folder: The folder, which is made if it does not exist.
        name: Label of the metrics.

    Raises:
        InputError: It is a bucket, or cannot be written.
    """

    most = 1000
    attempts = 0

    def __init__(self, folder: Path, name: str = "folder") -> None:
        """Check the folder; the first write makes a file."""
        self.name = name
        if folder.parts[:1] in (("gs:",), ("s3:",)):
            address = str(folder).replace("/", "//", 1)  # a Path keeps only one of the slashes
            raise InputError(
                f"--log {address}: give a folder; python -m thyroid.watch --archive takes its decisions to a bucket"
            )
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"--log {folder}: {one_line(error)}") from None
        if not os.access(folder, os.W_OK | os.X_OK):
            raise InputError(f"--log {folder}: this user cannot write there; change its rights or give another folder")
        host = re.sub(r"[^A-Za-z0-9]+", "-", socket.gethostname())[:_HOST_LENGTH] or "host"
        self._folder, self._server = folder, f"{host}-{secrets.token_hex(4)}"

    def write(self, lines: Sequence[Line]) -> None:
        """Append decisions of one day to the day's file, all or none.

        Raises:
            OSError: They were not written; the file is as long as before.
        """
        descriptor = self._locked(self._folder / f"decisions-{lines[0].day}-{self._server}.jsonl")
        try:
            _append(descriptor, b"".join(line.text + b"\n" for line in lines))
        finally:
            os.close(descriptor)

    def _locked(self, path: Path) -> int:
        """Return a descriptor of the file of this name, and hold the file's lock until the descriptor is closed."""
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        while True:
            descriptor = os.open(path, flags | os.O_NONBLOCK, _MODE)  # a pipe of this name would block for ever
            try:
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    raise FileExistsError(errno.EEXIST, "something of the file's name is no file")
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
                    return descriptor
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)


def _append(descriptor: int, data: bytes) -> None:
    before, left = os.fstat(descriptor).st_size, memoryview(data)
    try:
        while left:
            left = left[os.write(descriptor, left) :]
        os.fsync(descriptor)  # a network disk reports only here that it is full
    except OSError:
        os.ftruncate(descriptor, before)
        raise
