"""New scans become decisions as the log has them, and what cannot be judged says why."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.conftest import write_rois
from tests.support import toy_locator
from thyroid.data import pseudonyms
from thyroid.data.version import DataVersion
from thyroid.errors import InputError
from thyroid.imaging import images
from thyroid.ingest.ingest import ingest
from thyroid.ingest.options import IngestOptions
from thyroid.model.artefact import SCANS, Artefact
from thyroid.records.model import PROPERTIES
from thyroid.records.watch import Decision
from thyroid.validate.endpoint import AUTOMATIC, Endpoint
from thyroid.watch import drift, scans
from thyroid.watch.options import WatchOptions

SECRET = b"0123456789abcdef"
PATIENTS = 8


def box(patient: int) -> tuple[int, int, int, int]:
    return 12 + 28 * patient, (50, 130)[patient % 2], 60, 50


def name(patient: int) -> str:
    return f"{'BM'[patient % 2]}_{patient:03d}-0001-1.0.jpg"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Eight frames of 320 x 240 pixels with a nodule, a file that is no picture, and boxes of the first four."""
    root = tmp_path_factory.mktemp("new")
    (root / "scans").mkdir()
    for patient in range(1, PATIENTS + 1):
        pixels = toy_locator.frame((box(patient),), seed=patient)
        (root / "scans" / name(patient)).write_bytes(images.encode(pixels))
    (root / "scans" / name(99)).write_bytes(b"no picture")
    write_rois(root / "rois.csv", [(name(patient), *box(patient)) for patient in range(1, 5)])
    return root


def model(folder: Path, learnt: pd.DataFrame | None = None, located: bool = True, **given: Any) -> Artefact:
    """A model with a reference for novelty that learnt these scans, or one that nobody has."""
    folder.mkdir()
    if learnt is None:
        learnt = pd.DataFrame(
            [dict.fromkeys(("label", "boxes", "phash", "patient")) | {"sha256": "0" * 64, "split": "train"}]
        )
    learnt.to_csv(folder / SCANS, index=False)
    locator = toy_locator.record() if located else None
    return Artefact.read(toy_locator.build(folder, locator, novelty=True, **given))


@pytest.fixture(scope="module")
def located(tmp_path_factory) -> Artefact:
    return model(tmp_path_factory.mktemp("located") / "model")


def judge(folder: Path, artefact: Artefact, work: Path, **given: Any) -> scans.Judged:
    options = WatchOptions(work / "registry", scans=folder / "scans", **({"rois": folder / "rois.csv"} | given))
    return scans.judge(options, artefact, True, SECRET, work / f"work-{len(list(work.iterdir()))}")


def test_given_boxes_are_judged_and_the_other_frames_by_the_models_own(folder, located, tmp_path):
    found = judge(folder, located, tmp_path, night="2026-02-03", site="south")
    table = found.decisions
    assert list(table) == [*Decision.model_fields, "unit"]
    assert table["source"].value_counts().to_dict() == {"given": 4, "auto": 4}
    assert (table["time"] == pd.Timestamp("2026-02-03T00:00:00Z")).all()
    patients = {pseudonyms.of_patient(SECRET, "south", one): one for one in range(1, PATIENTS + 1)}
    assert set(table["patient"]) == set(table["unit"]) == set(patients)
    given = table[table["source"] == "given"]
    assert {patients[one] for one in given["patient"]} == {1, 2, 3, 4}
    assert {patients[one]: tuple(sides) for one, sides in zip(given["patient"], given["box"], strict=True)} == {
        patient: box(patient) for patient in range(1, 5)
    }
    assert given["box_probability"].isna().all()
    assert table.loc[table["source"] == "auto", "box_probability"].between(0, 1).all()
    assert set(zip(table["width"], table["height"], strict=True)) == {(320, 240)}
    assert (table["distance"] > 0).all()
    assert table["novelty"].between(0, 100).all()
    undecided = table["decision"] == "abstain"
    assert (undecided == table["reasons"].map(bool)).all()
    assert [Path(file).name for file in found.set_aside["file"]] == [name(99)]
    assert not table["id"].duplicated().any()


def test_the_decisions_are_those_of_the_endpoint(folder, located, tmp_path):
    found = judge(folder, located, tmp_path, rois="").decisions.set_index("image")
    ingest(IngestOptions(folder / "scans", all_test=True), tmp_path / "ingested")
    with Endpoint(located.folder, True) as endpoint:
        answers = endpoint.predict(DataVersion.read(tmp_path / "ingested"), AUTOMATIC)
    assert len(answers) == len(found) == PATIENTS
    for row in answers.to_dict("records"):
        mine = found.loc[pseudonyms.of_file(SECRET, row["sha256"])]
        assert mine["probability"] == pytest.approx(row["probability_M"])
        assert mine["box"] == [row[side] for side in ("x", "y", "width", "height")]
        assert ",".join(mine["reasons"]) == row["undecided"]


def test_the_id_depends_on_the_scan_and_not_on_the_night(folder, located, tmp_path):
    first, second = (judge(folder, located, tmp_path, night=f"2026-02-0{day}").decisions for day in (3, 4))
    assert first["id"].tolist() == second["id"].tolist()
    assert set(first["time"]) != set(second["time"])


def test_the_decisions_are_compared_like_those_of_the_log(folder, located, tmp_path):
    found = judge(folder, located, tmp_path, rois="")
    table = drift.properties(found.decisions)
    values = table[list(PROPERTIES)].to_numpy()
    assert len(table) == PATIENTS
    assert np.isfinite(values).all()
    assert table["aspect"].tolist() == [pytest.approx(4 / 3)] * PATIENTS


def test_a_model_of_full_frames_judges_the_scan_area(folder, tmp_path):
    artefact = model(tmp_path / "model", located=False, serving_domain="normal", domain="normal")
    found = judge(folder, artefact, tmp_path)
    assert set(found.decisions["source"]) == {"frame"}
    assert drift.properties(found.decisions)["box_share"].between(0.5, 1).all()
    assert len(found.decisions) == PATIENTS


def test_without_a_locator_frames_without_a_box_are_set_aside(folder, tmp_path):
    artefact = model(tmp_path / "model", located=False)
    found = judge(folder, artefact, tmp_path)
    assert len(found.decisions) == 4
    aside = dict(zip(found.set_aside["file"].map(lambda file: Path(file).name), found.set_aside["reason"], strict=True))
    assert set(aside) == {name(99), *(name(patient) for patient in range(5, PATIENTS + 1))}
    assert "no box" in aside[name(5)]
    with pytest.raises(InputError, match="--rois"):
        judge(folder, artefact, tmp_path, rois="")


def test_scans_that_the_model_knows_are_taken_out_and_all_known_ones_are_no_error(folder, tmp_path):
    data = DataVersion.read(ingest(IngestOptions(folder / "scans"), tmp_path / "home").folder)
    learnt = data.contents.assign(split="train", patient=None)
    some = judge(folder, model(tmp_path / "some", learnt.head(3)), tmp_path)
    assert len(some.decisions) == PATIENTS - 3
    assert some.set_aside["reason"].str.contains("trained or fitted on this very file").sum() == 3
    everything = judge(folder, model(tmp_path / "all", learnt), tmp_path)
    assert everything.decisions.empty
    assert list(everything.decisions) == [*Decision.model_fields, "unit"]
    assert "knows all 8" in everything.set_aside["reason"].item()
