"""The options of the training step."""

from dataclasses import dataclass

from thyroid.errors import InputError
from thyroid.model import backbones
from thyroid.storage import Location
from thyroid.train import settings


@dataclass(frozen=True)
class TrainOptions:
    """How a backbone is trained. An empty text means "none".

    Attributes:
        weights: Initial weights: imagenet, none, a *.weights.h5 file or a folder of them.
        image_size: Side of the model's square input in pixels.
        epochs: Epochs of fine-tuning, or of training all layers in the deck's recipe. 0 trains only the head.
        batch_size: Images per step. It is halved if the memory does not suffice.
        recipe: Name of the recipe: two-phase, frozen, deck or warm.
        settings: settings.json of thyroid.sweep, which may be in a bucket. Its recipe, and its image size or tap if it
            has them, replace those given here.
        tap: Layer at which the body ends, such as block4_pool. Empty for its last layer.
        folds: 0, or the number of folds of a cross-validation, whose predictions go to folds.parquet.
        only_fold: The only fold to train, or 0 for all.
        deterministic: Whether to use TensorFlow's deterministic kernels. The same seed then gives the same bits, at
            some cost.
        registry: Registry with the champion from which the warm recipe starts. It starts from the champion if that is
            of this backbone, these classes and this domain, was trained on no scan that now judges models, and a
            head on its frozen features has at least the validation AUROC of a head on those of the weights. Otherwise,
            or without a champion, the recipe starts from the weights like two-phase.
        champion: Version of the champion. 0 for the current one.
        work: Folder that outlives a stopped process and from which a training resumes, which may be in a bucket.
            Without it, one in the output.
        memory_budget: Bytes of arrays in memory; 0 for 4 GB. Decoded images, or maps of the frozen part, are paged
            from a temporary file if they need more.
        seed: Seed of initialisation, order, augmentation and folds, 0 to 4294967295.

    Raises:
        InputError: A value is out of range or does not fit another one.
    """

    weights: str = "imagenet"
    image_size: int = 224
    epochs: int = 15
    batch_size: int = 32
    recipe: str = "two-phase"
    settings: Location = ""
    tap: str = ""
    folds: int = 0
    only_fold: int = 0
    deterministic: bool = False
    registry: Location = ""
    champion: int = 0
    work: Location = ""
    memory_budget: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        """Check every value that does not need the data."""
        settings.refuse_file(self.recipe)
        if self.recipe not in backbones.RECIPES:
            raise InputError(f"recipe {self.recipe!r} is unknown; choose from {', '.join(backbones.RECIPES)}")
        if self.recipe == "deck" and (self.tap or self.epochs < 1):
            raise InputError("recipe deck trains the whole body: leave out tap, and set epochs to at least 1")
        for name, value, least in (
            ("image size", self.image_size, backbones.MIN_SIZE),
            ("epochs", self.epochs, 0),
            ("batch size", self.batch_size, 1),
        ):
            if value < least:
                raise InputError(f"{name} {value} is below the minimum of {least}")
        if not 0 <= self.seed < 2**32:
            raise InputError(f"seed {self.seed}: must be between 0 and 4294967295")
        if self.recipe == "warm" and self.folds:
            raise InputError(
                "recipe warm cannot be used with folds, because the champion was trained on the held-out patients; use "
                "two-phase"
            )
        if self.folds < 0 or self.folds == 1 or not 0 <= self.only_fold <= self.folds:
            raise InputError(
                f"folds {self.folds}, only fold {self.only_fold}: give 0 or at least 2 folds, and only_fold up to folds"
            )
