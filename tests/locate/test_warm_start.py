"""The warm recipe: a locator starts from the champion's, where that is fair and fits."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from thyroid.data.version import DataVersion
from thyroid.evaluate import evaluate
from thyroid.evaluate.options import EvaluateOptions
from thyroid.locate import learner, warm_start
from thyroid.locate.frames import Frames
from thyroid.locate.locate import locate
from thyroid.locate.maps import prepare
from thyroid.locate.options import LocateOptions
from thyroid.model import artefact, locator_network
from thyroid.registry import register
from thyroid.registry.registry import Registry

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def registry(cropped, trained, work, tmp_path_factory) -> Path:
    """Registry whose champion has a locator, with the work folder in which that was trained."""
    folder = tmp_path_factory.mktemp("champion")
    locate(cropped, cropped.parent / "ingested", folder / "located", LocateOptions(weights="none", work=work))
    options = EvaluateOptions(locate=folder / "located")
    evaluate.evaluate(cropped, [trained["VGG16", "cropped"]], folder / "evaluation", options)
    register.register(folder / "evaluation", folder / "registry", folder / "summary.json")
    Registry(folder / "registry").promote("1", "for the test", "test")
    return folder / "registry"


def extractor_of(data: DataVersion, work: Path, seed: int = 0):
    frames = Frames.read(data, learner.TOY.size)
    body, start = locator_network.choose("none")
    return prepare(body, start, work, data, frames, views=learner.TOY.views, seed=seed)


def test_the_head_starts_from_the_champions(registry, cropped, work, capsys):
    data = DataVersion.read(cropped)
    extractor = extractor_of(data, work)
    options = LocateOptions(weights="none", recipe="warm", registry=str(registry))
    found = warm_start.head_of(warm_start.find(options), options, data, extractor)
    champion = artefact.load_keras(Registry(registry).find("1") / "locator/model.keras").get_layer("head")
    assert all(np.array_equal(one, other) for one, other in zip(found, champion.get_weights(), strict=True))
    assert "starts from that of champion 1" in capsys.readouterr().out


@pytest.mark.parametrize("why", ["recipe", "registry", "maps", "projection", "patients", "older"])
def test_it_does_not_start_where_that_would_not_fit(why, registry, cropped, work, tmp_path, monkeypatch):
    data = DataVersion.read(cropped)
    options = LocateOptions(weights="none", recipe="warm", registry=str(registry))
    extractor = extractor_of(data, tmp_path if why == "maps" else work, seed=1 if why == "maps" else 0)
    if why == "projection":
        layer = next(layer for layer in extractor.network.layers if layer.name == "projection0")
        kernel, bias = layer.get_weights()
        layer.set_weights([kernel, bias + 1e-3])
    if why == "recipe":
        options = replace(options, recipe="two-phase")
    if why == "registry":
        options = replace(options, registry=str(tmp_path / "empty"))
        Path(options.registry).mkdir()
    if why == "patients":  # its training patients judge models now
        data.__dict__["used"] = data.used.assign(split=data.used["split"].replace({"train": "test"}))
    if why == "older":
        copy = shutil.copytree(registry, tmp_path / "older")
        card = copy / "thyroid" / "1" / "model.json"
        content = {name: value for name, value in json.loads(card.read_text()).items() if name != "locator"}
        card.write_text(json.dumps(content))
        (card.parent / "model.json.sha256").write_bytes(artefact.sum_of(artefact.sha256(card)))
        options = replace(options, registry=str(copy))
        monkeypatch.setattr(Registry, "check", lambda self, folder: None)
    champion = warm_start.find(options)
    if why in ("maps", "projection", "patients"):
        assert champion.version == 1
        assert warm_start.head_of(champion, options, data, extractor) is None
    else:
        assert champion is None


def test_a_warm_run_says_where_it_started(registry, cropped, work, tmp_path, monkeypatch):
    started, fit = [], learner.Learner.fit

    def seen(self, rows, start=None):
        started.append(start)
        return fit(self, rows, start)

    monkeypatch.setattr(learner.Learner, "fit", seen)
    options = LocateOptions(weights="none", recipe="warm", registry=str(registry), work=work)
    record = locate(cropped, cropped.parent / "ingested", tmp_path / "out", options).record
    assert started != [None]
    assert record.locator.champion == 1
    assert record.reused == record.locator.cross_fitted.frames
