"""A recalibration for a site as a version of its own: it answers, it is not released, and it knows the site's scans."""

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.conftest import write_rois
from tests.support import toy_artefact, toy_descriptors, toy_locator, validations
from tests.validate.test_recalibration import GRADES, graded
from thyroid import RESEARCH_USE_ONLY
from thyroid.data import overlap
from thyroid.data.classes import BINARY
from thyroid.data.filenames import SCORE
from thyroid.data.version import DataVersion
from thyroid.errors import InputError
from thyroid.evaluate import performance
from thyroid.evaluate.performance import SUBGROUP
from thyroid.imaging import images
from thyroid.ingest import ingest
from thyroid.ingest.options import IngestOptions
from thyroid.model import engine, operating_point
from thyroid.model.artefact import MODEL, SCANS, Artefact
from thyroid.model.descriptors.head import Head
from thyroid.model.novelty.novelty import FILE, Novelty
from thyroid.model.operating_point import OperatingPoint
from thyroid.records.gate import GateRecord
from thyroid.records.model import KerasForm, ModelDescription, OtherForm
from thyroid.records.validation import ValidateSettings, ValidationRecord
from thyroid.registry import __main__ as commands
from thyroid.registry import changes, retention
from thyroid.registry.registry import Registry
from thyroid.validate import recalibrated, recalibration
from thyroid.validate.endpoint import GIVEN, Endpoint

SITE = "Saint Elsewhere"
POINT = {"temperature": 1.7, "bias": [0.0, 0.3], "threshold": 0.47, "thresholds": [0.4, 0.47], "band": [0.46, 0.48]}
SETTINGS = ValidateSettings(prevalence=0.2, wanted=0.85, seed=0)
CHANGED = {"settings": {"sensitivity": 0.9, "abstain": 0.1, "prevalence": 0.1}}


@dataclass(frozen=True, eq=False)
class Tried:
    """A validation of version 1 at the site.

    Attributes:
        root: Root of the registry, which tests copy.
        data: Data version of the site, in a store.
        store: The store.
        table: Predictions.
        crossed: Cross-fitted predictions.
        record: What was measured.
    """

    root: Path
    data: DataVersion
    store: Path
    table: pd.DataFrame
    crossed: pd.DataFrame
    record: ValidationRecord

    def register(self, root: Path, **changes) -> tuple[int, GateRecord]:
        """Register the recalibration; `changes` are fields of the validation."""
        registry = Registry(root)
        artefact = Artefact.verify(registry.find("1"))
        record = self.record.model_copy(update=changes)
        return recalibrated.register(registry, artefact, record, self.crossed, self.data)


def scan(folder: Path, patient: int, image: int = 1) -> str:
    """Write the frame of a patient, and return its name. Most malignant nodules are bright, and most others dark."""
    name = f"{'BM'[patient % 2]}_{patient:03d}-{image:04d}-1.0.jpg"
    bright = (patient % 2 == 1) != (patient % 9 == 0)
    pixels = toy_locator.frame((box_of(patient),) if bright else (), seed=patient * 10 + image)
    (folder / name).write_bytes(images.encode(pixels))
    return name


def box_of(patient: int) -> tuple[int, int, int, int]:
    return 30 + 7 * patient, 40 + 60 * (patient % 3), 45, 50


def publish(root: Path, folder: Path, decision: str = "promoted", scans: pd.DataFrame | None = None, **changes) -> Path:
    """Publish a model with a locator and a list of scans, and return the root of its registry."""
    toy_locator.build(folder, locator=toy_locator.record(), **POINT | CHANGED | changes)
    (folder / MODEL).write_bytes(b"Keras is not asked")
    (folder / "report.html").write_text("what version 1 reached")
    (folder / "card.md").write_text("what version 1 reached")
    own = {"sha256": ["1" * 64, "2" * 64], "label": ["B", "M"], "split": ["train", "test"], "boxes": ["[]", "[]"]}
    listed = pd.DataFrame(own | {"phash": ["", ""], "patient": ["", ""]}) if scans is None else scans
    listed.to_csv(folder / SCANS, index=False)
    record = Artefact.read(folder).record.to_dict()
    described = {name: record[name] for name in ModelDescription.model_fields if name in record}
    Artefact.describe(folder, ModelDescription.parse(described, "model.json"))
    Registry(root).publish(folder, toy_artefact.gate(decision))
    return root


@pytest.fixture(scope="module")
def tried(tmp_path_factory) -> Tried:
    home = tmp_path_factory.mktemp("tried")
    (home / "scans").mkdir()
    rows = []
    for patient in range(1, 33):
        rows.append((scan(home / "scans", patient), *box_of(patient)))
    options = IngestOptions(home / "scans", rois=write_rois(home / "rois.csv", rows), site=SITE, store=home / "store")
    ingest.ingest(options, home / "data")
    data, root = DataVersion.read(home / "data"), publish(home / "registry", home / "artefact")
    artefact = Artefact.verify(Registry(root).find("1"))
    with Endpoint(artefact.folder, released=True, form=engine.F32) as endpoint:
        table = endpoint.predict(data, GIVEN)
    fitted, reason, crossed = recalibration.cross_fit(table, BINARY, artefact, SETTINGS, boxes=GIVEN)
    assert reason is None
    simulated = validations.validation().record
    record = simulated.model_copy(
        update={
            "site": SITE,
            "model": simulated.model.model_copy(update={"version": 1, "form": engine.F32}),
            "settings": SETTINGS,
            "recalibration": fitted,
        }
    )
    return Tried(root, data, home / "store", table, crossed, record)


@pytest.fixture
def root(tried, tmp_path) -> Path:
    """A registry with version 1 alone."""
    return Path(shutil.copytree(tried.root, tmp_path / "registry"))


@pytest.fixture(scope="module")
def made(tried, tmp_path_factory) -> tuple[Path, Artefact, GateRecord]:
    """A registry with the recalibration, which tests only read, the recalibration, and the decision of the gate."""
    root = shutil.copytree(tried.root, tmp_path_factory.mktemp("made") / "registry")
    version, decision = tried.register(root)
    assert version == 2
    return root, Artefact.verify(Registry(root).find("2")), decision


def test_it_loads_and_answers_with_the_networks_of_before_and_the_new_operating_point(tried, made):
    root, artefact, _ = made
    point = OperatingPoint.from_record(artefact.record)
    assert point == recalibration.fit(tried.table, BINARY, Artefact.read(Registry(root).find("1")))
    assert (point.temperature, point.threshold) == (tried.record.recalibration.temperature, point.threshold)
    with Endpoint(artefact.folder, released=False) as endpoint:
        assert endpoint.form == engine.F32
        answers = endpoint.predict(tried.data, GIVEN)
    raw = tried.table[["raw_B", "raw_M"]].to_numpy()
    np.testing.assert_allclose(answers[["raw_B", "raw_M"]], raw, atol=1e-6)
    np.testing.assert_allclose(answers[BINARY.columns], point.scale(raw), atol=1e-5)
    assert (answers["decision"] == point.decide(answers[SCORE])).all()
    assert not (answers["decision"] == tried.table["decision"]).all()


def test_it_is_not_released_and_no_candidate(made):
    root, artefact, decision = made
    assert Registry(root).read_aliases() == {"candidate": 1, "champion": 1, "anchor": 1}
    assert (artefact.record.recalibrated_for, artefact.record.recalibrated_from) == (SITE, 1)
    assert artefact.publication.parent == 1
    assert (decision.decision, decision.champion) == ("refused", 1)
    assert not decision.criteria[-1].passed
    assert "a person promotes" in decision.criteria[-1].name
    assert any("registry promote" in reason for reason in decision.reasons)
    names = [criterion.name for criterion in decision.criteria]
    assert {"sensitivity", "not inferior to champion 1", "as specific as champion 1", "shortcut audit"} <= set(names)
    assert decision.comparison.difference.value == 0
    assert decision.test_set_read_before == 0
    state = json.loads((root / "thyroid" / "aliases.json").read_text())
    assert state["readings"] == [{"test_digest": decision.test_digest, "model": artefact.record.files[MODEL]}]


def test_it_is_refused_even_if_every_other_criterion_holds(made, monkeypatch, tried, root):
    monkeypatch.setattr(recalibrated.gate, "_floors", lambda *given: [])
    monkeypatch.setattr(recalibrated.gate, "_compare", lambda *given: ({}, []))
    audits = tried.record.audits.model_copy(update={"findings": {}})
    _, decision = tried.register(root, audits=audits)
    assert [criterion.name for criterion in decision.criteria if not criterion.passed] == [
        "a person promotes what is recalibrated for one site"
    ]
    assert decision.decision == "refused"


def test_a_person_promotes_it(root, tried, capsys):
    tried.register(root)
    assert commands.main(["show", "2", "--registry", str(root)]) == 0
    shown = capsys.readouterr().out
    assert "FAILS  a person promotes what is recalibrated for one site" in shown
    assert f"version 1 recalibrated for {SITE}, tested there" in shown
    assert "parent 1" in shown
    assert commands.main(["list", "--registry", str(root)]) == 0
    assert "damaged" not in capsys.readouterr().out
    given = ["--registry", str(root), "--reason", "used there alone", "--by", "Dr Kim"]
    assert commands.main(["promote", "2", *given]) == 0
    assert Registry(root).champion() == 2


def test_its_figures_are_those_of_patients_that_it_was_not_fitted_on(tried, made):
    record, fitted = made[1].record, tried.record.recalibration
    keras, own = record.forms["keras"], record.forms[engine.F32]
    assert isinstance(keras, KerasForm)
    assert isinstance(own, OtherForm)
    assert set(record.forms) == {"keras", engine.F32}, "no other form was tried at the site"
    assert keras.measured_in == engine.F32
    test = keras.test["cropped"]
    assert test == made[1].performance
    for name in ("sensitivity", "specificity", "ece", "brier"):
        assert getattr(test, name).value == pytest.approx(fitted.after[name].value), name
    before = performance.of(tried.table, BINARY, OperatingPoint.from_record(record), 0.2)
    assert test.auroc == before.auroc, "two classes keep their order"
    assert (own.test.sensitivity, own.test.ece, own.test.confusion) == (test.sensitivity, test.ece, test.confusion)
    assert own.decisions_changed is None
    assert own.largest_difference < 1e-4
    called = tried.crossed["decision"].to_numpy() != "benign"
    locked = tried.crossed[SCORE] >= tried.crossed[recalibration.THRESHOLD]
    assert (called >= locked.to_numpy()).all()
    assert "abstention" not in test.to_dict(), "a band was not cross-fitted"
    assert "sensitivity" not in test.classes["M"].to_dict()
    assert keras.validation.malignant_patients == 16
    assert keras.validation.sensitivity.value >= 0.9
    assert record.settings.prevalence == SETTINGS.prevalence


def test_nothing_of_the_parents_figures_is_left(made):
    _, artefact, _ = made
    assert "report.html" not in artefact.record.files
    card = (artefact.folder / "card.md").read_text()
    assert "version 1 reached" not in card
    for said in (
        RESEARCH_USE_ONLY,
        f"Recalibration of version 1 for {SITE}",
        "a person has to",
        engine.F32,
        "intervals over patients",
    ):
        assert said in card
    assert artefact.record.automatic_boxes is None
    assert artefact.record.locator is not None
    assert artefact.record.band is not None, "the version abstains, and so does this one"
    assert artefact.record.data_digest == "0" * 64


def test_what_novelty_is_measured_by_goes_along_and_what_was_usual_elsewhere_does_not(tried, tmp_path):
    usual = {"patients": 1, "images": 1, "values": {"probability": [0.5]}, "decisions": {"benign": 1}, "shares": {}}
    root = publish(tmp_path / "registry", tmp_path / "artefact", novelty=True, usual_answers={"given": usual})
    tried.register(root)
    parent, own = (Artefact.verify(Registry(root).find(version)) for version in ("1", "2"))
    assert (own.folder / FILE).read_bytes() == (parent.folder / FILE).read_bytes()
    assert own.record.novelty == parent.record.novelty
    assert Novelty.read(own).limit == Novelty.read(parent).limit
    assert parent.record.usual_answers.keys() == {"given"}
    assert own.record.usual_answers is None


def test_descriptors_go_along_and_are_no_reason_of_doubt_there(tried, tmp_path):
    proven = toy_descriptors.TIRADS | {"doubts": True, "why_not": None}
    head = toy_descriptors.head(toy_locator.FEATURES, [("composition", "solid")], tirads=proven)
    root = publish(tmp_path / "registry", tmp_path / "artefact", head=head)
    tried.register(root)
    own = Head.read(Artefact.verify(Registry(root).find("2")))
    np.testing.assert_array_equal(own.weight, head.weight)
    assert own.record.findings == head.record.findings
    assert not own.record.tirads.doubts
    assert "operating point" in own.record.tirads.why_not
    assert own.record.tirads.cut == head.record.tirads.cut


def test_findings_of_both_places_are_kept(tried, root):
    site = tried.record.audits.model_copy(update={"findings": {"shortcut": "the frame tells"}})
    tried.register(root, audits=site)
    assert Artefact.read(Registry(root).find("2")).record.audits.findings == {"shortcut": f"at {SITE}: the frame tells"}


def test_the_same_recalibration_is_registered_once(tried, root):
    first, second = tried.register(root), tried.register(root)
    assert first == second
    assert Registry(root).versions() == [1, 2]
    assert tried.register(root, site="Another place")[0] == 3


def test_a_recalibration_can_be_recalibrated_again(tried, root):
    registry = Registry(root)
    tried.register(root)
    again = Artefact.verify(registry.find("2"))
    record = tried.record.model_copy(update={"site": "Third place"})
    version, decision = recalibrated.register(registry, again, record, tried.crossed, tried.data)
    assert Artefact.verify(registry.find(str(version))).publication.parent == 2
    assert "from version 2" in decision.criteria[-1].found


def test_a_later_validation_finds_the_scans_of_the_site(tried, made, tmp_path):
    root, artefact, _ = made
    scans = changes.scans_of(artefact.folder)
    assert scans["split"].value_counts().to_dict() == {"recalibration": 32, "train": 1, "test": 1}
    assert not scans["patient"].dropna().str.contains("Elsewhere").any()
    learnt = scans[scans["split"] != "test"]
    there = tried.data.used.assign(cohort=SITE)
    assert overlap.find(root, learnt, there).describe() == "32 by file, 32 by picture, 32 by patient"
    other = there.assign(sha256="f" * 64, phash=None, cohort="Elsewhere")
    assert overlap.find(root, learnt, other).scans == 0, "an equal number in another cohort is another patient"
    (tmp_path / "more").mkdir()
    new = there.head(1).assign(sha256="e" * 64, phash=None)
    assert overlap.find(root, learnt, new).describe() == "0 by file, 0 by picture, 1 by patient"


def test_erasing_a_patient_names_the_version(tried, made):
    held = retention.forget(tried.store, made[0], 5, SITE)
    models = {one.name: one.reason for one in held if one.kind == "model"}
    assert models["2"].startswith("recalibrated on 1 of the patient's scans")
    assert "1" not in models


def test_groups_are_judged_by_the_gate(tried, root):
    crossed = tried.crossed.assign(**{f"{SUBGROUP}scanner": np.where(tried.crossed["patient"] < 17, "a", "b")})
    _, decision = replace(tried, crossed=crossed).register(root)
    found = {criterion.name: criterion.found for criterion in decision.criteria}
    assert found["subgroups"] == "not judged: no group is large enough"


def test_an_audit_that_was_not_run_is_a_reason(tried, root):
    _, decision = tried.register(root, audits=None, not_audited="no scan has a region")
    assert any("no scan has a region" in reason for reason in decision.reasons)


def test_without_a_recalibration_nothing_is_registered(tried, root):
    with pytest.raises(InputError, match="recalibrate: there is nothing to register: too few"):
        tried.register(root, recalibration=None, not_recalibrated="too few patients")
    assert Registry(root).versions() == [1]


def test_a_form_that_is_far_from_keras_is_not_registered(tried, tmp_path):
    far = {"forms": {"keras": toy_artefact.KERAS, engine.F32: toy_artefact.other_form(0.05)}}
    root = publish(tmp_path / "registry", tmp_path / "artefact", **far)
    with pytest.raises(InputError, match=r"openvino-f32 is 0\.050 away from Keras"):
        tried.register(root)
    assert Registry(root).versions() == [1]


def test_the_reference_is_that_of_keras_and_its_distance_is_measured(tried, tmp_path):
    """A Keras that answered a little otherwise than OpenVINO does here."""
    told = Artefact.read(Registry(tried.root).find("1")).record.reference
    shifted = {"B": told["B"] - 0.004, "M": told["M"] + 0.004}
    root = publish(tmp_path / "registry", tmp_path / "artefact")
    folder = tmp_path / "artefact"
    record = Artefact.read(folder).record.to_dict()
    described = {name: record[name] for name in ModelDescription.model_fields if name in record}
    Artefact.describe(folder, ModelDescription.parse(described | {"reference": shifted}, "model.json"))
    other = tmp_path / "other"
    Registry(other).publish(folder, toy_artefact.gate())
    near, apart = tried.register(root), tried.register(other)
    assert near[0] == apart[0] == 2
    form = Artefact.read(Registry(other).find("2")).record.forms[engine.F32]
    assert isinstance(form, OtherForm)
    own, keras = (Artefact.read(Registry(one).find("2")).record.reference["M"] for one in (root, other))
    assert form.largest_difference == pytest.approx(abs(own - keras), abs=1e-6)
    assert form.largest_difference > 1e-3
    with Endpoint(Registry(other).find("2"), released=False) as endpoint:
        assert endpoint.form == engine.F32


def test_what_keras_answered_holds_for_keras_alone(tried, root):
    tried.register(root, model=tried.record.model.model_copy(update={"form": engine.KERAS}))
    forms = Artefact.read(Registry(root).find("2")).record.forms
    assert set(forms) == {engine.KERAS}
    assert "measured_in" not in forms[engine.KERAS].to_dict()


def test_several_classes_are_measured_where_they_were_not_fitted(tried, tmp_path):
    told = {"bias": [0.0] * 4, "thresholds": [0.3] * 4, **GRADES.to_dict(), "reference": dict.fromkeys("2345", 0.25)}
    parent = Artefact.describe(tmp_path, toy_artefact.description(**told))
    fitted, _, crossed = recalibration.cross_fit(graded(), GRADES, parent, SETTINGS, boxes=GIVEN)
    point = recalibration.fit(graded(), GRADES, parent)
    measured = recalibrated._measure(recalibrated._Recalibrated(parent, tried.record, fitted, crossed, point))
    for name in ("sensitivity", "specificity", "ece", "brier"):
        assert getattr(measured, name).value == pytest.approx(fitted.after[name].value), name
    assert set(measured.classes) == set("2345")
    assert measured.auroc.low > 0.5


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_scaling_is_undone_exactly(classes):
    rng = np.random.default_rng(classes)
    for _ in range(200):
        raw = rng.dirichlet(np.full(classes, 0.3)).clip(1e-6)
        raw /= raw.sum()
        bias = (0.0, *rng.normal(0, 2, classes - 1))
        point = OperatingPoint(float(rng.uniform(0.2, 8)), bias, 0.5, (0.5,) * classes)
        undone = recalibrated._unscale(operating_point.scale(raw[None], point.temperature, bias)[0], point)
        np.testing.assert_allclose(undone, raw, rtol=1e-9)
