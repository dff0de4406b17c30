"""Starts a run on a Kubeflow Pipelines host and watches it until it ends."""

import datetime
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from cyclopts import Parameter

from pipelines import compile
from pipelines.kubeflow.host import EXPERIMENT, Connection
from pipelines.parameters import RUN
from thyroid import storage
from thyroid.command import FLAT, nearest
from thyroid.errors import InputError
from thyroid.progress import bar

POLL_SECONDS = 5.0
PATIENCE_SECONDS = 300.0
"""Seconds that the host may be unreachable while a run is watched.

A port-forward drops now and then, and the run continues meanwhile.
"""
ENDED = ("SUCCEEDED", "SKIPPED", "FAILED", "CANCELED")
"""States of a run or a step that has ended."""
_KINDS = {"NUMBER_INTEGER": "a whole number", "NUMBER_DOUBLE": "a number", "BOOLEAN": "true or false"}
_WORDS = {"true": True, "false": False}
_SCHEME = re.compile("(?!https?:)[a-z][a-z0-9+.-]*://")


def submit(
    *,
    connection: Annotated[Connection, FLAT] = Connection(),
    placement: Annotated[compile.Placement, FLAT] = compile.Placement(),
    pipeline: Literal["training", "sweep", "validate", "watch"] = "training",
    given: Annotated[Sequence[str], Parameter(name="--set")] = (),
    wait: Annotated[bool, Parameter(negative="--no-wait")] = True,
) -> None:
    """Start a run on Kubeflow and watch it until it ends.

    Args:
        connection: The host.
        placement: What is trained, and where.
        pipeline: The training, the sweep (the search for the settings of one backbone), validate (a registered model on
            the scans of another site), or watch (a released model since its release).
        given: Parameters of the pipeline, each as PARAMETER=VALUE; may be repeated.
        wait: Watch the run until it ends, or return when it has started.

    Raises:
        InputError: A parameter is wrong, the host refuses or cannot be reached, or the run failed.
    """
    with compiled(placement, pipeline) as (package, specification):
        values = convert(specification, compile.pairs("--set", given))
        check_places(values, specification, placement)
        start(package, with_run(specification, values, placement.names), connection, wait)


def with_run(package: Mapping[str, Any], values: Mapping[str, Any], backbones: Sequence[str]) -> dict[str, Any]:
    """Add the content of run.yaml to the parameters, if the pipeline has a parameter for it and it is not given.

    Args:
        package: The pipeline's specification.
        values: Values of the given parameters.
        backbones: Names of the backbones.
    """
    known = package["root"]["inputDefinitions"]["parameters"]
    if RUN not in known or RUN in values:
        return dict(values)
    effective = {name: values.get(name, known[name].get("defaultValue")) for name in known if name != RUN}
    content = {"backbones": ",".join(backbones)} | {
        name: int(value) if known[name]["parameterType"] == "NUMBER_INTEGER" else value
        for name, value in effective.items()
    }
    return dict(values) | {RUN: yaml.safe_dump(content, sort_keys=False, allow_unicode=True)}


@contextmanager
def compiled(placement: compile.Placement, pipeline: str = "training") -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """Compile a pipeline to a temporary file.

    Args:
        placement: What is trained, and where.
        pipeline: A key of `compile.PIPELINES`.

    Yields:
        The YAML file, and the pipeline's specification in it.
    """
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "thyroid.yaml"
        compile.PIPELINES[pipeline](placement, package)
        yield package, next(yaml.safe_load_all(package.read_text()))


def convert(package: Mapping[str, Any], given: Mapping[str, str]) -> dict[str, Any]:
    """Convert parameters from text to the types of the compiled pipeline.

    Args:
        package: The pipeline specification, as `compile` wrote it.
        given: The text of each given parameter.

    Returns:
        The value of each given parameter.

    Raises:
        InputError: A parameter is unknown, missing, not of its type, or not one of its choices.
    """
    known = package["root"]["inputDefinitions"]["parameters"]
    if unknown := sorted(given.keys() - known.keys()):
        raise InputError(f"--set {unknown[0]}: the pipeline has no such parameter{nearest(unknown[0], known)}")
    missing = [name for name, parameter in known.items() if not parameter.get("isOptional") and not given.get(name)]
    if missing:
        raise InputError(f"--set {missing[0]}=...: this parameter has no default and must be given")
    result: dict[str, Any] = {}
    for name, text in given.items():
        kind, choices = known[name]["parameterType"], known[name].get("literals", [text])
        if text not in choices:
            raise InputError(f"--set {name}={text}: choose from {', '.join(choices)}")
        try:
            if kind == "NUMBER_INTEGER":
                result[name] = int(text)
            elif kind == "NUMBER_DOUBLE":
                result[name] = float(text)
            elif kind == "BOOLEAN":
                result[name] = _WORDS[text.lower()]
            else:
                result[name] = text
        except (KeyError, ValueError):
            raise InputError(f"--set {name}={text}: expected {_KINDS[kind]}") from None
    return result


def check_places(values: Mapping[str, Any], package: Mapping[str, Any], placement: compile.Placement) -> None:
    """Check that the pods can reach the files and folders that the parameters name, as far as their names tell.

    Args:
        values: Values of the given parameters.
        package: The pipeline's specification.
        placement: What is trained, and where.

    Raises:
        InputError: A path is given and no volume is mounted, an address is neither a bucket's nor a web server's, or
            there are shards and no store.
    """
    if (
        placement.shards > 1
        and "store" in package["root"]["inputDefinitions"]["parameters"]
        and not values.get("store")
    ):
        raise InputError(f"--shards {placement.shards}: give --set store=PLACE, where shards leave what they have done")
    for name, value in values.items():
        text = str(value)
        if text.startswith("/") and not placement.claim:
            raise InputError(
                f"--set {name}={text}: the steps mount no volume (--claim ''); give a bucket, gs:// or s3://"
            )
        if _SCHEME.match(text) and not storage.is_bucket(text):
            raise InputError(f"--set {name}={text}: give gs://bucket/prefix or s3://bucket/prefix")


def start(package: Path, values: Mapping[str, Any], connection: Connection, wait: bool = True) -> str:
    """Start a run of a compiled pipeline, print its page in the UI, and wait until it ends.

    Args:
        package: YAML file that `compile` wrote.
        values: Values of the pipeline's parameters.
        connection: The host.
        wait: Whether to wait until the run has ended.

    Returns:
        The run's id.

    Raises:
        InputError: The host refuses or cannot be reached, or the run failed. The message names the failed steps.
    """
    with connection.client() as client:
        name = f"thyroid {datetime.datetime.now():%Y-%m-%d %H:%M}"
        experiment = client.create_experiment(EXPERIMENT, namespace=connection.namespace or None)
        started = create(client, package, values, connection, experiment=experiment.experiment_id, name=name)
        page = connection.page(f"runs/details/{started.run_id}")
        print(f"started {name}: {page}", flush=True)
        if wait:
            _watch(client, started.run_id, page, step_names(package))
    run: str = started.run_id
    return run


def create(
    client: Any, package: Path, values: Mapping[str, Any], connection: Connection, *, experiment: str, name: str
) -> Any:
    """Create a run of a compiled pipeline, and return it as the host describes it.

    Args:
        client: kfp's client of the host.
        package: YAML file that `compile` wrote.
        values: Values of the pipeline's parameters.
        connection: The host, which names the service account.
        experiment: Id of the experiment.
        name: Name of the run.
    """
    return client.run_pipeline(
        experiment_id=experiment,
        job_name=name,
        pipeline_package_path=str(package),
        params=dict(values),
        service_account=connection.service_account or None,
    )


def step_names(package: Path) -> dict[str, str]:
    """Map the key of each task, by which the host names it (train-2), to its name in the UI (train-VGG16).

    Args:
        package: YAML file that `compile` wrote.
    """
    specification = next(yaml.safe_load_all(package.read_text()))
    components = specification["components"]
    levels = [specification["root"]["dag"], *(inner["dag"] for inner in components.values() if "dag" in inner)]
    return {
        key: task["taskInfo"]["name"]
        for level in levels
        for key, task in level["tasks"].items()
        if "dag" not in components[task["componentRef"]["name"]]
    }


class _Watch:
    """Follows a run: which steps have ended, which are running, and since when the host has been away.

    Args:
        client: kfp's client of the host.
        run_id: Id of the run.
        page: Address of the run's page.
        names: Key of each task and its name in the UI.
    """

    def __init__(self, client: Any, run_id: str, page: str, names: Mapping[str, str]) -> None:
        """Start with no step known."""
        self._client, self._run_id, self._page, self._names = client, run_id, page, names
        self._away: float | None = None
        self.steps: dict[str, Any] = {}

    def ask(self) -> Any:
        """Return the run as the host describes it now, or None while the host cannot be reached.

        Raises:
            InputError: The host has been unreachable for `PATIENCE_SECONDS`.
        """
        import kfp_server_api
        from urllib3.exceptions import HTTPError

        try:
            run, self._away = self._client.get_run(self._run_id), None
        except (HTTPError, kfp_server_api.ApiException) as error:
            self._away = self._away or time.monotonic()
            if time.monotonic() - self._away > PATIENCE_SECONDS:
                raise InputError(
                    f"the host cannot be reached ({type(error).__name__}); the run continues: {self._page}"
                ) from None
            return None
        details = (run.run_details.task_details if run.run_details else None) or []
        # the details also list the driver and the executor of each step, and the levels
        self.steps = {self._names[task.display_name]: task for task in details if task.display_name in self._names}
        return run

    def in_state(self, *states: str) -> list[str]:
        """Return the sorted names of the steps in one of the states."""
        return sorted(name for name, step in self.steps.items() if step.state in states)

    def reasons(self, run: Any) -> str:
        """Return why the run failed."""
        found = []
        for name in self.in_state("FAILED"):
            error = self.steps[name].error
            found.append(f"{name}: {error.message if error else 'failed; see its log'}")
        if run.error and run.error.message:
            found.append(run.error.message)
        return "; ".join(found) or "see its page"


def _watch(client: Any, run_id: str, page: str, names: Mapping[str, str]) -> None:
    """Show a progress bar over the run's steps until the run has ended.

    Raises:
        InputError: The run failed, or the host was unreachable for `PATIENCE_SECONDS`.
    """
    watch, done = _Watch(client, run_id, page, names), 0
    with bar(None, len(names), "run", "step") as progress:
        while True:
            run = watch.ask()
            if run is not None:
                ended = len(watch.in_state(*ENDED))
                progress.update(max(ended - done, 0))
                done = max(ended, done)
                progress.set_postfix_str(", ".join(watch.in_state("RUNNING")) or (run.state or "PENDING").lower())
                if run.state in ENDED:
                    break
            time.sleep(POLL_SECONDS)
    print(f"{run.state.lower()}: {page}", file=sys.stderr)
    if run.state != "SUCCEEDED":
        raise InputError(f"the run {run.state.lower()}; {watch.reasons(run)}: {page}")
