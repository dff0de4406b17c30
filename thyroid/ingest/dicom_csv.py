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


@dataclass(frozen=True)
class DicomFolder:
    """A folder of scans that contains DICOM files.

    Attributes:
        secret: Key that makes the pseudonyms.
        files: Names of all files within the folder.
        classes: The classes. Every label must be one of them.
    """

    secret: bytes = field(repr=False)
    files: Collection[str] = field(repr=False)
    classes: Classes

    def rows(self, data: bytes | None, address: str, odd: Collection[str]) -> list[Row]:
        """Return the scans that dicom.csv makes of the DICOM files, and a row for every odd file that it omits.

        Args:
            data: Content of dicom.csv; None if there is no such file.
            address: Address of dicom.csv, for error messages.
            odd: Names of the files that may be DICOM and do not follow the naming scheme of scans.

        Raises:
            InputError: dicom.csv is not a UTF-8 CSV table with the columns of `COLUMNS`.
        """
        found: dict[tuple[str, str], list[tuple[int, dict[str, str]]]] = {}
        for line, row in [] if data is None else _read(data, address):
            number = _NUMBER.fullmatch(row["frame"])
            found.setdefault((row["filename"], number[1] if number else row["frame"]), []).append((line, row))
        result = [self._listed(file, frame, lines) for (file, frame), lines in found.items()]
        missing = f"DICOM, and there is no {NAME} beside the scans, a table with the columns {COLUMNS}"
        if data is not None:
            missing = f"neither named as a scan nor in {NAME}"
        missing += "; python -m thyroid.dicom with the folder of scans says which file this is"
        known = {row.file for row in result}
        return result + [self._omitted(file, missing) for file in odd if file not in known]

    def _listed(self, file: str, frame: str, lines: list[tuple[int, dict[str, str]]]) -> Row:
        """Return the row of a file and frame, which are named in these lines of dicom.csv."""
        line, row = lines[0]
        label, patient = self.classes.read(row["label"]) or "", row["patient"]
        name = pseudonyms.file_pseudonym(self.secret, file, frame)
        reason = None
        if not file:
            name, reason = pseudonyms.file_pseudonym(self.secret, "", str(line)), "no filename"
        elif len(lines) > 1:
            reason = f"line {', '.join(str(other) for other, _ in lines[1:])} names the same file and frame"
        elif file not in self.files:
            reason = "there is no such file in the folder of scans"
        elif not label:
            reason = f"label must be one of {', '.join(self.classes.names)}"
        elif frame and not _NUMBER.fullmatch(frame):
            reason = "frame must be a whole number from 1, or empty for the middle one"
        return Row(
            name,
            file,
            line=line,
            label=label,
            patient=patient,
            frame=int(frame) if frame and not reason else None,
            reason=reason,
            mark=self._mark(file, label, patient, frame, reason or ""),
        )

    def _omitted(self, file: str, reason: str) -> Row:
        name = pseudonyms.file_pseudonym(self.secret, file)
        return Row(name, file, reason=reason, mark=self._mark(file, reason))

    def _mark(self, *parts: str) -> str:
        text = "\0".join(parts).encode("utf-8", "surrogatepass")
        return hmac.digest(self.secret, b"row\0" + text, "sha256").hex()[:32]


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
