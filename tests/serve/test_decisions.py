"""The decision log: what a line holds, its queue, and its sinks under faults."""

import contextlib
import fcntl
import http.server
import json
import logging
import os
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
from prometheus_client import REGISTRY

from tests.support import ROOT
from tests.support.serving import free_port
from thyroid.data import pseudonyms
from thyroid.errors import InputError
from thyroid.records.watch import Decision
from thyroid.serve.answers import Scored
from thyroid.serve.decisions import events, writer
from thyroid.serve.decisions import log as module
from thyroid.serve.decisions.events import CONTENT_TYPE, Events
from thyroid.serve.decisions.folder import Folder
from thyroid.serve.decisions.log import DecisionLog
from thyroid.serve.options import ServeOptions
from thyroid.serve.payload import Instance
from thyroid.serve.preprocessing import Prepared

SECRET = b"a secret for the tests"
SHA256 = "ab" * 32


def scored(patient: str | None = None, probability: float = 0.25, **more: Any) -> Scored:
    done = {"source": "auto", "probability": 0.9, "unsure": False, "box": [10, 20, 30, 40], "square": [0, 0, 64, 64]}
    prepared = Prepared(np.zeros((8, 8, 3), np.uint8), done | more.pop("done", {}), None, (320, 240), SHA256)
    decision = {"malignant": probability, "decision": "abstain", "reason": "box_unsure", "reasons": ["box_unsure"]}
    two = np.array([1 - probability, probability])
    return Scored(
        instance=Instance("instances[0].image", b"", patient=patient),
        prepared=prepared,
        probability=two,
        unscaled=two,
        decision=decision,
        evidence=np.zeros((4, 4)),
        clinical={},
        milliseconds={},
        **({"novelty": 12.5, "distance": 0.5, "features": None} | more),
    )


def lines(folder: Path) -> list[Decision]:
    return [
        Decision.model_validate_json(line)
        for path in sorted(folder.glob("decisions-*.jsonl"))
        for line in path.read_text().splitlines()
    ]


def counted(sink: str) -> dict[str, float]:
    results = (writer.WRITTEN, writer.DROPPED, writer.FAILED)
    name = "thyroid_decision_log_total"
    return {one: REGISTRY.get_sample_value(name, {"sink": sink, "result": one}) or 0.0 for one in results}


@pytest.fixture
def count() -> Callable[[str], dict[str, float]]:
    """Count what became of the decisions of a sink in this test."""
    before = {sink: counted(sink) for sink in ("folder", "url", "broken", "blocked")}
    return lambda sink: {one: number - before[sink][one] for one, number in counted(sink).items()}


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(writer, "PAUSE", 0.01)
    monkeypatch.setattr(writer, "MOST_PAUSE", 0.02)


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


class Broken:
    """A sink that fails as long as it is told to."""

    name, most, attempts = "broken", 10, 0

    def __init__(self) -> None:
        self.error: Exception | None = OSError(5, "broken")
        self.got: list[bytes] = []

    def write(self, lines: Sequence[writer.Line]) -> None:
        if self.error is not None:
            raise self.error
        self.got += [line.text for line in lines]


class Blocked:
    """A sink that does not return until it is told to."""

    name, most, attempts = "blocked", 10, 0

    def __init__(self) -> None:
        self.entered, self.go = threading.Event(), threading.Event()

    def write(self, lines: Sequence[writer.Line]) -> None:
        self.entered.set()
        self.go.wait()


def test_a_line_says_what_was_decided_and_names_nobody(tmp_path, count):
    log = DecisionLog([Folder(tmp_path)], SECRET, site="Elsewhere", features=True)
    token = module.REQUEST.set("the-request")
    before = datetime.now(UTC)
    features = np.array([0.1234567, -2], np.float32)
    log.record(7, "openvino-f32", [scored("17", features=features), scored("Doe^Jane"), scored()])
    module.REQUEST.reset(token)
    log.close()
    (path,) = tmp_path.iterdir()
    assert path.name.startswith(f"decisions-{before:%Y-%m-%d}-")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    first, second, third = lines(tmp_path)
    assert abs(datetime.fromisoformat(first.time) - before) < timedelta(seconds=10)
    assert datetime.fromisoformat(first.time).utcoffset() == timedelta(0)
    assert first.to_dict() == {
        "id": first.id,
        "request": "the-request",
        "number": 0,
        "time": first.time,
        "image": pseudonyms.of_file(SECRET, SHA256),
        "patient": pseudonyms.of_patient(SECRET, "Elsewhere", 17),
        "version": 7,
        "form": "openvino-f32",
        "source": "auto",
        "probability": 0.25,
        "decision": "abstain",
        "reasons": ["box_unsure"],
        "novelty": 12.5,
        "distance": 0.5,
        "box_probability": 0.9,
        "width": 320,
        "height": 240,
        "box": [10, 20, 30, 40],
        "features": [0.12346, -2.0],
    }
    assert len({first.id, second.id, third.id}) == 3
    assert [one.number for one in (first, second, third)] == [0, 1, 2]
    assert second.patient == pseudonyms.of_text(SECRET, "Elsewhere", "Doe^Jane")
    assert "Doe" not in path.read_text()
    assert not {"patient", "features"} & set(third.to_dict())
    assert count("folder") == {"written": 3, "dropped": 0, "failed": 0}


@pytest.mark.parametrize("patient", [None, "", "  "])
def test_an_empty_name_is_no_patient(tmp_path, patient):
    log = DecisionLog([Folder(tmp_path)], SECRET)
    log.record(1, "keras", [scored(patient)])
    log.close()
    assert [one.patient for one in lines(tmp_path)] == [None]


def test_features_and_what_an_image_lacks_are_left_out(tmp_path):
    log = DecisionLog([Folder(tmp_path)], SECRET)
    given = scored(done={"source": "given"}, features=np.ones(2, np.float32), novelty=None, distance=None)
    frame = scored()
    del frame.prepared.done["source"]
    log.record(1, "keras", [given, frame])
    log.close()
    first, second = lines(tmp_path)
    assert not {"features", "box_probability", "novelty", "distance"} & set(first.to_dict())
    assert (first.source, second.source, second.box_probability) == ("given", "frame", None)
    assert first.request == first.id, "of a request without an id"


def test_a_clock_that_goes_back_loses_nothing(tmp_path, monkeypatch):
    times = iter(datetime(2026, 3, day, 23, 59, 59, 999_000, UTC) for day in (2, 1, 2))
    monkeypatch.setattr(module, "datetime", SimpleNamespace(now=lambda _: next(times)))
    log = DecisionLog([Folder(tmp_path)], SECRET)
    for number in range(3):
        log.record(number + 1, "keras", [scored()])
    log.close()
    assert [one.version for one in lines(tmp_path)] == [2, 1, 3]
    assert sorted(path.name[10:20] for path in tmp_path.iterdir()) == ["2026-03-01", "2026-03-02"]
    assert {one.time for one in lines(tmp_path)} == {f"2026-03-0{day}T23:59:59.999+00:00" for day in (1, 2)}


def test_what_cannot_be_logged_is_counted_and_hurts_nobody(tmp_path, count, caplog):
    log = DecisionLog([Folder(tmp_path)], SECRET)
    for _ in range(2):
        log.record(1, "keras", [scored("Doe^Jane", probability=float("nan"))])
    log.record(1, "keras", [scored()])
    log.close()
    assert count("folder") == {"written": 1, "dropped": 0, "failed": 2}
    assert [record.message for record in caplog.records] == ["decision not logged"]
    assert "Doe" not in str(vars(caplog.records[0]))


def test_a_blocked_sink_keeps_the_queue_within_its_bounds(count, caplog):
    sink = Blocked()
    log = DecisionLog([sink], SECRET)
    (waiting,) = log._writers
    log.record(1, "keras", [scored()])
    sink.entered.wait()
    image = scored("17")
    for _ in range(1000):
        log.record(1, "keras", [image] * 100)
    assert len(waiting._waiting) <= writer.MOST_LINES
    held = sum(sys.getsizeof(line.text) + sys.getsizeof(line) for line in waiting._waiting)
    assert held <= waiting._size <= writer.MOST_BYTES
    assert count("blocked")["dropped"] == 100_001 - len(waiting._waiting)
    assert [record.message for record in caplog.records] == ["decision log full: decisions are dropped"]
    sink.go.set()
    log.close()
    assert count("blocked")["written"] + count("blocked")["dropped"] == 100_001


def test_long_lines_fill_the_queue_by_their_bytes(count):
    sink = Blocked()
    log = DecisionLog([sink], SECRET, features=True)
    image = scored(features=np.full(256, 0.12345, np.float32))
    for _ in range(writer.MOST_LINES // 10):
        log.record(1, "keras", [image] * 10)
    (waiting,) = log._writers
    assert len(waiting._waiting) < writer.MOST_LINES
    assert waiting._size <= writer.MOST_BYTES
    assert count("blocked")["dropped"] > 0
    sink.go.set()
    log.close()


def test_a_sink_that_hangs_does_not_hold_up_the_end(monkeypatch, count, caplog):
    monkeypatch.setattr(writer, "CLOSE_SECONDS", 0.1)
    sink = Blocked()
    log = DecisionLog([sink], SECRET)
    log.record(1, "keras", [scored()] * 20)
    log.close()  # it returns
    assert count("blocked") == {"written": 0, "dropped": 0, "failed": 20}
    assert [record.message for record in caplog.records] == ["decisions lost at the end"]
    sink.go.set()


def test_one_sink_that_fails_stops_no_other(tmp_path, count, caplog):
    caplog.set_level(logging.INFO, "thyroid.serve")
    broken = Broken()
    log = DecisionLog([broken, Folder(tmp_path)], SECRET)
    for _ in range(25):
        log.record(1, "keras", [scored()])
    until(lambda: len(lines(tmp_path)) == 25)
    until(lambda: any(record.message == "decision log not written" for record in caplog.records))
    assert count("broken") == {"written": 0, "dropped": 0, "failed": 0}
    broken.error = None
    until(lambda: count("broken")["written"] == 25)
    broken.error = writer.RefusedError("not these")
    log.record(1, "keras", [scored()])
    until(lambda: count("broken")["failed"] == 1)
    log.close()
    assert broken.got == [one.encode() for path in tmp_path.iterdir() for one in path.read_text().splitlines()][:25]
    assert [record.message for record in caplog.records] == [
        "decision log not written",
        "decision log written again",
        "decision log not written",
    ]


FULL = """
import json, resource, sys
from pathlib import Path
from tests.serve.test_decisions import SECRET, counted, lines, scored, until
from thyroid.serve.decisions import writer
from thyroid.serve.decisions.folder import Folder
from thyroid.serve.decisions.log import DecisionLog

writer.PAUSE = writer.MOST_PAUSE = 0.01
folder = Path(sys.argv[1])
log = DecisionLog([Folder(folder)], SECRET)
log.record(1, "keras", [scored()] * 5)
until(lambda: len(lines(folder)) == 5)
(path,) = folder.iterdir()
whole = path.read_bytes()
resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 700, resource.RLIM_INFINITY))
(waiting,) = log._writers
log.record(2, "keras", [scored()] * 5)
until(lambda: waiting._failing)
log.record(3, "keras", [scored()] * 5)
until(lambda: waiting._tried > 3)
full = path.read_bytes() == whole
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
log.close()
print(json.dumps([full, [one.version for one in lines(folder)], counted("folder")]))
"""


def test_a_partial_write_is_undone_and_made_up_for(tmp_path):
    """A limit on a file's size, in a process of its own, lets a write start and not end, as a full disk does."""
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    full, versions, count = json.loads(done.stdout)
    assert full, "the file is as long as before the failure"
    assert versions == [1] * 5 + [2] * 5 + [3] * 5
    assert count == {"written": 15, "dropped": 0, "failed": 0}


@pytest.mark.parametrize("kind", ["pipe", "read pipe", "folder", "link"])
def test_what_is_no_file_is_waited_for_and_not_written_to(tmp_path, count, kind):
    folder = Folder(tmp_path)
    log = DecisionLog([folder], SECRET)
    log.record(1, "keras", [scored()])
    until(lambda: lines(tmp_path))
    (path,) = tmp_path.iterdir()
    path.unlink()
    other, reader = tmp_path / "other", None
    if "pipe" in kind:
        os.mkfifo(path)
        reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK) if kind == "read pipe" else None
    elif kind == "folder":
        path.mkdir()
    else:
        other.touch()
        path.symlink_to(other)
    refused = r"no file|No such device|Is a directory|Too many levels"
    with pytest.raises(OSError, match=refused):  # and not a wait for a reader
        folder.write([writer.Line(path.name[10:20], b"{}")])
    if reader is not None:
        assert os.read(reader, 100) == b""
        os.close(reader)
    assert not other.exists() or other.read_bytes() == b""
    path.rmdir() if kind == "folder" else path.unlink()
    log.record(2, "keras", [scored()])
    until(lambda: [one.version for one in lines(tmp_path)] == [2])
    log.close()
    assert count("folder") == {"written": 2, "dropped": 0, "failed": 0}


def test_an_erasure_that_replaces_the_file_loses_no_decision(tmp_path):
    log = DecisionLog([Folder(tmp_path)], SECRET)
    log.record(1, "keras", [scored("17")])
    until(lambda: lines(tmp_path))
    (path,) = tmp_path.iterdir()
    with path.open("rb+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        log.record(2, "keras", [scored()])
        time.sleep(0.1)  # the writer waits for the lock
        assert len(lines(tmp_path)) == 1
        new = path.with_suffix(".new")
        new.write_bytes(b"")
        new.replace(path)
    until(lambda: [one.version for one in lines(tmp_path)] == [2])
    path.unlink()
    log.record(3, "keras", [scored()])
    until(lambda: [one.version for one in lines(tmp_path)] == [3])
    log.close()


class Receiver(http.server.ThreadingHTTPServer):
    """Takes CloudEvents, and answers with the statuses it is given, then with 202."""

    def __init__(self) -> None:
        self.statuses: list[int] = []
        self.posts: list[tuple[str, dict[str, str], list[dict[str, Any]]]] = []
        receiver = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                receiver.posts.append((self.path, {key.lower(): value for key, value in self.headers.items()}, body))
                self.send_response(receiver.statuses.pop(0) if receiver.statuses else 202)
                self.send_header("location", "/elsewhere")
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://name:pass-word@127.0.0.1:{self.server_port}/decisions"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield server
        server.shutdown()


def test_decisions_are_posted_in_batches_of_cloudevents(receiver, monkeypatch):
    monkeypatch.setattr(writer, "PAUSE", 30.0)  # the end writes them all
    log = DecisionLog([Events(receiver.url)], SECRET)
    for number in range(25):
        log.record(number + 1, "keras", [scored("17")] * 10)
    log.close()
    assert [len(body) for _, _, body in receiver.posts] == [100, 100, 50]
    for path, headers, body in receiver.posts:
        assert (path, headers["content-type"]) == ("/decisions", CONTENT_TYPE)
        assert headers["authorization"].startswith("Basic ")
        for event in body:
            decision = Decision.parse(event["data"], "event")
            assert event == {
                "specversion": "1.0",
                "type": "thyroid.decision.v1",
                "source": f"/thyroid/{decision.version}",
                "id": decision.id,
                "time": decision.time,
                "datacontenttype": "application/json",
                "data": decision.to_dict(),
            }
    assert len({event["id"] for _, _, body in receiver.posts for event in body}) == 250


def test_what_the_receiver_cannot_take_now_is_sent_again(receiver, count):
    receiver.statuses = [503, 429, 500]
    log = DecisionLog([Events(receiver.url)], SECRET)
    log.record(1, "keras", [scored()])
    until(lambda: count("url")["written"] == 1)
    log.close()
    assert len({body[0]["id"] for _, _, body in receiver.posts}) == 1
    assert len(receiver.posts) == 4
    assert count("url") == {"written": 1, "dropped": 0, "failed": 0}


@pytest.mark.parametrize("status", [302, 307, 400, 401, 413])
def test_what_the_receiver_refuses_is_given_up_and_no_redirect_followed(receiver, status, count, caplog):
    receiver.statuses = [status]
    log = DecisionLog([Events(receiver.url)], SECRET)
    log.record(1, "keras", [scored()])
    until(lambda: count("url")["failed"] == 1)
    log.record(2, "keras", [scored()])
    until(lambda: count("url")["written"] == 1)
    log.close()
    assert [path for path, _, _ in receiver.posts] == ["/decisions"] * 2
    assert f"refused with status {status}" in str(vars(caplog.records[0]))
    assert "pass-word" not in "".join(str(vars(record)) for record in caplog.records)


def test_a_receiver_that_is_gone_is_given_up_after_some_attempts(count, caplog):
    log = DecisionLog([Events(f"http://name:pass-word@127.0.0.1:{free_port()}")], SECRET)
    log.record(1, "keras", [scored()] * 3)
    until(lambda: count("url")["failed"] == 3)
    log.close()
    (record,) = caplog.records
    assert record.__dict__["fields"]["reason"] == "ConnectError"
    assert "pass-word" not in str(vars(record))


def test_a_receiver_that_never_answers_does_not_hold_up_the_end(monkeypatch, count):
    monkeypatch.setattr(writer, "CLOSE_SECONDS", 0.2)
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as silent:  # nobody serves it
        log = DecisionLog([Events(f"http://127.0.0.1:{silent.server_port}")], SECRET)
        log.record(1, "keras", [scored()] * 3)
        log.close()
        assert count("url")["failed"] == 3


@pytest.mark.parametrize(("part", "pause"), [(b"x: y\r\n", 0.05), (b"HTTP/1.1 103 Early Hints\r\n\r\n" * 999, 0)])
def test_a_receiver_whose_answer_never_ends_is_cut_off(monkeypatch, part, pause):
    monkeypatch.setattr(events, "DEADLINE", 0.5)

    class Endless(http.server.BaseHTTPRequestHandler):
        timeout = 1  # what it sends may find no room once nobody reads it

        def do_POST(self) -> None:
            with contextlib.suppress(OSError):
                self.wfile.write(b"" if part.startswith(b"HTTP") else b"HTTP/1.1 202 Accepted\r\n")
                while True:
                    self.wfile.write(part)
                    time.sleep(pause)

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Endless) as server:
        thread = threading.Thread(target=server.handle_request, daemon=True)
        thread.start()
        line = writer.Line("2026-03-02", b'{"id": "1", "version": 1, "time": "2026-03-02T00:00:00.000+00:00"}')
        with pytest.raises(httpx.HTTPError):
            Events(f"http://127.0.0.1:{server.server_port}").write([line])
        thread.join(30)
        assert not thread.is_alive()


@pytest.fixture
def keyed(monkeypatch):
    monkeypatch.setenv(pseudonyms.KEY_VARIABLE, SECRET.decode())


def test_no_log_unless_asked_for(tmp_path):
    assert DecisionLog.start(ServeOptions(model_dir=tmp_path)) is None


@pytest.mark.usefixtures("keyed")
@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"site": "Elsewhere"}, "--site: there is no decision log"),
        ({"log_features": True}, "--log-features: there is no decision log"),
        ({"log_url": "ftp://host/pass-word"}, "--log-url: no http:// or https:// address"),
        ({"log_url": "https://"}, "--log-url"),
        ({"log_url": "http://host:pass-word/"}, "--log-url"),
        ({"log_url": "http://host:65536/pass-word"}, "--log-url: no http:// or https:// address"),
        ({"log_url": "http://xn--a/pass-word"}, "--log-url: no http:// or https:// address"),
        ({"log_url": "http://host/pass-word\udc80"}, "--log-url: no http:// or https:// address"),
        ({"log": Path("gs://bucket/decisions")}, "--log gs://bucket/decisions: give a folder"),
        ({"log": Path("s3://bucket/decisions")}, "--log s3://bucket/decisions: give a folder"),
        ({"log": Path("/dev/null/decisions")}, "--log /dev/null/decisions"),
    ],
)
def test_options_that_cannot_be_are_refused_by_name(options, told, tmp_path):
    with pytest.raises(InputError, match=told) as refused:
        DecisionLog.start(ServeOptions(model_dir=tmp_path, **options))
    assert "pass-word" not in str(refused.value)


@pytest.mark.usefixtures("keyed")
@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("SSL_CERT_FILE", "/nowhere/pass-word.pem"),
        ("ALL_PROXY", "pass-word://host"),
        ("ALL_PROXY", "http://host:pass-word"),
        ("ALL_PROXY", "socks5://pass-word@host"),
    ],
)
def test_an_environment_that_cannot_be_used_is_refused_by_name(variable, value, tmp_path, monkeypatch):
    monkeypatch.setenv(variable, value)
    with pytest.raises(InputError, match=f"--log-url: .*{variable}") as refused:
        DecisionLog.start(ServeOptions(model_dir=tmp_path, log_url="https://host/"))
    assert "pass-word" not in str(refused.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_rights_is_refused(tmp_path, keyed):
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="cannot write there"):
        DecisionLog.start(ServeOptions(model_dir=tmp_path, log=tmp_path))


@pytest.mark.parametrize(("given", "told"), [("", "without a registry needs a secret"), ("short", "5 characters")])
def test_one_artefact_needs_a_key_from_the_environment(tmp_path, monkeypatch, given, told):
    monkeypatch.setenv(pseudonyms.KEY_VARIABLE, given)
    with pytest.raises(InputError, match=f"THYROID_PATIENT_KEY: .*{told}"):
        DecisionLog.start(ServeOptions(model_dir=tmp_path, log=tmp_path))


def test_a_registry_has_the_key(tmp_path, monkeypatch):
    monkeypatch.delenv(pseudonyms.KEY_VARIABLE, raising=False)
    log = DecisionLog.start(ServeOptions(registry=str(tmp_path / "registry"), log=tmp_path / "log", site="Elsewhere"))
    assert log is not None
    log.record(1, "keras", [scored("17")])
    log.close()
    secret = pseudonyms.key(str(tmp_path / "registry"))
    assert [one.patient for one in lines(tmp_path / "log")] == [pseudonyms.of_patient(secret, "Elsewhere", 17)]
