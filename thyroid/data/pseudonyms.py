"""Keyed hashes that stand for patients where their numbers must not appear.

The key is the secret in `THYROID_PATIENT_KEY` if that is set; it must then be the same every time. Otherwise the
registry or the store makes a key of its own, `patient.key`: only somebody who has that file can test whether a number
is in a list. A hash says which key it was made with, so that hashes of different keys are never taken for different
patients.
"""

import contextlib
import hashlib
import hmac
import os
import secrets

from thyroid import storage
from thyroid.errors import InputError
from thyroid.storage import ABSENT, ChangedError, Location

KEY_VARIABLE = "THYROID_PATIENT_KEY"
MIN_KEY = 16
"""Minimum number of characters of a secret; a shorter one can be guessed."""
KEY_FILE = "patient.key"


def environment_key() -> bytes | None:
    """Return the secret in the environment, or None if there is none.

    Raises:
        InputError: The secret is too short.
    """
    given = os.environ.get(KEY_VARIABLE, "").strip()
    if 0 < len(given) < MIN_KEY:
        raise InputError(f"{KEY_VARIABLE}: has {len(given)} characters; give a secret of at least {MIN_KEY}")
    return given.encode() or None


def key(root: Location) -> bytes:
    """Return the secret in the environment, or else the key of a registry or store, which is made the first time.

    Args:
        root: Location of the registry or store, a folder or a bucket prefix.

    Raises:
        InputError: The secret or the file is too short to be a key.
    """
    if (given := environment_key()) is not None:
        return given
    home = storage.at(root)
    found, generation = home.read(KEY_FILE)
    if generation == ABSENT:
        with contextlib.suppress(ChangedError):  # another process was faster
            home.write(KEY_FILE, secrets.token_hex(32).encode(), ABSENT)
        found, _ = home.read(KEY_FILE)
    if len(found.strip()) < MIN_KEY:
        raise InputError(f"{storage.below(home.address, KEY_FILE)}: damaged; restore the file from a copy")
    return found.strip()


def known_keys(*roots: Location) -> list[bytes]:
    """Return every key that pseudonyms may have been made with: that of the environment, and those that were made.

    Args:
        roots: Registries and stores. None of them gets a key if it has none.

    Raises:
        InputError: The secret in the environment is too short.
    """
    found = (storage.at(root).read(KEY_FILE)[0].strip() for root in roots)
    given = (environment_key(), *found)
    return list(dict.fromkeys(secret for secret in given if secret and len(secret) >= MIN_KEY))


def key_name(secret: bytes) -> str:
    """Return 8 hexadecimal digits that identify a key without revealing it."""
    return hashlib.sha256(b"name\0" + secret).hexdigest()[:8]


def of_patient(secret: bytes, cohort: str, patient: int) -> str:
    """Return the pseudonym of a cohort's patient.

    It is the key's name, a colon and 32 hexadecimal digits of HMAC-SHA256 (RFC 2104).
    """
    message = f"patient\0{cohort}\0{patient}".encode("utf-8", "surrogatepass")
    return f"{key_name(secret)}:{hmac.digest(secret, message, 'sha256').hex()[:32]}"


def of_text(secret: bytes, cohort: str, patient: str) -> str:
    """Return the pseudonym of a patient that a request names.

    A number is that of the cohort's patient. Any other name becomes the number that a DICOM file's patient gets.
    """
    number = int(patient) if patient.isascii() and patient.isdigit() else patient_number(secret, patient)
    return of_patient(secret, cohort, number)


def of_file(secret: bytes, sha256: str) -> str:
    """Return the pseudonym of a file: the key's name, a colon and 32 hexadecimal digits of HMAC-SHA256.

    Args:
        secret: The key.
        sha256: Hexadecimal SHA-256 of the file's bytes.
    """
    return f"{key_name(secret)}:{keyed(secret, sha256)}"


def keyed(secret: bytes, content: str) -> str:
    """Return the keyed hash of a SHA-256 or an address: 32 hexadecimal digits of HMAC-SHA256."""
    return hmac.digest(secret, b"scan\0" + content.encode("utf-8", "surrogatepass"), "sha256").hex()[:32]


def required_key() -> bytes:
    """Return the key for pseudonyms from the environment, since it must not be stored next to the data.

    Raises:
        InputError: There is no key, or it is so short that it can be guessed.
    """
    given = os.environ.get(KEY_VARIABLE, "").strip()
    if len(given) < MIN_KEY:
        raise InputError(
            f"{KEY_VARIABLE}: DICOM scans need a secret of at least {MIN_KEY} characters in this environment "
            "variable; use the same one for every run, since it is the key of the patients' pseudonyms"
        )
    return given.encode()


def patient_number(secret: bytes, patient: str) -> int:
    """Return a number of up to 18 digits in place of a patient id (HMAC-SHA256).

    It is the same for the same id and key.
    """
    return int.from_bytes(_hashed(secret, "patient", patient)) % 10**18


def file_pseudonym(secret: bytes, name: str, frame: str = "") -> str:
    """Return `dicom/<hash>.dcm` in place of the name of a file and its frame.

    Args:
        secret: Key of the hash.
        name: Name of the file within the folder of scans, which may contain the patient's name.
        frame: Frame of the file; "" if the pseudonym does not depend on it.
    """
    return f"dicom/{_hashed(secret, 'file', name, *([frame] if frame else [])).hex()[:24]}.dcm"


def _hashed(secret: bytes, *parts: str) -> bytes:
    # file names that are not UTF-8 contain surrogates
    return hmac.digest(secret, "\0".join(parts).encode("utf-8", "surrogatepass"), "sha256")
