"""New scans that never went through the endpoint, judged as it would have judged them.

They are read as those of another hospital are (`thyroid.validate.site`) and judged by the endpoint's own code
(`thyroid.validate.endpoint`). The result has the columns of the decision log, so that everything after it treats both
alike.
"""

import datetime
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from thyroid.data import pseudonyms, tables
from thyroid.data.filenames import SCORE
from thyroid.data.version import DataVersion
from thyroid.model.artefact import Artefact
from thyroid.records.watch import AUTO, FRAME, GIVEN, Decision
from thyroid.validate import endpoint, site, unlike
from thyroid.validate.endpoint import BOX, Endpoint
from thyroid.validate.options import ValidateOptions
from thyroid.validate.site import KnownError, Site
from thyroid.watch.options import WatchOptions

_SOURCES = {endpoint.GIVEN: GIVEN, endpoint.AUTOMATIC: AUTO, endpoint.FRAME: FRAME}
_UNNAMED = "new scans"
"""Cohort of scans whose hospital is not named. The model knows no patient of it."""


@dataclass(frozen=True, eq=False)
class Judged:
    """What the model makes of new scans.

    Attributes:
        decisions: One row per judged image, as `thyroid.watch.log.read` returns decisions.
        set_aside: File and reason (in words) of every scan that was not judged: it cannot be used, or the model knows
            it.
        unlike: In one sentence, whether grey levels and geometry are those of the training scans; None if the model
            does not record these, or nothing was judged.
    """

    decisions: pd.DataFrame
    set_aside: pd.DataFrame
    unlike: str | None


def judge(options: WatchOptions, artefact: Artefact, released: bool, secret: bytes, work: Path) -> Judged:
    """Judge new scans.

    A model of crops judges the given boxes, and the frames without one by its own box. If it has no locator, frames
    without a box are set aside.

    All decisions are of the night that is looked at: a file's own date may be that of a copy. The id of a decision
    depends only on the version, the image and the box, so that an archive takes a scan once however often it is judged.

    Args:
        options: The scans, their boxes, the hospital and the night.
        artefact: The registered version, as `Registry.find` fetched it with its list of scans.
        released: Whether it is the champion.
        secret: Key of the hashes.
        work: Folder for passing files.

    Raises:
        NoScanError: There is no scan.
        InputError: No scan is usable, no frame has a box and the model needs one, or a file cannot be read.
    """
    cohort = options.site or _UNNAMED
    request = ValidateOptions(options.registry, options.scans, cohort, rois=options.rois, seed=options.seed)
    try:
        found = site.read(request, artefact, work)
    except KnownError as error:
        return Judged(_table([]), pd.DataFrame({"file": [str(options.scans)], "reason": [str(error)]}), None)
    with Endpoint(artefact.folder, released) as model:
        judged = _predict(model, found.data)
        form, lost = model.form, model.lost
    judged["image"] = [pseudonyms.of_file(secret, sha256) for sha256 in judged["sha256"]]
    judged["patient"] = [pseudonyms.of_patient(secret, options.site, int(patient)) for patient in judged["patient"]]
    night = datetime.datetime.combine(options.last_night, datetime.time(), datetime.UTC)
    published = datetime.datetime.fromisoformat(artefact.publication.created)
    moment = max(night, published)  # on the day of the release, midnight was before it
    decisions = [_decision(row, artefact.publication.version, form, moment) for row in judged.to_dict("records")]
    return Judged(_table(decisions), _set_aside(found, judged, lost), _unlike(artefact, found, judged))


def _predict(model: Endpoint, data: DataVersion) -> pd.DataFrame:
    """Return the predictions of every image, with source, number, frame_width and frame_height."""
    found = []
    judged: set[str] = set()
    frames = data.used[data.used["domain"] == "normal"]
    for kind in model.kinds:
        if judged.issuperset(frames["path"]):
            break
        table = model.predict(data, kind)
        table = table[~table["path"].isin(judged)]
        judged |= set(table["path"])
        found.append(table.assign(source=_SOURCES[kind], number=table.groupby("path").cumcount()))
    sizes = data.used.set_index("path")[["width", "height", *tables.AREA]]
    names = {"width": "frame_width", "height": "frame_height"}
    return pd.concat(found, ignore_index=True).join(sizes.rename(columns=names), on="path")


def _decision(row: dict[Any, Any], version: int, form: str, moment: datetime.datetime) -> Decision:
    """Build the decision on one image from its row of `_predict`."""
    box = [int(row[name]) for name in (tables.AREA if row["source"] == FRAME else BOX)]
    key = f"{version}/{row['image']}/{row['source']}/{row['number']}"
    name = hashlib.sha256(key.encode()).hexdigest()[:32]
    optional = {one: row[one] for one in ("novelty", "distance", "box_probability") if not pd.isna(row[one])}
    return Decision(
        id=name,
        request=name,
        number=row["number"],
        time=moment.isoformat(timespec="milliseconds"),
        image=row["image"],
        patient=row["patient"],
        version=version,
        form=form,
        source=row["source"],
        probability=row[SCORE],
        decision="abstain" if row["undecided"] else row["decision"],
        reasons=row["undecided"].split(",") if row["undecided"] else [],
        width=row["frame_width"],
        height=row["frame_height"],
        box=box,
        **optional,
    )


def _table(decisions: list[Decision]) -> pd.DataFrame:
    table = pd.DataFrame([one.model_dump() for one in decisions], columns=list(Decision.model_fields))
    floats = dict.fromkeys(("probability", "novelty", "distance", "box_probability"), float)
    table["time"] = pd.to_datetime(table["time"], utc=True)
    return table.astype(floats).assign(unit=table["patient"])


def _set_aside(found: Site, judged: pd.DataFrame, lost: dict[str, str]) -> pd.DataFrame:
    """Return file and reason of every scan that was not judged."""
    missing = found.data.used.loc[~found.data.used["path"].isin([*judged["path"], *lost]), ["path", "domain"]]
    crops = missing["domain"] == "cropped"
    reasons = crops.map({True: "it came in cropped", False: "it has no box, and the model has no locator"})
    rest = pd.DataFrame({"file": missing["path"], "reason": reasons})
    unread = pd.DataFrame(list(lost.items()), columns=["file", "reason"])
    quarantine = tables.read_quarantine(found.data.folder, found.data.facts)
    return pd.concat([quarantine, found.taken_out, unread, rest], ignore_index=True)


def _unlike(artefact: Artefact, found: Site, judged: pd.DataFrame) -> str | None:
    compared = unlike.measure(artefact.record, found.data) if len(judged) else None
    return None if compared is None else compared.summary
