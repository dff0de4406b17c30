"""Audits the findings: whether a column gives the class away, and whether the evidence is in the nodule.

They are the questions that malignancy is asked (`thyroid.evaluate.audits`), on development patients, out of fold. A
finding that fails is withheld; the gate does not refuse the model for it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from thyroid import metrics, tirads
from thyroid.clinical import leakage
from thyroid.clinical.descriptors_csv import DescriptorTable
from thyroid.data.classes import Classes
from thyroid.data.filenames import CLASSES, POSITIVE
from thyroid.errors import InputError
from thyroid.evaluate.audits import head
from thyroid.evaluate.descriptors.fit import Features, Fitted
from thyroid.metrics import Interval

SHORTCUTS = ("scan_area_geometry", "patient_number", "box_size", "grey_levels")
"""Numbers by which a finding may be told without the network. They are shown and withhold nothing: the sides of a box
are the nodule's shape, and some of the grey levels are its echo."""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Leaks:
    """Which columns of the labels give the class away.

    Attributes:
        columns: Finding in words by descriptor, for columns that do.
        unknown: Why it could not be found out, by descriptor.
        together: What the other columns say of the class together, in words.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    unknown: Mapping[str, str] = field(default_factory=dict)
    together: tuple[str, ...] = ()


def leaks(images: pd.DataFrame, table: DescriptorTable, classes: Classes, seed: int) -> Leaks:
    """Search the words for target leakage, each column on the images that have a word.

    Whether a word is missing may depend on the class and gives nothing away: no image without a word is learnt from.

    Args:
        images: Labelled development images.
        table: The labels.
        classes: Classes of the data version.
        seed: Seed of folds, trees and bootstrap.
    """
    words = pd.DataFrame(index=images.index)
    for descriptor, column in table.columns.items():
        cells = table.rows[descriptor].loc[images["path"]]
        words[column] = [None if cell is None else tirads.cell(descriptor, cell) for cell in cells]
    truth, patient = classes.index(images["class"]), images["patient"].to_numpy(int)
    found: dict[str, str] = {}
    unknown: dict[str, str] = {}
    for descriptor, column in table.columns.items():
        known = words[column].notna().to_numpy()
        try:
            alone = leakage.find(
                words.loc[known, [column]],
                truth[known],
                patient[known],
                classes.names,
                positive=classes.positive,
                seed=seed,
            )
        except InputError as error:
            unknown[descriptor] = str(error).removeprefix("clinical: ")
            continue
        if alone.findings:
            found[descriptor] = "; ".join(alone.findings)
    left = [column for descriptor, column in table.columns.items() if descriptor not in {*found, *unknown}]
    if len(left) < 2:
        return Leaks(found, unknown)
    try:
        all_ = leakage.find(words[left], truth, patient, classes.names, positive=classes.positive, seed=seed)
    except InputError:
        return Leaks(found, unknown)
    return Leaks(found, unknown, () if all_.together is None else tuple(all_.together.findings))


@dataclass(frozen=True)
class Evidence:
    """Where the evidence of a finding is.

    Attributes:
        development: AUROC on development patients, out of fold.
        blanked: The same of the surroundings alone; None where it was not measured.
        kept: Share of the distance from .5 that is kept without the nodule; None where it was not measured, or there is
            no distance to keep.
        shortcuts: AUROC of a few numbers, by name.
    """

    development: Interval
    blanked: Interval | None
    kept: float | None
    shortcuts: dict[str, Interval]


@dataclass(frozen=True, eq=False)
class Known:
    """What is known of the labelled development images.

    Attributes:
        features: Their frozen features and folds.
        patient: Patient of each image [n].
        numbers: Numbers of each image by name of the shortcut, NaN where they are not known [n, k].
        seed: Seed of the bootstrap.
    """

    features: Features
    patient: NDArray[np.int64]
    numbers: Mapping[str, Array]
    seed: int


def evidence(fitted: Fitted, truth: Array, images: Known) -> Evidence:
    """Measure how well a finding is told with the nodule, without it, and by a few numbers.

    Args:
        fitted: The finding.
        truth: Whether each image has the value: 1 or 0, NaN if it is not known [n].
        images: The images.
    """
    every_fold = images.features.fold

    def auroc(score: Array, rows: NDArray[np.bool_]) -> Interval:
        fold, patient = every_fold[rows], images.patient[rows]
        return metrics.auroc(truth[rows] == 1, score[rows], patient, seed=images.seed, fold=fold)

    known = np.isfinite(truth) & np.isfinite(fitted.probability)
    development = auroc(fitted.probability, known)
    marked = known & np.isfinite(fitted.blanked)
    blanked, kept = None, None
    if len(np.unique(truth[marked])) == len(CLASSES):
        blanked, whole = auroc(fitted.blanked, marked), auroc(fitted.probability, marked)
        kept = (blanked.value - 0.5) / (whole.value - 0.5) if whole.value > 0.5 else None
    found: dict[str, Interval] = {}
    for name in SHORTCUTS:
        numbers = images.numbers.get(name)
        if numbers is None:
            continue
        rows = known & np.isfinite(numbers).all(axis=1)
        if len(np.unique(truth[rows])) < len(CLASSES):
            continue
        side = np.where(truth[rows] == 1, CLASSES[POSITIVE], CLASSES[1 - POSITIVE])
        answer = head.out_of_fold(numbers[rows], side, every_fold[rows], splines=True)
        if answer is not None:
            score = np.full(len(truth), np.nan)
            score[rows] = answer
            found[name] = auroc(score, rows)
    return Evidence(development, blanked, kept, found)
