"""The performance of a model, as evaluation.json, summary.json and model.json hold it.

Metrics that the classes in the images do not allow are absent.
"""

from thyroid.interval import Interval
from thyroid.records.record import Record


class Level(Record):
    """Metrics on one level: of images, or of patients."""

    auroc: Interval | None = None
    """Area under the ROC curve of malignant against benign."""
    auprc: Interval | None = None
    """Area under the precision-recall curve."""
    macro_auroc: Interval | None = None
    """Mean over the classes of the AUROC of each against all others."""
    kappa: Interval | None = None
    """Cohen's kappa of the called classes, weighted by squares where the classes are ordered."""
    brier: Interval
    """Brier score of the probability of malignant."""
    ece: Interval
    """Expected calibration error of the probability of malignant."""
    ece_unscaled: Interval
    """The same before temperature scaling."""
    sensitivity: Interval | None = None
    """Share of malignant ones that are called malignant at the locked threshold."""
    specificity: Interval | None = None
    """Share of benign ones that are called benign at the locked threshold."""
    ppv: Interval | None = None
    """Share of malignant ones among those called malignant."""
    npv: Interval | None = None
    """Share of benign ones among those called benign."""
    ppv_at_prevalence: Interval | None = None
    """The same where the share of malignant nodules is the stated prevalence."""
    npv_at_prevalence: Interval | None = None
    """The same where the share of malignant nodules is the stated prevalence."""
    ece_if_calibrated: float
    """Expected calibration error of as many perfectly calibrated probabilities."""
    accuracy: float
    """Share whose most probable class is the true one."""
    majority: float
    """Accuracy of always answering the most frequent class."""
    confusion: list[list[int]]
    """Counts [true, called] of benign and malignant at the locked threshold."""
    class_confusion: list[list[int]]
    """Counts [true, called] of the classes."""


class ClassPerformance(Record):
    """Metrics of one class against all others."""

    n: int
    """Number of images of the class."""
    patients: int
    """Number of patients with such images."""
    threshold: float
    """Probability from which an image counts as this class."""
    auroc: Interval | None = None
    """Area under the ROC curve."""
    sensitivity: Interval | None = None
    """Sensitivity at the threshold."""
    specificity: Interval | None = None
    """Specificity at the threshold."""
    ppv: Interval | None = None
    """Positive predictive value at the threshold."""
    npv: Interval | None = None
    """Negative predictive value at the threshold."""


class Abstention(Record):
    """What is left where the most doubtful images get no decision."""

    share: Interval
    """Share of images that are left undecided."""
    sensitivity: Interval | None = None
    """Sensitivity on the rest."""
    specificity: Interval | None = None
    """Specificity on the rest."""


class Performance(Level):
    """Every metric of one model's predictions in one domain and split. The fields of `Level` are by image."""

    n: int
    """Number of images."""
    patients: int
    """Number of patients."""
    patient_level: Level
    """The same metrics by patient: the mean probability of the patient's images."""
    classes: dict[str, ClassPerformance]
    """Each class against all others, by name."""
    abstention: Abstention | None = None
    """Absent without an abstention band."""


class AUROC(Record):
    """An AUROC that ranks the models."""

    auroc: Interval
    """Area under the ROC curve."""


class ValidationPerformance(AUROC):
    """What the operating point reaches on the images that it was locked on.

    The AUROC is that of the images alone, by which models are ranked, also where the model uses clinical columns.
    """

    n: int
    """Number of images."""
    patients: int
    """Number of patients."""
    macro_auroc: Interval
    """Mean over the classes of the AUROC of each against all others."""
    sensitivity: Interval
    """Sensitivity at the threshold."""
    specificity: Interval
    """Specificity at the threshold."""
    ece: Interval
    """Expected calibration error."""
    ece_unscaled: Interval
    """The same before temperature scaling."""
    malignant_patients: int
    """Number of malignant patients, on which the threshold rests."""


class OperatingPointFields(Record):
    """How probabilities are scaled, and where they become a decision."""

    temperature: float
    """Temperature of the scaling."""
    bias: list[float]
    """Bias of each class, added to the logarithm of its probability."""
    threshold: float
    """Probability of malignant from which an image is called malignant."""
    thresholds: list[float]
    """Probability of each class from which an image counts as that class against all others."""
    band: list[float] | None = None
    """Probabilities from the first up to the second get no decision; absent without an abstention band."""


class EvaluateSettings(Record):
    """What the clinic asked for, on which threshold and predictive values depend."""

    sensitivity: float
    """Sensitivity that the threshold had to reach on validation."""
    abstain: float
    """Share of validation images to leave undecided."""
    prevalence: float
    """Share of malignant nodules where the model would be used."""
