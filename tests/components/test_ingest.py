"""The step ingest decides whether a run goes on to a training, and prints why."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.conftest import ROOT, write_scan
from tests.registry.test_changes import watched
from tests.registry.test_retention import House
from thyroid.errors import InputError
from thyroid.registry.changes import TRAIN

pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture
def house(tmp_path) -> House:
    """A store and a champion of twelve scans."""
    scans = tmp_path / "scans"
    scans.mkdir()
    for patient in range(1, 13):
        write_scan(scans / f"{'BM'[patient % 2]}_{patient:03d}-0001-1.0.jpg", patient)
    (tmp_path / "house").mkdir()
    house = House(tmp_path / "house", scans)
    house.model(house.night(), "promoted")
    return house


@pytest.fixture
def step(monkeypatch) -> Callable[..., None]:
    """The step as it runs in its container: the function itself."""
    monkeypatch.setenv("_KFP_RUNTIME", "true")
    specification = importlib.util.spec_from_file_location("ingest_step", ROOT / "components" / "ingest.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module.ingest


def run(step: Callable[..., None], house: House, work: Path, **given: Any) -> str:
    """The verdict of the step."""
    places = {name: str(work / name) for name in ("version", "verdict", "champion")}
    data = SimpleNamespace(path=str(work / "data"), metadata={})
    metrics = SimpleNamespace(log_metric=lambda name, value: None)
    (work / "statistics.html").touch()
    empty = dict.fromkeys(("rois", "crops", "labels", "site", "settings"), "")
    values = {
        "scans": str(house.scans),
        "store": str(house.store),
        "registry": house.registry,
        "classes": "B|M",
        "given_splits": "separate",
        "recipe": "two-phase",
        "minimum": 20,
        "seed": 0,
    }
    statistics = SimpleNamespace(path=str(work / "statistics.html"))
    step(**empty | values | given, data=data, metrics=metrics, statistics=statistics, **places)
    return (work / "verdict").read_text()


def test_an_alarm_of_the_watch_starts_a_training(step, house, tmp_path, capsys):
    watched(house.registry, 1, "drift")
    assert run(step, house, tmp_path, train_on="drift").startswith(
        "nothing new since model version 1; the watch says drift"
    )
    write_scan(Path(house.scans) / "B_013-0001-1.0.jpg", 13)
    assert run(step, house, tmp_path, train_on="new").startswith("waiting: 1 of 20")
    assert "the watch" not in capsys.readouterr().out.splitlines()[-1]
    assert run(step, house, tmp_path, train_on="drift") == TRAIN
    assert capsys.readouterr().out.splitlines()[-1] == "the watch on the night of 2025-07-14: drift: Made up."
    watched(house.registry, 1, "steady")
    assert run(step, house, tmp_path, train_on="drift").startswith("waiting: 1 of 20")


def test_an_unknown_value_is_refused_before_the_scans_are_read(step, house, tmp_path):
    with pytest.raises(InputError, match="train_on 'never'"):
        run(step, house, tmp_path, train_on="never", scans=str(tmp_path / "no"))
