import json
import re

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from thyroid import RESEARCH_USE_ONLY, crop, evaluate, registry, report, train
from thyroid.errors import InputError


def facts_of(folder):
    return json.loads((folder / "evaluation.json").read_text())


def test_predictions_hold_every_model_and_image_once(evaluated, cropped):
    table = pd.read_parquet(evaluated / "predictions.parquet")
    assert set(table["split"]) == {"validation", "test"}
    assert not table.duplicated(["backbone", "train_domain", "domain", "file"]).any()
    expected = len(crop.examples(cropped, "cropped", "test")) + len(crop.examples(cropped, "cropped", "validation"))
    assert len(table) == 2 * expected
    np.testing.assert_allclose(table[evaluate.PROBABILITIES].sum(axis=1), 1, rtol=1e-5)


def test_figures_follow_from_the_predictions(evaluated):
    table = pd.read_parquet(evaluated / "predictions.parquet")
    for row in facts_of(evaluated)["models"]:
        mine = evaluate.of_model(table, row, "cropped", "test")
        truth = mine["label"] == "M"
        figures = row["test"]["cropped"]
        assert figures["n"] == len(mine)
        assert figures["auroc"]["value"] == pytest.approx(roc_auc_score(truth, mine["probability_M"]))
        assert figures["auroc"]["low"] <= figures["auroc"]["value"] <= figures["auroc"]["high"]
        assert figures["majority"] == max(truth.mean(), 1 - truth.mean())
        assert np.sum(figures["confusion"]) == len(mine)
        assert np.trace(figures["confusion"]) / len(mine) == pytest.approx(figures["accuracy"])


def test_winner_is_the_best_on_validation(evaluated):
    facts = facts_of(evaluated)
    best = max(facts["models"], key=lambda row: row["validation"]["auroc"])
    assert facts["winner"]["backbone"] == facts["models"][0]["backbone"]
    assert facts["models"][0]["validation"]["auroc"] == best["validation"]["auroc"]


def test_the_test_set_never_chooses(cropped, trained, evaluated, tmp_path, monkeypatch):
    """Turning every test answer upside down leaves the ranking as it is."""
    predict = evaluate._predict

    def upside_down(*arguments):
        table = predict(*arguments)
        test = table["split"] == "test"
        table.loc[test, evaluate.PROBABILITIES] = 1 - table.loc[test, evaluate.PROBABILITIES].to_numpy()
        return table

    monkeypatch.setattr(evaluate, "_predict", upside_down)
    models = [trained["ResNet50", "cropped"], trained["VGG16", "cropped"]]
    done = evaluate.evaluate(cropped, models, tmp_path / "out")
    assert done.facts["winner"] == facts_of(evaluated)["winner"]
    tests = [[row["test"] for row in facts["models"]] for facts in (done.facts, facts_of(evaluated))]
    assert tests[0] != tests[1]


def test_pictures_are_there_for_every_model(evaluated):
    for name in ("roc-VGG16-cropped", "confusion-ResNet50-cropped", "ranking"):
        with Image.open(evaluated / "plots" / f"{name}.png") as image:
            assert min(image.size) > 150


def test_report_opens_offline_and_is_honest(evaluated):
    html = (evaluated / "report.html").read_text()
    assert not re.findall(r'(?:src|href)="(?!data:)', html)
    assert html.count("data:image/png;base64,") == 2 * 2 + 1 + 1 + 2
    assert html.count(RESEARCH_USE_ONLY) == 2
    assert "30 of 30 scans are synthetic phantoms" in html
    assert "always answering the majority class gives" in html
    for row in facts_of(evaluated)["models"]:
        assert report._interval(row["test"]["cropped"]["auroc"]) in html


def test_domain_matrix(cropped, trained, tmp_path):
    models = [trained["VGG16", "cropped"], trained["VGG16", "normal"]]
    done = evaluate.evaluate(cropped, models, tmp_path / "out", serving_domain="normal")
    assert {(row["train_domain"], d) for row in done.facts["models"] for d in row["test"]} == {
        (a, b) for a in ("normal", "cropped") for b in ("normal", "cropped")
    }
    assert (tmp_path / "out" / "plots" / "domains-VGG16.png").is_file()
    assert "Tested on cropped" in (tmp_path / "out" / "report.html").read_text()


def test_artefact_answers_its_reference(evaluated):
    facts = registry.verify(evaluated / "artefact")
    assert facts["classes"] == ["B", "M"]
    assert "threshold" not in facts
    assert set(facts["files"]) == {"model.keras", "reference.jpg"}
    assert sum(facts["reference"].values()) == pytest.approx(1, abs=1e-5)


def test_models_of_another_data_version_are_refused(cropped, trained, tmp_path):
    folder = trained["VGG16", "cropped"]
    facts = json.loads((folder / "train.json").read_text())
    (tmp_path / "train.json").write_text(json.dumps(facts | {"data_digest": "other"}))
    with pytest.raises(InputError, match="another data version"):
        evaluate.evaluate(cropped, [tmp_path], tmp_path / "out")


def test_no_model(cropped, tmp_path):
    with pytest.raises(InputError, match="no model"):
        evaluate.evaluate(cropped, [], tmp_path)


def test_roc_points_are_finite():
    table = pd.DataFrame({"label": ["B", "M", "M"], "probability_B": [0.9, 0.2, 0.6], "probability_M": [0.1, 0.8, 0.4]})
    points = evaluate.roc_points(table)
    assert all(np.isfinite(column).all() for column in points)
    assert points[2][0] == 1.0


def test_cross_validated_models_are_compared_by_that(cropped, tmp_path):
    models = []
    for backbone in ("VGG16", "ResNet50"):
        options = {"weights": "none", "image_size": 32, "epochs": 0, "folds": 3}
        models.append(train.train(cropped, tmp_path / backbone, backbone, "cropped", **options).folder)
    facts = evaluate.evaluate(cropped, models, tmp_path / "out").facts
    assert facts["ranked_by"] == "cross_validation"
    figures = [row["cross_validation"]["auroc"] for row in facts["models"]]
    assert figures == sorted(figures, reverse=True)
    for row in facts["models"]:
        table = pd.read_parquet(tmp_path / row["backbone"] / "folds.parquet").query("domain == 'cropped'")
        pairs = [(g["label"] == "M").sum() * (g["label"] == "B").sum() for _, g in table.groupby("fold")]
        areas = [roc_auc_score(g["label"] == "M", g["probability_M"]) for _, g in table.groupby("fold")]
        assert row["cross_validation"]["auroc"] == pytest.approx(np.average(areas, weights=pairs))
    html = (tmp_path / "out" / "report.html").read_text()
    assert "Cross-validated AUROC" in html
    assert "chosen on out-of-fold predictions of development patients only" in html


def test_one_backbone_twice_is_refused(cropped, trained, tmp_path):
    folder = trained["VGG16", "cropped"]
    with pytest.raises(InputError, match="VGG16 trained on cropped is given twice; compare one recipe at a time"):
        evaluate.evaluate(cropped, [folder, folder], tmp_path)
