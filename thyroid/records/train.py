"""train.json and diagnosis.json: how a network was trained, and what came of it."""

from typing import Any

from thyroid.records.data import ClassFields
from thyroid.records.record import Record
from thyroid.records.settings import Settings


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

    @property
    def champion_leads(self) -> bool:
        """Whether the training starts from the champion, which it also does when both are equally good."""
        return self.champion >= self.weights


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
    jitter: float | None = None
    """Multiple of a locator's errors by which the crops in the augmented half of what was learnt from were
    disturbed; 0 for none."""
    champion: str | None
    """SHA-256 of the champion that the warm recipe considered; null for none. `weights` says what was used."""
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
    settings: Settings | None = None
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
    """Metrics of the kept network on the validation images; for the deck's recipe, on its own ones."""
    data_digest: str
    """Digest of the data version."""
    memory_mb: float | None = None
    """Largest memory of the process in megabytes."""
    gpu_memory_mb: float | None = None
    """Largest memory on the GPU in megabytes; absent without one."""
    starts: Starts | None = None
    """What the warm recipe compared; absent for other recipes, and without a usable champion."""
    seconds: float
    """Seconds that the training took."""


class DiagnosisRecord(Record):
    """The checks of one training: scale of the input, constant answers, label order, leakage, serving."""

    backbone: str
    """Name of the backbone."""
    train_domain: str
    """Domain that it was trained on."""
    recipe: str
    """Name of the recipe."""
    figures: dict[str, dict[str, Any]]
    """Values of each check, by its name."""
    findings: dict[str, str]
    """What was found, in words, by name; empty if nothing was."""
