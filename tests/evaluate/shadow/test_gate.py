"""The part of the gate that live pictures decide."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.support import toy_artefact
from thyroid import metrics
from thyroid.data.filenames import SCORE
from thyroid.errors import InputError
from thyroid.evaluate.champion import Champion
from thyroid.evaluate.gate import Candidate
from thyroid.evaluate.options import EvaluateOptions
from thyroid.evaluate.shadow import gate
from thyroid.records.gate import GateRecord, ShadowRecord
from thyroid.records.performance import Performance
from thyroid.watch.shadow import compare

PICTURES = 2140


def candidate(scores: list[float], patients: list[int]) -> Candidate:
    test = pd.DataFrame({"sha256": [f"{n:064d}" for n in range(len(scores))], "patient": patients, SCORE: scores})
    test = test.assign(label="B")
    return Candidate(Performance.parse(toy_artefact.TEST, "test"), 0.5, 10, test)


def promoted() -> GateRecord:
    return toy_artefact.gate("promoted", 3, ["every criterion holds"])


def test_a_candidate_waits_and_its_terms_say_how_often_both_disagree():
    """By patient, with one image each, and by what the champion calls it at its own threshold."""
    mine = candidate([0.1, 0.9, 0.6, 0.2, 0.7], [1, 1, 2, 3, 4])
    champion = Champion(3, np.array([0.1, 0.1, 0.3, 0.3, 0.9]), 0.4)
    found = gate.wait(promoted(), mine, None, champion, PICTURES)
    assert (found.decision, found.shadow.pictures) == ("waiting", PICTURES)
    assert found.reasons == [
        "every criterion holds on the stored test images; 2,140 live pictures behind champion 3 decide"
    ]
    counts = {one.champion: (one.patients, one.flipped) for one in found.shadow.stored}
    assert counts == {"all": (4, 1), "benign": (3, 1), "malignant": (1, 0)}
    assert GateRecord.parse(found.to_dict(), "gate") == found


def test_what_is_left_undecided_is_no_disagreement_on_stored_images_as_on_live_ones():
    """Pictures near a threshold flip most easily, and a band of abstention takes just these out."""
    mine = candidate([0.1, 0.9, 0.6, 0.2, 0.9], [1, 2, 3, 4, 5])
    champion = Champion(3, np.array([0.1, 0.1, 0.3, 0.6, 0.35]), 0.4, band=(0.3, 0.4))
    counts = {
        one.champion: (one.patients, one.flipped)
        for one in gate.wait(promoted(), mine, (0.5, 0.7), champion, 1).shadow.stored
    }
    assert counts == {"all": (5, 2), "benign": (2, 1), "malignant": (1, 1)}


@pytest.mark.parametrize(
    ("decision", "champion", "pictures"),
    [
        (promoted(), Champion(3, np.array([0.1]), 0.5), 0),
        (promoted(), Champion(None), PICTURES),
        (toy_artefact.gate("refused", 3), Champion(3, np.array([0.1]), 0.5), PICTURES),
    ],
)
def test_what_does_not_wait(decision, champion, pictures):
    assert gate.wait(decision, candidate([0.1], [1]), None, champion, pictures) is decision


def waiting(patients: int = 100, flipped: int = 2) -> GateRecord:
    rows = [{"champion": name, "patients": patients, "flipped": flipped} for name in ("all", "benign", "malignant")]
    return toy_artefact.gate("waiting", 3, shadow={"pictures": PICTURES, "stored": rows})


def group(kind: str = "all", value: str = "all", **changes: Any) -> dict[str, Any]:
    content = {
        "kind": kind,
        "value": value,
        "pictures": PICTURES,
        "patients": 1000,
        "changed": 31,
        "share": {"value": 0.0145, "low": 0.01, "high": 0.02},
        "abstained": {"value": 0.0, "low": -0.01, "high": 0.01},
        "flipped_patients": 20,
    }
    return content | changes


def seen(*groups: dict[str, Any], **changes: Any) -> ShadowRecord:
    content = {
        "notice": "",
        "created": "2025-07-14T12:00:00+00:00",
        "code_version": "0.1.0",
        "night": "2025-07-14",
        "champion": 3,
        "candidate": 4,
        "model": "0" * 64,
        "first": "2025-07-14",
        "last": "2025-07-14",
        "pictures": PICTURES,
        "patients": 1000,
        "changed": 31,
        "pairs": {},
        "groups": list(groups or [group()]),
        "unanswered": 0,
        "set_aside": 0,
        "summary": "On 2,140 live pictures.",
    }
    return ShadowRecord.parse(content | changes, "shadow")


def test_a_candidate_that_differs_as_on_the_stored_images_is_accepted():
    found = gate.decide(waiting(), seen())
    assert (found.decision, len(found.criteria)) == ("accepted", 3)
    assert found.reasons == ["On 2,140 live pictures.", "every criterion holds on live pictures, too"]


def test_too_few_pictures_decide_nothing():
    assert gate.decide(waiting(), seen(pictures=PICTURES - 1)) is None


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        (group("source", "auto", patients=200, flipped_patients=40), "calls of the two models"),
        (group("decision", "benign", patients=200, flipped_patients=40), "calls of the two models"),
        (group(abstained={"value": 0.04, "low": 0.02, "high": 0.06}), "abstentions"),
        (group(abstained={"value": 0.0, "low": None, "high": None}), "abstentions"),
        (
            group("novelty", "unlike", abstained={"value": 0.2, "low": 0.1, "high": 0.3}),
            "abstentions by group",
        ),
    ],
)
def test_a_group_in_which_it_differs_more_refuses_it(changed, name):
    groups = [changed] if changed["kind"] == "all" else [group(), changed]
    found = gate.decide(waiting(), seen(*groups))
    assert found.decision == "refused"
    assert [one.name for one in found.criteria if not one.passed] == [name]
    assert found.reasons[1].startswith(f"{name}: ")


def test_small_groups_are_not_judged_and_many_groups_need_more():
    small = group("source", "whole", patients=gate.PATIENTS - 1, flipped_patients=gate.PATIENTS - 1)
    assert gate.decide(waiting(), seen(group(), small)).decision == "accepted"
    alone = gate.decide(waiting(), seen(group() | {"patients": 100, "flipped_patients": 9}))
    assert alone.decision == "refused"
    several = [group("source", name, patients=100, flipped_patients=9) for name in ("given", "auto", "whole")]
    assert gate.decide(waiting(), seen(group(), *several)).decision == "accepted"


def test_many_pictures_of_few_patients_decide_nothing():
    """Not even against a candidate: its abstentions could not hold the criterion however it answers."""
    assert gate.decide(waiting(), seen(patients=gate.ENOUGH - 1)) is None
    assert gate.decide(waiting(), seen(patients=gate.ENOUGH)) is not None
    highest = [metrics.patient_mean(np.zeros(n), np.arange(n), (-1, 1)).high for n in (gate.ENOUGH - 1, gate.ENOUGH)]
    assert highest[0] >= gate.ABSTENTIONS > highest[1]


def test_pictures_of_another_champion_than_the_one_of_the_evaluation_decide_nothing():
    assert gate.decide(waiting(), seen(champion=5)) is None


@pytest.mark.parametrize("pictures", [-1, 50_001])
def test_a_number_of_pictures_that_can_never_be_reached_is_refused(pictures):
    with pytest.raises(InputError, match=f"shadow {pictures}"):
        EvaluateOptions(shadow=pictures)
    assert EvaluateOptions(shadow=50_000).shadow <= compare.MOST
