"""KServe 0.20's controller for one namespace of a real API server.

It starts a real endpoint for each version that an InferenceService asks for. There are no pods.
"""

import http.client
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kubernetes import config
from kubernetes.client.rest import ApiException
from urllib3.exceptions import HTTPError

from tests.support import toy_artefact, toy_locator
from tests.support.serving import Server
from thyroid.model.artefact import Artefact
from thyroid.registry.registry import Registry

Object = dict[str, Any]
MODE = "serving.kserve.io/deploymentMode"
FINALIZER = "inferenceservice.finalizers"
PREDICTOR_PORT = 80
MESSAGE_LENGTH = 500
"""Characters of a failed server's log in the status, which are its end."""
UNCHECKED = "from thyroid.serve.reference import check; check.TOLERANCE = 1"
"""What each endpoint runs first: by itself it refuses to serve a wrong answer, which the proof is to find here."""
_TIMEOUTS = (2.0, 5.0)  # seconds to connect to the API server, and to get its answer
_PASSING = (401, 403, 404, 409, 429, 500, 503)  # what a restarting API server, or somebody else's write, answers
_STATES = {"Loading": "InProgress", "Loaded": "UpToDate", "FailedToLoad": "BlockedByFailedLoad"}


def publish(root: Path, fault: Literal["", "wrong answer", "damaged"] = "") -> int:
    """Publish a toy model as the registry's next champion, and return its version.

    Args:
        root: Root of the registry.
        fault: "wrong answer" for a model whose answer to the reference image is not the one that its model.json holds,
            "damaged" for one that does not load.
    """
    registry = Registry(root)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "model.keras").write_bytes(str(time.time_ns()).encode())  # another model each time
        artefact = toy_locator.build(Path(folder))
        if fault == "wrong answer":
            card = Artefact.read(artefact).record
            other = {"reference": {label: 1 - p for label, p in card.reference.items()}}
            card.model_copy(update=other).write(artefact / "model.json")
        version = registry.publish(artefact, toy_artefact.gate("promoted", registry.champion())).version
    if fault == "damaged":
        (registry.find(str(version)) / "openvino" / "model.bin").write_bytes(b"")
    return version


class Api:
    """Calls of the API server's REST interface.

    Args:
        kubeconfig: File with the address of the server and the rights of an account.
    """

    def __init__(self, kubeconfig: Path) -> None:
        self._client = config.new_client_from_config(str(kubeconfig))
        self._client.user_agent = "manager"  # the field manager of KServe's controller

    def __call__(self, method: str, path: str, body: Object | None = None, **query: str) -> Object:
        """Return the answer to one call. A PATCH is a merge patch."""
        kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
        answer: Object = self._client.call_api(
            path,
            method,
            query_params=list(query.items()),
            header_params={"Content-Type": kind, "Accept": "application/json"},
            body=body,
            response_type="object",
            auth_settings=["BearerToken"],
            _return_http_data_only=True,
            _request_timeout=_TIMEOUTS,
        )
        return answer


@dataclass
class Predictor:
    """A predictor with its Service.

    Attributes:
        wanted: storageUri that the InferenceService asks for.
        serving: The last such URI that became ready, which gets the requests; "" if there was none.
        settled: The last one that got all of them, in Knative mode.
        revision: Number of changes of `wanted`.
    """

    wanted: str = ""
    serving: str = ""
    settled: str = ""
    revision: int = 0


class Controller:
    """The controller. It runs from `with` to its end, and survives restarts of the API server.

    As with Deployments, an InferenceService in Standard mode stays ready while a version before serves, and only
    modelStatus tells what becomes of the next one. In Knative mode Ready waits for the latest revision.

    Args:
        kubeconfig: File with the rights of the cluster's administrator.
        namespace: Name of the namespace.
        volume: Folder that stands for the volume of pvc:// addresses.
        gateway: Whether the installation has the Gateway API, so that there is an HTTPRoute.
        deletion_seconds: How long a deleted InferenceService keeps its finalizer.

    Attributes:
        paused: A test sets it so that nothing happens for a while.
        events: What was done, in its order: "seen NAME", "started URI", "failed URI", "serving SERVICE URI",
            "removed SERVICE", "routed NAME {service: weight}", "deleting NAME", "deleted NAME".
        on_event: Called with each of these; the controller goes on when it returns.
        predictors: Name of a Service to its predictor.
        traffic: Name of an InferenceService to the weights of the URIs that share its requests.
        servers: storageUri to its endpoint.
    """

    def __init__(
        self, kubeconfig: Path, namespace: str, volume: Path, gateway: bool = True, deletion_seconds: float = 1.0
    ) -> None:
        self.namespace, self.paused, self.gateway, self.deletion_seconds = namespace, False, gateway, deletion_seconds
        self.events: list[str] = []
        self.on_event: Callable[[str], None] = lambda event: None
        self.predictors: dict[str, Predictor] = {}
        self.traffic: dict[str, Counter[str]] = {}
        self.servers: dict[str, Server] = {}
        self._ready: set[str] = set()
        self._owned: dict[str, set[str]] = {}  # names of an InferenceService's Services
        self._deleting: dict[str, float] = {}
        self._ended: list[Server] = []
        self._volume, self._api = volume, Api(kubeconfig)
        self._services = f"/apis/serving.kserve.io/v1beta1/namespaces/{namespace}/inferenceservices"
        self._routes = f"/apis/gateway.networking.k8s.io/v1/namespaces/{namespace}/httproutes"
        self._stopping = threading.Event()
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Controller":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()
        for server in (*self.servers.values(), *self._ended):
            server.kill()
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        while not self._stopping.wait(0.1):
            try:
                if not self.paused:
                    self._reconcile()
            except HTTPError:
                pass  # the API server is away
            except Exception as error:
                if not isinstance(error, ApiException) or error.status not in _PASSING:
                    self._failure = error
                    return

    def _event(self, event: str) -> None:
        self.events.append(event)
        self.on_event(event)

    def _reconcile(self) -> None:
        live = {one["metadata"]["name"]: one for one in self._api("GET", self._services)["items"]}
        for name in self._owned.keys() - live.keys():
            self._forget(name)
        for body in live.values():
            if body["metadata"].get("deletionTimestamp"):
                self._finalize(body)
            else:
                self._update(body)
        used = {uri for one in self.predictors.values() for uri in (one.wanted, one.serving, one.settled)}
        for uri in self.servers.keys() - used:
            self._ready.discard(uri)
            self._ended.append(self.servers.pop(uri))
            self._ended[-1].process.terminate()

    def _finalize(self, body: Object) -> None:
        name, finalizers = body["metadata"]["name"], body["metadata"].get("finalizers", [])
        if FINALIZER not in finalizers:
            return  # somebody else's still runs
        if name not in self._deleting:
            self._deleting[name] = time.monotonic()
            self._event(f"deleting {name}")
        if time.monotonic() - self._deleting[name] >= self.deletion_seconds:
            self._forget(name)
            rest = {"finalizers": [one for one in finalizers if one != FINALIZER]}
            self._api("PATCH", f"{self._services}/{name}", {"metadata": rest})
            del self._deleting[name]
            self._event(f"deleted {name}")

    def _forget(self, name: str) -> None:
        """Remove what belongs to an InferenceService. Only the finalizers of a cluster's own controllers would."""
        try:
            self._api("DELETE", f"{self._routes}/{name}")
        except ApiException as error:
            if error.status != 404:
                raise
        for service in self._owned.pop(name, set()):
            del self.predictors[service]
        self.traffic.pop(name, None)

    def _update(self, body: Object) -> None:
        metadata, name = body["metadata"], body["metadata"]["name"]
        if FINALIZER not in metadata.get("finalizers", []):
            added = {"finalizers": [*metadata.get("finalizers", []), FINALIZER]}
            body = self._api("PATCH", f"{self._services}/{name}", {"metadata": added})
            self._event(f"seen {name}")
        wanted = {service_name(name, one): one for one in _predictors(body)}
        for service in self._owned.get(name, set()) - wanted.keys():
            del self.predictors[service]
            self._event(f"removed {service}")
        self._owned[name] = set(wanted)
        for service, predictor in wanted.items():
            self._roll(service, predictor["model"]["storageUri"])
        weights = self._weights(body)
        if self.gateway and not _is_knative(body) and self.predictors[next(iter(wanted))].serving:
            self._route(body, weights)
        status = self._status(body)
        if body.get("status") != status:
            self._api("PUT", f"{self._services}/{name}/status", body | {"status": status})

    def _roll(self, service: str, uri: str) -> None:
        """Start a predictor's endpoint. The previous one gets the requests until it is ready."""
        predictor = self.predictors.setdefault(service, Predictor())
        if predictor.wanted != uri:
            predictor.wanted, predictor.revision = uri, predictor.revision + 1
        if uri not in self.servers:
            folder = self._volume / uri.removeprefix("pvc://").partition("/")[2]
            log = self._volume / f"server-{len(self.servers) + len(self._ended)}.log"
            self.servers[uri] = Server(log, "--model-dir", str(folder), before=UNCHECKED)
            self._event(f"started {uri}")
        if self._state(uri) == "Loaded" and predictor.serving != uri:
            predictor.serving = uri
            self._event(f"serving {service} {uri}")

    def _state(self, uri: str) -> str:
        """State of the endpoint of a URI, in KServe's words."""
        server = self.servers[uri]
        if server.process.poll() is not None:
            if f"failed {uri}" not in self.events:
                self._event(f"failed {uri}")
            return "FailedToLoad"
        if uri not in self._ready:
            probe = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)  # never through a proxy
            try:
                probe.request("GET", "/v2/health/ready")
                if probe.getresponse().status != 200:
                    return "Loading"
            except (OSError, http.client.HTTPException):
                return "Loading"
            finally:
                probe.close()
            self._ready.add(uri)
        return "Loaded"

    def _weights(self, body: Object) -> dict[str, int]:
        """Share the requests out, and return the weights of the Services. Only canaries that are ready get some."""
        name, predictor = body["metadata"]["name"], body["spec"]["predictor"]
        stable = service_name(name, predictor)
        found, traffic = self.predictors[stable], Counter[str]()
        if _is_knative(body):
            percent = predictor.get("canaryTrafficPercent", 100)
            if percent == 100 or not found.settled:
                found.settled = found.serving
            traffic[found.settled] = 100 - percent
            traffic[found.serving] += percent
            self.traffic[name] = traffic
            return {}
        weights = {stable: 100}
        for canary in body["spec"].get("canary") or []:
            service = service_name(name, canary["predictor"])
            if self.gateway and self._is_ready(service):
                weights[service] = canary["trafficPercent"]
                weights[stable] -= canary["trafficPercent"]
        for service, weight in weights.items():
            traffic[self.predictors[service].serving] += weight
        self.traffic[name] = traffic
        return weights

    def _is_ready(self, service: str) -> bool:
        predictor = self.predictors[service]
        return predictor.serving == predictor.wanted

    def _route(self, body: Object, weights: dict[str, int]) -> None:
        """Write KServe's own HTTPRoute, also over what somebody has changed in it."""
        name, uid = body["metadata"]["name"], body["metadata"]["uid"]
        owner = {"apiVersion": body["apiVersion"], "kind": body["kind"], "name": name, "uid": uid, "controller": True}
        kind = {"group": "", "kind": "Service", "namespace": self.namespace, "port": PREDICTOR_PORT}
        backends = [kind | {"name": service, "weight": weight} for service, weight in weights.items()]
        spec = {
            "hostnames": [self.public(name)],
            "parentRefs": [{"name": "kserve-ingress-gateway", "namespace": "kserve"}],
            "rules": [{"backendRefs": backends}],
        }
        route: Object = {"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "spec": spec}
        try:
            live = self._api("GET", f"{self._routes}/{name}")
        except ApiException as error:
            if error.status != 404:
                raise
            self._api("POST", self._routes, route | {"metadata": {"name": name, "ownerReferences": [owner]}})
        else:
            if live["spec"]["rules"][0].get("backendRefs") == backends:
                return
            self._api("PUT", f"{self._routes}/{name}", live | {"spec": spec})
        self._event(f"routed {name} {weights}")

    def public(self, name: str) -> str:
        """Public host of an InferenceService."""
        return f"{name}-{self.namespace}.example.com"

    def _status(self, body: Object) -> Object:
        name, knative = body["metadata"]["name"], _is_knative(body)
        stable = service_name(name, body["spec"]["predictor"])
        predictor = self.predictors[stable]
        state = self._state(predictor.wanted)
        if predictor.serving and not (knative and state != "Loaded"):  # Knative waits for the latest revision
            row = {"status": "True"}
        else:
            failed = state == "FailedToLoad"
            reason = "MinimumReplicasUnavailable" if not knative else "RevisionFailed" if failed else "RevisionMissing"
            message = "Deployment does not have minimum availability."
            row = {"status": "False" if failed else "Unknown", "reason": reason, "message": message}
        status: Object = {
            "observedGeneration": predictor.revision,
            "conditions": [{"type": kind} | row for kind in ("IngressReady", "PredictorReady", "Ready")],
            "deploymentMode": "Knative" if knative else "Standard",
            "modelStatus": self._model_status(predictor.wanted),
            "components": {"predictor": {"url": f"http://{stable}-{self.namespace}.example.com"}},
        }
        if predictor.serving:
            inside = name if knative else stable
            status["url"] = f"http://{self.public(name)}"
            status["address"] = {"url": f"http://{inside}.{self.namespace}.svc.cluster.local"}
            if knative:
                latest = {"latestRevision": True, "tag": "latest", "percent": self.traffic[name][predictor.serving]}
                latest["url"] = f"http://latest-{stable}-{self.namespace}.example.com"
                status["components"]["predictor"]["traffic"] = [latest]
        if canaries := body["spec"].get("canary"):
            self._add_canaries(name, canaries, status)
        return status

    def _add_canaries(self, name: str, canaries: list[Object], status: Object) -> None:
        rows = []
        for canary in canaries:
            service = service_name(name, canary["predictor"])
            row = {"name": canary["predictor"]["name"], "trafficPercent": canary["trafficPercent"]}
            model = self._model_status(self.predictors[service].wanted)
            rows.append(row | {"ready": self._is_ready(service), "modelStatus": model})
        ready = all(row["ready"] for row in rows)
        row = {"type": "CanaryPredictorReady", "severity": "Info", "status": "True" if ready else "False"}
        status["conditions"].insert(0, row | {"reason": "AllCanariesReady" if ready else "CanariesNotReady"})
        status["canaryStatuses"] = rows

    def _model_status(self, uri: str) -> Object:
        state, server = self._state(uri), self.servers[uri]
        status: Object = {
            "transitionStatus": _STATES[state],
            "states": {"activeModelState": state if state == "Loaded" else "", "targetModelState": state},
            "copies": {"failedCopies": int(state == "FailedToLoad"), "totalCopies": 1},
        }
        if state == "FailedToLoad":
            message, code = server.log.read_text()[-MESSAGE_LENGTH:], server.process.returncode
            status["lastFailureInfo"] = {"reason": "ModelLoadFailed", "message": message, "exitCode": code}
        return status


def service_name(name: str, predictor: Object) -> str:
    """Name of a predictor's Service."""
    return "-".join(filter(None, (name, predictor.get("name"), "predictor")))


def _predictors(body: Object) -> list[Object]:
    """The stable predictor, and then those of the canaries."""
    return [body["spec"]["predictor"], *(canary["predictor"] for canary in body["spec"].get("canary") or [])]


def _is_knative(body: Object) -> bool:
    return (body["metadata"].get("annotations") or {}).get(MODE) == "Knative"
