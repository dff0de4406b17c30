"""train.json: how a network was trained, and what came of it."""

from thyroid.records.data import ClassFields
from thyroid.records.record import Record


class SettingsFields(Record):
    """The settings of a training's recipe, as in settings.json of a sweep."""

    head_rate: float
    """Learning rate of the head on frozen features."""
    head_penalty: float
    """L2 penalty of the head."""
    class_weight: str
    """"balanced" or "none"."""
    label_smoothing: float
    """Label smoothing of the fine-tuning."""
    tap: str
    """Layer at which the body ends; empty for its last one."""
    margin: float
    """Share of a region's sides by which its crop is wider on each side."""
    image_size: int
    """Side of the input in pixels; 0 for that of the run."""
    augmentation: float
    """Strength of the augmentation; 0 for none, 1 for the usual one."""
    unfrozen: int
    """Number of blocks that are fine-tuned; 0 for the head alone."""
    rate: float
    """Learning rate of the fine-tuning."""
    backbone: str
    """Backbone that the tap belongs to."""


class ValidationOfTraining(Record):
    """Metrics on the validation images, without intervals: they stop the training, the evaluation judges."""

    auroc: float
    """AUROC; the macro average of each class against the rest where there are several."""
    loss: float
    """Mean cross-entropy."""
    accuracy: float
    """Share of images whose most probable class is the true one."""


class Starts(Record):
    """Validation AUROCs of a head on frozen features, by the weights that the warm recipe could start from."""

    weights: float
    """From the given weights."""
    champion: float
    """From the champion."""


class TrainRecord(ClassFields):
    """train.json of a training."""

    backbone: str
    """Name of the backbone."""
    train_domain: str
    """Domain of the images, normal or cropped."""
    weights: str
    """Weights that the training started from: "imagenet", "none", the name of a file, or "champion" with a version."""
    image_size: int
    """Side of the square input in pixels."""
    epochs: int
    """Largest number of epochs of fine-tuning."""
    batch_size: int
    """Images per step, after it was halved for want of memory."""
    seed: int
    """Seed of initialisation, order, augmentation and folds."""
    recipe: str
    """Name of the recipe."""
    champion: str | None
    """SHA-256 of the champion's model file, for the warm recipe; null where there is none."""
    tap: str
    """Layer at which the body ends; empty for its last one."""
    folds: int
    """Folds of the cross-validation; 0 for none."""
    only_fold: int
    """The only fold that was trained; 0 for all."""
    deterministic: bool
    """Whether TensorFlow's deterministic kernels were used."""
    precision: str
    """Precision of the training: float32, mixed_bfloat16 or mixed_float16."""
    settings: SettingsFields | None = None
    """Settings of the recipe; absent for the deck's, which has none."""
    parameters: int
    """Number of parameters of the network."""
    checkpoint: str
    """Name of the checkpoint: backbone, epoch, loss and accuracy on validation, as in the deck."""
    files: dict[str, str]
    """SHA-256 of the checkpoint and of the graph, by name."""
    epoch: int
    """Epoch that was kept; 0 for the head alone."""
    validation: ValidationOfTraining
    """Metrics of the kept network on the validation images."""
    data_digest: str
    """Digest of the data version."""
    memory_mb: float | None = None
    """Largest memory of the process in megabytes."""
    gpu_memory_mb: float | None = None
    """Largest memory on the GPU in megabytes; absent without one."""
    starts: Starts | None = None
    """What the warm recipe compared; absent for other recipes."""
    seconds: float
    """Seconds that the training took."""
