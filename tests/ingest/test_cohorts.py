"""Splits belong to patients of a cohort and to pictures, whatever the address of the scans."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from tests.conftest import write_scan
from tests.ingest.test_ingest import split_of
from thyroid.data import store, tables
from thyroid.data.store import Store
from thyroid.errors import InputError
from thyroid.imaging import images
from thyroid.ingest import ingest
from thyroid.ingest.options import IngestOptions

pytestmark = pytest.mark.usefixtures("undrawn")


def hospital(folder: Path, seed: int, patients: int = 30) -> Path:
    """One scan each of patients 1, 2, ... as every hospital has them."""
    for patient in range(1, patients + 1):
        write_scan(folder / f"{'BM'[patient % 2]}_{patient:03d}-0001-1.0.jpg", seed=seed + patient)
    return folder


def memory(home: Path) -> pd.DataFrame:
    return Store(home).readable()[0].table(store.MEMORY)


def patients_in(folder: Path, split: str) -> list[int]:
    return sorted({int(name[2:5]) for name, mine in split_of(folder).items() if mine == split})


def test_a_folder_that_moved_keeps_its_splits_and_says_so(tmp_path, capsys):
    home = tmp_path / "store"
    ingest.ingest(IngestOptions(hospital(tmp_path / "scans", 1000), store=home), tmp_path / "one")
    before = split_of(tmp_path / "one")
    moved = shutil.move(tmp_path / "scans", tmp_path / "archive")
    write_scan(Path(moved) / "B_077-0001-1.0.jpg", seed=77)
    capsys.readouterr()
    facts = ingest.ingest(IngestOptions(moved, store=home, seed=9), tmp_path / "two").facts
    after = split_of(tmp_path / "two")
    assert {name: after[name] for name in before} == before
    assert facts.cohort == tables.read_facts(tmp_path / "one").cohort
    told = capsys.readouterr().out
    assert f"note: {moved} " in told
    assert facts.cohort in told
    assert memory(home)["cohort"].nunique() == 1


def test_equal_numbers_of_two_hospitals_have_nothing_to_do_with_each_other(tmp_path, capsys):
    home = tmp_path / "store"
    north, south = hospital(tmp_path / "north", 1000), hospital(tmp_path / "south", 5000)
    ingest.ingest(IngestOptions(north, store=home, site="north"), tmp_path / "one")
    ingest.ingest(IngestOptions(south, seed=3), tmp_path / "alone")
    capsys.readouterr()
    facts = ingest.ingest(IngestOptions(south, store=home, seed=3), tmp_path / "two").facts
    assert split_of(tmp_path / "two") == split_of(tmp_path / "alone")
    assert split_of(tmp_path / "two") != split_of(tmp_path / "one")
    told = capsys.readouterr().out
    assert facts.cohort.startswith("unnamed-")
    assert all(name in told for name in (str(south), facts.cohort, "north", "--site"))
    # the first is as it was, and new scans of its patients go where they are, wherever they lie
    for patient in (*patients_in(tmp_path / "one", "test"), *patients_in(tmp_path / "one", "validation")):
        write_scan(tmp_path / "more" / f"{'BM'[patient % 2]}_{patient:03d}-0002-1.0.jpg", seed=9000 + patient)
    for patient in range(31, 45):
        write_scan(tmp_path / "more" / f"{'BM'[patient % 2]}_{patient:03d}-0001-1.0.jpg", seed=9000 + patient)
    ingest.ingest(IngestOptions(tmp_path / "more", store=home, seed=5, site="north"), tmp_path / "three")
    assert set(patients_in(tmp_path / "one", "test")) <= set(patients_in(tmp_path / "three", "test"))
    assert set(patients_in(tmp_path / "one", "validation")) <= set(patients_in(tmp_path / "three", "validation"))
    assert set(memory(home)["cohort"]) == {"north", tables.read_facts(tmp_path / "two").cohort}


def test_a_cohort_that_is_given_its_name_later_keeps_its_splits(tmp_path):
    home = tmp_path / "store"
    scans = hospital(tmp_path / "scans", 1000)
    ingest.ingest(IngestOptions(scans, store=home), tmp_path / "one")
    facts = ingest.ingest(IngestOptions(scans, store=home, site="St. Anna", seed=8), tmp_path / "two").facts
    assert (facts.cohort, facts.splits) == ("St. Anna", tables.read_facts(tmp_path / "one").splits)
    assert split_of(tmp_path / "two") == split_of(tmp_path / "one")
    assert set(memory(home)["cohort"]) == {"St. Anna"}
    assert ingest.ingest(IngestOptions(scans, store=home), tmp_path / "three").facts.cohort == "St. Anna"


def test_a_picture_keeps_its_split_in_another_cohort(tmp_path):
    home = tmp_path / "store"
    north, south = hospital(tmp_path / "north", 1000), hospital(tmp_path / "south", 5000)
    ingest.ingest(IngestOptions(north, store=home, site="north"), tmp_path / "one")
    number = patients_in(tmp_path / "one", "test")[0]
    file = next(north.glob(f"*_{number:03d}-*"))
    copy = south / f"{file.name[0]}_090-0001-1.0.jpg"
    Image.fromarray(images.decode(file.read_bytes())).resize((192, 160)).save(copy, quality=60)
    for seed in range(4):
        ingest.ingest(IngestOptions(south, store=home, seed=seed, site=f"south {seed}"), tmp_path / f"two{seed}")
        assert split_of(tmp_path / f"two{seed}")[copy.name] == "test"


def test_a_place_that_holds_quite_other_scans_is_asked_about(tmp_path, capsys):
    home = tmp_path / "store"
    ingest.ingest(IngestOptions(hospital(tmp_path / "scans", 1000), store=home), tmp_path / "one")
    shutil.rmtree(tmp_path / "scans")
    facts = ingest.ingest(IngestOptions(hospital(tmp_path / "scans", 5000), store=home), tmp_path / "two").facts
    assert split_of(tmp_path / "two") == split_of(tmp_path / "one"), "the same numbers, which may be the same patients"
    (note,) = facts.notes
    assert all(name in note for name in (str(tmp_path / "scans"), facts.cohort, "--site"))
    assert note in capsys.readouterr().out


@pytest.mark.parametrize("site", ["unnamed-1", "-x", "a" * 65, "a/b", "a\nb", "  ."])
def test_names_that_no_cohort_may_have(scans, tmp_path, site):
    with pytest.raises(InputError, match="--site"):
        ingest.ingest(IngestOptions(scans, site=site), tmp_path / "out")


def age(home: Path) -> None:
    """Make of a store what older code has left: one memory a source, no cohort, no checksum anywhere."""
    for folder in Store(home).versions():
        version = store.Version(folder)
        mine = version.table(store.MEMORY)
        mine[mine["cohort"] == version.facts.cohort].drop(columns="cohort").to_parquet(folder / store.MEMORY)
        facts = {name: value for name, value in version.facts.to_dict().items() if name not in ("cohort", "files")}
        (folder / tables.FACTS).write_text(json.dumps(facts))
    for name in (store.SUMS, store.SEALED):
        (home / name).unlink(missing_ok=True)


def test_a_store_of_older_code_is_filled_at_the_first_write(tmp_path, capsys):
    home = tmp_path / "store"
    sources = {name: hospital(tmp_path / name, seed) for name, seed in (("north", 1000), ("south", 5000))}
    for name, folder in sources.items():
        ingest.ingest(IngestOptions(folder, store=home), tmp_path / name / "out" / "1")
    before = {name: split_of(tmp_path / name / "out" / "1") for name in sources}
    age(home)
    (home / "versions" / "000003").mkdir()
    (home / "versions" / "000003" / tables.FACTS).write_text("{")
    for number, (name, folder) in enumerate(sources.items()):
        moved = tmp_path / f"moved {name}"
        folder.rename(moved)
        shutil.rmtree(moved / "out")
        ingest.ingest(IngestOptions(moved, store=home, seed=7), tmp_path / f"out{number}")
        assert split_of(tmp_path / f"out{number}") == before[name]
    assert "versions/000003:" in capsys.readouterr().out
    versions = [folder.name for folder in Store(home).versions() if tables.sealed(folder)]
    assert versions == ["000001", "000002", "000004", "000005"]
    assert memory(home)["cohort"].nunique() == 2
