"""The interface of every kind of audit: what the gate, the report, the model card and the log read of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

from thyroid import metrics
from thyroid.records.clinical import ClinicalRecord
from thyroid.records.gate import AuditRecord

if TYPE_CHECKING:
    from thyroid.evaluate.audits.subject import Subject


@dataclass(frozen=True)
class Picture:
    """AUROCs that are drawn as a forest plot.

    Attributes:
        name: File name without its suffix, in the evaluation's plots/.
        title: What the plot shows, in words.
        rows: Name, AUROC, and whether it is a reference that the others are compared with.
    """

    name: str
    title: str
    rows: Sequence[tuple[str, metrics.Interval, bool]]


class Audit(Protocol):
    """The outcome of one kind of audit, of one model in one domain.

    A kind of audit is a class in `audits.KINDS`. Gate, report, model card and log iterate over that list.

    Attributes:
        name: Name in `waive` and in the findings of evaluation.json.
        title: Heading of the audit in the report and the model card.
        explanation: How the audit works and how to read its table, for the report.
        criterion: Name of its criterion in the gate.
        asked: What the gate asks for, in words.
        waivable: Whether a failure can be waived by name, so that somebody answers for it.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    explanation: ClassVar[str]
    criterion: ClassVar[str]
    asked: ClassVar[str]
    waivable: ClassVar[bool]

    @classmethod
    def run(cls, subject: "Subject") -> Self | None:
        """Audit a model; None if there is nothing to audit."""
        ...

    @classmethod
    def from_record(cls, audits: AuditRecord, clinical: ClinicalRecord | None) -> Self | None:
        """Restore an outcome from the fields `audits` and `clinical` of evaluation.json; None if it was not audited."""
        ...

    @property
    def ran(self) -> bool:
        """Whether the audit could be run. The gate refuses a model whose audit could not."""
        ...

    @property
    def finding(self) -> str | None:
        """What is wrong, in words; None if nothing was found."""
        ...

    @property
    def outcome(self) -> str:
        """What was found if there is no finding, or why the audit could not be run, in words."""
        ...

    @property
    def table(self) -> list[tuple[str, str]]:
        """What was measured: name and value of every row."""
        ...

    @property
    def picture(self) -> Picture | None:
        """The plot of the audit; None if it has none."""
        ...

    @property
    def warnings(self) -> list[str]:
        """Reasons not to trust the model's metrics, for the first page of the report."""
        ...

    @property
    def not_measured(self) -> dict[str, str]:
        """Reason why something was not measured, by name."""
        ...

    def fields(self) -> dict[str, Any]:
        """Return what `from_record` needs, by name; nothing if the results are in another record.

        Names of fields of `AuditRecord` become these fields, other names a part of its field `further`.
        """
        ...


def passed(audit: Audit) -> bool:
    """Return whether the audit ran and found nothing."""
    return audit.ran and audit.finding is None
