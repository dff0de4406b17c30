"""A real process of the listener for tests, and the events that senders post to it."""

import contextlib
import http.client
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.support import ROOT
from tests.support.serving import free_port

TOKEN = "a token of the senders"
QUICK = """
import shutil, sys
from pipelines import compile
from pipelines.events import leader, state
from thyroid.storage import client, lease
leader.POLL = leader.RUN_POLL = .05
leader.SETTLE, leader.FIRST_PAUSE, leader.LONGEST_PAUSE = 1, .05, .2
state.PAUSE = 0
lease.EXPIRY, lease.RENEWAL, lease.POLL = 4, .2, .05
client.FIRST_PAUSE, client.LONGEST_PAUSE, client.PATIENCE = .01, .05, .3
compile.PIPELINES["training"] = lambda placement, output: shutil.copy(PACKAGE, output)
from pipelines.__main__ import main
sys.exit(main(["listen", *sys.argv[1:]]))
"""
"""A listener with short pauses, whose pipeline is compiled already."""


class Listener:
    """A process of `python -m pipelines listen` on a free port.

    Args:
        folder: Folder of its log and of the senders' token.
        package: The compiled pipeline.
        arguments: Arguments of the command.
        code: Further statements before it starts.
        port: Port; None for a free one.
    """

    def __init__(
        self, folder: Path, package: Path, *arguments: str, code: str = "", port: int | None = None, token: str = TOKEN
    ) -> None:
        self.port, self.log, self.token = port or free_port(), folder / "listen.log", token
        (folder / "token").write_text(f"{TOKEN}\n")
        body = QUICK.replace("from pipelines.__main__", f"{code}\nfrom pipelines.__main__")
        with self.log.open("a") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-c", f"PACKAGE = {str(package)!r}\n{body}", "--port", str(self.port), *arguments],
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
            )

    def wait(self) -> "Listener":
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                if self.ask("GET", "/healthz")[0] == 200:
                    return self
            except OSError:
                pass
            time.sleep(0.02)
        raise AssertionError(self.log.read_text())

    def ask(self, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, bytes]:
        given = {"authorization": f"Bearer {self.token}"} | {k.replace("_", "-"): v for k, v in headers.items()}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it may be refused before all is sent
                connection.request(method, path, body, {name: text for name, text in given.items() if text})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def post(self, event: tuple[dict[str, str], bytes]) -> int:
        """Post a CloudEvent and return the status."""
        return self.ask("POST", "/", event[1], **event[0])[0]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> str:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout=60)
        return self.log.read_text()


def written(bucket: str, name: str, generation: int = 1, id: str = "") -> tuple[dict[str, str], bytes]:
    """Headers and body of the event of Google Cloud Storage for an object that was written, in binary mode."""
    headers = {
        "ce-specversion": "1.0",
        "ce-type": "google.cloud.storage.object.v1.finalized",
        "ce-source": f"//storage.googleapis.com/projects/_/buckets/{bucket}",
        "ce-subject": f"objects/{name}",
        "ce-id": id or f"{name}-{generation}",
        "content-type": "application/json",
    }
    data = {"kind": "storage#object", "bucket": bucket, "name": name, "generation": str(generation), "size": "3"}
    return headers, json.dumps(data).encode()


def structured(event: tuple[dict[str, str], bytes]) -> dict[str, Any]:
    """The same event as the JSON of structured mode."""
    headers, body = event
    return {name.removeprefix("ce-"): text for name, text in headers.items() if name.startswith("ce-")} | {
        "datacontenttype": "application/json",
        "data": json.loads(body),
    }


def records(bucket: str, names: Sequence[str], event: str = "s3:ObjectCreated:Put") -> bytes:
    """The body of a notification that MinIO posts."""
    places = [{"bucket": {"name": bucket}, "object": {"key": name, "eTag": "abc", "size": 3}} for name in names]
    found = [{"eventVersion": "2.0", "eventSource": "minio:s3", "eventName": event, "s3": one} for one in places]
    return json.dumps({"EventName": event, "Key": f"{bucket}/{names[0]}", "Records": found}).encode()


def eventually(condition: Callable[[], Any], seconds: float = 120) -> Any:
    """Wait until a condition holds, and return its value."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)
    return value
