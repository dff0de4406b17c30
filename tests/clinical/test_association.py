import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.stats import chi2_contingency, kruskal

from thyroid.clinical import association, leakage, plots
from thyroid.errors import InputError


def noise(n, columns, seed, k=2):
    r = np.random.default_rng(seed)
    table = {
        f"c{i}": r.normal(size=n) if i % 2 else r.choice(["a", "b", "c"], n).astype(object) for i in range(columns)
    }
    return pd.DataFrame(table), r.integers(0, k, n), r


@pytest.fixture
def quick(monkeypatch):
    """Few draws, where their number does not matter."""
    monkeypatch.setattr(association, "EFFECT_DRAWS", 10)
    monkeypatch.setattr(association, "PERMUTATIONS", 199)
    monkeypatch.setattr(leakage, "LEAK_DRAWS", 200)
    monkeypatch.setattr(plots, "SHOWN", 5)


def names(k):
    return [f"class {i}" for i in range(k)]


def column(facts, name):
    return next(row for row in facts.columns if row.column == name)


def test_planted_effects_are_found_and_noise_is_not():
    rows, y, r = noise(150, 6, 0, 3)
    rows["size"] = y + r.normal(size=150)
    rows["margins"] = np.where(r.random(150) < 0.3 + 0.3 * (y == 2), "ill-defined", "smooth")
    rows["tsh"] = np.where(r.random(150) < 0.15 + 0.35 * (y == 0), np.nan, r.normal(size=150))
    facts = association.describe(rows, y, np.arange(150), names(3))
    assert json.dumps(facts.to_dict(), allow_nan=False)
    found = {row.column for row in facts.columns if row.p_corrected < 0.05}
    assert found == {"size", "margins"}
    assert {r.column for r in facts.columns if (r.missing.p_corrected or 1) < 0.05} == {"tsh"}
    size = column(facts, "size")
    expected = kruskal(*(rows["size"][y == c] for c in range(3)))
    assert size.p == pytest.approx(expected.pvalue)
    assert size.effect.value == pytest.approx(expected.statistic / 149)
    assert size.effect.low > 0.1
    assert size.effect.low < size.effect.value < size.effect.high
    assert size.distribution["class 0"][2] == pytest.approx(np.median(rows["size"][y == 0]))
    margins = column(facts, "margins")
    assert margins.p == pytest.approx(chi2_contingency(pd.crosstab(rows["margins"], y), correction=False).pvalue)
    assert sum(sum(counts.values()) for counts in margins.distribution.values()) == 150
    assert column(facts, "tsh").missing.by_class["class 0"] == pytest.approx(rows["tsh"][y == 0].isna().mean())


def test_noise_is_called_associated_about_as_often_as_it_should_be(quick):
    raw, any_found = [], []
    for seed in range(30):
        rows, y, _ = noise(30, 4, seed)
        facts = association.describe(rows, y, np.arange(30), names(2), seed)
        raw += [row.p for row in facts.columns]
        any_found.append(min(row.p_corrected for row in facts.columns) < 0.05)
    assert 0.01 < np.mean(np.array(raw) < 0.05) < 0.1
    assert np.mean(any_found) <= 0.15


def test_permutations_agree_with_chi_squared_where_it_holds():
    rows, y, r = noise(200, 1, 3)
    x = pd.get_dummies(rows["c0"]).to_numpy(float)
    scaled = x / np.sqrt(x.sum(axis=0))
    expected = chi2_contingency(x.T @ np.eye(2)[y], correction=False).pvalue
    assert association._permuted(scaled, y, r) == pytest.approx(expected, abs=0.03)


def test_holm():
    assert association.holm([0.01, None, 0.04, 0.03, 0.6]) == pytest.approx([0.04, None, 0.09, 0.09, 0.6], abs=1e-12)
    assert association.holm([]) == []


def test_patients_are_the_units(quick):
    rows, y, r = noise(40, 3, 1)
    rows["size"] = y + r.normal(size=40)
    once = association.describe(rows, y, np.arange(40), names(2))
    again = np.repeat(np.arange(40), 5)
    many = association.describe(rows.iloc[again].reset_index(drop=True), y[again], again, names(2))
    assert many.patients == 40
    assert [row.p for row in many.columns] == pytest.approx([row.p for row in once.columns])


def test_odd_columns_and_a_class_with_one_patient(tmp_path, quick):
    rows, y, _ = noise(40, 2, 1)
    y[3] = 2
    rows["constant"] = "x"
    rows["empty"] = np.nan
    rows["$one_{ $ 여"] = [None] * 39 + [1.0]
    facts = association.describe(rows, y, np.arange(40), names(4))
    assert json.dumps(facts.to_dict(), allow_nan=False)
    assert column(facts, "empty").p is None
    assert "permutations" in column(facts, "c1").test
    assert column(facts, "c1").distribution["class 3"] is None
    assert plots.draw(facts, tmp_path) == list(plots.TITLES)
    found = leakage.find(rows, y, np.arange(40), names(4), positive=[False, False, True, True])
    assert json.dumps(found.to_dict(), allow_nan=False)
    assert not found.findings


def test_pictures(tmp_path, quick, drawn):
    rows, y, _ = noise(60, 7, 2, 4)
    rows.loc[::5, "c1"] = np.nan
    facts = association.describe(rows, y, np.arange(60), names(4))
    assert plots.draw(facts, tmp_path) == list(plots.TITLES)
    for name in plots.TITLES:
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert picture.width > 600
    assert plots.draw(facts.model_copy(update={"columns": []}), tmp_path / "none") == []


def test_a_column_that_gives_the_class_away_is_named(quick):
    rows, y, r = noise(150, 3, 0, 4)
    positive = np.array([False, False, True, True])
    rows["code"] = np.array([3.0, 1.0, 7.0, 5.0])[y]
    rows["grade"] = np.array(["z", "x", "y", "w"], object)[y]
    rows["side"] = np.where(positive[y], "M", "B")
    rows["biopsy"] = np.where(positive[y], "done", None)
    rows["score"] = y + r.normal(size=150)
    facts = leakage.find(rows, y, np.arange(150), names(4), positive=positive)
    found = {row.column for row in facts.columns if row.finding}
    assert found == {"code", "grade", "side", "biopsy"}
    assert len(facts.findings) == 4
    for name in found:
        assert name in column(facts, name).finding
    assert column(facts, "grade").auroc.low > leakage.GIVES_AWAY
    assert column(facts, "side").side_auroc.value == 1
    assert "1.000" in column(facts, "side").finding
    assert column(facts, "biopsy").missing_auroc.low > leakage.MISSING_GIVES_AWAY
    assert "missing" in column(facts, "biopsy").finding
    assert facts.together.columns == ["c0", "c1", "c2", "score"]
    assert json.dumps(facts.to_dict(), allow_nan=False)


def test_columns_that_define_the_class_together_are_reported():
    r = np.random.default_rng(0)
    signs = r.integers(0, 2, (200, 4))
    y = (signs.sum(axis=1) >= 2).astype(int)
    rows = pd.DataFrame(signs, columns=list("abcd")).map(lambda one: "yes" if one else "no")
    facts = leakage.find(rows, y, np.arange(200), names(2))
    assert not any(row.finding for row in facts.columns)
    assert len(facts.findings) == 1
    assert facts.together.columns == list("abcd")
    assert facts.together.auroc.low > leakage.TOGETHER
    assert str(facts.together.auroc) in facts.findings[0]


def test_a_good_predictor_is_no_leak(quick):
    for seed in range(2):
        rows, y, r = noise(300, 1, seed)
        rows["good"] = 1.47 * y + r.normal(size=300)  # an AUROC of .85
        facts = leakage.find(rows, y, np.arange(300), names(2), positive=[False, True], seed=seed)
        assert column(facts, "good").auroc.value > 0.7
        assert not facts.findings


def test_noise_among_many_columns_and_luck_with_few_patients_are_no_leak(quick):
    rows, y, _ = noise(120, 20, 5)
    assert not leakage.find(rows, y, np.arange(120), names(2)).findings
    for seed in range(2):
        rows, _, _ = noise(24, 10, seed)
        y = np.array([1] * 4 + [0] * 20)
        rows["lucky"] = np.where(y == 1, "a", "b")
        facts = leakage.find(rows, y, np.arange(24), names(2), seed=seed)
        assert not facts.findings, "four patients prove nothing"


def test_many_images_of_few_patients_are_few_patients():
    y = np.array([1] * 4 + [0] * 4)
    again = np.repeat(np.arange(8), 30)
    rows = pd.DataFrame({"lucky": np.where(y == 1, "a", "b")}).iloc[again].reset_index(drop=True)
    assert not leakage.find(rows, y[again], again, names(2)).findings


def test_what_cannot_be_searched_is_refused():
    rows, y, _ = noise(20, 2, 0)
    with pytest.raises(InputError, match="class"):
        leakage.find(rows, y * 0, np.arange(20), names(2))
    with pytest.raises(InputError, match="patients"):
        leakage.find(rows, y, np.zeros(20), names(2))
