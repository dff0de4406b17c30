"""The command `thyroid.retention`: what a store and a registry hold and for how long, and the erasure of a patient.

python -m thyroid.retention --store DIR --registry gs://bucket/prefix
python -m thyroid.retention --store DIR --registry DIR --log DIR --archive DIR --log-days 365
python -m thyroid.retention --store s3://bucket/store --registry s3://bucket/registry --forget PATIENT --log DIR
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

from cyclopts import Parameter

from thyroid import command, storage
from thyroid.command import FLAT
from thyroid.errors import InputError
from thyroid.label.retention import erasure
from thyroid.registry import retention
from thyroid.registry.erasure import Held
from thyroid.watch import erasure as decisions


@dataclass(frozen=True)
class Beside:
    """What holds patients beside a store and a registry.

    Attributes:
        labelled: Folder, gs:// or s3:// prefix in which this cohort was labelled: with --forget, also what it holds of
            the patient. The bench may run meanwhile.
        log: Folder of the decision log (thyroid.serve --log); with --forget, also what it holds of the patient. The
            endpoint may run meanwhile.
        archive: Folder, gs:// or s3:// prefix of the log's archive (thyroid.watch --archive), likewise.
        log_days: Days for which decisions stay in the log and its archive; 0 keeps them for ever.
    """

    labelled: storage.Location | None = None
    log: storage.Location = ""
    archive: storage.Location = ""
    log_days: int = 0


_STAY = ("patients", "model", "unreadable")
"""Kinds of items that stay."""


def run(
    *,
    store: storage.Location,
    registry: storage.Location,
    keep: int = 5,
    days: int = 7,
    delete: bool = False,
    patient: Annotated[int | None, Parameter(name="--forget")] = None,
    site: str = "",
    beside: Annotated[Beside, FLAT] = Beside(),
) -> None:
    """List what a store and a registry hold and why each item stays or goes, and remove what goes.

    Args:
        store: Folder, gs:// or s3:// prefix that thyroid.ingest --store has written.
        registry: Root of the registry: a folder, or a gs:// or s3:// prefix.
        keep: Number of newest models, and of newest data versions of a source, that stay.
        days: Days after which an untouched training goes.
        delete: Remove what goes.
        patient: Number of a patient: list what holds this patient, and remove that instead.
        site: Cohort of the patient, if the store knows several.
        beside: What holds patients beside the store and the registry.
    """
    labelled, log, archive = beside.labelled, beside.log, beside.archive
    if patient is not None:
        found: list[Held] = []
        if labelled is not None:  # first, since the store knows the names of the files
            names = retention.names_of_files(store, registry, patient, site)
            found = erasure.forget(labelled, patient, names, delete)
        if log or archive:  # before the store, too, since it knows the files
            hashes = retention.hashes_of(store, registry, patient, site)
            found += decisions.forget(log, archive, *hashes, delete)
        held = retention.forget(store, registry, patient, site, delete)
        _report([*found, *held], delete, beside)
        for line in _restorable([store, labelled or "", archive]):
            print(line)
        return
    if labelled is not None:
        raise InputError(f"--labelled {labelled}: nothing of it expires; give it with --forget PATIENT")
    old = decisions.expire(log, archive, beside.log_days)  # before anything is removed, to find what is wrong with them
    rows = retention.retain(store, registry, keep, days, delete)
    rows += decisions.expire(log, archive, beside.log_days, delete) if delete else old
    width = max(len(row.name) for row in rows)
    word = "gone" if delete else "goes"
    for row in rows:
        print(
            f"{row.kind:<11}{row.name:<{width}}{_size(row.bytes):>14}  {'stays' if row.stays else word:<6} {row.reason}"
        )
    stays, goes = (sum(row.bytes for row in rows if row.stays is side) for side in (True, False))
    if not any(row.kind == "model" for row in rows):
        print(f"{registry}: no model version needs a data version")
    print(f"{_size(stays)} stay, {_size(goes)} {'removed' if delete else 'would be removed (with --delete)'}")


def _report(held: Sequence[Held], delete: bool, beside: Beside) -> None:
    width = max((len(item.name) for item in held), default=0)
    for item in held:
        word = "stays" if item.kind in _STAY else "gone" if delete else "goes"
        print(f"{item.kind:<11}{item.name:<{width}}  {word:<6} {item.reason}")
    if any(item.kind == "model" for item in held):
        print(
            "A model's weights cannot be purged of a patient, and its report and pictures may show the patient: "
            "retrain without the patient, then remove these versions with `python -m thyroid.registry gc`; repeat "
            "--forget to see which are left."
        )
    if not delete:
        print("Nothing was removed. Use --delete to remove the items marked 'goes'.")
        return
    places = {"the archive of the log": beside.archive, "the decision log": beside.log}
    places["the labelled folder"] = beside.labelled or ""
    searched = " and ".join(["The store", *(name for name, place in places.items() if place)])
    others = ", ".join(["Outputs of runs", *(name for name, place in places.items() if not place)])
    print(
        f"{searched} no longer contain{'' if ' and ' in searched else 's'} any data of the patient. {others}, what was "
        "sent to --log-url, Kubeflow's artifacts, caches and backups were not searched."
    )


def _restorable(places: Sequence[storage.Location]) -> Iterator[str]:
    """Yield a line for each bucket from which removed objects may still be restored."""
    buckets = {
        f"{place.scheme}{place.bucket}": place
        for place in map(storage.at, filter(storage.is_bucket, places))
        if isinstance(place, storage.Bucket)
    }
    for address, bucket in buckets.items():
        if (kept := bucket.keeps_removed()) is not False:
            which = "removed objects are kept, as older versions or by soft delete"
            if kept is None:
                which = "if it keeps older versions, soft-deleted objects or unfinished uploads, these are still there"
            yield (
                f"{address}: {which}; have a lifecycle rule delete noncurrent versions and unfinished uploads, and set "
                "the duration of soft delete to 0"
            )


def _size(size: int) -> str:
    return f"{size / 1e6:,.2f} MB"


main = command.main("python -m thyroid.retention", run)
