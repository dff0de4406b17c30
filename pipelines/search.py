"""The command that searches the settings of one backbone's training on this machine."""

import json
import shutil
from pathlib import Path
from typing import Annotated

from pipelines import configuration, output, parameters, preflight
from pipelines.compile import SWEPT
from pipelines.configuration import Configuration, LocalOptions
from pipelines.local import dag, forked, machine, plan
from pipelines.local.steps import Steps
from pipelines.run import runner
from pipelines.sweep import sweep_pipeline
from thyroid import RESEARCH_USE_ONLY
from thyroid.command import FLAT
from thyroid.cores import available
from thyroid.errors import InputError

PARAMETERS = parameters.of(sweep_pipeline(SWEPT))
Given = parameters.options(PARAMETERS)
NONE_GIVEN = Given()


def sweep(
    *,
    options: Annotated[LocalOptions, FLAT] = LocalOptions(),
    given: Annotated[Given, FLAT] = NONE_GIVEN,  # type: ignore[valid-type]
) -> None:
    """Search the settings of one backbone's training on this machine, and copy the result to OUTPUT/sweep.

    Two workers run in parallel, or one where there is only one core.

    Args:
        options: Where and how it runs. The only backbone is VGG16 by default.
        given: Parameters of the pipeline.

    Raises:
        InputError: There is more than one backbone, a value is wrong, the output is in use, or a step failed.
    """
    if options.engine is None:
        forked.prepare()
    chosen = configuration.resolve(PARAMETERS, options, parameters.given(given), SWEPT)
    if len(chosen.backbones) != 1:
        raise InputError(f"--backbones {','.join(chosen.backbones)}: settings are searched for one backbone at a time")
    preflight.check(chosen, options.folder)
    with output.locked(options.folder):
        _search(chosen, options)


def _search(chosen: Configuration, options: LocalOptions) -> None:
    folder, backbone = options.folder, chosen.backbones[0]
    values = chosen.arguments(folder)
    if not chosen["scans"] and not Path(values["rois"]).is_file():
        output.draw_sample(folder, chosen["seed"])
    cores = available()
    workers = min(2, cores)
    planned = plan.sweep(backbone, workers)
    print(planned.announced(), flush=True)
    steps = Steps(planned, workers, machine.free_memory())
    chosen.write(folder)
    stopped = "the search stopped; the step's own message is printed above, and the same command resumes the search"
    with dag.running(steps, runner(options, values), folder / "pipeline", stopped):
        sweep_pipeline(backbone, workers, cores=cores // workers)(**values)
    results = next((folder / "pipeline").glob("*/sweep-conclude/results"))
    shutil.rmtree(folder / "sweep", ignore_errors=True)
    shutil.copytree(results, folder / "sweep")
    study = json.loads((folder / "sweep" / "study.json").read_text())
    print(
        f"""
{RESEARCH_USE_ONLY}

{study["helped"]}

Report    {folder / "sweep" / "report.html"}
Settings  {folder / "sweep" / "settings.json"}
Trials    {folder / "sweep" / "study.json"}

Train     make run SETTINGS={options.output / "sweep" / "settings.json"} BACKBONES={backbone}"""
    )
