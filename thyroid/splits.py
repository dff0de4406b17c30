"""Train, validation and test by group: a patient's images, and copies of them, are always on one side."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from thyroid.errors import InputError
from thyroid.names import CLASSES
from thyroid.tables import SPLITS

FRACTIONS: Mapping[str, float] = {"train": 0.7, "validation": 0.1, "test": 0.2}


def deal(scans: pd.DataFrame, fractions: Mapping[str, float] = FRACTIONS, seed: int = 0) -> pd.Series:
    """Give every group without a split one, so that the fractions of images hold within each class.

    Groups that have a split keep it (persisted or given), and count towards the fractions. The others are dealt in a
    seeded order that depends on their content alone, each to the split that lacks most images of its class; groups too
    large for the smallest split come first, and the last ones go to splits that would have none of the class. A group
    with both labels counts as malignant.

    Args:
        scans: rows with label, group, sha256 and split (null where it is to be dealt).
        fractions: of the images, for the splits that may receive new groups.

    Returns:
        Split per row of `scans`.

    Raises:
        InputError: a class has too few patients to be in every split.
    """
    by_group = scans.sort_values("sha256").groupby("group", sort=False)
    groups = pd.DataFrame(
        {
            "label": by_group["label"].max(),  # "M" > "B"
            "size": by_group.size(),
            "split": by_group["split"].first(),
        }
    )
    order = np.random.default_rng(seed).permutation(len(groups))
    groups = groups.iloc[order]
    for label in CLASSES:
        members = groups[groups["label"] == label]
        have = {split: int(members.loc[members["split"] == split, "size"].sum()) for split in fractions}
        new = members[members["split"].isna()]
        want = {split: share * (sum(have.values()) + int(new["size"].sum())) for split, share in fractions.items()}
        empty = [split for split in fractions if have[split] == 0]
        if len(new) < len(empty):
            raise InputError(
                f"class {label} has {len(new)} patients to deal among {', '.join(empty)}: add scans of at least "
                f"{len(empty) - len(new)} more patients of this class"
            )
        giant = new["size"] > min(want.values())
        for left, (group, size) in zip(
            range(len(new), 0, -1), pd.concat([new["size"][giant], new["size"][~giant]]).items(), strict=True
        ):
            candidates = empty if left == len(empty) else list(fractions)
            split = max(candidates, key=lambda s: want[s] - have[s])
            if split in empty:
                empty.remove(split)
            groups.loc[group, "split"] = split
            have[split] += int(size)
    return scans["split"].fillna(scans["group"].map(groups["split"]))


def check(scans: pd.DataFrame) -> None:
    """Fail before anything is trained when a split lacks a class.

    Raises:
        InputError: naming the split and the class.
    """
    for split in SPLITS:
        for label in CLASSES:
            if not ((scans["split"] == split) & (scans["label"] == label)).any():
                raise InputError(
                    f"the {split} split has no scan of class {label}: add scans, or deal the splits anew "
                    "with --given-splits ignore"
                )
