"""A patient is erased from the decision log and its archive while endpoints write; old days go by age."""

import datetime
import fcntl
import json
import os
import threading
from pathlib import Path

import pytest

from tests.registry.test_retention import killed_after
from tests.support.decisions import decision, shadowed, write, write_shadowed
from thyroid import atomic, storage
from thyroid.data import pseudonyms
from thyroid.errors import InputError
from thyroid.registry.erasure import Held
from thyroid.watch import archive, erasure, log

KEY = b"a secret for tests only"
OWN, OTHER = (pseudonyms.of_patient(KEY, "Seoul", number) for number in (1, 2))
IMAGE = pseudonyms.of_file(KEY, "a" * 64)
FILE = "decisions-2025-07-14-host-0a.jsonl"


@pytest.fixture
def folder(tmp_path) -> Path:
    """A log of two days with two decisions on the patient, one of them known by the image alone, and two others."""
    folder = tmp_path / "log"
    rows = [decision(patient=OWN), decision(patient=OTHER), decision(image=IMAGE)]
    write(folder, rows)
    write(folder, [decision(patient=OTHER, time="2025-07-13T08:00:00Z")], "decisions-2025-07-13-host-0a.jsonl")
    return folder


def forget(folder: Path | str, place: str = "", delete: bool = False) -> list[Held]:
    return erasure.forget(folder, place, {OWN}, {IMAGE}, delete)


def content(folder: Path) -> str:
    return "".join(path.read_text() for path in sorted(folder.iterdir()) if path.is_file())


def test_what_is_held_is_listed_and_removed(folder, place):
    log.ship(folder, place)
    before, untouched = content(folder), (folder / "decisions-2025-07-13-host-0a.jsonl").stat().st_ino
    expected = [
        Held("log", FILE, "decisions on the patient: 2"),
        Held("archive", "2025-07-14.parquet", "decisions on the patient: 2"),
    ]
    assert forget(folder, place) == expected
    assert content(folder) == before
    assert forget(folder, place, delete=True) == expected
    assert forget(folder, place) == forget(folder, place, delete=True) == []
    for left in (log.read(folder).decisions, log.read(archive=place).decisions):
        assert left["patient"].tolist() == [OTHER, OTHER]
    assert OWN not in content(folder)
    assert IMAGE not in content(folder)
    assert (folder / "decisions-2025-07-13-host-0a.jsonl").stat().st_ino == untouched
    assert log.ship(folder, place) == 0


def test_other_lines_keep_their_bytes(folder):
    kept = b'{"later": "field", ' + json.dumps(decision(patient=OTHER)).encode()[1:] + b"\n\n"
    (folder / FILE).write_bytes(kept + (folder / FILE).read_bytes().splitlines(keepends=True)[0] + kept)
    forget(folder, delete=True)
    assert (folder / FILE).read_bytes() == kept * 2


def test_a_file_keeps_its_rights(folder):
    (folder / FILE).chmod(0o640)
    forget(folder, delete=True)
    assert (folder / FILE).stat().st_mode & 0o777 == 0o640
    (folder / FILE).chmod(0o600)
    write(folder, [decision(patient=OWN)])
    forget(folder, delete=True)
    assert (folder / FILE).stat().st_mode & 0o777 == 0o600


def test_lines_that_cannot_be_read(folder):
    """They go only if they name the patient; how many others there are is said."""
    half = json.dumps(decision(patient=OWN))
    cut = half[: half.index(OWN) + len(OWN)]
    with (folder / FILE).open("a") as opened:
        opened.write(f"{cut}\nnonsense\n{'x' * log.LONGEST}{OWN}\n{'y' * 2 * log.LONGEST}\n{cut}")
    found = [
        Held("log", FILE, "decisions on the patient: 5"),
        Held("unreadable", FILE, "lines that are no decisions and do not name the patient: 2"),
    ]
    assert forget(folder) == forget(folder, delete=True) == found
    assert OWN not in content(folder)
    assert "nonsense\ny" in content(folder)
    assert forget(folder, delete=True) == found[1:]


def test_an_endpoint_that_writes_meanwhile_loses_nothing(folder):
    """The protocol of `thyroid.serve.decisions.folder`: take the lock, then look whether the file is still there."""
    stop, written = threading.Event(), []

    def serve() -> None:
        while not stop.is_set():
            rows = [decision(patient=OTHER), decision(patient=OWN)]
            while True:
                with (folder / FILE).open("ab") as opened:
                    fcntl.flock(opened, fcntl.LOCK_EX)
                    if os.path.samestat(os.fstat(opened.fileno()), (folder / FILE).stat()):
                        opened.writelines(json.dumps(row).encode() + b"\n" for row in rows)
                        break
            written.append(rows[0]["id"])

    server = threading.Thread(target=serve)
    server.start()
    replaced = 0
    try:
        while replaced < 20 or len(written) < 20:
            replaced += bool(forget(folder, delete=True))
            assert server.is_alive()
    finally:
        stop.set()
        server.join()
    forget(folder, delete=True)
    assert len(written) > 1
    assert set(written) <= set(log.read(folder).decisions["id"])
    assert OWN not in content(folder)


def test_killed_at_any_step_and_called_again(folder, place, monkeypatch):
    originals = {path: path.read_bytes() for path in folder.glob("*.jsonl")}
    others = sorted(
        row["id"] for row in map(json.loads, b"".join(originals.values()).splitlines()) if OTHER in row.values()
    )
    kind = type(storage.at(place))
    calls = {(atomic, "flush"): atomic.flush, (kind, "write"): kind.write, (archive, "change"): archive.change}
    for step in range(100):
        for path, data in originals.items():
            path.write_bytes(data)
        log.ship(folder, place)
        killed = killed_after(step, calls, monkeypatch, lambda: forget(folder, place, delete=True))
        assert set(others) <= set(log.read(folder).decisions["id"]) & set(log.read(archive=place).decisions["id"])
        assert bool(forget(folder, place, delete=True)) == killed
        assert OWN not in content(folder)
        assert log.read(folder, place).decisions["id"].tolist() == log.read(archive=place).decisions["id"].tolist()
        assert sorted(log.read(archive=place).decisions["id"]) == others
        if not killed:
            break
    assert 3 <= step < 100


def test_what_killed_writers_have_left_goes(folder, tmp_path):
    place = tmp_path / "archive"
    log.ship(folder, place)
    left = [folder / f".{FILE}.1a.tmp", place / "decisions" / ".2025-07-14.parquet.1a.tmp"]
    for path in left:
        path.write_text(OWN)
    assert Held("leftovers", "2 files", "half-written") in forget(folder, str(place))
    assert all(path.exists() for path in left)
    forget(folder, str(place), delete=True)
    assert not any(path.exists() for path in left)
    assert forget(folder, str(place)) == []


def test_a_full_disk_leaves_the_file(folder, monkeypatch):
    before = (folder / FILE).read_bytes()

    def full(path):
        raise OSError(28, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(atomic, "flush", full)
        with pytest.raises(OSError, match="No space"):
            forget(folder, delete=True)
    assert (folder / FILE).read_bytes() == before
    assert not list(folder.glob(".*.tmp"))


def test_a_damaged_archive_is_named(folder, place):
    storage.at(place).write("decisions/2025-07-14.parquet", b"PAR1")
    with pytest.raises(InputError, match=r"2025-07-14\.parquet: damaged"):
        forget(folder, place)


def test_nothing_to_search(tmp_path):
    assert forget("", "") == []
    with pytest.raises(InputError, match="no such folder"):
        forget(tmp_path / "no")


def test_old_days_go(folder, place):
    log.ship(folder, place)
    today = datetime.datetime.now(datetime.UTC)
    row = decision(time=today.isoformat())
    write(folder, [row], f"decisions-{today:%Y-%m-%d}-host-0a.jsonl")
    log.ship(folder, place)
    renamed = write(folder, [decision()], "copy.jsonl")
    os.utime(renamed, (0, 0))
    kept = [(found.kind, found.name, found.stays) for found in erasure.expire(folder, place, 0, delete=True)]
    assert kept == [("log", "4 files", True), ("archive", "3 files", True)]
    for delete in (False, True):
        rows = erasure.expire(folder, place, 7, delete)
        assert [(found.kind, found.name, found.stays) for found in rows] == [
            ("log", "1 files", True),
            ("log", "3 files", False),
            ("archive", "1 files", True),
            ("archive", "2 files", False),
        ]
        assert all(found.bytes > 0 for found in rows)
    assert log.read(folder).decisions["id"].tolist() == [row["id"]]
    assert log.read(archive=place).decisions["id"].tolist() == [row["id"]]
    with pytest.raises(InputError, match="--log-days -1"):
        erasure.expire(folder, place, -1)


def test_what_a_candidate_made_of_the_same_images_goes_as_well(folder):
    """Its lines are no decisions: who reads these does not see them."""
    own, other = shadowed(decision(patient=OWN)), shadowed(decision(patient=OTHER))
    path = write_shadowed(folder, [own, other, shadowed(decision(image=IMAGE)), {"none": 1}])
    assert log.read(folder).set_aside["damaged"] == 0
    expected = [
        Held("log", FILE, "decisions on the patient: 2"),
        Held("log", f"shadow/{path.name}", "decisions on the patient: 2"),
        Held("unreadable", f"shadow/{path.name}", "lines that are no decisions and do not name the patient: 1"),
    ]
    assert forget(folder) == expected
    assert forget(folder, delete=True) == expected
    assert [json.loads(line) for line in path.read_text().splitlines()] == [other, {"none": 1}]


def test_old_days_of_a_candidate_go(folder):
    today = datetime.datetime.now(datetime.UTC).date()
    old = write_shadowed(folder, [shadowed(decision())])
    new = write_shadowed(folder, [shadowed(decision())], f"decisions-{today}-host-0b.jsonl")
    (kept, gone) = erasure.expire(folder, "", 30, delete=True)
    assert (kept.name, gone.name) == ("1 files", "3 files")
    assert (new.exists(), old.exists()) == (True, False)
