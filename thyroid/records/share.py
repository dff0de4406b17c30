"""What a site shares of a validation (site.json), and what the pooling of several sites finds (pool.json)."""

from typing import Annotated

from pydantic import ConfigDict, Field

from thyroid.interval import Interval
from thyroid.records.record import Record

FORMAT = 1
"""Version of the format of site.json; see `SiteRecord.format`."""
SMALLEST = 10
"""Fewest patients of a class in a published cell that is not empty."""

Count = Annotated[int, Field(ge=0, le=10_000_000)]
Share = Annotated[float, Field(ge=0, le=1)]
Text = Annotated[str, Field(min_length=1, max_length=300)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Shared(Record):
    """The base of what comes from another site: nothing is converted, and every number is finite."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class SideCounts(Shared):
    """The patients of one side, benign or malignant, and how many of them are called malignant."""

    patients: Count
    """Number of patients."""
    called: Annotated[list[Count], Field(min_length=2, max_length=2)]
    """Fewest and most patients that are called malignant at the locked threshold. They are equal where the number is
    exact; otherwise fewer than ten patients are on one side of the threshold, and the number is withheld."""


class Steps(Shared):
    """A histogram of the patients' probability of malignant, which gives the steps of the ROC curve."""

    edges: Annotated[list[Share], Field(min_length=2, max_length=200)]
    """Edges of the bins, from 0 to 1. A bin holds its lower edge, and the last one also 1."""
    patients: Annotated[list[Count], Field(min_length=1, max_length=199)]
    """Number of patients in each bin: none or at least ten."""


class CalibrationCounts(Shared):
    """A bin of the reliability plot."""

    low: Share
    """Lower edge of the bin."""
    high: Share
    """Upper edge of the bin."""
    patients: Count
    """Number of patients."""
    malignant: Count
    """Number of malignant patients."""
    probability: Annotated[float, Field(ge=0, le=10_000_000)]
    """Sum of the patients' probabilities of malignant, rounded to two decimals."""


class SharedArea(Shared):
    """The AUROC by patient, rounded to three decimals."""

    value: Share
    """Area under the ROC curve."""
    low: Share
    """Lower bound of its 95 % interval, from the bootstrap over patients."""
    high: Share
    """Upper bound."""
    variance: Annotated[float, Field(ge=0, le=1)]
    """Its variance (DeLong et al. 1988, 10.2307/2531595), to three digits."""


class Coefficient(Shared):
    """A coefficient of a logistic regression by patient, rounded to three decimals."""

    value: Annotated[float, Field(ge=-100, le=100)]
    """The coefficient."""
    error: Annotated[float, Field(gt=0, le=100)]
    """Its standard error."""


class SharedGroup(Shared):
    """The patients of a subgroup."""

    group: Text
    """Name of the group; "other" holds all patients that are in no other group of the column."""
    malignant: SideCounts
    """The malignant patients."""
    benign: SideCounts
    """The benign patients."""


class SharedColumn(Shared):
    """Subgroups by one property. Together they hold every patient once."""

    column: Text
    """The property."""
    groups: Annotated[list[SharedGroup], Field(min_length=2, max_length=12)]
    """The subgroups."""


class AuditOutcome(Shared):
    """The outcome of the shortcut audit on the site's scans."""

    outcome: Annotated[str, Field(pattern="^(passed|failed|not run)$")]
    """"passed", "failed" or "not run"."""
    findings: dict[Text, Annotated[str, Field(max_length=600)]]
    """What was found, in words, by audit."""


class Signature(Shared):
    """The site's signature."""

    algorithm: Annotated[str, Field(pattern="^Ed25519$")]
    """"Ed25519" (RFC 8032)."""
    key: Sha256
    """SHA-256 of the public key (its 32 bytes)."""
    value: Annotated[str, Field(pattern="^([0-9a-f]{128})?$")]
    """The signature of the file's bytes as they are when this text is empty: 128 hexadecimal digits."""


class SiteRecord(Shared):
    """site.json: the counts that a site shares. It holds nothing of a patient, an image or a file."""

    model_config = ConfigDict(title="site.json")

    format: Annotated[int, Field(ge=FORMAT, le=FORMAT)]
    """Version of this format."""
    notice: Text
    """Research use only."""
    site: Text
    """Name of the site."""
    name: Text
    """Name of the model."""
    version: Annotated[int, Field(ge=1, le=10_000_000)]
    """Version in the site's registry."""
    model: Sha256
    """SHA-256 of the model.json that was validated."""
    threshold: Share
    """Its locked threshold."""
    created: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\d$")]
    """Day of the validation."""
    code_version: Text
    """Version of the package that measured."""
    boxes: Text
    """Kind of boxes: given, automatic or frame."""
    synthetic: bool
    """Whether the phantom drew any of the scans."""
    unchecked: bool
    """Whether the site's patients could not be compared with those of the model."""
    malignant: SideCounts | None
    """The malignant patients; null where there are fewer than ten."""
    benign: SideCounts | None
    """The benign patients; null where there are fewer than ten."""
    malignant_steps: Steps | None
    """Their probabilities; null where there are fewer than ten."""
    benign_steps: Steps | None
    """Their probabilities; null where there are fewer than ten."""
    calibration: Annotated[list[CalibrationCounts], Field(max_length=199)]
    """Bins of the reliability plot; empty without ten patients of each side, or where their sums would tell a withheld
    number."""
    auroc: SharedArea | None
    """AUROC; null without ten patients of each side, or where it would tell a withheld number."""
    intercept: Coefficient | None
    """Calibration in the large; null without ten patients of each side, where it cannot be fitted, or where
    it would tell a withheld number."""
    slope: Coefficient | None
    """Calibration slope; null likewise."""
    subgroups: Annotated[list[SharedColumn], Field(max_length=50)]
    """The subgroups that may be shared."""
    left_out: Annotated[list[Text], Field(max_length=100)]
    """What is withheld, and why, in words."""
    audit: AuditOutcome
    """The shortcut audit."""
    signature: Signature
    """The site's signature."""


class RandomEffects(Record):
    """A figure over several sites that differ (random effects)."""

    sites: int
    """Number of sites."""
    pooled: Interval
    """Mean over the sites, with the modified Hartung-Knapp interval (Röver et al. 2015, 10.1186/s12874-015-0091-1); no
    interval for one site but its own."""
    tau2: float | None
    """Variance between the sites on the scale of the pooling (Paule & Mandel 1982); null for one site."""
    i2: Interval | None
    """Share of the variation that is not chance (Higgins & Thompson 2002, 10.1002/sim.1186), with its test-based
    interval, which needs three sites; null for one site."""
    prediction: list[float] | None
    """95 % prediction interval for another site (Higgins et al. 2009, 10.1111/j.1467-985X.2008.00552.x); null for
    fewer than three sites."""


class LeftOut(Record):
    """A figure over all sites but one."""

    site: str
    """The site that was left out."""
    pooled: Interval
    """Mean over the other sites."""
    i2: float | None
    """Their I2; null where only one site is left."""


class PooledFigure(Record):
    """A figure by site and over the sites."""

    scale: str
    """Scale of the pooling: logit, log or identity."""
    sites: dict[str, Interval]
    """By site. Where a count is withheld, the value is the middle of what it may be, and the bounds hold both ends."""
    withheld: list[str]
    """Sites whose count is withheld, so that the figure is given for its worst and its best case."""
    cases: dict[str, RandomEffects]
    """"exact"; or "worst" and "best", with every withheld count at its least and at its most favourable."""
    leave_one_out: dict[str, list[LeftOut]]
    """The same without each of the sites, by case; empty for fewer than three sites."""
    joined: Interval | None
    """Of all patients together, as if they were of one site: value, and its exact 95 % interval or the bounds within
    which it lies; null where it cannot be computed."""
    joined_bounds: list[float] | None
    """Least and greatest value that the figure of all patients together may have, given what is withheld; equal where
    it is exact. Null where it cannot be computed."""
    without: list[str]
    """Sites that do not give this figure."""


class PooledGroup(Record):
    """A subgroup over all sites that have it."""

    column: str
    """The property."""
    group: str
    """Name of the group."""
    sites: int
    """Number of sites."""
    malignant: int
    """Number of malignant patients."""
    benign: int
    """Number of benign patients."""
    sensitivity: list[float] | None
    """Least and greatest sensitivity, given what is withheld; null without malignant patients."""
    specificity: list[float] | None
    """Least and greatest specificity; null without benign patients."""


class PooledSite(Record):
    """A site whose counts were pooled."""

    site: str
    """Name of the site."""
    created: str
    """Day of its validation."""
    boxes: str
    """Kind of boxes."""
    malignant: int | None
    """Number of malignant patients; null where there are fewer than ten."""
    benign: int | None
    """Number of benign patients; null where there are fewer than ten."""
    audit: str
    """Outcome of the shortcut audit."""
    findings: dict[str, str]
    """What it found."""
    left_out: list[str]
    """What the site withholds."""


class PoolRecord(Record):
    """pool.json: a model over several sites, from their counts."""

    model_config = ConfigDict(title="pool.json")

    notice: str
    """Research use only."""
    created: str
    """When, in ISO 8601 (UTC)."""
    code_version: str
    """Version of the package that pooled."""
    model: str
    """SHA-256 of the model.json."""
    name: str
    """Name of the model."""
    version: int
    """Its version in the first site's registry."""
    threshold: float
    """Its locked threshold."""
    sites: list[PooledSite]
    """The sites."""
    figures: dict[str, PooledFigure]
    """By patient: sensitivity, specificity, auroc, observed_to_expected, intercept and slope."""
    subgroups: list[PooledGroup]
    """The subgroups of all sites together."""
    failed: list[str]
    """Sites at which the shortcut audit fails."""
    warnings: list[str]
    """What a reader must know before the figures, one sentence each."""
