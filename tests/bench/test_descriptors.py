"""What the benchmark of descriptors counts; its figures are not tested."""

import pytest

from tests.support import ROOT, toy_descriptors


@pytest.fixture(scope="module")
def descriptors():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "bench")
        from bench import descriptors

        yield descriptors


def record(*findings):
    return toy_descriptors.record(4, findings)


def measured(value: str, low: float | None, **changes):
    auroc = {"value": 0.95, "low": low, "high": 1.0}
    found = toy_descriptors.finding("composition", value)
    return found | {"test": found["test"] | {"auroc": auroc}} | changes


def test_the_lowest_bound_is_that_of_all_findings_that_were_fitted(descriptors, capsys):
    withheld = measured("mixed", 0.82, given=False, why="auroc", detail="too low")
    unfitted = toy_descriptors.finding("composition", "cystic", threshold=None, test=None, given=False, why="too_few")
    assert descriptors.lowest(record(measured("solid", 0.9), withheld, unfitted)) == 0.82
    assert capsys.readouterr().out == ""


def test_a_finding_that_could_not_be_tested_fails(descriptors, capsys):
    assert descriptors.lowest(record(measured("solid", 0.9), measured("mixed", None))) == 0
    assert capsys.readouterr().out == "composition: mixed cystic and solid: only 2 test patients with it\n"
    assert descriptors.lowest(record(measured("solid", 0.9), measured("mixed", 0.9, test=None))) == 0
    assert descriptors.lowest(record()) == 0


def test_the_table_is_markdown(descriptors):
    lines = descriptors.table(record(measured("solid", 0.9))).splitlines()
    assert lines[0].startswith("| Finding |")
    assert {line.count("|") for line in lines[:3]} == {11}
    assert lines[2].startswith(
        "| composition: solid | 20 / 20 | 0.800 [0.700, 0.900] | 0% | yes | 0.950 [0.900, 1.000] |"
    )
    assert any(line.startswith("- ") for line in lines[3:])
