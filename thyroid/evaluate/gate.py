"""Decide whether the candidate may replace the champion.

The decision rests on floors, on a paired comparison with the champion on the same test images, and on the audits.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from thyroid import metrics
from thyroid.clinical.fusion import Fusion
from thyroid.data import classes as kinds
from thyroid.data import overlap
from thyroid.data.classes import Classes
from thyroid.data.filenames import CLASSES, POSITIVE, SCORE
from thyroid.errors import InputError
from thyroid.model import artefacts, operating_point
from thyroid.registry import changes, registry
from thyroid.storage import Location

if TYPE_CHECKING:
    from thyroid.model.inputs import Decode

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

AUDITS = ("shortcut", "leakage")
WAIVABLE = (*AUDITS, "clinical")

_NEEDED = ("classes", "positive", "ordered", "temperature", "bias", "threshold", "thresholds")
"""Fields that model.json of a champion must have so that it can be scored."""


@dataclass(frozen=True)
class Criterion:
    """One criterion of the gate.

    Attributes:
        name: Name of the criterion.
        asked: What was asked, in words.
        found: What was found, in words.
        passed: Whether the criterion holds.
        waived: Whether it fails and was waived by name, so that somebody answers for it.
    """

    name: str
    asked: str
    found: str
    passed: bool
    waived: bool = False


@dataclass(frozen=True)
class Champion:
    """A champion on the candidate's test images: its scores, or the reason why it has none.

    Attributes:
        version: Version in the registry; None where there is no champion.
        scores: Probability of malignant for each test image, in the order of the images; None where it was not scored.
        threshold: The champion's own threshold, on the scale of its scores.
        problem: Why it has no scores, or, without a version, why no champion was looked for.
        note: What could not be compared of the scans that it was trained on.
    """

    version: int | None
    scores: NDArray[np.float64] | None = None
    threshold: float | None = None
    problem: str | None = None
    note: str | None = None

    def calls(self, scores: Any) -> Any:
        """Return whether each of `scores` reaches the threshold."""
        assert self.threshold is not None
        return np.asarray(scores, float) >= self.threshold


def check_waivers(waive: Sequence[str]) -> tuple[str, ...]:
    """Check the names of the audits to waive, and remove duplicates.

    Raises:
        InputError: A name is not in `WAIVABLE`.
    """
    for name in waive:
        if name not in WAIVABLE:
            raise InputError(f"waive {name!r}: only {' and '.join(WAIVABLE)} can be waived")
    return tuple(dict.fromkeys(waive))


def test_digest(test: pd.DataFrame) -> str:
    """Return the SHA-256 over the sorted hashes of the images in a test set. It identifies the test set."""
    return hashlib.sha256("\n".join(sorted(test["sha256"])).encode()).hexdigest()


def rivals(
    root: Location | None,
    test: pd.DataFrame,
    classes: Classes,
    domain: str,
    judging: pd.DataFrame,
    rows: pd.DataFrame | None = None,
    decode: "Decode | None" = None,
) -> tuple[Champion, Champion | None]:
    """Score the registry's champion and its anchor on the candidate's test images.

    A series of candidates, each a little worse than the last one, would always pass a comparison with the champion
    alone. The anchor is a champion that stays until another one is shown to be better than it, so the losses cannot add
    up.

    A model that cannot be compared fairly leads to a refusal of the candidate, not to a crash, because somebody has to
    look. Such a model has other classes or another serving domain, was trained on images or patients that are now in
    the test set, names its patients with another key, uses clinical columns that are missing now, or is damaged.

    Args:
        root: Root of the registry; None for no registry.
        test: Test images as `tables.examples` gives them.
        classes: Classes of the candidate.
        domain: Serving domain of the candidate.
        judging: Every scan of the test set, as in `overlap.find`. The champion must not have been developed on any of
            them.
        rows: Clinical columns of the test images, in the same order; None where there are none.
        decode: Function that reads the images; None for `inputs.decode`.

    Returns:
        The champion, and the anchor if it is another version, otherwise None.
    """
    if root is None:
        return Champion(None, problem="no registry was given: not compared with any champion"), None
    aliases = registry.read_aliases(root)
    if "champion" not in aliases:
        return Champion(None), None
    current = _scored(root, aliases["champion"], test, classes, domain, judging, rows, decode)
    if aliases["anchor"] == aliases["champion"]:
        return current, None
    return current, _scored(root, aliases["anchor"], test, classes, domain, judging, rows, decode)


def _scored(
    root: Location,
    version: int,
    test: pd.DataFrame,
    classes: Classes,
    domain: str,
    judging: pd.DataFrame,
    rows: pd.DataFrame | None,
    decode: "Decode | None",
) -> Champion:
    """Score a version on the candidate's test images. The arguments are those of `rivals`."""
    from thyroid.model import inputs  # imports TensorFlow, which checking the options of a run does not need

    folder = registry.locate(root, str(version))  # outside try: an unreachable registry must not refuse the candidate
    try:
        registry.check(root, folder)
        facts = artefacts.verify(folder, (*_NEEDED, "serving_domain", "image_size"))
        own = kinds.of(facts)
        if own != classes:
            return Champion(version, problem=f"it tells {own} apart, not {classes}")
        if facts["serving_domain"] != domain:
            return Champion(
                version,
                problem=f"it serves {facts['serving_domain']} images and the candidate {domain} "
                "ones (set --serving-domain)",
            )
        learnt = changes.scans_of(folder)
        seen = overlap.find(root, learnt[learnt["split"] != "test"], judging)
        if seen.scans:
            known = f"{seen.scans} scans of this test set, or their patients, were among its development scans"
            return Champion(version, problem=f"{known} ({seen.told()})")
        if seen.problem:
            return Champion(version, problem=seen.problem)
        network = artefacts.load_keras(folder / artefacts.MODEL)
        probability = inputs.predict(network, (decode or inputs.decode)(test, facts["image_size"]))
        if "clinical" in facts:
            head = Fusion.of(facts["clinical"])
            columns = [one.name for one in head.encoder.columns]
            if rows is None or not set(columns) <= set(rows):
                return Champion(
                    version, problem=f"it uses the clinical columns {', '.join(columns)}: give clinical.csv"
                )
            probability = head.predict(probability, rows[columns])[0]
    except (InputError, OSError) as error:
        return Champion(version, problem=str(error))
    point = operating_point.of(facts)
    return Champion(version, classes.malignant(point.scale(probability)), point.threshold, note=seen.note)


def decide(
    row: dict[str, Any],
    domain: str,
    test: pd.DataFrame,
    audited: dict[str, Any],
    subgroups: Sequence[dict[str, Any]],
    current: Champion,
    sensitivity: float,
    waive: Sequence[str] = (),
    seed: int = 0,
    clinical: dict[str, Any] | None = None,
    anchor: Champion | None = None,
) -> dict[str, Any]:
    """Decide whether the candidate may replace the champion, and list every criterion.

    Args:
        row: The candidate's row of the ranking as in summary.json: its operating point, and its metrics on validation
            and on test.
        domain: Serving domain.
        test: The candidate's test predictions in this domain: sha256, label, patient and the probability of malignant.
        audited: Facts of `audits.Audits`.
        subgroups: Rows of `subgroups.figures`.
        current: The champion on the same images.
        sensitivity: Sensitivity that the threshold was locked for.
        waive: Names of audits whose failure does not count.
        seed: Seed of the bootstrap.
        clinical: Facts of `clinical_model.Benefit`; None where there is no clinical.csv.
        anchor: The anchor on the same images; None where it is the champion, or there is none.

    Returns:
        decision ("promoted" or "refused"), reasons, criteria, champion and anchor (version or null), comparison and
        anchor_comparison (with the champion and with the anchor; null where there was none), waived (names of
        criteria), test_digest, and ahead_of: the version of the anchor (of the champion, where that is the anchor) if
        the candidate is shown to be better than it, otherwise null.
    """
    figures = row["test"][domain]
    criteria = [
        _size(figures),
        *_every_class(figures),
        _better_than_chance(figures),
        _behind_the_threshold(row["validation"]["malignant_patients"]),
        _sensitivity(figures, sensitivity),
        _specificity(figures),
        _calibration(figures),
    ]
    criteria += _subgroups(subgroups, sensitivity, current)
    threshold = row["operating_point"]["threshold"]
    standing = {
        name: one for name, one in (("champion", current), ("anchor", anchor)) if one and one.version is not None
    }
    comparisons: dict[str, dict[str, Any]] = {}
    for name, rival in standing.items():
        if rival.scores is None:
            what = f"cannot be compared: {rival.problem}; promote by hand once somebody has looked"
            criteria.append(Criterion(f"not inferior to {name} {rival.version}", _ASKED, what, False))
            continue
        comparisons[name], criterion = _not_inferior(test, name, rival, seed)
        criteria += [criterion, _as_specific(test, threshold, name, rival, seed)]
    nearest = "champion" if anchor is None else "anchor"
    ahead = nearest in comparisons and comparisons[nearest]["lowest"] is not None and comparisons[nearest]["lowest"] > 0
    for name in AUDITS:
        passed = _passed(audited, name)
        reason = why_not_judged(audited) if name == "shortcut" else None
        not_run = "could not be run" + (f": {reason}" if reason else "")
        found = audited["findings"].get(name, "nothing found" if passed else not_run)
        criteria.append(Criterion(f"{name} audit", "nothing found", found, passed, not passed and name in waive))
    if clinical is not None:
        criteria.append(_columns(clinical, waive))
    failed = [one for one in criteria if not (one.passed or one.waived)]
    reasons = [f"{one.name}: {one.found}; asked: {one.asked}" for one in failed]
    if not failed:
        reasons = ["every criterion holds" + (" or was waived by name" if any(one.waived for one in criteria) else "")]
        if current.version is None:
            reasons.append(current.problem or "there is no champion yet: the floors alone decide")
    return {
        "decision": "refused" if failed else "promoted",
        "reasons": reasons,
        "criteria": [asdict(one) for one in criteria],
        "champion": current.version,
        "comparison": comparisons.get("champion"),
        "anchor": None if anchor is None else anchor.version,
        "anchor_comparison": comparisons.get("anchor"),
        "ahead_of": standing[nearest].version if ahead else None,
        "waived": [one.name for one in criteria if one.waived],
        "test_digest": test_digest(test),
    }


def _passed(facts: dict[str, Any], name: str) -> bool:
    """Return whether the audit `name` ("shortcut" or "leakage") ran and found nothing."""
    ran = bool(facts["kept"]) if name == "shortcut" else "patients_across_splits" in facts["leakage"]
    return ran and name not in facts["findings"]


def why_not_judged(audited: dict[str, Any]) -> str | None:
    """Return why the shortcuts could not be judged.

    Args:
        audited: Facts of `audits.Audits`.

    Returns:
        The reason in words; None if they were judged, or no reason is known.
    """
    judged = ("blanked_nodule", "model_on_blanked_nodule")
    names = [*(f"{name}, judged" for name in judged), *judged, "whole_image"]
    return (
        None
        if audited["kept"]
        else next((audited["not_measured"][n] for n in names if n in audited["not_measured"]), None)
    )


def _size(figures: dict[str, Any]) -> Criterion:
    benign, malignant = (sum(row) for row in figures["patient_level"]["confusion"])
    return Criterion(
        "size of the test set",
        f"at least {PATIENTS} patients of each class",
        f"{benign} benign and {malignant} malignant patients",
        min(benign, malignant) >= PATIENTS,
    )


def _every_class(figures: dict[str, Any]) -> list[Criterion]:
    """Return the criteria for more than two classes.

    They are enough patients of each class, and a macro AUROC above chance.
    """
    if len(figures["classes"]) == len(CLASSES):
        return []
    few = [f"{name} has {row['patients']}" for name, row in figures["classes"].items() if row["patients"] < PATIENTS]
    macro = figures["macro_auroc"]
    return [
        Criterion(
            "size of every class", f"at least {PATIENTS} test patients", "; ".join(few) if few else "all have", not few
        ),
        Criterion(
            "macro AUROC",
            "lower bound above .5",
            str(metrics.Interval.of(macro)),
            macro["low"] is not None and macro["low"] > 0.5,
        ),
    ]


def given_away(clinical: dict[str, Any] | None) -> list[str]:
    """Return findings that the clinical columns together may be what the label was made from.

    Args:
        clinical: Facts of `clinical_model.Benefit`; None where there is no clinical.csv.

    Returns:
        The findings in words; none where the model uses no columns.
    """
    return [] if clinical is None or not clinical["used"] else clinical["leaks"]["together"]["findings"]


def _columns(facts: dict[str, Any], waive: Sequence[str]) -> Criterion:
    """Return the criterion of the clinical columns.

    A column that gives the class away alone is never used, but several together may still be what the label was made
    from.
    """
    together = given_away(facts)
    found = f"nothing found in {', '.join(facts['used'])}" if facts["used"] else "the model uses none"
    asked = "those that the model uses do not give the class away"
    waived = bool(together) and "clinical" in waive
    return Criterion("clinical columns", asked, "; ".join(together) or found, not together, waived)


def _better_than_chance(figures: dict[str, Any]) -> Criterion:
    auroc = figures["auroc"]
    return Criterion(
        "AUROC",
        "lower bound above .5",
        str(metrics.Interval.of(auroc)),
        auroc["low"] is not None and auroc["low"] > 0.5,
    )


def _sensitivity(figures: dict[str, Any], target: float) -> Criterion:
    """Return the criterion of the sensitivity by patient.

    Patients are the independent units, so the exact bound holds.
    """
    floor = target - SENSITIVITY_SLACK
    missed, caught = figures["patient_level"]["confusion"][POSITIVE]
    malignant = missed + caught
    low, high = metrics.clopper_pearson(caught, malignant)
    return Criterion(
        "sensitivity",
        f"at least {floor:.2f} of malignant test patients at the locked threshold",
        f"{caught} of {malignant} patients, {caught / malignant:.3f} [{low:.3f}, {high:.3f}] ({told_needed(target)})",
        caught / malignant >= floor,
    )


def _behind_the_threshold(patients: int) -> Criterion:
    return Criterion(
        "validation patients behind the threshold",
        f"at least {VALIDATION_PATIENTS} malignant ones",
        f"{patients}",
        patients >= VALIDATION_PATIENTS,
    )


def _specificity(figures: dict[str, Any]) -> Criterion:
    """Return the criterion of the specificity, which is by patient like the sensitivity."""
    name, asked = "specificity", f"at least {SPECIFICITY:.2f} of benign test patients at the locked threshold"
    spared, alarmed = figures["patient_level"]["confusion"][1 - POSITIVE]
    benign = spared + alarmed
    if not benign:
        return Criterion(name, asked, "there is no benign patient", False)
    low, high = metrics.clopper_pearson(spared, benign)
    found = f"{spared} of {benign} patients, {spared / benign:.3f} [{low:.3f}, {high:.3f}]"
    return Criterion(name, asked, found, spared / benign >= SPECIFICITY)


def _as_specific(test: pd.DataFrame, threshold: float, name: str, rival: Champion, seed: int) -> Criterion:
    """Compare the specificities of candidate and rival by patient, each at its own threshold."""
    asked = f"lower bound of the specificity difference above -{SPECIFICITY_MARGIN:.2f}"
    rows = test.assign(malignant=test["label"] == CLASSES[POSITIVE], other=rival.scores)
    patients = rows.groupby("patient").agg({"malignant": "any", SCORE: "mean", "other": "mean"}).reset_index()
    title = f"as specific as {name} {rival.version}"
    if patients["malignant"].all():
        return Criterion(title, asked, "there is no benign patient", False)
    found = metrics.specificity_difference(
        patients["malignant"],
        patients[SCORE] >= threshold,
        rival.calls(patients["other"]),
        patients["patient"].astype(int),
        seed=seed,
    )
    passed = found.low is not None and found.low > -SPECIFICITY_MARGIN
    return Criterion(title, asked, f"{found} by patient, each at its own threshold", passed)


def patients_needed(sensitivity: float) -> int | None:
    """Return how many malignant patients must all be caught for the exact lower bound to reach `sensitivity`.

    Returns None for a sensitivity of 1, which no number of patients can show.
    """
    # Clopper and Pearson's lower bound for n of n is alpha / 2 to the power 1 / n
    return None if sensitivity >= 1 else max(1, math.ceil(math.log((1 - metrics.LEVEL) / 2) / math.log(sensitivity)))


def told_needed(sensitivity: float) -> str:
    """Describe the result of `patients_needed` in words."""
    needed = patients_needed(sensitivity)
    if needed is None:
        return f"no number of patients shows a sensitivity of {sensitivity:.0%}"
    return f"a lower bound of {sensitivity:.2f} takes {needed} patients without a miss"


def _calibration(figures: dict[str, Any]) -> Criterion:
    return Criterion(
        "calibration",
        f"expected calibration error at most {CALIBRATION_CEILING:.2f} above that of perfectly calibrated "
        "probabilities",
        f"{metrics.Interval.of(figures['ece'])}, against {figures['ece_if_calibrated']:.3f} of perfectly calibrated "
        "ones",
        figures["ece"]["value"] - figures["ece_if_calibrated"] <= CALIBRATION_CEILING,
    )


def _subgroups(rows: Sequence[dict[str, Any]], target: float, current: Champion) -> list[Criterion]:
    """Return the criteria of the subgroups: floors and, where the champion was scored, no loss against it.

    The margins are those of all patients. Groups are small, and among many groups some lose by chance. A loss therefore
    counts only if it exceeds the margin and the whole interval of the difference is below 0.
    """
    large = [row for row in rows if not row["small"] and "auroc" in row]
    floor = target - SENSITIVITY_SLACK
    if not large:
        why = "no group is large enough" if rows else "no clinical.csv, or no column of it could be used"
        return [Criterion("subgroups", "floors in every large group", f"not judged: {why}", True)]
    low = [
        f"{row['column']} {row['group']} (AUROC {row['auroc']['value']:.3f}, "
        f"sensitivity {row['sensitivity']['value']:.3f})"
        for row in large
        if row["auroc"]["value"] < SUBGROUP_AUROC or row["sensitivity"]["value"] < floor
    ]
    criteria = [
        Criterion(
            "subgroups",
            f"AUROC at least {SUBGROUP_AUROC:.2f} and sensitivity at least {floor:.2f} in every large group",
            "; ".join(low) if low else f"holds in all {len(large)}",
            not low,
        )
    ]
    both = [row for row in large if "less_champion" in row]
    if both:
        lost = [
            f"{row['column']} {row['group']} ({what} {metrics.Interval.of(row['less_champion'][key])})"
            for row in both
            for key, what, margin in (("auroc", "AUROC", MARGIN), ("specificity", "specificity", SPECIFICITY_MARGIN))
            if row["less_champion"][key]["value"] < -margin and row["less_champion"][key]["high"] < 0
        ]
        criteria.append(
            Criterion(
                f"subgroups against champion {current.version}",
                f"in no large group an AUROC more than {MARGIN:.2f}, or a specificity more than "
                f"{SPECIFICITY_MARGIN:.2f}, below the champion's with the whole interval of the difference below 0",
                "; ".join(lost) if lost else f"holds in all {len(both)}",
                not lost,
            )
        )
    return criteria


_ASKED = f"lower bound of the AUROC difference above -{MARGIN:.2f}"


def _not_inferior(test: pd.DataFrame, name: str, rival: Champion, seed: int) -> tuple[dict[str, Any], Criterion]:
    positive, patient = test["label"] == CLASSES[POSITIVE], test["patient"].astype(int)
    other = rival.scores
    assert other is not None
    bootstrap = metrics.auroc_difference(positive, test[SCORE], other, patient, seed=seed)
    comparison: dict[str, Any] = {
        "champion_auroc": asdict(metrics.auroc(positive, other, patient, seed=seed)),
        "difference": asdict(bootstrap),
    }
    try:
        delong = metrics.delong(positive, test[SCORE], other, patient)
        comparison["delong"] = asdict(delong.difference) | {"z": delong.z, "p": delong.p}
        lows = [bootstrap.low, delong.difference.low]
        told = f"{delong.difference} by DeLong (p {delong.p:.3f})"
    except ValueError as error:
        lows = [bootstrap.low, None]
        told = str(error)
    known = [low for low in lows if low is not None]
    comparison["lowest"] = lowest = min(known) if len(known) == len(lows) else None
    found = f"{bootstrap} by the bootstrap, {told}" + (f"; {rival.note}" if rival.note else "")
    passed = lowest is not None and lowest > -MARGIN
    return comparison, Criterion(f"not inferior to {name} {rival.version}", _ASKED, found, passed)
