"""Schedules: what Kubeflow's cron takes, and making, replacing, listing and deleting against a host that keeps them."""

import datetime
import json
import re
import types

import kfp_server_api
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pipelines import __main__ as cli
from pipelines.kubeflow import cron as crons
from pipelines.kubeflow import schedule, submit
from pipelines.kubeflow.host import EXPERIMENT, Connection
from tests.support import schemas
from tests.support.kubeflow import KNOWN, RECURRING, Kubeflow
from thyroid.errors import InputError
from thyroid.model import backbones

NIGHTLY = "0 30 2 * * *"
NEEDED = ["--set", "scans=/data/scans", "--set", "registry=/data/registry"]
NOW = datetime.datetime(2026, 11, 23, 12, 0, tzinfo=datetime.UTC)

pytestmark = pytest.mark.usefixtures("once_compiled")


@pytest.fixture
def host():
    running = Kubeflow()
    yield running
    running.shutdown()
    running.server_close()


def plan(host, *options: str, cron: str = NIGHTLY) -> int:
    return cli.main(["schedule", "--host", host.url, "--backbones", "VGG16", "--cron", cron, *NEEDED, *options])


def other(host, *options: str) -> int:
    return cli.main(["schedule", "--host", host.url, *options])


def existing(host, **fields) -> None:
    """A schedule that is there already, made by whom- and however."""
    host.experiments = [{"experiment_id": "e1", "display_name": "thyroid", "created_at": "2026-11-20T00:00:00Z"}]
    one = {
        "display_name": "thyroid-nightly",
        "experiment_id": "e1",
        "created_at": "2026-11-20T10:20:30Z",
        "status": "ENABLED",
        "trigger": {"cron_schedule": {"cron": "0 0 4 * * 1"}},
    }
    host.recurring.append(one | fields)


def changes(host) -> list[tuple[str, str]]:
    return [(method, path) for method, path, _ in host.calls if RECURRING in path and method != "GET"]


# Cron


@pytest.mark.parametrize(
    ("cron", "said"),
    [
        ("30 2 * * *", r"'0 30 2 \* \* \*'"),
        ("", "second, minute, hour"),
        ("0 0 2 * * * 2027", "second, minute, hour"),
        ("@daily", "second, minute, hour"),
        ("@every 1h", "second, minute, hour"),
        ("TZ=Europe/Berlin 0 30 2 * * *", "second, minute, hour"),
        ("60 0 2 * * *", r"second '60'.*\b59\b"),
        ("0 60 2 * * *", r"minute '60'.*\b59\b"),
        ("0 0 24 * * *", r"hour '24'.*\b23\b"),
        ("0 0 2 0 * *", r"day of month '0'.*\b31\b"),
        ("0 0 2 32 * *", "day of month '32'"),
        ("0 0 2 * 13 *", r"month '13'.*\b12\b"),
        ("0 0 2 * * 7", r"day of week '7'.*\b6\b"),  # Sunday elsewhere
        ("0 0 2 L * *", "day of month 'L'"),
        ("0 0 2 15W * *", "day of month '15W'"),
        ("0 0 2 * * L5", "day of week 'L5'"),
        ("0 0 2 * * 5#2", "day of week '5#2'"),
        ("0 H 2 * * *", "minute 'H'"),
        ("0 R 2 * * *", "minute 'R'"),
        ("0 R(0-30) 2 * * *", r"minute 'R\(0-30\)'"),
        ("0 ? 2 * * *", r"minute '\?'"),
        ("0 0 2 * january *", "month 'january'"),
        ("0 0 mon * * *", "hour 'mon'"),
        ("0 0 2 * * fri-mon", "day of week 'fri-mon'"),
        ("0 50-10 2 * * *", "minute '50-10'"),
        ("0 */0 2 * * *", r"minute '\*/0'.*\b1\b"),
        ("0 */90 2 * * *", r"minute '\*/90'.*\b59\b"),
        ("0 0/1/2 2 * * *", "minute '0/1/2'"),
        ("0 1,,2 2 * * *", "minute '1,,2'"),
        ("0 -1 2 * * *", "minute '-1'"),
        ("0 +1 2 * * *", r"minute '\+1'"),
        ("0 ٣ 2 * * *", "minute '٣'"),
        ("0 0 2 1 * 1", "day of month .*day of week"),
        ("0 0 2 */2 * 1", "day of month .*day of week"),
        ("0 0 2 1-31 * 1", "day of month .*day of week"),
        ("0 0 0 30 2 *", "date"),
        ("0 0 0 31 4,6,9,11 *", "date"),
    ],
)
def test_what_kubeflow_reads_otherwise_or_not_at_all_is_refused(host, capsys, cron, said):
    assert plan(host, cron=cron) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: --cron '{' '.join(cron.split())}': ")
    assert re.search(said, error)
    assert host.calls == [], "nothing is sent"


@pytest.mark.parametrize(
    ("cron", "written", "said", "first"),
    [
        (NIGHTLY, "0 30 2 * * *", "At 02:30", "2026-11-24 02:30:00"),
        ("0 30 2 ? * *", "0 30 2 * * *", "At 02:30", "2026-11-24 02:30:00"),  # as the UI writes it
        ("0 30 2 * * ?", "0 30 2 * * *", "At 02:30", "2026-11-24 02:30:00"),
        ("15 0 2 * * SUN", "15 0 2 * * 0", "At 02:00:15, only on Sunday", "2026-11-29 02:00:15"),
        ("0 0 2 * jan-Mar Mon,wed", "0 0 2 * 1,2,3 1,3", "only on Monday and Wednesday", "2027-01-04 02:00:00"),
        ("0 0 2 29 2 *", "0 0 2 29 2 *", "on day 29 of the month, only in February", "2028-02-29 02:00:00"),
        ("0 5/20 3 * * *", "0 5,25,45 3 * * *", "Every 20 minutes, starting at 5", "2026-11-24 03:05:00"),
        ("5-5 0 2 * * *", "5 0 2 * * *", "", "2026-11-24 02:00:05"),  # croniter reads 5-5 as 0-59
        ("0 0 2-4/2 1,15 * *", "0 0 2,4 1,15 * *", "on day 1 and 15 of the month", "2026-12-01 02:00:00"),
        ("0 0 */6 1-31 * ?", "0 0 0,6,12,18 * * *", "Every 6 hours", "2026-11-23 18:00:00"),
    ],
)
def test_words_and_dates(cron, written, said, first):
    assert crons.parse(cron) == written
    assert said in crons.words(cron)
    dates = crons.following(cron, NOW)
    assert f"{dates[0]:%Y-%m-%d %H:%M:%S}" == first
    assert NOW < dates[0] < dates[1] < dates[2]
    assert {date.tzinfo for date in dates} == {datetime.UTC}


BOUNDS = ((0, 59), (0, 59), (0, 23), (1, 31), (1, 12), (0, 6))


def robfig(cron: str) -> list[set[int]]:
    """The values of each field as robfig/cron 1.2 reads them, from its documentation: N/step runs to the end."""
    read = []
    for field, (least, most) in zip(cron.split(), BOUNDS, strict=True):
        values: set[int] = set()
        for part in field.split(","):
            extent, _, step = part.partition("/")
            low, _, high = extent.partition("-")
            start, end = (least, most) if low in "*?" else (int(low), int(high or (most if step else low)))
            values |= set(range(start, end + 1, int(step or 1)))
        read.append(values)
    return read


@st.composite
def fields(draw, least: int, most: int) -> str:
    def part() -> str:
        low, high = sorted((draw(st.integers(least, most)), draw(st.integers(least, most))))
        extent, space = draw(
            st.sampled_from([("*", most - least), (str(low), most - low), (f"{low}-{high}", high - low)])
        )
        return f"{extent}/{draw(st.integers(1, space))}" if space and draw(st.booleans()) else extent

    return ",".join(part() for _ in range(draw(st.integers(1, 3))))


@given(st.tuples(*(fields(*bounds) for bounds in BOUNDS)), st.sampled_from([3, 5]))
def test_the_dates_are_those_of_kubeflows_reader(drawn, every_day):
    whole = [*drawn]
    whole[every_day] = "*"
    cron = " ".join(whole)
    read = robfig(cron)
    longest = {2: 29, 4: 30, 6: 30, 9: 30, 11: 30}
    if not any(day <= longest.get(month, 31) for day in read[3] for month in read[4]):
        with pytest.raises(InputError, match="date"):
            crons.following(cron, NOW)
        return
    dates = crons.following(cron, NOW, 2)
    for date in dates:
        at = (date.second, date.minute, date.hour, date.day, date.month, date.isoweekday() % 7)
        assert all(value in values for value, values in zip(at, read, strict=True)), (cron, date)
    gap = int((min(dates[1] - dates[0], datetime.timedelta(minutes=2))).total_seconds())
    for second in range(1, gap):  # none is left out between the two
        date = dates[0] + datetime.timedelta(seconds=second)
        at = (date.second, date.minute, date.hour, date.day, date.month, date.isoweekday() % 7)
        assert not all(value in values for value, values in zip(at, read, strict=True)), (cron, date)


# Making one


def test_a_schedule_is_made_as_the_description_of_the_api_has_it(host, capsys):
    assert plan(host, "--set", "epochs=3", "--set", "serving_gpu=true") == 0
    sent = host.sent(RECURRING)
    answer = types.SimpleNamespace(data=json.dumps(sent))
    read = kfp_server_api.ApiClient().deserialize(answer, "V2beta1RecurringRun")
    assert sent.keys() <= KNOWN
    assert (read.display_name, read.experiment_id, read.mode) == ("thyroid-nightly", "e1", "ENABLE")
    assert (read.max_concurrency, read.no_catchup) == ("1", True)
    assert read.trigger.cron_schedule.cron == NIGHTLY
    assert read.trigger.periodic_schedule is None
    assert read.pipeline_version_reference is None
    parameters = {"scans": "/data/scans", "registry": "/data/registry", "epochs": 3, "serving_gpu": True}
    assert parameters.items() <= read.runtime_config.parameters.items()
    assert read.pipeline_spec["pipeline_spec"]["pipelineInfo"]["name"] == "thyroid-training"
    assert "platforms" in read.pipeline_spec["platform_spec"], "GPUs, volumes and time-outs go along"
    assert host.sent("/apis/v2beta1/experiments")["display_name"] == EXPERIMENT
    assert changes(host) == [("POST", RECURRING)], "nothing is uploaded, nothing deleted"
    told = capsys.readouterr().out
    assert f"{NIGHTLY}: At 02:30 (UTC, unless the installation sets CRON_SCHEDULE_TIMEZONE)" in told
    upcoming = crons.following(NIGHTLY, datetime.datetime.now(datetime.UTC))
    assert "next: " + ", ".join(f"{date:%Y-%m-%d} 02:30:00" for date in upcoming) in told
    assert f"{host.url}/#/recurringrun/details/s1" in told
    (kept,) = host.recurring
    assert kept["status"] == "ENABLED"


def test_the_watch_has_a_schedule_of_its_own(host):
    options = ["--set", "registry=/data/registry", "--set", "log=/data/decisions"]
    assert other(host, "--cron", NIGHTLY, "--pipeline", "watch", *options) == 0
    sent = host.sent(RECURRING)
    assert sent["display_name"] == "thyroid-watch"
    assert sent["runtime_config"]["parameters"] == {"registry": "/data/registry", "log": "/data/decisions"}
    assert sent["pipeline_spec"]["pipeline_spec"]["pipelineInfo"]["name"] == "thyroid-watch"


def test_name_namespace_account_and_token_are_sent(host, tmp_path):
    (tmp_path / "token").write_text("s3cret\n")
    host.multi_user = True
    options = ["--namespace", "lab", "--service-account", "thyroid-pipeline", "--token-file", str(tmp_path / "token")]
    assert plan(host, "--name", "weekly", *options) == 0
    assert host.sent("/apis/v2beta1/experiments")["namespace"] == "lab"
    assert host.sent(RECURRING)["service_account"] == "thyroid-pipeline"
    assert host.sent(RECURRING)["display_name"] == "weekly"
    assert {headers.get("authorization") for headers in host.headers} == {"Bearer s3cret"}


@pytest.mark.parametrize("name", ["Nightly", "a_b", "-a", "a-", "a" * 64])
def test_a_name_that_kubernetes_would_refuse(host, capsys, name):
    assert plan(host, f"--name={name}") == 2
    assert f"--name {name}: give at most 63" in capsys.readouterr().err
    assert host.calls == []


def package(**kinds: str) -> dict:
    known = {name: {"parameterType": kind, "isOptional": True} for name, kind in kinds.items()}
    return {"root": {"inputDefinitions": {"parameters": known}}}


@pytest.mark.parametrize("recipes", [("two-phase", "warm"), ("two-phase",)])
def test_defaults_are_given_to_what_is_there(monkeypatch, recipes):
    monkeypatch.setattr(backbones, "RECIPES", recipes)
    both = package(minimum="NUMBER_INTEGER", recipe="STRING")
    warm = {"recipe": "warm"} if "warm" in recipes else {}
    assert schedule.defaults(both) == {"minimum": "1"} | warm
    assert submit.convert(both, schedule.defaults(both)) == {"minimum": 1} | warm
    assert schedule.defaults(package(recipe="STRING")) == warm
    assert schedule.defaults(package(other="STRING")) == {}


def test_defaults_are_told_and_give_way(host, monkeypatch, capsys):
    monkeypatch.setattr(schedule, "DEFAULTS", {"folds": "5", "epochs": "7", "unheard": "1"})
    assert plan(host, "--set", "epochs=3") == 0
    parameters = host.sent(RECURRING)["runtime_config"]["parameters"]
    assert (parameters["folds"], parameters["epochs"]) == (5, 3)
    assert "unheard" not in parameters
    assert "folds=5" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--set", "epoch=3"], "the pipeline has no such parameter; did you mean epochs?"),
        (["--set", "epochs=many"], "--set epochs=many: expected a whole number"),
        (["--set", "epochs"], "give it as NAME=VALUE"),
        (["--set", "scans="], "--set scans=...: this parameter has no default"),
    ],
)
def test_wrong_parameters_are_said_before_anything_is_sent(host, capsys, options, said):
    assert plan(host, *options) == 2
    assert said in capsys.readouterr().err
    assert host.calls == []


# Replacing


def test_a_schedule_is_replaced_by_making_first(host, capsys):
    existing(host, recurring_run_id="old1")
    existing(host, recurring_run_id="old2", status="DISABLED")
    existing(host, recurring_run_id="weekly1", display_name="weekly")
    existing(host, recurring_run_id="elsewhere", experiment_id="e2")
    assert plan(host) == 0
    assert changes(host) == [("POST", RECURRING), ("DELETE", f"{RECURRING}/old1"), ("DELETE", f"{RECURRING}/old2")]
    assert [one["recurring_run_id"] for one in host.recurring] == ["weekly1", "elsewhere", "s1"]
    told = capsys.readouterr().out
    assert re.findall(r"\((old\d)\)", told) == ["old1", "old2"]
    assert plan(host) == 0, "the same again is a replacement, too"
    assert [one["recurring_run_id"] for one in host.recurring] == ["weekly1", "elsewhere", "s2"]
    assert "(s1)" in capsys.readouterr().out


def test_runs_in_progress_outlive_their_schedule(host):
    existing(host, recurring_run_id="old1")
    assert plan(host) == 0
    assert other(host, "--delete", "thyroid-nightly") == 0
    deletions = [query for (method, *_), query in zip(host.calls, host.queries, strict=True) if method == "DELETE"]
    assert deletions == [{"propagation_policy": kfp_server_api.V2beta1DeletePropagationPolicy.ORPHAN}] * 2


@pytest.mark.parametrize("status", [400, 500])
def test_if_making_fails_the_older_one_stays(host, capsys, status):
    existing(host, recurring_run_id="old1")
    host.refuse = (status, {"message": "quota"})
    assert plan(host) == 2
    error = capsys.readouterr().err
    assert f"--host {host.url}: {status} quota" in error
    assert [one["recurring_run_id"] for one in host.recurring] == ["old1"]
    assert changes(host) == [("POST", RECURRING)]


def test_if_making_is_not_answered_nothing_is_deleted(host, capsys):
    existing(host, recurring_run_id="old1")
    host.refuse = (0, None)
    assert plan(host) == 2
    assert host.url in capsys.readouterr().err
    assert changes(host) == [("POST", RECURRING)], "not tried again, or there would be two"


def test_if_deleting_is_not_answered_it_says_which_one(host, capsys):
    existing(host, recurring_run_id="old1")
    host.refuse_delete["old1"] = (0, None)
    assert plan(host) == 2
    assert "(old1)" in capsys.readouterr().err


def test_if_deleting_fails_it_says_which_one_goes_on(host, capsys):
    for name in ("old1", "old2", "old3"):
        existing(host, recurring_run_id=name)
    host.refuse_delete["old2"] = (500, {"message": "the scheduled workflow is stuck"})
    assert plan(host) == 2
    captured = capsys.readouterr()
    assert "(s1)" in captured.err
    assert re.search(r"\(old2\).*\b500 the scheduled workflow is stuck", captured.err)
    assert "old1" not in captured.err
    assert "(old3)" in captured.out, "the others are deleted all the same"
    assert [one["recurring_run_id"] for one in host.recurring] == ["old2", "s1"]


def test_an_older_one_that_somebody_else_deleted_is_no_failure(host):
    existing(host, recurring_run_id="old1")
    host.refuse_delete["old1"] = (404, {"message": "no such recurring run"})
    assert plan(host) == 0


# Listing and deleting


def test_the_table_holds_every_page(host, capsys):
    host.largest_page = 2
    existing(host, recurring_run_id="a1", display_name="nightly")
    existing(host, recurring_run_id="b1", display_name="paused", status="DISABLED")
    existing(
        host, recurring_run_id="c1", display_name="hourly", trigger={"periodic_schedule": {"interval_second": "3600"}}
    )
    existing(host, recurring_run_id="d1", display_name="odd", trigger={"cron_schedule": {"cron": "@every 1h"}})
    existing(host, recurring_run_id="e1", display_name="bare", trigger=None)
    assert schedule.table(Connection(host.url), now=NOW).splitlines() == [
        "name     cron         in words                  next                 enabled  created           id",
        "bare     -            -                         -                    yes      2026-11-20 10:20  e1",
        "hourly   -            every 3600 s              -                    yes      2026-11-20 10:20  c1",
        "nightly  0 0 4 * * 1  At 04:00, only on Monday  2026-11-30 04:00:00  yes      2026-11-20 10:20  a1",
        "odd      @every 1h    created elsewhere         -                    yes      2026-11-20 10:20  d1",
        "paused   0 0 4 * * 1  At 04:00, only on Monday  2026-11-30 04:00:00  no       2026-11-20 10:20  b1",
        "dates: UTC, unless the installation sets CRON_SCHEDULE_TIMEZONE",
    ]
    looks = [query for (_, path, _), query in zip(host.calls, host.queries, strict=True) if path == RECURRING]
    assert [query.get("page_token", "") for query in looks] == ["", "2", "4"]
    assert other(host, "--list") == 0
    assert "nightly" in capsys.readouterr().out


def test_a_schedule_that_was_made_is_listed(host, capsys):
    assert plan(host, "--name", "mine") == 0
    capsys.readouterr()
    assert other(host, "--list") == 0
    assert re.search(rf"^mine +{re.escape(NIGHTLY)}  ", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.parametrize("experiment", [True, False])
def test_nothing_there_is_said(host, capsys, experiment):
    if experiment:
        existing(host)
        host.recurring.clear()
    assert other(host, "--list") == 0
    assert capsys.readouterr().out == "no schedules in the experiment thyroid\n"
    assert {method for method, *_ in host.calls} == {"GET"}, "looking makes no experiment"


def test_all_of_a_name_are_deleted(host, capsys):
    host.largest_page = 1
    existing(host, recurring_run_id="old1")
    existing(host, recurring_run_id="weekly1", display_name="weekly")
    existing(host, recurring_run_id="old2")
    assert other(host, "--delete", "thyroid-nightly") == 0
    assert [one["recurring_run_id"] for one in host.recurring] == ["weekly1"]
    assert capsys.readouterr().out == "deleted thyroid-nightly (old1)\ndeleted thyroid-nightly (old2)\n"


def test_a_name_that_is_not_there(host, capsys):
    assert other(host, "--delete", "thyroid-nightly") == 2
    assert "thyroid-nightly" in capsys.readouterr().err
    existing(host, recurring_run_id="w1", display_name="weekly")
    existing(host, recurring_run_id="m1", display_name="monthly")
    assert other(host, "--delete", "thyroid-nightly") == 2
    assert re.search(r"thyroid-nightly.*\bmonthly, weekly$", capsys.readouterr().err.rstrip())
    assert changes(host) == []


def test_a_deletion_that_is_refused(host, capsys):
    existing(host, recurring_run_id="old1")
    host.refuse_delete["old1"] = (403, {"message": "not yours"})
    assert other(host, "--delete", "thyroid-nightly") == 2
    assert re.search(r"\(old1\).*\b403 not yours", capsys.readouterr().err)


@pytest.mark.parametrize("what", [["--list"], ["--delete", "nightly"], ["--cron", NIGHTLY, *NEEDED]])
def test_a_host_that_wants_a_token(host, capsys, what):
    host.refuse_all = (401, {"error": "who are you"})
    assert other(host, *what) == 2
    error = capsys.readouterr().err
    assert "401" in error
    assert "--token-file" in error


@pytest.mark.parametrize("what", [["--list"], ["--delete", "nightly"], ["--cron", NIGHTLY, *NEEDED]])
def test_without_a_host(capsys, what):
    assert cli.main(["schedule", *what]) == 2
    assert "--host" in capsys.readouterr().err


# The object for the record

# Of the Go types ScheduledWorkflowSpec, Trigger, CronSchedule, WorkflowResource and Parameter in kubeflow/pipelines,
# backend/src/crd/pkg/apis/scheduledworkflow/v1beta1/types.go; the CustomResourceDefinition itself describes no fields.
PARAMETER = {"name": str, "value": str}
SPEC = {
    "enabled": bool,
    "maxConcurrency": int,
    "noCatchup": bool,
    "trigger": {"cronSchedule": {"cron": str}},
    "workflow": {"parameters": [PARAMETER]},
    "pipelineId": str,
    "serviceAccount": str,
}


def fits(value, shape) -> bool:
    if isinstance(shape, dict):
        return value.keys() <= shape.keys() and all(fits(one, shape[name]) for name, one in value.items())
    if isinstance(shape, list):
        return isinstance(value, list) and all(fits(one, shape[0]) for one in value)
    return type(value) is shape


@pytest.fixture
def written(tmp_path):
    file = tmp_path / "schedule.yaml"
    options = ["--cron", NIGHTLY, "--manifest", str(file), "--pipeline-id", "p1", "--namespace", "lab"]
    more = ["--backbones", "VGG16", "--service-account", "thyroid-pipeline", "--set", "serving_gpu=true"]
    assert cli.main(["schedule", *options, *NEEDED, *more]) == 0
    return file.read_text()


def test_the_object_has_the_fields_of_kubeflows_types(written):
    body = yaml.safe_load(written)
    assert (body["apiVersion"], body["kind"]) == ("kubeflow.org/v1beta1", "ScheduledWorkflow")
    assert body["metadata"] == {"name": "thyroid-nightly", "namespace": "lab"}
    assert schemas.problems({"apiVersion": "v1", "kind": "ConfigMap", "metadata": body["metadata"]}, {}) == []
    spec = body["spec"]
    assert spec.keys() == SPEC.keys()
    assert fits(spec, SPEC)
    assert (spec["enabled"], spec["maxConcurrency"], spec["noCatchup"]) == (True, 1, True)
    assert spec["trigger"]["cronSchedule"]["cron"] == NIGHTLY
    assert spec["pipelineId"] == "p1"
    # the controller reads each value as JSON
    values = {one["name"]: json.loads(one["value"]) for one in spec["workflow"]["parameters"]}
    assert {"scans": "/data/scans", "registry": "/data/registry", "serving_gpu": True}.items() <= values.items()


def test_the_object_is_of_the_kind_that_is_defined(written):
    file = schemas.CRDS / "kubeflow.org_scheduledworkflows.yaml"
    if not file.exists():
        pytest.skip(f"no CustomResourceDefinition of ScheduledWorkflow here ({schemas.CRDS})")
    body, defined = yaml.safe_load(written), yaml.safe_load(file.read_text())["spec"]
    (version,) = defined["versions"]
    assert body["apiVersion"] == f"{defined['group']}/{version['name']}"
    assert body["kind"] == defined["names"]["kind"]
    assert defined["scope"] == "Namespaced"
    assert schemas.problems(body, schemas.definitions()) == []
    assert body.pop("status") == {}
    assert schemas.problems(body, schemas.definitions()), "the API server refuses it without a status"


def test_the_object_says_that_it_starts_nothing(written, capsys):
    assert "starts no run" in written.splitlines()[0]
    assert cli.main(["schedule", "--help"]) == 0
    assert "starts no runs when kubectl applies it" in " ".join(capsys.readouterr().out.split())


def test_an_object_without_a_pipeline_is_not_written(tmp_path, capsys):
    file = tmp_path / "schedule.yaml"
    assert cli.main(["schedule", "--cron", NIGHTLY, "--manifest", str(file), *NEEDED]) == 2
    assert "--pipeline-id" in capsys.readouterr().err
    assert not file.exists()
