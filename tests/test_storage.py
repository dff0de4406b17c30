"""A folder and an emulated bucket behind the same calls, and everything that a network does to a bucket's."""

import os
import random
import re
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from thyroid import storage
from thyroid.errors import InputError
from thyroid.storage import ABSENT, Bucket, ChangedError, Folder

# Google's client lets go of a connection that broke while it was read from
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")

NAMES = [
    "plain",
    "with space",
    "a..b",
    "..c",
    "ü-日本",
    "#1",
    "what?x=1&y=2",
    "a%2Fb",
    "%",
    "+",
    "deep/er/file",
    "'\"\\",
]


def left_over(folder: Path) -> list[Path]:
    """Temporary files."""
    return [path for path in folder.rglob(".*") if path.name != ".lock"]


def fill(folder: Path, names: list[str], size: int = 100) -> dict[str, bytes]:
    """Random files below `folder`; name to content."""
    made = {name: random.Random(name).randbytes(size) for name in names}
    for name, data in made.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return made


def downloads(gcs) -> int:
    return sum("alt=media" in path for _, path in gcs.proxy.requests)


def fetch(bucket: Bucket, folder: Path) -> dict[str, Path | None]:
    """Everything in the bucket, downloaded."""
    wanted = [(entry, folder / entry.name) for entry in bucket.entries()]
    return {entry.name: file for entry, file in bucket.download(wanted)}


# The contract of both kinds.


@pytest.mark.parametrize("name", NAMES)
def test_what_is_written_is_read(place, name):
    there = storage.at(place)
    assert there.read(name) == (b"", ABSENT)
    there.write(name, b"one")
    data, first = there.read(name)
    assert data == b"one"
    there.write(name, b"two", first)
    data, second = there.read(name)
    assert data == b"two"
    assert second not in (first, ABSENT)
    there.remove(name)
    assert there.read(name) == (b"", ABSENT)


def test_only_who_knows_the_present_content_replaces_it(place):
    there = storage.at(place)
    there.write("file", b"one", ABSENT)
    _, first = there.read("file")
    with pytest.raises(ChangedError, match="file"):
        there.write("file", b"two", ABSENT)
    there.write("file", b"two", first)
    with pytest.raises(ChangedError, match="file"):
        there.write("file", b"three", first)
    assert there.read("file")[0] == b"two"
    there.remove("file")
    with pytest.raises(ChangedError, match="file"):
        there.write("file", b"three", first)
    there.write("file", b"three", ABSENT)
    assert there.children() == ["file"]


def test_no_increment_is_lost(place):
    def increment(_: int) -> None:
        there = storage.at(place)
        while True:
            data, generation = there.read("counter")
            try:
                there.write("counter", str(int(data or b"0") + 1).encode(), generation)
                return
            except ChangedError:
                pass

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(increment, range(40)))
    assert storage.at(place).read("counter")[0] == b"40"


def test_folders_are_put_listed_got_and_removed(place, tmp_path):
    made = fill(tmp_path / "source", ["model.json", "openvino/model bin", "ü#?%2F.txt"])
    there = storage.at(place)
    assert there.children() == []
    there.put(tmp_path / "source", "1")
    there.put(tmp_path / "source", "11", ["openvino/model bin"])
    there.write("1/.claim", b"hidden")
    there.write(".hidden", b"hidden")
    there.write("state", b"x")
    assert there.children() == ["1", "11", "state"]
    got = there.get("1")
    assert {name: (got / name).read_bytes() for name in made} == made
    assert storage.file_names(there.get("11")) == ["openvino/model bin"]
    part = there.get("1", ["model.json"])
    assert (part / "model.json").read_bytes() == made["model.json"]
    there.remove("1")
    assert there.children() == ["11", "state"]
    there.remove("1")
    there.remove("state")
    assert there.children() == ["11"]


def test_the_hidden_is_removed_last_of_a_folder(tmp_path, monkeypatch):
    """A process that is killed while it removes a folder leaves the mark that says whose it is."""
    fill(tmp_path / "1", ["a/b", "model.json", "z", ".claim"])
    gone, unlink = [], Path.unlink
    monkeypatch.setattr(Path, "unlink", lambda self, **more: (gone.append(self.name), unlink(self, **more)))
    Folder(tmp_path).remove("1")
    assert gone == ["z", "model.json", "b", ".claim"]


def test_the_hidden_is_removed_last_of_a_bucket(gcs):
    gcs.put({f"p/1/{name}": b"x" for name in ("a/b", "model.json", "z", ".claim")})
    Bucket(gcs.address("p")).remove("1")
    gone = [path.rpartition("%2F")[2] for method, path in gcs.proxy.requests if method == "DELETE"]
    assert [name.partition("?")[0] for name in gone[:4]] == ["z", "model.json", "b", ".claim"]
    assert gcs.names() == []


# Addresses.


@pytest.mark.parametrize(
    "text", ["s3://bucket/x", "gs:/bucket/x", "https://storage.googleapis.com/b", Path("gs://b/x")]
)
def test_another_scheme_is_refused(text):
    with pytest.raises(InputError, match="gs://bucket/prefix"):
        storage.at(text)


def test_an_address_without_a_bucket_is_refused():
    with pytest.raises(InputError, match="gs://bucket/prefix"):
        storage.at("gs://")


def test_places_below_another():
    assert storage.below("gs://bucket/a/", "b", "c") == "gs://bucket/a/b/c"
    assert storage.below(Path("/data"), "b") == "/data/b"


def test_prefixes_do_not_run_into_each_other(gcs):
    gcs.put({"scans/a": b"1", "scans2/b": b"2", "scans/": b"", "scans/sub/": b""})
    assert [entry.name for entry in Bucket(gcs.address("scans")).entries()] == ["a"], "what marks a folder is left out"
    assert [entry.name for entry in Bucket(gcs.address()).entries()] == ["scans/a", "scans2/b"]


def test_without_the_client_it_is_said(monkeypatch, capsys):
    from thyroid.registry import __main__ as commands

    monkeypatch.setitem(sys.modules, "google.cloud.storage", None)
    with pytest.raises(InputError, match="google-cloud-storage"):
        storage.at("gs://bucket/x")
    assert commands.main(["list", "--registry", "gs://bucket/x"]) == 2
    assert capsys.readouterr().err.startswith("error: gs://bucket/x/thyroid: google-cloud-storage")


# Names that objects may have and files may not.


def test_names_that_files_may_not_have_are_listed_and_read(gcs):
    names = ["..", "../x", "a/../../b", "/absolute", "a//b", "line\nbreak"]
    gcs.put({f"p/{name}": name.encode() for name in names})
    bucket = Bucket(gcs.address("p"))
    assert {entry.name for entry in bucket.entries()} == set(names)
    for name in names:
        assert bucket.read(name)[0] == name.encode()


@pytest.mark.parametrize("name", ["a/../../evil", "/etc/evil"])
def test_a_name_that_leaves_its_folder_is_refused(gcs, name):
    gcs.put({f"p/1/{name}": b"x"})
    with pytest.raises(InputError, match=re.escape(name)):
        Bucket(gcs.address("p")).get("1")


# Many objects, and a network that is not reliable.


def test_all_pages_are_listed(gcs, monkeypatch):
    """Smaller ones than usual: the emulator takes the longer for an object the more it holds."""
    monkeypatch.setattr(storage.bucket, "PAGE", 200)
    names = [f"scans/{number:05d}.jpg" for number in range(1040)]
    gcs.put(dict.fromkeys(names, b"x"))
    found = Bucket(gcs.address("scans")).entries()
    assert [f"scans/{entry.name}" for entry in found] == names
    assert {entry.size for entry in found} == {1}
    assert len({entry.generation for entry in found}) > 1
    listings = [path for method, path in gcs.proxy.requests if method == "GET" and "pageToken" in path]
    assert len(listings) >= 5


@pytest.mark.slow
def test_a_thousand_objects_with_two_hundred_faults(gcs, tmp_path):
    dice = random.Random(0)
    made = {f"{number:04d}": dice.randbytes(dice.randrange(4000)) for number in range(1000)}
    gcs.put({f"scans/{name}": data for name, data in made.items()})
    gcs.proxy.randomly(200, 0.25, seed=2)
    files = fetch(Bucket(gcs.address("scans")), tmp_path / "copy")
    assert gcs.proxy.faults == 200
    assert files.keys() == made.keys()
    assert {name: (tmp_path / "copy" / name).read_bytes() for name in made} == made
    assert left_over(tmp_path) == []


def test_uploads_with_faults_and_lost_answers(gcs, tmp_path):
    made = fill(tmp_path, [f"{number:03d}" for number in range(300)], 2000)
    gcs.proxy.randomly(100, 0.3, seed=3)
    Bucket(gcs.address("p")).put(tmp_path, "1")
    assert gcs.proxy.faults == 100
    gcs.proxy.rule = lambda method, path: None
    assert gcs.names() == [f"p/1/{name}" for name in sorted(made)]
    bucket = gcs.client.bucket(gcs.bucket)
    assert {name: bucket.blob(f"p/1/{name}").download_as_bytes() for name in made} == made


def test_large_files_survive_faults(gcs, tmp_path):
    """Above 8 MB an upload is a session of several requests."""
    made = fill(tmp_path / "source", ["model.keras"], 20_000_000)
    bucket = Bucket(gcs.address("p"))
    gcs.proxy.randomly(6, 0.5, seed=4)
    bucket.put(tmp_path / "source", "1")
    assert (bucket.get("1") / "model.keras").read_bytes() == made["model.keras"]
    assert gcs.proxy.faults == 6


@pytest.mark.parametrize("fault", ["lost", "503", "reset", "truncate"])
def test_a_write_whose_answer_is_lost_counts_as_done(gcs, fault):
    bucket, broken = Bucket(gcs.address("p")), []

    def rule(method: str, path: str) -> str | None:
        if method == "POST" and not broken:
            broken.append(path)
            return fault
        return None

    gcs.proxy.rule = rule
    bucket.write("state", b"mine", ABSENT)
    assert broken
    assert bucket.read("state")[0] == b"mine"


def test_a_write_that_was_overtaken_while_its_answer_was_lost(gcs):
    bucket, broken = Bucket(gcs.address("p")), []

    def rule(method: str, path: str) -> str | None:
        if method == "POST" and not broken:
            broken.append(path)
            gcs.put({"p/state": b"theirs"})
            return "503"
        return None

    gcs.proxy.rule = rule
    with pytest.raises(ChangedError):
        bucket.write("state", b"mine", ABSENT)
    assert bucket.read("state")[0] == b"theirs"


def test_a_killed_download_goes_on_where_it_was(gcs, tmp_path):
    made = {f"{number:03d}": os.urandom(100) for number in range(600)}
    gcs.put({f"scans/{name}": data for name, data in made.items()})
    bucket, copy = Bucket(gcs.address("scans")), tmp_path / "copy"
    wanted = [(entry, copy / entry.name) for entry in bucket.entries()]
    for _, _ in zip(range(520), bucket.download(wanted), strict=False):
        pass  # the first batch of 512 is whole, and the second one has begun
    there = len(list(copy.iterdir()))
    assert 512 < there <= 600
    (copy / ".000.interrupted").write_bytes(b"ha")
    (copy / "007").unlink()
    gcs.proxy.requests.clear()
    assert {entry.name: file.read_bytes() for entry, file in bucket.download(wanted)} == made
    assert downloads(gcs) == 600 - there + 1


def test_what_is_in_the_cache_is_not_downloaded_again(gcs):
    gcs.put({f"p/1/{name}": name.encode() for name in "abc"})
    bucket = Bucket(gcs.address("p"))
    folder = bucket.get("1")
    assert downloads(gcs) == 3
    assert bucket.get("1") == folder
    (folder / "b").unlink()  # somebody tidies up
    assert (bucket.get("1") / "b").read_bytes() == b"b"
    assert downloads(gcs) == 4
    gcs.put({"p/1/b": b"new"})
    assert bucket.get("1") != folder
    assert (bucket.get("1") / "b").read_bytes() == b"new"
    assert left_over(folder.parent) == []


def test_the_cache_has_a_limit(gcs, monkeypatch):
    monkeypatch.setattr(storage.cache, "CACHE_LIMIT", 2500)
    gcs.put({f"p/{number}/model": bytes(1000) for number in range(5)} | {"p/table.csv": bytes(1000)})
    bucket = Bucket(gcs.address("p"))
    folders = [bucket.get(str(number)) for number in range(4)]
    assert all((folder / "model").is_file() for folder in folders), "in use, each of them"
    for age, folder in enumerate(folders):
        os.utime(folder, (time.time() - 10_000 * (9 - age),) * 2)
    assert bucket.get("0") == folders[0]
    storage.file(gcs.address("p/table.csv"))
    assert [folder.exists() for folder in folders] == [True, False, False, False], "the one that was used last stays"
    assert (bucket.get("1") / "model").stat().st_size == 1000, "and what is gone comes again"


def test_one_file_of_a_bucket(gcs, tmp_path):
    gcs.put({"tables/rois.csv": b"one", "tables/rois.csv.old": b"other"})
    address = gcs.address("tables/rois.csv")
    assert storage.file(address).read_bytes() == b"one"
    assert storage.file(address).name == "rois.csv"
    gcs.put({"tables/rois.csv": b"two"})
    assert storage.file(address).read_bytes() == b"two"
    assert storage.file(tmp_path / "rois.csv") == tmp_path / "rois.csv"
    with pytest.raises(InputError, match=gcs.address("tables/rois")):
        storage.file(gcs.address("tables/rois"))


# What changes while it is read.


def test_an_object_that_is_overwritten_after_the_listing_is_taken_as_it_is_now(gcs, tmp_path):
    gcs.put({"p/a": b"old" * 100, "p/b": b"b"})
    bucket = Bucket(gcs.address("p"))
    wanted = [(entry, tmp_path / entry.name) for entry in bucket.entries()]
    gcs.put({"p/a": b"new" * 50})
    done = {entry.name: entry for entry, _ in bucket.download(wanted)}
    assert (tmp_path / "a").read_bytes() == b"new" * 50
    assert (done["a"].size, done["a"].generation) == (150, bucket.read("a")[1])
    assert done["b"] == wanted[1][0]


def test_an_object_that_never_stands_still(gcs, tmp_path):
    gcs.put({"p/a": b"0"})
    bucket, count = Bucket(gcs.address("p")), []

    def rule(method: str, path: str) -> None:
        if "alt=media" in path:
            count.append(path)
            gcs.put({"p/a": str(len(count)).encode()})

    gcs.proxy.rule = rule
    assert [file for _, file in bucket.download([(bucket.entries()[0], tmp_path / "a")])] == [None]
    assert list(tmp_path.iterdir()) == []


def test_an_object_that_vanishes_after_the_listing(gcs, tmp_path):
    gcs.put({"p/a": b"a", "p/b": b"b", "p/1/c": b"c"})
    bucket = Bucket(gcs.address("p"))
    wanted = [(entry, tmp_path / entry.name) for entry in bucket.entries()]
    gcs.client.bucket(gcs.bucket).delete_blob("p/a")
    assert {entry.name: file for entry, file in bucket.download(wanted)} == {
        "a": None,
        "b": tmp_path / "b",
        "1/c": tmp_path / "1" / "c",
    }
    assert left_over(tmp_path) == []


def test_a_file_that_vanishes_while_a_folder_is_fetched(gcs):
    gcs.put({"p/1/a": b"a"})

    def rule(method: str, path: str) -> None:
        if "alt=media" in path:
            there = gcs.client.bucket(gcs.bucket)
            there.delete_blobs(list(there.list_blobs()))

    gcs.proxy.rule = rule
    with pytest.raises(InputError, match="/p/1/a"):
        Bucket(gcs.address("p")).get("1")


def test_a_bucket_that_vanishes_while_it_is_read(gcs, tmp_path):
    gcs.put({f"p/{number:03d}": b"x" for number in range(100)})
    bucket, guard, count = Bucket(gcs.address("p")), threading.Lock(), []

    def rule(method: str, path: str) -> None:
        with guard:
            count.append(path)
            if len(count) == 30:
                there = gcs.client.bucket(gcs.bucket)
                there.delete_blobs(list(there.list_blobs()))
                there.delete()

    gcs.proxy.rule = rule
    with pytest.raises(InputError, match=rf"bucket {gcs.bucket}\b"):
        fetch(bucket, tmp_path)
    assert 0 < len(list(tmp_path.iterdir())) < 100
    assert left_over(tmp_path) == []


# What only the user can mend.

CALLS = {
    "read": lambda bucket, folder: bucket.read("a"),
    "write": lambda bucket, folder: bucket.write("a", b"x"),
    "put": lambda bucket, folder: bucket.put(folder, "1"),
    "get": lambda bucket, folder: bucket.get("1"),
    "children": lambda bucket, folder: bucket.children(),
    "remove": lambda bucket, folder: bucket.remove("1"),
    "download": lambda bucket, folder: list(bucket.download([(storage.Entry("a", 1, "5"), folder / "b")])),
}


@pytest.fixture
def files(tmp_path) -> Path:
    fill(tmp_path / "files", ["a"])
    return tmp_path / "files"


@pytest.mark.parametrize("call", CALLS)
def test_an_unknown_bucket(gcs, files, call):
    with pytest.raises(InputError, match="gs://no-such-bucket/x"):
        CALLS[call](Bucket("gs://no-such-bucket/x"), files)


@pytest.mark.parametrize("status", ["401", "403"])
@pytest.mark.parametrize("call", CALLS)
def test_no_right(gcs, files, call, status):
    gcs.proxy.rule = lambda method, path: status
    message = r"roles/storage\.objectViewer" if status == "403" else "gcloud auth"
    with pytest.raises(InputError, match=message):
        CALLS[call](Bucket(gcs.address("p")), files)
    assert gcs.proxy.faults < 10, "asking again does not help"


@pytest.mark.parametrize("call", CALLS)
def test_no_credentials(files, call, monkeypatch):
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(files / "no.json"))
    with pytest.raises(InputError, match="GOOGLE_APPLICATION_CREDENTIALS"):
        CALLS[call](Bucket("gs://bucket/x"), files)


@pytest.mark.parametrize("fault", ["503", "429", "reset", "truncate"])
@pytest.mark.parametrize("call", CALLS)
def test_a_service_that_stays_away(gcs, files, call, fault, monkeypatch):
    gcs.put({"p/1/a": b"content"})
    monkeypatch.setattr(storage.client, "PATIENCE", 0.05)
    gcs.proxy.rule = lambda method, path: fault
    with pytest.raises(InputError, match=gcs.address("p")):
        CALLS[call](Bucket(gcs.address("p")), files)
    assert left_over(files) == []


def test_no_service_at_all(files, monkeypatch):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{probe.getsockname()[1]}")
    monkeypatch.setattr(storage.client, "PATIENCE", 0.05)
    monkeypatch.setattr(storage.client, "FIRST_PAUSE", 0.01)
    with pytest.raises(InputError, match="gs://bucket/x"):
        Bucket("gs://bucket/x").read("a")
