import pandas as pd

from thyroid.data import store
from thyroid.ingest.history import Cohort


def test_hashes_that_the_scans_have_need_not_be_remembered_twice():
    """Of five scans, the third was erased, so its hash is only in the memory."""
    hashes = pd.Series(["aa", "bb", None, "dd", "ee"], dtype="string")
    rows = [("here", 2, "bb", "train", 1), ("there", 2, "bb", "test", 1), ("there", 3, "cc", "train", 2)]
    rows += [("here", 7, "ff", "validation", 8), ("here", 4, "dd", "train", 3)]
    memory = pd.DataFrame(rows, columns=[*store.REMEMBERED, "picture"]).astype(store.REMEMBERED)
    scans = pd.DataFrame({"patient": [1, 2, 4, 5], "picture": [0, 1, 3, 4], "group": [0, 1, 2, 3]}, [0, 1, 3, 4])
    scans["split"] = ["test", "test", "train", "validation"]
    whole = Cohort("here", memory)
    short = whole.without_hashes_of(hashes)
    assert short.memory["phash"].fillna("").tolist() == ["", "", "cc", "ff", ""]
    pd.testing.assert_frame_equal(short.remember(scans, hashes), whole.remember(scans, hashes))
    links = [("aa", "bb"), ("ee", "ff")]
    found = short.earlier_splits(scans, hashes, links)
    assert found == whole.earlier_splits(scans, hashes, links) == {0: "test", 1: "test", 2: "train", 3: "validation"}
