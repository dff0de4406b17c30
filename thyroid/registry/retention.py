"""List what a store and a registry hold and why each item stays or goes, and remove what goes.

- A model version stays if it has an alias (candidate, champion, previous, anchor) or is among the newest `keep`. The
  others go, as with `python -m thyroid.registry gc`.
- A data version stays if it is among the newest `keep` of its source, or if a model version that stays was made of it.
  The latter means any data version with the model's data digest, and also the newest one that has all the model's scans
  in use, since `crop` may have left scans out. As long as it is unknown what such a model was made of, every data
  version stays.
- A damaged data version stays and does not count as one of the newest, because somebody has to look at it.
- Crops stay if the present code makes them of the scans and regions of a data version that stays, with any margin and
  jitter that occur together in the store. Crops of older code therefore go.
- Copies of a bucket's objects and pictures of DICOM files stay if a data version that stays has examined them.
- Pieces, which shards have left for the next ingest or crop, go after `days` days. What they name stays until then.
- Trainings and locators in `work`, stopped or finished, and the feature maps that locators share, go if nothing has
  touched them for `days` days.
- Half-written files of killed runs go after a day.

Nothing is removed without `delete`. Runs that write to the store wait in the meantime. A run that still trains on a
data version that is removed loses its images. Of a store in a bucket, the bucket and this machine's mirror are cleaned;
other machines drop from their mirrors what they have not used for the longest time.

The command is in `thyroid.label.retention`, since a labelled folder holds patients, too.
"""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from thyroid import errors, storage
from thyroid.data import crops, pseudonyms, tables
from thyroid.data.crops import Cut, cuts_in
from thyroid.data.store import CROPPED, CROPS, EXAMINED, LINKS, MEMORY, VERSIONS, Store, Version, remove, write
from thyroid.data.version import DataVersion
from thyroid.errors import InputError
from thyroid.model.artefact import CARD, SCANS, Artefact
from thyroid.registry import changes, erasure
from thyroid.registry.inventory import (
    COPY_FILES,
    CROP_FILES,
    WORK,
    BulkFiles,
    Row,
    age_and_size,
    leftovers,
    orphans,
    pieces,
    size_of,
    trainings,
)
from thyroid.registry.registry import MODEL_NAME, Registry


@dataclass(frozen=True)
class _Need:
    """What a model version was made of: data digest and SHA-256 of its scans; None if that is unknown."""

    version: int
    digest: str | None
    scans: frozenset[str] | None


@dataclass(frozen=True)
class _Contents:
    """SHA-256 of a data version's scans in use, and its files below the store's crops and scans."""

    scans: frozenset[str]
    images: set[str]
    copies: set[str]


@dataclass(frozen=True)
class _Kept:
    """Files of data versions that stay, below the store's crops and scans, and names of unreadable data versions."""

    images: set[str] = field(default_factory=set)
    copies: set[str] = field(default_factory=set)
    unread: list[str] = field(default_factory=list)


def retain(
    store: storage.Location, registry_root: storage.Location, keep: int = 5, days: int = 7, delete: bool = False
) -> list[Row]:
    """List what a store and a registry hold by the policy of this module and, with `delete`, remove what goes.

    If the process is killed, the next call finishes the removal.

    Args:
        store: Folder, gs:// or s3:// prefix to which `ingest` has written data versions.
        registry_root: Root of the registry. A registry without models needs no data version.
        keep: Number of newest model versions, and of newest data versions per source, that stay in any case.
        days: Number of days after which an untouched training goes.
        delete: Remove what goes.

    Returns:
        One row for each item, or for a group of files.

    Raises:
        InputError: There is no such store or registry, or `keep` or `days` is below 1.
    """
    if days < 1:
        raise InputError(f"--days {days}: give at least 1, or running trainings would be removed")
    place = Store(store)
    _check(place, registry_root)
    with place.lock():
        models, needs = _models(registry_root, keep, delete)
        cuts, unsure = _cuts(place)
        data, kept = _data(place, keep, needs, cuts)
        bulk = BulkFiles(place)
        shards, old_pieces = pieces(bulk, days)
        unread = f"data version {', '.join(kept.unread)} cannot be read, and may need them" if kept.unread else ""
        crops, images = CROP_FILES.divide(bulk, kept.images, unread or unsure)
        copies, objects = COPY_FILES.divide(bulk, kept.copies, unread)
        work, left = trainings(bulk, days), leftovers(place)
        contents, old_contents = orphans(bulk)
        if delete:
            # Data versions go first, so that none exists without its copies.
            for row in data:
                if not row.stays:
                    remove(place.folder / VERSIONS / row.name)
            if images:
                _forget(place, images)
            place.commit()
            bulk.remove([*images, *objects, *old_pieces, *old_contents])
            for row in work:
                if not row.stays:
                    bulk.remove_folder(f"{WORK}/{row.name}")
            for row in left:
                if not row.stays:
                    remove(place.folder / row.name)
    return [*models, *data, *crops, *copies, *shards, *work, *left, *contents]


def forget(
    store: storage.Location, registry_root: storage.Location, patient: int, site: str = "", delete: bool = False
) -> list[erasure.Held]:
    """Call `erasure.forget` under the store's lock.

    Args:
        store: Location of the store.
        registry_root: Root of the registry.
        patient: Patient number.
        site: Name of the patient's cohort; may be empty if the store knows only one.
        delete: Remove what was found.

    Returns:
        What holds data of the patient.

    Raises:
        InputError: There is no such store or registry, or `erasure.forget` raises it.
    """
    place = Store(store)
    _check(place, registry_root)
    with place.lock():
        held = erasure.forget(place, registry_root, patient, site)
    if not delete:
        return held
    pseudonyms.key(place.address)  # outside the lock, because it takes the lock itself to make a key
    with place.lock():
        return erasure.forget(place, registry_root, patient, site, delete)


def names_of_files(
    store: storage.Location, registry_root: storage.Location, patient: int, site: str = ""
) -> frozenset[str]:
    """Call `erasure.names_of_files` under the store's lock, with the arguments and errors of `forget`."""
    place = Store(store)
    _check(place, registry_root)
    with place.lock():
        return erasure.names_of_files(place, patient, site)


def hashes_of(
    store: storage.Location, registry_root: storage.Location, patient: int, site: str = ""
) -> tuple[frozenset[str], frozenset[str]]:
    """Call `erasure.hashes_of` under the store's lock, with the arguments and errors of `forget`."""
    place = Store(store)
    _check(place, registry_root)
    with place.lock():
        return erasure.hashes_of(place, registry_root, patient, site)


def _check(place: Store, registry_root: storage.Location) -> None:
    """Raise InputError if there is no such store or registry."""
    place.pull()
    if not place.numbered():
        raise InputError(f"--store {place.address}: contains no data version; give the --store of thyroid.ingest")
    _check_registry(registry_root)


def _check_registry(root: storage.Location) -> None:
    """Raise InputError if the registry has no models and that is not plausible."""
    if Registry(root).versions():
        return
    if not storage.is_bucket(root) and not Path(root).is_dir():
        raise InputError(f"--registry {root}: no such folder; give the root of the registry")
    home = storage.at(storage.below(root, MODEL_NAME))
    inside = home.children()
    if any(name.isdigit() and home.read(f"{name}/{CARD[0]}")[0] for name in inside):
        raise InputError(
            f"{home.address}: contains models that aliases.json does not list; restore aliases.json from a backup"
        )
    if not inside and storage.at(root).children():
        raise InputError(f"--registry {root}: not a registry; give the root of the registry")


def _models(root: storage.Location, keep: int, delete: bool) -> tuple[list[Row], list[_Need]]:
    """Return the rows of model versions and what those that stay were made of. With `delete`, remove the others."""
    registry = Registry(root)
    sizes = {version: size_of(storage.at(registry.address(version))) for version in registry.versions()}
    going = registry.collect_garbage(keep, delete)
    aliases: dict[int, list[str]] = {}
    for alias, version in registry.read_aliases().items():
        aliases.setdefault(version, []).append(alias)
    rows = []
    for version, size in sizes.items():
        reason = f"no alias, and not among the newest {keep}"
        if version not in going:
            reason = ", ".join(aliases.get(version, [f"among the newest {keep}"]))
        rows.append(Row("model", str(version), size, version not in going, reason))
    return rows, [_need(registry, version) for version in registry.versions() if version not in going]


def _need(registry: Registry, version: int) -> _Need:
    digest, scans = None, None
    try:
        digest = Artefact.read(registry.find(str(version), CARD)).record.data_digest
        scans = frozenset(changes.scans_of(registry.find(str(version), (*CARD, SCANS)))["sha256"])
    except InputError:
        pass
    return _Need(version, digest, scans)


def _data(place: Store, keep: int, needs: Sequence[_Need], cuts: Collection[Cut]) -> tuple[list[Row], _Kept]:
    """Return the rows of data versions, and the files of those that stay or that shards have left for the next one."""
    folders = place.numbered()
    descriptions = {folder: _description(folder) for folder in folders}
    digests = {digest for _, digest, damage in descriptions.values() if not damage}
    unknown = [str(need.version) for need in needs if need.scans is None and need.digest not in digests]
    rows, kept, newest, unmet = [], _Kept(), Counter[str](), list(needs)
    for folder in folders:
        source, digest, damage = descriptions[folder]
        try:
            contents = _contents(folder, cuts)
        except (InputError, OSError) as error:
            contents, damage = None, damage or errors.one_line(error)
        reasons = []
        if damage or contents is None:
            reasons.append(f"damaged ({damage[:200]}): inspect it and remove it by hand")
        else:
            newest[source] += 1
            if newest[source] <= keep:
                reasons.append(f"among the newest {keep} of {source}")
            met = [need for need in unmet if need.scans is not None and need.scans <= contents.scans]
            unmet = [need for need in unmet if need not in met]
            if models := {need.version for need in (*met, *(need for need in needs if need.digest == digest))}:
                reasons.append(f"has the data of model version {', '.join(map(str, sorted(models)))}")
        if unknown:
            reasons.append(f"what model version {', '.join(unknown)} was made of cannot be read")
        reason = "; ".join(reasons) or f"not among the newest {keep} of {source}, and no model version needs it"
        rows.append(Row("data", folder.name, age_and_size(folder)[1], bool(reasons), reason))
        if not reasons:
            continue
        if contents is None:
            kept.unread.append(folder.name)
        else:
            kept.images.update(contents.images)
            kept.copies.update(contents.copies)
    for names, kind, column in ((kept.images, "cropped", "file"), (kept.copies, "examined", "local_path")):
        if column in (left := place.pieces(kind)):
            names.update(_ends(left[column]))
    return rows[::-1], kept


def _cuts(place: Store) -> tuple[set[Cut], str]:
    """Return how regions were cut out in a store, and why that is unknown; "" if it is known."""
    try:
        cropped, unsure = place.all_cropped(), f"{CROPPED} is missing"
    except InputError as error:
        cropped, unsure = pd.DataFrame(), f"{CROPPED}: {errors.one_line(error).rsplit(': ', 1)[-1]}"
    if "margin" in cropped:
        return cuts_in(cropped), ""
    return set(), f"{unsure}, so it is unknown what they are; the next crop makes them again"


def _description(folder: Path) -> tuple[str, str, str]:
    """Return source and digest of a data version, and what is wrong with its data.json."""
    try:
        facts = tables.read_facts(folder)
        return facts.source, facts.digest, ""
    except (InputError, OSError) as error:
        return "", "", f"{tables.FACTS}: {errors.one_line(error)}"


def _contents(folder: Path, cuts: Collection[Cut]) -> _Contents:
    """Return what a data version holds, and its crops if regions are cut out in these ways.

    Raises:
        InputError, OSError: One of its tables is damaged.
    """
    data = DataVersion.read(folder)
    # The other two tables are read only to find damage, because the next ingest will need them.
    examined, _, _ = (Version(folder).table(name) for name in (EXAMINED, LINKS, MEMORY))
    copies = _ends(examined["local_path"])
    return _Contents(frozenset(data.used["sha256"].tolist()), crops.files(data.scans, data.regions, cuts), copies)


def _ends(paths: pd.Series) -> set[str]:
    """Return the last two parts of paths or addresses. The rest depends on where the volume was mounted."""
    return {"/".join(path.split("/")[-2:]) for path in paths.dropna().tolist()}


def _forget(place: Store, images: Sequence[str]) -> None:
    """Remove images from the store's table before the files are removed. The caller holds the lock."""
    try:
        table = place.all_cropped()
    except InputError:  # the next crop writes the table again
        return
    if len(table):
        gone = {name.removeprefix(f"{CROPS}/") for name in images}
        write(place.folder / CROPPED, table[~table["file"].isin(gone)])
