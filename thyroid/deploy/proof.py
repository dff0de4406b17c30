"""The proof that a version is served: it answers its reference image with the probability that was evaluated."""

import base64
import json
import logging
import os
import time
import urllib.error
import urllib.request

from thyroid import errors
from thyroid.deploy.cluster import SERVICES, Cluster, Object, PassingError
from thyroid.deploy.options import DeployOptions
from thyroid.errors import InputError
from thyroid.model.artefact import Artefact
from thyroid.registry.registry import MODEL_NAME

log = logging.getLogger(__name__)

_REFERENCE_TOLERANCE = 1e-3  # in addition to the forms' difference: rounding in JSON and on another processor
_ANSWER_BYTES = 1_000_000
_POLL_SECONDS = 2.0
_FAILED_SECONDS = 60.0  # a failure that lasts this long comes from the new pods, not from an old one


class WrongAnswerError(InputError):
    """The version answers its reference image with another probability than evaluated."""


class UnaskedError(InputError):
    """The version could not be asked, for a reason that says nothing about the model."""


def prove(cluster: Cluster, artefact: Artefact, options: DeployOptions) -> str:
    """Wait until a registered version answers its reference image as evaluated, and return its address.

    KServe's observedGeneration counts the changes of a child object, so an old Ready cannot be distinguished from a new
    one. The only proof is an answer of this version. Each change in the reason for waiting is logged.

    Args:
        cluster: Cluster with the InferenceService.
        artefact: The registered version.
        options: How the version is served, and how long to wait.

    Raises:
        WrongAnswerError: The model answers with another probability than evaluated.
        UnaskedError: The endpoint refuses the request, or KServe refuses the specification.
        InputError: The model does not answer in time, or does not load. The message is the pods' own.
        PassingError: The API server was unavailable at the end, or somebody deleted the InferenceService.
    """
    no_failure, logged = time.monotonic(), ""
    deadline = no_failure + options.timeout
    name, version = f"InferenceService {MODEL_NAME}", artefact.publication.version
    while True:
        passing, failure = None, None
        try:
            live = cluster.get(SERVICES, MODEL_NAME)
        except InputError as error:  # a refusal of the API server says nothing about the model
            passing, waiting = PassingError(str(error)), str(error)
        else:
            if live is None or "deletionTimestamp" in live["metadata"]:
                raise PassingError(f"{name} was deleted in the meantime")
            status = _status(live, artefact)
            waiting, failure = _waiting(live), _load_failure(status)
            rows = [(row["type"], row["status"]) for row in status.get("conditions", [])]
            if status.get("ready") or ("Ready", "True") in rows:
                url = _address(status, options, cluster.namespace)
                if url and (problem := ask(url, artefact)) is None:
                    return url
                waiting = f"{url}: {problem}" if url else "ready, but it has no address"
        waiting = str(failure or waiting)
        if waiting != logged:
            log.info(f"waiting for {name}: {waiting}")
            logged = waiting
        if failure is None:
            no_failure = time.monotonic()
        elif time.monotonic() - no_failure > _FAILED_SECONDS:
            raise type(failure)(f"{name}: {waiting}{cluster.pods(MODEL_NAME, version)}")
        if time.monotonic() > deadline:
            late = f"{name}: not ready after {options.timeout:.0f} s: {waiting}"
            raise passing or type(failure or InputError())(late + cluster.pods(MODEL_NAME, version))
        time.sleep(_POLL_SECONDS)


def ask(url: str, artefact: Artefact) -> str | None:
    """Send the artefact's reference image and compare the answer with the evaluated probability.

    Args:
        url: Address of the service, to which /v1/models/thyroid:predict is added.
        artefact: The registered version.

    Returns:
        None if the version answers as evaluated; otherwise, in words, why this version has not answered yet.

    Raises:
        WrongAnswerError: This version answers with another probability.
        UnaskedError: The request is refused: a token is needed, or the mesh lets only certain accounts in.
    """
    version, reference = artefact.publication.version, artefact.record.reference
    image = base64.b64encode((artefact.folder / "reference.jpg").read_bytes()).decode()
    instance = {"image": {"b64": image}, "domain": "crop"}  # a locator must not look for the nodule in it
    token = os.environ.get("THYROID_TOKEN")
    request = urllib.request.Request(
        f"{url.rstrip('/')}/v1/models/{MODEL_NAME}:predict",
        json.dumps({"instances": [instance]}).encode(),
        {"Content-Type": "application/json"},
    )
    if token:
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=30.0) as answer:
            found = json.loads(answer.read(_ANSWER_BYTES))["predictions"][0]
        if found["model_version"] != version:
            return f"version {found['model_version']} answers instead of {version}"
        difference = max(abs(found["probability"][label] - p) for label, p in reference.items())
    except urllib.error.HTTPError as error:
        with error:
            said = f"{error.code} {error.read(300).decode(errors='replace')}"
        if error.code == 403 and "RBAC" in said:
            raise UnaskedError(f"{url}: {said}; this account needs an AuthorizationPolicy in the mesh") from None
        if error.code in (401, 403):
            raise UnaskedError(f"{url}: {said}; set THYROID_TOKEN to the endpoint's token") from None
        return said
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        return f"{type(error).__name__}: {errors.one_line(error)}"
    if difference > _REFERENCE_TOLERANCE + max(artefact.differences.values()):
        raise WrongAnswerError(
            f"{url}: answers the reference image with {found['probability']}, but the evaluation gave {reference}"
        )
    return None


def _status(live: Object, artefact: Artefact) -> Object:
    """Return the status of a version: of its entry in canaryStatuses if it is a canary of Standard mode."""
    name, status = f"v{artefact.publication.version}", live.get("status", {})
    if name not in [one["predictor"].get("name") for one in live["spec"].get("canary", [])]:
        return dict(status)
    return next((dict(one) for one in status.get("canaryStatuses", []) if one["name"] == name), {"name": name})


def _waiting(live: Object) -> str:
    """Describe the conditions that do not hold, with their messages."""
    rows = [row for row in live.get("status", {}).get("conditions", []) if row.get("status") != "True"]
    texts = [" ".join(filter(None, (row["type"], row.get("reason"), row.get("message")))) for row in rows]
    return "; ".join(text for text in texts if text != "Ready") or "the controller has not processed it yet"


def _load_failure(status: Object) -> InputError | None:
    """Return the reason why KServe could not load the model; None if it does not give one."""
    model = status.get("modelStatus", {})
    failure, transition = model.get("lastFailureInfo", {}), model.get("transitionStatus")
    kind = {"BlockedByFailedLoad": InputError, "InvalidSpec": UnaskedError}.get(transition)
    return kind(f"{failure.get('reason', transition)}: {failure.get('message', '')}") if kind else None


def _address(status: Object, options: DeployOptions, namespace: str) -> str:
    """Return the address of the new model; "" if there is none yet. In Standard mode only pods reach a canary's."""
    inside = "KUBERNETES_SERVICE_HOST" in os.environ
    if "name" in status:
        return f"http://{MODEL_NAME}-{status['name']}-predictor.{namespace}.svc.cluster.local"
    addresses = [
        (f"http://latest-{MODEL_NAME}-predictor.{namespace}.svc.cluster.local", target["url"])
        for target in status.get("components", {}).get("predictor", {}).get("traffic", [])
        if options.canary and target.get("latestRevision") and target.get("url")
    ]
    near, far = [*addresses, (status.get("address", {}).get("url"), status.get("url"))][0]
    return str((near or far if inside else far or near) or "")
