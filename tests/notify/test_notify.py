import json
import logging
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.support.receivers import SECRET, receiving
from thyroid import RESEARCH_USE_ONLY, notify
from thyroid.notify import __main__ as command
from thyroid.notify import notify as library
from thyroid.notify.notification import ToldRecord
from thyroid.notify.receivers import PLAIN, SLACK
from thyroid.notify.words import News
from thyroid.storage import ChangedError, Folder

DRIFT = News("watch.drift", "watch", "What arrives has changed.", version=12)
STEADY = News("watch.steady", "watch", "No change is seen any more.", version=12, reassures=True)
FAILED = News("run.failed", "run 7", "The run failed.", run="7")


@pytest.fixture
def slack(monkeypatch):
    with receiving() as receiver:
        monkeypatch.setenv(SLACK, receiver.url)
        yield receiver


@pytest.fixture
def log(caplog):
    caplog.set_level(logging.DEBUG)
    return caplog


def told(place):
    return [(one.receiver, one.state) for one in ToldRecord.read(place / library.FILE).told]


def test_each_receiver_gets_its_form(tmp_path, slack, receiver, log):
    notify.tell(DRIFT, tmp_path)
    ((path, headers, body),) = slack.got
    assert path == f"/{SECRET}"
    assert headers["content-type"] == "application/json"
    assert json.loads(body) == {"text": f"What arrives has changed.\n_{RESEARCH_USE_ONLY}_"}
    ((_, headers, body),) = receiver.got
    message = json.loads(body)
    assert message == {
        "id": headers["webhook-id"],
        "event": "watch.drift",
        "time": message["time"],
        "sentence": "What arrives has changed.",
        "version": 12,
        "notice": RESEARCH_USE_ONLY,
    }
    assert [record.getMessage() for record in log.records if record.name.startswith("thyroid")] == [
        "notification of watch.drift: slack delivered, plain delivered"
    ]


def test_without_receivers_nothing_is_written_or_started(tmp_path, monkeypatch, log):
    monkeypatch.setattr(subprocess, "Popen", None)
    notify.tell(DRIFT, tmp_path)
    assert not list(tmp_path.iterdir())
    assert not log.records


def test_each_event_is_told_once(place, receiver):
    for _ in range(3):
        notify.tell(FAILED, place)
    notify.tell(News("run.failed", "run 8", "The run failed.", run="8"), place)
    assert [one.run for one in receiver.messages] == ["7", "8"]


def test_a_run_that_is_tried_again_and_does_well_is_told(tmp_path, receiver):
    for event in ("run.failed", "run.succeeded", "run.succeeded"):
        notify.tell(News(event, "run 7", "It ended.", run="7"), tmp_path)
    assert receiver.events == ["run.failed", "run.succeeded"]


def test_a_verdict_is_told_when_it_changes(tmp_path, receiver):
    for news in (STEADY, STEADY, DRIFT, DRIFT, DRIFT, STEADY, STEADY, DRIFT):
        notify.tell(news, tmp_path)
    messages = receiver.messages
    assert receiver.events == ["watch.drift", "watch.steady", "watch.drift"]
    assert len({one.id for one in messages}) == 3


def test_a_note_that_was_lost_repeats_the_message_with_the_same_id(tmp_path, receiver):
    notify.tell(FAILED, tmp_path)
    (tmp_path / library.FILE).unlink()
    notify.tell(FAILED, tmp_path)
    first, second = receiver.messages
    assert first.id == second.id
    notify.tell(FAILED, tmp_path / "another registry")
    assert receiver.messages[-1].id != first.id


def test_what_a_step_of_a_run_tells_leads_to_the_runs_page(tmp_path, receiver, monkeypatch):
    monkeypatch.setenv("THYROID_RUN_ID", "run-7")
    monkeypatch.setenv("THYROID_NOTIFY_PAGES", "https://kubeflow.example/pipeline")
    notify.tell(News("watch.drift", "watch", "What arrives has changed.", "gs://b/r/thyroid/12"), tmp_path)
    monkeypatch.delenv("THYROID_RUN_ID")
    notify.tell(News("watch.worse", "watch", "It does worse.", "gs://b/r/thyroid/12"), tmp_path)
    first, second = receiver.messages
    assert (first.run, first.link) == ("run-7", "https://kubeflow.example/pipeline/#/runs/details/run-7")
    assert (second.run, second.link) == (None, "gs://b/r/thyroid/12")


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"told": [{"receiver": "x"}]}', b"\xff", b"[" * 100_000])
def test_a_damaged_note_is_replaced(tmp_path, receiver, content):
    (tmp_path / library.FILE).write_bytes(content)
    notify.tell(FAILED, tmp_path)
    notify.tell(FAILED, tmp_path)
    assert len(receiver.got) == 1
    assert told(tmp_path) == [("plain", "run.failed")]


def test_a_note_that_cannot_be_written_loses_no_message(tmp_path, receiver, log):
    (tmp_path / "file").write_text("")
    notify.tell(FAILED, tmp_path / "file")
    assert len(receiver.got) == 1
    assert "cannot be written" in log.text


def test_a_note_that_others_are_always_faster_with_is_given_up_with_a_word(tmp_path, receiver, log, monkeypatch):
    def write(*_):
        raise ChangedError(library.FILE)

    monkeypatch.setattr(Folder, "write", write)
    monkeypatch.setattr(library, "_PAUSE", 0.0)
    notify.tell(FAILED, tmp_path)
    assert len(receiver.got) == 1
    assert "may be told twice" in log.text


def test_a_bucket_that_is_away_loses_no_message(gcs, receiver, log):
    gcs.proxy.rule = lambda method, path: "403"
    notify.tell(FAILED, gcs.address("registry"))
    assert len(receiver.got) == 1
    assert "cannot be read" in log.text


def test_the_file_of_what_was_told_stays_small(tmp_path, receiver, monkeypatch):
    monkeypatch.setattr(library, "MOST", 2)
    for run in ("1", "2", "3"):
        notify.tell(News("run.failed", f"run {run}", "The run failed.", run=run), tmp_path)
    assert [one.topic for one in ToldRecord.read(tmp_path / library.FILE).told] == ["run 2", "run 3"]


def test_steps_that_tell_at_the_same_time_lose_no_note(place, receiver):
    runs = [News("run.failed", f"run {run}", "The run failed.", run=str(run)) for run in range(3)]
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda news: notify.tell(news, place), runs))
        list(pool.map(lambda news: notify.tell(news, place), runs))
    assert sorted(one.run for one in receiver.messages) == ["0", "1", "2"]


def test_an_error_that_passes_is_tried_again(tmp_path, receiver):
    receiver.answers = [500, 429, 200]
    notify.tell(FAILED, tmp_path)
    assert len(receiver.got) == 3
    assert len({headers["webhook-id"] for _, headers, _ in receiver.got}) == 1
    assert told(tmp_path) == [("plain", "run.failed")]


@pytest.mark.parametrize(("status", "attempts"), [(302, 1), (307, 1), (400, 1), (404, 1), (500, 4)])
def test_a_refusal_is_one_line_and_no_note(tmp_path, receiver, log, status, attempts):
    receiver.answers = [status]
    notify.tell(FAILED, tmp_path)
    assert [path for path, _, _ in receiver.got] == [f"/{SECRET}"] * attempts, "a redirect is not followed"
    (line,) = [record.getMessage() for record in log.records if record.name.startswith("thyroid")]
    assert line == f"notification of run.failed: plain status {status}"
    assert not (tmp_path / library.FILE).exists()


def test_a_receiver_that_failed_is_told_the_next_time_and_the_others_are_not(tmp_path, slack, receiver):
    slack.answers = [404, 200]
    notify.tell(DRIFT, tmp_path)
    assert told(tmp_path) == [("plain", "watch.drift")]
    notify.tell(DRIFT, tmp_path)
    assert (len(slack.got), len(receiver.got)) == (2, 1)


@pytest.mark.parametrize("how", ["hang", "drip"])
def test_the_deadline_ends_what_a_receiver_draws_out(tmp_path, slack, receiver, log, monkeypatch, how):
    monkeypatch.setattr(library, "DEADLINE", 4)
    monkeypatch.setattr(library, "_START", 60)
    slack.answers = [how]
    notify.tell(FAILED, tmp_path)
    assert "slack no answer in time" in log.text
    assert "plain delivered" in log.text
    assert told(tmp_path) == [("plain", "run.failed")]
    assert len(slack.got) == 1
    assert not [line for line in ps() if library._POST.name in line], "nothing goes on behind the step"


def ps():
    done = subprocess.run(["ps", "--ppid", str(os.getpid()), "-o", "args="], capture_output=True, text=True)
    return done.stdout.splitlines()


def test_a_process_that_does_not_end_is_killed(tmp_path, receiver, log, monkeypatch):
    stuck = tmp_path / "post.py"
    stuck.write_text("import time\ntime.sleep(60)\n")
    for name, value in {"_POST": stuck, "DEADLINE": 0, "_START": 0.5}.items():
        monkeypatch.setattr(library, name, value)
    begun = time.monotonic()
    notify.tell(FAILED, tmp_path / "registry")
    assert time.monotonic() - begun < 30
    assert "plain no answer in time" in log.text


def test_an_answer_of_any_length_is_not_read(tmp_path, receiver):
    receiver.answers = ["huge"]
    notify.tell(FAILED, tmp_path)
    assert told(tmp_path) == [("plain", "run.failed")]


@pytest.mark.parametrize(
    "url",
    [
        f"https://no-such-host.invalid/{SECRET}",
        f"http://localhost:1/{SECRET}",
        f"https://localhost:1/{SECRET}",
        f"https://{'a' * 64}.example/{SECRET}",
        f"https://ü{'.' * 3}/{SECRET}",
        f"http://public.example/{SECRET}",
        f"https://[/{SECRET}",
        f"https://user:{SECRET}@localhost:1/",
    ],
)
def test_the_address_is_in_no_log_and_nothing_is_raised(tmp_path, url, monkeypatch, log, capfd):
    monkeypatch.setenv(SLACK, url)
    monkeypatch.setenv(PLAIN, url)
    monkeypatch.setattr(library, "DEADLINE", 1)
    notify.tell(FAILED, tmp_path)
    assert command.main([]) == 2
    shown = "".join([log.text, *capfd.readouterr(), *(str(record.__dict__) for record in log.records)])
    assert "notification" in shown
    assert SECRET not in shown
    assert not list(tmp_path.iterdir())


def test_an_error_of_our_own_ends_nothing_and_shows_nothing(tmp_path, receiver, monkeypatch, log):
    def fail(requests):
        raise RuntimeError(requests[0]["url"])

    monkeypatch.setattr(library, "send", fail)
    notify.tell(FAILED, tmp_path)
    assert "not possible (RuntimeError)" in log.text
    assert SECRET not in log.text


def test_name_and_password_become_a_header(tmp_path, receiver, monkeypatch):
    monkeypatch.setenv(PLAIN, receiver.url.replace("http://", "http://me:p%40ss@"))
    notify.tell(FAILED, tmp_path)
    ((path, headers, _),) = receiver.got
    assert headers["authorization"] == "Basic bWU6cEBzcw=="
    assert path == f"/{SECRET}"
    assert "me" not in headers["host"]


def test_the_proxy_of_the_environment_is_asked(tmp_path, receiver, monkeypatch):
    monkeypatch.setenv("http_proxy", receiver.url.rpartition("/")[0])
    monkeypatch.setenv(PLAIN, "http://mattermost.chat.svc/hook")
    notify.tell(FAILED, tmp_path)
    ((path, headers, _),) = receiver.got
    assert path == "http://mattermost.chat.svc/hook"
    assert headers["host"] == "mattermost.chat.svc"


def test_a_certificate_is_checked_against_those_of_this_machine(tmp_path, monkeypatch, log):
    pem = tmp_path / "both.pem"
    pem.write_bytes(b"".join(certificate()))
    with receiving(pem) as receiver:
        monkeypatch.setenv(PLAIN, receiver.url)
        notify.tell(FAILED, tmp_path)
        assert "plain SSLError" in log.text
        monkeypatch.setenv("SSL_CERT_FILE", str(pem))
        notify.tell(FAILED, tmp_path)
        monkeypatch.setenv(PLAIN, receiver.url.replace("localhost", "127.0.0.1"))
        notify.tell(DRIFT, tmp_path)
    assert receiver.events == ["run.failed"]


def certificate() -> tuple[bytes, bytes]:
    """A certificate for localhost that is its own authority, and its key, as PEM."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return made.public_bytes(pem), secret


def test_the_address_is_on_no_command_line(tmp_path, receiver, monkeypatch):
    started = []

    class Popen(subprocess.Popen):
        def __init__(self, command, **given):
            started.append(command)
            super().__init__(command, **given)

    monkeypatch.setattr(subprocess, "Popen", Popen)
    notify.tell(FAILED, tmp_path)
    (line,) = started
    assert SECRET not in " ".join(line)


def test_the_command_sends_a_test_message(slack, receiver, capsys):
    assert command.main([]) == 0
    assert capsys.readouterr().out == "slack: delivered\nplain: delivered\n"
    (message,) = receiver.messages
    assert message.event == "test"
    slack.answers = [404]
    assert command.main([]) == 2
    assert "slack: status 404" in capsys.readouterr().err


def test_the_command_says_what_is_missing(capsys):
    assert command.main([]) == 2
    assert SLACK in capsys.readouterr().err


def test_telling_imports_no_client_of_http():
    code = "import sys, thyroid.notify; print(*{'urllib3', 'requests', 'httpx', 'pandas', 'cv2'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
