"""dicom.csv: label, patient and frame of DICOM files, and the pseudonyms under which their scans stand in the tables.

DICOM files have no names that tell label and patient, but often ones that tell the patient's name: what is written anywhere
is a pseudonym and the line of dicom.csv.
"""

import csv
import hmac
import io
import re
from collections.abc import Collection
from dataclasses import dataclass, field

from thyroid.data import pseudonyms
from thyroid.data.classes import Classes
from thyroid.errors import InputError

NAME = "dicom.csv"
COLUMNS = "filename, label (the class), and if need be patient and frame"
_NUMBER = re.compile(r"([1-9][0-9]{0,5})(\.0*)?")


@dataclass(frozen=True)
class Row:
    """A scan that comes of a DICOM file.

    Attributes:
        name: its pseudonym, within the folder of scans.
        file: within the folder of scans; never to be told.
        line: of dicom.csv; 0 for a file that is not in it.
        label: its class.
        patient: any text; "" for the file's own.
        frame: from 1; None for the middle one.
        reason: why it cannot be used, whatever the file holds.
        mark: another one whenever the row says something else, and without the key nobody can tell what.
    """

    name: str
    file: str = field(repr=False)
    line: int = 0
    label: str = ""
    patient: str = field(default="", repr=False)
    frame: int | None = None
    reason: str | None = None
    mark: str = ""


def rows(
    secret: bytes, data: bytes | None, address: str, files: Collection[str], odd: Collection[str], classes: Classes
) -> list[Row]:
    """The scans that dicom.csv makes of a folder's DICOM files, and a row for every odd file that it leaves out.

    Args:
        secret: that makes the pseudonyms.
        data: content of dicom.csv; None where there is none.
        address: of dicom.csv, for errors.
        files: names of all files within the folder of scans.
        odd: of those that may be DICOM, and are no scans by their names.
        classes: of which every label is one.

    Raises:
        InputError: it is not a table with these columns.
    """
    found: dict[tuple[str, str], list[tuple[int, dict[str, str]]]] = {}
    for line, row in [] if data is None else _read(data, address):
        number = _NUMBER.fullmatch(row["frame"])
        found.setdefault((row["filename"], number[1] if number else row["frame"]), []).append((line, row))
    result = [_row(secret, file, frame, lines, files, classes) for (file, frame), lines in found.items()]
    missing = f"DICOM, and there is no {NAME} beside the scans, a table with the columns {COLUMNS}"
    if data is not None:
        missing = f"neither named as a scan nor in {NAME}"
    missing += "; python -m thyroid.dicom with the folder of scans says which file this is"
    known = {row.file for row in result}
    result += [
        Row(pseudonyms.file_pseudonym(secret, file), file, reason=missing, mark=_mark(secret, file, missing))
        for file in odd
        if file not in known
    ]
    return result


def _row(
    secret: bytes,
    file: str,
    frame: str,
    lines: list[tuple[int, dict[str, str]]],
    files: Collection[str],
    classes: Classes,
) -> Row:
    line, row = lines[0]
    label, patient = classes.read(row["label"]) or "", row["patient"]
    name = pseudonyms.file_pseudonym(secret, file, frame)
    reason = None
    if not file:
        name, reason = pseudonyms.file_pseudonym(secret, "", str(line)), "no filename"
    elif len(lines) > 1:
        reason = f"line {', '.join(str(other) for other, _ in lines[1:])} names the same file and frame"
    elif file not in files:
        reason = "there is no such file in the folder of scans"
    elif not label:
        reason = f"label must be one of {', '.join(classes.names)}"
    elif frame and not _NUMBER.fullmatch(frame):
        reason = "frame must be a whole number from 1, or empty for the middle one"
    number = int(frame) if frame and not reason else None
    return Row(
        name, file, line, label, patient, number, reason, _mark(secret, file, label, patient, frame, reason or "")
    )


def _read(data: bytes, address: str) -> list[tuple[int, dict[str, str]]]:
    """Line and cells of every row."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{address}: not UTF-8; save it as CSV with that encoding") from None
    reader = csv.reader(io.StringIO(text, newline=""), skipinitialspace=True, strict=True)
    try:
        header = [cell.strip().lower() for cell in next(reader, [])]
        missing = [column for column in ("filename", "label") if column not in header]
        if missing:
            raise InputError(
                f"{address}: column {', '.join(missing)} is missing; expected {COLUMNS}, with commas between them"
            )
        result = []
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) > len(header):
                raise InputError(f"{address}: line {reader.line_num} has more cells than the header")
            row = dict.fromkeys(("filename", "label", "patient", "frame"), "")
            row |= {column: cell.strip() for column, cell in zip(header, cells, strict=False)}
            row["filename"] = row["filename"].removeprefix("./")
            result.append((reader.line_num, row))
    except csv.Error as error:
        raise InputError(f"{address}: line {reader.line_num}: not a CSV table ({error})") from None
    return result


def _mark(secret: bytes, *parts: str) -> str:
    text = "\0".join(parts).encode("utf-8", "surrogatepass")
    return hmac.digest(secret, b"row\0" + text, "sha256").hex()[:32]
