"""The audits on data whose evidence was put in a known place."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from thyroid.data import surroundings, tables
from thyroid.data.version import DataVersion
from thyroid.evaluate import card, gate, report
from thyroid.evaluate.audits import audits, names, shortcut, subject
from thyroid.evaluate.audits.leakage import LeakageAudit
from thyroid.evaluate.audits.shortcut import ShortcutAudit
from thyroid.evaluate.audits.subject import Subject
from thyroid.imaging import geometry, images
from thyroid.metrics import Interval
from thyroid.model import inputs
from thyroid.model.network import Network
from thyroid.records.evaluation import EvaluationRecord
from thyroid.records.gate import AuditRecord
from thyroid.train import record


@pytest.fixture(scope="module")
def model(trained):
    folder = trained["VGG16", "cropped"]
    facts = record.read(folder)
    return facts, Network.load(folder, facts)


@pytest.mark.parametrize("domain", tables.DOMAINS)
def test_blanked_images_show_nothing_of_the_nodule(cropped, domain):
    """Whatever is painted into the nodule, the blanked image is the same, and its square reveals no shape."""
    data = DataVersion.read(cropped)
    table = surroundings.context(data, domain).head(4)
    size = 96
    plain = subject.blanked(data, table, domain, size)
    assert plain.shape == (4, size, size, 3)
    assert plain.any(axis=(1, 2, 3)).all(), "the surroundings are still there"
    if domain == "cropped":
        side = size / (1 + 2 * geometry.MARGIN)
        low, high = int((size - side) / 2) + 2, int((size + side) / 2) - 2
        assert not plain[:, low:high, low:high].any()
    else:
        whole = inputs.decode(table, size)
        seen = plain > 0
        assert np.abs(plain.astype(int) - images.rgb(whole))[seen].mean() < 8, "what is not blanked is as it was"
        assert (plain == 0).sum() > (whole == 0).sum() * 3 + 1000


def test_a_wider_margin_shows_more_surroundings_of_the_same_nodule(cropped):
    data = DataVersion.read(cropped)
    table = surroundings.context(data, "cropped").head(4)
    for margin in names.MARGINS:
        blanked = subject.blanked(data, table, "cropped", 96, margin)
        side = 96 / (1 + 2 * margin)
        low, high = (96 - side) / 2, (96 + side) / 2
        assert not blanked[:, int(low) + 2 : int(high) - 2, int(low) + 2 : int(high) - 2].any()
        assert blanked[:, int(low) - 4 : int(low) - 1, 30:66].any(axis=(1, 2, 3)).all(), "surroundings begin there"


def plant(cropped, tmp_path, paint):
    """A copy of a data version whose normal images are painted over by label."""
    folder = shutil.copytree(cropped, tmp_path / "data")
    scans, regions, facts = tables.read(folder)
    for row in scans.itertuples():
        image = np.array(images.decode((folder / row.normal_path).read_bytes()))
        paint(image, row.label)
        data = images.encode(image)
        (folder / row.normal_path).write_bytes(data)
        scans.loc[row.Index, "normal_sha256"] = hashlib.sha256(data).hexdigest()
    tables.write(folder, scans, regions, facts)
    return folder


def audit(data, trained, domain="normal", boxes=None) -> tuple[ShortcutAudit, LeakageAudit, dict]:
    """The audits of the VGG16 of one domain, and their JSON."""
    folder = trained["VGG16", domain]
    facts = record.read(folder)
    network = Network.load(folder, facts)
    parts = pd.read_csv(folder / "parts.csv").set_index("file")["part"]
    test = DataVersion.read(data).examples(domain, "test")
    test["probability_M"] = network.probabilities(inputs.decode(test, facts.image_size))[:, 1]
    test["file"] = [str(Path(f).relative_to(data)) for f in test["file"]]
    audited = Subject(DataVersion.read(data), domain, facts, network, parts, test, boxes=boxes)
    done = audits.ModelAudits.run(audited)
    shortcut_audit, leakage_audit = done.audits
    return shortcut_audit, leakage_audit, done.record().to_dict()


def test_evidence_in_the_frame_is_found(cropped, trained, tmp_path):
    def corner(image, label):
        image[:40, :] = image[-40:, :] = 250 if label == "M" else 5

    done, _, facts = audit(plant(cropped, tmp_path, corner), trained)
    assert done.shortcut["blanked_nodule"].value > 0.95
    assert done.kept["blanked_nodule"] > shortcut.KEPT
    assert facts["findings"]["shortcut"] == done.finding
    assert any(done.finding in warning for warning in done.warnings)


def test_numbers_alone_are_measured(cropped, trained):
    done, leakage, facts = audit(cropped, trained)
    measured = set(done.shortcut) | set(done.not_measured)
    assert measured >= set(names.SHORTCUTS) - set(names.AUTOMATIC_BOX) - set(names.at_margins(names.BLANKED))
    assert not measured & set(names.AUTOMATIC_BOX), "there is no locator"
    assert {"patient_number", "acquisition_order", "scan_area_geometry", "box_size", "grey_levels"} <= set(
        done.shortcut
    )
    for auroc in done.shortcut.values():
        assert 0 <= auroc.value <= 1
    json.dumps(facts, allow_nan=False)
    assert list(facts) == ["domain", "shortcut", "kept", "leakage", "findings", "not_measured"]
    assert {"leaky_split", "by_patient", "difference"} <= set(leakage.leakage)


def test_crops_are_judged_at_their_own_margin_and_shown_at_another(cropped, trained):
    done, _, facts = audit(cropped, trained, "cropped")
    own = DataVersion.read(cropped).margin
    others = [margin for margin in names.MARGINS if margin != own]
    assert len(others) < len(names.MARGINS)
    expected = {names.at_margin(name, margin) for margin in others for name in names.BLANKED | names.WHOLE}
    assert {name for name in done.shortcut if "_margin_" in name} == expected
    assert set(done.kept) <= set(names.BLANKED), "only the run's own margin decides"
    assert facts["further"] == {"shortcut": {"margin": own}}
    restored = ShortcutAudit.from_record(AuditRecord.parse(facts, "evaluation.json"), None)
    assert (restored.margin, restored.table, restored.outcome) == (own, done.table, done.outcome)
    rows = [name for name, _ in done.table]
    assert len(set(rows)) == len(rows)
    for margin in names.MARGINS:
        assert sum(f"margin {margin:g}" in name for name in rows) == len(names.BLANKED | names.WHOLE)


@pytest.mark.parametrize(("own", "other", "found"), [(0.56, 0.78, False), (0.78, 0.56, True)])
def test_another_margin_is_told_but_decides_nothing(own, other, found):
    done = ShortcutAudit("cropped", margin=0.15)
    for name, value in (("blanked_nodule", own), ("whole_image", 0.8)):
        done.shortcut[name] = Interval(value, 0.7, 0.9)
    for name, value in (("blanked_nodule", other), ("whole_image", 0.9)):
        done.shortcut[names.at_margin(name, 0.5)] = Interval(value, 0.7, 0.95)
    done.judge()
    assert (done.finding is not None) == found
    assert done.kept == {"blanked_nodule": pytest.approx((own - 0.5) / 0.3)}
    assert done.kept_at("blanked_nodule", 0.5) == pytest.approx((other - 0.5) / 0.4)
    assert done.kept_at("model_on_blanked_nodule", 0.5) is None
    assert f"{done.kept_at('blanked_nodule', 0.5):.0%} at margin 0.5" in (done.finding or done.outcome)


def test_a_reference_at_chance_says_nothing_of_another_margin():
    done = ShortcutAudit("cropped", margin=0.15)
    done.shortcut = {"blanked_nodule": Interval(0.6, 0.5, 0.7), "whole_image": Interval(0.8, 0.7, 0.9)}
    done.shortcut[names.at_margin("blanked_nodule", 0.5)] = Interval(0.55, 0.4, 0.7)
    done.shortcut[names.at_margin("whole_image", 0.5)] = Interval(0.6, 0.45, 0.75)
    done.judge()
    assert done.ran
    assert done.kept_at("blanked_nodule", 0.5) is None
    assert "0.5" not in done.outcome


def proposals(data, side, heat) -> pd.DataFrame:
    """Proposals for every frame, whose best box has the side and the heat that are given by label."""
    rng = np.random.default_rng(0)
    rows = []
    for scan in DataVersion.read(data).used.itertuples():
        best = (0, side[scan.label] + rng.integers(8), side[scan.label], heat[scan.label] + rng.uniform(0, 0.1))
        second = (1, 200 if scan.label == "B" else 10, 10, 0.1)
        rows += [(scan.path, *second), (scan.path, *best)]
    return pd.DataFrame(rows, columns=["path", "rank", "width", "height", "heat"])


@pytest.mark.parametrize("domain", tables.DOMAINS)
def test_what_the_automatic_box_gives_away_is_measured(cropped, trained, domain):
    same, different = {"B": 40, "M": 40}, {"B": 40, "M": 80}
    by_size, *_ = audit(cropped, trained, domain, proposals(cropped, different, {"B": 0.3, "M": 0.3}))
    assert by_size.shortcut["automatic_box_size"].value > 0.95
    by_score, *_ = audit(cropped, trained, domain, proposals(cropped, same, {"B": 0.2, "M": 0.8}))
    assert by_score.shortcut["automatic_box_size"].value < 0.8
    assert by_score.shortcut["automatic_box_size_and_score"].value > 0.95
    assert {names.describe(name) for name in names.AUTOMATIC_BOX} <= {name for name, _ in by_score.table}


def test_the_best_box_of_a_frame_counts_once(cropped):
    data = DataVersion.read(cropped)
    twice, lost = data.used.loc[data.used["split"] != "test", "path"].iloc[:2]
    second = data.regions[data.regions["path"] == twice].assign(x=1, y=1, crop_path="cropped/other.jpg")
    doubled = pd.concat([data.regions, second])
    data = DataVersion(data.folder, data.scans, doubled.reset_index(drop=True), data.facts)
    boxes = proposals(cropped, {"B": 40, "M": 80}, {"B": 0.3, "M": 0.6})
    one = Subject(data, "cropped", None, None, None, None, boxes=boxes[boxes["path"] != lost])
    best = one.best_boxes
    table = one.development
    assert len(best) == len(table) == table["path"].nunique() + 1
    boxed = table[best["heat"].notna()]
    assert not boxed["path"].duplicated().any()
    assert set(boxed["path"]) | {lost} == set(table["path"])
    assert lost not in set(boxed["path"])
    assert (best["height"].dropna() == boxed["label"].map({"B": 40, "M": 80})).all()


def test_frames_that_were_not_boxed_are_said(cropped, trained):
    nothing = proposals(cropped, {"B": 40, "M": 80}, {"B": 0.3, "M": 0.6}).iloc[:0]
    done, *_ = audit(cropped, trained, boxes=nothing)
    assert set(names.AUTOMATIC_BOX) <= set(done.not_measured)
    assert not set(names.AUTOMATIC_BOX) & set(done.shortcut)


def test_a_number_that_gives_the_label_away_is_found(cropped, trained, tmp_path):
    folder = shutil.copytree(cropped, tmp_path / "data")
    scans, regions, facts = tables.read(folder)
    scans["image"] = scans["image"] + scans["label"].map({"B": 0, "M": 50})
    tables.write(folder, scans, regions, facts)
    assert audit(folder, trained)[0].shortcut["acquisition_order"].value > 0.95


def test_without_regions_nothing_is_blanked(cropped, trained, tmp_path):
    folder = shutil.copytree(cropped, tmp_path / "data")
    scans, regions, facts = tables.read(folder)
    tables.write(folder, scans, regions.iloc[:0], facts)
    done, *_ = audit(folder, trained)
    assert not done.kept
    for name in ("blanked_nodule", "model_on_blanked_nodule", "box_size"):
        assert "rois.csv" in done.not_measured[name]
    assert "whole_image" in done.shortcut


@pytest.mark.parametrize(
    ("blanked", "whole", "model", "warns"),
    [
        (0.746, 0.781, None, True),
        (0.720, 0.782, None, True),
        (0.60, 0.781, None, False),
        (0.70, 0.80, 0.98, False),
        (0.7, 0.8, 0.85, True),
    ],
)
def test_the_warning_rule(blanked, whole, model, warns):
    """More than half of the distance from .5; the first two rows are what was measured on DDTI's full frames."""
    measured = {"blanked_nodule": Interval(blanked, 0.6, 0.8), "whole_image": Interval(whole, 0.7, 0.85)}
    done = ShortcutAudit("normal", measured)
    if model is not None:
        done.shortcut["model"] = Interval(model, 0.7, 1.0)
    done.judge()
    assert (done.finding is not None) == warns


def test_what_is_not_above_chance_judges_nothing():
    measured = {"blanked_nodule": Interval(0.55, 0.4, 0.7), "whole_image": Interval(0.6, 0.45, 0.75)}
    done = ShortcutAudit("normal", measured)
    done.judge()
    assert not done.ran
    assert done.why_not_judged == done.not_measured["blanked_nodule, judged"]


def test_leaks_are_found_anew(cropped, trained, tmp_path):
    """A patient moved to another split, a copy under another number, and a test image that was trained on."""
    folder = shutil.copytree(cropped, tmp_path / "data")
    scans, regions, facts = tables.read(folder)
    parts = pd.read_csv(trained["VGG16", "cropped"] / "parts.csv").set_index("file")["part"]
    clean = LeakageAudit()
    clean.count(DataVersion.read(folder), "cropped", parts)
    clean.judge()
    assert clean.ran
    assert clean.finding is None

    trains, tests = scans.index[scans["split"] == "train"], scans.index[scans["split"] == "test"]
    scans.loc[trains[0], "split"] = "test"
    scans.loc[tests[0], "phash"] = scans.loc[trains[2], "phash"]
    tables.write(folder, scans, regions, facts)
    done = LeakageAudit()
    done.count(DataVersion.read(folder), "cropped", parts)
    done.judge()
    assert done.leakage["patients_across_splits"] == 1
    assert done.leakage["near_duplicates_across_splits"] >= 1
    assert done.leakage["test_images_trained_on"] == 1
    assert done.leakage["test_patients_trained_on"] == 1
    assert done.finding.startswith("1 ")


def test_leaks_are_found_when_the_model_serves_another_domain(cropped, trained):
    """Trained on crops, served on frames: the test scan that was trained on is still found."""
    parts = pd.read_csv(trained["VGG16", "cropped"] / "parts.csv").set_index("file")["part"]
    planted = DataVersion.read(cropped).examples("cropped", "test").iloc[0]
    parts[str(Path(planted["file"]).relative_to(cropped))] = "train"
    done = LeakageAudit()
    done.count(DataVersion.read(cropped), "cropped", parts)
    assert done.leakage["test_images_trained_on"] == 1
    unknown = LeakageAudit()
    unknown.count(DataVersion.read(cropped), "normal", parts)
    assert unknown.finding is not None, "fail closed"


class LuckAudit(LeakageAudit):
    """Another kind of audit, which always finds something."""

    name = "luck"
    title = "Luck?"
    criterion = "luck audit"

    @classmethod
    def run(cls, audited):
        return cls({"dice": 6}, "loaded")

    @classmethod
    def from_record(cls, audits, clinical):
        return cls(audits.leakage, audits.findings.get("luck"))


def test_a_new_kind_of_audit_is_a_class_and_a_row_of_the_list(evaluated, cropped, trained, tmp_path, monkeypatch):
    """Gate, report, model card and log read it from the list."""
    content = json.loads((evaluated / "evaluation.json").read_text())
    monkeypatch.setattr(audits, "KINDS", (*audits.KINDS, LuckAudit))
    content["audits"]["leakage"] |= {"dice": 6}
    content["audits"]["findings"] |= {"luck": "loaded"}
    result = EvaluationRecord.parse(content, "evaluation.json")
    (restored,) = audits.of_result(result)
    assert restored.record().to_dict() == content["audits"]
    criterion = gate._audit(restored.audits[-1], ())
    assert (criterion.name, criterion.passed) == ("luck audit", False)
    assert "Loaded." in report.warnings(result)
    shutil.copytree(evaluated / "plots", tmp_path / "plots")
    report.write(tmp_path, DataVersion.read(cropped), result)
    assert "Luck?" in (tmp_path / "report.html").read_text()
    training = record.read(trained["VGG16", "cropped"])
    card.write(tmp_path, training, tables.read_facts(cropped), result)
    assert "Luck?" in (tmp_path / "card.md").read_text()


def test_an_audit_is_restored_from_its_json(evaluated):
    result = EvaluationRecord.read(evaluated / "evaluation.json")
    (restored,) = audits.of_result(result)
    assert restored.record() == result.audits
    assert [audit.name for audit in restored.audits] == ["shortcut", "leakage"]
    assert audits.WAIVABLE == ("shortcut", "leakage", "clinical")
