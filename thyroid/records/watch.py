"""What is known of a model after its release: a line of the decision log, watch.json, and the entry in the registry."""

from typing import Annotated, Literal

from pydantic import Field

from thyroid.interval import Interval
from thyroid.records.gate import ShadowRecord
from thyroid.records.record import Record

GIVEN, AUTO, WHOLE, FRAME = "given", "auto", "whole", "frame"
"""What was judged: see `Decision.source`."""
SHADOW_FOLDER = "shadow"
"""Folder within that of the decision log, for what a candidate behind the champion makes of the same images."""

_Whole = Annotated[int, Field(ge=-(2**63), lt=2**63)]
"""A whole number that a table can hold."""


class Decision(Record):
    """The decision on one image: a line of the log. It holds no pixels, no file name and no patient number."""

    id: str
    """Identifies the decision. The log chooses it, so that it is unique even where a client repeats a request's id."""
    request: str
    """Id of the request, as the header x-request-id of its answer has it."""
    number: _Whole
    """Number of the image within the request, from 0."""
    time: str
    """When it was made, in ISO 8601 (UTC) with milliseconds."""
    image: str
    """Keyed hash of the file's bytes (`pseudonyms.of_file`)."""
    patient: str | None = None
    """Keyed hash of the patient (`pseudonyms.of_patient`); absent if the request names none."""
    version: _Whole
    """Version of the model in the registry."""
    form: str
    """Form of the model that answered, such as openvino-f32."""
    source: Literal["given", "auto", "whole", "frame"]
    """What was judged: the crop of a box that the request gave, that of an automatic box, an image that is a crop
    itself, or a full frame."""
    probability: float = Field(ge=0, le=1)
    """Calibrated probability of malignant."""
    decision: Literal["benign", "malignant", "abstain"]
    """Decision at the operating point."""
    reasons: list[str]
    """Reasons of abstention; empty for a decision."""
    novelty: float | None = Field(None, ge=0, le=100)
    """Percentile of the image's distance among the training images; absent if the model has no reference."""
    distance: float | None = Field(None, ge=0)
    """The same distance as a multiple of the model's limit: above 1 the image is unlike the training images."""
    box_probability: float | None = Field(None, ge=0, le=1)
    """Probability that an automatic box fits a nodule; absent for the other sources."""
    width: _Whole = Field(ge=1)
    """Width of the image as it was sent, in pixels."""
    height: _Whole = Field(ge=1)
    """Height of the image as it was sent, in pixels."""
    box: list[_Whole] = Field(min_length=4, max_length=4)
    """The box that was judged, as x, y, width and height in pixels of the image."""
    features: list[float] | None = None
    """The network's features, projected as for novelty; absent unless the log is asked for them."""


class Shadowed(Record):
    """What a candidate behind the champion makes of an image that the champion has decided on: a line of its own log.

    Like a decision, it holds no pixels, no file name and no patient number.
    """

    id: str
    """Id of the champion's decision (`Decision.id`)."""
    time: str
    """When the candidate answered, in ISO 8601 (UTC) with milliseconds."""
    image: str
    """Keyed hash of the file's bytes, as in the decision."""
    patient: str | None = None
    """Keyed hash of the patient, as in the decision; absent if the request names none."""
    version: _Whole
    """Version of the candidate in the registry."""
    form: str
    """Form of the candidate that answered, such as openvino-f32."""
    probability: float = Field(ge=0, le=1)
    """The candidate's calibrated probability of malignant."""
    decision: Literal["benign", "malignant", "abstain"]
    """Its decision at its own operating point."""
    reasons: list[str]
    """Its reasons of abstention; empty for a decision."""
    novelty: float | None = Field(None, ge=0, le=100)
    """Percentile of the image's distance among the candidate's training images; absent if it has no reference."""
    distance: float | None = Field(None, ge=0)
    """The same distance as a multiple of the candidate's limit."""


class DriftRow(Record):
    """One property of one source, compared with the reference in one window of nights."""

    source: str
    """What was judged, as in the log."""
    property: str
    """probability, distance, box_probability, width, height, aspect or box_share; or abstain or malignant, which are
    shares of decisions."""
    nights: int
    """Length of the window in nights, which ends with the night of the report."""
    n: int
    """Number of patients in the window (of requests, where they name no patient)."""
    reference_n: int
    """Number of patients of the reference."""
    value: float
    """Median in the window, or the share."""
    reference: float
    """Median of the reference, or its share."""
    difference: float
    """Largest distance of the two distribution functions (Kolmogorov-Smirnov), or of the shares; 0 to 1."""
    p: float
    """p-value of the comparison."""
    alarm: bool
    """Whether p is at most `DriftRecord.level` and the difference at least `DriftRecord.smallest`."""


class DriftRecord(Record):
    """Whether what arrives is still what the model was made for."""

    night: str
    """The last night that was looked at, as an ISO date (UTC)."""
    nights: int
    """Number of nights with decisions since the release."""
    level: float
    """Level of each comparison, so that all comparisons of a year together raise a false alarm with at most
    `yearly`."""
    yearly: float
    """Largest probability of a false alarm in a year."""
    smallest: float
    """Smallest difference that raises an alarm, however sure it is."""
    rows: list[DriftRow]
    """All comparisons of the last night, alarms first."""
    alarm: bool
    """Whether one of them raised an alarm."""
    first_alarm: str | None
    """The first night of the present run of alarms; null without an alarm."""
    alarms: list[str]
    """All nights with an alarm since the release."""
    skipped: str | None = None
    """Why nothing was compared, in words; absent if something was."""


class EstimatedPerformance(Record):
    """The AUROC that the calibrated probabilities themselves promise, without any outcome."""

    source: str
    """What was judged, as in the log."""
    patients: int
    """Number of patients (of requests, where they name no patient)."""
    auroc: Interval
    """Estimated AUROC with its 95 % interval. It is right only as long as the probabilities are calibrated."""
    internal: Interval | None
    """AUROC by patient of the internal test of the same source; null where it was not measured."""


class Sequential(Record):
    """A share of right decisions since the release, with a test that may be looked at every night."""

    name: Literal["sensitivity", "specificity"]
    """The share."""
    n: int
    """Number of patients with that outcome and a decision."""
    right: int
    """Number of them that were decided rightly."""
    value: Interval
    """The share with its confidence sequence, which holds at all times together with 95 %. Where n is 0, 0 without
    bounds."""
    expected: float
    """The share that the model is held to."""
    fallen: float
    """The share that the alarm is tuned to detect."""
    statistic: float
    """Present value of the CUSUM."""
    threshold: float
    """Value from which the CUSUM raises an alarm."""
    alarm: bool
    """Whether the CUSUM has reached the threshold since the release."""
    alarm_at: str | None
    """Date of the outcome at which it did; null without an alarm."""
    alarm_after: int | None
    """Number of such outcomes until then; null without an alarm."""


class OutcomesRecord(Record):
    """What the outcomes that became known since the release say of the decisions."""

    rows: int
    """Number of rows of outcomes.csv."""
    set_aside: dict[str, int]
    """Number of rows that were not used, by reason."""
    patients: int
    """Number of patients (of images, where no patient is named) with a decision before their outcome."""
    malignant: int
    """Number of them with a malignant outcome."""
    abstained: dict[str, int]
    """Number of them that the model left undecided, by outcome: benign and malignant."""
    tests: list[Sequential]
    """Sensitivity and specificity of the decisions; an undecided patient counts in neither."""
    auroc: Interval | None
    """AUROC by patient with its 95 % interval; null where the outcomes are of one class."""
    majority: float | None
    """Share of the more frequent outcome among the decided; null without any."""
    accuracy: Interval | None
    """Share of right decisions among the decided; null without any."""
    observed_to_expected: Interval | None
    """Number of malignant outcomes divided by the sum of the probabilities; 1 is perfect."""
    brier: Interval | None
    """Mean squared difference of probability and outcome; 0 is perfect."""
    first: str | None
    """Date of the first outcome that was used."""
    last: str | None
    """Date of the last one."""


class WatchedModel(Record):
    """The version that was watched."""

    name: str
    """Name of the model."""
    version: int
    """Version in the registry."""
    released: bool
    """Whether the version is the champion."""
    created: str
    """When it was published, in ISO 8601 (UTC)."""
    sha256: str
    """SHA-256 of its model.json."""
    backbone: str
    """Name of the backbone."""
    novelty: bool
    """Whether it can tell that a picture is unlike the training pictures."""


class WatchedLog(Record):
    """What was read of the log."""

    decisions: int
    """Number of decisions of the version that were used."""
    patients: int
    """Number of patients of these decisions (of requests, where they name no patient)."""
    first: str | None = None
    """Day (UTC) of the first of these decisions, as an ISO date; null without any."""
    last: str | None = None
    """Day (UTC) of the last one."""
    other_versions: int
    """Number of decisions of other versions."""
    set_aside: dict[str, int]
    """Number of lines that were not used, by reason: damaged, doubled, too_early or in_future."""
    sources: dict[str, int]
    """Number of decisions by what was judged."""
    decided: dict[str, int]
    """Number of decisions by decision."""
    unlike: int
    """Number of decisions on images unlike the training images."""
    reasons: dict[str, int]
    """Number of abstentions by reason."""
    archived: int
    """Number of decisions that this run added to the archive."""


class WatchRecord(Record):
    """watch.json: a released model since its release."""

    notice: str
    """Research use only."""
    created: str
    """When the report was made, in ISO 8601 (UTC)."""
    code_version: str
    """Version of the package that made it."""
    model: WatchedModel
    """The version."""
    log: WatchedLog
    """The log."""
    scans: int
    """Number of new scans that were judged beside the log."""
    drift: DriftRecord
    """Whether what arrives has changed."""
    estimated: list[EstimatedPerformance]
    """Performance estimated without outcomes, by what was judged."""
    outcomes: OutcomesRecord | None
    """Performance by outcomes; null without outcomes.csv."""
    shadow: ShadowRecord | None = None
    """What the candidate behind this version would have changed; absent if none answered behind it."""
    verdict: Literal["drift", "worse", "steady", "unknown"]
    """worse: an outcome test raised an alarm; drift: a comparison did; steady: neither; unknown: nothing could be
    compared."""
    summary: str
    """The verdict in one sentence."""
    seconds: dict[str, float]
    """Seconds by part."""


class WatchEntry(Record):
    """The newest verdict on a version, which the registry keeps beside it."""

    created: str
    """When it was made, in ISO 8601 (UTC)."""
    night: str
    """The last night that was looked at, as an ISO date (UTC)."""
    model: str
    """SHA-256 of the version's model.json."""
    verdict: Literal["drift", "worse", "steady", "unknown"]
    """As in watch.json."""
    summary: str
    """The verdict in one sentence."""
    since: str | None
    """The first night of the present run of alarms; null without an alarm."""
    code_version: str
    """Version of the package that made it."""
