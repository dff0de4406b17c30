"""What the page shows of the descriptors in the endpoint's answers and facts, checked value by value.

Each function raises one of `checks.UNDOCUMENTED` for what does not have its documented form. It names values as
"margin_lobulated", for which the page has words.
"""

from typing import Any

from thyroid import tirads
from thyroid.web import checks

_MOST_POINTS = 17
_WHYS = ("too_few", "gives_class_away", "auroc", "surroundings")
"""Reasons to withhold a finding that the page has words for. Others are "other"."""


def describe_model(record: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return which findings a model tells and which it withholds; None if it was given no labels.

    Args:
        record: Field `descriptors` of the facts.

    Returns:
        `given`, names; `withheld`, names with the reason; `unlabelled`, the descriptors without labels; and `doubts`,
        whether the model makes no decision that TI-RADS disagrees with.
    """
    if record is None:
        return None
    findings = sorted(record["findings"], key=_order)
    withheld = [(_name(one), one["why"] if one["why"] in _WHYS else "other") for one in findings if not one["given"]]
    return {
        "given": [_name(one) for one in findings if one["given"]],
        "withheld": withheld,
        "unlabelled": [name for name in tirads.DESCRIPTORS if name not in record["seen"]],
        "doubts": bool(record["tirads"]) and record["tirads"]["doubts"] is True,
    }


def describe_view(explanation: dict[str, Any]) -> dict[str, Any] | None:
    """Return what an answer about one picture says of its descriptors; None if it says nothing.

    Returns:
        `findings`, in the order in which they are shown: name, share, threshold, state ("yes", "no" or "uncertain"),
        heat (data URI) and inside, the share of the evidence inside the box. `told`, the names that are possible by
        descriptor; kinds of foci are not among them, since others than those that are told may be there as well.
        `absent`, the names that are taken to be absent.
    """
    if "descriptors" not in explanation:
        return None
    described = explanation["descriptors"]
    told = {name: [_value(name, value) for value in values] for name, values in described["told"].items()}
    if told.get(tirads.FOCI) != [_value(tirads.FOCI, tirads.NONE)]:
        told.pop(tirads.FOCI, None)
    assumed = described.get("assumed_absent") or {}
    return {
        "findings": [_finding(one) for one in sorted(described["findings"], key=_order)],
        "told": [names for names in told.values() if names],
        "absent": [_value(name, value) for name, values in assumed.items() for value in values],
    }


def describe_tirads(answer: dict[str, Any]) -> dict[str, Any] | None:
    """Return the points of a picture or a patient: low, high, lowest and highest level, and whether they agree.

    `agrees` is None where nothing could be compared, and the whole is None where the answer has no points.
    """
    if "tirads" not in answer:
        return None
    low, high = answer["tirads"]["points"]
    if type(low) is not int or type(high) is not int or not 0 <= low <= high <= _MOST_POINTS:
        raise ValueError("not points")
    agrees = answer["tirads"]["agrees"]
    if agrees is not None and type(agrees) is not bool:
        raise ValueError("neither agrees nor disagrees")
    points = tirads.Points(low, high)
    return {"low": low, "high": high, "levels": points.levels, "agrees": agrees}


def differing(patient: dict[str, Any]) -> list[str]:
    """Return the descriptors in which a patient's pictures differ."""
    names = [str(name) for name in patient.get("views_differ") or []]
    if not set(names) <= set(tirads.DESCRIPTORS):
        raise ValueError("no such descriptor")
    return names


def _finding(finding: dict[str, Any]) -> dict[str, Any]:
    heat, present, uncertain = finding["heat_map"], finding["present"], finding["uncertain"]
    inside = heat["share_inside_roi"]
    return {
        "name": _name(finding),
        "share": checks.share(finding["probability"]),
        "threshold": checks.share(finding["threshold"]),
        "state": "uncertain" if uncertain is True else "yes" if present is True else "no",
        "heat": checks.png(heat["layer_png"]["b64"]),
        "inside": None if inside is None else checks.share(inside),
    }


def _order(finding: dict[str, Any]) -> tuple[int, int]:
    """Return the place of a finding: those of the deck's six features first, then those of the lexicon."""
    pair = (finding["descriptor"], finding["value"])
    six = [pair in values for values in tirads.DECK.values()]
    lexicon = [(descriptor, value) for descriptor, values in tirads.DESCRIPTORS.items() for value in values]
    return six.index(True) if True in six else len(six), lexicon.index(pair)


def _name(finding: dict[str, Any]) -> str:
    return _value(finding["descriptor"], finding["value"])


def _value(descriptor: str, value: str) -> str:
    if value not in tirads.DESCRIPTORS[descriptor]:
        raise ValueError("no such value")
    return f"{descriptor}_{value}"
