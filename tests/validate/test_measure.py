"""The figures of a site beside the internal test, the sentences before them, and what the registry keeps."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, logit

from tests.evaluate.test_performance import GRADED, KINDS, graded, predictions
from tests.support import toy_artefact
from thyroid import RESEARCH_USE_ONLY, metrics
from thyroid.data.classes import BINARY
from thyroid.data.filenames import SCORE
from thyroid.errors import InputError
from thyroid.evaluate import performance
from thyroid.evaluate.performance import SUBGROUP
from thyroid.interval import Interval
from thyroid.model.artefact import Artefact
from thyroid.model.operating_point import OperatingPoint
from thyroid.records.gate import AuditRecord
from thyroid.records.locate import AutomaticBoxes
from thyroid.records.model import ArtefactRecord
from thyroid.records.validation import (
    FormResult,
    Recalibration,
    SiteScans,
    ValidatedModel,
    ValidateSettings,
    ValidationRecord,
)
from thyroid.validate import measure
from thyroid.validate.endpoint import UNDECIDED

POINT = {"temperature": 1.0, "bias": [0.0, 0.0], "threshold": 0.4, "thresholds": [0.6, 0.4]}
SETTINGS = ValidateSettings(prevalence=0.1, wanted=0.85, seed=0)
NO_GROUPS = pd.DataFrame()


def site(table: pd.DataFrame) -> pd.DataFrame:
    """Predictions of `test_performance` as those of a site: a scan per row, and nothing undecided."""
    path = [f"/site/{number}.jpg" for number in range(len(table))]
    return table.assign(path=path, scan=path, undecided="")


def artefact(internal: pd.DataFrame | None = None, domain: str = "cropped", **changes: Any) -> Artefact:
    """A model whose internal test was on these predictions in this domain; None for no test in any domain."""
    content = (
        toy_artefact.description().to_dict() | {"code_version": "1", "files": {}, "synthetic": 0} | POINT | changes
    )
    point = OperatingPoint.from_record(ArtefactRecord.parse(content, "model.json"))
    keras = content["forms"]["keras"] | {"test": {}}
    if internal is not None:
        keras["test"] = {domain: performance.of(internal, BINARY, point, 0.1).to_dict()}
    return Artefact(Path(), ArtefactRecord.parse(content | {"forms": {"keras": keras}}, "model.json"))


def of(table: pd.DataFrame, model: Artefact, kind: str = "given", **settings: float) -> FormResult:
    return measure.of_form(table, kind, model, SETTINGS.model_copy(update=settings), NO_GROUPS)


def record(forms: dict[str, FormResult], scans: dict[str, Any] | None = None, **changes: Any) -> ValidationRecord:
    found = next(iter(forms.values())).performance
    counts = {
        **{"listed": found.n, "quarantined": 0, "taken_out": {}, "unchecked": None, "scans": found.n},
        **{"patients": found.patients, "classes": {}, "malignant_patients": sum(found.patient_level.confusion[1])},
        **{"without_region": 0, "synthetic": 0},
    }
    model = {"name": "thyroid", "version": 3, "asked": "", "released": True, "sha256": "3f" * 32, "backbone": "VGG16"}
    content: dict[str, Any] = {
        **BINARY.to_dict(),
        **{"notice": RESEARCH_USE_ONLY, "site": "Saint Elsewhere", "created": "2026-11-29", "by": "Dr Kim"},
        **{"code_version": "1", "data_digest": "ab", "main": next(iter(forms)), "forms": forms, "audits": None},
        "model": ValidatedModel(**model, serving_domain="cropped", form="keras", sensitivity=0.95, threshold=0.4),
        "scans": SiteScans(**counts | (scans or {})),
        **{"not_audited": "", "unlike": None, "recalibration": None, "not_recalibrated": "", "needed": None},
        **{"mistakes": {}, "warnings": [], "settings": SETTINGS, "seconds": {}},
    }
    return ValidationRecord(**content | changes)


def test_every_figure_is_beside_that_of_the_internal_test():
    here, there = site(predictions(60, 2, signal=0.8)), predictions(100, 2, signal=2.0, seed=1)
    model = artefact(there)
    found = of(here, model)
    assert found.internal_domain == "cropped"
    assert set(found.beside) == {*measure.FIGURES, *(f"patient_{name}" for name in measure.FIGURES)}
    internal = performance.of(there, BINARY, OperatingPoint.from_record(model.record), 0.1)
    for name in measure.FIGURES:
        for pair, inner, outer in (
            (found.beside[name], internal, found.performance),
            (found.beside[f"patient_{name}"], internal.patient_level, found.performance.patient_level),
        ):
            assert pair.internal == getattr(inner, name)
            assert pair.external == getattr(outer, name)
            if name not in measure.DIFFERENCES:
                assert pair.difference is None
                continue
            assert pair.difference.value == pytest.approx(pair.external.value - pair.internal.value)
            assert pair.difference.low < pair.difference.value < pair.difference.high
    assert found.beside["auroc"].difference.high < 0


def test_the_interval_of_a_difference_is_that_of_a_bootstrap_of_both_samples():
    here, there = predictions(80, 2, signal=1.0), predictions(120, 2, signal=1.6, seed=1)
    drawn = []
    for table, seed in ((here, 1), (there, 2)):
        truth = performance.is_malignant(table)
        drawn.append(
            metrics.auroc_draws(metrics.Draws(table["patient"], seed=seed), truth, table[SCORE], table["patient"])
        )
    both = metrics.interval(drawn[0] - drawn[1])
    found = of(site(here), artefact(there)).beside["auroc"].difference
    assert (found.low, found.high) == (pytest.approx(both.low, abs=0.015), pytest.approx(both.high, abs=0.015))


@pytest.mark.parametrize(
    ("kind", "domain", "known"),
    [
        ("given", "cropped", True),
        ("automatic", "automatic", True),
        ("frame", "normal", True),
        ("automatic", "cropped", False),
    ],
)
def test_a_kind_of_boxes_is_compared_with_its_own_internal_test(kind, domain, known):
    found = of(site(predictions()), artefact(predictions(seed=1), domain), kind)
    assert found.internal_domain == (domain if known else None)
    pair = found.beside["auroc"]
    assert pair.external is not None
    assert (pair.internal is not None) is (pair.difference is not None) is known


def test_predictive_values_are_compared_at_one_prevalence():
    here, model = site(predictions()), artefact(predictions(seed=1))
    same, rarer = of(here, model), of(here, model, prevalence=0.02)
    inner = same.beside["sensitivity"].internal.value, same.beside["specificity"].internal.value
    for found, prevalence in ((same, 0.1), (rarer, 0.02)):
        hit, alarm = inner[0] * prevalence, (1 - inner[1]) * (1 - prevalence)
        pair = found.beside["ppv_at_prevalence"]
        assert pair.internal.value == pytest.approx(hit / (hit + alarm))
        assert pair.internal.low < pair.internal.value < pair.internal.high
        assert found.performance.ppv_at_prevalence == pair.external
    assert rarer.beside["npv_at_prevalence"].internal.value > same.beside["npv_at_prevalence"].internal.value
    said = measure.warnings(record({"given": rarer}, settings=SETTINGS.model_copy(update={"prevalence": 0.02})), model)
    assert any("2% of the nodules are malignant" in one and "measured for 10%" in one for one in said)


@pytest.mark.parametrize(
    ("label", "can", "cannot"), [("M", "sensitivity", "specificity"), ("B", "specificity", "sensitivity")]
)
def test_one_class_gives_what_one_class_can(label, can, cannot):
    everything = predictions(60)
    here = site(everything[everything["label"] == label].reset_index(drop=True))
    model = artefact(predictions(seed=1))
    found = of(here, model)
    assert found.beside[can].difference is not None
    assert found.beside[f"patient_{can}"].difference is not None
    for name in set(measure.FIGURES) - {can}:
        assert found.beside[name].external is None, name
        assert found.beside[name].internal is not None
    assert not {"auroc", "auprc", "kappa", "ppv", "npv", cannot} & set(found.performance.to_dict())
    assert found.calibration is None
    assert found.net_benefit == []
    first, second, *_ = measure.warnings(record({"given": found}), model)
    side, other = ("malignant", "benign") if label == "M" else ("benign", "malignant")
    assert first.startswith(f"No patient here has a {other} nodule: only the {can}")
    assert second.startswith(f"30 patients, all with a {side} nodule: ")
    assert measure.entry(record({"given": found})).slope is None


def test_calibration_and_decision_curve_are_those_of_the_site():
    here = site(predictions(80, 2))
    here[SCORE] = expit(logit(here[SCORE]) - 2)
    model = artefact(predictions(seed=1))
    found = of(here, model)
    assert found.calibration.in_the_large.low > 0
    assert found.calibration.observed_to_expected.low > 1
    assert sum(one.images for one in found.calibration.bins) == len(here)
    (probability,) = (one for one in measure.warnings(record({"given": found}), model) if "too low" in one)
    assert str(found.calibration.observed_to_expected) in probability
    first, last = found.net_benefit[0], found.net_benefit[-1]
    assert first.everybody == pytest.approx(0.1 - 0.9 * first.threshold / (1 - first.threshold))
    assert last.threshold == pytest.approx(0.4)
    # the probabilities are meant for the internal test's half of malignant images
    shifted = here[SCORE] / 9 / (here[SCORE] / 9 + 1 - here[SCORE])
    called, truth = shifted >= last.threshold, here["label"] == "M"
    weight = last.threshold / (1 - last.threshold)
    assert last.model == pytest.approx(0.1 * called[truth].mean() - 0.9 * weight * called[~truth].mean())


@pytest.mark.parametrize(
    ("factor", "words"), [(3.0, "are too extreme"), (0.3, "are not extreme enough"), (-1.0, "run the wrong way")]
)
def test_a_wrong_slope_is_told(factor, words):
    here = site(predictions(100, 2))
    here[SCORE] = expit(factor * logit(here[SCORE]))
    model = artefact(predictions(seed=1))
    assert any(
        f"probabilities {words} here" in one for one in measure.warnings(record({"given": of(here, model)}), model)
    )


def test_subgroups_are_joined_by_scan():
    here = site(predictions(60, 2))
    groups = pd.DataFrame({f"{SUBGROUP}scanner": ["one", "two", None] * 40}, index=here["path"].sample(frac=1))
    found = measure.of_form(here, "given", artefact(), SETTINGS, groups)
    rows = {row.group: row for row in found.subgroups}
    assert set(rows) == {"one", "two"}
    for name, row in rows.items():
        part = here[here["path"].isin(groups.index[groups.iloc[:, 0] == name])]
        assert row.images == len(part) == 40
        malignant = part[part["label"] == "M"]
        assert row.sensitivity.value == pytest.approx((malignant[SCORE] >= POINT["threshold"]).mean())


def test_several_classes():
    here = site(graded())
    scale = {"temperature": 1.0, "bias": [0.0] * 4, "threshold": 0.5, "thresholds": list(GRADED.thresholds)}
    found = of(here, artefact(**KINDS.to_dict(), **scale))
    assert set(found.performance.classes) == set(KINDS.names)
    assert found.beside["auroc"].external is not None
    assert found.internal_domain is None


def test_no_image_is_an_error_in_one_line():
    with pytest.raises(InputError, match=r"^with automatic boxes, no image of these scans could be judged"):
        of(site(predictions()).iloc[:0], artefact(), "automatic")


@pytest.mark.parametrize(
    ("patients", "words"),
    [(12, "the intervals are so wide that they say little"), (60, "the intervals are wide"), (200, None)],
)
def test_few_patients_are_said_first(patients, words):
    model = artefact(predictions(100, 2, seed=1))
    said = measure.warnings(record({"given": of(site(predictions(patients)), model)}), model)
    if words is None:
        assert not any("intervals" in one for one in said)
    else:
        assert said[0].startswith(
            f"{patients} patients, {patients // 2} of them with a malignant nodule: {words}; an external"
        )
        assert "100 of each class" in said[0]


def test_a_fall_is_told_only_where_chance_does_not_explain_it():
    there = predictions(150, 2, signal=2.0, seed=1)
    model = artefact(there)
    fallen = measure.warnings(record({"given": of(site(predictions(100, 2, signal=0.5)), model)}), model)
    (one,) = (sentence for sentence in fallen if "AUROC" in sentence)
    assert one.startswith("The AUROC by patient is lower here than on the internal test, beyond chance: ")
    same = measure.warnings(record({"given": of(site(predictions(150, 2, signal=2.0, seed=2)), model)}), model)
    assert not any("lower here" in sentence for sentence in same)
    worse = artefact(predictions(100, 2, signal=0.5))
    better = measure.warnings(record({"given": of(site(there), worse)}), worse)
    assert not any("lower here" in sentence for sentence in better)


def test_another_share_of_malignant_patients_is_told():
    model = artefact(predictions(150, seed=1, share=0.2))
    said = measure.warnings(record({"given": of(site(predictions(100, share=0.6)), model)}), model)
    assert any(
        one.startswith("60% of the patients here have a malignant nodule, and 20% of those of the") for one in said
    )
    same = measure.warnings(record({"given": of(site(predictions(100, share=0.25)), model)}), model)
    assert not any("of the patients here have" in one for one in same)


def test_what_limits_the_scans_and_the_model_is_told():
    model = artefact(synthetic=4)
    found = of(site(predictions()), model)
    facts = {
        **{"synthetic": 120, "taken_out": {"trained_file": 3, "tested_patient": 4}, "without_region": 5},
        "unchecked": "the pseudonyms were made with another key.",
    }
    audited = AuditRecord(
        **{"domain": "cropped", "shortcut": {}, "kept": {}, "leakage": {}, "not_measured": {}},
        findings={"shortcut": "the model answers without the nodule"},
    )
    candidate = record({"given": found}).model.model_copy(update={"released": False})
    said = measure.warnings(record({"given": found}, facts, audits=audited, model=candidate), model)
    for words in (
        "Version 3 is not the champion: it has not been released.",
        "4 of the 4 scans of the model's own data were drawn by the phantom generator.",
        "120 of the 120 scans were drawn by the phantom generator: the figures say nothing about patients.",
        "Patients could not be compared with those of the model: the pseudonyms were made with another key.",
        "5 of the 120 scans have no given region and are not in the figures with given boxes.",
        "The shortcut audit fails on these scans: the model answers without the nodule.",
    ):
        assert words in said
    assert any(one.startswith("7 scans were taken out because the model already knows") for one in said)
    quiet = artefact()
    silent = " ".join(measure.warnings(record({"given": found}), quiet))
    for word in ("champion", "phantom", "compared", "taken out", "region", "audit"):
        assert word not in silent


def test_what_the_endpoint_leaves_undecided_is_told():
    here = site(predictions())
    here["undecided"] = ["box_unsure,box_not_confirmed"] * 30 + ["box_not_confirmed"] * 90
    model = artefact()
    form = of(here, model, "automatic")
    assert form.undecided == {"box_unsure": 30, "box_not_confirmed": 120}
    said = measure.warnings(record({"automatic": form}), model)
    share = "25% of the images (30 of 120)"
    assert f"With automatic boxes, the endpoint would leave {share} undecided because the box is unsure." in said
    why = "undecided because this model may not decide on boxes that nobody has confirmed"
    assert f"With automatic boxes, the endpoint would leave all images (120 of 120) {why}." in said
    cost = {
        **{"frames": 40, "patients": 30, "given": Interval(0.8, 0.7, 0.9), "automatic": Interval(0.7, 0.5, 0.8)},
        **{"difference": Interval(-0.1, -0.4, 0.2), "rank_correlation": Interval(0.5, 0.3, 0.7), "flips": 3},
        **{"sure_frames": 20, "sure_flips": 1, "allowed": 0.15, "released": False, "reason": "it costs too much"},
    }
    told = measure.warnings(record({"automatic": form}), artefact(automatic_boxes=AutomaticBoxes(**cost).to_dict()))
    (one,) = (sentence for sentence in told if why in sentence)
    assert one.endswith(
        f"{why}: they may have cost it up to 0.400 of its AUROC in the internal test (the difference is -0.100 "
        "[-0.400, 0.200]), and 0.15 is allowed."
    )
    assert of(site(predictions()), model).undecided == {}


def test_the_share_of_unlike_pictures_is_told():
    here = site(predictions())
    here["undecided"] = ["unlike_training,abstention_band"] * 24 + [""] * 96
    form = of(here, artefact(), "given")
    said = measure.warnings(record({"given": form}), artefact())
    share = "20% of the images (24 of 120)"
    why = "the picture is unlike those that the model learnt from"
    assert f"With given boxes, the endpoint would leave {share} undecided because {why}." in said
    assert set(form.undecided) <= set(UNDECIDED)


def test_automatic_boxes_are_compared_on_frames_that_have_both():
    frames = site(predictions(60, 2)).assign(undecided="")
    two = pd.concat([frames, frames.iloc[:30]]).iloc[:-10].reset_index(drop=True)
    two.loc[len(frames) :, SCORE] = 0.5
    noise = np.random.default_rng(0).normal(0, 2, len(frames))
    automatic = frames.assign(**{SCORE: expit(logit(frames[SCORE]) + noise)})
    given = two[~two["path"].isin(frames["path"].iloc[-20:])]
    found = measure.agreement(given, automatic, 0)
    both = frames.iloc[:-20]
    mean = given.groupby("path")[SCORE].mean().loc[both["path"]].to_numpy()
    truth, patient = both["label"] == "M", both["patient"]
    assert found.internal.value == pytest.approx(metrics.auroc(truth, mean, patient).value)
    assert found.external.value == pytest.approx(metrics.auroc(truth, automatic[SCORE].iloc[:-20], patient).value)
    assert found.difference == metrics.auroc_difference(truth, automatic[SCORE].iloc[:-20], mean, patient)
    unpaired = metrics.independent_difference(found.external, found.internal)
    assert found.difference.high - found.difference.low < unpaired.high - unpaired.low


def test_boxes_cannot_be_compared_without_frames_of_both_classes():
    frames = site(predictions())
    assert measure.agreement(frames[frames["label"] == "M"], frames, 0) is None
    assert measure.agreement(frames.iloc[:0], frames, 0) is None


def test_the_surest_mistakes_come_first():
    here = site(predictions(60, 2))
    found = measure.mistakes(here, OperatingPoint.from_record(artefact().record))
    missed, alarms = found["false-negatives"], found["false-positives"]
    assert (missed["label"] == "M").all()
    assert (alarms["label"] == "B").all()
    assert missed[SCORE].is_monotonic_increasing
    assert alarms[SCORE].is_monotonic_decreasing
    (_, fp), (fn, _) = performance.confusion(here, OperatingPoint.from_record(artefact().record))
    assert (len(missed), len(alarms)) == (fn, fp)


def test_the_registry_keeps_the_leading_figures():
    model = artefact(predictions(seed=1))
    form = of(site(predictions(60)), model)
    kept = measure.entry(record({"given": form}, {"taken_out": {"trained_file": 3, "tested_patient": 4}}))
    assert (kept.boxes, kept.images, kept.patients, kept.malignant_patients, kept.taken_out) == (
        "given",
        180,
        60,
        30,
        7,
    )
    assert set(kept.figures) == {*measure.FIGURES[:5], "patient_auroc", "patient_sensitivity", "patient_specificity"}
    assert kept.figures["auroc"] == form.beside["auroc"]
    assert kept.slope == form.calibration.slope
    assert kept.model == "3f" * 32
    assert "recalibrated" not in kept.to_dict()
    fitted = Recalibration(
        **{"boxes": "given", "folds": 5, "patients": 60, "temperature": 1.0, "bias": [0.0, 0.0], "threshold": 0.3},
        **{"before": {}, "after": {}, "gain": {}, "summary": "", "version": 4},
    )
    assert measure.entry(record({"given": form}, recalibration=fitted)).recalibrated == 4
