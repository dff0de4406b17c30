"""Compiles the pipelines for Kubeflow."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from google.protobuf import struct_pb2
from kfp import compiler
from kfp.compiler.compiler_utils import KubernetesManifestOptions

from components.step import image_name
from pipelines.cluster import Cluster
from pipelines.parameters import CHOICES
from pipelines.sweep import sweep_pipeline
from pipelines.training import training_pipeline
from pipelines.validation import validation_pipeline
from pipelines.watch import watch_pipeline
from thyroid.command import FLAT
from thyroid.errors import InputError
from thyroid.model import backbones as networks
from thyroid.shards import MOST

SWEPT = "VGG16"
"""The backbone whose settings are searched by default."""


@dataclass(frozen=True)
class Placement:
    """What is trained on a cluster, and where.

    Attributes:
        backbones: Backbones to train, with commas; empty for all. A search takes VGG16 unless there is exactly one.
        shards: Pods that ingest and crop side by side, 1 to 64; more than one need a store.
        gpus: GPUs of each training; 0 trains on CPUs.
        accelerator: Resource name of a GPU.
        node_selector: Label of the nodes for training, as LABEL=VALUE; may be repeated.
        claim: PersistentVolumeClaim that every step mounts at /data; empty for none.
        gcs_secret: Secret with the key.json of a Google service account; empty for workload identity.
        s3_secret: Secret for s3:// with the fields AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY and, if needed,
            AWS_ENDPOINT_URL and AWS_REGION; empty for none. The pods also start without it.
        cache: Limit of the cache that each pod keeps of a store in a bucket, such as 100Gi.
        queue: LocalQueue of Kueue in which the steps' pods wait for their quota; empty for none.
        priority_class: WorkloadPriorityClass of Kueue for the steps' pods; empty for none.
        deadline: Hours after which a run is ended; 0 for never. By default the time-outs of all its steps one after
            another, and a day in which they may wait.
        keep: Days after which a finished run's pods and their logs are deleted; 0 leaves that to the installation.
    """

    backbones: str = ""
    shards: int = 1
    gpus: int = Cluster.gpus
    accelerator: str = Cluster.accelerator
    node_selector: Sequence[str] = ()
    claim: str = Cluster.claim
    gcs_secret: str = Cluster.gcs_secret
    s3_secret: str = Cluster.s3_secret
    cache: str = Cluster.cache
    queue: str = Cluster.queue
    priority_class: str = Cluster.priority_class
    deadline: int | None = Cluster.deadline
    keep: int = Cluster.keep

    def __post_init__(self) -> None:
        """Check the number of shards."""
        if not 1 <= self.shards <= MOST:
            raise InputError(f"--shards {self.shards}: give 1 to {MOST}")

    @property
    def names(self) -> list[str]:
        """Names of the backbones as in `BACKBONES`.

        Raises:
            InputError: A backbone is unknown.
        """
        return (
            [networks.get(name).name for name in self.backbones.split(",")] if self.backbones else [*networks.BACKBONES]
        )

    @property
    def cluster(self) -> Cluster:
        """The cluster's options.

        Raises:
            InputError: A number is out of range, a name cannot be one, or a label has no value.
        """
        return Cluster(
            gpus=self.gpus,
            accelerator=self.accelerator,
            node_selector=pairs("--node-selector", self.node_selector),
            claim=self.claim,
            gcs_secret=self.gcs_secret,
            s3_secret=self.s3_secret,
            cache=self.cache,
            queue=self.queue,
            priority_class=self.priority_class,
            deadline=self.deadline,
            keep=self.keep,
        )


def pairs(option: str, given: Sequence[str]) -> dict[str, str]:
    """Split texts of the form NAME=VALUE.

    Args:
        option: Option that gives them, for the error message.
        given: The texts.

    Raises:
        InputError: A text holds no equals sign.
    """
    for text in given:
        if "=" not in text:
            raise InputError(f"{option} {text}: give it as NAME=VALUE")
    return dict(text.split("=", 1) for text in given)


def compile(
    *,
    placement: Annotated[Placement, FLAT] = Placement(),
    output: Path = Path("thyroid.yaml"),
    picture: Path | None = None,
) -> None:
    """Write the pipelines for the Kubeflow UI, and the training also as Kubernetes objects.

    Args:
        placement: What is trained, and where.
        output: YAML file of the training. The search is written to NAME-sweep.yaml, the external validation to
            NAME-validate.yaml, the watch to NAME-watch.yaml and the Kubernetes objects to NAME-version.yaml in the same
            folder.
        picture: PNG file of a drawing of the steps.

    Raises:
        InputError: An option is wrong.
    """
    compile_training(placement, output)
    search = output.with_name(f"{output.stem}-sweep.yaml")
    compile_sweep(placement, search)
    validation = output.with_name(f"{output.stem}-validate.yaml")
    compile_validation(placement, validation)
    watch = output.with_name(f"{output.stem}-watch.yaml")
    compile_watch(placement, watch)
    print(f"{output}: upload it in the Kubeflow UI under Pipelines")
    print(f"{_version_manifest(output)}: or apply it with kubectl, where pipelines are kept as objects")
    print(f"{search}: the search for settings; upload it in the same way")
    print(f"{validation}: a registered model on the scans of another site; upload it in the same way")
    print(f"{watch}: a released model since its release; upload it in the same way")
    if picture:
        from pipelines import draw

        draw.draw(output, picture)


def compile_training(placement: Placement, output: Path) -> None:
    """Compile the training pipeline to KFP's intermediate representation.

    The same pipeline is written next to it a second time, as Kubernetes objects Pipeline and PipelineVersion.

    Args:
        placement: What is trained, and where.
        output: YAML file to write; missing folders are created.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    pipeline = _with_choices(training_pipeline(placement.names, placement.cluster, placement.shards))
    compiler.Compiler().compile(pipeline, str(output))
    tag = re.sub("[^a-z0-9.-]", "-", image_name("train").rsplit(":", 1)[1].lower())
    options = KubernetesManifestOptions(
        pipeline_name="thyroid-training",
        pipeline_display_name="Thyroid nodules: scans to endpoint",
        pipeline_version_name=f"thyroid-training-{tag}",
        pipeline_version_display_name=tag,
        include_pipeline_manifest=True,
    )
    compiler.Compiler().compile(
        pipeline,
        str(_version_manifest(output)),
        kubernetes_manifest_options=options,
        kubernetes_manifest_format=True,
    )


def compile_sweep(placement: Placement, output: Path) -> None:
    """Compile the search for a backbone's settings.

    Args:
        placement: What is trained, and where. The search takes `SWEPT` unless there is exactly one backbone.
        output: YAML file to write.
    """
    names = placement.names
    backbone = names[0] if len(names) == 1 else SWEPT
    pipeline = sweep_pipeline(backbone, cluster=placement.cluster, shards=placement.shards)
    compiler.Compiler().compile(_with_choices(pipeline), str(output))


def compile_validation(placement: Placement, output: Path) -> None:
    """Compile the external validation of a registered model.

    Args:
        placement: Where it runs; it trains nothing.
        output: YAML file to write.
    """
    compiler.Compiler().compile(validation_pipeline(placement.cluster), str(output))


def compile_watch(placement: Placement, output: Path) -> None:
    """Compile the watch of a released model.

    Args:
        placement: Where it runs; it trains nothing.
        output: YAML file to write.
    """
    compiler.Compiler().compile(watch_pipeline(placement.cluster), str(output))


PIPELINES: dict[str, Callable[[Placement, Path], None]] = {
    "training": compile_training,
    "sweep": compile_sweep,
    "validate": compile_validation,
    "watch": compile_watch,
}
"""How each pipeline is compiled."""


def _with_choices(pipeline: Any) -> Any:
    """Add `CHOICES` to a pipeline: the UI then shows a menu, and the API server refuses other values.

    kfp's compiler does not write the field itself: 2.17 takes a parameter's type `Literal` for that of an artifact
    (kubeflow/pipelines#14098).
    """
    for name, parameter in pipeline.pipeline_spec.root.input_definitions.parameters.items():
        parameter.literals.extend(struct_pb2.Value(string_value=choice) for choice in CHOICES.get(name, ()))
    return pipeline


def _version_manifest(output: Path) -> Path:
    return output.with_name(f"{output.stem}-version.yaml")
