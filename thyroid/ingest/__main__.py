"""Command of the ingest step, see `ingest.ingest`.

python -m thyroid.ingest --scans DIR --rois rois.csv --output DIR
"""

from pathlib import Path
from typing import Annotated

from thyroid import command
from thyroid.command import FLAT
from thyroid.ingest.ingest import ingest
from thyroid.ingest.options import IngestOptions


def run(*, options: Annotated[IngestOptions, FLAT], output: Path) -> None:
    """Read scans, quarantine what cannot be used, and deal patients to splits.

    Args:
        options: The scans, and how to read them.
        output: Folder of the new data version.
    """
    ingest(options, output)


main = command.main("python -m thyroid.ingest", run)

if __name__ == "__main__":
    raise SystemExit(main())
