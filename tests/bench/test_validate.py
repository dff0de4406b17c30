"""What the benchmark of a validation counts and pools; its figures are not tested."""

import importlib

import numpy as np
import pytest

from tests.support import ROOT, toy_locator, validations
from thyroid.model.engine import OpenVINOEngine
from thyroid.records.share import SiteRecord
from thyroid.validate.endpoint import Endpoint


@pytest.fixture(scope="module")
def bench():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "bench")
        yield importlib.import_module("validate")


def test_the_networks_alone_get_every_picture_of_the_validation_again(bench, tmp_path):
    model = toy_locator.build(tmp_path / "model", locator=toy_locator.record())
    plain = OpenVINOEngine.answer, OpenVINOEngine.predict
    with bench.counted() as seen, Endpoint(model, released=True) as one:
        at_load = dict(seen)
        one.answer(np.zeros((40, toy_locator.SIZE, toy_locator.SIZE, 3), np.uint8))
        assert seen["classifier"] == at_load["classifier"] + 40
        assert seen["locator"] == at_load["locator"]
    assert (OpenVINOEngine.answer, OpenVINOEngine.predict) == plain
    seen["locator"] = 5
    with bench.counted() as again, Endpoint(model, released=True) as one:
        again.clear()
        assert set(bench.alone(one, seen)) == {"classifier", "locator"}
    warm = 1
    assert again == {name: count + warm for name, count in seen.items()}


def test_the_sites_of_the_benchmark_are_pooled(bench, tmp_path):
    record = validations.validation(60, kinds=("given",)).record
    files, keys = bench.site_files(3, record, tmp_path / "sites")
    assert len({SiteRecord.read(file).site for file in files}) == len(list(keys.iterdir())) == 3
    bench.pool.pool(files, keys, tmp_path / "pooled")
    assert (tmp_path / "pooled" / "pool.json").exists()
