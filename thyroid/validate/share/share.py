"""Write what a site may send where images may not move: a signed file of counts by patient.

Which counts are published is decided in `disclosure`. A patient's probability is the mean over the patient's images, as
in `performance.AGGREGATION`.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from thyroid import RESEARCH_USE_ONLY, atomic
from thyroid.data.classes import Classes
from thyroid.data.filenames import SCORE
from thyroid.errors import InputError
from thyroid.evaluate import performance
from thyroid.evaluate.performance import SUBGROUP
from thyroid.model.operating_point import OperatingPoint
from thyroid.records.share import FORMAT, SMALLEST, AuditOutcome, Signature, SiteRecord
from thyroid.records.validation import ValidationRecord
from thyroid.validate.share import counts, disclosure, history, signature, withheld
from thyroid.validate.share.counts import SIDES, Patients
from thyroid.validate.share.history import Earlier, History

log = logging.getLogger(__name__)

_LONGEST = 600


def write(
    path: Path, key: Path, record: ValidationRecord, table: pd.DataFrame, *, groups: pd.DataFrame, point: OperatingPoint
) -> SiteRecord:
    """Write the counts of a validation, signed with the site's key, and remember what was shared.

    Args:
        path: File to write.
        key: File of the site's private key; see `signature.private_key`. What was shared before is beside it.
        record: The validation.
        table: Predictions of the leading kind of boxes.
        groups: Subgroups by the path of the scan, as `subgroups.columns` returns them.
        point: Locked operating point of the model.

    Returns:
        Content of the file.

    Raises:
        InputError: There are fewer than ten patients of each side, the file would identify patients together with
            an earlier one, the site's name or `path` cannot be used, or the key or the history cannot.
    """
    signature.check_name(record.site)
    _place(path, key)
    private, made = signature.private_key(key)
    secret, past = signature.secret_of(private), History.beside(key)
    patients, names = _by_patient(table, groups, Classes.from_record(record))
    now, changes, same = _since(
        past.shares, patients, names, secret, model=record.model.sha256, threshold=point.threshold
    )
    found = Patients.count(patients, point.threshold, changes)
    if not found.cells:
        raise InputError(f"share: fewer than {SMALLEST} patients of each class; no count can be shared of them")
    now = Earlier(
        model=record.model.sha256,
        patients={patient: cell for patient, cell in now.patients.items() if cell[0] in found.cells},
        groups=now.groups,
    )
    content = _content(record, found, names if same else None)
    data = signature.sign(content.model_dump(mode="json", exclude={"signature"}), private)
    past.add(key, now)  # before the file is there to be sent
    atomic.write_bytes(path, data)
    log.info(f"{path}: counts of {sum(cells.total for cells in found.cells.values())} patients, to pool with others")
    if made:
        log.info(
            f"{key}: new private key; keep it. Give {key.name}{signature.PUBLIC} to whoever "
            f"pools the sites, who keeps it as {signature.file_name(record.site)}"
        )
    for reason in content.left_out:
        log.info(f"not shared: {reason}")
    log.info(RESEARCH_USE_ONLY)
    return SiteRecord.read(path)


def _place(path: Path, key: Path) -> None:
    """Check that the file can be written, and that it replaces neither the private key nor what belongs to it."""
    if not path.parent.is_dir():
        raise InputError(f"{path.parent}: no such folder for the file to share; make it")
    if path.is_dir():
        raise InputError(f"{path}: a folder; name a file for the counts to share")
    names = [key.name, key.name + signature.PUBLIC, key.name + history.SHARED]
    if path.resolve() in [key.with_name(name).resolve() for name in names]:
        raise InputError(f"{path}: belongs to the private key; name another file for the counts to share")


def _by_patient(table: pd.DataFrame, groups: pd.DataFrame, classes: Classes) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the patients, and the group of each by column: that of all the patient's images, or none."""
    patients = performance.by_patient(table, classes)
    named: dict[str, pd.Series] = {}
    for column in groups.columns:
        of_patient = groups[column].reindex(table["path"]).astype(object).groupby(table["patient"].to_numpy())
        first = of_patient.first().where(of_patient.nunique(dropna=False) == 1)
        named[str(column).removeprefix(SUBGROUP)] = first
    return patients, pd.DataFrame(named, index=patients["patient"])


def _since(
    past: Sequence[Earlier], patients: pd.DataFrame, names: pd.DataFrame, secret: bytes, *, model: str, threshold: float
) -> tuple[Earlier, list[pd.DataFrame], bool]:
    """Compare the patients with those of earlier files. Their numbers are the same whatever the model is.

    Returns:
        What is to be remembered of this file; for each earlier one about the model the patients that came and those
        that went, with label and bin; and whether subgroups can be shared, since all earlier files were about the same
        patients.

    Raises:
        InputError: Of a side, 1 to 9 patients came or went, or another model orders the patients as this one does.
    """
    hashes = [history.of_patient(secret, patient) for patient in patients["patient"]]
    bins = counts.place(patients[SCORE], disclosure.grid(threshold))
    cells = {name: f"{label}{number}" for name, label, number in zip(hashes, patients["label"], bins, strict=True)}
    members = {
        str(column): {
            name: "" if pd.isna(group) else str(group) for name, group in zip(hashes, names[column], strict=True)
        }
        for column in names
    }
    now = Earlier(model=model, patients=cells, groups=history.of_groups(secret, members))
    changes = []
    for earlier in past:
        for label, word in SIDES.items():
            before, after = (
                {name for name, cell in known.items() if cell[0] == label} for known in (earlier.patients, cells)
            )
            if before and not disclosure.safe([len(before - after), len(after - before)]):
                raise InputError(
                    f"share: an earlier file differs by fewer than {SMALLEST} {word} patients, who "
                    f"could be told from the two; share again when {SMALLEST} or more have come and nobody has gone"
                )
        if earlier.model == model:
            changes += [_moved(cells, earlier.patients), _moved(earlier.patients, cells)]
        elif _same_order(earlier.patients, dict(zip(hashes, patients[SCORE], strict=True))):
            raise InputError(
                "share: another model of an earlier file orders these patients alike, as a recalibration does; the few "
                "between the edges of the two could be told, so share one of the models"
            )
    return now, changes, all(_same_groups(earlier, now) for earlier in past)


def _same_order(earlier: Mapping[str, str], scores: Mapping[str, float]) -> bool:
    """Return whether the bins of an earlier file rise with the patients' probabilities."""
    common = sorted(earlier.keys() & scores.keys(), key=lambda name: (scores[name], int(earlier[name][1:])))
    bins = [int(earlier[name][1:]) for name in common]
    return len(common) >= SMALLEST and len(set(bins)) > 1 and bins == sorted(bins)


def _same_groups(earlier: Earlier, now: Earlier) -> bool:
    """Return whether subgroups may be shared again: of the same patients, and by the same model in the same cells."""
    sides = {cell[0] for cell in earlier.patients.values()}  # a side with fewer than ten patients is not in a history
    before, after = (
        {
            name: cell if earlier.model == now.model else cell[0]
            for name, cell in one.patients.items()
            if cell[0] in sides
        }
        for one in (earlier, now)
    )
    return earlier.groups == now.groups and before == after


def _moved(known: Mapping[str, str], others: Mapping[str, str]) -> pd.DataFrame:
    """Return label and bin of the patients that are not in the same cell among the others."""
    cells = [cell for name, cell in known.items() if others.get(name) != cell]
    return pd.DataFrame({"label": [cell[0] for cell in cells], "bin": [int(cell[1:]) for cell in cells]})


def _content(record: ValidationRecord, found: Patients, names: pd.DataFrame | None) -> SiteRecord:
    """Return the file's content, not signed yet."""
    malignant, benign = SIDES
    columns, left_out = ([], []) if names is None else found.columns(names)
    if names is None:
        left_out = ["subgroups: an earlier file was about other patients or subgroups"]
    for label, word in SIDES.items():
        side = found.side(label)
        if side is None:
            left_out.append(f"{word} patients: fewer than {SMALLEST}")
        elif side.called[0] < side.called[1]:
            left_out.append(f"{word} patients that are called malignant: the exact number")
    intercept, slope = found.coefficients()
    content = SiteRecord(
        format=FORMAT,
        notice=RESEARCH_USE_ONLY,
        site=record.site,
        name=record.model.name,
        version=record.model.version,
        model=record.model.sha256,
        threshold=found.threshold,
        created=record.created[:10],
        code_version=record.code_version,
        boxes=record.main,
        synthetic=record.scans.synthetic > 0,
        unchecked=record.scans.unchecked is not None,
        malignant=found.side(malignant),
        benign=found.side(benign),
        malignant_steps=found.steps(malignant),
        benign_steps=found.steps(benign),
        calibration=found.calibration(),
        auroc=found.auroc(record.settings.seed),
        intercept=intercept,
        slope=slope,
        subgroups=columns,
        left_out=left_out,
        audit=_audit(record, found.both),
        signature=Signature(algorithm="Ed25519", key="0" * 64, value=""),
    )
    safe = withheld.without(content)
    if safe != content:
        reason = "AUROC or calibration: with the steps they would tell a number of patients that is withheld"
        safe = safe.model_copy(update={"left_out": [*left_out, reason]})
    return safe


def _audit(record: ValidationRecord, both: bool) -> AuditOutcome:
    """Return the outcome of the audit; its words are left out where they rest on fewer than ten patients of a side."""
    if record.audits is None:
        return AuditOutcome(outcome="not run", findings={})
    findings = {name: text[:_LONGEST] if both else "" for name, text in record.audits.findings.items()}
    # Nothing is kept of a reference where nothing could be judged, as where the model is at chance.
    judged = "passed" if record.audits.kept else "not run"
    return AuditOutcome(outcome="failed" if findings else judged, findings=findings)
