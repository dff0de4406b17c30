"""The signature of what a site shares: Ed25519 (RFC 8032) over the very bytes of the file.

A file has one form: JSON in UTF-8 with sorted keys, two spaces of indentation, numbers as Python writes them and a line
break at the end. The message that is signed is the file in this form with an empty text as the value of the signature.
A file that is not in this form, byte for byte, is refused, so that no byte of it can be changed. This is not the
canonical form of RFC 8785: that sorts by UTF-16 units and writes numbers as JavaScript does.
"""

import hashlib
import json
import os
import re
import unicodedata
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from thyroid.errors import InputError

PUBLIC = ".pub"
"""What the name of a public key ends with."""

_LONGEST = 200 + len(PUBLIC)  # most file systems take 255 bytes
_EMPTY = b'\n    "value": ""\n'


def form(content: dict[str, Any]) -> bytes:
    """Return JSON in the one form that a file may have.

    Raises:
        ValueError: A number is not finite.
    """
    text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return f"{text}\n".encode("utf-8", "surrogatepass")


def private_key(path: Path) -> tuple[Ed25519PrivateKey, bool]:
    """Read the site's private key, or make it, with the public key beside it.

    Args:
        path: File of the private key, PEM without a password; only its owner may read it. The public key is the same
            path with `PUBLIC` at its end.

    Returns:
        The key, and whether it was made.

    Raises:
        InputError: The file is not a private Ed25519 key, others may read it, or its folder does not exist.
    """
    if made := not path.exists():
        _make(path)
    if not path.is_file():
        raise InputError(f"{path}: not a file; name a file for the private key")
    if path.stat().st_mode & 0o077:
        raise InputError(f"{path}: other users can read this private key; run chmod 600 on it")
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise InputError(
            f"{path}: not a private Ed25519 key in PEM without a password; name another file for a new one"
        )
    if not _public(path).exists():
        _public(path).write_bytes(_pem(key))
    return key, made


def _make(path: Path) -> None:
    """Write a new private key and its public key. The private key is never readable by others."""
    if not path.parent.is_dir():
        raise InputError(f"{path.parent}: no such folder; make it, and keep it private")
    key = Ed25519PrivateKey.generate()
    text = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(text)
    _public(path).write_bytes(_pem(key))


def _public(path: Path) -> Path:
    return path.with_name(path.name + PUBLIC)


def _pem(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def secret_of(key: Ed25519PrivateKey) -> bytes:
    """Return the secret that hashes the site's patients: 32 bytes that only the owner of the key can compute."""
    return hashlib.sha256(b"thyroid patients\0" + key.private_bytes_raw()).digest()


def fingerprint(key: Ed25519PublicKey) -> str:
    """Return the SHA-256 of a public key's 32 bytes in hexadecimal digits."""
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()


def sign(content: dict[str, Any], key: Ed25519PrivateKey) -> bytes:
    """Return the file with these fields and the signature.

    Args:
        content: Fields of a `SiteRecord` without its signature.
        key: The site's private key.
    """
    signature = {"algorithm": "Ed25519", "key": fingerprint(key.public_key()), "value": ""}
    value = key.sign(form(content | {"signature": signature})).hex()
    return form(content | {"signature": signature | {"value": value}})


def verify(data: bytes, content: dict[str, Any], key: Ed25519PublicKey) -> bool:
    """Return whether a file has the one form, and a site's key signed it.

    Args:
        data: Bytes of the file.
        content: What they hold, with the fields of a `SiteRecord`.
        key: The site's public key.
    """
    signature = content["signature"]
    message = form(content | {"signature": signature | {"value": ""}})
    value = signature["value"].encode()
    # no text of a JSON file holds a line break, so that this line is there once
    if data != message.replace(_EMPTY, _EMPTY.replace(b'""', b'"' + value + b'"')):
        return False
    try:
        key.verify(bytes.fromhex(signature["value"]), message)
    except InvalidSignature:
        return False
    return bool(signature["key"] == fingerprint(key))


def file_name(site: str) -> str:
    """Return the name of a site's public key among those of all sites, such as "St-Elsewhere.pub" for St. Elsewhere."""
    return re.sub(r"[^\w]+", "-", unicodedata.normalize("NFC", site)).strip("-") + PUBLIC


def check_name(site: str) -> None:
    """Check that a site's name can be printed, and that a file can be named after it.

    Raises:
        InputError: It holds control or invisible characters, no letter and no digit, or is too long.
    """
    if not site.isprintable():
        raise InputError(f"site {site!r}: control or invisible characters in the name; write it without them")
    if not len(PUBLIC) < len(file_name(site).encode()) <= _LONGEST:
        raise InputError(f"site {site[:40]!r}: a name has letters or digits, and at most 200 bytes in UTF-8")


def public_keys(folder: Path) -> dict[str, Ed25519PublicKey]:
    """Return the public keys of a folder by the name of their file.

    Raises:
        InputError: There is no such folder, or what ends in `PUBLIC` there is not a public Ed25519 key.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give the folder with the sites' public keys (--keys)")
    keys = {}
    for path in sorted(folder.glob(f"*{PUBLIC}")):
        data = path.read_bytes() if path.is_file() else b""
        if b"PRIVATE KEY" in data:
            raise InputError(
                f"{path}: a private key, which only its site may hold; delete it, and ask the site for a new key's .pub"
            )
        try:
            key = serialization.load_pem_public_key(data)
        except (ValueError, UnsupportedAlgorithm):
            key = None
        if not isinstance(key, Ed25519PublicKey):
            raise InputError(f"{path}: not a public Ed25519 key in PEM; ask the site for the file that ends in .pub")
        keys[unicodedata.normalize("NFC", path.name)] = key  # macOS decomposes names
    return keys
