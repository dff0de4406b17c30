"""An evaluation with labels of descriptors, from the CSV to the artefact."""

import asyncio
from html import unescape

import numpy as np
import pandas as pd
import pytest

from tests.conftest import drawing
from tests.support import older
from thyroid import RESEARCH_USE_ONLY
from thyroid.clinical.descriptors_csv import DescriptorTable
from thyroid.data.filenames import SCORE
from thyroid.data.version import DataVersion
from thyroid.errors import InputError
from thyroid.evaluate import artefact as packing
from thyroid.evaluate import evaluate, scored
from thyroid.evaluate.audits import subject
from thyroid.evaluate.descriptors import lock, measure, tirads, words
from thyroid.evaluate.novelty import usual
from thyroid.evaluate.options import EvaluateOptions
from thyroid.model import engine
from thyroid.model.artefact import Artefact
from thyroid.model.descriptors.head import FILE, Head
from thyroid.records.evaluation import EvaluationRecord
from thyroid.train import record, train
from thyroid.train.options import TrainOptions


@pytest.fixture(scope="module")
def result(described) -> EvaluationRecord:
    return EvaluationRecord.read(described / "out" / "evaluation.json")


@pytest.fixture(scope="module")
def artefact(described) -> Artefact:
    return Artefact.verify(described / "out" / "artefact")


@pytest.fixture
def winner(described):
    """The model, whose operating point is locked and which has read no test image."""
    _, (model,) = scored.read(described / "data", [described / "model"], EvaluateOptions())
    model.load()
    model.lock()
    return model


def table_of(winner, location) -> DescriptorTable:
    return DescriptorTable.read(str(location), winner.evaluation.data.used)


def found(result, descriptor, value):
    (one,) = [one for one in result.descriptors.findings if (one.descriptor, one.value) == (descriptor, value)]
    return one


def test_what_the_data_show_is_given_out_and_the_rest_is_withheld_with_a_reason(result):
    told = result.descriptors
    assert told.columns == {name: name for name in ("composition", "echogenicity", "shape", "margin", "foci")}
    assert found(result, "echogenicity", "hypoechoic").given
    assert found(result, "composition", "solid").why == "gives_class_away"
    assert found(result, "shape", "taller").why == "auroc"
    assert found(result, "foci", "macro").why == "too_few"
    assert found(result, "foci", "macro").test is None
    assert told.seen["shape"] == ["wider", "taller"]
    assert "extrathyroidal" in told.assumed_absent["margin"]
    for one in told.findings:
        assert one.given == (one.why is None) == (one.detail == "")


def test_findings_are_measured_on_test_patients(result):
    echo = found(result, "echogenicity", "hypoechoic")
    assert echo.test.images == echo.test.patients == result.data.splits["test"]["patients"]
    assert echo.test.auroc.value > 0.7
    assert echo.test.kappa.value > 0.2
    assert set(echo.largest_difference) == set(engine.openvino_forms())
    assert echo.largest_difference[engine.F32] < 1e-4
    assert {"box_size", "grey_levels", "patient_number", "scan_area_geometry"} == set(echo.shortcuts)
    assert echo.blanked is not None
    assert echo.kept < 0.5
    leak = found(result, "composition", "solid")
    assert leak.test is not None, "a withheld finding is measured, too"
    assert leak.largest_difference == {}


def test_points_are_compared_with_decisions(result):
    points = result.descriptors.tirads
    assert points.cut in (2, 3, 4, 7)
    assert points.doubts == (points.why_not is None)
    assert 0 <= points.disagree <= points.compared <= result.data.splits["test"]["patients"]
    assert points.mean_width > 0
    assert points.covered.value > 0.7


def test_the_artefact_tells_what_the_evaluation_measured(artefact, result, described):
    head = Head.read(artefact)
    assert head.record == result.descriptors
    assert FILE in artefact.record.files
    data = DataVersion.read(described / "data")
    table = data.examples("cropped", "test")
    running = engine.load(artefact, engine.F32)
    pixels = np.repeat(data.pixels(table, 32), 3, axis=-1)[..., :3]
    _, _, _, features, maps = running.predict(pixels)
    probability = head.probabilities(features)
    echo = [one.value for one in head.given].index("hypoechoic")
    labels = DescriptorTable.read(str(described / "labels.csv"), data.used)
    truth = labels.labels(table["path"].tolist(), "echogenicity", "hypoechoic") == 1
    assert probability[truth, echo].mean() > probability[~truth, echo].mean() + 0.2
    logit = np.log(probability) - np.log1p(-probability)
    np.testing.assert_allclose(maps.mean(axis=(1, 2)) + head.bias, logit, atol=1e-3)
    answer = asyncio.run(running.answer(pixels[0]))
    assert len(answer) == 5
    running.close()
    in_keras = engine.load(artefact, engine.KERAS).predict(pixels)
    np.testing.assert_allclose(head.probabilities(in_keras[3]), probability, atol=1e-4)
    np.testing.assert_allclose(in_keras[4], maps, atol=1e-3)


def test_the_export_runs_in_blocks_and_keeps_no_maps(winner, described, tmp_path, monkeypatch):
    told = lock.lock(winner, table_of(winner, described / "labels.csv"))
    monkeypatch.setattr(packing, "_BLOCK", 3)
    exported = packing.export(winner, tmp_path / "artefact", told)
    table = winner.evaluation.examples("cropped", "test")
    expected = winner.network.features(winner.evaluation.data.pixels(table, winner.size))
    for form, answers in exported.answers.result().items():
        assert [len(one) for one in answers] == [len(table)] * 4
        near = 1e-4 if form == engine.F32 else 0.1
        np.testing.assert_allclose(exported.features()[form], expected, atol=near * np.abs(expected).max())
    plain = packing.export(winner, tmp_path / "plain")
    assert plain.features() == {}
    assert not (tmp_path / "plain" / FILE).exists()


def test_report_and_card_say_what_is_told(described, result):
    report = unescape((described / "out" / "report.html").read_text(encoding="utf-8"))
    card = (described / "out" / "artefact" / "card.md").read_text(encoding="utf-8")
    section = report[report.index('id="descriptors"') :]
    for text in (section, card):
        assert "echogenicity: hypoechoic" in text
        assert found(result, "composition", "solid").detail in text
        assert "no: too few patients" in text
        assert "echogenic foci: macrocalcification" in text
        assert "10.1016/j.jacr.2017.01.046" in text
    assert "Comet tails" in section
    echo = found(result, "echogenicity", "hypoechoic").test
    assert 0 < echo.ece_if_calibrated < 0.5, "few images do not score 0"
    assert f"{echo.ece:.3f} ({echo.ece_if_calibrated:.3f})" in section
    assert words.EXPLANATION in card
    assert "used, from the columns composition, echogenicity, shape, margin, foci." in card
    told = words.lead(result.descriptors.model_copy(update={"columns": {"margin": "edges"}, "notes": []}))
    assert "from the columns edges (margin)." in told[0]
    warnings = report[report.index('id="warnings"') : report.index('id="gate"')]
    assert "composition gives the class away" in warnings
    assert RESEARCH_USE_ONLY in report
    for name in ("descriptors-auroc", "descriptors-calibration", "tirads"):
        assert (described / "out" / "plots" / f"{name}.png").is_file()


def test_no_test_image_is_read_before_the_findings_are_locked(described, winner, monkeypatch):
    data = winner.evaluation.data
    held_back = set(data.examples("cropped", "test")["sha256"])
    asked = []

    def pixels(self, examples, size, plain=DataVersion.pixels):
        asked.extend(examples["sha256"])
        return plain(self, examples, size)

    monkeypatch.setattr(DataVersion, "pixels", pixels)
    labels = table_of(winner, described / "labels.csv")
    one = lock.lock(winner, labels)
    assert asked
    assert not held_back & set(asked)
    # other words of test scans change nothing
    labels.rows.loc[data.used.loc[data.used["split"] == "test", "path"]] = None
    other = lock.lock(winner, labels)
    assert other.record == one.record
    np.testing.assert_array_equal(other.weight, one.weight)


def test_points_are_compared_with_the_decisions_of_a_model_that_uses_clinical_columns(described, winner, monkeypatch):
    class Sharpening:
        """A head that changes every probability, and changes it again if it is applied twice."""

        def apply(self, table, classes):
            sharper = table[classes.columns] ** 3
            return table.assign(**sharper.div(sharper.sum(axis=1), axis=0))

    compared = []

    def compare(model, head, images, plain=tirads.compare):
        compared.append(images.set_index("name")[SCORE])
        return plain(model, head, images)

    winner.lock(Sharpening())
    monkeypatch.setattr(tirads, "compare", compare)
    lock.lock(winner, table_of(winner, described / "labels.csv"))
    decided = winner.validation.set_index("file")[SCORE]
    (scores,) = compared
    assert set(scores.index) == set(decided.index)
    np.testing.assert_allclose(scores, decided.loc[scores.index])


def test_labels_of_the_test_part_alone_give_nothing_out(described, winner, tmp_path):
    labels = pd.read_csv(described / "labels.csv")
    data = winner.evaluation.data.used
    held_back = [path.rsplit("/", 1)[-1] for path in data.loc[data["split"] == "test", "path"]]
    labels[labels["filename"].isin(held_back)].to_csv(tmp_path / "labels.csv", index=False)
    told = lock.lock(winner, table_of(winner, tmp_path / "labels.csv"))
    assert told.head is None
    assert told.record.findings == []
    assert "no development image has a label" in told.record.notes
    assert measure.measure(winner, told, {}).record == told.record


def test_too_few_patients_for_folds_give_nothing_out(described, winner, monkeypatch):
    monkeypatch.setattr(lock, "folds_of", lambda table, seed: None)
    told = lock.lock(winner, table_of(winner, described / "labels.csv"))
    assert told.head is None
    assert {one.why for one in told.record.findings} == {"too_few"}
    assert {subject.TOO_FEW} < {one.detail for one in told.record.findings}


def test_a_training_of_an_older_release_is_evaluated_without_descriptors(described, tmp_path, toy):
    folder = older.training(described / "model", tmp_path / "model")
    options = EvaluateOptions(descriptors=str(described / "labels.csv"))
    with drawing():
        evaluation = evaluate.evaluate(described / "data", [folder], tmp_path / "out", options).record
    assert evaluation.descriptors is None
    assert "train again" in evaluation.descriptors_skipped
    assert Head.read(Artefact.verify(tmp_path / "out" / "artefact")) is None
    assert not (tmp_path / "out" / "artefact" / FILE).exists()
    report = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "none is told: the training is of an older release" in report


def test_the_decks_recipe_has_no_frozen_features(winner, monkeypatch):
    deck = winner.training.model_copy(update={"recipe": "deck"})
    monkeypatch.setattr(winner, "training", deck)
    assert lock.why_not(winner) == subject.TRAINED_WHOLE


def test_wrong_labels_are_refused_before_anything_is_scored(described, tmp_path):
    (tmp_path / "labels.csv").write_text("filename,margins\nB_001-0001-1.0.jpg,blurry\n")
    options = EvaluateOptions(descriptors=str(tmp_path / "labels.csv"))
    with pytest.raises(InputError, match="margin"):
        evaluate.evaluate(described / "data", [described / "model"], tmp_path / "out", options)
    assert not (tmp_path / "out").exists()


def test_a_proven_doubt_counts_as_undecided_in_what_is_usual(described, winner, artefact):
    winner.score_test()
    head = Head.read(artefact)
    plain = usual.describe(winner, None, False)
    shown = head.record.tirads.model_copy(update={"cut": 0, "doubts": False})
    showing = Head(head.record.model_copy(update={"tirads": shown}), head.weight, head.bias)
    assert usual.describe(winner, None, False, showing) == plain
    # at 0 points every benign decision is contradicted
    doubtful = head.record.tirads.model_copy(update={"cut": 0, "doubts": True})
    doubting = Head(head.record.model_copy(update={"tirads": doubtful}), head.weight, head.bias)
    found = usual.describe(winner, None, False, doubting)
    assert plain["given"].decisions["benign"] > 0
    assert found["given"].decisions["benign"] == 0
    assert found["given"].decisions["abstain"] == plain["given"].decisions["benign"]


@pytest.mark.slow
def test_full_frames_are_told_too(described, tmp_path, toy):
    """No crops, two folds for the network: decisions of all development patients are compared out of fold."""
    from thyroid import crop
    from thyroid.crop import CropOptions

    crop.crop(described / "ingested", tmp_path / "data", CropOptions(["normal"]))
    options = TrainOptions(weights="none", image_size=32, recipe="frozen", folds=2)
    train.train(tmp_path / "data", tmp_path / "model", toy, "normal", options)
    assert record.read(tmp_path / "model").folds == 2
    with drawing():
        options = EvaluateOptions(descriptors=str(described / "labels.csv"))
        told = evaluate.evaluate(tmp_path / "data", [tmp_path / "model"], tmp_path / "out", options).record.descriptors
    assert told.images == told.patients
    assert {one.why for one in told.findings if one.descriptor == "composition"} == {"gives_class_away"}
