"""What the workers of a search share: files and their locks in a folder, or objects in a bucket.

A lock in a folder ends with the process that holds it. In a bucket it is a lease (see `storage.lease`), which ends two
minutes after the last sign of life of its holder. Workers in different pods need no volume then. A trial costs some
twenty requests more, about a second.
"""

import json
import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from filelock import Timeout
from optuna.storages.journal import BaseJournalBackend, JournalFileBackend, JournalFileOpenLock

from thyroid import locks, storage
from thyroid.storage import lease, mirror

JOURNAL = "journal.log"
_WORKERS = "workers"


class InFolder:
    """What workers share in a folder.

    Args:
        folder: Folder of the study, which is made if it does not exist.
    """

    def __init__(self, folder: Path) -> None:
        """Make the folder."""
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder

    def journal(self) -> BaseJournalBackend:
        """Return the journal of the study's trials."""
        path = self.folder / JOURNAL
        return JournalFileBackend(str(path), _Lock(path))

    def held(self, name: str) -> AbstractContextManager[object]:
        """Return a context that holds the lock `name`."""
        return locks.held(self.folder / name)

    @contextmanager
    def working(self, worker: str) -> Iterator[None]:
        """Let a worker count as alive until the block or the process ends."""
        path = self.folder / _WORKERS / worker
        with locks.held(path):
            yield
        path.unlink(missing_ok=True)

    def is_alive(self, worker: str) -> bool | None:
        """Return whether a worker is alive; None if that cannot be said yet."""
        path = self.folder / _WORKERS / worker
        try:
            with locks.of(path).acquire(blocking=False):
                pass
        except Timeout:
            return True
        path.unlink(missing_ok=True)
        return False


class InBucket:
    """What workers share in a bucket.

    Args:
        place: The bucket, below whose prefix the study is.
    """

    def __init__(self, place: storage.Bucket) -> None:
        """Nothing is known of any worker yet."""
        self.place = place
        self._seen: dict[str, tuple[str, float]] = {}
        self._renewed: set[str] = set()

    def journal(self) -> BaseJournalBackend:
        """Return the journal of the study's trials."""
        return _ObjectJournal(self.place)

    def held(self, name: str) -> AbstractContextManager[object]:
        """Return a context that holds the lock `name`."""
        return lease.held(self.place, name)

    @contextmanager
    def working(self, worker: str) -> Iterator[None]:
        """Let a worker count as alive until the block ends, or for `lease.EXPIRY` seconds after its process ended."""
        with lease.held(self.place, f"{_WORKERS}/{worker}"):
            yield
        self.place.remove(f"{_WORKERS}/{worker}")

    def is_alive(self, worker: str) -> bool | None:
        """Return whether a worker is alive; None if that cannot be said yet.

        A worker is alive if it has given a sign of life since this one has looked for the first time, and dead if it
        has given none for `lease.EXPIRY` seconds.
        """
        content, generation = self.place.read(f"{_WORKERS}/{worker}")
        now = time.monotonic()
        before, since = self._seen.get(worker, (generation, now))
        if not content or (before == generation and now - since > lease.EXPIRY):
            return False
        if before != generation:
            self._renewed.add(worker)
            since = now
        self._seen[worker] = generation, since
        return True if worker in self._renewed else None


def of(folder: Path) -> InFolder | InBucket:
    """Return what the workers of a study share.

    Args:
        folder: Folder of the study. For a study in a bucket, its folder in the node's cache.
    """
    place = storage.at(mirror.address(folder))
    return InBucket(place) if isinstance(place, storage.Bucket) else InFolder(folder)


class _Lock(JournalFileOpenLock):
    """Optuna's lock around a write, which ends with the process.

    Before a write it removes half a line that a dead process has left. Otherwise the next line would be appended to it,
    and the journal could no longer be read (optuna 5.0).
    """

    def __init__(self, journal: Path) -> None:
        self.journal = journal
        self.lock = locks.of(journal.with_suffix(".lock"))

    def acquire(self) -> bool:
        """Wait for the lock, and truncate the journal after its last complete line."""
        self.lock.acquire()
        with self.journal.open("rb+") as file:
            content = file.seek(0, os.SEEK_END)
            if content and (file.seek(content - 1), file.read(1))[1] != b"\n":
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
        return True

    def release(self) -> None:
        """Release the lock."""
        self.lock.release()


class _ObjectJournal(BaseJournalBackend):
    """Optuna's journal as one object of JSON lines, which is replaced by compare-and-swap with each entry.

    It has about 20 lines of 200 bytes for each trial.
    """

    def __init__(self, place: storage.Bucket) -> None:
        self.place = place

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """Yield the entries from a number on."""
        for line in self.place.read(JOURNAL)[0].splitlines()[log_number_from:]:
            yield json.loads(line)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append entries after those of all workers."""
        lines = b"".join(json.dumps(entry, separators=(",", ":")).encode() + b"\n" for entry in logs)
        while True:
            content, generation = self.place.read(JOURNAL)
            try:
                return self.place.write(JOURNAL, content + lines, generation)
            except storage.ChangedError:
                continue  # another worker was faster
