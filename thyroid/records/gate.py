"""The audits of a model and the decision of the champion gate."""

from typing import Any

from thyroid.interval import Interval
from thyroid.records.record import Record


class AuditRecord(Record):
    """What the audits of one model in one domain found."""

    domain: str
    """Domain of the images, normal or cropped."""
    shortcut: dict[str, Interval]
    """AUROC of the model and of each baseline that must not know the answer, by name."""
    kept: dict[str, float]
    """Share of the distance from chance that is kept without the nodule, by name of what was blanked."""
    leakage: dict[str, Interval | int]
    """AUROCs under a split by patient and by image, and counts of scans and patients that are in several splits."""
    findings: dict[str, str]
    """What was found, in words, by audit. The finding of the clinical audit is in `clinical.leaks`."""
    not_measured: dict[str, str]
    """Why something could not be measured, by name."""
    further: dict[str, dict[str, Any]] | None = None
    """Results of audits that have no field of their own, by name of the audit; absent if there are none."""


class Criterion(Record):
    """One criterion of the gate."""

    name: str
    """Name of the criterion."""
    asked: str
    """What was asked, in words."""
    found: str
    """What was found, in words."""
    passed: bool
    """Whether the criterion holds."""
    waived: bool
    """Whether it fails and was waived by name."""


class DeLong(Record):
    """The difference of two AUROCs by DeLong's method."""

    value: float
    """The difference."""
    low: float | None
    """Lower bound of its 95 % interval."""
    high: float | None
    """Upper bound of its 95 % interval."""
    z: float
    """Test statistic."""
    p: float
    """Two-sided p value."""


class Comparison(Record):
    """The candidate against a champion on the same test patients."""

    champion_auroc: Interval
    """AUROC of the champion."""
    champion_margin: float | None = None
    """Margin of the crops that the champion was scored on, which is its own and may differ from the candidate's. Absent
    for full frames and for files that came in cropped, which have no margin, and in records of older releases."""
    difference: Interval
    """AUROC of the candidate minus that of the champion, by the bootstrap over patients."""
    delong: DeLong | None = None
    """The same by DeLong's method; absent where it cannot be computed."""
    lowest: float | None
    """The lower of both lower bounds; null where one of them is not known."""


class GateRecord(Record):
    """The decision whether the candidate may replace the champion."""

    decision: str
    """"promoted" or "refused"."""
    reasons: list[str]
    """Reasons, in words."""
    criteria: list[Criterion]
    """Every criterion."""
    champion: int | None
    """Version of the champion; null where there is none."""
    comparison: Comparison | None
    """The candidate against the champion; null where they could not be compared."""
    anchor: int | None
    """Version of the anchor, if it is not the champion."""
    anchor_comparison: Comparison | None
    """The candidate against the anchor; null where they could not be compared."""
    ahead_of: int | None
    """Version that the candidate was shown to be better than; null for none."""
    waived: list[str]
    """Names of the criteria that were waived."""
    test_digest: str
    """SHA-256 that identifies the test set."""
    test_set_read_before: int | None = None
    """How many other models were judged on this test set before."""
