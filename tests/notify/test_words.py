import pytest

from tests.evaluate.shadow.test_gate import seen, waiting
from tests.support import toy_artefact
from thyroid.interval import Interval
from thyroid.notify import words
from thyroid.records.gate import Comparison

PATIENT = "B_4711-0002-1.0.jpg"
"""A name of a file, which holds a patient's number."""


def criterion(name: str, found: str = "figures", passed: bool = False, waived: bool = False) -> dict:
    return {"name": name, "asked": "more", "found": found, "passed": passed, "waived": waived}


def gate(decision: str, *criteria: dict, **more) -> words.News:
    record = toy_artefact.gate(decision, 11, criteria=list(criteria), **more)
    return words.gate(12, "ab" * 32, record, backbone="VGG16", link="gs://b/r/thyroid/12/report.html")


def test_a_release_says_how_good_the_model_is():
    news = gate("promoted", criterion("AUROC", "0.930 [0.900, 0.960]", True), criterion("leakage audit", waived=True))
    assert (news.event, news.version) == ("gate.released", 12)
    assert news.sentence == (
        "Version 12 (VGG16) was released and is the champion. AUROC on the test set: 0.930 [0.900, 0.960]."
    )
    news = gate("promoted", criterion("leakage audit", waived=True), waived=["leakage audit"])
    assert news.sentence.endswith("is the champion. 1 criterion was waived by name.")


def test_a_refusal_names_the_criterion():
    found = "18 of 24 patients, 0.750 [0.533, 0.902]"
    news = gate("refused", criterion("AUROC", passed=True), criterion("sensitivity", found), criterion("calibration"))
    assert news.event == "gate.refused"
    assert news.sentence == (
        f"Version 12 (VGG16) was not released: sensitivity: {found}; required: more. 1 more criterion failed."
    )


def test_a_comparison_says_by_how_much_it_was_lost():
    lost = Comparison(champion_auroc=Interval(0.9, 0.8, 1.0), difference=Interval(-0.1, -0.2, 0.0), lowest=-0.2)
    name = "not inferior to champion 11"
    news = gate("refused", criterion(name, PATIENT), comparison=lost.to_dict())
    assert "its AUROC minus that of champion 11 is -0.100 [-0.200, 0.000]; required: more." in news.sentence
    assert "could not be compared with champion 11." in gate("refused", criterion(name, PATIENT)).sentence


@pytest.mark.parametrize(
    "name",
    ["subgroups", "subgroups against champion 11", "shortcut audit", "leakage audit", "clinical columns", "another"],
)
def test_what_may_name_files_or_groups_of_patients_is_not_quoted(name):
    news = gate("refused", criterion(name, f"{PATIENT} and group ward Kim"))
    assert name in news.sentence
    assert "4711" not in news.sentence
    assert "Kim" not in news.sentence


def test_a_decision_that_came_too_late():
    news = gate("refused", criterion("AUROC", passed=True), reasons=["x", "the champion changed from 10 to 11"])
    assert news.sentence.endswith("was not released: the champion changed from 10 to 11.")


def test_two_registries_with_the_same_version_are_two_topics():
    record = toy_artefact.gate()
    one, other = (words.gate(1, sha * 32, record, backbone="x", link="") for sha in ("ab", "cd"))
    assert one.topic != other.topic


def test_what_is_well_again_is_told_only_after_the_contrary():
    news = words.deployed(12, "ab" * 32, taken_back=False, champion=12, link="")
    assert not news.is_news_after(None)
    assert not news.is_news_after(news.state)
    assert news.is_news_after(words.deployed(12, "ab" * 32, taken_back=True, champion=11, link="").state)


@pytest.mark.parametrize(
    ("scans", "said"), [(0, "changed tables"), (1, "1 new or changed scan"), (1200, "1200 new or changed scans")]
)
def test_a_start(scans, said):
    assert words.run_started("7", scans).sentence == f"A run was started for {said}."


def test_a_version_that_waits_for_live_pictures():
    found = gate("waiting", shadow=waiting().shadow.to_dict())
    assert found.event == "gate.waiting"
    assert found.sentence == (
        "Version 12 (VGG16) holds every criterion and waits: 2,140 live pictures behind version 11 decide."
    )


def test_what_live_pictures_decided():
    assert words.settled(seen(), "link") is None
    accepted = seen(decision={"decision": "accepted", "reasons": ["On 2,140 live pictures.", "x"], "criteria": []})
    found = words.settled(accepted, "link")
    assert (found.event, found.version) == ("gate.released", 4)
    assert found.sentence == "Version 4 was released and is the champion. On 2,140 live pictures."
    reasons = ["On 2,140 live pictures.", "abstentions: 0.100; required: below 0.05"]
    found = words.settled(seen(decision={"decision": "refused", "reasons": reasons, "criteria": []}), "link")
    assert (found.event, found.topic) == ("gate.refused", f"live pictures of version 4 {'0' * 16}")
    assert found.sentence == "Version 4 was not released: abstentions: 0.100; required: below 0.05."


def test_a_first_model_that_is_taken_back_is_not_called_served():
    sentence = words.deployed(1, "ab" * 32, taken_back=True, champion=1, link="").sentence
    assert sentence.endswith("Version 1 is still the champion in the registry, but it is not served.")
