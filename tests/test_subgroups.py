import pandas as pd
import pytest

from tests.test_figures import POINT, predictions
from thyroid import subgroups
from thyroid.errors import InputError


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("age,sex\n3,f\n", "needs a column filename .* or patient"),
        ("patient\n1\n", "no column beside patient"),
        ("patient,sex\n1,f\n1,m\n", "patient 1 comes twice"),
        ("patient,sex\nB_001,f\n", "'B_001' is not a whole number"),
        ("patient,sex\n1.5,f\n", "'1.5' is not a whole number"),
        ("patient,sex\ninf,f\n", "'inf' is not a whole number"),
        ("patient,sex\nTrue,f\n", "'True' is not a whole number"),
        ("patient,sex,sex \n1,f,f\n", "column sex comes twice"),
        ("patient,sex,sex\n1,f,f\n", r"column sex\.1 comes twice"),
        ("patient;sex\n1;f\n", "separated by semicolons"),
        ("patient,age,sex\n1,40,f,x\n2,50,m,y\n", "more fields than the header"),
        ("patient,sex\n,f\n", "1 rows have no patient"),
        ("", "not a CSV"),
    ],
)
def test_what_is_wrong_with_clinical_csv_is_said(tmp_path, text, said):
    with pytest.raises(InputError, match=said):
        subgroups.read(write(tmp_path / "clinical.csv", text))


def test_commas_at_the_ends_shift_nothing(tmp_path):
    table = subgroups.read(write(tmp_path / "clinical.csv", "patient,age,sex\n1,40,f,\n2,50,m,\n"))
    assert table.to_dict("list") == {"patient": [1, 2], "age": [40, 50], "sex": ["f", "m"]}


def test_no_clinical_csv(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        subgroups.read(tmp_path / "clinical.csv")


@pytest.fixture
def scans() -> pd.DataFrame:
    return pd.DataFrame({"path": [f"/s/B_{n:03d}-0001-1.0.jpg" for n in range(1, 31)], "patient": range(1, 31)})


def test_groups_by_patient(tmp_path, scans):
    rows = "".join(f"{n},{'f' if n % 3 else 'm'},{20 + n},same,name {n}\n" for n in range(1, 29))
    file = write(tmp_path / "clinical.csv", f"patient,sex,age,scanner,remark\n{rows}99,f,50,same,x\n")
    groups, notes = subgroups.join(scans, subgroups.read(file))
    assert list(groups.columns) == ["sex", "age"]
    assert groups["sex"].isna().sum() == 2
    assert groups["age"].nunique() == subgroups.BANDS
    told = "; ".join(notes)
    assert "1 rows of clinical.csv are of unknown patients" in told
    assert "2 scans have no row" in told
    assert "column scanner is constant" in told
    assert "column remark has 28 different texts" in told


def test_odd_values_make_groups_or_notes(tmp_path, scans):
    rows = "".join(
        f"{n},{'f ' if n % 2 else 'f'},{'unknown' if n == 1 else n + 20},{'inf' if n == 2 else n},{n % 2 == 0},"
        f"{'' if n == 3 else 20240100 + n}\n"
        for n in range(1, 31)
    )
    file = tmp_path / "clinical.csv"
    file.write_text(f"patient,sex,age,size,smoker,date\n{rows}")
    groups, notes = subgroups.join(scans, subgroups.read(file))
    assert "column sex is constant" in "; ".join(notes), "blanks around a text make no second group"
    assert "column age has 1 values that are no numbers" in "; ".join(notes)
    assert set(groups["smoker"]) == {"True", "False"}
    for column in ("age", "size", "date"):
        assert groups[column].nunique() == 3, column


def test_no_row_of_a_scan_in_use(tmp_path, scans):
    file = write(tmp_path / "clinical.csv", "filename,sex\nB_001,f\nB_002,m\n")
    with pytest.raises(InputError, match=r"no row is of a scan in use; filename should be like B_001-0001-1\.0\.jpg"):
        subgroups.join(scans, subgroups.read(file))


def test_groups_by_file(tmp_path, scans):
    file = write(
        tmp_path / "c.csv", "filename,tirads\n" + "".join(f"{p[3:]},{i % 3 + 3}\n" for i, p in enumerate(scans["path"]))
    )
    groups, notes = subgroups.join(scans, subgroups.read(file))
    assert groups["tirads"].tolist()[:3] == ["3", "4", "5"]
    assert not notes


def test_figures_with_counts_and_small_groups_marked():
    table = predictions(100, 2)
    table[subgroups.PREFIX + "sex"] = ["f" if p % 4 else "m" for p in table["patient"]]
    table[subgroups.PREFIX + "only"] = ["benign" if label == "B" else None for label in table["label"]]
    rows = {(row["column"], row["group"]): row for row in subgroups.figures(table, POINT, 0.1)}
    large, small = rows["sex", "f"], rows["sex", "m"]
    assert (large["images"], large["patients"], large["small"]) == (150, 75, False)
    assert small["small"]
    assert small["malignant"] + small["benign"] == 25
    assert small["auroc"]["low"] < small["auroc"]["value"]
    assert "auroc" not in rows["only", "benign"], "one class has no AUROC"
    assert rows["only", "benign"]["specificity"]["value"] > 0
