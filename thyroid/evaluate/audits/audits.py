"""The list of all kinds of audits, and the audits of one model.

A new kind of audit is a class with the interface `audit.Audit` in a module of its own, and a row of `KINDS`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from thyroid.errors import InputError
from thyroid.evaluate.audits.audit import Audit, Picture
from thyroid.evaluate.audits.clinical import ClinicalAudit
from thyroid.evaluate.audits.leakage import LeakageAudit
from thyroid.evaluate.audits.shortcut import ShortcutAudit
from thyroid.evaluate.audits.subject import Subject
from thyroid.records.clinical import ClinicalRecord
from thyroid.records.evaluation import Measured
from thyroid.records.gate import AuditRecord

KINDS: tuple[type[Audit], ...] = (ShortcutAudit, LeakageAudit, ClinicalAudit)
"""Every kind of audit, in the order of the gate's criteria and of the report."""

WAIVABLE = tuple(kind.name for kind in KINDS if kind.waivable)
"""Names of the audits whose failure can be waived."""


@dataclass(frozen=True)
class ModelAudits:
    """The audits of one model in one domain.

    Attributes:
        domain: Domain of the audited images, "normal" or "cropped".
        audits: An outcome of every kind of audit that applies to the model.
    """

    domain: str
    audits: Sequence[Audit]

    @classmethod
    def run(cls, subject: Subject) -> "ModelAudits":
        """Audit a model in every way that applies to it."""
        return cls(subject.domain, [audit for kind in KINDS if (audit := kind.run(subject)) is not None])

    @classmethod
    def from_record(cls, record: AuditRecord, clinical: ClinicalRecord | None = None) -> "ModelAudits":
        """Restore the audits from evaluation.json.

        Args:
            record: Result of `record`, the field `audits`.
            clinical: The field `clinical`; None for other models than the winner.
        """
        found = (kind.from_record(record, clinical) for kind in KINDS)
        return cls(record.domain, [audit for audit in found if audit is not None])

    @property
    def findings(self) -> dict[str, str]:
        """What is wrong, in words, by audit. An audit that passed is not listed."""
        return {audit.name: audit.finding for audit in self.audits if audit.finding is not None}

    @property
    def pictures(self) -> list[Picture]:
        """The plots of all audits."""
        return [audit.picture for audit in self.audits if audit.picture is not None]

    def record(self) -> AuditRecord:
        """Return the field `audits` of evaluation.json. Audits without fields of their own are left out."""
        recorded = [audit for audit in self.audits if audit.fields()]
        measured: dict[str, Any] = {}
        further: dict[str, dict[str, Any]] = {}
        for audit in recorded:
            for name, value in audit.fields().items():
                place = measured if name in AuditRecord.model_fields else further.setdefault(audit.name, {})
                place[name] = value
        if further:
            measured["further"] = further
        return AuditRecord(
            domain=self.domain,
            **measured,
            findings={audit.name: audit.finding for audit in recorded if audit.finding is not None},
            not_measured={name: reason for audit in recorded for name, reason in audit.not_measured.items()},
        )


def of_result(result: Measured) -> list[ModelAudits]:
    """Return the audits of an evaluation, those of the winner first."""
    others = [ModelAudits.from_record(record) for record in result.other_audits]
    return [ModelAudits.from_record(result.audits, result.clinical), *others]


def check_waivers(waive: Sequence[str]) -> tuple[str, ...]:
    """Check the names of the audits to waive, and remove duplicates.

    Raises:
        InputError: A name is not in `WAIVABLE`.
    """
    for name in waive:
        if name not in WAIVABLE:
            raise InputError(f"waive {name!r}: only {' and '.join(WAIVABLE)} can be waived")
    return tuple(dict.fromkeys(waive))
