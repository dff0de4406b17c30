"""What a site shares: which counts, signed with which key, and never so that a patient can be told."""

import itertools
import json
import stat

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from tests.validate.share.sites import POINT, content, grouped, predicted, record, shared, simulated
from thyroid.errors import InputError
from thyroid.model.operating_point import OperatingPoint
from thyroid.records.gate import AuditRecord
from thyroid.validate.share import share, signature

FAR = np.linspace(0.5, 0.95, 40)


def test_the_file_holds_the_counts_of_the_patients(tmp_path):
    table = simulated(120, 150, seed=3)
    found = content(shared(tmp_path, "A", table))
    malignant = table["label"] == "M"
    called = table["probability_M"] >= POINT.threshold
    assert found.malignant.patients == 120
    assert found.malignant.called == [(malignant & called).sum()] * 2
    assert found.benign.called == [(~malignant & called).sum()] * 2
    assert sum(found.benign_steps.patients) == 150
    assert POINT.threshold in found.benign_steps.edges
    assert min(found.benign_steps.patients + found.malignant_steps.patients) >= 10
    assert len(found.malignant_steps.patients) >= 5
    assert found.auroc.value == pytest.approx(roc_auc_score(malignant, table["probability_M"]), abs=0.0006)
    assert sum(one.probability for one in found.calibration) == pytest.approx(table["probability_M"].sum(), abs=0.1)
    assert len(found.calibration) >= 3
    assert found.left_out == []


def test_images_of_one_patient_count_once_with_their_mean(tmp_path):
    table = simulated(40, 40)
    twice = pd.concat([table, table.assign(probability_M=0.0, path=table["path"] + "2")], ignore_index=True)
    found = content(shared(tmp_path, "A", twice))
    assert found.malignant.patients == 40
    halves = np.where(table["label"] == "M", table["probability_M"] / 2, 0)
    assert sum(one.probability for one in found.calibration) == pytest.approx(table["probability_M"].sum() / 2, abs=0.1)
    assert found.malignant.called[0] <= (halves >= POINT.threshold).sum() <= found.malignant.called[1]


def test_nothing_of_a_patient_or_a_scan_is_in_the_file(tmp_path):
    table = simulated()
    text = shared(tmp_path, "A", table, grouped(table, sex=np.where(table["patient"] % 2, "F", "M"))).read_text()
    for word in ("site/", ".jpg", "700000", "Dr Kim", str(tmp_path)):
        assert word not in text
    assert "esearch use only" in text


def test_few_mistakes_are_withheld_with_their_threshold(tmp_path):
    found = content(shared(tmp_path, "A", predicted([0.1, 0.2, 0.3, *FAR], np.linspace(0, 0.39, 40))))
    assert found.malignant.called == [43 - 9, 43 - 1]
    assert POINT.threshold not in found.malignant_steps.edges
    assert found.benign.called == [0, 0]  # none is a count that may be told
    assert POINT.threshold in found.benign_steps.edges
    assert found.left_out == ["malignant patients that are called malignant: the exact number"]


@pytest.mark.parametrize("missed", range(1, 10))
def test_every_small_number_of_mistakes_looks_the_same(tmp_path, missed):
    table = predicted([*np.linspace(0.1, 0.3, missed), *np.full(40 - missed, 0.9)], FAR)
    assert content(shared(tmp_path, "A", table)).malignant.called == [31, 39]


def test_of_18_patients_not_even_the_side_with_few_is_told(tmp_path):
    found = content(shared(tmp_path, "A", predicted([*np.full(9, 0.2), *np.full(9, 0.8)], FAR)))
    assert found.malignant.called == [1, 17]


def test_a_class_with_fewer_than_ten_patients_is_left_out_with_all_that_needs_it(tmp_path):
    found = content(shared(tmp_path, "A", simulated(9, 50), None))
    assert (found.malignant, found.malignant_steps, found.auroc, found.slope) == (None, None, None, None)
    assert found.calibration == found.subgroups == []
    assert found.benign.patients == 50
    assert "malignant patients: fewer than 10" in found.left_out


def test_a_site_with_nothing_to_share_is_refused_and_leaves_no_file(tmp_path):
    with pytest.raises(InputError, match="fewer than 10 patients of each class"):
        shared(tmp_path, "A", simulated(9, 9))
    assert not (tmp_path / "A.json").exists()
    assert not (tmp_path / "A.pem.shared.json").exists()


def test_perfectly_separated_classes_have_no_coefficients(tmp_path):
    found = content(shared(tmp_path, "A", predicted(np.full(30, 0.9), np.full(30, 0.1))))
    assert (found.auroc.value, found.slope) == (1.0, None)


def test_small_groups_are_merged_with_one_that_hides_them(tmp_path):
    table = simulated(60, 60, skill=0.5)
    place = np.tile(np.arange(60), 2)
    vendor = np.where(place < 30, "big", np.where(place < 52, "middle", np.where(place < 57, "small", None)))
    (column,) = content(shared(tmp_path, "A", table, grouped(table, vendor=vendor))).subgroups
    assert {group.group: group.malignant.patients for group in column.groups} == {"big": 30, "other": 30}


def test_a_group_that_would_leave_a_few_patients_is_left_out(tmp_path):
    table = simulated(60, 60)
    place = np.tile(np.arange(60), 2)
    found = content(shared(tmp_path, "A", table, grouped(table, vendor=np.where(place < 57, "big", "small"))))
    assert found.subgroups == []
    assert found.left_out[0] == "vendor: not two groups with 10 patients of each side"


def test_a_group_within_another_column_s_group_is_left_out(tmp_path):
    table = simulated(100, 100, skill=0.3)
    place = np.tile(np.arange(100), 2)
    groups = grouped(table, age=np.where(place < 50, "young", "old"), room=np.where(place < 45, "one", "two"))
    found = content(shared(tmp_path, "A", table, groups))
    assert [column.column for column in found.subgroups] == ["age"]
    assert found.left_out[0].startswith("room: another column or the bins")


def test_an_audit_that_failed_or_was_not_run_says_so(tmp_path):
    fields = {"domain": "cropped", "shortcut": {}, "kept": {}, "leakage": {}, "not_measured": {}}
    audit = AuditRecord(**fields, findings={"shortcut": "box size alone tells the classes"})
    found = content(shared(tmp_path, "A", simulated(), audits=audit))
    assert found.audit.to_dict() == {"outcome": "failed", "findings": audit.findings}
    few = content(shared(tmp_path, "B", simulated(9, 60), audits=audit))
    assert few.audit.findings == {"shortcut": ""}
    assert content(shared(tmp_path, "C", simulated(), audits=None)).audit.outcome == "not run"
    at_chance = AuditRecord(**fields, findings={})
    assert content(shared(tmp_path, "E", simulated(), audits=at_chance)).audit.outcome == "not run"
    passed = AuditRecord(**fields | {"kept": {"model_on_blanked_nodule": 0.1}}, findings={})
    assert content(shared(tmp_path, "D", simulated(), audits=passed)).audit.outcome == "passed"


def test_the_key_is_private_and_its_public_half_is_beside_it(tmp_path, caplog):
    with caplog.at_level("INFO", "thyroid"):
        shared(tmp_path, "A", simulated())
    assert stat.S_IMODE((tmp_path / "A.pem").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "A.pem.shared.json").stat().st_mode) == 0o600
    assert b"BEGIN PUBLIC KEY" in (tmp_path / "A.pem.pub").read_bytes()
    assert "Give A.pem.pub to whoever pools" in caplog.text
    assert "700000" not in (tmp_path / "A.pem.shared.json").read_text()
    caplog.clear()
    key = (tmp_path / "A.pem").read_bytes()
    (tmp_path / "A.pem.pub").unlink()
    shared(tmp_path, "A", simulated())
    assert (tmp_path / "A.pem").read_bytes() == key
    assert "new private key" not in caplog.text


def test_a_key_that_others_can_read_is_refused(tmp_path):
    shared(tmp_path, "A", simulated())
    (tmp_path / "A.pem").chmod(0o644)
    with pytest.raises(InputError, match="chmod 600"):
        shared(tmp_path, "A", simulated())


@pytest.mark.parametrize("text", ["", "no key", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"])
def test_what_is_no_private_key_is_refused(tmp_path, text):
    (tmp_path / "A.pem").write_text(text)
    (tmp_path / "A.pem").chmod(0o600)
    with pytest.raises(InputError, match=r"A\.pem: not a private Ed25519 key"):
        shared(tmp_path, "A", simulated())


def test_folders_that_do_not_exist_are_named(tmp_path):
    table = simulated()
    for path, key in ((tmp_path / "no" / "a.json", tmp_path / "key"), (tmp_path / "a.json", tmp_path / "no" / "key")):
        with pytest.raises(InputError, match="no such folder"):
            share.write(path, key, record(), table, groups=grouped(table), point=POINT)


def test_the_same_patients_may_be_shared_again(tmp_path):
    table = simulated()
    first = shared(tmp_path, "A", table).read_bytes()
    assert shared(tmp_path, "A", table).read_bytes() == first
    assert len(json.loads((tmp_path / "A.pem.shared.json").read_bytes())["shares"]) == 1


@pytest.mark.parametrize(("kept", "others"), [(59, 90), (51, 90), (60, 89)])
def test_a_file_that_differs_by_a_few_patients_is_refused(tmp_path, kept, others):
    table = simulated()
    shared(tmp_path, "A", table)
    part = pd.concat([table[table["label"] == "M"].head(kept), table[table["label"] == "B"].head(others)])
    before = (tmp_path / "A.json").read_bytes()
    with pytest.raises(InputError, match=r"differs by fewer than 10 (malignant|benign) patients"):
        shared(tmp_path, "A", part)
    assert (tmp_path / "A.json").read_bytes() == before
    with pytest.raises(InputError, match="differs by fewer than 10"):  # numbers of patients are no matter of the model
        shared(tmp_path, "A", part, model=record().model.model_copy(update={"sha256": "ab" * 32}))


def test_a_patient_whose_label_was_corrected_is_a_difference_of_one(tmp_path):
    table = simulated()
    shared(tmp_path, "A", table)
    table.loc[0, ["class", "label"]] = "B"
    with pytest.raises(InputError, match="differs by fewer than 10"):
        shared(tmp_path, "A", table)


def test_a_larger_file_differs_by_no_small_cell_and_has_no_subgroups(tmp_path):
    table = simulated(200, 200, skill=0.5)
    sex = np.where(table["patient"] % 2, "F", "M")
    part = table.groupby("label").head(120)
    first = content(shared(tmp_path, "A", part, grouped(table, sex=sex)))
    second = content(shared(tmp_path, "A", table, grouped(table, sex=sex)))
    assert first.subgroups
    assert second.subgroups == []
    assert "about other patients" in second.left_out[0]
    for before, after in ((first.malignant_steps, second.malignant_steps), (first.benign_steps, second.benign_steps)):
        common = sorted(set(before.edges) & set(after.edges))
        for low, high in itertools.pairwise(common):
            counts = [
                sum(n for edge, n in zip(steps.edges, steps.patients, strict=False) if low <= edge < high)
                for steps in (before, after)
            ]
            assert counts[1] - counts[0] == 0 or counts[1] - counts[0] >= 10


def test_a_damaged_history_stops_the_sharing(tmp_path):
    shared(tmp_path, "A", simulated())
    (tmp_path / "A.pem.shared.json").write_text("{")
    with pytest.raises(InputError, match="restore the file from a copy"):
        shared(tmp_path, "A", simulated())


def test_the_name_of_a_site_makes_a_safe_file_name():
    assert signature.file_name("St. Mary's / Leiden") == "St-Mary-s-Leiden.pub"
    assert signature.file_name("../../etc/passwd") == "etc-passwd.pub"


def test_another_model_may_be_shared_of_the_same_patients_unless_it_is_a_recalibration(tmp_path):
    table, other = simulated(100, 100, 0.3), simulated(100, 100, 0.3, seed=1)
    sex = np.where(table["patient"] % 2, "F", "M")
    another = record().model.model_copy(update={"sha256": "ab" * 32})
    assert content(shared(tmp_path, "A", table, grouped(table, sex=sex))).subgroups
    assert content(shared(tmp_path, "A", other, grouped(other, sex=sex), model=another)).subgroups
    logit = np.log(table["probability_M"] / table["probability_B"])
    cooler = predicted(*(1 / (1 + np.exp(-0.7 * logit[table["label"] == label] - 0.2)) for label in "MB"))
    with pytest.raises(InputError, match="orders these patients alike, as a recalibration does"):
        shared(tmp_path, "A", cooler, model=record().model.model_copy(update={"sha256": "cd" * 32}))


def test_subgroups_of_other_patients_are_not_shared_of_another_model_either(tmp_path):
    table, other = simulated(200, 200, 0.3), simulated(200, 200, 0.3, seed=1)
    sex = np.where(table["patient"] % 2, "F", "M")
    part = table.groupby("label").head(120)
    shared(tmp_path, "A", part, grouped(part, sex=sex[part.index]))
    another = record().model.model_copy(update={"sha256": "ab" * 32})
    assert content(shared(tmp_path, "A", other, grouped(other, sex=sex), model=another)).subgroups == []


@pytest.mark.parametrize("name", ["A.pem", "A.pem.pub", "A.pem.shared.json"])
def test_the_file_never_replaces_the_key_or_what_belongs_to_it(tmp_path, name):
    shared(tmp_path, "A", simulated())
    before = (tmp_path / name).read_bytes()
    table = simulated()
    with pytest.raises(InputError, match="belongs to the private key; name another file"):
        share.write(tmp_path / name, tmp_path / "A.pem", record("A"), table, groups=grouped(table), point=POINT)
    assert (tmp_path / name).read_bytes() == before


def test_a_folder_in_the_place_of_a_file_is_refused_before_anything_is_remembered(tmp_path):
    table = simulated()
    (tmp_path / "folder").mkdir(mode=0o700)
    for path, key in (("folder", "A.pem"), ("A.json", "folder")):
        with pytest.raises(InputError, match=r"folder: (a folder|not a file); name a"):
            share.write(tmp_path / path, tmp_path / key, record("A"), table, groups=grouped(table), point=POINT)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize(
    ("site", "message"),
    [
        ("A\nB", "control or invisible"),
        ("\u202eA", "control or invisible"),
        ("//", "letters or digits"),
        ("x" * 201, "200"),
    ],
)
def test_a_name_that_cannot_name_a_key_is_refused(tmp_path, site, message):
    table = simulated()
    with pytest.raises(InputError, match=message) as error:
        share.write(tmp_path / "a.json", tmp_path / "key", record(site), table, groups=grouped(table), point=POINT)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_crash_before_the_file_is_there_is_mended_by_a_second_try(tmp_path, monkeypatch):
    table = simulated()
    with monkeypatch.context() as patch:
        patch.setattr(share.atomic, "write_bytes", lambda *_: (_ for _ in ()).throw(OSError("power cut")))
        with pytest.raises(OSError, match="power cut"):
            shared(tmp_path, "A", table)
    assert len(json.loads((tmp_path / "A.pem.shared.json").read_bytes())["shares"]) == 1
    assert content(shared(tmp_path, "A", table)).malignant.patients == 60
    assert len(json.loads((tmp_path / "A.pem.shared.json").read_bytes())["shares"]) == 1


def test_a_sum_of_probabilities_that_tells_a_withheld_count_is_left_out(tmp_path):
    """With a low threshold the sum is nearly the number of called patients, if all probabilities are near 0 or 1."""
    point = OperatingPoint(1.0, (0.0, 0.0), 0.05, (0.5, 0.5))
    table = predicted([0.01, *np.linspace(0.985, 1, 39)], np.full(60, 0.01))
    path = tmp_path / "a.json"
    found = share.write(path, tmp_path / "key", record("A"), table, groups=grouped(table), point=point)
    assert found.malignant.called == [31, 39]
    assert found.auroc is not None
    assert (found.calibration, found.intercept, found.slope) == ([], None, None)
    assert found.left_out[-1].startswith("AUROC or calibration: with the steps they would tell")


def test_the_same_patients_of_one_class_may_be_shared_again(tmp_path):
    table = simulated(4, 60)
    first = shared(tmp_path, "A", table).read_bytes()
    assert shared(tmp_path, "A", table).read_bytes() == first


def test_subgroups_that_were_corrected_are_not_shared_again(tmp_path):
    table = simulated(100, 100, skill=0.3)
    sex = np.where(table["patient"] % 2, "F", "M").astype(object)
    assert content(shared(tmp_path, "A", table, grouped(table, sex=sex))).subgroups
    assert content(shared(tmp_path, "A", table, grouped(table, sex=sex))).subgroups
    sex[:3] = "F"
    found = content(shared(tmp_path, "A", table, grouped(table, sex=sex)))
    assert found.subgroups == []
    assert found.left_out[0].startswith("subgroups: an earlier file was about other")
