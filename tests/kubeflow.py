"""A stand-in for the HTTP API of Kubeflow Pipelines (v2beta1), which keeps runs and records calls."""

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

NOW = {"created_at": "2026-11-23T00:00:00Z"}


class Kubeflow(ThreadingHTTPServer):
    """`states` are what looks at a run find, one after the other; the last one stays. `refuse` is answered to a POST of a run, `refuse_all` to everything."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.calls: list[tuple[str, str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.states: list[dict[str, Any]] = [{"state": "SUCCEEDED"}]
        self.multi_user = False
        self.refuse: tuple[int, Any] | None = None
        self.refuse_all: tuple[int, Any] | None = None
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def sent(self, path: str) -> Any:
        """Body of the last POST to a path."""
        return [body for method, where, body in self.calls if method == "POST" and where == path][-1]


class _Handler(BaseHTTPRequestHandler):
    server: Kubeflow

    def log_message(self, *_: Any) -> None:
        pass

    def _send(self, status: int, body: Any) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _do(self) -> None:
        host, path = self.server, self.path.split("?")[0]
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        host.calls.append((self.command, path, body))
        host.headers.append({name.lower(): value for name, value in self.headers.items()})
        if host.refuse_all is not None:
            return self._send(*host.refuse_all)
        if host.refuse is not None and (self.command, path) == ("POST", "/apis/v2beta1/runs"):
            return self._send(*host.refuse)
        if path.endswith("/healthz"):
            return self._send(200, {"multi_user": host.multi_user})
        if path == "/apis/v2beta1/experiments":
            if self.command == "GET":
                return self._send(200, {"experiments": []})
            if host.multi_user and not body.get("namespace"):
                return self._send(400, {"message": "a multi-user Kubeflow needs a namespace"})
            return self._send(200, body | NOW | {"experiment_id": "e1"})
        if path == "/apis/v2beta1/runs":
            return self._send(200, body | NOW | {"run_id": "r1", "state": "PENDING"})
        if re.fullmatch("/apis/v2beta1/runs/r1", path):
            state = host.states.pop(0) if len(host.states) > 1 else host.states[0]
            if "drop" in state:
                return self._send(state["drop"], {"message": "dropped"})
            return self._send(200, NOW | {"run_id": "r1"} | state)
        return self._send(404, {"message": f"no {path}"})

    do_GET = do_POST = _do  # noqa: N815
