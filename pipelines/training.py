"""scans -> ingest -> crop -> train x 5 -> evaluate -> register."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from kfp import dsl
from kfp.dsl import HTML, Artifact, Dataset

from components.crop import crop
from components.evaluate import evaluate
from components.ingest import ingest
from components.register import register
from components.train import train
from thyroid.backbones import BACKBONES


class Outputs(NamedTuple):
    data: Dataset
    report: HTML
    summary: Artifact


def training_pipeline(backbones: Sequence[str] = tuple(BACKBONES)) -> Callable[..., Any]:
    """The pipeline with one named training per backbone."""

    @dsl.pipeline(name="thyroid-training", description="Ultrasound scans to a registered thyroid nodule classifier.")
    def thyroid_training(
        scans: str,
        registry: str,
        rois: str = "",
        crops: str = "",
        domains: str = "",
        serving_domain: str = "",
        sensitivity: float = 0.95,
        abstain: float = 0.0,
        prevalence: float = 0.1,
        clinical: str = "",
        waive: str = "",
        weights: str = "imagenet",
        image_size: int = 224,
        epochs: int = 15,
        batch_size: int = 32,
        recipe: str = "two-phase",
        folds: int = 0,
        work: str = "",
        given_splits: str = "separate",
        previous: str = "",
        seed: int = 0,
    ) -> Outputs:
        """Ultrasound scans to a registered thyroid nodule classifier. Research use only.

        Args:
            scans: Folder of frames named B_001-0002-1.0.jpg; train and test folders in it are given splits.
            registry: Root of the model registry.
            rois: CSV with filename, x, y, width, height of the nodules; empty for none.
            crops: Folder of images that are already cropped; empty for none.
            domains: normal, cropped or both with a comma; empty for cropped where there are regions, else normal.
            serving_domain: Where models are compared; empty for the first trained domain.
            sensitivity: Share of malignant validation images that the threshold must catch.
            abstain: Share of validation images to leave undecided.
            prevalence: Share of malignant nodules where the model would be used.
            clinical: CSV with filename or patient and any columns to look at subgroups by; empty for none.
            waive: Audits whose failure the champion gate lets pass, with a comma: shortcut, leakage; empty for none.
            weights: imagenet, none, a *.weights.h5 file or a folder of them.
            image_size: Side of the model's square input in pixels.
            epochs: Epochs of fine-tuning.
            batch_size: Images a step while fine-tuning.
            recipe: two-phase, frozen (its first phase alone) or deck (the slide deck's, mistakes included).
            folds: 0, or folds of a cross-validation by patient, by which models are then compared.
            work: Folder on a volume that outlives a pod, where a stopped training goes on; empty for none.
            given_splits: Given train and test folders that share a patient: separate, keep or ignore.
            previous: Last data version, whose splits are kept; empty for none.
            seed: Of splits, initialisation, shuffling and bootstrap.
        """
        ingested = ingest(scans=scans, rois=rois, crops=crops, given_splits=given_splits, previous=previous, seed=seed)
        ingested.set_caching_options(False)  # the cache would not notice new scans in the same folder
        cropped = crop(data=ingested.outputs["data"], domains=domains)
        trained = {}
        for backbone in backbones:
            task = train(
                images=cropped.outputs["images"],
                backbone=backbone,
                weights=weights,
                image_size=image_size,
                epochs=epochs,
                batch_size=batch_size,
                recipe=recipe,
                folds=folds,
                work=work,
                seed=seed,
            )
            task.set_display_name(f"train-{backbone}")
            # measured: docs/results.md
            task.set_memory_request(BACKBONES[backbone].memory_request)
            task.set_memory_limit(BACKBONES[backbone].memory_limit)
            trained[backbone] = task
        evaluated = evaluate(
            images=cropped.outputs["images"],
            serving_domain=serving_domain,
            sensitivity=sensitivity,
            abstain=abstain,
            prevalence=prevalence,
            clinical=clinical,
            registry=registry,
            waive=waive,
            seed=seed,
            **{backbone: task.outputs["model"] for backbone, task in trained.items()},
        )
        evaluated.set_caching_options(False)  # the cache would not notice another champion in the same registry
        registered = register(evaluation=evaluated.outputs["evaluation"], registry=registry)
        registered.set_caching_options(False)
        return Outputs(cropped.outputs["images"], evaluated.outputs["report"], registered.outputs["summary"])

    return thyroid_training
