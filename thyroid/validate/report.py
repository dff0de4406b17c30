"""Render the report of an external validation: one file, with one page for a clinician and the detail after it."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from thyroid import metrics, rendering
from thyroid.data.classes import BINARY, Classes
from thyroid.data.tables import DOMAIN_NAMES
from thyroid.evaluate import gate, performance
from thyroid.evaluate.audits import names
from thyroid.evaluate.audits.shortcut import ShortcutAudit
from thyroid.interval import Interval
from thyroid.records.performance import Level
from thyroid.records.validation import Beside, Calibration, FormResult, ValidationRecord
from thyroid.validate import plots, unlike
from thyroid.validate.endpoint import UNDECIDED
from thyroid.validate.site import REASONS

WORST = 6
"""Number of the surest mistakes of each kind that are shown."""

KINDS = {
    "given": "boxes that a person drew",
    "automatic": "the model's own boxes",
    "frame": "full frames",
}
"""Kinds of boxes in words."""

FIGURES = {
    "auroc": ("Area under the ROC curve (AUROC)", "1 is perfect, 0.5 is guessing"),
    "sensitivity": ("Sensitivity", "malignant ones that are called malignant"),
    "specificity": ("Specificity", "benign ones that are called benign"),
    "ppv_at_prevalence": ("Positive predictive value", "malignant among those called malignant"),
    "npv_at_prevalence": ("Negative predictive value", "benign among those called benign"),
}
"""Rows of the first page's table: title and meaning by name of the metric."""

FURTHER = {"brier": "Brier score", "ece": "Expected calibration error"}
"""Further rows of the tables behind it."""

MARGINS = {
    "auroc": gate.MARGIN,
    "sensitivity": gate.SENSITIVITY_SLACK,
    "specificity": gate.SPECIFICITY_MARGIN,
}
"""Falls that are still called holding: those that the gate of the registry allows a new model against the champion."""

LISTED = 500
"""Number of rows of a list of files that the report shows."""

CROWDED = 3
"""Number of warnings up to which the printed first page has room for the figures by image, which are also behind it."""

Outcome = Literal["holds", "worse", "unknown"]

_TEMPLATE = "report.html"
_LEVELS = {"patient_": "patient", "": "image"}


def write(
    output: Path,
    record: ValidationRecord,
    tables: Mapping[str, pd.DataFrame],
    *,
    taken_out: pd.DataFrame,
    quarantine: pd.DataFrame,
    cases: Mapping[str, Sequence[plots.Case]],
) -> None:
    """Render report.html into `output`, a single file that opens without a network connection.

    Args:
        output: Folder to write to; it is made if it is missing.
        record: The validation.
        tables: Predictions by kind of boxes, with the columns of `thyroid.validate.endpoint`.
        taken_out: Scans that the model knows: file and reason.
        quarantine: Files that cannot be used: file and reason.
        cases: The surest mistakes, by "false-negatives" and "false-positives": file name, probability, image and heat
            map (uint8 [size, size, 3]) of each.
    """
    output.mkdir(parents=True, exist_ok=True)
    audited = None if record.audits is None else ShortcutAudit.from_record(record.audits, None)
    rows = _audit_rows(audited)
    with tempfile.TemporaryDirectory(dir=output, prefix=".plots-") as folder:
        pictures = plots.draw(record, tables, cases, rows, Path(folder))
    environment = rendering.environment("thyroid.validate")
    environment.filters |= {"percent": _percent, "sentence": _sentence, "signed": _signed}
    classes, main = Classes.from_record(record), record.forms[record.main]
    html = environment.get_template(_TEMPLATE).render(
        record=record,
        main=main,
        outcome=judge(record)[0],
        headline=headline(record),
        frequencies=frequencies(main),
        crowded=len(record.warnings) > CROWDED,
        first_table=_first_table(main),
        tables={kind: _tables(form) for kind, form in record.forms.items()},
        calibration={kind: describe_calibration(form.calibration) for kind, form in record.forms.items()},
        kinds=KINDS,
        domain_names=DOMAIN_NAMES | {"automatic": "frames as they come"},
        several=classes != BINARY,
        split_at=str(classes),
        aggregation=performance.AGGREGATION,
        small=performance.SMALL,
        margins=MARGINS,
        audit=audited,
        unclear=_unclear(record),
        not_measured=_not_measured(audited),
        guessing=_guessing(main.beside["patient_auroc"].external),
        titles=plots.MISTAKES,
        describe=unlike.describe,
        undecided=UNDECIDED,
        reasons=REASONS,
        taken_out=taken_out.to_dict("records"),
        quarantine=quarantine.to_dict("records"),
        listed=LISTED,
        draws=metrics.DRAWS,
        pictures=pictures,
    )
    (output / "report.html").write_text(html, encoding="utf-8")


def _audit_rows(audited: ShortcutAudit | None) -> list[tuple[str, Interval, bool]]:
    """Return the rows of the audit's plot; what the evaluation measures on test images is measured on the site's."""
    rows = audited.picture.rows if audited is not None and audited.picture is not None else []
    return [(name.replace("test images", "images of this site"), auroc, reference) for name, auroc, reference in rows]


def headline(record: ValidationRecord) -> list[str]:
    """Say in a few plain sentences whether the model holds up, what was tried where, and what came out."""
    model, scans, form = record.model, record.scans, record.forms[record.main]
    role = "the champion" if model.released else "not released"
    known = "None of these scans was used to make it, and nothing was adjusted to them."
    if scans.unchecked is not None:
        known = "Whether it knows some of these patients could not be checked; nothing was adjusted to these scans."
    benign = scans.patients - scans.malignant_patients
    sides = f"{scans.malignant_patients} with a malignant nodule and {benign} without"
    if not scans.malignant_patients or not benign:
        sides = f"{'all' if scans.malignant_patients else 'none'} with a malignant nodule"
    told = [
        judge(record)[1],
        f"Version {model.version} of {model.name} ({role}) was tried on {_count(scans.scans, 'scan')} of "
        f"{_count(scans.patients, 'patient')} from {record.site}, {sides}. {known}",
        _say_auroc(form),
        *_say_decisions(form),
    ]
    if scans.synthetic:
        told.append(f"{scans.synthetic} of the scans are synthetic phantoms: these figures say nothing about patients.")
    return told


def judge(record: ValidationRecord) -> tuple[Outcome, str]:
    """Say whether the model holds at the site, by its leading figures by patient.

    It does worse if the whole interval of a difference is below 0, or that of the AUROC below .5. It holds up if the
    whole interval of the AUROC is above .5, and no interval of the AUROC's, the sensitivity's and the specificity's
    difference reaches below the margin of `MARGINS`. Otherwise it is not known.

    Returns:
        "holds", "worse" or "unknown", and one sentence.
    """
    pairs = {name: record.forms[record.main].beside[f"patient_{name}"] for name in MARGINS}
    fallen = [_name(name) for name, pair in pairs.items() if plots.away(pair.difference, 0) == "below"]
    guessing = _guessing(auroc := pairs["auroc"].external)
    if fallen:
        also = f", and it is {guessing}" if guessing else ""
        return "worse", f"It does worse here than on its internal test: lower {unlike.listed(fallen)}{also}."
    if guessing:
        said = f"Here it is {guessing} at telling malignant from benign."
        return "worse" if plots.away(auroc, 0.5) else "unknown", said
    differences = {name: pair.difference for name, pair in pairs.items() if pair.difference is not None}
    lows = {name: found.low for name, found in differences.items() if found.low is not None}
    unknown = "It is not known whether it holds up here"
    if not lows:
        return "unknown", f"{unknown}: it cannot be compared with an internal test."
    if deep := [name for name, low in lows.items() if low <= -MARGINS[name]]:
        why = unlike.listed([f"the {_name(name)} is {_size(name, -lows[name])} lower" for name in deep])
        return "unknown", f"{unknown}: no fall is shown, but it cannot be excluded that {why}."
    if missing := [_name(name) for name in MARGINS if name not in lows]:
        known = unlike.listed([_name(name) for name in lows])
        why = f"no fall of the {known} is shown, but {unlike.listed(missing)} cannot be compared"
        return "unknown", f"{unknown}: {why}."
    return "holds", f"It holds up here: falls of more than {_sizes(MARGINS)} are excluded."


def _guessing(auroc: Interval | None) -> str | None:
    """Say how an AUROC compares with guessing; None if it is better, or unknown."""
    side = plots.away(auroc, 0.5)
    if auroc is None or side == "above":
        return None
    return "worse than guessing" if side == "below" else "not shown to be better than guessing"


def frequencies(form: FormResult) -> list[str]:
    """Say in patients of a hundred what the decisions at the locked threshold mean."""
    level, told = form.performance.patient_level, []
    for share, of, what in (
        (level.sensitivity, "with a malignant nodule", "missed"),
        (level.specificity, "without a malignant nodule", "called malignant by mistake"),
    ):
        if share is not None:
            low, high = share.low, share.high
            bounds = (
                "" if low is None or high is None else f" (between {100 * (1 - high):.0f} and {100 * (1 - low):.0f})"
            )
            told.append(f"Of 100 patients {of}, {100 - 100 * share.value:.0f} would be {what}{bounds}.")
    return told


def describe_calibration(found: Calibration | None) -> list[str]:
    """Say in words how well the probabilities fit the site; nothing without a calibration."""
    if found is None:
        return []
    ratio, slope = found.observed_to_expected, found.slope
    level = {"below": "are too high here", "above": "are too low here", None: "are not shown to be too high or too low"}
    spread = {
        "below": "they are too extreme: high ones are too high and low ones too low",
        "above": "they are too timid: high ones are too low and low ones too high",
        None: "their spread is not shown to be wrong",
    }
    shape = spread[plots.away(slope, 1)]
    if plots.away(slope, 0) == "below":
        shape = "they run the wrong way: the higher they are, the fewer of the images are malignant"
    elif slope.low is not None and plots.away(slope, 0) is None:
        shape = "it is not shown that higher ones mean more malignant images"
    average = f"On average the probabilities {level[plots.away(ratio, 1)]}"
    return [f"{average} (observed to expected {ratio}); {shape} (slope {slope})."]


def _unclear(record: ValidationRecord) -> str | None:
    """Say why it is not known whether the evidence is in the nodule; None if it is known, or no reason is."""
    found = None if record.audits is None else record.audits.shortcut.get("model")
    if record.not_audited is None or found is None or (guessing := _guessing(found)) is None:
        return record.not_audited
    return f"the model is {guessing} on these images (AUROC {_plain(found)}), so its answers show no evidence to judge"


def _not_measured(audited: ShortcutAudit | None) -> dict[str, str]:
    """Return what the audit did not measure, in words, and why. What was measured but not judged is in `_unclear`."""
    found = {} if audited is None else audited.not_measured
    return {names.describe(name): why for name, why in found.items() if name in names.SHORTCUTS | names.REFERENCES}


def _say_auroc(form: FormResult) -> str:
    """Compare the AUROC by patient with that of the internal test."""
    pair = form.beside["patient_auroc"]
    here, there, difference = pair.external, pair.internal, pair.difference
    if here is None:
        only = "malignant" if form.performance.patient_level.sensitivity is not None else "benign"
        return f"All of them have a {only} nodule, so it cannot be said how well it tells malignant from benign here."
    found = (
        "Of 100 pairs of a patient with a malignant nodule and one without, it gives the malignant one the higher "
        f"probability in {here.value * 100:.0f} (AUROC {_plain(here)}; 0.5 is guessing, 1 is perfect)"
    )
    if there is None:
        return f"{found}; it was not measured on an internal test in this way."
    found = f"{found}; on its internal test in {there.value * 100:.0f} (AUROC {_plain(there)})"
    if difference is None or difference.low is None or difference.high is None:
        return f"{found}. There are too few patients to say whether that is a difference."
    if plots.away(difference, 0) == "below":
        fall, least, most = (_size("auroc", -one) for one in (difference.value, difference.high, difference.low))
        return f"{found}. That is a fall of the AUROC of {fall} [{least} to {most}]."
    if difference.low > 0:
        return f"{found}. That is better, but nobody should count on it."
    return (
        f"{found}. The data fit anything from a fall of the AUROC of {_size('auroc', -difference.low)} to a gain of "
        f"{_size('auroc', difference.high)}."
    )


def _say_decisions(form: FormResult) -> list[str]:
    """Compare sensitivity and specificity by patient with those of the internal test."""
    parts = []
    for name, what in (
        ("sensitivity", "finds {} of 100 patients with a malignant nodule"),
        ("specificity", "calls {} of 100 patients without one benign"),
    ):
        pair = form.beside[f"patient_{name}"]
        if pair.external is not None:
            parts.append(what.format(_plain(pair.external, 100, 0)) + _against(pair))
    return [f"At its locked threshold it {', and '.join(parts)}."] if parts else []


def _against(pair: Beside) -> str:
    """Say how a share differs from the internal test."""
    difference = pair.difference
    if pair.internal is None or difference is None:
        return ""
    there = f" (internal test: {pair.internal.value * 100:.0f}"
    if difference.low is None or difference.high is None:
        return f"{there})"
    if difference.low > 0 or difference.high < 0:
        low, size, high = sorted(abs(one) * 100 for one in (difference.low, difference.value, difference.high))
        word = "fall" if difference.high < 0 else "rise"
        return f"{there}; a {word} of {size:.1f} points [{low:.1f} to {high:.1f}])"
    return f"{there}; no difference is shown)"


def _first_table(form: FormResult) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of the first page's table by level: percentages for shares, three decimals for the AUROC."""
    found: dict[str, list[dict[str, Any]]] = {}
    for prefix, level in _LEVELS.items():
        for name, (title, meaning) in FIGURES.items():
            pair, written = form.beside[prefix + name], (1, 3, "") if name == "auroc" else (100, 0, "%")
            found.setdefault(level, []).append(
                {
                    "title": title,
                    "meaning": meaning,
                    "here": "not known" if pair.external is None else _plain(pair.external, *written),
                    "internal": "not known" if pair.internal is None else _plain(pair.internal, *written),
                    "difference": _difference(name, pair.difference),
                    "fell": plots.away(pair.difference, 0) == "below",
                }
            )
    return found


def _tables(form: FormResult) -> list[dict[str, Any]]:
    """Return the tables behind the first page: every metric beside the internal test, by patient and by image."""
    titles = {name: title for name, (title, _) in FIGURES.items()} | FURTHER
    levels: dict[str, Level] = {"patient_": form.performance.patient_level, "": form.performance}
    return [
        {
            "level": _LEVELS[prefix],
            "count": form.performance.patients if prefix else form.performance.n,
            "rows": [(title, form.beside[prefix + name]) for name, title in titles.items()],
            "of": level,
        }
        for prefix, level in levels.items()
    ]


def _difference(name: str, difference: Interval | None) -> str:
    """Return a difference with its sign; shares are in percentage points."""
    if difference is None:
        return "not known"
    times, digits, unit = (1, 3, "") if name == "auroc" else (100, 1, " points")
    low, high = difference.low, difference.high
    if any(bound and abs(bound) * times < 0.5 / 10**digits for bound in (low, high)):
        digits += 1  # a bound next to 0 keeps its sign
    bounds = "" if low is None or high is None else f" [{low * times:+.{digits}f} to {high * times:+.{digits}f}]"
    return f"{difference.value * times:+.{digits}f}{unit}{bounds}".replace("-", "−")


def _name(metric: str) -> str:
    return "AUROC" if metric == "auroc" else metric


def _size(metric: str, change: float) -> str:
    """Return the size of a change: to three decimals for the AUROC, in percentage points for a share."""
    return f"{max(0.0, change):.3f}" if metric == "auroc" else f"{max(0.0, change) * 100:.1f} points"


def _sizes(changes: Mapping[str, float]) -> str:
    return unlike.listed([f"{_size(name, change)} of the {_name(name)}" for name, change in changes.items()])


def _plain(found: Interval, times: int = 1, digits: int = 3, unit: str = "") -> str:
    """Return a value with its bounds, multiplied and rounded."""
    low, high = found.low, found.high
    bounds = "" if low is None or high is None else f" [{low * times:.{digits}f} to {high * times:.{digits}f}]"
    return f"{found.value * times:.{digits}f}{unit}{bounds}"


def _signed(difference: Interval | None) -> str:
    """Return a difference to three decimals with its sign, for the tables behind the first page."""
    if difference is None:
        return "n/a"
    low, high = difference.low, difference.high
    bounds = " [n/a]" if low is None or high is None else f" [{low:+.3f}, {high:+.3f}]"
    return f"{difference.value:+.3f}{bounds}".replace("-", "−")


def _percent(share: float) -> str:
    return f"{100 * share:.3g}%"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:].rstrip('.')}."
