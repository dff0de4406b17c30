"""Publish the evaluation's winner as a registry version and write the run's summary.

python -m thyroid.register --evaluation DIR --registry DIR --summary summary.json
"""

import logging
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import pandas as pd

from thyroid import atomic, command, notify, storage
from thyroid.data import pseudonyms
from thyroid.errors import InputError
from thyroid.model.artefact import SCANS, Artefact, sha256
from thyroid.notify import words
from thyroid.records import evaluation as records
from thyroid.registry import changes
from thyroid.registry.hub import hub as kubeflow
from thyroid.registry.registry import Registered, Registry
from thyroid.storage import Location

log = logging.getLogger(__name__)

RUN = "run.yaml"
"""File of a version with the parameters of the run that made it."""
PATIENTS = "patients.csv"
"""Table in an evaluation's folder with patient and cohort of every row of its artefact's scans.csv.

Patient numbers do not leave the evaluation; the registry contains pseudonyms only.
"""


def register(evaluation: Path, registry_root: Location, summary: Path, run: str = "", hub: str = "") -> Registered:
    """Publish `evaluation`'s artefact with its report to the registry, and write summary.json.

    A second call with the same evaluation does not register it again. Kubeflow Hub is updated afterwards,
    and the receivers of notifications are told what the gate decided. If that fails, there is a warning, and the
    registration holds.

    Args:
        evaluation: Folder that `evaluate` has written.
        registry_root: Root of the registry.
        summary: File to write: the evaluation's metrics, the registered model and the seconds of every step.
        run: Content of the run.yaml that repeats the run. It becomes a file of the version; empty for none.
        hub: Address of Kubeflow Hub, as for `hub.enter`; empty for the last one, if any.

    Returns:
        The published version.

    Raises:
        InputError: The evaluation is incomplete, or its files are not those that evaluation.json refers to.
    """
    started = time.monotonic()
    try:
        result = records.EvaluationRecord.read(evaluation / "evaluation.json")
    except FileNotFoundError:
        raise InputError(f"{evaluation}: not a finished evaluation (evaluation.json is missing)") from None
    root = Registry(registry_root)
    with tempfile.TemporaryDirectory() as temporary:
        artefact = Path(temporary) / "artefact"
        shutil.copytree(evaluation / "artefact", artefact)
        described = Artefact.verify(artefact)
        if sha256(artefact / "model.json") != result.artefact:
            raise InputError(
                f"{evaluation}: its artefact is not the one that evaluation.json refers to; run the evaluation again"
            )
        shutil.copy(evaluation / "report.html", artefact / "report.html")
        if run:
            atomic.write_bytes(artefact / RUN, run.encode())
        _name_patients(artefact, _patients(evaluation, result.patients), registry_root)
        Artefact.describe(artefact, described.record)
        registered = root.publish(artefact, result.gate)
    seconds = {"register": round(time.monotonic() - started, 1)}
    _summarise(result, registered, seconds).write(summary)
    log.info(
        f"registered {registered.name} version {registered.version} ({registered.gate.decision}): {registered.uri}"
    )
    kubeflow.update(root, hub)
    news = words.gate(
        registered.version,
        registered.sha256,
        registered.gate,
        backbone=result.winner.backbone,
        link=storage.below(registered.uri, "report.html"),
    )
    notify.tell(news, registry_root)
    return registered


def _summarise(
    result: records.EvaluationRecord, registered: Registered, seconds: dict[str, float]
) -> records.SummaryRecord:
    """Return the content of summary.json. The SHA-256 of patients.csv does not leave the evaluation."""
    changed: dict[str, Any] = {
        "gate": registered.gate,
        "seconds": result.seconds | seconds,
    }
    kept = {name: getattr(result, name) for name in result.model_fields_set - {"patients", *changed}}
    model = records.Registered(
        name=registered.name, version=registered.version, uri=registered.uri, sha256=registered.sha256
    )
    return records.SummaryRecord(**kept, **changed, model=model)


def _patients(evaluation: Path, expected: str | None) -> pd.DataFrame:
    """Read the table of patients, and check its SHA-256 against evaluation.json."""
    table = evaluation / PATIENTS
    if not table.is_file() or sha256(table) != expected:
        raise InputError(f"{table}: missing, or not the file that evaluation.json refers to; run the evaluation again")
    return pd.read_csv(table, dtype={"patient": "int64", "cohort": "string"}, keep_default_na=False)


def _name_patients(artefact: Path, patients: pd.DataFrame, root: Location) -> None:
    """Write the patients' pseudonyms into scans.csv. They allow comparisons with later models and test sets."""
    secret, scans = pseudonyms.key(root), changes.scans_of(artefact)
    pairs = zip(patients["cohort"].tolist(), patients["patient"].tolist(), strict=True)
    scans["patient"] = [pseudonyms.of_patient(secret, cohort, patient) for cohort, patient in pairs]
    scans.to_csv(artefact / SCANS, index=False)


def run(*, evaluation: Path, registry: Location, summary: Path, hub: str = "") -> None:
    """Publish the evaluation's winner as a registry version and write the run's summary.

    Args:
        evaluation: Folder of thyroid.evaluate.
        registry: Root of the registry: a folder, or a gs:// or s3:// prefix.
        summary: File to write.
        hub: Address of Kubeflow Hub to enter the model in as well, URL#NAME for another name than thyroid.
    """
    register(evaluation, registry, summary, hub=hub)


main = command.main("python -m thyroid.register", run)
