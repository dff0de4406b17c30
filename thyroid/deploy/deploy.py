"""Serve the champion with KServe: update its InferenceService, prove its answer, or restore what was there before.

python -m thyroid.deploy --registry /data/registry --namespace thyroid
python -m thyroid.deploy --registry output/registry --manifest service.yaml    (without a cluster)
"""

import argparse
import base64
import copy
import json
import logging
import os
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from thyroid import RESEARCH_USE_ONLY, errors, storage
from thyroid.deploy.kserve_client import Cluster, ConflictError, Object, PassingError
from thyroid.errors import InputError
from thyroid.model import artefacts
from thyroid.registry import registry
from thyroid.storage import Location

log = logging.getLogger(__name__)

CLAIM, MOUNT = "thyroid-data", "/data"
"""PersistentVolumeClaim that pipeline pods mount (THYROID_CLAIM names another), and its path. KServe reads it as pvc://."""

CANARY = f"{registry.NAME}-canary"
ROUTE = f"{registry.NAME}-entry"
"""Name of our HTTPRoute. The name `thyroid` belongs to the route that KServe makes for itself."""

APPLIED = "thyroid/applied"
"""Annotation with the last deployment's request, which distinguishes edits by hand from ours."""
PORTS = (
    {"name": "http1", "containerPort": 8080, "protocol": "TCP"},
    {"name": "grpc", "containerPort": 8081, "protocol": "TCP"},
)
"""Ports of the server in Standard mode. KServe's Service has the ports that are declared, the first one as port 80.

Knative accepts only one port. The runtime serves both modes, so it declares HTTP alone and does not claim gRPC.
"""
MODE = "serving.kserve.io/deploymentMode"
STANDARD, KNATIVE = "Standard", "Knative"

_ESSENTIAL = (
    "spec.predictor.model.modelFormat.",
    "spec.predictor.model.runtime",
    "spec.predictor.model.storage",
    "spec.predictor.model.image",
    "spec.predictor.model.command",
    "spec.predictor.model.args",
    "spec.predictor.storageUris",
    "spec.predictor.canaryTrafficPercent",
    "annotations.thyroid/",
    "labels.thyroid/",
)
"""Fields that decide which model answers. They are never left to an edit by hand, not even to an addition."""

_REFERENCE_TOLERANCE = 1e-3  # in addition to the forms' difference: rounding in JSON and on another processor
_POLL_SECONDS = 2.0
_FAILED_SECONDS = 60.0  # a failure that lasts this long comes from the new pods, not from an old one
_CONFLICTS = 5
_DELETION_SECONDS = 180.0  # pods have 30 s to end, and each controller's finalizer takes a few more seconds


@dataclass(frozen=True)
class Options:
    """How the model is served.

    Attributes:
        canary: Percentage of requests that the new model gets at first, 0 to 99; 0 switches all of them at once.
        min_replicas: Smallest number of replicas, 0 to 100. 0 scales to zero between requests, which requires KServe's
            Knative mode. A larger number uses Standard mode.
        gpu: Serve the Keras form on one nvidia.com/gpu.
        timeout: Seconds to wait until the new generation is ready.

    Raises:
        InputError: `canary` or `min_replicas` is out of range.
    """

    canary: int = 0
    min_replicas: int = 1
    gpu: bool = False
    timeout: float = 900.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 0 <= self.canary <= 99:
            raise InputError(f"canary {self.canary}: give a percentage from 0 (all at once) to 99")
        if not 0 <= self.min_replicas <= 100:
            raise InputError(f"min_replicas {self.min_replicas}: give a number from 0 (scale to zero) to 100")

    @property
    def mode(self) -> str:
        """KServe's deployment mode, "Standard" or "Knative"."""
        return STANDARD if self.min_replicas else KNATIVE


@dataclass(frozen=True)
class Deployed:
    """The outcome of a deployment.

    Attributes:
        status: "deployed", "kept champion" or "manifest written".
        version: Version of the champion; None if no model is released yet.
        url: Address of the service; None if nothing was deployed.
        notes: Notes for people.
    """

    status: str
    version: int | None
    url: str | None
    notes: list[str]


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
        f"{address}: KServe cannot read this; keep the registry below {MOUNT}, where a volume claim is mounted"
    )


def inference_service(name: str, version: int | str, uri: str, options: Options, digest: str = "") -> Object:
    """Build the InferenceService (serving.kserve.io/v1beta1) that serves a registered version with our ServingRuntime.

    Args:
        name: Name of the InferenceService.
        version: Number of the version.
        uri: Address of the version from `storage_uri`.
        options: How to serve.
        digest: Digest of the data that the model was made of; empty leaves out its annotation.
    """
    resources: Object = {"cpu": "2", "memory": "2Gi"}
    if options.gpu:
        resources = {"cpu": "2", "memory": "8Gi", "nvidia.com/gpu": "1"}
    predictor: Object = {
        "minReplicas": options.min_replicas,
        "maxReplicas": max(3, options.min_replicas),
        "serviceAccountName": "thyroid-serve",
        "model": {
            "modelFormat": {"name": registry.NAME},
            "runtime": f"{registry.NAME}-gpu" if options.gpu else registry.NAME,
            "protocolVersion": "v2",
            "storageUri": uri,
            # measured: 0.5 to 0.75 GB per backbone, and up to 50 MB for each request in flight
            "resources": {"requests": resources | {"cpu": "1"}, "limits": resources},
        },
    }
    if options.gpu:
        predictor["tolerations"] = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    if options.mode == STANDARD:
        predictor["model"]["ports"] = copy.deepcopy(list(PORTS))
        predictor["deploymentStrategy"] = {
            "type": "RollingUpdate",
            "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0},
        }
    elif options.canary:
        predictor["canaryTrafficPercent"] = options.canary
    annotations = {
        MODE: options.mode,
        "thyroid/notice": RESEARCH_USE_ONLY,
        "thyroid/data-digest": digest,
    }
    if options.mode == KNATIVE:
        annotations |= {
            "serving.kserve.io/enable-tag-routing": "true",  # gives the canary its own address, at which it is tested
            "serving.kserve.io/enable-metric-aggregation": "true",
            "serving.kserve.io/enable-prometheus-scraping": "true",
        }
    else:  # KServe's own switch names the port of Knative's proxy, which does not exist in this mode
        annotations |= {
            "prometheus.io/scrape": "true",
            "prometheus.io/port": "8080",
            "prometheus.io/path": "/metrics",
        }
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
            "annotations": {key: value for key, value in annotations.items() if value},
        },
        "spec": {"predictor": predictor},
    }


def route(namespace: str, canary: int) -> Object:
    """Build the HTTPRoute (gateway.networking.k8s.io/v1) that splits the traffic in Standard mode.

    KServe ignores percentages in that mode.

    Args:
        namespace: Namespace of the route.
        canary: Percentage of requests for the canary, 0 to 99.
    """
    backends = [{"name": f"{registry.NAME}-predictor", "port": 80, "weight": 100 - canary}]
    if canary:
        backends.append({"name": f"{CANARY}-predictor", "port": 80, "weight": canary})
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": {"name": ROUTE, "namespace": namespace},
        "spec": {"rules": [{"backendRefs": backends}]},
    }


def merged(live: Object, applied: Object, wanted: Object) -> tuple[Object, list[str]]:
    """Change `live` to `wanted`, except for what somebody has edited by hand since `applied`.

    Such an edit is kept and noted. Fields that decide which model answers are always set.

    Args:
        live: Spec, annotations and labels as the cluster has them.
        applied: The same as the last deployment requested them.
        wanted: The same as this deployment requests them.

    Returns:
        The merged object, and a note for each edit by hand.
    """
    result, notes = copy.deepcopy(live), []
    before, after, found = _leaves(applied), _leaves(wanted), _leaves(live)
    ours = before.keys() | after.keys() | {path for path in found if ".".join(path).startswith(_ESSENTIAL)}
    for path in sorted(ours):
        text = ".".join(path)
        old, new, now = before.get(path), after.get(path), found.get(path)
        if now == new:
            continue
        # If no deployment has written the object yet, a missing field was not removed by anybody.
        by_hand = now != old and (path in found or bool(before))
        if by_hand and not text.startswith(_ESSENTIAL):
            notes.append(f"{text} was {_edited(now)} by hand: kept (a deployment would set {new!r})")
            continue
        if by_hand and before:
            notes.append(f"{text} was {_edited(now)} by hand: {'removed' if new is None else f'set to {new!r}'}")
        _set(result, path, new)
    return result, notes


def _edited(value: Any) -> str:
    return "removed" if value is None else f"set to {value!r}"


def _leaves(content: Object, above: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """Map each path to its value. A list counts as one value."""
    result: dict[tuple[str, ...], Any] = {}
    for key, value in content.items():
        if isinstance(value, dict) and value:
            result |= _leaves(value, (*above, key))
        else:
            result[*above, key] = value
    return result


def _set(content: Object, path: tuple[str, ...], value: Any) -> None:
    for key in path[:-1]:
        content = content.setdefault(key, {})
    if value is None:
        content.pop(path[-1], None)
    else:
        content[path[-1]] = value


class _NotServedError(InputError):
    """The version is not served.

    Attributes:
        refuted: Whether the version did not prove itself, so that the registry must be rolled back, too.
    """

    def __init__(self, message: str, refuted: bool) -> None:
        super().__init__(message)
        self.refuted = refuted


def _split(cluster: Cluster, canary: int) -> None:
    """Set the weights of the HTTPRoute.

    Raises:
        InputError: The namespace has no such route, or the route is KServe's own, so that KServe would undo the change.
    """
    found = cluster.route(ROUTE)
    if found is None:
        raise InputError(
            f"namespace {cluster.namespace} has no HTTPRoute {ROUTE}, which splits the traffic in Standard mode "
            "(KServe ignores canaryTrafficPercent there): make -s manifests OVERLAY=gateway | kubectl apply -f -"
        )
    if any(owner["kind"] == "InferenceService" for owner in found["metadata"].get("ownerReferences", [])):
        raise InputError(f"HTTPRoute {ROUTE} belongs to an InferenceService: KServe would undo a change of it")
    rules = copy.deepcopy(found["spec"].get("rules") or [{}])
    rules[0]["backendRefs"] = route(cluster.namespace, canary)["spec"]["rules"][0]["backendRefs"]
    cluster.patch_route(ROUTE, {"spec": {"rules": rules}})


def _prove(cluster: Cluster, name: str, folder: Path, options: Options) -> str:
    """Wait until the registered version in `folder` answers its reference image as evaluated, and return its address.

    KServe's observedGeneration counts the changes of a child object, so an old Ready cannot be distinguished from a new
    one. The only proof is an answer of this version. Each change in the reason for waiting is printed.

    Raises:
        InputError: The model answers with another probability than evaluated, does not answer in time, or does not
            load. The message is the pods' own.
        PassingError: The API server was unavailable at the end, or somebody deleted the InferenceService.
    """
    deadline, told, failing = time.monotonic() + options.timeout, "", None
    passing: PassingError | None = None
    while True:
        try:
            live, passing = cluster.get(name), None
            if live is None or _is_deleted(live):
                raise PassingError(f"InferenceService {name} was deleted meanwhile")
        except InputError as error:  # a refusal of the API server says nothing about the model
            passing, waiting = PassingError(str(error)), str(error)
        else:
            status = live.get("status", {})
            waiting = _conditions(status) or "the controller has not looked at it yet"
            if any(one["type"] == "Ready" and one["status"] == "True" for one in status.get("conditions", [])):
                url = _address(live, options.canary > 0, cluster.namespace)
                problem = ask(url, folder)
                if problem is None:
                    return url
                waiting = f"{url}: {problem}"
            model = status.get("modelStatus", {})
            if model.get("transitionStatus") in ("BlockedByFailedLoad", "InvalidSpec"):
                failing = failing or time.monotonic()
                failure = model.get("lastFailureInfo", {})
                waiting = f"{failure.get('reason', model['transitionStatus'])}: {failure.get('message', waiting)}"
                if time.monotonic() - failing > _FAILED_SECONDS:
                    raise InputError(f"InferenceService {name}: {waiting}{cluster.pods(name)}")
            else:
                failing = None
        if waiting != told:
            log.info(f"waiting for {name}: {waiting}")
            told = waiting
        if time.monotonic() > deadline:
            if passing is not None:
                raise passing
            raise InputError(
                f"InferenceService {name}: not ready after {options.timeout:.0f} s: {waiting}{cluster.pods(name)}"
            )
        time.sleep(_POLL_SECONDS)


def _conditions(status: Object) -> str:
    """Describe the conditions that do not hold, with their messages."""
    return "; ".join(
        " ".join(filter(None, (one["type"], one.get("reason"), one.get("message"))))
        for one in status.get("conditions", [])
        if one.get("status") != "True" and one["type"] != "Ready"
    )


def _ours(body: Object) -> Object:
    """Return the parts of an object that a deployment sets."""
    metadata = body["metadata"]
    return {
        "spec": body["spec"],
        "annotations": {k: v for k, v in (metadata.get("annotations") or {}).items() if k != APPLIED},
        "labels": metadata.get("labels") or {},
    }


def _is_deleted(live: Object) -> bool:
    """Return whether an object is being deleted. It exists until the controllers have removed what belongs to it."""
    return bool(live["metadata"].get("deletionTimestamp"))


def _settled(cluster: Cluster, name: str) -> Object | None:
    """Wait for the end of any deletion in progress, and return the InferenceService; None if there is none.

    Raises:
        InputError: The deletion does not end in time.
    """
    deadline, told = time.monotonic() + _DELETION_SECONDS, False
    while True:
        live = cluster.get(name)
        if live is None or not _is_deleted(live):
            return live
        since, held = live["metadata"]["deletionTimestamp"], ", ".join(live["metadata"].get("finalizers", []))
        if time.monotonic() > deadline:
            raise InputError(
                f"InferenceService {name}: deleted at {since}, and still there; its finalizers hold it ({held}): see "
                "what their controller says, then run the deployment again"
            )
        if not told:
            log.info(f"waiting for {name}: deleted at {since}, its finalizers hold it ({held})")
            told = True
        time.sleep(_POLL_SECONDS)


def _apply(cluster: Cluster, wanted: Object) -> tuple[bool, list[str]]:
    """Create or update the object. Nothing is sent if nothing has to change.

    Returns:
        Whether the object was changed, and notes, including those on edits by hand.
    """
    name = wanted["metadata"]["name"]
    ours = _ours(wanted)
    note = json.dumps(ours, sort_keys=True)
    for _ in range(_CONFLICTS):
        live = _settled(cluster, name)
        try:
            if live is None:
                body = copy.deepcopy(wanted)
                body["metadata"]["annotations"][APPLIED] = note
                cluster.create(body)
                return True, [f"created InferenceService {name}"]
            annotations = live["metadata"].get("annotations") or {}
            try:
                applied = json.loads(annotations.get(APPLIED, "{}"))
            except ValueError:
                applied = {}  # as for an object that was made by hand or by GitOps
            result, notes = merged(_ours(live), applied, ours)
            if result == _ours(live) and annotations.get(APPLIED) == note:
                return False, [*notes, f"InferenceService {name} is as wanted already"]
            body = copy.deepcopy(live)
            body["spec"] = result["spec"]
            body["metadata"] |= {"annotations": result["annotations"] | {APPLIED: note}, "labels": result["labels"]}
            cluster.replace(body)
            return True, [*notes, f"updated InferenceService {name}"]
        except ConflictError as error:
            conflict = error
    raise InputError(f"InferenceService {name}: changed by somebody else at each of {_CONFLICTS} tries ({conflict})")


def _restore(cluster: Cluster, name: str, before: Object | None) -> None:
    """Put an object back as it was; None removes it.

    Raises:
        InputError: It could not be put back.
    """
    if before is None:
        cluster.delete(name)
        return
    for _ in range(_CONFLICTS):
        live = _settled(cluster, name)
        body = copy.deepcopy(before)
        body["metadata"].pop("resourceVersion", None)
        try:
            if live is None:
                cluster.create(body)
            else:
                body["metadata"]["resourceVersion"] = live["metadata"]["resourceVersion"]
                cluster.replace(body)
        except ConflictError:
            continue
        return
    raise InputError("somebody else keeps changing it")


def _uri(body: Object | None) -> str | None:
    """Return the address from which an InferenceService loads its model."""
    return None if body is None else body["spec"]["predictor"].get("model", {}).get("storageUri")


def _with_version(before: Object, version: int, uri: str) -> Object:
    """Return an InferenceService as it was before, with another version."""
    body = copy.deepcopy(before)
    body["spec"]["predictor"]["model"]["storageUri"] = uri
    body["metadata"].setdefault("labels", {})["thyroid/version"] = str(version)
    for key in (APPLIED, "thyroid/data-digest"):
        (body["metadata"].get("annotations") or {}).pop(key, None)
    return body


def _take_back(
    cluster: Cluster, root: Location, wanted: Object, before: Object | None, changed: bool
) -> tuple[bool, str]:
    """Undo what was sent, after the version did not prove itself or got no traffic.

    What the cluster had before is restored. If that is a version that never proved itself either, the newest earlier
    champion is deployed instead. A version that has proven itself once is not refuted by a later failure.

    Args:
        cluster: Cluster to which it was sent.
        root: Root of the registry.
        wanted: What was sent.
        before: What the cluster had; None if there was nothing.
        changed: Whether `wanted` differs from that.

    Returns:
        Whether the version is refuted, and what was done, in words.
    """
    name = wanted["metadata"]["name"]
    version = int(wanted["metadata"]["labels"]["thyroid/version"])
    service, same = f"InferenceService {name}", _uri(before) == _uri(wanted)
    refuted = registry.is_unproven(root, version)
    back, done = before, f"{service} is as it was before"
    if not changed and not refuted:
        return False, f"{service} was as wanted already: nothing was changed"
    if before is None or (name == CANARY and same and refuted):
        back, done = None, f"{service} is removed again"
    elif (same and refuted) or _uri(before) in [_address_of(root, one) for one in registry.refuted(root)]:
        earlier = [one for one in registry.earlier(root) if one != version]
        if not refuted or not earlier:
            return False, f"{service} stays as it was sent, since no proven version was there before"
        back = _with_version(before, earlier[0], _address_of(root, earlier[0]))
        done = f"{service} serves version {earlier[0]} again"
    try:
        _restore(cluster, name, back)
    except InputError as error:
        done = f"{service} could not be put back: {error}"
    return refuted, done


def _address_of(root: Location, version: int) -> str:
    return storage_uri(registry.address(root, version))


def _address(live: Object, canary: bool, namespace: str) -> str:
    """Return the address of the new model. A canary under Knative has its own address."""
    status = live.get("status", {})
    inside = Path("/var/run/secrets/kubernetes.io").is_dir()
    if canary:
        for target in status.get("components", {}).get("predictor", {}).get("traffic", []):
            if target.get("latestRevision") and target.get("url"):
                name = live["metadata"]["name"]
                return f"http://latest-{name}-predictor.{namespace}.svc.cluster.local" if inside else target["url"]
    address = status.get("address", {}).get("url")
    url: str | None = (address if inside else None) or status.get("url") or address
    if not url:
        raise InputError(f"InferenceService {live['metadata']['name']} is ready but has no address")
    return url


def ask(url: str, folder: Path) -> str | None:
    """Send the artefact's reference image and compare the answer with the evaluated probability.

    Args:
        url: Address of the service, to which /v1/models/thyroid:predict is added.
        folder: Folder of the registered version.

    Returns:
        None if the version answers as evaluated; otherwise, in words, why this version has not answered yet.

    Raises:
        InputError: This version answers with another probability, or the request is refused (a token is needed, or the
            mesh lets only certain accounts in).
    """
    facts = json.loads((folder / "model.json").read_text())
    image = base64.b64encode((folder / "reference.jpg").read_bytes()).decode()
    body = json.dumps({"instances": [{"image": {"b64": image}}]}).encode()
    headers = {"Content-Type": "application/json"}
    if token := os.environ.get("THYROID_TOKEN"):
        headers["Authorization"] = f"Bearer {token}"
    request = urllib.request.Request(f"{url.rstrip('/')}/v1/models/{registry.NAME}:predict", body, headers)
    allowed = _REFERENCE_TOLERANCE + max(form.get("largest_difference", 0.0) for form in facts["forms"].values())
    try:
        with urllib.request.urlopen(request, timeout=30.0) as answer:
            found = json.load(answer)["predictions"][0]
        if found["model_version"] != facts["version"]:
            return f"version {found['model_version']} answers, not {facts['version']}"
        off = max(abs(found["probability"][label] - p) for label, p in facts["reference"].items())
    except urllib.error.HTTPError as error:
        with error:
            text = error.read(300).decode(errors="replace")
        if error.code == 403 and "RBAC" in text:
            raise InputError(
                f"{url}: 403 {text}; the mesh lets this account in by an AuthorizationPolicy only"
            ) from None
        if error.code in (401, 403):
            raise InputError(f"{url}: {error.code} {text}; give the endpoint's token as THYROID_TOKEN") from None
        return f"{error.code} {text}"
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        return f"{type(error).__name__}: {errors.one_line(error)}"
    if off > allowed:
        raise InputError(
            f"{url}: answers the reference image with {found['probability']}, evaluated were {facts['reference']}"
        )
    return None


def _into(cluster: Cluster, root: Location, version: int, folder: Path, options: Options) -> tuple[str, list[str]]:
    """Deploy a version to the cluster and prove it. Its files are in `folder`.

    Returns:
        The address of the service, and notes.

    Raises:
        InputError: Nothing was changed.
        PassingError: The version was sent, and the outcome is unknown.
        _NotServedError: The version was sent and did not prove itself, or it gets no traffic. The message gives the
            reason and what was done about it.
    """
    apart = options.canary > 0 and options.mode == STANDARD
    name = CANARY if apart else registry.NAME
    digest = json.loads((folder / "model.json").read_text())["data_digest"]
    wanted = inference_service(name, version, _address_of(root, version), options, digest)
    cluster.need_runtime(wanted["spec"]["predictor"]["model"]["runtime"])
    if apart and _settled(cluster, registry.NAME) is None:
        raise InputError(f"a canary needs a model beside it, and there is no InferenceService {registry.NAME} yet")
    before = _settled(cluster, name)
    if before is not None:
        annotations = before["metadata"].get("annotations") or {}
        mode = before.get("status", {}).get("deploymentMode") or annotations.get(MODE, options.mode)
        if mode != options.mode:
            raise InputError(
                f"InferenceService {name} runs in {mode} mode, and KServe does not change the mode of one that exists: "
                f"min_replicas {options.min_replicas} asks for {options.mode}; delete it first, or set min_replicas "
                + ("to 0" if options.mode == STANDARD else "above 0")
            )
    where = f"InferenceService {name} in namespace {cluster.namespace}"
    # This is noted first, so that an attempt that is killed leaves a version that counts as unproven.
    if _uri(before) != _uri(wanted):
        registry.note_deployment(root, "sent", version, f"sent to {where}")
    changed, notes = _apply(cluster, wanted)
    for note in notes:
        log.info(note)

    def not_served(error: InputError) -> InputError:
        if isinstance(error, PassingError):
            return error
        try:
            refuted, done = _take_back(cluster, root, wanted, before, changed)
        except InputError as second:
            refuted, done = False, f"nothing was taken back: {second}"
        return _NotServedError(f"version {version} is not served: {error}; {done}", refuted)

    try:
        url = _prove(cluster, name, folder, options)
    except InputError as error:
        raise not_served(error) from None
    registry.note_deployment(root, "proven", version, f"answers its reference image as evaluated as {where}")
    if apart:
        try:
            _split(cluster, options.canary)
        except InputError as error:
            raise not_served(error) from None
    if not options.canary and options.mode == STANDARD:
        notes += _end_canary(cluster)
    return url, notes


def _end_canary(cluster: Cluster) -> list[str]:
    """Send all traffic to the champion's service and remove the canary.

    Failures become notes and raise no error, since the model is already proven.
    """
    try:
        if cluster.get(CANARY) is None:
            return []
        _split(cluster, 0)
        cluster.delete(CANARY)
    except InputError as error:
        return [f"the canary is still there: {error}"]
    return [f"removed InferenceService {CANARY}"]


def _own_namespace() -> str:
    """Return the pod's own namespace; empty outside a cluster."""
    try:
        return Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace").read_text().strip()
    except OSError:
        return ""


def deploy(
    root: Location,
    version: int | None,
    manifest: Path,
    namespace: str = "",
    options: Options | None = None,
) -> Deployed:
    """Deploy the champion if it is `version`. A version that the gate refused changes nothing.

    Without `namespace` and outside a cluster, only the manifest is written, and the command to serve on this machine is
    printed. If the version is new to the cluster and does not come to answer its reference image as evaluated, what was
    deployed before is restored, and the previous champion becomes the registry's champion again. A version that has
    proven itself stays the champion if a later deployment of it fails. A failure before anything was sent does not
    change the registry.

    Args:
        root: Root of the registry.
        version: Version that this run registered; None deploys the champion, whichever it is.
        manifest: File to which the InferenceService is written.
        namespace: Namespace of the InferenceService; empty for the pod's own.
        options: How to serve; None for the defaults.

    Returns:
        The outcome.

    Raises:
        InputError: The registry cannot be used, the cluster refuses, or the model does not answer as evaluated. The
            message says what was restored.
    """
    options = options or Options()
    if not registry.versions(root):
        raise InputError(f"{root}: no registry here; `make run` or the pipeline makes one")
    champion = registry.read_aliases(root).get("champion")
    manifest.parent.mkdir(parents=True, exist_ok=True)
    if champion is None or (version is not None and champion != version):
        kept = "no model is released yet" if champion is None else f"version {champion} stays"
        reasons = []
        if version is not None:
            reasons = artefacts.facts(registry.find(root, str(version), artefacts.CARD), ("gate",))["gate"]["reasons"]
        if version is not None and (why := registry.refuted(root).get(version)) is not None:
            # A retry of a deployment that failed must not succeed.
            raise InputError(f"version {version} was released and rolled back: {why}")
        manifest.write_text(f"# kept champion: {kept}\n")
        log.info("\n".join([f"kept champion: {kept}", *(f"  {reason}" for reason in reasons)]))
        return Deployed("kept champion", champion, None, reasons)
    folder = registry.find(root, str(champion), (*artefacts.CARD, "reference.jpg"))
    facts = artefacts.facts(folder, ("version", "data_digest", "reference", "forms"))
    namespace = namespace or _own_namespace()
    if not namespace:
        try:
            uri = _address_of(root, champion)
        except InputError:
            uri = f"pvc://{CLAIM}/registry/{registry.NAME}/{champion}"
        body = inference_service(registry.NAME, champion, uri, options, facts["data_digest"])
        manifest.write_text(yaml.safe_dump(body, sort_keys=False))
        log.info(
            f"no cluster: wrote {manifest}\n"
            f"serve version {champion} here with: python -m thyroid.serve --registry {root}"
        )
        return Deployed(
            "manifest written", champion, None, [f"serve it with python -m thyroid.serve --registry {root}"]
        )
    body = inference_service(registry.NAME, champion, _address_of(root, champion), options, facts["data_digest"])
    manifest.write_text(yaml.safe_dump(body, sort_keys=False))
    try:
        url, notes = _into(Cluster(namespace), root, champion, folder, options)
    except PassingError as error:
        raise InputError(f"{error}; nothing is decided: run the deployment again") from None
    except _NotServedError as error:
        if not error.refuted or not registry.earlier(root):
            raise InputError(f"{error}; version {champion} stays the champion") from None
        try:
            now = registry.roll_back(root, f"deployment failed: {error}"[:500], "deploy", champion)
        except InputError as second:
            raise InputError(f"{error}; the registry was not rolled back: {second}") from None
        raise InputError(f"{error}; champion is version {now}") from None
    log.info(f"version {champion} answers its reference image as evaluated at {url}")
    return Deployed("deployed", champion, url, notes)


@errors.command
def main(argv: Sequence[str] | None = None) -> None:
    """Deploy the champion from the command line."""
    parser = argparse.ArgumentParser(prog="python -m thyroid.deploy", description=__doc__.split("\n")[0])
    parser.add_argument("--registry", dest="root", required=True, help="root of the registry, or gs://")
    parser.add_argument("--manifest", type=Path, default=Path("inferenceservice.yaml"), help="file to write")
    parser.add_argument("--namespace", default="", help="of the InferenceService; none: write the manifest only")
    parser.add_argument("--canary", type=int, default=0, help="percent of the requests for the new model at first")
    parser.add_argument("--min-replicas", type=int, default=1, help="0: scale to zero (Knative)")
    parser.add_argument("--gpu", action="store_true", help="serve the Keras form on a GPU")
    parser.add_argument("--timeout", type=float, default=900.0, help="seconds until the model must be ready")
    given = parser.parse_args(argv)
    options = Options(given.canary, given.min_replicas, given.gpu, given.timeout)
    deploy(given.root, None, given.manifest, given.namespace, options)
