"""Keyed hashes that stand for patients where their numbers must not stand.

The key is the secret in `THYROID_PATIENT_KEY` where that is set, and must then be the same every time. Otherwise the registry
or the store makes a key of its own, `patient.key`: whoever has that file can test whether a number is in a list, and nobody
else can. A hash says which key it was made with, so that hashes of different keys are never taken for different patients.
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
"""Characters of a secret; a shorter one can be guessed."""
KEY_FILE = "patient.key"


def environment_key() -> bytes | None:
    """The secret in the environment; None where there is none.

    Raises:
        InputError: it is too short.
    """
    given = os.environ.get(KEY_VARIABLE, "").strip()
    if 0 < len(given) < MIN_KEY:
        raise InputError(f"{KEY_VARIABLE}: has {len(given)} characters; give a secret of at least {MIN_KEY}")
    return given.encode() or None


def key(root: Location) -> bytes:
    """The secret in the environment, or the one of a registry or store, which is made the first time.

    Args:
        root: of the registry or store, a folder or gs://.

    Raises:
        InputError: the secret or the file is too short to be a key.
    """
    if (given := environment_key()) is not None:
        return given
    home = storage.at(root)
    found, generation = home.read(KEY_FILE)
    if generation == ABSENT:
        with contextlib.suppress(ChangedError):  # somebody else was faster
            home.write(KEY_FILE, secrets.token_hex(32).encode(), ABSENT)
        found, _ = home.read(KEY_FILE)
    if len(found.strip()) < MIN_KEY:
        raise InputError(f"{storage.below(home.address, KEY_FILE)}: damaged; put back a copy of the file")
    return found.strip()


def key_name(secret: bytes) -> str:
    """Names a key, without telling it: 8 hexadecimal digits."""
    return hashlib.sha256(b"name\0" + secret).hexdigest()[:8]


def of_patient(secret: bytes, cohort: str, patient: int) -> str:
    """The pseudonym of a cohort's patient: the key's name, a colon and 32 hexadecimal digits of HMAC-SHA256 (RFC 2104)."""
    message = f"patient\0{cohort}\0{patient}".encode("utf-8", "surrogatepass")
    return f"{key_name(secret)}:{hmac.digest(secret, message, 'sha256').hex()[:32]}"


def required_key() -> bytes:
    """The key that makes pseudonyms, from the environment: it must not stand beside the data.

    Raises:
        InputError: there is none, or it is so short that it can be guessed.
    """
    given = os.environ.get(KEY_VARIABLE, "").strip()
    if len(given) < MIN_KEY:
        raise InputError(
            f"{KEY_VARIABLE}: DICOM scans need a secret of at least {MIN_KEY} characters in this environment variable, and "
            "the same one every time: patient ids are replaced by a keyed hash of it"
        )
    return given.encode()


def patient_number(secret: bytes, patient: str) -> int:
    """A number of up to 18 digits in place of a patient id (HMAC-SHA256): the same for the same id and key."""
    return int.from_bytes(_hashed(secret, "patient", patient)) % 10**18


def file_pseudonym(secret: bytes, name: str, frame: str = "") -> str:
    """`dicom/<hash>.dcm` in place of a file's name within the folder of scans, which may hold the patient's, and its frame."""
    return f"dicom/{_hashed(secret, 'file', name, *([frame] if frame else [])).hex()[:24]}.dcm"


def _hashed(secret: bytes, *parts: str) -> bytes:
    # names of files that are not UTF-8 hold surrogates
    return hmac.digest(secret, "\0".join(parts).encode("utf-8", "surrogatepass"), "sha256")
