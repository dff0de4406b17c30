"""The options of the training step."""

from dataclasses import dataclass
from pathlib import Path

from thyroid.storage import Location


@dataclass(frozen=True)
class TrainOptions:
    """How a backbone is trained. An empty text means "none".

    Attributes:
        weights: Initial weights, see `backbones.find_weights`.
        image_size: Side of the model's square input in pixels.
        epochs: Epochs of fine-tuning, or of training all layers in the deck's recipe. 0 trains only the head.
        batch_size: Images per step. It is halved if the memory does not suffice.
        recipe: One of `backbones.RECIPES`.
        settings: Settings file of `thyroid.sweep`, which may be on gs://. Its recipe, and its image size or tap if it
            has them, replace those given here.
        tap: Layer at which the body ends. Empty for its last layer.
        folds: 0, or the number of folds of a cross-validation, whose predictions go to folds.parquet.
        only_fold: The only fold to train, or 0 for all.
        deterministic: Whether to use TensorFlow's deterministic kernels. The same seed then gives the same bits, at
            some cost.
        registry: Registry with the champion from which the warm recipe starts. It starts from the champion if that is
            of this backbone, these classes and this domain, has learnt from no scan that is used to judge now, and a
            head on its frozen features has at least the validation AUROC of a head on those of `weights`. Otherwise,
            or without a champion, the recipe starts from `weights` like two-phase.
        champion: Version of the champion. 0 for the present one.
        work: Folder that outlives a stopped process and from which a training resumes. None for one in the output.
        memory_budget: Bytes; 0 for `inputs.MEMORY_BUDGET`. Decoded images, or maps of the frozen part, are paged from
            a temporary file if they need more.
        seed: Seed of initialisation, order, augmentation and folds.
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
    work: Path | None = None
    memory_budget: int = 0
    seed: int = 0
