"""An evaluation and the models that it scores, in their order: load, lock the operating point, score the test set."""

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from thyroid import cores, metrics, progress
from thyroid.clinical.descriptors_csv import DescriptorTable
from thyroid.data import tables
from thyroid.data.classes import Classes
from thyroid.data.filenames import CLASSES, POSITIVE, SCORE
from thyroid.data.version import DataVersion
from thyroid.errors import InputError
from thyroid.evaluate import performance, predictions
from thyroid.evaluate.boxes.located import AUTOMATIC, AutomaticBoxes
from thyroid.evaluate.options import EvaluateOptions
from thyroid.evaluate.predictions import ClinicalHead
from thyroid.model import operating_point
from thyroid.model.network import Network
from thyroid.model.operating_point import OperatingPoint
from thyroid.records.evaluation import LockedPoint, ModelRow
from thyroid.records.performance import AUROC, Performance, ValidationPerformance
from thyroid.records.train import TrainRecord
from thyroid.storage import Location
from thyroid.train import record

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What all models of an evaluation share.

    Attributes:
        data: Data version of `crop`.
        serving_domain: Domain in which the models are compared.
        domains: Domains in which the models are tested: all trained domains, the serving domain and, with boxes that
            can be measured, `AUTOMATIC`.
        options: Options of the evaluation.
        located: Boxes of the step `locate`; None for none.
        labels: Labels of descriptors; None for none.
    """

    data: DataVersion
    serving_domain: str
    domains: tuple[str, ...]
    options: EvaluateOptions
    located: AutomaticBoxes | None = None
    labels: DescriptorTable | None = None

    @property
    def registry(self) -> Location | None:
        """Root of the registry; None for no registry."""
        return self.options.registry or None

    def examples(self, domain: str, split: str) -> pd.DataFrame:
        """Return the images of a split, and check that metrics can be computed on it.

        Raises:
            InputError: The domain is unknown, or the split lacks benign or malignant images.
        """
        table = self.data.examples(domain, split)
        if (count := table["label"].nunique()) < len(CLASSES):
            raise InputError(
                f"{self.data.folder}: the {split} split of the {domain} domain has images of {count} class(es), and "
                "metrics need both; add scans or deal the splits again with --given-splits ignore"
            )
        return table


class ScoredModel:
    """A trained model on its way through an evaluation.

    The steps are `load`, `lock` and `score_test`, in this order. The test set cannot be scored before the operating
    point is locked.

    Args:
        evaluation: The evaluation that the model is part of.
        folder: Output folder of the training.
        training: Record of the training (train.json).
    """

    def __init__(self, evaluation: Evaluation, folder: Path, training: TrainRecord) -> None:
        """Start with a model that is not loaded."""
        self.evaluation, self.folder, self.training = evaluation, folder, training
        self._network: Network | None = None
        self._point: OperatingPoint | None = None
        self._by_images: OperatingPoint | None = None
        self._clinical: ClinicalHead | None = None
        self._validation: pd.DataFrame | None = None
        self._test: pd.DataFrame | None = None
        self._test_by_images: pd.DataFrame | None = None

    @property
    def key(self) -> tuple[str, str]:
        """The backbone and the domain trained on, which identify a model within an evaluation."""
        return self.training.backbone, self.training.train_domain

    @property
    def name(self) -> str:
        """The key as text, such as "VGG16-cropped"."""
        return "-".join(self.key)

    def __str__(self) -> str:
        """Return the model in words."""
        return f"{self.training.backbone} trained on {self.training.train_domain}"

    @property
    def classes(self) -> Classes:
        """Classes of the data version."""
        return self.evaluation.data.classes

    @property
    def size(self) -> int:
        """Side of the model's images in pixels."""
        return self.training.image_size

    @property
    def cross_validated(self) -> bool:
        """Whether every development patient was scored by a model that did not see the patient."""
        return bool(self.training.folds and not self.training.only_fold)

    @cached_property
    def parts(self) -> pd.Series:
        """What the training used each image for ("train" or "validation"), by file.

        Raises:
            InputError: The folder is not the output of a finished training.
        """
        return record.parts(self.folder)

    @property
    def network(self) -> Network:
        """Network of the training."""
        if self._network is None:
            raise RuntimeError(f"{self}: load the network first")
        return self._network

    @property
    def point(self) -> OperatingPoint:
        """The locked operating point."""
        if self._point is None:
            raise RuntimeError(f"{self}: lock the operating point first")
        return self._point

    @property
    def clinical(self) -> ClinicalHead | None:
        """Head that adds clinical columns; None where the model uses the image alone."""
        return self._clinical

    @property
    def validation(self) -> pd.DataFrame:
        """Validation predictions in the serving domain, at the locked operating point."""
        if self._validation is None:
            raise RuntimeError(f"{self}: lock the operating point first")
        return self._validation

    @property
    def test(self) -> pd.DataFrame:
        """Test predictions in every domain, at the locked operating point."""
        if self._test is None:
            raise RuntimeError(f"{self}: score the test set first")
        return self._test

    @property
    def tested_by_images(self) -> pd.DataFrame:
        """Test predictions in the serving domain by the image alone, at the operating point locked on images alone."""
        if self._test_by_images is None:
            raise RuntimeError(f"{self}: score the test set first")
        return _in_domain(self._test_by_images, self.evaluation.serving_domain)

    def tested(self, domain: str) -> pd.DataFrame:
        """Return the test predictions in a domain."""
        return _in_domain(self.test, domain)

    def load(self) -> None:
        """Load the network of the training, and score the validation images with it.

        Raises:
            InputError: The checkpoint or the graph is missing, or is not the one that the training wrote.
        """
        self._network = Network.load(self.folder, self.training)
        table = self.evaluation.examples(self.evaluation.serving_domain, "validation")
        self._network.probabilities(self.evaluation.data.pixels(table, self.size), "validation images")

    def predict(self, domains: Sequence[str], split: str) -> pd.DataFrame:
        """Predict the images of a split in several domains.

        Args:
            domains: Domains of the images.
            split: Split of the images.

        Returns:
            One row per image with backbone, train_domain, domain, the columns of `DataVersion.examples` (file is the
            name within `DataVersion.images`, of an automatic crop within the folder of `locate`) and the network's own
            probabilities, not yet scaled.

        Raises:
            InputError: The split lacks benign or malignant images in a domain, or the probabilities are not finite.
        """
        parts, columns = [], Classes.from_record(self.training).columns
        for domain in domains:
            table = self._examples(domain, split)
            pixels = self.evaluation.data.pixels(table, self.size)
            table[columns] = self.network.probabilities(pixels, f"{split} images")
            table["file"] = table.pop("name")
            names = dict(zip(("backbone", "train_domain"), self.key, strict=True)) | {"domain": domain}
            parts.append(pd.concat([pd.DataFrame(names, table.index), table], axis=1))
        return pd.concat(parts, ignore_index=True)

    def _examples(self, domain: str, split: str) -> pd.DataFrame:
        """Return the images of a split as this model sees them."""
        located = self.evaluation.located
        if domain == AUTOMATIC and located is not None:
            return located.examples(self.training.train_domain)
        return self.evaluation.examples(domain, split)

    def lock(self, clinical: ClinicalHead | None = None) -> None:
        """Lock temperature, bias and threshold on the validation patients of the serving domain.

        Args:
            clinical: Head that the model uses from now on; None for the image alone. A model that uses one is locked on
                images alone before.

        Raises:
            RuntimeError: The test set was already scored.
        """
        if self._test is not None:
            raise RuntimeError(f"{self}: the test set was scored; its operating point cannot change any more")
        if clinical is None:
            log.info(f"locking {self} on validation")
            raw = self.predict([self.evaluation.serving_domain], "validation")
        else:
            raw = clinical.apply(predictions.unscaled(self.validation, self.classes), self.classes)
        options = self.evaluation.options
        self._clinical = clinical
        self._point = operating_point.lock(raw, self.classes, options.sensitivity, options.abstain)
        self._by_images = self._point if clinical is None else self._by_images
        self._validation = predictions.at_point(raw, self._point, self.classes)

    def score_test(self) -> None:
        """Score the test images of every domain at the locked operating point.

        Raises:
            RuntimeError: The operating point is not locked. It must not depend on the test set.
        """
        if self._point is None or self._by_images is None:
            raise RuntimeError(f"{self}: lock the operating point before the test set is read")
        log.info(f"scoring {self} on test")
        raw = self.predict(self.evaluation.domains, "test")
        self._test_by_images = predictions.at_point(raw.copy(), self._by_images, self.classes)
        fused = raw if self._clinical is None else self._clinical.apply(raw, self.classes)
        self._test = predictions.at_point(fused, self._point, self.classes)

    def mistakes(self) -> dict[str, pd.DataFrame]:
        """Return the test images that are called wrongly in the serving domain, the surest mistakes first."""
        tested = self.tested(self.evaluation.serving_domain)
        positive = tested["label"] == CLASSES[POSITIVE]
        called = tested[SCORE] >= self.point.threshold
        return {
            "false-negatives": tested[positive & ~called].sort_values(SCORE).reset_index(drop=True),
            "false-positives": tested[~positive & called].sort_values(SCORE, ascending=False).reset_index(drop=True),
        }

    def aurocs(self) -> dict[str, metrics.Interval]:
        """Return the AUROCs that a model can be chosen by: on validation and, if possible, cross-validated."""
        seed = self.evaluation.options.seed
        found = {"validation": performance.auroc(self.validation, seed)}
        if self.cross_validated:
            table = record.out_of_fold(self.folder, self.evaluation.serving_domain)
            found["cross_validation"] = performance.auroc(table, seed)
        return found

    def performance(self, table: pd.DataFrame) -> Performance:
        """Compute the metrics of predictions of this model; see `performance.of`."""
        options = self.evaluation.options
        return performance.of(table, self.classes, self.point, options.prevalence, options.seed)

    def record(self, chosen_by: dict[str, metrics.Interval]) -> ModelRow:
        """Build the model's row of the ranking.

        Args:
            chosen_by: Result of `aurocs`.
        """
        training = self.training
        kept = {"backbone", "train_domain", "recipe", "weights", "image_size", "parameters", "checkpoint", "seconds"}
        optional: dict[str, Any] = {"starts": training.starts.to_dict()} if training.starts else {}
        if training.settings:
            optional["tuned"] = training.settings.describe()
        if "cross_validation" in chosen_by:
            optional["cross_validation"] = AUROC(auroc=chosen_by["cross_validation"])
        return ModelRow(
            **training.model_dump(include=kept),
            **optional,
            bytes=(self.folder / training.checkpoint).stat().st_size,
            operating_point=LockedPoint(**self.point.to_dict(), sensitivity=self.evaluation.options.sensitivity),
            validation=self._record_validation(chosen_by["validation"]),
            test={domain: self.performance(self.tested(domain)) for domain in self.evaluation.domains},
        )

    def _record_validation(self, auroc: metrics.Interval) -> ValidationPerformance:
        """Measure the operating point on the images that it was locked on."""
        found = self.performance(self.validation)
        kept = ("n", "patients", "macro_auroc", "sensitivity", "specificity", "ece", "ece_unscaled")
        malignant = sum(found.patient_level.confusion[POSITIVE])
        return ValidationPerformance(
            auroc=auroc, malignant_patients=malignant, **{name: getattr(found, name) for name in kept}
        )


@dataclass(frozen=True)
class Ranking:
    """The models in the order of their AUROC, best first.

    Attributes:
        ranked_by: Name of the AUROC that ranks them, "validation" or "cross_validation".
        models: The models, and the AUROCs that they can be chosen by.
    """

    ranked_by: str
    models: Sequence[tuple[ScoredModel, dict[str, metrics.Interval]]]

    @property
    def winner(self) -> ScoredModel:
        """The best model."""
        return self.models[0][0]


def read(folder: Path, models: Sequence[Path], options: EvaluateOptions) -> tuple[Evaluation, list[ScoredModel]]:
    """Read a data version and the trainings to evaluate on it.

    Args:
        folder: Data version of `crop`.
        models: Output folders of `train`.
        options: Options of the evaluation.

    Returns:
        The evaluation, and its models in the order of `models`.

    Raises:
        InputError: There is no training, a folder is not a finished training, a training is of other scans or images,
            one backbone is given twice on a domain, the boxes do not fit the data version, or the labels of descriptors
            cannot be used.
    """
    data = DataVersion.read(folder)
    trainings = [(model, record.read(model)) for model in models]
    if not trainings:
        raise InputError("there is no model to evaluate")
    for model, training in trainings:
        record.require_data(model, training, data)
    trained = [domain for domain in tables.DOMAINS if domain in {training.train_domain for _, training in trainings}]
    first = next((domain for domain in data.domains if domain in trained), trained[0])
    serving = options.serving_domain or first
    located = None if options.locate is None else AutomaticBoxes.read(options.locate, data)
    extra = [] if located is None or located.problem is not None else [AUTOMATIC]
    labels = DescriptorTable.read(options.descriptors, data.used) if options.descriptors else None
    evaluation = Evaluation(data, serving, tuple(dict.fromkeys([*trained, serving, *extra])), options, located, labels)
    scored = [ScoredModel(evaluation, model, training) for model, training in trainings]
    keys = [model.key for model in scored]
    if twice := [key for key in keys if keys.count(key) > 1]:
        raise InputError(f"{twice[0][0]} trained on {twice[0][1]} is given twice; compare one recipe at a time")
    return evaluation, scored


def load_all(models: Sequence[ScoredModel]) -> None:
    """Load every model's network in parallel, because TensorFlow prepares a graph on one core."""
    evaluation = models[0].evaluation
    table = evaluation.examples(evaluation.serving_domain, "validation")
    for size in {model.size for model in models}:
        evaluation.data.pixels(table, size)
    with ThreadPoolExecutor(cores.available()) as pool:
        list(progress.bar(pool.map(ScoredModel.load, models), len(models), "load networks", "network"))


def rank(models: Sequence[ScoredModel]) -> Ranking:
    """Rank the models by their cross-validated AUROC if all have one, otherwise by that on validation."""
    rows = [(model, model.aurocs()) for model in models]
    ranked_by = "cross_validation" if all("cross_validation" in found for _, found in rows) else "validation"
    rows.sort(key=lambda row: (-(row[1][ranked_by].value or 0), row[0].training.parameters))
    return Ranking(ranked_by, rows)


def _in_domain(table: pd.DataFrame, domain: str) -> pd.DataFrame:
    return table[table["domain"] == domain].reset_index(drop=True)
