"""The proof that a version is served: it answers its reference image with the probability that was evaluated."""

import base64
import json
import logging
import os
import time
import urllib.error
import urllib.request
from pathlib import Path

from thyroid import errors
from thyroid.deploy.kserve_client import Cluster, Object, PassingError
from thyroid.deploy.options import DeployOptions
from thyroid.errors import InputError
from thyroid.model.artefact import Artefact
from thyroid.registry.registry import MODEL_NAME

log = logging.getLogger(__name__)

_REFERENCE_TOLERANCE = 1e-3  # in addition to the forms' difference: rounding in JSON and on another processor
_POLL_SECONDS = 2.0
_FAILED_SECONDS = 60.0  # a failure that lasts this long comes from the new pods, not from an old one


def prove(cluster: Cluster, name: str, artefact: Artefact, options: DeployOptions) -> str:
    """Wait until a registered version answers its reference image as evaluated.

    KServe's observedGeneration counts the changes of a child object, so an old Ready cannot be distinguished from a new
    one. The only proof is an answer of this version. Each change in the reason for waiting is logged.

    Args:
        cluster: Cluster with the InferenceService.
        name: Name of the InferenceService.
        artefact: The registered version.
        options: How the version is served, and how long to wait.

    Returns:
        The address of the service.

    Raises:
        InputError: The model answers with another probability than evaluated, does not answer in time, or does not
            load. The message is the pods' own.
        PassingError: The API server was unavailable at the end, or somebody deleted the InferenceService.
    """
    deadline, logged, failing_since = time.monotonic() + options.timeout, "", None
    passing: PassingError | None = None
    while True:
        try:
            live, passing = cluster.get(name), None
            if live is None or is_deleted(live):
                raise PassingError(f"InferenceService {name} was deleted in the meantime")
        except InputError as error:  # a refusal of the API server says nothing about the model
            passing, waiting = PassingError(str(error)), str(error)
        else:
            url, waiting = _try(live, artefact, options.canary > 0, cluster.namespace)
            if url is not None:
                return url
            if (failure := _load_failure(live, waiting)) is None:
                failing_since = None
            else:
                failing_since, waiting = failing_since or time.monotonic(), failure
                if time.monotonic() - failing_since > _FAILED_SECONDS:
                    raise InputError(f"InferenceService {name}: {waiting}{cluster.pods(name)}")
        if waiting != logged:
            log.info(f"waiting for {name}: {waiting}")
            logged = waiting
        if time.monotonic() > deadline:
            if passing is not None:
                raise passing
            raise InputError(
                f"InferenceService {name}: not ready after {options.timeout:.0f} s: {waiting}{cluster.pods(name)}"
            )
        time.sleep(_POLL_SECONDS)


def ask(url: str, artefact: Artefact) -> str | None:
    """Send the artefact's reference image and compare the answer with the evaluated probability.

    Args:
        url: Address of the service, to which /v1/models/thyroid:predict is added.
        artefact: The registered version.

    Returns:
        None if the version answers as evaluated; otherwise, in words, why this version has not answered yet.

    Raises:
        InputError: This version answers with another probability, or the request is refused (a token is needed, or the
            mesh lets only certain accounts in).
    """
    version, reference = artefact.publication.version, artefact.record.reference
    allowed = _REFERENCE_TOLERANCE + max(artefact.differences.values())
    request = _request(url, artefact.folder)
    try:
        with urllib.request.urlopen(request, timeout=30.0) as answer:
            found = json.load(answer)["predictions"][0]
        if found["model_version"] != version:
            return f"version {found['model_version']} answers instead of {version}"
        difference = max(abs(found["probability"][label] - p) for label, p in reference.items())
    except urllib.error.HTTPError as error:
        return _refusal(url, error)
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        return f"{type(error).__name__}: {errors.one_line(error)}"
    if difference > allowed:
        raise InputError(
            f"{url}: answers the reference image with {found['probability']}, but the evaluation gave {reference}"
        )
    return None


def is_deleted(live: Object) -> bool:
    """Return whether an object is being deleted. It exists until the controllers have removed what belongs to it."""
    return bool(live["metadata"].get("deletionTimestamp"))


def _try(live: Object, artefact: Artefact, canary: bool, namespace: str) -> tuple[str | None, str]:
    """Ask the service if it is ready.

    Returns:
        The address if the version answers as evaluated, or None; and why it is waited for.
    """
    status = live.get("status", {})
    if any(row["type"] == "Ready" and row["status"] == "True" for row in status.get("conditions", [])):
        url = _address(live, canary, namespace)
        problem = ask(url, artefact)
        return (url, "") if problem is None else (None, f"{url}: {problem}")
    return None, _conditions(status) or "the controller has not processed it yet"


def _conditions(status: Object) -> str:
    """Describe the conditions that do not hold, with their messages."""
    return "; ".join(
        " ".join(filter(None, (row["type"], row.get("reason"), row.get("message"))))
        for row in status.get("conditions", [])
        if row.get("status") != "True" and row["type"] != "Ready"
    )


def _load_failure(live: Object, waiting: str) -> str | None:
    """Describe why KServe could not load the model; None if it does not say so."""
    model = live.get("status", {}).get("modelStatus", {})
    if model.get("transitionStatus") not in ("BlockedByFailedLoad", "InvalidSpec"):
        return None
    failure = model.get("lastFailureInfo", {})
    return f"{failure.get('reason', model['transitionStatus'])}: {failure.get('message', waiting)}"


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


def _request(url: str, folder: Path) -> urllib.request.Request:
    image = base64.b64encode((folder / "reference.jpg").read_bytes()).decode()
    instance = {"image": {"b64": image}, "domain": "crop"}  # a locator must not look for the nodule in it
    body = json.dumps({"instances": [instance]}).encode()
    headers = {"Content-Type": "application/json"}
    if token := os.environ.get("THYROID_TOKEN"):
        headers["Authorization"] = f"Bearer {token}"
    return urllib.request.Request(f"{url.rstrip('/')}/v1/models/{MODEL_NAME}:predict", body, headers)


def _refusal(url: str, error: urllib.error.HTTPError) -> str:
    """Describe an answer with an error status.

    Raises:
        InputError: The request lacks a right, which waiting does not change.
    """
    with error:
        text = error.read(300).decode(errors="replace")
    if error.code == 403 and "RBAC" in text:
        raise InputError(f"{url}: 403 {text}; this account needs an AuthorizationPolicy in the mesh") from None
    if error.code in (401, 403):
        raise InputError(f"{url}: {error.code} {text}; set THYROID_TOKEN to the endpoint's token") from None
    return f"{error.code} {text}"
