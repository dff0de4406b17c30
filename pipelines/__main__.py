r"""The pipeline's command line: run it on this machine, or compile it for Kubeflow and start it there.

python -m pipelines run --scans DIR --rois rois.csv --output DIR
python -m pipelines sweep --scans DIR --rois rois.csv --backbones VGG16 --output DIR
python -m pipelines compile --output thyroid.yaml
python -m pipelines submit --host http://localhost:8080 --set scans=/data/scans --set registry=/data/registry
python -m pipelines schedule --host http://localhost:8080 --cron "0 30 2 * * *" \
    --set scans=/data/scans --set registry=/data/registry
"""

import argparse
import base64
import contextlib
import datetime
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pipelines import forked
from thyroid import RESEARCH_USE_ONLY, crop, errors, locks, storage
from thyroid.clinical import clinical_csv
from thyroid.cores import available
from thyroid.data import classes as kinds
from thyroid.data import store as data_store
from thyroid.data import tables
from thyroid.deploy import deploy
from thyroid.errors import InputError
from thyroid.evaluate import gate
from thyroid.imaging import phantom
from thyroid.ingest import ingest, labels
from thyroid.model import backbones, operating_point
from thyroid.registry import registry
from thyroid.train import settings as tuning

MARK = ".thyroid-output"
PACES = "paces.json"
"""File in the output with the pace of each step of the last run. The next run's time is estimated from it."""
SCHEDULE = (
    "Start runs on Kubeflow by the clock. A schedule cannot be edited: giving its name again makes the new one first "
    "and then deletes the older. Dates are UTC unless the installation sets CRON_SCHEDULE_TIMEZONE. --manifest writes "
    "the object that Kubeflow's API server makes for a schedule, for the record: it starts no runs when kubectl "
    "applies it, since the API server refuses the dates of schedules that it has not made (so its sources of 2025 and "
    "2026)."
)

PRESETS: dict[str, dict[str, Any]] = {
    # takes minutes on two CPU cores and downloads nothing
    "quick": {"image_size": 64, "epochs": 3, "batch_size": 32, "weights": "none", "domains": ""},
    # the deck's setting: 224 pixels, 15 epochs, batches of 32, ImageNet weights
    "standard": {"image_size": 224, "epochs": 15, "batch_size": 32, "weights": "imagenet", "domains": ""},
    # both domains, so that the domain matrix is complete; larger images; trains until validation stops improving
    "full": {"image_size": 320, "epochs": 50, "batch_size": 32, "weights": "imagenet", "domains": "normal,cropped"},
}

SWEPT = "VGG16"
"""The backbone whose settings are searched by default."""
TRIALS = {"quick": (60, 8, 3), "standard": (200, 24, 5), "full": (400, 48, 5)}
"""For each preset: a search's trials on cached features, its trials from the images, and its folds."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pipelines", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    placing = argparse.ArgumentParser(add_help=False)
    placing.add_argument("--backbones", default=",".join(backbones.BACKBONES))
    placing.add_argument("--gpus", type=int, default=1, help="of each training; 0: train on CPUs")
    placing.add_argument("--accelerator", default="nvidia.com/gpu", help="resource name of a GPU")
    placing.add_argument(
        "--node-selector", action="append", default=[], metavar="LABEL=VALUE", help="of the nodes for training"
    )
    placing.add_argument("--claim", default=deploy.CLAIM, help=f"volume claim mounted at {deploy.MOUNT}; '': none")
    placing.add_argument("--gcs-secret", default="", help="secret with key.json; default: workload identity")
    compiling = commands.add_parser("compile", parents=[placing], help="write the pipeline for the Kubeflow UI")
    compiling.add_argument("--output", type=Path, default=Path("thyroid.yaml"))
    compiling.add_argument("--picture", type=Path, help="also draw the steps to this PNG")
    submitting = commands.add_parser("submit", parents=[placing], help="start a run on Kubeflow and watch it")
    submitting.add_argument(
        "--pipeline",
        choices=("training", "sweep"),
        default="training",
        help="sweep: the search, for --backbones ONE",
    )
    submitting.add_argument("--host", required=True, help="address of Kubeflow Pipelines")
    submitting.add_argument("--set", action="append", default=[], metavar="PARAMETER=VALUE", help="of the pipeline")
    submitting.add_argument("--namespace", default="", help="the profile on a multi-user Kubeflow")
    submitting.add_argument("--service-account", default="", help="that the pods run as")
    submitting.add_argument("--token-file", type=Path, help="file with a bearer token for the host")
    submitting.add_argument("--no-wait", action="store_true", help="return when the run has started")
    scheduling = commands.add_parser(
        "schedule", parents=[placing], help="start runs on Kubeflow by the clock", description=SCHEDULE
    )
    what = scheduling.add_mutually_exclusive_group(required=True)
    what.add_argument("--cron", help="six fields, seconds first: '0 30 2 * * *' is 02:30 every day")
    what.add_argument("--list", action="store_true", help="the schedules that there are")
    what.add_argument("--delete", metavar="NAME", help="a schedule, by name; its runs in progress go on")
    scheduling.add_argument("--host", default="", help="address of Kubeflow Pipelines")
    scheduling.add_argument("--name", default="thyroid-nightly", help="default: %(default)s; an older one is replaced")
    scheduling.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="PARAMETER=VALUE",
        help="of the pipeline, in every run; minimum=1 and recipe=warm are given where it knows them",
    )
    scheduling.add_argument("--namespace", default="", help="the profile on a multi-user Kubeflow")
    scheduling.add_argument("--service-account", default="", help="that the pods run as")
    scheduling.add_argument("--token-file", type=Path, help="file with a bearer token for the host")
    scheduling.add_argument(
        "--manifest", type=Path, metavar="FILE", help="write a ScheduledWorkflow for the record and send nothing"
    )
    scheduling.add_argument("--pipeline-id", default="", help="with --manifest: of the uploaded pipeline")
    reading = argparse.ArgumentParser(add_help=False)
    reading.add_argument("--scans", help="folder or gs:// prefix of frames; none: synthetic sample scans")
    reading.add_argument("--rois", help="CSV: filename, x, y, width, height in pixels of the frame")
    reading.add_argument("--crops", help="folder or gs:// prefix of images that are already cropped")
    reading.add_argument("--labels", help="CSV: filename, label; labels.csv#column for another column than label")
    reading.add_argument(
        "--classes",
        default=kinds.DEFAULT,
        help="in order, benign|malignant, such as 2<3|4a<4b<4c<5; default: %(default)s",
    )
    reading.add_argument(
        "--weights", help="imagenet, none, a *.weights.h5 file or a folder of them, also gs://; default: the preset's"
    )
    reading.add_argument("--output", type=Path, default=Path("output"))
    reading.add_argument("--preset", choices=PRESETS, default="quick")
    reading.add_argument(
        "--domains", help="normal, cropped or normal,cropped; default: cropped where there are regions"
    )
    reading.add_argument("--given-splits", choices=ingest.GIVEN_SPLITS, default="separate")
    reading.add_argument(
        "--site",
        default="",
        help="where patient numbers mean the same patients, such as the hospital; default: that of the same scans "
        "before",
    )
    reading.add_argument("--seed", type=int, default=0)
    reading.add_argument("--engine", choices=("podman", "docker"), help="run every step in its image (make images)")
    running = commands.add_parser(
        "run", parents=[reading], help="run the whole pipeline on this machine, without a cluster"
    )
    running.add_argument("--backbones", default=",".join(backbones.BACKBONES))
    running.add_argument("--registry", help="folder or gs:// prefix; default: the output's")
    running.add_argument(
        "--minimum",
        type=int,
        default=0,
        help="scans new, changed or removed since the last registered model that are worth a training; 0: in any case",
    )
    running.add_argument(
        "--recipe",
        default="two-phase",
        help=f"{', '.join(backbones.RECIPES)}, or a settings.json of a sweep; deck: the slide deck's, mistakes "
        "included",
    )
    running.add_argument("--folds", type=int, default=0, help="compare models by so many folds of a cross-validation")
    running.add_argument("--serving-domain", choices=tables.DOMAINS, help="default: the first trained domain")
    running.add_argument("--sensitivity", type=float, default=0.95, help="that the threshold must reach on validation")
    running.add_argument("--abstain", type=float, default=0.0, help="share of images to leave undecided")
    running.add_argument("--prevalence", type=float, default=0.1, help="of malignant nodules where the model is used")
    running.add_argument(
        "--clinical",
        help="CSV: filename or patient, and columns to explore; clinical.csv#age,sex: columns that the model may use, "
        "#* all",
    )
    running.add_argument("--waive", default="", help=f"audits that the gate lets pass: {', '.join(gate.WAIVABLE)}")
    searching = commands.add_parser(
        "sweep", parents=[reading], help="search the settings of one backbone's training on this machine"
    )
    searching.add_argument("--backbones", default=SWEPT, help="one; default: %(default)s")
    searching.add_argument("--head-trials", type=int, help="on cached features; default: the preset's")
    searching.add_argument("--image-trials", type=int, help="from the images, 0 for none; default: the preset's")
    searching.set_defaults(
        recipe="two-phase",
        minimum=0,
        folds=0,
        sensitivity=0.95,
        abstain=0.0,
        prevalence=0.1,
        clinical=None,
        waive="",
        registry=None,
    )
    return parser


@errors.command
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command that the arguments name; `errors.command` turns an error of the user into exit code 2.

    Args:
        argv: Arguments without the program's name; None reads those of the process.

    Raises:
        InputError: An argument, or a file that it names, cannot be used.
    """
    arguments = _parser().parse_args(argv)
    chosen = [backbones.get(name).name for name in arguments.backbones.split(",")]
    if arguments.command == "compile":
        compile_pipeline(arguments, chosen, arguments.output)
        search = arguments.output.with_name(f"{arguments.output.stem}-sweep.yaml")
        compile_sweep(arguments, chosen, search)
        print(f"{arguments.output}: upload it in the Kubeflow UI under Pipelines")
        print(f"{_version_manifest(arguments.output)}: or apply it with kubectl, where pipelines are kept as objects")
        print(f"{search}: the search for settings, to be uploaded likewise")
        if arguments.picture:
            from pipelines import draw

            draw.draw(arguments.output, arguments.picture)
    elif arguments.command == "submit":
        submit_pipeline(arguments, chosen)
    elif arguments.command == "schedule":
        schedule_pipeline(arguments, chosen)
    elif arguments.command == "sweep":
        sweep(arguments, chosen)
    else:
        run(arguments, chosen)


def compile_pipeline(arguments: argparse.Namespace, chosen: Sequence[str], output: Path) -> None:
    """Compile the training pipeline to KFP's intermediate representation.

    The same pipeline is written next to it a second time, as Kubernetes objects Pipeline and PipelineVersion.

    Args:
        arguments: Parsed command line with the cluster's options.
        chosen: Backbones to train.
        output: YAML file to write; missing folders are created.
    """
    from kfp import compiler
    from kfp.compiler.compiler_utils import KubernetesManifestOptions

    from components.step import image_name
    from pipelines.training import training_pipeline

    output.parent.mkdir(parents=True, exist_ok=True)
    pipeline = training_pipeline(chosen, _cluster(arguments))
    compiler.Compiler().compile(pipeline, str(output))
    tag = re.sub("[^a-z0-9.-]", "-", image_name("train").rsplit(":", 1)[1].lower())
    options = KubernetesManifestOptions(
        pipeline_name="thyroid-training",
        pipeline_display_name="Thyroid nodules: scans to endpoint",
        pipeline_version_name=f"thyroid-training-{tag}",
        pipeline_version_display_name=tag,
        include_pipeline_manifest=True,
    )
    compiler.Compiler().compile(
        pipeline,
        str(_version_manifest(output)),
        kubernetes_manifest_options=options,
        kubernetes_manifest_format=True,
    )


def compile_sweep(arguments: argparse.Namespace, chosen: Sequence[str], output: Path) -> None:
    """Compile the search for a backbone's settings.

    Args:
        arguments: Parsed command line with the cluster's options.
        chosen: Backbones of the command line. The search takes `SWEPT` unless there is exactly one.
        output: YAML file to write.
    """
    from kfp import compiler

    from pipelines.sweep import sweep_pipeline

    backbone = chosen[0] if len(chosen) == 1 else SWEPT
    compiler.Compiler().compile(sweep_pipeline(backbone, cluster=_cluster(arguments)), str(output))


def _cluster(arguments: argparse.Namespace) -> Any:
    from pipelines.cluster import Cluster

    return Cluster(
        gpus=arguments.gpus,
        accelerator=arguments.accelerator,
        node_selector=_pairs("--node-selector", arguments.node_selector),
        claim=arguments.claim,
        gcs_secret=arguments.gcs_secret,
    )


def _version_manifest(output: Path) -> Path:
    return output.with_name(f"{output.stem}-version.yaml")


def _pairs(option: str, given: Sequence[str]) -> dict[str, str]:
    for one in given:
        if "=" not in one:
            raise InputError(f"{option} {one}: give it as NAME=VALUE")
    return dict(one.split("=", 1) for one in given)


def submit_pipeline(arguments: argparse.Namespace, chosen: Sequence[str]) -> None:
    """Compile the pipeline, check the given parameters against it, and start a run on Kubeflow.

    Args:
        arguments: Parsed command line of `submit`.
        chosen: Backbones to train, or the one whose settings are searched.

    Raises:
        InputError: A parameter is wrong, the host refuses or cannot be reached, or the run failed.
    """
    import yaml

    from pipelines import submit

    token = arguments.token_file.read_text().strip() if arguments.token_file else ""
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "thyroid.yaml"
        if arguments.pipeline == "sweep":
            compile_sweep(arguments, chosen, package)
        else:
            compile_pipeline(arguments, chosen, package)
        specification = next(yaml.safe_load_all(package.read_text()))
        values = submit.arguments(specification, _pairs("--set", arguments.set))
        submit.submit(
            package,
            values,
            arguments.host,
            arguments.namespace,
            arguments.service_account,
            token,
            wait=not arguments.no_wait,
        )


def schedule_pipeline(arguments: argparse.Namespace, chosen: Sequence[str]) -> None:
    """List or delete schedules on Kubeflow, create one, or write one as a manifest.

    The cron expression and the parameters are checked before anything is sent.

    Args:
        arguments: Parsed command line of `schedule`.
        chosen: Backbones to train.

    Raises:
        InputError: An option is missing or wrong, or the host refuses or cannot be reached.
    """
    import yaml

    from pipelines import schedule, submit

    host, namespace = arguments.host, arguments.namespace
    if arguments.manifest and not (arguments.cron and arguments.pipeline_id):
        raise InputError(
            "--manifest: needs --cron and --pipeline-id, the id of the uploaded pipeline (its page shows it)"
        )
    if not host and not arguments.manifest:
        raise InputError("--host: give the address of Kubeflow Pipelines")
    token = arguments.token_file.read_text().strip() if arguments.token_file else ""
    if arguments.list:
        print(schedule.table(host, namespace, token))
        return
    if arguments.delete is not None:
        schedule.delete(host, arguments.delete, namespace, token)
        return
    cron, name = " ".join(arguments.cron.split()), arguments.name
    schedule.check_name(name)
    dates = schedule.following(cron, datetime.datetime.now(datetime.UTC))
    print(f"{cron}: {schedule.words(cron)} ({schedule.ZONE})")
    print("next: " + ", ".join(f"{date:%Y-%m-%d %H:%M:%S}" for date in dates), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "thyroid.yaml"
        compile_pipeline(arguments, chosen, package)
        specification = next(yaml.safe_load_all(package.read_text()))
        added, given = schedule.defaults(specification), _pairs("--set", arguments.set)
        values = submit.arguments(specification, added | given)
        if kept := [f"{one}={text}" for one, text in added.items() if one not in given]:
            print(f"with {', '.join(kept)} (--set says otherwise)")
        if arguments.manifest:
            text = schedule.manifest(cron, values, arguments.pipeline_id, name, namespace, arguments.service_account)
            arguments.manifest.write_text(text)
            print(f"{arguments.manifest}: for the record; applied with kubectl it starts no runs (schedule --help)")
        else:
            schedule.create(package, values, cron, host, name, namespace, arguments.service_account, token)


def run(arguments: argparse.Namespace, chosen: Sequence[str]) -> None:
    """Run the training pipeline with kfp.local, with one process per step, and collect its results in the output.

    Args:
        arguments: Parsed command line of `run`.
        chosen: Backbones to train.

    Raises:
        InputError: An argument is wrong, the output is in use, or a step failed.
    """
    if arguments.engine is None:
        forked.prepare()
    preset = PRESETS[arguments.preset]
    output = arguments.output.resolve()
    weights = arguments.weights or preset["weights"]
    domains = arguments.domains if arguments.domains is not None else preset["domains"]
    _check(arguments, output, weights, domains, chosen)
    with _alone(output):
        _run(arguments, chosen, output, weights, domains)


def _run(arguments: argparse.Namespace, chosen: Sequence[str], output: Path, weights: str, domains: str) -> None:
    preset = PRESETS[arguments.preset]
    scans, rois, store = arguments.scans, arguments.rois, output / "store"
    if scans is None:
        print("No SCANS given: drawing synthetic sample scans")
        scans, rois = str(output / "sample" / "scans"), str(output / "sample" / "rois.csv")
        for folder in (output / "sample", store):  # they may hold different scans under the same names
            shutil.rmtree(folder, ignore_errors=True)
        phantom.generate(output / "sample", seed=arguments.seed)

    from pipelines import local, plan
    from pipelines.training import training_pipeline

    recipe, tuned = tuning.resolve(arguments.recipe)
    memory, paces = local.free_memory(), output / PACES
    planned = plan.training(
        chosen,
        plan.count([scans, arguments.crops]),
        tuned.image_size or preset["image_size"],
        preset["epochs"],
        recipe,
        max(1, len(domains.split(","))),
        arguments.folds,
        local.at_a_time(),
        memory,
        paces,
    )
    print(planned.announced(), flush=True)
    steps = local.Steps(planned, local.at_a_time(), memory)
    runner = _runner(arguments, output, scans, rois, weights)
    with local.running(steps, runner, output / "pipeline", "the run stopped; the step's own message stands above"):
        training_pipeline(chosen)(
            scans=_absolute(scans),
            registry=_absolute(arguments.registry) or str(output / "registry"),
            rois=_absolute(rois),
            crops=_absolute(arguments.crops),
            labels=_absolute(arguments.labels),
            classes=arguments.classes,
            domains=domains,
            serving_domain=arguments.serving_domain or "",
            sensitivity=arguments.sensitivity,
            abstain=arguments.abstain,
            prevalence=arguments.prevalence,
            clinical=_absolute(arguments.clinical),
            waive=arguments.waive,
            weights=_absolute(weights) if Path(weights).exists() else weights,
            image_size=preset["image_size"],
            epochs=preset["epochs"],
            batch_size=preset["batch_size"],
            recipe=_recipe(arguments),
            folds=arguments.folds,
            store=str(store),
            minimum=arguments.minimum,
            given_splits=arguments.given_splits,
            site=arguments.site,
            seed=arguments.seed,
        )
    if list((output / "pipeline").glob("*/rest")):
        return  # the step has logged why nothing was trained
    planned.remember(paces)
    _collect(output)
    shutil.rmtree(store / "work", ignore_errors=True)
    _tell(output, arguments)


def sweep(arguments: argparse.Namespace, chosen: Sequence[str]) -> None:
    """Search the settings of one backbone with kfp.local and copy the result to OUTPUT/sweep.

    Two workers run in parallel, or one where there is only one core.

    Args:
        arguments: Parsed command line of `sweep`.
        chosen: The backbone to search for.

    Raises:
        InputError: There is more than one backbone, an argument is wrong, the output is in use, or a step failed.
    """
    if arguments.engine is None:
        forked.prepare()
    preset = PRESETS[arguments.preset]
    output = arguments.output.resolve()
    weights = arguments.weights or preset["weights"]
    domains = arguments.domains if arguments.domains is not None else preset["domains"]
    if len(chosen) != 1:
        raise InputError(f"--backbones {arguments.backbones}: settings are searched for one backbone at a time")
    trials = _trials(arguments)
    _check(arguments, output, weights, domains, chosen)
    with _alone(output):
        _sweep(arguments, chosen[0], output, weights, domains, trials)


def _trials(arguments: argparse.Namespace) -> tuple[int, int, int]:
    """Trials on cached features, trials from the images, and folds: from the command line, else from the preset."""
    heads, images, folds = TRIALS[arguments.preset]
    heads = heads if arguments.head_trials is None else arguments.head_trials
    images = images if arguments.image_trials is None else arguments.image_trials
    for option, number, least in (("--head-trials", heads, 1), ("--image-trials", images, 0)):
        if number < least:
            raise InputError(f"{option} {number}: give at least {least}")
    return heads, images, folds


def _sweep(
    arguments: argparse.Namespace, backbone: str, output: Path, weights: str, domains: str, trials: tuple[int, int, int]
) -> None:
    preset = PRESETS[arguments.preset]
    heads, images, folds = trials
    scans, rois = arguments.scans, arguments.rois
    if scans is None:
        scans, rois = str(output / "sample" / "scans"), str(output / "sample" / "rois.csv")
        if not Path(rois).is_file():
            print("No SCANS given: drawing synthetic sample scans")
            phantom.generate(output / "sample", seed=arguments.seed)

    from pipelines import local, plan
    from pipelines.sweep import sweep_pipeline

    cores = available()
    workers = min(2, cores)
    stopped = "the search stopped; the step's own message stands above, and the same command goes on"
    planned = plan.sweep(backbone, workers)
    print(planned.announced(), flush=True)
    steps = local.Steps(planned, workers, local.free_memory())
    with local.running(steps, _runner(arguments, output, scans, rois, weights), output / "pipeline", stopped):
        sweep_pipeline(backbone, workers, cores=cores // workers)(
            scans=_absolute(scans),
            store=str(output / "store"),
            rois=_absolute(rois),
            crops=_absolute(arguments.crops),
            labels=_absolute(arguments.labels),
            classes=arguments.classes,
            domains=domains,
            weights=_absolute(weights) if Path(weights).exists() else weights,
            image_size=preset["image_size"],
            epochs=preset["epochs"],
            batch_size=preset["batch_size"],
            head_trials=heads,
            image_trials=images,
            folds=folds,
            given_splits=arguments.given_splits,
            site=arguments.site,
            seed=arguments.seed,
        )
    results = next((output / "pipeline").glob("*/sweep-conclude/results"))
    shutil.rmtree(output / "sweep", ignore_errors=True)
    shutil.copytree(results, output / "sweep")
    found = json.loads((output / "sweep" / "study.json").read_text())
    print(
        f"""
{RESEARCH_USE_ONLY}

{found["helped"]}

Report    {output / "sweep" / "report.html"}
Settings  {output / "sweep" / "settings.json"}
Trials    {output / "sweep" / "study.json"}

Train     make run RECIPE={arguments.output / "sweep" / "settings.json"} BACKBONES={backbone}"""
    )


def _recipe(arguments: argparse.Namespace) -> str:
    """Return the recipe's name, or the absolute path of its settings."""
    return _absolute(arguments.recipe) if tuning.is_file(arguments.recipe) else str(arguments.recipe)


def _check(arguments: argparse.Namespace, output: Path, weights: str, domains: str, chosen: Sequence[str]) -> None:
    """Find every error that can be found before the first step starts.

    Raises:
        InputError: An argument, or a file that it names, cannot be used.
    """
    for option, given in (("--scans", arguments.scans), ("--crops", arguments.crops)):
        place = None if given is None else storage.at(given)
        if isinstance(place, storage.Folder) and not place.path.is_dir():
            raise InputError(f"{option} {given}: no such folder")
    if arguments.rois is not None and not storage.file(arguments.rois).is_file():
        raise InputError(f"--rois {arguments.rois}: no such file")
    if arguments.minimum < 0:
        raise InputError(f"--minimum {arguments.minimum}: give 0 to train in any case, or a number of scans")
    if tuning.resolve(arguments.recipe)[0] not in backbones.RECIPES:
        known = ", ".join(backbones.RECIPES)
        raise InputError(f"--recipe {arguments.recipe}: choose from {known}, or give a settings file (*.json)")
    if arguments.recipe == "warm" and arguments.folds:
        raise InputError("--folds with --recipe warm: the champion has seen the patients that a fold holds out")
    data_store.site(arguments.site)
    operating_point.check(arguments.sensitivity, arguments.abstain, arguments.prevalence)
    gate.check_waivers([name for name in arguments.waive.split(",") if name])
    if arguments.clinical is not None:
        clinical_csv.read(Path(storage.file(storage.parted(arguments.clinical)[0])))
    told = kinds.parse(arguments.classes)
    if arguments.labels is not None:
        labels.read(arguments.labels, told)
    if arguments.scans is None and (arguments.rois or arguments.crops or arguments.labels):
        raise InputError("--rois, --crops and --labels need --scans")
    for name in chosen:
        backbones.find_weights(backbones.get(name), weights)
    wanted = [d for d in domains.split(",") if d]
    may_have_regions = arguments.scans is None or arguments.rois is not None or arguments.crops is not None
    crop.resolve_domains(wanted, has_regions=may_have_regions)
    tables_given = (arguments.rois, arguments.labels, arguments.clinical)
    for path in (output, arguments.scans, arguments.crops, *tables_given, weights, arguments.registry):
        if path is not None and "python3" in _absolute(path):
            # kfp's SubprocessRunner replaces this text in every argument with the interpreter's path
            raise InputError(f"{path}: a path that holds the text 'python3' cannot be used here; rename or move it")
    for option, given in (("--scans", arguments.scans), ("--crops", arguments.crops)):
        path = Path(_absolute(given) or "/none")
        if given is not None and (output.is_relative_to(path) or path.is_relative_to(output)):
            raise InputError(f"{option} {given} and the output {output} lie in one another; choose another --output")
    if not 0 <= arguments.seed < 2**32:
        raise InputError(f"--seed {arguments.seed}: must be between 0 and 4294967295")
    # Every run replaces folders in the output, so the output must come from an earlier run.
    if output.is_dir() and any(output.iterdir()) and not (output / MARK).exists():
        raise InputError(f"{output}: not empty and not the output of an earlier run; choose a new folder with --output")


@contextlib.contextmanager
def _alone(output: Path) -> Iterator[None]:
    """Lock the output. The lock ends with the process, even if the process is killed.

    Raises:
        InputError: Another run holds the lock.
    """

    def refuse() -> None:
        raise InputError(
            f"{output}: another run is at work here; wait until it has ended, or choose another folder with --output"
        )

    with locks.held(output / MARK, refuse):
        if not (output / MARK).stat().st_size:
            (output / MARK).write_text("made by `python -m pipelines run`; its contents are replaced by the next run\n")
        yield


def _absolute(location: storage.Location | None) -> str:
    return "" if location is None else storage.at(location).address


def _runner(arguments: argparse.Namespace, output: Path, scans: str, rois: str | None, weights: str) -> Any:
    """Return kfp.local's runner: processes of this environment, or containers if an engine was named."""
    from kfp import local

    if arguments.engine is None:
        return local.SubprocessRunner(use_venv=False)
    from components.step import image_name
    from pipelines import containers

    given = [
        scans,
        rois,
        arguments.crops,
        *(storage.parted(one)[0] for one in (arguments.labels, arguments.clinical) if one is not None),
        arguments.recipe if tuning.is_file(arguments.recipe) else None,
        weights if Path(weights).exists() else None,
    ]
    here = [Path(one) for one in given if one is not None and not storage.is_bucket(one)]
    models = [Path(one) for one in [arguments.registry] if one is not None and not storage.is_bucket(one)]
    return containers.runner(
        arguments.engine,
        [image_name(image) for image in ("data", "train", "ops")],
        read=[path for path in here if not path.resolve().is_relative_to(output)],
        write=[output, *models],
    )


def _collect(output: Path) -> None:
    """Copy the results that people look for from the run's own folder to the top of the output."""
    outputs = {
        name: next((output / "pipeline").glob(f"*/{step}/{name}"))
        for step, name in (("crop", "images"), ("evaluate", "report"), ("register", "summary"), ("deploy", "manifest"))
    }
    incoming = output / ".data"
    shutil.rmtree(incoming, ignore_errors=True)
    shutil.copytree(outputs["images"], incoming, ignore=shutil.ignore_patterns(*tables.DOMAINS))
    shutil.rmtree(output / "data", ignore_errors=True)
    incoming.replace(output / "data")
    shutil.copy(outputs["report"], output / "report.html")
    shutil.copy(outputs["summary"], output / "summary.json")
    shutil.copy(outputs["manifest"], output / "inferenceservice.yaml")


def _tell(output: Path, arguments: argparse.Namespace) -> None:
    given = arguments.output
    summary = json.loads((output / "summary.json").read_text())
    model = summary["model"]
    (output / "request.json").write_text(json.dumps({"instances": [_example(output / "data")]}))
    make = "make serve" + ("" if given == Path("output") else f" OUTPUT={given}")
    make += f" REGISTRY={arguments.registry}" if arguments.registry else ""
    decision = summary["gate"]["decision"]
    status = "released: the champion" if decision == "promoted" else "not released: served as a candidate, and marked"
    print(
        f"""
{RESEARCH_USE_ONLY}

Report    {output / "report.html"}
Summary   {output / "summary.json"}
Model     {model["uri"]} ({summary["winner"]["backbone"]}, version {model["version"]})
Gate      {status}

Serve it  {make}
Query it  curl -s -H 'Content-Type: application/json' -d @{given / "request.json"} \\
            http://localhost:8080/v1/models/{registry.NAME}:predict"""
    )


def _example(data: Path) -> dict[str, Any]:
    """Return a request instance with a test scan; a scan with a region is preferred."""
    scans, regions, _ = tables.read(data)
    tested = tables.used(scans).query("split == 'test'").sort_values("path")
    marked = tested[tested["path"].isin(regions["path"])]
    scan = (marked if len(marked) else tested).iloc[0]
    instance: dict[str, Any] = {"image": {"b64": base64.b64encode((data / scan["local_path"]).read_bytes()).decode()}}
    box = regions[regions["path"] == scan["path"]]
    if len(box) and scan["domain"] == "normal":
        instance["roi"] = [int(box.iloc[0][column]) for column in ("x", "y", "width", "height")]
    return instance


if __name__ == "__main__":
    sys.exit(main())
