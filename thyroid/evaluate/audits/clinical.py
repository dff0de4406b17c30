"""The audit of the clinical columns: together they may be what the label was made from."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from thyroid.evaluate.audits.audit import Picture
from thyroid.evaluate.audits.subject import Subject
from thyroid.records.clinical import ClinicalRecord, Leakage
from thyroid.records.gate import AuditRecord


@dataclass
class ClinicalAudit:
    """Whether the clinical columns that the model uses give the class away.

    A column that gives the class away alone is never used, but several together may still be what the label was made
    from.

    Attributes:
        used: Clinical columns that the model uses.
        leaks: Result of the search for target leakage.
    """

    used: list[str]
    leaks: Leakage
    not_measured: dict[str, str] = field(default_factory=dict)

    name: ClassVar[str] = "clinical"
    title: ClassVar[str] = "Do the clinical columns give the class away?"
    explanation: ClassVar[str] = (
        "AUROC of a tree on each column alone, and of a forest and a regression on all others together, out of fold on "
        "development patients. A column that gives the class away alone is never given to the model."
    )
    criterion: ClassVar[str] = "clinical columns"
    asked: ClassVar[str] = "those that the model uses do not give the class away"
    waivable: ClassVar[bool] = True

    @classmethod
    def run(cls, subject: Subject) -> "ClinicalAudit | None":
        """Judge the search for target leakage that was made before the columns were fitted."""
        return cls._from_clinical(subject.clinical)

    @classmethod
    def from_record(cls, audits: AuditRecord, clinical: ClinicalRecord | None) -> "ClinicalAudit | None":
        """Restore the outcome from the field `clinical` of evaluation.json; None where there is no clinical.csv."""
        return cls._from_clinical(clinical)

    @classmethod
    def _from_clinical(cls, clinical: ClinicalRecord | None) -> "ClinicalAudit | None":
        return None if clinical is None else cls(clinical.used, clinical.leaks)

    @property
    def ran(self) -> bool:
        """Always true: columns that could not be searched are not used."""
        return True

    @property
    def finding(self) -> str | None:
        """What all columns together give away; None where the model uses no columns."""
        together = self.leaks.together
        return "; ".join(together.findings) or None if self.used and together is not None else None

    @property
    def outcome(self) -> str:
        """Which columns nothing was found in."""
        return f"nothing found in {', '.join(self.used)}" if self.used else "the model uses none"

    @property
    def table(self) -> list[tuple[str, str]]:
        """AUROC of every column alone, and of all others together."""
        rows = [(row.column, str(row.auroc)) for row in self.leaks.columns if row.auroc is not None]
        together = self.leaks.together
        if together is not None and together.auroc is not None:
            rows.append((f"together: {', '.join(together.columns)}", str(together.auroc)))
        return rows

    @property
    def picture(self) -> Picture | None:
        """There is none: the plots of the columns are in the report's section on clinical data."""
        return None

    @property
    def warnings(self) -> list[str]:
        """Every column that gives the class away, whether the model uses it or not."""
        unused = "" if self.used else " (the model does not use it)"
        return [f"clinical.csv: {finding}{unused}." for finding in self.leaks.findings]

    def fields(self) -> dict[str, Any]:
        """Return nothing: the results are in the field `clinical` of evaluation.json."""
        return {}
