"""Who may use the bench: readers.csv, which gives everyone a name, a token and a role."""

import csv
import hashlib
import hmac
import io
import re
import secrets
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from thyroid import errors
from thyroid.errors import InputError
from thyroid.label.readings import Role

COLUMNS = ("name", "token", "role")
ROLES = (Role.READER, Role.ADJUDICATOR)
"""Roles of people. The others are those of tables and imports."""
SHORTEST = 16
"""Characters of a token: fewer could be guessed."""
MOST_BYTES = 1_000_000
"""Bytes of readers.csv."""
ALONE = "reader"
"""Name of the one reader where there is no readers.csv."""
_NAME = re.compile(r"[\w][\w .-]{0,63}")


@dataclass(frozen=True)
class Reader:
    """Somebody who may read.

    Attributes:
        name: Name, as the journal keeps it.
        role: `Role.READER`, or `Role.ADJUDICATOR`, who also decides where readers contradict each other.
    """

    name: str
    role: Role = Role.READER


class Readers:
    """The readers and their tokens.

    Only digests of the tokens are kept, so that none of them can turn up in a log or in a traceback.
    """

    def __init__(self, known: Sequence[tuple[Reader, str]]) -> None:
        """Take every reader with the token."""
        self._known = [(reader, _digest(token)) for reader, token in known]

    @classmethod
    def read(cls, path: Path) -> "Readers":
        """Read readers.csv, which has the columns name, token and role.

        Args:
            path: The file. A blank role is that of a reader.

        Raises:
            InputError: The file cannot be read, has other columns or no row, or a row is not usable. The message names
                the line and never the token.
        """
        rows = _rows(path)
        known = [(_reader(row, f"{path}, line {number}"), row["token"].strip()) for number, row in rows]
        if not known:
            raise InputError(f"{path}: names no reader; add a line with {', '.join(COLUMNS)}")
        for what, values in (("name", [reader.name for reader, _ in known]), ("token", [token for _, token in known])):
            value, count = Counter(values).most_common(1)[0]
            if count > 1:
                lines = [str(number) for (number, _), one in zip(rows, values, strict=True) if one == value]
                raise InputError(f"{path}: lines {', '.join(lines)} have the same {what}; give every reader another")
        return cls(known)

    @classmethod
    def alone(cls) -> tuple["Readers", str]:
        """Return one reader with a random token, for a bench that one person uses, and the token.

        The reader is an adjudicator, so that an import and a reading that contradict each other can be settled.
        """
        token = secrets.token_urlsafe(24)
        return cls([(Reader(ALONE, Role.ADJUDICATOR), token)]), token

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the readers, in the order of the file."""
        return tuple(reader.name for reader, _ in self._known)

    def of(self, token: str) -> Reader | None:
        """Return whose token this is; None if it is nobody's. The time that it takes does not depend on the token."""
        given = _digest(token)
        found = None
        for reader, digest in self._known:
            if hmac.compare_digest(digest, given):
                found = reader
        return found

    def proof(self, reader: Reader) -> str:
        """Return what a session keeps of a reader's token: a session ends with the token that opened it."""
        return next(_proof(digest) for known, digest in self._known if known == reader)

    def returning(self, name: str, proof: str) -> Reader | None:
        """Return the reader of a session; None if the reader is gone or has another token by now."""
        for reader, digest in self._known:
            if reader.name == name and hmac.compare_digest(_proof(digest).encode(), proof.encode()):
                return reader
        return None


def _rows(path: Path) -> list[tuple[int, dict[str, str]]]:
    """Return the rows of readers.csv, each with the number of its line, without empty ones."""
    try:
        if path.stat().st_size > MOST_BYTES:
            raise InputError(f"{path}: larger than {MOST_BYTES} bytes; expected {', '.join(COLUMNS)} of every reader")
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: {errors.one_line(error)}; give --readers a CSV of {', '.join(COLUMNS)}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: is not UTF-8; save it as CSV in UTF-8") from None
    table = csv.DictReader(io.StringIO(text, newline=""), restval="")
    header = [name.strip().lower() for name in table.fieldnames or ()]
    if sorted(header) != sorted(COLUMNS):
        raise InputError(f"{path}: expected the columns {', '.join(COLUMNS)}")
    table.fieldnames = header
    try:
        return [(table.line_num, row) for row in table if any(value for value in row.values())]
    except csv.Error:
        raise InputError(f"{path}: is no CSV at line {table.line_num}") from None


def _reader(row: dict[str, str], where: str) -> Reader:
    if None in row:
        raise InputError(f"{where}: has more than {len(COLUMNS)} values")
    name, token, role = (row[column].strip() for column in COLUMNS)
    if not _NAME.fullmatch(name):
        raise InputError(f"{where}: name: give up to 64 letters, digits, blanks, dots, hyphens or underscores")
    if name.lower() in (Role.IMPORT, Role.OUTSIDE):
        raise InputError(f"{where}: name {name}: is kept for what nobody read; choose another")
    if len(token) < SHORTEST or not token.isascii() or not token.isprintable() or " " in token:
        raise InputError(
            f"{where}: token: needs at least {SHORTEST} letters, digits or marks without blanks; "
            "make one with: openssl rand -hex 16"
        )
    if (role or Role.READER) not in ROLES:
        raise InputError(f"{where}: role {role}: choose from {', '.join(ROLES)}")
    return Reader(name, Role(role or Role.READER))


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def _proof(digest: bytes) -> str:
    return hashlib.sha256(b"session " + digest).hexdigest()[:32]
