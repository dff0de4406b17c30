import json

import pytest

from bench import results
from tests.support import ROOT
from thyroid import crop
from thyroid.crop import CropOptions
from thyroid.data import tables
from thyroid.imaging import phantom
from thyroid.ingest import ingest
from thyroid.ingest.options import IngestOptions
from thyroid.model import backbones, inputs


@pytest.mark.slow
def test_command_writes_the_comparison(tmp_path, monkeypatch, drawn):
    """At toy size: two folds, two backbones. Sixty patients, or the deck's tenth of a class would be empty."""
    phantom.generate(tmp_path / "phantoms", patients=60, images_per_patient=1)
    rois = tmp_path / "phantoms" / "rois.csv"
    ingest.ingest(IngestOptions(tmp_path / "phantoms" / "scans", rois=rois), tmp_path / "ingested")
    cropped = crop.crop(tmp_path / "ingested", tmp_path / "data", CropOptions(["cropped"])).folder
    monkeypatch.setattr(results, "FOLDS", 2)
    monkeypatch.setattr(results, "memory", lambda name: {r: {8: 1.0, 16: 1.5, 32: 2.5} for r in ("two-phase", "deck")})
    few = {name: backbones.BACKBONES[name] for name in ("VGG16", "VGG19")}
    monkeypatch.setattr(backbones, "BACKBONES", few)
    command = ["--data", str(cropped), "--output", str(tmp_path / "docs"), "--work", str(tmp_path / "work")]
    options = ["--weights", "none", "--image-size", "32", "--epochs", "1", "--deck-epochs", "1"]
    assert results.main([*command, *options]) == 0
    page = (tmp_path / "docs" / "results.md").read_text()
    assert "Research use only" in page
    for recipe in ("frozen", "two-phase", "frozen, tapped at block4_pool", "deck"):
        assert f"\n| {recipe} | " in page
    assert "- **input scale**" in page
    assert "extrapolated" in page
    assert f"Data version `{tables.read_facts(cropped).digest[:12]}`" in page
    assert (tmp_path / "docs" / "results.png").stat().st_size > 10_000
    assert json.loads((tmp_path / "docs" / "results.json").read_text())["memory_gb"]["VGG16"]["deck"]["32"] == 2.5


def test_what_is_written_by_hand_stays(tmp_path):
    page = tmp_path / "results.md"
    page.write_text(f"# Results\n\n{results.RUNS}\n\n## Search\n\nold\n\n{results.OTHERS}\n\n## Novelty\n\nby hand\n")
    results.write_runs(tmp_path, [])
    assert "old" not in page.read_text()
    assert page.read_text().endswith(f"{results.OTHERS}\n\n## Novelty\n\nby hand\n")
    assert results._kept(tmp_path).endswith("by hand\n")


@pytest.mark.slow
def test_memory_is_measured_and_extrapolated_on_a_line(monkeypatch):
    memory = results.memory("ResNet50")
    for measured in memory.values():
        assert 0.5 < measured[8] < measured[16] < measured[32] < 20
        assert measured[32] - measured[16] == pytest.approx(2 * (measured[16] - measured[8]))
    assert memory["deck"][16] > memory["two-phase"][16], "the frozen part keeps no activations"


def test_the_training_steps_memory_follows_the_measured_table():
    measured = json.loads((ROOT / "docs" / "results.json").read_text())["memory_gb"]
    assert set(measured) == set(backbones.BACKBONES)
    images_and_maps = inputs.MEMORY_BUDGET / 1e9
    for name, row in backbones.BACKBONES.items():
        request, limit = (float(value.removesuffix("G")) for value in (row.memory_request, row.memory_limit))
        assert 0 <= request - images_and_maps - measured[name]["two-phase"]["32"] < 2
        assert 0 <= limit - max(request, measured[name]["deck"]["32"]) < 2
