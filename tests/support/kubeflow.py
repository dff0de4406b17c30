"""A fake HTTP API of Kubeflow Pipelines (v2beta1), which stores runs and schedules, and records calls."""

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import kfp_server_api

NOW = {"created_at": "2026-11-23T00:00:00Z"}
RECURRING = "/apis/v2beta1/recurringruns"
KNOWN = set(kfp_server_api.V2beta1RecurringRun.attribute_map.values())
"""Fields of a recurring run in the API's published description, from which the client's models are generated."""
STATUS = {"ENABLE": "ENABLED", "DISABLE": "DISABLED"}


class Kubeflow(ThreadingHTTPServer):
    """The server. `states` are the states that successive reads of a run return; the last one stays.

    `runs` holds the runs. The first `lost` of them are created, and the connection closes without an answer.
    `recurring` holds the schedules, and `largest_page` is the largest number of them in one answer. `refuse` is the
    answer to a POST of a run or a schedule, `refuse_delete` to the DELETE of the schedule with that id, and
    `refuse_all` to every request. A status of 0 closes the connection without an answer.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.calls: list[tuple[str, str, Any]] = []
        self.queries: list[dict[str, str]] = []
        self.headers: list[dict[str, str]] = []
        self.experiments: list[dict[str, Any]] = []
        self.runs: list[dict[str, Any]] = []
        self.lost = 0
        self.recurring: list[dict[str, Any]] = []
        self.largest_page = 100
        self.states: list[dict[str, Any]] = [{"state": "SUCCEEDED"}]
        self.multi_user = False
        self.refuse: tuple[int, Any] | None = None
        self.refuse_all: tuple[int, Any] | None = None
        self.refuse_delete: dict[str, tuple[int, Any]] = {}
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def sent(self, path: str) -> Any:
        """Return the body of the last POST to a path."""
        return [body for method, where, body in self.calls if method == "POST" and where == path][-1]


class _Handler(BaseHTTPRequestHandler):
    server: Kubeflow
    disable_nagle_algorithm = True  # or an answer's body would wait 40 ms for the acknowledgement of its head

    def log_message(self, *_: Any) -> None:
        pass

    def _send(self, status: int, body: Any) -> None:
        if status == 0:
            self.close_connection = True
            return
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _do(self) -> None:
        host, path = self.server, urlsplit(self.path).path
        query = dict(parse_qsl(urlsplit(self.path).query))
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        host.calls.append((self.command, path, body))
        host.queries.append(query)
        host.headers.append({name.lower(): value for name, value in self.headers.items()})
        if host.refuse_all is not None:
            return self._send(*host.refuse_all)
        if host.refuse is not None and self.command == "POST" and path in ("/apis/v2beta1/runs", RECURRING):
            return self._send(*host.refuse)
        if path.endswith("/healthz"):
            return self._send(200, {"multi_user": host.multi_user})
        if path == "/apis/v2beta1/experiments":
            if self.command == "GET":
                return self._send(200, {"experiments": host.experiments})
            if host.multi_user and not body.get("namespace"):
                return self._send(400, {"message": "a multi-user Kubeflow needs a namespace"})
            host.experiments.append(body | NOW | {"experiment_id": "e1"})
            return self._send(200, host.experiments[-1])
        if path == "/apis/v2beta1/runs":
            return self._start(body) if self.command == "POST" else self._list_runs(query)
        if re.fullmatch("/apis/v2beta1/runs/r[0-9]+", path):
            state = host.states.pop(0) if len(host.states) > 1 else host.states[0]
            if "drop" in state:
                return self._send(state["drop"], {"message": "dropped"})
            return self._send(200, NOW | {"run_id": path.rsplit("/", 1)[1]} | state)
        if path == RECURRING:
            return self._make(body) if self.command == "POST" else self._list(query)
        if path.startswith(f"{RECURRING}/"):
            return self._one(path.rsplit("/", 1)[1])
        return self._send(404, {"message": f"no {path}"})

    def _start(self, body: dict[str, Any]) -> None:
        host = self.server
        host.runs.append(body | NOW | {"run_id": f"r{len(host.runs) + 1}", "state": "PENDING"})
        if host.lost:
            host.lost -= 1
            return self._send(0, None)
        return self._send(200, host.runs[-1])

    def _list_runs(self, query: dict[str, str]) -> None:
        """One run a page, newest first, so that whoever reads only the first page is found out."""
        (wanted,) = json.loads(query["filter"])["predicates"]
        assert (wanted["operation"], wanted["key"]) == ("EQUALS", "display_name")
        mine = [one for one in self.server.runs if one["display_name"] == wanted["stringValue"]]
        mine = [one for one in mine[::-1] if one["experiment_id"] == query["experiment_id"]]
        start = int(query.get("page_token") or 0)
        more = {"next_page_token": str(start + 1)} if start + 1 < len(mine) else {}
        return self._send(200, {"runs": mine[start : start + 1], "total_size": len(mine)} | more)

    def _make(self, body: dict[str, Any]) -> None:
        host = self.server
        if unknown := body.keys() - KNOWN:
            return self._send(400, {"message": f"unknown field {sorted(unknown)[0]}"})
        if len(body["trigger"]["cron_schedule"]["cron"].split()) != 6 or not 1 <= int(body["max_concurrency"]) <= 10:
            return self._send(400, {"message": "the schedule is not supported"})
        taken = {one["recurring_run_id"] for one in host.recurring}
        name = next(f"s{number}" for number in range(1, 1000) if f"s{number}" not in taken)
        made = body | NOW | {"recurring_run_id": name, "updated_at": NOW["created_at"], "status": STATUS[body["mode"]]}
        made["max_concurrency"] = str(body["max_concurrency"])  # the API's answers hold 64-bit integers as text
        host.recurring.append(made)
        return self._send(200, made)

    def _list(self, query: dict[str, str]) -> None:
        mine = [one for one in self.server.recurring if one["experiment_id"] == query.get("experiment_id")]
        start = int(query.get("page_token") or 0)
        end = start + min(int(query["page_size"]), self.server.largest_page)
        more = {"next_page_token": str(end)} if end < len(mine) else {}
        return self._send(200, {"recurringRuns": mine[start:end], "total_size": len(mine)} | more)

    def _one(self, name: str) -> None:
        host = self.server
        if self.command == "DELETE" and name in host.refuse_delete:
            return self._send(*host.refuse_delete[name])
        found = [one for one in host.recurring if one["recurring_run_id"] == name]
        if not found:
            return self._send(404, {"message": f"no recurring run {name}"})
        if self.command == "DELETE":
            host.recurring.remove(found[0])
        return self._send(200, {} if self.command == "DELETE" else found[0])

    do_GET = do_POST = do_DELETE = _do  # noqa: N815
