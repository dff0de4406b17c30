"""The gate with constructed models: it must refuse a worse and a leaky one, and let a better one through."""

import json

import numpy as np
import pandas as pd
import pytest

from tests.test_figures import predictions
from thyroid import changes, figures, gate, operating, registry, subgroups
from thyroid.classes import BINARY
from thyroid.errors import InputError
from thyroid.gate import Champion
from thyroid.names import SCORE
from thyroid.operating import OperatingPoint

CLEAN = {
    "kept": {"blanked_nodule": 0.1},
    "leakage": {"patients_across_splits": 0},
    "findings": {},
    "not_measured": {},
}


def row_of(table: pd.DataFrame, threshold: float | None = None) -> dict:
    if threshold is None:
        threshold = operating.lock_threshold(table["label"] == "M", table[SCORE], 0.97)
    return {
        "test": {"cropped": figures.of(table, BINARY, OperatingPoint(1.0, (0, 0), threshold, (0.5, threshold)), 0.1)}
    }


def decide(table: pd.DataFrame, current: Champion | None = None, audited: dict = CLEAN, **options) -> dict:
    row = options.pop("row", None) or row_of(table)
    return gate.decide(
        row, "cropped", table, audited, options.pop("groups", ()), current or Champion(None), 0.95, **options
    )


def failed(decision: dict) -> list[str]:
    return [one["name"] for one in decision["criteria"] if not one["passed"]]


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
    assert decision["decision"] == "promoted", decision["reasons"]
    assert "there is no champion yet" in decision["reasons"][1]
    alone = decide(good, Champion(None, problem="no registry was given: not compared with any champion"))
    assert "not compared with any champion" in alone["reasons"][1]
    assert "not judged: no clinical.csv" in next(
        one["found"] for one in decision["criteria"] if one["name"] == "subgroups"
    )
    assert len(decision["test_digest"]) == 64


def test_a_better_model_goes_through(good):
    worse = predictions(200, 2, signal=1.2)[SCORE].to_numpy()
    decision = decide(good, Champion(3, worse))
    assert decision["decision"] == "promoted", decision["reasons"]
    assert decision["champion"] == 3
    assert decision["comparison"]["difference"]["low"] > 0
    assert decision["comparison"]["delong"]["p"] < 0.05


def test_an_equal_model_goes_through(good):
    decision = decide(good, Champion(3, good[SCORE].to_numpy()))
    assert decision["decision"] == "promoted", decision["reasons"]
    assert decision["comparison"]["difference"]["value"] == 0


def test_a_worse_model_is_refused(good):
    worse = predictions(200, 2, signal=1.2)
    decision = decide(worse, Champion(3, good[SCORE].to_numpy()))
    assert decision["decision"] == "refused"
    assert "not inferior to champion 3" in failed(decision)
    assert any("lower bound of the AUROC difference above -0.05" in reason for reason in decision["reasons"])


def test_a_leaky_model_is_refused(good):
    audited = CLEAN | {"findings": {"leakage": "3 patients across splits"}}
    decision = decide(good, audited=audited)
    assert (decision["decision"], failed(decision)) == ("refused", ["leakage audit"])


def test_a_shortcut_is_refused_unless_waived_by_name(good):
    audited = CLEAN | {"findings": {"shortcut": "most of the evidence is not in the nodule"}}
    assert failed(decide(good, audited=audited)) == ["shortcut audit"]
    decision = decide(good, audited=audited, waive=("shortcut",))
    assert decision["decision"] == "promoted"
    assert decision["waived"] == ["shortcut audit"]
    assert "waived by name" in decision["reasons"][0]
    assert decide(good, audited=audited, waive=("leakage",))["decision"] == "refused"


def test_an_audit_that_could_not_run_is_no_pass(good):
    audited = CLEAN | {"kept": {}, "not_measured": {"blanked_nodule": "no region"}}
    decision = decide(good, audited=audited)
    assert failed(decision) == ["shortcut audit"]
    assert "could not be run: no region" in decision["reasons"][0]
    assert failed(decide(good, audited=CLEAN | {"leakage": {}})) == ["leakage audit"]


def test_chance_missed_cancers_and_bad_probabilities_are_refused(good):
    assert "AUROC" in failed(decide(predictions(200, 2, signal=0)))
    assert "sensitivity" in failed(decide(good, row=row_of(good, 0.8)))
    boasting = good.assign(**{SCORE: good[SCORE] ** 0.1})
    assert "against" in next(one["found"] for one in decide(good)["criteria"] if one["name"] == "calibration")
    assert "calibration" in failed(decide(boasting))


def test_the_sensitivity_names_its_bound_and_what_it_takes(good):
    found = next(one["found"] for one in decide(good)["criteria"] if one["name"] == "sensitivity")
    assert "of 100 patients" in found
    assert "0.95 takes 72 patients without a miss" in found


def test_a_large_group_below_its_floor_refuses_and_a_small_one_does_not(good):
    table = good.copy()
    mine = (table["patient"] % 2 == 0) & (table["label"] == "M")
    table.loc[mine, SCORE] *= 0.3
    point = OperatingPoint(1.0, (0, 0), float(good[SCORE].median()), (0.5, 0.5))
    for column, share in (("scanner", 2), ("rare", 17)):
        table[subgroups.PREFIX + column] = np.where(table["patient"] % share == 0, "a", "b")
        rows = [one for one in subgroups.figures(table, point, 0.1) if one["group"] == "a"]
        decision = decide(good, groups=rows)
        assert rows[0]["small"] == (share == 17)
        assert ("subgroups" in failed(decision)) == (share == 2)
        del table[subgroups.PREFIX + column]


def test_perfect_separation_is_no_error():
    table = predictions(200, 2)
    table[SCORE] = np.where(table["label"] == "M", 0.97, 0.03)
    decision = decide(table, Champion(1, table[SCORE].to_numpy()))
    assert decision["decision"] == "promoted", decision["reasons"]


def test_one_patient_of_a_class_is_refused_and_no_error():
    table = predictions(20, 2, share=0.05, signal=4.0)
    decision = decide(table, Champion(1, table[SCORE].to_numpy()[::-1].copy()))
    assert decision["decision"] == "refused"
    assert "size of the test set" in failed(decision)
    assert "DeLong's test needs two patients of each class" in " ".join(decision["reasons"])
    assert "delong" not in decision["comparison"]


def test_unknown_waivers_are_said():
    assert gate.check_waivers(["leakage", "leakage"]) == ("leakage",)
    with pytest.raises(InputError, match="'calibration': only shortcut and leakage"):
        gate.check_waivers(["calibration"])


@pytest.fixture
def crowned(evaluated, tmp_path) -> tuple:
    """A registry whose champion is the evaluation's winner, and its test predictions."""
    registry.publish(evaluated / "artefact", tmp_path / "r", {"decision": "promoted", "reasons": [], "champion": None})
    return tmp_path / "r", tmp_path / "r" / "thyroid" / "1"


def answers(evaluated, cropped) -> pd.DataFrame:
    facts = json.loads((evaluated / "evaluation.json").read_text())
    table = pd.read_parquet(evaluated / "predictions.parquet")
    mine = table[(table["backbone"] == facts["winner"]["backbone"]) & (table["split"] == "test")].reset_index(drop=True)
    return mine.assign(file=[str(cropped / file) for file in mine["file"]])


def test_the_champion_is_scored_on_the_candidates_images(crowned, evaluated, cropped):
    table = answers(evaluated, cropped)
    current = gate.champion(crowned[0], table, BINARY, "cropped", set())
    assert current.version == 1
    np.testing.assert_allclose(current.scores, table[SCORE], atol=1e-5)


def test_no_registry_and_no_champion(tmp_path, evaluated, cropped):
    table = answers(evaluated, cropped)
    assert gate.champion(tmp_path, table, BINARY, "cropped", set()) == Champion(None)
    assert "no registry was given" in gate.champion(None, table, BINARY, "cropped", set()).problem


def test_patients_needed():
    assert gate.patients_needed(0.95) == 72
    assert gate.patients_needed(0.9999) == 36887
    assert gate.patients_needed(1.0) is None
    assert "no number of patients" in gate.told_needed(1.0)


def rewrite(folder, **facts):
    file = folder / "model.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | facts))


@pytest.mark.parametrize("trouble", ["classes", "domain", "test set", "damaged", "old"])
def test_a_champion_that_cannot_be_compared_refuses_with_the_reason(crowned, evaluated, cropped, trouble, good):
    root, folder = crowned
    scans = set()
    if trouble == "classes":
        rewrite(folder, classes=["2", "3", "4"], positive=[False, False, True])
    elif trouble == "domain":
        rewrite(folder, serving_domain="normal")
    elif trouble == "test set":
        learnt = changes.scans_of(folder)
        scans = {learnt.loc[learnt["split"] != "test", "sha256"].iloc[0]}
    elif trouble == "old":
        facts = json.loads((folder / "model.json").read_text())
        del facts["bias"]
        (folder / "model.json").write_text(json.dumps(facts))
    else:
        (folder / "model.keras").write_bytes(b"x")
    current = gate.champion(root, answers(evaluated, cropped), BINARY, "cropped", scans)
    said = {
        "classes": "tells 2<3|4 apart, not B|M",
        "domain": "serves normal images",
        "test set": "1 scans of this test set were among its development scans",
        "damaged": "changed since it was registered",
        "old": "field bias is missing",
    }[trouble]
    assert said in current.problem
    decision = decide(good, current)
    assert decision["decision"] == "refused"
    assert said in decision["reasons"][0]
