"""Hyper-parameter search: head settings on cached features, then what needs the images. The test set is never read.

    python -m thyroid.sweep --data DIR --ingested DIR --backbone VGG16 --study DIR --output DIR

Every trial is a cross-validation by patient of the development part (train and validation), on the same folds as in
`thyroid.train --folds`. In the stage `heads`, the features of every tap are computed once, and a trial fits dense heads
on them. In the stage `images`, a trial is the two-phase recipe with its own crops, image size, augmentation and
unfrozen depth, and it starts from the best heads. Trials that fall behind are pruned between folds and epochs. A study
is a folder. A search that was stopped resumes with the same command, and any number of processes or pods can work on it
(see `studies`).
"""

import argparse
import functools
import hashlib
import json
import logging
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
from thyroid.sweep import plans, studies
from thyroid.sweep.plans import HEADS, IMAGES, Plan, read
from thyroid.train import head
from thyroid.train.settings import Settings

log = logging.getLogger(__name__)

DEVELOPMENT = ("train", "validation")
CODE = 1
"""Version of the code that decides a trial's result. Raise it with any change.

This code is the present module, train.head, train.twophase, model.inputs and crop.
"""
TAPS = 3
"""Number of last blocks of the body whose features are tried."""

Evaluate = Callable[[Settings, Callable[[int, float], None]], NDArray[np.float64]]
"""Function from settings to out-of-fold probabilities [n, classes].

It reports step and AUROC to its second argument, which may end the trial.
"""


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
    """Create the study's folder below `root`, or find it there, and compute the features of every tap.

    Args:
        data: Data version of `crop`. Not even the files of its test images are opened.
        root: Folder that the workers share and that outlives them.
        backbone: Name of the backbone, as for `train.train`.
        domain: Domain of the images; None for the first domain of the data version.
        weights: Initial weights, as for `train.train`.
        image_size: Side of the model's input in pixels in the first stage. The second stage also tries 0.5 and 1.5
            times this size.
        epochs: Number of epochs of fine-tuning.
        batch_size: Images per step.
        folds: Number of folds of the cross-validation in every trial.
        seed: Seed of folds, training and proposals.

    Returns:
        The plan of the study.

    Raises:
        InputError: As for `train.train`.
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
            log.info(f"{folder}: goes on, {' and '.join(finished)} are finished")
            return done
        log.info(f"{folder}: a new search on {len(table)} development images of {plan['patients']} patients")
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
    """Work on the first stage until `trials` are finished, or are in progress elsewhere.

    Args:
        folder: Folder of a prepared study.
        trials: Total number of trials of the stage, including those before an interruption.
        workers: Number of processes on this machine.
        cores: Cores per process; 0 divides all cores among them.

    Returns:
        The number of finished trials.

    Raises:
        InputError: A number is out of range, or workers failed and the others could not finish their trials.
    """
    return _search(read(folder), HEADS, functools.partial(_heads_alone, folder), trials, workers, cores)


def search_images(
    folder: Path, data: Path, ingested: Path | None, weights: str, trials: int, workers: int = 1, cores: int = 0
) -> int:
    """Work on the second stage like `search_heads`. `rank` must have been called before.

    Args:
        folder: Folder of the study.
        data: Data version of `crop` from which the study was prepared.
        ingested: Data version of `ingest` from which `data` was made, to crop with other margins. None requires that
            the margin does not change.
        weights: Initial weights that `prepare` was given.
        trials: Total number of trials of the stage, including those before an interruption; 0 does nothing.
        workers: Number of processes on this machine.
        cores: Cores per process; 0 divides all cores among them.

    Returns:
        The number of finished trials.

    Raises:
        InputError: The heads are not ranked, a margin needs `ingested`, or as for `search_heads`.
    """
    if trials == 0:
        return 0
    if not (folder / "heads.json").is_file():
        raise InputError(f"{folder}: the heads are not ranked yet")
    alone = functools.partial(_images_alone, folder, data, ingested, weights)
    return _search(read(folder), IMAGES, alone, trials, workers, cores)


def rank(folder: Path) -> list[Settings]:
    """Write down the best heads after the first stage, and queue the default settings and these heads for the second.

    Args:
        folder: Folder of the study.

    Returns:
        The default head, then the best heads.
    """
    plan = read(folder)
    trials = sorted(plan.shared(HEADS).trials(TrialState.COMPLETE), key=lambda one: -(one.value or 0.0))
    best = [replace(plan.settings(HEADS, one.params), unfrozen=1) for one in trials[: plans.TOPS]]
    atomic.write_json(folder / "heads.json", [asdict(one) for one in best])  # type: ignore[arg-type]
    stage, usual = plan.shared(IMAGES), asdict(plan.default)
    first = {name: usual[name] for name in plan.space(IMAGES) if name != "head"}
    stage.enqueue([first | {"head": number} for number in range(len(best) + 1)])
    return plan.heads()


def _search(plan: Plan, stage: str, alone: Callable[[int, int], None], trials: int, processes: int, cores: int) -> int:
    """Run `alone` in this process, or in several, until the trials are finished."""
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
            f"{plan.folder}: {finished} of {trials} trials of {stage} are finished and the workers are gone "
            f"(exit codes {codes}); the same command goes on"
        )
    return finished


def _child(alone: Callable[[int, int], None], trials: int, cores: int) -> None:
    """Run a worker in its own process, which ends when the process that started it ends."""
    workers.watch()
    raise SystemExit(errors.command(lambda _: alone(trials, cores))([]))


def work_on(plan: Plan, stage: str, trials: int, evaluate: Evaluate) -> None:
    """Take trials of a stage and evaluate them, as long as there are any.

    Args:
        plan: Plan of the study.
        stage: `HEADS` or `IMAGES`.
        trials: Total number of trials of the stage.
        evaluate: Function that evaluates the settings of a trial.
    """
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
                    log.info(f"trial {trial.number} of {stage}: {reason}")
            else:
                _save(plan.scores(stage, trial.number), probability)  # before the trial counts as finished
                shared.study.tell(trial, float(plan.auroc(probability)[0]))
            bar.update(shared.finished() - bar.n)


def _report(trial: Trial, step: int, value: float, prune: bool) -> None:
    """Report the AUROC of a trial to Optuna.

    Raises:
        TrialPruned: The trial has fallen behind.
    """
    trial.report(value, step)
    if prune and trial.should_prune():
        raise TrialPruned


def _heads_alone(folder: Path, trials: int, cores: int) -> None:
    plan = read(folder)
    with threadpool_limits(cores):
        work_on(plan, HEADS, trials, functools.partial(evaluate_heads, plan, {}))


def evaluate_heads(
    plan: Plan, cache: dict[str, list[NDArray[np.float32]]], settings: Settings, report: Callable[[int, float], None]
) -> NDArray[np.float64]:
    """Return the out-of-fold probabilities of dense heads on the study's features.

    Args:
        plan: Plan of the study.
        cache: Features of each tap, one array per view; filled as needed.
        settings: Settings of the trial.
        report: Receives the number of every finished fold and the AUROC so far.

    Returns:
        Probabilities [n, classes].
    """
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
    """Return the out-of-fold probabilities of the two-phase recipe, from the images on.

    Args:
        plan: Plan of the study.
        data: Data version of `crop` from which the study was prepared.
        ingested: Data version of `ingest` from which `data` was made; None if the margin does not change.
        start: Initial weights from `backbones.find_weights`.
        settings: Settings of the trial.
        report: Receives the number of every epoch, counted over all folds, and the AUROC so far.

    Returns:
        Probabilities [n, classes].

    Raises:
        FloatingPointError: The training diverged.
        InputError: The images are not those of the study, or another margin needs `ingested`.
    """
    from thyroid.model.backend import keras
    from thyroid.train import checkpoints, twophase

    table = _images(plan, data, ingested, settings.margin)
    probability = np.full(plan.labels.shape, np.nan)
    name = hashlib.sha256(json.dumps(asdict(settings)).encode()).hexdigest()[:16]
    work, steps = plan.folder / "work" / name, plan.facts["epochs"] + 1
    # A retried trial resumes where its worker died. Another worker with the same settings waits.
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
    """Yield a job of `twophase` as a training makes it.

    Its work folder is removed after the block, also if the trial was pruned. It is kept after any other error.

    Args:
        plan: Content of plan.json.
        start: Initial weights from `backbones.find_weights`.
        settings: Settings of the trial.
        table: Rows of `development`.
        labels: One-hot classes of these rows, float32 [n, classes].
        work: Folder for the training's state.
    """
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
    """Return the study's images with another margin. They are cropped into its folder unless they are there."""
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
    """Return the images of the development part, in an order that does not depend on how they were cropped.

    Args:
        data: Data version of `crop`.
        domain: Domain of the images.

    Returns:
        Rows of `tables.examples`.
    """
    table = tables.examples(data, domain)
    regions = tables.read(data)[1].set_index("crop_path")["index"]
    table = table[table["split"].isin(DEVELOPMENT)].assign(region=table["name"].map(regions))
    return table.sort_values(["path", "region"], ignore_index=True).drop(columns="region")


def _save(file: Path, values: NDArray[Any]) -> None:
    """Write an array completely or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file, durable=False) as temporary, temporary.open("wb") as handle:
        np.save(handle, values)


@errors.command
def main(argv: Sequence[str] | None = None) -> None:
    """Run a search from the command line."""
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
