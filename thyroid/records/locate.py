"""locate.json: a locator, how well its boxes fit the nodules that people marked, and when it is unsure."""

from pydantic import Field

from thyroid.interval import Interval
from thyroid.records.record import Record

RECORD, BOXES = "locate.json", "boxes.parquet"
"""Files of the step `locate`: its record and the table of all proposals."""


class BoxCalibration(Record):
    """A logistic function from a proposal's heat and lead to the probability that it fits (IoU of at least .5)."""

    intercept: float
    """Constant term."""
    heat: float
    """Weight of the logit of the proposal's heat."""
    lead: float
    """Weight of the logarithm of the proposal's heat over that of its strongest rival in the frame."""
    runner_up: float = 0.0
    """Constant that is added for proposals that are not the best one."""


class CropRule(Record):
    """A logistic function that tells an image that is already a crop from a full frame."""

    intercept: float
    """Constant term; a positive sum means a crop."""
    side: float
    """Weight of the logarithm of the image's longer side in pixels."""
    area: float
    """Weight of the share of the image that its scan area covers."""
    box: float
    """Weight of the square root of the share of the scan area that the best proposal covers."""
    frames: int
    """Number of test frames on which the rule was measured."""
    frames_right: Interval
    """Share of the test frames that it takes for frames."""
    crops: int
    """Number of crops of test frames on which the rule was measured."""
    crops_right: Interval
    """Share of these crops that it takes for crops."""


class SizeRow(Record):
    """How well the best box fits nodules of one size."""

    size: str
    """Third of the frames by the side of their largest nodule: small, middle or large."""
    frames: int
    """Number of frames."""
    iou50: Interval
    """Share of the frames whose best box has an IoU of at least .5 with a marked nodule."""


class BoxPerformance(Record):
    """How well the proposals fit the marked nodules of some frames. Intervals resample patients."""

    frames: int
    """Number of frames, each with at least one marked nodule."""
    patients: int
    """Number of patients."""
    centre: Interval
    """Share of the frames in which the centre of the best box lies in a marked nodule's box."""
    iou50: Interval
    """Share of the frames whose best box has an IoU of at least .5 with a marked nodule."""
    mean_iou: Interval
    """Mean IoU of the best box with the marked nodule that it fits best."""
    recall_at_3: Interval
    """Share of the marked nodules that one of three proposals fits with an IoU of at least .5, averaged by frame."""
    ap50: Interval
    """Average precision over all proposals at an IoU of .5, with every point of the curve (PASCAL VOC 2010)."""
    ece: float | None = None
    """Expected calibration error of the best box's probability; absent for the median box, which has none."""
    auroc: Interval | None = None
    """AUROC of the best box's probability for an IoU of at least .5; absent for the median box."""
    surest_half: Interval | None = None
    """`iou50` on the half of the frames with the highest probability; absent for the median box."""
    sure: Interval | None = None
    """Share of the frames whose box is not unsure at the locked limit; absent for the median box."""
    sure_iou50: Interval | None = None
    """`iou50` on these frames; absent for the median box, and where there is no such frame."""
    by_size: list[SizeRow] = Field(default_factory=list)
    """`iou50` by the size of the nodule."""


class LocatorForm(Record):
    """What another form of the locator than Keras changes on the test frames."""

    largest_difference: float
    """Largest distance (1 - IoU) of its best box from that of Keras."""
    decisions_changed: int
    """Number of frames on which one form is unsure and the other is not."""
    iou50: Interval
    """Share of the test frames whose best box has an IoU of at least .5 with a marked nodule."""


class LocatorRecord(Record):
    """A locator, as it is stored with the model that its boxes are cropped for."""

    body: str
    """Name of the body, a class in keras.applications, or "toy"."""
    weights: str
    """Weights of the body: "imagenet", "none", or the name of a file."""
    image_size: int
    """Side of the square input in pixels, to which the scan area is letterboxed."""
    stride: int
    """Pixels of the input per cell of the heat map."""
    parameters: int
    """Number of parameters."""
    champion: int | None = None
    """Version whose locator its head started from; absent where it started from random weights. The calibration is that
    of heads that did not."""
    frames: int
    """Number of frames that it was trained on."""
    patients: int
    """Number of their patients."""
    calibration: BoxCalibration
    """How the probability of a proposal follows from its heat. Fitted on cross-fitted proposals."""
    unsure: float
    """Share of the validation frames that are left unsure, as the user asked."""
    limit: float
    """Probability of the best box below which the box is unsure. Locked on validation patients."""
    crop_rule: CropRule
    """How an image that is already a crop is told from a full frame."""
    folds: int
    """Folds of the cross-fitting, by patient."""
    cross_fitted: BoxPerformance
    """On the development frames, each boxed by a model that did not see its patient."""
    cross_fitted_median_box: BoxPerformance
    """The same for the box of median place and size of the other folds' frames."""
    test: BoxPerformance
    """On the test frames, boxed by this locator."""
    test_median_box: BoxPerformance
    """The same for the median box of the training part."""
    forms: dict[str, LocatorForm]
    """Differences by form that was scored; Keras is the reference and not listed."""
    data_digest: str
    """Digest of the data version."""


class LocateRecord(Record):
    """locate.json of the step `locate`."""

    data_digest: str
    """Digest of the data version."""
    skipped: str | None = None
    """Why there is no locator, in words; absent where there is one."""
    locator: LocatorRecord | None = None
    """The locator; absent if the step was skipped."""
    margin: float | None = None
    """Margin with which the automatic crops were made; absent if the step was skipped."""
    files: dict[str, str] = Field(default_factory=dict)
    """SHA-256 of the locator's files and of the table of boxes, by path."""
    unmarked: int = 0
    """Number of frames in use without a marked nodule. They are boxed, but neither trained on nor measured."""
    reused: int = 0
    """Number of frames whose feature maps an earlier run had left in the store."""
    seconds: float
    """Seconds that the step took."""
    processor_seconds: float | None = None
    """Processor seconds that the step took."""


class AutomaticBoxes(Record):
    """What automatic boxes cost a model of crops, on test frames with a marked nodule. Intervals resample patients."""

    frames: int
    """Number of frames. The score with given boxes is the mean over the frame's marked nodules."""
    patients: int
    """Number of patients."""
    given: Interval
    """AUROC with the marked boxes."""
    automatic: Interval
    """AUROC with the locator's best box."""
    difference: Interval
    """Paired difference: automatic less given."""
    rank_correlation: Interval
    """Spearman's correlation of the score with the automatic box and with the given one."""
    flips: int
    """Number of frames whose decision at the operating point changes, abstentions included."""
    sure_frames: int
    """Number of frames whose box is not unsure."""
    sure_given: Interval | None = None
    """AUROC with the marked boxes on these frames; absent if they have one class only."""
    sure_automatic: Interval | None = None
    """AUROC with automatic boxes on these frames; absent if they have one class only."""
    sure_flips: int
    """Number of these frames whose decision changes."""
    allowed: float
    """Loss of AUROC that the gate allows: the lower bound of `difference` must not be below its negative."""
    released: bool
    """Whether the model may decide on automatic boxes."""
    reason: str | None = None
    """Why it may not, in words; absent if it may."""
