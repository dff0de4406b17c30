"""Render card.md, the model card of every registered version, with the TRIPOD+AI checklist as its appendix.

Model cards follow Mitchell et al. 2019 (10.1145/3287560.3287596). TRIPOD+AI is Collins et al. 2024
(10.1136/bmj-2023-078378); its 52 items are named here in our own short words. Facts that a run cannot know (who was
asked, who paid, who agreed) stay "not reported" and are left to the people who know them.
"""

import datetime
from collections.abc import Sequence
from pathlib import Path

from thyroid import RESEARCH_USE_ONLY, metrics, rendering
from thyroid.data import tables
from thyroid.data.classes import Classes
from thyroid.evaluate.audits import audits
from thyroid.evaluate.boxes import words
from thyroid.evaluate.descriptors import words as descriptors_words
from thyroid.evaluate.novelty import words as novelty_words
from thyroid.evaluate.performance import AGGREGATION
from thyroid.model import backbones
from thyroid.model.operating_point import describe_patients_needed
from thyroid.records.data import DataRecord
from thyroid.records.evaluation import Measured
from thyroid.records.train import TrainRecord

NOT_REPORTED = "not reported"

TRIPOD_AI = {
    "1": "Title: development or evaluation, population, outcome",
    "2": "Abstract",
    "3a": "Healthcare context and rationale, existing models",
    "3b": "Target population, purpose and intended users",
    "3c": "Known health inequalities",
    "4": "Objectives",
    "5a": "Sources of data, and why they represent the population",
    "5b": "Dates of the data",
    "6a": "Setting: level of care, number and place of centres",
    "6b": "Eligibility criteria",
    "6c": "Treatments received",
    "7": "Preparation and quality checking of the data",
    "8a": "Outcome: definition, how and when assessed",
    "8b": "Who assessed the outcome",
    "8c": "Blinding of the assessment of the outcome",
    "9a": "Choice of predictors",
    "9b": "Definition of predictors, how and when measured",
    "9c": "Who assessed predictors",
    "10": "Sample size",
    "11": "Missing data",
    "12a": "How the data were used, and parted",
    "12b": "Handling of predictors",
    "12c": "Type of model, building steps, tuning, internal validation",
    "12d": "Heterogeneity across clusters",
    "12e": "Measures and plots of performance",
    "12f": "Updating of the model",
    "12g": "How predictions were calculated",
    "13": "Class imbalance",
    "14": "Fairness",
    "15": "Output of the model, and how thresholds were found",
    "16": "Differences of development and evaluation data",
    "17": "Ethical approval and consent",
    "18a": "Funding",
    "18b": "Conflicts of interest",
    "18c": "Protocol",
    "18d": "Registration of the study",
    "18e": "Availability of the data",
    "18f": "Availability of the code",
    "19": "Involvement of patients and public",
    "20a": "Flow of participants",
    "20b": "Characteristics of participants",
    "20c": "Development and evaluation data compared",
    "21": "Participants and events in each analysis",
    "22": "The full model, and restrictions of its use",
    "23a": "Performance with intervals, also of subgroups",
    "23b": "Heterogeneity of performance across clusters",
    "24": "Results of updating",
    "25": "Interpretation, fairness included",
    "26": "Limitations",
    "27a": "Handling of poor or missing input",
    "27b": "Interaction with users, and their expertise",
    "27c": "Next steps of research",
}
"""What each item asks for, by its number."""


def write(output: Path, training: TrainRecord, facts: DataRecord, result: Measured) -> None:
    """Render card.md into the folder `output`.

    Args:
        output: Folder of the artefact.
        training: Record of the winner's training (train.json).
        facts: Content of data.json.
        result: Result of the evaluation.
    """
    environment = rendering.environment("thyroid.evaluate", escape=False)
    best, domain = result.models[0], result.serving_domain
    answers = tripod(training, facts, result)
    text = environment.get_template("card.md").render(
        notice=RESEARCH_USE_ONLY,
        date=datetime.date.today().isoformat(),
        best=best,
        test=best.test[domain],
        domain_names=tables.DOMAIN_NAMES,
        sides=_sides(Classes.from_record(result)),
        domain=domain,
        facts=facts,
        result=result,
        boxes=words,
        novelty=novelty_words,
        descriptors=descriptors_words,
        aggregation=AGGREGATION,
        audits=audits.ModelAudits.from_record(result.audits, result.clinical).audits,
        checklist=[(number, asked, answers.get(number, NOT_REPORTED)) for number, asked in TRIPOD_AI.items()],
        reported=len(answers),
    )
    (output / "card.md").write_text(text, encoding="utf-8")


def _columns(result: Measured) -> list[str]:
    """Return the clinical columns that the model uses."""
    return [] if result.clinical is None else result.clinical.used


def _sides(known: Classes) -> str:
    sides = (
        ", ".join(n for n, p in zip(known.names, known.positive, strict=True) if p is side) for side in (False, True)
    )
    return "benign: {}; malignant: {}".format(*sides)


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.3f}" for value in values)


def tripod(training: TrainRecord, facts: DataRecord, result: Measured) -> dict[str, str]:
    """Answer the items of the checklist that the run itself knows.

    Args:
        training: Record of the winner's training (train.json).
        facts: Content of data.json.
        result: Result of the evaluation.

    Returns:
        Answers by the number of the item. Items that the run cannot answer are absent.
    """
    answers = _answers_on_data(facts, result) | _answers_on_model(training, result) | _answers_on_results(result)
    if result.settings.abstain:
        band = result.models[0].operating_point.band
        answers["27a"] += f"; doubtful answers are left undecided (band {band})"
    if result.subgroups:
        answers["14"] = "Figures by subgroup; the gate asks each large one to hold its floor"
        answers["23b"] = "By every column of clinical.csv, see the report"
    return answers


def _flow(facts: DataRecord, known: Classes) -> str:
    """Describe the patients and images of every split."""
    counts = {
        split: f"{count['patients']} patients; images: " + ", ".join(f"{count[name]} {name}" for name in known.names)
        for split, count in facts.splits.items()
    }
    return "; ".join(f"{split}: {count}" for split, count in counts.items())


def _answers_on_data(facts: DataRecord, result: Measured) -> dict[str, str]:
    """Answer the items on the purpose of the model and on its data."""
    best, domain = result.models[0], result.serving_domain
    known, columns, shown = Classes.from_record(result), _columns(result), tables.DOMAIN_NAMES[domain]
    flow = _flow(facts, known)
    synthetic = f"; {facts.synthetic} of them are synthetic phantoms" if facts.synthetic else ""
    return {
        "1": "Development and internal evaluation of a model that distinguishes malignant from benign thyroid nodules "
        f"on ultrasound images ({shown})",
        "3b": RESEARCH_USE_ONLY,
        "4": "Development, and evaluation on patients held out of it",
        "5a": f"{facts.scans} scans of {facts.patients} patients given by the user (data {facts.digest[:12]})"
        f"{synthetic}; what they represent is not reported",
        "6b": "JPEG frames named by label, patient, image and version; files that cannot be used are set aside with a "
        "reason",
        "7": f"Every file decoded and hashed; {facts.quarantined} files or regions set aside (quarantine.csv); "
        f"{facts.duplicate_groups} groups of near-duplicates kept together; scanner frame and burned-in text "
        "blanked; letterboxed, never stretched",
        "8a": f"Class ({_sides(known)}) in file name or table; how it was found is not reported",
        "9a": "The image" + (f", and {', '.join(columns)}" if columns else " alone"),
        "9b": f"{shown} of {best.image_size} pixels a side, grey or colour, 8 bits",
        "11": f"Images are complete; {facts.without_region} frames without a region are left out of the cropped domain",
        "12a": "Split by patient and near-duplicate into training, validation and test; the next run on the same scans "
        "keeps the splits",
        "20a": flow,
        "21": flow,
        "27a": "An image that does not decode, or a region outside it, is refused with the reason"
        + ("; one that is unlike the training images gets no decision" if result.novelty else ""),
        "27b": _interaction(result),
    }


def _interaction(result: Measured) -> str:
    """Describe what a user has to do with an image."""
    boxes = result.automatic_boxes
    if boxes is not None:
        needed = "only where the box is unsure" if boxes.released else "before the model decides"
        return f"A locator proposes a box, which the user can correct; the user has to confirm it {needed}"
    if result.serving_domain == "cropped":
        return "The user marks the nodule where the model needs a region"
    return "None: the scan area is found automatically"


def _answers_on_model(training: TrainRecord, result: Measured) -> dict[str, str]:
    """Answer the items on the model, its training and its operating point."""
    best, sensitivity = result.models[0], result.settings.sensitivity
    backbone, point = best.backbone, best.operating_point
    return {
        "12b": f"Input scaled as {backbone}'s pre-trained weights expect "
        f"(keras.applications.{backbones.get(backbone).module})",
        "12c": f"{backbone}, global average pooling, softmax; recipe {training.recipe}, start {best.weights}, "
        f"seed {training.seed}; chosen among {len(result.models)} models by "
        f"{result.ranked_by.replace('_', '-')} AUROC",
        "12f": f"Temperature {point.temperature:.3f} and biases {_numbers(point.bias[1:])}, fitted on validation "
        "patients",
        "12g": "model.keras, temperature, bias and threshold of model.json, served over HTTP",
        "13": "Class weights in training"
        if training.recipe != "deck"
        else "None (the slide deck's recipe weighs no class)",
        "15": f"Probability of {', '.join(result.classes)}; malignant from {point.threshold:.4f} on, the "
        f"highest threshold that caught {sensitivity:.0%} of malignant validation images",
        "18f": "The code version is in model.json",
        "22": "model.keras, model.json",
    }


def _answers_on_results(result: Measured) -> dict[str, str]:
    """Answer the items on the performance and its limits."""
    test, settings = result.models[0].test[result.serving_domain], result.settings
    known = {"AUROC": test.auroc, "BRIER": test.brier, "ECE": test.ece}
    shown = [f"{name} {metric}" for name, metric in known.items() if metric is not None]
    subgroups = f"{len(result.subgroups)} subgroups in the report" if result.subgroups else "no subgroups"
    audited = audits.ModelAudits.from_record(result.audits, result.clinical)
    return {
        "10": f"All scans given; {describe_patients_needed(settings.sensitivity)}, and the test set has "
        f"{sum(test.patient_level.confusion[1])} malignant patients",
        "12d": "Intervals resample whole patients",
        "12e": "AUROC, AUPRC, sensitivity, specificity, PPV, NPV, Brier score and calibration error with 95 % "
        f"intervals ({metrics.DRAWS} bootstrap draws of patients); plots of ROC, precision-recall, reliability and net "
        f"benefit; by image and by patient ({AGGREGATION})",
        "23a": f"{', '.join(shown)}; {subgroups}",
        "26": "; ".join(
            [
                f"prevalence of the test set {sum(test.confusion[1]) / test.n:.0%}, assumed in use "
                f"{settings.prevalence:.0%}",
                "no external test set at the time of registration; validations.md of the version lists later ones",
                *audited.findings.values(),
            ]
        ),
    }
