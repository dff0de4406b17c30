"""Saves the state of a training so that it can resume after an interruption.

Keras' BackupAndRestore keeps weights, optimizer and epoch. To end as if it had never been stopped, a training also
needs the state of early stopping, the metrics so far, and its position within the epoch. The callback `Resume` saves
all of this. Arrays are written as a whole or not at all. The other callbacks of a fit are here, too: `Watch` measures
it, and `ProgressBar` shows its progress.
"""

import json
import logging
import resource
import signal
import sys
import threading
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from thyroid import progress
from thyroid.atomic import replacing
from thyroid.errors import InputError
from thyroid.model import inputs
from thyroid.model.backend import keras, tf

log = logging.getLogger(__name__)

SAVE_SECONDS = 30.0
"""The state is saved after this time, and on SIGTERM. A kill -9 loses no more work than this."""

Arrays = dict[str, NDArray[Any]]


class TrainingDivergedError(InputError):
    """Raised when the loss, a feature or a weight is no longer a finite number."""


def save(path: Path, **arrays: Any) -> None:
    """Write arrays to a .npz file. A reader finds either the old file or the new one, never half of one."""
    with replacing(path, durable=False, shared=False) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)


def load(path: Path) -> Arrays | None:
    """Read the arrays of a .npz file.

    Returns:
        The arrays by name, or None if there is no file. If the file is damaged (by zip's checksums), a message is
        logged and the result is None, too.
    """
    if not path.exists():
        return None
    try:
        with path.open("rb") as file, np.load(file) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile) as error:
        log.info(f"{path}: damaged ({error}); it is ignored and computed again")
        return None


class Resume(keras.callbacks.Callback):
    """Saves the state of a fit, and restores it when the fit is started again.

    Put it after `stopper` in the list of callbacks. Fit with `initial_epoch=resume.epoch`, unless `resume.finished`.

    Args:
        folder: Folder for the state. The previous state is kept, too, in case the newest one is damaged.
        epochs: The batches, whose epoch and position this callback sets.
        stopper: Keras' EarlyStopping with restore_best_weights.
        label: Prefix of the progress messages.
    """

    def __init__(self, folder: Path, epochs: inputs.Epochs, stopper: Any, label: str) -> None:
        """Read the newest state in `folder` that is not damaged."""
        super().__init__()
        self.file, self.older = folder / "state.npz", folder / "state-before.npz"
        self.epochs, self.stopper, self.label = epochs, stopper, label
        state = load(self.file)
        if state is None:
            self.file.unlink(missing_ok=True)  # a damaged state must not replace the previous one
            state = load(self.older)
        self.state: Arrays | None = state
        self.facts: dict[str, Any] = json.loads(str(state["facts"])) if state else {}
        self.epoch: int = self.facts.get("epoch", 0)
        self.seen: int = self.facts.get("seen", 0)
        self.rows: list[dict[str, float]] = self.facts.get("rows", [])
        self.finished: bool = self.facts.get("finished", False)
        self.stop_asked = False
        if state:
            log.info(f"{label}: resumes in epoch {self.epoch + 1} after {self.seen} images")

    @property
    def history(self) -> pd.DataFrame:
        """Return the history with one row per epoch, including the epochs before the interruption."""
        return pd.DataFrame(self.rows)

    def on_train_begin(self, logs: Any = None) -> None:
        """Handle SIGTERM, and restore early stopping. Without a state save the first one."""
        self.saved = time.monotonic()
        self.previous_handler: Any = None
        if self._in_main_thread():
            self.previous_handler = signal.signal(signal.SIGTERM, self._terminate)
        if self.state:
            for name, value in self.facts["stopper"].items():
                setattr(self.stopper, name, value)
            if "best0" in self.state:  # frozen weights have not changed
                self.stopper.best_weights = [
                    variable.numpy() if place is None else self.state[f"best{place}"]
                    for variable, place in self._places()
                ]
        else:
            self._save()

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Set the epoch of the batches, and the number of images that it has seen already."""
        self.epoch = epoch
        self.epochs.epoch, self.epochs.seen = epoch, self.seen

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Restore the state before the first batch that it has not seen."""
        if self.state and batch * self.epochs.batch_size >= self.seen:
            self._restore(self.state)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Count the images, and save the state if it is due.

        Raises:
            TrainingDivergedError: The loss or a weight is not a finite number.
            SystemExit: SIGTERM has arrived. The state has been saved.
        """
        if self.state:
            if batch + 1 == self.epochs.steps:  # the state was saved after the epoch's last batch
                self._restore(self.state)
            return
        if logs and not np.isfinite(logs["loss"]):
            raise self._diverged("loss")
        self.seen = min(self.seen + self.epochs.batch_size, len(self.epochs.rows))
        self._save_if_due()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Add the epoch to the history, and save the state if it is due or the fit has finished.

        Raises:
            TrainingDivergedError: A weight is not a finite number.
            SystemExit: SIGTERM has arrived. The state has been saved.
        """
        self.rows.append({"epoch": epoch + 1} | {name: float(value) for name, value in (logs or {}).items()})
        self.epoch, self.seen = epoch + 1, 0
        self.finished = bool(self.model.stop_training)
        self._save_if_due()

    def close(self) -> None:
        """Restore the previous handler of SIGTERM.

        Call this in a `finally` block, because Keras calls no callback at the end of a failed fit.
        """
        if self._in_main_thread() and getattr(self, "previous_handler", None) is not None:
            signal.signal(signal.SIGTERM, self.previous_handler)

    def _terminate(self, number: int, frame: FrameType | None) -> None:
        self.stop_asked = True

    def _save_if_due(self) -> None:
        if self.stop_asked or self.finished or time.monotonic() - self.saved > SAVE_SECONDS:
            self._save()
        if self.stop_asked:
            sys.stderr.write(
                f"{self.label}: stopped by SIGTERM, state saved in epoch {_place(self.epoch, self.seen)}. "
                "Run the same command again to resume\n"
            )
            raise SystemExit(128 + signal.SIGTERM)

    def _save(self) -> None:
        stopper = {
            name: None if (value := getattr(self.stopper, name)) is None else float(value)
            for name in ("best", "wait", "best_epoch")
        }
        facts = {
            "epoch": self.epoch,
            "seen": self.seen,
            "rows": self.rows,
            "finished": self.finished,
            "batch_size": self.epochs.batch_size,
            "stopper": stopper,
        }
        arrays = _arrays(self.model.trainable_variables, "weight")
        if not all(np.isfinite(array).all() for array in arrays.values()):
            raise self._diverged("weights")
        arrays |= _arrays(self.model.optimizer.variables, "optimizer")
        if self.seen:
            arrays |= _arrays(self.model.metrics_variables, "metric")
        if self.stopper.best_weights is not None:
            for (_, place), value in zip(self._places(), self.stopper.best_weights, strict=True):
                if place is not None:
                    arrays[f"best{place}"] = value
        if self.file.exists():
            self.file.replace(self.older)
        save(self.file, facts=np.array(json.dumps(facts)), **arrays)
        self.saved = time.monotonic()

    def _diverged(self, what: str) -> TrainingDivergedError:
        return TrainingDivergedError(
            f"{self.label}: not finite ({what}) in epoch {_place(self.epoch, self.seen)}; check the "
            f"weights and the data. The last good state is {self.file}"
        )

    def _restore(self, state: Arrays) -> None:
        _assign(self.model.trainable_variables, state, "weight")
        _assign(self.model.optimizer.variables, state, "optimizer")
        if self.seen:
            _assign(self.model.metrics_variables, state, "metric")
        # The schedule counts steps, of which there are more if the batch was halved after the state was saved.
        factor = self.facts["batch_size"] / self.epochs.batch_size
        steps = self.model.optimizer.iterations
        steps.assign(round(int(steps.numpy()) * factor))
        self.state = None

    def _places(self) -> list[tuple[Any, int | None]]:
        """Return every weight of the model with its index among the trainable ones, or None if it is frozen."""
        trainable = {id(variable): i for i, variable in enumerate(self.model.trainable_variables)}
        return [(variable, trainable.get(id(variable))) for variable in self.model.weights]

    @staticmethod
    def _in_main_thread() -> bool:
        return threading.current_thread() is threading.main_thread()


class Watch(keras.callbacks.Callback):
    """Adds time, speed and memory to the metrics of every epoch.

    These are the seconds of the epoch, the seconds since the training began, images per second, and the peak memory so
    far.

    Args:
        images: Number of training images.
        began: time.monotonic() at the start of the training.
    """

    def __init__(self, images: int, began: float) -> None:
        """Store the arguments."""
        super().__init__()
        self.images, self.began = images, began

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Start the clock of the epoch."""
        self.started = time.monotonic()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Add the values to the metrics of the epoch."""
        if logs is not None:
            logs |= pace(self.images, self.started, self.began)


class ProgressBar(keras.callbacks.Callback):
    """Shows one progress bar over all epochs of a fit.

    Args:
        description: Text in front of the bar.
    """

    def __init__(self, description: str) -> None:
        """Store the argument."""
        super().__init__()
        self.description = description

    def on_train_begin(self, logs: Any = None) -> None:
        """Show the bar."""
        self.bar = progress.bar(None, self.params["epochs"], self.description, "epoch")

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Count the epochs that were trained before an interruption."""
        if not self.bar.n:
            self.bar.initial = self.bar.n = epoch

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Count the epoch."""
        self.bar.update()

    def on_train_end(self, logs: Any = None) -> None:
        """Close the bar."""
        self.bar.close()


def pace(images: int, epoch_started: float, began: float) -> dict[str, float]:
    """Return time, speed and memory of an epoch that ends now.

    Args:
        images: Number of images of the epoch.
        epoch_started: time.monotonic() at the start of the epoch.
        began: time.monotonic() at the start of the training.
    """
    now = time.monotonic()
    return {
        "seconds": round(now - epoch_started, 3),
        "elapsed": round(now - began, 3),
        "images_per_second": round(images / (now - epoch_started), 1),
    } | memory()


def memory() -> dict[str, float]:
    """Return the peak memory in MB of this process, and of the first GPU if there is one."""
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss would include the memory of the parent process at the fork
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        used = int(lines["VmHWM"].split()[0]) * 1024
    else:
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in bytes on macOS
    peak = {"memory_mb": round(used / 1e6, 1)}
    if tf.config.list_physical_devices("GPU"):
        peak["gpu_memory_mb"] = round(tf.config.experimental.get_memory_info("GPU:0")["peak"] / 1e6, 1)
    return peak


def _place(epoch: int, seen: int) -> str:
    return f"{epoch + 1} after {seen} images"


def _arrays(variables: Sequence[Any], name: str) -> Arrays:
    return {f"{name}{i}": np.asarray(keras.ops.convert_to_numpy(v)) for i, v in enumerate(variables)}


def _assign(variables: Sequence[Any], arrays: Arrays, name: str) -> None:
    for i, variable in enumerate(variables):
        variable.assign(arrays[f"{name}{i}"])
