"""The search: its trials, no reading of the test set, survival of kills, and a result that a training accepts."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from optuna.trial import TrialState

from pipelines import __main__ as cli
from tests.support import ROOT, toys
from thyroid import crop, metrics
from thyroid.crop import CropOptions
from thyroid.data import tables
from thyroid.data.version import DataVersion
from thyroid.errors import InputError
from thyroid.imaging import geometry
from thyroid.records.settings import Settings
from thyroid.sweep import heads, plans, report, search
from thyroid.sweep.images import Sources
from thyroid.sweep.options import SweepOptions
from thyroid.sweep.prepare import prepare
from thyroid.train import record, settings, train
from thyroid.train.options import TrainOptions

TOY = SweepOptions(weights="none", image_size=32, epochs=1, batch_size=16, folds=2)


def ignore(step: int, value: float) -> None:
    """Nothing is pruned."""


@pytest.fixture(scope="module")
def study(toy, cropped, tmp_path_factory) -> Iterator[plans.Plan]:
    """Both stages at toy size; the test images of this copy of the data version are no images, nor are their scans."""
    folder = tmp_path_factory.mktemp("sweep")
    shutil.copytree(cropped, folder / "data")
    scans, regions, facts = tables.read(cropped.parent / "ingested")
    shutil.copytree(cropped.parent / "ingested", folder / "ingested")
    copies = folder / "scans"
    copies.mkdir()
    for path in scans["local_path"]:
        shutil.copy(cropped.parent / "ingested" / path, copies)
    scans["local_path"] = [str(copies / Path(path).name) for path in scans["local_path"]]
    tables.write(folder / "ingested", scans, regions, facts)
    poison(folder)
    patch = pytest.MonkeyPatch()
    patch.setattr(plans, "TOPS", 1)
    plan = prepare(folder / "data", folder / "study", toy, "cropped", TOY)
    assert search.search_heads(plan.folder, 6) == 6
    search.rank(plan.folder)
    images = plan.shared(plans.IMAGES)
    with_margin = {"margin": 0.4, "head": 1, "image_size": 48, "augmentation": 0.5, "unfrozen": 2}
    images.study.enqueue_trial(with_margin)
    trials = len(images.trials())
    sources = Sources(folder / "data", folder / "ingested", "none")
    assert search.search_images(plan.folder, sources, trials) == trials
    yield plan
    patch.undo()


def poison(folder: Path) -> None:
    scans, regions, _ = tables.read(folder / "data")
    tested = scans[scans["split"] == "test"]
    crops = regions[regions["path"].isin(tested["path"])]["crop_path"]
    for name in [*tested["normal_path"], *crops]:
        (folder / "data" / name).write_bytes(b"no image")
    for path in tested["path"]:
        (folder / "scans" / Path(path).name).write_bytes(b"no image")


def test_the_test_set_is_not_read(study):
    """The files are no images: what had opened one would have failed, or lost it."""
    other = study.folder / "margins" / "0.40"
    assert set(tables.read(other)[0]["split"]) == {"train", "validation"}
    assert tables.read_facts(other).margin == 0.4
    assert len(pd.read_csv(other / "quarantine.csv")) == 0
    assert len(study.table) == len(DataVersion.read(other).examples("cropped"))
    assert {"train", "validation", "held-out"} == set(study.table["fold-1"])
    for number in (1, 2):
        held = study.table[study.table[f"fold-{number}"] == "held-out"]
        rest = study.table[study.table[f"fold-{number}"] != "held-out"]
        assert not set(held["patient"]) & set(rest["patient"])
        assert set(held["fold"]) == {number}


def test_every_trial_says_what_it_was(study):
    heads, images = (study.shared(stage).trials() for stage in (plans.HEADS, plans.IMAGES))
    assert study.settings(plans.HEADS, heads[0].params) == study.default.replace(unfrozen=0)
    assert study.settings(plans.IMAGES, images[0].params) == study.default
    best = max((one for one in heads if one.state == TrialState.COMPLETE), key=lambda one: one.value)
    first = study.settings(plans.IMAGES, images[1].params)
    assert first == study.settings(plans.HEADS, best.params).replace(unfrozen=1)
    with_margin = next(one for one in images if one.params["margin"] == 0.4)
    found = study.settings(plans.IMAGES, with_margin.params)
    assert (found.image_size, found.augmentation, found.unfrozen) == (48, 0.5, 2)
    for stage, trials in ((plans.HEADS, heads), (plans.IMAGES, images)):
        for one in trials:
            if one.state == TrialState.COMPLETE:
                probability = study.scores(stage, one.number)
                assert np.isfinite(probability).all()
                assert study.auroc(probability)[0] == pytest.approx(one.value)
    assert not (study.folder / "work").exists() or not [p for p in (study.folder / "work").iterdir() if p.is_dir()]


def test_a_trial_is_what_a_training_with_these_settings_does(study, cropped, tmp_path):
    """Out-of-fold probabilities of `thyroid.train --folds` with a settings file, image by image."""
    chosen = study.default.replace(unfrozen=0, head_rate=0.02, class_weight="sqrt", tap=toys.TAP, image_size=32)
    chosen.write(tmp_path / "settings.json")
    options = TrainOptions(
        weights="none", image_size=64, epochs=1, batch_size=16, settings=tmp_path / "settings.json", folds=2
    )
    done = train.train(cropped, tmp_path / "out", "Toy", "cropped", options)
    assert done.record.recipe == "frozen"
    assert done.record.image_size == 32
    assert done.record.settings == chosen
    theirs = record.out_of_fold(done.folder, "cropped")
    ours = heads.evaluate_heads(study, {}, chosen, ignore)
    names = DataVersion.read(cropped).examples("cropped").set_index("name")["path"]
    table = theirs.assign(path=theirs["file"].map(names)).sort_values("path", ignore_index=True)
    assert table["path"].tolist() == study.table["path"].tolist()
    np.testing.assert_allclose(ours, table[["probability_B", "probability_M"]], atol=0.02)


def test_results(study, tmp_path):
    done = report.conclude(study.folder, tmp_path)
    facts = json.loads((tmp_path / "study.json").read_text())
    assert facts == done.facts
    assert facts["chosen"]["stage"] == plans.IMAGES
    assert facts["chosen"]["auroc"]["value"] >= facts["default"]["auroc"]["value"]
    assert {one["stage"] for one in facts["trials"]} == {"heads", "images"}
    assert sum(one["default"] for one in facts["trials"]) == 2
    assert settings.read(tmp_path / "settings.json") == Settings(**facts["chosen"]["settings"])
    found = json.loads((tmp_path / "settings.json").read_text())["found"]
    assert found["data_digest"] == study.facts["data_digest"]
    page = (tmp_path / "report.html").read_text()
    assert "Research use only" in page
    assert page.count("data:image/png") >= 4
    assert "The test set was not read" in page
    assert facts["helped"].split(".")[0] in page.replace("&#39;", "'")


def test_the_choice_does_not_make_itself_look_good(study):
    """Twenty random scorers: the best of them looks better than the middle one; of that lead little is left."""
    rng = np.random.default_rng(0)
    patients = np.arange(200)
    truth = np.where(patients % 3 == 0, "M", "B")
    table = pd.DataFrame({"class": truth, "label": truth, "patient": patients, "fold": patients % 2 + 1})
    plan = plans.Plan(study.folder, study.facts, table)
    scores = [np.stack([1 - one, one], axis=1) for one in rng.random((20, 200))]
    values = [float(plan.auroc(one)[0]) for one in scores]
    usual = int(np.argsort(values)[10])
    lead = max(values) - values[usual]
    left = report.corrected(plan, scores, usual)
    assert lead > 0.03
    assert left["difference"]["value"] < lead / 2
    assert left["difference"]["low"] < 0 < left["difference"]["high"]
    assert left["auroc"]["value"] == pytest.approx(0.5, abs=0.06)
    better = np.where(truth == "M", 0.7, 0.3) + rng.normal(0, 0.3, 200)
    left = report.corrected(plan, [*scores, np.stack([1 - better, better], axis=1)], usual)
    assert left["difference"]["low"] > 0, "what is truly better stays so"
    assert report.corrected(plan, scores[:1], 0) is None


def test_auroc_compares_within_folds_and_class_by_class(study):
    table = pd.DataFrame({"class": list("BMBM"), "label": list("BMBM"), "patient": range(4), "fold": [1, 1, 2, 2]})
    plan = plans.Plan(study.folder, study.facts, table)
    score = np.array([0.1, 0.2, 0.8, 0.9])
    assert plan.auroc(np.stack([1 - score, score], axis=1))[0] == 1
    score[2:] = np.nan
    assert plan.auroc(np.stack([1 - score, score], axis=1))[0] == 1, "folds that are not done do not count"
    facts = study.facts | {"classes": ["2", "3", "5"], "positive": [False, False, True], "ordered": True}
    table = pd.DataFrame({"class": ["2", "3", "5"] * 20, "patient": range(60), "fold": [1] * 60})
    plan = plans.Plan(study.folder, facts, table)
    right = plan.labels.astype(float)
    assert plan.auroc(right)[0] == 1
    swapped = right[:, [1, 0, 2]]
    assert plan.auroc(swapped)[0] == pytest.approx((0.25 + 0.25 + 1) / 3)
    assert plan.auroc(right, metrics.Draws(table["patient"], 10)).shape == (11,)


def test_other_data_or_settings_are_another_study(study, cropped, tmp_path, capsys):
    same = prepare(study.folder.parents[1] / "data", study.folder.parent, "toy", "cropped", TOY)
    assert same.folder == study.folder
    assert re.search(r"\b6 .*\bheads\b", capsys.readouterr().out)
    other = prepare(cropped, tmp_path, "Toy", "cropped", replace(TOY, folds=3))
    assert other.folder.name != study.folder.name
    with pytest.raises(InputError, match=r"plan\.json"):
        plans.read(tmp_path)
    with pytest.raises(InputError, match="ranked"):
        search.search_images(other.folder, Sources(cropped, None, "none"), 1)
    with pytest.raises(InputError, match=other.folder.name):
        report.conclude(other.folder, tmp_path / "out")
    for folds in (0, 1):
        with pytest.raises(InputError, match="folds"):
            replace(TOY, folds=folds)
    with pytest.raises(InputError, match="--ingested"):
        Sources(cropped, None, "none").images(study, 0.3)


def test_a_search_in_a_bucket_needs_no_volume(bucket, toy, cropped, tmp_path, monkeypatch):
    """Each step runs on another node."""
    monkeypatch.setattr(plans, "TOPS", 1)

    def on_node(name: str) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name))

    on_node("one")
    found = prepare(cropped, bucket.address("store/sweeps"), toy, "cropped", TOY).address
    assert found.startswith(bucket.address("store/sweeps/"))
    for name, wanted in (("two", 2), ("three", 3)):
        on_node(name)
        assert search.search_heads(found, wanted) == wanted
    with pytest.raises(InputError, match="not ranked"):
        search.search_images(found, Sources(cropped, None, "none"), 1)
    search.rank(found)
    on_node("four")
    assert search.search_images(found, Sources(cropped, None, "none"), 1) == 1
    on_node("five")
    done = report.conclude(found, tmp_path / "out")
    assert [one["stage"] for one in done.facts["trials"]].count(plans.HEADS) == 3
    assert prepare(cropped, bucket.address("store/sweeps"), toy, "cropped", TOY).address == found


@pytest.mark.slow
def test_killed_workers_and_a_killed_search_go_on(cropped, tmp_path):
    """Kill -9 a worker, then the whole search in the middle of a trial; the same command ends with the right number."""
    command = [
        sys.executable, "-m", "thyroid.sweep", "--data", str(cropped), "--study", str(tmp_path / "study"),
        "--output", str(tmp_path / "out"), "--backbone", "VGG16", "--domain", "cropped", "--weights", "none",
        "--image-size", "32", "--epochs", "1", "--folds", "2",
        "--head-trials", "400", "--image-trials", "0", "--workers", "2",
    ]  # fmt: skip
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 300

    def finished() -> int:
        return len(list(tmp_path.glob("study/*/trials/*.npy")))

    def workers() -> list[int]:
        return [int(path.name.split("-")[-2]) for path in tmp_path.glob("study/*/workers/*")]

    def until(count: int) -> None:
        while finished() < count or len(workers()) < 1:
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.05)

    until(10)
    os.kill(workers()[0], signal.SIGKILL)
    until(finished() + 10)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    until_gone = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in workers()) and time.monotonic() < until_gone:
        time.sleep(0.05)
    before = finished()
    assert before < 120
    command[command.index("400")] = "120"
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stdout + again.stderr
    facts = json.loads((tmp_path / "out" / "study.json").read_text())
    states = [one["state"] for one in facts["trials"] if one["stage"] == plans.HEADS]
    assert states.count("complete") + states.count("pruned") == 120
    assert states.count("running") == 0
    lost = [one for one in facts["trials"] if one["state"] == "fail"]
    repeated = {one["again"]: one for one in facts["trials"] if one["again"] is not None}
    for one in lost:
        if one["parameters"]:  # some of them, or none yet, where it was killed while they were chosen
            assert one["parameters"].items() <= repeated[one["number"]]["parameters"].items()
    assert len(lost) <= 3, "one of each killed process, or none where it was killed between two trials"
    assert facts["chosen"]["stage"] == plans.HEADS


def test_compiled(tmp_path):
    assert cli.main(["compile", "--output", str(tmp_path / "thyroid.yaml"), "--backbones", "ResNet50"]) == 0
    specification, platform = yaml.safe_load_all((tmp_path / "thyroid-sweep.yaml").read_text())
    tasks = specification["root"]["dag"]["tasks"]
    loops = {task["taskInfo"]["name"]: task for task in tasks.values() if "parameterIterator" in task}
    assert set(loops) == {"heads", "images"}
    for loop in loops.values():
        assert json.loads(loop["parameterIterator"]["items"]["raw"]) == [1, 2, 3, 4]
    assert "sweep-rank" in loops["images"]["dependentTasks"]
    parameters = specification["root"]["inputDefinitions"]["parameters"]
    assert all(one.get("description") for one in parameters.values())
    assert {name for name, one in parameters.items() if not one.get("isOptional")} == {"scans", "store"}
    needs = specification["deploymentSpec"]["executors"]
    assert "accelerator" not in needs["exec-sweep-heads"]["container"]["resources"]
    assert needs["exec-sweep-images"]["container"]["resources"]["accelerator"]
    assert all(
        one["pvcMount"] for one in platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"].values()
    ), "every worker sees the study"


def test_what_is_wrong_with_a_sweep_is_said_at_once(capsys, scans, tmp_path):
    def failing(*arguments: str) -> str:
        assert cli.main(["sweep", "--scans", str(scans), "--output", str(tmp_path / "out"), *arguments]) == 2
        return capsys.readouterr().err

    assert "VGG16,VGG19" in failing("--backbones", "VGG16,VGG19")
    assert "--head-trials" in failing("--head-trials", "0")
    assert "/no/where" in failing("--weights", "/no/where")
    assert cli.main(["run", "--scans", str(scans), "--recipe", "fast", "--output", str(tmp_path / "out")]) == 2
    assert re.search(r"--recipe fast\b.*\btwo-phase\b", capsys.readouterr().err)
    assert cli.main(["run", "--scans", str(scans), "--recipe", "no.json", "--output", str(tmp_path / "out")]) == 2
    assert "--settings" in capsys.readouterr().err
    assert cli.main(["run", "--scans", str(scans), "--settings", "no.json", "--output", str(tmp_path / "out")]) == 2
    assert "no.json" in capsys.readouterr().err


def test_the_default_settings_are_those_of_the_images(toy, cropped, tmp_path):
    crop.crop(cropped.parent / "ingested", tmp_path / "data", CropOptions(["cropped"], margin=0.3))
    plan = prepare(tmp_path / "data", tmp_path / "study", toy, "cropped", TOY)
    assert plan.default.margin == 0.3
    assert plan.settings(plans.HEADS, {"head_rate": 0.01}).margin == 0.3
    assert (
        plans.Plan(plan.folder, {"image_size": 32, "backbone": "VGG16"}, plan.table).default.margin == geometry.MARGIN
    )


def test_a_settings_file_needs_its_own_crops(cropped, tmp_path):
    Settings(margin=0.3).write(tmp_path / "settings.json")
    options = TrainOptions(weights="none", settings=tmp_path / "settings.json")
    with pytest.raises(InputError, match=rf"\b{geometry.MARGIN}\b.*\b0\.3\b"):
        train.train(cropped, tmp_path / "out", "VGG16", "cropped", options)


def test_margins(cropped, tmp_path):
    done = crop.crop(
        cropped.parent / "ingested", tmp_path / "wide", CropOptions(["cropped"], margin=0.9, splits=("train",))
    )
    assert done.facts.margin == 0.9
    wide = tables.read(tmp_path / "wide")[1].set_index(["path", "index"])["crop_sha256"]
    usual = tables.read(cropped)[1].set_index(["path", "index"])["crop_sha256"]
    assert len(wide) < len(usual)
    assert (wide != usual.reindex(wide.index)).all()
    assert geometry.widened((10, 10, 20, 40), 100, 100, 0.5) == (0, 0, 40, 70)
