"""Turn scans into a data version: check, hash and group the files, deal the splits, and quarantine what is unusable.

DICOM files count as scans if dicom.csv lists them (see `dicom_csv`). Later steps read pictures of them that name no
patient.

With a store, only files that are new or have changed since the last run are downloaded, decoded and hashed. The
resulting data version is the same as if every file had been examined again.

python -m thyroid.ingest --scans DIR --rois rois.csv --output DIR
python -m thyroid.ingest --scans gs://bucket/scans --output DIR --store DIR
"""

import argparse
import contextlib
import functools
import hashlib
import itertools
import json
import logging
import math
import os
import re
import stat
import tempfile
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from thyroid import atomic, errors, progress, storage, workers
from thyroid.data import classes as kinds
from thyroid.data import duplicates, erased, filenames, pseudonyms, splits, store, tables
from thyroid.data.classes import Classes
from thyroid.data.erased import Erased
from thyroid.data.store import Store, Version
from thyroid.errors import InputError
from thyroid.imaging import images, phantom
from thyroid.ingest import dicom_csv
from thyroid.ingest import labels as label_table
from thyroid.ingest.dicom_csv import Row
from thyroid.ingest.labels import Label

log = logging.getLogger(__name__)

GIVEN_SPLITS = ("separate", "keep", "ignore")
ROI_COLUMNS = ("filename", "x", "y", "width", "height")
SETTLED_SECONDS = 2.0
"""A file written within this time may change again without a visible change of its times, so it is read again."""
_GIVEN = {"train": "train", "test": "test", "validation": "validation", "val": "validation", "valid": "validation"}
_EXAMINED = {**tables.SCANS, "generation": "string", "synthetic": "boolean"}
_RANK = {"test": 0, "validation": 1, "train": 2}
"""Order of precedence: if a group was in several splits before, the one with the smallest rank wins."""
_CHUNK = 64
_MOST_PATIENTS = 5
"""Largest number of patients who may share a picture.

A picture that more patients have is a logo, a test image or an empty layout, and says nothing about who is who.
Copies of a scan under other numbers come in twos and threes.
"""
_SAME_COHORT = 0.5
"""Share of the scans that a source and a cohort must have in common for the source to belong to the cohort.

It refers to the smaller of the two. A moved folder shares nearly all its scans; another hospital shares only the few
that are public.
"""
EXAMINATION = 1
"""Version of everything that a file's row in the tables depends on: decoding, names, perceptual hashes, DICOM.

Raise it with any change of these. The next run then reads every file of a store again.
"""
DEALING = 1
"""Version of everything that makes a data version of these rows: groups, cohorts, splits. Raise it with any change."""
_DICOM = (".dcm", ".dicom", "dicomdir")
_IN_PASSING = 16
"""Number of DICOM objects that are on this machine's disk at the same time."""


@dataclass(frozen=True)
class Ingested:
    """The folder of a data version, and its facts (the content of data.json)."""

    folder: Path
    facts: dict[str, Any]


@dataclass(frozen=True)
class _File:
    """A file as it was listed.

    Attributes:
        path: Name of the file in the tables. For the scan of a DICOM file it is a pseudonym.
        relative: Path below the folder of scans. For a DICOM file it must not appear in any output of `ingest`.
        root: Address of the folder of scans.
        domain: "normal" or "cropped".
        generation: Text that changes whenever the content changes; None if a change could go unnoticed.
        local: Where the bytes are; None for an object that has not been downloaded.
        entry: The object in a bucket; None for a local file.
        row: What dicom.csv says about the scan of a DICOM file; None for other files.
        label: What labels.csv says about the scan.
    """

    path: str
    relative: str
    root: str
    domain: str
    generation: str | None
    local: str | None
    entry: storage.Entry | None = None
    row: Row | None = None
    label: Label | None = None

    @property
    def copied(self) -> bool:
        """Whether later steps read a copy of it, which lies below the store or the output."""
        return self.entry is not None or self.row is not None

    def name(self) -> filenames.ScanName:
        """Parse the file's name. A patient number in labels.csv takes precedence over the one in the name.

        Raises:
            ValueError: The name does not follow the scheme and labels.csv gives no patient, or it is not a .jpg file.
        """
        last = self.path.rsplit("/", 1)[-1]
        if self.label is None or self.label.patient is None:
            return filenames.parse(last)
        if not last.lower().endswith((".jpg", ".jpeg")):
            raise ValueError("not a .jpg file")
        try:
            return replace(filenames.parse(last), patient=self.label.patient)
        except ValueError:
            return filenames.ScanName("", self.label.patient, 0, "1.0")


def ingest(
    scans: storage.Location,
    output: Path,
    rois: storage.Location | None = None,
    crops: storage.Location | None = None,
    given_splits: str = "separate",
    store: storage.Location | None = None,
    seed: int = 0,
    labels: storage.Location | None = None,
    classes: str = kinds.DEFAULT,
    site: str = "",
) -> Ingested:
    """Check, hash, group and split every file under `scans`, and write a data version to `output`.

    Args:
        scans: Folder or gs:// prefix of frames, searched recursively. Folders named train, validation and test are
            given splits. A dicom.csv at its top names DICOM files: filename, label and optionally patient and frame.
        output: Folder of the new data version.
        rois: CSV with filename, x, y, width, height (pixels of the frame). Other columns are ignored.
        crops: Folder or gs:// prefix of images that are already cropped. They make up the cropped domain.
        given_splits: What to do if given train and test folders share a patient or a near-duplicate. "separate" moves
            the whole group to the train side, "keep" leaves it (and the leak), "ignore" ignores the folders and deals
            all splits again.
        store: Folder that outlives the run (see `thyroid.data.store`). Only files that are new or changed since its
            last data version of the same scans are read. Patients of the same cohort keep their splits, and so do
            copies of any scan that the store has ever seen. None reads every file.
        seed: Seed for dealing new groups to splits.
        labels: CSV with filename and label that gives the class of every scan (see `labels.read`). None takes the class
            from the file names or from dicom.csv.
        classes: Classes in order, the benign ones before the | and the malignant ones after it (see `classes.parse`).
        site: Name of the cohort. Within a cohort, equal patient numbers mean the same patient. If it is empty, the
            cohort is that of the last data version from the same place; for a new place, the one that had the same
            scans.

    Returns:
        The folder of the data version and its facts.

    Raises:
        InputError: There is nothing usable, a class has no scans, a split lacks a class, `site` cannot be a name,
            rois.csv, labels.csv or dicom.csv cannot be read, there are DICOM files and no key in the environment, or a
            bucket cannot be read.
    """
    if crops is not None:
        _check_apart(scans, crops)
    told = kinds.parse(classes)
    known = None if labels is None else label_table.read(labels, told)
    place = None if store is None else Store(store)
    with contextlib.nullcontext() if place is None else place.lock():
        return _ingest(scans, output, rois, crops, given_splits, place, seed, labels, known, told, site)


def _ingest(
    scans: storage.Location,
    output: Path,
    rois: storage.Location | None,
    crops: storage.Location | None,
    given_splits: str,
    place: Store | None,
    seed: int,
    labels: storage.Location | None,
    labelled: Mapping[str, Label] | None,
    classes: Classes,
    site: str,
) -> Ingested:
    site = store.site(site)
    started = time.monotonic()
    source = storage.at(scans).address
    versions = [] if place is None else place.readable()
    newest = versions[0] if versions else None
    known = next((version for version in versions if version.facts["source"] == source), None)
    csv = None if labels is None else storage.parted(labels)[0]
    ours = (rois, csv, output, None if place is None else place.folder)
    listed = list_scans(scans, "normal", (*ours, crops), classes)
    if crops is not None:
        listed += list_scans(crops, "cropped", ours, classes)
    if labelled is not None:
        listed = [_with_label(file, labelled) for file in listed]
    boxes = None if rois is None else _read_rois(rois)
    gone = Erased() if place is None else erased.load(place.folder)
    inputs = _inputs(listed, boxes, given_splits, seed, classes, gone)
    if (
        known is not None
        and inputs is not None
        and inputs == known.facts["inputs"]
        and site in ("", known.facts["cohort"])
        and _copies_there(listed, known)
    ):
        known.take(output)
        log.info(f"nothing has changed since data version {known.folder.name}: {known.facts['scans']} scans")
        return Ingested(output, known.facts)

    examined, looked_at = _examine(listed, known, output.resolve() if place is None else place.folder)
    table = _classified(examined, listed if labelled is not None else None, classes)
    lines = {file.path: file.row.line for file in listed if file.row is not None and file.row.line}
    everything = tables.used(table)
    memory = tables.frame([], store.REMEMBERED) if newest is None else newest.table(store.MEMORY)
    linked = _links(everything, newest, memory)
    good = _drop_shared(everything, table, linked)
    cohort, renamed, notes = _cohort(site, source, known, newest, memory, good, len(versions))
    if place is not None:
        for before in sorted(set(memory["cohort"]) - set(renamed["cohort"])):
            gone = erased.rename(place.folder, before, cohort)
    memory = renamed
    erase = _of_erased(gone, cohort, listed, table)
    theirs = {path.rsplit("/", 1)[-1] for path in table.loc[erase, "path"]}
    if place is not None and erase.any():
        still = {*table.loc[~erase, "phash"].dropna(), *memory["phash"]}
        lost = set(table.loc[erase, "phash"].dropna()) - still
        linked = [(a, b) for a, b in linked if a not in lost and b not in lost]
        good, examined = good[~erase[good.index]].copy(), examined[~erase]
        _remove_copies(place.folder, listed, table[erase], examined)
        _set_erased_aside(gone, source, table, erase)
        notes.append(
            f"{erase.sum()} files of erased patients still lie in the source, and are set aside; remove them there, too"
        )
    _require_every_class(good, table, source, lines, classes)

    remembered = memory if given_splits != "ignore" else memory[:0]
    pairs = duplicates.near_duplicates(good["phash"].tolist(), linked)
    good["group"] = duplicates.groups(good["patient"].tolist(), pairs)
    copies = duplicates.groups(range(len(good)), pairs)
    notes += _describe_groups(good, pairs)

    if given_splits == "ignore":
        good["split"] = None
    given = set(good["split"].dropna())
    notes += _settle_splits(good, given, given_splits, _remembered(good, remembered, cohort, linked))
    good = _drop_copies(good, table, copies)
    # Given folders are complete as they are, except that a given train folder also holds the validation part.
    open_splits = {
        s: f for s, f in splits.FRACTIONS.items() if not given or (s not in given - {"train"} and s != "test")
    }
    fractions = {split: share / sum(open_splits.values()) for split, share in open_splits.items()}
    good["split"] = splits.deal(good, fractions, seed)
    splits.check(good)
    notes += _moved_into_test(good, remembered, cohort)

    for column in ("group", "split"):
        table[column] = good[column].reindex(table.index).astype(tables.SCANS[column])
    regions, refused, repeated = _regions(table, source, boxes, rois, listed)
    refused = [row for row in refused if not _names_erased(row[0].rsplit("/", 1)[-1], gone, cohort, theirs)]
    notes += repeated
    facts = {
        "source": source,
        "cohort": cohort,
        "digest": tables.digest(table, regions),
        "scans": len(good),
        "quarantined": len(table) - len(good) + len(refused),
        "patients": int(good["patient"].nunique()),
        "duplicate_groups": int((np.bincount(copies) > 1).sum()),
        "regions": len(regions),
        "synthetic": int(good["synthetic"].sum()),
        "splits": tables.count_splits(good, classes.names),
        **classes.facts(),
        "notes": notes,
        "looked_at": looked_at,
        "inputs": None if examined["generation"].isna().any() else inputs,
        "examined_by": EXAMINATION,
        "seconds": {"ingest": round(time.monotonic() - started, 1)},
    }
    output.mkdir(parents=True, exist_ok=True)
    _write_quarantine(output / "quarantine.csv", table, refused, lines)
    from thyroid.data import plots  # imported late: a run without anything new draws nothing

    plots.data_statistics(good, regions, output / "statistics.png", classes)
    tables.write(output, table[list(tables.SCANS)], regions, facts)
    if place is not None:
        if given_splits == "ignore":
            memory = memory[memory["cohort"] != cohort]
        version = place.add(output, examined, linked, _remember(memory, good, cohort))
        known_before = "" if looked_at == len(table) else f" of {len(table)}, the others were known"
        log.info(f"data version {version.name}: {looked_at} files looked at{known_before}")
    _report(facts, good, output)
    return Ingested(output, facts)


def _check_apart(scans: storage.Location, crops: storage.Location) -> None:
    inner, outer = f"{storage.at(scans).address}/", f"{storage.at(crops).address}/"
    if inner.startswith(outer):
        raise InputError(f"{crops}: the folder of crops holds the folder of scans {scans}; keep them apart")


def list_scans(
    location: storage.Location,
    domain: str,
    exclude: Sequence[storage.Location | None] = (),
    classes: Classes = kinds.BINARY,
) -> list[_File]:
    """List every file or object below a place, sorted by path, except those in `exclude` and hidden ones (.name).

    Args:
        location: Folder or gs:// prefix.
        domain: Domain of the files, "normal" or "cropped".
        exclude: Files and folders to leave out.
        classes: The classes. Every label in dicom.csv must be one of them.

    Raises:
        InputError: There is no such folder, it holds no scan, dicom.csv cannot be read, or there are DICOM files and no
            key in the environment.
    """
    place = storage.at(location)
    skip = [storage.at(path).address for path in exclude if path is not None]
    if isinstance(place, storage.Bucket):
        found = [
            _File(f"{place.address}/{entry.name}", entry.name, place.address, domain, entry.generation, None, entry)
            for entry in place.entries()
            if not any(part.startswith(".") and part != ".." for part in entry.name.split("/"))
        ]
    else:
        if not place.path.is_dir():
            raise InputError(f"{location}: no such folder of scans")
        now = time.time()
        found = [
            # A name that is not UTF-8 cannot be stored in a table.
            _File(
                os.fsencode(path).decode("utf-8", "backslashreplace"),
                path[len(place.address) + 1 :],
                place.address,
                domain,
                _generation(path, now),
                path,
            )
            for path in _walk(place.address)
        ]
    found = [file for file in found if not any(file.path == one or file.path.startswith(f"{one}/") for one in skip)]
    found = _with_dicoms(place, domain, found, classes)
    if not found:
        raise InputError(
            f"{location}: no scan found; expected files such as B_001-0002-1.0.jpg in it or in its folders"
        )
    return sorted(found, key=lambda file: file.path)


def _with_dicoms(
    place: storage.Folder | storage.Bucket, domain: str, found: list[_File], classes: Classes
) -> list[_File]:
    """Return `found` with DICOM files replaced by the scans that dicom.csv makes of them.

    Files that dicom.csv omits get a pseudonym as well, so that they can be quarantined. Without a dicom.csv this holds
    for every file that looks like DICOM.
    """
    files = {file.relative: file for file in found}
    mapped = files.pop(dicom_csv.NAME, None) is not None
    odd = [file.relative for file in files.values() if not _is_scan(file.relative)]
    if not mapped:
        odd = [name for name in odd if name.lower().endswith(_DICOM) or _has_dicom_mark(files[name])]
        if not odd:
            return found
    data = place.read(dicom_csv.NAME)[0] if mapped else None
    rows = dicom_csv.rows(pseudonyms.required_key(), data, f"{place.address}/{dicom_csv.NAME}", files, odd, classes)
    taken = {row.file for row in rows}
    result = [file for file in files.values() if file.relative not in taken]
    for row in rows:
        file = files.get(row.file) if row.reason is None else None
        result.append(
            _File(
                f"{place.address}/{row.name}",
                row.file,
                place.address,
                domain,
                row.mark if file is None else _told_apart(file.generation, row),
                None if file is None else file.local,
                None if file is None else file.entry,
                row,
            )
        )
    return result


def _with_label(file: _File, labels: Mapping[str, Label]) -> _File:
    """Return the file with its label. A patient number other than the one in its name changes its generation."""
    found = label_table.of(labels, file.relative)
    if found is None or found.patient is None or file.row is not None:
        return replace(file, label=found)
    generation = None if file.generation is None else f"{file.generation}-{found.patient}"
    return replace(file, label=found, generation=generation)


def _classified(examined: pd.DataFrame, labelled: Sequence[_File] | None, classes: Classes) -> pd.DataFrame:
    """Return `examined` with class and side, and with a quarantine reason for scans that have no class.

    Args:
        examined: Rows whose label is the class given by the file's name or by dicom.csv.
        labelled: The files with what labels.csv says about them; None if there is no such table.
        classes: The classes.
    """
    table = examined.copy()
    usable = table["quarantine_reason"].isna()
    if labelled is None:
        name = table["label"].map({own: classes.read(own) for own in table["label"].dropna().unique()})
        reason = table["label"] + f" is none of the classes {', '.join(classes.names)}; give their table with --labels"
    else:
        unknown = Label(None, reason="it has no row in the table of labels")
        told = table["path"].map({file.path: file.label or unknown for file in labelled})
        name, reason = told.map(lambda label: label.name), told.map(lambda label: label.reason)
    table["class"] = name.where(usable).astype("string")
    table["quarantine_reason"] = table["quarantine_reason"].mask(usable & name.isna(), reason.astype("string"))
    table["label"] = table["class"].map(classes.side, na_action="ignore").astype("string")
    return table


def _told_apart(generation: str | None, row: Row | None) -> str | None:
    """Return a file's generation combined with the mark of its row in dicom.csv."""
    return generation if row is None or generation is None else f"{generation}-{row.mark}"


def _is_scan(name: str) -> bool:
    try:
        filenames.parse(name.rsplit("/", 1)[-1])
    except ValueError:
        return False
    return True


def _has_dicom_mark(file: _File) -> bool:
    try:
        if file.local is None or not Path(file.local).is_file():
            return False
        with Path(file.local).open("rb") as opened:
            return images.kind(opened.read(132)) == "DICOM"
    except OSError:
        return False


def _walk(root: str) -> Iterator[str]:
    """Yield files, links to folders, and unreadable folders under `root`. Hidden ones are skipped."""
    unreadable: list[str] = []
    for directory, folders, files in os.walk(root, onerror=lambda e: unreadable.append(os.fspath(e.filename))):
        folders[:] = [name for name in folders if not name.startswith(".")]
        links = [name for name in folders if Path(directory, name).is_symlink()]
        for name in files + links:
            if not name.startswith("."):
                yield f"{directory}/{name}"
    yield from unreadable


def _generation(path: str, now: float) -> str | None:
    """Return a text that changes whenever a file is written; None if it is too recent or unreadable."""
    try:
        found = os.stat(path)  # noqa: PTH116 - of 50,000 files
    except OSError:
        return None
    # A file from the future, which a wrong clock has made, is not settled either.
    settled = max(found.st_mtime, found.st_ctime) < now - SETTLED_SECONDS
    return f"{found.st_size}-{found.st_mtime_ns}-{found.st_ctime_ns}" if settled else None


def _inputs(
    listed: Sequence[_File],
    boxes: pd.DataFrame | None,
    given_splits: str,
    seed: int,
    classes: Classes,
    gone: Erased,
) -> str | None:
    """Return a digest of everything that a data version depends on; None if a file may change unnoticed."""
    if any(file.generation is None for file in listed):
        return None
    digest = hashlib.sha256(json.dumps([EXAMINATION, DEALING, given_splits, seed, classes.facts()]).encode())
    for file in listed:
        told = file.row and file.row.line, file.label
        digest.update(f"{file.path}\0{file.domain}\0{file.generation}\0{told}\n".encode())
    digest.update(b"" if boxes is None else boxes.to_csv().encode())
    digest.update("\n".join(sorted(map(str, gone.patients))).encode())
    return digest.hexdigest()


def _copies_there(listed: Sequence[_File], known: Version) -> bool:
    """Return whether all copies of the last run are still there."""
    if not any(file.copied for file in listed):
        return True
    return all(Path(copy).exists() for copy in known.table(store.EXAMINED, ["local_path"])["local_path"].dropna())


def _examine(listed: Sequence[_File], known: Version | None, copies: Path) -> tuple[pd.DataFrame, int]:
    """Return one row per file, quarantined or not, in the order of `listed`, and how many files had to be examined.

    Args:
        listed: The files.
        known: The last data version. Its row is reused if the file's generation is the same.
        copies: Folder below which copies are kept.
    """
    old = tables.frame([], _EXAMINED)
    if known is not None and known.facts["examined_by"] == EXAMINATION:
        old = known.table(store.EXAMINED)
    now = {(file.path, file.domain, file.generation): file for file in listed}
    known_files = zip(*(old[column].tolist() for column in ("path", "domain", "generation", "local_path")), strict=True)
    same = [
        (file := now.get((path, domain, generation))) is not None
        and (not file.copied or pd.isna(copy) or Path(copy).exists())
        for path, domain, generation, copy in known_files
    ]
    kept = old[pd.Series(same, old.index, bool)]
    taken = set(kept["path"].tolist())
    fresh = [file for file in listed if file.path not in taken]
    objects = [file for file in fresh if file.entry is not None]
    near = [*_fetch([f for f in objects if f.row is None], copies), *(f for f in fresh if f.entry is None)]
    far = sorted((file for file in objects if file.row is not None), key=lambda file: file.relative)
    both = itertools.chain(_each(near, copies), _each_in_passing(far, copies))
    work = progress.bar(both, len(near) + len(far), "ingest", "scan")
    table = pd.concat([kept, tables.frame(list(work), _EXAMINED)], ignore_index=True)
    order = {file.path: number for number, file in enumerate(listed)}
    return table.sort_values("path", key=lambda paths: paths.map(order), ignore_index=True), len(table) - len(kept)


def _each(files: Sequence[_File], copies: Path) -> Iterator[dict[str, Any]]:
    look = functools.partial(_examine_file, copies=copies)
    if len(files) <= _CHUNK:
        yield from map(look, files)
        return
    with workers.pool() as pool:
        yield from pool.map(look, files, chunksize=_CHUNK)


def _each_in_passing(files: Sequence[_File], copies: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of DICOM objects. Only their pictures are kept."""
    for start in range(0, len(files), _IN_PASSING):
        with tempfile.TemporaryDirectory() as folder:
            try:
                here = list(_fetch(files[start : start + _IN_PASSING], Path(folder)))
            except InputError as error:  # the part in brackets comes from Google and may contain an object's name
                raise InputError(re.sub(r" \(.*\)", "", str(error), flags=re.DOTALL)) from None
            yield from _each(here, copies)


def _fetch(files: Sequence[_File], copies: Path) -> Iterator[_File]:
    """Download files and yield them with their copies.

    Files that cannot be scans are yielded without a download. Objects that vanished in the meantime are left out.
    """
    wanted: dict[str, dict[str, tuple[storage.Entry, Path]]] = {}
    by_object: dict[str, list[_File]] = {}  # several frames may come from one object
    for file in files:
        assert file.entry is not None
        if _refusal(file) is not None:
            yield file
            continue
        address = f"{file.root}/{file.entry.name}"
        wanted.setdefault(file.root, {})[address] = (
            file.entry,
            store.copy_of(copies, address, file.entry.generation),
        )
        by_object.setdefault(address, []).append(file)
    for bucket, objects in wanted.items():
        for entry, copy in storage.Bucket(bucket).download(list(objects.values()), "download"):
            if copy is None:
                log.info(f"an object vanished while the scans were read; it is not among them: {bucket}")
                continue
            address = f"{bucket}/{entry.name}"
            right = store.copy_of(copies, address, entry.generation)
            if right != copy:  # the object was overwritten after it was listed
                right.parent.mkdir(parents=True, exist_ok=True)
                copy.replace(right)
            for file in by_object[address]:
                yield replace(file, entry=entry, generation=_told_apart(entry.generation, file.row), local=str(right))


def _refusal(file: _File) -> str | None:
    """Return why an object is not worth a download; None if it is."""
    assert file.entry is not None
    limit = images.MAX_BYTES
    if file.row is not None:
        from thyroid.imaging import dicom

        limit = dicom.MAX_BYTES
    else:
        try:
            file.name()
        except ValueError as error:
            return str(error)
    if file.entry.size > limit:
        return f"file of {file.entry.size:,} bytes is larger than the limit of {limit:,}"
    return None


def _examine_file(file: _File, copies: Path) -> dict[str, Any]:
    """Return the row of one file. Any problem with it becomes its quarantine reason."""
    if file.row is not None:
        return _examine_dicom(file, file.row, copies)
    row: dict[str, Any] = {"path": file.path, "domain": file.domain, "generation": file.generation}
    try:
        if file.local is None:
            raise ValueError(_refusal(file))
        local = Path(file.local)
        if file.entry is None:
            _check_file(local, file)
        name = file.name()
        data = images.read(local)
        image = images.decode(data)
        seen = _seen(file, data, image)
    except ValueError as error:
        return row | {"quarantine_reason": errors.one_line(error)}
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of symbolic links
        # The problem is not in the content, so the next run examines the file again.
        return row | {"generation": None, "quarantine_reason": errors.one_line(error)}
    except Exception as error:  # a single file must never end a run
        return row | {"quarantine_reason": f"cannot be read ({type(error).__name__})"}
    return row | {
        "local_path": file.local,
        "label": name.label,
        "patient": name.patient,
        "image": name.image,
        "version": name.version,
        "synthetic": phantom.MARK in data[:1024],
        **seen,
    }


def _examine_dicom(file: _File, told: Row, copies: Path) -> dict[str, Any]:
    """Do the same as `_examine_file` for the scan of a DICOM file. No output may name the file or the patient."""
    from thyroid.imaging import dicom

    row: dict[str, Any] = {"path": file.path, "domain": file.domain, "generation": file.generation}
    try:
        if told.reason is not None:
            raise ValueError(told.reason)
        if file.local is None:
            raise ValueError(_refusal(file))
        if file.entry is None:
            _check_file(Path(file.local), file)
        picture = dicom.read(dicom.read_file(file.local), told.frame)
        patient = told.patient or picture.patient
        if not patient:
            raise ValueError(f"neither the file itself nor {dicom_csv.NAME} says which patient this is")
        data = dicom.png(picture.pixels)
        seen = _seen(file, data, picture.pixels)
    except ValueError as error:
        return row | {"quarantine_reason": errors.one_line(error)}
    except (OSError, RuntimeError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or "cannot be read"
        return row | {"generation": None, "quarantine_reason": reason}
    except Exception as error:  # a single file must never end a run
        return row | {"quarantine_reason": f"cannot be read ({type(error).__name__})"}
    return row | {
        "local_path": str(_keep(data, store.copy_of(copies, file.path, hashlib.sha256(data).hexdigest(), ".png"))),
        "label": told.label,
        "patient": pseudonyms.patient_number(pseudonyms.required_key(), patient),
        "image": picture.instance,
        "version": str(picture.frame),
        "synthetic": False,
        **seen,
    }


def _seen(file: _File, data: bytes, image: images.Pixels) -> dict[str, Any]:
    """Return what a row says about a scan's bytes and pixels, and the split that a folder gives it.

    Raises:
        ValueError: The picture is empty.
    """
    if images.is_empty(image):
        raise ValueError("picture without content: it is all of one colour")
    given = {_GIVEN[p.lower()] for p in file.relative.split("/")[:-1] if p.lower() in _GIVEN}
    return {
        "height": image.shape[0],
        "width": image.shape[1],
        "sha256": hashlib.sha256(data).hexdigest(),
        "phash": duplicates.perceptual_hash(image),
        "split": given.pop() if len(given) == 1 else None,
    }


def _keep(data: bytes, path: Path) -> Path:
    """Write a picture completely or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic.replacing(path) as temporary:
        temporary.write_bytes(data)
    return path


def _check_file(path: Path, file: _File) -> None:
    """Raise ValueError unless this is a regular, readable file of the folder of scans."""
    if file.row is None and file.path != str(path):
        raise ValueError("name is not UTF-8; rename the file or its folder")
    if path.is_symlink() and not path.resolve().is_relative_to(file.root):
        raise ValueError("symbolic link leaves the folder of scans")
    if path.is_symlink() and path.is_dir():
        raise ValueError("symbolic link to a folder; name the folder itself")
    if path.is_dir():
        raise ValueError("folder cannot be read")
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError("not a regular file")


def _require_every_class(
    good: pd.DataFrame, table: pd.DataFrame, scans: str, lines: dict[str, int], classes: Classes
) -> None:
    if good.empty:
        path, reason = table["path"].iloc[0], table["quarantine_reason"].iloc[0]
        raise InputError(
            f"{scans}: none of its {len(table)} files can be used; the first is {Path(path).name}: "
            f"{_with_line(path, reason, lines)}"
        )
    for name in classes.names:
        if not (good["class"] == name).any():
            raise InputError(
                f"{scans}: no usable scan of class {name} among {len(good)}; every class is needed, as the first "
                f"letter of the file names (B for benign, M for malignant), as the label in {dicom_csv.NAME} or in the "
                "table of labels"
            )


def _with_line(path: str, reason: str, lines: dict[str, int]) -> str:
    """Prefix `reason` with the scan's line in dicom.csv. Lines move, so they are not stored in the tables."""
    return f"line {lines[path]} of {dicom_csv.NAME}: {reason}" if path in lines else reason


def _describe_groups(good: pd.DataFrame, pairs: list[tuple[int, int]]) -> list[str]:
    notes = []
    both = good.groupby("patient")["class"].nunique()
    both = both[both > 1]
    if len(both):
        listed = ", ".join(f"{patient:03d}" for patient in both.index[:20])
        notes.append(f"{len(both)} patients have scans of several classes (kept, one group each): {listed}")
    patients = good["patient"].tolist()
    across = sorted({tuple(sorted((patients[i], patients[j]))) for i, j in pairs if patients[i] != patients[j]})
    if across:
        listed = ", ".join(f"{a:03d} = {b:03d}" for a, b in across[:20])
        notes.append(f"{len(across)} pairs of patient numbers share near-duplicate scans (grouped together): {listed}")
    return notes


def _cohort(
    site: str,
    source: str,
    known: Version | None,
    newest: Version | None,
    memory: pd.DataFrame,
    good: pd.DataFrame,
    versions: int,
) -> tuple[str, pd.DataFrame, list[str]]:
    """Return the cohort of a source, `memory` with that name in it, and notes for people.

    Args:
        site: Name that the user gave; empty for none.
        source: Address of the scans.
        known: The last data version of this source.
        newest: The last data version of any source.
        memory: What the store remembers: cohort, patient, phash and split.
        good: Scans in use.
        versions: Number of data versions in the store.
    """
    mine = good[["patient", "phash"]].drop_duplicates()
    sizes = memory["cohort"].value_counts()
    both = memory.merge(mine, on=["patient", "phash"])["cohort"].value_counts()
    like = [str(name) for name, count in both.items() if count >= _SAME_COHORT * min(len(mine), sizes[str(name)])]
    before = known.facts["cohort"] if known is not None else ""
    if before not in sizes and like:  # a new place, or a cohort that was named while it was at another place
        before = like[0]
    cohort = site or before or store.unnamed(source)
    if site and before.startswith(store.UNNAMED):  # the cohort gets its name now
        memory = memory.assign(cohort=memory["cohort"].replace(before, site)).drop_duplicates(
            ["cohort", "patient", "phash"], ignore_index=True
        )
    notes = []
    told = cohort if not cohort.startswith(store.UNNAMED) else f"{cohort} (give its name with --site)"
    if newest is not None and known is None:
        here = f"the store knows {versions} data versions, and none of {source}"
        if before and (cohort == before or before.startswith(store.UNNAMED)):
            notes.append(f"{here}; its scans are those of cohort {told}, and its patients keep their splits")
        elif cohort in sizes:
            notes.append(f"{here}; they are of cohort {told}, whose patients keep their splits")
        else:
            others = ", ".join(sorted(sizes.index)[:10])
            notes.append(
                f"{here}; they are a new cohort {told}, and its patients' splits are dealt anew. If they are patients "
                f"of {others}, give that with --site"
            )
    elif known is not None and not site and not both.get(cohort, 0):
        notes.append(
            f"none of the scans in {source} was there before; equal patient numbers still count as the same patients "
            f"(cohort {told}). If they are of another hospital, give its name with --site"
        )
    return cohort, memory, notes


def _remember(memory: pd.DataFrame, good: pd.DataFrame, cohort: str) -> pd.DataFrame:
    """Return `memory` with the scans in use added. A patient's older hashes move to the patient's present split."""
    now = good[["patient", "phash", "split"]].assign(cohort=cohort)[list(store.REMEMBERED)]
    moved = (
        now.assign(rank=now["split"].map(_RANK)).groupby("patient")["rank"].min().map({r: s for s, r in _RANK.items()})
    )
    there = memory["patient"].where(memory["cohort"] == cohort).map(moved)
    old = memory.assign(split=there.fillna(memory["split"]).astype("string"))
    both = pd.concat([now, old], ignore_index=True).astype(store.REMEMBERED)
    return both.drop_duplicates(["cohort", "patient", "phash"], ignore_index=True)


def _links(good: pd.DataFrame, newest: Version | None, memory: pd.DataFrame) -> list[tuple[str, str]]:
    """Return near-duplicates among the hashes of scans in use and of `memory`. Known hashes are not compared again."""
    if newest is None or newest.facts["examined_by"] != EXAMINATION:
        return duplicates.links([*good["phash"], *memory["phash"]])
    before = newest.table(store.LINKS)
    found = duplicates.links(good["phash"].tolist(), memory["phash"].tolist())
    # Scans that were set aside are in no memory, so their links are found again.
    return list(dict.fromkeys((min(p), max(p)) for p in (*zip(before["a"], before["b"], strict=True), *found)))


def _drop_shared(good: pd.DataFrame, table: pd.DataFrame, linked: Sequence[tuple[str, str]]) -> pd.DataFrame:
    """Quarantine pictures that more than `_MOST_PATIENTS` patients have, since they would merge all these into one."""
    own: dict[str, set[int]] = {}
    for patient, phash in zip(good["patient"].tolist(), good["phash"].tolist(), strict=True):
        own.setdefault(phash, set()).add(patient)
    patients = {phash: set(those) for phash, those in own.items()}
    for a, b in linked:
        if a in own and b in own:
            patients[a] |= own[b]
            patients[b] |= own[a]
    count = good["phash"].map({phash: len(those) for phash, those in patients.items()}).astype(int)
    shared = count[count > _MOST_PATIENTS]
    table.loc[shared.index, "quarantine_reason"] = shared.map(
        "picture that {} patients have: a logo or an empty layout, no scan of one of them".format
    ).astype("string")
    return good[~good.index.isin(shared.index)].copy()


def _of_erased(gone: Erased, cohort: str, listed: Sequence[_File], table: pd.DataFrame) -> pd.Series:
    """Return which rows belong to erased patients, or are their pictures under other numbers."""
    result = pd.Series(False, table.index)
    if not gone.patients:
        return result
    said = {file.path: _patient(file) for file in listed}
    patients = table["patient"].fillna(table["path"].map(said).astype("Int64"))
    known = {one: (cohort, int(one)) in gone for one in patients.dropna().unique()}
    scans = gone.scans()
    return patients.map(known).eq(True) | table["sha256"].map(gone.keyed, na_action="ignore").isin(scans)


def _patient(file: _File) -> int | None:
    try:
        return file.name().patient
    except ValueError:
        return None


def _remove_copies(home: Path, listed: Sequence[_File], rows: pd.DataFrame, others: pd.DataFrame) -> None:
    """Remove the copies of erased patients' files that this run has made or found."""
    copies = {copy for copy in rows["local_path"].dropna() if Path(copy).is_relative_to(home / store.SCANS)}
    paths = set(rows["path"])
    for file in listed:
        if file.path in paths and file.entry is not None:
            address = f"{file.root}/{file.entry.name}"
            copies.add(str(store.copy_of(home, address, file.entry.generation)))
    for copy in copies - set(others["local_path"].dropna()):
        Path(copy).unlink(missing_ok=True)


def _set_erased_aside(gone: Erased, source: str, table: pd.DataFrame, erase: pd.Series) -> None:
    """Quarantine the rows of erased patients under pseudonyms, and keep nothing else of them."""
    table.loc[erase, "path"] = [f"{source}/erased-{gone.keyed(path)[:16]}" for path in table.loc[erase, "path"]]
    rest = [column for column in table.columns if column not in ("path", "domain", "quarantine_reason")]
    table.loc[erase, rest] = pd.NA
    table.loc[erase, "quarantine_reason"] = "of a patient who was erased; remove the file from where the scans are"


def _names_erased(name: str, gone: Erased, cohort: str, files: Collection[str]) -> bool:
    """Return whether a file's name belongs to an erased patient."""
    if name in files:
        return True
    try:
        return (cohort, filenames.parse(name).patient) in gone
    except ValueError:
        return False


def _claims(memory: pd.DataFrame, cohort: str) -> tuple[pd.Series, dict[str, int]]:
    """Return the rank of the split in `memory` by patient of the cohort, and by hash of any cohort."""
    rank = memory["split"].map(_RANK)
    mine = memory["cohort"] == cohort
    by_hash = cast("dict[str, int]", rank.groupby(memory["phash"]).min().to_dict())  # pandas-stubs: of any keys
    return rank[mine].groupby(memory["patient"][mine]).min(), by_hash


def _moved_into_test(good: pd.DataFrame, memory: pd.DataFrame, cohort: str) -> list[str]:
    """Return a note on patients who are in test now and whom models may have been trained on."""
    by_patient, by_hash = _claims(memory, cohort)
    claims = pd.DataFrame({"patient": good["patient"].map(by_patient), "hash": good["phash"].map(by_hash)}).astype(
        float
    )
    moved = good.loc[(good["split"] == "test") & (claims.max(axis=1) > _RANK["test"]), "patient"]
    who = sorted(set(moved))
    if not who:
        return []
    listed = ", ".join(f"{patient:03d}" for patient in who[:20])
    return [
        f"{len(who)} patients moved into test: {listed}. They were in train or validation before, and are linked with "
        "patients in test by a picture or a number, or in a given test folder now; models that learned from them are "
        "not to be tested on them"
    ]


def _remembered(
    good: pd.DataFrame, memory: pd.DataFrame, cohort: str, linked: Sequence[tuple[str, str]]
) -> dict[int, str]:
    """Map group number to the split of earlier data versions. If there were several, test wins, then validation."""
    by_patient, by_hash = _claims(memory, cohort)
    # The split also carries over from a copy of a scan that is no longer there.
    for a, b in linked:
        for one, other in ((a, b), (b, a)):
            if one in by_hash:
                by_hash[other] = min(by_hash[one], by_hash.get(other, by_hash[one]))
    claims = pd.DataFrame(
        {
            "group": good["group"],
            "patient": good["patient"].map(by_patient),
            "hash": good["phash"].map(by_hash),
        }
    )
    decided = claims.groupby("group")[["patient", "hash"]].min().min(axis=1).dropna()
    order = list(_RANK)
    places = cast("Iterable[tuple[int, float]]", decided.items())  # pandas-stubs: of any keys
    return {int(group): order[int(place)] for group, place in places}


def _settle_splits(good: pd.DataFrame, given: set[str], given_splits: str, remembered: dict[int, str]) -> list[str]:
    """Fill `split` for groups whose split is already decided, and return notes on what had to be moved.

    A given folder takes precedence over earlier data versions, and these take precedence over dealing.
    """
    notes: list[str] = []
    by_group = good.groupby("group")["split"]
    found = cast("dict[int, str | None]", by_group.first().to_dict())  # pandas-stubs: of any keys
    decided: dict[int, str | None] = {}
    for group in by_group.nunique()[lambda count: count > 1].index:
        members = good[good["group"] == group]
        sides = sorted(set(members["split"].dropna()))
        who = ", ".join(f"{patient:03d}" for patient in sorted(set(members["patient"]))[:10])
        if given_splits == "keep":
            notes.append(f"LEAK kept: patient {who} is in the given {' and '.join(sides)} folders")
            del found[group]
            continue
        files = ", ".join(Path(p).name for p in members["path"][:4])
        notes.append(
            f"patient {who} was in the given {' and '.join(sides)} folders ({files}); moved to the training side"
        )
        found[group] = "train"
    for group, split in found.items():
        before = remembered.get(int(group))
        if pd.isna(split):
            decided[group] = before if before != "test" or "test" not in given else "train"
        elif split == "train" and "validation" not in given:
            decided[group] = before if before != "test" else "train"  # None: dealt between train and validation
        else:
            decided[group] = split
    mine = good["group"].isin(decided)
    good.loc[mine, "split"] = good.loc[mine, "group"].map(decided)
    return notes


def _drop_copies(good: pd.DataFrame, table: pd.DataFrame, copies: NDArray[np.int64]) -> pd.DataFrame:
    """Quarantine further copies of the same bytes, and all copies of a frame that disagree about the class.

    Copies of a frame may be re-encoded.

    Args:
        good: Scans in use.
        table: All files.
        copies: One number per row of `good`, which near-duplicates share.
    """
    for _, same in good[good.duplicated(["domain", "sha256"], keep=False)].groupby(["domain", "sha256"]):
        first = Path(same["path"].iloc[0]).name
        if same["class"].nunique() > 1:
            others = ", ".join(Path(path).name for path in same["path"])
            table.loc[same.index, "quarantine_reason"] = f"same bytes under different labels: {others}"
        else:
            table.loc[same.index[1:], "quarantine_reason"] = f"same bytes as {first}"
    disputed = (good.groupby(copies)["class"].transform("nunique") > 1).to_numpy()
    for _, alike in good[disputed].groupby(copies[disputed]):
        left = alike.index[table.loc[alike.index, "quarantine_reason"].isna()]
        others = ", ".join(Path(path).name for path in alike["path"][:4])
        table.loc[left, "quarantine_reason"] = f"same picture under different labels: {others}"
    used: pd.Series[bool] = table.loc[good.index, "quarantine_reason"].isna()
    return good[used].copy()


def _regions(
    table: pd.DataFrame,
    source: str,
    boxes: pd.DataFrame | None,
    rois: storage.Location | None,
    listed: Sequence[_File],
) -> tuple[pd.DataFrame, list[tuple[str, str]], list[str]]:
    """Return the regions table, (file, reason) of unusable rows, and notes on rows that count only once."""
    rows: list[dict[str, Any]] = []
    refused: list[tuple[str, str]] = []
    first: dict[tuple[str, tuple[int, int, int, int]], int] = {}
    repeated: list[str] = []
    good = tables.used(table)
    for scan in good[good["domain"] == "cropped"].itertuples():
        rows.append(
            {
                "path": scan.path,
                "index": 0,
                "x": 0,
                "y": 0,
                "width": scan.width,
                "height": scan.height,
                "source": "given",
            }
        )
    if boxes is not None:
        normal = good[good["domain"] == "normal"]
        # The file's own name, as rois.csv has it. Several scans may be frames of one DICOM file.
        called = {file.path: f"{file.root}/{file.relative}" for file in listed if file.row is not None}
        of_dicoms = set(called.values())
        by_name: dict[str, dict[str, list[Any]]] = {}
        for scan in normal.itertuples():
            address = called.get(str(scan.path), str(scan.path))
            by_name.setdefault(address.rsplit("/", 1)[-1], {}).setdefault(address, []).append(scan)
        quarantined = {
            called.get(path, path).rsplit("/", 1)[-1] for path in table.loc[table["quarantine_reason"].notna(), "path"]
        }
        table_name = str(rois).rsplit("/", 1)[-1]
        count: dict[str, int] = {}
        for line, row in enumerate(boxes.itertuples(), start=2):
            name = str(row.filename)
            last = name.rsplit("/", 1)[-1]
            found = by_name.get(last, {})
            matches = [address for address in found if address.endswith("/" + name.lstrip("./"))]
            matches = [address for address in matches if address == f"{source}/{name}"] or matches
            try:
                if not matches:
                    raise ValueError("file is quarantined" if last in quarantined else "no such scan")
                if len(matches) > 1:
                    raise ValueError("several scans have this name; give the path within the folder of scans")
                scans = found[matches[0]]
                if matches[0] in of_dicoms:
                    scans = _of_frame(scans, getattr(row, "frame", None))
                sides = [_box(row, scan) for scan in scans]
            except ValueError as error:
                # The name of a DICOM file may contain the patient's name.
                refused.append(
                    (name if _is_scan(name) else table_name, f"region in line {line} of {table_name}: {error}")
                )
                continue
            for scan, (x, y, width, height) in zip(scans, sides, strict=True):
                other = first.setdefault((scan.path, (x, y, width, height)), line)
                if other != line:
                    repeated.append(f"{line} (as {other})")
                    continue
                rows.append(
                    {
                        "path": scan.path,
                        "index": count.get(scan.path, 0),
                        "x": x,
                        "y": y,
                        "width": width,
                        "height": height,
                        "source": "given",
                    }
                )
                count[scan.path] = count.get(scan.path, 0) + 1
        if not count:
            why = f"; the first: {refused[0][0]}: {refused[0][1]}" if refused else " (it has no rows)"
            raise InputError(f"{rois}: none of its regions can be used{why}")
    told = [
        f"{len(repeated)} regions of {str(rois).rsplit('/', 1)[-1]} stand there twice and count once: "
        f"line {', '.join(repeated[:20])}"
    ]
    return tables.frame(rows, tables.REGIONS), refused, told if repeated else []


def _of_frame(scans: list[Any], frame: Any) -> list[Any]:
    """Return the scans of a file that a region applies to: those of its frame, or all if it names none."""
    if frame is None or not str(frame).strip():
        return scans
    chosen = [scan for scan in scans if scan.version == str(frame).strip().removesuffix(".0")]
    if not chosen:
        raise ValueError("no scan of this frame")
    return chosen


def _read_rois(rois: storage.Location) -> pd.DataFrame:
    table = tables.read_csv(storage.file(rois), str(rois), "regions")
    missing = [column for column in ROI_COLUMNS if column not in table.columns]
    if missing:
        raise InputError(f"{rois}: column {', '.join(missing)} is missing; expected {', '.join(ROI_COLUMNS)}")
    return table


def _box(row: Any, scan: Any) -> tuple[int, int, int, int]:
    """Return x, y, width and height of a region in whole pixels, checked against its scan."""
    try:
        x, y, width, height = (float(getattr(row, column)) for column in ROI_COLUMNS[1:])
    except (TypeError, ValueError):
        raise ValueError("x, y, width and height must be numbers") from None
    if not all(math.isfinite(v) for v in (x, y, width, height, x + width, y + height)):
        raise ValueError("x, y, width and height must be numbers")
    if width < 1 or height < 1:
        raise ValueError(f"region has no size (width {width:g}, height {height:g})")
    left, top, right, bottom = math.floor(x), math.floor(y), math.ceil(x + width), math.ceil(y + height)
    if left < 0 or top < 0 or right > scan.width or bottom > scan.height:
        raise ValueError(
            f"region x {x:g}..{x + width:g}, y {y:g}..{y + height:g} is outside the {scan.width}x{scan.height} image"
        )
    return left, top, right - left, bottom - top


def _write_quarantine(path: Path, table: pd.DataFrame, refused: list[tuple[str, str]], lines: dict[str, int]) -> None:
    bad = table[table["quarantine_reason"].notna()]
    told = [_with_line(*row, lines) for row in zip(bad["path"], bad["quarantine_reason"], strict=True)]
    rows = [*zip(bad["path"], told, strict=True), *refused]
    tables.write_quarantine(path, pd.DataFrame(rows, columns=["file", "reason"]))


def _report(facts: dict[str, Any], good: pd.DataFrame, output: Path) -> None:
    for split, count in facts["splits"].items():
        by_class = {name: number for name, number in count.items() if name != "patients"}
        told = ", ".join(f"{name} {number}" for name, number in by_class.items())
        log.info(
            f"{split}: Found {sum(by_class.values())} images belonging to {len(by_class)} classes. "
            f"({told}; {count['patients']} patients)"
        )
    for note in facts["notes"]:
        log.info(f"note: {note}")
    if facts["quarantined"]:
        log.info(f"quarantined: {facts['quarantined']}, see {output / 'quarantine.csv'}")


@errors.command
def main(argv: Sequence[str] | None = None) -> None:
    """Run the ingest step from the command line."""
    parser = argparse.ArgumentParser(prog="python -m thyroid.ingest", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--scans",
        required=True,
        help="folder or gs:// prefix of frames, searched recursively; its dicom.csv names DICOM files",
    )
    parser.add_argument("--output", type=Path, required=True, help="folder of the new data version")
    parser.add_argument("--rois", help="CSV: filename, x, y, width, height in pixels of the frame")
    parser.add_argument("--crops", help="folder or gs:// prefix of images that are already cropped")
    parser.add_argument(
        "--given-splits", choices=GIVEN_SPLITS, default="separate", help="train/test folders that share a patient"
    )
    parser.add_argument("--store", help="folder that outlives the run: only what is new is read, and splits are kept")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--labels", help="CSV with filename and label; labels.csv#column for another column than label")
    parser.add_argument("--classes", default=kinds.DEFAULT, help="in order, benign|malignant, such as 2<3|4a<4b<4c<5")
    parser.add_argument(
        "--site",
        default="",
        help="where patient numbers mean the same patients, such as the hospital; default: that of the same scans "
        "before",
    )
    ingest(**vars(parser.parse_args(argv)))
