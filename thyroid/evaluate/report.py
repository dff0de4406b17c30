"""Render report.html, the report for people: a single file that opens without a network connection. Log its summary."""

import datetime
import logging
import math
from collections.abc import Sequence
from pathlib import Path

from thyroid import RESEARCH_USE_ONLY, metrics, rendering
from thyroid.clinical import plots as clinical_plots
from thyroid.data import tables
from thyroid.data.classes import BINARY, Classes
from thyroid.data.plots import class_names
from thyroid.data.version import DataVersion
from thyroid.evaluate import gate, performance, plots
from thyroid.evaluate.audits import audits
from thyroid.evaluate.audits.audit import Audit
from thyroid.evaluate.audits.audits import ModelAudits
from thyroid.evaluate.boxes import words
from thyroid.evaluate.boxes.located import DOMAIN_NAMES
from thyroid.evaluate.descriptors import words as descriptors_words
from thyroid.evaluate.novelty import words as novelty_words
from thyroid.imaging import images
from thyroid.metrics import Interval, format_interval
from thyroid.model.operating_point import describe_patients_needed, patients_needed
from thyroid.records.evaluation import ChangesRecord, EvaluationRecord, Measured
from thyroid.records.gate import GateRecord
from thyroid.records.performance import EvaluateSettings, Performance

log = logging.getLogger(__name__)

CHOSEN_BY = {"validation": "validation", "cross_validation": "cross-validated"}
"""Name of the AUROC that ranks the models, in words."""

METRICS = {
    "auroc": "AUROC",
    "auprc": "AUPRC (average precision)",
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
    "ppv": "PPV in the test set",
    "npv": "NPV in the test set",
    "ppv_at_prevalence": "PPV at the stated prevalence",
    "npv_at_prevalence": "NPV at the stated prevalence",
    "brier": "Brier score",
    "ece": "Expected calibration error",
    "ece_unscaled": "... before temperature scaling",
}
"""Rows of the table of metrics: key and title."""

METRICS_OF_CLASSES = {
    "macro_auroc": "Macro AUROC (mean of each class against all others)",
    "kappa": "Kappa of called and true class",
}
"""Further rows for classes other than just benign and malignant."""

_TEMPLATE = "report.html"


def write(output: Path, data: DataVersion, result: EvaluationRecord) -> None:
    """Render report.html into `output`.

    Args:
        output: Folder of the evaluation, with its plots/.
        data: Data version of `crop`, for its plots and its quarantine list.
        result: Result of the evaluation.
    """
    environment = rendering.environment("thyroid.evaluate")
    environment.filters |= {
        "p": _p,
        "percent": lambda share: f"{share:.1%}",
        "sentence": _sentence,
        "restore": lambda fields: fields and Interval(**fields),
        "effect": lambda effect: "n/a" if effect is None else str(Interval(effect.value, effect.low, effect.high)),
    }
    best, domain, known = result.models[0], result.serving_domain, Classes.from_record(result)
    audited = audits.of_result(result)
    html = environment.get_template(_TEMPLATE).render(
        notice=RESEARCH_USE_ONLY,
        date=datetime.date.today().isoformat(),
        facts=data.facts,
        result=result,
        best=best,
        best_test=best.test[domain],
        lead=lead(result),
        warnings=warnings(result),
        short_reasons=_short_reasons(result.gate, audited[0]),
        domain=domain,
        domain_names=DOMAIN_NAMES,
        boxes=words,
        novelty=novelty_words,
        descriptors=descriptors_words,
        chosen_by=CHOSEN_BY[result.ranked_by],
        classes=known.names,
        class_names=class_names(known),
        several=known != BINARY,
        split_at=str(known),
        changes_in_words=_describe_changes(result.changes),
        metric_names=METRICS if known == BINARY else METRICS | METRICS_OF_CLASSES,
        aggregation=performance.AGGREGATION,
        pictures_of_a_model=plots.NAMES,
        audits=_by_kind(audited),
        small=performance.SMALL,
        margin=gate.MARGIN,
        own_margins=_own_margins(result.gate, data),
        clinical_pictures=clinical_plots.TITLES,
        given_away="clinical" in audited[0].findings,
        quarantine=tables.read_quarantine(data.folder, data.facts).to_dict("records"),
        draws=metrics.DRAWS,
        pictures={path.stem: images.data_uri(path.read_bytes()) for path in (output / "plots").glob("*.png")}
        | {name: images.data_uri((data.folder / f"{name}.png").read_bytes()) for name in ("statistics", "crops")},
    )
    (output / "report.html").write_text(html, encoding="utf-8")


def _own_margins(decision: GateRecord, data: DataVersion) -> list[str]:
    """Say which rivals saw crops of another margin than the candidate's."""
    rivals = (
        ("Champion", decision.champion, decision.comparison),
        ("Version", decision.anchor, decision.anchor_comparison),
    )
    return [
        f"{role} {version} saw crops of its own margin, {compared.champion_margin:g}, as it does when it is served; "
        f"the margin of this model's crops is {data.margin:g}."
        for role, version, compared in rivals
        if compared is not None
        and compared.champion_margin is not None
        and not math.isclose(compared.champion_margin, data.margin)
    ]


def _by_kind(audited: Sequence[ModelAudits]) -> list[list[tuple[str, Audit]]]:
    """Group the audits of all models by kind, each with the domain of its images."""
    kinds: dict[str, list[tuple[str, Audit]]] = {}
    for model in audited:
        for audit in model.audits:
            kinds.setdefault(audit.name, []).append((model.domain, audit))
    return list(kinds.values())


def lead(result: Measured) -> list[str]:
    """Summarise the result of an evaluation for a clinician, in a few sentences and without the warnings."""
    best, domain = result.models[0], result.serving_domain
    test = best.test[domain]
    among = "" if len(result.models) == 1 else f" among {len(result.models)} trained models"
    by = "validation patients" if result.ranked_by == "validation" else "development patients, out of fold,"
    return [
        f"{best.backbone}, trained on {tables.DOMAIN_NAMES[best.train_domain]} and meant for "
        f"{tables.DOMAIN_NAMES[domain]}, was chosen{among} on {by} alone. All numbers here are from {test.n} test "
        f"images of {test.patients} other patients.",
        *_lead_clinical(result),
        _lead_auroc(test),
        *_lead_decisions(test, result.settings),
        *_lead_classes(test, result),
        *words.lead(result),
        f"Its accuracy at the most probable class is {test.accuracy:.1%}; always answering the majority class gives "
        f"{test.majority:.1%}.",
    ]


def _lead_clinical(result: Measured) -> list[str]:
    """Describe the clinical columns that the model uses, and what they add."""
    clinical = result.clinical
    if clinical is None or not clinical.used or clinical.test is None:
        return []
    alone, columns = (clinical.test.auroc[name] for name in ("images", "clinical"))
    given_away = "clinical" in ModelAudits.from_record(result.audits, clinical).findings
    doubt = " These columns may be what the label was made from." if given_away else ""
    return [
        f"It sees the image and the clinical columns {', '.join(clinical.used)}; on the same test images the macro "
        f"AUROC of the image alone is {alone}, of the columns alone {columns}.{doubt}"
    ]


def _lead_auroc(test: Performance) -> str:
    """Describe the AUROC, and whether it is above chance."""
    auroc = test.auroc
    if auroc is None or auroc.low is None or auroc.high is None:
        return "The test set is too small for an interval, so its metrics are not reliable."
    what = "which includes .50: it is not shown to be better than chance"
    if auroc.low > 0.5:
        what = "so it distinguishes malignant from benign better than chance"
    elif auroc.high < 0.5:
        what = "which is below .50: it calls malignant images benign more often than the other way round"
    return (
        f"Of a random malignant and a random benign image it finds the malignant one more suspicious in "
        f"{auroc.value:.0%} of the pairs (AUROC {auroc}), {what}."
    )


def _lead_decisions(test: Performance, settings: EvaluateSettings) -> list[str]:
    """Describe the decisions at the operating point, in images of a hundred."""
    sentences = [
        f"At its operating point, locked on validation patients to catch {settings.sensitivity:.0%} of the "
        f"malignant images, it calls {_of_hundred(test.sensitivity)} of 100 malignant images malignant and "
        f"{_of_hundred(test.specificity)} of 100 benign images benign."
    ]
    if test.ppv_at_prevalence is not None and test.npv_at_prevalence is not None:
        sentences.append(
            f"Where {settings.prevalence:.0%} of the nodules are malignant, "
            f"{_of_hundred(test.ppv_at_prevalence)} of 100 images that it calls malignant would be, and "
            f"{_of_hundred(test.npv_at_prevalence)} of 100 that it calls benign would be benign."
        )
    if test.abstention is not None:
        sentences.append(
            f"These are its answers without the abstention band; with it {_of_hundred(test.abstention.share)} of "
            "100 images get no decision."
        )
    return sentences


def _lead_classes(test: Performance, result: Measured) -> list[str]:
    """Describe how well several classes are distinguished; nothing for benign and malignant alone."""
    known = Classes.from_record(result)
    if known == BINARY:
        return []
    weights = "with quadratic weights " if result.ordered else ""
    kappa = "" if test.kappa is None else f", kappa {weights}{test.kappa}"
    return [
        f"Here malignant means the classes {', '.join(_malignant(known))}. For each of the {len(known)} classes "
        f"against all others, the mean AUROC is {format_interval(test.macro_auroc)}{kappa}."
    ]


def _malignant(known: Classes) -> list[str]:
    return [name for name, positive in zip(known.names, known.positive, strict=True) if positive]


def warnings(result: Measured) -> list[str]:
    """List the reasons not to trust the metrics of an evaluation, for the first page of the report."""
    best, domain = result.models[0], result.serving_domain
    test = best.test[domain]
    texts = [warning for model in audits.of_result(result) for audit in model.audits for warning in audit.warnings]
    if test.auroc is None or test.auroc.low is None or test.auroc.low <= 0.5:
        texts.append("On this test set the model is not shown to be better than chance.")
    if test.accuracy <= test.majority:
        texts.append(
            "Its accuracy is not above that of always answering the majority class, so accuracy is no sign of skill."
        )
    malignant = sum(test.patient_level.confusion[1])
    asked = result.settings.sensitivity
    if (needed := patients_needed(asked)) is None or malignant < needed:
        texts.append(f"The test set has {malignant} malignant patients, and {describe_patients_needed(asked)}.")
    texts += words.warnings(result)
    if result.novelty is not None:
        texts += novelty_words.warnings(result.novelty)
    if result.descriptors is not None:
        texts += descriptors_words.warnings(result.descriptors)
    if best.weights == "none":
        texts.append("The model started from random weights; pre-trained weights are the first thing to add.")
    return list(dict.fromkeys(texts))


def _describe_changes(changes: ChangesRecord | None) -> str:
    if changes is None or changes.since is None:
        return ""
    new, changed, removed = (sum(counts.values()) for counts in (changes.new, changes.changed, changes.removed))
    return (
        f"since model version {changes.since} was made, {new} scans are new, {changed} have another class or other "
        f"regions, {removed} are no longer in use and {changes.kept} are unchanged"
    )


def _short_reasons(decision: GateRecord, audited: ModelAudits) -> list[str]:
    """List the gate's reasons without repeating the findings of the audits, which are among the warnings above them."""
    failed = [criterion for criterion in decision.criteria if not (criterion.passed or criterion.waived)]
    if not failed:
        return decision.reasons
    shown_above = {audit.criterion for audit in audited.audits}
    return [
        f"{_sentence(criterion.name)[:-1]}: "
        f"{'see above' if criterion.name in shown_above else criterion.found}; required: {criterion.asked}"
        for criterion in failed
    ]


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _p(value: float | None) -> str:
    return "n/a" if value is None else "< .001" if value < 0.001 else f"{value:.3f}"


def _of_hundred(share: Interval | None) -> str:
    """Format a share as a number out of 100, with its interval."""
    if share is None:
        return "n/a"
    if share.low is None or share.high is None:
        return f"{share.value * 100:.0f}"
    return f"{share.value * 100:.0f} [{share.low * 100:.0f} to {share.high * 100:.0f}]"


def log_summary(result: EvaluationRecord) -> None:
    """Log the ranking, the winner, what is wrong, and the decision."""
    domain, name = result.serving_domain, CHOSEN_BY[result.ranked_by]
    log.info(f"\nRanking by {name} AUROC in the {domain} domain (95 % intervals over patients)")
    log.info(f"{'model':<28}{name:<24}{'test':<24}{'accuracy':>9}{'majority':>10}{'parameters':>13}{'MB':>7}")
    for row in result.models:
        test = row.test[domain]
        log.info(
            f"{row.backbone + ' (' + row.train_domain + ')':<28}"
            f"{row.chosen_by(result.ranked_by)!s:<24}{format_interval(test.auroc):<24}"
            f"{test.accuracy:>9.3f}{test.majority:>10.3f}{row.parameters:>13,}{row.bytes / 1e6:>7.0f}"
        )
    best = result.models[0]
    log.info(f"Winner, chosen by {name}: {best.backbone} trained on {best.train_domain}")
    at = best.test[domain]
    log.info(
        f"Threshold {best.operating_point.threshold:.3f}, locked on validation for a sensitivity of "
        f"{result.settings.sensitivity:.2f}: on test images sensitivity {format_interval(at.sensitivity)}, "
        f"specificity {format_interval(at.specificity)}"
    )
    for diagnosis in result.diagnosis:
        for name, text in diagnosis.findings.items():
            log.warning(f"WARNING, {diagnosis.backbone} trained on {diagnosis.train_domain}, {name}: {text}")
    for audited in audits.of_result(result):
        for name, text in audited.findings.items():
            log.warning(f"WARNING, {name} audit of the {audited.domain} domain: {text}")
    if (line := words.log_line(result)) is not None:
        log.info(line)
    if result.descriptors is not None:
        log.info(descriptors_words.log_line(result.descriptors))
    log.info(f"Gate: {result.gate.decision}")
    for reason in result.gate.reasons:
        log.info(f"  {reason}")
