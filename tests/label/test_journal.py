"""The journal: many writers at once, stale bases, undo, and disks that are full."""

import errno
import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.support.labelling import at_once
from thyroid import storage
from thyroid.errors import InputError
from thyroid.label.journal import OUTSIDE, Journal, NothingToUndoError, StaleError, UnwritableError
from thyroid.label.readings import Effort, Entry, MarkedRegion, Reading, Role, Verdict

NOTHING, UNUSABLE = Reading(verdict=Verdict.NONE), Reading(verdict=Verdict.UNUSABLE)


def nodule(x: int) -> Reading:
    region = MarkedRegion(x=x, y=1, width=5, height=5, features={"shape": "taller"})
    return Reading(verdict=Verdict.NODULES, regions=(region,), side="M")


def add(journal: Journal, frame: str, reading: Reading | None, reader: str = "Ann", role: Role = Role.READER) -> Entry:
    """Add a reading on top of the reader's current one."""
    current = journal.current(frame, reader)
    base = 0 if current is None else current.number
    return journal.add(reader=reader, role=role, frame=frame, reading=reading, base=base)


def held(journal: Journal, frame: str) -> dict[str, Reading | None]:
    return {reader: entry.reading for reader, entry in journal.readings(frame).items()}


def test_entries_are_kept_as_they_were_made(place):
    journal = Journal(place)
    assert journal.entries == ()
    before = datetime.now(UTC)
    first = journal.add(
        reader="Ann",
        role=Role.READER,
        frame="sub/B_001-0001-1.0.jpg",
        reading=nodule(3),
        base=0,
        effort=Effort(seconds=2.5, pointer=3, keys=1),
    )
    second = journal.add(reader="Ann", role=Role.READER, frame=first.frame, reading=NOTHING, base=first.number)
    assert before <= first.at <= second.at <= datetime.now(UTC)
    assert (first.number, first.before, first.undoes) == (1, None, None)
    assert (second.number, second.before, second.effort) == (2, nodule(3), Effort())
    again = Journal(place)
    assert again.entries == journal.entries == (first, second)
    assert again.current(first.frame, "Ann") == second
    assert held(again, first.frame) == {"Ann": NOTHING}
    assert storage.at(place).read("journal/00000001.json")[0].startswith(b"{")


def test_other_servers_are_seen(place):
    one, other = Journal(place), Journal(place)
    entries = [add(one, "a", NOTHING), add(one, "b", UNUSABLE)]
    assert other.entries == ()
    assert other.refresh() == entries
    assert other.refresh() == []
    third = add(other, "a", nodule(1), "Bob")
    assert third.number == 3
    assert held(one, "a") == {"Ann": NOTHING}
    assert one.refresh() == [third]
    assert held(one, "a") == {"Ann": NOTHING, "Bob": nodule(1)}


def test_a_stale_base_is_refused(place):
    one, other = Journal(place), Journal(place)
    first = add(one, "a", NOTHING)
    for base in (0, 2):
        with pytest.raises(StaleError) as caught:
            other.add(reader="Ann", role=Role.READER, frame="a", reading=UNUSABLE, base=base)
        assert caught.value.current == first
    with pytest.raises(StaleError) as caught:
        other.add(reader="Ann", role=Role.READER, frame="b", reading=UNUSABLE, base=1)
    assert caught.value.current is None
    assert len(other.entries) == 1
    # another reader's entry is no conflict
    other.add(reader="Bob", role=Role.READER, frame="a", reading=UNUSABLE, base=0)
    one.add(reader="Ann", role=Role.READER, frame="a", reading=UNUSABLE, base=1)


def test_undo_twice_goes_back_two_steps(place):
    journal = Journal(place)
    add(journal, "a", nodule(1))
    add(journal, "b", NOTHING)
    add(journal, "b", UNUSABLE, "Bob")
    add(journal, "a", nodule(2))
    assert journal.last_of("Ann").number == 4
    entry = journal.undo("Ann")
    assert (entry.number, entry.frame, entry.undoes, entry.reading, entry.before) == (5, "a", 4, nodule(1), nodule(2))
    assert held(journal, "a") == {"Ann": nodule(1)}
    assert journal.readings("a")["Ann"].number == 1  # when it was said
    assert journal.current("a", "Ann") == entry
    entry = Journal(place).undo("Ann")
    journal.refresh()
    assert (entry.frame, entry.undoes, entry.reading) == ("b", 2, None)
    assert held(journal, "b") == {"Bob": UNUSABLE}
    assert journal.undo("Ann").undoes == 1
    assert held(journal, "a") == {}
    assert journal.last_of("Ann") is None
    with pytest.raises(NothingToUndoError):
        journal.undo("Ann")
    assert journal.last_of("Bob").number == 3
    assert add(journal, "a", UNUSABLE).number == 8
    assert journal.undo("Ann").undoes == 8
    assert len(journal.entries) == 9


def test_an_edit_outside_ends_what_was_said_before(tmp_path):
    journal = Journal(tmp_path)
    add(journal, "a", nodule(1))
    add(journal, "a", NOTHING, OUTSIDE, Role.OUTSIDE)
    assert held(journal, "a") == {OUTSIDE: NOTHING}
    add(journal, "a", UNUSABLE, "Bob")
    assert held(journal, "a") == {OUTSIDE: NOTHING, "Bob": UNUSABLE}
    add(journal, "a", None, OUTSIDE, Role.OUTSIDE)
    assert held(journal, "a") == {}
    add(journal, "a", nodule(2))
    assert held(journal, "a") == {"Ann": nodule(2)}
    journal.undo("Ann")  # what was said before the edit does not come back
    assert held(journal, "a") == {}


def write_many(place: str, reader: str, count: int) -> list[int]:
    """Add entries as a server does, some of them to frames that all servers share; return their numbers."""
    journal = Journal(place)
    frames = [f"{reader}-{n}" if n % 2 else "shared" for n in range(count)]
    return [_add(journal, frame, n, reader) for n, frame in enumerate(frames)]


def _add(journal: Journal, frame: str, n: int, reader: str) -> int:
    return add(journal, frame, nodule(n), reader).number


def write_in_threads(place: str, name: str, threads: int, count: int) -> list[int]:
    with ThreadPoolExecutor(threads) as pool:
        readers = [f"{name}-{thread}" for thread in range(threads)]
        return [number for numbers in pool.map(lambda r: write_many(place, r, count), readers) for number in numbers]


def check(place: str, numbers: list[int], readers: int, count: int) -> None:
    """Check that every number was given once, and that every reading is there with what was before it."""
    total = readers * count
    assert sorted(numbers) == list(range(1, total + 1))
    entries = Journal(place).entries
    assert [entry.number for entry in entries] == sorted(numbers)
    by_reader: dict[str, list[Entry]] = {}
    for entry in entries:
        by_reader.setdefault(entry.reader, []).append(entry)
    assert len(by_reader) == readers
    for own in by_reader.values():
        assert [entry.reading for entry in own] == [nodule(n) for n in range(count)]
        shared = [entry for entry in own if entry.frame == "shared"]
        assert [entry.before for entry in shared] == [None, *(entry.reading for entry in shared[:-1])]


@pytest.mark.slow
def test_500_concurrent_writes_to_a_folder(tmp_path):
    place = str(tmp_path / "labelled")
    given = at_once(write_in_threads, [(place, f"server{n}", 2, 63) for n in range(4)])
    check(place, [number for numbers in given for number in numbers], readers=8, count=63)


def test_concurrent_writes_to_a_folder(tmp_path):
    place = str(tmp_path / "labelled")
    check(place, write_in_threads(place, "server", 5, 20), readers=5, count=20)


def test_threads_of_one_server_lose_nothing(tmp_path):
    journal = Journal(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        numbers = list(pool.map(lambda n: _add(journal, f"frame-{n}", n, f"reader-{n % 3}"), range(100)))
    assert sorted(numbers) == list(range(1, 101))
    assert len(Journal(tmp_path).entries) == 100


def test_concurrent_writes_to_a_bucket(gcs):
    place = gcs.address("labelled")
    check(place, write_in_threads(place, "server", 4, 13), readers=4, count=13)


@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")  # see test_storage.py
def test_a_bucket_whose_connections_break(gcs):
    place = gcs.address("labelled")
    gcs.proxy.randomly(30, 0.3, seed=1)
    check(place, write_in_threads(place, "server", 2, 10), readers=2, count=10)
    assert gcs.proxy.faults > 5


def _write_until_killed(place: str, ready) -> None:
    journal = Journal(place)
    for n in range(10_000):
        _add(journal, f"frame-{n}", n, "Ann")
        if n == 5:
            ready.set()


def test_a_server_that_is_killed_leaves_whole_entries(tmp_path):
    context = multiprocessing.get_context("forkserver")
    ready = context.Event()
    process = context.Process(target=_write_until_killed, args=(str(tmp_path), ready))
    process.start()
    assert ready.wait(60)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    journal = Journal(tmp_path)
    found = len(journal.entries)
    assert found >= 6
    assert _add(journal, "next", 1, "Bob") == found + 1


class Disk:
    """A disk that can be full: a file's name is there and half of its content, as on a real one."""

    def __init__(self, monkeypatch, error: int = errno.ENOSPC) -> None:
        self.broken = False
        plain: Callable[..., int] = Path.write_bytes

        def write_bytes(path: Path, data: bytes) -> int:
            if self.broken:
                plain(path, data[: len(data) // 2])
                raise OSError(error, os.strerror(error), str(path))
            return plain(path, data)

        monkeypatch.setattr(Path, "write_bytes", write_bytes)


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EACCES])
def test_a_disk_that_cannot_be_written(tmp_path, monkeypatch, error):
    journal, disk = Journal(tmp_path), Disk(monkeypatch, error)
    add(journal, "a", NOTHING)
    disk.broken = True
    with pytest.raises(UnwritableError, match=str(tmp_path)) as caught:
        add(journal, "a", UNUSABLE)
    assert caught.value.__cause__.errno == error
    assert caught.value.full is (error in (errno.ENOSPC, errno.EDQUOT))
    assert "\n" not in str(caught.value)
    with pytest.raises(UnwritableError):
        journal.undo("Ann")
    assert len(journal.entries) == len(Journal(tmp_path).entries) == 1
    assert [path.name for path in (tmp_path / "journal").iterdir()] == ["00000001.json"]
    disk.broken = False
    assert add(journal, "a", UNUSABLE).number == 2


@pytest.mark.parametrize("kind", ["file", "below a file"])
def test_results_that_are_no_folder(tmp_path, kind):
    (tmp_path / "file").write_text("x")
    place = tmp_path / "file" if kind == "file" else tmp_path / "file" / "labelled"
    with pytest.raises(UnwritableError, match=str(place)):
        add(Journal(place), "a", NOTHING)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"number": 2}'])
def test_a_damaged_entry_is_named(tmp_path, content):
    journal = Journal(tmp_path)
    for frame in "abc":
        add(journal, frame, NOTHING)
    path = tmp_path / "journal" / "00000002.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=str(path)):
        Journal(tmp_path)


def test_an_entry_of_another_number_is_named(tmp_path):
    journal = Journal(tmp_path)
    for frame in "ab":
        add(journal, frame, NOTHING)
    folder = tmp_path / "journal"
    (folder / "00000002.json").write_bytes((folder / "00000001.json").read_bytes())
    with pytest.raises(InputError, match="00000002"):
        Journal(tmp_path)


def test_a_missing_entry_is_named(place):
    journal = Journal(place)
    for frame in "abc":
        add(journal, frame, NOTHING)
    storage.at(place).remove("journal/00000002.json")
    with pytest.raises(InputError, match=r"00000002\.json"):
        Journal(place)


def test_fields_of_a_newer_release_are_ignored(tmp_path):
    add(Journal(tmp_path), "a", nodule(1))
    path = tmp_path / "journal" / "00000001.json"
    fields = json.loads(path.read_bytes())
    fields["reading"]["regions"][0]["depth"] = 3
    fields["reading"]["remark"] = fields["room"] = "new"
    path.write_text(json.dumps(fields))
    assert held(Journal(tmp_path), "a") == {"Ann": nodule(1)}


def test_other_files_in_the_folder_do_no_harm(tmp_path):
    add(Journal(tmp_path), "a", NOTHING)
    for name in (".00000002.json.abc.tmp", "notes.txt", "0000003.json", "00000004.json.bak"):
        (tmp_path / "journal" / name).write_text("x")
    assert len(Journal(tmp_path).entries) == 1


def test_readers_may_look_while_others_write(tmp_path):
    journal, done = Journal(tmp_path), threading.Event()

    def look() -> int:
        looks = 0
        while not done.is_set():
            seen = journal.entries
            assert [entry.number for entry in seen] == list(range(1, len(seen) + 1))
            last, found = journal.last_of("Ann"), journal.readings("frame-1")
            assert last is None or last.number >= len(seen)
            assert all(entry.frame == "frame-1" for entry in found.values())
            looks += 1
        return looks

    with ThreadPoolExecutor(2) as pool:
        looking = pool.submit(look)
        for n in range(50):
            _add(journal, f"frame-{n % 3}", n, "Ann")
        done.set()
        assert looking.result() > 0
