"""Starts the processes of steps, as many at a time as cores and memory allow, and prints their output."""

import os
import sys
import threading
import uuid
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass

from kfp.local.status import Status

from components.conclude import FAILED_STEP
from pipelines.local.forked import Forked
from pipelines.local.plan import Plan
from pipelines.local.processes import Spawned, StepProcess, failure, kill_all
from thyroid.notify.receivers import RUN

GRACE = 30.0
"""Seconds between SIGTERM, on which a training saves its state, and SIGKILL."""


@dataclass(frozen=True, eq=False)
class Task:
    """The task that a thread works on.

    Attributes:
        steps: The object that starts the task's process.
        name: Name of the task in the log.
        last: Whether the task runs even if another one has failed, as an exit handler does.
    """

    steps: "Steps"
    name: str
    last: bool = False


current: ContextVar[Task] = ContextVar("task")


def run(command: Sequence[str], environment: dict[str, str], container: Sequence[str] = ()) -> Status:
    """Run the process of the step that this thread works on.

    Args:
        command: The command and its arguments.
        environment: Environment variables added to those of this process.
        container: Engine and name of the container that `command` runs; empty for none.

    Returns:
        Whether the step succeeded; see `Steps.run`.
    """
    task = current.get()
    return task.steps.run(task, command, environment, container)


class Steps:
    """Starts the processes of steps and prints their output.

    It never runs more steps at the same time than cores and memory allow.

    Args:
        plan: The plan of the steps, which is updated when a step starts or ends.
        cores: Largest number of steps that run at the same time.
        memory: Bytes that the running steps may declare together. A step that declares more runs alone.
    """

    def __init__(self, plan: Plan, cores: int, memory: float) -> None:
        """Start with no step waiting or running."""
        self.plan, self.cores, self.memory = plan, cores, memory
        self._changed = threading.Condition()
        self._waiting: list[Task] = []
        self._running: dict[Task, StepProcess | None] = {}
        self._stopped = self._failed = ""
        self._run_id = uuid.uuid4().hex
        self._printing = threading.Lock()

    def print(self, text: str, name: str = "") -> None:
        """Print a line.

        Args:
            text: The line without its end.
            name: Name of the step that the line is from, which is printed before it; empty for none.
        """
        with self._printing:
            sys.stdout.write(f"{name:<{self.plan.width}} | {text}\n" if name else f"{text}\n")
            sys.stdout.flush()

    def run(
        self, task: Task, command: Sequence[str], environment: dict[str, str], container: Sequence[str] = ()
    ) -> Status:
        """Wait until cores and memory allow it, then run a step's process and wait for its end.

        A failed step stops the run.

        Args:
            task: The step, which must be in the queue.
            command: The command and its arguments.
            environment: Environment variables added to those of this process.
            container: Engine and name of the container that `command` runs, which must be stopped by name; empty for
                none.

        Returns:
            Whether the step succeeded. A step that did not start because the run was stopped has failed.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._is_stopped(task) or (task is self._waiting[0] and self._fits(task)))
            if self._is_stopped(task):
                return Status.FAILURE
            self._waiting.remove(task)
            self._running[task] = None
            self._changed.notify_all()
        self.plan.started(task.name)
        try:
            code = self._follow(task, command, environment, container)
        finally:
            with self._changed:
                del self._running[task]
                self._changed.notify_all()
        if code == 0:
            self.print(self.plan.ended(task.name))
            return Status.SUCCESS
        if self._is_stopped(task):
            self.print(f"stopped because {self._stopped}", task.name)
        else:
            self.print(f"failed (exit code {code}{failure(code, bool(container))})", task.name)
            self._failed = self._failed or task.name
            self.stop(f"{task.name} failed")
        return Status.FAILURE

    def queue(self, tasks: Sequence[Task]) -> None:
        """Add tasks to the queue. The task with the longest expected time runs first."""
        with self._changed:
            self._waiting = sorted([*self._waiting, *tasks], key=lambda waiting: -self.plan.seconds(waiting.name))

    def unqueue(self, task: Task) -> None:
        """Remove a task from the queue if it is still there."""
        with self._changed:
            if task in self._waiting:
                self._waiting.remove(task)
                self._changed.notify_all()

    def _is_stopped(self, task: Task) -> bool:
        return bool(self._stopped) and not task.last

    def _fits(self, task: Task) -> bool:
        declared = sum(self.plan.memory(other.name) for other in (task, *self._running))
        return not self._running or (len(self._running) < self.cores and declared <= self.memory)

    def _follow(self, task: Task, command: Sequence[str], environment: dict[str, str], container: Sequence[str]) -> int:
        variables = os.environ | {"PYTHONUNBUFFERED": "1"} | environment
        variables |= {FAILED_STEP: self._failed, RUN: self._run_id}
        is_component = not container and list(command[1:3]) == ["-m", "components"]
        process = StepProcess(
            Forked(command[3:], variables) if is_component else Spawned(command, variables), container
        )
        with self._changed:
            self._running[task] = process
            if self._is_stopped(task):
                process.end(GRACE)
        with process.process.output as lines:
            for line in lines:
                if line.strip():
                    self.print(line.rstrip(), task.name)
        return process.wait()

    def stop(self, why: str) -> None:
        """Stop the run: send SIGTERM to the running steps, and kill after `GRACE` those that have not ended.

        Only tasks that always run, such as the exit handler, start after that.

        Args:
            why: Reason for the log. The first reason is kept.
        """
        with self._changed:
            self._stopped = self._stopped or why
            processes = [process for task, process in self._running.items() if process and not task.last]
            self._changed.notify_all()
        for process in processes:
            process.end(GRACE)
        if processes:
            timer = threading.Timer(GRACE, kill_all, [processes])  # only these, since the exit handler may run by then
            timer.daemon = True
            timer.start()

    def kill(self) -> None:
        """Kill the processes that still run."""
        with self._changed:
            processes = [process for process in self._running.values() if process is not None]
        kill_all(processes)
