"""What the benchmark of margins feeds and how it weighs; its figures are not tested."""

import importlib
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from tests.support import ROOT
from thyroid.data.version import DataVersion

ROW = SimpleNamespace(area_x=20, area_y=10, frame_width=300, frame_height=200)


@pytest.fixture(scope="module")
def margins():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "bench")
        yield importlib.import_module("margins")


@pytest.mark.parametrize("box", [(-90, -90, 500, 500), (0, 0, 1, 1), (275, 185, 40, 40), (-20, -10, 300, 200)])
def test_boxes_lie_on_the_frame(margins, box):
    x, y, width, height = margins.on_frame(box, ROW)
    assert x + ROW.area_x >= 0
    assert y + ROW.area_y >= 0
    assert x + ROW.area_x + width <= ROW.frame_width
    assert y + ROW.area_y + height <= ROW.frame_height
    assert min(width, height) >= margins.SHORTEST


def test_disturbed_boxes_have_the_errors_of_a_locator(margins):
    rng = np.random.default_rng(0)
    boxes = np.array([margins.disturbed((100, 70, 60, 40), ROW, rng) for _ in range(2000)], float)
    centre = boxes[:, :2] + boxes[:, 2:] / 2
    assert (centre.std(axis=0) / (60, 40)).tolist() == pytest.approx([margins.PLACE] * 2, rel=0.15)
    assert np.log(boxes[:, 2:]).std(axis=0).tolist() == pytest.approx([margins.SIZE] * 2, rel=0.15)


@pytest.mark.parametrize("file", ["boxes.parquet", "boxes.csv"])
def test_the_best_boxes_of_a_file_are_taken(margins, cropped, tmp_path, file):
    frames = DataVersion.read(cropped).used.rename(columns={"width": "frame_width", "height": "frame_height"})
    rows = [(path, rank, 100 + 20 * rank, 90, 50, 40) for path in frames["path"].iloc[1:] for rank in (1, 0)]
    name = "path" if file.endswith("parquet") else "filename"
    table = pd.DataFrame(rows, columns=[name, "rank", "x", "y", "width", "height"])
    if name == "path":
        table.to_parquet(tmp_path / file)
    else:
        table.to_csv(tmp_path / file, index=False)
    first, *others = margins.read_boxes(tmp_path / file, frames)
    assert first is None
    expected = [(100 - row.area_x, 90 - row.area_y, 50, 40) for row in frames.iloc[1:].itertuples()]
    assert others == expected


def test_no_patient_is_scored_by_a_head_that_saw_the_patient(margins):
    """Features that name the patient and nothing else tell nothing; features of the class tell everything."""
    malignant, patient = np.arange(60) % 2 == 1, np.arange(60)
    frames = margins.Frames(malignant, patient, patient)
    frame = np.repeat(patient, 2)
    names = margins.Crops({"a": np.eye(60)[frame]}, frame)
    (unknown,) = margins.score([names], [names], "a", frames)
    assert not ((unknown > unknown.mean()) == malignant).mean() > 0.7
    known = margins.Crops({"a": malignant[frame, None] + np.zeros((120, 3))}, frame)
    (seen,) = margins.score([known], [known], "a", frames)
    assert ((seen > 0) == malignant).all()
