"""A study of Optuna in a folder or bucket, which several processes or pods share and which survives their death.

    <folder>/journal.log   every trial, one line per event (Optuna's journal; there is no database)
    <folder>/workers/      one lock per living worker (see `sharing`)

A trial is taken under a lock, together with the name of its worker. This distinguishes a trial whose worker is dead
from one that is in progress: the former is marked as failed, and its parameters are tried once more.
"""

import os
import socket
import time
import uuid
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from thyroid.errors import InputError
from thyroid.storage import mirror
from thyroid.sweep import sharing

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
STARTUP = 10
"""Number of random trials before the sampler learns from them. Half as many must be completed before one is pruned."""

AGAIN, FIRST, WORKER = "again", "first", "worker"
"""Marks of a trial: the number of the trial that it repeats, whether it is the others' baseline, and its worker."""

_ASKING = "ask.lock"
_PAUSE = 2.0  # seconds until the next look whether a worker is alive

optuna.logging.set_verbosity(optuna.logging.WARNING)


class Shared:
    """One of the studies in a folder.

    Args:
        folder: Folder that the workers share, which is created if needed. For a bucket its folder in the node's cache.
        name: Name of the study.
        space: Parameters and their distributions.
        seed: Seed of the proposals. With a single worker they are reproducible; with several, each gets the next one
            when it asks.
        warmup: Number of steps before a trial may be pruned.

    Raises:
        InputError: The journal is damaged, or the study has another space.
    """

    def __init__(
        self, folder: Path, name: str, space: Mapping[str, BaseDistribution], *, seed: int = 0, warmup: int = 0
    ) -> None:
        """Open the study, or create it."""
        self.folder, self.name, self.space, self.seed = folder, name, space, seed
        self.ground = sharing.of(folder)
        place = mirror.address(folder)
        try:
            self.study = optuna.create_study(
                study_name=name,
                storage=optuna.storages.JournalStorage(self.ground.journal()),
                direction="maximize",
                load_if_exists=True,
                pruner=optuna.pruners.MedianPruner(n_startup_trials=STARTUP // 2, n_warmup_steps=warmup),
            )
        except (ValueError, KeyError) as error:
            raise InputError(
                f"{place}/{sharing.JOURNAL}: damaged ({error}); remove {place} and start a new search"
            ) from None
        for trial in self.trials():
            for parameter, distribution in trial.distributions.items():
                if space.get(parameter) != distribution:
                    raise InputError(
                        f"{place}: its study {name!r} searched {parameter} in {distribution}, not in "
                        f"{space.get(parameter)}; choose another folder"
                    )

    def trials(self, *states: TrialState) -> list[FrozenTrial]:
        """Return the trials in one of the states, or all trials."""
        return self.study.get_trials(deepcopy=False, states=states or None)

    def finished(self) -> int:
        """Return the number of trials that were completed or pruned."""
        return len(self.trials(*FINISHED))

    def enqueue(self, parameters: list[dict[str, Any]]) -> None:
        """Queue these parameters before all others. The first one is the baseline. Repeated calls do no harm."""
        with self.ground.held(_ASKING):
            done = len(self.trials())  # before this call nothing else has been asked for
            for number, values in enumerate(parameters[done:], done):
                self.study.enqueue_trial(values, user_attrs={} if number else {FIRST: True})

    def ask(self, wanted: int, worker: str) -> optuna.Trial | None:
        """Take the next trial.

        Args:
            wanted: Total number of trials of the study.
            worker: Name of the worker from `worker`.

        Returns:
            The trial; None if `wanted` trials are finished or in progress.
        """
        while True:
            with self.ground.held(_ASKING):
                are_known = self._fail_orphaned_trials(worker)
                if len(self.trials(*FINISHED, TrialState.RUNNING)) < wanted:
                    return self._next(worker)
            if are_known:
                return None
            time.sleep(_PAUSE)

    def _next(self, worker: str) -> optuna.Trial:
        """Return a new trial of a worker; the caller holds the lock."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self.study.sampler = optuna.samplers.TPESampler(
                seed=self.seed + len(self.trials()), n_startup_trials=STARTUP
            )
        trial = self.study.ask(dict(self.space))
        trial.set_user_attr(WORKER, worker)
        return trial

    def _fail_orphaned_trials(self, worker: str) -> bool:
        """Mark the trials of dead workers as failed, after their parameters were queued again (once).

        Returns:
            Whether it is known of every worker that it is dead or alive.
        """
        trials, are_known = self.trials(), True
        repeated = {trial.user_attrs.get(AGAIN) for trial in trials}
        for trial in trials:
            owner = trial.user_attrs.get(WORKER)
            if trial.state != TrialState.RUNNING or owner == worker:
                continue
            alive = owner is not None and self.ground.is_alive(owner)
            are_known = are_known and alive is not None
            if alive is not False:
                continue
            if trial.params and AGAIN not in trial.user_attrs and trial.number not in repeated:
                marks = {FIRST: True} if FIRST in trial.user_attrs else {}
                self.study.enqueue_trial(trial.params, user_attrs=marks | {AGAIN: trial.number})
            self.study.tell(trial.number, state=TrialState.FAIL)
        return are_known


@contextmanager
def worker(folder: Path) -> Iterator[str]:
    """Yield a name for this process. It counts as alive until the block or the process ends."""
    name = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    with sharing.of(folder).working(name):
        yield name
