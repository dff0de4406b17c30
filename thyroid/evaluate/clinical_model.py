"""Find out whether clinical.csv helps: explore its columns, search them for leaks, and use them on request.

Columns are explored, searched and fitted on development patients. Their worth is also measured on the test set, where
it decides nothing.
"""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from thyroid import storage
from thyroid.clinical import association, clinical_csv, fusion
from thyroid.clinical.fusion import Fusion
from thyroid.data import classes as kinds
from thyroid.data import tables
from thyroid.data.classes import Classes
from thyroid.errors import InputError
from thyroid.evaluate import subgroups
from thyroid.evaluate.predictions import Trained
from thyroid.train import record

log = logging.getLogger(__name__)

ALL = "*"
FOLDS = 5


@dataclass(frozen=True)
class Beside:
    """The content of clinical.csv for the scans in use.

    Attributes:
        rows: Usable columns, by the path of the scan.
        groups: Subgroup of every scan in each column, by the path of the scan.
        notes: Notes on what could not be used, in words.
        wanted: Columns that the model may use.
    """

    rows: pd.DataFrame
    groups: pd.DataFrame
    notes: list[str]
    wanted: list[str]


@dataclass
class Benefit:
    """The effect of clinical data on the winner.

    Attributes:
        head: Head that the model uses; None where the columns were not shown to help, or none was requested.
        tried: Head on images and columns, and head on columns alone, for the comparison on the test set; None where no
            column was tried.
        facts: Facts as they appear in summary.json.
        rows: Values of the columns that were tried, by the path of the scan.
    """

    head: Fusion | None = None
    tried: tuple[Fusion, Fusion] | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    rows: pd.DataFrame = field(default_factory=pd.DataFrame)

    def fused(self, table: pd.DataFrame, classes: Classes) -> pd.DataFrame:
        """Add the columns to unscaled predictions. They stay as they are where the model uses no columns."""
        return table if self.head is None else _through(self.head, table, self.rows, classes)


def parts(place: storage.Location) -> tuple[str, list[str]]:
    """Split a place such as clinical.csv#age,sex into the file and the columns that the model may use."""
    file, columns = storage.parted(place)
    return file, [name.strip() for name in columns.split(",") if name.strip()]


def read(place: storage.Location, scans: pd.DataFrame) -> Beside:
    """Read clinical.csv and join it to the scans in use.

    Args:
        place: The file. A suffix such as #age,sex names the columns that the model may use; #* means all columns.
        scans: Scans in use, with path, patient and image.

    Returns:
        The usable columns and the subgroups of every scan.

    Raises:
        InputError: A requested column cannot be used, or the file cannot be read or joined (see `clinical_csv.read` and
            `clinical_csv.join`).
    """
    file, wanted = parts(place)
    table = clinical_csv.read(Path(storage.file(file)))
    rows, notes = clinical_csv.join(scans, table)
    groups, more = subgroups.join(scans, table)
    if ALL in wanted:
        wanted = list(rows.columns)
    for name in wanted:
        if name not in rows:
            why = [note for note in notes if f"column {name} " in note]
            raise InputError(f"{file}: column {name} cannot be used: {why[0] if why else 'there is none'}")
    paths = scans["path"].to_numpy()
    return Beside(rows.set_axis(paths), groups.set_axis(paths), list(dict.fromkeys([*notes, *more])), wanted)


def weigh(
    data: Path,
    winner: Trained,
    validation: pd.DataFrame,
    serving_domain: str,
    beside: Beside,
    pictures: Path,
    seed: int,
) -> Benefit:
    """Explore the columns, find those that give the class away, and try the other requested ones.

    The head is fitted on patients that the network did not learn from: development patients out of fold where the
    winner was cross-validated, otherwise validation patients. It is cross-fitted on them by patient, and used only if
    the whole interval of its difference from the images alone is above 0.

    Args:
        data: Data version of `crop`.
        winner: Training of the winner.
        validation: The winner's unscaled validation predictions in the serving domain.
        serving_domain: Domain in which models are compared.
        beside: Result of `read`.
        pictures: Folder for the plots.
        seed: Seed of folds and bootstrap.

    Returns:
        The effect of the columns. If they could not be tried, its facts give the reason (`not_tried`).

    Raises:
        InputError: The columns cannot be searched for leaks (see `association.leaks`).
    """
    classes = kinds.of(winner.facts)
    scans = tables.used(tables.read(data)[0])
    development = scans[scans["split"] != "test"]
    known, patient = beside.rows.loc[development["path"]], development["patient"].astype(int).to_numpy()
    truth = classes.index(development["class"])
    facts: dict[str, Any] = {"notes": beside.notes, "columns": list(beside.rows), "wanted": beside.wanted}
    if beside.rows.empty or not len(beside.rows.columns):
        return Benefit(facts=facts | {"leaks": {"columns": [], "findings": []}, "used": []})
    log.info(f"clinical.csv: {len(beside.rows.columns)} columns, of {len(development)} development scans")
    facts["explored"] = association.explore(known, truth, patient, classes.names, seed)
    facts["pictures"] = association.draw(facts["explored"], pictures)
    facts["leaks"] = association.leaks(known, truth, patient, classes.names, classes.positive, seed)
    told = {row["column"]: row["finding"] for row in facts["leaks"]["columns"] if row["finding"]}
    facts["left_out"] = {name: told[name] for name in beside.wanted if name in told}
    columns = [name for name in beside.wanted if name not in told]
    if not columns:
        return Benefit(facts=facts | {"used": []})

    try:
        return _try(data, winner, validation, serving_domain, beside, columns, facts, seed)
    except InputError as error:  # clinical columns are optional: the evaluation goes on without them
        log.info(f"clinical columns were not tried: {error}")
        return Benefit(facts=facts | {"used": [], "not_tried": str(error)})


def _try(
    data: Path,
    winner: Trained,
    validation: pd.DataFrame,
    serving_domain: str,
    beside: Beside,
    columns: list[str],
    facts: dict[str, Any],
    seed: int,
) -> Benefit:
    """Fit and compare heads on images and columns, with patients that the winner did not learn from."""
    classes = kinds.of(winner.facts)
    seen, fold = _unseen(data, winner, validation, serving_domain)
    rows, p = beside.rows.loc[seen["path"], columns].reset_index(drop=True), seen[classes.columns].to_numpy()
    truth, patient = classes.index(seen["class"]), seen["patient"].astype(int).to_numpy()
    fitted = fusion.cross_fitted(p, rows, truth, patient, FOLDS, seed)
    found = fusion.compare(p, fitted.clinical, fitted.fused, truth, patient, fitted.fold, seed=seed)
    nothing = p * 0 + 1 / len(classes)
    tried = (fusion.fit(p, rows, truth, patient, seed), fusion.fit(nothing, rows, truth, patient, seed))
    used = found["verdict"] == "helped"
    facts |= {
        "tried": columns,
        "fitted_on": {"what": fold, "images": len(seen), "patients": found["patients"]},
        "development": found,
        "used": columns if used else [],
    }
    return Benefit(tried[0] if used else None, tried, facts, beside.rows[columns])


def tell_on_test(benefit: Benefit, images: pd.DataFrame, raw: pd.DataFrame, classes: Classes, seed: int) -> None:
    """Compare images, columns and both on the same test patients, and add the result to the facts.

    Nothing is added where no column was tried.

    Args:
        benefit: Result of `weigh`; its facts are changed.
        images: Test predictions of the images alone, at their operating point.
        raw: The same predictions, unscaled.
        classes: Classes of the data version.
        seed: Seed of the bootstrap.
    """
    if benefit.tried is None:
        return
    both, alone = benefit.tried
    truth, patient = classes.index(images["class"]), images["patient"].astype(int).to_numpy()
    fused = _through(both, raw, benefit.rows, classes)[classes.columns].to_numpy()
    blind = raw.assign(**dict.fromkeys(classes.columns, 1 / len(classes)))
    columns = _through(alone, blind, benefit.rows, classes)[classes.columns].to_numpy()
    benefit.facts["test"] = fusion.compare(
        images[classes.columns].to_numpy(), columns, fused, truth, patient, seed=seed
    )


def _unseen(data: Path, winner: Trained, validation: pd.DataFrame, domain: str) -> tuple[pd.DataFrame, str]:
    """Return unscaled predictions of patients that the network did not learn from, and which patients these are.

    The predictions have the path of each scan.
    """
    if winner.facts["folds"] and not winner.facts["only_fold"]:
        paths = tables.examples(data, domain).set_index("name")["path"]
        table = record.out_of_fold(winner.folder, domain)
        return table.assign(path=table["file"].map(paths)), "development patients, out of fold"
    return validation, "validation patients"


def _through(head: Fusion, table: pd.DataFrame, rows: pd.DataFrame, classes: Classes) -> pd.DataFrame:
    """Replace the probabilities of `table` by those of the head, with the clinical rows of the same scans."""
    answers, _ = head.predict(table[classes.columns].to_numpy(), rows.loc[table["path"]].reset_index(drop=True))
    return table.assign(**dict(zip(classes.columns, answers.T, strict=True)))
