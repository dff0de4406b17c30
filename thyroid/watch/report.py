"""Render the page "since release": one A4 page for a clinician, and the detail after it, in one file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thyroid import rendering
from thyroid.interval import Interval
from thyroid.records.gate import ShadowChange
from thyroid.records.watch import DriftRecord, DriftRow, EstimatedPerformance, OutcomesRecord, Sequential, WatchRecord
from thyroid.validate.endpoint import UNDECIDED
from thyroid.validate.plots import Picture
from thyroid.validate.unlike import listed
from thyroid.watch import verdict
from thyroid.watch.outcomes.outcomes import SELECTION
from thyroid.watch.outcomes.table import REASONS
from thyroid.watch.shadow import plot as shadow

PROPERTIES = {
    "distance": ("How unlike the training pictures they are (from 1 on: unlike)", "number"),
    "abstain": ("Patients left undecided", "share"),
    "malignant": ("Patients called malignant", "share"),
    "probability": ("Probability of malignant", "share"),
    "box_probability": ("How sure the model is of its own box", "share"),
    "box_share": ("Share of the picture that the box takes", "share"),
    "width": ("Width of the picture (pixels)", "pixels"),
    "height": ("Height of the picture (pixels)", "pixels"),
    "aspect": ("Width divided by height", "number"),
}
"""Title and unit of each property that is compared."""

SET_ASIDE = {
    "damaged": "cannot be read",
    "doubled": "are in the log twice",
    "too_early": "are older than the model",
    "in_future": "lie in the future",
}
"""Reasons for which a line of the log is not used, in words."""

_TEMPLATE = "report.html"
_SHOWN = 50  # changed decisions that the page shows; the table has all


@dataclass(frozen=True)
class Extra:
    """What the report says beside watch.json.

    Attributes:
        failed: What could not be done, in words.
        notes: What a reader must know of the outcomes beside `unseen`, a sentence each.
        unlike: Whether the new scans are like the training scans, in one sentence; None if that is not known.
        changes: The pictures that a candidate behind this version decides on otherwise, newest first.
    """

    failed: Sequence[str] = ()
    notes: Sequence[str] = ()
    unlike: str | None = None
    changes: Sequence[ShadowChange] = ()


def write(output: Path, record: WatchRecord, pictures: Mapping[str, Picture], extra: Extra) -> None:
    """Render report.html into `output`, a single file that opens without a network connection.

    Args:
        output: Folder to write to; it must exist.
        record: What was found.
        pictures: The plots by name, drift, shadow, and those of `thyroid.watch.outcomes.plots`.
        extra: What the report says beside it.
    """
    environment = rendering.environment("thyroid.watch")
    environment.filters |= {"percent": _percent, "plain": _plain, "day": _day}
    html = environment.get_template(_TEMPLATE).render(
        record=record,
        extra=extra,
        advice=advice(record),
        pictures=pictures,
        seen=seen(record),
        changed=_changed(record.drift),
        rows=[_row(row) for row in record.drift.rows],
        as_before=_as_before(record.drift.rows),
        earlier=_earlier(record.drift),
        estimated=[estimated(one) for one in record.estimated],
        outcomes=None if record.outcomes is None else frequencies(record.outcomes),
        outcome_reasons=REASONS,
        unseen=unseen(record),
        changes=extra.changes[:_SHOWN],
        group_title=shadow.title,
        sources=verdict.SOURCES,
        set_aside=SET_ASIDE,
    )
    (output / "report.html").write_text(html, encoding="utf-8")


def headline(record: WatchRecord) -> list[str]:
    """Say in a few plain sentences whether the model still holds, what was seen, and what the outcomes say."""
    found = [record.summary, *seen(record)[:1]]
    if record.outcomes is not None:
        found += frequencies(record.outcomes)[:2]
    return found


def seen(record: WatchRecord) -> list[str]:
    """Say how much the model has decided since when, how often it could not, and why."""
    log = record.log
    model = f"Version {record.model.version} of {record.model.name}"
    role = "the champion" if record.model.released else "not released"
    if not log.decisions and not record.scans:
        return [f"{model} ({role}) was published on {_day(record.model.created)}. No decision is known."]
    days = "" if log.first is None else f" from {log.first} to {log.last}"
    judged = f", and {count(record.scans, 'new scan')} judged for this report" if record.scans else ""
    told = [
        f"{model} ({role}), published on {_day(record.model.created)}, decided on {count(log.decisions, 'picture')} of "
        f"{count(log.patients, 'patient')}{days}{judged}."
    ]
    if log.decisions:
        undecided = log.decided.get("abstain", 0)
        why = listed(
            [f"{UNDECIDED.get(name, name)} ({number})" for name, number in log.reasons.items()] or ["none said"]
        )
        several = "; one may have several reasons" if sum(log.reasons.values()) > undecided else ""
        told.append(
            f"{_part(log.unlike, log.decisions)} unlike the training pictures."
            if record.model.novelty
            else "This version cannot tell whether a picture is unlike the training pictures."
        )
        told.append(f"{_part(undecided, log.decisions)} left undecided{f': {why}{several}' if undecided else ''}.")
    return told


def advice(record: WatchRecord) -> list[str]:
    """Say what to do about the verdict."""
    if record.verdict == "worse":
        return [
            "Read without the model until it is known why its decisions are wrong more often.",
            "Look at the missed cancers and the false alarms in the patients' files. This report names no patient.",
            "Go back to the model before, or train a new one: somebody who answers for the model decides.",
        ]
    if record.verdict == "drift":
        names = {row.source for row in verdict.alarms(record.drift)}
        which = listed([verdict.SOURCES.get(name, name) for name in sorted(names)])
        return [
            "Look at some of the newest pictures. Is there a new scanner, a new preset or export, or another kind of "
            "patient?",
            f"Until it is known why, do not rely on its decisions on {which}. A change alone does not make them wrong.",
            "If the change is to stay, collect pathology of the new pictures, validate the model on them, and train a "
            "new one.",
        ]
    if record.verdict == "steady":
        return ["Nothing needs to be done. Keep entering the pathology of every patient who gets one, benign or not."]
    if not record.log.decisions:
        return [
            "Check that the endpoint writes a decision log, and that this is its folder.",
            "Until then nobody watches this model.",
        ]
    return ["Until something can be compared, nobody watches this model but the doctors who use it."]


def _changed(drift: DriftRecord) -> list[str]:
    """Say what has changed, how much, and in how many patients; and where, if several kinds of pictures came."""
    several = len({row.source for row in drift.rows}) > 1
    return [
        _explain(row, f"{verdict.SOURCES.get(row.source, row.source)}; " if several else "")
        for row in verdict.alarms(drift)
    ]


def _explain(row: DriftRow, where: str) -> str:
    what = verdict.change(row)
    nights = "in the last night" if row.nights == 1 else f"in the last {row.nights} nights"
    value, reference = _value(row.property, row.value), _value(row.property, row.reference)
    kind = "" if row.property in ("abstain", "malignant") else "median "
    patients = f"{count(row.n, 'patient')} {nights}, compared with {row.reference_n}"
    return f"{what[0].upper()}{what[1:]}: {kind}{value}, usually {reference} ({where}{patients})."


def frequencies(outcomes: OutcomesRecord) -> list[str]:
    """Say in counts of patients what became of the decisions, cancers first."""
    if not outcomes.patients:
        return ["No outcome of a patient with a decision is known yet."]
    told = []
    for test in outcomes.tests:
        cancer = test.name == "sensitivity"
        undecided = outcomes.abstained.get("malignant" if cancer else "benign", 0)
        told += _of_class(test, undecided, "malignant" if cancer else "benign")
    return told


def _of_class(test: Sequential, undecided: int, name: str) -> list[str]:
    """Say what became of the patients with one outcome."""
    every = test.n + undecided
    if not every:
        return [f"No patient with a decision is known to have had a {name} nodule."]
    other = "benign" if name == "malignant" else "malignant"
    left = f" and left {undecided} undecided" if undecided else ""
    joined = "," if undecided else " and"
    told = [
        f"Of {count(every, 'patient')} whose nodule was {name}, it called {test.right} {name}{joined} "
        f"{test.n - test.right} {other} by mistake{left}."
    ]
    if not test.n:
        return told
    low, high = test.value.low, test.value.high
    between = "" if low is None or high is None else f" ({100 * low:.0f} to {100 * high:.0f} are possible)"
    worst = f" With the undecided counted as wrong it is {100 * test.right / every:.0f}." if undecided else ""
    told.append(
        f"Of 100 such patients with a decision it calls {100 * test.value.value:.0f} {name}{between}; it is held to "
        f"{100 * test.expected:.0f}.{worst} {_alarm(test, name)}"
    )
    return told


def _alarm(test: Sequential, name: str) -> str:
    """Say whether the sequential test raised an alarm, or could have."""
    if test.alarm:
        return f"The alarm was raised on {test.alarm_at}, after {count(test.alarm_after or test.n, 'such patient')}."
    if not verdict.could_alarm(test):
        return f"That is too few to notice a fall to {100 * test.fallen:.0f}."
    return "No alarm."


def estimated(one: EstimatedPerformance) -> dict[str, str]:
    """Return a row of the table of estimates: source, patients, estimate, internal test."""
    return {
        "source": verdict.SOURCES.get(one.source, one.source),
        "patients": str(one.patients),
        "auroc": _plain(one.auroc),
        "internal": "not measured" if one.internal is None else _plain(one.internal),
    }


def unseen(record: WatchRecord) -> list[str]:
    """Say what these data cannot show."""
    told = [
        "Whether a decision is right shows only in outcomes. A disease may come to look different while pictures and "
        "answers look as before.",
        "What the log lost (its queue was full, or the disk) is not counted; the metric thyroid_decision_log tells how "
        "much that is.",
    ]
    if record.outcomes is not None:
        told.insert(0, SELECTION)
    else:
        told[0] = (
            "No outcomes were given, so nothing here says whether its decisions are right. Give pathology with "
            "--outcomes. " + told[0]
        )
    if record.estimated:
        told.append(
            "The estimate without outcomes is what the model itself believes. If its probabilities no longer mean what "
            "they say, it is wrong, and nothing in it would show that."
        )
    return told


def count(number: int, what: str) -> str:
    """Return a number with its noun."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _part(number: int, of: int) -> str:
    """Say how many pictures of all, up to the verb."""
    share = f" ({_percent(number / of)})" if number else ""
    return f"{number or 'None'} of {count(of, 'picture')}{share} {'was' if number in (0, 1) else 'were'}"


def _earlier(drift: DriftRecord) -> list[str]:
    """Return the nights with an alarm before the present run of alarms."""
    end = drift.first_alarm or "9"
    return [night for night in drift.alarms if night < end]


def _row(row: DriftRow) -> dict[str, Any]:
    title, _ = PROPERTIES.get(row.property, (row.property, "number"))
    return {
        "source": verdict.SOURCES.get(row.source, row.source),
        "title": title,
        "nights": row.nights,
        "n": row.n,
        "reference_n": row.reference_n,
        "value": _value(row.property, row.value),
        "reference": _value(row.property, row.reference),
        "difference": f"{row.difference:.2f}",
        "p": "below 0.0001" if row.p < 0.0001 else f"{row.p:.4f}",
        "alarm": row.alarm,
    }


def _as_before(rows: Sequence[DriftRow]) -> str:
    """Name the properties without an alarm, what bears most on the decisions first."""
    names = {row.property for row in rows} - {row.property for row in rows if row.alarm}
    titles = [title.partition(" (")[0] for name, (title, _) in PROPERTIES.items() if name in names]
    return listed([title[0].lower() + title[1:] for title in titles]) if titles else ""


def _value(name: str, value: float) -> str:
    _, unit = PROPERTIES.get(name, (name, "number"))
    return {"share": _percent(value), "pixels": f"{value:.0f}", "number": f"{value:.2f}"}[unit]


def _plain(found: Interval | None) -> str:
    """Return a value with its bounds to three decimals."""
    if found is None:
        return "not known"
    if found.low is None or found.high is None:
        return f"{found.value:.3f} (too few patients for an interval)"
    return f"{found.value:.3f} [{found.low:.3f} to {found.high:.3f}]"


def _percent(share: float) -> str:
    """Return a share in whole percent, or to one decimal below 10 %."""
    return f"{100 * share:.0f} %" if share >= 0.0995 or not share else f"{100 * share:.1f} %"


def _day(time: str) -> str:
    return time[:10]
