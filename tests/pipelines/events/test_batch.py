"""The state of the listener: what events change, when a batch is ready, and that a change made twice is made once."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.events import batch
from pipelines.events.batch import Arrival, Patience, Run, State
from pipelines.events.scope import Scope
from thyroid.errors import InputError

SCOPE = Scope.of(
    {
        "scans": "gs://b/scans",
        "rois": "gs://b/rois.csv",
        "labels": "",
        "clinical": "gs://b/c.csv#age",
        "descriptors": "gs://b/d.csv#shape,margin=edge",
    }
)
MINUTE, HOUR = 60.0, 3600.0
START = 1_000_000.0


def address(number: int) -> str:
    return f"gs://b/scans/B_{number}-1-1.0.jpg"


def grown(*numbers: int, state: State | None = None, now: float = START, generation: str = "1") -> State:
    arrivals = [Arrival(address(number), generation) for number in numbers]
    return batch.add(state or State(), arrivals, SCOPE, now)


def covered(state: State, present: dict[str, str]) -> State:
    """The state after the run of everything in it."""
    patience = Patience(minimum=1)
    state = batch.seal(state, patience, START)
    assert state.sealed is not None
    state = batch.intend(state, state.sealed, Run(name="one", scans=1), present)
    return batch.end(batch.confirm(batch.attempt(state, "one", START), "one", "r1"), "one")


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("gs://b/scans/B_001-0002-1.0.jpg", True),
        ("gs://b/scans/site/M_001-0002-1.0.JPEG", True),
        ("gs://b/scans/a.dcm", True),
        ("gs://b/scans/dicom.csv", True),
        ("gs://b/rois.csv", True),
        ("gs://b/c.csv", True),
        ("gs://b/d.csv", True),
        ("gs://b/scans/photo.jpg", False),
        ("gs://b/scans/.trash/B_001-0002-1.0.jpg", False),
        ("gs://b/scans2/B_001-0002-1.0.jpg", False),
        ("s3://b/scans/B_001-0002-1.0.jpg", False),
        ("gs://other/scans/B_001-0002-1.0.jpg", False),
        ("/b/scans/../B_001-0002-1.0.jpg", False),
        ("gs://b/scans/\ud800/B_001-0002-1.0.jpg", False),
        ("gs://b/scans/a\nb/B_001-0002-1.0.jpg", False),
        (f"gs://b/scans/{'x' * 999}/B_001-0002-1.0.jpg", True),
        (f"gs://b/scans/{'x' * 1000}/B_001-0002-1.0.jpg", False),
        (f"gs://b/scans/{'é' * 500}/B_001-0002-1.0.jpg", False),
        ("", False),
    ],
)
def test_only_what_the_run_reads_counts(name, counts):
    assert SCOPE.counts(name) is counts


def test_with_a_table_of_labels_names_may_be_any():
    scope = Scope.of({"scans": "gs://b/scans", "labels": "gs://b/labels.csv#tirads"})
    assert scope.counts("gs://b/scans/photo.jpg")
    assert scope.counts("gs://b/labels.csv")


@given(st.lists(st.tuples(st.integers(0, 8), st.sampled_from("123")), max_size=30), st.randoms())
def test_the_order_of_events_and_their_number_change_nothing(events, random):
    """What the batch holds are objects; which generation counts is asked when it is ready."""
    arrivals = [Arrival(address(number), generation) for number, generation in events]
    first = batch.add(State(), arrivals, SCOPE, START)
    more = arrivals + random.sample(arrivals, len(arrivals) // 2)
    random.shuffle(more)
    second = State()
    for one in more:
        second = batch.add(second, [one], SCOPE, START)
    assert first.batch.scans.keys() == second.batch.scans.keys()


def test_a_repeated_event_neither_counts_nor_keeps_the_batch_waiting():
    state = grown(1, 2)
    assert grown(2, 1, state=state, now=START + 10) is state
    newer = grown(2, state=state, now=START + 10, generation="2")
    assert (newer.batch.first, newer.batch.last) == (START, START + 10)


def test_what_a_run_has_covered_counts_again_only_in_another_generation():
    state = covered(grown(1), {address(1): "5"})
    assert grown(1, state=state, generation="5") is state
    assert grown(1, state=state, generation="6").batch.scans == {address(1): "6"}


def test_content_that_was_there_before_and_comes_back_counts():
    """The ETag of S3 is that of the content."""
    state = covered(grown(1, generation="a"), {address(1): "a"})
    state = covered(grown(1, state=state, generation="b"), {address(1): "b"})
    assert grown(1, state=state, generation="a").batch.scans == {address(1): "a"}


def test_a_batch_is_bounded_and_what_is_beyond_is_counted(monkeypatch):
    monkeypatch.setattr(batch, "MOST_OBJECTS", 3)
    state = grown(1, 2, 3, 4, 5)
    assert (len(state.batch.scans), state.batch.more) == (3, 2)
    assert batch.is_ready(state, Patience(minimum=5), START)
    monkeypatch.setattr(batch, "MOST_SEEN", 2)
    state = covered(state, {address(number): "1" for number in (1, 2, 3)})
    assert len(state.seen) == 2
    assert batch.is_covered(state, address(3), "1")


@pytest.mark.parametrize(
    ("scans", "since_first", "since_last", "ready"),
    [
        (1, 0, 0, False),
        (1, 14 * MINUTE, 14 * MINUTE, False),
        (1, 15 * MINUTE, 15 * MINUTE, True),
        (99, 14 * MINUTE, 0, False),
        (100, 0, 0, True),
        (50, 23 * HOUR, 5 * MINUTE, False),
        (50, 24 * HOUR, 5 * MINUTE, True),
        (1, -2 * HOUR, -2 * HOUR, True),  # the clock was set back
    ],
)
def test_when_a_batch_is_ready(scans, since_first, since_last, ready):
    state = grown(*range(scans), now=START)
    grown_on = state.batch.model_copy(update={"last": START + since_first - since_last})
    state = state.model_copy(update={"batch": grown_on})
    assert batch.is_ready(state, Patience(), START + since_first) is ready


def test_nothing_is_ready_without_events_or_while_a_run_is_unfinished():
    assert not batch.is_ready(State(), Patience(), START)
    sealed = batch.seal(grown(1), Patience(minimum=1), START)
    more = grown(2, state=sealed)
    assert batch.seal(more, Patience(minimum=1), START) is more
    assert more.sealed is not None
    running = batch.intend(more, more.sealed, Run(name="one", scans=1), {address(1): "1"})
    assert not batch.is_ready(running, Patience(minimum=1), START)
    assert running.batch.scans == {address(2): "1"}
    assert batch.is_ready(batch.end(running, "one"), Patience(minimum=1), START)


def test_a_change_that_is_made_twice_is_made_once():
    sealed = batch.seal(grown(1), Patience(minimum=1), START)
    checked = sealed.sealed
    assert checked is not None
    again = State.parse(sealed.model_dump(mode="json"), "listen.json")
    assert again == sealed
    intended = batch.intend(again, checked, Run(name="one", scans=1), {})
    assert batch.intend(intended, checked, Run(name="two", scans=1), {}) is intended
    assert batch.drop(intended, checked) is intended
    assert batch.confirm(intended, "two", "r9") is intended
    assert batch.end(intended, "two") is intended
    ended = batch.end(batch.confirm(intended, "one", "r1"), "one")
    assert batch.attempt(ended, "one", START) is ended


@pytest.mark.parametrize("wrong", [{"quiet": 0}, {"minimum": -1}, {"longest": float("nan")}, {"quiet": float("inf")}])
def test_numbers_that_cannot_be_used_are_refused_by_name(wrong):
    with pytest.raises(InputError, match=f"--{next(iter(wrong))}"):
        Patience(**wrong)
