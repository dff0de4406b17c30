"""What a site has shared before, kept beside its private key, so that two files cannot be told apart by a patient.

KEY.shared.json holds, for every file that was shared, keyed hashes of its patients (HMAC-SHA256 with a secret that only
the owner of the private key can compute) and the bin that each of them was counted in. It does not leave the site.
"""

import hashlib
import hmac
import os
from collections.abc import Mapping
from pathlib import Path

from thyroid import atomic
from thyroid.errors import InputError
from thyroid.records.record import Record

SHARED = ".shared.json"
"""What the name of the history ends with; the rest is that of the private key."""


class Earlier(Record):
    """What the site remembers of a file that it shared."""

    model: str
    """SHA-256 of the model.json."""
    patients: dict[str, str]
    """Hash of each patient to the cell that it was counted in: its side, and the number of its bin of the grid."""
    groups: str
    """Hash over the subgroups of all patients."""


class History(Record):
    """KEY.shared.json: what the site has shared."""

    shares: list[Earlier]
    """Every file, oldest first."""

    @classmethod
    def beside(cls, key: Path) -> "History":
        """Read the history beside a private key; there is none before the first file.

        Raises:
            InputError: The file is damaged.
        """
        path = _path(key)
        try:
            return cls.read(path)
        except FileNotFoundError:
            return cls(shares=[])
        except InputError as error:
            raise InputError(
                f"{error}; restore the file from a copy, since without it a file could tell a patient"
            ) from None

    def add(self, key: Path, share: Earlier) -> None:
        """Write the history with one more file, readable by the owner of the key alone."""
        if share in self.shares:
            return
        path = _path(key)
        with atomic.replacing(path) as temporary:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(atomic.to_json(History(shares=[*self.shares, share]).to_dict()))


def _path(key: Path) -> Path:
    return key.with_name(key.name + SHARED)


def of_patient(secret: bytes, patient: int) -> str:
    """Return the hash of a patient's number: 32 hexadecimal digits."""
    return hmac.digest(secret, f"patient\0{patient}".encode(), "sha256").hex()[:32]


def of_groups(secret: bytes, groups: Mapping[str, Mapping[str, str]]) -> str:
    """Return a hash over the subgroups of patients.

    Args:
        secret: Secret of the hash.
        groups: By column, the group of each patient by the patient's hash.
    """
    text = "\n".join(
        "\0".join((column, patient, group))
        for column, members in sorted(groups.items())
        for patient, group in sorted(members.items())
    )
    return hmac.new(secret, text.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()
