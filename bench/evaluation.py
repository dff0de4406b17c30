"""Patient-clustered bootstrap of the AUROC against a loop over scikit-learn's roc_auc_score, and whole evaluations.

    python bench/evaluation.py [--run FOLDER]

The evaluation of the default run's five models is compared with loading them and calling Keras' `predict` on every
image that the evaluation needs. Both run in a process of their own, in turns. FOLDER is the output of a `make run`;
without it a run is made first.
"""

import argparse
import contextlib
import json
import math
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from sklearn.metrics import roc_auc_score

from thyroid import crop, metrics
from thyroid.data import surroundings
from thyroid.data.version import DataVersion
from thyroid.evaluate import champion, evaluate
from thyroid.evaluate.audits import names, subject
from thyroid.imaging import phantom
from thyroid.ingest import ingest
from thyroid.ingest.options import IngestOptions
from thyroid.model import backbones, inputs
from thyroid.model.network import Network
from thyroid.records.evaluation import EvaluationRecord
from thyroid.train import record, train
from thyroid.train.options import TrainOptions

IMAGES, MALIGNANT, PATIENTS = 2237, 406, 900  # the deck's cropped test set; its number of patients is unknown
DEVELOPMENT = 700
LOOP_DRAWS = 200
ROUNDS = 5
PROCESSES = 3
"""Number of rounds in which whole processes are measured."""


def loop(truth: np.ndarray, score: np.ndarray, patient: np.ndarray, draws: int) -> None:
    """Bootstrap as most evaluations do: draw patients, gather their images and score them."""
    rng = np.random.default_rng(0)
    images = [np.flatnonzero(patient == one) for one in range(PATIENTS)]
    for _ in range(draws):
        drawn = np.concatenate([images[one] for one in rng.integers(0, PATIENTS, PATIENTS)])
        roc_auc_score(truth[drawn], score[drawn])


def seconds(work: Callable[..., Any], *arguments: Any) -> float:
    started = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - started


def whole_evaluation(folder: Path) -> tuple[float, float]:
    """Return the seconds of an evaluation of five models on `IMAGES` test images, and those spent in the networks."""
    patients = (IMAGES + DEVELOPMENT + 1) // 2
    phantom.generate(folder, patients=patients, images_per_patient=2)
    files = sorted((folder / "scans").iterdir(), key=lambda file: file.name.split("_")[1])
    for number, file in enumerate(files):
        target = folder / "scans" / ("test" if number < IMAGES else "train") / file.name
        target.parent.mkdir(exist_ok=True)
        file.rename(target)
    ingest.ingest(IngestOptions(folder / "scans", rois=folder / "rois.csv"), folder / "ingested")
    crop.crop(folder / "ingested", folder / "data")
    models = []
    for name in backbones.BACKBONES:
        options = TrainOptions(weights="none", image_size=32, recipe="frozen")
        models.append(train.train(folder / "data", folder / name, name, options=options).folder)
    spent = []

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **keywords: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*arguments, **keywords)
            finally:
                spent.append(time.perf_counter() - started)

        return run

    networks = [(inputs, "decode"), (champion, "load_keras"), (Network, "probabilities"), (Network, "features")]
    with contextlib.ExitStack() as stack:
        for place, name in networks:
            stack.enter_context(mock.patch.object(place, name, timed(getattr(place, name))))
        whole = seconds(evaluate.evaluate, folder / "data", models, folder / "evaluation")
    return whole, sum(spent)


def default_run(folder: Path) -> tuple[Path, list[Path]]:
    """Return the data version and the trainings of a `make run` in `folder`; start the run if there is none."""
    if not any(folder.glob("pipeline/*")):
        subprocess.run([sys.executable, "-m", "pipelines", "run", "--output", folder], check=True)
    newest = max(folder.glob("pipeline/*"))
    (version,) = newest.glob("crop/images")
    return version, sorted(file.parent for file in newest.glob("train*/model/*/train.json"))


def write_asked(data: Path, models: Sequence[Path], evaluated: Path, folder: Path) -> int:
    """Write asked.json and the arrays for predict_only.py, and return how many predictions they ask for.

    They hold what the evaluation asked every model about, each image once.
    """
    result = EvaluationRecord.read(evaluated / "evaluation.json")
    domain, size, winner = result.serving_domain, result.models[0].image_size, result.winner
    version = DataVersion.read(data)
    table = surroundings.context(version, domain)
    development, test = table[table["split"] != "test"], table[table["split"] == "test"]
    validation = development[development["split"] == "validation"]
    files = {
        "development": list(development["file"]),
        "validation": list(validation["file"]),
        "test": list(test["file"]),
    }
    others = [one for one in names.MARGINS if domain == "cropped" and not math.isclose(one, version.margin)]
    arrays = {}
    for name, part in (("development", development), ("test", test)):
        marked = part[part["boxes"].map(len) > 0]
        arrays[f"{name}_blanked"] = subject.blanked(version, marked, domain, size)
        for margin in others:
            arrays[f"{name}_margin_{margin:g}"] = surroundings.recropped(version, marked, size, margin)
            arrays[f"{name}_blanked_margin_{margin:g}"] = subject.blanked(version, marked, domain, size, margin)
    for name, pixels in arrays.items():
        np.save(folder / f"{name}.npy", pixels)
    asked = {}
    for model in models:
        one = record.read(model)
        wins = (one.backbone, one.train_domain) == (winner.backbone, winner.train_domain)
        asked[str(model / one.checkpoint)] = ["development", "test", *arrays] if wins else ["validation", "test"]
    written = {"size": size, "files": files, "arrays": list(arrays), "models": asked}
    (folder / "asked.json").write_text(json.dumps(written))
    counts = {name: len(some) for name, some in (files | arrays).items()}
    return sum(counts[name] for sets in asked.values() for name in sets)


def process(command: Sequence[Any]) -> tuple[float, float]:
    """Run a process, and return its seconds of wall-clock time and of processor time."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    took = seconds(lambda: subprocess.run([sys.executable, *command], check=True, capture_output=True))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return took, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def evaluate_vs_predict_only(run: Path, folder: Path) -> float:
    """Return the ratio of the seconds of an evaluation to those of loading its models and predicting its images.

    Both are medians of processes that run in turns.
    """
    data, models = default_run(run)
    evaluation = ["-m", "thyroid.evaluate", "--data", data, "--models", *models, "--output", folder / "evaluated"]
    process(evaluation)
    answers = write_asked(data, models, folder / "evaluated", folder)
    whole, least = [], []
    for _ in range(PROCESSES):
        whole.append(process(evaluation))
        least.append(process([Path(__file__).parent / "predict_only.py", folder]))
    (ours, our_cores), (theirs, their_cores) = (
        [statistics.median(column) for column in zip(*rows, strict=True)] for rows in (whole, least)
    )
    print(f"the default run's evaluation      {ours:>8.1f} s, {our_cores:.1f} s of processor time")
    print(f"loading and predict, {answers} answers {theirs:>8.1f} s, {their_cores:.1f} s of processor time")
    times: float = ours / theirs
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--run", type=Path, help="output of a `make run`")
    run = parser.parse_args().run
    rng = np.random.default_rng(0)
    patient = np.concatenate([np.arange(PATIENTS), rng.integers(0, PATIENTS, IMAGES - PATIENTS)])
    truth = np.arange(IMAGES) < MALIGNANT
    rng.shuffle(truth)
    score = rng.normal(truth, 1)
    ratios, ours, theirs = [], [], []
    for _ in range(ROUNDS):
        theirs.append(LOOP_DRAWS / seconds(loop, truth, score, patient, LOOP_DRAWS))
        ours.append(metrics.DRAWS / seconds(metrics.auroc, truth, score, patient))
        ratios.append(ours[-1] / theirs[-1])
    with tempfile.TemporaryDirectory() as folder:
        whole, forward = whole_evaluation(Path(folder))
    with tempfile.TemporaryDirectory() as folder:
        overhead = evaluate_vs_predict_only(run or Path(folder) / "run", Path(folder))
    print(f"{IMAGES} images of {PATIENTS} patients, medians of {ROUNDS} rounds side by side")
    print(f"scikit-learn loop  {statistics.median(theirs):>10,.0f} draws a second")
    print(f"thyroid.metrics    {statistics.median(ours):>10,.0f} draws a second")
    print(
        f"evaluation of five models on {IMAGES} images: {whole:.0f} s, {whole - forward:.0f} s of them not in the "
        "networks"
    )
    found = {
        "bootstrap_vs_sklearn_loop": round(statistics.median(ratios), 1),
        "evaluate_vs_predict_only": round(overhead, 2),
    }
    print(json.dumps({"bench": "evaluation", "ratios": found}))


if __name__ == "__main__":
    main()
