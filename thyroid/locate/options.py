"""The options of the locating step."""

from dataclasses import dataclass

from thyroid.errors import InputError
from thyroid.model import backbones
from thyroid.storage import Location


@dataclass(frozen=True)
class LocateOptions:
    """How a locator is trained. An empty text means "none".

    Attributes:
        weights: Weights of the body: imagenet, none, a *.weights.h5 file or a folder of them. The body is
            EfficientNetB0 where there are weights of it, else the first backbone that there are weights of. With none
            it is a toy that only shows how the pipeline works.
        unsure: Share of the validation frames whose box is left unsure, 0 to 1.
        recipe: Name of the training's recipe. With warm, the locator starts from the champion's.
        registry: Registry with the champion from which the warm recipe starts.
        champion: Version of the champion. 0 for the current one.
        work: Folder that outlives a stopped process, from which the step resumes and in which it keeps the feature maps
            of every frame. It may be in a bucket. Without it, one in the output.
        seed: Seed of initialisation, order, augmentation and folds, 0 to 4294967295.

    Raises:
        InputError: A value is out of range.
    """

    weights: str = "imagenet"
    unsure: float = 0.2
    recipe: str = "two-phase"
    registry: Location = ""
    champion: int = 0
    work: Location = ""
    seed: int = 0

    def __post_init__(self) -> None:
        """Check every value that does not need the data."""
        if self.recipe not in backbones.RECIPES:
            raise InputError(f"recipe {self.recipe!r} is unknown; choose from {', '.join(backbones.RECIPES)}")
        if not 0 <= self.unsure < 1:
            raise InputError(f"unsure {self.unsure}: must be at least 0 and below 1")
        if not 0 <= self.seed < 2**32:
            raise InputError(f"seed {self.seed}: must be between 0 and 4294967295")
