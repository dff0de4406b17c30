"""A folder and emulated buckets behind the same calls, and everything that a network does to a bucket's."""

import multiprocessing
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

from tests.support.s3 import variables
from thyroid import storage
from thyroid.errors import InputError
from thyroid.storage import ABSENT, Bucket, ChangedError, Folder, bucket_at

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


def fetch(there: Bucket, folder: Path) -> dict[str, Path | None]:
    """Everything in the bucket, downloaded."""
    wanted = [(entry, folder / entry.name) for entry in there.entries()]
    return {entry.name: file for entry, file in there.download(wanted)}


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


def test_the_hidden_is_removed_last_of_a_bucket(bucket):
    bucket.put({f"p/1/{name}": b"x" for name in ("a/b", "model.json", "z", ".claim")})
    bucket_at(bucket.address("p")).remove("1")
    assert bucket.deleted()[:4] == ["p/1/z", "p/1/model.json", "p/1/a/b", "p/1/.claim"]
    assert bucket.names() == []


# Addresses.


@pytest.mark.parametrize(
    "text",
    [
        "az://bucket/x",
        "gs:/bucket/x",
        "s3:/bucket/x",
        "https://storage.googleapis.com/b",
        Path("gs://b/x"),
        Path("s3://b"),
    ],
)
def test_another_scheme_is_refused(text):
    with pytest.raises(InputError, match="gs://bucket/prefix or s3://bucket/prefix"):
        storage.at(text)


@pytest.mark.parametrize("scheme", storage.SCHEMES)
def test_an_address_without_a_bucket_is_refused(scheme):
    with pytest.raises(InputError, match=f"give {scheme}bucket/prefix"):
        storage.at(scheme)


def test_places_below_another():
    assert storage.below("gs://bucket/a/", "b", "c") == "gs://bucket/a/b/c"
    assert [storage.is_bucket(place) for place in ("gs://b/x", "s3://b", "/s3://b", Path("b"))] == [
        True,
        True,
        False,
        False,
    ]
    assert storage.below(Path("/data"), "b") == "/data/b"


def test_prefixes_do_not_run_into_each_other(bucket):
    bucket.put({"scans/a": b"1", "scans2/b": b"2", "scans/": b"", "scans/sub/": b""})
    assert [entry.name for entry in bucket_at(bucket.address("scans")).entries()] == ["a"], (
        "what marks a folder is left out"
    )
    assert [entry.name for entry in bucket_at(bucket.address()).entries()] == ["scans/a", "scans2/b"]


def test_without_the_client_it_is_said(monkeypatch, capsys):
    from thyroid.registry import __main__ as commands

    monkeypatch.setitem(sys.modules, "google.cloud.storage", None)
    with pytest.raises(InputError, match="google-cloud-storage"):
        storage.at("gs://bucket/x")
    assert commands.main(["list", "--registry", "gs://bucket/x"]) == 2
    assert capsys.readouterr().err.startswith("error: gs://bucket/x/thyroid: google-cloud-storage")
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(InputError, match="pip install obstore"):
        storage.at("s3://bucket/x")


# Names that objects may have and files may not.


def test_names_that_files_may_not_have_are_listed_and_read(gcs):
    names = ["..", "../x", "a/../../b", "/absolute", "a//b", "line\nbreak"]
    gcs.put({f"p/{name}": name.encode() for name in names})
    there = bucket_at(gcs.address("p"))
    assert {entry.name for entry in there.entries()} == set(names)
    for name in names:
        assert there.read(name)[0] == name.encode()


def test_names_that_files_may_not_have_on_s3(s3, tmp_path, caplog):
    """Those that no address leads to are left out of a listing, and end nothing."""
    names = ["/absolute", "a//b", "a///b c/ü+%", "plain"]
    s3.put({f"p/{name}": name.encode() for name in (*names, "..", "../x", "a/../../b", "./y")})
    there = bucket_at(s3.address("p"))
    assert {entry.name for entry in there.entries()} == set(names)
    assert "p: 4 objects are left out, because their names have . or .." in caplog.text
    for name in names:
        assert there.read(name)[0] == name.encode()
        _, generation = there.read(name)
        there.write(name, b"new", generation)
        with pytest.raises(ChangedError):
            there.write(name, b"newer", generation)
    wanted = [(entry, tmp_path / str(number)) for number, entry in enumerate(there.entries())]
    assert [copy.read_bytes() for _, copy in there.download(wanted)] == [b"new"] * 4
    there.delete(names)
    assert there.entries() == []
    for call in (there.read, there._delete, lambda name: there.write(name, b"")):
        with pytest.raises(InputError, match=r"p/a/\.\./b: has \. or \.\. between slashes"):
            call("a/../b")


@pytest.mark.parametrize(("service", "name"), [("gcs", "a/../../evil"), ("gcs", "/etc/evil"), ("s3", "/etc/evil")])
def test_a_name_that_leaves_its_folder_is_refused(service, name, request):
    cloud = request.getfixturevalue(service)
    cloud.put({f"p/1/{name}": b"x"})
    with pytest.raises(InputError, match=re.escape(name)):
        bucket_at(cloud.address("p")).get("1")


# Many objects, and a network that is not reliable.


def test_all_pages_are_listed(bucket, monkeypatch):
    """Smaller ones than usual: the emulator takes the longer for an object the more it holds."""
    monkeypatch.setattr(storage.bucket, "PAGE", 200)
    names = [f"scans/{number:05d}.jpg" for number in range(1040)]
    bucket.put(dict.fromkeys(names, b"x"))
    found = bucket_at(bucket.address("scans")).entries()
    assert [f"scans/{entry.name}" for entry in found] == names
    assert {entry.size for entry in found} == {1}
    assert all(time.time() - 3600 < entry.modified < time.time() + 60 for entry in found)
    assert len([path for method, path in bucket.proxy.requests if method == "GET"]) >= 5


def test_what_folders_hold_is_not_listed_for_their_names(bucket, monkeypatch):
    monkeypatch.setattr(storage.bucket, "PAGE", 50)
    bucket.put({f"p/{folder}/{number:03d}": b"" for folder in ("1", "ü +%", ".hidden") for number in range(100)})
    bucket.put({"p/state": b"x", "p2/other": b"x", "p/": b""})
    there = bucket_at(bucket.address("p"))
    assert there.children() == ["1", "state", "ü +%"]
    assert len(bucket.proxy.requests) <= 2


@pytest.mark.slow
def test_a_thousand_objects_with_two_hundred_faults(bucket, tmp_path):
    dice = random.Random(0)
    made = {f"{number:04d}": dice.randbytes(dice.randrange(4000)) for number in range(1000)}
    bucket.put({f"scans/{name}": data for name, data in made.items()})
    bucket.proxy.randomly(200, 0.25, seed=2)
    files = fetch(bucket_at(bucket.address("scans")), tmp_path / "copy")
    assert bucket.proxy.faults == 200
    assert files.keys() == made.keys()
    assert {name: (tmp_path / "copy" / name).read_bytes() for name in made} == made
    assert left_over(tmp_path) == []


def test_uploads_with_faults_and_lost_answers(bucket, tmp_path):
    made = fill(tmp_path, [f"{number:03d}" for number in range(300)], 2000)
    bucket.proxy.randomly(100, 0.3, seed=3)
    bucket_at(bucket.address("p")).put(tmp_path, "1")
    assert bucket.proxy.faults == 100
    bucket.proxy.rule = lambda method, path: None
    assert bucket.names() == [f"p/1/{name}" for name in sorted(made)]
    assert {name: bucket.read(f"p/1/{name}") for name in made} == made


def test_large_files_survive_faults(bucket, tmp_path):
    """Above 8 MB an upload is a session of several requests."""
    made = fill(tmp_path / "source", ["model.keras"], 20_000_000)
    there = bucket_at(bucket.address("p"))
    bucket.proxy.randomly(6, 0.5, seed=4)
    there.put(tmp_path / "source", "1")
    assert (there.get("1") / "model.keras").read_bytes() == made["model.keras"]
    assert bucket.proxy.faults == 6


@pytest.mark.parametrize("fault", ["lost", "503", "reset", "truncate"])
def test_a_large_file_whose_last_answer_is_lost(s3, fault, tmp_path):
    made, broken = fill(tmp_path, ["model.keras"], 9_000_000), []

    def rule(method: str, path: str) -> str | None:
        if "uploadId=" in path and method == "POST" and not broken:
            broken.append(path)
            return fault
        return None

    s3.proxy.rule = rule
    bucket_at(s3.address("p")).put(tmp_path, "1")
    assert broken
    assert s3.read("p/1/model.keras") == made["model.keras"]


def test_a_local_file_that_is_not_there_is_named(bucket, tmp_path):
    (tmp_path / "empty").touch()
    there = bucket_at(bucket.address("p"))
    there.upload([(tmp_path / "empty", "empty")])
    assert there.read("empty")[0] == b""
    with pytest.raises(FileNotFoundError) as error:
        there.upload([(tmp_path / "empty", "b"), (tmp_path / "gone", "a")])
    assert error.value.filename == str(tmp_path / "gone")


@pytest.mark.parametrize("fault", ["lost", "503", "reset", "truncate"])
def test_a_write_whose_answer_is_lost_counts_as_done(bucket, fault):
    there, broken = bucket_at(bucket.address("p")), []
    there.require_preconditions()  # which writes, too

    def rule(method: str, path: str) -> str | None:
        if method == bucket.writes and not broken:
            broken.append(path)
            return fault
        return None

    bucket.proxy.rule = rule
    there.write("state", b"mine", ABSENT)
    assert broken
    assert there.read("state")[0] == b"mine"


def test_a_write_that_was_overtaken_while_its_answer_was_lost(bucket):
    there, broken = bucket_at(bucket.address("p")), []
    there.require_preconditions()  # which writes, too

    def rule(method: str, path: str) -> str | None:
        if method == bucket.writes and not broken:
            broken.append(path)
            bucket.put({"p/state": b"theirs"})
            return "503"
        return None

    bucket.proxy.rule = rule
    with pytest.raises(ChangedError):
        there.write("state", b"mine", ABSENT)
    assert there.read("state")[0] == b"theirs"


def test_a_bit_that_flips_on_the_way_is_noticed(bucket, tmp_path):
    bucket.put({"p/a": bytes(range(100))})
    there, flipped = bucket_at(bucket.address("p")), []

    def received(method, path, headers, body):
        if bucket.is_download(method, path) and len(flipped) < 2:
            flipped.append(path)
            body = body[:50] + bytes([body[50] ^ len(flipped)]) + body[51:]
        return headers, body

    wanted = [(there.entries()[0], tmp_path / "a")]
    bucket.proxy.received = received
    if bucket.scheme == "gs://":
        assert there.read("a")[0] == bytes(range(100))
        flipped.clear()
    assert [copy.read_bytes() for _, copy in there.download(wanted)] == [bytes(range(100))]
    (tmp_path / "a").write_bytes(bytes(100))
    assert [copy.read_bytes() for _, copy in there.download(wanted)] == [bytes(range(100))], "and on the disk, too"
    assert left_over(tmp_path) == []


def test_etags_that_are_no_md5(s3, tmp_path):
    """They look like it in a bucket that is encrypted by KMS. Two reads that agree tell it from a damage."""
    s3.put({f"p/{name}": name.encode() for name in "abcd"})

    def received(method, path, headers, body):
        return [(key, value[::-1] if key == "ETag" else value) for key, value in headers], body

    def sent(method, path, headers):
        return {key: value[::-1] if key == "if-match" else value for key, value in headers.items()}

    s3.proxy.received, s3.proxy.sent = received, sent
    there = bucket_at(s3.address("p"))
    wanted = [(storage.Entry(name, -1, ""), tmp_path / name) for name in "abcd"]
    assert [copy.read_text() for _, copy in there.download(wanted[:1])] == ["a"]
    assert len(s3.downloads()) == 2
    assert [copy.read_text() for _, copy in there.download(wanted[1:])] == ["b", "c", "d"]
    assert len(s3.downloads()) == 5, "once it is known"


def test_an_object_in_whatever_state_it_is(bucket, tmp_path):
    bucket.put({"p/a": b"a", "p/b": b"b" * 3_000_000})
    there = bucket_at(bucket.address("p"))
    wanted = [(storage.Entry(name, -1, ""), tmp_path / name) for name in ("a", "b", "gone")]
    found = {entry.name: copy for entry, copy in there.download(wanted)}
    assert found == {"a": tmp_path / "a", "b": tmp_path / "b", "gone": None}
    assert (tmp_path / "b").read_bytes() == b"b" * 3_000_000
    bucket.put({"p/a": b"new"})
    assert [copy.read_bytes() for _, copy in there.download(wanted[:1])] == [b"new"], "it may have changed"


def test_what_one_listing_misses_is_in_the_next(bucket, tmp_path):
    """A listing may be behind for a moment. Then it has less, and nothing is taken for damaged."""
    bucket.put({f"p/{name}": name.encode() for name in "abc"})
    there, missed = bucket_at(bucket.address("p")), []

    def received(method, path, headers, body):
        if not bucket.is_download(method, path) and not missed:
            missed.append(path)
            body = bucket.without(body, "p/b")
        return headers, body

    bucket.proxy.received = received
    assert {name: copy.read_text() for name, copy in fetch(there, tmp_path).items()} == {"a": "a", "c": "c"}
    assert there.read("b")[0] == b"b", "an object that is asked for by its name is there"
    assert {name: copy.read_text() for name, copy in fetch(there, tmp_path).items()} == {"a": "a", "b": "b", "c": "c"}
    assert len(bucket.downloads()) == 4


def test_a_killed_download_goes_on_where_it_was(bucket, tmp_path):
    made = {f"{number:03d}": os.urandom(100) for number in range(600)}
    bucket.put({f"scans/{name}": data for name, data in made.items()})
    there, copy = bucket_at(bucket.address("scans")), tmp_path / "copy"
    wanted = [(entry, copy / entry.name) for entry in there.entries()]
    for _, _ in zip(range(520), there.download(wanted), strict=False):
        pass  # the first batch of 512 is whole, and the second one has begun
    whole = len(list(copy.iterdir()))
    assert 512 < whole <= 600
    (copy / ".000.interrupted").write_bytes(b"ha")
    (copy / "007").unlink()
    bucket.proxy.requests.clear()
    assert {entry.name: file.read_bytes() for entry, file in there.download(wanted)} == made
    assert len(bucket.downloads()) == 600 - whole + 1


def test_what_is_in_the_cache_is_not_downloaded_again(bucket):
    bucket.put({f"p/1/{name}": name.encode() for name in "abc"})
    there = bucket_at(bucket.address("p"))
    folder = there.get("1")
    assert len(bucket.downloads()) == 3
    assert there.get("1") == folder
    (folder / "b").unlink()  # somebody tidies up
    assert (there.get("1") / "b").read_bytes() == b"b"
    assert len(bucket.downloads()) == 4
    bucket.put({"p/1/b": b"new"})
    assert there.get("1") != folder
    assert (there.get("1") / "b").read_bytes() == b"new"
    assert left_over(folder.parent) == []


def test_the_cache_has_a_limit(bucket, monkeypatch):
    monkeypatch.setattr(storage.cache, "CACHE_LIMIT", 2500)
    bucket.put({f"p/{number}/model": bytes(1000) for number in range(5)} | {"p/table.csv": bytes(1000)})
    there = bucket_at(bucket.address("p"))
    folders = [there.get(str(number)) for number in range(4)]
    assert all((folder / "model").is_file() for folder in folders), "in use, each of them"
    for age, folder in enumerate(folders):
        os.utime(folder, (time.time() - 10_000 * (9 - age),) * 2)
    assert there.get("0") == folders[0]
    storage.file(bucket.address("p/table.csv"))
    assert [folder.exists() for folder in folders] == [True, False, False, False], "the one that was used last stays"
    assert (there.get("1") / "model").stat().st_size == 1000, "and what is gone comes again"


def test_one_file_of_a_bucket(bucket, tmp_path):
    bucket.put({"tables/rois.csv": b"one", "tables/rois.csv.old": b"other"})
    address = bucket.address("tables/rois.csv")
    assert storage.file(address).read_bytes() == b"one"
    assert storage.file(address).name == "rois.csv"
    bucket.put({"tables/rois.csv": b"two"})
    assert storage.file(address).read_bytes() == b"two"
    assert storage.file(tmp_path / "rois.csv") == tmp_path / "rois.csv"
    with pytest.raises(InputError, match=bucket.address("tables/rois")):
        storage.file(bucket.address("tables/rois"))


# What a service that speaks S3 may not keep.

PRECONDITIONS = ("if-none-match", "if-match")


@pytest.mark.parametrize("header", PRECONDITIONS)
def test_a_service_that_ignores_preconditions_is_refused(s3, header):
    s3.proxy.sent = lambda method, path, headers: {key: value for key, value in headers.items() if key != header}
    there = bucket_at(s3.address("p"))
    with pytest.raises(InputError, match=rf"(?i)p: its service does not keep a promise .*{header}.*Amazon S3"):
        there.require_preconditions()
    with pytest.raises(InputError, match="promise"):
        there.write("aliases.json", b"{}", ABSENT)
    assert s3.names() == [], "nothing of it is left behind"
    there.write("table.csv", b"x")  # a file of one writer's needs no promise
    s3.proxy.sent = lambda method, path, headers: headers
    there.write("aliases.json", b"{}", ABSENT)


@pytest.mark.parametrize("header", PRECONDITIONS)
def test_a_service_that_compares_before_it_writes_is_refused(s3, header):
    """It keeps its promise to one writer, and breaks it to two at once."""
    let_through = []

    def sent(method, path, headers):
        if header in headers and len(let_through) < 2:
            let_through.append(path)
            headers = {key: value for key, value in headers.items() if key != header}
        return headers

    s3.proxy.sent = sent
    with pytest.raises(InputError, match=rf"(?i)promise .* of writers with {header}.* at once, exactly one succeeds"):
        bucket_at(s3.address("p")).write("aliases.json", b"{}", ABSENT)
    assert s3.names() == []


def test_the_promises_are_tried_once_for_each_bucket(s3):
    for prefix in ("p", "q", "q/r"):
        bucket_at(s3.address(prefix)).write("state", b"x", ABSENT)
    assert sum(".preconditions" in path and method == "DELETE" for method, path in s3.proxy.requests) == 2


def test_no_right_to_delete_is_said_before_the_first_write(s3):
    s3.proxy.rule = lambda method, path: "403" if method == "DELETE" else None
    with pytest.raises(InputError, match="s3:DeleteObject"):
        bucket_at(s3.address("p")).write("aliases.json", b"{}", ABSENT)


@pytest.mark.parametrize("status", ["Enabled", "Suspended"])
def test_a_bucket_that_keeps_versions(s3, status, tmp_path):
    namespace = "http://s3.amazonaws.com/doc/2006-03-01/"
    s3.ask(
        "PUT",
        "",
        f'<VersioningConfiguration xmlns="{namespace}"><Status>{status}</Status></VersioningConfiguration>'.encode(),
        "?versioning",
    )
    there = bucket_at(s3.address("p"))
    assert there.keeps_removed() is (status == "Enabled")
    there.write("state", b"one", ABSENT)
    _, first = there.read("state")
    there.write("state", b"two", first)
    with pytest.raises(ChangedError):
        there.write("state", b"three", first)
    (entry,) = there.entries()
    assert [copy.read_bytes() for _, copy in there.download([(entry, tmp_path / "a")])] == [b"two"]
    there.remove("state")
    assert there.read("state") == (b"", ABSENT)
    assert there.entries() == []
    there.write("state", b"again", ABSENT)
    assert there.read("state")[0] == b"again"


def test_whether_removed_objects_stay_is_not_known_without_the_right(s3):
    there = bucket_at(s3.address("p"))
    assert there.keeps_removed() is False
    s3.proxy.rule = lambda method, path: "403" if "versioning" in path else None
    assert there.keeps_removed() is None


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_a_forked_process_is_told_to_be_spawned(s3, capfd):
    """It would wait for ever for threads that it does not have."""
    bucket_at(s3.address("p")).write("a", b"a")
    for call in (lambda there: there.entries(), lambda there: there.read("a")):
        child = multiprocessing.get_context("fork").Process(target=call, args=(bucket_at(s3.address("p")),))
        child.start()
        child.join(60)
        assert child.exitcode == 1
        assert "start it by spawn or forkserver" in capfd.readouterr().err


def test_what_a_service_says_of_a_request_is_not_repeated(s3):
    """It quotes keys, accounts and signatures."""
    answer = b"<Error><Code>SignatureDoesNotMatch</Code><AWSAccessKeyId>account</AWSAccessKeyId><Key>p/a</Key></Error>"
    s3.put({"p/a": b"a"})
    s3.proxy.rule = lambda method, path: "403"
    s3.proxy.injected = answer
    for call in (lambda there: there.read("a"), lambda there: there.entries()):
        with pytest.raises(InputError) as error:
            call(bucket_at(s3.address("p")))
        assert "no permission (403 SignatureDoesNotMatch)" in str(error.value)
        assert "p/a" not in str(error.value)
        assert "account<" not in str(error.value)


# What changes while it is read.


def test_an_object_that_is_overwritten_after_the_listing_is_taken_as_it_is_now(bucket, tmp_path):
    bucket.put({"p/a": b"old" * 100, "p/b": b"b"})
    there = bucket_at(bucket.address("p"))
    wanted = [(entry, tmp_path / entry.name) for entry in there.entries()]
    bucket.put({"p/a": b"new" * 50})
    done = {entry.name: entry for entry, _ in there.download(wanted)}
    assert (tmp_path / "a").read_bytes() == b"new" * 50
    assert (done["a"].size, done["a"].generation) == (150, there.read("a")[1])
    assert done["b"] == wanted[1][0]


def test_an_object_that_never_stands_still(bucket, tmp_path):
    bucket.put({"p/a": b"0"})
    there, count = bucket_at(bucket.address("p")), []

    def rule(method: str, path: str) -> None:
        if bucket.is_download(method, path):
            count.append(path)
            bucket.put({"p/a": str(len(count)).encode()})

    bucket.proxy.rule = rule
    assert [file for _, file in there.download([(there.entries()[0], tmp_path / "a")])] == [None]
    assert list(tmp_path.iterdir()) == []


def test_an_object_that_vanishes_after_the_listing(bucket, tmp_path):
    bucket.put({"p/a": b"a", "p/b": b"b", "p/1/c": b"c"})
    there = bucket_at(bucket.address("p"))
    wanted = [(entry, tmp_path / entry.name) for entry in there.entries()]
    bucket.delete("p/a")
    assert {entry.name: file for entry, file in there.download(wanted)} == {
        "a": None,
        "b": tmp_path / "b",
        "1/c": tmp_path / "1" / "c",
    }
    assert left_over(tmp_path) == []


def test_a_file_that_vanishes_while_a_folder_is_fetched(bucket):
    bucket.put({"p/1/a": b"a"})

    def rule(method: str, path: str) -> None:
        if bucket.is_download(method, path):
            bucket.delete(*bucket.names())

    bucket.proxy.rule = rule
    with pytest.raises(InputError, match="/p/1/a"):
        bucket_at(bucket.address("p")).get("1")


def test_a_bucket_that_vanishes_while_it_is_read(bucket, tmp_path):
    bucket.put({f"p/{number:03d}": b"x" for number in range(100)})
    there, guard, count = bucket_at(bucket.address("p")), threading.Lock(), []

    def rule(method: str, path: str) -> None:
        with guard:
            count.append(path)
            if len(count) == 30:
                bucket.delete()

    bucket.proxy.rule = rule
    with pytest.raises(InputError, match=rf"bucket {bucket.bucket}\b"):
        fetch(there, tmp_path)
    assert 0 < len(list(tmp_path.iterdir())) < 100
    assert left_over(tmp_path) == []


# What only the user can mend.

CALLS = {
    "read": lambda there, folder: there.read("a"),
    "write": lambda there, folder: there.write("a", b"x"),
    "put": lambda there, folder: there.put(folder, "1"),
    "get": lambda there, folder: there.get("1"),
    "children": lambda there, folder: there.children(),
    "remove": lambda there, folder: there.remove("1"),
    "download": lambda there, folder: list(there.download([(storage.Entry("a", 1, "5"), folder / "b")])),
}


@pytest.fixture
def files(tmp_path) -> Path:
    fill(tmp_path / "files", ["a"])
    return tmp_path / "files"


@pytest.mark.parametrize("call", CALLS)
def test_an_unknown_bucket(bucket, files, call):
    with pytest.raises(InputError, match=f"{bucket.scheme}no-such-bucket/x: there is no bucket no-such-bucket"):
        CALLS[call](bucket_at(f"{bucket.scheme}no-such-bucket/x"), files)


@pytest.mark.parametrize("status", ["401", "403"])
@pytest.mark.parametrize("call", CALLS)
def test_no_right(bucket, files, call, status):
    bucket.proxy.rule = lambda method, path: status
    message = rf"no permission \({status}.*AWS_ACCESS_KEY_ID the rights s3:ListBucket"
    if bucket.scheme == "gs://":
        message = r"roles/storage\.objectViewer" if status == "403" else "gcloud auth"
    with pytest.raises(InputError, match=message):
        CALLS[call](bucket_at(bucket.address("p")), files)
    assert bucket.proxy.faults < 10, "asking again does not help"


@pytest.mark.parametrize("call", CALLS)
def test_no_credentials(files, call, monkeypatch):
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(files / "no.json"))
    with pytest.raises(InputError, match="GOOGLE_APPLICATION_CREDENTIALS"):
        CALLS[call](bucket_at("gs://bucket/x"), files)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(InputError, match=r"s3://bucket.*: no credentials; set AWS_ACCESS_KEY_ID"):
        CALLS[call](bucket_at("s3://bucket/x"), files)


@pytest.mark.parametrize("call", CALLS)
def test_an_endpoint_that_is_no_address(files, call, monkeypatch):
    for variable, value in variables("minio:9000").items():
        monkeypatch.setenv(variable, value)
    with pytest.raises(InputError, match="AWS_ENDPOINT_URL: give an address such as https"):
        CALLS[call](bucket_at("s3://bucket/x"), files)


@pytest.mark.parametrize("fault", ["503", "429", "reset", "truncate"])
@pytest.mark.parametrize("call", CALLS)
def test_a_service_that_stays_away(bucket, files, call, fault, monkeypatch):
    if (bucket.scheme, fault) == ("s3://", "truncate") and call in ("write", "put", "remove"):
        pytest.skip("the answers to these have no body")
    bucket.put({"p/1/a": b"content", "p/a": b"content"})
    monkeypatch.setattr(storage.client, "PATIENCE", 0.05)
    bucket.proxy.rule = lambda method, path: fault
    with pytest.raises(InputError, match=bucket.address("p")):
        CALLS[call](bucket_at(bucket.address("p")), files)
    assert left_over(files) == []


@pytest.mark.parametrize("scheme", storage.SCHEMES)
def test_no_service_at_all(scheme, files, monkeypatch):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{probe.getsockname()[1]}"
    for variable, value in (variables(address) | {"STORAGE_EMULATOR_HOST": address}).items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setattr(storage.client, "PATIENCE", 0.05)
    monkeypatch.setattr(storage.client, "FIRST_PAUSE", 0.01)
    with pytest.raises(InputError, match=f"{scheme}bucket/x: .* failed"):
        bucket_at(f"{scheme}bucket/x").read("a")
    with pytest.raises(InputError, match=f"{scheme}bucket/x: .* failed"):
        bucket_at(f"{scheme}bucket/x").entries()
