"""The plots of the outcomes, and the sentences that go with them."""

import numpy as np
import pytest

from tests.watch.outcomes.cases import SECRET, day, decision, options, record, table
from thyroid.imaging import images
from thyroid.watch.outcomes import outcomes, plots


def drawn(folder, count, sensitivity):
    rng, rows, lines = np.random.default_rng(0), [], []
    for patient in range(count):
        malignant = patient % 2 == 0
        right = rng.random() < (sensitivity if malignant else 0.8)
        rows.append(decision(0.7 if right == malignant else 0.3, str(patient), f"i{patient}"))
        lines.append(f",{patient},{'M' if malignant else 'B'},{day(patient // 3)}")
    measured = outcomes.measure(options(folder, *lines), table(*rows), record(), SECRET)
    return measured, plots.draw(measured, folder)


def test_every_plot_states_what_it_shows(tmp_path):
    measured, found = drawn(tmp_path, 240, 0.6)
    assert set(found) == {"shares", "alarms", "calibration"}
    sensitivity = measured.record.tests[0]
    assert str(sensitivity.value) in found["shares"].alt
    assert f"raised on {sensitivity.alarm_at}" in found["alarms"].alt
    assert str(measured.record.observed_to_expected) in found["calibration"].alt
    for name, picture in found.items():
        assert picture.uri == images.data_uri((tmp_path / f"outcomes-{name}.png").read_bytes())


@pytest.mark.parametrize(("count", "expected"), [(0, set()), (1, {"shares", "alarms"}), (8, {"shares", "alarms"})])
def test_what_is_too_little_is_not_drawn(tmp_path, count, expected):
    measured, found = drawn(tmp_path, count, 0.9)
    assert set(found) == expected
    if count == 1:
        assert "specificity" not in found["shares"].alt
    assert measured.record.patients == count


def test_more_days_than_points_are_thinned(tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "_POINTS", 5)
    counted, bounds = [], plots.confidence_sequence
    monkeypatch.setattr(plots, "confidence_sequence", lambda *one: counted.append(one) or bounds(*one))
    measured, _ = drawn(tmp_path, 60, 0.9)
    assert len(counted) == 10
    assert (measured.record.tests[0].right, 30) in counted
