"""Registers the recalibration for a site as a version of its own, which only a person can promote.

The networks are those of the version that was validated. The operating point is fitted on the site's patients, and the
test figures of the new version are cross-fitted ones on these patients, in the form that answered there. Research use
only.
"""

import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import softmax

from thyroid import RESEARCH_USE_ONLY, metrics
from thyroid.clinical.fusion import Fusion
from thyroid.data import pseudonyms
from thyroid.data.classes import Classes
from thyroid.data.filenames import CLASSES, POSITIVE
from thyroid.data.version import DataVersion
from thyroid.errors import InputError
from thyroid.evaluate import gate, performance, predictions
from thyroid.evaluate.audits.shortcut import ShortcutAudit
from thyroid.evaluate.champion import Champion, Rivals
from thyroid.evaluate.options import EvaluateOptions
from thyroid.model import engine
from thyroid.model.artefact import MODEL, SCANS, Artefact
from thyroid.model.operating_point import OperatingPoint
from thyroid.records.gate import Criterion, GateRecord
from thyroid.records.model import FormTest, KerasForm, ModelAudit, ModelDescription, OtherForm
from thyroid.records.performance import ClassPerformance, Level, Performance, ValidationPerformance
from thyroid.records.validation import Recalibration, ValidationRecord
from thyroid.registry import changes
from thyroid.registry.register import RUN
from thyroid.registry.registry import Registry
from thyroid.serve.payload import Instance
from thyroid.serve.preprocessing import Preprocessing
from thyroid.validate import recalibration

SPLIT = "recalibration"
"""Split in scans.csv of the scans that an operating point was fitted on; no later validation may use them."""
_OF_PARENT = ("card.md", "report.html", RUN, SCANS)
"""Files of a version that say how it was made and how good it is, which does not hold for another operating point."""


@dataclass(frozen=True, eq=False)
class _Recalibrated:
    """A version with an operating point of a site's own.

    Attributes:
        parent: The version that it is made from.
        validation: What was measured at the site.
        gain: What the recalibration gains there.
        crossed: Cross-fitted predictions.
        point: Operating point that was fitted on all patients of `crossed`.
    """

    parent: Artefact
    validation: ValidationRecord
    gain: Recalibration
    crossed: pd.DataFrame
    point: OperatingPoint

    @property
    def classes(self) -> Classes:
        return Classes.from_record(self.parent.record)

    @property
    def version(self) -> int:
        """Number of the parent."""
        return self.parent.publication.version

    @property
    def site(self) -> str:
        """Name of the site, in one line."""
        return " ".join(self.validation.site.split())

    @property
    def fitted(self) -> pd.DataFrame:
        """The predictions at `point`, which was fitted on them."""
        return predictions.at_point(predictions.unscaled(self.crossed, self.classes), self.point, self.classes)

    @property
    def decided(self) -> pd.DataFrame:
        """The cross-fitted predictions at the threshold of `point`."""
        return recalibration.at_one_threshold(self.crossed, self.point.threshold, self.classes)

    @property
    def ordered(self) -> pd.DataFrame:
        """The predictions in an order that does not depend on what was fitted.

        No operating point changes the order of two classes, and folds that are pooled would. That of several classes is
        fitted, and has to be cross-fitted.
        """
        return self.fitted if len(self.classes) == len(CLASSES) else self.decided

    @property
    def form(self) -> str:
        """Form that answered at the site."""
        return self.validation.model.form


def register(
    registry: Registry,
    artefact: Artefact,
    validation: ValidationRecord,
    crossed: pd.DataFrame | None,
    data: DataVersion,
) -> tuple[int, GateRecord]:
    """Publish a copy of a version with the operating point that fits a site.

    The gate compares it with the version that it was made from, on the same images. It is refused in any case, and
    does not become the candidate: `python -m thyroid.registry promote` is the only way to release it. The same
    recalibration is registered once.

    Args:
        registry: Registry of the version.
        artefact: The version, as the registry published it.
        validation: What was measured at the site, the recalibration included.
        crossed: Predictions of `recalibration.cross_fit`; columns "group: NAME" are subgroups. None where there are
            none.
        data: Data version of the site, of which the scans in `crossed` are listed in the new version.

    Returns:
        The number of the new version, and the decision of the gate.

    Raises:
        InputError: There is no recalibration, the form that answered is too far from Keras at the new operating point,
            or the registry cannot be written.
    """
    if validation.recalibration is None or crossed is None:
        raise InputError(f"recalibrate: there is nothing to register: {validation.not_recalibrated}")
    point = recalibration.fit(crossed, Classes.from_record(artefact.record), artefact)
    made = _Recalibrated(artefact, validation, validation.recalibration, crossed, point)
    measured = _measure(made)
    decision = _decide(made, measured)
    reference, difference = _reference(made)
    described = _describe(made, measured, reference, difference)
    read_before = registry.read_test_set(decision.test_digest, artefact.record.files[MODEL])
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "artefact"
        _copy(artefact, folder)
        _list_scans(made, data, registry).to_csv(folder / SCANS, index=False)
        (folder / "card.md").write_text(_card(made, measured), encoding="utf-8")
        Artefact.describe(folder, described)
        published = registry.publish(folder, decision.model_copy(update={"test_set_read_before": read_before}))
    return published.version, published.gate


def _copy(artefact: Artefact, folder: Path) -> None:
    """Copy the files of a version that hold for another operating point."""
    for name in artefact.record.files:
        if name not in _OF_PARENT:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(artefact.folder / name, folder / name)


def _list_scans(made: _Recalibrated, data: DataVersion, registry: Registry) -> pd.DataFrame:
    """Return the scans of the parent and those that the operating point was fitted on, with pseudonyms of patients."""
    rows = data.contents[data.contents["sha256"].isin(made.crossed["sha256"])]
    secret = pseudonyms.key(registry.root)
    patients = data.scans.loc[rows.index, "patient"].astype(int)
    named = [pseudonyms.of_patient(secret, data.facts.cohort, patient) for patient in patients]
    return pd.concat([changes.scans_of(made.parent.folder), rows.assign(split=SPLIT, patient=named)], ignore_index=True)


def _measure(made: _Recalibrated) -> Performance:
    """Measure the cross-fitted predictions: the decisions, what the probabilities mean, and the order.

    What depends on the band, or on the other classes' thresholds, is not cross-fitted and left out.
    """
    asked, point = made.validation.settings, replace(made.point, band=None)
    decided, scaled, ordered = (
        performance.of(table, made.classes, point, asked.prevalence, asked.seed)
        for table in (made.decided, made.crossed, made.ordered)
    )
    levels = _levels(scaled, ordered), _levels(scaled.patient_level, ordered.patient_level)
    kept = ("n", "patients", "threshold", "auroc")
    classes = {
        name: ClassPerformance(**{key: getattr(row, key) for key in kept if key in row.model_fields_set})
        for name, row in ordered.classes.items()
    }
    by_patient = decided.patient_level.model_copy(update=levels[1])
    return decided.model_copy(update=levels[0] | {"patient_level": by_patient, "classes": classes})


def _levels(scaled: Level, ordered: Level) -> dict[str, Any]:
    """Return the fields of a level that depend on what the probabilities mean, and those that depend on their order."""
    meaning = {name: getattr(scaled, name) for name in ("brier", "ece", "ece_if_calibrated", "accuracy")}
    order = {name: getattr(ordered, name) for name in ("auroc", "auprc", "macro_auroc") if getattr(ordered, name)}
    return meaning | order


def _decide(made: _Recalibrated, measured: Performance) -> GateRecord:
    """Let the gate decide against the parent on the same images; the answer is a refusal in any case."""
    asked, record = made.validation.settings, made.parent.record
    raw = predictions.unscaled(made.crossed, made.classes)[made.classes.columns]
    scores = made.classes.malignant(OperatingPoint.from_record(record).scale(raw))
    current = Champion(made.version, scores, record.threshold, note="the version that it was recalibrated from")
    decided = made.decided
    groups = performance.by_subgroup(decided, made.point.threshold, asked.prevalence, asked.seed, current)
    behind = sum(measured.patient_level.confusion[POSITIVE])
    candidate = gate.Candidate(measured, made.point.threshold, behind, made.ordered, groups, decided)
    options = EvaluateOptions(
        sensitivity=record.settings.sensitivity,
        prevalence=asked.prevalence,
        abstain=record.settings.abstain,
        seed=asked.seed,
    )
    audited = made.validation.audits
    audits = [] if audited is None else [ShortcutAudit.from_record(audited, None)]
    return gate.decide(candidate, Rivals(current), audits, options, _further(made))


def _further(made: _Recalibrated) -> list[Criterion]:
    """Return the criteria that no evaluation has: an audit that was not run, and the person who has to promote."""
    person = Criterion(
        name="a person promotes what is recalibrated for one site",
        asked="a promotion by hand: python -m thyroid.registry promote VERSION --reason ... --by ...",
        found=f"recalibrated for {made.site} from version {made.version}, and measured at this site alone",
        passed=False,
        waived=False,
    )
    if made.validation.audits is not None:
        return [person]
    why = made.validation.not_audited or "not run"
    kind = ShortcutAudit
    return [Criterion(name=kind.criterion, asked=kind.asked, found=why, passed=False, waived=False), person]


def _describe(
    made: _Recalibrated, measured: Performance, reference: NDArray[np.float64], difference: float
) -> ModelDescription:
    """Return what model.json says: the parent's networks, and nothing that was measured at its operating point.

    What automatic boxes cost was measured there, so the model does not decide on them until somebody confirms the box.
    What is usual of its answers was, too, and at another hospital. That descriptors disagree with a decision is shown,
    and is no reason of doubt, since that was proven there.
    """
    parent, point = made.parent.record.to_dict(), made.point.to_dict()
    fields = {name: parent[name] for name in ModelDescription.model_fields if name in parent}
    for name in ("band", "automatic_boxes", "usual_answers"):
        fields.pop(name, None)
    if (told := fields.get("descriptors")) and told["tirads"]:
        tirads = told["tirads"] | {"doubts": False, "why_not": "it was not tried at this site's operating point"}
        fields["descriptors"] = told | {"tirads": tirads}
    asked = made.validation.settings
    changed = {
        "settings": fields["settings"] | {"prevalence": asked.prevalence},
        "reference": dict(zip(made.classes.names, reference.tolist(), strict=True)),
        "forms": {name: form.to_dict() for name, form in _forms(made, measured, difference).items()},
        "audits": _audits(made).to_dict(),
        "recalibrated_for": made.site,
        "recalibrated_from": made.version,
    }
    return ModelDescription.parse(fields | point | changed, "model.json")


def _forms(made: _Recalibrated, measured: Performance, difference: float) -> dict[str, KerasForm | OtherForm]:
    """Return the figures by form: those of Keras, which the form that answered stands for, and of that form."""
    asked = made.validation.settings
    locked = performance.of(made.fitted, made.classes, made.point, asked.prevalence, asked.seed)
    kept = ("n", "patients", "auroc", "macro_auroc", "sensitivity", "specificity", "ece", "ece_unscaled")
    behind = sum(locked.patient_level.confusion[POSITIVE])
    validation = ValidationPerformance(malignant_patients=behind, **{name: getattr(locked, name) for name in kept})
    test = {made.parent.record.serving_domain: measured}
    if made.form == engine.KERAS:
        return {engine.KERAS: KerasForm(validation=validation, test=test)}
    names = ("n", "auroc", "sensitivity", "specificity", "ece", "confusion")
    own = FormTest(**{name: getattr(measured, name) for name in names})
    return {
        engine.KERAS: KerasForm(validation=validation, test=test, measured_in=made.form),
        made.form: OtherForm(largest_difference=difference, decisions_changed=None, test=own),
    }


def _audits(made: _Recalibrated) -> ModelAudit:
    """Return the parent's audits with the findings at the site, since neither undoes the other."""
    own, site = made.parent.record.audits, made.validation.audits
    found = dict(own.findings)
    for name, text in ({} if site is None else site.findings).items():
        found[name] = "; ".join([*([found[name]] if name in found else []), f"at {made.site}: {text}"])
    return own.model_copy(update={"findings": found})


def _reference(made: _Recalibrated) -> tuple[NDArray[np.float64], float]:
    """Return the answer of Keras to the reference image at the new operating point, and how far the form is from Keras.

    The answer [classes] follows from that of the parent. The distance is that of the probability of malignant on the
    parent's test images, or of any probability on the reference image at the new operating point if that is larger.

    Raises:
        InputError: The distance is more than `engine.NEAR`, so that the form would not be served.
    """
    record = made.parent.record
    unscaled = _unscale(
        np.array([record.reference[name] for name in record.classes]), OperatingPoint.from_record(record)
    )
    expected = made.point.scale(unscaled[None])[0]
    if made.form == engine.KERAS:
        return expected, 0.0
    known = made.parent.differences[made.form]
    here = float(np.abs(made.point.scale(_own_answer(made)[None])[0] - expected).max())
    if max(known, here) > engine.NEAR:
        raise InputError(
            f"recalibrate: nothing is registered, because {made.form} is {max(known, here):.3f} away from Keras at the "
            f"site's operating point, and at most {engine.NEAR:g} is served"
        )
    return expected, max(known, here)


def _own_answer(made: _Recalibrated) -> NDArray[np.float64]:
    """Return the form's own unscaled answer to the reference image [classes]."""
    folder, record = made.parent.folder, made.parent.record
    image = Instance("reference.jpg", (folder / "reference.jpg").read_bytes())
    pixels = Preprocessing(record.serving_domain, record.image_size, record.margin).prepare(image).pixels
    running = engine.OpenVINOEngine(folder / engine.OPENVINO, record.image_size, made.form, alone=True)
    probability = running.predict(pixels[None])[0].astype(np.float64)
    running.close()
    if record.clinical is not None:
        probability = Fusion.from_record(record.clinical).predict(probability, [{}])[0]
    answer: NDArray[np.float64] = probability[0]
    return answer


def _unscale(scaled: NDArray[np.float64], point: OperatingPoint) -> NDArray[np.float64]:
    """Return the probabilities [classes] that `point` scales to the given ones: the inverse of `operating_point.scale`.

    The constant that normalises them is lost by the scaling and found again by normalising.
    """
    unscaled: NDArray[np.float64] = softmax(point.temperature * (np.log(scaled) - np.asarray(point.bias)))
    return unscaled


def _card(made: _Recalibrated, measured: Performance) -> str:
    """Return card.md: what this version is, and what is known of it."""
    fitted, own, parent = made.gain, made.point, made.parent.record
    rows = [
        f"| {name.replace('_', ' ')} | {fitted.before[name]} | {fitted.after[name]} | {fitted.gain[name]} |"
        for name in fitted.gain
    ]
    return "\n".join(
        [
            f"# Recalibration of version {made.version} for {made.site}",
            "",
            f"**{RESEARCH_USE_ONLY}**",
            "",
            f"The networks are those of version {made.version}, whose model card says how they were trained and "
            "tested; its figures do not hold here. Temperature, bias and threshold were fitted on "
            f"{fitted.patients} patients of {made.site} with {fitted.boxes} boxes: temperature "
            f"{parent.temperature:.3f} became {own.temperature:.3f}, threshold {parent.threshold:.4f} became "
            f"{own.threshold:.4f}. The threshold was locked for a sensitivity of {parent.settings.sensitivity:g}.",
            "",
            f"Every figure is by image, on patients of this site that the operating point was not fitted on "
            f"({fitted.folds} folds), answered by {made.form}. Brackets are 95 % intervals over patients.",
            "",
            f"| | version {made.version} | recalibrated | change |",
            "|---|---|---|---|",
            *rows,
            "",
            f"The AUROC is {metrics.format_interval(measured.auroc)}. The accuracy is {measured.accuracy:.3f}; always "
            f"answering the most frequent class would give {measured.majority:.3f}.",
            "",
            fitted.summary,
            "",
            "Nothing is known of this version at any other site, the one where the model was trained included. It does "
            "not decide on automatic boxes until somebody has confirmed the box, since what these cost was measured at "
            "another operating point. The gate does not release it: a person has to.",
            "",
        ]
    )
