import json
import re
import shutil
from dataclasses import replace

import keras
import numpy as np
import pandas as pd
import pytest

from tests.support import toys
from thyroid.data import classes
from thyroid.data.classes import BINARY, Classes
from thyroid.data.version import DataVersion
from thyroid.errors import InputError
from thyroid.evaluate import report
from thyroid.model import backbones, inputs
from thyroid.model.network import Network
from thyroid.records.evaluation import EvaluationRecord
from thyroid.train import diagnose, record, train
from thyroid.train.__main__ import main
from thyroid.train.options import TrainOptions


@pytest.fixture(scope="module")
def deck(cropped, shared):
    """The deck's recipe, really trained at toy size."""
    options = TrainOptions(weights="none", image_size=32, epochs=2, batch_size=8, recipe="deck")
    return shared.make("deck", lambda folder: train.train(cropped, folder, "VGG16", "cropped", options))


def test_our_recipe_has_no_finding(cropped, trained):
    for key in (("VGG16", "cropped"), ("VGG19", "cropped")):
        folder = trained[key]
        diagnosis = diagnose.diagnose(cropped, folder)
        assert diagnosis.findings == {}
        assert diagnosis.figures["scale"]["stem_spread"] == pytest.approx(
            diagnosis.figures["scale"]["expected_stem_spread"]
        )
        assert diagnosis.figures["serving"]["probability_difference"] < 1e-5
        assert "FOUND" not in diagnose.describe(diagnosis)


@pytest.mark.slow
def test_the_decks_recipe_keeps_its_mistakes(cropped, deck):
    facts = record.read(deck)
    assert facts.recipe == "deck"
    parts = pd.read_csv(deck / "parts.csv").set_index("file")["part"]
    table = DataVersion.read(cropped).examples("cropped", "train")
    assert len(parts) == len(table) + len(DataVersion.read(cropped).examples("cropped", "validation"))
    taken = parts[[str(f)[len(str(cropped)) + 1 :] for f in table["file"]]]
    assert 0 < (taken == "validation").mean() < 0.15, "a tenth of the training part, by position among the names"


def test_the_decks_recipe_is_told_what_is_wrong(cropped, deck):
    diagnosis = diagnose.diagnose(cropped, deck)
    assert {"input scale", "patient leakage"} <= diagnosis.findings.keys()
    assert diagnosis.figures["scale"]["input_high"] <= 1
    text = diagnose.describe(diagnosis)
    assert set(re.findall(r"FOUND (.*?):", text)) == diagnosis.findings.keys()
    assert "keras.applications.vgg16.preprocess_input" in text


@pytest.fixture(scope="module", params=["EfficientNetB0", pytest.param("EfficientNetB7", marks=pytest.mark.slow)])
def efficientnets(request):
    """As it should be fed, and as the deck fed it."""
    row = replace(backbones.get("EfficientNetB7"), name=request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(backbones.BACKBONES, row.name, row)
        yield {deck: backbones.build(row, 32, None, deck=deck) for deck in (False, True)}


@pytest.fixture(scope="module")
def few_pixels(cropped):
    return inputs.decode(DataVersion.read(cropped).examples("cropped").head(8), 32)


def test_efficientnet_fed_by_the_deck_is_rescaled_twice(efficientnets, few_pixels):
    name = efficientnets[True].name
    figures, findings = diagnose._scale(name, efficientnets[True], few_pixels)
    assert [finding.name for finding in findings] == ["double rescaling"]
    assert re.search(rf"{name}\b.*\b1/255\b", findings[0].text)
    scale = figures["scale"]
    assert scale["expected_stem_spread"] / scale["stem_spread"] == pytest.approx(255, rel=0.01)
    figures, findings = diagnose._scale(name, efficientnets[False], few_pixels)
    assert findings == []
    assert figures["scale"]["input_high"] > 100


def test_a_constant_predictor_is_called_one():
    validation = pd.DataFrame({"class": ["B"] * 8 + ["M"] * 2})

    def answers(*ends: float) -> np.ndarray:
        malignant = np.linspace(*ends, 10)
        return np.stack([1 - malignant, malignant], axis=1)

    figures, findings = diagnose._predictor(validation, answers(0.2, 0.22), BINARY)
    assert [finding.name for finding in findings] == ["constant predictor"]
    assert figures["predictor"]["accuracy"] == figures["predictor"]["majority"] == 0.8
    assert figures["predictor"]["balanced_accuracy"] == 0.5
    assert diagnose._predictor(validation, answers(0.1, 0.9), BINARY)[1] == []
    grades = classes.parse("2<3|4")
    graded = pd.DataFrame({"class": ["2"] * 5 + ["3"] * 4 + ["4"]})
    figures, findings = diagnose._predictor(graded, np.tile([0.4, 0.35, 0.25], (10, 1)), grades)
    assert re.search(r"called 2\b", findings[0].text)
    assert figures["predictor"]["balanced_accuracy"] == pytest.approx(1 / 3)


def test_swapped_labels_are_seen(cropped, trained):
    facts = record.read(trained["VGG16", "cropped"])
    table = DataVersion.read(cropped).examples("cropped").assign(part=lambda t: t["split"])
    benign = ((table["part"] == "train") & (table["label"] == "B")).sum()

    class Swapped:
        def probabilities(self, pixels, doing=""):
            benign_first = np.arange(len(pixels)) < min(benign, diagnose.SAMPLE)  # as _label_order takes them
            return np.stack([~benign_first, benign_first], axis=1) * 0.8 + 0.1

    assert [f.name for f in diagnose._label_order(facts, Swapped(), table, BINARY, BINARY)[1]] == ["label order"]
    other = facts.model_copy(update={"classes": ["M", "B"]})
    reversed_ = Classes.from_record(other)
    assert str(other.classes) in diagnose._label_order(other, None, table, reversed_, BINARY)[1][0].text


def test_near_duplicates_of_two_patients_on_two_sides():
    table = pd.DataFrame(
        {"patient": [1, 2, 3, 3], "group": [1, 1, 2, 2], "part": ["train", "test", "train", "validation"]}
    )
    findings = diagnose._leakage(table)[1]
    assert {f.name for f in findings} == {"patient leakage", "duplicate leakage"}
    assert all(f.text.startswith("1 ") for f in findings)


def test_a_part_without_a_class():
    table = pd.DataFrame({"part": ["train", "train", "validation", "test", "test"], "class": list("BMBBM")})
    (finding,) = diagnose._classes(table, BINARY)[1]
    assert finding.text.startswith("the validation part has no image of class M")
    table = table[table["class"] == "B"]
    (finding,) = diagnose._classes(table, BINARY)[1]
    assert [part.split()[1] for part in finding.text.split("; ")] == ["train", "validation", "test"]


def test_batch_norm_statistics_that_do_not_describe_the_data(toy, few_pixels):
    keras.utils.set_random_seed(0)
    model = backbones.build(toys.ROW, 32, None, deck=True)
    model.get_layer("body").get_layer("conv5_bn").moving_mean.assign(np.full(toys.WIDTH, 50.0))
    model.get_layer("probability").set_weights([np.tile([[0.0, 0.2]], (toys.WIDTH, 1)), np.zeros(2)])
    before = model.get_weights()
    figures, findings = diagnose._batch_norm(4, model, few_pixels)
    assert [finding.name for finding in findings] == ["BatchNorm statistics"]
    assert figures["batch_norm"]["shift"] > diagnose.BATCH_NORM_SHIFT
    for one, other in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_images_read_another_way_in_training(cropped, toy):
    """Stretched by the deck's generator, letterboxed by the endpoint."""
    validation = DataVersion.read(cropped).examples("normal", "validation").head(4)
    pixels = inputs.decode(validation, 32)
    network = Network.trace(backbones.build(backbones.get(toy), 32, None))
    figures, _ = diagnose._serving("deck", network, validation, pixels)
    assert figures["serving"]["pixel_difference"] > 5
    figures, findings = diagnose._serving("two-phase", network, validation, pixels)
    assert figures["serving"] == {"pixel_difference": 0, "probability_difference": pytest.approx(0, abs=1e-6)}
    assert findings == []


def test_command_writes_words_a_table_and_a_picture(cropped, deck, trained, tmp_path, capsys, drawn):
    models = [str(deck), str(trained["VGG16", "cropped"])]
    assert diagnose.main(["--data", str(cropped), "--models", *models, "--output", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "Research use only" in printed
    rows = json.loads((tmp_path / "diagnosis.json").read_text())["models"]
    assert [bool(row["findings"]) for row in rows] == [True, False]
    assert set(re.findall(r"FOUND (.*?):", printed)) == rows[0]["findings"].keys()
    assert rows[0]["findings"].keys() >= {"input scale"}
    assert (tmp_path / "diagnosis.png").stat().st_size > 10_000


def test_the_report_says_what_was_found(cropped, deck, evaluated, tmp_path):
    """In place of what the evaluation found at a model of the same name."""
    result = json.loads((evaluated / "evaluation.json").read_text())
    of_deck = diagnose.diagnose(cropped, deck).to_dict()
    assert [one.keys() for one in result["diagnosis"]] == [of_deck.keys()] * 2
    result["diagnosis"] = [of_deck if one["backbone"] == "VGG16" else one for one in result["diagnosis"]]
    changed = EvaluationRecord.parse(result, "evaluation.json")
    report.write(shutil.copytree(evaluated, tmp_path / "out"), DataVersion.read(cropped), changed)
    html = (tmp_path / "out" / "report.html").read_text()
    assert re.findall(r"(\w+) \((\w+)\): input scale", html) == [("VGG16", "cropped")]


def test_another_data_version_and_an_unfinished_training(cropped, trained, tmp_path):
    copy = shutil.copytree(trained["VGG16", "cropped"], tmp_path / "model")
    (copy / "parts.csv").unlink()
    with pytest.raises(InputError, match=r"parts\.csv"):
        diagnose.diagnose(cropped, copy)
    record.read(copy).model_copy(update={"data_digest": "other"}).write(copy / "train.json")
    with pytest.raises(InputError, match=re.escape(str(cropped))):
        diagnose.diagnose(cropped, copy)


@pytest.mark.slow
def test_the_decks_efficientnet_is_diagnosed_after_its_training(cropped, tmp_path, capsys):
    """From the command line, as someone would who wonders why the deck's best model fell to chance."""
    command = ["--data", str(cropped), "--output", str(tmp_path), "--backbone", "EfficientNetB7", "--recipe", "deck"]
    options = ["--weights", "none", "--image-size", "32", "--epochs", "1", "--batch-size", "8", "--domain", "cropped"]
    assert main([*command, *options]) == 0
    assert diagnose.main(["--data", str(cropped), "--models", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert {"double rescaling", "patient leakage"} <= set(re.findall(r"FOUND (.*?):", printed))
