"""Trials per hour of a search on cached features, against training each of them from its images.

The baseline, in the same run, does the same trial (same folds, same head settings, same result) as a training with
folds would. It decodes the images, computes the frozen part once, and then fits the heads. Neither is pruned.

    python bench/sweep.py --scans DIR --rois rois.csv --weights DIR
"""

import argparse
import functools
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from training import DDTI, WEIGHTS, data_version

from thyroid.data.version import DataVersion
from thyroid.model import backbones
from thyroid.records.settings import Settings
from thyroid.sweep import plans, search
from thyroid.sweep.heads import evaluate_heads
from thyroid.sweep.images import development, job_of
from thyroid.sweep.options import SweepOptions
from thyroid.sweep.prepare import prepare
from thyroid.train import twophase

FOLDS = 5
SIZE = 64
"""Side of the images in pixels, as in the quick preset. Larger images cost a training more and a search nothing."""
TRIALS = 40
RETRAINED = 2


def nothing(step: int, value: float) -> None:
    """Prune no trial."""


def retrain(plan: plans.Plan, data: Path, weights: str, settings: Settings, work: Path) -> np.ndarray:
    """Train with the settings, starting from the images, and return the out-of-fold probabilities."""
    start = backbones.find_weights(backbones.get(plan.facts["backbone"]), weights)
    table = development(DataVersion.read(data), plan.facts["domain"])
    probability = np.full(plan.labels.shape, np.nan)
    with job_of(plan, start, settings, table, work) as job:
        frozen, pristine = twophase.freeze(job), job.model.get_weights()
        for number, train, validation, held in plan.folds():
            job.model.set_weights(pristine)
            twophase.fit(job, train, validation, f"fold-{number}", frozen)
            probability[held] = twophase.predict(job, frozen, held)
    return probability


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    here = DDTI.is_dir()
    parser.add_argument("--scans", type=Path, default=DDTI / "normal" if here else None, help="default: phantoms")
    parser.add_argument("--rois", type=Path, default=DDTI / "rois.csv" if here else None)
    parser.add_argument("--weights", default=str(WEIGHTS) if WEIGHTS.is_dir() else "none")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        data = data_version(arguments.scans, arguments.rois, folder)
        began = time.perf_counter()
        options = SweepOptions(weights=arguments.weights, image_size=SIZE, folds=FOLDS)
        plan = prepare(data, folder, "VGG16", options=options)
        prepared = time.perf_counter() - began

        settings: list[Settings] = []

        def evaluate(chosen: Settings, _: object) -> np.ndarray:
            settings.append(chosen)
            return evaluate_plain(chosen, nothing)

        evaluate_plain = functools.partial(evaluate_heads, plan, {})
        began = time.perf_counter()
        search.work_on(plan, plans.HEADS, TRIALS, evaluate)  # includes Optuna's part of a trial
        cached = (time.perf_counter() - began) / TRIALS
        seconds = []
        for number in range(RETRAINED):
            began = time.perf_counter()
            ours = retrain(plan, data, arguments.weights, settings[number], folder / f"retrain-{number}")
            seconds.append(time.perf_counter() - began)
            theirs = plan.scores(plans.HEADS, number)
            assert np.abs(ours - theirs).max() < 0.02, "both have done the same trial"
        retrained = statistics.median(seconds)
    print(
        f"{plan.facts['images']} images at {SIZE} px, {FOLDS} folds: {cached:.3f} s a trial on cached features "
        f"({3600 / cached:.0f} an hour; {prepared:.0f} s before the first), {retrained:.1f} s from the images "
        f"({3600 / retrained:.0f} an hour), as measured: {', '.join(f'{one:.1f}' for one in seconds)} s"
    )
    ratios = {"trials_per_hour_vs_retrain": round(retrained / cached, 3)}
    print(json.dumps({"bench": "sweep", "ratios": ratios}))


if __name__ == "__main__":
    main()
