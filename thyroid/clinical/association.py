"""Describes clinical columns and tests their association with the class.

Research use only. Patients are the units: tables and tests combine the rows of one patient.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.stats import chi2_contingency, kruskal, rankdata

from thyroid import metrics
from thyroid.records.clinical import Association, ColumnAssociation

EXPECTED = 5.0
"""Expected number of patients in a cell of a table below which p values come from permutations.

This rule is stricter than Cochran's (1954).
"""
PERMUTATIONS = 4999
EFFECT_DRAWS = 500

Array = NDArray[np.float64]


def describe(
    rows: pd.DataFrame, y: ArrayLike, patient: ArrayLike, classes: Sequence[str], seed: int = 0
) -> Association:
    """Describe every column and its association with the class.

    The rows of a patient become one: a number becomes the mean, a category the most frequent one, and the class the
    last one in the order of `classes`. Numbers are tested by Kruskal and Wallis with epsilon squared as the effect.
    Categories are tested by chi squared with bias-corrected Cramér's V (Bergsma 2013, 10.1016/j.jkss.2012.10.002).
    Whether a value is missing is tested as a category. Intervals are basic bootstrap intervals over patients
    (2 x value - percentile), because draws overstate an effect. P values are corrected by Holm's procedure (1979) over
    all tests of the table. It controls the family-wise error whichever other columns are associated, and does not need
    independent tests.

    Args:
        rows: Rows of `clinical_csv.join` [n].
        y: Class, int in range(len(classes)) [n].
        patient: Patient number [n].
        classes: Names of the classes.
        seed: Seed of permutations and bootstrap.

    Returns:
        The association of all columns. A p is None if there is nothing to test.
    """
    table, target = _by_patient(rows, np.asarray(y), np.asarray(patient))
    rng = np.random.default_rng(seed)
    sizes = np.bincount(target, minlength=len(classes))
    found = []
    for name in table:
        values = table[name]
        known = values.notna().to_numpy()
        number = is_number(values)
        test, p, effect = _test(values[known].to_numpy(), target[known], number, rng)
        row: dict[str, Any] = {"column": name, "kind": "number" if number else "category", "known": int(known.sum())}
        row["missing"] = {
            "share": float((~known).mean()),
            "by_class": {
                class_name: float((~known)[target == c].mean()) if sizes[c] else None
                for c, class_name in enumerate(classes)
            },
            "p": _test(known, target, False, rng, draws=0)[1],
        }
        row["distribution"] = {
            class_name: _distribution(values[known & (target == c)], number) for c, class_name in enumerate(classes)
        }
        found.append(row | {"effect": effect, "test": test, "p": p})
    tests = [tested for row in found for tested in (row, row["missing"])]
    for tested, corrected in zip(tests, holm([tested["p"] for tested in tests]), strict=True):
        tested["p_corrected"] = corrected
    return Association(
        patients=len(table),
        classes=list(classes),
        by_class=dict(zip(classes, sizes.tolist(), strict=True)),
        correction="Holm",
        columns=[ColumnAssociation.model_validate(row) for row in found],
    )


def _by_patient(
    rows: pd.DataFrame, y: NDArray[np.int64], patient: NDArray[Any]
) -> tuple[pd.DataFrame, NDArray[np.int64]]:
    """Return a table with one row per patient, and the patients' classes."""

    def most(values: pd.Series) -> pd.Series:
        counts = pd.crosstab(patient, values.to_numpy())
        return counts.idxmax(axis=1) if counts.size else pd.Series(dtype=object)

    groups = rows.groupby(patient)
    columns: dict[Any, pd.Series] = {
        name: groups[name].mean() if is_number(rows[name]) else most(rows[name]) for name in rows.columns
    }
    target = pd.Series(y).groupby(patient).max()
    table = pd.DataFrame({name: values.reindex(target.index) for name, values in columns.items()}, index=target.index)
    return table, target.to_numpy()


def is_number(values: pd.Series) -> bool:
    """Return whether a column holds numbers; all others are categories."""
    return pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)


def _distribution(values: pd.Series, number: bool) -> Any:
    if not number:
        return {str(value): int(count) for value, count in values.value_counts().items()}
    return np.quantile(values.to_numpy(float), (0.05, 0.25, 0.5, 0.75, 0.95)).tolist() if len(values) else None


def _test(
    values: NDArray[Any], y: NDArray[np.int64], number: bool, rng: np.random.Generator, draws: int = EFFECT_DRAWS
) -> tuple[str | None, float | None, dict[str, Any] | None]:
    """Return test, p and effect of the values [n] of a column, none of which is missing."""
    code, target = pd.factorize(values, sort=number)[0], pd.factorize(y)[0]
    value, counts = _effect(code, target, number)
    if min(counts.shape) < 2:
        return None, None, None
    if number:
        few, name, test = counts.sum(axis=0).min() < EXPECTED, "epsilon squared", "Kruskal-Wallis"
        p = float(kruskal(*(values[target == c] for c in range(counts.shape[1]))).pvalue)
        columns = rankdata(values)[:, None]
    else:
        answer = chi2_contingency(counts, correction=False)
        few, name, test = answer.expected_freq.min() < EXPECTED, "Cramér's V", "chi-squared"
        p, columns = float(answer.pvalue), np.eye(len(counts))[code] / np.sqrt(counts.sum(axis=1))
    if few:
        p, test = _permuted(columns, target, rng), f"{test}, {PERMUTATIONS} permutations"
    effect = {"name": name, "value": value, "low": None, "high": None}
    if draws:
        drawn = [_effect(code[take], target[take], number)[0] for take in rng.integers(0, len(y), (draws, len(y)))]
        low, high = np.quantile(drawn, [(1 - metrics.LEVEL) / 2, (1 + metrics.LEVEL) / 2])
        effect |= {"low": float(np.clip(2 * value - high, 0, value)), "high": float(np.clip(2 * value - low, value, 1))}
    return test, p, effect


def _permuted(columns: Array, y: NDArray[np.int64], rng: np.random.Generator) -> float:
    """Return the permutation p of sum |columns' y|^2, with y scaled by its counts.

    With fixed margins this sum is monotonic in H and in chi squared.
    """
    target = np.eye(y.max() + 1)[y]
    target /= np.sqrt(target.sum(axis=0))
    seen = float(((columns.T @ target) ** 2).sum())
    drawn = [((columns.T @ target[rng.permutation(len(y))]) ** 2).sum() for _ in range(PERMUTATIONS)]
    return float((1 + (np.array(drawn) >= seen * (1 - 1e-9)).sum()) / (1 + PERMUTATIONS))


def _effect(code: NDArray[np.int64], y: NDArray[np.int64], number: bool) -> tuple[float, Array]:
    """Return the effect of a column and the counts of its values by class.

    The effect is epsilon squared, H / (n - 1), for numbers and the bias-corrected V for categories. It is 0 if there is
    only one value or one class.

    Args:
        code: Code of every value [n]; the codes of numbers are in the numbers' order.
        y: Class [n].
        number: Whether the values are numbers.
    """
    if not len(code):
        return 0.0, np.zeros((0, 0))
    wide = int(y.max()) + 1
    counts = np.bincount(code * wide + y, minlength=(int(code.max()) + 1) * wide).reshape(-1, wide).astype(float)
    counts = counts[counts.any(axis=1)][:, counts.any(axis=0)]
    each, sizes, n = counts.sum(axis=1), counts.sum(axis=0), len(code)
    if min(counts.shape) < 2:
        return 0.0, counts
    if number:
        ranks = np.cumsum(each) - (each - 1) / 2 - (n + 1) / 2  # mean rank of each value, minus the overall mean
        return float(((ranks @ counts) ** 2 / sizes).sum() / (each @ ranks**2)), counts
    expected = np.outer(each, sizes) / n
    rows, columns = counts.shape
    phi = float(((counts - expected) ** 2 / expected).sum()) / n - (columns - 1) * (rows - 1) / (n - 1)
    least = min(size - (size - 1) ** 2 / (n - 1) for size in counts.shape) - 1
    return float(min(1.0, np.sqrt(max(0.0, phi) / least))) if least > 0 else 0.0, counts


def holm(p: Sequence[float | None]) -> list[float | None]:
    """Correct p values by Holm's step-down procedure (1979). None stays None and does not count as a test."""
    known = np.array([value for value in p if value is not None], float)
    order = np.argsort(known)
    stepped = np.minimum(1, np.maximum.accumulate(known[order] * np.arange(len(known), 0, -1)))
    corrected = iter(stepped[np.argsort(order)].tolist())
    return [None if value is None else next(corrected) for value in p]
