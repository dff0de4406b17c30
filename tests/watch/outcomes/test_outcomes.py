"""Outcomes beside the decisions that were made before them."""

import copy
import hashlib

import numpy as np
import pandas as pd
import pytest

from tests.support import toy_artefact
from tests.watch.outcomes.cases import SECRET, SITE, day, decision, options, record, table
from thyroid import metrics
from thyroid.data import pseudonyms
from thyroid.errors import InputError
from thyroid.watch.outcomes import outcomes


def measure(folder, decisions, *lines, model=None, **changes):
    return outcomes.measure(options(folder, *lines, **changes), decisions, model or record(), SECRET)


def test_views_of_a_patient_are_averaged_as_the_endpoint_does(tmp_path):
    decisions = table(
        decision(0.55, "1", "a"),
        decision(0.35, "1", "b"),
        decision(0.99, "1", "c", reasons=["unlike_training"]),
        decision(0.9, "2", "d", reasons=["box_unsure"], decision="abstain"),
        decision(0.8, "3", "e"),
        decision(0.1, "3", "e", time=pd.Timestamp("2026-01-01T09:00Z")),  # the same box of the same image, before
        decision(0.6, "4", "f"),
        decision(0.6, "4", "f", box=[1, 1, 4, 4]),
    )
    found = measure(tmp_path, decisions, *(f",{patient},M,2026-02-0{patient}" for patient in range(1, 5)))
    assert found.table["probability"].tolist() == pytest.approx([0.45, 0.9, 0.8, 0.6])
    assert found.table["decision"].tolist() == ["benign", "abstain", "malignant", "malignant"]
    assert found.table["images"].tolist() == [3, 1, 1, 1]
    assert found.record.abstained == {"benign": 0, "malignant": 1}
    sensitivity = found.record.tests[0]
    assert (sensitivity.n, sensitivity.right) == (3, 2)
    assert any("sensitivity would be 0.500" in note for note in found.notes)


def test_a_band_or_views_that_disagree_leave_a_patient_undecided(tmp_path):
    decisions = table(
        decision(0.3, "1", "a", reasons=["abstention_band"], decision="abstain"),
        decision(0.7, "1", "b"),
        decision(0.02, "2", "c"),
        decision(0.99, "2", "d"),
    )
    forms = {"keras": copy.deepcopy(toy_artefact.KERAS)}
    forms["keras"]["validation"]["ece"] = {"value": 0.1, "low": 0.05, "high": 0.2}
    lines = (",1,M,2026-02-01", ",2,B,2026-02-02")
    plain = measure(tmp_path, decisions, *lines, model=record(forms=forms))
    assert plain.table["decision"].tolist() == ["malignant", "abstain"]
    banded = measure(tmp_path, decisions, *lines, model=record(forms=forms, band=[0.45, 0.55]))
    assert banded.table["decision"].tolist() == ["abstain", "abstain"]


def test_descriptors_that_contradict_every_view_leave_a_patient_undecided(tmp_path):
    """A view that is contradicted counts, as at the endpoint."""
    contradicted = {"reasons": ["descriptors_disagree"], "decision": "abstain"}
    decisions = table(
        decision(0.9, "1", "a", **contradicted),
        decision(0.7, "1", "b", **contradicted),
        decision(0.9, "2", "c", **contradicted),
        decision(0.5, "2", "d"),
        decision(0.9, "3", "e", **contradicted),
        decision(0.3, "3", "f", **contradicted),
        decision(0.9, "4", "g", **contradicted),
        decision(0.1, "4", "h", reasons=["unlike_training", "descriptors_disagree"], decision="abstain"),
    )
    found = measure(tmp_path, decisions, *(f",{patient},M,2026-02-0{patient}" for patient in range(1, 5)))
    assert found.table["probability"].tolist() == pytest.approx([0.8, 0.7, 0.6, 0.9])
    assert found.table["decision"].tolist() == ["abstain", "malignant", "malignant", "abstain"]


def test_only_decisions_up_to_the_day_of_the_outcome_count(tmp_path):
    decisions = table(
        decision(0.9, "1", "a", time=pd.Timestamp("2026-02-01T23:59:59Z")),
        decision(0.1, "1", "b", time=pd.Timestamp("2026-02-02T00:00:00Z")),
        decision(0.9, "2", "c", time=pd.Timestamp("2026-02-02T00:00:00Z")),
    )
    found = measure(tmp_path, decisions, ",1,M,2026-02-01", ",2,M,2026-02-01", ",3,M,2026-02-01")
    assert found.table["probability"].tolist() == [0.9]
    assert found.aside == {"decided_after": [3], "never_seen": [4]}
    assert found.record.set_aside == {"never_seen": 1, "decided_after": 1}
    assert found.record.rows == 3


def test_an_outcome_of_long_ago_is_before_every_decision(tmp_path):
    found = measure(tmp_path, table(decision(0.9, "1", "a")), ",1,M,0001-01-01")
    assert found.aside == {"decided_after": [2]}


def test_a_file_stands_for_its_patient_or_for_itself(tmp_path):
    shas = {}
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.jpg").write_bytes(name.encode())
        shas[name] = hashlib.sha256(name.encode()).hexdigest()
    decisions = table(
        decision(0.9, "1", shas["a"]),
        decision(0.1, "1", shas["b"]),
        decision(0.2, None, shas["c"]),
        decision(0.7, "1", "without outcome"),
    )
    found = measure(tmp_path, decisions, "a.jpg,,M,2026-02-01", "b.jpg,,B,2026-02-05", "c.jpg,,B,2026-02-03")
    units = [pseudonyms.of_file(SECRET, shas["c"]), pseudonyms.of_text(SECRET, SITE, "1")]
    assert found.table["unit"].tolist() == units
    assert found.table["malignant"].tolist() == [False, True]  # two nodules are one patient
    assert found.table["probability"].tolist() == pytest.approx([0.2, 0.5])
    assert (found.record.patients, found.record.malignant) == (2, 1)
    assert (found.record.first, found.record.last) == ("2026-02-03", "2026-02-05")


def test_a_benign_patient_with_a_malignant_file_is_a_contradiction(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"a")
    decisions = table(decision(0.9, "1", hashlib.sha256(b"a").hexdigest()), decision(0.2, "2", "b"))
    found = measure(tmp_path, decisions, "a.jpg,,M,2026-02-01", ",1,B,2026-02-01", ",2,B,2026-02-01")
    assert found.aside == {"contradiction": [2, 3]}
    assert found.record.patients == 1


def test_another_key_than_the_logs_is_named_without_being_told(tmp_path):
    given, decisions = options(tmp_path, ",1,M,2026-02-01"), table(decision(0.9, "1"))
    other = b"another secret of the tests"
    with pytest.raises(InputError) as caught:
        outcomes.measure(given, decisions, record(), other)
    assert pseudonyms.key_name(SECRET) in str(caught.value)
    assert pseudonyms.key_name(other) in str(caught.value)
    assert "secret of the tests" not in str(caught.value)


def test_decisions_under_an_earlier_key_are_counted(tmp_path):
    earlier = decision(0.9, "2", "b") | {"image": "00000000:ab", "patient": "00000000:cd"}
    found = measure(tmp_path, table(decision(0.9, "1"), earlier), ",1,M,2026-02-01", ",2,M,2026-02-01")
    assert found.record.patients == 1
    assert found.notes[0].startswith("1 of 2 decisions")


@pytest.mark.parametrize("lines", [(), (",1,M,2026-02-01",)])
@pytest.mark.parametrize("rows", [(), (decision(0.9, "2"),), (decision(0.9, None),)])
def test_without_a_match_nothing_is_measured(tmp_path, lines, rows):
    found = measure(tmp_path, table(*rows), *lines)
    assert found.record.patients == 0
    assert found.record.auroc is None
    assert found.record.accuracy is None
    assert [test.n for test in found.record.tests] == [0, 0]
    assert not any(test.alarm for test in found.record.tests)
    assert found.aside == ({"never_seen": [2]} if lines else {})
    assert found.record.model_validate_json(found.record.model_dump_json()) == found.record


def test_one_patient_is_measured_without_bounds(tmp_path):
    found = measure(tmp_path, table(decision(0.9, "1")), ",1,M,2026-02-01").record
    assert found.auroc is None
    assert found.accuracy.value == 1
    assert found.majority == 1
    assert found.brier.value == pytest.approx(0.01)
    assert found.observed_to_expected.value == pytest.approx(1 / 0.9)


def years(rng, cancers, sensitivity, specificity=0.8):
    """Decisions and lines of outcomes.csv, a malignant and a benign patient a day."""
    rows, lines = [], []
    for number in range(cancers):
        for patient, share, name in ((2 * number, sensitivity, "M"), (2 * number + 1, specificity, "B")):
            malignant = (rng.random() < share) == (name == "M")
            rows.append(decision(0.7 if malignant else 0.3, str(patient), f"i{patient}"))
            lines.append(f",{patient},{name},{day(number)}")
    return table(*rows), lines


def test_a_fall_of_sensitivity_raises_an_alarm_that_lasts_and_no_fall_raises_none(tmp_path):
    rng = np.random.default_rng(0)
    steady = measure(tmp_path, *_apart(years(rng, 150, 0.95)))
    assert [test.alarm for test in steady.record.tests] == [False, False]
    decisions, lines = years(rng, 150, 0.7)
    fallen = measure(tmp_path, decisions, *lines)
    sensitivity, specificity = fallen.record.tests
    assert sensitivity.alarm
    assert not specificity.alarm
    right = outcomes.right(fallen.table, "sensitivity")["right"]
    at = sensitivity.alarm_after
    assert fallen.charts["sensitivity"].path(right[:at])[-1] >= fallen.charts["sensitivity"].threshold
    assert not (fallen.charts["sensitivity"].path(right[: at - 1]) >= fallen.charts["sensitivity"].threshold).any()
    assert sensitivity.alarm_at == day(at - 1)
    # the same alarm, whenever it is looked at afterwards
    earlier = measure(tmp_path, decisions, *lines[: 2 * at], night=day(at - 1)).record.tests[0]
    assert (earlier.alarm_at, earlier.alarm_after) == (sensitivity.alarm_at, at)
    assert sensitivity.value.low < right.mean() < sensitivity.value.high


def _apart(made):
    return made[0], *made[1]


def test_figures_are_those_of_patients(tmp_path):
    decisions, lines = years(np.random.default_rng(1), 30, 0.9)
    found = measure(tmp_path, decisions, *lines)
    truth, score = found.table["malignant"], found.table["probability"]
    assert found.record.auroc == metrics.auroc(truth, score, np.arange(len(truth)))
    assert found.record.majority == 0.5
    hits = int(((score >= 0.5) == truth).sum())
    assert found.record.accuracy.value == hits / 60
    assert (found.record.accuracy.low, found.record.accuracy.high) == metrics.clopper_pearson(hits, 60)
    assert found.record.brier.value == pytest.approx(((score - truth) ** 2).mean())
    assert found.record.observed_to_expected.value == pytest.approx(truth.mean() / score.mean())


def test_the_order_of_the_rows_changes_nothing(tmp_path):
    decisions, lines = years(np.random.default_rng(2), 20, 0.8)
    one = measure(tmp_path, decisions, *lines).record
    other = measure(tmp_path, decisions[::-1].reset_index(drop=True), *reversed(lines)).record
    assert one == other


def test_what_a_model_is_held_to_is_its_internal_test_unless_it_is_said(tmp_path):
    share = {"value": 0.93, "low": 0.8, "high": 0.99}
    keras = copy.deepcopy(toy_artefact.KERAS)
    keras["test"]["cropped"]["patient_level"] |= {"sensitivity": share, "specificity": share | {"value": 1.0}}
    found = measure(tmp_path, table(), model=record(forms={"keras": keras}), sensitivity=0.0, specificity=0.0)
    assert [(test.expected, round(test.fallen, 9)) for test in found.record.tests] == [(0.93, 0.83), (0.99, 0.89)]
    assert any("internal test by patient, 0.930 [0.800, 0.990]" in note for note in found.notes)
    assert any("specificity of 0.99 instead of 1.00" in note for note in found.notes)
    said = measure(tmp_path, table(), model=record(forms={"keras": keras}), sensitivity=0.9, specificity=0.85)
    assert [test.expected for test in said.record.tests] == [0.9, 0.85]
    low = measure(tmp_path, table(), model=record(forms={"keras": keras}), sensitivity=0.0, specificity=0.0, fall=0.95)
    assert low.record.tests[0].expected == 0.96
    older = measure(tmp_path, table(), sensitivity=0.0, specificity=0.0)  # a test without sensitivity by patient
    assert any("validation by image" in note for note in older.notes)


def test_the_yearly_benign_outcomes_follow_from_the_prevalence(tmp_path):
    rare = {"sensitivity": 0.95, "abstain": 0.0, "prevalence": 0.05}
    strict = measure(tmp_path, table(), model=record(settings=rare)).charts["specificity"]
    often = measure(tmp_path, table(), model=record(settings=rare | {"prevalence": 0.5})).charts["specificity"]
    assert strict.threshold > often.threshold


def test_many_patients_are_measured_with_fewer_draws(tmp_path, monkeypatch):
    decisions, lines = years(np.random.default_rng(3), 20, 0.8)
    drawn, made = [], metrics.Draws
    monkeypatch.setattr(
        metrics, "Draws", lambda patient, draws, seed: drawn.append(draws) or made(patient, draws, seed)
    )
    monkeypatch.setattr(outcomes, "_CELLS", 40 * 300)
    assert measure(tmp_path, decisions, *lines).record.auroc.low is not None
    assert drawn == [300]
