"""outcomes.csv: what is joined, and what is set aside for which reason."""

import datetime
import hashlib
import os

import pytest

from tests.watch.outcomes.cases import SECRET, SITE, options
from thyroid.data import pseudonyms
from thyroid.errors import InputError
from thyroid.imaging import images
from thyroid.watch.outcomes import table

NIGHT = datetime.date(2026, 6, 30)


def read(folder, *lines, scans="", **changes):
    given = options(folder, *lines, **changes)
    return table.read(given.outcomes, str(scans), SITE, SECRET, NIGHT)


def test_rows_are_hashed_as_the_log_hashes_them(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "scan.jpg").write_bytes(b"pixels")
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "other.jpg").write_bytes(b"others")
    lines = ("sub\\scan.jpg,,Malignant,2026-01-31", ",7,b,2026-02-01", "other.jpg,,M,2026-02-02", "", ",,,")
    found = read(tmp_path, *lines, scans=tmp_path / "scans")
    assert found.aside == {}
    assert found.count == 3
    hashes = [pseudonyms.of_file(SECRET, hashlib.sha256(data).hexdigest()) for data in (b"pixels", b"others")]
    assert found.rows["hash"].tolist() == [hashes[0], pseudonyms.of_text(SECRET, SITE, "007"), hashes[1]]
    assert found.rows["key"].tolist() == ["image", "patient", "image"]
    assert found.rows["malignant"].tolist() == [True, False, True]
    assert found.rows["date"].tolist() == [datetime.date(2026, *d) for d in ((1, 31), (2, 1), (2, 2))]
    assert found.rows.index.tolist() == [2, 3, 4]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (",,M,2026-01-01", "no_key"),
        ("a.jpg,1,M,2026-01-01", "no_key"),
        (",1,III,2026-01-01", "unknown_pathology"),
        (",1,,2026-01-01", "unknown_pathology"),
        (",1,M,31.01.2026", "unreadable_date"),
        (",1,M,2026-02-30", "unreadable_date"),
        (",1,M", "unreadable_date"),
        (",1,M,2026-07-01", "in_future"),
        (f",{'9' * 5000},M,2026-01-01", "never_seen"),
        ("a.jpg,,M,2026-01-01", "file_missing"),
        ("pipe.jpg,,M,2026-01-01", "file_missing"),
        ("folder,,M,2026-01-01", "file_missing"),
        ("large.jpg,,M,2026-01-01", "file_missing"),
        ("../outside.jpg,,M,2026-01-01", "file_missing"),
        ("/etc/hostname,,M,2026-01-01", "file_missing"),
    ],
)
def test_a_bad_row_is_set_aside_with_its_reason_and_the_others_are_used(tmp_path, monkeypatch, line, reason):
    monkeypatch.setattr(images, "MAX_BYTES", 10)
    inside = tmp_path / "inside"
    (inside / "folder").mkdir(parents=True)
    os.mkfifo(inside / "pipe.jpg")
    (inside / "large.jpg").write_bytes(bytes(11))
    (tmp_path / "outside.jpg").write_bytes(b"there")
    found = read(inside, ",2,B,2026-01-01", line)
    assert found.aside == {reason: [3]}
    assert reason in table.REASONS
    assert found.rows.index.tolist() == [2]
    assert found.count == 2


def test_what_contradicts_is_set_aside_and_what_is_said_twice_counts_once(tmp_path):
    lines = [",1,M,2026-01-03", ",1,M,2026-01-01", ",2,M,2026-01-01", ",02,B,2026-01-01", ",2,M,2026-01-05"]
    found = read(tmp_path, *lines)
    assert found.aside == {"contradiction": [4, 5, 6], "repeated": [2]}
    assert found.rows["date"].tolist() == [datetime.date(2026, 1, 1)]


def test_columns_may_come_in_any_order_with_others_between(tmp_path):
    found = read(tmp_path, "2026-01-01,x,benign,4", header="Date,remark,Pathology,Patient")
    assert found.rows["hash"].tolist() == [pseudonyms.of_text(SECRET, SITE, "4")]


def test_a_table_without_rows_is_no_error(tmp_path):
    found = read(tmp_path)
    assert found.count == 0
    assert found.rows.empty


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "needs the columns"),
        (b"patient;pathology;date\n1;M;2026-01-01\n", "separated by commas"),
        (b"pathology,date\nM,2026-01-01\n", "file or patient"),
        (b"patient,patient,pathology,date\n", "column patient occurs twice"),
        (b"patient,pathology,date\n\xff\xfe,M,2026-01-01\n", "not a CSV file in UTF-8"),
        (b'patient,pathology,date\n"1,M,2026-01-01\n', "not a CSV file in UTF-8"),
        (b"patient,pathology,date\n" + b"1,M,2026-01-01\n" * 4, "more than 3 rows"),
        (b"patient,pathology,date\n" + bytes(200), "larger than 100 bytes"),
    ],
)
def test_what_is_no_such_table_is_refused_in_one_line(tmp_path, monkeypatch, content, message):
    monkeypatch.setattr(table, "MAX_ROWS", 3)
    monkeypatch.setattr(table, "MAX_BYTES", 100)
    path = tmp_path / "outcomes.csv"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        table.read(str(path), "", SITE, SECRET, NIGHT)
    assert str(caught.value).startswith(str(path))


def test_a_pipe_is_no_table_and_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "outcomes.csv")
    with pytest.raises(InputError, match=r"outcomes\.csv: no such file"):
        table.read(str(tmp_path / "outcomes.csv"), "", SITE, SECRET, NIGHT)


def test_a_missing_table_is_named(tmp_path):
    with pytest.raises(InputError, match=r"outcomes\.csv: no such file"):
        table.read(str(tmp_path / "outcomes.csv"), "", SITE, SECRET, NIGHT)


def test_a_bucket_gives_what_a_folder_gives(gcs, monkeypatch):
    monkeypatch.setattr(images, "MAX_BYTES", 10)
    lines = "file,patient,pathology,date\na.jpg,,M,2026-01-01\nb.jpg,,B,2026-01-02\nc.jpg,,B,2026-01-03\n"
    files = {"night/outcomes.csv": lines.encode(), "night/a.jpg": b"pixels", "scans/b.jpg": b"others"}
    gcs.put(files | {"night/c.jpg": bytes(11)})
    found = table.read(gcs.address("night/outcomes.csv"), gcs.address("scans"), SITE, SECRET, NIGHT)
    hashes = [pseudonyms.of_file(SECRET, hashlib.sha256(data).hexdigest()) for data in (b"pixels", b"others")]
    assert found.rows["hash"].tolist() == hashes
    assert found.aside == {"file_missing": [4]}
