"""A server process for the benchmarks."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path


def free_port() -> int:
    """Return a port on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Endpoint:
    """A context in which `python -m thyroid.serve`, or another server, is ready on a free port.

    Args:
        arguments: Arguments of the server's command line, without the port.
        script: Script of another server; None for `thyroid.serve`.
        python: Interpreter that runs the server; None for this environment's.
        ready: Path that answers 200 once the server is ready.
    """

    def __init__(
        self, *arguments: str, script: str | None = None, python: Path | None = None, ready: str = "/v2/health/ready"
    ) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.ready = ready
        program = ["-m", "thyroid.serve"] if script is None else [script]
        self.command = [str(python or sys.executable), *program, *arguments, "--port", str(port)]

    def __enter__(self) -> "Endpoint":
        started = time.monotonic()
        self.process = subprocess.Popen(
            self.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, process_group=0
        )
        while self.process.poll() is None and time.monotonic() < started + 300:
            try:
                with urllib.request.urlopen(f"{self.url}{self.ready}", timeout=5):
                    self.cold_start = time.monotonic() - started
                    return self
            except (urllib.error.URLError, OSError):
                time.sleep(0.05)
        self.__exit__()
        raise RuntimeError(f"{' '.join(self.command)} did not become ready")

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout=60)
            os.killpg(self.process.pid, signal.SIGKILL)  # some servers leave their workers behind
