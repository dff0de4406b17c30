"""A folder, gs://bucket/prefix on Google Cloud Storage or s3://bucket/prefix, behind the same few calls.

All have atomic writes that fail if another writer was faster (`write` with a generation), so code that builds on them
is the same for each. Credentials for gs:// are Google's application default credentials; STORAGE_EMULATOR_HOST names an
emulator. S3 has AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION, and AWS_ENDPOINT_URL for a service of one's own.
"""

from thyroid.storage.bucket import Bucket, Entry
from thyroid.storage.folder import Folder, file_names, lock
from thyroid.storage.location import ABSENT, SCHEMES, ChangedError, Location, below, is_bucket, parted
from thyroid.storage.resolve import at, bucket_at, file

__all__ = [
    "ABSENT",
    "SCHEMES",
    "Bucket",
    "ChangedError",
    "Entry",
    "Folder",
    "Location",
    "at",
    "below",
    "bucket_at",
    "file",
    "file_names",
    "is_bucket",
    "lock",
    "parted",
]
