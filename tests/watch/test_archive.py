"""The archive of the decision log: a Parquet file a day, to which several processes add without losing anything."""

import io
from concurrent.futures import ThreadPoolExecutor

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.decisions import decision, write
from thyroid import storage
from thyroid.errors import InputError
from thyroid.records.watch import Decision
from thyroid.storage import ChangedError
from thyroid.watch import archive, log

DAY = "decisions/2025-07-14.parquet"


def table(tmp_path, rows) -> pd.DataFrame:
    folder = tmp_path / f"log-{len(list(tmp_path.iterdir()))}"
    write(folder, rows)
    return log.read(folder).decisions


def held(place: str) -> list[str]:
    return sorted(one for _, found in archive.days(place) for one in found["id"].to_pylist())


def test_the_columns_are_the_fields_of_a_decision():
    assert archive.SCHEMA.names == list(Decision.model_fields)


def test_a_file_a_day(tmp_path, place):
    times = ("2025-07-14T00:00:00Z", "2025-07-14T23:59:59.999Z", "2025-07-15T00:00:00Z")
    rows = [decision(time=time, features=[1.5, 2.5]) for time in times]
    assert archive.ship(table(tmp_path, rows), place) == 3
    assert archive.names(place) == ["2025-07-14.parquet", "2025-07-15.parquet"]
    assert [len(found) for _, found in archive.days(place)] == [2, 1]
    one = pq.read_table(io.BytesIO(storage.at(place).read(DAY)[0]))
    assert one.schema.equals(archive.SCHEMA)
    assert one["features"].to_pylist() == [[1.5, 2.5]] * 2


def test_nothing_is_added_twice(tmp_path, place):
    rows = [decision() for _ in range(3)]
    assert archive.ship(table(tmp_path, rows[:2]), place) == 2
    before = storage.at(place).read(DAY)
    assert archive.ship(table(tmp_path, rows[:2]), place) == 0
    assert storage.at(place).read(DAY) == before, "the same decisions are not written again"
    assert archive.ship(table(tmp_path, rows), place) == 1
    assert held(place) == sorted(row["id"] for row in rows)
    assert archive.ship(table(tmp_path, []), place) == 0


def test_two_at_once_lose_nothing(tmp_path, place):
    rows = [decision() for _ in range(12)]
    parts = [table(tmp_path, rows[start : start + 4]) for start in (0, 3, 6, 8)]
    with ThreadPoolExecutor(4) as pool:
        added = list(pool.map(lambda part: archive.ship(part, place), parts))
    assert held(place) == sorted(row["id"] for row in rows)
    assert sum(added) == 12


def test_another_writer_comes_between(tmp_path, place, monkeypatch):
    first, second = decision(), decision()
    own, other = table(tmp_path, [first]), table(tmp_path, [second])
    kind = type(storage.at(place))
    real, calls = kind.write, []

    def late(self, name, data, generation=None):
        calls.append(name)
        if len(calls) == 1:
            assert archive.ship(other, place) == 1
        real(self, name, data, generation)

    monkeypatch.setattr(kind, "write", late)
    assert archive.ship(own, place) == 1
    assert held(place) == sorted([first["id"], second["id"]])
    assert len(calls) == 3


def test_an_archive_that_is_not_there_yet(place):
    assert archive.names(place) == []
    assert list(archive.days(place)) == []


@pytest.mark.parametrize("content", [b"", b"PAR1", b"\0" * 100])
def test_a_damaged_day_is_named_and_stays(tmp_path, place, content):
    storage.at(place).write(DAY, content)
    rows = table(tmp_path, [decision()])
    for use in (lambda: archive.ship(rows, place), lambda: list(archive.days(place)), lambda: log.read(archive=place)):
        with pytest.raises(InputError, match=rf"{DAY}: damaged"):
            use()
    assert storage.at(place).read(DAY)[0] == content


def test_a_table_of_something_else(tmp_path):
    (tmp_path / "decisions").mkdir()
    pq.write_table(pa.table({"probability": ["high"]}), tmp_path / DAY)
    with pytest.raises(InputError, match=r"damaged"):
        list(archive.days(tmp_path))


def test_columns_of_a_newer_release_stay(tmp_path):
    archive.ship(table(tmp_path, [decision()]), tmp_path / "archive")
    path = tmp_path / "archive" / DAY
    pq.write_table(pq.read_table(path).append_column("mood", pa.array(["calm"])), path)
    archive.ship(table(tmp_path, [decision()]), tmp_path / "archive")
    assert pq.read_table(path)["mood"].to_pylist() == ["calm", None]
    assert [found.schema.names for _, found in archive.days(tmp_path / "archive")] == [archive.SCHEMA.names]


def test_columns_that_an_older_release_did_not_have(tmp_path):
    archive.ship(table(tmp_path, [decision()]), tmp_path / "archive")
    path = tmp_path / "archive" / DAY
    pq.write_table(pq.read_table(path).drop_columns("novelty"), path)
    assert archive.ship(table(tmp_path, [decision()]), tmp_path / "archive") == 1
    assert pq.read_table(path)["novelty"].to_pylist() == [None, 40.5]


def test_other_files_are_left_alone(tmp_path):
    (tmp_path / "decisions").mkdir()
    for name in ("notes.txt", "last.parquet", ".2025-07-14.parquet.1a.tmp"):
        (tmp_path / "decisions" / name).write_text("mine")
    assert archive.names(tmp_path) == []


def test_a_writer_that_always_comes_first_is_waited_for(tmp_path, monkeypatch):
    real, left = storage.Folder.write, [3]

    def write_late(self, name, data, generation=None):
        if left[0]:
            left[0] -= 1
            raise ChangedError(name)
        real(self, name, data, generation)

    monkeypatch.setattr(storage.Folder, "write", write_late)
    monkeypatch.setattr(archive, "_PAUSE", 0.001)
    assert archive.ship(table(tmp_path, [decision()]), tmp_path / "archive") == 1
