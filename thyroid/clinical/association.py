"""Describes clinical columns, their association with the class, and which of them give the class away.

Research use only. Patients are the units: tables and tests combine the rows of one patient, and folds and draws keep
them together.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib import font_manager
from matplotlib.axes import Axes
from numpy.typing import ArrayLike, NDArray
from scipy.stats import chi2_contingency, entropy, kruskal, rankdata
from sklearn.ensemble import RandomForestClassifier, VotingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.tree import DecisionTreeClassifier
from threadpoolctl import threadpool_limits

from thyroid import metrics
from thyroid.clinical import fusion
from thyroid.clinical.clinical_csv import FEW_VALUES, MINIMUM, Encoder
from thyroid.errors import InputError
from thyroid.plot_style import save

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
EXPECTED = 5.0
"""Expected number of patients in a cell of a table below which p values come from permutations.

This rule is stricter than Cochran's (1954).
"""
PERMUTATIONS = 4999
EFFECT_DRAWS = 500
SHOWN = 24
"""Largest number of columns on a picture. It shows the ones that are most strongly associated with the class."""
_TRUTHS = {"auroc": "the class", "side_auroc": "benign or malignant"}
_COLUMNS = 4  # small multiples in a row
_SOFT, _ALERT = "#888888", "#c0392b"

Array = NDArray[np.float64]


def explore(
    rows: pd.DataFrame, y: ArrayLike, patient: ArrayLike, classes: Sequence[str], seed: int = 0
) -> dict[str, Any]:
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
        JSON with patients, classes, by_class (patients), correction and columns. Each column has column, kind, known
        (patients), missing (share, by_class, p, p_corrected), distribution (by class: the quantiles .05, .25, .5, .75
        and .95, or patients by category), effect (name, value, low, high), test, p and p_corrected. A p is None if
        there is nothing to test.
    """
    table, target = _by_patient(rows, np.asarray(y), np.asarray(patient))
    rng = np.random.default_rng(seed)
    sizes = np.bincount(target, minlength=len(classes))
    found = []
    for name in table:
        values = table[name]
        known = values.notna().to_numpy()
        number = _is_number(values)
        test, p, effect = _associated(values[known].to_numpy(), target[known], number, rng)
        row: dict[str, Any] = {"column": name, "kind": "number" if number else "category", "known": int(known.sum())}
        row["missing"] = {
            "share": float((~known).mean()),
            "by_class": {
                label: float((~known)[target == c].mean()) if sizes[c] else None for c, label in enumerate(classes)
            },
            "p": _associated(known, target, False, rng, draws=0)[1],
        }
        row["distribution"] = {
            label: _distribution(values[known & (target == c)], number) for c, label in enumerate(classes)
        }
        found.append(row | {"effect": effect, "test": test, "p": p})
    tests = [one for row in found for one in (row, row["missing"])]
    for one, corrected in zip(tests, holm([one["p"] for one in tests]), strict=True):
        one["p_corrected"] = corrected
    by_class = dict(zip(classes, sizes.tolist(), strict=True))
    return {
        "patients": len(table),
        "classes": list(classes),
        "by_class": by_class,
        "correction": "Holm",
        "columns": found,
    }


def _by_patient(
    rows: pd.DataFrame, y: NDArray[np.int64], patient: NDArray[Any]
) -> tuple[pd.DataFrame, NDArray[np.int64]]:
    """Return a table with one row per patient, and the patients' classes."""

    def most(values: pd.Series) -> pd.Series:
        counts = pd.crosstab(patient, values.to_numpy())
        return counts.idxmax(axis=1) if counts.size else pd.Series(dtype=object)

    groups = rows.groupby(patient)
    columns: dict[Any, pd.Series] = {
        name: groups[name].mean() if _is_number(rows[name]) else most(rows[name]) for name in rows.columns
    }
    target = pd.Series(y).groupby(patient).max()
    table = pd.DataFrame({name: values.reindex(target.index) for name, values in columns.items()}, index=target.index)
    return table, target.to_numpy()


def _is_number(values: pd.Series) -> bool:
    return pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)


def _distribution(values: pd.Series, number: bool) -> Any:
    if not number:
        return {str(one): int(count) for one, count in values.value_counts().items()}
    return np.quantile(values.to_numpy(float), (0.05, 0.25, 0.5, 0.75, 0.95)).tolist() if len(values) else None


def _associated(
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
    least = min(one - (one - 1) ** 2 / (n - 1) for one in counts.shape) - 1
    return float(min(1.0, np.sqrt(max(0.0, phi) / least))) if least > 0 else 0.0, counts


def holm(p: Sequence[float | None]) -> list[float | None]:
    """Correct p values by Holm's step-down procedure (1979). None stays None and does not count as a test."""
    known = np.array([one for one in p if one is not None], float)
    order = np.argsort(known)
    stepped = np.minimum(1, np.maximum.accumulate(known[order] * np.arange(len(known), 0, -1)))
    corrected = iter(stepped[np.argsort(order)].tolist())
    return [None if one is None else next(corrected) for one in p]


@threadpool_limits.wrap(limits=1)  # threads slow down work on such small matrices
def leaks(
    rows: pd.DataFrame,
    y: ArrayLike,
    patient: ArrayLike,
    classes: Sequence[str],
    positive: ArrayLike | None = None,
    seed: int = 0,
) -> dict[str, Any]:
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
        JSON with columns, together (columns, auroc, side_auroc, findings) and findings (all of them, in words). Each
        column has column; auroc, side_auroc and missing_auroc (value, low, high; null if it cannot be measured);
        fixes_class and fixed_by_class (Theil's U or null); and finding (words or null).

    Raises:
        InputError: There is only one class, or there are too few patients for folds.
    """
    target, patients = np.asarray(y), np.asarray(patient)
    if len(np.unique(target)) < 2:
        raise InputError("clinical: all rows are of one class, which nothing can give away")
    side = None if positive is None else np.asarray(positive, bool)[target].astype(int)
    if side is not None and (len(np.unique(side)) < 2 or len(np.unique(target)) == 2):
        side = None  # a single side, or the same as the class
    fold = fusion.deal(target, patients, fusion.INNER, seed)
    draws = metrics.Draws(patients, LEAK_DRAWS, seed)

    def measure(columns: pd.DataFrame, truth: NDArray[np.int64] | None, model: Any) -> metrics.Interval | None:
        if truth is None:
            return None
        score = np.zeros((len(truth), truth.max() + 1))
        for one in np.unique(fold):
            held = fold == one
            encoder = Encoder.fit(columns[~held], patients[~held])
            if encoder.features and len(np.unique(truth[~held])) > 1:
                model.fit(encoder.encode(columns[~held])[0], truth[~held])
                score[np.ix_(held, model.classes_)] = model.predict_proba(encoder.encode(columns[held])[0])
        return metrics.macro_auroc(draws, truth, score, patients, fold)

    tree = DecisionTreeClassifier(min_samples_leaf=MINIMUM, random_state=seed)
    found = []
    for name in rows.columns:
        gone = rows[name].isna()
        row: dict[str, Any] = {
            "column": name,
            "auroc": measure(rows[[name]], target, tree),
            "side_auroc": measure(rows[[name]], side, tree),
            "missing_auroc": measure(gone.astype(float).to_frame(), target, tree)
            if 0 < gone.sum() < len(gone)
            else None,
            **_fixes(rows[name], target, patients),
        }
        found.append(row | {"finding": _finding(row)})
    others = [row["column"] for row in found if row["finding"] is None]
    forest = RandomForestClassifier(50, min_samples_leaf=2, random_state=seed)
    both = VotingClassifier([("forest", forest), ("regression", LogisticRegression(max_iter=1000))], voting="soft")
    together = {
        name: measure(rows[others], truth, both) if len(others) > 1 else None
        for name, truth in (("auroc", target), ("side_auroc", side))
    }
    jointly = [
        f"together the columns {', '.join(others)} nearly define {what} (macro AUROC {together[name]} out of fold): "
        "they may be what the label was made from"
        for name, what in _TRUTHS.items()
        if _above(together[name], TOGETHER)
    ]

    def plain(row: Mapping[str, Any]) -> dict[str, Any]:
        return {key: asdict(one) if isinstance(one, metrics.Interval) else one for key, one in row.items()}

    return {
        "columns": [plain(row) for row in found],
        "together": {"columns": others, **plain(together), "findings": jointly},
        "findings": [row["finding"] for row in found if row["finding"]] + jointly,
    }


def _fixes(values: pd.Series, y: NDArray[np.int64], patient: NDArray[Any]) -> dict[str, float | None]:
    """Return Theil's U in both directions over known values.

    It is None if few patients are outside the most frequent class or value.
    """
    known = values.notna().to_numpy()
    values, y, patient = values[known], y[known], patient[known]
    if _is_number(values) and values.nunique() > FEW_VALUES:
        values = pd.qcut(values, 10, labels=False, duplicates="drop")
    codes, target = pd.factorize(values.to_numpy())[0], pd.factorize(y)[0]
    units = pd.Series(patient)

    def enough(one: NDArray[np.int64]) -> bool:
        sizes = units.groupby(one).nunique()
        return len(sizes) > 1 and sizes.sum() - sizes.max() >= metrics.FEW

    common = units.groupby(codes).transform("nunique").to_numpy() >= MINIMUM if len(codes) else np.zeros(0, bool)
    codes = np.where(common, codes, -1)  # a value that few patients have determines their class
    counts = pd.crosstab(codes, target).to_numpy(float)
    both = entropy(counts.ravel()) if counts.size else 0.0

    def left(axis: int) -> float:
        """Return the share of one side's entropy that the other side explains."""
        mine, other = (float(entropy(counts.sum(axis=one))) for one in (axis, 1 - axis))
        return (mine + other - float(both)) / mine if mine > 0 else 0.0

    sure = enough(codes) and enough(target)
    return {"fixes_class": left(0) if sure else None, "fixed_by_class": left(1) if sure else None}


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


NAMES = {
    "clinical-distributions": "Clinical columns by class",
    "clinical-missing": "Share of patients whose value is missing, by class",
    "clinical-association": "How far the columns go with the class",
}
"""Title of every picture of `draw`, by name."""


def draw(facts: Mapping[str, Any], folder: Path) -> list[str]:
    """Draw the pictures of `NAMES` as `folder`/<name>.png.

    A picture shows up to `SHOWN` columns, those most strongly associated with the class. A picture with nothing to show
    is not drawn.

    Args:
        facts: Result of `explore`.
        folder: Folder for the pictures.

    Returns:
        Names of the pictures that were drawn.
    """
    columns = sorted(facts["columns"], key=lambda row: (_p(row), -(row["effect"] or {"value": 0})["value"]))[:SHOWN]
    gaps = sorted(facts["columns"], key=lambda row: (_p(row["missing"]), -row["missing"]["share"]))[:SHOWN]
    gaps = [row for row in gaps if row["missing"]["share"] > 0]
    tested = [row for row in columns if row["effect"]]
    drawn = []
    installed = set(font_manager.get_font_names())
    fonts = ["DejaVu Sans", *(f for f in ("Noto Sans CJK KR", "Noto Sans KR", "NanumGothic") if f in installed)]
    with plt.rc_context({"font.family": fonts}):
        for name, some, picture in (
            ("clinical-distributions", columns, _distributions),
            ("clinical-missing", gaps, _missing),
            ("clinical-association", tested, _association),
        ):
            if some:
                picture(some, facts, folder / f"{name}.png")
                drawn.append(name)
    return drawn


def _p(row: Mapping[str, Any]) -> float:
    return 2.0 if row["p"] is None else row["p"]


def _plain(text: str) -> str:
    """Shorten a text, escape its dollar signs, and replace characters that no font here has by question marks."""
    fonts = [font_manager.get_font(font_manager.findfont(one)) for one in plt.rcParams["font.family"]]
    shown = "".join(c if any(font.get_char_index(ord(c)) for font in fonts) else "?" for c in text)
    return (shown if len(shown) <= 24 else f"{shown[:23]}…").replace("$", r"\$")


def _colours(count: int) -> list[Any]:
    return list(matplotlib.colormaps["coolwarm"](np.linspace(0.05, 0.95, count)))


def _distributions(columns: Sequence[Mapping[str, Any]], facts: Mapping[str, Any], path: Path) -> None:
    labels = facts["classes"]
    wide = min(_COLUMNS, len(columns))
    high = -(-len(columns) // wide)
    size = (3.1 * wide + 0.6, (1.6 + 0.25 * len(labels)) * high + 0.5)
    figure, axes = plt.subplots(high, wide, figsize=size, squeeze=False)
    for axis in axes.ravel()[len(columns) :]:
        axis.axis("off")
    for axis, row in zip(axes.ravel(), columns, strict=False):
        (_boxes if row["kind"] == "number" else _bars)(axis, row, labels)
        axis.set_title(f"{_plain(row['column'])} (n = {row['known']})", fontsize=9)
        axis.set_yticks(range(len(labels)), [_plain(label) for label in labels])
        axis.tick_params(labelsize=8)
        axis.invert_yaxis()
    more = len(facts["columns"]) - len(columns)
    also = f"; {more} more columns are not shown" if more else ""
    figure.suptitle(f"{NAMES['clinical-distributions']}, {facts['patients']} patients{also}", fontsize=11)
    save(figure, path)


def _boxes(axis: Axes, row: Mapping[str, Any], labels: Sequence[str]) -> None:
    for place, (label, colour) in enumerate(zip(labels, _colours(len(labels)), strict=True)):
        five = row["distribution"][label]
        if five is None:
            continue
        stats = dict(zip(("whislo", "q1", "med", "q3", "whishi"), five, strict=True))
        axis.bxp(
            [stats],
            positions=[place],
            widths=0.6,
            orientation="horizontal",
            showfliers=False,
            patch_artist=True,
            boxprops={"facecolor": colour},
            medianprops={"color": "black"},
        )
    axis.set_xlabel("box: quartiles; line: 5 to 95 %", fontsize=7)


def _bars(axis: Axes, row: Mapping[str, Any], labels: Sequence[str]) -> None:
    counts = pd.DataFrame(row["distribution"]).reindex(columns=list(labels)).fillna(0)
    counts = counts.loc[counts.sum(axis=1).sort_values(ascending=False).index]
    if len(counts) > 8:
        counts = pd.concat([counts.iloc[:7], counts.iloc[7:].sum().to_frame("all others").T])
    shares = counts / counts.sum().clip(lower=1)
    start = np.zeros(len(labels))
    palette = matplotlib.colormaps["tab10"]
    for place, (name, share) in enumerate(shares.iterrows()):
        axis.barh(range(len(labels)), share, left=start, color=palette(place), label=_plain(str(name)))
        start += share.to_numpy()
    axis.set_xlim(0, 1)
    axis.legend(fontsize=6, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.12), frameon=False)


def _missing(columns: Sequence[Mapping[str, Any]], facts: Mapping[str, Any], path: Path) -> None:
    labels = facts["classes"]
    figure, axis = plt.subplots(figsize=(7.5, 1.4 + (0.16 + 0.12 * len(labels)) * len(columns)))
    thick = 0.8 / len(labels)
    for c, (label, colour) in enumerate(zip(labels, _colours(len(labels)), strict=True)):
        shares = [row["missing"]["by_class"][label] or 0 for row in columns]
        places = np.arange(len(columns)) + (c - (len(labels) - 1) / 2) * thick
        axis.barh(places, shares, thick, color=colour, label=f"{_plain(label)} (n = {facts['by_class'][label]})")
    axis.set_yticks(range(len(columns)), [_plain(row["column"]) for row in columns], fontsize=8)
    for place, row in enumerate(columns):
        axis.text(1.01, place, _said(row["missing"]), fontsize=7, va="center", transform=axis.get_yaxis_transform())
    axis.invert_yaxis()
    axis.set(xlim=(0, 1), xlabel="share of patients; p: Holm's, of missing against class")
    axis.set_title(NAMES["clinical-missing"], fontsize=10)
    axis.legend(fontsize=7, loc="lower right")
    save(figure, path)


def _said(row: Mapping[str, Any]) -> str:
    p = row["p_corrected"]
    return "not tested" if p is None else "p < .001" if p < 0.001 else f"p = {p:.3f}"


def _association(columns: Sequence[Mapping[str, Any]], facts: Mapping[str, Any], path: Path) -> None:
    figure, axis = plt.subplots(figsize=(7.5, 1.4 + 0.3 * len(columns)))
    for place, row in enumerate(columns):
        effect, colour = row["effect"], _ALERT if row["p_corrected"] < 1 - metrics.LEVEL else _SOFT
        axis.plot((effect["low"], effect["high"]), (place, place), color=colour, lw=2)
        axis.plot(effect["value"], place, "s" if row["kind"] == "number" else "o", color=colour)
        axis.text(1.01, place, _said(row), fontsize=8, va="center", transform=axis.get_yaxis_transform())
    names = {"number": "ε²", "category": "V"}
    ticks = [f"{_plain(row['column'])} ({names[row['kind']]})" for row in columns]
    axis.set_yticks(range(len(columns)), ticks, fontsize=8)
    axis.invert_yaxis()
    axis.set(xlim=(0, 1), xlabel="effect with 95 % interval over patients (ε²: numbers, V: categories; p: Holm's)")
    axis.set_title(f"{NAMES['clinical-association']}, {facts['patients']} patients", fontsize=10)
    save(figure, path)
