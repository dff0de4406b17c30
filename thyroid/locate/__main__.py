"""Command of the locating step, see `locate.locate`.

python -m thyroid.locate --data DIR --scans DIR --output DIR
"""

from pathlib import Path
from typing import Annotated

from thyroid import command
from thyroid.command import FLAT
from thyroid.locate.locate import locate
from thyroid.locate.options import LocateOptions


def run(*, data: Path, scans: Path, output: Path, options: Annotated[LocateOptions, FLAT] = LocateOptions()) -> None:
    """Train a locator, and box the nodule on every frame.

    Args:
        data: Data version of thyroid.crop.
        scans: Data version of thyroid.ingest.
        output: Folder for the boxes, the locator and its pictures.
        options: How it is trained.
    """
    locate(data, scans, output, options)


main = command.main("python -m thyroid.locate", run)

if __name__ == "__main__":
    raise SystemExit(main())
