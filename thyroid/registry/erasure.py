"""Erase a patient from a store, and list the models that have seen the patient.

The erasure removes crops, copies of objects and pictures of DICOM files. It rewrites every data version with its
checksums, so that no table has a row of the patient, and removes the patient's links and memory. Trainings in progress
and studies are removed as a whole, since their features do not reveal to whom they belong. The same bytes under another
number are removed, too, because they are the patient's pictures. Only a keyed hash stays, by which ingest recognises
the patient's files if they still lie in the source (see `erased`).

A model's weights cannot be purged. The versions that were trained, validated or tested on the patient are listed
instead.
"""

import hashlib
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd

from thyroid import storage
from thyroid.data import crops, pseudonyms, store, tables
from thyroid.data.crops import Cut
from thyroid.data.store import CROPPED, CROPS, EXAMINED, GOING, LINKS, MEMORY, SCANS, VERSIONS, Store, erased
from thyroid.data.store.erased import Erased
from thyroid.errors import InputError
from thyroid.model import artefact
from thyroid.registry import changes
from thyroid.registry.inventory import WORK, BulkFiles
from thyroid.registry.patient_data import (
    PatientData,
    VersionTables,
    choose_cohort,
    find_patient,
    names_of,
    number_in,
    read_tables,
)
from thyroid.registry.registry import Registry

_SWEEPS = "sweeps"
_IMAGE = re.compile(r"(?:normal|cropped)/\.?(.+)-[0-9a-f]{16}\.jpg(?:\..*)?", re.DOTALL)
_COPY = re.compile(rf"{SCANS}/[0-9a-f]{{2}}/\.?[0-9a-f]{{62}}\.(jpg|png)(\..*)?")
_TRAINING = re.compile(r".+-[0-9a-f]{16}")
_STUDY = ("plan.json", "prepare.lock", "journal.log")
_USED = {
    "train": "trained on",
    "validation": "validated on",
    "test": "tested on",
    "recalibration": "recalibrated on",
}
_ERASED = "an erased scan"
_NOTE = "a note that named a patient who was erased was removed"


@dataclass(frozen=True)
class Held:
    """Something that holds data of the patient.

    Attributes:
        kind: "data", "crops", "copies", "pieces", "work", "log", "archive" or "leftovers", which are removed; or
            "patients", "model" or "unreadable", which stay.
        name: Name of the version, folder or file, the patient numbers, or how many files.
        reason: What it holds, or why it is listed.
    """

    kind: str
    name: str
    reason: str


def forget(
    place: Store, registry_root: storage.Location, patient: int, cohort: str = "", delete: bool = False
) -> list[Held]:
    """List what holds data of a patient and, with `delete`, remove it from the store.

    The caller must hold the store's lock. If the process is killed, the next call finishes the erasure.

    Args:
        place: The store.
        registry_root: Root of the registry, which is only read.
        patient: Patient number.
        cohort: Name of the patient's cohort; may be empty if the store knows only version.
        delete: Remove what was found.

    Returns:
        What holds data of the patient.

    Raises:
        InputError: There is no such patient or cohort, `cohort` is empty and the store knows several, or a data version
            is damaged, so that it is unknown whether it holds the patient. Nothing is removed in these cases.
    """
    versions, found, gone, cohort = _search(place, patient, cohort)
    before = gone.of(cohort, patient)
    if delete:
        secret = gone.secret or pseudonyms.key(place.address)
        gone = Erased(secret, gone.patients)
        name = before[0] if before else (cohort, cohort, pseudonyms.of_patient(secret, cohort, patient))
        scans = gone.patients.get(name, frozenset()) | {gone.keyed(scan) for scan in found.scans}
        gone = Erased(secret, gone.patients | {name: scans})
        erased.save(place.folder, gone)  # first, so that ingest sets the files aside from now on
        place.commit()
        before = gone.of(cohort, patient)
    keyed = frozenset[str]().union(*(gone.patients[names] for names in before))
    bulk = BulkFiles(place)
    result = [
        *_crops(place, bulk, versions, found, delete),
        *_copies(bulk, versions, found, delete),
        *_pieces(bulk, delete),
        *_caches(bulk, delete),
        *_leftovers(place, bulk, delete),
    ]
    # The data versions come last, because they show what else belongs to the patient.
    for version in versions:
        clean, notes = _without(version, found, gone.secret)
        if not (removed := _difference(version, clean, notes)):
            continue
        result.append(Held("data", version.stored.folder.name, f"rewritten without {removed}"))
        if delete:
            _rewrite(place, clean, notes)
    if found.others:
        reason = "have scans that look like the patient's and stay; if it is the same person, forget that number too"
        result.append(Held("patients", ", ".join(map(str, found.others)), reason))
    return [*result, *_models(registry_root, found, gone, keyed)]


def names_of_files(place: Store, patient: int, cohort: str = "") -> frozenset[str]:
    """Return the paths of a patient's files below the folder of scans, and the pseudonyms of those of DICOM files.

    The arguments and errors are those of `forget`, and the caller must hold the store's lock.
    """
    versions, found, _, _ = _search(place, patient, cohort)
    return frozenset(
        path.removeprefix(f"{version.stored.facts.source.rstrip('/')}/")
        for version in versions
        if found.in_cohort(version)
        for table in (version.scans, version.examined)
        for path in table.loc[found.rows(version, table), "path"]
    )


def hashes_of(
    place: Store, registry_root: storage.Location, patient: int, cohort: str = ""
) -> tuple[frozenset[str], frozenset[str]]:
    """Return the hashes by which a log of decisions may know a patient, and those of the patient's files.

    They are made with every key that there is, and for every name of the cohort and for none, which is what an endpoint
    knows that was not told its site. A DICOM file that was sent without its patient's number is not found, since the
    store knows only its picture. The arguments and errors are those of `forget`, and the caller must hold the store's
    lock.
    """
    _, found, gone, cohort = _search(place, patient, cohort)
    secrets = pseudonyms.known_keys(place.address, registry_root)
    patients = {pseudonyms.of_patient(secret, name, patient) for secret in secrets for name in {"", *found.cohorts}}
    images = {pseudonyms.of_file(secret, scan) for secret in secrets for scan in found.scans}
    # an erasure before this one has left only the hashes
    erased_before = (scan for names in gone.of(cohort, patient) for scan in gone.patients[names])
    images |= {f"{pseudonyms.key_name(gone.secret)}:{scan}" for scan in erased_before}
    return frozenset(patients), frozenset(images)


def _search(place: Store, patient: int, cohort: str) -> tuple[list[VersionTables], PatientData, Erased, str]:
    """Return the data versions, oldest first, what they hold of the patient, who was erased before, and the cohort."""
    versions = [read_tables(folder) for folder in reversed(place.numbered())]
    gone = erased.load(place.folder)
    cohort = choose_cohort(versions, gone, cohort)
    found = find_patient(versions, patient, names_of(versions, cohort), gone)
    if not (found.paths or found.hashes or gone.of(cohort, patient)):
        raise InputError(
            f"--forget {patient}: no such patient in cohort {cohort}, and no patient with this number was erased"
        )
    return versions, found, gone, cohort


def _without(version: VersionTables, found: PatientData, secret: bytes) -> tuple[VersionTables, list[str]]:
    """Return a data version's tables and notes without the patient."""
    gone = set(version.scans.loc[found.rows(version, version.scans), "path"])
    gone |= set(version.examined.loc[found.rows(version, version.examined), "path"])
    names = sorted({path.rsplit("/", 1)[-1] for path in gone}, key=len, reverse=True)

    def is_of_patient(path: str) -> bool:
        last = path.rsplit("/", 1)[-1]
        return path in gone or (found.in_cohort(version) and (last in names or number_in(last) == found.patient))

    def anonymised(text: str) -> str:
        for name in names:
            text = text.replace(name, _ERASED)
        return text

    def cleaned(table: pd.DataFrame) -> pd.DataFrame:
        kept = table[~found.rows(version, table)]
        reasons = kept["quarantine_reason"].map(anonymised, na_action="ignore").astype("string")
        return kept.assign(quarantine_reason=reasons).reset_index(drop=True)

    def replaced(phash: str) -> str:  # keeps the row, so that other patients keep their splits
        return hashlib.shake_256(secret + phash.encode()).hexdigest(len(phash) // 2) if phash in found.hashes else phash

    quarantine = version.quarantine[~version.quarantine["file"].astype(str).map(is_of_patient).astype(bool)]
    memory = version.memory[~found.remembered(version)].reset_index(drop=True)
    number = re.compile(rf"(?<!\d)0*{found.patient}(?!\d)")
    notes = [
        _NOTE if anonymised(note) != note or (found.in_cohort(version) and number.search(note)) else note
        for note in version.stored.facts.notes
    ]
    return (
        VersionTables(
            version.stored,
            cleaned(version.scans),
            version.regions[~version.regions["path"].isin(gone)].reset_index(drop=True),
            quarantine.assign(reason=quarantine["reason"].map(anonymised, na_action="ignore")).reset_index(drop=True),
            cleaned(version.examined),
            version.links[~version.links.isin(found.hashes).any(axis=1)].reset_index(drop=True),
            memory.assign(phash=memory["phash"].map(replaced).astype("string")),
        ),
        notes,
    )


def _difference(version: VersionTables, clean: VersionTables, notes: list[str]) -> str:
    """Describe in words what a data version holds of the patient; "" if nothing."""
    counts = {
        "scans": len(version.scans) - len(clean.scans),
        "rows of its memory": len(version.memory) - len(clean.memory),
        "links": len(version.links) - len(clean.links),
        "lines of quarantine.csv": len(version.quarantine) - len(clean.quarantine),
        "notes": sum(a != b for a, b in zip(version.stored.facts.notes, notes, strict=True)),
    }
    counted = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
    pairs = ((getattr(version, name), getattr(clean, name)) for name in ("scans", "examined", "quarantine", "memory"))
    return counted or ("" if all(a.equals(b) for a, b in pairs) else "what names the patient")


def _rewrite(place: Store, clean: VersionTables, notes: list[str]) -> None:
    facts = clean.stored.facts
    used = tables.used(clean.scans)
    synthetic = clean.examined.set_index("path")["synthetic"]
    changed = {
        "digest": tables.digest(clean.scans, clean.regions),
        "scans": len(used),
        "quarantined": len(clean.quarantine),
        "patients": int(used["patient"].nunique()),
        "regions": len(clean.regions),
        "synthetic": int(used["path"].map(synthetic).sum()),
        "splits": tables.count_splits(used, facts.classes),
        "notes": notes,
        "inputs": None,
    }
    own = {
        **dict(zip(tables.TABLES, (clean.scans, clean.regions), strict=True)),
        EXAMINED: clean.examined,
        LINKS: clean.links,
        MEMORY: clean.memory,
    }
    content = {name: table.to_parquet(index=False) for name, table in own.items()}
    quarantine = io.StringIO()
    tables.write_quarantine(quarantine, clean.quarantine)
    # No pictures are drawn. They need libraries that are not installed everywhere, and no ingest reuses this version
    # unchanged.
    content[tables.QUARANTINE] = quarantine.getvalue().encode()
    place.rewrite(clean.stored.folder, content, facts.model_copy(update=changed))


def _crops(
    place: Store, bulk: BulkFiles, versions: list[VersionTables], found: PatientData, delete: bool
) -> Iterator[Held]:
    try:
        table = place.all_cropped()
    except InputError:
        table = pd.DataFrame()
        if delete:  # the table may name the patient, and the next crop writes it again
            (place.folder / CROPPED).unlink()
    cuts = crops.cuts_in(table) if "margin" in table else {Cut()}
    stems, wanted = set[str](), set[str]()
    for version in versions:
        gone = found.rows(version, version.scans)
        stems |= set(version.scans.loc[gone, "path"].map(crops.stem))
        others = version.scans[~gone]
        wanted |= crops.files(others, version.regions[version.regions["path"].isin(others["path"])], cuts)
    present = {file.name.removeprefix(f"{CROPS}/") for file in bulk.files(CROPS)}
    going = {
        name
        for name in {*present, *table.get("file", ())}
        # By their names, since older code has made others of them. A killed run has left .name.jpg.number.
        if (match := _IMAGE.fullmatch(name)) and match[1] in stems and name not in wanted
    }
    if going:
        yield Held("crops", f"{len(going)} images", "of the patient")
    if delete and going:
        if "file" in table:
            store.write(place.folder / CROPPED, table[~table["file"].isin(going)])
        place.commit()
        bulk.remove([f"{CROPS}/{name}" for name in going & present])


def _copies(bulk: BulkFiles, versions: list[VersionTables], found: PatientData, delete: bool) -> Iterator[Held]:
    wanted = {
        "/".join([SCANS, *copy.split("/")[-2:]])
        for version in versions
        for copy in version.examined.loc[~found.rows(version, version.examined), "local_path"].dropna()
    }
    going = [file.name for file in bulk.files(SCANS) if _COPY.fullmatch(file.name) and file.name not in wanted]
    if going:
        yield Held("copies", f"{len(going)} files", "of the patient, or of no data version")
    if delete:
        bulk.remove(going)


def _pieces(bulk: BulkFiles, delete: bool) -> Iterator[Held]:
    """Yield the pieces of shards, and remove them with `delete`: what they know is examined again."""
    going = [file.name for file in bulk.pieces()]
    if going:
        yield Held("pieces", f"{len(going)} files", "may have rows of the patient; the next run examines them again")
    if delete:
        bulk.remove(going)


def _caches(bulk: BulkFiles, delete: bool) -> Iterator[Held]:
    """Yield trainings, locators, feature maps and studies, and remove them with `delete`.

    All of them go, since their contents do not reveal whose they are.
    """
    files = (file.name.rpartition("/") for file in bulk.files(_SWEEPS))
    studies = {folder for folder, _, name in files if name in _STUDY}
    for folder in [*bulk.folders(WORK), *bulk.folders(_SWEEPS)]:
        last = folder.name.rpartition("/")[2]
        if _TRAINING.fullmatch(last) or folder.name in studies or last.startswith(GOING):
            yield Held("work", folder.name, "may hold features of the patient; a run that still uses it ends")
            if delete:
                bulk.remove_folder(folder.name)


def _leftovers(place: Store, bulk: BulkFiles, delete: bool) -> Iterator[Held]:
    """Yield what killed runs have left, whatever its age, and remove it with `delete`. The caller holds the lock."""
    for path in sorted([*place.folder.glob("*.tmp"), *(place.folder / VERSIONS).glob(".*")]):
        yield Held("leftovers", path.relative_to(place.folder).as_posix(), "half-written or half-removed")
        if delete:
            store.remove(path)
    going = [file.name for file in bulk.orphans()]
    if going:
        yield Held("leftovers", f"{len(going)} objects", "of killed runs")
    if delete:
        bulk.remove(going)


def _models(root: storage.Location, found: PatientData, gone: Erased, keyed: frozenset[str]) -> Iterator[Held]:
    registry = Registry(root)
    aliases = registry.read_aliases()
    for version in registry.versions():
        names = ", ".join(alias for alias, number in aliases.items() if number == version)
        names = f" ({names})" if names else ""
        try:
            scans = changes.scans_of(registry.find(str(version), (*artefact.CARD, artefact.SCANS)))
        except InputError:
            yield Held(
                "model",
                str(version),
                f"what it was made of cannot be read{names}: assume that it holds the patient",
            )
            continue
        own = scans["sha256"].isin(found.scans) | scans["sha256"].map(gone.keyed).isin(keyed)
        named, comparable = _named(root, scans["patient"], found)
        counts = scans.loc[own | named, "split"].value_counts()
        uses = ", ".join(f"{_USED[split]} {counts[split]}" for split in _USED if split in counts)
        if uses:
            yield Held("model", str(version), f"{uses} of the patient's scans{names}")
        elif not comparable:
            yield Held(
                "model",
                str(version),
                f"its pseudonyms were made with another key{names}; it uses none of the files known here",
            )


def _named(root: storage.Location, patients: pd.Series, found: PatientData) -> tuple[pd.Series, bool]:
    """Select the patient's pseudonyms among a version's, and return whether all were made with the present key."""
    if patients.isna().all():  # registered by older code
        return pd.Series(False, patients.index), True
    secret = pseudonyms.key(root)
    own = {pseudonyms.of_patient(secret, cohort, found.patient) for cohort in found.cohorts}
    return patients.isin(own), {name.partition(":")[0] for name in patients.dropna()} == {pseudonyms.key_name(secret)}
