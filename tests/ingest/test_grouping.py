import numpy as np
import pandas as pd
import pytest

from thyroid.data import duplicates, store, tables
from thyroid.data.classes import BINARY
from thyroid.ingest import grouping
from thyroid.ingest.examine import Examined
from thyroid.ingest.scan_table import ScanTable


def near(rng: np.random.Generator, centre: np.ndarray, bits: int) -> str:
    code = centre.copy()
    code[rng.choice(1024, bits, replace=False)] ^= 1
    return np.packbits(code).tobytes().hex()


@pytest.mark.parametrize("answers", [10, 10**6])
def test_of_alike_pictures_those_of_many_patients_are_set_aside(answers, monkeypatch):
    """All of a layout, but none of one patient's film or of a picture that five patients have."""
    monkeypatch.setattr(duplicates, "_ANSWERS", answers)
    rng = np.random.default_rng(0)
    layout, film, other = rng.integers(0, 2, (3, 1024), np.uint8)
    rows = [(patient, near(rng, layout, 10), "layout") for patient in range(12) for _ in range(10)]
    rows += [(20, near(rng, film, 10), "film") for _ in range(80)]
    rows += [(20 + patient, near(rng, other, 5), "five") for patient in range(5) for _ in range(10)]
    same = near(rng, other, 8)
    rows += [(20, same, "five"), (21, same, "five")]
    found = [
        {"path": f"/{number}", "label": "B", "patient": patient, "phash": phash}
        for number, (patient, phash, _) in enumerate(rows)
    ]
    memory = [("elsewhere", patient, near(rng, film, 10), "train") for patient in range(9)]
    memory = pd.DataFrame(memory, columns=list(store.REMEMBERED)).astype(store.REMEMBERED)
    for remembered in (memory, memory[:0]):
        table = tables.frame(found, {**tables.SCANS, "synthetic": "boolean"})
        scans = ScanTable([], Examined(table, 0), BINARY, has_labels=False)
        scans.links = grouping.find_links(scans, scans.number_pictures(remembered), None)
        grouping.quarantine_shared_pictures(scans)
        kinds = [rows[int(path[1:])][2] for path in scans.quarantined()["file"]]
        assert kinds == ["layout"] * 120
