"""The store: what a run leaves in a folder or bucket so that the next run pays only for what is new.

    <store>/versions/000001/   a data version of ingest, with what the next ingest needs to know:
        examined.parquet       every file as it was found: its generation, hashes and given split, or why it is unusable
        links.parquet          pairs of perceptual hashes that are near-duplicates
        memory.parquet         the split of every patient of every cohort, and of every hash, that the store ever had
    <store>/scans/             copies of the objects of a bucket, and pictures of DICOM files, but never the DICOM files
    <store>/crops/             images of both domains, named after everything that their content depends on
    <store>/crops.parquet      table of these images; crops.sha256: SHA-256 of this table and of the one before it
    <store>/pieces/            rows that shards have made and that no version and no table has taken up yet
    <store>/erased.json        who was erased (see `erased`); patient.key: the key of its hashes
    <store>/sealed             marks that every version records its cohort and its checksums (see `Store.lock`)

A version exists when its data.json does, and it never changes unless a patient is erased. Only one run at a time writes
here. A killed run leaves nothing that the next one takes for complete. Damaged files are made again where possible, and
otherwise named in an error.

In a bucket, versions and all other small files are objects below files/ that are named after their content. index.json
says which of them is which file of the store (see `in_bucket`). Scans, crops and pieces are objects of their own names.

A cohort is the scope in which equal patient numbers mean the same patient, such as a hospital, whatever the address
of its scans.
"""

from thyroid.data.store.files import remove, write
from thyroid.data.store.names import (
    CROPPED,
    CROPPED_PIECES,
    CROPS,
    EXAMINED,
    EXAMINED_PIECES,
    GOING,
    LINKS,
    MEMORY,
    PIECES,
    REMEMBERED,
    SCANS,
    SEALED,
    SUMS,
    UNNAMED,
    VERSIONS,
    copy_of,
    site,
    unnamed,
)
from thyroid.data.store.store import Store
from thyroid.data.store.versions import Version

__all__ = [
    "CROPPED",
    "CROPPED_PIECES",
    "CROPS",
    "EXAMINED",
    "EXAMINED_PIECES",
    "GOING",
    "LINKS",
    "MEMORY",
    "PIECES",
    "REMEMBERED",
    "SCANS",
    "SEALED",
    "SUMS",
    "UNNAMED",
    "VERSIONS",
    "Store",
    "Version",
    "copy_of",
    "remove",
    "site",
    "unnamed",
    "write",
]
