"""The external validations of a version: validations.json and validations.md in its folder of the registry.

They are written after the version was published, so model.json has no hash of them, and the version stays valid. Every
change replaces exactly the file that it was based on. validations.md says the same to people, as the external section
of the model card.
"""

import functools
import json
import logging
import os
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from thyroid import RESEARCH_USE_ONLY, atomic, errors, storage
from thyroid.errors import InputError
from thyroid.interval import Interval, format_interval
from thyroid.records.validation import Beside, ValidationEntry, ValidationsRecord
from thyroid.registry.aliases import dump
from thyroid.registry.beside.file import at, require_model, require_version
from thyroid.registry.registry import BESIDE, Registry
from thyroid.storage import ABSENT, ChangedError

log = logging.getLogger(__name__)

JSON, MARKDOWN, *_ = BESIDE
BOXES = {"given": "given boxes", "automatic": "automatic boxes", "frame": "full frames"}
"""What each kind of boxes is called."""

_PAUSE = 0.2  # maximum seconds before an entry is added again because another process was faster
_FIGURES = {
    "auroc": "AUROC",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "ppv_at_prevalence": "PPV at the stated prevalence",
    "npv_at_prevalence": "NPV at the stated prevalence",
}
_CALIBRATION = {
    "in_the_large": "in the large (0 is perfect; above 0, the probabilities are too low)",
    "slope": "slope (1 is perfect; below 1, the probabilities are too extreme)",
    "observed_to_expected": "observed to expected (1 is perfect)",
}


def record(registry: Registry, version: int, entry: ValidationEntry) -> None:
    """Add a validation to those of a version, and write its validations.md anew.

    A validation that is there already (same site, data, boxes and figures) is not added twice. If it was registered as
    a recalibration since, that is noted.

    Args:
        registry: Registry of the version.
        version: Number of the version.
        entry: Validation.

    Raises:
        InputError: There is no such version, the entry is of another model, validations.json is damaged, or the
            registry cannot be written.
    """
    require_model(registry, version, entry.model, "validated", "validate it again")
    home = at(registry)
    while True:
        content, generation = _read(registry, version)
        _add(content, entry)
        try:
            home.write(f"{version}/{JSON}", dump(content), generation)
            break
        except ChangedError:
            time.sleep(random.uniform(0, _PAUSE))
    _write_markdown(registry, version)
    require_version(registry, version)


def check_writable(registry: Registry, version: int) -> None:
    """Check before a long measurement that its validation can be kept. Of a bucket this shows only when it is written.

    Args:
        registry: Registry of the version.
        version: Number of the version.

    Raises:
        InputError: The user may not write to the version's folder, its file system is read-only, or validations.json
            is damaged.
    """
    _read(registry, version)
    if storage.is_bucket(registry.root):
        return
    folder = Path(registry.address(version))
    lock = folder.parent / ".lock"
    for place in (folder, lock if lock.exists() else folder.parent):
        if not os.access(place, os.W_OK):
            raise InputError(
                f"{place}: cannot be written, and the validation is kept beside the version; change the permissions, "
                "or copy the registry and validate with the copy"
            )


def read(registry: Registry, version: int) -> list[ValidationEntry]:
    """Return the validations of a version, oldest first.

    Args:
        registry: Registry of the version.
        version: Number of the version.

    Raises:
        InputError: validations.json is damaged.
    """
    return ValidationsRecord.parse(_read(registry, version)[0], _address(registry, version), "ignore").validations


def sites(entries: Sequence[ValidationEntry]) -> int:
    """Return the number of different sites of validations. Case and outer spaces of a name do not count."""
    return len({entry.site.strip().casefold() for entry in entries})


def falls(entry: ValidationEntry) -> bool:
    """Return whether the AUROC of a site, by image or by patient, is lower than that of the internal test.

    It is lower if the interval of the difference is wholly below 0.
    """
    differences = [entry.figures[name].difference for name in ("auroc", "patient_auroc") if name in entry.figures]
    return any(one is not None and one.high is not None and one.high < 0 for one in differences)


def fetch(registry: Registry, version: int, folder: Path) -> None:
    """Bring validations.json of a version in a bucket into a local copy of the version, which `find` leaves it out of.

    Args:
        registry: Registry of the version.
        version: Number of the version.
        folder: Local copy.

    Raises:
        InputError: The bucket cannot be read.
        OSError: The copy cannot be written.
    """
    data, generation = at(registry).read(f"{version}/{JSON}")
    local = folder / JSON
    if generation == ABSENT:
        local.unlink(missing_ok=True)
    elif not local.is_file() or local.read_bytes() != data:
        with atomic.replacing(local) as temporary:
            temporary.write_bytes(data)


def facts(folder: Path) -> list[dict[str, Any]] | None:
    """Return the validations in a version's folder as JSON, oldest first; None if the file is damaged.

    The file is read again only when it has changed. Its damage is then logged.

    Args:
        folder: Folder of a version.
    """
    path = folder / JSON
    try:
        found = path.stat()
    except FileNotFoundError:
        return []
    return _facts(path, (found.st_mtime_ns, found.st_size, found.st_ino))


@functools.lru_cache(maxsize=8)
def _facts(path: Path, state: tuple[int, int, int]) -> list[dict[str, Any]] | None:
    try:
        content = _parse(path.read_bytes(), str(path))
        return [entry.to_dict() for entry in ValidationsRecord.parse(content, path, "ignore").validations]
    except (InputError, OSError) as error:
        log.error("validations not read", extra={"fields": {"reason": errors.one_line(error)}})
        return None


def _address(registry: Registry, version: int) -> str:
    return storage.below(registry.address(version), JSON)


def _read(registry: Registry, version: int) -> tuple[dict[str, Any], str]:
    """Return the content of validations.json of a version, also fields that only newer releases know; its generation.

    Raises:
        InputError: The file is damaged.
    """
    data, generation = at(registry).read(f"{version}/{JSON}")
    if generation == ABSENT:
        return {"validations": []}, generation
    return _parse(data, _address(registry, version)), generation


def _parse(data: bytes, place: str) -> dict[str, Any]:
    try:
        content = json.loads(data)
        dump(content)  # refuses numbers that JSON does not have
        ValidationsRecord.parse(content, place, "ignore")
    except (ValueError, RecursionError) as error:
        raise InputError(f"{place}: damaged: {errors.one_line(error)[:200]}; restore the file from a backup") from None
    assert isinstance(content, dict)
    return content


def _add(content: dict[str, Any], entry: ValidationEntry) -> None:
    """Add an entry to the content of validations.json unless it is there already."""
    added = entry.to_dict()
    for known in content["validations"]:
        if all(known[name] == added[name] for name in ("site", "data_digest", "boxes", "figures")):
            if entry.recalibrated is not None:
                known["recalibrated"] = entry.recalibrated
            return
    content["validations"].append(added)


def _write_markdown(registry: Registry, version: int) -> None:
    """Write validations.md. If another process adds a validation at the same time, the later one is in it, too."""
    home = at(registry)
    while True:
        generation = home.read(f"{version}/{JSON}")[1]
        home.write(f"{version}/{MARKDOWN}", markdown(version, read(registry, version)).encode())
        if home.read(f"{version}/{JSON}")[1] == generation:
            return


def markdown(version: int, entries: Sequence[ValidationEntry]) -> str:
    """Return validations.md: the external section of a version's model card, newest validation first.

    Args:
        version: Number of the version.
        entries: Its validations, oldest first.
    """
    head = [
        f"# External validations of version {version}",
        f"> **{RESEARCH_USE_ONLY}**",
        f"Validations: {len(entries)}. Sites: {sites(entries)}. They were made after the version was registered and "
        "supplement its model card, `card.md`. Nothing of the version was trained or chosen on these scans. Brackets "
        "are 95 % intervals; a difference is the site less the internal test.",
    ]
    return "\n\n".join([*head, *(part for entry in reversed(entries) for part in _section(entry))]) + "\n"


def _section(entry: ValidationEntry) -> list[str]:
    """Return the paragraphs on one validation."""
    parts = [
        f"## {_plain(entry.site)}, {entry.created[:10]}",
        f"By {_plain(entry.by)}, with {BOXES.get(entry.boxes, entry.boxes)}: {entry.images} images of {entry.patients} "
        f"patients, {entry.malignant_patients} of them with a malignant nodule (data `{entry.data_digest[:12]}`, model "
        f"`{entry.model[:12]}`, code `{entry.code_version}`). {entry.taken_out} scans that the model knew were taken "
        "out.",
    ]
    if entry.synthetic:
        parts.append(
            f"**{entry.synthetic} scans are synthetic phantoms: no number of this site says anything about patients.**"
        )
    if falls(entry):
        parts.append(
            "**Warning:** the AUROC is lower than in the internal test; the interval of the difference is wholly "
            "below 0."
        )
    figures = {
        f"{name} {unit}": entry.figures.get(f"{prefix}{key}")
        for prefix, unit in (("", "by image"), ("patient_", "by patient"))
        for key, name in _FIGURES.items()
    }
    rows = [_row(name, beside) for name, beside in figures.items() if beside is not None]
    parts.append("\n".join(["| metric | internal test | this site | difference |", "|---|---|---|---|", *rows]))
    calibration: list[tuple[str, Interval | None]] = [(name, getattr(entry, key)) for key, name in _CALIBRATION.items()]
    rows = [f"| {name} | {format_interval(value)} |" for name, value in calibration]
    parts.append("\n".join(["| calibration at this site, by image | value |", "|---|---|", *rows]))
    if entry.recalibrated is not None:
        parts.append(f"A recalibration for this site is registered as version {entry.recalibrated}.")
    return parts


def _row(name: str, beside: Beside) -> str:
    cells = (name, *map(format_interval, (beside.internal, beside.external, beside.difference)))
    return f"| {' | '.join(cells)} |"


def _plain(text: str) -> str:
    """Return a name as one line that cannot be taken for Markdown or HTML."""
    return "".join(f"\\{letter}" if letter in "\\`*_[]<>|#&" else letter for letter in " ".join(text.split()))
