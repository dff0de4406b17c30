"""Prepares a search: its folder, its plan, and the features that the first stage works on."""

import hashlib
import json
import logging
import shutil
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from thyroid import atomic, storage
from thyroid.model import backbones
from thyroid.records.settings import Settings
from thyroid.storage import mirror
from thyroid.sweep import plans, sharing
from thyroid.sweep.images import development, job_of
from thyroid.sweep.options import SweepOptions
from thyroid.sweep.plans import HEADS, IMAGES, Plan, read

if TYPE_CHECKING:
    from thyroid.train.cross_validation import Development

log = logging.getLogger(__name__)

CODE = 2
"""Version of the code that decides a trial's result. Raise it with any change.

This code is thyroid.sweep.heads and images, train.head, train.twophase, model.inputs and crop.
"""
TAPS = 3
"""Number of last blocks of the body whose features are tried."""

_DEFAULTS = SweepOptions()


def prepare(
    data: Path, root: storage.Location, backbone: str, domain: str = "", options: SweepOptions = _DEFAULTS
) -> Plan:
    """Create the study's folder below `root`, or find it there, and compute the features of every tap.

    Args:
        data: Data version of `crop`. Not even the files of its test images are opened.
        root: Folder, or address in a bucket, that the workers share and that outlives them.
        backbone: Name of the backbone, as for `train.train`.
        domain: Domain of the images; empty for the first domain of the data version.
        options: How the trials are trained.

    Returns:
        The plan of the study.

    Raises:
        InputError: As for `train.train`.
    """
    from thyroid.train.cross_validation import Development

    row = backbones.get(backbone)
    start = backbones.find_weights(row, options.weights)
    images = Development.read(data, domain)
    images = replace(images, table=development(images.data, images.domain))
    parts = images.parts(options.folds, options.seed)
    table = images.table.assign(**parts)
    table["fold"] = sum((table[name] == "held-out") * int(name.split("-")[1]) for name in parts)
    facts = _facts(row, start, images, options)
    name = f"{row.name}-{images.domain}-{_key(facts, start, table, list(parts))}"
    plan = Plan(mirror.mirror(root) / name, facts, table)
    with sharing.of(plan.folder).held("prepare.lock"):
        if plan.place.read(plans.PLAN)[1] != storage.ABSENT:
            plan = read(plan.address)
            finished = [f"{plan.shared(stage).finished()} trials of {stage}" for stage in (HEADS, IMAGES)]
            log.info(f"{plan.address}: resumes, {' and '.join(finished)} are finished")
            return plan
        log.info(f"{plan.address}: a new search on {len(table)} development images of {facts['patients']} patients")
        _write_features(plan, start)
        kept = ["path", "class", "label", "patient", "group", "fold", *parts]
        plan.place.write(plans.TABLE, table[kept].to_parquet(index=False))
        plan.place.write(plans.PLAN, atomic.to_json(facts).encode())  # written last, since it marks the study as whole
    plan = read(plan.address)
    default = plan.default.to_dict()
    plan.shared(HEADS).enqueue([{name: default[name] for name in plan.space(HEADS)}])
    return plan


def _facts(
    row: backbones.Backbone, start: str | Path | None, images: "Development", options: SweepOptions
) -> dict[str, Any]:
    """Return the content of plan.json."""
    frames = images.data.used.query("domain == 'normal'")["path"]
    size = options.image_size
    sizes = {max(backbones.MIN_SIZE, round(size * share / 16) * 16) for share in (0.5, 1, 1.5)}
    return {
        "backbone": row.name,
        "domain": images.domain,
        "weights": backbones.weights_name(start),
        "image_size": size,
        "image_sizes": sorted({*sizes, size}),
        "epochs": options.epochs,
        "batch_size": options.batch_size,
        "folds": options.folds,
        "seed": options.seed,
        "taps": backbones.taps(row, TAPS),
        "margins": images.domain == "cropped" and bool(images.data.regions["path"].isin(frames).any()),
        "margin": images.data.margin,
        "data_digest": images.data.digest,
        "images": len(images.table),
        "patients": int(images.table["patient"].nunique()),
        **images.classes.to_dict(),
    }


def _key(facts: dict[str, Any], start: str | Path | None, table: pd.DataFrame, parts: list[str]) -> str:
    """Return a digest of everything that would change the results of the search."""
    from thyroid.model.artefact import sha256

    content = facts | {
        "weights": sha256(start) if isinstance(start, Path) else facts["weights"],
        "table": table[["sha256", "class", "patient", *parts]].to_numpy().tolist(),
        "jittered": table["jitter_sha256"].fillna("").tolist(),
        "code": [version("thyroid"), CODE],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _write_features(plan: Plan, start: str | Path | None) -> None:
    """Compute the features of every tap and view, which takes most of the preparation."""
    from thyroid.train import twophase

    work = plan.folder / "work" / "features"
    for tap in plan.facts["taps"]:
        settings = Settings(tap=tap, image_size=plan.facts["image_size"])
        with job_of(plan, start, settings, plan.table, work / (tap or "last")) as job:
            plan.write_features(tap, twophase.freeze(job).views)
    shutil.rmtree(work)
