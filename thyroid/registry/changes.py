"""What has changed in the data since the last registered model, and whether that is worth a training."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from thyroid import storage
from thyroid.data import tables
from thyroid.errors import InputError
from thyroid.model import artefacts
from thyroid.registry import registry

TRAIN = "train"


@dataclass(frozen=True)
class Changes:
    """Scans in use now against those of a registered version.

    Attributes:
        since: the version; None where there is no model yet, and every scan is new.
        new: SHA-256 of scans that it did not have, to their class.
        changed: of those that have another class or other regions now.
        removed: of those that are no longer in use, to the class they had.
        kept: number of the others.
    """

    since: int | None
    new: Mapping[str, str]
    changed: Mapping[str, str]
    removed: Mapping[str, str]
    kept: int

    @property
    def count(self) -> int:
        return len(self.new) + len(self.changed) + len(self.removed)

    def facts(self) -> dict[str, Any]:
        """Numbers by class, for summary.json and the report."""
        parts = {"new": self.new, "changed": self.changed, "removed": self.removed}
        return {"since": self.since, "kept": self.kept} | {
            name: dict(sorted(Counter(scans.values()).items())) for name, scans in parts.items()
        }

    def told(self) -> str:
        """One line for people."""
        if self.since is None:
            return f"no model yet: all {len(self.new)} scans are new"
        return (
            f"since model version {self.since}: {len(self.new)} scans new, {len(self.changed)} changed, "
            f"{len(self.removed)} removed, {self.kept} as they were"
        )


def since_last(data: Path, root: storage.Location) -> Changes:
    """A data version against that of the registry's newest version, released or not.

    Args:
        data: data version of `ingest` or `crop`.
        root: of the registry.

    Raises:
        InputError: the version does not say what it was made of.
    """
    scans, regions, _ = tables.read(data)
    now = tables.contents(scans, regions).drop_duplicates("sha256").set_index("sha256")
    version = registry.read_aliases(root).get("candidate")
    if version is None:
        return Changes(None, now["label"].to_dict(), {}, {}, 0)
    old = scans_of(registry.find(root, str(version), only=(*artefacts.CARD, artefacts.SCANS)))
    old = old.drop_duplicates("sha256").set_index("sha256")
    both = now.join(old, rsuffix="_old", how="inner")
    differs = (both["label"] != both["label_old"]) | (both["boxes"] != both["boxes_old"])
    return Changes(
        version,
        now.loc[now.index.difference(old.index), "label"].to_dict(),
        both.loc[differs, "label"].to_dict(),
        old.loc[old.index.difference(now.index), "label"].to_dict(),
        int((~differs).sum()),
    )


def verdict(changes: Changes, minimum: int) -> str:
    """`TRAIN`, or why not, in words.

    Args:
        changes: since the last registered model.
        minimum: scans new, changed or removed from which on a training is worth it; 0: in any case.

    Raises:
        InputError: `minimum` is negative.
    """
    if minimum < 0:
        raise InputError(f"minimum {minimum}: give 0 to train in any case, or a number of scans")
    if not minimum or changes.since is None or changes.count >= minimum:
        return TRAIN
    if not changes.count:
        return f"nothing new since model version {changes.since}"
    return f"waiting: {changes.count} of {minimum} new, changed or removed scans since model version {changes.since}"


def scans_of(artefact: Path) -> pd.DataFrame:
    """What a registered model was made of: `tables.contents` of its data version, and patient: the pseudonym.

    Perceptual hashes and patients are null in what older code has registered: they cannot be found without the data.

    Raises:
        InputError: its list of scans is missing or damaged.
    """
    try:
        table = pd.read_csv(artefact / artefacts.SCANS, dtype="string")
        table = table[[*tables.CONTENTS, *(name for name in tables.PRINTS if name in table)]]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{artefact / artefacts.SCANS}: cannot be read ({error}); register a model anew") from None
    return table.reindex(columns=[*tables.CONTENTS, *tables.PRINTS]).astype("string")
