"""The audits on data whose evidence was put in a known place."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from thyroid.data import tables
from thyroid.data.version import DataVersion
from thyroid.evaluate import card, gate, report
from thyroid.evaluate.audits import audits, shortcut, subject
from thyroid.evaluate.audits.leakage import LeakageAudit
from thyroid.evaluate.audits.shortcut import ShortcutAudit
from thyroid.evaluate.audits.subject import Subject
from thyroid.imaging import geometry, images
from thyroid.metrics import Interval
from thyroid.model import inputs
from thyroid.model.network import Network
from thyroid.records.evaluation import EvaluationRecord
from thyroid.train import record


@pytest.fixture(scope="module")
def model(trained):
    folder = trained["VGG16", "cropped"]
    facts = record.read(folder)
    return facts, Network.load(folder, facts)


def test_context_knows_boxes_and_frames(cropped):
    scans, regions, _ = tables.read(cropped)
    for domain in tables.DOMAINS:
        table = subject.context(DataVersion.read(cropped), domain)
        assert len(table) == len(DataVersion.read(cropped).examples(domain)) == 30
        assert table["boxes"].map(len).eq(1).all()
        first = table.iloc[0]
        region = regions[regions["path"] == first["path"]].iloc[0]
        scan = scans[scans["path"] == first["path"]].iloc[0]
        assert first["boxes"][0] == (
            region["x"] - scan["area_x"],
            region["y"] - scan["area_y"],
            region["width"],
            region["height"],
        )
        assert (first["box_width"], first["box_height"]) == (region["width"], region["height"])
        assert first["views"] == 2


@pytest.mark.parametrize("domain", tables.DOMAINS)
def test_blanked_images_show_nothing_of_the_nodule(cropped, domain):
    """Whatever is painted into the nodule, the blanked image is the same, and its square reveals no shape."""
    data = DataVersion.read(cropped)
    table = subject.context(data, domain).head(4)
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


def audit(data, trained) -> tuple[ShortcutAudit, LeakageAudit, dict]:
    """The audits of the model of full frames, and their JSON."""
    folder = trained["VGG16", "normal"]
    facts = record.read(folder)
    network = Network.load(folder, facts)
    parts = pd.read_csv(folder / "parts.csv").set_index("file")["part"]
    test = DataVersion.read(data).examples("normal", "test")
    test["probability_M"] = network.probabilities(inputs.decode(test, facts.image_size))[:, 1]
    test["file"] = [str(Path(f).relative_to(data)) for f in test["file"]]
    done = audits.ModelAudits.run(Subject(DataVersion.read(data), "normal", facts, network, parts, test))
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
    assert measured >= set(shortcut.SHORTCUTS)
    assert {"patient_number", "acquisition_order", "scan_area_geometry", "box_size", "grey_levels"} <= set(
        done.shortcut
    )
    for auroc in done.shortcut.values():
        assert 0 <= auroc.value <= 1
    json.dumps(facts, allow_nan=False)
    assert list(facts) == ["domain", "shortcut", "kept", "leakage", "findings", "not_measured"]
    assert {"leaky_split", "by_patient", "difference"} <= set(leakage.leakage)


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
