"""Four grades from phantoms and a table of labels to the endpoint's answer and the page."""

import csv
import html
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.support.pages import Page
from tests.support.serving import EXPLAIN, INFER, PREDICT, Server, encoded
from thyroid import crop
from thyroid.crop import CropOptions
from thyroid.data import classes, tables
from thyroid.data.classes import Classes
from thyroid.evaluate import evaluate
from thyroid.evaluate.options import EvaluateOptions
from thyroid.imaging import phantom
from thyroid.ingest import ingest
from thyroid.ingest.options import IngestOptions
from thyroid.model import engine
from thyroid.model.artefact import Artefact
from thyroid.registry import register
from thyroid.registry.registry import Registry
from thyroid.train import train
from thyroid.train.options import TrainOptions
from thyroid.web import words
from thyroid.web.words import Words

GRADES = "2<3|4<5"
KINDS = classes.parse(GRADES)


@pytest.fixture(scope="module")
def run(toy, tmp_path_factory) -> Path:
    """Folder with scans, labels.csv, the data version, a model, its evaluation and the registry."""
    folder = tmp_path_factory.mktemp("run")
    rois = phantom.generate(folder, patients=24, images_per_patient=2, seed=3)
    numbers = {"B": 0, "M": 0}
    grade: dict[str, str] = {}
    for file in sorted((folder / "scans").iterdir()):
        side, patient = file.name[0], file.name[:5]
        if patient not in grade:
            grade[patient] = KINDS.names[numbers[side] % 2 + (2 if side == "M" else 0)]
            numbers[side] += 1
    with (folder / "labels.csv").open("w", newline="") as stream:
        rows = [(file.name, "x", grade[file.name[:5]]) for file in sorted((folder / "scans").iterdir())]
        csv.writer(stream).writerows([("filename", "label", "TI-RADS"), *rows])
    labels = f"{folder}/labels.csv#TI-RADS"
    ingest.ingest(IngestOptions(folder / "scans", rois, labels=labels, classes=GRADES), folder / "ingested")
    crop.crop(folder / "ingested", folder / "data", CropOptions(["cropped"]))
    options = TrainOptions(weights="none", image_size=32, epochs=1)
    train.train(folder / "data", folder / "model", toy, options=options)
    evaluate.evaluate(folder / "data", [folder / "model"], folder / "evaluation", EvaluateOptions(prevalence=0.2))
    register.register(folder / "evaluation", folder / "registry", folder / "summary.json")
    return folder


@pytest.fixture(scope="module")
def server(run):
    running = Server(run / "log", "--registry", str(run / "registry"), "--form", engine.F32).wait()
    yield running
    running.stop()


@pytest.fixture(scope="module")
def tested(run) -> pd.DataFrame:
    table = pd.read_parquet(run / "evaluation" / "predictions.parquet")
    regions = tables.read(run / "data")[1].rename(columns={"crop_path": "file"})
    return table[table["split"] == "test"].merge(regions[["file", "path", "x", "y", "width", "height"]], on="file")


def instance(row, **more) -> dict:
    return {"image": encoded(row["path"]), "roi": [int(row[side]) for side in ("x", "y", "width", "height")], **more}


def test_all_facts_know_the_classes(run):
    for file in ("data/data.json", "model/train.json", "evaluation/evaluation.json"):
        assert Classes.from_dict(json.loads((run / file).read_text())) == KINDS, file
    facts = Artefact.verify(Registry(run / "registry").find()).record
    assert Classes.from_record(facts) == KINDS
    assert list(facts.reference) == list(KINDS.names)
    assert sum(facts.reference.values()) == pytest.approx(1)
    assert len(facts.thresholds) == len(facts.bias) == 4


def test_predictions_have_a_probability_of_every_class(tested):
    probability = tested[KINDS.columns].to_numpy()
    np.testing.assert_allclose(probability.sum(axis=1), 1)
    np.testing.assert_allclose(KINDS.malignant(probability), tested["probability_M"])
    assert (tested["label"] == tested["class"].map(KINDS.side)).all()
    assert (tested["called"].map(KINDS.side) == tested["decision"].map({"benign": "B", "malignant": "M"})).all()
    assert set(tested["class"]) == set(KINDS.names)


def test_the_evaluation_judges_every_class(run, tested):
    facts = json.loads((run / "evaluation" / "evaluation.json").read_text())
    figures = facts["models"][0]["test"]["cropped"]
    assert np.sum(figures["class_confusion"]) == len(tested)
    assert list(figures["classes"]) == list(KINDS.names)
    assert {"macro_auroc", "kappa", "auroc"} <= set(figures)
    report = html.unescape((run / "evaluation" / "report.html").read_text())
    for told in ("Macro AUROC", "Kappa", "classes 4, 5"):
        assert told in report
    pictures = {file.name for file in (run / "evaluation" / "plots").iterdir()}
    assert {"class-roc-Toy-cropped.png", "class-confusion-Toy-cropped.png"} <= pictures
    card = (run / "evaluation" / "artefact" / "card.md").read_text()
    assert re.search(r"benign\W+2, 3\b.*malignant\W+4, 5\b", card)
    assert not re.search(r"2<3\|", card), "a bar would break the table"


def test_the_endpoint_answers_as_the_evaluation_did(server, tested):
    status, answer = server.ask(PREDICT, {"instances": [instance(row, patient="7") for _, row in tested.iterrows()]})
    assert status == 200
    facts = answer["predictions"][0]
    for prediction, (_, row) in zip(answer["predictions"], tested.iterrows(), strict=True):
        assert list(prediction["probability"]) == list(KINDS.names)
        assert list(prediction["probability"].values()) == pytest.approx(row[KINDS.columns].tolist(), abs=1e-4)
        assert prediction["malignant"] == pytest.approx(row["probability_M"], abs=1e-4)
        unlike = prediction.get("reasons", []) == ["unlike_training"]
        assert (prediction["decision"], prediction["class"]) == (
            "abstain" if unlike else row["decision"],
            row["called"],
        )
        assert set(prediction["above_threshold"]) <= set(KINDS.names)
        assert prediction["threshold"] == facts["threshold"]
    (whole,) = answer["patients"]
    counted = tested.drop(tested.index[[one["image"] for one in whole.get("left_out", [])]])
    assert len(counted) > len(tested) / 2
    assert whole["malignant"] == pytest.approx(counted["probability_M"].mean(), abs=1e-4)
    assert list(whole["probability"].values()) == pytest.approx(counted[KINDS.columns].mean().tolist(), abs=1e-4)
    undecided = whole.get("reasons") == ["views_disagree"]
    assert whole["decision"] == (
        "abstain" if undecided else {"B": "benign", "M": "malignant"}[KINDS.side(whole["class"])]
    )


def test_tensors_hold_every_class(server, tested):
    row = tested.iloc[0]
    sent = instance(row)
    tensors = [
        {"name": "image", "shape": [1], "datatype": "BYTES", "data": [sent["image"]["b64"]]},
        {"name": "roi", "shape": [1, 4], "datatype": "INT32", "data": sent["roi"]},
    ]
    status, answer = server.ask(INFER, {"inputs": tensors})
    assert status == 200
    outputs = {one["name"]: one for one in answer["outputs"]}
    assert outputs["probability"]["shape"] == [1, 4]
    assert outputs["probability"]["data"] == pytest.approx(row[KINDS.columns].tolist(), abs=1e-4)


@pytest.mark.slow
def test_explanations_and_the_page_name_every_class(server, tested, tmp_path):
    rows = [tested.iloc[0], tested.iloc[-1]]
    told = server.ask(EXPLAIN, {"instances": [instance(row) for row in rows]})[1]["explanations"]
    page = Page(tmp_path / "log", f"http://127.0.0.1:{server.port}").wait()
    try:
        files = [(f"{number}.jpg", Path(row["path"]).read_bytes()) for number, row in enumerate(rows)]
        boxes = [",".join(str(int(row[side])) for side in ("x", "y", "width", "height")) for row in rows]
        answer = page.visitor().read(files, boxes)
    finally:
        page.stop()
    assert answer.status_code == 200
    tables_shown = re.findall(r'<table class="classes">(.*?)</table>', answer.text, re.DOTALL)
    assert len(tables_shown) == 3, "the patient's and one of each picture"
    for shown, one in zip(tables_shown[1:], told, strict=True):
        text = " ".join(html.unescape(re.sub(r"<[^>]+>", " ", shown)).split())
        assert Words("en")("by_class", **{"class": one["class"]}) in text
        for name, value in one["probability"].items():
            assert f"{name} {' '.join(words.share(value).split())}" in text
        assert KINDS.side(one["class"]) == one["decision"][0].upper()
