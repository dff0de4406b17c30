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
    """One that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Endpoint:
    """`python -m thyroid.serve`, or another server, on a free port, from ready to stopped.

    Args:
        arguments: of its command line, but for the port.
        script: the other server; None for ours.
        python: what runs it; None for this environment's own.
        ready: path that answers 200 once it is.
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
            os.killpg(self.process.pid, signal.SIGKILL)  # some leave their workers behind
