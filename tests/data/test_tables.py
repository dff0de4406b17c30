import pytest

from tests.support.records import data_record
from thyroid.data import tables
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


def test_round_trip(tmp_path):
    tables.write(tmp_path, scans(ONE, TWO), regions(("/a/1.jpg", 5)), data_record())
    table, boxes, facts = tables.read(tmp_path)
    assert table.dtypes.astype(str).to_dict() == tables.SCANS
    assert boxes.dtypes.astype(str).to_dict() == tables.REGIONS
    assert (facts.digest, sorted(facts.files)) == ("x", ["regions.parquet", "scans.parquet"])


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
