"""The options of the watch."""

import datetime
import re
from dataclasses import dataclass

from thyroid.errors import InputError
from thyroid.storage import Location

_FEWEST = 10
"""Smallest number of malignant outcomes a year for which an alarm can be tuned."""
_MOST = 100_000
"""Largest number: tuning takes longer with more, and no hospital has them."""
_SMALLEST_FALL = 0.01
"""Smallest fall that an alarm can be tuned to: a smaller one would take years to show."""


@dataclass(frozen=True)
class WatchOptions:
    """The model, what it decided, and what became known since. An empty text means "none".

    Attributes:
        registry: Root of the registry: a folder, or a gs:// or s3:// prefix.
        log: Folder of the decision log, which thyroid.serve --log writes.
        archive: Folder, gs:// or s3:// prefix that keeps the log as Parquet, a file a day; empty for none.
        scans: Folder, gs:// or s3:// prefix of new scans in the project's conventions, which the model judges beside
            the log.
        rois: CSV with filename, x, y, width, height in pixels for these scans.
        outcomes: CSV with file or patient, pathology and date.
        model: Version number, champion or candidate; empty for the champion, or else the candidate.
        site: Name of the cohort within which the patients' numbers are known, as for thyroid.serve --site.
        sensitivity: Sensitivity that the model is held to; 0 for that of its internal test by patient.
        specificity: Specificity that the model is held to; 0 for that of its internal test by patient.
        fall: How much lower a sensitivity or specificity the alarm is tuned to detect, at least .01 and below 1.
        cancers: Number of malignant outcomes expected in a year, for which the yearly false alarms are limited; at
            least 10.
        night: Last night to look at, as an ISO date; empty for today (UTC).
        seed: Seed of the bootstrap, 0 to 4294967295.

    Raises:
        InputError: A number or date is out of range.
    """

    registry: Location
    log: Location = ""
    archive: Location = ""
    scans: Location = ""
    rois: Location = ""
    outcomes: Location = ""
    model: str = ""
    site: str = ""
    sensitivity: float = 0.0
    specificity: float = 0.0
    fall: float = 0.1
    cancers: int = 200
    night: str = ""
    seed: int = 0

    def __post_init__(self) -> None:
        """Check what can be checked before anything is read."""
        for name in ("sensitivity", "specificity"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name} {getattr(self, name):g}: must be at least 0 and below 1")
        if not _SMALLEST_FALL <= self.fall < 1:
            raise InputError(f"fall {self.fall:g}: must be at least {_SMALLEST_FALL:g} and below 1")
        for name in ("sensitivity", "specificity"):
            if 0 < getattr(self, name) <= self.fall:
                raise InputError(f"fall {self.fall:g}: must be smaller than the {name} of {getattr(self, name):g}")
        if self.cancers < _FEWEST:
            raise InputError(f"cancers {self.cancers}: must be at least {_FEWEST}")
        if self.cancers > _MOST:
            raise InputError(f"cancers {self.cancers}: must be at most {_MOST}")
        if not 0 <= self.seed < 2**32:
            raise InputError(f"seed {self.seed}: must be between 0 and 4294967295")
        if self.last_night > _today():
            raise InputError(f"night {self.night}: is in the future; give a night up to {_today()} (UTC)")

    def check_sources(self) -> None:
        """Check that there is something to watch. A misspelt option is named before that.

        Raises:
            InputError: Nothing to watch is given, or boxes are given without scans.
        """
        if not (self.log or self.archive or self.scans):
            raise InputError("log: give the folder of the decision log (--log), its archive, or new scans (--scans)")
        if self.rois and not self.scans:
            raise InputError("rois: they are the boxes of new scans; give the scans with --scans as well")

    @property
    def last_night(self) -> datetime.date:
        """The last night to look at (UTC).

        Raises:
            InputError: `night` is not a date.
        """
        if not self.night:
            return _today()
        if not re.fullmatch(r"\d{4}-\d{2}-\d{2}", self.night, re.ASCII):
            raise InputError(f"night {self.night!r}: is no date; write it as {_today()}")
        try:
            return datetime.date.fromisoformat(self.night)
        except ValueError:
            raise InputError(f"night {self.night}: there is no such day; write it as {_today()}") from None


def _today() -> datetime.date:
    return datetime.datetime.now(datetime.UTC).date()
