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
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from thyroid import storage
from thyroid.data import classes as class_names
from thyroid.data import store, tables
from thyroid.data.classes import Classes
from thyroid.data.store import Store, Version, erased
from thyroid.data.store.erased import Erased
from thyroid.errors import InputError
from thyroid.ingest import erasure, examine, grouping, labels, listing, regions
from thyroid.ingest.history import Cohort, History, find_cohort
from thyroid.ingest.labels import Label
from thyroid.ingest.listing import ListedFile
from thyroid.ingest.options import IngestOptions
from thyroid.ingest.regions import Regions, RoiTable
from thyroid.ingest.scan_table import ScanTable
from thyroid.ingest.shards import pieces
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
    request = Request.read(options)
    place = Store(options.store) if options.store else None
    started, site = time.monotonic(), store.site(options.site)
    history, inputs, unchanged = _look(request, output, place, site)
    if unchanged is not None:
        return unchanged
    spent = time.monotonic() - started
    with contextlib.nullcontext() if place is None else place.lock(whole=False):
        started = time.monotonic() - spent  # without the time that the run has waited
        history, inputs = _read(request, output, place, history, inputs)
        digest = inputs.digest()
        if (version := history.unchanged(digest, site, inputs.files)) is not None:
            return _take(version, output)

        scans, left, vanished = _examined(inputs, history, place, output)
        inputs = replace(inputs, files=scans.files)  # the others are not needed any more
        tables.release()
        cohort = _cohort(scans, history, site)
        home = None if place is None else place.folder
        erased_patients = erasure.set_aside(scans, inputs.erased, history, cohort, home=home)
        cohort = cohort.without_hashes_of(scans.table["phash"])
        scans.require_any(history.source)
        _deal(scans, cohort, history, request)
        found = regions.find(scans, history.source, inputs.rois)
        del inputs  # rois.csv may have a million rows
        tables.release()
        found.forget(erased_patients)

        facts = DataRecord(
            source=history.source,
            cohort=cohort.name,
            seconds={"ingest": round(time.monotonic() - started, 1)},
            files={},
            **_facts(scans, found, request.classes, None if vanished else digest),
        )
        facts = _write(output, scans, found, facts)
        del found
        if place is not None:
            _keep(place, output, scans, cohort.without_own_memory() if options.given_splits == "ignore" else cohort)
        _report(facts, None if options.all_test else output)
    if place is not None:
        place.drop_pieces(left)
    return Ingested(output, facts)


@dataclass(frozen=True)
class Request:
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
    def read(cls, options: IngestOptions) -> "Request":
        """Read the tables that the options name, and check the options.

        Raises:
            InputError: As for `ingest`.
        """
        if options.crops:
            listing.check_apart(options.scans, options.crops)
        classes = class_names.parse(options.classes)
        return cls(options, classes, labels.read(options.labels, classes) if options.labels else None)

    def list_files(self, *others: storage.Location) -> list[ListedFile]:
        """List the frames and the crops with their labels, except the tables and what else lies among them.

        Args:
            others: Files and folders to leave out. Empty texts are ignored.
        """
        options = self.options
        exclude = (options.rois, storage.parted(options.labels)[0] if options.labels else "", *others)
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

    request: Request
    files: Sequence[ListedFile]
    rois: RoiTable | None
    erased: Erased

    @classmethod
    def read(cls, request: Request, output: Path, place: Store | None) -> "_Inputs":
        """List the files, except those that this run writes besides the scans, and read the tables."""
        options = request.options
        return cls(
            request,
            request.list_files(output, "" if place is None else place.address),
            RoiTable.read(options.rois) if options.rois else None,
            Erased() if place is None else erased.load(place.folder),
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


def _look(
    request: Request, output: Path, place: Store | None, site: str
) -> tuple[History, _Inputs | None, Ingested | None]:
    """Look whether anything has changed since the last data version, and write that one again if nothing has.

    A store in a bucket is not locked for it.

    Returns:
        What the store knows; what a data version depends on, None without a store; and the version that was written.
    """
    history = History(storage.at(request.options.scans).address)
    if place is None:
        return history, None, None
    with place.reading():
        history, inputs = _read(request, output, place, history, None)
        if (version := history.unchanged(inputs.digest(), site, inputs.files)) is not None:
            with contextlib.suppress(InputError):  # another run may be removing it, which the lock then shows
                return history, inputs, _take(version, output)
    return history, inputs, None


def _read(
    request: Request, output: Path, place: Store | None, before: History, inputs: _Inputs | None
) -> tuple[History, _Inputs]:
    """Read what the store knows and what a data version depends on.

    Args:
        request: The request.
        output: Folder of the new data version.
        place: The store; None for none.
        before: What the store knew when `inputs` were read.
        inputs: What was read before, which is not listed again unless another run has kept a version of it since.
    """
    history = History.read(place, before.source)
    if inputs is None or (history.last and history.last.folder) != (before.last and before.last.folder):
        return history, _Inputs.read(request, output, place)
    return history, inputs if place is None else replace(inputs, erased=erased.load(place.folder))


def _examined(
    inputs: _Inputs, history: History, place: Store | None, output: Path
) -> tuple[ScanTable, Collection[str], bool]:
    """Examine what is new.

    Returns:
        All scans; the pieces of the store that rows were taken from; and whether a listed file has vanished, which may
        come back with the same generation.
    """
    tables.release()
    left = pieces.left(place, history.source)
    home = output.resolve() if place is None else place.folder
    examined = examine.examine(inputs.files, history.last, home, left, history.there)
    if place is not None:
        examined = replace(examined, rows=place.send_copies(examined.rows))
    request = inputs.request
    scans = ScanTable(inputs.files, examined, request.classes, has_labels=request.labels is not None)
    return scans, set(left["piece"]), len(examined.rows) < len(inputs.files)


def _cohort(scans: ScanTable, history: History, site: str) -> Cohort:
    """Find near-duplicates, quarantine pictures that many patients share, and return the cohort of the scans."""
    memory = scans.number_pictures(history.memory())
    scans.links = grouping.find_links(scans, memory, history.newest)
    grouping.quarantine_shared_pictures(scans)
    cohort = find_cohort(history, memory, site, scans.used)
    scans.notes += cohort.notes
    return cohort


def _deal(scans: ScanTable, cohort: Cohort, history: History, request: Request) -> None:
    """Form groups, and give each its split."""
    grouping.group(scans)
    options = request.options
    if options.all_test:
        grouping.deal_to_test(scans)
        scans.require_any(history.source)  # copies that contradict each other may have been all there was
    else:
        scans.require_every_class(history.source, request.classes)
        grouping.deal(scans, cohort, options.given_splits, options.seed)


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
        "regions": len(found.table),
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
    refused = pd.DataFrame(found.refused, columns=["file", "reason"], dtype="string")
    tables.write_quarantine(output / tables.QUARANTINE, pd.concat([scans.quarantined(), refused]))
    from thyroid.data import plots  # imported late: a run without anything new draws nothing

    plots.data_statistics(
        scans.in_use("path", "width", "height"), table, output / "statistics.png", Classes.from_record(facts)
    )
    tables.release()
    return tables.write(output, scans.table[list(tables.SCANS)], table, facts)


def _keep(place: Store, output: Path, scans: ScanTable, cohort: Cohort) -> None:
    """Keep a data version in the store."""
    tables.release()
    memory = cohort.remember(scans.used, scans.table["phash"])
    tables.release()
    version = place.add(output, scans.examined, scans.links, memory)
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
