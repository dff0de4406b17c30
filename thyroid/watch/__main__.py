"""Watch a model since its release.

python -m thyroid.watch --registry output/registry --log decisions --outcomes outcomes.csv --output output/watch
"""

import sys
from pathlib import Path
from typing import Annotated

from thyroid import RESEARCH_USE_ONLY, command
from thyroid.command import FLAT
from thyroid.watch import report
from thyroid.watch.options import WatchOptions
from thyroid.watch.watch import watch


def run(*, options: Annotated[WatchOptions, FLAT], output: Path) -> None:
    """Say whether a registered model still holds since its release.

    Nothing is trained. The registry keeps the verdict beside the version. The exit code is 0 whatever the verdict is,
    so that a schedule goes on.

    Args:
        options: The model, what it decided, and what became known since.
        output: Folder for report.html, watch.json, watch.prom and plots.
    """
    done = watch(options, output)
    print(f"{done.record.verdict}: " + "\n".join(report.headline(done.record)))
    for line in done.told:
        print(line)
    print(f"report: {done.folder / 'report.html'}\n{RESEARCH_USE_ONLY}")


main = command.main("python -m thyroid.watch", run)

if __name__ == "__main__":
    sys.exit(main())
