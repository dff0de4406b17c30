import json
import os
import re
import shutil
import threading
import time
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pandas as pd
import pytest

from tests.conftest import write_rois, write_scan
from tests.support import toy_artefact
from thyroid import crop, storage
from thyroid.crop import CropOptions
from thyroid.data import crops, tables
from thyroid.data.store import Store
from thyroid.data.version import DataVersion
from thyroid.errors import InputError
from thyroid.ingest import ingest, listing
from thyroid.ingest.options import IngestOptions
from thyroid.label.retention import command
from thyroid.model.artefact import SCANS, Artefact
from thyroid.registry import retention
from thyroid.registry.registry import Registry
from thyroid.registry.retention import Row
from thyroid.storage import mirror

pytestmark = pytest.mark.usefixtures("undrawn")
DAY = 86400


class Killed(BaseException):
    """Stands for kill -9: nothing catches it."""


def killed_after(steps: int, calls: dict, monkeypatch: pytest.MonkeyPatch, work: Callable[[], object]) -> bool:
    """Whether `work` is killed in place of the call after so many of `calls`, which are by owner and name."""
    left = steps

    def counted(call):
        def wrapper(*arguments, **options):
            nonlocal left
            if not left:
                raise Killed
            left -= 1
            return call(*arguments, **options)

        return wrapper

    with monkeypatch.context() as patch:
        for (owner, name), call in calls.items():
            patch.setattr(owner, name, counted(call))
        try:
            work()
        except Killed:
            return True
    return False


class House:
    """A store whose data versions come of small scans, and a registry of models without weights.

    The store is at `place`, a folder or in a bucket, and `store` is its folder on this machine.
    """

    def __init__(self, root: Path, scans: storage.Location, place: storage.Location = "") -> None:
        self.root, self.scans, self.rois = root, scans, ""
        self.place, self.registry = place or root / "store", str(root / "registry")
        self.store = mirror.mirror(self.place)
        (root / "registry").mkdir()

    def night(self) -> Path:
        """Ingest and crop; the folder of the cropped data version."""
        folder = self.root / uuid.uuid4().hex
        ingest.ingest(IngestOptions(self.scans, rois=self.rois, store=self.place), folder / "in")
        crop.crop(folder / "in", folder / "out", CropOptions(store=self.place))
        return folder / "out"

    def grow(self) -> Path:
        """One more scan, and a night."""
        number = len(list(Path(self.scans).iterdir()))
        write_scan(Path(self.scans) / f"B_001-{number:04d}-1.0.jpg", seed=1000 + number)
        return self.night()

    def model(self, data: Path | None, decision: str = "refused") -> int:
        """Register a model of a data version; None for a model that does not name its data version."""
        folder = self.root / uuid.uuid4().hex
        folder.mkdir()
        (folder / "model.keras").write_bytes(os.urandom(1000))
        digest = "none"
        if data is not None:
            scans, regions, told = tables.read(data)
            tables.contents(scans, regions).to_csv(folder / SCANS, index=False)
            digest = told.digest
        Artefact.describe(folder, toy_artefact.description(data_digest=digest))
        champion = Registry(self.registry).champion()
        gate = toy_artefact.gate(decision, champion, ["in a test"])
        return Registry(self.registry).publish(folder, gate).version

    def retain(self, keep: int = 1, days: int = 7, delete: bool = True) -> list[Row]:
        return retention.retain(self.place, self.registry, keep, days, delete)

    def versions(self) -> list[str]:
        return sorted(folder.name for folder in (self.store / "versions").iterdir())

    def images(self) -> set[str]:
        return Store(self.place).names("crops")

    def of(self, version: str) -> set[str]:
        """Names of the images of a data version."""
        return crops.files(*tables.read(self.store / "versions" / version)[:2], [crops.Cut()])

    def files(self) -> dict[str, bytes]:
        """Return all files except locks."""
        there = (path for path in self.root.rglob("*") if path.is_file() and path.name != ".lock")
        return {str(path): path.read_bytes() for path in there}


def rows(found: list[Row], kind: str) -> dict[str, tuple[bool, str]]:
    return {row.name: (row.stays, row.reason) for row in found if row.kind == kind}


def old(path: Path, days: float) -> None:
    then = time.time() - days * DAY
    for one in (path, *path.rglob("*")):
        os.utime(one, (then, then))


@pytest.fixture
def house(scans, tmp_path) -> House:
    return House(tmp_path, scans)


def test_without_delete_nothing_is_touched(house):
    first = house.night()
    for _ in range(2):
        house.model(first)
        house.grow()
    before = house.files()
    found = house.retain(delete=False)
    assert {row.kind for row in found if not row.stays} == {"model", "data"}
    assert house.files() == before
    assert house.retain() == found, "what is listed is what goes"
    assert house.files() != before


def test_the_newest_versions_of_every_source_stay(house, tmp_path):
    house.night()
    other = House.__new__(House)
    other.__dict__ |= house.__dict__ | {"scans": shutil.copytree(house.scans, tmp_path / "more")}
    other.night()
    for _ in range(3):
        house.grow()
    data = rows(house.retain(keep=2), "data")
    assert house.versions() == ["000002", "000004", "000005"]
    assert data["000002"] == (True, f"among the newest 2 of {other.scans}")
    assert data["000005"] == (True, f"among the newest 2 of {house.scans}")
    assert data["000003"] == (False, f"not among the newest 2 of {house.scans}, and no model version needs it")
    assert other.grow(), "the source is taken up where it was"
    assert house.versions()[-1] == "000006", "numbers are not used again"


def test_what_an_alias_needs_stays(house):
    champion = house.model(house.night(), "promoted")
    later = house.grow()
    assert champion == 1
    for _ in range(2):
        house.model(later)
    house.grow()
    house.grow()
    found = house.retain(keep=1)
    assert rows(found, "model") == {
        "1": (True, "champion, anchor"),
        "2": (False, "no alias, and not among the newest 1"),
        "3": (True, "candidate"),
    }
    assert Registry(house.registry).versions() == [1, 3]
    assert house.versions() == ["000001", "000002", "000004"]
    data = rows(found, "data")
    assert data["000001"] == (True, "has the data of model version 1")
    assert data["000002"] == (True, "has the data of model version 3")
    assert data["000004"][1].endswith("; has the data of model version 1, 3"), (
        "it has all their scans, and is the newest"
    )


def test_a_model_that_goes_holds_no_data(house):
    house.model(house.night())
    later = house.grow()
    house.model(later)
    house.grow()
    house.retain(keep=1)
    assert Registry(house.registry).versions() == [2]
    assert house.versions() == ["000002", "000003"]


def test_scans_that_crop_set_aside_do_not_hide_the_data_version(house):
    """The model's digest is none of the store's: the newest version that has all its scans is its."""
    broken = house.scans / "B_001-0001-1.0.jpg"
    ingest.ingest(IngestOptions(house.scans, store=house.store), house.root / "in")
    kept = broken.read_bytes()
    broken.unlink()
    cropped = crop.crop(house.root / "in", house.root / "out", CropOptions(store=house.store))
    broken.write_bytes(kept)
    house.model(house.root / "out", "promoted")
    house.grow()  # has its scans, too
    (house.scans / "B_003-0001-1.0.jpg").unlink()
    house.night()  # has not
    digests = {json.loads(file.read_text())["digest"] for file in house.store.glob("versions/*/data.json")}
    assert cropped.facts.digest not in digests
    assert rows(house.retain(), "data") == {
        "000001": (False, f"not among the newest 1 of {house.scans}, and no model version needs it"),
        "000002": (True, "has the data of model version 1"),
        "000003": (True, f"among the newest 1 of {house.scans}"),
    }


def test_while_a_model_does_not_tell_its_data_all_data_stay(house):
    house.night()
    house.model(None)
    house.grow()
    found = house.retain()
    assert house.versions() == ["000001", "000002"]
    assert rows(found, "data")["000001"] == (True, "what model version 1 was made of cannot be read")


def test_a_model_without_its_list_of_scans_is_found_by_its_digest(house):
    house.model(house.night())
    (Path(house.registry) / "thyroid" / "1" / SCANS).unlink()
    house.grow()
    house.grow()
    house.retain()
    assert house.versions() == ["000001", "000003"]


def test_images_of_data_versions_that_stay_are_not_made_again(house, tmp_path, monkeypatch):
    monkeypatch.setattr(listing, "SETTLED_SECONDS", -1.0)  # every file counts as written long ago
    house.rois = write_rois(
        tmp_path / "rois.csv", [(file.name, 10, 10, 40, 30) for file in sorted(house.scans.iterdir())]
    )
    house.night()
    first = house.of("000001")
    (house.scans / "M_002-0001-1.0.jpg").unlink()
    before = house.night()
    assert house.images() == first
    found = house.retain()
    assert house.images() == house.of("000002") < first
    assert rows(found, "crops") == {
        "62 images": (True, "of data versions that stay"),
        "2 images": (False, "of no data version that stays, or made by other code"),
    }
    assert set(pd.read_parquet(house.store / "crops.parquet")["file"]) == house.images()
    after = house.night()
    assert tables.read_facts(after).cropped == 0
    assert house.versions() == ["000002"], "nothing has changed for ingest, either"
    assert DataVersion.read(after).fingerprint == DataVersion.read(before).fingerprint
    assert tables.read_facts(after).digest == tables.read_facts(before).digest


def test_crops_with_a_swept_margin_stay_as_long_as_their_data_version(house, tmp_path):
    house.rois = write_rois(
        tmp_path / "rois.csv", [(file.name, 30, 30, 40, 30) for file in sorted(house.scans.iterdir())]
    )
    data = house.night()
    swept = crop.crop(data.with_name("in"), tmp_path / "swept", CropOptions(store=house.store, margin=0.35))
    (house.scans / "M_002-0001-1.0.jpg").unlink()
    house.grow()
    made = DataVersion.read(swept.folder)
    wanted = {name for domain in tables.DOMAINS for name in made.examples(domain)["file"]}
    disturbed = set(made.with_jitter(made.examples("cropped"))["jitter_file"].dropna())
    assert len(disturbed - wanted) > 5
    wanted |= disturbed
    of_gone = {name for name in wanted if "M_002-0001" in name}
    assert len(of_gone) in (2, 3), "a third one if it was in the train split"
    house.retain()
    assert house.versions() == ["000002"]
    assert {name for name in wanted if Path(name).is_file()} == wanted - of_gone
    assert (
        crop.crop(data.with_name("in"), tmp_path / "again", CropOptions(store=house.store, margin=0.35)).facts.cropped
        == 1
    )


@pytest.mark.parametrize("damage", [lambda file: file.write_bytes(b"PAR1"), lambda file: file.unlink()])
def test_while_it_cannot_be_told_which_margins_there_are_all_crops_stay(house, damage):
    house.night()
    house.grow()
    damage(house.store / "crops.parquet")
    found = house.retain()
    assert len(house.images()) == 25
    ((stays, reason),) = rows(found, "crops").values()
    assert stays
    assert reason.startswith("crops.parquet")
    assert reason.endswith("the next crop makes them again")


def test_given_crops_are_kept_too(house, tmp_path):
    for patient in range(1, 13):
        write_scan(tmp_path / "crops" / f"{'MB'[patient % 2]}_{patient:03d}-0001-1.0.jpg", 900 + patient, (40, 30))
    ingest.ingest(IngestOptions(house.scans, crops=tmp_path / "crops", store=house.store), tmp_path / "in")
    crop.crop(tmp_path / "in", tmp_path / "out", CropOptions(store=house.store))
    assert len(house.images()) == 36
    assert [row.name for row in house.retain() if row.kind == "crops"] == ["36 images"]


def test_images_of_other_code_go_and_those_of_this_one_are_made(house, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(crops, "CODE", 0)
        house.night()
    older = house.images()
    house.retain()
    assert house.images() == set()
    assert pd.read_parquet(house.store / "crops.parquet").empty
    assert tables.read_facts(house.night()).cropped == 24
    assert house.images() == house.of("000001")
    assert not house.images() & older


def test_copies_of_objects_that_no_version_names_go(scans, tmp_path, gcs):
    gcs.put({f"scans/{file.name}": file.read_bytes() for file in scans.iterdir()})
    house = House(tmp_path, gcs.address("scans"))
    house.registry = gcs.address("registry")
    house.model(house.night())
    gcs.put({"scans/B_001-0001-1.0.jpg": (scans / "B_003-0001-1.0.jpg").read_bytes()})
    newest = house.night()
    house.model(newest, "promoted")
    assert len(list((house.store / "scans").glob("*/*"))) == 25
    found = house.retain()
    assert Registry(house.registry).versions() == [2]
    assert house.versions() == ["000002"]
    assert rows(found, "copies") == {
        "24 files": (True, "of data versions that stay"),
        "1 files": (False, "of no data version that stays"),
    }
    model = next(row for row in found if row.kind == "model" and row.stays)
    assert 1000 < model.bytes < 20_000
    gcs.proxy.requests.clear()
    again = house.night()
    assert DataVersion.read(again).fingerprint == DataVersion.read(newest).fingerprint
    assert not [path for _, path in gcs.proxy.requests if "alt=media" in path], "nothing is downloaded again"
    assert tables.read_facts(again).cropped == 0


def test_a_bucket_without_models_is_an_empty_registry_and_no_bucket_is_none(house, gcs):
    house.night()
    house.grow()
    house.registry = gcs.address("registry")
    house.retain()
    assert house.versions() == ["000002"]
    house.registry = "gs://no-such-bucket/registry"
    with pytest.raises(InputError, match="no-such-bucket"):
        house.retain()
    gcs.put({"elsewhere/scan.jpg": b"x"})
    house.registry = gcs.address("elsewhere")
    with pytest.raises(InputError, match="elsewhere"):
        house.retain()


def test_trainings_that_nothing_touches_go(house):
    house.night()
    names = {days: f"VGG16-normal-{days:016x}" for days in (6, 8, 9)}
    for days, name in names.items():
        (house.store / "work" / name / "main").mkdir(parents=True)
        (house.store / "work" / name / "main" / "state.h5").write_bytes(b"state")
        old(house.store / "work" / name, days)
    now = house.store / "work" / names[9] / "main" / "state.h5"
    now.touch()
    somebodys = house.store / "work" / "notes"
    somebodys.mkdir()
    old(somebodys, 30)
    found = rows(house.retain(), "work")
    assert found[names[8]] == (False, "touched 8.0 days ago")
    assert [found[names[days]][0] for days in (6, 9)] == [True, True]
    assert {path.name for path in (house.store / "work").iterdir()} == {names[6], names[9], "notes"}


def test_locators_and_their_feature_maps_go_as_trainings_do(house):
    house.night()
    work = house.store / "work"
    names = {(kind, days): f"{kind}-{days:016x}" for kind in ("locate", "locate-maps") for days in (2, 9)}
    for (_, days), name in names.items():
        (work / name).mkdir(parents=True)
        (work / name / f"{days:064x}.npy").write_bytes(b"maps")
        old(work / name, days)
    found = rows(house.retain(), "work")
    assert {key: found[name][0] for key, name in names.items()} == {key: key[1] == 2 for key in names}
    assert {path.name for path in work.iterdir()} == {names["locate", 2], names["locate-maps", 2]}


def test_feature_maps_that_a_run_has_used_stay(house):
    """Reading them leaves no trace, so a run touches their folder."""
    house.night()
    maps = house.store / "work" / f"locate-maps-{0:016x}"
    maps.mkdir(parents=True)
    (maps / f"{1:064x}.npy").write_bytes(b"maps")
    old(maps, 30)
    maps.touch()
    assert rows(house.retain(), "work")[maps.name][0]
    assert [path.name for path in maps.iterdir()] == [f"{1:064x}.npy"]


def test_leftovers_go_after_a_day_and_locks_and_others_files_never(house):
    house.night()
    kinds = [
        "versions/.incoming-{}/scans.parquet",
        "crops/normal/.B_001.jpg.{}",
        "scans/ab/.x.jpg.{}",
        ".crops.parquet.{}",
    ]
    for kind in kinds:
        for age, days in (("1", 0.5), ("2", 1.5)):
            path = house.store / kind.format(age)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"half")
            old(path, days)
            if "incoming" in kind:
                old(path.parent, days)
    others = [".lock", ".snapshot", "notes.txt", "scans/B_001-0001-1.0.jpg", "scans/ab/frame.jpg", "crops/normal/x.jpg"]
    for name in others:
        (house.store / name).touch()
        old(house.store / name, 30)
    found = rows(house.retain(), "leftovers")
    left = {name.replace("/scans.parquet", "") for name in kinds}
    assert {name for name, (stays, _) in found.items() if stays} == {name.format("1") for name in left}
    assert {name for name, (stays, _) in found.items() if not stays} == {name.format("2") for name in left}
    for kind in kinds:
        assert (house.store / kind.format("1")).exists()
        assert not (house.store / kind.format("2")).exists()
    assert all((house.store / name).exists() for name in others)


@pytest.mark.parametrize("content", ["{", "[]", "{}", None])
def test_a_damaged_data_version_stays_with_its_images(house, content):
    house.night()
    (house.scans / "M_002-0001-1.0.jpg").unlink()
    house.grow()
    house.grow()
    file = house.store / "versions" / "000001" / "data.json"
    file.unlink() if content is None else file.write_text(content)
    found = house.retain()
    assert house.versions() == ["000001", "000003"]
    stays, reason = rows(found, "data")["000001"]
    assert stays
    assert reason.startswith("damaged (data.json: ")
    assert len(house.images()) == 26, "its images, and one of each night since"


@pytest.mark.parametrize("name", ["scans.parquet", "memory.parquet"])
def test_a_damaged_table_counts_as_damage_and_nothing_is_guessed(house, name):
    house.night()
    (house.scans / "M_002-0001-1.0.jpg").unlink()
    house.grow()
    (house.store / "versions" / "000002" / name).write_bytes(b"PAR1")
    found = house.retain()
    assert house.versions() == ["000001", "000002"], "the one before is the newest whole one"
    assert rows(found, "data")["000002"][1].startswith("damaged (")
    assert rows(found, "crops") == {"25 images": (True, "data version 000002 cannot be read, and may need them")}


def test_a_damaged_table_of_images_costs_no_image(house):
    house.night()
    (house.store / "crops.parquet").write_bytes(b"PAR1")
    house.retain()
    assert len(house.images()) == 24
    assert tables.read_facts(house.night()).cropped == 24


@pytest.fixture
def doomed(house) -> House:
    """Something of each kind that goes."""
    house.model(house.night())
    (house.scans / "M_002-0001-1.0.jpg").unlink()
    house.model(house.grow())
    (house.store / "work" / f"VGG16-normal-{0:016x}" / "main").mkdir(parents=True)
    old(house.store / "work", 8)
    (house.store / "scans" / "ab").mkdir(parents=True)
    (house.store / "scans" / "ab" / f"{0:062x}.jpg").touch()
    left = house.store / "versions" / ".incoming-1"
    left.mkdir()
    old(left, 2)
    return house


@pytest.mark.slow
def test_killed_at_any_step_it_is_finished_by_the_next(doomed, monkeypatch, tmp_path):
    """Killed before the first thing goes, before the second, and so on; what is there is whole each time."""
    real = {(Path, "unlink"): Path.unlink, (shutil, "rmtree"): shutil.rmtree, (Path, "rename"): Path.rename}
    expected = None
    for steps in range(40):
        # the files with their old times
        shutil.rmtree(tmp_path / "kept", ignore_errors=True)
        shutil.copytree(doomed.store, tmp_path / "kept" / "store")
        shutil.copytree(doomed.registry, tmp_path / "kept" / "registry")
        store, root = tmp_path / "kept" / "store", tmp_path / "kept" / "registry"
        killed = killed_after(steps, real, monkeypatch, partial(retention.retain, store, root, 1, delete=True))
        images = {path.relative_to(store / "crops").as_posix() for path in (store / "crops").glob("*/*")}
        assert set(pd.read_parquet(store / "crops.parquet")["file"]) <= images, steps
        for file in store.glob("versions/[0-9]*"):
            retention._contents(file, [crops.Cut()])
        retention.retain(store, root, 1, delete=True)
        after = {p.relative_to(store).as_posix() for p in store.rglob("*") if p.is_file()}
        expected = expected or after
        assert after == expected, steps
        assert not list(store.rglob(".going-*"))
        if not killed:
            break
    else:
        pytest.fail("it never came to its end")
    assert steps > 8
    assert [folder.name for folder in (store / "versions").iterdir()] == ["000002"]
    assert images == doomed.of("000002")
    assert not [*(store / "work").iterdir(), *(store / "scans").glob("*/*")]


def test_runs_that_write_are_waited_for(house, capsys):
    house.night()
    house.grow()
    thread = threading.Thread(target=house.retain)
    with Store(house.store).lock():
        thread.start()
        thread.join(0.3)
        assert thread.is_alive()
        assert house.versions() == ["000001", "000002"]
    thread.join(30)
    assert house.versions() == ["000002"]
    assert "waiting" in capsys.readouterr().out


def test_half_of_a_version_is_never_taken_for_one(doomed, monkeypatch):
    rmtree = shutil.rmtree

    def killed(path, *arguments, **options):
        (path / "scans.parquet").unlink()
        raise Killed

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(Killed):
        doomed.retain()
    monkeypatch.setattr(shutil, "rmtree", rmtree)
    assert [name for name in doomed.versions() if name.isdigit()] == ["000002"]
    half = next(name for name in doomed.versions() if name.startswith(".going-"))
    found = doomed.retain()
    assert rows(found, "leftovers")[f"versions/{half}"] == (False, "half-removed")
    assert doomed.versions() == ["000002"]
    assert tables.read_facts(doomed.night()).cropped == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"keep": 0}, "--keep 0: "),
        ({"days": 0}, "--days 0: "),
    ],
)
def test_numbers_out_of_range(house, options, said):
    house.night()
    before = house.files()
    with pytest.raises(InputError, match=said):
        house.retain(**options)
    assert house.files() == before


def test_what_is_no_store_or_registry_is_said(house, tmp_path, capsys):
    def said(store: object, root: object) -> str:
        assert command.main(["--store", str(store), "--registry", str(root), "--delete"]) == 2
        return capsys.readouterr().err

    (tmp_path / "empty").mkdir()
    assert str(tmp_path / "empty") in said(tmp_path / "empty", house.registry)
    assert str(tmp_path / "none") in said(tmp_path / "none", house.registry)
    assert not (tmp_path / "none").exists()
    house.night()
    capsys.readouterr()
    assert f"--registry {tmp_path / 'none'}" in said(house.store, tmp_path / "none")
    assert f"--registry {house.scans}" in said(house.store, house.scans)
    assert "gs://" in said(house.store, "")
    house.model(house.night())
    (tmp_path / "registry" / "thyroid" / "aliases.json").rename(tmp_path / "aliases.json")
    capsys.readouterr()
    assert "aliases.json" in said(house.store, house.registry)


def test_the_table(house, capsys):
    house.night()
    house.grow()
    where = ["--store", str(house.store), "--registry", house.registry, "--keep", "1"]
    capsys.readouterr()
    assert command.main(where) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:-2]] == ["data", "data", "crops"]
    assert len({line.index(" MB  ") for line in lines[:-2]}) == 1
    assert re.search(r"  goes   .*\b1\b", lines[0])
    assert lines[-2].startswith(house.registry)
    assert "--delete" in lines[-1]
    assert command.main([*where, "--delete"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "  gone   " in lines[0]
    assert lines[-1].endswith(" removed")
