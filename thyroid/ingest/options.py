"""The options of the ingest step."""

from dataclasses import dataclass

from thyroid.data.classes import DEFAULT as DEFAULT_CLASSES
from thyroid.errors import InputError
from thyroid.storage import Location

GIVEN_SPLITS = ("separate", "keep", "ignore")
"""What can be done if given train and test folders share a patient or a near-duplicate; see `IngestOptions`."""


@dataclass(frozen=True)
class IngestOptions:
    """The scans to ingest and how to read them. An empty text means "none".

    Attributes:
        scans: Folder or gs:// prefix of frames, searched recursively. Folders named train, validation and test are
            given splits. A dicom.csv at its top names DICOM files: filename, label and optionally patient and frame.
        rois: CSV with filename, x, y, width, height in pixels of the frame. Other columns are ignored.
        crops: Folder or gs:// prefix of images that are already cropped. They make up the cropped domain.
        labels: CSV with filename and label that gives the class of every scan; labels.csv#column for another column
            than label. Without it, the class comes from the file names or from dicom.csv.
        classes: Classes in order, the benign ones before the | and the malignant ones after it, such as
            2<3|4a<4b<4c<5.
        given_splits: If given train and test folders share a patient or a near-duplicate, "separate" moves the whole
            group to the train side, "keep" leaves it (and the leak), and "ignore" ignores the folders and deals all
            splits again.
        site: Name of the cohort. Within a cohort, equal patient numbers mean the same patient. If it is empty, the
            cohort is that of the last data version from the same place; for a new place, the one that had the same
            scans.
        store: Folder that outlives the run. Only files that are new or changed since its
            last data version of the same scans are read. Patients of the same cohort keep their splits, and so do
            copies of any scan that the store has ever seen. Without it, every file is read.
        seed: Seed for dealing new groups to splits.

    Raises:
        InputError: `given_splits` is unknown.
    """

    scans: Location
    rois: Location = ""
    crops: Location = ""
    labels: Location = ""
    classes: str = DEFAULT_CLASSES
    given_splits: str = "separate"
    site: str = ""
    store: Location = ""
    seed: int = 0

    def __post_init__(self) -> None:
        """Check `given_splits`."""
        if self.given_splits not in GIVEN_SPLITS:
            raise InputError(f"given_splits {self.given_splits!r}: choose from {', '.join(GIVEN_SPLITS)}")
