"""Measures the locked findings on test patients, who chose nothing."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import expit

from thyroid import metrics
from thyroid.data.filenames import CLASSES, SCORE
from thyroid.evaluate.descriptors import labelled, tirads
from thyroid.evaluate.descriptors.labelled import MOST, Finding
from thyroid.evaluate.descriptors.lock import Locked
from thyroid.evaluate.scored import ScoredModel
from thyroid.metrics import Interval
from thyroid.model.descriptors.head import Head
from thyroid.model.novelty import fit
from thyroid.records.model import DescriptorsRecord, FindingTest, TiradsRecord
from thyroid.tirads import FOCI, NONE, Points
from thyroid.tirads import points as points_of

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Tested:
    """What the findings tell of test images.

    Attributes:
        record: Content of the field `descriptors` of evaluation.json and model.json.
        findings: By finding that was fitted, a row for each labelled test image: positive, probability and patient.
        points: A row for each test image: label, patient, low and high (points that are possible), and labelled_low and
            labelled_high (those of its words, NaN where a word is missing). Empty if nothing is given out.
    """

    record: DescriptorsRecord
    findings: dict[Finding, pd.DataFrame]
    points: pd.DataFrame = field(default_factory=pd.DataFrame)


def measure(winner: ScoredModel, locked: Locked, forms: Mapping[str, NDArray[np.float32]]) -> Tested:
    """Measure how well the findings are told on test images, and how far TI-RADS and the decisions agree.

    Args:
        winner: The winner, scored on the test set.
        locked: Its findings, locked before.
        forms: The network's frozen features of the test images of the serving domain [n, d], by other form than Keras.
            Empty if no finding is given out.
    """
    evaluation, seed = winner.evaluation, winner.evaluation.options.seed
    if not locked.fitted:
        return Tested(locked.record, {})
    table = evaluation.examples(evaluation.serving_domain, "test")
    drawn = fit.draw(table["patient"].to_numpy(int), seed, MOST)
    images = table.iloc[drawn].reset_index(drop=True)
    pixels = evaluation.data.pixels(images, winner.size)
    features = winner.network.features(pixels, "test images").astype(np.float32)
    known = labelled.of_scans(evaluation.data, evaluation.serving_domain, locked.table)
    words = images.assign(labelled=images["name"].isin(known["name"]))
    probability = expit(features @ locked.weight.astype(np.float64) + locked.bias)
    found = _findings(words, locked, probability)
    record = _tested(locked, found, seed)
    head = locked.head
    if head is None:
        return Tested(record, found)
    own = head.probabilities(features)
    record = _with_differences(record, head, own, {form: answer[drawn] for form, answer in forms.items()})
    record = record.model_copy(update={"word_kappa": _word_kappa(head, words, locked, own, seed)})
    points = _points(head, words, locked, own)
    return Tested(_with_tirads(winner, head, record, points, seed), found, points)


def _findings(images: pd.DataFrame, locked: Locked, probability: Array) -> dict[Finding, pd.DataFrame]:
    """Return the labelled images of each finding that was fitted: positive, probability and patient."""
    found = {}
    for one, column in zip(locked.fitted, probability.T, strict=True):
        truth = locked.table.labels(images["path"].tolist(), one.descriptor, one.value)
        rows = np.isfinite(truth) & images["labelled"].to_numpy(bool)
        found[one.descriptor, one.value] = pd.DataFrame(
            {
                "positive": truth[rows] == 1,
                "probability": column[rows],
                "patient": images["patient"].to_numpy(int)[rows],
            }
        )
    return found


def _tested(locked: Locked, found: Mapping[Finding, pd.DataFrame], seed: int) -> DescriptorsRecord:
    """Add the figures on test patients to the findings that were fitted."""
    findings = []
    for finding in locked.record.findings:
        rows = found.get((finding.descriptor, finding.value))
        if rows is not None and len(rows) and finding.threshold is not None:
            finding = finding.model_copy(update={"test": figures(rows, finding.threshold, seed)})
        findings.append(finding)
    return locked.record.model_copy(update={"findings": findings})


def figures(rows: pd.DataFrame, threshold: float, seed: int) -> FindingTest:
    """Measure one finding.

    Args:
        rows: At least one image: positive, probability and patient.
        threshold: Probability from which it is told to be there.
        seed: Seed of the bootstrap.
    """
    positive, probability, patient = (rows[name].to_numpy() for name in ("positive", "probability", "patient"))
    draws, called = metrics.Draws(patient, seed=seed), probability >= threshold
    both: dict[str, Any] = dict.fromkeys(("auroc", "kappa", "ece", "ece_if_calibrated"))
    if len(np.unique(positive)) == len(CLASSES):
        kappa = metrics.kappa_draws(draws, positive.astype(int), called.astype(int), patient, classes=2, ordered=False)
        both = {
            "auroc": metrics.auroc_interval(draws, positive, probability, patient),
            "kappa": metrics.interval(kappa),
            "ece": float(metrics.ece_draws(draws, positive, probability, patient)[0]),
            "ece_if_calibrated": metrics.ece_if_calibrated(probability, patient, seed=seed),
        }
    at = metrics.at_threshold(draws, positive, called, patient, 0.5)
    return FindingTest(
        images=len(rows),
        patients=len(np.unique(patient)),
        positive_patients=len(np.unique(patient[positive])),
        sensitivity=at.get("sensitivity"),
        specificity=at.get("specificity"),
        **both,
    )


def _with_differences(
    record: DescriptorsRecord, head: Head, own: Array, forms: Mapping[str, NDArray[np.float32]]
) -> DescriptorsRecord:
    """Add how far the probabilities of each form are from those of Keras to the findings that are given out."""
    largest = {form: np.abs(head.probabilities(features) - own).max(axis=0) for form, features in forms.items()}
    findings, column = [], 0
    for finding in record.findings:
        if finding.given:
            differences = {form: float(values[column]) for form, values in largest.items()}
            finding = finding.model_copy(update={"largest_difference": differences})
            column += 1
        findings.append(finding)
    return record.model_copy(update={"findings": findings})


def _word_kappa(head: Head, images: pd.DataFrame, locked: Locked, probability: Array, seed: int) -> dict[str, Interval]:
    """Return kappa of the labelled and the told word, by descriptor of whose words at least two are given out.

    The told word is that of the present finding with the highest probability. Images without one count as a word of
    their own.
    """
    found = {}
    present = probability >= np.array([one.threshold for one in head.given], float)
    for descriptor, values in head.record.seen.items():
        places = [place for place, one in enumerate(head.given) if one.descriptor == descriptor]
        rows, cells = _words(images, locked, descriptor)
        if descriptor == FOCI or len(places) < 2 or not len(rows):
            continue
        index = {value: number for number, value in enumerate(values)}
        # a word that no development image has is one that cannot be told
        truth = np.array([index.get(next(iter(cell)), len(values) + 1) for cell in cells])
        scores = np.where(present[rows][:, places], probability[rows][:, places], -1.0)
        told = np.array([index[head.given[place].value] for place in places])[scores.argmax(axis=1)]
        told = np.where(scores.max(axis=1) < 0, len(values), told)
        patient = images["patient"].to_numpy(int)[rows]
        draws = metrics.Draws(patient, seed=seed)
        kappa = metrics.kappa_draws(draws, truth, told, patient, classes=len(values) + 2, ordered=False)
        if len(np.unique(truth)) > 1:
            found[descriptor] = metrics.interval(kappa)
    return found


def _words(images: pd.DataFrame, locked: Locked, descriptor: str) -> tuple[NDArray[np.intp], list[frozenset[str]]]:
    """Return the places of the images that have a word of a descriptor, and its values."""
    cells = locked.table.rows[descriptor].loc[images["path"]].tolist()
    places = [place for place, cell in enumerate(cells) if cell is not None and images["labelled"].iloc[place]]
    return np.array(places, np.intp), [cells[place] for place in places]


def _points(head: Head, images: pd.DataFrame, locked: Locked, probability: Array) -> pd.DataFrame:
    """Return the points that are possible for each image, beside those of its words if it has one of each descriptor.

    A descriptor without any label counts as unknown on both sides.
    """
    table = tirads.with_bounds(images, tirads.points(head, probability))
    known: dict[int, dict[str, frozenset[str]]] = {}
    for descriptor in head.record.seen:
        rows, cells = _words(images, locked, descriptor)
        for place, cell in zip(rows.tolist(), cells, strict=True):
            known.setdefault(place, {})[descriptor] = cell
    low, high = np.full(len(table), np.nan), np.full(len(table), np.nan)
    for place, words in known.items():
        if len(words) == len(head.record.seen):
            worth = _labelled_points(words)
            low[place], high[place] = worth.low, worth.high
    return table.assign(labelled_low=low, labelled_high=high)


def _labelled_points(words: Mapping[str, frozenset[str]]) -> Points:
    """Return the points of an image's words."""
    foci = words.get(FOCI, frozenset()) - {NONE}
    return points_of({**words, FOCI: foci} if FOCI in words else words, foci)


def _with_tirads(
    winner: ScoredModel, head: Head, record: DescriptorsRecord, points: pd.DataFrame, seed: int
) -> DescriptorsRecord:
    """Add how often the points of TI-RADS are right, and how often the decisions are where the two disagree."""
    if record.tirads is None:
        return record
    tested = winner.tested(winner.evaluation.serving_domain).set_index("file")[SCORE]
    scored = points.assign(**{SCORE: tested.loc[points["name"]].to_numpy()})
    compared = tirads.compare(winner, head, scored)
    full = points[points["labelled_low"].notna()]
    inside = (full["labelled_low"] >= full["low"]) & (full["labelled_high"] <= full["high"])
    wrong, otherwise = compared.shares
    measured = TiradsRecord(
        cut=record.tirads.cut,
        doubts=record.tirads.doubts,
        why_not=record.tirads.why_not,
        covered=metrics.patient_mean(inside, full["patient"].astype(int), seed=seed) if len(full) else None,
        mean_width=float((points["high"] - points["low"]).mean()),
        compared=compared.patients,
        disagree=compared.disagree,
        wrong_if_disagree=wrong,
        wrong_if_agree=otherwise,
    )
    return record.model_copy(update={"tirads": measured})
