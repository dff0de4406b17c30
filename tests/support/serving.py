"""A real process of the endpoint for tests."""

import base64
import json
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from pydantic import BaseModel

PREDICT = "/v1/models/thyroid:predict"
EXPLAIN = "/v1/models/thyroid:explain"
LOCATE = "/v1/models/thyroid:locate"
INFER = "/v2/models/thyroid/infer"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """A process of the endpoint on free ports. Its output goes to a file, so that no pipe fills up.

    Args:
        log: File of the process's output.
        arguments: Arguments of `python -m thyroid.serve`.
        environment: Environment of the process; None for that of this process.
        port: Port of HTTP; None for a free one.
        before: Statements that the process runs first, for instance to shorten limits and pauses.
    """

    def __init__(
        self,
        log: Path,
        *arguments: str,
        environment: dict[str, str] | None = None,
        port: int | None = None,
        before: str = "",
    ) -> None:
        self.port, self.grpc_port, self.log = port or free_port(), free_port(), log
        code = f"{before}; import sys; from thyroid.serve.__main__ import main; sys.exit(main())"
        command = [sys.executable, *(["-c", code] if before else ["-m", "thyroid.serve"]), *arguments]
        with log.open("w") as output:
            self.process = subprocess.Popen(
                [*command, "--port", str(self.port), "--grpc-port", str(self.grpc_port)],
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
            )

    def ask(self, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", data, {"Content-Type": "application/json"} | headers
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, _read(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, _read(error.read())

    def wait(self) -> "Server":
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                if self.ask("/v2/health/ready")[0] == 200:
                    return self
            except OSError:
                pass
            time.sleep(0.1)
        raise AssertionError(self.log.read_text())

    def wait_for(self, text: str, seconds: float = 30) -> None:
        """Wait until the process's output holds a text."""
        deadline = time.monotonic() + seconds
        while text not in self.log.read_text():
            assert time.monotonic() < deadline, f"{text!r} is not in {self.log.read_text()}"
            time.sleep(0.05)

    def kill(self) -> str:
        """Kill the process at once. `stop` waits until accepted requests are answered."""
        self.process.kill()
        self.process.wait()
        return self.log.read_text()

    def stop(self) -> str:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout=60)
        return self.log.read_text()


def check_schema(model: type[BaseModel], answer: dict[str, Any]) -> None:
    """An answer has every field that its model requires, and no field that the model does not describe."""
    assert model.model_validate(answer, strict=True).model_dump(by_alias=True, exclude_unset=True) == answer


def errors_in(log: str) -> list[dict[str, Any]]:
    """Return the lines of a server's log that report an error."""
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    return [line for line in lines if line["level"] in ("ERROR", "CRITICAL")]


def _read(data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        return data.decode(errors="replace")


def encoded(path: str | Path) -> dict[str, str]:
    return {"b64": base64.b64encode(Path(path).read_bytes()).decode()}
