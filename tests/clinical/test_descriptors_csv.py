"""Descriptors from a CSV: which columns and words are read, and what becomes of those that cannot be used."""

import numpy as np
import pandas as pd
import pytest

from thyroid.clinical import descriptors_csv
from thyroid.clinical.descriptors_csv import DescriptorTable
from thyroid.data import duplicates
from thyroid.errors import InputError
from thyroid.imaging import phantom


def name(patient: int, image: int = 1) -> str:
    return f"B_{patient:03d}-{image:04d}-1.0.jpg"


def scans(count: int, images: int = 1, **columns: list) -> pd.DataFrame:
    """Scans in use, none of which looks like another one."""
    rows = [(p, i) for p in range(1, count + 1) for i in range(1, images + 1)]
    hashes = [np.random.default_rng(row).bytes(128).hex() for row in rows]
    given = {"patient": [p for p, _ in rows], "image": [i for _, i in rows], "group": [p for p, _ in rows]}
    table = pd.DataFrame({"path": [f"/s/{name(p, i)}" for p, i in rows], "phash": hashes} | given | columns)
    return table.astype({"path": "string", "phash": "string"} | dict.fromkeys(given, "Int64"))


@pytest.fixture
def read(tmp_path):
    """The descriptors in a file, or in columns of the patients 1, 2 and so on."""

    def given(content, columns: str = "", of: pd.DataFrame | None = None) -> DescriptorTable:
        path = tmp_path / "labels.csv"
        if not isinstance(content, str):
            content = {"patient": range(1, len(next(iter(content.values()))) + 1)} | content
            content = pd.DataFrame(content).to_csv(index=False)
        path.write_text(content, encoding="utf-8")
        location = f"{path}#{columns}" if columns else str(path)
        descriptors_csv.check(location)
        return DescriptorTable.read(location, scans(content.count("\n") - 1) if of is None else of)

    return given


def cells(table: DescriptorTable, descriptor: str) -> list:
    return [None if cell is None else set(cell) for cell in table.rows[descriptor]]


def test_the_columns_of_ddti_are_found_by_their_names(read):
    table = read(
        "filename,label,tirads,composition,echogenicity,margins,calcifications\n"
        f"{name(1)},B,2,solid,hyperechogenicity,well-defined,non\n"
        f"{name(2)},M,4a,predominantly-cystic,marked-hypoechogenicity,spiculated,microcalcification\n"
        f"{name(3)},M,5,,,ill-defined,macrocalcification\n"
    )
    assert table.columns == {
        "composition": "composition",
        "echogenicity": "echogenicity",
        "margin": "margins",
        "foci": "calcifications",
    }
    assert cells(table, "composition") == [{"solid"}, {"mixed"}, None]
    assert cells(table, "echogenicity") == [{"hyperechoic"}, {"very_hypoechoic"}, None]
    assert cells(table, "margin") == [{"smooth"}, {"lobulated"}, {"ill_defined"}]
    assert cells(table, "foci") == [{"none"}, {"punctate"}, {"macro"}]
    assert table.notes == []


def test_a_table_of_patients_holds_for_all_their_scans(read):
    table = read({"경계": ["평활", "불규칙"]}, of=scans(2, images=2))
    assert cells(table, "margin") == [{"smooth"}] * 2 + [{"lobulated"}] * 2


def test_columns_can_be_named(read):
    content = {"edge": ["smooth", "irregular"], "shape": ["wider", "taller"], "foci": ["rim", "none"]}
    assert read(content, "shape,margin=edge").columns == {"shape": "shape", "margin": "edge"}
    assert read(content, " calcifications = foci ").columns == {"foci": "foci"}
    assert read(content).columns == {"shape": "shape", "foci": "foci"}
    assert read(content, "*").columns == {"shape": "shape", "foci": "foci"}


def test_columns_of_the_bench_that_no_reader_has_used_are_left_out(read):
    assert list(read({"composition": ["solid", None], "shape": [None, None], "foci": [None, "rim"]}).columns) == [
        "composition",
        "foci",
    ]


def test_labels_are_1_0_or_missing(read):
    table = read(
        {"foci": ["macro+punctate", "none", "rim", None, "blurry"], "shape": ["taller", None, "wider", "", "?"]}
    )
    paths = [f"/s/{name(patient)}" for patient in (5, 4, 3, 2, 1)]
    np.testing.assert_array_equal(table.labels(paths, "foci", "punctate"), [np.nan, np.nan, 0, 0, 1])
    np.testing.assert_array_equal(table.labels(paths, "foci", "macro"), [np.nan, np.nan, 0, 0, 1])
    np.testing.assert_array_equal(table.labels(paths[2:], "foci", "comet_tail"), [0, 0, 0])
    np.testing.assert_array_equal(table.labels(paths, "shape", "taller"), [np.nan, np.nan, 0, np.nan, 1])
    np.testing.assert_array_equal(table.labels(paths[:2], "margin", "smooth"), [np.nan, np.nan])


@pytest.mark.parametrize(
    ("content", "columns", "message"),
    [
        ("filename,colour\na.jpg,red\n", "", r"no column .* \(composition, .*foci\)"),
        ("filename,margin,shape\na.jpg,,\nb.jpg,,\n", "", "no column with words"),
        ("filename,margin,margins\na.jpg,smooth,smooth\n", "", "margin is named twice .margin and margins"),
        ("filename,margin\na.jpg,smooth\n", "margin,margin=margin", "named twice"),
        ("filename,margin\na.jpg,smooth\n", "margin,foci=margin", "column margin is named twice"),
        ("filename,shape\na.jpg,wider\n", "shpe=shape", "shpe is no descriptor; did you mean shape.*echogenicity"),
        ("filename,age\na.jpg,40\n", "age", "age is no descriptor"),
        ("filename,margins\na.jpg,smooth\n", "margin", "column margin does not exist.*did you mean margins"),
        ("filename,margins\na.jpg,smooth\n", "margin=", "column  does not exist"),
        ("filename,margin\na.jpg,smooth\n", "margin=filename", "column filename does not exist"),
        (
            "filename,tirads\na.jpg,4a\n",
            "margin=tirads",
            "column tirads holds no word for margin; expected smooth, ill",
        ),
        ("filename,margin\na.jpg,2\nb.jpg,3\n", "", "column margin holds no word"),
        ("filename,margin\na.jpg,\nb.jpg,\n", "margin", "column margin holds no word"),
        ("filename,margin,shape\na.jpg,2024-01-31,wider\n", "margin", "column margin does not exist, or holds dates"),
        ("margin\nsmooth\n", "", "filename"),
        ("filename,frame,margin\na.dcm,1,smooth\na.dcm,2,smooth\n", "", r"rows 2, 3.*give its clinical\.csv"),
        ("patient,margin\n1,smooth\n1,smooth\n", "", "patient occurs twice: rows 2, 3"),
    ],
)
def test_what_cannot_be_used_is_named_before_a_run(tmp_path, content, columns, message):
    (tmp_path / "labels.csv").write_text(content)
    location = f"{tmp_path / 'labels.csv'}#{columns}"
    for call in (descriptors_csv.check, lambda given: DescriptorTable.read(given, scans(3))):
        with pytest.raises(InputError, match=message) as error:
            call(location)
        assert "labels.csv" in str(error.value)
        assert "\n" not in str(error.value)


def test_a_file_that_does_not_exist(tmp_path):
    with pytest.raises(InputError, match=r"none\.csv: no such file"):
        descriptors_csv.check(tmp_path / "none.csv")


def test_a_table_of_other_scans_is_refused_by_its_own_name(read):
    with pytest.raises(InputError, match=r"^labels\.csv: no row matches"):
        read("filename,margin\nother.jpg,smooth\n", of=scans(3))


def test_unknown_words_count_as_missing_and_only_those_of_several_patients_are_named(read):
    words = ["smooth"] * 4 + ["blurry", "Blurry", "Kim", f"long {'x' * 60}", f"long {'x' * 60}", "solid+cystic"]
    table = read({"margins": words})
    assert cells(table, "margin") == [{"smooth"}] * 4 + [None] * 6
    (note,) = table.notes
    assert note.startswith("labels.csv: column margins: 6 scans have a word that is not known")
    assert "blurry" in note.casefold()
    assert f'"long {"x" * 35}"' in note
    assert "Kim" not in note
    assert "solid" not in note


def test_not_more_than_some_unknown_words_are_named(read):
    table = read({"margin": ["smooth", *(f"word {number // 2}" for number in range(20))]})
    assert table.notes[0].count('"') == 2 * descriptors_csv.MOST_WORDS
    assert ", ..." in table.notes[0]


def test_a_word_that_is_not_known_is_one(read):
    assert "1 scan has" in read({"margin": ["smooth", "lobulated", "blurry"]}).notes[0]


def test_two_words_that_exclude_each_other_are_no_word(read):
    table = read({"composition": ["solid+cystic", "solid"], "foci": ["none+punctate", "none"]})
    assert cells(table, "composition") == [None, {"solid"}]
    assert cells(table, "foci") == [None, {"none"}]
    assert len(table.notes) == 2


def test_scans_without_a_row_and_rows_without_a_scan_are_noted(read):
    rows = "".join(f"{name(patient)},smooth\n" for patient in (1, 2, 9))
    notes = " ".join(read(f"filename,margin\n{rows}", of=scans(3)).notes)
    assert "1 rows of labels.csv belong to unknown files" in notes
    assert "1 scans have no row in labels.csv" in notes
    assert "clinical" not in notes


def test_other_columns_are_neither_used_nor_noted(read):
    rows = "".join(f"{name(patient)},{patient},2024-01-0{patient},same,smooth\n" for patient in (1, 2, 3))
    table = read(f"filename,case id,visit,constant,margin\n{rows}")
    assert list(table.rows) == ["margin"]
    assert table.notes == []


def rows_of(*words: str) -> str:
    """Two views of each patient."""
    lines = [f"{name(1 + n // 2, 1 + n % 2)},{word}\n" for n, word in enumerate(words)]
    return "filename,margin,shape\n" + "".join(lines)


def test_views_of_a_patient_with_different_words_count_and_are_noted(read):
    content = rows_of("smooth,wider", "lobulated,wider", "smooth,wider", "smooth,taller", "smooth,", "lobulated,")
    table = read(content, of=scans(3, images=2))
    assert [cell is not None for cell in table.rows["margin"]] == [True] * 6
    assert table.notes == [
        "labels.csv: column shape: 1 patient has scans with different words, which all count",
        "labels.csv: column margin: 2 patients have scans with different words, which all count",
    ]


def test_near_duplicates_with_different_words_count_as_missing(read):
    of = scans(3, images=2, group=[1, 1, 1, 1, 2, 2])
    near = int(of["phash"][0], 16) ^ 0b1011
    of.loc[2, "phash"] = f"{near:0256x}"  # patient 2 has a copy of the first scan of patient 1
    of.loc[5, "phash"] = of["phash"][4]
    content = rows_of("smooth,wider", "smooth,", "lobulated,wider", "lobulated,", "ill-defined,", "ill defined,taller")
    table = read(content, of=of)
    assert cells(table, "margin") == [None, {"smooth"}, None, {"lobulated"}, {"ill_defined"}, {"ill_defined"}]
    assert cells(table, "shape") == [{"wider"}, None, {"wider"}, None, None, {"taller"}]
    assert table.notes == [
        "labels.csv: column margin: 2 near-duplicate scans have different words, which count as missing"
    ]


def test_copies_are_looked_for_once_and_only_where_words_differ(read, monkeypatch):
    compared = []

    def near_duplicates(hashes, plain=duplicates.near_duplicates):
        compared.append(len(hashes))
        return plain(hashes)

    monkeypatch.setattr(duplicates, "near_duplicates", near_duplicates)
    of = scans(4, images=2)
    read(rows_of("smooth,wider", "lobulated,wider", "smooth,wider", "smooth,taller", *["smooth,wider"] * 4), of=of)
    assert compared == [4]
    read(rows_of(*["smooth,wider"] * 8), of=of)
    assert compared == [4]


def test_the_words_of_phantoms_are_read(tmp_path):
    phantom.generate(tmp_path, patients=6, seed=2, varied=True)
    files = sorted(path.name for path in (tmp_path / "scans").iterdir())
    of = scans(6).assign(path=[f"/s/{file}" for file in files])
    table = DescriptorTable.read(tmp_path / phantom.WORDS, of)
    assert list(table.columns) == ["composition", "echogenicity", "shape", "margin", "foci"]
    for file, patient in zip(files, range(1, 7), strict=True):
        nodules, off_centre = phantom.variation(int(file[2:5]), 1, 2)
        words = phantom.draw(file[0], int(file[2:5]), 1, 2, nodules=nodules, off_centre=off_centre).largest_words
        row = table.rows.iloc[patient - 1]
        assert {name: set(cell) for name, cell in row.items() if cell} == {name: {word} for name, word in words.items()}
