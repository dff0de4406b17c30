"""The candidate's process as the endpoint sees it: started, asked, measured and killed.

Whatever the candidate does to its process, it cannot do to the endpoint. The process answers in JSON, never with
objects. It is killed when its time is over, and it ends by itself when the endpoint ends.
"""

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

from thyroid.errors import InputError
from thyroid.records.watch import Shadowed
from thyroid.serve import limits

MODULE = "thyroid.serve.shadow"
"""The candidate's side, which Python runs."""

_PROC = Path("/proc")
_LONGEST = 65_536  # bytes of an answer
_LONGEST_REASON = 500  # characters
_SHORTEST_LOOK = 0.1  # seconds between two looks at a process whose time is nearly over, which may be halted
_DECISIONS = get_args(Shadowed.model_fields["decision"].annotation)


class EndedError(Exception):
    """The process ended, or was killed because it was too late, before it answered."""


class Process:
    """A process that holds a candidate.

    Args:
        folder: Folder of the artefact.
        form: Form of the model; None for the fastest one, which the process measures.

    Attributes:
        ready: Version and form of the candidate; empty until `start` has found them.

    Raises:
        OSError: The system starts no process.
    """

    def __init__(self, folder: Path, form: str | None) -> None:
        """Start the process; `start` waits for it."""
        # Its libraries start no threads, which would take memory and processors, and the champion has the GPU alone.
        environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        command = [sys.executable, "-m", MODULE, str(folder), *([form] if form else [])]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        self.ready: dict[str, Any] = {}
        self._lock = threading.Lock()
        self._halted_at: float | None = None
        self._halted = 0.0  # seconds until `_halted_at`

    def halt(self, wanted: Callable[[], bool]) -> None:
        """Halt the process, or let it go on. This takes microseconds.

        Args:
            wanted: Whether to halt it. Two threads that call this leave it as the later answer says.
        """
        with self._lock:
            now = time.monotonic()
            if wanted() == (self._halted_at is not None):
                return
            if self._halted_at is None:
                self._process.send_signal(signal.SIGSTOP)
                self._halted_at = now
            else:
                self._process.send_signal(signal.SIGCONT)
                self._halted, self._halted_at = self._halted + now - self._halted_at, None

    def start(self) -> None:
        """Wait until the candidate is loaded.

        Raises:
            InputError: The candidate cannot be served.
            EndedError: The process ended, or ran for longer than `limits.SHADOW_START`.
        """
        found = self._ask(b"", b"", limits.SHADOW_START)
        if "reason" in found:
            raise InputError(str(found["reason"])[:_LONGEST_REASON])
        if not {"version", "form"} <= found.keys():
            raise EndedError
        self.ready = found

    def answer(self, header: bytes, image: bytes | memoryview) -> dict[str, Any]:
        """Return what the candidate makes of one image.

        Args:
            header: The image's fields, as `thyroid.serve.shadow.__main__` reads them: a line of JSON.
            image: The image's bytes.

        Returns:
            The fields of `Shadowed` that are the candidate's own, or `failed` with a code if it cannot judge the image.

        Raises:
            EndedError: The process ended, or ran for longer than `limits.SHADOW_DEADLINE`.
        """
        found = self._ask(header, image, limits.SHADOW_DEADLINE)
        if "failed" not in found and found.get("decision") not in _DECISIONS:
            raise EndedError
        return found

    def memory(self) -> int:
        """Return the resident bytes of the process and of those that it has started; 0 if the system has no /proc."""
        pids, total = [str(self._process.pid)], 0
        for pid in pids:
            with contextlib.suppress(OSError):  # it has ended
                total += int((_PROC / pid / "statm").read_text().split()[1]) * resource.getpagesize()
                for children in (_PROC / pid / "task").glob("*/children"):
                    pids += children.read_text().split()
        return total

    def kill(self) -> None:
        """End the process at once. `start` and `answer` then raise `EndedError`, in whichever thread they wait."""
        self._process.kill()

    def close(self) -> None:
        """End the process and release its pipes."""
        self.kill()
        with contextlib.suppress(OSError):  # about data that was not written yet
            self._process.__exit__(None, None, None)

    def _ask(self, header: bytes, image: bytes | memoryview, seconds: float) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        answered = threading.Event()
        late = threading.Thread(target=self._kill_if_late, args=(answered, self._ran() + seconds), daemon=True)
        try:
            late.start()
            self._process.stdin.write(header)
            self._process.stdin.write(image)
            self._process.stdin.flush()
            answer = json.loads(self._process.stdout.readline(_LONGEST))
        except (OSError, ValueError, RuntimeError):  # it is gone, does not keep to the protocol, or no thread starts
            raise EndedError from None
        finally:
            answered.set()
        if not isinstance(answer, dict):
            raise EndedError
        return answer

    def _kill_if_late(self, answered: threading.Event, end: float) -> None:
        while not answered.wait(max(end - self._ran(), _SHORTEST_LOOK)):
            if self._ran() >= end:
                self.kill()
                return

    def _ran(self) -> float:
        """Return the seconds of a clock that stands still while the process is halted."""
        with self._lock:
            return (time.monotonic() if self._halted_at is None else self._halted_at) - self._halted
