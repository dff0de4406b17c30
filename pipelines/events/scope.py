"""Which objects count: those that the configured run would read."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from thyroid import storage
from thyroid.ingest import listing

SCANS = ("scans", "crops")
"""Parameters that name a folder of images."""
TABLES = ("rois", "labels", "clinical", "descriptors")
"""Parameters that name a CSV."""
LONGEST = 1024
"""Bytes of the name of an object in a bucket. Buckets refuse to look a longer one up, which would hold its batch up."""


@dataclass(frozen=True)
class Scope:
    """The places that a run reads.

    Attributes:
        scans: Addresses of the folders of images.
        tables: Addresses of the CSV files.
        labelled: Whether labels.csv says what the scans are, so that their names need not.
    """

    scans: tuple[str, ...]
    tables: frozenset[str]
    labelled: bool

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """Return the scope of a run.

        Args:
            values: Values of the pipeline's parameters.
        """
        given = {name: str(values.get(name) or "") for name in (*SCANS, *TABLES)}
        scans = tuple(storage.at(given[name]).address for name in SCANS if given[name])
        tables = {storage.at(storage.parted(given[name])[0]).address for name in TABLES if given[name]}
        return cls(scans, frozenset({*tables, *(f"{place}/dicom.csv" for place in scans)}), bool(given["labels"]))

    def is_table(self, address: str) -> bool:
        """Return whether an address is that of a CSV that the run reads."""
        return address in self.tables

    def is_scan(self, address: str) -> bool:
        """Return whether an object is below a folder of images and has a name that `ingest` would read as a scan."""
        for place in self.scans:
            name = address.removeprefix(f"{place}/")
            if name != address:
                return listing.may_be_scan(name, self.labelled)
        return False

    def counts(self, address: str) -> bool:
        """Return whether a change of an object may change what the run finds."""
        if not address.isprintable() or len(address.split("/", 3)[-1].encode()) > LONGEST:
            return False
        return self.is_table(address) or self.is_scan(address)
