"""List which DICOM file became which scan of the tables. This needs the key of the pseudonyms.

python -m thyroid.dicom my/scans
"""

import os

from thyroid import command, storage
from thyroid.errors import InputError
from thyroid.ingest import dicom_csv, listing
from thyroid.ingest.dicom_csv import Row


def list_pseudonyms(scans: storage.Location) -> list[tuple[str, str]]:
    """List every scan that comes from a DICOM file, with its name in the tables. This requires the key.

    Args:
        scans: Folder, gs:// or s3:// prefix of scans, with its dicom.csv.

    Returns:
        Pairs of the scan's pseudonym and a description of its source: file, frame, and line in dicom.csv. They are
        sorted by file and line.

    Raises:
        InputError: There is no DICOM file or no key, or dicom.csv cannot be read.
    """
    rows = [file.row for file in listing.list_scans(scans, "normal") if file.row is not None]
    if not rows:
        raise InputError(f"{scans}: contains no DICOM file")
    return [(row.name, _describe(row)) for row in sorted(rows, key=lambda row: (row.file, row.line))]


def _describe(row: Row) -> str:
    file = os.fsencode(row.file).decode("utf-8", "backslashreplace")
    frame = f", frame {row.frame}" if row.frame else ""
    return f"{file}{frame}, " + (f"line {row.line} of {dicom_csv.NAME}" if row.line else f"not in {dicom_csv.NAME}")


def run(scans: storage.Location, /) -> None:
    """List the DICOM files of a folder with the pseudonyms under which the tables know their scans.

    Args:
        scans: Folder, gs:// or s3:// prefix of scans, with dicom.csv.
    """
    for pseudonym, source in list_pseudonyms(scans):
        print(f"{pseudonym}  {source}")


main = command.main("python -m thyroid.dicom", run)
