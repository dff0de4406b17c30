"""The newest verdict of the watch on a version: watch.json in its folder of the registry.

It is written after the version was published, so model.json has no hash of it, and the version stays valid.
"""

import json
import random
import time

from thyroid import errors, storage
from thyroid.errors import InputError
from thyroid.model.artefact import CARD, sha256
from thyroid.records.watch import WatchEntry
from thyroid.registry.aliases import dump
from thyroid.registry.registry import BESIDE, MODEL_NAME, Registry
from thyroid.storage import ABSENT, ChangedError

FILE = BESIDE[-1]

_PAUSE = 0.2  # maximum seconds before an entry is written again because another process was faster


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
    if sha256(registry.find(str(version), CARD) / CARD[0]) != entry.model:
        raise InputError(f"version {version} of {registry.root} is not the model that was watched; watch it again")
    home = _home(registry)
    while True:
        data, generation = home.read(f"{version}/{FILE}")
        try:
            present = _parse(data, FILE) if generation != ABSENT else None
        except InputError:
            present = None
        if present is not None and (present.night, present.created) > (entry.night, entry.created):
            return False
        try:
            home.write(f"{version}/{FILE}", dump(entry.to_dict()), generation)
            break
        except ChangedError:
            time.sleep(random.uniform(0, _PAUSE))
    if version not in registry.versions():  # its removal may have come before this file
        home.remove(str(version))
        raise InputError(f"{registry.root}: version {version} was removed in the meantime; nothing is kept of it")
    return True


def last(registry: Registry, version: int) -> WatchEntry | None:
    """Return the newest verdict on a version; None if it was never watched.

    Args:
        registry: Registry of the version.
        version: Number of the version.

    Raises:
        InputError: watch.json is damaged.
    """
    data, generation = _home(registry).read(f"{version}/{FILE}")
    return None if generation == ABSENT else _parse(data, storage.below(registry.address(version), FILE))


def _home(registry: Registry) -> storage.Folder | storage.Bucket:
    return storage.at(storage.below(registry.root, MODEL_NAME))


def _parse(data: bytes, place: str) -> WatchEntry:
    try:
        return WatchEntry.parse(json.loads(data), place, "ignore")
    except (ValueError, RecursionError, InputError) as error:
        reason = errors.one_line(error).removeprefix(f"{place}: ")[:200]
        raise InputError(f"{place}: damaged: {reason}; run python -m thyroid.watch again, which replaces it") from None
