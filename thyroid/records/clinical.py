"""What the columns of clinical.csv are worth, and the head that uses them."""

from thyroid.interval import Interval
from thyroid.records.record import Record


class Effect(Record):
    """How strongly a column is associated with the class."""

    name: str
    """Name of the measure."""
    value: float
    """Epsilon squared for numbers, bias-corrected Cramér's V for categories."""
    low: float | None = None
    """Lower bound of its 95 % interval."""
    high: float | None = None
    """Upper bound of its 95 % interval."""


class Missing(Record):
    """How often a column's value is missing."""

    share: float
    """Share of patients without a value."""
    by_class: dict[str, float | None]
    """The same by class; null for a class without patients."""
    p: float | None
    """P value of its association with the class; null if there is nothing to test."""
    p_corrected: float | None
    """The same after Holm's correction."""


class ColumnAssociation(Record):
    """One column and its association with the class."""

    column: str
    """Name of the column."""
    kind: str
    """"number" or "category"."""
    known: int
    """Number of patients with a value."""
    missing: Missing
    """How often the value is missing."""
    distribution: dict[str, list[float] | dict[str, int] | None]
    """By class: the quantiles .05, .25, .5, .75 and .95 of a number, or the patients by category."""
    effect: Effect | None
    """How strong the association is; null if there is nothing to test."""
    test: str | None
    """Name of the test; null if there is nothing to test."""
    p: float | None
    """P value; null if there is nothing to test."""
    p_corrected: float | None
    """The same after Holm's correction."""


class Association(Record):
    """The association of all columns with the class, by patient."""

    patients: int
    """Number of patients."""
    classes: list[str]
    """Names of the classes."""
    by_class: dict[str, int]
    """Number of patients of each class."""
    correction: str
    """How p values are corrected for their number."""
    columns: list[ColumnAssociation]
    """The columns."""


class ColumnLeakage(Record):
    """How far one column gives the class away."""

    column: str
    """Name of the column."""
    auroc: Interval | None
    """Macro AUROC of a decision tree on the column; null if it cannot be measured."""
    side_auroc: Interval | None
    """The same for benign against malignant, where a side has several classes."""
    missing_auroc: Interval | None
    """The same of whether the value is missing."""
    fixes_class: float | None
    """Theil's U: how far the value determines the class."""
    fixed_by_class: float | None
    """Theil's U: how far the class determines the value."""
    finding: str | None
    """What was found, in words."""


class JointLeakage(Record):
    """How far several columns together give the class away."""

    columns: list[str]
    """The columns that do not give it away alone."""
    auroc: Interval | None
    """Macro AUROC of them together; null if it cannot be measured."""
    side_auroc: Interval | None
    """The same for benign against malignant, where a side has several classes."""
    findings: list[str]
    """What was found, in words."""


class Leakage(Record):
    """The search for columns that give the class away (target leakage)."""

    columns: list[ColumnLeakage]
    """Each column alone."""
    together: JointLeakage | None = None
    """The other columns together; absent where there are no columns."""
    findings: list[str]
    """Everything that was found, in words."""


class FusionComparison(Record):
    """Images and columns together against images alone and columns alone, on the same patients."""

    auroc: dict[str, Interval]
    """Macro AUROC of images, clinical and fused."""
    difference: dict[str, Interval]
    """fused_less_images and fused_less_clinical."""
    patients: int
    """Number of patients."""
    verdict: str
    """"helped", "not shown to help" or "harmed"."""
    sentence: str
    """The result in words."""


class FittedOn(Record):
    """The patients that the head was fitted on."""

    what: str
    """Which patients, in words."""
    images: int
    """Number of their images."""
    patients: int
    """Number of patients."""


class ClinicalRecord(Record):
    """What clinical.csv was worth for the winner."""

    notes: list[str]
    """What could not be used, in words."""
    columns: list[str]
    """Usable columns."""
    wanted: list[str]
    """Columns that the model may use."""
    explored: Association | None = None
    """Association with the class; absent where there are no columns."""
    pictures: list[str] | None = None
    """Names of the plots."""
    leaks: Leakage
    """Search for target leakage."""
    left_out: dict[str, str] | None = None
    """Columns that were requested and give the class away, with the finding."""
    tried: list[str] | None = None
    """Columns that were tried."""
    fitted_on: FittedOn | None = None
    """Patients that the head was fitted on."""
    development: FusionComparison | None = None
    """The comparison on development patients, which decides whether the columns are used."""
    used: list[str]
    """Columns that the model uses."""
    not_tried: str | None = None
    """Why the columns could not be tried, in words."""
    test: FusionComparison | None = None
    """The comparison on test patients, which decides nothing."""


class EncodedColumn(Record):
    """How one column becomes numbers."""

    name: str
    """Name of the column."""
    kind: str
    """"number" or "category"."""
    missing: bool
    """Whether an additional feature marks missing values."""
    low: float | None
    """Smallest number of the training rows."""
    median: float | None
    """Median of the training rows, which missing numbers take."""
    high: float | None
    """Largest number of the training rows."""
    mean: float
    """Mean of the training rows."""
    scale: float
    """Standard deviation of the training rows."""
    categories: list[str]
    """Categories with one feature each."""
    rare: list[str]
    """Categories of too few patients."""


class EncoderRecord(Record):
    """How clinical rows become numbers."""

    columns: list[EncodedColumn]
    """The columns, in the order of the features."""


class FormField(Record):
    """One column, as a form asks for it."""

    name: str
    """Name of the column."""
    kind: str
    """"number" or "category"."""
    categories: list[str] | None = None
    """Categories; absent for numbers."""
    minimum: float | None = None
    """Smallest number of the training rows."""
    median: float | None = None
    """Median of the training rows."""
    maximum: float | None = None
    """Largest number of the training rows."""


class FusionRecord(Record):
    """The head that adds clinical columns to the network's answer."""

    encoder: EncoderRecord
    """How rows become numbers."""
    scale: float
    """Factor of the network's log probabilities."""
    weights: list[list[float]]
    """Weights [features][classes]."""
    offsets: list[float]
    """Offset of each class."""
    strength: float
    """L2 penalty that was chosen."""
    fields: list[FormField]
    """The columns, as a form asks for them."""
