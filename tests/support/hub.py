"""Kubeflow Hub for tests: it keeps what it is told, and checks requests and its own answers against the OpenAPI."""

import contextlib
import copy
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from openapi_core import OpenAPI
from openapi_core.contrib.werkzeug import WerkzeugOpenAPIRequest, WerkzeugOpenAPIResponse
from openapi_core.exceptions import OpenAPIError
from werkzeug.serving import make_server
from werkzeug.wrappers import Request, Response

from tests.support import SHARED

SCHEMA = SHARED / "schemas" / "model-registry.yaml"
ALPHA = "v1alpha3"
"""Version of the API that the schema describes. Version 1 has the same records."""
TOKEN = "token-of-the-hub"
PARENTS = {"model_version": "registeredModelId", "model_artifact": "modelVersionId"}


class Hub:
    """A Hub that demands TOKEN.

    Attributes:
        url: Its address.
        kept: What it keeps: of each kind (registered_model, model_version, model_artifact) every record by id.
        requests: Method and path of every request.
        problems: What does not agree with the schema.
        broken: Status with which every later request is refused; 0 for none.
    """

    def __init__(self, api: str) -> None:
        text = SCHEMA.read_text().replace(f"/{ALPHA}/", f"/{api}/")
        spec = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        self._prefix = f"/api/model_registry/{api}/"
        self.url = ""
        self.kept: dict[str, dict[str, dict[str, Any]]] = {
            "registered_model": {},
            "model_version": {},
            "model_artifact": {},
        }
        self.requests: list[tuple[str, str]] = []
        self.problems: list[str] = []
        self.broken = 0
        self._spec = spec
        self._openapi: OpenAPI | None = None

    def listen(self, url: str) -> None:
        self.url = url
        self._openapi = OpenAPI.from_dict(self._spec | {"servers": [{"url": url}]})

    def __call__(self, environ: dict[str, Any], start: Any) -> Any:
        request = Request(environ)
        self.requests.append((request.method, request.path))
        return self._answer(request)(environ, start)

    def _answer(self, request: Request) -> Response:
        if not request.path.startswith(self._prefix):  # as the server's router does
            return Response("404 page not found\n", 404, content_type="text/plain; charset=utf-8")
        if self.broken or request.headers.get("authorization") != f"Bearer {TOKEN}":
            return self._said(self.broken or 401, {"code": "", "message": "refused"})
        assert self._openapi is not None
        seen = WerkzeugOpenAPIRequest(request)
        try:
            self._openapi.validate_request(seen)
            status, body = self._do(request)
            answer = self._said(status, body)
            self._openapi.validate_response(seen, WerkzeugOpenAPIResponse(answer))
        except OpenAPIError as error:
            self.problems.append(f"{request.method} {request.path}: {error!r} {error.__cause__!r}")
            return self._said(400, {"code": "", "message": "not the schema's"})
        return answer

    def _said(self, status: int, body: dict[str, Any]) -> Response:
        return Response(json.dumps(body), status, content_type="application/json")

    def _do(self, request: Request) -> tuple[int, dict[str, Any]]:
        kind, *rest = request.path.removeprefix(self._prefix).split("/")
        wanted = request.args.get("name"), request.args.get("parentResourceId")
        if kind in self.kept:  # find one
            rows = [row for row in self.kept[kind].values() if row["name"] == wanted[0]]
            rows = [row for row in rows if kind not in PARENTS or row[PARENTS[kind]] == wanted[1]]
            return (200, self._shown(rows[0])) if rows else (404, {"code": "", "message": "none"})
        kind = kind.removesuffix("s")
        if request.method == "PATCH":
            row = self.kept[kind][rest[0]]
            row |= {name: value for name, value in request.get_json().items() if value is not None}
            return 200, self._shown(row)
        if request.method == "POST" and rest:  # an artefact of a version
            return 200, self._add("model_artifact", request.get_json() | {"modelVersionId": rest[0]})
        if request.method == "POST":
            return 201, self._add(kind, request.get_json())
        rows = list(self.kept["model_version" if rest else kind].values())
        rows = [row for row in rows if not rest or row["registeredModelId"] == rest[0]]
        size, first = int(request.args["pageSize"]), int(request.args.get("nextPageToken") or 0)
        page = [self._shown(row) for row in rows[first : first + size]]
        token = str(first + size) if first + size < len(rows) else ""
        return 200, {"items": page, "size": len(page), "pageSize": size, "nextPageToken": token}

    def _add(self, kind: str, row: dict[str, Any]) -> dict[str, Any]:
        number = str(1 + sum(map(len, self.kept.values())))
        self.kept[kind][number] = row | {"id": number}
        return self._shown(self.kept[kind][number])

    def _shown(self, row: dict[str, Any]) -> dict[str, Any]:
        return copy.deepcopy({name: value for name, value in row.items() if name != "modelVersionId"})


@contextlib.contextmanager
def running(api: str = ALPHA) -> Iterator[Hub]:
    """A Hub that speaks one version of the API; nothing may disagree with the schema in the end."""
    if not SCHEMA.is_file():
        pytest.skip("the OpenAPI of Kubeflow's model registry (../shared/schemas) is not on this machine")
    with listening(hub := Hub(api)) as url:
        hub.listen(url)
        yield hub
    assert hub.problems == []


@contextlib.contextmanager
def listening(application: Any) -> Iterator[str]:
    """The address of a server of a WSGI application."""
    server = make_server("127.0.0.1", 0, application, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
