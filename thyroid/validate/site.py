"""The scans of the site: ingested with the model's classes, without those that the model knows, and cropped as it is.

What the model was trained or tested on proves nothing here. Such scans are found by their bytes, by their picture,
which survives another export, and by their patient, if the site is a cohort that the model was trained or fitted on.
"""

import logging
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from thyroid import crop
from thyroid.crop import CropOptions
from thyroid.data import overlap, tables
from thyroid.data.classes import Classes
from thyroid.data.filenames import CLASSES, POSITIVE
from thyroid.data.version import DataVersion
from thyroid.errors import InputError
from thyroid.imaging import phantom
from thyroid.ingest.ingest import ingest
from thyroid.ingest.options import IngestOptions
from thyroid.model.artefact import CARD, SCANS, Artefact
from thyroid.records.validation import SiteScans
from thyroid.registry import changes
from thyroid.registry.registry import Registry
from thyroid.train.record import STARTED
from thyroid.validate.options import ValidateOptions

log = logging.getLogger(__name__)

REASONS = {
    "trained_file": "the model was trained or fitted on this very file",
    "trained_picture": "the model was trained or fitted on this picture, perhaps encoded otherwise",
    "trained_patient": "the model was trained or fitted on scans of this patient",
    "tested_file": "the model was tested on this very file",
    "tested_picture": "the model was tested on this picture, perhaps encoded otherwise",
    "tested_patient": "the model was tested on scans of this patient",
}
"""Why a scan is taken out, in words, by the names in `SiteScans.taken_out`. Earlier reasons go before later ones."""


class KnownError(InputError):
    """The model knows every usable scan of the site."""


@dataclass(frozen=True)
class Site:
    """The scans of the site.

    Attributes:
        data: Their data version, all in the test split. `data.used` is exactly what is validated.
        taken_out: File (path of the scan) and reason (in words) of every usable scan that the model knows.
        facts: Counts for validation.json.
    """

    data: DataVersion
    taken_out: pd.DataFrame
    facts: SiteScans

    def without(self, lost: Collection[str]) -> SiteScans:
        """Return the counts without scans that could not be judged, by path; they count as unusable."""
        used = self.data.used
        judged = used[~used["path"].isin(list(lost))]
        quarantined = self.facts.quarantined + len(used) - len(judged)
        return self.facts.model_copy(update={"quarantined": quarantined, **_describe(self.data, judged)})


def read(options: ValidateOptions, artefact: Artefact, work: Path) -> Site:
    """Ingest the scans of the site, take out those that the model knows, and crop the others.

    Args:
        options: The scans and how to read them.
        artefact: The registered version, as `Registry.find` fetched it with its list of scans.
        work: Folder for the data versions: ingested, and data with the images.

    Returns:
        The site.

    Raises:
        KnownError: The model knows every usable scan.
        InputError: There is no usable scan, no frame has a region and the model needs one, the list of the model's
            scans is missing, or as for `ingest` and `crop`.
    """
    record = artefact.record
    request = IngestOptions(
        options.scans,
        rois=options.rois,
        labels=options.labels,
        classes=str(Classes.from_record(record)),
        site=options.site,
        seed=options.seed,
        all_test=True,
    )
    ingested = DataVersion.read(ingest(request, work / "ingested").folder)
    known, unchecked = _known(options, artefact, ingested.test_scans)
    if len(known) == len(ingested.used):
        told = ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in _counts(known).items())
        raise KnownError(
            f"{options.scans}: the model knows all {len(known)} usable scans ({told}), so that none is left to "
            "validate it on; give scans that it was neither trained nor tested on"
        )
    _take_out(ingested, known)
    # Every scan has its image of this domain, and so no class lacks one; the crops of the regions are made as well.
    cut = CropOptions(["normal"], margin=record.margin, jitter=0.0, splits=("test",))
    data = DataVersion.read(crop.crop(ingested.folder, work / "data", cut).folder)
    used = data.used
    framed = used["path"].isin(data.regions["path"])
    if record.serving_domain == "cropped" and record.locator is None and not framed.any():
        raise InputError(
            f"{options.scans}: none of the {len(used)} scans has a region, and this model has no locator to find the "
            "nodule; give rois.csv with --rois"
        )
    facts = SiteScans(
        listed=len(ingested.scans),
        quarantined=len(ingested.scans) - len(used) - len(known),
        taken_out=_counts(known),
        unchecked=unchecked,
        synthetic=data.facts.synthetic,
        **_describe(data, used),
    )
    taken_out = pd.DataFrame({"file": ingested.scans["path"].loc[known.index], "reason": known.map(REASONS)})
    log.info(f"site: {facts.scans} scans of {facts.patients} patients; {len(known)} that the model knows are left out")
    return Site(data, taken_out.reset_index(drop=True), facts)


def _describe(data: DataVersion, scans: pd.DataFrame) -> dict[str, Any]:
    """Return the fields of `SiteScans` that say what is validated."""
    return {
        "scans": len(scans),
        "patients": int(scans["patient"].nunique()),
        "classes": {name: int((scans["class"] == name).sum()) for name in data.classes.names},
        "malignant_patients": int(scans.loc[scans["label"] == CLASSES[POSITIVE], "patient"].nunique()),
        "without_region": int((~scans["path"].isin(data.regions["path"])).sum()),
    }


def _known(options: ValidateOptions, artefact: Artefact, scans: pd.DataFrame) -> tuple[pd.Series, str | None]:
    """Return why scans are taken out, as keys of `REASONS` by index, and why patients could not be compared.

    Args:
        options: The registry.
        artefact: The registered version.
        scans: The usable scans, as `overlap.known` takes them.
    """
    trained, tested, unchecked = _history(options, artefact)
    reasons = pd.Series(pd.NA, scans.index, "string")
    for how, part in (("trained", trained), ("tested", tested)):
        found = overlap.known(options.registry, part, scans)
        # Under whatever number the model knows a patient, all scans of that patient are known by one of them.
        patients = scans["patient"].isin(scans.loc[found.ways.any(axis=1), "patient"])
        found = replace(found, ways=found.ways.assign(patient=patients))
        reasons = reasons.fillna(f"{how}_" + found.reasons)
        unchecked = unchecked or found.problem or found.note
    told = None if unchecked is None else f"version {artefact.record.version}: {unchecked}"
    return reasons.dropna(), told


def _history(options: ValidateOptions, artefact: Artefact) -> tuple[pd.DataFrame, pd.DataFrame, str | None]:
    """Return what a version was developed on, champions that it started from included, and what it was tested on.

    Returns:
        Rows of `changes.scans_of` of training and validation, those of the test, and in words whose scans are unknown.
    """
    own, record = changes.scans_of(artefact.folder), artefact.record
    trained, unknown, versions = [own[own["split"] != "test"]], None, {str(record.version)}
    while record.weights.startswith(STARTED) and (start := record.weights.removeprefix(STARTED)) not in versions:
        versions.add(start)
        try:
            folder = Registry(options.registry).find(start, only=(*CARD, SCANS))
            older, record = changes.scans_of(folder), Artefact.read(folder).record
        except InputError as error:
            unknown = f"it started from {STARTED}{start}, whose training scans are unknown ({error})"
            break
        trained.append(older[older["split"] != "test"])
    return pd.concat(trained, ignore_index=True), own[own["split"] == "test"], unknown


def _counts(reasons: pd.Series) -> dict[str, int]:
    """Return the number of scans by reason, in the order of `REASONS`, without those that no scan has."""
    counts = Counter(reasons.tolist())
    return {reason: counts[reason] for reason in REASONS if counts[reason]}


def _take_out(ingested: DataVersion, known: pd.Series) -> None:
    """Quarantine scans that the model knows, and remove their regions, in the files of a data version.

    quarantine.csv stays as it is: it tells a site what is wrong with its files, and with these nothing is.
    """
    scans = ingested.scans.copy()
    scans.loc[known.index, "quarantine_reason"] = known.map(REASONS).astype("string")
    used = tables.used(scans)
    regions = ingested.regions[ingested.regions["path"].isin(used["path"])].reset_index(drop=True)
    synthetic = 0
    if ingested.facts.synthetic:
        synthetic = sum(_is_synthetic(ingested.folder / path) for path in used["local_path"].tolist())
    tables.write(ingested.folder, scans, regions, ingested.facts.model_copy(update={"synthetic": synthetic}))


def _is_synthetic(file: Path) -> bool:
    with file.open("rb") as opened:
        return phantom.MARK in opened.read(1024)
