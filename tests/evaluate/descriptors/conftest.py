"""An evaluation with labels of descriptors, made once for all workers."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tests.conftest import Shared, drawing
from tests.support import toys

PATIENTS = 80


def labels(drawn: Path, folder: Path) -> Path:
    """Paint bands into half of the nodules, which any network sees, and write labels of all phantoms.

    The bands are hypoechoic. The margin is that which was drawn, the composition gives the class away, the shape is
    drawn anew at random, and hardly any focus is large.
    """
    table = pd.read_csv(drawn / "descriptors.csv")
    boxes = pd.read_csv(drawn / "rois.csv").set_index("filename")[["x", "y", "width", "height"]]
    random = np.random.default_rng(0)
    banded = random.permutation(np.arange(len(table)) % 2 == 0)
    for name in table.loc[banded, "filename"]:
        x, y, width, height = boxes.loc[name]
        frame = np.asarray(Image.open(drawn / "scans" / name).convert("L")).astype(float)
        bands = np.where(np.arange(height) * 4 // height % 2, 70, -70)[:, None]
        frame[y : y + height, x : x + width] += bands
        Image.fromarray(frame.clip(0, 255).astype(np.uint8)).save(drawn / "scans" / name, quality=95)
    table["echogenicity"] = np.where(banded, "hypoechoic", "isoechoic")
    table["composition"] = np.where(table["filename"].str.startswith("M"), "solid", "mixed")
    table["shape"] = random.choice(["wider", "taller"], len(table))
    table["foci"] = "none"
    table.loc[:2, "foci"] = "macrocalcification + microcalcification"
    table.to_csv(folder / "labels.csv", index=False)
    return folder / "labels.csv"


@pytest.fixture(scope="session")
def described(shared: Shared) -> Path:
    """Folder with labels.csv, data/, a training (model/) and its evaluation (out/)."""

    def write(folder: Path) -> None:
        from thyroid import crop
        from thyroid.crop import CropOptions
        from thyroid.evaluate import evaluate
        from thyroid.evaluate.options import EvaluateOptions
        from thyroid.imaging import phantom
        from thyroid.ingest import ingest
        from thyroid.ingest.options import IngestOptions
        from thyroid.train import train
        from thyroid.train.options import TrainOptions

        rois = phantom.generate(folder / "phantoms", patients=PATIENTS, seed=1)
        words = labels(folder / "phantoms", folder)
        ingest.ingest(IngestOptions(rois.parent / "scans", rois=rois), folder / "ingested")
        crop.crop(folder / "ingested", folder / "data", CropOptions(["cropped"]))
        toys.install()
        try:
            options = TrainOptions(weights="none", image_size=32, epochs=1)
            train.train(folder / "data", folder / "model", toys.ROW.name, "cropped", options)
            with drawing():
                asked = EvaluateOptions(descriptors=str(words))
                evaluate.evaluate(folder / "data", [folder / "model"], folder / "out", asked)
        finally:
            toys.remove()

    return shared.make("descriptors", write)
