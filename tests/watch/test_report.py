import re
from html import unescape
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support import watched
from thyroid import RESEARCH_USE_ONLY
from thyroid.records.watch import WatchRecord
from thyroid.watch import prometheus, report, verdict

NO_AUROC = {"auroc": None, "accuracy": None, "majority": None, "observed_to_expected": None, "brier": None}
NOTHING_KNOWN = watched.outcomes(
    [
        watched.sequential(name, 0, 0, 0.9, value={"value": 0.0, "low": None, "high": None})
        for name in ("sensitivity", "specificity")
    ],
    patients=0,
    malignant=0,
    abstained={"benign": 0, "malignant": 0},
    first=None,
    last=None,
    **NO_AUROC,
)
VARIANTS = {
    "steady": ("steady", {}),
    "drift": ("drift", {}),
    "worse": ("worse", {}),
    "unknown": ("unknown", {}),
    "no outcome is known": ("steady", {"outcomes": NOTHING_KNOWN}),
    "drift and worse": ("worse", {"drift": watched.drift(watched.ELSEWHERE)}),
    "one decision": (
        "unknown",
        {"log": watched.log(1, patients=1, unlike=1, decided={"abstain": 1}, reasons={"unlike_training": 1})},
    ),
    "new scans alone": ("drift", {"log": watched.EMPTY, "scans": 40}),
    "earlier alarms": ("steady", {"drift": watched.drift(watched.USUAL, alarms=["2025-06-01", "2025-06-02"])}),
    "a property of a later release": ("drift", {"drift": watched.drift([watched.row("depth", 4, 5, 0.4)])}),
}


def made(name: str) -> WatchRecord:
    kind, changes = VARIANTS[name]
    record = watched.record(kind, **changes)
    return record.model_copy(update={"summary": verdict.judge(record.drift, record.outcomes)[1]})


def written(folder: Path, record: WatchRecord) -> str:
    report.write(folder, record, {}, report.Extra())
    return unescape((folder / "report.html").read_text())


def first_page(text: str) -> str:
    return text.partition('<section class="first">')[2].partition("</section>")[0]


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_is_whole(tmp_path, name):
    record = made(name)
    text = written(tmp_path, record)
    assert not re.search(r"\bNone\b(?! of \d)|\bnan\b|\binf\b|\{\{|\{%|Undefined", text)
    assert text.count(RESEARCH_USE_ONLY) >= 2
    first = first_page(text)
    assert first.index(record.summary) < first.index(report.advice(record)[0])
    for sentence in [*report.advice(record), *report.seen(record), *report.unseen(record)]:
        assert sentence in first
    assert not re.search(r'(src|href)="(?!data:image/png;base64,|#)', text), "it must open without a network"


def test_each_verdict_says_what_to_do():
    told = {name: report.advice(watched.record(name)) for name in watched.VERDICTS}
    assert len({sentences[0] for sentences in told.values()}) == len(told)
    assert all(told.values())


def test_cancers_are_counted_in_patients_with_the_undecided_beside_them(tmp_path):
    first = first_page(written(tmp_path, made("worse")))
    assert "Of 43 patients whose nodule was malignant, it called 31 malignant, 10 benign by mistake and left 2" in first
    assert "it calls 76 malignant (64 to 88 are possible); it is held to 95." in first
    assert "With the undecided counted as wrong it is 72." in first
    assert "The alarm was raised on 2025-07-09, after 34 such patients." in first


def test_every_auroc_has_its_interval_and_accuracy_the_majority(tmp_path):
    first = first_page(written(tmp_path, made("steady")))
    for interval in ("0.911 [0.861 to 0.961]", "0.902 [0.882 to 0.922]", "0.915 [0.875 to 0.955]"):
        assert interval in first
    assert re.search(r"Right decisions: 0\.820 \[.*?\]; always saying the more frequent outcome .* 0\.740", first, re.S)


def test_too_few_outcomes_are_no_comfort(tmp_path):
    few = [watched.sequential("sensitivity", 2, 2, 0.95), watched.sequential("specificity", 40, 33, 0.77)]
    record = watched.record("steady", outcomes=watched.outcomes(few))
    assert "That is too few to notice a fall to 85." in first_page(written(tmp_path, record))


def test_alarms_come_first_and_the_rest_is_folded(tmp_path):
    text = written(tmp_path, made("drift"))
    table, _, folded = text.partition('id="details"')[2].partition("<details>")
    assert table.count(": alarm") == 4
    assert ": alarm" not in folded
    assert "As before: 2 comparisons" in folded
    assert "The pictures are more unlike the training pictures: median 1.12, usually 0.54" in first_page(text)


def test_a_model_without_novelty_does_not_claim_that_no_picture_is_unlike(tmp_path):
    record = made("steady")
    record = record.model_copy(update={"model": record.model.model_copy(update={"novelty": False})})
    first = first_page(written(tmp_path, record))
    assert "This version cannot tell whether a picture is unlike the training pictures." in first
    assert "were unlike" not in first


def test_what_could_not_be_done_stands_on_the_first_page(tmp_path):
    extra = report.Extra(["gs://archive: <b>no such bucket"], ["A note."], "their grey levels are darker.")
    report.write(tmp_path, made("drift"), {}, extra)
    raw = first_page((tmp_path / "report.html").read_text())
    assert "gs://archive: &lt;b&gt;no such bucket" in raw
    assert "their grey levels are darker." in raw


def test_the_methods_are_those_of_the_comparison_and_cited(tmp_path):
    methods = written(tmp_path, made("steady")).partition('id="methods"')[2]
    assert "A patient counts once in a comparison, with one of the pictures" in methods
    for source in ("10.1214/aoms/1177730256", "10.2307/2342435", "10.1093/biomet/41.1-2.100"):
        assert source in methods


def test_reasons_of_the_endpoint_are_said_in_words(tmp_path):
    known = watched.log(9, decided={"abstain": 1, "benign": 8}, reasons={"unlike_training": 1})
    record = watched.record("steady", log=known)
    assert "the picture is unlike those that the model learnt from (1)" in report.seen(record)[-1]


@pytest.mark.parametrize("name", VARIANTS)
def test_the_figures_for_prometheus_have_no_label_but_the_version(tmp_path, name):
    record = made(name)
    prometheus.write(record, tmp_path)
    families = list(text_string_to_metric_families((tmp_path / prometheus.FILE).read_text()))
    samples = {sample.name: sample for family in families for sample in family.samples}
    assert all(sample.labels == {"version": "3"} for sample in samples.values())
    value = {metric: sample.value for metric, sample in samples.items()}
    assert value["thyroid_watch_night_timestamp"] == 1752451200, "2025-07-14 in UTC"
    assert value["thyroid_watch_decisions"] == record.log.decisions
    compared = record.drift.skipped is None
    assert value.get("thyroid_watch_drift") == (float(record.drift.alarm) if compared else None)
    assert value.get("thyroid_watch_worse") == (
        None if record.outcomes is None else float(name in ("worse", "drift and worse"))
    )
    assert ("thyroid_watch_sensitivity" in value) == bool(record.outcomes and record.outcomes.tests[0].n)
