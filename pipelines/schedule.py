"""Creates, replaces, lists and deletes schedules: recurring runs on a Kubeflow Pipelines host."""

import datetime
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from pipelines import submit
from thyroid.errors import InputError
from thyroid.model import backbones

DEFAULTS = {"minimum": "1", "recipe": "warm"}
"""Values that a schedule sets if the pipeline has the parameters.

With them a run ends early if the data are unchanged, and otherwise the training starts from the champion.
"""
ZONE = "UTC, unless the installation sets CRON_SCHEDULE_TIMEZONE"
PAGE = 100
"""Number of recurring runs to ask the host for in one request."""
_NAMED = re.compile("[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_FIELDS: tuple[tuple[str, range, dict[str, int]], ...] = (
    ("second", range(60), {}),
    ("minute", range(60), {}),
    ("hour", range(24), {}),
    ("day of month", range(1, 32), {}),
    ("month", range(1, 13), {name: number for number, name in enumerate(_MONTHS, 1)}),
    ("day of week", range(7), {name: number for number, name in enumerate(_DAYS)}),
)
_DAY_FIELDS = ("day of month", "day of week")
_WHOLE = ("*", "?")


def parse(cron: str) -> str:
    """Parse a cron expression as Kubeflow's controller does (robfig/cron 1.2), and write out every field.

    Only the syntax that all cron parsers agree on is accepted: numbers, names, ranges, steps and lists. The controller
    would also accept five fields and read them as second to month. Five fields are therefore refused.

    Args:
        cron: Six fields: second, minute, hour, day of month, month, day of week.

    Returns:
        The same six fields, each as `*` or as numbers separated by commas.

    Raises:
        InputError: The expression does not have six fields, a field cannot be parsed or is out of its range, or both
            the day of month and the day of week are given.
    """
    fields = cron.split()
    if len(fields) == 5:
        raise InputError(
            f"--cron '{cron}': five fields, and Kubeflow's cron has six, seconds first; put '0 ' in front: "
            f"'0 {cron.strip()}'"
        )
    if len(fields) != 6:
        raise InputError(
            f"--cron '{cron}': give six fields ({', '.join(name for name, *_ in _FIELDS)}), such as '0 30 2 * * *'"
        )
    written = [
        _field(cron, text, name, allowed, names) for text, (name, allowed, names) in zip(fields, _FIELDS, strict=True)
    ]
    if fields[3] not in _WHOLE and fields[5] not in _WHOLE:
        raise InputError(
            f"--cron '{cron}': fires on the day of month and on the day of week, whichever comes; leave one of them * "
            "and make a second schedule for the other"
        )
    return " ".join(written)


def _field(cron: str, text: str, name: str, allowed: range, names: Mapping[str, int]) -> str:
    def wrong(why: str) -> InputError:
        return InputError(f"--cron '{cron}': {name} '{text}': {why}")

    if text == "?" and name in _DAY_FIELDS:
        return "*"
    found: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"(?:(\*)|([0-9]+|[a-z]+)(?:-([0-9]+|[a-z]+))?)(?:/([0-9]+))?", part, re.IGNORECASE)
        bounds = [names.get(one.lower(), one) for one in match.group(2, 3) if one] if match else []
        if match is None or any(not str(one).isdecimal() for one in bounds):
            raise wrong(
                f"give *, numbers{', names' if names else ''}, ranges (1-5), steps (*/10) and lists (1,3); "
                "Kubeflow knows no L, W, #, H or R"
            )
        low, high = (allowed[0], allowed[-1]) if match[1] else (int(bounds[0]), int(bounds[-1]))
        if match[4] and len(bounds) == 1:
            high = allowed[-1]
        if low not in allowed or high not in allowed:
            raise wrong(f"must lie between {allowed[0]} and {allowed[-1]}")
        if low > high:
            raise wrong("the range ends before it begins; write it as two, with a comma")
        if match[4] and not 0 < int(match[4]) <= high - low:
            raise wrong(f"a step must be at least 1 and no larger than the range of {high - low}")
        found.update(range(low, high + 1, int(match[4] or 1)))
    return "*" if len(found) == len(allowed) else ",".join(map(str, sorted(found)))


def words(cron: str) -> str:
    """Return a cron expression in English words, such as "At 02:30".

    Raises:
        InputError: The expression is refused by `parse`.
    """
    from cron_descriptor import Options, get_description

    parse(cron)
    return str(get_description(cron, Options(use_24hour_time_format=True, locale_code="en_US")))


def following(cron: str, after: datetime.datetime, count: int = 3) -> list[datetime.datetime]:
    """Return the next dates of a cron expression.

    Args:
        cron: Six fields, as in `parse`.
        after: Date that they follow; the result has its time zone.
        count: Number of dates.

    Raises:
        InputError: The expression is refused by `parse`, or it never fires.
    """
    from croniter import CroniterBadDateError, croniter

    dates = croniter(parse(cron), after, second_at_beginning=True)
    try:
        return [dates.get_next(datetime.datetime) for _ in range(count)]
    except CroniterBadDateError:
        raise InputError(f"--cron '{cron}': no such day ever comes") from None


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


def create(
    package: Path,
    values: Mapping[str, Any],
    cron: str,
    host: str,
    name: str,
    namespace: str = "",
    service_account: str = "",
    token: str = "",
) -> str:
    """Create a recurring run, then delete the older ones of the same name, since Kubeflow cannot edit them.

    Runs of the older ones that are in progress continue. `max_concurrency` applies per schedule, so one of these runs
    can overlap with the first run of the new schedule.

    Args:
        package: YAML file that `compile` wrote.
        values: Values of the pipeline's parameters.
        cron: Six fields, as in `parse`.
        host: Address of Kubeflow Pipelines, as in `submit.submit`.
        name: Name of the recurring run.
        namespace: The profile on a multi-user Kubeflow; empty for a single-user one.
        service_account: Service account that the pods run as; empty for the installation's default.
        token: Bearer token; empty if the host asks for none.

    Returns:
        The id of the new recurring run.

    Raises:
        InputError: The host refuses or does not answer, and the older ones are kept; or an older one could not be
            deleted.
    """
    import kfp_server_api
    from urllib3.exceptions import HTTPError

    with submit.connect(host, namespace, token) as client:
        experiment = client.create_experiment(submit.EXPERIMENT, namespace=namespace or None)
        older = [one for one in _all(client, experiment.experiment_id) if one.display_name == name]
        try:
            made = client.create_recurring_run(
                experiment_id=experiment.experiment_id,
                job_name=name,
                cron_expression=cron,
                max_concurrency=1,
                no_catchup=True,
                enabled=True,
                params=dict(values),
                pipeline_package_path=str(package),
                service_account=service_account or None,
            )
        except kfp_server_api.ApiException as error:
            stays = "; the schedule that is there stays" if older else ""
            raise InputError(f"--host {host}: {error.status} {submit.message(error)}{stays}") from None
        except HTTPError as error:
            raise InputError(
                f"--host {host}: no answer to the new schedule ({type(error).__name__}); schedule --list says whether "
                "it is there, and nothing was deleted"
            ) from None
        print(f"scheduled {name}: {host.rstrip('/')}/#/recurringrun/details/{made.recurring_run_id}", flush=True)
        failed = _delete(client, older, "replaced")
    if failed:
        raise InputError(
            f"{name} is scheduled anew ({made.recurring_run_id}), but an older one goes on beside it: "
            f"{'; '.join(failed)}; delete it in the UI under Recurring Runs, or run this command again"
        )
    return str(made.recurring_run_id)


def delete(host: str, name: str, namespace: str = "", token: str = "") -> None:
    """Delete all recurring runs of a name. Runs in progress continue.

    Args:
        host: Address of Kubeflow Pipelines, as in `submit.submit`.
        name: Name of the recurring runs.
        namespace: The profile on a multi-user Kubeflow; empty for a single-user one.
        token: Bearer token; empty if the host asks for none.

    Raises:
        InputError: There is no such recurring run, or the host refuses or cannot be reached.
    """
    with submit.connect(host, namespace, token) as client:
        found = _schedules(client, namespace)
        chosen = [one for one in found if one.display_name == name]
        if not chosen:
            names = ", ".join(sorted({one.display_name for one in found})) or "there are none"
            raise InputError(f"--delete {name}: no such schedule; {names}")
        if failed := _delete(client, chosen, "deleted"):
            raise InputError(f"--delete {name}: {'; '.join(failed)}; run this command again")


def table(host: str, namespace: str = "", token: str = "", now: datetime.datetime | None = None) -> str:
    """Return the schedules of the experiment as a table.

    Each line has the name, the cron expression, the same in words, the next date, whether it is enabled, the date of
    creation and the id.

    Args:
        host: Address of Kubeflow Pipelines, as in `submit.submit`.
        namespace: The profile on a multi-user Kubeflow; empty for a single-user one.
        token: Bearer token; empty if the host asks for none.
        now: Date that the next dates follow; None for the present.

    Raises:
        InputError: The host refuses or cannot be reached.
    """
    now = now or datetime.datetime.now(datetime.UTC)
    with submit.connect(host, namespace, token) as client:
        found = _schedules(client, namespace)
    if not found:
        return f"no schedules in the experiment {submit.EXPERIMENT}"
    rows = [("name", "cron", "in words", "next", "enabled", "created", "id")]
    for one in sorted(found, key=lambda one: (one.display_name, one.created_at)):
        cron, said, date = _told(one.trigger, now)
        enabled = "yes" if one.status == "ENABLED" else "no"
        rows.append(
            (one.display_name, cron, said, date, enabled, f"{one.created_at:%Y-%m-%d %H:%M}", one.recurring_run_id)
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*lines, f"dates: {ZONE}"])


def manifest(
    cron: str,
    values: Mapping[str, Any],
    pipeline: str,
    name: str,
    namespace: str = "",
    service_account: str = "",
) -> str:
    """Return the YAML of a ScheduledWorkflow as the API server creates it, as a record for Git.

    Applying it starts no runs. The controller passes each date to the API server with the object's uid, and the API
    server refuses uids of objects that it has not created itself (according to its sources of 2025 and 2026). The other
    form holds a compiled Argo workflow, which only the API server can compile.

    Args:
        cron: Six fields, as in `parse`.
        values: Values of the pipeline's parameters.
        pipeline: Id of the uploaded pipeline, whose latest version is run.
        name: Name of the schedule.
        namespace: The profile on a multi-user Kubeflow; empty leaves it out.
        service_account: Service account that the pods run as; empty leaves it out.
    """
    head = {"name": name} | ({"namespace": namespace} if namespace else {})
    spec = {
        "enabled": True,
        "maxConcurrency": 1,
        "noCatchup": True,
        "trigger": {"cronSchedule": {"cron": cron}},
        "workflow": {"parameters": [{"name": one, "value": json.dumps(value)} for one, value in values.items()]},
        "pipelineId": pipeline,
    }
    if service_account:
        spec["serviceAccount"] = service_account
    body = {"apiVersion": "kubeflow.org/v1beta1", "kind": "ScheduledWorkflow", "metadata": head, "spec": spec}
    body["status"] = {}  # the API server refuses an object without a status
    return (
        "# For the record: Kubeflow's API server starts no run for a ScheduledWorkflow that it has not made itself.\n"
        "# `python -m pipelines schedule --host` makes one that runs.\n" + yaml.safe_dump(body, sort_keys=False)
    )


def _schedules(client: Any, namespace: str) -> list[Any]:
    """Return all recurring runs of the experiment; none if the experiment does not exist yet."""
    try:
        experiment = client.get_experiment(experiment_name=submit.EXPERIMENT, namespace=namespace or None)
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
    for one in chosen:
        label = f"{one.display_name} ({one.recurring_run_id})"
        try:
            # ORPHAN: without it, Kubernetes deletes the runs in progress with their schedule (kubeflow/pipelines#12573)
            client.recurring_runs.recurring_run_service_delete_recurring_run(
                one.recurring_run_id, propagation_policy="ORPHAN"
            )
        except kfp_server_api.ApiException as error:
            if error.status != 404:  # 404: somebody else has deleted it
                failed.append(f"{label}: {error.status} {submit.message(error)}")
                continue
        except HTTPError as error:
            failed.append(f"{label}: no answer ({type(error).__name__})")
            continue
        print(f"{done} {label}", flush=True)
    return failed


def _told(trigger: Any, now: datetime.datetime) -> tuple[str, str, str]:
    """Return the cron expression, its words and the next date of a recurring run, which any tool may have created."""
    if trigger is None or trigger.cron_schedule is None:
        seconds = trigger and trigger.periodic_schedule and trigger.periodic_schedule.interval_second
        return "-", f"every {seconds} s" if seconds else "-", "-"
    cron = trigger.cron_schedule.cron
    try:
        return cron, words(cron), f"{following(cron, now, 1)[0]:%Y-%m-%d %H:%M:%S}"
    except InputError:
        return cron, "not one of ours", "-"
