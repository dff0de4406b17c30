"""Finds every error of a run on this machine that can be found before its first step starts."""

import uuid
from dataclasses import fields
from pathlib import Path
from typing import Any

from pipelines.configuration import LOCATIONS, WRITTEN, Configuration
from pipelines.output import MARK
from thyroid import crop, storage
from thyroid.clinical import clinical_csv, descriptors_csv
from thyroid.data import classes
from thyroid.data import store as data_store
from thyroid.errors import InputError
from thyroid.evaluate.audits import audits
from thyroid.evaluate.options import EvaluateOptions
from thyroid.ingest import labels
from thyroid.ingest.options import IngestOptions
from thyroid.locate.options import LocateOptions
from thyroid.model import backbones
from thyroid.registry import changes
from thyroid.storage import ABSENT
from thyroid.train import settings

NUMBERS = {"minimum": 0, "folds": 0, "head_trials": 1, "image_trials": 0}
"""Least value of whole numbers that no step checks before it starts."""


def check(run: Configuration, output: Path) -> None:
    """Check the configuration of a training or of a search.

    Args:
        run: The configuration.
        output: Absolute path of the output.

    Raises:
        InputError: A value, or a file that it names, cannot be used.
    """
    values = run.values
    for name, least in NUMBERS.items():
        if name in values and values[name] < least:
            raise InputError(f"--{name.replace('_', '-')} {values[name]}: give at least {least}")
    IngestOptions(**_fields(IngestOptions, values))
    waive = run.listed("waive") if "waive" in values else ()
    EvaluateOptions(**_fields(EvaluateOptions, values) | {"waive": waive})
    data_store.site(run["site"])
    _check_buckets(run)
    _check_tables(run)
    if "recipe" in values:
        _check_training(run)
    for name in run.backbones:
        backbones.find_weights(backbones.get(name), run["weights"])
    has_regions = not run["scans"] or bool(run["rois"] or run["crops"])
    crop.resolve_domains(run.listed("domains"), has_regions=has_regions)
    _check_folders(run, output)


def _check_buckets(run: Configuration) -> None:
    """Check that the buckets exist, that this account may use them, and that those that are written keep promises.

    The tables are not asked for here, since they are read whole.
    """
    for name in ("scans", "crops", *sorted(WRITTEN & run.values.keys())):
        if not storage.is_bucket(run[name]):
            continue
        place, probe = storage.at(run[name]), f".preflight-{uuid.uuid4().hex}"
        assert isinstance(place, storage.Bucket)
        place.read(probe)
        if name in WRITTEN:
            place.require_preconditions()
            place.write(probe, b"", ABSENT)
            place.delete([probe])


def _fields(options: Any, values: Any) -> dict[str, Any]:
    return {field.name: values[field.name] for field in fields(options) if field.name in values}


def _check_tables(run: Configuration) -> None:
    """Check the tables that come with the scans."""
    if not run["scans"] and (run["rois"] or run["crops"] or run["labels"]):
        raise InputError("--rois, --crops and --labels need --scans")
    if run["rois"] and not storage.file(run["rois"]).is_file():
        raise InputError(f"--rois {run['rois']}: no such file")
    known = classes.parse(run["classes"])
    if run["labels"]:
        labels.read(run["labels"], known)


def _check_training(run: Configuration) -> None:
    """Check what only a training has: the recipe, margin and jitter of its crops, its further tables and waivers."""
    if run["train_on"] not in changes.TRAIN_ON:
        raise InputError(f"--train-on {run['train_on']}: choose from {', '.join(changes.TRAIN_ON)}")
    recipe = run["recipe"]
    if settings.is_file(recipe):
        raise InputError(f"--recipe {recipe}: this is a file; give it as --settings")
    settings.resolve(recipe, run["settings"])
    crop.CropOptions(margin=settings.crop_margin(run["margin"], run["settings"]), jitter=run["jitter"])
    if recipe not in backbones.RECIPES:
        raise InputError(f"--recipe {recipe}: choose from {', '.join(backbones.RECIPES)}")
    if recipe == "warm" and run["folds"]:
        raise InputError("--folds cannot be used with --recipe warm: the champion was trained on the held-out patients")
    LocateOptions(**_fields(LocateOptions, run.values))
    audits.check_waivers(run.listed("waive"))
    if run["clinical"]:
        clinical_csv.read(Path(storage.file(storage.parted(run["clinical"])[0])))
    if run["descriptors"]:
        descriptors_csv.check(run["descriptors"])


def _check_folders(run: Configuration, output: Path) -> None:
    """Check that the folders exist and that neither contains the other, and that the output may be replaced."""
    locations = [run.values[name] for name in LOCATIONS & run.values.keys()]
    for path in (str(output), *locations, run["weights"]):
        if "python3" in path:
            # kfp's SubprocessRunner replaces this text in every argument with the interpreter's path
            raise InputError(f"{path}: paths that contain 'python3' are not supported; rename or move it")
    for option, given in (("--scans", run["scans"]), ("--crops", run["crops"])):
        if not given or storage.is_bucket(given):
            continue
        folder = Path(given)
        if not folder.is_dir():
            raise InputError(f"{option} {given}: no such folder")
        if output.is_relative_to(folder) or folder.is_relative_to(output):
            raise InputError(
                f"{option} {given} and --output {output}: neither may contain the other; choose another --output"
            )
    # Every run replaces folders in the output, so the output must come from an earlier run.
    if output.is_dir() and any(output.iterdir()) and not (output / MARK).exists():
        raise InputError(f"{output}: not empty and not the output of an earlier run; choose a new folder with --output")
