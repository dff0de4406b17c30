import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from thyroid.data import classes
from thyroid.data.classes import BINARY, Classes
from thyroid.errors import InputError

TIRADS = classes.parse("2<3|4a<4b<4c<5")
"""Six grades, the last four suspicious."""


def test_grades_and_kinds():
    assert classes.parse("2<3|4a<4b<4c<5") == Classes(
        ("2", "3", "4a", "4b", "4c", "5"), (False, False, True, True, True, True), True
    )
    assert (len(TIRADS), TIRADS.columns[2]) == (6, "probability_4a")
    assert [TIRADS.side(name) for name in TIRADS.names] == list("BBMMMM")
    kinds = classes.parse("cyst, adenoma | papillary ,follicular")
    assert kinds == Classes(("cyst", "adenoma", "papillary", "follicular"), (False, False, True, True), False)
    assert classes.parse("no|yes") == Classes(("no", "yes"), (False, True))


@pytest.mark.parametrize("text", [classes.DEFAULT, "b|m", " B | M "])
def test_file_names_classes_in_any_case(text):
    assert classes.parse(text) is BINARY


@pytest.mark.parametrize("text", ["2<3|4a<4b<4c<5", "cyst,adenoma|papillary", "no|yes", "B|M"])
def test_text_and_json_come_back(text):
    found = classes.parse(text)
    assert str(found) == text
    assert classes.parse(str(found)) == found
    assert Classes.from_dict(found.to_dict()) == found


@pytest.mark.parametrize("text", ["", "B", "B<M", "|", "B|", "|M", "2<|3", "a|b|c", "a,b<c|d", "a<b|c,d"])
def test_another_form_is_said_with_the_right_one(text):
    with pytest.raises(InputError, match=r"2<3\|4a<4b<4c<5"):
        classes.parse(text)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("2<3|4a<4A", "twice"),
        ("2<2.0|3", "twice"),
        ("fu\u0308r|f\u00fcr", "twice"),
        ("b<x|c", "B and M"),
        ("x|M", "B and M"),
        ("M|B", "B and M"),
        ("patients|x", "patients"),
        ("x|" + "y" * 41, "40"),
        ("x|a\tb", "printable"),
    ],
)
def test_names_that_cannot_be_classes(text, told):
    with pytest.raises(InputError, match=told):
        classes.parse(text)


@pytest.mark.parametrize(
    ("cell", "name"),
    [
        ("4a", "4a"),
        (" 4A ", "4a"),
        ("2.0", "2"),
        ("\uff14\uff41", "4a"),
        ("5", "5"),
        ("4", None),
        ("", None),
        ("2.5", None),
        ("20", None),
    ],
)
def test_cells_of_spreadsheets(cell, name):
    assert TIRADS.read(cell) == name


def test_cells_in_other_forms_of_unicode_and_case():
    korean = classes.parse("양성<중간|악성")
    decomposed = "\u110b\u1163\u11bc\u1109\u1165\u11bc"
    assert korean.read(decomposed) == "양성"
    assert classes.parse(f"{decomposed}|악성").names[0] == "양성"
    assert classes.parse("groß|klein").read("GROSS") == "groß"
    assert classes.parse("1.0|2").read("1") == "1.0"


def test_places_and_sides_of_many():
    names = pd.Series(["5", "2", "4b"])
    assert TIRADS.index(names).tolist() == [5, 0, 3]
    hot = TIRADS.one_hot(names)
    assert (hot.dtype, hot.shape) == (np.float32, (3, 6))
    assert (hot.argmax(axis=1) == TIRADS.index(names)).all()
    assert hot.sum() == 3
    assert TIRADS.malignant(hot).tolist() == [1, 0, 1]
    with pytest.raises(KeyError):
        TIRADS.index(["4"])


@given(st.lists(st.floats(0, 1), min_size=6, max_size=6).filter(lambda row: sum(row) > 0))
def test_the_sum_of_probabilities_is_one(row):
    """More than 1, by rounding, would be refused further on."""
    probability = np.array([row]) / sum(row)
    (found,) = TIRADS.malignant(probability)
    assert 0 <= found <= 1
    assert found == pytest.approx(probability[0, 2:].sum())
