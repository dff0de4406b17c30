"""Group the scans of a patient and near-duplicates, quarantine copies, and give every group a split."""

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from thyroid.data import duplicates, splits, store, tables
from thyroid.data.store import Version
from thyroid.ingest import examine
from thyroid.ingest.history import Cohort
from thyroid.ingest.scan_table import ScanTable

DEALING = 2
"""Version of everything that makes a data version of these rows: groups, cohorts, splits. Raise it with any change."""
_MOST_PATIENTS = 5
"""Largest number of patients who may share a picture.

A picture that more patients have is a logo, a test image or an empty layout, and says nothing about who is who.
Copies of a scan under other numbers come in twos and threes.
"""


def find_links(scans: ScanTable, memory: pd.DataFrame, newest: Version | None) -> list[tuple[str, str]]:
    """Return pairs of near-duplicate hashes among the scans in use and those that the store remembers.

    Hashes that the store knows are not compared with each other again.

    Args:
        scans: The scans, with the numbers of their pictures.
        memory: The scans that the store remembers, with theirs.
        newest: The last data version of any source; None for none.
    """

    def owners() -> dict[str, Hashable]:
        return _owners(scans.in_use("phash"), memory)

    if newest is None or newest.facts.examined_by != examine.EXAMINATION:
        return duplicates.links(pd.concat([scans.in_use("phash")["phash"], memory["phash"]]), owners=owners)
    before = newest.table(store.LINKS)
    # Scans that were set aside are in no memory, so their links are found again.
    remembered = memory.loc[_is_in(memory["phash"], pd.concat([before["a"], before["b"]])), "phash"]
    before = before[_is_in(before["a"], remembered) & _is_in(before["b"], remembered)]
    new = scans.used.index[~scans.used["picture"].isin(memory["picture"])]
    found = duplicates.links(scans.table.loc[new, "phash"], memory["phash"], owners)
    pairs = (*zip(before["a"], before["b"], strict=True), *found)
    return list(dict.fromkeys((min(pair), max(pair)) for pair in pairs))


def _is_in(hashes: pd.Series, wanted: pd.Series) -> NDArray[np.bool_]:
    """Return which hashes are among the wanted ones, which take memory: few are sought among many, not the reverse."""
    found: NDArray[np.bool_] = pc.is_in(pa.array(hashes), pa.array(wanted)).to_numpy(zero_copy_only=False)
    return found


def _owners(used: pd.DataFrame, memory: pd.DataFrame) -> dict[str, Hashable]:
    """Return whose image a hash is, by hash: a patient's number, or the set of them if there are several.

    Args:
        used: Scans in use, with patient and phash.
        memory: Earlier scans, whose patients are others, since another hospital has the same numbers.
    """
    earlier = memory[~memory["phash"].isin(used["phash"])]
    rows = pd.concat([used[["patient", "phash"]].assign(cohort=""), earlier[["cohort", "patient", "phash"]]])
    rows["person"] = rows.groupby(["cohort", "patient"]).ngroup()
    rows = rows[["phash", "person"]].drop_duplicates()
    has_several = rows["phash"].duplicated(keep=False)
    alone = rows[~has_several]
    together = rows[has_several].groupby("phash")["person"].agg(frozenset)
    return dict(zip(alone["phash"], alone["person"], strict=True)) | together.to_dict()


def quarantine_shared_pictures(scans: ScanTable) -> None:
    """Quarantine pictures that more than `_MOST_PATIENTS` patients have, since they would merge all these into one."""
    linked, own = scans.linked_pictures(), scans.used[["picture", "patient"]].drop_duplicates()
    both_ways = np.concatenate([linked, linked[:, ::-1]])
    near = pd.DataFrame({"like": both_ways[:, 0], "picture": both_ways[:, 1]})
    of_near = near.merge(own, on="picture")[["like", "patient"]].rename(columns={"like": "picture"})
    patients = pd.concat([own, of_near]).drop_duplicates()
    count = np.bincount(patients["picture"])[scans.used["picture"]]
    shared = scans.used.index[count > _MOST_PATIENTS]
    # Their exact number is not known: of the pairs of many pictures that are alike only some are kept.
    reason = f"picture that more than {_MOST_PATIENTS} patients have: a logo or an empty layout, no scan of one of them"
    scans.quarantine(pd.Series(reason, shared, dtype="string"))


def group(scans: ScanTable) -> None:
    """Give every scan in use its group, which shares a split, and its copy number, which near-duplicates share.

    The columns are group and copy.
    """
    used = scans.used
    pairs = duplicates.index_pairs(used["picture"].to_numpy(), scans.linked_pictures())
    used["group"] = duplicates.groups(used["patient"].tolist(), pairs)
    used["copy"] = duplicates.groups(range(len(used)), pairs)
    scans.duplicate_groups = int((np.bincount(used["copy"]) > 1).sum())
    scans.notes += _describe_groups(used, pairs)


def deal(scans: ScanTable, cohort: Cohort, given_splits: str, seed: int) -> None:
    """Give every group a split, and quarantine copies.

    A given folder takes precedence over earlier data versions, and these take precedence over dealing.

    Args:
        scans: The scans, with their groups.
        cohort: The cohort of the scans, whose earlier splits are kept.
        given_splits: One of `GIVEN_SPLITS`.
        seed: Seed for dealing new groups.

    Raises:
        InputError: A class has too few patients to be in every split.
    """
    if given_splits == "ignore":
        scans.used["split"] = None
        cohort = cohort.without_memory()
    given = set(scans.used["split"].dropna())
    scans.notes += _merge_given_splits(scans, keep=given_splits == "keep")
    _settle_splits(scans.used, given, cohort.earlier_splits(scans.used, scans.table["phash"], scans.links))
    scans.quarantine(_copies(scans.in_use("path", "sha256")))
    scans.used["split"] = splits.deal(scans.in_use("sha256"), _open_fractions(given), seed)
    splits.check(scans.used)
    scans.notes += _describe_moved_into_test(cohort.moved_into_test(scans.used))
    _fill_in(scans)


def deal_to_test(scans: ScanTable) -> None:
    """Give every group the test split, and quarantine copies.

    Args:
        scans: The scans, with their groups.
    """
    scans.quarantine(_copies(scans.in_use("path", "sha256")))
    scans.used["split"] = "test"
    _fill_in(scans)


def _fill_in(scans: ScanTable) -> None:
    """Fill group and split into the table of all files."""
    for column in ("group", "split"):
        scans.table[column] = scans.used[column].reindex(scans.table.index).astype(tables.SCANS[column])


def _open_fractions(given: set[str]) -> dict[str, float]:
    """Return the fractions of the splits that may receive new groups; they sum to 1.

    Given folders are complete as they are, except that a given train folder also holds the validation part.
    """
    open_splits = {
        split: fraction
        for split, fraction in splits.FRACTIONS.items()
        if not given or (split not in given - {"train"} and split != "test")
    }
    return {split: fraction / sum(open_splits.values()) for split, fraction in open_splits.items()}


def _describe_groups(used: pd.DataFrame, pairs: list[tuple[int, int]]) -> list[str]:
    notes = []
    classes = used.groupby("patient")["class"].nunique()
    several = classes[classes > 1]
    if len(several):
        listed = ", ".join(f"{patient:03d}" for patient in several.index[:20])
        notes.append(f"{len(several)} patients have scans of several classes (kept, one group each): {listed}")
    patients = used["patient"].tolist()
    across = sorted({tuple(sorted((patients[i], patients[j]))) for i, j in pairs if patients[i] != patients[j]})
    if across:
        listed = ", ".join(f"{a:03d} = {b:03d}" for a, b in across[:20])
        notes.append(f"{len(across)} pairs of patient numbers share near-duplicate scans (grouped together): {listed}")
    return notes


def _describe_moved_into_test(patients: list[int]) -> list[str]:
    """Return a note on patients who are in test now and whom models may have been trained on."""
    if not patients:
        return []
    listed = ", ".join(f"{patient:03d}" for patient in patients[:20])
    return [
        f"{len(patients)} patients moved into test: {listed}. They were in train or validation, and now share a "
        "picture or a number with patients in test, or are in a given test folder. Do not test a model on patients "
        "that it was trained on"
    ]


def _merge_given_splits(scans: ScanTable, *, keep: bool) -> list[str]:
    """Move groups whose scans are in several given folders to train, and return notes on them.

    Args:
        scans: The scans, with their groups; splits of those in use are changed.
        keep: Whether to leave the scans where they are. This is a leak.
    """
    notes: list[str] = []
    used = scans.used
    count = used.groupby("group")["split"].nunique()
    for group_number in count.index[count > 1]:
        members = used["group"] == group_number
        group_scans = used[members]
        folders = " and ".join(sorted(set(group_scans["split"].dropna())))
        patients = ", ".join(f"{patient:03d}" for patient in sorted(set(group_scans["patient"]))[:10])
        if keep:
            notes.append(f"LEAK kept: patient {patients} is in the given {folders} folders")
            continue
        used.loc[members, "split"] = "train"
        files = ", ".join(Path(path).name for path in scans.table.loc[group_scans.index[:4], "path"])
        notes.append(f"patient {patients} was in the given {folders} folders ({files}); moved to the training side")
    return notes


def _settle_splits(used: pd.DataFrame, given: set[str], earlier: Mapping[int, str]) -> None:
    """Fill the split of every group whose split is already decided. The others are dealt later.

    Args:
        used: Scans in use, with group and split; the split is changed.
        given: The splits that folders give.
        earlier: The split of groups in earlier data versions.
    """
    by_group = used.groupby("group")["split"]
    count = by_group.nunique()
    found = cast("dict[int, str | None]", by_group.first()[count <= 1].to_dict())  # pandas-stubs: of any keys
    decided: dict[int, str | None] = {}
    for group_number, split in found.items():
        before = earlier.get(int(group_number))
        if pd.isna(split):
            decided[group_number] = before if before != "test" or "test" not in given else "train"
        elif split == "train" and "validation" not in given:
            decided[group_number] = before if before != "test" else "train"  # None: dealt between train and validation
        else:
            decided[group_number] = split
    settled = used["group"].isin(decided)
    used.loc[settled, "split"] = used.loc[settled, "group"].map(decided)


def _copies(used: pd.DataFrame) -> pd.Series:
    """Return why scans are copies that cannot be used, by their index.

    They are further copies of the same bytes, and all copies of a frame, perhaps re-encoded, that disagree about the
    class.

    Args:
        used: Scans in use, with domain, path, class, sha256 and their copy numbers.
    """
    reasons: dict[int, str] = {}
    for _, same in used[used.duplicated(["domain", "sha256"], keep=False)].groupby(["domain", "sha256"]):
        first = Path(same["path"].iloc[0]).name
        if same["class"].nunique() > 1:
            others = ", ".join(Path(path).name for path in same["path"])
            reasons |= dict.fromkeys(same.index, f"same bytes under different labels: {others}")
        else:
            reasons |= dict.fromkeys(same.index[1:], f"same bytes as {first}")
    disputed = used[used.groupby("copy")["class"].transform("nunique") > 1]
    for _, alike in disputed.groupby("copy"):
        others = ", ".join(Path(path).name for path in alike["path"][:4])
        for index in alike.index:
            reasons.setdefault(index, f"same picture under different labels: {others}")
    return pd.Series(reasons, dtype="string")
