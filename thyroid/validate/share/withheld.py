"""Whether a withheld number of called patients stays withheld once figures of both sides are beside the steps.

If every benign patient is below the threshold, each missed malignant patient can lose no more pairs than there are
benign patients: an AUROC of .70 on 30 malignant patients means that nine are missed, and not fewer. A sum of
probabilities bounds the number above the threshold likewise, and so does calibration in the large, at which the shifted
probabilities add up to the malignant patients. The AUROC's variance and the calibration slope bound it as well, but not
by a formula that somebody could solve for a count; they go where the figure that they belong to goes.
"""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
from scipy.special import expit, logit

from thyroid.records.share import SideCounts, SiteRecord, Steps
from thyroid.validate.share import areas, disclosure

_MOST = 19
"""Most values of a withheld number that are tried. Its range has more only where it says nothing."""
_AREA, _SUM, _COEFFICIENT = 0.00051, 0.0051, 0.00051
"""Errors by rounding."""
_NO_AREA: dict[str, Any] = {"auroc": None}
_NO_SUMS: dict[str, Any] = {"calibration": [], "intercept": None, "slope": None}


def without(record: SiteRecord) -> SiteRecord:
    """Return the content of a file without the figures that would tell a withheld number, as few of them as may be."""
    choices: tuple[dict[str, Any], ...] = ({}, _NO_SUMS, _NO_AREA, _NO_AREA | _NO_SUMS)
    tried = (record.model_copy(update=choice) for choice in choices)
    return next((one for one in tried if stays(one)), record.model_copy(update=choices[-1]))


def stays(record: SiteRecord) -> bool:
    """Return whether each withheld number of called patients keeps `disclosure.PROTECTED` possible values."""
    malignant, benign = record.malignant, record.benign
    if malignant is None or benign is None or not (record.auroc or record.calibration or record.intercept):
        return True
    wanted = [1 if low == high else disclosure.PROTECTED for low, high in (malignant.called, benign.called)]
    if max(wanted) == 1:
        return True
    found = set[int](), set[int]()
    for called in _pairs(_values(malignant), _values(benign)):
        if any(number not in known for number, known in zip(called, found, strict=True)) and possible(record, called):
            for number, known in zip(called, found, strict=True):
                known.add(number)
        if all(len(known) >= least for known, least in zip(found, wanted, strict=True)):
            return True
    return False


def _values(side: SideCounts) -> list[int]:
    low, high = side.called
    return [round(value) for value in np.linspace(low, high, min(_MOST, high - low + 1))]


def _pairs(first: list[int], second: list[int]) -> Iterator[tuple[int, int]]:
    """Return all pairs, in an order in which every number comes early."""
    longer = max(len(first), len(second))
    for shift, place in itertools.product(range(longer), range(longer)):
        yield first[place % len(first)], second[(place + shift) % len(second)]


def possible(record: SiteRecord, called: tuple[int, int]) -> bool:
    """Return whether so many called patients of both sides can have the figures of the file."""
    assert record.malignant_steps is not None
    assert record.benign_steps is not None
    assert record.malignant is not None
    sides = [
        _split(steps, record.threshold, number)
        for steps, number in zip((record.malignant_steps, record.benign_steps), called, strict=True)
    ]
    if any(min(steps.patients) < 0 for steps in sides):
        return False
    if record.auroc:
        low, high = areas.bounds(sides[:1], sides[1:])
        if not low - _AREA <= record.auroc.value <= high + _AREA:
            return False
    for one in record.calibration:
        if one.low < record.threshold < one.high:
            low, high = _sums(sides, 0, 0, one.low, one.high)
            if not low - _SUM <= one.probability <= high + _SUM:
                return False
    if record.intercept:
        shift = record.intercept.value
        low, high = _sums(sides, shift - _COEFFICIENT, shift + _COEFFICIENT, 0, 1)
        return low - _SUM <= record.malignant.patients <= high + _SUM
    return True


def _split(steps: Steps, threshold: float, called: int) -> Steps:
    """Return the steps with the threshold among their edges, if so many patients are at or above it."""
    place = int(np.searchsorted(steps.edges, threshold))
    if not 0 < threshold < 1 or steps.edges[place] == threshold:
        return steps
    above = called - sum(steps.patients[place:])
    parts = [steps.patients[place - 1] - above, above]
    return Steps.model_construct(
        edges=[*steps.edges[:place], threshold, *steps.edges[place:]],
        patients=[*steps.patients[: place - 1], *parts, *steps.patients[place:]],
    )


def _sums(sides: list[Steps], least: float, most: float, low: float, high: float) -> tuple[float, float]:
    """Return the least and the greatest sum of the shifted probabilities of the patients between two edges."""
    sums = np.zeros(2)
    for steps in sides:
        edges, patients = np.array(steps.edges), np.array(steps.patients)
        inside = (edges[:-1] >= low) & (edges[1:] <= high)
        for number, (ends, shift) in enumerate(((edges[:-1], least), (edges[1:], most))):
            sums[number] += patients[inside] @ expit(logit(np.clip(ends[inside], 1e-7, 1 - 1e-7)) + shift)
    return float(sums[0]), float(sums[1])
