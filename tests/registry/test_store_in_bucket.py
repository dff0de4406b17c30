"""What a store holds goes for good, whether it is a folder or in a bucket: by age, or because a patient is erased."""

import hashlib
import io
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from tests.conftest import write_scan
from tests.registry.test_retention import DAY, House, killed_after, rows
from thyroid import storage
from thyroid.data import pseudonyms, tables
from thyroid.data.store import Store
from thyroid.data.version import DataVersion
from thyroid.errors import InputError
from thyroid.label.retention import command
from thyroid.registry import inventory, retention
from thyroid.storage.gcs import GoogleBucket
from thyroid.storage.s3 import S3Bucket

pytestmark = pytest.mark.usefixtures("undrawn")
WHO = 987654


@pytest.fixture
def house(scans, tmp_path, place, monkeypatch) -> House:
    monkeypatch.delenv(pseudonyms.KEY_VARIABLE, raising=False)
    return House(tmp_path, scans, place)


def stored(house: House) -> dict[str, bytes]:
    """Content of every file of the store by name: of the folder, or of the bucket."""
    if not storage.is_bucket(house.place):
        there = (path for path in house.store.rglob("*") if path.is_file() and path.name != ".lock")
        return {path.relative_to(house.store).as_posix(): path.read_bytes() for path in there}
    bucket = storage.at(house.place)
    return {entry.name: bucket.read(entry.name)[0] for entry in bucket.entries()}


def here(house: House) -> dict[str, bytes]:
    """Content of every file of the store on this machine."""
    return {str(path): path.read_bytes() for path in house.store.rglob("*") if path.is_file()}


def later(monkeypatch: pytest.MonkeyPatch, days: float) -> None:
    """Let so many days pass for whoever looks at the age of files."""
    now = time.time
    monkeypatch.setattr(inventory, "time", SimpleNamespace(time=lambda: now() + days * DAY))


def killed(house: House, steps: int, monkeypatch: pytest.MonkeyPatch, work: Callable[[], object]) -> bool:
    """Whether `work` is killed after so many changes of the store. Its lock need not be waited for."""
    result = killed_after(steps, changing(house), monkeypatch, work)
    if storage.is_bucket(house.place):
        storage.at(house.place).remove("lease")
    return result


def changing(house: House) -> dict:
    """What changes a store, by owner and name."""
    found = {
        (Path, "unlink"): Path.unlink,
        (shutil, "rmtree"): shutil.rmtree,
        (Path, "rename"): Path.rename,
        (Path, "replace"): Path.replace,
    }
    if storage.is_bucket(house.place):
        kind = type(storage.at(house.place))
        found = {(kind, name): getattr(kind, name) for name in ("write", "upload", "delete", "remove")}
    return found


def test_what_goes_is_removed_and_what_stays_is_whole(house):
    house.model(house.night())
    (house.scans / "M_002-0001-1.0.jpg").unlink()
    newest = house.grow()
    house.model(newest, "promoted")
    before = stored(house)
    told = house.retain(delete=False)
    assert stored(house).keys() == before.keys()
    assert rows(told, "data")["000001"][0] is False
    assert house.retain() == told, "what is listed is what goes"
    assert house.versions() == ["000002"]
    assert house.images() == house.of("000002")
    assert sum(1 for name in stored(house) if name.startswith("crops/")) == len(house.images()) == 24
    assert not [row for row in house.retain() if not row.stays]
    again = house.night()
    assert DataVersion.read(again).fingerprint == DataVersion.read(newest).fingerprint
    assert tables.read_facts(again).cropped == 0
    if storage.is_bucket(house.place):
        assert stored(house).keys() <= before.keys() | set(stored(house)), "the index names no more"
        shutil.rmtree(house.store)
        assert tables.read_facts(house.night()).cropped == 0, "another machine finds everything"


def test_trainings_and_pieces_go_when_nothing_has_touched_them_for_days(house, monkeypatch):
    house.night()
    training = f"work/VGG16-normal-{0:016x}"
    where = storage.at(house.place)
    for name in (f"{training}/main/state.npz", f"{training}/maps/0.npz", "work/notes/mine.txt"):
        where.write(name, b"state")
    place = Store(house.place)
    place.add_piece("cropped", pd.DataFrame({"file": ["normal/of-a-shard-0000000000000000.jpg"]}))
    where.write("crops/normal/of-a-shard-0000000000000000.jpg", b"image")
    where.write("crops/normal/of-no-shard-0000000000000000.jpg", b"image")
    found = house.retain()
    assert rows(found, "work") == {f"VGG16-normal-{0:016x}": (True, "touched 0.0 days ago")}
    assert rows(found, "pieces") == {"1 files": (True, "of shards, for the next run")}
    assert "crops/normal/of-a-shard-0000000000000000.jpg" in stored(house)
    assert "crops/normal/of-no-shard-0000000000000000.jpg" not in stored(house)
    later(monkeypatch, 8)
    found = house.retain()
    assert rows(found, "work") == {f"VGG16-normal-{0:016x}": (False, "touched 8.0 days ago")}
    assert rows(found, "pieces") == {"1 files": (False, "of shards, and no run has taken them up for 7 days")}
    assert not [name for name in stored(house) if name.startswith((training, "pieces/"))]
    assert "work/notes/mine.txt" in stored(house)
    house.retain()
    assert "crops/normal/of-a-shard-0000000000000000.jpg" not in stored(house)


def test_killed_at_any_step_the_next_retention_finishes_it(house, monkeypatch):
    house.model(house.night())
    (house.scans / "M_002-0001-1.0.jpg").unlink()
    house.model(house.grow())
    storage.at(house.place).write(f"work/VGG16-normal-{0:016x}/main/state.npz", b"state")
    later(monkeypatch, 9)
    for steps in range(0, 200, 5):
        if not killed(house, steps, monkeypatch, house.retain):
            break
        Store(house.place).pull()
        for version in Store(house.place).readable():
            retention._contents(version.folder, [])
    else:
        pytest.fail("it never came to its end")
    house.retain()
    assert house.versions() == ["000002"]
    assert house.images() == house.of("000002")
    assert not [name for name in stored(house) if name.startswith("work/") or ".going-" in name]


def test_what_a_killed_run_has_left_in_the_bucket_goes_after_a_day(scans, tmp_path, bucket, monkeypatch):
    house = House(tmp_path, scans, bucket.address("store"))
    house.night()
    orphan = f"files/{hashlib.sha256(b'orphan').hexdigest()}"
    storage.at(house.place).write(orphan, b"orphan")
    assert rows(house.retain(), "leftovers") == {"1 objects": (True, "may be being written")}
    assert orphan in stored(house)
    later(monkeypatch, 1.1)
    assert rows(house.retain(), "leftovers") == {"1 objects": (False, "of killed runs, a day ago or earlier")}
    assert orphan not in stored(house)
    assert not [row for row in house.retain() if not row.stays]


def test_where_there_is_no_store_nothing_is_made(house, tmp_path):
    with pytest.raises(InputError, match=f"--store {house.place}: contains no data version"):
        house.retain()
    assert not stored(house)


@pytest.fixture
def patients(tmp_path, house) -> House:
    """Data versions without a patient, with, and with again, and a shard's piece that names the patient."""
    for number in (1, 2):
        write_scan(house.scans / f"B_{WHO}-{number:04d}-1.0.jpg", seed=500 + number)
    house.model(house.night())
    house.grow()
    return house


def needles(house: House) -> Iterator[bytes]:
    """What names or shows the patient."""
    yield str(WHO).encode()
    for file in house.scans.glob(f"*_{WHO}-*"):
        yield file.read_bytes()
        yield hashlib.sha256(file.read_bytes()).hexdigest().encode()
    for name, data in stored(house).items():
        if name.startswith("crops/") and str(WHO) in name:
            yield data


def finds(found: dict[str, bytes], wanted: list[bytes]) -> list[str]:
    """Return the names of the files that have any needle in name or content; tables are parsed, too."""
    places = []
    for name, content in found.items():
        data = name.encode() + content
        if content.startswith(b"PAR1"):
            data += pd.read_parquet(io.BytesIO(content)).to_csv().encode()
        places += [name] if any(needle in data for needle in wanted) else []
    return places


def forget(house: House) -> set[str]:
    return {held.kind for held in retention.forget(house.place, house.registry, WHO, delete=True)}


def prepare(house: House) -> list[bytes]:
    """Add a piece, a training and a study with the patient, and return the needles."""
    wanted = list(needles(house))
    Store(house.place).add_piece("examined", pd.DataFrame({"path": [f"B_{WHO}-0001-1.0.jpg"]}))
    where = storage.at(house.place)
    where.write(f"work/locate-{0:016x}/done.tar", str(WHO).encode())
    where.write("sweeps/study/plan.json", b"{}")
    where.write("sweeps/study/data.npz", str(WHO).encode())
    assert len(finds(stored(house), wanted)) > 8
    return wanted


def test_a_patient_is_erased_from_everything(patients):
    wanted = prepare(patients)
    assert forget(patients) == {"crops", "pieces", "work", "data", "model"}
    assert finds(stored(patients), wanted) == []
    assert finds(here(patients), wanted) == []
    assert forget(patients) == {"model"}, "the list can be had again"
    after = patients.night()
    assert finds(stored(patients), wanted) == []
    assert finds(here(patients), wanted) == []
    reasons = tables.read_quarantine(after, tables.read_facts(after))["reason"]
    assert reasons.str.startswith("of a patient who was erased").sum() == 2


def test_killed_at_any_step_the_next_erasure_finishes_it(patients, monkeypatch):
    wanted = prepare(patients)
    for steps in range(0, 400, 9):
        if not killed(patients, steps, monkeypatch, lambda: forget(patients)):
            break
    else:
        pytest.fail("it never came to its end")
    assert steps > 4
    forget(patients)
    assert finds(stored(patients), wanted) == []
    assert finds(here(patients), wanted) == []
    assert len(Store(patients.place).readable()) == 2
    patients.night()
    assert finds(stored(patients), wanted) == []


def test_what_a_bucket_keeps_of_removed_objects_is_said(patients, capsys, monkeypatch):
    where = ["--store", patients.place, "--registry", patients.registry, "--forget", str(WHO)]
    for kept, said in ((True, "removed objects are kept"), (None, "if it keeps older versions"), (False, "")):
        for kind in (GoogleBucket, S3Bucket):
            monkeypatch.setattr(kind, "keeps_removed", lambda bucket, kept=kept: kept)
        capsys.readouterr()
        assert command.main(where) == 0
        told = capsys.readouterr().out
        named = storage.is_bucket(patients.place) and bool(said)
        assert ("a lifecycle rule" in told) == named
        assert not named or f"{'/'.join(patients.place.split('/')[:3])}: {said}" in told
