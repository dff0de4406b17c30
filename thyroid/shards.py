"""Shards: the parts into which a step's scans are divided, so that several pods can work on them side by side."""

import hashlib
from dataclasses import dataclass

from thyroid.errors import InputError
from thyroid.storage import Location

MOST = 64
"""Largest number of shards. Every one of them lists all scans, so more would save little."""


@dataclass(frozen=True)
class Shard:
    """One of the equally large parts of the scans. A scan is in exactly one, whatever the order of the listing.

    Attributes:
        number: Number of the shard, from 1.
        of: Number of all shards, 1 to `MOST`.

    Raises:
        InputError: A number is out of range.
    """

    number: int
    of: int

    def __post_init__(self) -> None:
        """Check the numbers."""
        if not 1 <= self.of <= MOST:
            raise InputError(f"shards {self.of}: give 1 to {MOST}")
        if not 1 <= self.number <= self.of:
            raise InputError(f"shard {self.number}: give 1 to {self.of}, the number of shards")

    def has(self, address: str) -> bool:
        """Return whether a scan is in this shard.

        Args:
            address: Address of the scan.
        """
        digest = hashlib.sha256(address.encode("utf-8", "surrogateescape")).digest()
        return int.from_bytes(digest[:8], "big") % self.of == self.number - 1


def require_store(location: Location) -> None:
    """Check that shards have a store to leave their work in.

    Args:
        location: The store; empty for none.

    Raises:
        InputError: There is none.
    """
    if not location:
        raise InputError(
            "store: shards leave their work in one; give a store, or compile the pipeline without --shards"
        )
