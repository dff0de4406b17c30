import re

import numpy as np
import pandas as pd
import pytest

from tests.support import toy_descriptors
from thyroid.data.filenames import SCORE
from thyroid.evaluate.descriptors import tirads
from thyroid.evaluate.descriptors.tirads import Compared
from thyroid.model.operating_point import OperatingPoint

POINT = OperatingPoint(1.0, (0.0, 0.0), 0.5, (0.5, 0.5), (0.45, 0.55))


class Winner:
    """A model that decides at `POINT`."""

    point = POINT


def table(*rows) -> pd.DataFrame:
    """Rows of patient, label, probability of malignant and the points that are possible."""
    return pd.DataFrame(rows, columns=["patient", "label", SCORE, "low", "high"])


def test_decisions_are_compared_by_patient():
    head = toy_descriptors.head(4, [("composition", "solid")])
    found = tirads.compare(
        Winner(),
        head,
        table(
            (1, "M", 0.9, 0, 3),  # called malignant, and no image is suspicious: right, and in doubt
            (1, "M", 0.7, 0, 2),
            (2, "B", 0.9, 0, 3),  # one view may be suspicious, so that nothing contradicts the decision, which is wrong
            (2, "B", 0.9, 2, 7),
            (3, "B", 0.1, 4, 9),  # called benign, and suspicious in any case
            (4, "M", 0.2, 4, 4),  # as well, and wrong
            (5, "B", 0.5, 0, 0),  # in the band
            (6, "B", 0.1, 4, 9),  # one view is suspicious, and another one may not be: nothing contradicts benign
            (6, "B", 0.1, 0, 9),
        ),
    )
    assert found == Compared(patients=5, disagree=3, wrong_if_disagree=1, wrong_if_agree=1)
    wrong, otherwise = found.shares
    assert (wrong.value, otherwise.value) == (pytest.approx(1 / 3), 0.5)
    assert wrong.low < 0.05
    assert wrong.high > 0.8


def test_nothing_to_compare():
    head = toy_descriptors.head(4, [("composition", "solid")])
    none = tirads.compare(Winner(), head, table())
    assert none == Compared(0, 0, 0, 0)
    assert none.shares == (None, None)
    assert "5 are needed" in none.why_not


@pytest.mark.parametrize(
    ("compared", "why"),
    [
        (Compared(100, 4, 4, 0), "4 of 100 patients that the network did not learn from, and 5 are needed"),
        (Compared(100, 5, 5, 5), None),
        (Compared(100, 10, 1, 9), r"10% .* \(10 patients\), and 10%"),
        (Compared(100, 10, 0, 50), "no more than chance"),
        (Compared(6, 6, 6, 0), "n/a of the others"),
    ],
)
def test_a_reason_of_doubt_has_to_be_proven(compared, why):
    assert (compared.why_not is None) == (why is None)
    assert why is None or re.search(why, compared.why_not)


def test_the_cut_is_where_the_classes_part():
    positive = np.repeat([True, False], 4)
    assert tirads._youden(np.array([7.0, 8, 9, 4, 2, 3, 1, 0]), positive) == 4
    assert tirads._youden(np.array([2.0, 3, 2, 9, 1, 1.5, 1, 0]), positive) == 2
    assert tirads.CUTS == (2, 3, 4, 7)


def test_a_head_knows_what_was_locked():
    head = tirads.with_cut(toy_descriptors.head(4, [("composition", "solid")]), 7, "not proven")
    assert (head.record.tirads.cut, head.record.tirads.doubts, head.record.tirads.why_not) == (7, False, "not proven")
    assert tirads.with_cut(head, 3).record.tirads.doubts
