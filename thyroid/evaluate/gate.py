"""Decide whether the candidate may replace the champion.

The decision rests on floors, on a paired comparison with the champion on the same test images, and on the audits.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from thyroid import metrics
from thyroid.data.filenames import CLASSES, POSITIVE, SCORE
from thyroid.evaluate.audits.audit import Audit, passed
from thyroid.evaluate.champion import Champion, Rivals
from thyroid.evaluate.options import EvaluateOptions
from thyroid.metrics import Interval, format_interval
from thyroid.model.operating_point import describe_patients_needed
from thyroid.records.evaluation import SubgroupRow
from thyroid.records.gate import Comparison, Criterion, DeLong, GateRecord
from thyroid.records.performance import Performance

MARGIN = 0.05
"""Largest loss of AUROC against the champion. The lower bound of the difference must be above minus this margin."""
SENSITIVITY_SLACK = 0.05
"""The sensitivity on test patients may be this much below the one that the threshold was locked for."""
SPECIFICITY = 0.30
"""Floor of the specificity by test patient.

A threshold that calls everybody malignant has a perfect sensitivity and decides nothing. Below this floor, more than
two in three benign patients would still be sent to a biopsy.
"""
SPECIFICITY_MARGIN = 0.10
"""Largest loss of specificity by patient against the champion, each model at its own threshold.

It is twice the margin of the AUROC: a threshold rests on the few lowest malignant patients, so it moves more than the
order of all patients does.
"""
VALIDATION_PATIENTS = 10
"""Smallest number of malignant validation patients behind a threshold.

With fewer, one patient holds more than a tenth of the sensitivity, and a single wrong label moves the threshold to that
patient's score.
"""
CALIBRATION_CEILING = 0.10
"""The expected calibration error on the test set may exceed that of perfectly calibrated probabilities by this much."""
PATIENTS = 10
"""Smallest number of test patients of each class. With fewer, no metric is reliable enough to release a model."""
SUBGROUP_AUROC = 0.6
"""Floor of the AUROC of every subgroup that is not marked small.

The sensitivity of such a subgroup, by image, has the same floor as the sensitivity by patient.
"""

BOXES_MARGIN = 0.15
"""Largest loss of AUROC with automatic boxes for which a model may decide on them.

The lower bound of the difference on the test frames must not be below minus this margin. On a test part with few benign
frames, such as DDTI's nine, the interval alone is wider than that: such data cannot show that automatic boxes are safe,
and the model is released for given boxes only.
"""

_ASKED = f"lower bound of the AUROC difference above -{MARGIN:.2f}"


@dataclass(frozen=True, eq=False)
class Candidate:
    """The model that the gate decides on.

    Attributes:
        metrics: Its metrics on the test set, in the serving domain.
        threshold: Threshold of its operating point.
        malignant_patients: Number of malignant patients that the threshold was locked on.
        test: Its test predictions in this domain: sha256, label, patient and the probability of malignant.
        subgroups: Rows of `performance.by_subgroup`.
        decided: As `test`, with cross-fitted probabilities for the threshold to decide on; None for those of `test`.
    """

    metrics: Performance
    threshold: float
    malignant_patients: int
    test: pd.DataFrame
    subgroups: Sequence[SubgroupRow] = ()
    decided: pd.DataFrame | None = None


def test_digest(test: pd.DataFrame) -> str:
    """Return the SHA-256 over the sorted hashes of the images in a test set. It identifies the test set."""
    return hashlib.sha256("\n".join(sorted(test["sha256"])).encode()).hexdigest()


def decide(
    candidate: Candidate,
    rivals: Rivals,
    audits: Sequence[Audit],
    options: EvaluateOptions,
    more: Sequence[Criterion] = (),
) -> GateRecord:
    """Decide whether the candidate may replace the champion, and list every criterion.

    Args:
        candidate: The model and its performance.
        rivals: The champion and the anchor on the same images.
        audits: Audits of the candidate.
        options: Sensitivity that the threshold was locked for, audits whose failure does not count, and the seed.
        more: Criteria of the caller's own, which count like the others.

    Returns:
        The decision. Its `ahead_of` is the version of the anchor (of the champion, where that is the anchor) if the
        candidate is shown to be better than it. Its `test_set_read_before` is not set.
    """
    comparisons, compared = _compare(candidate, rivals, options.seed)
    criteria = [
        *_floors(candidate, options.sensitivity),
        *_subgroups(candidate.subgroups, options.sensitivity, rivals.champion),
        *compared,
        *(_audit(audit, options.waive) for audit in audits),
        *more,
    ]
    failed = [criterion for criterion in criteria if not (criterion.passed or criterion.waived)]
    return GateRecord(
        decision="refused" if failed else "promoted",
        reasons=_reasons(criteria, failed, rivals.champion),
        criteria=criteria,
        champion=rivals.champion.version,
        comparison=comparisons.get("champion"),
        anchor=None if rivals.anchor is None else rivals.anchor.version,
        anchor_comparison=comparisons.get("anchor"),
        ahead_of=_ahead_of(rivals, comparisons),
        waived=[criterion.name for criterion in criteria if criterion.waived],
        test_digest=test_digest(candidate.test),
    )


def reason_against_boxes(difference: Interval) -> str | None:
    """Return why a model may not decide on automatic boxes, in words; None if it may.

    It does not keep a model from being released. Such a model decides on boxes that people drew or confirmed.

    Args:
        difference: AUROC with automatic boxes less that with given boxes, on the same test frames.
    """
    if difference.low is not None and difference.low >= -BOXES_MARGIN:
        return None
    return (
        f"the AUROC with automatic boxes less that with given boxes is {difference}; its lower bound must not be below "
        f"-{BOXES_MARGIN:.2f}"
    )


def _criterion(name: str, asked: str, found: str, passed: bool, waived: bool = False) -> Criterion:
    return Criterion(name=name, asked=asked, found=found, passed=passed, waived=waived)


def _above(metric: Interval | None, bound: float) -> bool:
    """Return whether the whole interval of a metric is above a bound."""
    return metric is not None and metric.low is not None and metric.low > bound


def _floors(candidate: Candidate, sensitivity: float) -> list[Criterion]:
    """Return the criteria that the candidate must meet by itself."""
    found = candidate.metrics
    return [
        _size(found),
        *_every_class(found),
        _better_than_chance(found),
        _behind_the_threshold(candidate.malignant_patients),
        _sensitivity(found, sensitivity),
        _specificity(found),
        _calibration(found),
    ]


def _compare(candidate: Candidate, rivals: Rivals, seed: int) -> tuple[dict[str, Comparison], list[Criterion]]:
    """Compare the candidate with the champion and the anchor.

    Returns:
        The comparisons by role ("champion", "anchor"), for rivals that could be scored, and the criteria.
    """
    comparisons: dict[str, Comparison] = {}
    criteria = []
    for role, rival in rivals.by_role.items():
        if rival.scores is None:
            what = f"cannot be compared: {rival.problem}; review the candidate and promote it by hand"
            criteria.append(_criterion(f"not inferior to {role} {rival.version}", _ASKED, what, False))
            continue
        comparisons[role], criterion = _not_inferior(candidate.test, role, rival, seed)
        criteria += [criterion, _as_specific(candidate, role, rival, seed)]
    return comparisons, criteria


def _audit(audit: Audit, waive: Sequence[str]) -> Criterion:
    """Return the criterion of an audit. An audit that could not be run fails."""
    holds = passed(audit)
    waived = not holds and audit.waivable and audit.name in waive
    return _criterion(audit.criterion, audit.asked, audit.finding or audit.outcome, holds, waived)


def _reasons(criteria: Sequence[Criterion], failed: Sequence[Criterion], champion: Champion) -> list[str]:
    """Return the reasons of the decision in words."""
    if failed:
        return [f"{criterion.name}: {criterion.found}; required: {criterion.asked}" for criterion in failed]
    waived = any(criterion.waived for criterion in criteria)
    reasons = ["every criterion holds" + (" or was waived by name" if waived else "")]
    if champion.version is None:
        reasons.append(champion.problem or "there is no champion yet, so no comparison was made")
    return reasons


def _ahead_of(rivals: Rivals, comparisons: dict[str, Comparison]) -> int | None:
    """Return the version of the anchor, or of the champion where that is the anchor, if the candidate is better."""
    nearest = "champion" if rivals.anchor is None else "anchor"
    if nearest not in comparisons:
        return None
    lowest = comparisons[nearest].lowest
    return rivals.by_role[nearest].version if lowest is not None and lowest > 0 else None


def _size(performance: Performance) -> Criterion:
    benign, malignant = (sum(row) for row in performance.patient_level.confusion)
    return _criterion(
        "size of the test set",
        f"at least {PATIENTS} patients of each class",
        f"{benign} benign and {malignant} malignant patients",
        min(benign, malignant) >= PATIENTS,
    )


def _every_class(performance: Performance) -> list[Criterion]:
    """Return the criteria for more than two classes.

    They are enough patients of each class, and a macro AUROC above chance.
    """
    if len(performance.classes) == len(CLASSES):
        return []
    few = [f"{name} has {row.patients}" for name, row in performance.classes.items() if row.patients < PATIENTS]
    macro = performance.macro_auroc
    return [
        _criterion(
            "size of every class", f"at least {PATIENTS} test patients", "; ".join(few) if few else "all have", not few
        ),
        _criterion("macro AUROC", "lower bound above .5", format_interval(macro), _above(macro, 0.5)),
    ]


def _better_than_chance(performance: Performance) -> Criterion:
    auroc = performance.auroc
    return _criterion("AUROC", "lower bound above .5", format_interval(auroc), _above(auroc, 0.5))


def _sensitivity(performance: Performance, target: float) -> Criterion:
    """Return the criterion of the sensitivity by patient.

    Patients are the independent units, so the exact bound holds.
    """
    floor = target - SENSITIVITY_SLACK
    missed, caught = performance.patient_level.confusion[POSITIVE]
    malignant = missed + caught
    low, high = metrics.clopper_pearson(caught, malignant)
    return _criterion(
        "sensitivity",
        f"at least {floor:.2f} of malignant test patients at the locked threshold",
        f"{caught} of {malignant} patients, {caught / malignant:.3f} [{low:.3f}, {high:.3f}] "
        f"({describe_patients_needed(target)})",
        caught / malignant >= floor,
    )


def _behind_the_threshold(patients: int) -> Criterion:
    return _criterion(
        "validation patients behind the threshold",
        f"at least {VALIDATION_PATIENTS} malignant ones",
        f"{patients}",
        patients >= VALIDATION_PATIENTS,
    )


def _specificity(performance: Performance) -> Criterion:
    """Return the criterion of the specificity, which is by patient like the sensitivity."""
    name, asked = "specificity", f"at least {SPECIFICITY:.2f} of benign test patients at the locked threshold"
    spared, alarmed = performance.patient_level.confusion[1 - POSITIVE]
    benign = spared + alarmed
    if not benign:
        return _criterion(name, asked, "there is no benign patient", False)
    low, high = metrics.clopper_pearson(spared, benign)
    found = f"{spared} of {benign} patients, {spared / benign:.3f} [{low:.3f}, {high:.3f}]"
    return _criterion(name, asked, found, spared / benign >= SPECIFICITY)


def _as_specific(candidate: Candidate, role: str, rival: Champion, seed: int) -> Criterion:
    """Compare the specificities of candidate and rival by patient, each at its own threshold."""
    asked = f"lower bound of the specificity difference above -{SPECIFICITY_MARGIN:.2f}"
    test = candidate.test if candidate.decided is None else candidate.decided
    rows = test.assign(malignant=test["label"] == CLASSES[POSITIVE], other=rival.scores)
    patients = rows.groupby("patient").agg({"malignant": "any", SCORE: "mean", "other": "mean"}).reset_index()
    title = f"as specific as {role} {rival.version}"
    if patients["malignant"].all():
        return _criterion(title, asked, "there is no benign patient", False)
    found = metrics.specificity_difference(
        patients["malignant"],
        patients[SCORE] >= candidate.threshold,
        rival.calls(patients["other"]),
        patients["patient"].astype(int),
        seed=seed,
    )
    holds = _above(found, -SPECIFICITY_MARGIN)
    return _criterion(title, asked, f"{found} by patient, each at its own threshold", holds)


def _calibration(performance: Performance) -> Criterion:
    return _criterion(
        "calibration",
        f"expected calibration error at most {CALIBRATION_CEILING:.2f} above that of perfectly calibrated "
        "probabilities",
        f"{performance.ece}, against {performance.ece_if_calibrated:.3f} of perfectly calibrated ones",
        performance.ece.value - performance.ece_if_calibrated <= CALIBRATION_CEILING,
    )


def _subgroups(rows: Sequence[SubgroupRow], target: float, current: Champion) -> list[Criterion]:
    """Return the criteria of the subgroups: floors and, where the champion was scored, no loss against it.

    The margins are those of all patients. Groups are small, and among many groups some lose by chance. A loss therefore
    counts only if it exceeds the margin and the whole interval of the difference is below 0.
    """
    large = [row for row in rows if not row.small and row.auroc is not None]
    floor = target - SENSITIVITY_SLACK
    if not large:
        why = "no group is large enough" if rows else "no clinical.csv, or no column of it could be used"
        return [_criterion("subgroups", "floors in every large group", f"not judged: {why}", True)]
    low = [text for row in large if (text := _below_floor(row, floor)) is not None]
    criteria = [
        _criterion(
            "subgroups",
            f"AUROC at least {SUBGROUP_AUROC:.2f} and sensitivity at least {floor:.2f} in every large group",
            "; ".join(low) if low else f"holds in all {len(large)}",
            not low,
        )
    ]
    both = [(row, row.less_champion) for row in large if row.less_champion is not None]
    if both:
        lost = [
            f"{row.column} {row.group} ({what} {less[key]})"
            for row, less in both
            for key, what, margin in (("auroc", "AUROC", MARGIN), ("specificity", "specificity", SPECIFICITY_MARGIN))
            if _lost(less[key], margin)
        ]
        criteria.append(
            _criterion(
                f"subgroups against champion {current.version}",
                f"in no large group an AUROC more than {MARGIN:.2f}, or a specificity more than "
                f"{SPECIFICITY_MARGIN:.2f}, below the champion's with the whole interval of the difference below 0",
                "; ".join(lost) if lost else f"holds in all {len(both)}",
                not lost,
            )
        )
    return criteria


def _below_floor(row: SubgroupRow, floor: float) -> str | None:
    """Describe a group of both classes whose AUROC or sensitivity is below its floor; None if neither is."""
    assert row.auroc is not None
    assert row.sensitivity is not None
    if row.auroc.value >= SUBGROUP_AUROC and row.sensitivity.value >= floor:
        return None
    return f"{row.column} {row.group} (AUROC {row.auroc.value:.3f}, sensitivity {row.sensitivity.value:.3f})"


def _lost(difference: Interval, margin: float) -> bool:
    """Return whether a difference exceeds the margin and its whole interval is below 0."""
    return difference.value < -margin and difference.high is not None and difference.high < 0


def _not_inferior(test: pd.DataFrame, role: str, rival: Champion, seed: int) -> tuple[Comparison, Criterion]:
    positive, patient = test["label"] == CLASSES[POSITIVE], test["patient"].astype(int)
    other = rival.scores
    assert other is not None
    bootstrap = metrics.auroc_difference(positive, test[SCORE], other, patient, seed=seed)
    try:
        delong = metrics.delong(positive, test[SCORE], other, patient)
        lows = [bootstrap.low, delong.difference.low]
        by_delong = f"{delong.difference} by DeLong (p {delong.p:.3f})"
        measured: dict[str, Any] = {"delong": DeLong(**vars(delong.difference), z=delong.z, p=delong.p)}
    except ValueError as error:
        lows = [bootstrap.low, None]
        by_delong = str(error)
        measured = {}
    if rival.margin is not None:
        measured["champion_margin"] = rival.margin
    known = [low for low in lows if low is not None]
    comparison = Comparison(
        champion_auroc=metrics.auroc(positive, other, patient, seed=seed),
        difference=bootstrap,
        lowest=min(known) if len(known) == len(lows) else None,
        **measured,
    )
    found = f"{bootstrap} by the bootstrap, {by_delong}" + (f"; {rival.note}" if rival.note else "")
    holds = comparison.lowest is not None and comparison.lowest > -MARGIN
    return comparison, _criterion(f"not inferior to {role} {rival.version}", _ASKED, found, holds)
