"""The scans of a site: what is read, what the model knows already, and what is refused."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from PIL import Image

from tests.conftest import write_rois, write_scan
from tests.support import toy_artefact
from thyroid.data import pseudonyms, surroundings, tables
from thyroid.data.version import DataVersion
from thyroid.errors import InputError
from thyroid.imaging import phantom
from thyroid.ingest.ingest import ingest
from thyroid.ingest.options import IngestOptions
from thyroid.model.artefact import MODEL, SCANS, Artefact
from thyroid.records.validation import SiteScans
from thyroid.registry.registry import Registry
from thyroid.validate import site
from thyroid.validate.options import ValidateOptions
from thyroid.validate.site import REASONS, Site

HOME = "home"
"""Cohort that the model was made of."""


@pytest.fixture(autouse=True)
def without_a_secret(monkeypatch):
    monkeypatch.delenv(pseudonyms.KEY_VARIABLE, raising=False)


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> DataVersion:
    """Data version of the model: twelve patients with two scans each."""
    folder = tmp_path_factory.mktemp("home")
    for patient in range(1, 13):
        for image in (1, 2):
            name = f"{'BM'[patient % 2]}_{patient:03d}-{image:04d}-1.0.jpg"
            write_scan(folder / "scans" / name, seed=patient * 10 + image)
    return DataVersion.read(ingest(IngestOptions(folder / "scans", site=HOME), folder / "data").folder)


Publish = Callable[..., Artefact]


@pytest.fixture
def root(tmp_path) -> Path:
    return tmp_path / "registry"


@pytest.fixture
def publish(root, tmp_path, home) -> Publish:
    """Register a model that was made of these scans (by default those of `home`); the changes are its description's."""

    def write(scans: pd.DataFrame | None = None, **changes: Any) -> Artefact:
        folder = tmp_path / f"artefact-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        table = home.contents.join(home.used["patient"]) if scans is None else scans
        (folder / MODEL).touch()
        secret = pseudonyms.key(root)
        named = [pseudonyms.of_patient(secret, HOME, int(patient)) for patient in table["patient"]]
        table.assign(patient=named).to_csv(folder / SCANS, index=False)
        Artefact.describe(folder, toy_artefact.description(**changes))
        done = Registry(root).publish(folder, toy_artefact.gate())
        return Artefact.read(Registry(root).find(str(done.version)))

    return write


@pytest.fixture
def model(publish) -> Artefact:
    """A model of full frames, which needs no regions."""
    return publish(serving_domain="normal", domain="normal")


def scan(folder: Path, label: str, patient: int, image: int = 1) -> Path:
    """A scan that no model has seen."""
    return write_scan(folder / f"{label}_{patient:03d}-{image:04d}-1.0.jpg", seed=10_000 + 10 * patient + image)


def of_split(home: DataVersion, *splits: str) -> list[Path]:
    """A scan of every patient of these splits."""
    rows = home.used[home.used["split"].isin(splits)].drop_duplicates("patient")
    return [Path(path) for path in rows["path"]]


def read(root: Path, model: Artefact, work: Path, name: str = "south", **given: Any) -> Site:
    return site.read(ValidateOptions(root, work / "scans", name, **given), model, work / "work")


def reasons(found: Site) -> dict[str, str]:
    """Name of the file to the reason why it was taken out."""
    return {Path(file).name: reason for file, reason in zip(*found.taken_out.to_numpy().T, strict=True)}


def test_a_site_of_another_scanner_is_read_whole_though_numbers_and_names_are_equal(root, publish, phantoms, tmp_path):
    phantom.generate(tmp_path, patients=15, seed=1, scanner="convex")
    learnt = DataVersion.read(ingest(IngestOptions(phantoms / "scans", site=HOME), tmp_path / "learnt").folder)
    model = publish(learnt.contents.join(learnt.used["patient"]), margin=0.25)
    found = read(root, model, tmp_path, rois=tmp_path / "rois.csv")
    names = {Path(path).name for path in found.data.used["path"]}
    assert names < {Path(path).name for path in learnt.used["path"]}
    assert found.taken_out.empty
    assert list(found.taken_out) == ["file", "reason"]
    assert found.facts == SiteScans(
        listed=15,
        quarantined=0,
        taken_out={},
        unchecked=None,
        scans=15,
        patients=15,
        classes={"B": 9, "M": 6},
        malignant_patients=6,
        without_region=0,
        synthetic=15,
    )
    assert set(found.data.used["split"]) == {"test"}
    assert (found.data.margin, found.data.jitter, found.data.facts.cohort) == (0.25, 0, "south")
    for domain in tables.DOMAINS:
        table = surroundings.context(found.data, domain)
        assert len(table) == 15
        assert table["frame"].notna().all()
        assert found.data.pixels(table, 32).shape[:3] == (15, 32, 32)


def test_scans_that_the_model_knows_are_taken_out_by_file_and_by_picture(root, model, home, tmp_path):
    trained, tested = of_split(home, "train", "validation"), of_split(home, "test")
    for number in (901, 902, 903):
        scan(tmp_path / "scans", "B", number)
    expected = {}
    for number, (source, encoded, reason) in enumerate(
        [
            (trained[0], False, "trained_file"),
            (trained[1], True, "trained_picture"),
            (tested[0], False, "tested_file"),
            (tested[1], True, "tested_picture"),
        ],
        start=801,
    ):
        target = tmp_path / "scans" / f"{source.name[0]}_{number:03d}-0001-1.0.jpg"
        if encoded:
            Image.open(source).save(target, quality=70)
        else:
            shutil.copy(source, target)
        expected[target.name] = reason
    (tmp_path / "scans" / "notes.txt").write_text("no scan")
    found = read(root, model, tmp_path)
    assert reasons(found) == {name: REASONS[reason] for name, reason in expected.items()}
    assert found.facts.taken_out == dict.fromkeys(expected.values(), 1)
    assert (found.facts.listed, found.facts.quarantined, found.facts.scans) == (8, 1, 3)
    assert set(found.data.used["patient"]) == {901, 902, 903}
    out = found.data.scans[found.data.scans["quarantine_reason"].notna()]
    assert sorted(out["quarantine_reason"]) == sorted(reasons(found).values())
    assert list(tables.read_quarantine(found.data.folder, found.data.facts)["file"]) == [
        str(tmp_path / "scans" / "notes.txt")
    ]


@pytest.mark.parametrize("name", [HOME, "south"])
def test_patients_are_those_of_the_model_only_in_a_cohort_of_its_name(root, model, home, tmp_path, name):
    split = home.used.drop_duplicates("patient").set_index("patient")["split"]
    for patient in (*range(1, 13), 70):
        scan(tmp_path / "scans", "BM"[patient % 2], patient, image=7)
    found = read(root, model, tmp_path, name)
    assert found.facts.unchecked is None
    if name == HOME:
        counts = (split == "test").value_counts()
        assert found.facts.taken_out == {"trained_patient": counts[False], "tested_patient": counts[True]}
        assert set(found.data.used["patient"]) == {70}
    else:
        assert found.facts.taken_out == {}
        assert found.facts.patients == 13


def test_the_other_scans_of_a_patient_of_whom_one_is_known_are_taken_out(root, model, home, tmp_path):
    shutil.copy(of_split(home, "train")[0], scan(tmp_path / "scans", "B", 800))
    shutil.copy(of_split(home, "test")[0], scan(tmp_path / "scans", "B", 800, image=2))
    for image in (3, 4):
        scan(tmp_path / "scans", "B", 800, image)
    scan(tmp_path / "scans", "B", 801)
    found = read(root, model, tmp_path)
    assert found.facts.taken_out == {"trained_file": 1, "trained_patient": 3}
    assert set(found.data.used["patient"]) == {801}


def test_what_the_champion_that_it_started_from_learnt_from_is_known_too(root, model, home, publish, tmp_path):
    of_others = home.contents.join(home.used["patient"])
    of_others = of_others[of_others["split"] == "test"]
    later = publish(of_others, serving_domain="normal", domain="normal", weights=f"champion {model.record.version}")
    for number, source in enumerate((of_split(home, "train")[0], of_split(home, "test")[0]), start=801):
        shutil.copy(source, tmp_path / f"B_{number}-0001-1.0.jpg")
        shutil.copy(source, scan(tmp_path / "scans", "B", number))
    scan(tmp_path / "scans", "B", 900)
    found = read(root, later, tmp_path)
    assert found.facts.taken_out == {"trained_file": 1, "tested_file": 1}
    assert found.facts.unchecked is None


def test_a_champion_that_it_started_from_and_that_is_gone_is_told(root, publish, tmp_path):
    model = publish(serving_domain="normal", domain="normal", weights="champion 7")
    scan(tmp_path / "scans", "B", 900)
    assert "champion 7, whose training scans are unknown" in str(read(root, model, tmp_path).facts.unchecked)


def test_with_another_key_it_is_told_that_patients_were_not_compared(root, model, tmp_path):
    scan(tmp_path / "scans", "B", 1, image=7)
    (root / pseudonyms.KEY_FILE).unlink()
    found = read(root, model, tmp_path, HOME)
    assert found.facts.scans == 1
    assert f"version {model.record.version}: its patients were named with key" in str(found.facts.unchecked)


def test_an_old_version_is_compared_by_what_it_has(root, home, tmp_path):
    folder = tmp_path / "artefact"
    folder.mkdir()
    (folder / MODEL).touch()
    home.contents[list(tables.CONTENTS)].to_csv(folder / SCANS, index=False)
    Artefact.describe(folder, toy_artefact.description(serving_domain="normal", domain="normal"))
    Registry(root).publish(folder, toy_artefact.gate())
    shutil.copy(of_split(home, "train")[0], scan(tmp_path / "scans", "B", 800))
    Image.open(of_split(home, "train")[1]).save(scan(tmp_path / "scans", "B", 801), quality=70)
    found = read(root, Artefact.read(Registry(root).find()), tmp_path, HOME)
    assert found.facts.taken_out == {"trained_file": 1}
    assert "compared by bytes alone" in str(found.facts.unchecked)


def test_a_model_that_knows_every_scan_is_not_validated(root, model, home, tmp_path):
    shutil.copytree(Path(home.facts.source), tmp_path / "scans")
    with pytest.raises(InputError, match=r"the model knows all 24 usable scans \(\d+ trained file, \d+ tested file\)"):
        read(root, model, tmp_path)


@pytest.mark.parametrize("patients", [1, 12])
@pytest.mark.parametrize("classes", ["B", "M", "BM"])
def test_a_small_site_and_one_class_are_enough(root, model, tmp_path, patients, classes):
    for patient in range(patients):
        scan(tmp_path / "scans", classes[patient % len(classes)], 100 + patient)
    found = read(root, model, tmp_path)
    assert found.facts.patients == found.facts.scans == len(found.data.used) == patients
    assert sum(found.facts.classes.values()) == patients
    assert list(found.facts.classes) == ["B", "M"]
    malignant = sum(classes[patient % len(classes)] == "M" for patient in range(patients))
    assert found.facts.malignant_patients == found.facts.classes["M"] == malignant


def test_a_model_of_crops_without_a_locator_needs_regions(root, publish, tmp_path):
    model = publish()
    for patient in (100, 101, 102):
        scan(tmp_path / "scans", "BM"[patient % 2], patient)
    with pytest.raises(InputError, match=r"none of the 3 scans has a region.*rois\.csv with --rois"):
        read(root, model, tmp_path)
    rois = write_rois(tmp_path / "rois.csv", [("B_100-0001-1.0.jpg", 10, 10, 40, 30), ("gone.jpg", 1, 1, 20, 20)])
    found = read(root, model, tmp_path, rois=rois)
    assert (found.facts.scans, found.facts.without_region, len(found.data.regions)) == (3, 2, 1)
    assert found.facts.quarantined == 0
    assert len(found.data.examples("cropped")) == 1


def test_regions_of_scans_that_are_taken_out_are_no_regions_of_the_site(root, publish, home, tmp_path):
    model = publish()
    shutil.copy(of_split(home, "train")[0], scan(tmp_path / "scans", "B", 800))
    scan(tmp_path / "scans", "B", 801)
    rois = [(f"B_{number}-0001-1.0.jpg", 10, 10, 40, 30) for number in (800, 801)]
    assert len(read(root, model, tmp_path, rois=write_rois(tmp_path / "rois.csv", rois)).data.regions) == 1
    with pytest.raises(InputError, match="none of the 1 scans has a region"):
        read(root, model, tmp_path, rois=write_rois(tmp_path / "rois.csv", rois[:1]))


def test_scans_in_a_bucket_are_read_as_those_in_a_folder(root, model, home, tmp_path, gcs):
    phantom.generate(tmp_path, patients=2, seed=8, scanner="portable")
    shutil.copy(of_split(home, "train")[0], scan(tmp_path / "scans", "B", 901))
    local = read(root, model, tmp_path)
    gcs.put({f"site/{path.name}": path.read_bytes() for path in (tmp_path / "scans").iterdir()})
    options = ValidateOptions(root, gcs.address("site"), "south")
    found = site.read(options, model, tmp_path / "other")
    assert found.facts == local.facts
    assert found.data.digest == local.data.digest
    assert list(found.taken_out["file"]) == [gcs.address("site/B_901-0001-1.0.jpg")]


def test_phantoms_are_counted_among_those_that_are_left(root, model, home, tmp_path):
    phantom.generate(tmp_path, patients=2, seed=8, scanner="portable")
    scan(tmp_path / "scans", "B", 900)
    shutil.copy(of_split(home, "train")[0], scan(tmp_path / "scans", "B", 901))
    found = read(root, model, tmp_path)
    assert (found.facts.scans, found.facts.synthetic, found.data.facts.synthetic) == (3, 2, 2)


def test_the_classes_are_those_of_the_model_and_labels_may_give_them(root, publish, tmp_path):
    model = publish(
        serving_domain="normal",
        domain="normal",
        classes=["2", "3", "4"],
        positive=[False, False, True],
        ordered=True,
        bias=[0.0, 0.0, 0.0],
        thresholds=[0.5, 0.5, 0.5],
    )
    rows = [(scan(tmp_path / "scans", "B", 900 + number).name, grade) for number, grade in enumerate("344x")]
    table = tmp_path / "labels.csv"
    pd.DataFrame(rows, columns=["filename", "grade"]).to_csv(table, index=False)
    found = read(root, model, tmp_path, labels=f"{table}#grade")
    assert found.facts.classes == {"2": 0, "3": 1, "4": 2}
    assert (found.facts.malignant_patients, found.facts.quarantined) == (2, 1)


def test_a_folder_without_scans_and_one_without_usable_scans_are_refused(root, model, tmp_path):
    with pytest.raises(InputError, match="no such folder of scans"):
        read(root, model, tmp_path)
    (tmp_path / "scans").mkdir()
    with pytest.raises(InputError, match="no scan found"):
        read(root, model, tmp_path)
    (tmp_path / "scans" / "B_001-0001-1.0.jpg").write_bytes(b"broken")
    with pytest.raises(InputError, match=r"none of the 1 files is usable; the first is B_001-0001-1\.0\.jpg"):
        read(root, model, tmp_path)
    with pytest.raises(InputError, match="--site"):
        read(root, model, tmp_path, "no/name")


def test_scans_that_contradict_each_other_are_not_usable(root, model, tmp_path):
    shutil.copy(scan(tmp_path / "scans", "B", 900), tmp_path / "scans" / "M_901-0001-1.0.jpg")
    with pytest.raises(InputError, match=r"none of the 2 files is usable.*same bytes under different labels"):
        read(root, model, tmp_path)
    scan(tmp_path / "scans", "M", 902)
    shutil.copy(tmp_path / "scans" / "M_902-0001-1.0.jpg", tmp_path / "scans" / "M_902-0002-1.0.jpg")
    found = read(root, model, tmp_path)
    assert (found.facts.scans, found.facts.quarantined) == (1, 3)


def test_all_scans_are_of_the_test_split_whatever_the_folders_say(tmp_path):
    for patient in range(1, 4):
        scan(tmp_path / "scans" / ("train" if patient < 3 else "test"), "B", patient)
    facts = ingest(IngestOptions(tmp_path / "scans", all_test=True), tmp_path / "data").facts
    assert [count["patients"] for count in facts.splits.values()] == [0, 0, 3]
    with pytest.raises(InputError, match="kept in no store"):
        IngestOptions(tmp_path / "scans", store=tmp_path / "store", all_test=True)
