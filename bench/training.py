"""Time until the default recipe reaches its final AUROC, against the deck's 15 epochs; overhead of its `fit`.

The baselines, in the same run, are the deck's recipe (a few epochs measured, the rest extrapolated) and a bare
`model.fit` on the same tensors in memory. It also prints the time of the frozen phase of all five backbones.

    python bench/training.py --scans DIR --rois rois.csv --weights DIR
"""

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from thyroid import crop
from thyroid.crop import CropOptions
from thyroid.data import tables
from thyroid.data.classes import BINARY
from thyroid.data.version import DataVersion
from thyroid.evaluate import performance
from thyroid.imaging import phantom
from thyroid.ingest import ingest
from thyroid.ingest.options import IngestOptions
from thyroid.model import backbones, inputs
from thyroid.model.artefact import load_keras
from thyroid.model.backend import keras
from thyroid.records.settings import Settings
from thyroid.train import train, twophase
from thyroid.train.options import TrainOptions

DDTI = Path(__file__).parents[2] / "shared" / "data" / "ddti"
WEIGHTS = Path(__file__).parents[2] / "shared" / "weights"
DECK_EPOCHS = 15
SIZE = 128
NEAR = 0.02
PAIRS = 3
OVERHEAD_EPOCHS = 10


def data_version(scans: Path | None, rois: Path | None, folder: Path) -> Path:
    if scans is None:
        phantom.generate(folder / "phantoms", patients=100, images_per_patient=2)
        scans, rois = folder / "phantoms" / "scans", folder / "phantoms" / "rois.csv"
    ingest.ingest(IngestOptions(scans, rois=rois or ""), folder / "ingested")
    crop.crop(folder / "ingested", folder / "data", CropOptions(["cropped"]))
    return folder / "data"


def time_to_auroc(data: Path, weights: str, folder: Path, deck_epochs: int) -> float:
    """Return the ratio of the seconds of the deck's 15 epochs to those of the default recipe.

    The default recipe's time ends when its validation AUROC is within `NEAR` of its final one.
    """
    options = TrainOptions(weights=weights, image_size=SIZE)
    ours = train.train(data, folder / "ours", "VGG16", "cropped", options)
    history = pd.read_csv(ours.folder / "history.csv")
    final = ours.record.validation.auroc
    reached = history[history["val_auroc"] >= final - NEAR].iloc[0]
    options = replace(options, epochs=deck_epochs, recipe="deck")
    theirs = train.train(data, folder / "deck", "VGG16", "cropped", options)
    epochs = pd.read_csv(theirs.folder / "history.csv")["seconds"]
    epoch = min(epochs)  # the first one traces the graph
    table = DataVersion.read(data).examples("cropped", "validation")
    network = load_keras(theirs.folder / theirs.record.checkpoint)
    table[BINARY.columns] = inputs.predict(network, inputs.decode(table, SIZE))
    print(
        f"ours: final validation AUROC {final:.3f}, within {NEAR} of it after {reached['elapsed']:.1f} s "
        f"({reached['phase']}, epoch {reached['epoch']:.0f}); all of it took {history['elapsed'].iloc[-1]:.0f} s\n"
        f"deck: {epoch:.1f} s an epoch ({len(epochs)} measured), so {epoch * DECK_EPOCHS:.0f} s for {DECK_EPOCHS} "
        f"epochs (extrapolated); validation AUROC after {len(epochs)} epochs {performance.auroc(table)}"
    )
    times: float = epoch * DECK_EPOCHS / reached["elapsed"]
    return times


def fit_overhead(data: Path, weights: str, folder: Path) -> float:
    """Return the ratio of the seconds of the project's fine-tuning to those of `fit` on arrays, tracing included.

    The project's fine-tuning adds batches, resumable state and logs.
    """
    twophase.PATIENCE = OVERHEAD_EPOCHS  # both run all epochs
    row = backbones.get("VGG16")
    table = DataVersion.read(data).examples("cropped", "train")
    pixels = inputs.decode(table, SIZE)
    labels = np.eye(2, dtype=np.float32)[(table["label"] == "M").astype(int)]
    held, rows = np.split(np.random.default_rng(0).permutation(len(table)), [len(table) // 10])
    ratios = []
    for pair in range(PAIRS):
        seconds = {}
        for who in ("ours", "fit")[:: 1 if pair % 2 else -1]:
            model = backbones.build(row, SIZE, backbones.find_weights(row, weights))
            job = twophase.Job(model, row, pixels, labels, folder, OVERHEAD_EPOCHS, 32, 0, 0.0)
            extractor, _, tuner = job.networks()
            maps = [twophase._maps(job, extractor, 0)]
            work = folder / f"{who}-{pair}"
            work.mkdir(parents=True)
            began = time.perf_counter()
            if who == "ours":
                twophase.finetune(job, twophase.Frozen(maps, [], tuner), rows, held, work)
            else:
                twophase.compile_model(tuner, Settings().rate)
                tuner.fit(
                    maps[0][rows],
                    labels[rows],
                    validation_data=(maps[0][held], labels[held]),
                    class_weight={0: 1.0, 1: 1.0},
                    epochs=OVERHEAD_EPOCHS,
                    batch_size=32,
                    verbose=0,
                )
            seconds[who] = time.perf_counter() - began
            keras.backend.clear_session()
        print(f"fit: ours {seconds['ours']:.1f} s, plain {seconds['fit']:.1f} s")
        ratios.append(seconds["ours"] / seconds["fit"])
    return statistics.median(ratios)


def frozen_phase(data: Path, weights: str, folder: Path) -> float:
    """Return the seconds of the frozen phase with one view for all five backbones, including building them."""
    total = 0.0
    twophase.VIEWS = 1
    for name in backbones.BACKBONES:
        options = TrainOptions(weights=weights, image_size=SIZE, recipe="frozen")
        seconds = train.train(data, folder / name, name, "cropped", options).record.seconds
        total += seconds
        keras.backend.clear_session()
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    here = DDTI.is_dir()
    parser.add_argument("--scans", type=Path, default=DDTI / "normal" if here else None, help="default: phantoms")
    parser.add_argument("--rois", type=Path, default=DDTI / "rois.csv" if here else None)
    parser.add_argument("--weights", default=str(WEIGHTS) if WEIGHTS.is_dir() else "none")
    parser.add_argument("--deck-epochs", type=int, default=2, help="of the deck's recipe to measure")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        data = data_version(arguments.scans, arguments.rois, folder)
        counts = tables.read_facts(data).splits
        ratios = {
            "time_to_auroc_vs_deck": time_to_auroc(data, arguments.weights, folder, arguments.deck_epochs),
            "fit_overhead": fit_overhead(data, arguments.weights, folder),
        }
        seconds = frozen_phase(data, arguments.weights, folder)
    images = sum(counts[split][label] for split in ("train", "validation") for label in "BM")
    print(f"frozen phase of five backbones at {SIZE} px, one view, crops of {images} scans: {seconds:.0f} s")
    print(json.dumps({"bench": "training", "ratios": {name: round(ratio, 3) for name, ratio in ratios.items()}}))


if __name__ == "__main__":
    main()
