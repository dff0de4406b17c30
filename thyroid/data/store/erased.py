"""Patients that were erased from a store; ingest sets their files aside while they are still in the scans folder.

`erased.json` in the store holds neither patient numbers nor plain hashes but keyed hashes (`pseudonyms`): of the
patient's number within its cohort, and of the SHA-256 of every scan, so that a scan is recognised under another number,
too.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from thyroid import storage
from thyroid.data import pseudonyms, tables
from thyroid.errors import InputError
from thyroid.storage import mirror

FILE = "erased.json"


@dataclass(frozen=True)
class Erased:
    """The patients that were erased.

    Attributes:
        secret: Key of the hashes; b"" if nobody was erased.
        patients: The hashes of each patient's scans. The key is the name of the cohort, the name that the cohort had
            when the hash was made, and the patient's hash.
    """

    secret: bytes = field(default=b"", repr=False)
    patients: dict[tuple[str, str, str], frozenset[str]] = field(default_factory=dict)

    def __contains__(self, who: tuple[str, int]) -> bool:
        """Return whether a patient, given as cohort and number, was erased."""
        return bool(self.of(*who))

    def of(self, cohort: str, patient: int) -> list[tuple[str, str, str]]:
        """Return the keys of `patients` that are this patient."""
        return [
            one
            for one in self.patients
            if one[0] == cohort and one[2] == pseudonyms.of_patient(self.secret, one[1], patient)
        ]

    def scans(self) -> frozenset[str]:
        """Return the hashes of all scans that were erased."""
        return frozenset[str]().union(*self.patients.values())

    def keyed(self, content: str) -> str:
        """Return the keyed hash of a SHA-256 or an address: 32 hexadecimal digits."""
        return pseudonyms.keyed(self.secret, content)


def load(store: Path) -> Erased:
    """Read which patients were erased from a store.

    Args:
        store: Folder of the store, or its copy in the mirror.

    Raises:
        InputError: The list is damaged or was made with another key, or the key is too short or damaged.
    """
    file = store / FILE
    if not file.exists():
        return Erased()
    found = tables.read_sealed(file)
    if found is None:
        raise InputError(f"{file}: damaged; restore it from a backup, or erased patients will reappear")
    home = mirror.address(store)  # of a store in a bucket the key is an object of its own
    lost = pseudonyms.environment_key() is None and storage.at(home).read(pseudonyms.KEY_FILE)[1] == storage.ABSENT
    secret = b"" if lost else pseudonyms.key(home)  # `key` would make a new one
    if found["key"] != pseudonyms.key_name(secret):
        raise InputError(
            f"{file}: was made with a different key; restore the key that {pseudonyms.KEY_VARIABLE} or "
            f"{storage.below(home, pseudonyms.KEY_FILE)} had, or erased patients will reappear"
        )
    return Erased(
        secret,
        {(one["cohort"], one["hashed_in"], one["patient"]): frozenset(one["scans"]) for one in found["patients"]},
    )


def save(store: Path, who: Erased) -> None:
    """Write the list; the caller must hold the store's lock."""
    rows: list[dict[str, Any]] = [
        {"cohort": cohort, "hashed_in": hashed_in, "patient": patient, "scans": sorted(scans)}
        for (cohort, hashed_in, patient), scans in sorted(who.patients.items())
    ]
    tables.write_sealed(store / FILE, {"key": pseudonyms.key_name(who.secret), "patients": rows})


def rename(store: Path, before: str, cohort: str) -> Erased:
    """Add erased patients of a cohort under the cohort's new name; the caller must hold the store's lock.

    Args:
        store: Folder of the store.
        before: Old name of the cohort.
        cohort: New name of the cohort.

    Returns:
        The erased patients, under both names.
    """
    who = load(store)
    more = {(cohort, *one[1:]): scans for one, scans in who.patients.items() if one[0] == before}
    if not more:
        return who
    both = Erased(who.secret, who.patients | more)
    save(store, both)
    return both
