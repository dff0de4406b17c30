"""Turn scans into a data version: check, hash and group the files, deal the splits, and quarantine what is unusable.

DICOM files count as scans if dicom.csv lists them (see `dicom_csv`). Later steps read pictures of them that name no
patient.

With a store, only files that are new or have changed since the last run are downloaded, decoded and hashed. The
resulting data version is the same as if every file had been examined again.

python -m thyroid.ingest --scans DIR --rois rois.csv --output DIR
python -m thyroid.ingest --scans gs://bucket/scans --output DIR --store DIR
"""

import contextlib
import hashlib
import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from thyroid import storage
from thyroid.data import classes as class_names
from thyroid.data import erased, store, tables
from thyroid.data.classes import Classes
from thyroid.data.erased import Erased
from thyroid.data.store import Store, Version
from thyroid.ingest import erasure, examine, grouping, labels, listing, regions
from thyroid.ingest.history import Cohort, History, find_cohort
from thyroid.ingest.labels import Label
from thyroid.ingest.listing import ListedFile
from thyroid.ingest.options import IngestOptions
from thyroid.ingest.regions import Regions, RoiTable
from thyroid.ingest.scan_table import ScanTable
from thyroid.records.data import DataRecord

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ingested:
    """The folder of a data version, and its facts (the content of data.json)."""

    folder: Path
    facts: DataRecord


def ingest(options: IngestOptions, output: Path) -> Ingested:
    """Check, hash, group and split every file of the scans, and write a data version to `output`.

    If nothing has changed since the last data version in the store, that one is written again.

    Args:
        options: The scans, and how to read them.
        output: Folder of the new data version.

    Raises:
        InputError: There is nothing usable, a class has no scans or a split lacks a class (both except with
            `IngestOptions.all_test`), the site cannot be a name, rois.csv, labels.csv or dicom.csv cannot be read,
            there are DICOM files and no key in the environment, or a bucket cannot be read.
    """
    request = _Request.read(options)
    place = Store(options.store) if options.store else None
    with contextlib.nullcontext() if place is None else place.lock():
        started = time.monotonic()
        home = None if place is None else place.folder
        site = store.site(options.site)
        history = History.read(place, storage.at(options.scans).address)
        inputs = _Inputs.read(request, output, home)
        digest = inputs.digest()
        if (version := history.unchanged(digest, site, inputs.files)) is not None:
            return _take(version, output)

        examined = examine.examine(inputs.files, history.last, home or output.resolve())
        scans = ScanTable(inputs.files, examined, request.classes, has_labels=request.labels is not None)
        scans.links = grouping.find_links(scans, history)
        grouping.quarantine_shared_pictures(scans)
        cohort = find_cohort(history, site, scans.used)
        scans.notes += cohort.notes
        erased_patients = erasure.set_aside(scans, inputs.erased, history, cohort, home=home)
        scans.require_any(history.source)
        grouping.group(scans)
        if options.all_test:
            grouping.deal_to_test(scans)
            scans.require_any(history.source)  # copies that contradict each other may have been all there was
        else:
            scans.require_every_class(history.source, request.classes)
            grouping.deal(scans, cohort, options.given_splits, options.seed)
        found = regions.find(scans, history.source, inputs.rois)
        found.forget(erased_patients)

        facts = DataRecord(
            source=history.source,
            cohort=cohort.name,
            seconds={"ingest": round(time.monotonic() - started, 1)},
            files={},
            **_facts(scans, found, request.classes, digest),
        )
        facts = _write(output, scans, found, facts)
        if place is not None:
            _keep(place, output, scans, cohort.without_own_memory() if options.given_splits == "ignore" else cohort)
        _report(facts, None if options.all_test else output)
    return Ingested(output, facts)


@dataclass(frozen=True)
class _Request:
    """The options of a run with what they refer to.

    Attributes:
        options: The options.
        classes: The classes.
        labels: What labels.csv says, by file name; None without such a table.
    """

    options: IngestOptions
    classes: Classes
    labels: Mapping[str, Label] | None

    @classmethod
    def read(cls, options: IngestOptions) -> "_Request":
        if options.crops:
            listing.check_apart(options.scans, options.crops)
        classes = class_names.parse(options.classes)
        return cls(options, classes, labels.read(options.labels, classes) if options.labels else None)

    def list_files(self, exclude: Sequence[storage.Location]) -> list[ListedFile]:
        """List the frames and the crops with their labels, except the files and folders in `exclude`."""
        options = self.options
        files = listing.list_scans(options.scans, "normal", (*exclude, options.crops), self.classes)
        if options.crops:
            files += listing.list_scans(options.crops, "cropped", exclude, self.classes)
        return files if self.labels is None else [file.with_label(self.labels) for file in files]


@dataclass(frozen=True)
class _Inputs:
    """Everything that a data version depends on.

    Attributes:
        request: The request.
        files: The files, frames first, then crops.
        rois: Content of rois.csv; None without such a table.
        erased: The patients that were erased from the store.
    """

    request: _Request
    files: Sequence[ListedFile]
    rois: RoiTable | None
    erased: Erased

    @classmethod
    def read(cls, request: _Request, output: Path, home: Path | None) -> "_Inputs":
        """List the files, except those that this run reads or writes besides the scans, and read the tables."""
        options = request.options
        label_file = storage.parted(options.labels)[0] if options.labels else ""
        exclude = (options.rois, label_file, output, home or "")
        return cls(
            request,
            request.list_files(exclude),
            RoiTable.read(options.rois) if options.rois else None,
            Erased() if home is None else erased.load(home),
        )

    def digest(self) -> str | None:
        """Return a digest of the inputs; None if a file may change unnoticed."""
        if any(file.generation is None for file in self.files):
            return None
        options, classes = self.request.options, self.request.classes
        rules = [examine.EXAMINATION, grouping.DEALING, options.given_splits, options.seed, classes.to_dict()]
        digest = hashlib.sha256(json.dumps(rules).encode())
        for file in self.files:
            described = file.row and file.row.line, file.label
            digest.update(f"{file.path}\0{file.domain}\0{file.generation}\0{described}\n".encode())
        digest.update(b"" if self.rois is None else self.rois.rows.to_csv().encode())
        digest.update("\n".join(sorted(map(str, self.erased.patients))).encode())
        return digest.hexdigest()


def _take(version: Version, output: Path) -> Ingested:
    """Write a data version of the store to `output` once more."""
    version.take(output)
    log.info(f"nothing has changed since data version {version.folder.name}: {version.facts.scans} scans")
    return Ingested(output, version.facts)


def _facts(scans: ScanTable, found: Regions, classes: Classes, digest: str | None) -> dict[str, Any]:
    """Return the facts that follow from the scans and regions, and from the digest of the inputs."""
    used = scans.used
    return {
        "digest": tables.digest(scans.table, found.table),
        "scans": len(used),
        "quarantined": len(scans.table) - len(used) + len(found.refused),
        "patients": int(used["patient"].nunique()),
        "duplicate_groups": scans.duplicate_groups,
        "regions": len(found.rows),
        "synthetic": int(used["synthetic"].sum()),
        "splits": tables.count_splits(used, classes.names),
        **classes.to_dict(),
        "notes": scans.notes,
        "looked_at": scans.looked_at,
        "inputs": None if scans.examined["generation"].isna().any() else digest,
        "examined_by": examine.EXAMINATION,
    }


def _write(output: Path, scans: ScanTable, found: Regions, facts: DataRecord) -> DataRecord:
    """Write a data version, and return its facts with the checksums of its files."""
    output.mkdir(parents=True, exist_ok=True)
    table = found.table
    quarantined = pd.DataFrame([*scans.quarantined(), *found.refused], columns=["file", "reason"])
    tables.write_quarantine(output / tables.QUARANTINE, quarantined)
    from thyroid.data import plots  # imported late: a run without anything new draws nothing

    plots.data_statistics(scans.used, table, output / "statistics.png", Classes.from_record(facts))
    return tables.write(output, scans.table[list(tables.SCANS)], table, facts)


def _keep(place: Store, output: Path, scans: ScanTable, cohort: Cohort) -> None:
    """Keep a data version in the store."""
    version = place.add(output, scans.examined, scans.links, cohort.remember(scans.used))
    log.info(f"data version {version.name}: {scans.looked_at} of {len(scans.table)} files read, the others were known")


def _report(facts: DataRecord, output: Path | None) -> None:
    """Log what was ingested, with the place of the quarantine list unless that is a passing one."""
    for split, count in facts.splits.items():
        if not count["patients"]:  # all are in the test part of a validation
            continue
        by_class = {name: number for name, number in count.items() if name != "patients"}
        listed = ", ".join(f"{name} {number}" for name, number in by_class.items())
        log.info(
            f"{split}: Found {sum(by_class.values())} images belonging to {len(by_class)} classes. "
            f"({listed}; {count['patients']} patients)"
        )
    for note in facts.notes:
        log.info(f"note: {note}")
    if facts.quarantined:
        place = "" if output is None else f", see {output / tables.QUARANTINE}"
        log.info(f"quarantined: {facts.quarantined}{place}")
