"""What a site's own operating point would gain, and how many patients it needs."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, softmax

from tests.support import toy_artefact
from thyroid import metrics
from thyroid.data.classes import BINARY, Classes, parse
from thyroid.data.filenames import SCORE
from thyroid.evaluate import performance, predictions
from thyroid.model.artefact import Artefact
from thyroid.model.operating_point import OperatingPoint
from thyroid.records.validation import ValidateSettings
from thyroid.validate import recalibration

SETTINGS = ValidateSettings(prevalence=0.1, wanted=0.85, seed=0)
POINT = OperatingPoint(1.0, (0.0, 0.0), 0.4, (0.4, 0.4))
GRADES = parse("2<3|4<5")


def judged(raw: np.ndarray, names: np.ndarray, classes: Classes, point: OperatingPoint, views: int) -> pd.DataFrame:
    """A table of predictions with the columns of the endpoint's."""
    patient = np.repeat(np.arange(1, len(raw) // views + 1), views)
    table = pd.DataFrame(raw, columns=classes.columns).assign(
        **{"class": names, "label": [classes.side(name) for name in names], "patient": patient, "group": patient},
        path=[f"/scans/{n}.jpg" for n in range(len(raw))],
        scan=[f"{n}.jpg" for n in range(len(raw))],
        sha256=[f"{n:064x}" for n in range(len(raw))],
        undecided="",
        box_probability=np.nan,
    )
    return predictions.at_point(table, point, classes)


def site(patients: int = 120, shift: float = 0.0, views: int = 2, seed: int = 0) -> pd.DataFrame:
    """A site, half of whose patients are malignant, whose log-odds are shifted; at 0 the probabilities are right."""
    rng = np.random.default_rng(seed)
    odds = rng.normal(0, 2, patients)
    malignant = rng.random(patients) < expit(odds)
    score = expit(np.repeat(odds, views) + rng.normal(0, 0.2, patients * views) + shift)
    names = np.repeat(np.where(malignant, "M", "B"), views)
    return judged(np.stack([1 - score, score], axis=1), names, BINARY, POINT, views)


def graded(patients: int = 100, seed: int = 0) -> pd.DataFrame:
    """A site with four grades, a fourth of the patients each."""
    rng = np.random.default_rng(seed)
    truth = np.arange(patients) % 4
    raw = softmax(np.eye(4)[truth] * 1.5 + rng.normal(0, 1, (patients, 4)), axis=1)
    return judged(raw, np.array(GRADES.names)[truth], GRADES, OperatingPoint(1.0, (0.0,) * 4, 0.5, (0.3,) * 4), 1)


@pytest.fixture(scope="module")
def artefact(tmp_path_factory) -> Artefact:
    told = POINT.to_dict() | {"settings": {"sensitivity": 0.9, "abstain": 0.0, "prevalence": 0.1}}
    return Artefact.describe(tmp_path_factory.mktemp("artefact"), toy_artefact.description(**told))


def cross_fit(table: pd.DataFrame, artefact: Artefact, classes: Classes = BINARY):
    return recalibration.cross_fit(table, classes, artefact, SETTINGS, boxes="given")


def test_a_site_whose_scores_are_too_low_gains_sensitivity_and_pays_for_it(artefact):
    table = site(shift=-2.0)
    found, reason, crossed = cross_fit(table, artefact)
    assert reason is None
    assert (found.boxes, found.folds, found.patients) == ("given", 5, 120)
    assert found.gain["sensitivity"].low > 0 > found.gain["specificity"].high
    assert found.gain["brier"].high < 0
    assert found.gain["ece"].high < 0
    assert found.before["observed_to_expected"].low > 1.3
    assert abs(found.after["observed_to_expected"].value - 1) < 0.1
    for name, gain in found.gain.items():
        assert gain.value == pytest.approx(found.after[name].value - found.before[name].value), name
    assert "the gain of sensitivity is paid for with specificity" in found.summary
    caught, spared = found.gain["sensitivity"], found.gain["specificity"]
    assert (
        f"more malignant images would be called malignant ({100 * caught.value:.1f} [{100 * caught.low:.1f} to "
        f"{100 * caught.high:.1f}] of 100)"
    ) in found.summary
    assert (
        f"fewer benign images would be called benign ({-100 * spared.value:.1f} [{-100 * spared.high:.1f} to "
        f"{-100 * spared.low:.1f}] of 100)"
    ) in found.summary
    assert "the probabilities would fit better" in found.summary
    assert "does not improve the AUROC" in found.summary
    called = crossed[SCORE] >= crossed[recalibration.THRESHOLD]
    assert found.after["sensitivity"].value == pytest.approx(called[crossed["label"] == "M"].mean())
    assert (crossed["decision"] == np.where(called, "malignant", "benign")).all()


def test_before_is_what_the_version_reaches_at_the_site(artefact):
    table = site(shift=-1.0)
    found, _, _ = cross_fit(table, artefact)
    measured = performance.of(table, BINARY, POINT, SETTINGS.prevalence, SETTINGS.seed)
    for name in ("sensitivity", "specificity", "ece", "brier"):
        assert found.before[name] == getattr(measured, name), name
    assert found.before["observed_to_expected"].value == pytest.approx(
        (table["label"] == "M").mean() / table[SCORE].mean()
    )


def test_where_nothing_is_wrong_nothing_is_shown_to_be_gained(artefact):
    found, _, _ = cross_fit(site(seed=1), artefact)
    for name in ("observed_to_expected", "ece"):
        assert found.gain[name].low <= 0 <= found.gain[name].high
    assert found.gain["brier"].high > 0, "fitting costs a little"
    assert "the probabilities are not shown to fit better or worse" in found.summary


def test_a_loss_without_a_gain_is_said(artefact):
    """A version whose threshold was as low as the site's own would be, but for chance."""
    found, _, _ = cross_fit(site(seed=0), artefact)
    assert found.gain["sensitivity"].low <= 0 <= found.gain["sensitivity"].high
    assert found.gain["specificity"].high < 0
    assert "specificity is lost, and no gain is shown for it" in found.summary
    few, _, _ = cross_fit(site(40, seed=3), artefact)
    assert few.gain["sensitivity"].low <= 0 <= few.gain["sensitivity"].high
    assert few.gain["specificity"].low <= 0 <= few.gain["specificity"].high
    assert "no change of sensitivity or specificity is shown" in few.summary


def test_no_row_is_scaled_by_what_its_own_patient_says(artefact):
    table = site()
    _, _, before = cross_fit(table, artefact)
    other = table.copy()
    mine = other["patient"] == 1
    other.loc[mine, ["raw_B", "raw_M"]] = [0.0001, 0.9999]
    other.loc[~mine & (other["patient"] == 2), ["raw_B", "raw_M"]] = [0.5, 0.5]
    _, _, after = cross_fit(other, artefact)
    same = before[recalibration.THRESHOLD] == after[recalibration.THRESHOLD]
    folds = before.groupby("patient")[recalibration.THRESHOLD].nunique()
    assert (folds == 1).all()
    assert before[recalibration.THRESHOLD].nunique() == 5
    alone = table.copy()
    alone.loc[mine, ["raw_B", "raw_M"]] = [0.0001, 0.9999]
    _, _, moved = cross_fit(alone, artefact)
    unmoved = before[recalibration.THRESHOLD] == moved[recalibration.THRESHOLD]
    assert unmoved[mine].all()
    assert not unmoved.all()
    assert not same.all()


def test_near_duplicates_of_other_patients_share_a_fold(artefact):
    table = site()
    table.loc[table["patient"].isin([1, 2, 3]), "group"] = 1
    _, _, crossed = cross_fit(table, artefact)
    assert crossed.loc[crossed["group"] == 1, recalibration.THRESHOLD].nunique() == 1


def test_too_few_patients_of_a_class_are_a_reason(artefact):
    for patients, said in ((12, "of class B"), (12, "of class M")):
        found, reason, crossed = cross_fit(site(patients), artefact)
        assert (found, crossed) == (None, None)
        assert "at least 13 patients of each class" in reason
        assert said in reason
    malignant = site()[lambda table: table["label"] == "M"]
    assert "0 of class B" in cross_fit(malignant, artefact)[1]


def test_patients_that_are_all_alike_cannot_be_dealt(artefact):
    table = site()
    table["group"] = np.where(table["label"] == "M", table["group"], 1000)
    found, reason, _ = cross_fit(table, artefact)
    assert found is None
    assert "dealt into folds" in reason


def test_several_classes_are_recalibrated_together(artefact):
    found, reason, crossed = cross_fit(graded(), artefact, GRADES)
    assert reason is None
    assert len(found.bias) == 4
    assert "hardly changes which images rank above which" in found.summary
    np.testing.assert_allclose(crossed[GRADES.columns].sum(axis=1), 1)


@pytest.mark.parametrize("classes", [BINARY, GRADES])
def test_at_one_threshold_no_image_is_decided_otherwise(artefact, classes):
    table = site(shift=-1.0) if classes == BINARY else graded()
    _, _, crossed = cross_fit(table, artefact, classes)
    for threshold in (0.02, 0.4, 0.97):
        moved = recalibration.at_one_threshold(crossed, threshold, classes)
        assert ((moved[SCORE] >= threshold) == (crossed[SCORE] >= crossed[recalibration.THRESHOLD])).all()
        np.testing.assert_allclose(moved[classes.columns].sum(axis=1), 1)
        if classes == BINARY:
            for _, part in moved.groupby(recalibration.THRESHOLD):
                assert (part[SCORE].rank() == crossed.loc[part.index, SCORE].rank()).all()


def by_patient(caught: int, missed: int, benign: int) -> pd.DataFrame:
    score = np.repeat([0.9, 0.1, 0.2], [caught, missed, benign])
    names = np.repeat(["M", "M", "B"], [caught, missed, benign])
    return judged(np.stack([1 - score, score], axis=1), names, BINARY, POINT, 1)


@pytest.mark.parametrize(("caught", "missed", "wanted"), [(18, 2, 0.8), (9, 1, 0.85), (45, 5, 0.8), (20, 0, 0.95)])
def test_the_number_is_the_one_from_which_the_exact_bound_stays_above(caught, missed, wanted):
    found = recalibration.patients_needed(by_patient(caught, missed, 60), 0.4, wanted)
    share = caught / (caught + missed)

    def passes(count: int) -> bool:
        return metrics.clopper_pearson(round(share * count), count)[0] > wanted

    assert not passes(found.malignant - 1)
    assert all(passes(count) for count in range(found.malignant, found.malignant + 60))
    assert found.patients == int(np.ceil(found.malignant * (caught + missed + 60) / (caught + missed)))
    assert found.sensitivity == metrics.Interval(share, *metrics.clopper_pearson(caught, caught + missed))
    assert str(found.malignant) in found.summary
    assert "expectation" in found.summary


def test_seventy_two_patients_without_a_miss_show_ninety_five_percent():
    assert recalibration.patients_needed(by_patient(20, 0, 20), 0.4, 0.95).malignant == 72


def test_a_sensitivity_that_is_not_above_the_figure_never_shows_it():
    found = recalibration.patients_needed(by_patient(8, 2, 10), 0.4, 0.85)
    assert (found.malignant, found.patients) == (None, None)
    assert "no number of such patients" in found.summary
    none = recalibration.patients_needed(by_patient(0, 5, 10), 0.4, 0.85)
    assert none.malignant is None
    close = recalibration.patients_needed(by_patient(8501, 1499, 10), 0.4, 0.85)
    assert close.malignant is None
    assert str(recalibration.MOST) in close.summary


def test_a_bound_that_has_passed_is_said():
    found = recalibration.patients_needed(by_patient(99, 1, 100), 0.4, 0.85)
    assert found.malignant <= 100
    assert "has passed 85%" in found.summary


def test_without_malignant_patients_there_is_no_number():
    assert recalibration.patients_needed(by_patient(0, 0, 20), 0.4, 0.85) is None


def test_a_patient_is_called_by_the_mean_of_the_images():
    table = by_patient(2, 0, 5)
    table.loc[table["label"] == "M", ["patient", SCORE]] = [[1, 0.9], [1, 0.1]]
    assert recalibration.patients_needed(table, 0.4, 0.2).sensitivity.value == 1
    assert recalibration.patients_needed(table, 0.6, 0.2).sensitivity.value == 0


def test_recalibration_needs_no_tensorflow():
    import subprocess
    import sys

    code = "import thyroid.validate.recalibrated, sys; assert not {'tensorflow', 'keras', 'kfp'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
