"""Scans that will judge a model but that it already knows: by their bytes, their picture or their patient.

A scan that was exported again has other bytes and another name, and another scan of the same patient has other pixels.
In both cases a model that was trained on one scan looks better on the other than it is.
"""

from dataclasses import dataclass

import pandas as pd

from thyroid.data import duplicates, pseudonyms
from thyroid.storage import Location


@dataclass(frozen=True)
class Overlap:
    """Counts of the scans that will judge a model but that it already knows.

    Attributes:
        scans: Number of scans that are known in any of these ways.
        files: Number of scans that are known by their bytes.
        pictures: Number of scans that are known by their perceptual hash, which survives re-encoding; `files` are
            included.
        patients: Number of scans whose patient is known.
        problem: Why patients could not be compared although the version names them; None if they were.
        note: What could not be compared because an older version does not record it; None if everything was.
    """

    scans: int
    files: int
    pictures: int
    patients: int
    problem: str | None = None
    note: str | None = None

    def describe(self) -> str:
        """Return the counts as text: by file, by picture and by patient."""
        return f"{self.files} by file, {self.pictures} by picture, {self.patients} by patient"


@dataclass(frozen=True)
class Known:
    """Which scans a registered version knows, and in which ways.

    Attributes:
        ways: Columns file, picture and patient (bool) with the index of the scans. A scan that is known by its bytes is
            also known by its picture.
        problem: As in `Overlap`.
        note: As in `Overlap`.
    """

    ways: pd.DataFrame
    problem: str | None = None
    note: str | None = None

    @property
    def reasons(self) -> pd.Series:
        """The first way in which each scan is known: "file", "picture" or "patient"; null for a scan that is new."""
        return self.ways.idxmax(axis=1).where(self.ways.any(axis=1)).astype("string")


def known(root: Location, learnt: pd.DataFrame, judging: pd.DataFrame) -> Known:
    """Say of every scan that will judge a model whether a registered version was made of it, and how that shows.

    Args:
        root: Location of the registry, whose key names the version's patients.
        learnt: Rows of `changes.scans_of`.
        judging: One row per scan: sha256, phash, cohort and patient (its number).

    Raises:
        InputError: The key is damaged, or cannot be made.
    """
    files = judging["sha256"].isin(learnt["sha256"])
    hashes = learnt["phash"].dropna()
    near = duplicates.near(judging["phash"].dropna(), hashes)
    pictures = files | judging["phash"].isin(list(near))
    patients = pd.Series(False, judging.index)
    problem = note = None
    named = set(learnt["patient"].dropna())
    if named:
        secret = pseudonyms.key(root)
        current, used = pseudonyms.key_name(secret), {name.partition(":")[0] for name in named}
        if used == {current}:
            pairs = judging[["cohort", "patient"]].itertuples(index=False)
            is_named = [pseudonyms.of_patient(secret, cohort, int(patient)) in named for cohort, patient in pairs]
            patients = pd.Series(is_named, judging.index, dtype=bool)
        else:
            problem = (
                f"its patients were named with key {', '.join(sorted(used))}, but the current key is {current}, so it "
                "cannot be checked whether it was trained on these patients (restore the key)"
            )
    elif len(learnt):
        by = "bytes alone" if hashes.empty else "bytes and pictures alone"
        note = f"compared by {by}, since it was registered without pseudonyms of its patients"
    ways = pd.DataFrame({"file": files, "picture": pictures, "patient": patients}).astype(bool)
    return Known(ways, problem, note)


def find(root: Location, learnt: pd.DataFrame, judging: pd.DataFrame) -> Overlap:
    """Compare what a registered version was trained on with the scans that will judge it.

    Args:
        root: As for `known`.
        learnt: As for `known`.
        judging: As for `known`.

    Raises:
        InputError: As for `known`.
    """
    found = known(root, learnt, judging)
    files, pictures, patients = (int(count) for count in found.ways.sum())
    return Overlap(int(found.ways.any(axis=1).sum()), files, pictures, patients, found.problem, found.note)
