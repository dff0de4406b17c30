"""Finds target leakage: clinical columns that give the class away, each alone or together.

Research use only. Patients are the units: folds and draws keep the rows of one patient together.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.stats import entropy
from sklearn.ensemble import RandomForestClassifier, VotingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.tree import DecisionTreeClassifier
from threadpoolctl import threadpool_limits

from thyroid import metrics
from thyroid.clinical import fusion
from thyroid.clinical.association import is_number
from thyroid.clinical.clinical_csv import FEW_VALUES, MINIMUM
from thyroid.clinical.encoder import Encoder
from thyroid.errors import InputError
from thyroid.records.clinical import ColumnLeakage, JointLeakage, Leakage

GIVES_AWAY = 0.9
"""A column gives the class away if its macro AUROC, alone and out of fold, is above this with its whole interval."""
MISSING_GIVES_AWAY = 0.75
"""The same bound for whether a value is missing, which is not a property of a nodule."""
TOGETHER = 0.85
"""The same bound for all other columns together.

Clinical columns are not expected to predict a biopsy's result this well, but the columns that a grade was derived from
predict the grade this well.
"""
PURE = 0.9
"""A column gives the class away if Theil's U between the two is at least this, in either direction.

Theil's U is the share of the entropy of one side that the other side explains.
"""
LEAK_DRAWS = 1000
_TRUTHS = {"auroc": "the class", "side_auroc": "benign or malignant"}


@dataclass(frozen=True)
class _OutOfFold:
    """Measures columns by predictions for patients that the predicting model did not learn from.

    Attributes:
        patients: Patient number of every row [n].
        fold: Fold of every row [n].
        draws: Bootstrap draws of the patients.
        seed: Seed of the models.
    """

    patients: NDArray[Any]
    fold: NDArray[np.int64]
    draws: metrics.Draws
    seed: int

    def tree(self, columns: pd.DataFrame, truth: NDArray[np.int64] | None) -> metrics.Interval | None:
        """Return the macro AUROC of a decision tree on the columns, or None without a truth."""
        return self._auroc(columns, truth, DecisionTreeClassifier(min_samples_leaf=MINIMUM, random_state=self.seed))

    def ensemble(self, columns: pd.DataFrame, truth: NDArray[np.int64] | None) -> metrics.Interval | None:
        """Return the macro AUROC of the mean of a random forest and a regression, or None without a truth."""
        forest = RandomForestClassifier(50, min_samples_leaf=2, random_state=self.seed)
        regression = LogisticRegression(max_iter=1000)
        both = VotingClassifier([("forest", forest), ("regression", regression)], voting="soft")
        return self._auroc(columns, truth, both)

    def _auroc(self, columns: pd.DataFrame, truth: NDArray[np.int64] | None, model: Any) -> metrics.Interval | None:
        if truth is None:
            return None
        score = np.zeros((len(truth), truth.max() + 1))
        for number in np.unique(self.fold):
            held = self.fold == number
            encoder = Encoder.fit(columns[~held], self.patients[~held])
            if encoder.features and len(np.unique(truth[~held])) > 1:
                model.fit(encoder.encode(columns[~held])[0], truth[~held])
                score[np.ix_(held, model.classes_)] = model.predict_proba(encoder.encode(columns[held])[0])
        return metrics.macro_auroc(self.draws, truth, score, self.patients, self.fold)


@threadpool_limits.wrap(limits=1)  # threads slow down work on such small matrices
def find(
    rows: pd.DataFrame,
    y: ArrayLike,
    patient: ArrayLike,
    classes: Sequence[str],
    *,
    positive: ArrayLike | None = None,
    seed: int = 0,
) -> Leakage:
    """Find columns that give the class away, each alone and then the others together.

    A column alone is measured by the macro AUROC of a decision tree on its values, and of one on whether they are
    missing, out of fold by patient. If at least `metrics.FEW` patients are not of the most frequent class or value, it
    is also measured how far the column's known values determine the class, and the class the values (Theil's U, 1970).
    All columns that were not found alone are measured together, by the mean of a random forest and a regression. If a
    side, benign or malignant, has several classes, the side is predicted, too.

    Args:
        rows: Rows of `clinical_csv.join` [n].
        y: Class, int in range(len(classes)) [n].
        patient: Patient number [n].
        classes: Names of the classes.
        positive: Which classes count as malignant, bool [n_classes]. None to leave sides out.
        seed: Seed of folds, trees and bootstrap.

    Returns:
        What each column, and the others together, say about the class. A metric is None if it cannot be measured.

    Raises:
        InputError: There is only one class, or there are too few patients for folds.
    """
    target, patients = np.asarray(y), np.asarray(patient)
    if len(np.unique(target)) < 2:
        raise InputError("clinical: all rows are of one class, so no column can give it away")
    side = _sides(target, positive)
    fold = fusion.deal(target, patients, fusion.INNER, seed)
    out_of_fold = _OutOfFold(patients, fold, metrics.Draws(patients, LEAK_DRAWS, seed), seed)
    alone = [_measure_alone(rows[name], target, side, out_of_fold) for name in rows.columns]
    others = [row.column for row in alone if row.finding is None]
    together = _measure_together(rows[others], target, side, out_of_fold)
    findings = [row.finding for row in alone if row.finding is not None]
    return Leakage(columns=alone, together=together, findings=findings + together.findings)


def _sides(target: NDArray[np.int64], positive: ArrayLike | None) -> NDArray[np.int64] | None:
    """Return the side of every row, or None if there is a single side or if the sides are the classes."""
    if positive is None:
        return None
    side = np.asarray(positive, bool)[target].astype(int)
    return None if len(np.unique(side)) < 2 or len(np.unique(target)) == 2 else side


def _measure_alone(
    values: pd.Series, target: NDArray[np.int64], side: NDArray[np.int64] | None, out_of_fold: _OutOfFold
) -> ColumnLeakage:
    """Return what a column alone says about the class."""
    gone = values.isna()
    row: dict[str, Any] = {
        "column": values.name,
        "auroc": out_of_fold.tree(values.to_frame(), target),
        "side_auroc": out_of_fold.tree(values.to_frame(), side),
        "missing_auroc": out_of_fold.tree(gone.astype(float).to_frame(), target)
        if 0 < gone.sum() < len(gone)
        else None,
        **_fixes(values, target, out_of_fold.patients),
    }
    return ColumnLeakage(**row, finding=_finding(row))


def _measure_together(
    columns: pd.DataFrame, target: NDArray[np.int64], side: NDArray[np.int64] | None, out_of_fold: _OutOfFold
) -> JointLeakage:
    """Return what several columns together say about the class."""
    names = list(columns.columns)
    measured = {
        name: out_of_fold.ensemble(columns, truth) if len(names) > 1 else None
        for name, truth in (("auroc", target), ("side_auroc", side))
    }
    findings = [
        f"together the columns {', '.join(names)} nearly define {what} (macro AUROC {measured[name]} out of fold): "
        "they may be what the label was made from"
        for name, what in _TRUTHS.items()
        if _above(measured[name], TOGETHER)
    ]
    return JointLeakage(columns=names, auroc=measured["auroc"], side_auroc=measured["side_auroc"], findings=findings)


def _fixes(values: pd.Series, y: NDArray[np.int64], patient: NDArray[Any]) -> dict[str, float | None]:
    """Return Theil's U in both directions over known values.

    It is None if few patients are outside the most frequent class or value.
    """
    known = values.notna().to_numpy()
    values, y, patient = values[known], y[known], patient[known]
    if is_number(values) and values.nunique() > FEW_VALUES:
        values = pd.qcut(values, 10, labels=False, duplicates="drop")
    codes, target = pd.factorize(values.to_numpy())[0], pd.factorize(y)[0]
    units = pd.Series(patient)

    def enough(groups: NDArray[np.int64]) -> bool:
        sizes = units.groupby(groups).nunique()
        return len(sizes) > 1 and sizes.sum() - sizes.max() >= metrics.FEW

    common = units.groupby(codes).transform("nunique").to_numpy() >= MINIMUM if len(codes) else np.zeros(0, bool)
    codes = np.where(common, codes, -1)  # a value that few patients have determines their class
    counts = pd.crosstab(codes, target).to_numpy(float)
    both = entropy(counts.ravel()) if counts.size else 0.0

    def explained(axis: int) -> float:
        """Return the share of one side's entropy that the other side explains."""
        own, other = (float(entropy(counts.sum(axis=summed))) for summed in (axis, 1 - axis))
        return (own + other - float(both)) / own if own > 0 else 0.0

    sure = enough(codes) and enough(target)
    return {"fixes_class": explained(0) if sure else None, "fixed_by_class": explained(1) if sure else None}


def _above(found: metrics.Interval | None, bound: float) -> bool:
    return found is not None and found.low is not None and found.low > bound


def _finding(row: Mapping[str, Any]) -> str | None:
    """Describe in words how a column gives the class away."""
    name, why = row["column"], []
    for key, what in _TRUTHS.items():
        if _above(row[key], GIVES_AWAY):
            why.append(f"alone it predicts {what} with a macro AUROC of {row[key]} out of fold")
    if (row["fixes_class"] or 0) >= PURE:
        why.append(f"its values leave {max(0.0, 1 - row['fixes_class']):.0%} of the class open")
    if (row["fixed_by_class"] or 0) >= PURE:
        why.append(f"the class leaves {max(0.0, 1 - row['fixed_by_class']):.0%} of its values open")
    if _above(row["missing_auroc"], MISSING_GIVES_AWAY):
        why.append(f"whether it is missing predicts the class with a macro AUROC of {row['missing_auroc']} out of fold")
    if not why:
        return None
    return f"column {name} gives the class away: {'; '.join(why)}. Leave it out unless it is known before the diagnosis"
