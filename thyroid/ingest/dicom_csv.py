"""Read dicom.csv: label, patient and frame of DICOM files, and the pseudonyms of their scans in the tables.

The names of DICOM files give neither label nor patient number, but they often contain the patient's name. For this
reason the outputs of `ingest` contain only a pseudonym and the line number in dicom.csv, never the name of the file.
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
    """A scan that comes from a DICOM file.

    Attributes:
        name: Pseudonym of the scan, used as its name within the folder of scans.
        file: Name of the file within the folder of scans. It must not appear in any output of `ingest`.
        line: Line number in dicom.csv; 0 for a file that is not listed there.
        label: Class of the scan.
        patient: Patient as any text; "" means the patient that the file itself names.
        frame: Frame number, counted from 1; None means the middle frame.
        reason: Why the scan cannot be used, whatever the file contains; None if dicom.csv does not rule it out.
        mark: Keyed digest of the row. It changes whenever the row changes, and reveals nothing without the key.
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
    """Return the scans that dicom.csv makes of a folder's DICOM files, and a row for every odd file that it omits.

    Args:
        secret: Key that makes the pseudonyms.
        data: Content of dicom.csv; None if there is no such file.
        address: Address of dicom.csv, for error messages.
        files: Names of all files within the folder of scans.
        odd: Names of the files that may be DICOM and do not follow the naming scheme of scans.
        classes: The classes. Every label must be one of them.

    Raises:
        InputError: dicom.csv is not a UTF-8 CSV table with the columns of `COLUMNS`.
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
    """Return the line number and the cells of every row that is not empty."""
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
