"""Say in a sentence whether a released model still holds, from what arrives and from what became known."""

import math
from collections.abc import Sequence
from typing import Literal

from thyroid.records.watch import DriftRecord, DriftRow, OutcomesRecord, Sequential
from thyroid.validate.unlike import listed

Verdict = Literal["drift", "worse", "steady", "unknown"]

SOURCES = {
    "given": "pictures with a box from a person",
    "auto": "pictures with the model's own box",
    "whole": "pictures that are crops already",
    "frame": "full pictures",
}
"""What was judged, in words."""

CHANGES = {
    "distance": ("the pictures are {} unlike the training pictures", "more", "less"),
    "abstain": ("{} patients are left undecided", "more", "fewer"),
    "malignant": ("{} patients are called malignant", "more", "fewer"),
    "probability": ("the probabilities of malignant are {}", "higher", "lower"),
    "box_probability": ("the model is {} sure of its own boxes", "more", "less"),
    "box_share": ("the nodules' boxes take {} of the picture", "more", "less"),
    "width": ("the pictures are {}", "wider", "narrower"),
    "height": ("the pictures are {}", "taller", "less tall"),
    "aspect": ("the pictures are {} for their height", "wider", "narrower"),
}
"""What a change of a property means: a sentence, the word for more, and the word for less."""

SPREAD = {
    "probability": "the probabilities of malignant are spread differently",
    "distance": "some pictures are like the training pictures and others are not, in other shares than before",
    "box_probability": "how sure the model is of its own boxes is spread differently",
    "width": "the widths of the pictures are spread differently",
    "height": "the heights of the pictures are spread differently",
    "aspect": "the shapes of the pictures are spread differently",
    "box_share": "the sizes of the nodules' boxes are spread differently",
}
"""The same where the median is nearly the same and the values around it changed."""

_NAMED = 2
"""Number of changes that the sentence of the verdict names."""
_SAME = 0.05
"""Difference of two medians, as a share of the reference's, up to which they count as the same."""


def judge(drift: DriftRecord, outcomes: OutcomesRecord | None) -> tuple[Verdict, str]:
    """Judge a model since its release.

    An alarm of the outcomes weighs more than one of what arrives: it says that decisions are wrong, not only that
    something is different. It is steady if neither raised an alarm and one of them could have.

    Args:
        drift: What the comparison of the nights found.
        outcomes: What the outcomes say; None without outcomes.

    Returns:
        The verdict of `WatchRecord`, and one sentence for a clinician.
    """
    tests = [] if outcomes is None else outcomes.tests
    changed = alarms(drift)
    if fallen := [test for test in tests if test.alarm]:
        also = " What arrives has changed as well." if changed else ""
        return "worse", f"It does worse than it was released for: {'; '.join(_fall(test) for test in fallen)}.{also}"
    if changed:
        return "drift", _drift(drift, changed)
    can = [test for test in tests if could_alarm(test)]
    if drift.skipped is None:
        known = "what the patients really had is not known"
        if can:
            known = "no more mistakes than expected have become known"
        elif tests and any(test.n for test in tests):
            known = "too few outcomes are known to say whether its decisions are still right"
        elif outcomes is not None and outcomes.patients:
            known = "it left every patient whose outcome is known undecided"
        joined = ", and " if can else "; "
        return "steady", f"No change is seen since its release: pictures and answers are as usual{joined}{known}."
    why = drift.skipped.rstrip(".")
    if can:
        names = listed([f"the {test.name}" for test in can])
        return "steady", f"No fall of {names} is seen since its release. Whether what arrives has changed: {why}."
    return "unknown", f"It is not known whether anything has changed since its release: {why}."


def alarms(drift: DriftRecord) -> list[DriftRow]:
    """Return one row per source and property with an alarm, that of the largest difference.

    What bears most on the decisions comes first, in the order of `CHANGES`.
    """
    found: dict[tuple[str, str], DriftRow] = {}
    for row in drift.rows:
        key = (row.source, row.property)
        if row.alarm and (key not in found or row.difference > found[key].difference):
            found[key] = row
    order = list(CHANGES)
    return sorted(found.values(), key=lambda row: order.index(row.property) if row.property in order else len(order))


def change(row: DriftRow) -> str:
    """Say what has changed, such as "the pictures are more unlike the training pictures"."""
    if row.property not in CHANGES:
        return f"{row.property} has changed"
    sentence, more, less = CHANGES[row.property]
    if row.property in SPREAD and math.isclose(row.value, row.reference, rel_tol=_SAME):
        return SPREAD[row.property]
    return sentence.format(more if row.value > row.reference else less)


def could_alarm(test: Sequential) -> bool:
    """Return whether so many outcomes could have raised an alarm, had the model been wrong each time."""
    return test.n > 0 and test.n * math.log((1 - test.fallen) / (1 - test.expected)) >= test.threshold


def _drift(drift: DriftRecord, changed: Sequence[DriftRow]) -> str:
    named = list(dict.fromkeys(change(row) for row in changed))
    more = f" (and {len(named) - _NAMED} more)" if len(named) > _NAMED else ""
    since = f"since the night of {drift.first_alarm}, " if drift.first_alarm else ""
    return f"What arrives has changed: {since}{listed(named[:_NAMED])}{more}."


def _fall(test: Sequential) -> str:
    kind, call = ("cancers", "malignant") if test.name == "sensitivity" else ("benign nodules", "benign")
    return f"it called {test.right} of {test.n} {kind} {call}, and {100 * test.expected:.0f} of 100 are expected"
