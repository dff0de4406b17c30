"""The file of the state: nothing is acknowledged before it is durable, and writers do not undo each other's changes."""

import json
import threading

import pytest

from pipelines.events import batch, state
from pipelines.events.batch import Arrival, State
from pipelines.events.scope import Scope
from pipelines.events.state import FILE, BusyError, Store
from thyroid import storage
from thyroid.errors import InputError

SCOPE = Scope.of({"scans": "gs://b/scans"})


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(state, "PAUSE", 0.0)


def adding(number: int) -> state.Change:
    arrival = Arrival(f"gs://b/scans/B_{number}-1-1.0.jpg", "1")
    return lambda one: batch.add(one, [arrival], SCOPE, 1000.0)


def scans(place: str) -> int:
    return len(json.loads(storage.at(place).read(FILE)[0])["batch"]["scans"])


def test_what_is_acknowledged_is_there(place):
    store = Store(place)
    after = store.submit(adding(1)).result(30)
    assert scans(place) == len(after.batch.scans) == 1
    store.close()
    assert Store(place).state == after


def test_events_at_the_same_time_are_written_together(tmp_path, monkeypatch):
    store = Store(tmp_path)
    plain, writes, go = store._place.write, [], threading.Event()

    def write(*given):
        go.wait(30)
        writes.append(given)
        plain(*given)

    monkeypatch.setattr(store._place, "write", write)
    futures = [store.submit(adding(number)) for number in range(200)]
    assert not futures[0].done()
    go.set()
    assert [len(one.result(30).batch.scans) for one in futures][-1] == 200
    assert len(writes) <= 2
    store.close()


def test_several_listeners_do_not_undo_each_others_changes(place, monkeypatch):
    stores = [Store(place) for _ in range(3)]
    futures = [stores[number % 3].submit(adding(number)) for number in range(30)]
    for one in futures:
        one.result(60)
    assert scans(place) == 30
    assert all(len(one.update(lambda same: same).batch.scans) == 30 for one in stores), "each sees all of it"
    for one in stores:
        one.close()


def test_what_another_listener_has_dropped_counts_again(place):
    """A listener must not take an event for known because of what it remembers."""
    first, second = Store(place), Store(place)
    patience = batch.Patience(minimum=1)
    first.submit(adding(1)).result(30)
    sealed = second.update(lambda one: batch.seal(one, patience, 1000.0)).sealed
    assert sealed is not None
    second.update(lambda one: batch.drop(one, sealed))
    assert scans(place) == 0
    first.submit(adding(1)).result(30)
    assert scans(place) == 1
    first.close()
    second.close()


def test_a_write_whose_answer_is_lost_is_not_made_twice(gcs):
    store = Store(gcs.address("listen"))
    lost = iter(["lost"])
    gcs.proxy.rule = lambda method, path: next(lost, None) if method == "POST" else None
    assert len(store.submit(adding(1)).result(30).batch.scans) == 1
    assert gcs.proxy.faults == 1
    store.close()


def test_what_cannot_be_written_is_not_acknowledged_and_changes_nothing(bucket, monkeypatch):
    monkeypatch.setattr(storage.client, "PATIENCE", 0.2)
    place = bucket.address("listen")
    store = Store(place)
    store.submit(adding(1)).result(30)
    bucket.proxy.rule = lambda method, path: "503"
    failing = store.submit(adding(2))
    with pytest.raises(InputError):
        failing.result(30)
    assert len(store.state.batch.scans) == 1
    bucket.proxy.rule = lambda method, path: None
    assert len(store.submit(adding(3)).result(30).batch.scans) == 2
    store.close()


def test_a_change_that_fails_takes_no_other_process_down(tmp_path):
    store = Store(tmp_path)

    def broken(_: State) -> State:
        raise RuntimeError("a mistake of ours")

    with pytest.raises(InputError, match="cannot be written"):
        store.submit(broken).result(30)
    store.submit(adding(1)).result(30)
    store.close()
    assert scans(str(tmp_path)) == 1


def test_what_waits_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(state, "PENDING", 3)
    store = Store(tmp_path)
    go = threading.Event()

    def slow(one: State) -> State:
        go.wait(30)
        return one

    first = store.submit(slow)
    while not first.running():
        pass
    waiting = [store.submit(adding(number)) for number in range(3)]
    with pytest.raises(BusyError):
        store.submit(adding(9))
    go.set()
    for one in waiting:
        one.result(30)
    store.close()
    assert scans(str(tmp_path)) == 3


@pytest.mark.parametrize("text", ["{", "[]", '{"batch": 7}', '{"seen": ["a"]}'])
def test_a_file_that_is_no_state_is_named(tmp_path, text):
    (tmp_path / FILE).write_text(text)
    with pytest.raises(InputError, match=FILE):
        Store(tmp_path)


def test_a_file_that_becomes_none_is_not_replaced(tmp_path):
    store = Store(tmp_path)
    store.submit(adding(1)).result(30)
    (tmp_path / FILE).write_text('{"batch": 7}')
    for number in (2, 3):
        with pytest.raises(InputError, match="field batch"):
            store.submit(adding(number)).result(30)
    assert (tmp_path / FILE).read_text() == '{"batch": 7}'
    store.close()


def test_fields_of_a_newer_release_are_ignored(tmp_path):
    (tmp_path / FILE).write_text('{"seen": {"a": "b"}, "colour": "blue"}')
    store = Store(tmp_path)
    assert store.state.seen == {"a": "b"}
    store.close()


def test_one_leader_at_a_time(place, monkeypatch):
    monkeypatch.setattr(storage.lease, "POLL", 0.05)
    first, second = Store(place), Store(place)
    taken = threading.Event()

    def lead() -> None:
        with second.leading() as require_held:
            require_held()
            taken.set()

    with first.leading() as require_held:
        require_held()
        other = threading.Thread(target=lead, daemon=True)
        other.start()
        assert not taken.wait(0.3)
    assert taken.wait(30)
    other.join()
    first.close()
    second.close()
