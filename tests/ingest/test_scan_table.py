import pandas as pd

from thyroid.data import store, tables
from thyroid.data.classes import BINARY
from thyroid.ingest.examine import Examined
from thyroid.ingest.scan_table import ScanTable


def test_equal_pictures_have_the_number_of_the_first_one():
    hashes = ["aa", "ba", None, "aa", "cb", None]
    rows = [{"path": f"/{n}", "label": "B", "phash": phash} for n, phash in enumerate(hashes)]
    rows = [row | {"quarantine_reason": None if row["phash"] else "damaged"} for row in rows]
    examined = Examined(tables.frame(rows, {**tables.SCANS, "synthetic": "boolean"}), 0)
    scans = ScanTable([], examined, BINARY, has_labels=False)
    remembered = [("here", 1, phash, "train") for phash in ("cb", "db", "aa", "db")]
    memory = pd.DataFrame(remembered, columns=list(store.REMEMBERED)).astype(store.REMEMBERED)
    assert scans.number_pictures(memory)["picture"].tolist() == [4, 7, 0, 7]
    assert scans.used["picture"].to_dict() == {0: 0, 1: 1, 3: 0, 4: 4}
