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
from pathlib import Path

import pandas as pd

from thyroid import storage
from thyroid.data import crops, erased, filenames, pseudonyms, store, tables
from thyroid.data.erased import Erased
from thyroid.data.store import CROPPED, EXAMINED, GOING, LINKS, MEMORY, SCANS, VERSIONS, Store, Version
from thyroid.errors import InputError
from thyroid.imaging.geometry import MARGIN
from thyroid.model import artefacts
from thyroid.registry import changes, registry

_WORK, _SWEEPS = "work", "sweeps"
_IMAGE = re.compile(r"(?:normal|cropped)/\.?(.+)-[0-9a-f]{16}\.jpg(?:\..*)?", re.DOTALL)
_COPY = re.compile(r"[0-9a-f]{2}/\.?[0-9a-f]{62}\.(jpg|png)(\..*)?")
_TRAINING = re.compile(r".+-[0-9a-f]{16}")
_STUDY = ("plan.json", "prepare.lock", "journal.log")
_USED = {"train": "trained on", "validation": "validated on", "test": "tested on"}
_ERASED = "an erased scan"
_NOTE = "a note that named a patient who was erased was removed"


@dataclass(frozen=True)
class Held:
    """Something that holds data of the patient.

    Attributes:
        kind: "data", "crops", "copies", "work" or "leftovers", which are removed; or "patients" or "model", which stay.
        name: Name of the version, folder or file, the patient numbers, or how many files.
        reason: What it holds, or why it is listed.
    """

    kind: str
    name: str
    reason: str


@dataclass(frozen=True)
class _Tables:
    """The tables of a data version."""

    version: Version
    scans: pd.DataFrame
    regions: pd.DataFrame
    quarantine: pd.DataFrame
    examined: pd.DataFrame
    links: pd.DataFrame
    memory: pd.DataFrame


@dataclass(frozen=True)
class _Found:
    """Everything that belongs to a patient.

    Attributes:
        patient: Patient number.
        cohorts: Names that the patient's cohort has had.
        scans: SHA-256 of the patient's files.
        paths: Paths of these files in data versions of the cohort.
        hashes: Perceptual hashes that only the patient's scans have.
        others: Numbers of other patients whose scans look like the patient's.
    """

    patient: int
    cohorts: frozenset[str]
    scans: frozenset[str]
    paths: frozenset[str]
    hashes: frozenset[str]
    others: list[int]

    def in_cohort(self, one: _Tables) -> bool:
        """Return whether a data version belongs to the patient's cohort."""
        return one.version.facts["cohort"] in self.cohorts

    def rows(self, one: _Tables, table: pd.DataFrame) -> pd.Series:
        """Select the rows of a version's scans or examined files that are the patient's or have the same bytes."""
        own = table["path"].isin(self.paths) if self.in_cohort(one) else False
        return table["sha256"].isin(self.scans) | own

    def remembered(self, one: _Tables) -> pd.Series:
        """Select the patient's rows in a version's memory."""
        return one.memory["cohort"].isin(self.cohorts) & one.memory["patient"].eq(self.patient)


def forget(
    place: Store, registry_root: storage.Location, patient: int, cohort: str = "", delete: bool = False
) -> list[Held]:
    """List what holds data of a patient and, with `delete`, remove it from the store.

    The caller must hold the store's lock. If the process is killed, the next call finishes the erasure.

    Args:
        place: The store.
        registry_root: Root of the registry, which is only read.
        patient: Patient number.
        cohort: Name of the patient's cohort; may be empty if the store knows only one.
        delete: Remove what was found.

    Returns:
        What holds data of the patient.

    Raises:
        InputError: There is no such patient or cohort, `cohort` is empty and the store knows several, or a data version
            is damaged, so that it is unknown whether it holds the patient. Nothing is removed in these cases.
    """
    versions = [_read(folder) for folder in reversed(place.numbered())]
    gone = erased.load(place.folder)
    cohort = _cohort(versions, gone, cohort)
    before = gone.of(cohort, patient)
    found = _find(versions, patient, _names_of(versions, cohort), gone)
    if not (found.paths or found.hashes or before):
        raise InputError(
            f"--forget {patient}: no such patient in cohort {cohort}, and nobody of that number was erased"
        )
    if delete:
        secret = gone.secret or pseudonyms.key(place.folder)
        gone = Erased(secret, gone.patients)
        name = before[0] if before else (cohort, cohort, pseudonyms.of_patient(secret, cohort, patient))
        scans = gone.patients.get(name, frozenset()) | {gone.keyed(one) for one in found.scans}
        gone = Erased(secret, gone.patients | {name: scans})
        erased.save(place.folder, gone)  # first, so that ingest sets the files aside from now on
        before = gone.of(cohort, patient)
    keyed = frozenset[str]().union(*(gone.patients[one] for one in before))
    result = [
        *_crops(place, versions, found, delete),
        *_copies(place, versions, found, delete),
        *_caches(place, delete),
        *_leftovers(place, delete),
    ]
    # The data versions come last, because they show what else belongs to the patient.
    for one in versions:
        clean, notes = _without(one, found, gone.secret)
        if not (told := _difference(one, clean, notes)):
            continue
        result.append(Held("data", one.version.folder.name, f"written anew without {told}"))
        if delete:
            _rewrite(place, clean, notes)
    if found.others:
        reason = (
            "have scans that look like the patient's, which stay; if it is the same person, forget that number, too"
        )
        result.append(Held("patients", ", ".join(map(str, found.others)), reason))
    return [*result, *_models(registry_root, found, gone, keyed)]


def _read(folder: Path) -> _Tables:
    try:
        version = Version(folder)
        scans, regions, facts = tables.read(folder)
        quarantine = tables.read_quarantine(folder, facts)
        return _Tables(
            version, scans, regions, quarantine, *(version.table(name) for name in (EXAMINED, LINKS, MEMORY))
        )
    except (InputError, OSError):
        raise InputError(
            f"{folder}: damaged, and so it cannot be told whether it holds the patient; "
            "remove this folder, and start again"
        ) from None


def _cohort(versions: list[_Tables], gone: Erased, given: str) -> str:
    newest = versions[-1]
    known = {*newest.memory["cohort"], newest.version.facts["cohort"], *(one[0] for one in gone.patients)}
    if given and given not in known:
        raise InputError(f"--site {given}: no such cohort in this store; it knows {', '.join(sorted(known))}")
    current = set(newest.memory["cohort"]) or known
    if not given and len(current) > 1:
        raise InputError(
            f"--forget: the store knows several cohorts, and equal numbers are different patients there; "
            f"give one with --site: {', '.join(sorted(current))}"
        )
    return given or next(iter(current))


def _names_of(versions: list[_Tables], cohort: str) -> frozenset[str]:
    """Return `cohort` and the names that it had in older data versions."""
    newest = versions[-1].memory
    result = {cohort}
    for one in versions:
        for name, old in one.memory.groupby("cohort"):
            if name in result or name in set(newest["cohort"]):
                continue
            both = newest.merge(old[["patient", "phash"]], on=["patient", "phash"])["cohort"].value_counts()
            if len(both) and both.index[0] == cohort:
                result.add(str(name))
    return frozenset(result)


def _find(versions: list[_Tables], patient: int, cohorts: frozenset[str], gone: Erased) -> _Found:
    own = _Found(patient, cohorts, frozenset(), frozenset(), frozenset(), [])
    scans, paths, hashes = set[str](), set[str](), set[str]()
    erased_before = gone.scans()  # by a run that was killed
    for one in versions:
        if erased_before:
            every = set(one.scans["sha256"].dropna()) | set(one.examined["sha256"].dropna())
            scans |= {scan for scan in every if gone.keyed(scan) in erased_before}
        hashes |= set(one.memory.loc[own.remembered(one), "phash"])
        if not own.in_cohort(one):
            continue
        for table in (one.scans, one.examined):
            mine = table["patient"].fillna(table["path"].map(_number).astype("Int64")).eq(patient).fillna(False)
            scans |= set(table.loc[mine, "sha256"].dropna())
            paths |= set(table.loc[mine, "path"])
    own = _Found(patient, cohorts, frozenset(scans), frozenset(paths), frozenset(), [])
    seen = pd.concat(
        [table.assign(gone=own.rows(one, table)) for one in versions for table in (one.scans, one.examined)]
    )
    hashes |= set(seen.loc[seen["gone"], "phash"].dropna())
    theirs = set(seen.loc[~seen["gone"], "phash"].dropna())
    pairs = {pair for one in versions for pair in zip(one.links["a"], one.links["b"], strict=True)}
    near = hashes | {b if a in hashes else a for a, b in pairs if (a in hashes) != (b in hashes)}
    others = set(seen.loc[seen["phash"].isin(near) & seen["patient"].ne(patient).fillna(False), "patient"].dropna())
    return _Found(patient, cohorts, own.scans, own.paths, frozenset(hashes - theirs), sorted(map(int, others)))


def _number(path: str) -> int | None:
    try:
        return filenames.parse(path.rsplit("/", 1)[-1]).patient
    except ValueError:
        return None


def _without(one: _Tables, found: _Found, secret: bytes) -> tuple[_Tables, list[str]]:
    """Return a data version's tables and notes without the patient."""
    gone = set(one.scans.loc[found.rows(one, one.scans), "path"])
    gone |= set(one.examined.loc[found.rows(one, one.examined), "path"])
    called = sorted({path.rsplit("/", 1)[-1] for path in gone}, key=len, reverse=True)

    def is_theirs(file: str) -> bool:
        last = file.rsplit("/", 1)[-1]
        return file in gone or (found.in_cohort(one) and (last in called or _number(last) == found.patient))

    def told(text: str) -> str:
        for name in called:
            text = text.replace(name, _ERASED)
        return text

    def cleaned(table: pd.DataFrame) -> pd.DataFrame:
        rest = table[~found.rows(one, table)]
        reasons = rest["quarantine_reason"].map(told, na_action="ignore").astype("string")
        return rest.assign(quarantine_reason=reasons).reset_index(drop=True)

    def replaced(phash: str) -> str:  # keeps the row, so that other patients keep their splits
        return hashlib.shake_256(secret + phash.encode()).hexdigest(len(phash) // 2) if phash in found.hashes else phash

    quarantine = one.quarantine[~one.quarantine["file"].astype(str).map(is_theirs).astype(bool)]
    memory = one.memory[~found.remembered(one)].reset_index(drop=True)
    number = re.compile(rf"(?<!\d)0*{found.patient}(?!\d)")
    notes = [
        _NOTE if told(note) != note or (found.in_cohort(one) and number.search(note)) else note
        for note in one.version.facts["notes"]
    ]
    return (
        _Tables(
            one.version,
            cleaned(one.scans),
            one.regions[~one.regions["path"].isin(gone)].reset_index(drop=True),
            quarantine.assign(reason=quarantine["reason"].map(told, na_action="ignore")).reset_index(drop=True),
            cleaned(one.examined),
            one.links[~one.links.isin(found.hashes).any(axis=1)].reset_index(drop=True),
            memory.assign(phash=memory["phash"].map(replaced).astype("string")),
        ),
        notes,
    )


def _difference(one: _Tables, clean: _Tables, notes: list[str]) -> str:
    """Describe in words what a data version holds of the patient; "" if nothing."""
    counts = {
        "scans": len(one.scans) - len(clean.scans),
        "rows of its memory": len(one.memory) - len(clean.memory),
        "links": len(one.links) - len(clean.links),
        "lines of quarantine.csv": len(one.quarantine) - len(clean.quarantine),
        "notes": sum(a != b for a, b in zip(one.version.facts["notes"], notes, strict=True)),
    }
    told = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
    pairs = ((getattr(one, name), getattr(clean, name)) for name in ("scans", "examined", "quarantine", "memory"))
    return told or ("" if all(a.equals(b) for a, b in pairs) else "what names the patient")


def _rewrite(place: Store, clean: _Tables, notes: list[str]) -> None:
    facts = clean.version.facts
    good = tables.used(clean.scans)
    synthetic = clean.examined.set_index("path")["synthetic"]
    facts = facts | {
        "digest": tables.digest(clean.scans, clean.regions),
        "scans": len(good),
        "quarantined": len(clean.quarantine),
        "patients": int(good["patient"].nunique()),
        "regions": len(clean.regions),
        "synthetic": int(good["path"].map(synthetic).sum()),
        "splits": tables.count_splits(good, facts["classes"]),
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
    place.rewrite(clean.version.folder, content, facts)


def _crops(place: Store, versions: list[_Tables], found: _Found, delete: bool) -> Iterator[Held]:
    try:
        table = place.all_cropped()
    except InputError:
        table = pd.DataFrame()
        if delete:  # the table may name the patient, and the next crop writes it again
            (place.folder / CROPPED).unlink()
    margins = set(table["margin"]) if "margin" in table else {MARGIN}
    stems, wanted = set[str](), set[str]()
    for one in versions:
        gone = found.rows(one, one.scans)
        stems |= set(one.scans.loc[gone, "path"].map(crops.stem))
        rest = one.scans[~gone]
        wanted |= crops.files(rest, one.regions[one.regions["path"].isin(rest["path"])], margins)
    there = {file.relative_to(place.crops).as_posix(): file for file in place.crops.glob("*/*")}
    going = {
        name
        for name in {*there, *table.get("file", ())}
        # By their names, since older code has made others of them. A killed run has left .name.jpg.number.
        if (match := _IMAGE.fullmatch(name)) and match[1] in stems and name not in wanted
    }
    if going:
        yield Held("crops", f"{len(going)} images", "of the patient")
    if delete and going:
        if "file" in table:
            store.write(place.folder / CROPPED, table[~table["file"].isin(going)])
        for name in going & set(there):
            there[name].unlink(missing_ok=True)


def _copies(place: Store, versions: list[_Tables], found: _Found, delete: bool) -> Iterator[Held]:
    wanted = {
        "/".join(Path(copy).parts[-2:])
        for one in versions
        for copy in one.examined.loc[~found.rows(one, one.examined), "local_path"].dropna()
    }
    home = place.folder / SCANS
    going = [file for file in home.glob("*/*") if _is_copy(file) and f"{file.parent.name}/{file.name}" not in wanted]
    if going:
        yield Held("copies", f"{len(going)} files", "of the patient, or of no data version")
    for file in going if delete else ():
        file.unlink(missing_ok=True)


def _is_copy(file: Path) -> bool:
    return _COPY.fullmatch(f"{file.parent.name}/{file.name}") is not None and not file.is_dir()


def _caches(place: Store, delete: bool) -> Iterator[Held]:
    """Yield trainings and studies, and remove them with `delete`, since their contents do not reveal whose they are."""
    for folder in sorted([*(place.folder / _WORK).glob("*"), *(place.folder / _SWEEPS).glob("*")]):
        mark = _TRAINING.fullmatch(folder.name) or any((folder / name).exists() for name in _STUDY)
        if not folder.is_dir() or not (mark or folder.name.startswith(GOING)):
            continue
        name = folder.relative_to(place.folder).as_posix()
        yield Held("work", name, "may hold features of the patient; a run that still uses it ends")
        if delete:
            store.remove(folder)


def _leftovers(place: Store, delete: bool) -> Iterator[Held]:
    """Yield what killed runs have left, whatever its age, and remove it with `delete`. The caller holds the lock."""
    for file in sorted([*place.folder.glob("*.tmp"), *(place.folder / VERSIONS).glob(".*")]):
        yield Held("leftovers", file.relative_to(place.folder).as_posix(), "half-written or half-removed")
        if delete:
            store.remove(file)


def _models(root: storage.Location, found: _Found, gone: Erased, keyed: frozenset[str]) -> Iterator[Held]:
    aliases = registry.read_aliases(root)
    for version in registry.versions(root):
        mine = ", ".join(alias for alias, number in aliases.items() if number == version)
        mine = f" ({mine})" if mine else ""
        try:
            scans = changes.scans_of(registry.find(root, str(version), (*artefacts.CARD, artefacts.SCANS)))
        except InputError:
            yield Held(
                "model",
                str(version),
                f"what it was made of cannot be read{mine}: take it for one that holds the patient",
            )
            continue
        theirs = scans["sha256"].isin(found.scans) | scans["sha256"].map(gone.keyed).isin(keyed)
        named, comparable = _named(root, scans["patient"], found)
        counts = scans.loc[theirs | named, "split"].value_counts()
        told = ", ".join(f"{_USED[split]} {counts[split]}" for split in tables.SPLITS if split in counts)
        if told:
            yield Held("model", str(version), f"{told} of the patient's scans{mine}")
        elif not comparable:
            yield Held(
                "model",
                str(version),
                f"its patients were named with another key{mine}: it has none of the files known here",
            )


def _named(root: storage.Location, patients: pd.Series, found: _Found) -> tuple[pd.Series, bool]:
    """Select the patient's pseudonyms among a version's, and return whether all were made with the present key."""
    if patients.isna().all():  # registered by older code
        return pd.Series(False, patients.index), True
    secret = pseudonyms.key(root)
    own = {pseudonyms.of_patient(secret, cohort, found.patient) for cohort in found.cohorts}
    return patients.isin(own), {name.partition(":")[0] for name in patients.dropna()} == {pseudonyms.key_name(secret)}
