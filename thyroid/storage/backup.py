"""The work of a job that may be stopped, such as a training, kept where another node finds it.

In a folder the work is simply there. In a bucket it is a folder of the node's cache, and a thread sends to the bucket
what changes in it, so that the same job on another node resumes with an empty cache:

    <place>/<key>/...        files of an unfinished job, each sent as a whole
    <place>/<key>/done.tar   the folder `done` of a finished one, and then nothing else: its files change at once

The thread waits after each transfer for nine times as long as it took, so that a job never waits for it and the bucket
takes a tenth of the time. States go before feature maps, which are large and can be computed again: those that are
faster to compute than to send mostly stay on their node.
"""

import logging
import shutil
import sys
import tarfile
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from thyroid.errors import InputError
from thyroid.storage import mirror
from thyroid.storage.bucket import Bucket
from thyroid.storage.folder import lock
from thyroid.storage.location import Location, below, is_bucket
from thyroid.storage.resolve import bucket_at

log = logging.getLogger(__name__)

DONE = "done"
"""Name of the folder with the result of a finished job."""
SHARE = 0.1
"""Largest share of the time that transfers take while a job is at work."""
LOOKING = 0.01
"""Largest share of the time in which the thread looks for changed files, which the job's own thread must wait for."""
GRACE = 15.0
"""Seconds for the last transfers of a job that is stopped; Kubernetes kills a pod after 30."""
PATIENCE = 600.0
"""Seconds for the last transfers of a job that has ended."""
_POLL = 1.0  # seconds between two looks at the folder
_FILES, _BYTES = 64, 64_000_000  # of one transfer; the files of a state are sent one by one
_ARCHIVE = f"{DONE}.tar"
_OLDER = "state-before.npz"  # the previous state is for a damaged disk; an object of the bucket is always whole


@contextmanager
def kept(place: Location, key: str) -> Iterator[Path]:
    """Yield the folder of a job's work, with what an earlier run of the job has left in it on any node.

    If the folder has a folder `done` at the end of the block, the job is finished, and nothing else is kept of it in a
    bucket. A bucket that fails within the block ends nothing: that is logged once, and each later transfer tries again.
    A second run of the job on the same node or volume waits. On another node it is done at the same time; then the
    result that is sent last stays.

    Args:
        place: Folder, or address in a bucket, of all jobs.
        key: Name of the job's folder. Jobs of one key have one result.

    Raises:
        InputError: The bucket cannot be read at the start.
    """
    folder = mirror.mirror(place) / key
    with lock(folder, lambda: log.info(f"{mirror.address(folder)}: another run is at work here; waiting")):
        if not is_bucket(place):
            yield folder
            return
        bucket = bucket_at(below(place, key))
        known = _fetch(bucket, folder)
        before = _identity(folder / DONE) if _ARCHIVE in known else None
        with sending(folder, known):
            yield folder
        now = _identity(folder / DONE)
        if now is not None and (now == before or _conclude(bucket, folder)):
            _clear(folder)


@contextmanager
def sending(folder: Path, known: Collection[str]) -> Iterator[None]:
    """Send to the bucket what changes in a folder of the node's cache during the block.

    After the block the rest is sent: everything but feature maps, within `GRACE` seconds, if an exception ends the
    block; feature maps, too, within `PATIENCE` seconds, if it ends otherwise and there is no folder `done`.

    Args:
        folder: Folder of the cache. For any other folder nothing is sent.
        known: Names below the folder that the bucket has already.
    """
    address = mirror.address(folder)
    if not is_bucket(address):
        yield
        return
    sender = _Sender(folder, address, known)
    try:
        yield
    except BaseException:
        sender.end(GRACE, maps=False)
        raise
    sender.end(0.0 if (folder / DONE).is_dir() else PATIENCE, maps=True)


class _Sender:
    """A thread that sends the changed files of a folder to its bucket."""

    def __init__(self, folder: Path, address: str, known: Collection[str]) -> None:
        """Start the thread."""
        self.folder, self.address = folder, address
        self.sent = {folder / name: _identity(folder / name) for name in known}
        self.ending, self.wanted = threading.Event(), threading.Event()
        self.maps = self.failing = False
        self.thread = threading.Thread(target=self._run, name=f"sends {folder.name}", daemon=True)
        self.thread.start()

    def end(self, seconds: float, *, maps: bool) -> None:
        """Send the rest, and say what did not get there in time.

        Args:
            seconds: Time for it; with 0 nothing more is sent.
            maps: Whether feature maps are sent, too.
        """
        self.maps = maps
        if seconds:
            self.wanted.set()
        self.ending.set()
        self.thread.join(seconds or PATIENCE)  # a transfer that has begun must not come after the job's end
        left = [path for path in self._changed() if maps or not _is_map(path)] if seconds else []
        if left:
            sys.stderr.write(
                f"{self.address}: {len(left)} files could not be sent in {seconds:.0f} s; they stay in {self.folder}. "
                "On another node the job resumes from what was sent before\n"
            )

    def _run(self) -> None:
        pause = _POLL
        while not self.ending.wait(pause):
            began = time.monotonic()
            files = self._next()
            looked = time.monotonic()
            self._send(files)
            pause = max(_POLL, (looked - began) / LOOKING, (time.monotonic() - looked) * (1 / SHARE - 1))
        while self.wanted.is_set() and not self.failing:
            files = [path for path in self._next() if self.maps or not _is_map(path)]
            if not files:
                return
            self._send(files)

    def _next(self) -> list[Path]:
        """Return the files of the next transfer: one that is no feature map, or some that are."""
        changed = self._changed()
        if not changed or not _is_map(changed[0]):
            return changed[:1]
        result: list[Path] = []
        size = 0
        for path in changed[:_FILES]:
            size += identity[1] if (identity := _identity(path)) else 0
            if result and size > _BYTES:
                break
            result.append(path)
        return result

    def _changed(self) -> list[Path]:
        """Return the files whose present state is not in the bucket, feature maps last."""
        changed = (path for path in self._files() if (now := _identity(path)) and now != self.sent.get(path))
        return sorted(changed, key=lambda path: (_is_map(path), path))

    def _files(self) -> Iterator[Path]:
        for path in self.folder.rglob("*"):
            inside = path.relative_to(self.folder).parts
            passing = path.name == _OLDER or path.suffix in (".tmp", ".lock", ".tar") or inside[0] in (DONE, "ready")
            if not passing and not path.name.startswith(".") and path.is_file():
                yield path

    def _send(self, files: Sequence[Path]) -> None:
        """Send files; a failure is logged if it is the first in a row."""
        # Files are replaced, not changed, so that an open one stays whole. A later state is sent by the next transfer.
        identities = {path: identity for path in files if (identity := _identity(path))}
        if not identities:
            return
        try:
            mirror.send(list(identities))
        except (InputError, OSError) as error:
            if all(path.exists() for path in identities):  # else the job has removed one in the meantime
                if not self.failing:
                    log.info(f"{error}; the job goes on, and its state stays in {self.folder} until it can be sent")
                self.failing = True
            return
        self.failing = False
        self.sent |= identities


def _fetch(bucket: Bucket, folder: Path) -> set[str]:
    """Download what the bucket has of a job and the folder has not, or has only in an older state.

    Returns:
        The names that the bucket has.
    """
    entries = bucket.entries()
    if any(entry.name == _ARCHIVE for entry in entries):
        entries = [entry for entry in entries if entry.name == _ARCHIVE]
    wanted = []
    for entry in entries:
        path = folder / entry.name
        if not path.resolve().is_relative_to(folder.resolve()):
            continue  # nothing that a job has sent
        if not path.is_file() or (not _is_map(path) and path.stat().st_mtime < entry.modified):
            wanted.append((entry, path))
    for _ in bucket.download(wanted, f"work of {folder.name}"):
        pass  # what has vanished in the meantime is done again
    if (archive := folder / _ARCHIVE).is_file():
        _clear(folder, _ARCHIVE)  # a run on this node was stopped before another one finished the job
        try:
            with tarfile.open(archive, "r:") as opened:
                opened.extractall(folder / DONE, filter="data")
        except (tarfile.TarError, OSError, ValueError) as error:
            log.info(f"{below(bucket.address, _ARCHIVE)}: damaged ({error}); the job is done again")
            shutil.rmtree(folder / DONE, ignore_errors=True)
        archive.unlink()
    return {entry.name for entry in entries}


def _conclude(bucket: Bucket, folder: Path) -> bool:
    """Keep only the result of a finished job in the bucket, and return whether it is there."""
    try:
        archive = Path(shutil.make_archive(str(folder / DONE), "tar", folder / DONE))
        try:
            bucket.upload([(archive, _ARCHIVE)])
        finally:
            archive.unlink()
        bucket.delete([entry.name for entry in bucket.entries() if entry.name != _ARCHIVE])
    except (InputError, OSError) as error:
        log.info(f"{error}; the result is complete, but the same job on another node would be done again")
        return False
    return True


def _clear(folder: Path, kept: str = "") -> None:
    """Remove everything from a folder but the file `kept` and the lock, which another run may be waiting for."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name not in (kept, ".lock"):
            path.unlink()


def _is_map(path: Path) -> bool:
    """Return whether a file holds feature maps, by the name of its folder."""
    return "maps" in path.parent.name


def _identity(path: Path) -> tuple[int, int, int] | None:
    """Return what changes when a file is replaced, its size among it; None if there is no such file."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns
