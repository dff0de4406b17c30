import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from thyroid import figures
from thyroid.figures import RAW
from thyroid.names import SCORE
from thyroid.operating import OperatingPoint

POINT = OperatingPoint(1.0, (0, 0), 0.4)


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
            "label": np.repeat(np.where(malignant, "M", "B"), views),
            "patient": np.repeat(np.arange(1, patients + 1), views),
            "probability_B": 1 - score,
            SCORE: score,
            RAW: score**2,
            "sha256": [f"{n:064x}" for n in range(patients * views)],
        }
    )


def test_patients_are_means_and_malignant_if_any_image_is():
    table = pd.DataFrame({"patient": [1, 1, 2], "label": ["B", "M", "B"], SCORE: [0.2, 0.6, 0.9], RAW: [0.0, 1.0, 0.5]})
    merged = figures.by_patient(table).set_index("patient")
    assert merged.loc[1, SCORE] == pytest.approx(0.4)
    assert merged.loc[1, RAW] == pytest.approx(0.5)
    assert merged["label"].to_dict() == {1: "M", 2: "B"}


def test_both_levels_have_every_figure_with_an_interval():
    table = predictions()
    done = figures.of(table, POINT, 0.1)
    assert (done["n"], done["patients"]) == (120, 40)
    names = {"auroc", "auprc", "brier", "ece", "ece_unscaled", "sensitivity", "specificity", "ppv", "npv"}
    for level in (done, done["patient_level"]):
        for name in names | {"ppv_at_prevalence", "npv_at_prevalence"}:
            assert level[name]["low"] <= level[name]["value"] <= level[name]["high"], name
        assert level["majority"] == 0.5
    assert done["auroc"]["value"] == pytest.approx(roc_auc_score(table["label"] == "M", table[SCORE]))
    merged = figures.by_patient(table)
    area = roc_auc_score(merged["label"] == "M", merged[SCORE])
    assert done["patient_level"]["auroc"]["value"] == pytest.approx(area)
    (_, _), (fn, tp) = done["confusion"]
    assert done["sensitivity"]["value"] == pytest.approx(tp / (tp + fn))
    assert np.sum(done["patient_level"]["confusion"]) == 40
    assert done["ece"]["value"] < done["ece_unscaled"]["value"]
    assert "abstention" not in done


def test_abstention_leaves_the_doubtful_out():
    table = predictions()
    done = figures.of(table, OperatingPoint(1.0, (0, 0), 0.4, (0.25, 0.6)), 0.1)
    assert done["abstention"]["share"]["value"] == pytest.approx(((table[SCORE] >= 0.25) & (table[SCORE] < 0.6)).mean())
    assert done["abstention"]["sensitivity"]["value"] >= done["sensitivity"]["value"] - 0.02


def test_a_single_patient_with_both_kinds_of_nodules():
    table = predictions(2, 4).assign(patient=7)
    done = figures.of(table, POINT, 0.1)
    assert done["auroc"]["low"] is None
    assert "auroc" not in done["patient_level"]
    assert done["patient_level"]["majority"] == 1


def test_domain_matrix_pairs_its_cells():
    good, chance = predictions(signal=2.0), predictions(signal=0.0, seed=1)
    tables = {
        ("normal", "normal"): good,
        ("normal", "cropped"): chance,
        ("cropped", "normal"): chance,
        ("cropped", "cropped"): good,
    }
    done = figures.domain_matrix(tables, ["normal", "cropped"])
    cells = done["cells"]
    assert cells["normal"]["normal"]["value"] == pytest.approx(roc_auc_score(good["label"] == "M", good[SCORE]))
    assert done["drop"]["cropped"]["value"] == pytest.approx(
        cells["cropped"]["cropped"]["value"] - cells["cropped"]["normal"]["value"]
    )
    assert done["drop"]["cropped"]["low"] > 0, "trained on crops, fails on frames"
    assert done["shortfall"]["normal"]["value"] == pytest.approx(
        cells["normal"]["normal"]["value"] - cells["cropped"]["normal"]["value"]
    )
    same = dict.fromkeys(tables, good)
    assert figures.domain_matrix(same, ["normal", "cropped"])["drop"]["normal"] == {"value": 0, "low": 0, "high": 0}
