"""What the benchmark of the watch simulates; its figures are not tested."""

import importlib
import math

import numpy as np
import pytest

from tests.support import ROOT
from thyroid.records.model import PROPERTIES
from thyroid.watch import drift


@pytest.fixture(scope="module")
def bench():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "bench")
        yield importlib.import_module("watch")


def test_patients_come_every_night_with_their_images(bench):
    log = bench.simulated(5, 6, 0, images=(1, 2))
    table = drift.properties(log)
    assert table.groupby("night")["unit"].nunique().tolist() == [6] * 5
    assert set(table.groupby("unit").size()) == {1, 2}
    assert np.isfinite(table[list(PROPERTIES)].to_numpy()).all()


def test_the_shift_is_as_large_as_it_is_said_to_be(bench):
    shift = math.sqrt(2) * 0.6745
    log = bench.simulated(2, 3000, 0, images=(1,), shift=shift, since=1)
    before, after = (part["probability"].to_numpy() for _, part in log.groupby("time"))
    ranks = np.searchsorted(np.sort(before), after) / len(before)
    assert ranks.mean() == pytest.approx(bench.AUROC, abs=0.02)


def test_an_unchanged_log_is_silent_and_a_shift_is_noticed_after_some_nights(bench):
    log = bench.simulated(20, 6, 0)
    usual = bench.reference(80, 1)
    last = bench.FIRST.replace(day=20)
    assert not drift.compare(log, usual, last).alarms
    nights = bench.nights_to_alarm(1, 80)
    assert 1 < nights[0] < bench.LONGEST
