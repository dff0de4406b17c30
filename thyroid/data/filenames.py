"""Parse the file names of scans in this one place: `{B|M}_{patient}-{image}-{version}.jpg` (the deck's scheme)."""

import re
from dataclasses import dataclass

CLASSES = ("B", "M")
"""Order of the classes in every probability vector: benign, malignant."""

POSITIVE = CLASSES.index("M")

SCORE = f"probability_{CLASSES[POSITIVE]}"
"""Column "probability_M", by which images are ranked and called."""

_PATTERN = re.compile(
    r"(?P<label>[BM])_(?P<patient>[0-9]{1,18})-(?P<image>[0-9]{1,18})-(?P<version>[0-9]{1,9}(\.[0-9]{1,9}){0,3})\.jpe?g",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class ScanName:
    """The content of a file name.

    `patient` is the number alone: B_001 and M_001 are the same patient (with several nodules), so that no patient can
    be on two sides of a split.
    """

    label: str
    patient: int
    image: int
    version: str


def parse(filename: str) -> ScanName:
    """Parse the last component of a path.

    Raises:
        ValueError: The name does not follow the scheme; the message says what was expected.
    """
    match = _PATTERN.fullmatch(filename)
    if match is None:
        raise ValueError("name does not parse: expected {B|M}_{patient}-{image}-{version}.jpg, e.g. B_001-0002-1.0.jpg")
    return ScanName(
        label=match["label"].upper(), patient=int(match["patient"]), image=int(match["image"]), version=match["version"]
    )
