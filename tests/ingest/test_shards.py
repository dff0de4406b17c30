"""Shards of ingest and crop: the data version is that of one pod, and a shard that dies costs only its share."""

import hashlib
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from tests.conftest import write_rois, write_scan
from tests.support import dicoms
from thyroid import storage
from thyroid.crop import CropOptions, crop, crop_shard
from thyroid.data import plots, tables
from thyroid.data.store import EXAMINED, Store
from thyroid.data.version import DataVersion
from thyroid.errors import InputError
from thyroid.ingest import examine, listing
from thyroid.ingest.ingest import ingest
from thyroid.ingest.options import IngestOptions
from thyroid.ingest.shards.shard import examine_shard
from thyroid.registry import retention
from thyroid.shards import Shard

pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")  # see test_storage.py


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Without pictures; every file counts as written long ago, since nobody can set its ctime."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "data_statistics", lambda good, regions, path, classes: path.touch())
        patch.setattr(plots, "crop_sheet", lambda scans, regions, folder, path: path.touch())
        patch.setattr(listing, "SETTLED_SECONDS", -1.0)
        patch.setattr(examine, "BATCH", 4)
        yield


@pytest.fixture
def options(scans, tmp_path) -> IngestOptions:
    """24 frames with two copies, two files that cannot be used, the regions of half of the frames, and four crops."""
    names = sorted(path.name for path in scans.iterdir())
    (scans / "again").mkdir()
    for name in names[:2]:
        (scans / "again" / name.replace("-1.0", "-2.0")).write_bytes((scans / name).read_bytes())
    (scans / "notes.txt").write_text("no scan")
    (scans / "B_099-0001-1.0.jpg").write_bytes(b"no picture")
    rois = write_rois(tmp_path / "rois.csv", [(name, 10, 10, 30, 30) for name in names[::2]])
    for patient in range(60, 64):
        write_scan(tmp_path / "crops" / f"{'BM'[patient % 2]}_{patient:03d}-0001-1.0.jpg", seed=500 + patient)
    return IngestOptions(str(scans), str(rois), str(tmp_path / "crops"), store=str(tmp_path / "store"))


def in_shards(options: IngestOptions, count: int, output: Path) -> Path:
    """Run ingest and crop as the pipeline does, with `count` shards before each."""
    for number in range(1, count + 1):
        examine_shard(options, Shard(number, count))
    ingest(options, output / "data")
    cut = CropOptions(store=options.store)
    for number in range(1, count + 1):
        crop_shard(output / "data", cut, Shard(number, count))
    return crop(output / "data", output / "set", cut).folder


def in_one_pod(options: IngestOptions, output: Path) -> Path:
    """Run ingest and crop without shards, with a store of their own."""
    alone = replace(options, store=str(output / "other store"))
    return crop(ingest(alone, output / "data").folder, output / "set", CropOptions(store=alone.store)).folder


def content(folder: Path) -> dict[str, str]:
    """What a data version is: its digest, its fingerprint, its quarantine and its images by name."""
    version = DataVersion.read(folder)
    files = [version.scans["normal_path"], version.regions["crop_path"], version.regions["jitter_path"]]
    sums = [version.scans["normal_sha256"], version.regions["crop_sha256"], version.regions["jitter_sha256"]]
    images = dict(zip(pd.concat(files).dropna(), pd.concat(sums).dropna(), strict=True))
    return images | {
        "digest": version.digest,
        "fingerprint": version.fingerprint,
        "quarantine": (folder / tables.QUARANTINE).read_text(),
    }


@pytest.mark.parametrize("count", [1, 3, 8])
def test_the_data_version_is_bit_for_bit_that_of_one_pod(options, tmp_path, count):
    one = in_one_pod(options, tmp_path)
    many = in_shards(options, count, tmp_path / "shards")
    assert content(many) == content(one)
    for name, digest in content(many).items():
        if name.endswith(".jpg"):
            assert hashlib.sha256((Store(options.store).crops / name).read_bytes()).hexdigest() == digest
    facts = tables.read_facts(many)
    assert (facts.looked_at, facts.cropped) == (0, 0), "the steps had nothing left to do"


def test_scans_and_store_in_a_bucket(options, tmp_path, bucket):
    scans = Path(str(options.scans))
    bucket.put({f"scans/{path.relative_to(scans)}": path.read_bytes() for path in scans.rglob("*") if path.is_file()})
    given = replace(options, scans=bucket.address("scans"))
    one = in_one_pod(given, tmp_path)
    many = in_shards(replace(given, store=bucket.address("store")), 3, tmp_path / "shards")
    assert content(many) == content(one)
    assert not [name for name in bucket.names() if "/pieces/" in name], "a data version has taken them up"


def test_dicom_files(options, tmp_path, monkeypatch):
    monkeypatch.setenv("THYROID_PATIENT_KEY", "a secret for tests only")
    scans = Path(str(options.scans))
    lines = ["filename,label,patient,frame"]
    for number in range(1, 9):
        (scans / f"{number}.dcm").write_bytes(dicoms.write(dicoms.frame(1000 + number), patient=f"ID-{number}"))
        lines.append(f"{number}.dcm,{'BM'[number % 2]},,")
    (scans / "dicom.csv").write_text("\n".join(lines) + "\n")
    options = replace(options, rois="", crops="")  # the cropped domain would lack a class in a split
    one = in_one_pod(options, tmp_path)
    assert DataVersion.read(one).used["path"].str.contains("/dicom/").sum() == 8
    assert content(in_shards(options, 3, tmp_path / "shards")) == content(one)


@pytest.mark.parametrize("moment", ["before the erasure", "after the erasure"])
def test_a_patient_who_is_erased_beside_a_shard_does_not_come_back(options, tmp_path, moment):
    place, who = Store(options.store), 3
    in_shards(options, 2, tmp_path / "first")
    new = next(Path(str(options.scans)).glob("*_003-0001-*"))
    new.with_name(new.name.replace("-0001-", "-0009-")).write_bytes(write_scan(tmp_path / "x.jpg", seed=7).read_bytes())
    examine_shard(options, Shard(1, 1))
    rows = place.pieces("examined")
    assert len(rows) == 1
    (tmp_path / "registry").mkdir()
    retention.forget(str(options.store), tmp_path / "registry", who, delete=True)
    assert place.pieces("examined").empty
    if moment == "after the erasure":  # the shard began before it
        place.add_piece("examined", rows.drop(columns="piece"))
    second = in_shards(options, 2, tmp_path / "second")
    version = DataVersion.read(second)
    assert who not in set(version.used["patient"])
    reasons = tables.read_quarantine(second, version.facts)["reason"]
    assert reasons.str.startswith("of a patient who was erased").sum() >= 2
    assert not list(place.crops.rglob("*_003-*"))
    assert place.pieces("examined").empty


def test_a_shard_that_dies_costs_only_its_share(options, tmp_path, monkeypatch):
    place, left = Store(options.store), Store.add_piece

    def die(self: Store, kind: str, table: pd.DataFrame) -> None:
        if not place.pieces(kind).empty:
            raise KeyboardInterrupt
        left(self, kind, table)

    monkeypatch.setattr(Store, "add_piece", die)
    with pytest.raises(KeyboardInterrupt):
        examine_shard(options, Shard(1, 2))
    monkeypatch.setattr(Store, "add_piece", left)
    examine_shard(options, Shard(2, 2))
    known = len(place.pieces("examined"))
    done = ingest(options, tmp_path / "data")
    rows = place.readable()[0].table(EXAMINED)
    assert 0 < done.facts.looked_at == len(rows) - known
    assert not rows["path"].duplicated().any()
    assert done.facts.digest == ingest(replace(options, store=""), tmp_path / "alone").facts.digest
    assert place.pieces("examined").empty


def test_a_shard_that_is_tried_again_goes_on(options, capsys):
    examine_shard(options, Shard(1, 1))
    pieces = Store(options.store).pieces("examined")
    capsys.readouterr()
    examine_shard(options, Shard(1, 1))
    assert "shard 1 of 1: 0 of 32 scans are new" in capsys.readouterr().out
    assert Store(options.store).pieces("examined").equals(pieces)


def test_a_night_with_a_few_new_scans(options, tmp_path, capsys):
    in_shards(options, 2, tmp_path / "first")
    write_scan(Path(str(options.scans)) / "B_050-0001-1.0.jpg", seed=5)
    capsys.readouterr()
    second = in_shards(options, 2, tmp_path / "second")
    told = capsys.readouterr().out
    assert told.count(": 1 of ") == 2, "one shard of ingest and one of crop"
    assert tables.read_facts(second).scans == 29


@pytest.mark.parametrize("change", [{"source": "/elsewhere"}, {"examined_by": examine.EXAMINATION + 1}])
def test_rows_of_others_are_left_alone(options, tmp_path, change):
    examine_shard(options, Shard(1, 1))
    place = Store(options.store)
    rows = place.pieces("examined")
    place.drop_pieces(set(rows["piece"]))
    place.add_piece("examined", rows.drop(columns="piece").assign(**change))
    done = ingest(options, tmp_path / "data")
    assert done.facts.looked_at == len(rows)
    assert len(place.pieces("examined")) == len(rows), "they are another source's, or those of other code"


def test_a_file_that_changed_after_its_shard_is_read_again(options, tmp_path):
    examine_shard(options, Shard(1, 1))
    write_scan(Path(str(options.scans)) / "B_001-0001-1.0.jpg", seed=99)
    done = ingest(options, tmp_path / "data")
    assert done.facts.looked_at == 1
    assert done.facts.digest == ingest(replace(options, store=""), tmp_path / "alone").facts.digest


def test_shards_without_a_store_fail_before_anything_is_read(tmp_path):
    with pytest.raises(InputError, match="give a store, or compile the pipeline without --shards"):
        examine_shard(IngestOptions(str(tmp_path / "no such folder")), Shard(1, 2))
    with pytest.raises(InputError, match="give a store"):
        crop_shard(tmp_path / "no such version", CropOptions(), Shard(1, 2))


def test_shards_wait_for_no_lock(options, tmp_path):
    ingest(options, tmp_path / "data")
    with storage.lock(Path(str(options.store)), lambda: pytest.fail("it waits")):
        examine_shard(options, Shard(1, 2))
        crop_shard(tmp_path / "data", CropOptions(store=options.store), Shard(1, 2))
    assert not Store(options.store).cropped().empty
