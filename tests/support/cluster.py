"""A fake Kubernetes API server with KServe: it stores objects, checks them against the schemas, and records calls.

A new generation of an object becomes ready after it was read a number of times, which the test sets.
"""

import copy
import json
import re
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

from tests.support import schemas

Object = dict[str, Any]


class Cluster(ThreadingHTTPServer):
    """The server. `objects` maps (plural, name) to objects.

    `refuse` maps (method, plural) to answers that are given instead, in their order.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.calls: list[tuple[str, str, Object | None, str]] = []
        self.objects: dict[tuple[str, str], Object] = {}
        self.refuse: dict[tuple[str, str], list[tuple[int, Object | str]]] = {}
        self.pods: list[Object] = []
        self.known = {"inferenceservices", "servingruntimes", "httproutes"}
        self.schemas = schemas.definitions()
        self.looks_until_ready = 2
        self.answer: Callable[[int], Object] | None = None  # the endpoint's prediction for a version
        self.serving: dict[str, int] = {}
        self.questions: list[tuple[Object, str | None]] = []
        self.status: Callable[[Object], Object] | None = None
        self.before_write: Callable[[str], None] | None = None
        self.looks_until_gone = 3  # reads of a deleted object until its finalizers are done
        self._looks: dict[tuple[str, int], int] = {}
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

    def put(self, plural: str, body: Object) -> None:
        body["metadata"] = {"resourceVersion": "1", "generation": 1, **body["metadata"]}
        self.objects[plural, body["metadata"]["name"]] = body

    def delete(self, plural: str, name: str) -> None:
        """Delete an object at once, or after its finalizers are done if it has any."""
        metadata = self.objects[plural, name]["metadata"]
        if metadata.get("finalizers"):
            metadata["deletionTimestamp"] = "2026-11-28T12:00:00Z"
        else:
            del self.objects[plural, name]
        self.serving.pop(name, None)

    def written(self) -> list[tuple[str, str, Object]]:
        """Return (method, kind, body) of the calls that changed something."""
        return [(m, p.split("?")[0].split("/")[-1], b) for m, p, b, _ in self.calls if m not in ("GET", "DELETE") and b]

    def look(self, name: str, body: Object) -> Object:
        """Return the object's status so far. Pods of the previous generation serve until the new ones are up.

        As in KServe, observedGeneration is the counter of a child object and says nothing about this generation.
        """
        generation = body["metadata"]["generation"]
        seen = self._looks[name, generation] = self._looks.get((name, generation), 0) + 1
        predictor = body["spec"]["predictor"]
        version = Path(predictor["model"]["storageUri"]).name
        if seen > self.looks_until_ready and self.status is None:
            self.serving[name] = int(version) if version.isdigit() else 0
        if self.status is not None:
            return self.status(body)
        if name not in self.serving:
            waiting = {"type": "PredictorReady", "status": "Unknown", "reason": "MinimumReplicasUnavailable"}
            return {"observedGeneration": 7, "conditions": [{"type": "Ready", "status": "Unknown"}, waiting]}
        status = {
            "observedGeneration": 7,
            "conditions": [{"type": "Ready", "status": "True"}, {"type": "PredictorReady", "status": "True"}],
            "url": f"{self.url}/{name}",
        }
        if "canaryTrafficPercent" in predictor:
            latest = {"latestRevision": True, "url": f"{self.url}/{name}/latest", "percent": 10, "tag": "latest"}
            status["components"] = {"predictor": {"traffic": [latest]}}
        return status


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
        cluster = self.server
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        if self.path.endswith(":predict"):
            cluster.questions.append((body, self.headers.get("Authorization")))
            assert cluster.answer is not None
            status, prediction = 200, cluster.answer(cluster.serving[self.path.split("/")[1]])
            if "error" in prediction:
                status, prediction = prediction["error"], {"error": "refused"}
            return self._send(status, {"predictions": [prediction]})
        cluster.calls.append((self.command, self.path, body, self.headers.get("Content-Type", "")))
        path = self.path.split("?")[0]
        if re.fullmatch(r"/api/v1/namespaces/[^/]+/pods", path):
            return self._send(200, {"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": cluster.pods})
        found = re.fullmatch(r"/apis/([^/]+)/([^/]+)/namespaces/([^/]+)/(\w+)(?:/([\w-]+))?", path)
        if not found or found[4] not in cluster.known:
            return self._send(404, "404 page not found")
        plural, name = found[4], found[5] or (body or {}).get("metadata", {}).get("name", "")
        if self.command != "GET" and cluster.before_write is not None:
            cluster.before_write(plural)
        if cluster.refuse.get((self.command, plural)):
            status, answer = cluster.refuse[self.command, plural].pop(0)
            return self._send(status, answer) if isinstance(answer, dict) else self._refuse(status, answer)
        return self._object(plural, name, body)

    def _object(self, plural: str, name: str, body: Object | None) -> None:
        cluster = self.server
        live = cluster.objects.get((plural, name))
        if self.command == "POST":
            assert body is not None
            if live is not None:
                return self._refuse(409, f"{plural} {name} already exists")
        elif live is None:
            return self._refuse(404, f'{plural} "{name}" not found')
        if self.command == "GET":
            assert live is not None
            if "deletionTimestamp" in live["metadata"]:
                self._finalize(plural, name)
                return self._send(200, live)
            if plural == "inferenceservices":
                live["status"] = cluster.look(name, live)
                assert not schemas.problems(live, cluster.schemas), "the stand-in's own answers fit the schema"
            return self._send(200, live)
        if self.command == "DELETE":
            cluster.delete(plural, name)
            return self._send(200, {"kind": "Status", "status": "Success"})
        assert body is not None
        new = copy.deepcopy(body)
        if live is not None:
            if self.command == "PUT" and body["metadata"].get("resourceVersion") != live["metadata"]["resourceVersion"]:
                return self._refuse(
                    409, "the object has been modified; please apply your changes to the latest version"
                )
            if self.command == "PATCH":
                new = copy.deepcopy(live) | {"spec": live["spec"] | body["spec"]}
        if wrong := schemas.problems({k: v for k, v in new.items() if k != "status"}, cluster.schemas):
            return self._refuse(422, "; ".join(wrong))
        old = live["metadata"] if live else {"resourceVersion": "0", "generation": 0}
        changed = live is None or live["spec"] != new["spec"]
        new["metadata"] = new["metadata"] | {
            "resourceVersion": str(int(old["resourceVersion"]) + 1),
            "generation": old["generation"] + changed,
            "uid": "0a1b",
        }
        cluster.objects[plural, name] = new
        return self._send(201 if live is None else 200, new)

    def _finalize(self, plural: str, name: str) -> None:
        cluster = self.server
        cluster.looks_until_gone -= 1
        if cluster.looks_until_gone < 0:
            del cluster.objects[plural, name]

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _do  # noqa: N815
