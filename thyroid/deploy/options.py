"""The options of the deployment step."""

from dataclasses import dataclass
from typing import Annotated

from cyclopts import Parameter

from thyroid.errors import InputError

STANDARD, KNATIVE = "Standard", "Knative"


@dataclass(frozen=True)
class DeployOptions:
    """How the model is served.

    Attributes:
        namespace: Namespace of the InferenceService; empty for the pod's own. Outside a cluster, only the manifest is
            written without it.
        canary: Percentage of requests that the new model gets at first, 0 to 99; 0 switches all of them at once.
        min_replicas: Smallest number of replicas, 0 to 100. 0 scales to zero between requests, which requires KServe's
            Knative mode. A larger number uses Standard mode.
        serving_gpu: Serve the Keras form on one nvidia.com/gpu.
        timeout: Seconds to wait until the version answers, at most a day.

    Raises:
        InputError: `canary`, `min_replicas` or `timeout` is out of range.
    """

    namespace: str = ""
    canary: int = 0
    min_replicas: int = 1
    serving_gpu: Annotated[bool, Parameter(name="--gpu")] = False
    timeout: float = 900.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 0 <= self.canary <= 99:
            raise InputError(f"canary {self.canary}: give a percentage from 0 (all at once) to 99")
        if not 0 <= self.min_replicas <= 100:
            raise InputError(f"min_replicas {self.min_replicas}: give a number from 0 (scale to zero) to 100")
        if not 0 < self.timeout <= 86400:
            raise InputError(f"timeout {self.timeout}: give seconds, at most 86400 (a day)")

    @property
    def mode(self) -> str:
        """KServe's deployment mode, "Standard" or "Knative"."""
        return STANDARD if self.min_replicas else KNATIVE
