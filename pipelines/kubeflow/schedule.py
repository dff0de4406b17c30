"""Creates, replaces, lists and deletes schedules: recurring runs on a Kubeflow Pipelines host."""

import datetime
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from cyclopts import Parameter

from pipelines import compile
from pipelines.kubeflow import cron, submit
from pipelines.kubeflow.host import EXPERIMENT, Connection, message
from thyroid.command import FLAT
from thyroid.errors import InputError
from thyroid.model import backbones

DEFAULTS = {"minimum": "1", "recipe": "warm"}
"""Values that a schedule sets if the pipeline has the parameters.

With them a run ends early if the data are unchanged, and otherwise the training starts from the champion.
"""
PAGE = 100
"""Number of recurring runs to ask the host for in one request."""
_NAMED = re.compile("[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


@dataclass(frozen=True)
class Request:
    """What `schedule` is asked to do. Exactly one of the first three must be given.

    Attributes:
        cron: Create a schedule. Six fields, seconds first: '0 30 2 * * *' is 02:30 every day.
        list: Print the schedules.
        delete: Delete the schedule of this name; its runs in progress continue.
        pipeline: The training, or watch (a released model since its release).
        name: Name of the schedule; empty for thyroid-nightly, or thyroid-watch. An older one of the same name is
            replaced.
        manifest: Write a ScheduledWorkflow to this file for the record, and send nothing.
        pipeline_id: Id of the uploaded pipeline, for the manifest.
    """

    cron: str | None = None
    list: bool = False
    delete: str | None = None
    pipeline: Literal["training", "watch"] = "training"
    name: str = ""
    manifest: Path | None = None
    pipeline_id: str = ""

    def check(self) -> None:
        """Check which options are given together.

        Raises:
            InputError: None or several of the first three are given, or the manifest lacks what it needs.
        """
        if (self.cron is not None) + self.list + (self.delete is not None) != 1:
            raise InputError("schedule: give one of --cron, --list and --delete")
        if self.manifest and not (self.cron and self.pipeline_id):
            raise InputError(
                "--manifest: needs --cron and --pipeline-id, the id of the uploaded pipeline (its page shows it)"
            )


def schedule(
    *,
    request: Annotated[Request, FLAT] = Request(),
    connection: Annotated[Connection, FLAT] = Connection(),
    placement: Annotated[compile.Placement, FLAT] = compile.Placement(),
    given: Annotated[Sequence[str], Parameter(name="--set")] = (),
) -> None:
    """Start runs on Kubeflow at the times of a cron expression, or list or delete such schedules.

    A schedule cannot be edited. Giving its name again creates the new one first and then deletes the older one. Dates
    are UTC unless the installation sets CRON_SCHEDULE_TIMEZONE. --manifest writes the object that Kubeflow's API server
    creates for a schedule, for the record. It starts no runs when kubectl applies it, because the API server refuses
    the dates of schedules that it has not created (according to its sources of 2025 and 2026).

    Args:
        request: What to do.
        connection: The host.
        placement: What is trained, and where.
        given: Parameters of the pipeline in every run, each as PARAMETER=VALUE; may be repeated. minimum=1 and
            recipe=warm are set unless given here.

    Raises:
        InputError: An option is missing or wrong, or the host refuses or cannot be reached.
    """
    request.check()
    if request.list:
        print(table(connection))
    elif request.delete is not None:
        delete(connection, request.delete)
    else:
        if not connection.host and not request.manifest:
            raise InputError("--host: give the address of Kubeflow Pipelines")
        cron_text = " ".join((request.cron or "").split())
        name = request.name or {"training": "thyroid-nightly", "watch": "thyroid-watch"}[request.pipeline]
        check_name(name)
        dates = cron.following(cron_text, datetime.datetime.now(datetime.UTC))
        print(f"{cron_text}: {cron.words(cron_text)} ({cron.ZONE})")
        print("next: " + ", ".join(f"{date:%Y-%m-%d %H:%M:%S}" for date in dates), flush=True)
        with submit.compiled(placement, request.pipeline) as (package, specification):
            values = _values(specification, compile.pairs("--set", given))
            submit.check_places(values, specification, placement)
            values = submit.with_run(specification, values, placement.names)
            if request.manifest is None:
                create(package, values, connection, name=name, cron_text=cron_text)
                return
        text = manifest(values, connection, name=name, cron_text=cron_text, pipeline=request.pipeline_id)
        request.manifest.write_text(text)
        print(f"{request.manifest}: for the record; applying it with kubectl starts no runs (see schedule --help)")


def _values(specification: Mapping[str, Any], given: Mapping[str, str]) -> dict[str, Any]:
    """Return the values of the pipeline's parameters, and print those that a schedule sets by default."""
    added = defaults(specification)
    values = submit.convert(specification, dict(added) | dict(given))
    if kept := [f"{name}={text}" for name, text in added.items() if name not in given]:
        print(f"with {', '.join(kept)} (--set overrides)")
    return values


def check_name(name: str) -> None:
    """Refuse a schedule's name that cannot be the name of a Kubernetes object.

    Raises:
        InputError: The name is empty or longer than 63 characters, holds a character other than a lower-case letter, a
            digit or a hyphen, or has a hyphen at either end.
    """
    if not _NAMED.fullmatch(name):
        raise InputError(
            f"--name {name}: give at most 63 lower-case letters, digits and hyphens, no hyphen at either end"
        )


def defaults(package: Mapping[str, Any]) -> dict[str, str]:
    """Return the entries of `DEFAULTS` that both the compiled pipeline and the library support.

    Args:
        package: The pipeline specification, as `compile` wrote it.
    """
    known = package["root"]["inputDefinitions"]["parameters"]
    return {
        name: text
        for name, text in DEFAULTS.items()
        if name in known and (name != "recipe" or text in backbones.RECIPES)
    }


def create(package: Path, values: Mapping[str, Any], connection: Connection, *, name: str, cron_text: str) -> str:
    """Create a recurring run, then delete the older ones of the same name, since Kubeflow cannot edit them.

    Runs of the older ones that are in progress continue. `max_concurrency` applies per schedule, so one of these runs
    can overlap with the first run of the new schedule.

    Args:
        package: YAML file that `compile` wrote.
        values: Values of the pipeline's parameters.
        connection: The host.
        name: Name of the recurring run.
        cron_text: Six fields, as in `cron.parse`.

    Returns:
        The id of the new recurring run.

    Raises:
        InputError: The host refuses or does not answer, and the older ones are kept; or an older one could not be
            deleted.
    """
    import kfp_server_api
    from urllib3.exceptions import HTTPError

    with connection.client() as client:
        experiment = client.create_experiment(EXPERIMENT, namespace=connection.namespace or None)
        older = [schedule for schedule in _all(client, experiment.experiment_id) if schedule.display_name == name]
        try:
            made = client.create_recurring_run(
                experiment_id=experiment.experiment_id,
                job_name=name,
                cron_expression=cron_text,
                max_concurrency=1,
                no_catchup=True,
                enabled=True,
                params=dict(values),
                pipeline_package_path=str(package),
                service_account=connection.service_account or None,
            )
        except kfp_server_api.ApiException as error:
            stays = "; the existing schedule was not changed" if older else ""
            raise InputError(f"--host {connection.host}: {error.status} {message(error)}{stays}") from None
        except HTTPError as error:
            raise InputError(
                f"--host {connection.host}: no answer to the new schedule ({type(error).__name__}); nothing "
                "was deleted. Check with schedule --list whether the new schedule exists"
            ) from None
        print(f"scheduled {name}: {connection.page(f'recurringrun/details/{made.recurring_run_id}')}", flush=True)
        failed = _delete(client, older, "replaced")
    if failed:
        raise InputError(
            f"{name} is scheduled ({made.recurring_run_id}), but an older schedule is still active: "
            f"{'; '.join(failed)}; delete it in the UI under Recurring Runs, or run this command again"
        )
    return str(made.recurring_run_id)


def delete(connection: Connection, name: str) -> None:
    """Delete all recurring runs of a name. Runs in progress continue.

    Args:
        connection: The host.
        name: Name of the recurring runs.

    Raises:
        InputError: There is no such recurring run, or the host refuses or cannot be reached.
    """
    with connection.client() as client:
        found = _schedules(client, connection.namespace)
        chosen = [schedule for schedule in found if schedule.display_name == name]
        if not chosen:
            names = ", ".join(sorted({schedule.display_name for schedule in found})) or "none"
            raise InputError(f"--delete {name}: no such schedule; existing schedules: {names}")
        if failed := _delete(client, chosen, "deleted"):
            raise InputError(f"--delete {name}: {'; '.join(failed)}; run this command again")


def table(connection: Connection, now: datetime.datetime | None = None) -> str:
    """Return the schedules of the experiment as a table.

    Each line has the name, the cron expression, the same in words, the next date, whether it is enabled, the date of
    creation and the id.

    Args:
        connection: The host.
        now: Date that the next dates follow; None for the present.

    Raises:
        InputError: The host refuses or cannot be reached.
    """
    now = now or datetime.datetime.now(datetime.UTC)
    with connection.client() as client:
        found = _schedules(client, connection.namespace)
    if not found:
        return f"no schedules in the experiment {EXPERIMENT}"
    rows = [("name", "cron", "in words", "next", "enabled", "created", "id")]
    for schedule in sorted(found, key=lambda schedule: (schedule.display_name, schedule.created_at)):
        cron_text, words, date = _describe(schedule.trigger, now)
        enabled = "yes" if schedule.status == "ENABLED" else "no"
        created = f"{schedule.created_at:%Y-%m-%d %H:%M}"
        rows.append((schedule.display_name, cron_text, words, date, enabled, created, schedule.recurring_run_id))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*lines, f"dates: {cron.ZONE}"])


def manifest(values: Mapping[str, Any], connection: Connection, *, name: str, cron_text: str, pipeline: str) -> str:
    """Return the YAML of a ScheduledWorkflow as the API server creates it, as a record for Git.

    Applying it starts no runs. The controller passes each date to the API server with the object's uid, and the API
    server refuses uids of objects that it has not created itself (according to its sources of 2025 and 2026). The other
    form holds a compiled Argo workflow, which only the API server can compile.

    Args:
        values: Values of the pipeline's parameters.
        connection: Namespace and service account; empty ones are left out. Nothing is sent to the host.
        name: Name of the schedule.
        cron_text: Six fields, as in `cron.parse`.
        pipeline: Id of the uploaded pipeline, whose latest version is run.
    """
    head = {"name": name} | ({"namespace": connection.namespace} if connection.namespace else {})
    spec = {
        "enabled": True,
        "maxConcurrency": 1,
        "noCatchup": True,
        "trigger": {"cronSchedule": {"cron": cron_text}},
        "workflow": {"parameters": [{"name": key, "value": json.dumps(value)} for key, value in values.items()]},
        "pipelineId": pipeline,
    }
    if connection.service_account:
        spec["serviceAccount"] = connection.service_account
    body = {"apiVersion": "kubeflow.org/v1beta1", "kind": "ScheduledWorkflow", "metadata": head, "spec": spec}
    body["status"] = {}  # the API server refuses an object without a status
    return (
        "# For the record: Kubeflow's API server starts no run for a ScheduledWorkflow that it has not created.\n"
        "# `python -m pipelines schedule --host` creates one that starts runs.\n"
        + yaml.safe_dump(body, sort_keys=False)
    )


def _schedules(client: Any, namespace: str) -> list[Any]:
    """Return all recurring runs of the experiment; none if the experiment does not exist yet."""
    try:
        experiment = client.get_experiment(experiment_name=EXPERIMENT, namespace=namespace or None)
    except ValueError as error:  # kfp's error for a missing experiment
        if not str(error).startswith("No experiment"):
            raise
        return []
    return _all(client, experiment.experiment_id)


def _all(client: Any, experiment: str) -> list[Any]:
    found: list[Any] = []
    token = ""
    while True:
        answer = client.list_recurring_runs(page_token=token, page_size=PAGE, experiment_id=experiment)
        found += answer.recurring_runs or []
        token = answer.next_page_token or ""
        if not token:
            return found


def _delete(client: Any, chosen: Sequence[Any], done: str) -> list[str]:
    """Delete recurring runs and print each; return those that could not be deleted, with the host's message."""
    import kfp_server_api
    from urllib3.exceptions import HTTPError

    failed = []
    for schedule in chosen:
        label = f"{schedule.display_name} ({schedule.recurring_run_id})"
        try:
            # ORPHAN: without it, Kubernetes deletes the runs in progress with their schedule (kubeflow/pipelines#12573)
            client.recurring_runs.recurring_run_service_delete_recurring_run(
                schedule.recurring_run_id, propagation_policy="ORPHAN"
            )
        except kfp_server_api.ApiException as error:
            if error.status != 404:  # 404: somebody else has deleted it
                failed.append(f"{label}: {error.status} {message(error)}")
                continue
        except HTTPError as error:
            failed.append(f"{label}: no answer ({type(error).__name__})")
            continue
        print(f"{done} {label}", flush=True)
    return failed


def _describe(trigger: Any, now: datetime.datetime) -> tuple[str, str, str]:
    """Return the cron expression, its words and the next date of a recurring run, which any tool may have created."""
    if trigger is None or trigger.cron_schedule is None:
        seconds = trigger and trigger.periodic_schedule and trigger.periodic_schedule.interval_second
        return "-", f"every {seconds} s" if seconds else "-", "-"
    text = trigger.cron_schedule.cron
    try:
        return text, cron.words(text), f"{cron.following(text, now, 1)[0]:%Y-%m-%d %H:%M:%S}"
    except InputError:
        return text, "created elsewhere", "-"
