"""Drift: which changes raise an alarm, which must not, and what is compared with what."""

import datetime
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import fisher_exact, ks_2samp

from tests.conftest import drawing
from thyroid.records.model import PROPERTIES, UsualAnswers
from thyroid.watch import drift, drift_plots

FIRST = datetime.date(2026, 1, 1)
NIGHT = datetime.date(2026, 2, 9)


def usual(patients: int = 300, seed: int = 0, **values: Any) -> UsualAnswers:
    """A reference of one image a patient, from the distributions of `log`."""
    rows = log(1, patients, seed=seed + 1000)
    table = drift.properties(rows)
    found = {name: sorted(table[name].dropna()) for name in PROPERTIES}
    found = {name: column for name, column in found.items() if column}
    shares = {name: float(table[name].mean()) for name in drift.SHARES}
    return UsualAnswers(patients=patients, images=patients, values=found | values, decisions={}, shares=shares)


def log(nights: int, patients: int, seed: int = 0, first: datetime.date = FIRST, **columns: Any) -> pd.DataFrame:
    """Decisions of as many new patients each night, with one image each; columns replace those drawn."""
    rng, n = np.random.default_rng(seed), nights * patients
    score = rng.beta(1, 3, n)
    content = {
        "time": pd.Timestamp(first, tz="UTC")
        + pd.to_timedelta(np.repeat(np.arange(nights), patients) * 86400 + rng.integers(0, 86400, n), unit="s"),
        "unit": [f"{first}-{number}" for number in range(n)],
        "image": rng.permutation(n).astype(str),
        "source": "given",
        "probability": score,
        "distance": rng.gamma(9, 0.06, n),
        "box_probability": np.nan,
        "width": 640,
        "height": 480,
        "box": [[0, 0, int(side), int(side)] for side in rng.integers(40, 200, n)],
        "decision": np.where(score > 0.4, "malignant", np.where(score > 0.35, "abstain", "benign")),
    }
    return pd.DataFrame(content | columns)


def test_the_same_scanner_and_patients_raise_no_alarm():
    found = drift.compare(log(40, 12), {"given": usual()}, NIGHT)
    assert (found.alarm, found.alarms, found.first_alarm, found.skipped) == (False, [], None, None)
    assert found.nights == 40
    compared = {(row.property, row.nights) for row in found.rows}
    names = [name for name in PROPERTIES if name != "box_probability"] + [*drift.SHARES]
    assert compared == {(name, nights) for name in names for nights in drift.WINDOWS}
    assert {row.n for row in found.rows} == {12, 7 * 12, 30 * 12}
    assert found.level == pytest.approx(0.05 / (365 * 3 * 8))


def test_another_scanner_raises_an_alarm_from_its_first_night_and_on_the_nights_that_still_hold_it():
    before, after = log(20, 12), log(20, 12, first=FIRST + datetime.timedelta(20), distance=1.4)
    rows = pd.concat([before, after], ignore_index=True)
    found = drift.compare(rows, {"given": usual()}, NIGHT)
    assert found.alarm
    assert found.first_alarm == found.alarms[0] == "2026-01-21"
    assert len(found.alarms) == 20
    assert {row.property for row in found.rows if row.alarm} == {"distance"}
    assert [row.alarm for row in found.rows] == sorted((row.alarm for row in found.rows), reverse=True)
    row = next(row for row in found.rows if row.property == "distance" and row.nights == 7)
    assert (row.value, row.n, row.reference_n) == (1.4, 84, 300)
    assert row.difference == pytest.approx(1, abs=0.05)


def test_earlier_nights_are_judged_as_they_were_on_that_night():
    rows = pd.concat([log(10, 30), log(3, 30, first=FIRST + datetime.timedelta(10), width=800)], ignore_index=True)
    last = FIRST + datetime.timedelta(12)
    late = drift.compare(rows, {"given": usual()}, last)
    early = drift.compare(rows, {"given": usual()}, last - datetime.timedelta(2))
    assert late.alarms[: len(early.alarms)] == early.alarms
    assert early.nights == 11
    assert drift.compare(rows, {"given": usual()}, last) == late


def test_an_alarm_that_ended_stays_in_the_list_but_is_none_of_today():
    rows = pd.concat([log(2, 40, distance=1.4), log(38, 40, first=FIRST + datetime.timedelta(2))], ignore_index=True)
    found = drift.compare(rows, {"given": usual()}, NIGHT)
    assert not found.alarm
    assert found.first_alarm is None
    assert found.alarms[0] == "2026-01-01"


def test_a_run_of_alarms_begins_after_the_last_night_without_one():
    assert drift._run([3, 4, 7, 8, 9]) == 7
    assert drift._run([9]) == 9


@pytest.mark.parametrize(("shift", "alarm"), [(0.15, False), (0.4, True)])
def test_a_sure_but_small_difference_raises_no_alarm(shift, alarm):
    many = usual(1000)
    rows = log(40, 100)
    moved = rows["probability"].rank() / len(rows) < shift  # as large a share moves above all others
    found = drift.compare(rows.assign(probability=rows["probability"].where(~moved, 1.0)), {"given": many}, NIGHT)
    row = next(row for row in found.rows if row.property == "probability" and row.nights == 30)
    assert row.p <= found.level
    assert row.alarm == alarm == (row.difference >= drift.SMALLEST)


def test_one_image_of_a_patient_counts_in_each_window():
    """That with the smallest hash; images of one patient are alike, and would make few patients look like many."""
    columns = {"unit": ["a", "a", "b", "c"], "image": ["k:2", "k:1", "k:9", "k:3"]}
    rows = log(1, 4, distance=[1.0, 2.0, 3.0, np.nan]).assign(**columns)
    found = drift.compare(rows, {"given": usual()}, FIRST)
    by_name = {row.property: row for row in found.rows if row.nights == 1}
    assert by_name["distance"].n == 2  # c has none
    assert by_name["distance"].value == pytest.approx((2 + 3) / 2)
    assert by_name["probability"].n == 3


def test_equal_values_are_equal_to_those_of_model_json():
    rows = log(30, 9, width=1280, height=963)  # model.json has rounded quotients
    found = drift.compare(rows, {"given": usual(width=[1280.0] * 300, aspect=[round(1280 / 963, 6)] * 300)}, NIGHT)
    assert all(row.difference == 0 for row in found.rows if row.property in ("width", "aspect"))


def test_the_distance_and_its_p_value_are_those_of_smirnov():
    rng = np.random.default_rng(1)
    for _ in range(200):
        ours, theirs = (np.sort(rng.integers(0, 9, rng.integers(1, 40)).astype(float)) for _ in range(2))
        assert drift.distance(ours, theirs) == pytest.approx(ks_2samp(ours, theirs).statistic)
    rows = log(1, 25)
    reference = usual(80)
    found = drift.compare(rows, {"given": reference}, FIRST)
    row = next(row for row in found.rows if row.property == "probability" and row.nights == 1)
    assert row.p == pytest.approx(ks_2samp(rows["probability"], reference.values["probability"]).pvalue, rel=1e-3)


def test_shares_are_compared_by_fishers_test_of_patients():
    reference = usual(50).model_copy(update={"shares": {"abstain": 0.04, "malignant": 0.2}})
    rows = log(1, 60, decision=["abstain"] * 28 + ["benign"] * 32)
    rows["unit"] = [f"{number // 4}" for number in range(60)]  # 15 patients, 7 of them undecided
    found = drift.compare(rows, {"given": reference}, FIRST)
    row = next(row for row in found.rows if row.property == "abstain" and row.nights == 1)
    assert row.p == pytest.approx(fisher_exact([[7, 8], [2, 48]]).pvalue)
    assert (row.value, row.reference, row.n, row.reference_n) == (7 / 15, 0.04, 15, 50)


def test_nights_are_days_in_utc():
    rows = log(1, 30).assign(time=pd.Timestamp("2026-01-01T23:59:59.999Z"))
    assert drift.compare(rows, {"given": usual()}, FIRST).nights == 1
    later = rows.assign(time=pd.Timestamp("2026-01-02T00:00:00Z"))
    found = drift.compare(later, {"given": usual()}, FIRST)
    assert (found.nights, found.rows) == (0, [])
    assert found.skipped == "there is no decision up to this night"


@pytest.mark.parametrize(
    ("rows", "reference", "said"),
    [
        (log(1, 3), {}, "does not record.*older release or recalibrated"),
        (log(1, 3).head(0), {"given": usual()}, "no decision up to"),
        (log(1, 3), {"given": usual()}, "last 30 nights"),
        (log(1, 3, first=NIGHT, source="whole"), {"given": usual()}, r"\(given\).*\(whole\)"),
        (log(1, 3, first=NIGHT), {"given": usual(3)}, "3 patients since and 3 held-out patients"),
    ],
)
def test_what_cannot_be_compared_says_why(rows, reference, said):
    found = drift.compare(rows, reference, NIGHT)
    assert not found.alarm
    assert found.skipped is not None
    assert pd.Series([found.skipped]).str.contains(said).all(), found.skipped


def test_one_decision_is_compared_and_raises_no_alarm():
    found = drift.compare(log(1, 1, first=NIGHT, distance=9.0), {"given": usual(300)}, NIGHT)
    assert not found.alarm
    assert {row.n for row in found.rows} == {1}


def test_a_reference_of_seven_patients_can_still_show_a_complete_change():
    reference = usual(7)
    assert drift.compare(log(40, 12), {"given": reference}, NIGHT).skipped is None
    assert drift.compare(log(40, 12, width=900), {"given": reference}, NIGHT).alarm


def test_the_plot_shows_a_changed_and_an_unchanged_log(tmp_path):
    rows = pd.concat([log(20, 12), log(20, 12, first=FIRST + datetime.timedelta(20), distance=1.4)], ignore_index=True)
    reference = {"given": usual()}
    with drawing():
        sentence = drift_plots.trends(rows, reference, drift.compare(rows, reference, NIGHT), tmp_path / "drift.png")
    assert (tmp_path / "drift.png").stat().st_size > 10_000
    assert "20 nights" in sentence
    steady = drift_plots.trends(
        log(40, 12), reference, drift.compare(log(40, 12), reference, NIGHT), tmp_path / "s.png"
    )
    assert "no night" in steady
