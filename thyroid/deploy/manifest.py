"""The InferenceService that a deployment asks of the cluster."""

from pathlib import Path

import yaml

from thyroid import RESEARCH_USE_ONLY
from thyroid.deploy.cluster import Object
from thyroid.deploy.options import KNATIVE, DeployOptions

_TEMPLATE = Path(__file__).with_name("inferenceservice.yaml")
_KNATIVE = {
    "serving.kserve.io/deploymentMode": KNATIVE,
    "serving.kserve.io/enable-tag-routing": "true",  # gives a canary its own address, at which it is tested
    "serving.kserve.io/enable-metric-aggregation": "true",
    "serving.kserve.io/enable-prometheus-scraping": "true",
}


def inference_service(version: int | str, uri: str, options: DeployOptions, digest: str = "") -> Object:
    """Build the InferenceService (serving.kserve.io/v1beta1) that serves a registered version with our ServingRuntime.

    Args:
        version: Number of the version.
        uri: Address of the version from `storage.volume.storage_uri`.
        options: How to serve.
        digest: Digest of the data that the model was made of; empty leaves out its annotation.
    """
    body: Object = yaml.safe_load(_TEMPLATE.read_text())
    metadata, predictor = body["metadata"], body["spec"]["predictor"]
    model = predictor["model"] | {"storageUri": uri}
    metadata["labels"]["thyroid/version"] = str(version)
    metadata["annotations"] |= {"thyroid/notice": RESEARCH_USE_ONLY} | (
        {"thyroid/data-digest": digest} if digest else {}
    )
    predictor |= {"minReplicas": options.min_replicas, "maxReplicas": max(3, options.min_replicas), "model": model}
    if options.serving_gpu:
        model["runtime"] += "-gpu"
        for resources in model["resources"].values():
            resources |= {"memory": "8Gi", "nvidia.com/gpu": "1"}
        predictor["tolerations"] = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    if options.mode == KNATIVE:
        kept = {key: value for key, value in metadata["annotations"].items() if not key.startswith("prometheus.io/")}
        metadata["annotations"] = kept | _KNATIVE
        model["runtime"] += "-knative"  # which declares the one port that Knative accepts
        del predictor["deploymentStrategy"]
        predictor |= {"canaryTrafficPercent": options.canary} if options.canary else {}
    return body


def canary(version: int, wanted: Object, percent: int) -> Object:
    """Return the entry of spec.canary for a version: what differs from the predictor beside it (KServe 0.20).

    Args:
        version: Number of the version. The canary's Service is thyroid-vVERSION-predictor.
        wanted: InferenceService of the version.
        percent: Percentage of requests for it, 0 to 99.
    """
    model = {key: wanted["spec"]["predictor"]["model"][key] for key in ("modelFormat", "runtime", "storageUri")}
    model["name"] = "kserve-container"  # which the schema requires here
    # By the percentage alone KServe would start no server for a share of 0.
    predictor = {"name": f"v{version}", "minReplicas": 1, "labels": {"thyroid/version": str(version)}, "model": model}
    return {"trafficPercent": percent, "predictor": predictor}
