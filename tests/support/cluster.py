"""A fake Kubernetes API server with KServe, for the faults that a real one cannot be told to make.

It stores objects, checks them against the schemas, keeps the owners of their fields, and records calls. A new
generation of an InferenceService becomes ready after it was read a number of times, which the test sets.
"""

import copy
import json
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml

from tests.support import schemas

Object = dict[str, Any]
FieldPath = tuple[str, ...]
CHANGED = "the object has been modified; please apply your changes to the latest version"


class Cluster(ThreadingHTTPServer):
    """The server, and as an HTTP proxy the cluster's network.

    Attributes:
        objects: (plural, name) to an object.
        writes: (content type, body) of each PATCH.
        refuse: (method, plural) to the answers that are given instead, in their order.
        known: Plurals of the kinds that are installed.
        unknown: Fields of the specification that the installed KServe does not know, and drops.
        answer: The endpoint's prediction for a version.
        questions: (body, Authorization) of each request to the endpoint.
        asked: Names of the Services that got them.
        serving: Name of a Service to the version behind it.
        status: Makes the status of an InferenceService in place of `look`.
        before_write: Called once, before the next call that is no GET.
        looks_until_gone: Readings of a deleted object until its finalizers are done.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects: dict[tuple[str, str], Object] = {}
        self.writes: list[tuple[str, Any]] = []
        self.refuse: dict[tuple[str, str], list[tuple[int, Object | str]]] = {}
        self.pods: list[Object] = []
        self.known = {"inferenceservices", "servingruntimes", "httproutes", "pods"}
        self.unknown: set[str] = set()
        self.schemas = schemas.definitions()
        self.looks_until_ready = 2
        self.looks_until_gone = 3
        self.answer: Callable[[int], Object] | None = None
        self.questions: list[tuple[Object, str | None]] = []
        self.asked: list[str] = []
        self.serving: dict[str, int] = {}
        self.status: Callable[[Object], Object] | None = None
        self.before_write: Callable[[], None] | None = None
        self._looks: dict[int, int] = {}
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def kubeconfig(self, folder: Path) -> Path:
        file = folder / "kubeconfig"
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
            "clusters": [{"name": "test", "cluster": {"server": self.url}}],
            "users": [{"name": "test", "user": {}}],
        }
        file.write_text(yaml.safe_dump(content))
        return file

    def put(self, plural: str, body: Object, manager: str = "kubectl-create") -> None:
        """Store an object that `manager` has created."""
        body["metadata"] = {"resourceVersion": "1", "generation": 1, **body["metadata"]}
        _set_owners(body, {(manager, "Update"): set(_fields(body))})
        self.objects[plural, body["metadata"]["name"]] = body

    def edit(self, path: str, value: Any, manager: str = "kubectl-edit") -> None:
        """Set a field of the InferenceService by hand, such as "spec.predictor.minReplicas"; None removes it."""
        live, keys = self.objects["inferenceservices", "thyroid"], tuple(path.split("."))
        owners = _owners(live)
        for paths in owners.values():
            paths -= {one for one in paths if one[: len(keys)] == keys}
        _remove(live, keys)
        if value is not None:
            _write(live, keys, value)
            mine = {one for one in _fields(live) if one[: len(keys)] == keys}
            owners[manager, "Update"] = owners.get((manager, "Update"), set()) | mine
        _set_owners(live, owners)
        live["metadata"]["resourceVersion"] = str(int(live["metadata"]["resourceVersion"]) + 1)
        live["metadata"]["generation"] += 1

    def delete(self, plural: str, name: str) -> None:
        """Delete an object at once, or after its finalizers are done if it has any."""
        metadata = self.objects[plural, name]["metadata"]
        if metadata.get("finalizers"):
            metadata["deletionTimestamp"] = "2026-11-28T12:00:00Z"
        else:
            del self.objects[plural, name]
        self.serving.clear()

    def look(self, body: Object) -> Object:
        """Return the status so far. Pods of the previous generation serve until the new ones are up.

        As in KServe, observedGeneration is the counter of a child object and says nothing about this generation.
        """
        generation, predictor = body["metadata"]["generation"], body["spec"]["predictor"]
        self._looks[generation] = self._looks.get(generation, 0) + 1
        canaries = {f"thyroid-{one['predictor']['name']}-predictor": one for one in body["spec"].get("canary", [])}
        if self._looks[generation] > self.looks_until_ready:
            wanted = {"thyroid-predictor": predictor} | {name: one["predictor"] for name, one in canaries.items()}
            self.serving = {name: _version(one) for name, one in wanted.items()}
        rows = [
            {
                "name": one["predictor"]["name"],
                "ready": self.serving.get(name) == _version(one["predictor"]),
                "trafficPercent": one["trafficPercent"],
            }
            for name, one in canaries.items()
        ]
        more: Object = {"observedGeneration": 7} | ({"canaryStatuses": rows} if rows else {})
        if "thyroid-predictor" not in self.serving:
            waiting = {"type": "PredictorReady", "status": "Unknown", "reason": "MinimumReplicasUnavailable"}
            return {"conditions": [{"type": "Ready", "status": "Unknown"}, waiting]} | more
        if "canaryTrafficPercent" in predictor:
            latest = {"latestRevision": True, "url": f"{self.url}/latest-thyroid-predictor", "percent": 10}
            more["components"] = {
                "predictor": {"traffic": [{"latestRevision": False, "percent": 90}, latest | {"tag": "latest"}]}
            }
        return {
            "conditions": [{"type": "Ready", "status": "True"}, {"type": "PredictorReady", "status": "True"}],
            "url": f"{self.url}/thyroid-predictor",
            "address": {"url": "http://thyroid-predictor.lab.svc.cluster.local"},
        } | more


def _version(predictor: Object) -> int:
    name = Path(predictor["model"]["storageUri"]).name
    return int(name) if name.isdigit() else 0


def _fields(body: Object) -> dict[FieldPath, Any]:
    """Map the paths of the fields that have owners to their values. A list is one field."""
    metadata = {key: body["metadata"].get(key) or {} for key in ("labels", "annotations")}
    found = dict(_leaves({"metadata": metadata, "spec": body["spec"]}))
    return {path: value for path, value in found.items() if path[:1] == ("spec",) or len(path) > 2}


def _leaves(content: Object, above: FieldPath = ()) -> Iterator[tuple[FieldPath, Any]]:
    for key, value in content.items():
        yield from _leaves(value, (*above, key)) if isinstance(value, dict) and value else [((*above, key), value)]


def _write(content: Object, path: FieldPath, value: Any) -> None:
    for key in path[:-1]:
        content = content.setdefault(key, {})
    content[path[-1]] = value


def _remove(content: Object, path: FieldPath) -> None:
    """Remove a field, and what holds nothing else."""
    if len(path) > 1 and path[0] in content:
        _remove(content[path[0]], path[1:])
    if len(path) == 1 or content.get(path[0]) == {}:
        content.pop(path[0], None)


def _owners(body: Object) -> dict[tuple[str, str], set[FieldPath]]:
    """Map (manager, operation) to the paths of its fields, as metadata.managedFields says."""

    managed = body["metadata"].get("managedFields", [])
    names = {(one["manager"], one["operation"]): [path for path, _ in _leaves(one["fieldsV1"])] for one in managed}
    return {who: {tuple(key.removeprefix("f:") for key in path) for path in paths} for who, paths in names.items()}


def _set_owners(body: Object, owners: dict[tuple[str, str], set[FieldPath]]) -> None:
    managed = []
    for (manager, operation), paths in (owners | {("manager", "Update"): {("status", "url")}}).items():
        fields: Object = {}
        for path in paths:
            _write(fields, tuple(key if key == "." else f"f:{key}" for key in path), {})
        row = {"manager": manager, "operation": operation, "apiVersion": body.get("apiVersion", "v1")}
        managed += [row | {"fieldsType": "FieldsV1", "fieldsV1": fields}] if fields else []
    body["metadata"]["managedFields"] = managed


def _applied(live: Object, body: Object, manager: str) -> Object:
    """Return an object after a server-side apply by force."""
    new, sent, had = copy.deepcopy(live), _fields(body), _fields(live)
    owners = _owners(live)
    gone = owners.pop((manager, "Apply"), set()) - sent.keys()
    for path in gone - set().union(*owners.values()):
        _remove(new, path)
    for path, value in sent.items():
        if had.get(path) != value:
            _write(new, path, value)
            for paths in owners.values():
                paths.discard(path)
    _set_owners(new, {(manager, "Apply"): set(sent)} | owners)
    return new


def _patched(live: Object, operations: list[Object]) -> Object:
    """Return an object after a JSON patch, of which only "replace" is known."""
    new = copy.deepcopy(live)
    for one in operations:
        _write(new, tuple(one["path"].split("/")[1:]), one["value"])
    return new


class _Handler(BaseHTTPRequestHandler):
    server: Cluster
    disable_nagle_algorithm = True  # or an answer's body would wait 40 ms for the acknowledgement of its head

    def log_message(self, *_: Any) -> None:
        pass

    def _send(self, status: int, body: Object | str) -> None:
        data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain" if isinstance(body, str) else "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _refuse(self, status: int, message: str) -> None:
        self._send(status, {"kind": "Status", "status": "Failure", "code": status, "message": message})

    def _do(self) -> None:
        cluster, asked = self.server, urlsplit(self.path)
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        if asked.path.endswith(":predict"):
            host = asked.hostname or ""
            return self._predict(
                host.split(".")[0] if host.endswith(".svc.cluster.local") else asked.path.split("/")[1], body
            )
        found = re.fullmatch(r"/apis?/.+/namespaces/[^/]+/(\w+)(?:/([\w-]+))?", asked.path)
        if not found or found[1] not in cluster.known:
            return self._send(404, "404 page not found")
        plural, name = found.groups()
        if self.command == "PATCH":
            cluster.writes.append((self.headers["Content-Type"], body))
        if self.command != "GET" and cluster.before_write is not None:
            then, cluster.before_write = cluster.before_write, None
            then()
        if cluster.refuse.get((self.command, plural)):
            status, answer = cluster.refuse[self.command, plural].pop(0)
            return self._send(status, answer) if isinstance(answer, dict) else self._refuse(status, answer)
        if plural == "pods":
            return self._send(200, {"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": cluster.pods})
        if self.command == "PATCH":
            return self._patch(plural, name, body)
        live = cluster.objects.get((plural, name))
        if live is None:
            return self._refuse(404, f'{plural} "{name}" not found')
        if self.command == "DELETE":
            assert body is not None
            if body["preconditions"]["resourceVersion"] != live["metadata"]["resourceVersion"]:
                return self._refuse(409, CHANGED)
            cluster.delete(plural, name)
            return self._send(200, {"kind": "Status", "status": "Success"})
        if "deletionTimestamp" in live["metadata"]:
            cluster.looks_until_gone -= 1
            if cluster.looks_until_gone < 0:
                del cluster.objects[plural, name]
        elif plural == "inferenceservices":
            live["status"] = (cluster.status or cluster.look)(live)
            assert not schemas.problems(live, cluster.schemas), "the stand-in's own answers fit the schema"
        return self._send(200, live)

    def _predict(self, service: str, body: Any) -> None:
        cluster = self.server
        cluster.questions.append((body, self.headers.get("Authorization")))
        cluster.asked.append(service)
        assert cluster.answer is not None
        prediction = cluster.answer(cluster.serving[service.removeprefix("latest-")])
        if "error" in prediction:
            return self._send(prediction["error"], prediction.get("text", "refused"))
        return self._send(200, {"predictions": [prediction]})

    def _patch(self, plural: str, name: str, body: Any) -> None:
        cluster, live = self.server, self.server.objects.get((plural, name))
        if live is None and isinstance(body, list):
            return self._refuse(404, f'{plural} "{name}" not found')
        old: Object = live or {"metadata": {"name": name, "resourceVersion": "0", "generation": 0}, "spec": {}}
        if isinstance(body, list):
            new = _patched(old, body)
            version = new["metadata"]["resourceVersion"]
        else:
            kind, query = {key: body[key] for key in ("apiVersion", "kind")}, parse_qs(urlsplit(self.path).query)
            assert query["force"] == ["true"], "conflicts are left to a real server"
            new = _applied(kind | old, body, query["fieldManager"][0])
            version = (
                body["metadata"].get("resourceVersion") if live else None
            )  # a real one makes a missing one anew, too
        if version not in (None, old["metadata"]["resourceVersion"]):
            return self._refuse(409, CHANGED)
        new["spec"] = {key: value for key, value in new["spec"].items() if key not in cluster.unknown}
        if wrong := schemas.problems({key: value for key, value in new.items() if key != "status"}, cluster.schemas):
            return self._refuse(422, "; ".join(wrong))
        if new != live:
            new["metadata"]["resourceVersion"] = str(int(old["metadata"]["resourceVersion"]) + 1)
            new["metadata"]["generation"] += old["spec"] != new["spec"]
            cluster.objects[plural, name] = new
        return self._send(201 if live is None else 200, new)

    do_GET = do_POST = do_PATCH = do_DELETE = _do  # noqa: N815
