"""Read the files that sites share, and refuse what is forged, damaged, contradictory or copied, or tells too much."""

import json
import logging
import stat
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from thyroid.errors import InputError
from thyroid.records.share import FORMAT, SMALLEST, SharedColumn, SideCounts, SiteRecord, Steps
from thyroid.validate.share import areas, disclosure, signature, withheld

log = logging.getLogger(__name__)

LARGEST_FILE = 1_000_000
"""Largest file in bytes. One of a real site has a few thousand."""
_ROUNDING = 0.006
"""Largest error of a sum of probabilities by its two decimals, and of an AUROC by its three."""


def read(files: Sequence[Path], keys: Path, model: str = "") -> list[SiteRecord]:
    """Read and check the sites' files. One that cannot be used refuses them all, so that none is left out unnoticed.

    Args:
        files: The files.
        keys: Folder with the sites' public keys, named as by `signature.file_name`.
        model: SHA-256 of the model.json that they must be about; empty for that of most files.

    Returns:
        Their content, in the order of the files.

    Raises:
        InputError: There is no file, or a file is refused. Where several are, each gets a line in the log.
    """
    if not files:
        raise InputError("give the files of the sites to pool")
    known = signature.public_keys(keys)
    found, refused = dict[Path, SiteRecord](), dict[Path, str]()
    for path in dict.fromkeys(files):
        try:
            found[path] = _one(path, known)
        except (InputError, OSError) as error:
            refused[path] = str(error) if isinstance(error, InputError) else error.strerror or "cannot be read"
    refused |= _together(found, model)
    for path in (path for path, count in Counter(files).items() if count > 1):
        refused[path] = "given twice; give each file once"
    lines = [f"{path}: {refused[path]}" for path in dict.fromkeys(files) if path in refused]
    if len(lines) == 1:
        raise InputError(lines[0])
    if lines:
        for line in lines:
            log.error(line)
        raise InputError(f"{len(lines)} of {len(files)} files are refused, as listed above; nothing was pooled")
    return list(found.values())


def _one(path: Path, keys: Mapping[str, Ed25519PublicKey]) -> SiteRecord:
    """Read one file, and check what it says by itself."""
    if not stat.S_ISREG(path.stat().st_mode):  # a pipe would never end
        raise InputError("not a file; give the file that the site sent")
    if path.stat().st_size > LARGEST_FILE:
        raise InputError(f"larger than {LARGEST_FILE} bytes; it is no file of counts")
    data = path.read_bytes()
    try:
        content = json.loads(data, parse_constant=_no_number)
    except (ValueError, RecursionError):
        raise InputError("not JSON; ask the site for the file again") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT or content["format"] is True:
        raise InputError(f"unknown format; expected what `python -m thyroid.validate --share` writes (format {FORMAT})")
    record = _parsed(content)
    signature.check_name(record.site)
    name = signature.file_name(record.site)
    if name not in keys:
        raise InputError(f"no key of the site {record.site!r}; put its public key into --keys as {name}")
    if not signature.verify(data, content, keys[name]):
        raise InputError(f"the signature is not that of {name}; the file was changed, or another key signed it")
    _consistent(record)
    return record


def _no_number(text: str) -> Any:
    raise ValueError(text)


def _parsed(content: dict[str, Any]) -> SiteRecord:
    """Return the record; the place of the file stands in front of every message anyway."""
    try:
        return SiteRecord.parse(content, "")
    except InputError as error:
        raise InputError(str(error).removeprefix(": ")) from None


def _together(found: Mapping[Path, SiteRecord], model: str) -> dict[Path, str]:
    """Return why files cannot be pooled with the others, by path."""
    if not found:
        return {}
    refused = {}
    wanted = model or Counter(record.model for record in found.values()).most_common(1)[0][0]
    asked = "--model asks for" if model else "most files are about"
    thresholds = Counter(record.threshold for record in found.values() if record.model == wanted)
    threshold = thresholds.most_common(1)[0][0] if thresholds else None
    sites, counts, signers = dict[str, Path](), dict[str, Path](), dict[str, Path]()
    for path, record in found.items():
        site, count = signature.file_name(record.site).casefold(), _counts(record)
        if record.model != wanted:
            refused[path] = f"about another model ({record.model[:12]}) than {asked} ({wanted[:12]})"
        elif record.threshold != threshold:
            refused[path] = "another threshold of the same model; its locked threshold must be the one of model.json"
        elif site in sites:
            refused[path] = f"the same site as {sites[site].name}; give one file per site"
        elif record.signature.key in signers:
            refused[path] = (
                f"signed with the key of {signers[record.signature.key].name}; each site has a key of its own"
            )
        elif count in counts:
            refused[path] = f"the same counts as {counts[count].name}, under another name; leave the copy out"
        sites.setdefault(site, path)
        counts.setdefault(count, path)
        signers.setdefault(record.signature.key, path)
    return refused


def _counts(record: SiteRecord) -> str:
    """Return what only a copy shares. Small sites may have the same counts, but not the same sums of probabilities."""
    fields = {"malignant", "benign", "malignant_steps", "benign_steps", "calibration", "auroc"}
    return record.model_dump_json(include=fields)


def _consistent(record: SiteRecord) -> None:
    """Check that no count is too small, and that the counts agree.

    Raises:
        InputError: The message names what is wrong.
    """
    if record.malignant is None and record.benign is None:
        raise InputError("no counts")
    sides = {"malignant": (record.malignant, record.malignant_steps), "benign": (record.benign, record.benign_steps)}
    for name, (side, steps) in sides.items():
        if (side is None) != (steps is None):
            raise InputError(f"{name}: counts and steps must both be there, or both be missing")
        if side is not None and steps is not None:
            _side(name, side)
            _steps(name, side, steps, record.threshold)
    if record.malignant is None or record.benign is None:
        if record.calibration or record.auroc or record.intercept or record.slope or record.subgroups:
            raise InputError(f"figures of both sides, although one has fewer than {SMALLEST} patients")
        return
    assert record.malignant_steps is not None
    assert record.benign_steps is not None
    if record.calibration:
        _calibration(record, record.malignant_steps, record.benign_steps)
    low, high = areas.bounds([record.malignant_steps], [record.benign_steps])
    area = record.auroc
    if area and not (low - _ROUNDING <= area.value <= high + _ROUNDING and area.low <= area.value <= area.high):
        raise InputError("auroc: not what the steps of the ROC curve allow")
    if not withheld.stays(record):
        raise InputError(
            "auroc and calibration: with the steps they tell a withheld count of patients; the site must not share it"
        )
    names = [column.column for column in record.subgroups]
    if len(set(names)) < len(names):
        raise InputError("subgroups: a column is there twice")
    for column in record.subgroups:
        _column(column, record.malignant, record.benign)


def _side(name: str, side: SideCounts) -> None:
    if not 0 <= side.called[0] <= side.called[1] <= side.patients:
        raise InputError(f"{name}: the patients that are called malignant are not among the {side.patients}")
    small = 0 < side.patients < SMALLEST
    if small or (side.patients and not disclosure.may_be_published(side.called, side.patients)):
        raise InputError(f"{name}: a count of fewer than {SMALLEST} patients; the site must not share it")


def _steps(name: str, side: SideCounts, steps: Steps, threshold: float) -> None:
    edges, patients = np.array(steps.edges), np.array(steps.patients)
    if len(edges) != len(patients) + 1 or edges[0] != 0 or edges[-1] != 1 or (np.diff(edges) <= 0).any():
        raise InputError(f"{name}_steps: edges must rise from 0 to 1, one more than bins")
    if side.patients < SMALLEST or not disclosure.safe(patients):
        raise InputError(f"{name}_steps: a bin of fewer than {SMALLEST} patients; the site must not share it")
    if patients.sum() != side.patients:
        raise InputError(f"{name}_steps: the bins hold {patients.sum()} patients instead of {side.patients}")
    exact = side.called[0] == side.called[1]
    above = int(patients[edges[:-1] >= threshold].sum())
    if exact != (threshold in edges[1:-1]) and 0 < threshold < 1:
        raise InputError(f"{name}_steps: the threshold must be an edge where its counts are exact, and only there")
    if exact and above != side.called[0]:
        raise InputError(f"{name}_steps: {above} patients at or above the threshold instead of {side.called[0]}")


def _calibration(record: SiteRecord, malignant: Steps, benign: Steps) -> None:
    bins = record.calibration
    edges = [one.low for one in bins] + [one.high for one in bins[-1:]]
    if edges != sorted(set(malignant.edges) & set(benign.edges)) or edges[1:] != [one.high for one in bins]:
        raise InputError("calibration: its edges must be those that the bins of both sides have")
    for one in bins:
        counts = [
            sum(count for edge, count in zip(steps.edges, steps.patients, strict=False) if one.low <= edge < one.high)
            for steps in (malignant, benign)
        ]
        if one.malignant != counts[0] or one.patients != sum(counts):
            raise InputError("calibration: its counts are not those of the bins of both sides")
        if not one.low * one.patients - _ROUNDING <= one.probability <= one.high * one.patients + _ROUNDING:
            raise InputError("calibration: a sum of probabilities is not within its bin")


def _column(column: SharedColumn, malignant: SideCounts, benign: SideCounts) -> None:
    names = [group.group for group in column.groups]
    if len(set(names)) < len(names):
        raise InputError(f"subgroups: {column.column}: a group is there twice")
    sides: tuple[tuple[str, SideCounts, Callable[[Any], SideCounts]], ...] = (
        ("malignant", malignant, lambda group: group.malignant),
        ("benign", benign, lambda group: group.benign),
    )
    for name, total, of in sides:
        groups = [of(group) for group in column.groups]
        for group in groups:
            _side(f"subgroups: {column.column}: {name}", group)
        if sum(group.patients for group in groups) != total.patients:
            raise InputError(f"subgroups: {column.column}: {name}: the groups do not add up to {total.patients}")
        low, high = (sum(group.called[bound] for group in groups) for bound in (0, 1))
        if low > total.called[1] or high < total.called[0]:
            raise InputError(f"subgroups: {column.column}: {name}: the called patients do not add up")
        ranges = [(group.patients, (group.called[0], group.called[1])) for group in groups]
        if not disclosure.protected((total.called[0], total.called[1]), total.patients, ranges):
            raise InputError(
                f"subgroups: {column.column}: {name}: a count of fewer than {SMALLEST} patients follows from the others"
            )
