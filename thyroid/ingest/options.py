"""The options of the ingest step."""

from dataclasses import dataclass
from typing import Annotated

from thyroid.command import NOT_AN_OPTION
from thyroid.data.classes import DEFAULT as DEFAULT_CLASSES
from thyroid.errors import InputError
from thyroid.storage import Location

GIVEN_SPLITS = ("separate", "keep", "ignore")
"""What can be done if given train and test folders share a patient or a near-duplicate; see `IngestOptions`."""


@dataclass(frozen=True)
class IngestOptions:
    """The scans to ingest and how to read them. An empty text means "none".

    Attributes:
        scans: Folder, gs:// or s3:// prefix of frames, searched recursively. Folders named train, validation and test
            are given splits. A dicom.csv at its top names DICOM files: filename, label and optionally patient and
            frame.
        rois: CSV with filename, x, y, width, height in pixels of the frame. Other columns are ignored.
        crops: Folder, gs:// or s3:// prefix of images that are already cropped. They make up the cropped domain.
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
        all_test: Whether every usable scan goes to the test split, whatever the folders say. No class needs to have
            scans then: one usable scan is enough. It takes no store, in which these patients would stay in test.

    Raises:
        InputError: `given_splits` is unknown, or there is a store with `all_test`.
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
    all_test: Annotated[bool, NOT_AN_OPTION] = False

    def __post_init__(self) -> None:
        """Check `given_splits` and the store."""
        if self.given_splits not in GIVEN_SPLITS:
            raise InputError(f"given_splits {self.given_splits!r}: choose from {', '.join(GIVEN_SPLITS)}")
        if self.all_test and self.store:
            raise InputError(f"store {self.store}: scans that all go to the test split are kept in no store")
