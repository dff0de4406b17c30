"""The objects that a deployment asks of the cluster: the InferenceService, and the HTTPRoute of a canary."""

import copy
import os
from pathlib import Path

from thyroid import RESEARCH_USE_ONLY, storage
from thyroid.deploy.kserve_client import Object
from thyroid.deploy.options import KNATIVE, STANDARD, DeployOptions
from thyroid.errors import InputError
from thyroid.registry.registry import MODEL_NAME

CLAIM, MOUNT = "thyroid-data", "/data"
"""PersistentVolumeClaim that pipeline pods mount (THYROID_CLAIM names another), and its path. KServe reads it as pvc://."""

CANARY = f"{MODEL_NAME}-canary"
ROUTE = f"{MODEL_NAME}-entry"
"""Name of our HTTPRoute. The name `thyroid` belongs to the route that KServe makes for itself."""

PORTS = (
    {"name": "http1", "containerPort": 8080, "protocol": "TCP"},
    {"name": "grpc", "containerPort": 8081, "protocol": "TCP"},
)
"""Ports of the server in Standard mode. KServe's Service has the ports that are declared, the first one as port 80.

Knative accepts only one port. The runtime serves both modes, so it declares HTTP alone and does not claim gRPC.
"""
MODE = "serving.kserve.io/deploymentMode"
"""Annotation with KServe's deployment mode."""


def storage_uri(address: str) -> str:
    """Return the address at which KServe reads a version.

    Args:
        address: gs:// address, which is returned as it is, or a path on the pipeline's volume.

    Returns:
        gs:// or pvc:// address.

    Raises:
        InputError: The path is not on the volume, so only this machine can read it.
    """
    if storage.is_bucket(address):
        return address
    claim, volume = os.environ.get("THYROID_CLAIM", CLAIM), Path(MOUNT).resolve()
    if claim and Path(address).is_relative_to(volume):
        return f"pvc://{claim}/{Path(address).relative_to(volume).as_posix()}"
    raise InputError(
        f"{address}: KServe cannot read this path; keep the registry under {MOUNT}, where a volume claim is mounted"
    )


def inference_service(name: str, version: int | str, uri: str, options: DeployOptions, digest: str = "") -> Object:
    """Build the InferenceService (serving.kserve.io/v1beta1) that serves a registered version with our ServingRuntime.

    Args:
        name: Name of the InferenceService.
        version: Number of the version.
        uri: Address of the version from `storage_uri`.
        options: How to serve.
        digest: Digest of the data that the model was made of; empty leaves out its annotation.
    """
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {
            "name": name,
            "labels": {
                "app.kubernetes.io/name": name,
                "app.kubernetes.io/part-of": "thyroid",
                "thyroid/version": str(version),
            },
            "annotations": {key: value for key, value in _annotations(options.mode, digest).items() if value},
        },
        "spec": {"predictor": _predictor(uri, options)},
    }


def _predictor(uri: str, options: DeployOptions) -> Object:
    resources: Object = {"cpu": "2", "memory": "2Gi"}
    if options.serving_gpu:
        resources = {"cpu": "2", "memory": "8Gi", "nvidia.com/gpu": "1"}
    predictor: Object = {
        "minReplicas": options.min_replicas,
        "maxReplicas": max(3, options.min_replicas),
        "serviceAccountName": "thyroid-serve",
        "model": {
            "modelFormat": {"name": MODEL_NAME},
            "runtime": f"{MODEL_NAME}-gpu" if options.serving_gpu else MODEL_NAME,
            "protocolVersion": "v2",
            "storageUri": uri,
            # measured: 0.5 to 0.75 GB per backbone, and up to 50 MB for each request in flight
            "resources": {"requests": resources | {"cpu": "1"}, "limits": resources},
        },
    }
    if options.serving_gpu:
        predictor["tolerations"] = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    if options.mode == STANDARD:
        predictor["model"]["ports"] = copy.deepcopy(list(PORTS))
        predictor["deploymentStrategy"] = {
            "type": "RollingUpdate",
            "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0},
        }
    elif options.canary:
        predictor["canaryTrafficPercent"] = options.canary
    return predictor


def _annotations(mode: str, digest: str) -> dict[str, str]:
    annotations = {
        MODE: mode,
        "thyroid/notice": RESEARCH_USE_ONLY,
        "thyroid/data-digest": digest,
    }
    if mode == KNATIVE:
        return annotations | {
            "serving.kserve.io/enable-tag-routing": "true",  # gives the canary its own address, at which it is tested
            "serving.kserve.io/enable-metric-aggregation": "true",
            "serving.kserve.io/enable-prometheus-scraping": "true",
        }
    # KServe's own switch names the port of Knative's proxy, which does not exist in this mode.
    return annotations | {
        "prometheus.io/scrape": "true",
        "prometheus.io/port": "8080",
        "prometheus.io/path": "/metrics",
    }


def route(namespace: str, canary: int) -> Object:
    """Build the HTTPRoute (gateway.networking.k8s.io/v1) that splits the traffic in Standard mode.

    KServe ignores percentages in that mode.

    Args:
        namespace: Namespace of the route.
        canary: Percentage of requests for the canary, 0 to 99.
    """
    backends = [{"name": f"{MODEL_NAME}-predictor", "port": 80, "weight": 100 - canary}]
    if canary:
        backends.append({"name": f"{CANARY}-predictor", "port": 80, "weight": canary})
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": {"name": ROUTE, "namespace": namespace},
        "spec": {"rules": [{"backendRefs": backends}]},
    }
