import json
import re

import numpy as np
import pandas as pd
import pytest
from scipy.special import softmax
from sklearn.metrics import roc_auc_score

from thyroid import metrics
from thyroid.clinical import fusion
from thyroid.errors import InputError
from thyroid.records.clinical import FusionRecord


def planted(n, k, effect, seed=0, images=2):
    """Images that know something, and a clinical column that knows something else; `images` rows a patient."""
    r = np.random.default_rng(seed)
    y = r.integers(0, k, n)
    size, kind = effect * y + r.normal(size=n), r.choice(["a", "b"], n).astype(object)
    patient = np.repeat(np.arange(n), images)
    p = softmax(1.2 * np.eye(k)[y[patient]] + r.normal(size=(n * images, k)), axis=1)
    rows = pd.DataFrame({"size": size, "noise": r.normal(size=n), "kind": kind}).iloc[patient].reset_index(drop=True)
    rows.loc[::9, "size"] = np.nan
    return p, rows, y[patient], patient


def compared(p, rows, y, patient, **options):
    done = fusion.cross_fitted(p, rows, y, patient, folds=3)
    return done, fusion.compare(p, done.clinical, done.fused, y, patient, fold=done.fold, draws=400, **options)


@pytest.mark.parametrize("k", [2, 5])
def test_a_complementary_column_helps(k):
    p, rows, y, patient = planted(90, k, 2.0)
    done, facts = compared(p, rows, y, patient)
    np.testing.assert_allclose(done.fused.sum(axis=1), 1)
    np.testing.assert_allclose(done.clinical.sum(axis=1), 1)
    assert facts.verdict == "helped"
    assert facts.difference["fused_less_images"].low > 0
    assert facts.auroc["fused"].value > max(facts.auroc[name].value for name in ("images", "clinical"))
    assert str(facts.auroc["fused"]) in facts.sentence
    assert facts.patients == 90
    assert json.dumps(facts.to_dict(), allow_nan=False)


@pytest.mark.parametrize("seed", range(3))
def test_noise_does_not_help(seed):
    p, rows, y, patient = planted(100, 2 + seed % 2, 0.0, seed, images=1)
    _, facts = compared(p, rows, y, patient)
    difference = facts.difference["fused_less_images"]
    assert facts.verdict != "helped"
    assert difference.low <= 0
    assert abs(difference.value) < 0.05
    clinical = facts.auroc["clinical"]
    assert abs(clinical.value - 0.5) < 0.15


def test_folds_keep_patients_together_and_do_not_see_their_own():
    p, rows, y, patient = planted(60, 2, 1.0)
    done = fusion.cross_fitted(p, rows, y, patient, folds=3)
    assert (pd.Series(done.fold).groupby(patient).nunique() == 1).all()
    held = done.fold == 0
    head = fusion.fit(p[~held], rows[~held], y[~held], patient[~held])
    np.testing.assert_allclose(head.predict(p[held], rows[held])[0], done.fused[held])


def test_the_clinical_model_never_sees_the_images():
    p, rows, y, patient = planted(60, 3, 1.0)
    one = fusion.cross_fitted(p, rows, y, patient, folds=2)
    other = fusion.cross_fitted(p[:, ::-1], rows, y, patient, folds=2)
    np.testing.assert_array_equal(one.clinical, other.clinical)


def test_a_head_survives_json_and_takes_what_an_endpoint_has():
    p, rows, y, patient = planted(80, 3, 2.0)
    head = fusion.fit(p, rows, y, patient)
    content = json.loads(json.dumps(head.to_dict() | {"fields": head.encoder.fields()}, allow_nan=False))
    again = fusion.Fusion.from_record(FusionRecord.parse(content, "x"))
    assert again == head
    answer, notes = again.predict(p[:3], [{"size": 5}, {}, {"kind": "unseen"}])
    np.testing.assert_allclose(answer.sum(axis=1), 1)
    assert len(notes) == 1
    large, small = (again.predict(p[:1], [{"size": size}])[0][0] for size in (5, -5))
    assert large[2] > small[2]


def test_sure_images_and_calibration():
    """Out of fold probabilities that are right on average are left alone where columns say nothing."""
    r = np.random.default_rng(1)
    p = softmax(2 * r.normal(size=(1500, 3)), axis=1)
    y = np.array([r.choice(3, p=row) for row in p])
    rows = pd.DataFrame({"noise": r.normal(size=1500)})
    head = fusion.fit(p, rows, y, np.arange(1500))
    assert head.scale == pytest.approx(1, abs=0.15)
    assert abs(head.predict(p, rows)[0] - p).max() < 0.08
    p[:5] = [1, 0, 0]
    assert np.isfinite(fusion.fit(p[:200], rows[:200], y[:200], np.arange(200)).predict(p, rows)[0]).all()


def test_a_class_with_one_patient_and_one_without_any():
    p, rows, y, patient = planted(40, 2, 1.0, images=1)
    p = np.column_stack([p * 0.9, np.full((40, 2), 0.05)])
    y[7] = 2
    done, facts = compared(p, rows, y, patient)
    assert np.isfinite(done.fused).all()
    assert re.search(r"\bonly 1\b", facts.sentence)


def test_no_columns_change_nothing_but_calibration():
    p, rows, y, patient = planted(40, 2, 1.0)
    head = fusion.fit(p, rows[[]], y, patient)
    assert roc_auc_score(y, head.predict(p, rows)[0][:, 1]) == pytest.approx(roc_auc_score(y, p[:, 1]))


def test_two_classes_are_the_auroc_and_harm_is_reported():
    r = np.random.default_rng(0)
    y = r.integers(0, 2, 200)
    good, bad = (softmax(np.column_stack([-s, s]), axis=1) for s in (y + r.normal(size=200), r.normal(size=200)))
    facts = fusion.compare(good, bad, bad, y, np.arange(200), draws=300)
    assert facts.verdict == "harmed"
    assert facts.auroc["images"].value == pytest.approx(roc_auc_score(y, good[:, 1]))
    assert facts.difference["fused_less_clinical"] == metrics.Interval(0.0, 0.0, 0.0)
    same = fusion.compare(good, bad, good, y, np.arange(200), draws=300)
    assert same.verdict == "not shown to help"
    drawn = metrics.auroc_difference(y, bad[:, 1], good[:, 1], np.arange(200), draws=300)
    assert facts.difference["fused_less_images"].low == pytest.approx(drawn.low)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p, y: (p[:-1], y), "differ"),
        (lambda p, y: (p[:, 0], y), "differ"),
        (lambda p, y: (p * 2, y), "sum to 1"),
        (lambda p, y: (p * np.nan, y), "finite"),
        (lambda p, y: (p, y + 1), "0 to 1"),
        (lambda p, y: (p, y * 1.0), "0 to 1"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    p, rows, y, patient = planted(20, 2, 1.0)
    with pytest.raises(InputError, match=message):
        fusion.fit(*(a := change(p, y))[:1], rows, a[1], patient)


def test_too_few():
    p, rows, y, patient = planted(20, 2, 1.0)
    with pytest.raises(InputError, match="patients"):
        fusion.fit(p, rows, y, np.zeros(40))
    with pytest.raises(InputError, match="class"):
        fusion.compare(p, p, p, np.zeros(40, int), patient)
