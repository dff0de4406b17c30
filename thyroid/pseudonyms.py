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
