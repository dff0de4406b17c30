"""Compare the data with that of the last registered model, and decide whether the changes justify a training."""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from thyroid import storage
from thyroid.data import tables
from thyroid.data.version import DataVersion
from thyroid.errors import InputError
from thyroid.model.artefact import CARD, SCANS
from thyroid.records.watch import WatchEntry
from thyroid.registry.beside import watches
from thyroid.registry.registry import Registry

_OF_MODELS = ["sha256", "label", "boxes"]
TRAIN = "train"
TRAIN_ON = ("new", "drift")
"""What may start a training before enough is new: nothing, or the watch's verdict that the champion no longer holds."""


@dataclass(frozen=True)
class Changes:
    """Differences between the scans in use now and those of a registered version.

    Attributes:
        since: The registered version; None if there is no model yet, so that every scan is new.
        new: SHA-256 to class, for scans that the version did not have.
        changed: SHA-256 to present class, for scans whose class or regions have changed.
        removed: SHA-256 to former class, for scans that are no longer in use.
        kept: Number of scans that have not changed.
    """

    since: int | None
    new: Mapping[str, str]
    changed: Mapping[str, str]
    removed: Mapping[str, str]
    kept: int

    @property
    def count(self) -> int:
        """The number of scans that are new, changed or removed."""
        return len(self.new) + len(self.changed) + len(self.removed)

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers of scans by class, for summary.json and the report."""
        parts = {"new": self.new, "changed": self.changed, "removed": self.removed}
        return {"since": self.since, "kept": self.kept} | {
            name: dict(sorted(Counter(scans.values()).items())) for name, scans in parts.items()
        }

    def describe(self) -> str:
        """Describe the changes to people in one line."""
        if self.since is None:
            return f"no model yet: all {len(self.new)} scans are new"
        return (
            f"since model version {self.since}: {len(self.new)} scans new, {len(self.changed)} changed, "
            f"{len(self.removed)} removed, {self.kept} as they were"
        )


def since_last(data: DataVersion, root: storage.Location) -> Changes:
    """Compare a data version with that of the registry's newest version, whether that was released or not.

    Args:
        data: A data version of `ingest` or `crop`.
        root: Root of the registry.

    Returns:
        The changes since the newest version.

    Raises:
        InputError: The list of scans of the newest version is missing or damaged.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    present = _of_models(data.contents)
    registry = Registry(root)
    version = registry.read_aliases().get("candidate")
    if version is None:
        return Changes(None, _labels(present), {}, {}, 0)
    old = _of_models(scans_of(registry.find(str(version), only=(*CARD, SCANS)), _OF_MODELS))
    # without a join, which makes Python's texts of the checksums
    places = pc.fill_null(pc.index_in(pa.array(present["sha256"]), pa.array(old["sha256"])), -1).to_numpy()
    both, kept = present[places >= 0], places[places >= 0]
    before = old.iloc[kept].set_axis(both.index)
    differs = (both["label"] != before["label"]) | (both["boxes"] != before["boxes"])
    return Changes(
        version,
        _labels(present[places < 0]),
        _labels(both[differs]),
        _labels(old.drop(index=kept)),
        int((~differs).sum()),
    )


def _of_models(scans: pd.DataFrame) -> pd.DataFrame:
    """Return what of the scans makes another model, by SHA-256: label and boxes."""
    return scans[_OF_MODELS].drop_duplicates("sha256", ignore_index=True)


def _labels(scans: pd.DataFrame) -> dict[str, str]:
    return dict(zip(scans["sha256"], scans["label"], strict=True))


def alarm(root: storage.Location, train_on: str) -> WatchEntry | None:
    """Return the newest verdict on the champion if it calls for a training.

    Args:
        root: Root of the registry.
        train_on: One of `TRAIN_ON`.

    Returns:
        A verdict of drift or worse; None without one, without a champion, or if `train_on` is "new".

    Raises:
        InputError: `train_on` is unknown, or the verdict is damaged.
    """
    if train_on not in TRAIN_ON:
        raise InputError(f"train_on {train_on!r}: choose from {', '.join(TRAIN_ON)}")
    registry = Registry(root)
    if train_on == "new" or (champion := registry.champion()) is None:
        return None
    entry = watches.last(registry, champion)
    return entry if entry is not None and entry.verdict in ("drift", "worse") else None


def verdict(changes: Changes, minimum: int, alarmed: WatchEntry | None = None) -> str:
    """Decide whether a training is worthwhile.

    Args:
        changes: Changes since the last registered model.
        minimum: Number of new, changed or removed scans that justifies a training; 0 trains in any case.
        alarmed: Verdict of the watch for which a single such scan justifies it; None without one. With none at all the
            training would make the same model again.

    Returns:
        `TRAIN`, or the reason against a training in words.

    Raises:
        InputError: `minimum` is negative.
    """
    if minimum < 0:
        raise InputError(f"minimum {minimum}: give a number of scans, or 0 to train in any case")
    if not minimum or changes.since is None or changes.count >= minimum or (alarmed and changes.count):
        return TRAIN
    if not changes.count:
        but = f"; the watch says {alarmed.verdict}, but the same scans give the same model" if alarmed else ""
        return f"nothing new since model version {changes.since}{but}"
    return f"waiting: {changes.count} of {minimum} new, changed or removed scans since model version {changes.since}"


def scans_of(artefact: Path, columns: Collection[str] = (*tables.CONTENTS, *tables.PRINTS)) -> pd.DataFrame:
    """Read what a registered model was made of.

    Perceptual hashes and patients are null for versions that older code registered, since they cannot be computed
    without the data.

    Args:
        artefact: Folder of the registered version.
        columns: Columns to read.

    Returns:
        One row per scan with the columns of `tables.contents` of its data version, and patient, which is a pseudonym.

    Raises:
        InputError: The list of scans is missing or damaged.
    """
    try:
        table = pd.read_csv(artefact / SCANS, dtype="string", usecols=lambda name: name in columns)
        table = table[[name for name in columns if name in table or name not in tables.PRINTS]]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{artefact / SCANS}: cannot be read ({error}); register the model again") from None
    return table.reindex(columns=[*columns]).astype("string")
