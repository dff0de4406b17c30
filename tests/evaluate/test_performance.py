import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import cohen_kappa_score, confusion_matrix, roc_auc_score

from thyroid.data import classes
from thyroid.data.classes import BINARY, Classes
from thyroid.data.filenames import SCORE
from thyroid.evaluate import performance, plots
from thyroid.evaluate.performance import RAW
from thyroid.metrics import Interval
from thyroid.model.operating_point import OperatingPoint

POINT = OperatingPoint(1.0, (0, 0), 0.4, (0.6, 0.4))


def predictions(
    patients: int = 40, views: int = 3, signal: float = 1.0, seed: int = 0, share: float = 0.5
) -> pd.DataFrame:
    """Constructed answers: a patient's images share most of their score."""
    rng = np.random.default_rng(seed)
    malignant = np.arange(patients) < patients * share
    latent = np.repeat(rng.normal(signal * malignant, 0.8), views) + rng.normal(0, 0.4, patients * views)
    score = 1 / (1 + np.exp(-2 * (latent - signal / 2)))
    return pd.DataFrame(
        {
            "class": np.repeat(np.where(malignant, "M", "B"), views),
            "label": np.repeat(np.where(malignant, "M", "B"), views),
            "patient": np.repeat(np.arange(1, patients + 1), views),
            "probability_B": 1 - score,
            SCORE: score,
            RAW: score**2,
            "sha256": [f"{n:064x}" for n in range(patients * views)],
        }
    )


def test_patients_are_means_and_malignant_if_any_image_is():
    table = pd.DataFrame({"patient": [1, 1, 2], "class": ["B", "M", "B"], SCORE: [0.2, 0.6, 0.9], RAW: [0.0, 1.0, 0.5]})
    table["probability_B"] = 1 - table[SCORE]
    merged = performance.by_patient(table, BINARY).set_index("patient")
    assert merged.loc[1, SCORE] == pytest.approx(0.4)
    assert merged.loc[1, RAW] == pytest.approx(0.5)
    assert merged["label"].to_dict() == {1: "M", 2: "B"}


def test_both_levels_have_every_figure_with_an_interval():
    table = predictions()
    done = performance.of(table, BINARY, POINT, 0.1)
    assert (done.n, done.patients) == (120, 40)
    names = {"auroc", "auprc", "brier", "ece", "ece_unscaled", "sensitivity", "specificity", "ppv", "npv"}
    for level in (done, done.patient_level):
        for name in names | {"ppv_at_prevalence", "npv_at_prevalence"}:
            assert getattr(level, name).low <= getattr(level, name).value <= getattr(level, name).high, name
        assert level.majority == 0.5
    assert done.auroc.value == pytest.approx(roc_auc_score(table["label"] == "M", table[SCORE]))
    merged = performance.by_patient(table, BINARY)
    area = roc_auc_score(merged["label"] == "M", merged[SCORE])
    assert done.patient_level.auroc.value == pytest.approx(area)
    (_, _), (fn, tp) = done.confusion
    assert done.sensitivity.value == pytest.approx(tp / (tp + fn))
    assert np.sum(done.patient_level.confusion) == 40
    assert done.ece.value < done.ece_unscaled.value
    assert "abstention" not in done.to_dict()


def test_abstention_leaves_the_doubtful_out():
    table = predictions()
    done = performance.of(table, BINARY, OperatingPoint(1.0, (0, 0), 0.4, (0.6, 0.4), (0.25, 0.6)), 0.1)
    assert done.abstention.share.value == pytest.approx(((table[SCORE] >= 0.25) & (table[SCORE] < 0.6)).mean())
    assert done.abstention.sensitivity.value >= done.sensitivity.value - 0.02


def test_a_single_patient_with_both_kinds_of_nodules():
    table = predictions(2, 4).assign(patient=7)
    done = performance.of(table, BINARY, POINT, 0.1)
    assert done.auroc.low is None
    assert "auroc" not in done.patient_level.to_dict()
    assert done.patient_level.majority == 1


def test_domain_matrix_pairs_its_cells():
    good, chance = predictions(signal=2.0), predictions(signal=0.0, seed=1)
    tables = {
        ("normal", "normal"): good,
        ("normal", "cropped"): chance,
        ("cropped", "normal"): chance,
        ("cropped", "cropped"): good,
    }
    done = performance.domain_matrix(tables, ["normal", "cropped"])
    cells = done.cells
    assert cells["normal"]["normal"].value == pytest.approx(roc_auc_score(good["label"] == "M", good[SCORE]))
    assert done.drop["cropped"].value == pytest.approx(
        cells["cropped"]["cropped"].value - cells["cropped"]["normal"].value
    )
    assert done.drop["cropped"].low > 0, "trained on crops, fails on frames"
    assert done.shortfall["normal"].value == pytest.approx(
        cells["normal"]["normal"].value - cells["cropped"]["normal"].value
    )
    same = dict.fromkeys(tables, good)
    assert performance.domain_matrix(same, ["normal", "cropped"]).drop["normal"] == Interval(0, 0, 0)


KINDS = classes.parse("2<3|4<5")
GRADED = OperatingPoint(1.0, (0,) * 4, 0.5, (0.3, 0.25, 0.25, 0.3))


def graded(patients: int = 60, views: int = 2, seed: int = 0, kinds: Classes = KINDS) -> pd.DataFrame:
    """Constructed answers to four classes, as `predictions.at_point` leaves them."""
    rng = np.random.default_rng(seed)
    truth = np.repeat(np.arange(patients) % 4, views)
    shared = np.repeat(rng.normal(0, 0.6, patients), views)
    odds = -np.abs(np.arange(4) - (truth + shared + rng.normal(0, 0.3, len(truth)))[:, None])
    names = np.array(kinds.names)[truth]
    table = pd.DataFrame(
        {
            "class": names,
            "label": [kinds.side(name) for name in names],
            "patient": np.repeat(np.arange(1, patients + 1), views),
        }
    )
    table[kinds.columns] = np.exp(odds) / np.exp(odds).sum(axis=1, keepdims=True)
    table[SCORE] = kinds.malignant(table[kinds.columns])
    table[RAW] = table[SCORE] ** 2
    return table


@pytest.mark.parametrize("ordered", [True, False])
def test_figures_of_several_classes(ordered):
    kinds = KINDS if ordered else classes.parse("2,3|4,5")
    table = graded(kinds=kinds)
    done = performance.of(table, kinds, GRADED, 0.1)
    truth, probability = kinds.index(table["class"]), table[kinds.columns].to_numpy()
    called = GRADED.call(probability, kinds)
    assert done.macro_auroc.value == pytest.approx(roc_auc_score(truth, probability, multi_class="ovr"))
    weights = "quadratic" if ordered else None
    assert done.kappa.value == pytest.approx(cohen_kappa_score(truth, called, weights=weights))
    assert done.accuracy == pytest.approx((probability.argmax(axis=1) == truth).mean())
    assert done.majority == pytest.approx(0.25)
    matrix = np.array(done.class_confusion)
    assert matrix.tolist() == confusion_matrix(truth, called).tolist()
    assert done.confusion == [
        [matrix[:2, :2].sum(), matrix[:2, 2:].sum()],
        [matrix[2:, :2].sum(), matrix[2:, 2:].sum()],
    ], "sides and classes agree"
    assert done.auroc.value == pytest.approx(roc_auc_score(table["label"] == "M", table[SCORE]))
    assert done.patient_level.majority == pytest.approx(0.25)
    for level in (done, done.patient_level):
        for name in ("macro_auroc", "kappa"):
            assert getattr(level, name).low < getattr(level, name).value < getattr(level, name).high


def test_every_class_against_all_others():
    table = graded()
    done = performance.of(table, KINDS, GRADED, 0.1).classes
    assert list(done) == list(KINDS.names)
    for name, column, threshold in zip(KINDS.names, KINDS.columns, GRADED.thresholds, strict=True):
        mine, above = table["class"] == name, table[column] >= threshold
        found = done[name]
        assert (found.n, found.patients, found.threshold) == (30, 15, threshold)
        assert found.auroc.value == pytest.approx(roc_auc_score(mine, table[column]))
        assert found.sensitivity.value == pytest.approx((above & mine).sum() / mine.sum())
        assert found.specificity.value == pytest.approx((~above & ~mine).sum() / (~mine).sum())


def test_two_classes_are_the_same_twice():
    done = performance.of(predictions(), BINARY, POINT, 0.1)
    assert done.macro_auroc == done.auroc
    assert done.class_confusion == done.confusion
    for name in ("auroc", "sensitivity", "specificity", "ppv", "npv"):
        assert getattr(done.classes["M"], name) == getattr(done, name)


def test_a_class_that_the_test_images_lack():
    table = graded()
    table = table[table["class"] != "3"].reset_index(drop=True)
    done = performance.of(table, KINDS, GRADED, 0.1)
    assert {key for key in done.classes["3"].to_dict() if key in ("auroc", "sensitivity", "ppv")} <= {"ppv"}
    assert (done.classes["3"].n, done.classes["3"].patients) == (0, 0)
    assert done.class_confusion[1] == [0, 0, 0, 0]
    places = [KINDS.names.index(name) for name in ("2", "4", "5")]
    areas = [roc_auc_score(table["class"] == KINDS.names[one], table[KINDS.columns[one]]) for one in places]
    assert done.macro_auroc.value == pytest.approx(np.mean(areas))


def test_a_patient_counts_as_the_last_class_of_the_images():
    table = graded(8).assign(patient=np.repeat([1, 2], 8))
    table["class"] = ["2", "3", "2", "2", "2", "2", "2", "2", "3", "4", "2", "3", "3", "3", "3", "3"]
    merged = performance.by_patient(table, KINDS).set_index("patient")
    assert merged["class"].to_dict() == {1: "3", 2: "4"}
    assert merged["label"].to_dict() == {1: "B", 2: "M"}
    np.testing.assert_allclose(merged[KINDS.columns].sum(axis=1), 1)
    np.testing.assert_allclose(merged[SCORE], KINDS.malignant(merged[KINDS.columns]))


@pytest.mark.parametrize("kinds", [BINARY, KINDS])
@pytest.mark.usefixtures("drawn")
def test_every_curve_is_drawn(kinds, tmp_path):
    table = predictions() if kinds is BINARY else graded()
    point = POINT if kinds is BINARY else GRADED
    shown = plots.PlottedModel(table, kinds, performance.of(table, kinds, point, 0.1), point, 0.1, "title")
    plots.draw(shown, "one", tmp_path)
    more = {"class-roc", "class-confusion"}
    drawn = set(plots.NAMES) if kinds is KINDS else set(plots.NAMES) - more
    assert {file.name for file in tmp_path.iterdir()} == {f"{name}-one.png" for name in drawn}
