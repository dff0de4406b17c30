"""A patient is erased: nothing is left in store and registry but in the models that are listed."""

import hashlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from tests.conftest import write_rois, write_scan
from tests.ingest.test_ingest import split_of
from tests.registry.test_retention import House, killed_after
from thyroid import crop
from thyroid import retention as command
from thyroid.crop import CropOptions
from thyroid.data import duplicates, pseudonyms, store, tables
from thyroid.data.store import Store, erased
from thyroid.data.version import DataVersion
from thyroid.errors import InputError
from thyroid.imaging import images
from thyroid.ingest import ingest, listing
from thyroid.ingest.options import IngestOptions
from thyroid.registry import erasure, retention
from thyroid.registry.patient_data import PatientData

pytestmark = pytest.mark.usefixtures("undrawn")
WHO = 987654


@pytest.fixture(autouse=True)
def without_a_secret(monkeypatch):
    monkeypatch.delenv(pseudonyms.KEY_VARIABLE, raising=False)
    monkeypatch.setattr(listing, "SETTLED_SECONDS", -1.0)  # every file counts as written long ago


@pytest.fixture
def house(tmp_path) -> House:
    """Return data versions and models without the patient, with, and without again.

    Other patients have the same pictures as that patient, too.
    """
    folder = tmp_path / "scans"
    for patient in range(1, 13):
        write_scan(folder / f"{'MB'[patient % 2]}_{patient:03d}-0001-1.0.jpg", seed=patient)
    house = House(tmp_path, folder)
    house.model(house.night())
    for number in (1, 2):
        write_scan(folder / f"B_{WHO}-{number:04d}-1.0.jpg", seed=500 + number)
    (folder / f"B_{WHO}-0003-1.0.jpg").write_bytes(b"broken")
    pixels = Image.fromarray(images.decode((folder / f"B_{WHO}-0001-1.0.jpg").read_bytes()))
    pixels.resize((192, 160)).save(folder / "B_200-0001-1.0.jpg", quality=70)
    shutil.copy(folder / f"B_{WHO}-0002-1.0.jpg", folder / "B_300-0001-1.0.jpg")
    pixels.save(folder / "M_400-0001-1.0.jpg", quality=70)  # disputed, and so quarantined by the others' names
    pixels.save(folder / "B_001-0009-1.0.jpg", quality=60)
    house.rois = write_rois(
        tmp_path / "rois.csv",
        [(file.name, 10, 10, 40, 30) for file in sorted(folder.iterdir())] + [(f"B_{WHO}-0008-1.0.jpg", 1, 1, 9, 9)],
    )
    (folder / "M_400-0001-1.0.jpg").unlink()
    house.model(house.night())
    house.grow()
    return house


def needles(house: House) -> dict[str, bytes]:
    """What names or shows the patient, by what it is."""
    found = {"number": str(WHO).encode()}
    for file in house.scans.glob(f"*_{WHO}-*"):
        data = file.read_bytes()
        if data == b"broken":
            continue
        found |= {f"sha256 of {file.name}": hashlib.sha256(data).hexdigest().encode(), f"bytes of {file.name}": data}
        found[f"hash of {file.name}"] = duplicates.perceptual_hash(images.decode(data)).encode()
    for file in (house.store / "crops").glob(f"*/[!.]*_{WHO}-*"):
        found[f"{file.parent.name} of {file.name}"] = file.read_bytes()
        found[f"sha256 of {file.parent.name} {file.name}"] = hashlib.sha256(file.read_bytes()).hexdigest().encode()
    return found


def finds(house: House, wanted: dict[str, bytes], models: tuple[int, ...] = ()) -> list[str]:
    """Return where any needle is found in store and registry, except in these models; tables are parsed, too."""
    places = []
    for root in (house.store, Path(house.registry)):
        for file in (path for path in root.rglob("*") if path.is_file()):
            if any(file.is_relative_to(Path(house.registry) / "thyroid" / str(model)) for model in models):
                continue
            data = f"{file.relative_to(root)}\n".encode() + file.read_bytes()
            if file.suffix == ".parquet":
                data += pd.read_parquet(file).to_csv().encode()
            places += [f"{what} in {file.relative_to(root)}" for what, needle in wanted.items() if needle in data]
    return places


def forget(house: House, delete: bool = True, site: str = "") -> dict[str, dict[str, str]]:
    held = retention.forget(house.store, house.registry, WHO, site, delete)
    return {kind: {one.name: one.reason for one in held if one.kind == kind} for kind in {one.kind for one in held}}


def splits(data: Path) -> dict[str, str]:
    return {name: split for name, split in split_of(data).items() if str(WHO) not in name and pd.notna(split)}


def test_nothing_is_left_but_in_the_models_that_are_listed(house, capsys):
    for number in range(3):
        folder = house.store / "work" / f"VGG16-normal-{number:016x}" / "done"
        folder.mkdir(parents=True)
        (folder / "parts.csv").write_text(f"file,part\nnormal/B_{WHO}-0001-1.0-{0:016x}.jpg,train\n")
    scan = hashlib.sha256((house.scans / f"B_{WHO}-0001-1.0.jpg").read_bytes()).hexdigest()
    for name, file in (("locate", "boxes.csv"), ("locate-maps", f"{scan}.npy")):
        folder = house.store / "work" / f"{name}-{0:016x}"
        folder.mkdir()
        (folder / file).write_text(f"normal/B_{WHO}-0001-1.0-{0:016x}.jpg")
    left = house.store / "crops" / "normal" / f".B_{WHO}-0001-1.0-{1:016x}.jpg.77"
    left.write_bytes(b"half")
    (house.store / "crops.parquet.tmp").write_text(f"B_{WHO}-0001-1.0.jpg")
    before, wanted = splits(house.night()), needles(house)
    assert {place.split(" in ")[0] for place in finds(house, wanted)} >= {
        name for name in wanted if not name.startswith("bytes")
    }
    kept = house.files()
    told = forget(house, delete=False)
    assert house.files() == kept, "nothing goes before it is said"
    assert told["model"] == {"2": told["model"]["2"]}
    assert "(candidate)" in told["model"]["2"]
    assert set(told["data"]) == {"000002", "000003"}
    assert told["patients"].keys() == {"1, 200, 300"}
    assert len(told["work"]) == 5
    assert {f"work/locate-{0:016x}", f"work/locate-maps-{0:016x}"} < set(told["work"])

    others = {name: data for name, data in house.files().items() if "normal/" in name or "cropped/" in name}
    done = forget(house)
    assert {**done, "leftovers": {}} == {**told, "leftovers": {}}
    assert finds(house, wanted, models=(2,)) == []
    assert finds(house, wanted), "what is listed has it"
    for name, data in others.items():
        if not any(one in name for one in (f"_{WHO}-", "_300-")):
            assert Path(name).read_bytes() == data
    for version in Store(house.store).readable():
        scans, regions, facts = tables.read(version.folder)
        assert facts.digest == tables.digest(scans, regions)
        assert facts.scans == len(tables.used(scans))
        assert facts.quarantined == len(tables.read_quarantine(version.folder, facts))
        for name in (store.EXAMINED, store.LINKS, store.MEMORY):
            version.table(name)
        assert (version.folder / "statistics.png").exists() == (version.folder.name == "000001"), "it shows sizes"
    capsys.readouterr()
    after = house.night()
    assert splits(after) == {name: split for name, split in before.items() if "B_300" not in name}
    assert finds(house, wanted, models=(2,)) == []
    for needle in wanted.values():
        assert needle not in b"".join(file.read_bytes() for file in after.iterdir())
    quarantine = tables.read_quarantine(after, tables.read_facts(after))
    mine = quarantine[quarantine["reason"].str.startswith("of a patient who was erased")]
    assert len(mine) == 4, "three files, and one under another number"
    assert mine["file"].str.contains("/erased-").all()
    assert str(WHO) not in capsys.readouterr().out
    assert forget(house) == {"model": told["model"]}, "the list can be had again"


def test_it_stays_erased_under_another_name_of_the_cohort_and_another_number(house):
    wanted = needles(house)
    forget(house)
    scan = house.scans / f"B_{WHO}-0001-1.0.jpg"
    shutil.copy(scan, house.scans / "B_555-0001-1.0.jpg")
    ingest.ingest(IngestOptions(house.scans, store=house.store, site="north"), house.root / "named")
    ingest.ingest(IngestOptions(house.scans, store=house.store), house.root / "again")
    assert tables.read_facts(house.root / "again").cohort == "north"
    scans = tables.read(house.root / "again")[0]
    assert scans["quarantine_reason"].str.startswith("of a patient who was erased").sum() == 5
    assert 555 not in set(scans["patient"])
    assert finds(house, wanted, models=(2,)) == []
    assert forget(house, site="north").keys() == {"model"}


def test_the_copies_of_a_bucket_go_and_are_not_kept_again(house, gcs):
    wanted = needles(house)
    gcs.put({f"scans/{file.name}": file.read_bytes() for file in house.scans.iterdir()})
    folder, house.scans = house.scans, gcs.address("scans")
    house.night()
    copies = {file.read_bytes() for file in (house.store / "scans").glob("*/*")}
    theirs = {file.read_bytes() for file in folder.glob(f"*_{WHO}-*")}
    assert theirs <= copies
    forget(house)
    for _ in range(2):
        house.night()
        assert {file.read_bytes() for file in (house.store / "scans").glob("*/*")} == copies - theirs
        assert finds(house, wanted, models=(2,)) == []


def test_equal_numbers_of_another_cohort_are_somebody_else(house, tmp_path):
    south = tmp_path / "south"
    for patient in (*range(1, 12), WHO):
        write_scan(south / f"{'MB'[patient % 2]}_{patient:03d}-0001-1.0.jpg", seed=7000 + patient)
    ingest.ingest(IngestOptions(south, store=house.store, site="south"), tmp_path / "one")
    crop.crop(tmp_path / "one", tmp_path / "two", CropOptions(store=house.store))
    with pytest.raises(InputError, match=r"--forget.*\bsouth, unnamed-"):
        forget(house)
    with pytest.raises(InputError, match=r"--site west.*\bsouth, unnamed-"):
        forget(house, site="west")
    forget(house, site=store.unnamed(str(house.scans)))
    scans = tables.read(house.store / "versions" / "000004")[0]
    assert WHO in set(tables.used(scans)["patient"])
    images_of_south = DataVersion.read(tmp_path / "two").examples("normal")
    assert all(Path(file).is_file() for file in images_of_south["file"])
    before = split_of(tmp_path / "one")
    ingest.ingest(IngestOptions(south, store=house.store), tmp_path / "three")
    assert split_of(tmp_path / "three") == before


@pytest.mark.parametrize("every", [11, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_at_any_step_it_is_finished_by_the_next(house, monkeypatch, tmp_path, every):
    wanted = needles(house)
    real = {
        (Path, "unlink"): Path.unlink,
        (shutil, "rmtree"): shutil.rmtree,
        (Path, "rename"): Path.rename,
        (Path, "replace"): Path.replace,
    }
    kept = tmp_path / "kept"
    shutil.copytree(house.store, kept)
    expected = None
    for steps in range(0, 400, every):
        shutil.rmtree(house.store)
        shutil.copytree(kept, house.store)
        killed = killed_after(steps, real, monkeypatch, lambda: forget(house))
        forget(house)
        assert finds(house, wanted, models=(2,)) == [], steps
        versions = Store(house.store).readable()
        found = [version.facts.digest for version in versions]
        expected = expected or found
        assert len(found) == 3
        assert found == expected, steps
        if not killed:
            break
    else:
        pytest.fail("it never came to its end")
    assert steps > 20


@pytest.mark.parametrize("damage", ["content", "key"])
def test_a_list_that_cannot_be_read_ends_the_night(house, damage):
    forget(house)
    file = house.store / (erased.FILE if damage == "content" else pseudonyms.KEY_FILE)
    data = bytearray(file.read_bytes())
    data[40] ^= 1
    file.write_bytes(data)
    with pytest.raises(InputError, match=r"erased\.json"):
        house.night()


def test_what_cannot_be_erased_is_said_before_anything_goes(house):
    with pytest.raises(InputError, match=r"\b77\b.*\bunnamed-"):
        retention.forget(house.store, house.registry, 77, delete=True)
    (house.store / "versions" / "000001" / "memory.parquet").write_bytes(b"PAR1")
    before = house.files()
    with pytest.raises(InputError, match="000001"):
        forget(house)
    assert house.files() == before


def test_the_words(house, capsys):
    where = ["--store", str(house.store), "--registry", house.registry, "--forget", str(WHO)]
    capsys.readouterr()
    assert command.main(where) == 0
    told = capsys.readouterr().out
    assert re.search(r"  goes   .*\bpatient$", told, re.MULTILINE)
    assert "python -m thyroid.registry gc" in told
    assert "--delete" in told.splitlines()[-1]
    # in the workbench, whose image does without these
    bare = "import sys; sys.modules['matplotlib'] = sys.modules['scipy'] = sys.modules['imagehash'] = None\n"
    bare += "from thyroid import retention; sys.exit(retention.main(sys.argv[1:]))"
    told = subprocess.run(
        [sys.executable, "-c", bare, *where, "--delete"], capture_output=True, text=True, check=True
    ).stdout
    assert re.search(r"^data +\S+ .*  gone   ", told, re.MULTILINE)
    assert "--delete" not in told
    assert str(WHO) not in told
    assert command.main([*where[:-1], "77"]) == 2
    assert "77" in capsys.readouterr().err


@pytest.mark.parametrize("key", ["as it was", "another"])
def test_a_model_is_known_by_the_names_of_its_patients(tmp_path, key):
    """Even where no data version has the patient's files any more."""
    found = PatientData(WHO, frozenset({"north"}), frozenset(), frozenset(), frozenset(), [])
    secret = pseudonyms.key(tmp_path) if key == "as it was" else b"a secret that is lost"
    names = [pseudonyms.of_patient(secret, cohort, number) for cohort, number in (("north", WHO), ("south", WHO))]
    named, comparable = erasure._named(tmp_path, pd.Series([*names, None], dtype="string"), found)
    assert named.tolist() == [key == "as it was", False, False]
    assert comparable == (key == "as it was")
