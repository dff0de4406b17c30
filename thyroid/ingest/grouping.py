"""Group the scans of a patient and near-duplicates, quarantine copies, and give every group a split."""

from collections.abc import Mapping
from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd

from thyroid.data import duplicates, splits, store, tables
from thyroid.ingest import examine
from thyroid.ingest.history import Cohort, History
from thyroid.ingest.scan_table import ScanTable

DEALING = 1
"""Version of everything that makes a data version of these rows: groups, cohorts, splits. Raise it with any change."""
_MOST_PATIENTS = 5
"""Largest number of patients who may share a picture.

A picture that more patients have is a logo, a test image or an empty layout, and says nothing about who is who.
Copies of a scan under other numbers come in twos and threes.
"""


def find_links(scans: ScanTable, history: History) -> list[tuple[str, str]]:
    """Return pairs of near-duplicate hashes among the scans in use and the store's memory.

    Hashes that the store knows are not compared with each other again.
    """
    hashes, memory = scans.used["phash"], history.memory["phash"]
    newest = history.newest
    if newest is None or newest.facts.examined_by != examine.EXAMINATION:
        return duplicates.links([*hashes, *memory])
    before = newest.table(store.LINKS)
    found = duplicates.links(hashes.tolist(), memory.tolist())
    # Scans that were set aside are in no memory, so their links are found again.
    pairs = (*zip(before["a"], before["b"], strict=True), *found)
    return list(dict.fromkeys((min(pair), max(pair)) for pair in pairs))


def quarantine_shared_pictures(scans: ScanTable) -> None:
    """Quarantine pictures that more than `_MOST_PATIENTS` patients have, since they would merge all these into one."""
    own: dict[str, set[int]] = {}
    for patient, phash in zip(scans.used["patient"].tolist(), scans.used["phash"].tolist(), strict=True):
        own.setdefault(phash, set()).add(patient)
    patients = {phash: set(sharing) for phash, sharing in own.items()}
    for a, b in scans.links:
        if a in own and b in own:
            patients[a] |= own[b]
            patients[b] |= own[a]
    count = scans.used["phash"].map({phash: len(sharing) for phash, sharing in patients.items()}).astype(int)
    shared = count[count > _MOST_PATIENTS]
    scans.quarantine(
        shared.map("picture that {} patients have: a logo or an empty layout, no scan of one of them".format)
    )


def group(scans: ScanTable) -> None:
    """Give every scan in use its group, which shares a split, and its copy number, which near-duplicates share.

    The columns are group and copy.
    """
    used = scans.used
    pairs = duplicates.near_duplicates(used["phash"].tolist(), scans.links)
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
    scans.notes += _merge_given_splits(scans.used, keep=given_splits == "keep")
    _settle_splits(scans.used, given, cohort.earlier_splits(scans.used, scans.links))
    scans.quarantine(_copies(scans.used))
    scans.used["split"] = splits.deal(scans.used, _open_fractions(given), seed)
    splits.check(scans.used)
    scans.notes += _describe_moved_into_test(cohort.moved_into_test(scans.used))
    _fill_in(scans)


def deal_to_test(scans: ScanTable) -> None:
    """Give every group the test split, and quarantine copies.

    Args:
        scans: The scans, with their groups.
    """
    scans.quarantine(_copies(scans.used))
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


def _merge_given_splits(used: pd.DataFrame, *, keep: bool) -> list[str]:
    """Move groups whose scans are in several given folders to train, and return notes on them.

    Args:
        used: Scans in use, with group and split; the split is changed.
        keep: Whether to leave the scans where they are. This is a leak.
    """
    notes: list[str] = []
    count = used.groupby("group")["split"].nunique()
    for group_number in count.index[count > 1]:
        members = used["group"] == group_number
        scans = used[members]
        folders = " and ".join(sorted(set(scans["split"].dropna())))
        patients = ", ".join(f"{patient:03d}" for patient in sorted(set(scans["patient"]))[:10])
        if keep:
            notes.append(f"LEAK kept: patient {patients} is in the given {folders} folders")
            continue
        used.loc[members, "split"] = "train"
        files = ", ".join(Path(path).name for path in scans["path"][:4])
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
        used: Scans in use, with their copy numbers.
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
