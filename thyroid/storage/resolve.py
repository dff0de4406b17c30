"""What an address names: the place itself, or a local copy of a file."""

import hashlib
from pathlib import Path

from thyroid.errors import InputError
from thyroid.storage import cache
from thyroid.storage.bucket import Bucket
from thyroid.storage.folder import Folder
from thyroid.storage.gcs import GoogleBucket
from thyroid.storage.location import Location, is_bucket
from thyroid.storage.s3 import S3Bucket


def at(location: Location) -> Folder | Bucket:
    """Return the place that a path, a gs:// address or an s3:// address names.

    Raises:
        InputError: The address has another scheme or no bucket, or the client of its service is not installed.
    """
    text = str(location)
    if is_bucket(location):
        return bucket_at(text)
    if "://" in text or text.startswith(("gs:/", "s3:/")):
        raise InputError(f"{text}: give a folder, gs://bucket/prefix or s3://bucket/prefix")
    return Folder(Path(text))


def bucket_at(address: str) -> Bucket:
    """Return the place that a gs:// or s3:// address names.

    Raises:
        InputError: The address has no bucket, or the client of its service is not installed.
    """
    return S3Bucket(address) if address.startswith(S3Bucket.scheme) else GoogleBucket(address)


def file(location: Location) -> Path:
    """Return a local file with the content of a file that may be an object in a bucket.

    An object is downloaded into the user's cache, once for each generation.

    Raises:
        InputError: There is no such object, or its bucket cannot be read.
    """
    if not is_bucket(location):
        return Path(location)
    parent, _, name = str(location).rpartition("/")
    bucket = bucket_at(parent)
    found = [entry for entry in bucket.entries(name) if entry.name == name]
    if not found:
        raise InputError(f"{location}: no such object; check the address")
    key = hashlib.sha256(f"{location}#{found[0].generation}".encode()).hexdigest()[:32]
    with cache.folder_for(key) as folder:
        for _, local in bucket.download([(found[0], cache.path_within(folder, name))]):
            if local is not None:
                return local
    raise InputError(f"{location}: changed or was deleted while being read; try again")
