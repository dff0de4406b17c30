"""Pool the counts that several sites shared of a model: `python -m thyroid.pool`.

Figures by site, over the sites (`effects`), without each site, and of all patients together (`figures`). What a site
withholds is put in at its worst and at its best, and both are given.
"""

import datetime
import logging
from collections.abc import Sequence
from pathlib import Path

from thyroid import RESEARCH_USE_ONLY
from thyroid.errors import InputError
from thyroid.model.artefact import code_version
from thyroid.records.share import SMALLEST, PooledSite, PoolRecord, SiteRecord
from thyroid.validate.share import check, figures, report

log = logging.getLogger(__name__)

NAMED = 10
"""Most sites that a sentence names."""
FEW = 5
"""Number of sites below which the variance between them is hardly known."""


def pool(files: Sequence[Path], keys: Path, output: Path, *, model: str = "") -> PoolRecord:
    """Check the sites' files, pool them, and write report.html, pool.json and forest.png.

    Args:
        files: Files that `share.write` wrote, one per site.
        keys: Folder with the sites' public keys.
        output: Folder to write to.
        model: SHA-256 of the model.json that they must be about; empty for that of most files.

    Raises:
        InputError: A file is refused (see `check.read`), `model` is no SHA-256, or `output` is a file.
    """
    if model and (len(model) != 64 or set(model) - set("0123456789abcdef")):
        raise InputError(f"model {model}: give the SHA-256 of model.json, 64 hexadecimal digits")
    if output.exists() and not output.is_dir():
        raise InputError(f"{output}: a file; name a folder for --output")
    records = check.read(files, keys, model)
    first, found = records[0], figures.pooled(records)
    sites = [_site(record) for record in records]
    failed = [site.site for site in sites if site.audit == "failed"]
    record = PoolRecord(
        notice=RESEARCH_USE_ONLY,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        code_version=code_version(),
        model=first.model,
        name=first.name,
        version=first.version,
        threshold=first.threshold,
        sites=sites,
        figures=found,
        subgroups=figures.subgroups(records),
        failed=failed,
        warnings=_warnings(records, failed),
    )
    output.mkdir(parents=True, exist_ok=True)
    record.write(output / "pool.json")
    report.write(output, record)
    log.info(f"pooled {len(records)} {'site' if len(records) == 1 else 'sites'}: {output / 'report.html'}")
    log.info(RESEARCH_USE_ONLY)
    return record


def _site(record: SiteRecord) -> PooledSite:
    return PooledSite(
        site=record.site,
        created=record.created,
        boxes=record.boxes,
        malignant=record.malignant.patients if record.malignant else None,
        benign=record.benign.patients if record.benign else None,
        audit=record.audit.outcome,
        findings=record.audit.findings,
        left_out=record.left_out,
    )


def _warnings(records: Sequence[SiteRecord], failed: Sequence[str]) -> list[str]:
    """Return what a reader must know before the figures."""
    count, found = len(records), list[str]()
    if count == 1:
        found.append("Only one site: these are its own figures. How much sites differ needs more of them.")
    elif count == 2:
        found.append("Only two sites: what a further site would see (the prediction interval) cannot be given.")
    elif count < FEW:
        found.append(f"Only {count} sites: how much sites differ is hardly known, so the intervals are wide.")
    if failed:
        found.append(
            f"The shortcut audit fails at {_named(failed)}: the model may decide there by something other than the "
            "nodule."
        )
    if unaudited := [record.site for record in records if record.audit.outcome == "not run"]:
        found.append(f"The shortcut audit was not run at {_named(unaudited)}.")
    if hidden := [record.site for record in records if _withheld(record)]:
        found.append(
            f"Counts of fewer than ten patients are withheld at {_named(hidden)}; figures that need them are given "
            "for the worst and for the best case."
        )
    if small := [record.site for record in records if _hardly_known(record)]:
        found.append(
            f"At {_named(small)} a class has fewer than twenty patients. How many of them are called wrong is not "
            "shared, so that the worst and the best case lie far apart; see the figures without each site."
        )
    if drawn := [record.site for record in records if record.synthetic]:
        found.append(f"Scans of {_named(drawn)} are synthetic phantoms: figures with them say nothing about patients.")
    if unchecked := [record.site for record in records if record.unchecked]:
        found.append(f"{_named(unchecked)} could not compare its patients with those that the model was made from.")
    kinds = sorted({record.boxes for record in records})
    if len(kinds) > 1:
        found.append(
            f"The sites used different kinds of boxes ({', '.join(kinds)}), which may be part of how they differ."
        )
    return found


def _named(sites: Sequence[str]) -> str:
    """Return the names of sites; of many the first ones and how many more there are."""
    more = len(sites) - NAMED
    return ", ".join(sites) if more <= 0 else f"{', '.join(sites[:NAMED])} and {more} more"


def _hardly_known(record: SiteRecord) -> bool:
    """Return whether nothing is known of a side but that some of its patients are on each side of the threshold."""
    sides = (record.malignant, record.benign)
    return any(side is not None and side.patients < 2 * SMALLEST and side.called[0] < side.called[1] for side in sides)


def _withheld(record: SiteRecord) -> bool:
    sides = (record.malignant, record.benign)
    return any(side is not None and side.called[0] < side.called[1] for side in sides)
