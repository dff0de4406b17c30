import collections
import dataclasses
import json
import re
import shutil
from html import unescape

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from tests.conftest import variant
from tests.support import toy_artefact, toys
from thyroid import RESEARCH_USE_ONLY, crop, metrics
from thyroid.crop import CropOptions
from thyroid.data import tables, version
from thyroid.data.classes import BINARY
from thyroid.data.version import DataVersion
from thyroid.errors import InputError
from thyroid.evaluate import evaluate, performance, plots, predictions, report, scored
from thyroid.evaluate.audits import shortcut
from thyroid.evaluate.options import EvaluateOptions
from thyroid.evaluate.scored import ScoredModel
from thyroid.model import backbones
from thyroid.model.artefact import SCANS, Artefact, load_keras, sha256
from thyroid.model.backend import keras
from thyroid.model.network import GRAPH, Network
from thyroid.model.operating_point import OperatingPoint
from thyroid.records.evaluation import EvaluationRecord
from thyroid.registry import changes
from thyroid.registry.registry import Registry
from thyroid.train import record, train
from thyroid.train.options import TrainOptions


def facts_of(folder):
    return EvaluationRecord.read(folder / "evaluation.json")


def test_predictions_hold_every_model_and_image_once(evaluated, cropped):
    table = pd.read_parquet(evaluated / "predictions.parquet")
    assert set(table["split"]) == {"validation", "test"}
    assert not table.duplicated(["backbone", "train_domain", "domain", "file"]).any()
    expected = len(DataVersion.read(cropped).examples("cropped", "test")) + len(
        DataVersion.read(cropped).examples("cropped", "validation")
    )
    assert len(table) == 2 * expected
    np.testing.assert_allclose(table[BINARY.columns].sum(axis=1), 1, rtol=1e-5)


def test_figures_follow_from_the_predictions(evaluated):
    table = pd.read_parquet(evaluated / "predictions.parquet")
    for row in facts_of(evaluated).models:
        mine = predictions.of_model(table, row, "cropped", "test")
        truth = mine["label"] == "M"
        figures = row.test["cropped"]
        assert figures.n == len(mine)
        assert figures.auroc.value == pytest.approx(roc_auc_score(truth, mine["probability_M"]))
        assert figures.auroc.low <= figures.auroc.value <= figures.auroc.high
        assert figures.majority == pytest.approx(max(truth.mean(), 1 - truth.mean()))
        assert np.sum(figures.confusion) == len(mine)
        (_, _), (missed, caught) = figures.confusion
        assert figures.sensitivity.value == pytest.approx(caught / (caught + missed))
        assert figures.accuracy == pytest.approx(((mine["probability_M"] > 0.5) == truth).mean())
        called = (mine["probability_M"] >= row.operating_point.threshold).map({True: "malignant", False: "benign"})
        assert called.tolist() == mine["decision"].tolist()
        assert row.validation.sensitivity.value >= 0.95


def test_winner_is_the_best_on_validation(evaluated):
    facts = facts_of(evaluated)
    best = max(facts.models, key=lambda row: row.validation.auroc.value)
    assert facts.winner.backbone == facts.models[0].backbone
    assert facts.models[0].validation.auroc == best.validation.auroc


@pytest.fixture(scope="module")
def upside_down(cropped, trained, tmp_path_factory):
    """An evaluation with a band, whose every answer to a test image is turned upside down; and what was read when."""
    predict, read = ScoredModel.predict, []
    folder = tmp_path_factory.mktemp("upside-down") / "out"

    def watched(model, domains, split):
        locked = folder / "operating_points.json"
        read.append((split, locked.exists() and set(json.loads(locked.read_text())["points"])))
        table = predict(model, domains, split)
        test = table["split"] == "test"
        table.loc[test, BINARY.columns] = 1 - table.loc[test, BINARY.columns].to_numpy()
        return table

    models = [trained["VGG19", "cropped"], trained["VGG16", "cropped"]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ScoredModel, "predict", watched)
        return evaluate.evaluate(cropped, models, folder, EvaluateOptions(abstain=0.25)), read


def test_the_test_set_never_chooses(upside_down, evaluated):
    done, _ = upside_down
    assert done.record.winner == facts_of(evaluated).winner
    points = [[row.operating_point.to_dict() for row in facts.models] for facts in (done.record, facts_of(evaluated))]
    assert all(point.pop("band") for point in points[0])
    assert points[0] == points[1]
    tests = [[row.test["cropped"].auroc for row in facts.models] for facts in (done.record, facts_of(evaluated))]
    assert tests[0] != tests[1]


def test_points_and_winner_are_written_before_a_test_image_is_read(upside_down):
    done, read = upside_down
    both = {"VGG19-cropped", "VGG16-cropped"}
    assert read == [("validation", False)] * 2 + [("test", both)] * 2
    point = OperatingPoint.from_record(Artefact.verify(done.folder / "artefact").record)
    assert point.band is not None
    locked = json.loads((done.folder / "operating_points.json").read_text())
    assert locked["winner"] == "-".join(done.record.winner.to_dict().values())
    assert locked["points"][locked["winner"]] == point.to_dict()
    assert done.record.models[0].test["cropped"].abstention is not None
    html = (done.folder / "report.html").read_text()
    assert 'id="abstention"' in html
    assert metrics.format_interval(done.record.models[0].test["cropped"].abstention.share) in html


def test_the_test_set_cannot_be_scored_before_the_point_is_locked(cropped, trained):
    _, (model,) = scored.read(cropped, [trained["VGG16", "cropped"]], EvaluateOptions())
    model.load()
    with pytest.raises(RuntimeError, match="lock"):
        model.score_test()
    with pytest.raises(RuntimeError, match="lock"):
        model.record({})
    model.lock()
    point = model.point
    model.score_test()
    with pytest.raises(RuntimeError, match="scored"):
        model.lock()
    assert model.point is point


def test_five_models_read_the_tables_once_and_decode_every_image_once(toy, cropped, tmp_path, monkeypatch):
    """Counted where everything must pass: the readers of verified files, and the letterbox of every image."""
    options = TrainOptions(weights="none", image_size=32, epochs=0, recipe="frozen")
    models = []
    for number in range(3):
        name = toy if number == 0 else f"{toy}{number}"
        monkeypatch.setitem(backbones.BACKBONES, name, dataclasses.replace(backbones.BACKBONES[toy], name=name))
        monkeypatch.setattr(keras.applications, name, toys.body, raising=False)
        for domain in tables.DOMAINS if number < 2 else ("cropped",):
            models.append(train.train(cropped, tmp_path / name / domain, name, domain, options).folder)
    assert len(models) == 5
    table = tables.used(tables.read(cropped)[0])
    rows = "".join(f"{patient},{patient % 9}\n" for patient in set(table["patient"]))
    (tmp_path / "clinical.csv").write_text(f"patient,age\n{rows}")
    read, decoded = collections.Counter(), collections.Counter()
    plain_fill = version._fill

    def counted(reader):
        def counting(folder, name, *more):
            read[name] += 1
            return reader(folder, name, *more)

        return counting

    def fill(out, rows):
        decoded.update((sha256, out.shape[1]) for _, sha256 in rows)
        return plain_fill(out, rows)

    for reader in ("checked", "read_table"):
        monkeypatch.setattr(tables, reader, counted(getattr(tables, reader)))
    monkeypatch.setattr(version, "_fill", fill)
    given = EvaluateOptions(clinical=tmp_path / "clinical.csv", registry=tmp_path / "registry")
    done = evaluate.evaluate(cropped, models, tmp_path / "out", given)
    assert len(done.record.models) == 5
    assert done.record.domain_matrix
    assert read == {"scans.parquet": 1, "regions.parquet": 1, tables.QUARANTINE: 1}
    assert set(decoded.values()) == {1}
    images = {sha256 for domain in tables.DOMAINS for sha256 in DataVersion.read(cropped).examples(domain)["sha256"]}
    assert {sha256 for sha256, _ in decoded} == images


def test_nothing_of_an_earlier_evaluation_stays(cropped, trained, evaluated, tmp_path):
    import shutil

    out = shutil.copytree(evaluated, tmp_path / "out")
    for name in ("false-negatives.png", "domains-VGG19.png"):
        (out / "plots" / name).write_bytes(b"old")
    with pytest.raises(InputError):
        evaluate.evaluate(cropped, [trained["VGG16", "cropped"]], out, EvaluateOptions(serving_domain="elsewhere"))
    assert not (out / "evaluation.json").exists(), "a stopped evaluation is not taken for a finished one"
    assert not (out / "plots" / "domains-VGG19.png").exists()
    assert not (out / "artefact").exists()


def test_pictures_are_there_for_every_model(evaluated):
    kinds = [kind for kind in plots.NAMES if not kind.startswith("class-")]
    names = [f"{kind}-{name}-cropped" for kind in kinds for name in ("VGG16", "VGG19")]
    for name in (*names, "ranking", "diagnosis", "shortcuts-cropped"):
        with Image.open(evaluated / "plots" / f"{name}.png") as image:
            assert min(image.size) > 150


def test_report_opens_offline_and_is_honest(evaluated):
    html = (evaluated / "report.html").read_text()
    assert not re.findall(r'(?:src|href)="(?!data:)', html)
    pictures = {path.stem for path in (evaluated / "plots").glob("*.png")}
    assert html.count("data:image/png;base64,") == len(pictures) + 2
    assert pictures >= {f"{kind}-VGG16-cropped" for kind in plots.NAMES if not kind.startswith("class-")}
    assert html.count(RESEARCH_USE_ONLY) == 3, "above, below, and at the foot of every printed page"
    assert re.search(r'id="synthetic">30 of 30\b.* synthetic', html)
    facts, page = facts_of(evaluated), unescape(html)
    assert f"{facts.models[0].test['cropped'].majority:.1%}" in report.lead(facts)[-1]
    assert all(text in page for text in report.lead(facts))
    _, warned = page.split('id="warnings"')
    assert all(text in warned for text in report.warnings(facts))
    for row in facts.models:
        assert metrics.format_interval(row.test["cropped"].auroc) in html


@pytest.fixture(scope="module")
def matrix(toy, cropped, tmp_path_factory):
    """Return the evaluation of a backbone that was trained and cross-validated on both domains, and its trainings."""
    folder = tmp_path_factory.mktemp("matrix")
    options = TrainOptions(weights="none", image_size=32, epochs=0, folds=2)
    models = [train.train(cropped, folder / domain, toy, domain, options).folder for domain in ("cropped", "normal")]
    return evaluate.evaluate(cropped, models, folder / "out", EvaluateOptions(serving_domain="normal"))


def test_domain_matrix(matrix):
    done = matrix
    assert {(row.train_domain, d) for row in done.record.models for d in row.test} == {
        (a, b) for a in ("normal", "cropped") for b in ("normal", "cropped")
    }
    assert (done.folder / "plots" / "domains-Toy.png").is_file()
    html = (done.folder / "report.html").read_text()
    cells = done.record.domain_matrix["Toy"]
    for row in done.record.models:
        for domain, test in row.test.items():
            assert cells.cells[row.train_domain][domain].value == pytest.approx(test.auroc.value)
            assert metrics.format_interval(cells.cells[row.train_domain][domain]) in html
    assert set(cells.drop) == set(cells.shortfall) == {"normal", "cropped"}
    assert [audit.domain for audit in (done.record.audits, *done.record.other_audits)] == ["normal", "cropped"]


def test_artefact_answers_its_reference(evaluated):
    facts = Artefact.verify(evaluated / "artefact").record
    assert facts.classes == ["B", "M"]
    assert set(facts.files) == {
        "model.keras",
        "openvino/model.xml",
        "openvino/model.bin",
        "reference.jpg",
        "card.md",
        "scans.csv",
    }
    assert 0 < facts.threshold < 1
    assert facts.temperature > 0
    assert facts.forms["keras"].test["cropped"].auroc == facts_of(evaluated).models[0].test["cropped"].auroc
    assert sum(facts.reference.values()) == pytest.approx(1, abs=1e-5)


def test_models_of_another_data_version_are_refused(cropped, trained, tmp_path):
    folder = trained["VGG16", "cropped"]
    record.read(folder).model_copy(update={"data_digest": "other"}).write(tmp_path / "train.json")
    with pytest.raises(InputError, match=str(tmp_path)):
        evaluate.evaluate(cropped, [tmp_path], tmp_path / "out")


def test_models_of_other_crops_of_the_same_scans_are_refused(cropped, trained, tmp_path):
    """The data versions have one digest, but the model would be scored, and served, with a margin that it never saw."""
    other = tmp_path / "other"
    done = crop.crop(cropped.parent / "ingested", other, CropOptions(["cropped", "normal"], margin=0.2))
    assert done.facts.digest == DataVersion.read(cropped).digest
    folder = trained["VGG16", "cropped"]
    with pytest.raises(InputError, match=rf"{folder}\b.*\b0\.5\b.*\b0\.2\b"):
        scored.read(other, [folder], EvaluateOptions())
    _, (model,) = scored.read(other, [trained["VGG16", "normal"]], EvaluateOptions())
    assert model.key == ("VGG16", "normal")


def test_no_model(cropped, tmp_path):
    with pytest.raises(InputError, match="model"):
        evaluate.evaluate(cropped, [], tmp_path)


def test_roc_points_are_finite():
    table = pd.DataFrame({"label": ["B", "M", "M"], "probability_B": [0.9, 0.2, 0.6], "probability_M": [0.1, 0.8, 0.4]})
    points = predictions.roc_points(table)
    assert all(np.isfinite(column).all() for column in points)
    assert points[2][0] == 1.0


def test_cross_validated_models_are_compared_by_that(matrix):
    facts = matrix.record
    assert facts.ranked_by == "cross_validation"
    figures = [row.cross_validation.auroc.value for row in facts.models]
    assert figures == sorted(figures, reverse=True)
    for row in facts.models:
        folder = matrix.folder.with_name(row.train_domain)
        table = pd.read_parquet(folder / "folds.parquet").query("domain == 'normal'")
        pairs = [(g["label"] == "M").sum() * (g["label"] == "B").sum() for _, g in table.groupby("fold")]
        areas = [roc_auc_score(g["label"] == "M", g["probability_M"]) for _, g in table.groupby("fold")]
        assert row.cross_validation.auroc.value == pytest.approx(np.average(areas, weights=pairs))
    html = (matrix.folder / "report.html").read_text()
    assert re.search(r"\bamong 2\b", report.lead(facts)[0])
    assert report.lead(facts)[0] in unescape(html)


def test_one_backbone_twice_is_refused(cropped, trained, tmp_path):
    folder = trained["VGG16", "cropped"]
    with pytest.raises(InputError, match=r"VGG16.*cropped"):
        evaluate.evaluate(cropped, [folder, folder], tmp_path)


def test_every_interval_has_one_shape_and_what_is_absent_stays_absent(evaluated):
    content = json.loads((evaluated / "evaluation.json").read_text())
    row = content["models"][0]
    for auroc in (row["validation"]["auroc"], row["test"]["cropped"]["auroc"]):
        assert auroc.keys() == {"value", "low", "high"}
    assert not {"low", "high"} & row["validation"].keys()
    assert "cross_validation" not in row
    assert "abstention" not in row["test"]["cropped"]
    assert EvaluationRecord.parse(content, "evaluation.json").to_dict() == content


def test_summary_has_audits_and_gate(evaluated):
    facts = facts_of(evaluated)
    assert set(facts.audits.shortcut) <= set(shortcut.SHORTCUTS) | set(shortcut.REFERENCES)
    assert facts.audits.leakage["patients_across_splits"] == 0
    assert facts.gate.decision in ("promoted", "refused")
    assert facts.gate.reasons
    assert [one.name for one in facts.gate.criteria] == [
        "size of the test set",
        "AUROC",
        "validation patients behind the threshold",
        "sensitivity",
        "specificity",
        "calibration",
        "subgroups",
        "shortcut audit",
        "leakage audit",
    ]


@pytest.fixture(scope="module")
def held_against(cropped, trained, evaluated, tmp_path_factory):
    """Evaluate with clinical.csv, against a champion and an anchor that are the same model.

    Their registry knew other scans: it lacks every other test scan, has another class for one training scan, and holds
    a scan that no longer exists.
    """
    folder = tmp_path_factory.mktemp("held-against")
    patients = sorted(set(pd.read_parquet(cropped / "scans.parquet")["patient"]))
    rows = "".join(f"{p},{'f' if p % 2 else 'm'},x\n" for p in patients)
    (folder / "clinical.csv").write_text(f"patient,sex,constant\n{rows}999,f,x\n")
    artefact = shutil.copytree(evaluated / "artefact", folder / "artefact")
    scans = changes.scans_of(artefact)
    test = scans[scans["split"] == "test"].index
    gone = scans.iloc[[0]].assign(sha256="0" * 64)
    learnt = scans[scans["split"] == "train"].index[0]
    scans.loc[learnt, "label"] = "B" if scans.loc[learnt, "label"] == "M" else "M"
    pd.concat([scans.drop(test[::2]), gone]).to_csv(artefact / SCANS, index=False)
    Artefact.describe(artefact, Artefact.read(artefact).record)
    Registry(folder / "registry").publish(artefact, toy_artefact.gate("promoted"))
    Registry(folder / "registry").publish(variant(artefact, folder), toy_artefact.gate("promoted", 1))
    winner = facts_of(evaluated).winner
    return evaluate.evaluate(
        cropped,
        [trained[winner.backbone, winner.train_domain]],
        folder / "out",
        EvaluateOptions(clinical=folder / "clinical.csv", registry=folder / "registry", waive=["shortcut"]),
    )


def test_subgroups_and_a_champion(held_against):
    """A difference of nothing from the same model."""
    done = held_against
    assert {row.group for row in done.record.subgroups} <= {"f", "m"}
    assert all(row.small for row in done.record.subgroups)
    assert len(done.record.clinical.notes) == 2
    html = (done.folder / "report.html").read_text()
    assert "(small)" in html
    assert re.search(r"column constant\b", html)
    assert done.record.gate.champion == 2
    assert done.record.gate.comparison.difference.value == pytest.approx(0, abs=1e-9)
    criteria = {one.name: one.found for one in done.record.gate.criteria}
    assert set(criteria) >= {"not inferior to champion 2", "not inferior to anchor 1"}
    for name in ("as specific as champion 2", "as specific as anchor 1"):
        assert criteria[name] == "0.000 [0.000, 0.000] by patient, each at its own threshold"
    assert (done.record.gate.anchor, done.record.gate.ahead_of) == (1, None)
    assert re.search(r"\bversion 1\b", html)
    assert performance.SUBGROUP + "sex" in pd.read_parquet(done.folder / "predictions.parquet")


def test_the_report_says_what_was_new_and_what_it_changed(held_against, cropped):
    done = held_against
    test = len(DataVersion.read(cropped).examples("cropped", "test"))
    new = (test + 1) // 2
    news = done.record.changes
    assert news.since == 2
    assert sum(news.new.values()) == new
    assert sum(news.changed.values()) == 1
    assert sum(news.removed.values()) == 1
    assert news.test_new.images == new
    assert news.test_known.images == test - new
    table = pd.read_parquet(done.folder / "predictions.parquet")
    assert table.loc[table["split"] == "test", "new"].sum() == new
    html = (done.folder / "report.html").read_text()
    assert 'id="changes"' in html
    assert re.search(rf"version 2\b.*\b{new} scans\b", html)
    assert metrics.format_interval(done.record.gate.comparison.difference) in html


@pytest.mark.parametrize("margins", [(0.5, 0.5), (0.15, 0.5), (0.15, 0.3)])
def test_the_report_says_which_margin_a_rival_was_scored_with(held_against, cropped, tmp_path, margins):
    data = DataVersion.read(cropped)
    gate = held_against.record.gate
    assert gate.comparison.champion_margin == gate.anchor_comparison.champion_margin == data.margin == 0.5
    champion, anchor = (
        compared.model_copy(update={"champion_margin": margin})
        for compared, margin in zip((gate.comparison, gate.anchor_comparison), margins, strict=True)
    )
    decision = gate.model_copy(update={"comparison": champion, "anchor_comparison": anchor})
    (tmp_path / "plots").mkdir()
    report.write(tmp_path, data, held_against.record.model_copy(update={"gate": decision}))
    html = (tmp_path / "report.html").read_text()
    said = re.findall(r"(\d+) saw crops of its own margin, (0\.\d+)", html)
    assert said == [
        (str(version), str(margin))
        for version, margin in zip((gate.champion, gate.anchor), margins, strict=True)
        if margin != 0.5
    ]


@pytest.mark.parametrize(
    "options", [{"sensitivity": 0}, {"abstain": 1}, {"prevalence": 2}, {"waive": ["luck"]}, {"seed": -1}]
)
def test_options_out_of_range_end_before_anything_is_loaded(cropped, options, tmp_path):
    with pytest.raises(InputError):
        evaluate.evaluate(cropped, [tmp_path / "not", tmp_path / "there"], tmp_path / "out", EvaluateOptions(**options))
    assert not (tmp_path / "out").exists()


def test_a_test_set_with_one_class_is_said(cropped, trained, tmp_path, monkeypatch):
    examples = DataVersion.examples

    def one_class(data, domain, split=None):
        table = examples(data, domain, split)
        return table[table["label"] == "B"].reset_index(drop=True) if split == "test" else table

    monkeypatch.setattr(DataVersion, "examples", one_class)
    with pytest.raises(InputError, match=r"\btest\b.*\bcropped\b.*\b1\b"):
        evaluate.evaluate(cropped, [trained["VGG16", "cropped"]], tmp_path / "out")


def test_answers_that_are_no_numbers_are_said(cropped, trained, tmp_path):
    copy = shutil.copytree(trained["VGG16", "cropped"], tmp_path / "model")
    facts = record.read(copy)
    broken = load_keras(copy / facts.checkpoint)
    head = broken.get_layer("probability")
    head.set_weights([np.full_like(weight, np.nan) for weight in head.get_weights()])
    (copy / GRAPH).write_bytes(Network.trace(broken).graph.SerializeToString())
    files = facts.files | {GRAPH: sha256(copy / GRAPH)}
    facts.model_copy(update={"files": files}).write(copy / "train.json")
    with pytest.raises(InputError, match="finite"):
        evaluate.evaluate(cropped, [copy], tmp_path / "out")


def test_the_lead_speaks_of_hundreds_and_the_warnings_of_patients(evaluated):
    facts = facts_of(evaluated)
    told = " ".join(report.lead(facts))
    test = facts.models[0].test[facts.serving_domain]
    assert re.search(rf"\b{100 * test.sensitivity.value:.0f} \[.*\] of 100\b", told)
    assert f"{test.majority:.1%}" in told
    assert " normal" not in told, "to a clinician a normal image is a healthy one"
    assert any(re.search(r"\b72 patients\b", text) for text in report.warnings(facts))


def test_without_a_model_before_nothing_is_said_to_be_new(evaluated):
    assert facts_of(evaluated).changes is None
    assert 'id="changes"' not in (evaluated / "report.html").read_text()
