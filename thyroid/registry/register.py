"""Publish the evaluation's winner as a registry version and write the run's summary.

python -m thyroid.register --evaluation DIR --registry DIR --summary summary.json
"""

import argparse
import json
import logging
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pandas as pd

from thyroid import atomic, errors
from thyroid.data import pseudonyms
from thyroid.errors import InputError
from thyroid.model import artefacts
from thyroid.registry import changes
from thyroid.registry.registry import Registered, Registry
from thyroid.storage import Location

log = logging.getLogger(__name__)

RUN = "run.yaml"
"""File of a version with the parameters of the run that made it."""
PATIENTS = "patients.csv"
"""Table in an evaluation's folder with patient and cohort of every row of its artefact's scans.csv.

Patient numbers do not leave the evaluation; the registry contains pseudonyms only.
"""


def register(evaluation: Path, registry_root: Location, summary: Path, run: str = "") -> Registered:
    """Publish `evaluation`'s artefact with its report to the registry, and write summary.json.

    A second call with the same evaluation does not register it again.

    Args:
        evaluation: Folder that `evaluate` has written.
        registry_root: Root of the registry.
        summary: File to write: the evaluation's metrics, the registered model and the seconds of every step.
        run: Content of the run.yaml that repeats the run. It becomes a file of the version; empty for none.

    Returns:
        The published version.

    Raises:
        InputError: The evaluation is incomplete, or its files are not those that evaluation.json refers to.
    """
    started = time.monotonic()
    try:
        facts = json.loads((evaluation / "evaluation.json").read_text())
    except FileNotFoundError:
        raise InputError(f"{evaluation}: not a finished evaluation (evaluation.json is missing)") from None
    with tempfile.TemporaryDirectory() as temporary:
        artefact = Path(temporary) / "artefact"
        shutil.copytree(evaluation / "artefact", artefact)
        described = artefacts.verify(artefact)
        if artefacts.sha256(artefact / "model.json") != facts["artefact"]:
            raise InputError(
                f"{evaluation}: its artefact is not the one that evaluation.json refers to; evaluate again"
            )
        shutil.copy(evaluation / "report.html", artefact / "report.html")
        if run:
            atomic.write_bytes(artefact / RUN, run.encode())
        _name_patients(artefact, _patients(evaluation, facts.pop("patients", "")), registry_root)
        artefacts.describe(artefact, {k: v for k, v in described.items() if k not in ("files", "code_version")})
        registered = Registry(registry_root).publish(artefact, facts["gate"])
    facts["model"] = {key: value for key, value in asdict(registered).items() if key != "gate"}
    facts["gate"] = registered.gate
    facts["seconds"]["register"] = round(time.monotonic() - started, 1)
    atomic.write_json(summary, facts)
    log.info(
        f"registered {registered.name} version {registered.version} ({registered.gate['decision']}): {registered.uri}"
    )
    return registered


def _patients(evaluation: Path, expected: str) -> pd.DataFrame:
    """Read the table of patients, and check its SHA-256 against evaluation.json."""
    table = evaluation / PATIENTS
    if not table.is_file() or artefacts.sha256(table) != expected:
        raise InputError(f"{table}: missing or not the one of evaluation.json; evaluate again")
    return pd.read_csv(table, dtype={"patient": "int64", "cohort": "string"}, keep_default_na=False)


def _name_patients(artefact: Path, patients: pd.DataFrame, root: Location) -> None:
    """Write the patients' pseudonyms into scans.csv. They allow comparisons with later models and test sets."""
    secret, scans = pseudonyms.key(root), changes.scans_of(artefact)
    pairs = zip(patients["cohort"].tolist(), patients["patient"].tolist(), strict=True)
    scans["patient"] = [pseudonyms.of_patient(secret, cohort, patient) for cohort, patient in pairs]
    scans.to_csv(artefact / artefacts.SCANS, index=False)


@errors.command
def main(argv: Sequence[str] | None = None) -> None:
    """Register a model from the command line."""
    parser = argparse.ArgumentParser(prog="python -m thyroid.register", description=__doc__.split("\n")[0])
    parser.add_argument("--evaluation", type=Path, required=True, help="folder of thyroid.evaluate")
    parser.add_argument("--registry", dest="registry_root", required=True, help="root of the registry, or gs://")
    parser.add_argument("--summary", type=Path, required=True, help="file to write")
    register(**vars(parser.parse_args(argv)))
