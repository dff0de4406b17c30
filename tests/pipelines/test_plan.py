"""How long a run is going to take: what is reckoned beforehand, and how it follows what happens."""

import json
import re

import pytest

from pipelines.local import plan
from pipelines.local.machine import Machine
from pipelines.local.plan import Pace, Plan, Planned, Workload
from thyroid.model import inputs
from thyroid.model.backbones import BACKBONES
from thyroid.train import twophase


def of(tmp_path, **changed) -> Plan:
    given = {
        "backbones": tuple(BACKBONES), "images": 240, "size": 64, "epochs": 3, "recipe": "two-phase", "domains": 1,
        "folds": 0, "locator": "toy", "cores": 2, "memory": 16e9, "remembered": tmp_path / "paces.json",
    } | changed  # fmt: skip
    machine, remembered = Machine(given.pop("cores"), given.pop("memory")), given.pop("remembered")
    return plan.training(Workload(**given), machine, remembered)


def test_constants_are_those_of_the_training():
    assert (plan.BUDGET, plan.VIEWS) == (inputs.MEMORY_BUDGET, twophase.VIEWS)
    assert set(plan.NETWORKS) == set(BACKBONES)


def test_more_work_takes_longer(tmp_path):
    (tmp_path / "paces.json").write_text(json.dumps({"ingest": 1.0}))
    usual = of(tmp_path).left()
    for more in ({"images": 2400}, {"size": 224}, {"epochs": 15}, {"domains": 2}, {"folds": 5}, {"recipe": "deck"}):
        assert of(tmp_path, **more).left() > usual, more
    assert of(tmp_path, cores=1).left() > usual
    for less in ({"backbones": ["VGG16"]}, {"images": 24}, {"recipe": "frozen"}):
        assert of(tmp_path, **less).left() < usual, less


def test_a_locator_takes_its_own_time_whatever_size_the_trainings_have(tmp_path):
    (tmp_path / "paces.json").write_text(json.dumps({"ingest": 1.0}))
    skipped, toy, body = (of(tmp_path, locator=kind).seconds("locate") for kind in ("", "toy", "body"))
    assert skipped < toy < body
    assert of(tmp_path, size=224, epochs=50).seconds("locate") == toy
    assert of(tmp_path, images=2400, locator="body").seconds("locate") > 5 * body
    assert of(tmp_path, images=2400, locator="").seconds("locate") == skipped
    assert of(tmp_path, backbones=["VGG16"], locator="body").left() > of(tmp_path, backbones=["VGG16"]).left()


def test_this_machines_last_run_is_what_the_next_is_reckoned_from(tmp_path):
    found = []
    for paces in ({"ingest": 1.0, "crop": 1.0}, {"train-VGG16": 10.0, "ingest": 1.0, "crop": 1.0}):
        (tmp_path / "paces.json").write_text(json.dumps(paces))
        found.append([of(tmp_path).seconds(name) for name in ("train-VGG16", "train-VGG19")])
    (usual, another), (slow, same) = found
    assert slow == pytest.approx(10 * usual)
    assert same == another, "the others are as fast as half of those that are known"
    first = of(tmp_path, remembered=tmp_path / "none.json")
    assert re.findall(r"\d+", first.announced())[:2] == ["12", "2"], "steps, and how many at a time"
    assert plan.words(first.left()) in first.announced()
    for name in ("ingest", "train-VGG16"):
        first.started(name)
        first.ended(name)
    first.remember(tmp_path / "new.json")
    found = json.loads((tmp_path / "new.json").read_text())
    assert found.keys() == {"ingest", "train-VGG16"}
    assert all(0 <= pace < 0.1 for pace in found.values())


def test_scans_in_a_bucket_are_not_counted_and_no_time_is_promised(tmp_path):
    assert plan.count(["gs://bucket/scans", None]) == 0
    announced = of(tmp_path, images=0)
    assert re.findall(r"\d+", announced.announced()) == ["12", "2"], "steps, and how many at a time"
    announced.started("ingest")
    assert re.findall(r"\d+|ingest", announced.ended("ingest")) == ["1", "12", "ingest", "1"]


def test_pictures_are_counted(tmp_path):
    for name in ("scans/a.jpg", "scans/train/b.JPEG", "scans/c.dcm", "scans/rois.csv", "crops/d.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert plan.count([tmp_path / "scans"]) == 3
    assert plan.count([str(tmp_path / "scans"), tmp_path / "crops"]) == 4


def test_what_has_happened_corrects_what_is_left():
    """Two steps that took no time show a faster machine, so the time that is left shrinks by more than their own."""
    steps = [Planned(name, 100.0) for name in ("one", "two", "three", "four")]
    known = Plan(steps, pace=Pace(others=1.0))
    assert known.left() == pytest.approx(400)
    for name in ("one", "two"):
        known.started(name)
        said = known.ended(name)
    assert known.left() < 100
    assert said.startswith("2 of 4 steps done, about ")
    assert said.endswith(" left (two took 1 s)")
    known.left_out(["four"])
    known.started("three")
    assert known.ended("three") == "3 of 3 steps done (three took 1 s)"
    assert known.left() == 0


def test_steps_side_by_side_share_the_time_but_none_is_divided():
    alone, long = Planned("alone", 10.0), Planned("long", 90.0, parallel=True)
    short = [Planned(f"short-{n}", 20.0, parallel=True) for n in range(3)]
    assert Plan([alone, long, *short], lanes=2, pace=Pace(others=1.0)).left() == pytest.approx(10 + 90)
    assert Plan([alone, long, *short], lanes=1, pace=Pace(others=2.0)).left() == pytest.approx(2 * 160)


def test_memory_is_that_of_the_cluster_less_what_so_few_images_leave_of_the_budget():
    declared = {"EfficientNetB7": 7e9}
    for name, most in declared.items():
        assert plan.training_memory(name, "two-phase", 10**6, 224) == most
        assert plan.training_memory(name, "two-phase", 0, 224) == most, "not known, so as many as may be"
        assert most - 4e9 < plan.training_memory(name, "two-phase", 240, 64) < most - 3.9e9
        assert plan.training_memory(name, "deck", 240, 64) == 23e9


def test_so_many_trainings_at_a_time_as_the_memory_holds(tmp_path):
    assert of(tmp_path, memory=16e9, cores=8).lanes == 5
    assert of(tmp_path, memory=7e9).lanes == 2
    assert of(tmp_path, memory=5e9).lanes == 1
    assert of(tmp_path, memory=1e9).lanes == 1
    assert of(tmp_path, backbones=["VGG16"]).lanes == 2, "the locator runs beside the only training"
    assert of(tmp_path, backbones=["VGG16"], memory=4e9).lanes == 1


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.2, "1 s"),
        (7.6, "8 s"),
        (51, "50 s"),
        (62, "1 min"),
        (139, "2 min 20 s"),
        (2100, "35 min"),
        (7800, "2 h 10 min"),
    ],
)
def test_times_in_words(seconds, said):
    assert plan.words(seconds) == said
