"""The external validation as Kubeflow runs it: the compiled step, in a process of its own."""

import json
import os
import sys
from pathlib import Path

import pytest
from kfp import local

from pipelines.validation import validation_pipeline
from tests.conftest import write_rois
from tests.validate.test_recalibrated import box_of, publish, scan
from thyroid import RESEARCH_USE_ONLY
from thyroid.registry import validations
from thyroid.registry.registry import Registry


@pytest.mark.filterwarnings("ignore:You may be attemping:RuntimeWarning")
def test_the_step_reports_internal_and_external_figures(tmp_path, monkeypatch):
    root = publish(tmp_path / "registry", tmp_path / "artefact")
    (tmp_path / "scans").mkdir()
    rows = [(scan(tmp_path / "scans", patient), *box_of(patient)) for patient in range(1, 29)]
    rois = write_rois(tmp_path / "rois.csv", rows)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("THYROID_PATIENT_KEY", "a secret of the tests")
    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(tmp_path / "pipeline"))
    validation_pipeline()(registry=str(root), scans=str(tmp_path / "scans"), rois=str(rois), site="Elsewhere", by="Ada")
    (told,) = (tmp_path / "pipeline").glob("*/validate/executor_output.json")
    artifacts = json.loads(told.read_text())["artifacts"]
    metrics = artifacts["metrics"]["artifacts"][0]["metadata"]
    assert metrics["patients"] == 28
    sides = {side: metrics[f"{side}_auroc_value"] for side in ("internal", "external", "difference")}
    assert sides["difference"] == pytest.approx(sides["external"] - sides["internal"])
    assert metrics["external_auroc_low"] < sides["external"] < metrics["external_auroc_high"]
    assert artifacts["validation"]["artifacts"][0]["metadata"] == {"site": "Elsewhere", "version": 1}
    assert artifacts["classification"]["artifacts"][0]["metadata"]["confidenceMetrics"]
    (report,) = (tmp_path / "pipeline").glob("*/validate/report")
    assert RESEARCH_USE_ONLY in report.read_text()
    assert "Elsewhere" in report.read_text()
    (written,) = (tmp_path / "pipeline").glob("*/validate/validation/validation.json")
    assert json.loads(written.read_text())["scans"]["patients"] == 28
    (entry,) = validations.read(Registry(root), 1)
    assert (entry.site, entry.by) == ("Elsewhere", "Ada")
