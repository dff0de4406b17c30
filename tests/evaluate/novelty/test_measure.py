"""The reference of an evaluation, from the locked limit to artefact, report and card."""

import re
from html import unescape
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tests.support import older
from thyroid.data.version import DataVersion
from thyroid.evaluate import evaluate, scored
from thyroid.evaluate.novelty import foreign, measure, words
from thyroid.evaluate.novelty.foreign import Foreign
from thyroid.evaluate.options import EvaluateOptions
from thyroid.interval import Interval
from thyroid.model.artefact import Artefact
from thyroid.model.novelty import fit
from thyroid.model.novelty.novelty import FILE, Novelty
from thyroid.records.evaluation import EvaluationRecord


@pytest.fixture(scope="module")
def record(judged):
    return EvaluationRecord.read(judged / "out" / "evaluation.json")


@pytest.fixture(scope="module")
def winner(judged):
    """The model of the evaluation, whose point is locked and which has not seen the test set."""
    _, (model,) = scored.read(judged / "data", [judged / "model"], EvaluateOptions())
    model.load()
    model.lock()
    return model


def features_of(winner, split):
    table = winner.evaluation.data.examples("cropped", split)
    return winner.network.pooled(winner.evaluation.data.pixels(table, winner.size)), table["patient"].to_numpy(int)


def test_the_artefact_has_the_reference_of_the_evaluation(judged, record):
    artefact = Artefact.verify(judged / "out" / "artefact")
    assert FILE in artefact.record.files
    assert artefact.record.novelty == record.novelty
    assert Novelty.read(artefact).limit == pytest.approx(record.novelty.limit)
    assert record.novelty_skipped is None
    assert len(record.novelty.foreign) >= 8


def test_the_share_that_passes_is_that_of_test_patients(judged, record, winner):
    novelty = Novelty.read(Artefact.read(judged / "out" / "artefact"))
    features, patients = features_of(winner, "test")
    beyond = set(patients[novelty.distance(features) > novelty.limit])
    passed = record.novelty.passed
    assert passed.value == pytest.approx(1 - len(beyond) / len(set(patients)))
    assert passed.low < passed.value <= passed.high
    assert set(record.novelty.largest_difference) >= {"openvino-f32"}
    assert record.novelty.largest_difference["openvino-f32"] < 1e-3


def trained_on(winner):
    """Cross-fitted distances of the training images, and their patients."""
    table = measure._training(winner)
    features, patients = measure._features(winner, table, "images"), table["patient"].to_numpy(int)
    return fit.cross_fitted(features, patients, winner.evaluation.options.seed), patients


def test_the_limit_is_locked_on_validation_patients_before_a_test_image_is_read(winner, record, monkeypatch):
    read, examples = [], DataVersion.examples
    monkeypatch.setattr(
        DataVersion, "examples", lambda data, domain, split=None: read.append(split) or examples(data, domain, split)
    )
    locked = measure.lock(winner)
    assert set(read) == {"train", "validation"}
    assert locked.novelty.limit == record.novelty.limit
    features, patients = features_of(winner, "validation")
    alone = fit.limit(locked.novelty.distance(features), patients, *trained_on(winner))
    assert locked.novelty.limit == pytest.approx(alone)
    assert locked.validation_patients == record.novelty.validation_patients == len(set(patients))


def test_the_reference_has_seen_the_disturbed_crops_of_training(winner, record):
    table = winner.evaluation.data.examples("cropped", "train")
    assert record.novelty.images == 2 * len(table)
    assert record.novelty.patients == table["patient"].nunique()


def test_a_kind_that_is_farther_than_every_test_image_is_told_apart_wholly():
    tested = pd.DataFrame({"patient": [1, 1, 2, 3], "distance": [0.5, 0.9, 0.6, 0.7]})
    made = Foreign("blank", np.zeros((3, 8, 8, 3), np.uint8))
    found = measure._detection(made, np.array([0.95, 1.5, 2.0]), tested, np.array([0, 2]), 0)
    assert found.auroc.value == 1
    assert found.auroc.low < 1
    assert found.caught == pytest.approx(2 / 3)
    assert found.images == 3


def test_variations_of_a_test_image_are_drawn_with_its_patient():
    """The same distances of as many images: without the patients of the test images the interval is another one."""
    rng = np.random.default_rng(0)
    tested = pd.DataFrame({"patient": range(30), "distance": rng.uniform(0, 1, 30)})
    pixels, distance = np.zeros((30, 8, 8, 3), np.uint8), tested["distance"].to_numpy() + 0.2
    varied, own = (
        measure._detection(Foreign("k", pixels, varied), distance, tested, np.arange(30), 0) for varied in (True, False)
    )
    assert varied.auroc.value == own.auroc.value
    assert varied.auroc.high - varied.auroc.low < own.auroc.high - own.auroc.low


def test_too_few_patients_are_said_with_their_number(evaluated, cropped):
    """The phantoms of most tests have two validation patients."""
    found = EvaluationRecord.read(evaluated / "evaluation.json")
    assert found.novelty is None
    assert found.novelty_skipped == "the validation split has images of 2 patients, and a limit needs 3"
    html = (evaluated / "report.html").read_text()
    assert found.novelty_skipped in html
    assert found.novelty_skipped in (evaluated / "artefact" / "card.md").read_text()
    assert not (evaluated / "artefact" / FILE).exists()
    assert Artefact.verify(evaluated / "artefact").record.novelty is None


def test_too_few_training_patients_are_said_with_their_number(winner, monkeypatch):
    monkeypatch.setattr(measure, "LEAST_TRAINING", 1000)
    assert "the train split has images of" in measure.why_not(winner)
    assert measure.lock(winner) is None


def test_a_training_of_an_older_release_has_no_reference(judged, toy, tmp_path):
    old = older.training(judged / "model", tmp_path / "old")
    done = evaluate.evaluate(judged / "data", [old], tmp_path / "out")
    assert done.record.novelty is None
    assert "older release" in done.record.novelty_skipped
    artefact = Artefact.verify(tmp_path / "out" / "artefact")
    assert artefact.record.novelty is None
    assert "distance" not in artefact.record.usual_answers["given"].values
    assert "train again" in (tmp_path / "out" / "report.html").read_text()


def test_the_report_says_what_the_limit_does_and_what_it_lets_through(judged, record):
    html = re.sub(r"<[^>]+>", " ", unescape((judged / "out" / "report.html").read_text()))
    text = re.sub(r"\s+", " ", html)
    assert "Is this picture like those it learnt from?" in text
    for sentence in words.lead(record.novelty):
        assert sentence in text
    assert "knows nothing of anatomy" in text
    for one in record.novelty.foreign:
        assert str(one.auroc) in text
    card = (judged / "out" / "artefact" / "card.md").read_text()
    assert str(record.novelty.passed) in card
    assert "## Pictures unlike the training images" in card


def test_the_plot_shows_points(judged):
    with Image.open(judged / "out" / "plots" / "novelty.png") as picture:
        assert picture.width > 400
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 50


def test_a_limit_that_stops_test_patients_is_a_warning(record):
    good = record.novelty.model_copy(update={"passed": SimpleNamespace(value=0.96)})
    bad = record.novelty.model_copy(update={"passed": SimpleNamespace(value=0.8)})
    assert words.warnings(good) == []
    (text,) = words.warnings(bad)
    assert "20%" in text


def test_words_name_the_kinds_that_the_limit_does_not_stop(record):
    caught = {foreign.BLANK: 1.0, foreign.HALF: 0.1}
    kinds = [one.model_copy(update={"caught": caught.get(one.kind, 1.0)}) for one in record.novelty.foreign]
    text = " ".join(words.lead(record.novelty.model_copy(update={"foreign": kinds})))
    assert f"does not reliably stop: {foreign.HALF} (10% caught)." in text


def test_patients_who_do_not_pass_are_mentioned_only_if_there_are_any(record):
    def lead(share: float) -> str:
        return " ".join(words.lead(record.novelty.model_copy(update={"passed": Interval(share, 0.8, 1.0)})))

    assert "The others would be left without a decision" in lead(0.95)
    assert "The others" not in lead(1.0)


def test_names_of_kinds_keep_their_capitals(record):
    kinds = [kind for kind, *_ in words.rows(record.novelty)]
    assert {"Blank", "Colour Doppler"} <= set(kinds)
