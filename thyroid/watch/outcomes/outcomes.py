"""Joins outcomes to the decisions that were made before they were known, and measures a model since its release."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from thyroid import metrics
from thyroid.data import pseudonyms
from thyroid.data.classes import BINARY
from thyroid.errors import InputError
from thyroid.interval import Interval
from thyroid.model.operating_point import OperatingPoint
from thyroid.records.model import ArtefactRecord, KerasForm
from thyroid.records.watch import OutcomesRecord, Sequential
from thyroid.serve.answers import BAND, DESCRIPTORS_DISAGREE, Answers
from thyroid.watch.options import WatchOptions
from thyroid.watch.outcomes import table as outcomes_table
from thyroid.watch.outcomes.sequential import FALSE_ALARM, HIGHEST, LOWEST, Chart, confidence_sequence
from thyroid.watch.outcomes.table import set_aside

Share = Literal["sensitivity", "specificity"]

SELECTION = (
    "Only patients whose pathology is known are counted. If patients called benign are sampled less often, the "
    "sensitivity here is too high and the specificity too low (Begg & Greenes 1983, 10.2307/2530820)."
)
"""What no number of outcomes shows, in words."""

_COUNTED = {BAND, DESCRIPTORS_DISAGREE}  # reasons with which a view counts among those of its patient
_CELLS = 10_000_000  # draws x patients of a bootstrap: 80 MB
_FEWEST_DRAWS = 200
_COLUMNS = ("image", "patient", "time", "id", "probability", "reasons", "box")


@dataclass(frozen=True)
class Outcomes:
    """What outcomes say of a model.

    Attributes:
        record: The figures.
        table: One row per patient, or image where no patient is named, in the order of the outcomes: unit (keyed hash),
            date (datetime.date), malignant (bool), probability, decision (benign, malignant, abstain), images (int).
        charts: The CUSUM of sensitivity and of specificity.
        aside: Numbers of the rows of outcomes.csv that were not used, by their reason in `table.REASONS`.
        notes: What a reader must know beside the figures, one sentence each.
    """

    record: OutcomesRecord
    table: pd.DataFrame
    charts: dict[Share, Chart]
    aside: dict[str, list[int]]
    notes: list[str]


def measure(options: WatchOptions, decisions: pd.DataFrame, record: ArtefactRecord, secret: bytes) -> Outcomes:
    """Measure how a model's decisions agree with the outcomes.

    Only decisions up to the day of the outcome (UTC) count. The views of a patient are averaged and decided as the
    endpoint does for a request that names a patient. Nodules of one patient are one case, malignant if one of them is,
    as in the evaluation. The order is that of the outcomes' dates, whenever the decisions were made.

    Args:
        options: Options of the watch, with `outcomes`.
        decisions: Decisions of one version, a row per image with the columns of `records.watch.Decision`.
        record: model.json of that version.
        secret: Key of the hashes.

    Raises:
        InputError: outcomes.csv cannot be read, or the decisions were logged with another key.
    """
    told = _of_key(decisions, secret)
    read = outcomes_table.read(options.outcomes, options.scans, options.site, secret, options.last_night)
    aside = dict(read.aside)
    answers = Answers(record, OperatingPoint.from_record(record), BINARY, "", None)
    table = _decided(_views(read.rows, decisions, aside), answers)
    charts, notes = _charts(options, record)
    tests = [_test(name, chart, table) for name, chart in charts.items()]
    return Outcomes(
        record=OutcomesRecord(
            rows=read.count,
            set_aside={reason: len(aside[reason]) for reason in outcomes_table.REASONS if reason in aside},
            patients=len(table),
            malignant=int(table["malignant"].sum()),
            abstained=_abstained(table),
            tests=tests,
            first=table["date"].min().isoformat() if len(table) else None,
            last=table["date"].max().isoformat() if len(table) else None,
            **_figures(table, options.seed),
        ),
        table=table,
        charts=charts,
        aside=aside,
        notes=[*told, *notes, *_worst(tests, table), SELECTION],
    )


def _of_key(decisions: pd.DataFrame, secret: bytes) -> list[str]:
    """Say which decisions were logged with another key, among which no outcome can be found; refuse if all were."""
    names = decisions["image"].map(lambda image: image.partition(":")[0])
    others = sorted(set(names) - {own := pseudonyms.key_name(secret)})
    if not others:
        return []
    listed = ", ".join(others)
    if own not in set(names):
        raise InputError(
            f"{pseudonyms.KEY_VARIABLE}: the key here is {own}, and the log was written with {listed}; set the secret "
            "that the endpoint has, or give its registry"
        )
    return [
        f"{int((names != own).sum())} of {len(names)} decisions were logged with another key ({listed}, not {own}): "
        "no outcome can be joined to them."
    ]


def _views(rows: pd.DataFrame, decisions: pd.DataFrame, aside: dict[str, list[int]]) -> pd.DataFrame:
    """Join rows of outcomes.csv to the decisions before them; set aside those without any.

    Returns:
        One row per view: the columns of the decisions, number (of the row in the file), malignant, date, unit.
    """
    ordered = decisions[list(_COLUMNS)].assign(time=pd.to_datetime(decisions["time"], utc=True))
    ordered = ordered.astype({"patient": object}).sort_values(["time", "id"], kind="stable")
    # the patient that an image was last sent with, or else the image itself
    named = ordered.dropna(subset="patient").drop_duplicates("image", keep="last").set_index("image")["patient"]
    parts = []
    for key, part in rows.reset_index().groupby("key"):
        joined = part.merge(ordered, left_on="hash", right_on=key, how="inner")
        unit = joined["image"].map(named).fillna(joined["image"]) if key == "image" else joined["hash"]
        parts.append(joined.assign(unit=unit))
    found = pd.concat(parts) if parts else _empty(rows, ordered)
    set_aside(aside, "never_seen", set(rows.index) - set(found["number"]))
    before: pd.DataFrame = found[found["time"].dt.date <= found["date"]]
    set_aside(aside, "decided_after", set(found["number"]) - set(before["number"]))
    # a patient who is benign has no malignant nodule
    benign = set(before.loc[(before["key"] == "patient") & ~before["malignant"].astype(bool), "unit"])
    malignant = set(before.loc[before["malignant"].astype(bool), "unit"])
    contradict = before["unit"].isin(benign & malignant)
    set_aside(aside, "contradiction", set(before.loc[contradict, "number"]))
    return before[~contradict]


def _empty(rows: pd.DataFrame, decisions: pd.DataFrame) -> pd.DataFrame:
    """Return the columns of a join without any row."""
    return rows.reset_index().iloc[:0].merge(decisions.iloc[:0], left_on="hash", right_on="image").assign(unit="")


def _decided(views: pd.DataFrame, answers: Answers) -> pd.DataFrame:
    """Return the decision on every patient, in the order of the outcomes; see `Outcomes.table`.

    Of several decisions on one box of an image the last one counts.
    """
    last = views.assign(box=views["box"].map(tuple)).sort_values(["time", "id"], kind="stable")
    last = last.drop_duplicates(["unit", "image", "box"], keep="last")
    last["doubted"] = last["reasons"].map(lambda reasons: not _COUNTED.issuperset(reasons)).astype(bool)
    nothing = last.groupby("unit")["doubted"].transform("all").astype(bool)
    counted = last[nothing | ~last["doubted"]]
    score = counted.groupby("unit")["probability"].agg(["mean", "min", "max"])
    cases = views.groupby("unit").agg(date=("date", "max"), malignant=("malignant", "max"), images=("image", "nunique"))
    table = cases.join(score).rename(columns={"mean": "probability"}).rename_axis("unit").reset_index()
    table = table.astype({"malignant": bool, "probability": float, "min": float, "max": float})
    table["decision"] = answers.point.decide(table["probability"])
    apart = [
        answers.disagree(np.array([[1 - low, low], [1 - high, high]])) for low, high in table[["min", "max"]].values
    ]
    contradicted = table["unit"].isin(_contradicted(counted, answers))
    undecided = table["unit"].isin(last.loc[nothing, "unit"]) | contradicted | np.array(apart, bool)
    table["decision"] = table["decision"].astype(object).mask(undecided, "abstain")
    table = table.drop(columns=["min", "max"])
    return table.sort_values(["date", "unit"], kind="stable", ignore_index=True)


def _contradicted(views: pd.DataFrame, answers: Answers) -> "pd.Index[str]":
    """Return the patients whose descriptors contradict the mean of their views, as far as the log can say.

    It holds no points. Those of all views contradict the mean for certain if each view contradicts the same decision.
    """
    contradicts = views["reasons"].map(lambda reasons: DESCRIPTORS_DISAGREE in reasons).astype(bool)
    sides = pd.Series(answers.point.decide(views["probability"]), views.index).where(contradicts, "none")
    found = sides.groupby(views["unit"]).agg(["nunique", "first"])
    return found.index[(found["nunique"] == 1) & (found["first"] != "none")]


def _abstained(table: pd.DataFrame) -> dict[str, int]:
    undecided = table["malignant"][table["decision"] == "abstain"]
    return {"benign": int((~undecided).sum()), "malignant": int(undecided.sum())}


def right(table: pd.DataFrame, name: Share) -> pd.DataFrame:
    """Return the decided patients that a share is of, with the column `right`, in the order of the outcomes."""
    called = {"sensitivity": "malignant", "specificity": "benign"}[name]
    decided = table[(table["malignant"] == (name == "sensitivity")) & (table["decision"] != "abstain")]
    return decided.assign(right=decided["decision"] == called)


def _test(name: Share, chart: Chart, table: pd.DataFrame) -> Sequential:
    """Return a share with its confidence sequence, and whether its CUSUM has ever raised an alarm."""
    cases = right(table, name)
    count, hits = len(cases), int(cases["right"].sum())
    path = chart.path(cases["right"])
    beyond = np.flatnonzero(path >= chart.threshold)
    first = int(beyond[0]) if len(beyond) else None
    bounds = confidence_sequence(hits, count)
    return Sequential(
        name=name,
        n=count,
        right=hits,
        value=Interval(hits / count, *bounds) if count else Interval(0.0, None, None),
        expected=chart.expected,
        fallen=chart.fallen,
        statistic=float(path[-1] * chart.unit) if count else 0.0,
        threshold=chart.threshold * chart.unit,
        alarm=first is not None,
        alarm_at=None if first is None else cases["date"].iloc[first].isoformat(),
        alarm_after=None if first is None else first + 1,
    )


def _charts(options: WatchOptions, record: ArtefactRecord) -> tuple[dict[Share, Chart], list[str]]:
    """Return the CUSUM of each share, and what a reader must know of what the model is held to.

    The number of benign outcomes in a year follows from that of malignant ones and the prevalence in model.json. Both
    are fixed before any outcome is known, so that no later outcome moves a threshold.
    """
    prevalence = min(max(record.settings.prevalence, 0.01), 0.99)
    yearly: dict[Share, int] = {
        "sensitivity": options.cancers,
        "specificity": max(1, round(options.cancers * (1 - prevalence) / prevalence)),
    }
    charts, notes = dict[Share, Chart](), list[str]()
    for name, outcomes in yearly.items():
        wanted, told = _held_to(name, options, record)
        expected = min(max(wanted, min(options.fall + LOWEST, HIGHEST)), HIGHEST)
        fallen = max(expected - options.fall, LOWEST / 2)
        if not math.isclose(wanted, expected):
            why = "since otherwise a single mistake would be an alarm" if wanted > expected else "to leave room to fall"
            told.append(f"The model is held to a {name} of {expected:.2f} instead of {wanted:.2f}, {why}.")
        charts[name] = chart = Chart.tuned(expected, fallen, outcomes)
        kind = "malignant" if name == "sensitivity" else "benign"
        half, most = chart.detection(0.5), chart.detection(0.8)
        if half is not None and most is not None:
            told.append(
                f"A fall of the {name} from {expected:.2f} to {fallen:.2f} raises the alarm within {half} {kind} "
                f"outcomes in half of such cases, and within {most} in 80 %. In a year with {outcomes} {kind} outcomes "
                f"a false alarm has a probability of at most {FALSE_ALARM / 2:.2%}."
            )
        notes += told
    return charts, notes


def _held_to(name: Share, options: WatchOptions, record: ArtefactRecord) -> tuple[float, list[str]]:
    """Return the share that the model is held to: the one asked for, or else the best that was measured."""
    asked: float = getattr(options, name)
    form = record.forms.get("keras")
    if asked or not isinstance(form, KerasForm):
        return asked or record.settings.sensitivity, []
    tested = form.test.get(record.serving_domain)
    levels: list[tuple[str, Any]] = [("validation by image", form.validation)]
    if tested is not None:
        levels = [("internal test by patient", tested.patient_level), ("internal test by image", tested), *levels]
    found = ((where, level, getattr(level, name)) for where, level in levels)
    where, _, share = next(one for one in found if one[2] is not None)
    return share.value, [
        f"The {name} that the model is held to is that of its {where}, {share}: where that interval is wide, an alarm "
        f"may also mean that the true {name} was lower from the start. Set --{name} to hold it to another one."
    ]


def _figures(table: pd.DataFrame, seed: int) -> dict[str, Any]:
    """Return the figures that do not depend on the order of the outcomes, by their field of the record.

    Every patient is one row, so that the bootstrap draws patients. Undecided patients count in all but accuracy and
    majority.
    """
    names = ("auroc", "majority", "accuracy", "observed_to_expected", "brier")
    figures: dict[str, Any] = dict.fromkeys(names)
    if table.empty:
        return figures
    truth, score, patient = table["malignant"].to_numpy(), table["probability"].to_numpy(), np.arange(len(table))
    draws = metrics.Draws(patient, max(_FEWEST_DRAWS, min(metrics.DRAWS, _CELLS // len(table))), seed)
    brier = metrics.brier_draws(draws, truth, score, patient)
    figures["brier"] = metrics.interval(brier) if len(table) > 1 else Interval(float(brier[0]), None, None)
    if score.sum() > 0:
        figures["observed_to_expected"] = metrics.observed_to_expected(draws, truth, score, patient)
    if truth.any() and not truth.all():
        figures["auroc"] = metrics.auroc_interval(draws, truth, score, patient)
    decided = table[table["decision"] != "abstain"]
    if len(decided):
        hits = int(((decided["decision"] == "malignant") == decided["malignant"]).sum())
        share = float(decided["malignant"].mean())
        figures["accuracy"] = Interval(hits / len(decided), *metrics.clopper_pearson(hits, len(decided)))
        figures["majority"] = max(share, 1 - share)
    return figures


def _worst(tests: list[Sequential], table: pd.DataFrame) -> list[str]:
    """Say what each share would be if all undecided patients counted as wrong."""
    undecided = _abstained(table)
    told = []
    for test in tests:
        kind = "malignant" if test.name == "sensitivity" else "benign"
        if left := undecided[kind]:
            many = "1 patient" if left == 1 else f"{left} patients"
            told.append(
                f"{many} with a {kind} outcome had no decision and count neither as right nor as wrong. If all were "
                f"wrong, the {test.name} would be {test.right / (test.n + left):.3f}."
            )
    return told
