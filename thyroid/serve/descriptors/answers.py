"""What an answer says about the descriptors of an image, and about the TI-RADS points of an image or a patient.

`schemas` describes the fields.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thyroid.model.descriptors.head import Head, Told
from thyroid.tirads import FOCI, NONE, Points


def tell(head: Head, features: NDArray[np.float32]) -> tuple[NDArray[np.float64] | None, Told | None]:
    """Return the probabilities [k] of the findings that are given out, and what follows from them.

    Args:
        head: The head.
        features: Features of the image [d].

    Returns:
        None for both if a feature is not finite.
    """
    probability = head.probabilities(features[None])[0]
    return (probability, head.tell(probability)) if np.isfinite(probability).all() else (None, None)


def describe(
    head: Head, probability: NDArray[np.float64], told: Told, maps: Sequence[dict[str, Any]] = ()
) -> dict[str, Any]:
    """Return the field `descriptors` of an answer.

    Args:
        head: The head.
        probability: Probabilities of the findings that are given out [k].
        told: What follows from them.
        maps: The heat map of each finding; empty for an answer without heat maps.
    """
    findings: list[dict[str, Any]] = [
        {
            "descriptor": finding.descriptor,
            "value": finding.value,
            "probability": float(share),
            "threshold": finding.threshold,
            "present": present,
            "uncertain": uncertain,
        }
        for finding, share, present, uncertain in zip(
            head.given, probability, told.present, told.uncertain, strict=True
        )
    ]
    if maps:
        findings = [finding | {"heat_map": heat} for finding, heat in zip(findings, maps, strict=True)]
    absent = head.record.assumed_absent
    return {"findings": findings, "told": _words(head, told)} | ({"assumed_absent": absent} if absent else {})


def _words(head: Head, told: Told) -> dict[str, list[str]]:
    """Return the values that are possible, by descriptor of which at least one value is excluded.

    Of echogenic foci these are the kinds that are present, or `NONE` if all labelled kinds are excluded.
    """
    words = {}
    for descriptor, possible in told.possible.items():
        excludes = len(possible) < len(head.record.seen[descriptor])
        if descriptor != FOCI:
            if excludes:
                words[descriptor] = list(possible)
            continue
        present = [one.value for one, is_present in zip(head.given, told.present, strict=True) if is_present]
        kinds = [kind for kind in possible if kind in present]
        if kinds or (excludes and not possible):
            words[descriptor] = kinds or [NONE]
    return words


def differing(seen: Sequence[Told]) -> list[str]:
    """Return the descriptors for which several views leave one possible value each, but not the same.

    Echogenic foci do not count, since a view need not show all of them.
    """
    sole: dict[str, set[str]] = {}
    for told in seen:
        for descriptor, possible in told.possible.items():
            if descriptor != FOCI and len(possible) == 1:
                sole.setdefault(descriptor, set()).update(possible)
    return [descriptor for descriptor, values in sole.items() if len(values) > 1]


def together(seen: Sequence[Told]) -> Points | None:
    """Return the points that are possible in any of several views; None without a view."""
    return Points(min(told.points.low for told in seen), max(told.points.high for told in seen)) if seen else None


def tirads(head: Head, decision: str, points: Points) -> dict[str, Any]:
    """Return the field `tirads` of an answer.

    Args:
        head: The head.
        decision: The decision at the operating point alone: "benign", "malignant" or "abstain".
        points: Points of the image or of the patient.
    """
    compared = head.record.tirads is not None and decision != "abstain"
    agrees = not head.disagrees(decision, points) if compared else None
    return {"points": [points.low, points.high], "levels": list(points.levels), "agrees": agrees}


def names(head: Head) -> str:
    """Return the findings in the order of the columns of V2's output, "margin.lobulated,foci.rim"."""
    return ",".join(f"{one.descriptor}.{one.value}" for one in head.given)


def output_types(head: Head) -> list[dict[str, Any]]:
    """Return the outputs that V2 has beside the others, for the metadata."""
    return [
        {"name": "descriptors", "datatype": "FP32", "shape": [-1, len(head.given)]},
        {"name": "tirads_points", "datatype": "INT32", "shape": [-1, 2]},
    ]


def outputs(
    head: Head, seen: Sequence[tuple[NDArray[np.float64] | None, Told | None]]
) -> dict[str, tuple[str, NDArray[Any]]]:
    """Return datatype and values of these outputs by name; -1 for an image with features that are not finite.

    Args:
        head: The head.
        seen: Result of `tell` for each image.
    """
    probability = np.full((len(seen), len(head.given)), -1, np.float32)
    points = np.full((len(seen), 2), -1, np.int32)
    for row, (found, told) in enumerate(seen):
        if found is not None and told is not None:
            probability[row] = found
            points[row] = told.points.low, told.points.high
    return {"descriptors": ("FP32", probability), "tirads_points": ("INT32", points)}
