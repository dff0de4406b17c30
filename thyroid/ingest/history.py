"""What the store knows from earlier runs: data versions, cohorts, and the splits that their patients were in."""

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import cast

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from thyroid.data import store, tables
from thyroid.data.store import Store, Version
from thyroid.ingest.listing import ListedFile

_RANK = {"test": 0, "validation": 1, "train": 2}
"""Order of precedence: if a group was in several splits before, the one with the smallest rank wins."""
_SAME = ["cohort", "patient", "picture"]
"""Columns in which remembered scans differ."""
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
        there: Whether the copy of a scan at a local_path exists.
    """

    source: str
    versions: Sequence[Version] = ()
    there: Callable[[str], bool] = field(default=lambda path: Path(path).exists(), repr=False)

    @classmethod
    def read(cls, place: Store | None, source: str) -> "History":
        """Read the data versions of a store; None stands for no store."""
        return cls(source) if place is None else cls(source, place.readable(), place.copies())

    @property
    def newest(self) -> Version | None:
        """The last data version of any source."""
        return self.versions[0] if self.versions else None

    @cached_property
    def last(self) -> Version | None:
        """The last data version of this source."""
        return next((version for version in self.versions if version.facts.source == self.source), None)

    def memory(self, *columns: str) -> pd.DataFrame:
        """Read cohort, patient, perceptual hash and split of every scan that the store ever had, or some columns."""
        if self.newest is None:
            return tables.frame([], store.REMEMBERED)
        return self.newest.table(store.MEMORY, columns or None)

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
        return last if _copies_exist(files, last, self.there) else None


@dataclass(frozen=True)
class Cohort:
    """The scope in which equal patient numbers mean the same patient, and what the store remembers of all cohorts.

    Attributes:
        name: Name of the cohort.
        memory: Cohort, patient, phash, split and picture (see `ScanTable.number_pictures`) of earlier scans. The hash
            is null where `without_hashes_of` has left it out.
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

    def without_hashes_of(self, hashes: pd.Series) -> "Cohort":
        """Return the cohort without the hashes that this run's scans have as well: of a million scans they take 264 MB.

        Args:
            hashes: Perceptual hash of every scan, which later calls need to be given. A picture's number is its row.
        """
        is_there = self.memory["picture"].isin(hashes.index[hashes.notna()])
        return replace(self, memory=self.memory.assign(phash=self.memory["phash"].mask(is_there)))

    def earlier_splits(
        self, scans: pd.DataFrame, hashes: pd.Series, links: Sequence[tuple[str, str]]
    ) -> dict[int, str]:
        """Return the split that a group was in before, by group. If there were several, test wins, then validation.

        Args:
            scans: Scans in use, with group, patient and picture.
            hashes: Perceptual hash of every scan, as for `without_hashes_of`.
            links: Pairs of perceptual hashes that are near-duplicates.
        """
        linked = pa.array(itertools.chain.from_iterable(links), pa.large_string()).unique()
        of_linked = hashes[pc.is_in(pa.array(hashes), linked).to_numpy(zero_copy_only=False)]
        is_linked = pc.is_in(pa.array(self.memory["phash"]), linked).to_numpy(zero_copy_only=False)
        earlier = self.memory[is_linked | self.memory["picture"].isin(of_linked.index)]
        ranks_of_linked = earlier["split"].map(_RANK).groupby(_filled(earlier, of_linked)).min()
        by_hash = dict(zip(ranks_of_linked.index.tolist(), ranks_of_linked.tolist(), strict=True))
        # The split also carries over from a copy of a scan that is no longer there.
        for a, b in links:
            for known, other in ((a, b), (b, a)):
                if known in by_hash:
                    by_hash[other] = min(by_hash[known], by_hash.get(other, by_hash[known]))
        by_scan = scans["picture"].map(self._by_picture()).astype(float)
        is_linked = scans.index.isin(of_linked.index)
        by_scan[is_linked] = of_linked[scans.index[is_linked]].map(by_hash).astype(float)
        by_patient = scans["patient"].map(self._by_patient())
        ranks = pd.DataFrame({"group": scans["group"], "patient": by_patient, "hash": by_scan})
        decided = ranks.groupby("group")[["patient", "hash"]].min().min(axis=1).dropna()
        order = list(_RANK)
        by_group = cast("Iterable[tuple[int, float]]", decided.items())  # pandas-stubs: of any keys
        return {int(group): order[int(rank)] for group, rank in by_group}

    def moved_into_test(self, scans: pd.DataFrame) -> list[int]:
        """Return the patients who are in test now, and who were in another split before.

        Args:
            scans: Scans in use, with patient, picture and split.
        """
        by_patient, by_picture = scans["patient"].map(self._by_patient()), scans["picture"].map(self._by_picture())
        ranks = pd.DataFrame({"patient": by_patient, "hash": by_picture}).astype(float)
        moved = (scans["split"] == "test") & (ranks.max(axis=1) > _RANK["test"])
        return sorted(set(scans.loc[moved, "patient"]))

    def remember(self, scans: pd.DataFrame, hashes: pd.Series) -> pd.DataFrame:
        """Return the memory with these scans added. A patient's older hashes move to the patient's present split.

        Args:
            scans: Scans in use, with patient, split and picture.
            hashes: Perceptual hash of every scan, as for `without_hashes_of`.
        """
        now = scans[["patient", "split", "picture"]].assign(cohort=self.name).astype({"cohort": "string"})
        ranks = now["split"].map(_RANK).groupby(now["patient"]).min()
        present = ranks.map({rank: split for split, rank in _RANK.items()})
        is_first = ~pd.concat([rows[_SAME] for rows in (now, self.memory)]).duplicated().to_numpy()
        now, old = now[is_first[: len(now)]], self.memory[is_first[len(now) :]]
        moved = old["patient"].where(old["cohort"] == self.name).map(present)
        old = old.assign(split=moved.fillna(old["split"]).astype("string"), phash=_filled(old, hashes))
        both = pd.concat([now.assign(phash=hashes.loc[now.index]), old], ignore_index=True)
        return both[list(store.REMEMBERED)].astype(store.REMEMBERED)

    def _by_patient(self) -> pd.Series:
        """Return the rank of the remembered split by patient of the cohort."""
        own = self.memory[self.memory["cohort"] == self.name]
        return own["split"].map(_RANK).groupby(own["patient"]).min()

    def _by_picture(self) -> pd.Series:
        """Return the rank of the remembered split by picture, of any cohort."""
        return self.memory["split"].map(_RANK).groupby(self.memory["picture"]).min()


def _filled(memory: pd.DataFrame, hashes: pd.Series) -> pd.Series:
    """Return the hashes of remembered scans, also those that `Cohort.without_hashes_of` has left out."""
    missing = memory["phash"].isna()
    result = memory["phash"].copy()
    result[missing] = hashes.reindex(memory.loc[missing, "picture"]).array
    return result


def find_cohort(history: History, memory: pd.DataFrame, site: str, scans: pd.DataFrame) -> Cohort:
    """Return the cohort of the scans of a run.

    Without a name from the user, it is the cohort that the source had before, or else the one that shares
    `_SAME_COHORT` of the scans, or else a new one without a name. A name replaces such a missing name in the memory.

    Args:
        history: What the store knows.
        memory: The scans that it remembers, with the numbers of their pictures.
        site: Name that the user gave; empty for none.
        scans: Scans in use, with patient and picture.
    """
    now = scans[["patient", "picture"]].drop_duplicates()
    sizes = memory["cohort"].value_counts()
    same = memory[["cohort", "patient", "picture"]].merge(now, on=["patient", "picture"])
    shared = same["cohort"].value_counts()
    similar = [str(name) for name, count in shared.items() if count >= _SAME_COHORT * min(len(now), sizes[str(name)])]
    before = history.last.facts.cohort if history.last is not None else ""
    if before not in sizes and similar:  # a new place, or a cohort that was named while it was at another place
        before = similar[0]
    name = site or before or store.unnamed(history.source)
    if site and before.startswith(store.UNNAMED):  # the cohort gets its name now
        memory = memory.assign(cohort=memory["cohort"].replace(before, site)).drop_duplicates(_SAME, ignore_index=True)
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


def _copies_exist(files: Sequence[ListedFile], version: Version, there: Callable[[str], bool]) -> bool:
    """Return whether all copies that the data version refers to still exist.

    Args:
        files: The files of this run.
        version: The data version.
        there: Whether the copy at a local_path exists.
    """
    if not any(file.copied for file in files):
        return True
    return all(map(there, version.table(store.EXAMINED, ["local_path"])["local_path"].dropna()))
