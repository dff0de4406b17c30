"""The steps of a pipeline side by side on this machine, with tiny steps that kfp.local really runs."""

import builtins
import itertools
import logging
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest
from kfp import dsl, local
from kfp.dsl import PipelineTaskFinalStatus
from kfp.local import logging_utils

from pipelines.local import dag, machine
from pipelines.local import steps as side
from pipelines.local.plan import Pace, Plan, Planned
from thyroid.errors import InputError

WAIT = 60.0
"""Seconds after which what does not come is given up."""


SCRIPT = """
import pathlib, signal, sys, time
action, folder, name, other, output = sys.argv[1:6]
place, until = pathlib.Path(folder), time.monotonic() + %r
if action == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
(place / f"{name}.begun").write_text(str(time.monotonic()))
print(f"{name} works\\n")
while other and not (place / f"{other}.begun").exists():
    if time.monotonic() > until:
        sys.exit(f"{other} never began")
    time.sleep(0.01)
if action == "fail":
    sys.exit("this step cannot do it")
pathlib.Path(output).parent.mkdir(parents=True, exist_ok=True)
pathlib.Path(output).write_text(name)
(place / f"{name}.ended").write_text(str(time.monotonic()))
"""


@dsl.container_component
def act(folder: str, name: str, done: dsl.OutputPath(str), action: str = "work", meets: str = ""):
    """Leave a mark of the beginning, wait for that of another step if one is named, and leave a mark of the end."""
    # the text makes kfp.local take it: see components/step.py
    return dsl.ContainerSpec(
        image="python",
        command=["python3", "-c", SCRIPT % (4 * WAIT)],
        args=[action, folder, name, meets, done, "kfp.dsl.executor_main"],
    )


@dsl.component(base_image="python", install_kfp_package=False)
def last(folder: str, status: PipelineTaskFinalStatus):
    """The exit handler."""
    import os
    import pathlib

    (pathlib.Path(folder) / "last").write_text(status.state)
    (pathlib.Path(folder) / "failed").write_text(os.environ["THYROID_FAILED_STEP"])


def steps(*planned: Planned, pace: float = 0.0) -> side.Steps:
    return side.Steps(Plan(planned, pace=Pace(others=pace)), 2, 1e9)


def go(pipeline, tmp_path: Path, started: side.Steps, **arguments) -> None:
    runner = local.SubprocessRunner(use_venv=False)
    with dag.running(started, runner, tmp_path / "pipeline", "stopped"):
        pipeline(folder=str(tmp_path), **arguments)


def at(tmp_path: Path, mark: str) -> float:
    return float((tmp_path / mark).read_text())


@dsl.pipeline
def diamond(folder: str):
    final = last(folder=folder)
    with dsl.ExitHandler(final):
        first = act(folder=folder, name="first").set_display_name("the first")
        with dsl.If(first.outputs["done"] == "first"):
            left = act(folder=folder, name="left", meets="right").set_display_name("on the left")
            right = act(folder=folder, name="right", meets="left")
            act(folder=folder, name="then").after(left, right)
        with dsl.Else():
            act(folder=folder, name="otherwise")


def test_steps_run_side_by_side_and_after_those_before_them(tmp_path, capfd):
    def surroundings() -> tuple:
        log = logging.getLogger()
        decorations = logging_utils.local_logger_context, logging_utils.indented_print
        return log.handlers[:], log.level, builtins.print, signal.getsignal(signal.SIGTERM), *decorations

    before = surroundings()
    go(diamond, tmp_path, steps())
    assert surroundings() == before
    assert max(at(tmp_path, "left.begun"), at(tmp_path, "right.begun")) < min(
        at(tmp_path, "left.ended"), at(tmp_path, "right.ended")
    )
    assert at(tmp_path, "first.ended") < min(at(tmp_path, "left.begun"), at(tmp_path, "right.begun"))
    assert at(tmp_path, "then.begun") > max(at(tmp_path, "left.ended"), at(tmp_path, "right.ended"))
    assert not (tmp_path / "otherwise.begun").exists()
    assert (tmp_path / "last").read_text() == "SUCCEEDED"
    assert (tmp_path / "failed").read_text() == ""


@pytest.mark.parametrize(("cores", "memory"), [(1, 1e9), (2, 1.5e9)])
def test_never_more_than_cores_and_memory_allow(tmp_path, cores, memory):
    """Each of both would wait for the other if it were there; one that declares more than there is runs, but alone."""

    @dsl.pipeline
    def pair(folder: str):
        with dsl.ExitHandler(last(folder=folder)):
            for name in ("one", "two", "three"):
                act(folder=folder, name=name).set_display_name(name)

    each = [Planned("one", 1.0, 1e9), Planned("two", 3.0, 1e9), Planned("three", 2.0, 9e9)]
    go(pair, tmp_path, side.Steps(Plan(each, pace=Pace(others=1.0)), cores, memory))
    order = ["two", "three", "one"]  # the longest first
    for before, after in itertools.pairwise(order):
        assert at(tmp_path, f"{before}.ended") < at(tmp_path, f"{after}.begun")


def test_the_log_names_the_steps_and_holds_nothing_of_kfp(tmp_path, capfd):
    go(
        diamond,
        tmp_path,
        side.Steps(Plan([Planned("the first", 1.0), Planned("on the left", 1.0)], pace=Pace(others=1.0)), 2, 1e9),
    )
    # kfp logs this for components with source text, and these have none
    lines = [line for line in capfd.readouterr().out.splitlines() if not line.startswith("last  ")]
    said = "\n".join(lines)
    assert "the first   | first works" in lines
    assert any(
        re.fullmatch(r"\d of \d steps done(, about .* left)? \(on the left took \d+ s\)", line) for line in lines
    )
    assert lines[-1].startswith("5 of 5 steps done (last took ")
    assert all(line.strip() for line in lines)
    for noise in ("\033", "\r", "INFO", "Streamed", "----", "SUCCESS"):
        assert noise not in said


@dsl.pipeline
def failing(folder: str, action: str):
    with dsl.ExitHandler(last(folder=folder)):
        act(folder=folder, name="failing", action="fail", meets="long").set_display_name("fail")
        long = act(folder=folder, name="long", meets="nobody", action=action).set_display_name("long")
        act(folder=folder, name="after").after(long)


@pytest.mark.parametrize("action", ["work", "stubborn"])
def test_a_step_that_fails_stops_those_beside_it_and_the_exit_handler_still_runs(tmp_path, capfd, monkeypatch, action):
    """One that does not heed SIGTERM is killed."""
    monkeypatch.setattr(side, "GRACE", 0.2 if action == "stubborn" else WAIT)
    began, before = time.monotonic(), psutil.Process().children(recursive=True)
    with pytest.raises(InputError, match="stopped"):
        go(failing, tmp_path, steps(), action=action)
    assert time.monotonic() - began < 2 * WAIT
    said, errors = capfd.readouterr()
    assert not errors
    assert "this step cannot do it" in said
    assert re.search(r"^fail \| .*\b1\b", said, re.MULTILINE)
    assert re.search(r"^long \| .*\bfail\b", said, re.MULTILINE)
    assert (tmp_path / "last").read_text() == "FAILED"
    assert (tmp_path / "failed").read_text() == "fail"
    assert not (tmp_path / "long.ended").exists()
    assert not (tmp_path / "after.begun").exists()
    assert psutil.Process().children(recursive=True) == before


@dsl.component(base_image="python", install_kfp_package=False)
def gather(folder: str, names: list):
    """Write down what the steps of a loop answered."""
    import pathlib

    (pathlib.Path(folder) / "gathered").write_text(" ".join(names))


def test_the_steps_of_a_loop_run_side_by_side_and_what_they_answer_is_collected(tmp_path, capfd):
    @dsl.pipeline
    def pipeline(folder: str):
        with dsl.ParallelFor(["1", "2"], name="each") as number:
            one = act(folder=folder, name=number, meets="2").set_display_name("one")
        gather(folder=folder, names=dsl.Collected(one.outputs["done"]))

    go(pipeline, tmp_path, steps())
    assert (tmp_path / "gathered").read_text() == "1 2"
    said = capfd.readouterr().out
    assert "one-1 | 1 works" in said
    assert "one-2 | 2 works" in said


def test_memory_that_is_free():
    assert 0 < machine.free_memory() <= psutil.virtual_memory().total


LOOP = """
from kfp import dsl, local
from tests.pipelines.test_local import act, last, steps
from pipelines.local import dag
from pathlib import Path
import sys
folder = sys.argv[1]

@dsl.pipeline
def loop(folder: str):
    with dsl.ExitHandler(last(folder=folder)):
        with dsl.ParallelFor(["1", "2"], name="each") as number:
            act(folder=folder, name=number, meets="nobody").set_display_name("wait")

with dag.running(steps(), local.SubprocessRunner(use_venv=False), Path(folder) / "pipeline", "stopped"):
    loop(folder=folder)
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_an_interrupted_run_leaves_nothing_behind(tmp_path, number, code):
    """The steps of a loop, too, whose threads are kfp's."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(LOOP), str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    until = time.monotonic() + WAIT
    while not all((tmp_path / f"{one}.begun").exists() for one in "12"):
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.05)
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 2
    process.send_signal(number)
    said, _ = process.communicate(timeout=WAIT)
    assert process.returncode in (code, -number)
    assert sorted(re.findall(r"^(wait-\d) \| .*\binterrupted\b", said, re.MULTILINE)) == ["wait-1", "wait-2"]
    assert not psutil.wait_procs(children, timeout=WAIT)[1]
    assert not (tmp_path / "last").exists()
