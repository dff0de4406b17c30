"""The options of an external validation."""

import unicodedata
from dataclasses import dataclass
from pathlib import Path

from thyroid.data import store
from thyroid.errors import InputError
from thyroid.storage import Location

_LONGEST = 200
"""Largest number of characters in the name of a person."""


@dataclass(frozen=True)
class ValidateOptions:
    """The model, the site's scans, and what to measure. An empty text means "none".

    Attributes:
        registry: Root of the registry: a folder, or a gs:// or s3:// prefix.
        scans: Folder, gs:// or s3:// prefix of the site's frames, in the project's conventions.
        site: Name of the site. Equal patient numbers mean the same patient only if the model was trained on a cohort of
            this name.
        model: Version number, champion or candidate; empty for the champion, or else the candidate.
        rois: CSV with filename, x, y, width, height in pixels of the frame.
        labels: CSV with filename and label, labels.csv#column for another column than label; empty for the file names'
            class.
        clinical: CSV with a column file and clinical columns: subgroups, and inputs of a model that uses them.
        prevalence: Share of malignant nodules for the predictive values; 0 for the one that the model was evaluated at.
        wanted: Sensitivity that the lower bound at the site is to pass, above 0 and below 1.
        recalibrate: Register a recalibration for this site as a version of its own. A person has to promote it.
        share: File of counts to write for the pooling of several sites; empty for none.
        key: File with the site's private key, which signs what it shares; it is made the first time.
        by: Name of the person who answers for the validation; empty for the user's name. At most 200
            characters.
        seed: Seed of the bootstrap and of the folds, 0 to 4294967295.

    Raises:
        InputError: The name of the site or of the person is missing or cannot be used, a number is out of range,
            or only one of `share` and `key` is given.
    """

    registry: Location
    scans: Location
    site: str
    model: str = ""
    rois: Location = ""
    labels: Location = ""
    clinical: Location = ""
    prevalence: float = 0.0
    wanted: float = 0.85
    recalibrate: bool = False
    share: Path | None = None
    key: Path | None = None
    by: str = ""
    seed: int = 0

    def __post_init__(self) -> None:
        """Check what can be checked before anything is read."""
        if not self.site.strip():
            raise InputError("site: give the name of the hospital that the scans are from (--site)")
        store.site(self.site)
        if len(self.by) > _LONGEST or any(unicodedata.category(letter) in ("Cc", "Cs") for letter in self.by):
            raise InputError(f"by: give a name of at most {_LONGEST} printable characters (--by)")
        if not 0 <= self.prevalence < 1:
            raise InputError(f"prevalence {self.prevalence:g}: must be at least 0 and below 1")
        if not 0 < self.wanted < 1:
            raise InputError(f"wanted {self.wanted:g}: must be above 0 and below 1")
        if not 0 <= self.seed < 2**32:
            raise InputError(f"seed {self.seed}: must be between 0 and 4294967295")
        if self.share is not None and self.key is None:
            raise InputError("share: give the file of the site's private key with --key; it is made the first time")
        if self.key is not None and self.share is None:
            raise InputError("key: it signs what is shared; give the file to share with --share as well")
