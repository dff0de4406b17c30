"""The shared study: workers side by side, and workers that are killed."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState

from thyroid.errors import InputError
from thyroid.storage import lease, mirror
from thyroid.sweep import studies

SPACE = {"x": FloatDistribution(0, 1), "kind": CategoricalDistribution(("a", "b"))}


def shared(folder: Path, **options) -> studies.Shared:
    return studies.Shared(folder, "test", options.pop("space", SPACE), **options)


def work(folder: Path, wanted: int, seconds: float = 0.0) -> None:
    """A worker whose trials take a while; each leaves a mark as soon as it is taken."""
    study = shared(folder)
    with studies.worker(folder) as me:
        while (trial := study.ask(wanted, me)) is not None:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"taken-{trial.number}").touch()
            time.sleep(seconds)
            study.study.tell(trial, trial.params["x"])


def start(folder: Path, wanted: int, seconds: float = 0.0) -> multiprocessing.Process:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # Optuna is imported once for all of them
    process = context.Process(target=work, args=(folder, wanted, seconds))
    process.start()
    return process


def kill(process: multiprocessing.Process) -> None:
    os.kill(process.pid, signal.SIGKILL)
    process.join()


def until(condition) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_workers_share_a_number_of_trials(tmp_path):
    workers = [start(tmp_path, 20, 0.01) for _ in range(3)]
    for one in workers:
        one.join()
        assert one.exitcode == 0
    trials = shared(tmp_path).trials()
    assert len(trials) == 20
    assert {one.state for one in trials} == {TrialState.COMPLETE}
    assert not list((tmp_path / "workers").iterdir())
    work(tmp_path, 20)
    assert len(shared(tmp_path).trials()) == 20, "nothing is left to do"
    work(tmp_path, 22)
    assert len(shared(tmp_path).trials()) == 22


def test_a_worker_alone_repeats_its_proposals_also_after_a_break(tmp_path):
    work(tmp_path / "one", 15)
    work(tmp_path / "two", 6)
    work(tmp_path / "two", 15)
    one, two = ([t.params for t in shared(tmp_path / name).trials()] for name in ("one", "two"))
    assert one == two


def test_killed_workers_lose_no_trial_and_double_none(tmp_path):
    """Kill -9 a worker in the middle of a trial, three times, while another worker lives on."""
    first = shared(tmp_path)
    first.enqueue([{"x": 0.25, "kind": "a"}, {"x": 0.75, "kind": "b"}])
    first.enqueue([{"x": 0.25, "kind": "a"}, {"x": 0.75, "kind": "b"}])
    assert len(first.trials()) == 2, "enqueued once"
    doomed = start(tmp_path, 12, 600)
    until((tmp_path / "taken-0").exists)
    other = start(tmp_path, 12, 600)
    until((tmp_path / "taken-1").exists)
    study = shared(tmp_path)
    with studies.worker(tmp_path) as me:
        mine = study.ask(12, me)
        assert mine.number == 2, "the trials of the living are left alone"
        study.study.tell(mine, 0.5)
    kill(doomed)
    kill(other)
    work(tmp_path, 12)
    trials = shared(tmp_path).trials()
    states = [one.state for one in trials]
    assert states.count(TrialState.COMPLETE) == 12
    assert states.count(TrialState.FAIL) == 2
    assert len(states) == 14
    again = {one.user_attrs["again"]: one for one in trials if "again" in one.user_attrs}
    assert sorted(again) == [0, 1]
    for number, one in again.items():
        assert one.params == trials[number].params
        assert one.state == TrialState.COMPLETE
    assert again[0].user_attrs["first"], "what the others are held against stays that"
    assert "first" not in again[1].user_attrs


def test_a_trial_that_kills_its_workers_is_tried_twice(tmp_path):
    shared(tmp_path).enqueue([{"x": 0.25, "kind": "a"}])
    for number in range(2):
        doomed = start(tmp_path, 5, 600)
        until((tmp_path / f"taken-{number}").exists)
        kill(doomed)
    work(tmp_path, 5)
    trials = shared(tmp_path).trials()
    assert [one.params["x"] == 0.25 for one in trials] == [True, True] + [False] * 5
    assert [one.state for one in trials] == [TrialState.FAIL] * 2 + [TrialState.COMPLETE] * 5


def test_half_a_line_is_cut_off(tmp_path):
    work(tmp_path, 3)
    journal = tmp_path / "journal.log"
    whole = journal.read_bytes()
    journal.write_bytes(whole + b'{"op_code":5,"wor')
    assert len(shared(tmp_path).trials()) == 3, "and it is read as it was"
    work(tmp_path, 5)
    assert journal.read_bytes().startswith(whole)
    assert [one.state for one in shared(tmp_path).trials()] == [TrialState.COMPLETE] * 5


def test_a_damaged_journal_is_told(tmp_path):
    work(tmp_path, 3)
    journal = tmp_path / "journal.log"
    lines = journal.read_bytes().splitlines(keepends=True)
    lines[4] = b'{"op_code":\n'
    journal.write_bytes(b"".join(lines))
    with pytest.raises(InputError, match=r"journal\.log"):
        shared(tmp_path)


def test_another_space_is_refused(tmp_path):
    work(tmp_path, 1)
    with pytest.raises(InputError, match=r"\bx\b"):
        shared(tmp_path, space=SPACE | {"x": FloatDistribution(0, 2)})


def test_what_falls_behind_is_pruned_but_not_the_first(tmp_path):
    study = shared(tmp_path, warmup=2)
    study.enqueue([{"x": 0.0, "kind": "a"}])
    with studies.worker(tmp_path) as me:
        for number in range(8):
            trial = study.ask(9, me)
            for step in (1, 2):
                trial.report(0.5 + number / 100, step)
            study.study.tell(trial, 0.5)
        trial = study.ask(9, me)
        trial.report(0.1, 1)
        assert not trial.should_prune(), "not in the first fold"
        trial.report(0.1, 2)
        assert trial.should_prune()
        study.study.tell(trial, state=TrialState.PRUNED)
        assert study.ask(9, me) is None, "a pruned trial is a finished one"
    assert optuna.logging.get_verbosity() >= optuna.logging.WARNING


def in_pod(place: str, cache: str, wanted: int, seconds: float) -> None:
    """A worker with a cache of its own."""
    os.environ["XDG_CACHE_HOME"] = cache
    lease.POLL = 0.05
    work(mirror.mirror(place), wanted, seconds)


def start_pod(place: str, cache: Path, wanted: int, seconds: float = 0.0) -> multiprocessing.process.BaseProcess:
    process = multiprocessing.get_context("spawn").Process(target=in_pod, args=(place, str(cache), wanted, seconds))
    process.start()
    return process


def test_workers_in_pods_without_a_volume_share_a_study(bucket, tmp_path, monkeypatch):
    """Two finish their trials, one is killed; the trial of that one is made again by another."""
    place = bucket.address("sweeps/study")
    monkeypatch.setattr(lease, "POLL", 0.05)
    monkeypatch.setattr(studies, "_PAUSE", 0.05)
    study = shared(mirror.mirror(place))
    study.enqueue([{"x": 0.25, "kind": "a"}])
    doomed = start_pod(place, tmp_path / "one", 6, 600)
    until(lambda: any(trial.params and studies.WORKER in trial.user_attrs for trial in study.trials()))
    os.kill(doomed.pid or 0, signal.SIGKILL)
    doomed.join()
    pods = [start_pod(place, tmp_path / name, 4) for name in ("two", "three")]
    until(lambda: study.finished() >= 3)
    for pod in pods:  # they wait until it is known that the first one is dead
        assert pod.is_alive()
        os.kill(pod.pid or 0, signal.SIGKILL)
        pod.join()
    monkeypatch.setattr(lease, "EXPIRY", 0.5)
    work(mirror.mirror(place), 6)
    states = [trial.state for trial in study.trials()]
    assert states.count(TrialState.COMPLETE) == 6
    assert set(states) == {TrialState.COMPLETE, TrialState.FAIL}
    assert sum(trial.params["x"] == 0.25 for trial in study.trials()) == 2, "that of the killed worker, twice"
    assert study.trials()[0].state == TrialState.FAIL


def test_a_damaged_journal_in_a_bucket_is_told(bucket):
    place = bucket.address("study")
    bucket.put({"study/journal.log": b'{"op_code":\n'})
    with pytest.raises(InputError, match=f"{place}/journal.log: damaged"):
        shared(mirror.mirror(place))
