"""The options of a search."""

from dataclasses import dataclass

from thyroid.train.options import TrainOptions


@dataclass(frozen=True)
class SweepOptions:
    """How the trials of a search are trained.

    Attributes:
        weights: Initial weights, see `backbones.find_weights`.
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
