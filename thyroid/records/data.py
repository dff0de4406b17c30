"""data.json: what a data version is made of. `ingest` writes it; `crop` adds how the images were made."""

from pydantic import Field

from thyroid.records.record import Record


class ClassFields(Record):
    """The classes, as every record that depends on them holds them."""

    classes: list[str]
    """Names of the classes in their order, the benign ones first."""
    positive: list[bool]
    """For each class, whether it counts as malignant."""
    ordered: bool
    """Whether the order of the classes means something, as for grades. Kappa is then weighted."""


class DataRecord(ClassFields):
    """data.json of a data version."""

    source: str
    """Address of the scans, as `ingest` was given it, made absolute."""
    cohort: str
    """Name of the cohort. Within a cohort, equal patient numbers mean the same patient."""
    digest: str
    """SHA-256 over the bytes, classes and regions of all scans in use. Paths, splits and order do not matter."""
    scans: int
    """Number of scans in use."""
    quarantined: int
    """Number of rows of quarantine.csv: files, and rows of rois.csv."""
    patients: int
    """Number of patients."""
    duplicate_groups: int
    """Number of groups of near-duplicates."""
    regions: int
    """Number of regions of interest."""
    synthetic: int
    """Number of scans that the phantom drew. A model that learnt from any of them says so wherever it is shown."""
    splits: dict[str, dict[str, int]]
    """For train, validation and test: the number of images of each class, and the number of patients."""
    notes: list[str]
    """What people should know about the scans, in words."""
    looked_at: int
    """Number of files whose bytes were read. The others were known from the store."""
    inputs: str | None
    """SHA-256 over everything that decides the result, by which an unchanged ingest is recognised; null if a file has
    no known generation."""
    examined_by: int | str
    """Version of the rules by which files were examined; a text in data versions of the first release."""
    seconds: dict[str, float]
    """Seconds that each step took."""
    files: dict[str, str]
    """SHA-256 of every other file of the data version, by name."""
    domains: list[str] | None = None
    """Domains to train, normal or cropped; the first one is the default. Set by `crop`."""
    margin: float | None = None
    """Share of a region's own width and height by which its crop is wider on each side. Set by `crop`."""
    jitter: float | None = None
    """Multiple of a locator's errors by which the second crop of a training region is disturbed; 0 for no second
    crop. Set by `crop`."""
    without_region: int | None = None
    """Number of frames without a region, which are in the normal domain only. Set by `crop`."""
    scan_area_not_found: int | None = None
    """Number of frames in which no scan area was found, so that they were used whole. Set by `crop`."""
    cropped: int | None = None
    """Number of scans whose images had to be made; those of the others were in the store. Set by `crop`."""
    images: str | None = None
    """Folder of the images, where they are in a store. Set by `crop`."""


class StoredFile(Record):
    """A small file of a store in a bucket."""

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    """SHA-256 of the content, after which the object below files/ is named."""
    size: int
    """Size in bytes."""


class IndexRecord(Record):
    """index.json of a store in a bucket: which small files the store has, and which objects they are."""

    commit: str
    """A text that is new in every index, so that no two of them are equal."""
    files: dict[str, StoredFile]
    """The files by their name below the store."""
