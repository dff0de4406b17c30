import re

import pandas as pd
import pytest

from tests.evaluate.test_performance import POINT, predictions
from thyroid.clinical import clinical_csv, clinical_table
from thyroid.evaluate import performance


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def scans() -> pd.DataFrame:
    return pd.DataFrame({"path": [f"/s/B_{n:03d}-0001-1.0.jpg" for n in range(1, 31)], "patient": range(1, 31)})


def test_groups_by_patient(tmp_path, scans):
    rows = "".join(f"{n},{'f' if n % 3 else 'm'},{20 + n * 7 % 29},{n % 4},same,name {n}\n" for n in range(1, 29))
    file = write(tmp_path / "clinical.csv", f"patient,sex,age,children,scanner,remark\n{rows}99,f,50,0,same,x\n")
    groups, notes = clinical_table.subgroups(scans, clinical_csv.read(file))
    assert list(groups.columns) == ["sex", "age", "children"]
    assert groups["sex"].isna().sum() == 2
    assert groups["age"].nunique() == clinical_table.BANDS
    assert groups["children"].tolist()[:4] == ["1", "2", "3", "0"]
    told = "; ".join(notes)
    for words in (r"1 rows of clinical\.csv", "2 scans", "column scanner", "column remark"):
        assert re.search(rf"\b{words}\b", told)


def test_too_many_texts_are_no_groups(tmp_path, scans):
    rows = "".join(f"{n},text {n * 7 % 15}\n" for n in range(1, 31))
    groups, notes = clinical_table.subgroups(
        scans, clinical_csv.read(write(tmp_path / "c.csv", f"patient,remark\n{rows}"))
    )
    assert groups.empty
    (note,) = notes
    assert re.match(r"clinical\.csv: column remark\b.*\b15\b", note)


def test_odd_values_make_groups_or_notes(tmp_path, scans):
    rows = "".join(
        f"{n},{'f ' if n % 2 else 'F'},{'unknown' if n == 1 else n * 7 % 31}.25,{n % 2 == 0},\n" for n in range(1, 31)
    )
    groups, notes = clinical_table.subgroups(
        scans, clinical_csv.read(write(tmp_path / "c.csv", f"patient,sex,age,smoker\n{rows}"))
    )
    assert re.search(r"\bcolumn sex\b", "; ".join(notes)), "case and blanks around a text make no second group"
    assert re.search(r"\bcolumn age\b.*\b1\b", "; ".join(notes))
    assert set(groups["smoker"]) == {"True", "False"}
    assert groups["age"].nunique() == clinical_table.BANDS


def test_groups_by_file(tmp_path, scans):
    file = write(
        tmp_path / "c.csv", "filename,tirads\n" + "".join(f"{p[3:]},{i % 3 + 3}\n" for i, p in enumerate(scans["path"]))
    )
    groups, notes = clinical_table.subgroups(scans, clinical_csv.read(file))
    assert groups["tirads"].tolist()[:3] == ["3", "4", "5"]
    assert not notes


def test_figures_with_counts_and_small_groups_marked():
    table = predictions(100, 2)
    table[performance.SUBGROUP + "sex"] = ["f" if p % 4 else "m" for p in table["patient"]]
    table[performance.SUBGROUP + "only"] = ["benign" if label == "B" else None for label in table["label"]]
    rows = {(row.column, row.group): row for row in performance.by_subgroup(table, POINT.threshold, 0.1)}
    large, small = rows["sex", "f"], rows["sex", "m"]
    assert (large.images, large.patients, large.small) == (150, 75, False)
    assert small.small
    assert small.malignant + small.benign == 25
    assert small.auroc.low < small.auroc.value
    assert "auroc" not in rows["only", "benign"].to_dict(), "one class has no AUROC"
    assert rows["only", "benign"].specificity.value > 0
