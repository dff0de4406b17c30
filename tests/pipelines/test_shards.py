"""A pipeline in shards, which kfp.local really runs: ingest and crop of real scans as components."""

import time
from pathlib import Path

import pytest
from kfp import dsl, local

from components.crop import crop
from components.crop_shard import crop_shard
from components.ingest import ingest
from components.ingest_shard import ingest_shard
from pipelines import shards
from pipelines.local import dag
from pipelines.local.plan import Plan
from pipelines.local.steps import Steps
from tests.conftest import write_rois
from thyroid.data import tables
from thyroid.data.store import Store
from thyroid.errors import InputError
from thyroid.ingest.listing import SETTLED_SECONDS
from thyroid.train.settings import UNSET


@dsl.pipeline
def in_shards(scans: str, rois: str, store: str, jitter: float = 1.0):
    """Ingest and crop with two shards before each, and a condition between them as in the training."""
    given = {"scans": scans, "rois": rois, "crops": "", "labels": "", "classes": "B|M", "store": store}
    ingested = ingest(
        **given,
        given_splits="separate",
        site="",
        registry=store,
        minimum=0,
        train_on="new",
        recipe="",
        settings="",
        seed=0,
    )
    shards.put_before(ingested, ingest_shard, "ingest", 2, None, **given)
    with dsl.If(ingested.outputs["verdict"] == "train"):
        cut = {"recipe": "", "settings": "", "margin": UNSET, "jitter": jitter, "store": store}
        cropped = crop(data=ingested.outputs["data"], fingerprint=ingested.outputs["version"], domains="cropped", **cut)
        shards.put_before(cropped, crop_shard, "crop", 2, None, data=ingested.outputs["data"], **cut)
    with dsl.Else():
        pass


def run(root: Path, **arguments: str) -> None:
    steps = Steps(Plan([]), 2, 1e9)
    with dag.running(steps, local.SubprocessRunner(use_venv=False), root, "the run stopped"):
        in_shards(**arguments)


def test_kfp_local_runs_the_shards_and_then_the_step_that_gathers(scans, tmp_path, capfd):
    rois = write_rois(tmp_path / "rois.csv", [(path.name, 10, 10, 30, 30) for path in scans.iterdir()])
    time.sleep(SETTLED_SECONDS + 0.5)  # or the scans would be read again, since they may still change
    run(tmp_path / "pipeline", scans=str(scans), rois=str(rois), store=str(tmp_path / "store"))
    told = capfd.readouterr().out
    for shard in ("ingest-shard-1", "ingest-shard-2", "crop-shard-1", "crop-shard-2"):
        assert f"done ({shard} took" in told
    (images,) = (tmp_path / "pipeline").glob("*/crop/images")
    facts = tables.read_facts(images)
    assert (facts.scans, facts.regions) == (24, 24)
    assert (facts.looked_at, facts.cropped) == (0, 0)
    assert Store(tmp_path / "store").pieces("cropped").empty


def test_without_a_store_the_first_shard_ends_the_run(scans, tmp_path, capfd):
    with pytest.raises(InputError, match="the run stopped"):
        run(tmp_path / "pipeline", scans=str(scans), rois="", store="")
    told = capfd.readouterr().out
    assert "error: ingest_shard: store: shards leave their work in one; give a store" in told
    assert "ingest took" not in told
