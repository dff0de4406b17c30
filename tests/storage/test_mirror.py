"""The node-local copies of what is in a bucket."""

import errno
import hashlib
import os
import time
from pathlib import Path

import pytest

from tests.support.clouds import Cloud
from thyroid import storage
from thyroid.errors import InputError
from thyroid.storage import mirror

pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")  # see test_storage.py


@pytest.mark.parametrize("address", ["s3://bucket/some/name.jpg", "gs://bucket/ä b/#%41.png", "gs://bucket"])
def test_an_address_and_its_path_belong_together(address):
    path = mirror.mirror(address)
    assert path.is_relative_to(mirror.root())
    assert mirror.address(path) == address
    assert mirror.local(address) == str(path)


def test_folders_are_left_alone(tmp_path):
    file = tmp_path / "file"
    assert mirror.mirror(tmp_path) == tmp_path
    assert (mirror.local("scans/a.jpg"), mirror.address(file)) == ("scans/a.jpg", str(file))
    assert mirror.fetch([file]) == []
    mirror.send([file])
    file.write_bytes(b"a")
    mirror.remove([file])
    assert not file.exists()


@pytest.mark.parametrize("address", ["gs://bucket/../../x", "s3://../x", "s3://bucket//x", "gs://"])
def test_no_address_leaves_the_mirror(address):
    with pytest.raises(InputError, match="part that is empty"):
        mirror.local(address)


def test_only_what_does_not_exist_is_fetched(bucket: Cloud):
    bucket.put({f"some/{number}": b"%d" % number for number in range(5)})
    paths = [mirror.mirror(bucket.address(f"some/{number}")) for number in range(5)]
    assert sorted(mirror.fetch(paths[:3])) == paths[:3]
    bucket.proxy.requests.clear()
    assert mirror.fetch(paths) == paths[3:] or sorted(mirror.fetch(paths)) == []
    assert len(bucket.downloads()) == 2
    assert [path.read_bytes() for path in paths] == [b"%d" % number for number in range(5)]
    with pytest.raises(InputError, match=r"some/9: missing"):
        mirror.fetch([*paths, mirror.mirror(bucket.address("some/9"))])
    assert mirror.fetch([mirror.mirror(bucket.address("some/9"))], missing_ok=True) == []


def test_files_are_sent_and_removed(bucket: Cloud):
    path = mirror.mirror(bucket.address("some/name"))
    path.parent.mkdir(parents=True)
    path.write_bytes(b"content")
    mirror.send([path])
    assert bucket.read("some/name") == b"content"
    mirror.remove([path, path.with_name("another")])
    assert not path.exists()
    assert bucket.names() == []


def test_a_damaged_copy_is_fetched_again_and_a_damaged_object_is_removed(bucket: Cloud):
    bucket.put({"some/name": b"content"})
    path, sha256 = mirror.mirror(bucket.address("some/name")), hashlib.sha256(b"content").hexdigest()
    mirror.fetch([path])
    path.write_bytes(b"damaged")
    assert mirror.read(path, sha256) == b"content"
    path.unlink()  # as another process that needs space does
    assert mirror.read(path, sha256) == b"content"
    with pytest.raises(ValueError, match="not the one"):
        mirror.read(path, "0" * 64)
    assert bucket.names() == []
    with pytest.raises(FileNotFoundError):
        mirror.read(path, sha256)


@pytest.mark.parametrize("home", ["store", "scans", "crops/normal", "files", "scans/00"])
def test_the_least_recently_used_copies_of_scans_and_images_go(monkeypatch, tmp_path, home):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    now = time.time()
    new, old, older = "crops/normal/new.jpg", "crops/normal/old.jpg", f"scans/00/{'1' * 62}.jpg"
    kept = {new: 0.0, old: 2e4, older: 3e4, "work/state": 9e4, "versions/000001/data.json": 9e4, "erased.json": 9e4}
    for name, age in kept.items():
        path = mirror.mirror(f"s3://bucket/{home}/{name}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"0123456789")
        os.utime(path, (now - age, now - age))
    mirror.trim(50)
    assert {name for name in kept if not mirror.mirror(f"s3://bucket/{home}/{name}").exists()} == {older}
    mirror.trim(0)
    gone = {name for name in kept if not mirror.mirror(f"s3://bucket/{home}/{name}").exists()}
    assert gone == {older, old}  # the new one may be being read, and the others only exist here


def test_the_limit_holds_while_much_is_fetched(bucket: Cloud, monkeypatch):
    bucket.put({f"crops/normal/{number}.jpg": bytes(1000) for number in range(20)})
    paths = [mirror.mirror(bucket.address(f"crops/normal/{number}.jpg")) for number in range(20)]
    monkeypatch.setenv(mirror.LIMIT_VARIABLE, "5000")
    monkeypatch.setattr(mirror, "_IN_USE", -1.0)
    for path in paths:
        mirror.fetch([path])
    assert sum(path.exists() for path in paths) <= 5


def test_files_that_vanish_while_the_mirror_is_measured_are_left_out(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = mirror.mirror("s3://bucket/store/crops/normal/a.jpg")
    path.parent.mkdir(parents=True)
    path.touch()
    monkeypatch.setattr(os, "walk", lambda folder: [(str(path.parent), [], ["gone.jpg", "a.jpg"])])
    os.utime(path, (0, 0))
    mirror.trim(-1)
    assert not path.exists()


def test_a_full_disk_is_named_with_its_cure(bucket: Cloud, monkeypatch):
    bucket.put({"crops/normal/old.jpg": b"old", "crops/normal/new.jpg": b"new"})
    old, new = (mirror.mirror(bucket.address(f"crops/normal/{name}.jpg")) for name in ("old", "new"))
    mirror.fetch([old])
    os.utime(old, (0, 0))
    plain, full = Path.replace, True

    def replace(self: Path, target: Path) -> Path:
        if full or old.exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        return plain(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(InputError, match="XDG_CACHE_HOME") as told:
        mirror.fetch([new])
    assert str(mirror.root()) in str(told.value)
    full = False
    mirror.fetch([new])  # now that what is not in use is gone
    assert new.read_bytes() == b"new"
    assert not old.exists()


def test_the_cache_of_models_leaves_the_mirror_alone(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(storage.cache, "CACHE_LIMIT", 0)
    path = mirror.mirror("s3://bucket/store/crops/a")
    path.parent.mkdir(parents=True)
    path.write_bytes(b"a")
    os.utime(mirror.root(), (0, 0))
    with storage.cache.folder_for("model"):
        pass
    assert path.exists()
