"""Novelty: what the limit passes and catches, on real scans and on phantoms, and what it costs a request.

    python bench/novelty.py [--scans DIR] [--rois rois.csv] [--weights DIR]

VGG16 is trained on crops of DDTI's frames and on crops of phantoms, and measured as an evaluation does it. Its body
stays as the weights have it, so that patients can be dealt again without a new training: the share of test patients
that passes is the mean over `DEALS` deals, each with its own reference and limit.

`passed_vs_95_percent`: that share, the smaller one of both kinds of scans, over .95.
`worst_of_four_auroc_vs_95`: the smallest AUROC of blank, saturated, noise and photograph on either kind over .95.
`request_with_novelty_vs_without`: median time of a request to a server without novelty over that with it, in turns.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from endpoint import Endpoint
from load import Load
from numpy.typing import NDArray
from serving import OURS, artefact, in_turns, median, requests
from serving import SIZE as SERVED
from training import DDTI, SIZE, WEIGHTS, data_version

from thyroid import metrics
from thyroid.data import splits
from thyroid.evaluate import scored
from thyroid.evaluate.novelty import foreign, measure
from thyroid.evaluate.options import EvaluateOptions
from thyroid.evaluate.scored import ScoredModel
from thyroid.model import engine
from thyroid.model.novelty import fit
from thyroid.records.model import NoveltyRecord
from thyroid.train import train
from thyroid.train.options import TrainOptions

DEALS = 50
ROUNDS = 9
FOUR = (foreign.BLANK, foreign.SATURATED, foreign.NOISE, foreign.PHOTOGRAPH)
GOAL = 0.95


def trained(data: Path, folder: Path, weights: str) -> ScoredModel:
    """Train a head on frozen features for an epoch, and lock its operating point."""
    options = TrainOptions(weights=weights, image_size=SIZE, recipe="frozen", epochs=1)
    train.train(data, folder, "VGG16", "cropped", options)
    _, (model,) = scored.read(data, [folder], EvaluateOptions())
    model.load()
    model.lock()
    return model


def as_evaluated(model: ScoredModel) -> NoveltyRecord:
    """Measure novelty as an evaluation does, and print it."""
    locked = measure.lock(model)
    if locked is None:
        raise SystemExit(f"no reference: {measure.why_not(model)}")
    model.score_test()
    found = measure.measure(model, locked, {}).record
    print(f"    reference of {found.images} images of {found.patients} patients, {found.features} features")
    print(f"    limit locked on {found.validation_patients} patients; test patients that pass: {found.passed}")
    for one in found.foreign:
        print(f"    {one.kind}: {one.images} images, AUROC {one.auroc}, caught {one.caught:.0%}", flush=True)
    return found


def real_among_phantoms(model: ScoredModel, real: ScoredModel) -> None:
    """Print how well a model of phantoms detects real crops, which are the test images of another model."""
    locked = measure.lock(model)
    assert locked is not None
    distances, patients = [], []
    for one in (real, model):
        table = one.evaluation.data.examples("cropped", "test")
        features = model.network.pooled(one.evaluation.data.pixels(table, model.size), "test images")
        distances.append(locked.novelty.distance(features) / locked.novelty.limit)
        patients.append(table["patient"].to_numpy(int))
    truth = np.repeat([True, False], [len(one) for one in distances])
    own = np.concatenate([-1 - patients[0], patients[1]])  # equal numbers are no equal patients
    auroc = metrics.auroc(truth, np.concatenate(distances), own, seed=0)
    print(
        f"    real scans: {len(distances[0])} images, AUROC {auroc}, caught {(distances[0] > 1).mean():.0%}", flush=True
    )


def over_deals(model: ScoredModel) -> list[float]:
    """Return the share of test patients that passes for every deal of the patients, without disturbed crops."""
    data = model.evaluation.data
    table = data.examples("cropped")
    features = model.network.pooled(data.pixels(table, model.size), "all images")
    return [_passed(features, table["patient"].to_numpy(int), seed) for seed in range(DEALS)]


def _passed(features: NDArray[np.float32], patients: NDArray[np.int_], seed: int) -> float:
    """Deal the patients, and return the share of test patients that passes a limit of this deal."""
    names = np.random.default_rng(seed).permutation(np.unique(patients))
    ends = np.cumsum([round(splits.FRACTIONS[split] * len(names)) for split in ("train", "validation")])
    training, validation, test = (np.isin(patients, part) for part in np.split(names, ends))
    reference = fit.fit(features[training])
    fitted = fit.cross_fitted(features[training], patients[training], seed)
    own = reference.distance(features[validation])
    limit = fit.limit(own, patients[validation], fitted, patients[training])
    beyond = pd.Series(reference.distance(features[test]) > limit).groupby(patients[test]).any()
    return float(1 - beyond.mean())


def cost(folder: Path) -> float:
    """Return the median seconds of a request to a server without novelty over those to one with it."""
    plain, whole = artefact("VGG16", folder / "plain"), artefact("VGG16", folder / "whole", novelty=True)
    crop, *_ = requests()
    with (
        Endpoint("--model-dir", str(plain), "--form", engine.F32) as off,
        Endpoint("--model-dir", str(whole), "--form", engine.F32) as on,
    ):
        sides = {name: median(Load(one.url + OURS, *crop)) for name, one in (("without", off), ("with", on))}
        seconds = in_turns(ROUNDS, sides)
    for name, taken in seconds.items():
        print(f"a request to VGG16 at {SERVED} pixels {name} novelty takes {1000 * taken:.2f} ms", flush=True)
    return seconds["without"] / seconds["with"]


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scans", type=Path, default=DDTI / "normal")
    parser.add_argument("--rois", type=Path, default=DDTI / "rois.csv")
    parser.add_argument("--weights", default=str(WEIGHTS) if WEIGHTS.is_dir() else "none")
    given = parser.parse_args()
    kinds: dict[str, tuple[Path | None, Path | None]] = {"phantoms": (None, None)}
    if given.scans.is_dir():
        kinds = {"real scans": (given.scans, given.rois)} | kinds
    else:
        print(f"{given.scans} is missing: phantoms alone, which say nothing about real scans", flush=True)
    if given.weights == "none":
        print("no weights: the networks have random ones", flush=True)
    passed, aurocs, models = [], [], list[ScoredModel]()
    with tempfile.TemporaryDirectory() as name:
        for number, (kind, (scans, rois)) in enumerate(kinds.items()):
            folder = Path(name) / str(number)
            folder.mkdir()
            print(f"{kind}:", flush=True)
            model = trained(data_version(scans, rois, folder), folder / "VGG16", given.weights)
            found = as_evaluated(model)
            if number:
                real_among_phantoms(model, models[0])
            models.append(model)
            shares = over_deals(model)
            passed.append(statistics.mean(shares))
            low, high = np.quantile(shares, (0.1, 0.9))
            print(f"    over {DEALS} deals {passed[-1]:.3f} of the test patients pass, mostly {low:.3f} to {high:.3f}")
            aurocs += [one.auroc.value for one in found.foreign if one.kind in FOUR]
        ratio = cost(Path(name))
    ratios = {
        "passed_vs_95_percent": round(min(passed) / GOAL, 3),
        "worst_of_four_auroc_vs_95": round(min(aurocs) / GOAL, 3),
        "request_with_novelty_vs_without": round(ratio, 3),
    }
    print(json.dumps({"bench": "novelty", "ratios": ratios}))


if __name__ == "__main__":
    main()
