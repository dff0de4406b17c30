import hashlib
import io
from pathlib import Path

import pandas as pd
import pytest

from tests.support.records import data_record
from thyroid.data import tables
from thyroid.data.version import DataVersion
from thyroid.errors import InputError


def scans(*rows):
    return tables.frame(
        [{"path": p, "sha256": s, "class": label, "label": label} for p, s, label in rows], tables.SCANS
    )


def regions(*rows):
    return tables.frame([{"path": p, "x": x, "y": 1, "width": 2, "height": 3} for p, x in rows], tables.REGIONS)


ONE, TWO = ("/a/1.jpg", "aa", "B"), ("/a/2.jpg", "bb", "M")


def test_digest_ignores_paths_and_order():
    moved = [("/z/9.jpg", "bb", "M"), ("/z/8.jpg", "aa", "B")]
    assert tables.digest(scans(ONE, TWO), regions(("/a/1.jpg", 5), ("/a/1.jpg", 7))) == tables.digest(
        scans(*moved), regions(("/z/8.jpg", 7), ("/z/8.jpg", 5))
    )


@pytest.mark.parametrize(
    "other",
    [
        (scans(ONE), regions()),
        (scans(ONE, ("/a/2.jpg", "bb", "B")), regions()),
        (scans(ONE, ("/a/2.jpg", "cc", "M")), regions()),
        (scans(ONE, TWO), regions(("/a/1.jpg", 5))),
    ],
)
def test_digest_sees_every_change(other):
    assert tables.digest(scans(ONE, TWO), regions()) != tables.digest(*other)


def test_digest_leaves_out_quarantined_scans():
    table = scans(ONE, TWO)
    table.loc[1, "quarantine_reason"] = "damaged"
    assert tables.digest(table, regions()) == tables.digest(scans(ONE), regions())


def mixed() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Scans of three classes, some of them quarantined or with equal bytes, and none to three regions each."""
    scans, regions = [], []
    for n in range(60):
        path = f"/scans/갑상선 {n:02d}.jpg"
        row = {"path": path, "local_path": path, "domain": "normal", "class": ["B", "M", 'grade "4a" é'][n % 3]}
        row |= {"label": "BMM"[n % 3], "patient": n // 2, "image": n, "version": "1.0", "width": 600, "height": 500 + n}
        row |= {"sha256": hashlib.sha256(str(n % 57).encode()).hexdigest(), "phash": f"{n:0256x}", "group": n // 2}
        row["split"] = tables.SPLITS[n % 3]
        if n % 11 == 5:
            row = {"path": path, "domain": "normal", "quarantine_reason": "damaged JPEG"}
        scans.append(row)
        for index in range(n % 4):
            region = {"path": path, "index": index, "x": 100 - 9 * index, "y": n, "width": 40 + n, "height": 30}
            regions.append(region | {"source": "given"})
    return tables.frame(scans, tables.SCANS), tables.frame(regions, tables.REGIONS)


def test_digests_of_older_releases_hold():
    """Otherwise every registered model would count as made of other data."""
    scans, regions = mixed()
    assert tables.digest(scans, regions) == "e53035002f3fbc3e3e151ee003b88a8394fb55e5fd5ded7d8387dc2fcd80f417"
    written = tables.contents(scans, regions).to_csv()
    assert hashlib.sha256(written.encode()).hexdigest()[:16] == "51a9ee4c59670642"
    facts = data_record(digest=tables.digest(scans, regions))
    assert DataVersion(Path(), scans, regions, facts).fingerprint[:16] == "2c9034dc57aa9a16"


@pytest.mark.parametrize("rows", [1, 7, 59])
def test_digests_do_not_depend_on_how_many_rows_are_in_memory(monkeypatch, rows):
    scans, regions = mixed()
    facts = data_record(digest=tables.digest(scans, regions))
    whole = DataVersion(Path(), scans, regions, facts).fingerprint
    monkeypatch.setattr(tables, "_DIGEST_ROWS", rows)
    monkeypatch.setattr("thyroid.data.version._HASHED_ROWS", rows)
    assert tables.digest(scans, regions) == facts.digest
    assert DataVersion(Path(), scans, regions, facts).fingerprint == whole


def test_whole_numbers_stay_exact_beside_missing_ones():
    """Pseudonyms of patients have up to 18 digits, and quarantined files have no patient."""
    table = tables.frame([{"path": "a", "patient": 10**18 - 1}, {"path": "b"}], tables.SCANS)
    assert table["patient"].tolist() == [10**18 - 1, pd.NA]


def test_no_cell_of_any_column_is_a_formula():
    rows = pd.DataFrame({"file": ["=1+1", "a.jpg", "\nb"], "reason": ["-x", "@y", None], "line": [-1, 2, 3]})
    written = io.StringIO()
    tables.write_quarantine(written, rows)
    assert written.getvalue() == "file,reason,line\n'=1+1,'-x,'-1\na.jpg,'@y,2\n\"'\nb\",,3\n"


def test_round_trip(tmp_path):
    tables.write(tmp_path, scans(ONE, TWO), regions(("/a/1.jpg", 5)), data_record())
    table, boxes, facts = tables.read(tmp_path)
    assert table.dtypes.astype(str).to_dict() == tables.SCANS
    assert boxes.dtypes.astype(str).to_dict() == tables.REGIONS
    assert (facts.digest, sorted(facts.files)) == ("x", ["regions.parquet", "scans.parquet"])


@pytest.mark.parametrize("count", [0, 3])
def test_a_table_is_read_whole_or_by_columns(tmp_path, count):
    table = regions(*[(f"/a/{number}.jpg", number) for number in range(count)])
    facts = tables.write(tmp_path, scans(ONE), table, data_record())
    pd.testing.assert_frame_equal(tables.read_table(tmp_path, tables.TABLES[1], facts.files), table)
    some = tables.read_table(tmp_path, tables.TABLES[1], facts.files, ("path", "x"))
    pd.testing.assert_frame_equal(some, table[["path", "x"]])


@pytest.mark.parametrize("name", ["scans.parquet", "regions.parquet", "data.json"])
def test_no_flipped_bit_of_a_data_version_is_silent(tmp_path, name):
    tables.write(tmp_path, scans(ONE, TWO), regions(("/a/1.jpg", 5)), data_record(notes=["갑상선"]))
    whole = (tmp_path / name).read_bytes()
    for place in range(0, 8 * len(whole), 1 + len(whole) // 2):
        flipped = bytearray(whole)
        flipped[place // 8] ^= 1 << place % 8
        (tmp_path / name).write_bytes(flipped)
        with pytest.raises(InputError, match=rf"{tmp_path}.*{name}"):
            tables.read(tmp_path)
    (tmp_path / name).write_bytes(whole)
    tables.read(tmp_path)


@pytest.mark.parametrize(
    ("changed", "field"),
    [({"scans": "many"}, "field scans"), ({"patients": None}, "field patients")],
)
def test_a_data_json_that_is_no_record_is_damaged(tmp_path, changed, field):
    tables.write_sealed(tmp_path / tables.FACTS, data_record().to_dict() | changed)
    with pytest.raises(InputError, match=rf"data\.json: {field}:"):
        tables.read_facts(tmp_path)


def test_a_field_of_a_newer_release_is_ignored(tmp_path):
    tables.write_sealed(tmp_path / tables.FACTS, data_record().to_dict() | {"x": 1})
    assert tables.read_facts(tmp_path) == data_record()


def test_half_a_data_version_is_none(tmp_path):
    with pytest.raises(InputError, match=r"data\.json.*thyroid\.ingest"):
        tables.read(tmp_path)
