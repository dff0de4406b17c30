"""Start a run on a Kubeflow Pipelines host, and watch it to its end."""

import datetime
import json
import sys
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from thyroid import errors
from thyroid.errors import InputError
from thyroid.progress import bar

EXPERIMENT = "thyroid"
POLL_SECONDS = 5.0
_WORDS = {"true": True, "false": False}


def arguments(package: Mapping[str, Any], given: Mapping[str, str]) -> dict[str, Any]:
    """What was given as text, in the types that the compiled pipeline asks for.

    Args:
        package: the pipeline specification, as `compile` wrote it.
        given: parameter to text.

    Raises:
        InputError: a parameter is unknown, missing, or not of its type.
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
    """Start a run of a compiled pipeline, print its page in the UI, and wait for its end.

    Args:
        package: YAML that `compile` wrote.
        values: of the pipeline's parameters.
        host: address of Kubeflow Pipelines, as the browser shows it (…/pipeline), or of a port-forward.
        namespace: the profile on a multi-user Kubeflow; empty for a single-user one.
        service_account: that the pods run as; empty for the installation's default.
        token: bearer token, where the host asks for one.
        wait: until the run has ended.

    Returns:
        The run's id.

    Raises:
        InputError: the host refuses or is not to be reached, or the run failed; the message names the failed steps.
    """
    warnings.filterwarnings("ignore", "This client only works", FutureWarning)
    import kfp
    import kfp_server_api
    from urllib3.exceptions import HTTPError

    _greet(host, token)
    try:
        client = kfp.Client(host=host, namespace=namespace or "kubeflow", existing_token=token or None)
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
            _watch(client, started.run_id, page)
    except kfp_server_api.ApiException as error:
        raise InputError(f"--host {host}: {error.status} {_message(error)}") from None
    except (HTTPError, ConnectionError) as error:
        raise InputError(
            f"--host {host}: not to be reached ({type(error).__name__}); is it the Pipelines address?"
        ) from None
    return started.run_id


def _greet(host: str, token: str) -> None:
    """Ask for the host's health: kfp's client would try that for half a minute, and print a traceback each time.

    Raises:
        InputError: the host refuses, is not to be reached, or is no Kubeflow Pipelines.
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
            f"--host {host}: not an address of Kubeflow Pipelines, or a page to log in at; give a token with --token-file, or "
            "the address of kubectl port-forward -n kubeflow svc/ml-pipeline-ui 8080:80"
        ) from None


def _watch(client: Any, run_id: str, page: str) -> None:
    """A progress bar over the run's steps until it has ended."""
    done: set[str] = set()
    with bar(None, None, "run", "step") as progress:
        while True:
            run = client.get_run(run_id)
            steps = {one.task_id: one for one in (run.run_details.task_details if run.run_details else None) or []}
            steps = {key: one for key, one in steps.items() if one.display_name and "-driver" not in one.display_name}
            if steps:
                progress.total = max(progress.total or 0, len(steps))
            for key, one in steps.items():
                if key not in done and one.state in ("SUCCEEDED", "SKIPPED", "FAILED", "CACHED", "CANCELED"):
                    done.add(key)
                    progress.update()
            running = sorted(one.display_name for one in steps.values() if one.state == "RUNNING")
            progress.set_postfix_str(", ".join(running) or (run.state or "PENDING").lower())
            if run.state in ("SUCCEEDED", "FAILED", "CANCELED", "SKIPPED"):
                break
            time.sleep(POLL_SECONDS)
    print(f"{run.state.lower()}: {page}", file=sys.stderr)
    if run.state == "SUCCEEDED":
        return
    reasons = [
        f"{one.display_name}: {one.error.message if one.error else 'failed'}"
        for one in steps.values()
        if one.state == "FAILED"
    ]
    if run.error and run.error.message:
        reasons.append(run.error.message)
    raise InputError(f"the run ended as {run.state.lower()}; {'; '.join(reasons) or 'its page says why'}: {page}")


def _message(error: Any) -> str:
    try:
        content = json.loads(error.body)
        return content.get("message") or content.get("error") or str(error.reason)
    except (TypeError, ValueError, AttributeError):
        return str(error.reason)
