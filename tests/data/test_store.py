"""A store in a bucket does what a store in a folder does."""

import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from tests.conftest import write_scan
from tests.support import nights
from tests.support.clouds import Cloud
from tests.support.nights import SPAWN
from thyroid import crop, storage
from thyroid.crop import CropOptions
from thyroid.data import plots, store
from thyroid.data.store import Store, Version
from thyroid.data.store.names import starts_of
from thyroid.data.version import DataVersion
from thyroid.errors import InputError
from thyroid.ingest import ingest
from thyroid.ingest.options import IngestOptions
from thyroid.storage import lease, mirror

pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")  # see test_storage.py


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Without pictures."""
    monkeypatch.setattr(plots, "data_statistics", lambda good, regions, path, classes: path.touch())
    monkeypatch.setattr(plots, "crop_sheet", lambda scans, regions, folder, path: path.touch())


def scans_of(patients: range) -> dict[str, bytes]:
    found = {}
    for patient in patients:
        file = f"{'B' if patient % 2 else 'M'}_{patient:03d}-0001-1.0.jpg"
        found[file] = write_scan(Path(os.environ["XDG_CACHE_HOME"], file), patient).read_bytes()
    return found


def night(scans: str, place: str, output: Path) -> tuple[DataVersion, DataVersion]:
    ingested = ingest.ingest(IngestOptions(scans, store=place), output / "in")
    cropped = crop.crop(ingested.folder, output / "out", CropOptions(["normal"], place))
    return DataVersion.read(ingested.folder), DataVersion.read(cropped.folder)


def wiped(monkeypatch, tmp_path: Path, name: str) -> None:
    """Another node, with an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name))


def test_a_bucket_has_what_a_folder_has(bucket: Cloud, tmp_path, monkeypatch):
    bucket.put({f"scans/{name}": data for name, data in scans_of(range(1, 13)).items()})
    scans = bucket.address("scans")
    expected = night(scans, str(tmp_path / "store"), tmp_path / "folder")
    found = night(scans, bucket.address("store"), tmp_path / "bucket")
    for one, other in zip(found, expected, strict=True):
        assert (one.digest, one.fingerprint) == (other.digest, other.fingerprint)
        pd.testing.assert_frame_equal(one.scans.drop(columns="local_path"), other.scans.drop(columns="local_path"))
        assert one.scans["local_path"].str.startswith(bucket.address("store/scans/")).all()
    assert found[1].facts.images == bucket.address("store/crops")

    wiped(monkeypatch, tmp_path, "other")
    data = found[1]
    assert (data.pixels(data.examples("normal"), 8) == expected[1].pixels(expected[1].examples("normal"), 8)).all()
    monkeypatch.setattr(ingest.examine, "_examine_file", None)
    again = night(scans, bucket.address("store"), tmp_path / "again")
    assert [one.digest for one in again] == [one.digest for one in found]


def test_only_new_scans_are_read_and_the_others_are_not_fetched(bucket: Cloud, tmp_path, monkeypatch):
    objects = scans_of(range(1, 13))
    bucket.put({f"scans/{name}": data for name, data in objects.items()})
    place = bucket.address("store")
    night(bucket.address("scans"), place, tmp_path / "first")
    wiped(monkeypatch, tmp_path, "other")
    bucket.put({f"scans/{name}": data for name, data in scans_of(range(20, 22)).items()})
    bucket.proxy.requests.clear()
    _, cropped = night(bucket.address("scans"), place, tmp_path / "second")
    assert (cropped.facts.looked_at, cropped.facts.cropped) == (2, 2)
    read = bucket.downloads()
    assert sum("store/scans" in path or "store%2Fscans" in path for path in read) <= 2
    assert not [path for path in read if "store/crops/" in path or "store%2Fcrops%2F" in path]


def test_a_night_without_news_costs_a_few_requests(bucket: Cloud, tmp_path, monkeypatch):
    bucket.put({f"scans/{name}": data for name, data in scans_of(range(1, 13)).items()})
    options = IngestOptions(bucket.address("scans"), store=bucket.address("store"))
    ingest.ingest(options, tmp_path / "first")
    bucket.proxy.requests.clear()
    before = set(bucket.names())
    ingest.ingest(options, tmp_path / "second")
    asked = bucket.proxy.requests
    # the index, and the listings of the scans and, by their first digit, of the copies; the rest is in the cache
    assert len(asked) == 2 + 16, asked
    assert {method for method, _ in asked} == {"GET"}
    assert set(bucket.names()) == before


def test_a_night_without_news_does_not_wait(bucket: Cloud, tmp_path):
    bucket.put({f"scans/{name}": data for name, data in scans_of(range(1, 13)).items()})
    options = IngestOptions(bucket.address("scans"), store=bucket.address("store"))
    first = ingest.ingest(options, tmp_path / "first")
    with lease.held(storage.bucket_at(options.store), "lease"):  # as another machine's run
        assert ingest.ingest(options, tmp_path / "second").facts == first.facts


def test_a_version_that_cannot_be_taken_without_the_lock_is_tried_with_it(bucket: Cloud, tmp_path, monkeypatch):
    bucket.put({f"scans/{name}": data for name, data in scans_of(range(1, 13)).items()})
    options = IngestOptions(bucket.address("scans"), store=bucket.address("store"))
    first, takes, take = ingest.ingest(options, tmp_path / "first"), [], Version.take

    def fails_once(self: Version, output: Path) -> None:
        takes.append(output)
        if len(takes) == 1:
            raise InputError("another run is removing it")
        take(self, output)

    monkeypatch.setattr(Version, "take", fails_once)
    assert ingest.ingest(options, tmp_path / "second").facts == first.facts
    assert len(takes) == 2


@pytest.mark.parametrize("how", ["killed", "failed"])
def test_stopped_between_the_uploads_and_the_commit(bucket: Cloud, tmp_path, monkeypatch, how):
    bucket.put({f"scans/{name}": data for name, data in scans_of(range(1, 13)).items()})
    options = IngestOptions(bucket.address("scans"), store=bucket.address("store"))
    for name, seconds in (("EXPIRY", 1.0), ("RENEWAL", 0.2), ("POLL", 0.1)):
        monkeypatch.setattr(lease, name, seconds)
    place = Store(options.store)
    with place.lock():
        pass
    old = bucket.read("store/index.json")
    process = SPAWN.Process(target=nights.stopped, args=(options, tmp_path / "out", tmp_path / "cache", how))
    process.start()
    process.join()
    assert process.exitcode == (-signal.SIGKILL if how == "killed" else 1)
    assert bucket.read("store/index.json") == old
    assert len([name for name in bucket.names() if name.startswith("store/files/")]) > 1  # of no version
    place.pull()
    assert place.versions() == []
    done = ingest.ingest(options, tmp_path / "again")
    assert (done.facts.scans, done.facts.looked_at) == (12, 12)
    place.pull()
    assert [version.name for version in place.versions()] == ["000001"]


def test_two_nights_at_once_follow_each_other(bucket: Cloud, tmp_path, monkeypatch):
    bucket.put({f"scans/{name}": data for name, data in scans_of(range(1, 13)).items()})
    monkeypatch.setattr(lease, "POLL", 0.05)
    options = IngestOptions(bucket.address("scans"), store=bucket.address("store"))
    both = [
        SPAWN.Process(target=nights.elsewhere, args=(options, tmp_path / f"out-{number}", tmp_path / f"cache-{number}"))
        for number in range(2)
    ]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    digests = {DataVersion.read(tmp_path / f"out-{number}").digest for number in range(2)}
    assert len(digests) == 1
    place = Store(options.store)
    place.pull()
    assert [version.name for version in place.versions()] == ["000001"]  # the second found nothing new


def test_a_run_that_lost_the_store_changes_nothing(bucket: Cloud, tmp_path, monkeypatch):
    place = Store(bucket.address("store"))
    with place.lock():
        (place.folder / "note").write_text("first")

    def overtaken() -> None:
        with place.lock():
            (place.folder / "note").write_text("second")
            index = bucket.read("store/index.json")
            bucket.put({"store/index.json": index.replace(b'"files"', b' "files"')})

    with pytest.raises(InputError, match="another run has changed the store"):
        overtaken()
    place.pull()
    assert (place.folder / "note").read_text() == "first"


def test_what_another_machine_has_written_is_not_undone(bucket: Cloud, tmp_path, monkeypatch):
    place = Store(bucket.address("store"))
    row = pd.DataFrame({"key": ["a"], "file": ["normal/a.jpg"]})
    wiped(monkeypatch, tmp_path, "one")
    one = Store(place.address)
    one.add_cropped(row)
    with one.lock():
        version = one.folder / store.VERSIONS / "000001"
        version.mkdir(parents=True)
        for name in ("data.json", "scans.parquet"):
            (version / name).write_text("with the patient")
    wiped(monkeypatch, tmp_path, "other")
    other = Store(place.address)
    other.add_cropped(row.assign(key="b"))
    with other.lock():
        (other.folder / store.VERSIONS / "000001" / "scans.parquet").write_text("without the patient")
    wiped(monkeypatch, tmp_path, "one")
    one.add_cropped(row.assign(key="c"))
    assert sorted(one.all_cropped()["key"]) == ["a", "b", "c"]
    one.pull()
    assert (version / "scans.parquet").read_text() == "without the patient"


def test_tables_that_this_machine_has_written_are_not_downloaded(bucket: Cloud, scans, tmp_path):
    options = IngestOptions(scans, store=bucket.address("store"))
    ingest.ingest(options, tmp_path / "first")
    bucket.proxy.requests.clear()
    ingest.ingest(replace(options, seed=1), tmp_path / "second")
    assert not [path for path in bucket.downloads() if "files" in path]


def test_a_store_beside_another_leaves_its_files_alone(bucket: Cloud):
    outer, inner = Store(bucket.address()), Store(bucket.address("inner"))
    with inner.lock():
        (inner.folder / "note").write_text("inner")
        with outer.lock():
            (outer.folder / "note").write_text("outer")
    named = json.loads(bucket.read("index.json"))["files"]
    assert set(named) == {"note", "sealed"}
    inner.pull()
    assert (inner.folder / "note").read_text() == "inner"


def test_a_cache_that_is_emptied_during_a_run_removes_nothing(bucket: Cloud):
    place = Store(bucket.address("store"))
    with place.lock():
        (place.folder / "note").write_text("first")
    index = bucket.read("store/index.json")
    with pytest.raises(InputError, match="removed from the cache"), place.lock():
        shutil.rmtree(place.folder)
    assert bucket.read("store/index.json") == index
    place.pull()
    assert (place.folder / "note").read_text() == "first"


def test_whoever_was_overtaken_right_after_a_commit_cannot_commit_again(bucket: Cloud, monkeypatch):
    place = Store(bucket.address("store"))
    with place.lock():
        pass
    write = type(storage.bucket_at(place.address)).write

    def overtaken(self: storage.Bucket, name: str, data: bytes, generation: str | None = None) -> None:
        write(self, name, data, generation)
        if name == "index.json":
            write(self, name, data.replace(b'"files"', b' "files"'))

    with pytest.raises(InputError, match="another run has changed the store"), place.lock():  # noqa: PT012
        (place.folder / "note").write_text("first")
        with monkeypatch.context() as patch:
            patch.setattr(type(storage.bucket_at(place.address)), "write", overtaken)
            place.commit()
        (place.folder / "note").write_text("second")


def test_without_the_lock_nothing_counts_as_committed(bucket: Cloud, monkeypatch):
    place = Store(bucket.address("store"))
    with place.lock():
        pass
    with place.lock(), monkeypatch.context() as patch:
        patch.setattr(lease, "EXPIRY", -1.0)
        with pytest.raises(InputError, match="lost the lock"):
            place.commit()  # after which retention removes objects, whether the index has changed or not


@pytest.mark.parametrize("name", ["../note", "versions/../../note", "/note", "versions/000001/../x", "a\0b", "lease"])
def test_an_index_that_names_other_places_is_damaged(bucket: Cloud, name):
    place = Store(bucket.address("store"))
    with place.lock():
        (place.folder / "note").write_text("first")
    index = json.loads(bucket.read("store/index.json"))
    index["files"][name] = index["files"].pop("note")
    bucket.put({"store/index.json": json.dumps(index).encode()})
    with pytest.raises(InputError, match="is no file of a store"):
        place.pull()


@pytest.mark.parametrize(
    ("content", "told"),
    [(b"{", "index.json: damaged"), (b'{"files": {}}', "index.json: damaged"), (None, "index.json: missing")],
)
def test_a_damaged_index_is_named_with_its_cure(bucket: Cloud, tmp_path, content, told):
    place = Store(bucket.address("store"))
    with place.lock():
        (place.folder / "note").write_text("first")
    bucket.delete("store/index.json")
    if content is not None:
        bucket.put({"store/index.json": content})
    with pytest.raises(InputError, match=told), place.lock():
        pass
    with pytest.raises(InputError, match="restore it"):
        place.pull()


@pytest.mark.parametrize("harm", ["damaged", "missing"])
def test_an_image_that_a_reader_missed_is_made_again(bucket: Cloud, tmp_path, monkeypatch, harm):
    bucket.put({f"scans/{name}": data for name, data in scans_of(range(1, 13)).items()})
    place = bucket.address("store")
    _, data = night(bucket.address("scans"), place, tmp_path / "first")
    file = mirror.address(data.examples("normal")["file"].iloc[0]).partition("/store/")[2]
    if harm == "damaged":
        bucket.put({f"store/{file}": b"damaged"})
    else:
        storage.bucket_at(place).delete([file])
    wiped(monkeypatch, tmp_path, "other")
    with pytest.raises(InputError, match="crop again"):
        data.pixels(data.examples("normal"), 8)
    for made in (1, 0):
        assert Store(place).is_doubted() == bool(made)
        cropped = crop.crop(tmp_path / "first" / "in", tmp_path / "again", CropOptions(["normal"], place))
        assert cropped.facts.cropped == made
        again = DataVersion.read(cropped.folder)
        assert again.pixels(again.examples("normal"), 8).shape[0] == 12


def test_images_that_nobody_missed_are_not_listed(bucket: Cloud, tmp_path, monkeypatch):
    bucket.put({f"scans/{name}": data for name, data in scans_of(range(1, 13)).items()})
    place = bucket.address("store")
    night(bucket.address("scans"), place, tmp_path / "first")
    bucket.put({f"scans/{name}": data for name, data in scans_of(range(13, 15)).items()})
    asked = []
    names = Store.names
    monkeypatch.setattr(Store, "names", lambda self, *what: asked.append(what[0]) or names(self, *what))
    _, second = night(bucket.address("scans"), place, tmp_path / "second")
    assert store.CROPS not in asked
    assert second.facts.cropped == 2


def test_a_listing_that_misses_an_image_makes_it_again(bucket: Cloud, tmp_path, monkeypatch):
    bucket.put({f"scans/{name}": data for name, data in scans_of(range(1, 13)).items()})
    place = bucket.address("store")
    _, first = night(bucket.address("scans"), place, tmp_path / "first")
    bucket.put({f"store/{mirror.DOUBTED}": b""})
    names = Store.names
    with monkeypatch.context() as patch:
        patch.setattr(Store, "names", lambda self, *what: set(sorted(names(self, *what))[1:]))
        _, second = night(bucket.address("scans"), place, tmp_path / "second")
    assert second.digest == first.digest
    assert len(Store(place).cropped()) == len(first.examples("normal"))


def test_a_listing_in_parts_is_the_whole_one(bucket: Cloud, monkeypatch):
    names = [f"{domain}/{'BM'[n % 2]}_{n:05d}-1-a.jpg" for domain in ("normal", "cropped") for n in range(30)]
    bucket.put({f"store/crops/{name}": b"" for name in [*names, "normal/other.jpg"]})
    assert starts_of(names) == [""]
    monkeypatch.setattr("thyroid.data.store.names.PAGE", 10)
    starts = starts_of(names)
    assert 16 <= len(starts) <= 100
    assert Store(bucket.address("store")).names(store.CROPS, starts) == set(names)
    assert starts_of(["a"] * 11) == ["a"]


def test_pieces_need_no_lock_and_are_dropped_by_name(place: str, capsys):
    one, other = Store(place), Store(place)
    rows = pd.DataFrame({"path": ["a", "b"]})
    with one.lock():
        other.add_piece(store.EXAMINED_PIECES, rows)
        other.add_piece(store.EXAMINED_PIECES, rows.assign(path="c")[:1])
        other.add_piece(store.CROPPED_PIECES, rows)
    found = one.pieces(store.EXAMINED_PIECES)
    assert sorted(found["path"]) == ["a", "b", "c"]
    one.drop_pieces(set(found.loc[found["path"] == "c", "piece"]))
    assert sorted(one.pieces(store.EXAMINED_PIECES)["path"]) == ["a", "b"]
    assert len(one.pieces(store.CROPPED_PIECES)) == 2


def test_a_damaged_piece_is_skipped(bucket: Cloud, capsys):
    place = Store(bucket.address("store"))
    place.add_piece(store.EXAMINED_PIECES, pd.DataFrame({"path": ["a"]}))
    place.add_piece(store.EXAMINED_PIECES, pd.DataFrame({"path": ["b"]}))
    damaged = next(name for name in bucket.names() if "pieces/" in name)
    bucket.put({damaged: b"PAR1"})
    assert len(place.pieces(store.EXAMINED_PIECES)) == 1
    assert f"{damaged}: damaged; skipped" in capsys.readouterr().out


def test_a_bucket_that_keeps_pieces_ends_no_run(bucket: Cloud, monkeypatch, capsys):
    place = Store(bucket.address("store"))
    place.add_piece(store.CROPPED_PIECES, pd.DataFrame({"key": ["a"], "file": ["normal/a.jpg"]}))
    monkeypatch.setattr(storage.client, "PATIENCE", 0.1)
    bucket.proxy.rule = lambda method, path: "403" if method == "DELETE" and "pieces" in path else None
    place.add_cropped(pd.DataFrame({"key": ["b"], "file": ["normal/b.jpg"]}))
    assert "1 pieces that were taken up remain" in capsys.readouterr().out
    assert sorted(place.all_cropped()["key"]) == ["a", "b"]


def test_a_version_whose_objects_are_gone_is_skipped_by_name(bucket: Cloud, tmp_path, monkeypatch, capsys):
    bucket.put({f"scans/{name}": data for name, data in scans_of(range(1, 13)).items()})
    options = IngestOptions(bucket.address("scans"), store=bucket.address("store"))
    ingest.ingest(options, tmp_path / "first")
    named = json.loads(bucket.read("store/index.json"))["files"]
    bucket.delete(f"store/files/{named['versions/000001/data.json']['sha256']}")
    wiped(monkeypatch, tmp_path, "other")
    ingest.ingest(replace(options, seed=1), tmp_path / "second")  # whose data.json is another
    assert "are missing, such as versions/000001/data.json" in capsys.readouterr().out
    place = Store(options.store)
    place.pull()
    assert [version.name for version in place.versions()] == ["000002"]
    assert json.loads(bucket.read("store/index.json"))["files"].items() > named.items()


def test_a_damaged_table_of_crops_is_made_again_unless_the_bucket_fails(bucket: Cloud, tmp_path, monkeypatch, capsys):
    bucket.put({f"scans/{name}": data for name, data in scans_of(range(1, 13)).items()})
    place = bucket.address("store")
    night(bucket.address("scans"), place, tmp_path / "first")
    named = json.loads(bucket.read("store/index.json"))["files"]
    wiped(monkeypatch, tmp_path, "other")
    monkeypatch.setattr(storage.client, "PATIENCE", 0.1)
    bucket.proxy.rule = lambda method, path: "503" if "index.json" in path else None
    with pytest.raises(InputError):
        Store(place).cropped()
    bucket.proxy.rule = lambda method, path: None
    bucket.put({f"store/files/{named['crops.parquet']['sha256']}": b"damaged"})
    cropped = crop.crop(tmp_path / "first" / "in", tmp_path / "again", CropOptions(["normal"], place))
    assert "damaged" in capsys.readouterr().out
    assert cropped.facts.cropped == 12
    assert len(Store(place).cropped()) == 12


def test_a_store_in_no_bucket_is_named(bucket: Cloud, scans, tmp_path):
    place = f"{bucket.scheme}no-such-bucket/store"
    with pytest.raises(InputError, match="no bucket no-such-bucket"):
        ingest.ingest(IngestOptions(scans, store=place), tmp_path / "in")
    ingest.ingest(IngestOptions(scans), tmp_path / "in")
    with pytest.raises(InputError, match="no bucket no-such-bucket"):
        crop.crop(tmp_path / "in", tmp_path / "out", CropOptions(store=place))


def test_local_scans_with_a_store_in_a_bucket(bucket: Cloud, scans, tmp_path):
    _, data = night(str(scans), bucket.address("store"), tmp_path)
    assert data.scans["local_path"].tolist() == data.scans["path"].tolist()  # they are read where they are
    assert not [name for name in bucket.names() if name.startswith("store/scans/")]
    assert len(data.pixels(data.examples("normal"), 8)) == 24
