"""Command of the sweep, see `sweep.search`.

python -m thyroid.sweep --data DIR --ingested DIR --backbone VGG16 --study DIR --output DIR
"""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from thyroid import command
from thyroid.command import FLAT
from thyroid.data import tables
from thyroid.model import backbones
from thyroid.storage import Location
from thyroid.sweep.images import Sources
from thyroid.sweep.options import Effort, SweepOptions
from thyroid.sweep.prepare import prepare
from thyroid.sweep.search import rank, search_heads, search_images

_EFFORT, _OPTIONS = Effort(), SweepOptions()


def run(
    *,
    data: Path,
    ingested: Path | None = None,
    study: Location,
    output: Path,
    backbone: Annotated[str, Parameter(help=f"One of {', '.join(backbones.BACKBONES)}.")] = "VGG16",
    domain: Annotated[str, command.one_of(tables.DOMAINS)] = "",
    effort: Annotated[Effort, FLAT] = _EFFORT,
    options: Annotated[SweepOptions, FLAT] = _OPTIONS,
) -> None:
    """Search settings on a data version, one stage at a time.

    Args:
        data: Data version of thyroid.crop.
        ingested: Data version of thyroid.ingest, to try other margins.
        study: Folder for the studies, or address in a bucket, where the same command resumes.
        output: Folder for settings.json, study.json and report.html.
        backbone: Name of the backbone.
        domain: normal or cropped; if not given, the data version's first.
        effort: How long the search goes on.
        options: How the trials are trained.
    """
    from thyroid.sweep import report

    found = prepare(data, study, backbone, domain, options).address
    search_heads(found, effort.head_trials, workers=effort.workers)
    rank(found)
    if effort.image_trials:
        sources = Sources(data, ingested, options.weights)
        search_images(found, sources, effort.image_trials, workers=effort.workers)
    report.conclude(found, output)


main = command.main("python -m thyroid.sweep", run)

if __name__ == "__main__":
    raise SystemExit(main())
