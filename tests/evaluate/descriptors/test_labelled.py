"""Which images a label is for."""

import numpy as np
import pandas as pd
import pytest

from tests.evaluate.descriptors.conftest import PATIENTS
from thyroid.clinical.descriptors_csv import DescriptorTable
from thyroid.data.version import DataVersion
from thyroid.evaluate.descriptors import audit, labelled

WORDS = {"margin": ["smooth", "ill_defined"], "foci": ["none", "macro"]}


@pytest.fixture(scope="module")
def data(described):
    return DataVersion.read(described / "data")


def table_of(data: DataVersion, **words) -> DescriptorTable:
    """Labels of all scans in use: a list of words by descriptor, in the order of the scans, None for no word."""
    paths = data.used["path"].to_numpy()
    rows = pd.DataFrame(index=paths)
    for descriptor, values in words.items():
        cells = [None if value is None else frozenset(value.split("+")) for value in values]
        rows[descriptor] = pd.Series(cells, paths, dtype=object)
    return DescriptorTable(rows, {name: name for name in words}, [])


def with_regions(data: DataVersion, extra: pd.DataFrame) -> DataVersion:
    """The same data version with further regions."""
    return DataVersion(data.folder, data.scans, pd.concat([data.regions, extra], ignore_index=True), data.facts)


def test_scans_without_a_word_are_left_out(data):
    count = len(data.used)
    table = table_of(data, margin=["smooth"] * (count - 1) + [None], foci=[None] * count)
    found = labelled.of_scans(data, "cropped", table)
    assert len(found) == count - 1
    assert data.used["path"].iloc[-1] not in set(found["path"])


@pytest.mark.parametrize("larger", [True, False])
def test_the_largest_nodule_of_a_frame_carries_the_word(data, larger):
    own = data.regions.iloc[[0]]
    factor = 2 if larger else 0.5
    second = own.assign(
        width=(own["width"] * factor).astype(int),
        height=(own["height"] * factor).astype(int),
        crop_path="cropped/x.jpg",
    )
    table = table_of(data, margin=["smooth"] * len(data.used))
    found = labelled.of_scans(with_regions(data, second), "cropped", table)
    assert len(found) == len(data.used)
    (name,) = found.loc[found["path"] == own["path"].iloc[0], "name"]
    assert (name == "cropped/x.jpg") == larger


def test_development_images_come_with_the_disturbed_crops_of_the_training_part(data):
    table = table_of(data, margin=["smooth"] * len(data.used))
    found = labelled.development(data, "cropped", table, 0)
    assert set(found.images["split"]) == {"train", "validation"}
    assert len(found.images) == (data.used["split"] != "test").sum()
    of = found.images.iloc[found.disturbed["place"]]
    assert set(of["split"]) == {"train"}
    assert len(found.disturbed) == (data.used["split"] == "train").sum()
    assert (found.disturbed["file"].to_numpy() == of["jitter_file"].to_numpy()).all()
    data.pixels(found.disturbed, 16)


def test_whole_patients_are_drawn_if_there_are_many(data, monkeypatch):
    monkeypatch.setattr(labelled, "MOST", 31)
    table = table_of(data, margin=["smooth"] * len(data.used))
    found = labelled.development(data, "cropped", table, 0)
    assert len(found.images) + len(found.disturbed) in (30, 31)
    again = labelled.development(data, "cropped", table, 0)
    assert list(again.images["name"]) == list(found.images["name"])
    other = labelled.development(data, "cropped", table, 1)
    assert list(other.images["name"]) != list(found.images["name"])


def test_no_development_image_has_a_label(data):
    words = ["smooth" if split == "test" else None for split in data.used["split"]]
    assert labelled.development(data, "cropped", table_of(data, margin=words), 0).images.empty


def findings(data, **words):
    table = table_of(data, **words)
    images = labelled.of_scans(data, "cropped", table)
    return labelled.seen(images, table), labelled.truths(images, table)


def in_turns(*values) -> list[str | None]:
    return [values[number % len(values)] for number in range(PATIENTS)]


def test_a_finding_for_each_value_and_one_for_two_that_exclude_each_other(data):
    seen, truths = findings(
        data,
        composition=in_turns("solid", "mixed", "cystic"),
        shape=in_turns("wider", "taller"),
        margin=in_turns("smooth", "ill_defined"),  # as many points
        foci=in_turns("none", "macro+punctate", "rim", None),
    )
    assert seen == {
        "composition": ["cystic", "mixed", "solid"],
        "shape": ["wider", "taller"],
        "margin": ["smooth", "ill_defined"],
        "foci": ["macro", "rim", "punctate"],
    }
    assert list(truths) == [
        *(("composition", value) for value in ("cystic", "mixed", "solid")),
        ("shape", "taller"),
        ("margin", "ill_defined"),
        *(("foci", value) for value in ("macro", "rim", "punctate")),
    ]
    macro = truths["foci", "macro"]
    assert np.isnan(macro).sum() == PATIENTS // 4
    assert np.nansum(macro) == PATIENTS // 4


def test_one_value_alone_and_the_absence_of_foci(data):
    seen, truths = findings(data, margin=in_turns("smooth"), foci=in_turns("none"))
    assert seen == {"margin": ["smooth"], "foci": []}
    assert list(truths) == [("margin", "smooth")]
    assert (truths["margin", "smooth"] == 1).all()


def leaks_of(data, **words):
    table = table_of(data, **words)
    images = labelled.of_scans(data, "cropped", table)
    return audit.leaks(images, table, data.classes, seed=0)


def test_a_column_that_gives_the_class_away_is_found_and_missing_words_are_not(data):
    malignant = (data.used["class"] == "M").tolist()
    found = leaks_of(
        data,
        composition=["solid" if one else "mixed" for one in malignant],
        margin=[word if one else None for word, one in zip(in_turns("smooth", "lobulated"), malignant, strict=True)],
        shape=[
            word if not one or number % 2 else None
            for number, (word, one) in enumerate(zip(in_turns("wider", "taller"), malignant, strict=True))
        ],
    )
    assert list(found.columns) == ["composition"]
    assert "composition gives the class away" in found.columns["composition"]
    assert list(found.unknown) == ["margin"], "its words are of one class"
    assert found.unknown["margin"].startswith("all rows are of one class"), "no word of clinical data"


def test_columns_that_define_the_class_together_are_a_note(data):
    """Either of two words alone says little: malignant is what is not the same in both."""
    random = np.random.default_rng(0)
    first = random.integers(0, 2, len(data.used))
    second = first ^ (data.used["class"] == "M").to_numpy(int)
    found = leaks_of(
        data,
        shape=[["wider", "taller"][one] for one in first],
        margin=[["smooth", "lobulated"][one] for one in second],
    )
    assert found.columns == {}
    assert len(found.together) == 1
    assert "shape, margin nearly define" in found.together[0]
