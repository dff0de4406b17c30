"""Names of places: a folder, gs://bucket/prefix, s3://bucket/prefix, and what lies below one of them."""

from pathlib import Path

SCHEMES = ("gs://", "s3://")
"""How the address of a place in a bucket starts: on Google Cloud Storage, and on a service that speaks S3."""
ABSENT = "0"
"""Generation of a file that does not exist."""

Location = str | Path


class ChangedError(Exception):
    """Another writer changed the file in the meantime. Read it again and decide again."""


def is_bucket(location: Location) -> bool:
    """Return whether a location is in a bucket: gs://bucket/prefix or s3://bucket/prefix."""
    return str(location).startswith(SCHEMES)


def below(location: Location, *parts: str) -> str:
    """Return the text of a location within another one.

    `Path` cannot be used because it would turn gs:// into gs:/.
    """
    return "/".join((str(location).rstrip("/"), *parts))


def parted(location: Location) -> tuple[str, str]:
    """Split a location such as labels.csv#column into the place and the text after the #.

    The text is empty if there is no #.
    """
    place, _, columns = str(location).partition("#")
    return place, columns
