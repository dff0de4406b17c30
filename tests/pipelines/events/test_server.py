"""The listener's HTTP server: who is let in, what is refused, and that whatever comes neither stops nor fills it."""

import contextlib
import json
import socket

import pytest

from pipelines import __main__ as cli
from tests.support.listening import Listener, structured, written

HOSTILE = "scans/B_0001-0001-1.0.jpg"


@pytest.fixture(scope="module")
def lab(tmp_path_factory, package):
    """A listener that never becomes ready and whose limits on time are short."""
    folder = tmp_path_factory.mktemp("lab")
    code = """
from pipelines.events import server
from thyroid.serve import limits
server.DEADLINE, server.SWEEP_SECONDS, limits.HEADERS = 4, .1, 4"""
    given = ["--set", "scans=gs://hospital/scans", "--set", "registry=gs://hospital/registry", "--claim", ""]
    auth = ["--event-token-file", str(folder / "token")]
    one = Listener(folder, package, "--host", "http://127.0.0.1:9", "--state", str(folder), *given, *auth, code=code)
    yield one.wait()
    assert "Traceback" not in one.stop()
    assert one.process.returncode == 0


def counted(lab: Listener, name: str, label: str) -> float:
    lines = lab.ask("GET", "/metrics", authorization="")[1].decode().splitlines()
    found = [float(line.split()[-1]) for line in lines if line.startswith(f"thyroid_listen_{name}") and label in line]
    return sum(found)


def kept(lab: Listener) -> list[str]:
    file = lab.log.parent / "listen.json"
    return list(json.loads(file.read_text())["batch"]["scans"]) if file.exists() else []


@pytest.mark.parametrize("authorization", ["", "Bearer", "Bearer wrong", "Basic YTpi", "Bearer " + "x" * 1000])
def test_without_the_token_nothing_is_kept(lab, authorization):
    before, refused = kept(lab), counted(lab, "rejected_total", "unauthorized")
    headers, body = written("hospital", "scans/B_0666-0001-1.0.jpg")
    status, answer = lab.ask("POST", "/", body, **headers, authorization=authorization)
    assert (status, json.loads(answer)["code"]) == (401, "unauthorized")
    assert kept(lab) == before
    assert counted(lab, "rejected_total", "unauthorized") == refused + 1


def test_an_event_is_kept_before_it_is_acknowledged(lab):
    event = written("hospital", "scans/B_0002-0001-1.0.jpg")
    assert lab.post(event) == 204
    assert "gs://hospital/scans/B_0002-0001-1.0.jpg" in kept(lab)
    repeated = counted(lab, "objects_total", "repeated")
    assert lab.post(event) == 204
    assert counted(lab, "objects_total", "repeated") == repeated + 1


def test_the_answer_to_an_event_is_empty(lab):
    """Knative takes a body for an event in reply, and calls anything else a failure."""
    headers, body = written("hospital", "scans/B_0003-0001-1.0.jpg")
    assert lab.ask("POST", "/", body, **headers) == (204, b"")
    batch = json.dumps([structured((headers, body))]).encode()
    assert lab.ask("POST", "/", batch, content_type="application/cloudevents-batch+json") == (204, b"")


DEEP = b"[" * 400_000
BODIES = {
    "no JSON": (b"<html>", 400),
    "nested": (DEEP, 400),
    "another type": (b'{"objects": 7}', 400),
    "100,000 objects": (json.dumps({"objects": ["a"] * 100_000}).encode(), 413),
    "too large": (b"x" * 1_000_001, 413),
}


@pytest.mark.parametrize("what", BODIES)
def test_hostile_bodies_are_refused(lab, what):
    body, status = BODIES[what]
    assert lab.ask("POST", "/scans", body)[0] == status
    assert lab.ask("GET", "/healthz", authorization="")[0] == 200


def test_names_that_cannot_be_written_are_ignored(lab):
    before = kept(lab)
    body = b'{"objects": ["gs://hospital/scans/\\ud800/B_0001-0001-1.0.jpg", "gs://hospital/scans/\\u0000.jpg"]}'
    assert lab.ask("POST", "/scans", body)[0] in (202, 400)
    assert kept(lab) == before


def exchange(lab: Listener, *parts: bytes) -> bytes:
    """Send bytes, and return what is answered until the connection closes."""
    answer = b""
    with socket.create_connection(("127.0.0.1", lab.port), timeout=60) as connection:
        with contextlib.suppress(ConnectionError):  # it may be refused before all is sent
            for part in parts:
                connection.sendall(part)
        with contextlib.suppress(ConnectionError):
            while data := connection.recv(65536):
                answer += data
                if b"\r\n\r\n" in answer and b"connection: close" not in answer.lower():
                    break
    return answer


HEAD = b"POST /scans HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer a token of the senders\r\n"


def test_a_body_of_unknown_length_is_counted_as_it_comes(lab):
    chunk = b"ffff\r\n" + b"x" * 0xFFFF + b"\r\n"
    assert b" 413 " in exchange(lab, HEAD + b"Transfer-Encoding: chunked\r\n\r\n", *[chunk] * 16)


def test_a_body_that_does_not_arrive(lab):
    assert b" 408 " in exchange(lab, HEAD + b"Content-Length: 100\r\n\r\n{")


def test_a_head_that_does_not_arrive(lab):
    assert exchange(lab, b"POST /scans HTTP/1.1\r\nHost") == b""


def test_a_head_that_does_not_end(lab):
    assert b" 2" not in exchange(lab, b"POST / HTTP/1.1\r\n" + b"A: " + b"x" * 200_000)


def test_lengths_that_are_none(lab):
    for length in (b"-1", b"abc", b"9" * 30):
        answer = exchange(lab, HEAD + b"Content-Length: " + length + b"\r\n\r\n")
        assert b" 400 " in answer or b" 413 " in answer or answer == b""


def test_other_routes_and_methods(lab):
    assert lab.ask("GET", "/")[0] == 405
    assert lab.ask("POST", "/other")[0] == 404


REFUSED = [
    (["--no-auth", "--host", "x"], "--state"),
    (["--state", "s", "--host", "x"], "--event-token-file or --issuer; with --no-auth"),
    (["--state", "s", "--no-auth"], "--host: give the address"),
    (["--state", "s", "--no-auth", "--host", "x", "--port", "0"], "--port 0"),
    (["--state", "s", "--no-auth", "--host", "x", "--quiet", "0"], "--quiet 0"),
    (["--state", "s", "--no-auth", "--host", "x", "--minimum", "many"], "--minimum"),
    (["--state", "s", "--event-token-file", "nowhere", "--host", "x"], "nowhere"),
    (["--state", "s", "--no-auth", "--host", "x", "--set", "registry=gs://b/r"], "--set scans=..."),
    (
        ["--state", "s", "--no-auth", "--host", "x", "--set", "scans=/nowhere", "--set", "registry=/r"],
        "/nowhere: no such",
    ),
    (
        ["--state", "x://s", "--no-auth", "--host", "x", "--set", "scans=gs://b/s", "--set", "registry=gs://b/r"],
        "x://s",
    ),
]


@pytest.mark.usefixtures("once_compiled")
@pytest.mark.parametrize(("given", "said"), REFUSED)
def test_wrong_options_are_said_before_it_listens(given, said, capsys, tmp_path, monkeypatch, package):
    from pipelines import compile

    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(
        compile.PIPELINES, "training", lambda placement, output: output.write_bytes(package.read_bytes())
    )
    assert cli.main(["listen", *given]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error
    assert error.count("\n") == 1


def test_a_port_that_is_taken(capsys, tmp_path, monkeypatch, package):
    from pipelines import compile

    monkeypatch.setitem(
        compile.PIPELINES, "training", lambda placement, output: output.write_bytes(package.read_bytes())
    )
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        given = ["--no-auth", "--host", "http://127.0.0.1:9", "--set", "scans=gs://b/s", "--set", "registry=gs://b/r"]
        assert cli.main(["listen", "--state", str(tmp_path), *given, "--port", port]) == 2
    assert f"--port {port}" in capsys.readouterr().err
