"""scans -> ingest -> crop -> features -> heads x n -> rank -> images x n -> settings: the search as a pipeline."""

from collections.abc import Callable
from typing import Any

from kfp import dsl

from components.crop import crop
from components.crop_shard import crop_shard
from components.ingest import ingest
from components.ingest_shard import ingest_shard
from components.sweep_conclude import sweep_conclude
from components.sweep_heads import sweep_heads
from components.sweep_images import sweep_images
from components.sweep_prepare import sweep_prepare
from components.sweep_rank import sweep_rank
from pipelines import shards as in_shards
from pipelines.cluster import NEEDS, Cluster, limits, place
from thyroid.crop import CropOptions
from thyroid.ingest.options import IngestOptions
from thyroid.train.options import TrainOptions
from thyroid.train.settings import UNSET

WORKERS = 4
"""Number of pods per stage on a cluster."""


def sweep_pipeline(
    backbone: str, workers: int = WORKERS, cluster: Cluster | None = None, cores: int = 0, shards: int = 1
) -> Callable[..., Any]:
    """Return the pipeline that searches the settings of one backbone.

    Args:
        backbone: Backbone to search for.
        workers: Number of workers per stage.
        cluster: Cluster to run on; None for this machine.
        cores: Cores of each worker; 0 for those that its pod requests.
        shards: Number of pods that ingest and crop side by side, 1 to 64.
    """
    numbers = list(range(1, workers + 1))

    @dsl.pipeline(
        name="thyroid-sweep",
        display_name="Thyroid nodules: settings of the training",
        description="Hyper-parameter search on the development patients; the test set is not read. Research use only.",
        pipeline_config=limits(
            cluster,
            *["ingest", "crop"] * min(shards, 2),  # shards run side by side
            "sweep_prepare",
            *["sweep_heads", "sweep_images"] * workers,
            "sweep_rank",
            "sweep_conclude",
        ),
    )
    def thyroid_sweep(
        scans: str,
        store: str,
        rois: str = "",
        crops: str = "",
        labels: str = "",
        classes: str = IngestOptions.classes,
        domains: str = "",
        weights: str = TrainOptions.weights,
        image_size: int = TrainOptions.image_size,
        epochs: int = TrainOptions.epochs,
        batch_size: int = TrainOptions.batch_size,
        head_trials: int = 200,
        image_trials: int = 24,
        folds: int = 5,
        given_splits: str = IngestOptions.given_splits,
        site: str = IngestOptions.site,
        seed: int = IngestOptions.seed,
    ) -> None:
        """Hyper-parameter search on the development patients; the test set is not read. Research use only.

        Args:
            scans: Folder, gs:// or s3:// prefix of frames named B_001-0002-1.0.jpg, or DICOM files that its dicom.csv names; train and test folders in it are given splits.
            store: Folder on the volume, or gs:// or s3:// prefix, that all workers see; its folder sweeps holds the studies, and a run that is started again resumes them.
            rois: CSV with filename, x, y, width, height of the nodules; empty for none.
            crops: Folder, gs:// or s3:// prefix of images that are already cropped; empty for none.
            labels: CSV with filename and label for the class of every scan, labels.csv#column for another column than label; empty for the file names' class.
            classes: Classes in their order, benign|malignant, such as 2<3|4a<4b<4c<5 for grades; B|M for the file names' letters.
            domains: normal, cropped or both with a comma, of which the first is searched; empty for cropped where there are regions, else normal.
            weights: imagenet, none, a *.weights.h5 file or a folder of them, also in a bucket; give new files a new folder, since the cache knows the path.
            image_size: Side of the input in the first stage; the second tries half and half as much again, too.
            epochs: Epochs of fine-tuning in a trial.
            batch_size: Images per step of fine-tuning.
            head_trials: Trials on cached features.
            image_trials: Trials from the images; 0 for none.
            folds: Folds of the cross-validation by patient in every trial.
            given_splits: Given train and test folders that share a patient: separate, keep or ignore.
            site: Name of the cohort, such as the hospital, within which equal patient numbers mean the same patient. Its patients keep their splits wherever the scans are stored; empty for the cohort that the same scans had before.
            seed: Seed of splits, folds, training and proposals.
        """  # noqa: E501
        # nothing is registered in the store, so everything counts as new
        ingested = ingest(
            scans=scans,
            rois=rois,
            crops=crops,
            labels=labels,
            classes=classes,
            given_splits=given_splits,
            site=site,
            store=store,
            registry=store,
            minimum=0,
            train_on="new",
            recipe="",
            settings="",
            seed=seed,
        )
        place(ingested, "ingest", cluster).set_caching_options(False)
        in_shards.put_before(
            ingested,
            ingest_shard,
            "ingest",
            shards,
            cluster,
            scans=scans,
            rois=rois,
            crops=crops,
            labels=labels,
            classes=classes,
            store=store,
        )
        cropped = crop(
            data=ingested.outputs["data"],
            fingerprint=ingested.outputs["version"],
            domains=domains,
            recipe="",
            settings="",
            margin=UNSET,  # which margin is best is what the search looks for
            jitter=CropOptions.jitter,
            store=store,
        )
        place(cropped, "crop", cluster).set_caching_options(False)
        in_shards.put_before(
            cropped,
            crop_shard,
            "crop",
            shards,
            cluster,
            data=ingested.outputs["data"],
            recipe="",
            settings="",
            margin=UNSET,
            jitter=CropOptions.jitter,
            store=store,
        )
        prepared = sweep_prepare(
            images=cropped.outputs["images"],
            fingerprint=cropped.outputs["version"],
            backbone=backbone,
            weights=weights,
            image_size=image_size,
            epochs=epochs,
            batch_size=batch_size,
            folds=folds,
            store=store,
            seed=seed,
        )
        # the store records what has been done
        place(prepared, "sweep_prepare", cluster, backbone).set_caching_options(False)
        with dsl.ParallelFor(numbers, name="heads") as number:
            # only artifacts come from other steps: kfp.local replaces their parameters with the number (kfp 2.17)
            head = sweep_heads(
                study=prepared.outputs["study"],
                worker=number,
                trials=head_trials,
                cores=cores or int(NEEDS["sweep_heads"].cpu),
            )
            place(head, "sweep_heads", cluster).set_caching_options(False)
        ranked = sweep_rank(study=prepared.outputs["study"], finished=dsl.Collected(head.outputs["finished"]))
        place(ranked, "sweep_rank", cluster).set_caching_options(False)
        with dsl.ParallelFor(numbers, name="images") as number:
            image = sweep_images(
                ranked=ranked.outputs["ranked"],
                images=cropped.outputs["images"],
                data=ingested.outputs["data"],
                weights=weights,
                worker=number,
                trials=image_trials,
                cores=cores or int(NEEDS["sweep_images"].cpu),
            )
            place(image, "sweep_images", cluster, backbone).set_caching_options(False)
        concluded = sweep_conclude(ranked=ranked.outputs["ranked"], finished=dsl.Collected(image.outputs["finished"]))
        place(concluded, "sweep_conclude", cluster).set_caching_options(False)

    pipeline: Callable[..., Any] = thyroid_sweep
    return pipeline
