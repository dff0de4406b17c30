import pytest

from tests.support import watched
from thyroid.records.watch import DriftRow, Sequential
from thyroid.watch import verdict


@pytest.mark.parametrize("name", watched.VERDICTS)
def test_every_verdict_is_reached(name):
    record = watched.record(name)
    assert verdict.judge(record.drift, record.outcomes)[0] == name


def test_an_alarm_of_the_outcomes_weighs_more_than_one_of_what_arrives():
    changes = {"drift": watched.drift(watched.ELSEWHERE), "outcomes": watched.outcomes(watched.FELL)}
    record = watched.record("worse", **changes)
    reached, sentence = verdict.judge(record.drift, record.outcomes)
    assert reached == "worse"
    assert "31 of 41 cancers" in sentence
    assert sentence.endswith("What arrives has changed as well.")


def test_the_sentence_names_what_bears_most_on_the_decisions_and_since_when():
    record = watched.record("drift")
    sentence = verdict.judge(record.drift, None)[1]
    assert "since the night of 2025-07-03" in sentence
    assert sentence.index("unlike the training pictures") < sentence.index("left undecided")
    assert "(and 2 more)" in sentence


@pytest.mark.parametrize(("n", "able"), [(0, False), (2, False), (4, True)])
def test_so_many_outcomes_as_could_not_raise_an_alarm_do_not_make_a_model_steady(n, able):
    """A miss raises the sum by log(.15 / .05) = 1.1, and the threshold is 4.2."""
    test = watched.sequential("sensitivity", n, n, 0.95)
    assert verdict.could_alarm(Sequential.parse(test, "test")) == able
    record = watched.record("unknown", outcomes=watched.outcomes([test, watched.sequential("specificity", 0, 0, 0.77)]))
    reached, sentence = verdict.judge(record.drift, record.outcomes)
    assert reached == ("steady" if able else "unknown")
    assert "no decision of this version" in sentence


def test_outcomes_of_nobody_but_undecided_patients_are_said():
    none = [watched.sequential(name, 0, 0, 0.9) for name in ("sensitivity", "specificity")]
    record = watched.record("steady", outcomes=watched.outcomes(none))
    reached, sentence = verdict.judge(record.drift, record.outcomes)
    assert reached == "steady"
    assert sentence.endswith("it left every patient whose outcome is known undecided.")
    assert verdict.judge(record.drift, None)[1].endswith("what the patients really had is not known.")


@pytest.mark.parametrize(
    ("name", "value", "reference", "words"),
    [
        ("distance", 1.1, 0.5, "the pictures are more unlike the training pictures"),
        ("distance", 0.3, 0.5, "the pictures are less unlike the training pictures"),
        ("probability", 0.301, 0.3, "the probabilities of malignant are spread differently"),
        ("abstain", 0.5, 0.1, "more patients are left undecided"),
        ("malignant", 0.1, 0.4, "fewer patients are called malignant"),
    ],
)
def test_a_change_is_said_in_words(name, value, reference, words):
    row = DriftRow.parse(watched.row(name, value, reference, 0.4), "row")
    assert verdict.change(row) == words


def test_of_several_windows_the_largest_difference_speaks():
    rows = [watched.row("distance", 1.0, 0.5, 0.4), watched.row("distance", 1.2, 0.5, 0.7, nights=1, n=12)]
    record = watched.record("drift", drift=watched.drift(rows))
    assert [(row.nights, row.n) for row in verdict.alarms(record.drift)] == [(1, 12)]
