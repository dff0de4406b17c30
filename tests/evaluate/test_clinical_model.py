import json
import shutil
from html import unescape

import numpy as np
import pandas as pd
import pytest

from thyroid import RESEARCH_USE_ONLY, crop
from thyroid.clinical.clinical_table import ClinicalTable
from thyroid.clinical.fusion import Fusion
from thyroid.crop import CropOptions
from thyroid.data import tables
from thyroid.data.classes import BINARY
from thyroid.data.version import DataVersion
from thyroid.errors import InputError
from thyroid.evaluate import clinical_model, evaluate, gate, predictions, report, scored
from thyroid.evaluate.audits.audits import ModelAudits
from thyroid.evaluate.champion import Champion, Rivals
from thyroid.evaluate.options import EvaluateOptions
from thyroid.imaging import phantom
from thyroid.ingest import ingest
from thyroid.ingest.options import IngestOptions
from thyroid.model.artefact import MODEL, Artefact, load_keras
from thyroid.model.operating_point import OperatingPoint
from thyroid.records.evaluation import EvaluationRecord
from thyroid.train import record, train
from thyroid.train.options import TrainOptions

PATIENTS = 110


@pytest.fixture(scope="module")
def study(toy, tmp_path_factory):
    """Return a data version, a cross-validated training and clinical.csv: a helpful, a useless and a leaky column."""
    folder = tmp_path_factory.mktemp("clinical")
    phantom.generate(folder, patients=PATIENTS, images_per_patient=1, seed=5)
    rng = np.random.default_rng(2)
    names = sorted(path.name for path in (folder / "scans").glob("*.jpg"))
    flipped = rng.random(len(names)) < 0.3  # or the images alone would leave nothing to add
    truth = ["BM"[int((name[0] == "M") != flip)] for name, flip in zip(names, flipped, strict=True)]
    pd.DataFrame({"filename": names, "label": truth}).to_csv(folder / "labels.csv", index=False)
    ingest.ingest(
        IngestOptions(folder / "scans", rois=folder / "rois.csv", labels=folder / "labels.csv"), folder / "ingested"
    )
    data = crop.crop(folder / "ingested", folder / "data", CropOptions(["cropped"])).folder
    options = TrainOptions(weights="none", image_size=32, recipe="frozen", folds=3)
    train.train(data, folder / "model", toy, "cropped", options)
    scans = tables.used(tables.read(data)[0]).drop_duplicates("patient")
    malignant = (scans["label"] == "M").to_numpy()
    table = pd.DataFrame(
        {
            "patient": scans["patient"],
            "tsh": np.where(malignant, 3.0, 1.0) + rng.normal(0, 1.2, len(scans)),
            "shoe": rng.normal(40, 2, len(scans)),
            "biopsy": np.where(malignant, "carcinoma", "colloid"),
        }
    )
    table.to_csv(folder / "clinical.csv", index=False)
    return folder


@pytest.fixture(scope="module")
def helped(study):
    options = EvaluateOptions(clinical=f"{study / 'clinical.csv'}#*")
    evaluate.evaluate(study / "data", [study / "model"], study / "helped", options)
    return study / "helped"


def test_columns_that_help_are_used_and_what_gives_the_class_away_is_not(helped):
    result = EvaluationRecord.read(helped / "evaluation.json")
    clinical = result.clinical
    assert clinical.used == ["tsh", "shoe"]
    assert list(clinical.left_out) == ["biopsy"]
    assert clinical.development.verdict == "helped"
    assert clinical.development.difference["fused_less_images"].low > 0
    assert clinical.fitted_on.what == "development patients, out of fold"
    locked = json.loads((helped / "operating_points.json").read_text())
    assert locked["columns"] == ["tsh", "shoe"]
    text = (helped / "report.html").read_text()
    assert clinical.left_out["biopsy"] in unescape(text.split('id="gate"')[0]), "on the first page"
    assert 'id="clinical"' in text
    assert RESEARCH_USE_ONLY in text
    criteria = {one.name: one for one in result.gate.criteria}
    assert criteria["clinical columns"].passed


def test_what_is_written_down_answers_as_it_was_scored(helped, study):
    facts = Artefact.verify(helped / "artefact").record
    head = Fusion.from_record(facts.clinical)
    assert [field.name for field in facts.clinical.fields] == ["tsh", "shoe"]
    table = pd.read_parquet(helped / "predictions.parquet").query("split == 'test'")
    folds = record.out_of_fold(study / "model", "cropped")
    assert not set(folds["patient"]) & set(table["patient"])
    from thyroid.model import inputs

    shown = inputs.decode(DataVersion.read(study / "data").examples("cropped", "test"), 32)
    own = inputs.predict(load_keras(helped / "artefact" / MODEL), shown)
    rows = pd.read_csv(study / "clinical.csv").set_index("patient").loc[table["patient"]]
    scaled = OperatingPoint.from_record(facts).scale(head.predict(own, rows.reset_index(drop=True))[0])
    np.testing.assert_allclose(scaled, table[BINARY.columns], atol=1e-5)


def fitted(data, training, clinical, folder):
    """As an evaluation does it before it reads the test set."""
    evaluation, (winner,) = scored.read(data, [training], EvaluateOptions())
    table = ClinicalTable.read(clinical, evaluation.data.used)
    winner.load()
    winner.lock()
    return clinical_model.fit_and_compare(winner, table, folder)


def test_columns_that_say_nothing_are_not_used(study, tmp_path):
    done = fitted(study / "data", study / "model", f"{study / 'clinical.csv'}#shoe", tmp_path)
    assert done.head is None
    assert done.record.used == []
    assert done.record.development.verdict == "not shown to help"
    assert {f"{name}.png" for name in done.record.pictures} == {path.name for path in tmp_path.iterdir()}


def test_columns_that_define_the_class_together_fail_the_gate(study, helped, tmp_path):
    table = pd.read_csv(study / "clinical.csv")
    rng = np.random.default_rng(0)
    malignant = table["biopsy"] == "carcinoma"
    for number in range(4):  # each of them right in four of five
        table[f"sign{number}"] = np.where(rng.random(len(table)) < 0.8, malignant, ~malignant).astype(int).astype(str)
    table.to_csv(study / "signs.csv", index=False)
    where = f"{study / 'signs.csv'}#sign0,sign1,sign2,sign3"
    done = fitted(study / "data", study / "model", where, tmp_path)
    assert done.record.used == ["sign0", "sign1", "sign2", "sign3"]
    result = EvaluationRecord.read(helped / "evaluation.json")
    (row,), alone = result.models, Rivals(Champion(None, problem="no registry"))
    test = predictions.of_model(pd.read_parquet(helped / "predictions.parquet"), row, "cropped", "test")
    audited = ModelAudits.from_record(result.audits, done.record)
    candidate = gate.Candidate(
        row.test["cropped"], row.operating_point.threshold, row.validation.malignant_patients, test
    )
    decided = gate.decide(candidate, alone, audited.audits, EvaluateOptions())
    (criterion,) = (one for one in decided.criteria if one.name == "clinical columns")
    assert not criterion.passed
    assert criterion.found == "; ".join(done.record.leaks.together.findings)
    waived = gate.decide(candidate, alone, audited.audits, EvaluateOptions(waive=["clinical"]))
    assert criterion.name in waived.waived


def test_columns_that_cannot_be_searched_for_leakage_end_no_evaluation(study, tmp_path, monkeypatch):
    def too_few(*given, **named):
        raise InputError("too few patients for folds")

    monkeypatch.setattr(clinical_model.leakage, "find", too_few)
    options = EvaluateOptions(clinical=f"{study / 'clinical.csv'}#tsh")
    done = evaluate.evaluate(study / "data", [study / "model"], tmp_path / "out", options)
    assert done.record.clinical.used == []
    assert done.record.clinical.not_tried == "too few patients for folds"
    (finding,) = done.record.clinical.leaks.findings
    assert any(finding in warning for warning in report.warnings(done.record))
    criteria = {criterion.name: criterion for criterion in done.record.gate.criteria}
    assert criteria["clinical columns"].passed, "the model uses none"


def test_too_few_patients_end_no_evaluation(cropped, trained, tmp_path):
    scans = tables.used(tables.read(cropped)[0]).drop_duplicates("patient")
    table = pd.DataFrame({"patient": scans["patient"], "age": np.arange(len(scans)) % 7 + 30})
    table.to_csv(tmp_path / "clinical.csv", index=False)
    done = fitted(cropped, trained["VGG16", "cropped"], f"{tmp_path / 'clinical.csv'}#age", tmp_path)
    assert done.head is None
    assert done.record.used == []


@pytest.mark.parametrize(("asked", "said"), [("weight", "weight"), ("site", "site .*constant")])
def test_a_column_that_cannot_be_used_is_named_before_anything_is_scored(study, tmp_path, asked, said):
    table = pd.read_csv(study / "clinical.csv").assign(site="here")
    table.to_csv(tmp_path / "clinical.csv", index=False)
    scans = tables.used(tables.read(study / "data")[0])
    with pytest.raises(InputError, match=said):
        ClinicalTable.read(f"{tmp_path / 'clinical.csv'}#{asked}", scans)


@pytest.mark.slow
def test_endpoint_and_facts(helped, study, tmp_path):
    """Values over V1 and V2, what is missing, what was never seen, and what the model has no column for."""
    import base64

    import httpx

    from tests.support.pages import Page
    from tests.support.serving import Server
    from thyroid.registry import register

    root = tmp_path / "registry"
    register.register(helped, root, tmp_path / "summary.json")
    scan = next((study / "scans").glob("*.jpg")).read_bytes()
    image = {"b64": base64.b64encode(scan).decode()}
    running = Server(tmp_path / "log", "--registry", str(root)).wait()
    address = f"http://127.0.0.1:{running.port}"
    try:

        def ask(clinical):
            body = {"instances": [{"image": image} | ({} if clinical is None else {"clinical": clinical})]}
            return httpx.post(f"{address}/v1/models/thyroid:predict", json=body, timeout=60)

        low, high, none = (ask(value).json()["predictions"][0] for value in ({"tsh": 0.5}, {"tsh": 4.0}, None))
        assert low["malignant"] < none["malignant"] < high["malignant"]
        assert high["clinical"] == {"used": ["tsh"], "missing": ["shoe"], "notes": []}
        assert ask({"tsh": 1e9}).json()["predictions"][0]["clinical"]["notes"]
        for wrong in ({"age": 3}, {"tsh": "high"}, {"tsh": True}, [1]):
            refused = ask(wrong)
            assert refused.status_code == 400
            assert refused.json()["error"].startswith("instances[0].clinical")
        tensors = [
            {"name": "image", "datatype": "BYTES", "shape": [1], "data": [image["b64"]]},
            {"name": "clinical", "datatype": "BYTES", "shape": [1], "data": ['{"tsh": 4.0}']},
        ]
        answer = httpx.post(f"{address}/v2/models/thyroid/infer", json={"inputs": tensors}, timeout=60).json()
        values = next(one for one in answer["outputs"] if one["name"] == "probability")["data"]
        assert values[1] == pytest.approx(high["malignant"], abs=1e-6)
        tensors[1]["data"] = ["{"]
        assert httpx.post(f"{address}/v2/models/thyroid/infer", json={"inputs": tensors}).status_code == 400
        page = Page(tmp_path / "page.log", address).wait()
        try:
            visitor = page.visitor()
            assert 'name="clinical.tsh"' in visitor.client.get("/").text

            def read(value):
                data = {"csrf_token": visitor.token, "roi": [""], "clinical.tsh": value, "clinical.shoe": ""}
                return visitor.client.post("/read", data=data, files={"files": ("scan.jpg", scan)})

            assert "Clinical data used: tsh. Not given: shoe." in read("4,0").text
            refused = read("high")
            assert refused.status_code == 400
            assert "“tsh” is not a number." in refused.text
        finally:
            assert "tsh" not in page.stop(), "the log has no values"
    finally:
        running.stop()
    shutil.rmtree(root)
