"""Try a registered model on the scans of another hospital.

python -m thyroid.validate --registry output/registry --scans scans --rois rois.csv --site "St. Elsewhere" --output out
"""

import sys
from pathlib import Path
from typing import Annotated

from thyroid import RESEARCH_USE_ONLY, command
from thyroid.command import FLAT
from thyroid.validate import report
from thyroid.validate.options import ValidateOptions
from thyroid.validate.validate import validate


def run(*, options: Annotated[ValidateOptions, FLAT], output: Path) -> None:
    """Measure a registered model on the scans of another hospital, beside its internal test.

    Nothing is trained or chosen on these scans. The registry keeps the figures beside the version.

    Args:
        options: The model, the scans, and what to measure.
        output: Folder for report.html and validation.json.
    """
    done = validate(options, output)
    print("\n".join(report.headline(done.record)))
    for line in done.told:
        print(line)
    print(f"report: {done.folder / 'report.html'}\n{RESEARCH_USE_ONLY}")


main = command.main("python -m thyroid.validate", run)

if __name__ == "__main__":
    sys.exit(main())
