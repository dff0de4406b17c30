"""Lock operating points, choose the winner, score the test set, audit the winner and decide whether it may be released.

python -m thyroid.evaluate --data DIR --models DIR [DIR ...] --output DIR
"""

import logging
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from thyroid import atomic, progress
from thyroid.clinical.clinical_table import ClinicalTable
from thyroid.data import tables
from thyroid.data.filenames import SCORE
from thyroid.data.version import DataVersion
from thyroid.evaluate import artefact, clinical_model, gate, performance, plots, predictions, report, scored
from thyroid.evaluate.artefact import Export
from thyroid.evaluate.audits import audits
from thyroid.evaluate.audits.audits import ModelAudits
from thyroid.evaluate.audits.subject import Subject
from thyroid.evaluate.boxes import boxes
from thyroid.evaluate.champion import CommonTestSet, rivals
from thyroid.evaluate.clinical_model import ClinicalComparison
from thyroid.evaluate.descriptors import descriptors
from thyroid.evaluate.descriptors.lock import lock as lock_descriptors
from thyroid.evaluate.novelty import measure as novelty
from thyroid.evaluate.novelty import plots as novelty_plots
from thyroid.evaluate.novelty.measure import Locked
from thyroid.evaluate.options import EvaluateOptions
from thyroid.evaluate.scored import Ranking, ScoredModel
from thyroid.evaluate.shadow import gate as shadow
from thyroid.imaging import images
from thyroid.model import explain
from thyroid.model.artefact import sha256
from thyroid.records.clinical import ClinicalRecord
from thyroid.records.evaluation import (
    DataFields,
    EvaluationRecord,
    Measured,
    ModelRow,
    SubgroupRow,
    Winner,
)
from thyroid.records.gate import GateRecord
from thyroid.records.performance import EvaluateSettings
from thyroid.registry import changes, register
from thyroid.registry.changes import Changes
from thyroid.registry.registry import Registry
from thyroid.train import plots as training_plots
from thyroid.train import record

log = logging.getLogger(__name__)

WORST = 4
"""Number of false negatives, and of false positives, that the report shows."""


@dataclass(frozen=True)
class Evaluated:
    """The output of an evaluation.

    Attributes:
        folder: Folder with predictions.parquet, operating_points.json, evaluation.json, report.html, plots/,
            patients.csv and the winner's artefact (artefact/).
        record: Content of evaluation.json.
    """

    folder: Path
    record: EvaluationRecord


def evaluate(
    data: Path, models: Sequence[Path], output: Path, options: EvaluateOptions = EvaluateOptions()
) -> Evaluated:
    """Score `models`, choose the one with the highest AUROC in the serving domain, and submit it to the champion gate.

    Each model's temperature, bias and threshold are locked on validation patients of the serving domain. The winner is
    chosen on the same patients, or on all development patients, each scored by a model that did not see them, where
    every model was cross-validated (`train --folds`). Operating points, winner and the limit of novelty are settled
    before any test image is read: the test set is scored for the report and the gate, and never chooses.

    Args:
        data: Data version of `crop`.
        models: Output folders of `train`.
        output: Folder to write to.
        options: How the models are evaluated.

    Returns:
        The output folder and the content of its evaluation.json.

    Raises:
        InputError: There is no model, a model is of another data version, one backbone is given twice on a domain, the
            serving domain has no images, the test or validation part has one class only, clinical.csv or descriptors
            cannot be used, `options.locate` is of another data version, or `options.waive` names no audit to waive.
        RuntimeError: OpenVINO could not convert the winner's network.
    """
    started = time.monotonic()
    audits.check_waivers(options.waive)
    evaluation, candidates = scored.read(data, models, options)
    clinical = ClinicalTable.read(options.clinical, evaluation.data.used) if options.clinical else None
    _clean(output)

    scored.load_all(candidates)
    for model in candidates:
        model.lock()
    ranking = scored.rank(candidates)
    winner = ranking.winner
    comparison = _use_clinical(winner, clinical, output / "plots")
    _write_points(candidates, winner, comparison, output)
    locked, told = novelty.lock(winner), lock_descriptors(winner, evaluation.labels)
    exported = artefact.export(winner, output / "artefact", told)  # reads the test images

    for model in candidates:
        model.score_test()
    clinical_model.score_on_test(comparison, winner)
    changed = changes.since_last(evaluation.data, evaluation.registry) if evaluation.registry else None
    table = _predictions(candidates, comparison.table, changed)
    table.to_parquet(output / "predictions.parquet", index=False)

    measured = _measure(candidates, ranking, comparison, table, changed)
    _draw(ranking, measured, output / "plots")
    measured = _add_novelty(measured, winner, locked, exported, output / "plots")
    measured = descriptors.add(measured, winner, told, exported, output / "plots")
    artefact.write(winner, exported, measured, locked, told)
    seconds = {"evaluate": round(time.monotonic() - started, 1)}
    found = {name: getattr(measured, name) for name in measured.model_fields_set}  # what is absent stays absent
    result = EvaluationRecord(**found | {"seconds": measured.seconds | seconds}, **_seal(evaluation.data, output))
    report.write(output, evaluation.data, result)
    result.write(output / "evaluation.json")
    report.log_summary(result)
    return Evaluated(output, result)


def _clean(output: Path) -> None:
    """Remove the results of an earlier evaluation, so that they cannot be mistaken for those of this one."""
    output.mkdir(parents=True, exist_ok=True)
    (output / "evaluation.json").unlink(missing_ok=True)
    for name in ("plots", "artefact"):
        shutil.rmtree(output / name, ignore_errors=True)
    (output / "plots").mkdir()


def _use_clinical(winner: ScoredModel, clinical: ClinicalTable | None, pictures: Path) -> ClinicalComparison:
    """Try the clinical columns, and lock the winner's operating point again if it uses some."""
    if clinical is None:
        return ClinicalComparison(None)
    comparison = clinical_model.fit_and_compare(winner, clinical, pictures)
    if comparison.head is not None:
        winner.lock(comparison.head)
    return comparison


def _write_points(
    models: Sequence[ScoredModel], winner: ScoredModel, comparison: ClinicalComparison, output: Path
) -> None:
    """Write operating_points.json: what was decided before any test image is read."""
    points = {model.name: model.point.to_dict() for model in models}
    columns = [] if comparison.record is None else comparison.record.used
    chosen = {"winner": winner.name, "points": points, "columns": columns}
    atomic.write_json(output / "operating_points.json", chosen)


def _predictions(
    models: Sequence[ScoredModel], clinical: ClinicalTable | None, changed: Changes | None
) -> pd.DataFrame:
    """Build the table of all predictions; see `predictions`."""
    table = pd.concat([*(model.validation for model in models), *(model.test for model in models)], ignore_index=True)
    if clinical is not None:
        table = table.join(clinical.groups.add_prefix(performance.SUBGROUP), "path")
    if changed is not None:
        sha256 = models[0].evaluation.data.used.set_index("path")["sha256"]
        table["new"] = table["path"].map(sha256).isin(list(changed.new))
    table["scan"] = table.pop("path").map(lambda path: Path(path).name)
    return table


def _measure(
    models: Sequence[ScoredModel],
    ranking: Ranking,
    comparison: ClinicalComparison,
    table: pd.DataFrame,
    changed: Changes | None,
) -> Measured:
    """Measure, audit and judge.

    Args:
        models: All models, scored on the test set.
        ranking: The same models, ranked.
        comparison: Effect of the clinical columns on the winner.
        table: Result of `_predictions`.
        changed: Changes of the data since the registry's newest version; None without a registry.
    """
    winner = ranking.winner
    evaluation, options = winner.evaluation, winner.evaluation.options
    facts = evaluation.data.facts
    rows = [model.record(aurocs) for model, aurocs in ranking.models]
    tested = predictions.of_model(table, rows[0], evaluation.serving_domain, "test")
    audited = _audit(winner, models, comparison)
    subgroups, decision = _decide(winner, rows[0], tested, comparison.table, audited[0])
    return Measured(
        **evaluation.data.classes.to_dict(),
        data=DataFields(**facts.model_dump(include=set(DataFields.model_fields))),
        models=rows,
        ranked_by=ranking.ranked_by,
        winner=Winner(backbone=rows[0].backbone, train_domain=rows[0].train_domain),
        serving_domain=evaluation.serving_domain,
        domains=list(evaluation.domains),
        changes=None if changed is None else predictions.describe_changes(changed, tested, options.seed),
        domain_matrix=predictions.domain_matrices(table, rows, evaluation.domains, options.seed),
        audits=audited[0].record(),
        other_audits=[model_audits.record() for model_audits in audited[1:]],
        subgroups=subgroups,
        clinical=comparison.record,
        gate=decision,
        **boxes.measure(winner),
        settings=EvaluateSettings(**{name: getattr(options, name) for name in EvaluateSettings.model_fields}),
        worst={name: len(mistakes) for name, mistakes in winner.mistakes().items()},
        diagnosis=[record.diagnosis(model.folder) for model in models],
        seconds=facts.seconds
        | boxes.seconds(winner)
        | {f"train-{model.name}": model.training.seconds for model, _ in ranking.models},
    )


def _add_novelty(
    measured: Measured, winner: ScoredModel, locked: Locked | None, exported: Export, pictures: Path
) -> Measured:
    """Measure novelty in every form of the winner and draw it, or say why there is none."""
    if locked is None:
        return measured.model_copy(update={"novelty_skipped": novelty.why_not(winner)})
    found = novelty.measure(winner, locked, exported.pooled())
    novelty_plots.distances(found, pictures)
    return measured.model_copy(update={"novelty": found.record})


def _audit(winner: ScoredModel, models: Sequence[ScoredModel], comparison: ClinicalComparison) -> list[ModelAudits]:
    """Audit the winner by images alone, and the models of its backbone that were trained on other domains on theirs.

    Returns:
        The audits, those of the winner first.
    """
    evaluation = winner.evaluation
    others = [model for model in models if model.key[0] == winner.key[0]]
    subjects: list[tuple[ScoredModel, str, pd.DataFrame, ClinicalRecord | None]] = [
        (winner, evaluation.serving_domain, winner.tested_by_images, comparison.record)
    ]
    subjects += [
        (model, domain, model.tested(domain), None)
        for model in others
        if (domain := model.key[1]) != evaluation.serving_domain
    ]
    audited = []
    for model, domain, tested, clinical in subjects:
        log.info(f"auditing {model} on the {domain} domain")
        subject = Subject(
            evaluation.data,
            domain,
            model.training,
            model.network,
            model.parts,
            tested,
            evaluation.registry,
            evaluation.options.seed,
            clinical,
            None if evaluation.located is None else evaluation.located.proposals,
        )
        audited.append(ModelAudits.run(subject))
    return audited


def _decide(
    winner: ScoredModel,
    row: ModelRow,
    tested: pd.DataFrame,
    clinical: ClinicalTable | None,
    audited: ModelAudits,
) -> tuple[list[SubgroupRow], GateRecord]:
    """Compare the winner with the champion and the anchor, and let the gate decide.

    Args:
        winner: The winner, scored on the test set.
        row: The winner's row of the ranking.
        tested: The winner's test predictions in the serving domain, with the columns of subgroups.
        clinical: Content of clinical.csv; None where there is none.
        audited: Audits of the winner.

    Returns:
        The metrics by subgroup and the decision.
    """
    evaluation, options = winner.evaluation, winner.evaluation.options
    data, domain = evaluation.data, evaluation.serving_domain
    shown = _with_paths(winner.tested(domain), data.images)
    columns = None if clinical is None else clinical.rows.loc[shown["path"]].reset_index(drop=True)
    test = CommonTestSet(data, shown, domain, data.test_scans, columns)
    compared = rivals(evaluation.registry, test)
    threshold = winner.point.threshold
    subgroups = performance.by_subgroup(tested, threshold, options.prevalence, options.seed, compared.champion)
    behind = row.validation.malignant_patients
    candidate = gate.Candidate(row.test[domain], threshold, behind, tested, subgroups)
    decision = gate.decide(candidate, compared, audited.audits, options)
    decision = shadow.wait(decision, candidate, winner.point.band, compared.champion, options.shadow)
    model = sha256(winner.folder / winner.training.checkpoint)
    read_before = (
        0 if evaluation.registry is None else Registry(evaluation.registry).read_test_set(decision.test_digest, model)
    )
    return subgroups, decision.model_copy(update={"test_set_read_before": read_before})


def _with_paths(table: pd.DataFrame, root: Path) -> pd.DataFrame:
    """Give predictions the full paths of their images, as `DataVersion.pixels` needs them."""
    return table.assign(file=[str(root / file) for file in table["file"]])


def _draw_worst_cases(model: ScoredModel, folder: Path) -> None:
    """Draw the most confident mistakes with their heat maps."""
    data = model.evaluation.data
    for name, mistakes in model.mistakes().items():
        shown = mistakes.head(WORST)
        if shown.empty:
            continue
        pixels = data.pixels(_with_paths(shown, data.images), model.size)
        cases = [
            (Path(scan).name, float(score), images.rgb(image), explain.overlay(image, heat))
            for scan, score, image, heat in zip(
                shown["path"], shown[SCORE], pixels, model.network.heat_maps(pixels), strict=True
            )
        ]
        title = f"{name.replace('-', ' ').capitalize()}: the surest {len(cases)} of {len(mistakes)}"
        plots.worst_cases(cases, title, folder / f"{name}.png")


def _draw(ranking: Ranking, result: Measured, folder: Path) -> None:
    """Draw the plots of every model, the ranking, the worst cases, the domain matrix, the audits and the diagnosis."""
    _draw_worst_cases(ranking.winner, folder)
    domain, rows = result.serving_domain, result.models
    for (model, _), row in zip(progress.bar(ranking.models, len(rows), "draw", "network"), rows, strict=True):
        options = model.evaluation.options
        trained_on, tested_on = tables.DOMAIN_NAMES[row.train_domain], tables.DOMAIN_NAMES[domain]
        title = f"{row.backbone} trained on {trained_on},\ntest set of {tested_on}"
        shown = plots.PlottedModel(
            model.tested(domain),
            model.classes,
            row.test[domain],
            model.point,
            options.prevalence,
            title,
            options.seed,
        )
        plots.draw(shown, model.name, folder)
    plots.ranking(
        [
            (
                f"{row.backbone} ({tables.DOMAIN_NAMES[row.train_domain]})",
                aurocs[ranking.ranked_by],
                row.test[domain].auroc,
            )
            for (_, aurocs), row in zip(ranking.models, rows, strict=True)
        ],
        report.CHOSEN_BY[ranking.ranked_by],
        folder / "ranking.png",
    )
    boxes.draw(ranking.winner, result, folder)
    for backbone, matrix in result.domain_matrix.items():
        title = f"{backbone}: test AUROC"
        plots.domain_matrix(matrix.cells, result.domains, title, folder / f"domains-{backbone}.png")
    for audited in audits.of_result(result):
        for picture in audited.pictures:
            plots.audit(picture.rows, folder / f"{picture.name}.png")
    training_plots.diagnosis(result.diagnosis, folder / "diagnosis.png")


def _seal(data: DataVersion, output: Path) -> dict[str, Any]:
    """Write patients.csv, and return the checksums of the artefact and of patients.csv."""
    patients = data.scans.loc[data.contents.index, ["patient"]].assign(cohort=data.facts.cohort)
    patients.to_csv(output / register.PATIENTS, index=False)
    return {
        "artefact": sha256(output / "artefact" / "model.json"),
        "patients": sha256(output / register.PATIENTS),
    }
