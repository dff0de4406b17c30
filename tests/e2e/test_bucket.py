"""A run on this machine whose store and registry are in a bucket, and another one with an empty cache."""

import json
import shutil
from pathlib import Path

import pytest

from pipelines import __main__ as cli
from pipelines import configuration
from tests.pipelines.test_pipelines import TOY
from thyroid import storage
from thyroid.data import tables
from thyroid.data.store import Store
from thyroid.registry.registry import Registry
from thyroid.storage import mirror


@pytest.mark.slow
def test_a_run_leaves_everything_in_the_bucket_and_the_next_one_finds_it(phantoms, tmp_path, bucket, monkeypatch):
    monkeypatch.setitem(configuration.PRESETS, "quick", TOY)
    store, registry = bucket.address("store"), bucket.address("registry")

    def run(name: str) -> Path:
        given = {"--scans": phantoms / "scans", "--rois": phantoms / "rois.csv", "--store": store}
        given |= {"--registry": registry, "--output": tmp_path / name, "--backbones": "VGG16", "--domains": "cropped"}
        assert cli.main(["run", *(str(word) for pair in given.items() for word in pair)]) == 0
        return tmp_path / name

    first = run("first")
    assert Registry(registry).versions() == [1]
    assert (first / "report.html").is_file()
    request = json.loads((first / "request.json").read_text())
    assert len(request["instances"][0]["image"]["b64"]) > 1000
    assert tables.read_facts(first / "data").cropped == 30
    kinds = {entry.name.partition("/")[0] for entry in storage.at(store).entries()}
    assert {"index.json", "files", "crops", "work"} <= kinds
    assert not any(str(tmp_path) in line for line in (first / "data" / "data.json").read_text().splitlines())
    shutil.rmtree(mirror.root())
    second = run("second")
    assert tables.read_facts(second / "data").cropped == 0
    assert Store(store).names("crops") == {
        entry.name.removeprefix("crops/") for entry in storage.at(store).entries("crops/")
    }
