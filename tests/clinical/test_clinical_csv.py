import re
import unicodedata

import numpy as np
import pandas as pd
import pytest

from thyroid.clinical import clinical_csv
from thyroid.errors import InputError


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def scans(count, images=1):
    rows = [(p, i) for p in range(1, count + 1) for i in range(1, images + 1)]
    return pd.DataFrame(
        {
            "path": [f"/s/B_{p:03d}-{i:04d}-1.0.jpg" for p, i in rows],
            "patient": [p for p, _ in rows],
            "image": [i for _, i in rows],
        }
    )


@pytest.fixture
def use(tmp_path):
    """Columns of values, one per patient, read and joined to one scan per patient."""

    def used(**columns):
        count = len(next(iter(columns.values())))
        table = pd.DataFrame({"patient": range(1, count + 1), **columns})
        table.to_csv(tmp_path / "clinical.csv", index=False)
        rows, notes = clinical_csv.join(scans(count), clinical_csv.read(tmp_path / "clinical.csv"))
        return rows, "; ".join(notes)

    return used


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("age,sex\n3,f\n", "filename .* patient"),
        ("patient\n1\n", "patient$"),
        ("filename,patient\na.jpg,1\n", "filename$"),
        ("patient,sex\n1,f\n2,f\n01,m\n", "patient .*rows 2, 4"),
        ("patient,sex\nB_001,f\n", "row 2: patient"),
        ("patient,sex\n1.5,f\n", "row 2: patient"),
        ("patient,sex\ninf,f\n", "row 2: patient"),
        ("patient,sex\nTrue,f\n", "row 2: patient"),
        ("patient,sex,sex \n1,f,f\n", "column sex"),
        ("patient,sex,SEX\n1,f,f\n", "column SEX"),
        ("patient;sex\n1;f\n", "semicolons"),
        ("patient,age,sex\n1,40,f,x\n2,50,m\n", "row 2: .*header"),
        ("patient,sex\n,f\n", "row 2: .*patient"),
        ("patient,,sex\n1,x,f\n", "name in the header"),
        ("patient,sex\n", "header"),
        ("", "header"),
        ('patient,sex\n1,"f\n', "UTF-8"),
    ],
)
def test_what_is_wrong_with_clinical_csv_is_reported(tmp_path, text, message):
    file = write(tmp_path / "clinical.csv", text)
    with pytest.raises(InputError, match=message) as error:
        clinical_csv.read(file)
    assert str(file) in str(error.value)


def test_all_that_is_wrong_with_the_keys_is_reported_at_once_without_a_value(tmp_path):
    text = "patient,name\n1,Kim\n1,Lee\n\nSecret,Park\n,Choi\n"
    with pytest.raises(InputError) as error:
        clinical_csv.read(write(tmp_path / "clinical.csv", text))
    message = str(error.value)
    assert sorted(re.findall(r"\d+", message.split("clinical.csv: ")[1])) == ["2", "3", "5", "6"]
    assert not any(word in message for word in ("Secret", "Kim", "Lee", "Park", "Choi"))


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match=r"clinical\.csv"):
        clinical_csv.read(tmp_path / "clinical.csv")
    (tmp_path / "clinical.csv").write_bytes("patient,sex\n1,여\n".encode("euc-kr"))
    with pytest.raises(InputError, match="UTF-8"):
        clinical_csv.read(tmp_path / "clinical.csv")


def test_blanks_byte_order_marks_and_commas_at_the_ends_shift_nothing(tmp_path):
    text = "\ufeff\n patient, age,sex,\n1,40, f,\n\n2.0,50,m ,\n3,,,\n"
    table = clinical_csv.read(write(tmp_path / "clinical.csv", text))
    assert table.rows["patient"].tolist() == [1, 2, 3]
    assert table.rows["sex"].tolist() == ["f", "m", None]
    np.testing.assert_array_equal(table.rows["age"], [40, 50, np.nan])
    assert table.notes == []


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("visit", [f"2024-01-{day:02d}" for day in range(1, 31)]),
        ("visit", [f"{day}/01/2024" for day in range(1, 31)]),
        ("visit", [f"2024. 1. {day}" for day in range(1, 31)]),
        ("visit", [f"2024-01-{day:02d} 12:30" for day in range(1, 31)]),
        ("visit", [f"{day}-Jan-2024" for day in range(1, 31)]),
        ("visit", [20240100 + day for day in range(1, 31)]),
        ("visit", ["2024-01-01"] * 28 + ["soon", "45000"]),
        ("Visit date", [45000 + 17 * day % 29 for day in range(30)]),
        ("date_of_birth", [10_500 - 7 * day for day in range(30)]),
        ("생년월일", [28000 + 13 * day % 29 for day in range(30)]),
    ],
)
def test_dates_are_noted_and_not_used(use, name, values):
    rows, notes = use(**{name: values, "sex": ["f", "m"] * 15})
    assert list(rows) == ["sex"]
    assert f"column {name} " in notes
    assert "2024" not in notes


def test_numbers_that_look_a_little_like_dates_stay(use):
    values = [45000 + 17 * day % 29 for day in range(30)]
    rows, _ = use(platelets=values, outdated=values)
    assert list(rows) == ["platelets", "outdated"]


def test_what_is_no_number_in_a_column_of_numbers_counts_as_missing_and_is_noted(use):
    size = [7 + 5 * n % 31 for n in range(30)]
    size[3:6] = ["Secret", "inf", "2024-01-31"]
    rows, notes = use(size=size)
    assert rows["size"].dtype == float
    assert rows["size"].isna().sum() == 3
    assert re.search(r"column size [^;]*\b2\b[^;]*\b1\b[^;]*\(rows 5, 7\)", notes)
    assert re.search(r"column size [^;]*\b1\b[^;]*\(row 6\)", notes)
    assert "Secret" not in notes


def test_grades_are_categories_and_mixtures_are_not_used(use):
    rows, notes = use(
        tirads=["2", "3", "4a", "5", None] * 16,
        size=[f"{n * 37 % 79}{' mm' if n % 2 else ''}" for n in range(80)],
    )
    assert rows["tirads"].dtype == object
    assert list(rows) == ["tirads"]
    assert re.search(r"column size\b", notes)


def test_spellings_of_a_category_are_one(use):
    composed, apart = (unicodedata.normalize(form, "Zyste groß é") for form in ("NFC", "NFD"))
    values = ["Solid", "solid", " SOLID ", "solid", composed, apart, apart.upper(), "none", "None", "N/A", "", "-"]
    rows, notes = use(composition=values)
    assert set(rows["composition"].dropna()) == {"solid", composed, "none"}, "none is a finding, not a gap"
    assert rows["composition"].isna().sum() == 3
    assert re.search(r"column composition\b.*\b3\b", notes)


def test_columns_that_only_identify_patients_are_noted_and_not_used(use):
    n = 60
    rows, notes = use(
        constant=["x"] * n,
        empty=[None] * n,
        code=[f"P{i * 7919 % 1009}" for i in range(n)],
        record_id=[i * 7919 % 1009 for i in range(n)],
        order=[100 + 3 * i for i in range(n)],
        number=range(1, n + 1),
        remark=[f"text {i * 7 % 40}" for i in range(n)],
        age=[20 + i * 37 % 53 for i in range(n)],
    )
    assert list(rows) == ["age"]
    for name in ("constant", "empty", "code", "record_id", "order", "number", "remark"):
        assert f"column {name} " in notes
    assert re.search(r"column remark [^;]*\b40\b", notes)
    assert "P0" not in notes


def test_a_patient_has_one_row_and_a_file_its_own(tmp_path):
    joined = scans(20, 2).iloc[::-1]
    by_patient = "".join(f"{p},{p * 7 % 5}\n" for p in range(3, 31))
    rows, notes = clinical_csv.join(joined, clinical_csv.read(write(tmp_path / "p.csv", f"patient,age\n{by_patient}")))
    assert rows.index.equals(joined.index)
    known = joined["patient"] >= 3
    assert (rows["age"][known] == joined["patient"][known] * 7 % 5).all()
    assert rows["age"][~known].isna().all()
    assert sum(bool(re.match(r"(10 rows|4 scans)\b", note)) for note in notes) == 2
    by_file = "".join(
        f"x/{path.rsplit('/', 1)[1]},{i},{i * 7 % 5}\n" for path, i in zip(joined["path"], joined["image"], strict=True)
    )
    rows, notes = clinical_csv.join(
        joined, clinical_csv.read(write(tmp_path / "f.csv", f"filename,frame,size\n{by_file}"))
    )
    assert list(rows) == ["size"]
    (note,) = notes
    assert note.startswith("clinical.csv: column frame ")


@pytest.mark.parametrize("text", ["filename,sex\nB_001,f\nB_002,m\n", "patient,sex\n77,f\n78,m\n"])
def test_no_row_of_a_scan_in_use(tmp_path, text):
    with pytest.raises(InputError, match=r"clinical\.csv"):
        clinical_csv.join(scans(3), clinical_csv.read(write(tmp_path / "clinical.csv", text)))


def test_a_column_that_a_model_uses_is_kept_where_it_is_constant(tmp_path):
    """At a site where everybody is a woman, the model that takes the sex must still get it."""
    file = write(tmp_path / "clinical.csv", "patient,sex,age,ward\n1,F,40,A\n2,F,50,A\n3,F,60,A\n")
    rows, notes = clinical_csv.join(scans(3), clinical_csv.read(file), ["sex"])
    assert list(rows) == ["sex", "age"]
    assert set(rows["sex"]) == {"F"}
    assert "column ward is constant" in "; ".join(notes)
