"""Several readers of a frame: agreement, contradiction, adjudication, edits by hand, and who reads twice."""

from datetime import UTC, datetime

import pytest

from thyroid.errors import InputError
from thyroid.label.consensus import Consensus, Rules, State, agree
from thyroid.label.frames import Frame
from thyroid.label.readings import Entry, MarkedRegion, Reading, Role, Verdict

FRAME = Frame("B_001-0001-1.0.jpg", "0" * 16, 200, 100, 1, "B", "patient-1")
NOTHING, UNUSABLE = Reading(verdict=Verdict.NONE), Reading(verdict=Verdict.UNUSABLE)


def nodules(*boxes: tuple[int, int, int, int], side: str = "") -> Reading:
    return Reading(
        verdict=Verdict.NODULES,
        regions=tuple(MarkedRegion(x=x, y=y, width=w, height=h) for x, y, w, h in boxes),
        side=side,
    )


ONE = nodules((10, 10, 40, 40))


def entries(*said: tuple[str, Reading | None] | tuple[str, Reading | None, Role]) -> dict[str, Entry]:
    """Entries in the order in which they were made."""
    result = {}
    for number, (reader, reading, *role) in enumerate(said, 1):
        result[reader] = Entry(
            number=number,
            at=datetime.now(UTC),
            reader=reader,
            role=role[0] if role else Role.READER,
            frame=FRAME.path,
            reading=reading,
        )
    return result


def consensus(*said, rules: Rules | None = None) -> Consensus:
    return Consensus.of(FRAME, entries(*said), rules or Rules())


def test_nobody_has_read_it():
    assert consensus() == Consensus(State.OPEN, None, ())
    assert consensus(("Ann", None)) == Consensus(State.OPEN, None, ())


def test_one_reader_suffices_unless_a_second_one_is_due():
    assert consensus(("Ann", ONE)) == Consensus(State.SINGLE, ONE, ("Ann",))
    assert consensus(("Ann", ONE), rules=Rules(second=1)) == Consensus(State.SECOND, ONE, ("Ann",))


@pytest.mark.parametrize(
    ("other", "state"),
    [
        (ONE, State.AGREED),
        (nodules((12, 10, 40, 40)), State.AGREED),
        (nodules((40, 10, 40, 40)), State.CONTESTED),
        (nodules((10, 10, 40, 40), (100, 10, 40, 40)), State.CONTESTED),
        (NOTHING, State.CONTESTED),
        (UNUSABLE, State.CONTESTED),
    ],
)
def test_two_readers(other, state):
    found = consensus(("Ann", ONE), ("Bob", other), rules=Rules(second=1))
    assert found.state is state
    assert found.reading == (ONE if state is State.AGREED else None)
    assert found.readers == ("Ann", "Bob")
    assert consensus(("Bob", other), ("Ann", ONE)).state is state


def test_sides_count_where_both_give_one():
    assert consensus(("Ann", nodules((10, 10, 9, 9), side="B")), ("Bob", nodules((10, 10, 9, 9), side="M"))).state is (
        State.CONTESTED
    )
    found = consensus(("Ann", nodules((10, 10, 9, 9))), ("Bob", nodules((10, 10, 9, 9), side="M")))
    assert found.state is State.AGREED
    assert found.reading == nodules((10, 10, 9, 9), side="M")


def test_one_of_three_who_contradicts_is_enough():
    assert consensus(("Ann", ONE), ("Bob", ONE), ("Cho", NOTHING)).state is State.CONTESTED
    assert consensus(("Ann", ONE), ("Bob", ONE), ("Cho", ONE)).state is State.AGREED


def test_boxes_are_paired_one_to_one():
    # the first box overlaps both of the others enough, the second only one of them: a greedy pairing fails
    left, middle, right = (0, 0, 30, 10), (10, 0, 30, 10), (20, 0, 30, 10)
    assert agree(nodules(middle, left), nodules(left, right), iou=0.3)
    assert agree(nodules(left, right), nodules(middle, left), iou=0.3)
    assert not agree(nodules(left, (100, 0, 30, 10)), nodules(left, middle), iou=0.3)
    assert not agree(nodules(left), nodules(middle), iou=0.51)
    assert agree(nodules(left), nodules(middle), iou=0.5)


def test_the_adjudicator_decides_whatever_readers_say_afterwards():
    found = consensus(("Ann", ONE), ("Eve", NOTHING, Role.ADJUDICATOR), ("Bob", UNUSABLE))
    assert (found.state, found.reading) == (State.FINAL, NOTHING)


def test_the_latest_adjudication_decides():
    found = consensus(("Eve", NOTHING, Role.ADJUDICATOR), ("Fay", ONE, Role.ADJUDICATOR))
    assert (found.state, found.reading) == (State.FINAL, ONE)


def test_an_edit_by_hand_decides_until_the_next_reading():
    before = [("Ann", ONE), ("outside", NOTHING, Role.OUTSIDE)]
    assert consensus(*before) == Consensus(State.FINAL, NOTHING, ("Ann", "outside"))
    assert consensus(*before, ("Bob", UNUSABLE)) == Consensus(State.SINGLE, UNUSABLE, ("Bob",))


def test_an_import_counts_until_somebody_reads():
    imported = ("coco", ONE, Role.IMPORT)
    assert consensus(imported) == Consensus(State.SINGLE, ONE, ("coco",))
    assert consensus(imported, ("Ann", NOTHING)) == Consensus(State.SINGLE, NOTHING, ("Ann",))
    assert consensus(imported, ("Ann", NOTHING), rules=Rules(second=1)).state is State.SECOND


@pytest.mark.parametrize("box", [(161, 10, 40, 40), (10, 61, 40, 40)])
def test_a_reading_of_another_picture_does_not_count(box):
    assert consensus(("Ann", nodules((160, 60, 40, 40)))).state is State.SINGLE
    assert consensus(("Ann", nodules(box))) == Consensus(State.OPEN, None, ())
    assert consensus(("Ann", nodules(box)), ("Bob", ONE)) == Consensus(State.SINGLE, ONE, ("Bob",))


def test_the_draw_of_the_second_reader():
    groups = [f"patient-{n}" for n in range(2000)]
    some, more = ({g for g in groups if Rules(second=share).twice(g)} for share in (0.2, 0.4))
    assert 320 < len(some) < 480
    assert some < more
    assert some != {g for g in groups if Rules(second=0.2, seed=1).twice(g)}
    assert not any(Rules().twice(g) for g in groups)
    assert all(Rules(second=1).twice(g) for g in groups)


@pytest.mark.parametrize(("field", "value"), [("second", -0.1), ("second", 1.1), ("iou", 0), ("iou", 1.5)])
def test_rules_have_ranges(field, value):
    with pytest.raises(InputError, match=field):
        Rules(**{field: value})
