"""The addresses by which a cluster reads what the pipeline's steps wrote: buckets, and the volume that they mount."""

import os
from pathlib import Path

from thyroid.errors import InputError
from thyroid.storage.location import is_bucket

CLAIM, MOUNT = "thyroid-data", "/data"
"""PersistentVolumeClaim that pipeline pods mount (THYROID_CLAIM names another), and its path. KServe reads it as pvc://."""


def storage_uri(address: str) -> str:
    """Return the address at which KServe reads a version.

    Args:
        address: gs:// or s3:// address, which is returned as it is, or a path on the pipeline's volume.

    Returns:
        gs://, s3:// or pvc:// address.

    Raises:
        InputError: The path is not on the volume, so only this machine can read it.
    """
    if is_bucket(address):
        return address
    claim, volume = os.environ.get("THYROID_CLAIM", CLAIM), Path(MOUNT).resolve()
    if claim and Path(address).is_relative_to(volume):
        return f"pvc://{claim}/{Path(address).relative_to(volume).as_posix()}"
    raise InputError(
        f"{address}: a cluster cannot read this path; keep the registry on gs:// or s3://, or under {MOUNT}, where a "
        "volume claim is mounted"
    )
