import re

from thyroid import RESEARCH_USE_ONLY
from thyroid.data import tables
from thyroid.evaluate import card
from thyroid.records.evaluation import EvaluationRecord
from thyroid.train import record


def test_every_item_of_the_checklist_is_there(evaluated):
    text = (evaluated / "artefact" / "card.md").read_text()
    rows = re.findall(r"^\| (\d+[a-g]?) \| ", text, re.MULTILINE)
    assert rows == list(card.TRIPOD_AI)
    assert len(rows) == 52
    assert {int(re.sub(r"\D", "", row)) for row in rows} == set(range(1, 28))
    assert RESEARCH_USE_ONLY in text


def test_what_the_run_cannot_know_is_not_reported(evaluated):
    text = (evaluated / "artefact" / "card.md").read_text()
    for item in ("17", "18a", "19", "8b"):
        assert re.search(rf"^\| {item} \| .* \| not reported \|$", text, re.MULTILINE), item
    assert re.search(r"\b30 of 30\b.*synthetic", text)
    answered = 52 - text.count("| not reported |")
    assert f"The run answers {answered} of 52" in text


def test_figures_are_the_evaluations(evaluated, cropped, trained):
    facts = EvaluationRecord.read(evaluated / "evaluation.json")
    text = (evaluated / "artefact" / "card.md").read_text()
    test = facts.models[0].test["cropped"]
    assert f"{test.auroc.value:.3f}" in text
    training = record.read(trained[facts.winner.backbone, "cropped"])
    answers = card.tripod(training, tables.read_facts(cropped), facts)
    assert set(answers) <= set(card.TRIPOD_AI)
    assert re.search(r"\b10 patients\b", answers["20a"])
    assert re.search(r"\b72\b", answers["10"])
    assert all("|" not in answer for answer in answers.values()), "a bar would break the table"
