"""Hyper-parameter search: head settings on cached features, then what needs the images. The test set is never read.

    python -m thyroid.sweep --data DIR --ingested DIR --backbone VGG16 --study DIR --output DIR

Every trial is a cross-validation by patient of the development part (train and validation), on the folds that
`thyroid.train --folds` has. In the stage `heads` the features of every tap are computed once, and a trial fits dense heads
on them; in the stage `images` a trial is the two-phase recipe with its own crops, image size, augmentation and unfrozen
depth, from the best heads. Trials that fall behind are pruned between folds and epochs. The study is a folder: stopped at
any time, the same command goes on, and as many processes or pods as there are work on it (`studies`).
"""

import argparse
import functools
import hashlib
import json
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from optuna import Trial, TrialPruned
from optuna.trial import TrialState
from threadpoolctl import threadpool_limits

from thyroid import atomic, crop, errors, locks, progress, workers
from thyroid.atomic import replacing
from thyroid.cores import available
from thyroid.data import classes, tables
from thyroid.errors import InputError
from thyroid.sweep import studies
from thyroid.sweep.plans import HEADS, IMAGES, TOPS, Plan, read
from thyroid.train import head
from thyroid.train.settings import Settings

DEVELOPMENT = ("train", "validation")
CODE = 1
"""Version of what decides a trial's result (this, train.head, train.twophase, model.inputs, crop): a change raises it."""
TAPS = 3
"""Last blocks of the body whose features are tried."""

Evaluate = Callable[[Settings, Callable[[int, float], None]], NDArray[np.float64]]
"""Settings to out-of-fold probabilities [n, classes]; what it is given is told how far it is, and may end the trial."""


def prepare(
    data: Path,
    root: Path,
    backbone: str,
    domain: str | None = None,
    weights: str = "imagenet",
    image_size: int = 224,
    epochs: int = 15,
    batch_size: int = 32,
    folds: int = 5,
    seed: int = 0,
) -> Plan:
    """Make the study's folder below `root`, or find it there, and compute the features of every tap.

    Args:
        data: data version of `crop`; of its test images not even the files are opened.
        root: folder that the workers share and that outlives them.
        backbone, domain, weights, image_size, epochs, batch_size, seed: as of `train.train`; the size is that of the first
            stage, and the second tries half of it and half as much again, too.
        folds: of the cross-validation in every trial.

    Raises:
        InputError: as of `train.train`.
    """
    from thyroid.model import artefacts, backbones
    from thyroid.train import train, twophase

    row = backbones.get(backbone)
    train.check("two-phase", image_size, epochs, batch_size, folds or 1, 0, "", seed)
    start = backbones.find_weights(row, weights)
    scans, regions, facts = tables.read(data)
    if "domains" not in facts:
        raise InputError(f"{data}: its images are not cropped yet; run `python -m thyroid.crop` first")
    domain = domain or facts["domains"][0]
    table = development(data, domain)
    parts = train.fold_parts(scans, table, folds, seed)
    for name, part in parts.items():
        train.require_classes(part, table, classes.of(facts), name, domain, data)
        table[name] = part
    table["fold"] = sum((table[name] == "held-out") * int(name.split("-")[1]) for name in parts)
    frames = tables.used(scans).query("domain == 'normal'")["path"]
    plan: dict[str, Any] = {
        "backbone": row.name,
        "domain": domain,
        "weights": "none" if start is None else start if start == "imagenet" else Path(start).name,
        "image_size": image_size,
        "image_sizes": [max(backbones.MIN_SIZE, round(image_size * share / 16) * 16) for share in (0.5, 1, 1.5)],
        "epochs": epochs,
        "batch_size": batch_size,
        "folds": folds,
        "seed": seed,
        "taps": backbones.taps(row, TAPS),
        "margins": domain == "cropped" and bool(regions["path"].isin(frames).any()),
        "data_digest": facts["digest"],
        "images": len(table),
        "patients": int(table["patient"].nunique()),
        **classes.of(facts).facts(),
    }
    plan["image_sizes"] = sorted({*plan["image_sizes"], image_size})
    content = plan | {
        "weights": artefacts.sha256(start) if isinstance(start, Path) else plan["weights"],
        "table": table[["sha256", "class", "patient", *parts]].to_numpy().tolist(),
        "code": [version("thyroid"), CODE],
    }
    key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
    folder = root / f"{row.name}-{domain}-{key}"
    folder.mkdir(parents=True, exist_ok=True)
    with locks.held(folder / "prepare.lock"):
        if (folder / "plan.json").is_file():
            done = read(folder)
            finished = [f"{done.shared(stage).finished()} trials of {stage}" for stage in (HEADS, IMAGES)]
            print(f"{folder}: goes on, {' and '.join(finished)} are finished")
            return done
        print(f"{folder}: a new search on {len(table)} development images of {plan['patients']} patients")
        labels, work = classes.of(facts).one_hot(table["class"]), folder / "work" / "features"
        for tap in plan["taps"]:
            settings = Settings(tap=tap, image_size=image_size)
            with job_of(plan, start, settings, table, labels, work / (tap or "last")) as job:
                for number, view in enumerate(twophase.freeze(job).views):
                    _save(folder / "features" / f"{tap or 'last'}-{number}.npy", view)
        shutil.rmtree(work)
        kept = ["path", "class", "label", "patient", "group", "fold", *parts]
        table[kept].to_parquet(folder / "images.parquet", index=False)
        atomic.write_json(folder / "plan.json", plan)
    done = read(folder)
    usual = asdict(done.default)
    done.shared(HEADS).enqueue([{name: usual[name] for name in done.space(HEADS)}])
    return done


def search_heads(folder: Path, trials: int, workers: int = 1, cores: int = 0) -> int:
    """Work on the first stage until `trials` are finished, or in progress elsewhere.

    Args:
        folder: of a study that is prepared.
        trials: how many the stage is to have, those before an interruption included.
        workers: processes here.
        cores: of each; 0 deals out all that there are.

    Returns:
        How many are finished.

    Raises:
        InputError: the numbers are out of range, or a worker failed and the others could not make up for it.
    """
    return _search(read(folder), HEADS, functools.partial(_heads_alone, folder), trials, workers, cores)


def search_images(
    folder: Path, data: Path, ingested: Path | None, weights: str, trials: int, workers: int = 1, cores: int = 0
) -> int:
    """Work on the second stage, which `rank` has opened; else as `search_heads`.

    Args:
        folder: of the study.
        data: the data version of `crop` that it was prepared from.
        ingested: the data version of `ingest` behind that, to crop with other margins; None keeps the margin.
        weights: as `prepare` was given them.
        trials, workers, cores: as of `search_heads`.
    """
    if trials == 0:
        return 0
    if not (folder / "heads.json").is_file():
        raise InputError(f"{folder}: the heads are not ranked yet")
    alone = functools.partial(_images_alone, folder, data, ingested, weights)
    return _search(read(folder), IMAGES, alone, trials, workers, cores)


def rank(folder: Path) -> list[Settings]:
    """Between the stages: note the best heads, and let the second stage begin with the default settings and with them."""
    plan = read(folder)
    trials = sorted(plan.shared(HEADS).trials(TrialState.COMPLETE), key=lambda one: -(one.value or 0.0))
    best = [replace(plan.settings(HEADS, one.params), unfrozen=1) for one in trials[:TOPS]]
    atomic.write_json(folder / "heads.json", [asdict(one) for one in best])  # type: ignore[arg-type]
    stage, usual = plan.shared(IMAGES), asdict(plan.default)
    first = {name: usual[name] for name in plan.space(IMAGES) if name != "head"}
    stage.enqueue([first | {"head": number} for number in range(len(best) + 1)])
    return plan.heads()


def _search(plan: Plan, stage: str, alone: Callable[[int, int], None], trials: int, processes: int, cores: int) -> int:
    """`alone` in this process, or in several, until the trials are done."""
    if trials < 0 or processes < 1:
        raise InputError(f"trials {trials}, workers {processes}: give at least 0 trials and 1 worker")
    cores = cores or max(1, available() // processes)
    if processes == 1:
        alone(trials, cores)
        return plan.shared(stage).finished()
    context = multiprocessing.get_context("spawn")  # TensorFlow does not survive a fork
    running = [context.Process(target=_child, args=(alone, trials, cores)) for _ in range(processes)]
    for one in running:
        one.start()
    for one in running:
        one.join()
    finished = plan.shared(stage).finished()
    if finished < trials:
        codes = ", ".join(str(one.exitcode) for one in running)
        raise InputError(
            f"{plan.folder}: {finished} of {trials} trials of {stage} are finished and the workers are gone (exit codes "
            f"{codes}); the same command goes on"
        )
    return finished


def _child(alone: Callable[[int, int], None], trials: int, cores: int) -> None:
    """A worker's process, which ends with the one that started it."""
    workers.watch()
    raise SystemExit(errors.command(lambda _: alone(trials, cores))([]))


def work_on(plan: Plan, stage: str, trials: int, evaluate: Evaluate) -> None:
    """Take trials of the stage and evaluate them, as long as there are any."""
    shared = plan.shared(stage)
    plan.scores(stage, 0).parent.mkdir(exist_ok=True)
    with (
        studies.worker(plan.folder) as me,
        progress.bar(None, trials, f"{plan.facts['backbone']} {stage}", "trial") as bar,
    ):
        while (trial := shared.ask(trials, me)) is not None:
            first = studies.FIRST in trial.user_attrs
            try:
                probability = evaluate(
                    plan.settings(stage, trial.params), functools.partial(_report, trial, prune=not first)
                )
            except (TrialPruned, FloatingPointError) as reason:
                shared.study.tell(trial, state=TrialState.PRUNED)
                if not isinstance(reason, TrialPruned):
                    print(f"trial {trial.number} of {stage}: {reason}", flush=True)
            else:
                _save(plan.scores(stage, trial.number), probability)  # before it counts as finished
                shared.study.tell(trial, float(plan.auroc(probability)[0]))
            bar.update(shared.finished() - bar.n)


def _report(trial: Trial, step: int, value: float, prune: bool) -> None:
    """Tell Optuna how a trial is doing.

    Raises:
        TrialPruned: it has fallen behind.
    """
    trial.report(value, step)
    if prune and trial.should_prune():
        raise TrialPruned


def _heads_alone(folder: Path, trials: int, cores: int) -> None:
    plan = read(folder)
    with threadpool_limits(cores):
        work_on(plan, HEADS, trials, functools.partial(evaluate_heads, plan, {}))


def evaluate_heads(
    plan: Plan, cache: dict[str, list[NDArray]], settings: Settings, report: Callable[[int, float], None]
) -> NDArray[np.float64]:
    """Out-of-fold probabilities of dense heads on the study's features, which `cache` keeps by tap."""
    labels, probability = plan.labels, np.full(plan.labels.shape, np.nan)
    if settings.tap not in cache:
        files = sorted((plan.folder / "features").glob(f"{settings.tap or 'last'}-*.npy"))
        cache[settings.tap] = [np.load(file) for file in files]
    views = cache[settings.tap]
    for number, train, validation, held in plan.folds():
        fitted = head.fit(views, labels, train, validation, settings, plan.facts["seed"])
        probability[held] = fitted(views[0][held])
        report(number, float(plan.auroc(probability)[0]))
    return probability


def _images_alone(folder: Path, data: Path, ingested: Path | None, weights: str, trials: int, cores: int) -> None:
    for name in ("TF_NUM_INTRAOP_THREADS", "OMP_NUM_THREADS"):  # before TensorFlow is imported
        os.environ.setdefault(name, str(cores))
    from thyroid.model import backbones

    plan = read(folder)
    start = backbones.find_weights(backbones.get(plan.facts["backbone"]), weights)
    work_on(plan, IMAGES, trials, functools.partial(evaluate_images, plan, data, ingested, start))


def evaluate_images(
    plan: Plan,
    data: Path,
    ingested: Path | None,
    start: str | Path | None,
    settings: Settings,
    report: Callable[[int, float], None],
) -> NDArray[np.float64]:
    """Out-of-fold probabilities of the recipe from the images on."""
    from thyroid.model.backend import keras
    from thyroid.train import checkpoints, twophase

    table = _images(plan, data, ingested, settings.margin)
    probability = np.full(plan.labels.shape, np.nan)
    name = hashlib.sha256(json.dumps(asdict(settings)).encode()).hexdigest()[:16]
    work, steps = plan.folder / "work" / name, plan.facts["epochs"] + 1
    # a trial that is tried again goes on where its worker died; another worker with the same settings waits
    with (
        progress.silent(),
        locks.held(work.with_suffix(".lock")),
        job_of(plan.facts, start, settings, table, plan.labels, work) as job,
    ):
        frozen, pristine = twophase.freeze(job), job.model.get_weights()
        for number, train, validation, held in plan.folds():
            before = float(plan.auroc(probability)[0]) if number > 1 else 0.0

            def told(epoch: int, logs: Any, number: int = number, before: float = before) -> None:
                report((number - 1) * steps + epoch, ((number - 1) * before + logs["val_auroc"]) / number)

            job.model.set_weights(pristine)
            job.callbacks = (keras.callbacks.LambdaCallback(on_epoch_end=told),)
            try:
                twophase.fit(job, train, validation, f"fold-{number}", frozen)
            except checkpoints.TrainingDivergedError as error:
                raise FloatingPointError(str(error)) from None
            probability[held] = twophase.predict(job, frozen, held)
            report(number * steps - 1, float(plan.auroc(probability)[0]))
    return probability


@contextmanager
def job_of(
    plan: Mapping[str, Any],
    start: str | Path | None,
    settings: Settings,
    table: pd.DataFrame,
    labels: NDArray[np.float32],
    work: Path,
) -> Iterator[Any]:
    """A job of `twophase` as a training makes it; its work folder goes unless the process is killed."""
    from thyroid.model import backbones
    from thyroid.model.backend import keras
    from thyroid.train import twophase

    work.mkdir(parents=True, exist_ok=True)
    try:
        with twophase.prepared(
            backbones.get(plan["backbone"]),
            start,
            table,
            labels,
            work,
            settings,
            epochs=plan["epochs"] if settings.unfrozen else 0,
            batch_size=plan["batch_size"],
            seed=plan["seed"],
            started=time.monotonic(),
        ) as job:
            yield job
        shutil.rmtree(work, ignore_errors=True)
    except TrialPruned:
        shutil.rmtree(work, ignore_errors=True)
        raise
    finally:
        keras.backend.clear_session()


def _images(plan: Plan, data: Path, ingested: Path | None, margin: float) -> pd.DataFrame:
    """The study's images with another margin, cropped into its folder unless they are there."""
    if plan.facts["margins"] and margin != tables.read_facts(data)["margin"]:
        if ingested is None:
            raise InputError("other margins need the data version of thyroid.ingest (--ingested)")
        data = plan.folder / "crops" / f"{margin:.2f}"
        with locks.held(data.with_suffix(".lock")):
            if not (data / tables.FACTS).is_file():
                crop.crop(ingested, data, [plan.facts["domain"]], margin=margin, splits=DEVELOPMENT)
    table = development(data, plan.facts["domain"])
    if (
        table["class"].tolist() != plan.table["class"].tolist()
        or table["patient"].tolist() != plan.table["patient"].tolist()
    ):
        raise InputError(f"{data}: not the images that the search was prepared with; start it anew")
    return table


def development(data: Path, domain: str) -> pd.DataFrame:
    """Images of the development part, in an order that does not depend on how they were cropped."""
    table = tables.examples(data, domain)
    regions = tables.read(data)[1].set_index("crop_path")["index"]
    table = table[table["split"].isin(DEVELOPMENT)].assign(region=table["name"].map(regions))
    return table.sort_values(["path", "region"], ignore_index=True).drop(columns="region")


def _save(file: Path, values: NDArray) -> None:
    """Write an array whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file, durable=False) as temporary, temporary.open("wb") as handle:
        np.save(handle, values)


@errors.command
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m thyroid.sweep", description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="data version of thyroid.crop")
    parser.add_argument("--ingested", type=Path, help="that of thyroid.ingest behind it, to try other crop margins")
    parser.add_argument("--study", type=Path, required=True, help="folder for studies; the same command goes on there")
    parser.add_argument("--output", type=Path, required=True, help="folder for settings.json, study.json, report.html")
    parser.add_argument("--backbone", default="VGG16")
    parser.add_argument("--domain", choices=tables.DOMAINS, help="default: the data version's first")
    parser.add_argument("--weights", default="imagenet", help="imagenet, none, a *.weights.h5 file or a folder of them")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--epochs", type=int, default=15, help="of fine-tuning")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--folds", type=int, default=5, help="of the cross-validation in every trial")
    parser.add_argument("--head-trials", type=int, default=100, help="on cached features")
    parser.add_argument("--image-trials", type=int, default=20, help="from the images; 0: none")
    parser.add_argument("--workers", type=int, default=1, help="processes that search side by side")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(argv)
    from thyroid.sweep import report

    folder = prepare(
        given.data,
        given.study,
        given.backbone,
        given.domain,
        given.weights,
        given.image_size,
        given.epochs,
        given.batch_size,
        given.folds,
        given.seed,
    ).folder
    search_heads(folder, given.head_trials, given.workers)
    rank(folder)
    if given.image_trials:
        search_images(folder, given.data, given.ingested, given.weights, given.image_trials, given.workers)
    report.conclude(folder, given.output)
