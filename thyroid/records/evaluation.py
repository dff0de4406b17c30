"""evaluation.json and summary.json: what an evaluation measured, decided and registered."""

from pydantic import ConfigDict

from thyroid.interval import Interval
from thyroid.records.clinical import ClinicalRecord
from thyroid.records.data import ClassFields
from thyroid.records.gate import AuditRecord, GateRecord
from thyroid.records.locate import AutomaticBoxes, LocatorRecord
from thyroid.records.model import DescriptorsRecord, NoveltyRecord
from thyroid.records.performance import (
    AUROC,
    EvaluateSettings,
    OperatingPointFields,
    Performance,
    ValidationPerformance,
)
from thyroid.records.record import Record
from thyroid.records.train import DiagnosisRecord


class DataFields(Record):
    """The fields of data.json that a reader of the result needs."""

    digest: str
    """SHA-256 over the content of all scans in use."""
    scans: int
    """Number of scans in use."""
    quarantined: int
    """Number of rows of quarantine.csv: files, and rows of rois.csv."""
    patients: int
    """Number of patients."""
    duplicate_groups: int
    """Number of groups of near-duplicates."""
    splits: dict[str, dict[str, int]]
    """For train, validation and test: the number of images of each class, and the number of patients."""


class LockedPoint(OperatingPointFields):
    """The operating point of a model."""

    sensitivity: float
    """Sensitivity that the threshold had to reach on validation."""


class ModelRow(Record):
    """One model of the ranking."""

    backbone: str
    """Name of the backbone."""
    train_domain: str
    """Domain that it was trained on, normal or cropped."""
    recipe: str
    """Name of the recipe."""
    weights: str
    """Weights that the training started from."""
    image_size: int
    """Side of the square input in pixels."""
    parameters: int
    """Number of parameters."""
    checkpoint: str
    """Name of the checkpoint."""
    seconds: float
    """Seconds that the training took."""
    starts: dict[str, float] | None = None
    """What the warm recipe compared; absent for other recipes, and without a usable champion."""
    tuned: str | None = None
    """How the recipe's settings differ from the defaults, in words; absent for the deck's recipe."""
    bytes: int
    """Size of the checkpoint."""
    operating_point: LockedPoint
    """The operating point, locked on validation before any test image was read."""
    validation: ValidationPerformance
    """Metrics on the validation images, on which the operating point was locked."""
    cross_validation: AUROC | None = None
    """AUROC over all development patients, each scored by a model that did not see them; absent without folds."""
    test: dict[str, Performance]
    """Metrics on the test set, by domain. The domain "automatic" is that of test frames with a marked nodule as they
    come: models of crops see the crop of the automatic box, models of full frames the frame."""

    def chosen_by(self, ranked_by: str) -> Interval:
        """Return the AUROC that ranked the models: that on "validation", or the cross-validated one."""
        if ranked_by == "cross_validation" and self.cross_validation is not None:
            return self.cross_validation.auroc
        return self.validation.auroc


class Winner(Record):
    """The model that was chosen."""

    backbone: str
    """Name of the backbone."""
    train_domain: str
    """Domain that it was trained on."""


class TestPart(Record):
    """The winner on a part of the test set."""

    images: int
    """Number of images."""
    patients: int
    """Number of patients."""
    auroc: Interval | None = None
    """AUROC; absent where the part has one class only."""


class ChangesRecord(Record):
    """What has changed since the last registered model."""

    since: int | None
    """Version of that model; null where there is none."""
    kept: int
    """Number of scans that have not changed."""
    new: dict[str, int]
    """Number of new scans by class."""
    changed: dict[str, int]
    """Number of scans with another class or other regions, by class."""
    removed: dict[str, int]
    """Number of scans that are no longer in use, by class."""
    test_new: TestPart
    """The winner on test images that are new."""
    test_known: TestPart
    """The winner on the other test images."""


class DomainMatrix(Record):
    """One backbone trained on each domain and tested on each."""

    cells: dict[str, dict[str, Interval]]
    """AUROC by the domain trained on, then by the domain tested on; with a locator also on "automatic"."""
    drop: dict[str, Interval]
    """By the domain trained on: the AUROC there minus the AUROC in the other domain."""
    shortfall: dict[str, Interval]
    """By the domain tested on: the AUROC of the model trained there minus that of the other model."""


class SubgroupRow(Record):
    """The winner on the test images of one subgroup."""

    column: str
    """Column of clinical.csv."""
    group: str
    """Value, or range of values."""
    images: int
    """Number of images."""
    patients: int
    """Number of patients."""
    malignant: int
    """Number of malignant patients."""
    benign: int
    """Number of benign patients."""
    small: bool
    """Whether a class has so few patients that the metrics are uncertain."""
    auroc: Interval | None = None
    """AUROC; absent where the group has one class only."""
    sensitivity: Interval | None = None
    """Sensitivity; absent without malignant images."""
    specificity: Interval | None = None
    """Specificity; absent without benign images."""
    less_champion: dict[str, Interval] | None = None
    """AUROC and specificity minus those of the champion; absent for small groups and without a champion."""


class Measured(ClassFields):
    """What an evaluation measured and decided, before the artefact is made of it."""

    data: DataFields
    """The data version."""
    models: list[ModelRow]
    """All models, best first."""
    ranked_by: str
    """AUROC that ranked the models: "validation" or "cross_validation". The test set never ranks."""
    winner: Winner
    """The first of the models."""
    serving_domain: str
    """Domain in which the models were compared."""
    domains: list[str]
    """Domains that the models were tested on; the last one is "automatic" if there is a locator."""
    changes: ChangesRecord | None
    """What has changed since the last registered model; null without a registry."""
    domain_matrix: dict[str, DomainMatrix]
    """Backbones that were trained on both domains, by name."""
    audits: AuditRecord
    """Audits of the winner."""
    other_audits: list[AuditRecord]
    """Audits of models with the same backbone in the other domains."""
    subgroups: list[SubgroupRow]
    """The winner by subgroup; empty without clinical.csv."""
    clinical: ClinicalRecord | None
    """What clinical.csv was worth; null without it."""
    gate: GateRecord
    """Decision of the champion gate."""
    locator: LocatorRecord | None = None
    """The locator whose boxes were tried; absent without one."""
    without_locator: str | None = None
    """Why no automatic box was tried, in words; absent if some were, and if the evaluation was given none."""
    automatic_boxes: AutomaticBoxes | None = None
    """What automatic boxes cost the winner, and whether it may decide on them; absent without a locator and for a
    winner that was trained on full frames or serves them."""
    novelty: NoveltyRecord | None = None
    """How unlike the training images an image may be, and what that limit catches; absent where there is no reference,
    and in evaluations of older releases."""
    novelty_skipped: str | None = None
    """Why there is no reference for novelty, in words; absent if there is one."""
    descriptors: DescriptorsRecord | None = None
    """Which sonographic descriptors the winner tells; absent where no labels were given, and in evaluations of older
    releases."""
    descriptors_skipped: str | None = None
    """Why labels of descriptors were given and not used, in words; absent if they were used."""
    settings: EvaluateSettings
    """What the user asked for."""
    worst: dict[str, int]
    """Numbers of all mistakes of the winner, as false-negatives and false-positives."""
    diagnosis: list[DiagnosisRecord]
    """Checks of every training."""
    seconds: dict[str, float]
    """Seconds that each step took."""


class EvaluationRecord(Measured):
    """evaluation.json: what an evaluation measured and decided."""

    model_config = ConfigDict(title="evaluation.json")

    artefact: str
    """SHA-256 of the artefact's model.json."""
    patients: str | None = None
    """SHA-256 of patients.csv, which does not leave the evaluation. summary.json does not have this field."""


class Registered(Record):
    """The version that was registered."""

    name: str
    """Name of the model."""
    version: int
    """Version."""
    uri: str
    """Folder, gs:// or s3:// address of the version."""
    sha256: str
    """SHA-256 of the model's file."""


class SummaryRecord(EvaluationRecord):
    """summary.json: the evaluation and the version that was registered. It is the result of a run."""

    model_config = ConfigDict(title="summary.json")

    model: Registered
    """The registered version."""
