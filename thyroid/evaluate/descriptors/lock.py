"""Locks which findings a model gives out: fitted, calibrated and audited on development patients alone.

The findings are told by the features that training left frozen. These never saw a label, so that the out-of-fold
figures of all development patients are honest. The last features have memorised the classes of the training patients,
with which descriptors go together. A warm training that unfreezes fewer blocks than its champion's is an exception,
which is not handled: its frozen part saw the labels of earlier patients.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.metrics import roc_curve

from thyroid.clinical.descriptors_csv import DescriptorTable
from thyroid.evaluate.audits import numbers
from thyroid.evaluate.audits.shortcut import KEPT
from thyroid.evaluate.audits.subject import TOO_FEW, TRAINED_WHOLE, blanked, folds_of
from thyroid.evaluate.descriptors import audit, fit, labelled, tirads
from thyroid.evaluate.descriptors.audit import Evidence, Known, Leaks
from thyroid.evaluate.descriptors.fit import Features, Fitted
from thyroid.evaluate.descriptors.labelled import Finding, Labelled
from thyroid.evaluate.scored import ScoredModel
from thyroid.model.descriptors.head import Head
from thyroid.model.operating_point import lock_threshold
from thyroid.records.model import DescriptorsRecord, FindingRecord

LOWEST_AUROC = 0.6
"""A finding is given out only if the lower bound of its AUROC is above this, on development patients, out of fold."""
ENOUGH = 10
"""Development patients with a value, and without it, without whom nothing is fitted."""
CAUGHT = 0.95
"""Share of the images with a value that its lower limit does not exclude, and of those without it that are not sure."""

_BLOCK = 256  # images that are blanked at once, since they are in memory

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Locked:
    """The findings of a model, before a test image is read.

    Attributes:
        record: What is known of them; nothing is measured on test patients yet.
        table: The labels.
        weight: Weights of all findings that were fitted, withheld ones included, in the order of the record [d, m].
        bias: Their biases [m].
    """

    record: DescriptorsRecord
    table: DescriptorTable
    weight: NDArray[np.float32]
    bias: NDArray[np.float32]

    @property
    def fitted(self) -> list[FindingRecord]:
        """The findings that were fitted, in the order of the columns."""
        return [finding for finding in self.record.findings if finding.threshold is not None]

    @property
    def head(self) -> Head | None:
        """The findings that are given out; None if there are none."""
        given = np.array([finding.given for finding in self.fitted], bool)
        return Head(self.record, self.weight[:, given], self.bias[given]) if given.any() else None


def why_not(winner: ScoredModel) -> str | None:
    """Say in words why a model can tell no descriptors; None if it can.

    Args:
        winner: A model whose network is loaded.
    """
    if winner.training.recipe == "deck":
        return TRAINED_WHOLE
    if not winner.network.has_maps:
        return "the training is of an older release, which did not keep what they need; train again"
    return None


def lock(winner: ScoredModel, table: DescriptorTable | None) -> Locked | None:
    """Fit and audit the findings, and lock their limits. No test image is read.

    Args:
        winner: A model with a locked operating point.
        table: The labels of descriptors; None for none.

    Returns:
        The findings; None without labels, and for a model that can tell none (see `why_not`).
    """
    if table is None or why_not(winner) is not None:
        return None
    data, domain, seed = winner.evaluation.data, winner.evaluation.serving_domain, winner.evaluation.options.seed
    found = labelled.development(data, domain, table, seed)
    images = found.images
    if images.empty:
        return _nothing(winner, table)
    features = _features(winner, found, folds_of(images, seed))
    leaks = audit.leaks(images, table, winner.classes, seed)
    shown = numbers.of_images(images, data.pixels(images, winner.size))
    known = Known(features, images["patient"].to_numpy(int), shown, seed)
    records, fits = [], []
    for finding, truth in labelled.truths(images, table).items():
        judged, fitted = _finding(finding, truth, known, leaks)
        records.append(judged)
        fits += [] if fitted is None else [fitted]
    record = DescriptorsRecord(
        columns=table.columns,
        notes=[*table.notes, *leaks.together],
        images=len(images),
        patients=len(np.unique(known.patient)),
        features=features.exact.shape[1],
        unfrozen=_unfrozen(winner),
        seen=labelled.seen(images, table),
        findings=records,
        word_kappa={},
        tirads=None,
    )
    return _with_tirads(winner, images, record, table, fits)


def _unfrozen(winner: ScoredModel) -> int:
    """Return the number of last blocks in front of which the frozen features are taken."""
    settings = winner.training.settings
    return 1 if settings is None else max(1, settings.unfrozen)


def _nothing(winner: ScoredModel, table: DescriptorTable) -> Locked:
    """Return what is known where no development image has a label."""
    record = DescriptorsRecord(
        columns=table.columns,
        notes=[*table.notes, "no development image has a label"],
        images=0,
        patients=0,
        features=0,
        unfrozen=_unfrozen(winner),
        seen={},
        findings=[],
        word_kappa={},
        tirads=None,
    )
    return Locked(record, table, np.zeros((0, 0), np.float32), np.zeros(0, np.float32))


def _features(winner: ScoredModel, found: Labelled, fold: NDArray[np.int64] | None) -> Features:
    """Run the network's frozen part on the labelled images, their disturbed crops and their surroundings.

    Without folds every image is in fold 0, and nothing can be fitted.
    """
    data, images, network = winner.evaluation.data, found.images, winner.network

    def run(table: pd.DataFrame, doing: str) -> NDArray[np.float32]:
        return network.features(data.pixels(table, winner.size), doing).astype(np.float32)

    exact = run(images, "images with descriptors")
    disturbed = np.zeros((0, exact.shape[1]), np.float32)
    if len(found.disturbed):
        disturbed = run(found.disturbed, "disturbed crops with descriptors")
    surroundings, marked = None, numbers.marked(images)
    if marked is not None:
        surroundings, rows = np.full_like(exact, np.nan), np.flatnonzero(marked)
        for start in range(0, len(rows), _BLOCK):
            some = rows[start : start + _BLOCK]
            pixels = blanked(data, images.iloc[some], winner.evaluation.serving_domain, winner.size)
            surroundings[some] = network.features(pixels, "images with descriptors, nodule blanked")
    folds = np.zeros(len(images), np.int64) if fold is None else fold
    return Features(exact, disturbed, found.disturbed["place"].to_numpy(np.intp), folds, surroundings)


def _finding(finding: Finding, truth: Array, images: Known, leaks: Leaks) -> tuple[FindingRecord, Fitted | None]:
    """Fit and judge one finding.

    Args:
        finding: Descriptor and value.
        truth: Whether each image has the value: 1 or 0, NaN if it is not known [n].
        images: The images.
        leaks: What the columns of the labels give away.

    Returns:
        What is known of it, and the finding itself if it could be fitted.
    """
    descriptor, value = finding
    counts = {
        "patients_with": len(np.unique(images.patient[truth == 1])),
        "patients_without": len(np.unique(images.patient[truth == 0])),
    }
    fitted = None
    if min(counts.values()) >= ENOUGH and len(np.unique(images.features.fold)) > 1:
        fitted = fit.finding(images.features, truth)
    named: dict[str, Any] = {"descriptor": descriptor, "value": value, **counts, "test": None, "largest_difference": {}}
    if fitted is None:
        detail = TOO_FEW
        if min(counts.values()) < ENOUGH:
            detail = (
                f"{counts['patients_with']} development patients with it and {counts['patients_without']} without it, "
                f"and {ENOUGH} of each are needed"
            )
        named |= dict.fromkeys(("exclude", "threshold", "sure", "development", "blanked", "kept"))
        return FindingRecord(**named, shortcuts={}, given=False, why="too_few", detail=detail), None
    evidence = audit.evidence(fitted, truth, images)
    known = np.isfinite(truth) & np.isfinite(fitted.probability)
    exclude, threshold, sure = limits(truth[known] == 1, fitted.probability[known])
    why, detail = _verdict(descriptor, evidence, leaks)
    record = FindingRecord(
        **named,
        given=why is None,
        why=why,
        detail=detail,
        exclude=exclude,
        threshold=threshold,
        sure=sure,
        development=evidence.development,
        blanked=evidence.blanked,
        kept=evidence.kept,
        shortcuts=evidence.shortcuts,
    )
    return record, fitted


def limits(positive: NDArray[np.bool_], probability: Array) -> tuple[float, float, float]:
    """Return the probabilities below which a value is excluded, from which it is present, and from which it is sure.

    Presence begins at the largest sum of sensitivity and specificity (Youden 1950). Of the images with the value,
    `CAUGHT` are not excluded; of those without it, as many are not sure. Each limit is halfway between two images.

    Args:
        positive: Whether an image has the value [n], both at least once.
        probability: Its probability [n].
    """
    false, true, place = roc_curve(positive, probability, drop_intermediate=False)
    last = place[1:][np.argmax(true[1:] - false[1:])]
    lower = probability[probability < last]
    threshold = float((last + lower.max()) / 2) if len(lower) else float(last)
    exclude = min(threshold, lock_threshold(positive, probability, CAUGHT))
    return exclude, threshold, max(threshold, 1 - lock_threshold(~positive, 1 - probability, CAUGHT))


def _verdict(descriptor: str, evidence: Evidence, leaks: Leaks) -> tuple[Any, str]:
    """Return why a finding is withheld, as a word and in words; None and nothing if it is given out."""
    found = evidence.development
    if descriptor in leaks.unknown:
        return "too_few", f"the column could not be checked for target leakage: {leaks.unknown[descriptor]}"
    if descriptor in leaks.columns:
        return "gives_class_away", leaks.columns[descriptor]
    if found.low is None or found.low <= LOWEST_AUROC:
        return "auroc", f"its AUROC is {found}, and a lower bound above {LOWEST_AUROC:g} is needed"
    if evidence.blanked is not None and (evidence.kept is None or evidence.kept > KEPT):
        kept = "all" if evidence.kept is None else f"{evidence.kept:.0%}"
        return "surroundings", (
            f"without the nodule it reaches AUROC {evidence.blanked}, {kept} of the distance from chance, and at most "
            f"{KEPT:.0%} may be kept"
        )
    return None, ""


def _with_tirads(
    winner: ScoredModel,
    images: pd.DataFrame,
    record: DescriptorsRecord,
    table: DescriptorTable,
    fits: Sequence[Fitted],
) -> Locked:
    """Lock what the findings given out mean for TI-RADS."""
    d, m = record.features, len(fits)
    weight = np.stack([one.weight for one in fits], axis=1) if fits else np.zeros((d, m))
    bias = np.array([one.bias for one in fits])
    locked = Locked(record, table, weight.astype(np.float32), bias.astype(np.float32))
    head = locked.head
    if head is None:
        return locked
    given = [fitted for finding, fitted in zip(locked.fitted, fits, strict=True) if finding.given]
    points = tirads.points(head, np.stack([one.probability for one in given], axis=1))
    chosen = tirads.lock(winner, head, images, points)
    if chosen is None:
        return locked
    return Locked(tirads.with_cut(head, *chosen).record, table, locked.weight, locked.bias)
