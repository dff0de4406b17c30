"""Find out whether clinical.csv helps: explore its columns, search them for leaks, and use them on request.

Columns are explored, searched and fitted on development patients. Their worth is also measured on the test set, where
it decides nothing.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from thyroid.clinical import association, fusion, leakage, plots
from thyroid.clinical.clinical_table import ClinicalTable
from thyroid.errors import InputError
from thyroid.evaluate.predictions import ClinicalHead, unscaled
from thyroid.evaluate.scored import ScoredModel
from thyroid.records.clinical import ClinicalRecord, FittedOn, Leakage
from thyroid.train import record

log = logging.getLogger(__name__)

FOLDS = 5


@dataclass
class ClinicalComparison:
    """The effect of clinical data on the winner.

    Attributes:
        table: Content of clinical.csv; None where there is none.
        head: Head that the model uses; None where the columns were not shown to help, or none was requested.
        tried: Head on images and columns, and head on columns alone, for the comparison on the test set; None where no
            column was tried.
        record: What the columns were worth; None where there is no clinical.csv.
    """

    table: ClinicalTable | None
    head: ClinicalHead | None = None
    tried: tuple[ClinicalHead, ClinicalHead] | None = None
    record: ClinicalRecord | None = None


def fit_and_compare(model: ScoredModel, table: ClinicalTable, pictures: Path) -> ClinicalComparison:
    """Explore the columns, find those that give the class away, and try the other requested ones.

    The head is fitted on patients that the network did not learn from: development patients out of fold where the
    winner was cross-validated, otherwise validation patients. It is cross-fitted on them by patient, and used only if
    the whole interval of its difference from the images alone is above 0.

    Clinical columns are optional. If they cannot be searched or tried, the evaluation continues without them, and the
    record gives the reason (`not_tried`).

    Args:
        model: The winner, locked on images alone.
        table: Content of clinical.csv.
        pictures: Folder for the plots.

    Returns:
        The effect of the columns.
    """
    classes, seed = model.classes, model.evaluation.options.seed
    scans = model.evaluation.data.used
    development = scans[scans["split"] != "test"]
    known, patient = table.rows.loc[development["path"]], development["patient"].astype(int).to_numpy()
    truth = classes.index(development["class"])
    facts: dict[str, Any] = {"notes": table.notes, "columns": list(table.rows), "wanted": table.wanted}
    if table.rows.empty or not len(table.rows.columns):
        return _unused(table, facts, Leakage(columns=[], findings=[]))
    log.info(f"clinical.csv: {len(table.rows.columns)} columns, of {len(development)} development scans")
    facts["explored"] = association.describe(known, truth, patient, classes.names, seed)
    facts["pictures"] = plots.draw(facts["explored"], pictures)
    try:
        leaks = leakage.find(known, truth, patient, classes.names, positive=classes.positive, seed=seed)
    except InputError as error:
        log.info(f"clinical columns were not searched for target leakage: {error}")
        finding = f"the columns could not be checked for target leakage: {error}"
        return _unused(table, facts | {"not_tried": str(error)}, Leakage(columns=[], findings=[finding]))
    findings = {row.column: row.finding for row in leaks.columns if row.finding}
    facts["left_out"] = {name: findings[name] for name in table.wanted if name in findings}
    columns = [name for name in table.wanted if name not in findings]
    if not columns:
        return _unused(table, facts, leaks)
    try:
        return _try(model, table, columns, facts | {"leaks": leaks})
    except InputError as error:
        log.info(f"clinical columns were not tried: {error}")
        return _unused(table, facts | {"not_tried": str(error)}, leaks)


def _unused(table: ClinicalTable, facts: dict[str, Any], leaks: Leakage) -> ClinicalComparison:
    """Return the comparison of a model that uses no column."""
    return ClinicalComparison(table, record=ClinicalRecord(**facts, leaks=leaks, used=[]))


def _try(model: ScoredModel, table: ClinicalTable, names: list[str], facts: dict[str, Any]) -> ClinicalComparison:
    """Fit and compare heads on images and columns, with patients that the winner did not learn from.

    Args:
        model: The winner, locked on images alone.
        table: Content of clinical.csv.
        names: Columns to try.
        facts: Fields of the record that are known so far.
    """
    classes, seed = model.classes, model.evaluation.options.seed
    columns = table.rows[names]
    seen, fold = unseen(model)
    rows, p = columns.loc[seen["path"]].reset_index(drop=True), seen[classes.columns].to_numpy()
    truth, patient = classes.index(seen["class"]), seen["patient"].astype(int).to_numpy()
    fitted = fusion.cross_fitted(p, rows, truth, patient, folds=FOLDS, seed=seed)
    found = fusion.compare(p, fitted.clinical, fitted.fused, truth, patient, fold=fitted.fold, seed=seed)
    uninformed = p * 0 + 1 / len(classes)
    both = ClinicalHead(fusion.fit(p, rows, truth, patient, seed), columns)
    alone = ClinicalHead(fusion.fit(uninformed, rows, truth, patient, seed), columns)
    used = found.verdict == "helped"
    worth = ClinicalRecord(
        **facts,
        tried=names,
        fitted_on=FittedOn(what=fold, images=len(seen), patients=found.patients),
        development=found,
        used=names if used else [],
    )
    return ClinicalComparison(table, both if used else None, (both, alone), worth)


def score_on_test(comparison: ClinicalComparison, model: ScoredModel) -> None:
    """Compare images, columns and both on the same test patients, and add the result to the record.

    Nothing is added where no column was tried.

    Args:
        comparison: Result of `fit_and_compare`; its record is changed.
        model: The winner, scored on the test set.
    """
    if comparison.tried is None or comparison.record is None:
        return
    both, alone = comparison.tried
    classes, seed = model.classes, model.evaluation.options.seed
    tested = model.tested_by_images
    raw = unscaled(tested, classes)
    truth, patient = classes.index(tested["class"]), tested["patient"].astype(int).to_numpy()
    fused = both.apply(raw, classes)[classes.columns].to_numpy()
    uninformed = raw.assign(**dict.fromkeys(classes.columns, 1 / len(classes)))
    columns = alone.apply(uninformed, classes)[classes.columns].to_numpy()
    found = fusion.compare(tested[classes.columns].to_numpy(), columns, fused, truth, patient, seed=seed)
    comparison.record = comparison.record.model_copy(update={"test": found})


def unseen(model: ScoredModel) -> tuple[pd.DataFrame, str]:
    """Return unscaled predictions of patients that the network did not learn from, and which patients these are.

    The predictions have the path of each scan.
    """
    if not model.cross_validated:
        return unscaled(model.validation, model.classes), "validation patients"
    domain = model.evaluation.serving_domain
    paths = model.evaluation.data.examples(domain).set_index("name")["path"]
    table = record.out_of_fold(model.folder, domain)
    return table.assign(path=table["file"].map(paths)), "development patients, out of fold"
