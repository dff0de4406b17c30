"""An ingest and a crop with a store produce what a run over all scans would have produced, whatever happened before."""

import contextlib
import hashlib
import multiprocessing
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.conftest import SOAK, write_rois, write_scan
from tests.ingest.test_cohorts import age, hospital
from tests.support.clouds import Cloud
from thyroid import crop, storage
from thyroid.crop import CropOptions
from thyroid.data import duplicates, plots, store, tables
from thyroid.data.version import DataVersion
from thyroid.errors import InputError
from thyroid.imaging import images
from thyroid.ingest import __main__ as command
from thyroid.ingest import examine, ingest, listing
from thyroid.ingest.options import IngestOptions

pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"),  # see test_storage.py
    pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning"),
]
FORK = multiprocessing.get_context("fork")


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Without pictures; every file counts as written long ago, since nobody can set its ctime."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "data_statistics", lambda good, regions, path, classes: path.touch())
        patch.setattr(plots, "crop_sheet", lambda scans, regions, folder, path: path.touch())
        patch.setattr(listing, "SETTLED_SECONDS", -1.0)
        yield


@cache
def picture(seed: int, copy: bool = False) -> bytes:
    """A scan's bytes, or those of a re-encoded copy of it."""
    with tempfile.TemporaryDirectory() as folder:
        data = write_scan(Path(folder, "scan"), seed).read_bytes()
        if copy:
            Image.fromarray(images.decode(data)).resize((150, 125)).save(Path(folder, "copy"), "JPEG", quality=60)
            data = Path(folder, "copy").read_bytes()
        return data


def name(label: str, patient: int, image: int = 1) -> str:
    return f"{label}_{patient:03d}-{image:04d}-1.0.jpg"


def partition(table: pd.DataFrame) -> set[frozenset[str]]:
    return {frozenset(paths) for _, paths in table.groupby("group")["path"]}


JITTER = ("jitter_path", "jitter_sha256")


def same_data(one: Path, other: Path, splits: bool = False) -> None:
    """Check that two data versions hold the same; their splits are compared only if asked for.

    Only regions of training frames have a disturbed crop. So where splits differ, it is compared where both have one.
    """
    (scans, regions, facts), (expected, expected_regions, expected_facts) = tables.read(one), tables.read(other)
    hidden = ["local_path", "group", *([] if splits else ["split"])]
    pd.testing.assert_frame_equal(scans.drop(columns=hidden), expected.drop(columns=hidden))
    of_split = [] if splits else [column for column in JITTER if column in expected_regions]
    pd.testing.assert_frame_equal(regions.drop(columns=of_split), expected_regions.drop(columns=of_split))
    for column in of_split:
        for table, its_scans in ((regions, scans), (expected_regions, expected)):
            learnt = its_scans.set_index("path")[["split", "domain"]].reindex(table["path"])
            has_one = (learnt["split"].eq("train") & learnt["domain"].eq("normal")).to_numpy()
            assert (table[column].notna().to_numpy() == has_one).all()
        both = regions[column].notna() & expected_regions[column].notna()
        assert regions[column][both].tolist() == expected_regions[column][both].tolist()
    assert partition(scans) == partition(expected)
    assert (one / "quarantine.csv").read_text() == (other / "quarantine.csv").read_text()
    for fact in ("source", "digest", "scans", "quarantined", "patients", "duplicate_groups", "regions", "synthetic"):
        assert getattr(facts, fact) == getattr(expected_facts, fact), fact


def check_store(folder: Path) -> list[str]:
    """Numbers of the versions of a store in which everything that is there is whole."""
    place = store.Store(folder)
    for version in place.versions():
        scans, regions, facts = tables.read(version)
        assert tables.digest(scans, regions) == facts.digest
        whole = store.Version(version)
        assert len(whole.table(store.EXAMINED)) == len(scans)
        assert set(whole.table(store.MEMORY)["phash"]) >= set(tables.used(scans)["phash"])
        assert not whole.table(store.LINKS).isna().any(axis=None)
    if (folder / store.CROPPED).exists():
        listed = pd.read_parquet(folder / store.CROPPED)
        assert listed["key"].is_unique
        for file, sha256 in zip(listed["file"], listed["sha256"], strict=True):
            assert hashlib.sha256((place.crops / file).read_bytes()).hexdigest() == sha256
    return [version.name for version in place.versions()]


def examined(folder: Path) -> pd.DataFrame:
    """The rows of the newest version, by the last part of the path."""
    table = store.Version(store.Store(folder).versions()[-1]).table(store.EXAMINED)
    return table.set_index(table["path"].str.rsplit("/", n=1).str[-1])


def outcome(work: Callable[[], object]) -> str:
    try:
        work()
    except InputError as error:
        return str(error)
    return ""


# Any history.


class World:
    """A folder of scans, what was done to it, and the splits that patients and pictures ever had."""

    def __init__(self, root: Path) -> None:
        self.root, self.scans = root, root / "scans"
        self.content: dict[str, tuple[int, bool]] = {}
        self.whole: dict[str, bool] = {}
        self.pile: list[str] = []
        self.regions: list[tuple] = []
        self.splits: dict[tuple[int, int], str] = {}
        self.seeds = iter(range(1000, 2000))
        self.clock = 1_600_000_000
        for patient in range(1, 15):
            self.put(name("BM"[patient % 2], patient), patient)

    def put(self, file: str, seed: int, copy: bool = False, whole: bool = True) -> None:
        data = picture(seed, copy)
        self.content[file], self.whole[file] = (seed, copy), whole
        self.scans.mkdir(exist_ok=True, parents=True)
        (self.scans / file).write_bytes(data if whole else data[: len(data) // 2])
        self.touch(file)

    def touch(self, file: str) -> None:
        self.clock += 1
        os.utime(self.scans / file, (self.clock, self.clock))

    def act(self, action: str, one: int, other: int) -> None:
        there = sorted(file for file in self.content if file not in self.pile)
        file, second = there[one % len(there)], there[other % len(there)]
        patient = int(second[2:5])
        free = next(
            image
            for image in range(2, 1000)
            if not any(f[1:].startswith(f"_{patient:03d}-{image:04d}") for f in self.content)
        )
        match action:
            case "new patient":
                self.put(name("BM"[one % 2], 20 + other), next(self.seeds))
            case "another scan":
                self.put(name(second[0], patient, free), next(self.seeds))
            case "overwrite":
                self.put(file, next(self.seeds))
            case "relabel":
                renamed = "MB"["BM".index(file[0])] + file[1:]
                if renamed not in self.content:
                    (self.scans / file).rename(self.scans / renamed)
                    self.content[renamed], self.whole[renamed] = self.content.pop(file), self.whole.pop(file)
            case "touch":
                self.touch(file)
            case "remove":
                if len(there) > 12:
                    (self.scans / file).rename(self.root / file)
                    self.pile.append(file)
            case "put back":
                if self.pile:
                    back = self.pile.pop(one % len(self.pile))
                    (self.root / back).rename(self.scans / back)
            case "copy":
                original = sorted(self.content)[one % len(self.content)]  # of one that was removed, too
                self.put(name(original[0], patient, free), self.content[original][0], copy=True)
            case "same bytes":
                self.put(name("BM"[one % 2], patient, free), *self.content[file])
            case "damage":
                self.put(name(second[0], patient, free), next(self.seeds), whole=False)
            case "mend":
                for broken in [f for f in there if not self.whole[f]]:
                    self.put(broken, *self.content[broken])
            case "regions":
                chosen = random.Random(one).sample(there, 4)
                self.regions = [(f, 5 + one % 9, 6, 30, 20 + other % 9) for f in chosen] + [(chosen[0], 1, 1, 9, 9)]

    def ingest(self, output: str, **options: object) -> Callable[[], object]:
        rois = write_rois(self.root / "rois.csv", self.regions) if self.regions else ""
        return lambda: ingest.ingest(IngestOptions(self.scans, rois=rois, **options), self.root / output)

    def check_splits(self, output: str) -> None:
        """Check that patients and pictures that belong together share a split.

        It is a split that one of them had before, and the smallest if there were several.
        """
        table = tables.read(self.root / output)[0]
        # scans that cannot be used because of their label or bytes still show which patients belong together
        table = table[table["sha256"].notna()]
        table = table.assign(seed=[self.content[path.rsplit("/", 1)[-1]][0] for path in table["path"]])
        parts: list[set[tuple[str, int]]] = []
        for patient, seed in zip(table["patient"], table["seed"], strict=True):
            pair = {("patient", patient), ("seed", seed)}
            joined = pair.union(*(part for part in parts if part & pair))
            parts = [*(part for part in parts if not part & pair), joined]
        table = tables.used(table)
        for together in parts:
            group = table[[("patient", patient) in together for patient in table["patient"]]]
            before = {
                split
                for (patient, seed), split in self.splits.items()
                if {("patient", patient), ("seed", seed)} & together
            }
            if len(group):
                assert group["group"].nunique() == group["split"].nunique() == 1
            if len(group) and before:
                assert group["split"].iloc[0] == min(before, key=["test", "validation", "train"].index)
        now = dict(zip(table["patient"], table["split"], strict=True))
        self.splits = {key: now.get(key[0], split) for key, split in self.splits.items()}
        self.splits |= dict(zip(zip(table["patient"], table["seed"], strict=True), table["split"], strict=True))

    def check_crops(self, full: str, part: str, home: Path) -> None:
        paths = [self.root / one for one in (full, f"{full}-crop", part, f"{part}-crop")]
        told = outcome(lambda: crop.crop(*paths[:2], CropOptions(["normal"])))
        assert outcome(lambda: crop.crop(*paths[2:], CropOptions(["normal"], home))) == told
        if told:  # splits differ, and one may have no frame of a class
            return
        same_data(paths[3], paths[1])
        for domain in tables.DOMAINS:
            made = DataVersion.read(paths[3]).examples(domain)
            assert made["name"].tolist() == DataVersion.read(paths[1]).examples(domain)["name"].tolist()
            for file, sha256 in zip(made["file"], made["sha256"], strict=True):
                assert hashlib.sha256(Path(file).read_bytes()).hexdigest() == sha256


ACTIONS = st.sampled_from(
    [
        *("new patient", "another scan", "overwrite", "relabel", "touch", "remove"),
        *("put back", "copy", "same bytes", "damage", "mend", "regions"),
    ]
)
STEPS = st.lists(st.tuples(ACTIONS, st.integers(0, 99), st.integers(0, 99)), min_size=1, max_size=4)


def follow(history: list[list[tuple[str, int, int]]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder).resolve())
        home = world.root / "store"
        for number, step in enumerate([[], *history]):
            for action in step:
                world.act(*action)
            full, part = f"full{number}", f"part{number}"
            told, again = outcome(world.ingest(full)), outcome(world.ingest(part, store=home))
            if told or again:  # splits that are kept may leave one without a class where others would not
                assert told == again or "--given-splits" in again
                continue
            same_data(world.root / part, world.root / full)
            world.check_splits(part)
            world.check_crops(full, part, home)
            world.ingest(f"{part}-once-more", store=home)()
            same_data(world.root / f"{part}-once-more", world.root / part, splits=True)
        versions = check_store(home)
        assert versions == [f"{n:06d}" for n in range(1, len(versions) + 1)]


HISTORIES = st.lists(STEPS, min_size=2, max_size=5)


@pytest.mark.slow
@settings(max_examples=5, derandomize=True)
@given(HISTORIES)
def test_after_any_history_all_is_as_if_everything_had_been_looked_at(history):
    follow(history)


@pytest.mark.slow
@settings(max_examples=15, derandomize=True, phases=(Phase.reuse, Phase.generate))  # shrinking takes minutes
@given(HISTORIES)
def test_after_many_histories(history):
    follow(history)


@pytest.mark.parametrize("action", ["touch", "overwrite", "relabel", "remove", "new patient", "copy", "regions"])
def test_only_what_is_new_is_looked_at_and_cropped(tmp_path, action):
    world = World(tmp_path)
    world.regions = [(name("BM"[patient % 2], patient), 5, 5, 30, 30) for patient in range(1, 15)]
    for number in range(2):
        facts = world.ingest(f"in{number}", store=tmp_path / "store")().facts
        cropped = crop.crop(
            tmp_path / f"in{number}", tmp_path / f"out{number}", CropOptions(store=tmp_path / "store")
        ).facts
        if not number:
            assert (facts.looked_at, cropped.cropped) == (14, 14)
            world.act(action, 3, 5)
            if action == "regions":
                world.regions = [(file, *box) for file, *box in world.regions[:3]] + [
                    (name("BM"[patient % 2], patient), 5, 5, 30, 30) for patient in range(1, 15)
                ]
    looked_at = {"remove": 0, "regions": 0}.get(action, 1)
    made = {"touch": 0, "remove": 0, "regions": 3}.get(action, 1)
    assert (facts.looked_at, cropped.cropped) == (looked_at, made)


def test_nothing_new_makes_no_version_and_opens_no_scan(scans, tmp_path, monkeypatch, capsys):
    first = ingest.ingest(IngestOptions(scans, store=tmp_path / "store"), tmp_path / "one")
    monkeypatch.setattr(images, "read", None)
    assert ingest.ingest(IngestOptions(scans, store=tmp_path / "store"), tmp_path / "two").facts == first.facts
    assert re.search(r"\b000001: 24\b", capsys.readouterr().out)
    same_data(tmp_path / "two", tmp_path / "one", splits=True)
    assert check_store(tmp_path / "store") == ["000001"]
    assert not {store.EXAMINED, store.LINKS, store.MEMORY} & {path.name for path in (tmp_path / "two").iterdir()}


@pytest.mark.parametrize("moved", [False, True])
def test_a_copy_of_what_is_gone_goes_where_it_was(tmp_path, moved):
    """Even where its patient has been moved to another split since."""
    world = World(tmp_path)
    for patient in range(15, 51):
        world.put(name("BM"[patient % 2], patient), patient)
    world.ingest("one", store=tmp_path / "store")()
    table = tables.read(tmp_path / "one")[0].groupby("split")["path"].first()
    train, test = (table[split].rsplit("/", 1)[-1] for split in ("train", "test"))
    gone = name("B", 90)
    if moved:
        world.put(name("B", int(train[2:5]), 2), 600)
        world.ingest("two", store=tmp_path / "store")()
        world.act("remove", sorted(world.content).index(name("B", int(train[2:5]), 2)), 0)
        world.put(name(test[0], int(train[2:5]), 3), world.content[test][0], copy=True)
        world.ingest("three", store=tmp_path / "store")()
        world.put(gone, 600, copy=True)
    else:
        world.act("remove", sorted(world.content).index(test), 0)
        world.ingest("two", store=tmp_path / "store")()
        world.put(gone, world.content[test][0], copy=True)
    world.ingest("four", store=tmp_path / "store", seed=3)()
    splits = tables.read(tmp_path / "four")[0].set_index("path")["split"]
    assert splits[str(world.scans / gone)] == "test"
    assert len(check_store(tmp_path / "store")) == 3 + moved


# Times.


def test_a_file_that_was_just_written_is_looked_at_again(scans, tmp_path, monkeypatch):
    monkeypatch.setattr(listing, "SETTLED_SECONDS", 600.0)
    for number in range(2):
        facts = ingest.ingest(IngestOptions(scans, store=tmp_path / "store"), tmp_path / str(number)).facts
        assert (facts.looked_at, facts.inputs) == (24, None)
    monkeypatch.setattr(listing, "SETTLED_SECONDS", -1.0)
    assert ingest.ingest(IngestOptions(scans, store=tmp_path / "store"), tmp_path / "2").facts.looked_at == 24
    ingest.ingest(IngestOptions(scans, store=tmp_path / "store"), tmp_path / "3")
    assert check_store(tmp_path / "store") == ["000001", "000002", "000003"]


def test_a_file_of_the_future_is_looked_at_every_time(scans, tmp_path):
    future = time.time() + 86_400
    os.utime(scans / "B_001-0001-1.0.jpg", (future, future))
    found = [ingest.ingest(IngestOptions(scans, store=tmp_path / "store"), tmp_path / str(n)).facts for n in range(3)]
    assert [facts.looked_at for facts in found] == [24, 1, 1]
    (scans / "B_001-0001-1.0.jpg").write_bytes(picture(77))
    os.utime(scans / "B_001-0001-1.0.jpg", (future, future))
    assert ingest.ingest(IngestOptions(scans, store=tmp_path / "store"), tmp_path / "3").facts.digest != found[0].digest


def test_a_file_of_the_same_size_and_time_is_noticed(scans, tmp_path):
    file = scans / "B_001-0001-1.0.jpg"
    longest = max(len(picture(77)), file.stat().st_size)
    file.write_bytes(file.read_bytes().ljust(longest, b"\0"))  # after a JPEG's end nobody reads
    os.utime(file, (1e9, 1e9))
    first = ingest.ingest(IngestOptions(scans, store=tmp_path / "store"), tmp_path / "one").facts
    file.write_bytes(picture(77).ljust(longest, b"\0"))
    os.utime(file, (1e9, 1e9))
    second = ingest.ingest(IngestOptions(scans, store=tmp_path / "store"), tmp_path / "two").facts
    assert second.looked_at == 1
    assert second.digest != first.digest


def test_a_disk_that_fails_once_does_not_cost_the_scan(scans, tmp_path, monkeypatch):
    read = images.read

    def failing(path):
        if str(path).endswith("B_001-0001-1.0.jpg"):
            raise OSError(5, "Input/output error", str(path))
        return read(path)

    with monkeypatch.context() as patch:
        patch.setattr(images, "read", failing)
        assert ingest.ingest(IngestOptions(scans, store=tmp_path / "store"), tmp_path / "one").facts.quarantined == 1
    facts = ingest.ingest(IngestOptions(scans, store=tmp_path / "store"), tmp_path / "two").facts
    assert (facts.looked_at, facts.scans, facts.quarantined) == (1, 24, 0)


# A store that is not what it should be.


def test_what_other_code_found_out_is_not_believed(scans, tmp_path, monkeypatch):
    ingest.ingest(IngestOptions(scans, store=tmp_path / "store"), tmp_path / "one")
    before = tables.read(tmp_path / "one")[0]
    rows = tmp_path / "store" / "versions" / "000001" / store.EXAMINED
    monkeypatch.setattr(examine, "EXAMINATION", 0)
    rows.write_bytes(b"of another kind")
    assert ingest.ingest(IngestOptions(scans, store=tmp_path / "store", seed=3), tmp_path / "two").facts.looked_at == 24
    pd.testing.assert_frame_equal(tables.read(tmp_path / "two")[0], before)


@pytest.mark.parametrize("table", [store.EXAMINED, store.LINKS, store.MEMORY])
@pytest.mark.parametrize("damage", [lambda file: file.unlink(), lambda file: file.write_bytes(b"PAR1xxxxPAR1")])
def test_a_damaged_table_is_named_with_its_cure(scans, tmp_path, table, damage):
    home = tmp_path / "store"
    first = ingest.ingest(IngestOptions(scans, store=home), tmp_path / "one")
    write_scan(scans / "B_077-0001-1.0.jpg", seed=77)
    ingest.ingest(IngestOptions(scans, store=home), tmp_path / "two")
    damage(home / "versions" / "000002" / table)
    write_scan(scans / "B_078-0001-1.0.jpg", seed=78)
    told = outcome(lambda: ingest.ingest(IngestOptions(scans, store=home), tmp_path / "three"))
    assert f"{home}/versions/000002/{table}:" in told
    assert f"remove {home}/versions/000002 " in told
    shutil.rmtree(home / "versions" / "000002")
    facts = ingest.ingest(IngestOptions(scans, store=home, seed=9), tmp_path / "three").facts
    assert (facts.looked_at, facts.scans) == (2, 26)
    assert check_store(home) == ["000001", "000002"]
    assert first.facts.digest != facts.digest


def test_a_damaged_data_version_is_not_handed_on(scans, tmp_path):
    ingest.ingest(IngestOptions(scans, store=tmp_path / "store"), tmp_path / "one")
    (tmp_path / "store" / "versions" / "000001" / "scans.parquet").write_bytes(b"PAR1")
    told = outcome(lambda: ingest.ingest(IngestOptions(scans, store=tmp_path / "store"), tmp_path / "two"))
    assert "store/versions/000001:" in told
    assert not (tmp_path / "two").exists()


def test_a_version_without_sense_gives_way_to_the_one_before(scans, tmp_path, capsys):
    ingest.ingest(IngestOptions(scans, store=tmp_path / "store"), tmp_path / "one")
    before = tables.read(tmp_path / "one")[0].set_index("path")["split"]
    write_scan(scans / "B_077-0001-1.0.jpg", seed=77)
    ingest.ingest(IngestOptions(scans, store=tmp_path / "store"), tmp_path / "two")
    (tmp_path / "store" / "versions" / "000002" / "data.json").write_bytes(b"\0" * 100)
    facts = ingest.ingest(IngestOptions(scans, store=tmp_path / "store", seed=9), tmp_path / "three").facts
    assert "versions/000002:" in capsys.readouterr().out
    assert facts.looked_at == 1
    after = tables.read(tmp_path / "three")[0].set_index("path")["split"]
    assert after[before.index].tolist() == before.tolist()
    assert (tmp_path / "store" / "versions" / "000003" / "data.json").exists()


def test_crops_whose_table_is_damaged_or_whose_files_are_gone_are_made_again(scans, tmp_path, capsys):
    home = tmp_path / "store"
    ingest.ingest(IngestOptions(scans, store=home), tmp_path / "in")
    expected = crop.crop(tmp_path / "in", tmp_path / "out", CropOptions(store=home)).facts
    (home / store.CROPPED).write_bytes(b"PAR1")
    again = crop.crop(tmp_path / "in", tmp_path / "out2", CropOptions(store=home)).facts
    assert "crops.parquet:" in capsys.readouterr().out
    assert (again.digest, again.cropped) == (expected.digest, 24)
    next((home / "crops" / "normal").glob("M_002-0001-*")).unlink()
    assert crop.crop(tmp_path / "in", tmp_path / "out3", CropOptions(store=home)).facts.cropped == 1
    check_store(home)
    same_data(tmp_path / "out3", tmp_path / "out", splits=True)


def test_a_damaged_crop_is_forgotten_and_made_again(scans, tmp_path, capsys):
    home = tmp_path / "store"
    ingest.ingest(IngestOptions(scans, store=home), tmp_path / "in")
    crop.crop(tmp_path / "in", tmp_path / "out", CropOptions(store=home))
    whole = {file: file.read_bytes() for file in sorted((home / "crops" / "normal").iterdir())}
    damaged = list(whole)[3]
    damaged.write_bytes(whole[damaged][:-2] + b"xx")
    again = crop.crop(tmp_path / "in", tmp_path / "out2", CropOptions(store=home)).facts
    assert again.cropped == 1
    assert {file: file.read_bytes() for file in whole} == whole
    told = capsys.readouterr().out
    assert f"{home}/crops" in told
    assert f"normal/{damaged.name}" in told
    same_data(tmp_path / "out2", tmp_path / "out", splits=True)


def flip(data: bytes, place: int) -> bytes:
    return data[: place // 8] + bytes([data[place // 8] ^ 1 << place % 8]) + data[place // 8 + 1 :]


def flips_hold(folder: Path, each: int, seed: int, crops: int = 1000) -> int:
    """Flip a bit in every file of a store, `each` times, with at most `crops` of the crops.

    An ingest and a crop must report the damage, repair it or do without the file.
    """
    folder = folder.resolve()
    home, scans, dice = folder / "store", folder / "scans", random.Random(seed)
    for patient in range(1, 13):
        write_scan(scans / name("BM"[patient % 2], patient), seed=patient)
    rois = write_rois(folder / "rois.csv", [(file.name, 20, 20, 30, 30) for file in sorted(scans.iterdir())[:8]])
    ingest.ingest(IngestOptions(scans, rois=rois, store=home), folder / "in")
    crop.crop(folder / "in", folder / "out", CropOptions(["normal"], home))
    shutil.copytree(home, folder / "before")
    count = 0

    def images_of(output: str) -> dict[str, str]:
        made = pd.concat([DataVersion.read(folder / output).examples(domain) for domain in tables.DOMAINS])
        return {file: hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in made["file"]}

    expected = images_of("out")
    files = sorted(path for path in home.rglob("*") if path.is_file() and path.stat().st_size)
    files = [file for file in files if "crops" not in file.parts] + [f for f in files if "crops" in f.parts][:crops]
    for file in files:
        for _ in range(each):
            data = file.read_bytes()
            file.write_bytes(flip(data, dice.randrange(8 * len(data))))
            damage = file.read_bytes()
            # once without anything new, and once with: then everything is read
            for seed in (0, 1):
                told = outcome(
                    lambda seed=seed: ingest.ingest(IngestOptions(scans, rois, store=home, seed=seed), folder / "in2")
                )
                told = told or outcome(
                    lambda: crop.crop(folder / "in2", folder / "out2", CropOptions(["normal"], home))
                )
                if told:
                    assert str(file) in told or (str(file.parent) in told and file.name in told), told
                else:
                    same_data(folder / "out2", folder / "out", splits=True)
                    assert images_of("out2") == expected
            gone = not file.exists() or file.read_bytes() != damage
            # versions are never changed, and between two sums any white space will do
            assert told or gone or file.name == store.SUMS or "versions" in file.parts, file
            count += 1
            for path in (home, folder / "in2", folder / "out2"):
                shutil.rmtree(path, ignore_errors=True)
            shutil.copytree(folder / "before", home)
    return count


def test_no_flipped_bit_of_a_store_is_silent(tmp_path):
    assert flips_hold(tmp_path, each=1, seed=0, crops=1) == 10


@pytest.mark.slow
def test_no_flipped_bit_of_a_store_is_silent_however_many(tmp_path):
    assert flips_hold(tmp_path, each=8 * SOAK, seed=1, crops=3) == 96 * SOAK


def test_killed_while_a_store_of_older_code_is_filled(tmp_path):
    home = tmp_path / "store"
    for source, seed in (("north", 1000), ("south", 5000)):
        ingest.ingest(IngestOptions(hospital(tmp_path / source, seed, 14), store=home), tmp_path / f"{source}-in")
    age(home)
    shutil.copytree(home, tmp_path / "old")

    def fill() -> None:
        with store.Store(home).lock():
            pass

    def remembered() -> list[tuple]:
        memory = store.Store(home).readable()[0].table(store.MEMORY)
        return sorted(memory.itertuples(index=False, name=None))

    total = killed(fill, home, 0)
    assert total is not None
    expected = remembered()
    assert len(expected) == 28
    for at in moments(total, 8):
        shutil.rmtree(home)
        shutil.copytree(tmp_path / "old", home)
        assert killed(fill, home, at) is None
        fill()
        assert remembered() == expected
        assert check_store(home) == ["000001", "000002"]


@pytest.mark.parametrize(
    ("place", "told"),
    [
        ("az://bucket/store", "az://bucket/store:"),
        ("{}/file", "store {}/file:"),
        ("{}/file/store", "file"),
    ],
)
def test_a_store_that_cannot_be_one(scans, tmp_path, capsys, place, told, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    arguments = ["--output", str(tmp_path / "out"), "--store", place.format(tmp_path)]
    ingest.ingest(IngestOptions(scans), tmp_path / "in")
    for main, more in ((command.main, ["--scans", str(scans)]), (crop.main, ["--data", str(tmp_path / "in")])):
        assert main([*more, *arguments]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert told.format(tmp_path) in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "in", "scans"]


@pytest.mark.parametrize("within", ["out", "scans", "crops", "."])
def test_a_store_may_lie_within_what_else_there_is(scans, tmp_path, within):
    for patient in range(1, 13):
        write_scan(tmp_path / "crops" / name("MB"[patient % 2], patient), seed=900 + patient, size=(40, 30))
    for number in range(3):
        facts = ingest.ingest(
            IngestOptions(scans, crops=tmp_path / "crops", store=tmp_path / within / "store", seed=number),
            tmp_path / "out",
        ).facts
        crop.crop(tmp_path / "out", tmp_path / "cropped", CropOptions(store=tmp_path / within / "store"))
        assert (facts.scans, facts.quarantined) == (36, 0)
    versions = tmp_path / within / "store" / "versions"
    assert {path.relative_to(versions).parts[1] for path in versions.rglob("*.*")} == {
        *("scans.parquet", "regions.parquet", "quarantine.csv", "statistics.png", "data.json"),
        *(store.EXAMINED, store.LINKS, store.MEMORY),
    }


# Runs that are killed, and several at once.


def killed(work: Callable[[], object], folder: Path, at: int) -> int | None:
    """Kill a process at the event number `at` of its files below `folder`; None, or how many there were in all."""
    seen = FORK.Value("i", 0, lock=False)

    def run() -> None:
        def hook(event: str, arguments: tuple) -> None:
            if event in ("open", "os.rename", "os.mkdir", "os.remove", "os.listdir", "os.scandir") and str(
                arguments[0]
            ).startswith(str(folder)):
                seen.value += 1
                if seen.value == at:
                    os.kill(os.getpid(), signal.SIGKILL)

        storage.client.client_of.cache_clear()
        sys.addaudithook(hook)
        work()

    process = FORK.Process(target=run)
    process.start()
    process.join()
    if process.exitcode == -signal.SIGKILL:
        return None
    assert process.exitcode == 0
    return seen.value


def moments(total: int, count: int) -> list[int]:
    return sorted(random.Random(0).sample(range(2, total), count))


@pytest.mark.slow
def test_an_ingest_and_a_crop_that_are_killed_leave_nothing_wrong(tmp_path):
    world, home = World(tmp_path), tmp_path / "store"
    world.regions = [(name("BM"[patient % 2], patient), 5, 5, 30, 30) for patient in range(1, 15)]
    world.ingest("in", store=home)()
    crop.crop(tmp_path / "in", tmp_path / "out", CropOptions(["normal"], home))
    for action in ("new patient", "overwrite", "relabel", "copy", "remove", "another scan"):
        world.act(action, 3, 5)
    shutil.copytree(home, tmp_path / "before")
    world.ingest("in-full")()
    crop.crop(tmp_path / "in-full", tmp_path / "out-full", CropOptions(["normal"]))

    def ingests() -> None:
        world.ingest("in", store=home)()

    def crops() -> None:
        crop.crop(tmp_path / "in", tmp_path / "out", CropOptions(["normal"], home))

    for work, expected, versions in ((ingests, "in-full", ["000001"]), (crops, "out-full", ["000001", "000002"])):
        total = killed(work, home, 0)
        assert total is not None
        for at in moments(total, min(8 * SOAK, total - 2)):
            if work is ingests:
                shutil.rmtree(home)
                shutil.copytree(tmp_path / "before", home)
            else:
                shutil.rmtree(home / "crops")
                shutil.copytree(tmp_path / "before" / "crops", home / "crops")
                shutil.copy(tmp_path / "before" / store.CROPPED, home)
            shutil.rmtree(tmp_path / expected.removesuffix("-full"), ignore_errors=True)
            assert killed(work, home, at) is None
            assert check_store(home) in (versions, ["000001", "000002"])
            work()
            same_data(tmp_path / expected.removesuffix("-full"), tmp_path / expected)
            assert check_store(home) == ["000001", "000002"]


def test_workers_end_with_the_one_that_was_killed(tmp_path):
    """They would hold its lock for ever."""
    for patient in range(100):
        write_scan(tmp_path / "scans" / name("BM"[patient % 2], patient), seed=patient)
    begun, free = FORK.Event(), threading.Event()

    def run() -> None:
        decode = images.decode

        def slow(data: bytes) -> images.Pixels:
            begun.set()
            time.sleep(0.2)
            return decode(data)

        os.setsid()
        images.decode = slow
        ingest.ingest(IngestOptions(tmp_path / "scans", store=tmp_path / "store"), tmp_path / "out")

    def take() -> None:
        with storage.lock(tmp_path / "store"):
            free.set()

    process = FORK.Process(target=run)
    process.start()
    try:
        assert begun.wait(30)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        threading.Thread(target=take, daemon=True).start()
        assert free.wait(20)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert (
        ingest.ingest(IngestOptions(tmp_path / "scans", store=tmp_path / "store"), tmp_path / "out").facts.scans == 100
    )


def test_several_at_once_follow_each_other(scans, tmp_path):
    start, results = FORK.Barrier(3), FORK.SimpleQueue()

    def run(seed: int) -> None:
        start.wait()
        facts = ingest.ingest(IngestOptions(scans, store=tmp_path / "store", seed=seed), tmp_path / str(seed)).facts
        crop.crop(tmp_path / str(seed), tmp_path / f"{seed}-crop", CropOptions(store=tmp_path / "store"))
        results.put(facts.looked_at)

    processes = [FORK.Process(target=run, args=(seed,)) for seed in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert sorted(results.get() for _ in processes) == [0, 0, 24]
    assert check_store(tmp_path / "store") == ["000001", "000002", "000003"]
    for seed in (1, 2):
        same_data(tmp_path / str(seed), tmp_path / "0", splits=True)
        same_data(tmp_path / f"{seed}-crop", tmp_path / "0-crop", splits=True)


def test_two_crops_at_once_lose_nothing(tmp_path, monkeypatch):
    start, write = FORK.Barrier(2), store.write

    def slow(path: Path, table: pd.DataFrame) -> None:
        time.sleep(0.3)  # after the table was read
        write(path, table)

    def run(key: str) -> None:
        start.wait()
        store.Store(tmp_path).add_cropped(pd.DataFrame({"file": [f"normal/{key}.jpg"], "key": [key]}))

    monkeypatch.setattr(store, "write", slow)
    for key in "ab":
        (tmp_path / "crops" / "normal").mkdir(parents=True, exist_ok=True)
        (tmp_path / "crops" / "normal" / f"{key}.jpg").touch()
    processes = [FORK.Process(target=run, args=(key,)) for key in "ab"]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert set(store.Store(tmp_path).cropped()["key"]) == {"a", "b"}


# Buckets.


def downloads(cloud: Cloud) -> int:
    return len(cloud.downloads())


def upload(cloud: Cloud, files: dict[str, bytes], prefix: str = "scans") -> None:
    cloud.put({f"{prefix}/{file}": data for file, data in files.items()})


def few(patients: int = 14) -> dict[str, bytes]:
    return {name("BM"[patient % 2], patient): picture(patient) for patient in range(1, patients + 1)}


def by_content(folder: Path) -> dict[str, tuple[str, str]]:
    table = tables.used(tables.read(folder)[0])
    return dict(zip(table["sha256"], zip(table["label"], table["split"], strict=True), strict=True))


@pytest.mark.parametrize("layout", ["flat", "given"])
def test_a_bucket_gives_what_the_same_files_in_a_folder_give(gcs, tmp_path, monkeypatch, layout):
    files = few()
    largest = max(map(len, files.values()))
    monkeypatch.setattr(images, "MAX_BYTES", largest)
    if layout == "given":
        files = {f"{'test' if int(file[2:5]) > 10 else 'train'}/{file}": data for file, data in files.items()}
    part = "train" if layout == "given" else "part"
    files |= {
        f"{part}/a..b/{name('B', 31)}": picture(31),
        f"{part}/with space/{name('M', 32)}": picture(32),
        f"{part}/갑상선/{name('B', 33)}": picture(33),
        f"{part}/#1?x=1&y=2/{name('M', 34)}": picture(34),
        f"{part}/a%2Fb/{name('B', 35)}": picture(35),
        f"{part}/+%/{name('M', 36)}": picture(1, True),
        # the same bytes twice: which one counts must not depend on the place
        f"{part}/A/{name('B', 37)}": picture(38),
        f"{part}/{name('B', 37)}": picture(38),
        "rois.csv": b"x",
        "notes.txt": b"not a scan",
        f"{part}/{name('M', 39)}": picture(39).ljust(largest + 1, b"\0"),
        f"{part}/{name('M', 40)}": b"",
        f".hidden/{name('M', 41)}": picture(41),
        f"{part}/.{name('M', 41)}": picture(41),
    }
    for file, data in files.items():
        (tmp_path / "scans" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "scans" / file).write_bytes(data)
    upload(gcs, files | {"": b"", f"{part}/": b"", f"{part}/empty/": b""})
    crops = {name("BM"[patient % 2], patient, 2): picture(200 + patient) for patient in range(1, 15)}
    for file, data in crops.items():
        (tmp_path / "crops").mkdir(exist_ok=True)
        (tmp_path / "crops" / file).write_bytes(data)
    upload(gcs, crops, "crops")
    rows = [(name("BM"[patient % 2], patient), 5, 5, 30, 30) for patient in range(1, 10)]
    rows += [(f"{part}/A/{name('B', 37)}", 1, 1, 20, 20), (f"{part}/{name('B', 37)}", 2, 2, 20, 20)]
    rois = write_rois(tmp_path / "rois.csv", rows)
    gcs.put({"scans/tables/rois.csv": rois.read_bytes()})  # and is no scan there

    there, here = tmp_path / "bucket", tmp_path / "folder"
    expected = ingest.ingest(IngestOptions(tmp_path / "scans", rois=rois, crops=tmp_path / "crops"), here).facts
    options = {"rois": gcs.address("scans/tables/rois.csv"), "crops": gcs.address("crops")}
    facts = ingest.ingest(IngestOptions(gcs.address("scans"), **options, store=tmp_path / "store"), there).facts
    for fact in ("digest", "scans", "quarantined", "patients", "duplicate_groups", "regions", "splits", "notes"):
        assert getattr(facts, fact) == getattr(expected, fact), fact
    assert by_content(there) == by_content(here)
    assert len(by_content(there)) == 14 + 7 + 14
    bad = [pd.read_csv(folder / "quarantine.csv")["reason"].tolist() for folder in (there, here)]
    assert bad[0] == bad[1]
    # what is too large or has another name stays where it is; the regions are one more
    assert downloads(gcs) == len(by_content(there)) + 2 + 1
    assert not any("039-" in path or "notes" in path for _, path in gcs.proxy.requests if "alt=media" in path)

    cropped = crop.crop(there, tmp_path / "bucket-crop", CropOptions(["normal"], tmp_path / "store")).facts
    assert cropped.digest == facts.digest
    assert cropped.digest == crop.crop(here, tmp_path / "folder-crop", CropOptions(["normal"])).facts.digest

    gcs.proxy.requests.clear()
    upload(gcs, {f"{part}/{name('M', 42)}": picture(42), "more.txt": b"x"})
    facts = ingest.ingest(
        IngestOptions(gcs.address("scans"), **options, store=tmp_path / "store"), tmp_path / "two"
    ).facts
    assert (downloads(gcs), facts.looked_at, facts.scans) == (1, 2, expected.scans + 1)
    ingest.ingest(IngestOptions(gcs.address("scans/"), **options, store=tmp_path / "store"), tmp_path / "three")
    assert downloads(gcs) == 1
    assert check_store(tmp_path / "store") == ["000001", "000002"]


def test_names_that_files_may_not_have(gcs, tmp_path):
    names = [f"x/../{name('B', 31)}", f"../{name('B', 32)}", f"/abs/{name('B', 33)}", f"a//{name('B', 34)}"]
    names += [f"line\nbreak/{name('B', 35)}", f"'\"\\/{name('B', 36)}"]
    upload(gcs, few() | {file: picture(50 + number) for number, file in enumerate(names)})
    ingest.ingest(IngestOptions(gcs.address("scans"), store=tmp_path / "store"), tmp_path / "in")
    table, _, facts = tables.read(tmp_path / "in")
    assert facts.scans == 14 + len(names)
    assert {f"gs://{gcs.bucket}/scans/{file}" for file in names} <= set(table["path"])
    assert (
        crop.crop(tmp_path / "in", tmp_path / "out", CropOptions(store=tmp_path / "store")).facts.scans == facts.scans
    )
    assert {path.name for path in tmp_path.iterdir()} == {"in", "out", "store"}


def test_without_a_store_the_copies_lie_beside_the_tables(bucket, tmp_path, monkeypatch):
    upload(bucket, few())
    monkeypatch.chdir(tmp_path)
    facts = ingest.ingest(IngestOptions(bucket.address("scans")), Path("in")).facts
    assert crop.crop(Path("in"), Path("out")).facts.digest == facts.digest
    assert len(list((tmp_path / "in" / "scans").rglob("*.jpg"))) == 14


def test_three_hundred_objects_with_two_hundred_faults(bucket, tmp_path):
    files = few(300)
    for file, data in files.items():
        (tmp_path / "scans").mkdir(exist_ok=True)
        (tmp_path / "scans" / file).write_bytes(data)
    upload(bucket, files)
    bucket.proxy.randomly(200, 0.6, seed=1)
    facts = ingest.ingest(IngestOptions(bucket.address("scans"), store=tmp_path / "store"), tmp_path / "in").facts
    assert bucket.proxy.faults == 200
    assert facts.digest == ingest.ingest(IngestOptions(tmp_path / "scans"), tmp_path / "folder").facts.digest
    assert [path.name for path in (tmp_path / "store").rglob(".*")] == [".lock"]
    assert len(list((tmp_path / "store" / "scans").rglob("*.jpg"))) == 300
    assert check_store(tmp_path / "store") == ["000001"]


def test_killed_while_it_downloads(gcs, tmp_path):
    files = few(40)
    upload(gcs, files)
    for file, data in files.items():
        (tmp_path / "scans").mkdir(exist_ok=True)
        (tmp_path / "scans" / file).write_bytes(data)
    expected = ingest.ingest(IngestOptions(tmp_path / "scans"), tmp_path / "folder").facts.digest

    def run() -> None:
        storage.client.client_of.cache_clear()
        ingest.ingest(IngestOptions(gcs.address("scans"), store=tmp_path / "store"), tmp_path / "in")

    guard = threading.Lock()
    for at in (1, 9, 17, 33):
        process, count = FORK.Process(target=run), []

        def rule(method: str, path: str, at=at, process=process, count=count) -> None:
            with guard:
                if "alt=media" in path:
                    count.append(path)
                    if len(count) == at:
                        os.kill(process.pid, signal.SIGKILL)

        gcs.proxy.rule = rule
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert check_store(tmp_path / "store") == []
    gcs.proxy.rule = lambda method, path: None
    for number in range(2):
        facts = ingest.ingest(
            IngestOptions(gcs.address("scans"), store=tmp_path / "store"), tmp_path / f"in{number}"
        ).facts
        assert facts.digest == expected
    assert check_store(tmp_path / "store") == ["000001"]
    copies = pd.read_parquet(tmp_path / "store" / "versions" / "000001" / store.EXAMINED)
    for local, sha256 in zip(copies["local_path"], copies["sha256"], strict=True):
        assert hashlib.sha256(Path(local).read_bytes()).hexdigest() == sha256


@pytest.fixture
def filled(bucket: Cloud) -> Cloud:
    """A bucket with the scans of 14 patients."""
    upload(bucket, few())
    return bucket


def at_download(cloud: Cloud, file: str, act: Callable[[], None]) -> None:
    """Do something right before a file is downloaded for the first time."""
    waiting = [act]

    def rule(method: str, path: str) -> None:
        if cloud.is_download(method, path) and file in path and waiting:
            waiting.pop()()

    cloud.proxy.rule = rule


def generation_of(cloud: Cloud, file: str) -> str:
    place = storage.at(cloud.address("scans"))
    assert isinstance(place, storage.Bucket)
    return next(entry.generation for entry in place.entries() if entry.name == file)


def test_overwritten_while_it_is_read(filled, tmp_path):
    file = name("M", 1)
    at_download(filled, file, lambda: upload(filled, {file: picture(77)}))
    ingest.ingest(IngestOptions(filled.address("scans"), store=tmp_path / "store"), tmp_path / "one")
    row = examined(tmp_path / "store").loc[file]
    assert row["sha256"] == hashlib.sha256(picture(77)).hexdigest()
    assert row["generation"] == generation_of(filled, file)
    assert Path(row["local_path"]).read_bytes() == picture(77)
    filled.proxy.requests.clear()
    ingest.ingest(IngestOptions(filled.address("scans"), store=tmp_path / "store", seed=1), tmp_path / "two")
    assert downloads(filled) == 0
    same_data(tmp_path / "two", tmp_path / "one", splits=True)
    assert len(list((tmp_path / "store" / "scans").rglob("*.jpg"))) == 14


def test_removed_while_it_is_read(filled, tmp_path, capsys):
    file = name("M", 1)
    at_download(filled, file, lambda: filled.delete(f"scans/{file}"))
    facts = ingest.ingest(IngestOptions(filled.address("scans"), store=tmp_path / "store"), tmp_path / "one").facts
    assert f"{filled.address('scans')}: 1 object" in capsys.readouterr().out
    assert (facts.scans, facts.quarantined) == (13, 0)
    assert file not in examined(tmp_path / "store").index
    upload(filled, {file: picture(1)})
    facts = ingest.ingest(IngestOptions(filled.address("scans"), store=tmp_path / "store"), tmp_path / "two").facts
    assert (facts.scans, facts.looked_at) == (14, 1)


def test_half_an_upload_is_taken_once_it_is_whole(filled, tmp_path):
    file = name("M", 77)
    upload(filled, {file: picture(77)[:1500]})
    ingest.ingest(IngestOptions(filled.address("scans"), store=tmp_path / "store"), tmp_path / "one")
    assert "JPEG" in examined(tmp_path / "store").loc[file, "quarantine_reason"]
    upload(filled, {file: picture(77)})
    facts = ingest.ingest(IngestOptions(filled.address("scans"), store=tmp_path / "store"), tmp_path / "two").facts
    assert (facts.scans, facts.quarantined, facts.looked_at) == (15, 0, 1)


def test_copies_that_somebody_removed_are_fetched_again(filled, tmp_path):
    first = ingest.ingest(IngestOptions(filled.address("scans"), store=tmp_path / "store"), tmp_path / "one").facts
    shutil.rmtree(tmp_path / "store" / "scans")
    filled.proxy.requests.clear()
    second = ingest.ingest(IngestOptions(filled.address("scans"), store=tmp_path / "store"), tmp_path / "two").facts
    assert (downloads(filled), second.digest) == (14, first.digest)
    assert crop.crop(tmp_path / "two", tmp_path / "out", CropOptions(store=tmp_path / "store")).facts.scans == 14


def test_a_damaged_copy_is_fetched_again(filled, tmp_path, monkeypatch):
    home = tmp_path / "store"
    first = ingest.ingest(IngestOptions(filled.address("scans"), store=home), tmp_path / "one").facts
    copies = {file: file.read_bytes() for file in sorted((home / "scans").rglob("*.jpg"))}
    table = tables.read(tmp_path / "one")[0]
    damaged, half = (Path(copy) for copy in table.loc[table["split"] == "train", "local_path"].iloc[:2])
    damaged.write_bytes(copies[damaged][:-2] + b"xx")
    half.write_bytes(copies[half][:500])
    lost = crop.crop(tmp_path / "one", tmp_path / "out", CropOptions(store=home)).facts
    assert lost.scans == first.scans - 2
    assert lost.quarantined == 2
    filled.proxy.requests.clear()
    ingest.ingest(IngestOptions(filled.address("scans"), store=home), tmp_path / "two")
    assert crop.crop(tmp_path / "two", tmp_path / "out2", CropOptions(store=home)).facts.scans == first.scans
    assert downloads(filled) == 2
    # if everything is examined again, existing copies are compared with the bucket's checksums
    damaged.write_bytes(copies[damaged][:-2] + b"xx")
    half.write_bytes(copies[half][:500])
    monkeypatch.setattr(examine, "EXAMINATION", 0)
    filled.proxy.requests.clear()
    again = ingest.ingest(IngestOptions(filled.address("scans"), store=home, seed=5), tmp_path / "three").facts
    assert (downloads(filled), again.looked_at, again.digest) == (2, first.scans, first.digest)
    assert {file: file.read_bytes() for file in copies} == copies


def test_a_folder_that_becomes_a_bucket_keeps_its_splits(filled, tmp_path):
    for file, data in few().items():
        (tmp_path / "scans").mkdir(exist_ok=True)
        (tmp_path / "scans" / file).write_bytes(data)
    first = ingest.ingest(IngestOptions(tmp_path / "scans", store=tmp_path / "store"), tmp_path / "one").facts
    for seed in range(3):
        facts = ingest.ingest(
            IngestOptions(filled.address("scans"), store=tmp_path / "store", seed=seed), tmp_path / "two"
        ).facts
        assert facts.cohort == first.cohort
        assert by_content(tmp_path / "two") == by_content(tmp_path / "one")


def test_what_only_the_user_can_mend(filled, tmp_path):
    def told(address: str = filled.address("scans"), **options: str) -> str:
        return outcome(
            lambda: ingest.ingest(IngestOptions(address, store=tmp_path / "store", **options), tmp_path / "in")
        )

    def gone() -> None:
        filled.delete()

    assert told(f"{filled.scheme}no-such-bucket/x").startswith(f"{filled.scheme}no-such-bucket")
    assert told(filled.address("empty")).startswith(f"{filled.address('empty')}: no scan")
    assert told(rois=filled.address("rois.csv")).startswith(f"{filled.address('rois.csv')}: ")
    crops_and_scans = told(crops=filled.address())
    assert crops_and_scans.startswith(f"{filled.address()}: ")
    assert filled.address("scans") in crops_and_scans
    filled.proxy.rule = lambda method, path: "403"
    assert told().startswith(f"{filled.address('scans')}: no permission")
    filled.proxy.rule = lambda method, path: "403" if filled.is_download(method, path) else None
    assert "no permission" in told()
    at_download(filled, name("M", 1), gone)
    assert f"bucket {filled.bucket}" in told()
    assert check_store(tmp_path / "store") == []
    assert not (tmp_path / "in").exists()


# Near-duplicates.


HASHES = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 255)), max_size=30)


@given(HASHES, HASHES, st.integers(1, 9), st.sampled_from([0, 99]))
def test_links_of_what_is_new_and_those_before_are_all(before, new, block, flat):
    def hashes(seeds: list[tuple[int, int]]) -> list[str]:
        """Two hashes of a seed differ by as many bits as their numbers differ by."""
        bits = [np.random.default_rng(s).integers(0, 2, 1024, np.uint8) for s, _ in seeds]
        for row, (_, number) in zip(bits, seeds, strict=True):
            row[:number] ^= 1
        return [np.packbits(row).tobytes().hex() for row in bits]

    known, fresh = hashes(before), hashes(new)
    there = duplicates.links(known)
    every = duplicates.links([*known, *fresh])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates, "_BLOCK", block)
        patch.setattr(duplicates, "_FLAT", flat)
        more = duplicates.links(fresh, known)
    pairs = [frozenset(pair) for pair in (*there, *more)]
    assert len(pairs) == len(set(pairs))
    assert set(pairs) == {frozenset(pair) for pair in every}
    assert not any(a in known and b in known for a, b in more)
