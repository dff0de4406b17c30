"""Splits into train, validation and test by group: a patient's images, and copies of them, are always on one side."""

import warnings
from collections.abc import Mapping

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from thyroid.data.tables import SPLITS
from thyroid.errors import InputError

FRACTIONS: Mapping[str, float] = {"train": 0.7, "validation": 0.1, "test": 0.2}


def deal(scans: pd.DataFrame, fractions: Mapping[str, float] = FRACTIONS, seed: int = 0) -> pd.Series:
    """Give every group without a split one, so that the fractions of images hold within each class.

    Groups that already have a split (persisted or given) keep it and count towards the fractions. The others are dealt
    in a seeded order that depends only on their content, each to the split that lacks most images of its class. Groups
    too large for the smallest split come first. The last groups go to splits that would otherwise have none of the
    class. Groups with several classes are dealt first and count for all of them.

    Args:
        scans: Rows with class, group, sha256 and split (null where it must be dealt).
        fractions: Fractions of the images, for the splits that may receive new groups.
        seed: Seed of the order.

    Returns:
        Split per row of `scans`.

    Raises:
        InputError: A class has too few patients to be in every split.
    """
    rows = scans.sort_values("sha256")
    groups = pd.crosstab(rows["group"], rows["class"]).reindex(rows["group"].unique())
    classes = list(groups.columns)
    mixed = (groups[classes] > 0).sum(axis=1) > 1
    groups["split"] = rows.groupby("group", sort=False)["split"].first()
    groups = groups.iloc[np.random.default_rng(seed).permutation(len(groups))]
    mixed = mixed.loc[groups.index]
    _deal_kind(groups, mixed, groups[classes].sum(axis=1) * mixed, fractions)
    for name in classes:
        lacking = _deal_kind(groups, ~mixed & (groups[name] > 0), groups[name], fractions)
        if lacking:
            raise InputError(
                f"class {name} has too few patients to be in every split: add scans of at least {lacking} more, or "
                "deal all splits again with --given-splits ignore"
            )
    return scans["split"].fillna(scans["group"].map(groups["split"]))


def _deal_kind(groups: pd.DataFrame, kind: pd.Series, sizes: pd.Series, fractions: Mapping[str, float]) -> int:
    """Deal the groups of one kind so that `sizes` hold the fractions.

    Returns:
        Number of splits that are left without any image counted by `sizes`; as many groups are missing.
    """
    have = {split: int(sizes[groups["split"] == split].sum()) for split in fractions}
    new = sizes[kind & groups["split"].isna()]
    want = {split: share * (sum(have.values()) + int(new.sum())) for split, share in fractions.items()}
    empty = [split for split in fractions if have[split] == 0]
    giant = new > min(want.values())
    ordered = pd.concat([new[giant], new[~giant]])
    dealt = []
    for left, size in zip(range(len(ordered), 0, -1), ordered.tolist(), strict=True):
        candidates = empty if empty and left <= len(empty) else list(fractions)
        split = max(candidates, key=lambda s: want[s] - have[s])
        if split in empty:
            empty.remove(split)
        dealt.append(split)
        have[split] += int(size)
    groups.loc[ordered.index, "split"] = dealt
    return len(empty)


def check(scans: pd.DataFrame) -> None:
    """Fail before any training if a split lacks a class.

    Args:
        scans: Rows with class and split.

    Raises:
        InputError: A split has no scan of a class; the message names both.
    """
    for split in SPLITS:
        for name in sorted(scans["class"].unique()):
            if not ((scans["split"] == split) & (scans["class"] == name)).any():
                raise InputError(
                    f"the {split} split has no scan of class {name}: add scans, or deal the splits again "
                    "with --given-splits ignore"
                )


def folds(scans: pd.DataFrame, count: int, seed: int = 0) -> pd.Series:
    """Deal the groups of `scans` into folds of about equal size and share of classes (StratifiedGroupKFold).

    Args:
        scans: Rows with class, label (the side), group and sha256.
        count: Number of folds, at least 2.
        seed: Seed of the deal.

    Returns:
        Fold (1 to `count`) by group.

    Raises:
        InputError: A class has fewer patients than there are folds, or a fold has no scan of a side.
    """
    rows = scans.sort_values("sha256")
    labels, groups = rows["label"].to_numpy(), rows["group"].to_numpy()
    patients = rows.groupby("class")["group"].nunique()
    if (fewest := int(patients.min())) < count:
        raise InputError(
            f"{count} folds need {count} patients of each class, and class {patients.idxmin()} has {fewest}: "
            "use fewer folds"
        )
    fold = fold_of_rows(rows["class"], groups, count, seed) + 1
    for number in range(1, count + 1):
        for label in sorted(set(labels)):
            if label not in labels[fold == number]:
                raise InputError(
                    f"fold {number} of {count} has no scan of class {label}: use fewer folds or another seed"
                )
    return pd.Series(dict(zip(groups.tolist(), fold.tolist(), strict=True)), name="fold")


def fold_of_rows(classes: ArrayLike, groups: ArrayLike, count: int, seed: int) -> NDArray[np.int64]:
    """Deal rows into folds of about equal size and share of classes, with all rows of a group in one fold.

    The deal is that of StratifiedGroupKFold.

    Args:
        classes: Class [n].
        groups: Group [n], a patient for instance.
        count: Number of folds, at least 2.
        seed: Seed of the deal.

    Returns:
        Fold [n], 0 to `count` - 1.

    Raises:
        ValueError: Every class has fewer rows than there are folds.
    """
    from sklearn.model_selection import StratifiedGroupKFold  # the data image has no scikit-learn

    labels, fold = np.asarray(classes), np.empty(len(np.asarray(groups)), np.int64)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)
        dealer = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
        for number, (_, held) in enumerate(dealer.split(labels, labels, np.asarray(groups))):
            fold[held] = number
    return fold
