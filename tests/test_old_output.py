"""What version 0.1.0 wrote before the library became packages is read: a registry, a store and an OUTPUT.

`fixtures/output-0.1.0.tar.xz` holds 24 tiny scans, and what ingest, crop, the training of a toy backbone, the
evaluation and the registration made of them.
"""

import json
import tarfile
from pathlib import Path

import pandas as pd
import pytest

from pipelines import output as outputs
from tests.support import ROOT
from tests.support.serving import PREDICT, Server, encoded
from thyroid import crop
from thyroid.crop import CropOptions
from thyroid.data import tables
from thyroid.data.version import DataVersion
from thyroid.ingest import ingest, listing
from thyroid.ingest.options import IngestOptions
from thyroid.interval import Interval
from thyroid.model.artefact import Artefact
from thyroid.registry import __main__ as commands
from thyroid.registry import changes
from thyroid.registry.registry import Registry

ARCHIVE = ROOT / "tests" / "fixtures" / "output-0.1.0.tar.xz"


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """Folder with scans/, rois.csv and output/ (registry, store, data, summary.json, report.html)."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


def splits_of(folder: Path) -> dict[int, str]:
    scans = tables.read(folder)[0]
    return dict(zip(scans["patient"], scans["split"], strict=True))


def test_the_archive_is_small():
    assert ARCHIVE.stat().st_size <= 300_000


def test_a_registry_keeps_versions_aliases_and_history(old, capsys):
    root = str(old / "output" / "registry")
    assert Registry(root).read_aliases()["champion"] == 1
    facts = Artefact.verify(Registry(root).find("champion")).record
    assert facts.backbone == "Toy"
    assert facts.forms["keras"].validation.auroc == Interval(1.0, pytest.approx(0.2065, abs=1e-4), 1.0)
    assert commands.main(["list", "--registry", root]) == 0
    assert "0.333 [0.000, 1.000]" in capsys.readouterr().out
    before = Registry(root).history()
    assert [line["action"] for line in before] == ["publish", "promote"]
    Registry(root).promote("1", "again", "somebody")
    assert Registry(root).history()[:2] == before
    seen = changes.since_last(DataVersion.read(old / "output" / "data"), root)
    assert (seen.since, seen.count, seen.kept) == (1, 0, 24)


def test_its_champion_answers(old, tmp_path):
    facts = Artefact.read(old / "output" / "registry" / "thyroid" / "1").record
    server = Server(tmp_path / "log", "--registry", str(old / "output" / "registry")).wait()
    scan = sorted((old / "scans").iterdir())[0]
    status, answer = server.ask(PREDICT, {"instances": [{"image": encoded(scan), "roi": [18, 12, 24, 20]}]})
    server.kill()
    assert status == 200, answer
    assert answer["predictions"][0]["model_version"] == 1
    assert answer["predictions"][0]["threshold"] == pytest.approx(facts.threshold)


def test_a_store_is_read_again_once_and_splits_stay(old, capsys, monkeypatch):
    monkeypatch.setattr(listing, "SETTLED_SECONDS", -1)
    data, store = old / "output" / "data", old / "output" / "store"
    known, _, facts = tables.read(data)
    before = splits_of(data)
    options = CropOptions(["cropped"], store=store, margin=facts.margin)
    for again in (False, True):
        ingested = old / f"ingested-{again}"
        done = ingest.ingest(IngestOptions(old / "scans", rois=old / "rois.csv", store=store), ingested)
        said = capsys.readouterr().out
        assert ("nothing has changed" in said) is again, said
        assert splits_of(ingested) == before
        made = crop.crop(ingested, old / f"cropped-{again}", options).facts
        assert made.digest == facts.digest == done.facts.digest
        assert made.cropped == (0 if again else len(known))
    pd.testing.assert_series_equal(
        DataVersion.read(old / "cropped-True").examples("cropped")["sha256"],
        DataVersion.read(data).examples("cropped")["sha256"],
    )


def test_an_output_is_taken_for_one(old):
    output = old / "output"
    summary = json.loads((output / "summary.json").read_text())
    assert summary["model"]["version"] == 1
    with outputs.locked(output):
        assert (output / outputs.MARK).read_text().startswith("made by `python -m pipelines run`")
