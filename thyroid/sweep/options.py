"""The options of a search."""

from dataclasses import dataclass

from thyroid.train.options import TrainOptions


@dataclass(frozen=True)
class SweepOptions:
    """How the trials of a search are trained.

    Attributes:
        weights: Initial weights: imagenet, none, a *.weights.h5 file or a folder of them.
        image_size: Side of the model's input in pixels in the first stage. The second stage also tries 0.5 and 1.5
            times this size.
        epochs: Epochs of fine-tuning.
        batch_size: Images per step.
        folds: Number of folds of the cross-validation in every trial, at least 2.
        seed: Seed of folds, training and proposals, 0 to 4294967295.

    Raises:
        InputError: A value is out of range.
    """

    weights: str = TrainOptions.weights
    image_size: int = TrainOptions.image_size
    epochs: int = TrainOptions.epochs
    batch_size: int = TrainOptions.batch_size
    folds: int = 5
    seed: int = TrainOptions.seed

    def __post_init__(self) -> None:
        """Check the ranges, which are those of a training that is cross-validated."""
        TrainOptions(
            weights=self.weights,
            image_size=self.image_size,
            epochs=self.epochs,
            batch_size=self.batch_size,
            folds=self.folds or 1,  # a training may have no folds, a trial may not
            seed=self.seed,
        )


@dataclass(frozen=True)
class Effort:
    """How long a search goes on.

    Attributes:
        head_trials: Trials of the first stage, which fits heads on cached features.
        image_trials: Trials of the second stage, which trains from the images; 0 for none.
        workers: Processes that search side by side.
    """

    head_trials: int = 100
    image_trials: int = 20
    workers: int = 1
