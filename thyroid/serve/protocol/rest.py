"""HTTP: KServe's REST server with our routes, the direct way of V1 predictions, and errors in one form."""

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from http import HTTPStatus
from typing import Any

import orjson
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from kserve.errors import ModelNotReady
from kserve.protocol.dataplane import DataPlane
from kserve.protocol.model_repository_extension import ModelRepositoryExtension
from kserve.protocol.rest.server import RESTServer
from starlette.exceptions import HTTPException
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from thyroid import memory
from thyroid.serve import limits, openapi, prometheus
from thyroid.serve.limits import RequestError
from thyroid.serve.protocol.connections import Connection
from thyroid.serve.protocol.dataplane import KSERVE_ERRORS
from thyroid.serve.protocol.guard import Guard
from thyroid.serve.state import State

SWEEP_SECONDS = 1.0
"""Seconds between two checks for slow clients and for memory to give back."""


class RestServer(RESTServer):
    """KServe's REST server behind the guard, with routes for the facts and the report of a model."""

    def __init__(self, dataplane: DataPlane, extension: ModelRepositoryExtension, state: State) -> None:
        options = state.options
        super().__init__(
            "kserve.model_server:app",
            dataplane,
            extension,
            options.port,
            ssl_certfile=None if options.tls_certificate is None else str(options.tls_certificate),
            ssl_keyfile=None if options.tls_key is None else str(options.tls_key),
        )
        self.config.access_log = False  # our own log line holds no path
        self.config.proxy_headers = False  # a client's address is not used
        self.config.http = Connection
        self._state = state
        self._server.capture_signals = _no_signals  # the server drains by itself

    def _add_middlewares(self, app: FastAPI) -> None:
        """Put the guard in front of the application and of the middleware that it brings along, not inside it."""
        self.config.app = Guard(app, self._state, self._predict)
        app.openapi = openapi.document
        app.add_api_route("/v1/models/{name}:locate", self._locate, methods=["POST"])
        app.add_api_route("/v1/models/{name}/facts", self._facts, methods=["GET"])
        app.add_api_route("/v1/models/{name}/report", self._report, methods=["GET"])

    async def _locate(self, name: str, request: Request) -> Response:
        body: bytes | memoryview = await request.body()
        if len(body) > limits.SMALL_BODY:  # not on the event loop, for which it is too large
            body = memoryview(body)
        answer, headers = await self._predict(name, body, dict(request.headers), locate=True)
        return Response(answer, headers=headers, media_type="application/json")

    async def _predict(
        self, name: str, body: bytes | memoryview, headers: dict[str, str], locate: bool = False
    ) -> tuple[bytes, dict[str, str]]:
        """Answer as KServe's route does, without the layers in between; `locate` asks for boxes alone."""
        try:
            model = self._state.find(name)
            if not model.ready:
                raise ModelNotReady(name)
            plain = headers["content-type"] == "application/json" and "ce-specversion" not in headers  # no CloudEvent
            if isinstance(body, memoryview) and plain:
                request: Any = body
                attributes: dict[str, Any] = {}
            else:
                request, attributes = self.dataplane.decode(bytes(body), headers)
            answering: Awaitable[Any] = model.locate(request) if locate else model(request, headers)
            del body, request  # the model holds what was decoded
            answer, _ = await answering
            answer, more = self.dataplane.encode(name, answer, headers, attributes)
        except tuple(KSERVE_ERRORS) as error:
            status, code = next(reason for kind, reason in KSERVE_ERRORS.items() if isinstance(error, kind))
            raise RequestError(str(error)[:300], status, code) from None
        more.pop("content-length", None)
        if isinstance(answer, bytes | str):
            return answer if isinstance(answer, bytes) else answer.encode(), more
        return orjson.dumps(answer, option=orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY), more

    def _facts(self, name: str) -> JSONResponse:
        return JSONResponse(self._state.find(name).describe())

    def _report(self, name: str) -> FileResponse:
        report = self._state.find(name).folder / "report.html"
        if not report.is_file():  # an artefact that no pipeline registered
            raise RequestError("this model has no report", HTTPStatus.NOT_FOUND, "not_found")
        return FileResponse(report, media_type="text/html")

    def _add_exception_handlers(self, app: FastAPI) -> None:
        """Give all errors the form that `guard` gives them, without a traceback in the log."""
        for kind, handler in (
            (RequestError, _request_error),
            (RequestValidationError, _not_v2),
            (HTTPException, _http_error),
            *((kind, _kserve_error(*reason)) for kind, reason in KSERVE_ERRORS.items()),
            (Exception, _internal),
        ):
            app.add_exception_handler(kind, handler)

    async def close(self) -> None:
        """Accept no new connections.

        The kernel resets those that wait to be accepted when the last descriptor of their socket closes, so they are
        accepted first, by a second descriptor, once the loop no longer accepts.
        """
        loop, waiting = asyncio.get_running_loop(), []
        for server in getattr(self._server, "servers", ()):  # none if it has not started
            listeners = [socket.socket(fileno=os.dup(bound.fileno())) for bound in server.sockets]
            server.close()
            for listener in listeners:
                with listener, contextlib.suppress(BlockingIOError):
                    listener.setblocking(False)
                    while True:
                        waiting.append(listener.accept()[0])
        ssl = self.config.ssl
        await asyncio.gather(
            *(loop.connect_accepted_socket(self._connection, accepted, ssl=ssl) for accepted in waiting),
            return_exceptions=True,
        )

    def _connection(self) -> HttpToolsProtocol:
        """Return the protocol of a connection, as Uvicorn makes it."""
        return Connection(self.config, self._server.server_state, self._server.lifespan.state)

    def finish(self) -> None:
        """Finish the requests in flight, then end."""
        self._server.should_exit = True

    async def sweep(self) -> None:
        """Close connections whose next head has started but does not arrive, or that do not accept their answer.

        Free memory is given back to the system as well. This runs until it is cancelled.
        """
        waiting: dict[Any, tuple[Any, float]] = {}
        bodies = self._state.memory
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            if bodies.returned > memory.WORTH_IT > bodies.held:
                bodies.returned = 0
                await asyncio.get_running_loop().run_in_executor(None, memory.give_back)
            now, before, waiting = time.monotonic(), waiting, {}
            for connection in list(self._server.server_state.connections):
                if (state := connection.waits()) is None:
                    continue
                same = connection in before and before[connection][0] == state
                since = before[connection][1] if same else now
                waiting[connection] = state, since
                if now - since > (limits.HEADERS if state[0] == "head" else limits.SLOW_CLIENT):
                    connection.transport.abort()


@contextlib.contextmanager
def _no_signals() -> Iterator[None]:
    yield


def _request_error(_: Request, error: Any) -> JSONResponse:
    prometheus.REJECTED.labels(error.code).inc()
    headers = {"retry-after": str(limits.RETRY_AFTER)} if error.status == HTTPStatus.SERVICE_UNAVAILABLE else None
    return JSONResponse({"error": str(error), "code": error.code}, int(error.status), headers)


def _not_v2(request: Request, error: RequestValidationError) -> JSONResponse:
    """Name the place of the error, but not its content. FastAPI's own answer repeats the body."""
    where = ".".join(str(part)[:64] for part in error.errors()[0]["loc"]) if error.errors() else "body"
    message = f"{where}: not a request of the V2 protocol"
    return _request_error(request, RequestError(message, HTTPStatus.UNPROCESSABLE_ENTITY))


def _http_error(request: Request, error: HTTPException) -> JSONResponse:
    """Answer for errors that FastAPI itself finds: a body that is not JSON, or a path or method that does not exist."""
    status = HTTPStatus(error.status_code)
    message = "body: not JSON" if status == HTTPStatus.BAD_REQUEST else str(error.detail)
    code = "not_found" if status == HTTPStatus.NOT_FOUND else "invalid_input"
    response = _request_error(request, RequestError(message, status, code))
    response.headers.update(error.headers or {})
    return response


def _internal(request: Request, _: Any) -> JSONResponse:
    """Answer without details. The exception goes on to the guard, which logs it."""
    return JSONResponse({"error": "internal error", "code": "internal"}, int(HTTPStatus.INTERNAL_SERVER_ERROR))


def _kserve_error(status: HTTPStatus, code: str) -> Callable[[Request, Any], JSONResponse]:
    def handle(request: Request, error: Any) -> JSONResponse:
        return _request_error(request, RequestError(str(error)[:300], status, code))

    return handle
