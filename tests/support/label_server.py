"""The labelling bench as a real process or within the test, and readers who use it as its script does."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx

from tests.support.serving import free_port

TOKENS = {"Dr. Kim": "kim-" + "k" * 16, "Dr. Lee": "lee-" + "l" * 16, "Dr. Park": "park-" + "p" * 16}
READERS = "name,token,role\n" + "".join(
    f"{name},{token},{'adjudicator' if name == 'Dr. Park' else 'reader'}\n" for name, token in TOKENS.items()
)


def nodule(x: int, y: int, width: int, height: int, **more: Any) -> dict[str, Any]:
    """Return a reading with one nodule."""
    return {"verdict": "nodules", "regions": [{"x": x, "y": y, "width": width, "height": height} | more], "side": ""}


class Visitor:
    """A reader's session. `client` is httpx' or that of a Flask application in the test."""

    def __init__(self, client: Any, name: str = "", token: str = "") -> None:
        self.client = client
        signed_in = client.get("/", **_query(client, token=token or TOKENS[name]))
        assert signed_in.status_code == 303, signed_in.text
        assert signed_in.headers["location"] == "/"
        self.renew()

    def renew(self) -> None:
        """Load the page, which holds the token against forgery."""
        home = self.client.get("/")
        assert home.status_code == 200, home.text[:300]
        self.home = home.text
        (self.csrf,) = re.findall(r'id="csrf" type="hidden" value="([^"]+)"', home.text)

    def next(self, queue: str = "order", **query: Any) -> Any:
        return self.client.get("/api/next", **_query(self.client, queue=queue, **query))

    def post(self, path: str, body: Any) -> Any:
        return self.client.post(path, json=body, headers={"x-csrftoken": self.csrf})

    def save(self, shown: dict[str, Any], reading: dict[str, Any], /, **changes: Any) -> Any:
        """Save a reading of a frame as /api/next showed it."""
        effort = {"seconds": 3.5, "pointer": 1, "keys": 2}
        body = {"id": shown["frame"]["id"], "queue": shown["queue"], "base": shown["base"]}
        return self.post("/api/reading", body | {"reading": reading, "effort": effort} | changes)

    def undo(self) -> Any:
        return self.post("/api/undo", {})


def _query(client: Any, **query: Any) -> dict[str, Any]:
    return {"params" if isinstance(client, httpx.Client) else "query_string": query}


def fields(answer: Any) -> Any:
    """Return the JSON of an answer of either client."""
    return answer.json() if callable(answer.json) else answer.json


class Bench:
    """A process of the bench on a free port. Its output goes to a file, so that no pipe fills up."""

    def __init__(self, log: Path, scans: Path, labelled: Path, *arguments: str) -> None:
        self.port, self.log = free_port(), log
        command = [sys.executable, "-m", "thyroid.label", "--scans", str(scans), "--labelled", str(labelled)]
        environment = os.environ | {"THYROID_LABEL_SECRET": "the same after a restart"}
        with log.open("a") as output:
            self.process = subprocess.Popen(
                [*command, "--port", str(self.port), *arguments],
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
            )
        self.address = f"http://127.0.0.1:{self.port}"
        self._clients: list[httpx.Client] = []

    def wait(self) -> "Bench":
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                if httpx.get(f"{self.address}/health").status_code == 200:
                    return self
            except httpx.HTTPError:
                pass
            time.sleep(0.1)
        raise AssertionError(self.log.read_text())

    def client(self, **cookies: str) -> httpx.Client:
        self._clients.append(httpx.Client(base_url=self.address, cookies=cookies, timeout=60))
        return self._clients[-1]

    def visitor(self, name: str) -> Visitor:
        return Visitor(self.client(), name)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> str:
        for client in self._clients:
            client.close()
        self.process.send_signal(how)
        self.process.wait(timeout=60)
        return self.log.read_text()
