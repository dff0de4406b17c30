"""One namespace of a Kubernetes cluster with KServe. Every call has a time-out, and errors are written for people."""

import json
import re
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from thyroid.errors import InputError

MANAGER = "thyroid"
"""Field manager of what a deployment sets; `kubectl get isvc thyroid -o yaml --show-managed-fields` shows it."""

SERVICES = "apis/serving.kserve.io/v1beta1/inferenceservices"
RUNTIMES = "apis/serving.kserve.io/v1alpha1/servingruntimes"
ROUTES, _PODS = "apis/gateway.networking.k8s.io/v1/httproutes", "api/v1/pods"

_TIMEOUTS = (5.0, 30.0)  # seconds to connect and to answer; by itself the client would wait forever
_PATIENCE, _PAUSE = 30.0, 1.0  # seconds
_RESTARTING = (401, 403, 404)
"""What an API server answers for two seconds after its start, but also to lasting mistakes; a failing one says 5xx."""
_HINTS = {
    403: "; the account needs the role in manifests/base/rbac.yaml",
    404: "; is KServe installed on this cluster? docs/kubeflow.md says how",
}
_MESSAGE_LENGTH = 500  # characters of a container's last message, which is the end of its log if it wrote no other

Object = dict[str, Any]


class ConflictError(InputError):
    """Somebody changed the object after it was read and before it was written."""


class PassingError(InputError):
    """The API server could not be reached, or failed. This says nothing about the model."""


class _RefusedError(InputError):
    """A status of `_RESTARTING`."""


class Cluster:
    """One namespace of a Kubernetes cluster with KServe.

    Every call raises `InputError` if the API server refuses it and `PassingError` if it could not be reached or failed.
    Once it has answered, what it may refuse because it has just been restarted is repeated for `_PATIENCE` seconds.

    Args:
        namespace: Name of the namespace.

    Raises:
        InputError: There is no cluster.
    """

    def __init__(self, namespace: str) -> None:
        """Load the cluster's configuration: the pod's own, or else the kubeconfig."""
        from kubernetes import client, config

        configuration = client.Configuration()
        inside = Path(config.incluster_config.SERVICE_TOKEN_FILENAME).is_file()
        try:
            (config.load_incluster_config if inside else config.load_kube_config)(client_configuration=configuration)
        except config.ConfigException as error:
            raise InputError(f"no cluster ({error}); give a kubeconfig, or leave out the namespace") from None
        self._api = client.ApiClient(configuration)
        self.namespace, self.host = namespace, configuration.host
        self._answered = False

    def get(self, kind: str, name: str) -> Object | None:
        """Return an object of `SERVICES`, `RUNTIMES` or `ROUTES`; None if there is none."""
        return self._call("GET", kind, name)

    def apply(self, body: Object) -> Object:
        """Apply an InferenceService, and return it as the cluster has it.

        `MANAGER` becomes the owner of the fields in `body`, and what it owned besides is removed.

        Args:
            body: The object. A resourceVersion in it is the one that the cluster must have.

        Raises:
            ConflictError: It was changed or deleted after it was read.
        """
        done = self._call("PATCH", SERVICES, body["metadata"]["name"], body)
        if done is None:
            raise ConflictError("it was deleted in the meantime")
        return done

    def patch(self, name: str, patch: list[Object]) -> None:
        """Change an InferenceService by a JSON patch, with the errors of `apply`. One that is gone is no error."""
        self._call("PATCH", SERVICES, name, patch)

    def delete(self, live: Object) -> None:
        """Remove an InferenceService as it was read, with the errors of `apply`. One that is gone is no error."""
        metadata = live["metadata"]
        preconditions = {"resourceVersion": metadata["resourceVersion"]}
        self._call("DELETE", SERVICES, metadata["name"], {"preconditions": preconditions})

    def pods(self, name: str, version: int) -> str:
        """Describe why the pods of a version do not run, in their own words; "" if nothing is known."""
        selector = f"serving.kserve.io/inferenceservice={name},thyroid/version={version}"
        try:
            found = self._call("GET", _PODS, "", labelSelector=selector) or {}
        except InputError:
            return ""
        reasons = set()
        for pod in (one.get("status", {}) for one in found.get("items", [])):
            for condition in pod.get("conditions", []):
                if (condition["type"], condition["status"]) == ("PodScheduled", "False"):
                    reasons.add(condition.get("message", ""))
            if pod.get("reason"):
                reasons.add(f"{pod['reason']}: {pod.get('message')}")  # such as Evicted
            for container in [*pod.get("initContainerStatuses", []), *pod.get("containerStatuses", [])]:
                for state in (container.get("state", {}), container.get("lastState", {})):
                    stopped = state.get("waiting") or state.get("terminated") or {}
                    if stopped.get("reason") not in (None, "Completed", "PodInitializing", "ContainerCreating"):
                        message = " ".join(stopped.get("message", "").split())[-_MESSAGE_LENGTH:]
                        reasons.add(f"container {container['name']}: {stopped['reason']} {message}".strip())
        return "".join(f"; {reason}" for reason in sorted(filter(None, reasons)))

    def _call(self, method: str, kind: str, name: str, body: Any = None, **query: str) -> Object | None:
        """Return the API server's answer; None if the object does not exist."""
        group, plural = kind.rsplit("/", 1)
        path = f"/{group}/namespaces/{self.namespace}/{plural}" + (f"/{name}" if name else "")
        content = "application/json"
        if method == "PATCH":
            query |= {"fieldManager": MANAGER, "fieldValidation": "Strict"}
            content = "application/json-patch+json"
            if isinstance(body, dict):
                query["force"], content = "true", "application/apply-patch+yaml"
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                result = self._try(method, f"{path}?{urlencode(query)}", content, body)
            except (PassingError, _RefusedError):
                if not self._answered or time.monotonic() > deadline:
                    raise
                time.sleep(_PAUSE)
            else:
                self._answered = True
                return result

    def _try(self, method: str, path: str, content: str, body: Any) -> Object | None:
        from kubernetes.client.rest import ApiException
        from urllib3.exceptions import HTTPError

        what = f"{method} {path.partition('?')[0].partition('/namespaces/')[2]}"
        try:
            answer: Object = self._api.call_api(
                path, method, header_params={"Accept": "application/json", "Content-Type": content}, body=body,
                response_type="object", auth_settings=["BearerToken"], _return_http_data_only=True,
                _request_timeout=_TIMEOUTS,
            )  # fmt: skip
        except HTTPError as error:
            raise PassingError(f"{what}: the API server {self.host} cannot be reached ({error})") from None
        except ApiException as error:
            if error.status == 404 and _message(error) != error.reason:
                return None  # if not the object, but its kind does not exist, the answer has no message
            raise _refusal(what, int(error.status or 0), _message(error)) from None
        return answer


def _message(error: Any) -> str:
    try:
        return str(json.loads(error.body)["message"])
    except (TypeError, ValueError, KeyError):
        return str(error.reason)


def _refusal(what: str, status: int, message: str) -> InputError:
    """Return the error for an answer with an error status."""
    if status == 409:
        return ConflictError(message)
    if status == 403 and "exceeded quota" in message:
        return InputError(f"{what}: {message}; raise the ResourceQuota, or free some of it")
    if re.search("denied (the )?request", message):  # by an admission webhook, such as KServe's own, or a policy
        return InputError(f"{what}: {message}")
    text = f"{what}: {status} {message}{_HINTS.get(status, '')}"
    if status in (400, 422) or "not declared in schema" in message:  # with status 500, kubernetes/kubernetes#139253
        return InputError(f"{text}; the object does not fit the installed KServe, which must be 0.20 or newer")
    if status >= 500 or status == 429:
        return PassingError(text)
    return _RefusedError(text) if status in _RESTARTING else InputError(text)
