"""What runs and their steps get on a cluster: resources, GPUs, volumes, queues, retries, time-outs and deadlines."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kfp import dsl, kubernetes
from kubernetes.utils.quantity import parse_quantity

from thyroid.errors import InputError
from thyroid.model.backbones import BACKBONES
from thyroid.notify.receivers import RUN, VARIABLES
from thyroid.storage import volume
from thyroid.storage.mirror import LIMIT_VARIABLE

USER = 10001
"""User and group id of the processes in the images; see images/Dockerfile."""

RETRIES = 2
SHARED_MEMORY = "2Gi"
KEYED = ("ingest", "train", "locate", "evaluate", "register", "validate", "watch")
"""Steps that name patients by keyed hashes: those of DICOM scans, and those that a registered model was trained on."""
NOTIFYING = ("register", "deploy", "rest", "conclude", "watch")
"""Steps that tell people by webhook what happened."""
KEY_FOLDER = "/secret/gcs"
S3_FIELDS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL", "AWS_REGION")
"""Fields of the secret for s3://, which become variables of the same names. KServe reads the first two, too."""
CACHE_FOLDER = "/cache"
"""Where a step keeps what it has read from buckets. Its volume is its own, and user 10001 may write to it."""
WAITING_HOURS = 24
"""Hours of a run's deadline in which its pods may wait for nodes or in a queue, and failed steps may be tried again."""
_NAME = re.compile("[a-z0-9]([-.a-z0-9]{0,61}[a-z0-9])?")
_QUANTITY = re.compile("[1-9][0-9]*(Mi|Gi|Ti|M|G|T)")


@dataclass(frozen=True)
class Needs:
    """What a step's pod requests, and how long it may run.

    Attributes:
        cpu: CPU request in cores.
        memory_request: Memory request as a Kubernetes quantity; empty for that of the backbone.
        memory_limit: Memory limit as a Kubernetes quantity; empty for that of the backbone.
        hours: Time-out of the step in hours.
    """

    cpu: str
    memory_request: str
    memory_limit: str
    hours: float


NEEDS = {
    # Both use 0.4 GB, measured on 20,000 scans with bench/scale.py; the rest is headroom for larger frames. The tables
    # of a million scans take ingest 1.7 GB beside its workers, and 1.9 GB while near-duplicates are found.
    "ingest": Needs("2", "1G", "4G", 6),
    "crop": Needs("2", "1G", "2G", 6),
    # The memory is the backbone's own; see docs/results.md.
    "train": Needs("4", "", "", 24),
    # It holds feature maps of the training frames as float16, paged from a file beyond its budget.
    "locate": Needs("4", "3G", "6G", 12),
    # They hold images and maps as a training does.
    "sweep_prepare": Needs("4", "", "", 6),
    "sweep_images": Needs("4", "", "", 24),
    # It holds features of 50,000 images from three taps, and no TensorFlow.
    "sweep_heads": Needs("2", "2G", "6G", 12),
    "sweep_rank": Needs("1", "512M", "2G", 1),
    "sweep_conclude": Needs("1", "1G", "4G", 1),
    # It holds at most 4 GB of images and maps (inputs.MEMORY_BUDGET), five networks with .7 GB of weights, and the
    # largest backbone's activations for a batch of 32.
    "evaluate": Needs("4", "4G", "12G", 4),
    "register": Needs("1", "512M", "1G", 1),
    # It holds the predictions and a few images at a time, and OpenVINO's networks.
    "validate": Needs("4", "2G", "6G", 4),
    # It holds a year's log, and judges new scans as a validation does.
    "watch": Needs("4", "2G", "6G", 4),
    "deploy": Needs("1", "512M", "1G", 1),
    "rest": Needs("1", "512M", "1G", 1),
    "conclude": Needs("1", "512M", "1G", 1),
}


ON_GPU = ("train", "locate", "sweep_prepare", "sweep_images")
"""Steps whose work is done by TensorFlow."""


@dataclass(frozen=True)
class Cluster:
    """Options that differ from cluster to cluster.

    Attributes:
        gpus: GPUs of a training pod, 0 to 16; 0 trains on CPUs.
        accelerator: Resource name of a GPU.
        node_selector: Labels of the nodes for training, for instance {"cloud.google.com/gke-accelerator": "nvidia-l4"}.
        claim: PersistentVolumeClaim that every step mounts at /data; empty for none.
        gcs_secret: Secret with the key.json of a Google service account; empty for workload identity.
        s3_secret: Secret with the fields `S3_FIELDS`; empty for none. It and each of its fields are optional.
        cache: Limit of a step's cache of buckets, as a Kubernetes quantity. A pod that goes beyond it is evicted.
        token_secret: Secret whose field `token` the endpoint demands from clients. It is optional.
        key_secret: Secret whose field `key` is the key of the patients' pseudonyms. It is optional.
        hub_secret: Secret whose field `token` Kubeflow Hub demands. It is optional.
        notify_secret: Secret with the receivers of notifications. It and each of its fields are optional.
        queue: LocalQueue of Kueue in which the steps' pods wait for their quota; empty for none.
        priority_class: WorkloadPriorityClass of Kueue; empty for none. It needs a queue.
        deadline: Hours after which a run is ended, 0 to 8760; 0 for never. None for the time-outs of all steps one
            after another and `WAITING_HOURS`.
        keep: Days after which the workflow of a finished run is deleted with its pods and their logs, 0 to 365; 0
            leaves that to the installation.

    Raises:
        InputError: A number is out of its range, the cache is no quantity, a queue, priority class or secret for s3://
            is not a name of Kubernetes, or there is a priority class and no queue.
    """

    gpus: int = 1
    accelerator: str = "nvidia.com/gpu"
    node_selector: Mapping[str, str] = field(default_factory=dict)
    claim: str = volume.CLAIM
    gcs_secret: str = ""
    s3_secret: str = "thyroid-s3"
    cache: str = "100Gi"
    token_secret: str = "thyroid-token"
    key_secret: str = "thyroid-patient-key"
    hub_secret: str = "thyroid-hub"
    notify_secret: str = "thyroid-notify"
    queue: str = ""
    priority_class: str = ""
    deadline: int | None = None
    keep: int = 7

    def __post_init__(self) -> None:
        """Check the numbers and the names."""
        if not 0 <= self.gpus <= 16:
            raise InputError(f"--gpus {self.gpus}: give 0 to 16 GPUs per training")
        if not 0 <= (self.deadline or 0) <= 8760:
            raise InputError(f"--deadline {self.deadline}: give 1 to 8760 hours, or 0 for none")
        if not 0 <= self.keep <= 365:
            raise InputError(f"--keep {self.keep}: give 1 to 365 days, or 0 to leave it to the installation")
        if not _QUANTITY.fullmatch(self.cache):
            raise InputError(f"--cache {self.cache}: give a quantity such as 100Gi")
        names = {"--queue": self.queue, "--priority-class": self.priority_class, "--s3-secret": self.s3_secret}
        for option, name in names.items():
            if name and not _NAME.fullmatch(name):
                raise InputError(
                    f"{option} {name}: give at most 63 lower-case letters, digits, hyphens and dots, with a letter or "
                    "digit at either end"
                )
        if self.priority_class and not self.queue:
            raise InputError(f"--priority-class {self.priority_class}: give --queue, too; Kueue orders a queue by it")


def limits(cluster: Cluster | None, *steps: str) -> dsl.PipelineConfig | None:
    """Return after what time a run is ended, and after what time a finished one is deleted.

    Without a deadline a pod that no node can take would keep its run, and a schedule's next runs, waiting for ever: a
    step's own time-out only begins when a node takes its pod.

    Args:
        cluster: The cluster to run on; None for this machine, which limits nothing.
        steps: Name in `NEEDS` of every task of a run, such as five times train.
    """
    if cluster is None:
        return None
    usual = WAITING_HOURS + sum(NEEDS[step].hours for step in steps)
    hours = usual if cluster.deadline is None else cluster.deadline
    return dsl.PipelineConfig(
        active_deadline_seconds=round(hours * 3600) or None,
        ttl_seconds_after_finished=cluster.keep * 86400 or None,
    )


def place(task: Any, step: str, cluster: Cluster | None, backbone: str = "") -> Any:
    """Set a task's resources, queue, retries, time-out, volumes and secrets for a cluster.

    Without a cluster the task is returned unchanged, since local runs retry nothing.

    Args:
        task: The step's task in the kfp pipeline.
        step: Name of the step in `NEEDS`.
        cluster: The cluster to run on; None for this machine.
        backbone: Backbone that sets the task's memory; empty for the memory in `NEEDS`.

    Returns:
        The same task.
    """
    if cluster is None:
        return task
    needs = NEEDS[step]
    memory = (needs.memory_request, needs.memory_limit)
    if backbone:
        memory = (BACKBONES[backbone].memory_request, BACKBONES[backbone].memory_limit)
    task.set_cpu_request(needs.cpu)
    task.set_memory_request(memory[0]).set_memory_limit(memory[1])
    if step != "conclude":  # kfp does not allow an exit handler to be retried
        task.set_retry(RETRIES, backoff_duration="60s", backoff_factor=2.0, backoff_max_duration="600s")
    kubernetes.set_timeout(task, round(needs.hours * 3600))
    kubernetes.set_image_pull_policy(task, "IfNotPresent")  # tags are commits and never change
    # kfp-kubernetes 2.17 cannot set a pod's fsGroup, so manifests/base/volume.yaml makes the volume writable for USER.
    kubernetes.set_security_context(task, run_as_user=USER, run_as_group=USER, run_as_non_root=True)
    kubernetes.add_pod_label(task, "app.kubernetes.io/part-of", "thyroid")
    # Kueue's integration of plain pods reads both labels. kfp-kubernetes 2.17 cannot set a pod's own priorityClassName.
    if cluster.queue:
        kubernetes.add_pod_label(task, "kueue.x-k8s.io/queue-name", cluster.queue)
    if cluster.priority_class:
        kubernetes.add_pod_label(task, "kueue.x-k8s.io/priority-class", cluster.priority_class)
    if cluster.claim:
        kubernetes.mount_pvc(task, cluster.claim, volume.MOUNT)
    _give_secrets(task, step, cluster)
    if step in ("register", "deploy"):
        task.set_env_variable("THYROID_CLAIM", cluster.claim)
    if step in ON_GPU:
        # TensorFlow passes batches between processes and GPUs through shared memory. A pod has 64 MB by default.
        kubernetes.empty_dir_mount(task, "shared-memory", "/dev/shm", medium="Memory", size_limit=SHARED_MEMORY)
        if cluster.gpus:
            task.set_accelerator_type(cluster.accelerator).set_accelerator_limit(cluster.gpus)
            kubernetes.add_toleration(task, key=cluster.accelerator, operator="Exists", effect="NoSchedule")
        for label, value in cluster.node_selector.items():
            kubernetes.add_node_selector(task, label, value)
    kubernetes.empty_dir_mount(task, "cache", CACHE_FOLDER, size_limit=cluster.cache)
    task.set_env_variable("XDG_CACHE_HOME", CACHE_FOLDER)
    # A fifth is left for what is written between two measurements, and for files that are in use.
    task.set_env_variable(LIMIT_VARIABLE, str(int(parse_quantity(cluster.cache) * 4 // 5)))
    return task


def _give_secrets(task: Any, step: str, cluster: Cluster) -> None:
    """Give a step the secrets of buckets, and those of whatever else it speaks to."""
    if cluster.gcs_secret:
        kubernetes.use_secret_as_volume(task, cluster.gcs_secret, KEY_FOLDER)
        task.set_env_variable("GOOGLE_APPLICATION_CREDENTIALS", f"{KEY_FOLDER}/key.json")
    if cluster.s3_secret:
        kubernetes.use_secret_as_env(task, cluster.s3_secret, {name: name for name in S3_FIELDS}, optional=True)
    if step in KEYED:
        kubernetes.use_secret_as_env(task, cluster.key_secret, {"key": "THYROID_PATIENT_KEY"}, optional=True)
    if step in NOTIFYING:
        kubernetes.use_secret_as_env(task, cluster.notify_secret, VARIABLES, optional=True)
        # KFP 2.16 leaves the placeholder of the run's id as it is in arguments of container components
        kubernetes.use_field_path_as_env(task, RUN, "metadata.labels['pipeline/runid']")
    if step in ("register", "deploy"):
        kubernetes.use_secret_as_env(task, cluster.hub_secret, {"token": "THYROID_HUB_TOKEN"}, optional=True)
    if step == "deploy":
        kubernetes.use_secret_as_env(task, cluster.token_secret, {"token": "THYROID_TOKEN"}, optional=True)
