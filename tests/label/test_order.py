"""The order in which frames are read, the queues, and who gets which frame."""

import itertools

import numpy as np
import pytest

from thyroid.label import order
from thyroid.label.consensus import State
from thyroid.label.frames import Frame
from thyroid.label.order import CYCLE, Queue, Ranking, Reason, Reservations, Standing, queue_for, rank
from thyroid.label.proposals import BAND, Proposed


def frame(patient: int, number: int = 1) -> Frame:
    path = f"B_{patient:03d}-{number:04d}-1.0.jpg"
    return Frame(path, path[:16], 100, 80, patient, "B", f"patient-{patient}")


def frames(patients: int, each: int = 1) -> list[Frame]:
    return [frame(patient, number) for patient in range(1, patients + 1) for number in range(1, each + 1)]


def answer(probability: float | None, unsure: bool = False, reasons: tuple[str, ...] = ()) -> Proposed:
    boxes = () if probability is None else (((1, 2, 30, 40), probability),)
    return Proposed(boxes=boxes, unsure=unsure, malignant=0.5, decision="abstain", reasons=reasons, model="1-a")


def patients(ranked: list[Frame]) -> list[int]:
    """Patients in the order in which they come, each once; a patient that comes twice fails."""
    found = [number for number, _ in itertools.groupby(one.patient for one in ranked)]
    assert len(set(found)) == len(found)
    return found


def test_every_frame_comes_once_and_patients_stay_together():
    every = frames(30, 3)
    ranked = rank(every[::-1], set(), {}, {}, 0)
    assert sorted(ranked, key=lambda one: one.path) == every
    assert len(patients(ranked)) == 30
    for start in range(0, len(ranked), 3):
        assert [one.path for one in ranked[start : start + 3]] == sorted(one.path for one in ranked[start : start + 3])


def test_without_a_model_or_a_thumbnail_the_order_is_random_and_depends_on_the_seed_alone():
    every = frames(30)
    first = rank(every, set(), {}, {}, 0)
    assert rank(every[::-1], set(), {}, {}, 0) == first
    assert rank(every, set(), {}, {}, 1) != first
    assert first != every
    done = {one.path for one in first[:10]}
    assert rank(every, done, {}, {}, 0) == first[10:]


def test_a_patient_who_is_begun_comes_first():
    every = frames(10, 2)
    done = {frame(7, 2).path, frame(3, 1).path, frame(3, 2).path}
    ranked = rank(every, done, {}, {}, 0)
    assert ranked[0] == frame(7, 1)
    assert 3 not in patients(ranked)


def test_unsure_patients_have_their_turns_the_least_probable_box_first():
    every = frames(40)
    proposed = {one.path: answer(0.9) for one in every}
    unsure = {11: 0.3, 22: 0.1, 33: 0.2}
    proposed |= {frame(patient).path: answer(p, unsure=True) for patient, p in unsure.items()}
    ranked = patients(rank(every, set(), proposed, {}, 0))
    turns = [place for place in range(10) if CYCLE[place % len(CYCLE)] is Reason.UNSURE]
    by_chance = [one for one in patients(rank(every, set(), {}, {}, 0)) if one not in unsure]
    assert [ranked[place] for place in turns[:3]] == [22, 33, 11]
    assert [one for one in ranked if one not in unsure] == by_chance


def test_a_decision_in_the_band_is_unsure_and_a_low_probability_alone_is_not():
    every = frames(40)
    proposed = {one.path: answer(0.1) for one in every} | {frame(9).path: answer(0.8, reasons=(BAND,))}
    assert rank(every, set(), proposed, {}, 0)[0] == frame(9)
    proposed[frame(9).path] = answer(0.8, reasons=("views_disagree",))
    assert rank(every, set(), proposed, {}, 0) == rank(every, set(), {}, {}, 0)


def test_a_patient_is_as_unsure_as_the_worst_frame():
    every = frames(20, 2)
    proposed = {frame(5, 2).path: answer(0.2, unsure=True), frame(6, 1).path: answer(0.3, unsure=True)}
    proposed |= {frame(5, 1).path: answer(0.95)}
    assert patients(rank(every, set(), proposed, {}, 0))[0] == 5


def axis(place: int, length: float = 1.0) -> np.ndarray:
    out = np.zeros(8, np.float32)
    out[place] = length
    return out


def test_a_patient_unlike_all_labelled_and_chosen_ones_has_the_turn():
    every = frames(30)
    descriptors = {one.path: axis(0) for one in every}
    descriptors |= {frame(13).path: axis(1, 3), frame(14).path: axis(1, 2.9), frame(15).path: axis(2, 2)}
    ranked = patients(rank(every, {frame(1).path}, {}, descriptors, 0))
    turns = [place for place in range(5) if CYCLE[place] is not Reason.RANDOM]
    # 14 lies beside 13, so that 15 is farther from all once 13 is chosen
    assert [ranked[place] for place in turns[:2]] == [13, 15]
    labelled = patients(rank(every, {frame(1).path, frame(13).path}, {}, descriptors, 0))
    assert labelled[0] == 15


def test_patients_without_a_thumbnail_still_come():
    every = frames(12)
    descriptors = {one.path: axis(one.patient % 8) for one in every[:4]}
    assert sorted(patients(rank(every, set(), {}, descriptors, 0))) == list(range(1, 13))


def test_not_only_the_worst_come_while_there_are_unsure_ones():
    every = frames(100)
    proposed = {one.path: answer(one.patient / 1000, unsure=one.patient <= 50) for one in every}
    first = patients(rank(every, set(), proposed, {}, 0))[:20]
    assert 6 <= sum(patient <= 8 for patient in first) <= 14
    assert any(patient > 50 for patient in first)


def test_far_behind_the_order_is_random(monkeypatch):
    every = frames(40)
    monkeypatch.setattr(order, "HORIZON", 5)
    proposed = {one.path: answer(one.patient / 1000, unsure=True) for one in every}
    ranked = patients(rank(every, set(), proposed, {}, 0))
    assert sorted(ranked) == list(range(1, 41))
    assert [one for one in patients(rank(every, set(), {}, {}, 0)) if one not in ranked[:5]] == ranked[5:]


def test_the_order_is_made_again_only_after_enough_has_changed():
    every = frames(100)
    ranking = Ranking(0)
    first = ranking.of(every, set(), {}, {})
    late = first[-1].path
    assert ranking.of(every, set(), {late: answer(0.1, unsure=True)}, {}) == first
    done = {one.path for one in first[:2]}
    assert ranking.of(every, done, {late: answer(0.1, unsure=True)}, {}) == first[2:]
    some = {one.path: answer(0.1, unsure=True) for one in first[-10:]}
    assert ranking.of(every, done, some, {})[0].path in some


def test_an_undone_frame_is_in_the_order_again():
    every = frames(20)
    ranking = Ranking(0)
    first = ranking.of(every, {frame(4).path}, {}, {})
    assert frame(4) not in first
    assert frame(4) in ranking.of(every, set(), {}, {})


@pytest.fixture
def standing() -> Standing:
    every = frames(6)
    states = [State.OPEN, State.SECOND, State.SECOND, State.CONTESTED, State.CONTESTED, State.SINGLE]
    readers = [(), ("ann",), ("bob",), ("ann", "bob"), ("bob", "cid"), ("bob",)]
    return Standing(
        ranked=[every[5], every[0]],
        frames={one.path: one for one in every},
        states={one.path: state for one, state in zip(every, states, strict=True)},
        readers={one.path: who for one, who in zip(every, readers, strict=True)},
        suspects=(frame(6).path, "vanished.jpg", frame(2).path),
        own={"ann": (frame(4).path, frame(2).path)},
    )


@pytest.mark.parametrize(
    ("reader", "queue", "expected"),
    [
        ("ann", Queue.ORDER, [1]),
        ("ann", Queue.SECOND, [3]),
        ("bob", Queue.SECOND, [2]),
        ("ann", Queue.ADJUDICATE, [5, 4]),
        ("dan", Queue.ADJUDICATE, [4, 5]),
        ("ann", Queue.SUSPECTS, [6, 2]),
        ("ann", Queue.REVIEW, [4, 2]),
        ("dan", Queue.REVIEW, []),
    ],
)
def test_queues(standing, reader, queue, expected):
    assert [one.patient for one in queue_for(reader, queue, standing)] == expected


def test_second_readings_do_not_come_in_the_order_of_the_first():
    every = frames(20, 2)
    standing = Standing(
        ranked=[],
        frames={one.path: one for one in every},
        states={one.path: State.SECOND for one in every},
        readers={one.path: ("ann",) for one in every},
    )
    found = queue_for("bob", Queue.SECOND, standing)
    assert len(patients(found)) == 20
    assert found != every
    assert queue_for("ann", Queue.SECOND, standing) == []


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_two_readers_get_different_patients_while_there_are_any():
    every = frames(2, 2)
    reservations = Reservations(Clock())
    assert reservations.take("ann", every) == frame(1, 1)
    assert reservations.take("bob", every) == frame(2, 1)
    assert reservations.take("cid", every) == frame(1, 2)
    assert reservations.take("dan", every) == frame(2, 2)
    assert reservations.take("eve", every) is None


def test_a_reader_keeps_the_frame_and_then_the_patient():
    every = frames(3, 2)
    reservations = Reservations(Clock())
    reservations.take("ann", every)
    assert reservations.take("bob", every) == frame(2, 1)
    assert reservations.take("bob", every[::-1]) == frame(2, 1)
    assert reservations.take("bob", [one for one in every[::-1] if one != frame(2, 1)]) == frame(2, 2)


def test_a_reservation_ends():
    clock = Clock()
    reservations = Reservations(clock)
    reservations.take("ann", [frame(1)])
    clock.now = order.RESERVED - 1
    assert reservations.take("bob", [frame(1)]) is None
    clock.now = order.RESERVED + 1
    assert reservations.take("bob", [frame(1)]) == frame(1)
    assert reservations.take("ann", [frame(1)]) is None
    reservations.release("bob", frame(1).path)
    assert reservations.take("ann", [frame(1)]) == frame(1)


def test_a_reader_who_fetches_the_next_frame_keeps_the_one_before():
    every = frames(3)
    reservations = Reservations(Clock())
    assert reservations.take("ann", every) == frame(1)
    assert reservations.take("ann", every, {frame(1).path}) == frame(2)
    assert reservations.take("bob", every) == frame(3)
    assert reservations.take("cid", every) is None
    assert reservations.take("ann", every) == frame(1), "after a reload"
    assert reservations.take("ann", every, {frame(1).path, frame(2).path}) is None


def test_a_certain_frame_is_kept_for_its_reader():
    reservations = Reservations(Clock())
    reservations.keep("ann", frame(1))
    reservations.keep("bob", frame(1))
    assert reservations.take("bob", [frame(1)]) is None
    assert reservations.take("ann", [frame(1)]) == frame(1)
