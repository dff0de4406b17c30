"""A study of Optuna in a folder, which several processes or pods share and which survives their death.

    <folder>/journal.log   every trial, one line per event (Optuna's journal; there is no database)
    <folder>/workers/      one file per living worker, which holds a lock on it; the lock always ends with the process

A trial is taken under a lock, together with the name of its worker. This distinguishes a trial whose worker is dead
from one that is in progress: the former is marked as failed, and its parameters are tried once more.
"""

import os
import socket
import uuid
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from filelock import Timeout
from optuna.distributions import BaseDistribution
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState

from thyroid import locks
from thyroid.errors import InputError

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
STARTUP = 10
"""Number of random trials before the sampler learns from them. Half as many must be completed before one is pruned."""

AGAIN, FIRST, WORKER = "again", "first", "worker"
"""Marks of a trial: the number of the trial that it repeats, whether it is the others' baseline, and its worker."""

optuna.logging.set_verbosity(optuna.logging.WARNING)


class _Lock(JournalFileOpenLock):
    """Optuna's lock around a write, which ends with the process.

    Before a write it removes half a line that a dead process has left. Otherwise the next line would be appended to it,
    and the journal could no longer be read (optuna 5.0).
    """

    def __init__(self, journal: Path) -> None:
        self.journal = journal
        self.lock = locks.of(journal.with_suffix(".lock"))

    def acquire(self) -> bool:
        """Wait for the lock, and truncate the journal after its last complete line."""
        self.lock.acquire()
        with self.journal.open("rb+") as file:
            content = file.seek(0, os.SEEK_END)
            if content and (file.seek(content - 1), file.read(1))[1] != b"\n":
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
        return True

    def release(self) -> None:
        """Release the lock."""
        self.lock.release()


class Shared:
    """One of the studies in a folder.

    Args:
        folder: Folder that the workers share. It is created if needed.
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
        folder.mkdir(parents=True, exist_ok=True)
        journal = folder / "journal.log"
        try:
            storage = optuna.storages.JournalStorage(JournalFileBackend(str(journal), _Lock(journal)))
            self.study = optuna.create_study(
                study_name=name,
                storage=storage,
                direction="maximize",
                load_if_exists=True,
                pruner=optuna.pruners.MedianPruner(n_startup_trials=STARTUP // 2, n_warmup_steps=warmup),
            )
        except (ValueError, KeyError) as error:
            raise InputError(f"{journal}: damaged ({error}); remove {folder} and start a new search") from None
        for trial in self.trials():
            for parameter, distribution in trial.distributions.items():
                if space.get(parameter) != distribution:
                    raise InputError(
                        f"{folder}: its study {name!r} searched {parameter} in {distribution}, not in "
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
        with locks.held(self.folder / "ask.lock"):
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
        with locks.held(self.folder / "ask.lock"):
            self._fail_orphaned_trials(worker)
            begun = self.trials(*FINISHED, TrialState.RUNNING)
            if len(begun) >= wanted:
                return None
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                self.study.sampler = optuna.samplers.TPESampler(
                    seed=self.seed + len(self.trials()), n_startup_trials=STARTUP
                )
            trial = self.study.ask(dict(self.space))
            trial.set_user_attr(WORKER, worker)
            return trial

    def _fail_orphaned_trials(self, worker: str) -> None:
        """Mark the trials of dead workers as failed, after their parameters were queued again (once)."""
        trials = self.trials()
        repeated = {trial.user_attrs.get(AGAIN) for trial in trials}
        for trial in trials:
            owner = trial.user_attrs.get(WORKER)
            if trial.state != TrialState.RUNNING or (owner is not None and (owner == worker or self._alive(owner))):
                continue
            if trial.params and AGAIN not in trial.user_attrs and trial.number not in repeated:
                marks = {FIRST: True} if FIRST in trial.user_attrs else {}
                self.study.enqueue_trial(trial.params, user_attrs=marks | {AGAIN: trial.number})
            self.study.tell(trial.number, state=TrialState.FAIL)

    def _alive(self, worker: str) -> bool:
        try:
            with locks.of(self.folder / "workers" / worker).acquire(blocking=False):
                pass
        except Timeout:
            return True
        (self.folder / "workers" / worker).unlink(missing_ok=True)
        return False


@contextmanager
def worker(folder: Path) -> Iterator[str]:
    """Yield a name for this process. It counts as alive until the block or the process ends."""
    name = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    path = folder / "workers" / name
    with locks.held(path):
        yield name
    path.unlink(missing_ok=True)
