"""The command that runs the training pipeline on this machine, without a cluster."""

import shutil
from pathlib import Path
from typing import Annotated, Any, Literal

from kfp import local as kfp_local

from components.step import image_name
from pipelines import configuration, output, parameters, preflight
from pipelines.configuration import LOCATIONS, WRITTEN, Configuration, LocalOptions
from pipelines.local import containers, dag, forked, machine, plan
from pipelines.local.steps import Steps
from pipelines.training import training_pipeline
from thyroid import RESEARCH_USE_ONLY, storage
from thyroid.command import FLAT
from thyroid.records.evaluation import SummaryRecord
from thyroid.registry.registry import MODEL_NAME
from thyroid.storage import cache
from thyroid.train import settings

PARAMETERS = parameters.of(training_pipeline())
Given = parameters.options(PARAMETERS)
NONE_GIVEN = Given()
PACES = "paces.json"
"""File in the output with the pace of each step of the last run. The next run's time is estimated from it."""


def run(
    *,
    options: Annotated[LocalOptions, FLAT] = LocalOptions(),
    given: Annotated[Given, FLAT] = NONE_GIVEN,  # type: ignore[valid-type]
) -> None:
    """Run the whole pipeline on this machine, without a cluster.

    Args:
        options: Where and how it runs.
        given: Parameters of the pipeline.

    Raises:
        InputError: A value is wrong, the output is in use, or a step failed.
    """
    if options.engine is None:
        forked.prepare()
    chosen = configuration.resolve(PARAMETERS, options, parameters.given(given))
    preflight.check(chosen, options.folder)
    with output.locked(options.folder):
        _run(chosen, options)


def _run(chosen: Configuration, options: LocalOptions) -> None:
    folder = options.folder
    if not chosen["scans"]:
        # the store may hold different scans under the same names
        for old in (folder / "sample", folder / "store"):
            shutil.rmtree(old, ignore_errors=True)
        output.draw_sample(folder, chosen["seed"])
    values, here = chosen.arguments(folder), machine.here()
    planned = plan.training(workload(chosen, values), here, folder / PACES)
    print(planned.announced(), flush=True)
    steps = Steps(planned, here.cores, here.memory)
    chosen.write(folder)
    stopped = "the run stopped; the step's own message is printed above"
    with dag.running(steps, runner(options, values), folder / "pipeline", stopped):
        training_pipeline(chosen.backbones)(**values, **{parameters.RUN: chosen.text()})
    if list((folder / "pipeline").glob("*/rest")):
        return  # the step has logged why nothing was trained
    planned.remember(folder / PACES)
    output.collect(folder)
    if not chosen["store"]:  # other runs may be at work in a store outside the output
        for rest in (folder / "store" / "work").glob("*"):
            # the next run computes the feature maps of new frames alone
            if not rest.name.startswith("locate-maps-"):
                shutil.rmtree(rest, ignore_errors=True)
    _print_results(options, chosen["registry"])


def workload(chosen: Configuration, values: dict[str, Any]) -> plan.Workload:
    """Return what a run trains, as far as its time depends on it.

    Args:
        chosen: The configuration.
        values: The pipeline's arguments.
    """
    recipe, tuned = settings.resolve(chosen["recipe"], chosen["settings"])
    body: Literal["toy", "body"] = "toy" if chosen["weights"].lower() == "none" else "body"
    return plan.Workload(
        chosen.backbones,
        plan.count([values["scans"], values["crops"] or None]),
        tuned.image_size or chosen["image_size"],
        chosen["epochs"],
        recipe,
        max(1, len(chosen.listed("domains"))),
        chosen["folds"],
        body if values["rois"] else "",
    )


def runner(options: LocalOptions, values: dict[str, Any]) -> Any:
    """Return kfp.local's runner: processes of this environment, or containers if an engine was named.

    Args:
        options: The engine and the output.
        values: The pipeline's arguments, whose files and folders the containers see.
    """
    if options.engine is None:
        return kfp_local.SubprocessRunner(use_venv=False)
    files = {name: storage.parted(values[name])[0] for name in LOCATIONS & values.keys() if values[name]}
    if Path(values["weights"]).exists():
        files["weights"] = values["weights"]
    here = {name: Path(file) for name, file in files.items() if not storage.is_bucket(file)}
    return containers.runner(
        options.engine,
        [image_name(image) for image in ("data", "train", "ops")],
        read=[p for name, p in here.items() if name not in WRITTEN and not p.is_relative_to(options.folder)],
        write=[options.folder, *(here[name] for name in sorted(WRITTEN & here.keys()))],
        cache=cache.home() if here.keys() < files.keys() else None,
    )


def _print_results(options: LocalOptions, given_registry: str) -> None:
    """Print where the results are, and how to serve and query the model."""
    folder, given = options.folder, options.output
    summary = SummaryRecord.read(folder / "summary.json")
    model = summary.model
    make = "make serve" + ("" if given == Path("output") else f" OUTPUT={given}")
    make += f" REGISTRY={given_registry}" if given_registry else ""
    decision = summary.gate.decision
    sheet = folder / "locate" / "sheet.png"
    boxes = f"Boxes     {sheet}\n" if sheet.is_file() else ""
    status = {
        "promoted": "released: the champion",
        "waiting": "waits behind the champion: live pictures decide (make serve LOG=... SHADOW=1, then make watch)",
    }.get(decision, "not released: served as a candidate, and marked")
    print(
        f"""
{RESEARCH_USE_ONLY}

Report    {folder / "report.html"}
Summary   {folder / "summary.json"}
{boxes}Model     {model.uri} ({summary.winner.backbone}, version {model.version})
Gate      {status}
Repeat    make run CONFIG={given / configuration.FILE}

Serve it  {make}
Query it  curl -s -H 'Content-Type: application/json' -d @{given / "request.json"} \\
            http://localhost:8080/v1/models/{MODEL_NAME}:predict"""
    )
