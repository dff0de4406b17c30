"""What would help at a site: an operating point of its own, measured by cross-fitting, and more patients.

Research use only.
"""

import math

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import logit, softmax
from scipy.stats import beta

from thyroid import metrics
from thyroid.data import splits
from thyroid.data.classes import Classes
from thyroid.data.filenames import CLASSES, SCORE
from thyroid.errors import InputError
from thyroid.evaluate import performance, predictions
from thyroid.evaluate.gate import VALIDATION_PATIENTS
from thyroid.interval import LEVEL, Interval
from thyroid.model import operating_point
from thyroid.model.artefact import Artefact
from thyroid.model.operating_point import OperatingPoint
from thyroid.records.validation import PatientsNeeded, Recalibration, ValidateSettings

FOLDS = 5
THRESHOLD = "threshold"
"""Column of cross-fitted predictions with the threshold of the operating point that each row was scaled at."""
MOST = 100_000
"""Largest number of malignant patients that `patients_needed` looks at; no single site has more."""
_TINY = 1e-12
"""Probabilities nearer than this to 0 and 1 are moved, so that their log-odds are finite."""

_Drawn = dict[str, NDArray[np.float64]]


def fit(table: pd.DataFrame, classes: Classes, artefact: Artefact) -> OperatingPoint:
    """Fit an operating point on a site's patients, with the sensitivity and the abstention that the version was given.

    The network stays as it is.

    Args:
        table: Table of predictions with at least one image of each class.
        classes: Classes of the version.
        artefact: The version.
    """
    asked = artefact.record.settings
    return operating_point.lock(predictions.unscaled(table, classes), classes, asked.sensitivity, asked.abstain)


def cross_fit(
    table: pd.DataFrame,
    classes: Classes,
    artefact: Artefact,
    settings: ValidateSettings,
    *,
    boxes: str,
    folds: int = FOLDS,
) -> tuple[Recalibration | None, str | None, pd.DataFrame | None]:
    """Measure what a recalibration for a site would gain, on patients that it was not fitted on.

    Temperature, bias and threshold are fitted on all folds but one and applied to that one (`fit`), for every fold in
    turn. The folds keep patients and near-duplicates together. Intervals of the gain resample patients, and compare
    both operating points in the same draws.

    Args:
        table: Table of predictions.
        classes: Classes of the version.
        artefact: The version.
        settings: Prevalence, which none of the figures here depends on, and the seed of folds and bootstrap.
        boxes: Kind of boxes of the predictions.
        folds: Number of folds, at least 2.

    Returns:
        The figures, or else the reason why there are none, and the cross-fitted predictions: the rows of `table`,
        scaled and decided at the operating point that was fitted without their patient, with the column `THRESHOLD`.
        They lack the column undecided, which is the endpoint's answer at the version's own operating point.
    """
    if (reason := too_few(table, classes, folds)) is not None:
        return None, reason, None
    table = table.reset_index(drop=True)
    try:
        fold = table["group"].map(splits.folds(table, folds, settings.seed))
    except InputError as error:
        return None, f"the site's patients cannot be dealt into folds: {error}", None
    crossed = _crossed(table, fold, classes, artefact)
    draws = metrics.Draws(table["patient"].astype(int), seed=settings.seed)
    locked = np.full(len(table), artefact.record.threshold)
    before, after = _drawn(draws, table, locked), _drawn(draws, crossed, crossed[THRESHOLD].to_numpy())
    gain = {name: metrics.interval(drawn - before[name]) for name, drawn in after.items()}
    point = fit(table, classes, artefact)
    found = Recalibration(
        boxes=boxes,
        folds=folds,
        patients=int(table["patient"].nunique()),
        temperature=point.temperature,
        bias=list(point.bias),
        threshold=point.threshold,
        before=_intervals(before, draws, table, locked, settings),
        after=_intervals(after, draws, crossed, crossed[THRESHOLD].to_numpy(), settings),
        gain=gain,
        summary=_summary(gain, len(classes)),
    )
    return found, None, crossed


def too_few(table: pd.DataFrame, classes: Classes, folds: int = FOLDS) -> str | None:
    """Return why there are too few patients of a class for `cross_fit`, in words; None if there are enough.

    Args:
        table: Images or scans, with the columns class and patient.
        classes: Classes of the version.
        folds: Number of folds, at least 2.
    """
    needed = math.ceil(VALIDATION_PATIENTS * folds / (folds - 1))
    patients = table.groupby("class")["patient"].nunique().reindex(list(classes.names), fill_value=0)
    few = [f"{count} of class {name}" for name, count in patients.items() if count < needed]
    if not few:
        return None
    return (
        f"a recalibration needs at least {needed} patients of each class, so that about {VALIDATION_PATIENTS} are left "
        f"to fit on in every fold; this site has {' and '.join(few)}"
    )


def _crossed(table: pd.DataFrame, fold: pd.Series, classes: Classes, artefact: Artefact) -> pd.DataFrame:
    """Scale and decide every row at the operating point that was fitted on the other folds."""
    parts = []
    for number in sorted(set(fold)):
        point = fit(table[fold != number], classes, artefact)
        held = predictions.at_point(predictions.unscaled(table[fold == number], classes), point, classes)
        parts.append(held.assign(**{THRESHOLD: point.threshold}))
    return pd.concat(parts).loc[table.index].drop(columns="undecided", errors="ignore")


def _drawn(draws: metrics.Draws, table: pd.DataFrame, threshold: NDArray[np.float64]) -> _Drawn:
    """Return every metric by image on the sample and on every draw [1 + draws], by name.

    Args:
        draws: Draws of the patients.
        table: Predictions.
        threshold: Threshold of every row [n].
    """
    positive, patient, score = performance.is_malignant(table), table["patient"].to_numpy(int), table[SCORE].to_numpy()
    called = score >= threshold
    cells = np.stack([positive, positive & called, ~positive, ~positive & ~called, score], axis=1)
    malignant, caught, benign, spared, expected = draws.totals(cells, patient).T
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "sensitivity": caught / malignant,
            "specificity": spared / benign,
            "ece": metrics.ece_draws(draws, positive, score, patient),
            "brier": metrics.brier_draws(draws, positive, score, patient),
            "observed_to_expected": malignant / expected,
        }


def _intervals(
    drawn: _Drawn,
    draws: metrics.Draws,
    table: pd.DataFrame,
    threshold: NDArray[np.float64],
    settings: ValidateSettings,
) -> dict[str, Interval]:
    """Return the intervals of `_drawn`; those of sensitivity and specificity are exact where no draw differs."""
    called = table[SCORE].to_numpy() >= threshold
    patient = table["patient"].astype(int)
    at = metrics.at_threshold(draws, performance.is_malignant(table), called, patient, settings.prevalence)
    return {name: at[name] if name in at else metrics.interval(values) for name, values in drawn.items()}


def _summary(gain: dict[str, Interval], classes: int) -> str:
    """Say in plain words what a recalibration gains and what it costs."""
    shares = {"sensitivity": "malignant images", "specificity": "benign images"}
    sides = {name: _side(gain[name]) for name in shares}
    changes = [
        f"{'more' if side > 0 else 'fewer'} {shares[name]} would be called {shares[name].split()[0]} "
        f"({_of_hundred(gain[name], side)} of 100)"
        for name, side in sides.items()
        if side
    ]
    won = " and ".join(name for name, side in sides.items() if side > 0)
    lost = " and ".join(name for name, side in sides.items() if side < 0)
    if won and lost:
        price = f": the gain of {won} is paid for with {lost}"
    elif won:
        price = f": the gain of {won} is not shown to cost anything"
    elif lost:
        price = f": {lost} is lost, and no gain is shown for it"
    else:
        price = "no change of sensitivity or specificity is shown"
    error = _side(gain["ece"])
    fit = "the probabilities are not shown to fit better or worse"
    if error:
        fit = (
            f"the probabilities would fit {'worse' if error > 0 else 'better'} (on average they would be "
            f"{_of_hundred(gain['ece'], error)} percentage points {'further from' if error > 0 else 'nearer to'} the "
            "share of malignant images)"
        )
    order = "does not change" if classes == len(CLASSES) else "hardly changes"
    return (
        "With a temperature, bias and threshold fitted on other patients of this site, "
        f"{' and '.join(changes)}{price}; {fit}. A recalibration {order} which images rank above which, so it does not "
        "improve the AUROC."
    )


def _side(change: Interval) -> int:
    """Return 1 if a change is shown to be a rise, -1 if a fall, and 0 if its interval includes 0 or is not known."""
    return 0 if change.low is None or change.high is None else int(change.low > 0) - int(change.high < 0)


def _of_hundred(change: Interval, side: int) -> str:
    """Return the size of a change that is shown to be on one side of 0, in hundredths, with its bounds."""
    assert change.low is not None
    assert change.high is not None
    low, high = sorted((100 * side * change.low, 100 * side * change.high))
    return f"{100 * side * change.value:.1f} [{low:.1f} to {high:.1f}]"


def at_one_threshold(crossed: pd.DataFrame, threshold: float, classes: Classes) -> pd.DataFrame:
    """Express cross-fitted predictions at one threshold, so that they can be measured like those of one model.

    A shift of the bias of the malignant classes moves the threshold of every row to the given one. Bias and threshold
    are interchangeable, so no image is decided otherwise, and within a fold of two classes the order stays. The
    probabilities no longer mean what they said: calibration must be measured on `crossed`.

    Args:
        crossed: Cross-fitted predictions of `cross_fit`.
        threshold: The threshold, above 0 and below 1.
        classes: Classes of the version.

    Returns:
        The predictions with other probabilities of `classes` and of malignant.
    """
    odds, own = (logit(np.clip(place, _TINY, 1 - _TINY)) for place in (threshold, crossed[THRESHOLD].to_numpy()))
    log = np.log(np.maximum(crossed[classes.columns].to_numpy(), _TINY))
    shifted = softmax(log + np.outer(odds - own, classes.positive), axis=1)
    # rounding must not move the image that a threshold was put on across it
    called = (crossed[SCORE] >= crossed[THRESHOLD]).to_numpy()
    malignant = classes.malignant(shifted)
    score = np.where(called, np.maximum(malignant, threshold), np.minimum(malignant, np.nextafter(threshold, 0)))
    moved = dict(zip(classes.columns, shifted.T, strict=True))
    return crossed.assign(**moved | {SCORE: score})


def patients_needed(table: pd.DataFrame, threshold: float, wanted: float) -> PatientsNeeded | None:
    """Say how many patients a site needs until the lower bound of its sensitivity passes a figure.

    The number is that of the malignant patients from which on the exact lower bound (Clopper & Pearson 1934) of the
    present sensitivity, rounded to whole patients, stays above the figure. It is an expectation: a site with as many
    patients has an even chance of a lower sensitivity than the present one. Flahault et al. 2005
    (10.1016/j.jclinepi.2004.12.009) plan with a margin for that.

    Args:
        table: Table of predictions. A patient is called malignant if the mean probability reaches the threshold.
        threshold: Locked threshold of the version.
        wanted: The figure, above 0 and below 1.

    Returns:
        The numbers of patients; None if no patient is malignant.
    """
    images = table.assign(malignant=performance.is_malignant(table))
    patients = images.groupby("patient").agg({"malignant": "any", SCORE: "mean"})
    malignant = int(patients["malignant"].sum())
    if not malignant:
        return None
    caught = int((patients["malignant"] & (patients[SCORE] >= threshold)).sum())
    share = caught / malignant
    sensitivity = Interval(share, *metrics.clopper_pearson(caught, malignant))
    needed = _until_above(share, wanted) if share > wanted else None
    in_all = None if needed is None else math.ceil(needed * len(patients) / malignant)
    return PatientsNeeded(
        wanted=wanted,
        sensitivity=sensitivity,
        malignant=needed,
        patients=in_all,
        summary=_describe_needed(sensitivity, wanted, malignant, needed, in_all),
    )


def _until_above(share: float, wanted: float) -> int | None:
    """Return the number of trials from which on the exact lower bound of a share stays above a figure, or None."""
    trials = np.arange(1, MOST + 1)
    hits = np.round(share * trials)
    with np.errstate(invalid="ignore"):
        bounds = beta.ppf((1 - LEVEL) / 2, hits, trials - hits + 1)  # NaN without a hit
    short = np.flatnonzero(~(bounds > wanted))
    last = int(short[-1]) + 1 if len(short) else 0
    return last + 1 if last < MOST else None


def _describe_needed(
    sensitivity: Interval, wanted: float, malignant: int, needed: int | None, patients: int | None
) -> str:
    """Say in plain words how many patients are needed."""
    now = (
        f"{100 * sensitivity.value:.0f}% of the {malignant} patients with a malignant nodule here were found"
        f"{_bounds(sensitivity)}"
    )
    goal = f"{100 * wanted:.3g}%"
    if sensitivity.value <= wanted:
        return f"{now}. That is not above {goal}, so no number of such patients would show a sensitivity above it."
    if needed is None:
        return (
            f"{now}. That is so close to {goal} that more than {MOST} of them would be needed to show a sensitivity "
            "above it."
        )
    if sensitivity.low is not None and sensitivity.low > wanted:
        return f"{now}. The lower bound has passed {goal}: a sensitivity above it is shown."
    return (
        f"{now}. To show a sensitivity above {goal}, the site would need {needed} patients with a malignant nodule, or "
        f"{patients} patients in all at its present share of them. This is an expectation, if the sensitivity stays as "
        "it is: by chance, the lower bound may still be below it."
    )


def _bounds(share: Interval) -> str:
    """Return the exact interval of a share in percent, in brackets; nothing where it is not known."""
    return "" if share.low is None or share.high is None else f" [{100 * share.low:.0f} to {100 * share.high:.0f}]"
