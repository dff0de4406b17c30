"""Which scans that are to judge a model it has learnt from already: by bytes, by picture and by patient.

A scan that was exported again has other bytes and another name, and another scan of the same patient has other pixels; either
way a model that learnt from one looks better on the other than it is.
"""

from dataclasses import dataclass

import pandas as pd

from thyroid.data import duplicates, pseudonyms
from thyroid.storage import Location


@dataclass(frozen=True)
class Overlap:
    """Of the scans that are to judge.

    Attributes:
        scans: how many are known in any of these ways.
        files: by their bytes.
        pictures: by their perceptual hash, which survives re-encoding; files are among them.
        patients: by their patient.
        problem: why patients cannot be compared, although the version names them; None where they were.
        note: what an older version does not tell, so that it could not be compared; None where all was.
    """

    scans: int
    files: int
    pictures: int
    patients: int
    problem: str | None = None
    note: str | None = None

    def told(self) -> str:
        return f"{self.files} by file, {self.pictures} by picture, {self.patients} by patient"


def find(root: Location, learnt: pd.DataFrame, judging: pd.DataFrame) -> Overlap:
    """Compare what a registered version has learnt from with the scans that are to judge.

    Args:
        root: of the registry, whose key names the version's patients.
        learnt: rows of `changes.scans_of`.
        judging: one row a scan: sha256, phash, cohort and patient (its number).

    Raises:
        InputError: the key is damaged, or cannot be made.
    """
    files = judging["sha256"].isin(learnt["sha256"])
    hashes = learnt["phash"].dropna()
    near = duplicates.near(judging["phash"].dropna().tolist(), hashes.tolist())
    pictures = files | judging["phash"].isin(list(near))
    patients = pd.Series(False, judging.index)
    problem = note = None
    named = set(learnt["patient"].dropna())
    if named:
        secret = pseudonyms.key(root)
        today, theirs = pseudonyms.key_name(secret), {name.partition(":")[0] for name in named}
        if theirs == {today}:
            pairs = judging[["cohort", "patient"]].itertuples(index=False)
            mine = [pseudonyms.of_patient(secret, cohort, int(patient)) in named for cohort, patient in pairs]
            patients = pd.Series(mine, judging.index, dtype=bool)
        else:
            problem = (
                f"its patients were named with key {', '.join(sorted(theirs))}, and the key is {today} now, so it cannot be told "
                "whether it knows these patients (put back the key)"
            )
    elif len(learnt):
        by = "bytes alone" if hashes.empty else "bytes and pictures alone"
        note = f"compared by {by}, since it was registered without the names of its patients"
    known = files | pictures | patients
    return Overlap(int(known.sum()), int(files.sum()), int(pictures.sum()), int(patients.sum()), problem, note)
