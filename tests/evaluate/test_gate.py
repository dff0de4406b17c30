"""The gate with constructed models: it must refuse a worse and a leaky one, and let a better one through."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.conftest import variant
from tests.evaluate.test_performance import predictions
from tests.support import toy_artefact
from thyroid import crop
from thyroid.crop import CropOptions
from thyroid.data import surroundings
from thyroid.data.classes import BINARY
from thyroid.data.filenames import SCORE
from thyroid.data.version import DataVersion
from thyroid.errors import InputError
from thyroid.evaluate import champion, gate, performance
from thyroid.evaluate.audits import audits
from thyroid.evaluate.audits.leakage import LeakageAudit
from thyroid.evaluate.audits.shortcut import ShortcutAudit
from thyroid.evaluate.champion import Champion, Rivals
from thyroid.evaluate.gate import Candidate
from thyroid.evaluate.options import EvaluateOptions
from thyroid.imaging import images
from thyroid.model import inputs, operating_point
from thyroid.model.artefact import Artefact
from thyroid.model.operating_point import OperatingPoint
from thyroid.records.gate import Criterion, GateRecord
from thyroid.registry import changes
from thyroid.registry.registry import Registry

NARROW = 0.1
"""A margin that is not the default."""
NOBODY = pd.DataFrame(columns=["sha256", "phash", "cohort", "patient"])


def audited(shortcut: str | None = None, leakage: str | None = None) -> list:
    """Audits that ran, with these findings."""
    return [
        ShortcutAudit("cropped", kept={"blanked_nodule": 0.1}, finding=shortcut),
        LeakageAudit({"patients_across_splits": 0}, leakage),
    ]


def threshold_of(table: pd.DataFrame, scores: np.ndarray | None = None) -> float:
    return operating_point.lock_threshold(table["label"] == "M", table[SCORE] if scores is None else scores, 0.97)


def candidate_of(
    table: pd.DataFrame, threshold: float | None = None, behind: int = gate.VALIDATION_PATIENTS
) -> Candidate:
    threshold = threshold_of(table) if threshold is None else threshold
    point = OperatingPoint(1.0, (0, 0), threshold, (0.5, threshold))
    return Candidate(performance.of(table, BINARY, point, 0.1), threshold, behind, table)


def rival(version: int, table: pd.DataFrame, scores: np.ndarray | None = None) -> Champion:
    """A version with these scores on the images of `table`, and a threshold that was locked as the candidate's."""
    own = table[SCORE].to_numpy() if scores is None else scores
    return Champion(version, own, threshold_of(table, own))


def decide(table: pd.DataFrame, current: Champion | None = None, anchor: Champion | None = None, **given) -> GateRecord:
    """The decision on a candidate with these predictions.

    `given` are the candidate that is measured, its subgroups, audits, waivers and more criteria.
    """
    measured = given.get("candidate") or candidate_of(table)
    candidate = replace(measured, test=table, subgroups=given.get("groups", ()))
    options, rivals = EvaluateOptions(waive=given.get("waive", ())), Rivals(current or Champion(None), anchor)
    return gate.decide(candidate, rivals, given.get("audits", audited()), options, given.get("more", ()))


def against(root, data, table: pd.DataFrame, scans: pd.DataFrame = NOBODY) -> tuple[Champion, Champion | None]:
    """Champion and anchor of a registry on the images of `table`, which are of the data version in `data`."""
    found = champion.rivals(root, champion.CommonTestSet(DataVersion.read(data), table, "cropped", scans))
    return found.champion, found.anchor


def failed(decision: GateRecord) -> list[str]:
    return [one.name for one in decision.criteria if not one.passed]


@pytest.fixture(scope="module")
def good() -> pd.DataFrame:
    table = predictions(200, 2, signal=2.5)
    table[SCORE] = recalibrated(table)
    return table


def recalibrated(table: pd.DataFrame) -> np.ndarray:
    """Probabilities that mean what they say, in the same order."""
    from sklearn.linear_model import LogisticRegression

    odds = np.log(table[[SCORE]] / (1 - table[[SCORE]])).to_numpy()
    return LogisticRegression().fit(odds, table["label"] == "M").predict_proba(odds)[:, 1]


def test_without_a_champion_the_floors_decide(good):
    decision = decide(good)
    assert decision.decision == "promoted", decision.reasons
    assert (decision.champion, decision.comparison) == (None, None)
    assert "champion" in decision.reasons[1]
    assert decide(good, Champion(None, problem="unregistered")).reasons[1] == "unregistered"
    assert "clinical.csv" in next(one.found for one in decision.criteria if one.name == "subgroups")
    assert len(decision.test_digest) == 64


def test_a_better_model_goes_through(good):
    worse = predictions(200, 2, signal=1.2)[SCORE].to_numpy()
    decision = decide(good, rival(3, good, worse))
    assert decision.decision == "promoted", decision.reasons
    assert decision.champion == 3
    assert decision.comparison.difference.low > 0
    assert decision.comparison.delong.p < 0.05
    assert decision.ahead_of == 3


def test_an_equal_model_goes_through(good):
    decision = decide(good, rival(3, good))
    assert decision.decision == "promoted", decision.reasons
    assert decision.comparison.difference.value == 0
    assert decision.ahead_of is None


def test_a_worse_model_is_refused(good):
    worse = predictions(200, 2, signal=1.2)
    decision = decide(worse, rival(3, good))
    assert decision.decision == "refused"
    assert "not inferior to champion 3" in failed(decision)
    assert any(f"{-gate.MARGIN}" in reason for reason in decision.reasons)


def test_a_leaky_model_is_refused(good):
    decision = decide(good, audits=audited(leakage="3 patients across splits"))
    assert (decision.decision, failed(decision)) == ("refused", ["leakage audit"])


def test_a_shortcut_is_refused_unless_waived_by_name(good):
    found = audited(shortcut="most of the evidence is not in the nodule")
    assert failed(decide(good, audits=found)) == ["shortcut audit"]
    decision = decide(good, audits=found, waive=("shortcut",))
    assert decision.decision == "promoted"
    assert decision.waived == ["shortcut audit"]
    assert "waived" in decision.reasons[0]
    assert decide(good, audits=found, waive=("leakage",)).decision == "refused"


def test_a_criterion_of_the_caller_counts_like_the_others(good):
    criterion = Criterion(name="a person", asked="by hand", found="nobody", passed=False, waived=False)
    decision = decide(good, more=[criterion])
    assert (decision.decision, failed(decision)) == ("refused", ["a person"])
    assert decision.reasons == ["a person: nobody; required: by hand"]
    assert decide(good, more=[criterion.model_copy(update={"passed": True})]).decision == "promoted"


def test_an_audit_that_could_not_run_is_no_pass(good):
    shortcut, leakage = audited()
    not_run = ShortcutAudit("cropped", not_measured={"blanked_nodule": "unmarked"})
    decision = decide(good, audits=[not_run, leakage])
    assert failed(decision) == ["shortcut audit"]
    assert "unmarked" in decision.reasons[0]
    assert failed(decide(good, audits=[shortcut, LeakageAudit()])) == ["leakage audit"]


def test_chance_missed_cancers_and_bad_probabilities_are_refused(good):
    assert "AUROC" in failed(decide(predictions(200, 2, signal=0)))
    assert "sensitivity" in failed(decide(good, candidate=candidate_of(good, 0.8)))
    boasting = good.assign(**{SCORE: good[SCORE] ** 0.1})
    assert "against" in next(one.found for one in decide(good).criteria if one.name == "calibration")
    assert "calibration" in failed(decide(boasting))


def test_the_sensitivity_names_its_bound_and_what_it_takes(good):
    found = next(one.found for one in decide(good).criteria if one.name == "sensitivity")
    assert re.search(r"\b100 patients\b.*\b0\.95\b.*\b72 patients\b", found)


def test_a_large_group_below_its_floor_refuses_and_a_small_one_does_not(good):
    table = good.copy()
    mine = (table["patient"] % 2 == 0) & (table["label"] == "M")
    table.loc[mine, SCORE] *= 0.3
    point = OperatingPoint(1.0, (0, 0), float(good[SCORE].median()), (0.5, 0.5))
    for column, share in (("scanner", 2), ("rare", 17)):
        table[performance.SUBGROUP + column] = np.where(table["patient"] % share == 0, "a", "b")
        rows = [one for one in performance.by_subgroup(table, point.threshold, 0.1) if one.group == "a"]
        decision = decide(good, groups=rows)
        assert rows[0].small == (share == 17)
        assert ("subgroups" in failed(decision)) == (share == 2)
        del table[performance.SUBGROUP + column]


def test_perfect_separation_is_no_error():
    table = predictions(200, 2)
    table[SCORE] = np.where(table["label"] == "M", 0.97, 0.03)
    decision = decide(table, rival(1, table))
    assert decision.decision == "promoted", decision.reasons


def test_a_threshold_that_calls_everybody_malignant_is_refused(good):
    """The champion's very scores: nothing but the threshold differs."""
    assert (
        performance.of(good, BINARY, OperatingPoint(1.0, (0, 0), threshold_of(good), (0.5, 0.5)), 0.1).specificity.value
        > 0.8
    )
    everybody = candidate_of(good, 0.0)
    assert everybody.metrics.specificity.value == 0
    assert failed(decide(good, candidate=everybody)) == ["specificity"]
    assert failed(decide(good, rival(3, good), candidate=everybody)) == ["specificity", "as specific as champion 3"]


def test_a_threshold_that_one_wrong_label_moved_is_refused(good):
    """A benign image of 24 under the wrong label, as it comes: the threshold has to catch it, too."""
    validation = good.groupby("label").head(12).reset_index(drop=True)
    right = threshold_of(validation)
    lowest = validation.loc[validation["label"] == "B", SCORE].idxmin()
    validation.loc[lowest, "label"] = "M"
    wrong = threshold_of(validation)
    current = Champion(3, good[SCORE].to_numpy(), right)
    patients = validation.loc[validation["label"] == "M", "patient"].nunique()
    moved = candidate_of(good, wrong, patients)
    assert patients < gate.VALIDATION_PATIENTS
    assert (
        moved.metrics.specificity.value
        < performance.of(good, BINARY, OperatingPoint(1.0, (0, 0), right, (0.5, right)), 0.1).specificity.value - 0.3
    )
    names = failed(decide(good, current, candidate=moved))
    assert {"validation patients behind the threshold", "as specific as champion 3"} <= set(names)
    few, enough = (
        failed(decide(good, candidate=candidate_of(good, threshold_of(good), count))) for count in (patients, 10)
    )
    assert (few, enough) == (["validation patients behind the threshold"], [])


def test_specificity_is_held_by_patient_on_the_same_images(good):
    """A margin that a few patients of a hundred keep and a fifth of them does not; a higher specificity is welcome."""
    benign = good["label"] == "B"
    threshold = threshold_of(good)
    for share, holds in ((50, True), (5, False)):
        table = good.copy()
        table.loc[benign & (table["patient"] % share == 0), SCORE] = threshold + 0.01
        names = failed(decide(table, rival(3, good), candidate=candidate_of(table, threshold)))
        assert ("as specific as champion 3" not in names) is holds, names
        back = failed(decide(good, Champion(3, table[SCORE].to_numpy(), threshold)))
        assert "as specific as champion 3" not in back


def test_a_threshold_may_decide_on_other_scores_than_those_that_are_ordered(good):
    """As after a cross-fit: the order is the champion's and not inferior, but fewer benign patients are spared."""
    table, threshold = good.copy(), threshold_of(good)
    table.loc[(good["label"] == "B") & (good["patient"] % 5 == 0), SCORE] = threshold + 0.01
    measured = replace(candidate_of(table, threshold), decided=table)
    decision = gate.decide(replace(measured, test=good), Rivals(rival(3, good)), audited(), EvaluateOptions())
    assert decision.comparison.difference.value == 0
    assert failed(decision) == ["as specific as champion 3"]


def test_losses_do_not_add_up(good):
    """Each candidate is within the margin of the champion before it; the anchor stays where the first one was."""
    rng, anchor, table = np.random.default_rng(0), rival(1, good), good
    current, steps = anchor, []
    for version in (2, 3, 4):
        odds = np.log(table[SCORE] / (1 - table[SCORE])) + rng.normal(0, 1.8, len(table))
        table = table.assign(**{SCORE: 1 / (1 + np.exp(-odds))})
        steps.append(decide(table, current, anchor=None if version == 2 else anchor))
        current = rival(version, table)
    assert not [name for step in steps for name in failed(step) if "inferior to champion" in name]
    assert ["not inferior to anchor 1" in failed(step) for step in steps] == [False, False, True]
    assert steps[-1].anchor_comparison.lowest <= -gate.MARGIN < steps[-1].comparison.lowest
    assert [step.ahead_of for step in steps] == [None] * 3


def test_only_what_is_shown_to_be_better_than_the_anchor_is_ahead_of_it(good):
    worse = predictions(200, 2, signal=1.2)[SCORE].to_numpy()
    assert decide(good, rival(4, good), anchor=rival(2, good, worse)).ahead_of == 2
    assert decide(good, rival(4, good, worse), anchor=rival(2, good)).ahead_of is None
    assert decide(good).ahead_of is None
    lost = decide(good, rival(4, good), anchor=Champion(2, problem="classes"))
    assert failed(lost) == ["not inferior to anchor 2"]
    assert "classes" in lost.reasons[0]


def test_a_group_that_loses_what_the_champion_had_refuses(good):
    """It stays above every floor, and all patients together do not show it."""
    table = good.copy()
    table[performance.SUBGROUP + "scanner"] = np.where(table["patient"] % 4 == 0, "a", "b")
    mine = (table["patient"] % 4 == 0) & (table["label"] == "B")
    threshold = threshold_of(good)
    table.loc[mine & (table["patient"] % 8 == 0), SCORE] = threshold + 0.02
    point = OperatingPoint(1.0, (0, 0), threshold, (0.5, threshold))
    for current, holds in ((rival(3, good), False), (rival(3, table), True), (Champion(3, problem="away"), True)):
        rows = performance.by_subgroup(table, point.threshold, 0.1, champion=current)
        decision = decide(table, current, candidate=candidate_of(table, threshold), groups=rows)
        names = failed(decision)
        assert "subgroups" not in names
        assert ("subgroups against champion 3" not in names) is holds, decision.criteria
    rows = performance.by_subgroup(table, point.threshold, 0.1)
    assert not any("less_champion" in row.to_dict() for row in rows)


def test_one_patient_of_a_class_is_refused_and_no_error():
    table = predictions(20, 2, share=0.05, signal=4.0)
    decision = decide(table, rival(1, table, table[SCORE].to_numpy()[::-1].copy()))
    assert decision.decision == "refused"
    assert "size of the test set" in failed(decision)
    assert "DeLong" in " ".join(decision.reasons)
    assert "delong" not in decision.comparison.to_dict()


def test_unknown_waivers_are_said():
    assert audits.check_waivers(["leakage", "leakage"]) == ("leakage",)
    with pytest.raises(InputError, match=r"'calibration'.*shortcut.*leakage"):
        audits.check_waivers(["calibration"])


@pytest.fixture
def crowned(evaluated, tmp_path) -> tuple:
    """A registry whose champion is the evaluation's winner, and its test predictions."""
    Registry(tmp_path / "r").publish(evaluated / "artefact", toy_artefact.gate("promoted", None, []))
    return tmp_path / "r", tmp_path / "r" / "thyroid" / "1"


def answers(evaluated, cropped) -> pd.DataFrame:
    facts = json.loads((evaluated / "evaluation.json").read_text())
    table = pd.read_parquet(evaluated / "predictions.parquet")
    mine = table[(table["backbone"] == facts["winner"]["backbone"]) & (table["split"] == "test")].reset_index(drop=True)
    return mine.assign(file=[str(cropped / file) for file in mine["file"]])


def test_the_champion_is_scored_on_the_candidates_images(crowned, evaluated, cropped):
    table = answers(evaluated, cropped)
    current, anchor = against(crowned[0], cropped, table)
    assert (current.version, anchor) == (1, None)
    facts = Artefact.read(Registry(crowned[0]).find()).record
    assert current.threshold == facts.threshold
    np.testing.assert_allclose(current.scores, table[SCORE], atol=1e-5)


def paths_of(table: pd.DataFrame, cropped: Path) -> list[str]:
    """Paths of the scans of predictions."""
    known = DataVersion.read(cropped).examples("cropped").set_index("file")["path"]
    return known.loc[table["file"]].tolist()


def shown_to(monkeypatch, *against_what) -> tuple[Champion, np.ndarray]:
    """The champion, and the pixels that its network got."""
    seen = []
    real = inputs.predict

    def predict(network, pixels):
        seen.append(pixels)
        return real(network, pixels)

    with monkeypatch.context() as patch:
        patch.setattr(inputs, "predict", predict)
        current, _ = against(*against_what)
    assert len(seen) == 1
    return current, seen[0]


@pytest.fixture
def narrow(evaluated, tmp_path) -> Path:
    """A registry whose champion was trained on crops of a narrow margin."""
    return republished(evaluated / "artefact", tmp_path / "narrow", tmp_path, margin=NARROW)


def test_a_champion_of_the_same_margin_sees_the_candidates_own_images(crowned, evaluated, cropped, monkeypatch):
    table, data = answers(evaluated, cropped), DataVersion.read(cropped)
    current, seen = shown_to(monkeypatch, crowned[0], cropped, table)
    np.testing.assert_array_equal(seen, data.pixels(table, seen.shape[1]))
    assert current.margin == data.margin
    assert "margin" not in current.note


def test_a_champion_of_another_margin_sees_what_it_sees_when_served(
    narrow, evaluated, cropped, tmp_path, monkeypatch, good
):
    """They are the images of a data version of its own margin, but for one more compression of the scan area."""
    crop.crop(cropped.parent / "ingested", tmp_path / "data", CropOptions(["cropped"], margin=NARROW))
    table, own = answers(evaluated, cropped), DataVersion.read(tmp_path / "data")
    current, seen = shown_to(monkeypatch, narrow, cropped, table)
    expected = own.examples("cropped").set_index("path").loc[paths_of(table, cropped)].reset_index()
    real = images.rgb(own.pixels(expected, seen.shape[1]))
    wrong = images.rgb(DataVersion.read(cropped).pixels(table, seen.shape[1]))
    assert seen.shape == real.shape
    assert np.abs(seen.astype(int) - real).mean() < 4
    assert np.abs(seen.astype(int) - wrong).mean() > 12
    evaluated_there, there = shown_to(monkeypatch, narrow, tmp_path / "data", expected)
    np.testing.assert_array_equal(images.rgb(there), real)
    np.testing.assert_allclose(current.scores, evaluated_there.scores, atol=0.02)
    assert (current.margin, evaluated_there.margin) == (NARROW, NARROW)
    assert f"{NARROW:g}" in current.note
    assert "margin" not in evaluated_there.note

    decision = decide(good, Champion(3, good[SCORE].to_numpy(), 0.5, note=current.note, margin=current.margin))
    assert decision.comparison.champion_margin == NARROW
    assert any(current.note in one.found for one in decision.criteria if one.name == "not inferior to champion 3")
    assert "champion_margin" not in decide(good, rival(3, good)).comparison.to_dict()


def test_the_anchor_is_scored_with_a_margin_of_its_own(narrow, evaluated, cropped, tmp_path):
    Registry(narrow).publish(variant(evaluated / "artefact", tmp_path), toy_artefact.gate("promoted", 1, []))
    current, anchor = against(narrow, cropped, answers(evaluated, cropped))
    assert (current.version, anchor.version) == (2, 1)
    assert (current.margin, anchor.margin) == (DataVersion.read(cropped).margin, NARROW)
    assert np.abs(current.scores - anchor.scores).max() > 0


def test_files_that_came_in_cropped_are_scored_as_they_are(narrow, evaluated, cropped):
    table, data = answers(evaluated, cropped), DataVersion.read(cropped)
    every = paths_of(table, cropped)
    for paths in (every[:1], every):
        scans = data.scans.copy()
        scans.loc[scans["path"].isin(paths), ["domain", "normal_path", "normal_sha256"]] = ["cropped", None, None]
        test = champion.CommonTestSet(replace(data, scans=scans), table, "cropped", NOBODY)
        pixels = images.rgb(test.pixels(32, NARROW))
        same = (pixels == images.rgb(data.pixels(table, 32))).all(axis=(1, 2, 3))
        assert same.tolist() == [path in paths for path in every]
        (current,) = champion.rivals(narrow, test).by_role.values()
        assert current.problem is None
        assert current.margin == (None if same.all() else NARROW)


def test_full_frames_have_no_margin(evaluated, cropped):
    data = DataVersion.read(cropped)
    frames = data.examples("normal", "test")
    test = champion.CommonTestSet(data, frames, "normal", NOBODY)
    assert test.is_cut_with(NARROW)
    np.testing.assert_array_equal(test.pixels(32, NARROW), data.pixels(frames, 32))


def test_a_lost_image_of_a_scan_area_refuses_with_its_name(narrow, evaluated, cropped, tmp_path):
    copy = shutil.copytree(cropped, tmp_path / "copy")
    table = answers(evaluated, copy)
    lost = surroundings.context(DataVersion.read(copy), "cropped").set_index("file").loc[table["file"].iloc[0], "frame"]
    (copy / lost).unlink()
    current, _ = against(narrow, copy, table)
    assert current.scores is None
    assert lost in current.problem


def test_no_registry_and_no_champion(tmp_path, evaluated, cropped):
    table = answers(evaluated, cropped)
    assert against(tmp_path, cropped, table) == (Champion(None), None)
    unknown = against(None, cropped, table)[0]
    assert (unknown.version, unknown.scores) == (None, None)
    assert "registry" in unknown.problem


def test_the_anchor_is_scored_as_the_champion_is(crowned, evaluated, cropped, tmp_path, good):
    """A champion that is not shown to be better does not become the anchor, which is looked at after it."""
    other = variant(evaluated / "artefact", tmp_path)
    Registry(crowned[0]).publish(other, toy_artefact.gate("promoted", 1, []))
    assert Registry(crowned[0]).read_aliases() == {"candidate": 2, "champion": 2, "previous": 1, "anchor": 1}
    current, anchor = against(crowned[0], cropped, answers(evaluated, cropped))
    assert (current.version, anchor.version) == (2, 1)
    np.testing.assert_array_equal(current.scores, anchor.scores)
    better = decide(
        good, current=rival(2, good), anchor=rival(1, good, predictions(200, 2, signal=1.2)[SCORE].to_numpy())
    )
    (crowned[1] / "model.keras").write_bytes(b"x")
    current, anchor = against(crowned[0], cropped, answers(evaluated, cropped))
    assert current.problem is None
    assert "model.keras" in anchor.problem
    assert (better.decision, better.ahead_of) == ("promoted", 1)
    Registry(crowned[0]).publish(variant(other, tmp_path), better)
    assert Registry(crowned[0]).read_aliases() == {"candidate": 3, "champion": 3, "previous": 2, "anchor": 3}


def test_patients_needed():
    assert operating_point.patients_needed(0.95) == 72
    assert operating_point.patients_needed(0.9999) == 36887
    assert operating_point.patients_needed(1.0) is None
    assert "100%" in operating_point.describe_patients_needed(1.0)


def republished(artefact, root, tmp_path, **facts):
    """A registry whose champion says something else."""
    copy = variant(artefact, tmp_path)
    told = json.loads((copy / "model.json").read_text()) | facts
    (copy / "model.json").write_text(json.dumps(told))
    Registry(root).publish(copy, toy_artefact.gate("promoted", None, []))
    return root


@pytest.mark.parametrize("trouble", ["classes", "domain", "test set", "damaged", "flipped"])
def test_a_champion_that_cannot_be_compared_refuses_with_the_reason(
    crowned, evaluated, cropped, trouble, good, tmp_path
):
    root, folder = crowned
    judging, artefact = NOBODY, evaluated / "artefact"
    if trouble == "classes":
        root = republished(
            artefact, tmp_path / "other", tmp_path, classes=["2", "3", "4"], positive=[False, False, True]
        )
    elif trouble == "domain":
        root = republished(artefact, tmp_path / "other", tmp_path, serving_domain="normal")
    elif trouble == "test set":
        learnt = changes.scans_of(folder)
        judging = learnt[learnt["split"] != "test"].head(1).assign(cohort="here", patient=1)
    elif trouble == "flipped":
        file = folder / "model.json"
        file.write_text(
            re.sub(r'("threshold": 0\.)(.)', lambda at: f"{at[1]}{(int(at[2]) + 4) % 10}", file.read_text(), count=1)
        )
    else:
        (folder / "model.keras").write_bytes(b"x")
    current, _ = against(root, cropped, answers(evaluated, cropped), judging)
    said = {
        "classes": "2<3|4",
        "domain": "--serving-domain",
        "test set": "1 by file",
        "damaged": "model.keras",
        "flipped": "model.json",
    }[trouble]
    assert said in current.problem
    decision = decide(good, current)
    assert decision.decision == "refused"
    assert said in decision.reasons[0]
