"""The leader's steps by a clock of the test: what waits, for how long, and what is tried again."""

import socket
import time
from types import SimpleNamespace

import pytest

from pipelines.events import batch, leader, state
from pipelines.events.batch import Arrival, Patience
from pipelines.events.leader import Leader, current
from pipelines.events.scope import Scope
from pipelines.events.start import Pipeline
from pipelines.events.state import Store
from pipelines.kubeflow import host as hosts
from pipelines.kubeflow.host import Connection
from tests.support.kubeflow import Kubeflow
from thyroid import storage
from thyroid.errors import InputError

MINUTE = 60.0


@pytest.fixture
def lab(gcs, tmp_path, host, package, monkeypatch):
    """A leader by itself, its clock, and how scans arrive."""
    monkeypatch.setattr(storage.client, "PATIENCE", 0.1)
    monkeypatch.setattr(state, "PAUSE", 0.0)
    scope = Scope.of({"scans": gcs.address("scans")})
    store = Store(tmp_path / "state")
    pipeline = Pipeline(package, {"scans": "x", "registry": "y"}, Connection(host.url))
    lab = SimpleNamespace(now=1_000_000.0, ticks=0.0, store=store, host=host, gcs=gcs)
    lab.leader = Leader(store, pipeline, Patience(), lambda: lab.now, lambda: lab.ticks)
    lab.held = lambda: None

    def arrive(*numbers: int, exist: bool = True) -> None:
        names = [f"scans/B_{number}-1-1.0.jpg" for number in numbers]
        if exist:
            gcs.put(dict.fromkeys(names, b"jpg"))
        arrivals = [Arrival(gcs.address(name)) for name in names]
        store.submit(lambda one: batch.add(one, arrivals, scope, lab.now)).result(30)

    def step(minutes: float = 0.0) -> float:
        lab.now += minutes * MINUTE
        lab.ticks += minutes * MINUTE
        return lab.leader.step(lambda: lab.held())

    lab.arrive, lab.step = arrive, step
    yield lab
    store.close()


def test_a_batch_waits_for_quiet_then_for_its_run(lab):
    lab.arrive(1)
    lab.step(14)
    lab.arrive(2)
    assert lab.step(14) == leader.POLL
    assert lab.store.state.sealed is None
    assert lab.step(1) == 0.0, "it is checked"
    assert lab.step() == leader.POLL, "it is started"
    assert len(lab.host.runs) == 1
    lab.host.states = [{"state": "RUNNING"}]
    lab.arrive(*range(3, 203))
    for _ in range(5):
        assert lab.step(60) == leader.RUN_POLL
    assert len(lab.host.runs) == 1
    lab.host.states = [{"state": "FAILED"}]
    assert lab.step() == 0.0
    lab.step()
    lab.step()
    assert len(lab.host.runs) == 2, "there are more scans than the minimum"


def test_enough_scans_do_not_wait(lab):
    lab.arrive(*range(100))
    lab.step()
    lab.step()
    assert len(lab.host.runs) == 1


def test_a_trickle_does_not_wait_for_ever(lab):
    for number in range(24 * 6):
        lab.arrive(number % 50)
        lab.now += 10 * MINUTE
        lab.arrive(1000 + number % 40)
        lab.step()
        if lab.host.runs or lab.store.state.sealed:
            break
    lab.step()
    lab.step()
    assert len(lab.host.runs) == 1


def test_a_bucket_that_answers_503_for_an_hour(lab):
    lab.arrive(1)
    lab.gcs.proxy.rule = lambda method, path: "503"
    lab.step(0)
    for _ in range(12):
        lab.now += 5 * MINUTE
        if lab.store.state.sealed is None and not batch.is_ready(lab.store.state, Patience(), lab.now):
            continue
        with pytest.raises(InputError):
            lab.step()
        lab.arrive(2, exist=False)
    assert lab.store.state.sealed.scans == {lab.gcs.address("scans/B_1-1-1.0.jpg"): ""}
    assert not lab.host.runs
    lab.gcs.proxy.rule = lambda method, path: None
    lab.step()
    lab.step()
    assert len(lab.host.runs) == 1
    assert len(lab.store.state.batch.scans) == 1, "what came meanwhile is in the next batch"


def test_another_generation_counts_and_the_same_one_does_not(lab):
    def run() -> int:
        lab.step(15)
        for _ in range(4):
            lab.step(1)
        return len(lab.host.runs)

    lab.host.states = [{"state": "SUCCEEDED"}]
    lab.arrive(1)
    assert run() == 1
    lab.arrive(1, exist=False)
    assert run() == 1
    lab.arrive(1)  # written again
    assert run() == 2
    lab.gcs.delete("scans/B_1-1-1.0.jpg")
    lab.arrive(1, exist=False)
    assert run() == 2


def test_a_host_that_did_not_answer_is_given_time_before_it_is_asked(lab):
    lab.arrive(1)
    lab.step(15)
    lab.host.lost = 1
    with pytest.raises(InputError):
        lab.step()
    assert lab.store.state.run.attempted == lab.now
    asked = len(lab.host.calls)
    assert lab.step() == leader.SETTLE
    for hours in (24, -48):  # the clock is set
        lab.now += hours * 60 * MINUTE
        assert lab.step() == leader.SETTLE
    assert lab.step(1) == leader.SETTLE - MINUTE
    assert len(lab.host.calls) == asked
    lab.step(1)
    assert (len(lab.host.runs), lab.store.state.run.id) == (1, "r1")


def test_an_attempt_of_another_listener_is_given_time_however_old_its_note_is(lab):
    """The other one may have waited for the host for minutes before it sent the request."""
    lab.arrive(1)
    lab.step(15)
    name = lab.store.state.run.name
    lab.store.update(lambda one: batch.attempt(one, name, lab.now - 10 * MINUTE))
    assert lab.step() == leader.SETTLE
    assert not lab.host.calls
    lab.step(2)
    assert len(lab.host.runs) == 1


def test_who_is_no_longer_the_leader_starts_nothing(lab):
    lab.arrive(1)
    lab.step(15)

    def lost() -> None:
        raise InputError("lost")

    lab.held = lost
    with pytest.raises(InputError):
        lab.step()
    assert not lab.host.runs
    asked: list[int] = []
    lab.held = lambda: asked.append(len(lab.host.calls))
    lab.step()
    lab.step(2)
    assert lab.host.calls[asked[-1]][:2] == ("POST", "/apis/v2beta1/runs"), "nothing that takes time is in between"


def test_what_a_run_has_covered_is_not_called_new(lab):
    lab.host.states = [{"state": "SUCCEEDED"}]
    lab.arrive(1, 2)
    for _ in range(3):
        lab.step(15)
    assert lab.store.state.run is None
    lab.arrive(1, 2, exist=False)
    lab.arrive(3)
    lab.step(15)
    assert lab.store.state.run.scans == 1


def test_a_run_that_was_deleted_is_over(lab):
    lab.arrive(1)
    lab.step(15)
    lab.step()
    lab.host.states = [{"drop": 404}]
    lab.step()
    assert lab.store.state.run is None


def test_a_batch_beyond_the_limit_gets_a_run_unchecked(lab, monkeypatch):
    monkeypatch.setattr(batch, "MOST_OBJECTS", 1)
    lab.arrive(1, 2, exist=False)
    lab.step(15)
    lab.step()
    assert len(lab.host.runs) == 1


def test_attempts_are_further_and_further_apart_and_not_at_the_same_time(lab):
    pauses = [lab.leader._pause_after("host", InputError("away")) for _ in range(40)]
    assert all(leader.FIRST_PAUSE / 2 <= pause <= leader.LONGEST_PAUSE for pause in pauses)
    assert max(pauses[:3]) < 30 < min(pauses[10:])
    assert len(set(pauses)) == 40


def test_an_error_that_nobody_thought_of_does_not_end_the_leader(lab, monkeypatch):
    steps = iter([RuntimeError("a mistake of ours"), InputError("away")])

    def step(*_) -> float:
        for error in steps:
            raise error
        lab.leader._over.set()
        return 0.0

    monkeypatch.setattr(leader, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(lab.leader, "step", step)
    lab.leader.start()
    lab.leader._thread.join(30)
    assert not lab.leader._thread.is_alive()
    assert next(steps, None) is None


def test_a_host_that_never_answers_does_not_hold_the_leader(lab, monkeypatch):
    silent = socket.create_server(("127.0.0.1", 0))
    with lab.leader._pipeline.connection.client() as client:
        monkeypatch.setattr(hosts, "TIMEOUT", 0.2)
        client.runs.api_client.configuration.host = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(Exception, match="timed out"):
            client.get_run("r1")
    monkeypatch.setattr(hosts, "_check_health", lambda *_: None)  # it answers this, and then no more
    silent_too = Connection(f"http://127.0.0.1:{silent.getsockname()[1]}")
    with pytest.raises(InputError, match="cannot be reached"), silent_too.client():
        pass
    silent.close()


def test_names_that_are_odd_are_found(bucket):
    names = ["a//b.jpg", "a/b c.jpg", "a/é+.jpg", "a/b.jpg.bak"]
    bucket.put(dict.fromkeys(names, b"x"))
    found = current(dict.fromkeys([*(bucket.address(name) for name in names), bucket.address("a/b.jpg")], ""))
    assert set(found) == {bucket.address(name) for name in names}


def test_content_that_comes_back_is_another_generation(bucket):
    address = bucket.address("a.jpg")
    bucket.put({"a.jpg": b"x"})
    first = current({address: ""})
    assert first == current({address: ""})
    bucket.delete("a.jpg")
    assert current({address: ""}) == {}
    time.sleep(1.1)  # dates in S3 have whole seconds
    bucket.put({"a.jpg": b"x"})
    assert current({address: ""}) != first


def test_files_are_found(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"x")
    first = current({str(tmp_path / "a.jpg"): "", str(tmp_path / "b.jpg"): "", str(tmp_path / "a.jpg" / "c"): ""})
    assert set(first) == {str(tmp_path / "a.jpg")}
    assert current({str(tmp_path / ("x" * 300) / "B_1-1-1.0.jpg"): ""}) == {}, "no file can have this name"
    (tmp_path / "a.jpg").write_bytes(b"xy")
    assert current({str(tmp_path / "a.jpg"): ""}) != first


def test_the_page_of_the_host_is_looked_through(host: Kubeflow, package):
    pipeline = Pipeline(package, {"scans": "x", "registry": "y"}, Connection(host.url))
    assert pipeline.find("one") == ""
    made = pipeline.create("one", lambda: None)
    pipeline.create("other", lambda: None)
    assert pipeline.find("one") == made
