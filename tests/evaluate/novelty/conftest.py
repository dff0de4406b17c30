"""An evaluation with enough patients for a reference, made once for all workers."""

from pathlib import Path

import pytest

from tests.conftest import Shared, drawing
from tests.support import located, toys


@pytest.fixture(scope="session")
def judged(shared: Shared) -> Path:
    """Folder with data/, a training (model/) and its evaluation (out/) with boxes (located/), and a registry/."""

    def write(folder: Path) -> None:
        from thyroid import crop
        from thyroid.crop import CropOptions
        from thyroid.data.version import DataVersion
        from thyroid.evaluate import evaluate
        from thyroid.evaluate.options import EvaluateOptions
        from thyroid.imaging import phantom
        from thyroid.ingest import ingest
        from thyroid.ingest.options import IngestOptions
        from thyroid.registry import register
        from thyroid.train import train
        from thyroid.train.options import TrainOptions

        rois = phantom.generate(folder / "phantoms", patients=30, seed=1)
        ingest.ingest(IngestOptions(rois.parent / "scans", rois=rois), folder / "ingested")
        crop.crop(folder / "ingested", folder / "data", CropOptions(["cropped", "normal"]))
        located.write(folder / "located", DataVersion.read(folder / "data"))
        options = TrainOptions(weights="none", image_size=32, epochs=0)
        toys.install()
        try:
            train.train(folder / "data", folder / "model", toys.ROW.name, "cropped", options)
            with drawing():
                asked = EvaluateOptions(locate=folder / "located", abstain=0.2)
                evaluate.evaluate(folder / "data", [folder / "model"], folder / "out", asked)
        finally:
            toys.remove()
        register.register(folder / "out", folder / "registry", folder / "summary.json")

    return shared.make("novelty", write)
