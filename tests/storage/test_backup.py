"""The work of a job that is stopped, finished, or done twice at once, on nodes with caches of their own."""

import io
import multiprocessing
import os
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Literal

import pytest

from thyroid.storage import backup, mirror


@pytest.fixture(autouse=True)
def quick(monkeypatch) -> None:
    monkeypatch.setattr(backup, "_POLL", 0.02)


@pytest.fixture
def node(monkeypatch, tmp_path) -> Callable[[str], None]:
    """Move to another node, which has a cache of its own."""
    return lambda name: monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name))


@contextmanager
def stopped(place: str, key: str) -> Iterator[Path]:
    """A job that is told to stop at the end of the block."""
    with suppress(SystemExit), backup.kept(place, key) as work:
        yield work
        raise SystemExit(143)


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name("new.tmp")
        temporary.write_text(text)
        temporary.replace(path)


def found(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): path.read_text()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_job_that_is_stopped_goes_on_on_another_node(bucket, node):
    node("one")
    place = bucket.address("store/work")
    with stopped(place, "job") as work:
        write(work, main__state="first", maps__chunk="large", other__state="x")
        until(lambda: len(bucket.names()) == 3)
        write(work, main__state="last", **{"main__state-before.npz": "before", "ready__part": "half"})
        (work / "main" / "new.tmp").write_text("ha")
    node("two")
    with stopped(place, "job") as work:
        assert found(work) == {"main/state": "last", "maps/chunk": "large", "other/state": "x"}
    with stopped(place, "other") as work:
        assert found(work) == {}


def test_a_node_that_knows_an_older_state_takes_the_newer_one(bucket, node):
    place = bucket.address("work")
    for number, name in enumerate(("one", "two", "one")):
        node(name)
        with stopped(place, "job") as work:
            assert found(work).get("state") == (f"after {number - 1}" if number else None)
            write(work, state=f"after {number}")
            os.utime(work / "state", (0, 0))


def test_of_a_finished_job_only_the_result_is_kept(bucket, node):
    place = bucket.address("work")
    node("one")
    with backup.kept(place, "job") as work:
        write(work, state="state", maps__chunk="large")
        until(lambda: len(bucket.names()) == 2)
        write(work, done__record="whole", done__logs__log="log")
    assert bucket.names() == ["work/job/done.tar"]
    assert found(work) == {}
    for name in ("one", "two"):
        node(name)
        before = len(bucket.proxy.requests)
        with backup.kept(place, "job") as work:
            assert found(work) == {"done/record": "whole", "done/logs/log": "log"}
        assert not [1 for method, _ in bucket.proxy.requests[before:] if method != "GET"]
    bucket.put({"work/job/done.tar": b"no archive"})
    with backup.kept(place, "job") as work:
        assert found(work) == {}
        write(work, done__record="again")
    with backup.kept(place, "job") as work:
        assert found(work) == {"done/record": "again"}


def archive_of(*members: tuple[str, str, bytes], mode: Literal["w", "w:gz"] = "w") -> bytes:
    """An archive of files, each given by its name, what it links to, and its content."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode=mode) as archive:
        for name, target, data in members:
            member = tarfile.TarInfo(name)
            member.size, member.linkname = len(data), target
            member.type = tarfile.SYMTYPE if target else tarfile.REGTYPE
            archive.addfile(member, io.BytesIO(data))
    return content.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        archive_of(("record", "", b"bad"), ("../../outside", "", b"bad")),
        archive_of(("link", "/tmp", b""), ("link/outside", "", b"bad")),
        archive_of(("link", "../..", b""), ("link/outside", "", b"bad")),
        archive_of(("record", "", bytes(10_000)))[:3000],
        archive_of(("record", "", bytes(10_000)), mode="w:gz")[:40],
    ],
    ids=["parent", "link to root", "link to parent", "cut off", "compressed"],
)
def test_an_archive_that_is_not_of_a_job_is_not_used(bucket, node, content, tmp_path, capsys):
    place = bucket.address("work")
    bucket.put({"work/job/done.tar": content})
    node("one")
    with backup.kept(place, "job") as work:
        assert found(work) == {}
        write(work, done__record="again")
    assert "done again" in capsys.readouterr().out
    assert not list(tmp_path.rglob("outside"))
    with backup.kept(place, "job") as work:
        assert found(work) == {"done/record": "again"}


def other_node(place: str, cache: str, text: str) -> None:
    os.environ["XDG_CACHE_HOME"] = cache
    with backup.kept(place, "job") as work:
        assert not (work / "done").exists()
        write(work, state=text, done__record=text, done__model=text)


def test_two_nodes_that_do_the_same_job_leave_one_whole_result(bucket, node, tmp_path):
    place = bucket.address("work")
    node("one")
    with backup.kept(place, "job") as work:
        write(work, state="ours")
        process = multiprocessing.get_context("spawn").Process(
            target=other_node, args=(place, str(tmp_path / "two"), "theirs")
        )
        process.start()
        process.join()
        assert process.exitcode == 0
        write(work, state="ours again")
        until(lambda: "work/job/state" in bucket.names())
        write(work, done__record="ours", done__model="ours")
    assert bucket.names() == ["work/job/done.tar"]
    node("three")
    with backup.kept(place, "job") as work:
        assert len(set(found(work / "done").values())) == 1


def test_a_second_run_on_the_same_node_waits(place, capsys):
    order: list[dict[str, str]] = []

    def second() -> None:
        with backup.kept(place, "job") as work:
            order.append(found(work))

    with backup.kept(place, "job") as work:
        other = threading.Thread(target=second)
        other.start()
        time.sleep(0.3)
        assert not order
        write(work, done__record="whole")
    other.join()
    assert order == [{"done/record": "whole"}]
    assert "another run is at work here; waiting" in capsys.readouterr().out


def test_a_bucket_that_fails_ends_no_job_and_is_told_once(bucket, node, capsys):
    place = bucket.address("work")
    node("one")
    with backup.kept(place, "job") as work:
        bucket.proxy.rule = lambda method, path: "403" if method == bucket.writes else None
        write(work, state="first")
        until(lambda: bucket.proxy.faults > 2)
        assert found(work) == {"state": "first"}
        bucket.proxy.rule = lambda method, path: None
        until(lambda: "work/job/state" in bucket.names())
        bucket.proxy.rule = lambda method, path: "403" if method == bucket.writes else None
        write(work, done__record="whole")
    printed = capsys.readouterr().out
    assert printed.count("the job goes on, and its state stays in") == 1
    assert "the same job on another node would be done again" in printed
    bucket.proxy.rule = lambda method, path: None
    with backup.kept(place, "job") as work:
        assert found(work / "done") == {"record": "whole"}, "this node has it, and sends it now"
    assert bucket.names() == ["work/job/done.tar"]


def test_a_stop_does_not_wait_for_a_bucket_that_is_away(bucket, node, monkeypatch, capsys):
    monkeypatch.setattr(backup, "GRACE", 0.2)
    node("one")
    with stopped(bucket.address("work"), "job") as work:
        bucket.proxy.rule = lambda method, path: "503"
        write(work, state="last")
    assert f"1 files could not be sent in 0 s; they stay in {work}" in capsys.readouterr().err
    bucket.proxy.rule = lambda method, path: None
    with stopped(bucket.address("work"), "job") as work:
        assert found(work) == {"state": "last"}


def test_states_are_sent_before_maps_and_a_transfer_is_followed_by_a_longer_pause(bucket, node, monkeypatch):
    sent: list[tuple[float, float, list[str]]] = []

    def slow(paths) -> None:
        began = time.monotonic()
        time.sleep(0.05)
        sent.append((began, time.monotonic(), [path.name for path in paths]))

    monkeypatch.setattr(mirror, "send", slow)
    monkeypatch.setattr(backup, "_POLL", 0.2)
    node("one")
    with stopped(bucket.address("work"), "job") as work:
        write(work, maps__a="a", maps__b="b", state="s", table="t")
        until(lambda: len(sent) == 3)
    assert [names for *_, names in sent] == [["state"], ["table"], ["a", "b"]]
    for (began, ended, _), (again, *_) in pairwise(sent):
        assert again - ended >= 8 * (ended - began)


def test_an_unreadable_bucket_is_told_before_anything_is_done(bucket, node):
    bucket.proxy.rule = lambda method, path: "403"
    with pytest.raises(backup.InputError, match="permission"), backup.kept(bucket.address("work"), "job"):
        pytest.fail("nothing is done")


def test_maps_that_are_kept_between_runs_are_sent_to_the_last_one(bucket, node):
    node("one")
    place = bucket.address("work/locate-maps-0")
    folder = mirror.mirror(place)
    with backup.sending(folder, ()):
        write(folder, **{f"{number}.npy": "map" for number in range(150)})
    assert len(bucket.names()) == 150
    bucket.proxy.requests.clear()
    with backup.sending(folder, [f"{number}.npy" for number in range(150)]):
        write(folder, **{"3.npy": "another map", "150.npy": "map"})
    assert sum(method == bucket.writes for method, _ in bucket.proxy.requests) == 2
    assert bucket.read("work/locate-maps-0/3.npy") == b"another map"
