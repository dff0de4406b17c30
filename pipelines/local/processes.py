"""The operating system's processes of steps: how they are started, stopped and killed, and why they failed."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Sequence

from pipelines.local.forked import Forked


class Spawned:
    """The engine's command that runs a step's container, with the attributes of `Forked`."""

    def __init__(self, command: Sequence[str], environment: dict[str, str]) -> None:
        """Start the command in its own process group."""
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=environment,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        self.pid, self.output = self._process.pid, self._process.stdout
        self.wait = self._process.wait


class StepProcess:
    """A step's process, or the engine's command that runs the step's container.

    Args:
        process: The process.
        container: Engine and name of the container; empty for none.
    """

    def __init__(self, process: Forked | Spawned, container: Sequence[str]) -> None:
        """Take over a process that has just been started."""
        self.process, self.container = process, container
        self._ended = False

    def wait(self) -> int:
        """Wait for the process to end and return its exit code."""
        code = self.process.wait()
        self._ended = True
        return code

    def end(self, grace: float) -> None:
        """Send SIGTERM. A container engine kills a container that has not ended after `grace` seconds."""
        if self.container:
            engine, name = self.container
            self._engine([engine, "stop", "--time", f"{grace:.0f}", name])
        else:
            self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL and remove the container, if the process has not ended."""
        if not self._ended and self.container:
            engine, name = self.container
            self._engine([engine, "rm", "--force", name])
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        if not self._ended:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)

    def _engine(self, command: Sequence[str]) -> None:
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)


def kill_all(processes: Sequence[StepProcess]) -> None:
    """Kill the processes that have not ended yet."""
    for process in processes:
        process.kill()


def failure(code: int, container: bool) -> str:
    """Return what an exit code means, to be added after its number; empty if it means nothing in particular.

    Args:
        code: Exit code, or the negative number of the signal that ended the process.
        container: Whether it is the exit code of the container engine's command.
    """
    meanings = {137: ": killed, most often because memory ran out", -9: ": killed, most often because memory ran out"}
    if container:
        meanings |= {
            125: ": the engine could not start its container",
            126: ": its command cannot be executed",
            127: ": its command is not in the image",
        }
    return meanings.get(code, "")
