"""Hyper-parameter search: head settings on cached features, then what needs the images. The test set is never read.

    python -m thyroid.sweep --data DIR --ingested DIR --backbone VGG16 --study DIR --output DIR

Every trial is a cross-validation by patient of the development part (train and validation), on the same folds as in
`thyroid.train --folds`. In the stage `heads`, the features of every tap are computed once, and a trial fits dense heads
on them. In the stage `images`, a trial is the two-phase recipe with its own crops, image size, augmentation and
unfrozen depth, and it starts from the best heads. Trials that fall behind are pruned between folds and epochs. A study
is a folder, which may be in a bucket. A search that was stopped resumes with the same command, and any number of
processes or pods can work on it (see `studies`).
"""

import functools
import logging
import multiprocessing
import os
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from optuna import Trial, TrialPruned
from optuna.trial import TrialState
from threadpoolctl import threadpool_limits

from thyroid import atomic, errors, progress, storage, workers
from thyroid.cores import available
from thyroid.errors import InputError
from thyroid.model import backbones
from thyroid.records.settings import Settings
from thyroid.sweep import plans, studies
from thyroid.sweep.heads import evaluate_heads
from thyroid.sweep.images import Sources, evaluate_images
from thyroid.sweep.plans import HEADS, IMAGES, Plan, read

log = logging.getLogger(__name__)

Evaluate = Callable[[Settings, Callable[[int, float], None]], NDArray[np.float64]]
"""Function from settings to out-of-fold probabilities [n, classes].

It reports step and AUROC to its second argument, which may end the trial.
"""


def search_heads(study: storage.Location, trials: int, *, workers: int = 1, cores: int = 0) -> int:
    """Work on the first stage until `trials` are finished, or are in progress elsewhere.

    Args:
        study: Folder of a prepared study, or its address in a bucket.
        trials: Total number of trials of the stage, including those before an interruption.
        workers: Number of processes on this machine.
        cores: Cores per process; 0 divides all cores among them.

    Returns:
        The number of finished trials.

    Raises:
        InputError: A number is out of range, or workers failed and the others could not finish their trials.
    """
    alone = functools.partial(_search_heads_alone, study)
    return _search(read(study), HEADS, alone, trials, processes=workers, cores=cores)


def search_images(study: storage.Location, sources: Sources, trials: int, *, workers: int = 1, cores: int = 0) -> int:
    """Work on the second stage like `search_heads`. `rank` must have been called before.

    Args:
        study: Folder of the study, or its address in a bucket.
        sources: What the trainings are made from.
        trials: Total number of trials of the stage, including those before an interruption; 0 does nothing.
        workers: Number of processes on this machine.
        cores: Cores per process; 0 divides all cores among them.

    Returns:
        The number of finished trials.

    Raises:
        InputError: The heads are not ranked, a margin needs `sources.ingested`, or as for `search_heads`.
    """
    if trials == 0:
        return 0
    plan = read(study)
    plan.heads()
    alone = functools.partial(_search_images_alone, study, sources)
    return _search(plan, IMAGES, alone, trials, processes=workers, cores=cores)


def rank(study: storage.Location) -> list[Settings]:
    """Write down the best heads after the first stage, and queue the default settings and these heads for the second.

    Args:
        study: Folder of the study, or its address in a bucket.

    Returns:
        The default head, then the best heads.
    """
    plan = read(study)
    trials = sorted(plan.shared(HEADS).trials(TrialState.COMPLETE), key=lambda trial: -(trial.value or 0.0))
    best = [plan.settings(HEADS, trial.params).replace(unfrozen=1) for trial in trials[: plans.TOPS]]
    content = atomic.to_json([settings.to_dict() for settings in best])  # type: ignore[arg-type]
    plan.place.write(plans.RANKED, content.encode())
    stage, default = plan.shared(IMAGES), plan.default.to_dict()
    first = {name: default[name] for name in plan.space(IMAGES) if name != "head"}
    stage.enqueue([first | {"head": number} for number in range(len(best) + 1)])
    return plan.heads()


def _search(
    plan: Plan, stage: str, alone: Callable[[int, int], None], trials: int, *, processes: int, cores: int
) -> int:
    """Run `alone` in this process, or in several, until the trials are finished."""
    if trials < 0 or processes < 1:
        raise InputError(f"trials {trials}, workers {processes}: give at least 0 trials and 1 worker")
    cores = cores or max(1, available() // processes)
    if processes == 1:
        alone(trials, cores)
        return plan.shared(stage).finished()
    context = multiprocessing.get_context("spawn")  # TensorFlow does not survive a fork
    running = [context.Process(target=_child, args=(alone, trials, cores)) for _ in range(processes)]
    for process in running:
        process.start()
    for process in running:
        process.join()
    finished = plan.shared(stage).finished()
    if finished < trials:
        codes = ", ".join(str(process.exitcode) for process in running)
        raise InputError(
            f"{plan.address}: {finished} of {trials} trials of {stage} are finished, and all workers have ended "
            f"(exit codes {codes}). The same command resumes the search"
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
    with (
        studies.worker(plan.folder) as worker,
        progress.bar(None, trials, f"{plan.facts['backbone']} {stage}", "trial") as bar,
    ):
        while (trial := shared.ask(trials, worker)) is not None:
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
                plan.write_scores(stage, trial.number, probability)  # before the trial counts as finished
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


def _search_heads_alone(study: storage.Location, trials: int, cores: int) -> None:
    """Work on the first stage in this process."""
    plan = read(study)
    with threadpool_limits(cores):
        work_on(plan, HEADS, trials, functools.partial(evaluate_heads, plan, {}))


def _search_images_alone(study: storage.Location, sources: Sources, trials: int, cores: int) -> None:
    """Work on the second stage in this process."""
    for name in ("TF_NUM_INTRAOP_THREADS", "OMP_NUM_THREADS"):  # before TensorFlow is imported
        os.environ.setdefault(name, str(cores))
    plan = read(study)
    start = backbones.find_weights(backbones.get(plan.facts["backbone"]), sources.weights)
    work_on(plan, IMAGES, trials, functools.partial(evaluate_images, plan, sources, start))
