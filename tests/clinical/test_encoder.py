import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thyroid.clinical.encoder import CLIP, Encoder
from thyroid.errors import InputError
from thyroid.records.clinical import EncoderRecord


@pytest.fixture
def rows():
    r = np.random.default_rng(0)
    age = r.normal(50, 10, 60)
    age[:5] = np.nan
    return pd.DataFrame(
        {
            "age": age,
            "size": r.normal(20, 5, 60),
            "margins": r.choice(["smooth", "ill-defined"], 60).astype(object),
            "echo": [None, "rare", "scarce"] + ["hypo", "iso", "hyper"] * 19,
        }
    )


def test_features_are_those_of_the_training_rows(rows):
    encoder = Encoder.fit(rows, range(60))
    x, notes = encoder.encode(rows)
    assert x.dtype == np.float32
    assert x.shape == (60, len(encoder.features))
    assert encoder.features == [
        "age",
        "age is missing",
        "size",
        "margins = ill-defined",
        "margins = smooth",
        *("echo = hyper", "echo = hypo", "echo = iso", "echo = other", "echo is missing"),
    ]
    named = dict(zip(encoder.features, x.T, strict=True))
    np.testing.assert_allclose([named["size"].mean(), named["size"].std()], [0, 1], atol=1e-5)
    assert named["age is missing"].sum() == 5
    median = (np.nanmedian(rows["age"]) - np.nanmean(rows["age"])) / np.nanstd(rows["age"])
    np.testing.assert_allclose(named["age"][:5], median, rtol=1e-5)
    assert (named["echo = other"] == rows["echo"].isin(["rare", "scarce"])).all()
    np.testing.assert_allclose(sum(v for k, v in named.items() if k.startswith("echo")), 1)
    assert not notes


def test_rare_is_counted_in_patients(rows):
    few = Encoder.fit(rows[["margins"]], np.where(rows["margins"] == "smooth", 1, range(2, 62)))
    assert few.features == ["margins = ill-defined", "margins = other"]


def test_an_encoder_survives_json(rows):
    encoder = Encoder.fit(rows, range(60))
    again = Encoder.from_record(EncoderRecord.parse(json.loads(json.dumps(encoder.to_dict(), allow_nan=False)), "x"))
    assert again == encoder
    np.testing.assert_array_equal(again.encode(rows)[0], encoder.encode(rows)[0])


def test_dicts_are_rows_and_what_is_unseen_is_missing_and_noted(rows):
    encoder = Encoder.fit(rows, range(60))
    x, notes = encoder.encode(
        [
            {"age": 50, "echo": "ISO", "unknown": 1},
            {},
            {"echo": "anechoic", "margins": "lobed", "age": None},
            {"age": float("inf"), "size": "x", "echo": "Scarce"},
        ]
    )
    named = dict(zip(encoder.features, x.T, strict=True))
    assert named["echo = iso"].tolist() == [1, 0, 0, 0]
    assert named["echo = other"].tolist() == [0, 0, 0, 1]
    assert named["echo is missing"].tolist() == [0, 1, 1, 0]
    assert (named["margins = smooth"] + named["margins = ill-defined"]).sum() == 0
    assert named["age is missing"].tolist() == [0, 1, 1, 1]
    assert [note.split(":")[0] for note in notes] == ["column age", "column size", "column margins", "column echo"]
    assert encoder.encode([])[0].shape == (0, x.shape[1])


def test_columns_without_values_and_constants_do_no_harm():
    table = pd.DataFrame({"a": [np.nan] * 8, "b": [None] * 8, "c": [0.1] * 8, "d": ["x"] * 8})
    encoder = Encoder.fit(table.astype({"b": object}), range(8))
    x, _ = encoder.encode([{"a": 3, "b": "y", "c": 7, "d": "x"}])
    assert np.isfinite(x).all()
    assert json.dumps(encoder.fields(), allow_nan=False)
    assert Encoder.fit(pd.DataFrame(index=range(3)), range(3)).encode([{}, {}])[0].shape == (2, 0)


@settings(max_examples=25)
@given(
    st.lists(
        st.dictionaries(
            st.sampled_from(["age", "size", "margins", "echo", "other"]),
            st.none() | st.floats() | st.integers() | st.text() | st.booleans(),
        ),
        max_size=5,
    )
)
def test_whatever_comes_is_finite_or_refused(many):
    table = pd.DataFrame({"age": [1.0, 2.0, np.nan] * 4, "size": [1.0, 5.0, 2.0] * 4, "margins": ["a", "b", None] * 4})
    encoder = Encoder.fit(table, range(12))
    x, _ = encoder.encode(many)
    assert x.shape == (len(many), len(encoder.features))
    assert np.isfinite(x).all()
    assert abs(x).max(initial=0) <= CLIP
    for values in many:
        try:
            checked, _ = encoder.check(values)
        except InputError:
            continue
        np.testing.assert_array_equal(encoder.encode([checked])[0], encoder.encode([values])[0])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"agee": 1}, "'agee'.*age, size, margins, echo"),
        ({"age": "54321"}, "age must be a number"),
        ({"age": True}, "age must be a number"),
        ({"margins": False}, "margins must be a text"),
        ({"margins": ["smooth"]}, "margins must be a text"),
        ({"age": float("nan")}, "age must be a finite number"),
        ({"age": float("-inf")}, "age must be a finite number"),
        ({"age": 10**400}, "age must be a finite number"),
    ],
)
def test_values_that_are_refused(rows, values, message):
    with pytest.raises(InputError, match=message) as error:
        Encoder.fit(rows, range(60)).check(values)
    assert "54321" not in str(error.value)


def test_values_that_are_odd_are_noted(rows):
    encoder = Encoder.fit(rows, range(60))
    assert encoder.check({}) == ({}, [])
    assert encoder.check({"age": None, "size": 20, "echo": " ISO "}) == ({"size": 20.0, "echo": "ISO"}, [])
    values, notes = encoder.check({"age": 510, "echo": "anechoic"})
    assert values == {"age": 510.0, "echo": "anechoic"}
    assert "age" in notes[0]
    assert "echo" in notes[1]
    assert "510" not in "".join(notes)


def test_fields_of_a_form(rows):
    fields = {field["name"]: field for field in Encoder.fit(rows, range(60)).fields()}
    assert fields["age"]["kind"] == "number"
    assert fields["age"]["minimum"] < fields["age"]["median"] < fields["age"]["maximum"]
    assert fields["echo"]["categories"] == ["hyper", "hypo", "iso", "other"]
