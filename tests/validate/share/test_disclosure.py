"""Attacks on what a site shares: no cell of 1 to 9 patients can be computed from a file, whatever the patients are."""

import itertools

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import Bounds, LinearConstraint, milp
from sklearn.metrics import roc_auc_score

from tests.validate.share.sites import POINT, content, predicted, shared, simulated
from thyroid.data.filenames import SCORE
from thyroid.records.share import SharedArea
from thyroid.validate.share import disclosure, withheld
from thyroid.validate.share.counts import SIDES, Patients


@st.composite
def sites(draw):
    """Patients with their probabilities, and columns of subgroups that may depend on each other and on them."""
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    counts = [draw(st.sampled_from([*range(8, 30), 60, 150, 400])) for _ in range(2)]
    skill, rounded = draw(st.floats(-1, 3)), draw(st.integers(1, 6))
    sides = [generator.normal(middle, 1, n) for middle, n in zip((skill, -skill), counts, strict=True)]
    table = predicted(*(np.round(1 / (1 + np.exp(-side)), rounded) for side in sides))
    number = len(table)
    columns: dict[str, np.ndarray] = {}
    for name in "abc"[: draw(st.integers(0, 3))]:
        kind = draw(st.sampled_from(["free", "score", "nested", "missing"]))
        groups = generator.integers(0, draw(st.integers(2, 6)), number)
        if kind == "score":
            groups = np.digitize(table[SCORE] + generator.normal(0, 0.1, number), [0.2, 0.4, 0.7])
        elif kind == "nested" and columns:
            groups = next(reversed(columns.values())).copy()
            some = generator.choice(number, min(number, draw(st.integers(1, 15))), replace=False)
            groups[some] = generator.integers(0, 4, len(some))
        columns[name] = np.where(generator.random(number) < 0.1, -1, groups) if kind == "missing" else groups
    names = pd.DataFrame(
        {name: [f"g{group}" if group >= 0 else None for group in groups] for name, groups in columns.items()}
    )
    return table, names if columns else pd.DataFrame(index=table.index)


def small(count: int) -> bool:
    return 0 < count < 10


def published(table, names):
    """What the file holds of each side: total, range of called, bins and groups; and the true sets behind them."""
    patients = Patients.count(table, POINT.threshold)
    columns, _ = patients.columns(names)
    for label, word in SIDES.items():
        if (side := patients.side(label)) is None:
            continue
        own = (table["label"] == label).to_numpy()
        score = table[SCORE].to_numpy()[own]
        steps = patients.steps(label)
        groups = {}
        for column in columns:
            kept = {group.group: getattr(group, word) for group in column.groups}
            member = np.array(
                [name if name in kept else "other" for name in names[column.column].to_numpy(object)[own]]
            )
            groups[column.column] = {name: (member == name, counts) for name, counts in kept.items()}
        yield score, side, steps, groups


def sets(score, side, steps, groups):
    """The published divisions of a side's patients: lists of disjoint sets whose numbers are in the file."""
    edges = np.array(steps.edges)
    place = np.clip(np.searchsorted(edges, score, side="right") - 1, 0, len(edges) - 2)
    yield [place == number for number in range(len(edges) - 1)]
    for members in groups.values():
        division = []
        for member, counts in members.values():
            called = score >= POINT.threshold
            exact = counts.called[0] == counts.called[1]
            division += [member & called, member & ~called] if exact else [member]
        yield division


@settings(max_examples=150)
@given(sites())
def test_no_published_number_is_small_and_no_difference_of_two_is(site):
    for score, side, steps, groups in published(*site):
        divisions = list(sets(score, side, steps, groups))
        for division in divisions:
            assert sum(part.sum() for part in division) == side.patients
            assert not any(small(int(part.sum())) for part in division)
        for first, second in itertools.permutations(divisions, 2):
            for inner, outer in itertools.product(unions(first), unions(second)):
                if not (inner & ~outer).any():  # somebody who knows that one lies within the other subtracts
                    assert not small(int((outer & ~inner).sum()))


def unions(division):
    """Sets of a division, their complements, and unions of two of them."""
    everybody = np.any(division, axis=0)
    for part in division:
        yield part
        yield everybody & ~part
    for first, second in itertools.combinations(division[:12], 2):
        yield first | second
        yield everybody & ~(first | second)


@settings(max_examples=60, deadline=None)
@given(sites())
def test_withheld_numbers_cannot_be_solved_for(site):
    """For each column: unknown counts by bin, group and side of the threshold, and all that is published about them."""
    for score, side, steps, groups in published(*site):
        called = score >= POINT.threshold
        solved_all = solved(side, steps, None)
        assert_open(solved_all, int(called.sum()), side.patients)
        for members in groups.values():
            counts = [counts for _, counts in members.values()]
            for number, (member, _) in enumerate(members.values()):
                true = int((member & called).sum())
                assert_open(solved(side, steps, counts, number), true, int(member.sum()))


def assert_open(found, true, patients):
    low, high = found
    assert low <= true <= high
    if small(true) or small(patients - true):
        assert high - low + 1 >= disclosure.PROTECTED
    elif low < high:
        assert high - low + 1 >= disclosure.PROTECTED or low == high


def solved(side, steps, groups, wanted=None):
    """Fewest and most called patients, of one group or in all, that the published numbers allow."""
    bins, count = len(steps.patients), len(groups or [side])
    shape = (bins, count, 2)
    rows, low, high = [], [], []

    def say(cells, least, most):
        row = np.zeros(shape)
        row[cells] = 1
        rows.append(row.ravel())
        low.append(least)
        high.append(most)

    for number, patients in enumerate(steps.patients):
        say(np.s_[number], patients, patients)
        if steps.edges[number] >= POINT.threshold:
            say(np.s_[number, :, 0], 0, 0)
        if steps.edges[number + 1] <= POINT.threshold:
            say(np.s_[number, :, 1], 0, 0)
    say(np.s_[:, :, 1], *side.called)
    for number, group in enumerate(groups or []):
        say(np.s_[:, number], group.patients, group.patients)
        say(np.s_[:, number, 1], *group.called)
    aim = np.zeros(shape)
    aim[np.s_[:, :, 1] if wanted is None else np.s_[:, wanted, 1]] = 1
    limits = LinearConstraint(np.array(rows), low, high)
    ends = [
        milp(sign * aim.ravel(), constraints=limits, integrality=np.ones(aim.size), bounds=Bounds(0, np.inf))
        for sign in (1, -1)
    ]
    assert all(end.success for end in ends)
    return round(ends[0].fun), round(-ends[1].fun)


def test_the_attack_finds_a_cell_that_is_not_protected():
    """The same attack on numbers that break the rules, so that its silence above means something."""
    score = np.array([0.1] * 5 + [0.9] * 45)
    edges = np.array([0, 0.4, 1])
    side, steps = make(50, [41, 49]), make_steps(edges, np.histogram(score, edges)[0])
    with pytest.raises(AssertionError):
        assert_open(solved(side, steps, None), 45, 50)
    groups = [make(25, [16, 24]), make(25, [16, 24])]
    total = make(50, [32, 32])  # 18 of two groups with at most 9 each
    with pytest.raises(AssertionError):
        assert_open(solved(total, make_steps(np.array([0, 1]), [50]), groups, 0), 16, 25)


@pytest.mark.parametrize("seed", range(12))
def test_the_true_numbers_are_among_those_that_a_file_leaves_possible(tmp_path, seed):
    """Otherwise somebody who trusts the file would rule out the truth, and the count of what is left would be wrong."""
    generator = np.random.default_rng(seed)
    counts = [int(generator.integers(12, 90)) for _ in range(2)]
    table = simulated(*counts, generator.uniform(-0.5, 2.5), seed)
    found = content(shared(tmp_path, "A", table))
    called = table[SCORE] >= POINT.threshold
    true = tuple(int((called & (table["label"] == label)).sum()) for label in SIDES)
    assert withheld.possible(found, true)
    assert withheld.stays(found)


def test_the_figures_bound_a_withheld_number_as_a_search_over_all_orders_does(tmp_path):
    """An AUROC of .70 with all benign patients below the threshold: a search over patients finds nine missed only."""
    table = predicted([*np.full(9, 0.01), *np.full(21, 0.9)], np.linspace(0.05, 0.39, 60))
    found = content(shared(tmp_path, "A", table))
    area = roc_auc_score(table["label"] == "M", table[SCORE])
    told = found.model_copy(update={"auroc": SharedArea(value=area, low=area, high=area, variance=0.01)})
    assert [missed for missed in range(1, 10) if withheld.possible(told, (30 - missed, 0))] == [9]
    # the least AUROC of fewer missed patients, each below every benign one, is greater
    assert [missed for missed in range(1, 10) if 1 - missed / 30 <= area + 1e-9] == [9]
    assert not withheld.stays(told)
    assert withheld.stays(withheld.without(told))


def make(patients, called):
    from thyroid.records.share import SideCounts

    return SideCounts(patients=patients, called=called)


def make_steps(edges, patients):
    from thyroid.records.share import Steps

    return Steps(edges=[float(edge) for edge in edges], patients=[int(count) for count in patients])


@pytest.mark.parametrize(
    ("total", "groups", "held"),
    [
        ((33, 33), [(20, (1, 9)), (30, (21, 29))], True),
        ((88, 88), [(50, (41, 49)), (50, (41, 49))], True),
        ((82, 82), [(50, (41, 49)), (50, (41, 49))], False),  # 18 missed: 9 and 9
        ((85, 85), [(50, (41, 49)), (50, (41, 49))], False),  # 15 missed: 6 to 9
        ((95, 95), [(50, (41, 49)), (50, (50, 50))], False),  # the rest is 5
        ((91, 99), [(50, (41, 49)), (50, (50, 50))], True),
        ((91, 99), [(30, (21, 29))] * 3 + [(10, (1, 9))], True),
        ((81, 89), [(10, (1, 9))] * 9, False),  # each must be 9 or near it
        ((50, 50), [(50, (0, 50)), (50, (0, 50))], True),
    ],
)
def test_withheld_numbers_must_keep_five_values(total, groups, held):
    patients = sum(count for count, _ in groups)
    assert disclosure.protected(total, patients, groups) is held


def test_divisions_are_separate_unless_one_hides_a_few_within_the_other():
    first = np.repeat([0, 1], [50, 50])
    assert disclosure.separate(first, first)
    assert disclosure.separate(first, np.repeat([0, 1, 0, 1], 25))
    assert not disclosure.separate(first, np.repeat([0, 1], [45, 55]))
    assert disclosure.separate(first, np.repeat([0, 1], [40, 60]))
    with pytest.raises(ValueError, match="more than"):
        disclosure.separate(np.arange(40), np.arange(40))
