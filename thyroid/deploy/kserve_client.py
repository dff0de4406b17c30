"""KServe's client of a cluster, one namespace of it: every call ends in time, and its errors are for people."""

import json
import sys
import time
from collections.abc import Callable
from typing import Any

from thyroid.errors import InputError

_TIMEOUTS = (5.0, 30.0)  # seconds to connect and to answer; the client by itself would wait for ever
_PATIENCE = 30.0  # seconds: an API server that restarts is away for some, then refuses for two (403, 404, 503)
_PAUSE = 1.0
_RESTARTING = (401, 403, 404)
"""What an API server answers for a moment after its start, and what lasting mistakes look like, too."""

_SAID = 500  # characters of a container's last words, which are the end of its log where it wrote no others

Object = dict[str, Any]


class ConflictError(InputError):
    """Somebody changed the object between reading and writing it."""


class PassingError(InputError):
    """The API server could not be reached or failed: it says nothing about the model."""


class _RefusedError(InputError):
    """One of `_RESTARTING`: the API server refuses the call, or has just started."""


class Cluster:
    """One namespace of a Kubernetes cluster with KServe.

    What the API server refuses is an `InputError`; a `ConflictError` where somebody changed the object meanwhile, and a
    `PassingError` where it could not be reached or failed itself. Once it has answered, such failures and what it refuses
    with 401, 403 or 404 are tried again for `_PATIENCE` seconds, since it may be restarting.

    Raises:
        InputError: there is no cluster here.
    """

    def __init__(self, namespace: str) -> None:
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
        """`call`'s result; None for the 404 of an object that may be `absent`."""
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
                return None  # the object is not there; where its kind is not, the answer is not a Status
            if refused.status == 409:
                raise ConflictError(_message(refused)) from None
            if refused.status == 403 and "exceeded quota" in _message(refused):
                raise InputError(
                    f"{what}: {_message(refused)}; raise the ResourceQuota of namespace {self.namespace}, or remove what "
                    "uses it up"
                ) from None
            hint = {
                403: "; the account needs the role in manifests/base/rbac.yaml",
                404: "; is KServe installed on this cluster? docs/kubeflow.md says how",
                422: "; the object does not fit this KServe's schema",
            }.get(refused.status or 0, "")
            kind: type[InputError] = _RefusedError if refused.status in _RESTARTING else InputError
            if (refused.status or 0) >= 500 or refused.status == 429:
                kind = PassingError
            raise kind(f"{what}: {refused.status} {_message(refused)}{hint}") from None

    def get(self, name: str) -> Object | None:
        return self._do(
            f"InferenceService {name}", lambda: self.kserve.get(name, namespace=self.namespace), absent=True
        )

    def create(self, body: Object) -> Object:
        typed = _typed(body, self.namespace)
        return self._do(
            f"creating InferenceService {body['metadata']['name']}",
            lambda: self.kserve.create(typed, namespace=self.namespace),
        )

    def replace(self, body: Object) -> Object:
        name = body["metadata"]["name"]
        typed = _typed(body, self.namespace)
        done = self._do(
            f"updating InferenceService {name}",
            lambda: self.kserve.replace(name, typed, namespace=self.namespace),
            absent=True,
        )
        if done is None:
            raise ConflictError(f"InferenceService {name} was deleted meanwhile")
        return done

    def delete(self, name: str) -> None:
        self._do(
            f"removing InferenceService {name}",
            lambda: self.kserve.delete(name, namespace=self.namespace),
            absent=True,
        )

    def need_runtime(self, name: str) -> None:
        """Raises InputError if our ServingRuntime is not in the namespace: KServe would look for another one in vain."""
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
        """An HTTPRoute (gateway.networking.k8s.io/v1); None where there is none."""
        api, place = self.kserve.api_instance, self._routes(name)
        return self._do(f"HTTPRoute {name}", lambda: api.get_namespaced_custom_object(*place), absent=True)

    def patch_route(self, name: str, patch: Object) -> None:
        """Change parts of an HTTPRoute."""
        api, place = self.kserve.api_instance, self._routes(name)
        self._do(f"HTTPRoute {name}", lambda: api.patch_namespaced_custom_object(*place, patch))

    def _routes(self, name: str) -> tuple[str, ...]:
        return ("gateway.networking.k8s.io", "v1", self.namespace, "httproutes", name)

    def pods(self, name: str) -> str:
        """Why its pods do not run, in their own words."""
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
                reasons.add(f"{pod.status.reason}: {pod.status.message}")  # evicted
            for one in [*(pod.status.init_container_statuses or []), *(pod.status.container_statuses or [])]:
                for state in (one.state, one.last_state):
                    stopped = state and (state.waiting or state.terminated)
                    if stopped and stopped.reason not in (None, "Completed", "PodInitializing", "ContainerCreating"):
                        said = " ".join((stopped.message or "").split())[-_SAID:]
                        reasons.add(f"container {one.name}: {stopped.reason} {said}".strip())
        return "".join(f"; {reason}" for reason in sorted(filter(None, reasons)))


def _bound(client: Any) -> None:
    """Give every call of a Kubernetes API client a time-out; by itself it would wait for ever."""
    original = client.call_api

    def bounded(*arguments: Any, **keywords: Any) -> Any:
        keywords["_request_timeout"] = keywords.get("_request_timeout") or _TIMEOUTS
        return original(*arguments, **keywords)

    client.call_api = bounded


def _message(refused: Any) -> str:
    try:
        return json.loads(refused.body)["message"]
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
