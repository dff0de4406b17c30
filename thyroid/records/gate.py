"""The audits of a model, the decision of the champion gate, and what live pictures add to it (shadow.json)."""

from typing import Any, Literal

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


class StoredFlips(Record):
    """How often candidate and champion call a stored test patient differently."""

    champion: Literal["all", "benign", "malignant"]
    """What the champion calls these patients' images; "all" for both."""
    patients: int
    """Number of patients, with one image each."""
    flipped: int
    """Number of them whom one model calls benign and the other malignant, each at its own threshold."""


class ShadowTerms(Record):
    """What a candidate that holds every criterion must show behind the champion before it is released."""

    pictures: int
    """Number of live pictures that it must have judged."""
    stored: list[StoredFlips]
    """How often both models disagree on the stored test images, with which the live pictures are compared."""


class GateRecord(Record):
    """The decision whether the candidate may replace the champion."""

    decision: str
    """"promoted" or "refused"; or "waiting" where every criterion holds and live pictures decide (`shadow`)."""
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
    shadow: ShadowTerms | None = None
    """What live pictures must show; absent if they do not decide. The decision on them is in shadow.json beside the
    version."""


class ShadowGroup(Record):
    """Pictures of one kind, and how often the candidate decides otherwise on them."""

    kind: Literal["all", "source", "novelty", "decision"]
    """What the pictures have in common: nothing, what was judged, whether the champion found them unlike its training
    images, or the champion's decision."""
    value: str
    """The common value: "all"; a source of the log; "like" or "unlike"; or a decision."""
    pictures: int
    """Number of pictures."""
    patients: int
    """Number of patients (of requests, where they name no patient)."""
    changed: int
    """Number of pictures on which the two decisions differ."""
    share: Interval
    """Share of these, with an interval that resamples patients."""
    abstained: Interval
    """Share of pictures that the candidate leaves undecided less that of the champion, with such an interval."""
    flipped_patients: int
    """Number of patients, with one picture each, whom one model calls benign and the other malignant."""


class ShadowChange(Record):
    """A picture that the candidate decides on otherwise. Only the log, by its id, says which picture that is."""

    id: str
    """Id of the champion's decision."""
    time: str
    """When the champion decided, in ISO 8601 (UTC)."""
    source: str
    """What was judged, as in the log."""
    champion: str
    """The champion's decision."""
    candidate: str
    """The candidate's decision."""
    champion_probability: float
    """The champion's probability of malignant."""
    candidate_probability: float
    """The candidate's probability of malignant."""


class ShadowDecision(Record):
    """What the gate decided on these pictures."""

    decision: Literal["accepted", "refused"]
    """Whether the candidate became the champion."""
    reasons: list[str]
    """Reasons, in words."""
    criteria: list[Criterion]
    """Every criterion."""


class ShadowRecord(Record):
    """shadow.json beside a candidate's version: what it made of the champion's live pictures."""

    notice: str
    """Research use only."""
    created: str
    """When it was compared, in ISO 8601 (UTC)."""
    code_version: str
    """Version of the package that compared."""
    night: str
    """The last night that was looked at, as an ISO date (UTC)."""
    champion: int
    """Version whose decisions they are."""
    candidate: int
    """Version that answered behind it."""
    model: str
    """SHA-256 of the candidate's model.json."""
    first: str | None
    """Day (UTC) of the first picture, as an ISO date; null without any."""
    last: str | None
    """Day (UTC) of the last one."""
    pictures: int
    """Number of different pictures that both have judged."""
    patients: int
    """Number of patients of these pictures, and of requests that name no patient."""
    changed: int
    """Number of pictures on which the two decisions differ."""
    pairs: dict[str, int]
    """Number of these by the champion's and the candidate's decision, such as "benign to malignant"."""
    groups: list[ShadowGroup]
    """All pictures, and the pictures by subgroup."""
    unanswered: int
    """Number of the champion's pictures in these days that the candidate did not judge: it only gets what is spare."""
    set_aside: int
    """Number of the candidate's lines that cannot be read."""
    summary: str
    """What the candidate would have changed, in one sentence."""
    decision: ShadowDecision | None = None
    """What the gate decided; absent as long as it has not."""
