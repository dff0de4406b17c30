"""A whole validation: from a folder of scans to a report, a file, and an entry in the registry."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from html import unescape
from pathlib import Path

import pandas as pd
import pytest

from tests.conftest import write_rois
from tests.validate.test_recalibrated import box_of, publish, scan
from thyroid import RESEARCH_USE_ONLY, locks
from thyroid.errors import InputError
from thyroid.records.validation import ValidationRecord
from thyroid.registry import __main__ as commands
from thyroid.registry import validations
from thyroid.registry.registry import Registry
from thyroid.validate import validate as module
from thyroid.validate.__main__ import main
from thyroid.validate.options import ValidateOptions
from thyroid.validate.validate import RESULTS, WORK, validate

PATIENTS = 34


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """A hospital with scans of 34 patients, one damaged file, and rois.csv."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "scans").mkdir()
    rows = [(scan(folder / "scans", patient), *box_of(patient)) for patient in range(1, PATIENTS + 1)]
    (folder / "scans" / "B_900-0001-1.0.jpg").write_bytes(b"no picture")
    write_rois(folder / "rois.csv", rows)
    return folder


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    return publish(folder / "registry", folder / "artefact")


@pytest.fixture
def root(published, tmp_path) -> Path:
    return Path(shutil.copytree(published, tmp_path / "registry"))


def options(site: Path, root: Path, **more) -> ValidateOptions:
    given = {"rois": site / "rois.csv", "site": "Elsewhere", "by": "Ada"} | more
    return ValidateOptions(root, given.pop("scans", site / "scans"), given.pop("site"), **given)


def part(site: Path, folder: Path, keep) -> Path:
    """Copy the scans whose patient `keep` accepts."""
    folder.mkdir()
    for file in (site / "scans").iterdir():
        if keep(int(file.name[2:5])):
            shutil.copy(file, folder)
    return folder


def test_from_a_folder_to_a_report_a_file_and_an_entry(site, root, tmp_path, capsys):
    output = tmp_path / "out"
    command = ["--registry", str(root), "--scans", str(site / "scans"), "--rois", str(site / "rois.csv")]
    share = ["--share", str(tmp_path / "site.json"), "--key", str(tmp_path / "site.key")]
    assert main([*command, "--site", "Saint Elsewhere", "--output", str(output), "--by", "Ada", *share]) == 0
    printed = capsys.readouterr().out
    assert sorted(path.name for path in output.iterdir()) == sorted(RESULTS), "and nothing of the work stays"
    record = ValidationRecord.read(output / "validation.json")
    assert (record.site, record.by, record.notice) == ("Saint Elsewhere", "Ada", RESEARCH_USE_ONLY)
    assert (record.model.version, record.model.released, record.model.asked) == (1, True, "")
    assert (record.scans.scans, record.scans.patients, record.scans.quarantined) == (PATIENTS, PATIENTS, 1)
    assert list(record.forms) == ["given", "automatic"]
    assert record.agreement is not None
    leading = record.forms["given"].beside["auroc"]
    assert leading.external is not None
    assert leading.external.low < leading.external.value

    table = pd.read_parquet(output / "predictions.parquet")
    assert table["boxes"].value_counts().to_dict() == {"given": PATIENTS, "automatic": PATIENTS}
    quarantine = (output / "quarantine.csv").read_text()
    assert "B_900-0001-1.0.jpg" in quarantine
    page = unescape((output / "report.html").read_text())
    assert "Saint Elsewhere" in page
    assert RESEARCH_USE_ONLY in page
    assert record.warnings
    assert all(sentence in page for sentence in record.warnings)
    assert RESEARCH_USE_ONLY in printed
    assert str(output / "report.html") in printed
    assert not re.search(r"[BM]_\d{3}-", printed), "no log names a patient's file"

    (entry,) = validations.read(Registry(root), 1)
    assert (entry.site, entry.by, entry.patients) == ("Saint Elsewhere", "Ada", PATIENTS)
    assert entry.figures["auroc"] == leading
    commands.main(["list", "--registry", str(root)])
    line = capsys.readouterr().out.splitlines()[-1]
    assert re.search(r"promoted +1 ", line), "tried at one site"
    assert json.loads((tmp_path / "site.json").read_text())["site"] == "Saint Elsewhere"


def test_scans_that_the_model_knows_are_taken_out_and_named(site, root, tmp_path):
    listed = Registry(root).find("1") / "scans.csv"
    first = validate(options(site, root), tmp_path / "first")
    assert first.record.scans.taken_out == {}
    scans = pd.read_csv(listed, dtype="string", keep_default_na=False)
    hashes = first.tables["given"].set_index("scan")["sha256"]
    names = ["M_001-0001-1.0.jpg", "B_002-0001-1.0.jpg"]
    known = scans.iloc[[0, 0]].assign(sha256=[hashes[name] for name in names], split=["train", "test"])
    other = publish(tmp_path / "other", tmp_path / "artefact", scans=known)
    done = validate(options(site, other), tmp_path / "second")
    assert done.record.scans.taken_out == {"trained_file": 1, "tested_file": 1}
    assert done.record.scans.scans == PATIENTS - 2
    named = pd.read_csv(tmp_path / "second" / "taken_out.csv")
    assert sorted(Path(file).name for file in named["file"]) == sorted(names)
    assert not {"M_001-0001-1.0.jpg", "B_002-0001-1.0.jpg"} & set(done.tables["automatic"]["scan"])


@pytest.mark.parametrize(
    ("side", "there", "gone"), [(1, "sensitivity", "specificity"), (0, "specificity", "sensitivity")]
)
def test_one_class_gives_what_one_class_can_give(site, root, tmp_path, side, there, gone):
    scans = part(site, tmp_path / "scans", lambda patient: patient % 2 == side and patient < 900)
    done = validate(options(site, root, scans=scans), tmp_path / "out")
    beside = done.record.forms["given"].beside
    assert beside[there].external is not None
    assert beside[gone].external is beside["auroc"].external is None
    assert done.record.audits is None
    assert done.record.recalibration is None
    assert any("only the" in sentence for sentence in done.record.warnings)


def test_twelve_patients_get_intervals_and_the_sentence_that_they_say_little(site, root, tmp_path):
    scans = part(site, tmp_path / "scans", lambda patient: patient <= 12)
    done = validate(options(site, root, scans=scans), tmp_path / "out")
    assert done.record.scans.patients == 12
    assert done.record.forms["given"].beside["auroc"].external.low is not None
    assert "say little" in done.record.warnings[0]


def test_columns_of_clinical_csv_that_cannot_be_used_are_named(site, root, tmp_path):
    rows = [f"{patient},{40 + patient % 9},A" for patient in range(1, PATIENTS + 1)]
    (tmp_path / "clinical.csv").write_text("\n".join(["patient,age,ward", *rows]))
    done = validate(options(site, root, clinical=tmp_path / "clinical.csv"), tmp_path / "out")
    assert any("column ward is constant" in sentence for sentence in done.record.warnings)
    assert {row.column for row in done.record.forms["given"].subgroups} >= {"age"}


def test_without_regions_the_models_own_boxes_lead(site, root, tmp_path):
    done = validate(options(site, root, rois=""), tmp_path / "out")
    assert done.record.main == "automatic"
    assert list(done.record.forms) == ["automatic"]
    assert done.record.agreement is None


def test_without_a_champion_the_candidate_is_tried_and_it_is_said(site, tmp_path):
    root = publish(tmp_path / "registry", tmp_path / "artefact", decision="refused")
    done = validate(options(site, root), tmp_path / "out")
    assert not done.record.model.released
    assert any("not the champion" in sentence for sentence in done.record.warnings)


def test_a_recalibration_is_registered_on_request_and_never_released(site, root, tmp_path):
    done = validate(options(site, root), tmp_path / "silent")
    assert Registry(root).versions() == [1]
    assert done.record.recalibration is not None
    done = validate(options(site, root, recalibrate=True), tmp_path / "out")
    assert done.record.recalibration.version == 2
    assert "version 2" in done.told[0]
    assert Registry(root).versions() == [1, 2]
    assert Registry(root).champion() == 1
    assert [entry.recalibrated for entry in validations.read(Registry(root), 1)] == [2]
    with pytest.raises(InputError, match="knows all 34"):
        validate(options(site, root, model="2"), tmp_path / "again")


def test_a_scan_that_vanishes_meanwhile_is_quarantined(site, root, tmp_path, monkeypatch):
    scans = part(site, tmp_path / "scans", lambda patient: patient <= 20)
    read = module.site.read

    def then_lose_one(*arguments):
        found = read(*arguments)
        (scans / "B_002-0001-1.0.jpg").unlink()
        return found

    monkeypatch.setattr(module.site, "read", then_lose_one)
    done = validate(options(site, root, scans=scans), tmp_path / "out")
    scans_of = done.record.scans
    assert (scans_of.scans, scans_of.patients, scans_of.malignant_patients, scans_of.quarantined) == (19, 19, 10, 1)
    assert scans_of.classes == {"B": 9, "M": 10}
    quarantine = pd.read_csv(tmp_path / "out" / "quarantine.csv")
    assert "B_002-0001-1.0.jpg" in {Path(file).name for file in quarantine["file"]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "7"}, r"no registered model '7'"),
        ({"model": "best"}, r"no registered model 'best'"),
        ({"scans": "nowhere"}, "nowhere"),
        ({"rois": "nowhere.csv"}, "nowhere.csv"),
        ({"clinical": "nowhere.csv"}, "nowhere.csv"),
    ],
)
def test_what_cannot_be_read_is_named(site, root, tmp_path, changes, message):
    with pytest.raises((InputError, OSError), match=message):
        validate(options(site, root, **changes), tmp_path / "out")
    assert list((tmp_path / "out").glob("*")) == [], "nothing half-done is left"
    assert validations.read(Registry(root), 1) == []


@pytest.fixture
def never_read(monkeypatch):
    """Nothing of the site may be read."""
    monkeypatch.setattr(module.site, "read", lambda *_: pytest.fail("the scans were read first"))


@pytest.fixture
def never_judged(monkeypatch):
    """No image may be judged."""
    monkeypatch.setattr(module, "Endpoint", lambda *_: pytest.fail("the model judged the scans first"))


@pytest.mark.parametrize(
    ("share", "key", "message"),
    [
        ("nowhere/site.json", "site.key", "share: .*nowhere is no folder"),
        ("site.json", "nowhere/site.key", "key: .*nowhere is no folder"),
        ("site.json", "rois.csv", "rois.csv: "),
    ],
)
@pytest.mark.usefixtures("never_read")
def test_where_nothing_can_be_shared_is_told_before_the_scans_are_read(site, root, tmp_path, share, key, message):
    shutil.copy(site / "rois.csv", tmp_path)
    with pytest.raises(InputError, match=message):
        validate(options(site, root, share=tmp_path / share, key=tmp_path / key), tmp_path / "out")
    assert not (tmp_path / "site.key").exists(), "no key is made for a run that ends here"


@pytest.mark.usefixtures("never_read")
def test_a_damaged_history_of_what_was_shared_is_told_before_the_scans_are_read(site, root, tmp_path):
    (tmp_path / "site.key.shared.json").write_text("{")
    with pytest.raises(InputError, match=r"site.key.shared.json"):
        validate(options(site, root, share=tmp_path / "site.json", key=tmp_path / "site.key"), tmp_path / "out")


@pytest.mark.usefixtures("never_read")
def test_a_clinical_table_without_a_key_is_told_before_the_scans_are_read(site, root, tmp_path):
    (tmp_path / "clinical.csv").write_text("age\n40\n")
    with pytest.raises(InputError, match=r"clinical.csv: needs a column"):
        validate(options(site, root, clinical=f"{tmp_path / 'clinical.csv'}#age"), tmp_path / "out")


@pytest.mark.usefixtures("never_read")
@pytest.mark.parametrize("place", ["thyroid/1", "."])
def test_results_do_not_go_into_the_registry(site, root, place):
    (root / "thyroid" / "1" / "report.html").write_text("the version's own report")
    with pytest.raises(InputError, match="in the folder of the registry; name another"):
        validate(options(site, root), root / place)
    assert (root / "thyroid" / "1" / "report.html").read_text() == "the version's own report"


@pytest.mark.usefixtures("never_read")
def test_results_do_not_go_among_the_scans(site, root, tmp_path):
    for output in (site / "scans", site / "scans" / "out"):
        with pytest.raises(InputError, match="in the folder of the scans; name another"):
            validate(options(site, root), output)
    assert not (site / "scans" / "out").exists()


@pytest.mark.usefixtures("never_read")
def test_two_validations_do_not_write_to_one_folder(site, root, tmp_path):
    output = tmp_path / "out"
    other = output / WORK / "of the other"
    other.mkdir(parents=True)
    (output / "report.html").write_text("of the other")
    with locks.held(output / WORK / ".lock"), pytest.raises(InputError, match="another validation writes here"):
        validate(options(site, root), output)
    assert other.is_dir()
    assert (output / "report.html").read_text() == "of the other"


def test_a_killed_run_leaves_nothing_that_the_next_one_does_not_remove(site, root, tmp_path):
    output = tmp_path / "out"
    code = (
        "import sys, time; from pathlib import Path; from thyroid.validate import validate as module\n"
        "with module._alone(Path(sys.argv[1])) as work:\n"
        "    (work / 'frame.png').touch(); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(output)])
    while not list(output.glob(f"{WORK}/*/frame.png")):
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.wait()
    scans = part(site, tmp_path / "scans", lambda patient: patient <= 12)
    validate(options(site, root, scans=scans), output)
    assert sorted(path.name for path in output.iterdir()) == sorted(RESULTS)


@pytest.mark.usefixtures("never_judged")
def test_too_few_patients_to_recalibrate_or_to_share_are_told_before_the_model_judges(site, root, tmp_path):
    scans = part(site, tmp_path / "scans", lambda patient: patient <= 12)
    with pytest.raises(InputError, match=r"recalibrate: .*; validate it without --recalibrate"):
        validate(options(site, root, scans=scans, recalibrate=True), tmp_path / "out")
    share = {"share": tmp_path / "site.json", "key": tmp_path / "site.key"}
    with pytest.raises(InputError, match=r"share: .* fewer than 10 .*; validate it without --share"):
        validate(options(site, root, scans=scans, **share), tmp_path / "out")
    assert not (tmp_path / "site.key").exists()


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
@pytest.mark.usefixtures("never_read")
def test_a_registry_that_cannot_be_written_is_told_before_the_scans_are_read(site, root, tmp_path):
    (root / "thyroid" / "1").chmod(0o500)
    try:
        with pytest.raises(InputError, match="1: cannot be written, and the validation is kept beside"):
            validate(options(site, root), tmp_path / "out")
    finally:
        (root / "thyroid" / "1").chmod(0o700)


def test_a_damaged_list_of_validations_is_told_before_the_scans_are_read(site, root, tmp_path, never_read):
    (root / "thyroid" / "1" / "validations.json").write_text("{")
    with pytest.raises(InputError, match=r"validations.json: damaged"):
        validate(options(site, root), tmp_path / "out")


def test_what_fails_after_the_measurement_costs_neither_report_nor_entry(site, root, tmp_path, monkeypatch):
    share, key = tmp_path / "site.json", tmp_path / "site.key"
    validate(options(site, root, share=share, key=key), tmp_path / "first")
    few = part(site, tmp_path / "scans", lambda patient: patient < 33)

    def too_far(*_):
        raise InputError("recalibrate: nothing is registered")

    monkeypatch.setattr(module.recalibrated, "register", too_far)
    asked = options(site, root, scans=few, share=share, key=key, recalibrate=True)
    with pytest.raises(InputError) as caught:
        validate(asked, tmp_path / "out")
    told = str(caught.value)
    assert "recalibrate: nothing is registered" in told
    assert "share: " in told
    assert f"the report is written: {tmp_path / 'out' / 'report.html'}" in told
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(RESULTS)
    assert ValidationRecord.read(tmp_path / "out" / "validation.json").scans.patients == 32
    assert [entry.patients for entry in validations.read(Registry(root), 1)] == [PATIENTS, 32]


def test_a_registry_that_fails_at_the_end_costs_no_report_and_no_counts(site, root, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.validations, "record", full)
    share = {"share": tmp_path / "site.json", "key": tmp_path / "site.key"}
    with pytest.raises(
        InputError, match=r"^registry .*: No space left on device; counts to share: .*the report is written: "
    ):
        validate(options(site, root, **share), tmp_path / "out")
    assert (tmp_path / "site.json").is_file()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(RESULTS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"site": " "}, "site: give the name"),
        ({"prevalence": 1.0}, "prevalence 1"),
        ({"prevalence": -0.1}, "prevalence -0.1"),
        ({"wanted": 0.0}, "wanted 0"),
        ({"share": Path("site.json")}, "--key"),
        ({"key": Path("site.key")}, "--share"),
        ({"prevalence": float("nan")}, "prevalence nan"),
        ({"wanted": float("inf")}, "wanted inf"),
        ({"seed": -1}, "seed -1: must be between 0 and 4294967295"),
        ({"seed": 2**32}, "seed 4294967296"),
        ({"site": "../<b>x</b>\n"}, "--site .*give a name of at most 64 letters"),
        ({"site": "x" * 65}, "at most 64 letters"),
        ({"by": "Ada\n# Heading"}, "by: give a name of at most 200 printable"),
        ({"by": "\udcff"}, "by: give a name"),
        ({"by": "A" * 201}, "by: give a name"),
    ],
)
def test_options_are_checked_before_anything_is_read(changes, message):
    with pytest.raises(InputError, match=message):
        ValidateOptions(**{"registry": "r", "scans": "s", "site": "Elsewhere"} | changes)
