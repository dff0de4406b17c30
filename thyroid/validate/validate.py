"""Measure a registered model on the scans of a site that it has never seen. Nothing is trained or chosen on them.

python -m thyroid.validate --registry DIR --scans DIR --site NAME --output DIR
"""

import datetime
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from thyroid import RESEARCH_USE_ONLY, command, errors, locks, storage
from thyroid.clinical import clinical_csv, clinical_table
from thyroid.clinical.clinical_table import ClinicalTable
from thyroid.clinical.fusion import Fusion
from thyroid.data import store, tables
from thyroid.data.classes import Classes
from thyroid.data.filenames import CLASSES, POSITIVE
from thyroid.errors import InputError
from thyroid.model.artefact import Artefact, code_version, sha256
from thyroid.model.operating_point import OperatingPoint
from thyroid.records.share import SMALLEST
from thyroid.records.validation import ValidatedModel, ValidateSettings, ValidationRecord
from thyroid.registry import validations
from thyroid.registry.registry import Registry
from thyroid.storage import Location
from thyroid.validate import audit, measure, plots, recalibrated, recalibration, report, site, subgroups, unlike
from thyroid.validate.endpoint import Endpoint
from thyroid.validate.options import ValidateOptions
from thyroid.validate.share import share, signature
from thyroid.validate.share.history import History
from thyroid.validate.site import Site

log = logging.getLogger(__name__)

TAKEN_OUT = "taken_out.csv"
WORK = ".work"
"""Folder in the output for files that are not needed later."""
RESULTS = ("report.html", "validation.json", "predictions.parquet", TAKEN_OUT, tables.QUARANTINE)
"""Files that a validation writes."""


@dataclass(frozen=True, eq=False)
class Validated:
    """The output of a validation.

    Attributes:
        folder: Folder with report.html, validation.json, predictions.parquet, taken_out.csv and quarantine.csv.
        record: Content of validation.json.
        tables: The predictions by kind of boxes.
        told: What else was done, in words: what was registered, kept and shared.
    """

    folder: Path
    record: ValidationRecord
    tables: Mapping[str, pd.DataFrame]
    told: list[str]


@dataclass(frozen=True, eq=False)
class _Model:
    """The version that is validated, with what follows from its model.json."""

    artefact: Artefact
    asked: str
    released: bool

    @classmethod
    def find(cls, options: ValidateOptions) -> "_Model":
        registry = Registry(options.registry)
        artefact = Artefact.verify(registry.find(options.model or None))
        return cls(artefact, options.model, registry.champion() == artefact.publication.version)

    @property
    def classes(self) -> Classes:
        return Classes.from_record(self.artefact.record)

    @property
    def point(self) -> OperatingPoint:
        return OperatingPoint.from_record(self.artefact.record)

    def clinical(self, location: Location, scans: pd.DataFrame) -> ClinicalTable | None:
        head = self.artefact.record.clinical
        used = [] if head is None else [column.name for column in Fusion.from_record(head).encoder.columns]
        return ClinicalTable.read(location, scans, used) if location else None

    def record(self, form: str) -> ValidatedModel:
        record = self.artefact.record
        return ValidatedModel(
            name=record.name,
            version=self.artefact.publication.version,
            asked=self.asked,
            released=self.released,
            sha256=sha256(self.artefact.folder / "model.json"),
            backbone=record.backbone,
            serving_domain=record.serving_domain,
            form=form,
            sensitivity=record.settings.sensitivity,
            threshold=record.threshold,
        )


@dataclass
class _Clock:
    """The seconds of every stage."""

    started: float = field(default_factory=time.monotonic)
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        begun = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - begun, 1)

    def total(self) -> dict[str, float]:
        return self.seconds | {"total": round(time.monotonic() - self.started, 1)}


def validate(options: ValidateOptions, output: Path) -> Validated:
    """Measure a registered model on a site's scans, write the report, and keep the figures in the registry.

    Every image goes through the code of the endpoint. Scans that the model knows are taken out before any figure is
    computed. The locked threshold stays what it is; a recalibration is fitted for comparison only, and is registered
    as a version of its own if `options.recalibrate` says so.

    What can be known to fail is found before the model judges an image. Whatever fails after the measurement, the
    report is written first, and everything else is still done.

    Args:
        options: The model, the scans, and what to measure.
        output: Folder to write to.

    Raises:
        InputError: There is no such model, no scan is left to validate, a file cannot be read, the registry cannot be
            written, the output is among the scans or in the registry, another validation writes to it, there are too
            few patients to recalibrate or to share, or what should be shared would identify a patient.
    """
    clock = _Clock()
    options = replace(options, site=store.site(options.site), by=options.by or command.user_name())
    _check_places(options, output)
    model = _Model.find(options)
    validations.check_writable(Registry(options.registry), model.artefact.publication.version)
    with _alone(output) as work:
        with clock.stage("scans"):
            found = site.read(options, model.artefact, work)
            clinical = model.clinical(options.clinical, found.data.used)
        _check_patients(options, model, found)
        done = _Measured.of(options, model, found, clinical, clock)
        return _finish(options, model, found, done, output)


def _check_places(options: ValidateOptions, output: Path) -> None:
    """Check the places of output, table and counts to share, before anything is read or removed."""
    for what, place in (("scans", options.scans), ("registry", options.registry)):
        if not storage.is_bucket(place) and output.resolve().is_relative_to(Path(place).resolve()):
            raise InputError(f"{output}: the output is in the folder of the {what}; name another folder with --output")
    if options.clinical:
        clinical_csv.read(Path(storage.file(clinical_table.parse_location(options.clinical)[0])))
    if options.share is None or options.key is None:
        return
    for name, file in (("share", options.share), ("key", options.key)):
        if not os.access(file.parent, os.W_OK):
            raise InputError(f"{name}: {file.parent} is no folder that can be written; make it, or name another place")
    if options.key.exists():
        signature.private_key(options.key)
    History.beside(options.key)


@contextmanager
def _alone(output: Path) -> Iterator[Path]:
    """Give a folder for passing files in the output, without the results of an earlier validation beside it.

    Those could be mistaken for the results of this one. A run that was killed leaves its passing files to the next one.
    """

    def busy() -> None:
        raise InputError(f"{output}: another validation writes here; wait for it, or name another folder with --output")

    output.mkdir(parents=True, exist_ok=True)
    place = output / WORK
    place.mkdir(mode=0o700, exist_ok=True)
    with locks.held(place / ".lock", busy):
        for left in place.glob("*/"):
            shutil.rmtree(left, ignore_errors=True)
        for name in RESULTS:
            (output / name).unlink(missing_ok=True)
        try:
            with tempfile.TemporaryDirectory(dir=place) as work:
                yield Path(work)
        finally:
            shutil.rmtree(place, ignore_errors=True)


def _check_patients(options: ValidateOptions, model: _Model, found: Site) -> None:
    """Check that there are patients enough for what was asked for, before the model judges them."""
    judged, regions = found.data.used, found.data.regions
    if model.artefact.record.serving_domain == "cropped":
        given = judged["path"].isin(regions.loc[regions["source"] == "given", "path"])
        judged = judged[given] if given.any() else judged
    if options.recalibrate and (reason := recalibration.too_few(judged, model.classes)) is not None:
        raise InputError(f"recalibrate: {reason}; validate it without --recalibrate")
    malignant = judged.loc[judged["label"] == CLASSES[POSITIVE], "patient"].nunique()
    if options.share is not None and max(malignant, judged["patient"].nunique() - malignant) < SMALLEST:
        raise InputError(
            f"share: the site has fewer than {SMALLEST} patients of each class, and no count of them can be shared; "
            "validate it without --share"
        )


@dataclass(frozen=True, eq=False)
class _Measured:
    """What was measured, before anything is written."""

    record: ValidationRecord
    tables: dict[str, pd.DataFrame]
    groups: pd.DataFrame
    crossed: pd.DataFrame | None
    cases: dict[str, list[plots.Case]]
    lost: dict[str, str]

    @classmethod
    def of(
        cls, options: ValidateOptions, model: _Model, found: Site, clinical: ClinicalTable | None, clock: _Clock
    ) -> "_Measured":
        """Let the model judge every image, and measure its answers."""
        artefact, classes, point = model.artefact, model.classes, model.point
        prevalence = options.prevalence or artefact.record.settings.prevalence
        settings = ValidateSettings(prevalence=prevalence, wanted=options.wanted, seed=options.seed)
        with Endpoint(artefact.folder, model.released) as endpoint:
            with clock.stage("predict"):
                answered = {
                    kind: endpoint.predict(found.data, kind, None if clinical is None else clinical.rows)
                    for kind in endpoint.kinds
                }
            predicted = {kind: table for kind, table in answered.items() if len(table)}
            if not predicted:
                raise InputError(f"{options.scans}: no scan could be judged; {next(iter(endpoint.lost.values()))}")
            main, table = next(iter(predicted.items()))
            with clock.stage("audit"):
                audited, not_audited = audit.run(endpoint, found.data, table, artefact, options.seed)
            mistakes = measure.mistakes(table, point)
            with clock.stage("mistakes"):
                cases = {
                    name: endpoint.cases(found.data, rows.head(report.WORST))
                    for name, rows in mistakes.items()
                    if len(rows)
                }
        with clock.stage("measure"):
            groups = subgroups.columns(found.data, clinical)
            forms = {kind: measure.of_form(one, kind, artefact, settings, groups) for kind, one in predicted.items()}
            fitted, not_fitted, crossed = recalibration.cross_fit(table, classes, artefact, settings, boxes=main)
            record = ValidationRecord(
                **classes.to_dict(),
                **_agreement(predicted, options.seed),
                notice=RESEARCH_USE_ONLY,
                site=options.site,
                created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                by=options.by,
                code_version=code_version(),
                model=model.record(endpoint.form),
                data_digest=found.data.digest,
                scans=found.without(set(endpoint.lost) - {path for one in predicted.values() for path in one["path"]}),
                main=main,
                forms=forms,
                audits=audited,
                not_audited=not_audited,
                unlike=unlike.measure(artefact.record, found.data),
                recalibration=fitted,
                not_recalibrated=not_fitted,
                needed=recalibration.patients_needed(table, point.threshold, options.wanted),
                mistakes={name: len(rows) for name, rows in mistakes.items()},
                warnings=[],
                settings=settings,
                seconds=clock.seconds,
            )
        warnings = [*measure.warnings(record, artefact), *([] if clinical is None else clinical.notes)]
        record = record.model_copy(update={"warnings": warnings, "seconds": clock.total()})
        return cls(record, predicted, groups, crossed, cases, endpoint.lost)


def _agreement(predicted: Mapping[str, pd.DataFrame], seed: int) -> dict[str, Any]:
    """Return the field `agreement`, if there are answers with given and with automatic boxes."""
    if not {"given", "automatic"} <= set(predicted):
        return {}
    return {"agreement": measure.agreement(predicted["given"], predicted["automatic"], seed)}


def _finish(options: ValidateOptions, model: _Model, found: Site, done: _Measured, output: Path) -> Validated:
    """Write the results, keep the figures, and register and share what was asked for; a failure ends none of the rest.

    Raises:
        InputError: Something failed. The results are written nevertheless.
    """
    record, registry = done.record, Registry(options.registry)
    told: list[str] = []
    failed: list[str] = []
    _write(output, record, found, done)
    if options.recalibrate:
        with _noted(failed, "recalibrate"):
            record = _register(registry, model, found, done)
            _write(output, record, found, done)
            assert record.recalibration is not None
            number = record.recalibration.version
            told.append(
                f"registered as version {number}, recalibrated for {options.site}; it is not released until somebody "
                f"promotes it: python -m thyroid.registry promote {number} --registry {options.registry} --reason ..."
            )
    with _noted(failed, f"registry {options.registry}"):
        validations.record(registry, record.model.version, measure.entry(record))
        told.append(f"kept beside version {record.model.version} in {options.registry}")
    if options.share is not None and options.key is not None:
        with _noted(failed, "share"):
            leading = done.tables[record.main]
            share.write(options.share, options.key, record, leading, groups=done.groups, point=model.point)
            told.append(f"counts to share: {options.share}")
    if failed:
        raise InputError("; ".join([*failed, *told, f"the report is written: {output / 'report.html'}"]))
    told += [
        f"{count} {what}: {output / file}"
        for count, what, file in (
            (record.scans.quarantined, "files cannot be used", tables.QUARANTINE),
            (len(found.taken_out), "scans that the model knows were left out", TAKEN_OUT),
        )
        if count
    ]
    return Validated(output, record, done.tables, told)


@contextmanager
def _noted(failed: list[str], what: str) -> Iterator[None]:
    """Note a failure that the user can mend, in words, and go on."""
    try:
        yield
    except InputError as error:
        failed.append(errors.one_line(error))
    except OSError as error:  # which need not name a file
        failed.append(f"{what}: {errors.one_line(error)}")


def _register(registry: Registry, model: _Model, found: Site, done: _Measured) -> ValidationRecord:
    """Register the recalibration, and return the record with its version and the gate's decision."""
    crossed = None if done.crossed is None else done.crossed.join(done.groups, "path")
    version, decision = recalibrated.register(registry, model.artefact, done.record, crossed, found.data)
    assert done.record.recalibration is not None
    registered = done.record.recalibration.model_copy(update={"version": version, "gate": decision})
    return done.record.model_copy(update={"recalibration": registered})


def _write(output: Path, record: ValidationRecord, found: Site, done: _Measured) -> None:
    """Write the files of `RESULTS`."""
    lost = pd.DataFrame(list(done.lost.items()), columns=["file", "reason"])
    quarantine = pd.concat([tables.read_quarantine(found.data.folder, found.data.facts), lost], ignore_index=True)
    tables.write_quarantine(output / tables.QUARANTINE, quarantine)
    tables.write_quarantine(output / TAKEN_OUT, found.taken_out)
    every = pd.concat([table.assign(boxes=kind) for kind, table in done.tables.items()], ignore_index=True)
    every.to_parquet(output / "predictions.parquet", index=False)
    report.write(output, record, done.tables, taken_out=found.taken_out, quarantine=quarantine, cases=done.cases)
    record.write(output / "validation.json")
