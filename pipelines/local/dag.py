"""Replaces kfp.local's walk through a pipeline: steps run in parallel, and nothing of kfp's own logging is printed.

kfp.local (2.17, pinned) runs the tasks of a DAG one after the other. It gives every step its own log handler and its
own `print`, with colour codes. While a pipeline runs here, two parts of kfp.local are replaced. `DagRun` replaces its
walk through a DAG and starts a task as soon as the tasks that it depends on have ended. `Steps.run` replaces the start
of a step's process. The decorations are left out. Conditions, loops, inputs and outputs remain kfp's.
"""

import contextlib
import logging
import re
import shutil
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from types import FrameType
from typing import Any

from kfp import local
from kfp.local import graph_utils, io, logging_utils, subprocess_task_handler
from kfp.local.orchestrator import enhanced_dag_orchestrator as kfp_dag
from kfp.local.orchestrator.orchestrator_utils import OrchestratorUtils
from kfp.local.status import Status

from pipelines.local.steps import Steps, Task, current, run
from thyroid.errors import InputError


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
        log.addFilter(_is_not_about_a_failed_step)
        undo.callback(log.removeFilter, _is_not_about_a_failed_step)
        local.init(runner, pipeline_root=str(root))
        try:
            yield
        except RuntimeError:  # kfp's message only repeats the name of the step
            raise InputError(stopped) from None
        finally:
            steps.kill()


def _is_not_about_a_failed_step(record: logging.LogRecord) -> bool:
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
    """Replace kfp's run_enhanced_dag, whose arguments and result these are; see `DagRun`.

    `shared` holds the other arguments of kfp's function, which are passed on to every task.
    """
    store = io.IOStore(parent=parent_io_store)
    given = OrchestratorUtils.join_user_inputs_and_defaults(dag_arguments, dag_component_spec.input_definitions)
    for key, value in given.items():
        store.put_parent_input(key, value)
    shared |= {"components": components, "io_store": store, "fail_stack": fail_stack}
    walk = DagRun(steps, dag_component_spec.dag, shared)
    if not walk.run():
        return {}, Status.FAILURE
    outputs = dag_component_spec.dag.outputs
    return OrchestratorUtils.get_dag_outputs(dag_outputs_spec=outputs, io_store=store), Status.SUCCESS


class DagRun:
    """One run of a DAG: each task starts as soon as the tasks that it depends on have ended.

    If a task fails, the others are stopped and only the exit handler runs. `ignore_upstream_failure` is not supported.

    Args:
        steps: The object that starts the steps' processes.
        dag: The DAG's specification.
        shared: The arguments of kfp's functions that are the same for all tasks.
    """

    def __init__(self, steps: Steps, dag: Any, shared: dict[str, Any]) -> None:
        """Prepare the run. No task has started."""
        self._steps, self._dag, self._shared = steps, dag, shared
        self._components, self._store = shared["components"], shared["io_store"]
        self._exits = {name for name, task in dag.tasks.items() if kfp_dag._has_task_final_status_input(task)}
        self._before = graph_utils.build_dependency_map(dict(dag.tasks))
        order = reversed(graph_utils.topological_sort(self._before))
        self._to_do = [name for name in order if name not in self._exits]
        self._running: dict[Future[Status], str] = {}
        self._failed = False

    def run(self) -> bool:
        """Run all tasks, and return whether they succeeded."""
        with ThreadPoolExecutor(len(self._dag.tasks), "task") as pool:
            try:
                while self._running or (self._to_do and not self._failed):
                    self._start(pool, self._take_ready())
                    if self._running:  # conditions may have left out every task that was ready
                        self._wait_for_one()
                for name in self._exits:
                    self._start(pool, [name])
                    self._wait_for_one()
            except BaseException as error:
                interrupted = isinstance(error, (KeyboardInterrupt, SystemExit))
                self._steps.stop("the run was interrupted" if interrupted else "the run failed")
                raise
        return not self._failed

    def _take_ready(self) -> list[str]:
        """Remove from the list the tasks that can start now, and return them."""
        busy = {*self._to_do, *self._running.values()}
        ready = [name for name in self._to_do if not self._failed and busy.isdisjoint(self._before[name])]
        self._to_do = [name for name in self._to_do if name not in ready]
        return ready

    def _start(self, pool: ThreadPoolExecutor, names: Sequence[str]) -> None:
        """Start the tasks whose condition is met."""
        tasks = {}
        for name in names:
            specification = self._dag.tasks[name]
            condition = specification.trigger_policy.condition
            if condition and not kfp_dag.ConditionEvaluator.evaluate_condition(condition, self._store):
                self._steps.plan.left_out(_step_names(specification, self._components))
            else:
                shown = _task_name(specification, self._shared["pipeline_resource_name"])
                tasks[name] = Task(self._steps, shown, last=name in self._exits)
        self._steps.queue(
            [task for name, task in tasks.items() if not _tasks_within(self._dag.tasks[name], self._components)]
        )
        self._running.update({pool.submit(self._execute, task, name): name for name, task in tasks.items()})

    def _execute(self, task: Task, name: str) -> Status:
        """Run a task in this thread: a step, a loop or a DAG within this one."""
        specification = self._dag.tasks[name]
        current.set(task)
        try:
            if specification.WhichOneof("iterator"):
                failed = kfp_dag._run_parallel_for_task(
                    task_name=name,
                    task_spec=specification,
                    parallel_executor=kfp_dag.ParallelExecutor(),
                    **self._shared,
                )
                return Status.FAILURE if failed else Status.SUCCESS
            outputs, status = kfp_dag.execute_task(task_name=name, task_spec=specification, **self._shared)
        finally:
            self._steps.unqueue(task)
        for key, value in outputs.items():
            self._store.put_task_output(name, key, value)
        result: Status = status
        return result

    def _wait_for_one(self) -> None:
        """Wait until at least one running task has ended, and record how."""
        for future in wait(self._running, return_when=FIRST_COMPLETED).done:
            name, status = self._running.pop(future), future.result()
            self._store.put_task_status(name, "SUCCEEDED" if status == Status.SUCCESS else "FAILED")
            if status == Status.FAILURE:
                self._failed = True
                self._shared["fail_stack"].append(name)


def _task_name(task: Any, place: str) -> str:
    """Return a task's name in the log: its name in the UI, and in a loop the number of the iteration, from 1."""
    within = re.findall(r"-iteration-(\d+)", place)
    return "-".join([task.task_info.name, *(str(int(number) + 1) for number in within)])


def _tasks_within(task: Any, components: dict[str, Any]) -> list[Any]:
    """Return the tasks within a task; none for a step."""
    return list(components[task.component_ref.name].dag.tasks.values())


def _step_names(task: Any, components: dict[str, Any]) -> list[str]:
    """Return the names of the steps within a task, or the task's own name if it is a step."""
    inner = _tasks_within(task, components)
    return [name for task_within in inner for name in _step_names(task_within, components)] or [task.task_info.name]
