"""Measures a model at a site, beside its internal test, and says what a reader must know before the figures."""

import math
from collections.abc import Iterator

import numpy as np
import pandas as pd

from thyroid import metrics
from thyroid.data.classes import Classes
from thyroid.data.filenames import CLASSES, SCORE
from thyroid.errors import InputError
from thyroid.evaluate import performance
from thyroid.interval import Interval
from thyroid.model.artefact import Artefact
from thyroid.model.operating_point import OperatingPoint
from thyroid.records.model import KerasForm
from thyroid.records.performance import Level, Performance
from thyroid.records.validation import (
    Beside,
    Calibration,
    CalibrationBin,
    FormResult,
    NetBenefit,
    ValidateSettings,
    ValidationEntry,
    ValidationRecord,
)
from thyroid.serve.answers import BOX_NOT_CONFIRMED
from thyroid.validate.endpoint import UNDECIDED

FIGURES = ("auroc", "sensitivity", "specificity", "ppv_at_prevalence", "npv_at_prevalence", "brier", "ece")
"""Metrics that are put beside those of the internal test, on both levels."""
DIFFERENCES = FIGURES[:5]
"""Those of them of which a difference means something."""
KEPT = (*DIFFERENCES, *(f"patient_{name}" for name in FIGURES[:3]))
"""Those of them that the registry keeps."""
ENOUGH = 100
"""Patients of each class that an external validation should have at least: events and non-events of Vergouwe et al.
2005 (10.1016/j.jclinepi.2004.06.017) and Collins et al. 2016 (10.1002/sim.6787)."""

_DOMAINS = {"given": "cropped", "automatic": "automatic", "frame": "normal"}
"""Domain of the internal test by kind of boxes."""
_BOXES = {"given": "With given boxes", "automatic": "With automatic boxes", "frame": "With full frames"}
_CURVE = 60  # points of the decision curve


def of_form(
    table: pd.DataFrame, kind: str, artefact: Artefact, settings: ValidateSettings, groups: pd.DataFrame
) -> FormResult:
    """Measure the model at the site with one kind of boxes, beside its internal test with boxes of that kind.

    Args:
        table: Predictions, as `validate.endpoint` returns them.
        kind: "given", "automatic" or "frame".
        artefact: The model, whose model.json holds the locked operating point and the figures of the internal test.
        settings: Prevalence for the predictive values, and the seed of the bootstrap.
        groups: Subgroups of the scans, by path; see `subgroups.columns`.

    Raises:
        InputError: No image could be judged.
    """
    if not len(table):
        raise InputError(f"{_BOXES[kind].lower()}, no image of these scans could be judged; look at quarantine.csv")
    point = OperatingPoint.from_record(artefact.record)
    found = performance.of(table, Classes.from_record(artefact.record), point, settings.prevalence, settings.seed)
    domain, internal = _internal(artefact, kind)
    two_sided = _two_sided(found)
    seen = artefact.record.settings.prevalence
    beside = _beside(found, internal, seen, settings.prevalence)
    levels = (found.patient_level, None if internal is None else internal.patient_level)
    beside |= {f"patient_{name}": pair for name, pair in _beside(*levels, seen, settings.prevalence).items()}
    return FormResult(
        performance=found,
        internal_domain=domain,
        beside=beside,
        calibration=_calibration(table, settings.seed) if two_sided else None,
        net_benefit=_decision_curve(table, _prior(artefact, internal), settings.prevalence) if two_sided else [],
        subgroups=performance.by_subgroup(
            table.join(groups, on="path"), point.threshold, settings.prevalence, settings.seed
        ),
        undecided=_undecided(table),
    )


def _internal(artefact: Artefact, kind: str) -> tuple[str | None, Performance | None]:
    """Return the domain and the metrics of the internal test with this kind of boxes, if there was one."""
    form = artefact.record.forms.get("keras")
    tested = form.test if isinstance(form, KerasForm) else {}
    domain = _DOMAINS[kind]
    return (domain, tested[domain]) if domain in tested else (None, None)


def _beside(here: Level, internal: Level | None, measured_at: float, prevalence: float) -> dict[str, Beside]:
    """Put the metrics of a level beside those of the internal test.

    Predictive values are compared at one prevalence: those of the internal test are computed again where it is another
    one than they were measured at. Brier score and calibration error have no difference: the one depends on the share
    of malignant patients, the other is the larger the fewer there are. Those of one side alone say nothing.
    """
    own: dict[str, Interval | None] = {name: getattr(here, name) for name in FIGURES}
    if not _two_sided(here):
        own |= {"brier": None, "ece": None}
    there: dict[str, Interval | None] = {name: getattr(internal, name, None) for name in FIGURES}
    if internal is not None and not math.isclose(measured_at, prevalence):
        there |= {"ppv_at_prevalence": None, "npv_at_prevalence": None}
        if internal.sensitivity is not None and internal.specificity is not None:
            there |= metrics.predictive_values(internal.sensitivity, internal.specificity, prevalence)
    return {name: _pair(own[name], there[name], name in DIFFERENCES) for name in FIGURES}


def _two_sided(level: Level) -> bool:
    return all(sum(row) for row in level.confusion)


def _pair(external: Interval | None, internal: Interval | None, comparable: bool) -> Beside:
    difference = None
    if comparable and external is not None and internal is not None:
        difference = metrics.independent_difference(external, internal)
    return Beside(internal=internal, external=external, difference=difference)


def _calibration(table: pd.DataFrame, seed: int) -> Calibration:
    seen = performance.is_malignant(table), table[SCORE].to_numpy(), table["patient"].to_numpy(int)
    bins = [
        CalibrationBin(predicted=one.predicted, observed=one.observed, images=one.images, patients=one.patients)
        for one in metrics.reliability(*seen)
    ]
    return Calibration(
        in_the_large=metrics.calibration_in_the_large(*seen),
        slope=metrics.calibration_slope(*seen),
        observed_to_expected=metrics.observed_to_expected(metrics.Draws(seen[2], seed=seed), *seen),
        bins=bins,
    )


def _prior(artefact: Artefact, internal: Performance | None) -> float:
    """Return the share of malignant images that the model's probabilities are meant for: that of its internal data."""
    if internal is not None:
        return sum(internal.confusion[1]) / internal.n
    form = artefact.record.forms.get("keras")
    if isinstance(form, KerasForm):
        return form.validation.malignant_patients / form.validation.patients
    return artefact.record.settings.prevalence


def _decision_curve(table: pd.DataFrame, prior: float, prevalence: float) -> list[NetBenefit]:
    """Return the decision curve where the share of malignant nodules is `prevalence`.

    The probabilities are shifted to it from the share that they are meant for. The site's own share is not used: nobody
    who meets a nodule there would know it.
    """
    positive = performance.is_malignant(table)
    thresholds = np.linspace(0, min(0.6, 4 * prevalence), _CURVE + 1)[1:]
    shifted = metrics.at_prevalence(table[SCORE].to_numpy(float), prior, prevalence)
    model = metrics.net_benefit(positive, shifted, thresholds, prevalence)
    everybody = metrics.net_benefit(positive, np.ones(len(table)), thresholds, prevalence)
    return [
        NetBenefit(threshold=float(at), model=float(own), everybody=float(of_all))
        for at, own, of_all in zip(thresholds, model, everybody, strict=True)
    ]


def _undecided(table: pd.DataFrame) -> dict[str, int]:
    """Count the undecided images by reason; an image with two reasons counts for both."""
    reasons = table["undecided"].str.split(",").explode()
    return {str(reason): int(count) for reason, count in reasons[reasons != ""].value_counts().items()}


def agreement(given: pd.DataFrame, automatic: pd.DataFrame, seed: int) -> Beside | None:
    """Compare automatic boxes with given ones on the frames that have both.

    Both AUROCs are of frames: the score of a frame with several given regions is the mean of theirs, as in
    `evaluate.boxes.cost`. The difference is paired and resamples patients.

    Args:
        given: Predictions with given boxes, one row per region.
        automatic: Predictions with automatic boxes, one row per frame.
        seed: Seed of the bootstrap.

    Returns:
        The AUROC with given boxes (internal) and with automatic ones (external); None where no frame has both, or these
        frames are of one side.
    """
    mean = given.groupby("path")[SCORE].mean()
    frames = automatic[automatic["path"].isin(mean.index)]
    if frames["label"].nunique() < len(CLASSES):
        return None
    positive, patient = performance.is_malignant(frames), frames["patient"].to_numpy(int)
    own, drawn = frames["path"].map(mean).to_numpy(float), frames[SCORE].to_numpy(float)
    return Beside(
        internal=metrics.auroc(positive, own, patient, seed=seed),
        external=metrics.auroc(positive, drawn, patient, seed=seed),
        difference=metrics.auroc_difference(positive, drawn, own, patient, seed=seed),
    )


def mistakes(table: pd.DataFrame, point: OperatingPoint) -> dict[str, pd.DataFrame]:
    """Return the images that are called wrongly, the surest mistakes first.

    Args:
        table: Predictions.
        point: Operating point of the model.

    Returns:
        Rows of `table`: "false-negatives", malignant but called benign, and "false-positives".
    """
    positive, called = performance.is_malignant(table), table[SCORE] >= point.threshold
    return {
        "false-negatives": table[positive & ~called].sort_values(SCORE, kind="stable").reset_index(drop=True),
        "false-positives": table[~positive & called]
        .sort_values(SCORE, ascending=False, kind="stable")
        .reset_index(drop=True),
    }


def entry(record: ValidationRecord) -> ValidationEntry:
    """Return what the registry keeps of a validation: the figures of the leading kind of boxes."""
    leading = record.forms[record.main]
    calibration, fitted = leading.calibration, record.recalibration
    registered = {} if fitted is None or fitted.version is None else {"recalibrated": fitted.version}
    return ValidationEntry(
        site=record.site,
        created=record.created,
        by=record.by,
        code_version=record.code_version,
        data_digest=record.data_digest,
        model=record.model.sha256,
        boxes=record.main,
        images=leading.performance.n,
        patients=leading.performance.patients,
        malignant_patients=sum(leading.performance.patient_level.confusion[1]),
        taken_out=sum(record.scans.taken_out.values()),
        synthetic=record.scans.synthetic,
        figures={name: leading.beside[name] for name in KEPT},
        in_the_large=None if calibration is None else calibration.in_the_large,
        slope=None if calibration is None else calibration.slope,
        observed_to_expected=None if calibration is None else calibration.observed_to_expected,
        **registered,
    )


def warnings(record: ValidationRecord, artefact: Artefact) -> list[str]:
    """Return what a reader must know before the figures, one sentence each; what limits them most comes first.

    Args:
        record: The validation; its own warnings are not read.
        artefact: The model.
    """
    leading = record.forms[record.main]
    return [
        *_of_size(leading.performance.patient_level),
        *_of_model(record, artefact),
        *_of_scans(record),
        *_of_prevalence(record, leading.performance.patient_level, artefact),
        *_of_falls(leading),
        *_of_calibration(leading.calibration),
        *(f"The shortcut audit fails on these scans: {why}." for why in _findings(record)),
        *(sentence for kind, form in record.forms.items() for sentence in _of_decisions(kind, form, artefact)),
    ]


def _findings(record: ValidationRecord) -> list[str]:
    return [] if record.audits is None else [why.rstrip(".") for why in record.audits.findings.values()]


def _of_size(patients: Level) -> Iterator[str]:
    benign, malignant = (sum(row) for row in patients.confusion)
    both = f"{benign + malignant} patients, {malignant} of them with a malignant nodule"
    if not _two_sided(patients):
        side, other, possible, missing = (
            ("malignant", "benign", "sensitivity", "specificity")
            if malignant
            else ("benign", "malignant", "specificity", "sensitivity")
        )
        yield (
            f"No patient here has a {other} nodule: only the {possible} can be measured, and neither {missing}, AUROC, "
            "predictive values nor calibration."
        )
        both = f"{benign + malignant} patients, all with a {side} nodule"
    fewest = min(count for count in (benign, malignant) if count)
    rule = f"an external validation should have {ENOUGH} of each class (Vergouwe et al. 2005, Collins et al. 2016)"
    if fewest < performance.SMALL:
        yield f"{both}: the intervals are so wide that they say little; {rule}."
    elif fewest < ENOUGH:
        yield f"{both}: the intervals are wide; {rule}."


def _of_model(record: ValidationRecord, artefact: Artefact) -> Iterator[str]:
    if not record.model.released:
        yield f"Version {record.model.version} is not the champion: it has not been released."
    if artefact.record.synthetic:
        yield (
            f"{artefact.record.synthetic} of the {artefact.record.scans} scans of the model's own data were drawn by "
            "the phantom generator."
        )


def _of_scans(record: ValidationRecord) -> Iterator[str]:
    scans = record.scans
    if scans.synthetic:
        yield (
            f"{scans.synthetic} of the {scans.scans} scans were drawn by the phantom generator: the figures say "
            "nothing about patients."
        )
    if (out := sum(scans.taken_out.values())) > 0:
        what = "1 scan was" if out == 1 else f"{out} scans were"
        yield f"{what} taken out because the model already knows the picture, a copy of it, or the patient."
    if scans.unchecked is not None:
        yield f"Patients could not be compared with those of the model: {scans.unchecked.rstrip('.')}."
    if record.main == "given" and scans.without_region:
        yield (
            f"{scans.without_region} of the {scans.scans} scans have no given region and are not in the figures with "
            "given boxes."
        )


def _of_prevalence(record: ValidationRecord, patients: Level, artefact: Artefact) -> Iterator[str]:
    _, internal = _internal(artefact, record.main)
    here = _share(patients)
    there = None if internal is None or not _two_sided(patients) else _share(internal.patient_level)
    difference = None if there is None else metrics.independent_difference(here, there)
    if there is not None and difference is not None and not _holds(difference, 0):
        yield (
            f"{here.value:.0%} of the patients here have a malignant nodule, and {there.value:.0%} of those of the "
            "internal test: probabilities depend on that share."
        )
    seen, asked = artefact.record.settings.prevalence, record.settings.prevalence
    if not math.isclose(seen, asked):
        yield (
            f"PPV and NPV are those where {100 * asked:.3g}% of the nodules are malignant; those of the internal "
            f"test, which were measured for {100 * seen:.3g}%, were computed for that share, too."
        )


def _share(patients: Level) -> Interval:
    """Return the share of malignant patients with its exact interval."""
    benign, malignant = (sum(row) for row in patients.confusion)
    total = benign + malignant
    return Interval(malignant / total, *metrics.clopper_pearson(malignant, total))


def _holds(found: Interval, value: float) -> bool:
    """Return whether an interval holds a value; one without bounds holds every value."""
    return found.low is None or found.high is None or found.low <= value <= found.high


def _of_falls(leading: FormResult) -> Iterator[str]:
    """Name what is worse than on the internal test beyond chance: by patient where it is so, else by image."""
    names = {"auroc": "AUROC", "sensitivity": "sensitivity", "specificity": "specificity"}
    for name, title in names.items():
        for prefix, unit in (("patient_", "patient"), ("", "image")):
            pair = leading.beside[prefix + name]
            if pair.difference is not None and not _holds(pair.difference, 0) and pair.difference.value < 0:
                yield (
                    f"The {title} by {unit} is lower here than on the internal test, beyond chance: {pair.external} "
                    f"instead of {pair.internal}, a difference of {pair.difference}."
                )
                break


def _of_calibration(found: Calibration | None) -> Iterator[str]:
    if found is None:
        return
    ratio, slope = found.observed_to_expected, found.slope
    if not _holds(ratio, 1):
        side = "low" if ratio.value > 1 else "high"
        yield (
            f"The probabilities are too {side} here: there are {ratio} times as many malignant images as they lead one "
            "to expect."
        )
    if slope.high is not None and slope.high < 0:
        yield (
            "The probabilities run the wrong way here: the higher they are, the fewer of the images are malignant "
            f"(the calibration slope is {slope}, not 1)."
        )
    elif not _holds(slope, 1):
        side = "too extreme" if slope.value < 1 else "not extreme enough"
        yield f"The probabilities are {side} here (the calibration slope is {slope}, not 1)."


def _of_decisions(kind: str, form: FormResult, artefact: Artefact) -> Iterator[str]:
    """Say what the endpoint would leave undecided with one kind of boxes."""
    cost, images = artefact.record.automatic_boxes, form.performance.n
    for reason, count in form.undecided.items():
        share = "all images" if count == images else f"{count / images:.0%} of the images"
        what = f"{_BOXES[kind]}, the endpoint would leave {share} ({count} of {images}) undecided"
        why = ""
        if (
            reason == BOX_NOT_CONFIRMED
            and cost is not None
            and cost.difference.low is not None
            and cost.difference.low < -cost.allowed
        ):
            why = (
                f": they may have cost it up to {-cost.difference.low:.3f} of its AUROC in the internal test (the "
                f"difference is {cost.difference}), and {cost.allowed:g} is allowed"
            )
        yield f"{what} because {UNDECIDED.get(reason, reason)}{why}."
