"""The external validation of a model: validation.json, and the entry that the registry keeps beside the version."""

from thyroid.interval import Interval
from thyroid.records.data import ClassFields
from thyroid.records.evaluation import SubgroupRow
from thyroid.records.gate import AuditRecord, GateRecord
from thyroid.records.performance import Performance
from thyroid.records.record import Record


class ValidatedModel(Record):
    """The version that was validated."""

    name: str
    """Name of the model."""
    version: int
    """Version in the registry."""
    asked: str
    """What was asked for: a number, "champion" or "candidate"; "" for the champion, or else the candidate."""
    released: bool
    """Whether the version is the champion."""
    sha256: str
    """SHA-256 of its model.json, which identifies the version wherever a copy of it is."""
    backbone: str
    """Name of the backbone."""
    serving_domain: str
    """What the endpoint makes of a picture without a region, normal or cropped."""
    form: str
    """Form of the model that answered, one of the forms of model.json."""
    sensitivity: float
    """Sensitivity that its threshold was locked for."""
    threshold: float
    """Locked threshold."""


class SiteScans(Record):
    """The scans of the site, and what became of them. Nothing of them is a name or a number of a patient."""

    listed: int
    """Number of files that were found."""
    quarantined: int
    """Number of files that cannot be used; quarantine.csv gives the reasons."""
    taken_out: dict[str, int]
    """Number of usable scans that the model knows, by reason: trained_file, trained_picture, trained_patient,
    tested_file, tested_picture, tested_patient. taken_out.csv names them."""
    unchecked: str | None
    """Why patients could not be compared with those of the model; null if they were."""
    scans: int
    """Number of scans that were validated."""
    patients: int
    """Number of their patients."""
    classes: dict[str, int]
    """Number of these scans by class."""
    malignant_patients: int
    """Number of patients with a malignant scan."""
    without_region: int
    """Number of these scans without a given region."""
    synthetic: int
    """Number of these scans that the phantom drew."""


class Beside(Record):
    """A metric at the site beside the same metric on the internal test set."""

    internal: Interval | None
    """On the model's internal test set; null where it was not measured."""
    external: Interval | None
    """At the site; null where its classes do not allow it."""
    difference: Interval | None
    """External less internal, with the interval of two independent samples (MOVER: Zou & Donner 2008,
    10.1002/sim.3095; Newcombe 1998); null where one of them is null or has no interval."""


class CalibrationBin(Record):
    """A group of images with similar probabilities."""

    predicted: float
    """Mean probability of malignant."""
    observed: Interval
    """Share of malignant images, with its exact interval by patient."""
    images: int
    """Number of images."""
    patients: int
    """Number of patients."""


class Calibration(Record):
    """How well the probabilities fit the site (Van Calster et al. 2019, 10.1186/s12916-019-1466-7). By image."""

    in_the_large: Interval
    """Intercept of a logistic regression of the truth with the logit of the probability as offset; 0 is perfect, and
    above 0 the probabilities are too low."""
    slope: Interval
    """Slope of a logistic regression of the truth on the logit of the probability; 1 is perfect, and below 1 the
    probabilities are too extreme."""
    observed_to_expected: Interval
    """Share of malignant images divided by the mean probability; 1 is perfect."""
    bins: list[CalibrationBin]
    """Points of the reliability plot, in bins with equal numbers of images."""


class NetBenefit(Record):
    """A point of the decision curve (Vickers & Elkin 2006, 10.1177/0272989X06295361)."""

    threshold: float
    """Probability from which a nodule would be sampled."""
    model: float
    """Net benefit of the model."""
    everybody: float
    """Net benefit of sampling every nodule."""


class FormResult(Record):
    """The model at the site with one kind of boxes."""

    performance: Performance
    """Every metric at the locked threshold, by image and by patient; what the site's classes do not allow is absent."""
    internal_domain: str | None
    """Domain of the internal test that it is compared with; null where there is none."""
    beside: dict[str, Beside]
    """auroc, sensitivity, specificity, ppv_at_prevalence, npv_at_prevalence, brier and ece by image, and the same with
    the prefix patient_ by patient."""
    calibration: Calibration | None
    """Calibration; null where the site has one class only."""
    net_benefit: list[NetBenefit]
    """The decision curve; empty where the site has one class only."""
    subgroups: list[SubgroupRow]
    """Metrics by subgroup: the columns of clinical.csv, the size of the region, and the scanner."""
    undecided: dict[str, int]
    """Number of images that the endpoint would leave undecided, by reason."""


class Unlike(Record):
    """How unlike the training scans one property of the site's scans is."""

    name: str
    """The property, such as mean_grey or frame_width."""
    training: list[float]
    """Its 5 %, 25 %, 50 %, 75 % and 95 % quantiles over the training scans."""
    site: list[float]
    """The same over the site's scans."""
    outside: float
    """Share of the site's scans outside the training scans' 1 % to 99 % range; 0.02 is expected of the same scans."""
    auroc: Interval
    """AUROC with which the property alone tells the site's scans from the training scans; .5 if they are alike."""


class Unlikeness(Record):
    """How unlike the training scans the site's scans are, without a look at their labels."""

    properties: list[Unlike]
    """By property, the most unlike first."""
    new_frames: float
    """Share of the site's frames whose size in pixels no training frame has."""
    summary: str
    """What that means, in one sentence."""


class Recalibration(Record):
    """What fitting temperature, bias and threshold on the site's own patients would gain, cross-fitted."""

    boxes: str
    """Kind of boxes of the predictions that it was fitted on."""
    folds: int
    """Number of folds, by patient and near-duplicate."""
    patients: int
    """Number of patients that it was fitted on."""
    temperature: float
    """Temperature that was fitted on all of them. It replaces the version's own."""
    bias: list[float]
    """Bias of each class."""
    threshold: float
    """Threshold."""
    before: dict[str, Interval]
    """sensitivity, specificity, ece, brier and observed_to_expected as the version is."""
    after: dict[str, Interval]
    """The same with the operating point that was fitted without the patients that it is measured on."""
    gain: dict[str, Interval]
    """After less before, on the same patients."""
    summary: str
    """What that means, in one sentence."""
    version: int | None = None
    """Version that it was registered as; absent if it was not."""
    gate: GateRecord | None = None
    """Decision of the gate; absent if it was not registered."""


class PatientsNeeded(Record):
    """How many patients the site needs until the lower bound of its sensitivity passes a figure."""

    wanted: float
    """The figure."""
    sensitivity: Interval
    """Sensitivity at the site now, by patient."""
    malignant: int | None
    """Number of malignant patients at which the exact lower bound is expected to pass it, if the sensitivity stays as
    it is; null where it never does."""
    patients: int | None
    """Number of patients in all, at the site's share of malignant ones."""
    summary: str
    """The same in one sentence."""


class ValidateSettings(Record):
    """What was asked of a validation."""

    prevalence: float
    """Share of malignant nodules for the predictive values."""
    wanted: float
    """Sensitivity that the lower bound is to pass."""
    seed: int
    """Seed of the bootstrap and of the folds."""


class ValidationRecord(ClassFields):
    """validation.json: a registered model at a site whose scans it has never seen."""

    notice: str
    """Research use only."""
    site: str
    """Name of the site."""
    created: str
    """When, in ISO 8601 (UTC)."""
    by: str
    """Who ran it."""
    code_version: str
    """Version of the package that measured."""
    model: ValidatedModel
    """The model."""
    data_digest: str
    """Digest of the scans that were validated."""
    scans: SiteScans
    """The scans."""
    main: str
    """The kind of boxes that leads the report: given, automatic or frame."""
    forms: dict[str, FormResult]
    """Results by kind of boxes: "given" (regions of rois.csv), "automatic" (the model's own locator), or "frame" (full
    frames, for a model that serves those)."""
    agreement: Beside | None = None
    """AUROC with automatic boxes (external) beside that with given ones (internal) on the same frames; absent without
    both."""
    audits: AuditRecord | None
    """The shortcut audit on these scans; null where it could not be run."""
    not_audited: str | None
    """Why there is no audit; null if there is one."""
    unlike: Unlikeness | None
    """How unlike the training scans these are; null where the version does not record its training scans."""
    recalibration: Recalibration | None
    """What a recalibration would gain; null where there are too few patients of a class."""
    not_recalibrated: str | None
    """Why there is none; null if there is one."""
    needed: PatientsNeeded | None
    """How many patients are needed; null without malignant patients."""
    mistakes: dict[str, int]
    """Number of false negatives and false positives of the leading kind of boxes."""
    warnings: list[str]
    """What a reader must know before the figures, one sentence each."""
    settings: ValidateSettings
    """What was asked."""
    seconds: dict[str, float]
    """Seconds by stage."""


class ValidationEntry(Record):
    """What the registry keeps of a validation beside the version, in its validations.json."""

    site: str
    """Name of the site."""
    created: str
    """When, in ISO 8601 (UTC)."""
    by: str
    """Who ran it."""
    code_version: str
    """Version of the package that measured."""
    data_digest: str
    """Digest of the scans."""
    model: str
    """SHA-256 of the model.json that was validated."""
    boxes: str
    """Kind of boxes of the figures."""
    images: int
    """Number of images."""
    patients: int
    """Number of patients."""
    malignant_patients: int
    """Number of malignant patients."""
    taken_out: int
    """Number of scans that the model knew and that were taken out."""
    synthetic: int
    """Number of scans that the phantom drew."""
    figures: dict[str, Beside]
    """Some of `FormResult.beside`: auroc, sensitivity, specificity, ppv_at_prevalence and npv_at_prevalence, and the
    first three with the prefix patient_."""
    in_the_large: Interval | None
    """See `Calibration`."""
    slope: Interval | None
    """See `Calibration`."""
    observed_to_expected: Interval | None
    """See `Calibration`."""
    recalibrated: int | None = None
    """Version that a recalibration on these scans was registered as; absent if none was."""


class ValidationsRecord(Record):
    """validations.json of a version in the registry: every external validation, oldest first."""

    validations: list[ValidationEntry]
    """The validations."""
