"""Scans that a champion was trained on are recognised under other names, with other bytes, or by the same patient."""

import json
import re
import shutil
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tests.conftest import variant
from tests.evaluate.test_gate import against, answers, decide, failed
from tests.support import toy_artefact
from tests.support.records import train_record
from thyroid import crop
from thyroid.crop import CropOptions
from thyroid.data import duplicates, overlap, pseudonyms, tables
from thyroid.data.classes import BINARY
from thyroid.data.version import DataVersion
from thyroid.errors import InputError
from thyroid.evaluate.audits.leakage import LeakageAudit
from thyroid.ingest import ingest
from thyroid.ingest.options import IngestOptions
from thyroid.model import backbones
from thyroid.model.artefact import MODEL, SCANS, Artefact
from thyroid.records.train import TrainRecord
from thyroid.registry import changes, register
from thyroid.registry.registry import Registry
from thyroid.train import warm_start


@pytest.fixture(autouse=True)
def without_a_secret(monkeypatch):
    monkeypatch.delenv(pseudonyms.KEY_VARIABLE, raising=False)


@pytest.fixture
def root(evaluated, tmp_path) -> Path:
    """A registry whose champion is the evaluation's winner, as a run registers it."""
    copy = shutil.copytree(evaluated, tmp_path / "evaluation")
    facts = json.loads((copy / "evaluation.json").read_text())
    facts["gate"] |= {"decision": "promoted", "champion": None}
    (copy / "evaluation.json").write_text(json.dumps(facts))
    register.register(copy, tmp_path / "registry", tmp_path / "summary.json")
    return tmp_path / "registry"


@pytest.fixture(scope="module")
def exported(phantoms, tmp_path_factory) -> Path:
    """The same patients in another store: other numbers, other names, other JPEG quality, and so other splits."""
    folder = tmp_path_factory.mktemp("exported")
    (folder / "scans").mkdir()
    names = {}
    for path in sorted((phantoms / "scans").rglob("*.jpg")):
        label, rest = path.name.split("_", 1)
        names[path.name] = f"{label}_{int(rest[:3]) + 500}{rest[3:]}"
        Image.open(path).save(folder / "scans" / names[path.name], quality=60)
    rois = pd.read_csv(phantoms / "rois.csv")
    rois.assign(filename=rois["filename"].map(lambda name: names[Path(name).name])).to_csv(
        folder / "rois.csv", index=False
    )
    ingest.ingest(
        IngestOptions(folder / "scans", rois=folder / "rois.csv", store=folder / "store", seed=3, site="north"),
        folder / "ingested",
    )
    crop.crop(folder / "ingested", folder / "data", CropOptions(["cropped"]))
    return folder / "data"


def judging(data: Path, *splits: str) -> pd.DataFrame:
    """Scans that are to judge, as train, gate and audit take them."""
    scans, _, facts = tables.read(data)
    return tables.used(scans)[lambda table: table["split"].isin(splits)].assign(cohort=facts.cohort)


def as_known(cropped: Path, **changed) -> pd.DataFrame:
    """Scans that the champion was trained on, but with other bytes and other pixels, under these columns."""
    far = [np.random.default_rng(number).bytes(128).hex() for number in range(100)]
    table = judging(cropped, "train").reset_index(drop=True)
    return table.assign(sha256="0" * 64, phash=far[: len(table)], split="test", **changed)


def warm(root: Path, table: pd.DataFrame, domain: str = "cropped") -> object:
    version = Registry(root).read_aliases()["champion"]
    backbone = backbones.get(Artefact.read(Registry(root).find()).record.backbone)
    return warm_start.find(root, version, backbone, table, classes=BINARY, domain=domain)


def started(root: Path) -> TrainRecord:
    """Of a training that started from the champion."""
    files = Artefact.read(Registry(root).find()).record.files
    return train_record(recipe="warm", weights="champion 1", champion=files[MODEL])


def audited(data: Path, model: TrainRecord, root: Path | None) -> LeakageAudit:
    done = LeakageAudit()
    done.count_inherited(DataVersion.read(data), model, root)
    done.judge()
    return done


def test_a_registered_version_names_its_patients_without_their_numbers(root, cropped):
    table = changes.scans_of(Registry(root).find())
    secret = pseudonyms.key(root)
    scans, _, facts = tables.read(cropped)
    own = scans.set_index("sha256")
    assert len(table) == len(tables.used(scans))
    for row in table.itertuples():
        assert row.phash == own.loc[row.sha256, "phash"]
        assert row.patient == pseudonyms.of_patient(secret, facts.cohort, own.loc[row.sha256, "patient"])
    Artefact.verify(Registry(root).find())
    assert overlap.find(root, table[table["split"] != "test"], judging(cropped, "test")) == overlap.Overlap(0, 0, 0, 0)


def test_the_same_scans_are_known_after_another_export(root, evaluated, cropped, exported, capsys):
    learnt, tested = changes.scans_of(Registry(root).find()), judging(exported, "test")
    assert not set(learnt["sha256"]) & set(tables.read(exported)[0]["sha256"])

    found = overlap.find(root, learnt[learnt["split"] != "test"], tested)
    assert 0 < found.scans == found.pictures
    assert (found.files, found.patients, found.problem, found.note) == (0, 0, None, None)

    assert warm(root, judging(exported, "validation", "test")) is None
    assert re.search(r"champion 1: .*\b0 by file, [1-9]\d* by picture", capsys.readouterr().out)

    table = answers(evaluated, cropped)
    current, _ = against(root, cropped, table, tested)
    decision = decide(table, current)
    assert decision.decision == "refused"
    assert "not inferior to champion 1" in failed(decision)
    assert any(f"{found.scans} scans " in reason for reason in decision.reasons)

    done = audited(exported, started(root), root)
    assert 0 < done.leakage["test_images_its_start_learnt_from"] <= found.scans
    assert str(done.leakage["test_images_its_start_learnt_from"]) in done.finding


def test_each_scan_is_known_by_the_first_of_the_ways(root, cropped, exported):
    learnt = changes.scans_of(Registry(root).find())
    own, other = judging(cropped, "train"), judging(exported, "train", "validation", "test")
    unseen = as_known(cropped, cohort="south")
    scans = pd.concat([own[:4], other[:5], as_known(cropped)[:6], unseen[:7]], ignore_index=True)
    found = overlap.known(root, learnt, scans)
    assert found.reasons.value_counts(dropna=False).to_dict() == {"file": 4, "picture": 5, "patient": 6, pd.NA: 7}
    assert found.reasons[:4].eq("file").all()
    assert found.ways[:4].to_numpy().all(), "in all ways, of which the first is the reason"
    assert (found.problem, found.note) == (None, None)
    assert overlap.find(root, learnt, scans) == overlap.Overlap(15, 4, 9, 10)


def test_without_scans_nothing_is_known(root, cropped):
    learnt, scans = changes.scans_of(Registry(root).find()), judging(cropped, "test")
    for one, other in ((learnt[:0], scans), (learnt, scans[:0])):
        assert overlap.known(root, one, other).reasons.isna().all()
        assert overlap.find(root, one, other) == overlap.Overlap(0, 0, 0, 0)


def test_the_same_patients_are_known_by_other_pictures(root, evaluated, cropped, capsys):
    cohort = tables.read_facts(cropped).cohort
    table = as_known(cropped)
    assert warm(root, table) is None
    count = len(table)
    assert f"0 by picture, {count} by" in capsys.readouterr().out
    current, _ = against(root, cropped, answers(evaluated, cropped), table)
    assert current.problem.startswith(f"{count} scans ")
    assert table["cohort"].eq(cohort).all()


def test_equal_numbers_of_another_hospital_are_other_patients(root, evaluated, cropped, capsys):
    assert warm(root, as_known(cropped).assign(cohort="south")) is not None
    assert capsys.readouterr().out == ""
    current, _ = against(root, cropped, answers(evaluated, cropped), as_known(cropped).assign(cohort="south"))
    assert (current.problem, current.note) == (None, None)


@pytest.mark.parametrize("lost", [True, False])
def test_with_another_key_patients_cannot_be_compared_and_pictures_can(
    root, evaluated, cropped, exported, lost, monkeypatch, capsys
):
    before = pseudonyms.key_name(pseudonyms.key(root))
    if lost:
        (root / pseudonyms.KEY_FILE).unlink()
    else:
        monkeypatch.setenv(pseudonyms.KEY_VARIABLE, "another secret for tests")
    table = as_known(cropped)
    keys = before, pseudonyms.key_name(pseudonyms.key(root))
    assert warm(root, table) is None
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("champion 1", *keys))
    current, _ = against(root, cropped, answers(evaluated, cropped), table)
    assert current.scores is None
    assert all(key in current.problem for key in keys)
    finding = audited(cropped, started(root), root).finding
    assert all(key in finding for key in keys)

    current, _ = against(root, cropped, answers(evaluated, cropped), judging(exported, "test"))
    assert current.scores is None
    assert re.search(r"\b0 by file\b", current.problem)


def test_an_older_version_is_compared_by_bytes_alone_and_the_record_says_so(
    evaluated, cropped, exported, tmp_path, capsys
):
    artefact = variant(evaluated / "artefact", tmp_path)
    table = pd.read_csv(artefact / SCANS, dtype="string")[list(tables.CONTENTS)]
    table.to_csv(artefact / SCANS, index=False)
    Artefact.describe(artefact, Artefact.read(artefact).record)
    root = tmp_path / "registry"
    Registry(root).publish(artefact, toy_artefact.gate("promoted", None, []))
    assert warm(root, judging(exported, "test")) is not None
    shown = capsys.readouterr().out
    current, _ = against(root, cropped, answers(evaluated, cropped), judging(exported, "test"))
    assert current.scores is not None
    assert current.problem is None
    assert f"champion 1: {current.note}" in shown
    found = {one.name: one.found for one in decide(answers(evaluated, cropped), current).criteria}
    assert found["not inferior to champion 1"].endswith(f"; {current.note}")
    assert not (root / pseudonyms.KEY_FILE).exists()
    current, _ = against(root, cropped, answers(evaluated, cropped), judging(cropped, "train"))
    assert current.scores is None
    assert re.search(r"\b[1-9]\d* by file", current.problem)


@pytest.mark.parametrize("trouble", ["no registry", "gone", "another model"])
def test_a_start_of_which_nothing_is_known_is_no_pass(root, cropped, trouble):
    model, given = started(root), None if trouble == "no registry" else root
    if trouble == "gone":
        model = model.model_copy(update={"weights": "champion 7"})
    elif trouble == "another model":
        model = model.model_copy(update={"champion": "0" * 64})
    done = audited(cropped, model, given)
    assert model.weights in done.finding
    assert not done.ran


def test_a_start_that_learnt_from_nothing_of_the_test_passes(root, cropped):
    done = audited(cropped, started(root), root)
    assert done.finding is None
    assert done.leakage == {"test_images_its_start_learnt_from": 0, "test_images_of_patients_its_start_learnt_from": 0}
    assert not audited(cropped, train_record(), None).leakage


def test_a_lost_table_of_patients_is_said(evaluated, tmp_path):
    copy = shutil.copytree(evaluated, tmp_path / "evaluation")
    file = copy / register.PATIENTS
    file.write_text(file.read_text().replace("1", "2", 1))
    for _ in range(2):
        with pytest.raises(InputError, match=r"patients\.csv"):
            register.register(copy, tmp_path / "registry", tmp_path / "summary.json")
        file.unlink(missing_ok=True)
    assert not (tmp_path / "registry").exists()


def test_near_pictures_are_those_of_the_links():
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2, (40, 1024), dtype=np.uint8)
    copies = bits.copy()
    for number, copy in enumerate(copies):
        copy[rng.permutation(1024)[: 87 + number // 2]] ^= 1
    known, new = ([np.packbits(row).tobytes().hex() for row in rows] for rows in (bits, copies))
    near = duplicates.near([*new, known[3]], known)
    assert near == {a if a in new else b for a, b in duplicates.links(new, known)} & set(new) | {known[3]}
    assert len(near) == 19
    assert duplicates.near(new, []) == duplicates.near([], known) == set()


def test_comparing_pictures_of_50000_scans_takes_seconds():
    """A hundredth of the worst case: 7,500 test scans of a new store against the 42,500 others of a champion."""
    rng = np.random.default_rng(0)
    known, new = ([rng.bytes(128).hex() for _ in range(count)] for count in (4250, 750))
    started = time.process_time()
    duplicates.near(new, known)
    assert time.process_time() - started < 0.3  # 30 ms; NumPy's way of `links` takes ten times as long
