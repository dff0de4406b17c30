"""Runs pipelines on this machine with kfp.local: steps run in parallel, and the log names the step of each line.

kfp.local (2.17, pinned) runs the tasks of a DAG one after the other. It gives every step its own log handler and its
own `print`, with colour codes. While a pipeline runs here, two parts of kfp.local are replaced. `_run_dag` replaces
its walk through a DAG and starts a task as soon as the tasks that it depends on have ended. `Steps.run` replaces the
start of a step's process. The decorations are left out. Conditions, loops, inputs and outputs remain kfp's.
"""

import contextlib
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import psutil
from kfp import local
from kfp.local import graph_utils, io, logging_utils, subprocess_task_handler
from kfp.local.orchestrator import enhanced_dag_orchestrator as kfp_dag
from kfp.local.orchestrator.orchestrator_utils import OrchestratorUtils
from kfp.local.status import Status

from pipelines.forked import Forked
from pipelines.plan import Plan
from thyroid import cores
from thyroid.errors import InputError

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
        self._running: dict[Task, _Process | None] = {}
        self._stopped = ""
        self._printing = threading.Lock()

    def say(self, text: str, name: str = "") -> None:
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
            self.say(self.plan.ended(task.name))
            return Status.SUCCESS
        if self._is_stopped(task):
            self.say(f"stopped, since {self._stopped}", task.name)
        else:
            self.say(f"failed (exit code {code}{_meaning(code, bool(container))})", task.name)
            self.stop(f"{task.name} failed")
        return Status.FAILURE

    def queue(self, tasks: Sequence[Task]) -> None:
        """Add tasks to the queue. The task with the longest expected time runs first."""
        with self._changed:
            self._waiting = sorted([*self._waiting, *tasks], key=lambda one: -self.plan.seconds(one.name))

    def unqueue(self, task: Task) -> None:
        """Remove a task from the queue if it is still there."""
        with self._changed:
            if task in self._waiting:
                self._waiting.remove(task)
                self._changed.notify_all()

    def _is_stopped(self, task: Task) -> bool:
        return bool(self._stopped) and not task.last

    def _fits(self, task: Task) -> bool:
        declared = sum(self.plan.memory(one.name) for one in (task, *self._running))
        return not self._running or (len(self._running) < self.cores and declared <= self.memory)

    def _follow(self, task: Task, command: Sequence[str], environment: dict[str, str], container: Sequence[str]) -> int:
        variables = os.environ | {"PYTHONUNBUFFERED": "1"} | environment
        ours = not container and list(command[1:3]) == ["-m", "components"]
        own = _Process(Forked(command[3:], variables) if ours else _Spawned(command, variables), container)
        with self._changed:
            self._running[task] = own
            if self._is_stopped(task):
                own.end()
        with own.process.output as lines:
            for line in lines:
                if line.strip():
                    self.say(line.rstrip(), task.name)
        return own.wait()

    def stop(self, why: str) -> None:
        """Stop the run: send SIGTERM to the running steps, and kill after `GRACE` those that have not ended.

        Only tasks that always run, such as the exit handler, start after that.

        Args:
            why: Reason for the log. The first reason is kept.
        """
        with self._changed:
            self._stopped = self._stopped or why
            processes = [one for task, one in self._running.items() if one is not None and not task.last]
            self._changed.notify_all()
        for one in processes:
            one.end()
        if processes:
            timer = threading.Timer(GRACE, _kill, [processes])  # only these, since the exit handler may run by then
            timer.daemon = True
            timer.start()

    def kill(self) -> None:
        """Kill the processes that still run."""
        with self._changed:
            processes = [one for one in self._running.values() if one is not None]
        _kill(processes)


class _Spawned:
    """The engine's command that runs a step's container, with the attributes of `Forked`."""

    def __init__(self, command: Sequence[str], environment: dict[str, str]) -> None:
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


class _Process:
    """A step's process, or the engine's command that runs the step's container.

    Args:
        process: The process.
        container: Engine and name of the container; empty for none.
    """

    def __init__(self, process: Forked | _Spawned, container: Sequence[str]) -> None:
        self.process, self.container = process, container
        self._ended = False

    def wait(self) -> int:
        code = self.process.wait()
        self._ended = True
        return code

    def end(self) -> None:
        if self.container:
            engine, name = self.container
            self._engine([engine, "stop", "--time", f"{GRACE:.0f}", name])
        else:
            self._signal(signal.SIGTERM)

    def kill(self) -> None:
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


def _kill(processes: Sequence[_Process]) -> None:
    for one in processes:
        one.kill()


def _meaning(code: int, container: bool) -> str:
    meanings = {137: ": killed, most often for want of memory", -9: ": killed, most often for want of memory"}
    if container:
        meanings |= {
            125: ": the engine could not start its container",
            126: ": its command cannot be executed",
            127: ": its command is not in the image",
        }
    return meanings.get(code, "")


def free_memory() -> float:
    """Return the bytes of memory that processes can still use on this machine.

    In a container, the limit of the control group applies, too.
    """
    free = float(psutil.virtual_memory().available)
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        with contextlib.suppress(OSError, ValueError):  # no such group, or "max"
            free = min(free, int(Path(limit).read_text()) - int(Path(used).read_text()))
    return free


def at_a_time() -> int:
    """Return how many steps can run on this machine at the same time: one per core, or one if there are GPUs.

    A training takes all GPUs of a machine.
    """
    if any(Path("/dev").glob("nvidia[0-9]*")):
        return 1
    return cores.available()


@contextlib.contextmanager
def running(steps: Steps, runner: Any, root: Path, stopped: str) -> Iterator[None]:
    """Run pipelines that are called within the block on this machine.

    SIGTERM and Ctrl-C also end the steps' processes, which have `GRACE` seconds to save their state. A second signal
    does not wait.

    Args:
        steps: The object that starts the steps' processes.
        runner: A runner of kfp.local.
        root: Folder for the artefacts, which is emptied first.
        stopped: Error message if a step fails.

    Raises:
        InputError: A step failed.
    """
    shutil.rmtree(root, ignore_errors=True)
    replaced: list[tuple[Any, str, Any]] = [
        (kfp_dag, "run_enhanced_dag", lambda **given: _run_dag(steps, **given)),
        (subprocess_task_handler.SubprocessTaskHandler, "run", _subprocess),
        (logging_utils, "local_logger_context", contextlib.nullcontext),
        (logging_utils, "indented_print", contextlib.nullcontext),
        (logging_utils, "print_horizontal_line", lambda: None),
        (logging_utils, "color_text", lambda text, color: text),
    ]
    with contextlib.ExitStack() as undo, warnings.catch_warnings():
        # Images, display names and the like have no effect without a cluster, and kfp warns about them in every step.
        warnings.filterwarnings("ignore", "You may be attemping to run a task", RuntimeWarning)
        warnings.filterwarnings("ignore", "Task '.*': settings", UserWarning)
        for owner, name, new in replaced:
            undo.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, new)
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGHUP):
                undo.callback(signal.signal, number, signal.signal(number, _leave))
        log = logging.getLogger()
        log.addFilter(_untold)
        undo.callback(log.removeFilter, _untold)
        local.init(runner, pipeline_root=str(root))
        try:
            yield
        except RuntimeError:  # kfp's message only repeats the name of the step
            raise InputError(stopped) from None
        finally:
            steps.kill()


def _untold(record: logging.LogRecord) -> bool:
    """Filter out kfp's message about a failed step, since the failure has been printed already."""
    return "finished with status" not in record.getMessage()


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _subprocess(handler: Any) -> Status:
    """Replace SubprocessTaskHandler.run: start a process of this environment."""
    command = subprocess_task_handler.replace_python_executable(handler.full_command, sys.executable)
    return run(command, handler.env_vars)


def _run_dag(
    steps: Steps,
    *,
    dag_component_spec: Any,
    components: dict[str, Any],
    dag_arguments: dict[str, Any],
    fail_stack: list[str],
    parent_io_store: io.IOStore | None = None,
    **shared: Any,
) -> tuple[dict[str, Any], Status]:
    """Replace kfp's run_enhanced_dag: run each task of a DAG as soon as the tasks that it depends on have ended.

    If a task fails, the others are stopped and only the exit handler runs. `ignore_upstream_failure` is not supported.

    Args:
        steps: The object that starts the steps' processes.
        dag_component_spec: As in kfp's function.
        components: As in kfp's function.
        dag_arguments: As in kfp's function.
        fail_stack: As in kfp's function.
        parent_io_store: As in kfp's function.
        **shared: The other arguments of kfp's function, which are passed on to every task.

    Returns:
        The DAG's outputs, and whether it succeeded.
    """
    dag = dag_component_spec.dag
    store = io.IOStore(parent=parent_io_store)
    given = OrchestratorUtils.join_user_inputs_and_defaults(dag_arguments, dag_component_spec.input_definitions)
    for key, value in given.items():
        store.put_parent_input(key, value)
    shared |= {"components": components, "io_store": store, "fail_stack": fail_stack}
    place = shared["pipeline_resource_name"]

    def execute(task: Task, name: str) -> Status:
        specification = dag.tasks[name]
        current.set(task)
        try:
            if specification.WhichOneof("iterator"):
                failed = kfp_dag._run_parallel_for_task(
                    task_name=name,
                    task_spec=specification,
                    parallel_executor=kfp_dag.ParallelExecutor(),
                    **shared,
                )
                return Status.FAILURE if failed else Status.SUCCESS
            outputs, status = kfp_dag.execute_task(task_name=name, task_spec=specification, **shared)
        finally:
            steps.unqueue(task)
        for key, value in outputs.items():
            store.put_task_output(name, key, value)
        return status

    exits = {name for name, task in dag.tasks.items() if kfp_dag._has_task_final_status_input(task)}
    before = graph_utils.build_dependency_map(dict(dag.tasks))
    to_do = [name for name in reversed(graph_utils.topological_sort(before)) if name not in exits]
    failed = False
    with ThreadPoolExecutor(len(dag.tasks), "task") as pool:
        running: dict[Future[Status], str] = {}

        def start(names: Sequence[str]) -> None:
            tasks = {}
            for name in names:
                condition = dag.tasks[name].trigger_policy.condition
                if condition and not kfp_dag.ConditionEvaluator.evaluate_condition(condition, store):
                    steps.plan.left_out(_leaves(dag.tasks[name], components))
                else:
                    tasks[name] = Task(steps, _shown(dag.tasks[name], place), last=name in exits)
            steps.queue([task for name, task in tasks.items() if not _inner(dag.tasks[name], components)])
            running.update({pool.submit(execute, task, name): name for name, task in tasks.items()})

        def ended() -> None:
            nonlocal failed
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                name, status = running.pop(future), future.result()
                store.put_task_status(name, "SUCCEEDED" if status == Status.SUCCESS else "FAILED")
                if status == Status.FAILURE:
                    failed = True
                    fail_stack.append(name)

        try:
            while running or (to_do and not failed):
                busy = {*to_do, *running.values()}
                ready = [name for name in to_do if not failed and busy.isdisjoint(before[name])]
                to_do = [name for name in to_do if name not in ready]
                start(ready)
                if running:  # conditions may have left out every task that was ready
                    ended()
            for name in exits:
                start([name])
                ended()
        except BaseException as error:
            interrupted = isinstance(error, (KeyboardInterrupt, SystemExit))
            steps.stop("the run was interrupted" if interrupted else "the run failed")
            raise
    if failed:
        return {}, Status.FAILURE
    return OrchestratorUtils.get_dag_outputs(dag_outputs_spec=dag.outputs, io_store=store), Status.SUCCESS


def _shown(task: Any, place: str) -> str:
    """Return a task's name in the log: its name in the UI, and in a loop the number of the iteration, from 1."""
    within = re.findall(r"-iteration-(\d+)", place)
    return "-".join([task.task_info.name, *(str(int(number) + 1) for number in within)])


def _inner(task: Any, components: dict[str, Any]) -> list[Any]:
    """Return the tasks within a task; none for a step."""
    return list(components[task.component_ref.name].dag.tasks.values())


def _leaves(task: Any, components: dict[str, Any]) -> list[str]:
    """Return the names of the steps within a task, or the task's own name if it is a step."""
    inner = _inner(task, components)
    return [leaf for one in inner for leaf in _leaves(one, components)] or [task.task_info.name]
