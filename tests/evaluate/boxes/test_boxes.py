"""An evaluation with automatic boxes, from the folder of `locate` to artefact, report, card and log."""

import re
from html import unescape
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from tests.conftest import drawing
from tests.support import located as support
from thyroid.data import tables
from thyroid.data.filenames import SCORE
from thyroid.data.version import DataVersion
from thyroid.errors import InputError
from thyroid.evaluate import card, evaluate, predictions, report
from thyroid.evaluate.boxes import cost, words
from thyroid.evaluate.options import EvaluateOptions
from thyroid.metrics import Interval, format_interval
from thyroid.model import locator
from thyroid.model.artefact import Artefact, sha256
from thyroid.model.operating_point import OperatingPoint
from thyroid.records.evaluation import EvaluationRecord
from thyroid.train import train
from thyroid.train.options import TrainOptions


@pytest.fixture(scope="module")
def data(cropped) -> DataVersion:
    return DataVersion.read(cropped)


@pytest.fixture(scope="module")
def trainings(toy, cropped, tmp_path_factory):
    """A backbone that was trained on both domains, by domain."""
    folder = tmp_path_factory.mktemp("trainings")
    options = TrainOptions(weights="none", image_size=32, epochs=0)
    return {domain: train.train(cropped, folder / domain, toy, domain, options).folder for domain in tables.DOMAINS}


@pytest.fixture(scope="module")
def judged(cropped, data, trainings, tmp_path_factory):
    """An evaluation of the model of crops alone, whose boxes are shifted."""
    folder = tmp_path_factory.mktemp("judged")
    support.write(folder / "boxes", data, shift=0.5)
    with drawing():
        return evaluate.evaluate(
            cropped, [trainings["cropped"]], folder / "out", EvaluateOptions(locate=folder / "boxes")
        )


@pytest.fixture(scope="module")
def both(cropped, data, trainings, tmp_path_factory):
    """An evaluation of models of both domains that serves full frames."""
    folder = tmp_path_factory.mktemp("both")
    support.write(folder / "boxes", data)
    options = EvaluateOptions(locate=folder / "boxes", serving_domain="normal")
    return evaluate.evaluate(cropped, list(trainings.values()), folder / "out", options)


def test_each_test_frame_is_a_row_of_the_automatic_domain(judged, data):
    table = pd.read_parquet(judged.folder / "predictions.parquet")
    rows = predictions.of_model(table, judged.record.models[0], "automatic", "test")
    frames = data.examples("normal", "test")
    assert len(rows) == len(frames)
    assert set(rows["scan"]) == {path.rsplit("/", 1)[-1] for path in frames["path"]}
    assert all(file.startswith("crops/") for file in rows["file"])
    assert set(table.loc[table["domain"] == "automatic", "split"]) == {"test"}
    assert judged.record.domains == ["cropped", "automatic"]
    auroc = judged.record.models[0].test["automatic"].auroc
    assert auroc.value == pytest.approx(roc_auc_score(rows["label"] == "M", rows[SCORE]))


def test_other_figures_are_those_without_boxes(judged, cropped, trainings, tmp_path):
    """A locator changes no test set, no operating point and no decision of the gate."""
    plain = evaluate.evaluate(cropped, [trainings["cropped"]], tmp_path / "out").record
    found = judged.record
    assert plain.models[0].operating_point == found.models[0].operating_point
    assert plain.models[0].test["cropped"] == found.models[0].test["cropped"]
    assert plain.gate == found.gate
    assert plain.audits.shortcut.items() <= found.audits.shortcut.items()
    assert plain.audits.leakage == found.audits.leakage
    assert plain.domains == ["cropped"]
    content = plain.to_dict()
    assert not {"locator", "without_locator", "automatic_boxes"} & set(content)
    facts = Artefact.verify(tmp_path / "out" / "artefact").record
    assert (facts.locator, facts.automatic_boxes) == (None, None)
    assert not [name for name in facts.files if name.startswith("locator")]
    assert "--locate" in (tmp_path / "out" / "report.html").read_text()


def test_what_boxes_cost_follows_from_the_predictions(judged, data):
    table = pd.read_parquet(judged.folder / "predictions.parquet")
    found = judged.record.automatic_boxes
    row = judged.record.models[0]
    given, automatic = (predictions.of_model(table, row, domain, "test") for domain in ("cropped", "automatic"))
    mean = given.groupby("scan")[SCORE].mean()[automatic["scan"]].to_numpy()
    malignant = automatic["label"] == "M"
    assert found.frames == len(automatic)
    assert found.patients == automatic["patient"].nunique()
    assert found.given.value == pytest.approx(roc_auc_score(malignant, mean))
    assert found.automatic == row.test["automatic"].auroc
    assert found.difference.value == pytest.approx(found.automatic.value - found.given.value)
    point = OperatingPoint.from_record(row.operating_point)
    assert found.flips == int((point.decide(mean) != automatic["decision"]).sum())
    assert found.sure_frames < found.frames
    assert EvaluationRecord.read(judged.folder / "evaluation.json") == judged.record


def test_the_artefact_has_the_locator(judged):
    artefact = Artefact.verify(judged.folder / "artefact")
    assert artefact.record.locator == judged.record.locator
    assert artefact.record.automatic_boxes == judged.record.automatic_boxes
    boxes = judged.folder.parent / "boxes"
    for name in locator.FILES:
        assert artefact.record.files[name] == sha256(boxes / name) == sha256(artefact.folder / name)


def test_a_reader_of_the_report_finds_what_boxes_cost(judged):
    html = (judged.folder / "report.html").read_text()
    page = unescape(html)
    boxes, locator = judged.record.automatic_boxes, judged.record.locator
    section = page.split('id="boxes"')[1].split("</section>")[0]
    for text in words.conclusion(locator, boxes):
        assert text in section
    for metric in (boxes.given, boxes.automatic, boxes.difference, boxes.rank_correlation, locator.test.iou50):
        assert format_interval(metric) in section
    assert section.count("data:image/png;base64,") == 4
    assert not re.findall(r'(?:src|href)="(?!data:)', html)
    for name in ("boxes-scores", "locate-sheet", "locate-calibration", "locate-risk_coverage"):
        with Image.open(judged.folder / "plots" / f"{name}.png") as image:
            assert min(image.size) > 150
    assert words.lead(judged.record)[0] in report.lead(judged.record)
    assert format_interval(judged.record.models[0].test["automatic"].auroc) in page.split("Domain matrix")[1]


def test_the_card_says_it_too(judged):
    text = (judged.folder / "artefact" / "card.md").read_text()
    boxes, locator = judged.record.automatic_boxes, judged.record.locator
    section = text.split("## Automatic boxes")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    assert {row.count("|") for row in rows} == {6, 4}
    assert len(rows) == 2 + len(words.figures(locator)) + 2 + len(words.costs(boxes))
    assert str(boxes.difference) in section
    assert words.verdict(boxes) in section
    assert words.NO_NODULE in section
    item = re.search(r"^\| 27b \| .* \| (.*) \|$", text, re.MULTILINE)[1]
    assert "locator" in item


def test_models_of_full_frames_see_the_frame_and_need_no_locator(both, data):
    table = pd.read_parquet(both.folder / "predictions.parquet")
    frames = set(data.examples("normal", "test")["name"])
    for row in both.record.models:
        files = set(predictions.of_model(table, row, "automatic", "test")["file"])
        assert (files == frames) is (row.train_domain == "normal")
        matrix = both.record.domain_matrix["Toy"]
        assert matrix.cells[row.train_domain]["automatic"] == row.test["automatic"].auroc
    assert both.record.domains == ["normal", "cropped", "automatic"]
    assert set(matrix.cells) == set(matrix.drop) == set(tables.DOMAINS)
    assert both.record.locator is not None
    assert both.record.automatic_boxes is None
    facts = Artefact.verify(both.folder / "artefact").record
    assert (facts.locator, facts.automatic_boxes) == (None, None)
    html = (both.folder / "report.html").read_text()
    assert 'id="boxes"' in html
    assert format_interval(matrix.cells["cropped"]["automatic"]) in html.split("Domain matrix")[1]


def test_boxes_that_mislead_are_not_released_but_the_gate_decides_as_before(
    judged, cropped, data, trainings, tmp_path, monkeypatch, capsys
):
    """The scores with automatic boxes are turned upside down."""
    pair = cost.pair

    def misled(*tables):
        frames = pair(*tables)
        malignant = (frames["label"] == "M").astype(float)
        return frames.assign(given=malignant * 0.5 + 0.1, automatic=0.6 - malignant * 0.5)

    monkeypatch.setattr(cost, "pair", misled)
    support.write(tmp_path / "boxes", data)
    options = EvaluateOptions(locate=tmp_path / "boxes")
    done = evaluate.evaluate(cropped, [trainings["cropped"]], tmp_path / "out", options)
    boxes = done.record.automatic_boxes
    assert (boxes.released, boxes.difference.value) == (False, -1)
    assert done.record.gate == judged.record.gate
    assert Artefact.verify(tmp_path / "out" / "artefact").record.automatic_boxes.released is False
    page = unescape((tmp_path / "out" / "report.html").read_text())
    assert 'id="given-boxes-only"' in page
    assert set(words.warnings(done.record)) < set(report.warnings(done.record))
    assert boxes.reason in page.split('id="warnings"')[1].split("</div>")[0]
    assert boxes.reason in (tmp_path / "out" / "artefact" / "card.md").read_text()
    assert words.log_line(done.record) in capsys.readouterr().out


def test_a_skipped_step_counts_as_none_and_the_report_says_why(cropped, data, trainings, tmp_path, capsys):
    why = "no frame of the training part has a region"
    options = EvaluateOptions(locate=support.skipped(tmp_path / "boxes", data, why))
    done = evaluate.evaluate(cropped, [trainings["cropped"]], tmp_path / "out", options)
    assert done.record.without_locator == why
    assert (done.record.locator, done.record.automatic_boxes) == (None, None)
    assert done.record.domains == ["cropped"]
    for file in ("report.html", "artefact/card.md"):
        assert why in (tmp_path / "out" / file).read_text()
    assert why in capsys.readouterr().out
    assert "locator" not in Artefact.verify(tmp_path / "out" / "artefact").record.to_dict()


def test_boxes_of_another_data_version_end_before_anything_is_written(cropped, data, trainings, tmp_path):
    support.write(tmp_path / "boxes", data)
    support.seal(tmp_path / "boxes", data_digest="1" * 64)
    with pytest.raises(InputError, match=r"locate\.json"):
        evaluate.evaluate(cropped, [trainings["cropped"]], tmp_path / "out", EvaluateOptions(locate=tmp_path / "boxes"))
    assert not (tmp_path / "out").exists()


def measured(**changes):
    """What boxes cost on 40 frames that they change little of."""
    frames = pd.DataFrame({"path": [str(n) for n in range(40)], "label": list("BM" * 20), "patient": range(40)})
    rng = np.random.default_rng(0)
    given = (frames["label"] == "M") * 0.3 + rng.random(40) * 0.6
    frames = frames.assign(given=given, automatic=(given + rng.normal(0, 0.1, 40)).clip(0, 1), unsure=frames.index < 8)
    found = cost.measure(frames, OperatingPoint(1.0, (0, 0), 0.5, (0.5, 0.5)))
    return found.model_copy(update=changes)


@pytest.mark.parametrize(
    ("difference", "said", "not_said"),
    [
        (Interval(-0.1, -0.2, -0.01), "cost AUROC", "neither"),
        (Interval(-0.02, -0.1, 0.06), "neither", "cost AUROC"),
        (Interval(0.1, 0.02, 0.2), "nobody should count on", "neither"),
        (Interval(0.1, None, None), "too few patients", "±"),
    ],
)
def test_the_conclusion_claims_no_more_than_the_interval_shows(difference, said, not_said):
    text = " ".join(words.conclusion(support.locator_record(), measured(difference=difference)))
    assert said in text
    assert not_said not in text
    assert "8 of 40" in text
    assert words.NO_NODULE in text


def test_the_folder_is_an_option_of_the_command(monkeypatch, tmp_path):
    from thyroid.evaluate import __main__ as command

    calls = []
    monkeypatch.setattr(command, "evaluate", lambda *arguments: calls.append(arguments[-1]))
    few = ["--data", "a", "--output", "b", "--models", "c"]
    assert command.main([*few, "--locate", str(tmp_path)]) == command.main(few) == 0
    assert [options.locate for options in calls] == [tmp_path, None]


def test_the_metrics_of_the_step_are_numbers():
    boxes = measured(difference=Interval(-0.2, None, None), released=False)
    found = words.numbers(SimpleNamespace(automatic_boxes=boxes))
    assert found["automatic_boxes_auroc_low"] == boxes.automatic.low
    assert found["automatic_boxes_difference_value"] == -0.2
    assert found["automatic_boxes_released"] == 0
    assert "automatic_boxes_difference_low" not in found
    assert words.numbers(SimpleNamespace(automatic_boxes=None)) == {}


def test_small_numbers_are_said_to_be_small():
    wide, narrow = (measured(difference=Interval(0, -half, half)) for half in (0.11, 0.01))
    assert "±0.11" in " ".join(words.conclusion(support.locator_record(), wide))
    assert "±" not in " ".join(words.conclusion(support.locator_record(), narrow))


def test_another_order_and_a_locator_that_is_no_better_than_the_median_box_are_warnings():
    boxes = measured(released=True)
    plain = SimpleNamespace(automatic_boxes=boxes, locator=support.locator_record())
    assert words.warnings(plain) == []
    turned = boxes.model_copy(update={"rank_correlation": Interval(0.49, 0.3, 0.6)})
    assert len(words.warnings(SimpleNamespace(automatic_boxes=turned, locator=plain.locator))) == 1
    worse = support.locator_record(cross_fitted=support.fit(0.2))
    assert len(words.warnings(SimpleNamespace(automatic_boxes=boxes, locator=worse))) == 1


def test_what_a_user_has_to_do_is_on_the_card():
    domain = {"serving_domain": "cropped"}
    answers = [
        card._interaction(SimpleNamespace(automatic_boxes=boxes, **domain))
        for boxes in (None, measured(released=True), measured(released=False))
    ]
    assert len(set(answers)) == 3
