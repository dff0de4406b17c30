"""Starts a run on a Kubeflow Pipelines host and watches it until it ends."""

import contextlib
import datetime
import json
import sys
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from thyroid import errors
from thyroid.errors import InputError
from thyroid.progress import bar

EXPERIMENT = "thyroid"
POLL_SECONDS = 5.0
PATIENCE_SECONDS = 300.0
"""Seconds that the host may be unreachable while a run is watched.

A port-forward drops now and then, and the run continues meanwhile.
"""
_WORDS = {"true": True, "false": False}


def arguments(package: Mapping[str, Any], given: Mapping[str, str]) -> dict[str, Any]:
    """Convert parameters from text to the types of the compiled pipeline.

    Args:
        package: The pipeline specification, as `compile` wrote it.
        given: The text of each given parameter.

    Returns:
        The value of each given parameter.

    Raises:
        InputError: A parameter is unknown, missing, or not of its type.
    """
    known = package["root"]["inputDefinitions"]["parameters"]
    if unknown := sorted(given.keys() - known.keys()):
        raise InputError(f"--set {unknown[0]}: the pipeline has no such parameter; it has {', '.join(known)}")
    missing = [name for name, one in known.items() if not one.get("isOptional") and not given.get(name)]
    if missing:
        raise InputError(f"--set {missing[0]}=...: this parameter has no default and must be given")
    result: dict[str, Any] = {}
    for name, text in given.items():
        kind = known[name]["parameterType"]
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
            raise InputError(f"--set {name}={text}: not a {kind.split('_')[-1].lower()}") from None
    return result


def submit(
    package: Path,
    values: Mapping[str, Any],
    host: str,
    namespace: str = "",
    service_account: str = "",
    token: str = "",
    wait: bool = True,
) -> str:
    """Start a run of a compiled pipeline, print its page in the UI, and wait until it ends.

    Args:
        package: YAML file that `compile` wrote.
        values: Values of the pipeline's parameters.
        host: Address of Kubeflow Pipelines as the browser shows it (…/pipeline), or that of a port-forward.
        namespace: The profile on a multi-user Kubeflow; empty for a single-user one.
        service_account: Service account that the pods run as; empty for the installation's default.
        token: Bearer token; empty if the host asks for none.
        wait: Whether to wait until the run has ended.

    Returns:
        The run's id.

    Raises:
        InputError: The host refuses or cannot be reached, or the run failed. The message names the failed steps.
    """
    with connect(host, namespace, token) as client:
        name = f"thyroid {datetime.datetime.now():%Y-%m-%d %H:%M}"
        experiment = client.create_experiment(EXPERIMENT, namespace=namespace or None)
        started = client.run_pipeline(
            experiment_id=experiment.experiment_id,
            job_name=name,
            pipeline_package_path=str(package),
            params=dict(values),
            service_account=service_account or None,
        )
        page = f"{host.rstrip('/')}/#/runs/details/{started.run_id}"
        print(f"started {name}: {page}", flush=True)
        if wait:
            _watch(client, started.run_id, page, step_names(package))
    run: str = started.run_id
    return run


@contextlib.contextmanager
def connect(host: str, namespace: str = "", token: str = "") -> Iterator[Any]:
    """Yield the `kfp.Client` of a host, and turn the host's errors within the block into one line.

    Args:
        host: Address of Kubeflow Pipelines, as in `submit`.
        namespace: The profile on a multi-user Kubeflow; empty for a single-user one.
        token: Bearer token; empty if the host asks for none.

    Raises:
        InputError: The host refuses, cannot be reached, or is not Kubeflow Pipelines.
    """
    warnings.filterwarnings("ignore", "This client only works", FutureWarning)
    import kfp
    import kfp_server_api
    from urllib3.exceptions import HTTPError

    _greet(host, token)
    try:
        yield kfp.Client(host=host, namespace=namespace or "kubeflow", existing_token=token or None)
    except kfp_server_api.ApiException as error:
        raise InputError(f"--host {host}: {error.status} {message(error)}") from None
    except (HTTPError, ConnectionError) as error:
        raise InputError(
            f"--host {host}: not to be reached ({type(error).__name__}); is it the Pipelines address?"
        ) from None


def _greet(host: str, token: str) -> None:
    """Check the host's health once. kfp's client would try it for half a minute and print a traceback each time.

    Raises:
        InputError: The host refuses, cannot be reached, or is not Kubeflow Pipelines.
    """
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        request = urllib.request.Request(f"{host.rstrip('/')}/apis/v2beta1/healthz", headers=headers)
        with urllib.request.urlopen(request, timeout=30) as answer:
            json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            text = error.read(500).decode(errors="replace")
        raise InputError(f"--host {host}: {error.code} {text}; is a token needed (--token-file)?") from None
    except OSError as error:
        raise InputError(f"--host {host}: not to be reached ({errors.one_line(error)})") from None
    except ValueError:
        raise InputError(
            f"--host {host}: not an address of Kubeflow Pipelines, or a page to log in at; give a token with "
            "--token-file, or the address of kubectl port-forward -n kubeflow svc/ml-pipeline-ui 8080:80"
        ) from None


def step_names(package: Path) -> dict[str, str]:
    """Map the key of each task, by which the host names it (train-2), to its name in the UI (train-VGG16).

    Args:
        package: YAML file that `compile` wrote.
    """
    specification = next(yaml.safe_load_all(package.read_text()))
    components = specification["components"]
    levels = [specification["root"]["dag"], *(one["dag"] for one in components.values() if "dag" in one)]
    return {
        key: task["taskInfo"]["name"]
        for level in levels
        for key, task in level["tasks"].items()
        if "dag" not in components[task["componentRef"]["name"]]
    }


def _watch(client: Any, run_id: str, page: str, names: Mapping[str, str]) -> None:
    """Show a progress bar over the run's steps until the run has ended.

    Raises:
        InputError: The run failed, or the host was unreachable for `PATIENCE_SECONDS`.
    """
    import kfp_server_api
    from urllib3.exceptions import HTTPError

    done: set[str] = set()
    away: float | None = None
    with bar(None, len(names), "run", "step") as progress:
        while True:
            try:
                run, away = client.get_run(run_id), None
            except (HTTPError, kfp_server_api.ApiException) as error:
                away = away or time.monotonic()
                if time.monotonic() - away > PATIENCE_SECONDS:
                    raise InputError(f"the host is away ({type(error).__name__}); the run goes on: {page}") from None
                time.sleep(POLL_SECONDS)
                continue
            details = (run.run_details.task_details if run.run_details else None) or []
            # the details also list the driver and the executor of each step, and the levels
            steps = {names[one.display_name]: one for one in details if one.display_name in names}
            for name, one in steps.items():
                if name not in done and one.state in ("SUCCEEDED", "SKIPPED", "FAILED", "CANCELED"):
                    done.add(name)
                    progress.update()
            running = sorted(name for name, one in steps.items() if one.state == "RUNNING")
            progress.set_postfix_str(", ".join(running) or (run.state or "PENDING").lower())
            if run.state in ("SUCCEEDED", "FAILED", "CANCELED", "SKIPPED"):
                break
            time.sleep(POLL_SECONDS)
    print(f"{run.state.lower()}: {page}", file=sys.stderr)
    if run.state == "SUCCEEDED":
        return
    reasons = [
        f"{name}: {one.error.message if one.error else 'failed; its log says why'}"
        for name, one in steps.items()
        if one.state == "FAILED"
    ]
    if run.error and run.error.message:
        reasons.append(run.error.message)
    raise InputError(f"the run ended as {run.state.lower()}; {'; '.join(reasons) or 'its page says why'}: {page}")


def message(error: Any) -> str:
    """Return the message in the body of an `ApiException`, or else the reason of its status."""
    try:
        content = json.loads(error.body)
        return content.get("message") or content.get("error") or str(error.reason)
    except (TypeError, ValueError, AttributeError):
        return str(error.reason)
