"""Which DICOM file is which scan of the tables, for whoever keeps the key.

python -m thyroid.dicom my/scans
"""

import argparse
import os
from collections.abc import Sequence

from thyroid import errors, storage
from thyroid.errors import InputError
from thyroid.ingest import dicom_csv, ingest


def list_pseudonyms(scans: storage.Location) -> list[tuple[str, str]]:
    """The name in the tables of every scan that comes of a DICOM file, and which file that is, for whoever keeps the key.

    Raises:
        InputError: there is no DICOM file, no key, or a dicom.csv that cannot be read.
    """
    rows = [file.row for file in ingest.list_scans(scans, "normal") if file.row is not None]
    if not rows:
        raise InputError(f"{scans}: no DICOM file here")
    result = []
    for row in sorted(rows, key=lambda row: (row.file, row.line)):
        told = os.fsencode(row.file).decode("utf-8", "backslashreplace")
        told += f", frame {row.frame}" if row.frame else ""
        result.append(
            (row.name, told + (f", line {row.line} of {dicom_csv.NAME}" if row.line else f", not in {dicom_csv.NAME}"))
        )
    return result


@errors.command
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m thyroid.dicom",
        description="List the DICOM files of a folder with the pseudonyms under which the tables know their scans.",
    )
    parser.add_argument("scans", help="folder or gs:// prefix of scans, with dicom.csv")
    for pseudonym, told in list_pseudonyms(parser.parse_args(argv).scans):
        print(f"{pseudonym}  {told}")
