"""model.json: everything that the endpoint, the gate and a reader need to know about a model."""

from pathlib import Path
from typing import Any, Literal, Self

from thyroid.interval import Interval
from thyroid.records.clinical import FusionRecord
from thyroid.records.data import ClassFields
from thyroid.records.gate import GateRecord
from thyroid.records.locate import AutomaticBoxes, LocatorRecord
from thyroid.records.performance import EvaluateSettings, OperatingPointFields, Performance, ValidationPerformance
from thyroid.records.record import Record
from thyroid.tirads import kinds


class FormTest(Record):
    """Test metrics of another form of the model than Keras."""

    n: int
    """Number of images."""
    auroc: Interval
    """AUROC."""
    sensitivity: Interval | None = None
    """Sensitivity at the locked threshold."""
    specificity: Interval | None = None
    """Specificity at the locked threshold."""
    ece: Interval
    """Expected calibration error."""
    confusion: list[list[int]]
    """Counts [true, called] of benign and malignant."""


class KerasForm(Record):
    """The metrics of the model in the form that was evaluated."""

    validation: ValidationPerformance
    """Metrics on the validation images, on which the operating point was locked."""
    test: dict[str, Performance]
    """Metrics on the test set, by domain; for a recalibrated model, cross-fitted ones on the patients of its site."""
    measured_in: str | None = None
    """Form that ran for these metrics, where it was not Keras; its own entry says how far it is from Keras. Absent for
    a model that an evaluation made."""


class OtherForm(Record):
    """What another form of the model changes."""

    largest_difference: float
    """Largest difference of the probability of malignant from Keras on the test images. For a recalibrated model, whose
    site runs no Keras, the larger of the same difference before and of that on the reference image after."""
    decisions_changed: int | None
    """Number of test images that it decides otherwise; null for a recalibrated model."""
    test: FormTest
    """Its own metrics on the test images."""


class ModelAudit(Record):
    """The part of the audits that stays with the model."""

    domain: str
    """Domain of the images."""
    shortcut: dict[str, Interval]
    """AUROC of the model and of each baseline that must not know the answer, by name."""
    kept: dict[str, float]
    """Share of the distance from chance that is kept without the nodule."""
    findings: dict[str, str]
    """What was found, in words, by audit."""


class FrameSize(Record):
    """A size of frames."""

    width: int
    """In pixels."""
    height: int
    """In pixels."""
    frames: int
    """Number of training frames of this size."""


class TrainingScans(Record):
    """What the scans of the train split are like, by which the scans of another hospital are compared with them.

    It holds quantiles over scans and counts, and nothing of a single patient.
    """

    scans: int
    """Number of scans of the train split."""
    patients: int
    """Number of their patients."""
    quantiles: dict[str, list[float]]
    """By property (see `thyroid.model.scan_statistics`), the 101 quantiles over the scans, from the 0 % to the 100 %
    quantile in steps of 1 %. A property that none of the scans has is absent."""
    sizes: list[FrameSize]
    """The most frequent sizes of the frames, at most 20, the most frequent one first."""
    other_sizes: int
    """Number of frames of other sizes."""


class ForeignImages(Record):
    """How well novelty detects one kind of foreign images."""

    kind: str
    """The kind, such as blank, noise or photograph (see `thyroid.evaluate.novelty.foreign`)."""
    images: int
    """Number of images."""
    auroc: Interval
    """AUROC with which the distance tells them from the test images. Its interval resamples patients and images."""
    caught: float
    """Share of them beyond the limit."""


class NoveltyRecord(Record):
    """How unlike the training images an image may be. The file novelty.npz has what the distance is computed from.

    It holds means, directions and quantiles over images, and nothing of a single patient.
    """

    images: int
    """Number of training images that the reference was fitted on."""
    patients: int
    """Number of their patients."""
    features: int
    """Number of features of an image: seven statistics of its pixels, and the features of the network."""
    components: int
    """Number of principal components whose variance is kept apart."""
    quantiles: list[float]
    """The 101 quantiles of the training images' distances, from the 0 % to the 100 % quantile, each image measured with
    a reference of the other patients."""
    limit: float
    """Distance beyond which an image is unlike the training images, locked on validation patients."""
    validation_patients: int
    """Number of validation patients that it was locked on."""
    passed: Interval
    """Share of the test patients none of whose images is beyond the limit."""
    largest_difference: dict[str, float]
    """Largest relative difference of the distance of a test image from Keras, by form of the model."""
    foreign: list[ForeignImages]
    """What foreign images the distance detects, by kind."""


PROPERTIES = ("probability", "distance", "box_probability", "width", "height", "aspect", "box_share")
"""Properties of an answer that have a value for every image: see `UsualAnswers.values`."""


class UsualAnswers(Record):
    """What the answers to held-out patients are like for one kind of source, by which the watch notices drift.

    The values of each property are sorted by themselves, so that nothing tells which belong to one patient.
    """

    patients: int
    """Number of patients, of the validation and the test part."""
    images: int
    """Number of their images."""
    values: dict[str, list[float]]
    """By property, one value per patient, sorted: that of one image, which a seeded draw takes, of at most 1000
    patients. The properties are probability, distance (as a multiple of the limit), box_probability, width, height,
    aspect (width over height) and box_share (share of the image that the box takes)."""
    decisions: dict[str, int]
    """Number of images by decision: benign, malignant, abstain."""
    shares: dict[str, float]
    """Share of the patients whose drawn image was left undecided (abstain), and was called malignant (malignant)."""


class FindingTest(Record):
    """How well one finding is told on test patients, who chose nothing."""

    images: int
    """Number of labelled test images."""
    patients: int
    """Number of their patients."""
    positive_patients: int
    """Number of patients with the finding on an image."""
    auroc: Interval | None
    """AUROC; null where no labelled image has the finding, or all have it."""
    kappa: Interval | None
    """Cohen's kappa of the label and the probability at its threshold; null where the AUROC is."""
    sensitivity: Interval | None
    """Share of the images with the finding that are told to have it; null where there are none."""
    specificity: Interval | None
    """Share of the images without the finding that are told to have none; null where there are none."""
    ece: float | None
    """Expected calibration error; null where the AUROC is."""
    ece_if_calibrated: float | None
    """Expected calibration error of as many perfectly calibrated probabilities; null where the AUROC is."""


class FindingRecord(Record):
    """One value of a descriptor, such as a lobulated margin: how well the network's features show it."""

    descriptor: str
    """Name of the descriptor, see `thyroid.tirads.DESCRIPTORS`."""
    value: str
    """The value that this finding is for or against."""
    patients_with: int
    """Number of development patients with the value on a labelled image."""
    patients_without: int
    """Number of development patients with another value on a labelled image."""
    given: bool
    """Whether the model gives the finding out. The file descriptors.npz holds the given ones alone."""
    why: Literal["too_few", "gives_class_away", "auroc", "surroundings"] | None
    """Why it is withheld: too few patients, a column that gives the class away, an AUROC that may be too low, or
    evidence that is not in the nodule; null if it is given out."""
    detail: str
    """The same in words, with the figures; empty if it is given out."""
    exclude: float | None
    """Probability below which the value is excluded, 0 to 1; null where nothing was fitted."""
    threshold: float | None
    """Probability from which the value is told to be present, 0 to 1; null where nothing was fitted."""
    sure: float | None
    """Probability from which the value is certain enough to rule out others, 0 to 1; null where nothing was fitted."""
    development: Interval | None
    """AUROC on development patients, out of fold; null where nothing was fitted."""
    blanked: Interval | None
    """The same of the surroundings alone, with the nodule blacked out; null where it was not measured."""
    kept: float | None
    """Share of the AUROC's distance from .5 that is kept without the nodule; null where it was not measured, and where
    the AUROC is not above .5."""
    shortcuts: dict[str, Interval]
    """AUROC with which a few numbers tell the value without the network, by name of the shortcut."""
    test: FindingTest | None
    """How well it is told on test patients; null where nothing was fitted, or no test image is labelled."""
    largest_difference: dict[str, float]
    """Largest difference of its probability on a test image from Keras, by form of the model."""


class TiradsRecord(Record):
    """ACR TI-RADS from what the picture shows, and when it disagrees with the probability of malignant."""

    cut: int
    """Points from which TI-RADS counts as suspicious, where it is compared with the model's decision."""
    doubts: bool
    """Whether the model makes no decision where the two disagree. Only if more of the decisions were wrong there, on
    patients that the network did not learn from."""
    why_not: str | None
    """Why it does not, in words; null if it does."""
    covered: Interval | None
    """Share of the labelled test images whose points lie within the interval; null where none has every descriptor."""
    mean_width: float | None
    """Mean width of the interval on test images, in points."""
    compared: int
    """Number of test patients with a decision, which was compared."""
    disagree: int
    """Number of them whose points disagree with the decision."""
    wrong_if_disagree: Interval | None
    """Share of wrong decisions where the two disagree; null if they never do."""
    wrong_if_agree: Interval | None
    """Share of wrong decisions among the other patients; null if there are none."""


class DescriptorsRecord(Record):
    """Which sonographic descriptors the model tells: figures over patients. descriptors.npz has the weights."""

    columns: dict[str, str]
    """Column of the labels by descriptor."""
    notes: list[str]
    """What was unusual about the labels, in words."""
    images: int
    """Number of labelled development images that the findings were fitted on."""
    patients: int
    """Number of their patients."""
    features: int
    """Number of the network's features: the pooled input of the blocks that training unfroze."""
    unfrozen: int
    """Number of these blocks."""
    seen: dict[str, list[str]]
    """Values that a development image is labelled with, by descriptor; of foci the kinds. A descriptor without labels
    is not here."""
    findings: list[FindingRecord]
    """Every value that was looked at, in the order of the lexicon, withheld ones included."""
    word_kappa: dict[str, Interval]
    """Cohen's kappa of label and told word on test images, by descriptor with at least two findings given out."""
    tirads: TiradsRecord | None
    """TI-RADS of the findings given out; null if there are none, or nothing to compare it with."""

    @property
    def given(self) -> list[FindingRecord]:
        """The findings that the model gives out, in the order of the columns of descriptors.npz."""
        return [finding for finding in self.findings if finding.given]

    @property
    def assumed_absent(self) -> dict[str, list[str]]:
        """Values of labelled descriptors that no development image is labelled with. TI-RADS ignores them."""
        unseen = {name: [one for one in kinds(name) if one not in seen] for name, seen in self.seen.items()}
        return {name: values for name, values in unseen.items() if values}


class ModelDescription(ClassFields, OperatingPointFields):
    """What the evaluation says about a model. `Artefact.describe` adds the code version and the files."""

    name: str
    """Name of the model."""
    backbone: str
    """Name of the backbone."""
    weights: str
    """Weights that the training started from."""
    image_size: int
    """Side of the square input in pixels."""
    domain: str
    """Domain that it was trained on, normal or cropped."""
    margin: float
    """Share of a region's sides by which its crop is wider on each side."""
    serving_domain: str
    """Domain that the operating point was locked in: what the endpoint makes of a picture without a region."""
    parameters: int
    """Number of parameters."""
    data_digest: str
    """Digest of the data version."""
    scans: int
    """Number of scans of the data version."""
    synthetic: int
    """Number of scans among them that the phantom drew."""
    settings: EvaluateSettings
    """What the user asked the evaluation for."""
    reference: dict[str, float]
    """Answer to the reference image, by class. The endpoint must give it before it serves."""
    forms: dict[str, KerasForm | OtherForm]
    """Metrics by form; a form that is not here is not served."""
    clinical: FusionRecord | None = None
    """Head that uses clinical columns; absent where the model uses none."""
    audits: ModelAudit
    """What the audits found."""
    locator: LocatorRecord | None = None
    """Locator that boxes the nodule where a request gives no region; absent for models of full frames and where there
    was no region to learn from. Its networks are in the folder `locator`."""
    automatic_boxes: AutomaticBoxes | None = None
    """What automatic boxes cost, and whether the model may decide on them; absent without a locator."""
    training_scans: TrainingScans | None = None
    """What the training scans are like; absent in models of older releases."""
    novelty: NoveltyRecord | None = None
    """How unlike the training images an image may be; absent in models of older releases, and where there were too few
    patients for a reference."""
    usual_answers: dict[str, UsualAnswers] | None = None
    """What the answers to held-out patients are like, by source: given, auto, whole or frame; absent in models of older
    releases."""
    descriptors: DescriptorsRecord | None = None
    """Which sonographic descriptors it tells; absent in models of older releases, and where no labels were given."""
    recalibrated_for: str | None = None
    """Site on whose patients temperature, bias and threshold were fitted; its metrics are of that site. Absent for a
    model that an evaluation made."""
    recalibrated_from: int | None = None
    """Version with the same networks that it was made from; absent for a model that an evaluation made."""

    @classmethod
    def parse(cls, content: Any, place: Path | str, unknown: Literal["forbid", "ignore"] = "forbid") -> Self:
        """Return the record with this content, which an earlier release may have written (see `upgrade`).

        Raises:
            InputError: As for `Record.parse`.
        """
        return super().parse(upgrade(content), place, unknown)


class Publication(Record):
    """What the registry adds when it publishes an artefact."""

    version: int
    """Version in the registry."""
    created: str
    """When it was published, in ISO 8601 (UTC)."""
    parent: int | None
    """Version that was the champion when it was published, or that it was recalibrated from."""
    gate: GateRecord
    """Decision of the champion gate."""


class ArtefactRecord(ModelDescription):
    """model.json of an artefact. The registry adds version, created, parent and gate when it publishes it."""

    code_version: str
    """Version of the package with the first digits of a SHA-256 over its source."""
    files: dict[str, str]
    """SHA-256 of every other file of the artefact, by path."""
    version: int | None = None
    """Version in the registry."""
    created: str | None = None
    """When it was published, in ISO 8601 (UTC)."""
    parent: int | None = None
    """Version that was the champion when it was published, or that it was recalibrated from."""
    gate: GateRecord | None = None
    """Decision of the champion gate."""


def upgrade(content: Any) -> Any:
    """Return the content of model.json in its present shape.

    Up to release 0.1.0 the validation AUROC was a number with its bounds next to it. Published files keep their bytes,
    because their hashes are sealed, so every reading upgrades them.
    """
    try:
        validation = content["forms"]["keras"]["validation"]
        auroc = {"value": validation["auroc"], "low": validation["low"], "high": validation["high"]}
    except (KeyError, TypeError):  # the present shape, or damaged
        return content
    kept = {name: value for name, value in validation.items() if name not in ("low", "high")}
    keras = content["forms"]["keras"] | {"validation": kept | {"auroc": auroc}}
    return content | {"forms": content["forms"] | {"keras": keras}}
