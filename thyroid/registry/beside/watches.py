"""The newest verdict of the watch on a version: watch.json in its folder of the registry."""

from thyroid.records.watch import WatchEntry
from thyroid.registry.beside.file import FileBeside
from thyroid.registry.registry import BESIDE, Registry

_FILE = FileBeside(
    BESIDE[-1],
    WatchEntry,
    "watched",
    lambda present, found: (present.night, present.created) > (found.night, found.created),
)


def record(registry: Registry, version: int, entry: WatchEntry) -> bool:
    """Keep a verdict beside its version, unless that of a later night is there.

    A verdict on the same night is replaced by one that was made later. A damaged file is replaced, too.

    Args:
        registry: Registry of the version.
        version: Number of the version.
        entry: Verdict.

    Returns:
        Whether it is the newest verdict and was kept.

    Raises:
        InputError: There is no such version, the verdict is on another model, or the registry cannot be written.
    """
    return _FILE.record(registry, version, entry.model, entry)


def last(registry: Registry, version: int) -> WatchEntry | None:
    """Return the newest verdict on a version; None if it was never watched.

    Args:
        registry: Registry of the version.
        version: Number of the version.

    Raises:
        InputError: watch.json is damaged.
    """
    return _FILE.last(registry, version)
