"""What the store knows from earlier runs: data versions, cohorts, and the splits that their patients were in."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import cast

import pandas as pd

from thyroid.data import store, tables
from thyroid.data.store import Store, Version
from thyroid.ingest.listing import ListedFile

_RANK = {"test": 0, "validation": 1, "train": 2}
"""Order of precedence: if a group was in several splits before, the one with the smallest rank wins."""
_SAME_COHORT = 0.5
"""Share of the scans that a source and a cohort must have in common for the source to belong to the cohort.

It refers to the smaller of the two. A moved folder shares nearly all its scans; another hospital shares only the few
that are public.
"""


@dataclass(frozen=True)
class History:
    """The data versions that a store has, as seen from one source of scans.

    Attributes:
        source: Address of the scans of this run.
        versions: Readable data versions of any source, newest first; empty without a store.
    """

    source: str
    versions: Sequence[Version] = ()

    @classmethod
    def read(cls, place: Store | None, source: str) -> "History":
        """Read the data versions of a store; None stands for no store."""
        return cls(source, [] if place is None else place.readable())

    @property
    def newest(self) -> Version | None:
        """The last data version of any source."""
        return self.versions[0] if self.versions else None

    @cached_property
    def last(self) -> Version | None:
        """The last data version of this source."""
        return next((version for version in self.versions if version.facts.source == self.source), None)

    @cached_property
    def memory(self) -> pd.DataFrame:
        """Cohort, patient, perceptual hash and split of every scan that the store ever had."""
        return tables.frame([], store.REMEMBERED) if self.newest is None else self.newest.table(store.MEMORY)

    def unchanged(self, inputs: str | None, site: str, files: Sequence[ListedFile]) -> Version | None:
        """Return the last data version of this source if this run would produce the same one, else None.

        Args:
            inputs: Digest of everything that the data version depends on; None if a file may change unnoticed.
            site: Name that the user gave the cohort; empty for none.
            files: The files of this run.
        """
        last = self.last
        if last is None or inputs is None or inputs != last.facts.inputs or site not in ("", last.facts.cohort):
            return None
        return last if _copies_exist(files, last) else None


@dataclass(frozen=True)
class Cohort:
    """The scope in which equal patient numbers mean the same patient, and what the store remembers of all cohorts.

    Attributes:
        name: Name of the cohort.
        memory: Cohort, patient, phash and split of earlier scans.
        notes: Sentences for people on how the cohort was chosen.
    """

    name: str
    memory: pd.DataFrame
    notes: Sequence[str] = field(default=())

    def without_memory(self) -> "Cohort":
        """Return the cohort as if the store remembered no scan of any cohort."""
        return replace(self, memory=self.memory[:0])

    def without_own_memory(self) -> "Cohort":
        """Return the cohort as if the store remembered no scan of it."""
        return replace(self, memory=self.memory[self.memory["cohort"] != self.name])

    def earlier_splits(self, scans: pd.DataFrame, links: Sequence[tuple[str, str]]) -> dict[int, str]:
        """Return the split that a group was in before, by group. If there were several, test wins, then validation.

        Args:
            scans: Scans in use, with group, patient and phash.
            links: Pairs of perceptual hashes that are near-duplicates.
        """
        by_patient, by_hash = self._ranks()
        # The split also carries over from a copy of a scan that is no longer there.
        for a, b in links:
            for known, other in ((a, b), (b, a)):
                if known in by_hash:
                    by_hash[other] = min(by_hash[known], by_hash.get(other, by_hash[known]))
        ranks = pd.DataFrame(
            {
                "group": scans["group"],
                "patient": scans["patient"].map(by_patient),
                "hash": scans["phash"].map(by_hash),
            }
        )
        decided = ranks.groupby("group")[["patient", "hash"]].min().min(axis=1).dropna()
        order = list(_RANK)
        by_group = cast("Iterable[tuple[int, float]]", decided.items())  # pandas-stubs: of any keys
        return {int(group): order[int(rank)] for group, rank in by_group}

    def moved_into_test(self, scans: pd.DataFrame) -> list[int]:
        """Return the patients who are in test now, and who were in another split before.

        Args:
            scans: Scans in use, with patient, phash and split.
        """
        by_patient, by_hash = self._ranks()
        ranks = pd.DataFrame({"patient": scans["patient"].map(by_patient), "hash": scans["phash"].map(by_hash)}).astype(
            float
        )
        moved = (scans["split"] == "test") & (ranks.max(axis=1) > _RANK["test"])
        return sorted(set(scans.loc[moved, "patient"]))

    def remember(self, scans: pd.DataFrame) -> pd.DataFrame:
        """Return the memory with these scans added. A patient's older hashes move to the patient's present split.

        Args:
            scans: Scans in use, with patient, phash and split.
        """
        now = scans[["patient", "phash", "split"]].assign(cohort=self.name)[list(store.REMEMBERED)]
        ranks = now.assign(rank=now["split"].map(_RANK)).groupby("patient")["rank"].min()
        present = ranks.map({rank: split for split, rank in _RANK.items()})
        memory = self.memory
        moved = memory["patient"].where(memory["cohort"] == self.name).map(present)
        old = memory.assign(split=moved.fillna(memory["split"]).astype("string"))
        both = pd.concat([now, old], ignore_index=True).astype(store.REMEMBERED)
        return both.drop_duplicates(["cohort", "patient", "phash"], ignore_index=True)

    def _ranks(self) -> tuple[pd.Series, dict[str, int]]:
        """Return the rank of the remembered split by patient of the cohort, and by hash of any cohort."""
        rank = self.memory["split"].map(_RANK)
        own = self.memory["cohort"] == self.name
        by_hash = cast("dict[str, int]", rank.groupby(self.memory["phash"]).min().to_dict())  # pandas-stubs: any keys
        return rank[own].groupby(self.memory["patient"][own]).min(), by_hash


def find_cohort(history: History, site: str, scans: pd.DataFrame) -> Cohort:
    """Return the cohort of the scans of a run.

    Without a name from the user, it is the cohort that the source had before, or else the one that shares
    `_SAME_COHORT` of the scans, or else a new one without a name. A name replaces such a missing name in the memory.

    Args:
        history: What the store knows.
        site: Name that the user gave; empty for none.
        scans: Scans in use, with patient and phash.
    """
    memory = history.memory
    now = scans[["patient", "phash"]].drop_duplicates()
    sizes = memory["cohort"].value_counts()
    shared = memory.merge(now, on=["patient", "phash"])["cohort"].value_counts()
    similar = [str(name) for name, count in shared.items() if count >= _SAME_COHORT * min(len(now), sizes[str(name)])]
    before = history.last.facts.cohort if history.last is not None else ""
    if before not in sizes and similar:  # a new place, or a cohort that was named while it was at another place
        before = similar[0]
    name = site or before or store.unnamed(history.source)
    if site and before.startswith(store.UNNAMED):  # the cohort gets its name now
        memory = memory.assign(cohort=memory["cohort"].replace(before, site)).drop_duplicates(
            ["cohort", "patient", "phash"], ignore_index=True
        )
    notes = []
    if history.newest is not None and history.last is None:
        notes.append(_describe_new_source(history, name, before, sorted(sizes.index)))
    elif history.last is not None and not site and not shared.get(name, 0):
        notes.append(
            f"all scans in {history.source} are new; equal patient numbers still count as the same patients "
            f"(cohort {_describe_name(name)}). If they come from another hospital, give its name with --site"
        )
    return Cohort(name, memory, notes)


def _describe_new_source(history: History, name: str, before: str, cohorts: Sequence[str]) -> str:
    """Return a note on the cohort of a source that the store does not know.

    Args:
        history: What the store knows.
        name: The cohort of the source.
        before: The cohort that has the same scans; empty if there is none.
        cohorts: Names of all cohorts in the store.
    """
    known = f"{history.source} is new to the store, which has {len(history.versions)} data versions"
    described = _describe_name(name)
    if before and (name == before or before.startswith(store.UNNAMED)):
        return f"{known}; its scans match cohort {described}, so its patients keep their splits"
    if name in cohorts:
        return f"{known}; it is added to cohort {described}, whose patients keep their splits"
    return (
        f"{known}; it becomes a new cohort, {described}, whose patients get new splits. If it belongs to an existing "
        f"cohort ({', '.join(cohorts[:10])}), give that name with --site"
    )


def _describe_name(cohort: str) -> str:
    return f"{cohort} (give its name with --site)" if cohort.startswith(store.UNNAMED) else cohort


def _copies_exist(files: Sequence[ListedFile], version: Version) -> bool:
    """Return whether all copies that the data version refers to still exist."""
    if not any(file.copied for file in files):
        return True
    return all(Path(copy).exists() for copy in version.table(store.EXAMINED, ["local_path"])["local_path"].dropna())
