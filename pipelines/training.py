"""scans -> ingest -> crop -> (locate beside train x 5) -> evaluate -> register -> deploy."""

from collections.abc import Callable, Sequence
from typing import Any

from kfp import dsl

from components.conclude import conclude
from components.crop import crop
from components.crop_shard import crop_shard
from components.deploy import deploy
from components.evaluate import evaluate
from components.ingest import ingest
from components.ingest_shard import ingest_shard
from components.locate import locate
from components.register import register
from components.rest import rest
from components.train import train
from pipelines import shards as in_shards
from pipelines.cluster import Cluster, limits, place
from thyroid.crop import CropOptions
from thyroid.deploy.options import DeployOptions
from thyroid.evaluate.options import EvaluateOptions
from thyroid.ingest.options import IngestOptions
from thyroid.locate.options import LocateOptions
from thyroid.model.backbones import BACKBONES
from thyroid.registry.changes import TRAIN
from thyroid.train.options import TrainOptions
from thyroid.train.settings import UNSET


def training_pipeline(
    backbones: Sequence[str] = tuple(BACKBONES), cluster: Cluster | None = None, shards: int = 1
) -> Callable[..., Any]:
    """Return the pipeline with one named training per backbone.

    Args:
        backbones: Backbones to train.
        cluster: Cluster to run on; None for this machine.
        shards: Number of pods that ingest and crop side by side, 1 to 64; more than one need a store.
    """

    @dsl.pipeline(
        name="thyroid-training",
        display_name="Thyroid nodules: scans to endpoint",
        description="Ultrasound scans to a served thyroid nodule classifier. Research use only.",
        pipeline_config=limits(
            cluster,
            *["ingest", "crop"] * min(shards, 2),  # shards run side by side
            *["train"] * len(backbones),
            "locate",
            "evaluate",
            "register",
            "deploy",
            "conclude",
        ),
    )
    def thyroid_training(
        scans: str,
        registry: str,
        rois: str = "",
        crops: str = "",
        labels: str = "",
        classes: str = IngestOptions.classes,
        domains: str = "",
        margin: float = UNSET,
        jitter: float = CropOptions.jitter,
        serving_domain: str = EvaluateOptions.serving_domain,
        sensitivity: float = EvaluateOptions.sensitivity,
        abstain: float = EvaluateOptions.abstain,
        prevalence: float = EvaluateOptions.prevalence,
        clinical: str = "",
        descriptors: str = "",
        waive: str = "",
        shadow: int = EvaluateOptions.shadow,
        weights: str = TrainOptions.weights,
        image_size: int = TrainOptions.image_size,
        epochs: int = TrainOptions.epochs,
        batch_size: int = TrainOptions.batch_size,
        recipe: str = TrainOptions.recipe,
        settings: str = "",
        folds: int = TrainOptions.folds,
        unsure: float = LocateOptions.unsure,
        store: str = "",
        minimum: int = 0,
        train_on: str = "new",
        given_splits: str = IngestOptions.given_splits,
        site: str = IngestOptions.site,
        seed: int = IngestOptions.seed,
        run: str = "",
        hub: str = "",
        namespace: str = DeployOptions.namespace,
        canary: int = DeployOptions.canary,
        min_replicas: int = DeployOptions.min_replicas,
        serving_gpu: bool = DeployOptions.serving_gpu,
    ) -> None:
        """Ultrasound scans to a served thyroid nodule classifier. Research use only.

        Args:
            scans: Folder, gs:// or s3:// prefix of frames named B_001-0002-1.0.jpg, or DICOM files that its dicom.csv names; train and test folders in it are given splits.
            registry: Root of the model registry: a folder (on Kubeflow on the volume), or a gs:// or s3:// prefix.
            rois: CSV with filename, x, y, width, height of the nodules; empty for none.
            crops: Folder, gs:// or s3:// prefix of images that are already cropped; empty for none.
            labels: CSV with filename and label for the class of every scan, labels.csv#column for another column than label; empty for the file names' class.
            classes: Classes in their order, benign|malignant, such as 2<3|4a<4b<4c<5 for grades; B|M for the file names' letters.
            domains: normal, cropped or both with a comma; empty for cropped where there are regions, else normal.
            margin: Share of a nodule's own width and height by which its crop is wider on each side, 0 to 2; -1 for the margin that the settings name, else 0.5.
            jitter: Multiple of a locator's errors by which a second crop of each training nodule is disturbed, 0 to 2; half of what a model learns from are these crops, so that it can be used with automatic boxes; 0 for none, as the deck's recipe always has it.
            serving_domain: Domain in which the models are compared and the endpoint is used, normal or cropped; empty for the first trained domain.
            sensitivity: Share of malignant validation images that the threshold must catch.
            abstain: Share of validation images to leave undecided.
            prevalence: Share of malignant nodules where the model would be used.
            clinical: CSV with filename or patient and any columns to explore and to look at subgroups by; clinical.csv#age,sex also lets the model use these columns (#* all); empty for none.
            descriptors: CSV with filename or patient and the ACR TI-RADS features of each scan's nodule, which the model then tells as far as the data can show them; labels.csv#shape,margin=margins names the columns; empty for none.
            waive: Audits whose failure the champion gate lets pass, with a comma: shortcut, leakage, clinical; empty for none.
            shadow: Live pictures that a model which holds every criterion must have judged behind the champion before it is released, for which the watch must read the endpoint's log; 0 releases it at once.
            weights: imagenet, none, a *.weights.h5 file or a folder of them, also in a bucket; give new files a new folder, since the cache knows the path.
            image_size: Side of the model's square input in pixels.
            epochs: Epochs of fine-tuning.
            batch_size: Images per step of fine-tuning.
            recipe: two-phase, frozen (its first phase alone), warm (from the champion where that is as good) or deck (the slide deck's, mistakes included).
            settings: settings.json of a sweep, also in a bucket, whose recipe replaces the one given here; give new settings a new path, since the cache knows the path; empty for the recipe's own settings.
            folds: 0, or folds of a cross-validation by patient, by which models are then compared.
            unsure: Share of validation frames whose automatic box is left unsure, 0 for none; the endpoint abstains on such boxes.
            store: Folder (on Kubeflow on the volume), or gs:// or s3:// prefix, that keeps data versions, crops, feature maps and stopped trainings, so that a run processes only what is new; empty for none.
            minimum: Scans new, changed or removed since the last registered model that are worth a training; 0 trains in any case.
            train_on: new, or drift to train below the minimum, too, when python -m thyroid.watch last said of the champion that it drifts or is worse, and at least one scan is new, changed or removed.
            given_splits: Given train and test folders that share a patient: separate, keep or ignore.
            site: Name of the cohort, such as the hospital, within which equal patient numbers mean the same patient. Its patients keep their splits wherever the scans are stored; empty for the cohort that the same scans had before.
            seed: Seed of splits, initialisation, shuffling and bootstrap.
            run: Content of a run.yaml, which the registry keeps with the model; the commands run, submit and schedule fill it in.
            hub: Address of Kubeflow Hub in which the model is entered as well, URL#NAME for another name than thyroid; empty for the one that the registry's earlier models are in, if any.
            namespace: Namespace of the InferenceService; empty for the pipeline's own (on a cluster) or no deployment (elsewhere).
            canary: Percentage of requests that the new model gets at first; 0 switches all of them at once.
            min_replicas: Smallest number of replicas of the endpoint; 0 scales to zero between requests (Knative mode).
            serving_gpu: Serve the model on a GPU.
        """  # noqa: E501
        concluded = place(conclude(registry=registry), "conclude", cluster).set_display_name("conclude")
        concluded.set_caching_options(False)
        with dsl.ExitHandler(concluded, name="scans to endpoint"):
            ingested = ingest(
                scans=scans,
                rois=rois,
                crops=crops,
                labels=labels,
                classes=classes,
                given_splits=given_splits,
                site=site,
                store=store,
                registry=registry,
                minimum=minimum,
                train_on=train_on,
                recipe=recipe,
                settings=settings,
                seed=seed,
            )
            # the cache would not notice new scans in the same folder
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
            with dsl.If(ingested.outputs["verdict"] == TRAIN, name="enough is new"):
                version = ingested.outputs["version"]
                cropped = crop(
                    data=ingested.outputs["data"],
                    fingerprint=version,
                    domains=domains,
                    recipe=recipe,
                    settings=settings,
                    margin=margin,
                    jitter=jitter,
                    store=store,
                )
                # the store serves as the cache, since it knows which images still exist
                place(cropped, "crop", cluster).set_caching_options(False)
                in_shards.put_before(
                    cropped,
                    crop_shard,
                    "crop",
                    shards,
                    cluster,
                    data=ingested.outputs["data"],
                    recipe=recipe,
                    settings=settings,
                    margin=margin,
                    jitter=jitter,
                    store=store,
                )
                images, version = cropped.outputs["images"], cropped.outputs["version"]
                models = {}
                for backbone in backbones:
                    task = train(
                        images=images,
                        fingerprint=version,
                        backbone=backbone,
                        weights=weights,
                        image_size=image_size,
                        epochs=epochs,
                        batch_size=batch_size,
                        recipe=recipe,
                        settings=settings,
                        folds=folds,
                        store=store,
                        registry=registry,
                        champion=ingested.outputs["champion"],
                        seed=seed,
                    )
                    models[backbone] = place(task, "train", cluster, backbone).set_display_name(f"train-{backbone}")
                # only the evaluation needs it, so it runs beside the trainings
                located = locate(
                    data=ingested.outputs["data"],
                    images=images,
                    fingerprint=version,
                    weights=weights,
                    unsure=unsure,
                    recipe=recipe,
                    store=store,
                    registry=registry,
                    champion=ingested.outputs["champion"],
                    seed=seed,
                )
                place(located, "locate", cluster)
                evaluated = evaluate(
                    images=images,
                    boxes=located.outputs["boxes"],
                    serving_domain=serving_domain,
                    sensitivity=sensitivity,
                    abstain=abstain,
                    prevalence=prevalence,
                    clinical=clinical,
                    descriptors=descriptors,
                    registry=registry,
                    waive=waive,
                    shadow=shadow,
                    seed=seed,
                    **{backbone: task.outputs["model"] for backbone, task in models.items()},
                )
                # the cache would not notice a new champion in the same registry, nor a service that was changed
                place(evaluated, "evaluate", cluster).set_caching_options(False)
                registered = register(evaluation=evaluated.outputs["evaluation"], registry=registry, run=run, hub=hub)
                place(registered, "register", cluster).set_caching_options(False)
                deployed = deploy(
                    summary=registered.outputs["summary"],
                    registry=registry,
                    namespace=namespace,
                    canary=canary,
                    min_replicas=min_replicas,
                    serving_gpu=serving_gpu,
                )
                place(deployed, "deploy", cluster).set_caching_options(False)
            # kfp.local skips an If without an Else, whatever its condition (kfp 2.17)
            with dsl.Else(name="nothing to do"):
                rested = rest(verdict=ingested.outputs["verdict"], registry=registry)
                place(rested, "rest", cluster).set_caching_options(False)

    pipeline: Callable[..., Any] = thyroid_training
    return pipeline
