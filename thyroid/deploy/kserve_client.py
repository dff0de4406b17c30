"""KServe's client for one namespace of a cluster. Every call has a time-out, and its errors are written for people."""

import json
import sys
import time
from collections.abc import Callable
from typing import Any

from thyroid.errors import InputError

_TIMEOUTS = (5.0, 30.0)  # seconds to connect and to answer; by itself the client would wait forever
_PATIENCE = 30.0  # seconds: a restarting API server is away for some, then refuses calls for two (403, 404, 503)
_PAUSE = 1.0
_RESTARTING = (401, 403, 404)
"""Status codes that an API server returns for a moment after its start, but also for lasting mistakes."""

_MESSAGE_LENGTH = 500  # characters of a container's last message, which is the end of its log if it wrote no other

Object = dict[str, Any]


class ConflictError(InputError):
    """Somebody changed the object after it was read and before it was written."""


class PassingError(InputError):
    """The API server could not be reached, or failed. This says nothing about the model."""


class _RefusedError(InputError):
    """A status of `_RESTARTING`: the API server refuses the call, or has only just started."""


class Cluster:
    """One namespace of a Kubernetes cluster with KServe.

    Every method raises `InputError` if the API server refuses the call, `ConflictError` if somebody changed the object
    in the meantime, and `PassingError` if the API server could not be reached or failed. Once the server has answered,
    failures of the last kind and the statuses 401, 403 and 404 are retried for `_PATIENCE` seconds, since it may be
    restarting.

    Args:
        namespace: Name of the namespace.

    Raises:
        InputError: There is no cluster.
    """

    def __init__(self, namespace: str) -> None:
        """Load the cluster's configuration."""
        sys.argv = sys.argv[:1]  # kserve parses the command line when it is imported
        from kserve import KServeClient
        from kubernetes.config import ConfigException

        try:
            self.kserve = KServeClient()
        except ConfigException as error:
            raise InputError(
                f"no cluster to deploy to ({error}); give a kubeconfig, or leave out the namespace"
            ) from None
        self.namespace = namespace
        self._answered = False
        for api in (self.kserve.api_instance, self.kserve.core_api):
            _bound(api.api_client)
        self.host = self.kserve.api_instance.api_client.configuration.host

    def _do(self, what: str, call: Callable[[], Any], absent: bool = False) -> Any:
        """Return `call`'s result; None for the 404 of an object that may be `absent`."""
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                result = self._try(what, call, absent)
            except (PassingError, _RefusedError):
                if not self._answered or time.monotonic() > deadline:
                    raise
                time.sleep(_PAUSE)
            else:
                self._answered = True
                return result

    def _try(self, what: str, call: Callable[[], Any], absent: bool) -> Any:
        from kubernetes.client.rest import ApiException
        from urllib3.exceptions import HTTPError

        try:
            return call()
        except HTTPError as error:
            raise PassingError(f"{what}: the API server {self.host} cannot be reached ({error})") from None
        except (ApiException, RuntimeError) as error:
            refused = error if isinstance(error, ApiException) else error.__context__  # KServe's client hides it
            if not isinstance(refused, ApiException):
                raise
            if refused.status == 404 and absent and _message(refused) != refused.reason:
                return None  # the object does not exist; if its kind does not, the answer is not a Status
            if refused.status == 409:
                raise ConflictError(_message(refused)) from None
            if refused.status == 403 and "exceeded quota" in _message(refused):
                raise InputError(
                    f"{what}: {_message(refused)}; raise the ResourceQuota of namespace {self.namespace}, or free "
                    "some of it"
                ) from None
            hint = {
                403: "; the account needs the role in manifests/base/rbac.yaml",
                404: "; is KServe installed on this cluster? docs/kubeflow.md says how",
                422: "; the object does not match the schema of the installed KServe",
            }.get(refused.status or 0, "")
            kind: type[InputError] = _RefusedError if refused.status in _RESTARTING else InputError
            if (refused.status or 0) >= 500 or refused.status == 429:
                kind = PassingError
            raise kind(f"{what}: {refused.status} {_message(refused)}{hint}") from None

    def get(self, name: str) -> Object | None:
        """Return the InferenceService of this name; None if there is none."""
        found: Object | None = self._do(
            f"InferenceService {name}", lambda: self.kserve.get(name, namespace=self.namespace), absent=True
        )
        return found

    def create(self, body: Object) -> Object:
        """Create an InferenceService, and return it as the cluster has it."""
        typed = _typed(body, self.namespace)
        created: Object = self._do(
            f"creating InferenceService {body['metadata']['name']}",
            lambda: self.kserve.create(typed, namespace=self.namespace),
        )
        return created

    def replace(self, body: Object) -> Object:
        """Replace an InferenceService, and return it as the cluster has it.

        Raises:
            ConflictError: It was changed or deleted after `body` was read.
        """
        name = body["metadata"]["name"]
        typed = _typed(body, self.namespace)
        replaced: Object | None = self._do(
            f"updating InferenceService {name}",
            lambda: self.kserve.replace(name, typed, namespace=self.namespace),
            absent=True,
        )
        if replaced is None:
            raise ConflictError(f"InferenceService {name} was deleted in the meantime")
        return replaced

    def delete(self, name: str) -> None:
        """Remove an InferenceService. One that does not exist is no error."""
        self._do(
            f"removing InferenceService {name}",
            lambda: self.kserve.delete(name, namespace=self.namespace),
            absent=True,
        )

    def need_runtime(self, name: str) -> None:
        """Check that our ServingRuntime is in the namespace, since KServe would look for another one in vain.

        Raises:
            InputError: It is missing or disabled.
        """
        found = self._do(
            f"ServingRuntime {name}",
            lambda: self.kserve.api_instance.get_namespaced_custom_object(
                "serving.kserve.io", "v1alpha1", self.namespace, "servingruntimes", name
            ),
            absent=True,
        )
        if found is None:
            overlay = "gpu" if name.endswith("-gpu") else "cpu"
            raise InputError(
                f"namespace {self.namespace} has no ServingRuntime {name}: apply it with "
                f"kubectl apply -k manifests/overlays/{overlay} -n {self.namespace}"
            )
        if found["spec"].get("disabled"):
            raise InputError(
                f"ServingRuntime {name} of namespace {self.namespace} is disabled; set spec.disabled to false"
            )

    def route(self, name: str) -> Object | None:
        """Return an HTTPRoute (gateway.networking.k8s.io/v1); None if there is none."""
        api, place = self.kserve.api_instance, self._routes(name)
        found: Object | None = self._do(
            f"HTTPRoute {name}", lambda: api.get_namespaced_custom_object(*place), absent=True
        )
        return found

    def patch_route(self, name: str, patch: Object) -> None:
        """Change the parts of an HTTPRoute that are in `patch`."""
        api, place = self.kserve.api_instance, self._routes(name)
        self._do(f"HTTPRoute {name}", lambda: api.patch_namespaced_custom_object(*place, patch))

    def _routes(self, name: str) -> tuple[str, ...]:
        return ("gateway.networking.k8s.io", "v1", self.namespace, "httproutes", name)

    def pods(self, name: str) -> str:
        """Describe why the pods of an InferenceService do not run, in their own words; "" if nothing is known."""
        selector = f"serving.kserve.io/inferenceservice={name}"
        try:
            pods = self._do(
                "pods", lambda: self.kserve.core_api.list_namespaced_pod(self.namespace, label_selector=selector)
            )
        except InputError:
            return ""
        reasons = set()
        for pod in pods.items:
            for condition in pod.status.conditions or []:
                if condition.status == "False" and condition.type == "PodScheduled":
                    reasons.add(condition.message)
            if pod.status.reason:
                reasons.add(f"{pod.status.reason}: {pod.status.message}")  # such as Evicted
            for container in [*(pod.status.init_container_statuses or []), *(pod.status.container_statuses or [])]:
                for state in (container.state, container.last_state):
                    stopped = state and (state.waiting or state.terminated)
                    if stopped and stopped.reason not in (None, "Completed", "PodInitializing", "ContainerCreating"):
                        message = " ".join((stopped.message or "").split())[-_MESSAGE_LENGTH:]
                        reasons.add(f"container {container.name}: {stopped.reason} {message}".strip())
        return "".join(f"; {reason}" for reason in sorted(filter(None, reasons)))


def _bound(client: Any) -> None:
    """Give every call of a Kubernetes API client a time-out. By itself it would wait forever."""
    original = client.call_api

    def bounded(*arguments: Any, **keywords: Any) -> Any:
        keywords["_request_timeout"] = keywords.get("_request_timeout") or _TIMEOUTS
        return original(*arguments, **keywords)

    client.call_api = bounded


def _message(refused: Any) -> str:
    try:
        message: str = json.loads(refused.body)["message"]
        return message
    except (TypeError, ValueError, KeyError):
        return str(refused.reason)


def _typed(body: Object, namespace: str) -> Any:
    from kserve import V1beta1InferenceService
    from kubernetes.client import V1ObjectMeta

    given = body["metadata"]
    return V1beta1InferenceService(
        api_version=body["apiVersion"],
        kind=body["kind"],
        metadata=V1ObjectMeta(
            name=given["name"],
            namespace=namespace,
            labels=given.get("labels"),
            annotations=given.get("annotations"),
            resource_version=given.get("resourceVersion"),
            finalizers=given.get("finalizers"),
            owner_references=given.get("ownerReferences"),
        ),
        spec=body["spec"],
    )
