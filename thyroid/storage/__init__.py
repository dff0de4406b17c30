"""A folder, or gs://bucket/prefix on Google Cloud Storage, behind the same few calls.

Both have atomic writes that fail if another writer was faster (`write` with a generation), so code that builds on them
is the same for either. Credentials are Google's application default credentials; STORAGE_EMULATOR_HOST names an
emulator.
"""

from thyroid.storage.bucket import Bucket, Entry
from thyroid.storage.folder import Folder, file_names, lock
from thyroid.storage.location import ABSENT, SCHEME, ChangedError, Location, below, is_bucket, parted
from thyroid.storage.resolve import at, file

__all__ = [
    "ABSENT",
    "SCHEME",
    "Bucket",
    "ChangedError",
    "Entry",
    "Folder",
    "Location",
    "at",
    "below",
    "file",
    "file_names",
    "is_bucket",
    "lock",
    "parted",
]
