"""Shows one progress bar over the epochs of a training."""

from typing import Any

from thyroid import progress
from thyroid.model.backend import keras


def epochs(description: str) -> Any:
    """Return a Keras callback with one bar over all epochs."""

    class Epochs(keras.callbacks.Callback):
        def on_train_begin(self, logs: Any = None) -> None:
            self.bar = progress.bar(None, self.params["epochs"], description, "epoch")

        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            if not self.bar.n:  # epochs that were trained before the interruption
                self.bar.initial = self.bar.n = epoch

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            self.bar.update()

        def on_train_end(self, logs: Any = None) -> None:
            self.bar.close()

    return Epochs()
