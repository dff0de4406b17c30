"""Make the images of both domains: `normal` (scan area, scanner frame blanked) and `cropped` (one square per region).

With a store, images are kept there from run to run, and only missing ones are made.

python -m thyroid.crop --data DIR --output DIR
"""

import logging
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import pandas as pd

from thyroid import command, storage
from thyroid.command import COMMAS, FLAT, NOT_AN_OPTION
from thyroid.data import crop_images, crops, tables
from thyroid.data.crop_images import Image, Made
from thyroid.data.crops import Cut, Planned
from thyroid.data.store import CROPPED_PIECES, Store
from thyroid.data.version import DataVersion
from thyroid.errors import InputError
from thyroid.records.data import DataRecord
from thyroid.shards import Shard, require_store
from thyroid.storage import mirror

log = logging.getLogger("thyroid.crop")


@dataclass(frozen=True)
class Cropped:
    """A data version with its images: its folder and its facts (the content of data.json)."""

    folder: Path
    facts: DataRecord


@dataclass(frozen=True)
class CropOptions:
    """Which images are made, and how.

    Attributes:
        domains: Domains that will be trained, such as normal,cropped. If empty, cropped is used where there are
            regions, else normal.
        store: Folder that outlives the run and keeps the images: those in it are not made again. If empty, the images
            are written to normal/ and cropped/ in the output.
        margin: Share of a region's sides to widen it by, 0 to 2.
        jitter: Multiple of a locator's errors, 0 to 2, by which a second crop of every training region is
            disturbed. Half of what a model learns from are such crops, so that it can be used with automatic boxes. 0
            makes none.
        splits: Splits whose scans are wanted. The files of other splits are not even opened.

    Raises:
        InputError: Margin or jitter is out of range.
    """

    domains: Annotated[Sequence[str], COMMAS] = ()
    store: storage.Location = ""
    margin: float = Cut.margin
    jitter: float = Cut.jitter
    splits: Annotated[Sequence[str], NOT_AN_OPTION] = tables.SPLITS

    def __post_init__(self) -> None:
        """Check the numbers."""
        for name, value in (("margin", self.margin), ("jitter", self.jitter)):
            if not 0 <= value <= 2:
                raise InputError(f"{name} {value:g}: must be between 0 and 2")


def crop(data: Path, output: Path, options: CropOptions = CropOptions()) -> Cropped:
    """Make every image of both domains, re-encoded without metadata, and the tables that name them.

    Args:
        data: Folder of a data version written by `ingest`.
        output: Folder of the new data version.
        options: Which images are made, and how.

    Returns:
        Folder and facts of the new data version.

    Raises:
        InputError: The data version is damaged, a domain is unknown, the cropped domain is requested without any
            region, or a split has no image of a class left.
    """
    started = time.monotonic()
    version = _read(data, options.splits)
    scans, regions, facts = version.scans, version.regions, version.facts
    domains = resolve_domains(options.domains, has_regions=len(regions) > 0)
    store = Store(options.store) if options.store else None
    images_folder = output if store is None else store.crops
    for domain in tables.DOMAINS:
        (images_folder / domain).mkdir(parents=True, exist_ok=True)
    output.mkdir(parents=True, exist_ok=True)

    planned = crops.plan(version.used, regions, Cut(options.margin, options.jitter))
    made = crop_images.make(data, planned, images_folder, store)
    scans, regions = _filled(scans, regions, planned, made)
    quarantine = pd.DataFrame(list(made.lost.items()), columns=["file", "reason"])
    tables.write_quarantine(output / tables.QUARANTINE, pd.concat([tables.read_quarantine(data, facts), quarantine]))
    changed = {
        "splits": tables.count_splits(tables.used(scans), facts.classes),
        "quarantined": facts.quarantined + len(made.lost),
        "domains": list(domains),
        "margin": options.margin,
        "jitter": options.jitter,
        **_count(scans, regions, planned, made),
        "seconds": facts.seconds | {"crop": round(time.monotonic() - started, 1)},
    }
    if store is not None:
        changed["images"] = mirror.address(images_folder)
    for domain in domains:
        _require_examples(scans, regions, domain, options.splits)
    shutil.copy(data / "statistics.png", output)
    from thyroid.data import plots  # only this line needs Matplotlib

    plots.crop_sheet(scans, regions, images_folder, output / "crops.png")
    facts = tables.write(output, scans, regions, facts.model_copy(update=changed))
    _report(scans, facts, made, len(planned), output)
    return Cropped(output, facts)


def crop_shard(data: Path, options: CropOptions, shard: Shard) -> None:
    """Make the images of one shard's scans that the store does not have, without the store's lock.

    The `crop` that follows finds them there, and makes itself what a shard that was killed has not got to.

    Args:
        data: Folder of a data version written by `ingest`.
        options: How the images are made. The domains do not matter here, since the images of both are made.
        shard: The shard.

    Raises:
        InputError: There is no store, or the data version is damaged.
    """
    require_store(options.store)
    store = Store(options.store)
    version, cut = _read(data, options.splits), Cut(options.margin, options.jitter)
    used = version.used[version.used["path"].map(shard.has)]
    planned = crops.plan(used, version.regions[version.regions["path"].isin(used["path"])], cut)
    for domain in tables.DOMAINS:
        (store.crops / domain).mkdir(parents=True, exist_ok=True)
    missing = crop_images.missing(planned, crop_images.known(store, planned))
    log.info(f"shard {shard.number} of {shard.of}: {len(missing)} of {len(planned)} scans are to be cropped")
    for made in crop_images.batches(data, missing, store.crops):
        if made.images:
            store.add_piece(CROPPED_PIECES, crop_images.rows(made.images, cut))


def resolve_domains(domains: Sequence[str], has_regions: bool) -> tuple[str, ...]:
    """Return the domains to train: those requested, else cropped if there are regions, else normal.

    Raises:
        InputError: A domain is unknown, or cropped is requested without any region.
    """
    unknown = [d for d in domains if d not in tables.DOMAINS]
    if unknown:
        raise InputError(f"domain {unknown[0]!r} is unknown; choose from {', '.join(tables.DOMAINS)}")
    if "cropped" in domains and not has_regions:
        raise InputError(
            "the cropped domain needs regions, but there are none: give them with --rois rois.csv, provide crops with "
            "--crops DIR, or train on whole frames with --domains normal"
        )
    return tuple(dict.fromkeys(domains)) or (("cropped",) if has_regions else ("normal",))


def _require_examples(scans: pd.DataFrame, regions: pd.DataFrame, domain: str, splits: Sequence[str]) -> None:
    """Raise InputError if a split has no image of a class in this domain."""
    have = tables.examples_of(scans, regions, domain).groupby(["split", "class"]).size()
    for split in splits:
        for name in sorted(tables.used(scans)["class"].unique()):
            if (split, name) not in have.index:
                raise InputError(
                    f"the {domain} domain has no image of class {name} in the {split} split: add regions or scans"
                )


def _read(data: Path, splits: Sequence[str]) -> DataVersion:
    """Read a data version, and keep only the scans of some splits."""
    version = DataVersion.read(data)
    if set(splits) == set(tables.SPLITS):
        return version
    scans = version.scans[version.scans["split"].isin(splits)].reset_index(drop=True)
    regions = version.regions[version.regions["path"].isin(scans["path"])].reset_index(drop=True)
    return replace(version, scans=scans, regions=regions)


def _count(scans: pd.DataFrame, regions: pd.DataFrame, planned: Sequence[Planned], made: Made) -> dict[str, Any]:
    """Return the facts that follow from the tables and the images."""
    used = tables.used(scans)
    frames = used[used["domain"] == "normal"]
    kept = [plan for plan in planned if plan.path not in made.lost]
    return {
        "digest": tables.digest(scans, regions),
        "scans": len(used),
        "patients": int(used["patient"].nunique()),
        "regions": len(regions),
        "without_region": int((~frames["path"].isin(regions["path"])).sum()),
        "scan_area_not_found": sum(1 for plan in kept if not made.images[plan.main].found),
        "cropped": made.scans,
    }


def _report(scans: pd.DataFrame, facts: DataRecord, made: Made, planned: int, output: Path) -> None:
    """Log what was made of `planned` scans."""
    used = tables.used(scans)
    log.info(
        f"normal: {(used['domain'] == 'normal').sum()} frames; cropped: {facts.regions} regions; "
        f"{facts.without_region} frames without a region stay in normal only; scan area not found in "
        f"{facts.scan_area_not_found}"
    )
    if made.scans < planned:
        log.info(f"{made.scans} of {planned} scans were cropped; the images of the others already exist")
    if made.lost:
        log.info(f"quarantined since ingest: {len(made.lost)}, see {output / tables.QUARANTINE}")


def _filled(
    scans: pd.DataFrame, regions: pd.DataFrame, planned: Sequence[Planned], made: Made
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return both tables with their images filled in.

    Lost scans are quarantined, and their regions are left out.
    """
    images, lost = made.images, made.lost
    kept = [plan for plan in planned if plan.path not in lost]
    paths = [plan.path for plan in kept]
    mains = pd.DataFrame([images[plan.main] for plan in kept], paths, columns=Image._fields)
    frames = mains[[plan.domain == "normal" for plan in kept]]
    for column, values in (("normal_path", frames["file"]), ("normal_sha256", frames["sha256"])):
        scans[column] = scans["path"].map(values).astype("string")
    for column in tables.AREA:
        scans[column] = scans["path"].map(mains[column]).astype("Int64")
    scans["quarantine_reason"] = scans["quarantine_reason"].fillna(scans["path"].map(dict(lost)).astype("string"))
    regions = regions[~regions["path"].isin(lost)].reset_index(drop=True)
    by_path = {plan.path: plan for plan in kept}
    plans, boxes = [by_path[path] for path in regions["path"].tolist()], crops.boxes_of(regions)
    places = list(zip(plans, boxes, strict=True))
    for name, made_of in (
        ("crop", [images[plan.keys[box]] for plan, box in places]),
        ("jitter", [images[plan.keys[plan.jittered[box]]] if plan.jittered else None for plan, box in places]),
    ):
        files = [None if image is None else image.file for image in made_of]
        sums = [None if image is None else image.sha256 for image in made_of]
        regions[f"{name}_path"] = pd.Series(files, regions.index, "string")
        regions[f"{name}_sha256"] = pd.Series(sums, regions.index, "string")
    return scans, regions


def run(*, data: Path, output: Path, options: Annotated[CropOptions, FLAT] = CropOptions()) -> None:
    """Make the images of both domains: normal (scan area, scanner frame blanked) and cropped (a square per region).

    Args:
        data: Data version of thyroid.ingest.
        output: Folder of the new data version.
        options: Which images are made, and how.
    """
    crop(data, output, options)


main = command.main("python -m thyroid.crop", run)

if __name__ == "__main__":
    raise SystemExit(main())
